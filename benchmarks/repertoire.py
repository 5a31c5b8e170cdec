"""What `known_answer.py --all` runs: each objective with one natural teacher, each kind of teacher with `logits`.

A row is a teacher and an objective as a configuration has them; all else is SHARED of known_answer.py. Weights and
temperatures were chosen on seeds 100 to 102 (docs/decisions/known_answer.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NETWORK = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
FLIPS = {"flip_horizontal": True, "flip_vertical": True}
FINDINGS: dict[str, Any] = {"kind": "tabular"}
REPORT: dict[str, Any] = {"kind": "text"}
TEACHERS: dict[str, dict[str, Any]] = {
    "tabular": FINDINGS,
    "boosting": {"kind": "tabular", "params": {"model": "boosting"}},
    "text": REPORT,
    "image": {
        "kind": "image",
        "params": {"view": "superior", "network": NETWORK, "augmentation": FLIPS, "epochs": 10, "lr": 1e-3},
    },
    "ensemble": {"kind": "ensemble", "params": {"members": {"findings": FINDINGS, "report": REPORT}}},
    "fused": {"kind": "fused", "params": {"patch_size": 8, "augmentation": FLIPS}},
}
LOGITS: dict[str, Any] = {"weight": 10.0, "params": {"temperature": 2.0}}
SMOOTHING = 0.52  # of labels in three classes: 0.88 nats, as the tabular teacher's answers have on seed 100
FAINT = {"marker": False, "texture": 0.1}


@dataclass(frozen=True)
class Row:
    """A way of teaching, and the cohort's parameters it is tried on. `claimed`: it should gain."""

    teacher: str
    objective: str
    settings: dict[str, Any]
    cohort: dict[str, Any] = field(default_factory=dict)
    claimed: bool = True

    def taught(self, control: str | None = None) -> dict[str, Any]:
        """The part of a configuration that says who teaches and how."""
        teachers = {"teacher": TEACHERS[self.teacher] | {"control": control}}
        return {"teachers": teachers, "objectives": {self.objective: self.settings}}


ROWS = {
    "logits, tabular": Row("tabular", "logits", LOGITS),
    "logits, boosting": Row("boosting", "logits", LOGITS),
    "logits, text": Row("text", "logits", LOGITS),
    "logits, image": Row("image", "logits", LOGITS),
    "logits, ensemble": Row("ensemble", "logits", LOGITS),
    # It sees the student's image, in which the marker agrees with every training label: it learns the marker too.
    "logits, fused": Row("fused", "logits", LOGITS, claimed=False),
    "logits, fused, faint": Row("fused", "logits", LOGITS, FAINT),
    "dkd, tabular": Row("tabular", "dkd", {"weight": 10.0, "params": {"alpha": 1.0, "beta": 2.0, "temperature": 2.0}}),
    "dist, tabular": Row("tabular", "dist", {"weight": 10.0}),
    "features, text": Row("text", "features", {"weight": 30.0, "params": {"layer": 2}}),
    "contrastive, text": Row("text", "contrastive", {"weight": 5.0}),
    "mutual_information, image": Row("image", "mutual_information", {"weight": 4.0}),
    "variational, image": Row("image", "variational", {"weight": 10.0}),
    "relational, image": Row("image", "relational", {"weight": 100.0}),
    "attention, image": Row("image", "attention", {"weight": 30.0, "params": {"layer": 2}}),
    "guidance, image": Row("image", "guidance", {"weight": 30.0, "params": {"dropout": 0.0}}),
}
