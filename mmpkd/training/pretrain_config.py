"""The configuration of a pre-training without labels, which comes before the training of a student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmpkd.types import Fraction, Positive, Strict


class PretrainConfig(Strict):
    """A masked autoencoder over the main image and further images of the cohort.

    A share `mask` of the patches of each image is hidden. Besides, each image of a sample is hidden as a whole with
    probability `view_mask`, but never all images of a sample. The views of the samples are those of the training
    (`augmentation`), and an image is hidden for one step only.
    """

    kind: Literal["mae"] = "mae"
    views: tuple[str, ...] = ()  # further images that are learned from; the main image always is
    epochs: Positive = 50
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.75
    view_mask: Fraction = 0.5  # has no effect without further images
    lr: Annotated[float, Field(gt=0)] = 1e-3  # highest learning rate of AdamW; warm-up over a tenth, then cosine to 0
    batch_size: Positive = 64
    decoder_depth: Positive = 2
    decoder_width: Annotated[int, Field(gt=0, multiple_of=32)] = 128  # an attention head for each 32
