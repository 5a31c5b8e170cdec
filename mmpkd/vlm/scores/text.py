"""Scores of free text: BLEU (sacrebleu), ROUGE-L (rouge-score) and METEOR (nltk), without Java and without downloads.

They stand for the COCO caption scores of the authors' `eval_GC.py` and `eval_MII.py`, but are not equal to them:

- Tokens are `answers.words`, so boxes and punctuation are left out and "well-defined" is two words. COCO uses the Penn
  Treebank tokenizer, a Java program, and would count the digits of boxes as words.
- ROUGE-L is the F1 score. COCO's weighs recall more (beta 1.2).
- METEOR matches equal words, then equal stems (Porter), with the parameters of nltk (Lavie & Agarwal 2007: alpha 0.9,
  beta 3, gamma 0.5), and is the mean over the items. COCO's is METEOR 1.5, which also matches synonyms and paraphrases
  and weighs function words.
- SPICE and CIDEr are missing. The first needs Java.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmpkd.types import UserError
from mmpkd.vlm.scores.answers import words

LIBRARIES = ("nltk", "rouge_score", "sacrebleu")
ORDERS = (1, 2, 3, 4)


class NoSynonyms:
    """Stands for WordNet in nltk's METEOR, which asks for synonyms; no word has any."""

    def synsets(self, word: str) -> list[Any]:
        """Returns the sets of synonyms of a word."""
        return []


def missing_libraries() -> str:
    """Returns which libraries of the text scores are not installed, and the command that installs them; else ''."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        problem = f"the scores of answers need {', '.join(missing)}, which this Python lacks"
        return f"{problem}; install with: pip install 'mmpkd[vlm]'"
    return ""


@cache
def require_libraries() -> None:
    """Checks that the libraries of the text scores are installed.

    Raises:
        UserError: a library is missing.
    """
    if missing := missing_libraries():
        raise UserError(missing)


@cache
def _library(name: str) -> Any:
    """Returns a module of a library, imported at its first use: together they take a second."""
    require_libraries()
    return import_module(name)


class _Words:
    """The tokenizer that rouge-score is given."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer() -> Any:
    return _library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(answer: str, response: str) -> float:
    """Returns the F1 score of the longest common subsequence of words; 0 if either text has no word."""
    return float(_rouge_scorer().score(answer, response)["rougeL"].fmeasure)


def meteor(answer: str, response: str) -> float:
    """Returns METEOR with exact and stem matches; 0 if either text has no word."""
    score = _library("nltk.translate.meteor_score").meteor_score
    return float(score([words(answer)], words(response), wordnet=NoSynonyms()))


def bleu(answers: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """Returns BLEU-1 to BLEU-4 of a corpus, as `bleu1` to `bleu4`, between 0 and 1.

    BLEU-n is the geometric mean of the n-gram precisions of orders 1 to n over the whole corpus, times the brevity
    penalty, without smoothing and without effective orders: a corpus whose responses have no n-gram in common with the
    answers has BLEU-n 0, and so has one of one-word answers for n > 1. COCO's script adds a tiny constant there.
    """
    kind = _library("sacrebleu.metrics").BLEU
    true, given = ([" ".join(words(text)) for text in texts] for texts in (answers, responses))
    scores = {}
    for order in ORDERS:
        metric = kind(tokenize="none", smooth_method="none", max_ngram_order=order, effective_order=False)
        scores[f"bleu{order}"] = float(metric.corpus_score(given, [true]).score) / 100
    return scores
