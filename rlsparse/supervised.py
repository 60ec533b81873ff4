"""The supervised loop of a warm start."""

import math
import random
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlsparse.batch import Problem, chunks
from rlsparse.config import SupervisedConfig
from rlsparse.policy import DTYPES, Policy
from rlsparse.task.noise import spoil

IGNORED = -100  # the label that cross_entropy leaves out


@dataclass(frozen=True)
class Example:
    """A training row: the prompt's token ids, and the problem whose solution follows."""

    prompt_ids: tuple[int, ...]
    problem: Problem


def fit(policy: Policy, examples: Sequence[Example], config: SupervisedConfig, dtype: str, seed: int) -> list[float]:
    """Train all weights of the policy.

    Args:
        dtype: of the computation; float32 and auto compute as the weights are stored.

    Returns:
        Mean loss of each epoch, nats a token.
    """
    from tqdm import tqdm
    from transformers import get_linear_schedule_with_warmup

    per_epoch = -(-len(examples) // config.batch_size)
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    updates = config.epochs * per_epoch
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.warmup * updates), updates)
    reduced = dtype in ("bfloat16", "float16")
    autocast = torch.autocast(policy.device.type, DTYPES[dtype]) if reduced else nullcontext()
    rng = random.Random(f"warm_start/{seed}")
    losses = []
    policy.model.train()
    for epoch in range(1, config.epochs + 1):
        shuffled = rng.sample(list(examples), len(examples))
        total = 0.0
        bar = tqdm(list(chunks(shuffled, config.batch_size)), desc=f"epoch {epoch}/{config.epochs}", disable=None)
        for batch in bar:
            ids, mask, labels = collate(policy, batch, config, rng)  # each (b, L)
            with autocast:
                logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (b, L, V)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        losses.append(total / per_epoch)
        tqdm.write(f"epoch {epoch}/{config.epochs}: loss {losses[-1]:.3f} nats a token", file=sys.stderr)
    policy.model.eval()
    return losses


def collate(
    policy: Policy, batch: Sequence[Example], config: SupervisedConfig, rng: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and labels, each (b, L), padded on the right; prompt and padding carry no label."""
    rows = []
    for example in batch:
        text = spoil(example.problem, config.noise, rng)
        solution = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append((list(example.prompt_ids), [*solution, policy.tokenizer.eos_token_id]))
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
