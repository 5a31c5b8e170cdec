"""What answers reach that look at no image: the training answers by frequency, and the mean training box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np
import pandas as pd

from mmpkd.vlm.boxes import Box, parse, written
from mmpkd.vlm.scores.answers import outside_boxes
from mmpkd.vlm.scores.goals import Judged, goals

Key = TypeVar("Key", bound=Hashable)
GOALS = {"answer_frequent": "answer", "recall50_mean_box": "recall50"}  # the goal of each yardstick


def yardsticks(train_items: pd.DataFrame, items: pd.DataFrame, judged: Judged | None = None) -> dict[str, float]:
    """Returns the goals of answers that look at no image.

    Args:
        train_items: training items with the columns question, answer, task and modality. Those without an answer (NaN)
            are left out.
        items: the items that are scored, with the columns question, answer, task, modality and patient.
        judged: as of `goals`.

    Returns:
        `answer_frequent`: the goal `answer` if each item gets the most frequent training answer of its task and
        question or, if no training item of the task has the question, of its task. Questions are compared without
        their boxes. Of equally frequent answers the first in alphabetical order is taken.
        `recall50_mean_box`: the goal `recall50` if each item is answered by the mean box of all true boxes in training
        answers of its modality or, without any, of all modalities.
        A yardstick is absent where its goal is absent, or no training answer allows it.
    """
    scores = {name: (GOALS[name], responses) for name, responses in blind_answers(train_items, items).items()}
    reached = {
        name: (goal, goals(items.assign(response=responses), judged)) for name, (goal, responses) in scores.items()
    }
    return {name: values[goal] for name, (goal, values) in reached.items() if goal in values}


def blind_answers(train_items: pd.DataFrame, items: pd.DataFrame) -> dict[str, list[str]]:
    """Returns for each yardstick its answer to each item, without those that no training answer allows."""
    known = train_items[train_items["answer"].notna()]
    answers = {"answer_frequent": _priors(known, items), "recall50_mean_box": _boxes(known, items)}
    return {name: responses for name, responses in answers.items() if responses}


def _priors(known: pd.DataFrame, items: pd.DataFrame) -> list[str]:
    """Returns the most frequent answer for each item, empty for a task without training answers."""
    train_keys, keys = (
        list(zip(frame["task"], frame["question"].map(outside_boxes), strict=True)) for frame in (known, items)
    )
    of_question = _most_frequent(known["answer"], train_keys)
    of_task = _most_frequent(known["answer"], known["task"])
    return [of_question.get(key, of_task.get(key[0], "")) for key in keys] if len(known) else []


def _most_frequent(answers: Iterable[str], keys: Iterable[Key]) -> dict[Key, str]:
    """Returns the most frequent answer of each key."""
    counts: dict[Key, Counter[str]] = {}
    for answer, key in zip(answers, keys, strict=True):
        counts.setdefault(key, Counter())[answer] += 1
    return {key: min(of_key, key=lambda answer: (-of_key[answer], answer)) for key, of_key in counts.items()}


def _boxes(known: pd.DataFrame, items: pd.DataFrame) -> list[str]:
    """Returns the mean training box of each item's modality as text; nothing if no training answer has a box."""
    boxes: dict[str, list[Box]] = {}
    for answer, modality in zip(known["answer"], known["modality"], strict=True):
        boxes.setdefault(modality, []).extend(parse(answer))
    means = {modality: _mean(of_modality) for modality, of_modality in boxes.items() if of_modality}
    if not means:
        return []
    overall = _mean([box for of_modality in boxes.values() for box in of_modality])
    return [means.get(modality, overall) for modality in items["modality"]]


def _mean(boxes: list[Box]) -> str:
    return written(Box(*np.mean(boxes, axis=0)))
