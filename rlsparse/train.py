"""The training loop: prompts → rollouts → rewards → advantages → token selection → objective → optimizer → metrics."""

from rlsparse.batch import ScoredBatch
from rlsparse.training.metrics import Step
from rlsparse.training.setup import Training
from rlsparse.training.update import set_learning_rates


def train(run: Training) -> None:
    """Train the adapter, with evaluations at step 0, at the end, and in between where they are due.

    Raises:
        Interrupted: the run was asked to stop, and is saved.
        NonFiniteError: the loss, its gradient or the log-probabilities of the policy are not finite.
    """
    algorithm, state, config = run.algorithm, run.state, run.config
    if not run.resumed:
        run.record.evaluation(0, run.evaluate(0))
        run.record.start(run.adapter, algorithm.adapter.moves_ranks)
        run.checkpoints.after_first_evaluation(state)
    for step in range(state.step + 1, config.train.steps + 1):
        collected = run.collect(next(state.batches))
        experience = collected.all
        advantages = algorithm.token_advantages(experience.rewards, experience.rollout, experience.terms)  # (B, T)
        selection = algorithm.select(advantages, experience.rollout, state.streams["token_sampler"])
        scales = algorithm.token_scales(selection, advantages, collected.origins)  # (B, T)
        batch = ScoredBatch(experience.rollout, advantages, scales, on_policy=not collected.skipped)
        set_learning_rates(state.optimizer, step, config.train)
        updated = run.update(batch)
        moved = run.adapter.after_step(step, config.train.steps)
        run.record.step(step, Step(collected, selection, batch, updated, moved), run.adapter)
        if run.evaluate.due(step):
            run.record.evaluation(step, run.evaluate(step))
        state.step = step
        run.checkpoints.after_step(state)
