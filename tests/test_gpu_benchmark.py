"""benchmarks/gpu.py: a reduced run on the CPU, its formula, its counts and its verdicts."""

from __future__ import annotations

import json
import multiprocessing
import re
import threading
import tomllib
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, gpu_workers
from benchmarks.gpu_cohort import DEMO, QUICK, Cohorts, config_of
from benchmarks.gpu_measure import Budget, count, flops_of
from benchmarks.gpu_report import FAIL, NOT_MEASURED, PASS, Verdict, markdown, verdicts
from benchmarks.gpu_steps import equality_part, weightless
from mmpkd import fit
from mmpkd.build import build

ROOT = Path(__file__).parents[1]
THERE = {  # dependencies of mmpkd on the machine for which device.sh prepares
    *("filelock", "huggingface-hub", "matplotlib", "numpy", "pandas", "pillow", "pyarrow", "pyyaml", "rich"),
    *("safetensors", "scikit-image", "scikit-learn", "scipy", "threadpoolctl", "tokenizers", "torch"),
}
ONLY = ((DEMO, 32),)
TINY = replace(
    QUICK,
    cells=ONLY,
    taught_cells=ONLY,
    equal_cells=ONLY,
    equal_steps=(2, 2),
    profiled=(1, 2),
    num_train=64,
    num_val=32,
    seconds=0.01,
    packed=(1,),
)


class StandInThread(threading.Thread):
    """A thread in place of a process, which ends when it is asked to."""

    terminate = kill = threading.Thread.join


def pipe_of_threads() -> tuple[Connection, Connection]:
    """A pipe whose second end stays open when the caller closes it, because a thread of this process uses it."""
    first, second = multiprocessing.Pipe()
    second.close = lambda: None  # type: ignore[method-assign]
    return first, second


def test_every_part_runs_on_a_cpu_and_leaves_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for packed processes, each of which would load torch."""
    threads = SimpleNamespace(Pipe=pipe_of_threads, Process=StandInThread)
    monkeypatch.setattr(gpu_workers, "multiprocessing", SimpleNamespace(get_context=lambda method: threads))
    monkeypatch.setattr(gpu, "QUICK", TINY)
    file, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    words = ["--quick", "--only", "card,steps,epoch,packed,taught,equality", "--carried", str(tmp_path)]
    assert gpu.main([*words, "--json", str(file), "--markdown", str(page)]) == 0
    results = json.loads(file.read_text())
    assert not results["notes"]
    assert [row["variant"] for row in results["steps"]] == ["a", "b", "c", "d"]
    assert not [row for part in ("steps", "epoch", "taught", "equality") for row in results[part] if "error" in row]
    operations = {row["variant"]: row["launches"] for row in results["steps"]}
    assert min(operations.values()) > 100 and operations["d"] < operations["b"]
    (epoch,) = results["epoch"]
    assert 0 < epoch["validation"] < epoch["epoch"] and 0 < epoch["data"] < epoch["steps"] < epoch["epoch"]
    assert {row["service"]: row.get("error") for row in results["packed"]} == {"plain": None, "MPS": "there is no GPU"}
    (equality,) = results["equality"]
    assert equality["equal"] and equality["before again"] == {"loss": 0, "parameters": 0}
    outcomes = {verdict["target"]: verdict["outcome"] for verdict in results["verdicts"]}
    assert outcomes["(c) over (a), ViT-S/16 batch 64"] == NOT_MEASURED != outcomes["(c) over (a), demo"]
    assert "This run used no GPU" in page.read_text()
    assert file.with_suffix(".profiles.txt").read_text().count("steps: demo batch 32 variant ") == 4


def test_a_run_without_time_says_so_and_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert gpu.main(["--quick", "--minutes", "0", "--carried", str(tmp_path), "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert results["card"]["peak"] > 0 and not results["steps"]
    assert set(results["notes"].values()) == {"stopped when its time was spent"}
    assert {verdict["outcome"] for verdict in results["verdicts"]} == {NOT_MEASURED}
    assert "stopped when its time was spent" in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "steps,stpes"])
    assert "unknown parts: stpes" in capsys.readouterr().err


def test_a_rate_that_is_a_hundredth_too_high_is_not_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_rate = fit.set_learning_rate
    monkeypatch.setattr(fit, "set_learning_rate", lambda optimizer, rate: set_rate(optimizer, 1.01 * rate))
    rows: list[dict[str, object]] = []
    equality_part(TINY, Cohorts(TINY, tmp_path, tmp_path), Budget(100), rows.append)
    assert [row["equal"] for row in rows] == [False]


@pytest.mark.parametrize("name", [model.name for model in QUICK.models])
def test_the_formula_counts_what_torch_counts(name: str, tmp_path: Path) -> None:
    """Attention is unfused, because torch's counter counts the recomputation in a fused kernel."""
    model = QUICK.sizes[name]
    store = Cohorts(TINY, tmp_path, tmp_path).store(model.image_size)
    student = build(config_of(model, 4), store.facts, {})[0]
    for block in student.model.blocks:
        block.attn.fused_attn = False
    images = torch.rand(2, store.facts.channels, model.image_size, model.image_size)
    with FlopCounterMode(display=False) as counter:
        student(images).logits_BK.sum().backward()
    assert flops_of(student) == counter.get_total_flops() / 2
    assert flops_of(weightless(config_of(model, 4), store)) == flops_of(student)


