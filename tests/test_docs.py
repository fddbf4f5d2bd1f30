"""README and docs: their programs run, their commands parse, what they name is there."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cascade_engine.demo.family import FOLDER
from cascade_engine.trace.__main__ import main as trace
from cascade_engine.trace.format import FIELDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTED_APART = {"skeleton-of-thought.md": "tests/sot/test_docs.py"}
MODELS = {
    "target": "llama-target",
    "small": "llama-small",
    "flan-t5-large": "t5-target",
    "flan-t5-small": "t5-draft",
}
"""What programs call their models, and the embedded ones that stand in."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}Answer:"


def programs(page: Path) -> str:
    """The Python blocks of a page, one after the other."""
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    )


def commands(page: Path) -> list[str]:
    """Lines `python -m ...` of a page, continued ones joined."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(
        r"^ *(?:[\w=\"-]+ .*\| *)?(python -m (?:cascade_engine|bench).*)$", text, re.M
    )
    return found + re.findall(r"`(python -m (?:cascade_engine|bench)[^`]*)`", text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, model in MODELS.items():
        (tmp_path / name).symlink_to(FOLDER / model)
    shutil.copytree(FOLDER / "llama-target", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program.py", "target"])
    return tmp_path


WITH_PROGRAMS = [page for page in PAGES if programs(page) and page.name not in TESTED_APART]


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: page.name)
def test_programs_run(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one program for each page, as they stand, with the embedded models for its own."""
    exec(compile(programs(page), page.name, "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    for expected in {
        "README.md": [r"tokens|\d\.\d"],
        "serving.md": [r"client 2: '", r"impatient: gone", r"job 2 '"],
        "quickstart.md": [r"(?m)^a .* (stop|length)$"],
    }.get(page.name, []):
        assert re.search(expected, shown), shown
    if page.name == "trace.md":
        assert trace(["stats", str(folder / "run.jsonl")]) == 0


class Parsed(Exception):
    pass


ALL_COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS, ids=lambda value: value[:70])
def test_commands_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser of the program that they call."""
    words = shlex.split(re.sub(r"[\[\]]", "", command), comments=True)
    module, arguments = words[2], words[3:]
    spec = importlib.util.find_spec(module)
    assert spec is not None
    name = module if spec.submodule_search_locations is None else f"{module}.__main__"
    program = importlib.import_module(name)
    if not arguments:  # a mention
        assert program.main
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(self: Any, args: Sequence[str] | None = None, into: Any = None) -> NoReturn:
        parse(self, args, into)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        program.main()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    folders = "docs|tests|bench|csrc|cascade_engine|kernels"
    for name in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.*{{}},-]*\w\*?)", text):
        found = list(ROOT.glob(name)) or list(ROOT.glob(f"{name}.*"))
        assert found or "{" in name, f"{page.name} names {name}"
    for name in re.findall(r"(?<![\w/.-])([\w-]+\.md)\b", text):
        places = (ROOT / name, ROOT / "docs" / name, *(ROOT / "cascade_engine").glob(f"*/{name}"))
        assert any(place.exists() for place in places), f"{page.name}: {name}"
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (page.parent / name).exists(), f"{page.name} shows {name}"


def test_every_page_is_found_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for page in PAGES[2:]:
        assert f"docs/{page.name}" in text, page.name


def test_the_picture_is_what_its_command_draws(tmp_path: Path) -> None:
    """And is small; the command stands below it."""
    (command,) = [c for c in commands(ROOT / "docs/how-the-cascade-works.md") if ".trace svg" in c]
    words = shlex.split(command)[3:]
    svg = ROOT / words[-1]
    assert svg.stat().st_size < 100_000
    out = tmp_path / "picture.svg"
    assert trace([words[0], str(ROOT / words[1]), *words[2:-1], str(out)]) == 0
    assert out.read_bytes() == svg.read_bytes()


def test_the_format_of_traces_is_documented() -> None:
    text = (ROOT / "docs/trace.md").read_text()
    for kind, fields in FIELDS.items():
        (line,) = re.findall(rf"^\| `{kind}` \|.*$", text, re.MULTILINE)
        for name in (each.rstrip("?") for each in fields if each != "t"):
            assert f"`{name}`" in line, f"{kind}: {name}"
