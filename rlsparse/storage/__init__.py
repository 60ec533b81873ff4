"""What a run leaves on disk: atomic files, locks, checkpoints, summaries."""
