"""Writes folders of tiny models as transformers itself does, with a tokenizer of a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.mmpkd.vlm.conftest import Example, tiny

TOKENS = ("<|pad|>", "<|end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
WORDS = ("Where", "is", "the", "mass", "What", "Is", "on", "left", "a", "yes", "correct", "answer", "The")


def tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of words and blanks, with the special tokens of Qwen-VL and without a chat template."""
    names = [*TOKENS, " ", "\n", "<unk>", *words, *"?:(),<>/box0123456789"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, pre_tokenizers.Punctuation("isolated")])
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<unk>"
    )


def write_model_folder(folder: Path, network: Any, words: tuple[str, ...] = WORDS) -> Path:
    """Writes a network of transformers with the tokenizer, whose special tokens have the first ids."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    for index, name in enumerate(names, start=2):
        setattr(network.config, name, index)
    network.resize_token_embeddings(60, mean_resizing=False)
    network.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


def write_tiny_model(folder: Path, family: str = "qwen2_vl", words: tuple[str, ...] = WORDS, **changes: Any) -> Path:
    """Writes a model of some thousand weights for images in colour. `changes` are those of its configuration."""
    return write_model_folder(folder, Example(tiny(family, **changes), channels=3).vlm.network, words)
