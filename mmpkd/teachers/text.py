"""The text teacher: a transformers encoder that reads the report of a sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.fit import autocast, seeded
from mmpkd.teachers.masking import LabelMask
from mmpkd.teachers.sections import MIN_TEXT_SHARE, SectionsParams, check_sections, chosen_sections
from mmpkd.teachers.teacher import Inputs, StudentSize, Teacher
from mmpkd.teachers.text_encoders import build, config_of, files_of, folder_of, load, most_tokens, tokenizer_of
from mmpkd.teachers.training import (
    EpochsParams,
    content_hash,
    descend,
    device_of_fits,
    fit_linear,
    one_thread,
    require_classes,
)
from mmpkd.types import ConfigError, Mistake, Offer, Positive, Strict, Task, TeacherError, TeacherOutput

Texts = NDArray[np.object_]

SIZES = ("hidden", "layers", "heads", "vocabulary")


class MaskParams(Strict):
    also: tuple[Annotated[str, Field(pattern=r"[^\W_]")], ...] = ()  # further words to hide, such as synonyms


def _mask(value: Any) -> Any:
    """Reads the value of `mask_labels`: `true` masks the names of the labels, `false` masks nothing."""
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, Mapping | MaskParams):
        return value
    raise ValueError("true, false, or {also: [further words to hide]}")


class TextParams(SectionsParams, EpochsParams):
    # Hides the words that name tasks and labels (masking.py). `mask_labels: {also: [coronavirus, sars-cov-2]}` hides
    # further words and phrases.
    mask_labels: Annotated[
        MaskParams | None, BeforeValidator(_mask, json_schema_input_type=MaskParams | bool | None)
    ] = None
    encoder: str | None = None  # name or folder of a transformers encoder; None: a small BERT with the sizes below
    frozen: bool = False  # do not train `encoder`; fit only a linear head, without epochs
    hidden: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    vocabulary: Positive = 4000  # the commonest words in the text of the training patients
    max_length: Positive = 256  # tokens; a longer text is cut off
    lr: Annotated[float, Field(gt=0)] | None = None  # None: 5e-5 for `encoder`, 1e-3 for a BERT built here

    @property
    def passes(self) -> int:
        return 1 if self.frozen else self.epochs

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoder is None and self.frozen:
            raise ValueError(
                "frozen needs a pretrained encoder, and an encoder built here is untrained; name an `encoder`"
            )
        if self.encoder is None and self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got {self.hidden} and {self.heads}")
        if self.encoder is not None and (given := [name for name in SIZES if name in self.model_fields_set]):
            raise ValueError(f"{', '.join(given)}: a named `encoder` has its own sizes; leave them out")
        return self


class Network(nn.Module):
    """An encoder with a linear head on the mean of its last layer over the tokens of a text."""

    def __init__(self, encoder: Any, num_logits: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, num_logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns logits (B, K) and the pooled tokens (B, D) of each layer."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        weight_BN1 = (attention_mask / attention_mask.sum(dim=1, keepdim=True))[..., None]
        pooled = tuple((hidden_BND * weight_BN1).sum(dim=1) for hidden_BND in output.hidden_states[1:])
        return self.head(pooled[-1]), pooled


class Text(Teacher):
    """Predicts logits from the joined sections of a report. All weights of the encoder are fine-tuned unless it is
    `frozen`.

    Embedding: the mean of the last layer over the tokens, from which the logits are computed. Hidden: the same mean for
    each layer; the last one is the embedding. (The mean is used instead of the [CLS] token, because the mean works with
    every encoder and is more informative if an encoder was not trained to use [CLS]; Reimers and Gurevych 2019, arXiv
    1908.10084, table 6.) The outputs of a sample without text are NaN. `mask_labels` replaces the words that name tasks
    and labels by the mask token, see `LabelMask`.
    """

    Params = TextParams
    VERSION = 3
    LEAKAGE_REMEDY = "Leave that section out, or hide the labels' names (mask_labels)"

    def __init__(self, params: TextParams, facts: Facts) -> None:
        self.params = params
        self.tasks = facts.tasks
        self.sections = chosen_sections(params, facts)
        self.mask = label_mask(params, facts.tasks)

    @staticmethod
    def check(params: TextParams, facts: Facts) -> list[Mistake]:
        """Returns what is wrong with the requested sections and encoder, under paths relative to `params`."""
        mistakes = check_sections(params, facts)
        if params.encoder is not None:
            try:
                longest = most_tokens(config_of(params.encoder))
                tokenizer_of(params.encoder)
            except ConfigError as error:
                return [*mistakes, *error.mistakes]
            if params.max_length > longest:
                mistakes.append(
                    Mistake("max_length", f"the encoder takes {longest} tokens at most, got {params.max_length}")
                )
        return mistakes

    @staticmethod
    def caveats(params: TextParams, facts: Facts) -> list[str]:
        sections = chosen_sections(params, facts)
        silent = 1 - max(facts.sections[name].share for name in sections)
        at_most = "up to " if len(sections) > 1 else ""  # a sample without one section may have another
        where, lines = ", ".join(sections), list[str]()
        if silent:
            lines.append(
                f"has no output for {at_most}{silent:.1%} of the training samples, because they have no text in {where}"
            )
        mask = label_mask(params, facts.tasks)
        if mask is not None and mask.left:
            names = " or ".join(map(repr, mask.left))
            words = ", ".join(json.dumps(name, ensure_ascii=False) for name in mask.left)
            why = "because such a common or short word may occur in reports of every class"
            remedy = f"to hide it all the same, set mask_labels: {{also: [{words}]}}"
            lines.append(f"leaves the label's name {names} in its text, {why}; {remedy}")
        return lines

    @staticmethod
    def inputs(params: TextParams, facts: Facts) -> Inputs:
        hidden_words = None if params.mask_labels is None else params.mask_labels.also
        return Inputs(sections=tuple(chosen_sections(params, facts)), hidden_words=hidden_words)

    @staticmethod
    def offers(params: TextParams, facts: Facts) -> Offer:
        layers = params.layers if params.encoder is None else int(config_of(params.encoder).num_hidden_layers)
        return Offer(frozenset({"logits", "embedding", "hidden"}), layers)

    @staticmethod
    def sizes(params: TextParams, student: StudentSize) -> dict[str, Any]:
        """Returns sizes for an encoder that is built here. None of them is larger than the student's."""
        given = params.model_fields_set
        if params.encoder is not None:
            return {}
        filled = {"hidden": min(params.hidden, student.dim), "layers": min(params.layers, student.depth)}
        filled["heads"] = params.heads if filled["hidden"] % params.heads == 0 else student.heads
        if "hidden" in given:
            filled["heads"] = params.heads
        defaults = params.model_dump()
        return {name: size for name, size in filled.items() if name not in given and size != defaults[name]}

    @staticmethod
    def outline(params: TextParams, facts: Facts) -> str:
        if params.encoder is not None:
            config, trained = config_of(params.encoder), "frozen" if params.frozen else "trained on"
            return f"encoder {params.encoder}, {trained}, {config.num_hidden_layers} blocks x {config.hidden_size}"
        width = params.hidden
        embeddings = (params.vocabulary + params.max_length + 4) * width  # with token types and a layer norm
        count = embeddings + params.layers * (12 * width**2 + 13 * width) + facts.tasks[-1].columns.stop * (width + 1)
        return (
            f"BERT from scratch, {params.layers} blocks x {width}, up to {params.vocabulary} words, "
            f"at most {count / 1e6:.3g} M parameters"
        )

    @staticmethod
    def sources(params: TextParams) -> dict[str, str]:
        return {} if params.encoder is None else {"encoder": content_hash(files_of(folder_of(params.encoder)))}

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fits to those of the samples at `rows` that have text.

        Raises:
            TeacherError: too few samples have text, a task has a single class among these samples, or the loss
                diverges.
        """
        texts = self._texts(store, rows)
        filled = np.flatnonzero(texts != "")
        if len(filled) < max(1, MIN_TEXT_SHARE * len(rows)):
            where = ", ".join(self.sections)
            raise TeacherError(
                f"only {len(filled)} of {len(rows)} training samples of a fold have text in {where}: name other "
                "sections, or leave this teacher out"
            )
        texts, target_NK, known_NK = texts[filled], store.target_NK[rows[filled]], store.known_NK[rows[filled]]
        require_classes(self.tasks, target_NK, known_NK)
        params = self.params
        with seeded(params.seed, "teacher-text"):
            if params.encoder is None:
                shown_texts = texts if self.mask is None else (self.mask.hide(text, " ") for text in texts)
                sizes = (params.vocabulary, params.hidden, params.layers, params.heads, params.max_length)
                self.tokenizer, encoder = build(shown_texts, *sizes)
            else:
                self.tokenizer, encoder = load(params.encoder)
            self.network = Network(encoder, target_NK.shape[1]).to(device_of_fits())
        if params.frozen:
            self.network.eval().requires_grad_(False)
            embedding_ND = self._predict(texts)[1][-1].numpy()
            mean_D, scale_D = embedding_ND.mean(axis=0), embedding_ND.std(axis=0) + 1e-6
            head = fit_linear((embedding_ND - mean_D) / scale_D, target_NK, known_NK, self.tasks, l2=1.0)
            head.requires_grad_(False)
            head.weight.div_(torch.from_numpy(scale_D))
            head.bias.sub_(head.weight @ torch.from_numpy(mean_D))
            self.network.head = head.to(device_of_fits())
            return
        lr = params.lr or (1e-3 if params.encoder is None else 5e-5)
        descend(
            self.network,
            lambda chosen: self.network(**self._tokens(texts[chosen.numpy()]))[0],
            target_NK,
            known_NK,
            self.tasks,
            params,
            lr,
        )

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Returns logits (n, K), embedding and hidden (n, D), float32, of the samples at `rows`; NaN without text."""
        texts = self._texts(store, rows)
        filled = torch.from_numpy(texts != "")
        logits_NK, hidden_LND = self._predict(texts[texts != ""])
        logits = torch.full((len(rows), logits_NK.shape[1]), torch.nan)
        hidden = torch.full((len(hidden_LND), len(rows), hidden_LND.shape[2]), torch.nan)
        logits[filled], hidden[:, filled] = logits_NK, hidden_LND
        return TeacherOutput(logits, hidden[-1], dict(enumerate(hidden)))

    def _predict(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Returns logits (n, K) and the pooled tokens of each layer (L, n, D), on the CPU."""
        config = self.network.encoder.config
        logits_NK = torch.empty(len(texts), self.network.head.out_features)
        hidden_LND = torch.empty(config.num_hidden_layers, len(texts), config.hidden_size)
        for chosen in torch.arange(len(texts)).split(self.params.batch_size):
            with torch.inference_mode(), autocast(device_of_fits()):
                logits, pooled = self.network(**self._tokens(texts[chosen.numpy()]))
            logits_NK[chosen], hidden_LND[:, chosen] = logits.float().cpu(), torch.stack(pooled).float().cpu()
        return logits_NK, hidden_LND

    def _texts(self, store: Store, rows: NDArray[np.int64]) -> Texts:
        """Returns the sections of each sample, joined by a space; empty for a sample without text."""
        cells = store.text(self.sections).iloc[rows].fillna("").to_numpy(dtype=object)
        return np.array([" ".join(cell.strip() for cell in row if cell.strip()) for row in cells], dtype=object)

    def _tokens(self, texts: Texts) -> dict[str, Tensor]:
        shown_texts = list(texts)
        if self.mask is not None:
            token = self.tokenizer.mask_token or self.tokenizer.unk_token
            shown_texts = [self.mask.hide(text, token) for text in shown_texts]
        options = {"padding": True, "truncation": True, "max_length": self.params.max_length, "return_tensors": "pt"}
        tokens = self.tokenizer(shown_texts, **options)
        return {name: tokens[name].to(device_of_fits()) for name in ("input_ids", "attention_mask")}


def label_mask(params: TextParams, tasks: Sequence[Task]) -> LabelMask | None:
    """Returns the mask that hides the names of the labels from a teacher; None if nothing is hidden."""
    return None if params.mask_labels is None else LabelMask(tasks, params.mask_labels.also)
