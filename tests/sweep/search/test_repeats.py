"""Which configurations are run on further seeds, and what they come to; numbers by hand."""

from __future__ import annotations

import pytest

from mmpkd.config import TrialConfig
from sweep.search.repeats import Due, Seeds, repeated
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


def test_one_seed_is_settled_at_once() -> None:
    seeds = Seeds(("a",), GOALS, repeats=1)
    assert seeds.finish(ended(0, 0.8, 0.3)) == (0, (0.8, 0.3))
    assert seeds.finish(ended(1, 0.9, 0.4)) == (1, (0.9, 0.4))
    assert not seeds.due and not seeds.waited_for


def test_what_would_be_on_the_front_is_run_again_and_enters_it_with_its_means() -> None:
    seeds = Seeds(("a", "b"), GOALS, repeats=3)
    assert seeds.finish(ended(0, 0.75, 0.25)) is None
    assert list(seeds.due) == [Due(0, 1), Due(0, 2)] and seeds.waited_for == {0}
    seeds.started(Due(0, 1))
    seeds.started(Due(0, 1))  # an earlier driver's, told again
    assert list(seeds.due) == [Due(0, 2)]
    seeds.started(Due(0, 2))
    assert seeds.finish(ended(1, 0.5, 0.5, repeat_of=0, turn=2)) is None, "in whichever order they come"
    assert seeds.finish(ended(2, 0.625, 0.375, repeat_of=0, turn=1)) == (0, (0.625, 0.375))
    assert not seeds.waited_for
    # Its means are the front now: what lies behind them is settled by one run, though it is better than its worst.
    assert seeds.finish(ended(3, 0.5625, 0.3125)) == (3, (0.5625, 0.3125))
    assert seeds.finish(ended(4, 0.5625, 0.5)) is None, "beside them it is promising"
    assert seeds.finish(ended(5, 0.625, 0.375)) is None, "and so is their equal"
    assert seeds.finish(ended(6, 0.5, 0.25, arm="b")) is None, "another arm has its own front"
    assert seeds.waited_for == {4, 5, 6}
    assert list(seeds.due) == [Due(number, turn) for number in (4, 5, 6) for turn in (1, 2)]


@pytest.mark.parametrize("order", [("failed", "complete"), ("complete", "failed"), ("failed", "failed")])
def test_a_configuration_with_a_failed_seed_has_no_means_and_does_not_enter(order: tuple[State, State]) -> None:
    seeds = Seeds(("a",), GOALS, repeats=3)
    assert seeds.finish(ended(0, 0.875, 0.875)) is None
    assert seeds.finish(ended(1, 0.875, 0.875, order[0], repeat_of=0, turn=1)) is None, "the rest is waited for"
    assert seeds.finish(ended(2, 0.875, 0.875, order[1], repeat_of=0, turn=2)) == (0, None)
    assert not seeds.waited_for
    assert seeds.finish(ended(3, 0.5, 0.25)) is None, "promising: nothing is on the front"


def test_a_repeat_has_the_next_seed_and_the_next_fold() -> None:
    config = TrialConfig.model_validate(
        {"cohort": {"reader": "table", "root": "/data", "fold": 2}, "seed": 5, "optimizer": {"lr": 1e-4}}
    )
    again = repeated(config, 1, num_folds=4)
    assert (again.seed, again.cohort.fold) == (6, 3)
    further = repeated(config, 3, num_folds=4)
    assert (further.seed, further.cohort.fold) == (8, 1)
    assert again.model_dump(exclude={"seed": True, "cohort": {"fold"}}) == config.model_dump(
        exclude={"seed": True, "cohort": {"fold"}}
    )
    assert (config.seed, config.cohort.fold) == (5, 2), "the configuration itself is as it was"
    official = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}})
    assert (repeated(official, 2, num_folds=1).cohort.fold, repeated(official, 2, num_folds=1).seed) == (0, 2)
