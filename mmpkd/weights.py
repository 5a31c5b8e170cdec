"""Pretrained weights for a timm ViT: where they are, whether they fit the model, and how timm adapts them.

timm loads tensors with the right name and shape and silently ignores others, so all weights are first checked against
the model with timm's own strict loading. Shapes do not reveal the number of attention heads: only the model that timm
names, a header with `num_heads`, or the user (`weights_heads`) can state it. A header, or a `config.json` beside the
file as on the Hugging Face hub, may name the model (`architecture`). Then other properties that shapes do not reveal,
such as the activation, are compared as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpkd.config import NetworkConfig
from mmpkd.machine.errors import machine_fault
from mmpkd.types import ConfigError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SIZES = ("patch_size", "embed_dim", "depth", "num_heads")  # fields of a NetworkConfig
COUNTERS = ("n_averaged",)  # counters of torch's weight averaging, which are not weights
NAMES_SHOWN = 4  # number of names in a message
FIT_ADVICE = "name the model of these weights (student.model) with its own sizes, or set student.pretrained=false"


def _timm() -> Any:
    import timm  # takes three seconds, and few processes that know weights load any

    return timm


def weights_of(config: NetworkConfig) -> Path | None:
    """Returns the file of the pretrained weights; None if the student starts from scratch.

    The file is `student.weights`, or is in the Hugging Face cache. Nothing is downloaded.

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
            _require_foreign(config.weights)
        return config.weights
    known = _timm().get_pretrained_cfg(config.model)
    if known is None or not known.hf_hub_id:
        raise ConfigError.at("student.pretrained", f"timm names no pretrained weights for {config.model!r}")
    for name in WEIGHT_FILES:
        path = try_to_load_from_cache(known.hf_hub_id, name)
        if isinstance(path, str):
            return Path(path)
    raise ConfigError.at(
        "student.pretrained",
        f"the weights of {config.model!r} are not on this machine (looked for {known.hf_hub_id} in {HF_HUB_CACHE}); "
        f"on a machine with a network, run `hf download {known.hf_hub_id}`, "
        "or set student.weights=FILE.safetensors, or student.pretrained=false",
    )


