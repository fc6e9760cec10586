"""Checks of L06: which errors fall back, a client that does, what retries cost, and keys.

Nothing here asks a model: replies are built from the SDK's own types, and time is a counter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from helpers import resilience
from helpers.checks.l03 import completion
from helpers.lesson import Hint, call, check, show
from helpers.resilience import BadAnswer, Trace
from helpers.tasks import tool_schemas

# --- which errors ----------------------------------------------------------------------------


def problems() -> dict[str, tuple[Exception, bool]]:
    """Exceptions as they arrive, each with whether another model may do better."""
    import httpx
    import openai

    request = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")

    def status(kind: type[openai.APIStatusError], code: int) -> openai.APIStatusError:
        return kind("no", response=httpx.Response(code, request=request), body=None)

    return {
        "no answer in time": (openai.APITimeoutError(request=request), True),
        "no connection": (openai.APIConnectionError(request=request), True),
        "a connection reset in a stream": (httpx.ReadError("reset"), True),
        "too many requests": (status(openai.RateLimitError, 429), True),
        "a broken server": (status(openai.InternalServerError, 500), True),
        "an overloaded server": (status(openai.InternalServerError, 503), True),
        "broken JSON": (json.JSONDecodeError("cut", "{", 1), True),
        "an answer of no use": (BadAnswer("The answer is empty."), True),
        "a bad request": (status(openai.BadRequestError, 400), False),
        "a wrong key": (status(openai.AuthenticationError, 401), False),
        "a key without permission": (status(openai.PermissionDeniedError, 403), False),
        "an unknown model": (status(openai.NotFoundError, 404), False),
        "an error of the program": (KeyError("choices"), False),
    }


@check("L06", "must-fall-back", look="Which failures must not fall back")
def must_fall_back(function: Callable[[BaseException], Any]) -> str:
    for what, (problem, wanted) in problems().items():
        got = call(function, problem)
        if got is ... or not isinstance(got, bool):
            raise Hint("Return True or False.", got=got, on=what)
        if got is not wanted:
            raise Hint(_why(what, wanted), on=f"{what} ({type(problem).__name__})", got=got,
                       expected=wanted)  # fmt: skip
    return f"{len(problems())} failures, each judged rightly."


def _why(what: str, wanted: bool) -> str:
    if what == "broken JSON":
        return "The SDK lets a json.JSONDecodeError through; it is none of openai's classes."
    if what == "a connection reset in a stream":
        return "In a stream, errors of httpx come through: httpx.TransportError is their family."
    if what == "an answer of no use":
        return "BadAnswer is what we raise ourselves when an answer cannot be used."
    if wanted:
        return "Another model, elsewhere, may well answer."
    if what == "an error of the program":
        return "A mistake of ours must come to light. Falling back would hide it."
    return "Elsewhere it fails as well, or it hides what a person has to mend."


# --- a client that falls back ----------------------------------------------------------------

TOOLS = tool_schemas()
GOOD = ("complete_task", {"task_id": 14})
PROMPT = "Task 14 is done"


class Clock:
    """Time that passes only when something is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Model:
    """A model that does what it was told to do, and notes how long it was allowed to take.

    Args:
        answer: What it returns; an exception is raised.
        clock: What it moves.
        takes: Seconds; None: as long as it is allowed to, as one that hangs.
    """

    def __init__(self, answer: Any, clock: Clock, takes: float | None = 0.1) -> None:
        self.answer, self.clock, self.takes = answer, clock, takes
        self.allowed: list[float] = []

    def __call__(self, prompt: str, tools: Any, timeout: float) -> Any:
        if prompt != PROMPT:
            raise Hint("Hand the prompt on to the model as it came.", expected=PROMPT, got=prompt,
                       on="The prompt that a model was given")  # fmt: skip
        if tools != TOOLS:
            # Whole schemas would bury the sentence.
            got = f"{len(tools)} of {len(TOOLS)} tools" if isinstance(tools, list) else tools
            raise Hint("Hand the tools on to the model as they came.", got=got,
                       on="The tools that a model was given")  # fmt: skip
        if not isinstance(timeout, int | float):
            raise Hint("The third argument of a model is a number of seconds.", got=timeout,
                       on="The third argument that a model was given")  # fmt: skip
        self.allowed.append(timeout)
        self.clock.now += timeout if self.takes is None else self.takes
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@contextmanager
def counted() -> Iterator[Clock]:
    """Traces that are begun meanwhile go by a clock of the check."""
    clock, before = Clock(), resilience.clock
    resilience.clock = clock
    try:
        yield clock
    finally:
        resilience.clock = before


