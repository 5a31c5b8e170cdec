"""Writes remarks on unusual pixels and regions of a cohort's readable files.

`prepare` prints the remarks and keeps them in the store's manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import ndimage

from mmpkd.cohort.decode import Appearance, Depth
from mmpkd.cohort.facts import Scan
from mmpkd.cohort.journal import Entry
from mmpkd.frames import Letterbox, from_run_lengths
from mmpkd.vlm import boxes

OWN = "images"  # the name of a cohort's main images in remarks
MIN_IMAGES = 10  # brightness is compared only in cohorts with this many images
UNEVEN_RATIO = 3.0  # brightness is uneven if the 95th percentile of the images' means is this multiple of the 5th
DARK = 64  # grey level of 255; most grey levels are unused if no image's 99th percentile reaches this one
BLACK, WHITE = 16, 240  # grey levels of 255; an image with a mean below the first or above the second shows nothing
LARGE_SHARE = 0.5  # a region is large if it covers at least this share of its image
HOLLOW_RATIO = 2.0  # a region looks like an outline if filling it multiplies its area by at least this factor
# Boxes within the pixels of their images are suspected if boxes on the grid lie there with at most this probability.
MOST_CHANCE = 1e-3
MIN_BOXES = 10  # where others are on the grid, fewer boxes are not suspected to be in pixels
CORNER_SIDE = 400  # pixels; only in smaller images do the four corners of this many steps of 1000 lie well apart
CORNER_RATIO = 4  # so many times as many boxes at the top left as in any other corner are suspected to be in pixels
MAX_SHAPES = 500  # maximum number of regions that are examined for their shape


def remarks(entries: Mapping[str, Entry], scan: Scan, depths: Sequence[Depth]) -> list[str]:
    """Returns all remarks on a cohort, as sentences that name no sample.

    Args:
        entries: the journal entry of each sample, by the sample's id.
        depths: the Depth of the images, then the Depth of each view.
    """
    lines = []
    for index, depth in enumerate(depths):
        images = OWN if index == 0 else f"images of view {scan.views[index - 1]!r}"
        appearances = [entry.appearances[index] for entry in entries.values()]
        lines += [*brightness_remarks(appearances, depth, images), *_colour_remarks(appearances, scan.channels, images)]
        lines += _unit_remarks(appearances, images)
    return [*lines, *_region_remarks([*entries.values()], scan.roi_labels), *_box_remarks(entries, scan.questions)]


def brightness_remarks(appearances: Sequence[Appearance], depth: Depth, images: str) -> list[str]:
    """Returns remarks on the brightness of images within their window. `images` is the name of the images in these
    remarks."""
    lines = []
    mean_N, high_N = (np.array([getattr(appearance, name) for appearance in appearances]) for name in ("mean", "high"))
    is_blank_N = np.array([appearance.is_blank for appearance in appearances])
    whose = spread = ""
    if images == OWN:
        spread = "; cohort.window={level: .., width: ..} spreads what there is"
    else:
        whose = f" ({images})"
    how = "values are kept as they are"
    if depth.window is not None:
        how = f"one window, {depth.window[0]:g} to {depth.window[1]:g}, serves all of them"
    if num_blank := int(is_blank_N.sum()):
        lines.append(f"warning: {images} of one value all over: {num_blank} of {len(appearances)}")
    if len(appearances) >= MIN_IMAGES:
        low, high = np.percentile(mean_N, [5, 95])
        if high >= UNEVEN_RATIO * max(float(low), 1.0):
            lines.append(
                f"warning: stored {images} differ in brightness, means from {low:.0f} (5th percentile) to {high:.0f} "
                f"(95th) of 255, and {how}. If they come from several machines or are in several units, bring them to "
                "one scale"
            )
        if depth.window is None and high_N.max() < DARK:
            lines.append(
                f"warning: in no image is more than a hundredth brighter than {high_N.max():.0f} of 255{whose}. If "
                f"values of more bits were cut to 8, go back to those{spread}"
            )
    if not lines or num_blank == len(lines) == 1:
        remedy = ". If others, or letters burnt into them, have a larger range, bring them to one scale"
        remedy += ", or state a cohort.window" if images == OWN else ""
        lines += [line + remedy for line in nearly_black_or_white(appearances, depth, images)]
    return lines


def nearly_black_or_white(appearances: Sequence[Appearance], depth: Depth, images: str) -> list[str]:
    """Returns remarks that state how many images are nearly black or nearly white. Images in which all pixels have the
    same value are not counted."""
    how = "values are kept as they are"
    if depth.window is not None:
        how = f"one window, {depth.window[0]:g} to {depth.window[1]:g}, serves all of them"
    lines = []
    means = [appearance.mean for appearance in appearances if not appearance.is_blank]
    for word, count in (("black", sum(mean < BLACK for mean in means)), ("white", sum(mean > WHITE for mean in means))):
        if count:
            lines.append(
                f"warning: {images} that are all but {word} as they are stored: {count} of {len(appearances)}; {how}"
            )
    return lines


def _colour_remarks(appearances: Sequence[Appearance], channels: int, images: str) -> list[str]:
    num_coloured = sum(appearance.is_coloured for appearance in appearances)
    if not num_coloured:
        return []
    if channels == 1:
        count = f"{images} in colour, be it a tint or a mark, stored as grey: {num_coloured} of {len(appearances)}"
        return [f"{count}; channels: 3 in cohort.params (reader table) keeps the colours"]
    if num_grey := len(appearances) - num_coloured:
        what = "check whether that reveals the label or the site"
        return [f"warning: {images} without colour among those with: {num_grey} of {len(appearances)}; {what}"]
    return []


def _unit_remarks(appearances: Sequence[Appearance], images: str) -> list[str]:
    """Returns a remark if the files state several modalities or units. It counts the images of each."""
    counts = Counter(
        (appearance.modality or "no modality", appearance.unit or "no stated unit") for appearance in appearances
    )
    if len(counts) == 1:
        return []
    kinds = ", ".join(f"{modality} in {unit}: {count}" for (modality, unit), count in sorted(counts.items()))
    remark = f"{images} are of several kinds, as their files say ({kinds})"
    if len({unit for _, unit in counts}) == 1:
        return [remark]
    return [f"warning: {remark}, and one window serves all of them: bring them to one unit"]


def _region_remarks(entries: Sequence[Entry], roi_labels: Sequence[str]) -> list[str]:
    lines = []
    for label in roi_labels:
        with_region = [entry for entry in entries if any(roi.label == label for roi in entry.rois)]
        shares = [
            sum(int(roi.runs[1::2].sum()) for roi in entry.rois if roi.label == label) / (entry.height * entry.width)
            for entry in with_region
        ]
        if num_large := sum(share > LARGE_SHARE for share in shares):
            lines.append(
                f"warning: regions of {label} that cover more than half of their image: {num_large} of {len(shares)}. "
                "If their masks are dark on a bright ground, say so: mask_value: 0 (reader table)"
            )
        lines += _shape_remarks(with_region[:: 1 + len(with_region) // MAX_SHAPES], label, bool(num_large))
        if not shares and any(entry.num_empty for entry in entries):
            lines.append(
                f"warning: not one sample has a region of {label}: all its masks are empty, or lack its mask_value"
            )
    return lines


def _box_remarks(entries: Mapping[str, Entry], questions: pd.DataFrame | None) -> list[str]:
    """Returns a warning if all or some boxes of questions and answers seem to be in pixels.

    Coordinates in pixels lie within the width and height of their image. Boxes on the grid that end anywhere do so with
    the probability (width / 1000) x (height / 1000), so that few boxes of small images are enough for a warning, and no
    number of boxes of images with 1000 pixels a side. Equal boxes of one image count once. If only some boxes are in
    pixels, the top left corner of the grid, which is as wide and high as the image in pixels, holds many more boxes
    than the other corners.
    """
    num_within, chance = 0, 1.0
    in_corner: Counter[tuple[bool, bool]] = Counter()  # by whether a box lies at the right, and at the bottom
    shown = [] if questions is None else [questions[["sample", name]].dropna() for name in ("question", "answer")]
    texts = [(sample, text) for column in shown for sample, text in column.itertuples(index=False) if sample in entries]
    boxed = {(sample, box) for sample, text in texts if boxes.TAGGED.search(text) for box in boxes.parse(text)}
    num_boxes = len(boxed)
    for sample, box in boxed:
        entry = entries[sample]
        chance *= min(1.0, entry.width / boxes.GRID) * min(1.0, entry.height / boxes.GRID)
        num_within += box.right <= entry.width and box.bottom <= entry.height
        is_left, is_right = box.right <= entry.width, box.left >= boxes.GRID - entry.width
        is_top, is_bottom = box.bottom <= entry.height, box.top >= boxes.GRID - entry.height
        if max(entry.width, entry.height) < CORNER_SIDE and (is_left or is_right) and (is_top or is_bottom):
            in_corner[is_right, is_bottom] += 1
    num_first = in_corner.pop((False, False), 0)
    most = max(in_corner.values(), default=0)
    remedy = "bring them to the grid of 0 to 1000: 1000 x pixel / side"
    if num_within == num_boxes and chance <= MOST_CHANCE:
        what = f"none of the {num_boxes} boxes of questions and answers reaches beyond the pixels of its image"
        return [f"warning: {what}. If they are in pixels, {remedy}"]
    if num_first >= max(MIN_BOXES, CORNER_RATIO * (1 + most)):
        what = f"{num_first} of the {num_boxes} boxes of questions and answers lie within the pixels of their image"
        where = f"no other corner of the grid holds more than {most}"
        return [f"warning: {what}, and {where}. If these are in pixels and the others are not, {remedy}"]
    return []


def _shape_remarks(entries: Sequence[Entry], label: str, are_large: bool) -> list[str]:
    """Returns warnings if regions of a label seem to be the background, or seem to be outlines without a filling."""
    num_around = num_hollow = 0
    for entry in entries:
        stored = [roi.store_runs for roi in entry.rois if roi.label == label]
        size = int(np.sqrt(stored[0].sum()))
        box = Letterbox(entry.height, entry.width, size).content
        mask_HW = np.any([from_run_lengths(runs, (size, size)) for runs in stored], axis=0)
        mask_HW = mask_HW[box.top : box.bottom, box.left : box.right]
        num_around += bool(mask_HW[[0, 0, -1, -1], [0, -1, 0, -1]].all())
        num_hollow += ndimage.binary_fill_holes(mask_HW).sum() >= HOLLOW_RATIO * mask_HW.sum()
    lines = []
    if num_around and not are_large:
        remedy = "If their masks are dark on a bright ground, say so: mask_value: 0 (reader table)"
        lines.append(
            f"warning: regions of {label} that reach all four corners of their image: {num_around} of {len(entries)}. "
            f"{remedy}"
        )
    elif num_hollow > len(entries) / 2:
        remedy = "If they are outlines of regions, fill them"
        lines.append(f"warning: regions of {label} that are hollow: {num_hollow} of {len(entries)}. {remedy}")
    return lines
