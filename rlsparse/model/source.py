"""Where a model is read from: a folder, an adapter on another model, or the hub; and which files of it are read."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.run_id import Digest, files_digest
from rlsparse.config.schema import ConfigError, ModelConfig

EMBEDDED = {name: Path(__file__).parent / "embedded" / name for name in ("tiny", "tiny_deep")}
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# the files that transformers makes a tokenizer from, and those that it reads beside them
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tekken.json",
)
TOKENIZER = (
    *VOCABULARIES,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "chat_template.jinja",
)
# keys that make transformers read other files
REDIRECTS = (
    (CONFIG, "transformers_weights"),
    (CONFIG, "configuration_files"),
    ("tokenizer_config.json", "fast_tokenizer_files"),
)
POINTER = b"version https://git-lfs"  # the first bytes of a file that git-lfs has not fetched
LONGEST_CHAIN = 8  # adapters on adapters


@dataclass(frozen=True)
class ModelSource:
    """A model that ``from_pretrained`` can read.

    Attributes:
        key: ``model.path=DIR`` or ``model.name=NAME``, for messages.
        location: a folder, or the id of a model on the hub.
        revision: branch, tag or commit on the hub.
        folder: the same as ``location`` if it is a folder of this machine; None for the hub.
        base: the model that an adapter is added to, where ``folder`` holds only an adapter; else None.
    """

    key: str
    location: str
    revision: str | None
    folder: Path | None
    base: "ModelSource | None" = None

    @property
    def tokenizer(self) -> "ModelSource":
        """The source of the tokenizer: the folder of an adapter if it holds one, else that of its base model."""
        if self.base is None or (self.folder is not None and _has_tokenizer(self.folder)):
            return self
        return self.base.tokenizer

    @property
    def adapters(self) -> "list[ModelSource]":
        """The adapters on the full model, the first one to be added first."""
        return [] if self.base is None else [*self.base.adapters, self]

    @property
    def root(self) -> "ModelSource":
        """The full model, without the adapters on it."""
        return self if self.base is None else self.base.root

    def files(self) -> list[Path]:
        """Return the files of the folder that are read, sorted by name; files of ``base`` are not among them."""
        if self.folder is None:
            return []
        if self.base is not None:
            names: list[str] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        else:
            names = [CONFIG, GENERATION_CONFIG, *weight_files(self.folder)]
        found = [self.folder / name for name in (*names, *TOKENIZER)]
        found += self.folder.glob("additional_chat_templates/*.jinja")
        return sorted(file for file in set(found) if file.is_file())

    def all_files(self) -> list[Path]:
        """Return the files that are read from this folder and from those of its base models."""
        return [*self.files(), *(self.base.all_files() if self.base is not None else [])]

    def digest(self, digest: Digest = files_digest) -> str | None:
        """Return a hash of the content of all files that are read; None for a model of the hub."""
        if self.folder is None:
            return None
        if self.base is None:
            return digest(tuple(self.files()))
        own = digest(tuple(file for file in self.files() if file.name != ADAPTER_CONFIG))
        base = self.base.digest(digest) or (self.base.location, self.base.revision)
        return f"{own} {_adapter_settings(self.key, self.folder)} on {base}"


def model_source(config: ModelConfig) -> ModelSource:
    """Return the source of the model of a config. ``model.path`` beats ``model.name``, which may be a folder, too.

    Raises:
        ConfigError: a folder is not there or lacks files, or a file was not fetched by git-lfs.
    """
    if not (config.name if config.path is None else config.path).strip():
        key = "model.name" if config.path is None else "model.path"
        raise ConfigError(f"{key}=: names nothing; give a hub id as model.name, or a folder as model.path")
    if config.path is not None:
        return _folder_source(f"model.path={config.path}", Path(config.path))
    if config.name in EMBEDDED:
        return _folder_source(f"model.name={config.name}", EMBEDDED[config.name])
    if Path(config.name).is_dir():  # transformers takes it for a folder
        return _folder_source(f"model.name={config.name}", Path(config.name))
    if config.name.startswith((".", "/", "~")):
        raise ConfigError(f"model.name={config.name}: there is no such folder; give a hub id, or a Hugging Face folder")
    return ModelSource(f"model.name={config.name}", config.name, config.revision, None)


def adapter_on(base: ModelSource, path: str) -> ModelSource:
    """Return the source of a model with the adapter of a folder, whichever base model that adapter names.

    Raises:
        ConfigError: the folder holds no adapter in the format of peft.
    """
    key, folder = f"adapter={path}", Path(path)
    if not folder.is_dir():
        remedy = _exported_model(folder.parent) or "give the folder adapter/ of a finished run"
        raise ConfigError(f"{key}: there is no such folder; {remedy}")
    if not (folder / ADAPTER_CONFIG).is_file():
        remedy = _exported_model(folder) or _exported_model(folder.parent) or _hint(_inside(folder))
        raise ConfigError(f"{key}: holds no {ADAPTER_CONFIG}; {remedy}")
    _check_adapter_files(key, folder)
    return ModelSource(key, path, None, folder, base)


def weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that transformers reads from a folder, the index of shards included."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    try:
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [INDEX, *sorted({str(shard) for shard in shards})]
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return [INDEX]


def _folder_source(key: str, folder: Path, chain: int = 0) -> ModelSource:
    """Return the source for a folder after looking at its files.

    Raises:
        ConfigError: see ``model_source``.
    """
    if folder.is_file():
        raise ConfigError(f"{key}: is a file; give the folder that it lies in, {folder.parent}")
    if not folder.is_dir():
        raise ConfigError(f"{key}: there is no such folder; {_hint(_exports(folder.parent))}")
    folder = folder.absolute()
    has_model = (folder / CONFIG).exists()
    of_adapter = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin") if (folder / name).exists()]
    if has_model and of_adapter:
        raise ConfigError(
            f"{key}: holds a full model and an adapter ({', '.join(of_adapter)}); move the files of the adapter into a "
            "folder of their own, and give the one of the two folders that you mean"
        )
    if ADAPTER_CONFIG in of_adapter:
        source = _adapter_source(key, folder, chain)
    elif has_model:
        source = ModelSource(key, str(folder), None, folder)
        _check_full_model(source, folder)
    elif of_adapter:
        raise ConfigError(f"{key}: {of_adapter[0]} without {ADAPTER_CONFIG}; copy the folder of the adapter again")
    else:
        raise ConfigError(f"{key}: no {CONFIG} in it; {_hint(_inside(folder))}")
    for file in source.files():
        _check_file(key, file)
    return source


def _check_full_model(source: ModelSource, folder: Path) -> None:
    for name, key in REDIRECTS:
        if (folder / name).is_file() and (folder / name).stat().st_size and key in _object(source.key, folder / name):
            raise ConfigError(
                f"{source.key}: {name} has {key}, which names other files to read; give them their usual names, and "
                "remove the key"
            )
    if not _has_tokenizer(folder):
        raise ConfigError(f"{source.key}: no tokenizer in it; save the tokenizer beside the model")
    if not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        others = sorted(
            file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
        )
        found = f" (there is {', '.join(others[:3])})" if others else ""
        raise ConfigError(
            f"{source.key}: no {WEIGHTS} and no {INDEX} in it{found}; only these are read: save the model again with "
            "save_pretrained"
        )
    missing = [name for name in weight_files(folder) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{source.key}: {INDEX} names {', '.join(missing[:3])}, which the folder lacks; copy the whole folder again"
        )
    if weight_files(folder) == [INDEX]:
        raise ConfigError(f"{source.key}: {INDEX} cannot be read or names no file; copy the folder again")


def _adapter_source(key: str, folder: Path, chain: int) -> ModelSource:
    """Return the source for the folder of an adapter in the format of peft, with that of its base model."""
    if chain == LONGEST_CHAIN:
        raise ConfigError(f"{key}: more than {LONGEST_CHAIN} adapters on each other; merge them first")
    _check_adapter_files(key, folder)
    about = _object(key, folder / ADAPTER_CONFIG)
    name = about.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key}: {ADAPTER_CONFIG} names no base model; add base_model_name_or_path to it")
    embedded = re.search(r"rlsparse/model/embedded/(\w+)/?$", name.replace("\\", "/"))
    if embedded and embedded[1] in EMBEDDED:  # the package may be installed in another place
        where: Path | None = EMBEDDED[embedded[1]]
    else:
        places = (Path(name).expanduser(), folder / name)
        where = next((place for place in places if place.is_dir()), None)
    inner = f"{key}: its base model {name}"
    if where is not None:
        return ModelSource(key, str(folder), None, folder, _folder_source(inner, where, chain + 1))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ConfigError(
            f"{inner}: there is no such folder; write where it is now into base_model_name_or_path of {ADAPTER_CONFIG}"
        )
    revision = about.get("revision")
    base = ModelSource(inner, name, revision if isinstance(revision, str) else None, None)
    return ModelSource(key, str(folder), None, folder, base)


def _check_adapter_files(key: str, folder: Path) -> None:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"{key}: an adapter without {ADAPTER_WEIGHTS}; only safetensors weights are read")
    _check_file(key, folder / ADAPTER_CONFIG)


def _adapter_settings(key: str, folder: Path) -> str:
    """Return the hash of the config of an adapter, without the keys that change no number."""
    about = _object(key, folder / ADAPTER_CONFIG)
    counts = {
        name: sorted(value, key=str) if isinstance(value, list) else value  # peft writes sets in any order
        for name, value in about.items()
        if name not in ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
    }
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()


def _check_file(key: str, file: Path) -> None:
    """Refuse a file that cannot be read, is empty, or is the pointer that git-lfs leaves in the place of a file."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(POINTER))
    except OSError as error:
        raise ConfigError(f"{key}: {file.name} cannot be read ({error.strerror})") from error
    if begin == POINTER:
        raise ConfigError(f"{key}: {file.name} is a pointer of git-lfs, not the file; run git lfs pull in the folder")
    if not begin:
        raise ConfigError(f"{key}: {file.name} is empty; copy the folder again")
    if file.name in (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG):  # transformers names the others
        _object(key, file)


