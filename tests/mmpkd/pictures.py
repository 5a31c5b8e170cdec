"""Pictures, and the changes after which one is still the same picture."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image


def picture(number: int, height: int = 60, width: int = 80) -> np.ndarray:
    """H x W uint8: blurred noise, another for each number."""
    coarse = np.random.default_rng(number).uniform(20, 200, (18, 24)).astype(np.float32)
    resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, 255).astype(np.uint8)


def recompressed(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer))


def one_bit(image: np.ndarray) -> np.ndarray:
    changed = image.copy()
    changed[7, 9] ^= 1
    return changed


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one bit": one_bit,
    "JPEG": recompressed,
    "left to right": lambda image: image[:, ::-1],
    "upside down, and JPEG": lambda image: recompressed(np.ascontiguousarray(image[::-1])),
    "half turn": lambda image: image[::-1, ::-1],
    "quarter turn": np.rot90,
    "quarter turn, upside down, and JPEG": lambda image: recompressed(np.ascontiguousarray(np.rot90(image)[::-1])),
    "negative": lambda image: 255 - image,
    "negative, left to right, and JPEG": lambda image: recompressed(np.ascontiguousarray(255 - image[:, ::-1])),
    "brighter": lambda image: (image + 30).clip(0, 255).astype(np.uint8),
    "less contrast": lambda image: (0.6 * image).astype(np.uint8),
    "larger": lambda image: np.asarray(Image.fromarray(image).resize((120, 90), Image.Resampling.BICUBIC)),
    "crop": lambda image: image[1:-1, 1:-1],
}
