"""Pre-training: the masks, the loss, the hand-over to the student, the cache, and mistakes in a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmpkd.build import build, check
from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.student import Student
from mmpkd.train import train
from mmpkd.training import pretrain as pretraining
from mmpkd.training import stages
from mmpkd.training.masked_autoencoder import MaskedAutoencoder, Masks, draw_masks
from mmpkd.training.pretrain import pretrain
from mmpkd.training.pretrain_config import PretrainConfig
from mmpkd.training.probe import Probe
from mmpkd.training.stand_in import StandIn, stand_in
from mmpkd.types import ConfigError, DivergedError
from tests.mmpkd.runs import begun

OWN = {"views": ["superior"], "epochs": 3, "batch_size": 32, "decoder_width": 32, "decoder_depth": 1}
PATCHES = 16


@pytest.fixture(scope="module")
def trial(tiny_trial: TrialConfig) -> TrialConfig:
    changes = {"pretrain": OWN, "teachers": {}, "objectives": {}, "epochs": 1}
    return TrialConfig.model_validate(tiny_trial.model_dump() | changes)


def changed(trial: TrialConfig, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate(trial.model_dump() | changes)


@pytest.fixture
def network(trial: TrialConfig) -> MaskedAutoencoder:
    student, _ = build(trial, facts(trial.cohort), {})
    torch.manual_seed(0)
    return MaskedAutoencoder(student, 2, PretrainConfig(**OWN)).eval()


def weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


def unequal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def all_patches(seen: list[bool]) -> Masks:
    return Masks(torch.arange(PATCHES).expand(3, 2, -1), torch.tensor([seen] * 3), not all(seen))


def test_masks_hide_their_share_and_never_all_images() -> None:
    masks = draw_masks(4000, 2, 16, PretrainConfig(mask=0.75, view_mask=0.5), torch.Generator().manual_seed(0))
    assert masks.kept_BVM.shape == (4000, 2, 4) and masks.one_hidden
    assert all(len(set(row.tolist())) == 4 for row in masks.kept_BVM[:50].flatten(0, 1))
    assert masks.kept_BVM.unique(return_counts=True)[1].float().std() < 100, "every patch is visible equally often"
    seen = masks.seen_BV.float()
    assert seen.any(dim=1).all() and seen.mean(dim=0) == pytest.approx([5 / 8, 5 / 8], abs=0.03)
    assert seen.all(dim=1).float().mean().item() == pytest.approx(1 / 4, abs=0.03)
    for config, images in ((PretrainConfig(view_mask=0), 2), (PretrainConfig(view_mask=1), 1)):
        assert not draw_masks(9, images, 16, config, torch.Generator().manual_seed(0)).one_hidden
    always = draw_masks(50, 3, 16, PretrainConfig(view_mask=1), torch.Generator().manual_seed(0))
    assert (always.seen_BV.sum(dim=1) == 1).all()


def test_the_student_gets_what_the_encoder_computes_from_the_main_image_alone(network: MaskedAutoencoder) -> None:
    image = torch.rand(3, 2, 1, 32, 32)
    with torch.no_grad():
        nn.init.normal_(network.view_VD)
        encoded = network.encode(image, all_patches([True, False]))[:, : 1 + PATCHES]
        other = torch.stack([image[:, 0], torch.rand(3, 1, 32, 32)], dim=1)
        assert torch.equal(network.encode(other, all_patches([True, False]))[:, : 1 + PATCHES], encoded)
        assert not torch.allclose(network.encode(image, all_patches([True, True]))[:, : 1 + PATCHES], encoded)
        network.hand_over()
        student = network.student
        alone = student.model.forward_features((image[:, 0] - student.mean) / student.std)
    assert torch.allclose(alone, encoded, atol=1e-5)


def test_the_loss_is_that_of_hidden_patches_normalised_by_patch(network: MaskedAutoencoder) -> None:
    image = torch.rand(1, 2, 1, 32, 32)
    image[0, 1, 0, :8, :8] = 0.5
    targets = network.targets(image)
    second = image[0, 1, 0, :8, 8:16].flatten()
    assert torch.allclose(targets[0, 1, 1], (second - second.mean()) / second.std(), atol=1e-3)
    assert (targets[0, 1, 0] == 0).all()
    for layer in network.to_pixels:
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    kept = torch.arange(PATCHES)[None, None, 1:].expand(1, 2, -1)  # patch 0 of each image is hidden
    error = targets.square().mean(dim=3)[0]
    with torch.no_grad():
        both = network(image, Masks(kept, torch.tensor([[True, True]]), False)).item()
        first = network(image, Masks(kept, torch.tensor([[True, False]]), True)).item()
    assert both == pytest.approx((error[0, 0].item() + 0) / 2, rel=1e-5)
    assert first == pytest.approx((error[0, 0].item() + error[1].sum().item()) / 17, rel=1e-5)


def test_a_pretraining_learns_is_shared_and_continues_after_an_interruption(
    trial: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(trial, cache)
    fresh, arguments = weights(run.student), (run.store, run.rows)
    device = torch.device("cpu")
    assert pretrain(trial, *arguments, run.student, tmp_path / "whole", device) > 0
    learned = weights(run.student)
    assert {name.split(".")[1] for name in unequal(fresh, learned)} == {
        *("patch_embed", "cls_token", "pos_embed", "blocks", "norm")
    }
    later = changed(trial, optimizer={"lr": 1e-4}, epochs=2, evaluation={"map": "rollout"})
    other = begun(later, cache).student
    assert pretrain(later, *arguments, other, tmp_path / "whole", device) == 0.0
    assert not unequal(learned, weights(other))

    epoch = pretraining._Run.epoch

    def interrupted(self: pretraining._Run, number: int, at_most: int | None = None) -> tuple[float, int]:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, at_most)

    often, again = changed(trial, checkpoint_seconds=0), begun(trial, cache).student
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretraining._Run, "epoch", interrupted)
        pretrain(often, *arguments, again, tmp_path / "killed", device)
    folder = tmp_path / "killed" / stages.STAGES
    (saved,) = folder.glob("*.begun.partial")
    again, trained = begun(trial, cache).student, list[int]()
    monkeypatch.setattr(
        pretraining._Run, "epoch", lambda self, number: (trained.append(number), epoch(self, number))[1]
    )
    pretrain(trial, *arguments, again, tmp_path / "killed", device)
    assert trained == [2] and not saved.exists() and not unequal(learned, weights(again))

    (finished,) = folder.glob("*.pt")
    finished.write_bytes(finished.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="delete the file"):
        pretrain(trial, *arguments, again, tmp_path / "killed", device)


def test_labels_and_other_parts_change_nothing(trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    run, device = begun(trial, cache), torch.device("cpu")
    pretrain(trial, run.store, run.rows, run.student, tmp_path / "whole", device)
    other, store = begun(trial, cache).student, prepare(trial.cohort, cache)
    store.target_NK, store.known_NK = np.zeros_like(store.target_NK), np.zeros_like(store.known_NK)
    store.image_NCHW = store.image_NCHW.copy()
    store.image_NCHW[store.rows("val")] = 0
    store.image_NCHW[store.rows("test")] = 0
    pretrain(trial, store, run.rows, other, tmp_path / "other", device)
    assert not unequal(weights(run.student), weights(other))


def test_a_training_begins_with_the_pretrained_weights_and_is_charged_for_them(
    trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "stores").symlink_to(cache / "stores")
    first, second = (train(trial, tmp_path)[0] for _ in range(2))
    scratch = train(changed(trial, pretrain=None), tmp_path)[0]
    assert first.metrics == second.metrics != scratch.metrics
    assert first.seconds > second.seconds
    assert "pretrain" not in changed(trial, pretrain=None).model_dump()


def test_a_loss_that_is_not_finite_ends_the_pretraining(trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    run = begun(trial, cache)
    with torch.no_grad():
        run.student.model.cls_token.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"lower pretrain\.lr"):
        pretrain(trial, run.store, run.rows, run.student, tmp_path, torch.device("cpu"))
    assert not list(tmp_path.rglob("*.pt"))


def test_its_steps_are_timed(trial: TrialConfig) -> None:
    table = stand_in(trial.cohort)
    probe = Probe(trial, StandIn(table.facts, table.thinned(32, 10, 0)), {})
    before = weights(probe.run.student)
    assert pretraining.seconds_per_image(probe.run) > 0
    assert not unequal(before, weights(probe.run.student))
    assert probe.cost(0.05).pretrain_seconds > 0


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown view": ({"pretrain": {"views": ["superio"]}}, "pretrain.views", "did you mean 'superior'"),
    "the main image": ({"pretrain": {"views": ["image"]}}, "pretrain.views", "always"),
    "twice": ({"pretrain": {"views": ["superior", "superior"]}}, "pretrain.views", "twice"),
    "another image": ({"student": {"reads": ["superior"]}}, "student.reads", "pretrain.views"),
    "nothing visible": ({"pretrain": {"mask": 0.99}}, "pretrain.mask", "1 to 15"),
    "nothing hidden": ({"pretrain": {"mask": 0.01}}, "pretrain.mask", "1 to 15"),
    "another network": ({"student": {"model": "eva02_tiny_patch14_224"}}, "student.model", "table of positions"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_by_their_path(name: str, trial: TrialConfig) -> None:
    changes, path, words = MISTAKES[name]
    content = trial.model_dump()
    for section, keys in changes.items():
        content[section] = content[section] | keys
    mistakes = check(TrialConfig.model_validate(content), facts(trial.cohort))
    assert [(mistake.path, words in mistake.problem) for mistake in mistakes] == [(path, True)], mistakes
