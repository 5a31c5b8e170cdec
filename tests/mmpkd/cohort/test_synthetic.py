"""The known-answer cohort says what it claims: where the marker agrees, who tells the truth, what is hidden."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort.readers.synthetic import CLASSES, COLUMNS, Synthetic, SyntheticParams
from mmpkd.config import validate
from mmpkd.types import ConfigError

SMALL = SyntheticParams(train=90, val=40, test=40)
LARGE = SyntheticParams(train=3000, val=3000, test=100)


def marker_of(image: np.ndarray, side: int) -> str:
    """The class whose glyph stands in a corner, read from the pixels alone."""
    inset, size = side // 24, side // 6
    spans = (slice(inset, inset + size), slice(side - inset - size, side - inset))
    plate = max((image[y, x] for y in spans for x in spans), key=lambda corner: float(np.ptp(corner)))
    bright = plate > 200
    if bright[size // 2].all():
        return CLASSES[0]
    return CLASSES[1] if bright[:, size // 2].all() else CLASSES[2]


def label_of(reader: Synthetic) -> pd.Series:
    labels = reader.scan().labels
    return labels.rename(columns=lambda name: name.partition("/")[2]).idxmax(axis=1)


def truth_of(reader: Synthetic) -> pd.Series:
    return reader._table["truth"].map(lambda index: CLASSES[index])


def test_the_marker_agrees_with_the_noisy_training_label_and_with_nothing_else() -> None:
    reader = Synthetic(None, SyntheticParams(train=300, val=600, test=300))
    split, label = reader.scan().samples["split"], label_of(reader)
    marker = pd.Series({name: marker_of(reader.load(name).image, 48) for name in split.index})
    assert (marker == label)[split == "train"].all()
    for part in ("val", "test"):  # independent: a third agree; four standard errors of 600 and 300 are .08 and .11
        assert (marker == label)[split == part].mean() == pytest.approx(1 / 3, abs=0.11)


def test_training_labels_are_wrong_as_often_as_stated_and_the_others_never() -> None:
    reader = Synthetic(None, LARGE)
    split, wrong = reader.scan().samples["split"], label_of(reader) != truth_of(reader)
    assert wrong[split == "train"].mean() == pytest.approx(0.3, abs=0.035)  # four standard errors
    assert not wrong[split != "train"].any()


def test_each_view_tells_the_truth_as_often_as_stated_and_knows_nothing_of_the_label_error() -> None:
    reader = Synthetic(None, LARGE)
    scan, truth, label = reader.scan(), truth_of(reader), label_of(reader)
    wrong = truth != label
    words = {"margin": ("circumscribed", "indistinct", "spiculated"), "assessment": CLASSES}
    for column, accuracy in (("margin", 0.75), ("assessment", 0.95)):
        told = scan.privileged[column].map(dict(zip(words[column], CLASSES, strict=True)))
        known = told.notna()
        assert known.mean() == pytest.approx(0.85, abs=0.02)
        assert (told == truth)[known].mean() == pytest.approx(accuracy, abs=0.025)
        # where the label errs, the column sides with it only by its own chance error
        assert (told == label)[known & wrong].mean() == pytest.approx((1 - accuracy) / 2, abs=0.05)
    assert scan.text is not None
    report = scan.text["report"]
    down = report.str.contains("run down")[report.notna()].astype(bool)
    assert down[truth == CLASSES[1]].mean() == pytest.approx(0.9, abs=0.035)
    assert report.isna().mean() == pytest.approx(0.15, abs=0.02)
    halo = scan.privileged["signs"].dropna().str.split("&").map(lambda signs: "halo" in signs)
    assert halo[truth == CLASSES[0]].mean() == pytest.approx(0.75, abs=0.04)
    assert halo[truth != CLASSES[0]].mean() == pytest.approx(0.125, abs=0.03)
    age = scan.privileged["age"]
    means = [age[truth == name].mean() for name in CLASSES]
    assert np.ptp(means) < 2.5  # context tells nothing: 16 years / sqrt(1700) a mean


def test_the_texture_of_a_lesion_is_its_true_class_in_the_image_and_plainer_in_the_superior_view() -> None:
    reader = Synthetic(None, SMALL)
    truth = truth_of(reader)
    right: dict[str, list[bool]] = {"image": [], "superior": []}
    contrast: dict[str, list[float]] = {"image": [], "superior": []}
    for name in truth.index:
        raw = reader.load(name)
        (_, lesion), *_ = raw.rois
        top, left = (np.flatnonzero(lesion.any(axis=axis))[0] for axis in (1, 0))
        inside = np.s_[top + 4 : top + 12, left + 4 : left + 12]  # two periods each way
        assert lesion[inside].mean() > 0.9
        for view, image in (("image", raw.image), ("superior", raw.views["superior"])):
            power = np.abs(np.fft.fft2(image[inside].astype(float)))
            across, down, both = power[2, 0], power[0, 2], np.hypot(power[2, 2], power[2, -2])
            right[view].append(CLASSES[int(np.argmax([across, down, both]))] == truth[name])
            contrast[view].append(float(image[inside].std()))
    assert {view: np.mean(each) > 0.97 for view, each in right.items()} == {"image": True, "superior": True}
    assert np.mean(contrast["superior"]) > 1.7 * np.mean(contrast["image"])


def test_the_lesion_is_masked_and_the_marker_is_outside_of_it() -> None:
    with_marker, without = (Synthetic(None, SMALL.model_copy(update={"marker": on})) for on in (True, False))
    for name in with_marker.scan().samples.index:
        marked, bare = with_marker.load(name), without.load(name)
        ((label, lesion),) = marked.rois
        assert (label, lesion.shape, lesion.dtype) == ("lesion", (48, 48), np.dtype(bool))
        assert 0.07 < lesion.mean() < 0.17
        changed = marked.image != bare.image
        assert 50 < changed.sum() <= 64  # the plate, and nothing else
        assert not (changed & lesion).any()
        np.testing.assert_array_equal(marked.views["superior"], bare.views["superior"])
        np.testing.assert_array_equal(lesion, bare.rois[0][1])


def test_patients_have_one_to_three_images_of_one_class_in_one_split() -> None:
    reader = Synthetic(None, SMALL)
    samples = reader.scan().samples
    assert samples["split"].value_counts().to_dict() == {"train": 90, "val": 40, "test": 40}
    assert samples.index.is_unique
    sizes = samples.groupby("patient").size()
    assert set(sizes) == {1, 2, 3}
    assert (samples.groupby("patient")["split"].nunique() == 1).all()
    assert (truth_of(reader).groupby(samples["patient"]).nunique() == 1).all()


def test_everything_comes_from_the_seed_and_an_image_from_nothing_else_than_its_position() -> None:
    first, again, other = (Synthetic(None, SMALL.model_copy(update={"seed": seed})) for seed in (3, 3, 4))
    one, two, three = (reader.scan() for reader in (first, again, other))
    names = list(one.samples.index)
    pd.testing.assert_frame_equal(one.privileged, two.privileged)
    pd.testing.assert_frame_equal(one.labels, two.labels)
    assert one.text is not None and two.text is not None
    pd.testing.assert_frame_equal(one.text, two.text)
    assert not one.privileged.equals(three.privileged)
    backwards = {name: again.load(name).image for name in reversed(names)}
    for name in names:
        np.testing.assert_array_equal(first.load(name).image, backwards[name])
    assert (first.load(names[0]).image != other.load(other.scan().samples.index[0]).image).mean() > 0.5


def test_the_columns_exercise_every_role_and_the_truth_is_not_among_the_stored_ones() -> None:
    scan = Synthetic(None, SMALL).scan()
    roles = {column.role for column in scan.columns.values()}
    assert roles == {"descriptor", "context", "near_label", "forbidden", "id"}
    stored = {name for name, column in COLUMNS.items() if column.role in ("descriptor", "context", "near_label")}
    assert set(scan.privileged.columns) == stored
    numeric = {name for name in stored if COLUMNS[name].kind == "numeric"}
    assert set(scan.privileged.select_dtypes("number").columns) == numeric
    assert (scan.labels.sum(axis=1) == 1).all()


def test_a_knob_out_of_range_or_unknown_is_told() -> None:
    with pytest.raises(ConfigError, match=r"cohort\.params\.label_noise"):
        validate(SyntheticParams, {"label_noise": 1.2}, "cohort.params")
    with pytest.raises(ConfigError, match="texture"):
        validate(SyntheticParams, {"textur": 0.2}, "cohort.params")


def test_smaller_lesions_change_the_images_and_no_earlier_fingerprint() -> None:
    half = SMALL.model_copy(update={"lesion": 0.5})
    whole, part = (Synthetic(None, params).load("train-0000-0").rois[0][1] for params in (SMALL, half))
    assert part.sum() == pytest.approx(whole.sum() / 4, rel=0.1)
    assert "lesion" not in SMALL.model_dump() and half.model_dump()["lesion"] == 0.5


def test_labels_can_be_hidden_from_the_end_of_the_training_part_and_change_nothing_else() -> None:
    whole, part = (Synthetic(None, SyntheticParams(train=60, val=30, test=12, **few)) for few in ({}, {"labelled": 40}))
    labels = whole.scan().labels
    labels.iloc[40:60] = np.nan
    pd.testing.assert_frame_equal(part.scan().labels, labels)
    assert "labelled" not in whole.params.model_dump()
    assert np.array_equal(part.load(labels.index[50]).image, whole.load(labels.index[50]).image)
