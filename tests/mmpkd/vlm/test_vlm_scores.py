"""Scores of single responses, with values worked by hand and compared with other libraries."""

from __future__ import annotations

import pytest
from nltk.translate.bleu_score import corpus_bleu

from mmpkd.types import UserError
from mmpkd.vlm.scores import text
from mmpkd.vlm.scores.answers import cleaned, containment, exact_match, words
from mmpkd.vlm.scores.grounding import best_overlaps, pointing

TRUE = "<box>(0,0),(100,100)</box>"


@pytest.mark.parametrize(
    ("response", "left"),
    [
        ("A cyst.<|im_end|>\nand more", "A cyst."),
        ("assistant\nA cyst\n<|endoftext|>", "A cyst"),
        ("<|im_end|>\nA cyst", "A cyst"),
        ("one\n\ntwo", ""),  # an oddity of the authors' rule
        ("A\ncyst", "A\ncyst"),
        ("  Lesion<|endoftext|><|endoftext|>", "Lesion"),
        ("", ""),
    ],
)
def test_responses_are_cut_as_the_authors_do(response: str, left: str) -> None:
    assert cleaned(response) == left
    assert cleaned(left) == left


def test_lines_stay_where_the_answer_has_lines() -> None:
    assert cleaned("size: 3\nside: left\nshape: round", answer="a\nb") == "size: 3\nside: left\nshape: round"


@pytest.mark.parametrize(
    ("answer", "response", "contained", "exact"),
    [
        ("Malignant Melanoma", "a melanoma, perhaps malignant", 1, 0),
        ("melanoma", "Melanoma.", 1, 1),
        ("no", "a nodule", 1, 0),  # an oddity of the authors' script
        ("left lung", "the lung", 0, 0),
        ("yes", "", 0, 0),
        (f"yes {TRUE}", "Yes", 1, 1),
        ("yes", f"<ref>yes</ref> {TRUE}", 1, 1),
    ],
)
def test_containment_and_exact_match(answer: str, response: str, contained: float, exact: float) -> None:
    assert (containment(answer, response), exact_match(answer, response)) == (contained, exact)


def test_words_leave_boxes_and_punctuation_out() -> None:
    text_with_box = f"The <ref>well-defined</ref> Läsion{TRUE} is (2.5)."
    assert words(text_with_box) == ["the", "well", "defined", "läsion", "is", "2", "5"]


@pytest.mark.parametrize(
    ("response", "recalled", "matched", "num_predicted", "total_iou"),
    [
        (TRUE, 1, 1, 1, 1.0),
        ("(0,0),(100,100)", 1, 1, 1, 1.0),  # without tags
        ("<box>(0,0),(100,50)</box>", 0, 0, 1, 0.5),  # exactly at the threshold
        ("<box>(0,0),(100,51)</box>", 1, 1, 1, 0.51),
        ("<box>(100,100),(0,0)</box>", 0, 0, 1, 0.0),  # corners in the wrong order
        ("<box>(500,500),(600,600)</box>" + TRUE, 1, 1, 2, 1.0),
        ("the middle", 0, 0, 0, 0.0),
    ],
)
def test_a_true_box_is_recalled_by_any_box(
    response: str, recalled: int, matched: int, num_predicted: int, total_iou: float
) -> None:
    assert pointing(TRUE, response) == (1, num_predicted, recalled, matched, pytest.approx(total_iou))


def test_a_box_recalls_several_true_boxes_but_is_matched_with_one_of_them() -> None:
    answer, response = TRUE + "<box>(0,0),(100,90)</box>", "<box>(0,0),(100,95)</box>"
    assert pointing(answer, response)[:4] == (2, 1, 2, 1)
    assert best_overlaps(answer, response) == pytest.approx([0.95, 90 / 95])


def test_the_matching_has_as_many_pairs_as_possible() -> None:
    """The first predicted box overlaps both true boxes and is nearest to the first, which the second box needs."""
    answer = "<box>(0,0),(100,100)</box><box>(0,0),(100,80)</box>"
    response = "<box>(0,0),(100,100)</box><box>(0,45),(100,100)</box>"  # IoU .8 with the second; .55 and .35
    assert pointing(answer, response)[:4] == (2, 2, 2, 2)


def test_rouge_l_by_hand() -> None:
    """Three common words in order, of 4 and of 6: precision .5, recall .75."""
    assert text.rouge_l("a small round lesion", "There is a round dark lesion!") == pytest.approx(0.6)
    assert text.rouge_l("a", "") == text.rouge_l(TRUE, "a") == 0


def test_meteor_by_hand() -> None:
    """All three words match, "lesions" by its stem, in one chunk: F 1, penalty .5 / 27. Two chunks: .5 (2/3)^3."""
    assert text.meteor("two round lesions", "two round lesion") == pytest.approx(1 - 0.5 / 27)
    assert text.meteor("two round lesions", "lesions two round") == pytest.approx(1 - 0.5 * 8 / 27)
    assert text.meteor("lesion", "tumour") == text.meteor("lesion", "") == 0


def test_bleu_by_hand_and_against_nltk() -> None:
    """Of 5 + 4 words of the responses 3 + 3 match, of 4 + 3 pairs 2 + 1; 9 words stand against 10."""
    answers = ["a small round lesion on the left", "no lesion here"]
    responses = ["a small round spot here", "no lesion is here"]
    scores = text.bleu(answers, responses)
    brevity = 2.718281828459045 ** (1 - 10 / 9)
    assert scores["bleu1"] == pytest.approx(brevity * 6 / 9)
    assert scores["bleu2"] == pytest.approx(brevity * (6 / 9 * 3 / 7) ** 0.5)
    split = [[words(answer)] for answer in answers], [words(response) for response in responses]
    for order in (1, 2, 3):
        assert scores[f"bleu{order}"] == pytest.approx(corpus_bleu(*split, weights=[1 / order] * order))
    assert scores["bleu4"] == 0
    assert text.bleu(["yes"], ["yes"]) == pytest.approx({"bleu1": 1, "bleu2": 0, "bleu3": 0, "bleu4": 0})
    assert set(text.bleu(["yes", "no"], ["", ""]).values()) == {0}


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LIBRARIES", ("sacrebleu", "no_such_library"))
    text.require_libraries.cache_clear()
    with pytest.raises(UserError, match=r"need no_such_library, which .* lacks; .*pip install 'mmpkd\[vlm\]'"):
        text.require_libraries()
