"""The text teacher: the sections that it reads, hidden words, its encoder, and refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mmpkd.cohort.facts import Facts, Scan, Section
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig
from mmpkd.fit import seeded
from mmpkd.machine.checksums import fingerprint
from mmpkd.teachers import check, resolve, text_encoders
from mmpkd.teachers.cache import cached_outputs
from mmpkd.teachers.sections import chosen_sections
from mmpkd.teachers.text import Network, Text, TextParams
from mmpkd.types import TeacherError, lay_out
from tests.mmpkd.teacher_fixtures import TEXT, StoreWithInputs

CLASSES = ("lamellar", "columnar", "reticular")


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, cache: Path) -> Store:
    return prepare(tiny_cohort, cache)


@pytest.fixture
def leaking(store: Store) -> StoreWithInputs:
    """Its reports state the label."""
    tiny_store = StoreWithInputs.open(store.path)
    tiny_store.sentences = np.array(
        [f"The pattern is {CLASSES[index]}." for index in tiny_store.target_NK.argmax(1)], object
    )
    tiny_store.fingerprint = "leaking"
    return tiny_store


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an encoder of three layers that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("encoder")
    with seeded(0, "saved"):
        tokenizer, model = text_encoders.build(
            ["a lesion with a mesh", "bands that run with a lesion a mesh"], 50, 16, 3, 2, 32
        )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def with_sections(facts: Facts, **sections: Section) -> Facts:
    return replace(facts, sections=sections)


def problems(facts: Facts, **params: Any) -> list[str]:
    return [str(one) for one in check(TeacherConfig(kind="text", params=params), facts)]


def test_sections_are_joined_and_blank_ones_left_out(store: Store) -> None:
    facts = with_sections(
        store.facts, findings=Section(False, 1), history=Section(False, 1), impression=Section(True, 1)
    )
    assert chosen_sections(TextParams(), facts) == ["findings", "history"]
    assert chosen_sections(TextParams(sections=("history",), near_label=("impression",)), facts) == [
        "history",
        "impression",
    ]

    class Sectioned(StoreWithInputs):
        def text(self, sections: Any) -> Any:
            cells = super().text(sections).iloc[:4]
            cells["findings"] = ["clear ", None, " ", "a mass"]
            cells["history"] = ["cough", None, None, " fever"]
            return cells

    told = Sectioned.open(store.path)
    told.sentences = np.array([None] * len(told.sample_ids), object)
    texts = Text(TextParams(), facts)._texts(told, np.arange(4))
    assert texts.tolist() == ["clear cough", "", "", "a mass fever"]


def test_a_report_that_states_the_label_is_flagged_and_hiding_its_words_helps(
    leaking: StoreWithInputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Though a sixth of the samples have no report, each report learns its own label."""
    leaking.sentences[1::6] = None
    params = TEXT | {"epochs": 10, "lr": 0.02}
    flagged = cached_outputs(resolve(TeacherConfig(kind="text", params=params)), leaking, 0, tmp_path, "report")
    assert flagged.quality["auroc"] > 0.98 and flagged.quality["leak"] == 1.0
    assert "warning: teacher 'report' all but states the label" in " ".join(capfd.readouterr().err.split())
    masked = cached_outputs(
        resolve(TeacherConfig(kind="text", params=params | {"mask_labels": True})), leaking, 0, tmp_path, "report"
    )
    assert masked.quality["auroc"] < 0.8 and masked.quality["leak"] == 0.0
    val = masked.arrays["logits"][leaking.rows("val")]
    val = val[val.isfinite().all(dim=1)]
    torch.testing.assert_close(val, val[:1].expand_as(val))  # all texts look alike now
    assert "'report' is at chance on validation (AUROC 0.500)" in " ".join(capfd.readouterr().err.split())
    cached_outputs(resolve(TeacherConfig(kind="text", params=params)), leaking, 0, tmp_path, "report")
    assert capfd.readouterr().err == "", "told once"


def test_further_words_are_hidden_if_listed(store: Store) -> None:
    assert TextParams(mask_labels=False).mask_labels is None and TextParams(mask_labels=True).mask_labels is not None
    assert problems(store.facts, mask_labels="yes") == [
        "params.mask_labels: true, false, or {also: [further words to hide]}, got 'yes'"
    ]
    assert problems(store.facts, mask_labels={"alsoo": []})[0].startswith("params.mask_labels.alsoo: unknown key")
    assert problems(store.facts, mask_labels={"also": ["-"]})[0].startswith("params.mask_labels.also.0: ")