def test_a_repeated_store_repeats_samples_with_their_labels_and_regions(tmp_path: Path) -> None:
    cohorts = Cohorts(TINY, tmp_path, tmp_path)
    small, store = cohorts._small(48), cohorts.store(48)
    train, val = store.rows("train"), store.rows("val")
    assert len(train) == 64 and len(val) == 32
    cycle = small.rows("train")
    repeated = np.resize(cycle, 64)
    assert np.array_equal(store.images(train), small.images(repeated))
    assert np.array_equal(store.target_NK[train], small.target_NK[repeated])
    assert np.array_equal(store.roi_mask(train[:8]), small.roi_mask(repeated[:8])) and store.roi_mask(train[:8]).any()
    assert len(set(store.patient_N)) == 96


def test_a_carried_store_is_used_at_its_own_size(tmp_path: Path) -> None:
    small = Cohorts(TINY, tmp_path / "here", tmp_path)._small(32)
    carried = tmp_path / "carried"
    carried.mkdir()
    small.path.rename(carried / "store")
    cohorts = Cohorts(TINY, tmp_path / "there", carried)
    cohorts.path(32), cohorts.path(48)
    assert cohorts.origin[32] == "store" and cohorts.origin[48].startswith("synthetic")


def test_launches_waits_and_time_on_the_gpu_are_counted_apart() -> None:
    def event(name: str, microseconds: float = 0.0, on_gpu: bool = False) -> SimpleNamespace:
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(name=name, time_range=span, device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU)

    host = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch", "aten::addmm"]
    waits = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cudaMemcpyAsync"]
    kernels = [event("sgemm", 1500, True), event("Memcpy HtoD", 500, True), event("Optimizer.step#AdamW.step", 9, True)]
    assert count([*map(event, host + waits), *kernels], cuda=True) == (4, 3, 2.0)
    assert count(map(event, ["aten::linear", "aten::addmm", "backward"]), cuda=False) == (2, 0, 0.0)


def test_a_target_is_met_at_its_limit_and_a_missing_figure_decides_nothing() -> None:
    assert Verdict("speed", 10.0, 10, True).outcome == PASS == Verdict("time", 1.1, 1.1, False).outcome
    assert Verdict("speed", 9.9, 10, True).outcome == FAIL == Verdict("time", 1.11, 1.1, False).outcome
    assert Verdict("speed", None, 10, True).outcome == NOT_MEASURED


def test_verdicts_compare_what_the_issue_names() -> None:
    def row(variant: str, speed: float) -> dict[str, object]:
        content = {"model": "ViT-S/16", "batch_size": 64, "variant": variant, "images_per_second": speed}
        return content | {"mfu": 0.3, "ms_per_step": 10.0, "device_ms": 10.0}

    packed = [("plain", 1, 100.0), ("plain", 2, 120.0), ("MPS", 2, 160.0), ("MPS", 4, 150.0)]
    results = {
        "card": {"gpu": True},
        "steps": [row("a", 500), row("b", 900), row("c", 2000), row("d", 2100)],
        "epoch": [{"model": "ViT-S/16", "batch_size": 64, "share_of_steps": 0.79}],
        "packed": [
            {"service": service, "model": "ViT-S/16", "batch_size": 64, "count": number, "images_per_second": speed}
            for service, number, speed in packed
        ],
        "taught": [
            {"model": "ViT-S/16", "variant": variant, "ratio": ratio}
            for variant, ratio in (("plain", 1.0), ("cached logits", 1.02))
        ],
    }
    checks = {check.target: check for check in verdicts(results)}
    assert checks["(c) over (a), ViT-S/16 batch 64"].value == 4 and checks["(c) over (a), demo"].value is None
    assert checks["time of (c) over (d), ViT-S/16 batch 64"].value == pytest.approx(1.05)
    assert checks["share of an epoch spent in steps, ViT-S/16 batch 64"].outcome == FAIL
    assert checks["packed at its best over one at a time, ViT-S/16 batch 64"].value == pytest.approx(1.6)
    assert checks["cached logits over plain, ViT-S/16"].outcome == PASS
    assert "| (c) over (a), ViT-S/16 batch 64 | 4 | at least 4 | PASS |" in markdown(results)
    elsewhere = markdown(results | {"card": {"gpu": False}})
    assert "at least 4 | no GPU |" in elsewhere and PASS not in elsewhere and "| not measured |" in elsewhere


