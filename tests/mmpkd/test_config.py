"""Configurations: strict, all mistakes at once, fingerprinted, read and written without loss."""

from pathlib import Path

import pytest

from mmpkd.config import TrialConfig, dump_trial, load_trial, validate
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import overridden
from mmpkd.near_names import near
from mmpkd.types import ConfigError

MINIMAL = {"cohort": {"reader": "synthetic"}}


def mistakes(content: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        validate(TrialConfig, content)
    return {one.path: one.problem for one in caught.value.mistakes}


def test_every_mistake_is_told_at_once_with_its_place_and_a_near_name() -> None:
    found = mistakes(
        {
            "cohort": {"reader": "synthetic", "image_sze": 64},
            "optimizer": {"lr": -1},
            "objectives": {"soft": {"wieght": 2}},
            "epoch": 3,
        }
    )
    assert set(found) == {"cohort.image_sze", "optimizer.lr", "objectives.soft.wieght", "epoch"}
    assert found["cohort.image_sze"] == "unknown key (did you mean 'image_size'?)"
    assert found["objectives.soft.wieght"] == "unknown key (did you mean 'weight'?)"
    assert found["optimizer.lr"].endswith("greater than 0, got -1")


def test_missing_and_non_finite_values_are_told() -> None:
    assert mistakes({}) == {"cohort": "missing"}
    assert "optimizer.weight_decay" in mistakes(MINIMAL | {"optimizer": {"weight_decay": float("nan")}})


def test_configurations_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(TrialConfig, MINIMAL).epochs = 3  # type: ignore[misc]


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    config = validate(TrialConfig, MINIMAL | {"objectives": {"soft": {"kind": "logits", "weight": 0.1 + 0.2}}})
    (tmp_path / "c.yaml").write_text(dump_trial(config))
    assert load_trial(tmp_path / "c.yaml") == config


def test_fingerprint_follows_content_and_not_the_place_of_the_data() -> None:
    one = validate(TrialConfig, {"cohort": {"reader": "table", "root": "/a"}})
    assert one.fingerprint() == validate(TrialConfig, {"cohort": {"reader": "table", "root": "/b"}}).fingerprint()
    others = [
        one.model_copy(update={"cohort": one.cohort.model_copy(update=change)})
        for change in ({"fold": 1}, {"image_size": 32}, {"params": {"file": "other.csv"}}, {"reader": "synthetic"})
    ]
    others += [one.model_copy(update=change) for change in ({"seed": 1}, {"threads": 2}, {"epochs": 5})]
    assert len({other.fingerprint() for other in (one, *others)}) == 8, "each has a name of its own"
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_overrides_reach_any_leaf_and_numbers_are_numbers() -> None:
    content = overridden({"optimizer": {"lr": 1}, "cohort": {"reader": "x"}}, ["optimizer.lr=3e-4", "epochs=5"])
    assert content == {"optimizer": {"lr": 3e-4}, "cohort": {"reader": "x"}, "epochs": 5}


def test_overrides_that_are_none_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"epochs: expected key=value"):
        overridden({}, ["epochs"])
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_PLACE"):
        overridden({"cohort": {"root": "${oc.env:NO_SUCH_PLACE}"}}, [])


@pytest.mark.parametrize(
    ("text", "words"), [(None, "No such file"), ("- a\n- b\n", "must be a mapping"), ("a: [", "is not YAML")]
)
def test_files_that_are_no_configuration_are_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_trial(tmp_path / "c.yaml")


def test_objectives_and_teachers_that_play_a_part() -> None:
    config = validate(
        TrialConfig,
        MINIMAL
        | {
            "teachers": {"findings": {"kind": "tabular"}},
            "objectives": {"logits": {}, "off": {"kind": "features", "weight": 0}},
        },
    )
    active = config.active_objectives()
    assert {label: (one.kind, one.teacher) for label, one in active.items()} == {"logits": ("logits", "findings")}
    assert config.active_teachers() == ["findings"]


def test_numbers_in_files_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("cohort: {reader: x, params: {a: 1e-3}}\n")
    assert load_trial(tmp_path / "c.yaml").cohort.params == {"a": 0.001}


def test_near_names() -> None:
    assert near("cbsi", ["cbis", "breast"]) == " (did you mean 'cbis'?)"
    assert near("zzz", ["b", "a"]) == " (known: a, b)"
    assert near("zzz", []) == ""


def test_a_search_space_is_no_training(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("arms: {none: {}}\nepochs: 3\n")
    with pytest.raises(ConfigError, match=r"is a search space; .*python -m sweep\.run space="):
        load_trial(tmp_path / "space.yaml")
