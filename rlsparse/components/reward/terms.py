"""The weighted sum of several rewards."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any, Self

from rlsparse.components.component import TARGET, Digest, build, describe
from rlsparse.components.reward.base import Completion, Reward
from rlsparse.config.ranges import convert, shown
from rlsparse.config.schema import ConfigError

NO_KEY = ": no such key; here there are "  # of convert
UNWEIGHTED = 1.0  # the weight of a term that gives none


@dataclass(frozen=True)
class Weight:
    """The key that a term has beside those of its reward."""

    weight: float


@dataclass(frozen=True)
class Term:
    """A summand.

    Attributes:
        weight: its factor; negative for a penalty.
    """

    weight: float
    reward: Reward


@dataclass(frozen=True)
class Terms(Reward):
    """R = Σ_k w_k r_k: the weighted sum of the rewards r_k, each of which is logged under its name."""

    terms: dict[str, Term]

    @classmethod
    def of(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Return the sum, with a reward built from each node in ``terms``.

        Args:
            where: the config group, for messages.
            values: ``terms``: by name, ``_target_`` and the keys of the reward, and ``weight`` (1 where left out).

        Raises:
            ConfigError: all that is wrong with any term, a line each; or this sum is itself a term.
        """
        group, nested, _ = where.partition(".")
        if nested:
            target = f"{cls.__module__}.{cls.__qualname__}"
            raise ConfigError(
                f"{where}.{TARGET}={target}: is a sum itself and cannot be a term; give its terms to {group}.terms"
            )
        converted, problems = convert(cls, where, values)
        nodes: dict[Any, Any] = converted.get("terms", {})
        terms = {}
        for name, node in nodes.items():
            try:
                terms[name] = _term(where, name, node)
            except ConfigError as error:
                problems += str(error).split("\n")
        if "terms" in converted:
            problems += _problems(where, nodes, terms)
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(terms)

    @property
    def term_count(self) -> int:
        """The number of terms."""
        return len(self.terms)

    def __call__(self, completion: Completion) -> float:
        """Return the weighted sum. A term that compares completions takes this one as alone in its group."""
        return fsum(term.weight * term.reward(completion) for term in self.terms.values())

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return class, values and source of each term, for the run id."""
        return {
            "terms": {
                name: {"weight": term.weight, **describe(term.reward, digest)} for name, term in self.terms.items()
            }
        }


def _term(where: str, name: Any, node: Any) -> Term:
    key = f"{where}.terms.{name}"
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        raise ConfigError(f"{key}: is no name of a term; use letters, digits and _, such as {where}.terms.length")
    if not isinstance(node, Mapping) or node.get(TARGET) is None:
        given = "" if isinstance(node, Mapping) else f"={shown(node)}"
        raise ConfigError(
            f"{key}{given}: names no class in {TARGET}; take an option of the group, +{where}@{key}=OPTION, or leave "
            f"the term out, ~{key}"
        )
    weights, problems = convert(Weight, key, {"weight": node.get("weight", UNWEIGHTED)})
    reward: Reward | None = None
    base: Any = Reward  # the type of build asks for a class without abstract methods
    try:
        reward = build(key, {one: value for one, value in node.items() if one != "weight"}, base)
    except ConfigError as error:
        lines = str(error).split("\n")
        taken = f"{key}.weight: is the weight of the term, so its class can have no such field; rename the field"
        problems += [
            taken if line.startswith(f"{key}.weight: has no value") else _with_weight(key, line) for line in lines
        ]
    if problems or reward is None:
        raise ConfigError("\n".join(problems))
    return Term(weights["weight"], reward)


def _with_weight(key: str, line: str) -> str:
    """Return a problem of a term, with ``weight`` among the keys that it names."""
    name, said, known = line.partition(NO_KEY)
    if not said or not name.startswith(f"{key}."):
        return line
    keys = [] if known == "none" else known.split(", ")
    return name + said + ", ".join(sorted([*keys, "weight"]))


def _problems(where: str, nodes: Mapping[str, Any], terms: Mapping[str, Term]) -> Iterator[str]:
    if not nodes:
        yield f"{where}.terms: has no terms; give some, such as +{where}@{where}.terms.answer=answer"
    elif len(terms) == len(nodes) and not any(term.weight for term in terms.values()):
        yield (
            f"{where}.terms: all weights ({', '.join(terms)}) are 0, so that no completion has a reward; give one of "
            f"them another weight, such as {where}.terms.{next(iter(terms))}.weight=1"
        )
