"""The reduced form of benchmarks/known_answer.py: the effect is there, and the control does not have it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_distillation_finds_what_labels_hide_and_shuffled_answers_do_not(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/known_answer.py", "--quick", "--cache", tmp_path, "--json", figures]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(figures.read_text())
    assert len(content["claims"]) == 4 and all(content["claims"].values())
    scores = content["scores"]
    assert set(scores) == {"none", "distilled", "shuffled"}
    for seed, distilled in scores["distilled"].items():
        assert distilled["val/pointing"] > distilled["val/pointing_chance"] > scores["none"][seed]["val/pointing"]
