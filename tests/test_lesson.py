"""Checks that help and never raise, progress, and display."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading

import pytest

from helpers import lesson as ls
from helpers.lesson import Hint, Lesson, call, check, expect, is_stub
from helpers.settings import ROOT, CourseError


@pytest.fixture(autouse=True)
def progress(tmp_path, monkeypatch):
    path = tmp_path / "work" / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    with own_checks():
        yield path


@contextlib.contextmanager
def own_checks():
    """Takes the checks of made-up lessons away again, and no others.

    A real lesson's checks are registered once, when its module is imported, and that may happen
    in here; the tests that follow in this process need them.
    """
    try:
        yield
    finally:
        for key in [key for key in ls._checks if key[0].startswith("T")]:
            del ls._checks[key]


@pytest.fixture
def lesson():
    @check("T01", "double", look="Twice as much")
    def double(function):
        expect(function, 2, equals=4)
        expect(function, 5, equals=10)
        return "Twice is twice."

    @check("T01", "settings")
    def settings(value):
        if value["port"] != 4000:
            raise Hint("The port is not 4000.", got=value["port"], on="settings['port']")

    @check("T01", "later")
    async def later(function):
        if await function(1) != 2:
            raise Hint("Not two.")

    return Lesson("T01")


def double(x):
    return 2 * x


def told(capsys):
    return capsys.readouterr().out.strip()


# --- checks ----------------------------------------------------------------------------------


def test_right(lesson, capsys, progress):
    lesson.check("double", double)
    assert told(capsys) == "✓ double: passed. Twice is twice."
    assert list(json.loads(progress.read_text())["T01"]) == ["double"]


def test_wrong(lesson, capsys, progress):
    lesson.check("double", lambda x: x + 2)
    assert told(capsys) == (
        "✗ double: <lambda>(5) gave 7, expected 10.\n  Look again: Twice as much."
    )
    assert not progress.exists()


def test_raising(lesson, capsys):
    def divide(x):
        return x / 0

    lesson.check("double", divide)
    assert told(capsys).startswith("✗ double: divide(2) stopped with ZeroDivisionError: division")


@pytest.mark.parametrize(
    "bad",
    [
        3,
        "text",
        object(),
        [1],
        lambda: 1,
        lambda x: sys.exit(3),
        lambda x: (_ for _ in ()).throw(AssertionError),
        type("Odd", (), {"__call__": lambda s, x: s, "__repr__": lambda s: 1 / 0}),
        lambda x: float("nan"),
    ],
)
def test_a_check_never_raises(lesson, capsys, bad):
    for name in ("double", "settings"):
        lesson.check(name, bad)
        assert told(capsys).startswith("✗")
        assert lesson.use(name, bad, "the solution") == "the solution"
        capsys.readouterr()


def test_deep_recursion(lesson, capsys):
    def forever(x):
        return forever(x)

    lesson.check("double", forever)
    assert "RecursionError" in told(capsys)


def test_interrupting_still_works(lesson):
    def stop(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lesson.check("double", stop)


def test_interrupting_works_while_the_work_is_looked_at(lesson):
    class Slow(dict):
        def values(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lesson.check("settings", Slow(port=4000))


def test_a_cancellation_of_the_learners_own(lesson, capsys):
    """Only where the cell itself is cancelled does it stop the cell."""

    def cancelled(x):
        raise asyncio.CancelledError

    async def also(x):
        raise asyncio.CancelledError

    async def cell():
        lesson.check("double", cancelled)
        await lesson.check("later", also)

    lesson.check("double", cancelled)
    asyncio.run(cell())
    said = told(capsys).splitlines()
    assert [line[:9] for line in said if line[0] != " "] == ["✗ double:", "✗ double:", "✗ later: "]


def test_stopping_a_cell_that_waits(lesson):
    async def waits(x):
        await asyncio.sleep(60)

    async def cell():
        task = asyncio.ensure_future(lesson.check("later", waits))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cell())


def test_errors_without_words(lesson, capsys, monkeypatch):
    class Mute(Exception):
        def __str__(self):
            raise ValueError("no words")

    def mute(x):
        raise Mute

    def half(x):
        raise ValueError("half of a pair: \ud800")

    lesson.check("double", mute)
    assert told(capsys) == ("✗ double: mute(2) stopped with Mute.\n  Look again: Twice as much.")
    lesson.check("double", half)
    assert "half of a pair: \\ud800" in told(capsys)
    monkeypatch.setattr(ls, "_as_hint", lambda error, on: 1 / 0)
    lesson.check("settings", 3)
    assert told(capsys) == "✗ settings: The check stopped with TypeError, which cannot be shown."


def test_values(lesson, capsys):
    lesson.check("settings", {"port": 4000})
    lesson.check("settings", {"port": 8080})
    lesson.check("settings", {})
    lesson.check("settings", {"port": ...})
    assert told(capsys).splitlines() == [
        "✓ settings: passed.",
        "✗ settings: settings['port'] gave 8080. The port is not 4000.",
        "✗ settings: The check of your answer stopped with KeyError: 'port'.",
        "○ settings: not filled in yet. Replace the ... and run the cell and this check again.",
    ]


def test_stubs_say_so(lesson, capsys, progress):
    def empty(x): ...

    def raising(x):
        raise NotImplementedError

    def partly(x):
        return 4 if x == 2 else ...

    for stub in (empty, raising, partly, None, ...):
        lesson.check("double", stub)
        assert told(capsys).startswith("○ double: not filled in yet")
        assert lesson.use("double", stub, double) is double
        assert told(capsys) == "double: the solution is used; yours is not filled in yet."
    assert not progress.exists()


def test_use(lesson, capsys, progress):
    def loud(x):
        print("debugging")
        return 2 * x

    assert lesson.use("double", loud, double) is loud
    assert told(capsys) == "double: your version is used."
    assert lesson.use("double", lambda x: x, double) is double
    assert told(capsys) == "double: the solution is used; yours does not pass yet."
    assert not progress.exists()  # use() records nothing


def test_a_solution_records_no_progress(lesson, capsys, progress):
    def double_solution(x):
        return 2 * x

    lesson.check("double", double_solution)
    assert "no progress recorded" in told(capsys)
    assert not progress.exists()


port_solution = {"port": 4000}


def test_a_solution_that_is_a_value_records_no_progress(lesson, capsys, progress):
    """It has no name of its own; that of its variable tells."""
    lesson.check("settings", port_solution)
    assert "no progress recorded" in told(capsys)
    assert not progress.exists()
    lesson.check("settings", {"port": 4000})  # the learner's own, and equal
    assert "no progress" not in told(capsys)
    assert list(json.loads(progress.read_text())["T01"]) == ["settings"]


def test_equal_words_are_not_the_solution():
    """Python keeps one object for all equal small values."""
    notebook = {"word_solution": "direct", "count_solution": 3}
    assert not ls._is_solution("direct", notebook)
    assert not ls._is_solution(3, notebook)
    long = "model: openai/small"
    assert ls._is_solution(long, {"entry_solution": long})
    assert not ls._is_solution(long, {"entry": long})


def test_async_functions_in_a_plain_check(lesson, capsys):
    async def later_double(x):
        await asyncio.sleep(0)
        return 2 * x

    async def notebook():  # a loop is running, as in a notebook
        lesson.check("double", later_double)

    asyncio.run(notebook())
    assert told(capsys).startswith("✓")


def test_async_checks(lesson, capsys):
    async def add(x):
        return x + 1

    async def stub(x): ...

    async def notebook():
        await lesson.check("later", add)
        await lesson.check("later", stub)
        assert await lesson.use("later", add, None) is add
        assert await lesson.use("later", stub, add) is add

    asyncio.run(notebook())
    assert told(capsys).splitlines()[0] == "✓ later: passed."


def test_unknown_exercises_name_the_known(lesson):
    with pytest.raises(CourseError, match="double, settings, later"):
        lesson.check("doubel", double)


def test_checks_come_from_the_lessons_module(monkeypatch):
    module = type(sys)("helpers.checks.t02")
    source = "from helpers.lesson import check\n@check('T02', 'x')\ndef x(v): pass"
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "helpers.checks.t02", module)
    assert Lesson("T02").exercises == ["x"]
    assert Lesson("T03").exercises == []


def test_a_lesson_that_is_first_opened_here_keeps_its_checks(monkeypatch):
    """As it was lost: first imported by a test of this module, missed by the next module."""
    for key in [key for key in ls._checks if key[0] == "L00"]:
        monkeypatch.delitem(ls._checks, key)
    monkeypatch.delitem(sys.modules, "helpers.checks.l00", raising=False)
    with own_checks():
        exercises = Lesson("L00").exercises
        check("T01", "x")(lambda value: None)
    assert "accepts" in exercises
    assert Lesson("L00").exercises == exercises
    assert Lesson("T01").exercises == []


def test_is_stub():
    async def a(): ...

    def b():
        """Docstring only."""

    def c(x):
        return None

    def d(x):
        return x

    def e():
        return "x"

    class F: ...

    assert all(map(is_stub, (a, b, c, None, ..., "", " ", "port: ...", "model:\n  ...", [..., 1],
                             {"a": {"b": ...}}, "x = ...  # fill in")))  # fmt: skip
    assert not any(map(is_stub, (d, e, F, 0, False, "wait... what", {"a": None}, [], {}, print)))


def test_hints_are_short_and_have_no_addresses():
    hint = Hint(got=object(), expected="x" * 500, on="f(1)")
    assert "0x" not in str(hint)
    assert len(str(hint)) < 300
    with pytest.raises(Hint, match=r"f\(1, b='c'\) stopped with ValueError: no"):

        def f(x, b):
            raise ValueError("no")

        call(f, 1, b="c")


# --- progress --------------------------------------------------------------------------------


def test_progress_of_many_at_once(lesson, progress, capsys):
    for n in range(8):
        check("T01", f"x{n}")(lambda value: None)
    threads = [threading.Thread(target=lesson.check, args=(f"x{n}", "right")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(progress.read_text())["T01"]) == 8
    assert not list(progress.parent.glob("*.tmp"))


@pytest.mark.parametrize("broken", ["", "{", "[]", "\x00"])
def test_a_broken_progress_file_is_replaced(lesson, progress, capsys, broken):
    progress.parent.mkdir()
    progress.write_text(broken)
    lesson.check("double", double)
    assert json.loads(progress.read_text())["T01"]["double"]


def test_progress_that_cannot_be_saved(lesson, progress, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "file" / "progress.json"))
    lesson.check("double", double)
    assert "could not be saved" in told(capsys)


def test_progress_table(lesson, capsys):
    lesson.check("double", double)
    capsys.readouterr()
    lesson.progress()
    assert told(capsys).splitlines() == [
        "T01: 1 of 3 done",
        "exercise  state",
        "--------  -----",
        "double    done",
        "settings  open",
        "later     open",
    ]


# --- display ---------------------------------------------------------------------------------

MESSAGES = [
    {"role": "user", "content": "done w/ 14 & <15>"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "x1", "function": {"name": "complete_task", "arguments": '{"task_id": 14}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "x1", "content": '{"task_id": 14}'},
    {"role": "assistant", "content": "Completed task 14."},
]


def test_show_messages(capsys):
    ls.show_messages(MESSAGES)
    text = capsys.readouterr().out
    assert '→ complete_task({"task_id": 14})' in text
    assert '← {"task_id": 14}' in text
    assert "x1" not in text


def test_show_call_of_an_sdk_object(capsys):
    from openai.types.chat import ChatCompletionMessageToolCall as ToolCall

    made = ToolCall.model_validate(MESSAGES[1]["tool_calls"][0] | {"type": "function"})
    ls.show_call(made)
    assert told(capsys) == 'complete_task({"task_id": 14})'


def test_table(capsys):
    ls.table([{"a": 1.23456789, "b": "x"}, {"a": 20, "b": None}], caption="Numbers")
    assert told(capsys).splitlines() == [
        "Numbers",
        "    a  b",
        "-----  -",
        "1.235  x",
        "   20",
    ]
    ls.table([])
    ls.table([["x", 1]], ["name"])


def test_html_is_escaped_and_accessible(monkeypatch):
    pages = []
    monkeypatch.setattr(ls, "_display", lambda text, markup: pages.append(markup))
    ls.show_messages(MESSAGES, caption="A & B")
    assert "&lt;15&gt;" in pages[0]
    assert "<15>" not in pages[0]
    assert "<caption>A &amp; B</caption>" in pages[0]
    assert pages[0].count('scope="col"') == 2
    assert pages[0].count('scope="row"') == 4
    assert "color" not in pages[0]


def test_in_a_notebook(monkeypatch):
    """Bundles with a text and an HTML form; a figure with its description."""
    import IPython
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots()
    axes.plot([1, 2])
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: "a shell")
    monkeypatch.setattr("IPython.display.display", lambda data, **kw: shown.append((data, kw)))
    ls.table([["a", 1]], ["name", "n"])
    ls.figure(fig, alt="A line that rises from 1 to 2.")
    assert [set(data) for data, _ in shown] == [
        {"text/plain", "text/html"},
        {"image/png", "text/plain"},
        {"text/plain", "text/html"},
    ]
    assert shown[1][1]["metadata"]["image/png"]["alt"] == "A line that rises from 1 to 2."
    assert "A line that rises" in shown[2][0]["text/html"]
    with pytest.raises(ValueError, match="description"):
        ls.figure(fig, alt=" ")


# --- start -----------------------------------------------------------------------------------


def test_start_without_services(monkeypatch, capsys):
    monkeypatch.delenv("COURSE_TODAY", raising=False)
    monkeypatch.setenv("COURSE_RECORD", "")
    for name in ("OPENAI_AGENTS_DISABLE_TRACING", "OPENAI_AGENTS_DONT_LOG_TOOL_DATA",
                 *ls.settings.OFFLINE):  # fmt: skip
        monkeypatch.setenv(name, "1")  # so that what start() sets is undone
    lesson = ls.start("L00", services=())
    assert told(capsys).splitlines()[0] == "L00 is ready. Today is Monday 2026-11-23."
    assert lesson.id == "L00"


def test_importing_is_cheap():
    code = "import sys, helpers.lesson; print([m for m in sys.modules if m in %r])"
    heavy = ("openai", "litellm", "agents", "matplotlib", "IPython", "httpx", "pydantic")
    out = subprocess.run(
        [sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, cwd=ROOT
    )
    assert out.stdout.strip() == "[]"
