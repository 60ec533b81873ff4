"""The frozen layers: the decoder layers below the first adapted one. Training never changes their outputs."""

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
def captured(decoder: Any, first: int, capture: Capture) -> Iterator[None]:
    """Within the context, each forward pass stores the input of layer ``first`` in the capture."""

    def keep(_: Any, args: tuple[Any, ...]) -> None:
        capture.hidden = args[0]

    handle = decoder.layers[first].register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def starting_from(decoder: Any, first: int, hidden: Tensor) -> Iterator[None]:
    """Within the context, the decoder starts at layer ``first`` with the input ``hidden`` (b, L, H).

    The token ids that the decoder is called with have no effect.
    """
    all_layers = decoder.layers
    decoder.layers = all_layers[first:]
    handle = decoder.layers[0].register_forward_pre_hook(lambda _, args: (hidden, *args[1:]))
    try:
        yield
    finally:
        handle.remove()
        decoder.layers = all_layers
