"""The training loop is deterministic, exactly resumable, and independent of forbidden inputs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmpkd import checkpoint, weights
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig, dump_trial, load_trial
from mmpkd.export import student_file
from mmpkd.machine.resources import Allowance
from mmpkd.scoring.validation import USUAL_GOALS
from mmpkd.train import main, train
from mmpkd.types import ConfigError, DivergedError, EpochReport, UserError

PATIENTS = {"val/auroc_patient_undefined", "val/auroc_patient_mixed"}  # counts that explain a missing goal


def numbers(history: list[EpochReport]) -> list[tuple[dict[str, float], dict[str, float]]]:
    return [(dict(entry.terms), dict(entry.metrics)) for entry in history]


def changed(config: TrialConfig, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate(config.model_dump() | changes)


@pytest.fixture(scope="module")
def whole(
    tiny_trial: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[EpochReport]]:
    """An uninterrupted run, with the checkpoint of each epoch kept."""
    folder = tmp_path_factory.mktemp("whole")
    history = train(
        changed(tiny_trial, checkpoint_seconds=0),
        cache,
        folder,
        report=lambda r: shutil.copy(folder / "last.pt", folder / f"{r.epoch}.pt") and None,
    )
    return folder, history


def test_the_same_configuration_gives_the_same_numbers(
    tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]]
) -> None:
    torch.manual_seed(99)  # what happened before in the process plays no part
    assert numbers(train(tiny_trial, cache)) == numbers(whole[1])
    other = train(changed(tiny_trial, seed=1), cache)
    assert numbers(other) != numbers(whole[1])


@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_equals_uninterrupted(
    epoch: int, tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]], tmp_path: Path
) -> None:
    folder, history = whole
    reported: list[int] = []
    resumed = train(tiny_trial, cache, tmp_path, folder / f"{epoch}.pt", lambda entry: reported.append(entry.epoch))
    assert numbers(resumed) == numbers(history)
    assert reported == list(range(epoch + 1, 4))
    ours, theirs = (checkpoint.read(path / "last.pt") for path in (tmp_path, folder))
    for part in ("student", "objectives"):
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])


def test_a_finished_checkpoint_needs_no_more_epochs(
    tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]]
) -> None:
    folder, history = whole
    again = train(tiny_trial, cache, None, folder / "last.pt", lambda _: pytest.fail("trained again"))
    assert numbers(again) == numbers(history) == numbers(checkpoint.history(folder / "last.pt"))


def test_the_export_holds_the_answers_of_the_last_epoch(
    tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]], tmp_path: Path
) -> None:
    """The uninterrupted run exports what its last epoch scored; a run that resumes at its end computes it again."""
    train(tiny_trial, cache, tmp_path, whole[0] / "3.pt")
    ours, theirs = (weights.metadata(folder / student_file.NAME) for folder in (tmp_path, whole[0]))
    assert ours == theirs and any("map_threshold" in value for value in ours.values())


def test_a_checkpoint_of_another_configuration_is_refused(
    tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]]
) -> None:
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        train(changed(tiny_trial, seed=5), cache, None, whole[0] / "last.pt")


def test_a_checkpoint_with_other_teacher_outputs_is_refused(
    tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmpkd.teachers.tabular.Tabular.VERSION", 1000)
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        train(tiny_trial, cache, None, whole[0] / "last.pt")


def test_weight_zero_equals_absent_bit_for_bit(tiny_trial: TrialConfig, cache: Path) -> None:
    absent = changed(tiny_trial, objectives={}, teachers={}, epochs=1)
    zero = changed(tiny_trial, objectives={"logits": {"weight": 0.0}}, epochs=1)
    assert numbers(train(absent, cache)) == numbers(train(zero, cache))


def test_arms_share_the_student_they_start_from(tiny_trial: TrialConfig, cache: Path) -> None:
    """The first loss of two arms with one seed is that of the same student."""
    still = {"lr": 1e-30, "weight_decay": 0.0, "batch_size": 16}
    with_teacher = train(changed(tiny_trial, optimizer=still, epochs=1), cache)
    without = train(changed(tiny_trial, optimizer=still, epochs=1, objectives={}), cache)
    assert with_teacher[0].terms["task"] == without[0].terms["task"]


def test_reports_hold_every_term_share_and_score(whole: tuple[Path, list[EpochReport]]) -> None:
    first, last = whole[1][0], whole[1][-1]
    shares = {name: value for name, value in first.terms.items() if name.startswith("gradient_share/")}
    assert set(first.terms) - set(shares) == set(last.terms) == {"task", "logits", "features"}
    assert sum(shares.values()) == pytest.approx(1)
    expected = {"val/auroc", "val/auroc_se", "val/pointing", "val/pointing_se", "val/mass", "val/pixel_ap", "val/brier"}
    expected |= {"val/ece", "val/ap", "val/pointing_chance", "val/pointing_centre", "teacher/findings/auroc"}
    expected |= {"val/rank", "val/cnr", "val/iou_otsu", "val/iou_tuned", "val/pointing_prior"}
    assert expected <= set(last.metrics)
    assert all(math.isfinite(last.metrics[name]) for name in expected)
    assert last.step == 3 * math.ceil(60 / 16)


def test_an_epoch_before_the_last_has_the_goals_alone_unless_all_scores_are_wanted(
    tiny_trial: TrialConfig, cache: Path, whole: tuple[Path, list[EpochReport]], tmp_path: Path
) -> None:
    """The first, the second and the last of three epochs, where the second is a rung. The goals are the same."""
    plain = [dict(report.metrics) for report in whole[1]]
    assert [set(metrics) for metrics in plain[:2]] == [set(USUAL_GOALS) | PATIENTS] * 2
    history = train(tiny_trial, cache, goals=("val/auroc", "val/mass", "val/pixel_ap"), complete=[2])
    assert set(history[0].metrics) == {"val/auroc", "val/mass", "val/pixel_ap"}
    assert set(history[1].metrics) == set(history[2].metrics) == set(plain[2])
    assert history[2].metrics == plain[2], "what was computed before changes nothing"
    assert {name: history[1].metrics[name] for name in plain[1]} == plain[1]
    resumed = train(tiny_trial, cache, tmp_path, whole[0] / "1.pt", complete=[2])
    assert numbers(resumed)[1:] == numbers(history)[1:] and numbers(resumed)[0] == numbers(whole[1])[0]


def test_loss_that_diverges_names_the_term_and_the_step(tiny_trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    wild = changed(tiny_trial, optimizer={"lr": 1e30, "clip_norm": 0, "batch_size": 16}, objectives={})
    with pytest.raises(DivergedError, match=r"'task' became (nan|inf) at step [1-4]\b"):
        train(wild, cache, tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_weights_that_diverge_in_the_last_step_are_not_saved(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    """There is one step per epoch: its loss is finite, but the weights after it are not."""
    wild = changed(tiny_trial, optimizer={"lr": 1e35, "clip_norm": 0, "batch_size": 60}, objectives={})
    with pytest.raises(DivergedError, match="logits are no longer finite after an epoch"):
        train(wild, cache, tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_predictions_do_not_depend_on_privileged_columns_or_rois(
    tiny_trial: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a teacher, privileged columns cannot be read and ROIs change no classification score."""
    config = changed(tiny_trial, objectives={}, epochs=1)
    before = train(config, cache)[0].metrics
    monkeypatch.setattr("mmpkd.cohort.store.Store.privileged", lambda *_: pytest.fail("privileged columns were read"))
    roi_mask = type(prepare(config.cohort, cache)).roi_mask
    monkeypatch.setattr(
        "mmpkd.cohort.store.Store.roi_mask", lambda self, rows: roi_mask(self, rows)[..., ::-1, :].copy()
    )
    after = train(config, cache)[0].metrics
    assert after["val/pointing"] != before["val/pointing"]
    assert {k: v for k, v in after.items() if "auroc" in k} == {k: v for k, v in before.items() if "auroc" in k}