def _object(key: str, file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}: {file.name} is not JSON ({error}); copy the folder again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: {file.name} must hold a JSON object, not {type(value).__name__}")
    return value


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def _exports(run: Path) -> list[Path]:
    """Return where a run writes what it has trained."""
    return [run / "adapter", run / "model"]


def _inside(folder: Path) -> list[Path]:
    """Return where a folder that holds no model may hold one, the best guess first."""
    return [*_exports(folder), *(one for one in sorted(folder.iterdir()) if one.is_dir())]


def _hint(places: list[Path]) -> str:
    """Return what to give in the place of a folder that holds no model."""
    found = next((one for one in places if (one / CONFIG).is_file() or (one / ADAPTER_CONFIG).is_file()), None)
    return "give a Hugging Face model folder" if found is None else f"did you mean {found}?"


def _exported_model(folder: Path) -> str | None:
    """Return what to give where an adapter is looked for in a run that has none; None for other folders."""
    adapter, model = _exports(folder)
    if adapter.exists() or not (model / CONFIG).is_file():
        return None
    return f"this run has trained the weights of the model, so give model.path={model} without adapter"


@contextmanager
def reading(source: ModelSource) -> Iterator[None]:
    """Turn the many kinds of errors with which a library refuses a model into one message; out of memory stays.

    Raises:
        ConfigError: the model cannot be read.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        no_memory = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
        if no_memory or isinstance(error, MemoryError):
            raise
        raise ConfigError(_unreadable(source, error)) from error


def _unreadable(source: ModelSource, error: Exception) -> str:
    offline = " (the hub is off: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # the first line of some errors only says where, and the next one what
    reason = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]).rstrip(".") or type(error).__name__
    if isinstance(error, ImportError):
        return f"{source.key}: cannot be loaded: {reason}. Install what it names, or give a checkpoint without it"
    if source.folder is None:
        remedy = "Give a hub id you can reach, or a local folder as model.path=DIR"
        return f"{source.key}: cannot be loaded{offline}: {reason}. {remedy}"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"{source.key}: cannot be loaded: {kind}{reason}. Copy the folder again, or give another model"
