"""Rewards: each against values computed by hand, weighted sums, rewards of a user's own, and GDPO."""

import json
import math
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem, RewardTerms
from rlsparse.components.advantage.gdpo import Gdpo
from rlsparse.components.advantage.group import GroupZscore
from rlsparse.components.component import ComponentError, build, describe, use_import_path
from rlsparse.components.reward import Completion, GroupReward, Reward, Score, Term, Terms
from rlsparse.components.reward.correctness import Correctness
from rlsparse.components.reward.format import Format
from rlsparse.components.reward.length import CosineLength, LengthOnly, Repetition, SoftOverlong
from rlsparse.components.reward.verdict import Answer, Inverted, Random
from rlsparse.config.compose import compose
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError
from rlsparse.results.names import method_names
from rlsparse.tracking.metrics import is_documented
from rlsparse.training.collect import Experience
from rlsparse.training.metrics import sample_rows, term_metrics
from rlsparse.training.rewards import SlowNotice, rewards_of
from tests.commands import run_command
from tests.conftest import composed, make_rollout

RIGHT, WRONG, NONE = Score(True, True), Score(False, True), Score(False, False)
PROBLEM = Problem("57*4=", "228", "")
ANSWER = "+reward@reward.terms.answer=answer"
LENGTH = "+reward@reward.terms.length=cosine_length"


def completion(score=RIGHT, text="228", ids=(5, 6, 7), draw=0.5):
    return Completion(text, len(ids), True, PROBLEM, score, tuple(ids), draw)


def of_length(tokens, score=RIGHT):
    return completion(score, ids=range(tokens))


def quiet():
    return SlowNotice(lambda: 0.0)


def reward_of(*overrides, folder=None):
    config = compose(overrides, [str(folder)] if folder else [])
    use_import_path(config.import_path)
    return build("reward", config.reward, Reward)


# each reward


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (Answer(), [1, 0, 0]),
        (Correctness(correct=1.0, wrong=-1.0, format=0.5), [1.5, -0.5, -1]),
        (Inverted(missing=0.0), [0, 1, 0]),
        (Inverted(missing=1.0), [0, 1, 1]),
        (Format(answer=True, think=False, opened=False), [1, 1, 0]),
    ],
)
def test_reward_of_a_right_wrong_and_missing_answer(reward, expected):
    assert [reward(completion(score)) for score in (RIGHT, WRONG, NONE)] == expected


def test_random_reward_is_1_where_the_draw_is_below_gamma():
    assert [Random(gamma=0.3)(completion(draw=draw)) for draw in (0.0, 0.2999, 0.3, 0.9)] == [1, 1, 0, 0]
    assert Random(gamma=0.0)(completion(draw=0.0)) == 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    # L_max 10, L_cache 0.4 * 10 = 4: 0 up to 6, then (6 - L) / 4, which is -1 at 10
    [(6, 0.0), (7, -0.25), (9, -0.75), (10, -1.0), (11, -1.0)],
)
def test_soft_overlong_is_equation_13_of_dapo(tokens, expected):
    assert SoftOverlong(max_tokens=10, cache=0.4)(of_length(tokens)) == expected


@pytest.mark.parametrize(("cache", "tokens"), [(0.0, 10), (0.04, 10)])  # 0.04 * 10 = 0.4, which is 0 whole tokens
def test_soft_overlong_whose_cache_has_no_token_is_refused(cache, tokens):
    values = {"_target_": f"{PACKAGE}.length.SoftOverlong", "max_tokens": tokens, "cache": cache}
    with pytest.raises(ConfigError, match=rf"^reward.cache={cache}: is 0 tokens of max_tokens=10, .* larger share"):
        build("reward", values, Reward)
    assert build("reward", {**values, "cache": 0.1}, Reward)(of_length(10)) == -1  # a cache of one token


