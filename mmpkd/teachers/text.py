"""The text teacher: a sample's report into a transformers encoder."""

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
from mmpkd.config import Positive, Strict
from mmpkd.fit import autocast, seeded
from mmpkd.teachers.masking import LabelMask
from mmpkd.teachers.sections import LEAST, check_sections, chosen_sections
from mmpkd.teachers.teacher import Size, Teacher
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
from mmpkd.types import ConfigError, Mistake, Offer, Task, TeacherError, TeacherOutput

Texts = NDArray[np.object_]

SIZES = ("hidden", "layers", "heads", "vocabulary")


class MaskParams(Strict):
    also: tuple[Annotated[str, Field(pattern=r"[^\W_]")], ...] = ()  # further words and phrases to hide, synonyms say


def _mask(value: Any) -> Any:
    """What stands under `mask_labels`: `true` is a mask of the labels' own names, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, Mapping | MaskParams):
        return value
    raise ValueError("true, false, or {also: [further words to hide]}")


class TextParams(EpochsParams):
    sections: tuple[str, ...] | None = None  # all that are not near-label by default
    near_label: tuple[str, ...] = ()  # sections that the labels were read from, each asked for by name
    # Hides the words that name tasks and labels from it (masking.py); `mask_labels: {also: [coronavirus, sars-cov-2]}`
    # hides further words and phrases too, whatever they are.
    mask_labels: Annotated[
        MaskParams | None, BeforeValidator(_mask, json_schema_input_type=MaskParams | bool | None)
    ] = None
    encoder: str | None = None  # of transformers, by name or folder; else a small BERT built from the sizes below
    frozen: bool = False  # leave `encoder` as it is and fit a linear head alone, without epochs
    hidden: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    vocabulary: Positive = 4000  # words, the commonest of the training patients' text
    max_length: Positive = 256  # tokens; the rest of a text is cut off
    lr: Annotated[float, Field(gt=0)] | None = None  # 5e-5 for `encoder`, 1e-3 for one built here

    @property
    def passes(self) -> int:
        return 1 if self.frozen else self.epochs

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoder is None and self.frozen:
            raise ValueError("frozen leaves nothing learnt in an encoder built here; name an `encoder`")
        if self.encoder is None and self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got {self.hidden} and {self.heads}")
        if self.encoder is not None and (given := [name for name in SIZES if name in self.model_fields_set]):
            raise ValueError(f"{', '.join(given)}: sizes of an encoder built here; those of `encoder` are its own")
        return self


class Network(nn.Module):
    """An encoder and, on the mean of its last layer over a text's tokens, a linear head."""

    def __init__(self, encoder: Any, num_logits: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, num_logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, K) and the pooled tokens (B, D) of each layer."""
        told = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        weight_BN1 = (attention_mask / attention_mask.sum(dim=1, keepdim=True))[..., None]
        pooled = tuple((hidden_BND * weight_BN1).sum(dim=1) for hidden_BND in told.hidden_states[1:])
        return self.head(pooled[-1]), pooled


class Text(Teacher):
    """Logits from the sections of a report, joined; fine-tunes its encoder whole unless that is `frozen`.

    Embedding: the mean of the last layer over the tokens, which the logits are read from; hidden: the same
    mean of each layer, the last being the embedding. (The mean, not [CLS]: it serves every encoder, and
    says more where none was trained to use [CLS]; Reimers and Gurevych 2019, arXiv 1908.10084, table 6.)
    A sample without text has nothing to say: NaN. `mask_labels` puts the mask token in the place of the words
    that name tasks and labels, see `LabelMask`.
    """

    Params = TextParams
    VERSION = 3
    sees_view = False

    def __init__(self, params: TextParams, facts: Facts) -> None:
        self.params = params
        self.tasks = facts.tasks
        self.sections = chosen_sections(params, facts)
        self.mask = label_mask(params, facts.tasks)

    @staticmethod
    def check(params: TextParams, facts: Facts) -> list[Mistake]:
        """What is wrong with the sections and the encoder asked for, under paths relative to `params`."""
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
        most = "up to " if len(sections) > 1 else ""  # who lacks one may have another
        where, told = ", ".join(sections), list[str]()
        if silent:
            told.append(f"says nothing of {most}{silent:.1%} of the training samples, without text in {where}")
        mask = label_mask(params, facts.tasks)
        if mask is not None and mask.left:
            names = " or ".join(map(repr, mask.left))
            words = ", ".join(json.dumps(name, ensure_ascii=False) for name in mask.left)
            why = "for such a common or short word may stand in reports of every class"
            mend = f"to hide it all the same, set mask_labels: {{also: [{words}]}}"
            told.append(f"leaves the label's name {names} in its text, {why}; {mend}")
        return told

    @staticmethod
    def offers(params: TextParams, facts: Facts) -> Offer:
        layers = params.layers if params.encoder is None else int(config_of(params.encoder).num_hidden_layers)
        return Offer(frozenset({"logits", "embedding", "hidden"}), layers)

    @staticmethod
    def sized(params: TextParams, student: Size) -> dict[str, Any]:
        """Of an encoder built here: no wider and no deeper than the student."""
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
        embeddings = (params.vocabulary + params.max_length + 4) * width  # with a type of token, and a norm
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
        """Fit to those of the samples at `rows` that have text.

        Raises:
            TeacherError: nearly none has; a task has a single class among them; the loss diverges.
        """
        texts = self._texts(store, rows)
        told = np.flatnonzero(texts != "")
        if len(told) < max(1, LEAST * len(rows)):
            where = ", ".join(self.sections)
            raise TeacherError(f"{len(told)} of {len(rows)} training samples of a fold have text in {where}")
        texts, target_NK, known_NK = texts[told], store.target_NK[rows[told]], store.known_NK[rows[told]]
        require_classes(self.tasks, target_NK, known_NK)
        params = self.params
        with seeded(params.seed, "teacher-text"):
            if params.encoder is None:
                seen = texts if self.mask is None else (self.mask.hide(text, " ") for text in texts)
                sizes = (params.vocabulary, params.hidden, params.layers, params.heads, params.max_length)
                self.tokenizer, encoder = build(seen, *sizes)
            else:
                self.tokenizer, encoder = load(params.encoder)
            self.network = Network(encoder, target_NK.shape[1]).to(device_of_fits())
        if params.frozen:
            self.network.eval().requires_grad_(False)
            embedding_ND = self._ask(texts)[1][-1].numpy()
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
        """Logits (n, K), embedding and hidden (n, D), float32, of the samples at `rows`; NaN without text."""
        texts = self._texts(store, rows)
        told = torch.from_numpy(texts != "")
        logits_NK, hidden_LND = self._ask(texts[texts != ""])
        shape = (len(rows), logits_NK.shape[1]), (len(hidden_LND), len(rows), hidden_LND.shape[2])
        logits, hidden = (torch.full(one, torch.nan) for one in shape)
        logits[told], hidden[:, told] = logits_NK, hidden_LND
        return TeacherOutput(logits, hidden[-1], dict(enumerate(hidden)))

    def _ask(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Logits (n, K) and the pooled tokens of each layer (L, n, D), on the CPU."""
        config = self.network.encoder.config
        logits_NK = torch.empty(len(texts), self.network.head.out_features)
        hidden_LND = torch.empty(config.num_hidden_layers, len(texts), config.hidden_size)
        for chosen in torch.arange(len(texts)).split(self.params.batch_size):
            with torch.inference_mode(), autocast(device_of_fits()):
                logits, pooled = self.network(**self._tokens(texts[chosen.numpy()]))
            logits_NK[chosen], hidden_LND[:, chosen] = logits.float().cpu(), torch.stack(pooled).float().cpu()
        return logits_NK, hidden_LND

    def _texts(self, store: Store, rows: NDArray[np.int64]) -> Texts:
        """The sections of each sample, joined by a blank; empty where it has none."""
        cells = store.text(self.sections).iloc[rows].fillna("").to_numpy(dtype=object)
        return np.array([" ".join(cell.strip() for cell in row if cell.strip()) for row in cells], dtype=object)

    def _tokens(self, texts: Texts) -> dict[str, Tensor]:
        read = list(texts)
        if self.mask is not None:
            read = [self.mask.hide(text, self.tokenizer.mask_token or self.tokenizer.unk_token) for text in read]
        options = {"padding": True, "truncation": True, "max_length": self.params.max_length, "return_tensors": "pt"}
        tokens = self.tokenizer(read, **options)
        return {name: tokens[name].to(device_of_fits()) for name in ("input_ids", "attention_mask")}


def label_mask(params: TextParams, tasks: Sequence[Task]) -> LabelMask | None:
    """What hides the labels' names from a teacher; None where nothing is to be hidden."""
    return None if params.mask_labels is None else LabelMask(tasks, params.mask_labels.also)
