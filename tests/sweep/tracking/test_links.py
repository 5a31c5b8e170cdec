"""Links to MLflow's pages and saved views, as its front-end expects them, and the filters that the docs name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from sweep.storage.events import EpochEnded, Spool, SweepBegan, SweepSummarized, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.tracking.links import as_lines, as_markdown, pages_of, server_of, views_of
from sweep.tracking.mlflow import Tracker
from sweep.tracking.mlflow_database import sweep_run

RUN = "0123456789abcdef0123456789abcdef"
GOALS = ["val/auroc", "val/pointing"]


def test_a_saved_view_is_what_the_front_end_reads() -> None:
    """The names of its keys are those of `Save view` in MLflow 3.17."""
    view = views_of(RUN, GOALS)[1]
    content = json.loads(view.tag(1700000000000))
    state = json.loads(content.pop("state"))
    assert content == {"name": "trials by val/pointing", "createdAt": 1700000000000, "updatedAt": 1700000000000}
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/pointing`", False)
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{RUN}'"
    shown = ["tags.`val/pointing`", "tags.`val/auroc`", "tags.`arm`", "tags.`outcome`", "tags.`front`"]
    assert state["selectedColumns"][:5] == shown
    assert state["selectedColumns"][-2:] == ["metrics.`val/pointing`", "metrics.`val/auroc`"]
    assert set(state["columnOrder"]) - set(state["selectedColumns"]) == {"attributes.`Run Name`", "runDateAndNestInfo"}
    assert set(state["columnWidths"]) == set(state["columnOrder"])


def test_each_page_has_a_link() -> None:
    pages = pages_of("7", RUN, GOALS, "https://lab.example/mlflow/")
    assert list(pages) == ["trials by val/auroc", "trials by val/pointing", "Pareto front", "the sweep itself"]
    link = urlsplit(pages["Pareto front"])
    path, _, query = link.fragment.partition("?")
    assert (link.netloc, link.path, path) == ("lab.example", "/mlflow/", "/experiments/7/runs")
    assert parse_qs(query) == {"viewStateShareKey": ["01234567-Pareto-front"], "workflowType": ["machine_learning"]}
    assert pages["the sweep itself"].endswith(f"#/experiments/7/runs/{RUN}?workflowType=machine_learning")
    assert as_markdown({"a": "#/x", "b c": "#/y"}) == "Open [a](#/x) · [b c](#/y)"
    assert as_lines({"a": "#/x", "b c": "#/y"}) == ["  a    #/x", "  b c  #/y"]


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("sqlite:////tmp/mlflow.db", "http://127.0.0.1:5000/"),
        ("postgresql://ann:***@db/mlflow", "http://127.0.0.1:5000/"),
        ("https://ann:***@lab.example:8443/mlflow/", "https://lab.example:8443/mlflow/"),
        ("http://10.0.0.7:5000", "http://10.0.0.7:5000/"),
    ],
)
def test_where_a_browser_finds_the_pages(address: str, server: str) -> None:
    assert server_of(address) == server


def test_the_experiment_keeps_its_views_and_a_description_of_a_person(tmp_path: Path) -> None:
    """A second driver changes nothing but the time, and a description that a person wrote stays."""
    uri, spool = f"sqlite:///{tmp_path / 'mlflow.db'}", Spool(SweepFolder(tmp_path))

    def experiment_tags() -> dict[str, str]:
        spool.append(SweepBegan(id="x", goals=GOALS))
        tracker = Tracker(uri, "linked", "x", spool, tmp_path / "mlartifacts")
        tracker.start()
        assert tracker.close(60) == 0 and not tracker.refused
        return dict(MlflowClient(uri).get_experiment(tracker.runs.experiment).tags)

    first = experiment_tags()
    experiment, run = sweep_run(tmp_path / "mlflow.db", "linked") or ("", "")
    assert f"(#/experiments/{experiment}/runs/{run}?" in first["mlflow.note.content"]  # what sweep.status prints
    assert sweep_run(tmp_path / "mlflow.db", "another") is None
    assert first["mlflow.experimentKind"] == "custom_model_development"
    assert first["mlflow.note.content"].startswith("A sweep of hyperparameters. Open [trials by val/auroc](#/exper")
    assert sum(name.startswith("mlflow.sharedViewState.") for name in first) == 3
    client = MlflowClient(uri)
    client.set_experiment_tag(client.get_experiment_by_name("linked").experiment_id, "mlflow.note.content", "by hand")
    second = experiment_tags()
    assert second.keys() == first.keys() and second["mlflow.note.content"] == "by hand"


def test_the_filters_in_the_docs_work_as_typed(tmp_path: Path) -> None:
    """Trial 0 is the best, 1 the reference; 2 was pruned, 3 failed."""
    text = (Path(__file__).parents[3] / "docs" / "mlflow.md").read_text()
    table = text.partition("## Filters")[2].partition("\n## ")[0]
    filters = re.findall(r"^\| ``(.+?)`` \|", table, re.M)
    uri, spool = f"sqlite:///{tmp_path / 'mlflow.db'}", Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x", goals=GOALS))
    for number, state in enumerate(["complete", "complete", "pruned", "failed"]):
        arm, tags = ("none" if number else "tabular"), ({"reference": "yes"} if number == 1 else {})
        params = {"optimizer.lr": 0.01, "objectives": "logits" if number == 0 else "none"}
        spool.append(TrialStarted(number=number, arm=arm, params=params, tags=tags))
        goals = {"val/auroc": 0.99 - number / 10, "val/pointing": 0.5 - number / 10}
        spool.append(EpochEnded(number=number, arm=arm, epoch=1, seconds=1.0, metrics=goals, terms={}))
        spool.append(TrialEnded(number=number, state=state, error="", scores={"device_hours": 0.1}))
    marks = {"0": {"front": "yes", "best": "val/auroc, val/pointing, best.yaml"}}
    spool.append(SweepSummarized(4, "", {"best/val/auroc": 0.99}, marks))
    tracker = Tracker(uri, "filtered", "x", spool, tmp_path / "mlartifacts")
    tracker.start()
    assert tracker.close(60) == 0
    matches = []
    for text in filters:
        runs = MlflowClient(uri).search_runs([tracker.runs.experiment], text)
        matches.append(sorted(int(run.data.tags.get("sweep.number", -1)) for run in runs))
    assert matches == [[0], [0, 1], [2], [0], [0], [0], [1], [0], [0, 1, 2, 3]]
