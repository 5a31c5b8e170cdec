"""The sections of a MIMIC-CXR report, by the rules of the data set's authors (MIT-LCP/mimic-cxr, txt/).

A report is lines of up to 79 characters, each begun by one space. A section begins at a line ` NAME: ` in capitals,
after a line end, and goes on to the next one. Names have many spellings: they are brought to one. Of several sections
of a name the last one counts (addenda come first, above a line of underscores). A report without findings and
impression has a `last_paragraph`.

Differs from the authors' code: the 54 studies whose sections they set by hand get none of that; NDICATION
(one report) is an indication; line breaks become blanks, as they carry nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

Section = Literal["findings", "indication", "history", "comparison", "technique", "examination"]
NearLabel = Literal["impression", "last_paragraph"]

HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
VIEWS = re.compile(
    "chest|portable|(pa|ap) and lateral|lateral and (pa|ap)|pa and lat|frontal (and|view|upright|semi-upright)"
    "|(one|pa|ap|lateral) view|two views|bone window|ribs"
)
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")  # in this order
SPELLINGS = {
    "impression": "conclusion|findings/impression|findings/ impression|findings and impression|impresson|imprression"
    "|imoression|impressoin|imprssion|impresion|imperssion|mpression|impession",
    "findings": "finding|findins|findindgs|findgings|findngs|findnings|finidngs|reference findings|chest, two views",
    "comparison": "comparisons|reference exam|comparison exam|comparison film|comparision|comparsion|comparrison"
    "|comparisions",
    "indication": "reason for examination|reason for exam|clinical indication|idication|ndication",
    "history": "clinical history|clinical information|patient history|pfi",
    "examination": "exam|type of examination",
    "technique": "",
    "preamble": "",
    "notification": "",
    "date": "",
    "comment": "",
    "wet read": "wetread",
    "recommendations": "recommendation|recommendation(s)",
}
NAMES = {spelt: name for name, others in SPELLINGS.items() for spelt in (name, *others.split("|")) if spelt}
NUM_READERS = 8  # threads: many small files, which a network drive answers slowly
BLOCK = 100  # files a thread reads at a time: handing over single ones takes longer than reading them


class Report(NamedTuple):
    """A report as far as it was asked for: text by section, or why there is none."""

    sections: dict[str, str]
    problem: str = ""  # names no file and no patient
    is_there: bool = True
    labels_from_findings: bool = False  # there is no impression, which the labels are read from else


def normal_name(name: str) -> str:
    """The one name of a section; a name that is none of the known ones stays, in lower case."""
    name = name.lower().strip()
    if name in NAMES:
        return NAMES[name]
    for one in CONTAINED:
        if one in name:
            return one
    return "findings" if VIEWS.search(name) else name


def split_sections(text: str) -> dict[str, str]:
    """Text by section, the last of each name, with single blanks; empty ones are left out."""
    parts: list[tuple[str, str]] = []
    name, start, header = "preamble", 0, HEADER.search(text)
    while header:
        parts.append((name, text[start : header.start()]))
        name, start = normal_name(header[1]), header.end()
        # The rest of a header's own line is never a header: this avoids bad parses, say the authors.
        header = HEADER.search(text, max(start, text.find("\n", start)))
    parts.append((name if parts else "full report", text[start:]))
    parts = [(name, part) for name, part in parts if part.strip() or name not in ("impression", "findings")]
    if parts and not {"impression", "findings"} & {name for name, _ in parts}:
        name, part = parts.pop()
        first, blank_line, rest = part.partition("\n \n")
        parts += [(name, first), ("last_paragraph", rest)] if blank_line else [(name, part)]
    tidy = {name: " ".join(part.split()) for name, part in parts}
    return {name: part for name, part in tidy.items() if part}


def read_reports(root: Path, files: Sequence[str], sections: Sequence[str]) -> list[Report]:
    """A report per file, these relative to `root`, with the sections asked for; never raises for a file."""

    def read(file: str) -> Report:
        try:
            found = split_sections((root / file).read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
        except FileNotFoundError:
            return Report({}, is_there=False)
        except UnicodeDecodeError:
            return Report({}, "its report is not UTF-8 text")
        except OSError as error:
            return Report({}, f"its report cannot be read: {error.strerror}")
        is_mined = "findings" in found and "impression" not in found
        return Report({name: found[name] for name in sections if name in found}, labels_from_findings=is_mined)

    blocks = [files[start : start + BLOCK] for start in range(0, len(files), BLOCK)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return [one for block in pool.map(lambda block: [read(file) for file in block], blocks) for one in block]
