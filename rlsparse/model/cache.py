"""One loaded model for all runs of a process that need the same: a sweep reads its weights once."""

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


class ModelCache:
    """Keeps the latest model between runs. A run must undo what it does to it."""

    def __init__(self) -> None:
        self._key = ""
        self._policy: Policy | None = None

    @contextmanager
    def lend(self, config: ModelConfig, device: "torch.device", dtype: str) -> Iterator["Policy"]:
        """Give the policy to a run, loaded if it is not cached; a policy in use when a run fails is not kept.

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
def model_cache() -> ModelCache:
    """Return the cache of this process."""
    return ModelCache()


def _stamp(folder: str | None) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of the files of a folder: weights that were written again are read again."""
    if folder is None:
        return []
    stats = sorted((file.name, file.stat()) for file in Path(folder).iterdir() if file.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
