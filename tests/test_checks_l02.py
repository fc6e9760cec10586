"""The checks of L02 say what is wrong with the answers that learners are likely to give."""

from __future__ import annotations

import openai
import pytest

from helpers.settings import MINI, MODEL
from helpers.standins import HostedStandIn


@pytest.fixture
def said(checks_of):
    """What the check of an exercise says about an answer."""
    return checks_of("L02")


@pytest.fixture
def server():
    with HostedStandIn(model=MODEL, key=None) as server:
        yield server


def entry(url, model=f"openai/{MODEL}", name=MODEL, key="  api_key: none\n", id="  id: main\n"):
    return (
        f"model_name: {name}\nlitellm_params:\n  model: {model}\n  api_base: {url}\n{key}"
        f"model_info:\n{id}"
    )


def test_entry(said, server):
    url = server.url
    assert "✓ entry: passed" in said("entry", entry(url))
    assert "not filled in" in said("entry", entry(url, model="..."))
    for wrong, words in {
        entry(url, model=f"ollama/{MODEL}"): "ollama/ speaks Ollama's own interface",
        entry(url, model=MODEL): "prefix, a slash",
        entry(url, model="openai/gpt-9"): "and no 'gpt-9'",
        entry(url, name="tasks"): "what clients will ask for",
        entry(url.removesuffix("/v1")): "must end with /v1",
        entry("backend"): "must be an address",
        entry("http://127.0.0.1:9/v1"): "Nobody answers",
        entry(url, key=""): "api_key is missing",
        entry(url, id=""): "model_info must be a mapping",
        "model_name: a\n\tb: c": "not YAML",
        "words": "must be a mapping",
    }.items():
        said_now = said("entry", wrong)
        assert said_now.startswith("✗") and words in said_now, said_now


def test_second(said):
    alias = f"router_settings:\n  model_group_alias:\n    tasks: {MODEL}\n"

    def second(id="mini", more=alias):
        lines = entry(server.url, f"openai/{MINI}", MINI, id=f"  id: {id}\n").splitlines()
        return "model_list:\n- " + "\n  ".join(lines) + "\n" + more

    with HostedStandIn(model=MINI, key=None) as server:
        assert "✓ second: passed" in said("second", second())
        assert "belongs to the first" in said("second", second(id="main"))
        assert "router_settings must be a mapping" in said("second", second(more=""))
        turned = f"router_settings:\n  model_group_alias:\n    {MODEL}: tasks\n"
        assert "Clients will ask for tasks" in said("second", second(more=turned))
        assert "list of one entry" in said("second", "model_list:\n  a: b\n")


def test_whose_fault(said):
    def right(error):
        if isinstance(error, openai.APIConnectionError):
            return "proxy"
        if error.status_code in (401, 403):
            return "key"
        later = error.status_code in (408, 429) or error.status_code >= 500
        return "backend" if later else "request"

    def no_status(error):
        return {400: "request", 401: "key"}.get(error.status_code, "backend")

    def by_words(error):
        return "backend" if "Connection" in str(error) else right(error)

    assert "✓ whose-fault: passed" in said("whose-fault", right)
    assert "has no attribute 'status_code'" in said("whose-fault", no_status)
    assert "expected 'proxy'" in said("whose-fault", by_words)
    assert "not filled in" in said("whose-fault", lambda error: ...)
