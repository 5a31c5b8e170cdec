"""Where the student looks: maps over its patches, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mmpkd.types import StudentOutput


def cls_attention(output: StudentOutput) -> Tensor:
    """Attention of the CLS token over the patches in the last block given, mean over heads.

    Renormalised over patches, since CLS and register tokens take a share of every row; class-agnostic.
    Shape B, h, w; each map sums to 1.
    """
    row_BAN = output.query_attention_BAN[max(output.query_attention_BAN)]
    map_BP = row_BAN[:, :, output.num_prefix :].float().mean(dim=1)
    map_BP = map_BP / map_BP.sum(dim=1, keepdim=True).clamp(min=1e-30)  # CLS may look at itself alone
    return map_BP.view(len(map_BP), *output.grid)


MAPS: dict[str, Callable[[StudentOutput], Tensor]] = {
    "cls_attention": cls_attention,
}
