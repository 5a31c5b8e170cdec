"""MLflow behind the spool: once, whole, and although the server is away or the driver is killed."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from sqlalchemy.engine import make_url

from mmpkd.types import ConfigError
from sweep.options import check_tracking_uri, read_run_options, redact_passwords, sqlite_file, sqlite_uri
from sweep.storage.events import (
    EpochEnded,
    FilesWritten,
    Spool,
    SweepBegan,
    SweepClosed,
    SweepSummarized,
    TrialEnded,
    TrialStarted,
    VerdictWritten,
    cut_torn_line,
)
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker
from sweep.tracking.mlflow_runs import NOTE


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow file without a trial: to make one takes seconds."""
    spool = Spool(SweepFolder(tmp_path_factory.mktemp("tables")))
    spool.append(SweepClosed(status="FINISHED"))
    drain(sqlite_uri(spool.path.parent / "mlflow.db"), "none", spool)
    return (spool.path.parent / "mlflow.db").read_bytes()


@pytest.fixture(scope="module")
def address(tables: bytes, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server_in(tmp_path_factory.mktemp("mlflow"), tables)


def server_in(folder: Path, tables: bytes) -> str:
    """Returns the address of an MLflow file that has no run of the sweeps of these tests."""
    (folder / "server.db").write_bytes(tables)
    return sqlite_uri(folder / "server.db")


def tell_of(spool: Spool, number: int, state: str, epochs: int = 2) -> None:
    params, tags = {"optimizer.lr": 0.1, "epochs": 2}, {"near_label": "BIRADS"} if number == 1 else {}
    name, colour = f"{number} none lr=0.1", "#0072B2"
    spool.append(TrialStarted(number=number, arm="none", params=params, tags=tags, name=name, colour=colour))
    for epoch in range(1, epochs + 1):
        metrics = {"val/auroc": 0.5 + epoch / 10, "val/auroc_chance": 0.5, "val/pixel_ap": math.nan}
        report = {"epoch": epoch, "seconds": 1.5, "metrics": metrics, "terms": {"task": 2.0, "ä (b)": 0.25}}
        spool.append(EpochEnded(number=number, arm="none", **report))
    if state != "running":
        scores, error = {"val/auroc_se": 0.03, "device_hours": 0.5}, "a bug" if state == "failed" else ""
        spool.append(TrialEnded(number=number, state=state, error=error, scores=scores))


def runs(address: str, name: str) -> dict[int, Any]:
    """Nested runs by number; -1 is the parent."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    numbers = [int(run.data.tags.get("sweep.number", -1)) for run in found]
    assert len(numbers) == len(set(numbers))
    return dict(zip(numbers, found, strict=True))


def drain(address: str, name: str, spool: Spool, fails: bool = False, mirror: Any = None) -> Tracker:
    """Sends a spool until the server has all of it, or until the first attempt that `fails`."""
    tracker = Tracker(address, name, f"id of {name}", spool, spool.path.parent / "mlartifacts", mirror)
    tracker.start()
    end = time.monotonic() + 60
    while fails and not tracker.trouble and time.monotonic() < end:
        time.sleep(0.01)
    tracker.left = tracker.close(0 if fails else 60)  # type: ignore[attr-defined]
    return tracker


def test_a_database_that_a_kill_left_half_made_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow alone never opens one again: 'duplicate column name'."""
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    half = tmp_path / ".mlflow.db.half.partial"
    half.write_bytes(b"SQLite format 3")
    assert drain(f"sqlite:///{tmp_path / 'mlflow.db'}", "half", spool).left == 0  # type: ignore[attr-defined]
    assert (tmp_path / "mlflow.db").exists() and not half.exists()

    monkeypatch.setattr("os.link", lambda *_: pytest.fail("it is there already"))
    spool.append(SweepClosed(status="FINISHED"))
    assert drain(f"sqlite:///{tmp_path / 'mlflow.db'}", "half", spool).left == 0  # type: ignore[attr-defined]


def test_a_sweep_in_mlflow(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    for number, state in enumerate(("complete", "pruned", "failed")):
        tell_of(spool, number, state)
    (tmp_path / "report.html").write_text("hello")
    spool.append(FilesWritten(paths=[str(tmp_path / "report.html"), str(tmp_path / "absent")]))
    spool.append(SweepClosed(status="FINISHED"))

    tracker = drain(address, "whole", spool)

    assert (tracker.left, tracker.trouble, tracker.refused) == (0, "", [])  # type: ignore[attr-defined]
    found = runs(address, "whole")
    parent = found.pop(-1)
    assert parent.info.status == "FINISHED"
    assert [(run.info.status, run.data.tags["outcome"]) for _, run in sorted(found.items())] == [
        ("FINISHED", "complete"),
        ("FINISHED", "pruned"),
        ("FAILED", "failed"),
    ]
    assert found[2].data.tags["error"] == "a bug"
    assert [run.data.tags.get("near_label") for _, run in sorted(found.items())] == [None, "BIRADS", None]
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert found[0].data.params == {"optimizer.lr": "0.1", "epochs": "2"}
    assert (found[1].info.run_name, found[1].data.tags["mlflow.runColor"]) == ("1 none lr=0.1", "#0072B2")
    # Baselines are left out, and NaN ('no such case'); a name that MLflow does not take is bent, not dropped.
    last = {"val/auroc": 0.7, "loss/ä _b_-4ba897": 0.25, "loss/task": 2.0, "device_hours": 0.5}
    assert found[0].data.metrics == pytest.approx(last) and found[0].data.tags["val/auroc"] == "0.700 ± 0.030"
    history = MlflowClient(address).get_metric_history(found[0].info.run_id, "val/auroc")
    assert [(point.step, point.value) for point in history] == [(1, 0.6), (2, 0.7)]
    assert [file.path for file in MlflowClient(address).list_artifacts(parent.info.run_id)] == ["report.html"]


def summary(marks: dict[str, dict[str, str]], ended: int = 2) -> SweepSummarized:
    answer = "**The answer** by [trial 0](trial:0) ([config.yaml](trial:0/config.yaml)), not [trial 9](trial:9)"
    return SweepSummarized(ended, f"{answer}\n\nMore", {"best/val/auroc/none": 0.7}, marks)


def test_the_run_of_the_sweep_says_what_came_of_it(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    data = {"name": "breast_lesions_usg", "fingerprint": "7df6a475749447d6", "images": 252}
    spool.append(SweepBegan(id="x", goals=["val/auroc"], user="ann", commit="abc+changes", data=data))
    tell_of(spool, 0, "complete")
    spool.append(summary({"0": {"front": "yes"}}))
    assert not drain(address, "said", spool).refused
    parent = runs(address, "said")[-1]
    tags = {name: parent.data.tags[name] for name in ("mlflow.note.content", "mlflow.user", "mlflow.source.git.commit")}
    answer, links, further = tags["mlflow.note.content"].split("\n\n")
    page = f"#/experiments/{parent.info.experiment_id}/runs/{runs(address, 'said')[0].info.run_id}"
    config = f"{page}/artifacts/config.yaml?workflowType=machine_learning"
    trial = f"[trial 0]({page}?workflowType=machine_learning)"
    assert answer == f"**The answer** by {trial} ([config.yaml]({config})), not trial 9"
    assert links.startswith("Open [trials by val/auroc](#/experiments/") and further == "More"
    assert list(tags.values())[1:] == ["ann", "abc+changes"]
    history = MlflowClient(address).get_metric_history(parent.info.run_id, "best/val/auroc/none")
    assert [(point.step, point.value) for point in history] == [(2, 0.7)]
    (event, *_) = (event for _, event in spool.read())
    assert parent.info.start_time == int(event.time * 1000), "when the sweep began, not when it was sent"
    (used,) = parent.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("breast_lesions_usg", "7df6a475749447d6")
    assert json.loads(used.dataset.profile) == {"images": 252}


def test_a_verdict_replaces_the_description_and_brings_its_files(tmp_path: Path, address: str) -> None:
    (tmp_path / "a" / "confirm").mkdir(parents=True)
    (tmp_path / "a-confirm-train").mkdir()
    spool = Spool(SweepFolder(tmp_path / "a-confirm-train"))
    (tmp_path / "a" / "confirm" / "verdict.html").write_text("the page")
    spool.append(SweepBegan(id="x", goals=["val/auroc"]))
    spool.append(summary({}))
    paths = ["a/confirm/verdict.html", "a/confirm/absent.json"]
    spool.append(VerdictWritten("- better\n\nThe table", {"verdict/val/auroc/t/p": 0.5}, {"verdict": "yes"}, paths))
    assert drain(address, "judged", spool).left == 0  # type: ignore[attr-defined]
    run = runs(address, "judged")[-1]
    text = run.data.tags[NOTE]
    assert text.startswith("- better\n\nOpen [") and text.endswith("\n\nThe table") and "The answer" not in text
    assert run.data.tags["verdict"] == "yes" and run.data.metrics["verdict/val/auroc/t/p"] == 0.5
    assert [file.path for file in MlflowClient(address).list_artifacts(run.info.run_id)] == ["verdict.html"]


def test_only_the_goals_of_the_sweep_are_sent(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x", goals=["val/auroc"]))
    spool.append(TrialStarted(number=0, arm="none", params={}, tags={}))
    metrics, terms = {"val/auroc": 0.7, "val/pointing": 0.2}, {"task": 1.0, "gradient_share/task": 0.5}
    spool.append(EpochEnded(number=0, arm="none", epoch=1, seconds=1.0, metrics=metrics, terms=terms))
    drain(address, "goals", spool)
    assert runs(address, "goals")[0].data.metrics == {"val/auroc": 0.7, "loss/task": 1.0}


def test_trials_that_leave_the_front_lose_their_tags(tmp_path: Path, address: str, tables: bytes) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    for number in range(3):
        tell_of(spool, number, "complete", epochs=1)
    spool.append(summary({"0": {"front": "yes", "best": "val/auroc"}, "1": {"front": "yes"}}))
    drain(address, "front", spool)
    spool = Spool(SweepFolder(tmp_path))  # the next driver
    last = {"1": {"front": "yes", "best": "val/auroc"}, "2": {"front": "yes"}}
    spool.append(summary(last))
    assert not drain(address, "front", spool).refused

    def marks(server: str) -> dict[str, dict[str, str]]:
        kept: dict[str, dict[str, str]] = {}
        for number, run in runs(server, "front").items():
            tags = {name: value for name, value in run.data.tags.items() if name in ("front", "best")}
            kept |= {str(number): tags} if tags else {}
        return kept

    assert marks(address) == last
    other = server_in(tmp_path, tables)
    drain(other, "front", spool)  # another server gets the same from the beginning
    assert marks(other) == last


def test_a_trial_keeps_its_config_also_if_artifacts_were_away(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts may lie on another server. Where it is away, the scores still arrive."""
    spool, log_text = Spool(SweepFolder(tmp_path)), MlflowClient.log_text
    spool.append(SweepBegan(id="x"))
    spool.append(TrialStarted(number=0, arm="none", params={}, tags={}, config='{"epochs": 2, "seed": 0}'))
    spool.append(EpochEnded(number=0, arm="none", epoch=1, seconds=1.0, metrics={"val/auroc": 0.7}, terms={}))

    def away(*arguments: Any) -> None:
        raise ConnectionError("no bucket")

    monkeypatch.setattr(MlflowClient, "log_text", away)
    tracker = drain(address, "away-files", spool, fails=True)
    assert tracker.left == 1 and "no bucket" in tracker.trouble  # type: ignore[attr-defined]
    run = runs(address, "away-files")[0]
    assert run.data.metrics == {"val/auroc": 0.7}
    monkeypatch.setattr(MlflowClient, "log_text", log_text)
    assert drain(address, "away-files", spool).left == 0  # type: ignore[attr-defined]
    path = Path(MlflowClient(address).download_artifacts(run.info.run_id, "config.yaml"))
    assert path.read_text() == "epochs: 2\nseed: 0\n"


def test_saying_it_all_again_changes_nothing(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "complete")
    drain(address, "twice", spool)
    (tmp_path / "spool.sent").unlink()  # killed before it could note how far it had come
    tracker = drain(address, "twice", spool)
    assert not tracker.refused
    found = runs(address, "twice")
    assert sorted(found) == [-1, 0]
    assert len(MlflowClient(address).get_metric_history(found[0].info.run_id, "val/auroc")) == 2


def test_the_next_driver_goes_on_where_the_last_one_stopped(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "running")
    drain(address, "next", spool)
    sent = int((tmp_path / "spool.sent").read_text().split()[0])
    assert sent == (tmp_path / "spool.jsonl").stat().st_size
    spool = Spool(SweepFolder(tmp_path))
    spool.append(TrialEnded(number=0, state="complete", error=""))
    tell_of(spool, 1, "complete")
    drain(address, "next", spool)
    assert {number: run.info.status for number, run in runs(address, "next").items() if number >= 0} == {
        0: "FINISHED",
        1: "FINISHED",
    }


def test_only_what_has_been_copied_to_the_store_is_sent(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "complete")
    copied = spool.path.stat().st_size
    tell_of(spool, 1, "complete")
    mirror: Any = SimpleNamespace(sendable=copied + 5, copy_now=lambda: None)  # in the middle of a line
    drain(address, "copied", spool, mirror=mirror)
    assert set(runs(address, "copied")) == {-1, 0}
    assert int((tmp_path / "spool.sent").read_text().split()[0]) == copied

    def copy_now() -> None:
        mirror.sendable = spool.path.stat().st_size

    mirror.copy_now = copy_now  # the last copy, before the tracker ends
    drain(address, "copied", spool, mirror=mirror)
    assert set(runs(address, "copied")) == {-1, 0, 1}


def test_another_server_is_told_everything(tmp_path: Path, address: str, tables: bytes) -> None:
    spool, other = Spool(SweepFolder(tmp_path)), server_in(tmp_path, tables)
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "running")  # the end of a trial would be missed, and all be told again for its sake
    drain(address, "moved-on", spool)
    drain(other, "moved-on", spool)
    statuses = {number: run.info.status for number, run in runs(other, "moved-on").items() if number >= 0}
    assert statuses == {0: "RUNNING"}


def test_scores_of_a_trial_that_two_drivers_ran_and_scores_without_an_error(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x", goals=["val/auroc", "val/pointing"]))
    for number, auroc in enumerate((0.7, 1.0)):
        spool.append(TrialStarted(number=number, arm="none", params={}, tags={}))
        metrics = {"val/auroc": auroc, "val/pointing": math.nan}
        spool.append(EpochEnded(number=number, arm="none", epoch=1, seconds=1.0, metrics=metrics, terms={}))
    drain(address, "two drivers", spool)
    spool = Spool(SweepFolder(tmp_path))
    for number, error in enumerate((0.0301, math.nan)):
        scores = {"val/auroc_se": error, "val/pointing_se": math.nan}
        spool.append(TrialEnded(number=number, state="complete", error="", scores=scores))
    assert not drain(address, "two drivers", spool).refused
    tags = [runs(address, "two drivers")[number].data.tags for number in range(2)]
    assert [of_trial.get("val/auroc") for of_trial in tags] == ["0.700 ± 0.030", "1.000 (all equal)"]
    assert not any("val/pointing" in of_trial for of_trial in tags), "no score, no tag"


def test_a_server_that_comes_back_misses_nothing(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    down = True
    create_run = MlflowClient.create_run

    def create_run_or_not(self: MlflowClient, *args: Any, **options: Any) -> Any:
        if down:
            raise ConnectionError("nobody there")
        return create_run(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "create_run", create_run_or_not)
    tracker = Tracker(address, "away", "id", spool, tmp_path)
    tracker.start()
    tell_of(spool, 0, "complete", epochs=5)
    end = time.monotonic() + 30
    while not tracker.trouble and time.monotonic() < end:
        time.sleep(0.05)
    assert "nobody there" in tracker.trouble
    assert not (tmp_path / "spool.sent").exists()
    down = False
    assert tracker.close(60) == 0
    run = runs(address, "away")[0]
    assert len(MlflowClient(address).get_metric_history(run.info.run_id, "val/auroc")) == 5


def test_a_database_that_fails_prints_no_traceback(
    tmp_path: Path, tables: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk fails every attempt, and MLflow (3.17) prints each error on its own."""
    spool, uri = Spool(SweepFolder(tmp_path)), server_in(tmp_path, tables)
    spool.append(SweepBegan(id="x"))
    drain(uri, "full", spool)
    with closing(sqlite3.connect(tmp_path / "server.db")) as database:
        database.execute("DROP TABLE latest_metrics")
    tell_of(spool, 0, "complete", epochs=1)
    tracker = drain(uri, "full", spool, fails=True)
    assert "no such table" in tracker.trouble
    assert capsys.readouterr().err == ""


def test_what_a_server_did_not_get_stays_and_is_counted(tmp_path: Path) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "complete", epochs=1)
    tracker = drain("http://127.0.0.1:9", "none", spool, fails=True)
    assert tracker.left == 4  # type: ignore[attr-defined]
    assert tracker.trouble == "the server does not answer: Connection refused"


def test_records_wait_while_the_experiment_is_deleted(tmp_path: Path, address: str) -> None:
    """Also those of a run that existed: MLflow refuses them for good, but a restored experiment takes them."""
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "running", epochs=1)
    tracker = Tracker(address, "gone", "id of gone", spool, tmp_path)
    tracker.start()
    end = time.monotonic() + 30
    while tracker.lag()[0] and time.monotonic() < end:
        time.sleep(0.05)
    client, experiment = MlflowClient(address), tracker.runs.experiment
    client.delete_experiment(experiment)
    spool.append(TrialEnded(number=0, state="complete", error=""))
    tell_of(spool, 1, "complete", epochs=1)
    while not tracker.trouble and time.monotonic() < end:
        time.sleep(0.05)
    restore = f"MLFLOW_TRACKING_URI={address} mlflow experiments restore --experiment-id {experiment}"
    assert tracker.trouble == f"the experiment 'gone' was deleted in MLflow; this restores it: {restore}"
    client.restore_experiment(experiment)
    assert tracker.close(60) == 0 and not tracker.refused
    assert {run.info.status for number, run in runs(address, "gone").items() if number >= 0} == {"FINISHED"}


def test_a_run_deleted_by_hand_holds_nothing_up(tmp_path: Path, address: str) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tell_of(spool, 0, "running")
    drain(address, "deleted", spool)
    MlflowClient(address).delete_run(runs(address, "deleted")[0].info.run_id)
    spool.append(TrialEnded(number=0, state="complete", error=""))
    tell_of(spool, 1, "complete")
    tracker = Tracker(address, "deleted", "id of deleted", spool, tmp_path)
    tracker.runs.by_number[0] = "0" * 32  # as a driver remembers it that began before the deletion
    tracker.start()
    assert tracker.close(60) == 0
    assert runs(address, "deleted")[1].info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "/tmp/mlruns", "ftp://host"])
def test_an_address_that_mlflow_does_not_know(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking: .* write (sqlite|http)"):
        check_tracking_uri(uri)


def test_a_sqlite_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_tracking_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert check_tracking_uri("http://host:5000") == "http://host:5000"


def test_passwords_are_not_shown() -> None:
    assert redact_passwords("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert redact_passwords("tracking=mysql://me:sec/ret@host/db") == "tracking=mysql://me:***@host/db"
    assert redact_passwords("http://host:5000") == "http://host:5000"
    assert redact_passwords("http://host:5000/a b@c") == "http://host:5000/a b@c"
    with pytest.raises(ConfigError, match=r"'postgres://me:\*\*\*@host/db' is no address"):  # of postgresql
        check_tracking_uri("postgres://me:sec/ret@host/db")


def test_a_torn_line_goes_and_whole_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    with path.open("ab") as file:
        file.write(b'{"event": "st')
    assert len(list(Spool(SweepFolder(tmp_path)).read())) == 1
    Spool(SweepFolder(tmp_path)).append(SweepClosed(status="FINISHED"))
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["sweep", "close"]
    cut_torn_line(tmp_path / "absent")


def test_a_long_sweep_is_told_whole_and_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More events than go in a portion, of every kind, to a server that notes what it is told."""
    told: list[tuple[Any, ...]] = []
    sizes: list[int] = []
    address = "http://of-this-test-alone"

    class Server:
        def __init__(self, tracking_uri: str):
            assert tracking_uri == address, "a thread that an earlier test left tries its own server again"

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="0", lifecycle_stage="active")

        def search_runs(self, *args: Any, **options: Any) -> Any:
            return PagedList([], None)

        def create_run(self, experiment: str, tags: Any, run_name: str, start_time: int | None = None) -> Any:
            number = tags.get("sweep.number", "parent")
            told.append(("create", number))
            return SimpleNamespace(info=SimpleNamespace(run_id=number))

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            sizes.append(len(metrics))
            told.extend(("metric", run, one.key, one.step, one.value) for one in metrics)
            told.extend(("param", run, one.key, one.value) for one in params)

        def set_tag(self, run: str, key: str, value: str) -> None:
            told.append(("tag", run, key, value))

        def set_terminated(self, run: str, status: str, end_time: int) -> None:
            told.append(("end", run, status))

        def update_run(self, run: str, status: str) -> None:
            told.append(("status", run, status))

    monkeypatch.setattr("mlflow.tracking.MlflowClient", Server)
    spool, states = Spool(SweepFolder(tmp_path)), ("complete", "pruned", "failed")
    for number in range(300):
        tell_of(spool, number, states[number % 3], epochs=number % 5)
    for epoch in range(1, 701):  # one trial of many epochs, more points than MLflow takes at once
        metrics = {"val/auroc": epoch / 1000, "val/ap": 0.5}
        spool.append(EpochEnded(number=300, arm="none", epoch=epoch, seconds=1.0, metrics=metrics, terms={}))
    tracker = drain(address, "long", spool)
    assert (tracker.left, tracker.trouble, tracker.refused) == (0, "", [])  # type: ignore[attr-defined]
    assert max(sizes) <= 1000
    for number in range(300):
        own = [one for one in told if one[1] == str(number)]
        epochs = range(1, 1 + number % 5)
        assert [one[3:] for one in own if one[:1] + one[2:3] == ("metric", "val/auroc")] == [
            (epoch, 0.5 + epoch / 10) for epoch in epochs
        ]
        assert [one for one in own if one[0] == "create"] == [("create", str(number))]
        assert ("tag", str(number), "outcome", states[number % 3]) in own
        assert own[-1] == ("end", str(number), ("FINISHED", "FINISHED", "FAILED")[number % 3])
        assert sum(one[0] == "param" for one in own) == 2
    long = [one[3] for one in told if one[:3] == ("metric", "300", "val/auroc")]
    assert long == list(range(1, 701))


ODD = [
    "a b",
    "a'b",
    'a"b',
    "a%b",
    "a%20b",
    "%3F",
    "a#b",
    "a?b",
    "a:b",
    "a;b",
    "äö",
    " lead",
    "trail ",
    "~",
    "a=b",
    "a&b@c",
]


@pytest.mark.parametrize("name", ODD)
def test_a_database_lies_where_its_path_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a%20b` once was `a b`, and what followed a `?` was lost."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options, mistakes = read_run_options([f"storage={tmp_path / name}"])
    path = tmp_path / name / "mlflow.db"
    assert not mistakes and check_tracking_uri(options.tracking_uri) == options.tracking_uri
    assert make_url(options.tracking_uri).database == str(path) and sqlite_file(options.tracking_uri) == path


def test_a_sweep_in_odd_folders_is_told_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Ann's #%20?").mkdir()
    monkeypatch.chdir(tmp_path / "Ann's #%20?")
    folder = tmp_path / "r u'n%20s?#;=~ü" / "fake"
    folder.mkdir(parents=True)
    spool = Spool(SweepFolder(folder))
    spool.append(SweepBegan(id="id of odd"))
    (folder / "space.yaml").write_text("{}")
    spool.append(FilesWritten(paths=[str(folder / "space.yaml")]))
    address = sqlite_uri(folder.parent / "mlflow.db")
    assert drain(address, "odd", spool).left == 0  # type: ignore[attr-defined]
    assert {path.name for path in folder.parent.iterdir()} == {"fake", "mlflow.db", "mlartifacts"}
    client = MlflowClient(address)
    assert [file.path for file in client.list_artifacts(runs(address, "odd")[-1].info.run_id)] == ["space.yaml"]
    assert len(list(tmp_path.rglob("mlartifacts/**/space.yaml"))) == 1


@pytest.mark.parametrize("uri", ["sqlite:///a?b.db", "sqlite://", "sqlite:///runs/x.db?timeout=5"])
def test_an_address_that_names_another_file_than_it_seems_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking: .* names no SQLite file; .*%3F"):
        check_tracking_uri(uri)


def test_a_working_directory_that_mlflow_cannot_write_down_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one kind of quotes in its name it can, and with both once its file is there."""
    here = tmp_path / 'Ann\'s "first" sweeps'
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match="both kinds of quotes; start the command in another folder"):
        check_tracking_uri("sqlite:///mlflow.db")
    (here / "mlflow.db").touch()
    check_tracking_uri("sqlite:///mlflow.db")


@pytest.mark.parametrize("key", ["storage", "cache"])
@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x1bb", "bytes\udcff"])
def test_folders_that_no_table_could_name_are_refused(key: str, name: str) -> None:
    _, mistakes = read_run_options([f"{key}={name}"])
    assert [mistake.path for mistake in mistakes] == [key] and name not in str(mistakes[0])


def test_home_is_found_behind_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """bash writes it out there, other shells do not, and a folder named ~ was made."""
    monkeypatch.setenv("HOME", "/home/researcher")
    options, _ = read_run_options(["storage=~/runs", "cache=~", "name=a"])
    assert (options.storage, options.cache) == ("/home/researcher/runs", "/home/researcher")


def test_mlflow_does_not_print_the_password_of_its_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the end of a run MLflow prints its address, as it was given."""
    client = TrackingServiceClient("http://user:hidden@127.0.0.1:9")
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="1", run_name="3 none"), data=SimpleNamespace(tags={}))
    monkeypatch.setattr(RestStore, "get_run", lambda *_: run)
    client._log_url("7")
    assert capsys.readouterr().out == ""
