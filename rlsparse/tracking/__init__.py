"""Tracking: metrics are written to JSON lines, which W&B and its dashboard show, and to the progress display."""
