"""Checks the raw files of a cohort: finds missing files, computes the fingerprint, and reports unusable samples."""

from __future__ import annotations

import functools
import hashlib
import math
import os.path
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mmpkd.cohort import identities, questions, splits
from mmpkd.cohort.facts import BadSample, Reader, Scan
from mmpkd.cohort.spelling import normalise_name
from mmpkd.config import CohortConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.types import CohortError, ConfigError

MOST_LEFT_OUT = 0.5  # share of questions; a cohort that loses more of them is refused, unless `max_bad` allows more
NUM_SHOWN = 10  # maximum number of bad samples that a message lists
SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
OUTSIDE = "leads out of cohort.root"  # the reason of a BadSample


def scan_cohort(config: CohortConfig, reader: Reader) -> Scan:
    """Returns a reader's scan without the samples of `cohort.leave_out`, with warnings about misspelt names, and with
    the parts of `cohort.parts`.

    Raises:
        ConfigError: options do not fit the reader's tables, set a window or CLAHE for images in colour, leave out rows
            that do not exist, or ask for parts that cannot be dealt.
        CohortError: tables are missing or not as published, most questions cannot be used, or
            `identities.refuse_patients` refused patients' names.
    """
    scan = reader.scan()
    _refuse_loss_of_questions(scan, config)
    scan = _leave_out(scan, config.leave_out)
    for name, option in (("window", config.window), ("clahe", config.clahe)):
        if option is not None and scan.channels != 1:
            problem = f"is of grey images, and this cohort's have {scan.channels} channels: leave it out"
            raise ConfigError.at(f"cohort.{name}", problem)
    identities.refuse_patients(scan, config.reader, not reader.credentialed)
    scan = replace(scan, notes=(*scan.notes, *identities.warnings(scan, not reader.credentialed)))
    if config.parts is not None:
        return replace(scan, samples=scan.samples.assign(split=splits.deal_parts(scan, config.parts, config.sealed)))
    if config.sealed is not None:
        raise ConfigError.at("cohort.sealed", "is the index of a part, and needs cohort.parts, their number")
    return scan


def _refuse_loss_of_questions(scan: Scan, config: CohortConfig) -> None:
    """Raises CohortError if more than half of the questions cannot be used, and more than `cohort.max_bad` allows."""
    if scan.share_left_out <= max(MOST_LEFT_OUT, config.max_bad):
        return
    lines = [note.removeprefix("warning: ") for note in scan.notes]
    remedy = (
        f"Mend what they count, or go on without these questions with cohort.max_bad={_enough(scan.share_left_out)}"
    )
    problem = f"cohort {config.reader}: more than half of the questions cannot be used"
    raise CohortError("\n".join([problem, *(f"  {line}" for line in lines), remedy]))


def _enough(share: float) -> str:
    """Returns the least value of `cohort.max_bad`, in steps of 0.001, that allows a share."""
    return f"{min(1.0, math.ceil(share * 1000) / 1000):g}"


def _leave_out(scan: Scan, leave_out: Sequence[int | str]) -> Scan:
    """Returns a scan without the samples of some rows. If the scan states no rows, they are positions, from 1."""
    if not leave_out:
        return scan
    positions = pd.Series(range(1, len(scan.samples) + 1), index=scan.samples.index)
    rows = scan.samples.get("row", positions)
    names = rows.astype(str)
    if unknown := sorted({str(row) for row in leave_out} - set(names)):
        problem = f"no sample comes from row {', '.join(unknown[:NUM_SHOWN])}"
        raise ConfigError.at("cohort.leave_out", f"{problem}; list rows as the messages about this cohort name them")
    is_kept = ~names.isin({str(row) for row in leave_out})
    if not is_kept.any():
        raise ConfigError.at("cohort.leave_out", "leaves no sample: list fewer rows")
    kept = scan.samples.index[is_kept]
    note = f"left out, as cohort.leave_out says: {len(scan.samples) - len(kept)} of {len(scan.samples)} samples"
    return replace(
        scan,
        samples=scan.samples.assign(row=rows).loc[kept],
        labels=scan.labels.loc[kept],
        privileged=scan.privileged.loc[kept],
        text=None if scan.text is None else scan.text.loc[kept],
        questions=None if scan.questions is None else questions.about(scan.questions, kept),
        files={sample: files for sample, files in scan.files.items() if is_kept[sample]},
        notes=(*scan.notes, note),
    )


def source_fingerprint(root: Path | None, scan: Scan) -> str:
    """Returns a hash of the files' relative paths and sizes and of the tables' contents.

    The hash does not depend on the place of the root folder.
    """
    assert root is not None or not (scan.files or scan.tables), "a generated cohort has no files"
    if root is None:
        return fingerprint({})
    sizes = {file: _size(root / file) for files in scan.files.values() for file in files}
    tables = {table: hashlib.sha256((root / table).read_bytes()).hexdigest() for table in scan.tables}
    return fingerprint({"sizes": sizes, "tables": tables})


