"""How an exported student is used without this package: its preprocessing and calibration as plain values, and the
Python code that applies them. The files of every format state both."""

from __future__ import annotations

from typing import Any, Protocol

from mmpkd.cohort.decode import Depth
from mmpkd.export.student_file import Card


class Pictured(Protocol):
    """What the card of any student says of its images; see `Card`."""

    @property
    def channels(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def depth(self) -> Depth: ...
    @property
    def slices(self) -> tuple[float, ...]: ...


def label_names(card: Card) -> list[str]:
    """Returns the name of each of the K probabilities, `task/label`."""
    return [f"{task.name}/{name}" for task in card.tasks for name in task.logit_names]


def calibration_of(card: Card) -> dict[str, Any]:
    """Returns how probabilities and decisions follow from logits, as JSON: for each task its kind, its labels, the
    first and the last + 1 column of its logits, and its temperature; and for each label the decision threshold."""
    tasks = [
        {
            "name": task.name,
            "kind": task.kind,
            "labels": list(task.labels),
            "columns": [task.columns.start, task.columns.stop],
            "temperature": card.temperature[task.name],
        }
        for task in card.tasks
    ]
    return {"names": label_names(card), "tasks": tasks, "threshold": dict(card.threshold)}


def preprocessing_of(card: Card) -> dict[str, Any]:
    """Returns how an image becomes the student's input, as JSON, under the names of Hugging Face's processors where
    they have one. `window`, `clahe` and `slices` are null or empty unless the training images had them."""
    size = card.image_size
    return {
        "do_resize": True,
        "size": {"longest_edge": size},
        "resample": 2,  # Pillow's number for bilinear
        "do_pad": True,
        "pad_size": {"height": size, "width": size},
        "pad_position": "centre",
        "pad_value": 0,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
        "channels": card.channels,
        "bits": card.depth.bits,
        "window": list(card.depth.window) if card.depth.window else None,
        "clahe": card.depth.clahe._asdict() if card.depth.clahe else None,
        "slices": list(card.slices),
    }


def reading_code(card: Pictured) -> str:
    """Returns the Python function `read_square(path)`, which gives 1 x C x S x S float32 pixels in [0, 1] with the same
    numbers as this package reads from the file of a picture."""
    mode, size = "L" if card.channels == 1 else "RGB", card.image_size
    lines = [
        "def read_square(path):",
        "    image = ImageOps.exif_transpose(Image.open(path))",
    ]
    if card.depth.bits == 8:
        lines += [
            '    black = Image.new("RGBA", image.size, "black")  # is seen where the image is transparent',
            '    image = Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")',
        ]
    if card.depth.window:
        low, high = card.depth.window
        lines += [
            "    values = np.asarray(image).astype(np.float32)",
            f"    grey = np.rint(((values - {low!r}) * {255 / (high - low)!r}).clip(0, 255)).astype(np.uint8)",
            f'    image = Image.fromarray(grey).convert("{mode}")',
        ]
    else:
        lines.append(f'    image = image.convert("{mode}")')
    lines += [
        f"    width, height = (max(1, round(side * ({size} / max(image.size)))) for side in image.size)",
        "    image = image.resize((width, height), Image.Resampling.BILINEAR)",
    ]
    if card.depth.clahe:
        lines += [
            f"    tile = [-(-side // {card.depth.clahe.tiles}) for side in (height, width)]",
            "    if min(image.getextrema()) < max(image.getextrema()):",
            "        even = skimage.exposure.equalize_adapthist(",
            f"            np.asarray(image), kernel_size=tile, clip_limit={card.depth.clahe.clip_limit!r}",
            "        )",
            "        image = Image.fromarray(np.rint(255 * even).astype(np.uint8))",
        ]
    lines += [
        f'    square = Image.new("{mode}", ({size}, {size}))  # black',
        f"    square.paste(image, (({size} - width) // 2, ({size} - height) // 2))",
        "    pixels = np.asarray(square, np.float32) / 255",
        "    return pixels[None, None]" if card.channels == 1 else "    return pixels.transpose(2, 0, 1)[None]",
    ]
    return "\n".join(lines)


def imports_code(card: Pictured, *modules: str) -> str:
    """Returns the import statements of code that uses `reading_code` and further modules."""
    further = [*modules, *(["skimage.exposure"] if card.depth.clahe else [])]
    numpy_and_pillow = ["import numpy as np", "from PIL import Image, ImageOps"]
    return "\n".join([*sorted(f"import {module}" for module in further), *numpy_and_pillow])


def image_notes(card: Pictured) -> str:
    """Returns in words what an image must be, and how it becomes the square that the student sees."""
    kind, size = "grey" if card.channels == 1 else "RGB", card.image_size
    text = (
        f"The student sees {kind} images of {size} x {size} pixels: the longest side is scaled to {size} pixels "
        "(bilinear), and the remainder is padded evenly with black. Nothing is cropped. The training images had "
        f"{card.depth.bits} bits."
    )
    if card.depth.window:
        low, high = card.depth.window
        text += f" Their values from {low:g} to {high:g} become black to white; values outside are clipped."
    if card.depth.clahe:
        text += " Each image is equalised (CLAHE) after it is scaled and before it is padded."
    if card.slices:
        shares = ", ".join(f"{share:g}" for share in card.slices)
        text += (
            f" They are slices of NIfTI volumes at {shares} of the height, each spread over its own range of values."
        )
    return text
