"""A run that is interrupted and resumed in another process, against one that is not interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsparse.execution.self_check.children import RUN, Outcome, do_runs, outcome
from rlsparse.execution.self_check.findings import Figure, Finding, Setting
from rlsparse.execution.self_check.scene import distance

STEPS, STOP_AFTER = 6, 3
LONG_STEPS, LONG_STOP_AFTER = 24, 11
TIMES = 10.0  # as far from the whole run as two whole runs from each other, where a device does not repeat its bits


def resume(setting: Setting) -> Iterator[Finding]:
    """Yield the comparison.

    On a GPU, the sums of some kernels depend on the order of their threads. torch is asked for deterministic kernels
    there, and a second run without interruption tells whether runs repeat their bits.

    Raises:
        ChildError: a run has failed.
    """
    steps, stop_after = (STEPS, STOP_AFTER) if setting.quick else (LONG_STEPS, LONG_STOP_AFTER)
    cuda = setting.device == "cuda"

    def words(runs: Path) -> list[str]:
        setup = [f"train.steps={steps}", "train.prompts_per_step=4", "train.group_size=4", "train.checkpoint_every=2"]
        return [*RUN, *setup, f"eval.every={steps}", f"device={setting.device}", f"runs_dir={runs}"]

    whole, cut, again = (setting.scratch / f"resume-{name}" for name in ("whole", "cut", "again"))
    first: list[dict[str, Any]] = [{"words": words(whole)}, {"words": words(cut), "stop_after": stop_after}]
    if cuda:
        first.append({"words": words(again)})
    before = do_runs(setting, first, deterministic=cuda)
    after = do_runs(setting, [{"words": words(cut)}], deterministic=cuda)
    expected, found = outcome(whole), outcome(cut)
    control = outcome(again) if cuda else expected
    yield Finding.of(
        f"run of {steps} steps, SIGTERM after step {stop_after}, resumed",
        Figure("stopped by SIGTERM", "SIGTERM" in before.results[1]),
        Figure("resumed after that step", f"resumes after step {stop_after} " in after.log),
        Figure("finished", (expected.status, found.status) == ("finished", "finished")),
        *(_same_bits(found, expected) if control.adapter == expected.adapter else _near(found, expected, control)),
    )


def _same_bits(found: Outcome, expected: Outcome) -> Iterator[Figure]:
    yield Figure("two runs without interruption have equal bytes", "yes")
    yield Figure("same metrics, times aside", found.rows == expected.rows)
    yield Figure("same samples and answers", found.samples == expected.samples)
    yield Figure("same bytes of the adapter", found.adapter == expected.adapter)


def _near(found: Outcome, expected: Outcome, control: Outcome) -> Iterator[Figure]:
    between = distance(control.tensors, expected.tensors)
    yield Figure("two runs without interruption have equal bytes", "no: this device does not repeat its bits")
    yield Figure("adapter, two runs without interruption, relative", between)
    yield Figure("adapter, resumed - whole, relative", distance(found.tensors, expected.tensors), most=TIMES * between)
