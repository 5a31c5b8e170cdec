"""What a training of a student that answers is expected to cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.training.stand_in import stand_in
from mmpkd.vlm.training.learner import Learner
from mmpkd.vlm.training.probe import VlmProbe
from sweep.plan.epoch_cost import epoch_seconds
from tests.mmpkd.vlm.test_vlm_training import TEACHER, config_with
from tests.sweep.plan.test_price import COST


def test_a_validation_is_timed_with_answers_as_long_as_the_true_ones(tmp_path: Path) -> None:
    """A box has the tokens <box> ( 1 , 2 ) , ( 3 , 4 ) </box> and the end: 14. Descriptions are shorter."""
    config = config_with()
    lengths = []
    for most in (3, 80):
        student = config.student.model_copy(update={"max_new_tokens": most})
        of_length = config.model_copy(update={"student": student})
        lengths.append(VlmProbe(of_length, prepare(config.cohort, tmp_path))._longest())
    assert lengths == [3, 14]


def test_a_timed_step_encodes_as_many_images_as_one_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 24 answered questions are about 6 images, 4 about each. In their order, 4 of them would have one image; at
    random 4 of them have 2.9 on average."""
    config = config_with()
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"batch_size": 4})})
    probe, timed = VlmProbe(config, prepare(config.cohort, tmp_path)), list[list[int]]()
    step = Learner.step

    def seen(self: Learner, chosen: list[int], *rest: Any) -> Any:
        timed.append(chosen)
        return step(self, chosen, *rest)

    monkeypatch.setattr(Learner, "step", seen)
    cost = probe.cost(0.2)
    row = probe.run.items.table["row"]
    images = [row[chosen].nunique() for chosen in timed]
    assert len(timed) == cost.num_steps + 1 and {len(chosen) for chosen in timed} == {cost.batch_size} == {4}
    assert sum(images) / len(images) > 2


def test_a_round_of_correction_is_priced_as_if_every_answer_were_wrong() -> None:
    """Of 12 training images with 4 questions each, 6 have answers: 24 items, which the student answers once and the
    teacher twice. 8 validation images cost 0.01 s each, with 4 items each."""
    rule = {"teacher": {**TEACHER, "hints": 0.5}, "corrections": {"rounds": 1, "answers": 2}}
    plain, corrected = config_with(epochs=2), config_with(epochs=2, **rule)
    assert isinstance(corrected, TrialConfig)
    store = stand_in(plain.cohort)
    extra = epoch_seconds(COST, corrected, store) - epoch_seconds(COST, plain, store)
    assert extra == pytest.approx(24 * (1 + 2) * 0.01 / 4 / 2)