@pytest.mark.parametrize(
    ("tokens", "score", "expected"),
    [
        # (1 + cos(pi L / 12)) / 2 is 3/4 at L = 4 (cos 60° = 1/2), 1/2 at 6 and 1/4 at 8 (cos 120° = -1/2)
        (0, RIGHT, 2.0),
        (4, RIGHT, 1 + 3 / 4),
        (6, RIGHT, 1 + 1 / 2),
        (0, WRONG, -10.0),
        (6, WRONG, -10 / 2),
        (8, NONE, -10 / 4),
        (12, RIGHT, -20.0),
        (13, WRONG, -20.0),
    ],
)
def test_cosine_length_matches_values_computed_by_hand(tokens, score, expected):
    reward = CosineLength(
        max_tokens=12, correct_short=2.0, correct_long=1.0, wrong_short=-10.0, wrong_long=0.0, exceeded=-20.0
    )
    assert reward(of_length(tokens, score)) == pytest.approx(expected)


def test_length_only_is_linear_and_knows_no_verdict():
    reward = LengthOnly(max_tokens=10, short=1.0, long=-1.0)
    assert [reward(of_length(n, WRONG)) for n in (0, 5, 10, 20)] == [1, 0, -1, -1]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4], 0.0),
        ([5, 5, 5, 5, 5], -0.75),  # four 2-grams, one distinct: 1/4 - 1
        ([1, 2, 1, 2], -1 / 3),  # 12, 21, 12: 2/3 - 1
        ([1], 0.0),
    ],
)
def test_repetition_is_the_share_of_repeated_n_grams(ids, expected):
    assert Repetition(size=2)(completion(ids=ids)) == pytest.approx(expected)


THOUGHTS = {
    "<think>a</think>b": (1, 1),
    "<think>a\nb</think>\n\nc": (1, 1),
    "a</think>b": (0, 0),
    " <think>a</think>b": (0, 0),
    "<think>a": (0, 0),
    "<think>a<think>b</think>c": (0, 0),
    "": (0, 0),
    # TRL accepts these: no text behind the block, and a block that is closed twice
    "<think>a</think> \n": (0, 1),
    "<think>a</think>b</think>c": (0, 1),
}


@pytest.mark.parametrize(("text", "expected"), [(text, ours) for text, (ours, _) in THOUGHTS.items()])
def test_think_is_one_block_and_text(text, expected):
    assert Format(answer=False, think=True, opened=False)(completion(NONE, text)) == expected


def test_format_of_a_block_that_the_prompt_opens():
    opened = Format(answer=False, think=True, opened=True)
    assert [opened(completion(text=text)) for text in ("a</think>b", "<think>a</think>b", "a")] == [1, 0, 0]
    both = Format(answer=True, think=True, opened=False)
    assert [both(completion(score, "<think>a</think>b")) for score in (WRONG, NONE)] == [1, 0]


def test_rewards_that_trl_has_agree_with_it():
    rewards = pytest.importorskip("trl.rewards", reason="trl is in the test extra")
    chats = [[{"content": text}] for text in THOUGHTS]
    assert rewards.think_format_reward(chats) == [trl for _, trl in THOUGHTS.values()]
    lengths = list(range(1, 26))
    theirs = rewards.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=4)
    ours = SoftOverlong(max_tokens=20, cache=0.2)
    assert [ours(of_length(n)) for n in lengths] == theirs([[1] * n for n in lengths])
    draws = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, (n,), generator=draws).tolist() for n in lengths]
    assert [Repetition(size=3)(completion(ids=one)) for one in ids] == pytest.approx(
        rewards.get_repetition_penalty_reward(ngram_size=3, max_penalty=-1.0)(completion_ids=ids)
    )


def test_options_of_the_group_are_rewards_alone_and_as_terms():
    lengths = ["soft_overlong", "cosine_length", "length_only"]
    options = ["answer", "format", "format_only", "think", "repetition", "random", "inverted", *lengths]
    words = [f"+reward@reward.terms.{option}={option}" for option in options]
    together = reward_of("reward=terms", *words, "rollout.max_new_tokens=12")
    assert list(together.terms) == options
    assert together.term_count == len(options)
    assert {together.terms[option].reward.max_tokens for option in lengths} == {12}
    alone = reward_of("reward=cosine_length", "rollout.max_new_tokens=12")
    assert together.terms["cosine_length"] == Term(1.0, alone)
    assert alone.term_count == 1


