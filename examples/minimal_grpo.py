"""GRPO, S-GRPO and T-SPMO in one file of plain PyTorch: a small language model learns products such as 57*4=228.

    python examples/minimal_grpo.py grpo|sgrpo|tspmo [steps]

GRPO is Shao et al. 2024 (arXiv 2402.03300); S-GRPO and T-SPMO are Lee & Tong 2025 (arXiv 2504.20834).
Shapes: P prompts of a step, G completions of a prompt, B = P * G rows, S tokens of a prompt, T tokens of the longest
completion with its end-of-sequence token (EOS), V tokens of the vocabulary.
"""

import argparse
import random
import re
from collections import defaultdict
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parent.parent / "rlsparse/model/embedded/tiny"  # a Qwen2 with 0.6 million parameters
P, G, MAX_NEW_TOKENS = 8, 8, 26
UPDATES = 1  # optimizer steps on each batch; with 1 the ratio of GRPO is always 1, so that nothing is clipped
LEARNING_RATE, MAX_GRAD_NORM, LORA_RANK, LORA_SCALE = 1e-3, 1.0, 8, 2.0
EPSILON, CLIP = 1e-4, 0.2  # added to the standard deviation of a group; GRPO clips the ratio to [1 - CLIP, 1 + CLIP]
ALPHA, PROBABILITY, K = 4, 0.3, 16  # S-GRPO: tokens always selected, chance of each later one, most in a completion
L2 = 1e-4  # T-SPMO: weight of the squared weights of the adapter in the loss


@torch.no_grad()
def sample(model: nn.Module, prompts: Tensor, eos: int) -> Tensor:
    """Return a completion of each prompt, (B, T), sampled at temperature 1 and padded with EOS on the right."""
    tokens, cache, completions = prompts, None, []
    ended = torch.zeros(len(prompts), 1, dtype=torch.bool)  # (B, 1)
    while len(completions) < MAX_NEW_TOKENS and not ended.all():
        output = model(tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values  # keys and values of all tokens so far
        probs = output.logits[:, -1].softmax(dim=-1)  # (B, V)
        tokens = torch.multinomial(probs, 1).masked_fill(ended, eos)  # (B, 1)
        completions.append(tokens)
        ended = ended | (tokens == eos)
    return torch.cat(completions, dim=1)


def token_log_probs(model: nn.Module, prompts: Tensor, completions: Tensor) -> Tensor:
    """Return the log-probability of each completion token, (B, T). All padding is on the right, so it needs no mask."""
    ids = torch.cat([prompts, completions], dim=1)  # (B, S + T)
    logits = model(ids, logits_to_keep=completions.shape[1] + 1).logits[:, :-1]  # (B, T, V)
    return logits.log_softmax(dim=-1).gather(-1, completions[:, :, None]).squeeze(-1)


def reward(text: str, product: int) -> float:
    """Return 1 if the last number of the text is the product, else 0. In 200-28 the last number is 28, not -28."""
    numbers = re.findall(r"(?<!\d)-?\d+", text)
    return float(bool(numbers) and int(numbers[-1]) == product)


def advantages(method: str, rewards: Tensor, completions: Tensor, mask: Tensor) -> Tensor:
    """Return the advantage of each token, (P, G, T), from rewards (P, G), completions (P, G, T) and mask (P, G, T)."""
    if method == "tspmo":
        return torch.stack([tree_advantages(*group) for group in zip(rewards, completions, mask, strict=True)])
    zscores = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + EPSILON)  # (P, G)
    return zscores[:, :, None] * mask


def tree_advantages(rewards: Tensor, completions: Tensor, mask: Tensor) -> Tensor:
    """Return V(prefix + token) - V(prefix) of each token of a group, (G, T), from rewards (G,) and (G, T) tensors.

    V(prefix) is the mean reward of the completions that begin with the prefix. If several completions share a
    transition (prefix to prefix + token), only the first of them gets its advantage, and the others get 0.
    """
    rows = [tuple(ids[inside].tolist()) for ids, inside in zip(completions, mask, strict=True)]
    rewards_of = defaultdict(list)  # of the completions that begin with each prefix
    for row, value in zip(rows, rewards.tolist(), strict=True):
        for t in range(len(row) + 1):
            rewards_of[row[:t]].append(value)
    V = {prefix: sum(values) / len(values) for prefix, values in rewards_of.items()}
    advantage = torch.zeros(completions.shape)  # (G, T)
    for g, row in enumerate(rows):
        for t in range(len(row)):
            if all(row[: t + 1] != earlier[: t + 1] for earlier in rows[:g]):
                advantage[g, t] = V[row[: t + 1]] - V[row[:t]]
    return advantage


