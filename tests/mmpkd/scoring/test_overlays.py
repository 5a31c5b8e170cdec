"""Pictures of an image beside its map: panels, ruler, scale of colours, text, and names of files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmpkd.scoring.overlays import BAR, COLOURS, GAP, MIN_SIDE, beside, file_names, overlay, picture_names, ruler_length


@pytest.mark.parametrize(
    ("images", "pictures"),
    [
        (["a.png", "b.PNG", "c.jpg", "d/a.png"], ["a", "b", "c.jpg", "d/a"]),
        (["a", "a.png"], ["a", "a.png"]),
        (["a.jpg", "a.jpg.png", "c.png"], ["a.jpg", "a.jpg.png", "c.png"]),
        (["a.png", "a.PNG"], ["a.png", "a.PNG"]),
    ],
)
def test_every_image_has_its_own_picture_name(images: list[str], pictures: list[str]) -> None:
    assert picture_names(images) == dict(zip(images, pictures, strict=True))


def test_every_task_has_a_picture_of_its_own() -> None:
    names = ["size/<5 mm", "size/>5 mm", "size--5 mm", "Edema", "edema", "../up", "a/b", "a-b-2", "a-b"]
    parts = file_names(names)
    assert len({part.casefold() for part in parts}) == len(names) and not any("/" in part for part in parts)
    assert parts[3] == "Edema" and parts[6] == "a-b" and file_names(["dx"]) == ["dx"]


def test_pictures_of_images_and_tasks_do_not_collide() -> None:
    """Image `x` with task `A.B` and image `x.A` with task `B` would both be `x.A.B`."""
    tasks = file_names(["A.B", "B"])
    names = [f"{picture}.{task}" for picture in picture_names(["x.png", "x.A.png"]).values() for task in tasks]
    assert len(set(names)) == 4


def test_the_image_is_on_the_left_and_its_overlay_on_the_right() -> None:
    image = np.full((400, 500), 90, np.uint8)
    heat_HW = np.zeros((400, 500), np.float32)
    heat_HW[300, 400] = 2
    overlaid = overlay(image, heat_HW)
    peak = 0.4 * 90 + 0.6 * 255 * np.array(COLOURS(1.0)[:3])  # opacity 0.6 at the maximum, 0 at the minimum
    np.testing.assert_array_equal(np.asarray(overlaid)[300, 400], peak.round())
    assert np.asarray(overlaid)[0, 0].tolist() == [90] * 3
    picture = np.asarray(beside(image, overlaid, ["dx: yes 0.731"], None))
    assert (picture[:400, :500] == 90).all() and (picture[:400, 500 : 500 + GAP] == 255).all()
    np.testing.assert_array_equal(picture[:400, 500 + GAP :], np.asarray(overlaid))


def test_a_large_image_is_scaled_down_and_a_small_one_up() -> None:
    for shape, width in (((2000, 3000), 1024), ((20, 40), MIN_SIDE)):
        image = np.zeros(shape, np.uint8)
        picture = beside(image, overlay(image, np.zeros(shape, np.float32)), [], None)
        assert picture.width == 2 * width + GAP


def test_the_ruler_has_its_length_in_millimetres_also_on_a_scaled_image() -> None:
    """An image of 2048 columns of 0.1 mm is 204.8 mm wide and 1024 pixels in the picture: 50 mm are 250 pixels."""
    image = np.zeros((500, 2048), np.uint8)
    overlaid = overlay(image, np.zeros(image.shape, np.float32))
    with_ruler, without = (np.asarray(beside(image, overlaid, [], spacing)) for spacing in (0.1, None))
    changed_WH = (with_ruler != without).any(axis=2)[250:, :].T
    dark_W = (with_ruler == 0).all(axis=2)[250:].T.sum(axis=1)
    columns = np.flatnonzero(dark_W >= 2)
    start = int(columns[0])
    assert start in (GAP - 1, GAP) and changed_WH.any()
    run = next(index for index in range(start, 1024) if dark_W[index] < 2) - start
    assert abs(run - 250) <= 3  # the lines at the ends are two pixels wide


@pytest.mark.parametrize(("longest", "length"), [(68.3, 50), (20, 20), (19.9, 10), (1, 1), (0.4, 0.2), (730, 500)])
def test_rulers_have_round_lengths(longest: float, length: float) -> None:
    assert ruler_length(longest) == pytest.approx(length)


def test_the_scale_runs_through_the_colours_of_the_map() -> None:
    image = np.zeros((500, 300), np.uint8)
    picture = np.asarray(beside(image, Image.fromarray(image).convert("RGB"), [], None))
    assert (picture[500:, -GAP // 2 :] == 255).all()  # the words beside the scale are not cut off
    wanted_W3 = (255 * COLOURS(np.linspace(0, 1, BAR[0]))[:, :3]).round().astype(np.uint8)
    row = picture[500 + GAP + 3 + BAR[1] // 2]
    matches = [(row[start : start + BAR[0]] == wanted_W3).all() for start in range(len(row) - BAR[0] + 1)]
    assert sum(map(bool, matches)) == 1


def test_long_text_is_wrapped_and_makes_the_picture_higher() -> None:
    image = np.zeros((50, 50), np.uint8)
    overlaid = Image.fromarray(image).convert("RGB")
    short, long = (beside(image, overlaid, ["finding 0.123, " * count], None) for count in (1, 20))
    assert long.width == short.width and long.height > short.height
