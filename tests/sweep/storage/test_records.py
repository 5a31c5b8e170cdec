"""Fronts by hand, and tables that parquet takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweep.pareto import admit
from sweep.reports.tables import trials_table
from sweep.storage.records import best_of, comparable, error_of_mean, front_of, over_seeds, picked
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
    metrics = dict(zip(GOALS, (auroc, pointing), strict=True))
    return Record(number, arm, state, 1, 1.0, {}, metrics, "{}", repeat_of=repeat_of, turn=turn)


def test_the_front_by_hand() -> None:
    front: dict[int, Any] = {}
    assert admit(front, 0, (0.5, 0.5)) == []
    assert admit(front, 1, (0.4, 0.6)) == []
    assert admit(front, 2, (0.4, 0.5)) == [2]  # worse than both
    assert admit(front, 3, (0.5, 0.5)) == []  # a twin dominates nobody
    assert admit(front, 4, (0.5, 0.6)) == [0, 1, 3]
    assert list(front) == [4]


def test_a_reference_is_shown_and_never_chosen() -> None:
    """Trial 1 read the superior image at test, and so is best."""
    reference = replace(ended(1, 0.9, 0.9), config='{"student": {"reads": ["superior"]}}')
    records = [ended(0, 0.5, 0.6), reference, replace(ended(2, 0.6, 0.5), config='{"student": {"reads": ["image"]}}')]
    assert [record.number for record in front_of(records, GOALS)] == [2, 0]
    best, alone = best_of(records, GOALS[0]), best_of([reference], GOALS[0])
    assert best is not None and best.number == 2
    assert alone is not None and alone.number == 1, "the best of its arm"


def test_a_tie_is_decided_by_the_lowest_number() -> None:
    """The trials 3, 5 and 8 have equal AUROC. Trial 8 points best, and is alone on the front."""
    records = [ended(8, 0.9, 0.7), ended(3, 0.9, 0.2), ended(5, 0.9, 0.4), ended(1, 0.8, 0.1), ended(9, 0.7, 0.7)]
    best = picked(records, "val/auroc")
    assert best is not None and best.number == 3
    assert [record.number for record in front_of(records, GOALS)] == [8]
    by_pointing = picked(records, "val/pointing")
    assert by_pointing is not None and by_pointing.number == 8, "9 points as well, and 8 is the lower number"


def test_a_choice_of_numbers_and_words_fits_a_table(tmp_path: Path) -> None:
    records = [
        Record(index, "none", "complete", 1, 1.0, {"none/layers": value}, {"val/auroc": 0.5}, "{}")
        for index, value in enumerate((3, "last", None, 0.5))
    ]
    table = trials_table(records)
    table.to_parquet(tmp_path / "t.parquet")
    assert table["none/layers"].tolist()[:2] == ["3", "last"]


def test_over_seeds_are_means_and_their_standard_errors() -> None:
    runs = [
        ended(0, 0.75, 0.5),
        ended(1, 0.9, 0.9),  # has had one seed only
        ended(2, 0.5, 0.5, repeat_of=0, turn=2),
        ended(3, 1.0, 0.5, repeat_of=0, turn=1),
        ended(4, 0.1, 0.1, "failed", repeat_of=1, turn=1),
    ]
    (record,) = over_seeds(runs, 3)
    assert (record.number, record.repeat_of, record.turn) == (0, None, 0)
    # 0.75, 0.5 and 1: standard deviation 1/4, over the root of 3.
    expected = {"val/auroc": 0.75, "val/auroc_seed_se": 0.25 / 3**0.5, "val/pointing": 0.5, "val/pointing_seed_se": 0.0}
    assert record.metrics == pytest.approx({"seeds": 3, **expected})
    assert over_seeds(runs, 4) == []
    assert [run.number for run in over_seeds(runs, 1)] == [0, 1, 2, 3], "with one seed each, complete ones as they are"


def test_the_error_of_a_mean_by_hand() -> None:
    """Errors of 0.03 and 0.05 have a mean square of 0.0017; the scores 0.75, 0.5 and 1 have a variance of 1/16."""
    scores, errors = (0.75, 0.5, 1.0), (0.03, 0.05, math.nan)
    assert error_of_mean(scores, errors, (0, 0, 0)) == pytest.approx((0.0017 + 1 / 48) ** 0.5)
    assert error_of_mean(scores, errors, (0, 1, 2)) == pytest.approx((1 / 48) ** 0.5), "the scores contain the patients"
    assert error_of_mean(scores, errors, (0, 1, 0)) == pytest.approx((0.0017 * 5 / 9 + 1 / 48) ** 0.5)
    equal = (0.75, 0.75, 0.75)
    assert error_of_mean(equal, errors, (0, 0, 0)) == pytest.approx(0.0017**0.5), "more seeds are not more patients"
    assert error_of_mean(equal, errors, (0, 1, 2)) == pytest.approx((0.0017 / 3) ** 0.5), "though the seeds agree"
    assert math.isnan(error_of_mean(scores, (0.0, math.nan, 1e-17), (0, 0, 0)))
    assert math.isnan(error_of_mean((0.75, math.nan), (0.03, 0.05), (0, 0)))
    assert error_of_mean((0.75,), (0.03,), (0,)) == pytest.approx(0.03)


def test_the_error_of_a_mean_covers_patients_and_seeds() -> None:
    """The mean of the estimated variances against the variance of simulated means of three seeds.

    On shared patients the errors of two seeds over patients have a correlation of 0.7, so the estimate is above the
    truth by the part that is not shared, 0.3 v. In folds of their own, s²/k is right on average, and the estimate is
    above the truth because it is the larger of two.
    """
    generator, size = np.random.default_rng(0), 20000
    over_patients, over_seeds, correlation = 0.05**2, 0.04**2, 0.7
    seeds = generator.normal(0, over_seeds**0.5, (size, 3))
    common, own = (generator.normal(0, (share * over_patients) ** 0.5, (size, count)) for share, count in
                   ((correlation, 1), (1 - correlation, 3)))  # fmt: skip
    apart = generator.normal(0, over_patients**0.5, (size, 3))
    for scores, folds, lower, upper in (
        (seeds + common + own, (0, 0, 0), 0.3 * over_patients, 0.3 * over_patients),
        (seeds + apart, (0, 1, 2), 0, over_patients / 3),
    ):
        estimates = [error_of_mean(row.tolist(), [0.05] * 3, folds) ** 2 for row in scores]
        excess = np.mean(estimates) - scores.mean(axis=1).var()
        noise = 4 * np.std(estimates) / size**0.5 + 4 * scores.mean(axis=1).var() * (2 / size) ** 0.5
        assert lower - noise < excess < upper + noise


def test_the_mean_over_seeds_has_the_error_of_a_mean() -> None:
    runs = [ended(0, 0.75, 0.5), ended(1, 0.5, 0.5, repeat_of=0, turn=1)]
    for fold, variance in ((0, 0.04**2 + 1 / 64), (1, 1 / 64)):
        configs = ('{"cohort": {"fold": 0}}', f'{{"cohort": {{"fold": {fold}}}}}')
        known = [
            replace(run, metrics={**run.metrics, "val/auroc_se": 0.04}, config=config)
            for run, config in zip(runs, configs, strict=True)
        ]
        (record,) = over_seeds(known, 2)
        assert record.metrics["val/auroc_se"] == pytest.approx(variance**0.5)
        assert record.metrics["val/auroc_seed_se"] == pytest.approx(1 / 8)
        assert "val/auroc_se_seed_se" not in record.metrics


def test_what_may_be_compared_over_seeds() -> None:
    runs = [
        ended(0, 0.75, 0.5),  # means: 0.625, 0.5
        ended(1, 0.5, 0.5, repeat_of=0, turn=1),
        ended(2, 0.6, 0.25),  # one run, behind the means of 0
        ended(3, 0.7, 0.25),  # one run, not behind them, though behind the first run of 0
        ended(4, 0.5, 0.25, arm="b"),  # behind another arm's
        ended(5, 0.9, 0.9, "pruned"),
        ended(6, 0.625, 0.5),  # their equal, and a seed of it failed
        ended(7, 0.9, 0.9, "failed", repeat_of=6, turn=1),
        ended(8, 0.0, 0.0, "running"),
        ended(9, 0.625, 0.25),  # one run that equals the means of 0 in one goal, so that a tie could choose it
    ]
    shown = comparable(list(reversed(runs)), GOALS, 2)
    assert [record.number for record in shown] == [0, 2, 5, 8]
    assert [shown[0].metrics[goal] for goal in GOALS] == [0.625, 0.5]
    assert shown[1] is runs[2]
    assert comparable(runs, GOALS, 1) == runs
    assert [record.number for record in front_of(shown, GOALS)] == [0]
    assert best_of(shown, "val/auroc") is shown[0]


def test_a_metric_that_is_not_defined_on_a_seed_has_no_standard_error() -> None:
    runs = [ended(0, 0.75, 0.5), ended(1, 0.5, 0.5, repeat_of=0, turn=1)]
    runs = [
        replace(run, metrics={**run.metrics, "val/rare": value})
        for run, value in zip(runs, (float("nan"), 1.0), strict=True)
    ]
    (record,) = over_seeds(runs, 2)
    assert math.isnan(record.metrics["val/rare"]) and math.isnan(record.metrics["val/rare_seed_se"])
    assert record.metrics["val/auroc"] == 0.625