def test_a_common_word_that_names_a_class_stays_and_the_plan_reports_it(store: Store) -> None:
    facts = replace(store.facts, tasks=lay_out([("lung", "multiclass", ("other", "normal", "edema"))]))
    teacher = TeacherConfig(kind="text", params={"mask_labels": True})
    told = " ".join(resolve(teacher).caveats(facts))
    assert "leaves the label's name 'other' or 'normal' in its text" in told
    assert 'set mask_labels: {also: ["other", "normal"]}' in told
    assert "leaves" not in " ".join(resolve(TeacherConfig(kind="text")).caveats(facts))


def test_outputs_do_not_depend_on_padding_or_batch(store: Store) -> None:
    teacher = Text(TextParams(**TEXT), store.facts)
    with seeded(0, "test"):
        texts = np.array(["a lesion", "one round lesion with bands that run across a mesh", "mesh"], object)
        teacher.tokenizer, encoder = text_encoders.build([*texts, *texts], 100, 16, 2, 2, 24)
        teacher.network = Network(encoder, 3).eval()
    together, hidden = teacher._predict(texts)
    for index in range(3):
        alone, own = teacher._predict(texts[[index]])
        torch.testing.assert_close(alone[0], together[index])
        torch.testing.assert_close(own[:, 0], hidden[:, index])
    tokens = teacher._tokens(texts[:1])
    with torch.no_grad():
        states = encoder(**tokens, output_hidden_states=True).hidden_states
    for layer in range(2):
        torch.testing.assert_close(hidden[layer, 0], states[layer + 1][0].mean(dim=0))
    torch.testing.assert_close(together[0], teacher.network.head(hidden[-1, 0]))


def test_too_few_reports_are_refused(leaking: StoreWithInputs, tmp_path: Path) -> None:
    leaking.sentences[leaking.rows("train")[2:]] = None
    with pytest.raises(
        TeacherError, match=r"teacher 'report': only [12] of \d+ training samples of a fold have text in report"
    ):
        cached_outputs(resolve(TeacherConfig(kind="text", params=TEXT)), leaking, 0, tmp_path, "report")


def test_an_encoder_from_disk_is_fine_tuned_or_frozen(store: Store, saved: Path) -> None:
    params = {"encoder": str(saved), "frozen": True, "max_length": 24}
    config = TeacherConfig(kind="text", params=params)
    mistakes, offer = check(config, store.facts), resolve(config).offers(store.facts)
    assert not mistakes and offer is not None and offer.layers == 3
    rows = store.rows("train")
    frozen, tuned = Text(TextParams(**params), store.facts), Text(TextParams(encoder=str(saved), epochs=1), store.facts)
    frozen.fit(store, rows)
    tuned.fit(store, rows)
    _, original = text_encoders.load(str(saved))
    for name, values in original.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(frozen.network.encoder.state_dict()[name], values)
    embeddings = "embeddings.word_embeddings.weight"
    assert not torch.equal(tuned.network.encoder.state_dict()[embeddings], original.state_dict()[embeddings])
    said = frozen.outputs(store, rows)
    assert len(said.hidden_BD) == 3 and torch.equal(said.hidden_BD[2].nan_to_num(), said.embedding_BD.nan_to_num())  # type: ignore[union-attr]
    told = said.logits_BK[said.logits_BK.isfinite().all(1)]  # type: ignore[index,union-attr]
    assert told.std(dim=0).min() > 0.01, "the head was fitted"


def test_other_weights_give_another_address(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    same, other = (Text.sources(TextParams(encoder=str(one))) for one in (saved, folder))
    assert same == other
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")  # of the same size
    assert Text.sources(TextParams(encoder=str(folder))) != same
    assert fingerprint(Text.sources(TextParams())) == fingerprint({})


def test_weights_of_another_encoder_are_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = {name: one for name, one in load_file(saved / "model.safetensors").items() if "layer.2" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"holds no weights for encoder\.layer\.2"):
        text_encoders.load(str(tmp_path))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"sections": ["findigs"]},
            r"params\.sections: .*no section 'findigs' \(did you mean 'findings'\?\)",
        ),
        (
            {"sections": ["impression"]},
            r"params\.sections: the labels were read from section 'impression'; .*near_label",
        ),
        ({"near_label": ["findings"]}, r"params\.near_label: section 'findings' is not near-label"),
        ({"sections": ["findings", "findings"]}, r"params\.sections: section 'findings' is listed twice"),
        (
            {"sections": ["wet_read"]},
            r"params\.sections: wet_read: 1\.0% of the training samples have any text there",
        ),
        (
            {"encoder": "nobody/no-such-bert"},
            r"params\.encoder: .*not on this machine.*`hf download nobody/no-such-bert`",
        ),
        ({"encoder": "/no/such/folder"}, r"params\.encoder: no folder '/no/such/folder', nor the name of a model"),
        ({"frozen": True}, r"params: .*frozen needs a pretrained encoder"),
        ({"hidden": 15}, r"params: .*hidden must be a multiple of heads, got 15 and 2"),
        ({"encoder": "x", "layers": 3}, r"params: .*layers: a named `encoder` has its own sizes"),
    ],
)
def test_refusals_at_planning(store: Store, params: dict[str, Any], said: str) -> None:
    facts = with_sections(
        store.facts, findings=Section(False, 0.9), impression=Section(True, 0.9), wet_read=Section(False, 0.01)
    )
    assert problems(facts) == []
    found = problems(facts, **params)
    assert len(found) == 1 and re.search(said, found[0]), found


