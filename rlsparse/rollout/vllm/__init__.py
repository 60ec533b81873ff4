"""Rollouts by a vLLM server, which a sweep can share. vLLM is never imported: it has an environment of its own."""

from rlsparse.rollout.vllm.engine import Vllm

__all__ = ["Vllm"]
