"""Effects of the components of a factorial study, each averaged over the settings of the other components."""

from dataclasses import dataclass, replace
from itertools import combinations, product

import pandas as pd

from rlsparse.results.correction import at_looks, holm
from rlsparse.results.formatting import interval, p_value
from rlsparse.results.measures import finished, main_measure
from rlsparse.results.names import sorted_methods
from rlsparse.results.notes import P_HOLM, P_SEEDS, P, meaning
from rlsparse.results.sample import Sample, Samples
from rlsparse.results.statistics import LEVEL, MeanTest, mean_test
from rlsparse.results.table import Table


@dataclass(frozen=True)
class Effect:
    """The effect of one value of a component, compared with the value that the baseline has.

    Attributes:
        component: a key of the config, or ``algorithm``.
        value, reference: the two values, as on the command line.
        pairs: number of pairs of methods that differ only in this component; the effect is their mean for each seed.
        test: of the differences against 0, in the unit of the table heading.
        corrected: p of the test, corrected for the number of effects of the study.
    """

    component: str
    value: str
    reference: str
    pairs: int
    test: MeanTest
    corrected: float = float("nan")


def effects(samples: Samples, baseline: str | None, looks: int = 1) -> list[Effect]:
    """Return the main effects of the components that appear in the names of the methods.

    A method without a counterpart that differs only in the component is left out; a component without any pair has no
    effect in the list.

    Args:
        looks: the number of planned looks at the results, by which corrected p-values are multiplied.
    """
    if baseline is None:
        return []
    components = _components(samples)
    reference = components[baseline]
    found = []
    for component in dict.fromkeys(key for of_method in components.values() for key in of_method):
        for value in dict.fromkeys(of_method.get(component) for of_method in components.values()):
            if value is None or value == reference.get(component):
                continue
            pairs = _pairs(components, component, value, reference.get(component))
            test = _test(samples, pairs)
            if test is not None:
                found.append(Effect(component, value, reference.get(component, "not given"), len(pairs), test))
    return _corrected(found, looks)


def interactions(samples: Samples, baseline: str | None, looks: int = 1) -> list[Effect]:
    """Return the interactions of pairs of components: what both values change together beyond the sum of their effects.

    For values a and b of two components and their references 0, it is the mean of y(a, b) − y(a, 0) − y(0, b) + y(0, 0)
    over the settings of the others for which all four methods are there, computed for each seed.
    """
    if baseline is None:
        return []
    components = _components(samples)
    reference = components[baseline]
    found = []
    for first, second in combinations(dict.fromkeys(key for of_method in components.values() for key in of_method), 2):
        for a, b in product(_values(components, reference, first), _values(components, reference, second)):
            quads = [
                quad
                for both, only_first in _pairs(components, second, b, reference.get(second))
                if (quad := _quad(components, (both, only_first), first, (a, reference.get(first)))) is not None
            ]
            terms = [
                _difference(samples, both, only_first) - _difference(samples, only_second, neither)
                for both, only_first, only_second, neither in quads
            ]
            mean = Sample.mean(terms)
            if len(mean.values):
                against = ", ".join(reference.get(key, "not given") for key in (first, second))
                test = mean_test(mean, 0.0)
                found.append(Effect(f"{first} × {second}", f"{a}, {b}", against, len(quads), test))
    return _corrected(found, looks)


def _corrected(found: list[Effect], looks: int) -> list[Effect]:
    corrected = at_looks(holm([one.test.p for one in found]), looks)
    return [replace(one, corrected=p) for one, p in zip(found, corrected, strict=True)]


def _values(components: dict[str, dict[str, str]], reference: dict[str, str], key: str) -> list[str]:
    """Return the values of a component that differ from that of the baseline."""
    values = dict.fromkeys(of_method.get(key) for of_method in components.values())
    return [value for value in values if value is not None and value != reference.get(key)]


