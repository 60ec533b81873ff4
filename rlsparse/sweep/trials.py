"""The trials of a sweep that tunes keys: wait until all have ended, then choose the values of the comparison."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rlsparse.storage.summary import read_summary
from rlsparse.sweep.callbacks import log_warnings
from rlsparse.sweep.status import RunState, format_states
from rlsparse.sweep.tuning import Job, Tuning, key_of

POLL_INTERVAL = 5.0  # seconds between two looks at trials that another process runs


def wait_for_trials(states: Callable[[], list[RunState]], run_rest: Callable[[], object]) -> None:
    """Return when every trial has ended, since a missing trial would count as failed and change the choice.

    Ends the program with code 1 if a trial did not end.

    Args:
        states: returns the current states of the trials.
        run_rest: runs the trials that another process of the sweep has left unfinished.
    """
    waited = False
    while any(one.state == "running" for one in states()):
        if not waited:
            log_warnings(["waiting for trials that another process runs: all of them are needed to choose the values"])
        waited = True
        time.sleep(POLL_INTERVAL)
    if waited:
        run_rest()
    unfinished = [one for one in states() if one.state not in ("finished", "diverged", "failed")]
    if unfinished:
        print(format_states(unfinished), file=sys.stderr)
        print("the comparison needs all trials to have ended: start the same command again", file=sys.stderr)
        sys.exit(1)


def chosen_jobs(tuning: Tuning, jobs: Sequence[Job], folders: Sequence[Path]) -> list[Job]:
    """Return the jobs of the comparison with the values that were best in the trials, and print each choice.

    Jobs of a method without a complete combination are left out, with a warning.

    Args:
        folders: the folders of the trials, in the order of ``tuning.all_trials(jobs)``.
    """
    scores = {tuple(job): _score(folder) for job, folder in zip(tuning.all_trials(jobs), folders, strict=True)}
    chosen = tuning.choose(jobs, lambda trial: scores.get(tuple(trial)))
    left_out = [" ".join(job) for job, choice in zip(jobs, chosen, strict=True) if choice is None]
    keys = ", ".join(tuning.values)
    log_warnings([f"{job}: not compared, because no value of {keys} has results of all its trials" for job in left_out])
    counts = Counter(" ".join(word for word in job if key_of(word) in tuning.values) for job in chosen if job)
    for words, count in counts.items():
        print(f"tuned on seeds {', '.join(tuning.seeds)}: {words} for {count} of {len(jobs)} runs", file=sys.stderr)
    return [job for job in chosen if job is not None]


def _score(folder: Path) -> float | None:
    """Return the mean of the learning curve of a trial; 0 if it diverged, None if it failed or has no summary."""
    summary = read_summary(folder)
    if summary is None or summary["status"] == "failed":
        return None
    mean = summary.get("curve_mean")
    return mean if summary["status"] == "finished" and isinstance(mean, float) else 0.0
