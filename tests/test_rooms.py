"""DESIGN's rooms: who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlsparse"
LEAVES = {"batch", "config"}
# room -> rooms of ours that it may import; itself always
ROOMS: dict[str, set[str]] = {
    "config": set(),
    "batch": set(),
    "streams": set(),
    "warm_start_config": {"config"},
    "values": {"config", "warm_start_config"},
    "checks": {"config", "warm_start_config", "values"},
    "identity": {"config", "warm_start_config"},
    "summary": {"config", "identity", "whole_file"},
    "policy": LEAVES,
    "task": LEAVES | {"warm_start_config"},
    "adapter": LEAVES | {"policy"},
    "attention": set(),
    "head": set(),
    "trunk": set(),
    "probe": LEAVES | {"policy", "attention"},
    "ranks": set(),
    "follow": {"batch", "keeper", "loader", "ranks", "stopping", "tracking", "train", "workplace"},
    "workplace": LEAVES | {"adapter", "loader", "policy", "prompts", "ranks", "streams", "task", "tracking"},
    "rollout": LEAVES | {"policy", "attention", "trunk", "probe", "memory", "ranks"},
    "advantage": LEAVES,
    "token_sampler": LEAVES,
    "objective": LEAVES,
    "tracking": set(),
    "results": {"whole_file"},
    "loader": {"config", "policy"},
    "whole_file": set(),
    "checkpoint": {"whole_file"},
    "claim": {"config", "whole_file"},
    "stopping": set(),
    "compose": {"config", "warm_start_config"},
    "tuning": {"config"},
    "plan": {"compose", "tuning", "whole_file"},
    "sweep": {"config", "checks", "compose", "dry_run", "heavy", "plan", "policy", "preflight", "warm_start"},
    "status": {"claim", "plan", "summary", "whole_file"},
    "launchers": {"config", "slurm"},
    "slurm": {"config", "stopping"},
    "estimate": set(),
    "dashboard": {"config", "sync", "tracking"},
    "dry_run": {"attempt", "config", "estimate", "identity", "status", "summary", "whole_file"},
    "own_gpu": set(),
    "heavy": set(),
    "resuming_sweeper": {
        "attempt",
        "claim",
        "config",
        "dry_run",
        "heavy",
        "identity",
        "launchers",
        "plan",
        "preflight",
        "status",
        "summary",
        "sweep",
        "trials",
        "tuning",
    },
    "trials": {"status", "summary", "sweep", "tuning"},
    "sync": {"claim", "compose", "summary", "tracking"},
    "resumable": LEAVES | {"adapter", "checkpoint", "memory", "step_metrics", "streams"},
    "keeper": {"checkpoint", "ranks", "resumable", "stopping", "tracking"},
    "prompts": LEAVES | {"policy", "task"},
    "packed": LEAVES | {"policy", "attention", "trunk", "head", "probe"},
    "memory": {"config"},
    "microbatch": LEAVES | {"memory", "ranks"},
    "update": LEAVES | {"policy", "objective", "microbatch", "ranks"},
    "evaluate": LEAVES | {"policy", "ranks", "rollout", "task", "streams"},
    "scratch": LEAVES,
    "supervised": LEAVES | {"warm_start_config", "policy", "task", "adapter"},
}
# run.py, attempt.py, warm_start.py, train.py, experience.py, step_metrics.py and preflight.py put the rooms together, so they may
# import all of them
STAGES = ("task", "rollout", "advantage", "token_sampler", "objective", "adapter")


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{alias.name}" if node.module == "rlsparse" else node.module for alias in node.names
            }
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def files(room: str) -> list[Path]:
    return [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).glob("*.py"))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_it_may(room):
    assert files(room)
    for file in files(room):
        ours = {room_of(m) for m in imports(file) if m.split(".")[0] == "rlsparse"} - {room, ""}
        assert ours <= ROOMS[room], f"{file.name} imports {ours - ROOMS[room]}"


def test_no_stage_imports_another():
    for stage in STAGES:
        assert not ROOMS[stage] & (set(STAGES) - {stage})


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("rlsparse.config", {"torch", "transformers"}),
        ("rlsparse.checks", {"torch", "transformers"}),
        ("rlsparse.run", {"torch", "transformers", "wandb"}),
        ("rlsparse.loader", {"torch", "transformers"}),
        ("rlsparse.results.__main__", {"torch", "wandb", "transformers"}),
        ("rlsparse.train", {"wandb", "datasets"}),
        ("rlsparse.resuming_sweeper", {"torch", "transformers"}),
        ("rlsparse.dry_run", {"torch", "transformers", "wandb"}),
        ("rlsparse.status", {"torch", "transformers", "wandb"}),
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


def test_files_and_functions_stay_small():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert len(text.splitlines()) <= 300, f"{file.name}: which idea is missing?"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{file.name}: {node.name} has {lines} lines"


def test_there_is_no_utils():
    assert not [file for file in PACKAGE.rglob("*.py") if re.search("util|helper|misc|common", file.stem)]
