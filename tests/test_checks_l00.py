"""The checks of L00: right answers pass, and typical wrong ones are told what is wrong."""

from __future__ import annotations

import inspect

import pytest
import yaml


@pytest.fixture
def check(checks_of):
    return checks_of("L00")


# --- split ------------------------------------------------------------------------------------


def split(text):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def split_stub(text): ...


def split_everywhere(text):
    _, header, body, *_ = text.split("---\n")
    return yaml.safe_load(header), body


def split_as_text(text):
    _, header, body = text.split("---\n", 2)
    return header, body


def split_by_lines(text):
    head = {}
    for line in text.split("---\n", 2)[1].splitlines():
        key, _, value = line.partition(": ")
        head[key] = value
    return head, text.split("---\n", 2)[2]


def split_without_body(text):
    return yaml.safe_load(text.split("---\n", 2)[1]), ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (split, "✓ split: passed"),
        (split_stub, "○"),
        (split_everywhere, "only the first two ---"),
        (split_as_text, "should be a dictionary"),
        (split_by_lines, "read as YAML"),
        (split_without_body, "should begin with"),
        (lambda text: yaml.safe_load(text.split("---\n", 2)[1]), "Return two things"),
        (lambda text: text["---"], "stopped with TypeError"),
    ],
)
def test_split(check, answer, said):
    assert said in check("split", answer)


# --- accepts ----------------------------------------------------------------------------------


def accepts(function, name):
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None:
        return False
    return parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


def accepts_stub(function, name): ...


def any_name(function, name):
    return name in inspect.signature(function).parameters


def with_stars(function, name):
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind == p.VAR_KEYWORD for p in parameters)


def by_calling(function, name):
    try:
        function(**{name: 1})
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (accepts, "✓ accepts: passed"),
        (accepts_stub, "○"),
        (any_name, "gave True, expected False"),
        (with_stars, "takes every name"),
        (by_calling, "Look, do not call"),
        (lambda function, name: 1, "Return True or False"),
        (lambda function, name: name in function.__code__.co_varnames, "stopped with"),
    ],
)
def test_accepts(check, answer, said):
    assert said in check("accepts", answer)


# --- description ------------------------------------------------------------------------------

GOOD = """Puts a custom or local model behind an agent: LiteLLM proxy config, base_url for the
OpenAI SDK and the Agents SDK, tool schemas and tool calls (function_tool, strict, optional
parameters), fallback and retries, MCP servers with FastMCP. Use when a client or an agent has to
reach one's own backend (llama.cpp, Ollama, vLLM) directly or through a proxy, when requests or
traces go to the wrong address, when tool calls come back as text, or when the model server is
slow or down. Not for training or prompting a model, nor for web services in general."""
GREEDY = f"""{GOOD} And for fine-tuning with LoRA on support tickets, a chatbot's system prompt that
sounds friendlier, what the API costs this month, Spring Boot circuit breakers for payment, a
Dockerfile, pip behind a company firewall, 4 bits and perplexity, CSV downloads from FastAPI, a
font stack, the travel form, the staging frontend's environment file, a sprint's tasks."""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (GOOD, "✓ description: passed. It triggers on 19 of 20"),
        (..., "○"),
        ("", "○"),
        (3, "is a text"),
        ("Helps with models and agents.", "when to use"),
        ("Use when a model is needed.", "when not"),
        ("Use when a model is needed. Not for dogs.", "20 prompts that should"),
        (GOOD * 3, "1024 character limit"),
        (GREEDY, "near misses"),
    ],
)
def test_description(check, answer, said):
    assert said in check("description", answer)
