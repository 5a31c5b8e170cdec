"""Reads MIMIC-CXR-JPG 2.1.0, chest radiographs, and optionally the reports of MIMIC-CXR and the boxes of MS-CXR.

Source: PhysioNet, doi 10.13026/jsn5-t979; Johnson et al., arXiv 1901.07042. The data are credentialed, so messages name
rows. There are 377,110 images of 227,835 studies of 65,379 patients, and one multi-label task, `findings`. All paths
are under the root: `files/p10/p10000032/s50414267/<dicom_id>.jpg`, and
`mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz` or `.csv`.

- Labels belong to a study. A program read them from the study's report: from the impression or, if the report has no
  impression (12.5 %), from the findings. Therefore the impression and the last paragraph are near-label sections. In a
  report without an impression, even the findings are the source of the labels; a note counts such reports.
- A finding that is not mentioned is not the same as a negated one, and -1 means uncertain (see `decide_labels`). A
  study without any label stays unknown.
- Patients of MS-CXR are never in the training part, regardless of their official part and of MS-CXR's own `split`.
- The option `views` calls an empty ViewPosition `unstated`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import field_validator, model_validator

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import BadSample, Column, RawImage, Reader, Scan, label_columns
from mmpkd.cohort.formats.tables import FIRST_ROW, refuse_rows
from mmpkd.cohort.readers.mimic_cxr.boxes import BOXED, Box, boxes_by_image, draw, held_out_part, read_boxes
from mmpkd.cohort.readers.mimic_cxr.reports import NearLabel, Section, read_reports
from mmpkd.cohort.readers.mimic_cxr.tables import (
    FINDINGS,
    METADATA,
    SPLIT,
    Finding,
    Policy,
    count_images,
    decide_labels,
    describe_differences,
    find_table,
    label_images,
    read_ids,
)
from mmpkd.near_names import near
from mmpkd.types import CohortError, ConfigError, Strict, lay_out

PARTS = {"train": "train", "validate": "val", "test": "test"}
UNSTATED = "unstated"
VIEWS = ("AP", "PA", "LATERAL", "LL", UNSTATED)  # the common values; any other value of the table may be named as well
CONTEXT = (
    "ViewPosition",
    "PerformedProcedureStepDescription",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
IDS = ("dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime")


class MimicCxrParams(Strict):
    """The options. `reports` is the folder with files such as `files/p10/p10000032/s50414267.txt`, and `boxes` is
    MS-CXR's CSV or JSON file. Both paths are relative to the root."""

    labeller: Literal["chexpert", "negbio"] = "chexpert"
    test_labels: Literal["labeller", "expert"] = (
        "labeller"  # expert: the test part has the experts' labels of 687 studies only
    )
    labels: tuple[Finding, ...] = FINDINGS
    uncertain: Policy = "ignore"  # policy for findings with the value -1
    empty: Policy = "zero"  # policy for findings that are not mentioned in a study with at least one label
    no_finding: Literal["implies", "as_given"] = "implies"  # implies: `is_implied` of `decide_labels` is True
    views: tuple[str, ...] = ("AP", "PA")  # values of ViewPosition, or unstated
    reports: str | None = None
    sections: tuple[Section | NearLabel, ...] = ("findings",)
    near_label_sections: tuple[NearLabel, ...] = ()  # sections from which labels were read
    boxes: str | None = None

    @field_validator("reports", "boxes")
    @classmethod
    def _is_inside(cls, value: str | None) -> str | None:
        if value is not None and (PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
            raise ValueError("must be relative to cohort.root, and lie under it")
        return value

    @field_validator("sections")
    @classmethod
    def _is_admitted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if near_label := [name for name in value if name in ("impression", "last_paragraph")]:
            listed = ", ".join(near_label)
            raise ValueError(f"the labels were read from {listed}; list it under near_label_sections all the same")
        return value

    @field_validator("labels", "views", "sections", "near_label_sections")
    @classmethod
    def _are_different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("lists one twice")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.near_label_sections and self.reports is None:
            raise ValueError("near_label_sections are read from reports; say where with cohort.params.reports=DIR")
        if self.reports is not None and not (self.sections or self.near_label_sections):
            raise ValueError("reports are read for their sections; name one, or leave reports out")
        if not (self.labels and self.views):
            raise ValueError("at least one of labels and one of views is needed")
        return self


class MimicCxr(Reader):
    """Reads a complete copy of MIMIC-CXR-JPG or a copy of some patients. Images are 8-bit grey and, as published,
    histogram-equalised."""

    Params = MimicCxrParams
    VERSION: ClassVar[int] = 2
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: MimicCxrParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        self._files: dict[str, list[str]] = {}  # by sample: its image and, if it has one, its report
        self._boxes: dict[str, list[Box]] = {}
        self._problems: dict[str, str] = {}  # problem of the report, by sample
        self._counts: dict[str, tuple[int, ...]] = {}  # output of `count_images`

    def scan(self) -> Scan:
        table, unlisted, paths = self._images()
        self._counts = count_images(table)
        notes: list[str] = []
        table["part"] = table["split"].map(PARTS)
        self._boxes = {}
        if self.params.boxes is not None:
            paths.append(self._path("boxes", self.params.boxes))
            notes += self._hold_out(table, paths[-1])
        table = self._keep_views(table, notes)
        params = self.params
        given_NK, label_paths = label_images(self.root, table, params.labeller, params.test_labels == "expert", notes)
        decided_NK = decide_labels(given_NK, params.uncertain, params.empty, params.no_finding == "implies")
        labels_NK = decided_NK[:, [FINDINGS.index(name) for name in params.labels]]
        samples = table[["subject_id", "part", "row"]].set_axis(["patient", "split", "row"], axis=1)
        index = samples.index = pd.Index(table["dicom_id"], name="sample")
        subject, study = table["subject_id"], table["study_id"]
        folders = "files/p" + subject.str[:2] + "/p" + subject + "/s" + study
        files = folders + "/" + table["dicom_id"] + ".jpg"
        self._files = {sample: [file] for sample, file in zip(index, files, strict=True)}
        text = self._text(folders, index, notes)
        (task,) = lay_out([("findings", "multilabel", self.params.labels)])
        columns = [Column(name, "id") for name in (*IDS, "split")] + [Column(name, "context") for name in CONTEXT]
        columns += [Column(name, "forbidden") for name in FINDINGS]
        context = table[list(CONTEXT)].set_axis(index)
        return Scan(
            tasks=(task,),
            samples=samples,
            labels=pd.DataFrame(labels_NK, index, label_columns([task])),
            privileged=context.mask(context == ""),
            columns={column.name: column for column in columns},
            unlisted=unlisted,
            channels=1,
            roi_labels=BOXED if self.params.boxes is not None else (),
            text=text,
            near_label_sections=self.params.near_label_sections,
            files=self._files,
            tables=[path.relative_to(self.root).as_posix() for path in (*paths, *label_paths)],
            notes=tuple(notes),
        )

    def deviations(self, scan: Scan) -> list[str]:
        """Compares the counts in each official part with the counts of version 2.1.0, whatever the options are."""
        return describe_differences(self._counts or count_images(self._images()[0]))

    def load(self, sample_id: str) -> RawImage:
        if not self._files:
            self.scan()
        file = self._files[sample_id][0]
        if sample_id in self._problems:
            raise BadSample(file, self._problems[sample_id])
        image = read_image(self.root, file)
        return RawImage(image, rois=draw(self._boxes.get(sample_id, ()), image.shape, file))

    def _images(self) -> tuple[pd.DataFrame, tuple[str, ...], list[Path]]:
        """Returns the metadata with the added columns `row` and `split` (the official part), the names of the columns
        without a role, and the paths of the metadata and split tables."""
        path, split_path = find_table(self.root, METADATA), find_table(self.root, SPLIT)
        table = read_ids(path, ("dicom_id", "subject_id", "study_id", *CONTEXT), "dicom_id")
        split = read_ids(split_path, ("dicom_id", "subject_id", "study_id", "split"), "dicom_id")
        refuse_rows(split_path, ~split["split"].isin(list(PARTS)), f"a split that is none of {', '.join(PARTS)}")
        unlisted = tuple(str(name) for name in table if name not in (*IDS, *CONTEXT))
        split = split.set_index("dicom_id").reindex(table["dicom_id"])
        refuse_rows(path, split["split"].isna(), f"an image that {split_path.name} does not list")
        for name in ("subject_id", "study_id"):
            differs = split[name].to_numpy() != table[name].to_numpy()
            refuse_rows(path, differs, f"another {name} than {split_path.name} has for the image")
        table = table[["dicom_id", "subject_id", "study_id", *CONTEXT]]
        rows = range(FIRST_ROW, len(table) + FIRST_ROW)
        return table.assign(split=split["split"].to_numpy(), row=rows), unlisted, [path, split_path]

    def _path(self, option: str, value: str) -> Path:
        """Returns the path of the option `reports` or `boxes`.

        Raises:
            ConfigError: the folder or file does not exist.
        """
        path = self.root / value
        if not (path.is_dir() if option == "reports" else path.is_file()):
            kind = "folder" if option == "reports" else "file"
            raise ConfigError.at(f"cohort.params.{option}", f"no such {kind}: {path.absolute()}")
        return path

    def _hold_out(self, table: pd.DataFrame, path: Path) -> list[str]:
        """Assigns all patients with boxes to val or test in the column `part` of `table`, whatever their official part.
        Keeps the boxes in the reader, and returns notes."""
        boxes = read_boxes(path)
        subject = boxes["dicom_id"].map(table.set_index("dicom_id")["subject_id"])
        if subject.isna().all():
            raise CohortError(f"{path}: none of its images is in {METADATA}; are both of the same data set?")
        # A partial copy may lack the image of a box but have other images of the patient, whose id is in the path.
        subjects = subject.fillna(boxes["path"].str.extract(r"\bp([0-9]{8})\b")[0])
        if unknown := int(subjects.isna().sum()):
            what = f"{unknown} boxes are of images that {METADATA} lacks, and state no path that tells their patient"
            raise CohortError(f"{path}: {what}, who would stay in training; take them out, or read the whole metadata")
        patients = set(subjects)
        part = {patient: held_out_part(patient) for patient in patients & set(table["subject_id"])}
        table["part"] = table["subject_id"].map(part).fillna(table["part"])
        self._boxes = boxes_by_image(boxes)
        num_val = sum(name == "val" for name in part.values())
        notes = [
            f"{len(part)} patients with boxes leave fitting, whatever their official part: {num_val} are in val, "
            f"{len(part) - num_val} in test"
        ]
        if lacking := boxes.loc[subject.isna(), "dicom_id"].nunique():
            notes.append(f"{lacking} images with boxes are not in {METADATA}")
        return notes

    def _keep_views(self, table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
        """Returns the rows of images with a view that the option `views` lists. Adds notes to `notes`."""
        view = table["ViewPosition"].mask(table["ViewPosition"] == "", UNSTATED)
        views = list(self.params.views)
        if unknown := set(views) - set(VIEWS) - set(view):
            problem = "; ".join(f"no image has ViewPosition {name!r}{near(name, VIEWS)}" for name in sorted(unknown))
            raise ConfigError.at("cohort.params.views", problem)
        kept = view.isin(views)
        if not kept.any():
            raise ConfigError.at("cohort.params.views", f"no image has a ViewPosition of {', '.join(views)}")
        if num_left := int((~kept).sum()):
            unstated = int((view[~kept] == UNSTATED).sum())
            boxed = int(table.loc[~kept, "dicom_id"].isin(list(self._boxes)).sum())
            note = f"left out: {num_left} images whose ViewPosition is not {' or '.join(views)}"
            notes.append(f"{note}; {unstated} of them state none" + (f", {boxed} have boxes" if boxed else ""))
        return table[kept].reset_index(drop=True)

    def _text(self, folders: pd.Series, index: pd.Index, notes: list[str]) -> pd.DataFrame | None:
        """Returns the report sections that the options name, with a row per sample. Adds the reports to `_files`."""
        self._problems = {}
        params = self.params
        if params.reports is None:
            return None
        base = self._path("reports", params.reports).relative_to(self.root)
        study_N, unique = pd.factorize((base.as_posix() + "/" if base.parts else "") + folders + ".txt")
        files = list(unique)
        reports = read_reports(self.root, files, [*params.sections, *params.near_label_sections])
        num_missing = sum(not report.is_there for report in reports)
        if num_missing == len(reports):
            wanted = "wanted files/p10/p<subject_id>/s<study_id>.txt under it"
            raise CohortError(f"cohort.params.reports: no report of any study in {self.root / base}: {wanted}")
        for sample, study in zip(index, study_N, strict=True):
            if reports[study].is_there:
                self._files[sample].append(files[study])
            if reports[study].problem:
                self._problems[sample] = reports[study].problem
        if num_missing:
            notes.append(f"{num_missing} of {len(reports)} studies have no report")
        num_mined = sum(report.labels_from_findings for report in reports) if "findings" in params.sections else 0
        if num_mined:
            notes.append(
                f"{num_mined} reports have findings and no impression: their labels were read from the findings"
            )
        if params.near_label_sections:
            notes.append(
                f"near-label sections, which the labels were read from: {', '.join(params.near_label_sections)}"
            )
        names = (*params.sections, *params.near_label_sections)
        cells: dict[str, Any] = {
            name: np.array([report.sections.get(name, np.nan) for report in reports], object)[study_N] for name in names
        }
        return pd.DataFrame(cells, index)
