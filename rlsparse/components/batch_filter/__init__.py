"""Batch filters: which groups of completions training sees. Config group ``batch_filter``."""

from rlsparse.components.batch_filter.base import BatchFilter

__all__ = ["BatchFilter"]
