"""One run from start to end: checks before it, its folder, its summary; and the other ranks of it."""