# weighted sums


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with rewards of a user's own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    folder = tmp_path / "mine"
    (folder / "reward").mkdir(parents=True)
    (folder / "own_terms.py").write_text(
        "from dataclasses import dataclass\n"
        "from rlsparse.components.reward import GroupReward, Reward\n"
        "@dataclass(frozen=True)\n"
        "class Brief(Reward):\n"
        "    price: float\n"
        "    def __call__(self, completion):\n"
        "        return 1 / (self.price - 1) - self.price * completion.tokens\n"
        "@dataclass(frozen=True)\n"
        "class Longest(GroupReward):\n"
        "    def of_group(self, completions):\n"
        "        most = max(one.tokens for one in completions)\n"
        "        return [float(one.tokens == most) for one in completions]\n"
    )
    (folder / "reward" / "brief.yaml").write_text("_target_: own_terms.Brief\nprice: 2.0\n")
    (folder / "reward" / "longest.yaml").write_text("_target_: own_terms.Longest\n")
    (folder / "reward" / "both.yaml").write_text(
        "defaults:\n"
        "  - terms\n"
        "  - /reward@terms.answer: answer\n"
        "  - /reward@terms.length: cosine_length\n"
        "  - /reward@terms.own: brief\n"
        "  - _self_\n"
        "terms:\n"
        "  length: {weight: 0.1}\n"
        "  own: {price: 3.0}\n"
    )
    yield folder
    use_import_path([])
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def weights(reward):
    return {name: (type(term.reward).__name__, term.weight) for name, term in reward.terms.items()}


def test_terms_of_a_command_line_and_of_a_yaml_of_a_user(mine):
    typed = reward_of("reward=terms", ANSWER, LENGTH, "reward.terms.length.weight=0.1")
    assert weights(typed) == {"answer": ("Answer", 1.0), "length": ("CosineLength", 0.1)}
    written = reward_of("reward=both", folder=mine)
    assert weights(written) == {**weights(typed), "own": ("Brief", 1.0)}
    assert written.terms["own"].reward.price == 3.0
    words = ["reward@reward.terms.length=repetition", "~reward.terms.answer", "reward.terms.own.weight=-2"]
    changed = reward_of("reward=both", *words, folder=mine)
    assert weights(changed) == {"length": ("Repetition", 0.1), "own": ("Brief", -2.0)}
    mapping = "{a: {_target_: own_terms.Brief, price: 1}, b: {_target_: own_terms.Longest, weight: 2}}"
    assert weights(reward_of("reward=terms", f"reward.terms={mapping}", folder=mine)) == {
        "a": ("Brief", 1.0),
        "b": ("Longest", 2.0),
    }


def test_terms_of_an_experiment_of_a_user(mine):
    (mine / "experiment").mkdir()
    (mine / "experiment" / "two.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  - /reward@reward.terms.answer: answer\n"
        "  - /reward@reward.terms.own: brief\n"
        "  - override /reward: terms\n"
        "experiment: {name: two}\n"
        "reward: {terms: {own: {weight: 0.5}}}\n"
    )
    reward = reward_of("experiment=two", "reward.terms.answer.weight=3", folder=mine)
    assert weights(reward) == {"answer": ("Answer", 3.0), "own": ("Brief", 0.5)}


def test_weighted_sum_and_its_terms_match_values_computed_by_hand():
    reward = Terms({"answer": Term(2.0, Answer()), "short": Term(-0.5, LengthOnly(10, short=0.0, long=1.0))})
    groups = [[of_length(10), of_length(5, WRONG)], [of_length(2, NONE), of_length(0)]]
    found = rewards_of(reward, groups, quiet())
    assert found.terms == [[1, 0, 0, 1], [1, 0.5, 0.2, 0]]
    # 2*1 - 0.5*1, 0 - 0.5*0.5, 0 - 0.5*0.2, 2*1 - 0
    assert found.total == pytest.approx([1.5, -0.25, -0.1, 2.0])
    assert found.weights == {"answer": 2.0, "short": -0.5}
    assert [reward(one) for group in groups for one in group] == pytest.approx(found.total)


def test_single_reward_has_no_terms():
    found = rewards_of(Answer(), [[completion(), completion(WRONG)]], quiet())
    assert (found.total, found.weights, found.terms) == ([1.0, 0.0], {}, [])


