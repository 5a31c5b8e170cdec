"""Splits a MIMIC-CXR report into sections, by the rules of the data set's authors (MIT-LCP/mimic-cxr, txt/).

A report consists of lines of up to 79 characters, each of which begins with a space. A section begins at a line
` NAME: ` in capitals, after a line end, and ends at the next one. The many spellings of a name become one. Of several
sections with the same name the last one counts (addenda come first, above a line of underscores). A report without
findings and impression has a `last_paragraph`.

Differences from the authors' code: the 54 studies whose sections they set by hand get no special treatment; NDICATION
(one report) is an indication; line breaks become blanks, because they carry no information.
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
NUM_READERS = 8  # threads, because a network drive is slow with many small files
BLOCK = 100  # files that a thread reads at a time, because passing single files takes longer than reading them


class Report(NamedTuple):
    """The requested sections of a report as text by name, or the reason why there are none."""

    sections: dict[str, str]
    problem: str = ""  # names no file and no patient
    is_there: bool = True
    labels_from_findings: bool = False  # there is no impression, so the labels were read from the findings


def normal_name(name: str) -> str:
    """Returns the standard name of a section; an unknown name is returned in lower case."""
    name = name.lower().strip()
    if name in NAMES:
        return NAMES[name]
    for part in CONTAINED:
        if part in name:
            return part
    return "findings" if VIEWS.search(name) else name


def split_sections(text: str) -> dict[str, str]:
    """Returns the text of each section with single blanks: the last one of each name; empty ones are left out."""
    parts: list[tuple[str, str]] = []
    name, start, header = "preamble", 0, HEADER.search(text)
    while header:
        parts.append((name, text[start : header.start()]))
        name, start = normal_name(header[1]), header.end()
        # Text after a header on the same line is never a header; the authors do this to avoid bad parses.
        header = HEADER.search(text, max(start, text.find("\n", start)))
    parts.append((name if parts else "full report", text[start:]))
    parts = [(name, part) for name, part in parts if part.strip() or name not in ("impression", "findings")]
    if parts and not {"impression", "findings"} & {name for name, _ in parts}:
        name, part = parts.pop()
        first, blank_line, last = part.partition("\n \n")
        parts += [(name, first), ("last_paragraph", last)] if blank_line else [(name, part)]
    tidy = {name: " ".join(part.split()) for name, part in parts}
    return {name: part for name, part in tidy.items() if part}


def read_reports(root: Path, files: Sequence[str], sections: Sequence[str]) -> list[Report]:
    """Returns a report with the requested sections for each file, relative to `root`; never raises for a file."""

    def read(file: str) -> Report:
        try:
            texts = split_sections((root / file).read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
        except FileNotFoundError:
            return Report({}, is_there=False)
        except UnicodeDecodeError:
            return Report({}, "its report is not UTF-8 text")
        except OSError as error:
            return Report({}, f"its report cannot be read: {error.strerror}")
        is_mined = "findings" in texts and "impression" not in texts
        return Report({name: texts[name] for name in sections if name in texts}, labels_from_findings=is_mined)

    blocks = [files[start : start + BLOCK] for start in range(0, len(files), BLOCK)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        read_blocks = pool.map(lambda block: [read(file) for file in block], blocks)
        return [report for reports in read_blocks for report in reports]
