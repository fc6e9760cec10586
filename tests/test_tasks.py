"""The task store, its dates, its tools and their schemas."""

from __future__ import annotations

import asyncio
import datetime
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tasks as tk
from helpers.dates import parse_due
from helpers.settings import ROOT, CourseError
from helpers.tasks import TOOLS, TaskError, TaskStore, bind, call_tool, tool_schemas

MONDAY = datetime.date(2026, 11, 23)


@pytest.fixture
def store():
    with TaskStore(clock=lambda: MONDAY) as store:
        yield store


# --- dates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("today", "2026-11-23"),
        ("tonight at 8", "2026-11-23"),
        ("by end of day", "2026-11-23"),
        ("asap", "2026-11-23"),
        ("within the hour", "2026-11-23"),
        ("tomorrow", "2026-11-24"),
        ("Tomorrow morning!", "2026-11-24"),
        ("first thing tomorrow", "2026-11-24"),
        ("the day after tomorrow", "2026-11-25"),
        ("wednesday", "2026-11-25"),
        ("by thurs", "2026-11-26"),
        ("friday", "2026-11-27"),
        ("next friday", "2026-11-27"),
        ("by friday noon", "2026-11-27"),
        ("thursday 3pm", "2026-11-26"),
        ("end of the week", "2026-11-27"),
        ("this weekend", "2026-11-28"),
        ("monday", "2026-11-30"),
        ("monday at 9", "2026-11-30"),
        ("next week", "2026-11-30"),
        ("wednesday next week", "2026-12-02"),
        ("friday week", "2026-12-04"),
        ("a week on friday", "2026-12-04"),
        ("end of next week", "2026-12-04"),
        ("end of the month", "2026-11-30"),
        ("by the 30th", "2026-11-30"),
        ("the 5th", "2026-12-05"),
        ("by the 5th", "2026-12-05"),
        ("friday the 4th", "2026-12-04"),
        ("the 31st", "2026-12-31"),
        ("on the 23rd", "2026-11-23"),
        ("the 3rd of next month", "2026-12-03"),
        ("in 3 days", "2026-11-26"),
        ("in two weeks", "2026-12-07"),
        ("2 weeks from today", "2026-12-07"),
        ("in a fortnight", "2026-12-07"),
        ("7 December", "2026-12-07"),
        ("Dec 7th", "2026-12-07"),
        ("mid-december", "2026-12-15"),
        ("end of january", "2027-01-31"),
        ("1 march", "2027-03-01"),
        ("before xmas", "2026-12-25"),
        ("Christmas Eve", "2026-12-24"),
        ("2026-12-03", "2026-12-03"),
        ("03/12/2026", "2026-12-03"),
        ("12/20/2026", "2026-12-20"),
        ("4.12.2026", "2026-12-04"),
        ("2027-02-28T12:00:00", "2027-02-28"),
        ("2020-01-01", "2020-01-01"),
        ("thursday, before the rehearsal", "2026-11-26"),
        ("the sunday after, the 20th", "2026-12-20"),
        ("March 3rd, 2027", "2027-03-03"),
        ("friday, 4 december", "2026-12-04"),
    ],
)
def test_dates(said, meant):
    assert parse_due(said, MONDAY).isoformat() == meant


@pytest.mark.parametrize("said", ["none", "No deadline", "never"])
def test_no_date(said):
    assert parse_due(said, MONDAY) is None


@pytest.mark.parametrize(
    "said",
    ["", "!", "soon", "whenever", "no rush", "2026-13-01", "2026-02-30", "the 32nd", "blorf", "12",
     "monday or tuesday", "in 999999999 years"],
)  # fmt: skip
def test_what_is_no_date(said):
    with pytest.raises(ValueError):
        parse_due(said, MONDAY)


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_date_or_an_error(said):
    try:
        assert parse_due(said, MONDAY) is None or True
    except ValueError:
        pass


AHEAD = """friday|next week|the 31st|end of the month|this weekend|end of next month|next weekend
this month|mid january""".replace("\n", "|").split("|")


@given(st.dates(datetime.date(2024, 1, 1), datetime.date(2032, 12, 31)), st.sampled_from(AHEAD))
@settings(max_examples=150, deadline=None)
def test_relative_dates_lie_ahead(today, said):
    date = parse_due(said, today)
    assert today <= date <= today + datetime.timedelta(days=366)


# --- the store -------------------------------------------------------------------------------


