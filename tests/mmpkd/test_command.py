"""A command's words."""

from __future__ import annotations

from mmpkd.command import own_words


def test_own_words_and_the_rest() -> None:
    words = ["a=1", "b", "lr=2", "a=3=4", "c=", "d"]
    assert own_words(words, {"a": "", "c": "x", "d": "y"}) == ({"a": "3=4", "c": "", "d": "y"}, ["b", "lr=2", "d"])
