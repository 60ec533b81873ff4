"""Compare each method of a study with its baseline, corrected for the number of comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlsparse.results.correction import at_looks, holm
from rlsparse.results.measures import Measure
from rlsparse.results.names import sorted_methods
from rlsparse.results.sample import Sample, Samples
from rlsparse.results.statistics import LEVEL, MeanTest, mean_test

BETTER, WORSE, EQUIVALENT, INCONCLUSIVE = "better", "worse", "equivalent", "inconclusive"


@dataclass(frozen=True)
class Comparison:
    """A method compared with the baseline.

    Attributes:
        test: of the paired differences against 0, in the unit of the heading of the measure.
        corrected: the p-value of the test, corrected by Holm's procedure.
        equivalent: the p-value of two one-sided tests that the difference is within the margin, corrected in the same
            way; NaN without a margin.
        verdict: better, worse, equivalent or inconclusive.
    """

    test: MeanTest
    corrected: float
    equivalent: float
    verdict: str


def compare_all(
    samples: Samples, baseline: str, measure: Measure, margin: float | None = None, looks: int = 1
) -> dict[str, Comparison]:
    """Return the comparison of each other method, by name; only of methods that have a seed in common with it.

    Args:
        measure: what is compared.
        margin: the largest difference that does not matter, in the stored unit; None to test no equivalence.
        looks: the number of planned looks at the results, by which corrected p-values are multiplied.
    """
    of_baseline = samples.of(baseline, measure.column).scaled(measure.factor)
    differences = {
        method: samples.of(method, measure.column).scaled(measure.factor) - of_baseline
        for method in sorted_methods(list(samples.runs["method"]), baseline)
        if method != baseline
    }
    differences = {method: one for method, one in differences.items() if len(one.values)}
    tests = corrected_tests(differences, looks)
    equivalent = [float("nan")] * len(tests)
    if margin is not None:
        width = margin * measure.factor
        within = [equivalence_p(mean_test(one, -width), mean_test(one, width)) for one in differences.values()]
        equivalent = at_looks(holm(within), looks)
    return {
        method: Comparison(test, p, same, _verdict(test, p, same, measure))
        for (method, (test, p)), same in zip(tests.items(), equivalent, strict=True)
    }


def corrected_tests(differences: Mapping[str, Sample], looks: int = 1) -> dict[str, tuple[MeanTest, float]]:
    """Return the test of each method's difference against 0, with its p after Holm's correction.

    Args:
        differences: by method; none is empty.
        looks: as in ``compare_all``.
    """
    tests = {method: mean_test(one, 0.0) for method, one in differences.items()}
    corrected = at_looks(holm([test.p for test in tests.values()]), looks)
    return {method: (test, p) for (method, test), p in zip(tests.items(), corrected, strict=True)}


def equivalence_p(lower: MeanTest, upper: MeanTest) -> float:
    """Return the p-value of two one-sided tests (Schuirmann 1987): twice the larger of the two.

    It is at most 0.05 where the 95 % interval lies in the range. It is doubled like every two-sided p-value, since a
    value outside the range would be called so, too.

    Args:
        lower, upper: tests against the lower and the upper end of the range in which a difference does not matter.
    """
    return min(2 * max(lower.above, upper.below), 1.0)


def _verdict(test: MeanTest, corrected: float, equivalent: float, measure: Measure) -> str:
    if corrected <= LEVEL:
        return BETTER if test.side == {"max": "above", "min": "below"}[measure.best or "max"] else WORSE
    return EQUIVALENT if equivalent <= LEVEL else INCONCLUSIVE
