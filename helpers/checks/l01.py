"""Checks of L01: the loop, what it costs, what it tells, and which backend to choose."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from helpers.lesson import Hint, call, check, show
from helpers.tasks import Result, TaskStore

Message = dict[str, Any]

# --- the loop --------------------------------------------------------------------------------


class _Script:
    """A reasoning engine that says what it was told to say, and notes what it was shown.

    Args:
        answers: What to say, in order; the last one again and again.
    """

    def __init__(self, *answers: Message) -> None:
        self.answers = answers
        self.shown: list[list[Message]] = []

    def __call__(self, messages: Sequence[Message]) -> Message:
        self.shown.append(copy.deepcopy(list(messages)))
        if len(self.shown) > 20:
            raise Hint("Your loop does not stop: it asked 20 times. Count, and stop at limit.")
        return copy.deepcopy(self.answers[min(len(self.shown), len(self.answers)) - 1])


def _words(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _calls(*calls: tuple[str, Mapping[str, Any]]) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{n}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for n, (name, arguments) in enumerate(calls, 1)
        ],
    }


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _conversation(run_turn: Callable, *args: Any, **kwargs: Any) -> list[Message]:
    got = call(run_turn, *args, **kwargs)
    if got is ... or got is None:
        raise Hint("Return the list of messages.", got=got, on="run_turn(…)")
    if not isinstance(got, list) or not all(isinstance(message, dict) for message in got):
        raise Hint("Return the list of messages, each a dictionary.", got=got, on="run_turn(…)")
    return got


@check("L01", "loop", look="One turn, message by message")
def loop(run_turn: Callable) -> str:
    # An answer in words: the loop must stop at once.
    store, engine = TaskStore(), _Script(_words("Hello."))
    got = _conversation(run_turn, engine, store, _user("Hello"))
    if len(engine.shown) != 1:
        raise Hint(
            f"The engine answered in words and was asked {len(engine.shown)} times. "
            "An answer without tool_calls ends the turn."
        )
    if [message.get("role") for message in got] != ["user", "assistant"]:
        roles = [message.get("role") for message in got]
        raise Hint("Append the answer to the messages.", expected=["user", "assistant"], got=roles)

    # Two calls in one message, then words.
    wanted = [("create_task", {"title": "call mum"}), ("create_task", {"title": "buy stamps"})]
    store, engine = TaskStore(), _Script(_calls(*wanted), _words("Both are noted."))
    got = _conversation(run_turn, engine, store, _user("Call mum and buy stamps"))
    titles = [task["title"] for task in store.list()["tasks"]]
    if titles != ["call mum", "buy stamps"]:
        raise Hint(
            "One message can hold several calls; carry out each of them once.",
            expected=["call mum", "buy stamps"],
            got=titles,
            on="The store after a message with two calls",
        )
    if len(engine.shown) < 2:
        raise Hint("After the results, ask again: the engine has not seen them yet.")
    seen = [message.get("role") for message in engine.shown[1]]
    if seen != ["user", "assistant", "tool", "tool"]:
        raise Hint(
            "The second time, the engine must see the request, its own calls, and the result of "
            "each of them.",
            expected=["user", "assistant", "tool", "tool"],
            got=seen,
            on="The roles it saw",
        )
    _results(engine.shown[1][2:])
    if got[-1].get("content") != "Both are noted.":
        raise Hint("The last message must be the engine's final answer.", got=got[-1])

    # A call that fails is for the engine to read.
    store = TaskStore()
    engine = _Script(_calls(("complete_task", {"task_id": 99})), _words("There is no task 99."))
    _conversation(run_turn, engine, store, _user("Finish task 99"))
    result = str(engine.shown[-1][-1].get("content"))
    if "error" not in result:
        raise Hint("An error of a tool is a result too: give it to the engine.", got=result)

    # An engine that never comes to an end.
    store, engine = TaskStore(), _Script(_calls(("list_tasks", {})))
    _conversation(run_turn, engine, store, _user("What is pending?"), limit=3)
    if len(engine.shown) != 3:
        raise Hint(
            "Ask at most limit times.",
            expected=3,
            got=len(engine.shown),
            on="An engine that only ever calls tools, with limit=3: the number of questions",
        )
    return "Your loop carries out, reports, asks again, and knows when to stop."


def _results(messages: Sequence[Message]) -> None:
    ids = [message.get("tool_call_id") for message in messages]
    if ids != ["call_1", "call_2"]:
        raise Hint(
            "Each tool message names the call that it answers: tool_call_id is the call's id.",
            expected=["call_1", "call_2"],
            got=ids,
            on="tool_call_id",
        )
    for message in messages:
        if not isinstance(message.get("content"), str) or "task_id" not in message["content"]:
            raise Hint(
                "The content of a tool message is what call_tool(…) returned, as it is.",
                got=message.get("content"),
                on="content",
            )


# --- cost ------------------------------------------------------------------------------------


def _usage(sent: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written}


@check("L01", "cost", look="What does one request cost?")
def cost(function: Callable) -> str:
    prices = {"in": 2.0, "out": 8.0}
    cases = [
        ("a million tokens sent", [_usage(1_000_000, 0)], 2.0),
        ("half a million tokens written", [_usage(0, 500_000)], 4.0),
        ("both, in two calls", [_usage(1_000_000, 0), _usage(0, 500_000)], 6.0),
        ("no calls at all", [], 0.0),
    ]
    for what, calls, expected in cases:
        got = call(function, calls, prices)
        if got is ... or got is None or not isinstance(got, int | float):
            raise Hint("Return a number, in dollars.", got=got, on=f"For {what}, your function")
        if math.isclose(got, expected, abs_tol=1e-9):
            continue
        text = ""
        if expected and math.isclose(got, expected * 1_000_000):
            text = "That is a million times too much."
        elif what.startswith("a million") and math.isclose(got, 8.0):
            text = "prompt_tokens are what is sent; their price is prices['in']."
        elif what.startswith("both"):
            text = "Add up all the calls, not only one of them."
        raise Hint(text, expected=expected, got=got, on=f"For {what}, your function")
    return "Dollars from tokens, over all calls."


# --- privacy ---------------------------------------------------------------------------------


@check("L01", "leaked", look="What has the backend seen?")
def leaked(function: Callable) -> str:
    titles = ["ask about the test results", "meet René at the café", "sell the flat"]
    asked = [{"role": "user", "content": "What is still pending?"}]
    listed = {"tasks": [{"task_id": n, "title": title} for n, title in enumerate(titles[:2], 1)]}
    told = [
        *asked,
        _calls(("list_tasks", {"status": "pending"})),
        {"role": "tool", "tool_call_id": "call_1", "content": str(Result(listed))},
    ]
    quoted = 'read "Dune" again'
    found = [{"role": "tool", "tool_call_id": "call_1",
              "content": str(Result({"tasks": [{"task_id": 4, "title": quoted}]}))}]  # fmt: skip
    created = [
        {"role": "user", "content": "Note that"},
        _calls(("create_task", {"title": titles[2]})),
    ]
    for what, sent, expected in [
        ("a question without a title", [asked], []),
        ("a conversation with a tool result", [told], titles[:2]),
        ("a conversation with a tool call", [created], titles[2:]),
        ("two requests that say the same", [told, told, created], titles),
    ]:
        got = call(function, sent, titles)
        if isinstance(got, set | tuple):
            got = sorted(got, key=titles.index) if set(got) <= set(titles) else list(got)
        if got == expected:
            continue
        text = ""
        if isinstance(got, list) and expected and set(got) < set(expected):
            text = "Look into every message of every request, tool results and tool calls included."
            if titles[1] not in got and titles[0] in got:
                text = "The title with an é in it was overlooked."
        elif isinstance(got, list) and len(got) > len(set(map(str, got))):
            text = "Name each title once."
        raise Hint(text, expected=expected, got=got, on=f"For {what}, your function")
    said = [{"role": "user", "content": f"Note: {quoted}"}]
    for what, sent in (("said", said), ("found", found)):
        if list(got := call(function, [sent], [quoted]) or ()) != [quoted]:
            raise Hint(
                'Within JSON, a quotation mark is written \\"; within a tool result it is '
                "JSON in JSON.",
                expected=[quoted],
                got=got,
                on=f"For a title with quotation marks that was {what}, your function",
            )
    return "It reads what your code sent, not only what the person typed."


# --- decide ----------------------------------------------------------------------------------

_PLAIN = {
    "private": False,
    "offline": False,
    "in_domain": True,
    "programs": 1,
    "cloud_cost": 5.0,
    "budget": 100.0,
    "cloud_seconds": 0.5,
    "patience": 3.0,
}


@check("L01", "choose", look="Decide, and say why")
def choose(function: Callable) -> str:
    for what, change, expected in [
        ("a specialist's work for one program", {}, "direct"),
        ("the same for four programs", {"programs": 4}, "proxy"),
        ("work outside the domain", {"in_domain": False}, "cloud"),
        ("work outside the domain, private", {"in_domain": False, "private": True}, "none"),
        ("work outside the domain, offline", {"in_domain": False, "offline": True}, "none"),
        ("work outside the domain, too dear", {"in_domain": False, "budget": 1.0}, "none"),
        ("work outside the domain, too slow", {"in_domain": False, "patience": 0.2}, "none"),
        ("exactly at the budget", {"in_domain": False, "budget": 5.0}, "cloud"),
        ("private work for two programs", {"private": True, "programs": 2}, "proxy"),
    ]:
        need = _PLAIN | change
        got = call(function, dict(need))
        if got is ...:
            raise Hint(got=got)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Hint(
                "Return two things: the pattern and a list of reasons.",
                got=got,
                on=f"For {what}, your function",
            )
        pattern, reasons = got
        if pattern != expected:
            told = ", ".join(f"{key}={show(value)}" for key, value in change.items())
            raise Hint(
                expected=expected, got=pattern, on=f"For {what} ({told or 'the example'}), choose"
            )
        if (
            isinstance(reasons, str)
            or not reasons
            or not all(isinstance(reason, str) and reason.strip() for reason in reasons)
        ):
            raise Hint(
                "Say why: a list with at least one sentence, in every case.",
                got=reasons,
                on=f"For {what}, the reasons",
            )
    both = call(function, _PLAIN | {"in_domain": False, "private": True, "offline": True})
    if len(both[1]) < 2:
        raise Hint(
            "When two things speak against the cloud, name both: whoever reads it may be able "
            "to change one of them.",
            got=both[1],
            on="For private and offline work, the reasons",
        )
    return "Nine situations, and a reason for each."
