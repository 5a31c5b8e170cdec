"""Which columns of published data sets a teacher may read unasked: none that judges, or states, the label."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmpkd.cohort.facts import Column
from mmpkd.cohort.readers import breast_lesions_usg
from mmpkd.cohort.readers.cbis_ddsm import reader as cbis_ddsm
from mmpkd.cohort.readers.derm7pt import reader as derm7pt

BREAST = breast_lesions_usg.COLUMNS
CBIS = (*cbis_ddsm.SHARED, *(one for columns in cbis_ddsm.OF_KIND.values() for one in columns))
DERM7PT = derm7pt.COLUMNS


@pytest.mark.parametrize(
    ("columns", "near_label", "forbidden"),
    [
        (BREAST, {"BIRADS"}, {"Interpretation", "Verification", "Diagnosis", "Classification"}),
        (CBIS, {"assessment"}, {"pathology"}),
        (
            DERM7PT,
            {"seven_point_score", "level_of_diagnostic_difficulty", "management"},
            {
                "diagnosis",
                "pigment_network",
                "streaks",
                "pigmentation",
                "regression_structures",
                "dots_and_globules",
                "blue_whitish_veil",
                "vascular_structures",
            },
        ),
    ],
    ids=["breast", "cbis", "derm7pt"],
)
def test_what_judges_or_states_the_label(columns: Sequence[Column], near_label: set[str], forbidden: set[str]) -> None:
    assert {one.name for one in columns if one.role == "near_label"} == near_label
    assert {one.name for one in columns if one.role == "forbidden"} == forbidden
