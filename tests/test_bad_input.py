"""Mistakes of users, through the command itself: one screen, status 2, and no partial files.

The cases are those of the project's list; how each is found is tested where it is found.
"""

from __future__ import annotations

import fcntl
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mmpkd import command
from sweep.run import main as sweep
from tests.mmpkd.cohort_fixtures import PARAMS, cases, write_cohort, write_mask

STUDENT = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
LOGITS = "arms.tabular.objectives.logits"


def space_file(folder: Path) -> Path:
    """Writes a small valid space on a small valid cohort; each case damages one of them."""
    write_cohort(folder / "raw")
    content = {
        "cohort": {"reader": "table", "root": str(folder / "raw"), "image_size": 16, "params": PARAMS},
        "student": STUDENT,
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-3]}},
        "epochs": 1,
        "arms": {"tabular": {"teachers": {"t": {"kind": "tabular"}}, "objectives": {"logits": {}}}},
        "search": {"trials": 2},
    }
    path = folder / "spoilt.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def damaged_image(folder: Path) -> None:
    image = folder / "raw" / "images" / "case3.png"
    image.write_bytes(image.read_bytes()[:40])


def one_class(folder: Path) -> None:
    table = cases()
    table["pathology"] = "benign"
    write_cohort(folder / "raw", table)


def other_space(folder: Path) -> None:
    (folder / "runs" / "spoilt").mkdir(parents=True)
    (folder / "runs" / "spoilt" / "space.yaml").write_text("epochs: 7\n")


CASES: dict[str, tuple[Callable[[Path], object] | None, list[str], list[str]]] = {
    "unknown space": (None, ["space=braest"], ["'braest' is no space", "did you mean 'breast'"]),
    "misspelt key at depth": (
        None,
        [f"{LOGITS}.params.temprature=2"],
        [f"{LOGITS}.params.temprature: unknown key", "'temperature'"],
    ),
    "one in the space, one in the plan": (
        None,
        ["optimizer.lr={log_uniform: [1, 0.1]}", f"{LOGITS}.kind=logit"],
        ["2 mistakes", "optimizer.lr", f"{LOGITS}.kind: unknown objective 'logit'"],
    ),
    "a wrong key hides nothing": (
        None,
        ["student.dpeth=3", "cohort.imgae_size=9", "arms.tabular.teachers.t.params.columns=[biopsy]"],
        ["3 mistakes", "'depth'", "'image_size'", "'biopsy' is forbidden"],
    ),
    "low above high": (None, ["optimizer.lr={uniform: [1, 0.1]}"], ["optimizer.lr", "low 1 is above high 0.1"]),
    "log range touching 0": (None, ["optimizer.lr={log_uniform: [0, 1]}"], ["optimizer.lr", "above 0"]),
    "word beside siblings": (
        None,
        ["optimizer={lr: {uniform: [0, 1], base: 10}}"],
        ["optimizer.lr", "uniform", "base"],
    ),
    "layer beyond depth": (
        None,
        ["arms.tabular.objectives={features: {params: {layer: {int: [1, 2]}}}}"],
        ["arms.tabular.objectives.features.params.layer: the student's blocks are 0 to 1, got 2"],
    ),
    "forbidden column": (None, ["arms.tabular.teachers.t.params.columns=[biopsy]"], ["'biopsy' is forbidden"]),
    "near-label column": (None, ["arms.tabular.teachers.t.params.columns=[birads]"], ["'birads'", "near_label:"]),
    "unlisted column": (None, ["arms.tabular.teachers.t.params.columns=[scanner]"], ["'scanner' has no role"]),
    "missing root": (None, ["cohort.root=/no/such/place"], ["/no/such/place", "cohort.root=DIR"]),
    "image that does not decode": (damaged_image, [], ["case3.png", "cohort.max_bad="]),
    "mask of another size": (
        lambda folder: write_mask(folder / "raw" / "masks" / "case4.png", (9, 9)),
        [],
        ["case4.png", "9", "30", "cohort.max_bad="],
    ),
    "task with one class": (one_class, [], ["malignant", "one class"]),
    "weights not on disk": (
        None,
        ["student={model: vit_small_patch16_224, pretrained: true}", "cohort.image_size=224"],
        ["student.pretrained", "not on this machine", "hf download"],
    ),
    "name of another space": (other_space, [], ["a sweep of a different space", "absent", "name="]),
}


def files(folder: Path) -> list[str]:
    """Returns all files below a folder that are not empty; empty lock files are no results."""
    result = (
        path
        for path in folder.rglob("*")
        if path.is_file() and not (path.suffix == ".lock" and not path.stat().st_size)
    )
    return sorted(f"{path.relative_to(folder)} {path.stat().st_size}" for path in result)


def printed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the text that the command prints to stderr before it ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["sweep.run", *words])
    monkeypatch.setenv("HF_HUB_CACHE", "/no/such/cache")
    with pytest.raises(SystemExit) as stopped, command.command_line():
        sweep(words)
    message = capsys.readouterr().err
    assert stopped.value.code == 2, message
    assert "Traceback" not in message and len(message.splitlines()) < 25
    return message


@pytest.mark.parametrize("case", CASES)
def test_one_screen_status_2_and_nothing_left(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words, expected = CASES[case]
    where = [f"space={space_file(tmp_path)}", f"storage={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    if spoil:
        spoil(tmp_path)
    before = files(tmp_path)
    message = printed([*where, *words], monkeypatch, capsys)
    for entry in expected:
        assert entry in message, message
    left = [entry for entry in files(tmp_path) if entry not in before and "driver.lock" not in entry]
    assert left == []


def test_a_second_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    space = space_file(tmp_path)
    folder = tmp_path / "runs" / "spoilt"
    folder.mkdir(parents=True)
    with (folder / "driver.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 1 on elsewhere\n")
        held.flush()
        message = printed(
            [f"space={space}", f"storage={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"], monkeypatch, capsys
        )
    assert "another driver runs this sweep (process 1 on elsewhere)" in message


@pytest.mark.parametrize("place", ["a file", "read-only"])
def test_storage_that_cannot_be_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    storage = tmp_path / "file" if place == "a file" else Path("/proc/nothing")
    message = printed(
        [f"space={space_file(tmp_path)}", f"storage={storage}", f"cache={tmp_path / 'cache'}"], monkeypatch, capsys
    )
    assert "cannot be written there" in message and "storage=DIR" in message


def test_a_disk_that_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel refuses every file beyond 10 kB, as a full disk would."""
    words = [f"space={space_file(tmp_path)}", f"storage={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        message = printed(words, monkeypatch, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "does not fit on the disk" in message and "cache=DIR" in message
    assert not [entry for entry in files(tmp_path) if entry.startswith(("cache", "runs"))]
