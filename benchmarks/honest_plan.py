"""Whether a sweep costs what its plan said: three sweeps, priced beforehand and then run.

    python benchmarks/honest_plan.py [--breast DIR] [--folder DIR] [--json FILE]

The price is the one that each sweep prints before its first trial (`price` in its plan.json); the cost
is what its trials.parquet says, in device-hours of epochs, which is what `budget_device_hours` counts.
Wanted: within 30 % at full length and 50 % with early stopping. Without `--breast` (the BrEaST data)
the third sweep is on generated images too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

FULL = ("search.early_stopping=false",)
HALVED = ("search.early_stopping={reduction: 3}",)
SWEEPS: dict[str, tuple[str, ...]] = {
    "demo, full length": ("space=demo", "trials=8", "epochs=6", *FULL),
    "demo, halving": ("space=demo", "trials=18", "epochs=9", *HALVED),
}
GENERATED = ("space=demo", "cohort.image_size=64", "cohort.params.train=300", "trials=12", "epochs=9", *HALVED)
LIMIT = {True: 0.5, False: 0.3}  # with halving, at full length


def cost_of(words: tuple[str, ...], name: str, folder: Path) -> tuple[float, float, int]:
    """Device-hours planned and real, and trials run."""
    where = (f"name={name}", f"storage={folder / 'runs'}", f"cache={folder / 'cache'}")
    subprocess.run([sys.executable, "-m", "sweep.run", *words, *where], check=True, stdout=sys.stderr)
    price = json.loads((folder / "runs" / name / "plan.json").read_text())["price"]
    trials = pd.read_parquet(folder / "runs" / name / "trials.parquet")
    return price["hours_halving"], float(trials["device_hours"].sum()), len(trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breast", type=Path, help="folder of the BrEaST data")
    parser.add_argument("--folder", type=Path, help="keeps the sweeps there; else they go with the end")
    parser.add_argument("--json", type=Path)
    said = parser.parse_args()
    breast = ("space=breast", f"cohort.root={said.breast}", "trials=12", "epochs=9", *HALVED)
    third = {"breast, halving": breast} if said.breast else {"larger images, halving": GENERATED}
    table = Table("sweep", "trials", "planned", "real", "real / planned", "wanted", title="device-hours")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, (name, words) in enumerate((SWEEPS | third).items()):
            planned, real, trials = cost_of(words, f"sweep-{index}", (said.folder or Path(scratch)).absolute())
            limit = LIMIT["halving" in name]
            held = abs(real / planned - 1) <= limit
            table.add_row(
                name, str(trials), f"{planned:.4f}", f"{real:.4f}", f"{real / planned:.2f}", f"1 ± {limit}, {held}"
            )
            rows.append({"sweep": name, "planned": planned, "real": real, "ratio": real / planned, "held": held})
    Console(width=120).print(table)
    if said.json:
        about = {"command": sys.argv, "python": platform.python_version(), "rows": rows}
        said.json.write_text(json.dumps(about, indent=1) + "\n")
    sys.exit(0 if all(row["held"] for row in rows) else 1)


if __name__ == "__main__":
    main()
