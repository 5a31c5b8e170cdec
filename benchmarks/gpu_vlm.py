"""What a step of a vision-language student costs on one GPU: labels alone, with a teacher, with adapters; and answers.

    python benchmarks/gpu_vlm.py [--quick] [--minutes 2] [--json FILE] [--markdown FILE]

Students have random weights, since no figure depends on their values, and the sizes of published models: a decoder as
wide and deep as that of Qwen2.5-0.5B or of Qwen3-VL-2B, with as many words (151,936, of which the cohort uses a few).
Unlike there, each attention head has its own keys and values, as in all models that mmpkd builds. The questions are
those of `synthetic_vqa`, one for each image of a batch, as in a shuffled batch of a large cohort.

Steps, losses, teacher and decoding are the product's own: `Learner.step`, `FittedVlmTeacher`, `CachedLogits` and
`Vlm.answer`. A row has the median of its timed steps. Operations are those that torch counts in one step, the teacher's
included; their share of the peak refers to the measured rate of a product of two bfloat16 matrices (float32 on a CPU).
Memory is the largest that torch gave to tensors, and that it reserved. Launches and waits of a step are those of
`gpu_measure.profile_of`. What does not fit into memory is a row that says so. Files are written
after every row. `--quick` runs everything in seconds on a CPU, with tiny models under the same names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.gpu_measure import Budget, card, device, free_memory, matmul_peak, now, profile_of
from benchmarks.gpu_vlm_models import FULL, QUICK, Model, Scale
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.vlm.config import VlmConfig, VlmTeacherConfig
from mmpkd.vlm.model import Vlm, build
from mmpkd.vlm.training.items import Items
from mmpkd.vlm.training.learner import Learner, TeacherLogits
from mmpkd.vlm.training.teacher import CachedLogits, FittedVlmTeacher
from mmpkd.vlm.vocabulary import Processor, Words, text_processor

Row = dict[str, Any]
COLUMNS = {  # of the tables: what a column is called, and how its values are written
    "model": ("model", "{}"),
    "variant": ("step", "{}"),
    "batch_size": ("batch", "{}"),
    "parameters": ("million parameters", "{:,.0f}"),
    "visual": ("visual tokens", "{:,}"),
    "text": ("text", "{:,}"),
    "padded": ("with padding", "{:,}"),
    "images": ("distinct images", "{}"),
    "ms": ("ms", "{:,.1f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "answers_per_second": ("answers/s", "{:,.1f}"),
    "allocated_gib": ("GiB of tensors", "{:.1f}"),
    "reserved_gib": ("GiB reserved", "{:.1f}"),
    "share_of_peak": ("share of the peak", "{:.1%}"),
    "device_ms": ("ms of kernels", "{:,.1f}"),
    "launches": ("launches", "{:,.0f}"),
    "waits": ("waits", "{:,.0f}"),
    "note": ("", "{}"),
}


class Bench:
    """A cell of the benchmark: the questions of a cohort for one model, and the rows that are measured on them."""

    def __init__(self, model: Model, batch_sizes: Sequence[int], scale: Scale, folder: Path) -> None:
        self.model, self.batch_sizes, self.scale, self.folder = model, batch_sizes, scale, folder
        params = {"train": max(batch_sizes), "val": max(batch_sizes), "test": 1, "side": max(32, model.image_size)}
        cohort = {"reader": "synthetic_vqa", "image_size": model.image_size, "params": params}
        self.config = TrialConfig.model_validate({"cohort": cohort, "student": {"kind": "vlm", **model.student}})
        self.store: Store = prepare(self.config.cohort, folder)
        questions = self.store.questions
        processor = text_processor(self.own, [*questions["question"], *questions["answer"]])
        assert isinstance(processor.tokens, Words)
        unused = (f"<unused {index}>" for index in range(len(processor.tokens), model.words))
        self.processor: Processor = replace(processor, tokens=Words([*processor.tokens.tokens, *unused]))
        self.items, self.val = (self._items(part) for part in ("train", "val"))
        self.targets = {item: str(answer) for item, answer in enumerate(self.items.table["answer"])}

    @property
    def own(self) -> VlmConfig:
        assert isinstance(self.config.student, VlmConfig)
        return self.config.student

    def _items(self, part: str) -> Items:
        return Items(self.store, self.store.rows(part), self.own, self.processor)

    def built(self, purpose: str, **changes: Any) -> Vlm:
        """Returns a model whose weights are drawn on the device: on a CPU two billion take half a minute."""
        own = VlmConfig.model_validate(self.own.model_dump() | changes)
        with device():
            vlm = build(own, self.processor, self.model.image_size, self.store.facts.channels, 0, purpose)
        return vlm.to(device())

    def learner(self, **changes: Any) -> Learner:
        training, vlm = self.config.optimizer, self.built("student", **changes)
        options = training.lr, training.weight_decay, training.clip_norm, max(self.batch_sizes)
        return Learner(vlm, self.items, *options, self.config.schedule, 0, "student")

    def teacher(self) -> FittedVlmTeacher:
        """Returns a teacher of the student's size that has learned nothing. Its cached logits go into a new folder."""
        vlm = self.built("teacher").eval().requires_grad_(False)
        config = VlmTeacherConfig.model_validate({**self.own.model_dump(), "epochs": 0})
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        size = self.config.evaluation.batch_size
        return FittedVlmTeacher(vlm, self.items, "random", {}, folder, config, size, device())

    def chosen(self, size: int) -> list[int]:
        """Returns one question about each of so many images, the four tasks in turn."""
        return [4 * image + image % 4 for image in range(size)]

    def rows(self) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
        """Yields the groups of rows, each of which builds its models anew. The most wanted ones come first."""
        yield "KD, teacher at each step", lambda: self.steps(self.learner(), self.teacher().logits)
        yield "labels alone", lambda: self.steps(self.learner(), None)
        yield "answers", lambda: self.answers(self.built("student"))
        lora = {"rank": 8, "alpha": 16.0}
        yield "LoRA and KD at each step", lambda: self.steps(self.learner(lora=lora), self.teacher().logits)
        yield "KD, 16 cached logits", self.cached

    def cached(self) -> Iterator[Row]:
        """Yields the rows of steps with cached logits, for which no teacher is kept on the device."""
        teacher, chosen = self.teacher(), self.chosen(max(self.batch_sizes))
        started = now()
        logits = CachedLogits(teacher, {item: self.targets[item] for item in chosen}, k=16)
        note = f"{len(chosen) / (now() - started):,.1f} questions/s to cache"
        del teacher
        for row in self.steps(self.learner(), logits):
            yield row | {"note": f"{row['note']}; {note}" if "note" in row else note}

    def steps(self, learner: Learner, teacher: TeacherLogits | None) -> Iterator[Row]:
        """Yields the cost of a step at each batch size."""
        learner.vlm.train()
        trained = sum(part.numel() for part in learner.vlm.parameters() if part.requires_grad)
        for size in self.batch_sizes:
            free_memory()
            chosen = self.chosen(size)
            rows = self.items.batch(chosen, self.targets, torch.device("cpu"))
            visual, text = int(rows.token_types_BL.sum()), int((rows.mask_BL - rows.token_types_BL).sum())
            row: Row = {"batch_size": size, "parameters": _millions(learner.vlm), "trained": trained / 1e6}
            row |= {"visual": visual, "text": text, "padded": rows.mask_BL.numel(), "images": len(rows.image_MCHW)}

            advance = partial(self._advance, learner, teacher, chosen)
            try:
                with FlopCounterMode(display=False) as counter:
                    advance(1)
                seconds = self._timed(partial(advance, 1), *self.scale.steps)
                row |= {"ms": 1000 * seconds, "tokens_per_second": (visual + text) / seconds}
                row |= _memory() | {"teraflop": counter.get_total_flops() / 1e12, "seconds": seconds}
                profile = profile_of(advance, (1, 2))
                row |= {"launches": profile.launches, "waits": profile.waits, "device_ms": profile.device_ms}
                row["table"] = profile.table
            except torch.cuda.OutOfMemoryError:
                learner.optimizer.zero_grad(set_to_none=True)
                row["note"] = "out of memory"
            yield row

    def _advance(self, learner: Learner, teacher: TeacherLogits | None, chosen: list[int], number: int) -> None:
        for _ in range(number):
            learner.step(chosen, self.targets, {}, teacher, 1.0, 1.0)

    def answers(self, vlm: Vlm) -> Iterator[Row]:
        """Yields the cost of greedy answers. An answer of random weights has as many tokens as it may have."""
        most = self.scale.new_tokens
        for size in self.batch_sizes:
            free_memory()
            rows = self.val.batch(self.chosen(size), None, device())
            row: Row = {"batch_size": size, "parameters": _millions(vlm), "padded": rows.mask_BL.numel()}
            try:
                seconds = self._timed(partial(vlm.answer, rows, most), 1, 2)
                row |= {"ms": 1000 * seconds, "answers_per_second": size / seconds}
                row |= {"tokens_per_second": size * most / seconds, "note": f"{most} tokens each"} | _memory()
            except torch.cuda.OutOfMemoryError:
                row["note"] = "out of memory"
            yield row

    def _timed(self, call: Callable[[], object], warm_up: int, timed: int) -> float:
        """Returns the median seconds of a call."""
        seconds = []
        for number in range(warm_up + timed):
            started = now()
            call()
            if number >= warm_up:
                seconds.append(now() - started)
        return statistics.median(seconds)