def test_test_samples_are_never_touched(tiny_trial: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare(tiny_trial.cohort, cache)
    sealed = set(store.rows("test"))
    touched: set[int] = set()

    class Watched:
        def __init__(self, images: np.ndarray) -> None:
            self.images = images

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            touched.update(np.atleast_1d(rows).tolist())
            return self.images[rows]

    store.image_NCHW = Watched(store.image_NCHW)  # type: ignore[assignment]
    monkeypatch.setattr("mmpkd.train.prepare", lambda *_: store)
    train(changed(tiny_trial, epochs=1), cache)
    assert touched and not touched & sealed


def test_two_trainings_in_one_process_do_not_touch_each_other(tiny_trial: TrialConfig, cache: Path) -> None:
    first = train(changed(tiny_trial, epochs=1), cache)
    train(changed(tiny_trial, epochs=1, seed=3, threads=2), cache)
    assert numbers(train(changed(tiny_trial, epochs=1), cache)) == numbers(first)


def test_command_line_writes_metrics_and_continues(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(dump_trial(tiny_trial))
    assert load_trial(path) == tiny_trial
    words = [f"config={path}", f"cache={cache}", f"out={tmp_path / 'out'}", "epochs=1"]
    main(words)
    assert re.search(
        r"epoch   1/1 .* val/auroc 0\.\d{4} ±0\.\d{4}  val/auroc_patient 0\.\d{4} ±", capsys.readouterr().out
    )
    (folder,) = (tmp_path / "out").iterdir()
    assert {"config.yaml", "last.pt", "metrics.json", "student.safetensors"} == {
        entry.name for entry in folder.iterdir()
    }
    assert load_trial(folder / "config.yaml") == tiny_trial.model_copy(update={"epochs": 1})
    main(words)
    assert "epoch   1/1" not in capsys.readouterr().out


def test_scores_of_every_epoch_are_computed_on_request(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(dump_trial(tiny_trial))
    epochs = {}
    for scores in ("last", "every"):
        main([f"config={path}", f"cache={cache}", f"out={tmp_path / scores}", f"scores={scores}", "epochs=2"])
        first, last = re.findall(r"epoch   [12]/2 .*", capsys.readouterr().out)
        assert ("±" in first) == (scores == "every") and "±" in last and "nan" not in first + last
        (folder,) = (tmp_path / scores).iterdir()
        epochs[scores] = [epoch["metrics"] for epoch in json.loads((folder / "metrics.json").read_text())]
    assert epochs["every"][1] == epochs["last"][1]
    assert set(epochs["every"][0]) == set(epochs["every"][1])
    assert {name: epochs["every"][0][name] for name in epochs["last"][0]} == epochs["last"][0]
    with pytest.raises(ConfigError, match="scores: is 'all'; write scores=last or scores=every"):
        main([f"config={path}", f"cache={cache}", "scores=all"])


@pytest.mark.parametrize("name", ["metrics.json", "student.safetensors", "config.yaml"])
def test_errors_of_writing_name_the_path(tiny_trial: TrialConfig, cache: Path, tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "best.yaml", tmp_path / "out"
    path.write_text(dump_trial(tiny_trial))
    words = [f"config={path}", f"cache={cache}", "epochs=1"]
    wanted = out / f"best-{load_trial(path, ['epochs=1']).fingerprint()}"
    (wanted / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}.*: cannot be read or written .Is a directory") as caught:
        main([*words, f"out={out}"])
    assert str(wanted) in str(caught.value)


@pytest.mark.parametrize("out", ["best.yaml", "x" * 300])
def test_a_wrong_output_folder_is_reported_before_teachers_are_fitted(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(dump_trial(tiny_trial))
    monkeypatch.setattr("mmpkd.train.fit_teachers", None)
    with pytest.raises(ConfigError, match=r"out: the folder .* cannot be made"):
        main([f"config={path}", f"cache={cache}", f"out={tmp_path / out}"])


def test_brackets_in_paths_are_printed_and_excess_threads_are_reported(
    tiny_trial: TrialConfig,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, out = tmp_path / "best.yaml", tmp_path / "a[red]b [" / "c]"
    path.write_text(dump_trial(tiny_trial))
    monkeypatch.setattr("mmpkd.machine.resources.cores", lambda: Allowance(1, "SLURM_CPUS_PER_TASK"))
    main([f"config={path}", f"cache={cache}", f"out={out}", "epochs=1", "threads=2"])
    printed = capsys.readouterr()
    assert f"every epoch is in {out}/best-" in printed.out
    assert "threads=2, but this process may use 1 cores (limit: SLURM_CPUS_PER_TASK)" in printed.err


def test_damaged_checkpoints_are_refused(tmp_path: Path, whole: tuple[Path, list[EpochReport]]) -> None:
    damaged = tmp_path / "last.pt"
    damaged.write_bytes((whole[0] / "last.pt").read_bytes()[:1000])
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        checkpoint.history(damaged)
    for text in (b"words", b""):
        damaged.write_bytes(text)
        with pytest.raises(ConfigError, match="not a readable checkpoint"):
            checkpoint.history(damaged)
    assert whole[1][:1] == checkpoint.history(whole[0] / "1.pt")
