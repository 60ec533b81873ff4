"""Model folders as strangers have them: used rightly, or refused in one message. Each is a changed copy of tiny."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

from rlsparse.batch import Problem, Prompt
from rlsparse.config.schema import ConfigError
from rlsparse.execution import model_check
from rlsparse.execution.preflight import preflight
from rlsparse.model import loading
from rlsparse.model.endings import find_endings
from rlsparse.model.loading import UNLIMITED, context_length, load_policy
from rlsparse.model.policy import Policy, decode, encode_prompt
from rlsparse.model.source import EMBEDDED
from rlsparse.rollout import Request
from rlsparse.run import run
from rlsparse.runtime.rng import stream
from rlsparse.warm_start.supervised import Example, collate
from tests.conftest import built, composed, composed_warm_start, make_rollout

TENSOR = "model.layers.1.mlp.up_proj.weight"  # (384, 128)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
SHORT = ("train.steps=1", "train.prompts_per_step=2", "train.group_size=2", "eval.max_rows=4", "tracker=none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder of tiny, for the test to change."""
    return Path(shutil.copytree(EMBEDDED["tiny"], tmp_path / "model"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add_token(folder: Path, number: int, text: str, special: bool = True) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": number, "content": text, "special": special}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({**token, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def grow(folder: Path, rows: int) -> None:
    """Give the embedding this many more rows."""

    def longer(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = torch.cat([tensors[name], tensors[name][:rows]])

    edit_weights(folder, longer)
    edit(folder / "config.json", vocab_size=320 + rows)


def surround(folder: Path, before: int, behind: int) -> None:
    """Have the tokenizer put <|endoftext|> before and behind each text, this many times."""
    end, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    single = [end] * before + [text] + [end] * behind
    edit(
        folder / "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        },
    )


def write_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def load(folder: Path, *overrides: str) -> Policy:
    return load_policy(composed(f"model.path={folder}", *overrides).model, torch.device("cpu"), "auto")


def refusal(folder: Path, tmp_path: Path) -> str:
    """Return the message of the preflight, which must be one line and name the key."""
    with pytest.raises(ConfigError) as refused:
        preflight([composed(f"model.path={folder}", f"runs_dir={tmp_path}/runs")])
    message = str(refused.value)
    assert message.startswith(("model.path=", "model.chat_template=", "model: "))
    assert "\n" not in message
    return message


# weights


def larger(tensors: dict[str, torch.Tensor]) -> None:
    tensors[TENSOR] = torch.zeros(400, 128)


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[TENSOR] = tensors[TENSOR].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(TENSOR), [TENSOR, "missing"]),
        (
            lambda tensors: tensors.update({"score.weight": torch.zeros(1, 128)}),
            ["score.weight", "unknown to the model"],
        ),
        (larger, [TENSOR, "[400, 128]", "[384, 128]"]),
        (integers, [TENSOR, "quantiz"]),
    ],
    ids=["missing", "unexpected", "of another shape", "of integers"],
)
def test_weights_that_are_not_those_of_the_config_are_refused_with_their_names(folder, tmp_path, change, words):
    edit_weights(folder, change)
    message = refusal(folder, tmp_path)
    assert all(word in message for word in words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_their_name(folder, value):
    edit_weights(folder, lambda tensors: tensors[TENSOR][3].__setitem__(5, value))
    with pytest.raises(ConfigError, match=TENSOR):
        load(folder)


def write_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: cut(folder / "model.safetensors", 10**6), ["not fully covered"]),
        (lambda folder: cut(folder / "model.safetensors", 0), ["model.safetensors is empty"]),
        (lambda folder: (folder / "model.safetensors").write_text(POINTER), ["model.safetensors", "git lfs pull"]),
        (lambda folder: (folder / "tokenizer.json").write_text(POINTER), ["tokenizer.json", "git lfs pull"]),
        (lambda folder: cut(folder / "tokenizer.json", 500), ["cannot be loaded"]),
        (lambda folder: (folder / "config.json").write_text("[]"), ["config.json", "list"]),
        (write_index, ["model-00002-of-00002.safetensors", "lacks"]),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ["pytorch_model.bin", "save_pretrained"]),
        (lambda folder: edit(folder / "config.json", model_type="foo9"), ["foo9"]),
        (lambda folder: edit(folder / "config.json", hidden_size="128"), ["hidden_size", "expected int"]),
        (lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}), ["optimum"]),
        (lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "foo"}), ["foo", "not know"]),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), ["full model and an adapter"]),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), ["full model and an adapter"]),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_model.bin"), ["without adapter_config.json"]),
    ],
)
def test_damaged_folder_is_refused_before_weights_are_read(folder, tmp_path, change, words):
    change(folder)
    message = refusal(folder, tmp_path)
    assert all(word in message for word in words)


