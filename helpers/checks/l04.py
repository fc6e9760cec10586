"""Checks of L04: reading raw calls, objecting to a delete, sending errors back.

Nothing here asks a model: the answers are written down below.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from helpers.lesson import Hint, call, check, show
from helpers.validators import ToolCall

# --- reading what a model wrote without a grammar ----------------------------------------------

FINISH = '<tool_call>\n{"name": "complete_task", "arguments": {"task_id": 14}}\n</tool_call>'
LISTING = '<tool_call>\n{"name": "list_tasks", "arguments": {}}\n</tool_call>'

RAW: dict[str, tuple[str, Any]] = {
    "one call": (FINISH, [{"name": "complete_task", "arguments": {"task_id": 14}}]),
    "words": ("Hello! What shall I do?", []),
    "two calls": (
        f"{FINISH}\n{LISTING}",
        [
            {"name": "complete_task", "arguments": {"task_id": 14}},
            {"name": "list_tasks", "arguments": {}},
        ],
    ),
    "a call with broken JSON": (
        '<tool_call>\n{"name": "update_task", "arguments": {"task_id": 30th"}}\n</tool_call>',
        None,
    ),
    "a call that was cut off": (
        '<tool_call>\n{"name": "create_task", "arguments": {"title": "call mum call mum call',
        None,
    ),
    "a right call and one that was cut off": (f'{FINISH}\n<tool_call>\n{{"name": "list_', None),
    "JSON that is not a call": ("<tool_call>\n[1, 2]\n</tool_call>", None),
    "a call whose arguments are a text": (
        '<tool_call>\n{"name": "complete_task", "arguments": "14"}\n</tool_call>',
        None,
    ),
}


@check("L04", "read-calls", look="4 Measure")
def read_calls(read: Callable[[str], Any]) -> str:
    for what, (text, wanted) in RAW.items():
        got = _call(read, what, text)
        if got != wanted:
            raise Hint(_read_why(what, wanted, got), on=what, got=got, expected=wanted)
    return "Words, calls, and what only looks like a call: all eight are told apart."


def _read_why(what: str, wanted: Any, got: Any) -> str:
    if wanted is None and what == "a right call and one that was cut off":
        return "Half an answer is not an answer: one call that cannot be read spoils the whole."
    if wanted is None:
        return "It begins with <tool_call> and cannot be read as a call."
    if wanted == [] and got is None:
        return "There is no <tool_call> in words; nothing is broken."
    if not isinstance(got, list):
        return "Return a list of dictionaries with name and arguments."
    if len(got) < len(wanted):
        return "An answer may hold several calls; not all of them are there."
    return ""


def _call(function: Callable[..., Any], what: str, *args: Any) -> Any:
    """Call the learner's function; an error names the case rather than a long text."""
    try:
        return call(function, *args)
    except Hint as hint:
        error = hint.__cause__
        if error is None or isinstance(error, NotImplementedError):
            raise
        tail = str(hint).partition(" In line ")
        where = tail[1] + tail[2] if tail[1] else ""
        raise Hint(f"On {what} it stopped with {type(error).__name__}: {error}.{where}") from None


# --- was a delete really asked for? ------------------------------------------------------------

ASKED = [
    "Delete task 12",
    "please remove 12 from my list",
    "get rid of 12, will you",
    "DELETE 12!",
    "drop task 12",
]
NOT_ASKED = [
    "What is still pending?",
    "Finish task 12",
    "Set task 12 to high",
    "Add a task to call mum tomorrow",
]


@check("L04", "unasked-delete", look="5 Validate")
def unasked_delete(object_to: Callable[[ToolCall, str], Any]) -> str:
    delete = ToolCall("delete_task", {"task_id": 12})
    finish = ToolCall("complete_task", {"task_id": 12})
    for said in NOT_ASKED:
        got = call(object_to, delete, said)
        if not got:
            raise Hint("Nobody asked for a delete there; return a sentence.",
                       on=f"a delete after {said!r}", got=got)  # fmt: skip
        if not isinstance(got, str) or len(got.split()) < 3:
            raise Hint("The model will read it: return a sentence, not only a mark.",
                       on=f"a delete after {said!r}", got=got)  # fmt: skip
        got = call(object_to, finish, said)
        if got is not None:
            raise Hint("This call deletes nothing.", on=f"complete_task after {said!r}", got=got,
                       expected=None)  # fmt: skip
    for said in ASKED:
        got = call(object_to, delete, said)
        if got is not None:
            why = "Capital letters are letters as well." if said.isupper() else ""
            why = why or "That is a way of asking for it."
            raise Hint(why, on=f"a delete after {said!r}", got=got, expected=None)
    return "It stops what nobody asked for and lets through what somebody did, in these nine."


