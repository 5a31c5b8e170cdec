"""Chooses the reader of a cohort's raw data set, and reads the facts about a cohort from its tables alone."""

from __future__ import annotations

from mmpkd.cohort import questions
from mmpkd.cohort.facts import Facts, Reader
from mmpkd.cohort.readers.breast_lesions_usg import BreastLesionsUsg
from mmpkd.cohort.readers.cbis_ddsm.reader import CbisDdsm
from mmpkd.cohort.readers.chexlocalize import Chexlocalize
from mmpkd.cohort.readers.derm7pt.reader import Derm7pt
from mmpkd.cohort.readers.mimic_cxr.reader import MimicCxr
from mmpkd.cohort.readers.questions.med_grit import MedGrit
from mmpkd.cohort.readers.questions.vqa import Vqa
from mmpkd.cohort.readers.radpath import RadPath
from mmpkd.cohort.readers.synthetic import Synthetic
from mmpkd.cohort.readers.synthetic_vqa import SyntheticVqa
from mmpkd.cohort.readers.table.reader import Table
from mmpkd.cohort.source import missing_files, refuse_bad_samples, scan_cohort
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
    "synthetic_vqa": SyntheticVqa,
    "med_grit": MedGrit,
    "vqa": Vqa,
}


def reader_for(config: CohortConfig) -> Reader:
    """Returns the reader that a configuration names, with its options.

    Raises:
        ConfigError: `cohort.reader`, `cohort.root` or `cohort.params` has mistakes. The error lists all mistakes at
            once, unless the reader is unknown.
    """
    if config.reader not in READERS:
        raise ConfigError.at("cohort.reader", f"unknown reader {config.reader!r}{near(config.reader, READERS)}")
    reader = READERS[config.reader]
    errors = []
    root = config.root
    if not reader.needs_root and root is not None:
        errors.append(ConfigError.at("cohort.root", f"reader {config.reader!r} generates its data; leave it out"))
    if reader.needs_root and root is None:
        problem = f"missing: reader {config.reader!r} reads a data set on disk; say where with cohort.root=DIR"
        errors.append(ConfigError.at("cohort.root", problem))
    if reader.needs_root and root is not None and not root.is_dir():
        problem = "is not a folder" if root.exists() else "no such folder"
        errors.append(ConfigError.at("cohort.root", f"{problem}: {root.absolute()}; say where with cohort.root=DIR"))
    try:
        params = validate(reader.Params, config.params, "cohort.params")
    except ConfigError as error:
        errors.append(error)
    if errors:
        raise ConfigError([mistake for error in errors for mistake in error.mistakes])
    instance = reader(root, params)
    instance.allow_outside = config.allow_outside
    return instance


def facts(config: CohortConfig) -> Facts:
    """Returns the facts of a cohort from its tables alone. It checks that image files exist, but does not read them.

    Raises:
        ConfigError: the reader is unknown, the root is missing, or the options do not fit.
        CohortError: the tables are not as published, more samples lack files than `cohort.max_bad` allows, a task has
            only one class, or the cohort has no fold with the number `cohort.fold`.
    """
    reader = reader_for(config)
    scan = scan_cohort(config, reader)
    refuse_bad_samples(missing_files(config.root, scan, config.allow_outside), config, reader, scan)
    check_classes("the whole cohort", scan.labels, scan.tasks)
    questions.check(scan.questions, scan.samples.get("split"))
    refuse_fold(config.fold, num_folds(scan.samples.get("split")))
    return scan.facts(config.image_size, reader.credentialed)
