"""Misspelt and misplaced keys lead to the intended key, wherever in the configuration it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpkd import evaluate, predict, train
from mmpkd.config import TrialConfig, validate
from mmpkd.near_names import near_path, paths_of
from mmpkd.types import ConfigError

TREE = paths_of(TrialConfig)


def test_every_key_of_the_tree_is_known_by_its_path() -> None:
    wanted = {
        "optimizer.class_weights",
        "teachers.NAME.params",
        "objectives.NAME.weight",
        "stages.NAME.train",
        "epochs",
    }
    assert wanted <= set(TREE)


@pytest.mark.parametrize(
    ("path", "content", "meant"),
    [
        ("task.class_weights", None, "'optimizer.class_weights'"),
        ("task", {"class_weights": "balanced"}, "'optimizer.class_weights'"),
        ("lr", 1, "'optimizer.lr'"),
        ("optimizer.map", "rollout", "'evaluation.map'"),
        ("cohort.flip_vertical", True, "'augmentation.flip_vertical'"),
        ("optimzer", {"lr": 1}, "'optimizer'"),
        ("optimizer.weight_deca", 1, "'weight_decay'"),  # a sibling is suggested by its name alone
        ("student.heads", 3, "'num_heads' or 'weights_heads'"),
        ("objectives.soft.wieght", 3, "'weight'"),
        ("objectives.soft.optimizer.lr", 3, "'optimizer.lr'"),
        ("stages.0.trian", 3, "'train'"),
        ("epoch", 3, "'epochs'"),
        ("weight", 3, "'objectives.NAME.weight'"),
        ("augmentation.flip", True, "'flip_vertical' or 'flip_horizontal'"),
    ],
)
def test_suggested_names(path: str, content: Any, meant: str) -> None:
    assert near_path(path, content, TREE) == f" (did you mean {meant}?)"


def test_without_a_near_name_the_keys_of_the_section_are_listed() -> None:
    assert near_path("schedule.zzz", 1, TREE) == " (known: final, warmup)"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"optimizer": {"class_weights": "balancd"}}, r"got 'balancd' \(did you mean 'balanced'\?\)"),
        ({"evaluation": {"within": "forground"}}, r"did you mean 'foreground'"),
        ({"objectives": {"logits": {"schedule": "cosin"}}}, r"objectives.logits.schedule: .*did you mean 'cosine'"),
        ({"optimizer": {"epochs": 3}}, r"optimizer.epochs: unknown key \(did you mean 'epochs'\?\)"),
    ],
)
def test_values_and_keys_of_a_configuration(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(TrialConfig, {"cohort": {"reader": "synthetic"}, **content})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--epochs", "3"], "--epochs: words are key=value, without dashes; write epochs=3"),
        (["--epoch=3"], "write epochs=3"),
        (["epoch=3"], "epoch: unknown key (did you mean 'epochs'?)"),
        (["cahce=x"], "cahce: unknown key (did you mean 'cache'?)"),
        (["temperature=2"], "temperature: unknown key (did you mean 'objectives.NAME.params.temperature'?)"),
        (["objectives.logits.temperature=2"], "(did you mean 'objectives.logits.params.temperature'?)"),
    ],
)
def test_words_of_a_training(tmp_path: Path, words: list[str], text: str) -> None:
    config = tmp_path / "trial.yaml"
    config.write_text("cohort: {reader: synthetic}\n")
    with pytest.raises(ConfigError) as caught:
        train.main([f"config={config}", *words])
    assert text in str(caught.value)


def test_options_of_other_commands() -> None:
    with pytest.raises(ConfigError, match="write model=x"):
        evaluate.main(["--model", "x.safetensors", "config=y"])
    with pytest.raises(ConfigError, match="write overlays=true"):
        predict.main(["--overlay", "--images=a"])
