"""What lies in a sweep's folder must be one sweep's: nothing missing, put there, or older goes by in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweep.search.searcher import Search
from sweep.storage.events import SweepBegan
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from tests.sweep.fake import report
from tests.sweep.swept import dead, events, from_lr, left, numbers, refused, states, swept, untracked
from tests.sweep.workers.test_worker import epochs_of, job, worker_for

__all__ = ["dead", "left", "untracked"]  # fixtures

# --- numbers without the trials behind them ---


def test_a_folder_without_its_journal_is_no_new_sweep(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, _ = dead
    (folder / "journal.log").unlink()
    message = refused(tmp_path, "trials=8")
    assert f"{folder}/journal.log is missing" in message and "trials 0, 1, 2, 3, 4, 5, 6, 7" in message
    assert "spool.jsonl" in message and "name=fake-2" in message and "repair=true" in message


@pytest.mark.parametrize("trace", ["spool.jsonl", "trials.parquet", "checkpoints"])
def test_each_trace_of_a_trial_is_enough_to_refuse(left: tuple[Path, float], tmp_path: Path, trace: str) -> None:
    folder = tmp_path / "runs" / "fake"
    swept(tmp_path, "trials=4")
    for path in folder.iterdir():
        if path.name not in (trace, "plan.json", "space.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert trace.partition(".")[0] in refused(tmp_path, "trials=4")


def test_a_repair_without_the_journal_gives_no_number_twice_and_keeps_the_tables(
    dead: tuple[Path, float], tmp_path: Path
) -> None:
    folder, _ = dead
    swept(tmp_path, "trials=8")
    before = pd.read_parquet(folder / "trials.parquet")
    (folder / "journal.log").unlink()
    _, text = swept(tmp_path, "trials=3", "repair=true")
    assert "trials 0, 1, 2, 3, 4, 5, 6, 7" in text and "before-repair-1" in text
    assert numbers(folder) == [8, 9, 10]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "before-repair-1" / "trials.parquet"), before)
    sweep = read_sweep(SweepFolder(folder))
    assert set(sweep.trials) == {8, 9, 10} and set(sweep.left_behind) == set(range(8))
    assert {event.id for event in events(folder, SweepBegan)} == {SweepFolder(folder).read_plan()["sweep"]}, (
        "one run in MLflow"
    )
    swept(tmp_path, "trials=4")  # repair=true is needed once, not every time
    assert numbers(folder) == [8, 9, 10, 11]


def test_an_older_journal_is_refused_and_a_repair_continues_it(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, _ = dead
    older = (folder / "journal.log").read_bytes()
    swept(tmp_path, "trials=10")
    (folder / "journal.log").write_bytes(older)
    message = refused(tmp_path, "trials=10")
    assert "journal.log is older than other files of the sweep" in message
    assert "does not know trials 8, 9" in message and "trials 6, 7 have ended by spool.jsonl" in message
    swept(tmp_path, "trials=10", "repair=true")
    assert numbers(folder) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]


def test_a_journal_that_lost_its_last_trial_is_refused_by_its_checkpoints(
    dead: tuple[Path, float], tmp_path: Path
) -> None:
    folder, _ = dead
    lines = (folder / "journal.log").read_bytes().splitlines(keepends=True)
    begun = max(index for index, line in enumerate(lines) if b'"op_code":4' in line)
    (folder / "journal.log").write_bytes(b"".join(lines[:begun]))
    (folder / "spool.jsonl").unlink()
    (folder / "checkpoints" / "7").mkdir(parents=True, exist_ok=True)
    assert "trials 7, which are in checkpoints/7" in refused(tmp_path, "trials=8")


# --- other sweeps' files ---


def another(tmp_path: Path) -> Path:
    """The folder of a sweep of the same space, that is not this one."""
    swept(tmp_path, "trials=8", "name=other")
    return tmp_path / "runs" / "other"


@pytest.mark.parametrize("name", ["journal.log", "spool.jsonl", "plan.json"])
def test_a_file_of_another_sweep_is_refused_by_name(dead: tuple[Path, float], tmp_path: Path, name: str) -> None:
    folder, _ = dead
    swept(tmp_path, "trials=8")
    shutil.copy(another(tmp_path) / name, folder / name)
    message = refused(tmp_path, "trials=8")
    assert "are of different sweeps" in message and f"mv {folder / name} " in message


# --- files deleted one at a time ---


@pytest.mark.parametrize(
    "name", ["trials.parquet", "epochs.parquet", "best.yaml", "space.yaml", "plan.json", "spool.jsonl", "spool.sent"]
)
def test_a_file_that_is_gone_is_made_again(dead: tuple[Path, float], tmp_path: Path, name: str) -> None:
    folder, _ = dead
    swept(tmp_path, "trials=9")
    (folder / "spool.sent").write_text("0 x\n")
    tables = {path.name: pd.read_parquet(path) for path in folder.glob("*.parquet")}
    best, sweep_id = (folder / "best.yaml").read_text(), SweepFolder(folder).read_plan()["sweep"]
    (folder / name).unlink()
    search, text = swept(tmp_path, "trials=9")
    for table, content in tables.items():
        pd.testing.assert_frame_equal(pd.read_parquet(folder / table), content)
    assert (folder / "best.yaml").read_text() == best and SweepFolder(folder).read_plan()["sweep"] == sweep_id
    assert search.state.num_started == 9 and not search.state.interrupted
    assert (f"{folder / name} is missing" in text) == (name in ("plan.json", "spool.jsonl"))


def test_the_same_space_and_data_are_wanted_though_the_plan_is_gone(
    dead: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, low = dead
    (folder / "plan.json").unlink()
    assert "optimizer.lr.log_uniform: was" in refused(tmp_path, "trials=8", from_lr(low))
    monkeypatch.setattr("tests.sweep.fake_sweep.FakeStore.fingerprint", "other data")
    assert "was as prepared, is now other data" in refused(tmp_path, "trials=8")
    (folder / "space.yaml").unlink()
    assert "plan.json and space.yaml are both missing" in refused(tmp_path, "trials=8")


def test_an_older_plan_does_not_undo_an_extension(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    older = (folder / "plan.json").read_bytes()
    words = ("trials=10", from_lr(low))
    swept(tmp_path, *words, "extend=true")
    newest, there = (folder / "plan.json").read_bytes(), states(folder)
    (folder / "plan.json").write_bytes(older)
    assert "plan.json is older than the journal" in refused(tmp_path, *words, "extend=true")
    assert "plan.json is older than the journal" in refused(tmp_path, "trials=8")
    (folder / "plan.json").unlink()
    assert "plan.json is missing: the sweep was extended 1 times" in refused(tmp_path, *words)
    (folder / "plan.json").write_bytes(newest)
    swept(tmp_path, *words)
    assert states(folder) == there


def test_what_was_spent_is_known_without_the_spool(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, _ = dead
    spent = swept(tmp_path, "trials=8")[0].state.ledger.total
    (folder / "spool.jsonl").unlink()
    assert swept(tmp_path, "trials=8")[0].state.ledger.total == pytest.approx(spent)


# --- checkpoints ---


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", [{"decay": 0.6}, {"epochs": 4}, {"seed": 1}])
def test_a_checkpoint_of_another_training_is_not_gone_on_from(
    tmp_path: Path, other: dict[str, Any], finished: bool
) -> None:
    """Of another trial, or of the first seed where this is a further one."""
    (tmp_path / "there").mkdir()
    foreign = worker_for(job(tmp_path / "there", number=5, **other))
    for _ in range(3 if finished else 1):
        foreign.step()
    foreign.cleanup()
    shutil.copytree(tmp_path / "there" / "checkpoints" / "5", tmp_path / "checkpoints" / "3")
    worker = worker_for(job(tmp_path, number=3))
    result = worker.step()
    assert epochs_of(result) == [1] and not result["done"]
    (note,) = result["notes"]
    path = tmp_path / "checkpoints/3/attempt-1/last.pt"
    assert note == f"{path}: belongs to another configuration; without it trial 3 is trained from epoch 1 on"
    assert worker.step()["notes"] == []
    worker.cleanup()


def test_a_driver_passes_on_what_its_workers_noticed(dead: tuple[Path, float], tmp_path: Path) -> None:
    def noticing(search: Search) -> None:
        for trial_id in ("a", "b"):
            trial = search.suggest(trial_id)
            reports = [report(trial, epoch) for epoch in range(1, 5)]
            search.on_trial_complete(trial_id, {"reports": reports, "notes": [f"note of {trial['number']}"]})

    _, text = swept(tmp_path, "trials=8", play=noticing)
    assert "warning: note of 6" in text and "warning: note of 7" in text