def _require_foreign(weights: Path) -> None:
    """Raises ConfigError if the file of weights is damaged, or if it is a student that this package exported. Such a
    student was trained on labels: on those of another cohort or, in this cohort, on those of samples that a teacher
    must not see."""
    try:
        with safe_open(weights, "pt") as opened:
            metadata = opened.metadata() or {}
    except OSError as error:
        raise ConfigError.at("student.weights", f"{weights} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ConfigError.at("student.weights", f"{weights} is not a complete safetensors file: {error}") from error
    if "card" in metadata:
        problem = f"{weights} is a student that was trained here; wanted weights not trained on a cohort"
        raise ConfigError.at("student.weights", problem)


def require_fit(weights: Path, config: NetworkConfig, model: Any, outline: Callable[[str], Any], channels: int) -> None:
    """Checks that weights cover the model completely and were trained with the same number of heads.

    Args:
        model: the model to build, on the meta device, at its final size.
        outline: function that returns the model of a given name as timm defines it, without the user's sizes.

    Raises:
        ConfigError: the weights do not fit; the message says why.
    """
    named, architecture = outline(config.model), _architecture(weights)
    stated = outline(architecture) if architecture else None  # the model to which the weights are stated to belong
    if stated is not None:
        _require_alike(weights, config.model, model, architecture, stated)
    is_as_wide = stated is not None and stated.embed_dim == model.embed_dim
    _require_heads(weights, config, model, named, stated if is_as_wide else None)
    if weights.suffix == ".npz":  # an original JAX release, which timm itself loads block by block
        return
    sizes = {key: value for key in SIZES if (value := getattr(config, key)) is not None}
    options = {**sizes, "img_size": _side(model), "in_chans": channels}
    status = weights.stat()
    file, built = (str(weights), status.st_mtime_ns, status.st_size), tuple(sorted(options.items()))
    try:
        problem = _misfit(*file, config.model, built, tuple(model.state_dict()))
    except OSError as error:
        raise ConfigError.at("student.weights", f"{weights} cannot be read: {error.strerror or error}") from error
    if problem:
        raise ConfigError.at("student.weights", f"{weights} does not fit {config.model!r}: {problem}; {FIT_ADVICE}")


def _side(model: Any) -> int:
    return int(model.patch_embed.grid_size[0] * model.patch_embed.patch_size[0])


def _architecture(weights: Path) -> str:
    """Returns the name of the timm model that a file states for its weights; empty if the file states none."""
    name = metadata(weights).get("architecture", "")
    if not name and (beside := weights.with_name("config.json")).is_file():
        try:
            content = json.loads(beside.read_text())
        except (ValueError, UnicodeDecodeError):
            return ""  # a file of another program
        name = content.get("architecture", "") if isinstance(content, dict) else ""
    return name if isinstance(name, str) and name.partition(".")[0] in _timm().list_models() else ""


def _require_alike(weights: Path, name: str, model: Any, architecture: str, stated: Any) -> None:
    """Raises ConfigError if the stated model of the weights differs from the model in a property that the shapes of the
    weights do not reveal."""
    own, wanted = _hidden_properties(model), _hidden_properties(stated)
    differ = [f"{key} is {wanted.get(key)}, not {own[key]}" for key in own if own[key] != wanted.get(key)]
    if differ:
        problem = f"{weights} states that it is of {architecture!r}, whose {'; '.join(differ)} as in {name!r}"
        advice = f"shapes do not reveal the difference; set student.model={architecture}"
        raise ConfigError.at("student.model", f"{problem}: {advice}")


def _hidden_properties(model: Any) -> dict[str, str]:
    """Returns properties of a model that the shapes of its weights do not reveal, by name."""
    block = model.blocks[0] if len(getattr(model, "blocks", ())) else None
    activation = getattr(getattr(block, "mlp", None), "act", None)
    norm, attention = getattr(block, "norm1", None), getattr(block, "attn", None)
    return {
        "activation": type(activation).__name__,
        "attention": type(attention).__name__,
        "epsilon of its norms": str(getattr(norm, "eps", None)),
    }


def _require_heads(weights: Path, config: NetworkConfig, model: Any, named: Any, stated: Any | None) -> None:
    """Raises ConfigError unless the weights are known to have been trained with the student's number of heads."""
    wanted, own = int(model.blocks[0].attn.num_heads), int(named.blocks[0].attn.num_heads)
    header = metadata(weights).get("num_heads", "")
    sources = {
        "student.weights_heads": config.weights_heads,
        f"the header of {weights}": int(header) if header.isdecimal() else None,
        f"the stated model of {weights}": None if stated is None else int(stated.blocks[0].attn.num_heads),
    }
    known = {source: count for source, count in sources.items() if count is not None}
    if len(set(known.values())) > 1:
        counts = " and ".join(f"{count} ({source})" for source, count in known.items())
        problem = f"the weights are stated to have {counts} attention heads; leave it out"
        raise ConfigError.at("student.weights_heads", problem)
    if not known and model.embed_dim == named.embed_dim:
        known = {config.model: own}
    if not known:
        problem = (
            f"the weights are not as wide as {config.model!r}, and no shape reveals the number of attention heads in "
            f"their training; set student.weights_heads={wanted} if it was {wanted}, as in this student"
        )
        raise ConfigError.at("student.weights_heads", problem)
    source, count = next(iter(known.items()))
    if count != wanted:
        problem = (
            f"the student has {wanted} attention heads, but the weights were trained with {count} (source: {source}): "
            f"all shapes agree, but every attention map would differ; set student.num_heads={count}"
        )
        if source == config.model:
            problem += f", or student.weights_heads={wanted} if you trained these weights with {wanted}"
        raise ConfigError.at("student.num_heads", problem)


@lru_cache(maxsize=32)
def _misfit(
    weights: str, changed: int, size: int, name: str, options: tuple[tuple[str, Any], ...], wanted: tuple[str, ...]
) -> str:
    """Returns why timm cannot load these weights strictly, apart from the classifier; empty if it can.

    Args:
        changed, size: the file's time of change and its size. They are part of the cache key, so that a file that has
            changed is checked again.
        wanted: the names of all tensors of the model.
    """
    state: Mapping[str, Any] = {}
    try:
        state = _timm().models.load_state_dict(weights)
        if bad := [key for key, value in tensors(state).items() if not torch.isfinite(value.float()).all()]:
            return f"{_some(bad)} holds values that are not finite numbers"
        overlay = {"file": weights, "num_classes": 0, "label_offset": 0}
        with torch.random.fork_rng(), torch.device("cpu"):
            without_head = {"num_classes": 0, "global_pool": "token", **dict(options)}
            _timm().create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **without_head)
    except OSError:  # an error of the disk, not of the content
        raise
    except Exception as error:  # timm, its filters and torch raise errors of many types
        if machine_fault(error):
            raise
        return _reasons(str(error) or type(error).__name__, state, wanted)
    return ""


