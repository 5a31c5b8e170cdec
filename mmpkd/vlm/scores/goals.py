"""The goals of a sweep of students that answer, and all scores by task and modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import pandas as pd

from mmpkd.vlm.boxes import parse
from mmpkd.vlm.scores import text
from mmpkd.vlm.scores.answers import words
from mmpkd.vlm.scores.averages import by_modality, mean_and_error, over_modalities
from mmpkd.vlm.scores.grounding import THRESHOLD, best_overlaps
from mmpkd.vlm.scores.per_item import OF_BOXES, OF_WORDS, part, prepared, scored

GROUNDING, CLOSED = "VG", "RO"  # the tasks of Med-GRIT whose name says how they are scored
MOST_WORDS = 3  # of a true answer of a closed task
MBMR = (*(f"bleu{order}" for order in text.ORDERS), "meteor", "rouge_l")
Judged = Mapping[str, Literal["containment", "rouge_l"]]  # by task, see `own_scores`


def own_scores(questions: pd.DataFrame) -> Judged:
    """Returns by which score the responses of each task are judged, for the tasks that are not pure grounding.

    A task is pure grounding if it is named VG, or no true answer has a word outside its boxes. A task is closed, and
    judged by `containment`, if it is named RO, or no true answer has more than three words outside its boxes ("yes",
    "malignant melanoma"). All others are judged by ROUGE-L.

    Args:
        questions: with the columns task and answer (NaN: not answered). The rule belongs to a cohort, and these are all
            of its questions: if it followed from the part that is scored, a single long answer would decide by its
            place which score a part gets.
    """
    known = questions[questions["answer"].notna()]
    most = known["answer"].map(lambda answer: len(words(answer))).groupby(known["task"].to_numpy(), sort=True).max()
    return {
        str(task): "containment" if task == CLOSED or num_words <= MOST_WORDS else "rouge_l"
        for task, num_words in most.items()
        if task != GROUNDING and num_words
    }


def goals(items: pd.DataFrame, judged: Judged | None = None) -> dict[str, float]:
    """Returns the goals of a sweep with their standard errors over patients.

    Args:
        items: see the package.
        judged: the rule of the cohort, see `own_scores`. None: that of these items.

    Returns:
        `answer`: the mean over the tasks of `own_scores` of the mean over their modalities; an item whose true answer
        has no word is left out. `recall50`: the recall of true boxes of all items that have any, as a mean over
        modalities; with tasks beside VG whose true answers have boxes, the authors' score is `VG/recall50` of
        `all_scores`. Only modalities that have items count. `answer_se` and `recall50_se` are NaN where they are not
        known, see `mean_and_error`. A goal without items is absent.
    """
    scores: dict[str, float] = {}
    for name, parts in parts_of(items, judged).items():
        scores[name], scores[f"{name}_se"] = mean_and_error(parts)
    return scores


def parts_of(items: pd.DataFrame, judged: Judged | None = None) -> dict[str, list[pd.DataFrame]]:
    """Returns the parts of each goal, over which it is a mean, see `averages`. Arguments as of `goals`."""
    items = prepared(items)
    parts: dict[str, list[pd.DataFrame]] = {}
    answer_parts = []
    for task, name in (own_scores(items) if judged is None else judged).items():
        of_task = items[(items["task"] == task) & items["has_words"]]
        if len(of_task):
            answer_parts.append(_part(of_task, OF_WORDS[name]))
    if answer_parts:
        parts["answer"] = answer_parts
    with_boxes = items[items["num_boxes"] > 0]
    if len(with_boxes):
        recalled = _part(with_boxes, lambda *pair: float((best_overlaps(*pair) > THRESHOLD).sum()))
        parts["recall50"] = [recalled.assign(size=with_boxes["num_boxes"])]
    return parts


def all_scores(items: pd.DataFrame, authors: bool = False, judged: Judged | None = None) -> dict[str, float]:
    """Returns the goals and all other scores by task, `<task>/<score>`, and modality, `<task>/<score>/<modality>`.

    A task with true boxes has `recall50`, `recall50_matched`, `precision50_matched` (matched boxes among the predicted
    boxes of these items, 0 if nothing is predicted), `mean_iou` (best IoU of each true box) and `unparsable` (number of
    responses without a readable box). The same scores over all tasks
    together have no task in their name, and `recall50` is the goal. A task whose true
    answers have words has `containment`, `exact_match`, `bleu1` to `bleu4`, `rouge_l`, `meteor` and `mbmr`, the mean of
    the last six (without `exact_match`); BLEU is that of the corpus of a modality.

    Args:
        items: see the package.
        authors: means count a missing modality of Med-GRIT as 0, see `over_modalities`. The goals are not changed.
        judged: as of `goals`.
    """
    scores = goals(items, judged)
    items = scored(items)
    for prefix, of_task in [("", items), *((f"{task}/", rows) for task, rows in items.groupby("task", sort=True))]:
        tables = _grounding(of_task[of_task["num_boxes"] > 0])
        if prefix:
            tables |= _texts(of_task[of_task["has_words"]])
            scores |= {f"{prefix}{name}/{of}": score for name, table in tables.items() for of, score in table.items()}
        means = {f"{prefix}{name}": over_modalities(table, authors) for name, table in tables.items() if table}
        scores |= {name: mean for name, mean in means.items() if name not in scores}
        if (num_boxes := of_task["num_boxes"]).any():
            is_unread = [not parse(response) for response in of_task.loc[num_boxes > 0, "response"]]
            scores[f"{prefix}unparsable"] = float(sum(is_unread))
    return scores


def _part(items: pd.DataFrame, score: Callable[[str, str], float]) -> pd.DataFrame:
    """Returns the score of each item as a part of a goal, see `averages`."""
    values = [score(*pair) for pair in zip(items["answer"], items["response"], strict=True)]
    return items[["modality", "patient"]].assign(value=values, size=1)


def _grounding(items: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Returns the scores of boxes by modality. All items have true boxes."""
    if items.empty:
        return {}
    tables = {name: by_modality(part(items, name)) for name in OF_BOXES}
    tables["precision50_matched"] = {name: tables["precision50_matched"].get(name, 0.0) for name in tables["recall50"]}
    return tables


def _texts(items: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Returns the scores of words by modality. All true answers have words."""
    tables = {name: by_modality(part(items, name)) for name in OF_WORDS}
    for modality, rows in items.groupby("modality", sort=True):
        for name, score in text.bleu(rows["answer"].to_list(), rows["response"].to_list()).items():
            tables.setdefault(name, {})[str(modality)] = score
    tables["mbmr"] = {of: sum(tables[name][of] for name in MBMR) / len(MBMR) for of in tables["rouge_l"]}
    return tables
