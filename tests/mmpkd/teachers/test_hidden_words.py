"""Words that name the label are hidden from a text teacher at prediction as well as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.synthetic import CLASSES
from mmpkd.config import CohortConfig
from mmpkd.teachers import text_encoders
from mmpkd.teachers.text import Text, TextParams
from tests.mmpkd.teacher_fixtures import StoreWithInputs


def test_hidden_words_do_not_reach_the_encoder_at_prediction(
    tiny_cohort: CohortConfig, cache: Path, tmp_path: Path
) -> None:
    sentences = [f"a lesion of {name} pattern" for name in CLASSES]
    tokenizer, model = text_encoders.build([*sentences, *sentences], 50, 16, 2, 2, 24)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    tiny_store = StoreWithInputs.open(prepare(tiny_cohort, cache).path)
    tiny_store.sentences = np.array([sentences[index] for index in tiny_store.target_NK.argmax(axis=1)], object)
    answers: dict[bool, Any] = {}
    for hidden in (True, False):
        params = {"encoder": str(tmp_path), "frozen": True, "max_length": 24, "mask_labels": hidden}
        teacher = Text(TextParams.model_validate(params), tiny_store.facts)
        teacher.fit(tiny_store, tiny_store.rows("train"))
        answers[hidden] = teacher.outputs(tiny_store, tiny_store.rows("val")).logits_BK
    torch.testing.assert_close(answers[True], answers[True][:1].expand_as(answers[True]))
    assert (
        answers[False].argmax(dim=1).numpy() == tiny_store.target_NK[tiny_store.rows("val")].argmax(axis=1)
    ).mean() > 0.9