def test_value_that_names_no_folder_is_refused(folder):
    for words, remedy in (
        (f"model.path={folder}/model.safetensors", f"is a file; give the folder that it lies in, {folder}"),
        (f"model.path={folder}/absent", "there is no such folder"),
        ("model.path=''", "names nothing"),
        ("model.name=./absent", "there is no such folder"),
    ):
        with pytest.raises(ConfigError, match=remedy):
            load_policy(composed(words).model, torch.device("cpu"), "auto")


def test_model_with_a_recurrent_state_is_refused(folder, tmp_path):
    config = MambaConfig(vocab_size=320, hidden_size=8, num_hidden_layers=1, state_size=2, eos_token_id=0)
    MambaForCausalLM(config).save_pretrained(folder)
    assert "MambaForCausalLM" in refusal(folder, tmp_path)


def test_model_that_sees_later_tokens_is_refused(folder, monkeypatch):
    forward = Qwen2ForCausalLM.forward

    def backwards(self, input_ids=None, **options):
        return forward(self, input_ids=input_ids.flip(1), **options)

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", backwards)
    with pytest.raises(ConfigError, match="not causal"):
        load(folder)


def test_context_is_taken_from_the_config_then_from_the_tokenizer_and_else_has_no_limit():
    def context(longest: float, **config: int) -> int:
        text = SimpleNamespace(**config)
        return context_length(SimpleNamespace(get_text_config=lambda: text), SimpleNamespace(model_max_length=longest))

    assert context(512, max_position_embeddings=2048) == 2048
    assert context(10**30, n_positions=1024) == 1024
    assert context(512) == 512
    assert context(10**30) == UNLIMITED > 10**8


# special tokens


