"""The ensemble teacher: its mean by hand, its learned weights, and members that do not fit the cohort."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig, validate
from mmpkd.fit import task_loss
from mmpkd.scoring import classify
from mmpkd.teachers import TEACHERS, check, resolve
from mmpkd.teachers.cache import cached_outputs
from mmpkd.teachers.ensemble import Ensemble, EnsembleParams, combine
from mmpkd.types import ConfigError, TeacherError
from tests.mmpkd.teacher_fixtures import MEMBERS, NETWORK

NAN = math.nan


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, cache: Path) -> Store:
    return prepare(tiny_cohort, cache)


def ensemble(store: Store, members: dict[str, np.ndarray], weights: Any = "equal") -> Ensemble:
    """Returns an ensemble whose members have the given logits."""
    config = {"members": {name: {"kind": "tabular"} for name in members}, "weights": weights}
    made = Ensemble(validate(EnsembleParams, config), store.facts)
    made.member_logits = {name: logits.astype(np.float32) for name, logits in members.items()}
    return made


def test_the_mean_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [NAN, NAN]], [[-1.0, 3.0], [NAN, NAN], [NAN, NAN]]]).double()
    entropy = torch.tensor([[0.0, 0.7, NAN], [math.log(2), NAN, NAN]]).double()
    third = torch.tensor([math.log(2), 0.0, 0.0]).double()  # weights 2/3 and 1/3
    expected = torch.tensor([[1.0, 1.0], [1.0, 1.0], [NAN, NAN]]).double()
    torch.testing.assert_close(combine(logits, entropy, third), expected, equal_nan=True)
    unsure = torch.tensor([math.log(2), 0.0, 1.0]).double()  # the second by another exp(-log 2): 4/5 and 1/5
    combined = combine(logits, entropy, unsure)[0]
    torch.testing.assert_close(combined, torch.tensor([2 * 0.8 - 0.2, 3 * 0.2]).double())


def test_given_weights_count_in_proportion(store: Store) -> None:
    size = store.target_NK.shape
    made = ensemble(store, {"a": np.full(size, 1.0), "b": np.full(size, 5.0)}, {"a": 3.0, "b": 1.0})
    made.fit(store, store.rows("train"))
    assert made.outputs(store, np.arange(2)).logits_BK.tolist() == [[2.0] * 3] * 2  # type: ignore[union-attr]


def test_learned_weights_are_the_best_on_the_simplex(store: Store) -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(3, *store.target_NK.shape))
    members = {"good": 2 * store.target_NK + noise[0], "fair": store.target_NK + noise[1], "noise": 2 * noise[2]}
    members["fair"][::4] = NAN
    rows = store.rows("train")
    made = ensemble(store, members, "learned")
    made.fit(store, rows)
    weights = made.parameters[:-1].softmax(0)
    assert made.parameters[-1] == 0 and weights[0] > weights[1] > weights[2]

    member_logits = [logits[rows] for logits in made.member_logits.values()]
    entropy_MN = torch.from_numpy(np.stack([classify.entropy(logits, store.facts.tasks) for logits in member_logits]))

    def loss(parameters: torch.Tensor) -> float:
        combined = combine(torch.from_numpy(np.stack(member_logits)).double(), entropy_MN, parameters)
        target, known = torch.from_numpy(store.target_NK[rows]), torch.from_numpy(store.known_NK[rows])
        return task_loss(combined, target, known, store.facts.tasks).item()

    grid = [
        torch.tensor([a, b, 1 - a - b]).clamp(min=1e-9).log()
        for a in np.linspace(0, 1, 21)
        for b in np.linspace(0, 1 - a, 21)
    ]
    best = min(loss(torch.cat([one, torch.zeros(1)]).double()) for one in grid)
    assert loss(made.parameters) <= best + 1e-4


def test_the_more_confident_member_counts_for_more(store: Store) -> None:
    """Each of two members is right on half of the samples, and unsure and wrong on the other half."""
    generator = np.random.default_rng(1)
    knows = generator.random(len(store.sample_ids)) < 0.5
    wrong = 0.5 * generator.normal(size=(2, *store.target_NK.shape))
    members = {
        "a": np.where(knows[:, None], 4 * store.target_NK, wrong[0]),
        "b": np.where(~knows[:, None], 4 * store.target_NK, wrong[1]),
    }
    rows = store.rows("train")
    losses = []
    for weights in ("learned", "learned_per_sample"):
        made = ensemble(store, members, weights)
        made.fit(store, rows)
        combined = made.outputs(store, rows).logits_BK
        assert combined is not None
        target, known = torch.from_numpy(store.target_NK[rows]), torch.from_numpy(store.known_NK[rows])
        losses.append(task_loss(combined, target, known, store.facts.tasks).item())
    assert made.parameters[-1] > 1 and losses[1] < 0.6 * losses[0]


def test_members_without_logits_are_left_out(store: Store, tmp_path: Path) -> None:
    """For samples without text, the logits are those of the other member."""
    members = {name: validate(TeacherConfig, one) for name, one in MEMBERS.items()}
    config = TeacherConfig(kind="ensemble", params={"members": MEMBERS})
    outputs = cached_outputs(resolve(config), store, 0, tmp_path)
    alone = {name: cached_outputs(resolve(one), store, 0, tmp_path).arrays["logits"] for name, one in members.items()}
    assert len(list((tmp_path / "teachers").glob("*/manifest.json"))) == 3, "members are shared with whoever asks"
    silent = alone["report"].isnan().all(dim=1) & alone["findings"].isfinite().all(dim=1)
    assert silent.any()
    torch.testing.assert_close(outputs.arrays["logits"][silent], alone["findings"][silent])
    both = alone["report"].isfinite().all(dim=1)
    mean = (alone["report"] + alone["findings"])[both] / 2
    torch.testing.assert_close(outputs.arrays["logits"][both], mean)
    assert outputs.seconds > 0


def test_patients_stay_in_one_fold_of_members_and_of_learned_weights(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three teachers is fitted five times without a fold, and predicts only that fold."""
    log: dict[str, list[tuple[str, set[int]]]] = {"tabular": [], "text": [], "ensemble": []}

    def noted(kind: str, name: str) -> Any:
        real = getattr(TEACHERS[kind], name)
        return lambda self, s, rows: (log[kind].append((name, set(s.patient_N[rows].tolist()))), real(self, s, rows))[1]

    for kind in log:
        for name in ("fit", "outputs"):
            monkeypatch.setattr(TEACHERS[kind], name, noted(kind, name))
    config = TeacherConfig(kind="ensemble", params={"members": MEMBERS, "weights": "learned_per_sample"})
    cached_outputs(resolve(config), store, 0, tmp_path)
    train = set(store.patient_N[store.rows("train")].tolist())
    for calls in log.values():
        assert [name for name, _ in calls] == ["fit", "outputs"] * 6
        for (_, learnt), (_, queried) in zip(calls[0:10:2], calls[1:10:2], strict=True):
            assert learnt and queried and not learnt & queried and learnt | queried == train


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"members": {"mri": {"kind": "image", "params": {"view": "mri"}}}},
            "params.members.mri.params.view: the cohort",
        ),
        (
            {"members": {"x": {"kind": "tabular", "params": {"columns": ["mass_shape"]}}}},
            "params.members.x.params.columns: no column 'mass_shape'",
        ),
        (
            {"members": {"x": {"kind": "text", "params": {"sections": ["findings"]}}}},
            "params.members.x.params.sections: the cohort has no section 'findings'",
        ),
        ({"members": {"x": {"kind": "tabulr"}}}, "params.members.x.kind: unknown teacher 'tabulr' (did you mean"),
        ({"members": {"x": {"kind": "tabular", "params": {"l3": 1}}}}, "params.members.x.params.l3: unknown key"),
        (
            {"members": {"x": {"kind": "tabular", "control": "shuffled"}}},
            "params.members.x.control: a member cannot have a control",
        ),
        ({"weights": {"findings": 1.0}}, "params.weights.report: missing"),
        (
            {"weights": {"findings": 1.0, "report": 1.0, "reprot": 2.0}},
            "params.weights.reprot: no member has",
        ),
    ],
)
def test_refusals_at_planning(store: Store, change: dict[str, Any], problem: str) -> None:
    params = {"members": MEMBERS | change.get("members", {})} | (
        {"weights": change["weights"]} if "weights" in change else {}
    )
    mistakes = [str(mistake) for mistake in check(TeacherConfig(kind="ensemble", params=params), store.facts)]
    assert len(mistakes) == 1 and mistakes[0].startswith(problem), mistakes


