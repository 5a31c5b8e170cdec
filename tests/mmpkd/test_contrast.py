"""cohort.window and cohort.clahe: by hand, in the identity of a store, and in an exported student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.exposure import equalize_adapthist

from mmpkd.cohort import facts
from mmpkd.cohort.__main__ import main
from mmpkd.cohort.decode import Clahe, Depth, decode, depth_of, read_depth, to_stored_square
from mmpkd.cohort.facts import BadSample, RawImage
from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig, StudentConfig, TrialConfig, WindowConfig, validate
from mmpkd.export import student_file
from mmpkd.predict import Predictor
from mmpkd.student import build_student
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort.cbis_trees import write_dicom
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort
from tests.mmpkd.students import drawn

WINDOW, CLAHE = {"level": 40, "width": 400}, {"clip_limit": 0.03, "tiles": 2}


def requested(root: Path, **options: Any) -> CohortConfig:
    return validate(CohortConfig, {**config(root).model_dump(), **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT-like cohort: signed 12-bit DICOM images of 20 x 30 pixels with noise around soft tissue."""
    root = tmp_path_factory.mktemp("raw")
    table = cases(15).assign(image=[f"case{index}.dcm" for index in range(30)])
    (root / "images").mkdir()
    for index, name in enumerate(table["image"]):
        pixels = np.random.default_rng(index).normal(1064, 120, (20, 30)).clip(0, 4095).astype(np.uint16)
        pixels[:4] = 24  # air: -1000
        write_dicom(root / "images" / name, pixels, RescaleSlope="1", RescaleIntercept="-1024")
    (root / "cases.csv").write_text(table.assign(mask="").to_csv(index=False))
    return root


def test_a_window_by_hand() -> None:
    """A width of 4 around 2 has the levels 0, 1, 2, 3 (DICOM PS3.3 C.11.2.1.2.1)."""
    assert validate(WindowConfig, {"level": 2, "width": 4}).ends == (0, 3)
    image = np.array([[-5, 0, 1], [2, 3, 9]], np.int16)
    assert to_stored_square(image, 3, 1, Depth(16, (0.0, 3.0)))[0, :2].tolist() == [[0, 0, 85], [170, 255, 255]]


def test_an_image_outside_the_window_is_refused() -> None:
    for image in (np.array([[4, 7]], np.uint16), np.array([[-5, 0]], np.int16)):
        with pytest.raises(BadSample, match="all its values outside the window of 0 to 3"):
            to_stored_square(image, 2, 1, Depth(16, (0.0, 3.0)))
    assert to_stored_square(np.array([[1, 7]], np.uint16), 2, 1, Depth(16, (0.0, 3.0)))[0, 0].tolist() == [85, 255]


def test_clahe_agrees_with_scikit_image_inside_the_padding() -> None:
    image = np.random.default_rng(0).integers(90, 120, (16, 32), dtype=np.uint8)
    stored = to_stored_square(image, 32, 1, Depth(clahe=Clahe(0.02, 4)))[0]
    wanted = np.rint(255 * equalize_adapthist(image, kernel_size=(4, 8), clip_limit=0.02))
    assert (stored[8:24] == wanted).all() and not stored[:8].any() and not stored[24:].any()
    flat = np.full((16, 32), 7, np.uint8)
    assert (to_stored_square(flat, 32, 1, Depth(clahe=Clahe(0.02, 4)))[0, 8:24] == 7).all()


def test_both_are_part_of_the_store_identity_and_off_by_default(root: Path, tmp_path: Path) -> None:
    stores = [prepare(requested(root, **entry), tmp_path) for entry in ({}, {"window": WINDOW}, {"clahe": CLAHE})]
    assert len({store.path for store in stores}) == 3
    plain, windowed, even = (depth_of(store.manifest) for store in stores)
    assert windowed == Depth(16, (-160.0, 239.0)) and even == Depth(16, plain.window, Clahe(0.03, 2))
    assert plain.clahe is None and "contrast" not in stores[0].manifest
    trial = TrialConfig(cohort=config(root))
    assert not {"window", "clahe"} & set(trial.model_dump()["cohort"])  # so that no fingerprint has moved
    trials = [TrialConfig(cohort=requested(root, **entry)) for entry in ({}, {"window": WINDOW}, {"clahe": CLAHE})]
    assert len({entry.fingerprint() for entry in trials}) == 3 and trials[0].fingerprint() == trial.fingerprint()


