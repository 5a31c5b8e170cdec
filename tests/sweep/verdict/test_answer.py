"""What a verdict says of scores that are made up, so that the right answer is plain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmpkd.config import StageConfig, TrialConfig, validate
from mmpkd.types import ConfigError, Task, lay_out
from sweep.verdict.answer import Verdict, judge
from sweep.verdict.inference import SeedScores
from sweep.verdict.opening.patients import Patients, patients_of
from sweep.verdict.protocol import Protocol
from sweep.verdict.results.wording import sentence, what_would_tell
from sweep.verdict.training.phases import smoothed, smoothing_of

AUROC, POINTING = "val/auroc", "val/pointing"
MANY = Patients(all=400, rarer=150, with_roi=200)
PROTOCOL = Protocol(
    sweep="s",
    sweep_id="1",
    cohort="c",
    goal=AUROC,
    localisation=POINTING,
    reference="none",
    arms=("tabular",),
    difference=0.05,
    trials=4,
    finalists={"none": (0,), "tabular": (1,)},
    choose_seeds=(1, 2, 3, 4, 5),
    seeds=(6, 7, 8, 9, 10),
    controls={"tabular-shuffled": "tabular", "tabular-smoothed": "tabular"},
    test_patients=400,
)


def scores(mean: float, spread: float = 0.01, error: float = 0.01) -> SeedScores:
    """Five students around a mean, whose replicates scatter independently of those of other arms."""
    value_K = mean + spread * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    noise_R = np.random.default_rng(int(1e6 * np.nan_to_num(mean))).normal(0, error, 1000)
    return SeedScores(value_K, value_K + noise_R[:, None])


def verdict(patients: Patients = MANY, **means: tuple[float, float]) -> Verdict:
    """Returns the verdict on arms with these means of AUROC and pointing. Chance reaches 0.10, the prior 0.30."""
    blind = {f"{POINTING}_{name}": scores(mean, 0.0) for name, mean in (("chance", 0.1), ("prior", 0.3))}
    arms: dict[str, Any] = {
        arm.replace("_", "-"): {AUROC: scores(auroc), POINTING: scores(pointing)} | blind
        for arm, (auroc, pointing) in means.items()
    }
    return judge(PROTOCOL, arms, patients, {})


def outcomes(of: Verdict) -> dict[str, str]:
    return {answer.key.goal: answer.outcome for answer in of.answers}


def test_an_arm_that_beats_none_controls_and_maps_is_better() -> None:
    clear = verdict(none=(0.7, 0.2), tabular=(0.85, 0.5), tabular_shuffled=(0.7, 0.21), tabular_smoothed=(0.71, 0.2))
    assert outcomes(clear) == {AUROC: "better", POINTING: "better"}
    assert not any(answer.reasons for answer in clear.answers)
    first = sentence(clear.answers[0], clear, PROTOCOL)
    assert first.startswith(
        "With tabular, the students classify better (test/auroc 0.850 against 0.700 of none: +0.150"
    )
    assert "p < 0.001 (Holm)" in first


def test_a_gain_that_the_shuffled_control_shares_is_doubted_and_no_claim_of_localisation() -> None:
    shared = verdict(none=(0.7, 0.2), tabular=(0.85, 0.5), tabular_shuffled=(0.85, 0.5), tabular_smoothed=(0.71, 0.2))
    assert outcomes(shared) == {AUROC: "better", POINTING: "unexplained"}
    assert all("belong to other patients" in answer.reasons[0] for answer in shared.answers)


def test_label_smoothing_that_does_as_well_is_a_doubt_and_forbids_nothing() -> None:
    smooth = verdict(none=(0.7, 0.2), tabular=(0.85, 0.5), tabular_shuffled=(0.7, 0.2), tabular_smoothed=(0.85, 0.5))
    assert outcomes(smooth) == {AUROC: "better", POINTING: "better"}
    assert all("label smoothing of the same entropy" in answer.reasons[0] for answer in smooth.answers)


def test_a_gain_below_the_mean_roi_is_no_claim() -> None:
    blind = verdict(none=(0.7, 0.12), tabular=(0.7, 0.25), tabular_shuffled=(0.7, 0.12), tabular_smoothed=(0.7, 0.12))
    assert outcomes(blind)[POINTING] == "unexplained"
    assert "by the mean training ROI without looking at the image (-0.050" in blind.answers[1].reasons[0]


def test_students_below_chance_look_at_the_wrong_place() -> None:
    misled = verdict(none=(0.7, 0.2), tabular=(0.7, 0.02), tabular_shuffled=(0.7, 0.2), tabular_smoothed=(0.7, 0.2))
    assert outcomes(misled) == {AUROC: "no difference shown", POINTING: "worse"}
    assert misled.answers[1].reasons[-1].startswith("Its students look at the wrong place: below chance (-0.080")


def test_equal_arms_that_learnt_nothing_of_places_say_so() -> None:
    """Chance reaches 0.10 and the mean ROI 0.30."""
    controls = {"tabular_shuffled": (0.7, 0.2), "tabular_smoothed": (0.7, 0.2)}
    for pointing, shared in ((0.2, "by the mean training ROI"), (0.05, "by chance or by the mean training ROI")):
        equal = verdict(none=(0.7, pointing), tabular=(0.701, pointing + 0.001), **controls)
        assert outcomes(equal) == {AUROC: "no difference shown", POINTING: "no difference shown"}
        expected = f"Neither is shown to exceed what a map reaches {shared} without looking at the image, so that"
        assert equal.answers[1].reasons[0].startswith(expected) and not equal.answers[0].reasons
    able = verdict(none=(0.7, 0.5), tabular=(0.701, 0.501), **controls)
    assert not any(answer.reasons for answer in able.answers)


def test_few_patients_or_little_power_cannot_tell() -> None:
    arms = {"none": (0.7, 0.2), "tabular": (0.72, 0.21), "tabular_shuffled": (0.7, 0.2), "tabular_smoothed": (0.7, 0.2)}
    few = verdict(Patients(all=40, rarer=9, with_roi=30), **arms)
    assert outcomes(few)[AUROC] == "cannot tell"
    assert few.answers[0].reasons[0].startswith("The rarer class has 9 patients")


def test_few_patients_with_a_region_cannot_tell_of_places() -> None:
    """Resamplings of few patients hardly differ, so that a gain would be a claim even with three of them."""
    arms = {"none": (0.7, 0.2), "tabular": (0.7, 0.6), "tabular_shuffled": (0.7, 0.2), "tabular_smoothed": (0.7, 0.2)}
    assert outcomes(verdict(Patients(all=400, rarer=150, with_roi=10), **arms))[POINTING] == "better"
    few = verdict(Patients(all=400, rarer=150, with_roi=9), **arms)
    assert outcomes(few) == {AUROC: "no difference shown", POINTING: "cannot tell"}
    assert few.answers[1].reasons == (
        "Only 9 patients have a region; with fewer than 10 the uncertainty of a score is not known well enough.",
    )


@pytest.mark.parametrize("goal, rarer", [("val/auroc", 2), ("val/auroc_patient", 1)])
def test_patients_whose_images_disagree_decide_no_score_of_patients(goal: str, rarer: int) -> None:
    """Of three patients the second has images of both classes."""
    store: Any = SimpleNamespace(
        patient_N=np.array([0, 1, 1, 2]),
        target_NK=np.array([[1], [1], [0], [0]], np.float32),
        known_NK=np.ones((4, 1), bool),
        facts=SimpleNamespace(tasks=lay_out([("m", "binary", ("no", "yes"))]), questions=None),
        rois=lambda row: row == 0,
    )
    assert patients_of(store, np.arange(4), goal) == Patients(3, rarer, 1)


def test_a_test_part_without_regions_cannot_tell_of_places() -> None:
    arms = {"none": (0.7, np.nan), "tabular": (0.7, np.nan)}
    blind = verdict(Patients(all=400, rarer=150, with_roi=0), **arms)
    assert outcomes(blind)[POINTING] == "cannot tell"
    assert sentence(blind.answers[1], blind, PROTOCOL) == (
        "Whether tabular changes test/pointing cannot be told (not all students have a score)."
    )


@pytest.mark.parametrize(
    "tasks, entropy, smoothing",
    [
        # The target 0.9 / 0.1 has the entropy -0.9 ln 0.9 - 0.1 ln 0.1.
        (lay_out([("m", "binary", ("no", "yes"))]), 0.325083, 0.2),
        # Three classes: 1 - 0.3 + 0.1 = 0.8 and twice 0.1 have the entropy -0.8 ln 0.8 - 0.2 ln 0.1.
        (lay_out([("p", "multiclass", ("a", "b", "c"))]), 0.639032, 0.3),
        (lay_out([("m", "binary", ("no", "yes"))]), 0.0, 0.0),
    ],
)
def test_label_smoothing_of_equal_entropy(tasks: tuple[Task, ...], entropy: float, smoothing: float) -> None:
    assert smoothing_of(entropy, tasks) == pytest.approx(smoothing, abs=1e-4)


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        ([], []),
        (
            [{"name": "last", "train": ["student.head", "logits"], "objectives": ["task", "logits"]}],
            [{"name": "last", "train": ["student.head"]}],
        ),
        ([{"name": "taught", "train": ["student"], "objectives": ["logits"]}], []),
    ],
)
def test_label_smoothing_trains_the_same_parts_of_the_student(stages: list[Any], kept: list[Any]) -> None:
    content = {"cohort": {"reader": "synthetic"}, "teachers": {"t": {"kind": "tabular"}}, "objectives": {"logits": {}}}
    control = smoothed(TrialConfig.model_validate(content | {"stages": stages}), 0.2, lay_out([("m", "binary", "ab")]))
    assert control.stages == tuple(StageConfig.model_validate(stage) for stage in kept)
    assert not control.teachers and not control.objectives


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "tabular"}, "'tabular' would be compared with itself"),
        ({"arms": ("tabular", "text")}, "no finalists for text"),
        ({"seeds": (5, 6, 7, 8, 9)}, "a seed of the choice is trained again"),
    ],
)
def test_a_protocol_that_nobody_could_propose_is_none(changes: dict[str, Any], message: str) -> None:
    """It may be edited by hand and have a new hash."""
    with pytest.raises(ConfigError, match=message):
        validate(Protocol, PROTOCOL.model_dump(mode="json") | changes, "protocol")


def test_localisation_has_a_difference_of_its_own() -> None:
    assert PROTOCOL.smallest(POINTING) == PROTOCOL.smallest(AUROC) == 0.05, "protocols of earlier versions"
    own = PROTOCOL.model_copy(update={"localisation_difference": 0.2})
    assert (own.smallest(AUROC), own.smallest(POINTING)) == (0.05, 0.2)
    assert own.content_hash == own.hash != PROTOCOL.hash
    frozen = own.model_copy(update={"frozen": "2026-11-27T10:00:00+00:00"})
    assert frozen.hash != own.hash and frozen.content_hash == own.content_hash
    arms = {arm: {AUROC: scores(0.7, error=0.04), POINTING: scores(0.3, error=0.04)} for arm in ("none", "tabular")}
    power = {
        each: [answer.power for answer in judge(protocol, arms, MANY, {}).answers]
        for each, protocol in (("shared", PROTOCOL), ("own", own))
    }
    assert power["own"][0] == power["shared"][0] and power["own"][1] > power["shared"][1]


def test_no_more_patients_are_named_than_are_needed() -> None:
    equal = verdict(none=(0.7, 0.2), tabular=(0.701, 0.201)).answers[0]
    assert equal.outcome == "no difference shown" and equal.design is not None
    assert what_would_tell(equal, PROTOCOL.model_copy(update={"difference": 0.5})) == []