def _quad(
    components: dict[str, dict[str, str]], pair: tuple[str, str], key: str, values: tuple[str, str | None]
) -> tuple[str, str, str, str] | None:
    """Return two methods that have a value, and their partners with the reference; None where one is missing.

    Args:
        pair: two methods that differ in another component.
        values: of the component ``key``: the value, and that of the baseline.
    """
    value, reference = values
    partners = dict(_pairs(components, key, value, reference))
    if not all(method in partners for method in pair):
        return None
    return pair[0], pair[1], partners[pair[0]], partners[pair[1]]


INTERACTION = (
    "Each interaction is what two values change together beyond the sum of their effects, y(a, b) − y(a, 0) − y(0, b) "
    "+ y(0, 0), computed for each seed, as a mean over the settings of the other components."
)
MAIN_EFFECT = (
    "Each effect is the mean over pairs of methods that differ only in this component, computed for each seed."
)


def effects_table(runs: pd.DataFrame, found: list[Effect], note: str = MAIN_EFFECT) -> Table:
    """Return a table of effects or interactions: component, value, reference, effect with interval, and p.

    Args:
        note: says what an effect is.
    """
    main = main_measure(runs)
    title = f"effect on {main.title}".replace(", %", ", points")
    rows, numbers = [], []
    for one in found:
        value = one.test.estimate
        rows.append(
            {
                "component": one.component,
                "value": one.value,
                "against": one.reference,
                title: interval(value, main.decimals),
                P_SEEDS: p_value(one.test.p_seeds),
                P: p_value(one.test.p),
                P_HOLM: p_value(one.corrected),
                "verdict": "inconclusive" if not one.corrected <= LEVEL else "higher" if value.mean > 0 else "lower",
                "pairs of methods": str(one.pairs),
                "seeds": str(value.n),
            }
        )
        unrounded = {"effect": value.mean, "low": value.low, "high": value.high}
        unrounded |= {P_SEEDS: one.test.p_seeds, P: one.test.p, P_HOLM: one.corrected}
        numbers.append({"component": one.component, "value": one.value, "against": one.reference, **unrounded})
    return Table(
        pd.DataFrame(rows),
        pd.DataFrame(numbers),
        [*meaning({one.test.estimate.questions for one in found}), note],
        left=3,
    )


def _components(samples: Samples) -> dict[str, dict[str, str]]:
    """Return for each method the values of the components in its name, by key."""
    methods = sorted_methods(list(finished(samples.runs)["method"]))
    return {method: dict(_components_of(method)) for method in methods}


def _components_of(method: str) -> list[tuple[str, str]]:
    """Return the components in the name of a method, as pairs of key and value."""
    algorithm, *rest = method.split(" ")
    pairs = [word.partition("=") for word in rest if "=" in word]
    return [("algorithm", algorithm), *((key, value) for key, _, value in pairs)]


def _pairs(
    components: dict[str, dict[str, str]], component: str, value: str, reference: str | None
) -> list[tuple[str, str]]:
    """Return the methods with the value, each with the method that differs from it only in this component."""
    by_components = {tuple(sorted(of_method.items())): method for method, of_method in components.items()}
    pairs = []
    for method, of_method in components.items():
        rest = {key: word for key, word in of_method.items() if key != component}
        other = {**rest, component: reference} if reference is not None else rest
        partner = by_components.get(tuple(sorted(other.items())))
        if of_method.get(component) == value and partner is not None:
            pairs.append((method, partner))
    return pairs


def _test(samples: Samples, pairs: list[tuple[str, str]]) -> MeanTest | None:
    """Return the test of the mean difference over the pairs; None without a pair or a common seed."""
    mean = Sample.mean([_difference(samples, method, partner) for method, partner in pairs])
    return mean_test(mean, 0.0) if len(mean.values) else None


def _difference(samples: Samples, method: str, partner: str) -> Sample:
    """Return the paired differences of two methods, in the unit of the table heading."""
    main = main_measure(samples.runs)
    return samples.of(method, main.column).scaled(main.factor) - samples.of(partner, main.column).scaled(main.factor)
