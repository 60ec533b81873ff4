"""The files of a run: their paths, atomic writes, locks, checkpoints, JSON lines and the summary."""
