"""The run id: a hash of everything that can change the numbers of a run, and of the label of its algorithm.

The label changes no number, but ``algorithm=grpo clipping=off`` and ``algorithm=rgra`` are two rows of a table.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.schema import Config, WarmStartConfig

# keys and groups that change no number of a run
NO_EFFECT = ("runs_dir", "out", "threads", "import_path", "tracker", "experiment", "sweep")
Digest = Callable[[tuple[Path, ...]], str]  # the hash of the contents of some files


@dataclass(frozen=True)
class Identity:
    """The names of a run.

    Attributes:
        id: folder name: algorithm, seed and the start of the hash.
        config_hash: of all that can change the numbers.
        method_hash: the same without the seed: runs with different ones are different methods.
        device: kind of device that the run is on.
    """

    id: str
    config_hash: str
    method_hash: str
    device: str


@dataclass(frozen=True)
class Inputs:
    """What the id of a run is made from beside its config.

    Attributes:
        components: what each component adds, by config group.
        model: hash of the files that the model is read from; None where the hub provides it.
        device: kind of device (cpu, cuda, mps), whatever the key ``device`` says.
        unused: keys that have no effect on this run.
    """

    components: Mapping[str, Any]
    model: str | None
    device: str
    unused: Sequence[str] = ()


def files_digest(files: Iterable[Path]) -> str:
    """Return the hash of the files of a model or a data set: names and contents, not the folder they lie in."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.name.encode(errors="surrogateescape"))
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def identify(config: Config | WarmStartConfig, inputs: Inputs) -> Identity:
    """Return the identity of a run or a warm start."""
    unused = (*NO_EFFECT, *inputs.unused)
    relevant: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in unused}
    # model.lr only feeds train.lr, which is in the hash itself
    model = {key: value for key, value in relevant["model"].items() if key != "lr"}
    if inputs.model is not None:
        model |= {"name": None, "path": inputs.model, "revision": None}
    relevant |= {**inputs.components, "model": model, "device": inputs.device}
    if isinstance(config, Config):
        relevant["train"] = {key: value for key, value in relevant["train"].items() if key != "checkpoint_every"}
    config_hash = _hash(relevant)
    label = config.algorithm if isinstance(config, Config) else "supervised"
    return Identity(
        id=f"{label}-s{config.seed}-{config_hash[:10]}",
        config_hash=config_hash,
        method_hash=_hash({key: value for key, value in relevant.items() if key != "seed"}),
        device=inputs.device,
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
