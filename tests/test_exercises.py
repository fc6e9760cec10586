"""All exercises of the course: checks that help, never raise, and give nothing away too early."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import re

import pytest

from helpers import progress
from helpers.lesson import Lesson
from helpers.notebooks import _parsed
from helpers.settings import NOTEBOOKS, ROOT

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


class Closed:
    """Something that does not let anybody ask for its attributes."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name}")


class Shut(dict):
    """A dictionary that does not give out what is in it."""

    def values(self):
        raise OSError("closed")


def holds_itself():
    everything: list = []
    everything.append(everything)
    return everything


def cancelled(*args, **kwargs):
    raise asyncio.CancelledError


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
    "a cancellation": cancelled,
    "a list that holds itself": holds_itself(),
    "attributes that raise": Closed(),
    "values that raise": Shut(colour="red"),
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


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def names(source: str) -> set[str]:
    """What a piece of code makes use of: ``copy.deepcopy``, ``min(``."""
    return set(re.findall(r"\b(?:[a-z_]\w*\.)+\w+|\b[a-z_]{3,}\(", source, re.I))


def secrets(cells: list[dict]) -> set[str]:
    """What only the hints and the solutions say, and not the cells above them.

    Code between backticks and the lines of solutions, whole and as the names in them; of the
    hints' sentences each five words in a row.
    """
    found, above = set(), ""
    for cell in cells:
        source = "".join(cell["source"])
        code, rows = [], []
        if "solution" in cell["metadata"].get("tags", []):
            lines = [line.strip() for line in source.splitlines()]
            code = [line for line in lines if not line.startswith(("def ", "lesson."))]
            source = ""
        elif cell["cell_type"] == "markdown":
            for hint in re.findall(r"<details>.*?</details>", source, re.S):
                code += re.findall(r"`([^`\n]+)`", hint)
                said = words(re.sub(r"<.*?>", " ", hint)).split()
                rows += [" ".join(said[n : n + 5]) for n in range(len(said) - 4)]
            source = re.sub(r"<details>.*?</details>", "", source, flags=re.S)
        pieces = {piece for piece in code if len(piece) > 8} | set().union(*map(names, code))
        found |= {piece for piece in pieces if piece not in above}
        found |= {row for row in rows if row not in words(above)}
        above += f"\n{source}"
    return found


def sentences(source: str) -> list[str]:
    """The texts of more than one word in a module of checks, docstrings left out."""
    tree = ast.parse(source)
    left_out = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        if isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}  # taken as a whole, here
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and id(node) not in left_out:
            found.append(str(node.value))
    return [text for text in found if " " in text]


def let_out(cells: list[dict], source: str) -> list[tuple[str, str]]:
    """What a module of checks says of what only a lesson's hints and solutions should."""
    said = [(text, f"{text}\n{words(text)}") for text in sentences(source)]
    return sorted((s, text) for s in secrets(cells) for text, both in said if s in both)


@pytest.mark.parametrize("lesson", sorted({lesson for lesson, _ in EXERCISES}))
def test_no_check_says_what_the_hints_say(lesson):
    cells = json.loads(NOTEBOOK[lesson].read_text(encoding="utf-8"))["cells"]
    source = (ROOT / "helpers" / "checks" / f"{lesson.lower()}.py").read_text(encoding="utf-8")
    assert let_out(cells, source) == []


def test_what_a_check_lets_out_is_found():
    def cell(kind: str, source: str, *tags: str) -> dict:
        return {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}}

    cells = [
        cell("markdown", "Return `json.dumps`, and keep `the message`."),
        cell("markdown", "<details>Tries are retries plus one. `m = copy.deepcopy(m)`</details>"),
        cell("code", "def f_solution(m):\n    return min(json.dumps(m), 60)", "solution"),
    ]
    source = '''"""Use copy.deepcopy."""
raise Hint("Work on a copy: copy.deepcopy.")
raise Hint(f"With {on}, tries are retries plus one.")
raise Hint("At most sixty: min().")
raise Hint("The content comes from json.dumps.")
raise Hint("The message must stay as it was.")
'''
    assert [piece for piece, _ in let_out(cells, source)] == [
        "copy.deepcopy",
        "min(",
        "tries are retries plus one",
    ]


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
