"""Recognises the format of a file that is not the expected table. It looks at the first bytes and quotes no cell."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

HEAD = 1 << 16  # number of bytes, from the start of a file, that are examined
MAGIC = {
    b"PK\x03\x04": "a spreadsheet (.xlsx) under another name; give it that suffix",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet (.xls); save it as .xlsx or as CSV",
    b"PAR1": "a Parquet file under another name; give it the suffix .parquet",
    b"\x1f\x8b": "a gzipped file under another name; give it the suffix .gz",
}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def recognise_format(path: Path) -> str:
    """Describes what a file seems to be instead of a comma-separated CSV in UTF-8, and how to convert it.

    The text is empty if no format is recognised. It is also empty if the path ends in .parquet or .xlsx, because such a
    file is not text.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".xlsx"):
        return ""
    try:
        with gzip.open(path) if suffix == ".gz" else path.open("rb") as file:
            head = file.read(HEAD)
    except (OSError, EOFError, zlib.error):
        return ""
    for magic, form in MAGIC.items():
        if head.startswith(magic):
            return f"seems to be {form}"
    encoding, encoding_words = _encoding(head)
    separator = _separator(head.decode(encoding, errors="ignore"))
    words = [encoding_words] * bool(encoding_words)
    words += [f"separated by {SEPARATORS[separator]} instead of commas"] if separator != "," else []
    if not words:
        return ""
    converted = f"{path.name.partition('.')[0]}-mended.csv"
    read = f"pandas.read_csv({path.name!r}, sep={separator!r}, encoding={encoding!r}, dtype=str, keep_default_na=False)"
    command = f'python -c "import pandas; {read}.to_csv({converted!r}, index=False)"'
    return f"seems to be {' and '.join(words)}; in its folder, {command} writes {converted} as it is wanted"


def _encoding(head: bytes) -> tuple[str, str]:
    """Returns Python's name of a text's encoding, and a description of the encoding, which is empty for UTF-8."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", "in UTF-16 instead of UTF-8"
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        return ("utf-16-be" if even > odd else "utf-16-le"), "in UTF-16 instead of UTF-8"
    try:
        head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a letter may be cut in two at the end of `head`
            return "cp1252", "in Windows-1252 or latin-1 instead of UTF-8"
    return "utf-8-sig", ""


def _separator(text: str) -> str:
    """Returns the separator of the header: the known separator that occurs most often outside of quotes."""
    header = "".join((text.splitlines() or [""])[0].split('"')[::2])
    return max((",", *SEPARATORS), key=header.count)
