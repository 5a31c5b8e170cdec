"""Tests sweep.status and sweep.stop on folders as sweeps leave them, and the command lines of all commands but run."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmpkd.machine.checksums import sealed
from mmpkd.types import ConfigError
from sweep import clean, pick, status, stop
from sweep.options import read_run_options, read_sweep_options
from sweep.storage.events import EpochEnded, SweepBegan, SweepClosed, TrialEnded
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import hold_driver_lock
from sweep.storage.reader import continue_command, read_sweep
from tests.patched import patch_within
from tests.sweep.folders import GOALS, add, driven, files, locked, make


def as_json(capsys: pytest.CaptureFixture[str], storage: Path, *words: str) -> dict[str, Any]:
    status.main([f"storage={storage}", "json=true", *words])
    output: dict[str, Any] = json.loads(capsys.readouterr().out)
    return output


def in_one_line(output: str) -> str:
    return re.sub(r" \\\n +", " ", output)


# --- words ---


@pytest.mark.parametrize("command", [status, stop, clean, pick])
def test_all_mistakes_are_shown_together_with_near_names(command: Any, tmp_path: Path) -> None:
    make(tmp_path / "breast")
    with pytest.raises(ConfigError) as caught:
        command.main(["braest", f"storage={tmp_path}", "strage=x", "--delete", "other"])
    output = str(caught.value)
    assert "did you mean 'breast'" in output and "did you mean 'storage'" in output
    assert "--delete: words are key=value, without dashes; write" in output and "'braest' is named already" in output
    assert len(caught.value.mistakes) == 4


def test_an_empty_folder_is_not_the_current_one() -> None:
    """As of a variable of the shell that is not set."""
    defaults = {"name": "", "storage": "runs", "json": "false", "cache": "cache"}
    values, mistakes = read_sweep_options(["name=", "storage=", "json=", "cache="], defaults)
    assert [mistake.path for mistake in mistakes] == ["json", "storage", "cache"]
    assert mistakes[1].problem == "is empty; write a value, or leave the word out for storage=runs"
    assert values | {"json": "false"} == defaults
    with pytest.raises(ConfigError, match="cache: is empty"):
        read_run_options(["space=demo", "cache="])


@pytest.mark.parametrize(
    ("name", "word", "suggestion"),
    [
        ("train", "confg=best.yaml", "config"),
        ("predict", "tabel=patients.csv", "table"),
        ("export", "tp=onnx", "to"),
        ("evaluate", "confg=best.yaml", "config"),
    ],
)
def test_a_misspelt_word_of_mmpkd_is_shown_with_a_near_name(name: str, word: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{suggestion}'"):
        importlib.import_module(f"mmpkd.{name}{'.__main__' * (name == 'export')}").main([word])


def test_a_mistake_is_status_2_without_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sweep.stop", f"storage={tmp_path}", "timeout=soon"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "timeout: expected a number of seconds above 0, got 'soon'" in done.stderr and "which sweep?" in done.stderr


# --- status ---


def test_counts_hours_and_best_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.9, 0.2, arm="tabular")
    add(spool, 2, "pruned", 0.99, 0.99, arm="tabular")  # higher, but not of an equal budget
    add(spool, 3, "open", 0.7, 0.1)
    spool.append(TrialEnded(number=4, state="complete", error=""))  # of a trial without any other event
    with spool.path.open("a") as file:  # of a later version
        file.write(sealed({"event": "telegram", "time": 0.0, "number": 0}) + "\n")
    (sweep,) = as_json(capsys, tmp_path)["sweeps"]
    assert [sweep[name] for name in ("complete", "pruned", "failed", "open", "planned")] == [2, 1, 0, 1, 8]
    assert sweep["state"] == "stopped" and sweep["space"] == "breast"
    assert sweep["device_hours"] == pytest.approx(4 * 2 * 900 * 0.5 / 3600)
    assert sweep["best"] == {"val/auroc": 0.9, "val/pointing": 0.4}
    assert sweep["arms"]["tabular"]["best"] == {"val/auroc": 0.9, "val/pointing": 0.2}
    assert sweep["best_trials"] == {"val/auroc": 1, "val/pointing": 0}
    assert sweep["arms"]["tabular"]["best_trials"] == {"val/auroc": 1, "val/pointing": 1}
    assert sweep["arms"]["none"]["device_hours"] == pytest.approx(0.5)
    assert 0 <= sweep["seconds_since_last_event"] < 60


def test_a_repeated_epoch_counts_once_and_unknown_devices_give_no_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "open", 0.8, 0.4)
    metrics = dict.fromkeys(GOALS, 0.5)
    spool.append(EpochEnded(number=0, arm="none", epoch=2, seconds=900.0, metrics=metrics, terms={}))
    assert as_json(capsys, tmp_path)["sweeps"][0]["device_hours"] == pytest.approx(0.25)
    spool.append(EpochEnded(number=9, arm="none", epoch=1, seconds=900.0, metrics=metrics, terms={}))
    assert as_json(capsys, tmp_path)["sweeps"][0]["device_hours"] is None


def test_a_torn_line_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "open", 0.8, 0.4)
    with spool.path.open("a") as file:
        file.write('{"event": "end", "number": 0, "sta')
    before = spool.path.read_bytes()
    assert as_json(capsys, tmp_path)["sweeps"][0]["open"] == 1
    assert spool.path.read_bytes() == before, "status only reads"


def test_the_best_of_several_seeds_is_their_mean_once_all_are_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = make(tmp_path / "breast", repeats=2)
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.95, 0.9)  # lucky perhaps: its second seed is not there yet
    add(spool, 2, "complete", 0.6, 0.2, of=0)
    (sweep,) = as_json(capsys, tmp_path)["sweeps"]
    assert sweep["best"] == pytest.approx({"val/auroc": 0.7, "val/pointing": 0.3})


def test_whether_a_trial_beats_maps_that_ignore_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean over two seeds counts, and no arm that reads another image at test."""
    spool = make(tmp_path / "breast", repeats=2, references=["superior"])
    for number, pointing, arm, of in ((0, 0.4, "none", None), (1, 0.6, "none", 0), (2, 0.9, "superior", None)):
        add(spool, number, "complete", 0.8, pointing, arm, of)
    for number, prior in ((0, 0.3), (1, 0.5)):
        metrics = {"val/auroc": 0.8, "val/pointing": 0.4 + 0.2 * number, "val/pointing_prior": prior}
        spool.append(EpochEnded(number=number, arm="none", epoch=2, seconds=1.0, metrics=metrics, terms={}))
    status.main([f"storage={tmp_path}"])
    output = " ".join(capsys.readouterr().out.split())
    line = "val/pointing: the only trial beats the maps that ignore the image; the best, trial 0, has 0.500, and 0.400"
    assert f"{line} is reached by the mean training ROI" in output


