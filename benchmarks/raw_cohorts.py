"""Three small raw data sets of the shapes that users bring, with nothing of this project in their making.

`python benchmarks/raw_cohorts.py DIR` writes them: files and tables alone, as a stranger would hand them over.

- `ultrasound`: a public multi-site set. Colour PNG images, two a patient, masks of two kinds of region, a semicolon
  table with the site of each image and BI-RADS descriptors.
- `brain_mr`: patients with two sequences as NIfTI slices (T1 and FLAIR), a tumour mask, a grade, an age, given folds.
- `chest`: 16-bit films with notes, findings as 1, 0 or blank, boxes; file names that carry patients.

What makes a label is drawn first and then drawn into the image and written into the table, so that a training has
something to learn; the teacher's inputs tell it more plainly than the image does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

SIDE = 96
Pixels = NDArray[np.float64]


def ellipse(side: int, row: float, column: float, height: float, width: float) -> NDArray[np.bool_]:
    """A filled ellipse in a square; places and radii in pixels."""
    rows, columns = np.mgrid[:side, :side]
    inside: NDArray[np.bool_] = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1
    return inside


def speckle(random: np.random.Generator, side: int, mean: float, spread: float) -> Pixels:
    """Noise that is smooth over three pixels, as ultrasound's."""
    noise = random.normal(size=(side + 2, side + 2))
    smooth = sum(noise[row : row + side, column : column + side] for row in range(3) for column in range(3)) / 3
    return mean + spread * smooth


def ultrasound(folder: Path, patients: int = 90, seed: int = 1) -> None:
    """90 patients of three hospitals, two views each; a lesion in every one, a calcification in some."""
    random, rows = np.random.default_rng(seed), []
    for patient in range(1, patients + 1):
        site = ("Warsaw", "Cairo", "Sao Paulo")[patient % 3]
        malignant = random.random() < 0.4
        shape = random.choice(["irregular", "oval"], p=[0.8, 0.2] if malignant else [0.2, 0.8])
        margin = random.choice(
            ["spiculated", "indistinct", "circumscribed"], p=[0.5, 0.3, 0.2] if malignant else [0.05, 0.15, 0.8]
        )
        age = int(random.normal(62 if malignant else 48, 9))
        assessment = random.choice(["4c", "5"] if malignant else ["2", "3", "4a"])
        for view in ("cc", "ml"):
            image = speckle(random, SIDE, 110 + 20 * (patient % 3), 25)
            row, column = random.uniform(25, SIDE - 25, 2)
            radii = (random.uniform(6, 9), random.uniform(9, 14)) if shape == "oval" else random.uniform(8, 14, 2)
            lesion = ellipse(SIDE, row, column, *radii)
            image[lesion] = 40 + (25 if margin == "circumscribed" else 0) + random.normal(0, 8, lesion.sum())
            spot = ellipse(SIDE, row - 2, column + 3, 2.5, 2.5) if malignant and random.random() < 0.7 else None
            if spot is not None:
                image[spot] = 235
            name = f"{site.lower().replace(' ', '_')}_{patient:03d}_{view}"
            pixels = np.clip(image, 0, 255).astype(np.uint8)
            save(
                np.stack([pixels, pixels, np.clip(pixels * 0.9, 0, 255).astype(np.uint8)], -1),
                folder / "images" / f"{name}.png",
            )
            save(lesion.astype(np.uint8) * 255, folder / "masks" / f"{name}_lesion.png")
            if spot is not None:
                save(spot.astype(np.uint8) * 255, folder / "masks" / f"{name}_calc.png")
            rows.append(
                {
                    "Image": f"{name}.png",
                    "Patient": patient,
                    "Hospital": site,
                    "Diagnosis": "malignant" if malignant else "benign",
                    "Shape": shape,
                    "Margin": margin,
                    "Age": age,
                    "BIRADS": assessment,
                    "Lesion mask": f"masks/{name}_lesion.png",
                    "Calc mask": f"masks/{name}_calc.png" if spot is not None else "",
                }
            )
    pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False, sep=";")


