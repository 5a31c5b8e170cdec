"""When two spellings are one name.

They are where they differ only in case, in blanks, in the width of characters, in invisible characters, in the kind of
dash, in leading zeros, or in the `.0` that a spreadsheet adds to a whole number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

WHOLE = re.compile(r"([+-]?)0*(\d+?)(\.0*)?")  # a whole number, however it is padded
LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")  # not those of 1.05, which is not 1.5
SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d+)?e[+-]\d+")
RUNS = re.compile(r"\d+|[^\W\d_]+")  # of digits, and of letters
LETTERS_BEFORE = re.compile(r"[^\W\d_]+(\d+)")
SIGNED = re.compile(r"-\d+")
MINUS = "\N{MINUS SIGN}"
DIFFERENCE = "differ only in case, blanks, character width, leading zeros or '.0'"


def normalise_name(name: str) -> str:
    """A name without what a reader of it does not see: case, character width, blanks around it, kind of dash."""
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
    """Returns the part that all spellings of a name share: `normalise_name` without leading zeros and a final `.0`."""
    text = normalise_name(name)
    number = WHOLE.fullmatch(text)
    return number[1].replace("+", "") + number[2] if number else LEADING_ZEROS.sub("", text)


def is_scientific(name: str) -> bool:
    """Whether it is a number such as 1.23E+09, of which a spreadsheet has cut off digits."""
    return SCIENTIFIC.fullmatch(normalise_name(name)) is not None


def group_spellings(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The groups of names that are one name in several spellings, each group sorted.

    Names of one length that differ in where their zeros stand, as hexadecimal identifiers may, are different names.
    """
    groups = []
    for group in _group_by_key((name, strip_padding(name)) for name in names):
        texts = {normalise_name(name) for name in group}
        if len(texts) < len(group) or len(set(map(len, texts))) > 1:
            groups.append(group)
    return groups


def group_loose_spellings(names: Iterable[str], loosely: bool = False) -> list[tuple[str, ...]]:
    """The groups of names of the same letters, but for accents, and digits in the same order (P-01, P_01, P01), each
    group sorted; without those that are `group_spellings`. `loosely` also 123-456 and 123456, and sub-01 and 01."""
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
    seen = {name for group in groups for name in group}
    keys = [(name, re.sub(r"[\W_]", "", strip_padding(name))) for name in names]
    numbers = {key for name, key in keys if key.isdigit() and normalise_name(name).isalnum()}
    # 1-12 and 11-2 are patients of two sites, unless there is a 112 as well.
    pairs = [(name, key if key in numbers else "") for name, key in keys if key.isdigit()]
    prefixed = [(name, LETTERS_BEFORE.fullmatch(key)) for name, key in keys]
    pairs += [
        (name, strip_padding(match[1])) for name, match in prefixed if match and strip_padding(match[1]) in numbers
    ]
    groups += [
        group
        for group in _group_by_key(pair for pair in pairs if pair[1])
        if not seen & set(group) and not group_spellings(group)
    ]
    return groups


def _letter_and_digit_runs(text: str) -> str:
    """Without accents; the sign of a whole number is no punctuation."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain if SIGNED.fullmatch(plain) else " ".join(RUNS.findall(plain))


def _group_by_key(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Names that have a key in common, where there are several."""
    by_key: dict[str, set[str]] = {}
    for name, key in pairs:
        by_key.setdefault(key, set()).add(name)
    return [tuple(sorted(group)) for group in by_key.values() if len(group) > 1]
