"""Recognises images that show the same picture although their pixels differ.

Each image has a perceptual hash of 64 bits. Images whose hashes differ in few bits are candidates, and the pixels of
two candidates decide. Images are the same picture after a change of brightness or contrast, a lossy compression,
another size, a mirroring, a quarter turn, an exchange of black and white, or a crop of a few hundredths of a side.
Larger crops and other turns are not recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mmpkd.machine.resources import cores

Hashes = NDArray[np.uint64]

NO_HASH = np.uint64(0)  # the hash of an image that is too small, or that has one value all over
SIDE = 8  # frequencies along each side of a hash
BITS = SIDE * SIDE
MIN_SIDE = 16  # an image with a shorter side, in stored pixels, has no hash
MAX_DISTANCE = 10  # number of differing bits, of 64, up to which images are candidates
MIN_COSINE = 0.8  # of the coefficients behind two hashes
MIN_CORRELATION = 0.7  # of nearly all tiles of two images that are laid over each other
MAX_DEVIANT = 15  # per cent of the tiles that may be less alike, because something covers or cuts them
GRID = 64  # side of the square in which pixels are compared
TILES = 8  # tiles along each side of this square
EVEN = 0.03  # a tile is too even to be compared if its details have this share of the image's contrast, or less
MIN_TILES = 16  # a quarter of them; letters before black fill fewer, and say nothing of a patient
NUM_STEPS = 8  # steps with which two images are laid over each other
MAX_SHIFT = 0.15  # of half an image: what must be moved or stretched further is another picture
BLOCK = 1 << 18  # pairs compared at once, which fit into a processor's cache

_ROW, _COLUMN = np.divmod(np.arange(BITS), SIDE)
_BIT = np.uint64(1) << np.arange(BITS, dtype=np.uint64)


def _bits(is_set: NDArray[Any]) -> Any:
    return np.where(is_set, _BIT, np.uint64(0)).sum(axis=-1, dtype=np.uint64)


# A mirrored image has the same coefficients with another sign at every second frequency: at even numbers of `_ROW` and
# `_COLUMN`, which count the frequencies 1 to 8 from 0. The bits that change: by no mirroring, upside down, left to
# right, and both.
MIRRORINGS: Hashes = np.array(
    [0, _bits(_ROW % 2 == 0), _bits(_COLUMN % 2 == 0), _bits((_ROW + _COLUMN) % 2 == 1)], np.uint64
)


class Pair(NamedTuple):
    """Two images whose hashes are close if the second image is changed.

    Attributes:
        mirroring: position in MIRRORINGS.
        is_turned: whether rows and columns of the second image are exchanged before it is mirrored.
        is_negative: whether black and white are exchanged.
    """

    first: int
    second: int
    mirroring: int = 0
    is_turned: bool = False
    is_negative: bool = False


def perceptual_hash(image_HW: NDArray[Any]) -> np.uint64:
    """Returns the signs of the 64 lowest frequencies of an image, without those that are constant along a side.

    This is the hash of Zauner 2010 (Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1)
    with two differences: the discrete cosine transform is that of the whole image, which needs no reduction to 32 x 32
    pixels, and the coefficients are compared with 0, not with their median. Then a mirroring changes known bits.
    """
    if min(image_HW.shape) < MIN_SIDE or image_HW.min() == image_HW.max():
        return NO_HASH
    return np.uint64(_bits(_coefficients(image_HW) > 0))


def _coefficients(image_HW: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the 64 coefficients of a discrete cosine transform (DCT-II), rows first."""
    rows, columns = (_cosines(length) for length in image_HW.shape)
    transformed: NDArray[np.float32] = (rows @ image_HW.astype(np.float32) @ columns.T).ravel()
    return transformed


@lru_cache(maxsize=4096)
def _cosines(length: int) -> NDArray[np.float32]:
    frequencies = np.arange(1, SIDE + 1)
    waves = np.cos(np.pi * np.outer(frequencies, 2 * np.arange(length) + 1) / (2 * length))
    return waves.astype(np.float32)


