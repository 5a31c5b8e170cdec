"""Proposals of the next configuration: the samplers by name, points, and what a sampler learns from results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmpkd.config import TrialConfig
from sweep.search.choosers import ReplayChooser
from sweep.search.proposals import ArmSampler, Proposal, SamplerThread
from sweep.search.samplers import SAMPLERS
from sweep.search.samplers.sampler import NUM_STARTUP
from sweep.space.design import SpaceFillingDesign
from sweep.space.draw import draw
from sweep.space.space import Space, load_space
from sweep.types import Values

SPACE = """
cohort: {reader: synthetic}
optimizer:
  lr: {log_uniform: [1e-4, 1e-2]}
  batch_size: {int: [8, 11]}
  label_smoothing: {maybe: {uniform: [0, 0.1]}}
arms:
  none: {}
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.1, 10]}, params: {temperature: {choice: [1, 2, 4]}}}}
        deep: {features: {params: {layer: {log_int: [1, 4]}}}}
"""
# 2 x 2 + 2 = 6 configurations of the arm `tabular`.
SMALL = """
cohort: {reader: synthetic}
arms:
  none: false
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        soft: {logits: {weight: {choice: [1, 2]}, params: {temperature: {int: [1, 2]}}}}
        deep: {features: {maybe: {params: {layer: 1}}}}
"""
# A single leaf shows which values a sampler prefers.
SINGLE = "{cohort: {reader: synthetic}, optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}}"


def space_of(tmp_path: Path, content: str, *overrides: str) -> Space:
    (tmp_path / "space.yaml").write_text(content)
    space, mistakes = load_space(str(tmp_path / "space.yaml"), overrides)
    assert space is not None and not mistakes
    return space


def sampler_of(space: Space, arm: str = "tabular", num_goals: int = 2) -> ArmSampler:
    return ArmSampler(space, arm, ("val/auroc", "val/pointing")[:num_goals])


def results(proposal: Proposal, num_goals: int = 2) -> Values:
    """Returns the values of two conflicting goals, or of the first of them."""
    lr = proposal.config.optimizer.lr
    return (lr, -lr * proposal.config.optimizer.batch_size)[:num_goals]


def run(
    sampler: ArmSampler, numbers: Sequence[int], num_learned: int | None = None, num_goals: int = 2
) -> list[Proposal]:
    """Returns proposals. The sampler learns the results of the first `num_learned`, each before the next proposal."""
    proposals = []
    for index, number in enumerate(numbers):
        proposal = sampler.propose(number)
        assert proposal is not None
        proposals.append(proposal)
        if num_learned is None or index < num_learned:
            sampler.learn(proposal, results(proposal, num_goals))
    return proposals


def stored_proposal(space: Space, **values: Any) -> Proposal:
    """Returns a proposal with given values, as the storage returns it."""
    params = {f"none/{path.replace('__', '.')}": value for path, value in values.items()}
    chooser = ReplayChooser(params)
    drawn = draw(space.arms["none"], chooser, "none")
    return Proposal("none", drawn, TrialConfig.model_validate(drawn.config), params, chooser.distributions, {})


@pytest.fixture(autouse=True)
def few_random_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred random draws are enough to meet each of six configurations."""
    monkeypatch.setattr("sweep.search.proposals.RANDOM_TRIES", 100)


# --- what is proposed ---


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_stays_inside_the_space(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, SPACE, f"search.sampler={sampler}")
    proposals = run(sampler_of(space), range(NUM_STARTUP + 12))
    seen: dict[str, set[Any]] = {}
    for proposal in proposals:
        # The same parameters give the same configuration, and each is within its bounds.
        assert draw(space.arms["tabular"], ReplayChooser(proposal.params), "tabular").config == proposal.drawn.config
        optimizer = proposal.config.optimizer
        assert 1e-4 <= optimizer.lr <= 1e-2 and optimizer.batch_size in (8, 9, 10, 11)
        assert 0 <= optimizer.label_smoothing <= 0.1
        (kind,) = proposal.config.objectives
        if kind == "logits":
            assert 0.1 <= proposal.config.objectives[kind].weight <= 10
            assert proposal.config.objectives[kind].params["temperature"] in (1, 2, 4)
        else:
            assert proposal.config.objectives[kind].params["layer"] in (1, 2, 3, 4)
            assert "tabular/objectives.soft.logits.weight" not in proposal.params, "of another branch"
        for name in ("tabular/objectives", "tabular/optimizer.label_smoothing.maybe"):
            seen.setdefault(name, set()).add(proposal.params[name])
    assert set(map(frozenset, seen.values())) == {frozenset({"soft", "deep"}), frozenset({"absent", "present"})}
    assert len({proposal.config.fingerprint() for proposal in proposals}) == len(proposals)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_and_history_give_the_same_proposal(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, SPACE, f"search.sampler={sampler}")
    num = NUM_STARTUP + 3
    uninterrupted = sampler_of(space)
    history = run(uninterrupted, range(num), num - 2)
    restarted = sampler_of(space)
    for index, proposal in enumerate(history):
        running = index >= num - 2
        restarted.add_trial(proposal, None if running else results(proposal), running)
    for number in (num, num + 1):  # the first is the sampler's own, the second is of the design
        expected, proposed = uninterrupted.propose(number), restarted.propose(number)
        assert expected is not None and proposed is not None
        assert expected.params == proposed.params and expected.internal == proposed.internal
    other = sampler_of(space_of(tmp_path, SPACE, f"search.sampler={sampler}", "seed=1"))
    assert run(other, [0])[0].params != history[0].params


