"""The documentation: links lead somewhere, names are the code's, commands compose, and the diff in it applies."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path

import pytest
import yaml

from rlsparse.config.compose import SCHEMAS, config_dir
from rlsparse.config.schema import Config
from rlsparse.tracking.metrics import FAMILIES, METRICS, is_documented
from tests.conftest import ROOT, composed
from tests.test_cli import FAST, check_commands, summaries

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
DIFF = DOCS / "adding_a_method.diff"
FILES = (".jsonl", ".json", ".py", ".yaml", ".md", ".svg")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def keys() -> set[str]:
    """Every dotted key that some option of some group has."""

    def below(schema: type, prefix: str) -> set[str]:
        nested = [(f"{prefix}{field.name}", field.type) for field in fields(schema)]
        return {key for key, _ in nested}.union(*(below(t, f"{key}.") for key, t in nested if is_dataclass(t)))

    return below(Config, "").union(*(below(s, f"{group}.") for group, some in SCHEMAS.items() for s in some.values()))


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name)
def test_links_lead_somewhere(page):
    for text, target in LINK.findall(prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target
        if file.suffix == ".py":  # a link to a function says its name
            for word in re.findall(r"`(\w+)`", text):
                assert re.search(rf"^(?:def|class) {word}\b", file.read_text(), re.MULTILINE), f"{word} in {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_options_and_metrics_are_there(page):
    known, groups = keys(), {*SCHEMAS, "algorithm", "experiment"}
    prefixes = {metric.split("/")[0] for metric in METRICS}
    for span in spans(page):
        key, equals, value = span.partition("=")
        if re.fullmatch(r"\w+(\.\w+)+", key) and key.split(".")[0] in groups and not key.endswith(FILES):
            assert key in known, span
        if equals and key in groups and re.fullmatch(r"[a-z0-9_]+", value):
            assert (Path(config_dir()) / key / f"{value}.yaml").is_file(), span
        if re.fullmatch(rf"(?:{'|'.join(prefixes)})/\w+", span):
            assert is_documented(span), span


def cells(page: Path, width: int) -> list[list[str]]:
    """The rows of the page's tables with so many columns."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in prose(page).splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if len(row) == width]


def value_of(config: Config, key: str) -> object:
    return reduce(getattr, key.split("."), config)


@pytest.mark.parametrize("preset", sorted(file.stem for file in (ROOT / "conf" / "algorithm").glob("*.yaml")))
def test_the_tables_of_a_preset_say_what_it_composes_to(preset):
    config, checked = composed(f"algorithm={preset}"), 0
    for _, named, given in cells(DOCS / "methods" / f"{preset}.md", 3):
        values = re.split(r";| in this preset", given)[0].replace("`", "").split(", ")
        dotted = [key for key in re.findall(r"`([\w.]+)`", named) if key in keys()]
        for key, value in zip(dotted, values, strict=False) if given else ():
            meant = value_of(config, value) if value in keys() else yaml.safe_load(value.replace("e-", ".0e-"))
            assert value_of(config, key) == meant, key
            checked += 1
    assert checked >= 4
    (row,) = (row for row in cells(DOCS / "methods" / "README.md", 5) if row[0] == f"`{preset}`")
    advantage, sampler, clipping, aggregation = (cell.strip("`") for cell in row[1:])
    surrogate = yaml.safe_load((ROOT / "conf" / "clipping" / f"{clipping}.yaml").read_text())["surrogate"]
    assert (config.advantage.name, config.token_sampler.name) == (advantage, sampler)
    assert (config.clipping.surrogate, config.objective.aggregation) == (surrogate, aggregation)


def test_every_command_composes():
    assert check_commands("\n".join(page.read_text() for page in PAGES)) >= 30


def test_every_method_and_page_is_in_its_index():
    methods = {target for _, target in LINK.findall((DOCS / "methods" / "README.md").read_text())}
    assert {file.name for file in (DOCS / "methods").glob("*.md")} - {"README.md"} <= methods
    presets = {f"../../conf/algorithm/{file.name}" for file in (ROOT / "conf" / "algorithm").glob("*.yaml")}
    assert presets <= methods
    pages = {target for _, target in LINK.findall((DOCS / "README.md").read_text())}
    assert {file.name for file in DOCS.glob("*.md")} - {"README.md"} <= pages


def test_the_page_of_metrics_is_what_the_module_prints():
    def printed(*flags: str) -> str:
        command = [sys.executable, "-m", "rlsparse.tracking.metrics", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed("--markdown") == (DOCS / "metrics.md").read_text()
    assert [line.split()[0] for line in printed().splitlines()] == list(METRICS)
    assert sorted(metric for _, _, family in FAMILIES for metric in family) == sorted(METRICS)


def test_the_page_shows_the_diff():
    assert f"```diff\n{DIFF.read_text()}```\n" in (DOCS / "adding_a_method.md").read_text()


@pytest.mark.slow
def test_the_diff_applies_passes_its_test_and_trains(tmp_path):
    for folder in ("rlsparse", "conf", "hydra_plugins", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # inside a repository, git would leave out what lies outside its working folder, without a word
    here = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    subprocess.run(["git", "apply", DIFF], cwd=tmp_path, env=here, check=True)
    text = DIFF.read_text()
    own_test = re.search(r"^\+def (test_\w+)", text, re.MULTILINE)[1]
    preset = re.search(r"^\+\+\+ b/conf/algorithm/(\w+)\.yaml", text, re.MULTILINE)[1]
    # one process for both: starting takes longer than either
    both = f"from tests.test_advantage import {own_test}; {own_test}(); from rlsparse.run import main; main()"
    arguments = [f"algorithm={preset}", *FAST, "train.steps=1", "tracker=none"]
    done = subprocess.run(
        [sys.executable, "-c", both, *arguments],
        cwd=tmp_path,
        env={**here, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (summary,) = summaries(tmp_path)
    assert (summary["status"], summary["algorithm"]) == ("finished", preset)
