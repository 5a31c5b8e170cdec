"""Text encoders with their tokenizers: loaded from disk, never from the network, or built with given sizes.

`transformers` is imported inside functions, because its import takes seconds and few processes of a sweep read text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from mmpkd.types import ConfigError, TeacherError

CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first pattern with a match is read
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def folder_of(encoder: str) -> Path:
    """Returns the folder of an encoder: `encoder` if it is a folder, else its snapshot in the Hugging Face cache.

    Raises:
        ConfigError: the encoder, its weights or its vocabulary are not on this machine. The path in the message is
            `encoder`.
    """
    folder = Path(encoder).expanduser()
    remedy = "give the folder of a saved encoder, or leave it out for a small one built here"
    if not folder.is_dir():
        try:
            cached = try_to_load_from_cache(encoder, CONFIG)
        except HFValidationError:
            raise ConfigError.at("encoder", f"no folder {encoder!r}, nor the name of a model; {remedy}") from None
        remedy = f"on a machine with a network run `hf download {encoder}`, or {remedy}"
        if not isinstance(cached, str):
            raise ConfigError.at("encoder", f"{encoder!r} is not on this machine (looked in {HF_HUB_CACHE}); {remedy}")
        folder = Path(cached).parent
    parts = (("weights", WEIGHTS), ("vocabulary", VOCABULARIES), (CONFIG, (CONFIG,)))
    if missing := [part for part, names in parts if not any(any(folder.glob(name)) for name in names)]:
        raise ConfigError.at("encoder", f"{encoder!r} lacks its {' and '.join(missing)} in {folder}; {remedy}")
    if (damaged := _damaged_file(folder)) is not None:
        raise ConfigError.at("encoder", f"{damaged} is missing, empty or cut short; {remedy}")
    return folder


def _damaged_file(folder: Path) -> Path | None:
    """Returns a file of an encoder that is missing, empty or shorter than its header says; None if all are sound."""
    files = set(files_of(folder))
    for index in folder.glob("*.index.json"):  # index of weights that are stored in parts
        complete = folder / index.name.removesuffix(".index.json")
        if complete not in files and any(path.suffix == complete.suffix for path in files):
            try:
                files |= {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
            except (ValueError, LookupError, AttributeError):
                return index
    for path in sorted(files):
        if not path.is_file() or not path.stat().st_size:
            return path
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError:
                return path
    return None


def files_of(folder: Path) -> list[Path]:
    """Returns the files that determine the outputs of an encoder."""
    weights = next(paths for name in WEIGHTS if (paths := list(folder.glob(name))))
    others = (
        CONFIG,
        *VOCABULARIES,
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    )
    return sorted([*weights, *(path for name in others for path in folder.glob(name))])


def config_of(encoder: str) -> Any:
    """Returns the `transformers` configuration of an encoder on disk.

    Raises:
        ConfigError: the encoder is not on this machine (see `folder_of`), or does not encode text as vectors. The path
            in the message is `encoder`.
    """
    from transformers import AutoConfig

    folder = folder_of(encoder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError.at("encoder", f"transformers cannot read {folder / CONFIG}: {reason}") from None
    if config.is_encoder_decoder or not hasattr(config, "num_hidden_layers"):
        raise ConfigError.at("encoder", f"{encoder!r} is a {config.model_type}, not an encoder of text such as bert")
    return config


def most_tokens(config: Any) -> int:
    """Returns the length of the longest text that an encoder accepts, special tokens included."""
    positions = getattr(config, "max_position_embeddings", None) or 1_000_000
    return positions - (
        config.pad_token_id + 1 if "roberta" in config.model_type else 0
    )  # RoBERTa counts positions from there


def tokenizer_of(encoder: str) -> Any:
    """Returns the `transformers` tokenizer of an encoder on disk.

    Raises:
        ConfigError: the encoder is not on this machine (see `folder_of`), or its tokenizer cannot be read or cannot pad
            texts to one length. The path in the message is `encoder`.
    """
    from transformers import AutoTokenizer

    folder = folder_of(encoder)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError.at("encoder", f"transformers cannot read the tokenizer in {folder}: {reason}") from None
    if tokenizer.pad_token is None:
        problem = (
            f"the tokenizer in {folder} has no padding token, so its texts cannot be batched; take another encoder"
        )
        raise ConfigError.at("encoder", problem)
    return tokenizer


def load(encoder: str) -> tuple[Any, nn.Module]:
    """Returns the tokenizer and the encoder from disk, in float32.

    Raises:
        ConfigError: the encoder or its tokenizer cannot be used; see `folder_of` and `tokenizer_of`.
        TeacherError: the files of the encoder do not match its configuration.
    """
    from transformers import AutoModel

    folder, tokenizer = folder_of(encoder), tokenizer_of(encoder)
    with _quiet():
        try:
            model, loading_info = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # transformers raises errors of many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TeacherError(f"transformers cannot load the encoder in {folder}: {reason}") from None
    if missing := sorted(name for name in loading_info["missing_keys"] if "pooler" not in name):  # the pooler is unused
        raise TeacherError(f"{folder} holds no weights for {missing[0]} and {len(missing) - 1} others of its encoder")
    return tokenizer, model


def build(
    texts: Iterable[str], vocabulary: int, hidden: int, layers: int, heads: int, max_length: int
) -> tuple[Any, nn.Module]:
    """Returns a tokenizer of the words that occur at least twice, and an untrained BERT.

    The weights of the BERT are drawn by torch's global generator.

    The tokens of the tokenizer are complete words in lower case, because the word pieces that the library learns differ
    between runs (huggingface/tokenizers, issue 1794).
    """
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    ids = {name: index for index, name in enumerate(SPECIAL.values())}
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=list(ids), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(SPECIAL[name], ids[SPECIAL[name]]) for name in ("cls", "sep")]
    )
    special = {f"{name}_token": token for name, token in SPECIAL.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_length,
    )
    return fast, BertModel(config, add_pooling_layer=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager that suppresses what transformers prints while it loads an encoder: progress bars and tables.

    `load` itself checks what the tables report.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
