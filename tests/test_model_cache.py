"""One model load for the runs of a process, and no trace of one run in the next."""

import shutil

import pytest
import torch

from rlsparse.execution.run_once import Process
from rlsparse.model.cache import ModelCache
from rlsparse.model.source import EMBEDDED
from rlsparse.run import run
from tests.conftest import composed

CPU = torch.device("cpu")
SHORT = ("train.steps=2", "eval.max_rows=8", "tracker=none", "adapter.layers=last_third")


def lent(cache, model, dtype="auto"):
    with cache.lend(model, CPU, dtype) as policy:
        return policy.causal_lm


def test_model_lent_twice_is_loaded_once_and_replaced_by_another():
    cache, model = ModelCache(), composed().model
    first = lent(cache, model)
    assert lent(cache, model) is first
    assert lent(cache, model, "bfloat16") is not first
    assert lent(cache, model) is not first


def test_weights_written_again_are_read_again(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED["tiny"], folder)
    cache, model = ModelCache(), composed(f"model.path={folder}").model
    first = lent(cache, model)
    assert lent(cache, model) is first
    shutil.copy2(folder / "model.safetensors", tmp_path / "same")
    (folder / "model.safetensors").unlink()
    shutil.copyfile(tmp_path / "same", folder / "model.safetensors")
    assert lent(cache, model) is not first


def test_model_in_use_when_a_run_fails_is_not_kept():
    cache, model = ModelCache(), composed().model
    kept = []

    def broken():
        with cache.lend(model, CPU, "auto") as policy:
            kept.append(policy.causal_lm)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert lent(cache, model) is not kept[0]


@pytest.mark.slow
def test_second_run_of_a_process_equals_one_in_a_fresh_process(tmp_path):
    process = Process(ModelCache())
    for seed in (0, 1):
        last = run(composed(f"seed={seed}", f"runs_dir={tmp_path / 'sweep'}", *SHORT), process=process)
    alone = run(composed("seed=1", f"runs_dir={tmp_path / 'alone'}", *SHORT))
    assert last["id"] == alone["id"]
    names = ("adapter/adapter_model.safetensors", "samples.jsonl")
    for name in names:
        together, single = (tmp_path / where / "default" / last["id"] / name for where in ("sweep", "alone"))
        assert together.read_bytes() == single.read_bytes()
