"""A SLURM of one node with its own munge, in a temporary folder: nothing under /etc is read or changed."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
START = 30  # seconds

# the node claims more than this machine has: the tests are about the queue, not the speed
CONF = """
ClusterName=rlsparse
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=65536
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes={host} PriorityTier=2
"""


class CannotStart(Exception):
    """SLURM cannot run on this machine; the message says why."""


class Cluster:
    """Runs a SLURM of one node until it is closed.

    Attributes:
        env: environment in which the commands of SLURM find it.
    """

    def __init__(self, grace: int = 5) -> None:
        """
        Args:
            grace: seconds between the signal of a preemption and the end of the job.

        Raises:
            CannotStart: SLURM is not installed or does not start here.
        """
        missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
        if missing:
            raise CannotStart(f"no {', '.join(missing)} here (apt-get install slurm-wlm munge)")
        self.folder = Path(tempfile.mkdtemp(prefix="rlsparse-slurm-"))
        self.env = {
            **os.environ,
            "PATH": _path(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start(grace)
        except BaseException:
            self.close()
            raise

    def _start(self, grace: int) -> None:
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        conf = CONF.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            ports=_free_ports(2),
            folder=folder,
            grace=grace,
        )
        (folder / "slurm.conf").write_text(conf)
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        self._until("munged", (folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        self._until("slurmctld", lambda: self._answers("scontrol", "ping"))
        self._daemon("slurmd", "-D")
        self._until("slurmd", lambda: "idle" in self("sinfo", "--noheader", "--format=%T", "--partition=low"))

    def __call__(self, *command: str) -> str:
        """Run a command of SLURM and return its output."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout

    def tasks(self, name: str = "") -> dict[str, str]:
        """Return the state of each task in the queue by its id, ``JOB_TASK``.

        Args:
            name: only jobs whose name begins with it.
        """
        lines = self("squeue", "--noheader", "--array", "--format=%i %T %j").splitlines()
        return {task: state for task, state, job in map(str.split, lines) if job.startswith(name)}

    def close(self) -> None:
        """End the jobs, then the daemons."""
        if len(self._daemons) == 3:
            subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=self.env, check=False)
            deadline = time.monotonic() + START
            while self._answers("squeue") and self.tasks() and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(START)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            self._daemons.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log, cwd=self.folder))

    def _answers(self, *command: str) -> bool:
        return subprocess.run(command, env=self.env, capture_output=True).returncode == 0

    def _until(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START
        while not ready():
            if time.monotonic() > deadline or self._daemons[-1].poll() is not None:
                log = (self.folder / f"{name}.out").read_text(errors="replace").strip()
                raise CannotStart(f"{name} does not start: {log[-500:]}")
            time.sleep(0.1)


def _path() -> str:
    """Return the search path of programs; that of a user may lack the folders of the daemons."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
