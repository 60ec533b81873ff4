"""Measure the peak memory of a step by completion length and group size, each in a new process: memory.csv and .svg.

python experiments/benchmarks/memory.py --model DIR
"""

import argparse
import csv
from pathlib import Path

import contenders
from race import Contender, race
from vs_trl import CASES
from workload import Work

LENGTHS = (64, 128, 256, 512, 1024)  # tokens, at a group of 8
GROUPS = (8, 16, 32, 64)  # completions, at 128 tokens
HERE = Path(__file__).parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub id")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    rows = []
    for case, (algorithm, layers, overrides) in CASES.items():
        for new_tokens, group_size in sorted({(t, 8) for t in LENGTHS} | {(128, g) for g in GROUPS}):
            work = Work(options.model, algorithm, layers, 1, group_size, new_tokens, 1, options.threads)
            measured = race({case: Contender(contenders.ours, work, overrides + _budget(case, new_tokens))}, warmup=0)
            rows.append([case, new_tokens, group_size, measured[case].peak])
    with (HERE / "memory.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "new_tokens", "group_size", "peak_bytes"])
        writer.writerows(rows)
    plot(rows)


def _budget(case: str, new_tokens: int) -> list[str]:
    """Return overrides with which S-GRPO takes 40 % of the tokens at any length."""
    if case != "sgrpo_last_third":
        return []
    return [f"token_sampler.always_first={new_tokens // 10}", f"token_sampler.budget={4 * new_tokens // 10}"]


def plot(rows: list[list[object]]) -> None:
    """Draw memory.svg: two panels with one line for each case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for panel, column, fixed, title in (
        (panels[0], 1, (2, 8), "completion length, tokens (group of 8)"),
        (panels[1], 2, (1, 128), "group size (128 tokens)"),
    ):
        for case, style in zip(CASES, ("-o", "--s", ":^"), strict=True):
            points = sorted((r[column], r[3]) for r in rows if r[0] == case and r[fixed[0]] == fixed[1])
            panel.plot([x for x, _ in points], [y / 2**30 for _, y in points], style, color="black", label=case)
        panel.set_xscale("log", base=2)
        panel.set_xticks([x for x, _ in points], [str(x) for x, _ in points])
        panel.set_xlabel(title)
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("peak memory of the process, GiB")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "memory.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
