"""The fused teacher: cross-attention by hand, missing inputs, and outputs for the view of the student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mmpkd.augment import apply_view, draw_views
from mmpkd.build import build, check
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import AugmentationConfig, CohortConfig, TeacherConfig, TrialConfig
from mmpkd.teachers import resolve
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.teachers.fitting import folds
from mmpkd.teachers.fused import Fused, FusedParams
from mmpkd.teachers.fusion import Cells, Fusion, Patches, Update
from mmpkd.teachers.online import Online, online
from mmpkd.train import train
from mmpkd.training.probe import Probe
from mmpkd.training.stages import Run
from mmpkd.training.stand_in import StandIn, stand_in
from mmpkd.training.step import descend, epoch_inputs, loss_terms
from mmpkd.types import Mistake, Needs
from tests.mmpkd.teacher_fixtures import EXAMPLES, FUSED

NAN = math.nan


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, cache: Path) -> Store:
    return prepare(tiny_cohort, cache)


@pytest.fixture(scope="module")
def fused_online(store: Store, cache: Path) -> Online:
    return online(resolve(TeacherConfig(kind="fused", params=FUSED)), store, 0, cache)


def images(store: Store, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(store.image_NCHW[rows]).float() / 255


def test_one_latent_and_two_tokens_by_hand() -> None:
    """Scores ln 3 and 0, so weights 3/4 and 1/4; the step adds 10 to the first number."""
    update = Update(dim=2, heads=1)
    update.norm_latents = update.norm_tokens = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in (*update.attention.parameters(), *update.step.parameters()):
            parameter.zero_()
        update.attention.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))  # queries, keys and values as they are
        update.attention.out_proj.weight.copy_(torch.eye(2))
        update.step[-1].bias[0] = 10
    reach = math.sqrt(2) * math.log(3)  # over sqrt(2), the root of the width, a score of ln 3
    latent, tokens = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[reach, 0.0], [0.0, 4.0]]])
    for there, expected in (
        ([True, True], [1 + 0.75 * reach + 10, 0.25 * 4]),
        ([True, False], [1 + reach + 10, 0.0]),
        ([False, True], [1 + 10.0, 4.0]),
        ([False, False], [1.0, 0.0]),  # neither attention nor step
    ):
        torch.testing.assert_close(update(latent, tokens, torch.tensor([there])), torch.tensor([[expected]]))


def test_cells_by_hand() -> None:
    """Two columns, of two numbers and of one; a cell is missing where one of its numbers is."""
    cells = Cells(torch.tensor([0, 0, 1]), dim=2)
    with torch.no_grad():
        cells.embed.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
        cells.pos_embed.copy_(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))
    tokens, there = cells(torch.tensor([[2.0, 3.0, -1.0], [NAN, NAN, 0.0], [1.0, NAN, NAN]]))
    assert tokens[0].tolist() == [[102.0, 3.0], [-5.0, 95.0]] and tokens[1, 1].tolist() == [0.0, 100.0]
    assert there.tolist() == [[True, True], [False, True], [False, False]]


def fusion(depth: int = 2) -> Fusion:
    torch.manual_seed(0)
    readers = {"image": Patches(1, 8, 4, 4), "view": Patches(1, 8, 4, 4), "table": Cells(torch.tensor([0, 0, 1]), 4)}
    return Fusion(readers, latents=3, dim=4, depth=depth, heads=2, num_logits=2)


def some_inputs() -> dict[str, Tensor]:
    """Three samples: one without a cell, one with one of two, one with both."""
    image, view = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"image": image, "view": view, "table": torch.tensor([[NAN] * 3, [NAN, NAN, 0.5], [1.0, 0.0, -2.0]])}


@pytest.mark.parametrize("bfloat16", [False, True])
def test_missing_inputs_are_skipped_exactly(bfloat16: bool) -> None:
    network, inputs = fusion(), some_inputs()
    rest = {name: values for name, values in inputs.items() if name != "table"}
    other = inputs | {"table": torch.where(inputs["table"].isnan(), torch.tensor([NAN, 7e3, NAN]), inputs["table"])}
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        told, elsewhere, without = network(inputs), network(other), network(rest)
    for whole, changed, less in zip(told, elsewhere, without, strict=True):
        assert whole.isfinite().all()
        assert torch.equal(whole[0], less[0]), "a sample without a table is answered as by a network without one"
        assert torch.equal(whole[:2], changed[:2]), "nothing hangs on what stands in a missing cell's place"
        assert not torch.equal(whole[1], less[1]) and not torch.equal(whole[2], less[2])
    assert told[0].dtype == torch.float32


def test_a_sample_without_a_modality_gives_no_gradient_to_it() -> None:
    network, inputs = fusion(), some_inputs()
    network(inputs)[0][:1].sum().backward()
    of_table = [*network.readers["table"].parameters(), *network.updates["table"].parameters()]
    assert all((one.grad == 0).all() for one in of_table if one.grad is not None)
    assert all(one.grad.isfinite().all() for one in network.parameters() if one.grad is not None)
    assert any((one.grad != 0).any() for one in network.readers["view"].parameters() if one.grad is not None)


def test_depth_repeats_the_same_weights() -> None:
    once, thrice = fusion(depth=1), fusion(depth=3)
    assert [one.shape for one in once.parameters()] == [one.shape for one in thrice.parameters()]
    inputs = some_inputs()
    latent = once.latents.expand(3, -1, -1)
    for _ in range(3):
        for name in ("image", "view", "table"):
            latent = once.updates[name](latent, *once.readers[name](inputs[name]))
    torch.testing.assert_close(thrice(inputs)[1], latent.mean(dim=1))
    torch.testing.assert_close(thrice(inputs)[0], once.head(once.norm(latent.mean(dim=1))))


class Gaps(Store):
    """A store whose first validation sample has no cell, and whose second has an unseen word."""

    def privileged(self, names: Sequence[str]) -> pd.DataFrame:
        table = super().privileged(names).copy()
        first, second = self.rows("val")[:2]
        table.iloc[first] = None
        table.iloc[second, table.columns.get_loc("margin")] = "a word that no training patient has"
        return table


def test_a_patient_without_cells_gets_the_output_of_the_images(store: Store) -> None:
    gaps = Gaps.open(store.path)
    teacher, val = Fused(FusedParams(**FUSED), gaps.facts), gaps.rows("val")
    teacher.fit(gaps, gaps.rows("train"))
    cells = teacher.table(gaps, val)
    assert cells[0].isnan().all() and not cells[1].isnan().all()
    outputs = teacher.outputs(gaps, val[:1])
    pixels = {"image": images(gaps, val[:1]), "view": torch.from_numpy(gaps.view("superior")[val[:1]]).float() / 255}
    logits, embedding = teacher.network(pixels)
    assert outputs.logits_BK is not None and outputs.embedding_BD is not None
    assert torch.equal(outputs.logits_BK, logits) and torch.equal(outputs.embedding_BD, embedding)
    with_table, without = (teacher.outputs(each, val[2:3]).logits_BK for each in (store, gaps))
    assert torch.equal(with_table, without), "the others' answers stay"  # type: ignore[arg-type]


class NumberedNetwork(nn.Module):
    """Replaces a network: its logits are its number, and it records its inputs."""

    def __init__(self, number: int, num_logits: int) -> None:
        super().__init__()
        self.number, self.head = number, nn.Linear(1, num_logits)
        self.heard: list[Mapping[str, Tensor]] = []

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.heard.append(inputs)
        shape = len(inputs["image"]), self.head.out_features
        return torch.full(shape, float(self.number)), torch.full((shape[0], 16), float(self.number))


def with_numbered_networks(fused_online: Online) -> Online:
    models = [replace(model, network=NumberedNetwork(index, 3)) for index, model in enumerate(fused_online.models)]
    return replace(fused_online, models=models)


def test_each_sample_gets_the_model_that_did_not_see_its_patient(store: Store, fused_online: Online) -> None:
    train, val, test = (store.rows(part) for part in ("train", "val", "test"))  # type: ignore[arg-type]
    expected = np.full(len(store.sample_ids), NAN)
    expected[train], expected[val] = folds(store, train, seed=0), 5
    rows = np.random.default_rng(0).permutation(np.r_[train, val, test])
    output = with_numbered_networks(fused_online).at(torch.from_numpy(rows), images(store, rows))
    assert output.logits_BK is not None and output.embedding_BD is not None
    np.testing.assert_array_equal(output.logits_BK[:, 0].numpy(), expected[rows])
    np.testing.assert_array_equal(output.embedding_BD[:, 0].numpy(), np.where(np.isin(rows, test), NAN, 5.0))
    assert set(expected[train]) == {0, 1, 2, 3, 4}


def test_fold_models_are_at_one_level_while_a_student_trains(
    store: Store, fused_online: Online, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offset of a fold model is added to its logits for every view, and to no other logits."""
    added_FK = np.arange(15, dtype=np.float32).reshape(5, 3)
    before = torch.from_numpy(np.zeros((5, 3), np.float32))
    monkeypatch.setattr("mmpkd.teachers.fitting.level_offsets", lambda *_: before.numpy())
    plain = online(resolve(EXAMPLES["fused"]), store, 0, tmp_path / "plain")
    monkeypatch.setattr("mmpkd.teachers.fitting.level_offsets", lambda *_: added_FK)
    moved = online(resolve(EXAMPLES["fused"]), store, 0, tmp_path / "moved")
    for part in ("train", "val"):
        rows = torch.from_numpy(store.rows(part))  # type: ignore[arg-type]
        pixels = images(store, rows.numpy())
        one, other = plain.at(rows, pixels).logits_BK, moved.at(rows, pixels).logits_BK
        assert one is not None and other is not None
        added = torch.from_numpy(added_FK)[moved.model_N[rows]] if part == "train" else torch.zeros(len(rows), 3)
        torch.testing.assert_close(other - one, added, atol=1e-4, rtol=1e-4)


