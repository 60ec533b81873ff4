"""What SLURM does to the jobs of a sweep, and how that is told. No torch; submitit only where it is there."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rlsparse.config.schema import ConfigError
from rlsparse.runtime.signals import pass_on

QUEUE_POLL = 5.0  # seconds
PATIENCE = 300.0  # seconds without an answer, after which SLURM is taken for gone


def wait_for_queue(settings: Mapping[str, Any]) -> None:
    """Until SLURM has none of the sweep's jobs any more; a queue that does not answer for a while may have some."""
    answered = time.monotonic()
    while time.monotonic() - answered < PATIENCE:
        error, jobs = _queue(str(settings["name"]))
        if not error:
            if not jobs:
                return
            answered = time.monotonic()
        time.sleep(QUEUE_POLL)


def check_queue() -> None:
    """
    Raises:
        ConfigError: jobs cannot be submitted from here.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError("hydra/launcher=slurm: there is no sbatch here; start the sweep where jobs are submitted")
    error, _ = _queue("rlsparse")
    if error:
        raise ConfigError(f"hydra/launcher=slurm: SLURM does not answer ({error}); see what squeue says here")


def _queue(name: str) -> tuple[str, str]:
    """What squeue complains of, on a line, and the jobs of that name."""
    command = ["squeue", "--noheader", "--name", name]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE:.0f} s", ""
    return (" ".join(asked.stderr.split()) or "no reason given") if asked.returncode else "", asked.stdout.strip()


def ask_the_queue() -> None:
    """Have submitit look for its jobs in SLURM's queue.

    It asks SLURM's accounting, which many clusters lack: there it would wait for ever for a job that was killed.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T"]
            return command if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            queued = {line.partition("|")[0] for line in text.split()}
            # a job that is there is not done, whatever it is called: some states are not known to submitit
            states = {job: "RUNNING" if job in queued else "not in the queue" for job in self._registered}
            return {job: {"JobID": job, "State": state} for job, state in states.items()}

    SlurmJob.watcher = Queue(delay_s=60)


def stopped(number: int) -> None:
    """A run of this process was told to stop by a signal, and is saved: let the job end as SLURM meant it.

    SLURM's preemption begins with SIGTERM, as scancel does. A job that ends on it has failed in SLURM's eyes: it is
    queued again only if it says so itself.
    """
    if number == signal.SIGTERM and _is_preempted():
        with suppress(Exception):  # SLURM was faster, and has it in the queue already
            pass_on(signal.SIGUSR2)
    pass_on(number)


def _is_preempted() -> bool:
    """Whether SLURM wants the place of this job for another one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # the id of one task is the whole array's
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    with suppress(OSError, subprocess.TimeoutExpired):
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60).stdout
        return re.search(r"\bPreemptTime=\d", shown) is not None
    return False
