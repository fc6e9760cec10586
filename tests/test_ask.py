"""``ask``: the agent's loop and what is shown of it, against a scripted stand-in."""

from __future__ import annotations

import asyncio

import pytest

from helpers import ask, standins
from helpers.settings import CourseError
from helpers.tasks import TaskStore, tool_schemas


@pytest.fixture
def asked(tmp_path):
    """Run one request against a script.

    Returns:
        A function of request and script that returns the lines shown, what the model was
        sent, and the store.
    """
    import openai
    from agents import OpenAIChatCompletionsModel

    def run(request, *script):
        store = TaskStore(tmp_path / "tasks.db")
        with standins.HostedStandIn(script) as server:
            client = openai.AsyncOpenAI(
                base_url=server.url, api_key=server.key, max_retries=0, timeout=10
            )
            agent = ask.task_agent(store, OpenAIChatCompletionsModel("gpt-4o-mini", client))
            result = asyncio.run(ask.run(agent, request))
            return ask.lines(result), server.requests, store

    return run


def test_call_result_and_answer_are_shown(asked):
    lines, requests, store = asked(
        "add: call mum, urgent",
        standins.tool_call("create_task", title="call mum", priority="urgent"),
        standins.text("Created task 1."),
    )
    assert lines[0] == 'Call     create_task(title="call mum", priority="urgent")'
    assert lines[1].startswith('Result   {"task_id": 1, "title": "call mum"')
    assert lines[2:] == ["Answer   Created task 1."]
    assert store.get(1)["priority"] == "urgent"
    assert requests[0].body["messages"][-1]["content"] == "add: call mum, urgent"


def test_the_model_is_offered_the_task_apis_own_schemas(asked):
    _, requests, _ = asked("hello", standins.text("Hello."))
    sent = [tool["function"]["parameters"] for tool in requests[0].body["tools"]]
    assert sent == [tool["function"]["parameters"] for tool in tool_schemas()]


def test_a_tool_that_is_not_there_is_told_to_the_model(asked):
    lines, requests, _ = asked(
        "archive it", standins.tool_call("archive_task", task_id=1), standins.text("I cannot.")
    )
    assert lines[-1] == "Answer   I cannot."
    assert requests[1].body["messages"][-1]["role"] == "tool"


def test_a_model_that_only_calls_is_stopped(asked):
    with pytest.raises(CourseError, match="six turns"):
        asked("list", *[standins.tool_call("list_tasks")] * 7)


def test_a_failing_backend_is_explained(asked):
    with pytest.raises(CourseError, match="did not answer") as caught:
        asked("list", standins.error(500))
    assert "doctor" in caught.value.todo


def test_arguments_that_are_not_json_are_shown_as_they_came():
    assert ask.call_text("create_task", '{"title": "cal') == 'create_task({"title": "cal)'
    assert ask.call_text("list_tasks", "") == "list_tasks()"