BOTH = ["reward=terms", ANSWER, LENGTH]
CLASS = "_target_: rlsparse.components.reward.verdict.Answer"
PACKAGE = "rlsparse.components.reward"
VERDICT = {"_target_": f"{PACKAGE}.verdict.Answer"}
SHORT = {"_target_": f"{PACKAGE}.length.LengthOnly", "max_tokens": 9, "short": 1.0, "long": 0.0}


@pytest.mark.parametrize(
    ("terms", "lines"),
    [
        ({}, ["reward.terms: has no terms; give some, such as +reward@reward.terms.answer=answer"]),
        (None, ["reward.terms=null: must be a mapping"]),
        (
            {"answer": {**VERDICT, "weight": 0}, "length": {**SHORT, "weight": -0.0}},
            [
                "reward.terms: all weights (answer, length) are 0, so that no completion has a reward; give one of "
                "them another weight, such as reward.terms.answer.weight=1"
            ],
        ),
        (
            {"answer": {**VERDICT, "weight": "much"}, "length": {**SHORT, "max": 1}, "lenght": {"weight": 1}, "b": 3},
            [
                "reward.terms.answer.weight=much: must be a number",
                "reward.terms.length.max: no such key; here there are long, max_tokens, short, weight",
                "reward.terms.lenght: names no class in _target_; take an option of the group, "
                "+reward@reward.terms.lenght=OPTION, or leave the term out, ~reward.terms.lenght",
                "reward.terms.b=3: names no class in _target_; take an option of the group, "
                "+reward@reward.terms.b=OPTION, or leave the term out, ~reward.terms.b",
            ],
        ),
        (
            {"length": {**SHORT, "max_tokens": 0, "weight": math.nan}, "answer": {**VERDICT, "weight": None}},
            [
                "reward.terms.length.weight=nan: must be a finite number",
                "reward.terms.length.max_tokens=0: must be at least 1",
                "reward.terms.answer.weight=null: must be a number",
            ],
        ),
        (
            {"my-length": SHORT, "a b": SHORT, 1: SHORT, "ä": SHORT},
            [
                f"reward.terms.{name}: is no name of a term; use letters, digits and _, such as reward.terms.length"
                for name in ("my-length", "a b", 1, "ä")
            ],
        ),
        (
            {"f": {"_target_": f"{PACKAGE}.format.Format", "answer": False, "think": False, "opened": False}},
            ["reward.terms.f.answer=false: with think=false every completion has the form; set one of them to true"],
        ),
        (
            {"inner": {"_target_": f"{PACKAGE}.terms.Terms", "terms": {"answer": VERDICT}}},
            [
                f"reward.terms.inner._target_={PACKAGE}.terms.Terms: is a sum itself and cannot be a term; "
                "give its terms to reward.terms"
            ],
        ),
        (
            {"answer": {**VERDICT, "weigth": 2}},
            ["reward.terms.answer.weigth: no such key; here there are weight"],
        ),
    ],
)
def test_sum_that_cannot_be_built_is_refused_with_every_problem(terms, lines):
    with pytest.raises(ConfigError) as error:
        build("reward", {"_target_": f"{PACKAGE}.terms.Terms", "terms": terms}, Reward)
    assert str(error.value).splitlines() == lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*BOTH, "reward.terms.lenght.weight=1"],
            "reward.terms.lenght: names no class in _target_; take an option of the group, +reward@reward.terms.",
        ),
        ([ANSWER], "reward.terms: Correctness is a single reward and has no terms; take reward=terms for a sum"),
        (
            [*BOTH[:2], "+reward@reward.terms.answer=offset"],
            f"{ANSWER} and +reward@reward.terms.answer=offset: the term reward.terms.answer is given twice; give one",
        ),
        (
            [*BOTH[:2], f"reward.terms={{answer: {{{CLASS}}}}}"],
            f"{ANSWER} and reward.terms={{answer: {{{CLASS}}}}}: the term reward.terms.answer is given twice",
        ),
        (
            ["reward=terms", "reward.terms={answer: {weight: 1}, b: {weight: 1}, answer: {weight: 2}}"],
            "reward.terms={answer: {weight: 1}, b: {weight: 1}, answer: {weight: 2}}: reward.terms has the key "
            "answer twice, and only the last one would count; give one",
        ),
        (
            ["reward=terms", "+reward@terms.answer=answer"],
            "+reward@terms.answer=answer: an option of reward can be a term of the sum; write +reward@reward.terms.",
        ),
        (
            ["reward=terms", "+reward@reward.terms.t=terms"],
            "+reward@reward.terms.t=terms: the option terms is a sum itself and cannot be a term",
        ),
        (["reward=answer", "reward.weight=2"], "reward.weight=2: a weight belongs to a term; take reward=terms and"),
    ],
)
def test_words_that_make_no_sum_are_refused_in_one_line(words, message):
    with pytest.raises(ConfigError) as error:
        reward_of(*words)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


