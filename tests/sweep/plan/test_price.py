"""The price of a sweep: arithmetic worked by hand, and real steps that are timed."""

from __future__ import annotations

import json
import math
import random
import statistics
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.teachers.teacher import ResolvedTeacher
from mmpkd.training.probe import Cost
from mmpkd.training.stand_in import StandIn, stand_in
from sweep.cluster import Reservation
from sweep.plan.dealing import luck_warnings
from sweep.plan.epoch_cost import epoch_seconds
from sweep.plan.expectations import (
    auroc_error,
    expected_behind,
    expected_epochs,
    expected_front,
    expected_maximum,
    shown_by_test_part,
    validation_folds,
)
from sweep.plan.packing import NO_CORES, TOO_SHORT, Packing
from sweep.plan.plan import plan
from sweep.plan.price import Price, TimedConfig, compute_price, wall_seconds
from sweep.plan.timing import burden, cost_identity, extremes, mean_cost, throughput
from sweep.search.halving import Rung
from sweep.space.search_config import SearchConfig
from sweep.space.space import Space, load_space
from sweep.workers import pricing
from sweep.workers.pricing import Stopwatch

COST = Cost(
    step_seconds=0.5,
    batch_size=16,
    validation_seconds=0.01,
    checkpoint_bytes=1_000_000,
    memory_bytes=2 * 10**9,
    idle_bytes=10**9,
    device_bytes=8 * 10**9,
    num_steps=7,
)
SPACE = """
cohort: {reader: synthetic, image_size: 32, params: {side: 32, train: 60, val: 30, test: 12}}
student: {model: vit_tiny_patch16_224, patch_size: 8, embed_dim: 24, depth: {int: [1, 3]}, num_heads: 2}
optimizer: {lr: {log_uniform: [1e-4, 1e-2]}, batch_size: 16}
epochs: 9
arms:
  tabular: {teachers: {findings: {kind: tabular}}, objectives: {logits: {weight: {log_uniform: [0.1, 10]}}}}
search: {trials: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


def load(file: Path, *overrides: str) -> Space:
    space, mistakes = load_space(str(file), overrides)
    assert space is not None and not mistakes
    return space


@pytest.fixture
def store(tiny_cohort: CohortConfig) -> StandIn:
    return stand_in(tiny_cohort)


def test_an_epoch_is_its_steps_and_its_validation(store: StandIn, tiny_trial: TrialConfig) -> None:
    assert epoch_seconds(COST, tiny_trial, store) == pytest.approx(60 / 16 * 0.5 + 30 * 0.01)
    warm = replace(COST, warm_up_seconds=6.0)  # in each training of three epochs
    assert epoch_seconds(warm, tiny_trial, store) == pytest.approx(60 / 16 * 0.5 + 30 * 0.01 + 2)
    assert mean_cost([COST, warm]).warm_up_seconds == 3


def test_the_stages_before_the_last_are_in_the_price(store: StandIn, tiny_trial: TrialConfig) -> None:
    """Six epochs of training precede three that are validated too: nine passes in all, three for each of the three."""
    stages = [{"name": "first", "train": ["student"], "epochs": 6}, {"name": "last", "train": ["student"]}]
    config = TrialConfig.model_validate(tiny_trial.model_dump() | {"stages": stages})
    assert epoch_seconds(COST, config, store) == pytest.approx(3 * 60 / 16 * 0.5 + 30 * 0.01)


def test_expected_epochs_by_hand() -> None:
    assert expected_epochs(1, 9, [3], 3) == 9, "the first trial always goes on"
    # Two: the second beats the first with probability 1/2, so 1.5 of them run the six epochs after the rung.
    assert expected_epochs(2, 9, [3], 3) == pytest.approx((2 * 3 + 1.5 * 6) / 2)
    # Three, halved at 1 and 2 of 4: h of the third is 1/2, so it goes on with 1 - 1.5/3.
    there = 1 + 1 / 2 + 1 / 2
    assert expected_epochs(3, 4, [1, 2], 2) == pytest.approx((3 * 1 + there * 1 + (1 + 1 / 2) * 2) / 3)


@pytest.mark.parametrize("goals", [1, 2])
def test_expected_epochs_agree_with_simulated_rungs(goals: int) -> None:
    means = []
    for seed in range(300):
        chance, rung = random.Random(seed), Rung(3)
        values = [tuple(chance.random() for _ in range(goals)) for _ in range(30)]
        means.append(statistics.fmean(27 if rung.arrive(number, value) else 9 for number, value in enumerate(values)))
    error = statistics.stdev(means) / math.sqrt(len(means))
    assert abs(expected_epochs(30, 27, [9], 3) - statistics.fmean(means)) < 4 * error + 0.4


def test_fronts_by_hand() -> None:
    assert expected_front(3, 1) == pytest.approx(1 + 1 / 2 + 1 / 3)
    assert expected_front(3, 2) == pytest.approx(1 + (1 + 1 / 2) / 2 + (1 + 1 / 2 + 1 / 3) / 3)
    assert expected_behind(9, 1, 4) == 3, "the four best without the first"
    # Of three trials of two goals, the second and third by one goal are on the front with probabilities 1/2 and 1/3,
    # and at most one other is better in both with probabilities 1 and 2/3.
    assert expected_behind(3, 2, 2) == pytest.approx(1 / 2 + 1 / 3)


def test_the_error_of_auroc_by_hand(store: StandIn) -> None:
    """Hanley and McNeil at 0.75 with ten and ten: Q1 = 0.6, Q2 = 0.642857."""
    rows = store.rows("val", 0)[:20]
    store.rows = lambda part, fold=0: rows  # type: ignore[method-assign]
    store.patient_N = np.arange(len(store.patient_N))
    store.target_NK = np.zeros((len(store.patient_N), 1), np.float32)
    store.target_NK[rows[:10]] = 1
    store.known_NK = np.ones_like(store.target_NK, bool)
    assert auroc_error(store, 0) == pytest.approx(0.1117235, abs=1e-6)
    # As many test patients. Of this variance, means of five students of two arms have 2 (0.75 + 0.25 / 5 - 0.5) = 0.6,
    # to which the test adds 2 * 0.25 / 5 as the luck of seeds, with 24.3 degrees of freedom together. A difference is
    # shown in 80 % of cases if it is about t(0.975; 24.3) sqrt(0.7) + 0.842 sqrt(0.6) = 2.4 errors.
    (line,) = shown_by_test_part(store, 0)
    assert "has 20 patients" in line and "at least 0.27 in 80% of cases" in line
    store.patient_N = np.repeat(np.arange(len(store.patient_N)), 2)[: len(store.patient_N)]
    if rows[0] % 2:  # so that pairs of these rows are of one patient
        store.patient_N = np.roll(store.patient_N, 1)
    assert auroc_error(store, 0) == pytest.approx(0.1623488, abs=1e-6), "five patients and five, of two images each"


def test_the_error_of_auroc_is_that_of_the_mean_over_the_folds_of_the_seeds(
    store: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auroc_error(store, 0, 5) == auroc_error(store, 0), "without folds, all seeds have the same patients"
    of_fold = [store.rows("val", 0)[start:] for start in (0, 10, 5)]
    monkeypatch.setattr(StandIn, "num_folds", 3)
    store.rows = lambda part, fold: of_fold[fold]  # type: ignore[method-assign]
    single = [auroc_error(store, fold) for fold in range(3)]
    assert len(set(single)) == 3
    assert auroc_error(store, 2, 2) == pytest.approx((single[2] ** 2 + single[0] ** 2) ** 0.5 / 2)
    assert auroc_error(store, 1, 7) == pytest.approx(sum(error**2 for error in single) ** 0.5 / 3)
    assert validation_folds(store, 2, 2) == [2, 0] and sorted(validation_folds(store, 1, 7)) == [0, 1, 2]


def priced(space: Space, store: StandIn, dear: float = 3.0, trouble: str = "") -> Price:
    """Returns the price of an arm of COST and an arm that takes `dear` times as long."""
    config = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 9})
    slow = Cost(**{**vars(COST), "step_seconds": COST.step_seconds * dear, "validation_seconds": 0.01 * dear})
    timed = {
        "none": [TimedConfig(config, COST, 2)],
        "tabular": [TimedConfig(config, None if trouble else slow, 2, trouble)],
    }
    return compute_price(space, store, timed, devices=0.5, slots=2, teacher_seconds=4.0, goals=("val/auroc",))


def test_arms_that_share_device_hours_get_trials_by_their_costs(file: Path, store: StandIn) -> None:
    hours = "search.equal=hours"
    result = priced(load(file, hours, "search.early_stopping=false"), store)
    each = 0.5 * 9 * (60 / 16 * 0.5 + 30 * 0.01)
    assert [(arm.low, arm.high, arm.trials) for arm in result.arms] == [
        pytest.approx((each, each, 6)),
        pytest.approx((3 * each, 3 * each, 2)),
    ]
    assert [arm.hours for arm in result.arms] == [pytest.approx(6 * each / 3600)] * 2
    assert result.hours == pytest.approx(12 * each / 3600) == result.hours_halving
    assert result.wall_hours == pytest.approx(result.hours / 0.5 / 2)
    assert result.cache_bytes == 2 * 102 * 32 * 32, "each image, and its superior view"
    assert result.teacher_seconds == 4
    assert result.checkpoint_bytes == round((2 + expected_front(8, 1) + 3) * 10**6), "of the four best, one is counted"
    stopped = priced(load(file, hours), store)
    expected = expected_epochs(6, 9, [3], 3) + expected_epochs(2, 9, [3], 3)  # both arms cost the same
    assert stopped.hours_halving == pytest.approx(12 * each / 3600 * expected / 18)
    assert stopped.arms[0].hours_halving == pytest.approx(6 * each / 3600 * expected_epochs(6, 9, [3], 3) / 9)
    text = "\n".join(stopped.lines())
    assert text.startswith(
        f"price: about {stopped.wall_hours * 3600:.0f} s, 2 trials at a time, from 14 timed training"
    )
    assert wall_seconds(stopped.as_json(), 6, 2) == pytest.approx(stopped.wall_hours * 900)
    assert wall_seconds(None, 6, 2) is None
    assert "  arms share the device-hours (search.equal=hours); each gets:\n    none: 6 trials, 0.0163 dev" in text
    assert "device-hours, 0.0111 with early stopping; 9.79 s of a device for a trial\n    tabular: 2 trials, " in text
    assert "2 GB of 8 GB" in text
    stored = json.loads(json.dumps(stopped.as_json()))
    assert stored["auroc_error"] == pytest.approx(auroc_error(store, 0)) and stored["equal"] == "hours"
    assert [(arm["arm"], arm["trials"]) for arm in stored["arms"]] == [("none", 6), ("tabular", 2)]


def test_arms_that_share_the_trials_get_equal_numbers(file: Path, store: StandIn) -> None:
    result = priced(load(file, "search.early_stopping=false"), store, dear=10.0)
    each = 0.5 * 9 * (60 / 16 * 0.5 + 30 * 0.01)
    assert [(arm.trials, arm.hours) for arm in result.arms] == [
        (4, pytest.approx(4 * each / 3600)),
        (4, pytest.approx(40 * each / 3600)),
    ]
    assert result.hours == pytest.approx(44 * each / 3600)
    lines = "\n".join(result.lines())
    assert "arms share the number of trials (search.equal=trials); each gets:\n    none: 4 trials, " in lines
    assert "luck alone" not in lines
    assert [arm.trials for arm in priced(load(file, "search.shares={tabular: 0.7}"), store).arms] == [3, 5]


def test_an_arm_gets_no_more_trials_than_it_has_configurations(file: Path, store: StandIn) -> None:
    few = ("student.depth=2", "optimizer.lr={choice: [1e-3, 1e-2]}")
    for equal in ("trials", "hours"):
        result = priced(load(file, *few, f"search.equal={equal}"), store)
        assert [arm.trials for arm in result.arms] == [2, 6]
    few += ("arms.tabular.objectives.logits.weight={choice: [1, 2]}",)
    assert [arm.trials for arm in priced(load(file, *few), store).arms] == [2, 4], "two of eight are left over"


def test_expected_maxima_agree_with_closed_forms_and_quadrature() -> None:
    """Two and three draws have 1/sqrt(pi) and 3/(2 sqrt(pi)); the density of the maximum is n f(x) F(x)^(n - 1)."""
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-6)
    assert expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-6)
    for draws in (5, 29):
        integrand = lambda x, n=draws: x * n * norm.pdf(x) * norm.cdf(x) ** (n - 1)  # noqa: E731
        assert expected_maximum(draws) == pytest.approx(quad(integrand, -10, 10)[0], abs=1e-6)


def test_unequal_numbers_of_trials_are_said_with_the_luck_that_they_give(file: Path, store: StandIn) -> None:
    """The expected maxima of 29 and 3 draws are 2.029 and 0.846, those of 14 and 2 draws 1.703 and 0.564."""
    words = ("trials=32", "search.equal=hours", "search.early_stopping=false")
    result = priced(load(file, *words), store, dear=10.0)
    (line,) = [warning for warning in result.warnings if "luck" in warning]
    assert line == (
        "search.equal=hours gives about 29 trials to none and 3 to tabular: luck alone puts the best of none about 1.2 "
        "standard deviations higher (standard deviations of a score over an arm's configurations); with "
        "search.equal=trials, arms share the number of trials instead"
    )
    half = priced(load(file, *words, f"budget_device_hours={result.hours / 2}"), store, dear=10.0).warnings
    assert "after about 16 of 32 trials (none 14, tabular 2); all of them take" in "\n".join(half)
    assert "about 14 trials to none and 2 to tabular: luck alone puts the best of none about 1.1" in "\n".join(half)
    assert not any("luck" in warning for warning in priced(load(file, *words), store, dear=1.4).warnings)
    assert luck_warnings({"a": 15, "b": 10}) == [] and luck_warnings({"a": 10, "b": 16}) != []


def test_further_seeds_of_the_front_are_in_the_price(file: Path, store: StandIn) -> None:
    result = priced(load(file, "search.equal=hours", "search.early_stopping=false", "search.repeats=3"), store)
    each = 0.5 * 9 * (60 / 16 * 0.5 + 30 * 0.01)
    repeats = 2 * (each * expected_front(6, 1) + 3 * each * expected_front(2, 1))
    assert result.hours == pytest.approx((12 * each + repeats) / 3600)


def test_every_arm_has_at_least_one_trial(file: Path, store: StandIn) -> None:
    result = priced(load(file, "search.equal=hours"), store, dear=30.0)
    assert [arm.trials for arm in result.arms] == [7, 1]
    assert [arm.trials for arm in priced(load(file, "trials=2", "search.equal=hours"), store).arms] == [1, 1]


def test_the_price_warns_of_small_budgets_and_few_trials(file: Path, store: StandIn) -> None:
    space = load(file, "budget_device_hours=1e-3")
    text = "\n".join(priced(space, store).warnings)
    assert "budget_device_hours=0.001 will end the sweep after about" in text
    assert "trials give only a first impression of " in text and " are advisable (10 for each branch)" in text
    assert "validation patients give an AUROC of 0.75 a standard error of about" in text
    store.target_NK = np.zeros_like(store.target_NK)
    store.target_NK[np.isin(store.patient_N, np.unique(store.patient_N[store.rows("val", 0)])[:3]), -1] = 1
    label = f"{store.facts.tasks[-1].name}/{store.facts.tasks[-1].logit_names[-1]}"
    (line,) = [line for line in priced(space, store).warnings if "rarer class" in line]
    assert line.startswith(f"label {label} has 3 validation patients of its rarer class")
    assert "arm tabular: CUDA out of memory" in priced(space, store, trouble="CUDA out of memory").warnings


def test_the_cheapest_and_the_dearest_configuration_are_timed(file: Path) -> None:
    planned = plan(load(file))
    assert planned.facts is not None
    timed = {arm: extremes(configs, planned.facts) for arm, configs in planned.configs.items()}
    assert {arm: [config.student.depth for config in configs] for arm, configs in timed.items()} == {
        "none": [1, 3],
        "tabular": [1, 3],
    }
    planned = plan(load(file, "student.depth=2"))
    assert planned.facts is not None and extremes(planned.configs["none"], planned.facts) == planned.configs["none"][:1]


def test_configurations_that_differ_in_cached_teachers_alone_are_timed_once() -> None:
    def identity(kind: str, temperature: float = 1.0) -> str:
        objectives = {"logits": {"params": {"temperature": temperature}}}
        content = {"cohort": {"reader": "synthetic"}, "teachers": {"t": {"kind": kind}}, "objectives": objectives}
        return cost_identity(TrialConfig.model_validate(content))

    assert identity("tabular") == identity("text")
    assert identity("tabular") != identity("tabular", temperature=2.0)
    assert identity("fused") not in (identity("image"), identity("tabular")), "a live teacher has a price of its own"


def test_a_teacher_is_timed_once_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, tiny_trial: TrialConfig, store: StandIn
) -> None:
    findings = tiny_trial.teachers["findings"].model_dump()
    teachers = {
        "alone": findings,
        "control": {**findings, "control": "shuffled"},
        "both": {"kind": "ensemble", "params": {"members": {"a": findings, "b": {"kind": "text"}}}},
    }
    objectives = {name: {"kind": "logits", "teacher": name} for name in teachers}
    config = TrialConfig.model_validate({**tiny_trial.model_dump(), "teachers": teachers, "objectives": objectives})
    kinds: list[str] = []

    def remote(teacher: ResolvedTeacher, *ignored: object) -> tuple[float, int]:
        kinds.append(teacher.kind)
        return {"tabular": (2.0, 7), "text": (30.0, 64)}[teacher.kind]

    monkeypatch.setattr(pricing, "_get", list)
    stopwatch = Stopwatch(store, {"arm": [config]}, 1.0, lambda _: None)
    stopwatch._time_teachers(SimpleNamespace(time_teacher=SimpleNamespace(remote=remote)))
    assert kinds == ["tabular", "text"] and stopwatch.teacher_seconds == 32.0
    assert list(stopwatch._widths.values()) == [7, 7, 0]


def test_a_configuration_is_freed_before_the_next_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the peak memory of the one would be in that of the other."""
    built: list[weakref.ref[object]] = []

    class Built:
        def __init__(self, *_: object) -> None:
            assert all(reference() is None for reference in built)
            built.append(weakref.ref(self))
            self.steps = self.cost  # as recorded steps know their training

        def cost(self, seconds: float) -> None:
            raise AssertionError

    config = SimpleNamespace(student=None)
    for name, fake in (("Probe", Built), ("StandIn", lambda *_, **__: None), ("enter_reserved_device", lambda _: None)):
        monkeypatch.setattr(pricing, name, fake)
    prober: Any = pricing.Prober(0.5)
    for _ in range(2):
        prober.prepare(None, None, None, config, {})
    assert len(built) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"student": {"depth": 3}},
        {"student": {"embed_dim": 48}},
        {"student": {"patch_size": 4}},
        {"optimizer": {"batch_size": 8}},
    ],
)
def test_costlier_configurations_have_a_greater_burden(
    tiny_trial: TrialConfig, change: dict[str, dict[str, int]]
) -> None:
    facts = stand_in(tiny_trial.cohort).facts
    dearer = tiny_trial.model_dump()
    for section, values in change.items():
        dearer[section] |= values
    assert burden(TrialConfig.model_validate(dearer), facts) > burden(tiny_trial, facts)
    fewer = tiny_trial.model_copy(update={"objectives": {}})
    assert burden(fewer, facts) < burden(tiny_trial, facts)


