"""The check of a machine: each fast path against its plain reference, and whole runs, in one report."""
