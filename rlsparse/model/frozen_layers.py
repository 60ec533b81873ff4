"""The frozen layers: the decoder layers below the first adapted one. Training never changes what they compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Capture:
    """Holds the output of the frozen layers in the latest forward pass.

    Attributes:
        hidden: (b, L, H).
    """

    hidden: Tensor


@contextmanager
def captured(decoder: Any, first: int) -> Iterator[Capture]:
    """Inside, each forward pass leaves what enters layer ``first`` in the capture."""
    capture = Capture()

    def keep(_: Any, args: tuple[Any, ...]) -> None:
        capture.hidden = args[0]

    handle = decoder.layers[first].register_forward_pre_hook(keep)
    try:
        yield capture
    finally:
        handle.remove()


@contextmanager
def starting_from(decoder: Any, first: int, hidden: Tensor) -> Iterator[None]:
    """Inside, the decoder starts at layer ``first`` with ``hidden`` (b, L, H), whatever it is given."""
    whole = decoder.layers
    decoder.layers = whole[first:]
    handle = decoder.layers[0].register_forward_pre_hook(lambda _, args: (hidden, *args[1:]))
    try:
        yield
    finally:
        handle.remove()
        decoder.layers = whole
