"""Names of labels, arms and teachers as MLflow takes them: no two become one, and one that is refused costs itself."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sweep.storage.events import EpochEnded, Spool, SweepBegan, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.tracking.names import MAX_LENGTH, ServerNames
from tests.sweep.tracking.test_mlflow import drain, runs

AWKWARD = (
    *("val/auroc/size/<5 mm", "val/auroc/size/>5 mm", "val/auroc/size/≤5 mm", "val/auroc/size/_5 mm"),
    *("val/auroc/dx/a(b", "val/auroc/dx/a[b", "val/auroc/dx/a_b", "val/auroc/dx/A_B", "val/auroc/dx/ a_b"),
    *("val/auroc/Edema", "val/auroc/edema", "val/auroc/EDEMA", "val/auroc//edema", "val/auroc/./edema"),
    *("../up", "up", "/up", "up/", "", " ", "line\nbreak", "line break", "x" * 400, "x" * 399 + "y", "\ud800", "ä"),
)


def test_no_two_names_become_one_and_what_may_stay_does() -> None:
    names = ServerNames()
    given = {name: names.of(name) for name in AWKWARD}
    assert len({one.casefold() for one in given.values()}) == len(AWKWARD)
    assert all(re.fullmatch(r"[\w\-. :/]+", one) and len(one) <= MAX_LENGTH for one in given.values())
    assert given["val/auroc/size/<5 mm"].startswith("val/auroc/size/lt5 mm-")
    for name in ("val/auroc/dx/a_b", "val/auroc/Edema", "up", "line break", "ä"):
        assert given[name] == name
    again = ServerNames()
    assert {name: again.of(name) for name in AWKWARD} == given


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def begin(tmp_path: Path) -> Spool:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    spool.append(TrialStarted(number=0, arm="none", params={name: len(name) for name in AWKWARD}, tags={}))
    return spool


def epoch(spool: Spool, number: int, terms: dict[str, float]) -> None:
    """An epoch with terms of the loss, whose names users choose."""
    metrics = {"val/auroc": 0.6 + number / 10}
    spool.append(EpochEnded(number=0, arm="none", epoch=number, seconds=1.0, metrics=metrics, terms=terms))


def test_mlflow_keeps_every_label_apart_after_a_restart_too(tmp_path: Path, address: str) -> None:
    spool = begin(tmp_path)
    scores = {name: float(index) for index, name in enumerate(AWKWARD)}
    epoch(spool, 1, scores)
    assert not drain(address, "apart", spool).refused
    reversed_scores = dict(reversed(scores.items()))  # the names were given in the other order
    epoch(spool, 2, reversed_scores)
    assert not drain(address, "apart", spool).refused
    run = runs(address, "apart")[0]
    assert len(run.data.metrics) == len(AWKWARD) + 1 and len(run.data.params) == len(AWKWARD)
    names = ServerNames()
    for name, score in scores.items():
        history = MlflowClient(address).get_metric_history(run.info.run_id, names.of(f"loss/{name}"))
        assert [point.value for point in history] == [score, score]


def test_a_name_that_the_server_refuses_costs_that_name_only(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, calls = MlflowClient.log_batch, itertools.count()

    def strict(self: MlflowClient, run_id: str, metrics: Any = (), params: Any = (), **rest: Any) -> Any:
        next(calls)
        if any("edema" in one.key for one in (*metrics, *params)):
            raise MlflowException.invalid_parameter_value("no edema")
        return taken(self, run_id, metrics=metrics, params=params, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", strict)
    spool = begin(tmp_path)
    epoch(spool, 1, {"edema": 0.6, "task": 0.3})
    tracker = drain(address, "strict", spool)
    run = runs(address, "strict")[0]
    assert run.data.metrics == {"val/auroc": 0.7, "loss/task": 0.3}
    names = ServerNames()
    assert set(run.data.params) == {given for given in map(names.of, AWKWARD) if "edema" not in given}
    assert any("'loss/edema': " in one for one in tracker.refused)

    epoch(spool, 2, {"edema": 0.6, "task": 0.3})
    before = next(calls)
    assert drain(address, "strict", spool).trouble == ""
    assert runs(address, "strict")[0].data.metrics["val/auroc"] == 0.8
    assert next(calls) - before < 8, "found by halves"
