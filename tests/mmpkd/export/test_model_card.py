"""The card of an exported student states what its file knows, with intervals and image-blind baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from exported_students import MULTILABEL, SIZE, write_student

from mmpkd.cohort import READERS
from mmpkd.export import formats, student_file
from mmpkd.export.model_card import DATA, UNKNOWN_DATA, model_card
from mmpkd.export.origin import Origin
from mmpkd.export.student_file import Exported

ORIGIN = Origin(
    reader="breast_lesions_usg",
    patients={"train": 151, "val": 50},
    images={"train": 153, "val": 52},
    teachers=("tabular",),
    objectives=("logits",),
    pretrained=False,
    epochs=27,
    seed=3,
    scores={
        "val/auroc": 0.8,
        "val/auroc_se": 0.08,
        "val/ap": float("nan"),
        "val/brier": 0.25,
        "val/brier_calibrated": 0.2,
        "val/pointing": 0.056,
        "val/pointing_chance": 0.05,
        "val/pointing_centre": 0.22,
        "val/pointing_prior": 0.582,
    },
)


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    return replace(student_file.read(write_student(tmp_path / "student", MULTILABEL)), origin=ORIGIN)


def test_scores_stand_with_intervals_beside_baselines(exported: Exported) -> None:
    """On the logit scale: logit(0.8) = 1.386, half = 1.96 x 0.08 / (0.8 x 0.2) = 0.98, and so 0.600 to 0.914."""
    lines = model_card(exported).splitlines()
    (header,) = [line for line in lines if line.startswith("| score |")]
    columns = "value | 95 % interval | uniform map | map of the centre | mean ROI of the training images |"
    assert header == f"| score | {columns}"
    assert "| AUROC | 0.800 | 0.600 to 0.914 |  |  |  |" in lines
    assert "| pointing: the maximum of the map lies in the ROI | 0.056 | none | 0.050 | 0.220 | 0.582 |" in lines
    assert not [line for line in lines if "average precision" in line or "| nan" in line]
    assert [line for line in lines if "Brier score (" in line] == [
        "| Brier score (lower is better) | 0.200 | none |  |  |  |"
    ]


def test_a_card_without_calibrated_scores_says_so(exported: Exported) -> None:
    scores = {"val/auroc": 1.0, "val/auroc_se": float("nan"), "val/brier": 0.25}
    text = model_card(replace(exported, origin=replace(ORIGIN, scores=scores)))
    assert "| Brier score before calibration (lower is better) | 0.250 | none |" in text
    assert "of an earlier version, states no Brier score and calibration error after calibration" in text
    assert "| AUROC | 1.000 | none |" in text and "all resamplings of the patients give the same value" in text


def test_data_and_protocol_are_stated(exported: Exported) -> None:
    text = model_card(exported)
    for part in (
        "doi 10.7937/9WKK-Q141; licence CC BY 4.0",
        "Part `val`: 52 images of 50 patients",
        "27 epochs, seed 3",
        "Kinds of teachers: tabular. Objectives besides the labels: logits.",
        "- `signs` (multilabel): halo, spicules, long",
    ):
        assert part in text
    assert "restricted" not in text and "pretrained" not in text
    changed = replace(exported, card=replace(exported.card, credentialed=True), origin=replace(ORIGIN, pretrained=True))
    assert "**Access to the data is restricted." in model_card(changed)
    assert "began from pretrained weights, whose licence applies as well" in model_card(changed)
    older = model_card(replace(exported, origin=None))
    assert "does not state its data set" in older and "does not state its scores" in older


def test_every_reader_of_a_published_data_set_has_its_terms() -> None:
    assert DATA.keys() == READERS.keys() - {"table", "vqa"}
    assert "does not know its licence" in UNKNOWN_DATA


def test_a_hub_folder_has_preprocessing_and_the_card_of_the_choice(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "student" / "card.md").write_text("chosen among 48 trials")
    student_file.write(tmp_path / "student", exported.student, exported.card, exported.seen, ORIGIN)
    formats.export(tmp_path / "student", "hub", tmp_path / "hub")
    names = {path.name for path in (tmp_path / "hub").iterdir()}
    assert names == {"README.md", "card.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    readme = (tmp_path / "hub" / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: timm\n") and model_card(exported) in readme and "(card.md)" in readme
    processing = json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())
    assert processing["size"] == {"longest_edge": SIZE} and processing["image_mean"] == list(exported.card.mean)
