"""Computes the seconds of an epoch from the measured cost of a step and of a validation."""

from __future__ import annotations

from typing import Final

from mmpkd.cohort.store import Part
from mmpkd.config import TrialConfig
from mmpkd.training.probe import Cost
from mmpkd.training.stand_in import StandIn
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.training.items import num_items

PARTS: Final[tuple[Part, Part]] = ("train", "val")


def epoch_seconds(cost: Cost, config: TrialConfig, store: StandIn) -> float:
    """Returns the seconds of one epoch of training and its validation, as `EpochReport.seconds` will count them. The
    time of the warm-up on a GPU, of a pre-training and of earlier stages is spread evenly over the epochs of the last
    stage. Trials that share one in the cache cost less.
    """
    train, val = (store.rows(part, config.cohort.fold) for part in PARTS)
    is_vlm = isinstance(config.student, VlmConfig)  # its steps are made of questions
    num_train = num_items(store, train, config.distillation.pseudo_labels.use) if is_vlm else len(train)
    passes = sum(stage.epochs or 0 for stage in config.staged()) / config.epochs
    before = cost.warm_up_seconds / config.epochs
    if config.pretrain:
        before += config.pretrain.epochs / config.epochs * num_train * cost.pretrain_seconds
    if is_vlm:
        before += _correction_seconds(cost, config, store)
    return before + passes * num_train / cost.batch_size * cost.step_seconds + len(val) * cost.validation_seconds


def _correction_seconds(cost: Cost, config: TrialConfig, store: StandIn) -> float:
    """Returns the seconds of the rounds of correction, spread over the epochs: the student answers its training items,
    and the teacher answers all of them several times. This is the upper end, because right answers are not corrected.
    """
    rule, (train, val) = config.distillation.corrections, (store.rows(part, config.cohort.fold) for part in PARTS)
    if not rule.rounds:
        return 0.0
    of_answer = len(val) * cost.validation_seconds / num_items(store, val, with_unanswered=True)
    return rule.rounds / config.epochs * num_items(store, train, with_unanswered=False) * (1 + rule.answers) * of_answer
