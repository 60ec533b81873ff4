"""Names of methods: what tells an experiment's methods apart, in the words of the command line."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

import pandas as pd

from rlsparse.results.order import natural
from rlsparse.storage.summary import NO_EFFECT

NOT_A_METHOD = (*NO_EFFECT, "algorithm", "seed", "device", "hydra")

GROUP = re.compile(r"^\w+\.(?=\w+=)")  # of a key


def method_overrides(overrides: Sequence[str], tuned: Sequence[str] = ()) -> tuple[str, ...]:
    """Those that can tell methods apart.

    Args:
        tuned: keys that were chosen for each method, and so are none of it.
    """
    return tuple(one for one in overrides if _group(one) not in NOT_A_METHOD and _key(one) not in tuned)


def method_names(runs: pd.DataFrame, planned: Sequence[set[str]], axes: Collection[str] = ()) -> list[str]:
    """A name for each run's method: the algorithm and the overrides that tell the experiment's methods apart.

    Runs of one ``method_hash`` are one method, however they were typed; two methods never share a name. What all
    have in common is left out, but for axes. Planned points count: the survivor of an axis still says its value.

    Args:
        runs: with ``method_hash``, ``algorithm`` and ``overrides``, as ``method_overrides`` gives them.
        planned: the same of each planned point.
        axes: keys that an experiment's file varies: said even where a sweep was narrowed to one value of them.
    """
    typed: dict[str, set[str]] = {}  # method -> the overrides that all its runs have
    order: dict[str, tuple[str, ...]] = {}  # method -> overrides of its first run, for their order
    algorithm = dict(zip(runs["method_hash"], runs["algorithm"], strict=True))
    for method, overrides in zip(runs["method_hash"], runs["overrides"], strict=True):
        typed[method] = typed.get(method, set(overrides)) & set(overrides)
        order.setdefault(method, overrides)
    everywhere = set.intersection(*typed.values(), *planned) if typed else set()
    common = {word for word in everywhere if _key(word) not in axes}
    names = {
        method: " ".join([algorithm[method], *(o for o in order[method] if o in shared - common)])
        for method, shared in typed.items()
    }
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    unique = {method: f"{name} ({method[:6]})" if name in twice else name for method, name in names.items()}
    return [unique[method] for method in runs["method_hash"]]


def in_order(methods: Sequence[str], first: str | None = None) -> list[str]:
    """Each once, as a person would put them; the baseline, where one is given, before all others."""
    return sorted(set(methods), key=lambda name: (name != first, natural(name)))


def baseline_of(methods: Sequence[str], wanted: str | None = None) -> str | None:
    """The method that others are compared with: the one that is wanted, else the first with the fewest words.

    None where what is wanted is not there.
    """
    if wanted is not None:
        return wanted if wanted in methods else None
    return min(in_order(methods), key=lambda name: name.count(" "), default=None)


def beside(name: str, baseline: str | None) -> str:
    """A method's name by what differs from the baseline's, keys without their group: for figures."""
    words = set((baseline or "").split(" "))
    differs = [word for word in name.split(" ") if word not in words] or name.split(" ")
    return " ".join(GROUP.sub("", word) for word in differs)


def _group(override: str) -> str:
    return _key(override).split(".")[0]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]
