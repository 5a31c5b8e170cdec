"""Tests sweep.clean on folders such as sweeps leave."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmpkd.types import ConfigError, UserError
from sweep import clean
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from tests.sweep.folders import add, driven, files, locked, make


def swept(tmp_path: Path) -> Path:
    """A sweep whose driver was killed: two trials on the front and two more among the four best, one dominated, one
    pruned, one open.
    """
    spool = make(tmp_path / "breast")
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "complete", 0.9, 0.2)
    add(spool, 2, "complete", 0.79, 0.4)
    add(spool, 3, "pruned", 0.99, 0.99)
    add(spool, 4, "open", 0.1, 0.1)
    add(spool, 5, "complete", 0.795, 0.1)
    add(spool, 6, "complete", 0.795, 0.1)
    folder = tmp_path / "breast"
    (folder / "checkpoints" / "77" / "attempt-1").mkdir(parents=True)  # begun, and not in the spool yet
    (folder / "checkpoints" / "77" / "attempt-1" / "last.pt").touch()
    (folder / "checkpoints" / "4" / "attempt-1" / "last.partial").write_bytes(b"x" * 7)
    (folder / "checkpoints" / "3" / "attempt-1" / "last.partial").write_bytes(b"x" * 7)
    (folder / ".best.yaml.partial").write_bytes(b"x" * 5)
    for name in ("best.yaml", "journal.log", "trials.parquet", "report.html"):
        (folder / name).touch()
    return folder


def test_clean_only_lists_unless_delete_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = swept(tmp_path)
    before = files(tmp_path)
    clean.main([f"storage={tmp_path}"])
    output = capsys.readouterr().out
    assert files(tmp_path) == before
    assert re.findall(r"checkpoints/(\d+)  \(", output) == ["2", "3"]
    assert f"{100 + 107 + 7 + 5} bytes in 4 places can be deleted" in output and "delete=true" in output
    clean.main(["breast", f"storage={tmp_path}", "delete=true"])
    assert "deleted 219 bytes in 4 places" in capsys.readouterr().out
    assert before - files(tmp_path) == {
        "breast/checkpoints/2/attempt-1/last.pt",
        "breast/checkpoints/3/attempt-1/last.pt",
        "breast/checkpoints/3/attempt-1/last.partial",
        "breast/checkpoints/4/attempt-1/last.partial",
        "breast/.best.yaml.partial",
    }
    assert not (folder / "checkpoints" / "2").exists()
    clean.main([f"storage={tmp_path}", "delete=true"])
    assert "nothing to clean" in capsys.readouterr().out


def test_a_running_sweep_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(tmp_path)
    before = files(tmp_path)
    with driven(tmp_path / "breast"):
        clean.main([f"storage={tmp_path}", "delete=true"])
    assert "breast is running, and is not touched" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_a_configuration_that_waits_for_its_seeds_may_join_the_front(tmp_path: Path) -> None:
    spool = make(tmp_path / "breast", repeats=2)
    add(spool, 0, "complete", 0.9, 0.9)
    add(spool, 1, "complete", 0.9, 0.9, of=0)
    add(spool, 2, "complete", 0.5, 0.5)  # its further seed has not ended yet
    assert clean.settled_numbers(read_sweep(SweepFolder(tmp_path / "breast"))) == [1]


def test_references_do_not_displace_trials_and_a_tie_keeps_the_lower_number(tmp_path: Path) -> None:
    """Six trials have equal AUROC, and the last of them is alone on the front. The trials from 10 on read another image
    at test, and dominate all.
    """
    spool = make(tmp_path / "breast", references=["superior"])
    for number in range(6):
        add(spool, number, "complete", 0.8, 0.4 if number == 5 else 0.3)
    for number in range(10, 15):
        add(spool, number, "complete", 0.9, 0.9 - 0.01 * number, arm="superior")
    assert clean.settled_numbers(read_sweep(SweepFolder(tmp_path / "breast"))) == [4, 14]


def cached(cache: Path, kind: str, name: str, **manifest: str) -> None:
    (cache / kind / name).mkdir(parents=True)
    (cache / kind / name / "manifest.json").write_text(json.dumps(manifest))
    (cache / kind / f"{name.removesuffix('.partial')}.lock").touch()


def test_the_cache_keeps_files_that_a_plan_names_and_files_being_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, cache = tmp_path / "runs", tmp_path / "cache"
    make(storage / "breast", store="aa11")
    for store in ("aa11", "bb22", "cc33.partial", "dd44.partial"):
        cached(cache, "stores", f"table-{store}")
    cached(cache, "teachers", "tabular-1", cohort="aa11")
    cached(cache, "teachers", "tabular-2", cohort="bb22")
    for teacher, cohort in (("vlm-3", "aa11"), ("vlm-4", "bb22"), ("vlm-5", "bb22")):  # which still learn
        cached(cache, "teachers", f"{teacher}.training", cohort=cohort)
    for teacher in ("vlm-5", "vlm-6"):  # of which the first is being written
        cached(cache, "teachers", f".{teacher}.0f0f0f0f.partial", cohort="aa11")
    (cache / "stages").mkdir()
    for stage in ("aa11-1.pt", "bb22-2.pt", "bb22-3.pt.0f.partial"):
        (cache / "stages" / stage).touch()
    clean.main([f"storage={storage}", "delete=true"])
    assert (cache / "stores" / "table-bb22").exists(), "only with unused=true"
    with locked(cache / "stores" / "table-dd44.lock"), locked(cache / "teachers" / "vlm-5.lock"):
        clean.main([f"storage={storage}", f"cache={cache}", "unused=true", "delete=true"])
    left = {path.name for path in cache.glob("*/*") if path.is_dir()}
    unfinished = {"table-dd44.partial", "vlm-3.training", "vlm-5.training", ".vlm-5.0f0f0f0f.partial"}
    assert left == {"table-aa11", "tabular-1", *unfinished}
    assert [path.name for path in (cache / "stages").iterdir() if path.suffix != ".lock"] == ["aa11-1.pt"]


def test_the_cache_is_kept_while_the_plan_of_a_sweep_is_missing(tmp_path: Path) -> None:
    storage, cache = tmp_path / "runs", tmp_path / "cache"
    make(storage / "breast")
    cached(cache, "stores", "table-bb22")
    (storage / "new").mkdir()
    words = [f"storage={storage}", f"cache={cache}", "unused=true", "delete=true"]
    with locked(storage / "new" / "driver.lock"), pytest.raises(UserError, match="try again later"):
        clean.main(words)
    assert (cache / "stores" / "table-bb22").exists()
    with pytest.raises(ConfigError, match="it is unknown what is needed"):
        clean.main([f"storage={tmp_path / 'typo'}", *words[1:]])
    assert (cache / "stores" / "table-bb22").exists()
