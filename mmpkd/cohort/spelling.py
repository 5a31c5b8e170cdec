"""Decides which spellings are the same name.

Two spellings are the same name if they differ only in case, blanks, the width of characters, invisible characters, the
kind of dash, leading zeros, or the `.0` that a spreadsheet adds to a whole number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

WHOLE = re.compile(r"([+-]?)0*(\d+?)(\.0*)?")  # a whole number with any padding
BLANK = re.compile(r"(?<!\d) | (?!\d)")  # a blank between two digits separates two numbers
LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")  # the zero of 1.05 is not leading
SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d+)?e[+-]\d+")
RUNS = re.compile(r"\d+|[^\W\d_]+")  # a run of digits or of letters
LETTERS_BEFORE = re.compile(r"[^\W\d_]+(\d+)")
SIGNED = re.compile(r"-\d+")
MINUS = "\N{MINUS SIGN}"
DIFFERENCE = "differ only in case, blanks, character width, leading zeros or '.0'"


def normalise_name(name: str) -> str:
    """Returns a name with uniform case, character width and dashes, without surplus blanks and invisible characters."""
    if name.isascii():
        return " ".join(name.split()).casefold()
    letters = []
    for letter in unicodedata.normalize("NFKC", name):
        category = unicodedata.category(letter)
        if category != "Cf":  # soft hyphens, byte order marks, characters without a width
            digit = str(unicodedata.decimal(letter)) if category == "Nd" else letter
            letters.append("-" if category == "Pd" or letter == MINUS else digit)
    return unicodedata.normalize("NFKC", " ".join("".join(letters).split()).casefold())


def strip_padding(name: str) -> str:
    """Returns the form that all spellings of a name have in common.

    This is the output of `normalise_name` without blanks (but between two digits), without leading zeros and without a
    final `.0`.
    """
    text = _without_blanks(name)
    number = WHOLE.fullmatch(text)
    return number[1].replace("+", "") + number[2] if number else LEADING_ZEROS.sub("", text)


def _without_blanks(name: str) -> str:
    return BLANK.sub("", normalise_name(name))


def is_scientific(name: str) -> bool:
    """Returns whether a name is a number in scientific notation, such as 1.23E+09, as written by a spreadsheet that cut
    off digits."""
    return SCIENTIFIC.fullmatch(normalise_name(name)) is not None


def group_spellings(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns groups of names that are spellings of the same name. Each group is sorted.

    Names of equal length that differ only in the place of their zeros are different names; hexadecimal identifiers may
    differ in this way.
    """
    groups = []
    for group in _group_by_key((name, strip_padding(name)) for name in names):
        texts = set(map(_without_blanks, group))
        if len(texts) < len(group) or len(set(map(len, texts))) > 1:
            groups.append(group)
    return groups


def names_in_both(names: Iterable[str], others: Iterable[str]) -> set[str]:
    """Returns those of `names` that are a spelling of one of `others`, by the rule of `group_spellings`."""
    texts: dict[str, set[str]] = {}
    for other in set(others):
        texts.setdefault(strip_padding(other), set()).add(_without_blanks(other))
    both = set()
    for name in set(names):
        text, known = _without_blanks(name), texts.get(strip_padding(name), set())
        if text in known or any(len(other) != len(text) for other in known):
            both.add(name)
    return both


def group_loose_spellings(names: Iterable[str], loosely: bool = False) -> list[tuple[str, ...]]:
    """Returns groups of names with the same letters (accents are ignored) and digits, such as P-01, P_01 and P01.

    Each group is sorted. Groups that `group_spellings` returns are left out. With `loosely`, there are further groups,
    such as 123-456 and 123456, or sub-01 and 01.
    """
    groups = []
    names = list(names)
    for group in _group_by_key((name, _letter_and_digit_runs(strip_padding(name)) or name) for name in names):
        texts = [normalise_name(name) for name in group]
        if not group_spellings(group) and (
            len(set(map(_letter_and_digit_runs, texts))) < len(texts) or len(set(map(len, texts))) > 1
        ):
            groups.append(group)
    if not loosely:
        return groups
    grouped = {name for group in groups for name in group}
    keys = [(name, re.sub(r"[\W_]", "", strip_padding(name))) for name in names]
    numbers = {key for name, key in keys if key.isdigit() and normalise_name(name).isalnum()}
    # 1-12 and 11-2 may be patients of two sites. They are put into a group only if the name 112 exists as well.
    pairs = [(name, key if key in numbers else "") for name, key in keys if key.isdigit()]
    prefixed = [(name, LETTERS_BEFORE.fullmatch(key)) for name, key in keys]
    pairs += [
        (name, strip_padding(match[1])) for name, match in prefixed if match and strip_padding(match[1]) in numbers
    ]
    groups += [
        group
        for group in _group_by_key(pair for pair in pairs if pair[1])
        if not grouped & set(group) and not group_spellings(group)
    ]
    return groups


def _letter_and_digit_runs(text: str) -> str:
    """Removes accents and returns the text's runs of letters and of digits. A negative whole number keeps its sign."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain if SIGNED.fullmatch(plain) else " ".join(RUNS.findall(plain))


def _group_by_key(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Groups names with the same key, and returns each group of two or more names, sorted."""
    by_key: dict[str, set[str]] = {}
    for name, key in pairs:
        by_key.setdefault(key, set()).add(name)
    return [tuple(sorted(group)) for group in by_key.values() if len(group) > 1]
