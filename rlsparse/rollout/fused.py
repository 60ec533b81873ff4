"""The forward pass of decoders of the Llama family as a few products for each layer, for sampling.

The modules of transformers do many small operations for each token. Here queries, keys and values are one product, and
so are the two inputs of the feed-forward block; residuals are added inside the products where the matrix
library can do it. The functions are those of the modules up to rounding, which a trial compares before the first use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlsparse.model.frozen_layers import Capture
from rlsparse.model.policy import Policy
from rlsparse.rollout.cache import GroupCache
from rlsparse.rollout.prepacked import can_prepack, packed_product, packed_sum

FAMILY = ("llama", "mistral", "qwen2", "qwen3")  # model types whose layers compute what ``FusedLayer`` does
SMALL = 2**18  # numbers of a product whose weights are copied for speed alone
Product = Callable[[Tensor], Tensor]
ProductAdded = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FusedLayer:
    """A decoder layer.

    Attributes:
        place: its number in the cache.
        before_attention, before_mlp: norms, (b, L, H) → the same shape.
        qkv: (b, L, H) → queries, keys and values of all heads, in this order, (b, L, (heads + 2 kv) · d).
        queries, keys: norms of single heads; None where the model has none.
        out, down: x, residual → residual + W x.
        gate_up: (b, L, H) → gate and up, in this order, (b, L, 2 F).
        activation: of the gate, (b, L, F) → the same shape.
    """

    place: int
    before_attention: Product
    qkv: Product
    queries: Product | None
    keys: Product | None
    out: ProductAdded
    before_mlp: Product
    gate_up: Product
    activation: Product
    down: ProductAdded


class FusedDecoder:
    """A causal language model that reads tokens into a ``GroupCache`` and returns logits."""

    def __init__(self, causal_lm: Any, copies: bool, first: int, capture: Capture | None) -> None:
        """Take over the weights as they are now.

        Args:
            causal_lm: of a type in ``FAMILY``; its adapters are merged.
            copies: whether copies of the weights may be made, laid out for few rows.
            first: layer whose input ``capture`` gets.

        Raises:
            AttributeError: a module is of another kind.
        """
        self._first, self._capture = first, capture
        decoder, config = causal_lm.get_decoder(), causal_lm.config.get_text_config()
        make = _Products(copies)
        self._heads, self._kv = config.num_attention_heads, config.num_key_value_heads
        self._embed, self._rotary = decoder.embed_tokens, decoder.rotary_emb
        self._layers = [make.layer(layer) for layer in decoder.layers]
        self._scaling = float(decoder.layers[0].self_attn.scaling)
        self._norm, self._head = _norm(decoder.norm), make.product([causal_lm.lm_head])

    def __call__(self, ids: Tensor, positions: Tensor, cache: GroupCache) -> Tensor:
        """Return the logits after the last token of each row, (b, V).

        Args:
            ids, positions: (b, L).
        """
        hidden: Tensor = self._embed(ids)  # (b, L, H)
        turn = _Rotation.of(*self._rotary(hidden, positions))
        for number, layer in enumerate(self._layers):
            if self._capture is not None and number == self._first:
                self._capture.hidden = hidden
            hidden = layer.out(self._attend(layer, hidden, turn, cache), hidden)
            gate, up = layer.gate_up(layer.before_mlp(hidden)).chunk(2, dim=2)  # (b, L, F) each
            hidden = layer.down(layer.activation(gate) * up, hidden)
        return self._head(self._norm(hidden[:, -1]))

    def _attend(self, layer: FusedLayer, hidden: Tensor, turn: "_Rotation", cache: GroupCache) -> Tensor:
        """Return the attention output of a layer before its last product, (b, L, heads · d)."""
        b, L, _ = hidden.shape
        heads, kv = self._heads, self._kv
        qkv = layer.qkv(layer.before_attention(hidden)).view(b, L, heads + 2 * kv, -1)  # (b, L, heads + 2 kv, d)
        qk, value = qkv[:, :, : heads + kv], qkv[:, :, heads + kv :]
        if layer.queries is not None and layer.keys is not None:
            qk = torch.cat([layer.queries(qk[:, :, :heads]), layer.keys(qk[:, :, heads:])], dim=2)
        qk = turn(qk).transpose(1, 2)  # (b, heads + kv, L, d)
        query, key = qk[:, :heads] * self._scaling, qk[:, heads:]
        return cache.attend(layer.place, query, key, value.transpose(1, 2)).reshape(b, L, -1)


@dataclass(frozen=True)
class _Rotation:
    """Turns queries and keys by their positions (RoPE, Su et al. 2021, 2104.09864), both halves of a head together.

    Attributes:
        cos, sin: (b, L, 1, d); the first half of sin has the other sign.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> "_Rotation":
        """Return the rotation by the angles of a model, (b, L, d) each."""
        half = sin.shape[2] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=2)  # (b, L, d)
        return cls(cos[:, :, None], signed[:, :, None])

    def __call__(self, x: Tensor) -> Tensor:
        """Return the heads x, (b, L, n, d), turned."""
        half = x.shape[3] // 2
        swapped = torch.cat([x[..., half:], x[..., :half]], dim=3)  # (b, L, n, d)
        return (x * self.cos).addcmul_(swapped, self.sin)


