"""What a request must keep to before a model reads it, and a call before it is carried out.

Plain functions, no model: what they let through does not depend on how convincing a text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.asked import (
    asking_parts,
    meant,
    numbered,
    numbers,
    only_asks,
    only_courtesy,
    titled,
)
from helpers.dates import parse_due
from helpers.mcp_server import MAX_REQUEST
from helpers.resilience import plain_rule, said_title
from helpers.tasks import TaskError
from helpers.validators import ToolCall, asked_for_delete, clear_date, known_id

if TYPE_CHECKING:
    from helpers.tasks import TaskStore
    from helpers.validators import Check

MAX_TOKENS = 300  # of one request, as :func:`tokens` counts

# --- the request -----------------------------------------------------------------------------

# Marks of a prompt's own format: in a person's text they would begin a message of somebody else.
MARKS = re.compile(
    r"<\|[^|>]{0,40}\|>|</?tool_call>|^\s*(?:system|assistant|tool)\s*:", re.I | re.M
)
ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}?"
    r"\b(?:instructions?|prompts?|rules?|guard\s?rails?|polic(?:y|ies)|restrictions?)\b"
    r"|\b(?:reveal|print|show|repeat|output)\b[^.\n]{0,30}\b(?:system|hidden|initial) prompt\b"
    r"|\byou are (?:now|no longer)\b[^.\n]{0,40}\b(?:ai|assistant|mode|model|dan|admin|root)\b"
    r"|\b(?:developer|jailbreak|god) mode\b",
    re.I,
)


def input_problem(text: str) -> str:
    """Why a request is not passed on; empty when it is.

    Args:
        text: What the person said.
    """
    if not text.strip():
        return "Say what is to be done, for example: add a task to call mum tomorrow."
    if len(text) > MAX_REQUEST or tokens(text) > MAX_TOKENS:
        return f"That is too long. Say it in {MAX_REQUEST} characters, one thing at a time."
    if MARKS.search(text) or ORDERS.search(text):
        return "That reads like an instruction to the program, not like a task. Nothing was done."
    return ""


def tokens(text: str) -> int:
    """About how many tokens a text has, rather too many than too few.

    The model's tokens hold two to four letters of English, but only one byte of what it has
    rarely read.
    """
    rare = sum(len(c.encode()) for c in text if ord(c) > 127)
    return rare + (len(text) * 2 + 4) // 5


def harmless(text: str) -> str:
    """A text from a task, without what would begin a message of its own in the prompt."""
    return MARKS.sub(lambda mark: mark[0].replace("<", "(").replace(":", ";"), text)


# --- the call --------------------------------------------------------------------------------

LISTING = "list my tasks"  # what a list that nobody asked for is put behind, see memory
_NAMED = re.compile(r"(?:\btasks?\b|\bnumber\b|\bno\.|#)\s*#?(\d{1,9})\b", re.I)
_POINTING = re.compile(r"\b(it|its|that|this|them|those|these|they|both|all)\b", re.I)
_AGAIN = re.compile(r"\b(same|also|again|too|another|as well|likewise)\b", re.I)


_LIKEWISE = re.compile(r"\b(too|as well|likewise|same)\b", re.I)
_COUNTING = re.compile(
    r"\b(?:first|second|third|fourth|fifth|last|next|other|both|all|each|everything|top|bottom"
    r"|rest|remaining)\b",
    re.I,
)


def counts_them(text: str) -> bool:
    """Whether a text means tasks by their place in a list: "the first one", "both"."""
    return bool(_COUNTING.search(text))


_NEXT = re.compile(r"\bthe next (?:one|task)\b", re.I)
_BESIDE = re.compile(
    rf"{_NEXT.pattern}|\b(?:the|that) other(?: one\b| task\b|(?=\s*(?:$|[.,;:!?]|(?:as|by|can|done"
    r"|down|for|has|high|is|low|needs|now|on|please|to|too|up|urgent|was)\b)))",
    re.I,
)
_DONE = r"(?:done|finished|completed|closed|ticked)"
_THE_DONE = re.compile(
    rf"\b{_DONE} (?:ones|tasks|items|things|stuff)\b"
    rf"|\b(?:everything|anything|all|whatever|what|those|the ones) (?:(?:that|which)(?:['\u2019]?s"
    rf"|['\u2019]re)?|i['\u2019]ve|i have|already)(?: (?:is|are|was|were|has|have|been|i|already)"
    rf"|['\u2019]ve)* {_DONE}\b",
    re.I,
)
_BUT = re.compile(r"\b(?:except|but|besides|other than|apart from|unless|keep|not|un\w+ed)\b", re.I)


def pointed_at(
    text: str, heard: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]
) -> set[int] | None:
    """The tasks a request points at without a name or number; None where plain code cannot tell.

    "The other one" is the one of two that was not spoken of last, "the next one" the open task
    after it, "the finished ones" are those that are completed: none, where none is.

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are, in their order.
    """
    if numbers(text) or titled(text, tasks):
        return None
    if _THE_DONE.search(text) and not _BUT.search(text):
        return {task["task_id"] for task in tasks if task["status"] == "completed"}
    last = next((n for m in reversed(heard) if (n := _touched(m)) is not None), None)
    if last is None or not _BESIDE.search(text):
        return None
    others = [task for task in tasks if task["task_id"] != last]
    left = [task["task_id"] for task in others if task["status"] != "completed"]
    if _NEXT.search(text):
        return set([n for n in left if n > last][:1])
    if len(others) == 1:
        return {others[0]["task_id"]}
    return set(left) if len(left) == 1 else None


def with_number(
    text: str, heard: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]
) -> str:
    """A request with the number of "the other one" or "the next one" in place of these words.

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are, in their order.
    """
    pointed = pointed_at(text, heard, tasks) or set()
    return _BESIDE.sub(f"task {min(pointed)}", text, count=1) if len(pointed) == 1 else text


def _touched(message: Mapping[str, Any]) -> int | None:
    """The task of a tool's result, unless that is an error or a list."""
    found = re.match(r'\{"task_id": ?(\d{1,18})\b', str(message.get("content") or ""))
    return int(found[1]) if found and message.get("role") == "tool" else None


