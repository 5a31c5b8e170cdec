"""A masked autoencoder over several images of each sample, whose encoder is the network of a student.

The student's own network encodes the visible patches of all images of a sample together, and a light decoder
reconstructs the hidden ones.

Sources: He et al. 2022 (MAE: the decoder, and pixels normalised by patch as the target), Robinet et al. 2025 (BM-MAE,
arXiv 2505.00568: a patch embedding for each image, tokens of all images in one sequence) and Scholz et al. 2025
(MM-DINOv2, arXiv 2509.06617: a learned embedding for each image, and images that are hidden as a whole). BM-MAE draws
the visible patches from all images together, so that it hides an image as a whole only by chance, and sums the errors
of the images; here each image has the same number of visible patches unless it is hidden as a whole, and the loss is
the mean over hidden patches. MM-DINOv2 hides exactly one image of each crop, and learns by self-distillation from an
averaged teacher, which is not offered here.

Shape legend, beside that of `mmpkd.types`: V images of a sample (the main image first), P patches of one image,
M visible patches of one image.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpkd.student import Student
from mmpkd.training.pretrain_config import PretrainConfig


class Masks(NamedTuple):
    """What the encoder sees of a batch. `one_hidden` tells on the host whether any image is hidden as a whole."""

    kept_BVM: Tensor  # positions of the visible patches of each image
    seen_BV: Tensor  # False for an image that is hidden as a whole
    one_hidden: bool

    def to(self, device: torch.device) -> Masks:
        return Masks(self.kept_BVM.to(device), self.seen_BV.to(device), self.one_hidden)


def draw_masks(count: int, images: int, patches: int, config: PretrainConfig, generator: torch.Generator) -> Masks:
    """Draws the visible patches of `count` samples from a CPU generator. At least one image of each sample is seen."""
    kept_BVM = torch.rand(count, images, patches, generator=generator).argsort(dim=2)[
        ..., : num_visible(config, patches)
    ]
    draws_BV = torch.rand(count, images, generator=generator)
    seen_BV = draws_BV >= config.view_mask
    seen_BV |= (draws_BV == draws_BV.amax(dim=1, keepdim=True)) & ~seen_BV.any(dim=1, keepdim=True)
    return Masks(kept_BVM, seen_BV, not bool(seen_BV.all()))


def num_visible(config: PretrainConfig, patches: int) -> int:
    """Returns the number of visible patches of an image that is not hidden as a whole."""
    return round((1 - config.mask) * patches)


class MaskedAutoencoder(nn.Module):
    """The network of a student, which it trains, with a patch embedding and a view embedding for each image, and a
    decoder.

    The patch embeddings of further images begin as copies of that of the main image.
    """

    def __init__(self, student: Student, images: int, config: PretrainConfig) -> None:
        super().__init__()
        model, width = student.model, config.decoder_width
        self.student, self.num_prefix, self.num_patches = student, student.num_prefix, student.grid[0] * student.grid[1]
        self.patch_size: tuple[int, int] = model.patch_embed.patch_size
        channels = model.patch_embed.proj.in_channels
        self.embeddings = nn.ModuleList([model.patch_embed, *(deepcopy(model.patch_embed) for _ in range(images - 1))])
        self.view_VD = _table(images, student.dim)
        self.to_decoder = nn.Linear(student.dim, width)
        self.hidden_D, self.place_PD, self.decoder_view_VD = (_table(n, width) for n in (1, self.num_patches, images))
        block: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        blocks = [
            nn.TransformerEncoderLayer(width, width // 32, 4 * width, **block) for _ in range(config.decoder_depth)
        ]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width))
        size = channels * self.patch_size[0] * self.patch_size[1]
        self.to_pixels = nn.ModuleList([nn.Linear(width, size) for _ in range(images)])

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the tables, as a timm model does."""
        return {"view_VD", "hidden_D", "place_PD", "decoder_view_VD"}

    def encode(self, image_BVCHW: Tensor, masks: Masks) -> Tensor:
        """Returns the encoded tokens (B, prefix + V M, D): the prefix, then the visible patches of each image.

        The tokens of an image that is hidden as a whole are there, but no other token attends to them.
        """
        model, prefix, normal = self.student.model, self.num_prefix, (image_BVCHW - self._mean) / self._std
        each = [model._pos_embed(embed(normal[:, view])) for view, embed in enumerate(self.embeddings)]
        patch_BVPD = torch.stack([x[:, prefix:] for x in each], dim=1) + self.view_VD[:, None]
        kept_BVMD = patch_BVPD.gather(2, masks.kept_BVM[..., None].expand(-1, -1, -1, patch_BVPD.shape[-1]))
        x_BND = model.norm_pre(torch.cat([each[0][:, :prefix], kept_BVMD.flatten(1, 2)], dim=1))
        attended = None
        if masks.one_hidden:
            seen_BN = masks.seen_BV.repeat_interleave(masks.kept_BVM.shape[2], dim=1)
            attended = torch.cat([seen_BN.new_ones(len(seen_BN), prefix), seen_BN], dim=1)[:, None, None]
        for block in model.blocks:
            x_BND = block(x_BND, attn_mask=attended)
        encoded_BND: Tensor = model.norm(x_BND)
        return encoded_BND

    def forward(self, image_BVCHW: Tensor, masks: Masks) -> Tensor:
        """Returns the loss: the mean squared error over hidden patches, whose pixels are normalised by patch.

        Args:
            image_BVCHW: pixels in [0, 1].
        """
        batch, views, count = *masks.seen_BV.shape, masks.kept_BVM.shape[2]
        x_BND = self.to_decoder(self.encode(image_BVCHW, masks))
        prefix_BND, kept_BVMD = x_BND[:, : self.num_prefix], x_BND[:, self.num_prefix :].unflatten(1, (views, count))
        hidden_D = self.hidden_D[0].to(x_BND.dtype)
        kept_BVMD = torch.where(masks.seen_BV[..., None, None], kept_BVMD, hidden_D)
        place_BVMD = masks.kept_BVM[..., None].expand_as(kept_BVMD)
        token_BVPD = hidden_D.expand(batch, views, self.num_patches, -1).scatter(2, place_BVMD, kept_BVMD)
        token_BVPD = token_BVPD + self.place_PD + self.decoder_view_VD[:, None]
        decoded_BND = self.decoder(torch.cat([prefix_BND, token_BVPD.flatten(1, 2)], dim=1))
        decoded_BVPD = decoded_BND[:, self.num_prefix :].unflatten(1, (views, self.num_patches))
        pixels = [to_pixels(decoded_BVPD[:, view]) for view, to_pixels in enumerate(self.to_pixels)]
        error_BVP = (torch.stack(pixels, dim=1).float() - self.targets(image_BVCHW)).square().mean(dim=3)
        shown_BVP = torch.zeros_like(error_BVP, dtype=torch.bool).scatter(2, masks.kept_BVM, True)
        hidden_BVP = ~(shown_BVP & masks.seen_BV[..., None])
        return torch.where(hidden_BVP, error_BVP, 0.0).sum() / hidden_BVP.sum()

    def targets(self, image_BVCHW: Tensor) -> Tensor:
        """Returns the pixels of each patch, C x rows x columns, with mean 0 and variance 1 (B, V, P, pixels). A patch
        of a single value is 0."""
        rows, columns = self.patch_size
        patches = image_BVCHW.unfold(3, rows, rows).unfold(4, columns, columns)  # B, V, C, h, w, rows, columns
        pixel_BVPX = patches.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)
        mean, variance = pixel_BVPX.mean(dim=3, keepdim=True), pixel_BVPX.var(dim=3, keepdim=True)
        return (pixel_BVPX - mean) / (variance + 1e-6).sqrt()

    def hand_over(self) -> None:
        """Adds the view embedding of the main image to the student's table of positions. The student then computes from
        the main image what the encoder computes from a sample with no other image and no hidden patch."""
        with torch.no_grad():
            self.student.model.pos_embed[:, -self.num_patches :] += self.view_VD[0]

    @property
    def _mean(self) -> Tensor:
        return self.student.mean[:, None]

    @property
    def _std(self) -> Tensor:
        return self.student.std[:, None]


def _table(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(count, width), std=0.02))
