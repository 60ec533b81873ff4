"""The documentation: links lead somewhere, names are those of the code, commands compose, numbers are those of files."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from rlsparse.algorithm import Algorithm
from rlsparse.config.checks import problems
from rlsparse.config.compose import compose, config_dir
from rlsparse.config.schema import COMPONENT_GROUPS, SCHEMAS, Config
from rlsparse.tracking.metrics import FAMILIES, METRICS, is_documented
from rlsparse.warm_start.run import Parts
from tests.conftest import ROOT, composed, composed_warm_start

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
STUDY_PAGES = sorted((ROOT / "experiments").rglob("README.md"))
CONF = Path(config_dir())
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"(?:src|srcset)=\"([^\"]+)\"")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = (".safetensors", ".jsonl", ".json", ".py", ".yaml", ".md", ".svg")
MOST_WORDS = 900  # of the README
# what a reader with the English of the docs of PyTorch would stumble over
RIDDLES = re.compile(
    r"\b(?:of yours|of ours|at hand|goes on|go on|gone on|comes of|came of|laments?|whoever|lets go of|as ever)\b"
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def spans(page: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


def anchors(page: Path) -> set[str]:
    """Return what GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def node(group: str, option: str) -> dict[str, Any]:
    """Return an option of a config group with the options that it is based on."""
    own = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            own = {**node(group, base), **own}
    return own


@cache
def keys() -> set[str]:
    """Return every dotted key that some option of some group has."""

    def below(schema: type, prefix: str) -> set[str]:
        nested = [(f"{prefix}{field.name}", field.type) for field in fields(schema)]
        return {key for key, _ in nested}.union(*(below(t, f"{key}.") for key, t in nested if is_dataclass(t)))

    schemas = [(group, schema) for group, some in SCHEMAS.items() for schema in some.values()]
    found = below(Config, "").union(*(below(schema, f"{group}.") for group, schema in schemas))
    for group in COMPONENT_GROUPS:
        for file in (CONF / group).glob("*.yaml"):
            values = {key: value for key, value in node(group, file.stem).items() if key != "_target_"}
            found |= {f"{group}.{key}" for key in values}
            mappings = [(key, value) for key, value in values.items() if isinstance(value, dict)]
            found |= {f"{group}.{key}.{inner}" for key, value in mappings for inner in value}
    return found


@pytest.mark.parametrize("page", [README, *PAGES, *STUDY_PAGES], ids=name)
def test_links_of_a_page_lead_to_files_of_the_repository(page):
    content = prose(page)
    for text, target in [*LINK.findall(content), *(("", image) for image in IMAGE.findall(content))]:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target
        if file.suffix == ".py":  # a link to a function or class says its name
            for word in re.findall(r"`(\w+)`", text):
                assert re.search(rf"^(?:def|class) {word}\b", file.read_text(), re.MULTILINE), f"{word} in {target}"


@pytest.mark.parametrize("page", [README, *PAGES, *STUDY_PAGES], ids=name)
def test_keys_options_and_metrics_of_a_page_exist(page):
    prefixes = {metric.split("/")[0] for metric in METRICS}
    for span in spans(page):
        key, equals, value = span.partition("=")
        if re.fullmatch(r"\w+(\.\w+)+", key) and key.split(".")[0] in GROUPS and not key.endswith(FILES):
            assert key in keys(), span
        if equals and key in GROUPS and re.fullmatch(r"[a-z0-9_]+", value):
            assert (CONF / key / f"{value}.yaml").is_file(), span
        if re.fullmatch(rf"(?:{'|'.join(prefixes)})/\w+", span):
            assert is_documented(span), span


@pytest.mark.parametrize("page", [README, *PAGES, *STUDY_PAGES], ids=name)
def test_page_is_in_plain_english(page):
    assert not RIDDLES.findall(prose(page))


