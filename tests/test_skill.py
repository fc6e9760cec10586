"""The skill: how lessons write it, whose words win, and what the finished reference holds."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest

from helpers import docs, triggers
from helpers import skill as sk
from helpers.doctor import find_chromium
from helpers.faults import FAULTS
from helpers.settings import NOTEBOOKS, ROOT, CourseError
from helpers.skill import HEADER, INTRO, LOG, MAX_LINES, NAME, REFERENCE, STATE, Skill, contents

# What the growth steps take from the cells before them, as those cells count it. That they do is
# checked where the notebooks run; here the steps run alone, in any order.
_TITLES = ["see the doctor", "sell the flat", "look for a lawyer"]
_TOOLS = types.SimpleNamespace(body={"tools": [{}] * 5})
# What came through LiteLLM, fault by fault: these as answers, after the others the right call.
_USELESS = ("empty", "unknown tool", "bad arguments", "wrong call")
_SEEN = [[name, "a model", "(nothing)" if name in _USELESS else 'complete_task({"task_id": 14})']
         for name in FAULTS]  # fmt: skip
# L04's bad calls by the stage that stopped each, and L05's strangers at two doors.
COUNTED = {
    "L01": {"TITLES": _TITLES, "sent": [{"sent": ["What is pending?"]}, {"sent": _TITLES}]},
    "L02": {
        "MODEL": "task-api-model",
        "arrived": {"task-api-model": types.SimpleNamespace(body={}), "chat-prefix": _TOOLS},
    },
    "L03": {"busy_saw": [3, 1]},
    "L04": {"stopped": {False: ["nowhere", "nowhere", "nowhere"]}},
    "L05": {"STRANGERS": range(5), "let_in": [5, 0]},
    "L06": {"FAULTS": FAULTS, "seen": _SEEN},
    "L07": {"made": [2, 1]},
}


def cells(lesson: str) -> list[str]:
    """The cells of a lesson that write the skill; of L00, all that are not optional."""
    (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if lesson == "L00":
        return [c.source for c in code if "optional" not in c.metadata.get("tags", [])]
    return [c.source for c in code if "skill" in c.metadata.get("tags", [])]


def finished() -> list[str]:
    """The lessons that have a growth step."""
    names = sorted(path.name[:3] for path in NOTEBOOKS.glob("L[0-9]*.ipynb"))
    return ["L00", *(name for name in names[1:] if cells(name))]


LESSONS = finished()


@pytest.fixture(scope="session")
def slow_parts():
    """What L00 asks of other processes, asked once and remembered."""
    asked: dict[tuple, object] = {}

    def once(function):
        def remembered(*args, **kwargs):
            key = (function.__name__, *(str(a) for a in args if not isinstance(a, Skill)))
            if key not in asked:
                asked[key] = function(*args, **kwargs)
            return asked[key]

        return remembered

    return once(Skill.run), once(docs._command)


@pytest.fixture
def grow(tmp_path, monkeypatch, slow_parts):
    """``grow("L02")`` runs a lesson's growth step on a skill in an empty folder."""
    home = tmp_path / "mine" / NAME
    run, command = slow_parts
    monkeypatch.setenv("COURSE_SKILL", str(home))
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(Skill, "run", run)
    monkeypatch.setattr(docs, "_command", command)
    for name in ("COURSE_TODAY", "NO_PROXY", "no_proxy", "OPENAI_AGENTS_DISABLE_TRACING",
                 "OPENAI_AGENTS_DONT_LOG_TOOL_DATA"):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))  # undone afterwards

    def step(lesson: str, **names) -> str:
        space = {**COUNTED.get(lesson, {}), **names}
        with contextlib.redirect_stdout(io.StringIO()) as out:
            for source in cells(lesson):
                exec(compile(source, f"{lesson} cell", "exec"), space)
        return out.getvalue()

    step.home = home
    return step


@pytest.fixture
def skill(tmp_path):
    said: list[str] = []
    made = Skill("L00", tmp_path / NAME, echo=said.append)
    made.said = said
    return made


def text_of(skill: Skill) -> str:
    return (skill.path / "SKILL.md").read_text(encoding="utf-8")


# --- the reference is what the lessons make -----------------------------------------------------


