"""Notes below tables that say what their intervals and p-values mean."""

from collections.abc import Collection

from rlsparse.results.statistics import EXACT_UP_TO, LEVEL

# headings of the p-values
P_SEEDS, P, P_HOLM = "p, seeds", "p", "p, Holm"
OVER_SEEDS = (
    "Values of the form mean [low, high] are means over seeds with 95 % t intervals to new seeds on the same questions."
)
ONLY_SEEDS = (
    "They generalise to new seeds on the same questions: the choice of the questions is part of them only where the "
    "answers to each question are stored, of at least two seeds."
)


def meaning(questions: Collection[int], differences: bool = True) -> list[str]:
    """Return what intervals and p-values mean, and what they generalise to.

    Args:
        questions: the numbers of questions that are part of the estimates of a table; 0 where they are not known.
        differences: whether the table has differences with p-values.
    """
    known = sorted(one for one in questions if one > 0)
    if not known:
        lines = ["Values of the form mean [low, high] are means over seeds with 95 % t intervals. " + ONLY_SEEDS]
    else:
        how_many = " or ".join(map(str, known))
        lines = [
            "Values of the form mean [low, high] are means with 95 % intervals to new seeds and new questions (two-way "
            f"analysis of variance: seeds and {how_many} questions, crossed); of measures that are no means over "
            "questions, 95 % t intervals to new seeds."
        ]
        if 0 in questions:
            lines.append(f"Where a run has no stored answers, questions are not part of them. {ONLY_SEEDS}")
    if differences:
        wide = " and by question" if known else ""
        to = "to new seeds and new questions" if known else "to new seeds on the same questions"
        test = "the same model" if known else "the paired t test"
        lines.append(
            f"Differences are paired by seed{wide}. {P}: two-sided, from {test}; it generalises {to}. {P_HOLM}: {P}, "
            f"corrected for the number of comparisons here. The verdict is better or worse if it is at most {LEVEL:g}. "
            f"{P_SEEDS}: the sign-flip permutation test over seeds, which assumes only that differences are symmetric "
            f"around their mean (exact up to {EXACT_UP_TO} seeds; with n seeds at least 2/2ⁿ); it generalises to new "
            "seeds on the same questions."
        )
    return lines
