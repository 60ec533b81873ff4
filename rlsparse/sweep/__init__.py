"""Sweeps: plan, tune and launch runs, and show their state."""
