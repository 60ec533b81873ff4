"""Results: run folders → one tidy table → statistics → Markdown, LaTeX and CSV. No torch, no wandb."""
