"""TrialConfig: everything that determines one training run. Frozen, strict, fingerprinted.

It holds the `kind` and `params` of an objective or teacher, but does not know the parameters of each kind:
`build.py` resolves kinds through the dictionaries, so that a new kind needs no change in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator

from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.near_names import mistake_of, paths_of
from mmpkd.training.pretrain_config import PretrainConfig
from mmpkd.types import ConfigError, Fraction, Positive, Strict
from mmpkd.vlm.config import DistillationConfig, VlmConfig

Zoom = Annotated[float, Field(ge=0.25, le=4)]
Model = TypeVar("Model", bound="Strict")

IMAGE = "image"  # the cohort's main image, which a student reads by default; other images are views
STUDENT, TASK = "student", "task"  # the module and the loss term that every training has


class WindowConfig(Strict):
    """The range of original values that is mapped to 0..255, as level and width (Hounsfield units in CT)."""

    level: float
    width: Annotated[float, Field(ge=2)]

    @property
    def ends(self) -> tuple[float, float]:
        """The two original values that are mapped to 0 and 255 (DICOM PS3.3 C.11.2.1.2.1)."""
        return self.level - self.width / 2, self.level + self.width / 2 - 1


class ClaheConfig(Strict):
    """Contrast-limited adaptive histogram equalisation, applied to each image when it is stored."""

    clip_limit: Annotated[float, Field(gt=0, le=1)] = 0.01  # scikit-image's default; a larger limit gives more contrast
    tiles: Annotated[int, Field(ge=1, le=64)] = 8  # number of tiles along each side


class CohortConfig(Strict):
    """The cohort that is read. `params` belong to the reader (see its class in `mmpkd/cohort/readers/`)."""

    LATER = ("allow_outside", "window", "clahe", "leave_out", "own_numbering", "parts", "sealed")

    reader: str
    root: Path | None = None  # folder of the raw data set; the reader `synthetic` needs none
    image_size: Positive = 224  # longest side, pixels; letterboxed, never cropped
    window: WindowConfig | None = None  # None: 8-bit pixels are kept; 16-bit pixels get a window from the data
    clahe: ClaheConfig | None = None
    fold: Annotated[int, Field(ge=0)] = 0  # index of the validation fold: 0 to 3 if the folds are our own
    parts: Annotated[int, Field(ge=3)] | None = None  # number of equal parts; None: those of the data set
    sealed: Annotated[int, Field(ge=0)] | None = None  # index of the part that is sealed as test; None: the last
    allow_outside: bool = False  # whether files may lie outside the root: through a link, `..` or an absolute path
    max_bad: Fraction = 0.0  # share of unreadable samples that may be left out
    leave_out: tuple[int | str, ...] = ()  # rows, as messages name them, whose samples do not belong to the cohort
    own_numbering: bool = False  # a patient with a name that the students' cohort has as well is another person
    params: Mapping[str, Any] = {}

    @field_validator("root")
    @classmethod
    def _at_home(cls, root: Path | None) -> Path | None:
        return root and root.expanduser()


class NetworkConfig(Strict):
    """A timm ViT by name. A size that is left out is taken from the named model."""

    LATER = ("weights_heads",)
    model: str = "vit_small_patch16_224"
    pretrained: bool = False
    weights: Path | None = None  # a local file for `pretrained`; by default the Hugging Face cache is read
    weights_heads: Positive | None = None  # number of attention heads of the pretrained weights, if no file states it
    patch_size: Positive | None = None
    embed_dim: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


class StudentConfig(NetworkConfig):
    """A student ViT. One with other images in `reads` than the cohort's main image is a reference for the scores that
    are possible with these images at test time: it is scored, but not exported. Several images are stacked as channels,
    so they should be registered to each other."""

    reads: Annotated[tuple[str, ...], Field(min_length=1)] = (IMAGE,)


def _kind_of_student(content: Any) -> str:
    is_vlm = isinstance(content, VlmConfig) or (isinstance(content, Mapping) and "kind" in content)
    return "vlm" if is_vlm else "vit"


AnyStudent = Annotated[
    Annotated[StudentConfig, Tag("vit")] | Annotated[VlmConfig, Tag("vlm")], Discriminator(_kind_of_student)
]


class TeacherConfig(Strict):
    """A teacher. `control: shuffled` gives every training sample the teacher's output for another patient with the same
    labels, or the nearest ones. For a teacher that sees the student's view, it exchanges the privileged inputs."""

    kind: str
    control: Literal["shuffled"] | None = None
    params: Mapping[str, Any] = {}


class ObjectiveConfig(Strict):
    """An objective contributes weight x schedule(epoch) x term. With weight 0 it is not built: zero equals absent."""

    kind: str | None = None  # None: the label of this objective is its kind
    teacher: str | None = None  # None: the only teacher
    weight: Annotated[float, Field(ge=0)] = 1.0
    schedule: Literal["constant", "warmup", "cosine"] = "constant"
    params: Mapping[str, Any] = {}


class StageConfig(Strict):
    """One stage of a training that has several stages. Only the last stage reports its epochs and has goals."""

    name: str
    train: Annotated[tuple[str, ...], Field(min_length=1)]  # modules that learn: student, objectives, or parts of them
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = (TASK,)  # loss terms: `task` and objectives by label
    answer: str = STUDENT  # which logits are scored: the student's own, or those of a head such as guidance.joint
    epochs: Positive | None = None  # None in the last stage, which has the epochs of the trial


class OptimizerConfig(Strict):
    """Options of AdamW. `clip_norm` bounds the global gradient norm (0: no clipping)."""

    lr: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    batch_size: Positive = 32
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["equal", "balanced"] = "equal"  # balanced: the task loss weighs rare classes more


