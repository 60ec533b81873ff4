"""Named random streams: each stage draws from its own, so that changing one stage leaves the others' draws alone."""

import hashlib

import torch


def stream_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream ``name`` of a run, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the stream ``name``; draws are moved to the device, so that they do not depend on it."""
    return torch.Generator().manual_seed(stream_seed(seed, name))
