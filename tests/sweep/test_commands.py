"""sweep.status and sweep.stop, on folders such as sweeps leave them; and the words of both and of sweep.clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmpkd.types import ConfigError
from sweep import clean, status, stop
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock
from sweep.storage.reader import continuing, read_sweep
from tests.sweep.folders import GOALS, add, driven, files, locked, make


def as_json(capsys: pytest.CaptureFixture[str], storage: Path, *words: str) -> dict[str, Any]:
    status.main([f"storage={storage}", "json=true", *words])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


# --- words ---


@pytest.mark.parametrize("command", [status, stop, clean])
def test_help_teaches(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {command.__name__}") and "examples" in text and "storage=runs" in text
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("command", [status, stop, clean])
def test_all_mistakes_at_once_with_near_names(command: Any, tmp_path: Path) -> None:
    make(tmp_path / "breast")
    with pytest.raises(ConfigError) as caught:
        command.main(["braest", f"storage={tmp_path}", "strage=x", "--delete", "other"])
    told = str(caught.value)
    assert "did you mean 'breast'" in told and "did you mean 'storage'" in told
    assert "--delete: words are key=value, without dashes; write" in told and "'braest' is named already" in told
    assert len(caught.value.mistakes) == 4


def test_a_mistake_is_status_2_without_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sweep.stop", f"storage={tmp_path}", "timeout=soon"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "timeout: a number of seconds above 0, got 'soon'" in done.stderr and "which sweep?" in done.stderr


def test_status_and_stop_load_no_engine() -> None:
    code = """if True:
        import sys
        import sweep.status, sweep.stop
        loaded = {"ray", "torch", "optuna", "mlflow", "pandas"} & set(sys.modules)
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# --- status ---


def test_counts_hours_and_best_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.9, 0.2, arm="tabular")
    add(spool, 2, "pruned", 0.99, 0.99, arm="tabular")  # higher, but not of an equal budget
    add(spool, 3, "open", 0.7, 0.1)
    spool.append("end", number=4, state="complete", error="")  # of a trial that nothing else is known of
    spool.append("telegram", number=0)
    (one,) = as_json(capsys, tmp_path)["sweeps"]
    assert [one[name] for name in ("complete", "pruned", "failed", "open", "planned")] == [2, 1, 0, 1, 8]
    assert one["state"] == "stopped" and one["space"] == "breast"
    assert one["device_hours"] == pytest.approx(4 * 2 * 900 * 0.5 / 3600)
    assert one["best"] == {"val/auroc": 0.9, "val/pointing": 0.4}
    assert one["arms"]["tabular"]["best"] == {"val/auroc": 0.9, "val/pointing": 0.2}
    assert one["arms"]["none"]["device_hours"] == pytest.approx(0.5)
    assert 0 <= one["seconds_since_last_event"] < 60


def test_an_epoch_heard_twice_is_paid_once_and_unknown_devices_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "open", 0.8, 0.4)
    metrics = dict.fromkeys(GOALS, 0.5)
    spool.append("epoch", number=0, arm="none", epoch=2, seconds=900.0, metrics=metrics, terms={})
    assert as_json(capsys, tmp_path)["sweeps"][0]["device_hours"] == pytest.approx(0.25)
    spool.append("epoch", number=9, arm="none", epoch=1, seconds=900.0, metrics=metrics, terms={})
    assert as_json(capsys, tmp_path)["sweeps"][0]["device_hours"] is None


def test_a_torn_line_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = make(tmp_path / "breast")
    add(spool, 0, "open", 0.8, 0.4)
    with spool.path.open("a") as file:
        file.write('{"event": "end", "number": 0, "sta')
    before = spool.path.read_bytes()
    assert as_json(capsys, tmp_path)["sweeps"][0]["open"] == 1
    assert spool.path.read_bytes() == before, "only read"