def test_an_arm_that_reads_another_image_at_test_is_not_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = make(tmp_path / "breast", references=["superior"])
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.95, 0.9, arm="superior")
    (sweep,) = as_json(capsys, tmp_path)["sweeps"]
    assert sweep["best"] == {"val/auroc": 0.8, "val/pointing": 0.4}
    assert sweep["arms"]["superior"]["best"] == {"val/auroc": 0.95, "val/pointing": 0.9}


def test_a_sweep_runs_while_its_lock_is_held_and_status_leaves_the_lock_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "breast")
    lock = tmp_path / "breast" / "driver.lock"
    with locked(lock):
        assert as_json(capsys, tmp_path)["sweeps"][0]["state"] == "running"
    assert lock.read_text() == "process 7 on a-machine\n"
    assert as_json(capsys, tmp_path)["sweeps"][0]["state"] == "stopped"
    with hold_driver_lock(SweepFolder(tmp_path / "breast")):  # is free for a driver
        pass


def test_finished_until_a_driver_starts_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "complete", 0.8, 0.4)
    spool.append(SweepClosed(status="FINISHED"))
    assert as_json(capsys, tmp_path)["sweeps"][0]["state"] == "finished"
    spool.append(SweepBegan(id="x"))
    assert as_json(capsys, tmp_path)["sweeps"][0]["state"] == "stopped"


def test_the_command_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "runs" / "breast", words=["space=breast", "trials=8", "tracking=http://me:secret@host"])
    make(tmp_path / "runs" / "plain")
    breast, plain = (read_sweep(SweepFolder(tmp_path / "runs" / name)) for name in ("breast", "plain"))
    monkeypatch.chdir(tmp_path)
    assert continue_command(breast) == "python -m sweep.run space=breast trials=8 'tracking=http://me:***@host'"
    resolved = f"space={tmp_path}/runs/plain/space.yaml name=plain storage={tmp_path}/runs"
    assert continue_command(plain) == f"python -m sweep.run {resolved}"
    monkeypatch.chdir("/")  # from here the words of the first start would begin another sweep
    moved = f"python -m sweep.run {resolved} 'tracking=http://me:***@host'".replace("plain", "breast")
    assert continue_command(breast) == moved


def test_the_command_that_continues_a_sweep_of_a_cluster(tmp_path: Path) -> None:
    """Without the address, it would run the sweep on one machine."""
    spool = make(tmp_path / "runs" / "breast")
    spool.append(SweepBegan("x", ["space=breast", f"storage={tmp_path / 'runs'}"], cluster="10.0.0.1:20000"))
    command = continue_command(read_sweep(spool.folder))
    assert command == f"RAY_ADDRESS=10.0.0.1:20000 python -m sweep.run space=breast storage={tmp_path / 'runs'}"


