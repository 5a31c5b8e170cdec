"""Exports in the formats of other software give the student's probabilities in a process without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_students import BINARY, MULTICLASS, MULTILABEL, SIZE, write_student
from PIL import Image

from mmpkd.cohort.decode import Clahe, Depth, read_image, to_stored_square
from mmpkd.export import formats, student_file, to_onnx, usage
from mmpkd.export.__main__ import HELP, main
from mmpkd.export.formats import FORMATS, Format
from mmpkd.predict import Predictor
from mmpkd.types import ConfigError, UserError

# Runs the Python code of README.md in each folder, where the package cannot be imported.
RUNNER = """
import pathlib, re, sys
sys.modules["mmpkd"] = None
image, *folders = sys.argv[1:]
for folder in folders:
    (code,) = re.findall("```python\\n(.*?)```", (pathlib.Path(folder) / "README.md").read_text(), re.DOTALL)
    sys.argv = ["-c", folder, image]
    exec(code, {})
"""
MIXED = [*BINARY, *MULTICLASS, ("signs", "multilabel", ("halo", "spicules, long"))]
CASES: dict[str, dict[str, Any]] = {
    "mixed": {"tasks": MIXED, "channels": 3, "map": "cls_attention_all"},
    "joint": {"tasks": MULTILABEL, "joint": True, "map": "rollout"},
    "superior": {"tasks": BINARY, "joint": False},
}
EXPORTS = [("mixed", "timm"), ("mixed", "hub"), ("mixed", "onnx"), ("joint", "onnx")]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student with every kind of task that sees colours, and guided ones."""
    folder = tmp_path_factory.mktemp("students")
    return {name: write_student(folder / name, **options) for name, options in CASES.items()}


