"""Hydra finds sweepers in this namespace only; what ours does stands in ``rlsparse.resuming_sweeper``."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for this


class ResumingSweeper(BasicSweeper):
    """A grid of points, of which only those are launched that are not done yet."""

    def sweep(self, arguments: list[str]) -> Any:
        from rlsparse.resuming_sweeper import sweep  # only here: Hydra imports this module at every start

        assert self.config is not None
        assert self.launcher is not None
        return sweep(self.config, self.launcher, self.max_batch_size)
