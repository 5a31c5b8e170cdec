"""How the pixel values of a cohort's images become 8 bits: found in the data, or asked for."""

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

DEPTHS = "depths.json"  # of a partial store
WINDOW_SAMPLES = 32  # images, evenly spaced and none of the sealed test's, that give a cohort's window


def contrast_options(config: CohortConfig) -> dict[str, Any]:
    """The options that change brightness, where there are any."""
    stated = {"window": config.window, "clahe": config.clahe}
    return {name: option.model_dump() for name, option in stated.items() if option is not None}


def apply_contrast(config: CohortConfig, found: Depth) -> Depth:
    """With the window and the CLAHE that are asked for; both are of a cohort's own images alone."""
    window = found.window if config.window is None else config.window.ends
    clahe = None if config.clahe is None else Clahe(config.clahe.clip_limit, config.clahe.tiles)
    return Depth(found.bits, window, clahe)


def find_depths(partial: Path, reader: Reader, views: tuple[str, ...], ids: list[str]) -> list[Depth]:
    """Of the image and of each view; found once, so that a preparation that goes on keeps its window."""

    def look(position: int) -> list[np.ndarray]:
        with suppress(BadSample):  # listed with the others when its turn comes
            raw = reader.load(ids[position])
            return [sample_pixels(image) for image in (raw.image, *(raw.views[view] for view in views))]
        return []

    if known := read_noted_depths(partial):
        return known
    first, *others = np.unique(np.linspace(0, len(ids) - 1, WINDOW_SAMPLES).astype(int)).tolist()
    looked = [look(first)]
    if reader.windowed or not looked[0] or any(pixels.dtype != np.uint8 for pixels in looked[0]):  # a window is wanted
        with ThreadPoolExecutor(cores().amount) as pool:
            looked = [images for images in (*looked, *pool.map(look, others)) if images]
    depths = [find_depth([images[at] for images in looked], reader.windowed) for at in range(1 + len(views))]
    (partial / DEPTHS).write_text(sealed({"depths": depths}))
    return depths


def read_noted_depths(partial: Path) -> list[Depth]:
    """What an interrupted preparation noted; none where that is damaged or was not noted yet."""
    try:
        found = unsealed((partial / DEPTHS).read_bytes())["depths"]
        return [read_depth(*stated) for stated in found]
    except (OSError, ValueError, LookupError, TypeError):
        return []
