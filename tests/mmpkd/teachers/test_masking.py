"""What is hidden from a text teacher: the words that name its label, by hand."""

from __future__ import annotations

import pytest

from mmpkd.teachers.masking import LabelMask
from mmpkd.types import TaskKind, lay_out


def hidden(names: tuple[str, ...], text: str, also: tuple[str, ...] = (), task: str = "t") -> str:
    kind: TaskKind = "multilabel"
    return LabelMask(lay_out([(task, kind, names)]), also).hide(text, "_")


def test_words_of_tasks_and_labels() -> None:
    said = "No edema; Malignant-looking, benignity unlikely. Two edemas, pathology_2"
    names = ("benign", "malignant", "No Finding", "Edema")
    assert hidden(names, said, task="pathology") == "No _; _-looking, benignity unlikely. Two _, __2"
    assert hidden(("0", "1"), "0 or 1, t 1") == "0 or 1, t 1", "too short to mean one thing"


@pytest.mark.parametrize(
    ("names", "text", "wanted"),
    [
        (("mass", "malignancy", "metastasis"), "a mass, masses, malignancies, metastases", "a _, _, _, _"),
        (("Calcifications", "Opacities"), "one calcification, an opacity", "one _, an _"),
        (("Masses", "Metastases", "carcinoma, NOS"), "mass, metastasis, carcinomas: NOS", "_, _, _: _"),
        (("mass",), "massive amassed mass", "massive amassed _"),
        (("edema",), "EDEMA Edema eDeMa", "_ _ _"),
    ],
)
def test_singulars_plurals_case_and_words_inside_words(names: tuple[str, ...], text: str, wanted: str) -> None:
    assert hidden(names, text) == wanted


@pytest.mark.parametrize("common", ["other", "Normal", "none", "left", "negative"])
def test_a_common_word_that_is_a_class_is_not_hidden_everywhere(common: str) -> None:
    text = f"no {common} finding in the {common} lung"
    assert hidden((common, "edema"), text) == text
    assert hidden((common, "edema"), text, also=(common,)) == "no _ finding in the _ lung", "unless asked for"


@pytest.mark.parametrize("short", ["ca", "no", "0", "良性"])
def test_a_label_that_is_too_short_to_be_hidden_is_listed(short: str) -> None:
    text = f"{short} of the lung"
    mask = LabelMask(lay_out([("task", "multilabel", (short, "edema"))]))
    assert mask.left == (short,) and mask.hide(text, "_") == text
    assert hidden((short, "edema"), text, also=(short,)) == "_ of the lung", "unless asked for"


def test_a_name_of_common_words_is_hidden_as_a_phrase() -> None:
    assert hidden(("No Finding",), "No finding. No other findings; no  Findings") == "_. No other findings; _"
    assert hidden(("Pleural Other",), "no other pleural line") == "no other _ line"


@pytest.mark.parametrize("written", ["COVID-19", "covid 19", "Covid19", "covid_19"])
def test_a_phrase_is_hidden_whatever_joins_its_words(written: str) -> None:
    assert hidden(("covid-19",), f"{written} pneumonia") == "_ pneumonia"


def test_accents_are_ignored_in_names_and_texts() -> None:
    assert hidden(("épanchement",), "EPANCHEMENT, épanchements, e\u0301panchement") == "_, _, _"
    assert hidden(("odeme",), "ödème à gauche") == "_ à gauche", "what is not hidden keeps its accents"


def test_initials_of_a_long_name() -> None:
    name = "Acute Respiratory Distress Syndrome"
    assert hidden((name,), "ARDS with hards and ards") == "_ with hards and ards"


def test_further_words_and_phrases() -> None:
    said = "Coronaviruses; SARS-CoV-2, sars cov 2 and SARSCoV2, not coronaviral"
    assert hidden(("covid",), said, also=("coronavirus", "sars-cov-2")) == "_; _, _ and _, not coronaviral"
