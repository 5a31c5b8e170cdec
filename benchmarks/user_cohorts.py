"""Three cohorts as users bring them, through every command: python benchmarks/user_cohorts.py [--keep DIR].

Writes the raw data of `raw_cohorts.py`, then runs for each space of `benchmarks/user_spaces/`: cohort show, a plan, a
sweep of 6 trials, status, the training of its best.yaml, predictions of some images, and an evaluation on the
validation patients. Prints a line for each command; the last line says whether all of them ended well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.raw_cohorts import COHORTS

ROOT = Path(__file__).parents[1]
IMAGES = {"ultrasound": "images", "brain_mr": "MR-0001/t1.nii.gz", "chest": "p1000"}
ALARM = "Traceback (most recent call last)"


def commands(name: str, place: Path) -> Iterator[list[str]]:
    """What a user types, in order; later commands find what earlier ones left below `place`."""
    space = f"{ROOT}/benchmarks/user_spaces/{name}.yaml"
    root, cache = f"cohort.root={place / name}", f"cache={place / 'cache'}"
    yield ["mmpkd.cohort", "show", f"config={space}", root, cache]
    sweep = ["sweep.run", f"space={space}", root, cache, f"storage={place / 'runs'}"]
    yield [*sweep, "plan=true"]
    yield sweep
    yield ["sweep.status", f"storage={place / 'runs'}"]
    trained = place / "train" / name
    yield ["mmpkd.train", f"config={place / 'runs' / name / 'best.yaml'}", cache, f"out={trained}"]
    (folder,) = trained.iterdir()
    yield [
        "mmpkd.predict",
        f"model={folder}",
        f"images={place / name / IMAGES[name]}",
        f"out={place / 'predict' / name}",
    ]
    yield ["mmpkd.evaluate", f"model={folder}", f"config={space}", root, cache, f"out={place / 'evaluate'}"]


def failures(name: str, place: Path) -> int:
    """Runs the commands; returns how many did not end with status 0, or printed a traceback."""
    count = 0
    for command in commands(name, place):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
        text = done.stdout + done.stderr
        failed = done.returncode != 0 or ALARM in text
        verdict = f"status {done.returncode}, FAIL\n{text[-3000:]}" if failed else "status 0"
        print(f"{name}: {' '.join(command[:2])} ...: {time.monotonic() - started:.0f} s, {verdict}", flush=True)
        count += failed
        if failed:
            break  # the next commands want what this one should have left
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="an empty folder in which everything stays, to be looked at")
    place = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as scratch:
        place = (place or Path(scratch)).absolute()
        count = 0
        for name, write in COHORTS.items():
            write(place / name)
            if name == "ultrasound":  # a table with semicolons is refused, with a command that does just this
                table = pd.read_csv(place / name / "cases.csv", sep=";", dtype=str, keep_default_na=False)
                table.to_csv(place / name / "cases-commas.csv", index=False)
            count += failures(name, place)
    print(f"three cohorts through every command: {f'{count} FAIL' if count else 'PASS'}")
    raise SystemExit(bool(count))


if __name__ == "__main__":
    main()
