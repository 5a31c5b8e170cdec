"""What a sweep of a credentialed cohort leaves behind, and what it says, holds nobody's name, report or findings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import yaml

from sweep import driver
from sweep.run import main
from tests.mmpkd.cohort_fixtures import PARAMS, cases, write_cohort

PLANTED = ("plantedpatient", "plantedfile", "plantedshape", "plantedsign", "plantedreport", "plantedbiopsy")


def holders(folder: Path, words: tuple[str, ...]) -> list[str]:
    """Files below a folder in whose bytes, or in the cells of whose tables, one of the words stands."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes().lower()
        if file.suffix == ".parquet":
            content += pd.read_parquet(file).to_csv().lower().encode()
        if any(word.encode() in content for word in words):
            found.append(file.relative_to(folder).as_posix())
    return found


@pytest.mark.usefixtures("ray_session")
def test_nothing_planted_is_found_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = cases()
    table["image"] = [f"plantedfile{index}.png" for index in range(len(table))]
    table["patient"] = "plantedpatient" + table["patient"]
    table["shape"] = np.where(np.arange(len(table)) % 3 == 0, "plantedshape", "oval")
    table["signs"] = "halo|plantedsign"
    table["biopsy"] = "plantedbiopsy"
    table["report"] = "a plantedreport of some length"
    write_cohort(tmp_path / "raw", table)
    (tmp_path / "raw" / "images" / "plantedfile7.png").write_bytes(b"damaged")
    params = {**PARAMS, "credentialed": True, "text": {"findings": "report"}}
    space = {
        "cohort": {
            "reader": "table",
            "root": str(tmp_path / "raw"),
            "image_size": 16,
            "max_bad": 0.1,
            "params": params,
        },
        "student": {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "epochs": 1,
        "arms": {
            "none": {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-3]}}},
            "tabular": {
                "optimizer": {"lr": {"log_uniform": [1e-4, 1e-3]}},
                "teachers": {"findings": {"kind": "tabular"}},
                "objectives": {"logits": {}},
            },
        },
        "search": {"trials": 2, "at_a_time": 1},  # each worker loads torch, which takes longest
    }
    (tmp_path / "private.yaml").write_text(yaml.safe_dump(space))
    words = [f"space={tmp_path / 'private.yaml'}", f"storage={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    monkeypatch.setattr(driver, "FUNCTIONS", replace(driver.FUNCTIONS, price=lambda *_: None))  # it takes half a minute
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    said = "".join(capfd.readouterr()).lower()
    assert "2/2 done (2 complete)" in said and "row 9: is not an image" in said
    assert not [word for word in PLANTED if word in said]

    assert holders(tmp_path / "cache", PLANTED), "the store holds them, or this test could not fail"
    assert holders(tmp_path / "runs", ("halving", "tabular"))
    assert holders(tmp_path / "runs", PLANTED) == []
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    assert logs.is_dir() and holders(logs, PLANTED) == []