def _millions(vlm: Vlm) -> float:
    return sum(part.numel() for part in vlm.parameters()) / 1e6


def _memory() -> Row:
    if not torch.cuda.is_available():
        return {}
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated_gib": peak / 2**30, "reserved_gib": reserved / 2**30}


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the rows as a table, without columns that have no value."""
    facts, rows = results["card"], results["rows"]
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [f"{facts['device']}, torch {facts['torch']}, matrix product {facts['peak'] / 1e12:.1f} TFLOP/s", ""]
    lines += ["| " + " | ".join(COLUMNS[name][0] for name in names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [COLUMNS[name][1].format(row[name]) if name in row else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *results["notes"], ""])


def run(scale: Scale, seconds: float, write: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Measures all rows in order, until the time is spent. A group that fails is noted, and the next one runs."""
    budget, started = Budget(seconds), now()
    results: dict[str, Any] = {"command": sys.argv, "card": card() | {"peak": matmul_peak(scale.matmul)}}
    results |= {"rows": [], "notes": []}
    with tempfile.TemporaryDirectory(prefix="gpu-vlm-") as folder:
        for model, batch_sizes in scale.cells:
            if budget.is_spent():
                break
            bench = Bench(model, batch_sizes, scale, Path(folder))
            for variant, group in bench.rows():
                try:
                    for row in [] if budget.is_spent() else group():
                        row = {"model": model.name, "variant": variant} | row
                        if "seconds" in row:
                            row["share_of_peak"] = 1e12 * row["teraflop"] / row["seconds"] / results["card"]["peak"]
                        results["rows"].append(row)
                        values = {name: COLUMNS[name][1].format(row[name]) for name in COLUMNS if name in row}
                        print(f"{now() - started:6.1f} s  {values}", file=sys.stderr, flush=True)
                        write(results)
                        if budget.is_spent():
                            break
                except Exception as error:  # memory that is too small for a model, for instance
                    problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    results["notes"].append(f"{model.name}, {variant}: {problem}")
                free_memory()
    if budget.was_short:
        results["notes"].append("The time was spent before the other rows were measured.")
    results["seconds"] = now() - started
    write(results)
    return results


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--minutes", type=float, default=2.0, help="time for everything, 2 by default")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--markdown", type=Path, help="file for the table, which is always printed")
    options = parser.parse_args(words)
    torch.set_num_threads(1)

    def write(results: Mapping[str, Any]) -> None:
        for path, text in ((options.json, json.dumps(results, indent=1)), (options.markdown, markdown(results))):
            if path:
                partial = path.with_suffix(".partial")
                partial.write_text(text)
                os.replace(partial, path)

    print(markdown(run(QUICK if options.quick else FULL, 60 * options.minutes, write)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
