"""The training loop: prompts → rollouts → rewards → advantages → token selection → objective → optimizer → metrics."""

from rlsparse.batch import ScoredBatch
from rlsparse.components.advantage import token_advantages
from rlsparse.components.objective.aggregation import token_scales
from rlsparse.components.token_sampler import TOKEN_SAMPLERS
from rlsparse.config.schema import Config
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import LogProbs, Policy, token_log_probs
from rlsparse.rollout import engine, within_memory
from rlsparse.rollout.data_parallel import over_ranks
from rlsparse.rollout.layer_skip import choose_layers
from rlsparse.runtime.distributed import ALONE, Ranks
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Tracker
from rlsparse.training.checkpointing import Keeper
from rlsparse.training.collect import Environment, with_replay
from rlsparse.training.evaluate import evaluate
from rlsparse.training.metrics import of_rollout, of_update, sample_rows
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.setup import Workplace
from rlsparse.training.state import TrainState
from rlsparse.training.update import learning_rate, set_learning_rates, update


def train(
    config: Config, place: Workplace, tracker: Tracker, clock: Clock, keeper: Keeper, ranks: Ranks = ALONE
) -> None:
    """Train the adapter, with an evaluation at step 0, every ``eval.every`` steps and at the end.

    Raises:
        Interrupted: it was told to stop, and is saved.
        NonFiniteError: the loss, its gradient or the policy's own log-probabilities are no longer finite numbers.
    """
    policy, adapter, data = place.policy, place.adapter, place.data
    # before a saved state comes in: a model's fitness for the fast paths is judged alike at the start and on resume
    sampler = engine(policy, config.rollout, tracker.say)
    log_probs_of = scoring_path(policy, config.train.packing, tracker)
    state = TrainState.start(config, adapter, data.train, keeper.saved)
    draws, optimizer, count = state.streams, state.optimizer, state.count
    generate = over_ranks(within_memory(sampler, state.memory, tracker.say), ranks)
    fit = FitMicrobatches(config.train, state.memory, tracker.say)
    select, max_new_tokens = TOKEN_SAMPLERS[config.token_sampler.name], config.rollout.max_new_tokens
    keep_trunk = log_probs_of is packed_log_probs
    environment = Environment(policy, generate, place.verifier, config, clock, keep_trunk, ranks)

    def held_out(step: int) -> None:
        with clock("eval"):
            result = evaluate(
                policy, generate, data.test, place.verifier, config.eval, config.rollout, config.seed, ranks
            )
        tracker.evaluation(step, {**result, "time/eval": clock.last["eval"]})

    if state.step == 0:
        held_out(0)
        if adapter.moves:
            tracker.ranks(0, adapter.ranks())
    for step in range(state.step + 1, config.train.steps + 1):
        clock.lap()
        left_out = choose_layers(config.layer_skip, policy.depth, draws["layer_skip"])
        first = environment.experience(next(state.batches), left_out, draws["rollout"])
        seen, origins = with_replay(environment, first, left_out, draws["replay"])
        with clock("train"):
            advantages = token_advantages(seen.rewards, seen.rollout, config.advantage, config.negative_feedback)
            selection = select(advantages, seen.rollout, config.token_sampler, draws["token_sampler"])
            scales = token_scales(selection, advantages, config.objective, origins, max_new_tokens, config.kl)
            set_learning_rates(optimizer, step, config.train)
            batch = ScoredBatch(seen.rollout, advantages, scales, on_policy=not left_out)
            updated = update(policy, log_probs_of, optimizer, batch, config, fit, ranks)
            moved = adapter.after_step(step, config.train.steps)
        count.add(first, seen, selection)
        tracker.train(
            step,
            {
                **of_rollout(first, seen, clock),
                **of_update(seen, batch, selection, updated, clock),
                **count.metrics(),
                **moved,
                "rollout/layers_skipped": len(left_out),
                "train/lr": learning_rate(step, config.train),
            },
        )
        if "adapter/pruned" in moved:
            tracker.ranks(step, adapter.ranks())
        for row in sample_rows(step, first, config.tracker.samples):
            tracker.sample(row)
        if step % config.eval.every == 0 or step == config.train.steps:
            held_out(step)
        state.step = step
        keeper.after_step(state)


def scoring_path(policy: Policy, packing: str, tracker: Tracker) -> LogProbs:
    """The packed path where it is wanted and the model can; else the plain one, with a line that says why."""
    if packing == "off":
        return token_log_probs
    obstacle = can_pack(policy)
    if obstacle is None:
        return packed_log_probs
    tracker.say(f"train.packing: off for this model: {obstacle}")
    return token_log_probs
