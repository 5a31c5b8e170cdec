"""The verdicts and tables of benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.gpu_cohort import DEMO
from benchmarks.gpu_steps import VARIANTS, Row

Results = dict[str, Any]
PASS, FAIL, NOT_MEASURED, NO_GPU = "PASS", "FAIL", "not measured", "no GPU"


class Verdict(NamedTuple):
    """One target of issue 18, and whether it is met."""

    target: str
    value: float | None  # None: not measured
    limit: float
    at_least: bool

    @property
    def outcome(self) -> str:
        if self.value is None:
            return NOT_MEASURED
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return PASS if met else FAIL


def verdicts(results: Results) -> list[Verdict]:
    """Compares what was measured with every target."""
    steps = results.get("steps", [])

    def ratio(model: str, batch_size: int, over: str) -> float | None:
        ours, other = (_value(steps, "images_per_second", model, batch_size, letter) for letter in ("c", over))
        return None if ours is None or other is None else ours / other

    checks = [
        Verdict("(c) over (a), demo", ratio(DEMO, 32, "a"), 10, True),
        Verdict("(c) over (a), ViT-Ti/16 batch 16", ratio("ViT-Ti/16", 16, "a"), 10, True),
        Verdict("(c) over (a), ViT-S/16 batch 64", ratio("ViT-S/16", 64, "a"), 4, True),
    ]
    cells = {(row["model"], row["batch_size"]): None for row in steps} or {(DEMO, 32): None}
    for model, batch_size in cells:
        speed = ratio(model, batch_size, "d")
        checks.append(Verdict(f"time of (c) over (d), {model} batch {batch_size}", speed and 1 / speed, 1.1, False))
    for model, limit in (("ViT-S/16", 0.25), ("ViT-B/16", 0.40)):
        share = _value(steps, "mfu", model, 256, "c")
        checks.append(Verdict(f"share of the matmul peak, {model} batch 256", share, limit, True))
    for row in results.get("epoch", []) or [{"model": "ViT-S/16", "batch_size": 64}]:
        label = f"share of an epoch spent in steps, {row['model']} batch {row['batch_size']}"
        checks.append(Verdict(label, row.get("share_of_steps"), 0.8, True))
    checks += packed_verdicts(results)
    for row in results.get("taught", []) or [{"model": "ViT-Ti/16", "variant": "cached logits"}]:
        if row["variant"].startswith("cached"):
            checks.append(Verdict(f"{row['variant']} over plain, {row['model']}", row.get("ratio"), 1.03, False))
    return checks


def outcome_of(check: Verdict, results: Results) -> str:
    """Returns the outcome of a target. A run without a GPU judges none."""
    judged = results.get("card", {}).get("gpu", False) or check.value is None
    return check.outcome if judged else NO_GPU


def packed_verdicts(results: Results) -> list[Verdict]:
    """Compares the best packing of each model with a single training.

    The time in which kernels run does not say how much of the card is idle: small kernels leave most of it so.
    """
    rows = [row for row in results.get("packed", []) if "images_per_second" in row]
    checks = []
    for model, batch_size in dict.fromkeys((row["model"], row["batch_size"]) for row in rows):
        speeds = {(row["service"], row["count"]): row["images_per_second"] for row in rows if row["model"] == model}
        if alone := speeds.get(("plain", 1)):
            label = f"packed at its best over one at a time, {model} batch {batch_size}"
            checks.append(Verdict(label, max(speeds.values()) / alone, 1.5, True))
    return checks or [Verdict("packed at its best over one at a time", None, 1.5, True)]


def _value(rows: Iterable[Row], key: str, model: str, batch_size: int, variant: str) -> float | None:
    wanted = (model, batch_size, variant)
    return next((row.get(key) for row in rows if (row["model"], row["batch_size"], row["variant"]) == wanted), None)


def markdown(results: Results) -> str:
    """Returns the whole report as Markdown."""
    card = results.get("card", {})
    where = f"{card.get('device')}, driver {card.get('driver', 'none')}, torch {card.get('torch')}"
    peak = f"{card.get('peak', 0) / 1e12:.4g} TFLOP/s"
    lines = [f"{where}; measured matmul peak {peak}; {results.get('seconds', 0):.0f} s.", ""]
    if not card.get("gpu"):
        lines[:0] = [
            "**This run used no GPU**, so that its figures say nothing about one, and no target is judged.",
            "",
        ]
    for part, (columns, rows_of) in TABLES.items():
        if results.get(part):
            lines += [f"**{part}**", "", *table(columns, [rows_of(row) for row in results[part]]), ""]
    for part, note in results.get("notes", {}).items():
        lines += [f"{part}: {note}", ""]
    rows = [
        (check.target, _number(check.value), _limit(check), outcome_of(check, results)) for check in verdicts(results)
    ]
    lines += ["**targets**", "", *table(("target", "measured", "wanted", "verdict"), rows)]
    return "\n".join(lines) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _limit(check: Verdict) -> str:
    return f"{'at least' if check.at_least else 'at most'} {check.limit:g}"


def _number(value: Any, digits: int = 3) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _cells(*keys: str) -> Callable[[Row], list[str]]:
    """Returns a function that reads the cells of a row. A failed measurement has its error in the last cell."""

    def read(row: Row) -> list[str]:
        cells = [_number(row.get(key)) for key in keys]
        if "error" in row:
            cells[-1] = row["error"].replace("|", "/")
        return cells

    return read


def _step_cells(row: Row) -> list[str]:
    keys = ("images_per_second", "slowest", "ms_per_step", "device_ms", "mfu", "launches", "waits", "peak_mib")
    label = VARIANTS.get(row["variant"], "")
    return _cells("model", "batch_size", "variant", *keys)({**row, "variant": f"({row['variant']}) {label}".strip()})


def _equal_cells(row: Row) -> list[str]:
    values = [row[label][key] for label in ("now", "before again") for key in ("loss", "parameters")]
    limits = " and ".join(f"{value:g}" for value in row["tolerances"].values())
    return [row["model"], *map(_number, values), limits, PASS if row["equal"] else FAIL]


_STEP_COLUMNS = (
    *("model", "batch", "variant", "images/s", "slowest span", "ms a step", "ms of GPU", "share of peak"),
    *("launches", "waits", "MiB"),
)
TABLES: dict[str, tuple[Sequence[str], Callable[[Row], list[str]]]] = {
    "steps": (_STEP_COLUMNS, _step_cells),
    "epoch": (
        (
            *("model", "batch", "an epoch, s", "steps", "data alone", "validation", "checkpoint", "reporting"),
            *("steps' share", "all scores", "saving"),
        ),
        _cells(
            *("model", "batch_size", "epoch", "steps", "data", "validation", "checkpoint", "reporting"),
            *("share_of_steps", "all scores", "saving"),
        ),
    ),
    "packed": (
        ("service", "model", "batch", "trainings", "images/s of all", "MiB of each", "MiB in use"),
        _cells("service", "model", "batch_size", "count", "images_per_second", "each_mib", "used_mib"),
    ),
    "taught": (
        ("model", "batch", "variant", "ms a step", "over plain"),
        _cells("model", "batch_size", "variant", "ms_per_step", "ratio"),
    ),
    "equality": (
        (
            "model",
            "loss, now",
            "parameters, now",
            "loss, before again",
            "parameters, before again",
            "at most",
            "verdict",
        ),
        _equal_cells,
    ),
    "executions": (_STEP_COLUMNS, _step_cells),
}
