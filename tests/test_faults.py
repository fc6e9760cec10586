"""Each fault arrives at the OpenAI SDK as what it is meant to be."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import httpx
import openai
import pytest

from helpers.clients import http_options
from helpers.evaluation import Call, schema_valid
from helpers.faults import (
    FAULTS,
    IN_CALLS,
    FaultProxy,
    change_call,
    delay,
    find,
    hang,
    reset,
    status,
)
from helpers.standins import HostedStandIn, tool_call, tool_calls
from helpers.tasks import tool_schemas

FINISH = tool_call("complete_task", task_id=14)
TOOLS = tool_schemas()


@pytest.fixture
def model():
    with HostedStandIn(lambda request: FINISH, key=None) as server:
        yield server


@pytest.fixture
def faults(model):
    with FaultProxy(model.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def web():
    with httpx.Client(**http_options(30, direct=True)) as client:
        yield client


def sdk(faults, web, **more):
    options = {"base_url": faults.url, "api_key": "none", "max_retries": 0, "timeout": 30}
    return openai.OpenAI(**options | more, http_client=web)


def ask(faults, web, stream=False, **more):
    request = {"model": "m", "messages": [{"role": "user", "content": "Finish task 14"}],
               "tools": TOOLS}  # fmt: skip
    reply = sdk(faults, web, **more).chat.completions.create(**request, stream=stream)
    return list(reply) if stream else reply


def call_of(reply):
    function = reply.choices[0].message.tool_calls[0].function
    return function.name, json.loads(function.arguments)


def streamed_call(chunks):
    parts = [p.function for c in chunks for o in c.choices for p in o.delta.tool_calls or []]
    name = "".join(part.name or "" for part in parts)
    return name, json.loads("".join(part.arguments or "" for part in parts))


# --- nothing, and time ---------------------------------------------------------------------


def test_without_a_fault_the_answer_is_the_models(faults, model, web):
    assert call_of(ask(faults, web)) == ("complete_task", {"task_id": 14})
    assert streamed_call(ask(faults, web, stream=True)) == ("complete_task", {"task_id": 14})
    assert len(model.requests) == 2
    assert model.requests[0].body["tools"] == TOOLS
    assert [event.done for event in faults.log] == ["answered", "answered"]
    assert faults.log[0].call == 'complete_task({"task_id": 14})'
    assert faults.log[0].request == "Finish task 14"
    assert faults.counts() == {}


def test_delay_is_late_and_right(faults, web):
    faults.script(delay(0.05))
    assert call_of(ask(faults, web)) == ("complete_task", {"task_id": 14})
    assert faults.counts() == {"delay": 1}


def test_delay_beyond_the_clients_patience_never_reaches_the_model(faults, model, web):
    faults.script(delay(600))
    with pytest.raises(openai.APITimeoutError):
        ask(faults, web, timeout=0.3)
    assert model.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_hang_is_a_timeout(faults, model, web, stream):
    faults.script(hang())
    with pytest.raises(openai.APITimeoutError):
        ask(faults, web, stream, timeout=0.3)
    assert model.requests == []
    assert faults.counts() == {"hang": 1}


# --- connections -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_refuse_in_a_script_is_a_connection_error(faults, model, web, stream):
    faults.script("refuse", None)
    with pytest.raises(openai.APIConnectionError) as caught:
        ask(faults, web, stream)
    assert not isinstance(caught.value, openai.APITimeoutError)
    assert model.requests == []
    ask(faults, web)  # the next one is answered


def test_refuse_as_a_switch_closes_the_port(faults, web):
    faults.switch("refuse")
    with pytest.raises(openai.APIConnectionError) as caught:
        ask(faults, web)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", faults.port), timeout=5)
    faults.switch(None)
    assert call_of(ask(faults, web))[0] == "complete_task"


def test_nobody_waits_when_the_port_is_closed_as_they_arrive(faults):
    """Who has just connected is served or gets an error, never silence."""
    end, silent, served = threading.Event(), [], []

    def knock():
        while not end.is_set():
            with contextlib.suppress(ConnectionError):
                with socket.create_connection(("127.0.0.1", faults.port), timeout=10) as client:
                    client.sendall(
                        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                    )
                    try:
                        served.append(client.recv(1))
                    except TimeoutError:
                        silent.append(True)

    threads = [threading.Thread(target=knock) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        faults.switch("refuse")
        faults.switch(None)
    end.set()
    for thread in threads:
        thread.join()
    assert not silent
    assert b"H" in served


def test_reset_in_a_whole_answer(faults, web):
    faults.script("reset")
    with pytest.raises(openai.APIConnectionError):
        ask(faults, web)


def test_reset_in_a_stream_is_no_error_of_the_sdk(faults, web):
    """It comes after the chunks that were sent, and as an error of httpx."""
    faults.script(reset(after=1))
    seen = []
    messages = [{"role": "user", "content": "Finish task 14"}]
    stream = sdk(faults, web).chat.completions.create(model="m", messages=messages, stream=True)
    with pytest.raises(httpx.TransportError) as caught:
        for chunk in stream:
            seen.append(chunk)
    assert not isinstance(caught.value, openai.OpenAIError)
    assert len(seen) == 1


# --- statuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("400", openai.BadRequestError),
        ("401", openai.AuthenticationError),
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("503", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_status(faults, web, code, kind, stream):
    faults.script(code)
    with pytest.raises(kind) as caught:
        ask(faults, web, stream)
    assert caught.value.status_code == int(code)
    wanted = "1" if code == "429" else None
    assert caught.value.response.headers.get("retry-after") == wanted


def test_retry_after(faults, web):
    faults.script(status(503, retry_after=0.25))
    with pytest.raises(openai.InternalServerError) as caught:
        ask(faults, web)
    assert caught.value.response.headers["retry-after"] == "0.25"


# --- status 200, and no answer ---------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_broken_json_is_no_error_of_the_sdk(faults, web, stream):
    faults.script("broken json")
    with pytest.raises(json.JSONDecodeError):
        ask(faults, web, stream)


def test_a_web_page_is_given_back_as_text(faults, web):
    faults.script("web page", "web page")
    reply = ask(faults, web)
    assert isinstance(reply, str) and "log in" in reply
    assert ask(faults, web, stream=True) == []


def test_empty(faults, web):
    faults.script("empty", "empty")
    message = ask(faults, web).choices[0].message
    assert not message.content and not message.tool_calls
    assert ask(faults, web, stream=True) == []


# --- in the call -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("unknown tool", ("complete_task_now", {"task_id": 14})),
        ("bad arguments", ("complete_task", {"task_id": "number 14"})),
        ("wrong call", ("complete_task", {"task_id": 15})),
    ],
)
def test_faults_in_the_call(faults, web, kind, wanted):
    faults.script(kind, kind)
    assert call_of(ask(faults, web)) == wanted
    assert streamed_call(ask(faults, web, stream=True)) == wanted
    event = faults.log[0]
    assert event.model_call == 'complete_task({"task_id": 14})'
    assert event.call != event.model_call
    assert event.done == "broken"


CALLS = [
    ("create_task", {"title": "call mum tomorrow", "priority": "high"}),
    ("create_task", {"title": "buy milk"}),
    ("update_task", {"task_id": 3, "status": "completed"}),
    ("complete_task", {"task_id": 1}),
    ("delete_task", {"task_id": 9}),
    ("list_tasks", {}),
    ("list_tasks", {"status": "pending"}),
    ("list_tasks", {"status": "completed"}),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_what_a_changed_call_is(name, arguments):
    """Not offered; against the schema; valid, but another call."""
    changed = {}
    for kind in IN_CALLS:
        new, given = change_call(kind, name, arguments)
        changed[kind] = Call(new, json.dumps(given), given)
    assert changed["unknown tool"].name not in {tool["function"]["name"] for tool in TOOLS}
    assert changed["bad arguments"].name == name
    assert not schema_valid(changed["bad arguments"], TOOLS)
    assert schema_valid(changed["wrong call"], TOOLS)
    assert changed["wrong call"].args != arguments


def test_only_the_first_of_several_calls_is_changed(web):
    script = [tool_calls(("complete_task", {"task_id": 1}), ("complete_task", {"task_id": 5}))]
    with HostedStandIn(script, key=None) as server, FaultProxy(server.url) as faults:
        faults.script("wrong call")
        calls = ask(faults, web).choices[0].message.tool_calls
        assert [json.loads(c.function.arguments)["task_id"] for c in calls] == [2, 5]


def test_an_answer_in_words_has_no_call_to_change(web):
    from helpers.standins import text

    with HostedStandIn([text("Hello.")], key=None) as server, FaultProxy(server.url) as faults:
        faults.script("wrong call")
        assert ask(faults, web).choices[0].message.content == "Hello."
        assert faults.log[0].done == "nothing to change"
        assert faults.counts() == {}


# --- when what happens -----------------------------------------------------------------------


def test_the_script_comes_before_the_switch_and_the_storm(faults, web):
    faults.storm({"500": 1.0})
    faults.switch("429")
    faults.script(None, "503")
    seen = []
    for _ in range(3):
        try:
            ask(faults, web)
            seen.append("answered")
        except openai.APIStatusError as error:
            seen.append(error.status_code)
    faults.switch(None)
    with pytest.raises(openai.InternalServerError):
        ask(faults, web)
    assert seen == ["answered", 503, 429]
    faults.storm(0)
    ask(faults, web)


def drawn(faults, web, **storm):
    faults.clear()
    faults.storm(**storm)
    for _ in range(60):
        with contextlib.suppress(openai.OpenAIError, ValueError):
            ask(faults, web)
    return [event.fault for event in faults.log]


def test_a_storm_with_the_same_seed_is_the_same_storm(faults, web):
    quick = ["500", "429", "broken json", "wrong call"]
    first = drawn(faults, web, share=0.4, seed=1, kinds=quick)
    assert first == drawn(faults, web, share=0.4, seed=1, kinds=quick)
    assert first != drawn(faults, web, share=0.4, seed=2, kinds=quick)
    assert set(first) == {"", *quick}
    assert 10 <= sum(map(bool, first)) <= 40


def test_shares_by_fault(faults, web):
    assert set(drawn(faults, web, share={"500": 0.5, "429": 0.5})) == {"500", "429"}
    with pytest.raises(ValueError, match="add up"):
        faults.storm({"500": 0.7, "429": 0.7})


def test_unknown_faults_are_named():
    with pytest.raises(ValueError, match=r"There is no fault 'rain'.*hang"):
        find("rain")
    assert all(find(name) is fault for name, fault in FAULTS.items())


# --- behind and around it ---------------------------------------------------------------------


def test_other_requests_pass(faults, web):
    faults.switch("500")
    reply = web.get(f"{faults.url}/models")
    assert reply.status_code == 200 and reply.json()["data"]
    assert faults.log == []


def test_when_nobody_answers_behind_it(web):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with FaultProxy(f"http://127.0.0.1:{free}/v1") as faults:
        with pytest.raises(openai.APIConnectionError):
            ask(faults, web)
        assert faults.log[0].done == "no model"


def test_stop_ends_what_hangs_and_frees_the_port(model, web):
    faults = FaultProxy(model.url)
    faults.switch("hang")
    ended = []

    def wait():
        try:
            ask(faults, web)
        except openai.APIConnectionError as error:
            ended.append(type(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not faults.log:
        waiting.join(0.01)
    faults.stop()
    waiting.join(20)
    assert ended == [openai.APIConnectionError]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", faults.port))
    faults.stop()  # twice is fine
    assert repr(faults) == "<FaultProxy stopped>"
    assert not any(thread.name == "fault-proxy" for thread in threading.enumerate())


def test_many_at_once(faults, web):
    faults.storm(0.5, kinds=["500", "delay", "wrong call"])
    results: list = []

    def one():
        try:
            results.append(call_of(ask(faults, web))[0])
        except openai.InternalServerError:
            results.append("500")

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == len(faults.log) == 20
    assert results.count("500") == faults.counts().get("500", 0)


def test_a_real_model_behind_it(web):
    from helpers.clients import DETERMINISTIC, connection

    to = connection(("backend",))
    messages = [{"role": "user", "content": "Finish task 14"}]
    request = {"model": to.direct_model, "messages": messages, "tools": TOOLS, **DETERMINISTIC}
    with FaultProxy(to.direct_url) as faults:
        faults.script(None, "wrong call")
        client = sdk(faults, web, timeout=120)
        right = call_of(client.chat.completions.create(**request))
        wrong = call_of(client.chat.completions.create(**request))
    assert right == ("complete_task", {"task_id": 14})
    assert wrong == ("complete_task", {"task_id": 15})