def test_only_needed_fields_are_computed(store: Store, fused_online: Online) -> None:
    train = store.rows("train")
    for field, numbers in (("logits", [0, 1, 2, 3, 4]), ("embedding", [5])):
        some = with_numbered_networks(fused_online).only(Needs(teacher=frozenset({field})))
        told = some.at(torch.from_numpy(train), images(store, train))
        assert (told.logits_BK is None) == (field == "embedding") and (told.embedding_BD is None) == (field == "logits")
        networks: list[Any] = [one.network for one in some.models]
        assert [network.number for network in networks if network.heard] == numbers


def test_the_further_image_gets_the_view_of_the_student(store: Store, fused_online: Online) -> None:
    rows = store.rows("val")[:4]
    view = draw_views(4, 32, AugmentationConfig(shift=0.3), torch.Generator().manual_seed(3))
    seen = apply_view(images(store, rows), view)
    speaker = with_numbered_networks(fused_online)
    speaker.at(torch.from_numpy(rows), seen, view)
    network: Any = speaker.models[5].network
    (inputs,) = network.heard[:1]
    assert torch.equal(inputs["image"], seen)
    assert torch.equal(inputs["view"], apply_view(torch.from_numpy(store.view("superior")[rows]).float() / 255, view))
    first, other = (fused_online.at(torch.from_numpy(rows), pixels).logits_BK for pixels in (seen, images(store, rows)))
    assert not torch.allclose(first, other), "it sees the student's view"  # type: ignore[arg-type]


