"""SLURM: the queue of a sweep's jobs, and the signals that it sends to a job. Imports no torch."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress

from rlsparse.config.schema import ConfigError
from rlsparse.runtime.signals import redeliver

POLL_INTERVAL = 5.0  # seconds between two queries of the queue
TIMEOUT = 300.0  # seconds; if SLURM does not answer for so long, it is considered unavailable


def wait_for_jobs(name: str) -> None:
    """Return when SLURM has no job of this name in its queue, or has not answered for ``TIMEOUT`` seconds."""
    answered = time.monotonic()
    while time.monotonic() - answered < TIMEOUT:
        error, jobs = _query_queue(name)
        if not error:
            if not jobs:
                return
            answered = time.monotonic()
        time.sleep(POLL_INTERVAL)


def check_queue() -> None:
    """Check that this machine can submit jobs.

    Raises:
        ConfigError: it cannot.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "hydra/launcher=slurm: there is no sbatch here; start the sweep on a machine that can submit jobs"
        )
    error, _ = _query_queue("rlsparse")
    if error:
        raise ConfigError(f"hydra/launcher=slurm: SLURM does not answer ({error}); see what squeue prints here")


def _query_queue(name: str) -> tuple[str, str]:
    """Return the error of squeue on one line (empty for none), and the jobs of a name."""
    command = ["squeue", "--noheader", "--name", name]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT:.0f} s", ""
    error = " ".join(answer.stderr.split()) or "no reason given"
    return error if answer.returncode else "", answer.stdout.strip()


def use_squeue() -> None:
    """Make submitit look for its jobs in the queue of SLURM (squeue).

    By default it queries the accounting of SLURM, which many clusters do not have; without accounting it would wait
    forever for a job that was killed.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class QueueWatcher(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T"]
            return command if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            queued = {line.partition("|")[0] for line in text.split()}
            # a queued job has not ended, whatever its state is called: submitit does not know all states
            states = {job: "RUNNING" if job in queued else "not in the queue" for job in self._registered}
            return {job: {"JobID": job, "State": state} for job, state in states.items()}

    SlurmJob.watcher = QueueWatcher(delay_s=60)


def handle_stop_signal(number: int) -> None:
    """End a job as SLURM expects, after a signal has stopped its run and the run is saved.

    Preemption begins with SIGTERM, as scancel does. A job that ends on SIGTERM has failed for SLURM, so a preempted job
    must put itself into the queue again. Outside a SLURM job, the signal is only passed on.

    Args:
        number: the signal that stopped the run.
    """
    if number == signal.SIGTERM and _is_preempted():
        with suppress(Exception):  # fails if SLURM has already put the job into the queue again
            redeliver(signal.SIGUSR2)
    redeliver(number)


def _is_preempted() -> bool:
    """Return whether SLURM ends this job because another one needs its resources."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # the job id alone would mean the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    with suppress(OSError, subprocess.TimeoutExpired):
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60).stdout
        return re.search(r"\bPreemptTime=\d", shown) is not None
    return False
