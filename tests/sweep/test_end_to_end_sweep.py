"""One sweep with real trainings and every kind of teacher, through its command and on Ray: what it reports is held
against trainings run apart, and what MLflow holds against the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig, load_trial
from mmpkd.train import train
from sweep import driver
from sweep.run import main
from sweep.storage.layout import SweepFolder
from tests import colour_cohort
from tests.colour_cohort import LABELS
from tests.mmpkd.teacher_fixtures import FUSED, IMAGE, TEXT

MRI: dict[str, Any] = IMAGE | {"view": "mri", "epochs": 1}
MEMBERS = {"findings": {"kind": "tabular"}, "scan": {"kind": "image", "params": MRI}}
TEACHERS: dict[str, Any] = {
    "tabular": {"params": {}},
    "text": {"params": TEXT | {"epochs": 1}},
    "image": {"params": MRI},
    "fused": {"params": FUSED | {"view": "mri", "epochs": 1}},
    "ensemble": {"params": {"members": MEMBERS}},
}


class Swept(NamedTuple):
    folder: Path
    cache: Path
    tracking: str
    trials: pd.DataFrame  # by number
    epochs: pd.DataFrame

    def firsts(self) -> pd.DataFrame:
        return self.trials[self.trials["repeat_of"].isna()]


@pytest.fixture(scope="module")
def swept(
    ray_session: None, colour_trial: TrialConfig, colour_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Swept:
    """An arm a kind of teacher and one without, one configuration each, on two seeds and so on two folds."""
    root = tmp_path_factory.mktemp("swept")
    weight = {"weight": {"log_uniform": [0.5, 2.0]}}
    space = {
        "cohort": colour_cohort.config(colour_root).model_dump(mode="json"),
        "student": colour_trial.student.model_dump(mode="json"),
        "optimizer": {"batch_size": 16, "lr": {"log_uniform": [1e-3, 5e-3]}},
        "epochs": 2,
        "arms": {
            "none": {},
            **{
                kind: {"teachers": {kind: {"kind": kind, **one}}, "objectives": {"logits": weight}}
                for kind, one in TEACHERS.items()
            },
        },
        # Both cores for each trial: one worker, whose imports are the dearest part of this test.
        "search": {"trials": 1 + len(TEACHERS), "repeats": 2, "cpus": 2, "early_stopping": False},
    }
    (root / "colour.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    words = [f"space={root / 'colour.yaml'}", f"storage={root / 'runs'}", f"cache={root / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(driver, "FUNCTIONS", replace(driver.FUNCTIONS, price=lambda *_: None))  # it takes half a minute
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        main(words)
    assert ended.value.code == 0
    folder = root / "runs" / "colour"
    trials = pd.read_parquet(folder / "trials.parquet").set_index("number")
    epochs = pd.read_parquet(folder / "epochs.parquet")
    return Swept(folder, root / "cache", f"sqlite:///{root / 'runs' / 'mlflow.db'}", trials, epochs)


def test_every_arm_had_its_configuration_on_two_seeds(swept: Swept) -> None:
    assert (swept.trials["state"] == "complete").all() and (swept.trials["epochs"] == 2).all()
    assert sorted(swept.firsts()["arm"]) == sorted(["none", *TEACHERS])
    repeats = swept.trials.dropna(subset="repeat_of")
    assert sorted(repeats["repeat_of"]) == sorted(swept.firsts().index)
    for _, repeat in repeats.iterrows():
        first = swept.trials.loc[repeat["repeat_of"]]
        sampled = [name for name in swept.trials if name.startswith(f"{first['arm']}/")]
        assert sampled and first["arm"] == repeat["arm"] and (first[sampled] == repeat[sampled]).all()
        assert first["val/auroc"] != repeat["val/auroc"]
    held = swept.trials["device_hours"] * 3600 / swept.trials["seconds"]
    assert held.to_numpy() == pytest.approx(2.0), "two cores"


def test_the_best_is_that_of_the_means_over_seeds_and_trains_to_its_numbers_again(swept: Swept) -> None:
    """Its first trial again from best.yaml; its second with the next seed, on the next fold."""
    first = swept.trials["repeat_of"].fillna(swept.trials.index.to_series()).astype(int)
    means = swept.trials["val/auroc"].groupby(first).mean()
    best = int(means.idxmax())
    config = load_trial(swept.folder / "best.yaml")
    assert config.optimizer.lr == swept.trials.loc[best, f"{swept.trials.loc[best, 'arm']}/optimizer.lr"]
    assert (config.seed, config.cohort.fold) == (0, 0)
    (second,) = swept.trials.index[(first == best) & (swept.trials.index != best)]
    cohort = config.cohort.model_copy(update={"fold": 1})
    for number, one in {best: config, second: config.model_copy(update={"seed": 1, "cohort": cohort})}.items():
        metrics = train(one, swept.cache)[-1].metrics
        row = swept.trials.loc[number]
        assert {name: row[name] for name in metrics} == pytest.approx(dict(metrics), nan_ok=True, rel=1e-12)


def test_teachers_are_fitted_once_for_each_fold_and_score_what_the_table_says(
    swept: Swept, colour_trial: TrialConfig, colour_root: Path
) -> None:
    """The ensemble's members are those of other arms where they are the same, so seven fits of five kinds a fold."""
    folders = [path.parent.name for path in (swept.cache / "teachers").glob("*/manifest.json")]
    kinds = pd.Series([name.partition("-")[0] for name in folders]).value_counts().to_dict()
    assert kinds == {"tabular": 2, "text": 2, "image": 2, "fused": 2, "ensemble": 2}
    store, table = prepare(colour_trial.cohort, swept.cache), colour_cohort.read(colour_root)
    labels = table.loc[store.sample_ids, list(LABELS)].to_numpy()
    for kind in ("tabular", "text", "image", "ensemble"):
        found = []
        for path in (swept.cache / "teachers").glob(f"{kind}-*/logits.npy"):
            logits = np.load(path)
            for fold in (0, 1):  # whose answers these are, is for the numbers to tell
                val = store.rows("val", fold)
                told = np.isfinite(logits[val]).all(axis=1)
                by_label = []
                for column in range(len(LABELS)):
                    rows = val[told][~np.isnan(labels[val[told], column])]
                    by_label.append(roc_auc_score(labels[rows, column], logits[rows, column]))
                found.append((by_label[0] + np.mean(by_label[1:])) / 2)
        told_by = swept.trials.loc[swept.trials["arm"] == kind, f"teacher/{kind}/val_auroc"]
        for value in told_by:
            assert np.abs(np.array(found) - value).min() < 1e-6, kind


