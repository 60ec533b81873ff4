"""The yaml files of config folders, as Hydra reads them, with or without a byte order mark."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins import file_config_source  # Hydra has no public names for it and the registry
from hydra._internal.sources_registry import SourcesRegistry
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.schema import ConfigError

# by group, its keys that are mappings of the user's choice; the component or the model checks what stands in them
OPEN = {
    "reward": ("terms",),
    "task": ("columns", "rename", "split", "max_rows", "filter"),
    "model": ("template_arguments",),
    "eval": ("tasks",),
}


class FileConfigSource(file_config_source.FileConfigSource):
    """Reads yaml files.

    Hydra overlooks the header (``# @package _global_``) of a file that begins with a byte order mark, as some editors
    write it, and so puts its values under other keys. The name of this class is that of Hydra's own, which the registry
    requires. In a mapping such as the terms of a reward, new keys need no ``+``: see ``OPEN``.
    """

    def load_config(self, config_path: str) -> Any:
        """Return the config in a file, with its header.

        Raises:
            ConfigError: the file is not UTF-8 text, or no yaml, or has a key twice, or two options in one place.
        """
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            found = super().load_config(config_path)
            with file.open(encoding="utf-8-sig") as opened:
                header = self._get_header_dict(opened.read(512))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
            raise ConfigError(f"{file}{line} cannot be read ({error.problem}); fix it") from error
        places = _places(found.config.get("defaults") if isinstance(found.config, DictConfig) else None)
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise ConfigError(f"{file}: its defaults list has two options for {twice}; give one of them another name")
        for key in OPEN.get(Path(config_path).parts[0], ()):
            node = found.config.get(key) if isinstance(found.config, DictConfig) else None
            if isinstance(node, DictConfig):
                OmegaConf.set_struct(node, False)  # a flag that stays when Hydra merges the files
        return replace(found, header=header)


def _places(defaults: Any) -> list[str]:
    """Return the packages (``@terms.answer``) that the entries of a defaults list name."""
    keys = [str(key) for one in defaults or () for key in (one if isinstance(one, DictConfig) else [one])]
    return [key.partition("@")[2] for key in keys if "@" in key and not key.startswith("override ")]


def register_source() -> None:
    """Let Hydra read yaml files with this class."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