def _reasons(message: str, state: Mapping[str, Any], wanted: tuple[str, ...]) -> str:
    """Returns why weights cannot be loaded, from the error message of the attempt: the problems that torch lists in it.
    If the message lists none, returns its first line and the names of the tensors that differ."""
    lines = {
        kind: re.findall(r'"([^"]+)"', line)
        for kind in ("Missing", "Unexpected")
        for line in re.findall(rf"{kind} key\(s\) in state_dict: (.*)", message)
    }
    shapes = re.findall(r"size mismatch for (\S+): .*?torch.Size\((.*?)\).*?torch.Size\((.*?)\)", message)
    reason = "" if lines or shapes else message.splitlines()[0].strip().rstrip(".")
    if reason:  # a filter of timm failed before names were compared
        lines = {"Missing": [key for key in wanted if key not in state], "Unexpected": [*{*state} - {*wanted}]}
    heads = re.compile(r"(head|head_dist|fc)\.")
    missing = [key for key in lines.get("Missing", ()) if not heads.match(key)]
    extra = sorted(key for key in lines.get("Unexpected", ()) if not heads.match(key) and key not in COUNTERS)
    if {*missing} == {"norm.weight", "norm.bias"} and {*extra} == {"fc_norm.weight", "fc_norm.bias"}:
        return "it was trained to classify by the mean of its tokens (fc_norm), but a student uses its CLS token"
    problems = [f"it holds nothing for {_some(missing)}"] if missing else []
    problems += [f"it holds {_some(extra)}, which the model does not have"] if extra else []
    problems += [f"{name} is {given} in the file and {own} in the model" for name, given, own in shapes[:NAMES_SHOWN]]
    if missing and (nested := [key for key, value in state.items() if isinstance(value, Mapping)]):
        problems.append(f"its weights are nested under {_some(nested)}: save these in a file of their own")
    elif missing and (start := _prefix(missing[0], extra)):
        problems.append(f"its names begin with {start!r}: save them without it")
    return "; ".join([*([reason] if reason else []), *problems])


def _prefix(missing: str, extra: list[str]) -> str:
    """Returns what stands before the missing name in an extra name that ends in it, such as `model.`; else nothing."""
    return next((key.removesuffix(missing) for key in extra if key.endswith(f".{missing}")), "")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the floating-point tensors of a state."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}


def metadata(weights: Path) -> dict[str, str]:
    """Returns the metadata in the header of a safetensors file; an empty dictionary for any other file."""
    if weights.suffix != ".safetensors":
        return {}
    with safe_open(weights, "pt") as opened:
        return dict(opened.metadata() or {})


def changes(weights: Path, model: Any, channels: int) -> list[str]:
    """Returns one sentence for each change that timm makes to fitting weights; empty if they are loaded unchanged."""
    if weights.suffix == ".npz":
        return []
    state = tensors(_timm().models.load_state_dict(str(weights)))
    sentences = []
    stem = next((value for key, value in state.items() if key.endswith("patch_embed.proj.weight")), None)
    if stem is not None and stem.ndim == 4:
        if stem.shape[1] != channels:
            how = "summed over them" if channels == 1 else "repeated and scaled"
            sentences.append(f"its filters of {stem.shape[1]} channels are {how} for images of {channels}")
        patch = model.patch_embed.patch_size
        if tuple(stem.shape[2:]) != tuple(patch):
            sentences.append(
                f"its patches of {stem.shape[2]} x {stem.shape[3]} pixels are resampled to {patch[0]} x {patch[1]}"
            )
    positions = next((value for key, value in state.items() if key.endswith("pos_embed") and value.ndim == 3), None)
    own = getattr(model, "pos_embed", None)
    if positions is not None and own is not None and positions.shape[1] != own.shape[1]:
        rows, columns = model.patch_embed.grid_size
        sentences.append(f"its table of {positions.shape[1]} positions is resampled to {rows} x {columns} patches")
    if other := next((value.dtype for value in state.values() if value.dtype != torch.float32), None):
        sentences.append(f"its numbers are {str(other).removeprefix('torch.')}")
    return sentences
