"""The report of a self-check: a JSON file that a user can send, and a table for the terminal."""

import getpass
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rlsparse.execution.self_check.findings import FAILED, PASSED, SKIPPED, Figure, Finding, PartResult, Setting

FORMAT = 1
CHECKOUT = Path(__file__).parent.parent.parent.parent
# an absolute path of at least two parts; not the path of an address such as https://example.org/a/b
ABSOLUTE = re.compile(r"(?<![\w:/.~>])(?:/[\w.@+~-]+)+/([\w.@+~-]*)")
HEADER = ("part", "check", "verdict", "figure", "value", "at most")


@dataclass(frozen=True)
class Report:
    """The results of the parts that have ended.

    Attributes:
        parts: in the order in which they were run.
        code: versions and commit of the code, as in the summary of a run.
    """

    setting: Setting
    parts: Sequence[PartResult]
    code: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Failed if a part has failed; else passed."""
        return FAILED if any(part.verdict == FAILED for part in self.parts) else PASSED

    def text(self) -> str:
        """Return the report as JSON. It names no user, no host, and no folder of this machine."""
        content = {
            "format": FORMAT,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "verdict": self.verdict,
            "device": self.setting.device,
            "model": anonymous(_model_name(self.setting.model)),
            "quick": self.setting.quick,
            **self.code,
            "parts": [_part(part) for part in self.parts],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def table(self) -> str:
        """Return the report as a table, a line for each figure, and the reasons of what failed or was skipped."""
        rows = [row for part in self.parts for row in _rows(part)]
        counts = [
            f"{sum(part.verdict == verdict for part in self.parts)} {verdict}" for verdict in (PASSED, FAILED, SKIPPED)
        ]
        lines = [tabulate(rows, HEADER, tablefmt="simple", disable_numparse=True)]
        return "\n".join([*lines, "", *_reasons(self.parts), f"parts: {', '.join(counts)}"])


def anonymous(text: str) -> str:
    """Return a text without the names of the user and the host and without absolute paths.

    The last name of a path stays, since it tells which file an error is about.
    """
    for folder, name in _folders():
        text = text.replace(folder, name)
    text = ABSOLUTE.sub(lambda found: f"<folder>/{found[1]}", text)
    for word, name in ((_user(), "<user>"), (platform.node(), "<host>")):
        if word:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", name, text)
    return text


def _folders() -> list[tuple[str, str]]:
    """Return folders of this machine and what replaces them, long paths first."""
    named = {
        tempfile.gettempdir(): "<temporary>",
        str(CHECKOUT): "<code>",
        sys.prefix: "<environment>",
        str(Path.home()): "~",
        os.getcwd(): "<here>",
    }
    return sorted(((path, name) for path, name in named.items() if len(path) > 1), key=lambda one: -len(one[0]))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may have no name for its user
        return ""


def _model_name(model: str) -> str:
    return f"{Path(model).absolute().name} (a local folder)" if Path(model).is_dir() else model


def _part(part: PartResult) -> dict[str, Any]:
    return {
        "name": part.name,
        "verdict": part.verdict,
        **({"error": anonymous(part.error)} if part.error else {}),
        "seconds": round(part.seconds, 1),
        "findings": [_finding(finding) for finding in part.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": anonymous(finding.name),
        "verdict": finding.verdict,
        **({"reason": anonymous(finding.reason)} if finding.reason else {}),
        "figures": {figure.name: _figure(figure) for figure in finding.figures},
    }


def _figure(figure: Figure) -> dict[str, Any]:
    value = figure.value
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no such numbers
        value = str(value)
    return {
        "value": anonymous(value) if isinstance(value, str) else value,
        **({"unit": figure.unit} if figure.unit else {}),
        **({} if figure.most is None else {"most": figure.most}),
    }


def _rows(part: PartResult) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a part; names and verdicts stand in their first rows only."""
    name = part.name
    for finding in part.findings:
        check, verdict = finding.name, finding.verdict
        for figure in finding.figures or [Figure("", "")]:
            most = "" if figure.most is None else Figure("", float(figure.most), figure.unit).shown()
            yield name, check, verdict, figure.name, figure.shown(), most
            name = check = verdict = ""
    if part.error:
        yield name, "the part itself", FAILED, "", "", ""


def _reasons(parts: Sequence[PartResult]) -> list[str]:
    told = [
        f"{part.name}, {finding.name}: {finding.verdict}: {finding.reason}"
        for part in parts
        for finding in part.findings
        if finding.reason
    ]
    told += [f"{part.name}: {FAILED}: {part.error}" for part in parts if part.error]
    return [*told, ""] if told else []
