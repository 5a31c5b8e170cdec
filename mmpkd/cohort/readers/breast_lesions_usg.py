"""Reads BrEaST, breast ultrasound with lesion masks, from the published files: one .xlsx and one folder of PNGs.

Source: TCIA Breast-Lesions-USG, doi 10.7937/9WKK-Q141; Pawlowska et al., Sci Data 11:148, 2024; CC BY 4.0. There are
256 cases with one image each. The 252 cases with a tumour mask are the samples of the binary task `malignant` (154
benign, 98 malignant). The four normal images are left out, because they have no lesion to describe or to locate.

- Each case counts as a patient, because the publishers give CaseID, one per patient, as the only identifier.
- Pixels are RGBA, although B-mode images are grey. In 163 images the channels differ (a scanner's sepia tint, a
  coloured mark), so the grey value is the luma. In 31 images the surroundings of the ultrasound sector are transparent,
  and in seven of these images old marks are hidden underneath. Transparent pixels become black, as in viewers.
- `Margin` has values such as 'not circumscribed - angular&indistinct'. The prefix 'not circumscribed' is removed,
  because every value except `circumscribed` implies it. `not available` and `not applicable` are missing values.
- `Pixel_size` has no role, because it depends on the scanner and its depth setting and would be a confounder for a
  teacher.
- `Mask_other` (other suspicious areas, in seven images) is not stored, because localisation is scored on the tumour.
- The data have no reports. The text section `description` is generated here. It is a sentence made of the descriptors,
  so that it holds the same information as those columns and no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import ADMITTED, Column, RawImage, Reader, Scan, encode_labels
from mmpkd.cohort.formats.masks import read_mask
from mmpkd.cohort.formats.tables import FIRST_ROW, read_table, refuse_rows
from mmpkd.types import CohortError, Strict, lay_out

TABLE = "*.xlsx"
IMAGES = "BrEaST-Lesions_USG-images_and_masks"
MISSING = ("", "not available", "not applicable")
NOT_CIRCUMSCRIBED = "not circumscribed - "
LESION = "lesion"
PHRASES = {
    "Posterior_features": {
        "no": "no posterior features",
        "enhancement": "posterior enhancement",
        "shadowing": "posterior shadowing",
        "combined": "combined posterior features",
    },
    "Halo": {"no": "no halo", "yes": "an echogenic halo"},
    "Calcifications": {
        "no": "no calcifications",
        "in a mass": "calcifications in the mass",
        "intraductal": "intraductal calcifications",
        "indefinable": "indefinable calcifications",
    },
    "Skin_thickening": {"no": "no skin thickening", "yes": "skin thickening"},
}  # in the order of the sentence; shape, echogenicity and margin are adjectives already

COLUMNS = (
    Column("CaseID", "id"),
    Column("Image_filename", "id"),
    Column("Mask_tumor_filename", "id"),
    Column("Mask_other_filename", "id"),
    Column("Age", "context", "numeric"),
    Column("Tissue_composition", "context", "multivalued", "&"),
    Column("Signs", "context", "multivalued", "&"),
    Column("Symptoms", "context", "multivalued", "&"),
    Column("Shape", "descriptor"),
    Column("Margin", "descriptor", "multivalued", "&"),
    Column("Echogenicity", "descriptor"),
    Column("Posterior_features", "descriptor"),
    Column("Halo", "descriptor"),
    Column("Calcifications", "descriptor"),
    Column("Skin_thickening", "descriptor"),
    Column("BIRADS", "near_label"),
    Column("Interpretation", "forbidden", "multivalued", "&"),
    Column("Verification", "forbidden"),
    Column("Diagnosis", "forbidden", "multivalued", "&"),
    Column("Classification", "forbidden"),  # the label itself
)


class BreastLesionsUsgParams(Strict):
    """This reader has no options."""


class BreastLesionsUsg(Reader):
    """Reads the unpacked folder of the published data set."""

    Params = BreastLesionsUsgParams
    VERSION: ClassVar[int] = 2
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = False

    def __init__(self, root: Path | None, params: BreastLesionsUsgParams) -> None:
        assert root is not None
        self.root = root

    def scan(self) -> Scan:
        path = self._table_path()
        wanted = [column.name for column in COLUMNS]
        table = read_table(path, wanted, "is it the BrEaST table as published?", is_public=True)
        table["row"] = range(FIRST_ROW, len(table) + FIRST_ROW)
        (task,) = lay_out([("malignant", "binary", ("benign", "malignant"))])
        masked = table["Mask_tumor_filename"] != ""
        cells = table["Classification"]
        unknown = masked & ~cells.isin(task.labels)
        refuse_rows(path, unknown, "a Classification that is neither benign nor malignant", cells)
        for name, phrases in PHRASES.items():
            unknown = masked & ~table[name].isin([*phrases, *MISSING])
            refuse_rows(path, unknown, f"a {name} that is none of {', '.join(phrases)}", table[name])
        lesions, others = table[masked], table[~masked]
        lesions = lesions.set_index(lesions["Image_filename"].str.removesuffix(".png").rename("sample"))
        counts = ", ".join(f"{count} {name}" for name, count in others["Classification"].value_counts().items())
        left_out = [f"left out, without a tumour mask: {counts}"] if len(others) else []
        files = lesions[["Image_filename", "Mask_tumor_filename"]]
        privileged = _privileged(lesions)
        sentences = [_sentence(cells.dropna()) for _, cells in privileged.iterrows()]
        return Scan(
            tasks=(task,),
            samples=pd.DataFrame({"patient": lesions["CaseID"], "row": lesions["row"]}),
            labels=encode_labels(task, lesions["Classification"]),
            privileged=privileged,
            columns={column.name: column for column in COLUMNS},
            unlisted=tuple(name for name in table.columns if name not in (*wanted, "row")),
            channels=1,
            roi_labels=(LESION,),
            text=pd.DataFrame({"description": sentences}, index=lesions.index),
            files={str(sample): [f"{IMAGES}/{file}" for file in pair] for sample, *pair in files.itertuples()},
            tables=[path.name],
            notes=(*left_out, "one case is taken for one patient, as published", "other masks are not stored"),
        )

    def load(self, sample_id: str) -> RawImage:
        image = read_image(self.root, f"{IMAGES}/{sample_id}.png")
        mask = read_mask(self.root, f"{IMAGES}/{sample_id}_tumor.png", image.shape)
        return RawImage(image, rois=[(LESION, mask)])

    def _table_path(self) -> Path:
        tables = sorted(path for path in self.root.glob(TABLE) if not path.name.startswith("~"))
        if len(tables) != 1 or not (self.root / IMAGES).is_dir():
            names = ", ".join(path.name for path in tables) or "none"
            raise CohortError(
                f"{self.root.absolute()} is not the BrEaST data set as published: wanted one {TABLE} (found: {names}) "
                f"and the folder {IMAGES}; point cohort.root at the folder that holds both"
            )
        return tables[0]


def _privileged(table: pd.DataFrame) -> pd.DataFrame:
    admitted = [column for column in COLUMNS if column.role in (*ADMITTED, "near_label")]
    cells = table[[column.name for column in admitted]]
    cells = cells.mask(cells.isin(MISSING))
    cells["Margin"] = cells["Margin"].str.removeprefix(NOT_CIRCUMSCRIBED)
    numeric = {
        column.name: pd.to_numeric(cells[column.name]).astype(float) for column in admitted if column.kind == "numeric"
    }
    return cells.assign(**numeric)


def _sentence(cells: pd.Series[Any]) -> str | None:
    """Describes a lesion in a sentence that is made of its descriptors. Returns None if all descriptors are missing."""
    adjectives = [cells[name].replace("/", " and ") for name in ("Shape", "Echogenicity") if name in cells]
    findings = [f"{_join_words(cells['Margin'].split('&'))} margins"] if "Margin" in cells else []
    findings += [phrases[cells[name]] for name, phrases in PHRASES.items() if name in cells]
    if not adjectives and not findings:
        return None
    noun = " ".join([", ".join(adjectives), "mass"]).strip()
    article = "An" if noun[0] in "aeiou" else "A"
    return f"{article} {noun}{' with ' if findings else ''}{_join_words(findings)}."


def _join_words(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
