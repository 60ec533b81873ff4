"""One loaded model for all runs of a process that ask for the same: a sweep reads its weights once."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse.config.schema import ModelConfig

if TYPE_CHECKING:
    import torch

    from rlsparse.model.policy import Policy

# torch comes in when the first model does: the command line makes a loader before it knows whether it will run anything


class Loader:
    """Keeps the latest model between runs. What a run does to it must be undone before it comes back."""

    def __init__(self) -> None:
        self._key = ""
        self._policy: Policy | None = None

    @contextmanager
    def lend(self, config: ModelConfig, device: "torch.device", dtype: str) -> Iterator["Policy"]:
        """The policy, loaded if it is not at hand; one that was in use when a run broke is not kept.

        Raises:
            ConfigError: see ``load_policy``.
        """
        from rlsparse.model.policy import load_policy, local_folder

        key = repr((config, device, dtype, _stamp(local_folder(config))))
        policy = self._policy if key == self._key else None
        self._policy = None  # an earlier model goes before the next one comes
        if policy is None:
            gc.collect()  # one that a run broke with may hang in a cycle of references
            policy = load_policy(config, device, dtype)
        yield replace(policy)
        self._key, self._policy = key, policy


@cache
def own_loader() -> Loader:
    """The one of this process, whoever launches its runs."""
    return Loader()


def _stamp(folder: str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a folder's files: weights that were written again are read again."""
    if folder is None:
        return []
    stats = sorted((file.name, file.stat()) for file in Path(folder).iterdir() if file.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
