"""The JSON schema of search spaces takes what the command takes, and refuses what people mistype."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from mmpkd.cohort import READERS
from mmpkd.config import TrialConfig
from mmpkd.objectives import OBJECTIVES
from mmpkd.scoring.saliency import MAPS
from mmpkd.teachers import TEACHERS
from sweep.run import main
from sweep.space.grammar import WORDS
from sweep.space.loading import override, read, shipped
from sweep.space.schema import schema
from sweep.space.search_config import SCORES, SearchConfig
from sweep.space.space import load_space

# As DESIGN section 8 has it, with a reader that is there already.
SPACE = """
cohort: {reader: breast_lesions_usg, root: "${oc.env:DATA_ROOT}/breast", image_size: 224}
student: {model: vit_small_patch16_224, pretrained: true}
optimizer: {lr: {log_uniform: [1e-5, 1e-3]}, weight_decay: {log_uniform: [1e-3, 0.3]}}
epochs: 27
arms:
  none: {}
  tabular:
    teachers: {findings: {kind: tabular, params: {columns: [mass_shape, mass_margins, breast_density]}}}
    objectives:
      one_of:
        logits:   {logits: {weight: {log_uniform: [0.05, 20]}, params: {temperature: {log_uniform: [1, 10]}}}}
        features: {features: {weight: {log_uniform: [0.05, 20]}, params: {layer: {int: [3, 11]}}}}