def _run(function: Callable[..., Any], what: str, *models: Model, **more: Any) -> tuple[Any, Trace]:
    named = dict(zip(("first", "second", "third"), models, strict=False))
    try:
        got = function(PROMPT, TOOLS, named, **more)
    except Hint:
        raise
    except Exception as error:
        raise Hint(f"On {what} it stopped with {type(error).__name__}: {error}.") from error
    if got is ... or got is None:
        raise Hint("Return reply and trace.", got=got, on=what)
    if not isinstance(got, tuple) or len(got) != 2 or not isinstance(got[1], Trace):
        raise Hint("Return two things, reply and trace.", got=got, on=what)
    return got


@check("L06", "call-with-fallback", look="Repaired")
def call_with_fallback(function: Callable[..., Any]) -> str:
    faults = problems()
    good = completion(None, [GOOD], "tool_calls")
    with counted() as clock:
        first, second = Model(good, clock), Model(good, clock)
        on = "a first model that answers"
        reply, trace = _run(function, on, first, second)
        _unasked(second, f"On {on}", "The second was asked all the same.")
        _same(reply, good, on)
        _noted(trace, ["answered"], on)

    with counted() as clock:
        fell_back = completion(None, [GOOD], "tool_calls")
        fell_back.answered_by = "another"
        on = "a first model that is a proxy, where another model has answered"
        _, trace = _run(function, on, Model(fell_back, clock))
        if trace.by != "another":
            raise Hint("Note who answered: attempt.answered(reply).", on=f"On {on}, trace.by",
                       got=trace.by, expected="another")  # fmt: skip

    bad = {
        "an unknown tool": completion(None, [("finish", {"task_id": 14})], "tool_calls"),
        "a bad argument": completion(None, [("complete_task", {"task_id": "x"})], "tool_calls"),
        "an empty answer": completion(None),
        "a web page": "<html></html>",
        **{what: problem for what, (problem, falls) in faults.items() if falls},
    }
    for what, answer in bad.items():
        with counted() as clock:
            first, second = Model(answer, clock), Model(good, clock)
            on = f"a first model with {what}"
            reply, trace = _run(function, on, first, second)
            if not second.allowed:
                raise Hint("There the second model was not asked.", got=reply, on=on)
            _same(reply, good, on)
            _noted(trace, ["failed", "answered"], on)

    for what in ("a wrong key", "a bad request", "an error of the program"):
        problem = faults[what][0]
        with counted() as clock:
            first, second = Model(problem, clock), Model(good, clock)
            on = f"a first model with {what}"
            try:
                got = function(PROMPT, TOOLS, {"first": first, "second": second})
            except Hint:
                raise
            except Exception as error:
                if error is not problem:
                    raise Hint("Raise what came, and nothing else.", on=on, got=error,
                               expected=problem) from error  # fmt: skip
                trace = getattr(error, "trace", None)
                if not isinstance(trace, Trace):
                    raise Hint("What is told to a person must leave its trace: problem.trace.",
                               on=f"{on}, the attribute trace of what was raised",
                               got=trace) from error  # fmt: skip
                _noted(trace, ["failed"], on)
            else:
                raise Hint("This must not fall back: raise it again.", on=on, got=got,
                           expected=problem)  # fmt: skip
            _unasked(second, f"On {on}", "This must not fall back.")

    with counted() as clock:
        broken = faults["a broken server"][0]
        reply, trace = _run(function, "two models that fail", Model(broken, clock),
                            Model(broken, clock))  # fmt: skip
        if reply is not None:
            raise Hint("When every model has failed, the reply is None.",
                       on="two models that fail", got=reply, expected=None)  # fmt: skip
        _noted(trace, ["failed", "failed"], "two models that fail")
    _time(function, good)
    return f"{len(bad)} kinds of failure, none of them the person's problem; 3 that must be told."


def _time(function: Callable[..., Any], good: Any) -> None:
    late = problems()["no answer in time"][0]
    with counted() as clock:
        hangs, second = Model(late, clock, None), Model(good, clock)
        _run(function, "a model that hangs", hangs, second, patience=2.0, deadline=3.0)
        if hangs.allowed[0] > 2.0:
            raise Hint("No model gets more than patience.", expected=2.0, got=hangs.allowed[0],
                       on="With patience=2 and deadline=3, the first model's time")  # fmt: skip
        if second.allowed and second.allowed[0] > 1.0 + 1e-6:
            raise Hint(
                "Give a model what is left of the deadline, if that is less: trace.left().",
                expected=1.0, got=second.allowed[0],
                on="With patience=2 and deadline=3, after a model that hung for 2 seconds, the "
                   "second model's time",
            )  # fmt: skip
    with counted() as clock:
        hangs, second = Model(late, clock, None), Model(good, clock)
        _run(function, "a deadline that has passed", hangs, second, patience=2.0, deadline=2.0)
        on = "With patience=2 and deadline=2, after a model that hung for 2 seconds"
        _unasked(second, on, "After the deadline nobody is asked any more.")