def test_show_and_check_report_window_and_clahe(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"cohort.root={root}", "cohort.reader=table", "cohort.image_size=15", f"cache={tmp_path}"]
    words.append(f"cohort.params={config(root).params}")
    options = ["cohort.window.level=40", "cohort.window.width=400", "cohort.clahe={}"]
    main(["show", *words, *options])
    assert "from 16 bits, -160 to 239 made 0 to 255, CLAHE of 8 x 8 tiles clipped at 0.01" in capsys.readouterr().out
    main(["check", *words, *options, "samples=5"])
    with pytest.raises(CohortError, match=r"differs in cohort\.window or cohort\.clahe"):
        main(["check", *words])


def test_an_exported_student_reads_new_images_like_its_training_images(root: Path, tmp_path: Path) -> None:
    """This holds for predict, and for evaluate, which prepares other cohorts with the student's depth."""
    cohort = requested(root, window=WINDOW, clahe=CLAHE)
    store = prepare(cohort, tmp_path / "cache")
    sizes = StudentConfig(model="vit_tiny_patch16_224", patch_size=5, embed_dim=24, depth=2, num_heads=2)
    student = drawn(build_student(sizes, 15, 1, 1), 0.2)
    trial = TrialConfig(cohort=cohort, student=sizes)
    logits_NK = np.linspace(-1, 1, 30)[:, None]
    card = student_file.card_of(trial, store.facts, store.manifest, student, logits_NK, store.target_NK, store.known_NK)
    model = Predictor(student_file.write(tmp_path, student, card, store.digests()))
    assert model.card.depth == Depth(16, (-160.0, 239.0), Clahe(0.03, 2))
    with torch.inference_mode():
        logits = model.student(torch.tensor(store.image_NCHW[:1]).to(model.device).float() / 255).logits_BK
    wanted = student_file.read(tmp_path).probabilities(logits.cpu().numpy())
    message = model(root / "images" / str(store.sample_ids[0])).probabilities
    assert list(message.values()) == pytest.approx(wanted[0].tolist(), abs=1e-6)
    plain = prepare(config(root), tmp_path / "cache")
    theirs = prepare(config(root), tmp_path / "cache", model.card.depth)
    assert (theirs.image_NCHW == store.image_NCHW).all() and (plain.image_NCHW != store.image_NCHW).any()


def test_a_card_from_before_clahe_is_read() -> None:
    assert read_depth(*[16, [0.0, 9.0]]) == Depth(16, (0.0, 9.0)) and read_depth(*[8, None]) == Depth()


def test_window_and_clahe_are_refused_where_they_do_not_apply(root: Path, tmp_path: Path) -> None:
    for options, where in (({"window": WINDOW}, "cohort.window"), ({"clahe": {}}, "cohort.clahe")):
        colour = requested(root, **options, params={**config(root).params, "channels": 3})
        for attempt in (facts, lambda entry: prepare(entry, tmp_path)):
            with pytest.raises(ConfigError, match=f"{where}: is of grey images, and this cohort's have 3 channels"):
                attempt(colour)
    for wrong in ({"level": 40, "width": 1}, {"level": 40}, {"center": 40, "width": 400}):
        with pytest.raises(ConfigError, match="window"):
            requested(root, window=wrong)
    volume = RawImage(np.zeros((4, 4), np.uint8), is_stretched=True)
    with pytest.raises(BadSample, match=r"cohort\.window does not apply"):
        decode(volume, 4, 1, (), [Depth(8, (0.0, 9.0))])
    write_cohort(tmp_path / "grey", cases(15))
    eight = prepare(requested(tmp_path / "grey", window={"level": 50, "width": 101}), tmp_path / "cache")
    assert eight.manifest["bit_depth"] == 8 and eight.manifest["window"] == [-0.5, 99.5]
