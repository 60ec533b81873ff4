"""The adapters of peft on linear modules: any of its methods, with its own keys."""

import copy
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from rlsparse.components.adapter.base import TrainedAdapter, pull_to_start
from rlsparse.components.adapter.peft_settings import (
    FAST_PISSA,
    SEEDS,
    START_KEY,
    blamed,
    config_class,
    converted,
    for_quantized,
    keys_of_method,
    method_problem,
    refused_values,
)
from rlsparse.components.adapter.targets import Targeted
from rlsparse.components.component import Digest, Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.adapters import EXACT, merged, merging_obstacle, weights_kept
from rlsparse.model.integrity import LEAK, MERGE, probe
from rlsparse.model.policy import Policy
from rlsparse.model.quantization import is_quantized

SUM_OF_STARTS = {"pissa", "olora"}  # start values that peft subtracts from the weights of the model
NOISE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # deviations of the noise of ``perturbed``; the first seen is taken
FIRST = [1, 2]  # the tokens that the sequences of ``probe`` begin with
SEEN = 0.25  # mean change of the logits by that noise, as a share of their spread
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeftMethod(Targeted):
    """A method of peft on linear modules.

    Attributes:
        name: its label in tables; None is the method in lower case.
        method: its name in peft, such as ``LOHA``.
        settings: the keys of its configuration class in peft. Keys that are left out have peft's defaults, except
            seeds: these derive from the seed of the run.
        lr: the default of ``train.lr``.
    """

    name: str | None
    method: str
    settings: dict[str, Any]
    lr: Annotated[float, Range(0)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        wrong = self.method_problem()
        if wrong is not None:
            yield wrong
            return
        values, found = converted(self.method, self.settings)
        yield from found or self.setting_problems(values)

    def method_problem(self) -> str | None:
        """Return what is wrong with ``method``."""
        if self.method == "ADALORA":
            return "method=ADALORA: its ranks follow a schedule over the training steps; take adapter=adalora"
        return method_problem(self.method)

    def setting_problems(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield what is wrong with settings whose keys and types are right."""
        yield from refused_values(self.method, values)
        if self.starts_from_weights and (values.get("use_dora") or values.get("lora_bias")):
            yield (
                f"settings.{START_KEY}={values[START_KEY]}: is for plain LoRA; leave out settings.use_dora and "
                "settings.lora_bias"
            )

    @property
    def label(self) -> str:
        return self.name or self.method.lower()

    @property
    def uses_lora_rank(self) -> bool:
        return False  # where a yaml file has the rank from there, it is in the settings

    @property
    def starts_from_weights(self) -> bool:
        """Whether peft would subtract the start values from the weights of the model; see ``Append``."""
        start = str(self.settings.get(START_KEY))
        return self.method == "LORA" and (start in SUM_OF_STARTS or FAST_PISSA.fullmatch(start) is not None)

    @property
    def exports_lora(self) -> bool:
        others = ("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens")
        return self.method == "LORA" and not any(self.settings.get(key) for key in others)

    @property
    def quantization_obstacle(self) -> str | None:
        """Return why the adapter cannot be put on quantized weights; None where it can."""
        if not for_quantized(self.method):
            return f"peft has no layers of {self.method} for them"
        if self.starts_from_weights or self.settings.get(START_KEY) == "mica":
            return f"adapter.settings.{START_KEY}={self.settings[START_KEY]} takes start values from them"
        return None

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the keys without the label and without ``lr``, which only feeds ``train.lr``."""
        return {key: value for key, value in super().identity(digest).items() if key not in ("name", "lr")}

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        self.adapted_modules(model)
        self.check_ranks(model)
        self._try_without_weights(model)

    def check_ranks(self, model: nn.Module) -> None:
        """Refuse a rank that the adapted modules do not allow.

        Raises:
            ConfigError: key, rank and the largest one.
        """
        if self.method != "LORA" or "r" not in self.settings:
            return
        rank, start = self.settings["r"], self.settings.get(START_KEY)
        self.check_rank(model, rank, "adapter.settings.r")
        weights: list[Any] = [model.get_submodule(name).weight for name in self.adapted_modules(model)]
        least = min(min(weight.shape) for weight in weights)
        if isinstance(start, str) and start != "gaussian" and rank > least:
            raise ConfigError(
                f"adapter.settings.r={rank}: with adapter.settings.{START_KEY}={start} it can be at most the width of "
                f"the narrowest adapted module, {least}; lower it"
            )

    def count(self, policy: Policy, rank: int) -> int:
        model = self._put_on(without_weights(policy.model))
        return sum(one.numel() for name, one in model.named_parameters() if one.requires_grad and self.trains(name))

    def attach(self, policy: Policy, rank: int, seed: int) -> "PeftParameters":
        return PeftParameters(policy, self, seed)

    def peft_config(self, model: nn.Module, seed: int) -> Any:
        """Return the configuration for peft.

        Args:
            model: the model that the adapter is put on.
            seed: of its random start.
        """
        keys = keys_of_method(self.method)
        values, _ = converted(self.method, self.settings)
        seeds = {key: seed % 2**31 for key in SEEDS if key in keys and values.get(key) is None}
        return config_class(self.method)(
            **{**self.schedule_values(), **values, **seeds, "task_type": "CAUSAL_LM", **self._places(model, keys)}
        )

    def schedule_values(self) -> dict[str, Any]:
        """Return the keys of peft that depend on the training steps; a subclass may have some."""
        return {}

    def trains(self, name: str) -> bool:
        """Return whether a parameter of the adapter is trained, by its name."""
        return True

    def _places(self, model: nn.Module, keys: set[str]) -> dict[str, Any]:
        """Return the keys of peft for the modules that get an adapter."""
        names = self.target_names(model)
        if self.layers == "all":
            return {"target_modules": names}
        layers = self.target_layers(model)
        if "layers_to_transform" in keys:
            return {"target_modules": names, "layers_to_transform": layers}
        numbers, ends = "|".join(map(str, layers)), "|".join(map(re.escape, names))
        return {"target_modules": rf".*\.layers\.({numbers})\.(.*\.)?({ends})"}

    def _try_without_weights(self, model: nn.Module) -> None:
        """Put the adapter on a copy of the modules without weights, and refuse what peft refuses.

        Raises:
            ConfigError: peft cannot put the adapter on these modules, or the model does not run with it.
        """
        bare = without_weights(model)
        runs = _error_of(partial(_run_on_meta, bare)) is None
        error = _error_of(partial(self._put_on, bare))
        if isinstance(error, RuntimeError):  # of torch: an operation that needs the values of the weights
            return
        if error is None and runs:
            error = _error_of(partial(_run_on_meta, bare))
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                return
        if error is not None:
            raise ConfigError(f"adapter.{blamed(self.method, self.settings, error)}") from error

    def _put_on(self, bare: nn.Module) -> Any:
        """Return the peft model of modules without weights, with other start values than those of the weights."""
        from peft import get_peft_model

        peft_config = self.peft_config(bare, 0)
        if self.starts_from_weights:
            setattr(peft_config, START_KEY, True)
        with torch.random.fork_rng(devices=[]):
            return get_peft_model(cast(Any, bare), peft_config)


def without_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose tensors have shapes alone."""
    return copy.deepcopy(model, {id(one): _on_meta(one) for one in (*model.parameters(), *model.buffers())})


def _on_meta(tensor: Tensor) -> Tensor:
    other = tensor.detach().to("meta")
    return nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other


def _run_on_meta(model: nn.Module) -> None:
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 3, dtype=torch.long, device="meta"), use_cache=False)


def _error_of(attempt: Callable[[], Any]) -> Exception | None:
    try:
        attempt()
    except Exception as error:  # of any library
        return error
    return None


class Append(nn.Module):
    """Replaces a matrix of LoRA by itself and constant components after them, as a parametrization of torch.

    PiSSA and OLoRA start at s·B₀A₀, a part of the weight W, and train W − s·B₀A₀ + s·BA. peft subtracts s·B₀A₀ from W;
    here W stays as it is, and −s·B₀A₀ is a constant part of the adapter. Without the adapter the model is then the base
    model, which the KL term and the next run need; W is not rounded; and the exported LoRA fits the base model.
    """

    constant: Tensor

    def __init__(self, constant: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("constant", constant.detach().clone())

    def forward(self, matrix: Tensor) -> Tensor:
        return torch.cat([matrix, self.constant], dim=self.dim)


class PeftParameters(TrainedAdapter):
    """The parameters of a method of peft in the model of a policy, in float32 for any dtype of the model.

    Attributes:
        layers: the adapted layers of peft by module name.
        budget: sum of the ranks where the method has LoRA matrices; else None.
    """

    def __init__(self, policy: Policy, config: PeftMethod, seed: int) -> None:
        """Put the adapter into ``policy.model``, which becomes a peft model.

        Raises:
            ConfigError: peft cannot put it on this model, or it would change the weights of the model.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._config = config
        modules = [policy.model.get_submodule(name) for name in config.adapted_modules(policy.model)]
        first = config.first_adapted(policy.model)
        before, sums = probe(policy.model), _sums(modules)
        tensors = {id(one) for one in (*policy.model.parameters(), *policy.model.buffers())}  # of the base model
        self.model = policy.model = _peft_model(policy, config, modules, seed)
        self.layers: dict[str, Any] = {
            name.removeprefix("base_model.model."): module
            for name, module in self.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        for layer in self.layers.values():
            layer.cast_input_dtype_enabled = True  # which many layers of peft lack; the packed path turns it off
            if config.starts_from_weights:
                _subtract_start(layer)
        for name, one in self.model.named_parameters():
            one.requires_grad_(one.requires_grad and config.trains(name))
        self._trained = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self._constant = {
            name: one
            for name, one in (*self.model.named_parameters(), *self.model.named_buffers())
            if id(one) not in tensors and name not in self._trained
        }
        self._start: dict[str, Tensor] = {}
        for parameter in self._trained.values():
            parameter.data = parameter.data.float()
        if _sums(modules) != sums:
            raise ConfigError(
                f"adapter.method={config.method}: with adapter.settings={config.settings} peft changes the weights of "
                "the model, so that it could not be used without the adapter; take other settings"
            )
        self.budget = sum(self.ranks().values()) or None
        policy.first_adapted, policy.reference = first, self.model.disable_adapter
        policy.export_adapter = self.export if config.exports_lora else None
        self._warn_of_other_start(before)
        self._noise = self._seen_noise(before)
        self._refuse_wrong_model(before)
        policy.merged = self._merged()

    def parameters(self) -> list[nn.Parameter]:
        return list(self._trained.values())

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        optimizer = super().optimizer(lr, weight_decay)
        for group in optimizer.param_groups:
            group["l2"] = False  # see ``penalty``
        return optimizer

    def penalty(self, l2: float) -> float:
        """Add the gradient of l2 · Σ(θ − θ₀)² and return that term, with θ₀ the start values.

        Σθ² would pull parameters to 0 whose neutral value is another one, such as the scales of IA³ (1) and the
        magnitudes of DoRA.
        """
        return pull_to_start(self.parameters(), list(self._start.values()), l2) if l2 > 0 else 0.0

    def keep_start(self) -> None:
        self._start = {name: one.detach().clone() for name, one in self._trained.items()}

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        with self._with_noise(self._noise):
            yield

    def ranks(self) -> dict[str, int]:
        return {name: layer.r["default"] for name, layer in self.layers.items() if hasattr(layer, "lora_A")}

    def state(self) -> dict[str, Tensor]:
        """Return copies of the trained parameters, and of what attaching would make anew from seed and weights.

        The latter may differ between machines where it comes from a decomposition of the weights.
        """
        return {name: one.detach().clone() for name, one in self._tensors().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        own = self._tensors()
        if {name: one.shape for name, one in state.items()} != {name: one.shape for name, one in own.items()}:
            raise ValueError("the saved adapter does not match: it belongs to other modules or another kind of adapter")
        for name, one in own.items():
            one.copy_(state[name])

    def export(self, folder: Path) -> None:
        """Write the adapter in the format of peft; PiSSA and OLoRA as a LoRA on the unchanged base model."""
        if not self._config.starts_from_weights:
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            return
        matrices = {
            f"base_model.model.{name}.{part}.default.weight": getattr(layer, part)["default"].weight.detach()
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }
        with self._exported_config() as config:
            _double_ranks(config)
            self.model.save_pretrained(str(folder), state_dict=matrices, save_embedding_layers=False)

    def merge(self) -> Any:
        """Add the adapter to the weights in float32 and return the model without the wrapper of peft."""
        return self.model.float().merge_and_unload()

    def remove(self) -> None:
        self.model.unload()

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name."""
        start = {f"start.{name}": one for name, one in self._start.items()}
        return {**self._trained, **self._constant, **start}

    @contextmanager
    def _exported_config(self) -> Iterator[Any]:
        """Within the context, peft writes a copy of its configuration, which is returned and may be changed."""
        kept = self.model.peft_config["default"]
        self.model.peft_config["default"] = config = copy.deepcopy(kept)
        try:
            yield config
        finally:
            self.model.peft_config["default"] = kept

    @contextmanager
    def _with_noise(self, deviation: float) -> Iterator[None]:
        kept = [one.detach().clone() for one in self._trained.values()]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for one in self._trained.values():
                one.add_(deviation * torch.randn(one.shape, generator=generator).to(one))
        try:
            yield
        finally:
            with torch.no_grad():
                for one, value in zip(self._trained.values(), kept, strict=True):
                    one.copy_(value)

    def _warn_of_other_start(self, before: Tensor) -> None:
        """Log a warning where the adapter changes the logits ``before`` of the base model before it is trained."""
        # in the mean: in bfloat16, an adapter that computes norms of weights (DoRA) rounds single logits far more
        change = float((probe(self.model) - before).abs().mean())
        if not change <= SEEN * float(before.std()):
            log.warning(
                "warning: adapter=%s: with these settings the adapter changes the model before training; look for a "
                "setting such as init_weights",
                self._config.label,
            )

    def _seen_noise(self, before: Tensor) -> float:
        """Return the smallest deviation of ``NOISE`` that changes the logits as a trained adapter does.

        Where none does, it is the largest that keeps the logits finite.

        Args:
            before: logits of the base model.

        Raises:
            ConfigError: no logits are finite with the adapter.
        """
        found = None
        for deviation in NOISE:
            with self._with_noise(deviation):
                change = float((probe(self.model) - before).abs().mean())
            if not math.isfinite(change):
                break
            found = deviation
            if change > SEEN * float(before.std()):
                break
        if found is None:
            raise ConfigError(
                f"adapter.method={self._config.method}: the logits are not finite with it and small trained values "
                f"(deviation {NOISE[0]}); take other settings"
            )
        return found

    def _refuse_wrong_model(self, before: Tensor) -> None:
        """Compare the perturbed adapter with itself on fewer tokens, and without it with the base model.

        Args:
            before: logits of the base model.

        Raises:
            ConfigError: with this adapter, tokens depend on later ones, or it cannot be switched off.
        """
        spread, exact = float(before.std()), self.model.dtype == torch.float32
        with torch.no_grad(), self.perturbed():
            whole = probe(self.model)[0, : len(FIRST)]  # (2, V)
            ids = torch.tensor([FIRST], device=self.model.device)
            alone = self.model(input_ids=ids, use_cache=False).logits[0]  # (2, V)
            with self.model.disable_adapter():
                off = probe(self.model)
        # numbers of rows differ, and so may the rounding
        if not float((whole - alone).abs().max()) <= (LEAK if exact else MERGE) * spread:
            raise ConfigError(
                f"adapter.method={self._config.method}: predictions depend on later tokens or other rows with it, so "
                "that a token is sampled with another probability than it has in training; take another method"
            )
        if not float((off - before).abs().max()) <= EXACT * spread:
            raise ConfigError(
                f"adapter.method={self._config.method}: with these settings the model without the adapter is not the "
                "base model; take others"
            )

    def _merged(self) -> Callable[[], Any]:
        """Return the context within which the adapter is added to the weights; one without effect if it cannot be."""
        if is_quantized(self.model.get_base_model()):
            reason = None if self._config.method == "LORA" else "the weights are quantized"  # the engine knows LoRA
        else:
            with self.perturbed():
                reason = merging_obstacle(self.layers.values())
        if reason is None:
            return partial(merged, list(self.layers.values()))
        log.info("rollout: not merged into the weights for adapter=%s: %s", self._config.label, reason)
        return nullcontext


def _peft_model(policy: Policy, config: PeftMethod, modules: list[nn.Module], seed: int) -> Any:
    """Return the model with the adapter, and the same weights as before."""
    from peft import get_peft_model

    random_devices = [policy.device] if policy.device.type == "cuda" else []
    kept = weights_kept(modules) if config.starts_from_weights else nullcontext()
    with torch.random.fork_rng(devices=random_devices), kept:
        torch.manual_seed(seed)
        try:
            peft_config = config.peft_config(policy.model, seed)
            return get_peft_model(policy.model, peft_config, revision=policy.revision).eval()
        except (ValueError, TypeError, AttributeError, AssertionError, KeyError, ImportError) as error:
            raise ConfigError(f"adapter.{blamed(config.method, config.settings, error)}") from error


def _subtract_start(layer: Any) -> None:
    """Add the constant part −s·B₀A₀ to a LoRA layer, with A₀ and B₀ its present matrices."""
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    for matrix, constant, dim in ((A, A.weight, 0), (B, -B.weight, 1)):
        parametrize.register_parametrization(matrix, "weight", Append(constant.float(), dim), unsafe=True)


def _double_ranks(config: Any) -> None:
    """Change a configuration of LoRA to twice the rank, with the scale and without the start values."""
    config.init_lora_weights = True
    factor = 2**0.5 if config.use_rslora else 2  # the scale is alpha / √r or alpha / r
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: factor * alpha for key, alpha in (config.alpha_pattern or {}).items()}


def _sums(modules: list[nn.Module]) -> list[tuple[float, float]]:
    """Return two sums over each weight of some modules, which change where one of its values does."""
    weights = [one.detach() for module in modules for one in module.parameters(recurse=False)]
    return [(float(one.float().sum()), float(one.float().abs().sum())) for one in weights]