def test_a_cohort_without_text_or_with_near_label_text_only(store: Store) -> None:
    assert "the cohort has no report text" in problems(with_sections(store.facts))[0]
    only = with_sections(store.facts, impression=Section(True, 1.0))
    assert "every section is near-label (impression): name some" in problems(only)[0]
    assert problems(only, near_label=["impression"]) == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("spoil", ["empty", "cut", "gone"])
def test_an_encoder_with_truncated_files_is_refused_at_planning(
    store: Store, saved: Path, tmp_path: Path, name: str, spoil: str
) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if spoil == "cut" else b"")
    if spoil == "gone":  # a link into a cache that was cleaned
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
    (found,) = problems(store.facts, encoder=str(tmp_path), max_length=24)
    assert found.startswith("params.encoder: ") and str(tmp_path) in found


def test_an_encoder_that_lacks_a_part_of_its_weights_is_refused(store: Store, saved: Path, tmp_path: Path) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1-of-2.safetensors")
    index, parts = tmp_path / "model.safetensors.index.json", {"a": "model-1-of-2.safetensors"}
    for content, lacking in (
        (parts | {"b": "model-2-of-2.safetensors"}, "model-2-of-2.safetensors"),
        (None, index.name),
    ):
        index.write_text(json.dumps({"weight_map": content}))
        (found,) = problems(store.facts, encoder=str(tmp_path), max_length=24)
        assert f"{lacking} is missing, empty or cut short" in found
    index.write_text(json.dumps({"weight_map": parts}))
    assert problems(store.facts, encoder=str(tmp_path), max_length=24) == []


@pytest.mark.parametrize(
    ("blank", "said"),
    [
        (0.04, "has no output for 4.0%"),
        (0.5, "has no output for 50.0%"),
        (1.0, "0.0% of the training samples have any text there"),
        ("benign", "no training sample with text there is not pathology/malignant, though others are"),
        ("not in training", "0.0% of the training samples have any text there"),
    ],
)
def test_a_share_of_patients_without_reports_is_a_caveat_or_refused(blank: float | str, said: str) -> None:
    tasks = lay_out([("pathology", "binary", ("benign", "malignant"))])
    samples = pd.DataFrame({"patient": [f"p{i}" for i in range(150)], "split": ["train"] * 100 + ["test"] * 50})
    labels = pd.DataFrame({"pathology/malignant": np.arange(150) % 2.0})
    report = pd.Series(["a mass"] * 150, dtype=object)
    if blank == "benign":
        report[labels["pathology/malignant"] == 0] = None
    else:
        report[: 100 if blank == "not in training" else int(float(blank) * 100)] = None
    scan = Scan(tasks, samples, labels, pd.DataFrame(index=samples.index), text=pd.DataFrame({"report": report}))
    config = TeacherConfig(kind="text")
    facts = scan.facts(32, credentialed=False)
    mistakes = check(config, facts)
    told = [str(one) for one in mistakes] or resolve(config).caveats(facts)
    assert len(told) == 1 and said in told[0] and bool(mistakes) == (told[0].startswith("params.sections: report: "))


def test_encoders_that_do_not_fit(store: Store, saved: Path, tmp_path: Path) -> None:
    assert problems(store.facts, encoder=str(saved), max_length=32) == []
    assert (
        "max_length: the encoder takes 32 tokens at most, got 33"
        in problems(store.facts, encoder=str(saved), max_length=33)[0]
    )
    assert "lacks its weights and vocabulary and config.json" in problems(store.facts, encoder=str(tmp_path))[0]
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "is a t5, not an encoder of text" in problems(store.facts, encoder=str(tmp_path))[0]
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    assert "transformers cannot read" in problems(store.facts, encoder=str(tmp_path))[0]
