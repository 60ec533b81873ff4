"""Named random streams: each stage has its own, so that a change in one stage does not change the draws of others."""

import hashlib

import torch


def stream_seed(seed: int, name: str) -> int:
    """Return the 63-bit seed of the stream ``name`` of a run; it is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """Return a generator for the stream ``name``.

    It is on the CPU, and draws are moved to the device of the model, so that they do not depend on the device.
    """
    return torch.Generator().manual_seed(stream_seed(seed, name))
