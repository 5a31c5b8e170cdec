"""A whole sweep by this program against the documented Ray Tune + OptunaSearch + MLflow + DataLoader way.

    python benchmarks/documented_way.py [--breast DIR] [--trials 12] [--epochs 8] [--rounds 1] [--json FILE]
                                        [--only ours|documented]

Both sides search the hyperparameters of the same student (a timm ViT of 4 blocks, 128 wide, 96 px, patches of 8) on
the BrEaST ultrasound images, with the same number of trials, epochs, training and validation images, the same batch
size and the same two goals (AUROC, and whether the maximum of the attention lies in the lesion). A trial has one
thread, a core has one trial, and no trial is stopped early. Each side runs in a process and an empty folder of its
own, from the start of Python to its end; the order is reversed in every second round. `--trials 2 --epochs 1` is the
quick form: fewer trials than arms leave out the last arms.

The documented side is written after these pages, with their defaults: Ray Tune "How to use Tune with PyTorch" (a
function per trial, a checkpoint and a report after each epoch), "How to Save and Load Trial Checkpoints", "Running
Tune experiments with Optuna" (a define-by-run space with two goals), "Using MLflow with Tune" (MLflowLoggerCallback,
here to SQLite); PyTorch "Datasets & DataLoaders"; torchvision "Getting started with transforms v2"; timm's
`create_model`. Its student is eager, its optimiser torch's AdamW. DataLoader has no worker processes, because a trial
has one core. Its folds are as large as ours, but drawn by scikit-learn, and it stretches images to the square.

What the documented side does and ours does not: it decodes and resizes each image each time that the image is used,
starts a process for each trial (the default of `reuse_actors`), saves a checkpoint after each epoch and keeps all of
them (ours: at most every `checkpoint_seconds`, and the last), and writes Ray's own logs of each trial.

What ours does and the documented side does not: it reads each image once and stores it; checks all branches of the
space; times steps for a price before the sweep; fits the text teacher as a network (there: tf-idf and logistic
regression) and scores each teacher; trains the branches `features` and `contrastive` (there: logits in every arm with a
teacher); reports standard errors, further map scores and image-blind baselines for the last epoch; keeps a journal that
survives a kill; exports each student, and writes tables and a report.

CPU-seconds are those of the side's processes, sampled, so they stay comparable while other work shares the machine;
wall-clock seconds do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

ROOT: Final = Path(__file__).parents[1]
BREAST: Final = ROOT.parent / "shared" / "data" / "breast_lesions_usg"
ARMS: Final = ("none", "tabular", "text", "ensemble")
GOALS: Final = ("auroc", "pointing")
SIZE, PATCH, BATCH, VALIDATION_BATCH = 96, 8, 16, 64  # as in the space `breast` and the defaults of a trial
STUDENT: Final = {"patch_size": PATCH, "embed_dim": 128, "depth": 4, "num_heads": 4}
WORK: Final = "work.json"  # file in which the documented side writes what it did
SIDES: Final = ("ours", "documented")
WANTED: Final = 2.0  # seconds of the documented way over ours


# --- the documented way ---


class Lesions(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Ultrasound images with labels and the cached logits of a teacher."""

    def __init__(self, files: Sequence[Path], label_N: NDArray[Any], logit_N: NDArray[Any], transform: v2.Transform):
        self.files, self.transform = files, transform
        self.label_N, self.logit_N = (torch.as_tensor(values, dtype=torch.float32) for values in (label_N, logit_N))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        with Image.open(self.files[index]) as image:
            pixels_1HW = self.transform(image.convert("L"))
        return pixels_1HW, self.label_N[index], self.logit_N[index]


def transform_of(training: bool) -> v2.Transform:
    """Returns the transform of images; in training with the shifts and flips that are the defaults of a trial."""
    augmentation = [v2.RandomAffine(degrees=0, translate=(0.1, 0.1)), v2.RandomHorizontalFlip()] if training else []
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])]
    return v2.Compose([v2.ToImage(), v2.Resize((SIZE, SIZE)), *augmentation, *to_float])


def read_table(root: Path) -> pd.DataFrame:
    """Returns the cases with a lesion, with their label and a fold from 0 to 4, of which 4 is the test part."""
    from sklearn.model_selection import StratifiedKFold

    (path,) = root.glob("*.xlsx")
    table = pd.read_excel(path)
    table = table[table["Mask_tumor_filename"].notna()].reset_index(drop=True)
    table["malignant"] = (table["Classification"] == "malignant").astype(int)
    table["fold"] = -1
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(table, table["malignant"])
    for fold, (_, rows) in enumerate(folds):
        table.loc[rows, "fold"] = fold
    return table


