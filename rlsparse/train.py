"""The training loop: prompts → rollouts → rewards → filter → advantages → tokens → objective → optimizer → metrics."""

from rlsparse.batch import TokenBatch
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
        run.record.start(run.adapter, algorithm.adapter.moves_ranks)
    evaluate(run)  # at step 0, or what is missing of an evaluation that was cut off
    for step in range(state.step + 1, config.train.steps + 1):
        collected = run.collect(state.batches)
        experience = collected.all
        advantages = algorithm.token_advantages(experience.rewards, experience.rollout, experience.terms)  # (B, T)
        selection = algorithm.select(advantages, experience.rollout, state.streams["token_sampler"])
        if config.train.mask_truncated:
            selection = selection.without(~experience.rollout.ended)
        batch = TokenBatch(experience.rollout, advantages, selection, collected.origins, collected.on_policy)
        minibatches = batch.minibatches(config.train.minibatches, state.streams["minibatches"])
        scored = [one for minibatch in minibatches for one in algorithm.scored(minibatch)]
        set_learning_rates(state.optimizer, step, config.train)
        updated = run.update(scored)
        moved = run.adapter.after_step(step, config.train.steps)
        run.record.step(step, Step(collected, batch, scored, updated, moved), run.adapter)
        state.complete(step)
        evaluate(run)
        run.checkpoints.after_step(state)


def evaluate(run: Training) -> None:
    """Ask the sets of held-out questions that are due after the current step and have not been asked yet.

    Raises:
        Interrupted: the run was asked to stop, and is saved.
        NonFiniteError: the log-probabilities of the policy are not finite.
    """
    state = run.state
    for questions in run.evaluate.due(state.step):
        if questions.name in state.evaluated:
            continue
        run.checkpoints.before_evaluation(state, questions)
        run.record.evaluation(state.step, questions.name, run.evaluate.ask(questions))
        state.evaluated.append(questions.name)
