"""What is odd about a cohort's pixels and regions though every file could be read; said at prepare, and kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmpkd.cohort.decode import Depth
from mmpkd.cohort.journal import Entry

FEWEST = 10  # images of a cohort whose brightness is compared
UNEVEN = 3.0  # how many times as bright the 95th of a hundred images is than the 5th
DARK = 64  # of 255: where nothing in any image is brighter, most levels are unused
LARGE = 0.5  # share of an image


def remarks(entries: Sequence[Entry], roi_labels: Sequence[str], channels: int, depth: Depth) -> list[str]:
    """Sentences, none of which names a sample."""
    return [*_of_brightness(entries, depth), *_of_colour(entries, channels), *_of_regions(entries, roi_labels)]


def _of_brightness(entries: Sequence[Entry], depth: Depth) -> list[str]:
    lines = []
    mean_N, high_N = (np.array([getattr(entry.look, name) for entry in entries]) for name in ("mean", "high"))
    if num_blank := sum(entry.look.is_blank for entry in entries):
        lines.append(f"warning: images of one value all over: {num_blank} of {len(entries)}")
    if len(entries) < FEWEST:
        return lines
    low, high = np.percentile(mean_N, [5, 95])
    if high >= UNEVEN * max(float(low), 1.0):
        how = "values are kept as they are"
        if depth.window is not None:
            how = f"one window, {depth.window[0]:g} to {depth.window[1]:g}, serves all of them"
        lines.append(
            f"warning: stored images differ in brightness, means from {low:.0f} (5th percentile) to {high:.0f} (95th) "
            f"of 255, and {how}. If they come from several machines or are in several units, bring them to one scale"
        )
    if depth.window is None and high_N.max() < DARK:
        lines.append(
            f"warning: in no image is more than a hundredth brighter than {high_N.max():.0f} of 255. If values of more "
            "bits were cut to 8, go back to those; cohort.window={level: .., width: ..} spreads what there is"
        )
    return lines


def _of_colour(entries: Sequence[Entry], channels: int) -> list[str]:
    num_coloured = sum(entry.look.is_coloured for entry in entries)
    if not num_coloured:
        return []
    if channels == 1:
        return [f"images in colour, stored as grey: {num_coloured} of {len(entries)}; channels: 3 keeps the colours"]
    if num_grey := len(entries) - num_coloured:
        what = "does that tell the label or the site?"
        return [f"warning: images without colour among those with: {num_grey} of {len(entries)}; {what}"]
    return []


def _of_regions(entries: Sequence[Entry], roi_labels: Sequence[str]) -> list[str]:
    lines = []
    for label in roi_labels:
        shares = [
            sum(int(roi.runs[1::2].sum()) for roi in entry.rois if roi.label == label) / (entry.height * entry.width)
            for entry in entries
            if any(roi.label == label for roi in entry.rois)
        ]
        if num_large := sum(share > LARGE for share in shares):
            lines.append(
                f"warning: regions of {label} that cover more than half of their image: {num_large} of {len(shares)}. "
                "If they are dark on a bright ground, say so: mask_value: 0 (reader table)"
            )
        if not shares and any(entry.num_empty for entry in entries):
            lines.append(
                f"warning: not one sample has a region of {label}: all its masks are empty, or lack its mask_value"
            )
    return lines