def fit_teachers(table: pd.DataFrame, folder: Path) -> None:
    """Fits the teachers to the radiologist's descriptors, and caches their logits in `<folder>/<arm>.npy` (N).

    Training cases get logits of a model that was fitted without them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    names = ["Shape", "Margin", "Echogenicity", "Posterior_features", "Halo", "Calcifications", "Skin_thickening"]
    cells = table[names].fillna("missing").astype(str)
    sentences = cells.agg(" ".join, axis=1)
    train = table["fold"].isin([1, 2, 3]).to_numpy()
    label_N = table["malignant"].to_numpy()
    encoders = {"tabular": (OneHotEncoder(handle_unknown="ignore"), cells), "text": (TfidfVectorizer(), sentences)}
    logits = {"none": np.zeros(len(table))}
    for arm, (encoder, inputs) in encoders.items():
        model = make_pipeline(encoder, LogisticRegression())
        logits[arm] = model.fit(inputs[train], label_N[train]).decision_function(inputs)
        logits[arm][train] = cross_val_predict(model, inputs[train], label_N[train], method="decision_function")
    logits["ensemble"] = (logits["tabular"] + logits["text"]) / 2
    for arm, logit_N in logits.items():
        np.save(folder / f"{arm}.npy", logit_N)


class SearchSpace:
    """The space `breast` as a define-by-run function of OptunaSearch."""

    def __init__(self, arms: Sequence[str], constants: Mapping[str, Any]):
        self.arms, self.constants = list(arms), dict(constants)

    def __call__(self, trial: Any) -> dict[str, Any]:
        arm = trial.suggest_categorical("arm", self.arms)
        trial.suggest_float("lr", 1e-4, 3e-3, log=True)
        trial.suggest_float("weight_decay", 1e-3, 0.3, log=True)
        if arm != "none":
            trial.suggest_float("weight", 0.05, 20, log=True)
            trial.suggest_float("temperature", 1, 10, log=True)
        elif trial.suggest_categorical("smooths", [False, True]):
            trial.suggest_float("label_smoothing", 0.02, 0.2)
        return self.constants


def train_student(config: dict[str, Any]) -> None:
    """Trains and scores one student. It is the function that Ray Tune calls for each trial."""
    import timm
    from ray import tune

    torch.set_num_threads(1)
    torch.manual_seed(0)
    table, images = pd.read_pickle(config["table"]), Path(config["images"])
    logit_N = np.load(Path(config["teachers"]) / f"{config['arm']}.npy")
    files = [images / name for name in table["Image_filename"]]
    in_training, in_validation = table["fold"].isin([1, 2, 3]).to_numpy(), (table["fold"] == 0).to_numpy()

    def loader(part_N: NDArray[np.bool_], training: bool) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
        rows = np.flatnonzero(part_N)
        labels = table["malignant"].to_numpy()[rows]
        data = Lesions([files[row] for row in rows], labels, logit_N[rows], transform_of(training))
        return DataLoader(data, batch_size=BATCH if training else VALIDATION_BATCH, shuffle=training)

    train_loader, validation_loader = loader(in_training, True), loader(in_validation, False)
    mask_NHW = read_masks([images / name for name in table["Mask_tumor_filename"][in_validation]])
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, in_chans=1, num_classes=1, global_pool="token", **STUDENT
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    num_steps = config["epochs"] * len(train_loader)
    warmup = max(num_steps // 10, 1)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps - warmup, 1)),
        ],
        [warmup],
    )
    start = 0
    if (earlier := tune.get_checkpoint()) is not None:
        with earlier.as_directory() as place:
            content = torch.load(Path(place) / "checkpoint.pt")
            start = content["epoch"] + 1
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            schedule.load_state_dict(content["schedule"])
    for epoch in range(start, config["epochs"]):
        loss = train_epoch(model, train_loader, optimizer, schedule, config)
        scores = validate(model, validation_loader, mask_NHW)
        states = {"model": model, "optimizer": optimizer, "schedule": schedule}
        content = {"epoch": epoch} | {name: each.state_dict() for name, each in states.items()}
        with tempfile.TemporaryDirectory() as place:
            torch.save(content, Path(place) / "checkpoint.pt")
            tune.report({"loss": loss, **scores}, checkpoint=tune.Checkpoint.from_directory(place))


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    config: Mapping[str, Any],
) -> float:
    """Trains one epoch with the loss of labels and, in an arm with a teacher, T^2 times the cross-entropy with the
    teacher's softened probabilities. Returns the mean loss.
    """
    model.train()
    weight, temperature = config.get("weight", 0.0), config.get("temperature", 1.0)
    smoothing = config.get("label_smoothing", 0.0)
    total = 0.0
    for image_BCHW, label_B, teacher_B in loader:
        logit_B = model(image_BCHW)[:, 0]
        target_B = label_B * (1 - smoothing) + smoothing / 2
        loss = F.binary_cross_entropy_with_logits(logit_B, target_B)
        if weight:
            softened_B = torch.sigmoid(teacher_B / temperature)
            term = F.binary_cross_entropy_with_logits(logit_B / temperature, softened_B)
            loss = loss + weight * temperature**2 * term
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(loader)


def read_masks(files: Sequence[Path]) -> NDArray[np.bool_]:
    """Returns the lesion masks in the square of the student, N x H x W."""
    masks = []
    for path in files:
        with Image.open(path) as image:
            masks.append(np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.NEAREST)) > 0)
    return np.stack(masks)


def validate(model: Any, loader: Any, mask_NHW: NDArray[np.bool_]) -> dict[str, float]:
    """Returns the AUROC, and the share of images in which the patch with the highest attention of the CLS token in
    the last block, averaged over heads, has its centre in the lesion.

    timm's fused attention never forms the matrix, so the last block is unfused meanwhile.
    """
    from sklearn.metrics import roc_auc_score

    model.eval()
    attention = model.blocks[-1].attn
    rows: list[Tensor] = []
    handle = attention.attn_drop.register_forward_pre_hook(
        lambda module, inputs: rows.append(inputs[0][:, :, 0, 1:].mean(dim=1))
    )
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        with torch.inference_mode():
            batches = [(model(image_BCHW)[:, 0], label_B) for image_BCHW, label_B, _ in loader]
    finally:
        handle.remove()
        attention.fused_attn = fused
    logit_N, label_N = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    return {"auroc": float(roc_auc_score(label_N, logit_N)), "pointing": pointing(torch.cat(rows).numpy(), mask_NHW)}


def pointing(attention_NP: NDArray[Any], mask_NHW: NDArray[np.bool_]) -> float:
    """Returns the share of images whose patch of highest attention has its centre in the mask."""
    row_N, column_N = np.divmod(attention_NP.argmax(axis=1), SIZE // PATCH)
    centre = PATCH // 2
    hit_N = mask_NHW[np.arange(len(mask_NHW)), row_N * PATCH + centre, column_N * PATCH + centre]
    return float(hit_N.mean())


def run_documented(root: Path, arms: Sequence[str], trials: int, epochs: int, folder: Path, slots: int) -> None:
    """Runs the documented sweep in a folder, `slots` trials at a time, and writes the number of its trials and epochs
    to the file WORK.
    """
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    table = read_table(root)
    fit_teachers(table, folder)
    table.to_pickle(folder / "table.pkl")
    (images,) = (path for path in root.iterdir() if path.is_dir())
    places = {"table": folder / "table.pkl", "images": images, "teachers": folder}
    constants = {"epochs": epochs} | {name: str(path) for name, path in places.items()}
    ray.init(address="local", num_cpus=slots)
    tuner = tune.Tuner(
        tune.with_resources(train_student, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(SearchSpace(arms, constants), metric=list(GOALS), mode=["max", "max"]),
            num_samples=trials,
        ),
        run_config=tune.RunConfig(
            name="documented",
            storage_path=str(folder),
            callbacks=[MLflowLoggerCallback(f"sqlite:///{folder / 'mlflow.db'}", experiment_name="documented")],
        ),
    )
    results = tuner.fit()
    assert not results.num_errors, results.errors
    reported = [result.metrics["training_iteration"] for result in results if result.metrics]
    (folder / WORK).write_text(json.dumps({"trials": len(results), "epochs": sum(reported)}))


# --- the comparison ---


def our_words(root: Path, arms: Sequence[str], trials: int, epochs: int, folder: Path) -> list[str]:
    """Returns the words with which `python -m sweep.run` runs the same sweep in a folder."""
    words = ["space=breast", f"cohort.root={root}", f"trials={trials}", f"epochs={epochs}", "name=ours"]
    words += ["search.early_stopping=false", f"storage={folder / 'runs'}", f"cache={folder / 'cache'}"]
    return words + [f"arms.{arm}=false" for arm in ARMS if arm not in arms]


def work_of(side: str, folder: Path) -> dict[str, int]:
    """Returns the number of trials and of epochs that a side has run in its folder."""
    if side == "documented":
        work: dict[str, int] = json.loads((folder / WORK).read_text())
        return work
    return {name: len(pd.read_parquet(folder / "runs" / "ours" / f"{name}.parquet")) for name in ("trials", "epochs")}


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one side in a process and an empty folder of its own, and returns its seconds and what it did."""
    sys.path.insert(0, str(ROOT))  # run as a script, it imports the other benchmarks and the program
    from benchmarks.cpu_time import CpuMeter
    from mmpkd.machine.resources import cores

    with tempfile.TemporaryDirectory(prefix="documented-way-") as place:
        sweep = options.breast, ARMS[: options.trials], options.trials, options.epochs, Path(place)
        command = [sys.executable, "-m", "sweep.run", *our_words(*sweep)]
        if side == "documented":
            command = [
                sys.executable,
                __file__,
                "--worker",
                place,
                str(cores().amount),
                "--breast",
                str(options.breast),
            ]
            command += ["--trials", str(options.trials), "--epochs", str(options.epochs)]
        log, load = Path(place) / "output.txt", os.getloadavg()[0]
        with log.open("w") as output:
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
            meter = CpuMeter(process.pid)
            meter.start()
            status = process.wait()
            seconds, cpu = time.perf_counter() - started, meter.end()
        if status:
            raise SystemExit(f"{side} failed with status {status}:\n{log.read_text()[-4000:]}")
        work = work_of(side, Path(place))
    assert work == {"trials": options.trials, "epochs": options.trials * options.epochs}, (side, work)
    return {"side": side, "seconds": seconds, "cpu_seconds": cpu, "load_before": load, **work}