# --- sending errors back -----------------------------------------------------------------------


def _message(*calls: tuple[str, str]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": text}}
            for n, (name, text) in enumerate(calls, 1)
        ],
    }


@check("L04", "send-back", look="6 Repair")
def send_back(back: Callable[[Mapping[str, Any], list[str | None]], Any]) -> str:
    loud = 'priority must be one of low, medium, high, urgent, not "HIGH".'
    one = _message(("create_task", '{"title": "call mum", "priority": "HIGH"}'))
    _check_back(back, "one wrong call", one, [loud])
    two = _message(("complete_task", '{"task_id": 3}'), ("delete_task", '{"task_id": 99}'))
    _check_back(back, "a right call and a wrong one", two, [None, "There is no task 99."])
    cut = _message(("create_task", '{"title": "call mum call mum'))
    _check_back(back, "broken arguments", cut, ["The arguments are not valid JSON."])
    listed = _message(("complete_task", "[14]"))
    _check_back(back, "a list as arguments", listed, ["The arguments must be an object."])
    return "Every call has its answer, and nothing in it can break the next request."


def _check_back(back: Callable[..., Any], what: str, message: dict[str, Any],
                errors: list[str | None]) -> None:  # fmt: skip
    before = copy.deepcopy(message)
    got = _call(back, what, message, errors)
    calls = before["tool_calls"]
    if message != before:
        raise Hint("The message that came in must stay as it was.", on=f"{what}, that message "
                   "afterwards", got=message, expected=before)  # fmt: skip
    if not isinstance(got, list) or not all(isinstance(m, Mapping) for m in got):
        raise Hint("Return a list of messages.", on=what, got=got)
    roles = [m.get("role") for m in got]
    wanted = ["assistant", *["tool"] * len(calls)]
    if roles != wanted:
        raise Hint(
            "First the assistant's message, then one tool message for each of its calls.",
            on=f"{what}, roles", got=roles, expected=wanted,
        )  # fmt: skip
    for sent, call_before in zip(got[0].get("tool_calls") or [], calls, strict=False):
        text = sent["function"]["arguments"]
        try:
            readable = isinstance(json.loads(text), dict)
        except (ValueError, TypeError):
            readable = False
        if not readable:
            raise Hint(
                "A server reads these arguments again, and fails on what is not an object.",
                on=f"{what}, the arguments", got=text, expected="{}",
            )  # fmt: skip
        original = call_before["function"]["arguments"]
        if text != original and what not in ("broken arguments", "a list as arguments"):
            raise Hint("Arguments that can be read stay as they are.", on=what, got=text,
                       expected=original)  # fmt: skip
    if len(got[0].get("tool_calls") or []) != len(calls):
        raise Hint("The assistant's message keeps all of its calls.", on=what, got=got[0])
    for result, call_before, error in zip(got[1:], calls, errors, strict=True):
        if result.get("tool_call_id") != call_before["id"]:
            raise Hint("tool_call_id says which call a result belongs to.", on=what,
                       got=result.get("tool_call_id"), expected=call_before["id"])  # fmt: skip
        try:
            content = json.loads(result.get("content"))
            said = content.get("error") if isinstance(content, dict) else None
        except (ValueError, TypeError):
            said = None
        if not isinstance(said, str) or not said:
            raise Hint('The content must be JSON, an object with a sentence under "error".',
                       on=f"{what}, the content", got=result.get("content"))  # fmt: skip
        if error is not None and said != error:
            raise Hint("Pass the error on as it is.", on=what, got=said, expected=error)
        if error is None and said in [e for e in errors if e]:
            raise Hint(
                "This call was right, and another one was wrong. Tell the model that it was not "
                f"carried out, and not {show(said)}.",
                on=what,
            )
