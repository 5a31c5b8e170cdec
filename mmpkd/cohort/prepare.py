"""Prepares a raw data set: decodes it once into a store, which all trainings read.

The store is built in the folder `<store>.partial`, which is renamed when the store is complete. A journal in that
folder lists the samples that are decoded, so that an interrupted preparation can continue. Only one process prepares a
store; a file lock makes other processes wait.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from filelock import FileLock
from rich.console import Console

from mmpkd.cohort import READERS, copies, questions, reader_for, splits
from mmpkd.cohort.decode import Depth
from mmpkd.cohort.disk import allocate, explain_full_disk, keep_rows
from mmpkd.cohort.facts import BadSample, Facts, Reader, Scan
from mmpkd.cohort.formats.bit_depths import DEPTHS, apply_contrast, contrast_options, find_depths, read_noted_depths
from mmpkd.cohort.journal import JOURNAL, decode_all, read_journal
from mmpkd.cohort.likeness import Pictures
from mmpkd.cohort.remarks import remarks
from mmpkd.cohort.source import describe_bad_samples, missing_files, refuse_bad_samples, scan_cohort, source_fingerprint
from mmpkd.cohort.store import MANIFEST, SCHEMA, STORES, Store, stored_facts
from mmpkd.cohort.stored_tables import write_tables
from mmpkd.cohort.suspects import Suspects, find_suspects
from mmpkd.config import CohortConfig, validate
from mmpkd.frames import Letterbox
from mmpkd.machine.checksums import fingerprint, of_files, sealed
from mmpkd.types import CohortError, SharedCache

WARNING: Final = "warning: "  # prefix of notes that are printed again whenever the store is opened
TABLES_BYTES = 4096  # rough size of a sample's rows in the tables and the journal, in bytes


def prepare(
    config: CohortConfig,
    cache: Path,
    depth: Depth | None = None,
    shared: SharedCache | None = None,
    folds: bool = True,
    notes: bool = True,
) -> Store:
    """Returns the store of a cohort under `cache/stores`, and prepares it first if there is none.

    Args:
        depth: Depth with which the images are converted to 8 bits. It is the Depth of another cohort when a student of
            that cohort is tested on this one. None derives the Depth from this cohort's images.
        shared: a cache that this machine shares with others, from which a store that lies there is copied.
        folds: whether the cohort is refused if its patients are too few for folds. If not, all of it is then one
            part, test, and nothing can be trained on it.
        notes: whether the store's notes are printed. The command `show` prints them itself.

    Raises:
        ConfigError: the reader is unknown, the root is missing, or the options do not fit.
        CohortError: the cohort cannot be prepared. For example, more samples cannot be used than `cohort.max_bad`
            allows, a task has only one class, or the disk is full.
    """
    reader = reader_for(config)
    scan = scan_cohort(config, reader)
    identity = store_identity(config, reader, scan, depth)
    split = None
    if not folds and not store_path(cache, identity).exists() and (split := splits.assign_if_possible(scan)) is None:
        scan = replace(scan, samples=scan.samples.assign(split="test"))
        identity = store_identity(config, reader, scan, depth, is_one_part=True)
    target = store_path(cache, identity)
    is_known = bool(shared and shared.fetch(f"{STORES}/{target.name}")) or target.exists()
    if not is_known:
        with _store_lock(target):
            if not target.exists():
                split = splits.assign(scan) if split is None else split
                _build_store(config, reader, scan, split, target, identity)
    store = Store.open(target)
    bad = {sample: BadSample(*why) for sample, why in store.manifest["left_out"].items()}
    try:
        refuse_bad_samples(bad, config, reader, scan)  # the store may date from a larger `max_bad`
    except CohortError as error:
        if num_readable := sum(_is_readable(reader, sample) for sample in bad):
            problem = f"{num_readable} of the samples that were left out of {target} can be read now"
            raise CohortError(f"{problem}: delete it (rm -r {target}) and it is prepared again\n{error}") from None
        raise
    noted = store.manifest["notes"] if notes else []
    if is_known:
        noted = [*(note for note in noted if note.startswith(WARNING)), *(_left_out(store) if notes else ())]
    _print_lines([*(_not_compared(store) if is_known else _summary(config, reader, scan, store, bad)), *noted])
    return store


def _left_out(store: Store) -> list[str]:
    if not (count := len(store.manifest["left_out"])):
        return []
    what = f"{count} sample{'s' * (count > 1)} left out, whose files cannot be read (cohort.max_bad)"
    return [f"{WARNING}{what}; python -m mmpkd.cohort show says why"]


def _not_compared(store: Store) -> list[str]:
    if store.is_compared:
        return []
    what = f"{store.path} is of an earlier version, which did not compare the images of different patients"
    return [f"{WARNING}{what}; delete it (rm -r {store.path}) and it is prepared again"]


def _is_readable(reader: Reader, sample: str) -> bool:
    try:
        reader.load(sample)
    except BadSample:
        return False
    return True


def store_identity(
    config: CohortConfig, reader: Reader, scan: Scan, depth: Depth | None = None, is_one_part: bool = False
) -> dict[str, Any]:
    """Returns everything that determines the content of a store, and a fingerprint of all of this."""
    identity = {
        "schema": SCHEMA,
        "reader": config.reader,
        "reader_version": reader.VERSION,
        "params": validate(READERS[config.reader].Params, config.params).model_dump(mode="json"),
        "image_size": config.image_size,
        "source": source_fingerprint(config.root, scan),
        **({} if depth is None else {"depth": depth}),
        **({"is_one_part": True} if is_one_part else {}),
        **({} if not (contrast := contrast_options(config)) else {"contrast": contrast}),
        **({"leave_out": sorted({str(row) for row in config.leave_out})} if config.leave_out else {}),
        **({} if config.parts is None else {"parts": config.parts, "sealed": config.sealed}),
    }
    return {**identity, "fingerprint": fingerprint(identity)}


def store_path(cache: Path, identity: Mapping[str, Any]) -> Path:
    """Returns the folder of the store with this identity. The folder need not exist."""
    return cache / STORES / f"{identity['reader']}-{identity['fingerprint']}"


@contextmanager
def _store_lock(target: Path) -> Iterator[None]:
    """Context manager that holds the lock of a store, so that only one process prepares the store while the others
    wait."""
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        where = target.parent.absolute()
        remedy = "put the cache elsewhere with cache=DIR"
        raise CohortError(f"cannot write to {where}: {error.strerror}; {remedy}") from None
    try:
        yield
    finally:
        lock.release()


def _build_store(
    config: CohortConfig, reader: Reader, scan: Scan, split: pd.Series, target: Path, identity: Mapping[str, Any]
) -> None:
    splits.check(split, scan.samples["patient"], scan.labels, scan.tasks)
    questions.check(scan.questions, split)
    refuse_bad_samples(missing_files(config.root, scan, config.allow_outside), config, reader, scan)
    size, ids = config.image_size, [str(sample) for sample in scan.samples.index]
    partial = target.with_name(f"{target.name}.partial")
    shape = (len(ids), scan.channels, size, size)
    names = ["images.npy", *(f"views/{view}.npy" for view in scan.views)]
    if not _can_continue(partial, names, shape):
        # Pixels without a journal, or a journal without pixels, cannot be used.
        partial.unlink() if partial.is_file() else shutil.rmtree(partial, ignore_errors=True)
    with explain_full_disk(partial, len(names) * int(np.prod(shape)) + TABLES_BYTES * len(ids)):
        partial.mkdir(exist_ok=True)
        arrays = [allocate(partial / name, shape) for name in names]
        depths = find_depths(partial, reader, scan.views, [sample for sample in ids if split[sample] != "test"] or ids)
        depths[0] = identity.get("depth") or apply_contrast(config, depths[0])
        bad = decode_all(reader, scan, partial, arrays, size, depths)
        try:
            refuse_bad_samples(bad, config, reader, scan)
            good = np.array([sample not in bad for sample in ids])
            if lost := sorted(set(split) - set(split[good])):
                raise CohortError(f"not one sample of part {', '.join(lost)} can be used; repair its files")
            splits.check(split[good], scan.samples["patient"][good], scan.labels[good], scan.tasks)
            entries = read_journal(partial)
            kept = [sample for sample, is_good in zip(ids, good, strict=True) if is_good]
            kept_entries = [entries[sample] for sample in kept]
            boxes = [Letterbox(entry.height, entry.width, size).content for entry in kept_entries]
            pictures = Pictures(arrays[0], np.flatnonzero(good), np.array(boxes, np.int64))
            hashes = pictures.hashes()
            samples = scan.samples.loc[kept]
            groups = copies.find(pictures, hashes, kept_entries, samples["patient"].to_numpy(dtype=object))
            copies.refuse(groups, samples, split[kept], config, not reader.credentialed)
        except CohortError:
            shutil.rmtree(partial)  # the user has to change the source, which changes the store's name
            raise
        write_tables(partial, scan, split, kept_entries, kept, boxes, hashes)
        facts = replace(_questions_about(scan, kept).facts(size, reader.credentialed), num_samples=len(kept))
        suspects = _find_suspects(scan, facts, split, kept)
        (partial / DEPTHS).unlink()
        # Rows move next, which makes the journal's rows wrong. If the process is killed now, all is decoded anew.
        (partial / JOURNAL).unlink()
        if bad:
            for name, array in zip(names, arrays, strict=True):
                keep_rows(partial / name, array, np.flatnonzero(good))
        manifest = {
            **identity,
            "facts": stored_facts(facts),
            "counts": _counts(scan, split, kept, sum(entry.num_empty for entry in entries.values())),
            "bit_depth": depths[0].bits,
            "is_stretched": any(entry.appearances[0].is_stretched for entry in kept_entries),
            "window": depths[0].window,
            "clahe": depths[0].clahe,
            "view_depths": dict(zip(scan.views, depths[1:], strict=True)),
            "left_out": {sample: (error.file, error.reason) for sample, error in bad.items()},
            "notes": [
                *scan.notes,
                *remarks(dict(zip(kept, kept_entries, strict=True)), scan, depths),
                *copies.warnings(groups, samples, not reader.credentialed),
            ],
            "probe": suspects.columns,
            "probe_pairs": suspects.pairs,
            "probe_sections": suspects.sections,
            "files": {
                file.relative_to(partial).as_posix(): file.stat().st_size
                for file in sorted(partial.rglob("*"))
                if file.suffix in (".npy", ".parquet")
            },
        }
        manifest["checksums"] = of_files(partial, manifest["files"])
        (partial / MANIFEST).write_text(sealed(manifest, indent=1))
        os.replace(partial, target)


def _questions_about(scan: Scan, kept: list[str]) -> Scan:
    return scan if scan.questions is None else replace(scan, questions=questions.about(scan.questions, kept))


def _can_continue(partial: Path, names: list[str], shape: tuple[int, ...]) -> bool:
    """Returns whether an interrupted preparation can continue.

    Its depths and its large files must still exist; some clusters delete old files from a scratch disk.
    """
    min_bytes = int(np.prod(shape))
    files = [partial / name for name in names]
    return bool(read_noted_depths(partial)) and all(file.exists() and file.stat().st_size > min_bytes for file in files)


def _find_suspects(scan: Scan, facts: Facts, split: pd.Series, kept: list[str]) -> Suspects:
    """Returns the columns and sections that give the labels away. Samples of the sealed test part are not used."""
    seen = [sample for sample in kept if split[sample] != "test"]
    text = None if scan.text is None else scan.text.loc[seen]
    return find_suspects(
        facts, scan.privileged.loc[seen], text, scan.labels.loc[seen], scan.samples["patient"].loc[seen]
    )


def _counts(scan: Scan, split: pd.Series, kept: list[str], num_empty: int) -> dict[str, Any]:
    labels = scan.labels.loc[kept]
    return {
        "samples": len(kept),
        "patients": int(scan.samples["patient"].loc[kept].nunique()),
        "parts": split[kept].value_counts().sort_index().to_dict(),
        "positive": {name: int(count) for name, count in labels.sum().items()},
        "unknown": {name: int(count) for name, count in labels.isna().sum().items()},
        "empty_masks": num_empty,
    }


def _summary(config: CohortConfig, reader: Reader, scan: Scan, store: Store, bad: Mapping[str, BadSample]) -> list[str]:
    """Returns what a new store holds and which samples it lacks, without the notes in its manifest."""
    counts, known = store.manifest["counts"], store.manifest["facts"].get("questions")
    held = f"{counts['samples']} samples of {counts['patients']} patients{questions.in_words(known)}"
    lines = [f"prepared {config.reader}: {held}"]
    if scan.unlisted:
        lines.append(f"columns without a role, not stored: {', '.join(scan.unlisted)}")
    if counts["empty_masks"]:
        lines.append(f"masks without a region (empty, or lacking their mask_value): {counts['empty_masks']}")
    return lines + [f"left out: {line}" for line in describe_bad_samples(bad, config, reader, scan)]


def _print_lines(lines: Iterable[str]) -> None:
    console = Console(file=sys.stderr, soft_wrap=True, markup=False, emoji=False)
    for line in lines:
        console.print(line, highlight=False)
