"""Supervised fine-tuning before RL: `python -m rlsparse.warm_start`."""