def missing_files(root: Path | None, scan: Scan, allow_outside: bool = False) -> dict[str, BadSample]:
    """Returns the error of each sample that lacks a file or has a file outside the root, by sample id.

    A path leads outside the root by `..`, by a link, or because it is absolute. With `allow_outside` it may do so.
    """
    missing: dict[str, BadSample] = {}
    if root is None:
        return missing
    inside = functools.cache(functools.partial(_is_inside, os.path.realpath(root)))
    listing = functools.cache(_list_folder)
    for sample, files in scan.files.items():
        for file in files:
            path = root / file
            if not os.path.isfile(path):  # for a name that is too long, Path.is_file would raise an error with the path
                hint = _hint(root, file, listing) if allow_outside or inside(path.parent) else ""
                missing[sample] = BadSample(file, f"no such file{hint}")
            elif not allow_outside and (not inside(path.parent) or (os.path.islink(path) and not inside(path))):
                missing[sample] = BadSample(file, OUTSIDE)
            else:
                continue
            break
    return missing


def _is_inside(root: str, path: Path) -> bool:
    """Returns whether a path lies under the root once all symbolic links are resolved."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(root)
    except ValueError:  # a name with a null character
        return False


def _list_folder(folder: Path) -> frozenset[str]:
    """Returns the names of the files and folders in a folder, or no names if the folder cannot be read."""
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):
        return frozenset()


def _hint(root: Path, file: str, listing: Callable[[Path], frozenset[str]]) -> str:
    """Describes what exists in place of a missing file. The text names no file, because file names may carry patient
    identities."""
    if "\\" in file:
        exists = _size(root / file.replace("\\", "/")) is not None
        return f"; its path has backslashes, {'and with slashes it is there' if exists else 'slashes are wanted'}"
    path = root / file
    names = listing(path.parent)
    if not names:
        return "; its folder is not there, or empty"
    if path.name in names:
        return (
            "; it is a folder" if path.is_dir() else "; it is a link to what is not there" if path.is_symlink() else ""
        )
    if normalise_name(path.name) in set(map(normalise_name, names)):
        return "; there is one that differs only in case, in blanks or in how its letters are encoded"
    stem = next((path.name[: -len(suffix)] for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.name)
    others = [suffix for suffix in SUFFIXES for name in (stem + suffix, stem + suffix.upper()) if name in names]
    if others and stem == path.name:
        return f"; there is one that ends in {others[0]}: is the extension missing?"
    return f"; there is one that ends in {others[0]} instead" if others else ""


def refuse_bad_samples(bad: Mapping[str, BadSample], config: CohortConfig, reader: Reader, scan: Scan) -> None:
    """Checks that the share of samples that cannot be used is at most `cohort.max_bad`.

    Raises:
        CohortError: the share is larger. The message lists the first bad samples and says what to do.
    """
    share = len(bad) / max(1, len(scan.samples))
    if share <= config.max_bad:
        return
    lines = [f"  {line}" for line in describe_bad_samples(bad, config, reader, scan)[:NUM_SHOWN]]
    if len(bad) > NUM_SHOWN:
        lines.append(f"  and {len(bad) - NUM_SHOWN} more")
    remedy = (
        f"Repair these files, remove their rows from the source, or leave them out with cohort.max_bad={_enough(share)}"
    )
    if share == 1:
        remedy = (
            f"Not one can be used: look at cohort.root={config.root} and at the folders and columns in cohort.params"
        )
    if any(sample.reason == OUTSIDE for sample in bad.values()):
        allowed = "links and paths may lead out with cohort.allow_outside=true"
        remedy = f"If they are the files that are meant, {allowed}. {remedy}"
    if reader.credentialed and "credentialed" in type(reader).Params.model_fields:
        remedy += ". Of public data, cohort.params.credentialed=false shows which files these are"
    raise CohortError(
        f"cohort {config.reader}: {len(bad)} of {len(scan.samples)} samples cannot be used "
        f"(cohort.max_bad={config.max_bad:g} allows {int(config.max_bad * len(scan.samples))})\n"
        + "\n".join(lines)
        + f"\n{remedy}"
    )


def describe_bad_samples(bad: Mapping[str, BadSample], config: CohortConfig, reader: Reader, scan: Scan) -> list[str]:
    """Returns a line for each bad sample, in the order of the samples. It states the reason and the file. If the cohort
    is credentialed, it states the row instead, and the column of a file other than the image."""
    lines = []
    for position, sample in enumerate(scan.samples.index):
        if sample in bad:
            error = bad[sample]
            row = scan.samples["row"].iloc[position] if "row" in scan.samples else position + 1
            column = reader.column_of(str(sample), error.file)
            place = f"row {row}" + ("" if column is None else f", column {column!r}")
            if not reader.credentialed:
                place = str((config.root or Path()) / (error.file or sample))
            lines.append(f"{place}: {error.reason}")
    return lines


def _size(path: Path) -> int | None:
    """Returns the size of a file in bytes, or None if the file is missing. `missing_files` reports missing files."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None
