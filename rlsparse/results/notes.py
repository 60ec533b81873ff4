"""Notes below tables that say what their intervals and p-values mean."""

from collections.abc import Collection

from rlsparse.results.statistics import LEVEL

# headings of the p-values
P_SEEDS, P, P_HOLM, P_EQUIVALENCE = "p, seeds", "p", "p, Holm", "p, equivalence"
OVER_SEEDS = "mean [low, high]: mean over seeds and 95 % t interval to new seeds on the same questions."
ONLY_SEEDS = (
    f"{OVER_SEEDS} The answers to each question are not stored for enough of the runs, so nothing is said of other "
    "questions."
)


def meaning(questions: Collection[int], differences: bool = True) -> list[str]:
    """Return what intervals and p-values mean, and what they generalise to.

    Args:
        questions: the numbers of questions that are part of the estimates of a table; 0 where they are not known.
        differences: whether the table has differences with p-values.
    """
    known = sorted(one for one in questions if one > 0)
    if not known:
        lines = [ONLY_SEEDS]
    else:
        how_many = " or ".join(map(str, known))
        lines = [
            "mean [low, high]: mean and 95 % interval to new seeds and new questions (two-way analysis of variance of "
            f"seeds and {how_many} questions). Measures that are no means over questions, such as the area under the "
            "curve, times and shares of tokens, have intervals to new seeds."
        ]
        if 0 in questions:
            lines.append(
                "Values whose runs have no stored answers have intervals and p to new seeds on the same questions."
            )
    if differences:
        wide, to = (
            ("", "new seeds on the same questions") if not known else (" and question", "new seeds and new questions")
        )
        lines.append(
            f"Differences are paired by seed{wide}. {P_SEEDS}: for new seeds on the same questions (sign-flip "
            f"permutation test; with n seeds at least 2/2ⁿ). {P}: for {to} (t test). {P_HOLM}: {P} after the "
            f"correction for the number of comparisons here, on which the verdict rests (at most {LEVEL:g})."
        )
    return lines
