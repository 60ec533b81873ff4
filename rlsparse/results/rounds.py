"""The rounds of a sweep that added seeds until its claims were decided, as its folder records them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsparse.storage.atomic import UTF8, read_object

ROUNDS = "rounds.json"
STUDIES = Path("experiments")  # where the claims of an experiment are, unless another folder is given
UNDECIDED = ("inconclusive", "not run")


class RoundsError(ValueError):
    """A file of rounds cannot be read."""


@dataclass(frozen=True)
class Look:
    """What was found after a round.

    Attributes:
        seeds: of all rounds until then, as words of the command line.
        verdicts: of each claim, or of each method where there are no claims.
        open: names of the methods that got more seeds.
    """

    seeds: Sequence[str]
    verdicts: Mapping[str, str]
    open: Sequence[str]

    def line(self, number: int, planned: int) -> str:
        """Return a line for the terminal.

        Args:
            number: of the look, from 0.
            planned: the number of planned looks.
        """
        decided = sum(verdict not in UNDECIDED for verdict in self.verdicts.values())
        more = f"more seeds for {', '.join(self.open)}" if self.open else "no method gets more seeds"
        seeds = f"look {number + 1} of {planned}, {len(self.seeds)} seeds"
        return f"{seeds}: {decided} of {len(self.verdicts)} decided; {more if number + 1 < planned else 'the last one'}"


@dataclass(frozen=True)
class Rounds:
    """The looks at the results of a sweep.

    Attributes:
        planned_looks: the number of looks that were planned before the first; p-values are multiplied by it.
        looks: those that were made.
    """

    planned_looks: int
    looks: tuple[Look, ...] = ()

    def note(self) -> str:
        """Return the line below a table that tells of the looks."""
        made = ", ".join(str(len(one.seeds)) for one in self.looks)
        return (
            f"Seeds were added in rounds until the claims were decided: looks at {made} seeds, of at most "
            f"{self.planned_looks} looks. Corrected p-values are also multiplied by {self.planned_looks} (Bonferroni), "
            "which keeps the chance of a false finding at 5 % over all looks. Means and intervals are not corrected, "
            "and methods may have different numbers of seeds."
        )


def rounds_text(folder: Path) -> str | None:
    """Return the text of the file of rounds of an experiment; None where there is none that can be read."""
    return (folder / ROUNDS).read_text(encoding=UTF8) if read_rounds(folder) is not None else None


def read_rounds(folder: Path) -> Rounds | None:
    """Return the rounds of an experiment; None where there are none.

    Raises:
        RoundsError: the file cannot be read.
    """
    file = folder / ROUNDS
    if not file.is_file():
        return None
    content = read_object(file)
    if content is None:
        raise RoundsError(f"{file}: cannot be read; delete it to judge the runs as those of an ordinary sweep")
    try:
        looks = [
            Look(list(map(str, one["seeds"])), dict(one["verdicts"]), list(map(str, one["open"])))
            for one in content["looks"]
        ]
        planned = int(content["planned_looks"])
        if planned < len(looks):
            raise ValueError(f"{len(looks)} looks of {planned}")
    except (KeyError, TypeError, ValueError) as error:
        raise RoundsError(
            f"{file}: has no valid looks; delete it to judge the runs as those of an ordinary sweep"
        ) from error
    return Rounds(planned, tuple(looks))
