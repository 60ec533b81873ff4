"""The fast paths against the plain ones in float32, and against float64 on the CPU."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from rlsparse.batch import Prompt, Rollout, ScoredBatch
from rlsparse.execution.self_check.findings import Figure, Finding, Setting
from rlsparse.execution.self_check.scene import Scene, difference, distance, scene
from rlsparse.model.fused_head import chosen_log_probs_and_entropy
from rlsparse.model.packing import PACKED, can_pack, packed_log_probs
from rlsparse.model.packing.layout import pack
from rlsparse.model.packing.ragged import RaggedRow
from rlsparse.model.policy import PLAIN, Policy, ScoringPath, token_log_probs
from rlsparse.model.self_check import TIMES_ROUNDING
from rlsparse.rollout import Request, RolloutEngine
from rlsparse.rollout.sampler import moved
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater

PROMPTS, GROUP, TOKENS = 3, 4, 24  # as in experiments/benchmarks/exactness.py
# no gradient clipping, whose factor would hide a wrong scale
COMMON = ("dtype=float32", f"rollout.max_new_tokens={TOKENS}", "train.max_grad_norm=0")
CASES = (
    ("algorithm=grpo",),
    ("algorithm=sgrpo",),
    ("algorithm=tspmo",),
    ("algorithm=dr_grpo", "kl=on"),
    ("algorithm=grpo", "entropy=on"),
    ("algorithm=grpo", "adapter.layers=last_third"),
    ("algorithm=sgrpo", "adapter.layers=last_third"),
)
QUICK = (("algorithm=tspmo",), ("algorithm=grpo", "adapter.layers=last_third"))
LOG_PROBS = 1e-4  # nats; tests/test_smollm2.py
PATHS = 1e-5  # relative; between two paths in tests/test_packed.py
ROUNDED = 1e-4  # relative; between two float32 gradients, of which one may be 5e-5 from float64 (exactness.json)
ROUNDING = 5e-4  # relative; ten times that distance: products in TensorFloat-32 or bfloat16 are further from float64
TEMPERATURE = 0.7
RAGGED = "completions that are cut at different lengths, packed - plain"


def paths(setting: Setting) -> Iterator[Finding]:
    """Yield the comparisons of each path with its reference."""
    yield from _of_model(setting)
    for words in QUICK if setting.quick else CASES:
        yield _of_config(setting, words)


def _of_model(setting: Setting) -> list[Finding]:
    with scene(setting, PROMPTS, *COMMON) as one:
        with closing(one.algorithm.rollout.fitting(one.policy)) as engine:
            found = [_greedy(one, engine), _fused_head(one)]
        obstacle = can_pack(one.policy)
        if obstacle is None:
            return [*found, _ragged_row(one)]
        return [*found, Finding.skipped(RAGGED, f"this model needs train.packing=off: {obstacle}")]


def _of_config(setting: Setting, words: Sequence[str]) -> Finding:
    with scene(setting, PROMPTS, *COMMON, *words) as one:
        return _fast_and_plain(one, " ".join(words))


def _greedy(one: Scene, engine: RolloutEngine) -> Finding:
    """Compare greedy completions with those of ``generate`` of transformers, token for token."""
    rollout = engine.generate(one.policy, Request(one.prompts, 1, greedy=True), stream(0, "greedy"))
    compared = equal = 0
    for row, prompt in enumerate(one.prompts):
        length = int(rollout.lengths[row])
        got = rollout.completion_ids[row, :length].tolist()
        expected = _generated(one.policy, prompt)[:length]
        compared += length
        equal += sum(a == b for a, b in zip(got, expected, strict=False))
    return Finding.of(
        f"greedy completions, {engine.label} and generate",
        Figure("equal token for token", compared == equal),
        Figure("tokens", compared),
    )


def _generated(policy: Policy, prompt: Prompt) -> list[int]:
    """Return a greedy completion by transformers; at most ``TOKENS`` tokens."""
    ids = torch.tensor([prompt.ids], device=policy.device)  # (1, S)
    with torch.no_grad():
        found: Tensor = policy.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            repetition_penalty=1.0,  # the generation config of a model may have another one
            eos_token_id=list(policy.eos_ids) or [-1],
            pad_token_id=policy.pad_id,
        )
    return found[0, len(prompt.ids) :].tolist()


def _fused_head(one: Scene) -> Finding:
    """Compare the head in chunks with autograd over the whole vocabulary in float64 on the CPU."""
    ids = torch.tensor(one.prompts[0].ids, device=one.policy.device)  # (L,)
    with torch.no_grad():
        states = one.policy.causal_lm.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1]
    head, targets = one.policy.causal_lm.get_output_embeddings(), ids[1:]  # (L - 1,)
    factors = torch.randn(2, len(targets), generator=stream(0, "factors")).to(ids.device)  # (2, L - 1)

    hidden = states.clone().requires_grad_()  # (L - 1, H)
    chunk = 4 * len(head.weight)  # logits of four tokens at a time
    fused = torch.stack(chosen_log_probs_and_entropy(hidden, head, targets, TEMPERATURE, chunk))  # (2, L - 1)
    (fused * factors).sum().backward()

    exact = states.double().cpu().requires_grad_()  # (L - 1, H)
    logits = exact @ head.weight.detach().double().cpu().t()  # (L - 1, V)
    if head.bias is not None:
        logits = logits + head.bias.detach().double().cpu()
    table = (logits / TEMPERATURE).log_softmax(dim=1)
    expected = torch.stack([table.gather(1, targets.cpu()[:, None]).squeeze(1), -(table.exp() * table).sum(dim=1)])
    (expected * factors.double().cpu()).sum().backward()
    assert hidden.grad is not None
    assert exact.grad is not None
    return Finding.of(
        "head in chunks - float64",
        difference("log-probabilities", fused[0], expected[0], LOG_PROBS),
        difference("entropies", fused[1], expected[1], LOG_PROBS),
        Figure("gradient, relative", distance(hidden.grad, exact.grad), most=PATHS),
        Figure("tokens", len(targets)),
    )


def _ragged_row(one: Scene) -> Finding:
    """Compare the packed path with the plain one for completions of which the loss needs very different parts."""
    endless = replace(one.policy, eos_ids=(), stop_text=None)
    rollout = one.engine("plain").generate(endless, Request(one.prompts, GROUP), stream(0, "rollout"))
    rows = torch.arange(len(rollout.lengths), device=one.policy.device)  # (B,)
    widths = torch.tensor([TOKENS, TOKENS // 4, TOKENS // 2, 1], device=rows.device).repeat(PROMPTS)  # (B,)
    needed = torch.arange(TOKENS, device=rows.device) < widths[:, None]  # (B, T)
    factors = torch.randn(2, *needed.shape, generator=stream(0, "factors")).to(rows.device)  # (2, B, T)
    values, gradients = [], []
    for path in (PACKED, PLAIN):
        one.policy.model.zero_grad()
        both = path.log_probs_and_entropy(one.policy, rollout, rows, needed, TEMPERATURE)
        (torch.stack(both) * factors).sum().backward()
        values.append(both)
        gradients.append(_gradients(one))
    packed, plain = values
    return Finding.of(
        RAGGED,
        Figure("in a row without padding", isinstance(pack(rollout, rows, needed, torch.float32), RaggedRow)),
        difference("log-probabilities", packed[0], plain[0], LOG_PROBS),
        difference("entropies", packed[1], plain[1], LOG_PROBS),
        Figure("gradient, relative", distance(*gradients), most=ROUNDED),
        Figure("tokens", int(needed.sum())),
    )


def _fast_and_plain(one: Scene, name: str) -> Finding:
    """Compare rollout, scoring and gradient of a config by the fast paths with those by the plain ones.

    The model is on the CPU in float64 afterwards.
    """
    policy = one.policy
    with one.adapter.perturbed(), closing(one.algorithm.rollout.fitting(policy)) as fast:
        obstacle = can_pack(policy)
    if fast.label != one.algorithm.rollout.label:
        return Finding.skipped(name, f"this model needs rollout={fast.label}")
    if obstacle is not None:
        return Finding.skipped(name, f"this model needs train.packing=off: {obstacle}")
    request = Request(one.prompts, GROUP, keep_states=True)
    rollout = fast.generate(policy, request, stream(0, "rollout"))
    plain = one.engine("plain").generate(policy, request, stream(0, "rollout"))
    same = torch.equal(rollout.completion_ids, plain.completion_ids)
    rows = torch.arange(len(rollout.lengths), device=policy.device)  # (B,)
    with torch.no_grad():
        arguments = (policy, rollout, rows, rollout.mask, 1.0)
        both = packed_log_probs(*arguments), token_log_probs(*arguments)  # (B, T) each
        scored = difference("scoring log-probs, packed - plain", *both, LOG_PROBS)
    batch = one.batch(rollout)
    of_fast, of_plain = (_gradient(one, path, batch) for path in (PACKED, PLAIN))
    exact = _exact_gradient(one, batch)
    of_plain_path = distance(of_plain, exact)
    kept = rollout.frozen_states is not None
    return Finding.of(
        name,
        Figure("same completions", same),
        _common_difference("rollout log-probs, fast - plain", rollout, plain),
        scored,
        Figure("gradient, fast - float64, relative", distance(of_fast, exact), most=_allowed(of_plain_path)),
        Figure("gradient, plain - float64, relative", of_plain_path, most=ROUNDING),
        Figure("frozen layers whose outputs are kept", policy.first_adapted if kept else 0, f"of {policy.depth}"),
        Figure("tokens", int(rollout.lengths.sum())),
    )


def _allowed(plain: float) -> float:
    """Return how far the gradient of a fast path may be from float64, given the distance of the plain path."""
    return TIMES_ROUNDING * plain + PATHS


def _common_difference(name: str, fast: Rollout, plain: Rollout) -> Figure:
    """Return the greatest difference of the log-probabilities, up to the first token that differs in each row."""
    same = (fast.completion_ids == plain.completion_ids).long().cumprod(dim=1).bool()  # (B, T)
    return difference(name, fast.log_probs[same], plain.log_probs[same], LOG_PROBS)


def _gradient(one: Scene, path: ScoringPath, batch: ScoredBatch) -> Tensor:
    """Return the gradient of the loss of a batch in all trained parameters, (n,) float64 on the CPU."""
    algorithm, train = one.algorithm, one.config.train
    optimizer = torch.optim.SGD(one.adapter.parameters(), lr=0.0)
    fit = FitMicrobatches(train, MemoryLimits.of(algorithm.rollout.max_rows, train))
    policy = replace(one.policy, device=batch.advantages.device)
    Updater(policy, path, optimizer, algorithm, train, fit, ALONE, policy.reference)([batch])
    return _gradients(one)


def _gradients(one: Scene) -> Tensor:
    return torch.cat([p.grad.detach().flatten().double().cpu() for p in one.adapter.parameters() if p.grad is not None])


def _exact_gradient(one: Scene, batch: ScoredBatch) -> Tensor:
    """Return the gradient by the plain path in float64 on the CPU, to which the model moves, (n,)."""
    one.policy.model.zero_grad()
    one.policy.model.cpu().double()
    cpu = torch.device("cpu")
    in_double = replace(
        batch,
        rollout=moved(batch.rollout, cpu),
        advantages=batch.advantages.double().cpu(),
        scales=batch.scales.double().cpu(),
    )
    return _gradient(one, PLAIN, in_double)
