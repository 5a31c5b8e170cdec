"""Reads Med-GRIT-270k, questions and boxes about images of eight modalities (BiRD, arXiv 2406.18146; used by ClinKD).

The files under the root are named as in ClinKD's repository:

    Data4Qwenvl/Processed_Train.json     [{"id": .., "conversations": [{"from": "user", "value": ..}, ..]}, ..]
    Test_VG.json  Test_RO.json  Test_GC.json  Test_MII.json     [{"id": .., "conversations": [[question, answer]]}, ..]
    images/<id>.png

- Both forms of dialogue are read in every file: lists of [question, answer], and turns with from and value (or role
  and content). A dialogue may have several turns; each pair is a question of its own, about the image of the dialogue.
- The tag `<img>..</img>` of a question is removed, and of `<ref>..</ref>` the tags, but not the words: small
  vocabularies have no use for them, and ClinKD's conversion to Qwen2-VL leaves them alone too.
- Boxes stand on a grid of 0 to 1000. `<box_start>..<box_end>`, which ClinKD's conversion expects, means the same.
- The modality is the part of the id before the first underscore. The task of test files is in their names; of training
  questions it is told from their form (`items.likely_task`).
- The parts train and test are the authors'. There is no part val, so the training images are dealt into four folds.
  Training dialogues about an image that is in a test file are left out and counted.
- Patients are not named. With `patient: volume`, ids such as `ct_00--SET--CASE--x_0058` (SA-Med2D-20M) are grouped by
  everything before the last `--`, and training dialogues of volumes in a test file are left out too.
- What is left out is counted in questions: a dialogue that cannot be used counts with all that it asks, at least one.
- The data are given on request and must not be shown, so messages name rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import RawImage, Reader, Scan
from mmpkd.cohort.readers.questions.items import (
    Exclusions,
    Item,
    likely_task,
    read_json,
    refuse_outside,
    scan_of,
    text_problem,
    without_repeats,
)
from mmpkd.types import CohortError, Strict

MODALITIES = ("ct", "mr", "x", "pet", "endoscopy", "dermoscopy", "fundus", "ultrasound")
OTHER_MODALITY = (
    f"an id that begins with none of the modalities ({', '.join(f'{name}_' for name in MODALITIES)}; x_ is X-ray), as "
    "its image then does too: rename both"
)
IMAGE_TAG = re.compile(r"(?:Picture \d+:\s*)?<img>.*?</img>\s*", re.DOTALL)
REF_TAG = re.compile(r"</?ref>")
BOX_TAGS = (("<box_start>", "<box>"), ("<box_end>", "</box>"))
ROLES = {"user": 0, "human": 0, "assistant": 1, "gpt": 1}
REMEDY = "wanted a file of Med-GRIT-270k; its names are cohort.params.train and cohort.params.tests"


class MedGritParams(Strict):
    train: str | None = "Data4Qwenvl/Processed_Train.json"  # None: the tests alone, as an external cohort
    tests: dict[Literal["VG", "RO", "GC", "MII"], str] = Field(
        default={name: f"Test_{name}.json" for name in ("VG", "RO", "GC", "MII")}
    )
    images: str = "images"  # folder of the images
    patient: Literal["image", "volume"] = "image"
    channels: Literal[1, 3] = 3


class MedGrit(Reader):
    """Reads the dialogues of Med-GRIT-270k as questions about images, with official parts train and test."""

    Params = MedGritParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: MedGritParams) -> None:
        assert root is not None
        self.root = root
        self.params = params

    def scan(self) -> Scan:
        params = self.params
        refuse_outside("images", params.images, self.allow_outside)
        exclusions = Exclusions()
        files: list[tuple[str, str | None, str]] = [("test", task, file) for task, file in params.tests.items()]
        files += [("train", None, params.train)] if params.train is not None else []
        items: list[Item] = []
        self._num_untagged = 0
        for split, task, file in files:
            refuse_outside("train" if task is None else f"tests.{task}", file, self.allow_outside)
            items += self._read(file, split, task, exclusions)
        tested = {item.patient for item in items if item.split == "test"}
        kept = []
        for item in items:
            if item.split == "train" and item.patient in tested:
                exclusions.leave_out(f"for training, about {params.patient}s that are in a test file", item.row)
            else:
                kept.append(item)
        kept = without_repeats(kept, exclusions)
        notes = exclusions.notes()
        if self._num_untagged:
            notes.append(f"dialogues without an image tag, whose image is known from their id: {self._num_untagged}")
        tables = [file for _, _, file in files]
        return scan_of(
            kept,
            channels=params.channels,
            tables=tables,
            notes=notes,
            share_left_out=exclusions.share,
            where=str(self.root),
        )

    def load(self, sample_id: str) -> RawImage:
        return RawImage(read_image(self.root, self._file(sample_id)))

    def _file(self, sample: str) -> str:
        return (Path(self.params.images) / f"{sample}.png").as_posix()

    def _read(self, file: str, split: str, task: str | None, exclusions: Exclusions) -> list[Item]:
        """Returns the questions of a file that can be used, and counts the others."""
        content = read_json(self.root / file, REMEDY)
        if not isinstance(content, list):
            raise CohortError(f"{self.root / file}: a list of dialogues is wanted, got {_kind(content)}; {REMEDY}")
        items = []
        for number, entry in enumerate(content, 1):
            row = f"{number} of {Path(file).name}"
            sample, pairs, problem = _dialogue(entry)
            num_questions = _num_questions(entry) if problem else len(pairs)
            exclusions.num_seen += num_questions
            if problem:
                exclusions.leave_out(problem, row, num_questions)
                continue
            self._num_untagged += "<img>" not in pairs[0][0]
            is_volume = self.params.patient == "volume" and sample.count("--") >= 3
            for raw_question, raw_answer in pairs:
                question, answer = _plain(raw_question), _plain(raw_answer)
                if problem := text_problem(question, answer) or ("" if answer else "an empty answer"):
                    exclusions.leave_out(problem, row)
                    continue
                items.append(
                    Item(
                        sample=sample,
                        file=self._file(sample),
                        question=question,
                        answer=answer,
                        task=task or likely_task(question, answer),
                        modality=sample.partition("_")[0],
                        patient=sample.rpartition("--")[0] if is_volume else sample,
                        split=split,
                        row=row,
                    )
                )
        return items


def _dialogue(entry: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Returns the id, the pairs of question and answer, and why the dialogue cannot be used (empty if it can)."""
    if not isinstance(entry, dict) or "id" not in entry or "conversations" not in entry:
        return "", [], "an entry without id and conversations"
    sample = entry["id"]
    if not isinstance(sample, str) or not sample:
        return "", [], "an id that is no text"
    if re.search(r"[/\\\0]", sample):
        return "", [], "an id that is no file name"
    if sample.partition("_")[0] not in MODALITIES:
        return "", [], OTHER_MODALITY
    turns = entry["conversations"]
    if not isinstance(turns, list) or not turns:
        return "", [], "a dialogue without turns"
    pairs = list(_pairs(turns))
    if None in pairs:
        return "", [], "turns that do not alternate between question and answer"
    return sample, [pair for pair in pairs if pair is not None], ""