def test_life_of_a_task(store):
    task = store.create("call mum", "urgent", "tomorrow")
    assert task == {
        "task_id": 1,
        "title": "call mum",
        "priority": "urgent",
        "status": "pending",
        "due": "2026-11-24",
    }
    assert list(task) == ["task_id", "title", "priority", "status", "due"]
    assert store.update(1, due="next friday", title="call dad")["due"] == "2026-11-27"
    assert store.update(1, due="none")["due"] is None
    assert store.complete(1)["status"] == "completed"
    assert store.complete(1)["status"] == "completed"
    assert store.get(1)["title"] == "call dad"
    assert store.delete(1) == {"task_id": 1, "deleted": True}
    with pytest.raises(TaskError, match=r"There is no task 1\."):
        store.get(1)
    assert store.create("buy milk")["task_id"] == 2  # an id is never used again


def test_list(store):
    for title, priority in [("a", "low"), ("b", "high"), ("c", "high")]:
        store.create(title, priority)
    store.complete(2)
    titles = lambda **kw: [t["title"] for t in store.list(**kw)["tasks"]]  # noqa: E731
    assert titles() == ["a", "b", "c"]
    assert titles(priority="high") == ["b", "c"]
    assert titles(status="pending", priority="high") == ["c"]
    assert titles(status="in_progress") == []


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.create("  "),
        lambda s: s.create("x" * 501),
        lambda s: s.create("x", "HIGH"),
        lambda s: s.create("x", due="blorf"),
        lambda s: s.update(1),
        lambda s: s.update(1, status="done"),
        lambda s: s.update(99, title="x"),
        lambda s: s.complete(99),
        lambda s: s.delete(99),
        lambda s: s.get(10**30),
        lambda s: s.list(status="open"),
    ],
)
def test_errors_are_sentences_and_change_nothing(store, act):
    before = store.create("keep me")
    with pytest.raises(TaskError, match=r"^\w.*\.$"):
        act(store)
    assert store.list()["tasks"] == [before]


def test_clock_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("COURSE_TODAY", "2030-01-01")
    with TaskStore() as store:
        assert store.create("x", due="tomorrow")["due"] == "2030-01-02"


def test_tasks_stay_in_the_file(tmp_path):
    path = tmp_path / "new folder" / "tasks.sqlite"
    with TaskStore(path) as store:
        store.create("call mum")
    with TaskStore(path) as store:
        assert store.get(1)["title"] == "call mum"


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "tasks.sqlite"
    path.write_text("this is not a database, " * 50)
    with pytest.raises(CourseError, match="Move the file away"):
        TaskStore(path)


