"""Pictures of what a student looks at: validation images with their regions, and the student's map over them.

A picture holds no name of a sample. The pixels are those of patients, so pictures of credentialed cohorts must stay
where the images are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE
from mmpkd.export.student_file import Exported
from mmpkd.scoring.overlays import overlay
from mmpkd.scoring.saliency import MAPS, columns_explained

TILE: Final = 160  # pixels, side of an image in the picture
OUTLINE: Final = (0, 255, 255)  # of regions; the map's colours hold no cyan


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


def student_maps(
    exported: Exported, store: Store, rows: NDArray[np.int64], reads: Sequence[str] = (IMAGE,)
) -> list[NDArray[np.float32]]:
    """Returns the student's map of each sample, h x w on its patches. Where each label has a map, it is that of the
    first label with a region.

    Args:
        reads: the names of the images that the student reads.
    """
    kind = MAPS[exported.card.map]
    explained = columns_explained(store.facts.roi_labels, exported.card.tasks) if kind.per_label else []
    pixels_NCHW = torch.from_numpy(np.array(store.images(rows, reads))).float() / 255
    _, map_NRhw = kind()(exported.student.eval(), pixels_NCHW, explained)
    regions = [store.rois(int(row)) if kind.per_label else [] for row in rows]
    labels = [of_sample[0][0] if of_sample else 0 for of_sample in regions]
    return [map_Rhw[label].float().numpy() for map_Rhw, label in zip(map_NRhw.cpu(), labels, strict=True)]


def as_picture(image_CHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a stored image as H x W, or as H x W x 3."""
    return image_CHW[0] if len(image_CHW) == 1 else np.ascontiguousarray(image_CHW[:3].transpose(1, 2, 0))


def under_map(image: NDArray[np.uint8], map_hw: NDArray[np.float32]) -> Image.Image:
    """Returns an image (H x W or H x W x 3) under a map, which is scaled by its minimum and maximum."""
    size = image.shape[1], image.shape[0]
    return overlay(image, np.asarray(Image.fromarray(map_hw).resize(size, Image.Resampling.BILINEAR)))


def outline(region_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels of a region that touch a pixel outside it."""
    padded = np.pad(region_HW, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = region_HW & ~inside
    return edge


def overlay_sheet(exported: Exported, store: Store, rows: NDArray[np.int64]) -> Image.Image:
    """Returns a picture with a column for each sample: the image with the outline of its regions, and below it the
    image under the student's map (see `student_maps`).
    """
    has_regions = bool(store.facts.roi_labels)
    sheet = Image.new("RGB", (TILE * len(rows), 2 * TILE))
    for index, (row, map_hw) in enumerate(zip(rows, student_maps(exported, store, rows), strict=True)):
        image = Image.fromarray(as_picture(np.array(store.image_NCHW[row])))
        base_HWC = np.array(image.convert("RGB").resize((TILE, TILE)))
        overlay_HWC = np.array(under_map(base_HWC, map_hw))
        if has_regions:
            region = Image.fromarray(store.roi_mask(np.array([row]))[0].any(axis=0))
            edge_HW = outline(np.array(region.resize((TILE, TILE), Image.Resampling.NEAREST)))
            base_HWC[edge_HW] = overlay_HWC[edge_HW] = OUTLINE
        sheet.paste(Image.fromarray(base_HWC), (TILE * index, 0))
        sheet.paste(Image.fromarray(overlay_HWC), (TILE * index, TILE))
    return sheet
