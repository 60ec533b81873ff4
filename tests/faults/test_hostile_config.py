"""Random configs: each trains a step on a tiny random model, or is refused before a model loads.

Valid values that would only take longer than a test may (a long run, many updates) are not drawn: ``SMALL`` bounds
them. Values that ask for an absurd amount of memory are drawn, and must be refused.
"""

import json
import math
import re
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from rlsparse.config.compose import config_dir
from rlsparse.config.ranges import OneOf, Range, keys_of
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.run_once import Process
from rlsparse.model.cache import ModelCache
from rlsparse.model.source import EMBEDDED
from rlsparse.run import run
from tests.conftest import composed

CONF = Path(config_dir())
OPTIONS = {
    group: sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    for group in (
        "algorithm", "advantage", "negative_feedback", "token_sampler", "clipping", "kl", "objective", "adapter",
        "layer_skip", "off_policy", "rollout", "replay", "reward", "train", "eval", "task",
    )
}  # fmt: skip
OPTIONS["layer_skip"] += ["off", "r25", "r15"]  # smaller shares of four layers skip none, which is refused
OPTIONS["adapter"] += ["lora", "l1ra"]  # more often than none, which is refused
OPTIONS["task"] = [  # others need the hub, or another answer format than LEAST gives them
    name for name in OPTIONS["task"] if "data_set" not in (CONF / "task" / f"{name}.yaml").read_text() + name
]
OPTIONS["task"].remove("countdown")
OPTIONS["eval"] = ["default"]  # the suites need the hub
OPTIONS["reward"].remove("terms")  # has no terms yet, which is refused
OPTIONS["advantage"].remove("gdpo")  # needs several terms
PRESET = (
    "advantage",
    "token_sampler",
    "clipping",
    "replay",
)  # chosen by the algorithm; few other combinations are valid
LEAST = (
    "train.steps=1",
    "train.prompts_per_step=2",
    "train.group_size=4",
    "task.max_new_tokens=8",
    "task.answer_format=last_number",  # with the next line, random texts with and without digits differ in reward
    "reward.format=1",
    "task.train_rows=16",
    "task.test_rows=8",
    "eval.max_rows=4",
    "lora_rank=2",
    "tracker=none",
)
# largest valid values that are drawn, where larger ones would be valid too and slow
SMALL = {"train.steps": 2, "train.updates_per_rollout": 3, "train.group_size": 16, "train.prompts_per_step": 16}
SMALL |= {"eval.samples": 8, "task.train_rows": 200, "task.test_rows": 50, "threads": 1, "rollout.max_new_tokens": 24}
SMALL |= {
    "task.shots": 2,
    "eval.top_k": 64,
    "reward.max_tokens": 64,
}  # the latter two are interpolations of whole numbers
ENDLESS = ("train.steps", "train.updates_per_rollout")  # a huge number is valid: the run takes as long
NASTY = (
    "nan", "inf", "-inf", "1e30", "-1e30", "1e300", "1e-300", "1e999", "null", "''", "' '", "???", "true", "off", "many",
    "-1", "-0.5", "0", "1", "2", "3.7", "0x10", "'7'", "[]", "[1,2]", "[0,0]", "[-1]", "[x,null]", "[[1]]", "[1e400]",
    "{a: 1}", "{}", "'ünïcode ✓'", "'{question}'", "'{question} ✓\\n{question}'", "${oc.env:HOME}", "${oc.env:NO_SUCH}",
    "${seed}", "${threads}", "${model.lr}", "${nope}", "${train.steps}", "${adapter}", "${eval.pass_at}", "${hydra:job}",
    "'../../up'", "/dev/null/x", "'${'", "$", "a,b", "1,2", "range(3)", "=", "[", "cuda:99", "meta", "cpu", "[q_proj]",
    "last_third", "fixed", "random", "sequence", "stochastic", "float16", "word_problems", "9" * 30, "-" + "9" * 30,
    "9" * 500, "x" * 300, "é" * 150, "1000000000", "-1000000000", "18446744073709551616", "0.999999", "1.0000001",
)  # fmt: skip
ENDS = ("0.0", "1.0", "1e-300", "1e-45", "1e-30", "1e-8", "1e10", "1e20", "1e30", "1.1e30", "-1.0", "0.999999999")
WHOLE_ENDS = ("1", "2", "3", "0", "-1", "1000000000", "1000000000000000000", "1000000000000000001")
UNKNOWN = (
    "+new=1", "new=1", "train.setps=3", "+train.setps=3", "+train.setps={a: 1}", "++lora_rank.x=3", "+a.b.c=1",
    "~train.lr", "~algorithm", "~model", "token_sampler.k=3", "algorithm=nope", "+algorithm=grpo", "algorithm=[]", "=3",
    "hydra=3", "train..lr=1", "algorithm", "kl=0.04", "layer_skip={ratio: 0.5}", "train=${eval}", "train=null",
    "reward=${replay}", "task.reward.wrong=-1", "token_sampler.replay.failures=1", "objective.aggregation=constant",
    "reward._target_=os.system", "advantage._target_=rlsparse.components.advantage.Advantage", "kl._target_=nowhere.K3",
    "import_path=[/nowhere]", "import_path=nowhere", "~kl._target_", "train.lr=${train.lr}", "model.path=''", "model.path=/nowhere", "model=[]",
    "model.path=null", "+hydra.nope=1", "experiment=[default,l1ra]", "tracker.samples=1000000000", "tracker=wandb=3",
)  # fmt: skip


