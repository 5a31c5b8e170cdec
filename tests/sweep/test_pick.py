"""Picking a trial: which one, what is said about it, what its folder holds, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mmpkd import train
from mmpkd.config import CohortConfig, TrialConfig, load_trial
from mmpkd.export import student_file
from mmpkd.types import ConfigError, UserError
from sweep import pick
from sweep.picking.candidates import Candidates, read_candidates
from sweep.picking.words import not_told_apart, reasons
from sweep.picking.words import pick as picked_of
from sweep.reports.tables import trials_table
from sweep.search.studies import records_of
from sweep.selection import Selection
from sweep.space.space import Space, load_space
from sweep.storage.events import SweepSummarized, read_events
from sweep.storage.journal import load_studies
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import alone_in
from sweep.storage.reader import Sweep
from sweep.types import Record
from tests.sweep.folders import driven
from tests.sweep.picked_sweep import picked_sweep, run_sweep, write_student

GOALS = ("val/auroc", "val/pointing")
RULE = ["by=val/pointing", "within=1se", "of=val/auroc"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picked_sweep(tmp_path_factory.mktemp("picked"))


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of the sweep for one test."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def scores(runs: Path) -> pd.DataFrame:
    return pd.read_parquet(runs / "fake" / "trials.parquet").set_index("number")


def chosen_by_hand(runs: Path) -> int:
    """The best pointing among the trials whose AUROC is within 0.02, the standard error of each, of the best."""
    table = scores(runs)
    eligible = table[table["val/auroc"] >= table["val/auroc"].max() - 0.02]
    return int(eligible["val/pointing"].idxmax())


def record_of(runs: Path, number: int) -> Record:
    records = records_of(load_studies(runs / "fake" / "journal.log"), 0)
    return next(record for record in records if record.number == number)


def kept(runs: Path) -> list[int]:
    return sorted(int(path.parts[-3]) for path in runs.glob("fake/checkpoints/*/*/student.safetensors"))


def without_student(runs: Path) -> int:
    return next(number for number in scores(runs).index if number not in kept(runs))


def test_the_choice_its_folder_and_the_commands_that_use_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pick.main(["fake", f"storage={runs}", *RULE])
    text, number = capsys.readouterr().out, chosen_by_hand(runs)
    assert number != scores(runs)["val/auroc"].idxmax(), "otherwise the rule decides nothing"
    folder = runs / "fake" / "picked" / str(number)
    assert sorted(path.name for path in folder.iterdir()) == ["card.md", "config.yaml", "student.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [str(number)], "nothing half-written is left"
    flat = " ".join(text.split())
    assert f"trial {number} of arm " in flat and "within 0.020 of the best" in flat
    assert "0.020 is the standard error (over validation patients) of that best score" in flat
    assert "choosing by it makes the localisation supervised by ROIs" in flat and "too high by luck" in flat
    assert f"python -m mmpkd.predict model={folder}/student.safetensors images=FOLDER" in flat
    record = next(
        record for record in records_of(load_studies(runs / "fake" / "journal.log"), 0) if record.number == number
    )
    assert load_trial(folder / "config.yaml").fingerprint() == student_file.read(folder).card.trial
    assert load_trial(folder / "config.yaml") == TrialConfig.model_validate_json(record.config)


def test_the_table_fits_80_columns_and_has_the_neighbours(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pick.main(["fake", f"storage={runs}", *RULE])
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    ordered = scores(runs).sort_values("val/pointing", ascending=False).index.tolist()
    rows = [int(line.split()[0]) for line in table if line[:1].isdigit()]
    assert rows == [number for number in ordered if number in rows], "best pointing first"
    assert {chosen_by_hand(runs), int(scores(runs)["val/auroc"].idxmax()), ordered[0]} <= set(rows)
    assert "±" in "".join(table) and "the pick" in "".join(table)


def test_without_words_the_rule_of_the_sweep_picks(runs: Path) -> None:
    pick.main(["fake", f"storage={runs}"])
    best = TrialConfig.model_validate(yaml.safe_load((runs / "fake" / "best.yaml").read_text()))
    (config,) = (runs / "fake" / "picked").glob("*/config.yaml")
    assert load_trial(config).fingerprint() == best.fingerprint()


def test_the_card_states_data_choice_scores_baselines_and_limits(runs: Path) -> None:
    pick.main(["fake", f"storage={runs}", *RULE])
    number = chosen_by_hand(runs)
    card = (runs / "fake" / "picked" / str(number) / "card.md").read_text()
    row = scores(runs).loc[number]
    for text in (
        f"# Student of trial {number} of the sweep fake",
        "fold 0 was the validation part, and the test part was not read",
        "`malignant` (binary): benign, malignant",
        f"| `val/pointing` | {row['val/pointing']:.3f} ± 0.030 | 0.062 | 0.125 |",
        "one of 8 trials (8 complete, 0 pruned, 0 failed)".capitalize(),
        "supervised by ROIs",
        "no medical device",
    ):
        assert text in card, text
    assert str(runs) not in card, "a card is published, and names no folder"


def test_a_score_below_a_map_that_has_not_looked_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = int(scores(runs)["val/pointing"].idxmin())
    assert scores(runs)["val/pointing"].min() < 0.125, "the score at the centre"
    pick.main(["fake", f"storage={runs}", f"trial={number}"])
    warning = "is not above the 0.125 that a map reaches without looking at the image (map of the centre)"
    assert warning in " ".join(capsys.readouterr().out.split())
    assert warning in (runs / "fake" / "picked" / str(number) / "card.md").read_text()


def test_the_same_pick_again_changes_nothing_and_another_content_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = chosen_by_hand(runs)
    words = ["fake", f"storage={runs}", f"trial={number}"]
    pick.main(words)
    folder = runs / "fake" / "picked" / str(number)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "picked before" not in capsys.readouterr().out
    pick.main(words)
    assert "picked before" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "config.yaml").write_text("epochs: 3\n")
    with pytest.raises(UserError, match=r"(?s)holds another config\.yaml than that of trial .* replace=true"):
        pick.main(words)
    assert (folder / "config.yaml").read_text() == "epochs: 3\n"
    pick.main([*words, "replace=true"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [str(number)]


def test_a_student_that_was_not_kept_is_trained_by_the_printed_command(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = without_student(runs)
    words = ["fake", f"storage={runs}", f"trial={number}"]
    pick.main(words)
    text, folder = capsys.readouterr().out, runs / "fake" / "picked" / str(number)
    assert f"python -m mmpkd.train config={folder}/config.yaml out={folder}" in text
    assert sorted(path.name for path in folder.iterdir()) == ["card.md", "config.yaml"]
    assert "no student yet" in (folder / "card.md").read_text()
    calls = []

    def trains(words: list[str]) -> None:
        """Leaves what mmpkd.train leaves for these words."""
        options = dict(word.split("=", 1) for word in words)
        calls.append(options)
        config = load_trial(Path(options["config"]))
        write_student(Path(options["out"]) / f"config-{config.fingerprint()}", config)

    monkeypatch.setattr(train, "main", trains)
    pick.main([*words, "train=true"])
    assert calls == [{"config": f"{folder}/config.yaml", "out": str(folder)}]
    assert [path.parent for path in folder.rglob("student.safetensors")] == [folder], "moved up"
    assert "no student yet" not in (folder / "card.md").read_text()
    pick.main(words)
    assert len(calls) == 1 and (folder / "student.safetensors").exists()


def test_a_student_that_the_user_has_trained_is_taken_over(runs: Path) -> None:
    number = without_student(runs)
    words = ["fake", f"storage={runs}", f"trial={number}"]
    pick.main(words)
    folder = runs / "fake" / "picked" / str(number)
    config = load_trial(folder / "config.yaml")
    trained = folder / f"config-{config.fingerprint()}"
    write_student(trained, config)
    for name in ("last.pt", "metrics.json"):
        (trained / name).touch()
    pick.main(words)
    assert [path.parent for path in folder.rglob("student.safetensors")] == [folder]
    assert [path.name for path in trained.iterdir()] == ["metrics.json"], "the checkpoint is not needed any more"


@pytest.mark.parametrize("damage", ["torn", "another"])
def test_a_damaged_student_is_refused_and_train_mends_it(
    runs: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number, other = kept(runs)[:2]
    file = runs / "fake" / "checkpoints" / str(number) / "attempt-1" / "student.safetensors"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-5])
    else:
        shutil.copy(runs / "fake" / "checkpoints" / str(other) / "attempt-1" / "student.safetensors", file)
    problem = "is damaged; add train=true" if damage == "torn" else "was trained with another configuration"
    words = ["fake", f"storage={runs}", f"trial={number}"]
    with pytest.raises(UserError, match=problem):
        pick.main(words)
    assert not list((runs / "fake" / "picked").iterdir()), "nothing is left"

    def trains(words: list[str]) -> None:
        options = dict(word.split("=", 1) for word in words)
        config = load_trial(Path(options["config"]))
        write_student(Path(options["out"]) / f"config-{config.fingerprint()}", config)

    monkeypatch.setattr(train, "main", trains)
    pick.main([*words, "train=true"])
    assert problem.split(";")[0] in " ".join(capsys.readouterr().out.split())
    assert (runs / "fake" / "picked" / str(number) / "student.safetensors").exists()


def test_the_space_may_state_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "search.select={maximize: val/pointing, within: 1se, of: val/auroc}"
    _, text = run_sweep(tmp_path, rule)
    number = chosen_by_hand(tmp_path / "runs")
    record = record_of(tmp_path / "runs", number)
    best = load_trial(tmp_path / "runs" / "fake" / "best.yaml")
    assert best.fingerprint() == TrialConfig.model_validate_json(record.config).fingerprint()
    assert "choosing by it makes the localisation supervised by ROIs" in " ".join(text.split())
    assert f" trial={number}\n" in text, "the command that takes the student"
    spooled = read_events(tmp_path / "runs" / "fake" / "spool.jsonl")
    marks = [event.marks for _, event in spooled if isinstance(event, SweepSummarized)][-1]
    assert [name for name, tags in marks.items() if "best.yaml" in tags.get("best", "")] == [str(number)], "in MLflow"
    assert SweepFolder(tmp_path / "runs" / "fake").keeps_checkpoints(number)
    pick.main(["fake", f"storage={tmp_path / 'runs'}"])
    assert [path.name for path in (tmp_path / "runs" / "fake" / "picked").iterdir()] == [str(number)]


@pytest.mark.parametrize(
    ("words", "uri", "registers"),
    [
        ("", "", True),
        ("register=false", "", False),
        ("", "http://host:5000", False),
        ("register=true", "http://host:5000", True),
    ],
)
def test_a_student_is_registered_in_a_file_and_on_a_server_if_asked(
    runs: Path, monkeypatch: pytest.MonkeyPatch, words: str, uri: str, registers: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (runs / "mlflow.db").touch()
    calls = []

    def register(*arguments: Any) -> tuple[str, bool]:
        calls.append(arguments)
        return "1", True

    monkeypatch.setattr(pick, "register", register)
    number = kept(runs)[0]
    pick.main(["fake", f"storage={runs}", f"trial={number}", *words.split()])
    student = runs / "fake" / "picked" / str(number) / "student.safetensors"
    wanted = uri or f"sqlite:///{runs / 'mlflow.db'}"
    assert [(call[0], call[1], call[3], call[4]) for call in calls] == [(wanted, "fake", number, student)] * registers


def test_a_credentialed_student_is_registered_only_if_asked(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "mlflow.db").touch()
    calls: list[Any] = []

    def register(*arguments: Any) -> tuple[str, bool]:
        calls.append(arguments)
        return "1", True

    monkeypatch.setattr(pick, "register", register)
    number = kept(runs)[0]
    folder = SweepFolder(runs / "fake").checkpoints_of(number) / "attempt-1"
    read = student_file.read(folder)
    student_file.write(folder, read.student, replace(read.card, credentialed=True), read.seen)
    pick.main(["fake", f"storage={runs}", f"trial={number}"])
    assert not calls
    pick.main(["fake", f"storage={runs}", f"trial={number}", "register=true"])
    assert len(calls) == 1


def test_a_damaged_copy_is_refused_and_train_mends_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = without_student(runs)
    words = ["fake", f"storage={runs}", f"trial={number}"]
    pick.main(words)
    folder = runs / "fake" / "picked" / str(number)
    (folder / "student.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged; add train=true"):
        pick.main(words)

    def trains(words: list[str]) -> None:
        config = load_trial(folder / "config.yaml")
        write_student(folder / f"config-{config.fingerprint()}", config)

    monkeypatch.setattr(train, "main", trains)
    pick.main([*words, "train=true"])
    assert student_file.read(folder).card.trial == load_trial(folder / "config.yaml").fingerprint()


@pytest.mark.parametrize(
    ("words", "mistakes"),
    [
        (
            "trial=99",
            ["trial: fake has no trial 99, but 8 trials, numbered 0 to 7; pick a complete trial, such as 5 or 6 or 7"],
        ),
        ("trial=first", ["trial: wants the number of a trial, got 'first'"]),
        ("by=val/pointng", ["by: the sweep has no score 'val/pointng' (did you mean 'val/pointing'?)"]),
        ("by=val/pointing within=1se of=auroc", ["of: the sweep has no score 'auroc' (did you mean 'val/auroc'?)"]),
        ("by=val/pointing within=1se", ["within: within without of: a limit is within=1se of=GOAL, both or neither"]),
        ("by=val/pointing of=val/auroc", ["of: of without within: a limit is within=1se of=GOAL, both or neither"]),
        ("within=1se of=val/auroc", ["by: missing: within and of limits a choice; write by=GOAL, such as val/auroc"]),
        ("trial=3 by=val/auroc", ["trial: names the trial already; leave out by"]),
        ("register=yes", ["register: true or false, got 'yes'"]),
        (
            "by=val/pointing within=2se of=val/auroc train=yes",
            [
                "train: true or false, got 'yes'",
                "within: wants 1se or a number of at least 0, such as 0.01, got '2se'",
            ],
        ),
    ],
)
def test_mistakes_in_words(made: Path, words: str, mistakes: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        pick.main(["fake", f"storage={made}", *words.split()])
    assert [str(mistake) for mistake in error.value.mistakes] == mistakes
    assert not (made / "fake" / "picked").exists()


def test_a_sweep_that_still_runs_is_picked_from_with_a_warning(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with driven(runs / "fake"):
        pick.main(["fake", f"storage={runs}", "by=val/auroc"])
    warning = "the sweep still runs (8 of 8 trials have ended), so the choice may change"
    assert warning in " ".join(capsys.readouterr().out.split())


# --- trials by hand ---


@pytest.fixture(scope="module")
def space(made: Path) -> Space:
    space, _ = load_space(str(made / "fake" / "space.yaml"))
    assert space is not None
    return space


def by_hand(
    space: Space, records: list[Record], left_behind: Mapping[int, Any] = {}, running: bool = False
) -> Candidates:
    sweep = Sweep(SweepFolder(Path("runs/fake")), running, {"goals": list(GOALS)}, {"trials": 8}, words=[])
    sweep.left_behind = dict(left_behind)
    return Candidates(sweep, space, records, records, GOALS, CohortConfig(reader="synthetic"))


def trial(number: int, auroc: float, pointing: float, **changes: Any) -> Record:
    metrics = {"val/auroc": auroc, "val/auroc_se": 0.02, "val/pointing": pointing, "val/pointing_se": 0.05}
    return replace(Record(number, "none", "complete", 4, 1.0, {}, metrics, "{}"), **changes)


COMPLETE = [trial(0, 0.9, 0.1), trial(9, 0.89, 0.3)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"state": "pruned", "epochs": 2},
            "trial 4 was pruned after epoch 2, so it has no student; pick a complete trial",
        ),
        ({"state": "failed", "error": "term task is nan"}, "trial 4 failed: term task is nan; pick a complete trial"),
        ({"state": "running", "metrics": {}}, "trial 4 has not ended; this continues it: python -m sweep.run space="),
        ({"repeat_of": 0, "turn": 1}, "trial 4 runs the configuration of trial 0 on another seed; write trial=0"),
        (
            {"config": '{"student": {"reads": ["superior"]}}'},
            "trial 4 is of the reference arm none, whose student reads",
        ),
    ],
)
def test_a_trial_that_cannot_be_picked_says_why(space: Space, changes: dict[str, Any], problem: str) -> None:
    sweep_trials = by_hand(space, [*COMPLETE, trial(4, 0.8, 0.2, **changes)])
    with pytest.raises(ConfigError) as error:
        sweep_trials.trial(4)
    (mistake,) = error.value.mistakes
    assert mistake.path == "trial" and mistake.problem.startswith(problem)
    assert "pick a complete trial" not in mistake.problem or mistake.problem.endswith("such as 0 or 9")


def test_a_trial_outside_the_extended_space_and_a_running_sweep(space: Space) -> None:
    with pytest.raises(ConfigError, match="trial 4 lies outside the extended space"):
        by_hand(space, COMPLETE, {4: None}).trial(4)
    with pytest.raises(ConfigError, match="trial 4 has not ended; wait for its end"):
        by_hand(space, [*COMPLETE, trial(4, 0.8, 0.2, state="running")], running=True).trial(4)


def test_the_reasons_for_an_unknown_error_and_for_a_mean_over_seeds(space: Space) -> None:
    rule = Selection(maximize="val/pointing", within="1se", of="val/auroc")
    perfect = [trial(0, 1.0, 0.1), trial(1, 1.0, 0.3), trial(2, 0.99, 0.9)]
    for record in perfect:
        record.metrics["val/auroc_se"] = 0.0  # type: ignore[index]
    sweep_trials = by_hand(space, perfect)
    lines = reasons(sweep_trials, picked_of(sweep_trials, rule, None))
    assert lines[0] == (
        "trial 1 of arm none is picked because it has the best val/pointing of the 2 of 3 complete trials whose "
        "val/auroc is within 0.000 "
        "of the best, 1.000 (all equal) of trial 0"
    )
    assert "is unknown, so only trials that equal it are compared" in lines[1]
    # If the scores 0.1 and 0.3 are noise alone, the best of them is 0.1 above its mean.
    assert "its val/pointing, the best of 2, is expected to be up to 0.100 too high by luck" in lines[-1]
    assert "its val/auroc, which is nearly the best, up to 0.00" in lines[-1], "no score exceeds 1"
    seeds = [replace(record, metrics={**record.metrics, "seeds": 3.0}) for record in COMPLETE]
    sweep_trials = by_hand(space, seeds)
    assert "0.020 is the standard error (over patients and seeds) of that best score" in reasons(
        sweep_trials, picked_of(sweep_trials, rule, None)
    )


def test_trials_that_are_not_told_apart_are_named(space: Space) -> None:
    """The error of val/pointing is 0.05, that of val/auroc 0.02, and later 0.031 by the plan."""
    records = [trial(0, 0.9, 0.1), trial(1, 0.89, 0.30), trial(2, 0.885, 0.26), trial(3, 0.86, 0.28)]
    sweep_trials = by_hand(space, records)

    def lines(rule: Selection, number: int | None = None) -> list[str]:
        return not_told_apart(sweep_trials, picked_of(sweep_trials, rule, number))

    rule = Selection(maximize="val/pointing", within="1se", of="val/auroc")
    differ = "which differs by no more than a standard error"
    assert lines(rule) == [f"val/pointing does not tell trial 1 from trial 2, {differ}"], "3 is outside the limit"
    auroc, differ = Selection(maximize="val/auroc"), "from trials 1, 2, which differ by no more than a standard error"
    assert lines(auroc) == [f"val/auroc does not tell trial 0 {differ}"]
    assert lines(auroc, 3) == []
    sweep_trials.sweep.plan = {**sweep_trials.sweep.plan, "price": {"auroc_error": 0.031}}
    assert lines(auroc, 3) == [f"val/auroc does not tell trial 3 {differ}"]
    records[0].metrics["val/auroc_se"] = 0.002  # type: ignore[index]
    advice = "within=0.031 also compares trials that may be as good on other patients"
    assert advice in "\n".join(reasons(sweep_trials, picked_of(sweep_trials, rule, None)))


def test_only_one_trial_within_the_limit_is_named_as_such(space: Space) -> None:
    sweep_trials = by_hand(space, [trial(0, 0.9, 0.1), trial(1, 0.8, 0.9)])
    rule = Selection(maximize="val/pointing", within=0.01, of="val/auroc")
    assert reasons(sweep_trials, picked_of(sweep_trials, rule, None))[0] == (
        "trial 0 of arm none is picked because it has the best val/auroc, 0.900 ± 0.020, and no other of 2 complete "
        "trials is within 0.010 of it"
    )


def test_a_missing_and_a_damaged_journal(runs: Path) -> None:
    folder = SweepFolder(runs / "fake")
    content = folder.journal.read_bytes()
    folder.journal.write_bytes(content.replace(b"0.5", b"0.6", 1))
    with pytest.raises(UserError, match=r"journal\.log: line .*; put an undamaged copy of it back, or run"):
        read_candidates(folder)
    folder.journal.unlink()
    with pytest.raises(UserError, match=r"journal\.log is missing, and it holds the trials"):
        read_candidates(folder)


@pytest.mark.parametrize("evidence", ["spool.jsonl", "trials.parquet"])
def test_a_journal_that_was_cut_short_is_not_picked_from_in_silence(
    runs: Path, evidence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its last quarter, in the middle of a line, the journal reads like that of a shorter sweep."""
    folder = SweepFolder(runs / "fake")
    content = folder.journal.read_bytes()
    folder.journal.write_bytes(content[: len(content) * 3 // 4])
    for path in {folder.spool, folder.trials} - {folder.path / evidence}:
        path.unlink()
    records = records_of(load_studies(folder.journal), 0)
    complete = [record.number for record in records if record.state == "complete"]
    assert complete and len(complete) < 8
    lost = next(number for number in range(8) if number not in {record.number for record in records})
    with pytest.raises(UserError) as error:
        pick.main(["fake", f"storage={runs}"])
    message = str(error.value)
    assert f"{folder.journal} has lost trials" in message and f"it does not know trials {lost}" in message
    assert evidence in message and " repair=true\n" in message and not folder.picked.exists()
    pick.main(["fake", f"storage={runs}", f"trial={complete[0]}"])
    assert "warning: the sweep's journal has lost trials" in " ".join(capsys.readouterr().out.split())
    assert "the sweep's journal has lost trials" in (folder.picked / str(complete[0]) / "card.md").read_text().lower()


def test_the_records_are_those_that_the_driver_wrote(made: Path) -> None:
    table = trials_table(records_of(load_studies(made / "fake" / "journal.log"), 0))
    known = pd.read_parquet(made / "fake" / "trials.parquet")
    assert table["number"].tolist() == list(range(8)) == known["number"].tolist()
    pd.testing.assert_series_equal(table["val/pointing"], known["val/pointing"])


def test_two_picks_at_once_do_not_disturb_each_other(runs: Path) -> None:
    number = kept(runs)[0]
    words, folder = ["fake", f"storage={runs}", f"trial={number}"], runs / "fake" / "picked"
    folder.mkdir(parents=True)
    with (
        alone_in(folder, ""),
        pytest.raises(UserError, match=r"another sweep\.pick writes to .* wait until it has ended"),
    ):
        pick.main(words)
    assert list(folder.iterdir()) == []
    pick.main(words)
    assert [path.name for path in folder.iterdir()] == [str(number)]


def test_the_present_folder_may_be_the_picked_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "taken_away").mkdir()
    monkeypatch.chdir(runs / "taken_away")
    pick.main(["fake", f"storage={runs}", "out=."])
    names = sorted(path.name for path in (runs / "taken_away").iterdir())
    assert names == ["card.md", "config.yaml", "student.safetensors"]
    Path("lost").symlink_to("nowhere")
    for out, problem in (
        ("/", "root of the disk"),
        ("card.md", r"card\.md is no folder; name a folder for it:\n    python -m sweep\.pick fake .* out=picked/fake"),
        ("lost", "lost is no folder"),
        ("card.md/below", r"card\.md cannot be written"),
    ):
        with pytest.raises(ConfigError, match=problem):
            pick.main(["fake", f"storage={runs}", f"out={out}"])


def test_a_damaged_student_and_a_damaged_configuration_are_named(runs: Path) -> None:
    number = kept(runs)[0]
    words, picked = ["fake", f"storage={runs}", f"trial={number}"], runs / "fake" / "picked" / str(number)
    picked.mkdir(parents=True)
    (picked / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"holds another config\.yaml"):
        pick.main(words)
    (student,) = runs.glob(f"fake/checkpoints/{number}/*/student.safetensors")
    student.write_bytes(student.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{student} is not a readable safetensors file"):
        pick.main(words)
