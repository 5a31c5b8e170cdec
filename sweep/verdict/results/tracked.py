"""Puts a verdict into MLflow, through the spool of the sweep that trained the tested students."""

from __future__ import annotations

from rich.console import Console

from mmpkd.command import warn
from mmpkd.types import UserError
from sweep.driver_status import this_driver
from sweep.options import RunOptions, check_tracking_uri, redact_passwords
from sweep.reports.final import print_tracking, send_rest
from sweep.storage.events import Spool, SweepBegan, SweepSummarized, VerdictWritten
from sweep.storage.lock import hold_driver_lock
from sweep.tracking.mlflow import Tracker
from sweep.transfer.mirror import Mirror
from sweep.verdict.answer import Verdict, interval
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.opening.openings import SHOWN_DIGITS
from sweep.verdict.protocol import Protocol, tested_name
from sweep.verdict.results.record import Circumstances
from sweep.verdict.results.wording import sentence


def track(event: VerdictWritten, options: RunOptions, console: Console) -> None:
    """Records a verdict in the spool unless it stands there, sends what MLflow lacks, and prints where it is shown. The
    verdict's files are written before, so a problem is a warning.

    Args:
        options: those of the sweep that trained the tested students. Its driver has ended.
    """
    folder = options.folder

    def show(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    try:
        with hold_driver_lock(folder), Mirror(folder, this_driver(), show) as mirror:
            spool = Spool(folder)
            before = [
                each for _, each in spool.read() if isinstance(each, SweepBegan | SweepSummarized | VerdictWritten)
            ]
            sweep_id = next(each.id for each in before if isinstance(each, SweepBegan))
            if not _is_same(before[-1], event):
                spool.append(event)
            mirror.begin()
            uri = check_tracking_uri(options.tracking_uri)
            tracker = Tracker(uri, options.name, sweep_id, spool, options.all_sweeps.mlflow_artifacts, mirror)
            print_tracking(send_rest(tracker), tracker, options, console)
    except UserError as error:
        warn([f"MLflow does not get the verdict: {error}"], console)


def _is_same(last: SweepBegan | SweepSummarized | VerdictWritten, event: VerdictWritten) -> bool:
    """Returns whether the run shows this verdict already. A driver that began later may have changed what it shows."""
    return isinstance(last, VerdictWritten) and vars(last) | {"time": 0.0} == vars(event) | {"time": 0.0}


def event_of(
    protocol: Protocol, verdict: Verdict, circumstances: Circumstances, folder: ConfirmationFolder
) -> VerdictWritten:
    """Returns the event with which MLflow gets a verdict. The first paragraph of its description is the answer."""
    answers = verdict.answers
    rows = [["score", "of", "against", "difference", "95 % interval", "p (Holm)", "answer"]]
    metrics: dict[str, float] = {}
    for answer in answers:
        each, name = answer.contrast, f"verdict/{tested_name(answer.key.goal)}/{answer.key.treated}"
        p = answer.decision.adjusted_p
        metrics |= {f"{name}/difference": each.difference, f"{name}/low": each.low, f"{name}/high": each.high}
        metrics |= {f"{name}/p_unadjusted": each.p, f"{name}/p_holm": p}
        shown = ["not known"] * 2 if each.reason else [interval(each).removeprefix("95 % interval "), f"{p:.3f}"]
        rows.append([tested_name(answer.key.goal), *answer.key[1:], f"{each.difference:+.3f}", *shown, answer.outcome])
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    openings = [f"- {protocol.part} was opened at {redact_passwords(str(each))}" for each in circumstances.openings]
    reasons = [
        f"- {tested_name(answer.key.goal)} of {answer.key.treated}: {line}"
        for answer in answers
        for line in answer.reasons
    ]
    paragraphs = [
        "\n".join(f"- {sentence(answer, verdict, protocol)}" for answer in answers),
        "\n".join([*reasons, *(f"- {note}" for note in circumstances.notes)]),
        "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]),
        "\n".join([f"- protocol {protocol.hash}, frozen at {circumstances.frozen}", *openings]),
    ]
    tags = {
        "verdict": "; ".join(
            f"{tested_name(answer.key.goal)} {answer.key.treated}: {answer.outcome}" for answer in answers
        ),
        "protocol": protocol.hash[:SHOWN_DIGITS],
    }
    files = (folder.verdict_page, folder.verdict, folder.protocol)
    paths = [f"{folder.sweep.name}/{folder.label}/{file.name}" for file in files]
    return VerdictWritten("\n\n".join(filter(None, paragraphs)), metrics, tags, paths)
