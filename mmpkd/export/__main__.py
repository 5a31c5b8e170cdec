"""Runs the command `python -m mmpkd.export`, which writes a student for other software. Its usage is in `HELP`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpkd import command
from mmpkd.export.formats import FORMATS, export
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake

HELP = """python -m mmpkd.export model=FILE|FOLDER to=timm|onnx [out=DIR]

Writes an exported student in the format of other software, which then gives the same probabilities without this
package.

  model=FILE    student.safetensors, as mmpkd.train writes it; or a folder that holds one
  to=timm       plain weights and a config.json, for timm.create_model("local-dir:DIR", pretrained=True); the model
                returns logits, and README.md says how probabilities follow from them
  to=onnx       one graph, model.onnx: pixels in [0, 1] in, calibrated probabilities and the attention map out
  out=DIR       the new folder                                            [runs/export/FORMAT]

The folder appears once its files give the same probabilities as the student for some random images, to 1e-5.
Formats differ in what they hold:

            letterbox          probabilities      map      a guided student
  timm      code in README     code in README     no       refused
  onnx      code in README     yes                yes      yes
"""


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    own, others = command.own_words(words, {"model": "", "to": "", "out": ""})
    mistakes = [Mistake(word, f"not an option of this command{near(word.partition('=')[0], own)}") for word in others]
    mistakes += [Mistake(key, f"missing: write {key}=...; see --help") for key in ("model", "to") if not own[key]]
    if own["to"] and own["to"] not in FORMATS:
        wanted = ", ".join(FORMATS)
        mistakes.append(Mistake("to", f"no format {own['to']!r}{near(own['to'], FORMATS)}; wanted {wanted}"))
    if mistakes:
        raise ConfigError(mistakes)
    out = Path(own["out"] or f"runs/export/{own['to']}")
    with command.written_to(out.parent):
        difference = export(Path(own["model"]), own["to"], out)
    print(f"{out}: gives the student's probabilities, to {difference:.1g}; {out / 'README.md'} shows how to use it")


if __name__ == "__main__":
    with command.command_line() as words:
        main(words)