def ratios(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the seconds and the CPU-seconds of the documented way over ours, each summed over the rounds. Returns
    nothing if one side is missing.
    """
    if len({run["side"] for run in runs}) < len(SIDES):
        return {}
    return {
        key: sum(run[key] for run in runs if run["side"] == "documented")
        / sum(run[key] for run in runs if run["side"] == "ours")
        for key in ("seconds", "cpu_seconds")
    }


def report(runs: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints a row for each run, and last the ratio."""
    table = Table("side", "trials", "epochs", "seconds", "CPU-seconds", "load before")
    for run in runs:
        times = (f"{run['seconds']:.1f}", f"{run['cpu_seconds']:.1f}", f"{run['load_before']:.1f}")
        table.add_row(run["side"], str(run["trials"]), str(run["epochs"]), *times)
    console.print(table)
    if ratio := ratios(runs):
        verdict = "PASS" if ratio["seconds"] >= WANTED else "FAIL"
        console.print(
            f"documented way over ours: {ratio['seconds']:.2f} times the seconds (wanted {WANTED:g}: {verdict}), "
            f"{ratio['cpu_seconds']:.2f} times the CPU-seconds",
            highlight=False,
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breast", type=Path, default=BREAST, help="folder of the BrEaST data")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "SLOTS"), help="used by the script itself")
    options = parser.parse_args(words)
    if not options.breast.is_dir():
        raise SystemExit(f"{options.breast} is not a folder; give the folder of the BrEaST data with --breast DIR")
    options.breast = options.breast.resolve()
    if options.worker:
        place, slots = options.worker
        arms = ARMS[: options.trials]
        run_documented(options.breast, arms, options.trials, options.epochs, Path(place), int(slots))
        return
    sides = (options.only,) if options.only else SIDES
    order = [side for number in range(options.rounds) for side in (sides[::-1] if number % 2 else sides)]
    runs = [measure(side, options) for side in order]
    report(runs, Console(width=120))
    if options.json:
        names = ("ray", "optuna", "mlflow", "torch", "torchvision", "timm")
        versions = {name: version(name) for name in names} | {"python": platform.python_version()}
        content = {"command": sys.argv, "versions": versions, "runs": runs, "ratios": ratios(runs)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