def test_mapping_of_a_command_line_may_have_a_key_at_two_places():
    mapping = f"{{a: {{{CLASS}, weight: 1}}, b: {{{CLASS}, weight: '{{x:1,x:2}}'}}}}"
    with pytest.raises(ConfigError, match=r"reward.terms.b.weight=\{x:1,x:2\}: must be a number"):
        reward_of("reward=terms", f"reward.terms={mapping}")  # a text in quotes is no mapping


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"defaults: [terms, _self_]\nterms:\n  a: {{{CLASS}}}\n  a: {{{CLASS}}}\n", r"bad.yaml, line 4 .* key a\)"),
        (
            "defaults:\n  - terms\n  - /reward@terms.a: answer\n  - /reward@terms.a: random\n",
            r"bad.yaml: its defaults list has two options for terms.a",
        ),
        ("defaults: [terms, answer@terms.a, random@terms.a]\n", r"its defaults list has two options for terms.a"),
        (f"terms: {{a: {{{CLASS}}}}}\n", r"reward._target_=null: .*; or begin its yaml file with an option"),
        ("defaults: [terms, _self_]\nterms: answer\n", r"(?s)terms"),
        ("defaults: [terms, _self_]\nterms: {1: {weight: 1}}\n", r"reward.terms.1: is no name of a term"),
        (
            f"defaults: [terms, _self_]\nterms: {{a: {{{CLASS}}}}}\nmore: 1\n",
            r"reward.more: no such key; here there are",
        ),
        (
            "defaults: [terms, both@terms.inner, _self_]\n",
            r"reward.terms.inner._target_=\S+: is a sum itself and cannot be a term",
        ),
    ],
)
def test_yaml_of_a_user_that_makes_no_sum_is_refused(mine, text, message):
    (mine / "reward" / "bad.yaml").write_text(text)
    with pytest.raises((ConfigError, HydraException), match=message):
        reward_of("reward=bad", folder=mine)


def test_class_with_a_field_named_weight_is_refused_as_a_term(mine):
    source = (mine / "own_terms.py").read_text().replace("price", "weight")
    (mine / "own_terms.py").write_text(source)
    with pytest.raises(ConfigError, match=r"reward.terms.own.weight: is the weight of the term, so its class can have"):
        reward_of("reward=terms", "reward.terms={own: {_target_: own_terms.Brief, weight: 1}}", folder=mine)


# run ids


def part_of_id(*overrides, folder=None):
    return json.dumps(describe(reward_of(*overrides, folder=folder), files_digest), sort_keys=True)


def test_run_id_has_class_values_and_weight_of_each_term():
    before = part_of_id(*BOTH)
    assert part_of_id("reward=terms", LENGTH, ANSWER) == before  # the order of terms does not count
    assert part_of_id(*BOTH, "reward.terms.answer.weight=1") == before  # 1 is the weight of a term that gives none
    others = [part_of_id(*BOTH, f"reward.terms.length.{word}") for word in ("weight=0.1", "exceeded=0")]
    assert len({before, *others, part_of_id(*BOTH[:2]), part_of_id("reward=answer")}) == 5


def test_run_id_of_a_single_reward_is_its_class_and_values():
    assert describe(reward_of("reward=signed"), files_digest) == {
        "class": "Correctness",
        "correct": 1.0,
        "wrong": -1.0,
        "format": 0.0,
    }


