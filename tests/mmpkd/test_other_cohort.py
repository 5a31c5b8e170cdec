"""What a cohort for an external test may not share with the cohort of the student, and what the user can do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig
from mmpkd.prediction.other_cohort import Home, refuse_seen
from mmpkd.types import ConfigError
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort
from tests.mmpkd.pictures import CHANGES, picture

NUM_PATIENTS = 12


def written(
    root: Path,
    first: int,
    copies: Mapping[int, tuple[int, str]] | None = None,
    names: Mapping[int, str] | None = None,
    prefix: str = "q",
) -> CohortConfig:
    """Writes a cohort of 12 patients with two images each, and returns its configuration.

    Args:
        first: number of its first picture.
        copies: by row, counted from 0, the number of the picture that it shows and how it is changed.
        names: the patient of some rows. The others are called `prefix` and the fixture's name, such as qp3.
    """
    table = cases(NUM_PATIENTS).assign(mask="")
    table["patient"] = [(names or {}).get(row, prefix + name) for row, name in enumerate(table["patient"])]
    write_cohort(root, table)
    for row, name in enumerate(table["image"]):
        number, change = (copies or {}).get(row, (first + row, ""))
        image = picture(number) if not change else CHANGES[change](picture(number))
        Image.fromarray(np.ascontiguousarray(image)).save(root / "images" / name)
    return config(root, image_size=80, masks={}, columns={})  # the size of the pictures, so that one bit stays changed


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The cohort of the students: pictures 0 to 23, patients p0 to p11."""
    root = tmp_path_factory.mktemp("own")
    return prepare(written(root / "raw", 0, prefix=""), root / "cache", folds=False)


@pytest.fixture
def home(own: Store) -> Home:
    return Home.of_store(own)


def compared(home: Home, config: CohortConfig, tmp_path: Path) -> list[str]:
    return refuse_seen(home, prepare(config, tmp_path / "cache", folds=False), config)


def refusal(home: Home, config: CohortConfig, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        compared(home, config, tmp_path)
    return str(raised.value)


def left_out(message: str) -> list[int]:
    return json.loads(re.search(r"cohort\.leave_out=(\[[\d,]*\])", message)[1])  # type: ignore[index, no-any-return]


def test_changed_copies_are_refused_and_can_be_left_out(home: Home, tmp_path: Path) -> None:
    """All rows of their patients are, for the other image shows a person whom the student has seen as well."""
    changes = {2: (0, "one bit"), 5: (7, "JPEG"), 8: (23, "left to right"), 9: (1, "brighter"), 13: (4, "half turn")}
    other = written(tmp_path / "raw", 100, changes)
    message = refusal(home, other, tmp_path)
    assert message.startswith("cohort: 5 of its 24 images show a picture, pixel for pixel or nearly so, of the student")
    assert "its training, validation or test part" in message and "own_numbering" not in message
    assert left_out(message) == [4, 5, 6, 7, 10, 11, 14, 15]
    other = other.model_copy(update={"leave_out": tuple(left_out(message))})
    assert compared(home, other, tmp_path) == []


def test_what_is_left_out_already_stays_left_out(home: Home, tmp_path: Path) -> None:
    other = written(tmp_path / "raw", 100, {2: (0, "one bit")}).model_copy(update={"leave_out": (9,)})
    assert left_out(refusal(home, other, tmp_path)) == [9, 4, 5]


def test_patients_in_another_spelling_are_refused(home: Home, tmp_path: Path) -> None:
    """Names are in no message. `own_numbering` admits them, but not the pictures of the students' cohort."""
    other = written(tmp_path / "raw", 100, names={0: "P 03", 1: "P 03", 4: "p5", 5: "p5"})
    message = refusal(home, other, tmp_path)
    assert message.startswith("cohort: 2 of its 12 patients have the name of a patient of the student's own cohort (")
    assert left_out(message) == [2, 3, 6, 7] and "P 03" not in message and "p5" not in message
    assert "because each cohort counts its own patients, write cohort.own_numbering=true" in message
    assert compared(home, other.model_copy(update={"leave_out": (2, 3, 6, 7)}), tmp_path) == []
    (note,) = compared(home, other.model_copy(update={"own_numbering": True}), tmp_path)
    assert note.startswith("2 of its 12 patients have the name of a patient of the student's own cohort; cohort.own_")
    other = written(tmp_path / "again", 100, {2: (0, "JPEG")}, prefix="").model_copy(update={"own_numbering": True})
    assert "1 of its 24 images show a picture" in refusal(home, other, tmp_path)


def test_all_patients_are_known(home: Home, tmp_path: Path) -> None:
    message = refusal(home, written(tmp_path / "raw", 100, prefix=""), tmp_path)
    assert "12 of its 12 patients" in message and "Name a cohort whose patients the student has not seen" in message
    assert "leave_out" not in message and "cohort.own_numbering=true" in message


def test_names_that_may_be_the_same_are_noted(home: Home, tmp_path: Path) -> None:
    other = written(tmp_path / "raw", 100, names={0: "P-3", 1: "P-3"})
    (note,) = compared(home, other, tmp_path)
    assert note.startswith("1 of its 12 patients have a name that differs from the name of a patient of the student's")
    assert compared(home, other.model_copy(update={"own_numbering": True}), tmp_path) == []


def test_without_the_store_equal_images_are_refused_and_the_limits_are_stated(home: Home, tmp_path: Path) -> None:
    far = replace(home, store=None)
    other = written(tmp_path / "raw", 100, {2: (0, "one bit"), 5: (0, "JPEG")}, prefix="")
    (note,) = compared(far, other, tmp_path)
    assert "The store of the student's own cohort is not in cache=" in note and "go unnoticed" in note
    message = refusal(far, written(tmp_path / "again", 100, {2: (0, "")}), tmp_path)
    assert "1 of its 24 images show a picture" in message and left_out(message) == [4, 5]


def test_blank_images_are_nobodys_copy(tmp_path: Path) -> None:
    """Images without content are equal in all cohorts."""
    homes = []
    for name, first in (("own", 0), ("other", 100)):
        asked = written(tmp_path / name, first, prefix=name)
        for row, value in ((2, 0), (3, 0), (4, 255)):
            Image.fromarray(np.full((60, 80), value, np.uint8)).save(tmp_path / name / "images" / f"case{row}.png")
        homes.append((Home.of_store(prepare(asked, tmp_path / "cache", folds=False)), asked))
    (home, _), (_, other) = homes
    assert compared(home, other, tmp_path) == []
    assert len(compared(replace(home, store=None), other, tmp_path)) == 1
