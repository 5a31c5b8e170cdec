"""Exports a student as a folder in the style of the Hugging Face Hub, which `timm` loads from disk and from the Hub.

Beside the files of `to_timm` it has `preprocessor_config.json` with the letterbox, and a model card as `README.md`. The
card of a picked student goes along.
"""

from __future__ import annotations

import json
from pathlib import Path

from mmpkd.export.model_card import model_card
from mmpkd.export.student_file import Exported
from mmpkd.export.to_timm import README, code_text, write_model
from mmpkd.export.usage import preprocessing_of

PREPROCESSING = "preprocessor_config.json"
PICKED = "card.md"  # what `python -m sweep.pick` writes beside a student
FRONT_MATTER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- timm
- image-classification
- medical
- distillation
---
"""


def write(exported: Exported, source: Path, folder: Path) -> None:
    """Writes the files of the format to an existing folder.

    Raises:
        ConfigError: see `to_timm.write_model`.
    """
    write_model(exported, folder, "hub")
    processing = {"image_processor_type": "letterbox", **preprocessing_of(exported.card)}
    (folder / PREPROCESSING).write_text(json.dumps(processing, indent=1), encoding="utf-8")
    parts = [f"{FRONT_MATTER}\n# {exported.card.model['model']}, trained with mmpkd", model_card(exported)]
    if (picked := source.with_name(PICKED)).is_file():
        (folder / PICKED).write_bytes(picked.read_bytes())
        parts.append(f"## Choice\n\n[{PICKED}]({PICKED}) says among which trials of a sweep it was chosen, and why.")
    text = "\n\n".join([*parts, code_text(exported)])
    (folder / README).write_text(text, encoding="utf-8")
