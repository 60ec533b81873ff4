"""``torchrun -m tests.faults.ranked FOLDER``: trains one step of each setting and writes what each rank saw of it.

Without torchrun it is the same on one process: what the ranks must come to.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlsparse.model.cache import Loader
from rlsparse.runtime.distributed import join_ranks
from rlsparse.runtime.signals import StopRequest
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Mute
from rlsparse.train import train
from rlsparse.training.checkpointing import Keeper
from rlsparse.training.setup import workplace
from tests.conftest import composed

# every completion has something to teach (raw rewards, none of them 0);
# five prompts do not divide by two; no gradient clipping, whose factor would hide a wrong scale
COMMON = (
    "train.steps=1",
    "train.prompts_per_step=5",
    "train.group_size=8",
    "train.max_grad_norm=0",
    "task.reward.wrong=-1",
    "eval.max_rows=17",
    "eval.batch_rows=6",
)
SETTINGS = {
    "grpo": ["algorithm=grpo", "advantage=raw_reward", "kl=on", "objective.l2=0.01"],
    "sgrpo": ["algorithm=sgrpo", "advantage=raw_reward", "token_sampler.reweight=true"],
    "replay": ["algorithm=tspmo", "token_sampler.replay.successes=1", "token_sampler.replay.failures=1"],
    "l1ra": [
        "advantage=raw_reward",
        "adapter=l1ra",
        "adapter.update_every=0.5",
        "train.steps=2",
        "objective.aggregation=token_mean",
    ],
    "skipping": ["advantage=raw_reward", "layer_skip=r25", "off_policy=truncated", "off_policy.level=sequence"],
    "several": [
        "train.updates_per_rollout=3",
        "algorithm=dr_grpo",
        "rollout=plain",
        "advantage=raw_reward",
        "train.packing=off",
    ],
}


class Listing(Mute):
    """Keeps the rows that rank 0 would write."""

    def train(self, step, metrics):
        self.history.append({"step": step, **metrics})

    evaluation = train


class FirstGradient:
    """What the first optimizer step takes: later ones come after steps of rounding's own."""

    def __init__(self):
        self.found = {}

    def __call__(self, optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.found = self.found or {str(i): p.grad.clone() for i, p in enumerate(parameters)}


def main(folder: Path) -> None:
    ranks, loader, device = join_ranks(), Loader(), torch.device("cpu")
    for name, overrides in SETTINGS.items():
        config = composed(*COMMON, *overrides)
        tracker, clock = Listing(), Clock(device)
        with workplace(config, device, loader) as place:
            first = FirstGradient()
            hook = register_optimizer_step_pre_hook(first)
            train(config, place, tracker, clock, Keeper(None, 1, tracker, clock, StopRequest(), None, ranks), ranks)
            hook.remove()
        save_file(first.found, folder / f"{name}-{ranks.number}-of-{ranks.size}.safetensors")
        (folder / f"{name}-{ranks.number}-of-{ranks.size}.json").write_text(json.dumps(tracker.history))
    ranks.part()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