@pytest.mark.parametrize(
    ("seconds", "memory", "wanted"),
    [
        ({1: 1.0, 2: 1.1, 4: 1.5, 8: 3.1}, 1, 4),  # steps a second: 1, 1.8, 2.7, 2.6
        ({1: 1.0, 2: 1.9}, 1, 1),  # 5 % more is not worth it
        ({1: 1.0, 2: 1.1, 4: 1.5}, 3, 2),  # four would want 12 of 8
        ({1: 1.0, 2: math.inf}, 1, 1),  # two could not be timed
    ],
)
def test_trials_to_a_device_are_doubled_while_they_train_faster_and_fit(
    monkeypatch: pytest.MonkeyPatch,
    tiny_trial: TrialConfig,
    store: StandIn,
    seconds: dict[int, float],
    memory: int,
    wanted: int,
) -> None:
    def time_trials(configs: list[TrialConfig], share: Reservation, count: int) -> list[TimedConfig]:
        cost = Cost(**{**vars(COST), "step_seconds": seconds[count], "memory_bytes": memory * 10**9})
        return [TimedConfig(configs[0], None if seconds[count] == math.inf else cost, count)]

    monkeypatch.setattr(pricing, "reservation_for", lambda search, threads, count: Reservation(1.0, 1 / count))
    monkeypatch.setattr(pricing, "cores_per_device", lambda: 8.0)
    monkeypatch.setattr(pricing, "count_slots", lambda reservation: 1)
    stopwatch = Stopwatch(store, {}, 1.0, lambda _: None)
    monkeypatch.setattr(stopwatch, "time_trials", time_trials)
    packing = stopwatch.measure_packing(tiny_trial, SearchConfig())
    assert packing.best == wanted and [number for number, _ in packing.rates] == list(seconds)
    assert packing.rates[0] == (1, 1.0) and not packing.ending