def overlooked(
    text: str, calls: Sequence[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]]
) -> list[str]:
    """What of a request a model should be asked for once more: all, some parts, or nothing.

    All, where nothing was done for a request that can be understood without what was said before;
    with the number of its task, where it names one and the model took another.
    A part, where it did something with tasks that other parts name, and nothing with the
    one that this part names. Where the completed tasks are to be deleted, each that is left.

    Args:
        text: What the person said.
        calls: What the model called for it, and whether that was done.
        tasks: The tasks there are.
    """
    tasks = list(tasks)
    asked = " ".join(asking_parts(text))
    deletes = not asked_for_delete([{"role": "user", "content": asked}])(
        ToolCall("delete_task", {})
    )
    if deletes and _THE_DONE.search(asked) and (left := pointed_at(text, (), tasks)) is not None:
        return [f"delete task {number}" for number in sorted(left)]
    if not any(call["done"] for call in calls):
        points = _POINTING.search(text) or _BESIDE.search(text)
        alone = not (only_asks(text) or only_courtesy(text) or points)
        named = titled(text, tasks)
        given = [call["arguments"] for call in calls if isinstance(call["arguments"], dict)]
        took = {arguments["task_id"] for arguments in given if "task_id" in arguments}
        if alone and len(named) == 1 and took - named:
            return [f"task {min(named)}: {text}"]
        return [text] if alone else []
    if not all(call["done"] and "task_id" in call["arguments"] for call in calls):
        return []  # some of it was refused, or is about no task that there was
    treated = {call["arguments"]["task_id"] for call in calls}
    about = [(part, meant(part, tasks)) for part in asking_parts(text)]
    if not any(treated & set(named) for _, named in about):
        return []
    return [part for part, named in about if len(named) == 1 and named[0] not in treated]


