"""Read the published claims of a study from ``claims.yaml`` and check every key."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from rlsparse.results.collect import MEASURED
from rlsparse.storage.atomic import UTF8

FILE = "claims.yaml"


class ClaimError(ValueError):
    """An error in a claims file. The message names the file, the key and the remedy."""


@dataclass(frozen=True)
class Claim:
    """A published claim as a comparison of results.

    Attributes:
        claim: the claim in words.
        published: the published value, with its model and data.
        source: the paper.
        of: names of methods as in the table; * stands for any text. Their mean is taken for each seed. If ``versus``
            also has *, only those methods count whose text for * is found on both sides.
        measure: a column of results.csv.
        expect: the claimed bounds of the value: {above: x}, {below: x} or both, in the unit of the measure.
        versus: names of methods whose mean is subtracted for each seed; None to test the value itself.
        minus: a column of the same run that is subtracted, on both sides; None to subtract nothing.
        ratio: whether to take the ratio to the mean of ``versus``, minus 1, instead of the difference.
        primary: whether it was fixed before the runs as the claim that the study is about; primary claims are tested
            first, and the others count only if these are decided.
    """

    claim: str
    published: str
    source: str
    of: list[str]
    measure: str
    expect: dict[str, float]
    versus: list[str] | None = None
    minus: str | None = None
    ratio: bool = False
    primary: bool = False


@dataclass(frozen=True)
class Claims:
    """The content of a claims file.

    Attributes:
        baseline: the method that the table compares with; None to choose it by name.
        claims: the claims.
        margin: the largest difference between methods that does not matter, in the unit of the main measure; None to
            test no equivalence.
    """

    baseline: str | None
    claims: list[Claim]
    margin: float | None = None


def read_claims(file: Path) -> Claims:
    """Return the claims of a file.

    Raises:
        ClaimError: the file is not YAML, or a key is missing, unknown or of the wrong type.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding=UTF8))
    except UnicodeDecodeError as error:
        raise ClaimError(f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ClaimError(f"{file}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not isinstance(content.get("claims"), list):
        raise ClaimError(f"{file}: needs baseline: METHOD and claims: a list")
    margin = content.get("margin")
    if margin is not None and not (isinstance(margin, int | float) and not isinstance(margin, bool) and margin > 0):
        raise ClaimError(f"{file}: margin={margin}: give a number above 0, such as 0.02 for two points")
    claims = [_claim(one, file, number) for number, one in enumerate(content["claims"], start=1)]
    return Claims(content.get("baseline"), claims, margin)


def _claim(content: Any, file: Path, number: int) -> Claim:
    where = f"{file}: claim {number}"
    known = {one.name: one for one in fields(Claim)}
    if not isinstance(content, dict):
        raise ClaimError(f"{where}: must have the keys {', '.join(known)}")
    for key in content:
        if key not in known:
            raise ClaimError(f"{where}: {key}: no such key; here there are {', '.join(known)}")
    for key, one in known.items():
        if key not in content and one.default is MISSING:
            raise ClaimError(f"{where}: {key}: is missing")
    lists = {key: [content[key]] for key in ("of", "versus") if isinstance(content.get(key), str)}
    claim = Claim(**{**content, **lists})
    for key, column in (("measure", claim.measure), ("minus", claim.minus)):
        if column is not None and column not in MEASURED:
            raise ClaimError(f"{where}: {key}={column}: no such measure; here there are {', '.join(MEASURED)}")
    for key, patterns in (("of", claim.of), ("versus", claim.versus or [])):
        if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
            raise ClaimError(f"{where}: {key}={patterns}: give the name of a method or a list of names")
    _check_bounds(claim.expect, where)
    for key in ("ratio", "primary"):
        if not isinstance(getattr(claim, key), bool):
            raise ClaimError(f"{where}: {key}={getattr(claim, key)}: give true or false")
    if claim.ratio and not claim.versus:
        raise ClaimError(f"{where}: ratio: needs versus, the methods to divide by")
    return claim


def _check_bounds(expect: Any, where: str) -> None:
    if not isinstance(expect, dict) or not expect or not set(expect) <= {"above", "below"}:
        raise ClaimError(f"{where}: expect={expect}: give above: NUMBER, below: NUMBER, or both")
    for side, bound in expect.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise ClaimError(f"{where}: expect.{side}={bound}: must be a number")
    if len(expect) == 2 and expect["above"] >= expect["below"]:
        raise ClaimError(f"{where}: expect={expect}: no value satisfies both; above must be smaller than below")
