"""Train one or two steps of several settings and write what each rank saw: ``torchrun -m tests.faults.ranked FOLDER``.

Without torchrun a single process does the same, and writes what the ranks must agree with.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlsparse.algorithm import Algorithm
from rlsparse.model.cache import ModelCache
from rlsparse.runtime.distributed import join_world
from rlsparse.runtime.signals import StopRequest
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import NullTracker
from rlsparse.train import train
from rlsparse.training.setup import RunContext, training
from tests.conftest import composed

# every completion has something to teach (raw rewards, none of them 0);
# five prompts do not divide by two; no gradient clipping, whose factor would hide a wrong scale
COMMON = (
    "train.steps=1",
    "train.prompts_per_step=5",
    "train.group_size=8",
    "train.max_grad_norm=0",
    "reward.wrong=-1",
    "eval.max_rows=17",
    "eval.batch_rows=6",
)
SETTINGS = {
    "grpo": ["algorithm=grpo", "advantage=raw_reward", "kl=on", "objective.l2=0.01", "train.minibatches=2"],
    # the further rounds of refill sample fewer prompts, down to one for two ranks
    "sgrpo": [
        "algorithm=sgrpo",
        "advantage=raw_reward",
        "token_sampler.reweight=true",
        "entropy=on",
        "batch_filter=refill",
    ],
    "replay": ["algorithm=tspmo", "replay.successes=1", "replay.failures=1"],
    "l1ra": [
        "advantage=raw_reward",
        "adapter=l1ra",
        "adapter.update_every=0.5",
        "train.steps=2",
        "objective=token_mean",
    ],
    "skipping": ["advantage=raw_reward", "layer_skip=r25", "off_policy=truncated", "off_policy.level=sequence"],
    "several": [
        "train.updates_per_rollout=3",
        "algorithm=dr_grpo",
        "rollout=plain",
        "advantage=raw_reward",
        "train.packing=off",
        "clipping=gspo",
        "train.staleness=1",
        "train.steps=2",
        "off_policy=truncated",
    ],
}


class RowsInMemory(NullTracker):
    """Keeps the rows that rank 0 would write."""

    def train(self, step, metrics):
        self.history.append({"step": step, **metrics})

    evaluation = train


class FirstGradient:
    """Keeps the gradient of the first optimizer step; later ones depend on the rounding of the steps before them."""

    def __init__(self):
        self.found = {}

    def __call__(self, optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.found = self.found or {str(i): p.grad.clone() for i, p in enumerate(parameters)}


def main(folder: Path) -> None:
    world, models, device = join_world(), ModelCache(), torch.device("cpu")
    for name, overrides in SETTINGS.items():
        config = composed(*COMMON, *overrides)
        tracker = RowsInMemory()
        context = RunContext(device, world, None, None, tracker, Clock(device), StopRequest(), models)
        with training(config, Algorithm.build(config), context) as run:
            first = FirstGradient()
            hook = register_optimizer_step_pre_hook(first)
            train(run)
            hook.remove()
        save_file(first.found, folder / f"{name}-{world.rank}-of-{world.size}.safetensors")
        (folder / f"{name}-{world.rank}-of-{world.size}.json").write_text(json.dumps(tracker.history))
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
