"""The networks of transformers behind a vision-language model: built small, read from a folder, with adapters.

transformers and peft are imported where they are used, because most trainings have no use for them.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpkd.types import ConfigError
from mmpkd.vlm.config import LoraConfig, PositionsConfig, VlmConfig
from mmpkd.vlm.positions import apply_rule
from mmpkd.vlm.vocabulary import Processor, folder_facts

MERGE = 2  # patches along each side that become one visual token, in all models of the families
LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"  # that get adapters


def prepared(network: Any, rule: PositionsConfig) -> Any:
    """Returns a network of transformers with the rule of positions, and without the decoding options of its folder."""
    from transformers import AttentionInterface, GenerationConfig

    apply_rule(network, rule)
    AttentionInterface.register("within_images", within_images)
    network.set_attn_implementation({"vision_config": "within_images"})
    network.generation_config = GenerationConfig()
    return network


def new_network(family: str, config: Any) -> Any:
    """Returns a network of a family with random weights, from a configuration of transformers."""
    return network_class(family)(config)


def network_class(family: str) -> Any:
    """Returns the class of transformers for a family."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # of weights that are read or written
    names = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
    return getattr(transformers, names[family])


def network_config(config: VlmConfig, processor: Processor, image_size: int, channels: int) -> Any:
    """Returns the configuration of transformers for a model that is built."""
    import transformers

    vision, decoder, tokens = config.vision, config.decoder, processor.tokens
    half = decoder.width // decoder.heads // 2
    temporal = max(1, half // 4)
    sections = [temporal, (half - temporal + 1) // 2, (half - temporal) // 2]
    shared: dict[str, Any] = {"depth": vision.depth, "num_heads": vision.heads, "patch_size": vision.patch_size}
    shared |= {"in_channels": channels, "temporal_patch_size": 1, "spatial_merge_size": MERGE}
    shared |= {"initializer_range": decoder.initializer_range}
    text = {
        "vocab_size": len(tokens),
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp,
        "num_hidden_layers": decoder.depth,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.heads,
        "initializer_range": decoder.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta, "mrope_section": sections},
        "pad_token_id": tokens.pad,
    }
    if config.model == "qwen2_vl":
        kind: Any = transformers.Qwen2VLConfig
        sizes: dict[str, Any] = {"embed_dim": vision.width, "hidden_size": decoder.width, "mlp_ratio": 4}
        text |= {"bos_token_id": None, "eos_token_id": tokens.end}
    else:
        kind = transformers.Qwen3VLConfig
        sizes = {"hidden_size": vision.width, "out_hidden_size": decoder.width, "intermediate_size": 4 * vision.width}
        sizes |= {"num_position_embeddings": (image_size // vision.patch_size) ** 2, "deepstack_visual_indexes": []}
        text |= {"head_dim": decoder.width // decoder.heads}
    return kind(
        text_config=text,
        vision_config=shared | sizes,
        image_token_id=tokens.image,
        video_token_id=tokens.video,
        vision_start_token_id=tokens.vision,
        vision_end_token_id=tokens.vision_end,
        tie_word_embeddings=True,
    )


def network_of_folder(folder: Path, channels: int) -> Any:
    """Returns the model of a folder in float32. Nothing is downloaded.

    Raises:
        ConfigError: the folder cannot be used, or its model reads fewer channels than the images have.
    """
    facts = folder_facts(folder)
    if channels > (wanted := facts.get("vision_config", {}).get("in_channels", 3)):
        problem = f"{folder} reads images of {wanted} channel, and those of the cohort have {channels}"
        raise ConfigError.at("student.model", f"{problem}; name a model for images in colour")
    try:
        return network_class(facts["model_type"]).from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        problem = f"the model in {folder} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise ConfigError.at("student.model", f"{problem}; download it again with `hf download`") from error


def image_layout(visual: Any, rows: int, columns: int, count: int, device: torch.device) -> dict[str, Any]:
    """Returns further arguments of an image encoder for images of `rows` x `columns` patches, which must be equal.

    They are the arguments that transformers otherwise makes from the grid of each image in turn, for which a GPU is
    waited for several times in each image, and three times in each layer. Its attention would take the images one by
    one as well: to it all are one image, which `within_images` splits.
    """
    side = getattr(visual, "num_grid_per_side", None)  # Qwen3-VL alone has a table of positions
    one_image = _layout_of_one(visual.spatial_merge_size, side, rows, columns, device)
    layout = {name: values.repeat(count, 1) for name, values in one_image.items()}
    # The ends stay on the CPU, because the encoder splits there.
    return layout | {"cu_seqlens": torch.tensor([0, count * rows * columns], dtype=torch.int32), "num_images": count}


def within_images(
    module: Any, query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, attention_mask: None, **options: Any
) -> tuple[Tensor, None]:
    """Returns the attention (1 x T x H x D) of an image encoder to the tokens of the same image, of `num_images` equal
    ones, or of one: a function for the `AttentionInterface` of transformers."""
    query, key, value = (
        each[0].unflatten(1, (options.get("num_images", 1), -1)).transpose(0, 1)
        for each in (query_1HTD, key_1HTD, value_1HTD)
    )
    output_MHND = F.scaled_dot_product_attention(
        query, key, value, dropout_p=options["dropout"], scale=options["scaling"]
    )
    return output_MHND.transpose(1, 2).flatten(0, 1)[None], None


@lru_cache(maxsize=8)
def _layout_of_one(merge: int, side: int | None, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
    from transformers import vision_utils

    grid_13 = torch.tensor([[1, rows, columns]])
    layout = {"position_ids": vision_utils.get_vision_position_ids(grid_13, merge)}
    if side is not None:
        names = ("interp_indices", "interp_weights")
        taps = vision_utils.get_vision_interpolation_indices_and_weights(
            grid_13, side, mode="bilinear", align_corners=True, spatial_merge_size=merge
        )
        layout |= dict(zip(names, taps, strict=True))
    return {name: values.to(device) for name, values in layout.items()}


def with_adapters(network: Any, config: LoraConfig) -> Any:
    """Returns a network with low-rank adapters on the linear layers of its text decoder; nothing else learns."""
    try:
        import peft
    except ImportError as error:
        problem = "low-rank adapters need the library peft, which is not installed"
        raise ConfigError.at("student.lora", f"{problem}; run: pip install 'mmpkd[vlm]'") from error
    options = peft.LoraConfig(  # a scale need not be an integer
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=LAYERS,
    )
    return peft.get_peft_model(network, options)


def merged(network: Any) -> Any:
    """Returns the network of transformers with its adapters added to its weights; the network itself is kept."""
    if not hasattr(network, "peft_config"):
        return network
    return copy.deepcopy(network).merge_and_unload()