def candidates(hash_N: Hashes, hash_M: Hashes | None = None) -> Iterator[list[Pair]]:
    """Yields lists of pairs of images whose hashes differ in at most MAX_DISTANCE bits, one of them perhaps changed.

    All pairs are compared, in blocks that several threads share.

    Args:
        hash_M: hashes of other images, which are the second of each pair. None compares the images among themselves;
            then the first of a pair has the smaller position.
    """
    others = hash_N if hash_M is None else hash_M
    height = max(1, BLOCK // max(1, len(others)))
    exchanged = _exchanged(others)

    def compare(start: int) -> list[Pair]:
        skipped = start + 1 if hash_M is None else 0
        pairs = []
        for is_turned, hashes in enumerate((others, exchanged)):
            differing_nm = hash_N[start : start + height, None] ^ hashes[None, skipped:]
            is_close_nm = np.zeros(differing_nm.shape, bool)
            for changed in MIRRORINGS:
                distance_nm = np.bitwise_count(differing_nm ^ changed)
                is_close_nm |= (distance_nm <= MAX_DISTANCE) | (distance_nm >= BITS - MAX_DISTANCE)
            for row, column in np.argwhere(is_close_nm):
                first, second = int(row) + start, int(column) + skipped
                if (hash_M is not None or first < second) and NO_HASH not in (hash_N[first], others[second]):
                    distances = np.bitwise_count(differing_nm[row, column] ^ MIRRORINGS).astype(int)
                    distances = np.stack([distances, BITS - distances])  # all bits of a negative are others
                    is_negative, mirroring = divmod(int(distances.argmin()), len(MIRRORINGS))
                    pairs.append(Pair(first, second, mirroring, bool(is_turned), bool(is_negative)))
        return pairs

    with ThreadPoolExecutor(cores().amount) as pool:
        yield from filter(None, pool.map(compare, range(0, len(hash_N), height)))


def _exchanged(hash_N: Hashes) -> Hashes:
    """Returns the hashes of images whose rows and columns are exchanged."""
    is_set = (hash_N[:, None] & _BIT[_COLUMN * SIDE + _ROW]) != 0
    return np.array(_bits(is_set), np.uint64)


def is_same_picture(first_HW: NDArray[Any], second_HW: NDArray[Any], pair: Pair) -> bool:
    """Returns whether two images show the same picture, the second one changed as `pair` says.

    The images are laid over each other, and their details are compared tile by tile. Nearly all tiles must agree:
    images of different patients share a frame with letters or the outline of a body, copies of one image may differ in
    a label in one corner.
    """
    if pair.is_negative:
        second_HW = 255 - second_HW
    if pair.is_turned:
        second_HW = second_HW.T
    if pair.mirroring in (1, 3):
        second_HW = second_HW[::-1]
    if pair.mirroring in (2, 3):
        second_HW = second_HW[:, ::-1]
    if np.array_equal(first_HW, second_HW):
        return True
    # Low frequencies are strong in every image and would decide alone, hence the weights. The test is cheap, and spares
    # most candidates of cohorts whose images are much alike the comparison of pixels.
    weight = _ROW + _COLUMN + 1
    first, second = (weight * _coefficients(image_HW) for image_HW in (first_HW, second_HW))
    if first @ second < MIN_COSINE * np.sqrt((first @ first) * (second @ second)):
        return False
    fixed, moving = (_square(image_HW) for image_HW in (first_HW, second_HW))
    moved = _laid_over(fixed, moving)
    return moved is not None and _agreement(fixed, moved) >= MIN_CORRELATION


def _square(image_HW: NDArray[Any]) -> NDArray[np.float64]:
    resized = Image.fromarray(image_HW.astype(np.float32)).resize((GRID, GRID), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64)


def _laid_over(fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Returns `moving` stretched and shifted along both sides so that it fits `fixed`, or None if it cannot fit.

    The steps are those of Gauss and Newton for the squared difference (Lucas and Kanade 1981), with a gain and an
    offset of the brightness.
    """
    place = np.linspace(-1, 1, GRID)
    rows, columns = np.meshgrid(place, place, indexing="ij")
    half = (GRID - 1) / 2
    stretch_y, shift_y, stretch_x, shift_x = 1.0, 0.0, 1.0, 0.0
    moved = moving
    for _ in range(NUM_STEPS):
        slope_y, slope_x = half * np.gradient(moved, axis=0), half * np.gradient(moved, axis=1)
        terms = np.stack([slope_y * rows, slope_y, slope_x * columns, slope_x, moved, np.ones_like(moved)], axis=-1)
        terms_n6 = terms.reshape(-1, terms.shape[-1])
        # The normal equations: with all threads of a busy machine, a direct solution took ten times as long.
        solution = np.linalg.lstsq(terms_n6.T @ terms_n6, terms_n6.T @ fixed.ravel(), rcond=None)[0]
        gain = solution[4]
        if gain < 0.1:  # the images have nothing in common
            return None
        step = solution[:4] / gain
        stretch_y, shift_y = stretch_y + step[0], shift_y + step[1]
        stretch_x, shift_x = stretch_x + step[2], shift_x + step[3]
        if max(abs(stretch_y - 1), abs(shift_y), abs(stretch_x - 1), abs(shift_x)) > MAX_SHIFT:
            return None
        where = [(stretch_y * rows + shift_y + 1) * half, (stretch_x * columns + shift_x + 1) * half]
        moved = ndimage.map_coordinates(moving, where, order=1, mode="nearest")
    return moved


def _agreement(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Returns the correlation of details that all tiles of two squares reach but MAX_DEVIANT per cent.

    Tiles that are even in both squares do not count. The result is 0 if fewer than MIN_TILES are left.
    """
    tiles, limits = [], []
    for square in (first, second):
        details = square - ndimage.gaussian_filter(square, 2)
        width = GRID // TILES
        by_tile = details.reshape(TILES, width, TILES, width).swapaxes(1, 2).reshape(TILES * TILES, -1)
        tiles.append(by_tile - by_tile.mean(axis=1, keepdims=True))
        limits.append(EVEN**2 * square.var())
    power = [(by_tile**2).mean(axis=1) for by_tile in tiles]
    is_used = (power[0] > limits[0]) | (power[1] > limits[1])
    if is_used.sum() < MIN_TILES:
        return 0.0
    covariance = (tiles[0] * tiles[1]).mean(axis=1)[is_used]
    return float(np.percentile(covariance / np.sqrt(power[0] * power[1] + 1e-12)[is_used], MAX_DEVIANT))


@dataclass(frozen=True)
class Pictures:
    """Stored images as they are compared: in grey, without the padding of the letterbox.

    image_NCHW: stored images; it may hold further images.
    row_n: positions of the compared images in `image_NCHW`.
    box_n4: top, left, bottom and right edge of each compared image in its square.
    """

    image_NCHW: NDArray[np.uint8]
    row_n: NDArray[np.int64]
    box_n4: NDArray[np.int64]

    def grey(self, position: int) -> NDArray[Any]:
        """Returns the image at a position of `row_n`, H x W; of colours the mean."""
        top, left, bottom, right = self.box_n4[position]
        content_CHW = self.image_NCHW[self.row_n[position], :, top:bottom, left:right]
        grey_HW: NDArray[Any] = content_CHW[0] if len(content_CHW) == 1 else content_CHW.mean(axis=0)
        return grey_HW

    def hashes(self) -> Hashes:
        """Returns the perceptual hash of each compared image."""
        return np.array([perceptual_hash(self.grey(position)) for position in range(len(self.row_n))], np.uint64)
