"""The fault campaign in its small form, and what its verdict notices."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from benchmarks.attempts import Loss
from benchmarks.chaos.verdict import lost_trials, trained_twice, wrong_epochs
from benchmarks.fault_campaign import SHARE, schedule, with_own_mounts
from benchmarks.witness import lines_of

ROOT = Path(__file__).parents[2]
FAULTS, TRIALS, EPOCHS = 6, 20, 6  # a fault of each kind; many trials may end while the sweep recovers from one
# What a machine without root can do, without a tracking server, whose start takes longest.
KINDS = (
    "worker killed",
    "driver killed",
    "checkpoint corrupted",
    "trial always raises",
    "raylet killed",
    "loss is NaN",
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the campaign once, and returns its folder."""
    folder = tmp_path_factory.mktemp("campaign")
    command = [sys.executable, "benchmarks/fault_campaign.py", f"--folder={folder}", f"--json={folder / 'result.json'}"]
    command += [f"--faults={FAULTS}", f"--trials={TRIALS}", "--nodes=2", f"--epochs={EPOCHS}", "--seconds=0.5"]
    done = subprocess.run([*command, f"--kinds={','.join(KINDS)}"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    (folder / "status").write_text(str(done.returncode))
    return folder


def test_a_sweep_survives_a_fault_of_each_kind(campaign: Path) -> None:
    result = json.loads((campaign / "result.json").read_text())
    assert result["passed"] and (campaign / "status").read_text() == "0", result["wrong"]
    kinds = Counter(fault["kind"] for fault in result["faults"])
    assert kinds.total() == FAULTS and set(kinds) == set(KINDS)
    table = pd.read_parquet(campaign / "storage" / "campaign" / "trials.parquet")
    causes = Counter(table.loc[table["state"] == "failed", "cause"])
    assert causes == {"error": kinds["trial always raises"], "diverged": kinds["loss is NaN"]}


def test_the_verdict_notices_what_is_lost_or_doubled(campaign: Path, tmp_path: Path) -> None:
    folder, tracking = tmp_path / "campaign", f"sqlite:///{campaign / 'tracking.db'}"
    shutil.copytree(campaign / "storage" / "campaign", folder)
    lines = lines_of(campaign)
    table = pd.read_parquet(folder / "trials.parquet")
    epochs = dict(zip(table["number"], table["epochs"], strict=True))
    number = int(table.loc[table["state"] == "complete", "number"].iloc[0])

    assert not trained_twice(folder, lines, epochs)
    last = next(line for line in lines if line[1:3] == ("ends", number) and line.epoch == EPOCHS)
    assert trained_twice(folder, [*lines, last], epochs) == [f"trial {number} was trained to its end more than once"]

    fewer = [line for line in lines if line != last]
    mistakes = wrong_epochs(folder, tracking, fewer, [], set(range(TRIALS)), TRIALS)
    assert f"trial {number}: epochs [1, 2, 3, 4, 5] were trained, the table says {EPOCHS}" in mistakes

    table.loc[table["number"] == number, "epochs"] = EPOCHS - 1
    table.to_parquet(folder / "trials.parquet")
    mistakes = wrong_epochs(folder, tracking, lines, [], set(range(TRIALS)), TRIALS)
    assert f"trial {number}: the journal has {EPOCHS} epochs, the table {EPOCHS - 1}" in mistakes
    assert f"trial {number}: MLflow has epochs [1, 2, 3, 4, 5, 6], the table {EPOCHS - 1}" in mistakes

    assert not lost_trials(folder, campaign / "orders", TRIALS)
    table[table["number"] != number].to_parquet(folder / "trials.parquet")
    assert lost_trials(folder, campaign / "orders", TRIALS) == [f"trial {number} is in no table"]
    (tmp_path / "no orders").mkdir()
    assert any(
        "failed: ValueError: ordered to raise" in line for line in lost_trials(folder, tmp_path / "no orders", 0)
    )


def test_seconds_of_a_loss_in_which_nothing_could_be_copied() -> None:
    loss = Loss(number=0, attempt=1, epochs=3, first=10.0, last=20.0, longest=1.0)
    assert loss.seconds_within([]) == loss.seconds_within([(0, 9), (21, 30)]) == 0
    assert loss.seconds_within([(17, 30), (5, 12), (11, 13)]) == 2 + 1 + 3


def test_a_seed_decides_kinds_and_moments() -> None:
    first, again, other = (schedule(["a", "b", "c"], 50, 40, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(Counter(kind for _, kind in first).values()) == [16, 17, 17]
    assert all(0 <= due <= SHARE * 40 for due, _ in first) and first == sorted(first, key=lambda fault: fault[0])


def test_kinds_that_need_root_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    console = Console(file=io.StringIO(), width=160)
    assert with_own_mounts(["storage full", "worker killed"], console) == (["worker killed"], False)
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "left out, because they need root and `unshare --mount`: storage full\n"
    )
