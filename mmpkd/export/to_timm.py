"""Exports a student as plain timm weights, a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

The folder has the layout of timm's models on the Hugging Face Hub: `model.safetensors` and `config.json`. The model
returns logits of normalised pixels. `README.md` has the code from the file of an image to calibrated probabilities, and
`config.json` the same values under the key `mmpkd`, which timm ignores.
"""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save

from mmpkd.export.comparison import difference, random_squares
from mmpkd.export.student_file import Exported
from mmpkd.export.usage import calibration_of, image_notes, imports_code, label_names, preprocessing_of, reading_code
from mmpkd.types import ConfigError

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
SIZES = ("patch_size", "embed_dim", "depth", "num_heads")


def write(exported: Exported, source: Path, folder: Path) -> None:
    """Writes the files of the format to an existing folder.

    Raises:
        ConfigError: the student is guided, so that its logits do not come from its timm model alone.
    """
    write_model(exported, folder, "timm")
    title = f"# A student in the format of timm: {exported.card.model['model']}"
    (folder / README).write_text(f"{title}\n\n{image_notes(exported.card)}\n\n{code_text(exported)}", encoding="utf-8")


def write_model(exported: Exported, folder: Path, to: str) -> None:
    """Writes `model.safetensors` and `config.json`.

    Raises:
        ConfigError: see `write`.
    """
    student, card = exported.student, exported.card
    if card.head is not None:
        head = "guidance.joint" if card.head["joint"] else "guidance.superior"
        problem = f"this student is guided: {head} computes its logits, and plain timm weights cannot hold that head"
        raise ConfigError.at("to", f"{problem}; write to=onnx or to=mlflow instead of to={to}")
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in student.model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights, {"format": "pt"}))  # save_file hides the reason if the disk is full
    num_logits = card.tasks[-1].columns.stop
    trained_as = student.model.pretrained_cfg
    config = {
        "architecture": card.model["model"].partition(".")[0],
        "num_classes": num_logits,
        "num_features": student.dim,
        "global_pool": "token",
        "model_args": {
            "img_size": card.image_size,
            "in_chans": card.channels,
            "num_classes": num_logits,
            "global_pool": "token",
            **{key: card.model[key] for key in SIZES if card.model[key] is not None},
        },
        "pretrained_cfg": {
            "input_size": [card.channels, card.image_size, card.image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "border",
            "mean": list(card.mean),
            "std": list(card.std),
            "num_classes": num_logits,
            "first_conv": trained_as["first_conv"],
            "classifier": trained_as["classifier"],
            "label_names": label_names(card),
        },
        "mmpkd": {"calibration": calibration_of(card), "image": preprocessing_of(card)},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def code_text(exported: Exported) -> str:
    """Returns Markdown: how probabilities follow from logits, and Python code that needs timm, NumPy and Pillow."""
    card = exported.card
    temperatures = ", ".join(f"{task.name} {card.temperature[task.name]:.4g}" for task in card.tasks)
    return f"""## Use

The probabilities of a task are the softmax (`multiclass`) or the sigmoid (`binary`, `multilabel`) of its logits over
its temperature, which was fitted on the validation patients: {temperatures}. The files were compared with the student
by timm {timm.__version__}.

```python
{imports_code(card, "json", "sys", "timm", "torch")}

folder, path = sys.argv[1:]
with open(f"{{folder}}/{CONFIG}", encoding="utf-8") as opened:
    config = json.load(opened)
mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
calibration = config["mmpkd"]["calibration"]
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()


{reading_code(card)}


with torch.inference_mode():
    logits = model((torch.from_numpy(read_square(path)) - mean) / std)[0]
probabilities = []
for task in calibration["tasks"]:
    scaled = logits[slice(*task["columns"])] / task["temperature"]
    probabilities += (scaled.softmax(0) if task["kind"] == "multiclass" else scaled.sigmoid()).tolist()
print(json.dumps(dict(zip(calibration["names"], probabilities))))
```
"""


def compare(exported: Exported, source: Path, folder: Path) -> float:
    """Loads the written files with timm, and returns the largest difference of a probability for random images."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (exported.card.mean, exported.card.std))
    pixels_NCHW = random_squares(exported.card)
    with torch.inference_mode():
        logits_NK = model((torch.from_numpy(pixels_NCHW).float() / 255 - mean) / std)
    return difference(exported, pixels_NCHW, exported.probabilities(logits_NK.numpy()))
