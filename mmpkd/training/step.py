"""One epoch of a training, and its steps: loss terms of a batch, gradients, and an update of the optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpkd import fit
from mmpkd.augment import View
from mmpkd.config import TASK
from mmpkd.training.batches import batches
from mmpkd.training.stages import Run
from mmpkd.types import Batch, ConfigError

SHARES_EVERY = 5  # epochs between measurements of gradient shares, which cost a backward pass for each term


def train_epoch(run: Run, epoch: int) -> tuple[dict[str, float], int]:
    """Trains one epoch: one pass over the training samples.

    Returns:
        The unweighted mean of each loss term (every SHARES_EVERY epochs also the
        `gradient_share/<term>` of the first step), and the number of steps since the stage began.

    Raises:
        DivergedError: a loss term is no longer finite.
    """
    config, epochs = run.config, run.stage.epochs
    assert epochs is not None
    weights = {
        name: objective.weight * fit.objective_factor(objective.schedule, epoch, epochs)
        for name, objective in config.active_objectives().items()
        if name in run.stage.objectives
    }
    learning = [parameter for parameter in run.student.parameters() if parameter.requires_grad]
    steps_per_epoch = -(-len(run.rows) // config.optimizer.batch_size)
    step = epoch * steps_per_epoch
    log = fit.TermLog(first_step=step)
    shares: dict[str, float] = {}

    run.wake()
    with fit.seeded(config.seed, *run.purpose("epoch", epoch)):  # dropout and drop path use the global generator
        for batch, view in batches(run, epoch):
            terms = loss_terms(run, batch, view)
            log.add(terms)
            weighted = {name: weights.get(name, 1.0) * term for name, term in terms.items()}
            if weights and learning and not shares and epoch % SHARES_EVERY == 0:
                shares = fit.gradient_shares(weighted, learning)
            descend(run, weighted, step, epochs * steps_per_epoch)
            step += 1
    return log.means() | shares, step


def loss_terms(run: Run, batch: Batch, view: View) -> dict[str, Tensor]:
    """Returns the unweighted loss terms of a batch in a view: `task`, and each objective under its label."""
    active, wanted = run.config.active_objectives(), run.stage.objectives
    objectives = {name: run.objective(name) for name in run.objectives if name in wanted}
    layers = {layer for objective in objectives.values() for layer in objective.needs.student_layers}
    attention_layers = {layer for objective in objectives.values() for layer in objective.needs.student_attention}
    smoothing, tasks = run.config.optimizer.label_smoothing, run.store.facts.tasks
    with fit.autocast(run.device):
        output = run.answerer(batch.image_BCHW, layers, attention_layers)
        terms = {}
        if TASK in wanted:
            labels = batch.target_BK, batch.known_BK
            terms[TASK] = fit.task_loss(output.logits_BK, *labels, tasks, smoothing, run.weight_2K)
        teachers = dict.fromkeys(active[name].teacher or "" for name in objectives)
        teacher_outputs = {name: run.teachers[name].at(batch.rows_B, batch.image_BCHW, view) for name in teachers}
        for name, objective in objectives.items():
            terms[name] = objective(output, teacher_outputs[active[name].teacher or ""], batch)
    return terms


def descend(run: Run, weighted_terms: Mapping[str, Tensor], step: int, num_steps: int) -> None:
    """Takes one step of the optimiser to lower the sum of the weighted terms."""
    config = run.config
    run.optimizer.zero_grad()
    loss = torch.stack(list(weighted_terms.values())).sum()
    if not loss.requires_grad:
        problem = f"no term ({', '.join(weighted_terms)}) depends on what the stage trains; add one that does"
        raise ConfigError.at(f"stages.{run.index}.objectives", problem)
    loss.backward()
    if config.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(fit.parameters_of(run.optimizer), config.optimizer.clip_norm)
    rate = fit.learning_rate(step, num_steps, config.optimizer.lr, config.schedule.warmup, config.schedule.final)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
