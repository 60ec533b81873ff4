"""The training loop of a warm start: supervised fine-tuning on solutions."""

import math
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rlsparse.batch import Problem, chunks
from rlsparse.components.adapter import TrainedAdapter
from rlsparse.config.schema import NoiseConfig, SupervisedConfig, WarmStartConfig
from rlsparse.model.loading import DTYPES
from rlsparse.model.policy import Policy
from rlsparse.warm_start.noise import corrupt

IGNORED = -100  # the label of tokens without loss


@dataclass(frozen=True)
class Example:
    """Holds the token ids of a prompt, and the problem whose solution follows it."""

    prompt_ids: tuple[int, ...]
    problem: Problem


def fit(
    policy: Policy,
    examples: Sequence[Example],
    run: WarmStartConfig,
    adapter: TrainedAdapter | None,
    record: Callable[[int, dict[str, float]], None],
) -> list[float]:
    """Train the adapter, with penalties of its own, or all weights of the policy if there is no adapter.

    Args:
        policy: the model to train.
        examples: the training rows.
        run: the config. Its ``dtype`` is that of autocast; ``float32`` and ``auto`` turn autocast off.
        adapter: the adapter in the model of the policy; None to train all weights.
        record: called with the number of each update, from 1, and its metrics.

    Returns:
        Mean loss of each epoch, nats per token.
    """
    from tqdm import tqdm
    from transformers import get_linear_schedule_with_warmup

    config = run.warm_start
    updates = count_updates(len(examples), config)
    per_epoch = updates // config.epochs
    if adapter is None:
        optimizer: Optimizer = AdamW(policy.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = adapter.optimizer(config.lr, config.weight_decay)
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.warmup * updates), updates)
    rng = random.Random(f"warm_start/{run.seed}")
    losses: list[float] = []
    policy.model.train()
    for epoch in range(1, config.epochs + 1):
        shuffled = rng.sample(list(examples), len(examples))
        bar = tqdm(list(chunks(shuffled, config.batch_size)), desc=f"epoch {epoch}/{config.epochs}", disable=None)
        for batch in bar:
            start = perf_counter()
            loss = _cross_entropy(policy, collate(policy, batch, config.noise, rng), run.dtype, "mean")
            optimizer.zero_grad()
            loss.backward()
            if adapter is not None:
                adapter.penalty(0.0)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
            metrics = {"supervised/loss": loss.item(), "train/grad_norm": float(norm)}
            metrics["train/lr"] = schedule.get_last_lr()[0]
            optimizer.step()
            losses.append(loss.item())
            moved = adapter.after_step(len(losses), updates) if adapter else {}
            schedule.step()  # after the adapter has seen the rates of this step
            record(len(losses), {**metrics, "time/train": perf_counter() - start, **moved})
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        mean = sum(losses[-per_epoch:]) / per_epoch
        tqdm.write(f"epoch {epoch}/{config.epochs}: loss {mean:.3f} nats per token", file=sys.stderr)
    policy.model.eval()
    return [sum(losses[i : i + per_epoch]) / per_epoch for i in range(0, updates, per_epoch)]


def count_updates(rows: int, config: SupervisedConfig) -> int:
    """Return the number of optimizer steps of a warm start on this number of rows."""
    return config.epochs * -(-rows // config.batch_size)


@torch.no_grad()
def held_out_loss(policy: Policy, examples: Sequence[Example], batch_size: int, dtype: str) -> float:
    """Return the mean cross-entropy of the solution tokens without noise, EOS included, in nats per token."""
    total, tokens = 0.0, 0
    for batch in chunks(examples, batch_size):
        inputs = collate(policy, batch, NoiseConfig(direct=0.0, direct_wrong=0.0, slip=0.0), random.Random(0))
        total += float(_cross_entropy(policy, inputs, dtype, "sum"))
        tokens += int((inputs[2] != IGNORED).sum())
    return total / tokens


def _cross_entropy(policy: Policy, inputs: tuple[Tensor, Tensor, Tensor], dtype: str, reduction: str) -> Tensor:
    ids, mask, labels = inputs  # each (b, L)
    reduced = dtype in ("bfloat16", "float16")
    with torch.autocast(policy.device.type, DTYPES[dtype]) if reduced else nullcontext():
        logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (b, L, V)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction=reduction
    )


def collate(
    policy: Policy, batch: Sequence[Example], noise: NoiseConfig, rng: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, attention mask and labels, each (b, L), padded on the right.

    A solution is followed by what ends a completion. Prompt and padding have the label ``IGNORED``.
    """
    rows = []
    for example in batch:
        text = corrupt(example.problem, noise, rng)
        solution = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append((list(example.prompt_ids), [*solution, *policy.turn_end]))
    longest = max(len(prompt) + len(solution) for prompt, solution in rows)
    ids = torch.full((len(rows), longest), policy.pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, (prompt, solution) in enumerate(rows):
        end = len(prompt) + len(solution)
        ids[i, :end] = torch.tensor(prompt + solution)
        mask[i, :end] = 1
        labels[i, len(prompt) : end] = torch.tensor(solution)
    return ids.to(policy.device), mask.to(policy.device), labels.to(policy.device)