def test_run_id_has_the_source_of_a_term_of_a_user(mine):
    before = part_of_id("reward=both", folder=mine)
    assert part_of_id("reward=both", folder=mine) == before
    (mine / "own_terms.py").write_text((mine / "own_terms.py").read_text() + "\n# changed\n")
    assert part_of_id("reward=both", folder=mine) != before


def test_name_of_a_method_shows_its_terms_without_packages():
    words = [("reward=terms", ANSWER, LENGTH, f"reward.terms.length.weight={weight}") for weight in (0, 0.1)]
    runs = pd.DataFrame({"method_hash": ["a", "b"], "algorithm": ["grpo", "grpo"], "overrides": words})
    assert method_names(runs, [set()]) == [
        f"grpo reward=terms reward.answer=answer reward.length=cosine_length reward.length.weight={weight}"
        for weight in (0, 0.1)
    ]


# calls of rewards of a user's own


@dataclass(frozen=True)
class Returns(GroupReward):
    """Returns what it is told."""

    values: object

    def of_group(self, completions):
        return self.values


def test_group_reward_sees_all_completions_of_a_prompt_at_once(mine):
    reward = reward_of("reward=terms", "+reward@reward.terms.longest=longest", ANSWER, folder=mine)
    groups = [[of_length(3), of_length(5)], [of_length(2, WRONG), of_length(1)]]
    assert rewards_of(reward, groups, quiet()).terms == [[0, 1, 1, 0], [1, 1, 0, 1]]
    alone = reward_of("reward=longest", folder=mine)
    assert rewards_of(alone, groups, quiet()).total == [0, 1, 1, 0]
    assert alone(of_length(3)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"of_group returned 1 for 2 completions; return a list with one number for each"),
        (None, r"of_group returned NoneType for 2 completions"),
        ((x for x in (1.0, 2.0)), r"of_group returned generator for 2 completions"),
        ({0.5: "a", 1.0: "b"}, r"of_group returned dict for 2 completions; return a list"),
        ({0.5, 1.0}, r"of_group returned set for 2 completions"),
        ("01", r"of_group returned str for 2 completions"),
        (torch.ones(2, 1), r"of_group returned Tensor for 2 completions"),
        (torch.ones(3), r"of_group returned 3 for 2 completions"),
        ([1.0, math.nan], r"returned nan for '228'; return a finite number"),
        ([1.0, math.inf], r"returned inf for '228'; return a finite number"),
        ([1.0, 10**400], r"returned 10+\.\.\.0+ for '228'; return a finite number"),
        ([True, 1.0], r"returned True for '228'; return a finite number"),
        (["1", 1.0], r"returned '1' for '228'; return a finite number"),
    ],
)
def test_group_reward_that_returns_other_than_a_number_for_each_is_an_error(values, message):
    group = [completion(), completion()]
    with pytest.raises(ComponentError, match=rf"^reward \(.*test_reward.py\): {message}"):
        rewards_of(Returns(values), [group], quiet())
    with pytest.raises(ComponentError, match=r"^reward.terms.own \(.*test_reward.py\): "):
        rewards_of(Terms({"own": Term(1.0, Returns(values))}), [group], quiet())


@pytest.mark.parametrize("values", [(0.5, 1), torch.tensor([0.5, 1.0]), np.array([0.5, 1.0])], ids=type)
def test_group_reward_may_return_a_tuple_a_tensor_or_an_array(values):
    assert rewards_of(Returns(values), [[completion(), completion()]], quiet()).total == [0.5, 1.0]


def test_term_that_raises_is_named_with_its_file_and_line(mine):
    reward = reward_of("reward=both", "reward.terms.own.price=1", folder=mine)  # 1 / (1 - 1) in line 7
    expected = r"^reward.terms.own: .*/mine/own_terms.py, line 7: ZeroDivisionError: "
    with pytest.raises(ComponentError, match=expected):
        rewards_of(reward, [[completion()]], quiet())


@dataclass(frozen=True)
class Raises(Reward):
    """Raises an error with a long message of many lines."""

    def __call__(self, completion):
        raise RuntimeError("no answer\n" * 100)


