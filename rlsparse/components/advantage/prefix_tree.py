"""T-SPMO's credit: the value of a token is how much it moves the mean reward in the group's prefix tree.

Lee & Tong 2025 (2504.20834): a prefix p carries V(p), the mean reward of the completions that start with it, and the
transition p → v is worth A(v|p) = V(p·v) − V(p).
"""

from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from rlsparse.batch import Rollout

ROOT = 0


def tree_paths(completions: list[list[int]]) -> list[list[int]]:
    """The prefix tree of one prompt's completions, as the node that each completion visits after each token.

    Nodes are numbered in the order in which they are first visited; the root, node 0, is the first of every path.
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
    """V of every node: the mean reward of the completions through it.

    Exact rational numbers: a branch point whose two sides are worth the same must give 0, not a rounding error.
    """
    nodes = 1 + max(max(path) for path in paths)
    total, count = [Fraction(0)] * nodes, [0] * nodes
    for path, reward in zip(paths, rewards, strict=True):
        value = Fraction(reward)
        for node in path:
            total[node] += value
            count[node] += 1
    return [t / c for t, c in zip(total, count, strict=True)]


def prefix_tree(rewards: Tensor, rollout: Rollout) -> Tensor:
    """(B, T) token advantages; a transition that several completions share stands in the first of them only.

    So the sum over (B, T) runs over the distinct transitions, as the objective asks: a transition counts once.

    Args:
        rewards: (P, G).
    """
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
                if after > newest:  # nodes are numbered by first visit: a larger number is a transition not seen yet
                    newest = after
                    advantages[row, t] = float(values[after] - values[before])
    return advantages.to(rewards.device)
