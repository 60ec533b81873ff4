"""Replay: which completions are cut and where, what is sampled from there, and how T-SPMO learns from the new trees."""

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
import torch

from rlsparse.batch import FrozenStates, Problem, Prompt, Rollout, ScoredBatch, Selection
from rlsparse.components.objective.aggregation import PromptMean
from rlsparse.components.reward import Score
from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.model.packing import PACKED
from rlsparse.model.policy import PLAIN, encode_prompt, token_log_probs
from rlsparse.rollout import Replay, RolloutSampler
from rlsparse.rollout.replay import joined
from rlsparse.run import run
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import Clock
from rlsparse.training.collect import Collector, Experience
from rlsparse.training.history import PolicyHistory
from tests.conftest import built, composed, make_rollout
from tests.test_objective import assert_same, gradient, updater
from tests.test_packed import with_adapter
from tests.test_run import SHORT, folder_of, rows

PROBLEM = Problem("", "", "")
BOTH = ("algorithm=tspmo", "replay=on")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cut_takes_right_and_wrong_completions_and_none_twice():
    # prompt 0: right are the 1st and 4th, the latter too short to cut; prompt 1: all wrong
    completions = [[10, 11, 12], [20, 21], [30, 31, 32, 33], [40], [50, 51], [60, 61], [70, 71], [80, 81]]
    rollout = make_rollout(completions, prompts=2)
    correct = torch.tensor([[True, False, False, True], [False] * 4])
    prompts = [Prompt(PROBLEM, (1, 2)), Prompt(PROBLEM, (3, 4))]
    for seed in range(20):
        found, origins = Replay(2, 2).cut(prompts, rollout, correct, generator(seed))
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


def test_cut_takes_each_place_of_a_completion_with_equal_chance():
    rollout = make_rollout([[5, 6, 7, 8, 9]])
    drawing, n = generator(), 4000
    prompt, replay = [Prompt(PROBLEM, (1,))], Replay(1, 0)
    cuts = Counter(replay.cut(prompt, rollout, torch.tensor([[True]]), drawing)[0][0].begun for _ in range(n))
    assert set(cuts) == {1, 2, 3, 4}
    # each 1/4; four standard errors of sqrt(1/4 x 3/4 / 4000) = 0.0068
    assert all(abs(count / n - 0.25) < 0.028 for count in cuts.values())


def test_joined_rollouts_are_padded_to_the_longest():
    states = torch.ones(1, 2, 3)
    first = make_rollout([[5, 6, 7]], prompt=(1, 2))
    second = make_rollout([[8], [9]], prompts=2, prompt=(1, 2, 3, 4))
    both = joined(
        [
            Rollout(**{**vars(first), "frozen_states": FrozenStates(states, torch.ones(1, 3, 3))}),
            Rollout(
                **{**vars(second), "frozen_states": FrozenStates(2 * torch.ones(2, 4, 3), 2 * torch.ones(2, 1, 3))}
            ),
        ]
    )
    assert both.prompt_ids.tolist() == [[0, 0, 1, 2], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert both.prompt_lengths.tolist() == [2, 4, 4]
    assert both.completion_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 0, 0]]
    assert both.mask.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert both.frozen_states.prompt[:, :, 0].tolist() == [[0, 0, 1, 1], [2] * 4, [2] * 4]
    assert both.frozen_states.completion[:, :, 0].tolist() == [[1, 1, 1], [2, 0, 0], [2, 0, 0]]


def test_prompt_mean_with_several_groups_of_a_prompt_is_over_the_transitions_of_all():
    # groups of two: prompt 0 has 2 + 1 tokens, prompt 1 has 1, and the replayed third group, of prompt 0, has 3
    weights = torch.tensor([[1.0, 1], [1, 0], [0, 1], [0, 0], [1, 1], [0, 1]])
    selection = Selection(weights, weights.sum(dim=1))
    # |U| is 6 and 1; then the mean over two prompts
    expected = weights * torch.tensor([1 / 12, 1 / 12, 1 / 2, 1 / 2, 1 / 12, 1 / 12])[:, None]
    assert torch.allclose(PromptMean(l2=0.0)(selection, torch.tensor([0, 1, 0]), max_new_tokens=8), expected)
    of_algorithm = built("algorithm=tspmo").token_scales(selection, torch.ones(6, 2), [0, 1, 0])
    assert torch.allclose(of_algorithm, expected)


class Drawn:
    """Takes the place of the scorer: its verdicts are random, since they do not matter here."""

    def __init__(self):
        self.draws, self.texts = generator(3), []

    def __call__(self, text, problem):
        self.texts.append(text)
        return Score(correct=bool(torch.rand(1, generator=self.draws) < 0.5), answered=True)


