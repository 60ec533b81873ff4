"""The rewards of completions: calls the reward, or each of its terms, and checks what it returns."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import fsum
from numbers import Real
from reprlib import repr as shortened
from typing import Any

from rlsparse.components.component import ComponentError, origin, raised_by
from rlsparse.components.reward import Completion, GroupReward, Reward, Terms
from rlsparse.config.ranges import LARGEST

LONGEST = 300  # characters of the error of a reward in its message
PAUSE = 10.0  # seconds between two lines about a slow reward
log = logging.getLogger(__name__)


class SlowNotice:
    """Says on the terminal which reward is being computed, where it takes long: a line every 10 s at most."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Start to wait.

        Args:
            now: returns the time in seconds.
        """
        self._now = now
        self._last = now()

    def __call__(self, reward: str, done: int, count: int) -> None:
        """Say how many completions have their reward, unless all have or a line was written a short time ago.

        Args:
            reward: key of the reward.
            done: completions that have it.
            count: completions of the step.
        """
        time = self._now()
        if done < count and time - self._last >= PAUSE:
            self._last = time
            log.info("%s: %d of %d completions are done", reward, done, count)


@dataclass(frozen=True)
class Rewards:
    """The rewards of B completions.

    Attributes:
        total: B.
        weights: of the K terms by name; empty for a single reward.
        terms: K lists of B: each term without its weight.
    """

    total: list[float]
    weights: dict[str, float]
    terms: list[list[float]]


def rewards_of(reward: Reward, groups: Sequence[Sequence[Completion]], notice: SlowNotice) -> Rewards:
    """Return the rewards of the completions of P prompts, G each.

    Raises:
        ComponentError: the reward or a term of a sum raised an error or returned no finite number, or that of a group
            returned other than a sequence with one number for each completion. The message has one line.
    """
    if not isinstance(reward, Terms):
        return Rewards(_values(reward, groups, "reward", notice), {}, [])
    values = [_values(term.reward, groups, f"reward.terms.{name}", notice) for name, term in reward.terms.items()]
    weights = {name: term.weight for name, term in reward.terms.items()}
    total = [fsum(map(float.__mul__, weights.values(), row)) for row in zip(*values, strict=True)]
    if (largest := max(map(abs, total))) > LARGEST:
        raise ComponentError(
            f"reward: a weighted sum of terms is {largest:g}, more than {LARGEST:g}; lower the weights"
        )
    return Rewards(total, weights, values)


def _values(reward: Reward, groups: Sequence[Sequence[Completion]], key: str, notice: SlowNotice) -> list[float]:
    found: list[float] = []
    count = sum(map(len, groups))
    try:
        for value in _each(reward, groups, key):
            found.append(value)
            notice(key, len(found), count)
    except ComponentError:
        raise
    except Exception as error:
        raise ComponentError(f"{key}: {_cut(raised_by(reward, error))}") from error
    return found


def _cut(text: str) -> str:
    """Return a text in one line that a terminal can show; the traceback has the whole text."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _each(reward: Reward, groups: Sequence[Sequence[Completion]], key: str) -> Iterator[float]:
    if not isinstance(reward, GroupReward):
        for completion in chain.from_iterable(groups):
            yield checked_reward(reward, completion, key)
        return
    for group in groups:
        given = reward.of_group(group)
        values = _listed(given)
        if values is None or len(values) != len(group):
            got = type(given).__name__ if values is None else len(values)
            raise ComponentError(
                f"{key} ({origin(reward)}): of_group returned {got} for {len(group)} completions; return a list with "
                "one number for each"
            )
        yield from (_finite(reward, value, one, key) for value, one in zip(values, group, strict=True))


def _listed(values: Any) -> list[Any] | None:
    """Return a list, a tuple, or a tensor or array of one dimension as a list; None for all else.

    The keys of a mapping, or a set, which has no order, would be taken for rewards.
    """
    if isinstance(values, list | tuple):
        return list(values)
    if hasattr(values, "tolist") and getattr(values, "ndim", None) == 1:  # of PyTorch and NumPy
        return list(values.tolist())
    return None


def checked_reward(reward: Reward, completion: Completion, key: str = "reward") -> float:
    """Return the reward of a completion.

    Args:
        key: of the reward, for the message.

    Raises:
        ComponentError: it is no finite number.
    """
    return _finite(reward, reward(completion), completion, key)


def _finite(reward: Reward, value: Any, completion: Completion, key: str) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and abs(value) <= LARGEST):
        raise ComponentError(
            f"{key} ({origin(reward)}): returned {shortened(value)} for {completion.text[:60]!r}; "
            "return a finite number, float(...)"
        )
    return float(value)
