"""Writes small trees of Med-GRIT-270k in the forms that its authors' scripts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmpkd.cohort.readers.questions.med_grit import MODALITIES

TAG = "<img>/data/anywhere/{}.png</img>\n"
TRAIN = "Data4Qwenvl/Processed_Train.json"


def box(number: int) -> str:
    return f"<box>({100 + number},120),({400 + number},500)</box>"


def tests_of(name: str, number: int) -> dict[str, list[str]]:
    """Returns the question and the answer of each test file about one image."""
    tag = TAG.format(name)
    return {
        "VG": [f"{tag}Where is <ref>the liver</ref>?", f"<ref>the liver</ref>{box(number)}"],
        "RO": [f"{tag}What is in {box(number)}?", "liver"],
        "GC": [f"{tag}Describe {box(number)}.", "The region shows a part of a large and even organ."],
        "MII": [f"{tag}Which organs are seen?", "The liver and the spleen."],
    }


def dialogue(name: str, number: int) -> list[dict[str, str]]:
    turns = [pair for pair in tests_of(name, number).values()]
    return [
        {"from": who, "value": text if position == 0 else text.replace(TAG.format(name), "")}
        for position, pair in enumerate(turns)
        for who, text in zip(("user", "assistant"), pair, strict=True)
    ]


def write_med_grit(root: Path, num_train: int = 8, num_test: int = 2) -> dict[str, list[Any]]:
    """Writes a tree and returns the content of its files by their names."""
    (root / "images").mkdir(parents=True)
    (root / TRAIN).parent.mkdir()
    generator = np.random.default_rng(0)
    names = [
        f"{MODALITIES[number % 8]}_00--set{number}--case--x_{number:04d}" for number in range(num_train + num_test)
    ]
    for name in names:
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), np.uint8)).save(root / "images" / f"{name}.png")
    files: dict[str, list[Any]] = {
        TRAIN: [{"id": name, "conversations": dialogue(name, n)} for n, name in enumerate(names[:num_train])]
    }
    for task in ("VG", "RO", "GC", "MII"):
        files[f"Test_{task}.json"] = [
            {"id": name, "conversations": [tests_of(name, n)[task]]} for n, name in enumerate(names[num_train:])
        ]
    for file, content in files.items():
        (root / file).write_text(json.dumps(content))
    return files
