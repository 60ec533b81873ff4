"""Compare the time of an update with each surrogate with that of the clipped ratio, in turns in one process.

python experiments/benchmarks/surrogates.py --model DIR   # DIR: the folder of SmolLM2-135M
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from prefix_cut import COMPLETION, GROUP, PROMPT, PROMPTS, sides

BASELINE = "on"
NAMES = (BASELINE, "clip_higher", "dual_clip", "cispo", "gspo", "gmpo", "sapo", "dppo", "self_ratio", "off")
WORK = f"{PROMPTS} prompts of {PROMPT} tokens, {GROUP} completions of {COMPLETION} tokens each"


def measure(model: str, threads: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of the updates with each surrogate, after a first round."""
    updaters = sides(model, threads, {name: [f"clipping={name}"] for name in NAMES})
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for round_ in range(repeats + 1):
        for name, (updater, batches) in updaters.items():
            start = perf_counter()
            updater(batches)
            if round_:
                seconds[name].append(perf_counter() - start)
    return {"threads": threads, "work": WORK, "seconds": seconds}


def table(report: dict[str, Any]) -> str:
    """Return how the time with each surrogate relates to that with the clipped ratio, as a Markdown table."""
    seconds = report["seconds"]
    lines = ["| clipping | time / clipping=on (spread) |", "|:--|:--|"]
    for name in NAMES[1:]:
        ratios = [one / base for one, base in zip(seconds[name], seconds[BASELINE], strict=True)]
        lines.append(f"| {name} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    return "\n".join([*lines, "", f"clipping=on: {median(seconds[BASELINE]):.2f} s; {report['work']}"])


def main() -> None:
    """Measure, write the json file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    report = measure(options.model, options.threads, options.repeats)
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
