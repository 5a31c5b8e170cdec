"""Does decoding once pay for itself? Training input from the store over decoding the originals in every epoch.

    python benchmarks/prepare.py [--images 512] [--rounds 5] [--json FILE]

Originals are generated: films of 2048 x 1536 as 16-bit DICOM, pictures of 1024 x 1024 as 8-bit PNG. Three claims,
each measured here on two cores:
  input    images per second that reach a training step at 224 px, augmented alike: from the prepared store, over a
           DataLoader with two workers that decodes, windows and resizes the originals. Wanted: 4 or more
  cores    seconds of `prepare` on one core over those on two. Wanted: 1.6 or more
  memory   peak anonymous memory of `prepare` with 2,000 images over that with 200. Wanted: within 10 %
Sides take turns; the ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from mmpkd.augment import apply_view, draw_views
from mmpkd.cohort.decode import Depth, depth_of, read_image, to_8_bit
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import AugmentationConfig, CohortConfig
from mmpkd.fit import generator_for
from mmpkd.frames import Letterbox
from tests.mmpkd.cohort.cbis_trees import write_dicom

SIZE, BATCH, CORES = 224, 16, 2
DIFFERENT = 64  # originals; the others are links to them
INPUT, CORES_WANTED, MEMORY = 4.0, 1.6, 1.10
AUGMENTATION = AugmentationConfig()
KINDS = {"DICOM, 16 bits, 2048 x 1536": "dcm", "PNG, 1024 x 1024": "png"}
PREPARE = """
import sys, threading, time
from pathlib import Path
import mmpkd.cohort.prepare as module
from mmpkd.config import CohortConfig
import json
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.01):
        words = Path("/proc/self/status").read_text().split()
        peak[0] = max(peak[0], int(words[words.index("RssAnon:") + 1]))
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
module.prepare(CohortConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]))
print(json.dumps([time.perf_counter() - started, peak[0] / 1024]))
"""


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """H x W float in 0 to 1: smooth with fine grain, as a scan is; PNG does not compress it to nothing."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.random((height // 64, width // 64), np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(0.8 * smooth + 0.1 * random.random((height, width), np.float32), 0, 1)


def write_originals(root: Path, kind: str, different: int, count: int) -> CohortConfig:
    """`count` files, hard links to `different` ones, and their table."""
    root.mkdir(parents=True)
    lines = ["image,patient,label"]
    for index in range(count):
        path, first = root / f"{index}.{kind}", root / f"{index % different}.{kind}"
        if index >= different:
            os.link(first, path)
        elif kind == "dcm":
            write_dicom(path, (60_000 * texture(2048, 1536, index)).astype(np.uint16))
        else:
            Image.fromarray((255 * texture(1024, 1024, index)).astype(np.uint8)).save(path)
        lines.append(f"{path.name},p{index},{index % 2}")
    (root / "cases.csv").write_text("\n".join(lines))
    params = {
        "file": "cases.csv",
        "image": "image",
        "patient": "patient",
        "tasks": {"label": {"kind": "binary", "column": "label", "labels": ["0", "1"]}},
    }
    return CohortConfig(reader="table", root=root, image_size=SIZE, params=params)


class Originals(Dataset[torch.Tensor]):
    """What one writes without a store: decode, window, resize and augment in the workers."""

    def __init__(self, root: Path, names: list[str], depth: Depth):
        self.root, self.names, self.depth = root, names, depth

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = to_8_bit(read_image(self.root, self.names[index]), self.depth)
        square = torch.from_numpy(Letterbox(*image.shape, SIZE).store_image(image))
        view = draw_views(1, SIZE, AUGMENTATION, generator_for(0, "views", index))
        return apply_view(square[None, None], view)[0].float() / 255


def from_store(store: Store, epochs: int) -> Iterator[torch.Tensor]:
    """The same, as the training loop reads it."""
    for epoch in range(epochs):
        draws = generator_for(0, "views", epoch)
        order = torch.randperm(len(store.sample_ids), generator=generator_for(0, "order", epoch))
        for chosen in order.split(BATCH):
            view = draw_views(len(chosen), SIZE, AUGMENTATION, draws)
            yield apply_view(torch.from_numpy(store.image_NCHW[chosen.numpy()]), view).float() / 255


def per_second(batches: Iterator[torch.Tensor]) -> float:
    """Images per second, from the second batch on: starting workers is not counted."""
    next(batches)
    started, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    return count / (time.perf_counter() - started)


def input_ratio(config: CohortConfig, cache: Path, rounds: int) -> tuple[float, float, float]:
    store = prepare(config, cache)
    assert config.root is not None
    originals = Originals(config.root, store.sample_ids.tolist(), depth_of(store.manifest))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(per_second(from_store(store, epochs=20)))
        theirs.append(per_second(iter(DataLoader(originals, BATCH, shuffle=True, num_workers=CORES))))
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(theirs), ratio


def prepared(config: CohortConfig, cache: Path, cores: int) -> tuple[float, float]:
    """Seconds and peak anonymous MiB of `prepare` in a process of its own on so many cores."""
    usable = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, config.model_dump_json(), str(cache)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, usable),
    )
    shutil.rmtree(cache)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    console, figures, verdicts = Console(width=120), {}, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = Table(
            "originals", "store, images/s", "DataLoader, images/s", "ratio", "1 core, s", "2 cores, s", "ratio"
        )
        for name, kind in KINDS.items():
            config = write_originals(root / kind, kind, min(DIFFERENT, options.images), options.images)
            ours, theirs, ratio = input_ratio(config, root / "cache", options.rounds)
            pairs = [
                (prepared(config, root / "one", 1)[0], prepared(config, root / "two", 2)[0])
                for _ in range(options.rounds)
            ]
            one, two = (statistics.median(each) for each in zip(*pairs, strict=True))
            faster = statistics.median(first / second for first, second in pairs)
            row = (ours, theirs, ratio, one, two, faster)
            table.add_row(name, *(f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in row))
            figures[name] = dict(zip(("store", "loader", "input", "one", "two", "cores"), row, strict=True))
            verdicts += [ratio >= INPUT, faster >= CORES_WANTED]
        console.print(table)
        peaks = {
            count: prepared(write_originals(root / f"many-{count}", "png", 20, count), root / "cache-many", CORES)[1]
            for count in (200, 2000)
        }
    growth = peaks[2000] / peaks[200]
    verdicts.append(growth <= MEMORY)
    figures["memory"] = {"peak MiB": peaks, "growth": growth}
    print(f"peak anonymous memory, MiB: {peaks[200]:.0f} with 200 images, {peaks[2000]:.0f} with 2,000: {growth:.2f}")
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "figures": figures}, indent=1))
    wanted = f"input at least {INPUT:g}, cores at least {CORES_WANTED:g}, memory at most {MEMORY:g}"
    print(f"wanted: {wanted}: {'PASS' if all(verdicts) else 'FAIL'}")


if __name__ == "__main__":
    main()
