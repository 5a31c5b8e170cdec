"""The pages in docs/ and README: blocks load, commands exist, tables name every key with its default, links resolve."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import BaseModel

import mmpkd.command
from mmpkd.cohort import READERS
from mmpkd.config import CohortConfig, TrialConfig, dump_trial, load_trial, validate
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.objectives import OBJECTIVES
from mmpkd.scoring.saliency import MAPS
from mmpkd.teachers import TEACHERS
from mmpkd.train import train
from mmpkd.vlm.config import VlmConfig
from sweep.options import RUN_KEYS, read_run_options
from sweep.plan.plan import plan
from sweep.search.samplers import SAMPLERS
from sweep.space.grammar import WORDS
from sweep.space.loading import shipped
from sweep.space.search_config import SCORES, SearchConfig
from sweep.space.space import load_space
from tests.mmpkd.cohort_fixtures import cases, write_cohort

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HISTORY = {"decisions", "faults"}  # pages that quote commands and names as they were on a day
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if not HISTORY & {path.stem, *path.relative_to(ROOT).parts}
]
COMMANDS = ("run", "status", "stop", "clean", "pick", "confirm")  # of sweep
VERBS = ("cohort", "train", "evaluate", "predict", "export")  # of mmpkd
MODULES = (*(f"sweep.{name}" for name in COMMANDS), *(f"mmpkd.{name}" for name in VERBS))


# --- Blocks ---------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: the page and line where it begins, the words behind the fence, and its text."""

    place: str
    info: tuple[str, ...]
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page, in their order."""
    inside: list[str] | None = None
    info: tuple[str, ...] = ()
    start = 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.lstrip().startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, info, start = [], tuple(line.strip().strip("`").split()), number
        else:
            yield Block(f"{page.relative_to(ROOT)}:{start}", info, "\n".join(inside) + "\n")
            inside = None
    assert inside is None, f"{page}: the block at line {start} is not closed"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SPACES = [block for block in BLOCKS if block.info[:1] == ("yaml",)]
NAMED = {match[1]: block for block in SPACES if (match := re.match(r"# (\w+)\.yaml\b", block.text))}
LANGUAGES = {"yaml", "sh", "python", "text", "{toctree}"}


def test_every_block_says_what_it_is() -> None:
    unmarked = [f"{block.place} {block.info}" for block in BLOCKS if block.info[:1] not in {(x,) for x in LANGUAGES}]
    assert unmarked == []
    assert "my_question" in NAMED and len(SPACES) >= 5


def table_of_my_question() -> pd.DataFrame:
    """A table with every column that the spaces laid over `my_question` name."""
    table = cases().rename(columns={"image": "image_file", "patient": "patient_id", "mask": "mask_file"})
    patient = np.arange(len(table)) // 2
    table["part"] = np.array(["train", "train", "train", "val", "test"])[patient // 3 % 5]
    table["fold"] = (patient // 3 % 5).astype(str)
    table["site"] = np.array(["Aachen", "Boston", "Chicago", "Delhi"])[patient // 3 % 4]
    table["margin"] = np.array(["round", "oval", "irregular"])[patient // 2 % 3]
    table["edema"], table["effusion"] = (patient % 2).astype(str), (patient // 2 % 2).astype(str)
    table["mri_file"] = "images/" + table["image_file"]
    table["report"] = np.array(["a round mass", "an oval mass", "calcifications"])[patient % 3]
    table["x"], table["y"], table["w"], table["h"] = "2", "3", "4", "5"
    table["box"], table["outline"] = "[2, 3, 4, 5]", "[[2, 3], [6, 3], [6, 5]]"
    return table


@pytest.mark.parametrize("block", SPACES, ids=lambda block: block.place)
def test_yaml_blocks_load_and_plan(block: Block, tmp_path: Path) -> None:
    kind, path = block.info[1:2], tmp_path / "space.yaml"
    if kind == ("trial",):
        path.write_text(block.text)
        load_trial(path)
        return
    assert kind in ((), ("part",)), f"a block is yaml, yaml part NAME or yaml trial, not {' '.join(block.info)}"
    text = block.text
    if kind:
        base = block.info[2]
        if base in NAMED:
            (tmp_path / f"{base}.yaml").write_text(NAMED[base].text)
            base = f"{base}.yaml"
        else:
            assert base in shipped(), f"{base} is neither a shipped space nor a block that begins with '# {base}.yaml'"
        text = f"extends: {base}\n{text}"
    path.write_text(text)
    overrides = []
    if "my_question" in block.text + " ".join(block.info):
        table = table_of_my_question()
        write_cohort(tmp_path / "study", table.rename(columns={"image_file": "image", "mask_file": "mask"}))
        table.to_csv(tmp_path / "study" / "cases.csv", index=False)
        overrides = [f"cohort.root={tmp_path / 'study'}"]
    space, mistakes = load_space(str(path), overrides)
    assert mistakes == [] and space is not None
    reader = space.raw["cohort"]["reader"]
    if reader == "synthetic" or overrides:  # other cohorts are not on every machine
        planned = plan(space)
        assert planned.mistakes == ()


# --- Commands -------------------------------------------------------------------------------------------------


class WordsRead(Exception):
    """Ends a command as soon as its own reader has read its words."""


def command_lines(text: str) -> Iterator[str]:
    """Yields the commands of a shell block: continued lines joined, comments and blank lines left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


