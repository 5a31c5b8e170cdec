"""TrialConfig: everything that decides one training run. Frozen, strict, fingerprinted.

It knows an objective's or teacher's `kind` and `params`, not what each kind's parameters are:
`build.py` resolves kinds through the dictionaries, so that nobody edits this file to add one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from mmpkd.machine.files import overridden as overridden  # these three are looked for here
from mmpkd.machine.files import read_yaml as read_yaml
from mmpkd.near_names import near as near
from mmpkd.near_names import near_path, paths_of
from mmpkd.types import ConfigError, Mistake

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Zoom = Annotated[float, Field(ge=0.25, le=4)]
Model = TypeVar("Model", bound="Strict")

IMAGE = "image"  # a cohort's own image, beside its further ones; what a student reads
STUDENT, TASK = "student", "task"  # a module, and a term of the loss, that every training has


class Strict(BaseModel):
    """Base of every configuration: immutable, unknown keys and non-finite numbers refused.

    A field that came later is named in `LATER`: at its default it is not dumped, so that fingerprints and the addresses
    of caches, which are hashes of dumps, are what they were before there was such a field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content


class WindowConfig(Strict):
    """The values of the originals that become 0 to 255, as radiology states them: Hounsfield units in CT."""

    level: float
    width: Annotated[float, Field(ge=2)]

    @property
    def ends(self) -> tuple[float, float]:
        """The values that become 0 and 255 (DICOM PS3.3 C.11.2.1.2.1)."""
        return self.level - self.width / 2, self.level + self.width / 2 - 1


class ClaheConfig(Strict):
    """Contrast limited adaptive histogram equalisation of each image as it is stored."""

    clip_limit: Annotated[float, Field(gt=0, le=1)] = 0.01  # as scikit-image has it; more is more contrast
    tiles: Annotated[int, Field(ge=1, le=64)] = 8  # along either side


class CohortConfig(Strict):
    """Which images. `params` belong to the reader (see its class in `mmpkd/cohort/`)."""

    LATER = ("allow_outside", "window", "clahe")

    reader: str
    root: Path | None = None  # the raw data set; `synthetic` needs none
    image_size: Positive = 224  # longest side, pixels; letterboxed, never cropped
    window: WindowConfig | None = None  # None: 8 bits are kept as they are, 16 get a window from the data
    clahe: ClaheConfig | None = None
    fold: Annotated[int, Field(ge=0)] = 0  # which one validates, of those that are not sealed; of dealt ones 0 to 3
    allow_outside: bool = False  # whether files may lie outside the root, by a link, by `..` or by an absolute path
    max_bad: Fraction = 0.0  # share of unreadable samples that may be left out
    params: dict[str, Any] = {}

    @field_validator("root")
    @classmethod
    def _at_home(cls, root: Path | None) -> Path | None:
        return root and root.expanduser()


class NetworkConfig(Strict):
    """A timm ViT by name; sizes left out are the named model's own."""

    LATER = ("weights_heads",)
    model: str = "vit_small_patch16_224"
    pretrained: bool = False
    weights: Path | None = None  # a local file for `pretrained`; else the Hugging Face cache is read
    weights_heads: Positive | None = None  # attention heads that the weights were trained with, where no file tells
    patch_size: Positive | None = None
    embed_dim: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


class StudentConfig(NetworkConfig):
    """`reads` other images than the cohort's own, or more, for a reference: what one could do who had them at test.

    Such a student is scored as every other, and is not exported. Several images are stacked as channels of one,
    so they should be in register.
    """

    reads: Annotated[tuple[str, ...], Field(min_length=1)] = (IMAGE,)


class TeacherConfig(Strict):
    """`control: shuffled` gives every training sample the teacher's answer about another patient of the same
    labels, or of the nearest where there is none; of a teacher that sees the student's view, its privileged inputs."""

    kind: str
    control: Literal["shuffled"] | None = None
    params: dict[str, Any] = {}


class ObjectiveConfig(Strict):
    """weight x schedule(epoch) x term. A weight of 0 is never built, so zero equals absent."""

    kind: str | None = None  # its label by default
    teacher: str | None = None  # the only one by default
    weight: Annotated[float, Field(ge=0)] = 1.0
    schedule: Literal["constant", "warmup", "cosine"] = "constant"
    params: dict[str, Any] = {}


class StageConfig(Strict):
    """One stage of a training that has several; those before the last report nothing and have no goals."""

    name: str
    train: Annotated[tuple[str, ...], Field(min_length=1)]  # what learns: student, an objective, or a part of either
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = (TASK,)  # terms: that of the labels, others by label
    answer: str = STUDENT  # whose logits the labels judge: the student's own, or a head's, such as guidance.joint
    epochs: Positive | None = None  # the last stage has the trial's


class OptimizerConfig(Strict):
    """AdamW. `clip_norm` bounds the global gradient norm (0: no clipping)."""

    lr: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    batch_size: Positive = 32
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["equal", "balanced"] = "equal"  # balanced: of the task loss, by how rare a class is


