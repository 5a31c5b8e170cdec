"""The choice of a confirmation: finalists of a search run on fresh seeds, and one of each arm is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweep.picking.candidates import Candidates
from sweep.verdict import finalists
from sweep.verdict.finalists import Finalist
from sweep.verdict.inference import SearchLuck, SeedScores
from sweep.verdict.opening.scores import SealedPart, evaluation_of
from sweep.verdict.protocol import Protocol
from sweep.verdict.training import phases
from sweep.verdict.training.sweeps import Sweeps


@dataclass(frozen=True)
class Choice:
    """What is chosen among the finalists of one search.

    Attributes:
        protocol: the protocol with these finalists.
        trials: those of the search.
        results: the finalists on the seeds of the choice.
        chosen: the number of the chosen trial of each arm.
        scores: scores of the finalists' students on validation patients, by finalist and score.
        luck: what the search adds to the variance of a score, by score and arm.
    """

    protocol: Protocol
    trials: Candidates
    results: Sequence[Finalist]
    chosen: Mapping[str, int]
    scores: Mapping[str, Mapping[str, SeedScores]]
    luck: Mapping[str, dict[str, SearchLuck]]

    def result(self, arm: str) -> Finalist:
        """Returns the chosen finalist of an arm."""
        return next(each for each in self.results if (each.arm, each.number) == (arm, self.chosen[arm]))


def choose(
    sweeps: Sweeps, protocol: Protocol, trials: Candidates, own: SealedPart, name: str = phases.CHOOSE
) -> Choice:
    """Trains the finalists, and chooses one of each arm.

    Args:
        own: the cohort of the search.
        name: the name of the phase.

    Raises:
        StoppedError: some trainings are left.
        NoVerdictError: every finalist of an arm has failed on a seed.
        UserError: something is damaged.
    """
    choosing, arm_of = phases.choosing(protocol, trials, name)
    sweep, records = sweeps.train(choosing, trials, own.store.fingerprint)
    results = finalists.results_of(records, arm_of, protocol.goal)
    chosen = finalists.choose(results, len(protocol.choose_seeds))
    scores = own.of_choice(sweeps.folder, protocol, (sweep, records), evaluation_of(trials), name)
    luck = finalists.luck_of(results, scores, trials.records, protocol)
    return Choice(protocol, trials, results, chosen, scores, luck)