@pytest.mark.parametrize(("before", "behind", "expected"), [(0, 1, []), (1, 1, [0]), (1, 0, [0]), (2, 0, [0])])
def test_special_tokens_behind_a_prompt_are_left_out_and_a_bos_stands_once(folder, tiny, before, behind, expected):
    surround(folder, before, behind)
    edit(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    problem = Problem("20*6=", "120", "")
    assert encode_prompt(load(folder), problem, "20*6=").ids == (*expected, *encode_prompt(tiny, problem, "20*6=").ids)


@pytest.mark.parametrize("number", [-1, 320, 10**6])
def test_pad_outside_the_embedding_is_replaced_by_an_end_token(folder, number):
    edit(folder / "config.json", pad_token_id=number)
    add_token(folder, 400, "<pad>")
    edit(folder / "tokenizer_config.json", pad_token="<pad>")
    assert load(folder).pad_id == 0  # <|endoftext|>


def test_eos_outside_the_embedding_is_left_out(folder):
    add_token(folder, 400, "<end>")
    edit(folder / "tokenizer_config.json", eos_token="<end>")
    edit(folder / "generation_config.json", eos_token_id=[0, 999, -1])
    policy = load(folder)
    assert (policy.eos_ids, policy.turn_end) == ((0,), (0,))


def test_token_of_a_prompt_outside_the_embedding_is_refused(folder):
    add_token(folder, 400, "<think>")
    with pytest.raises(ConfigError, match=r"token 320 \('<think>'\).*320 rows"):
        encode_prompt(load(folder), Problem("", "", ""), "<think>20*6=")


def test_model_without_an_end_token_gives_one_warning_and_says_so_in_its_summary(folder, tmp_path, logged):
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        edit(folder / name, eos_token=None, pad_token=None, eos_token_id=None, pad_token_id=None)
    summary = run(composed(f"model.path={folder}", f"runs_dir={tmp_path}/runs", *SHORT))
    assert summary["completion_ends_at"] == []
    assert summary["base"]["frac_truncated"] == 1
    assert [line for line in logged if "eos_token_id into generation_config.json" in line] == logged[:1]


# chat templates

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}"
ALPACA = (
    "{% for m in messages %}### {{ 'Instruction' if m.role == 'user' else 'Response' }}:\n{{ m.content }}\n\n{% endfor %}"
    "### Response:\n"
)
WITH_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML
EOS = "{% for m in messages %}{{ m.content + (eos_token if m.role == 'assistant' else '\n') }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "tokens", "ids", "text"),
    [
        (CHATML, {320: "<|im_end|>", 321: "<|im_start|>"}, (0, 320), None),  # its end is not EOS
        (CHATML, {}, (0,), "<|im_end|>"),  # its end is no token
        (NO_END, {}, (0,), "\nQ:"),  # a turn ends where the next one begins
        (NO_END.replace("Q: ", "<|user|>"), {320: "<|user|>"}, (0, 320), None),
        (EOS, {}, (0,), None),
        (NO_END.replace("\n", "  \n"), {320: "  ", 321: "Q"}, (0,), "\nQ:"),  # added tokens that are common text
        (ALPACA, {}, (0,), "\n### Instruction:"),  # it ignores add_generation_prompt
        (WITH_SYSTEM, {320: "<|im_end|>"}, (0, 320), None),
        ("{{ messages[0].content }}", {}, (0,), None),  # it does not write turns of the assistant
    ],
)
def test_completion_ends_at_what_the_template_puts_behind_a_turn(folder, template, tokens, ids, text):
    grow(folder, 2)
    for number, token in tokens.items():
        add_token(folder, number, token, special="|" in token)
    write_template(folder, template)
    policy = load(folder)
    assert (policy.eos_ids, policy.stop_text) == (ids, text)
    if text:
        assert policy.tokenizer.decode(policy.turn_end).strip() == text.strip()
    else:
        assert policy.turn_end == ids[-1:]
    assert load(folder, "model.chat_template=false").eos_ids == (0,)


def test_text_between_an_answer_and_the_end_token_is_no_part_of_the_answer(folder):
    grow(folder, 1)
    add_token(folder, 320, "<|im_end|>")
    write_template(folder, CHATML.replace("{{ m.content }}", '"{{ m.content }}"'))
    policy = load(folder)
    assert (policy.eos_ids, policy.stop_text, policy.before_end) == ((0, 320), None, '"')
    twelve, quote = (policy.tokenizer(text)["input_ids"] for text in ("12", '"'))
    assert policy.turn_end == (*quote, 320)
    prompt = Prompt(QUESTIONS[0], (1, 2))
    closed, cut_off = make_rollout([[*twelve, *quote, 320]]), make_rollout([[*twelve, *quote]])
    assert decode(policy, closed, [prompt]) == ["12"]
    assert decode(policy, cut_off, [prompt]) == ['12"']


def test_special_token_that_is_text_stands_in_the_judged_text(folder):
    grow(folder, 2)
    add_token(folder, 320, "%%%%")
    add_token(folder, 321, "<|mark|>")
    policy = load(folder)
    seven = policy.tokenizer("7")["input_ids"]
    rollout = make_rollout([[321, 320, *seven, 0]])
    assert decode(policy, rollout, [Prompt(QUESTIONS[0], (1, 2))])[0].replace(" ", "") == "%%%%7"


