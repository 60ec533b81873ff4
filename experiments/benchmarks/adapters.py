"""Compare what is trained, on real word problems: full fine-tuning, adapters, a 4-bit base: adapters.json.

python experiments/benchmarks/adapters.py --model DIR --data DIR

Rewards are random, so that every group teaches something. Each run is an ordinary one, whose steps wait for their turn,
so that the noise of the machine affects all alike. Not all processes fit into the memory of a small machine together:
each race has LoRA and a few others, whose times are shares of LoRA's in the same race.
"""

import argparse
import json
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from race import Contender, race
from tabulate import tabulate
from workload import Gate, Work

SIDES = {
    "lora": ["adapter=lora"],
    "full": ["adapter=full"],
    "dora": ["adapter=dora"],
    "rslora": ["adapter=rslora"],
    "adalora": ["adapter=adalora"],
    "pissa": ["adapter=pissa"],
    "l1ra": ["adapter=l1ra_short"],
    "l1ra, init=normal": ["adapter=l1ra_short", "adapter.init=normal"],
    "lora on nf4": ["adapter=lora", "model.quantization=nf4"],
    "lora on nf4, dequantized rollout": ["adapter=lora", "model.quantization=nf4", "rollout.dequantize=true"],
}
BASELINE = "lora"
TOGETHER = 5  # contenders beside the baseline in a race
TIMES, OTHERS = ("step", "rollout", "update"), ("tokens/s", "memory, GiB", "trained, M")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True, help="folder of SmolLM2")
    arguments.add_argument("--data", required=True, help="folder of SVAMP")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--runs", help="folder that keeps the runs; none are kept without it")
    arguments.add_argument("--only", nargs="*", default=list(SIDES), help=f"of {', '.join(SIDES)}")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(options.runs or folder)
        common = [
            "model=smollm2",
            f"model.path={options.model}",
            "task=svamp",
            "reward=random",
            f"task.path={options.data}",
            "rollout.max_new_tokens=48",
            "train.prompts_per_step=4",
            f"train.steps={options.steps}",
            f"eval.every={options.steps}",
            "eval.max_rows=1",
            "eval.samples=1",
            "eval.max_new_tokens=8",
            "tracker=none",
            "lora_rank=8",
            "threads=1",
        ]
        work = Work(options.model, "grpo", steps=options.steps, threads=options.threads)
        report: dict[str, Any] = {}
        others = [name for name in options.only if name != BASELINE]
        for number, start in enumerate(range(0, len(others), TOGETHER)):
            names = (BASELINE, *others[start : start + TOGETHER])
            folder_of = {name: runs / f"{number}.{place}" for place, name in enumerate(names)}
            race(
                {
                    name: Contender(run_in_turns, work, [*common, f"runs_dir={folder_of[name]}", *SIDES[name]])
                    for name in folder_of
                },
                warmup=0,
            )
            found = {name: measured(one) for name, one in folder_of.items()}
            for name, one in found.items():
                shares = {share_of(key): one[key] / found[BASELINE][key] for key in TIMES}
                report.setdefault(name, {**one, **shares})
            Path(__file__).with_name("adapters.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def run_in_turns(pipe: Connection, work: Work, overrides: list[str]) -> None:
    """Do an ordinary run, each of whose steps waits for its turn.

    Outside the steps it has one thread: all contenders start and end at the same time.
    """
    import torch

    from rlsparse.config.compose import compose
    from rlsparse.run import run
    from rlsparse.training.metrics import Recorder

    torch.set_num_threads(1)
    gate = Gate(pipe)
    evaluation, step = Recorder.evaluation, Recorder.step

    def begin(self: Recorder, number: int, *rest: Any) -> None:
        evaluation(self, number, *rest)
        if number == 0:
            gate.wait()
            torch.set_num_threads(work.threads)

    def in_turn(self: Recorder, number: int, *rest: Any) -> None:
        step(self, number, *rest)
        gate.report()
        if number == work.steps:
            torch.set_num_threads(1)
        gate.wait()

    Recorder.evaluation, Recorder.step = begin, in_turn  # type: ignore[method-assign]
    summary = run(compose(overrides))
    pipe.send({"peak": summary["peak_memory_bytes"]})


def measured(folder: Path) -> dict[str, Any]:
    """Return the figures of the run in a folder; times are medians over the steps after the first, in seconds."""
    (file,) = folder.glob("*/*/summary.json")
    summary = json.loads(file.read_text(encoding="utf-8"))
    lines = file.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"][1:]
    rollout, update = ([row[f"time/{stage}"] for row in steps] for stage in ("rollout", "train"))
    return {
        "step": median(a + b for a, b in zip(rollout, update, strict=True)),
        "rollout": median(rollout),
        "update": median(update),
        "tokens/s": median(row["rollout/tokens_per_second"] for row in steps),
        "memory, GiB": summary["peak_memory_bytes"] / 2**30,
        "trained, M": summary["adapter"]["parameters"] / 1e6,
    }


def share_of(key: str) -> str:
    """Return the name of a time as a share of LoRA's in the same race."""
    return f"{key}, share of LoRA's"


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown; times are shares of LoRA's in the same race."""
    rows = []
    for name, one in report.items():
        times = [f"{one[share_of(key)]:.2f}" for key in TIMES]
        rest = [f"{one[key]:.{digits}f}" for key, digits in zip(OTHERS, (0, 2, 2), strict=True)]
        rows.append([name, *times, *rest])
    align = ["left"] + ["right"] * (len(TIMES) + len(OTHERS))
    return tabulate(rows, headers=["", *TIMES, *OTHERS], tablefmt="github", disable_numparse=True, colalign=align)


if __name__ == "__main__":
    main()
