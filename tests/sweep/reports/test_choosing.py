"""Estimates by which trials are chosen, and how much luck is in the best score, compared with simulated truth."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from sweep.reports.choosing import choices_in_words, optimism, with_estimate, with_estimates
from sweep.reports.console import print_summary
from sweep.search.repeats import Repeats
from sweep.space.grammar import parse
from sweep.storage.layout import SweepFolder
from sweep.storage.records import best_of, comparable, front_of, over_seeds, picked
from sweep.types import Record
from tests.sweep.swept import swept as run_sweep
from tests.sweep.swept import untracked  # noqa: F401  (a fixture)

GOAL = "val/auroc"
NODE = parse(
    {
        "lr": {"log_uniform": [0.001, 1.0]},
        "decay": {"uniform": [0, 1]},
        "objectives": {"one_of": {"soft": {"weight": {"uniform": [0, 1]}}, "near": {"layer": {"choice": [1, 2]}}}},
    },
    "",
    [],
)
assert NODE is not None
NOISE = 0.05  # standard deviation of a score over seeds


def drawn(rng: np.random.Generator, arm: str) -> dict[str, Any]:
    values: dict[str, Any] = {f"{arm}/lr": 10 ** rng.uniform(-3, 0), f"{arm}/decay": rng.random()}
    if rng.random() < 0.5:
        return values | {f"{arm}/objectives": "soft", f"{arm}/objectives.soft.weight": rng.random()}
    return values | {f"{arm}/objectives": "near", f"{arm}/objectives.near.layer": int(rng.integers(1, 3))}


def by_lr(values: dict[str, Any], arm: str) -> float:
    """The mean score is 0.8 at a learning rate of 0.1, and 0.5 at the lowest one."""
    return float(0.8 - 0.075 * (np.log10(values[f"{arm}/lr"]) + 1) ** 2)


def constant(values: dict[str, Any], arm: str) -> float:
    return 0.7


def swept(
    rng: np.random.Generator,
    count: int,
    mean: Callable[[dict[str, Any], str], float],
    arms: tuple[str, ...] = ("a",),
    repeats: int = 1,
) -> tuple[list[Record], list[float]]:
    """Returns complete trials with noisy scores, with estimates or averaged over seeds, and their mean scores."""
    records, means = [], []
    for number in range(count):
        arm = arms[number % len(arms)]
        values = drawn(rng, arm)
        means.append(mean(values, arm))
        for turn in range(repeats):
            metrics = {GOAL: means[-1] + NOISE * float(rng.standard_normal())}
            of = number if turn else None
            further = number + count * turn
            records.append(Record(further, arm, "complete", 1, 1.0, values, metrics, "{}", repeat_of=of, turn=turn))
    if repeats > 1:
        return over_seeds(records, repeats), means
    return with_estimates(records, dict.fromkeys(arms, NODE), [GOAL]), means  # type: ignore[arg-type]


def test_estimates_are_closer_to_the_means_than_the_scores() -> None:
    records, means = swept(np.random.default_rng(1), 32, by_lr)
    assert [record.metrics[f"{GOAL}_explained"] > 0.5 for record in records] == [True] * 32
    errors = np.array([[record.metrics[GOAL], record.metrics[f"{GOAL}_estimate"]] for record in records])
    observed, estimated = np.sqrt(((errors - np.array(means)[:, None]) ** 2).mean(axis=0))
    assert estimated < 0.7 * observed
    errors_of_models = {record.metrics[f"{GOAL}_estimate_error"] for record in records}
    assert len(errors_of_models) == 1 and NOISE / 2 < errors_of_models.pop() < 2 * NOISE


def test_a_model_needs_eight_complete_trials_of_an_arm_and_has_to_predict_them() -> None:
    records, _ = swept(np.random.default_rng(0), 7, by_lr)
    assert set(records[0].metrics) == {GOAL}
    records, _ = swept(np.random.default_rng(0), 20, constant)
    assert set(records[0].metrics) == {GOAL, f"{GOAL}_explained"}
    pruned = [replace(record, state="pruned", metrics={GOAL: 0.9}) for record in records[:13]]
    again = with_estimates([*pruned, *records[13:]], {"a": NODE}, [GOAL])  # type: ignore[dict-item]
    assert again[:13] == pruned and again[13:] == records[13:], "seven are complete, and nothing is added"


def estimated(number: int, auroc: float, estimate: float | None, pointing: float = 0.5, arm: str = "a") -> Record:
    metrics = {GOAL: auroc, "val/pointing": pointing, f"{GOAL}_explained": 0.8 if estimate else 0.1}
    if estimate:
        metrics |= {f"{GOAL}_estimate": estimate, f"{GOAL}_estimate_error": 0.02}
        metrics |= {f"{GOAL}_luck": 0.04, f"{GOAL}_compared": estimate}
    return Record(number, arm, "complete", 1, 1.0, {}, metrics, "{}")


def test_trials_are_chosen_by_what_is_compared() -> None:
    """By observed scores 0 is best and dominates all. By estimates 1 is best, and 2 ties with it."""
    records = [estimated(0, 0.95, 0.80), estimated(2, 0.85, 0.90, 0.4), estimated(1, 0.84, 0.90, 0.4)]
    best = picked(records, GOAL)
    assert best is not None and best.number == 1
    assert [record.number for record in front_of(records, [GOAL, "val/pointing"])] == [1, 2, 0]
    assert best_of(records, "val/pointing") is records[0], "no model of AUROC decides it"
    reference = replace(estimated(3, 0.99, None), config='{"student": {"reads": ["superior"]}}')
    assert picked([*records, reference], GOAL) is best
    assert best_of([reference], GOAL) is reference


def test_an_arm_without_estimates_keeps_its_scores_and_the_other_arm_as_much_luck() -> None:
    """Arm a has a signal, and arm b is noise around its best mean. Alone, each arm is as it was."""
    rng = np.random.default_rng(1)
    of_a, _ = swept(rng, 32, by_lr)
    of_b = [replace(record, number=record.number + 32) for record in swept(rng, 16, constant, arms=("b",))[0]]
    plain = [replace(record, metrics={GOAL: record.metrics[GOAL]}) for record in (*of_a, *of_b)]
    records = with_estimates(plain, {"a": NODE, "b": NODE}, [GOAL])  # type: ignore[dict-item]
    a, b = records[:32], records[32:]
    assert [record.metrics[f"{GOAL}_compared"] for record in b] == [record.metrics[GOAL] for record in b]
    shift = a[0].metrics[f"{GOAL}_compared"] - a[0].metrics[f"{GOAL}_estimate"]
    assert shift > 0 and {
        round(record.metrics[f"{GOAL}_compared"] - record.metrics[f"{GOAL}_estimate"] - shift, 9) for record in a
    } == {0}
    assert max(record.metrics[f"{GOAL}_compared"] for record in a) == pytest.approx(
        max(record.metrics[GOAL] for record in a)
    )
    best = best_of(of_a, GOAL)
    assert best is not None and picked(records, GOAL) is records[best.number], "the best estimate of the better arm"
    (line,) = choices_in_words(records, [GOAL])
    reason = "arms are compared by their best observed scores, because no model predicts them well enough in arm b ("
    assert f", is the best of arm a; {reason}" in line
    assert [record.metrics[f"{GOAL}_compared"] for record in of_a] == [
        record.metrics[f"{GOAL}_estimate"] for record in of_a
    ]
    assert f"{GOAL}_compared" not in of_b[0].metrics


def test_the_luck_of_an_estimated_trial_in_words() -> None:
    records = [estimated(0, 0.95, 0.80), estimated(1, 0.93, 0.90)]
    assert optimism(records, GOAL) == 0.04
    assert choices_in_words(records, [GOAL]) == [
        "val/auroc 0.930 of trial 1: the estimate of its mean by a model of the settings, 0.900 (leave-one-out error "
        "0.020, R² 0.80), is the best of 2; the score of a trial that is chosen in this way is on average 0.040 too "
        "high by luck"
    ]
    assert with_estimate(records[1], GOAL, "0.930 ± 0.010") == "0.930 ± 0.010, estimated 0.900 ± 0.020"
    assert with_estimate(records[1], "val/pointing", "0.500") == "0.500"


def test_without_a_model_all_differences_may_be_luck() -> None:
    """The largest of five equally good trials is too high by its lead over their mean."""
    scores = [0.6, 0.62, 0.64, 0.66, 0.78]
    records = [Record(number, "a", "complete", 1, 1.0, {}, {GOAL: score}, "{}") for number, score in enumerate(scores)]
    assert optimism(records, GOAL) == pytest.approx(0.78 - 0.66)
    arm_b = [
        Record(number, "b", "complete", 1, 1.0, {}, {GOAL: score, f"{GOAL}_explained": 0.36}, "{}")
        for number, score in ((5, 0.1), (6, 0.2), (7, 0.3))
    ]
    assert optimism([*records, *arm_b], GOAL) == pytest.approx(0.12), "arm b never wins"
    # Assumed means 0.14, 0.2 and 0.26, and noise of -0.08, 0 and 0.08 in any order: in five of the six orders the best
    # trial has 0.08. The third has 0 where the first has 0.08 and the second -0.08.
    assert optimism(arm_b, GOAL) == pytest.approx(0.08 * 5 / 6, rel=0.03)
    line = "val/auroc 0.780 of trial 4, the best of 8, is expected to be up to 0.120 too high by luck"
    reason = (
        "observed scores are compared, because no model predicts them well enough: val/auroc in arm a (5 of the 8 "
        "complete trials that a model needs) and arm b (leave-one-out R² 0.36, 0.5 is needed)"
    )
    assert choices_in_words([*records, *arm_b], [GOAL]) == [line, reason]
    (*_, shared) = choices_in_words(records, [GOAL, GOAL])
    assert shared.endswith("enough: val/auroc and val/auroc in arm a (5 of the 8 complete trials that a model needs)")
    assert choices_in_words(records[:1], [GOAL]) == [] == choices_in_words([], [GOAL]), "nothing was chosen"
    few = [replace(record, arm=str(record.number)) for record in records]
    assert optimism(few, GOAL) == pytest.approx(0.12), "arms of one trial are one group"


def test_a_trial_alone_in_its_arm_has_as_much_noise_as_others() -> None:
    """The noise of arm a is -0.1, 0 or 0.1 around 0.6 each. The trial of arm b wins whatever its noise is in the first
    case. In the second, it wins unless its noise is -0.1 (a third of the repetitions), when the best of a has 0.1."""
    scores = [0.5, 0.6, 0.7]
    of_a = [Record(number, "a", "complete", 1, 1.0, {}, {GOAL: score}, "{}") for number, score in enumerate(scores)]
    of_b = Record(3, "b", "complete", 1, 1.0, {}, {GOAL: 0.85}, "{}")
    assert optimism([*of_a, of_b], GOAL) == pytest.approx(0, abs=0.01)
    of_b = replace(of_b, metrics={GOAL: 0.75})
    assert optimism([*of_a, of_b], GOAL) == pytest.approx((0.0 + 0.1 + 0.1) / 3, abs=0.01)


def test_equal_scores_are_predicted_by_no_model() -> None:
    """0.7 is no sum of powers of two, so the scores minus their mean are 0 only up to rounding."""
    records = [replace(estimated(number, 0.7, None), metrics={GOAL: 0.7}) for number in range(12)]
    records = [replace(record, sampled={"a/lr": 0.001 * (record.number + 1)}) for record in records]
    records = with_estimates(records, {"a": NODE}, [GOAL])  # type: ignore[dict-item]
    assert [record.metrics for record in records] == [{GOAL: 0.7, f"{GOAL}_explained": 0.0}] * 12
    assert picked(records, GOAL) is records[0], "rounding decides no tie"


def test_a_sweep_compares_estimates_and_writes_them(tmp_path: Path) -> None:
    """The scores of this sweep are a function of the learning rate, without noise."""
    search, text = run_sweep(tmp_path, "trials=20")
    table = pd.read_parquet(tmp_path / "runs/fake/trials.parquet")
    assert len(table) == 20 and 0.5 <= table["val/auroc_explained"].min() < 1
    assert table["val/auroc_estimate"].corr(table["val/auroc"]) > 0.9
    order = table.sort_values(["val/auroc_compared", "number"], ascending=[False, True])
    best = yaml.safe_load((tmp_path / "runs/fake/best.yaml").read_text())
    (lr,) = order.iloc[0][["none/optimizer.lr", "tabular/optimizer.lr"]].dropna()
    assert best["optimizer"]["lr"] == lr, "the best estimate"
    assert (
        " too high by luck" in text
        and "the estimate of its mean by a model" in text
        and "val/auroc estimated 0." in text
    )
    assert not {name for record in search.records() for name in record.metrics if "estimate" in name}, "only a report"

    _, text = run_sweep(tmp_path, "trials=20", "search.repeats=2", "name=again")
    table = pd.read_parquet(tmp_path / "runs/again/trials.parquet")
    assert not [name for name in table if "estimate" in name] and " means over seeds, is expected to be " in text


def test_a_chosen_trial_without_its_student_is_named(tmp_path: Path) -> None:
    records = [estimated(0, 0.95, 0.80), estimated(1, 0.93, 0.90)]
    folder = SweepFolder(tmp_path)

    def summary() -> str:
        console = Console(file=io.StringIO(), width=200)
        print_summary(console, records, ["a"], [GOAL], GOAL, folder)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    line = "the student of trial 1 is not kept, because better scores were observed"
    assert f"{line}; to train it again (1 s in the sweep): python -m mmpkd.train config={folder.best}" in summary()
    (folder.checkpoints_of(1) / "attempt-1").mkdir(parents=True)
    (folder.checkpoints_of(1) / "attempt-1" / "last.pt").touch()
    assert "the student of" not in summary()


def test_scores_of_1_have_no_luck() -> None:
    scores = [1.0, 1.0, 1.0, 0.4, 0.5, 0.6, 0.7, 0.8]
    records = [
        Record(number, "a", "complete", 1, 1.0, {"a/lr": 0.9 if score == 1 else 0.001 * number}, {GOAL: score}, "{}")
        for number, score in enumerate(scores * 2)
    ]
    records = with_estimates(records, {"a": NODE}, [GOAL])  # type: ignore[dict-item]
    assert records[0].metrics[f"{GOAL}_explained"] > 0.5 and optimism(records, GOAL) < 0.01
    (line,) = choices_in_words(records, [GOAL])
    assert line.startswith("val/auroc 1.000 of trial 0: ") and " is on average 0.00" in line


def luck_printed_and_true(seed: int, *args: Any, repeats: int = 1, simulations: int = 150, **options: Any) -> Any:
    """Returns the mean printed and the mean true excess of the best score over its mean, and the share of sweeps in
    which estimates were compared."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(simulations):
        records, means = swept(rng, *args, repeats=repeats, **options)
        best = best_of(records, GOAL)
        assert best is not None
        excess = best.metrics[GOAL] - means[best.number]
        rows.append([optimism(records, GOAL), excess, f"{GOAL}_estimate" in best.metrics])
    return np.mean(rows, axis=0).tolist()


