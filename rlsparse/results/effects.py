"""What each component of a factorial study does: its effect averaged over what else was varied."""

from dataclasses import dataclass

import pandas as pd

from rlsparse.results.measures import by_seed, headline
from rlsparse.results.names import in_order
from rlsparse.results.shown import interval, p_value
from rlsparse.results.statistics import LEVEL, MEANING, Test, against, paired
from rlsparse.results.table import Table


@dataclass(frozen=True)
class Effect:
    """Of one value of a component against the baseline's value of it.

    Attributes:
        component: key of the config, or ``algorithm``.
        value, reference: words of the command line.
        pairs: pairs of methods that differ in nothing else; the effect is their mean, seed by seed.
        test: of the differences, in the unit of the heading.
    """

    component: str
    value: str
    reference: str
    pairs: int
    test: Test


def effects(runs: pd.DataFrame, baseline: str | None) -> list[Effect]:
    """Main effects of the components that methods' names tell apart.

    Where a component's other value exists only together with others, that pair is left out; a component without any
    pair has no effect here.
    """
    if baseline is None:
        return []
    methods = in_order(list(runs["method"]))
    words = {method: dict(_words(method)) for method in methods}
    reference = words[baseline]
    found = []
    for component in dict.fromkeys(key for of_method in words.values() for key in of_method):
        for value in dict.fromkeys(of_method.get(component) for of_method in words.values()):
            if value is None or value == reference.get(component):
                continue
            pairs = _pairs(words, component, value, reference.get(component))
            test = _test(runs, pairs)
            if test is not None:
                found.append(Effect(component, value, reference.get(component, "not given"), len(pairs), test))
    return found


def effects_table(runs: pd.DataFrame, found: list[Effect]) -> Table:
    """Component, value against reference, effect with interval and p."""
    main = headline(runs)
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
        behind = {"effect": value.mean, "low": value.low, "high": value.high, "p": one.test.p}
        numbers.append({"component": one.component, "value": one.value, "against": one.reference, **behind})
    note = "Each effect is the mean over pairs of methods that differ in this component alone, seed by seed."
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), [MEANING, note], left=3)


def _words(method: str) -> list[tuple[str, str]]:
    algorithm, *rest = method.split(" ")
    pairs = [word.partition("=") for word in rest if "=" in word]
    return [("algorithm", algorithm), *((key, value) for key, _, value in pairs)]


def _pairs(
    words: dict[str, dict[str, str]], component: str, value: str, reference: str | None
) -> list[tuple[str, str]]:
    """Methods with the value, each with the one that differs from it in this component alone."""
    by_words = {tuple(sorted(of_method.items())): method for method, of_method in words.items()}
    pairs = []
    for method, of_method in words.items():
        rest = {key: word for key, word in of_method.items() if key != component}
        other = {**rest, component: reference} if reference is not None else rest
        partner = by_words.get(tuple(sorted(other.items())))
        if of_method.get(component) == value and partner is not None:
            pairs.append((method, partner))
    return pairs


def _test(runs: pd.DataFrame, pairs: list[tuple[str, str]]) -> Test | None:
    main = headline(runs)
    differences = pd.DataFrame(
        {pair: main.factor * paired(*(by_seed(runs, method, main.column) for method in pair)) for pair in pairs}
    ).dropna()
    return against(differences.mean(axis=1), 0.0) if pairs and len(differences) else None
