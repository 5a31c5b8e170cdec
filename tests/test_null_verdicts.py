"""A small form of `benchmarks/null_verdicts.py`: nothing is claimed where nothing differs, and an effect is found."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import null_verdicts, real_students
from benchmarks.dealt import Setting
from benchmarks.null_verdicts import OWN, Verdict, acceptance, claims, main, run, share, simulate
from benchmarks.real_students import Pool, RealWorld, configurations, train_pool
from benchmarks.simulated_students import Part, Scores, dealt
from mmpkd.types import ConfigError

SMALL = Setting(patients=60, trials=8, finalists=3, seeds=5, replicates=40)


def simulated(scores: Scores, setting: Setting, count: int) -> list[Verdict]:
    random = np.random.default_rng(0)
    return [simulate(dealt(scores, setting, random), setting) for _ in range(count)]


def test_equal_arms_are_not_claimed_to_differ_and_an_effect_is() -> None:
    """Configurations differ by 0.1 in AUROC and by 0.2 in pointing, so that two searches choose differently."""
    random = np.random.default_rng(0)
    mean_CG = np.array([0.7, 0.4]) + random.normal(0, [0.1, 0.2], (200, 2))
    spread = Scores(mean_CG, random.normal(0, [0.02, 0.03], (200, 30, 2)))
    nothing = simulated(spread, SMALL, 40)
    assert sum(bool(verdict.claims()) for verdict in nothing) <= 4
    assert sum(bool(claims(verdict.seeds_only, verdict.rarer)) for verdict in nothing) >= 12
    assert sum(verdict.gap > 1 for verdict in nothing) >= 20
    level = Scores(mean_CG * 0 + [0.93, 0.3], spread.deviation_CMG)
    planted = simulated(level, replace(SMALL, difference=0.35), 10)
    assert sum("auroc" in verdict.claims() for verdict in planted) >= 8
    assert claims(planted[0].contrasts, rarer=9) == [], "too few patients of the rarer class"


def test_students_have_their_true_scores_on_many_patients() -> None:
    """With 20,000 patients the error of an AUROC is below 0.004, that of a mean pointing score about 0.001."""
    part = Part(20_000, 0, np.random.default_rng(0))
    true_TKG = np.array([[[0.6, 0.1], [0.9, 0.5]]])
    scored = part.scored(true_TKG, part.effects(1))
    assert scored[0][0].value_K == pytest.approx([0.6, 0.9], abs=0.012)
    assert scored[1][0].value_K == pytest.approx([0.1, 0.5], abs=0.004)


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pools of students that are not trained: 4 configurations, with 8 students of each, on 200 patients."""
    monkeypatch.setattr(real_students, "CONFIGURATIONS", 4)
    monkeypatch.setattr(real_students, "RUNS", 8)
    random = np.random.default_rng(0)
    for name in ("pool-0", "pool-1"):
        (tmp_path / name).mkdir()
        patient_N = np.repeat(np.arange(200), 2)
        target_NK = np.eye(3, dtype=np.float32)[random.integers(0, 3, 200)[patient_N]]
        np.savez(tmp_path / name / "patients.npz", patient_N=patient_N, target_NK=target_NK)
        for number, run_ in np.ndindex(4, 8):
            logits_NK = random.normal(size=(400, 3)) + (0.5 + 0.2 * number) * target_NK
            pointing_N = random.uniform(size=400)
            np.savez(tmp_path / name / f"{number}-{run_}.npz", logits_NK=logits_NK, pointing_N=pointing_N)
    return tmp_path


REAL = Setting(patients=60, trials=2, finalists=2, seeds=2, replicates=40)


