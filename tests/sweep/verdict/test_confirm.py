"""Confirmations from the protocol to the verdict, with fake trainings and untrained students on a real tiny cohort."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.types import ConfigError, UserError
from sweep.search.studies import records_of
from sweep.storage.events import Spool, VerdictWritten
from sweep.storage.journal import load_studies
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import alone_in, hold_driver_lock
from sweep.transfer.addresses import Place
from sweep.types import Record
from sweep.verdict.finalists import NoVerdictError
from sweep.verdict.folder import ConfirmationFolder, lock_of
from sweep.verdict.opening.ledger import Ledger
from sweep.verdict.training import sweeps
from sweep.verdict.training.sweeps import Sweeps
from tests.sweep import fake
from tests.sweep.picked_sweep import write_student
from tests.sweep.verdict.confirmed_sweep import TASKS, confirmed

KILLS = 20


class Killed(BaseException):
    """Stands for the kill of the command between two writes."""


def killed(*args: Any) -> None:
    raise Killed


def no_verdict(*args: Any) -> None:
    raise NoVerdictError("too many trainings have failed")


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep with its verdict."""
    tmp_path = tmp_path_factory.mktemp("done")
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "printed.txt").write_text(confirmed(tmp_path))
    return tmp_path


@pytest.fixture
def fresh(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


def verdict(tmp_path: Path, folder: str = "confirm") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "runs" / "fake" / folder / "verdict.json").read_text())
    return content


def test_a_verdict_states_protocol_answers_students_and_ledger(done: Path) -> None:
    content, printed = verdict(done), (done / "printed.txt").read_text()
    protocol = yaml.safe_load((done / "runs" / "fake" / "confirm" / "protocol.yaml").read_text())
    assert content["protocol"]["hash"] == protocol["hash"] and len(protocol["hash"]) == 64
    assert [(answer["goal"], answer["arm"]) for answer in content["answers"]] == [
        ("val/auroc", "tabular"),
        ("val/pointing", "tabular"),
    ]
    assert all(answer["sentence"] in printed for answer in content["answers"])
    assert "smallest difference that 30 test patients and 5 seeds show in 80% of tests:" in printed
    assert {arm: len(scores["test/auroc"]) for arm, scores in content["scores"].items()} == {
        "none": 5,
        "tabular": 5,
        "tabular-shuffled": 5,
    }
    (opening,) = content["ledger"]
    assert opening["protocol"] == protocol["hash"] and "sweep.confirm fake finalists=2" in opening["command"]
    page = (done / "runs" / "fake" / "confirm" / "verdict.html").read_text()
    assert all(text in page for text in (protocol["hash"], "tabular-shuffled", "opened once", "mean training ROI"))
    assert "<p>On 30 test patients that neither search nor choice has seen: 7 of the rarer class and 30 with" in page
    assert "A difference of 0.05 of test/auroc and of 0.1 of test/pointing was declared to matter." in page
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"base64,[^\"]*", "", page))


def keys_in(content: Any) -> set[str]:
    """Returns the keys of a verdict that are no names of arms, scores or libraries."""
    if isinstance(content, list):
        return set().union(*map(keys_in, content))
    if not isinstance(content, dict):
        return set()
    by_name = ("scores", "validation", "chosen", "versions", "protocol")
    return set(content).union(*(keys_in(value) for key, value in content.items() if key not in by_name))


def test_every_key_of_a_verdict_is_documented(done: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "verdict.md").read_text()
    section = page.partition("## Keys of verdict.json")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    keys = keys_in(verdict(done))
    assert {"p_holm", "p_unadjusted", "exploratory", "shares"} <= keys and keys <= documented, keys - documented


def verdicts_in_the_spool(tmp_path: Path) -> list[VerdictWritten]:
    spool = Spool(SweepFolder(tmp_path / "runs" / "fake-confirm-train"))
    return [event for _, event in spool.read() if isinstance(event, VerdictWritten)]


