"""The exercises of L03: every solution passes, and each likely mistake is named in words."""

from __future__ import annotations

import json
import types

import pytest

from helpers.traces import tree


@pytest.fixture
def verdict(checks_of):
    """What the check prints about a learner's function."""
    return checks_of("L03")


# --- exercise 1 ------------------------------------------------------------------------------


def read(reply, words=True, load=True, guard=True, cut="length"):
    choice = reply.choices[0]
    calls = choice.message.tool_calls
    calls = (calls or []) if guard else calls
    return {
        "text": (choice.message.content or "") if words else choice.message.content,
        "calls": [
            (c.function.name, json.loads(c.function.arguments) if load else c.function.arguments)
            for c in calls
        ],
        "cut": choice.finish_reason == cut,
    }


def test_read_reply(verdict):
    assert verdict("read-reply", lambda reply: read(reply)).startswith("✓")
    assert verdict("read-reply", lambda reply: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"words": False}, "content may be None"),
        ({"load": False}, "JSON in a text"),
        ({"guard": False}, "an answer in words it stopped with TypeError"),
        ({"cut": "stop"}, "finish_reason"),
    ],
)
def test_read_reply_mistakes(verdict, mistake, said):
    out = verdict("read-reply", lambda reply: read(reply, **mistake))
    assert out.startswith("✗")
    assert said in out
    assert "Look again: 2 An answer with types" in out


def test_read_reply_must_return_a_dictionary(verdict):
    assert "return a dictionary" in verdict("read-reply", lambda reply: reply.choices[0])


# --- exercise 2 ------------------------------------------------------------------------------


def collect(chunks, by_index=True, guard=True):
    calls: dict = {}
    for chunk in chunks:
        choices = chunk.choices if guard else [chunk.choices[0]]
        for choice in choices:
            for part in choice.delta.tool_calls or []:
                key = part.index if by_index else 0
                call = calls.setdefault(key, {"name": "", "arguments": ""})
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
    return [calls[key] for key in sorted(calls)]


def test_collect_calls(verdict):
    assert verdict("collect-calls", lambda chunks: collect(chunks)).startswith("✓")


def test_collect_calls_mistakes(verdict):
    one = verdict("collect-calls", lambda chunks: collect(chunks, by_index=False))
    assert "Each part.index is a call of its own" in one
    two = verdict("collect-calls", lambda chunks: collect(chunks, guard=False))
    assert two.startswith("✗") and "IndexError" in two
    assert "Return a list" in verdict("collect-calls", lambda chunks: {})
    every = verdict(
        "collect-calls",
        lambda chunks: [
            {"name": p.function.name, "arguments": p.function.arguments}
            for c in chunks
            for o in c.choices
            for p in o.delta.tool_calls or []
        ],
    )
    assert "belongs to the call at part.index" in every


# --- exercise 3 ------------------------------------------------------------------------------


def make(name, backends, hosted=False, switch=True, keyed=True, listing=True, retries=0, **more):
    from openai import OpenAI

    if name not in backends:
        raise ValueError(f"No {name}: {', '.join(backends)}" if listing else "No.")
    if switch and name == "hosted" and not hosted:
        raise ValueError("hosted=True is missing")
    if keyed and not backends[name]["api_key"]:
        raise ValueError("no key")
    tries = retries if name == "proxy" else 2
    return OpenAI(**backends[name] | {"timeout": 30, "max_retries": tries} | more)


def test_make_client(verdict):
    assert verdict("make-client", lambda *a, **k: make(*a, **k)).startswith("✓")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"switch": False}, "only when somebody said so"),
        ({"keyed": False}, "OPENAI_API_KEY"),
        ({"listing": False}, "lists the known ones"),
        ({"retries": 2}, "multiply"),
        ({"timeout": 600}, "ten minutes"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "dictionary of backends"),
    ],
)
def test_make_client_mistakes(verdict, mistake, said):
    out = verdict("make-client", lambda *a, **k: make(*a, **k, **mistake))
    assert out.startswith("✗")
    assert said in out


def test_make_client_with_a_key_error(verdict):
    def careless(name, backends, hosted=False):
        from openai import OpenAI

        return OpenAI(**backends[name], timeout=30, max_retries=0 if name == "proxy" else 2)

    assert "It stopped with KeyError" in verdict("make-client", careless)


# --- the tree of spans -----------------------------------------------------------------------


def span(id, parent, kind, error=None, **data):
    return types.SimpleNamespace(
        span_id=id,
        parent_id=parent,
        error=error,
        span_data=types.SimpleNamespace(type=kind, **data),
    )


def test_tree():
    spans = [
        span("a", None, "agent", name="TaskAgent"),
        span("t", "a", "turn", turn=1, name="turn"),
        span("g", "t", "generation", model="m", usage={"input_tokens": 9, "output_tokens": 2}),
        span("f", "t", "function", name="delete_task", input='{"task_id": 1}'),
        span("h", "a", "generation", {"message": "no answer", "data": None}, model="m", usage=None),
    ]
    assert tree(spans).splitlines() == [
        "└─ agent TaskAgent",
        "   ├─ turn 1",
        "   │  ├─ generation m: 9 tokens in, 2 out",
        '   │  └─ function delete_task({"task_id": 1})',
        "   └─ generation m failed: no answer",
    ]
    assert tree([]) == ""
