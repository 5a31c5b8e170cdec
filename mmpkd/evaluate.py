"""Scores an exported student on a prepared cohort; see HELP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mmpkd import command
from mmpkd.cohort import splits
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Part, Store
from mmpkd.cohort.suspects import suspects_of
from mmpkd.config import CohortConfig, EvaluationConfig, validate
from mmpkd.export.lookup import find, is_answering
from mmpkd.export.student_file import Exported, read, tempered
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.prediction.answer_scores import (
    CHOSEN_HERE,
    NO_INTERVAL,
    NO_YARDSTICKS,
    UNDEFINED,
    evaluate_answers,
    refuse_unfit,
)
from mmpkd.prediction.evaluation_tables import FITTED_HERE, print_tables, write_tables
from mmpkd.prediction.other_cohort import Home, prepared, refuse_seen
from mmpkd.scoring import classify, subgroups
from mmpkd.scoring.grouping import fold_notes, groupings, reason_not_compared, values_of
from mmpkd.scoring.patients import by_patient
from mmpkd.scoring.subgroups import REPLICATES, ClassWeights, Predictions, aligned, by_group, by_label, by_region
from mmpkd.scoring.validation import Evaluator, Labels
from mmpkd.types import ConfigError, Mistake
from mmpkd.vlm import student as vlm_student
from mmpkd.vlm.scores import text
from mmpkd.vlm.student import VlmStudent

PARTS = ("all", "train", "val", "test")
HELP = """\
usage: python -m mmpkd.evaluate model=FILE config=FILE [key=value ...]

Scores an exported student on a cohort: classification and localisation, overall
and by group of patients. Prints tables, and writes them to a folder with the
scores of every image. A student that answers (vlm.safetensors) is scored on a
cohort of questions, by task, beside answers that see no image.

  model=FILE      student.safetensors or vlm.safetensors of mmpkd.train, or a
                  folder that holds one
  config=FILE     a configuration or a search space, whose cohort is read
  cohort.KEY=..   any leaf of a cohort, as for mmpkd.cohort; instead of config=
                  cohort.reader=NAME cohort.root=DIR, except for a table
  part=all        all, train, val or test; val for the student's own cohort
  groups=A,B      columns of groups [those named after sex, age, density, view]
  class_weights=balanced   average precision and Brier score as if both classes
                  were equally frequent [equal]
  within=foreground   localisation within the breast alone [content]
  roi=union       all ROIs of an image as one region [per_label]
  out=DIR         the parent of the folder [runs/evaluate]
  cache=DIR       the folder of stores [cache]

groups, class_weights, within and roi are for students that classify. Of the
student's own cohort only the validation part is scored, on which it was chosen
and its thresholds were. Intervals cover 95 %. docs/commands.md has the details.

examples
  python -m mmpkd.evaluate model=runs/train/best-0123 config=other.yaml
  python -m mmpkd.evaluate model=DIR cohort.reader=derm7pt cohort.root=DIR
