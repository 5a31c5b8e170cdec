"""The questions of one part of a cohort, as batches of rows for a vision-language model, and its answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mmpkd import fit
from mmpkd.cohort.store import Store
from mmpkd.types import TeacherError
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import Vlm
from mmpkd.vlm.rows import Item, Rows, batch, item, restored
from mmpkd.vlm.vocabulary import Processor

Ints = NDArray[np.int64]


class Items:
    """The questions of the samples at `rows` of a store, numbered from 0 in the order of the store.

    Args:
        vlm: the configuration of the model that reads them; its `reads` names the image.
        shown_N: for each sample of the store, the sample whose image the model sees instead; None: its own.

    Attributes:
        table: columns question, answer (NaN: none), task, modality, row (of the sample) and patient.
    """

    def __init__(self, store: Store, rows: Ints, vlm: VlmConfig, processor: Processor, shown_N: Ints | None = None):
        questions = store.questions
        table = questions[questions["row"].isin(rows)].reset_index(drop=True)
        self.table = table.assign(patient=store.patient_N[table["row"].to_numpy(np.int64)])
        self._images = store.image_NCHW if vlm.reads[0] == "image" else store.view(vlm.reads[0])
        self._store, self._processor, self._shown_N = store, processor, shown_N
        self._row_I: Ints = table["row"].to_numpy(np.int64)
        self._question_I = table["question"].tolist()
        self._cache: dict[tuple[int, str | None, str | None], Item] = {}

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_words(self) -> int:
        """The number of words of the vocabulary."""
        return len(self._processor.tokens)

    @property
    def answered(self) -> list[int]:
        """The items that have a true answer."""
        return np.flatnonzero(self.table["answer"].notna()).tolist()

    def batch(
        self,
        chosen: Sequence[int],
        targets: Mapping[int, str] | None,
        device: torch.device,
        hints: Mapping[int, str] | None = None,
    ) -> Rows:
        """Returns the chosen items as a batch: with their targets, or without to be answered.

        Args:
            hints: true answers that the model is shown, by item.
        """
        hints = hints or {}
        rows = self._row_I[list(chosen)]
        shown = rows if self._shown_N is None else self._shown_N[rows]
        distinct, image_B = np.unique(shown, return_inverse=True)
        encoded = [
            self._encoded(number, None if targets is None else targets[number], hints.get(number)) for number in chosen
        ]
        image_MCHW = torch.from_numpy(np.ascontiguousarray(self._images[distinct]))
        return batch(self._processor, encoded, image_MCHW, torch.from_numpy(image_B)).to(device)

    def num_tokens(self, number: int, target: str) -> int:
        """Returns the number of tokens of a target, its end included."""
        answer = self._encoded(number, target, None).answer
        assert answer is not None
        return len(answer)

    def _encoded(self, number: int, target: str | None, hint: str | None) -> Item:
        """Returns an item as token ids. Each text is encoded once."""
        key = number, target, hint
        if key not in self._cache:
            letterbox = self._store.letterbox(self._row_I[number])
            self._cache[key] = item(self._processor, letterbox, self._question_I[number], target, hint)
        return self._cache[key]

    def shuffled(self, chosen: Sequence[int], generator: torch.Generator, size: int) -> Iterator[list[int]]:
        """Yields the chosen items in batches of `size`, in random order; the last batch may be smaller.

        Questions about the same image do not stay together, although a step would then be cheaper: with fewer distinct
        images in a step, small models did not learn to point.
        """
        order = torch.randperm(len(chosen), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [chosen[place] for place in order[start : start + size]]

    def answers(
        self,
        vlm: Vlm,
        chosen: Sequence[int],
        most_tokens: int,
        batch_size: int,
        device: torch.device,
        hints: Mapping[int, str] | None = None,
        draw: tuple[int, object] | None = None,
    ) -> tuple[list[str], list[float]]:
        """Returns the answer of a model to each of the chosen items, with boxes on the grid of the original image, and
        its margin.

        Args:
            draw: a seed and its purpose, with which answers are sampled at temperature 1; None: the most likely word
                is taken at each place (greedy decoding).
        """
        texts: list[str] = []
        margins: list[float] = []
        generator = None if draw is None else fit.generator_for(draw[0], "answers", draw[1])
        vlm.eval()
        for start in range(0, len(chosen), batch_size):
            part = list(chosen[start : start + batch_size])
            rows = self.batch(part, None, device, hints)
            given = vlm.answer(rows, most_tokens, temperature=None if draw is None else 1.0, generator=generator)
            for number, text in zip(part, given.texts, strict=True):
                texts.append(restored(text, self._store.letterbox(self._row_I[number]), self._processor.box_steps))
            margins += given.margins
        return texts, margins

    def scored(self, responses: Sequence[str]) -> pd.DataFrame:
        """Returns the table that `mmpkd.vlm.scores` reads, with these responses to all items."""
        return self.table[["question", "answer", "task", "modality", "patient"]].assign(response=list(responses))


def exchanged(store: Store, rows: Ints, seed: int) -> Ints:
    """Returns for each sample of a store another sample, whose image a shuffled teacher sees instead.

    The samples at `rows` are exchanged among each other, so that each is seen once, and none with one of the same
    patient; other samples keep their own image.

    Raises:
        TeacherError: no such exchange is found, because one patient has too many of the samples.
    """
    generator = np.random.default_rng(fit.derived_seed(seed, "shuffled teacher"))
    patient = store.patient_N[rows]
    order: Ints = generator.permutation(len(rows)).astype(np.int64)
    for _ in range(100):
        clashes = np.flatnonzero(patient[order] == patient)
        if not len(clashes):
            shown: Ints = np.arange(len(store.sample_ids), dtype=np.int64)
            shown[rows] = rows[order]
            return shown
        for place in clashes.tolist():
            other = int(generator.integers(len(rows)))
            order[place], order[other] = order[other], order[place]
    problem = "no exchange between patients is found in which each training image is shown once, because one patient"
    raise TeacherError(f"distillation.teacher.control: {problem} has too many of them; leave the control out")


def num_items(store: Store, rows: Ints, with_unanswered: bool) -> int:
    """Returns the number of questions of the samples at `rows`, those without an answer included or not."""
    questions = store.questions
    chosen = questions[questions["row"].isin(rows)]
    return len(chosen) if with_unanswered else int(chosen["answer"].notna().sum())
