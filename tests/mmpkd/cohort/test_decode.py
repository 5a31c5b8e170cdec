"""Every kind of pixel becomes 8 or 16 bits, grey or colour; whatever cannot says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mmpkd.cohort.decode import Depth, decode, find_depth, read_image, to_8_bit
from mmpkd.cohort.facts import BadSample, RawImage
from mmpkd.cohort.formats.images import ADMITTED
from mmpkd.cohort.formats.masks import read_mask
from mmpkd.frames import from_run_lengths


def saved(folder: Path, image: Image.Image, name: str = "it.png") -> str:
    image.save(folder / name)
    return name


def test_transparent_pixels_become_black(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [200, 200, 200, 0]]], np.uint8)
    assert read_image(tmp_path, saved(tmp_path, Image.fromarray(rgba))).tolist() == [[[10, 20, 30], [0, 0, 0]]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 200, 200, 200])
    palette.save(tmp_path / "p.png", transparency=1)
    assert read_image(tmp_path, "p.png").tolist() == [[[9, 8, 7], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("pixels", "transparent", "read"),
    [
        (np.array([[10, 200]], np.uint8), 200, [[10, 0]]),
        (np.array([[True, False, True]]), 255, [[0, 0, 0]]),
        (np.array([[10, 3000]], np.uint16), 3000, [[10, 0]]),
        (np.array([[[1, 2, 3], [200, 200, 201]]], np.uint8), (200, 200, 201), [[[1, 2, 3], [0, 0, 0]]]),
    ],
)
def test_a_transparent_value_becomes_black(
    tmp_path: Path, pixels: np.ndarray, transparent: int | tuple[int, ...], read: list[object]
) -> None:
    """A PNG without an alpha channel may name one grey or colour that is transparent."""
    Image.fromarray(pixels).save(tmp_path / "it.png", transparency=transparent)
    found = read_image(tmp_path, "it.png")
    assert (found if np.ndim(read) == found.ndim else found[..., 0]).tolist() == read


def test_grey_one_bit_and_sixteen_bit(tmp_path: Path) -> None:
    grey = np.array([[0, 7, 255]], np.uint8)
    assert (read_image(tmp_path, saved(tmp_path, Image.fromarray(grey))) == grey).all()
    one_bit = read_image(tmp_path, saved(tmp_path, Image.fromarray(grey > 5)))
    assert one_bit.tolist() == [[0, 255, 255]]
    deep = np.array([[0, 300, 65535]], np.uint16)
    read = read_image(tmp_path, saved(tmp_path, Image.fromarray(deep)))
    assert read.dtype == np.uint16 and (read == deep).all()
    too_deep = saved(tmp_path, Image.fromarray(np.array([[70_000, 0]], np.int32)), "it.tif")
    with pytest.raises(BadSample) as caught:
        read_image(tmp_path, too_deep)
    assert caught.value.reason == "has pixels from 0 to 70000; 16 bits hold 0 to 65535, or -32768 to 32767"


def test_what_cannot_be_read_says_why_without_naming_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    saved(tmp_path, Image.fromarray(np.zeros((2, 2), np.float32)), "float.tif")
    for file, reason in {
        "nowhere.png": "cannot be read: No such file or directory",
        "empty.png": f"is not an image of a kind that is read here ({ADMITTED}), or is damaged",
        "float.tif": "has floating-point pixels; save it as grey of 8 or 16 bits, or as RGB of 8 bits",
    }.items():
        with pytest.raises(BadSample) as caught:
            read_image(tmp_path, file)
        assert (caught.value.file, caught.value.reason) == (file, reason)


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode"), IndexError(), MemoryError()])
def test_whatever_a_decoder_raises_is_a_bad_sample(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, Image.new("L", (2, 2)))

    def damaged(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr(PngImageFile, "load", damaged)
    with pytest.raises(BadSample) as caught:
        read_image(tmp_path, file)
    assert caught.value.reason == f"does not decode: {str(error) or type(error).__name__}"


def test_masks_are_true_above_half_of_their_maximum(tmp_path: Path) -> None:
    for values in ([0, 255], [0, 1], [3, 250]):
        file = saved(tmp_path, Image.fromarray(np.array([values], np.uint8)))
        assert read_mask(tmp_path, file, (1, 2)).tolist() == [[False, True]]
    empty = saved(tmp_path, Image.fromarray(np.zeros((1, 2), np.uint8)))
    assert not read_mask(tmp_path, empty, (1, 2)).any()


def test_window_by_hand() -> None:
    values = np.array([[0, 100, 150, 200, 300]], np.uint16)
    assert to_8_bit(values, Depth(16, (100, 200))).tolist() == [[0, 0, 128, 255, 255]]
    ramp = np.arange(1001, dtype=np.uint16)[None]
    assert find_depth([ramp], windowed=False) == Depth(16, (5.0, 995.0))
    assert find_depth([np.zeros((2, 2), np.uint8)], windowed=False) == find_depth([], windowed=False) == Depth(8, None)
    grey = np.arange(201, dtype=np.uint8)[None]
    assert find_depth([grey], windowed=True) == Depth(8, (1.0, 199.0))
    flat = find_depth([np.full((2, 2), 7, np.uint16)], windowed=False).window
    assert flat is not None and flat[1] > flat[0]  # does not divide by zero


def test_colour_becomes_luma_and_grey_becomes_colour() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert (decode(RawImage(red), 4, 1, (), [Depth()]).pixels_VCHW == 76).all()  # 0.299 x 255
    grey = decode(RawImage(np.full((4, 4), 9, np.uint8)), 4, 3, (), [Depth()]).pixels_VCHW
    assert grey.shape == (1, 3, 4, 4) and (grey == 9).all()


def test_views_follow_the_order_asked_for_and_keep_their_own_shape() -> None:
    raw = RawImage(
        np.full((4, 4), 1, np.uint8),
        {"a": np.full((4, 8), 2, np.uint8), "b": np.full((2, 2), 3, np.uint8)},
    )
    pixels = decode(raw, 4, 1, ("b", "a"), [Depth()] * 3).pixels_VCHW[:, 0]
    assert (pixels[0] == 1).all() and (pixels[1] == 3).all()
    assert pixels[2].tolist() == [[0] * 4, [2] * 4, [2] * 4, [0] * 4]


def test_regions_keep_their_label_and_resolution() -> None:
    mask = np.zeros((8, 8), bool)
    mask[4:, :4] = True
    raw = RawImage(np.zeros((8, 8), np.uint8), rois=[("x", mask), ("y", ~mask), ("x", np.zeros((8, 8), bool))])
    decoded = decode(raw, 4, 1, (), [Depth()])
    assert [roi.label for roi in decoded.rois] == ["x", "y"] and decoded.num_empty == 1
    assert (from_run_lengths(decoded.rois[0].runs, (8, 8)) == mask).all()
    assert (from_run_lengths(decoded.rois[1].store_runs, (4, 4)) == ~mask[::2, ::2]).all()
