"""Ablation studies of RL fine-tuning for language models, on little hardware."""

__version__ = "0.1.0"
