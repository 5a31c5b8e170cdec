"""benchmarks/documented_way.py: its documented side runs, and both sides have the same work."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import ray

from benchmarks import documented_way
from benchmarks.documented_way import (
    ARMS,
    BREAST,
    SIZE,
    STUDENT,
    SearchSpace,
    main,
    our_words,
    pointing,
    ratios,
    read_table,
    work_of,
)
from mmpkd.config import TrialConfig, validate
from sweep.options import read_run_options
from sweep.space.draw import branches
from sweep.space.space import Space, load_space

needs_data = pytest.mark.skipif(not BREAST.is_dir(), reason=f"the BrEaST data are not at {BREAST}")


@pytest.fixture
def space(tmp_path: Path) -> Space:
    """The search space that our side hands to `python -m sweep.run`."""
    options, mistakes = read_run_options(our_words(BREAST, ARMS[:2], 2, 2, tmp_path))
    space, space_mistakes = load_space(options.space, options.overrides)
    assert not mistakes and not space_mistakes and space is not None
    return space


def test_the_work_of_our_side_is_counted_in_its_tables(tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "ours"
    sweep.mkdir(parents=True)
    pd.DataFrame({"trial": [0, 1]}).to_parquet(sweep / "trials.parquet")
    pd.DataFrame({"epoch": [1, 2, 1, 2]}).to_parquet(sweep / "epochs.parquet")
    assert work_of("ours", tmp_path) == {"trials": 2, "epochs": 4}


def test_both_sides_train_the_same_student(space: Space) -> None:
    assert list(space.arms) == ["none", "tabular"] and space.search.trials == 2
    assert space.search.early_stopping is None
    drawn = next(branches(space.arms["tabular"], "tabular", 64)).drawn[0]
    config = validate(TrialConfig, drawn.config)
    assert config.student.model_dump(include=set(STUDENT)) == STUDENT
    assert config.cohort.image_size == SIZE and config.epochs == 2 and config.threads == 1
    assert config.optimizer.batch_size == documented_way.BATCH
    assert config.evaluation.batch_size == documented_way.VALIDATION_BATCH


def test_both_sides_search_the_same_ranges(space: Space) -> None:
    study = optuna.create_study(directions=["maximize"] * 2)
    trials = []
    for _ in range(20):
        trials.append(study.ask())
        SearchSpace(ARMS, {})(trials[-1])
    ranges = {name: each for trial in trials for name, each in trial.distributions.items()}
    optimizer = space.raw["optimizer"]
    for name in ("lr", "weight_decay"):
        assert [ranges[name].low, ranges[name].high] == optimizer[name]["log_uniform"]
    params = space.raw["arms"]["tabular"]["objectives"]["one_of"]["logits"]["logits"]
    assert [ranges["weight"].low, ranges["weight"].high] == params["weight"]["log_uniform"]
    assert [ranges["temperature"].low, ranges["temperature"].high] == params["params"]["temperature"]["log_uniform"]


def test_pointing_looks_at_the_centre_of_the_patch_with_the_highest_attention() -> None:
    attention_NP = np.zeros((3, 144))
    attention_NP[0, 0], attention_NP[1, 13], attention_NP[2, 143] = 1, 1, 1
    mask_NHW = np.zeros((3, 96, 96), bool)
    mask_NHW[0, 4, 4] = True  # the centre of patch (0, 0)
    mask_NHW[1, 12, 12] = True  # the centre of patch (1, 1)
    mask_NHW[2, :88] = True  # everything but the last row of patches
    assert pointing(attention_NP, mask_NHW) == pytest.approx(2 / 3)


def test_the_ratio_is_of_sums_over_the_rounds() -> None:
    seconds = [("ours", 10.0), ("documented", 15.0), ("documented", 33.0), ("ours", 14.0)]
    runs = [{"side": side, "seconds": value, "cpu_seconds": value / 2} for side, value in seconds]
    assert ratios(runs) == {"seconds": pytest.approx(2.0), "cpu_seconds": pytest.approx(2.0)}
    assert ratios(runs[:1]) == {}


@needs_data
def test_the_documented_side_trains_and_validates_as_many_images() -> None:
    """Our store of 252 lesions has five folds: three train, one validates."""
    parts = read_table(BREAST)["fold"].value_counts().sort_index().tolist()
    assert sum(parts) == 252 and max(parts) - min(parts) <= 1


@needs_data
@pytest.mark.usefixtures("ray_session")
def test_the_documented_side_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tests' own Ray, of which the trial gets a core."""
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it for the whole process
    documented_way.run_documented(BREAST, ARMS[:2], 1, 1, tmp_path, 1)
    mlflow.set_tracking_uri(None)
    assert work_of("documented", tmp_path) == {"trials": 1, "epochs": 1}


def test_the_figures_of_all_runs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the sides is reversed in the second round."""
    seconds = iter([2.0, 3.0, 5.0, 4.0])

    def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
        row = {"side": side, "seconds": next(seconds), "cpu_seconds": 1.0, "load_before": 0.0}
        return row | {"trials": options.trials, "epochs": options.trials * options.epochs}

    monkeypatch.setattr(documented_way, "measure", measure)
    written = tmp_path / "figures.json"
    words = ["--trials", "2", "--epochs", "3", "--rounds", "2", "--breast", str(tmp_path), "--json", str(written)]
    main(words)
    content = json.loads(written.read_text())
    assert [run["side"] for run in content["runs"]] == ["ours", "documented", "documented", "ours"]
    assert [run["epochs"] for run in content["runs"]] == [6] * 4
    assert content["ratios"] == {"seconds": pytest.approx(8 / 6), "cpu_seconds": 1.0}


def test_missing_data_are_named() -> None:
    with pytest.raises(SystemExit, match="/nowhere is not a folder; give the folder of the BrEaST data"):
        main(["--breast", "/nowhere"])
