"""Compare the linear layers of a decoding step in bfloat16 with int8 ones, in turns in one process, without a compiler.

An int8 layer has weights with a scale for each output, and inputs with a scale for each token, so that a completion
does not depend on the rows beside it. "Product" is its time where the inputs are quantized already.

python experiments/benchmarks/int8.py --model DIR
"""

import argparse
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor

ROUNDS = 6  # the first is not counted
REPEATS = 5
ROWS = (32, 64, 128)
JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
onednn: Any = torch.ops.onednn
mkldnn: Any = torch.ops.mkldnn


class Layer:
    """A linear layer of both kinds.

    oneDNN's product of unsigned inputs and signed weights is the fastest one of torch 2.15 on AVX512-VNNI.
    """

    def __init__(self, weight: Tensor) -> None:
        self.width = weight.shape[1]
        self._bfloat16 = mkldnn._reorder_linear_weight(weight.bfloat16())
        self._scales = weight.float().abs().amax(dim=1) / 127  # (out,)
        self._int8 = onednn.qlinear_prepack((weight.float() / self._scales[:, None]).round().to(torch.int8), None)
        self._zeros = torch.zeros(len(weight), dtype=torch.long)

    def bfloat16(self, x: Tensor) -> None:
        mkldnn._linear_pointwise(x, self._bfloat16, None, "none", [], "")

    def int8(self, x: Tensor) -> None:
        inputs, scale = quantized(x)
        self.product(inputs).mul_(scale)

    def product(self, x: Tensor) -> Tensor:
        out: Tensor = onednn.qlinear_pointwise(
            x, 1.0, 128, self._int8, self._scales, self._zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )
        return out


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x as uint8 around 128, and the scale of each token, (b, 1, 1)."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_(min=1e-20).mul_(1 / 127)
    return (x / scale).add_(128.5).to(torch.uint8), scale


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True, help="folder of SmolLM2")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    layers = [Layer(one) for one in matrices(load_file(f"{options.model}/model.safetensors"))]
    with torch.no_grad():
        table = [[rows, *measured(layers, rows)] for rows in ROWS]
    headers = ["rows", "bfloat16, ms", "int8, ms", "its product, ms"]
    print(tabulate(table, headers=headers, tablefmt="github", floatfmt=".1f"))


def matrices(weights: dict[str, Tensor]) -> Iterator[Tensor]:
    """Yield the matrices of the decoder layers as fused products have them: q, k and v in one, gate and up in one."""
    for layer in sorted({name.partition(".self_attn.")[0] for name in weights if ".self_attn." in name}):
        for modules in JOINED:
            ends = tuple(f".{module}.weight" for module in modules)
            yield torch.cat([w for name, w in weights.items() if name.startswith(f"{layer}.") and name.endswith(ends)])


def measured(layers: list[Layer], rows: int) -> list[float]:
    """Return the milliseconds of all layers of a step, in turns: bfloat16, int8, and int8 without its quantization."""
    inputs = {width: torch.randn(rows, 1, width).bfloat16() for width in {layer.width for layer in layers}}
    ready = {width: quantized(x)[0] for width, x in inputs.items()}
    kinds = ((Layer.bfloat16, inputs), (Layer.int8, inputs), (Layer.product, ready))
    milliseconds: list[list[float]] = [[] for _ in kinds]
    for _ in range(ROUNDS):
        for (run, given), found in zip(kinds, milliseconds, strict=True):
            start = perf_counter()
            for _ in range(REPEATS):
                for layer in layers:
                    run(layer, given[layer.width])
            found.append((perf_counter() - start) / REPEATS * 1e3)
    return [median(found[1:]) for found in milliseconds]


if __name__ == "__main__":
    main()