search: {maximize: [val/auroc, val/pointing], select: val/auroc, trials: 100, budget_device_hours: 40}
"""
TABLE = "cohort={reader: table, params: {file: a.csv, image: i, patient: p, tasks: {m: {kind: binary, column: m, %s}}}}"


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    made = schema()
    Draft7Validator.check_schema(made)
    return Draft7Validator(made)


@pytest.fixture(autouse=True)
def data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")


def content(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """What the file would say, had its author written the overrides into it."""
    (tmp_path / "space.yaml").write_text(SPACE)
    made = read(str(tmp_path / "space.yaml"))
    mistakes: list[Any] = []
    for one in overrides:
        override(made, one, mistakes)
    assert not mistakes
    return made


def test_every_shipped_space_fits(validator: Draft7Validator) -> None:
    for name in shipped():
        assert not list(validator.iter_errors(read(name))), name


@pytest.mark.parametrize(
    "said",
    [
        "epochs=27",
        "seed=${epochs}",
        "optimizer.lr=3e-4",
        "optimizer.lr=${optimizer.weight_decay}",
        "optimizer.lr={maybe: {one_of: {slow: {choice: [1e-5, 1e-4]}, fast: {uniform: [1e-3, 1e-2]}}}}",
        "optimizer.lr={int: [1, 2]}",
        "optimizer.batch_size={log_int: [8, 64]}",
        "optimizer.label_smoothing={maybe: {uniform: [0, 0.1]}}",
        "student.weights=null",
        "student.depth={choice: [null, 6]}",
        "augmentation.flip_vertical={choice: [true, false]}",
        "augmentation={one_of: {plain: {shift: 0}, strong: {shift: 0.5, flip_vertical: true}}}",
        "student={choice: [{model: a}, {model: b, depth: 3}]}",
        "evaluation.map=cls_attention",
        "arms.none=false",
        "arms.none=null",
        "arms.tabular.teachers.findings.params.columns={choice: [[age], [age, sex]]}",
        "arms.tabular.teachers.findings={maybe: {kind: tabular, params: {model: mlp}}}",
        "arms.tabular.teachers.findings.params={l2: {log_uniform: [0.1, 10]}}",
        "arms.tabular.objectives.features.mine={kind: features, params: {layer: 3, distance: mse}}",
        "arms.tabular.objectives.features.logits={kind: features, params: {layer: 3}}",
        "arms.tabular.objectives.logits.logits.params={maybe: {temperature: 2}}",
        "arms.new={one_of: {a: {optimizer: {lr: 1e-3}}, b: {one_of: {c: {}, d: {schedule: {warmup: 0}}}}}}",
        "search.early_stopping=false",
        "search.early_stopping={grace: 4}",
        "search.trials_per_device=auto",
        "search.deadline='2030-01-01 12:00'",
        "search.shares={none: 0.5}",
        "search.equal=hours",
        "search.points=[{arm: none, optimizer.lr: 1e-4}]",
        "search={sampler: gp, repeats: 2, plateau: 10}",
        TABLE % "labels: [a, b]",
    ],
)
def test_what_the_command_takes_fits(validator: Draft7Validator, tmp_path: Path, said: str) -> None:
    made = content(tmp_path, said)
    assert not list(validator.iter_errors(made))
    assert not load_space(str(tmp_path / "space.yaml"), [said])[1], "or else this test asks for too much"


@pytest.mark.parametrize(
    "said",
    [
        "optimiser.lr=1e-3",  # no such section
        "optimizer.learning_rate=1e-3",
        "optimizer.lr=fast",
        "optimizer.lr=-1",
        "optimizer.lr=[1e-5, 1e-3]",
        "optimizer.lr={loguniform: [1e-5, 1e-3]}",
        "optimizer.lr={log_uniform: [1e-5]}",
        "optimizer.weight_decay={log_uniform: [0, 1e-3]}",
        "optimizer.lr={log_uniform: [1e-5, 1e-3], choice: [1]}",
        "optimizer.lr={choice: [slow, fast]}",
        "optimizer.lr={choice: []}",
        "optimizer.lr={one_of: {a: 1, b: {uniform: [a, b]}}}",
        "optimizer.batch_size={uniform: [8, 64]}",
        "optimizer.batch_size={int: [0, 64]}",
        "augmentation.flip_vertical={uniform: [0, 1]}",
        "augmentation={plain: {shift: 0}}",
        "augmentation={one_of: {plain: {shfit: 0}}}",
        "augmentation={one_of: {plain: {shift: 0}}, shift: 0.1}",
        "student={choice: [{modle: a}]}",
        "student.depth={choice: [{int: [1, 3]}]}",
        "epochs={int: [5, 9]}",
        "seed={choice: [0, 1]}",
        "evaluation={batch_size: {int: [1, 3]}}",
        "evaluation.map=cls_atention",
        "cohort={reader: brest}",
        "cohort={image_size: {int: [96, 224]}}",
        "cohort.params={sied: 3}",
        "cohort={reader: synthetic, params: {sied: 3}}",
        TABLE % "labels: [{a: b}]",
        TABLE % "lables: [a, b]",
        "arms=[none]",
        "arms.none=true",
        "arms.none={epochs: 3}",
        "arms.none={optimizer: {rl: 1}}",
        "arms.none={choice: [{}]}",
        "arms.none={one_of: {a: {optimiser: {}}}}",
        "arms.tabular.teachers.findings.kind=tabluar",
        "arms.tabular.teachers.findings.params.colums=[age]",
        "arms.tabular.teachers.findings.params.l2=0",
        "arms.tabular.teachers.findings.params.columns=age",
        "arms.tabular.teachers.findings.params.columns=[{choice: [age, sex]}]",
        "arms.tabular.teachers={findings: {kind: tabular}, maybe: {kind: tabular}}",
        "arms.tabular.objectives.logits.logits.wieght=1",
        "arms.tabular.objectives.logits.logits.params.temprature=2",
        "arms.tabular.objectives.logits.logits={maybe: {params: {layer: 3}}}",
        "arms.tabular.objectives.logits.logits={kind: features, params: {temperature: 3}}",
        "arms.tabular.objectives.features.features.params.distance=cosin",
        "arms.tabular.objectives.features.mine={kind: features, params: {layr: 3}}",
        "search.trials=many",
        "search.trails=3",
        "search.trials={int: [1, 3]}",
        "search.early_stopping=true",
        "search.early_stopping={grace: 0}",
        "search.maximize=[val/auroc, val/pointng]",
        "search.select=auroc",
        "search.select={maximize: auroc}",
        "search.select={maximize: val/pointing, within: 2se, of: val/auroc}",
        "search.sampler=tep",
    ],
)
def test_what_people_mistype_does_not_fit(validator: Draft7Validator, tmp_path: Path, said: str) -> None:
    assert not validator.is_valid(content(tmp_path, said))


def test_a_cohort_is_needed_here_or_in_what_is_extended(validator: Draft7Validator) -> None:
    assert not validator.is_valid({"epochs": 3})
    assert not validator.is_valid({"cohort": {"image_size": 48}})
    assert validator.is_valid({"cohort": {"reader": "synthetic"}})
    assert validator.is_valid({"extends": "demo", "cohort": {"image_size": 48}, "arms": None, "search": None})
    assert not validator.is_valid({"extends": ["demo"]})


def test_every_kind_key_and_word_is_in_it() -> None:
    made = schema()
    text = json.dumps(made)
    kinds = [*READERS.values(), *TEACHERS.values(), *OBJECTIVES.values()]
    fields = {
        key for model in (TrialConfig, SearchConfig, *(kind.Params for kind in kinds)) for key in model.model_fields
    }
    for name in (*READERS, *TEACHERS, *OBJECTIVES, *MAPS, *SCORES, *WORDS, *fields):
        assert f'"{name}"' in text, name
    for documented in (TrialConfig.model_fields["optimizer"].annotation, *TEACHERS.values(), *OBJECTIVES.values()):
        assert documented is not None and documented.__doc__
        assert json.dumps(documented.__doc__.splitlines()[0])[1:-1] in text
    described = made["definitions"]["OptimizerConfig.lr"]["anyOf"][-1]["properties"]
    assert all(re.search(rf"\{{{word}:", described[word]["description"]) for word in WORDS), "from the grammar's table"
    known = set(made["definitions"])
    assert set(re.findall(r'"#/definitions/([^"]+)"', text)) <= known


def test_the_command_prints_it_and_needs_no_space(capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema=true", "space=there-is-none"])
    assert json.loads(capsys.readouterr().out) == schema()


def test_this_file_reads_numbers_as_the_command_does() -> None:
    assert OmegaConf.to_container(OmegaConf.create("lr: 1e-5")) == {"lr": 0.00001}
