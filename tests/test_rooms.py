"""Imports run downwards only; no kind of component imports another."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlsparse"
# a room may import itself and the rooms of the lines below it
LEVELS = [
    {"run", "check", "selfcheck", "evaluate", "status", "sync", "dashboard"},
    {"sweep"},
    {"execution"},
    {"train", "warm_start"},
    {"training"},
    {"algorithm"},
    {"components", "rollout", "tracking", "results"},
    {"model", "storage", "runtime"},
    {"components.component"},
    {"config", "batch"},
]
ONLY = {"results": {"storage"}}  # rooms that may import less than what is below them


def rooms(file: Path) -> list[str]:
    """The rooms of ours that a file imports from."""
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "rlsparse":
            modules += [f"rlsparse.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return [room_of(module.split(".")[1:]) for module in modules if module.startswith("rlsparse.")]


def room_of(path: list[str]) -> str:
    return "components.component" if path[:2] == ["components", "component"] else path[0]


def level(room: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if room in names)


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downwards(file):
    own = room_of(list(file.relative_to(PACKAGE).with_suffix("").parts))
    for room in rooms(file):
        assert room == own or level(room) > level(own), f"{own} imports {room}"
        assert room == own or own not in ONLY or room in ONLY[own], f"{own} imports {room}"


KINDS = sorted(folder.name for folder in (PACKAGE / "components").iterdir() if (folder / "__init__.py").exists())


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_component_imports_another(kind):
    for file in (PACKAGE / "components" / kind).rglob("*.py"):
        text = file.read_text()
        assert not [other for other in KINDS if other != kind and f"rlsparse.components.{other}" in text], file.name


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("rlsparse.config.schema", {"torch", "transformers"}),
        ("rlsparse.config.checks", {"torch", "transformers"}),
        ("rlsparse.run", {"torch", "transformers", "wandb"}),
        ("rlsparse.model.cache", {"torch", "transformers"}),
        ("rlsparse.results.__main__", {"torch", "wandb", "transformers"}),
        ("rlsparse.train", {"wandb", "datasets"}),
        ("rlsparse.sweep.sweeper", {"torch", "transformers"}),
        ("rlsparse.sweep.dry_run", {"torch", "transformers", "wandb"}),
        ("rlsparse.status", {"torch", "transformers", "wandb"}),
        ("rlsparse.selfcheck", {"torch", "transformers", "wandb"}),
        ("rlsparse.sync", {"torch", "transformers"}),
        ("rlsparse.dashboard", {"torch", "transformers", "wandb", "wandb_workspaces"}),
    ],
)
def test_heavy_packages_stay_out(module, banned):
    code = f"import sys, {module}; print(sorted({banned!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_knows_no_algorithm_by_name():
    names = {file.stem for file in (PACKAGE.parent / "conf" / "algorithm").glob("*.yaml")}
    for file in PACKAGE.rglob("*.py"):
        strings = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert not names & {s for s in strings if isinstance(s, str)}, file.name
