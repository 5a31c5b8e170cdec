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
    model before, hence no weight changes. With the default rule the positions are those of the library, which finds
    them row by row and makes a GPU wait several times in each.
    """
    model.model.__class__ = _with_rule(type(model.model))  # type: ignore[arg-type]
    model.model.rule = rule


def by_rule(token_types_BL: Tensor, mask_BL: Tensor, grid: tuple[int, int], rule: PositionsConfig) -> Tensor:
    """Returns the positions (3 x B x L) of rows that have one image each. No device waits.

    Args:
        token_types_BL: 0 at text, 1 at visual tokens.
        mask_BL: 0 on the padding, whose positions are 0.
        grid: rows and columns of the visual tokens of an image.
    """
    rows, columns = grid
    is_token_BL, is_visual_BL = mask_BL.bool(), token_types_BL != 0
    place_BL, visual_BL = is_token_BL.cumsum(dim=1) - 1, is_visual_BL.cumsum(dim=1) - 1
    is_before_BL = is_token_BL & (visual_BL < 0)
    num_before_B1 = is_before_BL.sum(dim=1, keepdim=True)
    first_B1 = num_before_B1 + (rule.border_gap - 1) * (num_before_B1 > 0)
    height_BL = first_B1 + visual_BL // columns * rule.stride_height
    width_BL = first_B1 + visual_BL % columns * rule.stride_width
    last_B1 = first_B1 + max((rows - 1) * rule.stride_height, (columns - 1) * rule.stride_width)
    behind_BL = last_B1 + rule.border_gap + place_BL - num_before_B1 - rows * columns
    text_BL = torch.where(is_before_BL, place_BL, behind_BL)
    image_3BL = torch.stack([first_B1.expand_as(height_BL), height_BL, width_BL])
    return torch.where(is_visual_BL, image_3BL, text_BL).masked_fill(~is_token_BL, 0)


@cache
def _with_rule(base: type) -> type:
    class Positioned(base):  # type: ignore[misc]
        rule: PositionsConfig

        def get_rope_index(
            self,
            input_ids: Tensor,
            mm_token_type_ids: Tensor,
            image_grid_thw: Tensor,
            video_grid_thw: Tensor | None = None,
            attention_mask: Tensor | None = None,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor]:
            """Returns positions (3 x B x L), and for each row the largest position + 1 - its number of tokens.

            The images have the same size, see `Rows`, and their grid is on the CPU.
            """
            mask_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            merge = self.config.vision_config.spatial_merge_size
            _, rows, columns = image_grid_thw[0].tolist()
            positions_3BL = by_rule(mm_token_type_ids, mask_BL, (rows // merge, columns // merge), self.rule)
            delta_B1 = (positions_3BL.amax(dim=(0, 2)) + 1 - mask_BL.sum(dim=1))[:, None]
            return positions_3BL, delta_B1

    Positioned.__name__ = Positioned.__qualname__ = base.__name__
    return Positioned