@pytest.mark.parametrize(
    ("sampler", "from_design"),
    [("tpe", (*range(10), 12, 15, 18)), ("gp", range(5)), ("qmc", range(19)), ("random", ()), ("nsga2", ())],
)
def test_the_first_proposals_and_every_nth_are_the_points_of_the_design_in_order(
    tmp_path: Path, sampler: str, from_design: Sequence[int]
) -> None:
    space = space_of(tmp_path, SPACE, f"search.sampler={sampler}")
    num_proposals = 19
    proposals = run(sampler_of(space, num_goals=1), range(num_proposals), num_goals=1)
    design = SpaceFillingDesign(space.arms["tabular"], "tabular", space.seed)
    points = [design.point(index) for index in range(num_proposals)]
    assert [proposals[number].params for number in from_design] == points[: len(from_design)]
    others = [proposal.params for number, proposal in enumerate(proposals) if number not in from_design]
    assert not [params for params in others if params in points]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_configuration_is_proposed_exactly_once(tmp_path: Path, sampler: str) -> None:
    sampler = sampler_of(space_of(tmp_path, SMALL, f"search.sampler={sampler}"))
    proposals = []
    for number in range(6):
        proposal = sampler.propose(number)
        assert proposal is not None
        proposals.append(proposal)
        sampler.learn(proposal, None if number % 3 == 2 else (0.5 + number / 100, 0.1))
    assert len({proposal.config.fingerprint() for proposal in proposals}) == 6
    assert sampler.propose(6) is None