@pytest.mark.slow
def test_the_growth_steps_reproduce_the_reference(grow):
    for lesson in LESSONS:
        said = grow(lesson)
        assert f"It is the reference as it stands after {lesson}." in said, said
        assert "Valid." in said
    assert contents(grow.home) == contents(REFERENCE)


@pytest.mark.slow
def test_again_and_in_any_order(grow, monkeypatch):
    """Each lesson alone, twice, and before the others: the end is the same."""
    monkeypatch.setattr(Skill, "test", lambda self, lesson="": (3, ""))  # done once, elsewhere
    for order in list(itertools.permutations(LESSONS[:4]))[::5]:
        shutil.rmtree(grow.home, ignore_errors=True)
        for lesson in order:
            said = grow(lesson)
            before = contents(grow.home)
            again = grow(lesson)
            assert contents(grow.home) == before, (order, lesson)
            assert "written" not in again
            assert "Valid." in said, said
        for lesson in LESSONS[4:]:
            grow(lesson)
        assert contents(grow.home) == contents(REFERENCE), order


@pytest.mark.slow
def test_a_finished_skill_stays_as_it_is(grow):
    """Who has done the course and runs a lesson again loses nothing."""
    shutil.copytree(REFERENCE, grow.home, ignore=shutil.ignore_patterns("__pycache__"))
    for lesson in LESSONS:
        grow(lesson)
    assert contents(grow.home) == contents(REFERENCE)


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS[1:])
def test_alone_and_then_catching_up(grow, lesson):
    said = grow(lesson)
    missing = [name for name in LESSONS if name < lesson]
    assert f"Not in it yet: {', '.join(missing)}. skill.catch_up()" in said
    mine = Skill(lesson, echo=lambda line: None)
    mine.catch_up()
    assert mine.missing() == []
    assert mine.diff() == ""
    after = contents(grow.home)
    mine.catch_up()
    assert contents(grow.home) == after
    for name in LESSONS:
        grow(name)
    assert contents(grow.home) == contents(REFERENCE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(find_chromium() is not None, reason="seen in test_browser.py")
def test_the_notebooks_themselves_reproduce_the_reference(tmp_path, monkeypatch):
    """Every finished lesson, from its first cell to its last, on one skill.

    Where there is a browser, test_browser.py sees the same after the runs that it makes anyway.
    """
    from nbclient import NotebookClient

    from helpers import services

    services.ensure(wait=("backend", "proxy"), quiet=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    env |= {
        "COURSE_SKILL": str(tmp_path / NAME),
        "COURSE_PROGRESS": str(tmp_path / "progress.json"),
        "PYTHONPATH": str(ROOT),
    }
    for lesson in LESSONS:
        (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
        )
        client.execute(env=env)
    assert contents(tmp_path / NAME) == contents(REFERENCE)


# --- whose words win ----------------------------------------------------------------------------


def test_units(skill):
    skill.header(NAME, "What. When: never.")
    skill.intro("# Title\n\nFirst.")
    skill.section("One", "A.\n\n```python\n## no heading\n```")
    skill.section("Two", "B.")
    assert list(sk.parse(text_of(skill))) == [HEADER, INTRO, "SKILL.md ## One", "SKILL.md ## Two"]
    assert skill.said[-1] == "SKILL.md ## Two: written."
    skill.section("Two", "B.")
    assert skill.said[-1] == "SKILL.md ## Two: as it was."
    skill.section("Two", "C.")
    assert skill.said[-1] == "SKILL.md ## Two: brought up to date."
    skill.section("Between", "D.", after="One")
    assert list(sk.parse(text_of(skill)))[2:] == [
        "SKILL.md ## One",
        "SKILL.md ## Between",
        "SKILL.md ## Two",
    ]
    # A heading of the learner's that is there twice, and a file that is no text: nothing is lost.
    path = skill.path / "SKILL.md"
    path.write_text(
        text_of(skill) + "\n## Mine\n\nFirst.\n\n## Mine\n\nSecond.\n", encoding="utf-8"
    )
    (skill.path / "assets").mkdir()
    (skill.path / "assets" / "logo.png").write_bytes(b"\x89PNG\xff")
    skill.section("Two", "E.")
    assert "First." in text_of(skill) and "Second." in text_of(skill)
    assert text_of(skill).count("## Mine") == 2


def test_a_learners_words_are_left_alone(skill):
    skill.header(NAME, "What.")
    skill.section("One", "The course's words.")
    skill.write("references/a.md", "The course's file.")
    for name in ("SKILL.md", "references/a.md"):
        file = skill.path / name
        file.write_text(file.read_text().replace("The course's", "My own"))
    skill.section("One", "The course's new words.")
    skill.write("references/a.md", "The course's new file.")
    assert all(sk.YOURS in line for line in skill.said[-2:])
    assert "My own words." in text_of(skill)
    assert (skill.path / "references/a.md").read_text() == "My own file.\n"
    skill.section("One", "The course's words.")  # and not at a later time either
    assert "My own words." in text_of(skill)
    skill.section("One", "Now.", replace=True)
    assert skill.said[-1].endswith("replaced, as you asked.")
    assert "My own" not in text_of(skill)


def test_a_learners_own_section_stays(skill):
    skill.header(NAME, "What.")
    skill.section("One", "A.")
    file = skill.path / "SKILL.md"
    file.write_text(file.read_text() + "\n## Mine\n\nMy section.\n")
    skill.section("Two", "B.", after="One")
    assert text_of(skill).rstrip().endswith("## Two\n\nB.\n\n## Mine\n\nMy section.")


def test_a_spoilt_state_makes_everything_the_learners(skill):
    skill.header(NAME, "What.")
    skill.section("One", "A.")
    for spoilt in ("", "{", "[]", '{"units": 1}'):
        (skill.path / STATE).write_text(spoilt)
        skill.section("One", "B.")
        assert sk.YOURS in skill.said[-1]
        assert "A." in text_of(skill)


def test_corrections(skill, tmp_path):
    skill.header(NAME, "What.")
    skill.section("One", "Before. It is " + "very " * 30 + "wrong. After.")
    wrong, right = "It is " + "very " * 30 + "wrong.", "It is right."
    later = Skill("L02", skill.path, echo=skill.said.append)
    later.correct(wrong, right, because="0 of 3")
    assert "Corrected in SKILL.md ## One." in skill.said
    assert "Before. It is right. After." in text_of(skill)
    assert "0 of 3" in (skill.path / LOG).read_text()
    before = contents(skill.path)
    later.correct(wrong, right, because="0 of 3")
    assert "says so already" in skill.said[-2]
    assert contents(skill.path) == before
    skill.section("One", "Before. " + wrong + " After.")  # L00 again does not bring it back
    assert contents(skill.path) == before
    later.correct(wrong, "It is now righter.", because="0 of 4")  # counted anew
    assert "It is now righter." in text_of(skill)
    log = (skill.path / LOG).read_text()
    assert log.count("## L02") == 1
    assert "0 of 4" in log


def test_a_correction_of_words_that_the_learner_changed(skill):
    skill.header(NAME, "What.")
    skill.section("One", "It is wrong.")
    file = skill.path / "SKILL.md"
    file.write_text(file.read_text().replace("It is wrong.", "I doubt it."))
    Skill("L01", skill.path, echo=skill.said.append).correct("It is wrong.", "Right.", "0 of 1")
    assert "is not in your skill" in skill.said[-2]
    assert "I doubt it." in text_of(skill)
    assert "Right." in (skill.path / LOG).read_text()


def test_a_correction_inside_a_section_with_the_learners_additions(skill):
    skill.header(NAME, "What.")
    skill.section("One", "It is wrong.")
    file = skill.path / "SKILL.md"
    file.write_text(file.read_text().replace("It is wrong.", "It is wrong. But I like it."))
    Skill("L01", skill.path, echo=skill.said.append).correct("It is wrong.", "Right.", "0 of 1")
    assert "Right. But I like it." in text_of(skill)
    skill.section("One", "It is wrong.")  # still the learner's
    assert "Right. But I like it." in text_of(skill)


def test_catching_up_leaves_the_learners_words(tmp_path):
    said: list[str] = []
    mine = Skill("L03", tmp_path / NAME, echo=said.append)
    mine.section("MCP", "My own idea of MCP.")
    file = mine.path / "SKILL.md"
    file.write_text(file.read_text().replace("idea of", "view on"))
    mine.catch_up()
    assert "My own view on MCP." in text_of(mine)
    assert any(line.startswith("SKILL.md ## MCP:") and sk.YOURS in line for line in said)
    assert mine.missing() == []


def test_filled():
    text = """
        A line
        and its end with `code that is kept whole` in it.

        - an item
          that goes on
        - another

        | a | table |
        ```python
        x  =  1
        ```
        """
    assert sk.filled(text) == (
        "A line and its end with `code that is kept whole` in it.\n\n- an item that goes on\n"
        "- another\n\n| a | table |\n```python\nx  =  1\n```"
    )
    long = sk.filled("- " + "word " * 40)
    assert all(len(line) <= sk.WIDTH for line in long.splitlines())
    assert long.splitlines()[1].startswith("  word")
    assert sk.filled(long) == long
    whole = sk.filled("word " * 17 + "`python scripts/a.py --now` word")
    assert "`python scripts/a.py --now`" in whole.replace("\n", "|")


@pytest.mark.parametrize("name", ["SKILL.md", "../outside.md", "/etc/outside"])
def test_only_files_of_the_skill_are_written(skill, name):
    with pytest.raises(CourseError, match="not written"):
        skill.write(name, "x")
    assert not skill.path.exists()


def test_what_is_not_there_is_named(skill):
    with pytest.raises(CourseError, match=r"no file references/none\.md"):
        skill.take("references/none.md")
    with pytest.raises(CourseError, match="is not there"):
        skill.run("scripts/none.py")
    skill.write("scripts/bad.py", "import sys; print('oh'); sys.exit(3)")
    with pytest.raises(CourseError, match="status 3"):
        skill.run("scripts/bad.py")
    assert skill.run("scripts/bad.py", check=False) == "oh\n"


# --- the learner's folder is never touched by a test ----------------------------------------------


def test_tests_rehearse(monkeypatch):
    monkeypatch.delenv("COURSE_SKILL", raising=False)
    assert sk.rehearsing()  # pytest says so in the environment
    assert sk.folder() == ROOT / "skills" / NAME
    monkeypatch.setenv("COURSE_SKILL", "rehearsal")
    assert sk.rehearsing()
    monkeypatch.setattr(sk, "_rehearsals", {})
    said: list[str] = []
    mine = Skill("L02", echo=said.append)
    assert said == []
    assert not mine.path.is_relative_to(ROOT / "skills")
    assert mine.path.parent.name == f"L02-{os.getpid()}"
    assert mine.missing() == []
    assert mine.diff() == ""
    mine.section("Mine", "A.")
    assert Skill("L02").path == mine.path
    assert "## Mine" in text_of(Skill("L02"))  # one rehearsal a process
    monkeypatch.setenv("COURSE_SKILL", str(mine.path))
    assert not sk.rehearsing()


def test_a_rehearsal_removes_what_dead_processes_left(monkeypatch, tmp_path):
    monkeypatch.setattr(sk.settings, "WORK", tmp_path)
    monkeypatch.setattr(sk, "_rehearsals", {})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old, alive = (tmp_path / "rehearsal" / f"L01-{pid}" for pid in (gone.pid, os.getppid()))
    old.mkdir(parents=True)
    alive.mkdir()
    path, fresh = sk._rehearsal("L01")
    assert fresh
    assert not old.exists()
    assert alive.exists()
    assert path.name == NAME


# --- validation, seen failing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "description", "said"),
    [
        ("Agent Integration", "What.", "must be lowercase"),
        ("agent_integration", "What.", "invalid characters"),
        ("agent--integration", "What.", "consecutive hyphens"),
        ("-agent", "What.", "start or end"),
        ("other", "What.", "must match"),
        ("a" * 65, "What.", "64 character"),
        (NAME, "word " * 210, "1024 character"),
        (NAME, "", "description"),
    ],
)
def test_the_validator_refuses(skill, name, description, said):
    skill.header(name, description)
    assert any(said in problem for problem in skill.problems()), skill.problems()


def test_our_own_rules_refuse(skill):
    skill.header(NAME, "What.")
    assert skill.problems() == []
    skill.section("One", "See references/none.md.")
    assert skill.problems() == ["SKILL.md names references/none.md, which is not there."]
    skill.section("One", "\n\n".join(["x"] * 160))
    assert any("under 300" in problem for problem in skill.problems())
    skill.section("One", "x")
    skill.write("scripts/a.py", "")
    assert skill.problems() == ["scripts/a.py has no test beside it."]
    skill.write("scripts/test_a.py", "import unittest\n\nclass A(unittest.TestCase):\n"
                "    def test_a(self):\n        self.fail('on purpose')\n")  # fmt: skip
    passed, wrong = skill.test()
    assert passed == 0
    assert "on purpose" in wrong
    skill.report()
    assert any("on purpose" in line for line in skill.said)


# --- the finished reference -----------------------------------------------------------------------


def test_the_reference_is_valid():
    reference = Skill("L99", REFERENCE)
    assert reference.problems() == []
    assert len(text_of(reference).splitlines()) < MAX_LINES
    run = [shutil.which("agentskills", path=str(Path(sys.executable).parent)), "validate"]
    if run[0]:
        done = subprocess.run([*run, str(REFERENCE)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_each_lesson_brings_a_reference_a_tested_script_and_a_correction():
    state = json.loads((REFERENCE / STATE).read_text(encoding="utf-8"))
    of = {lesson: {u for u, v in state["units"].items() if v["lesson"] == lesson}
          for lesson in LESSONS}  # fmt: skip
    for lesson, units in of.items():
        assert any(unit.startswith("references/") for unit in units), lesson
        scripts = {unit for unit in units if unit.startswith("scripts/")}
        assert {f"scripts/test_{Path(s).name}" for s in scripts if "/test_" not in s} <= scripts
        assert len(scripts) >= 2, lesson
    corrected = {entry["lesson"]: entry for entry in state["corrections"]}
    assert sorted(corrected) == LESSONS[1:]
    text, log = text_of(Skill("L99", REFERENCE)), (REFERENCE / LOG).read_text(encoding="utf-8")
    for entry in corrected.values():
        assert sk._has(text, entry["new"])
        assert not sk._has(sk._replaced(text, entry["new"], ""), entry["old"])  # new may add to old
        assert sk._has(log, entry["because"])
        assert any(c.isdigit() for c in entry["because"])


def test_nothing_lies_in_the_reference_that_no_lesson_wrote():
    units = json.loads((REFERENCE / STATE).read_text(encoding="utf-8"))["units"]
    assert set(Skill("L99", REFERENCE)._units()) == set(units)


def test_the_scripts_own_tests():
    passed, wrong = Skill("L99", REFERENCE).test("all")
    assert wrong == ""
    assert passed >= 12


@pytest.mark.slow
def test_every_claim_of_the_reference_holds_here():
    reference = Skill("L99", REFERENCE)
    claims = json.loads(reference.run("scripts/check_claims.py", "--json", check=False))
    assert [c for c in claims if not c["holds"]] == []
    text = text_of(reference)
    corrected = {entry["old"]: entry["new"] for entry in reference._state()["corrections"]}
    assert all(sk._has(text, corrected.get(c["claim"], c["claim"])) for c in claims)


# --- the prompts ----------------------------------------------------------------------------------


def test_the_evals():
    evals = triggers.load(REFERENCE / "evals" / "evals.json")
    queries = [item["query"] for item in evals["queries"]]
    assert evals["skill_name"] == NAME
    assert [sum(q["should_trigger"] is wanted for q in evals["queries"])
            for wanted in (True, False)] == [20, 20]  # fmt: skip
    assert len(set(queries)) == 40
    assert NAME not in evals["others"]
    header = sk.parse((REFERENCE / "SKILL.md").read_text(encoding="utf-8"))[HEADER]
    description = header.partition(">-")[2].rpartition("---")[0]
    result = triggers.evaluate(evals, description)
    assert len(result.hits) >= 17, result.missed
    assert len(result.false) <= 1, result.false
    vague = triggers.evaluate(evals, "Helps with models and agents.")
    assert len(vague.hits) < 10


def test_scores():
    found = triggers.scores("proxies for models", {"a": "A proxy.", "b": "Fonts.", "c": "A model."})
    assert set(found) == {"a", "b", "c"}
    assert found["b"] == 0
    assert found["a"] > 0
    assert list(triggers.scores("x", {"b": "y", "a": "z"})) == ["a", "b"]  # ties by name
    assert triggers.triggered("nothing at all", {"a": "A proxy."}) == ""
    assert triggers.words("retries, proxies; calls, calling a call; running") == [
        "retry", "proxy", "call", "call", "call", "run",
    ]  # fmt: skip
    rare = triggers.scores("zebra word", {"a": "zebra", "b": "word", "c": "word", "d": "word"})
    assert next(iter(rare)) == "a"
