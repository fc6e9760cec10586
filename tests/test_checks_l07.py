"""The exercises of L07: every solution passes, and each likely mistake is named in words."""

from __future__ import annotations

import re

import pytest

from helpers.agent import guardrails, memory, service
from helpers.agent.memory import cost, exchanges
from helpers.dates import parse_due
from helpers.resilience import said_title
from helpers.tasks import TaskError
from helpers.validators import asked_for_delete, clear_date, known_id, mentioned_id


@pytest.fixture
def verdict(checks_of):
    return checks_of("L07")


def problem(text, empty=True, longest=600, marks=True, orders=True, said="That will not do."):
    if empty and not text.strip():
        return said
    if len(text) > longest:
        return said
    if marks and re.search(r"<\|.*?\|>|</?tool_call>", text):
        return said
    pattern = r"\b(ignore|disregard)\b.{0,40}\binstructions?\b"
    if orders is True and re.search(pattern, text, re.I):
        return said
    return said if orders == "crude" and re.search("ignore|instructions", text, re.I) else ""


@pytest.mark.parametrize("right", [problem, guardrails.input_problem])
def test_input_problem(verdict, right):
    assert verdict("input-problem", lambda text: right(text)).startswith("✓")


def test_stubs_are_empty(verdict):
    for name in ("input-problem", "call-checks", "fit", "take"):
        assert verdict(name, lambda *given: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"empty": False}, "Nothing was said"),
        ({"longest": 1000}, "780 characters"),
        ({"longest": 599}, "not yet too long"),
        ({"marks": False}, "model's format"),
        ({"orders": False}, "speaks to the program"),
        ({"orders": "crude"}, "Somebody wants a task there"),
        ({"said": "no"}, "not only a mark"),
        ({"said": True}, "return a sentence"),
    ],
)
def test_input_problem_mistakes(verdict, mistake, said):
    out = verdict("input-problem", lambda text: problem(text, **mistake))
    assert out.startswith("✗") and said in out
    assert "Look again: 3 The request" in out


def checks(text, heard, store, without=(), mentioned=False):
    said = [{"role": "user", "content": text}]
    named = guardrails.named_task(text, heard, store.list()["tasks"])
    every = {
        "known": known_id(store.get, TaskError),
        "named": mentioned_id([*heard, *said]) if mentioned else named,
        "delete": asked_for_delete(said),
        "date": clear_date(parse_due, store.clock),
        "title": said_title(text),
    }
    return [check for name, check in every.items() if name not in without]


@pytest.mark.parametrize("right", [checks, guardrails.call_checks])
def test_call_checks(verdict, right):
    assert verdict("call-checks", lambda *given: right(*given)).startswith("✓")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"without": ["named"]}, "The person said 2, the model 3"),
        ({"without": ["known"]}, "known_id"),
        ({"without": ["delete"]}, "asked_for_delete"),
        ({"without": ["date"]}, "clear_date"),
        ({"without": ["title"]}, "said_title"),
        ({"mentioned": True}, "named in words"),
    ],
)
def test_call_checks_mistakes(verdict, mistake, said):
    out = verdict("call-checks", lambda *given: checks(*given, **mistake))
    assert out.startswith("✗") and said in out


def test_call_checks_must_be_a_list_of_checks(verdict):
    assert "Return a list of checks" in verdict("call-checks", lambda *given: ["known_id"])


def fit(items, most=640, whole=True, last=True, order=True, stop=True):
    kept = []
    groups = exchanges(items) if whole else [[item] for item in items]
    for group in reversed(groups):
        if (kept or not last) and cost(group + kept) > most:
            break
        kept = group + kept if order else kept + group
        if not stop and len(kept) > 8:
            break
    return kept


@pytest.mark.parametrize("right", [fit, memory.fit])
def test_fit(verdict, right):
    assert verdict("fit", lambda items, most=640: right(items, most)).startswith("✓")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"whole": False}, "whole exchanges"),
        ({"last": False}, "The last exchange stays"),
        ({"stop": False}, "would have fitted"),
    ],
)
def test_fit_mistakes(verdict, mistake, said):
    out = verdict("fit", lambda items, most=640: fit(items, most, **mistake))
    assert out.startswith("✗") and said in out


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda items, most=640: items, "still too much"),
        (lambda items, most=640: items[:4], "stays as it is"),
        (lambda items, most=640: None if items else [], "Return a list"),
    ],
)
def test_fit_other_mistakes(verdict, mistake, said):
    assert said in verdict("fit", mistake)


def test_take(verdict):
    assert verdict("take", lambda *given: service.take(*given)).startswith("✓")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda level, seconds, rate, burst: (level - 1, 0.0), "None is left"),
        (lambda level, s, rate, burst: service.take(level, s, rate, 10**9), "five, and no more"),
        (lambda level, s, rate, burst: service.take(level, s, 60, burst), "At 30 a minute"),
        (lambda level, s, rate, burst: service.take(level, 0, rate, burst), "come back"),
        (lambda *given: 0.0, "Return two numbers"),
    ],
)
def test_take_mistakes(verdict, mistake, said):
    out = verdict("take", mistake)
    assert out.startswith("✗") and said in out
