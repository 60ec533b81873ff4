"""The KL penalty, from sampled tokens. Config group ``kl``."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import Component, Digest, OneOf, Range

LARGEST_EXPONENT = 80.0  # exp(88.8) overflows a float32


@dataclass(frozen=True)
class ReferenceUpdate:
    """How the reference policy follows the policy: reference ← share · policy + (1 − share) · reference.

    The mixture is one of the adapters' tensors, not of probabilities.

    Attributes:
        every: training steps between two updates.
        share: of the policy in the new reference; 1 is a copy of the policy.
    """

    every: int
    share: float


@dataclass(frozen=True)
class KLPenalty(Component, ABC):
    """A term of each selected token that keeps the policy near a reference policy.

    Attributes:
        beta: weight of the term; where it is 0 the reference policy is never evaluated.
    """

    beta: Annotated[float, Range(0)]

    @abstractmethod
    def __call__(self, log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
        """Return the estimate at each token, (b, T), nats.

        Args:
            log_probs: (b, T) under the policy, with gradient.
            reference_log_probs: (b, T) under the reference policy.
        """

    @property
    def in_reward(self) -> bool:
        """Whether β times the estimate, without gradient, is taken off the advantage instead of added to the loss."""
        return False

    @property
    def times_ratio(self) -> bool:
        """Whether the estimate in the loss is multiplied by ρ = π/π_old, with gradient."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether the policy is compared with the base model."""
        return self.beta > 0 and self.reference_update is None

    @property
    def reference_update(self) -> ReferenceUpdate | None:
        """Return how the reference follows the policy; None where it is the base model for the whole run."""
        return None

    @property
    def idle_keys(self) -> list[str]:
        """Return the keys that were given another value than usual and have no effect, ``key=value`` each."""
        return []