class ScheduleConfig(Strict):
    """Linear warm-up, then cosine decay. `warmup` is a share of all steps, `final` a share of the learning rate."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    final: Fraction = 0.01


class AugmentationConfig(Strict):
    """Random shifts by up to `shift` of the side, and flips, drawn per image. The rest is off by default."""

    LATER = ("rotation", "scale", "brightness", "contrast")

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0  # largest angle in degrees, in both directions
    scale: Annotated[tuple[Zoom, ...], Field(min_length=2, max_length=2)] = (1.0, 1.0)  # smallest and largest factor
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the factor lies between 1 - brightness and 1 + brightness
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0  # likewise, around the mean of the image

    @field_validator("scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the smaller factor must come first; write [{scale[1]:g}, {scale[0]:g}]")
        return scale

    @property
    def moves(self) -> bool:
        """Whether views are rotated or scaled."""
        return self.rotation > 0 or self.scale != (1.0, 1.0)

    @property
    def lights(self) -> bool:
        """Whether views change in brightness or contrast."""
        return self.brightness > 0 or self.contrast > 0


class EvaluationConfig(Strict):
    """How localisation is scored. `roi` matters only for a cohort with ROIs of several labels: either each label is
    scored on its own, or all ROIs of an image form one region, as suits a map that serves all labels."""

    LATER = ("roi",)
    map: str = "cls_attention"
    roi: Literal["per_label", "union"] = "per_label"
    within: Literal["content", "foreground"] = "content"  # foreground: for example, only the breast on its film
    batch_size: Positive = 64


class TrialConfig(Strict):
    """The complete configuration of one training run: on the same machine it gives the same numbers."""

    # Not fingerprinted: they say how a training runs. Only execution=compile changes numbers, by rounding.
    INERT: ClassVar[tuple[str, ...]] = ("execution", "checkpoint_seconds")
    LATER = (*INERT, "distillation", "pretrain")

    cohort: CohortConfig
    student: AnyStudent = StudentConfig()
    teachers: Mapping[str, TeacherConfig] = {}
    objectives: Mapping[str, ObjectiveConfig] = {}
    distillation: DistillationConfig = DistillationConfig()  # of a student of kind vlm
    pretrain: PretrainConfig | None = None  # comes before all stages
    stages: tuple[StageConfig, ...] = ()  # empty: a single stage, in which all modules learn from all loss terms
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    epochs: Positive = 27
    threads: Positive = 1
    seed: Annotated[int, Field(ge=0)] = 0
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"  # how steps run; auto: graph on a GPU, else eager
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0  # between checkpoints; 0: one after every epoch

    @property
    def vit(self) -> StudentConfig:
        """The student, in code for which `check` has let no vision-language student pass."""
        assert isinstance(self.student, StudentConfig)
        return self.student

    def active_objectives(self) -> dict[str, ObjectiveConfig]:
        """Returns the objectives that are built (weight above 0), with kind and teacher filled in. An objective that
        names no teacher gets the only one; None is kept if there are several."""
        only = next(iter(self.teachers)) if len(self.teachers) == 1 else None
        return {
            label: objective.model_copy(update={"kind": objective.kind or label, "teacher": objective.teacher or only})
            for label, objective in self.objectives.items()
            if objective.weight > 0
        }

    def active_teachers(self) -> list[str]:
        """Returns the names of the teachers of the active objectives, each once. Other teachers are not fitted."""
        names = [objective.teacher for objective in self.active_objectives().values()]
        return list(dict.fromkeys(name for name in names if name))

    def staged(self) -> tuple[StageConfig, ...]:
        """Returns all stages with their epochs; without `stages`, a single stage trains all modules with all terms."""
        if self.stages:
            return (*self.stages[:-1], self.stages[-1].model_copy(update={"epochs": self.epochs}))
        active = self.active_objectives()
        return (StageConfig(name="", train=(STUDENT, *active), objectives=(TASK, *active), epochs=self.epochs),)

    def fingerprint(self) -> str:
        """Returns the content hash of everything but the location of the data and `INERT`, as 16 hex digits."""
        left_out: dict[str, Any] = {"cohort": {"root", "allow_outside"}} | dict.fromkeys(self.INERT, True)
        content = self.model_dump(mode="json", exclude=left_out)
        if not self.stages:  # keeps the fingerprints from before stages existed
            del content["stages"]
        if self.student.reads == (IMAGE,):
            del content["student"]["reads"]
        return fingerprint(content)


def validate(model: type[Model], content: Any, path: str = "", known: Iterable[str] = ()) -> Model:
    """Returns `content` as a `model`.

    Args:
        known: further dotted paths to suggest for an unknown key, beside those of the model and of a TrialConfig.

    Raises:
        ConfigError: keys are unknown (near names are suggested) or missing, or values out of range, each by its path.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        tree = {*paths_of(model, path), *paths_of(TrialConfig), *known}
        raise ConfigError([mistake_of(details, path, tree) for details in error.errors()]) from error


def load_trial(path: Path, overrides: Iterable[str] = (), known: Iterable[str] = ()) -> TrialConfig:
    """Returns the TrialConfig that a YAML file holds, after `overrides` are applied.

    Args:
        known: options of the command, which are suggested for an unknown key.

    Raises:
        ConfigError: the file has mistakes, which are reported together; or the file is a search space.
    """
    content = read_yaml(path)
    if "arms" in content or "extends" in content:
        advice = (
            f"wanted one configuration, such as a sweep's best.yaml; python -m sweep.run space={path} searches this"
        )
        raise ConfigError.at(str(path), f"is a search space; {advice}")
    return validate(TrialConfig, overridden(content, overrides), known=known)


def dump_trial(config: TrialConfig) -> str:
    """Returns YAML that `load_trial` reads back as an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