def test_turn_that_the_template_leaves_out_is_refused(folder):
    write_template(folder, "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    policy = load(folder)
    problem = Problem("3+4", "7", "", context=(("system", "Add."),))
    with pytest.raises(ConfigError, match="leaves out a turn"):
        encode_prompt(policy, problem, "3+4")
    assert policy.tokenizer.decode(encode_prompt(policy, Problem("3+4", "7", ""), "3+4").ids) == "3+4"


@pytest.mark.parametrize("declared", ["29", 29.0, [29, True]])
def test_end_token_declared_as_another_type_of_number_counts(folder, declared):
    edit(folder / "generation_config.json", eos_token_id=declared)
    assert load(folder).eos_ids == (0, 29)


def test_keys_that_make_transformers_read_other_files_are_refused(folder, tmp_path):
    edit(folder / "config.json", transformers_weights="other.safetensors")
    assert "transformers_weights" in refusal(folder, tmp_path)


def test_closing_text_that_the_vocabulary_lacks_is_not_taken_for_the_unknown_token(tmp_path):
    vocabulary = {"<eos>": 0, "<unk>": 1, "seven": 2, "Q": 3}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = CHATML
    found = find_endings(tokenizer, None, vocabulary=4, chat=True)
    assert (found.ids, found.text, found.turn_end) == ((0,), "<|im_end|>", (0,))


def test_template_that_prints_the_date_of_today_gives_the_same_prompt_every_day(folder):
    write_template(folder, "{{ strftime_now('%Y') }}|{{ date_string }}|{{ messages[0].content }}")
    policy = load(folder)
    text = policy.tokenizer.decode(encode_prompt(policy, QUESTIONS[0], "20*6=").ids)
    assert text == "26 Jul 2024|26 Jul 2024|20*6="


def test_template_that_changes_the_question_is_used(folder):
    write_template(folder, "{{ messages[0].content | replace('*', ' x ') }}")
    policy = load(folder)
    assert policy.tokenizer.decode(encode_prompt(policy, QUESTIONS[0], "20*6=").ids) == "20 x 6="


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('only tools') }}", ["TemplateError", "only tools"]),
        ("{% for x in %}", ["TemplateSyntaxError"]),
        ("{{ messages[0].foo.bar }}", ["UndefinedError"]),
        ("{% if false %}x{% endif %}", ["leaves out the question"]),
        ("{{ messages[0].role }}", ["leaves out the question"]),
    ],
)
def test_template_that_makes_no_prompt_is_refused_with_the_remedy(folder, tmp_path, template, words):
    write_template(folder, template)
    message = refusal(folder, tmp_path)
    assert all(word in message for word in [*words, "model.chat_template=false"])


def test_template_that_reads_lists_of_parts_gets_them(folder):
    write_template(
        folder,
        "{% for m in messages %}{% for part in m.content if part.type == 'text' %}[{{ part.text }}]{% endfor %}"
        "{% if m.role == 'assistant' %}=5{% endif %}{% endfor %}",
    )
    policy = load(folder)
    assert policy.tokenizer.decode(encode_prompt(policy, QUESTIONS[0], "20*6=").ids) == "[20*6=]"
    assert policy.stop_text == "]=5"


# what the model cards of these families call the end of a turn
CLOSINGS = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3_2": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "idefics3": "<end_of_utterance>",
}


@pytest.mark.parametrize(("family", "closing"), CLOSINGS.items())
def test_template_of_a_known_family_ends_completions_where_its_model_card_says(folder, family, closing):
    templates = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    write_template(folder, (templates / f"{family}.jinja").read_text())
    assert load(folder).stop_text == closing  # a text, since the tokenizer of tiny has no such token


@pytest.fixture(params=["rollout=fast", "rollout=plain"])
def engine(request):
    return built(request.param, "rollout.max_new_tokens=20").rollout


QUESTIONS = [Problem(question, "", "") for question in ("20*6=", "57*4=", "31*9=")]


@pytest.mark.parametrize("stop", ["=", "0*", "=2"])
def test_rollout_ends_at_the_first_stop_text_and_the_text_before_it_is_judged(tiny, engine, stop):
    tiny.stop_text = stop
    prompts = [encode_prompt(tiny, one, one.question) for one in QUESTIONS]
    stopped = engine.generate(tiny, Request(prompts, 1, greedy=True), stream(0, "x"))
    texts = decode(tiny, stopped, prompts)
    tiny.stop_text = None
    whole = engine.generate(tiny, Request(prompts, 1, greedy=True), stream(0, "x"))
    found = 0
    for row in range(3):
        ids = whole.completion_ids[row, : int(whole.lengths[row])].tolist()
        decoded = [tiny.tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(len(ids) + 1)]
        length = next((n for n, text in enumerate(decoded) if stop in text), len(ids))
        found += stop in decoded[-1]
        assert stopped.completion_ids[row, :length].tolist() == ids[:length]
        assert int(stopped.lengths[row]) == length
        assert bool(stopped.ended[row]) == (stop in decoded[-1] or bool(whole.ended[row]))
        assert texts[row] == decoded[length].partition(stop)[0]
    assert found >= 2