def test_mlflow_holds_every_trial_epoch_and_value(swept: Swept) -> None:
    client = MlflowClient(swept.tracking)
    experiment = client.get_experiment_by_name("colour")
    assert experiment is not None
    runs = {run.data.tags.get("sweep.number"): run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(None)
    assert parent.info.status == "FINISHED"
    assert sorted(map(int, runs)) == swept.trials.index.tolist()
    goals = SweepFolder(swept.folder).read_plan()["goals"]
    for number, row in swept.trials.iterrows():
        run = runs[str(number)]
        assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags.get("repeat_of") == (None if pd.isna(row["repeat_of"]) else str(row["repeat_of"]))
        assert float(run.data.params["optimizer.lr"]) == row[f"{row['arm']}/optimizer.lr"]
        epochs = swept.epochs[swept.epochs["number"] == number].set_index("epoch")
        losses = [name for name in epochs if name.startswith("loss/") and "gradient_share" not in name]
        expected = epochs[[*goals, *losses]].dropna(axis=1, how="all")
        assert run.data.metrics == pytest.approx({**expected.loc[2].to_dict(), "device_hours": row["device_hours"]})
        for name in ("val/auroc", "loss/task"):
            history = client.get_metric_history(run.info.run_id, name)
            assert [(point.step, point.value) for point in history] == list(expected[name].items())
