"""Export of a trained vision-language student: one file, or a folder as transformers writes it.

The file is a safetensors file with all weights, low-rank adapters merged. Its metadata hold as JSON how the network is
built, its vocabulary, the rule of its positions, and a card that the caller writes. It holds no path.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmpkd.export.lookup import ANSWERING, ANSWERS
from mmpkd.fit import seeded
from mmpkd.machine.new_folder import new_folder
from mmpkd.types import ConfigError
from mmpkd.vlm.config import PositionsConfig, VlmConfig
from mmpkd.vlm.model import Vlm
from mmpkd.vlm.network import merged, network_class, new_network, prepared
from mmpkd.vlm.vocabulary import FolderTokens, Tokens, Words, restored_processor

NAME, FORMAT = ANSWERING, ANSWERS
TIED = "lm_head.weight"  # the embedding under a second name


class Exported(NamedTuple):
    """A student, read from a file, and what the file says: `config`, `processor`, `network`, `image_size`, `channels`
    and `card`."""

    vlm: Vlm
    content: dict[str, Any]


def write(folder: Path, vlm: Vlm, config: VlmConfig, image_size: int, channels: int, card: Mapping[str, Any]) -> Path:
    """Writes `folder/vlm.safetensors` atomically.

    Args:
        config: the configuration of `vlm`, perhaps that of a teacher.
        image_size, channels: of the images that it was trained on.
        card: what else the file shall say; it must be possible to write it as JSON.
    """
    network = merged(vlm.network)
    own = {name: getattr(config, name) for name in VlmConfig.model_fields}
    content = {
        "config": VlmConfig(**own | {"model": network.config.model_type, "lora": None}).model_dump(mode="json"),
        "processor": vlm.processor.state(),
        "network": json.loads(network.config.to_json_string(use_diff=False)),
        "image_size": image_size,
        "channels": channels,
        "card": dict(card),
    }
    content["network"].pop("_name_or_path", None)  # the folder of the model that was trained further
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if network.config.tie_word_embeddings:
        del weights[TIED]
    text = json.dumps(content)
    path = folder / NAME
    partial = path.with_suffix(".partial")
    save_file(weights, partial, metadata={"format": FORMAT, "content": text, "crc": _checksum(text, weights)})
    os.replace(partial, path)
    return path


def read(path: Path) -> Exported:
    """Reads an exported student, on the CPU, in evaluation mode.

    Raises:
        ConfigError: the file is missing, of another kind, or damaged.
    """
    again = "repeat the command that trained it, or name another file"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError.at("model", f"{path} cannot be read ({error.strerror or error}); {again}") from error
    except SafetensorError as error:
        raise ConfigError.at("model", f"{path} is not a complete safetensors file; {again}") from error
    if metadata.get("format") != FORMAT:
        problem = f"{path} has format {metadata.get('format')!r}; wanted {FORMAT!r}, a student that answers"
        raise ConfigError.at("model", f"{problem}; {again}")
    if metadata.get("crc") != _checksum(metadata.get("content", ""), weights):
        raise ConfigError.at("model", f"{path} is damaged: it does not match its checksum; {again}")
    content = json.loads(metadata["content"])
    config = VlmConfig.model_validate(content["config"])
    with seeded(0, "read"):  # the network draws weights, which are then replaced
        network = new_network(config.model, network_class(config.model).config_class.from_dict(content["network"]))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {TIED}, f"{missing} {unexpected}"
    network = prepared(network, config.positions)
    return Exported(Vlm(network, restored_processor(content["processor"])).eval(), content)


def limits_of_sharing(credentialed: bool, tokens: Tokens) -> list[str]:
    """Returns sentences on what a student tells about its cohort to everyone who has its file."""
    limits = ["Access to the data is restricted. Their terms may forbid that this student is shared."] * credentialed
    if isinstance(tokens, Words):
        limits.append(
            "Its vocabulary is all words and numbers of the training questions and answers, readable without the "
            "model: names of persons too, where these texts hold any."
        )
    return limits


def _checksum(text: str, weights: Mapping[str, torch.Tensor]) -> str:
    crc = zlib.crc32(text.encode())
    for name, tensor in sorted(weights.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def to_folder(path: Path, folder: Path, command: Sequence[str]) -> list[str]:
    """Writes an exported student as a folder that transformers reads by itself.

    transformers knows the positions of its own models only. With another rule, `position_rule` in the folder's
    `config.json` and its README hold the rule, and logits are right only where it is applied.

    Args:
        command: the words of the user's command, which a message repeats.

    Returns:
        What the user is to know before the folder of a student of a credentialed cohort is shared.

    Raises:
        ConfigError: the file cannot be read, or `folder` is in use.
    """
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    vlm, content = read(path)
    processor, network, tokens = vlm.processor, vlm.network, vlm.processor.tokens
    rule = PositionsConfig.model_validate(content["config"]["positions"])
    network.config.position_rule = rule.model_dump()
    network.generation_config = GenerationConfig(eos_token_id=tokens.end, pad_token_id=tokens.pad)
    vision = network.config.vision_config
    pixels = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    is_private = bool(content["card"].get("credentialed"))
    limits = limits_of_sharing(is_private, tokens)
    with new_folder(folder, command) as partial:
        network.save_pretrained(partial)
        (partial / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2))
        if isinstance(tokens, FolderTokens):
            names = {"eos_token": tokens.end, "pad_token": tokens.pad}
            special = {name: tokens.backend.id_to_token(index) for name, index in names.items()}
            PreTrainedTokenizerFast(tokenizer_object=tokens.backend, **special).save_pretrained(partial)
        (partial / "processor.json").write_text(json.dumps(processor.state()))
        (partial / "README.md").write_text(_readme(content, rule, network.config.model_type, limits))
    return limits if is_private else []


def _readme(content: Mapping[str, Any], rule: PositionsConfig, family: str, limits: Sequence[str]) -> str:
    size, channels = content["image_size"], content["channels"]
    lines = [
        "# A vision-language student",
        "",
        f"A model of type `{family}` for images of {size} x {size} pixels with {channels} channel(s). "
        "`processor.json` holds its vocabulary (`tokens`), the token ids of a prompt before the image, between image "
        "and question, and after the question, and the number of steps of the grid on which it writes boxes.",
        "",
        *(["## Data", "", *(f"- **{limit}**" for limit in limits), ""] if limits else []),
        "## Positions",
        "",
    ]
    if rule == PositionsConfig():
        lines.append("The positions are those of transformers.")
    else:
        lines += [
            "**transformers alone computes other positions than those that this model was trained with, and does not "
            "say so.** Pass `position_ids` that follow this rule, or use the model through mmpkd:",
            "",
            f"- where text and image meet, the next run begins {rule.border_gap} after the largest position so far;",
            f"- visual tokens that are neighbours vertically are {rule.stride_height} apart, and those that are "
            f"neighbours horizontally {rule.stride_width};",
            "- everything else is as in transformers. `position_rule` in `config.json` holds these numbers.",
        ]
    return "\n".join(lines) + "\n"
