"""A reduced benchmarks/search_efficiency.py, and its parts by hand or against Optuna and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from benchmarks import recorded
from benchmarks.record_curves import EPOCHS
from benchmarks.recorded import Configuration, read_recorded, recorded_path
from benchmarks.search_efficiency import OWN, acceptance, bootstrap, main, run, space_of
from benchmarks.searches import (
    WAYS,
    Documented,
    FirstThreeGoOn,
    JointSobol,
    ParetoPruner,
    SyneTuneRung,
    Trial,
    front_numbers,
)
from benchmarks.simulation import affordable, regret, simulate
from benchmarks.worlds import ClosedFormWorld, Drawn, RecordedWorld, fit_process
from mmpkd.types import ConfigError
from sweep.space.encoding import encode

SPACE = space_of("closed_form", 0)
NODE = SPACE.arms["tabular"]
DEMO = space_of("demo", 0).arms["tabular"]


@cache
def world(noise: float = 1.0) -> ClosedFormWorld:
    return ClosedFormWorld(NODE, "tabular", 0, noise)


class Handed:
    """A way that proposes given configurations, stops none, and chooses all complete trials."""

    def __init__(self, rows: Sequence[Drawn], epochs: Sequence[int] = (EPOCHS,)):
        self._rows, self.epochs = rows, epochs
        self.trials: list[Trial] = []

    def propose(self, number: int) -> Trial:
        self.trials.append(Trial(number, self._rows[number % len(self._rows)]))
        return self.trials[-1]

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        return True

    def ended(self, trial: Trial, complete: bool) -> None:
        pass

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        return list(complete)


def test_the_benchmark_prints_ratios_differences_and_criteria() -> None:
    words = {"worlds": "closed_form", "seeds": "2", "budgets": "2,3", "ways": "random,ours,joint_sobol"}
    console = Console(file=StringIO(), width=160)
    (numbers,) = run({**OWN, **words, "processes": "1"}, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert numbers["ways"]["random"][2]["started"] == 2 and numbers["ways"]["random"][3]["of_random"] == [1.0, 1.0, 1.0]
    assert numbers["ways"]["ours"][3]["started"] > numbers["ways"]["ours"][3]["complete"] > 0
    assert numbers["ways"]["ours"][3]["minus_ours"] == [0.0, 0.0, 0.0]
    assert all(f"│ {way} " in printed for way in words["ways"].split(","))
    assert "not measured: closed_form: ours over random at 8, upper end below 1.0, point below 0.75" in printed


def test_mistakes_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        main(["worlds=demo,moon", "ways=tpe,guess", "seeds=0", "budgets=8,x", "noise=loud"])
    problems = [str(mistake) for mistake in raised.value.mistakes]
    assert [problem.partition(":")[0] for problem in problems] == ["worlds", "ways", "budgets", "seeds", "noise"]
    assert problems[0].startswith("worlds: 'moon' does not exist; choose from demo,")
    with pytest.raises(ConfigError, match="sedes=3: unknown word"):
        main(["sedes=3"])
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"record_curves\.py space=demo"):
        main(["worlds=demo"])


def test_a_budget_buys_the_first_trials_that_fit_it() -> None:
    epochs = [27, 9, 27, 9, 27]  # 27, 36, 63, 72, 99 together
    assert [affordable(epochs, budget) for budget in (1, 2, 3)] == [1, 2, 4]
    assert affordable([27, 27, 27], 2) == 2


def test_a_search_that_is_handed_the_true_front_has_no_regret() -> None:
    front = world().front
    way = Handed(front)
    (outcome,) = simulate(way, world(), 0, 4, [len(front)])
    assert outcome.regret == pytest.approx(0, abs=1e-12) and outcome.complete == outcome.started == len(front)
    assert regret(world(), way.trials[:1]) > 0
    assert regret(world(), []) == world().best > 0


def test_ways_meet_the_same_noise_at_the_same_number_and_configuration() -> None:
    once, often = Handed(world().front), Handed(world().front, (3, 9, EPOCHS))
    other_seed = Handed(world().front)
    for way, seed in ((once, 5), (often, 5), (other_seed, 6)):
        simulate(way, world(), seed, 4, [3])
    last = [[trial.seen[EPOCHS] for trial in way.trials[:3]] for way in (once, often, other_seed)]
    assert last[0] == last[1] != last[2]
    assert len(set(last[0])) == 3


def test_the_noise_of_a_world_can_be_scaled() -> None:
    values = world().front[0]
    deviations = [world(factor).noise(values, np.random.default_rng(0)) for factor in (1.0, 3.0)]
    np.testing.assert_allclose(deviations[1], 3 * deviations[0])
    silent = Handed([values])
    simulate(silent, world(0.0), 0, 1, [1])
    assert silent.trials[0].seen[EPOCHS] == pytest.approx(world().means([values])[0, -1])


def test_many_configurations_have_the_means_that_each_has_alone() -> None:
    rows = [configuration.values for configuration in read_recorded(recorded_path("demo"), "tabular")[:12]]
    fitted = RecordedWorld(DEMO, "tabular", read_recorded(recorded_path("demo"), "tabular")[:12])
    for each, configurations in ((fitted, rows), (world(), world().front)):
        alone = [each.means([row])[0] for row in configurations]
        np.testing.assert_allclose(each.means(configurations), alone, atol=1e-12)
        assert each.means(configurations).shape == (len(configurations), EPOCHS, 2)


def test_the_fit_explains_a_smooth_function_and_no_noise() -> None:
    random = np.random.default_rng(0)
    x_CD = random.random((60, 2))
    smooth = fit_process(x_CD, np.sin(3 * x_CD[:, 0]) + x_CD[:, 1] ** 2)
    assert smooth.explained > 0.999 and smooth.noise_sd < 0.05
    unexplained = fit_process(x_CD, random.standard_normal(60))
    assert unexplained.explained < 0.2 and unexplained.noise_sd == pytest.approx(1, abs=0.3)


def test_residuals_of_single_repeats_are_scaled_up_to_the_fitted_noise() -> None:
    """With twelve configurations, all are among the nearest twelve, so noise is one of twelve residual curves."""
    several = read_recorded(recorded_path("demo"), "tabular")[:12]
    single = [Configuration(each.values, each.curves_REG[:1]) for each in several]
    ends_CG = np.array([each.curves_REG[0, -1] for each in single])
    x_CD = encode(DEMO, "tabular", [each.values for each in single])
    fitted_sd = [fit_process(x_CD, ends_CG[:, goal]).noise_sd for goal in (0, 1)]
    fitted, random = RecordedWorld(DEMO, "tabular", single), np.random.default_rng(0)
    drawn = np.array([fitted.noise(single[0].values, random)[-1] for _ in range(400)])
    residuals = np.unique(drawn, axis=0)
    in_sample = ends_CG - fitted.means([each.values for each in single])[:, -1]
    assert len(residuals) == 12
    rms = np.sqrt((residuals**2).mean(axis=0))
    np.testing.assert_allclose(rms, np.maximum(fitted_sd, np.sqrt((in_sample**2).mean(axis=0))))
    assert (rms > 1.01 * np.sqrt((in_sample**2).mean(axis=0))).any(), "nothing was scaled"


def test_fronts_are_numbered() -> None:
    values = np.array([(3.0, 1.0), (1.0, 3.0), (2.0, 0.5), (0.5, 0.5), (3.0, 1.0), (0.1, 2.0)])
    assert front_numbers(values).tolist() == [0, 0, 1, 2, 0, 1]


def test_the_pareto_pruner_decides_as_optunas_median_pruner_on_ranks() -> None:
    random, decisions = np.random.default_rng(0), []
    for _ in range(60):
        way = ParetoPruner(world(), optuna.samplers.RandomSampler(seed=0))
        study = optuna.create_study(direction="minimize")
        for number in range(9):  # seven ended, one still runs, and the last is decided upon
            epochs = way.epochs[: int(random.integers(2, 6))] if number < 8 else way.epochs[:3]
            trial = way.propose(number)
            trial.seen = {epoch: tuple(random.random(2)) for epoch in epochs}
            if number < 7:
                way.ended(trial, complete=False)
        ranks: list[dict[int, float]] = [{} for _ in range(9)]
        for step in way.epochs[:3]:
            reached = [other for other in way._trials if step in other.seen]
            rank_N = front_numbers(np.array([other.seen[step] for other in reached]))
            for other, rank in zip(reached, rank_N.tolist(), strict=True):
                ranks[other.number][step] = rank
        for number in range(7):
            study.add_trial(create_trial(value=0.0, intermediate_values=ranks[number]))
        current = create_trial(state=TrialState.RUNNING, intermediate_values=ranks[8])
        decisions.append(way.goes_on(trial, way.epochs[2]))
        assert decisions[-1] is not optuna.pruners.MedianPruner().prune(study, current)
    assert {True, False} <= set(decisions)


def test_rungs_decide_by_hand() -> None:
    syne_tune = SyneTuneRung(3)
    # Before the third trial ranks one of three, which is a third; before the last rank three of four.
    arrivals = [(1.0, 1.0), (3.0, 3.0), (2.0, 2.0), (0.0, 0.0)]
    assert [syne_tune.arrive(number, values) for number, values in enumerate(arrivals)] == [True, True, True, False]
    lenient = FirstThreeGoOn(3)
    arrivals = [(3.0, 3.0), (2.0, 2.0), (1.0, 1.0), (1.5, 1.5), (4.0, 4.0)]
    decisions = [lenient.arrive(number, values) for number, values in enumerate(arrivals)]
    assert decisions == [True, True, True, False, True]


def test_the_joint_sobol_start_is_what_the_sampler_proposes() -> None:
    way, design = WAYS["joint_sobol"](world(), SPACE), JointSobol(NODE, "tabular", SPACE.seed)
    for number in range(4):
        drawn, point = way.propose(number).values, design.point(number)
        assert drawn == {name: point[name] for name in drawn}


def test_the_bootstrap_is_paired() -> None:
    bottom_S = np.random.default_rng(0).random(50)
    assert bootstrap(0.5 * bottom_S, bottom_S, ratio=True) == pytest.approx([0.5, 0.5, 0.5])
    assert bootstrap(bottom_S + 0.25, bottom_S, ratio=False) == pytest.approx([0.25, 0.25, 0.25])
    point, low, high = bootstrap(bottom_S[::-1], bottom_S, ratio=False)
    assert point == pytest.approx(0, abs=1e-12)
    standard_error = (bottom_S[::-1] - bottom_S).std() / 50**0.5
    assert (high - low) / (2 * 1.96) == pytest.approx(standard_error, rel=0.05)


@pytest.mark.parametrize(
    ("over_random", "line"),
    [
        ([0.7, 0.5, 0.95], "held"),
        ([0.7, 0.5, 1.0], "NOT HELD"),  # the upper end
        ([0.8, 0.7, 0.9], "NOT HELD"),  # the point
    ],
)
def test_the_criteria_of_the_issue(over_random: list[float], line: str) -> None:
    def at_8(minus: list[float]) -> dict[int, object]:
        return {8: {"of_random": over_random, "minus_ours": minus}}

    worse, better = at_8([0.01, -0.01, 0.02]), at_8([-0.02, -0.03, -0.01])
    lines = acceptance({"world": "demo", "ways": {"ours": worse, "tpe": worse}})
    assert lines[1].startswith(f"{line}: demo: ours over random at 8, upper end below 1.0, point below 0.75")
    assert lines[4] == "held: demo: no way has less regret than ours at 8"
    lines = acceptance({"world": "demo", "ways": {"ours": worse, "tpe": better}})
    assert lines[4] == "NOT HELD: demo: no way has less regret than ours at 8 (tpe)"


def test_the_documented_way_ranks_each_result_once() -> None:
    """A stopped trial would else count twice, and all others rank higher."""
    way = Documented(world(), 0)
    simulate(way, world(), 0, 4, [2])
    assert len(way._results[1]) == len(way._search._ot_trials) > len(way._results[4])
