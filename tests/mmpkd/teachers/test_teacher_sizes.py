"""Teachers that are built here follow the size of the student; given sizes take precedence; the plan describes each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.student import build_student
from mmpkd.teachers import resolve, sized
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.teachers.text import Text, TextParams

STUDENT = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, cache: Path) -> Store:
    return prepare(tiny_cohort, cache)


def trial(store: Store, teacher: dict[str, Any], **student: Any) -> TrialConfig:
    content = {
        "cohort": {"reader": "synthetic", "image_size": store.facts.image_size},
        "student": STUDENT | student,
        "teachers": {"it": teacher},
        "objectives": {"logits": {}},
    }
    return TrialConfig.model_validate(content)


def filled(store: Store, teacher: dict[str, Any], **student: Any) -> dict[str, Any]:
    return dict(sized(trial(store, teacher, **student), store.facts).teachers["it"].params)


def image(**params: Any) -> dict[str, Any]:
    return {"kind": "image", "params": {"view": "superior", **params}}


def test_an_image_teacher_is_as_large_as_the_student(store: Store) -> None:
    assert filled(store, image())["network"] == STUDENT
    named = {"model": "vit_small_patch16_224"}
    plain = filled(store, image(), model="vit_tiny_patch16_224", patch_size=16)
    assert plain["network"]["patch_size"] == 16
    assert filled(store, image(network=named))["network"] == named, "sizes of a named model are its own"
    assert filled(store, image(network={"depth": 3}))["network"] == STUDENT | {"depth": 3}, "what is given wins"
    pretrained = {"pretrained": True}
    assert filled(store, image(network=pretrained))["network"] == pretrained, "weights have their own size"


def test_text_and_fused_teachers_are_no_larger_than_the_student(store: Store) -> None:
    assert filled(store, {"kind": "text"}) == {"hidden": 24, "layers": 1}
    assert filled(store, {"kind": "text", "params": {"hidden": 32}}) == {"hidden": 32, "layers": 1}
    assert filled(store, {"kind": "text"}, embed_dim=27) == {"hidden": 27, "layers": 1, "heads": 3}
    assert filled(store, {"kind": "text"}, embed_dim=192, depth=12) == {}, "a small default stays small"
    assert filled(store, {"kind": "fused"}) == {"patch_size": 8, "dim": 24, "depth": 1}
    assert filled(store, {"kind": "fused", "params": {"dim": 32, "patch_size": 16}}) == {
        "dim": 32,
        "patch_size": 16,
        "depth": 1,
    }
    assert filled(store, {"kind": "fused"}, embed_dim=27) == {"patch_size": 8, "dim": 27, "depth": 1, "heads": 3}
    assert filled(store, {"kind": "tabular"}) == {}


def test_members_of_an_ensemble_too(store: Store) -> None:
    members = {"scan": image(), "findings": {"kind": "tabular"}}
    found = filled(store, {"kind": "ensemble", "params": {"members": members}})
    assert found["members"]["scan"]["params"]["network"] == STUDENT


def test_an_invalid_student_or_teacher_stays_as_it_is_for_the_check(store: Store) -> None:
    config = trial(store, image(), num_heads=7)
    assert sized(config, store.facts) is config
    assert filled(store, image(networks={})) == {"view": "superior", "networks": {}}


def test_what_is_fitted_has_that_size(store: Store, tmp_path: Path) -> None:
    """Its embedding is as wide as the student's, through the very function that a training calls."""
    (outputs,) = fit_teachers(trial(store, image(epochs=1)), store, tmp_path).values()
    assert outputs.width == STUDENT["embed_dim"]


def test_the_outline_counts_parameters(store: Store) -> None:
    config = sized(trial(store, image(), embed_dim=240, depth=2), store.facts)
    network = build_student(config.student, 32, 1, 3)
    count = sum(one.numel() for one in network.parameters()) / 1e6
    assert resolve(config.teachers["it"]).outlines("t", store.facts) == [
        f"t: image, vit_tiny_patch16_224 from scratch, 2 blocks x 240, patch 8, 32 x 32 px of superior, "
        f"{count:.3g} M parameters"
    ]
    (line,) = resolve(trial(store, {"kind": "tabular"}).teachers["it"]).outlines("t", store.facts)
    assert line == "t: tabular, linear on 6 columns"
    both = {"kind": "ensemble", "params": {"members": {"scan": image(), "findings": {"kind": "tabular"}}}}
    config = sized(trial(store, both), store.facts)
    lines = resolve(config.teachers["it"]).outlines("t", store.facts)
    assert lines[0] == "t: ensemble, of scan, findings; weights: equal"
    assert lines[1].startswith("t.params.members.scan: image, ") and len(lines) == 3
    config = sized(trial(store, {"kind": "fused"}), store.facts)
    (line,) = resolve(config.teachers["it"]).outlines("t", store.facts)
    assert line.startswith("t: fused, 1 blocks x 24, 16 latents, patch 8, 32 x 32 px of the student's image, 6 columns")


def test_a_text_teachers_parameters_are_counted_without_building_it(store: Store) -> None:
    rows = store.rows("train")
    teacher = Text(TextParams(epochs=1, hidden=16, vocabulary=20, max_length=24), store.facts)
    teacher.fit(store, rows)
    words = len(teacher.tokenizer)
    counted = sum(one.numel() for one in teacher.network.parameters())
    line = Text.outline(TextParams(hidden=16, vocabulary=words, max_length=24), store.facts)
    assert line == f"BERT from scratch, 2 blocks x 16, up to {words} words, at most {counted / 1e6:.3g} M parameters"