def test_threads_share_a_store(store):
    threads = [
        threading.Thread(target=lambda: [store.create("x") for _ in range(25)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [task["task_id"] for task in store.list()["tasks"]]
    assert ids == list(range(1, 201))


WRITER = """
import sys
from helpers.tasks import TaskStore
store = TaskStore(sys.argv[1])
for i in range(int(sys.argv[3])):
    print(store.create(f"{sys.argv[2]} {i}")["task_id"], flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_two_processes_write_while_one_is_killed(tmp_path):
    path = tmp_path / "tasks.sqlite"
    victim, survivor = writer(path, "victim", 100_000), writer(path, "survivor", 150)
    acknowledged = [int(victim.stdout.readline()) for _ in range(40)]
    victim.kill()
    acknowledged += [int(line) for line in victim.communicate()[0].splitlines() if line.strip()]
    survived = [int(line) for line in survivor.communicate(timeout=60)[0].splitlines()]
    assert survivor.returncode == 0
    assert victim.returncode in (-getattr(signal, "SIGKILL", 9), 1)
    assert len(survived) == 150
    with TaskStore(path) as store:
        titles = {t["task_id"]: t["title"] for t in store.list()["tasks"]}
        # Everything that was acknowledged is there, once, under the id that was told.
        assert not set(acknowledged) & set(survived)
        assert all(titles[i].startswith("victim") for i in acknowledged)
        assert [titles[i] for i in survived] == [f"survivor {i}" for i in range(150)]
        # At most the one task that was being written is there without having been told.
        assert len(titles) - len(acknowledged) - len(survived) in (0, 1)
        store.create("still writable")
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    path = tmp_path / "tasks.sqlite"
    with TaskStore(path) as one, TaskStore(path) as two:
        one.create("x")
        with one._transaction() as db:
            db.execute("UPDATE tasks SET title = 'y'")
            begin = time.monotonic()
            assert two.get(1)["title"] == "x"
            assert time.monotonic() - begin < 2
        assert two.get(1)["title"] == "y"


# --- the tools ---------------------------------------------------------------------------------


def test_schemas():
    schemas = tool_schemas()
    assert [s["function"]["name"] for s in schemas] == list(TOOLS)
    parameters = {s["function"]["name"]: s["function"]["parameters"] for s in schemas}
    assert {name: (list(p["properties"]), p["required"]) for name, p in parameters.items()} == {
        "create_task": (["title", "priority", "due"], ["title"]),
        "update_task": (["task_id", "title", "priority", "status", "due"], ["task_id"]),
        "complete_task": (["task_id"], ["task_id"]),
        "list_tasks": (["status", "priority"], []),
        "delete_task": (["task_id"], ["task_id"]),
    }
    create = parameters["create_task"]["properties"]
    assert create["priority"] == {
        "type": "string",
        "enum": ["low", "medium", "high", "urgent"],
        "default": "medium",
    }
    assert create["due"]["type"] == "string"
    assert parameters["update_task"]["properties"]["status"]["enum"] == [
        "pending",
        "in_progress",
        "completed",
    ]
    assert tool_schemas(["list_tasks", "create_task"]) == [schemas[3], schemas[0]]
    assert tool_schemas([]) == []
    with pytest.raises(CourseError, match="no tool"):
        tool_schemas(["order_pizza"])


def test_schemas_are_copies():
    tool_schemas()[0]["function"]["parameters"]["properties"].clear()
    assert tool_schemas()[0]["function"]["parameters"]["properties"]


def test_strict_schemas():
    for plain, strict in zip(tool_schemas(), tool_schemas(strict=True), strict=True):
        parameters = strict["function"]["parameters"]
        assert strict["function"]["strict"] is True
        assert parameters["additionalProperties"] is False
        assert parameters["required"] == list(parameters["properties"])
        for key, schema in parameters["properties"].items():
            optional = key not in plain["function"]["parameters"]["required"]
            assert (schema["type"] == [*([schema["type"][0]]), "null"]) == optional
            assert "default" not in schema
            if optional and "enum" in schema:
                assert schema["enum"][-1] is None


def test_calls(store):
    made = call_tool(store, "create_task", '{"title": "Müll rausbringen", "due": "tomorrow"}')
    assert made == (
        '{"task_id": 1, "title": "Müll rausbringen", "priority": "medium", '
        '"status": "pending", "due": "2026-11-24"}'
    )
    nulls = {"task_id": 1, "title": None, "priority": "high", "status": None, "due": None}
    assert json.loads(call_tool(store, "update_task", nulls))["due"] == "2026-11-24"
    assert json.loads(call_tool(store, "list_tasks", ""))["tasks"][0]["priority"] == "high"
    assert call_tool(store, "delete_task", {"task_id": 1}) == '{"task_id": 1, "deleted": true}'
    assert call_tool(store, "delete_task", {"task_id": 1}) == '{"error": "There is no task 1."}'


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("order_pizza", "{}", "There is no tool 'order_pizza'. The tools are create_task,"),
        ("create_task", "{", "The arguments of create_task are not valid JSON."),
        ("create_task", "[]", "The arguments of create_task must be a JSON object."),
        ("create_task", "{}", "title is missing."),
        ("create_task", None, "title is missing."),
        ("create_task", {"title": None}, "title is missing."),
        ("create_task", {"title": 3}, "title must be a text, not 3."),
        (
            "create_task",
            {"title": "x", "priority": "HIGH"},
            'priority must be one of low, medium, high, urgent, not "HIGH".',
        ),
        ("complete_task", {"task_id": "3"}, 'task_id must be an integer, not "3".'),
        ("complete_task", {"task_id": True}, "task_id must be an integer, not true."),
        (
            "complete_task",
            {"task_id": 3, "done": 1},
            "complete_task has no argument done; it takes task_id.",
        ),
        ("create_task", {"title": "x", "due": "blorf"}, "I do not understand the date 'blorf'."),
    ],
)
def test_bad_calls_become_sentences(store, name, arguments, sentence):
    answer = json.loads(call_tool(store, name, arguments))
    assert answer["error"].startswith(sentence)
    assert store.list()["tasks"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["task_id", "title", "priority", "status", "due", "x"])


@given(
    st.sampled_from([*TOOLS, "x", ""]),
    st.one_of(st.text(max_size=30), st.dictionaries(KEYS, JSON), JSON, st.none()),
)
@settings(max_examples=200, deadline=None)
def test_a_call_never_raises(name, arguments):
    with TaskStore(clock=lambda: MONDAY) as store:
        for given_as in (arguments, json.dumps(arguments, ensure_ascii=True)):
            assert isinstance(json.loads(call_tool(store, name, given_as)), dict)


def test_half_a_surrogate_pair(store):
    answer = call_tool(store, "create_task", '{"title": "call \\ud83d mum"}')
    assert json.loads(answer)["title"] == "call ? mum"


def test_results_read_as_json(store):
    created = bind(store)["create_task"]("call mum")
    assert json.loads(str(created)) == created
    assert bind(store)["delete_task"](7) == {"error": "There is no task 7."}


def test_as_tools_of_an_agent(store):
    from agents import function_tool
    from agents.items import ItemHelpers
    from openai.types.responses import ResponseFunctionToolCall

    for name, function in bind(store).items():
        tool = function_tool(function)
        assert tool.name == name
        assert tool.description == tk.tool_schemas([name])[0]["function"]["description"]
        wanted = tool_schemas([name])[0]["function"]["parameters"]["properties"]
        assert list(tool.params_json_schema["properties"]) == list(wanted)
    result = bind(store)["create_task"]("call mum")
    call = ResponseFunctionToolCall(arguments="", call_id="c", name="x", type="function_call")
    assert json.loads(ItemHelpers.tool_call_output_item(call, result)["output"]) == result


def test_as_tools_of_an_mcp_server(store, monkeypatch):
    monkeypatch.setenv("FASTMCP_CHECK_FOR_UPDATES", "off")
    from fastmcp import Client, FastMCP

    mcp = FastMCP("tasks")
    for function in bind(store).values():
        mcp.tool(function)

    async def use():
        async with Client(mcp) as client:
            listed = {tool.name: tool for tool in await client.list_tools()}
            result = await client.call_tool("create_task", {"title": "call mum"})
            return listed, result.content[0].text

    listed, text = asyncio.run(use())
    assert list(listed) == list(TOOLS)
    assert listed["create_task"].description == "Create a task."
    assert json.loads(text)["task_id"] == 1


# --- once ------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_task(store):
    """Also when the retry was answered by another model, in other words."""
    first = call_tool(store, "create_task", {"title": "call mum"}, key="r1-0")
    again = call_tool(store, "create_task", '{"title": "call mum", "due": "tomorrow"}', key="r1-0")
    assert again == first
    call_tool(store, "create_task", {"title": "call mum"}, key="r1-1")
    call_tool(store, "create_task", {"title": "call mum"}, key="r2-0")
    assert len(store.list()["tasks"]) == 3
    call_tool(store, "create_task", {"title": "call mum"})  # without a key: every time
    call_tool(store, "create_task", {"title": "call mum"})
    assert len(store.list()["tasks"]) == 5


def test_a_deletion_that_is_repeated_is_told_as_the_first(store):
    store.create("buy milk")
    first = call_tool(store, "delete_task", {"task_id": 1}, key="a")
    assert json.loads(first) == {"task_id": 1, "deleted": True}
    assert call_tool(store, "delete_task", {"task_id": 1}, key="a") == first
    assert "error" in json.loads(call_tool(store, "delete_task", {"task_id": 1}, key="b"))


def test_what_failed_may_be_tried_again(store):
    assert "error" in call_tool(store, "complete_task", {"task_id": 1}, key="a")
    assert "error" in call_tool(store, "complete_task", "{", key="a")
    store.create("buy milk")
    assert json.loads(call_tool(store, "complete_task", {"task_id": 1}, key="a"))["status"] == (
        "completed"
    )


def test_once_undoes_the_work_with_its_key(store):
    def half():
        store.create("buy milk")
        raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        store.once("a", half)
    assert store.list()["tasks"] == []
    assert store.once("a", lambda: str(store.create("buy milk"))) == store.once("a", half)


def test_a_caught_error_undoes_only_its_part(store):
    def work():
        store.create("buy milk")
        with pytest.raises(TaskError):
            store.update(99, title="x")
        return "done"

    assert store.once("a", work) == "done"
    assert [task["title"] for task in store.list()["tasks"]] == ["buy milk"]


def test_an_empty_key_is_refused(store):
    with pytest.raises(ValueError, match="empty"):
        store.once("", lambda: "")


def test_threads_with_the_same_key_make_one_task(tmp_path):
    path = tmp_path / "tasks.sqlite"
    results = []

    def one():
        with TaskStore(path, clock=lambda: MONDAY) as mine:
            results.append(call_tool(mine, "create_task", {"title": "call mum"}, key="a"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    with TaskStore(path) as mine:
        assert len(mine.list()["tasks"]) == 1
    assert len(results) == 8 and len(set(results)) == 1


ONCE = """
import sys
from helpers.tasks import TaskStore, call_tool
store = TaskStore(sys.argv[1])
for n in range(10_000):
    call_tool(store, "create_task", {"title": f"task {n}"}, key=f"{n}")
    print(n, flush=True)
"""


def test_killed_between_work_and_answer_and_run_again(tmp_path):
    """Two runs over the same keys, the first killed anywhere: each key is one task."""
    path = tmp_path / "tasks.sqlite"
    command = [sys.executable, "-c", ONCE, str(path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in first.stdout:
        if int(line) >= 12:
            break
    first.kill()
    first.wait(60)
    first.stdout.close()
    with TaskStore(path) as mine:
        before = len(mine.list()["tasks"])
        for n in range(before + 5):
            call_tool(mine, "create_task", {"title": f"task {n}"}, key=f"{n}")
        titles = [task["title"] for task in mine.list()["tasks"]]
    assert before >= 12
    assert titles == [f"task {n}" for n in range(before + 5)]
