"""The network of the fused teacher: several modalities update a learned array of latents, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """Turns the patches of an image into tokens: each patch is embedded on its own and gets a position embedding."""

    def __init__(self, channels: int, image_size: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(channels, dim, patch_size, patch_size), nn.GELU(), nn.Conv2d(dim, dim, 1))
        self.pos_embed = nn.Parameter(0.02 * torch.randn((image_size // patch_size) ** 2, dim))

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tokens (B, N, D) of pixels in [0, 1], and the mask (B, N) of present tokens, which is all
        True."""
        token_BND = self.embed((image_BCHW - 0.5) / 0.25).flatten(2).transpose(1, 2) + self.pos_embed
        return token_BND, torch.ones_like(token_BND[..., 0], dtype=torch.bool)


class Cells(nn.Module):
    """Turns the cells of a table row into tokens: a linear map of the encoded cell plus a vector of its column.

    Args:
        column_V: the index of the column that each of the V encoded values belongs to.
    """

    column_V: Tensor

    def __init__(self, column_V: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("column_V", column_V)
        self.embed = nn.Parameter(torch.randn(len(column_V), dim) / 2)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(int(column_V.max()) + 1, dim))

    def forward(self, encoded_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tokens (B, columns, D) and the mask (B, columns) of present cells. Missing cells are NaN in the
        input."""
        token_BND = self.pos_embed.expand(len(encoded_BV), -1, -1)
        token_BND = token_BND.index_add(1, self.column_V, encoded_BV.nan_to_num()[..., None] * self.embed)
        missing_BN = encoded_BV.new_zeros(token_BND.shape[:2]).index_add(1, self.column_V, encoded_BV.isnan().float())
        return token_BND, missing_BN == 0


class Update(nn.Module):
    """The update of the latents by one modality: attention to its tokens, then a feed-forward step."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_latents, self.norm_tokens, self.norm_step = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.step = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, latent_BLD: Tensor, token_BND: Tensor, present_BN: Tensor) -> Tensor:
        """Returns the updated latents. The latents of a sample without tokens are returned unchanged, bit for bit."""
        any_present_B1 = present_BN.any(dim=1, keepdim=True)
        token_BND = self.norm_tokens(token_BND)
        attended_BLD, _ = self.attention(
            self.norm_latents(latent_BLD),
            token_BND,
            token_BND,
            key_padding_mask=any_present_B1 & ~present_BN,  # a softmax over no token is NaN, and so are its gradients
            need_weights=False,
        )
        updated_BLD = latent_BLD + attended_BLD
        updated_BLD = updated_BLD + self.step(self.norm_step(updated_BLD))
        return torch.where(any_present_B1[..., None], updated_BLD, latent_BLD)


class Fusion(nn.Module):
    """Fuses modalities by cross-attention into an array of latents. A linear head computes logits from their mean.

    After HEALNet (Hemker et al. 2024, arXiv 2311.09115): each modality in turn updates the latents, `depth` times with
    the same weights. Missing inputs are skipped, not imputed: a missing cell has no token, and a modality without
    tokens makes no update. (In the authors' code a missing modality still makes the feed-forward step of the latents.)

    Args:
        readers: for each modality, the module that maps its input to tokens (B, N, D) and a mask of the present tokens
            (B, N).
    """

    def __init__(
        self, readers: Mapping[str, nn.Module], latents: int, dim: int, depth: int, heads: int, num_logits: int
    ) -> None:
        super().__init__()
        self.depth = depth
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.readers = nn.ModuleDict(readers)
        self.updates = nn.ModuleDict({name: Update(dim, heads) for name in readers})
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_logits)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and the mean of the latents (B, D), from a batch with some or all of the modalities."""
        tokens = {name: reader(inputs[name]) for name, reader in self.readers.items() if name in inputs}
        batch = len(next(iter(inputs.values())))
        latent_BLD = self.latents.expand(batch, -1, -1)
        for _ in range(self.depth):
            for name, (token_BND, present_BN) in tokens.items():
                latent_BLD = self.updates[name](latent_BLD, token_BND, present_BN)
        embedding_BD = latent_BLD.mean(dim=1)
        with torch.autocast(embedding_BD.device.type, enabled=False):  # bfloat16 logits tie, and ties cost AUROC
            return self.head(self.norm(embedding_BD.float())), embedding_BD
