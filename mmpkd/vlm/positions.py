"""Position ids of text and image in Qwen-VL models, with ClinKD's changes as options (Med-CLIP Guided RoPE).

Each token has three positions: temporal, height and width. For text they are equal and rise by 1; the tokens of an
image share the temporal position and have their row and column as height and width. A run of text or image begins
after the largest position so far.

`border_gap` follows ClinKD's released code, a changed Qwen2-VL of transformers: where text and image meet, the next run
begins `border_gap` after the largest position, 2 there and 1 in the library. The strides follow the figure of its
paper, in which neighbouring visual tokens are alpha 1 apart along the height and alpha 2 along the width; the code
leaves both at 1. The figure's offset of visual positions (lambda) is the gap minus 1, its values are not legible. The
paper's name mentions CLIP, but the code loads no such model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmpkd.vlm.config import PositionsConfig


def apply_rule(model: Any, rule: PositionsConfig) -> None:
    """Makes a model of the Qwen2-VL or Qwen3-VL families compute its positions by a rule, in training and decoding.

    The class of its base model becomes a subclass that overrides `get_rope_index`. The library has built or loaded the
    model before, hence no weight changes. The default rule leaves the model as it is.
    """
    if rule != PositionsConfig():
        model.model.__class__ = _with_rule(type(model.model))  # type: ignore[arg-type]
        model.model.rule = rule


def by_rule(stock_3BL: Tensor, token_types_BL: Tensor, mask_BL: Tensor, rule: PositionsConfig) -> Tensor:
    """Returns the positions (3 x B x L) by a rule, from those of the library.

    Args:
        token_types_BL: 0 at text, 1 at visual tokens.
        mask_BL: 0 on the padding, whose positions stay as they are.
    """
    positions_3BL = stock_3BL.clone()
    strides = torch.tensor([1, rule.stride_height, rule.stride_width], dtype=stock_3BL.dtype)[:, None]
    for row, (types_L, is_token_L) in enumerate(zip(token_types_BL, mask_BL.bool(), strict=True)):
        place_N = is_token_L.nonzero().flatten()
        stock_3N, types_N = stock_3BL[:, row, place_N], types_L[place_N]
        borders = (types_N.diff().nonzero().flatten() + 1).tolist()
        last = None
        for start, end in zip([0, *borders], [*borders, len(place_N)], strict=True):
            run_3N = stock_3N[:, start:end]
            local_3N = run_3N - run_3N.min()
            if types_N[start] != 0:
                local_3N = local_3N * strides
            placed_3N = local_3N + (0 if last is None else last + rule.border_gap)
            positions_3BL[:, row, place_N[start:end]] = placed_3N
            last = placed_3N.max()
    return positions_3BL


@cache
def _with_rule(base: type) -> type:
    class Positioned(base):  # type: ignore[misc]
        rule: PositionsConfig

        def get_rope_index(
            self,
            input_ids: Tensor,
            mm_token_type_ids: Tensor,
            image_grid_thw: Tensor | None = None,
            video_grid_thw: Tensor | None = None,
            attention_mask: Tensor | None = None,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor]:
            """Returns positions (3 x B x L), and for each row the largest position + 1 - its number of tokens."""
            # The runs are found token by token: on the CPU, so that a GPU is waited for once and not in every row.
            ids, types = input_ids.cpu(), mm_token_type_ids.cpu()
            mask = torch.ones_like(ids) if attention_mask is None else attention_mask.cpu()
            grid = None if image_grid_thw is None else image_grid_thw.cpu()
            stock_3BL, _ = super().get_rope_index(ids, types, image_grid_thw=grid, attention_mask=mask)
            positions_3BL = by_rule(stock_3BL, types, mask, self.rule)
            largest_B = positions_3BL.masked_fill(~mask.bool(), -1).amax(dim=(0, 2))
            delta_B1 = (largest_B + 1 - mask.sum(dim=1))[:, None]
            return positions_3BL.to(input_ids.device), delta_B1.to(input_ids.device)

    Positioned.__name__ = Positioned.__qualname__ = base.__name__
    return Positioned