def cells(text: str) -> list[list[str]]:
    """Return the rows of the tables of a page."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def value_of(config: Config, key: str) -> Any:
    return reduce(lambda at, word: at[word] if isinstance(at, dict) else getattr(at, word), key.split("."), config)


def about(preset: str) -> str:
    """Return what the docs say about a preset: its page, or its section of the page of the field."""
    page = DOCS / "methods" / f"{preset}.md"
    if page.is_file():
        return prose(page)
    sections = re.split(r"^## ", prose(DOCS / "methods" / "field.md"), flags=re.MULTILINE)
    (section,) = (section for section in sections if f"\n\nPreset `{preset}`." in section)
    return section


@pytest.mark.parametrize("preset", sorted(file.stem for file in (CONF / "algorithm").glob("*.yaml")))
def test_tables_of_a_preset_say_what_it_composes_to(preset):
    config, checked = composed(f"algorithm={preset}"), 0
    for _, named, given in (row for row in cells(about(preset)) if len(row) == 3):
        for group, option in re.findall(r"`(\w+)=(\w+)`", named):
            assert value_of(config, group) == {**value_of(config, group), **_fixed(group, option)}, f"{group}={option}"
            checked += 1
        values = re.split(r";| in this preset", given)[0].replace("`", "").split(", ")
        dotted = [key for key in re.findall(r"`([\w.]+)`", named) if key in keys()]
        for key, value in zip(dotted, values, strict=False) if given else ():
            meant = value_of(config, value) if value in keys() else yaml.safe_load(value.replace("e-", ".0e-"))
            assert value_of(config, key) == meant, key
            checked += 1
    assert checked >= 4


def _fixed(group: str, option: str) -> dict[str, Any]:
    """Return what makes a component the one of an option: its class. Its other keys may be a preset's own."""
    return {"_target_": node(group, option)["_target_"]}


def write_files_shown_on(page: Path, folder: Path) -> None:
    """Write the files that a page shows: a block names its own file in its first line, or each file in a line."""
    for _, block in BLOCK.findall(page.read_text()):
        for path, inline in re.findall(r"^# (mine/[\w/.]+?):? *(\{.*\})?\n", block, re.MULTILINE):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(inline or block)


def check_commands(page: Path, folder: Path) -> int:
    """Compose and check the commands of a page, of a sweep its first point; return how many there are.

    Args:
        folder: where the files that the page shows are written to.
    """
    write_files_shown_on(page, folder)
    text = re.sub(r"\$\{hydra:runtime\.choices\.(\w+)\}", r"\1", page.read_text().replace("\\\n", " "))
    commands = dict.fromkeys(re.findall(r"python -m (rlsparse\.run|rlsparse\.warm_start)([^\n`#|&]*)", text))
    for module, arguments in commands:
        said = shlex.split(arguments)
        words = [word for word in said if "=" in word and not word.startswith("-")]
        plain = [re.sub(r"=choice\((\w+)\)$", r"=\1", word) for word in words]
        first = [re.sub(r"^([^=]+=[^\[\",]*),.*$", r"\1", word) for word in plain]  # one point of each axis of a sweep
        if any(word.startswith("experiment=") for word in first):
            first.append("hydra.mode=RUN")
        if module == "rlsparse.run":
            own = [str(folder / after) for flag, after in pairwise(said) if flag == "--config-dir"]
            config: Any = compose(first, own)
            assert not problems(config), arguments
            Algorithm.build(config)
        else:
            config = composed_warm_start("out=DIR", *first)
            assert not problems(config), arguments
            Parts.build(config)
    return len(commands)