def test_reward_that_raises_many_lines_is_named_in_one_short_line():
    with pytest.raises(ComponentError, match=r"^reward: .*test_reward.py, line \d+: RuntimeError: no answer ") as error:
        rewards_of(Raises(), [[completion()]], quiet())
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) == len("reward: ") + 300 + len("...")
    assert isinstance(error.value.__cause__, RuntimeError)  # with its whole text in the traceback


def test_sum_that_a_float32_cannot_hold_is_an_error():
    reward = Terms({"own": Term(1e20, Returns([1e20]))})
    with pytest.raises(ComponentError, match=r"reward: a weighted sum of terms is 1e\+40"):
        rewards_of(reward, [[completion()]], quiet())


def test_slow_reward_says_every_10_s_how_far_it_is(logged):
    # the times of the start and of each of 6 completions; the last one needs no line
    times = iter([0.0, 9.0, 11.0, 20.0, 21.0, 22.0, 40.0])
    reward = Terms({"judge": Term(1.0, Answer())})
    rewards_of(reward, [[completion()] * 3, [completion()] * 3], SlowNotice(lambda: next(times)))
    assert logged == [
        "reward.terms.judge: 2 of 6 completions are done",
        "reward.terms.judge: 4 of 6 completions are done",
    ]


# logging


def experience(values, names=("answer", "length")):
    """Return completions of one token with given terms, (K, P, G), of weight 1."""
    values = torch.tensor(values)
    count = values[0].numel()
    rollout = make_rollout([[5]] * count, prompts=values.shape[1])
    terms = RewardTerms(tuple(names), torch.ones(len(names)), values)
    prompts = [type("P", (), {"problem": PROBLEM, "begun": 0})] * values.shape[1]
    return Experience(prompts, rollout, ["228"] * count, [RIGHT] * count, values.sum(dim=0), terms)


def test_each_term_is_logged_and_in_the_samples():
    found = experience([[[1.0, 0.0]], [[-1.0, -2.0]]])
    assert term_metrics(found) == {"reward/answer": 0.5, "reward/length": -1.5}
    assert all(map(is_documented, term_metrics(found)))
    assert [row["terms"] for row in sample_rows(1, found, 2)] == [
        {"answer": 1.0, "length": -1.0},
        {"answer": 0.0, "length": -2.0},
    ]


def test_single_reward_logs_no_terms():
    one = experience([[[1.0, 0.0]], [[0.0, 0.0]]])
    single = Experience(one.prompts, one.rollout, one.texts, one.scores, one.rewards)
    assert term_metrics(single) == {}
    assert "terms" not in sample_rows(1, single, 1)[0]


# GDPO


def advantages(gdpo, values, weights):
    terms = RewardTerms(tuple("abc")[: len(weights)], torch.tensor(weights), torch.tensor(values))
    P, G = terms.values.shape[1:]
    rollout = make_rollout([[5]] * (P * G), prompts=P)
    return gdpo.of_terms(terms, rollout)[:, 0].tolist()


# two prompts with two completions; the z-scores of a pair (a, b) are ±(|a - b| / 2) / (|a - b| / sqrt 2) = ±sqrt(1/2)
PAIRS = [[[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 8.0]]]


def test_gdpo_matches_values_computed_by_hand():
    half = math.sqrt(1 / 2)
    # weights 1 and 1/2: prompt 0 has half - half/2, prompt 1 has 0 - half/2, each with the opposite sign beside it
    sums = [half / 2, -half / 2, -half / 2, half / 2]
    assert advantages(Gdpo(0.0, False, 0.0), PAIRS, [1.0, 0.5]) == pytest.approx(sums)
    # squares 4 * 1/8 = 1/2, over n - 1 = 3: the standard deviation of the batch is sqrt(1/6)
    assert advantages(Gdpo(0.0, True, 0.0), PAIRS, [1.0, 0.5]) == pytest.approx([one / (1 / 6) ** 0.5 for one in sums])
    # with weights 1 and 1 the terms of prompt 0 cancel, as do its sums 1 + 0 and 0 + 1 in GRPO
    assert advantages(Gdpo(0.0, False, 0.0), PAIRS, [1.0, 1.0]) == pytest.approx([0, 0, -half, half])