@pytest.mark.parametrize("count", [8, 16, 32])
@pytest.mark.parametrize(("arms", "repeats"), [(("a",), 1), (("a", "b"), 1), (("a",), 3)])
def test_the_luck_in_pure_noise_is_right_within_20_percent(count: int, arms: tuple[str, ...], repeats: int) -> None:
    printed, true, _ = luck_printed_and_true(count, count, constant, arms=arms, repeats=repeats)
    assert true > 0.5 * NOISE and printed == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize("count", [8, 16, 32])
def test_the_luck_beside_a_signal_is_right_within_30_percent_over_seeds(count: int) -> None:
    printed, true, _ = luck_printed_and_true(count, count, by_lr, repeats=3)
    assert true > 0.2 * NOISE and printed == pytest.approx(true, rel=0.3)


@pytest.mark.parametrize("count", [8, 16, 32])
@pytest.mark.parametrize(("signal", "tolerance"), [(0.0, 0.2), (2.0, 0.4)])
def test_the_luck_is_right_if_only_promising_configurations_run_on_more_seeds(
    count: int, signal: float, tolerance: float
) -> None:
    """`signal` is the standard deviation of the means over configurations, in units of the noise."""
    rng, rows = np.random.default_rng(count), []
    for _ in range(150):
        repeats, records, means = Repeats(["a"], [GOAL], 3), [], []
        while len(means) < count or repeats.pending:
            of = turn = None
            if repeats.pending:
                of, turn = (pending := repeats.pending.popleft()).configuration, pending.turn
            else:
                means.append((len(records), signal * NOISE * float(rng.standard_normal())))
            mean = dict(means)[len(records) if of is None else of]
            metrics = {GOAL: 0.5 + mean + NOISE * float(rng.standard_normal())}
            records.append(
                Record(len(records), "a", "complete", 1, 1.0, {}, metrics, "{}", repeat_of=of, turn=turn or 0)
            )
            repeats.add(records[-1])
        shown = comparable(records, [GOAL], 3)
        best = best_of(shown, GOAL)
        assert best is not None and "seeds" in best.metrics
        rows.append([optimism(shown, GOAL), best.metrics[GOAL] - 0.5 - dict(means)[best.number]])
        num_means = sum("seeds" in record.metrics for record in shown)
        if num_means > 1:
            assert f", the best of {num_means} means over seeds, is" in choices_in_words(shown, [GOAL])[0]
    printed, true = np.mean(rows, axis=0)
    assert true > 0.1 * NOISE and printed == pytest.approx(true, rel=tolerance)


def test_the_luck_beside_a_signal_with_one_seed() -> None:
    """A model finds the signal in most sweeps of 32 trials, and in few of 8, where the printed luck is an upper
    bound."""
    printed, true, by_estimate = luck_printed_and_true(1, 32, by_lr, simulations=100)
    assert by_estimate > 0.6 and printed == pytest.approx(true, rel=0.25)
    printed, true, by_estimate = luck_printed_and_true(1, 8, by_lr, simulations=100)
    assert by_estimate < 0.5 and printed > true


def test_choosing_by_estimates_finds_better_means() -> None:
    """Mean regret over 100 sweeps of 32 trials, against the choice by observed scores."""
    rng, regrets = np.random.default_rng(4), []
    for _ in range(100):
        records, means = swept(rng, 32, by_lr)
        by_estimate = best_of(records, GOAL)
        plain = [replace(record, metrics={GOAL: record.metrics[GOAL]}) for record in records]
        by_score = best_of(plain, GOAL)
        assert by_estimate is not None and by_score is not None
        regrets.append([max(means) - means[by_estimate.number], max(means) - means[by_score.number]])
    of_estimates, of_scores = np.mean(regrets, axis=0)
    assert of_estimates < 0.8 * of_scores