def brain_mr(folder: Path, patients: int = 80, seed: int = 2) -> None:
    """80 patients, an axial slice of T1 and of FLAIR each; the tumour is plain in FLAIR and faint in T1."""
    random, rows = np.random.default_rng(seed), []
    for number in range(patients):
        patient, high = f"MR-{number:04d}", random.random() < 0.5
        brain = ellipse(SIDE, SIDE / 2, SIDE / 2, 42, 34)
        row, column = random.uniform(32, SIDE - 32, 2)
        tumour = ellipse(SIDE, row, column, *random.uniform(6, 11, 2)) & brain
        core = ellipse(SIDE, row, column, 4, 4) & tumour
        t1 = np.where(brain, speckle(random, SIDE, 500, 60), 0)
        t1[tumour] -= 90
        flair = np.where(brain, speckle(random, SIDE, 700, 50), 0)
        flair[tumour] += 350
        if high:
            t1[core] -= 150
            flair[core] -= 500
        for name, pixels in (("t1", t1), ("flair", flair)):
            volume(np.clip(pixels, 0, 4000).astype(np.int16), folder / patient / f"{name}.nii.gz")
        volume(tumour.astype(np.uint8), folder / patient / "tumour.nii.gz")
        rows.append(
            {
                "id": patient,
                "t1": f"{patient}/t1.nii.gz",
                "flair": f"{patient}/flair.nii.gz",
                "seg": f"{patient}/tumour.nii.gz",
                "grade": "HGG" if high else "LGG",
                "age": int(random.normal(58 if high else 44, 10)),
                "fold": f"fold{number % 5}",
            }
        )
    pd.DataFrame(rows).to_csv(folder / "patients.csv", index=False)


def chest(folder: Path, patients: int = 100, seed: int = 3) -> None:
    """100 patients, one or two films of 12 bits in 16, two findings that notes tell in words."""
    random, rows = np.random.default_rng(seed), []
    for number in range(patients):
        patient = f"p{number + 1000}"
        for film in range(1 + (number % 3 == 0)):
            effusion, nodule = random.random(2) < (0.4, 0.3)
            image = speckle(random, SIDE, 1800, 200)
            image[ellipse(SIDE, 45, 28, 34, 18) | ellipse(SIDE, 45, 68, 34, 18)] -= 900
            box = ("", "", "", "")
            if effusion:
                side = random.choice([28, 68])
                image[68:82, side - 15 : side + 15] += 900
            if nodule:
                row, column = random.uniform(25, 60), random.choice([28, 68]) + random.uniform(-8, 8)
                image[ellipse(SIDE, row, column, 4, 4)] += 1000
                box = (int(column) - 5, int(row) - 5, 11, 11)
            name = f"{patient}/film{film}.png"
            save(np.clip(image, 0, 4095).astype(np.uint16), folder / name)
            words = ["blunting of the costophrenic angle" if effusion else "costophrenic angles are sharp"]
            words += [
                "a rounded opacity in the lung" if nodule else "lungs are clear",
                f"heart size normal, film {film + 1}",
            ]
            known = random.random(2) < 0.85
            rows.append(
                {
                    "path": name,
                    "subject": patient,
                    "part": "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train",
                    "effusion": int(effusion) if known[0] else "",
                    "nodule": int(nodule) if known[1] else "",
                    "notes": ". ".join(words) + ".",
                    "sex": random.choice(["F", "M"]),
                    **dict(zip(("x", "y", "w", "h"), box, strict=True)),
                }
            )
    pd.DataFrame(rows).to_csv(folder / "films.csv", index=False)


def save(pixels: NDArray[np.generic], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def volume(pixels: NDArray[np.generic], path: Path) -> None:
    """One slice as a NIfTI volume of thickness one, left to right and front to back as the picture shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(pixels[::-1].T[:, :, None], np.diag([1.0, 1.0, 3.0, 1.0]))
    image.header.set_qform(image.affine, code=1)
    nibabel.save(image, path)


COHORTS = {"ultrasound": ultrasound, "brain_mr": brain_mr, "chest": chest}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    for cohort, write in COHORTS.items():
        write(Path(sys.argv[1]) / cohort)
        print(f"{cohort}: {Path(sys.argv[1]) / cohort}")
