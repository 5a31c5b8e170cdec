"""The raw files: which there are, what identifies them, and what to say when some cannot be used."""

from __future__ import annotations

import functools
import hashlib
import math
import os.path
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mmpkd.cohort import identities
from mmpkd.cohort.facts import BadSample, Reader, Scan
from mmpkd.cohort.spelling import folded
from mmpkd.config import CohortConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.types import CohortError, ConfigError

NUM_SHOWN = 10  # bad samples named in a message
SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
OUTSIDE = "leads out of cohort.root"


def scanned(config: CohortConfig, reader: Reader) -> Scan:
    """What a reader's tables say, with a note where names may be misspelt.

    Raises:
        ConfigError, CohortError: as the reader raises them; or a patient is spelt in several ways; or a
            window or CLAHE is asked for of images in colour.
    """
    scan = reader.scan()
    for name, option in (("window", config.window), ("clahe", config.clahe)):
        if option is not None and scan.channels != 1:
            what = f"is of grey images, and this cohort's have {scan.channels} channels: leave it out"
            raise ConfigError.at(f"cohort.{name}", what)
    identities.refuse_patients(scan, config.reader, not reader.credentialed)
    return replace(scan, notes=(*scan.notes, *identities.warnings(scan, not reader.credentialed)))


def source_fingerprint(root: Path | None, scan: Scan) -> str:
    """Hash of relative paths and sizes, and of the contents of tables; where the root lies does not count."""
    assert root is not None or not (scan.files or scan.tables), "a generated cohort has no files"
    if root is None:
        return fingerprint({})
    sizes = {file: _size(root / file) for files in scan.files.values() for file in files}
    tables = {table: hashlib.sha256((root / table).read_bytes()).hexdigest() for table in scan.tables}
    return fingerprint({"sizes": sizes, "tables": tables})


def missing_files(root: Path | None, scan: Scan, allow_outside: bool = False) -> dict[str, BadSample]:
    """Samples that lack a file, or one of whose files lies outside the root, by `..`, a link or an absolute path."""
    lacking: dict[str, BadSample] = {}
    if root is None:
        return lacking
    inside = functools.cache(functools.partial(_is_inside, os.path.realpath(root)))
    listing = functools.cache(_listing)
    for sample, files in scan.files.items():
        for file in files:
            path = root / file
            if not os.path.isfile(path):  # Path.is_file raises, with the path, at a name too long
                hint = _nearest(root, file, listing) if allow_outside or inside(path.parent) else ""
                lacking[sample] = BadSample(file, f"no such file{hint}")
            elif not allow_outside and (not inside(path.parent) or (os.path.islink(path) and not inside(path))):
                lacking[sample] = BadSample(file, OUTSIDE)
            else:
                continue
            break
    return lacking


def _is_inside(root: str, path: Path) -> bool:
    """Whether it is under the root, once all links are followed."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(root)
    except ValueError:  # a name with a null character
        return False


def _listing(folder: Path) -> frozenset[str]:
    """The names in a folder; none where it cannot be read."""
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):
        return frozenset()


def _nearest(root: Path, file: str, listing: Callable[[Path], frozenset[str]]) -> str:
    """What is there instead of a file that is not, without a name: names may carry patients' identities."""
    if "\\" in file:
        is_there = _size(root / file.replace("\\", "/")) is not None
        return f"; its path has backslashes, {'and with slashes it is there' if is_there else 'slashes are wanted'}"
    path = root / file
    names = listing(path.parent)
    if not names:
        return "; its folder is not there, or empty"
    if path.name in names:
        return (
            "; it is a folder" if path.is_dir() else "; it is a link to what is not there" if path.is_symlink() else ""
        )
    if folded(path.name) in set(map(folded, names)):
        return "; there is one that differs only in case, in blanks or in how its letters are encoded"
    stem = next((path.name[: -len(end)] for end in SUFFIXES if path.name.lower().endswith(end)), path.name)
    others = [end for end in SUFFIXES for name in (stem + end, stem + end.upper()) if name in names]
    if others and stem == path.name:
        return f"; there is one that ends in {others[0]}: is the extension missing?"
    return f"; there is one that ends in {others[0]} instead" if others else ""


def refuse_bad(bad: Mapping[str, BadSample], config: CohortConfig, reader: Reader, scan: Scan) -> None:
    """Refuse a cohort of which more than `cohort.max_bad` cannot be used.

    Raises:
        CohortError: lists the first of them, and the mend.
    """
    share = len(bad) / max(1, len(scan.samples))
    if share <= config.max_bad:
        return
    lines = [f"  {line}" for line in descriptions(bad, config, reader, scan)[:NUM_SHOWN]]
    if len(bad) > NUM_SHOWN:
        lines.append(f"  and {len(bad) - NUM_SHOWN} more")
    enough = min(1.0, math.ceil(share * 1000) / 1000)
    mend = f"Mend these files or take their rows out of the source, or leave them out with cohort.max_bad={enough:g}"
    if share == 1:
        mend = f"Not one can be used: look at cohort.root={config.root} and at the folders and columns in cohort.params"
    if any(sample.reason == OUTSIDE for sample in bad.values()):
        mend = (
            f"If they are the files that are meant, links and paths may lead out with cohort.allow_outside=true. {mend}"
        )
    if reader.credentialed and "credentialed" in type(reader).Params.model_fields:
        mend += ". Of public data, cohort.params.credentialed=false shows which files these are"
    raise CohortError(
        f"cohort {config.reader}: {len(bad)} of {len(scan.samples)} samples cannot be used "
        f"(cohort.max_bad={config.max_bad:g} allows {int(config.max_bad * len(scan.samples))})\n"
        + "\n".join(lines)
        + f"\n{mend}"
    )


def descriptions(bad: Mapping[str, BadSample], config: CohortConfig, reader: Reader, scan: Scan) -> list[str]:
    """One line each, in the order of the samples: the file, or of a credentialed cohort the row; and why."""
    lines = []
    for position, sample in enumerate(scan.samples.index):
        if sample in bad:
            one = bad[sample]
            row = scan.samples["row"].iloc[position] if "row" in scan.samples else position + 1
            place = f"row {row}" if reader.credentialed else str((config.root or Path()) / (one.file or sample))
            lines.append(f"{place}: {one.reason}")
    return lines


def _size(path: Path) -> int | None:
    """Bytes; None if it is not there, which is for `missing_files` to tell."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None
