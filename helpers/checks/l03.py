"""Checks of L03: reading a typed answer, putting a stream together, choosing a backend.

Nothing here asks a model: the answers are built from the SDK's own types.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from helpers.lesson import Hint, call, check, show

# --- reading an answer -----------------------------------------------------------------------


def completion(
    content: str | None = None,
    calls: Sequence[tuple[str, Mapping[str, Any]]] = (),
    finish: str = "stop",
) -> Any:
    """A ``ChatCompletion`` as the SDK would return it."""
    from openai.types.chat import ChatCompletion

    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for i, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "answer", "object": "chat.completion", "created": 0, "model": "a model"}
    return ChatCompletion.model_validate(head | {"choices": [choice]})


@check("L03", "read-reply", look="2 An answer with types")
def read_reply(read: Callable[[Any], Any]) -> str:
    finish_14 = ("complete_task", {"task_id": 14})
    two = [("create_task", {"title": "buy milk"}), ("delete_task", {"task_id": 7})]
    cases = [
        ("an answer with one call", completion(None, [finish_14], "tool_calls"),
         {"text": "", "calls": [finish_14], "cut": False}),
        ("an answer in words", completion("Task 14 is done."),
         {"text": "Task 14 is done.", "calls": [], "cut": False}),
        ("an answer with two calls", completion("Both.", two, "tool_calls"),
         {"text": "Both.", "calls": two, "cut": False}),
        ("an answer that was cut off", completion("Task 14 is", finish="length"),
         {"text": "Task 14 is", "calls": [], "cut": True}),
    ]  # fmt: skip
    for what, reply, wanted in cases:
        got = _call(read, reply, what)
        if not isinstance(got, Mapping) or set(got) != set(wanted):
            raise Hint(f"On {what}: return a dictionary with text, calls and cut, not {show(got)}.")
        for key, value in wanted.items():
            given = [tuple(c) for c in got[key]] if key == "calls" else got[key]
            if given != value:
                raise Hint(_why(key, value, got[key]), on=f"{what}, {key!r}", got=got[key],
                           expected=value)  # fmt: skip
    return "One call, several, only words, cut off: all four kinds are read."


def _why(key: str, wanted: Any, got: Any) -> str:
    if key == "calls" and got is None:
        return "Without calls, message.tool_calls is None, and a list is wanted."
    if key == "calls" and any(isinstance(a, str) for _, a in got):
        return "The arguments are JSON in a text, and a dictionary is wanted."
    if key == "text" and got is None:
        return "With calls, message.content may be None, and a text is wanted."
    if key == "cut":
        return "choice.finish_reason tells whether the answer was cut off."
    return ""


def _call(function: Callable[..., Any], given: Any, what: str) -> Any:
    """Call the learner's function; an error names the case rather than the SDK's long object."""
    try:
        return call(function, given)
    except Hint as hint:
        error = hint.__cause__
        if error is None or isinstance(error, NotImplementedError):
            raise
        tail = str(hint).partition(" In line ")
        where = tail[1] + tail[2] if tail[1] else ""
        raise Hint(f"On {what} it stopped with {type(error).__name__}: {error}.{where}") from None


# --- putting a stream together ---------------------------------------------------------------


def chunks(*deltas: Mapping[str, Any]) -> list[Any]:
    """``ChatCompletionChunk`` objects with these deltas, and a last one with usage only."""
    from openai.types.chat import ChatCompletionChunk

    head = {"id": "s", "object": "chat.completion.chunk", "created": 0, "model": "a model"}
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": "tool_calls"}])
    choices.append([])
    return [ChatCompletionChunk.model_validate(head | {"choices": c}) for c in choices]


def piece(index: int, arguments: str | None = None, name: str | None = None) -> dict[str, Any]:
    """A delta with one fragment of a call; the id comes with the name, as servers do it."""
    part: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if name:
        part |= {"id": f"call_{index}", "type": "function"}
        part["function"]["name"] = name
    return {"tool_calls": [part]}


@check("L03", "collect-calls", look="4 Streaming")
def collect_calls(collect: Callable[[Sequence[Any]], Any]) -> str:
    one = [
        {"role": "assistant", "content": None},
        piece(0, "", "complete_task"),
        piece(0, '{"task'),
        piece(0, '_id": 1'),
        piece(0, "4}"),
    ]
    mixed = [
        piece(0, '{"title": ', "create_task"),
        piece(1, None, "delete_task"),
        piece(1, '{"task_id": '),
        piece(0, '"buy milk"}'),
        piece(1, "7}"),
    ]
    cases = [
        ("a stream with one call", chunks(*one),
         [{"name": "complete_task", "arguments": '{"task_id": 14}'}]),
        ("a stream of words", chunks({"content": "Task 14 "}, {"content": "is done."}), []),
        ("a stream with two calls, fragments mixed", chunks(*mixed),
         [{"name": "create_task", "arguments": '{"title": "buy milk"}'},
          {"name": "delete_task", "arguments": '{"task_id": 7}'}]),
    ]  # fmt: skip
    for what, given, wanted in cases:
        got = _call(collect, given, what)
        if got != wanted:
            raise Hint(_stream_why(wanted, got), on=what, got=got, expected=wanted)
    return "Also when two calls arrive mixed, and with the last chunk, which has no choices."


def _stream_why(wanted: list[dict[str, str]], got: Any) -> str:
    if not isinstance(got, list):
        return "Return a list of dictionaries with name and arguments."
    if len(got) > len(wanted):
        return "A fragment belongs to the call at part.index; it is not a call of its own."
    if len(got) < len(wanted):
        return "Each part.index is a call of its own."
    return "Add name and arguments to what that call has so far; None adds nothing."


# --- choosing a backend ----------------------------------------------------------------------

BACKENDS: dict[str, dict[str, Any]] = {
    "proxy": {"base_url": "http://127.0.0.1:9/v1", "api_key": "key-of-the-proxy"},
    "direct": {"base_url": "http://127.0.0.1:99/v1", "api_key": "none"},
    "hosted": {"base_url": "http://127.0.0.1:999/v1", "api_key": "key-of-the-host"},
}


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@check("L03", "make-client", look="7 One place that knows the backends")
def make_client(make: Callable[..., Any]) -> str:
    import httpx
    import openai

    with _environment(OPENAI_API_KEY="key-from-the-environment"):
        for name, retries in {"proxy": 0, "direct": 2}.items():
            client = call(make, name, BACKENDS)
            _is_client(client, name, openai.OpenAI)
            wanted = {"max_retries": retries, "timeout": 30}
            for key, value in wanted.items():
                got = getattr(client, key)
                if got not in (value, httpx.Timeout(value)):
                    raise Hint(
                        "The proxy may retry by itself; two layers that retry multiply."
                        if key == "max_retries"
                        else "Without it, a client waits ten minutes.",
                        on=f"{name!r}, {key}", got=got, expected=value,
                    )  # fmt: skip
        _refuses(
            make,
            "cloud",
            BACKENDS,
            says="proxy",
            because="A name that nobody knows needs a ValueError that lists the known ones",
        )
        _refuses(
            make,
            "hosted",
            BACKENDS,
            says="hosted",
            because="A hosted model is used only when somebody said so: hosted=True",
        )
        client = call(make, "hosted", BACKENDS, hosted=True)
        _is_client(client, "hosted", openai.OpenAI)
        keyless = BACKENDS | {"hosted": BACKENDS["hosted"] | {"api_key": None}}
        _refuses(
            make,
            "hosted",
            keyless,
            hosted=True,
            says="key",
            because="With api_key=None the SDK takes OPENAI_API_KEY from the environment",
        )
    return "No name, no switch, no key: three ways to go wrong, and none is silent."


def _is_client(client: Any, name: str, kind: type) -> None:
    if not isinstance(client, kind):
        raise Hint("Return an openai.OpenAI.", on=repr(name), got=client)
    wanted = BACKENDS[name]
    for key, got in {"base_url": str(client.base_url), "api_key": client.api_key}.items():
        if got.rstrip("/") != wanted[key]:
            raise Hint("Pass it on from the dictionary of backends.", on=f"{name!r}, {key}",
                       got=got, expected=wanted[key])  # fmt: skip


def _refuses(make: Callable[..., Any], name: str, backends: Mapping[str, Any], *, says: str,
             because: str, **more: Any) -> None:  # fmt: skip
    try:
        got = make(name, backends, **more)
    except ValueError as error:
        if says not in str(error):
            raise Hint(
                f"{because}; its text should mention {says!r}. It says: {str(error)!r}."
            ) from None
        return
    except Exception as error:
        raise Hint(f"{because}. It stopped with {type(error).__name__}: {error}.") from error
    raise Hint(f"{because}. For {name!r} no ValueError came, but {show(type(got).__name__)}.")
