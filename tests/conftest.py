"""What tests share: the embedded policy, composed configs, hand-made rollouts."""

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from rlsparse.batch import Rollout
from rlsparse.compose import compose_config as compose_overrides
from rlsparse.config import Config
from rlsparse.policy import Policy, load_policy

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # the embedded model is too small for more
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def composed(*overrides: str) -> Config:
    return compose_overrides(overrides)


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., Config]:
    return composed


@pytest.fixture(scope="session")
def loaded_tiny() -> Policy:
    return load_policy(composed().model, torch.device("cpu"), "float32")


@pytest.fixture
def tiny(loaded_tiny: Policy) -> Policy:
    """A fresh copy of the embedded policy, without adapter."""
    return copy.deepcopy(loaded_tiny)


@pytest.fixture
def shared_data() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout (real SVAMP and GSM8K rows)")
    return SHARED / "data"


def make_rollout(completions: Sequence[Sequence[int]], prompts: int = 1, prompt: Sequence[int] = (1, 2)) -> Rollout:
    """A rollout of given token ids; log-probs and entropy are zero."""
    lengths = torch.tensor([len(c) for c in completions])
    T = int(lengths.max())
    ids = torch.tensor([list(c) + [0] * (T - len(c)) for c in completions])
    return Rollout(
        prompt_ids=torch.tensor([list(prompt)] * prompts),
        prompt_lengths=torch.tensor([len(prompt)] * prompts),
        completion_ids=ids,
        lengths=lengths,
        ended=torch.ones(len(completions), dtype=torch.bool),
        log_probs=torch.zeros(len(completions), T),
        entropy=torch.zeros(len(completions), T),
    )
