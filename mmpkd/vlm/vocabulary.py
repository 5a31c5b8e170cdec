"""Texts as token ids: the words of a cohort for a model that is built small, or the tokenizer of a model's folder.

A model that is built small has a vocabulary of whole words with one token for each step of the grid of boxes, because
a few thousand questions are too few to learn numbers from digits. The tags `<box>` and `</box>` are ordinary tokens in
both cases. ClinKD's code writes Qwen2-VL's special box tokens instead; here they stay text, so that one parser reads
the answers of all models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mmpkd.near_names import near
from mmpkd.types import ConfigError
from mmpkd.vlm.boxes import TAGGED
from mmpkd.vlm.config import FAMILIES, VlmConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<end>", "<unknown>", "<image>", "<video>", "<vision>", "</vision>", "<hint>", "<answer>", "<flip>")
PAD, END, UNKNOWN, IMAGE, VIDEO, VISION, VISION_END, HINT, ANSWER, FLIP = range(len(SPECIAL))
PIECE = re.compile(r"</?box>|\d+|[^\W\d_]+|\S")
CLOSING = set(".,;:?!)]}%'-/") | {"</box>"}  # follow the previous piece without a blank
OPENING = set("([{'-/") | {"<box>"}  # are followed by the next piece without a blank
CHAT_HINT = "\nThe correct answer is: "
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as of Qwen2-VL
SENTINEL = "QUESTION"
PATCH = {"qwen2_vl": 14, "qwen3_vl": 16}  # side of a patch where a config.json leaves it out


@dataclass
class Roles:
    """The ids of the tokens that have a role in every prompt. `video` is never written, but models need its id."""

    pad: int
    end: int
    image: int
    video: int
    vision: int
    vision_end: int


class Words(Roles):
    """The words of a cohort as tokens. `decode` returns what was encoded, with runs of blanks as one blank.

    Whether a blank stands between two pieces follows from the pieces; where a text differs from the rule, `<flip>`
    stands between them. A word that the vocabulary lacks becomes `<unknown>`.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        super().__init__(PAD, END, IMAGE, VIDEO, VISION, VISION_END)
        assert tuple(tokens[: len(SPECIAL)]) == SPECIAL
        self.tokens = tuple(tokens)
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    @classmethod
    def of(cls, texts: Iterable[str], box_steps: int) -> Words:
        """Returns the vocabulary of texts, with the numbers 0 to `box_steps` for boxes. The numbers of boxes in the
        texts are on another grid, hence they are left out."""
        pieces = {piece for text in texts for piece in PIECE.findall(TAGGED.sub(" ", text))}
        always = ["<box>", "</box>", "(", ")", ",", *(str(step) for step in range(box_steps + 1))]
        return cls([*SPECIAL, *always, *sorted(pieces - {*SPECIAL, *always})])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        spacing = Spacing()
        end = 0
        for match in PIECE.finditer(text):
            has_blank = match.start() > end
            if ids and has_blank != spacing.expects_blank(match[0]):
                ids.append(FLIP)
            spacing.add(match[0])
            ids.append(self.ids.get(match[0], UNKNOWN))
            end = match.end()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids; special tokens other than `<unknown>` are left out."""
        text, spacing, is_flipped = "", Spacing(), False
        for index in ids:
            if index == FLIP:
                is_flipped = True
            elif index >= len(SPECIAL) or index == UNKNOWN:
                piece = self.tokens[index]
                has_blank = bool(text) and spacing.expects_blank(piece) != is_flipped
                text += " " * has_blank + piece
                spacing.add(piece)
                is_flipped = False
        return text

    def state(self) -> dict[str, Any]:
        return {"kind": "words", "tokens": list(self.tokens)}


class Spacing:
    """Says whether a blank is expected before the next piece of a text. There is none inside a box."""

    def __init__(self) -> None:
        self.last = ""
        self.is_box = False

    def expects_blank(self, piece: str) -> bool:
        return (not self.is_box and piece not in CLOSING and self.last not in OPENING) or piece == "<box>"

    def add(self, piece: str) -> None:
        self.last = piece
        self.is_box = piece == "<box>" or (self.is_box and piece != "</box>")


@dataclass
class FolderTokens(Roles):
    """The tokenizer of a model's folder. `text` is its content in the format of the library tokenizers."""

    text: str
    size: int  # rows of the model's embedding, which may exceed the number of tokens

    @cached_property
    def backend(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.text)

    @cached_property
    def plain(self) -> Tokenizer:
        """The tokenizer that reads the name of a control token, such as `<|im_end|>`, as any other text."""
        tokenizer = type(self.backend).from_str(self.text)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a question or answer. A control token that it spells is text, or left out if it is not
        marked as special, so that no question ends its own turn and no answer ends early."""
        roles = {getattr(self, field.name) for field in fields(Roles)}
        return [index for index in self.plain.encode(text, add_special_tokens=False).ids if index not in roles]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def state(self) -> dict[str, Any]:
        return {"kind": "folder"} | {name: getattr(self, name) for name in self.__dataclass_fields__}


Tokens: TypeAlias = Words | FolderTokens  # both kinds of vocabulary encode and decode, and are described by `state`


@dataclass(frozen=True)
class Processor:
    """How an image and a question become a model's input: tokens, the layout of a prompt, and pixels.

    A prompt is `before`, the visual tokens, `between`, the question, perhaps `hint` and the true answer, and `after`.
    """

    tokens: Tokens
    before: tuple[int, ...]
    between: tuple[int, ...]
    hint: tuple[int, ...]
    after: tuple[int, ...]
    box_steps: int
    token_pixels: int  # side of the square of pixels that becomes one visual token
    mean: tuple[float, ...] = (0.5,)  # of pixels in [0, 1], for each channel or for all
    std: tuple[float, ...] = (0.5,)

    def state(self) -> dict[str, Any]:
        """Returns a description that can be written as JSON; `restored_processor` reads it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"tokens": self.tokens.state()}


