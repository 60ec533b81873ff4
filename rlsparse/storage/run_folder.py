"""The paths and file names of a run. Other modules take them from here."""

from dataclasses import dataclass
from pathlib import Path

from rlsparse.config.paths import expand_home


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, ``<runs_dir>/<experiment>/<run id>/``.

    Attributes:
        path: the folder itself; its name is the run id.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The composed config of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row for each training step, evaluation and change of ranks."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Some completions of each step with their rewards."""
        return self.path / "samples.jsonl"

    @property
    def answers(self) -> Path:
        """The outcome of each held-out question in each evaluation."""
        return self.path / "answers.jsonl"

    @property
    def summary(self) -> Path:
        """Status and results of the run, written once at the end."""
        return self.path / "summary.json"

    @property
    def provenance(self) -> Path:
        """Versions, commit and command line at the start of the run."""
        return self.path / "provenance.json"

    @property
    def error(self) -> Path:
        """The traceback of a failed run."""
        return self.path / "error.txt"

    @property
    def checkpoints(self) -> Path:
        """The last two checkpoints; removed when the run has finished."""
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        """The trained adapter in the format of peft."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The trained model in the format of transformers, where there is no adapter."""
        return self.path / "model"

    @property
    def attempts(self) -> Path:
        """Files of earlier attempts that could not be resumed."""
        return self.path / "attempts"

    @property
    def wandb(self) -> Path:
        """The files of W&B."""
        return self.path / "wandb"

    @property
    def wandb_lock(self) -> Path:
        """Locked by the process that shows the run on W&B."""
        return self.wandb / ".lock"

    @property
    def lock(self) -> Path:
        """Locked by the process that works on the run (``sweep.lock=flock``)."""
        return self.path / ".lock"

    @property
    def lease(self) -> Path:
        """The lock for ``sweep.lock=lease``: a file that its holder touches regularly."""
        return self.path / ".lease"

    @property
    def holder(self) -> Path:
        """Host and process id of the process that works on the run."""
        return self.path / "holder.json"


def begun_runs(runs_dir: Path, experiment: str | None = None) -> list[RunFolder]:
    """Return the folders of all runs that have written metrics, ordered by path.

    Args:
        runs_dir: the key ``runs_dir`` of the runs.
        experiment: name of an experiment; None for all.
    """
    every_run = RunFolder(Path(experiment or "*", "*"))
    return [RunFolder(file.parent) for file in sorted(runs_dir.glob(str(every_run.metrics)))]


def path_argument(text: str) -> Path:
    """Return a path of a command line; ``~`` is the home folder, also where the shell does not expand it."""
    return Path(expand_home(text))