def fused(policy: Policy, copies: bool, capture: Capture | None = None) -> FusedDecoder | None:
    """Return the fused decoder of a policy; None where its layers are of another kind, or have an adapter beside them.

    Args:
        copies: whether copies of the weights may be made.
        capture: gets the input of the first adapted layer in each pass; None where nobody needs it.
    """
    if policy.causal_lm.config.get_text_config().model_type not in FAMILY:
        return None
    try:
        return FusedDecoder(policy.causal_lm, copies, policy.first_adapted, capture)
    except AttributeError:  # a module that this class knows is missing
        return None


class _Products:
    """Makes the products of a model."""

    def __init__(self, copies: bool) -> None:
        self._copies, self._prepacks = copies, copies and can_prepack()

    def layer(self, layer: Any) -> FusedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        queries, keys = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return FusedLayer(
            place=attention.layer_idx,
            before_attention=_norm(layer.input_layernorm),
            qkv=self.product([attention.q_proj, attention.k_proj, attention.v_proj]),
            queries=None if queries is None else _norm(queries),
            keys=None if keys is None else _norm(keys),
            out=self.added(attention.o_proj),
            before_mlp=_norm(layer.post_attention_layernorm),
            gate_up=self.product([mlp.gate_proj, mlp.up_proj]),
            activation=mlp.act_fn,
            down=self.added(mlp.down_proj),
        )

    def product(self, modules: Sequence[Any]) -> Product:
        """Return the function x → the outputs of some linear modules one after the other."""
        linears = [_plain(module) for module in modules]
        if len(linears) > 1 and not self._may_copy(sum(one.weight.numel() for one in linears), linears[0].weight):
            return lambda x: torch.cat([F.linear(x, one.weight, one.bias) for one in linears], dim=-1)
        weight, bias = _joined([one.weight for one in linears]), None
        if any(one.bias is not None for one in linears):
            zeros = [one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in linears]
            bias = _joined(zeros)
        if self._can_prepack(weight):
            return packed_product(weight, bias)
        return partial(F.linear, weight=weight, bias=bias)

    def _may_copy(self, numbers: int, weight: Tensor) -> bool:
        """Return whether several weights may be joined in a copy: for its layout, or where it is small."""
        return self._copies and weight.device.type == "cpu" and (self._can_prepack(weight) or numbers <= SMALL)

    def added(self, module: Any) -> ProductAdded:
        """Return the function x, residual → residual + the output of a linear module."""
        linear = _plain(module)
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        if self._can_prepack(weight):
            return packed_sum(weight, bias)
        return lambda x, residual: F.linear(x, weight, bias).add_(residual)

    def _can_prepack(self, weight: Tensor) -> bool:
        return self._prepacks and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.cat([one.detach() for one in tensors])


def _plain(module: Any) -> nn.Linear:
    """Return the linear module that computes what a module does.

    Raises:
        AttributeError: an adapter is beside its weights, or it is no linear module.
    """
    if getattr(module, "merged_adapters", None):
        module = module.get_base_layer()
    if type(module) is not nn.Linear or "forward" in vars(module):
        raise AttributeError(f"{type(module).__name__} is no plain linear module")
    return module


def _norm(module: Any) -> Product:
    """Return an RMS norm.

    Raises:
        AttributeError: it is another norm.
    """
    weight = module.weight.detach()
    return partial(F.rms_norm, normalized_shape=tuple(weight.shape), weight=weight, eps=module.variance_epsilon)
