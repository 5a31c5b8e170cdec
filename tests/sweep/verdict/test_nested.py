"""Confirmations that repeat the search inside each fold of the sweep's own cohort, with fake trainings."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.types import ConfigError, UserError
from sweep.search.studies import records_of
from sweep.space.space import load_space
from sweep.storage.journal import load_studies
from sweep.storage.layout import SweepFolder
from sweep.types import Record
from sweep.verdict.finalists import NoVerdictError, averaged, finalists_of
from sweep.verdict.inference import SearchLuck
from sweep.verdict.training import nested
from sweep.verdict.training.nested import searched_again
from tests.sweep import fake
from tests.sweep.verdict.confirmed_sweep import confirmed

FOLDS, TRIALS = 3, 8


class Killed(BaseException):
    """Stands for the kill of the command."""


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep with the plan and the verdict of such a confirmation. The first command is killed in the middle of
    the search of the second fold, and the next one continues.
    """
    tmp_path = tmp_path_factory.mktemp("done")
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "planned.txt").write_text(confirmed(tmp_path, f"folds={FOLDS}", "plan=true"))
    assert not (tmp_path / "runs" / "fake" / "confirm").exists()
    play, played = fake.play, Counter[str]()

    def counted(search: Any, trial_id: str, job: Any, **options: Any) -> None:
        name = Path(job["folder"]).name
        if name == "fake-confirm-fold1-search" and played[name] == TRIALS // 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").write_text("")
            raise Killed
        played[name] += 1
        play(search, trial_id, job, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "play", counted)
        with pytest.raises(Killed):
            confirmed(tmp_path, f"folds={FOLDS}")
        assert set(played) == {f"fake-confirm-fold0-{phase}" for phase in ("search", "choose")} | {
            "fake-confirm-fold1-search"
        }
        (tmp_path / "printed.txt").write_text(confirmed(tmp_path, f"folds={FOLDS}"))
    (tmp_path / "played.json").write_text(json.dumps(played))
    return tmp_path


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


def verdict(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "runs" / "fake" / "confirm" / "verdict.json").read_text())
    return content


def trials(tmp_path: Path, name: str) -> list[Record]:
    return records_of(load_studies(SweepFolder(tmp_path / "runs" / name).journal), 0)


def configs(records: list[Record]) -> list[TrialConfig]:
    return [TrialConfig.model_validate_json(record.config) for record in records]


def test_a_search_that_was_killed_continues_and_trains_nothing_twice(done: Path) -> None:
    played, content = json.loads((done / "played.json").read_text()), verdict(done)
    students = len(content["scores"]) + any("is left out" in note for note in content["notes"])
    for fold in range(FOLDS):
        assert played[f"fake-confirm-fold{fold}-search"] == TRIALS
        assert played[f"fake-confirm-fold{fold}-choose"] == 4 * 5
    assert students == 4 and len(played) == 3 * FOLDS


def test_no_training_of_a_fold_saw_it_and_none_has_a_configuration_of_the_sweep(done: Path) -> None:
    before = {config.optimizer.lr for config in configs(trials(done, "fake"))}
    sealed, drawn = [], set[float]()
    for fold in range(FOLDS):
        rates = {config.optimizer.lr for config in configs(trials(done, f"fake-confirm-fold{fold}-search"))}
        assert len(rates) == TRIALS and not rates & (before | drawn), "each fold draws anew"
        drawn |= rates
        for phase in ("-search", "-choose", ""):
            records = trials(done, f"fake-confirm-fold{fold}{phase}")
            assert {(each.cohort.parts, each.cohort.sealed) for each in configs(records)} == {(FOLDS, fold)}
            assert {each.optimizer.lr for each in configs(records)} <= rates
        plan = SweepFolder(done / "runs" / f"fake-confirm-fold{fold}").read_plan()
        store = Store.open(done / "cache" / "stores" / f"synthetic-{plan['store']}")
        sealed.append(store.patient_N[store.rows("test")])
        trained = {*store.patient_N[store.rows("train")], *store.patient_N[store.rows("val")]}
        assert not trained & {*sealed[-1]}
    tested = np.concatenate([np.unique(each) for each in sealed])
    assert len(tested) == len(np.unique(tested)) == verdict(done)["patients"]["all"]


def test_the_verdict_says_what_the_search_of_the_sweep_has_seen(done: Path) -> None:
    content, printed = verdict(done), (done / "printed.txt").read_text()
    assert [len(each["chosen"]) for each in content["searches"]] == [2] * FOLDS and "finalists" not in content
    assert "whose settings were searched and chosen without the patient" in printed
    assert "that neither search nor choice has seen" not in printed
    page = (done / "runs" / "fake" / "confirm" / "verdict.html").read_text()
    seen = "The sweep fake has searched the same cohort before. Its configurations are not used, only its space."
    assert seen in page and seen in printed and any(note.startswith(seen) for note in content["notes"])
    assert "nested cross-validation with 3 folds" in page and "the test part train in other folds" in page
    left_out = any("tabular-smoothed is left out" in note for note in content["notes"])
    assert left_out == ("tabular-smoothed" not in content["scores"]) == ("label smoothing of the entropy" not in page)
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"base64,[^\"]*", "", page))
    protocol = content["protocol"]
    assert protocol["finalists"] == {} and protocol["space"]["search"]["trials"] == TRIALS
    assert protocol["test_patients"] == content["patients"]["all"] and protocol["trials"] == TRIALS / 2


