"""Warnings about runs, or about sweeps of them, that would measure nothing or something else than they seem to."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rlsparse.algorithm import Algorithm
from rlsparse.components.objective import Surrogate
from rlsparse.config.schema import Config

Points = Sequence[tuple[Config, Algorithm]]


def point_warnings(points: Points) -> list[str]:
    """Return a line for each warning about the points of a sweep, or about a single run."""
    return [
        *idle_clipping(points),
        *idle_scale(points),
        *idle_off_policy(points),
        *uncorrected_staleness(points),
        *endless_staleness(points),
        *idle_reference(points),
        *idle_kl(points),
    ]


def idle_clipping(points: Points) -> list[str]:
    """Return the warning that an ablation of clipping would measure noise, where it would.

    With one optimizer step per rollout batch the ratio is 1, so that surrogates of that trait have the same gradient.
    """
    surrogates: dict[str, dict[str, Surrogate]] = {}  # different ones, by what is equal in the rest of the config
    for config, algorithm in points:
        steps = config.train.updates_per_rollout * config.train.minibatches
        if steps == 1 and not algorithm.token_sampler.makes_passes and algorithm.clipping.same_gradient_at_ratio_1:
            # told apart by their text: a surrogate with a list among its keys has no hash
            surrogates.setdefault(_rest(config, "clipping"), {})[repr(algorithm.clipping)] = algorithm.clipping
    swept = {one.label for same in surrogates.values() if len(same) > 1 for one in same.values()}
    if not swept:
        return []
    return [
        f"clipping is swept ({', '.join(sorted(swept))}) with train.updates_per_rollout=1 and train.minibatches="
        "1: the ratio is 1, so these have the same gradient and differ only by rounding; add train.minibatches=4 or "
        "train.updates_per_rollout=4 to compare them"
    ]


def idle_scale(points: Points) -> list[str]:
    """Return the warning that an ablation of advantages would measure a constant factor, where it would.

    AdamW divides the gradient by its own size, so a factor of the whole gradient changes almost nothing. Where the loss
    has another term (KL, entropy, squared weights), the factor changes the balance of the two, and there is no warning.
    """
    families: dict[tuple[str, str], set[str]] = {}
    for config, algorithm in points:
        family = algorithm.advantage.scale_of
        others = algorithm.kl.beta != 0 or algorithm.entropy.coefficient != 0 or algorithm.objective.l2 != 0
        if family is not None and not others:
            families.setdefault((family, _rest(config, "advantage")), set()).add(algorithm.advantage.label)
    swept: dict[str, set[str]] = {}
    for (family, _), names in families.items():
        if len(names) > 1:
            swept.setdefault(family, set()).update(names)
    return [
        f"advantage is swept ({', '.join(sorted(names))}): they differ by a constant factor alone, which AdamW removes "
        "almost entirely, so that the sweep measures noise; keep one of them"
        for names in swept.values()
    ]


def idle_off_policy(points: Points) -> list[str]:
    """Return the warning that a correction has nothing to correct, where the policy itself samples."""
    idle = {
        algorithm.off_policy.label
        for config, algorithm in points
        if algorithm.off_policy.corrects
        and algorithm.rollout.uses_policy
        and not algorithm.layer_skip.active
        and config.train.staleness == 0
        and config.dtype in ("auto", "float32")
    }
    if not idle:
        return []
    return [
        f"off_policy={','.join(sorted(idle))} corrects nothing where layer_skip=off and train.staleness=0: the policy "
        "itself samples, so such a run equals that of off_policy=none in float32, and in bfloat16 only the rounding of "
        "the rollout is corrected; add layer_skip=r10 or train.staleness=1, for example, or leave off_policy out"
    ]


def uncorrected_staleness(points: Points) -> list[str]:
    """Return the warning that completions of an earlier policy count as those of the current one."""
    stale = {config.train.staleness for config, algorithm in points if not algorithm.off_policy.corrects} - {0}
    if not stale:
        return []
    return [
        f"train.staleness={','.join(map(str, sorted(stale)))} with off_policy=none: completions of an earlier policy "
        "count as samples of the current one; add off_policy=truncated to correct for it"
    ]


def endless_staleness(points: Points) -> list[str]:
    """Return the warning that the policy before the first step samples in every step."""
    late = {(c.train.staleness, c.train.steps) for c, _ in points if c.train.staleness >= c.train.steps}
    return [
        f"train.staleness={staleness} with train.steps={steps}: the untrained policy samples in every step, since none "
        "is older; lower it, or take more steps"
        for staleness, steps in sorted(late)
    ]


def idle_kl(points: Points) -> list[str]:
    """Return the warning that keys of the KL penalty have no effect where its weight is 0."""
    idle = {key for _, algorithm in points for key in algorithm.kl.idle_keys}
    if not idle:
        return []
    return [f"kl.{', kl.'.join(sorted(idle))}: no effect with kl.beta=0, where there is no KL term; add kl=on"]


def idle_reference(points: Points) -> list[str]:
    """Return the warning that a moving reference policy does not move before the run ends."""
    late = {
        (update.every, config.train.steps)
        for config, algorithm in points
        if (update := algorithm.kl.reference_update) is not None and update.every >= config.train.steps
    }
    return [
        f"kl.reference_every={every}: the reference policy would move after step {every} for the first time, and "
        f"train.steps={steps}; lower it, or take kl.reference=base"
        for every, steps in sorted(late)
    ]


def _rest(config: Config, group: str) -> str:
    """Return all of a config but one group and the name of its algorithm, to compare it with others."""
    rest = {key: value for key, value in asdict(config).items() if key not in (group, "algorithm")}
    return json.dumps(rest, sort_keys=True)
