"""The command that scores an exported student on a prepared cohort; see HELP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.table import Table

from mmpkd import command, export
from mmpkd.cohort import splits
from mmpkd.cohort.decode import depth_of
from mmpkd.cohort.formats.bit_depths import contrast_of
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Part, Store
from mmpkd.cohort.suspects import suspects_of
from mmpkd.config import CohortConfig, EvaluationConfig, validate
from mmpkd.export import Card, Exported, source_of, tempered
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.near_names import near
from mmpkd.scoring import classify
from mmpkd.scoring.grouping import FEWEST, alone, fold_notes, groupings, values_of
from mmpkd.scoring.patients import by_patient
from mmpkd.scoring.subgroups import (
    REPLICATES,
    ClassWeights,
    Predictions,
    aligned,
    by_group,
    by_label,
    by_region,
)
from mmpkd.scoring.validation import Evaluator, Labels
from mmpkd.types import ConfigError, Mistake

PARTS = ("all", "train", "val", "test")
TITLES = {  # what differs from a training's numbers of the same name stands beside the table
    "labels": "labels: balanced_accuracy at the student's thresholds, chosen on its validation (in training: at 0.5)",
    "labels_by_patient": "labels_by_patient: of the mean probability of a patient's images; else as labels",
    "regions": "regions: in the frame of the original images (in training: of the stored squares)",
    "groups": "groups: pointing is the mean over images, each of its labels' mean (in regions: over labels)",
}
HELP = f"""python -m mmpkd.evaluate model=FILE config=FILE [key=value ...]
python -m mmpkd.evaluate model=FILE cohort.reader=NAME cohort.root=DIR [key=value ...]

How well an exported student classifies a cohort, where it looks, and for whom. Labels meet by name; those that one
side does not know are left out. Prints tables, and leaves them in a folder with the scores of every image.

  model=FILE      student.safetensors, as mmpkd.train leaves it; or a folder with one in it
  config=FILE     a configuration or a search space, of which the cohort section is read (a `table` needs one)
  cohort.KEY=..   any leaf of a cohort, as for python -m mmpkd.cohort; image size and window are the student's
  part=PART       {", ".join(PARTS)}    [all; of the cohort that the student was trained on: val]
  groups=A,B      columns that tell groups apart, the one that names the folds among them
                  [those named after sex, age, density or view]
  class_weights=balanced    precision and Brier score as if both classes were as frequent    [equal]
  within=foreground         where it looks, on the breast alone (see evaluation.within)      [content]
  roi=union                 all ROIs of an image as one region, whatever their labels       [per_label]
  out=DIR         where the folder goes    [runs/evaluate]
  cache=DIR       where stores lie    [cache]