def test_gdpo_of_one_term_without_the_batch_step_equals_group_zscore():
    draws = torch.Generator().manual_seed(1)
    rewards = torch.randint(3, (6, 5), generator=draws) / 3
    rollout = make_rollout([[5, 6]] * 30, prompts=6)
    for epsilon in (1e-8, 1e-4, 0.5):
        assert torch.equal(Gdpo(epsilon, False, 1e-4)(rewards, rollout), GroupZscore(epsilon)(rewards, rollout))


def test_gdpo_of_a_group_with_equal_terms_is_exactly_zero():
    values = [[[0.1] * 7, [0.0, 1.0] + [0.1] * 5], [[0.3] * 7, [0.3] * 7]]
    found = advantages(Gdpo(0.0, True, 0.0), values, [1.0, 1.0])
    assert found[:7] == [0.0] * 7
    assert all(found[7:])
    assert advantages(Gdpo(0.0, True, 0.0), values, [0.0, 1.0]) == [0.0] * 14  # the term that differs has weight 0


def test_gdpo_with_the_groups_of_replay_normalises_over_all_of_them():
    first, more = experience([[[1.0, 0.0]], [[0.0, 1.0]]]), experience([[[1.0, 1.0]], [[0.0, 8.0]]])
    both = first + more
    assert both.terms.values.tolist() == [[[1, 0], [1, 1]], [[0, 1], [0, 8]]]
    algorithm = Algorithm.build(composed("advantage=gdpo", *BOTH))
    found = algorithm.token_advantages(both.rewards, both.rollout, both.terms)[:, 0].tolist()
    # weights 1 and 1: the sums are 0, 0, -half, half; squares 2 * 1/2 over 3
    assert found == pytest.approx([0, 0, -math.sqrt(1.5), math.sqrt(1.5)], rel=1e-3)


@pytest.mark.parametrize("words", [["reward=answer"], BOTH[:2], []])
def test_gdpo_with_a_reward_of_one_term_is_refused(words):
    with pytest.raises(
        ConfigError, match=r"^advantage=gdpo: normalises each term of the reward, and reward=\w+ has one"
    ):
        Algorithm.build(composed("advantage=gdpo", *words))
    with pytest.raises(ConfigError, match=r"train.group_size=1: advantage=gdpo compares"):
        Algorithm.build(composed("advantage=gdpo", *BOTH, "train.group_size=1"))


# a sweep on the command line


@pytest.mark.slow
def test_sweep_over_terms_logs_them_and_names_the_term_that_raises(mine):
    words = ["reward=both", "advantage=gdpo", "reward.terms.own.price=1,3", "reward.terms.length.weight=0.5"]
    short = ["train.steps=1", "eval.max_rows=2", "tracker=none", "threads=1"]
    done = run_command("rlsparse.run", "--config-dir", "mine", "-m", *words, *short, cwd=mine.parent)
    assert done.returncode == 1
    folders = {file.parent: json.loads(file.read_text()) for file in mine.parent.glob("runs/default/*/summary.json")}
    by_status = {summary["status"]: folder for folder, summary in folders.items()}
    assert set(by_status) == {"failed", "finished"}
    expected = f"reward.terms.own: {mine}/own_terms.py, line 7: ZeroDivisionError: "
    assert expected in folders[by_status["failed"]]["error"]
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in (by_status["finished"] / "metrics.jsonl").read_text().splitlines()]
    (step,) = [row for row in rows if row["kind"] == "train"]
    parts = [step[f"reward/{name}"] for name in ("answer", "length", "own")]
    assert step["task/reward_mean"] == pytest.approx(parts[0] + 0.5 * parts[1] + parts[2], rel=1e-5)
    assert parts[0] == step["task/accuracy"]
    assert parts[2] == pytest.approx(0.5 - 3 * step["rollout/length_mean"])  # 1 / (3 - 1) - 3 L
    sample = json.loads((by_status["finished"] / "samples.jsonl").read_text().splitlines()[0])
    assert set(sample["terms"]) == {"answer", "length", "own"}
