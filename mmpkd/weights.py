"""Pretrained weights for a timm ViT: where they lie, whether they are this model's, and what is done to make them fit.

timm loads what has the right name and shape and says nothing of the rest, so everything is held against the model
beforehand, by timm's own strict loading. Shapes do not tell the number of attention heads: that is known of the model
that timm names, of a header that says `num_heads`, or of a user who says it (`weights_heads`), and nowhere else. A
header, or a `config.json` beside the file as the Hugging Face hub has it, may name the model (`architecture`); then
what else shapes do not show is held against it, such as the activation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpkd.config import NetworkConfig
from mmpkd.machine.errors import machine_fault
from mmpkd.types import ConfigError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SIZES = ("patch_size", "embed_dim", "depth", "num_heads")  # of a NetworkConfig
COUNTERS = ("n_averaged",)  # of torch's weight averaging: no weights, and no loss
NAMES_SHOWN = 4  # names in a message
WHOSE = "name a model that these weights are all of (student.model) with its own sizes, or set student.pretrained=false"


def weights_of(config: NetworkConfig) -> Path | None:
    """The file that holds the pretrained weights; None where the student starts from scratch.

    Looks at `student.weights`, else in the Hugging Face cache. Nothing is ever downloaded.

    Raises:
        ConfigError: the weights are not on this machine.
    """
    if not config.pretrained:
        if config.weights is not None:
            raise ConfigError.at("student.weights", "is given but student.pretrained is false")
        if config.weights_heads is not None:
            raise ConfigError.at("student.weights_heads", "is given but student.pretrained is false")
        return None
    if config.weights is not None:
        if not config.weights.is_file():
            raise ConfigError.at("student.weights", f"no file {config.weights}")
        if config.weights.suffix == ".safetensors":
            _require_timms(config.weights)
        return config.weights
    known = timm.get_pretrained_cfg(config.model)
    if known is None or not known.hf_hub_id:
        raise ConfigError.at("student.pretrained", f"timm names no pretrained weights for {config.model!r}")
    for name in WEIGHT_FILES:
        found = try_to_load_from_cache(known.hf_hub_id, name)
        if isinstance(found, str):
            return Path(found)
    raise ConfigError.at(
        "student.pretrained",
        f"the weights of {config.model!r} are not on this machine (looked for {known.hf_hub_id} in {HF_HUB_CACHE}); "
        f"where there is a network run `hf download {known.hf_hub_id}`, "
        "or set student.weights=FILE.safetensors, or student.pretrained=false",
    )


def _require_timms(weights: Path) -> None:
    """Refuses what its header tells to be damaged, or a student that was exported: it has learnt another cohort's
    labels or, of this one, those of samples that a teacher must not have seen."""
    try:
        with safe_open(weights, "pt") as opened:
            metadata = opened.metadata() or {}
    except OSError as error:
        raise ConfigError.at("student.weights", f"{weights} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ConfigError.at("student.weights", f"{weights} is no whole safetensors file: {error}") from error
    if "card" in metadata:
        problem = f"{weights} is a student that was trained here; wanted weights of timm's, which know no cohort"
        raise ConfigError.at("student.weights", problem)


def require_fit(weights: Path, config: NetworkConfig, model: Any, outline: Callable[[str], Any], channels: int) -> None:
    """Refuses weights that are not all of the model's, or were trained with another number of heads.

    Args:
        model: what is built, on the meta device, at the size that it will have.
        outline: gives the model of a name as timm has it, without any size of the user's.

    Raises:
        ConfigError: they do not fit; says how.
    """
    named, theirs = outline(config.model), _architecture(weights)
    made = outline(theirs) if theirs else None
    if made is not None:
        _require_alike(weights, config.model, model, theirs, made)
    as_wide = made is not None and made.embed_dim == model.embed_dim
    _require_heads(weights, config, model, named, made if as_wide else None)
    if weights.suffix == ".npz":  # of the original JAX releases, which timm itself loads block by block
        return
    sizes = {key: value for key in SIZES if (value := getattr(config, key)) is not None}
    options = {**sizes, "img_size": _side(model), "in_chans": channels}
    changed = weights.stat()
    file, built = (str(weights), changed.st_mtime_ns, changed.st_size), tuple(sorted(options.items()))
    try:
        problem = _misfit(*file, config.model, built, tuple(model.state_dict()))
    except OSError as error:
        raise ConfigError.at("student.weights", f"{weights} cannot be read: {error.strerror or error}") from error
    if problem:
        raise ConfigError.at("student.weights", f"{weights} does not fit {config.model!r}: {problem}; {WHOSE}")


def _side(model: Any) -> int:
    return int(model.patch_embed.grid_size[0] * model.patch_embed.patch_size[0])


def _architecture(weights: Path) -> str:
    """The model of timm's that a file is said to be of; empty where nothing says it."""
    name = metadata(weights).get("architecture", "")
    if not name and (beside := weights.with_name("config.json")).is_file():
        try:
            content = json.loads(beside.read_text())
        except (ValueError, UnicodeDecodeError):
            return ""  # of another program
        name = content.get("architecture", "") if isinstance(content, dict) else ""
    return name if isinstance(name, str) and name.partition(".")[0] in timm.list_models() else ""


