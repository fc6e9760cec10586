"""The stand-ins speak the documented shapes, streamed and not, and misbehave as told."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import openai
import pytest

from helpers.standins import (
    HostedStandIn,
    OllamaStandIn,
    drop,
    error,
    garbage,
    slow,
    text,
    tool_call,
    tool_calls,
)
from helpers.tasks import tool_schemas

HELLO = [{"role": "user", "content": "hello there"}]
MODEL = "task-api-model"


# One HTTP client for all: each new one reads the machine's certificates, which takes longer
# than everything else here.
SHARED = openai.OpenAI(
    base_url="http://127.0.0.1:9",
    api_key="none",
    max_retries=0,
    http_client=httpx.Client(trust_env=False),
)


def client(server: HostedStandIn, **more) -> openai.OpenAI:
    options = {"base_url": server.url, "api_key": server.key or "none", "timeout": 5}
    return SHARED.with_options(**options | more)


def ask(server, **more):
    return client(server).chat.completions.create(model="gpt-4o-mini", messages=HELLO, **more)


# --- the hosted API ----------------------------------------------------------------------------


def test_text_and_calls():
    script = [text("Hello you."), tool_calls(("complete_task", {"task_id": 3}), ("list_tasks", {}))]
    with HostedStandIn(script) as server:
        completion = ask(server)
        assert completion.choices[0].message.content == "Hello you."
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage.total_tokens > 2
        choice = ask(server, tools=tool_schemas()).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert [c.function.name for c in choice.message.tool_calls] == [
            "complete_task",
            "list_tasks",
        ]
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"task_id": 3}
        assert len({c.id for c in choice.message.tool_calls}) == 2
        assert server.requests[1].body["tools"] == tool_schemas()
        assert "stand-in" in ask(server).choices[0].message.content  # script at its end


def test_streams():
    script = [text("Hello you there."), tool_call("create_task", title="call mum", due="friday")]
    with HostedStandIn(script) as server:
        chunks = list(ask(server, stream=True, stream_options={"include_usage": True}))
        pieces = [c.choices[0].delta.content for c in chunks if c.choices]
        assert "".join(filter(None, pieces)) == "Hello you there."
        assert len(chunks) > 4
        assert chunks[-1].usage.completion_tokens
        arguments = ""
        for chunk in ask(server, stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                arguments += call.function.arguments or ""
        assert json.loads(arguments) == {"title": "call mum", "due": "friday"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_errors(status, kind):
    with HostedStandIn([error(status, retry_after=2)]) as server, pytest.raises(kind) as caught:
        ask(server)
    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.body["message"]


def test_keys():
    with HostedStandIn(key="right") as server:
        for wrong in ("wrong", "wright"):
            with pytest.raises(openai.OpenAIError):
                client(server, api_key=wrong).models.list()
        assert [m.id for m in client(server).models.list()] == ["gpt-4o-mini"]
    with HostedStandIn(key=None) as server:
        assert httpx.get(server.url + "/models").status_code == 200


def test_slow_and_dropped():
    with HostedStandIn([slow(5), drop(2), drop(1), drop(0)]) as server:
        with pytest.raises(openai.APITimeoutError):
            client(server, timeout=0.3).chat.completions.create(model="m", messages=HELLO)
        stream = ask(server, stream=True)
        with pytest.raises((httpx.HTTPError, openai.APIError)):
            for _ in stream:
                pass
        for _ in range(2):
            with pytest.raises(openai.APIConnectionError):
                ask(server)
        begin = time.monotonic()
    assert time.monotonic() - begin < 3  # stopping does not wait for the slow answer


def test_garbage_and_bad_requests():
    with HostedStandIn([garbage()]) as server:
        assert "<html>" in str(ask(server))
        header = {"Authorization": f"Bearer {server.key}"}
        for path, body in [("/chat/completions", "{"), ("/chat/completions", "{}"), ("/x", "{}")]:
            response = httpx.post(server.url + path, content=body, headers=header)
            assert response.status_code in (400, 404)
            assert response.json()["error"]["message"]


def test_a_function_as_script():
    def echo(request):
        return text(request.body["messages"][-1]["content"])

    with HostedStandIn(echo) as server:
        assert ask(server).choices[0].message.content == "hello there"


def test_hosted_forwards_to_a_backend():
    script = [tool_call("list_tasks"), text("There you are.")]
    with (
        HostedStandIn(script, key=None, model=MODEL) as backend,
        HostedStandIn(backend=backend.root) as server,
    ):
        assert ask(server).choices[0].message.tool_calls[0].function.name == "list_tasks"
        assert ask(server).model == "gpt-4o-mini"
        assert backend.requests[0].body["model"] == MODEL
        backend._script = [error(500)] * 9
        with pytest.raises(openai.InternalServerError):
            ask(server)
        with pytest.raises(openai.InternalServerError):
            ask(server, stream=True)


def test_a_backend_that_is_down_or_breaks_off():
    with HostedStandIn(backend="http://127.0.0.1:9") as server:
        with pytest.raises(openai.InternalServerError, match="does not answer"):
            ask(server)
    with OllamaStandIn(backend="http://127.0.0.1:9") as server:
        assert post(server, "/api/chat", messages=HELLO).status_code == 502
    with (
        HostedStandIn([drop(2)], key=None) as backend,
        HostedStandIn(backend=backend.url) as server,
    ):
        stream = ask(server, stream=True)
        with pytest.raises((httpx.HTTPError, openai.APIError)):
            for _ in stream:
                pass


def test_many_at_once():
    from concurrent.futures import ThreadPoolExecutor

    with HostedStandIn([text("x")] * 40, latency=0.02) as server, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(server).choices[0].message.content, range(40)))
    assert answers == ["x"] * 40
    assert len(server.requests) == 40


# --- Ollama ------------------------------------------------------------------------------------


def post(server, path, **body):
    response = httpx.post(server.url + path, json={"model": MODEL} | body, timeout=10)
    return response


def test_ollama_chat():
    script = [text("Hello you."), tool_call("complete_task", task_id=3)]
    with OllamaStandIn(script) as server:
        answer = post(server, "/api/chat", messages=HELLO, stream=False).json()
        assert answer["message"] == {"role": "assistant", "content": "Hello you."}
        assert answer["done"] is True
        assert answer["done_reason"] == "stop"
        assert answer["model"] == MODEL
        assert {"created_at", "total_duration", "eval_count", "prompt_eval_count"} <= set(answer)
        lines = post(server, "/api/chat", messages=HELLO, tools=tool_schemas()).text.splitlines()
        parts = [json.loads(line) for line in lines]
        assert parts[0]["message"]["tool_calls"] == [
            {"function": {"name": "complete_task", "arguments": {"task_id": 3}}}
        ]
        assert [part["done"] for part in parts] == [False, True]
        assert len(server.chats()) == 2


def test_ollama_generate():
    with OllamaStandIn([text("Hello you."), text("Hello you.")]) as server:
        answer = post(server, "/api/generate", prompt="hello", stream=False).json()
        assert answer["response"] == "Hello you."
        response = post(server, "/api/generate", prompt="hello")
        assert response.headers["content-type"] == "application/x-ndjson"
        parts = [json.loads(line) for line in response.text.splitlines()]
        assert "".join(part["response"] for part in parts) == "Hello you."
        assert "message" not in parts[0]


def test_ollama_other_addresses():
    with OllamaStandIn(template="{{ .Tools }}") as server:
        assert httpx.get(server.url).text == "Ollama is running"
        assert "stand-in" in httpx.get(server.url + "/api/version").json()["version"]
        assert httpx.get(server.url + "/api/tags").json()["models"][0]["name"] == MODEL + ":latest"
        shown = post(server, "/api/show").json()
        assert shown["capabilities"] == ["completion", "tools"]
        assert shown["model_info"]["llama.context_length"] == 1024
        assert post(server, "/api/chat", model="llama3", messages=HELLO).status_code == 404
        assert post(server, "/api/chat", model="", messages=HELLO).status_code == 400
        assert post(server, "/api/chat", messages=[]).json()["done_reason"] == "load"
        assert post(server, "/api/pull").status_code == 404


def test_ollama_errors():
    with OllamaStandIn([error(500, "out of memory"), drop(1), garbage("nonsense")]) as server:
        answer = post(server, "/api/chat", messages=HELLO)
        assert (answer.status_code, answer.json()) == (500, {"error": "out of memory"})
        with pytest.raises(httpx.HTTPError):
            post(server, "/api/chat", messages=HELLO)
        assert post(server, "/api/chat", messages=HELLO).text == "nonsense"


def test_ollama_forwards_a_conversation():
    messages = [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "create_task", "arguments": {"title": "x"}}}],
        },
        {"role": "tool", "content": '{"task_id": 1}', "tool_name": "create_task"},
    ]
    with (
        HostedStandIn(
            [tool_call("list_tasks", status="pending"), text("Yes.")], key=None
        ) as backend,
        OllamaStandIn(backend=backend.root) as server,
    ):
        options = {"temperature": 0, "seed": 3, "num_predict": 20}
        answer = post(server, "/api/chat", messages=messages, tools=tool_schemas(),
                      stream=False, options=options).json()  # fmt: skip
        assert answer["message"]["tool_calls"][0]["function"] == {
            "name": "list_tasks",
            "arguments": {"status": "pending"},
        }
        sent = backend.requests[0].body
        assert sent["tools"] == tool_schemas()
        assert (sent["temperature"], sent["seed"], sent["max_tokens"]) == (0, 3, 20)
        call = sent["messages"][1]["tool_calls"][0]
        assert call["function"]["arguments"] == '{"title": "x"}'
        assert sent["messages"][2]["tool_call_id"] == call["id"]
        generated = post(server, "/api/generate", prompt="p", system="s", stream=False,
                         format="json").json()  # fmt: skip
        assert generated["response"] == "Yes."
        sent = backend.requests[1].body
        assert [m["role"] for m in sent["messages"]] == ["system", "user"]
        assert sent["response_format"] == {"type": "json_object"}
        assert "tools" not in sent


@pytest.mark.slow
def test_litellm_speaks_to_it(monkeypatch):
    """What L02 shows: ``ollama/`` turns tools into prompt text, ``ollama_chat/`` keeps them."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    with OllamaStandIn([text("{}"), tool_call("list_tasks")]) as server:
        for prefix in ("ollama", "ollama_chat"):
            answer = litellm.completion(
                f"{prefix}/{MODEL}", messages=HELLO, tools=tool_schemas(), api_base=server.url
            )
        plain, chat = (request.body for request in server.chats())
    assert "tools" not in plain
    assert "create_task" in plain["prompt"]
    assert chat["tools"][0]["function"]["name"] == "create_task"
    assert answer.choices[0].message.tool_calls[0].function.name == "list_tasks"


def test_many_connections_at_once_are_all_answered():
    async def race(server: HostedStandIn) -> list[int]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as web:
            asked = [web.post(f"{server.url}/chat/completions", json={}) for _ in range(60)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    with HostedStandIn() as server:
        assert asyncio.run(race(server)) == [401] * 60