def restored_processor(state: Mapping[str, Any]) -> Processor:
    """Returns the processor that `Processor.state` describes."""
    tokens = dict(state["tokens"])
    vocabulary: Tokens = Words(tokens["tokens"]) if tokens.pop("kind") == "words" else FolderTokens(**tokens)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in state.items()}
    return Processor(**{**values, "tokens": vocabulary})


def text_processor(config: VlmConfig, texts: Iterable[str]) -> Processor:
    """Returns the processor of a model.

    Args:
        texts: the questions and answers whose words a model that is built may know, those of the training items. A
            model of a folder has its own tokenizer.

    Raises:
        ConfigError: the folder of the model is not one that can be used, see `folder_facts`.
    """
    if config.model in FAMILIES:
        words = Words.of(texts, config.box_steps)
        side = 2 * config.vision.patch_size
        return Processor(words, (VISION,), (VISION_END,), (HINT,), (ANSWER,), config.box_steps, token_pixels=side)
    return folder_processor(Path(config.model), config.box_steps)


def folder_facts(folder: Path) -> dict[str, Any]:
    """Returns the content of a model's `config.json`.

    Raises:
        ConfigError: the folder is missing, does not hold a model of the families, or lacks a tokenizer.
    """
    wanted = f"wanted {' or '.join(FAMILIES)}, or the folder of such a model"
    advice = "download the model there with `hf download NAME --local-dir FOLDER`"
    if not folder.is_dir():
        problem = f"{str(folder)!r} is neither a family nor a folder{near(str(folder), FAMILIES)}"
        raise ConfigError.at("student.model", f"{problem}; {advice}")
    path = folder / "config.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError.at("student.model", f"{folder} holds no config.json; {wanted}; {advice}") from error
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be read as JSON ({type(error).__name__})"
        raise ConfigError.at("student.model", f"{problem}; {advice}") from error
    family = facts.get("model_type") if isinstance(facts, dict) else None
    if family not in FAMILIES:
        raise ConfigError.at("student.model", f"{folder} holds a model of type {family!r}; {wanted}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        problem = f"{folder} holds no tokenizer; wanted tokenizer.json, or vocab.json with merges.txt"
        raise ConfigError.at("student.model", f"{problem}; copy them from where the model comes from")
    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter or not any(folder.glob("*.safetensors")):
        content = "low-rank adapters without a model" if is_adapter else "no weights in the format safetensors"
        raise ConfigError.at("student.model", f"{folder} holds {content}; {advice}")
    return facts


def pixels_of_token(facts: Mapping[str, Any]) -> int:
    """Returns the side of the square of pixels that becomes one visual token, from the `config.json` of a folder."""
    vision = facts.get("vision_config", {})
    return int(vision.get("patch_size", PATCH[facts["model_type"]])) * int(vision.get("spatial_merge_size", 2))


def folder_processor(folder: Path, box_steps: int) -> Processor:
    """Returns the processor of a folder: its tokenizer, chat template and normalisation of pixels.

    A tokenizer without a chat template gets the plain layout: image, question, line break.
    """
    from transformers import AutoConfig, AutoTokenizer

    facts = folder_facts(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        problem = f"the tokenizer or the configuration in {folder} cannot be read ({type(error).__name__})"
        raise ConfigError.at("student.model", f"{problem}; copy them again from where the model comes from") from error
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None:
        raise ConfigError.at("student.model", f"the tokenizer in {folder} names no eos_token; add it to its files")
    tokens = FolderTokens(
        text=tokenizer.backend_tokenizer.to_str(),
        size=config.get_text_config().vocab_size,
        pad=end if pad is None else pad,
        end=end,
        **{name: getattr(config, f"{key}_token_id") for name, key in ROLES.items()},
    )
    before, between, after = _layout(tokenizer, tokens)
    channels = config.vision_config.in_channels
    pixels = {"image_mean": MEAN, "image_std": STD} if channels == 3 else {"image_mean": [0.5], "image_std": [0.5]}
    if (folder / "preprocessor_config.json").is_file():
        pixels |= json.loads((folder / "preprocessor_config.json").read_text())
    hint = tuple(tokens.encode(CHAT_HINT))
    return Processor(
        tokens,
        *(before, between, hint, after),
        box_steps=box_steps,
        token_pixels=pixels_of_token(facts),
        mean=tuple(pixels["image_mean"]),
        std=tuple(pixels["image_std"]),
    )


ROLES = {"image": "image", "video": "video", "vision": "vision_start", "vision_end": "vision_end"}


def _layout(tokenizer: Any, tokens: FolderTokens) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns the ids of a prompt before the image, between image and question, and after the question."""
    if not tokenizer.chat_template:
        return (tokens.vision,), (tokens.vision_end,), tuple(tokens.encode("\n"))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": SENTINEL}]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    head, _, after = text.partition(SENTINEL)
    ids = tokens.backend.encode(head, add_special_tokens=False).ids
    if ids.count(tokens.image) != 1 or not after:
        problem = f"has {ids.count(tokens.image)} image tokens where one image and a question were given"
        raise ConfigError.at("student.model", f"the chat template of its tokenizer {problem}; use that of Qwen-VL")
    place = ids.index(tokens.image)
    behind = tokens.backend.encode(after, add_special_tokens=False).ids
    return tuple(ids[:place]), tuple(ids[place + 1 :]), tuple(behind)
