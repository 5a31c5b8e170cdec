"""What the training of a student and of its teacher share: the model, its optimiser, and the steps of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmpkd import fit
from mmpkd.config import ScheduleConfig
from mmpkd.vlm.model import Vlm
from mmpkd.vlm.training import losses
from mmpkd.vlm.training.items import Items
from mmpkd.vlm.training.losses import Logits

TeacherLogits = Callable[[Sequence[int], Mapping[int, str]], Logits]  # items and their targets -> of the answer tokens


class Learner:
    """A model that learns items.

    Args:
        seed: decides the order of the items, dropout and hints, together with the epoch alone.
        purpose: name that keeps the random numbers of student and teacher apart.
    """

    def __init__(
        self,
        vlm: Vlm,
        items: Items,
        lr: float,
        weight_decay: float,
        clip_norm: float,
        batch_size: int,
        schedule: ScheduleConfig,
        seed: int,
        purpose: str,
    ):
        self.vlm, self.items, self.batch_size = vlm, items, batch_size
        self.optimizer = fit.optimizer_for(vlm, nn.ModuleDict(), lr, weight_decay, fused=True)
        self._lr, self._clip_norm, self._schedule = lr, clip_norm, schedule
        self._seed, self._purpose = seed, purpose
        self.device = next(vlm.parameters()).device

    def epoch(
        self,
        epoch: int,
        epochs: int,
        targets: Mapping[int, str],
        step: int,
        hints: float = 0.0,
        teacher: TeacherLogits | None = None,
        weight: float = 0.0,
        temperature: float = 1.0,
    ) -> tuple[dict[str, float], int]:
        """Learns each target once, and returns the mean of each loss term and the number of steps so far.

        Args:
            step: number of steps before this epoch. The learning rate follows the share of epochs that have passed, so
                that an epoch with more items (see `Targets.at`) does not move the schedule of the others.
            hints: share of items in which the model is shown the true answer.
        """
        generator = fit.generator_for(self._seed, self._purpose, "order", epoch)
        batches = list(self.items.shuffled(sorted(targets), generator, self.batch_size))
        log = fit.TermLog(first_step=step)
        self.vlm.train()
        with fit.seeded(self._seed, self._purpose, "epoch", epoch):
            for number, chosen in enumerate(batches):
                place = epoch * len(batches) + number
                rate = fit.learning_rate(
                    place, epochs * len(batches), self._lr, self._schedule.warmup, self._schedule.final
                )
                fit.set_learning_rate(self.optimizer, rate)
                shown = {item: targets[item] for item in chosen if hints and torch.rand(()).item() < hints}
                log.add(self.step(chosen, targets, shown, teacher, weight, temperature))
        return log.means(), step + len(batches)

    def step(
        self,
        chosen: Sequence[int],
        targets: Mapping[int, str],
        hints: Mapping[int, str] = {},
        teacher: TeacherLogits | None = None,
        weight: float = 0.0,
        temperature: float = 1.0,
    ) -> dict[str, Tensor]:
        """Takes one step, and returns the loss terms, unweighted."""
        rows = self.items.batch(chosen, targets, self.device, hints)
        logits_TV, tokens_T = losses.answer_tokens(*self.vlm.answer_logits(rows))
        terms = {"task": losses.cross_entropy(logits_TV, tokens_T)}
        if teacher is not None:
            terms["kl"] = losses.token_kl(logits_TV, teacher(chosen, targets), temperature)
        self.optimizer.zero_grad(set_to_none=True)
        losses.mixed(terms["task"], terms.get("kl"), weight).backward()
        if self._clip_norm:
            nn.utils.clip_grad_norm_(fit.parameters_of(self.optimizer), self._clip_norm)
        self.optimizer.step()
        return terms
