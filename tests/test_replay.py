"""Replay: which completions are cut and where, what is sampled from there, and what T-SPMO makes of the new trees."""

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
import torch

from rlsparse.batch import Problem, Prompt, Rollout, ScoredBatch, Selection, FrozenStates
from rlsparse.components.advantage import token_advantages
from rlsparse.components.objective.aggregation import token_scales
from rlsparse.components.reward.verifier import Score
from rlsparse.components.token_sampler import TOKEN_SAMPLERS
from rlsparse.config.schema import ConfigError, KLConfig, ObjectiveConfig, ReplayConfig
from rlsparse.execution.preflight import preflight
from rlsparse.model.packing import packed_log_probs
from rlsparse.model.policy import encode_prompt, token_log_probs
from rlsparse.rollout import ENGINES
from rlsparse.rollout.replay import cut_completions, joined
from rlsparse.run import run
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import Clock
from rlsparse.training.collect import Environment, Experience, with_replay
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import update
from tests.conftest import composed, make_rollout
from tests.test_objective import assert_same
from tests.test_packed import with_adapter
from tests.test_run import SHORT, folder_of, rows

PROBLEM = Problem("", "", "")
BOTH = ("algorithm=tspmo", "token_sampler.replay.successes=1", "token_sampler.replay.failures=1")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_right_and_wrong_completions_are_cut_and_none_twice():
    # prompt 0: right are the 1st and 4th, the latter too short to cut; prompt 1: all wrong
    completions = [[10, 11, 12], [20, 21], [30, 31, 32, 33], [40], [50, 51], [60, 61], [70, 71], [80, 81]]
    rollout = make_rollout(completions, prompts=2)
    correct = torch.tensor([[True, False, False, True], [False] * 4])
    prompts = [Prompt(PROBLEM, (1, 2)), Prompt(PROBLEM, (3, 4))]
    for seed in range(20):
        found, origins = cut_completions(prompts, rollout, correct, ReplayConfig(2, 2), generator(seed))
        assert origins == [0, 0, 0, 1, 1]  # one right is all there is, and two wrong ones of each prompt
        assert len({prompt.ids for prompt in found}) == 5
        kinds = [prompt.ids[2] for prompt in found]  # the first token names the completion
        assert kinds[0] == 10
        assert set(kinds[1:3]) == {20, 30}
        assert set(kinds[3:]) < {50, 60, 70, 80}
        for prompt, p in zip(found, origins, strict=True):
            assert prompt.ids[:2] == prompts[p].ids
            whole = next(c for c in completions if c[0] == prompt.ids[2])
            assert 1 <= prompt.begun < len(whole)
            assert prompt.ids[2:] == tuple(whole[: prompt.begun])


def test_each_place_of_a_completion_is_cut_alike():
    rollout = make_rollout([[5, 6, 7, 8, 9]])
    drawing, n = generator(), 4000
    prompt, replay = [Prompt(PROBLEM, (1,))], ReplayConfig(1, 0)
    cuts = Counter(
        cut_completions(prompt, rollout, torch.tensor([[True]]), replay, drawing)[0][0].begun for _ in range(n)
    )
    assert set(cuts) == {1, 2, 3, 4}
    # each 1/4; standard error sqrt(1/4 x 3/4 / 4000) = 0.0068, four of them
    assert all(abs(count / n - 0.25) < 0.028 for count in cuts.values())


def test_rollouts_joined_by_hand():
    states = torch.ones(1, 2, 3)
    first = make_rollout([[5, 6, 7]], prompt=(1, 2))
    second = make_rollout([[8], [9]], prompts=2, prompt=(1, 2, 3, 4))
    both = joined(
        [
            Rollout(**{**vars(first), "trunk": FrozenStates(states, torch.ones(1, 3, 3))}),
            Rollout(**{**vars(second), "trunk": FrozenStates(2 * torch.ones(2, 4, 3), 2 * torch.ones(2, 1, 3))}),
        ]
    )
    assert both.prompt_ids.tolist() == [[0, 0, 1, 2], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert both.prompt_lengths.tolist() == [2, 4, 4]
    assert both.completion_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 0, 0]]
    assert both.mask.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert both.trunk.prompt[:, :, 0].tolist() == [[0, 0, 1, 1], [2] * 4, [2] * 4]
    assert both.trunk.completion[:, :, 0].tolist() == [[1, 1, 1], [2, 0, 0], [2, 0, 0]]


