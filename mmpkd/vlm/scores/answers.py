"""Whether a response holds the true answer. Each function scores one item; `cleaned` makes responses comparable."""

from __future__ import annotations

import re

from mmpkd.vlm.boxes import TAG, TAGGED

END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
REFERENCE_TAG = re.compile(r"</?ref>")
WORD = re.compile(r"\w+")


def cleaned(response: str, answer: str = "") -> str:
    """Returns a response as the authors' `regularization.py` (BiRD) leaves it.

    It ends at the first full stop before an end-of-turn token. If it then has at least two newlines, only the part
    between the first two stays. Two departures: the newlines stay where the true answer has newlines itself, because
    the rule would cut correct answers; and end-of-turn tokens that are left are removed like end-of-text tokens.
    """
    text, end, _ = response.partition(f".{END_OF_TURN}")
    text = (text + "." * bool(end)).replace(f"{END_OF_TURN}\n", "")
    lines = text.split("\n")
    if len(lines) > 2 and "\n" not in answer.strip():
        text = lines[1]
    return text.replace(END_OF_TURN, "").replace(END_OF_TEXT, "").strip()


def outside_boxes(text: str) -> str:
    """Returns a text without its boxes and without the tags of boxes and of references (`<ref>`)."""
    return REFERENCE_TAG.sub(" ", TAG.sub(" ", TAGGED.sub(" ", text))).strip()


def words(text: str) -> list[str]:
    """Returns the words of a text outside its boxes: lower case, runs of letters and digits, without punctuation."""
    return WORD.findall(outside_boxes(text).lower())


def containment(answer: str, response: str) -> float:
    """Returns 1 if every space-separated token of the answer is a substring of the response, in lower case; else 0.

    This is the accuracy of the authors' `eval_RO.py`, with its oddities: "no" is contained in "nodule", and the order
    of the tokens does not count. Boxes in the answer are left out here, which changes nothing where it has none.
    """
    text = response.lower()
    return float(all(token in text for token in outside_boxes(answer).lower().split()))


def exact_match(answer: str, response: str) -> float:
    """Returns 1 if answer and response have the same `words` in the same order, else 0."""
    return float(words(answer) == words(response))
