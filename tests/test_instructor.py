"""Release and grade: a class with everything that goes wrong, each submission for itself."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers.settings import CourseError

pytestmark = pytest.mark.needs("instructor")

RIGHT_COST = """\
def cost(calls, prices):
    sent = sum(call["prompt_tokens"] for call in calls)
    written = sum(call["completion_tokens"] for call in calls)
    return (sent * prices["in"] + written * prices["out"]) / 1_000_000"""
RIGHT_LEAKED = """\
def leaked(requests, secrets):
    said = json.dumps(requests, ensure_ascii=False).replace("\\\\", "")
    return [secret for secret in secrets if secret in said]"""


def code(name: str, source: str, *tags: str):
    cell = new_code_cell(source, metadata={"tags": list(tags)})
    cell["id"] = name
    return cell


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> Path:
    """A lesson in our format with two exercises of L01, which need no service."""
    path = tmp_path_factory.mktemp("lesson") / "L01_small.ipynb"
    cells = [
        code("start", 'import json\nfrom helpers.lesson import Lesson\nlesson = Lesson("L01")'),
        code("e1", "def cost(calls, prices):\n    ...", "exercise"),
        code("c1", 'lesson.check("cost", cost)', "check"),
        code("s1", RIGHT_COST.replace("def cost", "def cost_solution"), "solution"),
        code("use", 'cost_solution([], {"in": 1, "out": 1})'),
        code("e2", "def leaked(requests, secrets):\n    ...", "exercise"),
        code("c2", 'lesson.check("leaked", leaked)', "check", "optional"),
        code("s2", RIGHT_LEAKED.replace("def leaked", "def leaked_solution"), "solution"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(scope="module")
def course(lesson, tmp_path_factory) -> Path:
    from helpers.instructor import release

    folder = tmp_path_factory.mktemp("course")
    release.make_course(folder, [lesson])
    return folder


@pytest.fixture(scope="module")
def released(course) -> Path:
    return course / "release" / "L01" / "L01_small.ipynb"


def answered(path: Path, cost: str = RIGHT_COST, leaked: str = RIGHT_LEAKED):
    """The released notebook with these answers."""
    notebook = nbformat.read(path, as_version=4)
    cells = {c.metadata.get("nbgrader", {}).get("grade_id"): c for c in notebook.cells}
    cells["exercise-cost"].source = cost
    cells["exercise-leaked"].source = leaked
    return notebook


def source(path: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


# --- release ------------------------------------------------------------------------------


def test_release_has_stubs_and_checks_but_neither_solutions_nor_hidden_tests(released):
    text = source(released)
    assert "def cost(calls, prices):\n    ..." in text
    assert 'lesson.check("cost", cost)' in text
    for secret in ("def cost_solution", "def leaked_solution", "score(", "HIDDEN", "token"):
        assert secret not in text


def test_release_marks_exercises_checks_and_solutions_for_nbgrader(released):
    cells = nbformat.read(released, as_version=4).cells
    marked = {
        meta["grade_id"]: (meta["grade"], meta["solution"], meta["locked"], meta.get("points"))
        for cell in cells
        if (meta := cell.metadata.get("nbgrader"))
    }
    assert marked == {
        "exercise-cost": (False, True, False, None),
        "check-cost": (True, False, True, 1),
        "solution-cost": (False, False, True, None),
        "exercise-leaked": (False, True, False, None),
        "check-leaked": (True, False, True, 0),  # optional: seen, without points
        "solution-leaked": (False, False, True, None),
    }


def test_every_lesson_with_exercises_can_be_released():
    from helpers import notebooks
    from helpers.instructor import release

    with_exercises = [
        path.stem.split("_")[0]
        for path in notebooks.find()
        if any(
            "exercise" in c["metadata"].get("tags", [])
            for c in json.loads(path.read_text("utf-8"))["cells"]
        )
    ]
    assert with_exercises
    assert [release.lesson_id(path) for path in release.gradable()] == with_exercises
    for path in release.gradable():
        names = [re.sub("^check-", "", release._grade_id(c)) for c in release.prepare(path).cells]
        checks = re.findall(r'\.check\("([^"]+)", \w+\)', source(path))
        assert [n for n in dict.fromkeys(checks) if n not in names] == []


def test_a_withheld_solution_says_so():
    from helpers.withheld import withheld

    stand_in = withheld("cost_solution")
    for use in (lambda: stand_in([], {}), lambda: stand_in["x"], lambda: stand_in.model):
        with pytest.raises(CourseError, match="not part of this release"):
            use()
    assert "cost_solution" in repr(stand_in)


def test_a_withheld_solution_keeps_imports_and_the_choice_of_the_learners_work():
    from helpers.instructor import release

    cell = """\
