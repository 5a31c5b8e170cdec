"""Which configurations are run on further repeats, and what they come to; numbers by hand."""

from __future__ import annotations

import pytest

from mmpkd.config import TrialConfig
from sweep.search.repeats import PendingRepeat, Repeats, repeat_config
from sweep.types import Record, State

GOALS = ("val/auroc", "val/pointing")


def ended(
    number: int,
    auroc: float,
    pointing: float,
    state: State = "complete",
    repeat_of: int | None = None,
    turn: int = 0,
    arm: str = "a",
) -> Record:
    metrics = dict(zip(GOALS, (auroc, pointing), strict=True)) if state == "complete" else {}
    return Record(number, arm, state, 1, 1.0, {}, metrics, "{}", repeat_of=repeat_of, turn=turn)


def test_with_one_seed_each_trial_settles_its_configuration() -> None:
    repeats = Repeats(("a",), GOALS, repeats=1)
    assert repeats.add(ended(0, 0.8, 0.3)) == (0, (0.8, 0.3))
    assert repeats.add(ended(1, 0.9, 0.4)) == (1, (0.9, 0.4))
    assert not repeats.pending and not repeats.unsettled


def test_a_promising_configuration_runs_again_and_enters_the_front_with_its_means() -> None:
    repeats = Repeats(("a", "b"), GOALS, repeats=3)
    assert repeats.add(ended(0, 0.75, 0.25)) is None
    assert list(repeats.pending) == [PendingRepeat(0, 1), PendingRepeat(0, 2)] and repeats.unsettled == {0}
    repeats.mark_started(PendingRepeat(0, 1))
    repeats.mark_started(PendingRepeat(0, 1))  # an earlier driver has started it already
    assert list(repeats.pending) == [PendingRepeat(0, 2)]
    repeats.mark_started(PendingRepeat(0, 2))
    assert repeats.add(ended(1, 0.5, 0.5, repeat_of=0, turn=2)) is None, "further seeds may end in any order"
    assert repeats.add(ended(2, 0.625, 0.375, repeat_of=0, turn=1)) == (0, (0.625, 0.375))
    assert not repeats.unsettled
    # Its means are the front now. A trial behind them is settled by one run, though it is better than the worst seed.
    assert repeats.add(ended(3, 0.5625, 0.3125)) == (3, (0.5625, 0.3125))
    assert repeats.add(ended(4, 0.5625, 0.5)) is None, "a trial beside the front is promising"
    assert repeats.add(ended(5, 0.625, 0.375)) is None, "and so is a trial that equals the means"
    assert repeats.add(ended(6, 0.5, 0.25, arm="b")) is None, "each arm has a front of its own"
    assert repeats.unsettled == {4, 5, 6}
    assert list(repeats.pending) == [PendingRepeat(number, turn) for number in (4, 5, 6) for turn in (1, 2)]


@pytest.mark.parametrize("order", [("failed", "complete"), ("complete", "failed"), ("failed", "failed")])
def test_a_configuration_with_a_failed_seed_has_no_means_and_does_not_enter(order: tuple[State, State]) -> None:
    repeats = Repeats(("a",), GOALS, repeats=3)
    assert repeats.add(ended(0, 0.875, 0.875)) is None
    assert repeats.add(ended(1, 0.875, 0.875, order[0], repeat_of=0, turn=1)) is None, "another seed is still to end"
    assert repeats.add(ended(2, 0.875, 0.875, order[1], repeat_of=0, turn=2)) == (0, None)
    assert not repeats.unsettled
    assert repeats.add(ended(3, 0.5, 0.25)) is None, "promising, since nothing is on the front"


def test_a_repeat_has_the_next_seed_and_the_next_fold() -> None:
    config = TrialConfig.model_validate(
        {"cohort": {"reader": "table", "root": "/data", "fold": 2}, "seed": 5, "optimizer": {"lr": 1e-4}}
    )
    again = repeat_config(config, 1, num_folds=4)
    assert (again.seed, again.cohort.fold) == (6, 3)
    further = repeat_config(config, 3, num_folds=4)
    assert (further.seed, further.cohort.fold) == (8, 1)
    assert again.model_dump(exclude={"seed": True, "cohort": {"fold"}}) == config.model_dump(
        exclude={"seed": True, "cohort": {"fold"}}
    )
    assert (config.seed, config.cohort.fold) == (5, 2), "the configuration itself does not change"
    official = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}})
    assert (repeat_config(official, 2, num_folds=1).cohort.fold, repeat_config(official, 2, num_folds=1).seed) == (0, 2)
