"""What the readers of questions share: checks of single questions, a count of those that are left out, and the Scan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmpkd.cohort.facts import Scan
from mmpkd.cohort.formats.tables import missing_columns
from mmpkd.cohort.questions import COLUMNS, rows_in_words
from mmpkd.types import CohortError, ConfigError
from mmpkd.vlm import boxes

EXAMPLE = '{"image": "a.png", "question": "what is this?", "answer": "a cyst"}'
MOST_WORDS = 4  # an answer about a box in the question with more words counts as a description (GC)


class Item(NamedTuple):
    """A question, and where it comes from. `row` names the place in messages; `split` is None if no part is stated."""

    sample: str
    file: str  # path of the image, relative to the root
    question: str
    answer: str | None
    task: str
    modality: str
    patient: str
    split: str | None
    row: str
    views: tuple[str, ...] = ()  # paths of the further images of the sample, relative to the root


class Exclusions:
    """Counts the questions that are left out of a cohort, by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rows: dict[str, dict[str, None]] = {}  # by reason: the rows, each of them once
        self.num_seen = 0

    def leave_out(self, reason: str, row: str, num_questions: int = 1) -> None:
        """Counts questions of a row that are left out, and remembers the row."""
        self.counts[reason] += num_questions
        self.rows.setdefault(reason, {})[row] = None

    @property
    def share(self) -> float:
        """The share of what was seen that is left out."""
        return self.counts.total() / max(1, self.num_seen)

    def notes(self) -> list[str]:
        """Returns a warning for each reason. It quotes no text and names no file."""
        return [
            f"warning: left out: {count} of {self.num_seen} questions: {reason}{rows_in_words(list(self.rows[reason]))}"
            for reason, count in sorted(self.counts.items())
        ]


def text_problem(question: str, answer: str | None) -> str:
    """Returns why a question cannot be used, in words that quote nothing; empty if it can be used."""
    if not question:
        return "an empty question"
    for text, whose in ((question, "question"), (answer or "", "answer")):
        if len(boxes.TAG.findall(text)) != 2 * len(boxes.TAGGED.findall(text)):
            return f"a torn box in the {whose}"
        for box in boxes.parse(text) if boxes.TAG.search(text) else ():
            if min(box) < 0 or max(box) > boxes.GRID:
                return f"a box in the {whose} that leaves the grid of 0 to {boxes.GRID}"
            if box.right <= box.left or box.bottom <= box.top:
                return f"a box in the {whose} whose second corner is not right of and below the first"
    return ""


def likely_task(question: str, answer: str | None) -> str:
    """Returns the task of a question by its form, for files that do not state it.

    A box in the question makes it RO, or GC if the answer has more than `MOST_WORDS` words; else a box in the answer
    makes it VG; anything else is MII. This rule is ours: the authors' training file does not name its tasks.
    """
    if boxes.TAGGED.search(question):
        return "GC" if len((answer or "").split()) > MOST_WORDS else "RO"
    return "VG" if answer and boxes.TAGGED.search(answer) else "MII"


def read_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file, with or without a byte order mark.

    Raises:
        CohortError: the file is missing, not UTF-8 or not JSON. The message quotes nothing of it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CohortError(f"no {path.name} in {path.parent.absolute()}; {remedy}") from None
    except OSError as error:
        raise CohortError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except json.JSONDecodeError as error:
        advice = f"mend it, or copy the file again; {remedy}"
        raise CohortError(f"{path} is not JSON: {error.msg} in line {error.lineno}; {advice}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise CohortError(f"{path} is not JSON ({type(error).__name__}); {remedy}") from None


def read_jsonl(path: Path, options: Sequence[tuple[str, str]], remedy: str, is_public: bool) -> pd.DataFrame:
    """Returns the wanted keys of a JSONL file as a table of text without surrounding blanks; missing cells are empty.

    Args:
        options: the wanted keys, see `missing_columns`.
        is_public: see there.

    Raises:
        CohortError: the file is missing, not JSONL or empty. The message quotes no value.
        ConfigError: an option names a key that no line has.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    except FileNotFoundError:
        raise CohortError(f"no {path.name} in {path.parent.absolute()}; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{path} cannot be read as UTF-8 ({type(error).__name__}); {remedy}") from None
    if not text:
        raise CohortError(f"{path}: no row; {remedy}")
    # `str.splitlines` would also tear a line at the other separators of Unicode, which may stand in a JSON string.
    rows = [_row(path, number, line) for number, line in enumerate(text.split("\n"), 1)]
    headers = list(dict.fromkeys(name for row in rows for name in row))
    if mistakes := missing_columns(path.name, options, headers, is_public):
        raise ConfigError(mistakes)
    return pd.DataFrame([{name: row.get(name, "") for _, name in options} for row in rows])


def _row(path: Path, number: int, line: str) -> dict[str, str]:
    """Returns a line of a JSONL file with its values as text. None is empty, and lists stay as they are written."""
    advice = f"mend line {number} or take it out; each line is one object, such as {EXAMPLE}"
    try:
        content = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise CohortError(f"{path} is not JSONL: line {number} is not JSON; {advice}") from None
    if not isinstance(content, dict):
        raise CohortError(f"{path} is not JSONL: line {number} is not an object; {advice}")
    return {str(name): _as_text(value) for name, value in content.items()}


def _as_text(value: Any) -> str:
    if value is None or value != value:  # NaN, which Python's json writes for a missing number
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def refuse_outside(key: str, file: str, may_lead_out: bool) -> None:
    """Raises ConfigError if the option `key` names a file outside the root although that is not allowed."""
    if not may_lead_out and (Path(file).is_absolute() or ".." in Path(file).parts):
        problem = f"must be a file under cohort.root unless cohort.allow_outside=true, got {file}"
        raise ConfigError.at(f"cohort.params.{key}", problem)


def scan_of(
    items: Sequence[Item],
    *,
    channels: int,
    tables: Sequence[str],
    notes: Sequence[str],
    share_left_out: float,
    where: str,
    views: Sequence[str] = (),
) -> Scan:
    """Returns the Scan of questions: a sample for each image, in the order of its first question.

    Args:
        views: names of the further images, in the order of `Item.views`.

    Raises:
        CohortError: there is no question.
    """
    if not items:
        raise CohortError("\n  ".join([f"{where}: not one question can be used", *notes]))
    table = pd.DataFrame(list(items))
    firsts = table.drop_duplicates("sample").set_index("sample")
    rows = [items[position] for position in table.drop_duplicates("sample").index]
    samples = firsts[["patient", "row"]]
    if table["split"].notna().any():
        samples = samples.assign(split=firsts["split"])
    nothing = pd.DataFrame(index=firsts.index)
    questions = table[list(COLUMNS)].astype(object).assign(place=table["row"])
    return Scan(
        tasks=(),
        samples=samples,
        labels=nothing,
        privileged=nothing,
        channels=channels,
        questions=questions.where(questions.notna(), np.nan),
        views=tuple(views),
        files={str(sample): [first.file, *first.views] for sample, first in zip(firsts.index, rows, strict=True)},
        tables=tables,
        notes=tuple(notes),
        share_left_out=share_left_out,
    )


def without_repeats(items: Sequence[Item], exclusions: Exclusions) -> list[Item]:
    """Returns the items without those that repeat an earlier question about the same image. They are counted."""
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for item in items:
        if (key := (item.sample, item.question, item.task)) in seen:
            exclusions.leave_out("a question that was asked about the same image before", item.row)
            continue
        seen.add(key)
        kept.append(item)
    return kept