def _num_questions(entry: Any) -> int:
    """Returns how many questions a dialogue that cannot be used seems to ask, at least one."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list) or not turns:
        return 1
    return len(turns) if all(isinstance(turn, list) for turn in turns) else (len(turns) + 1) // 2


def _pairs(turns: list[Any]) -> Iterator[tuple[str, str] | None]:
    """Yields pairs of question and answer. A pair that is not of a known form is None."""
    if all(isinstance(turn, list) for turn in turns):
        for turn in turns:
            yield (turn[0], turn[1]) if len(turn) == 2 and all(isinstance(text, str) for text in turn) else None
        return
    if len(turns) % 2 or not all(isinstance(turn, dict) for turn in turns):
        yield None
        return
    for user_turn, model_turn in zip(turns[::2], turns[1::2], strict=True):
        roles = [ROLES.get(str(turn.get("from", turn.get("role")))) for turn in (user_turn, model_turn)]
        question, answer = (turn.get("value", turn.get("content")) for turn in (user_turn, model_turn))
        is_known = roles == [0, 1] and isinstance(question, str) and isinstance(answer, str)
        yield (question, answer) if is_known else None


def _plain(text: str) -> str:
    text = REF_TAG.sub("", IMAGE_TAG.sub("", text))
    for tag, plain in BOX_TAGS:
        text = text.replace(tag, plain)
    return text.strip()


def _kind(content: Any) -> str:
    return "an object" if isinstance(content, dict) else "a single value"
