"""Pictures of validation images under a student's map."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig
from mmpkd.scoring import pictures
from mmpkd.scoring.overlays import ALPHA, COLOURS
from mmpkd.scoring.pictures import OUTLINE, TILE, example_rows, overlay_sheet


def test_the_same_images_are_shown_with_outlines_and_the_map(
    tiny_cohort: CohortConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map is hot in its left half alone, so that the right half is the image itself."""
    store = prepare(tiny_cohort, cache)
    rows = example_rows(store, 0, count=3)
    val = store.rows("val", 0)
    assert (
        rows.tolist() == [val[0], val[(len(val) - 1) // 2], val[-1]] and store.roi_mask(rows).any(axis=(1, 2, 3)).all()
    )
    map_NRhw = torch.tensor([[1.0, 0.0]]).expand(2, 2).expand(3, 1, 2, 2)

    class ByHand:
        per_label = False

        def __call__(self, *arguments: Any) -> tuple[None, torch.Tensor]:
            return None, map_NRhw

    monkeypatch.setitem(pictures.MAPS, "by hand", ByHand)  # type: ignore[arg-type]
    exported: Any = SimpleNamespace(
        student=torch.nn.Identity(), card=SimpleNamespace(map="by hand", tasks=store.facts.tasks)
    )
    sheet = np.array(overlay_sheet(exported, store, rows)).reshape(2, TILE, 3, TILE, 3).transpose(0, 2, 1, 3, 4)
    for index, row in enumerate(rows):
        shown, under = sheet[0, index], sheet[1, index]
        outline = (shown == OUTLINE).all(axis=-1)
        assert outline.any() and (under[outline] == OUTLINE).all()
        mask = store.roi_mask(np.array([row]))[0].any(axis=0).repeat(TILE // 32, 0).repeat(TILE // 32, 1)
        assert not outline[~mask].any(), "the outline lies on the region"
        right = ~outline & (np.arange(TILE) > 0.8 * TILE)
        assert (shown[right] == under[right]).all()
        left = ~outline & (np.arange(TILE) < 0.2 * TILE)
        hottest = 255 * np.array(COLOURS(1.0)[:3])
        assert np.abs(under[left] - ((1 - ALPHA) * shown[left] + ALPHA * hottest)).max() <= 0.5 + 1e-6
