"""Export of a trained vision-language student as one file.

The file is a safetensors file with all weights, low-rank adapters merged. Its metadata hold as JSON how the network is
built, its vocabulary, the rule of its positions, and a card that the caller writes. It holds no path.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmpkd.export.lookup import ANSWERING, ANSWERS
from mmpkd.fit import seeded
from mmpkd.types import ConfigError
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import Vlm
from mmpkd.vlm.network import merged, network_class, new_network, prepared
from mmpkd.vlm.vocabulary import Tokens, Words, restored_processor

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
