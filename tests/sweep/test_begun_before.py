"""A sweep that the code before the rebuild of issue 16 began, was killed in, and that today's code continues.

`tests/golden/sweep_before_16/README.md` says how the sweep was made. What lies in its folder is read here without the
package, so that a change of a format on disk cannot hide behind a reader that changed with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest
import torch

from sweep import driver, run, status

MADE: Final = Path(__file__).parents[1] / "golden" / "sweep_before_16"
WORDS: Final = ("space=before.yaml", "storage=runs", "cache=cache", "trials=10")  # of the killed driver
WIDER: Final = ("optimizer.weight_decay={log_uniform: [5e-4, 0.3]}", "extend=true")  # holds every earlier trial
BY_HAND: Final = "set by hand"  # in MLflow, where only events that were sent before would overwrite it


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies what the killed driver left to the working folder, and returns the sweep's folder in it."""
    shutil.copy(MADE / "before.yaml", tmp_path)
    shutil.copytree(MADE / "storage", tmp_path / "runs")
    packed = tmp_path / "runs" / "mlflow.db.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    folder = tmp_path / "runs" / "before"
    # How far MLflow was told holds for one address, which is another in each copy.
    reached = int((folder / "spool.sent").read_text().split()[0])
    address = json.dumps([f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}", reached], separators=(",", ":"))
    server = hashlib.sha256(address.encode()).hexdigest()[:16]
    (folder / "spool.sent").write_text(f"{reached} {server}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def events(spool: bytes, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, spool.splitlines())
    return [event for event in lines if event["event"] == kind]


def numbers(spool: bytes, kind: str) -> list[int]:
    return [event["number"] for event in events(spool, kind)]


def attributes(journal: bytes) -> set[str]:
    """Returns the names of the attributes that lines of Optuna's journal give to trials."""
    lines = map(json.loads, journal.splitlines())
    return {name for line in lines for key in ("user_attr", "user_attrs") for name in line.get(key, {})}


def histories(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Returns the reports in the checkpoint of each trial that was training when the driver was killed, by number."""
    checkpoints = {int(path.parts[-3]): path for path in folder.glob("checkpoints/*/attempt-1/last.pt")}
    return {number: torch.load(path, weights_only=True)["history"] for number, path in checkpoints.items()}


def rows(table: str, keys: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """Returns the filled cells of each row of a table in CSV as text, so that every digit counts."""
    content = pd.read_csv(io.StringIO(table), dtype=str).to_dict("records")
    return {
        tuple(row[key] for key in keys): {name: cell for name, cell in row.items() if isinstance(cell, str)}
        for row in content
    }


def query(text: str, *values: str) -> list[tuple[Any, ...]]:
    """Returns what MLflow's file holds, without loading MLflow."""
    with contextlib.closing(sqlite3.connect("runs/mlflow.db")) as database, database:
        return database.execute(text, values).fetchall()


def tags(key: str) -> dict[int, str]:
    """Returns the values of a tag by the number of the trial."""
    joined = "FROM tags AS it JOIN tags AS n ON it.run_uuid = n.run_uuid AND n.key = 'sweep.number' WHERE it.key = ?"
    return {int(number): value for number, value in query(f"SELECT n.value, it.value {joined}", key)}


def steps(metric: str) -> set[tuple[int, int]]:
    """Returns the number of the trial and the epoch of every point of a metric; no point stands there twice."""
    joined = "FROM metrics AS it JOIN tags AS n ON it.run_uuid = n.run_uuid AND n.key = 'sweep.number'"
    points = query(f"SELECT n.value, it.step {joined} WHERE it.key = ?", metric)
    assert len(points) == len(set(points))
    return {(int(number), step) for number, step in points}


@pytest.mark.parametrize("further", [(), WIDER], ids=["same_command", "extended_space"])
def test_a_sweep_begun_before_continues(
    ray_session: None, begun: Path, further: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    spool, journal = (begun / "spool.jsonl").read_bytes(), (begun / "journal.log").read_bytes()
    reached = int((begun / "spool.sent").read_text().split()[0])
    open_before = set(numbers(spool, "start")) - set(numbers(spool, "end"))
    checkpoints = histories(begun)
    query("UPDATE tags SET value = ? WHERE key = 'outcome'", BY_HAND)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ending:
        if further:  # another space is timed anew, which takes half of this test
            patch.setattr(driver, "FUNCTIONS", replace(driver.FUNCTIONS, price=lambda *_: None))
        run.main([*WORDS, *further, "search.at_a_time=1"])  # each worker loads torch, which takes longest
    assert ending.value.code == 0

    trials, epochs = pd.read_parquet(begun / "trials.parquet"), pd.read_parquet(begun / "epochs.parquet")
    for table, keys in ((trials, ["number"]), (epochs, ["number", "epoch"])):
        name = "trials.csv" if table is trials else "epochs.csv"
        before, now = (rows(text, keys) for text in ((MADE / name).read_text(), table.to_csv(index=False)))
        assert {key: now.get(key) for key in before} == before, "what had ended is unchanged, to the last digit"
    assert trials["number"].tolist() == list(range(len(trials)))
    assert trials["repeat_of"].isna().sum() == 10, "as many configurations as were asked for"
    assert set(trials["state"]) == {"complete", "pruned", "failed"}

    by_number, trained = trials.set_index("number"), epochs.set_index(["number", "epoch"])
    for event in events(spool, "start"):
        row = by_number.loc[event["number"]]
        sampled = {name: value for name, value in event["params"].items() if name.startswith(f"{row['arm']}/")}
        assert row["arm"] == event["arm"] and {name: row.get(name, value) for name, value in sampled.items()} == sampled
    assert len(checkpoints) == 2 and set(checkpoints) <= open_before
    for number, reports in checkpoints.items():
        assert 0 < len(reports) < 4
        for report in reports:  # its seconds would be others if the epoch had been trained again
            row = trained.loc[number, report["epoch"]]
            assert row["seconds"] == report["seconds"]
            assert {name: row[name] for name in report["metrics"]} == pytest.approx(
                report["metrics"], abs=0, nan_ok=True
            )
        assert by_number.loc[number, "epochs"] == trained.loc[number].index.max() >= len(reports)
        assert by_number.loc[number, "seconds"] == pytest.approx(trained.loc[number]["seconds"].sum(), rel=1e-9)

    after = (begun / "spool.jsonl").read_bytes()
    assert after.startswith(spool)
    for kind in ("start", "epoch", "end"):
        for event in events(after[len(spool) :], kind):
            assert set(event) >= set(events(spool, kind)[0]), "events keep their fields"
    assert (begun / "journal.log").read_bytes().startswith(journal)
    records = (begun / "journal.log").read_bytes()[len(journal) :]
    assert attributes(records) >= {"number", "sampled", "config", "rung 2", "ending"}, "and trials their attributes"
    reported = [(event["number"], event["epoch"]) for event in events(after, "epoch")]
    assert sorted(reported) == sorted(set(reported)) == list(trained.index)
    assert sorted(numbers(after, "end")) == sorted(numbers(after, "start")) == trials["number"].tolist()

    sent = set(numbers(spool[:reached], "end"))
    assert sent and sent < set(numbers(spool, "end")) | open_before
    outcomes = dict(zip(trials["number"], trials["state"], strict=True)) | dict.fromkeys(sent, BY_HAND)
    assert tags("outcome") == outcomes, "MLflow is told of every trial, and of none again that it was told of"
    assert steps("val/auroc") == set(trained.index)

    capsys.readouterr()
    status.main(["before", "storage=runs", "json=true"])
    (shown,) = json.loads(capsys.readouterr().out)["sweeps"]
    assert shown["state"] == "finished"
    plan = json.loads((begun / "plan.json").read_text())
    assert plan["generation"] == (1 if further else 0)
    assert "search.equal" not in plan["leaves"], "it goes on sharing device-hours, for later drivers too"
    assert further or plan["price"] == json.loads((MADE / "storage/before/plan.json").read_text())["price"]
    assert (begun / "best.yaml").exists() and (begun / "report.html").exists()