def test_a_model_is_fitted_to_the_front_and_the_latest_of_many_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.search.proposals.MAX_RESULTS", 6)
    scores: list[list[float]] = []

    def choose(result: Any, score: Any, running: Any, candidates: Any, seed: int) -> int:
        scores.append(score[:, 0].tolist())
        return 0

    monkeypatch.setattr(SAMPLERS["gp"], "choose", staticmethod(choose))
    sampler = sampler_of(space_of(tmp_path, SINGLE), "none", 1)
    for number, value in enumerate([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]):
        proposal = sampler.propose(number)
        assert proposal is not None
        sampler.learn(proposal, (value,))
    assert scores[-1] == [0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "the best, and the six before the last proposal"


def test_draws_from_a_continuous_range_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.search.proposals.SAMPLER_TRIES", 1)
    monkeypatch.setattr("sweep.search.proposals.RANDOM_TRIES", 0)
    proposals = run(sampler_of(space_of(tmp_path, SPACE, "search.sampler=random")), range(5))
    assert len({proposal.params["tabular/optimizer.lr"] for proposal in proposals}) == 5
    proposals = run(sampler_of(space_of(tmp_path, SPACE, "search.sampler=qmc")), range(5))
    assert [proposal.internal for proposal in proposals] == [{}] * 5, "enqueued parameters are no notes of the sampler"


def test_configurations_of_this_sweep_are_not_proposed_again_but_those_of_another_sweep_are(tmp_path: Path) -> None:
    space = space_of(tmp_path, SMALL)
    history = run(sampler_of(space), range(6))
    own, warm = sampler_of(space), sampler_of(space)
    for proposal in history:
        own.add_trial(proposal, (0.5, 0.5))
        warm.add_trial(replace(proposal, foreign=True), (0.5, 0.5))
    assert own.propose(6) is None
    again = {proposal.config.fingerprint() for proposal in run(warm, range(6))}
    assert again == {proposal.config.fingerprint() for proposal in history}
    assert warm.propose(6) is None


# --- points ---

POINTS = (
    "search.points=[{arm: tabular, optimizer.lr: 1e-3, objectives.deep.features.params.layer: 2},"
    " {arm: tabular, objectives: deep}, {arm: none, optimizer.lr: 5e-3}, {arm: tabular, optimizer.batch_size: 9}]"
)


def test_points_come_first_in_their_order(tmp_path: Path) -> None:
    space = space_of(tmp_path, SPACE, POINTS)
    first, second, third, fourth = run(sampler_of(space), range(4))
    assert (first.config.optimizer.lr, first.config.objectives["features"].params) == (1e-3, {"layer": 2})
    assert 8 <= first.config.optimizer.batch_size <= 11, "the values that a point leaves out are sampled"
    assert list(second.config.objectives) == ["features"]
    assert third.config.optimizer.batch_size == 9
    designed = SpaceFillingDesign(space.arms["tabular"], "tabular", space.seed).point(3)
    assert fourth.params == designed, "points of the design follow, counted by the trials so far"
    (only,) = run(sampler_of(space, "none"), range(1))
    assert only.config.optimizer.lr == 5e-3


def test_a_restarted_driver_continues_with_the_next_point(tmp_path: Path) -> None:
    # The second point gives fewer values than the first: the trial of the first fits both, but has used only one.
    space = space_of(tmp_path, SPACE, POINTS)
    uninterrupted = run(sampler_of(space), range(5))
    for done in range(5):
        restarted = sampler_of(space)
        for proposal in uninterrupted[:done]:
            restarted.add_trial(proposal, results(proposal))
        assert restarted.propose(done).params == uninterrupted[done].params, done  # type: ignore[union-attr]


def test_a_point_that_another_sweep_has_run_is_still_tried_here(tmp_path: Path) -> None:
    space = space_of(tmp_path, SPACE, POINTS)
    (foreign,) = run(sampler_of(space), range(1))
    sampler = sampler_of(space)
    sampler.add_trial(replace(foreign, foreign=True), (0.5, 0.5))
    (first,) = run(sampler, range(1))
    assert (first.config.optimizer.lr, first.config.objectives["features"].params) == (1e-3, {"layer": 2})


# --- what a sampler learns ---


@pytest.mark.parametrize("learned", [0.9, 0.5])
def test_a_pruned_trial_counts_with_the_values_that_the_sampler_learns(tmp_path: Path, learned: float) -> None:
    below = 0
    for seed in range(5):
        space = space_of(tmp_path, SINGLE, f"seed={seed}")
        sampler = sampler_of(space, "none", num_goals=1)
        for index in range(22):  # evenly from 1e-4 to 1e-2; the trials below 1e-3 were pruned
            lr = 10 ** (-4 + index / 10.5)
            sampler.add_trial(stored_proposal(space, optimizer__lr=lr), (learned if lr < 1e-3 else 0.7,))
        (proposal,) = run(sampler, [22], num_learned=0)  # the 23rd is the sampler's own, not of the design
        below += proposal.config.optimizer.lr < 1e-3
    assert below >= 4 if learned > 0.7 else below <= 1


def test_a_trial_without_values_does_not_change_the_proposals(tmp_path: Path) -> None:
    space = space_of(tmp_path, SINGLE)
    proposals = []
    for lost in (False, True):
        sampler = sampler_of(space, "none", num_goals=1)
        for index in range(22):
            sampler.add_trial(stored_proposal(space, optimizer__lr=10 ** (-4 + index / 10.5)), (0.5 + index / 100,))
        for lr in (
            (2e-3, 3e-3, 4e-3) if lost else ()
        ):  # their workers died; with three of them the next proposal is still the sampler's own
            sampler.add_trial(stored_proposal(space, optimizer__lr=lr))
        proposals += run(sampler, [22], num_learned=0)
    assert proposals[0].params == proposals[1].params


# --- in a thread ---


@pytest.fixture
def samplers(tmp_path: Path) -> Iterator[SamplerThread]:
    space = space_of(tmp_path, SPACE)
    thread = SamplerThread({arm: sampler_of(space, arm) for arm in space.arms})
    yield thread
    thread.close()


def test_proposals_are_made_one_at_a_time_for_the_requested_arm(samplers: SamplerThread) -> None:
    assert samplers.requested_arm is None
    arms = list(itertools.islice(itertools.cycle(("none", "tabular")), 4))
    for number, arm in enumerate(arms):
        samplers.request(arm, number)
        assert samplers.requested_arm == arm
        made, proposal = samplers.collect(wait=True)
        assert made and proposal is not None and proposal.arm == arm
        assert samplers.requested_arm is None
        samplers.learn(proposal, results(proposal))


def test_a_samplers_exception_is_raised_when_a_later_proposal_is_collected(samplers: SamplerThread) -> None:
    samplers.request("none", 0)
    _, proposal = samplers.collect(wait=True)
    assert proposal is not None
    for _ in range(2):  # the second time is a mistake in the calling code
        samplers.learn(proposal, (0.5, 0.5))
    samplers.request("none", 1)
    samplers.collect(wait=True)
    samplers.request("none", 2)
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):
        samplers.collect(wait=True)
