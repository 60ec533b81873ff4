"""Log-probabilities and entropies in chunks, against autograd over the whole vocabulary."""

import math

import pytest
import torch
from torch import nn

from rlsparse.model.fused_head import CHUNK, chosen_log_probs, chosen_log_probs_and_entropy


@pytest.mark.parametrize("chunk", [1, 50, 150, 10_000])  # logits at a time: 1, 1, 3 and all 7 rows of 50
@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_in_chunks_equal_autograd_in_value_and_gradient(chunk, bias):
    torch.manual_seed(0)
    linear = nn.Linear(8, 50, bias=bias).requires_grad_(False)
    targets, weights = torch.randint(0, 50, (7,)), torch.randn(7)
    hidden = torch.randn(7, 8, requires_grad=True)
    expected = (linear(hidden) / 0.7).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    (expected * weights).sum().backward()
    ours = hidden.detach().clone().requires_grad_()
    got = chosen_log_probs(ours, linear, targets, 0.7, chunk)
    (got * weights).sum().backward()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, hidden.grad, atol=1e-6, rtol=1e-5)


def test_graph_of_the_log_probs_holds_no_logits():
    """The graph holds one number for each hidden unit, not one for each token of the vocabulary."""
    linear = nn.Linear(8, 5000).requires_grad_(False)
    hidden = torch.randn(7, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()), lambda t: t):
        chosen_log_probs(hidden, linear, torch.zeros(7, dtype=torch.long), 1.0, CHUNK)
    assert saved == [7 * 8]


def test_log_probs_in_bfloat16_are_near_those_in_float64():
    torch.manual_seed(0)
    linear = nn.Linear(64, 500).requires_grad_(False)
    hidden, targets = torch.randn(20, 64), torch.randint(0, 500, (20,))
    expected = linear.double()(hidden.double()).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    got = chosen_log_probs(hidden.bfloat16(), linear.bfloat16(), targets, 1.0, CHUNK)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [50, 150, 10_000])  # logits at a time: 1, 3 and all 7 rows of 50
@pytest.mark.parametrize("bias", [False, True])
def test_entropy_in_chunks_equals_autograd_in_value_and_gradient(chunk, bias, temperature, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(8, 50, bias=bias, dtype=dtype).requires_grad_(False)
    targets, (of_log_probs, of_entropy) = torch.randint(0, 50, (7,)), torch.randn(2, 7, dtype=dtype)
    hidden = (3 * torch.randn(7, 8, dtype=dtype)).requires_grad_()
    table = (linear(hidden) / temperature).log_softmax(dim=1)
    expected = table.gather(1, targets[:, None]).squeeze(1), -(table.exp() * table).sum(dim=1)
    (expected[0] * of_log_probs + expected[1] * of_entropy).sum().backward()
    ours = hidden.detach().clone().requires_grad_()
    got = chosen_log_probs_and_entropy(ours, linear, targets, temperature, chunk)
    (got[0] * of_log_probs + got[1] * of_entropy).sum().backward()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad, hidden.grad, atol=4 * tolerance, rtol=10 * tolerance)
    assert torch.equal(got[0], chosen_log_probs(ours, linear, targets, temperature, chunk))


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("chunk", [50, 150, 10_000])  # logits at a time: 1, 3 and all 7 rows of 50
@pytest.mark.parametrize("bias", [False, True])
def test_gradient_of_a_trained_head_equals_autograd(chunk, bias, with_entropy):
    torch.manual_seed(0)
    linear = nn.Linear(8, 50, bias=bias, dtype=torch.float64)
    targets, (of_log_probs, of_entropy) = torch.randint(0, 50, (7,)), torch.randn(2, 7, dtype=torch.float64)
    hidden = (3 * torch.randn(7, 8, dtype=torch.float64)).requires_grad_()
    table = (linear(hidden) / 0.7).log_softmax(dim=1)
    loss = table.gather(1, targets[:, None]).squeeze(1) @ of_log_probs
    if with_entropy:
        loss = loss - (table.exp() * table).sum(dim=1) @ of_entropy
    loss.backward()
    expected = [hidden.grad, *(parameter.grad for parameter in linear.parameters())]
    hidden.grad = None
    linear.zero_grad()
    if with_entropy:
        log_probs, entropy = chosen_log_probs_and_entropy(hidden, linear, targets, 0.7, chunk)
        got = log_probs @ of_log_probs + entropy @ of_entropy
    else:
        got = chosen_log_probs(hidden, linear, targets, 0.7, chunk) @ of_log_probs
    got.backward()
    torch.testing.assert_close(got, loss, atol=1e-12, rtol=1e-12)
    grads = [hidden.grad, *(parameter.grad for parameter in linear.parameters())]
    torch.testing.assert_close(grads, expected, atol=1e-12, rtol=1e-12)


def test_entropy_of_two_tokens_is_that_computed_by_hand():
    """Probabilities 0.8 and 0.2: H = -0.8 log 0.8 - 0.2 log 0.2 = 0.500402; dH/dz_v = -p_v (log p_v + H) = ∓0.221807.

    The third token has the logit -inf: it adds nothing to the entropy, and no gradient.
    """
    linear = nn.Linear(3, 3, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.eye(3))
    linear.bias = nn.Parameter(torch.tensor([0.0, 0.0, -math.inf]), requires_grad=False)
    hidden = torch.tensor([[math.log(0.8), math.log(0.2), 0.0]], requires_grad=True)
    log_probs, entropy = chosen_log_probs_and_entropy(hidden, linear, torch.tensor([1]), 1.0)
    entropy.sum().backward()
    assert log_probs.tolist() == pytest.approx([math.log(0.2)])
    assert entropy.tolist() == pytest.approx([0.500402], abs=1e-6)
    assert hidden.grad[0].tolist() == pytest.approx([-0.221807, 0.221807, 0.0], abs=1e-6)


def test_graph_of_the_entropies_holds_two_numbers_for_each_hidden_unit():
    linear = nn.Linear(8, 5000).requires_grad_(False)
    hidden = torch.randn(7, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()), lambda t: t):
        chosen_log_probs_and_entropy(hidden, linear, torch.zeros(7, dtype=torch.long), 1.0, CHUNK)
    assert saved == [2 * 7 * 8]
