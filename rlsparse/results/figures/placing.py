"""Places of labels in a figure, so that none hides another. All functions are pure."""

import numpy as np

from rlsparse.results.crossed import Floats

ANGLES = np.deg2rad([45, 135, -45, -135, 0, 180, 90, -90])  # the order in which free places next to a point are tried
RADII = (1.0, 1.6, 2.4, 3.4)  # distances of a label from its point, as multiples of the smallest one


def spread(wanted: Floats, heights: Floats, room: float) -> Floats:
    """Return the positions of labels on a line that are closest to the wanted ones and do not overlap.

    It minimises the sum of squared distances to the wanted positions under the condition that labels neither overlap
    nor change their order nor leave [0, room]: an isotonic regression between bounds, solved by pooling adjacent
    violators (Barlow and Brunk 1972). Labels that do not fit into the room together begin at 0 and leave it at the end.

    Args:
        wanted: centres, shape (n,) with n ≥ 1.
        heights: of the labels, shape (n,), in the same unit.

    Returns:
        Centres, shape (n,).
    """
    order = np.argsort(wanted, kind="stable")
    size = heights[order]  # (n,)
    offsets = np.concatenate([[0.0], np.cumsum((size[:-1] + size[1:]) / 2)])  # (n,): from the first centre
    blocks: list[tuple[float, int]] = []  # mean and number of labels that touch each other
    for target in wanted[order] - offsets:
        mean, count = float(target), 1
        while blocks and blocks[-1][0] > mean:
            before, more = blocks.pop()
            mean, count = (before * more + mean * count) / (more + count), more + count
        blocks.append((mean, count))
    free = np.concatenate([np.full(count, mean) for mean, count in blocks])  # (n,)
    first, last = size[0] / 2, room - size[-1] / 2 - offsets[-1]
    centres = np.empty(len(order))
    centres[order] = np.clip(free, first, max(first, last)) + offsets
    return centres


def beside(points: Floats, sizes: Floats, room: tuple[float, float], gap: float) -> Floats:
    """Return the centres of labels next to points, so that they hide neither points nor other labels where possible.

    Each label takes the place with the smallest hidden area, of the places around its point at growing distances.

    Args:
        points: x and y, shape (n, 2).
        sizes: width and height of the labels, shape (m, 2) with m ≤ n, in the same unit; they belong to the first m
            points.
        room: width and height of the axes; their lower left corner is at 0, 0.
        gap: the smallest distance of a label from its point; points have this size.

    Returns:
        Shape (m, 2).
    """
    directions = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # (8, 2)
    taken = list(np.concatenate([points - gap / 2, points + gap / 2], axis=1))  # of (4,): left, bottom, right, top
    axes = np.array([[0.0, 0.0, *room]])  # (1, 4)
    centres = np.empty_like(sizes)
    for i, size in enumerate(sizes):
        places = np.concatenate([points[i] + directions * (gap * radius + size / 2) for radius in RADII])  # (32, 2)
        boxes = np.concatenate([places - size / 2, places + size / 2], axis=1)  # (32, 4)
        hidden = _common_area(boxes, np.array(taken)).sum(axis=1)  # (32,)
        outside = size.prod() - _common_area(boxes, axes)[:, 0]  # (32,)
        best = int(np.argmin(np.round(hidden + outside, 6)))  # the first of equal ones, hence the nearest
        centres[i] = places[best]
        taken.append(boxes[best])
    return centres


def _common_area(boxes: Floats, others: Floats) -> Floats:
    """Return the area that boxes, shape (n, 4), have in common with others, shape (m, 4): shape (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])  # (n, m, 2)
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])  # (n, m, 2)
    return np.asarray(np.clip(high - low, 0, None).prod(axis=2))
