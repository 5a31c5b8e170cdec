"""Confirmations by cross-validation on a second cohort, with fake trainings and untrained students."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from mmpkd.cohort.store import Store
from mmpkd.scoring.replicates import PartScorer
from mmpkd.types import ConfigError, UserError
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.training.sweeps import Sweeps
from tests.sweep import fake
from tests.sweep.verdict.confirmed_sweep import confirmed

FOLDS = 3
SIZE = {"side": 32, "train": 21, "val": 12, "test": 12}


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep with the plan and the verdict of a cross-validation. The first command that trains fails when it reads
    a sealed fold, which it does after all folds are trained; the next one continues.
    """
    tmp_path = tmp_path_factory.mktemp("done")
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "planned.txt").write_text(confirmed(tmp_path, "plan=true", *words(tmp_path)))
    assert not (tmp_path / "runs" / "fake" / "confirm").exists()
    rows = Store.rows

    def without_test(store: Store, part: Any, fold: int = 0) -> Any:
        assert part != "test", "a sealed fold was read"
        return rows(store, part, fold)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="a sealed fold was read"):
        patch.setattr(Store, "rows", without_test)
        confirmed(tmp_path, *words(tmp_path))
    for fold in range(FOLDS):
        assert (tmp_path / "runs" / f"fake-confirm-fold{fold}" / "journal.log").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "play", lambda *args: pytest.fail("a trial was trained again"))
        (tmp_path / "printed.txt").write_text(confirmed(tmp_path, *words(tmp_path)))
    return tmp_path


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


def words(tmp_path: Path, folds: int = FOLDS, **params: Any) -> list[str]:
    file = tmp_path / "second.yaml"
    cohort = {"reader": "synthetic", "own_numbering": True, "params": SIZE | {"seed": 5} | params}
    file.write_text(yaml.safe_dump({"cohort": cohort}))
    return [f"folds={folds}", f"cohort={file}"]


def verdict(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "runs" / "fake" / "confirm" / "verdict.json").read_text())
    return content


def stores(tmp_path: Path) -> list[Store]:
    opened = [Store.open(path) for path in (tmp_path / "cache" / "stores").iterdir() if path.is_dir()]
    return [store for store in opened if len(store.sample_ids) == sum(SIZE.values()) - SIZE["side"]]


def test_each_patient_is_sealed_once_and_all_are_in_the_verdict(done: Path) -> None:
    content, printed = verdict(done), (done / "printed.txt").read_text()
    sealed = [store.sample_ids[store.rows("test")] for store in stores(done)]
    assert len(sealed) == FOLDS and sorted(np.concatenate(sealed)) == sorted(stores(done)[0].sample_ids)
    assert (
        content["patients"]["all"] == len(np.unique(stores(done)[0].patient_N)) == content["protocol"]["test_patients"]
    )
    assert {arm: len(scores["test/auroc"]) for arm, scores in content["scores"].items()} == {
        "none": 5,
        "tabular": 5,
        "tabular-shuffled": 5,
    }
    assert content["protocol"]["folds"] == FOLDS and content["protocol"]["crossed"].startswith("synthetic ")
    assert "each tested by students that were trained without the patient" in printed
    assert all(answer["sentence"] in printed for answer in content["answers"])
    page = (done / "runs" / "fake" / "confirm" / "verdict.html").read_text()
    assert "cohort.own_numbering says that they are other people" in page
    assert "are tested in 3 folds, each by students that are trained on others" in content["notes"][0]
    assert "opened once" in page and f"cross-validation with {FOLDS} folds" in page
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"base64,[^\"]*", "", page))


def test_the_score_of_a_seed_is_the_mean_of_its_folds_weighted_by_pairs(done: Path) -> None:
    """As scikit-learn would score each fold: 3 classes one against the rest, over pairs of samples of one fold."""
    from sklearn.metrics import roc_auc_score

    folder = done / "runs" / "fake" / "confirm"
    by_seed, pairs = np.zeros(3), np.zeros(3)
    of_fold = {store.manifest["sealed"]: store for store in stores(done)}
    for fold in range(FOLDS):
        store = of_fold[fold]
        rows = store.rows("test")
        logits = np.array(json.loads((folder / "scores" / f"fold{fold}-0.json").read_text())["logits"])
        for label in range(3):
            others = np.delete(np.exp(logits), label, axis=1).sum(axis=1)
            positive = store.target_NK[rows, label] > 0
            weight = positive.sum() * (~positive).sum()
            by_seed[label] += weight * roc_auc_score(positive, logits[:, label] - np.log(others))
            pairs[label] += weight
    assert verdict(done)["scores"]["none"]["test/auroc"][0] == pytest.approx((by_seed / pairs).mean())