def call_checks(text: str, heard: Sequence[Mapping[str, Any]], store: TaskStore) -> list[Check]:
    """The checks of meaning for the calls of one turn.

    Args:
        text: What the person said in this turn.
        heard: The conversation that the model was sent before it, as messages.
        store: The tasks.
    """
    people = [m["content"] for m in heard if m["role"] == "user" and m["content"] != LISTING]
    title = asked = text
    if _AGAIN.search(text):  # "and the same for dad": the title's words were said before
        title = " ".join([*people, text])
    if _LIKEWISE.search(text):  # "the car too": so was what is to happen
        asked = " ".join([*people[-1:], text])
    said = [{"role": "user", "content": asked}]
    return [
        plain_meaning(text),
        known_id(store.get, TaskError),
        named_task(text, heard, store.list()["tasks"]),
        asked_for_delete(said),
        clear_date(parse_due, store.clock),
        said_title(title),
    ]


def plain_meaning(text: str) -> Check:
    """A check that a plain request gets what it means, and that questions change nothing."""
    rule = plain_rule(text)
    nothing = ""
    if only_asks(text):
        nothing = "That is a question. It asks for no change."
    elif only_courtesy(text):
        nothing = "That asks for nothing."

    def check(call: ToolCall) -> str | None:
        if rule:
            return (
                None if call.name == rule[0] else f"That asks for {rule[0]}, not for {call.name}."
            )
        return None if call.name == "list_tasks" else nothing or None

    return check


def named_task(
    text: str, heard: Sequence[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]]
) -> Check:
    """A check that the person meant the task of a call.

    Named by number: then no other. Named by words of its title, and a number in it where one is
    said: then one that has them. Else one of which the conversation has spoken, "make it urgent".

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are.
    """
    tasks = list(tasks)
    by_number = numbers(text)
    explicit = bool(_NAMED.search(text))
    in_title = set() if explicit else {task["task_id"] for task in numbered(text, tasks)}
    by_words = titled(text, tasks)
    pointed = pointed_at(text, heard, tasks)
    spoken = spoken_of(heard)

    def check(call: ToolCall) -> str | None:
        wanted = call.arguments.get("task_id")
        if wanted is None or wanted in by_number:
            return None
        other = f"Nobody spoke of task {wanted}."
        if not by_number and len(named := in_title or by_words or pointed or ()) == 1:
            other += f" The request is about task {min(named)}."
        if in_title or pointed is not None:
            return None if wanted in in_title | (pointed or set()) else other
        if explicit or (call.name == "delete_task" and by_number):
            return other
        if wanted in by_words:
            return None
        # "Delete that shredding one": what cannot be brought back is not found by pointing.
        if by_words and (call.name == "delete_task" or not _POINTING.search(text)):
            return other
        return None if wanted in spoken else other

    return check


def named_deletion(text: str, tasks: Iterable[Mapping[str, Any]]) -> Check:
    """A check that the person named the task of a deletion, by number or in words.

    For where tasks were put in view that nobody had spoken of: that is no reason to delete one.

    Args:
        text: What the person said.
        tasks: The tasks there are.
    """
    named = numbers(text) | titled(text, tasks)

    def check(call: ToolCall) -> str | None:
        if call.name != "delete_task" or call.arguments["task_id"] in named:
            return None
        return f"Nobody spoke of task {call.arguments['task_id']}."

    return check


def spoken_of(messages: Iterable[Mapping[str, Any]]) -> set[int]:
    """The ids in what people said and tools returned; errors do not count."""
    found: set[int] = set()
    for message in messages:
        content = str(message.get("content") or "")
        if message.get("role") == "user":
            found |= numbers(content)
        elif message.get("role") == "tool" and '"error"' not in content:
            found |= {int(n) for n in re.findall(r'"task_id": ?(\d{1,18})', content)}
    return found


# --- the answer ------------------------------------------------------------------------------

_CLAIM = re.compile(
    r"\b(created|added|updated|changed|completed|finished|deleted|removed|marked|moved)\b"
    r"[^.]{0,20}\btask\b|\btask \d+ (?:is|was|has been)\b",
    re.I,
)


def output_problem(text: str, done: int) -> str:
    """Why words must not reach the person: they claim what did not happen.

    Args:
        text: What the model said.
        done: How many calls were carried out in this turn.
    """
    if not done and _CLAIM.search(text):
        return "The model claimed something that was not done."
    return ""
