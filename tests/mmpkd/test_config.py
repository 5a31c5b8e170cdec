"""Configurations are strict, report all mistakes at once, have fingerprints, and are read and written without loss."""

from pathlib import Path

import pytest
from pydantic import field_serializer

from mmpkd.config import TrialConfig, dump_trial, load_trial, validate
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import overridden
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Strict

MINIMAL = {"cohort": {"reader": "synthetic"}}


def mistakes(content: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        validate(TrialConfig, content)
    return {entry.path: entry.problem for entry in caught.value.mistakes}


def test_all_mistakes_are_reported_at_once_with_path_and_near_name() -> None:
    result = mistakes(
        {
            "cohort": {"reader": "synthetic", "image_sze": 64},
            "optimizer": {"lr": -1},
            "objectives": {"soft": {"wieght": 2}},
            "epoch": 3,
        }
    )
    assert set(result) == {"cohort.image_sze", "optimizer.lr", "objectives.soft.wieght", "epoch"}
    assert result["cohort.image_sze"] == "unknown key (did you mean 'image_size'?)"
    assert result["objectives.soft.wieght"] == "unknown key (did you mean 'weight'?)"
    assert result["optimizer.lr"].endswith("greater than 0, got -1")


def test_missing_and_non_finite_values_are_reported() -> None:
    assert mistakes({}) == {"cohort": "missing"}
    assert "optimizer.weight_decay" in mistakes(MINIMAL | {"optimizer": {"weight_decay": float("nan")}})


def test_configurations_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(TrialConfig, MINIMAL).epochs = 3  # type: ignore[misc]


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = validate(TrialConfig, MINIMAL | {"objectives": {"soft": {"kind": "logits", "weight": 0.1 + 0.2}}})
    (tmp_path / "c.yaml").write_text(dump_trial(config))
    assert load_trial(tmp_path / "c.yaml") == config


def test_the_fingerprint_depends_on_content_but_not_on_the_data_folder() -> None:
    entry = validate(TrialConfig, {"cohort": {"reader": "table", "root": "/a"}})
    assert entry.fingerprint() == validate(TrialConfig, {"cohort": {"reader": "table", "root": "/b"}}).fingerprint()
    others = [
        entry.model_copy(update={"cohort": entry.cohort.model_copy(update=change)})
        for change in ({"fold": 1}, {"image_size": 32}, {"params": {"file": "other.csv"}}, {"reader": "synthetic"})
    ]
    others += [entry.model_copy(update=change) for change in ({"seed": 1}, {"threads": 2}, {"epochs": 5})]
    assert len({other.fingerprint() for other in (entry, *others)}) == 8, "each has a name of its own"
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_overrides_reach_any_leaf_and_numbers_are_numbers() -> None:
    content = overridden({"optimizer": {"lr": 1}, "cohort": {"reader": "x"}}, ["optimizer.lr=3e-4", "epochs=5"])
    assert content == {"optimizer": {"lr": 3e-4}, "cohort": {"reader": "x"}, "epochs": 5}


def test_malformed_overrides_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"epochs: expected key=value"):
        overridden({}, ["epochs"])
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_PLACE"):
        overridden({"cohort": {"root": "${oc.env:NO_SUCH_PLACE}"}}, [])


@pytest.mark.parametrize(
    ("text", "words"), [(None, "No such file"), ("- a\n- b\n", "must be a mapping"), ("a: [", "is not YAML")]
)
def test_files_without_a_configuration_are_reported(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_trial(tmp_path / "c.yaml")


def test_active_objectives_and_teachers() -> None:
    config = validate(
        TrialConfig,
        MINIMAL
        | {
            "teachers": {"findings": {"kind": "tabular"}},
            "objectives": {"logits": {}, "off": {"kind": "features", "weight": 0}},
        },
    )
    active = config.active_objectives()
    assert {label: (entry.kind, entry.teacher) for label, entry in active.items()} == {"logits": ("logits", "findings")}
    assert config.active_teachers() == ["findings"]


def test_numbers_in_files_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("cohort: {reader: x, params: {a: 1e-3}}\n")
    assert load_trial(tmp_path / "c.yaml").cohort.params == {"a": 0.001}


def test_near_names() -> None:
    assert near("cbsi", ["cbis", "breast"]) == " (did you mean 'cbis'?)"
    assert near("zzz", ["b", "a"]) == " (known: a, b)"
    assert near("zzz", []) == ""


def test_a_search_space_is_refused_as_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("arms: {none: {}}\nepochs: 3\n")
    with pytest.raises(ConfigError, match=r"is a search space; .*python -m sweep\.run space="):
        load_trial(tmp_path / "space.yaml")


def test_an_interrupt_while_a_configuration_is_dumped_stays_one() -> None:
    """pydantic wraps what is raised in a serializer in an error of its own, which Ctrl-C would end with a traceback."""

    class Outer(Strict):
        inner: Inner

    for dump in (Outer(inner=Inner()).model_dump, Outer(inner=Inner()).model_dump_json):
        with pytest.raises(KeyboardInterrupt):
            dump()


class Inner(Strict):
    """A configuration during whose serialization a signal arrives."""

    @field_serializer("value", check_fields=False)
    def _interrupted(self, value: int) -> int:
        raise KeyboardInterrupt

    value: int = 0
