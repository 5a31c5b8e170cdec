"""Writes the tables of a store, which `store.py` describes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pandas as pd

from mmpkd.cohort import questions
from mmpkd.cohort.facts import ADMITTED, Scan
from mmpkd.cohort.journal import Entry
from mmpkd.cohort.likeness import Hashes
from mmpkd.cohort.store import BOX, HASH, LABEL, PRIVILEGED
from mmpkd.frames import Box


def write_tables(
    partial: Path,
    scan: Scan,
    split: pd.Series,
    entries: list[Entry],
    kept: list[str],
    boxes: list[Box],
    hashes: Hashes,
) -> None:
    """Writes `samples.parquet`, `text.parquet`, `questions.parquet` and `rois.parquet` of a store.

    Args:
        partial: the folder of the store.
        split: the part of each sample of the scan.
        entries: the journal's entries of the samples `kept`, which the store holds.
        boxes: the place of each of their images in its square.
        hashes: the perceptual hashes of their images.
    """
    geometry = pd.DataFrame(
        [(entry.height, entry.width, *box) for entry, box in zip(entries, boxes, strict=True)],
        index=kept,
        columns=["height", "width", *BOX],
    )
    samples = scan.samples.loc[kept].assign(
        split=split[kept], patient=scan.samples["patient"].astype(str)[kept], **{HASH: hashes}
    )
    labels, privileged = scan.labels.loc[kept], scan.privileged.loc[kept]
    stored = {column.name for column in scan.columns.values() if column.role in (*ADMITTED, "near_label")}
    forbidden = set(privileged) - stored
    assert not forbidden, f"the reader handed over columns that must not be stored: {forbidden}"
    table = pd.concat([samples, geometry, labels.add_prefix(LABEL), privileged.add_prefix(PRIVILEGED)], axis=1)
    _write_parquet(partial / "samples.parquet", table.rename_axis("sample").reset_index())
    if scan.text is not None:
        _write_parquet(partial / "text.parquet", scan.text.loc[kept].rename_axis("sample").reset_index())
    if scan.questions is not None:
        _write_parquet(partial / "questions.parquet", questions.about(scan.questions, kept)[list(questions.COLUMNS)])
    if scan.roi_labels:
        rois = [
            (sample, roi.label, entry.height, entry.width, roi.runs, roi.store_runs)
            for sample, entry in zip(kept, entries, strict=True)
            for roi in entry.rois
        ]
        columns = ["sample", "label", "height", "width", "runs", "store_runs"]
        _write_parquet(partial / "rois.parquet", pd.DataFrame(rois, columns=columns))


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as Parquet. It is encoded in memory first, because writing the bytes with Python raises an OSError
    with the error number of a full disk."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    path.write_bytes(buffer.getvalue())