import json

def take_solution(text):
    return json.loads(text)

LIMITS_solution = {"a": 1}
lesson.check("take", take_solution)
take_it = lesson.use("take", take, take_solution)"""
    assert release.withheld(cell).splitlines()[1:] == [
        "from helpers.withheld import withheld",
        "import json",
        'take_solution = withheld("take_solution")',
        'LIMITS_solution = withheld("LIMITS_solution")',
        'take_it = lesson.use("take", take, take_solution)',
    ]


# --- a class ------------------------------------------------------------------------------

LOOP = "def cost(calls, prices):\n    while True:\n        pass"
STUBBORN = """\
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    pass"""
HUNGRY = "def leaked(requests, secrets):\n    return len(bytearray(40_000_000_000))"
GREEDY = """\
import subprocess, sys
eat = "x = [bytearray(b'b') * 150_000_000 for _ in range(2)]; input()"
children = [subprocess.Popen([sys.executable, "-c", eat], stdin=subprocess.PIPE) for _ in range(4)]
[child.wait() for child in children]"""
KILLER = RIGHT_COST + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
TALKER = RIGHT_LEAKED + "\nfor i in range(1_000_000):\n    print('x' * 1000)"
CHEAT = """\
from helpers import lesson as course
from helpers.instructor import score as scoring
course.Lesson.check = lambda self, name, learner: print("passed")
course._checks.clear()
scoring.score = lambda *a: None
scoring._decide = lambda *a: None
get_ipython().set_custom_exc((Exception,), lambda *a, **k: None)
def cost(calls, prices):
    return 0"""
SPY = """\
import os, pathlib, socket
seen = []
try:
    socket.create_connection(("192.0.2.1", 80), timeout=3)
    seen.append("the network")
except OSError:
    pass
import helpers
for place in (pathlib.Path(helpers.__file__).parent, pathlib.Path(SUBMISSIONS)):
    try:
        (place / "written-by-a-learner").write_text("x")
        seen.append("written: " + place.name)
    except OSError:
        pass
if pathlib.Path(SUBMISSIONS).is_dir() and os.listdir(SUBMISSIONS):
    seen.append("other submissions")
if len([p for p in os.listdir("/proc") if p.isdigit()]) > 20:
    seen.append("other processes")
