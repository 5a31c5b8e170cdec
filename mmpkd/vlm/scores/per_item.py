"""What each item scores, and the means of these scores over modalities with their standard errors over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from mmpkd.vlm.boxes import parse
from mmpkd.vlm.scores import text
from mmpkd.vlm.scores.answers import cleaned, containment, exact_match, words
from mmpkd.vlm.scores.averages import mean_and_error
from mmpkd.vlm.scores.grounding import Pointing, pointing

COLUMNS = ("answer", "response", "task", "modality", "patient")
OF_WORDS: Mapping[str, Callable[[str, str], float]] = {
    "containment": containment,
    "exact_match": exact_match,
    "rouge_l": text.rouge_l,
    "meteor": text.meteor,
}
# By score of boxes: the columns of `scored` whose sums it divides.
OF_BOXES: Mapping[str, tuple[str, str]] = {
    "recall50": ("recalled", "num_true"),
    "recall50_matched": ("matched", "num_true"),
    "precision50_matched": ("matched", "num_predicted"),
    "mean_iou": ("total_iou", "num_true"),
}


def prepared(items: pd.DataFrame) -> pd.DataFrame:
    """Returns the items with cleaned responses, and with what their true answers hold."""
    assert set(COLUMNS) <= set(items.columns), f"items lack {set(COLUMNS) - set(items.columns)}"
    assert not items[list(COLUMNS)].isna().any(axis=None), "items have cells without a value"
    answers = items["answer"].to_list()
    return items.assign(
        response=[cleaned(*pair) for pair in zip(items["response"], answers, strict=True)],
        has_words=[bool(words(answer)) for answer in answers],
        num_boxes=[len(parse(answer)) for answer in answers],
    )


def scored(items: pd.DataFrame) -> pd.DataFrame:
    """Returns the items of `prepared` with a column for each score of words, and with the columns of `Pointing`.

    The scores of words are NaN where the true answer has no word, and the numbers of boxes where it has no box.
    """
    items = prepared(items)
    pairs = list(zip(items["answer"], items["response"], strict=True))
    has_words = items["has_words"].to_list()
    columns = {
        name: [score(*pair) if known else float("nan") for pair, known in zip(pairs, has_words, strict=True)]
        for name, score in OF_WORDS.items()
    }
    reached = [pointing(*pair) if count else None for pair, count in zip(pairs, items["num_boxes"], strict=True)]
    columns |= {
        name: [float("nan") if each is None else float(getattr(each, name)) for each in reached]
        for name in Pointing._fields
    }
    return items.assign(**columns)


def part(items: pd.DataFrame, score: str) -> pd.DataFrame:
    """Returns a score of scored items as a part of a goal, see `averages`, without the items that it does not count."""
    value, size = OF_BOXES.get(score, (score, None))
    items = items[items[value].notna()]
    return items[["modality", "patient"]].assign(value=items[value], size=items[size] if size else 1)


def mean_of(items: pd.DataFrame, score: str) -> tuple[float, float] | None:
    """Returns a score of scored items and its standard error over patients, see `mean_and_error`; None if it counts
    none of them. The precision is 0 in a modality without a predicted box, and its error is then not known."""
    counted = part(items, score)
    if counted.empty:
        return None
    sums = counted.groupby("modality")[["value", "size"]].sum()
    if (sums["size"] == 0).any():
        return float((sums["value"] / sums["size"]).fillna(0.0).mean()), float("nan")
    return mean_and_error([counted])


def answer_of(items: pd.DataFrame, judged: Mapping[str, str]) -> tuple[float, float] | None:
    """Returns the goal `answer` of scored items and its standard error; None if no task among them is judged.

    Args:
        judged: the score of each task, see `goals.own_scores`.
    """
    parts = [part(items[items["task"] == task], name) for task, name in judged.items()]
    counted = [each for each in parts if len(each)]
    return mean_and_error(counted) if counted else None
