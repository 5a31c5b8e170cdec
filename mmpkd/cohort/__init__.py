"""Raw data sets on disk, and the readers that know them."""

from __future__ import annotations

from mmpkd.cohort.facts import Facts, Reader
from mmpkd.cohort.readers.breast_lesions_usg import BreastLesionsUsg
from mmpkd.cohort.readers.cbis_ddsm.reader import CbisDdsm
from mmpkd.cohort.readers.chexlocalize import Chexlocalize
from mmpkd.cohort.readers.derm7pt.reader import Derm7pt
from mmpkd.cohort.readers.mimic_cxr.reader import MimicCxr
from mmpkd.cohort.readers.radpath import RadPath
from mmpkd.cohort.readers.synthetic import Synthetic
from mmpkd.cohort.readers.table.reader import Table
from mmpkd.cohort.source import missing_files, refuse_bad, scanned
from mmpkd.cohort.splits import check_classes, num_folds, refuse_fold
from mmpkd.config import CohortConfig, validate
from mmpkd.near_names import near
from mmpkd.types import ConfigError

READERS: dict[str, type[Reader]] = {
    "synthetic": Synthetic,
    "table": Table,
    "breast_lesions_usg": BreastLesionsUsg,
    "cbis_ddsm": CbisDdsm,
    "mimic_cxr": MimicCxr,
    "chexlocalize": Chexlocalize,
    "derm7pt": Derm7pt,
    "radpath": RadPath,
}


def reader_for(config: CohortConfig) -> Reader:
    """The reader a configuration names, with its options.

    Raises:
        ConfigError: `cohort.reader`, `cohort.root` and `cohort.params`, all at once where possible.
    """
    if config.reader not in READERS:
        raise ConfigError.at("cohort.reader", f"unknown reader {config.reader!r}{near(config.reader, READERS)}")
    reader = READERS[config.reader]
    mistakes = []
    root = config.root
    if not reader.needs_root and root is not None:
        mistakes.append(ConfigError.at("cohort.root", f"reader {config.reader!r} generates its data; leave it out"))
    if reader.needs_root and root is None:
        wanted = f"missing: reader {config.reader!r} reads a data set on disk; say where with cohort.root=DIR"
        mistakes.append(ConfigError.at("cohort.root", wanted))
    if reader.needs_root and root is not None and not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        mistakes.append(ConfigError.at("cohort.root", f"{what}: {root.absolute()}; say where with cohort.root=DIR"))
    try:
        params = validate(reader.Params, config.params, "cohort.params")
    except ConfigError as error:
        mistakes.append(error)
    if mistakes:
        raise ConfigError([one for mistake in mistakes for one in mistake.mistakes])
    made = reader(root, params)
    made.allow_outside = config.allow_outside
    return made


def facts(config: CohortConfig) -> Facts:
    """A cohort in outline, from its tables alone; files are looked for, not read.

    Raises:
        ConfigError: unknown reader, no root, options that do not fit.
        CohortError: tables not as published, missing files, a task with one class, no such fold.
    """
    reader = reader_for(config)
    scan = scanned(config, reader)
    refuse_bad(missing_files(config.root, scan, config.allow_outside), config, reader, scan)
    check_classes("the whole cohort", scan.labels, scan.tasks)
    refuse_fold(config.fold, num_folds(scan.samples.get("split")))
    return scan.facts(config.image_size, reader.credentialed)
