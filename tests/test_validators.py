"""Tool calls are checked from their text to their meaning, and nothing else is ever raised."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import validators
from helpers.dates import parse_due
from helpers.tasks import TaskError, TaskStore, tool_schemas
from helpers.validators import (
    Review,
    ToolCall,
    ToolCallError,
    asked_for_delete,
    clear_date,
    feedback,
    known_id,
    mentioned_id,
    repair,
    review,
    validate_tool_call,
)

TOOLS = tool_schemas()
TODAY = datetime.date(2026, 11, 23)


def call(name, arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def refused(given_call, tools=TOOLS, checks=(), **more):
    with pytest.raises(ToolCallError) as caught:
        validate_tool_call(given_call, tools, checks, **more)
    return caught.value


# --- what passes -------------------------------------------------------------------------------


class Made:
    """As the SDK hands it over."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    "given_call",
    [
        call("complete_task", '{"task_id": 14}'),
        call("complete_task", {"task_id": 14}),
        {"name": "complete_task", "arguments": '{"task_id": 14}'},
        '{"name": "complete_task", "arguments": {"task_id": 14}}',
        '<tool_call>\n{"name": "complete_task", "arguments": {"task_id": 14}}\n</tool_call>',
        Made(function=Made(name="complete_task", arguments='{"task_id": 14}')),
        call("complete_task", '{"task_id": 14.0}'),
    ],
)
def test_every_form_of_a_call_is_read(given_call):
    passed = validate_tool_call(given_call, TOOLS)
    assert passed == ToolCall("complete_task", {"task_id": 14})
    assert type(passed.arguments["task_id"]) is int


def test_an_object_of_the_sdk_is_read():
    from openai.types.chat import ChatCompletionMessageFunctionToolCall as Call

    sdk = Call.model_validate(call("complete_task", '{"task_id": 14}'))
    assert validate_tool_call(sdk, TOOLS).arguments == {"task_id": 14}


def test_null_counts_as_absent_unless_it_is_kept():
    some = call("create_task", '{"title": "call mum", "priority": null, "due": null}')
    assert validate_tool_call(some, TOOLS).arguments == {"title": "call mum"}
    strict = tool_schemas(strict=True)
    assert validate_tool_call(some, strict).arguments == {"title": "call mum"}
    kept = validate_tool_call(some, strict, keep_null=True)
    assert kept.arguments == {"title": "call mum", "priority": None, "due": None}
    assert refused(some, keep_null=True).stage == "schema"
    # In a strict schema null must be said; leaving it out is an error.
    assert "missing" in str(refused(call("create_task", '{"title": "call mum"}'), strict))


def test_no_arguments_are_an_empty_object():
    for nothing in ("", "{}", None, {}):
        assert validate_tool_call(call("list_tasks", nothing), TOOLS).arguments == {}


# --- what does not, and in which words ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "stage", "says"),
    [
        ("complete_task", '{"task_id": 14', "parse", "arguments of complete_task are not valid"),
        ("complete_task", "[14]", "parse", "must be a JSON object"),
        ("complete_task", '{"task_id": NaN}', "parse", "not valid JSON"),
        ("complete_task", '{"task_id": 1e400}', "parse", "not valid JSON"),
        ("create_task", '{"title": "\\ud800"}', "parse", "not valid JSON"),
        ("complete_task", '{"task_id": 1, "task_id": 2}', "parse", '"task_id" twice'),
        ("complete_task", "9" * 5000, "parse", "not valid JSON"),
        ("complete_task", '{"a":' * 100_000, "parse", "not valid JSON"),
        ("", "{}", "parse", "no name"),
        (None, "{}", "parse", "no name"),
        ("finish_task", "{}", "tool", "The tools are create_task, update_task"),
        ("complete_task", '{"task_id": "14"}', "schema", 'must be an integer, not "14".'),
        ("complete_task", '{"task_id": true}', "schema", "must be an integer, not true."),
        ("complete_task", '{"task_id": 1.5}', "schema", "must be an integer, not 1.5."),
        ("complete_task", "{}", "schema", "task_id is missing."),
        (
            "create_task",
            '{"title": "x", "priority": "HIGH"}',
            "schema",
            'priority must be one of low, medium, high, urgent, not "HIGH".',
        ),
        (
            "create_task",
            '{"name": "x"}',
            "schema",
            "create_task has no argument name; it takes title, priority, due.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_words(name, arguments, stage, says):
    error = refused(call(name, arguments))
    assert error.stage == stage and error.for_model
    assert says in str(error)
    assert json.loads(error.result()) == {"error": str(error)}


@pytest.mark.parametrize("thing", [None, 14, [], object(), "", "hello", b"{}", [1, 2], {}])
def test_what_is_no_call_at_all(thing):
    assert refused(thing).stage == "parse"


def test_a_name_that_was_not_offered():
    error = refused(call("delete_task", '{"task_id": 1}'), tool_schemas(["list_tasks"]))
    assert str(error) == "There is no tool delete_task. The tools are list_tasks."
    assert "No tools were offered" in str(refused(call("list_tasks", "{}"), []))


def test_an_error_quotes_no_novel():
    long = "a" * 10_000
    for bad in (
        call(long, "{}"),
        call("create_task", json.dumps({long: 1})),
        call("create_task", json.dumps({"title": "x", "priority": long})),
    ):
        assert len(str(refused(bad))) < 400


class Explosive:
    def __getattr__(self, name):
        raise RuntimeError("no")


def test_strange_objects_are_refused_and_not_passed_on():
    assert refused(Explosive()).stage == "parse"
    assert refused({"function": Explosive()}).stage == "parse"


# --- whose fault it is -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tools",
    [
        None,
        [{}],
        [{"function": None}],
        [{"function": {"name": "f", "parameters": {"type": "nonsense"}}}],
        [{"function": {"name": "f", "parameters": {"properties": {"a": {"$ref": "#/no"}}}}}],
        [{"function": {"name": "f", "parameters": {"properties": {"a": {"pattern": "("}}}}}],
        [{"function": {"name": "f", "parameters": [1]}}],
    ],
)
def test_a_broken_schema_is_not_blamed_on_the_model(tools):
    error = refused({"name": "f", "arguments": '{"a": "x"}'}, tools)
    assert error.stage == "setup" and not error.for_model


def test_a_check_that_fails_stops_the_call_and_keeps_its_cause():
    def broken(call):
        raise OSError("disk")

    error = refused(call("list_tasks", "{}"), checks=[broken])
    assert error.stage == "setup" and isinstance(error.__cause__, OSError)


# --- meaning -----------------------------------------------------------------------------------


def test_known_id_asks_the_store():
    with TaskStore() as store:
        store.create("pay the rent")
        check = known_id(store.get, TaskError)
        assert check(ToolCall("complete_task", {"task_id": 1})) is None
        assert check(ToolCall("complete_task", {"task_id": 12})) == "There is no task 12."
        assert check(ToolCall("list_tasks", {})) is None
    tasks = {1: "pay the rent"}
    for look in (tasks.__getitem__, tasks.get):
        check = known_id(look)
        assert check(ToolCall("complete_task", {"task_id": 1})) is None
        assert check(ToolCall("complete_task", {"task_id": 12}))


def test_a_store_that_is_broken_is_not_a_missing_task():
    def get(id):
        raise OSError("disk")

    error = refused(call("complete_task", '{"task_id": 1}'), checks=[known_id(get, TaskError)])
    assert error.stage == "setup"


def test_mentioned_id_believes_people_and_results_but_no_errors():
    messages = [
        {"role": "user", "content": "delete #418, and TASK-0042"},
        {"role": "assistant", "content": "Task 7 then?"},
        {"role": "tool", "content": '{"error": "There is no task 481."}'},
        {"role": "tool", "content": '{"tasks": [{"task_id": 5}]}'},
    ]
    check = mentioned_id(messages)
    for known in (418, 5, "TASK-0042"):
        assert check(ToolCall("delete_task", {"task_id": known})) is None
    for unknown in (481, 7, 41, "TASK-0043"):
        assert check(ToolCall("delete_task", {"task_id": unknown}))


def test_clear_date():
    check = clear_date(parse_due, lambda: TODAY)
    for words in ("next friday", "2026-12-03", "none", "", None):
        assert check(ToolCall("create_task", {"due": words})) is None
    said = check(ToolCall("create_task", {"due": "february 31"}))
    assert '"february 31"' in said and "2026-12-03" in said


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("delete task 3", True),
        ("DROP 3", True),
        ("get rid of the dentist thing", True),
        ("3 can go", True),
        ("cancel 3", True),
        ("remove 3, the date was wrong", True),
        ("drop the date night one, delete it", True),
        ("remove the due date from 3", False),
        ("take the deadline off 3", False),
        ("3 is fine, only its due date can go", False),
        ("clear 3's priority", False),
        ("finish task 3", False),
        ("what is still pending?", False),
        ("set 3 to high", False),
    ],
)
def test_asked_for_delete(said, asked):
    messages = [{"role": "user", "content": "delete 9"}, {"role": "user", "content": said}]
    check = asked_for_delete(messages)
    assert (check(ToolCall("delete_task", {"task_id": 3})) is None) == asked
    assert check(ToolCall("complete_task", {"task_id": 3})) is None


def test_checks_also_read_messages_of_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "delete 12"}]}]
    assert asked_for_delete(parts)(ToolCall("delete_task", {"task_id": 12})) is None
    assert mentioned_id(parts)(ToolCall("delete_task", {"task_id": 12})) is None


# --- whole answers -----------------------------------------------------------------------------

PRINTED = '<tool_call>\n{"name": "complete_task", "arguments": {"task_id": 2}}\n</tool_call>'


def test_a_call_printed_as_text_is_found():
    found = review({"role": "assistant", "content": PRINTED}, TOOLS)
    assert found.ok and found.calls == (ToolCall("complete_task", {"task_id": 2}),)
    assert found.message["content"] is None and len(found.message["tool_calls"]) == 1


def test_a_printed_call_that_was_cut_off_is_an_error_and_no_words():
    cut = PRINTED + '\n<tool_call>\n{"name": "create_task", "arguments": {"title": "call call'
    found = review({"content": cut}, TOOLS)
    assert [type(c) for c in found.calls] == [ToolCall, ToolCallError]
    assert found.errors[0].name == "create_task"
    assert json.loads(feedback(found)[0]["tool_calls"][1]["function"]["arguments"]) == {}


def test_words_are_fine():
    assert review({"content": "Hello."}, TOOLS) == Review({"content": "Hello."}, ())
    assert review(None, TOOLS).ok


def test_feedback_answers_every_call_and_mends_the_history():
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            call("complete_task", '{"task_id": 3}') | {"id": "a"},
            call("complete_task", '{"task_id": 3') | {"id": "b"},
            call("create_task", '{"title": "x", "priority": "HIGH"}') | {"id": "c"},
        ],
    }
    before = json.dumps(message)
    sent = feedback(review(message, TOOLS))
    assert json.dumps(message) == before
    assert [m["role"] for m in sent] == ["assistant", "tool", "tool", "tool"]
    arguments = [json.loads(c["function"]["arguments"]) for c in sent[0]["tool_calls"]]
    assert arguments == [{"task_id": 3}, {}, {"title": "x", "priority": "HIGH"}]
    assert [m["tool_call_id"] for m in sent[1:]] == ["a", "b", "c"]
    errors = [json.loads(m["content"])["error"] for m in sent[1:]]
    assert "was not carried out" in errors[0] and "HIGH" in errors[2]


# --- repair ------------------------------------------------------------------------------------


class Script:
    """A model that answers from a list, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, messages, tools):
        self.asked.append(list(messages))
        return self.answers.pop(0)


def answer(name, arguments):
    return {"role": "assistant", "content": None, "tool_calls": [call(name, arguments)]}


HIGH = answer("create_task", '{"title": "call mum", "priority": "HIGH"}')
RIGHT = answer("create_task", '{"title": "call mum", "priority": "high"}')
SAID = [{"role": "user", "content": "Add: call mum, high priority"}]


def test_a_right_answer_costs_one_request():
    done = repair(Script(RIGHT), SAID, TOOLS)
    assert done.review.ok and done.asked == 1 and done.messages == SAID


def test_the_model_sees_its_error():
    model = Script(HIGH, RIGHT)
    done = repair(model, SAID, TOOLS)
    assert done.review.ok and done.asked == 2
    assert len(SAID) == 1, "the caller's list stays as it is"
    assert [m["role"] for m in model.asked[1]] == ["user", "assistant", "tool"]
    assert "one of low, medium, high, urgent" in model.asked[1][-1]["content"]


def test_repair_is_bounded():
    answers = [answer("complete_task", json.dumps({"task_id": f"{n}"})) for n in range(9)]
    model = Script(*answers)
    done = repair(model, SAID, TOOLS, limit=2)
    assert not done.review.ok and done.asked == len(model.asked) == 3
    assert repair(Script(HIGH), SAID, TOOLS, limit=0).asked == 1


def test_repair_stops_when_the_model_repeats_itself():
    model = Script(HIGH, HIGH, RIGHT)
    done = repair(model, SAID, TOOLS, limit=5)
    assert not done.review.ok and done.asked == 2


def test_what_the_model_cannot_mend_is_not_sent_to_it():
    def broken(call):
        raise OSError("disk")

    done = repair(Script(RIGHT, RIGHT), SAID, TOOLS, [broken])
    assert done.asked == 1 and done.review.errors[0].stage == "setup"


# --- whatever comes ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["high", "HIGH", "next friday", "pending", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["title", "task_id", "priority", "status", "due"]) | st.text(max_size=6)
NAMES = st.sampled_from([t["function"]["name"] for t in TOOLS]) | st.text(max_size=12) | JSON
ARGUMENTS = st.dictionaries(KEYS, JSON, max_size=4)
RAW = ARGUMENTS.map(json.dumps) | ARGUMENTS | st.text(max_size=40) | JSON
CALLS = (
    st.fixed_dictionaries({"name": NAMES, "arguments": RAW})
    | st.builds(call, NAMES, RAW)
    | st.dictionaries(st.sampled_from(["function", "name", "arguments", "id"]), JSON)
    | st.text(max_size=60)
    | st.builds(
        lambda name, arguments: f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}',
        st.text(max_size=8),
        st.text(max_size=20),
    )
    | JSON
)
CHECKS = [
    known_id({1: "a", 2: "b"}.__getitem__),
    mentioned_id([{"role": "user", "content": "task 1 and 2"}]),
    clear_date(parse_due, lambda: TODAY),
    asked_for_delete([{"role": "user", "content": "hello"}]),
]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(CALLS)
@example(call("complete_task", {"task_id": 10**6000}))
@example(call("create_task", {"title": "x", "due": "in 99999999999999999 years"}))
@example(call("create_task", {"title": "x", 1: 2}))
@example({"function": {"function": {}}})
def test_no_input_raises_anything_else(thing):
    try:
        passed = validate_tool_call(thing, TOOLS, CHECKS)
    except ToolCallError as error:
        assert error.stage in ("parse", "tool", "schema", "meaning")
        assert len(str(error)) < 600 and "\n" not in str(error).replace("\\n", "")
        json.loads(error.result())
        return
    # What passes fits its schema by the independent measure of the evaluation.
    from helpers.evaluation import Call, schema_valid

    assert schema_valid(Call(passed.name, "", passed.arguments), TOOLS)
    assert validate_tool_call({"name": passed.name, "arguments": passed.arguments}, TOOLS) == passed


def test_a_strange_mapping_is_no_json_object():
    class Strange(Mapping):
        def __len__(self):
            return 1

        def __getitem__(self, key):
            return 1

        def __iter__(self):
            raise RuntimeError("do not look")

    with pytest.raises(ToolCallError, match="must be a JSON object"):
        validate_tool_call({"name": "complete_task", "arguments": Strange()}, TOOLS)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(JSON, JSON, st.sampled_from([1, None]))
@example([], {"properties": [1]}, None)
@example([], {"properties": {"a": {"type": 5}}}, None)
@example([], {"properties": {"a": {"anyOf": 5}}}, None)
def test_no_list_of_tools_raises_anything_else(tools, parameters, value):
    offered = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    for given_tools in (tools, offered):
        try:
            validate_tool_call({"name": "f", "arguments": {"a": value}}, given_tools)
        except ToolCallError as error:
            assert error.stage in ("setup", "tool", "schema")


ANSWERS = (
    st.dictionaries(st.sampled_from(["role", "content"]), JSON).flatmap(
        lambda m: st.lists(CALLS, max_size=3).map(lambda calls: {**m, "tool_calls": calls})
    )
    | st.fixed_dictionaries({"content": st.text(max_size=60).map(lambda t: "<tool_call>" + t)})
    | st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), JSON)
    | JSON
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ANSWERS)
@example({"tool_calls": [call("complete_task", {"task_id": 10**6000})]})
def test_whatever_an_answer_holds_the_feedback_can_be_sent(message):
    found = review(message, TOOLS, CHECKS)
    sent = feedback(found)
    calls = sent[0]["tool_calls"] if sent else []
    assert len(sent) == (len(found.calls) + 1 if found.calls else 0)
    for one in calls:
        assert isinstance(json.loads(one["function"]["arguments"]), dict)
    for result in sent[1:]:
        assert json.loads(result["content"])["error"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(ANSWERS, min_size=3, max_size=3))
@example([{"tool_calls": [call("complete_task", {"task_id": 10**6000})]}] * 3)
@example([{"tool_calls": 5}] * 3)
def test_whatever_a_model_answers_repair_comes_to_an_end(answers):
    model = Script(*answers)
    done = repair(model, SAID, TOOLS, CHECKS)
    assert done.asked == len(model.asked) <= 3
    json.dumps(done.messages)


@pytest.mark.parametrize(
    "message",
    [
        lambda: Explosive(),
        lambda: {"tool_calls": Explosive()},
        lambda: {"tool_calls": [Explosive()]},
        lambda: {"tool_calls": [{"function": Explosive()}]},
        lambda: {"content": Explosive()},
    ],
)
def test_strange_answers_come_to_an_end_too(message):
    found = review(message(), TOOLS, CHECKS)
    assert all(isinstance(each, ToolCallError) for each in found.calls)
    json.dumps(feedback(found))
    done = repair(Script(message(), message(), message()), SAID, TOOLS, CHECKS)
    json.dumps(done.messages)


def test_a_conversation_may_hold_anything():
    strange = [
        None,
        "task 7",
        3,
        {"role": "user"},
        {"role": "user", "content": ["task", {"text": 1}]},
    ]
    assert mentioned_id(strange)(ToolCall("complete_task", {"task_id": 7}))
    assert asked_for_delete(strange)(ToolCall("delete_task", {"task_id": 7}))


def test_it_works_outside_of_the_course(tmp_path):
    shutil.copy(validators.__file__, tmp_path / "alone.py")
    code = """
import sys
sys.modules["helpers"] = None  # whoever imports it fails
import alone
tool = {"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}}}
checks = [alone.mentioned_id([]), alone.asked_for_delete([]),
          alone.clear_date(lambda text, today: today, lambda: None)]
assert alone.review({"tool_calls": [{"name": "f", "arguments": {"id": 1}}]}, [tool], checks).ok
assert not alone.review({"tool_calls": [{"name": "f", "arguments": "{"}]}, [tool]).ok
"""
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ""})


# --- the failure clinic of L04 -------------------------------------------------------------------


def test_the_three_ailments_are_recognised_and_end():
    with TaskStore(clock=lambda: TODAY) as store:
        store.create("water the plants")
        checks = [known_id(store.get, TaskError), clear_date(parse_due, lambda: TODAY)]
        printed = {"content": PRINTED.replace('"task_id": 2', '"task_id": 1')}
        assert repair(Script(printed), SAID, TOOLS, checks).review.calls[0].arguments == {
            "task_id": 1
        }
        shouted = repair(Script(HIGH, RIGHT), SAID, TOOLS, checks)
        assert shouted.review.ok and shouted.review.calls[0].arguments["priority"] == "high"
        never = answer("create_task", '{"title": "pay the rent", "due": "february 31"}')
        undated = repair(Script(never, never, never), SAID, TOOLS, checks)
        assert not undated.review.ok and "february 31" in str(undated.review.errors[0])