def test_best_of_several_seeds_is_their_mean_once_all_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = make(tmp_path / "breast", repeats=2)
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.95, 0.9)  # lucky perhaps: its second seed is not there yet
    add(spool, 2, "complete", 0.6, 0.2, of=0)
    (one,) = as_json(capsys, tmp_path)["sweeps"]
    assert one["best"] == pytest.approx({"val/auroc": 0.7, "val/pointing": 0.3})


def test_an_arm_that_reads_another_image_at_test_is_not_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = make(tmp_path / "breast", references=["superior"])
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.95, 0.9, arm="superior")
    (one,) = as_json(capsys, tmp_path)["sweeps"]
    assert one["best"] == {"val/auroc": 0.8, "val/pointing": 0.4}
    assert one["arms"]["superior"]["best"] == {"val/auroc": 0.95, "val/pointing": 0.9}


def test_running_is_whether_the_lock_is_held_and_asking_leaves_it(
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
    spool.append("close", status="FINISHED")
    assert as_json(capsys, tmp_path)["sweeps"][0]["state"] == "finished"
    spool.append("sweep", id="x")
    assert as_json(capsys, tmp_path)["sweeps"][0]["state"] == "stopped"


def test_the_command_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "runs" / "breast", words=["space=breast", "trials=8", "tracking=http://me:secret@host"])
    make(tmp_path / "runs" / "plain")
    breast, plain = (read_sweep(SweepFolder(tmp_path / "runs" / name)) for name in ("breast", "plain"))
    monkeypatch.chdir(tmp_path)
    assert continuing(breast) == "python -m sweep.run space=breast trials=8 'tracking=http://me:***@host'"
    resolved = f"space={tmp_path}/runs/plain/space.yaml name=plain storage={tmp_path}/runs"
    assert continuing(plain) == f"python -m sweep.run {resolved}"
    monkeypatch.chdir("/")  # the words it was started with would begin another one here
    moved = f"python -m sweep.run {resolved} 'tracking=http://me:***@host'".replace("plain", "breast")
    assert continuing(breast) == moved


def test_brackets_in_a_place_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a[red]b [" / "c]"
    status.main([f"storage={place}"])
    assert f"no sweeps under {place};" in capsys.readouterr().out


def test_the_table_and_where_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.main([f"storage={tmp_path / 'none'}"])
    told = capsys.readouterr().out
    assert "no sweeps under" in told and f"python -m sweep.run storage={tmp_path / 'none'}" in told
    add(make(tmp_path / "breast"), 0, "complete", 0.8, 0.4)
    status.main([f"storage={tmp_path}"])
    told = capsys.readouterr().out
    assert "1 complete of 8" in told and "val/auroc 0.800" in told and "none" in told
    assert f"python -m sweep.run space={tmp_path}/breast/space.yaml" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "spool.jsonl").touch()
    (tmp_path / "other" / "plan.json").write_text("{")
    status.main([f"storage={tmp_path}"])
    told = capsys.readouterr().out
    assert "1 complete of 8" in told and f"warning: {tmp_path}/other/plan.json: is not JSON" in told


# --- stop ---


def test_stop_asks_waits_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "breast"
    add(make(folder), 0, "open", 0.8, 0.4)
    with driven(folder) as driver:
        stop.main(["breast", f"storage={tmp_path}"])
        assert driver.wait(10) == 0, "it let go because it was asked to"
    told = capsys.readouterr().out
    assert "breast has stopped" in told and f"python -m sweep.run space={folder}/space.yaml" in told
    assert "stop" not in files(folder), "or the next driver would stop at once"


def test_stop_of_one_that_does_not_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "breast")
    before = files(tmp_path)
    stop.main(["breast", f"storage={tmp_path}"])
    assert "breast is not running" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_a_driver_that_does_not_hear_is_waited_for_so_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "breast")
    with locked(tmp_path / "breast" / "driver.lock"), pytest.raises(SystemExit) as caught:
        stop.main(["breast", f"storage={tmp_path}", "timeout=0.3"])
    assert caught.value.code == 1
    told = capsys.readouterr().out
    assert "still runs after 0.3 s (process 7 on a-machine)" in told and "waits on" in told
    assert "breast/stop" in files(tmp_path), "the request stands"
