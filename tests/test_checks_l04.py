"""The exercises of L04: every solution passes, and each likely mistake is named in words."""

from __future__ import annotations

import copy
import json
import re

import pytest


@pytest.fixture
def verdict(checks_of):
    """What the check prints about a learner's function."""
    return checks_of("L04")


# --- exercise 1 ------------------------------------------------------------------------------


def read(text, closed=True, broken=None, shape=True, kinds=True, all=True, words=()):
    pieces = text.split("<tool_call>")[1:]
    if not pieces:
        return list(words) if words is not None else None
    calls = []
    for piece in pieces:
        body, end, _ = piece.partition("</tool_call>")
        try:
            call = json.loads(body)
        except ValueError:
            if broken == "skip":
                continue
            return broken
        if shape and not isinstance(call, dict):
            return None
        if kinds and isinstance(call, dict) and not isinstance(call["arguments"], dict):
            return None
        if closed and not end:
            return None
        calls.append(call)
    return calls if all else calls[:1]


def test_read_calls(verdict):
    assert verdict("read-calls", lambda text: read(text)).startswith("✓")
    assert verdict("read-calls", lambda text: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"all": False}, ["two calls gave [{'", "expected [{'", "not all of them are there"]),
        ({"broken": []}, ["broken JSON gave [], expected None", "cannot be read as a call"]),
        (
            {"broken": "skip"},
            ["a call with broken JSON gave [], expected None", "cannot be read as a call"],
        ),
        ({"shape": False}, ["JSON that is not a call gave [[1, 2]], expected None"]),
        ({"kinds": False}, ["arguments are a text gave [{'", "expected None"]),
        ({"words": None}, ["words gave None, expected []", "nothing is broken"]),
        ({"words": ["Hello!"]}, ["words gave ['Hello!'], expected []"]),
    ],
)
def test_read_calls_mistakes(verdict, mistake, said):
    out = verdict("read-calls", lambda text: read(text, **mistake))
    assert out.startswith("✗")
    assert all(part in out for part in said), out
    assert "Look again: 4 Measure" in out


def test_read_calls_half_an_answer(verdict):
    def whole_ones(text):
        calls = re.findall(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", text, re.S)
        try:
            read_ = [json.loads(call) for call in calls]
        except ValueError:
            return None
        return read_ or (None if "<tool_call>" in text else [])

    out = verdict("read-calls", whole_ones)
    assert "a right call and one that was cut off gave [{'" in out
    assert "expected None. Half an answer is not an answer" in out


def test_read_calls_must_return_a_list(verdict):
    out = verdict("read-calls", lambda text: json.loads(text.split("tool_call>")[1][:-2]))
    assert "one call gave {'" in out and "Return a list of dictionaries" in out


def test_read_calls_that_stops(verdict):
    out = verdict("read-calls", lambda text: read(text, broken=1 / (text.count("30th") - 1)))
    assert out.startswith("✗")  # it divides by nothing only there
    assert "On a call with broken JSON it stopped with ZeroDivisionError" in out


# --- exercise 2 ------------------------------------------------------------------------------

ASKS = r"\b(delete|remove|drop|get rid)\b"


def object_to(call, said, asks=ASKS, flags=re.I, kind=True, text="Nobody asked to delete that.",
              passes=None):  # fmt: skip
    if (kind and call.name != "delete_task") or re.search(asks, said, flags):
        return passes
    return text


def test_unasked_delete(verdict):
    assert verdict("unasked-delete", lambda *a: object_to(*a)).startswith("✓")
    assert verdict("unasked-delete", lambda *a: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            {"asks": "delete|remove|drop|get rid|finish"},
            ["a delete after 'Finish task 12' gave None", "Nobody asked for a delete there"],
        ),
        (
            {"kind": False},
            [
                "complete_task after 'What is still pending?' gave 'Nobody asked",
                "expected None. This call deletes nothing",
            ],
        ),
        (
            {"flags": 0},
            ["a delete after 'Delete task 12' gave 'Nobody asked", "expected None"],
        ),
        (
            {"asks": "delete|Delete|remove|drop|get rid", "flags": 0},
            ["a delete after 'DELETE 12!' gave", "expected None. Capital letters"],
        ),
        (
            {"asks": "delete|remove|drop"},
            ["'get rid of 12, will you' gave", "expected None. That is a way of asking"],
        ),
        ({"text": "no"}, ["a delete after 'What is still pending?' gave 'no'", "a sentence"]),
        ({"text": True}, ["a delete after 'What is still pending?' gave True", "a sentence"]),
        (
            {"passes": ""},
            ["complete_task after 'What is still pending?' gave '', expected None"],
        ),
    ],
)
def test_unasked_delete_mistakes(verdict, mistake, said):
    out = verdict("unasked-delete", lambda *a: object_to(*a, **mistake))
    assert out.startswith("✗")
    assert all(part in out for part in said), out
    assert "Look again: 5 Validate" in out


# --- exercise 3 ------------------------------------------------------------------------------


def back(message, errors, own=True, empty="{}", objects=True, every=None, wrap=True, ids=True,
         first=True, right="This was not carried out.", keep=True, words=None):  # fmt: skip
    message = copy.deepcopy(message) if own else message
    results = []
    for call, error in zip(message["tool_calls"], errors, strict=True):
        try:
            found = json.loads(call["function"]["arguments"])
            readable = isinstance(found, dict) or not objects
        except ValueError:
            readable = False
        if every or not readable:
            call["function"]["arguments"] = every or empty
        said = (words or error) if error else right
        content = json.dumps({"error": said}) if wrap else said
        id = call["id"] if ids else "call_1"
        results.append({"role": "tool", "tool_call_id": id, "content": content})
    if not keep:
        message["tool_calls"] = message["tool_calls"][1:]
    return [message, *results] if first else results


def test_send_back(verdict):
    assert verdict("send-back", lambda *a: back(*a)).startswith("✓")
    assert verdict("send-back", lambda *a: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            {"own": False},
            ["broken arguments, that message afterwards gave {", "expected {", "stay as it was"],
        ),
        (
            {"empty": ""},
            ["broken arguments, the arguments gave '', expected '{}'", "A server reads"],
        ),
        (
            {"objects": False},
            ["a list as arguments, the arguments gave '[14]', expected '{}'", "not an object"],
        ),
        ({"every": "{}"}, ["one wrong call gave '{}', expected '{\"title\"", "stay as they are"]),
        ({"wrap": False}, ["one wrong call, the content gave 'priority must be", "JSON"]),
        ({"ids": False}, ["a right call and a wrong one gave 'call_1', expected 'call_2'"]),
        ({"first": False}, ["roles gave ['tool'], expected ['assistant', 'tool']"]),
        ({"right": ""}, ['a right call and a wrong one, the content gave \'{"error": ""}\'']),
        (
            {"right": "There is no task 99."},
            ["On a right call and a wrong one", "This call was right", "'There is no task 99.'"],
        ),
        ({"words": "Wrong."}, ["one wrong call gave 'Wrong.', expected 'priority must be one"]),
        ({"keep": False}, ["one wrong call gave {", "keeps all of its calls"]),
    ],
)
def test_send_back_mistakes(verdict, mistake, said):
    out = verdict("send-back", lambda *a: back(*a, **mistake))
    assert out.startswith("✗")
    assert all(part in out for part in said), out
    assert "Look again: 6 Repair" in out


def test_send_back_must_return_messages(verdict):
    out = verdict("send-back", lambda message, errors: message)
    assert "one wrong call gave {" in out and "Return a list of messages" in out
