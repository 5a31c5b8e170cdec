"""One epoch of a training: one pass over the training samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmpkd import fit
from mmpkd.config import TASK
from mmpkd.training.batches import StepInputs
from mmpkd.training.execution import Stepper
from mmpkd.training.stages import Run
from mmpkd.training.step import descend, epoch_inputs, loss_terms, weighted

SHARES_EVERY = 5  # epochs between measurements of gradient shares, which cost a backward pass for each term


def train_epoch(run: Run, epoch: int) -> tuple[dict[str, float], int]:
    """Trains one epoch.

    Returns:
        The unweighted mean of each loss term (every SHARES_EVERY epochs also the
        `gradient_share/<term>` of the first step), and the number of steps since the stage began.

    Raises:
        DivergedError: a loss term is no longer finite.
    """
    optimizer, schedule, epochs = run.config.optimizer, run.config.schedule, run.stage.epochs
    assert epochs is not None
    run.step = run.step or Stepper(run)
    run.set_weights(term_weights(run, epoch, epochs))
    learning = [parameter for parameter in run.student.parameters() if parameter.requires_grad]
    steps_per_epoch = -(-len(run.rows) // optimizer.batch_size)
    step = epoch * steps_per_epoch
    log = fit.TermLog(first_step=step)
    shares: dict[str, float] = {}
    measures_shares = epoch % SHARES_EVERY == 0 and bool(learning) and set(run.weights) != {TASK}

    run.wake()
    with fit.seeded(run.config.seed, *run.purpose("epoch", epoch)):  # dropout and drop path use the global generator
        for inputs in epoch_inputs(run, epoch):
            rate = fit.learning_rate(step, epochs * steps_per_epoch, optimizer.lr, schedule.warmup, schedule.final)
            fit.set_learning_rate(run.optimizer, rate)
            if measures_shares and not shares:
                terms, shares = measured_step(run, inputs, learning)
            else:
                terms = run.step(inputs)
            log.add(terms)
            step += 1
    return log.means() | shares, step


def term_weights(run: Run, epoch: int, epochs: int) -> dict[str, float]:
    """Returns the weight of each loss term of the stage in this epoch, of `epochs` epochs. The task has weight 1."""
    weights = {
        name: objective.weight * fit.objective_factor(objective.schedule, epoch, epochs)
        for name, objective in run.config.active_objectives().items()
    }
    return {name: weights.get(name, 1.0) for name in run.stage.objectives}


def measured_step(
    run: Run, inputs: StepInputs, learning: Sequence[nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Takes one step as `take_step` does. Returns the loss terms, and their shares in the gradient of the student's
    parameters that learn."""
    terms = loss_terms(run, *run.samples.batch(inputs))
    weighted_terms = weighted(run, terms)
    shares = fit.gradient_shares(weighted_terms, learning)
    descend(run, weighted_terms)
    return {name: term.detach() for name, term in terms.items()}, shares
