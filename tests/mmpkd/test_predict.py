"""python -m mmpkd.predict: images in; probabilities, decisions and overlays out; nothing else is read."""

from __future__ import annotations

import csv
import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.synthetic import Synthetic, SyntheticParams
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.export import student_file
from mmpkd.predict import Predictor, main
from mmpkd.prediction.files import headings
from mmpkd.train import train
from mmpkd.types import CohortError, ConfigError, lay_out
from tests.mmpkd.cohort.radpath_trees import LPS, SHAPE, nifti, volume
from tests.mmpkd.cohort_fixtures import cases, config


@pytest.fixture(scope="module")
def model(tiny_trial: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported student alone, away from its training folder."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_trial, cache, folder)
    alone = tmp_path_factory.mktemp("alone")
    return (folder / student_file.NAME).rename(alone / student_file.NAME)


@pytest.fixture(scope="module")
def images(tiny_trial: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of the cohort, one image of twice the size and half the height, a damaged one, and other files."""
    folder = tmp_path_factory.mktemp("images")
    reader = Synthetic(None, SyntheticParams.model_validate(tiny_trial.cohort.params))
    for number, sample in enumerate(reader.scan().samples.index[:3]):
        Image.fromarray(reader.load(sample).image).save(folder / f"{number}.png")
    (folder / "deeper").mkdir()
    Image.open(folder / "0.png").resize((64, 32)).save(folder / "deeper" / "wide.png")
    (folder / "torn.png").write_text("not an image")
    (folder / "notes.TXT").write_text("not an image")
    (folder / "deeper" / "cases.csv").write_text("image\n")
    return folder


def test_predictions_for_files_agree_with_those_for_the_store(
    model: Path, images: Path, tiny_trial: TrialConfig, cache: Path
) -> None:
    predictor = Predictor(model)
    store = prepare(tiny_trial.cohort, cache)
    with torch.inference_mode():
        logits = predictor.student(torch.tensor(store.image_NCHW[:1]).float() / 255).logits_BK
    wanted = student_file.read(model).probabilities(logits.numpy())[0]
    message = predictor(images / "0.png")
    assert list(message.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-6)
    assert message.called["pattern"] == (["lamellar", "columnar", "reticular"][int(wanted.argmax())],)
    assert message.map_Rhw.shape == (1, 4, 4) and message.map_Rhw.sum() == pytest.approx(1, abs=1e-5)


def test_an_overlay_shows_the_map(model: Path, images: Path) -> None:
    message = Predictor(model)(images / "deeper" / "wide.png")
    map_hw = np.zeros((4, 4), np.float32)
    map_hw[2, 0] = 1  # below the middle of a wide image in its square, at the left
    (picture,) = replace(message, map_Rhw=map_hw[None]).overlays()
    assert picture.size == (64, 32)
    changed_HW = np.abs(np.asarray(picture, int) - message.image[..., None]).sum(axis=2)
    row, column = np.unravel_index(changed_HW.argmax(), changed_HW.shape)
    assert 16 <= row < 32 and column < 16


def test_a_folder_becomes_a_table_and_pictures(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="1"):  # one file was left out
        main([f"model={model}", f"images={images}", f"out={out}"])
    printed = capsys.readouterr()
    assert "torn.png: is not an image" in printed.err
    assert "skipped, not images: 2 files (.csv, .txt)\n" in printed.err
    assert printed.out == f"4 images: {out / 'predictions.csv'}, overlays: {out / 'overlays'}\n"
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "deeper/wide.png"]
    assert all(abs(sum(float(row[f"pattern/{name}"]) for name in row_labels(row)) - 1) < 1e-5 for row in rows)
    pictures = {path.relative_to(out / "overlays").as_posix() for path in (out / "overlays").rglob("*.png")}
    assert pictures == {"0.png", "1.png", "2.png", "deeper/wide.png"}
    with pytest.raises(ConfigError, match=rf"with files in it, .*\n  python -m mmpkd.predict model=\S+ .*out={out}-2$"):
        main([f"model={model}", f"images={images / '0.png'}", f"out={out}"])
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    with pytest.raises(ConfigError, match="inside one another"):
        main([f"model={model}", f"images={images}", f"out={images / 'deeper' / 'out'}"])
    for inside in (images, images.parent):
        with pytest.raises(ConfigError, match="a folder with files in it"):
            main([f"model={model}", f"images={images}", f"out={inside}"])
    main([f"model={model}", f"images={images / '0.png'}", f"out={tmp_path / 'one'}", "overlays=false"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["predictions.csv"]


def test_several_images_of_a_patient_become_a_single_row(model: Path, images: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "patients.csv", tmp_path / "out"
    table.write_text("image,patient\n0.png,p1\n1.png,p2\n2.png,p1\ndeeper/wide.png,p1\ntorn.png,p3\n")
    with pytest.raises(SystemExit, match="1"):
        main([f"model={model}", f"images={images}", f"out={out}", "overlays=false", f"table={table}"])
    rows = {row["image"]: row for row in csv.DictReader((out / "predictions.csv").open())}
    patients = list(csv.DictReader((out / "predictions_by_patient.csv").open()))
    text = [(entry["patient"], entry["images"], entry["left_out"]) for entry in patients]
    assert text == [("p1", "3", "0"), ("p2", "1", "0"), ("p3", "0", "1")]
    assert not any(patients[2][name] for name in ("pattern", "pattern/lamellar"))
    of_p1 = [rows[name] for name in ("0.png", "2.png", "deeper/wide.png")]
    mean = {name: np.mean([float(entry[f"pattern/{name}"]) for entry in of_p1]) for name in row_labels(of_p1[0])}
    for name, value in mean.items():
        assert float(patients[0][f"pattern/{name}"]) == pytest.approx(value, abs=2e-6)
    assert patients[0]["pattern"] == max(mean, key=lambda name: mean[name])
    assert patients[1]["pattern"] == rows["1.png"]["pattern"]


def test_a_pattern_chooses_files(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def predicted(pattern: str) -> list[str]:
        out = tmp_path / pattern.replace("/", "-")
        main([f"model={model}", f"images={images}", f"pattern={pattern}", "overlays=false", f"out={out}"])
        with (out / "predictions.csv").open() as opened:
            return [row["image"] for row in csv.DictReader(opened)]

    assert predicted("[01].png") == ["0.png", "1.png"]
    assert predicted("w*") == predicted("deeper/*.png") == ["deeper/wide.png"]
    assert capsys.readouterr().err == ""  # files that do not match are not reported as skipped
    for pattern, problem in (("*_a.png", "none of 7 files below .* matches '.*'; one of them is 0.png"), ("*.csv", "")):
        with pytest.raises(ConfigError, match=problem or "images: no image at"):
            predicted(pattern)
    with pytest.raises(ConfigError, match="pattern: chooses files of a folder"):
        main([f"model={model}", f"images={images / '0.png'}", "pattern=*.png"])


@pytest.mark.parametrize("name", ["cases.csv", "cases.xlsx", "t1.json", "notes.TXT", "a.parquet", "a.yaml", "._0.png"])
def test_files_that_are_not_images_are_skipped(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text("a,b\n")
    words = [f"model={model}", f"images={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "overlays=false"]
    with pytest.raises(ConfigError, match="no image at"):
        main(words)
    shutil.copy(images / "0.png", tmp_path / "in")
    main(words)  # and no SystemExit
    printed = capsys.readouterr()
    assert "skipped, not images: 1 file (" in printed.err and "left out" not in printed.err
    assert printed.out.startswith("1 images")


def test_unusual_images_are_reported(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image in colour, one without contrast, an empty and a dark one; masks: plain, with lossy edges, of several
    regions."""
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    shutil.copy(images / "0.png", folder / "case001.png")
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "case002.png")
    gradient = np.linspace(100, 106.9, 80) + rng.uniform(-0.05, 0.05, (80, 80))  # 7 values
    gradient[:20, 0] = np.linspace(30, 250, 20)  # marks of 20 further values in 0.3 % of the pixels
    Image.fromarray(gradient.astype(np.uint8)).save(folder / "case003.png")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "case004.png")
    Image.fromarray(rng.integers(0, 30, (40, 40), np.uint8)).save(folder / "case005.png")
    mask = np.zeros((80, 80), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(mask).save(folder / "case001_tumour.png")
    Image.fromarray(mask).save(folder / "case002_lossy.jpg", quality=80)
    mask[60:70, 30:60] = 127
    Image.fromarray(mask).save(folder / "case003_other1.png")
    main([f"model={model}", f"images={folder}", f"out={tmp_path / 'out'}", "overlays=false"])
    text = capsys.readouterr().err
    assert "warning: 1 of 8 images are in colour, and the student sees only their brightness" in text
    assert (
        "3 of 8 images hold only two values, or hardly more: are they masks? pattern='case???.png' leaves them" in text
    )
    assert "warning: 2 of 8 images vary by fewer than 8 of 255 grey levels all over" in text
    rows = {row["image"]: row["warning"] for row in csv.DictReader((tmp_path / "out" / "predictions.csv").open())}
    like_a_mask = "hardly more than two values"
    assert rows == {
        "case001.png": "",
        "case002.png": "in colour",
        "case003.png": "hardly any contrast",
        "case004.png": "hardly any contrast; nearly black",
        "case005.png": "nearly black",
    } | dict.fromkeys(("case001_tumour.png", "case002_lossy.jpg", "case003_other1.png"), like_a_mask)
    assert Predictor(model)(folder / "case001_tumour.png").warnings == (like_a_mask,)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, Path]:
    """A cohort of reoriented volumes, cut at other shares than the default, with its store and student."""
    root, out = tmp_path_factory.mktemp("volumes"), tmp_path_factory.mktemp("volumes-out")
    table = cases().assign(mask="")
    table["image"] = [f"p{number}/t1.nii.gz" for number in range(len(table))]
    for number, name in enumerate(table["image"]):
        (root / "images" / name).parent.mkdir(parents=True)
        turned = volume(seed=7 * number)[::-1, ::-1]
        (root / "images" / name).write_bytes(gzip.compress(nifti(turned, LPS)))
    table.to_csv(root / "cases.csv", index=False)
    cohort = config(root, image_size=16, channels=3, slices=[0.2, 0.5, 0.9])
    student = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    trial = TrialConfig.model_validate({"cohort": cohort, "student": student, "epochs": 1})
    train(trial, out / "cache", out / "trained")
    return root, prepare(cohort, out / "cache"), out / "trained"


