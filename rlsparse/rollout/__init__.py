"""Rollouts: completions sampled from the policy. Config groups ``rollout``, ``layer_skip`` and ``replay``."""

from rlsparse.rollout.engine import LocalEngine, Request, RolloutEngine, Session
from rlsparse.rollout.layer_skip import LayerSkip
from rlsparse.rollout.replay import Replay
from rlsparse.rollout.sampler import RolloutSampler

__all__ = ["LayerSkip", "LocalEngine", "Replay", "Request", "RolloutEngine", "RolloutSampler", "Session"]