def test_end_token_that_is_not_special_does_not_stand_in_the_text(folder, engine):
    edit(folder / "generation_config.json", eos_token_id=29)  # "="
    policy = load(folder)
    prompts = [encode_prompt(policy, one, one.question) for one in QUESTIONS]
    rollout = engine.generate(policy, Request(prompts, 1, greedy=True), stream(0, "x"))
    texts = decode(policy, rollout, prompts)
    assert all(rollout.completion_ids[range(3), rollout.lengths - 1] == 29)
    assert texts[0] == "20*6+0*6"  # then =120+0=120
    assert "=" not in "".join(texts)


@pytest.mark.parametrize(("rows", "end"), [(1, 320), (0, 0)])  # where the embedding lacks the token: EOS
def test_warm_start_trains_what_the_template_puts_behind_a_turn(folder, rows, end):
    grow(folder, rows)
    add_token(folder, 320, "<|im_end|>")
    write_template(folder, CHATML)
    policy = load(folder)
    noise = composed_warm_start("out=x", "warm_start=clean").warm_start.noise
    example = Example((1, 2), Problem("", "7", "7"))
    _, _, labels = collate(policy, [example], noise, random.Random(0))
    assert labels.tolist() == [[-100, -100, *policy.tokenizer("7")["input_ids"], end]]


def test_earlier_turns_of_a_conversation_are_turns_of_the_template(folder, tiny):
    write_template(folder, "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}")
    problem = Problem("3+4", "7", "", context=(("system", "Add."), ("user", "1+1"), ("assistant", "2")))
    policy = load(folder)
    assert policy.tokenizer.decode(encode_prompt(policy, problem, "3+4=").ids) == "s:Add.;u:1+1;a:2;u:3+4=;"
    with pytest.raises(ConfigError, match="earlier turns"):
        encode_prompt(tiny, problem, "3+4=")


# the run id


def id_of(tmp_path: Path, *overrides: str) -> str:
    return preflight([composed(f"runs_dir={tmp_path}/runs", "tracker=none", *overrides)]).identities[0].id


def test_folder_given_as_name_is_known_by_the_files_that_are_read(folder, tmp_path):
    by_path, by_name = f"model.path={folder}", f"model.name={folder}"
    before = id_of(tmp_path, by_name)
    assert before == id_of(tmp_path, by_path) == id_of(tmp_path)  # a copy of tiny is tiny
    (folder / "NOTES.txt").write_text("note")
    (folder / "optimizer.safetensors").write_bytes(b"")
    assert id_of(tmp_path, by_name) == before
    write_template(folder, "{{ messages[0].content }}")
    changed = id_of(tmp_path, by_name)
    assert changed != before
    edit_weights(folder, lambda tensors: tensors[TENSOR].mul_(2))
    assert id_of(tmp_path, by_name) not in (before, changed)


# adapters


