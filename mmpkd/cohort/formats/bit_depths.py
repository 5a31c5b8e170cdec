"""Decides how the pixel values of a cohort are converted to 8 bits: by a window from the data or from the options."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmpkd.cohort.decode import Clahe, Depth, find_depth, read_depth, sample_pixels
from mmpkd.cohort.facts import BadSample, Reader
from mmpkd.config import CohortConfig
from mmpkd.machine.checksums import sealed, unsealed
from mmpkd.machine.resources import cores

DEPTHS = "depths.json"  # name of a file that exists only while a store is being prepared
WINDOW_SAMPLES = 32  # number of evenly spaced images, none of them sealed as test, that determine a cohort's window


def contrast_options(config: CohortConfig) -> dict[str, Any]:
    """Returns the options of a cohort that change brightness (`window` and `clahe`), if they are set."""
    stated = {"window": config.window, "clahe": config.clahe}
    return {name: option.model_dump() for name, option in stated.items() if option is not None}


def apply_contrast(config: CohortConfig, depth: Depth) -> Depth:
    """Returns `depth`, the Depth of the images, changed as the options `window` and `clahe` state.

    Without the option `window`, the window of `depth` is kept; without `clahe`, there is no CLAHE. The options do not
    apply to views.
    """
    window = depth.window if config.window is None else config.window.ends
    clahe = None if config.clahe is None else Clahe(config.clahe.clip_limit, config.clahe.tiles)
    return Depth(depth.bits, window, clahe)


def find_depths(partial: Path, reader: Reader, views: tuple[str, ...], ids: list[str]) -> list[Depth]:
    """Returns the Depth of the images and the Depth of each view.

    They are determined from the samples `ids` once and written to the folder `partial`, so that a continued preparation
    keeps its windows.
    """

    def sample_images(position: int) -> list[np.ndarray]:
        with suppress(BadSample):  # `decode_all` lists this sample later, with the other bad samples
            raw = reader.load(ids[position])
            return [sample_pixels(image) for image in (raw.image, *(raw.views[view] for view in views))]
        return []

    if noted := read_noted_depths(partial):
        return noted
    first, *others = np.unique(np.linspace(0, len(ids) - 1, WINDOW_SAMPLES).astype(int)).tolist()
    sampled = [sample_images(first)]
    needs_window = reader.windowed or not sampled[0] or any(pixels.dtype != np.uint8 for pixels in sampled[0])
    if needs_window:
        with ThreadPoolExecutor(cores().amount) as pool:
            sampled = [images for images in (*sampled, *pool.map(sample_images, others)) if images]
    depths = [find_depth([images[index] for images in sampled], reader.windowed) for index in range(1 + len(views))]
    (partial / DEPTHS).write_text(sealed({"depths": depths}))
    return depths


def read_noted_depths(partial: Path) -> list[Depth]:
    """Returns the depths that an interrupted preparation wrote. The list is empty if their file is missing or
    damaged."""
    try:
        return [read_depth(*depth) for depth in unsealed((partial / DEPTHS).read_bytes())["depths"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []
