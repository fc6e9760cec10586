"""The exercises of L05: every solution passes, and each likely mistake is named in words."""

from __future__ import annotations

import json

import nbformat
import pytest

from helpers.checks import l05
from helpers.mcp_server import HINTS, asked_for, meant, numbers, parse_task_response
from helpers.settings import NOTEBOOKS
from helpers.tasks import TaskError, tool_schemas
from helpers.validators import DELETING, ToolCallError, validate_tool_call


@pytest.fixture
def verdict(checks_of):
    """What the check prints about a learner's function."""
    return checks_of("L05")


def solutions() -> dict[str, object]:
    """The collapsed cells of the notebook itself."""
    (path,) = NOTEBOOKS.glob("L05_*.ipynb")
    space: dict[str, object] = dict(globals())
    for cell in nbformat.read(path, as_version=4).cells:
        if "solution" in cell.metadata.get("tags", []):
            exec(compile(cell.source, "solution", "exec"), space)
    return space


def test_the_notebooks_solutions_pass(verdict):
    made = solutions()
    assert verdict("parse-response", made["parse_task_response_solution"]).startswith("✓")
    assert verdict("guard", made["asked_for_solution"]).startswith("✓")
    assert verdict("hints", made["HINTS_solution"]).startswith("✓")


def test_what_the_server_uses_passes(verdict):
    assert verdict("parse-response", parse_task_response).startswith("✓")
    assert verdict("guard", asked_for).startswith("✓")
    assert verdict("hints", {name: HINTS[name] for name in l05.CALLS}).startswith("✓")


def test_stubs(verdict):
    def stub(*given): ...

    assert verdict("parse-response", stub).startswith("○")
    assert verdict("guard", stub).startswith("○")
    assert verdict("hints", {"create_task": ...}).startswith("○")


# --- exercise 1 ------------------------------------------------------------------------------


def parse(message, first=False, load=True, pairs=True, empty=False, convert=True):
    found = []
    for raw in (message.get("tool_calls") or [])[: 1 if first else None]:
        try:
            call = validate_tool_call(raw, tool_schemas())
        except ToolCallError as error:
            if not convert:
                raise
            raise TaskError(str(error)) from None
        arguments = call.arguments if load else json.dumps(call.arguments)
        found.append((call.name, arguments) if pairs else call)
    if not found and not empty:
        raise TaskError("Nothing to do.")
    return found


def test_parse_right(verdict):
    assert verdict("parse-response", lambda message: parse(message)).startswith("✓")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"first": True}, "Every call counts"),
        ({"load": False}, "still text"),
        ({"pairs": False}, "a pair"),
        ({"empty": True}, "words instead of a call"),
        ({"convert": False}, "it stopped with ToolCallError"),
    ],
)
def test_parse_mistakes(verdict, mistake, said):
    out = verdict("parse-response", lambda message: parse(message, **mistake))
    assert out.startswith("✗")
    assert said in out
    assert "Look again: 2 The seed's create_task" in out


def test_the_seeds_parse(verdict):
    out = verdict("parse-response", lambda message: json.loads(message["content"]))
    assert out.startswith("✗") and "TypeError" in out
    assert "list of pairs" in verdict("parse-response", lambda message: {})


def test_parse_without_a_schema(verdict):
    def careless(message):
        if not message.get("tool_calls"):
            raise TaskError("Nothing to do.")
        calls = [call["function"] for call in message["tool_calls"]]
        return [(c["name"], json.loads(c["arguments"])) for c in calls]

    assert "a call with null" in verdict("parse-response", careless)


# --- exercise 2 ------------------------------------------------------------------------------


def guard(
    request, name, arguments, tasks, text=False, deleting="request", titles=True, every=False
):
    if "task_id" not in arguments:
        return ""
    task_id = arguments["task_id"]
    named = numbers(request) or (set(meant(request, tasks)) if titles else set())
    ok = str(task_id) in request if text else task_id in named
    if every and "everything" in request:
        ok = True
    if not ok:
        return f"The request does not name task {task_id}."
    where = request if deleting == "request" else request + " ".join(t["title"] for t in tasks)
    if name == "delete_task" and deleting and not DELETING.search(where):
        return "Nobody asked to delete."
    return ""


def test_guard_right(verdict):
    assert verdict("guard", lambda *given: guard(*given)).startswith("✓")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"text": True}, "numbers(request) reads numbers"),
        ({"deleting": ""}, "nobody asked for a deletion"),
        ({"deleting": "titles"}, "nobody asked for a deletion"),
        ({"titles": False}, "meant(request, tasks)"),
        ({"every": True}, "protects nothing"),
    ],
)
def test_guard_mistakes(verdict, mistake, said):
    out = verdict("guard", lambda *given: guard(*given, **mistake))
    assert out.startswith("✗")
    assert said in out
    assert "Look again: 3 A title that gives orders" in out


def test_guard_extremes(verdict):
    assert "Nobody spoke of task 15" in verdict("guard", lambda *given: "")
    assert "let it pass" in verdict("guard", lambda *given: "No.")
    assert "Return a text" in verdict("guard", lambda *given: True)
    careless = verdict("guard", lambda request, name, arguments, tasks: arguments["task_id"] * "")
    assert "KeyError" in careless


# --- exercise 3 ------------------------------------------------------------------------------


def hints(**changes):
    made = {name: dict(HINTS[name]) for name in l05.CALLS}
    for key, value in changes.items():
        name, hint = key.split("__")
        made[name][hint] = value
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"create_task__idempotent": True}, "a second time changed it again"),
        ({"complete_task__read_only": True}, "the store was another"),
        ({"complete_task__idempotent": False}, "changed nothing more"),
        ({"complete_task__destructive": True}, "was still there"),
        ({"update_task__destructive": False}, "'water the plants' were gone"),
        ({"delete_task__destructive": False}, "'water the plants' were gone"),
        ({"delete_task__idempotent": False}, "changed nothing more"),
        ({"list_tasks__read_only": False}, "the store was the same"),
    ],
)
def test_hint_mistakes(verdict, change, said):
    out = verdict("hints", hints(**change))
    assert out.startswith("✗")
    assert said in out
    assert next(iter(change)).split("__")[0] in out
    assert "Look again: 4 Hints that are true" in out


def test_hints_of_another_shape(verdict):
    assert "Hints are wanted for" in verdict("hints", {"create_task": {}})
    assert "Three hints" in verdict("hints", hints() | {"list_tasks": {"read_only": True}})
    assert "Hints are wanted" in verdict("hints", ["create_task"])
