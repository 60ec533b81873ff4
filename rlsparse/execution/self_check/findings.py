"""The findings of a self-check: verdicts with figures and their bounds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
EMBEDDED = ("tiny", "tiny_deep")  # models that ship with the package; they need no download
Value = bool | int | float | str


@dataclass(frozen=True)
class Setting:
    """What the command line asks for.

    Attributes:
        device: cpu or cuda.
        model: an embedded model, a folder, or a hub id.
        quick: take fewer cases and fewer repetitions.
        scratch: an empty folder, which is removed at the end.
    """

    device: str
    model: str
    quick: bool
    scratch: Path

    def words(self) -> list[str]:
        """Return the overrides that select device and model."""
        if self.model in EMBEDDED:
            return [f"device={self.device}", f"model={self.model}"]
        where = "path" if Path(self.model).is_dir() else "name"
        return [f"device={self.device}", "model=smollm2", f"model.{where}={self.model}"]


@dataclass(frozen=True)
class Figure:
    """A measured number, a text, or a condition.

    Attributes:
        value: a condition (bool) must be true.
        unit: of a number; empty for a count, a ratio and a text.
        most: the largest value that passes; None where the figure has no bound.
    """

    name: str
    value: Value
    unit: str = ""
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the condition is true, or the number is within its bound; NaN is not."""
        if isinstance(self.value, bool):
            return self.value
        return self.most is None or (not isinstance(self.value, str) and self.value <= self.most)

    def shown(self) -> str:
        """Return the value with its unit."""
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        text = _number(self.value) if isinstance(self.value, float) else str(self.value)
        return f"{text} {self.unit}".strip()


def _number(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Finding:
    """One result of a part.

    Attributes:
        verdict: passed, failed or skipped.
        reason: why it failed or was skipped.
    """

    name: str
    verdict: str
    reason: str = ""
    figures: Sequence[Figure] = ()

    @classmethod
    def of(cls, name: str, *figures: Figure) -> "Finding":
        """Return a finding that has passed if every figure holds; otherwise its reason names the others."""
        wrong = [figure.name for figure in figures if not figure.holds]
        if not wrong:
            return cls(name, PASSED, figures=figures)
        return cls(name, FAILED, f"does not hold: {'; '.join(wrong)}", figures)

    @classmethod
    def skipped(cls, name: str, reason: str) -> "Finding":
        """Return a finding of what cannot be checked here."""
        return cls(name, SKIPPED, reason)


def one_line(error: Exception) -> str:
    """Return the class and the first line of the message of an exception."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"


Part = Callable[[Setting], Iterable[Finding]]


@dataclass(frozen=True)
class PartResult:
    """The findings of a part.

    Attributes:
        error: one line where the part raised an exception; the findings are those from before it.
    """

    name: str
    seconds: float
    findings: Sequence[Finding]
    error: str = ""

    @property
    def verdict(self) -> str:
        """The part has failed if it raised an exception or a finding failed, and is skipped if all findings are."""
        verdicts = {finding.verdict for finding in self.findings}
        if self.error or FAILED in verdicts:
            return FAILED
        return PASSED if PASSED in verdicts else SKIPPED
