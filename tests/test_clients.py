"""Clients on the running services: where they go, and what they never do."""

from __future__ import annotations

import asyncio

import openai
import pytest
from test_backend import ASK, TOOL

from helpers import clients, services
from helpers.settings import MODEL


@pytest.fixture(scope="module", autouse=True)
def running():
    services.ensure(quiet=True)


@pytest.fixture(autouse=True)
def web_proxy_in_the_environment(monkeypatch):
    """A company's proxy that would swallow every request to this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_connection_shows_neither_keys_nor_ports():
    connection = clients.connection()
    assert connection.base_url.endswith("/v1") and connection.direct_url.endswith("/v1")
    assert connection.base_url != connection.direct_url
    assert connection.api_key == services.key()
    assert connection.api_key not in repr(connection) and "127.0.0.1" not in repr(connection)


@pytest.mark.parametrize("direct", [False, True])
def test_openai_client(direct):
    client = clients.openai_client(direct=direct)
    assert client.max_retries == 0 and client.timeout == clients.TIMEOUT
    answers = [
        client.chat.completions.create(
            model=MODEL, tools=[TOOL], **ASK, **clients.DETERMINISTIC
        ).choices[0]
        for _ in range(2)
    ]
    assert answers[0].message.content == answers[1].message.content
    assert answers[0].finish_reason == answers[1].finish_reason


def test_arguments_of_the_caller_win():
    client = clients.openai_client(max_retries=2, timeout=5)
    assert client.max_retries == 2 and client.timeout == 5


@pytest.mark.parametrize("make", [clients.openai_client, clients.async_client])
def test_who_names_address_and_key_starts_no_service(make, monkeypatch):
    """An exported agent would replace the course's services by its own, with another key."""
    monkeypatch.setattr(services, "ensure", lambda *a, **kw: pytest.fail("services were started"))
    client = make(base_url="http://127.0.0.1:9/v1", api_key="x")
    assert str(client.base_url) == "http://127.0.0.1:9/v1/" and client.max_retries == 0


def test_wrong_key_is_the_sdks_authentication_error():
    client = clients.openai_client(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_async_client():
    async def two() -> list[str]:
        async with clients.async_client() as client:
            ask = client.chat.completions.create(model=MODEL, **ASK, **clients.DETERMINISTIC)
            again = client.chat.completions.create(model=MODEL, **ASK, **clients.DETERMINISTIC)
            return [answer.object for answer in await asyncio.gather(ask, again)]

    assert asyncio.run(two()) == ["chat.completion"] * 2


def test_http_reaches_the_backend():
    with clients.http() as client:
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("direct", [False, True])
def test_a_request_right_after_a_stream(direct):
    """llama.cpp closes the connection after a stream; no request may be lost in that."""
    client = clients.openai_client(direct=direct)
    ask = {"model": MODEL, "max_tokens": 4, "messages": ASK["messages"]}
    for _ in range(15):
        list(client.chat.completions.create(stream=True, **ask))
        client.chat.completions.create(**ask)


def test_agents_model_runs_without_tracing(monkeypatch):
    from agents import Agent, ModelSettings, Runner
    from agents.tracing.processors import BackendSpanExporter

    sent = []
    monkeypatch.setattr(BackendSpanExporter, "export", lambda self, items: sent.append(items))
    model = clients.agents_model()
    agent = Agent("TaskAgent", model=model, model_settings=ModelSettings(max_tokens=20))
    result = asyncio.run(Runner.run(agent, "hello", max_turns=1))
    assert isinstance(result.final_output, str)
    assert sent == []
