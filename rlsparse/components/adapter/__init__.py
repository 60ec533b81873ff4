"""Adapters: the parameters that are trained. Config group ``adapter``."""

from rlsparse.components.adapter.base import Adapter, TrainedAdapter

__all__ = ["Adapter", "TrainedAdapter"]
