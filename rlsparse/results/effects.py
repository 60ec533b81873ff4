"""Effects of the components of a factorial study, each averaged over the settings of the other components."""

from dataclasses import dataclass

import pandas as pd

from rlsparse.results.formatting import interval, p_value
from rlsparse.results.measures import by_seed, main_measure
from rlsparse.results.names import sorted_methods
from rlsparse.results.statistics import LEVEL, MEANING, PermutationTest, paired, permutation_test
from rlsparse.results.table import Table


@dataclass(frozen=True)
class Effect:
    """The effect of one value of a component, compared with the value that the baseline has.

    Attributes:
        component: a key of the config, or ``algorithm``.
        value, reference: the two values, as on the command line.
        pairs: number of pairs of methods that differ only in this component; the effect is their mean for each seed.
        test: of the differences against 0, in the unit of the table heading.
    """

    component: str
    value: str
    reference: str
    pairs: int
    test: PermutationTest


def effects(runs: pd.DataFrame, baseline: str | None) -> list[Effect]:
    """Return the main effects of the components that appear in the names of the methods.

    A method without a counterpart that differs only in the component is left out; a component without any pair has no
    effect in the list.
    """
    if baseline is None:
        return []
    methods = sorted_methods(list(runs["method"]))
    components = {method: dict(_components(method)) for method in methods}
    reference = components[baseline]
    found = []
    for component in dict.fromkeys(key for of_method in components.values() for key in of_method):
        for value in dict.fromkeys(of_method.get(component) for of_method in components.values()):
            if value is None or value == reference.get(component):
                continue
            pairs = _pairs(components, component, value, reference.get(component))
            test = _test(runs, pairs)
            if test is not None:
                found.append(Effect(component, value, reference.get(component, "not given"), len(pairs), test))
    return found


def effects_table(runs: pd.DataFrame, found: list[Effect]) -> Table:
    """Return a table of effects: component, value, reference, effect with interval, and p."""
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
                "p": p_value(one.test.p),
                "seeds say": "inconclusive" if one.test.p > LEVEL else "higher" if value.mean > 0 else "lower",
                "pairs of methods": str(one.pairs),
                "seeds": str(value.n),
            }
        )
        unrounded = {"effect": value.mean, "low": value.low, "high": value.high, "p": one.test.p}
        numbers.append({"component": one.component, "value": one.value, "against": one.reference, **unrounded})
    note = "Each effect is the mean over pairs of methods that differ only in this component, computed for each seed."
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), [MEANING, note], left=3)


def _components(method: str) -> list[tuple[str, str]]:
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


def _test(runs: pd.DataFrame, pairs: list[tuple[str, str]]) -> PermutationTest | None:
    """Return the test of the mean difference over the pairs; None without a pair or a common seed."""
    main = main_measure(runs)
    differences = pd.DataFrame(
        {pair: main.factor * paired(*(by_seed(runs, method, main.column) for method in pair)) for pair in pairs}
    ).dropna()
    return permutation_test(differences.mean(axis=1), 0.0) if pairs and len(differences) else None
