"""The vision-language model: a Qwen2-VL or Qwen3-VL of transformers, built small or read from a local folder.

transformers and peft are imported where they are used, because most trainings have no use for them. In both families
`mm_token_type_ids` must be passed: without it `generate` uses one-dimensional positions and does not complain.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpkd.fit import autocast, seeded
from mmpkd.types import ConfigError, Mistake
from mmpkd.vlm.config import FAMILIES, PositionsConfig, VlmConfig
from mmpkd.vlm.network import (
    MERGE,
    image_layout,
    network_config,
    network_of_folder,
    new_network,
    prepared,
    with_adapters,
)
from mmpkd.vlm.rows import Rows
from mmpkd.vlm.vocabulary import Processor, folder_facts, pixels_of_token


class Answers(NamedTuple):
    """Answers, and the margin of each: the mean, over its tokens and its end, of the largest minus the second largest
    probability at temperature 1."""

    texts: list[str]
    margins: list[float]


class Vlm(nn.Module):
    """A model that reads an image and a question and writes an answer.

    `network` is a model of transformers, perhaps with adapters of peft around it. Gradients reach all weights, or the
    adapters alone.
    """

    mean_1C11: Tensor
    std_1C11: Tensor

    def __init__(self, network: Any, processor: Processor) -> None:
        super().__init__()
        self.network = network
        self.processor = processor
        for name, values in (("mean_1C11", processor.mean), ("std_1C11", processor.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    @property
    def base(self) -> Any:
        """The model of transformers, whose layers may hold adapters."""
        return self.network.get_base_model() if hasattr(self.network, "peft_config") else self.network

    def forward(self, rows: Rows) -> Tensor:
        """Returns the logits (B x L x V, float32) of the token after each position."""
        return self._logits(rows, 0)

    def answer_logits(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Returns the logits (B x A x V, float32) of the last A tokens, and these tokens' labels (B x A).

        A is the number of tokens of the longest answer. A label is the token that its logits predict, or -100 before
        the answer. Batches with the same answers have the same A, whatever their prompts.
        """
        num_answer = max(1, rows.num_answer)
        return self._logits(rows, num_answer + 1)[:, :-1], rows.labels_BL[:, -num_answer:]

    def _logits(self, rows: Rows, num_last: int) -> Tensor:
        with autocast(rows.input_ids_BL.device):
            output = self.network(**self._inputs(rows), use_cache=False, logits_to_keep=num_last)
        logits: Tensor = output.logits.float()
        return logits

    @torch.no_grad()
    def answer(
        self,
        rows: Rows,
        max_new_tokens: int,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Answers:
        """Returns an answer for each row of a batch without answers.

        Args:
            temperature: None decodes greedily; otherwise answers are sampled.
            generator: decides what is sampled, together with the batch. The global generators are left as they are.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        assert rows.num_answer == 0, "the batch holds the answers"
        assert (temperature is None) == (generator is None), "a temperature needs a generator, and the other way round"
        tokens, device, was_training = self.processor.tokens, rows.input_ids_BL.device, self.training
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature is not None,
            temperature=temperature,
            top_k=0 if temperature is not None else None,
            pad_token_id=tokens.pad,
            eos_token_id=tokens.end,
        )
        margins = _Margins()
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self.eval()
        try:
            with seeded(seed, "answers"), autocast(device):
                ids_BL = self.network.generate(
                    **self._inputs(rows), generation_config=config, logits_processor=LogitsProcessorList([margins])
                )
        finally:
            self.train(was_training)
        new_BN = ids_BL[:, rows.input_ids_BL.shape[1] :]
        # An answer ends with its first end token, whatever follows; the margin counts that token.
        has_ended_BN = (new_BN == tokens.end).cumsum(dim=1) - (new_BN == tokens.end).int() > 0
        margin_BN = torch.stack(margins.steps, dim=1).masked_fill(has_ended_BN, 0.0)
        margin_B = margin_BN.sum(dim=1) / (~has_ended_BN).sum(dim=1)
        is_text_BN = ~has_ended_BN & (new_BN != tokens.end)
        texts = [tokens.decode(ids[keep].tolist()) for ids, keep in zip(new_BN.cpu(), is_text_BN.cpu(), strict=True)]
        return Answers(texts, margin_B.tolist())

    def _inputs(self, rows: Rows) -> dict[str, Any]:
        """Returns the arguments of the network. Each distinct image is encoded once, however many rows share it."""
        pixels, grid_M3 = self._patches(rows.image_MCHW)
        base, (_, height, width) = self.base.model, grid_M3[0].tolist()
        layout = image_layout(base.visual, height, width, len(grid_M3), pixels.device)
        encoded = base.get_image_features(pixels, grid_M3, return_dict=True, **layout)
        order = rows.image_B.tolist()
        encoded.pooler_output = [encoded.pooler_output[index] for index in order]
        if "deepstack_features" in encoded:
            encoded.deepstack_features = [[layer[index] for index in order] for layer in encoded.deepstack_features]
        return {
            "input_ids": rows.input_ids_BL,
            "attention_mask": rows.mask_BL,
            "mm_token_type_ids": rows.token_types_BL,
            "image_grid_thw": grid_M3[rows.image_B],
            "mm_encoder_outputs": {"image": encoded},
        }

    def _patches(self, image_MCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns normalised pixels patch by patch, in the order in which the image encoder reads them, and the grid of
        each image, which stays on the CPU.

        The order is that of the library's `Qwen2VLImageProcessor`: the patches of a visual token are neighbours. Images
        of one channel are repeated for an encoder of three, and a single image stands for all frames of a patch.
        """
        vision = self.base.config.vision_config
        size, frames, channels = vision.patch_size, vision.temporal_patch_size, vision.in_channels
        image_MCHW = (image_MCHW.float() / 255 - self.mean_1C11) / self.std_1C11
        image_MCHW = image_MCHW.expand(-1, channels, -1, -1)
        count, _, height, width = image_MCHW.shape
        rows, columns = height // size, width // size
        blocks = image_MCHW.reshape(count, channels, rows // MERGE, MERGE, size, columns // MERGE, MERGE, size).permute(
            0, 2, 5, 3, 6, 1, 4, 7
        )
        pixels = blocks.unsqueeze(6).expand(*[-1] * 6, frames, -1, -1).reshape(count * rows * columns, -1)
        return pixels, torch.tensor([[1, rows, columns]] * count)


class _Margins:
    """Records the margin of each token while `generate` runs. It sees the logits before a temperature changes them."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        largest_B2 = scores_BV.float().softmax(dim=1).topk(2).values
        self.steps.append(largest_B2[:, 0] - largest_B2[:, 1])
        return scores_BV


def build(config: VlmConfig, processor: Processor, image_size: int, channels: int, seed: int, *purpose: object) -> Vlm:
    """Returns a model, in training mode, on the CPU.

    Args:
        image_size: side of the stored square in pixels.
        channels: channels of the stored images.
        seed, purpose: decide the initial weights, see `mmpkd.fit.derived_seed`.

    Raises:
        ConfigError: the folder of the model cannot be used, or low-rank adapters lack their library.
    """
    with seeded(seed, *purpose):
        if config.model in FAMILIES:
            network = new_network(config.model, network_config(config, processor, image_size, channels))
        else:
            network = network_of_folder(Path(config.model), channels)
        network = prepared(network, config.positions)
        if config.lora is not None:
            network = with_adapters(network, config.lora)
    return Vlm(network, processor).train()


def check(config: VlmConfig, image_size: int) -> list[Mistake]:
    """Returns what is wrong with the configuration of a model and can be known without building it. The paths are those
    below the model's section; `reads` is left to the caller, who knows the cohort's images."""
    mistakes = []
    if config.lora is not None and find_spec("peft") is None:
        problem = "low-rank adapters need the library peft, which is not installed; run: pip install 'mmpkd[vlm]'"
        mistakes.append(Mistake("lora", problem))
    if config.model not in FAMILIES:
        try:
            facts = folder_facts(Path(config.model))
        except ConfigError as error:
            return [*mistakes, *(Mistake("model", mistake.problem) for mistake in error.mistakes)]
        rule = PositionsConfig.model_validate(facts.get("position_rule", {}))
        if rule not in (PositionsConfig(), config.positions):
            written = ", ".join(f"{key}: {value}" for key, value in rule.model_dump().items())
            problem = f"{config.model} was trained with other positions, which its config.json states"
            mistakes.append(Mistake("positions", f"{problem}; write positions: {{{written}}}"))
        return mistakes + _check_size(pixels_of_token(facts), image_size, "model")
    for path, size, step, least in (("vision", config.vision, 4, 4), ("decoder", config.decoder, 2, 6)):
        width = size.width / size.heads
        if width % step or width < least:
            problem = f"{size.width} over {size.heads} heads gives {width:g} for each head"
            advice = f"wanted a multiple of {step} that is at least {least}, for the rotary positions"
            mistakes.append(Mistake(f"{path}.width", f"{problem}; {advice}"))
    return mistakes + _check_size(MERGE * config.vision.patch_size, image_size, "vision.patch_size")


def _check_size(pixels: int, image_size: int, path: str) -> list[Mistake]:
    if image_size % pixels == 0:
        return []
    problem = f"a visual token covers {pixels} x {pixels} pixels, which do not fill images of {image_size}"
    sizes = [size for size in (image_size // pixels * pixels, (image_size // pixels + 1) * pixels) if size]
    return [Mistake(path, f"{problem}; set cohort.image_size={' or '.join(map(str, sizes))}")]


def size_of(config: VlmConfig) -> float:
    """Returns a number that orders models which are built by their cost: blocks x width^2, of both parts."""
    return float(config.vision.depth * config.vision.width**2 + config.decoder.depth * config.decoder.width**2)
