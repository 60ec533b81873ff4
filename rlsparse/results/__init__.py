"""Results: from run folders to tidy tables, statistics, tables for papers, figures and a report. No torch, no wandb."""
