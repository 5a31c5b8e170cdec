"""One step of a training: a batch, its loss terms, their gradients, and an update of the modules that learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mmpkd import fit
from mmpkd.augment import View
from mmpkd.config import TASK
from mmpkd.training.batches import StepInputs
from mmpkd.training.stages import Run
from mmpkd.types import Batch, ConfigError


def epoch_inputs(run: Run, epoch: int) -> Iterator[StepInputs]:
    """Yields the inputs of the steps of an epoch, which are determined by seed and epoch alone."""
    seed = run.config.seed
    order = fit.generator_for(seed, *run.purpose("order", epoch))
    views = fit.generator_for(seed, *run.purpose("views", epoch))
    return run.samples.inputs(run.config.optimizer.batch_size, order, views)


def take_step(run: Run, inputs: StepInputs) -> dict[str, Tensor]:
    """Takes one step of the optimiser at its present learning rate and with the present weights of the loss terms.

    Nothing here makes the host wait for the device, so that a CUDA graph can hold the whole step.

    Returns:
        The unweighted loss terms.
    """
    terms = loss_terms(run, *run.samples.batch(inputs))
    descend(run, weighted(run, terms))
    return {name: term.detach() for name, term in terms.items()}


def weighted(run: Run, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns each loss term times its weight."""
    return {name: run.weights[name] * term for name, term in terms.items()}


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


def descend(run: Run, weighted_terms: Mapping[str, Tensor]) -> None:
    """Takes one step of the optimiser to lower the sum of the weighted terms."""
    run.optimizer.zero_grad()
    loss = torch.stack(list(weighted_terms.values())).sum()
    if not loss.requires_grad:
        problem = f"no term ({', '.join(weighted_terms)}) depends on what the stage trains; add one that does"
        raise ConfigError.at(f"stages.{run.index}.objectives", problem)
    loss.backward()
    if clip_norm := run.config.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(fit.parameters_of(run.optimizer), clip_norm)
    if run.device.type == "cuda":  # torch refuses to record the optimiser otherwise, and warns if it is not recorded
        for group in run.optimizer.param_groups:
            group["capturable"] = torch.cuda.is_current_stream_capturing()
    run.optimizer.step()
