"""Log-probabilities in chunks, against autograd over the whole vocabulary."""

import pytest
import torch
from torch import nn

from rlsparse.model.fused_head import CHUNK, chosen_log_probs


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
