"""The trials of a sweep that tunes keys: all of them ended, and what they settle."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rlsparse.storage.summary import read_summary
from rlsparse.sweep.callbacks import warn
from rlsparse.sweep.status import RunState, report
from rlsparse.sweep.tuning import Job, Tuning, key_of

WAIT = 5.0  # seconds between two looks at what another copy of the sweep does


def all_ended(states: Callable[[], list[RunState]], do_again: Callable[[], object]) -> None:
    """Return when every trial has ended: one that is left out would count as one that failed, and move the choice.

    Ends the program with code 1 where some did not end.

    Args:
        states: of the trials, now.
        do_again: works off what another copy of the sweep has left.
    """
    told = False
    while any(one.state == "running" for one in states()):
        if not told:
            warn(["waiting for trials that another copy of this sweep does: the choice needs all of them"])
        told = True
        time.sleep(WAIT)
    if told:
        do_again()
    unended = [one for one in states() if one.state not in ("finished", "diverged", "failed")]
    if unended:
        print(report(unended), file=sys.stderr)
        print("nothing is compared before all trials have ended: start the same command again", file=sys.stderr)
        sys.exit(1)


def settled(tune: Tuning, jobs: Sequence[Job], folders: Sequence[Path]) -> list[Job]:
    """The comparison's jobs at the values that did best in the trials, with a line for each choice.

    Args:
        folders: of the trials' runs, in the order of ``tune.all_trials(jobs)``.
    """
    scores = {tuple(job): _score(folder) for job, folder in zip(tune.all_trials(jobs), folders, strict=True)}
    chosen = tune.settle(jobs, lambda trial: scores.get(tuple(trial)))
    lost = [" ".join(job) for job, done in zip(jobs, chosen, strict=True) if done is None]
    warn([f"{job}: not compared, no value of {', '.join(tune.values)} has all its trials" for job in lost])
    counts = Counter(" ".join(w for w in job if key_of(w) in tune.values) for job in chosen if job)
    for words, count in counts.items():
        print(f"tuned on seeds {', '.join(tune.seeds)}: {words} for {count} of {len(jobs)} runs", file=sys.stderr)
    return [job for job in chosen if job is not None]


def _score(folder: Path) -> float | None:
    """A trial's mean of the curve; 0 where it diverged."""
    summary = read_summary(folder)
    if summary is None or summary["status"] == "failed":
        return None
    mean = summary.get("curve_mean")
    return mean if summary["status"] == "finished" and isinstance(mean, float) else 0.0
