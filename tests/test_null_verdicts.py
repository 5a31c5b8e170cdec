"""A small form of `benchmarks/null_verdicts.py`: nothing is claimed where nothing differs, and an effect is found."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from benchmarks import null_verdicts
from benchmarks.null_verdicts import OWN, Part, Scores, Setting, Verdict, acceptance, claims, main, run, simulate
from mmpkd.types import ConfigError

SMALL = Setting(patients=60, trials=8, finalists=3, seeds=5)


def simulated(scores: Scores, setting: Setting, count: int) -> list[Verdict]:
    random = np.random.default_rng(0)
    return [simulate(scores, setting, random) for _ in range(count)]


def test_equal_arms_are_not_claimed_to_differ_and_an_effect_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations differ by 0.1 in AUROC and by 0.2 in pointing, so that two searches choose differently."""
    monkeypatch.setattr(null_verdicts, "REPLICATES", 40)
    random = np.random.default_rng(0)
    mean_CG = np.array([0.7, 0.4]) + random.normal(0, [0.1, 0.2], (200, 2))
    spread = Scores(mean_CG, random.normal(0, [0.02, 0.03], (200, 30, 2)))
    nothing = simulated(spread, SMALL, 40)
    assert sum(bool(claims(verdict.contrasts, SMALL.rarer)) for verdict in nothing) <= 4
    assert sum(bool(claims(verdict.seeds_only, SMALL.rarer)) for verdict in nothing) >= 12
    assert sum(verdict.gap > 1 for verdict in nothing) >= 20
    level = Scores(mean_CG * 0 + [0.93, 0.3], spread.deviation_CMG)
    planted = simulated(level, replace(SMALL, difference=0.35), 10)
    assert sum("auroc" in claims(verdict.contrasts, SMALL.rarer) for verdict in planted) >= 8
    assert claims(planted[0].contrasts, rarer=9) == [], "too few patients of the rarer class"


def test_students_have_their_true_scores_on_many_patients() -> None:
    """With 20,000 patients the error of an AUROC is below 0.004, that of a mean pointing score about 0.001."""
    part = Part(20_000, 0, np.random.default_rng(0))
    true_TKG = np.array([[[0.6, 0.1], [0.9, 0.5]]])
    scored = part.scored(true_TKG, part.effects(1))
    assert scored[0][0].value_K == pytest.approx([0.6, 0.9], abs=0.012)
    assert scored[1][0].value_K == pytest.approx([0.1, 0.5], abs=0.004)


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
    with pytest.raises(ConfigError, match="power=2: unknown word"):
        main(["power=2"])
