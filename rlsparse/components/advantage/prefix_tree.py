"""The advantage of T-SPMO: how much a token changes the mean reward in the prefix tree of its group."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.components.advantage.base import Advantage

ROOT = 0


def tree_paths(completions: list[list[int]]) -> list[list[int]]:
    """Return the prefix tree of the completions of one prompt, as the nodes that each completion visits.

    Nodes are numbered in the order of their first visit; the root, node 0, is the first of every path.
    """
    child: dict[tuple[int, int], int] = {}
    paths = []
    for completion in completions:
        path = [ROOT]
        for token in completion:
            path.append(child.setdefault((path[-1], token), len(child) + 1))
        paths.append(path)
    return paths


def node_values(paths: list[list[int]], rewards: list[float]) -> list[Fraction]:
    """Return V of every node: the mean reward of the completions through it.

    The numbers are exact fractions: a branch point whose two sides have the same value must give 0, not a rounding
    error.
    """
    nodes = 1 + max(max(path) for path in paths)
    total, count = [Fraction(0)] * nodes, [0] * nodes
    for path, reward in zip(paths, rewards, strict=True):
        value = Fraction(reward)
        for node in path:
            total[node] += value
            count[node] += 1
    return [t / c for t, c in zip(total, count, strict=True)]


@dataclass(frozen=True)
class PrefixTree(Advantage):
    """A(v|p) = V(p·v) − V(p): V(p) is the mean reward of the completions that start with the prefix p.

    T-SPMO, Lee & Tong 2025 (2504.20834). A transition p → v that several completions share stands in the first of them
    only, so that a sum over (B, T) counts each distinct transition once, as the objective asks.
    """

    min_group_size: ClassVar[int] = 2
    per_transition: ClassVar[bool] = True

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        group_size = rewards.shape[1]
        advantages = torch.zeros(rollout.completion_ids.shape)  # (B, T)
        ids, lengths = rollout.completion_ids.tolist(), rollout.lengths.tolist()
        for p, group_rewards in enumerate(rewards.tolist()):
            first = p * group_size
            paths = tree_paths([ids[row][: lengths[row]] for row in range(first, first + group_size)])
            values = node_values(paths, group_rewards)
            newest = ROOT
            for row, path in enumerate(paths, start=first):
                for t, (before, after) in enumerate(pairwise(path)):
                    if after > newest:  # nodes are numbered by first visit: a larger number is a new transition
                        newest = after
                        advantages[row, t] = float(values[after] - values[before])
        return advantages.to(rewards.device)
