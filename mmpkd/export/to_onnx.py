"""Exports a student as an ONNX graph: pixels in, calibrated probabilities and the student's map out.

The graph normalises pixels and divides logits by temperatures itself. Its input `image` is float32 in [0, 1], because
that is what ONNX runtimes on all devices take; 8-bit pixels are divided by 255. The number of images is free.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmpkd.export.comparison import difference, random_squares
from mmpkd.export.student_file import Exported
from mmpkd.export.usage import calibration_of, image_notes, imports_code, preprocessing_of, reading_code
from mmpkd.scoring.saliency import MAPS
from mmpkd.types import ConfigError, UserError

GRAPH, README = "model.onnx", "README.md"
MAX_BYTES = 2_000_000_000  # of weights within the graph's own file, whose format ends at 2 GiB; more lie beside it
TOLERANCE = 1e-5  # of a map against the student's own map


class Graph(nn.Module):
    """Computes probabilities (B, K) and the map (B, 1, h, w) of images (B, C, S, S) in [0, 1]."""

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.student, self.card = exported.student, exported.card
        self.map = MAPS[exported.card.map]()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits_BK, map_BRhw = self.map(self.student, image, ())
        probabilities = []
        for task in self.card.tasks:
            scaled_BK = logits_BK[:, task.columns].float() / self.card.temperature[task.name]
            probabilities.append(scaled_BK.softmax(1) if task.kind == "multiclass" else scaled_BK.sigmoid())
        return torch.cat(probabilities, dim=1), map_BRhw


def write(exported: Exported, source: Path, folder: Path) -> None:
    """Writes the files of the format to an existing folder.

    Raises:
        ConfigError: the student's map is computed from gradients, which an ONNX graph does not hold.
        UserError: this version of torch cannot export the student's model.
    """
    import onnx

    card = exported.card
    if MAPS[card.map].per_label:
        others = ", ".join(name for name, kind in MAPS.items() if not kind.per_label)
        problem = f"the map of this student, {card.map}, is computed from gradients, which an ONNX graph does not hold"
        advice = f"write to=mlflow, or train the configuration again with another evaluation.map ({others})"
        raise ConfigError.at("to", f"{problem}; {advice}")
    image_BCHW = torch.rand(2, card.channels, card.image_size, card.image_size)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in exported.student.state_dict().values())
    path = folder / GRAPH
    try:
        with _without_notes():
            program = torch.onnx.export(
                Graph(exported).eval(),
                (image_BCHW,),
                dynamo=True,
                input_names=["image"],
                output_names=["probabilities", "map"],
                dynamic_shapes={"image": {0: "batch"}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        problem = f"torch {torch.__version__} cannot export {card.model['model']} to ONNX: {reason}"
        raise UserError(f"{problem}\n  choose another format, such as to=mlflow") from error
    assert program is not None
    described = {"calibration": calibration_of(card), "image": preprocessing_of(card), "map": card.map}
    program.model.metadata_props.update({f"mmpkd.{key}": json.dumps(value) for key, value in described.items()})
    program.save(path, external_data=num_bytes > MAX_BYTES)
    onnx.checker.check_model(path)
    title = f"# A student in the format ONNX: {card.model['model']}"
    (folder / README).write_text(f"{title}\n\n{image_notes(card)}\n\n{_code_text(exported)}", encoding="utf-8")


@contextmanager
def _without_notes() -> Iterator[None]:
    """A context without the notes of ONNX Script's optimiser about operators that it leaves as they are."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _code_text(exported: Exported) -> str:
    """Returns Markdown: the graph's input and outputs, and Python code that needs ONNX Runtime, NumPy and Pillow
    only."""
    card, (rows, columns) = exported.card, exported.student.grid
    outputs = card.tasks[-1].columns.stop
    return f"""## Use

- `image`: float32, B x {card.channels} x {card.image_size} x {card.image_size}, pixels in [0, 1]. The graph normalises
  them itself. B is free.
- `probabilities`: B x {outputs}, calibrated on the validation patients; the graph's metadata name them.
- `map`: B x 1 x {rows} x {columns}, where the student looks (`{card.map}`), on its grid of patches over the padded
  square; the values of a map sum to 1.

```python
{imports_code(card, "json", "sys", "onnxruntime")}

folder, path = sys.argv[1:]
session = onnxruntime.InferenceSession(f"{{folder}}/{GRAPH}", providers=["CPUExecutionProvider"])
calibration = json.loads(session.get_modelmeta().custom_metadata_map["mmpkd.calibration"])


{reading_code(card)}


probabilities, maps = session.run(None, {{"image": read_square(path)}})
print(json.dumps(dict(zip(calibration["names"], probabilities[0].tolist()))))
```
"""


def compare(exported: Exported, source: Path, folder: Path) -> float:
    """Runs the written graph, and returns the largest difference of a probability for random images.

    Raises:
        UserError: the graph's map differs from the student's.
    """
    import onnxruntime

    pixels_NCHW = random_squares(exported.card)
    image_NCHW = pixels_NCHW.astype(np.float32) / 255
    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    probability_NK, map_NRhw = session.run(None, {"image": image_NCHW})
    _, own_NRhw = MAPS[exported.card.map]()(exported.student, torch.from_numpy(image_NCHW), ())
    map_difference = float(np.abs(map_NRhw - own_NRhw.numpy()).max())
    if not map_difference <= TOLERANCE:
        raise UserError(f"the map of the ONNX graph differs from the student's by {map_difference:.2g}: not written")
    return difference(exported, pixels_NCHW, probability_NK)
