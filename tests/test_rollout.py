"""The engine against generate, against a plain forward, and its sampling against the softmax."""

import pytest
import torch
from scipy import stats

from rlsparse.batch import Problem
from rlsparse.policy import decode, encode_prompt, token_log_probs
from rlsparse.rollout.plain import generate
from rlsparse.rollout.sampling import draw, sample, truncate
from rlsparse.streams import stream
from tests.conftest import composed

QUESTIONS = ["57*4=", "12*3=", "98*7=", "30*2="]


def prompts(policy, questions=QUESTIONS):
    return [encode_prompt(policy, Problem(q, "", ""), q) for q in [*questions, "Tom has 2 boxes with 31 pens each."]]


def test_greedy_equals_generate_token_for_token(tiny):
    config = composed("rollout.max_new_tokens=24").rollout
    rollout = generate(tiny, prompts(tiny), config, 1, stream(0, "x"), greedy=True)
    for row, prompt in enumerate(prompts(tiny)):
        expected = tiny.model.generate(
            torch.tensor([prompt.ids]), max_new_tokens=24, do_sample=False, pad_token_id=tiny.pad_id
        )[0, len(prompt.ids) :]
        got = rollout.completion_ids[row, : int(rollout.lengths[row])]
        assert got.tolist() == expected.tolist()


def test_behaviour_log_probs_equal_a_plain_forward(tiny):
    """Uneven prompts, uneven completions, some cut off, EOS = PAD, a temperature."""
    assert tiny.pad_id in tiny.eos_ids
    config = composed("rollout.max_new_tokens=16", "rollout.temperature=0.7").rollout
    rollout = generate(tiny, prompts(tiny), config, 6, stream(3, "x"))
    assert len(set(rollout.lengths.tolist())) > 3
    assert rollout.ended.any()
    assert not rollout.ended.all()
    for row in range(30):
        prompt, length = prompts(tiny)[row // 6].ids, int(rollout.lengths[row])
        completion = rollout.completion_ids[row, :length]
        ids = torch.cat([torch.tensor(prompt), completion])[None]
        with torch.no_grad():
            logits = tiny.model(ids).logits[0, len(prompt) - 1 : -1].double() / 0.7
        log_p = torch.log_softmax(logits, dim=1)
        expected = log_p.gather(1, completion[:, None]).squeeze(1).float()
        torch.testing.assert_close(rollout.log_probs[row, :length], expected, atol=2e-5, rtol=1e-5)
        entropy = -(log_p.exp() * log_p).sum(dim=1).float()
        torch.testing.assert_close(rollout.entropy[row, :length], entropy, atol=2e-5, rtol=1e-4)
        assert (rollout.log_probs[row, length:] == 0).all()


def test_training_log_probs_equal_the_rollouts(tiny):
    config = composed("rollout.max_new_tokens=20").rollout
    rollout = generate(tiny, prompts(tiny), config, 4, stream(5, "x"))
    rows = torch.tensor([0, 3, 7, 12, 19])
    mask = rollout.mask[rows]
    with torch.no_grad():
        got = token_log_probs(tiny, rollout, rows, mask, 1.0)
    torch.testing.assert_close(got[mask], rollout.log_probs[rows][mask], atol=2e-5, rtol=1e-5)


def test_a_completion_ends_with_eos_or_at_the_limit(tiny):
    config = composed("rollout.max_new_tokens=15").rollout
    rollout = generate(tiny, prompts(tiny), config, 8, stream(1, "x"))
    for row in range(40):
        ids = rollout.completion_ids[row, : int(rollout.lengths[row])].tolist()
        is_eos = [i in tiny.eos_ids for i in ids]
        assert not any(is_eos[:-1])
        assert is_eos[-1] == bool(rollout.ended[row])
        assert rollout.ended[row] or len(ids) == 15
    assert tiny.tokenizer.eos_token in tiny.tokenizer.decode(rollout.completion_ids[rollout.ended][0])
    assert all(tiny.tokenizer.eos_token not in text for text in decode(tiny, rollout))


def test_a_row_does_not_depend_on_the_others(tiny):
    """Rows that finish early leave the batch; the rest must not notice."""
    config = composed("rollout.max_new_tokens=20").rollout
    together = generate(tiny, prompts(tiny), config, 1, stream(2, "x"))
    uniforms = torch.rand(5, 20, generator=stream(2, "x"))
    for row, prompt in enumerate(prompts(tiny)):
        ids = list(prompt.ids)
        for t in range(20):
            with torch.no_grad():
                probs = tiny.model(torch.tensor([ids])).logits[:, -1].softmax(dim=1)
            token = int(draw(probs, uniforms[row, t : t + 1]))
            ids.append(token)
            if token in tiny.eos_ids:
                break
        assert together.completion_ids[row, : int(together.lengths[row])].tolist() == ids[len(prompt.ids) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature):
    n = 40_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5]).expand(n, 5)
    config = composed(f"rollout.temperature={temperature}").rollout
    tokens, log_probs, _ = sample(logits, torch.rand(n, generator=stream(0, "x")), config, greedy=False)
    expected = (logits[0] / temperature).softmax(dim=0)
    observed = torch.bincount(tokens, minlength=5)
    assert stats.chisquare(observed.numpy(), (expected.double() / expected.double().sum() * n).numpy()).pvalue > 1e-4
    torch.testing.assert_close(log_probs, expected.log()[tokens])


def test_top_k_and_top_p_by_hand():
    probs = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
    assert truncate(probs, 2, 1.0).tolist() == [pytest.approx([0.4, 0, 0.3, 0])]
    assert truncate(probs, 0, 0.5).tolist() == [pytest.approx([0.4, 0, 0.3, 0])]  # 0.4 < 0.5 <= 0.4 + 0.3
    assert truncate(probs, 0, 0.39).tolist() == [pytest.approx([0.4, 0, 0, 0])]
    # among the two likeliest 0.4 is 4/7 of the whole, which reaches 0.55
    assert truncate(probs, 2, 0.55).tolist() == [pytest.approx([0.4, 0, 0, 0])]


def test_the_inverse_cdf_never_draws_a_token_of_probability_zero():
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).repeat(3, 1)
    uniform = torch.tensor([0.0, 0.3, 1.0 - 2**-24])
    assert draw(probs, uniform).tolist() == [1, 3, 3]
