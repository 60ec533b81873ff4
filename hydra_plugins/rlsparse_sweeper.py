"""The sweeper plugin for Hydra, which finds sweepers only in this namespace; see ``rlsparse.sweep.sweeper``."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for it
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import open_dict


class ResumingSweeper(BasicSweeper):
    """A grid sweeper that launches only the points that are not done yet."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        grids: list[dict[str, str]] | None = None,
        tune: dict[str, str] | None = None,
        dry_run: bool = False,
        **unknown: Any,
    ) -> None:
        """Create the sweeper from the keys of ``conf/hydra/sweeper/resuming.yaml``.

        ``sweep`` reads grids, tune and dry_run from the config.

        Raises:
            SystemExit: there is an unknown key; Hydra would report it as an argument of this method.
        """
        super().__init__(max_batch_size, params)
        if unknown:
            raise SystemExit(
                f"error: hydra.sweeper.{next(iter(unknown))}: no such key; "
                "here there are dry_run, grids, max_batch_size, params, tune"
            )

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Resolve and check the settings of the launcher before Hydra uses them."""
        from rlsparse.sweep.launchers import (
            resolve_settings,  # imported here, as Hydra imports this module at every start
        )

        with open_dict(config):  # interpolations may depend on this machine, and a job may be on another one
            config.hydra.launcher = resolve_settings(config.hydra.launcher)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep."""
        from rlsparse.sweep.sweeper import sweep

        assert self.config is not None
        assert self.launcher is not None
        return sweep(self.config, self.launcher, self.max_batch_size)


class OwnLaunchers(SearchPathPlugin):
    """Removes the launcher configs of plugins that have the same names as our yaml files.

    Hydra would otherwise validate our files against them and print long warnings.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Remove the configs. Hydra calls this after all plugins have stored their configs."""
        from rlsparse.config.compose import config_dir

        if not any(str(one.path).removeprefix("file://") == config_dir() for one in search_path.get_path()):
            return  # another program than rlsparse
        nodes = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
        for name in ("joblib.yaml", "ray.yaml"):
            nodes.pop(name, None)