def test_predictions_for_a_volume_agree_with_those_for_the_store(volumes: tuple[Path, Store, Path]) -> None:
    root, store, trained = volumes
    predictor = Predictor(trained)
    assert predictor.card.slices == (0.2, 0.5, 0.9)
    with torch.inference_mode():
        logits = predictor.student(torch.tensor(store.image_NCHW).to(predictor.device).float() / 255).logits_BK
    wanted = student_file.read(trained).probabilities(logits.cpu().numpy())
    for row in (0, 31):
        message = predictor(root / "images" / str(store.sample_ids[row]))
        assert list(message.probabilities.values()) == pytest.approx(wanted[row].tolist(), abs=1e-6)
        assert message.warnings == () and message.overlays()[0].size == (SHAPE[0], SHAPE[1])


def test_pictures_and_masks_are_reported_for_a_student_of_volumes(
    volumes: tuple[Path, Store, Path], images: Path, tmp_path: Path
) -> None:
    predictor = Predictor(volumes[2])
    assert predictor(images / "0.png").warnings == ("no volume",)
    assert predictor(images / "0.png").spacing is None
    for name, mask in (("tumour.nii", volume() > 500), ("regions.nii.gz", volume() // 400)):
        written = nifti(mask.astype(np.int16))
        (tmp_path / name).write_bytes(gzip.compress(written) if name.endswith("gz") else written)
        assert predictor(tmp_path / name).warnings == ("hardly more than two values",)


def test_a_student_of_pictures_refuses_a_volume(model: Path, tmp_path: Path) -> None:
    assert b"slices" not in model.read_bytes() and Predictor(model).card.slices == ()
    (tmp_path / "t1.nii.gz").write_bytes(gzip.compress(nifti(volume())))
    with pytest.raises(BadSample, match="is a NIfTI volume, and the student does not state the slices"):
        Predictor(model)(tmp_path / "t1.nii.gz")


def test_a_picture_states_the_probabilities_of_each_task(model: Path, images: Path) -> None:
    predictor = Predictor(model)
    message = predictor(images / "0.png")
    order = sorted(message.probabilities.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name.removeprefix('pattern/')} {value:.3f}" for name, value in order)
    assert predictor.lines(message) == [f"pattern: {listed}; decision: {message.called['pattern'][0]}"]
    several = replace(message, map_Rhw=np.repeat(message.map_Rhw, 2, axis=0))
    both, (first, second) = message.pictures(["a", "b"]), several.pictures(["a", "b"])
    assert len(both) == 1 and both[0].height > first.height == second.height  # two lines of text, and one


def row_labels(row: dict[str, str]) -> list[str]:
    return [name.partition("/")[2] for name in row if name.startswith("pattern/")]


def test_another_bit_depth_is_reported(model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadSample, match="16-bit pixels, but the student was trained on 8-bit images"):
        Predictor(model)(tmp_path / "deep.png")
    with pytest.raises(CohortError, match="none of 1 files could be read"):
        main([f"model={model}", f"images={tmp_path / 'deep.png'}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_mistakes_are_reported_together(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main(["modle=x", "overlays=no"])
    message = str(caught.value)
    assert "modle=x: not an option of this command (did you mean 'model'?)" in message
    assert "images: missing: write images=" in message and "overlays: true or false, got 'no'" in message
    with pytest.raises(ConfigError, match="images: no file at"):
        main([f"model={model}", f"images={tmp_path / 'nowhere'}"])


@pytest.mark.parametrize("names", [("image",), ("images", "patient"), ("image", "image called"), ("left_out",)])
def test_columns_of_the_table_have_unique_names(names: tuple[str, ...]) -> None:
    tasks = lay_out([(name, "binary", ("no", "yes")) for name in names])
    for own in (["image"], ["patient", "images", "left_out"]):
        given = headings(own, SimpleNamespace(tasks=tasks))  # type: ignore[arg-type]
        assert len(set(given)) == len(given) == len(own) + 2 * len(names) and given[: len(own)] == own
