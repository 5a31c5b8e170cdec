"""Does a confirmation tell the answers that are known?

    python benchmarks/known_verdict.py [--folder DIR] [--json FILE] [KEY=VALUE ...]

A sweep and its confirmation on the cohort `synthetic`, as a user runs them, with three teachers: one that knows the
true class from a table, one that reads a column without any knowledge of it, and one that looks at the marker. The
knobs stand in `user_spaces/known_verdict.yaml` and were fixed before the run that is quoted. Claims:

    distilled   better in both scores, and its shuffled control is not
    useless     nothing is claimed
    misled      looks at the wrong place: its students point below chance

Exit status 1 if one fails. The same command with the same folder continues. KEY=VALUE goes to both commands.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

NAME: Final = "known"
SPACE: Final = Path(__file__).with_name("user_spaces") / "known_verdict.yaml"
GOALS: Final = ("val/auroc", "val/pointing")
UNCLAIMED: Final = ("no difference shown", "cannot tell")


def verdict_of(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """Runs the sweep and its confirmation, and returns the verdict.

    Raises:
        SystemExit: one of them was stopped or failed. The message says how to continue.
    """
    places = [f"storage={folder / 'runs'}", f"cache={folder / 'cache'}"]
    commands = [
        ["sweep.run", f"space={SPACE}", f"name={NAME}", *places, *words],
        ["sweep.confirm", NAME, "finalists=2", *places, *words],
    ]
    for command in commands:
        status = subprocess.run([sys.executable, "-m", *command], cwd=Path(__file__).parents[1]).returncode
        if status:
            again = shlex.join(["python", "benchmarks/known_verdict.py", "--folder", str(folder), *words])
            sys.exit(f"{command[0]} has ended with status {status}, so there is no verdict; this continues:\n  {again}")
    content: dict[str, Any] = json.loads((folder / "runs" / NAME / "confirm" / "verdict.json").read_text())
    return content


def claims(verdict: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each claim, and whether it holds."""
    outcome = {(answer["goal"], answer["arm"]): answer["outcome"] for answer in verdict["answers"]}
    contrast = {(each["goal"], each["treated"], each["reference"]): each for each in verdict["exploratory"]}
    held = {}
    for goal in GOALS:
        held[f"{goal}: distilled is better"] = outcome[goal, "distilled"] == "better"
        control = contrast[goal, "distilled-shuffled", "none"]
        held[f"{goal}: its shuffled control is not"] = not control["low"] > 0
        held[f"{goal}: nothing is claimed for useless"] = outcome[goal, "useless"] in (
            "no difference shown",
            "cannot tell",
        )
    below = contrast["val/pointing", "misled", "chance"]
    held["val/pointing: misled looks at the wrong place, below chance"] = below["high"] < 0
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="known-verdict-"))
    # Ctrl-C reaches the command that runs as well, which ends in good order; this program waits for it.
    signal.signal(signal.SIGINT, lambda *args: None)
    verdict = verdict_of(folder, options.words)
    held = claims(verdict)
    for answer in verdict["answers"]:
        print(" ".join([answer["sentence"], *answer["reasons"]]))
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "claims": held, "verdict": verdict}, indent=1) + "\n")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
