"""Exports a student that answers as a folder for transformers. `README.md` has the code from the file of an image and a
question to an answer and its boxes.

transformers knows the positions of its own models only. With another rule, `position_rule` in the folder's
`config.json` and its README hold the rule, and logits are right only where it is applied.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from mmpkd.export.usage import image_notes, imports_code, reading_code
from mmpkd.machine.new_folder import new_folder
from mmpkd.vlm import vocabulary
from mmpkd.vlm.config import PositionsConfig
from mmpkd.vlm.exported import limits_of_sharing
from mmpkd.vlm.student import VlmStudent
from mmpkd.vlm.vocabulary import FolderTokens, Spacing, Words

TOKENIZER_CODE = """\
tokenizer = AutoTokenizer.from_pretrained(folder)


def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)


def decode(ids):
    return tokenizer.decode(ids, skip_special_tokens=True)

"""


def write(student: VlmStudent, folder: Path, command: Sequence[str]) -> list[str]:
    """Writes a student as a new folder that transformers reads by itself.

    Args:
        command: the words of the user's command, which a message repeats.

    Returns:
        What the user is to know before the folder of a student of a credentialed cohort is shared.

    Raises:
        ConfigError: `folder` is in use.
    """
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    card, processor, network = student.card, student.vlm.processor, student.vlm.network
    tokens, vision = processor.tokens, network.config.vision_config
    network.config.position_rule = student.config.positions.model_dump()
    network.generation_config = GenerationConfig(eos_token_id=tokens.end, pad_token_id=tokens.pad)
    area = card.image_size**2  # the library takes other sizes unless both limits are the square that the student sees
    pixels = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": area, "longest_edge": area},
        "do_convert_rgb": vision.in_channels == 3,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    limits = limits_of_sharing(card.credentialed, tokens)
    with new_folder(folder, command) as partial:
        network.save_pretrained(partial)
        (partial / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2))
        if isinstance(tokens, FolderTokens):
            names = {"eos_token": tokens.end, "pad_token": tokens.pad}
            special = {name: tokens.backend.id_to_token(index) for name, index in names.items()}
            PreTrainedTokenizerFast(tokenizer_object=tokens.backend, **special).save_pretrained(partial)
        (partial / "processor.json").write_text(json.dumps(processor.state()))
        (partial / "README.md").write_text(_readme(student, limits), encoding="utf-8")
    return limits if card.credentialed else []


def _readme(student: VlmStudent, limits: Sequence[str]) -> str:
    rule, kind = student.config.positions, student.config.model
    parts = [
        "# A vision-language student",
        f"A model of type `{kind}`: an image and a question in, an answer in words and boxes out. "
        f"{image_notes(student.card)}",
        "`processor.json` holds its vocabulary (`tokens`), the token ids of a prompt before the image, between image "
        "and question, and after the question, and the number of steps of the grid on which it writes boxes, along "
        "each side of that square.",
    ]
    if limits:
        parts += ["## Data", "\n".join(f"- **{limit}**" for limit in limits)]
    parts += ["## Positions", _positions(rule)]
    if rule == PositionsConfig():
        parts += ["## Use", _code(student)]
    return "\n\n".join(parts) + "\n"


def _positions(rule: PositionsConfig) -> str:
    if rule == PositionsConfig():
        return "The positions are those of transformers."
    return "\n".join(
        [
            "**transformers alone computes other positions than those that this model was trained with, and does not "
            "say so.** Pass `position_ids` that follow this rule, or use the model through mmpkd:",
            "",
            f"- where text and image meet, the next run begins {rule.border_gap} after the largest position so far;",
            f"- visual tokens that are neighbours vertically are {rule.stride_height} apart, and those that are "
            f"neighbours horizontally {rule.stride_width};",
            "- everything else is as in transformers. `position_rule` in `config.json` holds these numbers.",
        ]
    )


def _code(student: VlmStudent) -> str:
    """Returns Markdown with Python code that needs transformers, torchvision, NumPy and Pillow."""
    card, is_built = student.card, isinstance(student.vlm.processor.tokens, Words)
    names = ["AutoImageProcessor", "AutoModelForImageTextToText", *([] if is_built else ["AutoTokenizer"])]
    return f"""`python answer.py FOLDER IMAGE QUESTION` prints the answer, and left, top, right, bottom of its boxes:

```python
from __future__ import annotations

{imports_code(card, "json", "re", "sys", "torch")}
from transformers import {", ".join(names)}

folder, path, question = sys.argv[1:]
with open(f"{{folder}}/processor.json", encoding="utf-8") as opened:
    layout = json.load(opened)
model = AutoModelForImageTextToText.from_pretrained(folder).eval()

{_words_code() if is_built else TOKENIZER_CODE}

{reading_code(card)}


SIZE, STEPS = {card.image_size}, layout["box_steps"]
square = torch.from_numpy(read_square(path))[0].expand(model.config.vision_config.in_channels, -1, -1)
pixels = AutoImageProcessor.from_pretrained(folder)(square, do_rescale=False, return_tensors="pt")
image = [model.config.image_token_id] * (pixels["image_grid_thw"].prod().item() // 4)  # four patches are one token
ids = [*layout["before"], *image, *layout["between"], *encode(question), *layout["after"]]
input_ids = torch.tensor([ids])
with torch.inference_mode():
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),  # without them positions are wrong
        max_new_tokens={student.config.max_new_tokens},
        do_sample=False,
        **pixels,
    )
answer = decode(output[0, len(ids) :].tolist())
print(answer)

lengths = ImageOps.exif_transpose(Image.open(path)).size
inside = [max(1, round(length * (SIZE / max(lengths)))) for length in lengths]  # of the square, without its padding


def pixel(step, axis):
    start = (SIZE - inside[axis]) // 2
    return round(min(1.0, max(0.0, (int(step) * SIZE / STEPS - start) / inside[axis])) * lengths[axis])


for box in re.findall(r"<box>\\((\\d+),(\\d+)\\),\\((\\d+),(\\d+)\\)</box>", answer):
    print([pixel(step, index % 2) for index, step in enumerate(box)])
```

Boxes in a question are written on the same grid of {student.vlm.processor.box_steps} steps over the padded square."""


def _words_code() -> str:
    """Returns the code of the vocabulary of a built model, which is this package's own."""
    constants = [f"{name} = {getattr(vocabulary, name)!r}" for name in ("UNKNOWN", "FLIP")]
    constants += [f"SPECIAL = {vocabulary.SPECIAL!r}", f"PIECE = {vocabulary.PIECE!r}"]
    constants += [f"{name} = {sorted(getattr(vocabulary, name))!r}" for name in ("CLOSING", "OPENING")]
    methods = "\n".join(inspect.getsource(method) for method in (Words.encode, Words.decode))
    return "\n".join(
        [
            *constants,
            "",
            "",
            inspect.getsource(Spacing),
            "",
            "class Words:",
            "    def __init__(self, tokens):",
            "        self.tokens, self.ids = tokens, {token: index for index, token in enumerate(tokens)}",
            "",
            methods,
            "",
            'words = Words(layout["tokens"]["tokens"])',
            "encode, decode = words.encode, words.decode",
            "",
        ]
    )
