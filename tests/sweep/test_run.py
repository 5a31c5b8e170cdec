"""The command: what it says, what it refuses, and a whole sweep with a training of trivial arithmetic."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import ray
import yaml
from rich.console import Console

from benchmarks.attempts import extra_epochs
from benchmarks.interrupted import disagreements, interrupt
from benchmarks.witness import faults, lines_of, logged
from mmpkd.config import CohortConfig, TrialConfig, load_trial
from mmpkd.types import ConfigError, UserError
from sweep import driver
from sweep.driver import SweepFunctions, run_sweep
from sweep.options import RunOptions, read_run_options
from sweep.plan.plan import plan
from sweep.reports import final
from sweep.run import main
from sweep.space.space import Space, dump_space, load_space
from sweep.storage.continuation import refuse_other_space
from sweep.storage.events import FilesWritten
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock
from tests.sweep.fake import SPACE, play_all
from tests.sweep.fake_sweep import FAKE, FakeStore
from tests.sweep.swept import events


def loaded(tmp_path: Path, *overrides: str) -> tuple[Space, RunOptions]:
    (tmp_path / "fake.yaml").write_text(SPACE)
    options, mistakes = read_run_options([f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path}", *overrides])
    space, space_mistakes = load_space(options.space, options.overrides)
    assert space is not None and not mistakes and not space_mistakes
    return space, options


def ran(tmp_path: Path, *overrides: str, functions: SweepFunctions = FAKE) -> tuple[int, str]:
    """Runs a sweep with fake trainings; returns its exit status and the text of the console."""
    space, options = loaded(tmp_path, *overrides)
    console, planned = Console(file=io.StringIO(), width=160), plan(space)
    status = run_sweep(space, planned, options, console, functions)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return status, text


# --- words ---


def test_help_and_show_load_no_engine() -> None:
    code = """if True:
        import sys
        from sweep.run import main
        for word in ("--help", "-h", "show=true"):
            main([word])
        loaded = {"ray", "torch", "optuna", "mlflow", "timm"} & set(sys.modules)
        assert not loaded, loaded
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == 2 and "arms.tabular" in done.stdout


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for word in ("usage:", "demo, ", "trials=N", "cohort.root", "plan=true", "best.yaml", "examples"):
        assert word in text
    assert len(text.splitlines()) <= 66, "one printed page"
    assert max(map(len, text.splitlines())) <= 80


def test_an_unknown_space_is_one_screen_and_status_2() -> None:
    done = subprocess.run([sys.executable, "-m", "sweep.run", "space=dmeo"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'demo'" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 10


def test_mistakes_of_the_command_and_of_the_space_are_shown_together(tmp_path: Path) -> None:
    words = ["space=demo", "name=a/b", "tracking=mlruns", "plan=yes", "optimizer.lrr=1", "show", f"storage={tmp_path}"]
    with pytest.raises(ConfigError) as error:
        main(words)
    text = str(error.value)
    for path in ("name:", "tracking:", "plan:", "optimizer.lrr:", "show:"):
        assert re.search(rf"^{re.escape(path)}", text, re.MULTILINE), (path, text)
    assert not list(tmp_path.iterdir())


def test_the_options_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options, mistakes = read_run_options(["space=dir/mine.yaml", "trials=3", "optimizer.lr=1"])
    assert (options.name, options.overrides, mistakes) == ("mine", ("trials=3", "optimizer.lr=1"), [])
    assert options.tracking_uri == f"sqlite:///{Path.cwd()}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert read_run_options([])[0].tracking_uri == "http://there:5000"
    assert read_run_options(["tracking=http://here"])[0].tracking_uri == "http://here"
    assert read_run_options(["name=other"])[0].folder.path == Path.cwd() / "runs" / "other"


# --- refusals ---


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fake.yaml").write_text(SPACE)
    with (
        hold_driver_lock(SweepFolder(tmp_path / "fake")),
        pytest.raises(UserError, match=r"another driver .*\(process \d+ on .+\)"),
    ):
        main([f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path}", f"cache={tmp_path / 'cache'}"])
    with hold_driver_lock(SweepFolder(tmp_path / "fake")):
        pass  # the lock is free again


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError), hold_driver_lock(SweepFolder(tmp_path / "new")):
        raise UserError("an image does not decode")
    assert not (tmp_path / "new").exists()


def test_a_name_of_a_different_space_is_refused(tmp_path: Path) -> None:
    space, _ = loaded(tmp_path)
    (tmp_path / "space.yaml").write_text(dump_space(space))
    for words in (
        ("trials=99", "search.cpus=0.5", "search.at_a_time=9", "cohort.root=/moved"),
        ["checkpoint_seconds=5"],
    ):
        assert not refuse_other_space(SweepFolder(tmp_path), loaded(tmp_path, *words)[0])
    changed, _ = loaded(tmp_path, "optimizer.lr=0.01", "epochs=5", "arms.none=false")
    with pytest.raises(UserError) as error:
        refuse_other_space(SweepFolder(tmp_path), changed)
    text = str(error.value)
    assert "epochs: was 4, is now 5" in text
    assert "arms.none: was" in text and "optimizer.lr: was absent, is now 0.01" in text
    assert "name=" in text and len(text.splitlines()) < 20


def test_data_may_move_but_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "run_trials", lambda search, *rest: play_all(search))

    def sweep_at(root: str) -> int:
        space, options = loaded(tmp_path, "trials=2", f"cohort.root={root}")
        planned = plan(loaded(tmp_path)[0])  # of the generated cohort, which has no root
        assert planned.example is not None
        example = planned.example.model_copy(update={"cohort": CohortConfig(reader="synthetic", root=Path(root))})
        return run_sweep(
            space, replace(planned, configs={"none": [example]}), options, Console(file=io.StringIO()), FAKE
        )

    assert sweep_at("/before") == 0
    assert sweep_at("/moved") == 0
    assert load_trial(tmp_path / "fake" / "best.yaml").cohort.root == Path("/moved"), "though trained at /before"

    monkeypatch.setattr(FakeStore, "fingerprint", "with one image more")
    before = {path: path.read_bytes() for path in (tmp_path / "fake").glob("*.*") if path.name != "driver.lock"}
    with pytest.raises(UserError, match=r"(?s)began with other data.*was as prepared, is now with one.*name=fake-2"):
        sweep_at("/moved")
    assert {path: path.read_bytes() for path in before} == before


# --- a whole sweep ---


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_from_start_to_report(tmp_path: Path) -> None:
    status, text = ran(tmp_path, "trials=6")
    folder, tracking = tmp_path / "fake", f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert status == 0
    assert "Front" in text and "±" in text and "tabular" in text and "6/6 done (6 complete), 0 running" in text
    assert "ask whether a teacher helps" in text and "python -m sweep.confirm fake" in text
    assert "within one standard error" in text
    assert f"mlflow ui --backend-store-uri {tracking}" in text
    assert not disagreements(folder, tracking, trials=6)
    left = {path.name for path in folder.iterdir()}
    assert {"space.yaml", "plan.json", "trials.parquet", "epochs.parquet", "best.yaml", "report.html"} <= left
    assert "ray" not in left

    table = pd.read_parquet(folder / "trials.parquet")
    best = table.loc[table["val/auroc"].idxmax()]
    config = load_trial(folder / "best.yaml")
    assert config.optimizer.lr == best[f"{best['arm']}/optimizer.lr"]
    assert isinstance(config, TrialConfig) and yaml.safe_load((folder / "best.yaml").read_text())["threads"] == 1

    before = (folder / "trained.txt").read_text()
    status, text = ran(tmp_path, "trials=6")
    assert status == 0 and "all 6 trials are done" in text
    assert (folder / "trained.txt").read_text() == before
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "trials.parquet"), table)


