"""Lessons as a batch, through papermill: parameters of the right kind, failures, the summary."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers.instructor import batch
from helpers.settings import NOTEBOOKS, ROOT, CourseError

PARAMETERS = 'MODEL = "one"\nTIMES = 2\nSHARE = 0.5\nCAREFUL = False'
SHOW = """\
import json, os
names = ("OPENAI_API_KEY", "COURSE_PROGRESS", "COURSE_SKILL", "BACKEND")
print(json.dumps([MODEL, TIMES, SHARE, CAREFUL, {n: os.environ.get(n) for n in names}]))
print(os.getcwd())"""


@pytest.fixture
def lesson(tmp_path) -> Path:
    path = tmp_path / "lessons" / "L91_small.ipynb"
    path.parent.mkdir()
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(SHOW),
        new_code_cell("if MODEL == 'broken':\n    raise ValueError('no such model')"),
        new_code_cell("print('still here')"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def shown(path: Path) -> tuple[list, str]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    (text,) = [
        "".join(o["text"])
        for cell in cells
        if "".join(cell["source"]) == SHOW
        for o in cell["outputs"]
    ]
    values, folder = text.strip().splitlines()
    return json.loads(values), folder


def test_two_models_in_one_command_side_by_side(lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-notebooks")
    out = tmp_path / "out"
    pairs = [["MODEL", "7"], ["MODEL", "broken"], ["TIMES", "3"], ["CAREFUL", "true"]]
    assert batch.main(out, [str(lesson)], pairs, 60) == 1

    folders = sorted(p.name for p in out.iterdir() if p.is_dir())
    assert [name.split("_")[0] for name in folders] == ["MODEL=7", "MODEL=broken"]
    values, folder = shown(out / folders[0] / lesson.name)
    assert values[:4] == ["7", 3, 0.5, True]  # papermill's own -p would give 7 and "true"
    assert folder == str(lesson.parent)
    assert values[4]["OPENAI_API_KEY"] is None
    assert values[4]["COURSE_PROGRESS"].startswith(str(out))
    assert values[4]["COURSE_SKILL"] == "rehearsal"

    said = capsys.readouterr().out
    assert "L91 (MODEL=7, TIMES=3, CAREFUL=true): fine" in said
    assert "1 cells failed" in said
    page = (out / "summary.html").read_text("utf-8")
    assert "ValueError: no such model" in page
    assert page.count("none failed") == 1
    assert re.findall(r"(?:src|href)=[\"']https?:", page) == []
    for link in re.findall(r'href="([^"]+\.ipynb)"', page):
        assert (out / link.replace("%2C", ",").replace("%3D", "=")).is_file()
    # The cells after the one that failed were run as well.
    broken = json.loads((out / folders[1] / lesson.name).read_text("utf-8"))
    assert "still here" in str(broken["cells"][-1]["outputs"])


def test_another_endpoint_for_everything(lesson, tmp_path):
    out = tmp_path / "out"
    (done,) = batch.run(out, [str(lesson)], [["BACKEND", "http://127.0.0.1:9/v1"]], 60)
    assert done.fine and done.unused == []
    values, _ = shown(out / lesson.name)
    assert values[4]["BACKEND"] == "http://127.0.0.1:9/v1"


@pytest.mark.slow
def test_one_command_compares_two_models(tmp_path):
    """As INSTRUCTORS.md says: each model behind a proxy of its own, asked by the same lesson."""
    from nbformat.v4 import new_code_cell, new_notebook

    from helpers.backend import serve
    from helpers.settings import MINI

    cells = [
        new_code_cell('MODEL = "task-api-model"', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from helpers.clients import DETERMINISTIC, openai_client\n"
            "from helpers.evaluation import load_cases, score\n"
            "from helpers.tasks import tool_schemas\n"
            "client, right = openai_client(), 0\n"
            "for case in load_cases('dev', 'reference'):\n"
            "    reply = client.chat.completions.create(model=MODEL, messages=case.messages,\n"
            "        tools=tool_schemas(case.tools), max_tokens=100, **DETERMINISTIC)\n"
            "    right += bool(score(case, reply))\n"
            "print('right:', right)"
        ),
    ]
    lesson = tmp_path / "L92_compare.ipynb"
    nbformat.write(new_notebook(cells=cells), lesson)
    out = tmp_path / "out"
    with serve(MINI, alias="task-api-model") as small:
        done = batch.run(
            out, [str(lesson)], [["BACKEND", "llama.cpp"], ["BACKEND", small.url]], 300
        )
    assert all(run.fine for run in done), [run.problem or run.failed for run in done]
    right = {}
    for folder in (path for path in out.iterdir() if path.is_dir()):
        said = json.loads((folder / lesson.name).read_text("utf-8"))["cells"][-1]["outputs"]
        right["llama" in folder.name] = int(re.search(r"right: (\d+)", str(said))[1])
    assert right[True] > right[False] + 5


def test_a_name_or_a_kind_that_no_lesson_has_is_explained(lesson, tmp_path):
    with pytest.raises(CourseError, match="MODLE") as caught:
        batch.run(tmp_path / "out", [str(lesson)], [["MODLE", "x"]])
    assert "CAREFUL, MODEL, SHARE, TIMES" in caught.value.why
    with pytest.raises(CourseError, match="TIMES=many"):
        batch.run(tmp_path / "out", [str(lesson)], [["TIMES", "many"]])


@pytest.mark.parametrize(
    "text, default, value",
    [
        ("true", "text", "true"),
        ("true", False, True),
        ("3", 2, 3),
        ("3", 0.5, 3.0),
        ("[1, 2]", [0], [1, 2]),
        ("{in: 1}", {"in": 2}, {"in": 1}),
        ("x", None, "x"),
    ],
)
def test_values_are_of_the_kind_of_the_default(text, default, value):
    got = batch.typed("NAME", text, default)
    assert (got, type(got)) == (value, type(value))


def test_every_lesson_has_parameters_that_can_be_read():
    from helpers import notebooks

    for path in notebooks.find():
        assert batch.defaults(notebooks._read(path)), path.name


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells of a notebook print, without those whose output may vary."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    shown = [c for c in cells if "nbval-ignore-output" not in c.metadata.get("tags", [])]
    return ["".join(o.get("text", "") for o in c.outputs) for c in shown]


@pytest.mark.slow
def test_papermill_itself_runs_a_lesson_from_the_root(tmp_path):
    """The command of README.md: another working directory than JupyterLab's and the tests'."""
    (lesson,) = NOTEBOOKS.glob("L03_*.ipynb")
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(lesson.relative_to(ROOT)), str(out)],
        cwd=ROOT,
        env={
            **os.environ,
            "COURSE_PROGRESS": str(tmp_path / "progress.json"),
            "COURSE_SKILL": "rehearsal",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got, committed = (printed(nbformat.read(path, 4)) for path in (out, lesson))
    assert got == committed and any(committed)
