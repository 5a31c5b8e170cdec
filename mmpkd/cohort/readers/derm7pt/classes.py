"""Defines the labels of Derm7pt: the raw strings of each class, the points of the classes, and DeepGuide's case counts.

The grouping and the points are taken from github.com/jeremykawahara/derm7pt, dataset.py. The counts were made from the
label files of github.com/mayurmallya/DeepGuide (Mallya & Hamarneh, MICCAI 2022).
"""

from __future__ import annotations

from collections.abc import Mapping

# For each task and class, the raw strings that belong to the class. Classes are in the order of the authors' codes.
ABSENT = {"ABS": ("absent",)}
REGULARITY = {**ABSENT, "REG": ("regular",), "IR": ("irregular",)}
CLASSES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "diagnosis": {
        "BCC": ("basal cell carcinoma",),
        "NEV": (
            "nevus",
            "blue nevus",
            "clark nevus",
            "combined nevus",
            "congenital nevus",
            "dermal nevus",
            "recurrent nevus",
            "reed or spitz nevus",
        ),
        "MEL": (
            "melanoma",
            "melanoma (in situ)",
            "melanoma (less than 0.76 mm)",
            "melanoma (0.76 to 1.5 mm)",
            "melanoma (more than 1.5 mm)",
            "melanoma metastasis",
        ),
        "MISC": ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"),
        "SK": ("seborrheic keratosis",),
    },
    "pigment_network": {**ABSENT, "TYP": ("typical",), "ATP": ("atypical",)},
    "blue_whitish_veil": {**ABSENT, "PRS": ("present",)},
    "vascular_structures": {
        **ABSENT,
        "REG": ("arborizing", "comma", "hairpin", "within regression", "wreath"),
        "IR": ("dotted", "linear irregular"),
    },
    "pigmentation": {
        **ABSENT,
        "REG": ("diffuse regular", "localized regular"),
        "IR": ("diffuse irregular", "localized irregular"),
    },
    "streaks": REGULARITY,
    "dots_and_globules": REGULARITY,
    "regression_structures": {**ABSENT, "PRS": ("blue areas", "white areas", "combinations")},
}
# The seven-point checklist: for each criterion, the class that adds to the score, and its points.
POINTS = {
    "pigment_network": ("ATP", 2),
    "blue_whitish_veil": ("PRS", 2),
    "vascular_structures": ("IR", 2),
    "pigmentation": ("IR", 1),
    "streaks": ("IR", 1),
    "dots_and_globules": ("IR", 1),
    "regression_structures": ("PRS", 1),
}
# In DeepGuide's label files: case_num of the missing cases, and numbers of cases in train, val and test (in all, and by
# task and class).
DEEPGUIDE_LACKS = ("566", "801", "825", "828", "834", "835", "840", "845", "852")
DEEPGUIDE_PARTS = (408, 202, 392)
DEEPGUIDE_COUNTS: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "diagnosis": {
        "BCC": (19, 7, 16),
        "NEV": (255, 100, 219),
        "MEL": (89, 61, 100),
        "MISC": (29, 24, 38),
        "SK": (16, 10, 19),
    },
    "pigment_network": {"ABS": (158, 84, 154), "TYP": (158, 75, 146), "ATP": (92, 43, 92)},
    "blue_whitish_veil": {"ABS": (334, 156, 318), "PRS": (74, 46, 74)},
    "vascular_structures": {"ABS": (344, 162, 312), "REG": (42, 22, 50), "IR": (22, 18, 30)},
    "pigmentation": {"ABS": (251, 111, 223), "REG": (44, 26, 46), "IR": (113, 65, 123)},
    "streaks": {"ABS": (271, 122, 256), "REG": (38, 24, 42), "IR": (99, 56, 94)},
    "dots_and_globules": {"ABS": (83, 44, 97), "REG": (155, 60, 118), "IR": (170, 98, 177)},
    "regression_structures": {"ABS": (314, 151, 287), "PRS": (94, 51, 105)},
}