def make_adapter(folder: Path, base: Path) -> PeftModel:
    """Write an adapter whose matrices are not zero, and return the model with it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_folder_of_an_adapter_is_its_base_model_with_the_adapter(folder, tmp_path):
    adapted = make_adapter(tmp_path / "adapter", folder)
    policy = load(tmp_path / "adapter")
    ids = torch.tensor([encode_prompt(policy, QUESTIONS[0], "20*6=").ids])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(policy.model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        with adapted.disable_adapter():
            assert float((adapted(input_ids=ids).logits - expected).abs().max()) > 1  # the adapter has an effect
    before = id_of(tmp_path, f"model.path={tmp_path}/adapter")
    edit_weights(folder, lambda tensors: tensors[TENSOR].mul_(2))
    assert id_of(tmp_path, f"model.path={tmp_path}/adapter") != before  # the base model counts


def test_run_starts_from_the_adapter_of_an_earlier_run_and_names_it_as_its_base(tmp_path):
    first = run(composed(f"runs_dir={tmp_path}/first", *SHORT, "train.steps=2", "train.lr=0.01"))
    adapter = tmp_path / "first" / "default" / first["id"] / "adapter"
    second = run(composed(f"runs_dir={tmp_path}/second", *SHORT, f"model.path={adapter}"))
    assert first["final"]["accuracy_greedy"] == second["base"]["accuracy_greedy"]
    assert first["final"]["mean_length"] == second["base"]["mean_length"] != first["base"]["mean_length"]
    config = json.loads((tmp_path / "second/default" / second["id"] / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(adapter)
    with pytest.raises(ConfigError, match=f"did you mean {adapter}"):
        load(adapter.parent)


def test_adapter_that_does_not_fit_its_base_is_refused_with_the_names(folder, tmp_path):
    make_adapter(tmp_path / "adapter", folder)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file)
    with pytest.raises(ConfigError, match="missing for its base"):
        load(tmp_path / "adapter")
    save_file({**tensors, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 128)}, file)
    with pytest.raises(ConfigError, match=r"layers\.9.*no place in its base"):
        load(tmp_path / "adapter")
    cut(file, 2000)
    assert "adapter" in refusal(tmp_path / "adapter", tmp_path)  # before the base is loaded
    shutil.rmtree(folder)
    assert "base_model_name_or_path" in refusal(tmp_path / "adapter", tmp_path)


def test_adapter_on_an_embedding_that_is_tied_to_the_head_is_refused(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)  # tied
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["embed_tokens"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ConfigError, match="cannot be merged"):
        load(tmp_path / "adapter")


def test_exported_adapter_names_the_revision_of_its_base(tiny, tmp_path):
    policy = replace(tiny, revision="v1.0")
    built().adapter.attach(policy, 2, 0).export(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["revision"] == "v1.0"


# the check command


def test_check_prints_end_tokens_prompt_fast_paths_and_odd_gold_answers(folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"question": "3+4", "answer": "3+4=7\n#### 7"}, {"question": "3+4", "answer": "#### 7"}]
    (data / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (data / "test.jsonl").write_text(json.dumps({"question": "1+1", "answer": "#### cat"}))
    surround(folder, 0, 1)
    words = ("task=gsm8k", f"task.path={data}", "task.prompt='{question}='", "rollout.max_new_tokens=8")
    words += ("task.answer_format=last_number",)
    report = str(model_check.check(composed(f"model.path={folder}", f"runs_dir={tmp_path}/runs", *words)))
    assert "<|endoftext|> (0) by the generation config" in report
    assert "| 3+4=\n" in report
    ids = load(folder).tokenizer("3+4=", add_special_tokens=False)["input_ids"]
    assert f"ids {ids}\n" in report
    assert "rollout engine: fast; train.packing: yes" in report
    # 632,448 weights of 4 bytes; 58,368 trained parameters of 4 float32 numbers each, of which 3 are in a checkpoint
    assert "weights 2.41 MiB, 0.06 M trained parameters with gradients and moments 0.89 MiB" in report
    assert "0.22 MiB exported, 1.34 MiB of checkpoints" in report
    assert "2 training and 1 held-out answers, 2 equal to themselves" in report
    assert "test row 1: 'cat'" in report
    assert "appends <|endoftext|>" in report
    assert "1 of 2 training rows repeat an earlier question" in report


def test_check_of_a_broken_model_is_one_message(folder, tmp_path, monkeypatch, capsys):
    (folder / "model.safetensors").write_text(POINTER)
    monkeypatch.setattr("sys.argv", ["check", f"model.path={folder}", f"runs_dir={tmp_path}/runs"])
    with pytest.raises(SystemExit, match=r"error: model.path=.*git lfs pull"):
        model_check.main()
    assert capsys.readouterr().out == ""


def test_loading_leaves_the_progress_bars_of_transformers_as_they_were(folder):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    load(folder)
    assert logging.is_progress_bar_enabled()
    if not before:
        logging.disable_progress_bar()
    assert not loading.logging.getLogger("transformers.modeling_utils").filters