def test_mlflow_gets_the_verdict_and_nothing_of_a_patient(done: Path) -> None:
    content, (event,) = verdict(done), verdicts_in_the_spool(done)
    opening, *_ = event.description.partition("\n\n")
    assert opening.splitlines() == [f"- {answer['sentence']}" for answer in content["answers"]]
    assert f"protocol {content['protocol']['hash']}, frozen at" in event.description
    first = content["answers"][0]
    assert event.metrics["verdict/test/auroc/tabular/difference"] == first["difference"]
    assert event.metrics["verdict/test/auroc/tabular/p_holm"] == first["p_holm"]
    assert event.metrics["verdict/test/auroc/tabular/p_unadjusted"] == first["p_unadjusted"] <= first["p_holm"]
    assert event.tags["verdict"].startswith(f"test/auroc tabular: {first['outcome']}; test/pointing tabular: ")
    assert event.paths == [f"fake/confirm/{name}" for name in ("verdict.html", "verdict.json", "protocol.yaml")]
    (folder,) = (path for path in (done / "cache" / "stores").iterdir() if path.is_dir())
    store = Store.open(folder)
    files = [re.sub(r"base64,[^\"]*", "", (done / "runs" / path).read_text()) for path in event.paths]
    words = {*re.findall(r"[\w-]+", "\n".join([*files, event.description]))}
    assert len(store.patient_ids) == 150 and not words & {*store.patient_ids, *store.sample_ids}


def test_finalists_are_chosen_among_equally_many_trials_and_run_on_fresh_seeds(done: Path) -> None:
    protocol = verdict(done)["protocol"]
    table = pd.read_parquet(done / "runs" / "fake" / "trials.parquet").sort_values("number")
    for arm in ("none", "tabular"):
        first = table[(table["arm"] == arm) & (table["state"] == "complete")].head(protocol["trials"])
        best = first.sort_values(["val/auroc", "number"], ascending=[False, True])["number"].head(2)
        assert protocol["finalists"][arm] == best.tolist()
    seeds = {*protocol["choose_seeds"], *protocol["seeds"]}
    assert len(seeds) == 10 and 0 not in seeds


