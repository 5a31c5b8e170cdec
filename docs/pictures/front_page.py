"""Draws the picture of the front page: a sweep's front beside attention with and without a teacher.

    python -m sweep.run                    # the demo sweep, two minutes on two cores
    python docs/pictures/front_page.py     # reads runs/demo and writes docs/pictures/front_page.png

Left: every complete trial by its two goals, and chance and a map that always points at the centre. Right: the first
three validation images with a lesion (not chosen by how they look), and on them the attention of two students, each
the best of its arm by `val/auroc`, trained again from the configuration that the sweep recorded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig, dump_trial
from mmpkd.predict import Predictor

CLASSIFIES, POINTS = "val/auroc", "val/pointing"
LABELS = {"none": "no teacher", "tabular": "teacher that reads findings"}
COLOURS = {"none": "#7a7a7a", "tabular": "#c8500a"}
NUM_IMAGES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, default=Path("runs/demo"), help="folder of the demo sweep")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder of its prepared images")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("front_page.png"))
    arguments = parser.parse_args()
    trials = pd.read_parquet(arguments.sweep / "trials.parquet")
    trials = trials[trials["state"] == "complete"]
    best = {arm: int(of_arm.loc[of_arm[CLASSIFIES].idxmax(), "number"]) for arm, of_arm in trials.groupby("arm")}
    configs = recorded_configs(arguments.sweep / "journal.log")
    with TemporaryDirectory() as folder:
        students = {
            arm: trained(configs[best[arm]], arguments.cache, Path(folder) / arm) for arm in LABELS if arm in best
        }
        figure = plt.figure(figsize=(11, 4.3), dpi=130, layout="constrained")
        grid = GridSpec(NUM_IMAGES, 6, figure=figure)
        draw_front(figure.add_subplot(grid[:, :3]), trials, best)
        draw_attention(grid, configs[best["none"]], arguments.cache, students, Path(folder))
        figure.savefig(arguments.out)
    print(f"{arguments.out}: trials {best}")


def recorded_configs(journal: Path) -> dict[int, TrialConfig]:
    """Returns the configuration of each trial, by its number in the sweep."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    attributes = [trial.user_attrs for study in studies for trial in study.get_trials(deepcopy=False)]
    return {trial["number"]: TrialConfig.model_validate_json(trial["config"]) for trial in attributes}


def trained(config: TrialConfig, cache: Path, folder: Path) -> Predictor:
    folder.mkdir()
    file = folder / "trial.yaml"
    file.write_text(dump_trial(config))
    command = [sys.executable, "-m", "mmpkd.train", f"config={file}", f"cache={cache}", f"out={folder}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return Predictor(next(folder.rglob("student.safetensors")))


def draw_front(axes: Axes, trials: pd.DataFrame, best: dict[str, int]) -> None:
    for arm, label in LABELS.items():
        of_arm = trials[trials["arm"] == arm]
        axes.scatter(of_arm[CLASSIFIES], of_arm[POINTS], s=44, color=COLOURS[arm], label=label, zorder=3)
    points = trials[[CLASSIFIES, POINTS]].to_numpy()
    front = np.array(sorted((point for point in points if not dominated(point, points)), key=lambda point: point[0]))
    axes.plot(front[:, 0], front[:, 1], color="black", linewidth=0.8, linestyle="--", label="front", zorder=2)
    chosen = trials[trials["number"].isin(best.values())]
    axes.scatter(
        chosen[CLASSIFIES], chosen[POINTS], s=150, facecolors="none", edgecolors="black", label="shown on the right"
    )
    for name, label in (("chance", "chance"), ("centre", "always the centre")):
        level = trials[f"{POINTS}_{name}"].mean()
        axes.axhline(level, color="#4a78b0", linewidth=0.8, linestyle=":")
        axes.annotate(label, (0, level), (4, 3), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                      fontsize=8, color="#4a78b0")  # fmt: skip
    axes.set(xlabel="classification: AUROC on validation", ylabel="localisation: share of attention peaks on a lesion")
    axes.set_title("Each point is a configuration that the sweep tried", fontsize=10)
    axes.legend(fontsize=8, loc="center", bbox_to_anchor=(0.6, 0.62))


def dominated(point: NDArray[np.float64], points: NDArray[np.float64]) -> bool:
    return bool(((points >= point).all(axis=1) & (points > point).any(axis=1)).any())


def draw_attention(
    grid: GridSpec, config: TrialConfig, cache: Path, students: dict[str, Predictor], folder: Path
) -> None:
    store = prepare(config.cohort, cache)
    rows = store.rows("val", config.cohort.fold)
    rows = rows[store.roi_mask(rows).any(axis=(1, 2, 3))][:NUM_IMAGES]
    for line, row in enumerate(rows):
        image_HW = store.images(np.array([row]))[0, 0]
        roi_HW = store.roi_mask(np.array([row]))[0].any(axis=0)
        file = folder / f"{row}.png"
        Image.fromarray(image_HW).save(file)
        panels = {"image, lesion": np.asarray(Image.fromarray(image_HW).convert("RGB"))}
        panels |= {LABELS[arm]: np.asarray(student(file).overlays()[0]) for arm, student in students.items()}
        for column, (title, panel_HWC) in enumerate(panels.items()):
            axes = grid.figure.add_subplot(grid[line, 3 + column])  # type: ignore[union-attr]
            axes.imshow(panel_HWC, interpolation="nearest")
            axes.contour(roi_HW, levels=[0.5], colors="cyan", linewidths=1)
            axes.set_axis_off()
            if line == 0:
                axes.set_title(title, fontsize=9)


if __name__ == "__main__":
    main()
