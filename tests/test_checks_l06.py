"""The exercises of L06: every solution passes, and each likely mistake is named in words."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from helpers.resilience import BadAnswer, Trace, problem_in


@pytest.fixture
def verdict(checks_of):
    """What the check prints about a learner's work."""
    return checks_of("L06")


# --- exercise 1 ------------------------------------------------------------------------------


def falls_back(problem, statuses=(408, 429), least=500, kinds=None):
    if isinstance(problem, openai.APIStatusError):
        return problem.status_code in statuses or problem.status_code >= least
    return isinstance(
        problem,
        kinds or (openai.APIConnectionError, httpx.TransportError, json.JSONDecodeError, BadAnswer),
    )


def test_must_fall_back(verdict):
    assert verdict("must-fall-back", falls_back).startswith("✓")
    assert verdict("must-fall-back", lambda problem: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"statuses": ()}, "too many requests (RateLimitError)"),
        ({"least": 501}, "a broken server"),
        ({"least": 400}, "a person has to mend"),
        ({"kinds": (openai.APIConnectionError,)}, "httpx.TransportError"),
        ({"kinds": (openai.APIConnectionError, httpx.TransportError)}, "json.JSONDecodeError"),
        (
            {"kinds": (openai.APIConnectionError, httpx.TransportError, json.JSONDecodeError)},
            "BadAnswer is what we raise",
        ),
        ({"kinds": (Exception,)}, "must come to light"),
    ],
)
def test_must_fall_back_mistakes(verdict, mistake, said):
    out = verdict("must-fall-back", lambda problem: falls_back(problem, **mistake))
    assert out.startswith("✗")
    assert said in out
    assert "Look again: Which failures must not fall back" in out


def test_must_fall_back_says_yes_or_no(verdict):
    assert "True or False" in verdict("must-fall-back", lambda problem: "yes")


# --- exercise 2 ------------------------------------------------------------------------------


def client(
    prompt, tools, models, checks=(), patience=4.0, deadline=10.0, *,
    look=True, inside=True, left=True, stop=True, catch=falls_back, both=True, empty=None,
    all=False, note=True, hang=True,
):  # fmt: skip
    trace = Trace(prompt, deadline)
    reply = None
    for name, ask in models.items():
        if stop and not trace.left():
            break
        try:
            with trace.attempt(name) as attempt:
                seconds = min(patience, trace.left()) if left else patience
                reply = ask(prompt, tools, seconds)
                why = problem_in(reply, tools, checks) if look else ""
                if why and inside:
                    raise BadAnswer(why)
                if note:
                    attempt.answered(reply)
            if why:
                raise BadAnswer(why)
            if not all:
                return (reply, trace) if both else reply
        except Exception as problem:
            if not catch(problem):
                if hang:
                    problem.trace = trace
                raise
    return (reply if all else empty), trace


def test_call_with_fallback(verdict):
    assert verdict("call-with-fallback", client).startswith("✓")
    assert verdict("call-with-fallback", lambda *a, **k: ...).startswith("○")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"look": False}, "the second model was not asked"),
        ({"inside": False}, "around the look at its answer"),
        ({"left": False}, "trace.left()"),
        ({"stop": False}, "After the deadline nobody is asked"),
        ({"catch": lambda problem: True}, "must not fall back"),
        ({"catch": lambda problem: isinstance(problem, BadAnswer)}, "it stopped with"),
        ({"both": False}, "Return two things"),
        ({"empty": "nobody"}, "the reply is None"),
        ({"all": True}, "The second was asked all the same"),
        ({"note": False}, "attempt.answered(reply)"),
        ({"hang": False}, "must leave its trace: problem.trace"),
    ],
)
def test_call_with_fallback_mistakes(verdict, mistake, said):
    def learner(*args, **kwargs):
        return client(*args, **kwargs, **mistake)

    out = verdict("call-with-fallback", learner)
    assert out.startswith("✗")
    assert said in out
    assert "Look again: Repaired" in out


# --- exercise 3 ------------------------------------------------------------------------------


def test_key(verdict):
    assert verdict("key", lambda request, position, *_: f"{request}/{position}").startswith("✓")
    assert verdict("key", lambda *a: ...).startswith("○")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (lambda r, p, n, a: f"{r}/{p}/{time.perf_counter_ns()}", "a second time, gave"),
        (lambda r, p, n, a: f"{r}/{p}/{json.dumps(a)}", "in other words"),
        (lambda r, p, n, a: f"{r}/{p}/{n}", "another tool"),
        (lambda r, p, n, a: r, "the first and the second, got one key, 'r1'. They are two things"),
        (lambda r, p, n, a: f"call {p}", "r1 and r2, got one key, 'call 0'"),
        (lambda r, p, n, a: f"{r}{p}", "request r11 got one key, 'r111'"),
        (lambda r, p, n, a: (r, p), "Return a text"),
        (lambda r, p, n, a: "", "Return a text"),
    ],
)
def test_key_mistakes(verdict, key, said):
    out = verdict("key", key)
    assert out.startswith("✗")
    assert said in out
    assert "Look again: Once, and only once" in out


# --- exercise 4 ------------------------------------------------------------------------------


def test_budget(verdict):
    def right(sdk, proxy, models, timeout):
        requests = (1 + sdk) * (1 + proxy) * models
        return requests, requests * timeout

    assert verdict("budget", right).startswith("✓")
    assert verdict("budget", lambda *a: ...).startswith("○")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            lambda s, p, m, t: ((1 + s) * (1 + p), t),
            "models=2: requests gave 1, expected 2. Not all of the models",
        ),
        (lambda s, p, m, t: ((1 + s + p) * m, (1 + s + p) * m * t), "they multiply"),
        (
            lambda s, p, m, t: (s * p * m, s * p * m * t),
            "requests gave 0, expected 1. Where nothing is retried",
        ),
        (lambda s, p, m, t: ((1 + s) * (1 + p) * m, t), "the whole time limit"),
        (lambda s, p, m, t: (1 + s) * (1 + p) * m, "two numbers"),
    ],
)
def test_budget_mistakes(verdict, budget, said):
    out = verdict("budget", budget)
    assert out.startswith("✗")
    assert said in out