@pytest.fixture(scope="module")
def exports(students: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The folders of EXPORTS, written once for all tests."""
    folders = {(name, to): tmp_path_factory.mktemp("exports") / to for name, to in EXPORTS}
    for (name, to), folder in folders.items():
        main([f"model={students[name]}", f"to={to}", f"out={folder}"])
    return folders


def test_an_export_gives_the_students_probabilities_without_this_package(
    students: dict[str, Path], exports: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """For a picture in colour with transparent and half transparent pixels that is wider than high."""
    pixels = np.random.default_rng(0).integers(0, 256, (41, 67, 4), np.uint8)
    pixels[:20, :30, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "case.png")
    command = [sys.executable, "-c", RUNNER, str(tmp_path / "case.png"), *map(str, exports.values())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (name, to), line in zip(exports, done.stdout.splitlines(), strict=True):
        wanted, given = Predictor(students[name])(tmp_path / "case.png").probabilities, json.loads(line)
        assert list(given) == list(wanted)
        assert np.allclose(list(given.values()), list(wanted.values()), rtol=0, atol=1e-5), (name, to)


@pytest.mark.parametrize(("name", "to"), [("joint", "timm"), ("superior", "hub")])
def test_plain_weights_cannot_hold_a_guided_student(
    name: str, to: str, students: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=f"guided: guidance.{name} computes its logits.*write to=onnx or to=mlflow instead"
    ):
        main([f"model={students[name]}", f"to={to}", f"out={tmp_path / 'out'}"])
    assert not [*tmp_path.iterdir()]


def test_a_map_from_gradients_cannot_be_a_graph(tmp_path: Path) -> None:
    file = write_student(tmp_path / "student", BINARY, map="legrad")
    with pytest.raises(ConfigError, match=r"legrad, is computed from gradients.*cls_attention_all, roll"):
        main([f"model={file}", "to=onnx", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_the_graphs_map_is_compared(students: dict[str, Path], exports: dict[tuple[str, str], Path]) -> None:
    """A graph with the probabilities of the student and the map of another kind is refused."""
    exported = student_file.read(students["joint"])
    assert to_onnx.compare(exported, students["joint"], exports["joint", "onnx"]) <= formats.TOLERANCE
    other = replace(exported, card=replace(exported.card, map="cls_attention"))
    with pytest.raises(UserError, match="the map of the ONNX graph differs from the student's"):
        to_onnx.compare(other, students["joint"], exports["joint", "onnx"])


def test_an_export_with_other_probabilities_is_not_written(
    students: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shift in (2e-5, np.nan):
        shifted = Format(FORMATS["timm"].write, lambda *given, by=shift: FORMATS["timm"].compare(*given) + by)
        monkeypatch.setattr(formats, "FORMATS", {"timm": shifted})
        with pytest.raises(UserError, match="give other probabilities than the student"):
            formats.export(students["mixed"], "timm", tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_folder_with_files_is_left_alone(students: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "out-2").mkdir()
    words = [f"model={students['mixed']}", "to=timm", f"out={out}"]
    (out / "notes.txt").write_text("kept")
    with pytest.raises(ConfigError, match=r"(?s)with files in it.*model=\S+ to=timm out=\S+out-3$"):
        main(words)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    main(words)  # an empty folder is as good as none
    assert (out / "config.json").exists()
    with pytest.raises(ConfigError, match=r"config\.json is a file"):
        main([*words[:2], f"out={out / 'config.json'}"])


def test_the_present_folder_is_named_in_full_where_it_holds_files(
    students: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "note.txt").write_text("of the user")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=rf"(?s){tmp_path}/here is a folder with files in it.* out={tmp_path}/here-2"):
        main([f"model={students['mixed']}", "to=timm", "out=."])


def test_mistakes_are_clear(students: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"(?s)form=onnx: not an option.*model: missing.*to: no format 'onx'.*onnx"):
        main(["form=onnx", "to=onx"])
    damaged = bytearray(students["mixed"].read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "student.safetensors").write_bytes(damaged)
    with pytest.raises(ConfigError, match="is damaged"):
        main([f"model={tmp_path}", "to=timm", f"out={tmp_path / 'out'}"])
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ConfigError, match=r"onnx needs onnxruntime, which.*pip install --editable '\.\[export\]'"):
        main([f"model={students['mixed']}", "to=onnx", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out.strip() == HELP.strip()
    assert all(f"to={name} " in HELP and re.search(rf"^  {name} .*(yes|code)", HELP, re.MULTILINE) for name in FORMATS)


@pytest.mark.parametrize(
    ("depth", "channels", "mode"),
    [
        (Depth(), 1, "L"),
        (Depth(), 3, "RGBA"),
        (Depth(8, (20.0, 180.0)), 1, "LA"),
        (Depth(8, (20.0, 180.0)), 1, "P"),
        (Depth(16, (1000.0, 30000.5)), 1, "I;16"),
        (Depth(16, (1000.0, 30000.5), Clahe(0.02, 4)), 1, "I;16"),
    ],
)
def test_the_printed_code_reads_an_image_as_the_student_does(
    depth: Depth, channels: int, mode: str, tmp_path: Path
) -> None:
    """Also one of 37 x 75 pixels, whose height ends midway between two whole numbers when it is scaled."""
    card = student_file.read(write_student(tmp_path / "s", BINARY, channels, depth=depth)).card
    code = f"{usage.imports_code(card)}\n{usage.reading_code(card)}"
    names: dict[str, object] = {}
    exec(code, names)
    for shape in ((50, 33), (37, 75), (32, 32), (1, 90)):
        high = 256 if depth.bits == 8 else 40_000
        dtype = np.uint8 if depth.bits == 8 else np.uint16
        further = {"RGBA": (4,), "LA": (2,), "P": (3,)}.get(mode, ())
        image = Image.fromarray(np.random.default_rng(0).integers(0, high, (*shape, *further)).astype(dtype))
        (image.quantize(16) if mode == "P" else image).save(tmp_path / "image.png")
        square = names["read_square"](tmp_path / "image.png")  # type: ignore[operator]
        wanted = to_stored_square(read_image(tmp_path, "image.png"), SIZE, channels, depth)
        assert np.array_equal(square, wanted[None].astype(np.float32) / 255), shape