def test_caveats_of_members_are_given_at_planning(store: Store) -> None:
    near = {"near": {"kind": "tabular", "params": {"near_label": ["assessment"]}}}
    silent = 1 - store.text(["report"])["report"].notna().to_numpy()[store.rows("train")].mean()
    assert silent > 0.05
    assert resolve(TeacherConfig(kind="ensemble", params={"members": MEMBERS | near})).caveats(store.facts) == [
        f"member report has no output for {silent:.1%} of the training samples, because they have no text in report",
        "member near reads assessment, which nearly states the label; its runs are tagged near_label",
    ]


def test_a_member_that_starts_from_a_student_is_refused_at_planning(store: Store, tmp_path: Path) -> None:
    """Its weights have seen labels: those of another cohort, or of patients that no fold may have seen."""
    exported = tmp_path / "student.safetensors"
    save_file({"model.cls_token": torch.zeros(1)}, exported, {"format": "1", "card": "{}"})
    network = NETWORK | {"pretrained": True, "weights": str(exported)}
    member = {"mri": {"kind": "image", "params": {"view": "superior", "network": network}}}
    (mistakes,) = check(TeacherConfig(kind="ensemble", params={"members": MEMBERS | member}), store.facts)
    assert mistakes.path == "params.members.mri.params.network.weights"
    assert mistakes.problem.startswith(f"{exported} is a student that was trained here; wanted weights")


def test_outputs_copied_from_another_cohort_are_refused(store: Store, tmp_path: Path) -> None:
    """A copied cache may hold a folder with the right name and the outputs of another cohort."""
    config = TeacherConfig(kind="tabular")
    cached_outputs(resolve(config), store, 0, tmp_path)
    (folder,) = (tmp_path / "teachers").glob("tabular-*[0-9a-f]/")
    manifest = json.loads((folder / "manifest.json").read_text())
    for content, problem in (
        (
            json.dumps(manifest | {"cohort": "another"}),
            r"another teacher or cohort \(cohort differ\)",
        ),
        ("{", r"is damaged \(JSONDecodeError\)"),
        ("{}", r"is damaged \(KeyError\)"),
    ):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(TeacherError, match=rf"teacher 'tabular': .*{problem}; delete that folder"):
            cached_outputs(resolve(config), store, 0, tmp_path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "logits.npy").write_bytes(b"words")
    with pytest.raises(TeacherError, match=r"teacher 'tabular': .* is damaged"):
        cached_outputs(resolve(config), store, 0, tmp_path)


def test_an_ensemble_needs_two_members() -> None:
    with pytest.raises(ConfigError, match="an ensemble has at least two"):
        validate(EnsembleParams, {"members": {"findings": {"kind": "tabular"}}})
