"""The run id: a hash of everything that can change the numbers of a run, and of the label of its algorithm.

The label changes no number, but ``algorithm=grpo clipping=off`` and ``algorithm=rgra`` are two rows of a table.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.schema import Config, EvaluateConfig, WarmStartConfig

# keys and groups that change no number of a run
NO_EFFECT = ("runs_dir", "out", "threads", "import_path", "tracker", "experiment", "sweep")
# keys of rollout=vllm that say where and how a server runs; they change no number, and are in no name of a method
SERVER_KEYS = (
    "server",
    "python",
    "devices",
    "gpu_memory",
    "max_lora_rank",
    "lora_modules",
    "max_loras",
    "api_key",
    "exchange",
    "timeout",
    "start_timeout",
    "retries",
)
LABELS = {WarmStartConfig: "supervised", EvaluateConfig: "evaluate"}  # in the place of an algorithm
# values of keys that a later version added, at which they change nothing: such keys change no id
NEUTRAL_IN_MODEL: Mapping[str, Any] = {"template_arguments": {}, "quantization": "off"}
NEUTRAL_IN_TRAINING = {"minibatches": 1, "mask_truncated": False, "staleness": 0}
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
        components: what each component adds, by config group; None for one that changes no number.
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


def identify(config: Config | WarmStartConfig | EvaluateConfig, inputs: Inputs) -> Identity:
    """Return the identity of a run, a warm start or an evaluation."""
    unused = (*NO_EFFECT, *inputs.unused)
    relevant: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in unused}
    # model.lr and model.lr_full only feed train.lr, which is in the hash itself
    model = {key: value for key, value in relevant["model"].items() if key not in ("lr", "lr_full")}
    # so that ids from before these keys stay
    model = {
        key: value for key, value in model.items() if key not in NEUTRAL_IN_MODEL or value != NEUTRAL_IN_MODEL[key]
    }
    if inputs.model is not None:
        model |= {"name": None, "path": inputs.model, "revision": None}
    rollout = getattr(config, "rollout", None)
    evaluation = _evaluation(relevant["eval"], rollout if isinstance(rollout, dict) else {})
    if isinstance(config, EvaluateConfig):  # it has no held-out rows of a task, and asks all benchmarks once
        evaluation = {
            key: evaluation[key] for key in evaluation if key not in ("every", "max_rows", "benchmarks_every")
        }
    relevant |= {**inputs.components, "model": model, "eval": evaluation, "device": inputs.device}
    relevant = {key: value for key, value in relevant.items() if value is not None or key not in inputs.components}
    if isinstance(config, Config):
        neutral = {"checkpoint_every": config.train.checkpoint_every, **NEUTRAL_IN_TRAINING}
        relevant["train"] = {
            key: value for key, value in relevant["train"].items() if key not in neutral or value != neutral[key]
        }
    config_hash = _hash(relevant)
    label = config.algorithm if isinstance(config, Config) else LABELS[type(config)]
    return Identity(
        id=f"{label}-s{config.seed}-{config_hash[:10]}",
        config_hash=config_hash,
        method_hash=_hash({key: value for key, value in relevant.items() if key != "seed"}),
        device=inputs.device,
    )


def _evaluation(values: Mapping[str, Any], rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an evaluation that can change its numbers.

    Keys that change nothing at their value are left out, so that a new key changes no id. The tasks of benchmarks are
    components, which ``Inputs.components`` describes.

    Args:
        rollout: the node of the rollout, whose sampling an evaluation takes over.
    """
    of_benchmarks = ("benchmarks", "tasks", "benchmarks_every", "benchmark_rows")
    kept = {key: value for key, value in values.items() if key not in of_benchmarks}
    kept |= {key: values[key] for key in of_benchmarks[2:] if values["benchmarks"]}
    neutral = {key: rollout.get(key) for key in ("temperature", "top_p", "top_k")}
    neutral |= {"maj_at": [], "max_new_tokens": None, "benchmarks_every": None, "benchmark_rows": None}
    return {key: value for key, value in kept.items() if key not in neutral or value != neutral[key]}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
