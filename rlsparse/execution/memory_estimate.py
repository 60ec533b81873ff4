"""An estimate of the memory and the disk space of a run, from its config and the modules of its model without weights.

Activations are not part of it: they depend on the architecture and on ``train.max_tokens_per_microbatch``, which is
halved where they do not fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rlsparse.algorithm import Algorithm
from rlsparse.components.task import Task, load_task
from rlsparse.config.schema import Config, ConfigError, ModelConfig
from rlsparse.model.fused_head import CHUNK
from rlsparse.model.loading import DTYPES, outline
from rlsparse.model.policy import Policy, encode_prompt
from rlsparse.model.quantization import INT8, NF4, OFF, is_quantized
from rlsparse.rollout.prepacked import can_prepack
from rlsparse.storage.checkpoints import KEPT
from rlsparse.training.benchmarks import build_benchmarks

FLOAT32 = 4  # bytes
MOMENTS = 2  # of AdamW, for each trained parameter
GIB = 2**30  # bytes
PROCESS = GIB  # resident memory of Python with torch, transformers and peft (measured: 0.97 GiB), part of a CPU's peak
# bytes of a quantized weight; 64 of nf4 share a scale of 1 byte, and 256 scales one of 4 bytes
QUANTIZED = {NF4: 0.5 + 1 / 64 + 4 / (64 * 256), INT8: 1.0}
LONG_QUESTIONS = 8  # rows with the longest questions, of which one is taken to have the longest prompt


@dataclass(frozen=True)
class MemoryEstimate:
    """The peak memory of a run without activations, and the disk space of what it writes, in bytes.

    Attributes:
        parts: what is in memory at the peak, by name.
        export: the exported adapter or model.
        checkpoints: the checkpoints that are kept until the run is finished.
    """

    parts: Mapping[str, int]
    export: int
    checkpoints: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def listed(self) -> str:
        """Return the parts as text."""
        return ", ".join(f"{name} {size(count)}" for name, count in self.parts.items())

    def __str__(self) -> str:
        return f"about {size(self.total)} and activations ({self.listed()})"


def size(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / GIB:.2f} GiB" if count > GIB / 10 else f"{1024 * count / GIB:.2f} MiB"


@dataclass
class MemoryEstimator:
    """Estimates the memory of runs. What several runs share, such as a model without weights, is made once."""

    _outlines: dict[str, Policy] = field(default_factory=dict)
    _trained: dict[str, int | None] = field(default_factory=dict)
    _longest: dict[str, int] = field(default_factory=dict)

    def __call__(self, config: Config, device: str, longest: int | None = None) -> MemoryEstimate | None:
        """Return the estimate of a run that the preflight has accepted.

        Args:
            device: kind of device that it is on, such as ``cuda``.
            longest: tokens of its longest prompt; None to look for it.

        Returns:
            None where the adapter cannot be put on a model without weights.
        """
        algorithm = Algorithm.build(config)
        policy = self._outline(config.model)
        trained = self._count(config, algorithm, policy)
        if trained is None:
            return None
        if longest is None:
            longest = self._longest_prompt(config, algorithm.task, policy)
        return _Run(config, algorithm, policy, trained, longest, device).estimate()

    def _outline(self, model: ModelConfig) -> Policy:
        key = repr(model)
        if key not in self._outlines:
            self._outlines[key] = outline(model)
        return self._outlines[key]

    def _count(self, config: Config, algorithm: Algorithm, policy: Policy) -> int | None:
        """Return the number of trained parameters; None where it cannot be found without weights."""
        key = repr((config.model, algorithm.adapter, config.lora_rank))
        if key not in self._trained:
            try:
                self._trained[key] = algorithm.adapter.count(policy, config.lora_rank)
            except ConfigError:
                raise
            except Exception:  # an adapter may look at the weights, of which there are none
                self._trained[key] = None
        return self._trained[key]

    def _longest_prompt(self, config: Config, task: Task, policy: Policy) -> int:
        key = repr((config.model, task, config.eval.max_rows))
        if key not in self._longest:
            rows = load_task(task)
            asked = [*rows.train, *rows.test[: config.eval.max_rows]]
            asked.sort(key=lambda one: len(one.question) + sum(len(text) for _, text in one.context), reverse=True)
            some = asked[:LONG_QUESTIONS]
            lengths = [len(encode_prompt(policy, one, task.prompt_text(one.question)).ids) for one in some]
            self._longest[key] = max(lengths)
        return self._longest[key]


@dataclass(frozen=True)
class _Sampled:
    """The completions that are sampled together.

    Attributes:
        prompts: number of prompts. rows: number of completions.
        prompt: tokens of a prompt. completion: tokens of a completion, each the most there can be.
    """

    prompts: int
    rows: int
    prompt: int
    completion: int


@dataclass(frozen=True)
class _Run:
    """A run, and the numbers that its memory depends on.

    Attributes:
        policy: without weights.
        trained: number of trained parameters.
        longest: tokens of the longest prompt.
        device: kind of device.
    """

    config: Config
    algorithm: Algorithm
    policy: Policy
    trained: int
    longest: int
    device: str

    def estimate(self) -> MemoryEstimate:
        """Return what is in memory all the time together with the stage that needs most beside it."""
        largest = max(self._stages(), key=lambda parts: sum(parts.values()))
        parts = {**self._held(), **largest}
        values = self.trained * FLOAT32
        export = self._weights() if self._is_full else values
        checkpoint = values * (1 + MOMENTS + self._snapshots(while_used=False))
        return MemoryEstimate({name: count for name, count in parts.items() if count}, export, KEPT * checkpoint)

    def _held(self) -> dict[str, int]:
        """Return what is in memory from the first optimizer step to the end."""
        return {
            "Python and its libraries": PROCESS if self.device == "cpu" else 0,
            "weights": self._weights(),
            f"{self.trained / 1e6:.2f} M trained parameters with gradients and moments": self._trained_bytes(),
            "weights before training": self.trained * self._size if self._keeps_base else 0,
            "trained parameters of earlier steps": self.trained * FLOAT32 * self._snapshots(while_used=True),
            "states of frozen layers": self._frozen_states(),
        }

    def _stages(self) -> Iterator[dict[str, int]]:
        """Yield what each stage of a step needs beside that."""
        sampled = list(self._sampled())
        cache = max(sampled, key=self._cache)
        rows = max(one.rows for one in sampled)
        yield {
            "copies of weights while sampling": self._merged() + self._prepacked(),
            f"keys and values of {cache.rows} completions": self._cache(cache),
            f"logits of {rows} tokens": rows * self.policy.vocabulary * (self._size + 2 * FLOAT32),
        }
        tokens = self.config.train.max_tokens_per_microbatch * self.policy.vocabulary
        # packed, logits are computed in chunks; else they, their log-softmax and its gradient are there
        logits = min(tokens, CHUNK) if self.config.train.packing == "auto" else 2 * tokens
        yield {"logits of a microbatch": logits * (self._size + FLOAT32)}
        if self.device == "cuda":  # AdamW treats all parameters at once there, with a root of all second moments
            yield {"workspace of AdamW": self.trained * FLOAT32}
        yield {"a checkpoint while it is saved": self.trained * FLOAT32}

    @property
    def _is_full(self) -> bool:
        """Whether the trained parameters are weights of the model."""
        return self.algorithm.adapter.exports_model

    @property
    def _size(self) -> int:
        """Bytes of a weight that is not quantized."""
        auto = DTYPES["bfloat16"] if self._is_quantized else self._model.dtype
        return int(DTYPES.get(self.config.dtype, auto).itemsize)

    @property
    def _quantization(self) -> str | None:
        """Return nf4 or int8; None where the weights are not quantized."""
        if self.config.model.quantization != OFF:
            return self.config.model.quantization
        if not is_quantized(self._model):
            return None
        about = self._model.config.quantization_config
        bits_8 = about.get("load_in_8bit") if isinstance(about, dict) else about.load_in_8bit
        return INT8 if bits_8 else NF4

    @property
    def _is_quantized(self) -> bool:
        return self._quantization is not None

    @property
    def _keeps_base(self) -> bool:
        """Whether there is a second copy of the weights that are trained; see ``TrainedAdapter.keep_base``."""
        return self._is_full and (self.algorithm.kl.needs_base or self.algorithm.objective.l2 > 0)

    def _weights(self) -> int:
        count = sum(one.numel() for one in self._model.parameters())
        if self._quantization is None:
            return count * self._size
        quantized = self._linear_weights(head=False)
        return round(quantized * QUANTIZED[self._quantization]) + (count - quantized) * self._size

    def _trained_bytes(self) -> int:
        """Return the size of trained parameters; weights that are float32 themselves have no other values beside."""
        values = 0 if self._is_full and self._size >= FLOAT32 else 1
        return self.trained * FLOAT32 * (values + 1 + MOMENTS)

    def _snapshots(self, while_used: bool) -> int:
        """Return the number of copies of the trained parameters for the policies of earlier steps.

        Args:
            while_used: count also what is held while one of them is in the model, or is made.
        """
        stale, update = self.config.train.staleness, self.algorithm.kl.reference_update
        past = stale + 1 if stale > 0 else 0
        copies = past + (update is not None)
        if not while_used or copies == 0:
            return copies
        return copies + (2 if update is not None and update.share < 1 else 1)

    def _merged(self) -> int:
        """Return the size of the weights that are copied so that the adapter can be merged into them."""
        adapter, engine = self.algorithm.adapter, self.algorithm.rollout
        if self._is_quantized:
            return self._linear_weights(head=False) * self._size if self.algorithm.rollout.dequantizes else 0
        if self._is_full or not engine.merges:
            return 0
        modules: list[Any] = [self._model.get_submodule(name) for name in adapter.adapted_modules(self._model)]
        return sum(one.weight.numel() for one in modules) * self._size

    def _prepacked(self) -> int:
        """Return the size of the copies of weights in the layout of the matrix library."""
        prepacks = self.algorithm.rollout.prepacks
        if not prepacks or self.device != "cpu" or self._size != DTYPES["bfloat16"].itemsize or not can_prepack():
            return 0
        plain = not self._is_quantized or self.algorithm.rollout.dequantizes
        return (self._linear_weights(head=True) - (0 if plain else self._linear_weights(head=False))) * self._size

    def _sampled(self) -> Iterator[_Sampled]:
        """Yield the largest requests: of training, and of an evaluation, greedy and sampled."""
        train, evaluation, replay = self.config.train, self.config.eval, self.algorithm.replay
        longest = self.algorithm.rollout.max_new_tokens
        groups = train.prompts_per_step * max(1, replay.successes + replay.failures)
        yield self._together(groups, train.group_size, longest)
        held_out = [(evaluation.max_rows, longest)]
        for task in build_benchmarks(evaluation).values():
            held_out.append((evaluation.benchmark_rows or evaluation.batch_rows, task.max_new_tokens))
        for rows, tokens in held_out:
            tokens = evaluation.max_new_tokens or tokens
            yield self._together(min(rows, evaluation.batch_rows), 1, tokens)
            yield self._together(
                min(rows, max(1, evaluation.batch_rows // evaluation.samples)), evaluation.samples, tokens
            )

    def _together(self, prompts: int, group_size: int, tokens: int) -> _Sampled:
        """Return what is sampled at a time of a request; see ``RolloutEngine``."""
        most = self.algorithm.rollout.max_rows
        prompts = min(prompts, max(1, most // group_size))
        longest = min(self.longest, self.policy.context - tokens)  # longer prompts are left out
        return _Sampled(prompts, min(prompts * group_size, most), longest, tokens)

    def _cache(self, sampled: _Sampled) -> int:
        """Return the size of keys and values here; some engines repeat those of a prompt for each completion."""
        if not self.algorithm.rollout.uses_policy:
            return 0
        text = self._model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        prompts = sampled.prompts if self.algorithm.rollout.shares_prompts else sampled.rows
        tokens = prompts * sampled.prompt + sampled.rows * sampled.completion
        return int(tokens * self.policy.depth * 2 * heads * head * self._size)

    def _frozen_states(self) -> int:
        """Return the size of the outputs of the layers below the first adapted one, which training starts from."""
        if self.algorithm.adapter.first_adapted(self._model) == 0:
            return 0
        if self.config.train.packing == "off" or not self.algorithm.rollout.keeps_states:
            return 0
        train, width = self.config.train, self._model.config.get_text_config().hidden_size
        completions = train.group_size * self.algorithm.rollout.max_new_tokens
        return int(train.prompts_per_step * (self.longest + completions) * width * self._size)

    @property
    def _model(self) -> Any:
        return self.policy.model

    def _linear_weights(self, head: bool) -> int:
        """Return the number of weights of all linear modules, with the output head or without."""
        weights = [module.weight for module in self._model.modules() if isinstance(module, nn.Linear)]
        without: Tensor = self._model.get_output_embeddings().weight
        return sum(one.numel() for one in weights if head or one is not without)
