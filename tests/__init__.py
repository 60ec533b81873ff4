"""Set variables that libraries read at their import, before any test imports one."""

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # otherwise each look for a model of the hub is tried again for seconds