def _unasked(model: Model, on: str, why: str) -> None:
    if model.allowed:
        raise Hint(why, on=f"{on}, the number of questions to the second", expected=0,
                   got=len(model.allowed))  # fmt: skip


def _same(reply: Any, wanted: Any, on: str) -> None:
    if reply is not wanted:
        raise Hint("Return the reply of the model that answered.", got=reply, on=on)


def _noted(trace: Trace, outcomes: list[str], on: str) -> None:
    got = [attempt.outcome for attempt in trace.attempts]
    if got != outcomes:
        raise Hint(
            "Put `with trace.attempt(name):` around the question and around the look at its "
            "answer, so that a bad answer is noted as failed too.",
            expected=outcomes, got=got, on=f"On {on}, the trace",
        )  # fmt: skip


# --- what retries cost -----------------------------------------------------------------------


@check("L06", "budget", look="Retries multiply")
def budget(function: Callable[..., Any]) -> str:
    for given, wanted in [
        ((0, 0, 1, 2.0), (1, 2.0)),
        ((0, 0, 2, 2.0), (2, 4.0)),
        ((2, 0, 1, 2.0), (3, 6.0)),
        ((0, 2, 1, 2.0), (3, 6.0)),
        ((2, 2, 1, 2.0), (9, 18.0)),
        ((2, 2, 2, 3.0), (18, 54.0)),
        ((1, 3, 2, 0.5), (16, 8.0)),
    ]:
        got = call(function, *given)
        on = f"sdk_retries={given[0]}, proxy_retries={given[1]}, models={given[2]}"
        if got is ... or not isinstance(got, tuple | list) or len(got) != 2:
            raise Hint("Return two numbers: requests and seconds.", on=on, got=got)
        if got[0] != wanted[0]:
            text = ""
            if got[0] * given[2] == wanted[0]:
                text = "Not all of the models are counted."
            elif got[0] in (given[0] + given[1] + 1, (given[0] + given[1] + 1) * given[2]):
                text = "Each try of the client starts all tries of the proxy anew: they multiply."
            elif got[0] == given[0] * given[1] * given[2]:
                text = "Where nothing is retried, something is asked all the same."
            raise Hint(text, expected=wanted[0], got=got[0], on=f"With {on}: requests")
        if abs(got[1] - wanted[1]) > 1e-9:
            raise Hint("Each of the requests may take the whole time limit.", expected=wanted[1],
                       got=got[1], on=f"With {on}, timeout={given[3]}: seconds")  # fmt: skip
    return "Two retries here and two there are eighteen requests, with a fallback behind them."


# --- keys ------------------------------------------------------------------------------------


@check("L06", "key", look="Once, and only once")
def key(function: Callable[..., Any]) -> str:
    mum, tomorrow = {"title": "call mum"}, {"title": "call mum", "due": "tomorrow"}

    def make(request_id: str, position: int, name: str, arguments: Mapping[str, Any]) -> str:
        got = call(function, request_id, position, name, dict(arguments))
        if got is ... or not isinstance(got, str) or not got:
            on = f"key({request_id!r}, {position}, {name!r}, {show(dict(arguments))})"
            raise Hint("Return a text.", got=got, on=on)
        return got

    first = make("r1", 0, "create_task", mum)
    for on, name, arguments, why in [
        ("The same call of the same request, a second time,", "create_task", mum,
         "A retry could not be recognised by that."),
        ("The same request with another due date in the call", "create_task", tomorrow,
         "A retry may be answered by another model, in other words. The key names what the person "
         "wants, and that is the same."),
        ("The same request with update_task in place of create_task", "update_task",
         {"task_id": 1, "title": "call mum"},
         "Another model may choose another tool. The key is that of the request's first call all "
         "the same."),
    ]:  # fmt: skip
        if (got := make("r1", 0, name, arguments)) != first:
            raise Hint(why, on=on, got=got, expected=first)
    for on, one, other, why in [
        ("Two calls in one answer, the first and the second,", ("r1", 0), ("r1", 1),
         "They are two things to do."),
        ("Two requests with the same words, r1 and r2,", ("r1", 0), ("r2", 0),
         "Another request is another task."),
        ("Call 11 of request r1 and call 1 of request r11", ("r1", 11), ("r11", 1),
         "They have nothing to do with each other."),
    ]:  # fmt: skip
        keys = [make(*call_, "create_task", mum) for call_ in (one, other)]
        if keys[0] == keys[1]:
            raise Hint(f"{on} got one key, {show(keys[0])}. {why}")
    return "A retry is the same, whoever answers it; everything else is another."