def test_the_patients_part_is_wider_than_that_of_independent_folds(
    again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verdict(again)["answers"][0]
    monkeypatch.setattr("sweep.verdict.inference.overlap", lambda folds: 1.0)
    confirmed(again)
    after = verdict(again)["answers"][0]
    assert before["patient_variance"] == pytest.approx(after["patient_variance"] * (1 + 3 / 1))


def test_kills_between_two_writes_end_in_the_same_verdict(done: Path, again: Path, monkeypatch: Any) -> None:
    """From the training of the last fold on: before and while students predict."""
    shutil.rmtree(again / "runs" / "fake-confirm-fold2")
    shutil.rmtree(again / "runs" / "fake" / "confirm" / "scores")
    shutil.rmtree(again / "cache" / "ledger")
    left, write_bytes = [0], Place.write_bytes

    class Killed(BaseException):
        pass

    def dying(place: Place, content: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        write_bytes(place, content)

    monkeypatch.setattr(Place, "write_bytes", dying)
    kills = 0
    for moment in (4, 7, 12, 30):
        left[0] = moment
        with suppress(Killed):
            confirmed(again)
            break
        kills += 1
    left[0] = 0
    confirmed(again)
    assert kills == 4
    ours, uninterrupted = verdict(again), verdict(done)
    for content in (ours, uninterrupted):
        del content["ledger"][0]["time"], content["ledger"][0]["command"], content["command"]
    assert ours == uninterrupted


def test_the_place_of_the_data_of_the_search_does_not_concern_the_folds(done: Path) -> None:
    folder = ConfirmationFolder(SweepFolder(done / "runs" / "fake"))
    sweeps = Sweeps(folder, ("cohort.root=/moved",), "", True, Console())
    overrides = {phase: sweeps.options(phase).overrides for phase in ("choose", "fold0")}
    assert overrides == {"choose": ("cohort.root=/moved",), "fold0": ()}


def test_the_same_command_again_trains_and_predicts_nothing(again: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "play", lambda *args: pytest.fail("a trial was trained again"))
    monkeypatch.setattr(PartScorer, "predict", lambda *args: pytest.fail("a student predicted again"))
    before = verdict(again)
    confirmed(again)  # without the words
    assert verdict(again) | {"command": ""} == before | {"command": ""}
    with pytest.raises(UserError, match="folds: frozen is 3, got 4"):
        confirmed(again, *words(again, folds=4))
    with pytest.raises(
        ConfigError, match=r"the folds of this confirmation are of synthetic \w+, got synthetic \w+;.*new"
    ):
        confirmed(again, *words(again, seed=6))
    with pytest.raises(ConfigError, match="external: is scored by students of a whole cohort"):
        confirmed(again, f"external={again / 'second.yaml'}")
    with pytest.raises(ConfigError, match="the cohort of the folds was opened before"):
        confirmed(again, *words(again), "new=true")


def test_plan_shows_the_price_of_all_folds(done: Path) -> None:
    planned = (done / "planned.txt").read_text()
    assert re.search(r"test: 23 patients of synthetic \w+, in 3 folds of which each is sealed in turn", planned)
    prices = [
        float(price) for price in re.findall(r": 4 configurations on 5 seeds(?: in 3 folds)?: ([\d.e-]+)", planned)
    ]
    first = next(store for store in stores(done) if store.manifest["sealed"] == 0)
    assert prices[1] / prices[0] == pytest.approx(FOLDS * len(first.rows("train")) / 60, rel=0.01)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"params": SIZE | {"train": 60, "val": 30, "test": 60}},
            "cohort: is the data set on which the sweep has chosen",
        ),
        (
            {"params": SIZE | {"seed": 5}, "parts": 4, "fold": 1},
            r"cohort.parts: folds=n seals .*\n.*cohort.fold: folds=n",
        ),
        (
            {"params": SIZE | {"seed": 5}},
            "cohort: .*of its 23 patients have the name of a patient of the student's own",
        ),
        ({"params": SIZE | {"sed": 5}}, "cohort.params.sed: unknown"),
    ],
)
def test_cohorts_that_cannot_be_divided_into_folds_are_refused(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump({"cohort": {"reader": "synthetic"} | change}))
    with pytest.raises(ConfigError, match=message):
        confirmed(base, "folds=3", f"cohort={file}")
    assert not (base / "runs" / "fake" / "confirm").exists()


def test_fewer_patients_than_folds_and_words_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folds: the cohort .* 50 folds: 23 patients cannot be dealt into 50 parts"):
        confirmed(base, *words(tmp_path, folds=50))
    with pytest.raises(ConfigError, match="folds: wants a whole number from 3 to 1000, got '2'"):
        confirmed(base, *words(tmp_path, folds=2))
    with pytest.raises(ConfigError, match="cohort: is the cohort that is divided into folds; write folds=N"):
        confirmed(base, words(tmp_path)[1])
    assert not (base / "runs" / "fake" / "confirm").exists()