def test_trials_to_a_device_end_at_the_cores(
    monkeypatch: pytest.MonkeyPatch, tiny_trial: TrialConfig, store: StandIn
) -> None:
    """Eight cores are enough for four trials of two cores, each of which trains as fast as one alone."""
    monkeypatch.setattr(pricing, "reservation_for", lambda search, threads, count: Reservation(1.0, 1 / count))
    monkeypatch.setattr(pricing, "cores_per_device", lambda: 8.0)
    monkeypatch.setattr(pricing, "count_slots", lambda reservation: 1)
    stopwatch = Stopwatch(store, {}, 1.0, lambda _: None)
    light = replace(COST, memory_bytes=1)
    monkeypatch.setattr(stopwatch, "time_trials", lambda configs, _, count: [TimedConfig(configs[0], light, count)])
    packing = stopwatch.measure_packing(tiny_trial, SearchConfig(cpus=2))
    assert packing == Packing(((1, 2.0), (2, 4.0), (4, 8.0)), NO_CORES)


def test_a_short_sweep_does_not_measure_what_cannot_pay(
    monkeypatch: pytest.MonkeyPatch, tiny_trial: TrialConfig, store: StandIn
) -> None:
    """Ten trials of two epochs, of 10 steps of 0.5 s, take 100 s on one device. Twice as many at a time save 50 s of
    these, and then 25 s of 50 s, while the first measurement takes 40 s and the second one 45 s."""
    clock = iter((0.0, 40.0, 50.0, 95.0))
    monkeypatch.setattr(pricing, "reservation_for", lambda search, threads, count: Reservation(1.0, 1 / count))
    monkeypatch.setattr(pricing, "cores_per_device", lambda: 8.0)
    monkeypatch.setattr(pricing, "count_slots", lambda reservation: round(1 / reservation.gpus))
    monkeypatch.setattr(pricing, "epoch_seconds", lambda cost, config, store: 5.0)
    monkeypatch.setattr(pricing, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stopwatch = Stopwatch(store, {}, 1.0, lambda _: None)
    light = replace(COST, memory_bytes=1)
    monkeypatch.setattr(stopwatch, "time_trials", lambda configs, _, count: [TimedConfig(configs[0], light, count)])
    config = tiny_trial.model_copy(update={"epochs": 2})
    assert stopwatch.measure_packing(config, SearchConfig(trials=10)) == Packing(((1, 2.0), (2, 4.0)), TOO_SHORT)


def test_the_throughput_of_trials_is_the_sum_of_their_steps() -> None:
    """Two steps a second and one in two seconds make 2.5 a second, and not the 1.6 of the mean time of a step."""
    config = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}})
    uneven = mean_cost([replace(COST, step_seconds=seconds, memory_bytes=1) for seconds in (0.5, 2.0)])
    assert throughput(TimedConfig(config, uneven, 2)) == pytest.approx(2.5)


