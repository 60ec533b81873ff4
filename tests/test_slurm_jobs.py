"""A SLURM job that is asked to stop, with a stand-in for scontrol; tests with a real SLURM are in tests/slurm."""

import signal

import pytest

from rlsparse.config.schema import ConfigError
from rlsparse.sweep.slurm import check_queue, handle_stop_signal

SIGTERM, SIGUSR2 = signal.SIGTERM, signal.SIGUSR2


@pytest.mark.parametrize(
    ("received", "preempted", "passed_on"),
    [
        (SIGTERM, "2026-01-02T03:04:05", [SIGUSR2, SIGTERM]),
        (SIGTERM, "None", [SIGTERM]),  # scancel
        (SIGUSR2, "None", [SIGUSR2]),
    ],
)
def test_only_preempted_job_is_queued_again(received, preempted, passed_on, tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho '   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime={preempted}'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    seen = []
    earlier = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in (SIGTERM, SIGUSR2)}
    try:
        handle_stop_signal(received)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    assert seen == passed_on


def test_machine_without_slurm_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="hydra/launcher=slurm: there is no sbatch here"):
        check_queue()
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'error: no controller' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigError, match=r"SLURM does not answer \(error: no controller\); see what squeue prints"):
        check_queue()