def select(method: str, advantage: Tensor, mask: Tensor, uniform: Tensor) -> Tensor:
    """Return which tokens enter the loss, (P, G, T) bool; uniform (P, G, T) are the random numbers of S-GRPO."""
    if method == "tspmo":
        return advantage != 0  # the branches of the prefix tree, each transition once
    if method == "grpo":
        return mask
    first = torch.arange(mask.shape[2]) < ALPHA  # (T,)
    drawn = (uniform < PROBABILITY) & ~first  # (P, G, T)
    return mask & (first | drawn & (drawn.cumsum(dim=2) <= K - ALPHA))  # none after the budget K is spent


def loss(method: str, log_probs: Tensor, old: Tensor, advantage: Tensor, chosen: Tensor, adapter: list) -> Tensor:
    """Return the loss, a scalar. Tensors are (P, G, T); old are the log-probabilities before the first update."""
    if method == "grpo":
        ratio = (log_probs - old).exp()  # (P, G, T)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)  # (P, G, T)
    elif method == "sgrpo":
        gain = (log_probs - log_probs.detach()).exp() * advantage  # (P, G, T), its gradient is that of A log pi
    else:
        gain = log_probs.exp() * advantage  # (P, G, T)
        per_prompt = (gain * chosen).sum(dim=(1, 2)) / chosen.sum(dim=(1, 2)).clamp(min=1)  # (P,)
        return -per_prompt.mean() + L2 * sum(parameter.square().sum() for parameter in adapter)
    per_completion = (gain * chosen).sum(dim=2) / chosen.sum(dim=2)  # (P, G)
    return -per_completion.mean()


def train(method: str, steps: int) -> None:
    """Train a LoRA adapter; print the mean reward of each step and the share of its tokens that enter the loss."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_SCALE * LORA_RANK, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), lora)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(1, steps + 1):
        factors = [(random.randint(10, 99), random.randint(2, 9)) for _ in range(P)]
        questions = tokenizer([f"{a}*{b}=" for a, b in factors])["input_ids"]  # a token a character: all have length S
        prompts = torch.tensor(questions).repeat_interleave(G, dim=0)  # (B, S)
        completions = sample(model, prompts, tokenizer.eos_token_id)  # (B, T)
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        products = [a * b for a, b in factors for _ in range(G)]
        rewards = torch.tensor(list(map(reward, texts, products))).view(P, G)  # (P, G)
        groups = completions.view(P, G, -1)  # (P, G, T)
        is_eos = (groups == tokenizer.eos_token_id).long()  # (P, G, T)
        mask = is_eos.cumsum(dim=2) - is_eos == 0  # (P, G, T), true up to the first EOS, which is included
        advantage = advantages(method, rewards, groups, mask)  # (P, G, T)
        chosen = select(method, advantage, mask, torch.rand(mask.shape))  # (P, G, T)
        old = token_log_probs(model, prompts, completions).view(P, G, -1).detach()  # (P, G, T)
        for _ in range(UPDATES):
            log_probs = token_log_probs(model, prompts, completions).view(P, G, -1)  # (P, G, T)
            optimizer.zero_grad()
            loss(method, log_probs, old, advantage, chosen, adapter).backward()
            nn.utils.clip_grad_norm_(adapter, MAX_GRAD_NORM)
            optimizer.step()
        print(f"step {step:3d}   reward {rewards.mean():.3f}   tokens in the loss {chosen.sum() / mask.sum():.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["grpo", "sgrpo", "tspmo"])
    parser.add_argument("steps", type=int, nargs="?", default=40)
    torch.set_num_threads(1)  # the model is too small for more
    torch.manual_seed(0)
    random.seed(0)
    train(**vars(parser.parse_args()))