def test_the_measured_numbers_of_trials_are_in_the_price(file: Path, store: StandIn) -> None:
    config = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 9})
    timed = {arm: [TimedConfig(config, COST, 2)] for arm in ("none", "tabular")}
    packing = Packing(((1, 10.0), (2, 10.4)))
    price = compute_price(load(file), store, timed, 1.0, 1, 0.0, ("val/auroc",), packing.best, packing)
    assert f"  {packing.line()}" in price.lines() and price.warnings[0] == packing.warnings()[0]
    assert "trials to a device" not in price.lines()[-len(price.warnings) - 2], "the number is printed once"
    stored = json.loads(json.dumps(price.as_json()))
    assert stored["per_device"] == 1 and stored["packing"]["rates"] == [[1, 10.0], [2, 10.4]]


def test_trials_that_do_not_fit_have_no_throughput() -> None:
    config = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}})
    assert throughput(TimedConfig(config, COST, 3)) == 6.0
    assert throughput(TimedConfig(config, COST, 4)) == 0.0
    assert throughput(TimedConfig(config, None, 1, "no")) == 0.0


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_is_timed_in_workers(file: Path) -> None:
    space, lines = load(file, "search.trials_per_device=2", "search.at_a_time=1"), list[str]()
    result = pricing.price_sweep(space, plan(space), 0.05, lines.append)
    assert [arm.arm for arm in result.arms] == ["none", "tabular"]
    assert all(0 < arm.low < arm.high for arm in result.arms), "one block costs less than three"
    assert result.num_steps > 4 and result.hours > result.hours_halving > 0
    assert result.teacher_seconds > 0 and result.per_device == 2
    assert result.slots == 1, "two have room, and one may run at a time"
    assert lines[0] == "timing the teachers" and lines[1].startswith("timing configuration 1 of 4, 2 at a time")


@pytest.mark.parametrize(("gpus", "doubled"), [(0.25, 0.5), (0.6, 1.0), (0.3, 1.0), (1.0, None)])
def test_a_doubled_reservation_runs_half_as_many_trials(gpus: float, doubled: float | None) -> None:
    reservation = Reservation(1.0, gpus).doubled()
    assert (reservation and reservation.gpus) == doubled
