"""The yaml files of config folders, as Hydra reads them, with or without a byte order mark."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source  # Hydra has no public names for it and the registry
from hydra._internal.sources_registry import SourcesRegistry

from rlsparse.config.schema import ConfigError


class FileConfigSource(file_config_source.FileConfigSource):
    """Reads yaml files.

    Hydra overlooks the header (``# @package _global_``) of a file that begins with a byte order mark, as some editors
    write it, and so puts its values under other keys. The name of this class is that of Hydra's own, which the registry
    requires.
    """

    def load_config(self, config_path: str) -> Any:
        """Return the config in a file, with its header.

        Raises:
            ConfigError: the file is not UTF-8 text.
        """
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            found = super().load_config(config_path)
            with file.open(encoding="utf-8-sig") as opened:
                return replace(found, header=self._get_header_dict(opened.read(512)))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def register_source() -> None:
    """Let Hydra read yaml files with this class."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
