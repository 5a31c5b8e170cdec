"""The single-column probe on columns whose worth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort.facts import Column, Facts, Section
from mmpkd.cohort.leakage import ALARM, probe
from mmpkd.cohort.suspects import Suspects, find_suspects

N = 400
RNG = np.random.default_rng(3)
TRUTH = RNG.integers(0, 2, N)
PATIENT = pd.Series([f"p{index // 2}" for index in range(N)])


def score(column: pd.Series, separator: str | None = None, labels: pd.Series | None = None) -> float:
    target = pd.Series(TRUTH, dtype=float) if labels is None else labels
    frame = pd.DataFrame({"it": column})
    return probe(frame, {"it": separator}, pd.DataFrame({"t/l": target}), PATIENT)["it"]["t/l"]


def test_a_column_that_states_the_label_alarms() -> None:
    assert score(pd.Series(np.where(TRUTH, "cancer", "none"))) == 1.0 >= ALARM


def test_an_independent_column_is_at_chance() -> None:
    assert score(pd.Series(RNG.choice(["a", "b", "c"], N))) == pytest.approx(0.5, abs=0.08)


def test_a_column_right_four_times_in_five() -> None:
    """Of a binary test, AUROC = (sensitivity + specificity) / 2 = 0.8."""
    right = np.tile([True, True, True, True, False], N // 5)
    answer = np.where(right, TRUTH, 1 - TRUTH)
    assert score(pd.Series(np.where(answer, "yes", "no"))) == pytest.approx(0.8, abs=0.03)


def test_numbers_need_not_be_monotone() -> None:
    """Extreme on either side means positive: a straight line through it would score 0.5."""
    value = np.where(TRUTH, RNG.choice([-3.0, 3.0], N), 0.0) + RNG.normal(0, 0.5, N)
    assert score(pd.Series(value)) > 0.95


def test_a_value_among_several_and_missingness_are_seen() -> None:
    cells = pd.Series(np.where(TRUTH, RNG.choice(["a&x", "x&b"], N), RNG.choice(["a", "b", "a&b"], N)))
    assert score(cells, "&") == 1.0
    gaps = pd.Series(np.where(TRUTH, "seen", "gone"), dtype=object).replace("gone", np.nan)
    assert score(gaps) == 1.0


def test_unknown_labels_are_ignored_and_rare_ones_left_out() -> None:
    half = pd.Series(TRUTH, dtype=float)
    half[:200] = np.nan
    words = np.where(TRUTH, "cancer", "none")
    stated = pd.Series([*["noise"] * 200, *words[200:]])
    assert score(stated, labels=half) == 1.0
    rare = pd.Series(np.zeros(N))
    rare[:4] = 1.0  # two patients
    labels = pd.DataFrame({"t/l": rare})
    assert probe(pd.DataFrame({"it": stated}), {"it": None}, labels, PATIENT) == {"it": {}}


def test_a_patients_samples_stay_on_one_side() -> None:
    """A column that names the patient tells nothing of patients not seen."""
    target = pd.Series(np.repeat(RNG.integers(0, 2, N // 2), 2), dtype=float)
    assert score(PATIENT, labels=target) == pytest.approx(0.5, abs=0.1)


def test_a_cohort_whose_samples_are_all_sealed_has_no_suspects() -> None:
    """An external cohort may hold a test part only; `find_suspects` then gets frames without rows."""
    columns = {name: Column(name, "descriptor") for name in ("a", "b")}
    facts = Facts((), columns, (), 1, 32, (), (), {"report": Section(False, 0.0)}, False, 0)
    privileged, text = pd.DataFrame(columns=["a", "b"], dtype=object), pd.DataFrame(columns=["report"], dtype=object)
    labels = pd.DataFrame(columns=["t/l"], dtype=float)
    suspects = find_suspects(facts, privileged, text, labels, pd.Series(dtype=object))
    assert suspects == Suspects({"a": {}, "b": {}}, [], {"report": {}})
    assert suspects.lines(facts) == []
