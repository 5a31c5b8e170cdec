"""The contact sheet: further views beside each image, and names for public data only."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import show
from mmpkd.cohort.store import Store
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of grey 2 x their position; the view `mri` of each is of grey 200, `late` of grey 100."""
    table = cases().assign(scan=[f"scan{index}.png" for index in range(60)], other="late.png")
    write_cohort(tmp_path, table)
    for name in table["scan"]:
        Image.fromarray(np.full((10, 10), 200, np.uint8)).save(tmp_path / name)
    Image.fromarray(np.full((10, 10), 100, np.uint8)).save(tmp_path / "late.png")
    return tmp_path


def drawn(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Of each small picture its title, and the value in its middle."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    show(store, Console(quiet=True))
    shown: list[Axes] = [axis for axis in figures[0].axes if axis.images]
    return [(axis.get_title(), int(np.asarray(axis.images[0].get_array())[7, 7])) for axis in shown]


def test_views_stand_beside_their_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare(config(root, views={"mri": "scan", "late": "other"}), root / "cache")
    shown = drawn(store, monkeypatch)
    assert len(shown) == 24 and [title for title, _ in shown[1:3]] == ["mri", "late"]
    assert [value for _, value in shown[1::3]] == [200] * 8 and [value for _, value in shown[2::3]] == [100] * 8
    for title, value in shown[::3]:  # case7.png has grey 14
        name, label = title.splitlines()
        assert name == f"case{value // 2}.png" and label in ("benign", "malignant")
    (store.path / "views" / "mri.npy").unlink()
    assert {title for title, _ in drawn(store, monkeypatch)[1::2]} == {"late"}


def test_unknown_labels_are_told_from_negative_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four patients in turn: positive and unknown, both negative, negative and unknown, both unknown."""
    cells = {"nodule": ["1", "0", "", ""], "edema": ["", "0", "0", ""]}
    table = cases().assign(**{name: np.resize(np.repeat(each, 2), 60) for name, each in cells.items()})
    tasks = {"findings": {"kind": "multilabel", "labels": ["nodule", "edema"]}}
    table.loc[[0, 9, 16, 25, 32, 41, 48, 57], "edema"] = "1"
    write_cohort(tmp_path, table)
    store = prepare(config(tmp_path, tasks=tasks, credentialed=True), tmp_path / "cache")
    titles = {title for title, _ in drawn(store, monkeypatch)}
    assert titles == {"nodule, edema", "nodule, edema ?", "negative", "nodule ?", "?"}
    console = Console(file=io.StringIO(), width=200)
    show(store, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [re.findall(r"\d+", line) for line in text.splitlines() if "positive of" in line]
    assert "all unknown" in text
    counted = np.array([row[-4:] for row in rows], int).sum(axis=0)
    assert counted.tolist() == [16, 32, 8, 38], "positive and known, of nodule and of edema"


def test_a_credentialed_sample_has_no_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare(config(root, credentialed=True), root / "cache")
    assert {title for title, _ in drawn(store, monkeypatch)} == {"benign", "malignant"}


def test_a_long_name_keeps_its_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = cases()
    table["image"] = [f"{'folder' * 9}-{index}.png" for index in range(60)]
    write_cohort(root / "long", table)
    titles = [title for title, _ in drawn(prepare(config(root / "long"), root / "cache"), monkeypatch)]
    assert titles[0].startswith("...") and all(title.splitlines()[0].endswith(".png") for title in titles)
    assert max(len(title.splitlines()[0]) for title in titles) == 33
