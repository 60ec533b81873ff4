"""Sweeps: planning, tuning, launching, and their state."""