@pytest.mark.parametrize(("address", "prefix"), [("auto", "RAY_ADDRESS=auto "), ("local", ""), ("", "")])
def test_the_command_that_the_driver_prints(address: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    options, _ = read_run_options(["space=demo", "trials=3"])
    assert options.command == f"{prefix}python -m sweep.run space=demo trials=3"


def test_brackets_in_a_path_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a[red]b [" / "c]"
    status.main([f"storage={place}"])
    assert f"no sweeps under {place};" in capsys.readouterr().out


def test_the_table_and_an_empty_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.main([f"storage={tmp_path / 'none'}"])
    output = capsys.readouterr().out
    assert "no sweeps under" in output and f"python -m sweep.run storage={tmp_path / 'none'}" in output
    add(make(tmp_path / "breast"), 0, "complete", 0.8, 0.4)
    status.main([f"storage={tmp_path}"])
    output = capsys.readouterr().out
    assert "1 complete of 8" in output and "val/auroc 0.800" in output and "none" in output
    assert f"python -m sweep.run space={tmp_path}/breast/space.yaml" in in_one_line(output)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "spool.jsonl").touch()
    (tmp_path / "other" / "plan.json").write_text("{")
    status.main([f"storage={tmp_path}"])
    output = capsys.readouterr().out
    assert "1 complete of 8" in output and f"warning: {tmp_path}/other/plan.json: is not JSON" in output


# --- stop ---


def test_stop_requests_waits_and_shows_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "breast"
    add(make(folder), 0, "open", 0.8, 0.4)
    with driven(folder) as driver:
        stop.main(["breast", f"storage={tmp_path}"])
        assert driver.wait(10) == 0, "it ends because of the request"
    output = capsys.readouterr().out
    assert "breast has stopped" in output and f"python -m sweep.run space={folder}/space.yaml" in in_one_line(output)
    assert "stop" not in files(folder), "or the next driver would stop at once"


def test_stop_writes_nothing_if_the_sweep_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "breast")
    before = files(tmp_path)
    stop.main(["breast", f"storage={tmp_path}"])
    assert "breast is not running" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_stop_gives_up_after_the_timeout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "breast")
    with locked(tmp_path / "breast" / "driver.lock"), pytest.raises(SystemExit) as caught:
        stop.main(["breast", f"storage={tmp_path}", "timeout=0.3"])
    assert caught.value.code == 1
    output = capsys.readouterr().out
    assert "still runs after 0.3 s (process 7 on a-machine)" in output and "the same command waits again" in output
    assert "breast/stop" in files(tmp_path), "the request remains"


# --- status, watched ---


def test_a_watched_sweep_reads_only_what_is_new(tmp_path: Path) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "complete", 0.8, 0.4)
    folder = SweepFolder(tmp_path / "breast")
    first = read_sweep(folder)
    assert first.read_to == spool.path.stat().st_size
    content = spool.path.read_bytes()
    spool.path.write_bytes(b"x" * (len(content) - 1) + b"\n")  # it would be damage if it were read again
    add(spool, 1, "pruned", 0.9, 0.2)
    again = read_sweep(folder, first)
    assert [(number, trial.state) for number, trial in again.trials.items()] == [(0, "complete"), (1, "pruned")]
    assert again.drivers == 1 and not again.damaged
    spool.path.write_bytes(content)  # shorter: another spool, which is read from its beginning
    assert list(read_sweep(folder, again).trials) == [0]


def test_without_a_terminal_a_watched_sweep_is_a_line_for_each_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "complete", 0.8, 0.4)
    pauses = iter([lambda: None, lambda: add(spool, 1, "pruned", 0.9, 0.2)])

    def sleep(seconds: float) -> None:
        step = next(pauses, None)
        if step is None:
            raise KeyboardInterrupt  # as Ctrl-C does, which ends the command without an error
        step()

    patch_within(monkeypatch, status, time, sleep=sleep)
    status.main(["breast", f"storage={tmp_path}", "watch=true"])
    lines = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    best = "best val/auroc 0.800 (trial 0); best val/pointing 0.400 (trial 0)"
    assert lines == [f"breast: stopped; 1 complete of 8; {best}", f"breast: stopped; 1 complete, 1 pruned of 8; {best}"]
    with pytest.raises(ConfigError, match="leave out json=true"):
        status.main(["breast", f"storage={tmp_path}", "watch=true", "json=true"])


def test_a_page_that_is_too_long_says_how_much_is_left_out(tmp_path: Path) -> None:
    for name in ("breast-first-look", "chest_of_the_second_year"):
        add(make(tmp_path / name), 0, "complete", 0.8, 0.4)
    sweeps, storage = [read_sweep(SweepFolder(path)) for path in sorted(tmp_path.iterdir())], Storage(tmp_path)
    whole, cut = (
        status._page(sweeps, [], storage, [], Console(width=80, height=height)).plain.split("\n") for height in (24, 6)
    )
    assert "".join(line.split()[0] for line in whole[2:4]) == "breast-first-look", "names are broken at their signs"
    assert len(cut) == 5 and cut[:4] == whole[:4]
    assert cut[4] == f"{len(whole) - 4} more lines: use a taller terminal, or leave out watch=true"
