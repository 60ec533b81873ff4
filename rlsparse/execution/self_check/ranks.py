"""A training step that several ranks share, against the step of one process."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlsparse.execution.self_check.children import RUN, greatest_ratio, start, without_times
from rlsparse.execution.self_check.findings import Figure, Finding, Setting
from rlsparse.execution.self_check.scene import distance

LAUNCHER = ["-m", "torch.distributed.run", "--standalone"]
MOST = 8  # ranks
# five prompts do not divide by two; no gradient clipping, whose factor would hide a wrong scale
SETUP = (
    "kl=on",
    "objective.l2=0.01",
    "train.steps=1",
    "train.prompts_per_step=5",
    "train.group_size=8",
    "train.max_grad_norm=0",
    "eval.batch_rows=6",
)
GRADIENT = {"cpu": 1e-6, "cuda": 1e-5}  # relative; kernels of a GPU depend on the number of rows, and so does rounding
RELATIVE, ABSOLUTE = 1e-4, 1e-6  # of the metrics


def ranks(setting: Setting) -> Iterator[Finding]:
    """Yield the comparison of the first step: two ranks, or as many as there are GPUs. Ranks may share a GPU.

    Raises:
        ChildError: a process has failed.
    """
    gpus = torch.cuda.device_count() if setting.device == "cuda" else 0
    count = max(2, min(MOST, gpus))
    folder = setting.scratch / "ranks"
    folder.mkdir()
    order = {"kind": "first_step", "words": [*RUN, *SETUP, f"device={setting.device}"], "out": str(folder)}
    start([], order)
    start([*LAUNCHER, f"--nproc_per_node={count}"], order)
    alone = _gradient(folder / "0-of-1.safetensors")
    parts = [_gradient(folder / f"{rank}-of-{count}.safetensors") for rank in range(count)]
    rows, expected = (_rows(folder / name) for name in (f"0-of-{count}.json", "0-of-1.json"))
    yield Finding.of(
        f"first step of {count} ranks under torchrun, against one process",
        Figure("the gradient has the same bits on each rank", all(torch.equal(parts[0], part) for part in parts)),
        Figure("gradient, relative", distance(parts[0], alone), most=GRADIENT[setting.device]),
        # the evaluation before the step, and the step
        greatest_ratio(rows[:2], expected[:2], RELATIVE, ABSOLUTE),
        Figure("devices", f"{gpus} GPUs" if gpus else "CPU"),
    )


def _gradient(file: Path) -> torch.Tensor:
    """Return the gradient in all parameters, (n,)."""
    return torch.cat([part.flatten() for _, part in sorted(load_file(file).items(), key=lambda one: int(one[0]))])


def _rows(file: Path) -> list[dict[str, float]]:
    return [without_times(row) for row in json.loads(file.read_text())]
