"""The goals of a sweep of students that answer, and all scores by task and modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import pandas as pd

from mmpkd.vlm.boxes import parse
from mmpkd.vlm.scores import text
from mmpkd.vlm.scores.answers import cleaned, containment, exact_match, words
from mmpkd.vlm.scores.averages import by_modality, mean_and_error, over_modalities
from mmpkd.vlm.scores.grounding import THRESHOLD, Pointing, best_overlaps, pointing

COLUMNS = ("answer", "response", "task", "modality", "patient")
GROUNDING, CLOSED = "VG", "RO"  # the tasks of Med-GRIT whose name says how they are scored
MOST_WORDS = 3  # of a true answer of a closed task
SCORES: Mapping[str, Callable[[str, str], float]] = {"containment": containment, "rouge_l": text.rouge_l}
MBMR = (*(f"bleu{order}" for order in text.ORDERS), "meteor", "rouge_l")


def own_scores(items: pd.DataFrame) -> dict[str, Literal["containment", "rouge_l"]]:
    """Returns by which score the responses of each task are judged, for the tasks that are not pure grounding.

    A task is pure grounding if it is named VG, or no true answer has a word outside its boxes. A task is closed, and
    judged by `containment`, if it is named RO, or no true answer has more than three words outside its boxes ("yes",
    "malignant melanoma"). All others are judged by ROUGE-L.

    Args:
        items: with the columns task and answer; every item counts, so the rule is that of these items.
    """
    most = items["answer"].map(lambda answer: len(words(answer))).groupby(items["task"].to_numpy(), sort=True).max()
    return {
        str(task): "containment" if task == CLOSED or num_words <= MOST_WORDS else "rouge_l"
        for task, num_words in most.items()
        if task != GROUNDING and num_words
    }


def goals(items: pd.DataFrame) -> dict[str, float]:
    """Returns the goals of a sweep with their standard errors over patients.

    Args:
        items: see the package.

    Returns:
        `answer`: the mean over the tasks of `own_scores` of the mean over their modalities; an item whose true answer
        has no word is left out. `recall50`: the recall of true boxes of all items that have any, as a mean over
        modalities; with tasks beside VG whose true answers have boxes, the authors' score is `VG/recall50` of
        `all_scores`. Only modalities that have items count. `answer_se` and `recall50_se` are NaN where they are not
        known, see `mean_and_error`. A goal without items is absent.
    """
    items = _prepared(items)
    scores: dict[str, float] = {}
    answer_parts = []
    for task, name in own_scores(items).items():
        of_task = items[(items["task"] == task) & items["has_words"]]
        answer_parts.append(_part(of_task, SCORES[name]))
    if answer_parts:
        scores["answer"], scores["answer_se"] = mean_and_error(answer_parts)
    with_boxes = items[items["num_boxes"] > 0]
    if len(with_boxes):
        recalled = _part(with_boxes, lambda *pair: float((best_overlaps(*pair) > THRESHOLD).sum()))
        scores["recall50"], scores["recall50_se"] = mean_and_error([recalled.assign(size=with_boxes["num_boxes"])])
    return scores


def all_scores(items: pd.DataFrame, authors: bool = False) -> dict[str, float]:
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
    """
    scores = goals(items)
    items = _prepared(items)
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


def _prepared(items: pd.DataFrame) -> pd.DataFrame:
    """Returns the items with cleaned responses, and with what their true answers hold."""
    assert set(COLUMNS) <= set(items.columns), f"items lack {set(COLUMNS) - set(items.columns)}"
    assert not items[list(COLUMNS)].isna().any(axis=None), "items have cells without a value"
    answers = items["answer"].to_list()
    return items.assign(
        response=[cleaned(*pair) for pair in zip(items["response"], answers, strict=True)],
        has_words=[bool(words(answer)) for answer in answers],
        num_boxes=[len(parse(answer)) for answer in answers],
    )


def _part(items: pd.DataFrame, score: Callable[[str, str], float]) -> pd.DataFrame:
    """Returns the score of each item as a part of a goal, see `averages`."""
    values = [score(*pair) for pair in zip(items["answer"], items["response"], strict=True)]
    return items[["modality", "patient"]].assign(value=values, size=1)


def _grounding(items: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Returns the scores of boxes by modality. All items have true boxes."""
    if items.empty:
        return {}
    pairs = zip(items["answer"], items["response"], strict=True)
    reached = pd.DataFrame([pointing(*pair) for pair in pairs], columns=Pointing._fields, index=items.index)
    sums = {
        "recall50": ("recalled", "num_true"),
        "recall50_matched": ("matched", "num_true"),
        "precision50_matched": ("matched", "num_predicted"),
        "mean_iou": ("total_iou", "num_true"),
    }
    sizes = reached.assign(modality=items["modality"])
    tables = {
        name: by_modality(sizes[["modality"]].assign(value=sizes[value], size=sizes[size]))
        for name, (value, size) in sums.items()
    }
    tables["precision50_matched"] = {name: tables["precision50_matched"].get(name, 0.0) for name in tables["recall50"]}
    return tables


def _texts(items: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Returns the scores of words by modality. All true answers have words."""
    scores = {"containment": containment, "exact_match": exact_match, "rouge_l": text.rouge_l, "meteor": text.meteor}
    tables = {name: by_modality(_part(items, score)) for name, score in scores.items()}
    for modality, rows in items.groupby("modality", sort=True):
        for name, score in text.bleu(rows["answer"].to_list(), rows["response"].to_list()).items():
            tables.setdefault(name, {})[str(modality)] = score
    tables["mbmr"] = {of: sum(tables[name][of] for name in MBMR) / len(MBMR) for of in tables["rouge_l"]}
    return tables
