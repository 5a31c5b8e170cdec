"""Figures that no refactoring may move: fingerprints, losses, a sweep's table, a plan's text.

They lie in `tests/golden/` as the code of a known commit made them. A change that is meant to move one says so in
`docs/decisions/` and writes them anew:
`WRITE_GOLDEN=1 python -m pytest -n 0 tests/test_golden.py`.

Fingerprints, the plan and the sweep (whose trainings are trivial arithmetic) are compared to the last digit. So are
the losses where processor and torch are those that wrote them; elsewhere, sums run in another order, so that they
agree to `ELSEWHERE` only.
"""

from __future__ import annotations

import io
import json
import os
import platform
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest
import torch
from rich.console import Console

from mmpkd.config import TrialConfig, validate
from mmpkd.train import train
from sweep.plan.plan import plan
from sweep.plan.show import render
from sweep.space.draw import BoundsChooser, branches, draw
from sweep.space.loading import shipped
from sweep.space.space import load_space
from tests.sweep.swept import swept, untracked  # noqa: F401  (a fixture: the sweep here is told to no server)

FOLDER: Final = Path(__file__).parent / "golden"
ELSEWHERE: Final = 1e-4  # relative
NETWORK: Final = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
COHORT: Final = {"reader": "synthetic", "image_size": 32, "params": {"side": 32, "train": 60, "val": 30, "test": 12}}
TABULAR: Final = {"findings": {"kind": "tabular"}}
TEXT: Final = {"report": {"kind": "text", "params": {"epochs": 2, "hidden": 64}}}
IMAGE: Final = {"scan": {"kind": "image", "params": {"view": "superior", "network": NETWORK, "epochs": 2}}}
GUIDED: Final = [
    {"name": "inferior", "train": ["student"], "epochs": 1},
    {"name": "guess", "train": ["guidance.guide"], "objectives": ["guidance"], "epochs": 1},
    {"name": "joint", "train": ["guidance.joint"], "answer": "guidance.joint"},
]
TRAININGS: Final[dict[str, dict[str, Any]]] = {  # one of each family of objectives
    "none": {},
    "logits": {"teachers": TABULAR, "objectives": {"logits": {}, "dkd": {}, "dist": {}}},
    "features": {"teachers": TEXT, "objectives": {"features": {"params": {"layer": 1}}}},
    "vectors": {"teachers": TEXT, "objectives": {"relational": {}, "contrastive": {}, "variational": {}}},
    "attention": {"teachers": IMAGE, "objectives": {"attention": {"params": {"layer": 1}}}},
    "guidance": {"teachers": IMAGE, "objectives": {"guidance": {}}, "stages": GUIDED},
}


def golden(file: str, content: str) -> str:
    """What a file of figures holds; with WRITE_GOLDEN set, what was computed just now, which is then kept there."""
    if os.environ.get("WRITE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / file).write_text(content)
    return (FOLDER / file).read_text()


def test_fingerprints_of_shipped_spaces() -> None:
    text = as_json(fingerprints())
    assert text == golden("fingerprints.json", text)


@pytest.mark.parametrize("name", TRAININGS)
def test_losses_of_a_short_training(name: str, cache: Path) -> None:
    computed = losses(name, cache)
    kept = json.loads(golden(f"losses_{name}.json", as_json({"machine": machine(), "epochs": computed})))
    close = {} if kept["machine"] == machine() else {"rel": ELSEWHERE, "abs": ELSEWHERE}
    wanted = [
        {term: pytest.approx(value, **close) if close else value for term, value in epoch.items()}
        for epoch in kept["epochs"]
    ]
    assert computed == wanted


def test_table_of_a_sweep(tmp_path: Path) -> None:
    text = trials(tmp_path)
    assert text.splitlines() == golden("trials.csv", text).splitlines()


def test_text_of_a_plan() -> None:
    text = plan_text()
    assert text == golden("plan.txt", text)


def as_json(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"


def machine() -> str:
    """What decides the last digits of a sum: the processor and the library."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernel = os.environ.get("OPENBLAS_CORETYPE", "")
    return f"{names[0] if names else platform.processor()}, torch {torch.__version__} {kernel}".strip()


def fingerprints() -> dict[str, list[str]]:
    """Of each shipped space and arm, the fingerprint of the first configuration of every branch."""
    prints: dict[str, list[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", "/data")
        for name in shipped():
            space, mistakes = load_space(name, ())
            assert space is not None and not mistakes
            for arm, node in space.arms.items():
                configs = [
                    validate(TrialConfig, draw(node, BoundsChooser(branch.labels), arm).config)
                    for branch in branches(node, arm, 512)
                ]
                prints[f"{name}/{arm}"] = [config.fingerprint() for config in configs]
    return prints


def losses(name: str, cache: Path) -> list[dict[str, float]]:
    """Every unweighted term of the loss and the classification score, by epoch."""
    content = {"cohort": COHORT, "student": NETWORK, "optimizer": {"batch_size": 16}, "epochs": 2} | TRAININGS[name]
    reports = train(TrialConfig.model_validate(content), cache)
    return [{**report.terms, "val/auroc": report.metrics["val/auroc"]} for report in reports]


def trials(folder: Path) -> str:
    """trials.parquet of a sweep of 12 trials, one after the other, as CSV with every digit."""
    swept(folder, "trials=12", "search.repeats=2")
    return pd.read_parquet(folder / "runs" / "fake" / "trials.parquet").to_csv(index=False)


def plan_text() -> str:
    """What `plan=true` says of the demo before it times anything."""
    space, mistakes = load_space("demo", ())
    assert space is not None and not mistakes
    console = Console(file=io.StringIO(), width=120)
    console.print(render(plan(space)))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
