"""Tracking: flushed JSON lines first, then W&B as a view of them, and the display."""
