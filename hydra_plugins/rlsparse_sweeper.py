"""Hydra finds sweepers in this namespace only; what ours does stands in ``rlsparse.sweep.sweeper``."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for this
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import open_dict


class ResumingSweeper(BasicSweeper):
    """A grid of points, of which only those are launched that are not done yet."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        grids: list[dict[str, str]] | None = None,
        tune: dict[str, str] | None = None,
        dry_run: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(max_batch_size, params)  # the rest stands in the config that sweep() is given
        if unknown:  # Hydra would tell of an unexpected keyword argument of this class
            raise SystemExit(
                f"error: hydra.sweeper.{next(iter(unknown))}: no such key; "
                "here there are dry_run, grids, max_batch_size, params, tune"
            )

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from rlsparse.sweep.launchers import settings_of  # only here: Hydra imports this module at every start

        with open_dict(config):  # a process on another machine could not resolve what depends on this one
            config.hydra.launcher = settings_of(config.hydra.launcher)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        from rlsparse.sweep.sweeper import sweep

        assert self.config is not None
        assert self.launcher is not None
        return sweep(self.config, self.launcher, self.max_batch_size)


class OwnLaunchers(SearchPathPlugin):
    """Hydra would hold our launchers' yaml files against plugins' nodes of the same names, and say so at length."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from rlsparse.config.compose import config_dir

        if not any(str(one.path).removeprefix("file://") == config_dir() for one in search_path.get_path()):
            return  # another program's
        # called once all plugins have been found and have put their nodes into the store
        nodes = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
        for name in ("joblib.yaml", "ray.yaml"):
            nodes.pop(name, None)
