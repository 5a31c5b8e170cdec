"""The highest scores that maps on a patch grid can attain against given regions, as bounds of pointing and mass.

A region seldom covers a cell completely, so that even a perfect map may not reach 1. A single map that serves
several labels of an image cannot point at all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = ("pointing", "mass")  # for the other scores, the best map has no closed form


def best_shares(cells_Phw: Tensor, seen_Phw: Tensor, image_P: Tensor, label_P: Tensor, one_map: bool) -> Tensor:
    """Returns the score of the best maps (P), which is the same for pointing and mass; NaN for a pair without a region.

    Both scores of a map are weighted means of the share of each cell that lies in the region, so the best map is a
    single cell: the one with the largest share, if the label has its own map. If one map serves all labels of an
    image, it is the cell with the largest weighted sum of shares. The weight of a pair is its weight in the mean over
    labels of the means over images, so that the returned values have the highest possible mean.

    Args:
        cells_Phw, seen_Phw: shares of the area of each cell, see `regions.Regions`.
        one_map: whether one map serves all labels of an image.
    """
    share_PC = (cells_Phw / seen_Phw.clamp(min=1e-12)).flatten(1)
    if one_map:
        weight_P = (1 / torch.bincount(label_P).double())[label_P]
        num_images = int(image_P.max()) + 1 if len(image_P) else 0
        sum_NC = torch.zeros(num_images, share_PC.shape[1], dtype=torch.float64, device=share_PC.device)
        sum_NC.index_add_(0, image_P, weight_P[:, None] * share_PC)
        best_P = share_PC.gather(1, sum_NC.argmax(dim=1)[image_P][:, None])[:, 0]
    else:
        best_P = share_PC.amax(dim=1) if len(share_PC) else share_PC.new_empty(0)
    return best_P.double().masked_fill(~(share_PC > 0).any(dim=1), torch.nan)
