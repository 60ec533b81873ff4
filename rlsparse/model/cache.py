"""The model cache: runs of one process that need the same model share it, so that a sweep loads its weights once."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse.config.schema import ModelConfig

if TYPE_CHECKING:
    import torch

    from rlsparse.model.policy import Policy

# torch is imported with the first model: the command line makes a cache before it knows whether anything will run


class ModelCache:
    """Keeps the latest model between runs. A run must undo its changes to the model."""

    def __init__(self) -> None:
        self._key = ""
        self._policy: Policy | None = None

    @contextmanager
    def lend(self, config: ModelConfig, device: "torch.device", dtype: str, keep: bool = True) -> Iterator["Policy"]:
        """Within the context, lend the policy to a run; load it first if it is not in the cache.

        The policy is not kept if the run fails.

        Args:
            keep: whether the run leaves the weights as they were; if not, the policy is not kept.

        Raises:
            ConfigError: see ``load_policy``.
        """
        from rlsparse.model.loading import load_policy
        from rlsparse.model.source import model_source

        key = repr((config, device, dtype, _stamp(model_source(config).all_files())))
        policy = self._policy if key == self._key else None
        self._policy = None  # free the earlier model before the next one is loaded
        if policy is None:
            gc.collect()  # the model of a failed run may be part of a reference cycle
            policy = load_policy(config, device, dtype)
        yield replace(policy)
        if keep:
            self._key, self._policy = key, policy


@cache
def model_cache() -> ModelCache:
    """Return the cache of this process."""
    return ModelCache()


def _stamp(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return names, sizes and modification times of some files; weights that change are loaded again."""
    stats = [(str(file), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