def test_the_transitions_of_all_trees_of_a_prompt_share_its_mean():
    # groups of two: prompt 0 has 2 + 1 tokens, prompt 1 has 1, and the replayed third group, of prompt 0, has 3
    weights = torch.tensor([[1.0, 1], [1, 0], [0, 1], [0, 0], [1, 1], [0, 1]])
    selection = Selection(weights, weights.sum(dim=1))
    ones = torch.ones(6, 2)
    got = token_scales(selection, ones, ObjectiveConfig("prompt_mean", 0.0), [0, 1, 0], 8, KLConfig(0.0))
    # |U| is 6 and 1; then the mean over two prompts
    assert torch.allclose(got, weights * torch.tensor([1 / 12, 1 / 12, 1 / 2, 1 / 2, 1 / 12, 1 / 12])[:, None])


class Drawn:
    """Stands where the verifier does: right or wrong from a seed, since what it says does not matter here."""

    def __init__(self):
        self.draws, self.texts = generator(3), []

    def score(self, text, answer):
        self.texts.append(text)
        return Score(correct=bool(torch.rand(1, generator=self.draws) < 0.5), answered=True)


def replayed(policy, *overrides, engine="fast", keep_states=False, left_out=()):
    """Two prompts, four completions each, and what replay adds."""
    config = composed(*BOTH, "train.group_size=4", "rollout.max_new_tokens=14", *overrides)
    environment = Environment(policy, ENGINES[engine], Drawn(), config, Clock(policy.device), keep_states)
    prompts = [encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]
    first = environment.experience(prompts, list(left_out), stream(0, "rollout"))
    seen, origins = with_replay(environment, first, list(left_out), stream(0, "replay"))
    assert len(seen.prompts) > len(first.prompts)
    return config, environment, first, seen, origins


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_what_replay_adds(tiny, engine):
    _, environment, first, seen, origins = replayed(tiny, engine=engine)
    P, G = len(first.prompts), 4
    assert origins[:P] == [0, 1]
    assert len(seen.scores) == len(seen.texts) == len(seen.prompts) * G == seen.rewards.numel()
    assert seen.texts == environment.verifier.texts
    lengths, correct = first.rollout.lengths.view(P, G).tolist(), first.correct.tolist()
    long_enough = [
        {right for right, n in zip(*pair, strict=True) if n > 1} for pair in zip(correct, lengths, strict=True)
    ]
    # of each prompt a right completion, where there is one, and then a wrong one
    kinds = [kind for p in range(P) for kind in (True, False) if kind in long_enough[p]]
    assert len(kinds) == len(seen.prompts) - P
    for group in range(P, len(seen.prompts)):
        prompt, of_prompt = seen.prompts[group], origins[group]
        begun = prompt.ids[-prompt.begun :]
        assert prompt.ids[: -prompt.begun] == first.prompts[of_prompt].ids
        start = tiny.tokenizer.decode(begun, skip_special_tokens=True)
        source = zip(first.texts[of_prompt * G : (of_prompt + 1) * G], correct[of_prompt], strict=True)
        assert any(text.startswith(start) for text, right in source if right is kinds[group - P])
        for row in range(group * G, (group + 1) * G):
            length = int(seen.rollout.lengths[row])
            assert prompt.begun + length <= 14
            own = tiny.tokenizer.decode(seen.rollout.completion_ids[row, :length], skip_special_tokens=True)
            assert seen.texts[row] == start + own  # the verifier reads the whole completion
            assert bool(seen.rollout.ended[row]) == (int(seen.rollout.completion_ids[row, length - 1]) in tiny.eos_ids)
    assert seen.sampled - first.sampled == int(seen.rollout.lengths[P * G :].sum())
    with torch.no_grad():
        rows_ = torch.arange(len(seen.texts))
        expected = token_log_probs(tiny, seen.rollout, rows_, seen.rollout.mask, 1.0)
    torch.testing.assert_close(seen.rollout.log_probs, expected, atol=2e-5, rtol=1e-5)


def test_a_replayed_prefix_is_read_once_for_its_group(tiny):
    read = []
    tiny.model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    seen = replayed(tiny)[3]
    prefills = [ids for ids in read if ids.shape[1] > 1]
    assert [len(ids) for ids in prefills] == [2, len(seen.prompts) - 2]


