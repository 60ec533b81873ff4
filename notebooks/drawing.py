"""Draw figures for the notebooks, readable in grey: the prefix tree of a group, and completions with chosen tokens."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from rlsparse.components.advantage.prefix_tree import ROOT, node_values, tree_paths

UNIT, ROW, SIZE = 0.115, 0.4, 8  # inches per character, inches per row of the tree, font size in points
NODE, SHORTEST = 6, 7  # characters: the box of a node, the shortest edge (with its advantage below)
DARKEST = 0.45  # from white, 0, to black, 1: black text must stay readable on it


@dataclass(frozen=True)
class Segment:
    """Holds consecutive tokens of a prefix tree without a branch between them.

    Attributes:
        parent: number of the segment before it; None at the root.
        depth: position of its first token in the completions.
        tokens: as text.
        completions: number of completions through it.
        value: V, the mean reward of these completions; the same after each of the tokens.
        advantage: of the first token; the others have 0.
    """

    parent: int | None
    depth: int
    tokens: list[str]
    completions: int
    value: float
    advantage: float


def segments(completions: list[list[int]], rewards: list[float], text: Callable[[int], str]) -> list[Segment]:
    """Return the prefix tree of the completions of one prompt, each parent before its children.

    Args:
        completions: token ids. rewards: of each.
        text: returns the text of a token id.
    """
    paths = tree_paths(completions)
    values = node_values(paths, rewards)
    parent: dict[int, int] = {}
    token: dict[int, tuple[int, str]] = {}  # of a node: its position, and its text
    for path, completion in zip(paths, completions, strict=True):
        for t, (before, after) in enumerate(pairwise(path)):
            parent[after], token[after] = before, (t, text(completion[t]))
    through = Counter(node for path in paths for node in path)
    children = Counter(parent.values())
    ends = {path[-1] for path in paths}
    found: list[Segment] = []
    lies_in: dict[int, int] = {}  # node -> number of its segment
    for node in sorted(parent):  # in the order of their first visit
        before, (depth, word) = parent[node], token[node]
        if before != ROOT and children[before] == 1 and before not in ends:
            lies_in[node] = lies_in[before]
            found[lies_in[node]].tokens.append(word)
            continue
        lies_in[node] = len(found)
        advantage = float(values[node] - values[before])
        found.append(Segment(lies_in.get(before), depth, [word], through[node], float(values[node]), advantage))
    return found


def tree_figure(tree: Sequence[Segment], root_value: float) -> Figure:
    """Draw the tree from left to right: V in the nodes, tokens above the edges, the advantage of the first one below.

    A node with a thick frame is a branch point. An edge with A > 0 is solid, with A < 0 dashed, with A = 0 dotted.
    """
    children: dict[int | None, list[int]] = {number: [] for number in [None, *range(len(tree))]}
    for i, one in enumerate(tree):
        children[one.parent].append(i)
    row = _rows(children)
    start: dict[int | None, float] = {None: 0.0}  # left side of the node that a segment ends in
    for i, one in enumerate(tree):
        start[i] = start[one.parent] + NODE + max(SHORTEST, len("".join(one.tokens)) + 1)
    panel = _panel(max(start.values()) + NODE, max(row.values()) + 1, ROW)
    for i, one in enumerate(tree):
        left, up = start[one.parent] + NODE, row[one.parent]
        kind = "-" if one.advantage > 0 else "--" if one.advantage < 0 else ":"
        panel.plot([left, left], [up, row[i]], color="black", lw=0.5, zorder=1)
        panel.plot([left, start[i]], [row[i], row[i]], ls=kind, color="black", lw=1.1, zorder=1)
        panel.text(left + 0.4, row[i] - 0.08, "".join(one.tokens), va="bottom", family="monospace", size=SIZE)
        worth = f"A {one.advantage:+.3f}" if one.advantage else "A 0"
        shade = "black" if one.advantage else "0.45"
        panel.text(left + 0.4, row[i] + 0.08, worth, va="top", size=SIZE - 1.5, color=shade)
        _node(panel, start[i], row[i], one.value, len(children[i]) > 1)
    _node(panel, 0.0, row[None], root_value, len(children[None]) > 1)
    return panel.get_figure()


def _rows(children: dict[int | None, list[int]]) -> dict[int | None, float]:
    """Return the row of each node (None: root): leaves in order, other nodes between their first and last child."""
    row: dict[int | None, float] = {}
    leaves = 0

    def place(node: int | None) -> float:
        nonlocal leaves
        below = [place(child) for child in children[node]]
        if not below:
            leaves += 1
        row[node] = (below[0] + below[-1]) / 2 if below else leaves - 1.0
        return row[node]

    place(None)
    return row


def _node(panel: Axes, left: float, middle: float, value: float, branches: bool) -> None:
    width = 2.0 if branches else 0.6
    panel.add_patch(Rectangle((left, middle - 0.28), NODE, 0.56, fc="white", ec="black", lw=width, zorder=2))
    weight = "bold" if branches else "normal"
    panel.text(left + NODE / 2, middle, f"V {value:.3f}", ha="center", va="center", size=SIZE - 1, weight=weight)


def token_figure(
    tokens: list[list[str]], labels: list[str], chosen: dict[str, tuple[Tensor, Tensor]], columns: int = 2
) -> Figure:
    """Draw the completions once for each choice of tokens: chosen tokens bold in a box, the others grey.

    The box is solid where A > 0 and dashed where A < 0, and the darker the larger \\|A\\| is within the choice.

    Args:
        tokens: of B completions, as text. labels: of the completions.
        chosen: title -> (B, T) bool and (B, T) advantages.
    """
    margin = max(map(len, labels)) + 1
    width = margin + max(len("".join(row)) for row in tokens) + 3
    height = len(tokens) + 2
    lines = -(-len(chosen) // columns)
    panel = _panel(columns * width, lines * height, 0.2)
    for number, (title, (picked, advantages)) in enumerate(chosen.items()):
        left, top = number % columns * width, number // columns * height
        panel.text(left, top, title, va="center", size=SIZE + 1)
        strongest = max(float((advantages * picked).abs().max()), 1e-9)
        for row, words in enumerate(tokens, start=1):
            panel.text(left, top + row, labels[row - 1], va="center", family="monospace", size=SIZE)
            x = left + margin
            for t, word in enumerate(words):
                worth = float(advantages[row - 1, t]) if picked[row - 1, t] else None
                _token(panel, x, top + row, word, worth, strongest)
                x += len(word)
    return panel.get_figure()


def _token(panel: Axes, left: float, middle: float, word: str, advantage: float | None, strongest: float) -> None:
    if advantage is not None:
        shade = str(1 - DARKEST * abs(advantage) / strongest)
        kind = "--" if advantage < 0 else "-"
        box = Rectangle((left + 0.07, middle - 0.42), len(word) - 0.14, 0.84, fc=shade, ec="black", lw=0.7, ls=kind)
        panel.add_patch(box)
    weight, colour = ("normal", "0.5") if advantage is None else ("bold", "black")
    at = left + len(word) / 2
    panel.text(at, middle, word, ha="center", va="center", family="monospace", size=SIZE, weight=weight, color=colour)


def _panel(width: float, height: float, row: float) -> Axes:
    """Return an empty panel that fills a figure, x in characters and y in rows from the top."""
    figure = Figure(figsize=(width * UNIT, height * row), dpi=100)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(-0.5, width + 0.5), ylim=(height - 0.4, -0.6))
    panel.set_axis_off()
    return panel