NO_HISTORY = PolicyHistory(adapter=None, staleness=0, update=None)


def replayed(policy, *overrides, engine="fast", keep_states=False):
    """Return algorithm, collector and collected experience of two prompts with four completions each and replay."""
    config = (*BOTH, f"rollout={engine}", "rollout.max_new_tokens=14", *overrides)
    algorithm, train = built(*config), composed(*config).train
    sampler = RolloutSampler(policy, algorithm.rollout, MemoryLimits.of(algorithm.rollout.max_rows, train), ALONE)
    streams = {name: stream(0, name) for name in ("rollout", "layer_skip", "replay", "reward")}
    collector = Collector(algorithm, sampler, Drawn(), 4, streams, Clock(policy.device), keep_states, NO_HISTORY, ALONE)
    collected = collector(iter([[encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]]))
    assert len(collected.all.prompts) > len(collected.first.prompts)
    return algorithm, collector, collected


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_groups_of_replay_continue_cut_completions_of_their_prompt(tiny, engine):
    _, collector, collected = replayed(tiny, engine=engine)
    first, seen, origins = collected.first, collected.all, collected.origins
    P, G = len(first.prompts), 4
    assert origins[:P] == [0, 1]
    assert len(seen.scores) == len(seen.texts) == len(seen.prompts) * G == seen.rewards.numel()
    assert seen.texts == collector.score.texts
    lengths, correct = first.rollout.lengths.view(P, G).tolist(), first.correct.tolist()
    long_enough = [
        {right for right, n in zip(*pair, strict=True) if n > 1} for pair in zip(correct, lengths, strict=True)
    ]
    # for each prompt a right completion, where there is one, and then a wrong one
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


def test_replayed_prefix_is_read_once_for_its_group(tiny):
    read = []
    tiny.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))
    seen = replayed(tiny)[2].all
    prefills = [ids for ids in read if ids.shape[1] > 1]
    assert [len(ids) for ids in prefills] == [2, len(seen.prompts) - 2]


def brute_force(policy, seen: Experience, origins):
    """Return the objective, written out with dicts; each transition has a forward pass of its own."""
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


@pytest.mark.parametrize("path", [PACKED, PLAIN], ids=["packed", "plain"])
@pytest.mark.parametrize("layers", ["all", "last_third"])
def test_gradient_of_an_update_with_replay_is_that_of_the_objective_written_out(tiny, path, layers):
    adapter = with_adapter(tiny, f"adapter.layers={layers}")
    tiny.first_adapted = 2 if layers == "last_third" else 0
    overrides = ("objective.l2=0", "train.max_grad_norm=0")
    algorithm, _, collected = replayed(tiny, *overrides, keep_states=path.packed)
    seen, origins = collected.all, collected.origins
    advantages = algorithm.token_advantages(seen.rewards, seen.rollout)
    selection = algorithm.token_sampler(advantages, seen.rollout, generator())
    scales = algorithm.token_scales(selection, advantages, origins)
    update = updater(tiny, adapter, *BOTH, "rollout.max_new_tokens=14", *overrides, path=path)
    metrics = update([ScoredBatch(seen.rollout, advantages, scales)])
    got = gradient(adapter)
    tiny.model.zero_grad()
    objective = brute_force(tiny, seen, origins)
    (-objective).backward()
    assert metrics.loss == pytest.approx(-objective.item(), abs=1e-6)
    assert_same(got, gradient(adapter))


def test_run_with_replay_counts_its_tokens_and_draws_the_same_first_completions(tmp_path):
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


@pytest.mark.parametrize("kind", ["successes", "failures"])
def test_replay_that_cannot_work_is_refused(kind, tmp_path):
    with pytest.raises(ConfigError, match=rf"replay.{kind}=9: a group has train.group_size=8 completions"):
        preflight([composed("algorithm=tspmo", f"replay.{kind}=9", f"runs_dir={tmp_path}")])
    with pytest.raises(ConfigError, match=rf"replay.{kind}=2: only T-SPMO replays.*token_sampler=full"):
        preflight([composed(f"replay.{kind}=2", f"runs_dir={tmp_path}")])
    with pytest.raises(ConfigError, match=rf"replay.{kind}=-1: must be at least 0"):
        preflight([composed("algorithm=tspmo", f"replay.{kind}=-1", f"runs_dir={tmp_path}")])


def test_replay_options_off_and_on_are_inactive_and_active():
    assert built().replay == Replay(0, 0)
    assert not built().replay.active
    assert built(*BOTH).replay == Replay(1, 1)
    assert built(*BOTH).replay.active