def test_the_test_part_is_sealed_until_every_training_has_ended(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Store.rows

    def without_test(store: Store, part: Any, fold: int = 0) -> Any:
        assert part != "test", "the test part was read"
        return rows(store, part, fold)

    monkeypatch.setattr(Store, "rows", without_test)
    with pytest.raises(AssertionError, match="the test part was read"):
        confirmed(fresh)
    tables = [fresh / "runs" / f"fake-confirm-{phase}" / "journal.log" for phase in ("choose", "train")]
    assert all(table.exists() for table in tables)
    monkeypatch.setattr(Store, "rows", rows)
    confirmed(fresh)
    assert len(verdict(fresh)["ledger"]) == 1, "a confirmation that continues opens the part once"


def test_a_second_opening_is_refused_or_shown(again: Path) -> None:
    planned = confirmed(again, "new=true", "difference=0.1", "plan=true")
    assert "the same command without plan=true and with again=true freezes this protocol and begins" in planned
    with pytest.raises(ConfigError, match=r"opened before:\n.*sweep fake, protocol .*\n.*again=true"):
        confirmed(again, "new=true", "difference=0.1")
    confirmed(again, "new=true", "difference=0.1", "again=true")
    second = verdict(again, "confirm2")
    assert len(second["ledger"]) == 2
    assert second["protocol"]["after"] == verdict(again)["protocol"]["hash"]
    assert not {*second["protocol"]["seeds"]} & {*verdict(again)["protocol"]["seeds"]}
    page = (again / "runs" / "fake" / "confirm2" / "verdict.html").read_text()
    assert "opened 2 times" in page and "opening 2 of the test part" in page


def test_a_plan_shows_the_content_that_is_frozen(base: Path, done: Path) -> None:
    planned, printed = confirmed(base, "plan=true"), (done / "printed.txt").read_text()
    (content,) = re.findall(r"protocol with the content (\w+), proposed", planned)
    assert (
        f"protocol {verdict(done)['protocol']['hash'][:12]}, frozen in" in printed and f"; content {content}" in printed
    )


def test_the_same_command_again_trains_nothing(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "play", lambda *args: pytest.fail("a trial was trained again"))
    before = verdict(again)
    confirmed(again)
    assert verdict(again) | {"command": ""} == before | {"command": ""}
    assert len(verdicts_in_the_spool(again)) == 1, "MLflow gets the same verdict once"


def test_kills_at_random_moments_end_in_the_same_verdict(
    done: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, left, kills = random.Random(0), [0], 0

    def dying(write: Any) -> Any:
        def written(*args: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return write(*args)

        return written

    monkeypatch.setattr(Spool, "append", dying(Spool.append))
    monkeypatch.setattr(Place, "write_bytes", dying(Place.write_bytes))
    for _ in range(KILLS):
        left[0] = chance.randint(1, 20)
        with suppress(Killed):
            confirmed(fresh)
            break
        kills += 1
    left[0] = 0
    confirmed(fresh)
    assert kills == KILLS, "the confirmation ended before"
    ours, uninterrupted = verdict(fresh), verdict(done)
    for content in (ours, uninterrupted):
        (opening,) = content["ledger"]
        assert opening["protocol"] == content["protocol"]["hash"]
        del content["ledger"], content["command"]
        del content["protocol"]["frozen"], content["protocol"]["hash"]  # which covers the time
    assert ours == uninterrupted


def edit(tmp_path: Path, old: str, new: str) -> None:
    protocol = tmp_path / "runs" / "fake" / "confirm" / "protocol.yaml"
    text = protocol.read_text()
    assert old in text
    protocol.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "words, message",
    [
        (["finalists=3"], r"finalists: frozen is 2, got 3\n.*new=true"),
        (["seeds=6", "difference=0.1"], r"difference: frozen is 0.05, got 0.1\n  seeds: frozen is 5, got 6"),
    ],
)
def test_a_frozen_protocol_is_not_changed(again: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        confirmed(again, *words)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("difference: 0.05", "difference: 0.02", "was edited or damaged after it was frozen: its hash is"),
        (
            "difference: 0.05",
            "differences: 0.05",
            "frozen, or another version wrote it: .*\nprotocol.differences: unknown",
        ),
        ("protocol:", "protocol: [", "after it was frozen: is not YAML"),
    ],
)
def test_a_protocol_that_was_edited_by_hand_is_refused(again: Path, old: str, new: str, message: str) -> None:
    edit(again, old, new)
    with pytest.raises(UserError, match=message):
        confirmed(again)


@pytest.mark.parametrize(
    "words, message",
    [
        (["finalists=5"], "every arm needs at least 5 complete trials; there are: none 4, tabular 4; .*finalists=4"),
        (["goal=val/pointing"], "val/pointing is a score of ROIs.*write localisation=val/pointing"),
        (["goal=val/auro"], r"the sweep has no score 'val/auro' \(did you mean 'val/auroc'\?\)"),
        (["localisation=val/auroc"], "the sweep has no score of ROIs 'val/auroc'"),
        (["arms=tabla"], r"no arm 'tabla' with complete trials .*did you mean 'tabular'"),
        (["finalists=1"], "finalists: wants a whole number from 2 to 1000, got '1'"),
        (["seeds=3"], "wants a whole number from 5 to 1000, got '3'"),
        (["difference=big"], "wants a number between 0 and 1, such as 0.05, got 'big'"),
        (["name=fake-confirm-train"], "fake-confirm-train is a part of the confirmation of fake; name that sweep"),
        (["search.deadline=yesterday"], "search.deadline: input should be a valid datetime"),
        (["seed=7"], r"seed: unknown word \(did you mean 'seeds'\?\)"),
    ],
)
def test_what_cannot_be_confirmed_is_refused_before_anything_is_frozen(
    base: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        confirmed(base, *words)
    assert not (base / "runs" / "fake" / "confirm").exists()


def test_a_cohort_that_has_changed_since_the_search_is_refused(fresh: Path) -> None:
    """Its patients are dealt into other parts, so that the search has seen some of those that would be tested."""
    space = fresh / "runs" / "fake" / "space.yaml"
    space.write_text(space.read_text().replace("train: 60", "train: 63"))
    with pytest.raises(UserError, match=r"has searched the prepared cohort \w+, which is now \w+: .*cohort.root=DIR"):
        confirmed(fresh)
    assert not folder_of(fresh).exists()


def test_a_cohort_that_changes_during_a_confirmation_is_refused(again: Path) -> None:
    SweepFolder(again / "runs" / "fake-confirm-train").add_to_plan({"store": "another"})
    with pytest.raises(UserError, match=r"fake-confirm-train was trained on the prepared cohort another, which is now"):
        confirmed(again)


def test_data_that_have_moved_are_prepared_from_their_new_place(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only for the trainings: the test part has to be that of the same files."""
    roots = []

    def noted(prepare: Any, cohort: CohortConfig, options: Any) -> Any:
        roots.append(cohort.root)
        raise Killed

    monkeypatch.setattr("sweep.verdict.steps.prepare_shared", noted)
    monkeypatch.chdir(base)
    with pytest.raises(Killed):
        confirmed(base, "plan=true", "cohort.root=moved")
    assert roots == [base / "moved"]


def test_a_name_that_is_too_long_for_the_phases_is_refused_before_anything_is_frozen(fresh: Path) -> None:
    folder = (fresh / "runs" / "fake").rename(fresh / "runs" / ("n" * 80))
    confirmed(fresh, "plan=true", sweep=folder.name)
    with pytest.raises(ConfigError, match=r"the name n+-confirm-fold2-search, and a name has at most 100 characters"):
        confirmed(fresh, "folds=3", sweep=folder.name)
    assert not (folder / "confirm").exists()


def test_another_cohort_since_is_refused(again: Path) -> None:
    space = again / "runs" / "fake" / "space.yaml"
    space.write_text(space.read_text().replace("train: 60", "train: 63"))
    with pytest.raises(UserError, match=r"was frozen for the prepared cohort \w+, which is now \w+; put the data back"):
        confirmed(again)


def test_a_student_that_is_gone_is_named(again: Path) -> None:
    shutil.rmtree(again / "runs" / "fake-confirm-train" / "checkpoints" / "2")
    shutil.rmtree(again / "runs" / "fake" / "confirm" / "scores")
    with pytest.raises(UserError, match="checkpoints/2: the student of trial 2 is gone; put a copy of it back"):
        confirmed(again)


def test_the_student_of_another_training_is_not_scored(again: Path) -> None:
    checkpoints = again / "runs" / "fake-confirm-train" / "checkpoints"
    shutil.rmtree(checkpoints / "2")
    shutil.copytree(checkpoints / "0", checkpoints / "2")
    (folder_of(again) / "scores" / "test-2.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints/2: holds the student of another training .* put back that of"):
        confirmed(again)


def test_students_that_were_trained_again_leave_a_trace(again: Path) -> None:
    """The scores of the first ones are gone as well."""
    before, train = verdict(again), SweepFolder(again / "runs" / "fake-confirm-train")
    for record in records_of(load_studies(train.journal), 0):
        attempt, config = train.checkpoints_of(record.number) / "attempt-1", record.config
        with torch.random.fork_rng():
            torch.manual_seed(record.number)
            write_student(attempt, TrialConfig.model_validate_json(config), 32, TASKS)
    shutil.rmtree(folder_of(again) / "scores")
    printed, after = confirmed(again), verdict(again)
    (opening,) = before["ledger"]
    line = f"has given another result before, at {opening['time']} (result {opening['result'][:12]})"
    assert line in printed and line in after["notes"][0] and line in (folder_of(again) / "verdict.html").read_text()
    first, second = after["ledger"]
    assert first == opening and second["result"] != first["result"]
    assert second["protocol"] == first["protocol"]


def test_a_copy_of_a_sweep_does_not_open_the_part_unseen(again: Path) -> None:
    runs = again / "runs"
    (runs / "fake").rename(runs / "copied")
    with pytest.raises(UserError, match="belongs to the sweep fake, of which copied is a copy or a new name"):
        confirmed(again, sweep="copied")


def test_trainings_of_another_confirmation_are_not_taken_over(again: Path) -> None:
    """As when a sweep was deleted, and another one of the same name was run."""
    shutil.rmtree(again / "runs" / "fake" / "confirm")
    shutil.rmtree(again / "cache" / "ledger")
    shutil.rmtree(again / "runs" / "fake-confirm-train")
    shutil.copytree(again / "runs" / "fake-confirm-choose", again / "runs" / "fake-confirm-train")
    with pytest.raises(UserError, match="fake-confirm-train holds trainings of another confirmation"):
        confirmed(again)


def test_passwords_are_not_written(fresh: Path) -> None:
    confirmed(fresh, "tracking=http://user:secret@127.0.0.1:9", "plan=true")
    confirmed(fresh, "tracking=http://user:secret@127.0.0.1:9")
    files = [path for path in fresh.rglob("*") if path.is_file() and path.stat().st_size]
    assert not [path for path in files if b"secret" in path.read_bytes()]


def test_a_damaged_ledger_is_not_read_as_an_empty_one(again: Path) -> None:
    (ledger,) = (again / "cache" / "ledger").glob("*.jsonl")
    ledger.write_text(ledger.read_text().replace("fake", "fade"))
    with pytest.raises(UserError, match="the ledger of openings is damaged or was edited"):
        confirmed(again)


def folder_of(tmp_path: Path, name: str = "confirm") -> Path:
    return tmp_path / "runs" / "fake" / name


def test_the_time_of_freezing_is_under_the_hash(again: Path) -> None:
    content = yaml.safe_load((folder_of(again) / "protocol.yaml").read_text())
    text = json.dumps(content["protocol"], sort_keys=True)
    assert content["hash"] == hashlib.sha256(text.encode()).hexdigest(), "a reader can compute it"
    time = content["protocol"]["frozen"]
    edit(again, time, f"2020{time[4:]}")
    with pytest.raises(UserError, match="was edited or damaged after it was frozen: its hash is"):
        confirmed(again)


def test_a_protocol_of_the_first_version_continues(again: Path) -> None:
    """It had the time beside the section, so the hash did not cover it."""
    file, before = folder_of(again) / "protocol.yaml", verdict(again)
    content = yaml.safe_load(file.read_text())
    time = content["protocol"].pop("frozen")
    digest = hashlib.sha256(json.dumps(content["protocol"], sort_keys=True).encode()).hexdigest()
    file.write_text(yaml.safe_dump({"frozen": time, "hash": digest, "protocol": content["protocol"]}))
    confirmed(again, "again=true")
    after = verdict(again)
    assert after["answers"] == before["answers"]
    assert (after["protocol"]["frozen"], after["protocol"]["hash"]) == (time, digest)


def test_a_ledger_that_was_deleted_is_noticed_and_completed(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = verdict(again)["ledger"]
    shutil.rmtree(again / "cache" / "ledger")
    (folder_of(again) / "protocol.yaml").unlink()
    with pytest.raises(ConfigError, match=r"opened before:\n.*sweep fake, protocol "):
        confirmed(again)
    printed = confirmed(again, "again=true")
    assert "lacks openings, which confirmations record in their folders" in printed
    (file,) = (again / "cache" / "ledger").glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 2 and verdict(again)["ledger"][0] == ledger[0]


def test_openings_at_once_lose_no_line(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "runs")
    ledger = Ledger.of(Place("", str(tmp_path / "cache")), "source", storage)
    folders = [ConfirmationFolder(storage.sweep(f"sweep{number}")) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda folder: ledger.open(folder, f"hash of {folder}", "command", True), folders))
    lines = [json.loads(line)["sweep"] for line in ledger.file.read_bytes().splitlines()]
    assert sorted(lines) == sorted(folder.sweep.name for folder in folders)


def test_new_continues_the_confirmation_that_it_began(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("new=true", "difference=0.1", "again=true")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sweeps, "train", killed)
        confirmed(again, *words)
    second = yaml.safe_load((folder_of(again, "confirm2") / "protocol.yaml").read_text())["hash"]
    printed = confirmed(again, *words, "plan=true")
    assert re.search("new=true continues .*/confirm2, which has no verdict yet", printed)
    assert f"protocol {second[:12]}, frozen in" in printed
    printed = confirmed(again, *words, "difference=0.2", "plan=true")
    assert f"had protocol {second[:12]}" in printed and "continues" not in printed, "it is another confirmation"


def test_finalists_that_failed_on_a_seed_are_left_out(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of two finalists left, the luck of the search is unknown; with none, there is no verdict."""
    records_of, failing = sweeps._records, ["none-"]

    def with_failures(folder: SweepFolder) -> list[Record]:
        records = records_of(folder)
        of_choice = "choose" in folder.name
        return [
            replace(record, state="failed") if of_choice and record.arm.startswith(failing[0]) else record
            for record in records
        ]

    monkeypatch.setattr(sweeps, "_records", with_failures)
    with pytest.raises(NoVerdictError, match="every finalist of arm none has failed"):
        confirmed(again)
    before = verdict(again)
    (rival,) = {*before["protocol"]["finalists"]["none"]} - {before["chosen"]["none"]}
    failing[0] = f"none-{rival}"
    printed = confirmed(again)
    assert "single finalist of several trials" in printed
    assert "test/auroc by tabular: not known" in printed.partition("after the choice")[2]


def test_new_leaves_a_confirmation_that_cannot_end(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(NoVerdictError, match=r"none 4 of 5, .*\n.*new=true"):
        patch.setattr("sweep.verdict.finalists.Counter", lambda arms: dict.fromkeys(arms, 4))
        confirmed(again)
    assert "none 4 of 5" in (folder_of(again) / "failure.txt").read_text()
    confirmed(again)
    assert not (folder_of(again) / "failure.txt").exists(), "there is a verdict now"
    (folder_of(again) / "protocol.yaml").write_text("")
    with monkeypatch.context() as patch, pytest.raises(NoVerdictError):
        patch.setattr(Sweeps, "train", no_verdict)
        confirmed(again, "new=true", "again=true")
    second = yaml.safe_load((folder_of(again, "confirm2") / "protocol.yaml").read_text())
    assert second["protocol"]["after"] == "unknown", "the first protocol was edited"
    assert f"had protocol {second['hash'][:12]}" in confirmed(again, "new=true", "plan=true")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("protocol.yaml", "", "was edited or damaged after it was frozen: is empty"),
        ("protocol.yaml", "- 1\n", "holds no mapping but a list"),
        ("protocol.yaml", "hash: 1\n", "it lacks protocol"),
        ("protocol.yaml", None, "protocol.yaml: the confirmation needs a file there, and this is a folder"),
        ("external.yaml", "", r"external.yaml: is empty; delete it, and give external=FILE again"),
        ("external.yaml", "fingerprint: 3\ncohort: [", "external.yaml: is not YAML .*; delete it"),
        (
            "external.yaml",
            "fingerprint: a\ncohort: {reader: synthetic, new: 1}\n",
            "external.yaml: cohort.new: unknown",
        ),
        ("openings.json", "{", "openings.json: is not JSON .*; delete it"),
        ("openings.json", '{"%s": [{"time": 1}]}', "openings.json: does not describe an opening; delete it"),
        ("scores/test-0.json", "", "scores/test-0.json: is not JSON .*; delete it .*the same command writes it anew"),
        ("scores/test-0.json", None, r"scores/test-0.json: cannot be read \(Is a directory\)"),
        ("verdict.html", None, "verdict.html: the confirmation needs a file there, and this is a folder; move it"),
        ("train.yaml", None, "train.yaml: the confirmation needs a file there, and this is a folder; move it"),
        ("scores", "", "scores: the confirmation needs a folder there, and this is none; move it away"),
    ],
)
def test_a_file_of_a_confirmation_that_is_broken_is_named(
    again: Path, name: str, content: str | None, message: str
) -> None:
    path = folder_of(again) / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content.replace("%s", next((again / "cache" / "ledger").glob("*.jsonl")).stem))
    with pytest.raises(UserError, match=message):
        confirmed(again)


def test_a_damaged_journal_of_a_phase_is_named(again: Path) -> None:
    (again / "runs" / "fake-confirm-train" / "journal.log").write_text("cut\n")
    with pytest.raises(UserError, match=r"fake-confirm-train/journal.log: line 1 .* is not JSON"):
        confirmed(again)


def test_a_finalist_that_cannot_be_trained_again_is_named(again: Path) -> None:
    number = verdict(again)["protocol"]["finalists"]["none"][0]
    SweepFolder(again / "runs" / "fake").add_to_plan({"left_behind": [number]})
    with pytest.raises(UserError, match=rf"trial {number} is a finalist of .*protocol.yaml, but .* lies outside"):
        confirmed(again)


@pytest.mark.parametrize("key", ["protocol", "trial"])
def test_scores_of_another_protocol_or_student_are_not_used(again: Path, key: str) -> None:
    before = verdict(again)
    file = folder_of(again) / "scores" / "test-0.json"
    content = json.loads(file.read_text())
    content["scores"]["val/auroc"][0], content[key] = 0.123, "another"
    del content["crc"]
    file.write_text(json.dumps(content))
    confirmed(again)
    assert verdict(again)["scores"] == before["scores"]


def test_a_confirmation_runs_alone(again: Path) -> None:
    sweep = SweepFolder(again / "runs" / "fake")
    with alone_in(lock_of(sweep), ""):
        with pytest.raises(UserError, match=r"another sweep.confirm of .*/fake runs at this moment; wait until"):
            confirmed(again)
        confirmed(again, "plan=true")
    with (
        hold_driver_lock(sweep),
        pytest.raises(UserError, match="the sweep fake still runs; wait for its end, or stop"),
    ):
        confirmed(again)


def write_external(tmp_path: Path, **params: Any) -> str:
    file = tmp_path / "external.yaml"
    size = {"side": 32, "train": 20, "val": 10, "test": 10}
    cohort = {"reader": "synthetic", "params": size | params, "own_numbering": True}
    file.write_text(yaml.safe_dump({"cohort": cohort}))
    return f"external={file}"


def test_an_external_cohort_may_be_added_and_is_kept(again: Path) -> None:
    before = verdict(again)
    external = write_external(again, seed=5)
    printed = confirmed(again, external)
    after = verdict(again)
    assert before["external"] is None and after["protocol"] == before["protocol"]
    assert after["answers"] == before["answers"]
    other = after["external"]
    assert other["cohort"].startswith("synthetic ") and not other["in_protocol"]
    assert other["patients"]["all"] == 18 and len(other["ledger"]) == 1 and len(after["ledger"]) == 1
    assert [answer["goal"] for answer in other["answers"]] == ["val/auroc", "val/pointing"]
    assert other["scores"]["none"]["test/auroc"] != after["scores"]["none"]["test/auroc"]
    assert {"reference": "prior"}.items() <= other["exploratory"][-1].items(), "the mean ROI of the training patients"
    assert all(answer["sentence"] in printed for answer in other["answers"])
    page = (again / "runs" / "fake" / "confirm" / "verdict.html").read_text()
    assert "was added after the protocol was frozen" in page and "opening 1 of the other cohort" in page
    confirmed(again)  # without the word
    assert verdict(again)["external"] == other
    with pytest.raises(ConfigError, match=r"this confirmation has the external cohort \w+, got \w+;.*new=true"):
        confirmed(again, write_external(again, seed=6))
    (folder_of(again) / "external.yaml").unlink()
    for words, problem in (([write_external(again, seed=6)], "another one is named"), ([], "none is named")):
        with pytest.raises(ConfigError, match=rf"has opened the external cohort \w+ at .*, and now {problem}; give"):
            confirmed(again, *words)


def test_an_external_cohort_stands_in_the_protocol(base: Path, tmp_path: Path) -> None:
    without = confirmed(base, "plan=true")
    printed = confirmed(base, "plan=true", write_external(tmp_path, seed=5))
    assert re.search(r"external cohort: synthetic \w+", printed)
    assert printed.splitlines()[0] != without.splitlines()[0], "the hash of the protocol is the same"
    assert not (base / "runs" / "fake" / "confirm").exists()


def test_an_external_cohort_that_cannot_be_scored_is_refused_before_anything_is_frozen(
    base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("seed: 0\n")
    with pytest.raises(ConfigError, match=r"external: .*other.yaml has no section `cohort:`"):
        confirmed(base, f"external={file}")
    with pytest.raises(ConfigError, match=r"external.cohort: is the cohort of the sweep itself"):
        confirmed(base, write_external(tmp_path, train=60, val=30, test=60))
    assert not (base / "runs" / "fake" / "confirm").exists()


def test_plan_freezes_nothing(base: Path) -> None:
    printed = confirmed(base, "plan=true")
    assert "nothing is frozen yet" in printed and "price: about" in printed
    assert printed.splitlines()[-1] == "the same command without plan=true freezes this protocol and begins"
    assert "a difference of 0.05 of test/auroc and of 0.1 of test/pointing matters" in printed
    assert "show in 80% of tests, if scores vary over seeds with a standard deviation of 0 / 0.02 / 0.05:" in printed
    assert re.search(r"test/auroc by tabular: 0\.\d{3} / 0\.\d{3} / 0\.\d{3}\n", printed)
    assert not (base / "runs" / "fake" / "confirm").exists()


def test_a_plan_warns_of_each_difference_that_will_not_be_shown(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warning = "a difference of {} will probably not be shown"
    printed = confirmed(base, "plan=true", "difference=0.9", "localisation_difference=0.001")
    assert warning.format("0.001 of test/pointing") in printed and warning.format("0.9 of test/auroc") not in printed
    monkeypatch.setattr("sweep.verdict.results.show.smallest_difference", lambda design: 1.2)
    printed = confirmed(base, "plan=true", "difference=0.9")
    assert "test/auroc by tabular: more than 1 / more than 1 / more than 1\n" in printed
    assert warning.format("0.9 of test/auroc") in printed