def _require_alike(weights: Path, name: str, model: Any, theirs: str, made: Any) -> None:
    ours, wanted = _unseen(model), _unseen(made)
    if differ := [f"{what} is {wanted.get(what)}, not {ours[what]}" for what in ours if ours[what] != wanted.get(what)]:
        problem = f"{weights} is said to be of {theirs!r}, whose {'; '.join(differ)} as of {name!r}"
        raise ConfigError.at("student.model", f"{problem}: no shape tells them apart; set student.model={theirs}")


def _unseen(model: Any) -> dict[str, str]:
    """What of a model no weight shows, in words."""
    block = model.blocks[0] if len(getattr(model, "blocks", ())) else None
    activation = getattr(getattr(block, "mlp", None), "act", None)
    norm, attention = getattr(block, "norm1", None), getattr(block, "attn", None)
    return {
        "activation": type(activation).__name__,
        "attention": type(attention).__name__,
        "epsilon of its norms": str(getattr(norm, "eps", None)),
    }


def _require_heads(weights: Path, config: NetworkConfig, model: Any, named: Any, made: Any | None) -> None:
    wanted, own = int(model.blocks[0].attn.num_heads), int(named.blocks[0].attn.num_heads)
    header = metadata(weights).get("num_heads", "")
    says = {
        "student.weights_heads": config.weights_heads,
        f"the header of {weights}": int(header) if header.isdecimal() else None,
        f"the model that {weights} is said to be of": None if made is None else int(made.blocks[0].attn.num_heads),
    }
    known = {who: count for who, count in says.items() if count is not None}
    if len(set(known.values())) > 1:
        counts = " and ".join(f"{count} ({who})" for who, count in known.items())
        raise ConfigError.at(
            "student.weights_heads", f"the weights are said to have {counts} attention heads; leave it out"
        )
    if not known and model.embed_dim == named.embed_dim:
        known = {config.model: own}
    if not known:
        problem = (
            f"the weights are not as wide as {config.model!r}, and no shape tells with how many attention heads they "
            f"were trained; say it: student.weights_heads={wanted} if it was {wanted}, as in this student"
        )
        raise ConfigError.at("student.weights_heads", problem)
    who, count = next(iter(known.items()))
    if count != wanted:
        problem = (
            f"the student has {wanted} attention heads and the weights were trained with {count} (so says {who}): all "
            f"shapes agree and every attention map would be another; set student.num_heads={count}"
        )
        if who == config.model:
            problem += f", or student.weights_heads={wanted} if you trained these weights with {wanted}"
        raise ConfigError.at("student.num_heads", problem)


@lru_cache(maxsize=32)
def _misfit(
    weights: str, changed: int, size: int, name: str, options: tuple[tuple[str, Any], ...], wanted: tuple[str, ...]
) -> str:
    """What timm's strict loading of all but the classifier finds wrong; empty: nothing.

    Args:
        changed, size: of the file, so that another one under its name is looked at again.
        wanted: names of all that the model holds.
    """
    state: Mapping[str, Any] = {}
    try:
        state = timm.models.load_state_dict(weights)
        if spoilt := [key for key, value in tensors(state).items() if not torch.isfinite(value.float()).all()]:
            return f"{_some(spoilt)} holds values that are not finite numbers"
        overlay = {"file": weights, "num_classes": 0, "label_offset": 0}
        with torch.random.fork_rng(), torch.device("cpu"):
            timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                num_classes=0,
                global_pool="token",
                **dict(options),
            )
    except OSError:  # of the disk, not of what the file holds
        raise
    except Exception as error:  # timm, its filters and torch raise whatever the file led them to
        if machine_fault(error):
            raise
        return _reasons(str(error) or type(error).__name__, state, wanted)
    return ""