def test_verdicts_are_dealt_from_pools_of_students(pools: Path) -> None:
    """The students of a verdict are all different, and so are the patients of its two parts."""
    world, random = RealWorld(pools), np.random.default_rng(0)
    assert 0 < world.spread(1.0) < 0.05
    verdicts = [simulate(world.deal(turn, REAL, random), REAL) for turn in range(4)]
    assert [verdict.group for verdict in verdicts] == [0, 1, 0, 1]
    assert all(10 <= verdict.rarer <= 25 and verdict.claims() == [] for verdict in verdicts)
    large = replace(REAL, patients=100, difference=0.3)
    assert simulate(world.deal(0, large, random), large).contrasts["auroc"].difference > 0.15
    of_deal = world.deal(0, REAL, random)
    arms = of_deal.treated, of_deal.reference
    students = [
        (number, run_) for arm in arms for number, runs in zip(arm._numbers, arm._run_TM, strict=True) for run_ in runs
    ]
    assert len(set(students)) == len(students) == 4 * 8
    rows = [set(part._pool.patient_N[part._rows]) for part in (arms[0]._validation, arms[0]._test)]
    assert [len(patients) for patients in rows] == [60, 60] and not rows[0] & rows[1]


def test_a_planted_difference_is_the_difference_on_all_patients(pools: Path) -> None:
    pool = Pool.read(pools / "pool-0")
    shift_CM = pool.lowered(0.1)
    lower = pool.whole.scores(2, 3, shift_CM[2, 3])[0].value
    assert pool.true_CMG[2, 3, 0] - lower == pytest.approx(0.1, abs=0.002)
    assert not pool.lowered(0.0).any()


def test_too_small_pools_are_refused(pools: Path) -> None:
    world, random = RealWorld(pools), np.random.default_rng(0)
    for change in ({"trials": 3}, {"seeds": 3}, {"patients": 101}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))}: the pools of real students suffice for"):
            world.deal(0, replace(REAL, **change), random)
    (pools / "pool-1" / "3-7.npz").unlink()
    with pytest.raises(ConfigError, match="lacks 1 of 32 students"):
        RealWorld(pools)
    with pytest.raises(ConfigError, match="holds 0 pools"):
        RealWorld(pools / "pool-0")


def test_students_of_a_pool_are_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kept student is not trained again."""
    drawn = configurations(5)
    assert len({config.fingerprint() for config in drawn}) == len(drawn)
    params = {**drawn[0].cohort.params, "train": 32, "val": 12, "test": 30}
    small = drawn[0].model_copy(update={"epochs": 1, "cohort": drawn[0].cohort.model_copy(update={"params": params})})
    train_pool(5, [small], 1, tmp_path / "cache", tmp_path / "pool-5")
    assert "pool-5: 0, run 0" in capsys.readouterr().err
    kept = np.load(tmp_path / "pool-5" / "0-0.npz")
    assert kept["logits_NK"].shape == (30, 3) and np.isfinite(kept["pointing_N"]).all()
    train_pool(5, [small], 1, tmp_path / "cache", tmp_path / "pool-5")
    assert not capsys.readouterr().err


def test_an_interval_over_groups_is_wider_where_they_differ() -> None:
    events = [True] * 10 + [False] * 30
    alike, apart = share(events, [0, 1] * 20), share(events, [0] * 20 + [1] * 20)
    assert share(events) == alike and apart[0] == alike[0] and apart[1:] == [0.0, 1.0]


def test_the_table_and_the_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null_verdicts, "REPLICATES", 20)
    console = Console(file=StringIO(), width=160)
    (figures,) = run({**OWN, "worlds": "level", "patients": "40", "verdicts": "2"}, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert figures["seeds"] == 5 and 0 < figures["power"] < 1
    assert "level" in printed and "the interval of false claims ends below 7 %" in printed
    good = {**figures, "claims": [0.03, 0.02, 0.05], "found": [0.62, 0.5, 0.7], "power": 0.6}
    assert [line[:5] for line in acceptance([good])] == ["held:"] * 3
    for bad in ({"claims": [0.051, 0.04, 0.06]}, {"claims": [0.05, 0.03, 0.07]}, {"found": [0.66, 0.6, 0.7]}):
        assert [line[:5] for line in acceptance([{**good, **bad}])].count("held:") == 2


def test_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        main(["worlds=level,moon", "patients=19", "verdicts=few", "difference=large"])
    assert [mistake.path for mistake in raised.value.mistakes] == ["worlds", "patients", "verdicts", "difference"]
    with pytest.raises(ConfigError, match="students: names the folder"):
        main(["worlds=real"])
    with pytest.raises(ConfigError, match="power=2: unknown word"):
        main(["power=2"])
