"""The questions of a cohort: a table of questions about its images, with their answers.

The table has the default index and the columns of `COLUMNS`, all of them text:

sample     id of the image in `Scan.samples`
question   the question; boxes stand in it as `<box>(left,top),(right,bottom)</box>` (see `mmpkd.vlm.boxes`)
answer     the answer, with boxes of the same form; NaN if it is unknown, which only training images may have
task       VG (where is it?), RO (what is in the box?), GC (describe it), MII (other questions), or a name of the user's
modality   how the image was made, such as ct

A reader may add the column `place`: the row of the source that asks the question, for messages. It is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from mmpkd.types import CohortError
from mmpkd.vlm import boxes
from mmpkd.vlm.scores.answers import words

COLUMNS = ("sample", "question", "answer", "task", "modality")
NUM_SHOWN = 5  # maximum number of rows that a message lists


@dataclass(frozen=True)
class QuestionFacts:
    """The facts about a cohort's questions that planning a sweep needs. `tasks` and `modalities` are sorted."""

    num_items: int
    tasks: tuple[str, ...]
    modalities: tuple[str, ...]
    has_boxes: bool  # some answer holds a box
    num_unanswered: int
    has_words: bool = True  # some answer is scored by its words; older stores do not state it

    @classmethod
    def of(cls, questions: pd.DataFrame) -> Self:
        """Returns the facts of a table of questions."""
        answers = questions["answer"].dropna()
        worded = answers[questions["task"].loc[answers.index] != "VG"]
        return cls(
            num_items=len(questions),
            tasks=tuple(sorted(questions["task"].unique())),
            modalities=tuple(sorted(questions["modality"].unique())),
            has_boxes=bool(answers.map(lambda text: boxes.TAGGED.search(text) is not None).any()),
            num_unanswered=int(questions["answer"].isna().sum()),
            has_words=bool(worded.map(lambda text: bool(words(text))).any()),
        )


def read_facts(content: Mapping[str, Any] | None) -> QuestionFacts | None:
    """Converts the facts in a manifest back to `QuestionFacts`; None stays None."""
    if content is None:
        return None
    return QuestionFacts(**{**content, **{name: tuple(content[name]) for name in ("tasks", "modalities")}})


def about(questions: pd.DataFrame, samples: pd.Index | list[str]) -> pd.DataFrame:
    """Returns the questions about some samples, in the same order, with the default index."""
    return questions[questions["sample"].isin(samples)].reset_index(drop=True)


def check(questions: pd.DataFrame | None, split: pd.Series | None) -> None:
    """Checks that an answer is missing only where nothing is scored: in the part train of an official split that has a
    part val too. Folds validate in turn, so that each of their questions needs an answer.

    Args:
        questions: the questions of the cohort. None: it has none, and nothing is checked.
        split: the part of each sample. None: patients are dealt into folds.

    Raises:
        CohortError: an answer is missing elsewhere. The message counts such questions, names the first rows and
            quotes nothing.
    """
    if questions is None:
        return
    may_lack = pd.Series(False, questions.index)
    if split is not None and "val" in set(split):
        may_lack = questions["sample"].map(split) == "train"
    is_wrong = questions["answer"].isna() & ~may_lack
    if num_wrong := int(is_wrong.sum()):
        where, remedy = "in val or test", "Answer them or take them out: only the part train may hold such questions"
        if not may_lack.any():
            where = "in a cohort whose folds validate in turn"
            remedy = "Answer them, take them out, or keep to stated parts train, val and test, of which train may hold "
            remedy += "such questions (reader vqa: cohort.params.split; without cohort.parts)"
        rows = rows_in_words(list(questions["place"][is_wrong])) if "place" in questions else ""
        raise CohortError(f"{num_wrong} of {len(questions)} questions {where} have no answer{rows}. {remedy}")


def rows_in_words(rows: Sequence[str]) -> str:
    """Returns the first rows in brackets, behind a blank; empty if there is no row."""
    more = f" and {len(rows) - NUM_SHOWN} more" if len(rows) > NUM_SHOWN else ""
    return f" (row{'s' * (len(rows) > 1)} {', '.join(rows[:NUM_SHOWN])}{more})" if rows else ""


def located(questions: pd.DataFrame, samples: pd.Index) -> pd.DataFrame:
    """Returns the questions of a store with one more column, `row`: the position of each question's image.

    Raises:
        LookupError: a column is missing, or an image is not in the store.
    """
    rows = samples.get_indexer(pd.Index(questions["sample"]))
    if (rows < 0).any():
        raise LookupError("a question is about an image that the store does not hold")
    return questions[list(COLUMNS)].assign(row=rows.astype("int64"))


def in_words(facts: Mapping[str, Any] | None) -> str:
    """Returns the end of a sentence that counts the questions, from the facts in a manifest; empty without any."""
    if facts is None:
        return ""
    unanswered = f" ({facts['num_unanswered']} without an answer)" if facts["num_unanswered"] else ""
    return f", with {facts['num_items']} questions{unanswered}"