Intervals: 95 %, {REPLICATES:,} bootstrap replicates over patients. Groups of fewer than {FEWEST} patients are not told
apart. Where a patient has several images, the mean of their probabilities is scored as well, by patient; a patient
whose images have different labels is left out there, and counted as mixed. Maps are scored in the frame of the
original images. Classification is scored by the calibrated probabilities that predictions.csv holds, of which the AUROC
of a multi-class task may differ from the training's, which is of raw logits. Of the cohort that a student was trained
on only the validation part is scored, on which its temperatures and thresholds were chosen: the training part would
flatter, and the test part is sealed."""


def main(words: Sequence[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    defaults = {
        "model": "",
        "config": "",
        "part": "",
        "groups": "",
        "class_weights": "equal",
        "within": "content",
        "roi": "per_label",
    }
    own, overrides = command.own_words(words, defaults | {"out": "runs/evaluate", "cache": "cache"})
    content = {"cohort": read_yaml(Path(own["config"])).get("cohort", {}) if own["config"] else {}}
    content = overridden(content, overrides)
    if not isinstance(content["cohort"], dict):
        raise ConfigError.at(
            "cohort", f"keys begin with cohort., e.g. cohort.reader={content['cohort']}; or config=FILE"
        )
    mistakes = [Mistake(key, f"not a word of this command{near(key, own)}") for key in content if key != "cohort"]
    mistakes += [] if own["model"] else [Mistake("model", "which? --help explains")]
    within, roi = (get_args(EvaluationConfig.model_fields[key].annotation) for key in ("within", "roi"))
    known = {"part": ("", *PARTS), "class_weights": get_args(ClassWeights), "within": within, "roi": roi}
    for key, allowed in known.items():
        if own[key] not in allowed:
            mistakes.append(Mistake(key, f"wanted {' or '.join(filter(None, allowed))}, got {own[key]!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    exported = export.read(Path(own["model"]))
    stated = {word.partition("=")[0] for word in overrides}  # on the command line, not in a file of other uses
    asked, size = content["cohort"].get("image_size"), exported.card.image_size
    if asked not in (None, size) and "cohort.image_size" in stated:
        raise ConfigError.at("cohort.image_size", f"the student sees {size} pixels a side, got {asked}: leave it out")
    config, cache = validate(CohortConfig, {**content["cohort"], "image_size": size}, "cohort"), Path(own["cache"])
    store, depth = prepare(config, cache), exported.card.depth
    if not is_own(store, exported.card) and contrast_of(config):
        unused = "cohort.window and cohort.clahe are not used: images are shown as those that the student learnt from"
        for key in ("window", "clahe"):
            if any(word == f"cohort.{key}" or word.startswith(f"cohort.{key}.") for word in stated):
                raise ConfigError.at(f"cohort.{key}", f"{unused}; leave it out")
        command.warn([f"{unused}, {depth}"])
    if not is_own(store, exported.card) and depth_of(store.manifest) != depth:  # the student's window, as in predict
        store = prepare(config, cache, depth)
    for key in ("within", "roi"):
        if own[key] != defaults[key] and not store.facts.roi_labels:
            raise ConfigError.at(key, "the cohort has no regions, so it would change nothing; leave it out")
    command.warn(suspects_of(store).lines(store.facts))
    part = own["part"] or ("val" if is_own(store, exported.card) else "all")
    wanted = config.fold if "fold" in config.model_fields_set else None
    fold = fold_of(store, exported.card, wanted, part, "cohort.fold" in stated)
    rows = chosen(store, exported, own["part"], fold or 0)
    columns = groupings(store, own["groups"].split(",") if own["groups"] else None)
    weights = cast(ClassWeights, own["class_weights"])
    regions = {"within": own["within"], "roi": own["roi"]}
    tables = evaluate(exported, store, rows, weights, regions, columns)
    place = part if not fold else f"{part}-fold{fold}"
    folder = Path(own["out"]) / f"{exported.card.trial}-{store.fingerprint}-{place}"
    what = {"words": list(words), "student": exported.card.trial, "cohort": store.fingerprint, "part": part}
    with command.written_to(folder):
        _leave(folder, tables, {**what, "fold": fold, "samples": len(rows), "replicates": REPLICATES})
    patients = len(np.unique(store.patient_N[rows]))
    which = part if fold is None else f"{part}, fold {fold}"
    title = f"{store.manifest['reader']}, part {which}: {len(rows)} samples of {patients} patients"
    _print(tables, title, {**TITLES, "regions": f"{TITLES['regions']}; within={own['within']}, roi={own['roi']}"})
    compared = set(tables["groups"]["column"]) if "groups" in tables else set()
    lines = [alone(name) for name in columns if name not in compared]
    lines += fold_notes(store, [name for name in columns if name in compared])
    lines.append(f"these tables and the scores of every image: {folder}")
    if store.facts.credentialed:
        naming = [f"{name}.csv" for name, table in tables.items() if {"sample", "patient"} & set(table)]
        lines.append(
            f"{', '.join(naming)} hold names of files and patients of a credentialed cohort; do not share them"
        )
    command.plain_console().print("\n".join(lines), highlight=False, soft_wrap=True)


def is_own(store: Store, card: Card) -> bool:
    """Whether a student learnt from this very cohort.

    Raises:
        ConfigError: from the same data set, read with other options: its patients may be anywhere in this cohort.
    """
    if store.fingerprint != card.cohort and source_of(store.manifest) == card.source:
        what = f"the student was trained on {store.manifest['reader']}, prepared with other options or from other files"
        raise ConfigError.at(
            "cohort", f"{what}: its training patients may be anywhere in this one; take the same words"
        )
    return store.fingerprint == card.cohort


def fold_of(store: Store, card: Card, stated: int | None, part: str, by_word: bool) -> int | None:
    """The fold that validates, counted from 0; None where the part that is scored does not depend on it.

    Args:
        stated: the fold that the command or its configuration names, if it does.
        by_word: whether the command names it.

    Raises:
        CohortError: there is no such fold.
        ConfigError: a fold that trained the student, or that would change nothing.
    """
    splits.refuse_fold(stated or 0, store.num_folds)
    has_folds = store.num_folds > 1
    if is_own(store, card):
        if has_folds and stated not in (None, card.fold):
            why = f"this student validated on fold {card.fold}; the other folds are its training patients"
            raise ConfigError.at("cohort.fold", f"{why}; leave cohort.fold out, or write cohort.fold={card.fold}")
        return card.fold if has_folds else None
    if part in ("train", "val"):
        return stated or 0 if has_folds else None
    if by_word and has_folds:
        raise ConfigError.at("cohort.fold", f"part={part} is the same whichever fold validates; leave it out")
    return None


def chosen(store: Store, exported: Exported, part: str, fold: int) -> NDArray[np.int64]:
    """Rows of the samples to score.

    Raises:
        ConfigError: a part that must not be scored, or is empty; images that the student's own cohort holds.
    """
    card = exported.card
    if is_own(store, card):
        if part not in ("", "val"):
            why = "the student was trained on this cohort: its training part would flatter, its test part is sealed"
            raise ConfigError.at("part", f"{why}; part=val is what is left")
        return store.rows("val", card.fold)
    if known := int(np.isin(store.digests(), exported.seen).sum()):
        what = f"{known} of its {len(store.sample_ids)} images are images of the student's own cohort as well"
        what += " (whether they trained it, validated it or are sealed there)"
        mend = "take their patients out, or name the student's own cohort, whose validation part is scored"
        raise ConfigError.at("cohort", f"{what}: {mend}")
    if part in ("", "all"):
        return np.arange(len(store.sample_ids))
    rows = store.rows(cast(Part, part), fold)
    if not len(rows):
        raise ConfigError.at("part", f"no sample of the cohort is in part {part}")
    return rows


def evaluate(
    exported: Exported,
    store: Store,
    rows: NDArray[np.int64],
    weights: ClassWeights,
    regions: Mapping[str, str],
    columns: Sequence[str],
) -> dict[str, pd.DataFrame]:
    """The tables of HELP by name: labels, groups, regions and images where there are any, and predictions; where a
    patient has several images, labels and predictions as well by patient.

    Args:
        regions: `within` and `roi` of EvaluationConfig.

    Raises:
        ConfigError: not one label in common, or images of another kind.
    """
    card = exported.card
    tasks, target_NK, known_NK = aligned(card, store)
    target_NK, known_NK = target_NK[rows], known_NK[rows]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = exported.student.to(device)
    config = EvaluationConfig.model_validate({"map": card.map, **regions})
    train_rows = store.rows("train", card.fold) if is_own(store, card) else None
    evaluator = Evaluator(
        store, rows, config, student.grid, device, train_rows, Labels(tasks, target_NK, known_NK), REPLICATES
    )
    logits_NK, map_NRhw = evaluator.predict(student)
    # Calibrated: a temperature moves one class against the rest, and every score is of the probabilities left below.
    logits_NK = tempered(logits_NK, card.tasks, card.temperature)
    probability_NK = classify.probabilities(logits_NK, card.tasks)
    answers = Predictions(tasks, logits_NK, probability_NK, target_NK, known_NK, evaluator.weight_RN)
    patient_ids = store.patient_ids[rows]
    names = [f"{task.name}/{name}" for task in card.tasks for name in task.logit_names]
    predictions = pd.DataFrame(probability_NK, columns=names)
    predictions.insert(0, "sample", store.sample_ids[rows])
    tables = {"labels": by_label(answers, card, weights), "predictions": predictions}
    if len(np.unique(patient_ids)) < len(rows):
        aggregated = by_patient(logits_NK, target_NK, known_NK, card.tasks, patient_ids)
        probability_PK = classify.probabilities(aggregated.logits_PK, card.tasks)
        weight_RP = evaluator.weight_RN[:, aggregated.first_P]
        answers_P = Predictions(
            tasks, aggregated.logits_PK, probability_PK, aggregated.target_PK, aggregated.known_PK, weight_RP
        )
        tables["labels_by_patient"] = by_label(answers_P, card, weights).rename(columns={"samples": "patients"})
        mixed = dict(zip(names, aggregated.mixed_PK.sum(axis=0), strict=True))
        tables["labels_by_patient"].insert(2, "mixed", tables["labels_by_patient"]["label"].map(mixed))
        answers_by_patient = pd.DataFrame(probability_PK, columns=names)
        answers_by_patient.insert(0, "images", aggregated.images_P)
        answers_by_patient.insert(0, "patient", patient_ids[aggregated.first_P])
        tables["predictions_by_patient"] = answers_by_patient
    pointing_N = np.full(len(rows), np.nan)
    if evaluator.regions is not None:
        threshold_R = np.array([card.map_threshold.get(label, np.nan) for label in evaluator.roi_labels])
        tables["images"] = evaluator.table(map_NRhw, threshold_R, original=True)
        tables["regions"] = by_region(tables["images"], store.sample_ids[rows], evaluator.weight_RN)
        means = tables["images"].groupby("sample")["pointing"].mean()
        pointing_N = means.reindex(store.sample_ids[rows]).to_numpy(float)
    values = values_of(store, columns).iloc[rows]
    tables["groups"] = by_group(answers, values, store.patient_N[rows], pointing_N)
    return {name: table for name, table in tables.items() if len(table)}


def _leave(folder: Path, tables: Mapping[str, pd.DataFrame], what: Mapping[str, Any]) -> None:
    """Every table as CSV, what was done last: a folder with evaluation.json is whole."""
    command.make_folder(folder)
    for old in (folder / "evaluation.json", *folder.glob("*.csv")):
        old.unlink(missing_ok=True)
    for name, table in tables.items():
        command.write_whole(folder / f"{name}.csv", table.to_csv(index=False))
    command.write_whole(folder / "evaluation.json", json.dumps(what, indent=1))


def _print(tables: Mapping[str, pd.DataFrame], title: str, titles: Mapping[str, str]) -> None:
    console = command.plain_console()
    console = console if console.is_terminal else command.plain_console(width=130)  # a file has no edge
    console.print(title, highlight=False, soft_wrap=True)
    for name in titles:
        if name not in tables:
            continue
        table = tables[name]
        told = [column for column in table if not str(column).endswith(("_low", "_high"))]
        shown = Table(*map(str, told), title=titles[name])
        for _, row in table.iterrows():
            shown.add_row(*(_cell(row, str(column)) for column in told))
        console.print(shown)


def _cell(row: pd.Series, name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    return (
        f"{value:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" if f"{name}_low" in row else f"{value:.3f}"
    )


if __name__ == "__main__":
    command.run(main)
