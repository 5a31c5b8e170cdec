"""Runs the command `python -m mmpkd.export`, which writes a student for other software. Its usage is in `HELP`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpkd import command
from mmpkd.export.formats import ANSWERING, FORMATS, export
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake

HELP = """\
usage: python -m mmpkd.export model=FILE|FOLDER to=FORMAT [out=DIR]

Writes an exported student in the format of other software. The folder appears
once its files give the same probabilities as the student for some random
images, to 1e-5. Its README.md has the commands or the Python code that apply it
to an image.

  model=PATH    student.safetensors or vlm.safetensors, as mmpkd.train and
                sweep.pick write it; or a folder that holds one
  to=timm       plain weights and a config.json, for
                timm.create_model("local-dir:DIR", pretrained=True)
  to=onnx       one graph: pixels in [0, 1] in, calibrated probabilities and the
                attention map out
  to=mlflow     a model for mlflow models serve --env-manager local --model-uri
                DIR: an image as base64 or by its path in, calibrated
                probabilities by label out
  to=hub        what to=timm writes, with the preprocessing as JSON and a model
                card, for the Hugging Face Hub
  to=transformers   a student that answers (vlm.safetensors) as a folder of
                transformers; its README.md has the code that asks it, or says
                where positions differ
  out=DIR       the new folder [runs/export/FORMAT]

          reads an image   probabilities   map   a guided   runs without
          by               from                  student    mmpkd
  timm    code in README   code in README  no    refused    yes
  onnx    code in README   the graph       yes   yes        yes
  mlflow  the model        the model       no    yes        with a copy inside
  hub     code in README   code in README  no    refused    yes

onnx refuses a student whose map is computed from gradients. docs/commands.md
has the details.

examples
  python -m mmpkd.export model=runs/demo/picked/12 to=onnx
  python -m mmpkd.export model=student.safetensors to=hub out=my-student
"""


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or command.asks_for_help(words):
        print(HELP, end="")
        return
    own, others = command.own_words(words, {"model": "", "to": "", "out": ""})
    mistakes = command.unknown_words(others, own)
    mistakes += [Mistake(key, f"missing: write {key}=...; see --help") for key in ("model", "to") if not own[key]]
    formats = (*FORMATS, ANSWERING)
    if own["to"] and own["to"] not in formats:
        wanted = ", ".join(formats)
        mistakes.append(Mistake("to", f"no format {own['to']!r}{near(own['to'], formats)}; wanted {wanted}"))
    if mistakes:
        raise ConfigError(mistakes)
    out = command.named_folder(own["out"] or f"runs/export/{own['to']}")
    difference = export(Path(own["model"]), own["to"], out)
    if own["to"] == ANSWERING:
        print(f"{out}: a folder for transformers; {out / 'README.md'} shows how to use it")
        return
    print(f"{out}: gives the student's probabilities, to {difference:.1g}; {out / 'README.md'} shows how to use it")


if __name__ == "__main__":
    with command.command_line() as words:
        main(words)
