"""All exercises of the course: checks that help, never raise, and give nothing away too early."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re

import pytest

from helpers import progress
from helpers.lesson import Lesson
from helpers.notebooks import _parsed
from helpers.settings import NOTEBOOKS

NOTEBOOK = {path.name[:3]: path for path in sorted(NOTEBOOKS.glob("L[0-9][0-9]_*.ipynb"))}
EXERCISES = [(lesson, name) for lesson in NOTEBOOK for name in Lesson(lesson).exercises]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(file))
    return file


def code(lesson: str, tag: str = "") -> list[str]:
    cells = json.loads(NOTEBOOK[lesson].read_text(encoding="utf-8"))["cells"]
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code"
        if not tag or tag in cell["metadata"].get("tags", [])
    ]


def told(lesson: str, name: str, answer: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        Lesson(lesson).check(name, answer)
    return out.getvalue()


class Odd:
    """Something that fails however one looks at it."""

    def __call__(self, *args, **kwargs):
        return self

    def __getitem__(self, key):
        raise LookupError("nothing here")

    def __repr__(self):
        raise ValueError("no words")

    def __eq__(self, other):
        raise TypeError("not to be compared")

    __hash__ = None


def leaves(*args, **kwargs):
    raise SystemExit("bye")


def wanders(*args, **kwargs):
    return wanders(*args, **kwargs)


BAD = {
    "a number": 7,
    "words": "something else",
    "a list": [1, "two", None],
    "a dictionary": {"colour": "red"},
    "a class": Odd,
    "an odd object": Odd(),
    "a function of nothing": lambda: 1,
    "the first argument": lambda *args, **kwargs: args[0],
    "True": lambda *args, **kwargs: True,
    "a text": lambda *args, **kwargs: "text",
    "an empty list": lambda *args, **kwargs: [],
    "a dictionary of nothing": lambda *args, **kwargs: {},
    "an odd result": lambda *args, **kwargs: Odd(),
    "a division by nothing": lambda *args, **kwargs: 1 / 0,
    "an exit": leaves,
    "no end": wanders,
}


@pytest.mark.parametrize(("lesson", "name"), EXERCISES)
def test_whatever_comes_is_answered_in_words(lesson, name, kept):
    given_away = pieces(lesson)
    for what, answer in BAD.items():
        said = told(lesson, name, answer)
        assert said.startswith(f"✗ {name}: "), f"{what}: {said}"
        assert len(said.split()) > 5, f"{what}: {said}"
        assert "Look again: " in said, f"{what}: {said}"
        assert "0x" not in said, f"{what}: {said}"
        for piece in given_away:
            assert piece not in said, f"{what} is told the solution: {said}"
    assert not kept.exists()


def pieces(lesson: str) -> list[str]:
    """Lines of a lesson's solutions that would give one away."""
    lines = [line.strip() for source in code(lesson, "solution") for line in source.splitlines()]
    return [line for line in lines if len(line) > 25 and not line.startswith(("def ", "lesson."))]


@pytest.mark.parametrize(("lesson", "name"), EXERCISES)
def test_a_section_to_look_at_exists(lesson, name):
    look = re.search(r"Look again: (.*)\.$", told(lesson, name, 7), re.M)[1]
    cells = json.loads(NOTEBOOK[lesson].read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    headings = re.findall(r"^#+ +(.*?)\s*$", text, re.M)
    assert any(look in heading for heading in headings), f"{lesson} has no section {look!r}"


@pytest.mark.parametrize("lesson", sorted({lesson for lesson, _ in EXERCISES}))
def test_each_exercise_is_in_its_notebook(lesson):
    """A stub that is not filled in, a check, and where it is needed later, whoever passes."""
    every = "\n".join(code(lesson))
    optional = "\n".join(code(lesson, "optional"))
    for name in Lesson(lesson).exercises:
        assert f'.check("{name}", ' in every
        if f'.check("{name}", ' not in optional:
            assert f'.use("{name}", ' in every, f"{name}: later cells should use what passes"
    for source in code(lesson, "exercise"):
        assert "..." in source


@pytest.mark.parametrize("lesson", sorted({lesson for lesson, _ in EXERCISES}))
def test_solutions_have_names_of_their_own(lesson, kept):
    for source in code(lesson, "solution"):
        bound = {
            node.name
            for node in _parsed(source).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert all(name.endswith("_solution") for name in bound)
        for name in re.findall(r"lesson\.check\(\"[\w-]+\", (\w+)\)", source):
            assert name.endswith("_solution")
    assert progress.read() == {}
