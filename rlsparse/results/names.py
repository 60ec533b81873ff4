"""Names of methods: the algorithm and the command-line overrides that distinguish the methods of an experiment."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

import pandas as pd

from rlsparse.results.sorting import natural_key
from rlsparse.storage.summary import NO_EFFECT, SERVER_KEYS

NOT_A_METHOD = (*NO_EFFECT, "algorithm", "seed", "device", "hydra")
NOT_IN_A_NAME = tuple(f"rollout.{key}" for key in SERVER_KEYS)

TERM = re.compile(r"^\+*(?:reward@)?reward\.terms\.")  # where a term of the reward is named
GROUP = re.compile(r"^\w+\.(?=\w+=)")  # the config group at the start of a key


def method_overrides(overrides: Sequence[str], tuned: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the overrides that can distinguish methods.

    Args:
        tuned: keys whose values were chosen for each method by tuning; they are not part of its name.
    """
    left_out = (*NOT_IN_A_NAME, *tuned)
    return tuple(one for one in overrides if _group(one) not in NOT_A_METHOD and _key(one) not in left_out)


def method_names(runs: pd.DataFrame, planned: Sequence[set[str]], axes: Collection[str] = ()) -> list[str]:
    """Return the name of the method of each run: the algorithm and the overrides that distinguish it.

    Runs with the same ``method_hash`` are one method, however their overrides were written; two methods never share a
    name. Overrides that all runs and planned points have in common are left out, except those of ``axes``. Planned
    points count, so that the name gives the value of an axis even if runs of only one value exist.

    Args:
        runs: with the columns ``method_hash``, ``algorithm`` and ``overrides`` (see ``method_overrides``).
        planned: the overrides of each planned point.
        axes: keys that the file of the experiment varies; the name gives them even if a sweep was narrowed to one
            value.
    """
    typed: dict[str, set[str]] = {}  # method -> the overrides that all its runs have
    order: dict[str, tuple[str, ...]] = {}  # method -> the overrides of its first run, which give the order
    algorithm = dict(zip(runs["method_hash"], runs["algorithm"], strict=True))
    for method, overrides in zip(runs["method_hash"], runs["overrides"], strict=True):
        typed[method] = typed.get(method, set(overrides)) & set(overrides)
        order.setdefault(method, overrides)
    everywhere = set.intersection(*typed.values(), *planned) if typed else set()
    common = {word for word in everywhere if _key(word) not in axes}
    names = {
        method: " ".join([algorithm[method], *(_shown(o) for o in order[method] if o in shared - common)])
        for method, shared in typed.items()
    }
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    unique = {method: f"{name} ({method[:6]})" if name in twice else name for method, name in names.items()}
    return [unique[method] for method in runs["method_hash"]]


def sorted_methods(methods: Sequence[str], first: str | None = None) -> list[str]:
    """Return each method once, in natural order.

    Args:
        first: the method that comes before all others, such as the baseline; None for no such method.
    """
    return sorted(set(methods), key=lambda name: (name != first, natural_key(name)))


def baseline_of(methods: Sequence[str], wanted: str | None = None) -> str | None:
    """Return the baseline: ``wanted`` if given, else the first method with the fewest words; None if there is none."""
    if wanted is not None:
        return wanted if wanted in methods else None
    return min(sorted_methods(methods), key=lambda name: name.count(" "), default=None)


def short_name(name: str, baseline: str | None) -> str:
    """Return the words of a name that the baseline lacks, with keys without their group, for use in figures."""
    words = set((baseline or "").split(" "))
    differs = [word for word in name.split(" ") if word not in words] or name.split(" ")
    return " ".join(GROUP.sub("", word) for word in differs)


def _shown(override: str) -> str:
    """Return an override as names show it: ``reward.length=cosine_length`` for an option that is a term."""
    return TERM.sub("reward.", override)


def _group(override: str) -> str:
    return _key(override).split(".")[0]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]
