"""Finds the words of a report that name a label, and hides them from a text teacher."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from mmpkd.types import Task

MIN_LETTERS = 3  # a shorter word, such as "pt" or "0", has too many other meanings
# (end of a word, its replacement): opacities, masses, metastases, edemas
SINGULARS = (("ies$", "y"), ("(?<=s|x|z|h)es$", ""), ("ses$", "sis"), ("(?<![sui])s$", ""))
PLURALS = (("$", "s"), ("$", "es"), ("y$", "ies"), ("is$", "es"))
# Words of class names that occur in any report. Hiding them everywhere would remove "the left lung", "no other finding"
# and "normal heart" from reports of every class, so a name with such words is hidden only as a complete phrase.
WORDS = """
    absent all and any are but class diagnosis finding findings for from has have image label left misc miscellaneous
    negative neither non none normal nor not only other others part patient positive present rest right side status
    such task that the this type undefined unknown unspecified was were with without
"""
COMMON = frozenset(re.findall(r"\w+", WORDS))
GAP = r"[\W_]*"  # between the words of a phrase: sars-cov-2, SARS CoV 2 and SARSCoV2 are one
EDGES = r"(?<![^\W_]){}(?![^\W_])"  # whole words only: mass, but not massive


class LabelMask:
    """Hides the words that name tasks and labels, and further words, in texts.

    A word of a name is hidden wherever it occurs as a complete word, in its regular singular and plural, in upper and
    lower case, with and without accents. A name of several words is also hidden as a phrase, whatever joins its words,
    and as its initials in capitals if there are at least three. Common words of a name (`COMMON`) and words of fewer
    than three letters are hidden only within such a phrase.

    Attributes:
        left: the labels that are not hidden, because their name is a single word that is common or short.

    Args:
        also: further words and phrases to hide, without exceptions.
    """

    def __init__(self, tasks: Sequence[Task], also: Iterable[str] = ()) -> None:
        names = [name for task in tasks for name in (task.name, *task.labels)]
        words, phrases, self.initials = set[str](), set[str](), set[str]()
        labels = dict.fromkeys(name for task in tasks for name in task.labels)
        self.left = tuple(name for name in labels if _is_left(_parts(name)))
        for name in names:
            parts = _parts(name)
            words |= {part for part in parts if len(part) >= MIN_LETTERS and part not in COMMON}
            if len(parts) > 1 and sum(map(str.isalpha, "".join(parts))) >= MIN_LETTERS:
                phrases |= _variants(parts)
            initials = "".join(part[0] for part in parts if part[0].isalpha()).upper()
            if len(parts) >= MIN_LETTERS and len(initials) == len(parts):
                self.initials.add(initials)
        phrases |= {phrase for word in words for phrase in _variants([word])}
        phrases |= {phrase for word in also for phrase in _variants(_parts(word))}
        longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
        self._names = re.compile(EDGES.format(f"(?:{'|'.join(longest_first)})")) if phrases else None
        self._initials = re.compile(EDGES.format(f"(?:{'|'.join(sorted(self.initials))})")) if self.initials else None

    def hide(self, text: str, mask: str) -> str:
        """Returns `text` with `mask` instead of each word or phrase that names a label."""
        text = unicodedata.normalize("NFC", text)
        plain = "".join(map(_plain, text))  # of the same length, so that positions of matches agree
        matches = [] if self._names is None else list(self._names.finditer(plain.lower()))
        matches += [] if self._initials is None else list(self._initials.finditer(plain))
        pieces, end = [], 0
        for match in sorted(matches, key=lambda match: (match.start(), -match.end())):
            if match.start() >= end:
                pieces += [text[end : match.start()], mask]
                end = match.end()
        return "".join([*pieces, text[end:]])


def _is_left(parts: Sequence[str]) -> bool:
    """Whether a name is a single word that is too common or too short to be hidden."""
    return len(parts) == 1 and (parts[0] in COMMON or len(parts[0]) < MIN_LETTERS)


def _parts(name: str) -> list[str]:
    """Returns the words of a name, in lower case and without accents."""
    plain = "".join(map(_plain, unicodedata.normalize("NFC", name))).lower()
    return re.findall(r"[^\W_]+", plain)


def _plain(letter: str) -> str:
    """Returns a letter without its accent, if the result is a single letter with a single lower-case form.

    Otherwise returns the letter itself if it has a single lower-case form, or else `_`.
    """
    base = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return base if len(base) == 1 and len(base.lower()) == 1 else letter if len(letter.lower()) == 1 else "_"


def _variants(parts: Sequence[str]) -> set[str]:
    """Returns patterns of a phrase, with its last word unchanged, in the singular and in the plural."""
    if not parts:
        return set()
    *before, last = parts
    forms = {last}
    for rules in (SINGULARS, PLURALS):
        forms |= {re.sub(end, other, form) for form in forms for end, other in rules if re.search(end, form)}
    lasts = {form for form in forms if form == last or len(form) >= MIN_LETTERS}
    return {GAP.join([*map(re.escape, before), re.escape(form)]) for form in lasts}