def _reasons(message: str, state: Mapping[str, Any], wanted: tuple[str, ...]) -> str:
    """What is wrong, from torch's message of a strict loading; any other message as it is, and what names differ."""
    lines = {
        kind: re.findall(r'"([^"]+)"', line)
        for kind in ("Missing", "Unexpected")
        for line in re.findall(rf"{kind} key\(s\) in state_dict: (.*)", message)
    }
    shapes = re.findall(r"size mismatch for (\S+): .*?torch.Size\((.*?)\).*?torch.Size\((.*?)\)", message)
    reason = "" if lines or shapes else message.splitlines()[0].strip().rstrip(".")
    if reason:  # of a filter of timm's, which did not come as far as comparing names
        lines = {"Missing": [key for key in wanted if key not in state], "Unexpected": [*{*state} - {*wanted}]}
    heads = re.compile(r"(head|head_dist|fc)\.")
    lacking = [key for key in lines.get("Missing", ()) if not heads.match(key)]
    odd = sorted(key for key in lines.get("Unexpected", ()) if not heads.match(key) and key not in COUNTERS)
    if {*lacking} == {"norm.weight", "norm.bias"} and {*odd} == {"fc_norm.weight", "fc_norm.bias"}:
        return (
            "it was trained to classify by the mean of its tokens (fc_norm), and a student here does by its CLS token"
        )
    problems = [f"it holds nothing for {_some(lacking)}"] if lacking else []
    problems += [f"it holds {_some(odd)}, for which the model has no place"] if odd else []
    problems += [f"{name} is {theirs} there and {ours} here" for name, theirs, ours in shapes[:NAMES_SHOWN]]
    if lacking and (nested := [key for key, value in state.items() if isinstance(value, Mapping)]):
        problems.append(f"its weights lie deeper, under {_some(nested)}: save what is there in a file of its own")
    elif lacking and (start := _prefix(lacking[0], odd)):
        problems.append(f"its names begin with {start!r}: save them without it")
    return "; ".join([*([reason] if reason else []), *problems])


def _prefix(lacking: str, odd: list[str]) -> str:
    return next((key.removesuffix(lacking) for key in odd if key.endswith(f".{lacking}")), "")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}


def metadata(weights: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing of another."""
    if weights.suffix != ".safetensors":
        return {}
    with safe_open(weights, "pt") as opened:
        return dict(opened.metadata() or {})


def changes(weights: Path, model: Any, channels: int) -> list[str]:
    """What timm does to weights that fit, a sentence each; none where they go in as they are."""
    if weights.suffix == ".npz":
        return []
    held = tensors(timm.models.load_state_dict(str(weights)))
    sentences = []
    stem = next((value for key, value in held.items() if key.endswith("patch_embed.proj.weight")), None)
    if stem is not None and stem.ndim == 4:
        if stem.shape[1] != channels:
            how = "summed over them" if channels == 1 else "repeated and scaled"
            sentences.append(f"its filters of {stem.shape[1]} channels are {how} for images of {channels}")
        patch = model.patch_embed.patch_size
        if tuple(stem.shape[2:]) != tuple(patch):
            sentences.append(
                f"its patches of {stem.shape[2]} x {stem.shape[3]} pixels are resampled to {patch[0]} x {patch[1]}"
            )
    places = next((value for key, value in held.items() if key.endswith("pos_embed") and value.ndim == 3), None)
    own = getattr(model, "pos_embed", None)
    if places is not None and own is not None and places.shape[1] != own.shape[1]:
        rows, columns = model.patch_embed.grid_size
        sentences.append(f"its table of {places.shape[1]} positions is resampled to {rows} x {columns} patches")
    if other := next((value.dtype for value in held.values() if value.dtype != torch.float32), None):
        sentences.append(f"its numbers are {str(other).removeprefix('torch.')}")
    return sentences