SH = [(block.place, line) for block in BLOCKS if block.info[:1] == ("sh",) for line in command_lines(block.text)]
INLINE = [
    (str(page.relative_to(ROOT)), match[1])
    for page in PAGES
    for match in re.finditer(r"`((?:RAY_ADDRESS=\S+ )?(?:python (?:-m |benchmarks/)|make )[^`]+)`", page.read_text())
]


def without_environment(words: Sequence[str]) -> list[str]:
    """Returns a command without the assignments of environment variables before it."""
    start = next((index for index, word in enumerate(words) if not re.match(r"[A-Z_a-z0-9]+=", word)), len(words))
    return list(words[start:])


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("place", "line"), [*SH, *INLINE], ids=lambda value: value[:70])
def test_commands_exist_and_take_these_words(
    place: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_command(without_environment(shlex.split(line, comments=True)), monkeypatch)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a command exists and takes its words, without running it."""
    if words[:1] == ["make"]:
        given = [word for word in words[1:] if "=" not in word and word not in ("-C", "~/mmpkd")]
        assert set(given) <= make_targets()
        if "sweep" in given:
            arguments = next((word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")), "")
            check_words("sweep.run", shlex.split(arguments), monkeypatch)
    elif words[:2] == ["python", "-m"]:
        assert words[2] in MODULES, f"unknown command {words[2]}"
        rest = words[3:]
        if ">" in rest:
            rest = rest[: rest.index(">")]
        check_words(words[2], rest, monkeypatch)
    elif words[:1] == ["python"]:
        script = ROOT / words[1]
        assert script.is_file(), f"no file {words[1]}"
        assert all(word in script.read_text() for word in words[2:] if word.startswith("--"))
    elif words[:1] == ["ray"]:
        for inner in words[1:]:
            if " -- " in inner:
                check_command(shlex.split(inner.partition(" -- ")[2]), monkeypatch)
    elif words[0] in ("sbatch", "~/mmpkd/deploy/sweep.sh"):  # what follows the script is passed to sweep.run
        script = next(index for index, word in enumerate(words) if word.endswith(".sh"))
        assert (ROOT / words[script].removeprefix("~/mmpkd/")).is_file()
        check_words("sweep.run", words[script + 1 :], monkeypatch)
    else:
        known = ("source", "export", "mlflow", "ssh-keygen", "for", "cp", "uvx")
        assert words[0] in known, f"what is {words[0]}?"


def command_module(name: str) -> ModuleType:
    return importlib.import_module(f"{name}.__main__" if name in ("mmpkd.cohort", "mmpkd.export") else name)


def check_words(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the words as the command does, and fails where it would refuse them; runs nothing."""
    words = [re.sub(r"=DIR\b", "=.", word.replace("=FILE", "=file.yaml")) for word in words]
    for word in words:  # a space or a configuration that the page supposes to be there
        key, _, value = word.partition("=")
        if key in ("space", "config") and value.endswith(".yaml") and not (ROOT / value).exists():
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            minimal = "cohort: {reader: synthetic, image_size: 48}\n"
            Path(value).write_text(minimal if key == "space" else dump_trial(TrialConfig(**yaml.safe_load(minimal))))
    words = [re.sub(r"=(search_spaces/)", f"={ROOT}/search_spaces/", word) for word in words]
    command = command_module(name)
    if "--help" in words:
        command.main(words)
    elif name == "sweep.run":
        check_sweep_words(command, words, monkeypatch)
    elif name.startswith("sweep."):
        check_name_and_words(command, words, monkeypatch)
    elif words:  # without any, these print their help
        check_own_words(command, name, words, monkeypatch)


def check_sweep_words(command: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")
    options, mistakes = read_run_options(words)
    _, further = load_space(options.space, options.overrides, RUN_KEYS)
    assert [*mistakes, *further] == []


def check_name_and_words(command: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read = command.read_sweep_options

    def read_and_end(words: Sequence[str], defaults: dict[str, str]) -> Any:
        _, mistakes = read(words, defaults)
        assert mistakes == []
        raise WordsRead

    monkeypatch.setattr(command, "read_sweep_options", read_and_end)
    with pytest.raises(WordsRead):
        command.main(words)


def check_own_words(command: ModuleType, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read, given = mmpkd.command.own_words, {}

    def read_and_end(*arguments: Any) -> Any:
        given["own"], given["others"] = read(*arguments)
        raise WordsRead

    for module in (mmpkd.command, command):
        if hasattr(module, "own_words"):
            monkeypatch.setattr(module, "own_words", read_and_end)
    with pytest.raises(WordsRead):
        command.main(words)
    own, others = given["own"], given["others"]
    if name == "mmpkd.train":
        load_trial(Path(own["config"]), others)
    elif name in ("mmpkd.predict", "mmpkd.export"):
        assert others == []
    else:
        content = read_yaml(Path(own["config"])) if own.get("config") else {}
        content = overridden({"cohort": {"reader": "synthetic"} | content.get("cohort", {})}, others)
        assert set(content) == {"cohort"}, "keys begin with cohort."
        validate(CohortConfig, content["cohort"], "cohort")


# --- Tables of keys -------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A row of a table of keys."""

    name: str
    default: str
    meaning: str


def tables_of_keys() -> Iterator[tuple[str, list[Key]]]:
    """Yields each table below a comment `<!-- keys: ... -->`, with the words of the comment."""
    for page in PAGES:
        for match in re.finditer(r"<!-- keys: (.+?) -->\n\n((?:\|.*\n)+)", page.read_text()):
            rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in match[2].splitlines()[2:]]
            yield match[1], [Key(row[0].strip("| `"), row[1].strip("`"), " | ".join(row[2:])) for row in rows]


QUOTED = r"\| you read \|.*\n\|.*\n((?:\|.*\n)+)"  # a table of messages and what to do
KEYS = list(tables_of_keys())


def below(model: type[BaseModel], key: str) -> type[BaseModel]:
    """Returns the model of a key's value, or of the values in its mapping or list."""
    models = list(models_in(model.model_fields[key].annotation))
    assert models, f"{model.__name__}.{key} is a plain value"
    return models[0]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def model_of(words: str) -> type[BaseModel]:
    """Returns the model that a comment names: `trial`, a dotted path, or `vlm [key]`, or `reader|teacher|objective
    KIND [path]`."""
    first, *others = words.split()
    roots: dict[str, Any] = {"reader": READERS, "teacher": TEACHERS, "objective": OBJECTIVES}
    if first in roots:
        model, path = roots[first][others[0]].Params, others[1].split(".") if others[1:] else []
    elif first == "trial":
        model, path = TrialConfig, []
    elif first == "vlm":
        model, path = VlmConfig, others
    elif first.split(".")[0] == "search":
        model, path = SearchConfig, first.split(".")[1:]
    else:
        model, path = TrialConfig, first.split(".")
    for key in path:
        model = below(model, key) if key in model.model_fields else model  # NAME, LABEL and 0 lead to the same model
    return model


def says(default: str, value: Any) -> bool:
    """Tells whether a cell of the column `default` states this value."""
    if isinstance(value, BaseModel):
        return default in ("see below", "see text")
    if default == "all":
        return isinstance(value, tuple) and len(value) > 5
    if default == "the student's":
        return isinstance(value, int)
    if value is None:
        return default == "none"
    stated = yaml.safe_load(default.removeprefix("at most "))
    return bool(stated == (list(value) if isinstance(value, tuple) else value))


@pytest.mark.parametrize(("words", "rows"), KEYS, ids=[words for words, _ in KEYS])
def test_tables_name_every_key_with_its_default(words: str, rows: list[Key]) -> None:
    fields = model_of(words).model_fields
    assert sorted(row.name for row in rows) == sorted(fields)
    for row in rows:
        field = fields[row.name]
        if field.is_required():
            assert row.default == "required", row
        else:
            value = field.get_default(call_default_factory=True)
            assert says(row.default, value), f"{words}: {row.name} is {value!r} by default, not {row.default}"
        assert row.meaning.strip(" |"), row


def test_every_model_has_a_table() -> None:
    kinds = (*READERS.values(), *TEACHERS.values(), *OBJECTIVES.values())
    waiting: list[type[BaseModel]] = [TrialConfig, SearchConfig, *(kind.Params for kind in kinds)]
    every: set[type[BaseModel]] = set()
    while waiting:
        model = waiting.pop()
        if model not in every:
            every.add(model)
            waiting += [inner for field in model.model_fields.values() for inner in models_in(field.annotation)]
    covered = {model_of(words) for words, _ in KEYS}
    with_keys = [model for model in every if model.model_fields]
    assert [m.__name__ for m in with_keys if not any(issubclass(other, m) for other in covered)] == []
    assert {words for words, _ in KEYS} >= {f"teacher {kind}" for kind in TEACHERS}
    assert {words for words, _ in KEYS} >= {f"objective {kind}" for kind in OBJECTIVES}


def test_words_of_dictionaries_are_named() -> None:
    spaces, kinds = (DOCS / "search_spaces.md").read_text(), (DOCS / "objectives_and_teachers.md").read_text()
    assert all(f"`{word}" in spaces for word in (*WORDS, *SCORES, *SAMPLERS))
    assert all(f"`{name}`" in kinds for name in (*MAPS, *TEACHERS, *OBJECTIVES))
    published = (DOCS / "published_data_sets.md").read_text()
    assert all(f"`{name}`" in published for name in (*READERS, *shipped()) if name != "table")


def test_every_metric_is_explained(tiny_trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    page = (DOCS / "reading_the_numbers.md").read_text()
    scan = {"kind": "image", "params": {"view": "superior", "epochs": 1}}
    content = tiny_trial.model_dump() | {"teachers": {"scan": scan}, "objectives": {"logits": {}}, "epochs": 1}
    (report,) = train(TrialConfig.model_validate(content), cache, tmp_path)
    for metric in report.metrics:
        name = re.sub("^teacher/scan", "teacher/<name>", metric)
        name = re.sub("pattern/(lamellar|columnar|reticular)$", "<task>/<label>", name).replace("pattern", "<task>")
        stem = re.sub("_(se|undefined|chance|content|centre|prior|max)$", "", name)
        assert f"`{name}`" in page or (f"`{stem}`" in page and name.removeprefix(stem) in page), metric


def pairs_of_words(text: str) -> list[tuple[str, str]]:
    words = re.findall("[a-z]+", text.lower())
    return list(itertools.pairwise(words))


def test_messages_that_pages_quote_are_those_of_the_program() -> None:
    """Most neighbouring words of each quoted message stand side by side in a text of the source."""
    known = {
        pair
        for package in ("mmpkd", "sweep")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for pair in pairs_of_words(node.value)
    }
    tables = [match[1] for page in PAGES for match in re.finditer(QUOTED, page.read_text())]
    messages = [row.split("`")[1] for table in tables for row in table.splitlines()]
    assert len(messages) > 10
    for message in messages:
        pairs = pairs_of_words(message)
        share = sum(pair in known for pair in pairs) / len(pairs)
        assert share >= 0.5, f"{message!r}: is this still what the program says?"


# --- Commands' help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_the_page_of_commands_has_every_word_of_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = command_module(name)
    command.main(["--help"])
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: python -m {name}") and f"\nexamples\n  python -m {name}" in help_text
    assert max(map(len, help_text.splitlines())) <= 80
    section = (DOCS / "commands.md").read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    words = re.findall(r"^ {2,}([a-z_]+)=|^ {2,}[a-z_]+=[A-Z]+, ([a-z_]+)=", help_text, re.MULTILINE)
    wanted = {word for pair in words for word in pair if word not in ("", "key")}  # `key=value` is any of them
    stated = set(re.findall(r"`([a-z_]+)=`", section))
    assert wanted <= stated, f"not on the page: {wanted - stated}"
    assert all(f"{word}=" in help_text for word in stated)


# --- Links and the site ---------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_files_that_pages_name_exist() -> None:
    named = r"`((?:mmpkd|sweep|tests|benchmarks|docs|search_spaces)/[\w/.]*)`"
    paths = {path for page in PAGES for path in re.findall(named, page.read_text())}
    assert len(paths) > 10
    assert [path for path in paths if not re.search(r"\b[A-Z]+\b", path) and not (ROOT / path).exists()] == []


def test_links_of_the_readme_resolve() -> None:
    text = (ROOT / "README.md").read_text()
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else ROOT / "README.md"
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    assert broken == []


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    words = [*options, str(DOCS), str(tmp_path / "site")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) > 10
    elsewhere = r'"(?:https?:)?//'
    loaded = rf'<(?:script|img|iframe)[^>]+src={elsewhere}|<link[^>]+rel="stylesheet"[^>]+href={elsewhere}'
    assert [page.name for page in pages if re.search(loaded, page.read_text())] == []
