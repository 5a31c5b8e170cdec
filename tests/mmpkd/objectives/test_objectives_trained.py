"""The objectives on a tabular teacher's embedding, together in the real loop."""

from __future__ import annotations

from pathlib import Path

from mmpkd import checkpoint
from mmpkd.config import TrialConfig
from mmpkd.train import train

KINDS = ("relational", "contrastive", "mutual_information", "variational")


def test_they_train_together_and_are_saved(tiny_trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    content = tiny_trial.model_dump() | {"objectives": {kind: {"weight": 0.1} for kind in KINDS}, "epochs": 1}
    (report,) = train(TrialConfig.model_validate(content), cache, tmp_path)
    for kind in KINDS:
        assert report.terms[kind] > 0 and report.terms[f"gradient_share/{kind}"] > 0
    rho_D = checkpoint.read(tmp_path / checkpoint.NAME)["objectives"]["variational.rho"]
    assert len(rho_D.unique()) > 1  # they were equal when they were drawn