print("seen:", seen)
assert not seen, seen
"""


@pytest.fixture(scope="module")
def submissions(released, lesson, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("submissions")

    def hand_in(learner: str, notebook, name: str = "L01_small.ipynb") -> None:
        path = folder / learner / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(notebook, bytes):
            path.write_bytes(notebook)
        else:
            nbformat.write(notebook, path)

    hand_in("Zoë O'Brien [2]", answered(released))
    hand_in("=nobody", nbformat.read(released, as_version=4))
    hand_in("loop", answered(released, LOOP, TALKER))
    hand_in("stubborn", answered(released, STUBBORN))
    hand_in("greedy", answered(released, GREEDY))
    hand_in("killer", answered(released, RIGHT_COST, KILLER.replace("def cost", "def other")))
    hand_in("cheat", answered(released, CHEAT))
    spy = SPY.replace("SUBMISSIONS", repr(str(folder)))
    hand_in("spy", answered(released, spy + RIGHT_COST))

    editor = answered(released, "def cost(calls, prices):\n    return 0")
    kept = [
        c
        for c in editor.cells
        if not c.metadata.get("nbgrader", {}).get("grade_id") == "check-leaked"
    ]
    editor.cells = kept
    for cell in editor.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "check-cost":
            cell.source = "print('passed')"
            cell.metadata.nbgrader["points"] = 100
    hand_in("editor", editor)

    # Somebody worked in the course's own notebook, without nbgrader's metadata.
    own = nbformat.read(lesson, as_version=4)
    own.cells[1].source = RIGHT_COST
    own.cells[5].source = HUNGRY
    hand_in("own", own)

    hand_in("word", b"PK\x03\x04 not a notebook", "L01 final.docx")
    hand_in("broken", b'{"cells": [{"cell_type": "code"', "L01_small.ipynb")
    hand_in("deep", b"[" * 100_000, "L01_small.ipynb")
    other = new_notebook(cells=[new_code_cell("print('hello')")])
    hand_in("other", other)
    (folder / "absent").mkdir()
    return folder


# Time enough for an honest cell on a busy machine; two cells in this class use it up.
LIMITS = {"seconds": 300, "cell_seconds": 10, "memory_mb": 700, "output_kb": 200}


@pytest.fixture(scope="module")
def graded(course, submissions, tmp_path_factory):
    """The class, graded by two workers, one of which is killed after the first result."""
    import psutil

    from helpers.instructor import classroom, sandbox

    out = tmp_path_factory.mktemp("report")
    killed = []

    def kill_one(result) -> None:
        if killed:
            return
        workers = [
            process
            for process in psutil.Process().children()
            if "spawn_main" in " ".join(process.cmdline())
        ]
        killed.append(workers[-1].pid)
        workers[-1].kill()

    plan = classroom.Plan(
        submissions, out, release=course, workers=2, limits=sandbox.Limits(**LIMITS), services={}
    )
    whole = classroom.grade(plan, kill_one)
    assert killed
    return plan, whole, {result["learner"]: result for result in whole.results}


def test_a_worker_that_is_killed_loses_nothing(graded, submissions):
    _, whole, of = graded
    assert set(of) == {p.name for p in submissions.iterdir()} - {"absent"}
    assert len(whole.results) == len(of)
    assert [r["reason"] for r in whole.results if "worker" in r["reason"]] == []


def test_right_answers_have_all_points_and_stubs_none(graded):
    _, _, of = graded
    right = of["Zoë O'Brien [2]"]
    assert (right["status"], right["score"], right["most"], right["notes"]) == ("graded", 1, 1, [])
    assert [e["passed"] for e in right["exercises"].values()] == [True, True]
    empty = of["=nobody"]
    assert empty["score"] == 0
    assert [e["said"] for e in empty["exercises"].values()] == ["not filled in."] * 2
    assert of["own"]["score"] == 1


@pytest.mark.parametrize(
    "learner, said",
    [
        ("loop", "took longer than 10 seconds"),
        ("stubborn", "could not be interrupted"),
        ("greedy", "more than 700 MB of memory"),
        ("killer", "ended the kernel"),
        ("loop", "showed more than 200 kB"),
    ],
)
def test_a_limit_costs_one_submission_and_is_said_plainly(graded, learner, said):
    _, _, of = graded
    assert said in "; ".join(of[learner]["notes"])
    assert of[learner]["exercises"]["cost"]["passed"] is (learner == "killer")


def test_too_much_memory_in_one_cell_is_an_error_of_that_cell(graded):
    _, _, of = graded
    assert "MemoryError" in of["own"]["exercises"]["leaked"]["said"]
    assert of["own"]["exercises"]["cost"]["passed"]


def test_what_came_before_the_end_counts(graded):
    _, _, of = graded
    assert of["killer"]["score"] == 1
    assert of["killer"]["exercises"]["leaked"]["said"].startswith("not run")
    assert of["loop"]["exercises"]["leaked"]["passed"]  # it is defined before it talks


def test_changed_checks_are_put_back_in_the_file_and_in_memory(graded):
    _, _, of = graded
    assert (of["editor"]["score"], of["editor"]["most"]) == (0, 1)
    assert of["editor"]["notes"] == [
        "the check of cost had been changed and was put back",
        "the check of leaked was missing and was put back",
    ]
    assert of["editor"]["exercises"]["leaked"]["passed"]
    assert of["cheat"]["score"] == 0
    assert "the check of cost: it did not come to its verdict" in of["cheat"]["notes"][0]


@pytest.mark.needs("netns")
def test_a_submission_sees_neither_network_nor_others(graded, submissions):
    _, _, of = graded
    assert of["spy"]["exercises"]["cost"]["passed"], of["spy"]
    assert not list(submissions.rglob("written-by-a-learner"))


@pytest.mark.parametrize(
    "learner, said",
    [
        ("word", "L01 final.docx is not a notebook"),
        ("broken", "L01_small.ipynb is not a notebook"),
        ("deep", "L01_small.ipynb is not a notebook"),
        ("other", "none of this lesson's exercises is in it"),
    ],
)
def test_what_is_not_a_notebook_is_reported(graded, learner, said):
    _, _, of = graded
    assert (of[learner]["status"], of[learner]["reason"]) == ("not graded", said)
    assert (of[learner]["score"], of[learner]["most"]) == (0, 1)


def test_nothing_of_a_submission_goes_on_running(graded):
    import psutil

    from helpers.instructor import sandbox

    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(sandbox.MARK):
                left.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    assert left == []


# --- the report ---------------------------------------------------------------------------


def test_the_gradebook_has_a_row_per_learner(graded, submissions):
    plan, _, _ = graded
    with open(plan.out / "grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = {row["learner"]: row for row in csv.DictReader(file)}
    assert set(rows) == {p.name for p in submissions.iterdir()} - {"=nobody"} | {"'=nobody"}
    assert (rows["Zoë O'Brien [2]"]["L01"], rows["Zoë O'Brien [2]"]["L01 of"]) == ("1", "1")
    assert rows["absent"]["remarks"] == "L01: nothing handed in"
    assert "not a notebook" in rows["word"]["remarks"]
    with open(plan.out / "exercises.csv", encoding="utf-8-sig", newline="") as file:
        outcomes = {(r["learner"], r["exercise"]): r["outcome"] for r in csv.DictReader(file)}
    assert outcomes["editor", "cost"] == "not right yet"
    assert outcomes["'=nobody", "cost"] == "not filled in"
    assert outcomes["word", "cost"] == "not run"


def test_the_report_has_a_described_plot_per_exercise_and_loads_nothing(graded):
    plan, whole, _ = graded
    page = (plan.out / "report.html").read_text("utf-8")
    titles = re.findall(r'<svg viewBox.*?role="img".*?<title id=".*?">(.*?)</title>', page, re.S)
    assert [title.split(":")[0] for title in titles] == ["L01, cost", "L01, leaked"]
    total = len(whole.results)
    assert all(f"of {total} submissions" in title for title in titles)
    assert re.findall(r"(?:src|href)=[\"']https?:", page) == []
    links = re.findall(r'href="(feedback/[^"]+)"', page)
    assert len(links) == total
    assert all((plan.out / link).is_file() for link in links)


def test_feedback_says_what_the_check_said_and_keeps_solutions(graded):
    plan, _, of = graded
    page = (plan.out / of["editor"]["feedback_file"]).read_text("utf-8")
    assert "was missing and was put back" in page
    assert of["editor"]["exercises"]["cost"]["said"][:20] in re.sub(r"<[^>]+>", "", page)
    for secret in ("cost_solution(calls", "leaked_solution(requests", "helpers.instructor.score"):
        assert secret not in re.sub(r"<[^>]+>", "", page)
    assert "is not a notebook" in (plan.out / of["word"]["feedback_file"]).read_text("utf-8")


# --- going on, and elsewhere --------------------------------------------------------------


def test_it_goes_on_where_it_was(graded, submissions, monkeypatch):
    """Only what is new or was lost is graded: one result taken away, one handed in anew."""
    import dataclasses

    from helpers.instructor import classroom, grading

    plan, before, _ = graded
    (lost,) = (plan.out / "results").glob("L01-own-*.json")
    lost.unlink()
    path = submissions / "word" / "L01 final.docx"
    path.write_bytes(b"still not a notebook")
    again = []

    def noting(job):
        again.append(job["learner"])
        return original(job)

    original = grading.grade_one
    monkeypatch.setattr(grading, "grade_one", noting)
    whole = classroom.grade(dataclasses.replace(plan, workers=0))
    assert sorted(again) == ["own", "word"]
    scores = {r["learner"]: r["score"] for r in whole.results}
    assert scores == {r["learner"]: r["score"] for r in before.results}


def test_workers_of_a_scheduler_that_runs_elsewhere(graded, tmp_path, submissions):
    from distributed import LocalCluster

    from helpers.instructor import classroom

    plan, _, _ = graded
    (tmp_path / "in" / "word").mkdir(parents=True)
    (tmp_path / "in" / "word" / "L01.txt").write_text("no notebook")
    with LocalCluster(
        1, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        there = classroom.Plan(
            tmp_path / "in",
            tmp_path / "out",
            release=plan.release,
            scheduler=cluster.scheduler_address,
            services={},
        )
        (result,) = classroom.grade(there).results
        assert result["reason"] == "L01.txt is not a notebook"
        assert cluster.scheduler_info["workers"]  # it is somebody else's: left running


@pytest.mark.parametrize("lost", ["release", "gradebook.db"])
def test_an_interrupted_preparation_is_made_again(
    lost, course, lesson, tmp_path, monkeypatch, capsys
):
    """``source/`` was written, and nbgrader did not come to its end."""
    from helpers.instructor import classroom

    monkeypatch.setattr(classroom.notebooks, "find", lambda lessons: [lesson])
    mine = tmp_path / "course"
    shutil.copytree(course, mine)
    theirs = classroom.Plan(tmp_path, tmp_path, release=mine)
    if lost == "release":
        shutil.rmtree(mine / lost)
        assert classroom._course(theirs, tmp_path, ["L01"]) == (mine, [])  # it was handed out
    else:
        (mine / lost).unlink()
        with pytest.raises(CourseError, match="is not complete"):
            classroom._course(theirs, tmp_path, ["L01"])
    plan = classroom.Plan(tmp_path, tmp_path)
    assert classroom._course(plan, tmp_path, ["L01"]) == (mine, [])
    assert capsys.readouterr().out == "Preparing L01 with nbgrader.\n"
    assert classroom._assignment(mine, "L01")["parts"]["gradebook"]
    assert classroom._course(plan, tmp_path, ["L01"]) == (mine, [])
    assert capsys.readouterr().out == ""  # not a second time


def test_an_old_release_does_not_hide_an_interruption(course, lesson, tmp_path, monkeypatch):
    """The lesson has changed, and its new source was all that came to be."""
    from helpers.instructor import classroom, release

    def interrupted(folder, name):
        raise KeyboardInterrupt

    changed = tmp_path / lesson.name
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells[0].source += "\n# another"
    nbformat.write(notebook, changed)
    monkeypatch.setattr(classroom.notebooks, "find", lambda lessons: [changed])
    shutil.copytree(course, tmp_path / "course")
    plan, made = classroom.Plan(tmp_path, tmp_path), []
    monkeypatch.setattr(release, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classroom._course(plan, tmp_path, ["L01"])
    monkeypatch.setattr(release, "generate", lambda folder, name: made.append(name))
    classroom._course(plan, tmp_path, ["L01"])
    assert made == ["L01"]


@pytest.mark.parametrize(
    ("spaces", "says"),
    [
        (("unshare",), ["a network of loopback only", "no view of other processes"]),
        ((), ["memory and output only", "no network namespaces here", "reach the internet",
              "read and change the files", "see other processes"]),
    ],
)  # fmt: skip
def test_what_keeps_submissions_apart_is_said_plainly(spaces, says, monkeypatch):
    from helpers.instructor import sandbox

    monkeypatch.setattr(sandbox, "namespaces", lambda: spaces)
    assert all(part in sandbox.isolation() for part in says)


def test_a_folder_without_submissions_is_explained(tmp_path):
    from helpers.instructor import classroom

    with pytest.raises(CourseError, match="no submissions"):
        classroom.find(tmp_path, [])
    with pytest.raises(CourseError, match="no folder"):
        classroom.find(tmp_path / "nowhere", [])


def test_a_link_is_not_followed(tmp_path):
    from helpers.instructor import classroom

    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "L01.ipynb").symlink_to("/etc/hostname")
    (found,) = classroom.find(tmp_path, [])
    assert classroom._data(found.path) == b""
    assert os.path.islink(found.path)


def test_nbgrader_stays_out_of_the_courses_jupyterlab():
    """Installing it switches on panels that look for a class's exchange folder."""
    import subprocess
    import sys

    from helpers import cli

    code = (
        "import json; from jupyter_core.paths import jupyter_config_path;"
        "from jupyter_server.extension.config import ExtensionConfigManager;"
        "from jupyterlab_server.config import get_page_config;"
        "manager = ExtensionConfigManager(read_config_path=jupyter_config_path());"
        "found = manager.get_jpserver_extensions();"
        "print(json.dumps([found, get_page_config(jupyter_config_path())['disabledExtensions']]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env=cli.jupyter_env(), capture_output=True, text=True
    )
    servers, disabled = json.loads(said.stdout)
    ours = {name: on for name, on in servers.items() if name.startswith("nbgrader")}
    assert ours and not any(ours.values())
    assert "@jupyter/nbgrader" in disabled