@pytest.mark.parametrize("page", [README, *PAGES, *STUDY_PAGES], ids=name)
def test_commands_of_a_page_compose(page, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    count = check_commands(page, tmp_path)
    for module in set(sys.modules) - before:  # another page may show another file of the same name
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
    assert count >= (5 if page == README else 0)


def test_every_page_is_in_its_index():
    methods = {target for _, target in LINK.findall((DOCS / "methods" / "README.md").read_text())}
    assert {file.name for file in (DOCS / "methods").glob("*.md")} - {"README.md"} <= methods
    assert {f"../../conf/algorithm/{file.name}" for file in (CONF / "algorithm").glob("*.yaml")} <= methods
    pages = {target for _, target in LINK.findall((DOCS / "README.md").read_text())}
    assert {file.name for file in DOCS.glob("*.md")} - {"README.md"} <= pages


def test_table_of_groups_names_every_group_and_option():
    rows = {row[0]: row[1] for row in cells(prose(DOCS / "command_line.md")) if len(row) == 3}
    named = {group: cells for first, cells in rows.items() for group in re.findall(r"`([\w/]+)`", first)}
    assert set(named) >= GROUPS - {"warm_start", "train", "eval", "experiment"}
    for group in GROUPS - {"warm_start", "train", "eval", "experiment"}:
        assert set(re.findall(r"\w+", named[group])) >= {file.stem for file in (CONF / group).glob("*.yaml")}, group


def test_page_of_metrics_is_what_the_module_prints():
    def printed(*flags: str) -> str:
        command = [sys.executable, "-m", "rlsparse.tracking.metrics", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed("--markdown") == (DOCS / "metrics.md").read_text()
    assert [line.split()[0] for line in printed().splitlines()] == list(METRICS)
    assert sorted(metric for _, _, family in FAMILIES for metric in family) == sorted(METRICS)


def test_readme_is_short():
    assert len(README.read_text().split()) <= MOST_WORDS


def test_readme_shows_the_preset_as_it_is():
    shown = [block for language, block in BLOCK.findall(README.read_text()) if language == "yaml"]
    assert (CONF / "algorithm" / "sgrpo.yaml").read_text() in shown


def test_diagrams_name_groups_and_differ_in_colours_alone():
    light, dark = ((DOCS / f"loop-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert re.sub(r"#[0-9a-f]{6}", "#", light) == re.sub(r"#[0-9a-f]{6}", "#", dark)
    texts = [
        e for e in ElementTree.fromstring(light).iter("{http://www.w3.org/2000/svg}text") if e.get("class") == "group"
    ]
    named = {word for e in texts for word in re.findall(r"\w+", e.text or "")}
    assert GROUPS - {"algorithm", "experiment", "warm_start"} <= named <= GROUPS


def test_findings_of_the_readme_are_numbers_of_committed_studies():
    section = README.read_text().split("\n## Findings\n")[1].split("\n## ")[0]
    numbers = re.findall(r"[+−]?\d+\.\d \[[^\]]+\]", section)
    files = [file for kind in ("claims", "table", "effects", "costs") for file in ROOT.glob(f"experiments/*/{kind}.md")]
    committed = "\n".join(file.read_text() for file in files)
    assert len(numbers) >= 6
    for number in numbers:
        assert number in committed, number


def test_page_of_studies_has_the_committed_verdicts():
    page = ROOT / "experiments" / "README.md"
    told = [row for row in cells(prose(page)) if re.match(r"\[\w+\]\(", row[0]) and len(row) == 4]
    header, _, *rows = cells((page.parent / "claims.md").read_text())
    committed = [dict(zip(header, row, strict=True)) for row in rows]
    shown = {
        (f"[{one['study']}]({one['study']}/README.md)", one["claim"], one["ours"].split(";")[0], one["verdict"])
        for one in committed
    }
    studies = {row[0] for row in told}
    assert len(studies) >= 6
    assert {tuple(row) for row in told} == {row for row in shown if row[0] in studies}


def test_table_of_the_real_model_is_that_of_its_study():
    study = ROOT / "experiments" / "token_efficiency_svamp"
    table, costs = (by_method(cells((study / f).read_text())) for f in ("table.md", "costs.md"))
    section = (ROOT / "experiments" / "README.md").read_text().split("\n## On a real model\n")[1].split("\n## ")[0]
    told = by_method(cells(section))
    assert list(told) == list(table)
    for method, row in told.items():
        assert len(row) >= 6
        assert row.items() <= {**costs[method], **table[method]}.items()


def by_method(rows: list[list[str]]) -> dict[str, dict[str, str]]:
    """Return method → column → cell of a table, without bold."""
    header, _, *body = ([cell.strip("*`") for cell in row] for row in rows)
    return {row[0]: dict(zip(header, row, strict=True)) for row in body}


def test_make_has_every_target_that_a_page_names():
    text = "\n".join(page.read_text() for page in [README, *PAGES, *STUDY_PAGES])
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([\w-]+)", helped, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named == targets
    assert {"run", "test"} <= set(re.findall(r"^make ([a-z-]+)", README.read_text(), re.MULTILINE))