@dataclass(frozen=True)
class SampledKL(KLPenalty):
    """An estimate of KL(π‖π_ref) from the sampled token, with d = log π_ref − log π.

    The mean of each estimate under π is KL(π‖π_ref), but for k2, whose mean only comes close to it where π is close to
    π_ref. What a term pulls on is a matter of its gradient, on tokens sampled from π at a given prefix:

    =========  ========================  ==========================  ==================================
    estimator  value                     mean gradient in the loss   mean gradient in the reward
    =========  ========================  ==========================  ==================================
    k1         −d                        0 (refused)                 ∇KL(π‖π_ref)
    k2         d²/2                      ∇KL(π‖π_ref)                ∇(E_π[d²/2] − KL(π‖π_ref))
    k3         exp(d) − d − 1            ∇KL(π_ref‖π)                ∇(KL(π‖π_ref) − KL(π_ref‖π))
    k3_ratio   ρ·k3, ρ = π/π_old         ∇KL(π‖π_ref)                refused
    =========  ========================  ==========================  ==================================

    In the loss: E_π[∇(−d)] = E_π[∇log π] = 0; E_π[∇d²/2] = E_π[(log π − log π_ref) ∇log π]; and E_π[∇k3] =
    E_π[(1 − π_ref/π) ∇log π] = −E_ref[∇log π]. In the reward a term k gives E_π[k ∇log π] = ∇E_π[k] − E_π[∇k].
    k2 and k3 in the reward are allowed because other libraries have them and 2512.21852 measures k3 there, but neither
    is a penalty: the two divergences in their difference agree to second order at π_ref, so that near it there is
    almost no pull, and farther away the difference of k3 may even push π away from π_ref.

    On tokens sampled from π_old ≠ π only k3_ratio keeps its gradient: E_old[∇(ρ·k3)] = ∇E_π[k3] = ∇KL(π‖π_ref). The
    gradients of k2 and k3 in the loss then are means under π_old. In the reward the estimate belongs to the rollout: it
    is computed once, from π_old.

    Sources: k1, k2, k3: Schulman 2020, "Approximating KL divergence"; k3 in the loss: GRPO, Shao et al. 2024
    (2402.03300), eq. 4; k3_ratio: DeepSeek-V3.2 (2512.02556) and ``use_bias_correction_kl`` of TRL 1.16, which is on by
    default there; the gradients: Shah et al. 2025 (2512.21852), Tang & Munos 2025 (2506.09477). TRL multiplies the
    policy's term alone by its weight for the model that sampled the tokens; here that weight multiplies the KL term
    too, see ``OffPolicyWeight``. The moving reference: TR-DPO, Gorbatovski et al. 2024 (2404.09656), ``sync_ref_model``
    of TRL. Only the term of a token itself is in its gradient: its effect on the KL at later tokens is left out, as is
    common.

    Attributes:
        estimator: k1, k2, k3 or k3_ratio.
        place: loss, or reward: the estimate, without gradient, is taken off the advantage of the token.
        reference: base (the base model for the whole run), sync (a copy of the policy, every n training steps) or ema
            (a share of the policy mixed into it, every n training steps).
        reference_every: n; no effect where reference is base.
        reference_share: share of the policy in the new reference; no effect unless reference is ema.
    """

    estimator: Annotated[str, OneOf("k1", "k2", "k3", "k3_ratio")]
    place: Annotated[str, OneOf("loss", "reward")]
    reference: Annotated[str, OneOf("base", "sync", "ema")]
    reference_every: Annotated[int, Range(1)]
    reference_share: Annotated[float, Range(0, 1, above=True)]

    neutral: ClassVar[Mapping[str, Any]] = {"estimator": "k3", "place": "loss", "reference": "base"}

    def __call__(self, log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
        """Return the estimate at each token, (b, T), nats; that of k3_ratio is without its ratio."""
        d = reference_log_probs - log_probs  # (b, T)
        if self.estimator == "k1":
            return -d
        if self.estimator == "k2":
            return d.square() / 2
        return _k3(d)

    @property
    def in_reward(self) -> bool:
        return self.place == "reward"

    @property
    def times_ratio(self) -> bool:
        return self.estimator == "k3_ratio"

    @property
    def reference_update(self) -> ReferenceUpdate | None:
        if self.beta == 0 or self.reference == "base":
            return None
        return ReferenceUpdate(self.reference_every, self.reference_share if self.reference == "ema" else 1.0)

    @property
    def idle_keys(self) -> list[str]:
        if self.beta > 0:
            return []
        return [f"{key}={getattr(self, key)}" for key, usual in self.neutral.items() if getattr(self, key) != usual]

    def problems(self) -> Iterator[str]:
        """Yield the problem of an estimator in a place where its gradient is none; where β = 0 there is no term."""
        if self.beta > 0 and self.estimator == "k1" and self.place == "loss":
            yield (
                "estimator=k1: its gradient in the loss has mean 0 (E_pi[grad log pi] = 0), so it would add noise and "
                "no pull; take kl.estimator=k3_ratio or k2, or kl.place=reward"
            )
        if self.beta > 0 and self.estimator == "k3_ratio" and self.place == "reward":
            yield (
                "place=reward: kl.estimator=k3_ratio acts through the gradient of its ratio, and a reward has no "
                "gradient; take kl.estimator=k1, or kl.place=loss"
            )

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the keys that have an effect.

        The class is named K3 where it computes what a class of that name, whose only key was β, did in earlier
        versions, so that the runs of those versions count as finished.
        """
        values = super().identity(digest)
        for key in ("reference", "reference_every", "reference_share"):
            values.pop(key, None)
        if self.beta == 0:
            values = {key: value for key, value in values.items() if key not in self.neutral}
        if self.reference_update is not None:
            values["reference"] = asdict(self.reference_update)
        if type(self) is SampledKL and set(values) == {"beta"}:
            values["class"] = "K3"
        return values


def _k3(d: Tensor) -> Tensor:
    """Return exp(d) − d − 1, whose exponential goes on as its tangent above an exponent of 80 (ours).

    Args:
        d: (b, T) log π_ref − log π, nats. Where it is large, exp(d) and with it the gradient would be infinite.
    """
    exponent = torch.where(d > LARGEST_EXPONENT, LARGEST_EXPONENT, d)  # (b, T); clamp has no gradient at the bound
    return torch.exp(exponent) * (1 + torch.relu(d - LARGEST_EXPONENT)) - d - 1
