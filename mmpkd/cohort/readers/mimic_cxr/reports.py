"""Splits a MIMIC-CXR report into sections, by the rules of the data set's authors (MIT-LCP/mimic-cxr, txt/).

Each line of a report begins with a space and has at most 79 characters. A section begins with a header ` NAME: ` in
capitals after a line end, and ends before the next header. The many spellings of a section's name are replaced by one
standard name. If several sections have the same name, the last one counts, because addenda come first, above a line of
underscores. A report without findings and impression has a section `last_paragraph`.

There are three differences from the authors' code. The 54 studies with sections that the authors set by hand get no
special treatment. The header NDICATION (in one report) is an indication. Line breaks become blanks, because they carry
no information.
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
NUM_READERS = 8  # number of threads that read reports, because a network drive is slow with many small files
BLOCK = 100  # number of files that a thread gets at a time, because passing a single file takes longer than reading it


class Report(NamedTuple):
    """The requested sections of a report as text, by name. If the report cannot be read, `problem` says why."""

    sections: dict[str, str]
    problem: str = ""  # reason why the report cannot be used, without the name of a file or patient
    is_there: bool = True
    labels_from_findings: bool = False  # labels were read from the findings, for lack of an impression


def normal_name(name: str) -> str:
    """Returns the standard name of a section. An unknown name is returned in lower case."""
    name = name.lower().strip()
    if name in NAMES:
        return NAMES[name]
    for part in CONTAINED:
        if part in name:
            return part
    return "findings" if VIEWS.search(name) else name


def split_sections(text: str) -> dict[str, str]:
    """Returns the text of each section, by name. Runs of white space become single blanks.

    If several sections have the same name, the last one is returned. Empty sections are left out.
    """
    parts: list[tuple[str, str]] = []
    name, start, header = "preamble", 0, HEADER.search(text)
    while header:
        parts.append((name, text[start : header.start()]))
        name, start = normal_name(header[1]), header.end()
        # Text on the same line after a header is never a header itself. The authors have this rule against bad parses.
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
    """Reads report files and returns a Report with the requested sections for each file. A file that cannot be read
    raises no error; its Report states the problem.

    Args:
        files: paths relative to `root`.
        sections: standard names of the requested sections.
    """

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
