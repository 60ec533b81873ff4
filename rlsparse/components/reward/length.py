"""Rewards of the length of a completion, and of repetition in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Annotated

from rlsparse.components.component import Range
from rlsparse.components.reward.base import Completion, Reward
from rlsparse.config.ranges import shown


@dataclass(frozen=True)
class SoftOverlong(Reward):
    """0 up to a length, then linear down to −1. DAPO, Yu et al. 2025 (2503.14476), eq. 13.

    With L tokens, L_max = ``max_tokens`` and L_cache = ``cache`` · L_max, rounded to whole tokens: 0 where
    L ≤ L_max − L_cache, −1 where L > L_max, and ((L_max − L_cache) − L) / L_cache in between.
    """

    max_tokens: Annotated[int, Range(1)]
    cache: Annotated[float, Range(0, 1)]

    def problems(self) -> Iterator[str]:
        """Yield the problem of a penalty that no completion of up to L_max tokens gets."""
        if round(self.cache * self.max_tokens) == 0:
            yield (
                f"cache={shown(self.cache)}: is 0 tokens of max_tokens={self.max_tokens}, so that no completion of up "
                f"to {self.max_tokens} tokens is penalised; give a larger share, at most 1"
            )

    def __call__(self, completion: Completion) -> float:
        cache = round(self.cache * self.max_tokens)
        over = completion.tokens - (self.max_tokens - cache)
        if over <= 0:
            return 0.0
        return -1.0 if completion.tokens > self.max_tokens else -over / cache


@dataclass(frozen=True)
class CosineLength(Reward):
    """A reward between two values by the length, for right and for wrong completions. Yeo et al. 2025 (2502.03373).

    With L tokens and L_max = ``max_tokens``, eq. 1: r_L + (r_0 − r_L) (1 + cos(π L / L_max)) / 2 where L < L_max, which
    is r_0 at length 0 and r_L at length L_max, and ``exceeded`` where L ≥ L_max.

    Attributes:
        correct_short, correct_long: r_0 and r_L of a right answer.
        wrong_short, wrong_long: r_0 and r_L of a wrong or missing answer.
    """

    max_tokens: Annotated[int, Range(1)]
    correct_short: float
    correct_long: float
    wrong_short: float
    wrong_long: float
    exceeded: float

    def __call__(self, completion: Completion) -> float:
        if completion.tokens >= self.max_tokens:
            return self.exceeded
        right = completion.score.correct
        short, long = (self.correct_short, self.correct_long) if right else (self.wrong_short, self.wrong_long)
        return long + (short - long) * (1 + cos(pi * completion.tokens / self.max_tokens)) / 2


@dataclass(frozen=True)
class LengthOnly(Reward):
    """r_0 + (r_L − r_0) min(L, L_max) / L_max for L tokens, whatever the answer is: a control without the verdict.

    Attributes:
        short, long: r_0 and r_L.
    """

    max_tokens: Annotated[int, Range(1)]
    short: float
    long: float

    def __call__(self, completion: Completion) -> float:
        return self.short + (self.long - self.short) * min(completion.tokens, self.max_tokens) / self.max_tokens


@dataclass(frozen=True)
class Repetition(Reward):
    """−(1 − distinct n-grams / n-grams) over the tokens: 0 without repetition, towards −1 where all is repeated.

    Yeo et al. 2025 (2502.03373), appendix C.2, punish each token of a repeated n-gram. A completion has one reward
    here, so the share of repeated n-grams is punished, as in ``get_repetition_penalty_reward`` of TRL.

    Attributes:
        size: n; a completion with fewer tokens has no n-gram, and gets 0.
    """

    size: Annotated[int, Range(1)]

    def __call__(self, completion: Completion) -> float:
        ids = completion.token_ids
        grams = [ids[start : start + self.size] for start in range(len(ids) - self.size + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0
