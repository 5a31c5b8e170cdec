"""A vision-language student on a GPU, in bfloat16: it trains with its teacher, answers in batches, and resumes.

`python -m pytest -m gpu` runs these tests where there is a GPU. They are skipped elsewhere, as in CI.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

from mmpkd import checkpoint
from mmpkd.train import train
from mmpkd.types import EpochReport
from mmpkd.vlm import exported
from tests.mmpkd.vlm.test_vlm_training import TEACHER, Interrupted, config_with, run_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SAME = 1e-2  # relative difference of losses: kernels add in another order, in bfloat16
KL = {"teacher": TEACHER, "kl": {"weight": 0.5}}


def test_a_training_with_a_teacher_learns_in_bfloat16_and_keeps_float32_weights(tmp_path: Path) -> None:
    run = run_of(config_with(**KL), tmp_path)
    chosen = sorted(run.targets.at(0))[:4]
    seen: list[torch.dtype] = []
    layer = run.vlm.base.model.language_model.layers[0].mlp.gate_proj
    layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    losses = [run.learner.step(chosen, run.targets.at(0), {}, run.teacher_logits, 0.5, 0.5) for _ in range(30)]
    assert set(seen) == {torch.bfloat16}
    assert {(part.dtype, part.device.type) for part in run.vlm.parameters()} == {(torch.float32, "cuda")}
    for name in ("task", "kl"):
        first, last = losses[0][name].item(), losses[-1][name].item()
        assert math.isfinite(first) and last < first


def test_a_larger_batch_waits_for_the_gpu_no_more_often(tmp_path: Path) -> None:
    """The library finds positions row by row and splits images layer by layer, and waits each time."""
    run = run_of(config_with(**KL), tmp_path)

    def waits(size: int) -> int:
        chosen, targets = sorted(run.targets.at(0))[:size], run.targets.at(0)
        run.learner.step(chosen, targets, {}, run.teacher_logits, 0.5, 0.5)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                run.learner.step(chosen, targets, {}, run.teacher_logits, 0.5, 0.5)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in seen)

    assert 0 < waits(4) == waits(16) < 20


def test_answers_in_batches_are_those_of_single_questions(tmp_path: Path) -> None:
    """Words that are nearly as likely may be exchanged by rounding; logits of true answers tell how far they differ."""
    run = run_of(config_with(**KL), tmp_path)
    run.train_epoch(0, 0)
    run.vlm.eval()
    items, most = range(len(run.val)), run.own.max_new_tokens
    together, single = (run.val.answers(run.vlm, items, most, size, run.device)[0] for size in (len(items), 1))
    equal = [first == second for first, second in zip(together, single, strict=True)]
    assert sum(equal) >= 0.9 * len(equal)
    answers = {item: str(answer) for item, answer in enumerate(run.val.table["answer"])}
    with torch.no_grad():
        whole_BAV = run.vlm.answer_logits(run.val.batch(items, answers, run.device))[0]
        for item in items:
            alone_AV = run.vlm.answer_logits(run.val.batch([item], answers, run.device))[0][0]
            assert (whole_BAV[item, -len(alone_AV) :] - alone_AV).norm() < SAME * alone_AV.norm()


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    config, cache = config_with(**KL), tmp_path / "cache"
    whole = train(config, cache, tmp_path / "whole")

    def interrupt(report: EpochReport) -> None:
        if report.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, cache, tmp_path / "part", report=interrupt)
    resumed = train(config, cache, tmp_path / "part", tmp_path / "part" / checkpoint.NAME)
    for mine, theirs in zip(resumed, whole, strict=True):
        assert mine.terms == pytest.approx(theirs.terms, rel=SAME)
    first, second = (exported.read(tmp_path / name / exported.NAME)[0] for name in ("whole", "part"))
    for mine_W, theirs_W in zip(second.state_dict().values(), first.state_dict().values(), strict=True):
        assert (mine_W - theirs_W).norm() <= SAME * theirs_W.norm()