class ScheduleConfig(Strict):
    """Linear warm-up, then cosine decay; both as shares, of all steps and of the learning rate."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    final: Fraction = 0.01


class AugmentationConfig(Strict):
    """Random shift by up to `shift` of the side, and flips; drawn per image. All below the flips is off by default."""

    LATER = ("rotation", "scale", "brightness", "contrast")

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0  # degrees, to either side
    scale: Annotated[tuple[Zoom, ...], Field(min_length=2, max_length=2)] = (1.0, 1.0)  # least and largest factor
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0  # a factor between 1 - brightness and 1 + brightness
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0  # likewise, about the image's mean

    @field_validator("scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the least factor comes first; write [{scale[1]:g}, {scale[0]:g}]")
        return scale

    @property
    def moves(self) -> bool:
        """Whether views are turned or scaled."""
        return self.rotation > 0 or self.scale != (1.0, 1.0)

    @property
    def lights(self) -> bool:
        return self.brightness > 0 or self.contrast > 0


class EvaluationConfig(Strict):
    """Where it is read that the student looks, and against what. `roi` counts where a cohort has ROIs of several
    labels: each on its own, or all of an image as one region, which is what a map that serves all labels can cover."""

    LATER = ("roi",)
    map: str = "cls_attention"
    roi: Literal["per_label", "union"] = "per_label"
    within: Literal["content", "foreground"] = "content"  # foreground: the breast on its film
    batch_size: Positive = 64


class TrialConfig(Strict):
    """One training run, complete: the same file on the same machine gives the same numbers."""

    cohort: CohortConfig
    student: StudentConfig = StudentConfig()
    teachers: dict[str, TeacherConfig] = {}
    objectives: dict[str, ObjectiveConfig] = {}
    stages: tuple[StageConfig, ...] = ()  # none: everything learns from everything, in one
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    epochs: Positive = 27
    threads: Positive = 1
    seed: Annotated[int, Field(ge=0)] = 0

    def active_objectives(self) -> dict[str, ObjectiveConfig]:
        """The objectives that are built (weight above 0), with kind and teacher filled in.

        A teacher that is not named is the only one; where there are several it stays None.
        """
        only = next(iter(self.teachers)) if len(self.teachers) == 1 else None
        return {
            label: one.model_copy(update={"kind": one.kind or label, "teacher": one.teacher or only})
            for label, one in self.objectives.items()
            if one.weight > 0
        }

    def active_teachers(self) -> list[str]:
        """Names of the teachers that an active objective listens to, each once; others are not fitted."""
        return list(dict.fromkeys(one.teacher for one in self.active_objectives().values() if one.teacher))

    def staged(self) -> tuple[StageConfig, ...]:
        """The stages, the last with its epochs; a training without any is one in which all learn from all."""
        if self.stages:
            return (*self.stages[:-1], self.stages[-1].model_copy(update={"epochs": self.epochs}))
        active = self.active_objectives()
        return (StageConfig(name="", train=(STUDENT, *active), objectives=(TASK, *active), epochs=self.epochs),)

    def fingerprint(self) -> str:
        """Content hash of everything but where the data lie, as 16 hex digits."""
        content = self.model_dump(mode="json", exclude={"cohort": {"root", "allow_outside"}})
        if not self.stages:  # as before there were any
            del content["stages"]
        if self.student.reads == (IMAGE,):
            del content["student"]["reads"]
        return fingerprint(content)


def fingerprint(content: object) -> str:
    """Short content hash of anything JSON can say, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def validate(model: type[Model], content: Any, path: str = "", known: Iterable[str] = ()) -> Model:
    """`content` as a `model`, or a ConfigError with every mistake under its dotted path.

    Args:
        known: dotted paths besides the model's and a training's that an unknown key may have been meant to be.

    Raises:
        ConfigError: unknown keys (with near names), missing keys and values out of range.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        tree = {*paths_of(model, path), *paths_of(TrialConfig), *known}
        raise ConfigError([_mistake(one, path, tree) for one in error.errors()]) from error


def _mistake(error: Mapping[str, Any], path: str, tree: Iterable[str]) -> Mistake:
    location = tuple(str(part) for part in error["loc"])
    where = ".".join([*([path] if path else []), *location])
    if error["type"] == "extra_forbidden":
        return Mistake(where, f"unknown key{near_path(where, error['input'], tree)}")
    if error["type"] == "missing":
        return Mistake(where, "missing")
    if error["type"] == "value_error":  # of a validator of ours
        message = str(error["ctx"]["error"])
        if isinstance(error["input"], Mapping):  # one value is told again, a whole section is not
            return Mistake(where, message)
    else:
        message = error["msg"][0].lower() + error["msg"][1:]
    values = re.findall("'([^']*)'", str(error.get("ctx", {}).get("expected", "")))  # of an option that has few
    meant = get_close_matches(str(error["input"]), values, n=1, cutoff=0.6)
    return Mistake(where, f"{message}, got {error['input']!r}" + (f" (did you mean {meant[0]!r}?)" if meant else ""))


def load_trial(path: Path, overrides: Iterable[str] = (), known: Iterable[str] = ()) -> TrialConfig:
    """A TrialConfig from a YAML file and overrides.

    Args:
        known: words of the command line, which an unknown key may have been meant to be.

    Raises:
        ConfigError: every mistake in it; or it is a search space.
    """
    content = read_yaml(path)
    if "arms" in content or "extends" in content:
        mend = f"wanted one configuration, such as a sweep's best.yaml; python -m sweep.run space={path} searches this"
        raise ConfigError.at(str(path), f"is a search space; {mend}")
    return validate(TrialConfig, overridden(content, overrides), known=known)


def dump_trial(config: TrialConfig) -> str:
    """The YAML that `load_trial` reads back as an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
