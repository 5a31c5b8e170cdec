"""The configuration of a vision-language student, of its teacher, and of what it learns from the teacher.

The three ideas of ClinKD (arXiv 2502.05928) are options that are off by default: `student.positions`,
`distillation.kl` with `distillation.pseudo_labels`, and `distillation.corrections`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmpkd.types import Fraction, Positive, Strict

FAMILIES = ("qwen3_vl", "qwen2_vl")  # models that can be built small; any other `model` is the folder of a model


class VisionConfig(Strict):
    """The size of the image encoder of a model that is built from configuration."""

    depth: Positive = 2
    width: Positive = 64
    heads: Positive = 4
    patch_size: Positive = 8  # pixels; four neighbouring patches become one visual token


class DecoderConfig(Strict):
    """The size of the text decoder of a model that is built from configuration, and its initial weights.

    The defaults are those with which a small model learns to answer: with the initial range 0.02 of the library its
    answers stay at chance after 1,000 steps. The range is that of the image encoder too.
    """

    depth: Positive = 2
    width: Positive = 64
    heads: Positive = 4
    mlp: Positive = 192
    initializer_range: Annotated[float, Field(gt=0, le=1)] = 0.1
    rope_theta: Annotated[float, Field(gt=1)] = 20.0


class PositionsConfig(Strict):
    """The rule of position ids (ClinKD's Med-CLIP Guided RoPE). The defaults are those of the library.

    `border_gap` is the step of the index where text and image meet: 1 in Qwen-VL, 2 in the code that ClinKD released.
    The strides are the steps between neighbouring visual tokens (alpha 1 and alpha 2 in the paper's figure, which the
    released code leaves at 1).
    """

    border_gap: Positive = 1
    stride_height: Positive = 1
    stride_width: Positive = 1


class LoraConfig(Strict):
    """Low-rank adapters (LoRA) on the linear layers of the text decoder; all other weights stay as they are."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class VlmConfig(Strict):
    """A vision-language model of the Qwen2-VL or Qwen3-VL family: built small from configuration, with the words of the
    cohort as its vocabulary, or read from a local folder with its own tokenizer."""

    kind: Literal["vlm"] = "vlm"
    model: str = "qwen3_vl"  # a family, or the folder of a transformers model
    vision: VisionConfig = VisionConfig()  # ignored for a folder
    decoder: DecoderConfig = DecoderConfig()  # ignored for a folder
    positions: PositionsConfig = PositionsConfig()
    lora: LoraConfig | None = None  # None: all weights learn
    box_steps: Positive = 24  # steps of the grid on which boxes are written, along each side; Qwen-VL models use 1000
    max_new_tokens: Positive = 80  # most tokens of an answer
    reads: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)] = ("image",)


class VlmTeacherConfig(VlmConfig):
    """A teacher that answers. It learns from the labelled training items, or is used as it is with `epochs: 0`.

    `reads` may name a further image of the cohort, which the student does not see. `hints` is the share of training
    items in which the teacher sees the true answer, so that it can correct a student when it is given the truth.
    `control: shuffled` exchanges the teacher's outputs between images of different patients.
    """

    epochs: Annotated[int, Field(ge=0)] = 30
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3  # not `lr`, which people look for under optimizer
    batch_size: Positive = 48  # questions of a step
    seed: Annotated[int, Field(ge=0)] = 0
    hints: Fraction = 0.0
    control: Literal["shuffled"] | None = None


class TokenKlConfig(Strict):
    """The divergence from the teacher's token probabilities. The loss is (weight x KL + CE) / (1 + weight), as in the
    figure of ClinKD; its README has weight 0.5 and temperature 0.5, and no factor of temperature squared."""

    weight: Annotated[float, Field(ge=0)] = 0.0  # 0: off
    temperature: Annotated[float, Field(gt=0)] = 0.5
    top_k: Positive | None = None  # None: the teacher runs at each step; else its k largest logits are cached on disk


class PseudoLabelsConfig(Strict):
    """Answers of the teacher for training images that have none.

    The paper's fourth version names confidence margins and a curriculum, but neither its text nor the released code
    could be read. Here the margin of an answer is the mean, over its tokens, of the difference between the two largest
    probabilities. `curriculum` is the share of the epochs over which the answers enter, in order of their margins.
    """

    use: bool = False
    margin: Fraction = 0.0  # least margin of an answer that is used
    curriculum: Fraction = 0.0  # 0: all answers are used from the first epoch


class CorrectionsConfig(Strict):
    """Rounds of correction (ClinKD's Reflective Correction Training), which divide the epochs into equal stages.

    After each stage but the last the student answers its training items. Those that point wrong (no box with an IoU
    above 0.5) or answer unlike the truth are answered `answers` times by the teacher, which is given the truth; the
    answer with the best score becomes the target of the next stage. The paper states neither the number nor the scorer.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    answers: Positive = 4
    similarity: Literal["containment", "rouge_l"] = "rouge_l"
    threshold: Fraction = 0.5  # answers with a lower similarity are corrected


class DistillationConfig(Strict):
    """What a vision-language student learns from its teacher. Students of other kinds have objectives instead."""

    teacher: VlmTeacherConfig | None = None
    kl: TokenKlConfig = TokenKlConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    corrections: CorrectionsConfig = CorrectionsConfig()

    @property
    def needs_teacher(self) -> bool:
        """Whether any part of the distillation is on."""
        return self.kl.weight > 0 or self.pseudo_labels.use or self.corrections.rounds > 0
