"""The check that a vLLM server has the model of a policy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy
from rlsparse.rollout.vllm.client import Client, ServerError

PROBE = 64  # random tokens whose log-probabilities are compared
SAMPLED = 16  # tokens that the server samples, to see at which temperature their log-probabilities are
# Largest difference in the mean over these tokens, nats. In float32 it is 1e-4 on a CPU; a GPU may round products to
# TF32. In bfloat16 it is 0.1 to 0.2 on random tokens. Another model, or three epochs of a warm start: more than 1.
ALLOWED = {torch.float32: 0.05}
ALLOWED_ROUNDED = 0.5
NOISE = 0.02  # deviation of the noise in the adapter while servers are compared


@contextmanager
def noise(model: Any) -> Iterator[None]:
    """Within the context, the trained parameters of a model have noise added."""
    trained = [one for one in model.parameters() if one.requires_grad]
    kept = [one.detach().clone() for one in trained]
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for one in trained:
            one.add_(NOISE * torch.randn(one.shape, generator=generator).to(one))
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value in zip(trained, kept, strict=True):
                one.copy_(value)


@torch.no_grad()
def compare(client: Client, name: str, policy: Policy, temperature: float) -> None:
    """Compare the log-probabilities of a server with those of the policy as it is now, on random tokens.

    The names of models are not compared: a hub id and the folder of a download may be the same model.

    Args:
        name: of the model on the server.

    Raises:
        ConfigError: they differ by more than rounding, or are those of another temperature.
        ServerError: the server does not answer, or refuses.
    """
    generator = Generator().manual_seed(0)
    ids = torch.randint(policy.vocabulary, (PROBE,), generator=generator).tolist()
    body = {"model": name, "prompt": ids, "temperature": temperature, "seed": 0, "logprobs": 0, "ignore_eos": True}
    body |= {"top_p": 1.0, "top_k": 0, "max_tokens": SAMPLED, "return_token_ids": True}
    try:
        (scored,) = client.complete({**body, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0})
        (sampled,) = client.complete(body)
    except ServerError as error:
        if "out of vocabulary" not in str(error):
            raise
        raise ConfigError(f"rollout.server={client.url}: serves a model of another vocabulary ({error})") from error
    theirs = [one[str(token)]["logprob"] for token, one in zip(ids[1:], scored["prompt_logprobs"][1:], strict=True)]
    difference = _mean_difference(theirs, log_probs(policy, ids, 1.0))
    if not difference <= ALLOWED.get(policy.causal_lm.dtype, ALLOWED_ROUNDED):
        raise ConfigError(
            f"rollout.server={client.url}: serves another model ({name}) than {policy.key}: log-probabilities of the "
            f"same tokens differ by {difference:.3g} nats in the mean; start it with the model and the dtype of the run"
        )
    tokens, theirs = sampled["token_ids"], sampled["logprobs"]["token_logprobs"]
    processed, raw = (
        _mean_difference(theirs, log_probs(policy, ids + tokens, one)[len(ids) - 1 :]) for one in (temperature, 1.0)
    )
    if raw < processed:
        raise ConfigError(
            f"rollout.server={client.url}: returns log-probabilities at temperature 1, and rollout.temperature is "
            f"{temperature:g}; start it with --logprobs-mode processed_logprobs"
        )


def log_probs(policy: Policy, ids: list[int], temperature: float) -> Tensor:
    """Return the log-probabilities of all tokens but the first, (L - 1,) float32."""
    row = torch.tensor([ids], device=policy.device)  # (1, L)
    logits = policy.model(input_ids=row, use_cache=False).logits[0, :-1].float() / temperature  # (L - 1, V)
    found: Tensor = logits.log_softmax(dim=1).gather(1, row[0, 1:, None]).squeeze(1)
    return found


def _mean_difference(theirs: Sequence[float], ours: Tensor) -> float:
    return float((torch.tensor(theirs, device=ours.device) - ours).abs().mean())