def test_a_failed_measurement_is_a_row_with_its_error() -> None:
    failed = {"model": DEMO, "batch_size": 32, "variant": "c", "error": "OutOfMemoryError: CUDA out of memory"}
    assert "OutOfMemoryError" in markdown({"steps": [failed]})
    assert verdicts({"steps": [failed]})[0].outcome == NOT_MEASURED


def test_mps_is_ended_and_its_variables_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is a stand-in, which writes down how it is called."""
    service, calls = tmp_path / gpu_workers.MPS, tmp_path / "calls"
    service.write_text(f'#!/bin/bash\necho "$1 $(test "$1" = -d || cat) $CUDA_MPS_PIPE_DIRECTORY" >> {calls}\n')
    service.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ZeroDivisionError), gpu_workers.mps() as problem:
        assert not problem
        pipe = Path(gpu_workers.os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        assert pipe.is_dir()
        _ = 1 / 0
    assert calls.read_text().splitlines() == [f"-d  {pipe}", f" quit {pipe}"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in gpu_workers.os.environ and not pipe.exists()


def test_a_worker_that_dies_or_is_late_is_reported(tmp_path: Path) -> None:
    worker = gpu_workers.Worker(TINY, tmp_path, tmp_path)
    with pytest.raises(gpu_workers.Late, match="no answer within 0 s"):
        worker.receive(0)
    worker.process.kill()
    with pytest.raises(gpu_workers.Late, match="ended with status -9"):
        worker.receive(30)
    worker.end()


def test_a_training_that_does_not_fit_is_a_row_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two stand-ins for worker processes has no memory left for the second model."""

    class StandIn:
        def __init__(self, scale: object, folder: Path, carried: Path) -> None:
            self.is_second, self.answer = bool(started), None
            started.append(self)

        def send(self, request: str, *values: object) -> None:
            self.answer = 100.0
            if self.is_second and values[0] == "ViT-Ti/16":
                self.answer = {"error": "OutOfMemoryError: no memory"}

        def receive(self, seconds: float) -> object:
            return self.answer

        def end(self) -> None:
            started.remove(self)

    started: list[StandIn] = []
    rows: list[dict[str, object]] = []
    monkeypatch.setattr(gpu_workers, "Worker", StandIn)
    scale = replace(TINY, packed=(1, 2), packed_cells=((DEMO, 32), ("ViT-Ti/16", 16)))
    gpu_workers._packed("plain", scale, tmp_path, tmp_path, Budget(100), rows.append)
    assert [row.get("images_per_second") for row in rows] == [100, 200, 100, None]
    assert rows[-1]["error"] == "OutOfMemoryError: no memory" and not started


def test_a_part_of_a_budget_never_exceeds_the_whole() -> None:
    assert Budget(1.0).part(100.0).left() <= 1.0 and Budget(100.0).part(1.0).left() <= 1.0


def test_a_budget_was_short_only_where_something_was_left_out() -> None:
    budget = Budget(0.0)
    assert not budget.was_short
    assert budget.is_spent() and budget.was_short
    assert not Budget(100.0).is_spent()


def test_every_dependency_is_on_the_machine_or_travels() -> None:
    """`openpyxl` reads raw tables, and only a prepared store travels."""
    needed = {
        re.match(r"[\w-]+", requirement)[0]
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    travelling = set(
        re.search(r"^missing=\((.*?)\)$", (ROOT / "benchmarks/device.sh").read_text(), re.M | re.S)[1].split()
    )
    assert needed - THERE - {"openpyxl"} <= travelling and not travelling & THERE
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert travelling <= pinned