def trial(tiny_trial: TrialConfig, **changes: Any) -> TrialConfig:
    content = {"teachers": {"both": {"kind": "fused", "params": FUSED}}, "epochs": 2} | changes
    return TrialConfig.model_validate(tiny_trial.model_dump() | content)


def test_it_is_frozen_and_no_gradient_reaches_it(tiny_trial: TrialConfig, store: Store, cache: Path) -> None:
    config = trial(tiny_trial)
    teachers = fit_teachers(config, store, cache)
    student, objectives = build(config, store.facts, {"both": 16})
    run = Run(config, store, store.rows("train"), student, objectives, teachers, torch.device("cpu"))
    both = teachers["both"]
    assert isinstance(both, Online)
    networks = [one.network for one in both.models]
    before = [value.clone() for network in networks for value in network.state_dict().values()]
    student.train()
    for batch, view in map(run.samples.batch, epoch_inputs(run, 0)):
        terms = loss_terms(run, batch, view)
        assert terms["logits"].requires_grad and terms["features"].requires_grad
        descend(run, terms)
        told = both.at(batch.rows_B, batch.image_BCHW, view)
        assert not told.logits_BK.requires_grad and not told.embedding_BD.requires_grad  # type: ignore[union-attr]
    after = [value for network in networks for value in network.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(not one.requires_grad and one.grad is None for network in networks for one in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


def test_a_resumed_training_equals_an_uninterrupted_one(tiny_trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    whole = train(trial(tiny_trial), cache)

    def stop(report: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial(tiny_trial), cache, tmp_path, report=stop)
    resumed = train(trial(tiny_trial), cache, tmp_path, tmp_path / "last.pt")
    assert [one.terms for one in resumed] == [one.terms for one in whole]
    assert resumed[-1].metrics["val/auroc"] == whole[-1].metrics["val/auroc"]
    assert {"teacher/both/auroc", "teacher/both/val_auroc", "teacher/both/entropy"} <= whole[-1].metrics.keys()


def test_the_shuffled_control_exchanges_privileged_inputs_and_keeps_the_image(
    store: Store, fused_online: Online
) -> None:
    shuffled = fused_online.shuffled(store, 0, seed=0)
    train = store.rows("train")
    source, model = shuffled.source_N.numpy(), fused_online.model_N.numpy()
    label, patient = store.target_NK.argmax(1), store.patient_N
    assert (model[source] == model).all() and (patient[source] != patient)[train].all()
    for one in train:  # of the same label, where the fold has another patient of it
        others = (model[train] == model[one]) & (label[train] == label[one]) & (patient[train] != patient[one])
        assert label[source[one]] == label[one] or not others.any()
    rest = np.setdiff1d(np.arange(len(source)), train)
    assert np.array_equal(source[rest], rest)

    speaker = with_numbered_networks(shuffled)
    speaker.only(Needs(teacher=frozenset({"embedding"}))).at(torch.from_numpy(train), images(store, train))
    network: Any = speaker.models[5].network
    (inputs,) = network.heard
    assert torch.equal(inputs["image"], images(store, train))
    assert torch.equal(inputs["view"], torch.from_numpy(store.view("superior")[source[train]]).float() / 255)
    of_all = fused_online.models[5]
    expected = of_all.table_MV[torch.searchsorted(of_all.row_M, torch.from_numpy(source[train]))]
    torch.testing.assert_close(inputs["table"], expected, rtol=0, atol=0, equal_nan=True)


def test_the_control_is_that_of_the_configuration(tiny_trial: TrialConfig, store: Store, cache: Path) -> None:
    plain = trial(tiny_trial)
    control = trial(tiny_trial, teachers={"both": {"kind": "fused", "params": FUSED, "control": "shuffled"}})
    sources = [fit_teachers(config, store, cache)["both"].source_N for config in (plain, control)]  # type: ignore[attr-defined]
    assert torch.equal(sources[0], torch.arange(len(store.sample_ids))) and not torch.equal(*sources)


@pytest.mark.parametrize(
    ("kind", "params", "path", "problem"),
    [
        ("fused", {"columns": []}, "params.columns", "without a privileged input"),
        ("fused", {"columns": ["assessment"]}, "params.columns", "near_label"),
        ("fused", {"columns": ["marign"]}, "params.columns", "did you mean 'margin'"),
        ("fused", {"view": "superoir"}, "params.view", "no further image 'superoir' (did you mean 'superior'?)"),
        ("fused", {"patch_size": 12}, "params.patch_size", "12 does not divide cohort.image_size, which is 32"),
        ("fused", {"dim": 30, "heads": 4}, "params", "dim must be a multiple of heads, got 30 and 4"),
        ("fused", {"latent": 4}, "params.latent", "did you mean 'latents'?"),
        (
            "ensemble",
            {"members": {"a": {"kind": "tabular"}, "b": {"kind": "fused"}}},
            "params.members.b.kind",
            "a teacher of kind 'fused' sees the student's view",
        ),
    ],
)
def test_mistakes_are_reported_at_planning(
    tiny_trial: TrialConfig, store: Store, kind: str, params: dict[str, Any], path: str, problem: str
) -> None:
    config = trial(tiny_trial, teachers={"both": {"kind": kind, "params": params}}, objectives={"logits": {}})
    (mistake,) = check(config, store.facts)
    assert isinstance(mistake, Mistake) and mistake.path == f"teachers.both.{path}" and problem in mistake.problem


def test_an_objective_that_needs_more_is_refused(tiny_trial: TrialConfig, store: Store) -> None:
    config = trial(tiny_trial, objectives={"features": {"params": {"layer": 1, "teacher_layer": 0}}})
    (mistake,) = check(config, store.facts)
    assert mistake.path == "objectives.features.teacher" and "does not provide hidden" in mistake.problem


@pytest.mark.parametrize("params", [{"columns": []}, {"view": None}])
def test_one_privileged_input_is_enough(store: Store, tmp_path: Path, params: dict[str, Any]) -> None:
    config = TeacherConfig(kind="fused", params=FUSED | params | {"epochs": 1})
    online_teacher = online(resolve(config), store, 0, tmp_path)
    assert set(online_teacher.models[5].network.readers) == {"image", "view" if params == {"columns": []} else "table"}
    rows = store.rows("val")
    outputs = online_teacher.at(torch.from_numpy(rows), images(store, rows))
    assert outputs.logits_BK is not None and outputs.logits_BK.isfinite().all()


def test_the_price_of_a_step_includes_the_teacher(tiny_trial: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    table = stand_in(tiny_trial.cohort)
    counts: list[int] = []
    ask = Fusion.forward
    monkeypatch.setattr(
        Fusion, "forward", lambda self, inputs: (counts.append(len(inputs["image"])), ask(self, inputs))[1]
    )
    config = trial(tiny_trial, objectives={"logits": {}})
    probe = Probe(config, StandIn(table.facts, table.thinned(32, 10, 0)), {"both": 16})
    counts.clear()
    cost = probe.cost(0.0)
    assert sum(counts) == 16 * cost.num_steps > 0
