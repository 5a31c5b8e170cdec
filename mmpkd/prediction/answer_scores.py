"""Scores of a student that answers, on a cohort of questions: by task, by task and modality, and of each answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, EvaluationConfig
from mmpkd.near_names import near
from mmpkd.scoring.stats import logit_interval
from mmpkd.types import ConfigError
from mmpkd.vlm.boxes import parse
from mmpkd.vlm.scores import text
from mmpkd.vlm.scores.goals import MBMR, Judged, own_scores
from mmpkd.vlm.scores.per_item import OF_BOXES, OF_WORDS, answer_of, mean_of, scored
from mmpkd.vlm.scores.yardsticks import blind_answers
from mmpkd.vlm.student import VlmStudent
from mmpkd.vlm.training.items import Items

ALL = "all"  # the row of all tasks
CHOSEN_HERE = "The student was chosen on these patients: its scores on other patients are lower as a rule."
NO_YARDSTICKS = (
    "The store of the student's own cohort is not in cache=, so the scores of answers that see no image, which come "
    "from its training answers, are missing."
)
NO_INTERVAL = (
    "no interval: all answers of each modality score the same, or there are fewer than two patients, or a modality "
    "has no predicted box."
)
UNDEFINED = "-: not defined, as for a task whose true answers have no words, or no box."


def refuse_unfit(student: VlmStudent, facts: Facts) -> None:
    """Checks that a student can answer the questions of a cohort.

    Raises:
        ConfigError: the cohort lacks the image that it reads, or its images differ in the number of channels.
    """
    (reads,) = student.config.reads
    if reads != IMAGE and reads not in facts.views:
        raise ConfigError.at("cohort", f"has no image {reads!r}, which the student reads{near(reads, facts.views)}")
    if facts.channels != student.card.channels:
        problem = f"its images have {facts.channels} channels, the student's {student.card.channels}"
        raise ConfigError.at("cohort", f"{problem}; cohort.params.channels sets them for the reader vqa")


def evaluate_answers(
    student: VlmStudent, store: Store, rows: NDArray[np.int64], home: Store | None
) -> dict[str, pd.DataFrame]:
    """Returns the tables `tasks`, `modalities` and `answers`. Questions without a true answer are left out.

    Args:
        home: the store of the student's own cohort, whose training answers give the scores of answers that see no
            image; None leaves them out.

    Raises:
        ConfigError: no question about these samples has a true answer.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vlm = student.vlm.to(device)
    items = Items(store, rows, student.config, vlm.processor)
    known = items.answered
    if not known:
        raise ConfigError.at("part", "no question about the images of this part has an answer; choose another part")
    size = EvaluationConfig().batch_size
    texts, margins = items.answers(vlm, known, student.config.max_new_tokens, size, device)
    item_table = items.table.iloc[known].reset_index(drop=True)
    tables = {"": scored(item_table.assign(response=texts))}
    if home is not None:
        questions = home.questions
        train = questions[questions["row"].isin(home.rows("train", student.card.fold))]
        tables |= {
            name: scored(item_table.assign(response=each)) for name, each in blind_answers(train, item_table).items()
        }
    judged = own_scores(store.questions)
    tasks = sorted(item_table["task"].unique())
    by_task = [_row({"task": ALL, "judged by": "mean over tasks"}, tables, judged, np.full(len(item_table), True), "")]
    by_modality = []
    for task in tasks:
        is_task = (item_table["task"] == task).to_numpy()
        by_task.append(_row({"task": task, "judged by": judged.get(task, "boxes")}, tables, judged, is_task, task))
        for modality in sorted(item_table.loc[is_task, "modality"].unique()):
            chosen = is_task & (item_table["modality"] == modality).to_numpy()
            by_modality.append(_row({"task": task, "modality": modality}, tables, judged, chosen, task))
    answers = _answers(tables[""].assign(sample=store.sample_ids[item_table["row"]], margin=margins), judged)
    return {"tasks": pd.DataFrame(by_task), "modalities": pd.DataFrame(by_modality), "answers": answers}


def _row(
    head: Mapping[str, str], tables: Mapping[str, pd.DataFrame], judged: Judged, chosen: NDArray[np.bool_], task: str
) -> dict[str, Any]:
    """Returns the scores of some items, with 95 % intervals.

    Args:
        head: the first cells.
        tables: scored items of the student (by an empty name) and of each yardstick.
        task: the only task among them, whose scores of words are added; empty for several.
    """
    items = {name: table[chosen] for name, table in tables.items()}
    row: dict[str, Any] = {**head, "questions": int(chosen.sum()), "patients": items[""]["patient"].nunique()}

    def add(name: str, score: tuple[float, float] | None) -> None:
        value, error = score or (np.nan, np.nan)
        interval = logit_interval(value, error)
        row.update({name: value, f"{name}_low": interval.low, f"{name}_high": interval.high})

    add("answer", answer_of(items[""], judged))
    if "answer_frequent" in items:
        row["answer_frequent"] = (answer_of(items["answer_frequent"], judged) or (np.nan,))[0]
    add("recall50", mean_of(items[""], "recall50"))
    if "recall50_mean_box" in items:
        row["recall50_mean_box"] = (mean_of(items["recall50_mean_box"], "recall50") or (np.nan,))[0]
    for name in (*OF_WORDS, *OF_BOXES):
        if name != "recall50":
            add(name, mean_of(items[""], name) if task or name in OF_BOXES else None)
    row |= _corpus_scores(items[""], row) if task else {}
    with_boxes = items[""][items[""]["num_boxes"] > 0]
    row["unparsable"] = sum(not parse(response) for response in with_boxes["response"])
    return row


def _corpus_scores(items: pd.DataFrame, row: Mapping[str, Any]) -> dict[str, float]:
    """Returns BLEU and MBMR of the items of a task, as means over modalities. They have no intervals."""
    items = items[items["has_words"]]
    if items.empty:
        return {}
    of_modality = [
        text.bleu(rows["answer"].to_list(), rows["response"].to_list()) for _, rows in items.groupby("modality")
    ]
    bleu = {name: float(np.mean([scores[name] for scores in of_modality])) for name in of_modality[0]}
    return bleu | {"mbmr": float(np.mean([{**row, **bleu}[name] for name in MBMR]))}


def _answers(items: pd.DataFrame, judged: Judged) -> pd.DataFrame:
    """Returns a row for each question: texts, margin, and what the answer scores."""
    score = [
        float(cells[judged[cells["task"]]]) if cells["task"] in judged else np.nan for cells in items.to_dict("records")
    ]
    columns = ["sample", "task", "modality", "question", "answer", "response", "margin", "score"]
    numbers = {"num_true": "boxes", "recalled": "recalled", "total_iou": "total_iou"}
    counts = {name: items[name].astype("Int64") for name in ("num_true", "recalled")}
    return items.assign(score=score, **counts)[[*columns, *numbers]].rename(columns=numbers)