def brute_force(policy, seen: Experience, origins):
    """The objective written out with dicts, each transition's probability from a forward pass of its own."""
    total = 0.0
    for p in set(origins):
        terms = []
        for group in (i for i, origin in enumerate(origins) if origin == p):
            through = defaultdict(list)
            for g in range(4):
                row = group * 4 + g
                ids = tuple(seen.rollout.completion_ids[row, : seen.rollout.lengths[row]].tolist())
                for end in range(len(ids) + 1):
                    through[ids[:end]].append(float(seen.rewards[group, g]))
            for node in [n for n in through if n]:
                value, parent = (sum(x) / len(x) for x in (through[node], through[node[:-1]]))
                if abs(value - parent) > 1e-9:
                    ids = torch.tensor([[*seen.prompts[group].ids, *node]])
                    logits = policy.model(input_ids=ids).logits[0, -2]
                    terms.append(logits.softmax(dim=0)[node[-1]] * (value - parent))
        total = total + sum(terms) / max(1, len(terms))
    return total / len(set(origins))


@pytest.mark.parametrize("path", [packed_log_probs, token_log_probs], ids=lambda f: f.__name__)
@pytest.mark.parametrize("layers", ["all", "last_third"])
def test_the_gradient_is_that_of_the_objective_written_out(tiny, path, layers):
    adapter = with_adapter(tiny, f"adapter.layers={layers}")
    tiny.first_adapted = 2 if layers == "last_third" else 0
    config, _, _, seen, origins = replayed(
        tiny, "objective.l2=0", "train.max_grad_norm=0", keep_states=path is packed_log_probs
    )
    advantages = token_advantages(seen.rewards, seen.rollout, config.advantage, config.negative_feedback)
    selection = TOKEN_SAMPLERS["prefix_tree"](advantages, seen.rollout, config.token_sampler, generator())
    scales = token_scales(selection, advantages, config.objective, origins, 14, config.kl)
    metrics = update(
        tiny,
        path,
        adapter.optimizer(0.0, 0.0),
        ScoredBatch(seen.rollout, advantages, scales),
        config,
        FitMicrobatches(config.train),
    )
    got = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    tiny.model.zero_grad()
    objective = brute_force(tiny, seen, origins)
    (-objective).backward()
    assert metrics.loss == pytest.approx(-objective.item(), abs=1e-6)
    assert_same(got, torch.cat([p.grad.flatten() for p in adapter.parameters()]))


def test_a_run_counts_what_replay_costs_and_keeps_the_rest_of_its_draws(tmp_path):
    plain, replaying = (
        composed(*SHORT, f"runs_dir={tmp_path}", *more) for more in (["algorithm=tspmo"], [*BOTH, "layer_skip=r25"])
    )
    replaying_whole = composed(*SHORT, *BOTH, f"runs_dir={tmp_path}")
    summaries = [run(config) for config in (plain, replaying_whole, replaying)]
    assert [s["status"] for s in summaries] == ["finished"] * 3
    assert [s["tokens"]["replayed"] > 0 for s in summaries] == [False, True, True]
    without, with_it = (
        [row for row in rows(folder_of(config)) if row["kind"] == "train"] for config in (plain, replaying_whole)
    )
    for name in ("task/reward_mean", "rollout/length_mean", "rollout/entropy"):
        assert without[0][name] == with_it[0][name]  # the same completions of the same prompts
    for before, after in pairwise([{"tokens/generated": 0, "tokens/replayed": 0}, *with_it]):
        new = after["tokens/generated"] - before["tokens/generated"]
        more = after["tokens/replayed"] - before["tokens/replayed"]
        assert new - more == round(after["rollout/length_mean"] * 16)  # 4 prompts x 4 completions
        assert (more > 0) == (after["rollout/replayed_groups"] > 0)
    assert {row["rollout/layers_skipped"] for row in rows(folder_of(replaying)) if row["kind"] == "train"} == {1}


def test_replay_with_another_algorithm_is_refused(tmp_path):
    for kind in ("successes", "failures"):
        with pytest.raises(ConfigError, match=rf"replay.{kind}=9: a group has train.group_size=8 completions"):
            preflight([composed("algorithm=tspmo", f"token_sampler.replay.{kind}=9", f"runs_dir={tmp_path}")])
        with pytest.raises(ConfigError, match=rf"replay.{kind}=2: only T-SPMO replays.*token_sampler=full"):
            preflight([composed(f"token_sampler.replay.{kind}=2", f"runs_dir={tmp_path}")])
        with pytest.raises(ConfigError, match=rf"replay.{kind}=-1: must be 0 or more"):
            preflight([composed("algorithm=tspmo", f"token_sampler.replay.{kind}=-1", f"runs_dir={tmp_path}")])
