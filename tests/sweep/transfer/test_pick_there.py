"""Picking a trial of a sweep whose files lie in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpkd.config import load_trial
from mmpkd.export import student_file
from mmpkd.types import ConfigError
from sweep import pick
from sweep.transfer.addresses import place
from tests.sweep.picked_sweep import picked_sweep


def test_a_student_comes_from_the_bucket(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = picked_sweep(tmp_path)
    there = place(f"{bucket}/runs")
    for path in runs.rglob("*"):
        if path.is_file():
            there.upload(path, str(path.relative_to(runs)))
    words = ["fake", f"storage={bucket}/runs", "by=val/auroc"]
    command = f"python -m sweep.pick fake storage={bucket}/runs by=val/auroc out=picked/fake"
    with pytest.raises(ConfigError) as error:
        pick.main(words)
    problem = "out: a student is used from a disk, and the sweep lies in an object store; name a folder for it"
    assert [str(mistake) for mistake in error.value.mistakes] == [f"{problem}:\n    {command}"]
    pick.main([*words, f"out={tmp_path / 'hand'}"])
    assert f"files in {tmp_path / 'hand'}: config.yaml, student.safetensors, card.md" in capsys.readouterr().out
    card = student_file.read(tmp_path / "hand").card
    assert card.trial == load_trial(tmp_path / "hand" / "config.yaml").fingerprint()
    assert (tmp_path / "hand" / "card.md").read_text().startswith("# Student of trial ")
