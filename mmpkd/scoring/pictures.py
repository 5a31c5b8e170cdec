"""Pictures of what a student looks at: validation images with their regions, and the student's map over them.

A picture holds no name of a sample. The pixels are those of patients, so pictures of credentialed cohorts must stay
where the images are.
"""

from __future__ import annotations

from typing import Final

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.store import Store
from mmpkd.export.student_file import Exported
from mmpkd.scoring.saliency import MAPS

TILE: Final = 160  # pixels, side of an image in the picture
OUTLINE: Final = (0, 255, 255)  # of regions; the map's colours hold no cyan
ALPHA: Final = 0.6  # opacity of the map at its maximum
COLOURS: Final = matplotlib.colormaps["inferno"]


def example_rows(store: Store, fold: int, count: int = 8) -> NDArray[np.int64]:
    """Returns the positions of up to `count` validation samples, evenly spaced, which are the same for every student.
    If there are validation samples with a region, only these are taken.
    """
    rows = store.rows("val", fold)
    if store.facts.roi_labels:
        with_region = [row for row in rows if store.roi_mask(np.array([row])).any()]
        rows = np.array(with_region) if with_region else rows
    chosen: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return chosen


def overlay_sheet(exported: Exported, store: Store, rows: NDArray[np.int64]) -> Image.Image:
    """Returns a picture with a column for each sample: the image with the outline of its regions, and below it the
    image under the student's map, scaled by its minimum and maximum. Of maps by label it shows their mean.
    """
    images_NCHW = store.image_NCHW[rows]
    pixels_NCHW = torch.from_numpy(np.array(images_NCHW)).float() / 255
    tasks = exported.card.tasks
    columns = [tuple(range(task.columns.start, task.columns.stop)) for task in tasks]
    exported.student.eval()
    _, map_NRhw = MAPS[exported.card.map]()(exported.student, pixels_NCHW, columns)
    has_regions = bool(store.facts.roi_labels)
    sheet = Image.new("RGB", (TILE * len(rows), 2 * TILE))
    for index, (image_CHW, map_hw) in enumerate(zip(images_NCHW, map_NRhw.float().mean(dim=1).numpy(), strict=True)):
        image = Image.fromarray(image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0))
        base_HWC = np.array(image.convert("RGB").resize((TILE, TILE)))
        overlay_HWC = _under_map(base_HWC, map_hw)
        if has_regions:
            outline_HW = _outline(store.roi_mask(rows[index : index + 1])[0].any(axis=0))
            base_HWC[outline_HW] = overlay_HWC[outline_HW] = OUTLINE
        sheet.paste(Image.fromarray(base_HWC), (TILE * index, 0))
        sheet.paste(Image.fromarray(overlay_HWC), (TILE * index, TILE))
    return sheet


def _under_map(base_HWC: NDArray[np.uint8], map_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    heat_HW = np.array(Image.fromarray(map_hw).resize((TILE, TILE), Image.Resampling.BILINEAR))
    heat_HW = (heat_HW - heat_HW.min()) / max(float(np.ptp(heat_HW)), 1e-12)
    alpha_HW1 = ALPHA * heat_HW[..., None]
    mixed_HWC = (1 - alpha_HW1) * base_HWC + alpha_HW1 * 255 * COLOURS(heat_HW)[..., :3]
    overlay_HWC: NDArray[np.uint8] = mixed_HWC.round().astype(np.uint8)
    return overlay_HWC


def _outline(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels of a region, at the size of a tile, that touch a pixel outside it."""
    shown_HW = np.array(Image.fromarray(mask_HW).resize((TILE, TILE), Image.Resampling.NEAREST))
    padded = np.pad(shown_HW, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: NDArray[np.bool_] = shown_HW & ~inside
    return outline