"""


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or command.asks_for_help(words):
        print(HELP, end="")
        return
    defaults = dict.fromkeys(("model", "config", "part", "groups"), "")
    defaults |= {"class_weights": "equal", "within": "content", "roi": "per_label"}
    own, overrides = command.own_words(words, defaults | {"out": "runs/evaluate", "cache": "cache"})
    content = {"cohort": read_yaml(Path(own["config"])).get("cohort", {}) if own["config"] else {}}
    content = overridden(content, overrides)
    if not isinstance(content["cohort"], dict):
        advice = f"write keys that begin with cohort., e.g. cohort.reader={content['cohort']}; or config=FILE"
        raise ConfigError.at("cohort", f"is not a section; {advice}")
    mistakes = command.unknown_words([key for key in content if key != "cohort"], own)
    mistakes += [] if own["model"] else [Mistake("model", "missing: write model=FILE; see --help")]
    within, roi = (get_args(EvaluationConfig.model_fields[key].annotation) for key in ("within", "roi"))
    choices = {"part": ("", *PARTS), "class_weights": get_args(ClassWeights), "within": within, "roi": roi}
    for key, allowed in choices.items():
        if own[key] not in allowed:
            mistakes.append(Mistake(key, f"wanted {' or '.join(filter(None, allowed))}, got {own[key]!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    file = find(Path(own["model"]))
    answers = is_answering(file)
    if answers:
        text.require_libraries()
        unused = [key for key in ("groups", "class_weights", "within", "roi") if own[key] != defaults[key]]
        if unused:
            problem = "has no effect for a student that answers; leave it out"
            raise ConfigError([Mistake(key, problem) for key in unused])
    exported = vlm_student.read(file) if answers else read(file)
    stated = {word.partition("=")[0] for word in overrides}  # only on the command line: a file may serve other purposes
    wanted_size, size = content["cohort"].get("image_size"), exported.card.image_size
    if wanted_size not in (None, size) and "cohort.image_size" in stated:
        raise ConfigError.at("cohort.image_size", f"the student sees {size} pixels, not {wanted_size}: leave it out")
    config, cache = validate(CohortConfig, {**content["cohort"], "image_size": size}, "cohort"), Path(own["cache"])
    home = Home.of_student(exported, cache)
    store = prepared(home, config, lambda depth: prepare(config, cache, depth, folds=False), stated)
    refuse_other_kind(exported, store.facts)
    is_own = home.is_same(store)
    for key in ("within", "roi"):
        if own[key] != defaults[key] and not store.facts.roi_labels:
            raise ConfigError.at(key, "the cohort has no regions, so this option has no effect; leave it out")
    command.warn(suspects_of(store).lines(store.facts))
    part = own["part"] or ("val" if is_own else "all")
    stated_fold = config.fold if "fold" in config.model_fields_set else None
    fold = fold_of(store, home, exported.card.fold, stated_fold, part, "cohort.fold" in stated)
    notes = [CHOSEN_HERE if answers else FITTED_HERE] if is_own else refuse_seen(home, store, config)
    rows = rows_to_score(store, home, exported.card.fold, own["part"], fold or 0)
    columns = [] if answers else groupings(store, own["groups"].split(",") if own["groups"] else None)
    weights = cast(ClassWeights, own["class_weights"])
    regions = {"within": own["within"], "roi": own["roi"]}
    if isinstance(exported, VlmStudent):
        notes += [] if home.store else [NO_YARDSTICKS]
        tables = evaluate_answers(exported, store, rows, home.store)
    else:
        tables = evaluate(exported, store, rows, weights, regions, columns)
    part_name = part if not fold else f"{part}-fold{fold}"
    folder = Path(own["out"]) / f"{exported.card.trial}-{store.fingerprint}-{part_name}"
    record: dict[str, Any] = {"words": list(words), "student": exported.card.trial, "cohort": store.fingerprint}
    record |= {"part": part, "fold": fold, "samples": len(rows)} | ({} if answers else {"replicates": REPLICATES})
    record |= {"fitted_on_these_patients": is_own, "notes": notes}
    with command.written_to(folder):
        write_tables(folder, tables, record)
    which = f"{store.manifest['reader']}, part {part}" + (f", fold {fold}" if fold is not None else "")
    title = f"{which}: {len(rows)} samples of {len(np.unique(store.patient_N[rows]))} patients"
    print_tables(tables, title, regions, notes, *((NO_INTERVAL, UNDEFINED) if answers else ()))
    if not answers:
        command.warn(subgroups.few_patients(home.tasks, home.channels, store, rows))
    compared = set(tables["groups"]["column"]) if "groups" in tables else set()
    lines = [reason_not_compared(name) for name in columns if name not in compared]
    lines += fold_notes(store, [name for name in columns if name in compared])
    lines.append(f"these tables and the scores of every image: {folder}")
    if store.facts.credentialed:
        files = [f"{name}.csv" for name, table in tables.items() if {"sample", "patient"} & set(table)]
        hold, them = ("hold", "them") if len(files) > 1 else ("holds", "it")
        what = f"{hold} names of files and patients of a credentialed cohort; do not share {them}"
        lines.append(f"{', '.join(files)} {what}")
    command.plain_console().print("\n".join(lines), highlight=False, soft_wrap=True)


def refuse_other_kind(exported: Exported | VlmStudent, facts: Facts) -> None:
    """Checks that a student and a cohort are of the same kind: labels, or questions.

    Raises:
        ConfigError: they are not, or the cohort lacks what a student that answers reads.
    """
    if isinstance(exported, VlmStudent):
        if facts.questions is None:
            problem = "has no questions, and the student answers questions"
            advice = "name a cohort with the reader vqa, med_grit or synthetic_vqa, or a student that classifies"
            raise ConfigError.at("cohort", f"{problem}; {advice}")
        refuse_unfit(exported, facts)
    elif facts.questions is not None:
        problem = "holds questions, and the student classifies; name a cohort with labels, or a student that answers"
        raise ConfigError.at("cohort", f"{problem} (vlm.safetensors)")


def fold_of(store: Store, home: Home, own_fold: int, stated: int | None, part: str, by_word: bool) -> int | None:
    """Returns the validation fold, counted from 0, or None if the scored part is the same for every fold.

    Args:
        own_fold: the validation fold of the student.
        stated: the fold in the command or its configuration, if any.
        by_word: whether `stated` comes from the command line.

    Raises:
        CohortError: the cohort has no such fold.
        ConfigError: the student was trained on the stated fold, or a fold is stated although it has no effect.
    """
    splits.refuse_fold(stated or 0, store.num_folds)
    has_folds = store.num_folds > 1
    if home.is_same(store):
        if has_folds and stated not in (None, own_fold):
            reason = f"this student validated on fold {own_fold}; the other folds are its training patients"
            raise ConfigError.at("cohort.fold", f"{reason}; leave cohort.fold out, or write cohort.fold={own_fold}")
        return own_fold if has_folds else None
    if part in ("train", "val"):
        return stated or 0 if has_folds else None
    if by_word and has_folds:
        raise ConfigError.at("cohort.fold", f"part={part} is the same for every validation fold; leave it out")
    return None


def rows_to_score(store: Store, home: Home, own_fold: int, part: str, fold: int) -> NDArray[np.int64]:
    """Returns the rows of the samples to score.

    Raises:
        ConfigError: the part must not be scored, or is empty.
    """
    if home.is_same(store):
        if part not in ("", "val"):
            reason = "the student was trained on this cohort: scores on its training part would be too high, and its"
            raise ConfigError.at("part", f"{reason} test part is sealed; use part=val")
        return store.rows("val", own_fold)
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
    """Returns the tables that HELP describes, by name. The tables of groups, regions and images are left out if there
    is nothing to put into them. Tables of labels and predictions by patient are added if a patient has several images.

    Args:
        regions: the options `within` and `roi` of EvaluationConfig.

    Raises:
        ConfigError: student and cohort have no label in common, or their images differ in the number of channels.
    """
    card = exported.card
    tasks, target_NK, known_NK = aligned(card.tasks, card.channels, store)
    target_NK, known_NK = target_NK[rows], known_NK[rows]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = exported.student.to(device)
    config = EvaluationConfig.model_validate({"map": card.map, **regions})
    train_rows = store.rows("train", card.fold) if store.fingerprint == card.cohort else None
    evaluator = Evaluator(
        store, rows, config, student.grid, device, train_rows, Labels(tasks, target_NK, known_NK), REPLICATES
    )
    logits_NK, map_NRhw = evaluator.predict(student)
    # A temperature moves one class against the others; every score uses the calibrated probabilities written below.
    logits_NK = tempered(logits_NK, card.tasks, card.temperature)
    probability_NK = classify.probabilities(logits_NK, card.tasks)
    labels = target_NK, known_NK
    predicted = Predictions(tasks, logits_NK, probability_NK, *labels, evaluator.weight_RN, evaluator.one_each)
    patient_ids = store.patient_ids[rows]
    names = [f"{task.name}/{name}" for task in card.tasks for name in task.logit_names]
    predictions = pd.DataFrame(probability_NK, columns=names)
    predictions.insert(0, "sample", store.sample_ids[rows])
    tables = {"labels": by_label(predicted, card, weights), "predictions": predictions}
    if not evaluator.one_each:
        aggregated = by_patient(logits_NK, target_NK, known_NK, card.tasks, patient_ids)
        probability_PK = classify.probabilities(aggregated.logits_PK, card.tasks)
        labels, weight_RP = aggregated[1:3], evaluator.weight_RN[:, aggregated.first_P]
        of_patients = Predictions(tasks, aggregated.logits_PK, probability_PK, *labels, weight_RP, one_each=True)
        tables["labels_by_patient"] = by_label(of_patients, card, weights).rename(columns={"samples": "patients"})
        mixed = dict(zip(names, aggregated.mixed_PK.sum(axis=0), strict=True))
        tables["labels_by_patient"].insert(2, "mixed", tables["labels_by_patient"]["label"].map(mixed))
        tables["predictions_by_patient"] = pd.DataFrame(probability_PK, columns=names)
        tables["predictions_by_patient"].insert(0, "images", aggregated.images_P)
        tables["predictions_by_patient"].insert(0, "patient", patient_ids[aggregated.first_P])
    pointing_N = np.full(len(rows), np.nan)
    if evaluator.regions is not None:
        threshold_R = np.array([card.map_threshold.get(label, np.nan) for label in evaluator.roi_labels])
        tables["images"] = evaluator.table(map_NRhw, threshold_R, original=True)
        tables["regions"] = by_region(tables["images"], store.sample_ids[rows], evaluator.weight_RN)
        means = tables["images"].groupby("sample")["pointing"].mean()
        pointing_N = means.reindex(store.sample_ids[rows]).to_numpy(float)
    values = values_of(store, columns).iloc[rows]
    tables["groups"] = by_group(predicted, values, store.patient_N[rows], pointing_N)
    return {name: table for name, table in tables.items() if len(table)}


if __name__ == "__main__":
    with command.command_line() as words:
        main(words)