@pytest.mark.usefixtures("ray_session")
def test_a_killed_driver_loses_nothing_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tests' own Ray, as on a cluster that outlives its driver; `benchmarks/interrupted.py` does it without."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    _, options = loaded(tmp_path)
    words = [f"space={options.space}", f"storage={tmp_path}", f"scratch={tmp_path}"]
    words += ["search.early_stopping={reduction: 2}"]

    command = [sys.executable, "-m", "tests.sweep.fake_run", *words, "trials=9"]
    watch = interrupt(lambda: subprocess.Popen(command), tmp_path / "fake", moments=[(0, 0), (3, 0.1)])
    assert ran(tmp_path, *words[2:], "trials=9", functions=replace(FAKE, training=logged(FAKE.training)))[0] == 0

    folder = tmp_path / "fake"
    table, lines = pd.read_parquet(folder / "trials.parquet"), lines_of(folder)
    assert set(table["state"]) == {"complete", "pruned"}
    assert (table["epochs"] == table["state"].map({"complete": 4, "pruned": 2})).all()
    assert not disagreements(folder, f"sqlite:///{tmp_path / 'mlflow.db'}", trials=9)
    assert not faults(folder, lines, watch.kills, dict(zip(table["number"], table["epochs"], strict=True)))
    assert any(line.word == "found" and line.epoch > 0 for line in lines), "a trial went on from a checkpoint"
    assert extra_epochs(lines).total() <= 2, "trials at a time"
    assert not watch.written and not watch.settle()


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_with_bugs_and_dying_workers(tmp_path: Path) -> None:
    decays = {"diverges": 0.01, "bug": 0.07, "dies": 0.15}
    arms = [f"arms.{arm}={{optimizer: {{weight_decay: {decay}}}}}" for arm, decay in decays.items()]
    status, text = ran(tmp_path, "trials=5", "arms.tabular=false", *arms)
    table = pd.read_parquet(tmp_path / "fake" / "trials.parquet")
    assert status == 0 and "once each arm has 2 complete trials" in " ".join(text.split())
    ends = {"none": "complete", "diverges": "failed", "bug": "failed", "dies": "complete"}  # tried again
    assert set(zip(table["arm"], table["state"], strict=True)) == set(ends.items())
    failed = table[table["state"] == "failed"]
    stories = {"diverges": "term task is nan at step 7", "bug": "ValueError: a bug"}
    assert failed["error"].tolist() == [stories[arm] for arm in failed["arm"]]
    assert (table.loc[table["state"] == "complete", "epochs"] == 4).all()
    assert f"trial {failed['number'].iloc[0]} failed: " in text
    assert "arm bug has no complete trial" in text
    assert not disagreements(tmp_path / "fake", f"sqlite:///{tmp_path / 'mlflow.db'}", trials=5)
    trained = [line.split() for line in (tmp_path / "fake" / "trained.txt").read_text().splitlines()]
    assert len({(number, epoch) for number, _, epoch in trained}) == len(trained), "no epoch is trained twice"


def test_credentialed_cohorts_keep_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, options = loaded(tmp_path, "trials=1")
    planned = plan(space)
    assert planned.facts is not None
    planned = replace(planned, facts=replace(planned.facts, credentialed=True))
    monkeypatch.setattr(driver, "run_trials", lambda *args: None)
    monkeypatch.setattr(final, "spool_files", lambda *args: pytest.fail("students and overlays stay, too"))
    run_sweep(space, planned, options, Console(file=io.StringIO()), FAKE)
    (event,) = events(options.folder.path, FilesWritten)
    assert event.paths == ["space.yaml", "plan.json", "best.yaml"]
