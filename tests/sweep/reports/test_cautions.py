"""What states the label is said by `plan=true` and whenever a sweep starts: new, continued or extended."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sweep import driver, run
from tests.mmpkd import cohort_fixtures

LINE = "warning: column 'shape' alone tells malignant/malignant with AUROC 1.00"
NEAR = "arms.tabular.teachers.findings reads the near-label column 'birads', which alone tells"


@pytest.fixture
def words(tmp_path: Path, cache: Path) -> list[str]:
    table = cohort_fixtures.cases()
    cohort_fixtures.write_cohort(tmp_path / "raw", table.assign(shape=table["biopsy"]))
    space = {
        "cohort": cohort_fixtures.config(tmp_path / "raw", image_size=16).model_dump(mode="json"),
        "student": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
        "epochs": 1,
        "arms": {
            "tabular": {
                "teachers": {"findings": {"kind": "tabular", "params": {"near_label": ["birads"]}}},
                "objectives": {"logits": {}},
            }
        },
        "search": {"trials": 4},
    }
    path = tmp_path / "leaky.yaml"
    path.write_text(yaml.safe_dump(space))
    return [f"space={path}", f"storage={tmp_path / 'runs'}", f"cache={cache}"]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, no trial, no end: what is said must be said before them."""
    monkeypatch.setattr(driver, "cluster", lambda *_: nullcontext())
    monkeypatch.setattr(driver, "mps_where_shared", lambda *_: nullcontext())  # asks Ray for its devices
    price = SimpleNamespace(lines=lambda: ["price"])
    monkeypatch.setattr(driver, "FUNCTIONS", replace(driver.FUNCTIONS, price=lambda *_: price))
    monkeypatch.setattr(driver, "run_trials", lambda *_: None)
    monkeypatch.setattr(driver, "finish", lambda *_: 0)


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        run.main(words)
    except SystemExit as ended:
        assert ended.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_plan_says_it_before_anything_is_prepared(words: list[str], capsys: Any, cache: Path) -> None:
    before = set((cache / "stores").glob("*"))
    told = said([*words, "plan=true"], capsys)
    assert LINE in told and NEAR in told and told.index(LINE) < told.index("price")
    assert "teacher arms.tabular.teachers.findings: tabular, linear on 4 columns" in told
    assert set((cache / "stores").glob("*")) == before


def test_a_sweep_says_it_when_it_begins_goes_on_and_is_extended(words: list[str], capsys: Any) -> None:
    for more in ([], ["trials=6"], ["extend=true", "optimizer.lr={log_uniform: [1e-4, 1e-1]}"]):
        told = said([*words, *more], capsys)
        assert LINE in told and NEAR in told
        assert told.index(LINE) < told.index("trials over none, tabular")
