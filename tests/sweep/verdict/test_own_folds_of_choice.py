"""Which patients score the finalists of a choice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sweep.verdict.opening import scores
from sweep.verdict.opening.scores import SealedPart


@pytest.mark.parametrize("num_folds", [4, 1])
def test_each_student_of_the_choice_is_scored_on_its_own_validation_fold(monkeypatch, num_folds):
    """Of dealt folds, the student of the second seed validates on the second fold and has learned from the first."""
    scored: list[tuple[int, list[int]]] = []

    class Scorer:
        def __init__(self, store: Any, rows: Any, *others: Any):
            self.rows = rows.tolist()

        def score(self, exported: Any) -> dict[str, Any]:
            scored.append((exported.student, self.rows))
            return {}

    def rows(part: str, fold: int) -> np.ndarray:
        of_fold = np.arange(10 * fold, 10 * fold + 2)
        return of_fold if part == "val" else of_fold + 100

    store: Any = SimpleNamespace(num_folds=num_folds, rows=rows, facts=SimpleNamespace(questions=None))
    monkeypatch.setattr(scores, "PartScorer", Scorer)
    monkeypatch.setattr(scores, "student_of", lambda trained, record: SimpleNamespace(student=record.turn))
    monkeypatch.setattr(scores, "_read", lambda *args: None)
    monkeypatch.setattr(scores, "write_sealed_at", lambda *args: None)
    monkeypatch.setattr(scores, "stamp_of", lambda *args: {})
    monkeypatch.setattr(scores, "by_arm", lambda content: {})
    records: Any = [SimpleNamespace(turn=turn, state="complete", number=turn, arm="none") for turn in range(5)]
    folder: Any = SimpleNamespace(scores=lambda part, number: part)
    protocol: Any = SimpleNamespace(choose_seeds=range(5), goal="val/auroc", goals=lambda: ("val/auroc",))
    own = SealedPart(store, 1 if num_folds == 4 else 0)
    own.of_choice(folder, protocol, (None, records), None, "choose")  # type: ignore[arg-type]
    folds = [1, 2, 3, 0, 1] if num_folds == 4 else [0] * 5
    assert scored == [(turn, [10 * fold, 10 * fold + 1]) for turn, fold in enumerate(folds)]
    all_validated = sorted({row for _, validated in scored for row in validated})
    assert own.choice_rows(5).tolist() == all_validated
