"""The checks of L01 say what is wrong with the answers that learners are likely to give."""

from __future__ import annotations

import json

import pytest

from helpers.tasks import call_tool


@pytest.fixture
def said(checks_of):
    """What the check of an exercise says about an answer."""
    return checks_of("L01")


def carry_out(store, message, messages, calls=slice(None)):
    for call in (message.get("tool_calls") or [])[calls]:
        function = call["function"]
        result = call_tool(store, function["name"], function["arguments"])
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


def once(ask, store, messages, limit=6):
    messages = [*messages, ask(messages)]
    carry_out(store, messages[-1], messages)
    return messages


def endless(ask, store, messages, limit=6):
    while True:
        messages = [*messages, ask(messages)]
        if not messages[-1].get("tool_calls"):
            return messages
        carry_out(store, messages[-1], messages)


def first_call_only(ask, store, messages, limit=6):
    for _ in range(limit):
        messages = [*messages, ask(messages)]
        carry_out(store, messages[-1], messages, slice(1))
        if not messages[-1].get("tool_call_id"):
            break
    return messages


def forgets_its_call(ask, store, messages, limit=6):
    for _ in range(limit):
        message = ask(messages)
        if not message.get("tool_calls"):
            break
        carry_out(store, message, messages)
    return [*messages, message]


def only_text(ask, store, messages, limit=6):
    return endless(ask, store, messages)[-1]["content"]


def right(ask, store, messages, limit=6):
    for _ in range(limit):
        message = ask(messages)
        messages = [*messages, message]
        if not message.get("tool_calls"):
            break
        carry_out(store, message, messages)
    return messages


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (once, "ask again"),
        (endless, "does not stop"),
        (first_call_only, "each of them once"),
        (forgets_its_call, "its own calls"),
        (only_text, "list of messages"),
        (lambda ask, store: [], "stopped with TypeError"),
        (right, "passed"),
    ],
)
def test_loop(said, answer, words):
    assert words in said("loop", answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda calls, p: sum(c["prompt_tokens"] * p["in"] for c in calls),
            "a million times too much",
        ),
        (lambda calls, p: sum(c["prompt_tokens"] * p["out"] for c in calls) / 1e6, "what is sent"),
        (lambda calls, p: sum(c["total_tokens"] * p["in"] for c in calls) / 1e6, "expected 4.0"),
        (lambda calls, p: "2 dollars", "Return a number"),
    ],
)
def test_cost(said, answer, words):
    assert words in said("cost", answer)


def unescaped(sent):
    return json.dumps(sent, ensure_ascii=False).replace("\\", "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda sent, secrets: [s for s in secrets if s in json.dumps(sent)], "with an é"),
        (
            lambda sent, secrets: [
                s for s in secrets if any(s in (m.get("content") or "") for r in sent for m in r)
            ],
            "tool calls included",
        ),
        (
            lambda sent, secrets: [
                s for r in sent for s in secrets if s in json.dumps(r, ensure_ascii=False)
            ],
            "once",
        ),
        (lambda sent, secrets: {s for s in secrets if s in str(sent)}, "JSON in JSON"),
        (lambda sent, secrets: [s for s in secrets if s in unescaped(sent)], "passed"),
    ],
)
def test_leaked(said, answer, words):
    assert words in said("leaked", answer)


def chooses(need, reasons=("It is so.", "And so."), cloud=True):
    out = need["private"] or need["offline"] or need["cloud_cost"] > need["budget"]
    out = out or need["cloud_seconds"] > need["patience"]
    if not need["in_domain"]:
        return ("none" if out and cloud else "cloud"), list(reasons)
    return ("proxy" if need["programs"] > 1 else "direct"), list(reasons)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda need: chooses(need)[0], "two things"),
        (lambda need: chooses(need, cloud=False), "private=True"),
        (lambda need: chooses(need, reasons=()), "Say why"),
        (lambda need: chooses(need, reasons=("Because.",)), "name both"),
        (chooses, "passed"),
    ],
)
def test_choose(said, answer, words):
    assert words in said("choose", answer)
