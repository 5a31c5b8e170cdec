"""Finds the image files of CBIS-DDSM in any of the three common layouts of the data set.

  descriptive  NBIA Data Retriever, "descriptive directory name":
               <dir>/08-29-2017-DDSM-NA-96009/1.000000-full mammogram images-63992/1-1.dcm
  classic      NBIA Data Retriever, "classic directory name": <dir>/<StudyUID>/<SeriesUID>/000000.dcm
  jpeg         the JPEG re-release on Kaggle: jpeg/<SeriesUID>/1-192.jpg, beside csv/dicom_info.csv

The description files state paths of the form <dir>/<StudyUID>/<SeriesUID>/<name>.dcm, where <dir> is the DICOM
PatientID (`Mass-Training_P_00001_LEFT_CC`, with `_<abnormality>` for a crop or a mask). A descriptive folder name ends
with the last five digits of the UID. The stated file names are not reliable, and neither is the distinction between the
columns for a crop and for its mask. Therefore all files of the series in both columns are returned, and the reader
identifies the mask by its content.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmpkd.cohort.formats.tables import read_table
from mmpkd.types import CohortError

DIGITS = 5  # number of a UID's last digits at the end of a descriptive folder name
INFO = "dicom_info.csv"
PREFIXES = ("Mass-Training_", "Mass-Test_", "Calc-Training_", "Calc-Test_")
WANTED = (
    "a folder of Mass-Training_P_... folders (NBIA), or jpeg/ beside csv/dicom_info.csv (the JPEG re-release), "
    "in cohort.root or up to three folders below it"
)


class Files:
    """Finds the files in a user's copy of the data set that belong to the paths in the description files."""

    def __init__(self, root: Path):
        """Recognises the layout of the copy under `root`.

        Raises:
            CohortError: the copy has none of the three layouts, or the dicom_info.csv of a JPEG copy is not as
                published.
        """
        self.root = root
        self.base, self.is_jpeg = _image_folder(root)
        self.info = next((path for path in (root / "csv" / INFO, root / INFO) if path.is_file()), None)
        self._folder_of = _patient_by_series(self.info) if self.is_jpeg and self.info else {}

    @property
    def tables(self) -> list[str]:
        return [self.info.relative_to(self.root).as_posix()] if self.is_jpeg and self.info else []

    def of(self, *stated: str) -> list[str]:
        """Returns all image files of the series to which the stated paths belong, as paths relative to the root.

        Files are sorted within a series. For a series that is missing, or that dicom_info.csv assigns to another
        PatientID, a path that does not exist is returned, so that the file is reported as missing.

        Args:
            stated: paths from the description files.
        """
        paths: list[str] = []
        for folder in dict.fromkeys(path.rsplit("/", 1)[0] for path in stated):
            series = self._series(folder)
            names = sorted(filter(_is_image, os.listdir(series))) if series else []  # paths of strings are quicker
            if series and names:
                within = series.relative_to(self.root).as_posix()
                paths += [f"{within}/{name}" for name in names]
            else:
                missing = self.base / (folder.rsplit("/", 1)[1] if self.is_jpeg else folder)
                paths.append(missing.relative_to(self.root).as_posix())
        return paths

    def _series(self, stated: str) -> Path | None:
        folder, study, series = stated.split("/")
        if self.is_jpeg:
            path = self.base / series
            return path if path.is_dir() and self._folder_of.get(series, folder) == folder else None
        exact = self.base / folder / study / series
        if exact.is_dir():
            return exact
        studies = _folders_ending_with(self.base / folder, study)
        matches = [path for each in studies for path in _folders_ending_with(each, series)]
        return matches[0] if len(matches) == 1 else None


def _is_image(name: str) -> bool:
    """Returns whether a file is an image. Files such as `._1-1.dcm`, which macOS adds on foreign disks, are not."""
    return os.path.splitext(name)[1].lower() in (".dcm", ".jpg", ".jpeg", ".png") and not name.startswith("._")


def _folders_ending_with(folder: Path, uid: str) -> list[Path]:
    """Returns the subfolders with names that end with the last digits of a UID."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.endswith(f"-{uid[-DIGITS:]}")]


def _image_folder(root: Path) -> tuple[Path, bool]:
    """Returns the folder that contains the image folders, and whether the copy has the JPEG layout.

    The image folders are named by series UID in the JPEG layout, and by DICOM PatientID in the other layouts.
    """
    level = [root]
    for _ in range(4):
        for folder in level:
            if (folder / "jpeg").is_dir():
                return folder / "jpeg", True
            if any(name.name.startswith(PREFIXES) for name in folder.iterdir()):
                return folder, False
        level = [path for folder in level for path in sorted(folder.iterdir()) if path.is_dir()]
    raise CohortError(f"{root.absolute()} has the description files of CBIS-DDSM but no images: wanted {WANTED}")


def _patient_by_series(info: Path) -> dict[str, str]:
    """Returns the DICOM PatientID of each series, by series UID. PatientIDs are the names of folders."""
    wanted = ["SeriesInstanceUID", "PatientID"]
    table = read_table(info, wanted, "is it the re-release's dicom_info.csv?", is_public=True)
    return {series: patient for series, patient in table[wanted].itertuples(index=False) if patient}