def test_plan_counts_all_trainings(done: Path) -> None:
    planned = (done / "planned.txt").read_text()
    count = FOLDS * (TRIALS + 4 * 5 + 4 * 5)
    assert f"for {count} trainings, as the trials of the sweep took" in planned
    assert f"search: {FOLDS * TRIALS} configurations in 3 folds" in planned and "nothing is frozen yet" in planned


def test_the_same_command_again_trains_nothing_and_other_ones_are_refused(again: Path, monkeypatch: Any) -> None:
    before = verdict(again)
    with monkeypatch.context() as patch:
        patch.setattr(fake, "play", lambda *args: pytest.fail("a trial was trained again"))
        confirmed(again)  # without the words
    assert verdict(again) | {"command": ""} == before | {"command": ""}
    with pytest.raises(UserError, match="folds: frozen is 3, got 4"):
        confirmed(again, "folds=4")
    with pytest.raises(ConfigError, match="cohort: is another cohort, and this confirmation repeats the search"):
        confirmed(again, f"cohort={again / 'other.yaml'}", "folds=3")
    with pytest.raises(ConfigError, match="was opened before"):
        confirmed(again, "new=true", "seeds=6")  # the test part of the sweep was opened with the rest
    shutil.copytree(
        again / "runs" / "fake-confirm-fold1-search", again / "runs" / "fake-confirm-fold0-search", dirs_exist_ok=True
    )
    with pytest.raises(UserError, match="fold0-search holds the search of another confirmation; move it away"):
        confirmed(again)


def test_a_fold_whose_search_left_too_few_trials_has_no_verdict(again: Path, monkeypatch: Any) -> None:
    def without_most(records: list[Record], *rest: Any) -> Any:
        seed = configs(records)[0].seed
        return finalists_of([each for each in records if seed != 3001 or each.arm != "none"], *rest)

    monkeypatch.setattr(nested, "finalists_of", without_most)
    message = (
        "fold 1: every arm needs at least 2 complete trials; there are: none 0, tabular 4; continue the sweep with"
    )
    with pytest.raises(NoVerdictError, match=message):
        confirmed(again)


def test_folds_that_cannot_be_dealt_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"folds: the cohort .* 80 folds: 75 patients cannot be dealt into 80 parts"):
        confirmed(base, "folds=80")
    with pytest.raises(ConfigError, match=r"folds: the cohort .* 60 folds: task pattern has one class in part"):
        confirmed(base, "folds=60")
    monkeypatch.setattr("mmpkd.cohort.splits.has_folds", lambda parts: True)
    with pytest.raises(ConfigError, match=r"folds: the data set gives folds of its own, and .* apart; leave folds out"):
        confirmed(base, "folds=4")
    assert not (base / "runs" / "fake" / "confirm").exists()


def test_what_earlier_results_taught_is_not_repeated(tmp_path: Path) -> None:
    """Nor are arms that are not compared, with their share of the trials."""
    content = yaml.safe_load(fake.SPACE)
    content["arms"] |= {"other": {"teachers": {"findings": {"kind": "tabular"}}}}
    content["search"] |= {
        "trials": 20,
        "warm_start": "earlier",
        "points": [{"arm": "none", "optimizer.lr": 0.01}],
        "deadline": "2026-01-01",
        "shares": {"tabular": 0.4, "other": 0.4},
        "sampler": "tpe",
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(content))
    space, _ = load_space(str(tmp_path / "space.yaml"))
    assert space is not None
    again = searched_again(space, ["none", "tabular"])
    search = again["search"]
    assert not {"warm_start", "points", "deadline", "budget_device_hours"} & set(search) and "cohort" not in again
    assert again["arms"]["other"] is False and again["arms"]["tabular"] == content["arms"]["tabular"]
    assert (search["trials"], search["sampler"]) == (12, "tpe")
    assert search["shares"] == pytest.approx({"none": 1 / 3, "tabular": 2 / 3})


def test_the_luck_of_searches_is_averaged_over_folds() -> None:
    """Variances of 0.1, 0.3 and 0.2 with 2 degrees: 0.6 / 9, with 0.6² / (0.14 / 2) degrees."""
    mean = averaged([SearchLuck(variance, 2.0) for variance in (0.1, 0.3, 0.2)])
    assert (mean.variance, mean.degrees) == pytest.approx((0.6 / 9, 0.36 / 0.07))
    assert averaged([SearchLuck(0.0, 2.0)] * 3) == SearchLuck(0.0, 1.0)
    assert np.isnan(averaged([SearchLuck(0.1, 2.0), SearchLuck(float("nan"), 1.0)]).variance)
