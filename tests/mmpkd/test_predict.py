"""python -m mmpkd.predict: images in; probabilities, calls and overlays out; nothing else is read."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmpkd import export
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.synthetic import Synthetic, SyntheticParams
from mmpkd.config import TrialConfig
from mmpkd.predict import Predictor, file_names, headings, main
from mmpkd.train import train
from mmpkd.types import CohortError, ConfigError, lay_out


@pytest.fixture(scope="module")
def model(tiny_trial: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported student alone: what it was trained with is elsewhere."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_trial, cache, folder)
    alone = tmp_path_factory.mktemp("alone")
    return (folder / export.NAME).rename(alone / export.NAME)


@pytest.fixture(scope="module")
def images(tiny_trial: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of the cohort as they came, one at twice its size and half its height; one file is no image."""
    folder = tmp_path_factory.mktemp("images")
    reader = Synthetic(None, SyntheticParams.model_validate(tiny_trial.cohort.params))
    for number, sample in enumerate(reader.scan().samples.index[:3]):
        Image.fromarray(reader.load(sample).image).save(folder / f"{number}.png")
    (folder / "deeper").mkdir()
    Image.open(folder / "0.png").resize((64, 32)).save(folder / "deeper" / "wide.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_it_says_of_a_file_what_the_student_says_of_the_store(
    model: Path, images: Path, tiny_trial: TrialConfig, cache: Path
) -> None:
    predictor = Predictor(model)
    store = prepare(tiny_trial.cohort, cache)
    with torch.inference_mode():
        logits = predictor.student(torch.tensor(store.image_NCHW[:1]).float() / 255).logits_BK
    wanted = export.read(model).probabilities(logits.numpy())[0]
    said = predictor(images / "0.png")
    assert list(said.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-6)
    assert said.called["pattern"] == (["lamellar", "columnar", "reticular"][int(wanted.argmax())],)
    assert said.map_Rhw.shape == (1, 4, 4) and said.map_Rhw.sum() == pytest.approx(1, abs=1e-5)


def test_an_overlay_shows_where_it_looked(model: Path, images: Path) -> None:
    said = Predictor(model)(images / "deeper" / "wide.png")
    map_hw = np.zeros((4, 4), np.float32)
    map_hw[2, 0] = 1  # below the middle of a wide image in its square, at the left
    (picture,) = replace(said, map_Rhw=map_hw[None]).overlays()
    assert picture.size == (64, 32)
    changed_HW = np.abs(np.asarray(picture, int) - said.image[..., None]).sum(axis=2)
    row, column = np.unravel_index(changed_HW.argmax(), changed_HW.shape)
    assert 16 <= row < 32 and column < 16


def test_a_folder_becomes_a_table_and_pictures(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="1"):  # one file was left out
        main([f"model={model}", f"images={images}", f"out={out}"])
    printed = capsys.readouterr()
    assert "notes.txt: is not an image" in printed.err
    assert printed.out == f"4 images: {out / 'predictions.csv'}, where it looked: {out / 'overlays'}\n"
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "deeper/wide.png"]
    assert all(abs(sum(float(row[f"pattern/{name}"]) for name in row_labels(row)) - 1) < 1e-5 for row in rows)
    pictures = {path.relative_to(out / "overlays").as_posix() for path in (out / "overlays").rglob("*.png")}
    assert pictures == {"0.png.png", "1.png.png", "2.png.png", "deeper/wide.png.png"}
    for inside in (images, images / "deeper" / "out", images.parent):
        with pytest.raises(ConfigError, match="lie one in the other"):
            main([f"model={model}", f"images={images}", f"out={inside}"])
    main([f"model={model}", f"images={images / '0.png'}", f"out={tmp_path / 'one'}", "overlays=false"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["predictions.csv"]


def test_several_images_of_a_patient_become_one_row(model: Path, images: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "patients.csv", tmp_path / "out"
    table.write_text("image,patient\n0.png,p1\n1.png,p2\n2.png,p1\ndeeper/wide.png,p1\nnotes.txt,p2\n")
    with pytest.raises(SystemExit, match="1"):
        main([f"model={model}", f"images={images}", f"out={out}", "overlays=false", f"patients={table}"])
    rows = {row["image"]: row for row in csv.DictReader((out / "predictions.csv").open())}
    patients = list(csv.DictReader((out / "predictions_by_patient.csv").open()))
    told = [(one["patient"], one["images"], one["left_out"]) for one in patients]
    assert told == [("p1", "3", "0"), ("p2", "1", "1")]
    of_p1 = [rows[name] for name in ("0.png", "2.png", "deeper/wide.png")]
    mean = {name: np.mean([float(one[f"pattern/{name}"]) for one in of_p1]) for name in row_labels(of_p1[0])}
    for name, value in mean.items():
        assert float(patients[0][f"pattern/{name}"]) == pytest.approx(value, abs=2e-6)
    assert patients[0]["pattern"] == max(mean, key=lambda name: mean[name])
    assert patients[1]["pattern"] == rows["1.png"]["pattern"]


def row_labels(row: dict[str, str]) -> list[str]:
    return [name.partition("/")[2] for name in row if name.startswith("pattern/")]


def test_another_bit_depth_is_told(model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadSample, match="16-bit pixels"):
        Predictor(model)(tmp_path / "deep.png")
    with pytest.raises(CohortError, match="not one of 1 files could be read"):
        main([f"model={model}", f"images={tmp_path / 'deep.png'}", f"out={tmp_path / 'out'}"])
    assert not list((tmp_path / "out").iterdir())


def test_mistakes_are_told_together(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main(["modle=x", "overlays=no"])
    said = str(caught.value)
    assert "modle=x: not a word of this command (did you mean 'model'?)" in said
    assert "images: which?" in said and "overlays: true or false, got 'no'" in said
    with pytest.raises(ConfigError, match="images: no file at"):
        main([f"model={model}", f"images={tmp_path / 'nowhere'}"])


def test_every_task_has_a_picture_of_its_own() -> None:
    names = ["size/<5 mm", "size/>5 mm", "size--5 mm", "Edema", "edema", "../up", "a/b", "a-b-2", "a-b"]
    parts = file_names(names)
    assert len({part.casefold() for part in parts}) == len(names) and not any("/" in part for part in parts)
    assert parts[3] == "Edema" and parts[6] == "a-b" and file_names(["dx"]) == ["dx"]


@pytest.mark.parametrize("names", [("image",), ("images", "patient"), ("image", "image called"), ("left_out",)])
def test_no_two_columns_of_a_table_are_alike(names: tuple[str, ...]) -> None:
    tasks = lay_out([(name, "binary", ("no", "yes")) for name in names])
    model = SimpleNamespace(names=[f"{name}/yes" for name in names], card=SimpleNamespace(tasks=tasks))
    for own in (["image"], ["patient", "images", "left_out"]):
        given = headings(own, model)  # type: ignore[arg-type]
        assert len(set(given)) == len(given) == len(own) + 2 * len(names) and given[: len(own)] == own