class WatchedCache(ModelCache):
    """Keeps the model between examples, and records that a run asked for it."""

    asked = False

    def lend(self, *arguments):
        self.asked = True
        return super().lend(*arguments)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """Return the folder of a Qwen2 of 4 layers with random weights and the tokenizer of the embedded model."""
    folder = tmp_path_factory.mktemp("random_model")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["tiny"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
                bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def leaves_of(node, prefix):
    """Return the values by dotted key; a number stands for an interpolation, since all of them are numbers."""
    found = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found |= leaves_of(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = 1e-3 if str(value).startswith("${") else value
    return found


@cache
def option_keys(group, option):
    """Return the values by key in the yaml of an option, those of the option that it extends included."""
    node = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    above = [parent for parent in node.pop("defaults", []) if parent != "_self_" and not isinstance(parent, dict)]
    inherited = option_keys(group, above[0]) if above else {}
    return inherited | leaves_of(node, f"{group}.")


@cache
def default_options():
    """Return the option of each group in ``conf/config.yaml``, and the values by key in the file itself."""
    node = yaml.safe_load((CONF / "config.yaml").read_text())
    options = {}
    for one in node.pop("defaults"):
        options |= one if isinstance(one, dict) else {}
    del node["hydra"]
    return {group: option for group, option in options.items() if group in OPTIONS}, leaves_of(node, "")


def composed_keys(chosen):
    """Return the values by key that these options compose to; much faster than composing them."""
    defaults, keys = default_options()
    preset = yaml.safe_load((CONF / "algorithm" / f"{chosen['algorithm']}.yaml").read_text())["defaults"]
    presets = {key.removeprefix("override /"): option for one in preset for key, option in one.items()}
    keys = {**keys, "model.name": "tiny", "model.lr": 1e-3, "model.chat_template": True, "experiment.name": "default"}
    for group, option in {**defaults, **presets, **chosen}.items():
        if group != "algorithm":
            keys |= option_keys(group, option)
    return {**keys, "tracker.name": "none", "tracker.samples": 4}


def bounds_of(key, keys):
    """Return the ``Range`` or ``OneOf`` of a key of the composed config; None where it has neither."""
    group, _, name = key.rpartition(".")
    target = keys.get(f"{group}._target_")
    if target is not None:
        module, _, cls = target.rpartition(".")
        return keys_of(getattr(import_module(module), cls))[name].bounds
    if group and group not in keys_of(Config):  # inside a mapping such as adapter.settings, whose keys are peft's
        return None
    return keys_of(keys_of(Config)[group].type if group else Config)[name].bounds


def fitting(key, keys):
    """Draw values of the type of the key that are often valid."""
    value = keys[key]
    if key.endswith("._target_"):
        group = key.removesuffix("._target_")
        return st.sampled_from(sorted({option_keys(group, option)[key] for option in OPTIONS[group]}))
    bounds = bounds_of(key, keys)
    if isinstance(bounds, OneOf) and key != "tracker.name":  # tracker=wandb would start a process for each run
        return st.sampled_from(bounds.options)
    if isinstance(value, bool):
        return st.sampled_from(["true", "false"])
    if isinstance(value, int) or key in SMALL:
        return st.integers(0 if key == "seed" else 1, SMALL.get(key, 64)).map(str)
    if isinstance(value, float):
        bounds = bounds if isinstance(bounds, Range) else Range(0)
        low, high = max(bounds.low, 0.0), min(bounds.high, 1e4)
        return st.one_of(st.just(value), st.floats(low + 1e-6, high * 0.999)).map(repr)
    if key == "eval.pass_at":
        return st.lists(st.integers(1, 9), max_size=3).map(str)
    if key == "adapter.layers":
        return st.sampled_from(["all", "last_third", "[0]", "[1,3]", "[3,0]"])
    if key == "adapter.target_modules":
        return st.sampled_from(["all-linear", "[q_proj]", "[q_proj,v_proj]", "[down_proj,o_proj,down_proj]"])
    if key == "task.prompt":
        return st.sampled_from(["'{question}'", "'Was ist {question} ✓'", "'{question}\\n{question}'"])
    return st.just(json.dumps(value) if value is not None else "null")


def boundary(key, value):
    """Draw values of the type of the key that are close to its bounds or to those of the type."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return hostile(key)
    whole = isinstance(value, int) or key in SMALL
    return st.sampled_from(WHOLE_ENDS if whole else ENDS).filter(lambda value: not _only_slow(key, value))


def hostile(key):
    """Draw any value that a person or a script may write."""
    numbers = st.one_of(st.integers(), st.floats()).map(str)
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).map(_quoted)
    return st.one_of(st.sampled_from(NASTY), numbers, text).filter(lambda value: not _only_slow(key, value))


def _quoted(text):
    return json.dumps(text, ensure_ascii=False)


def _only_slow(key, value):
    """Return whether a valid value would make the run long, or write outside of the folder of the example."""
    if key == "runs_dir":
        return value != "/dev/null/x" and any(sign in value for sign in "/\\$")
    if key not in SMALL:
        return False
    try:
        number = int(value.strip("'"))
    except ValueError:
        return value.startswith("${")
    return number > SMALL[key] and (key in ENDLESS or number < 10**8)


@st.composite
def compositions(draw):
    """Draw overrides: options of some groups, values of some keys that these compose to, and now and then nonsense."""
    chosen = {group: draw(st.sampled_from(OPTIONS[group])) for group in ("algorithm", "task")}
    for group in (name for name in OPTIONS if name not in chosen):
        if draw(st.integers(0, 99)) < (4 if group in PRESET else 40):
            chosen[group] = draw(st.sampled_from(OPTIONS[group]))
    keys = composed_keys(chosen)
    least = [word for word in LEAST if word.split("=")[0] in {*keys, "tracker", "lora_rank"}]
    overrides = [*(f"{group}={option}" for group, option in chosen.items()), *least]
    if "l1ra" in chosen.get("adapter", ""):
        overrides.append("train.steps=2")  # with one step there is none between which ranks could move
    names = sorted(keys)
    for key in draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
        overrides.append(f"{key}={draw(fitting(key, keys))}")
    numbers = [name for name in names if type(keys[name]) in (int, float)]
    if draw(st.booleans()):
        for key in draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=2, unique=True)):
            overrides.append(f"{key}={draw(boundary(key, keys[key]))}")
    if draw(st.integers(0, 2)) == 2:
        for key in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
            overrides.append(f"{key}={draw(hostile(key))}")
    if draw(st.integers(0, 19)) == 19:
        overrides += ["train.lr=1e30", "train.updates_per_rollout=3"]
    if draw(st.integers(0, 19)) == 19:
        overrides.append(draw(st.sampled_from(UNKNOWN)))
    return overrides


@contextmanager
def temporary_folder():
    """Make a folder that is removed afterwards, with everything in it."""
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def outcome(overrides, model, models):
    """Return how a run of these overrides ends: refused, finished or diverged. Anything else raises."""
    models.asked = False
    with temporary_folder() as folder:
        first = [f"model.path={model}", f"runs_dir={folder}/runs"]
        given_keys = {o.partition("=")[0].strip("+~") for o in overrides}
        first = [o for o in first if o.partition("=")[0] not in given_keys]
        try:
            config = composed(*first, *overrides)
            summary = run(config, process=Process(models))
        except HydraException as error:
            message = f"{error} {error.__cause__ or ''}"
            documented = "leaves so much room in the context of the model" in message  # only the tokenizer knows
            assert documented or not models.asked, f"refused after the model was loaded: {message}"
            if isinstance(error, ConfigError):
                assert re.match(r"[\w.]*(=|: )", message), message  # the key, with its value where it has one
            return "refused"
    assert summary["status"] in ("finished", "diverged"), summary
    if summary["status"] == "finished":
        assert math.isfinite(summary["final"]["accuracy_sampled"])
    return summary["status"]


def test_random_config_trains_a_step_or_is_refused_before_a_model_loads(
    random_model, full, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # a relative runs_dir is created here
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ends, models = Counter(), WatchedCache()

    @settings(
        max_examples=700 if full else 40,
        deadline=None,
        derandomize=not full,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if full else [Phase.generate],
    )
    @given(overrides=compositions())
    def example(overrides):
        ends[outcome(overrides, random_model, models)] += 1

    example()
    with capsys.disabled():
        print(f"\nhostile config: {dict(ends)}")
    assert ends.total() >= (500 if full else 40)
    assert ends["finished"] > ends.total() / 4
    assert ends["refused"] > ends.total() / 10
