"""The protocol of a confirmation: what will be compared and how, frozen before anything of it runs.

Its hash stands in every later file, in the ledger and in the verdict, so that a reader can check that the question was
fixed before the answer was known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, model_validator

from mmpkd.config import validate
from mmpkd.machine.checksums import DamagedError
from mmpkd.types import ConfigError, Positive, Strict, UserError
from sweep.space.search_config import are_of_answers
from sweep.verdict.folder import ConfirmationFolder, read_mapping
from sweep.verdict.power import MIN_SEEDS

HEADER: Final = """\
# The protocol of a confirmation (python -m sweep.confirm). It was frozen before anything of it ran.
# The hash covers the section `protocol`. A changed section is refused; new=true begins a new confirmation instead.
"""
UNKNOWN: Final = "unknown"
Seeds = Annotated[tuple[int, ...], Field(min_length=MIN_SEEDS)]


@dataclass(frozen=True)
class Wanted:
    """What the command line states of the protocol. None: the default."""

    goal: str | None = None
    localisation: str | None = None
    arms: tuple[str, ...] | None = None
    difference: float | None = None
    localisation_difference: float | None = None
    finalists: int | None = None
    choose_seeds: int | None = None
    seeds: int | None = None
    folds: int | None = None

    def stated(self) -> dict[str, Any]:
        """Returns what is stated, by the name of the option."""
        content = {key: value for key, value in vars(self).items() if value is not None}
        return content | ({"arms": list(self.arms)} if self.arms else {})


class Protocol(Strict):
    """What a confirmation compares, and how."""

    LATER = ("external", "folds", "crossed", "space", "finalists_in_fold", "localisation_difference", "frozen")

    sweep: str  # name of the sweep
    sweep_id: str  # its identity, which another sweep of the same name does not have
    cohort: str  # fingerprint of the prepared cohort
    goal: str  # the primary score
    localisation: str | None  # the second primary score; None for a cohort without ROIs
    reference: str  # the arm with which the others are compared
    arms: Annotated[tuple[str, ...], Field(min_length=1)]
    difference: Annotated[float, Field(gt=0)]  # of `goal`: the smallest one that matters
    trials: Positive  # the first so many complete trials of each arm, among which its finalists are chosen
    finalists: Mapping[str, tuple[int, ...]]  # numbers of the trials, best first, by arm
    choose_seeds: Seeds  # on which the finalists run, to choose one of each arm
    seeds: Seeds  # on which the chosen ones run, whose students are tested
    controls: Mapping[str, str]  # the arm that each control belongs to, by the name of the control
    test_patients: Positive
    after: str = ""  # hash of the protocol of the confirmation before this one, UNKNOWN if that can no longer be read
    folds: int = 0  # of a cross-validation that takes the place of the test part; 0: none
    crossed: str = ""  # the cohort that is divided into these folds
    # What is searched again inside each fold, without cohort and seed. Then `finalists` is empty, and `trials` is the
    # number of configurations of each arm in each fold. Empty: the finalists come from the sweep.
    space: Mapping[str, Any] = {}
    finalists_in_fold: int = 0  # finalists of each arm in each fold, if it is searched again; fewer if an arm has fewer
    external: str = ""  # fingerprint of the external cohort on which the students are scored as well, if any
    # Of `localisation`: the smallest difference that matters. None, as in protocols of earlier versions: `difference`.
    localisation_difference: Annotated[float, Field(gt=0)] | None = None
    # When it was frozen, as ISO 8601 in UTC. Empty in a proposal, and in protocols of the first version, which had the
    # time beside the section, so that their hash does not cover it.
    frozen: str = ""

    @model_validator(mode="after")
    def _comparable(self) -> Protocol:
        """Checks what a proposal never has: an edited file with a new hash may."""
        if self.reference in self.arms:
            raise ValueError(f"{self.reference!r} would be compared with itself")
        lacking = [arm for arm in (self.reference, *self.arms) if not self.finalists.get(arm)]
        if lacking and not self.space:
            raise ValueError(f"no finalists for {', '.join(lacking)}")
        if set(self.seeds) & set(self.choose_seeds):
            raise ValueError("a seed of the choice is trained again")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of the content, as 64 hex digits."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def content_hash(self) -> str:
        """The hash of the content without the time of freezing, which is the same before and after."""
        return self.model_copy(update={"frozen": ""}).hash

    @property
    def part(self) -> str:
        """What is opened, in words."""
        return "the cohort of the folds" if self.folds else "the test part"

    def smallest(self, goal: str) -> float:
        """Returns the smallest difference of a primary score that matters."""
        return (self.localisation_difference if goal == self.localisation else None) or self.difference

    @property
    def of_answers(self) -> bool:
        """Whether its students answer questions."""
        return are_of_answers(self.goals())

    def goals(self) -> list[str]:
        """Returns the primary scores."""
        return [self.goal, *([self.localisation] if self.localisation else [])]


def tested_name(score: str) -> str:
    """Returns the name of a score on the tested patients, such as `test/auroc` of the goal `val/auroc`."""
    return f"test/{score.removeprefix('val/')}"


def freeze(proposal: Protocol, folder: ConfirmationFolder) -> Protocol:
    """Writes a protocol with the time and its hash, and returns it with the time."""
    protocol = proposal.model_copy(update={"frozen": datetime.now(UTC).isoformat(timespec="seconds")})
    content = {"hash": protocol.hash, "protocol": protocol.model_dump(mode="json")}
    folder.protocol.write_bytes((HEADER + yaml.safe_dump(content, sort_keys=False)).encode())
    return protocol


def read_protocol(folder: ConfirmationFolder) -> Protocol | None:
    """Returns the protocol of a confirmation, or None if it has none yet.

    Raises:
        UserError: the protocol was edited, or cannot be read.
    """
    content = _read(folder)
    return None if content is None else content[0]


def frozen_at(folder: ConfirmationFolder) -> str:
    """Returns when the protocol of a confirmation was frozen, as ISO 8601 in UTC."""
    content = _read(folder)
    assert content is not None, "a protocol is frozen before anything else"
    return content[1]


def _read(folder: ConfirmationFolder) -> tuple[Protocol, str] | None:
    """Returns the protocol and the time at which it was frozen."""
    file = folder.protocol
    edited = f"{file} was edited or damaged after it was frozen"
    remedy = "put the original back, or begin a new confirmation with new=true"
    try:
        if (content := read_mapping(file)) is None:
            return None
        if lacking := [key for key in ("hash", "protocol") if key not in content]:
            raise DamagedError(f"it lacks {' and '.join(lacking)}")
        protocol = validate(Protocol, content["protocol"], "protocol")
    except DamagedError as error:
        raise UserError(f"{edited}: {error}; {remedy}") from None
    except ConfigError as error:
        raise UserError(f"{edited}, or another version wrote it: {error}; {remedy}") from None
    if protocol.hash != (stated := content["hash"]):
        raise UserError(f"{edited}: its hash is {protocol.hash[:12]}, the file states {str(stated)[:12]}; {remedy}")
    return protocol, protocol.frozen or str(content.get("frozen", "an unknown time"))


def refuse_changes(protocol: Protocol, stated: Mapping[str, Any], folder: ConfirmationFolder) -> None:
    """Checks that the command line does not change a frozen protocol.

    Args:
        stated: what the command line states, by the name of the option, as `in_options` returns it.

    Raises:
        UserError: it states something else than the protocol.
    """
    frozen = in_options(protocol)
    lines = [f"  {key}: frozen is {frozen[key]}, got {value}" for key, value in stated.items() if frozen[key] != value]
    if lines:
        raise UserError(
            "\n".join(
                [
                    f"{folder.protocol} was frozen with another protocol",
                    *lines,
                    "  undo the change to continue, or begin a new confirmation with new=true, which names this one",
                ]
            )
        )


def in_options(protocol: Protocol) -> dict[str, Any]:
    """Returns the parts of a protocol that options of the command line state, by the name of the option."""
    return {
        "goal": protocol.goal,
        "localisation": protocol.localisation or "none",
        "arms": list(protocol.arms),
        "difference": protocol.difference,
        "localisation_difference": protocol.smallest(protocol.localisation or ""),
        "finalists": max(map(len, protocol.finalists.values()), default=protocol.finalists_in_fold),
        "choose_seeds": len(protocol.choose_seeds),
        "seeds": len(protocol.seeds),
        "folds": protocol.folds,
    }
