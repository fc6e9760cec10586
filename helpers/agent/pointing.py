"""What a request means by "the other one", "the third one", "same day", "same for the car".

Plain code, no model: a small model is sure of numbers and dates, and unsure of what points at them.
So what can be worked out is put into the text that the model reads; what cannot is left as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from helpers.asked import (
    asking_parts,
    bare_name,
    meant,
    numbers,
    only_asks,
    only_courtesy,
    telling,
    titled,
)

Message = Mapping[str, Any]
Task = Mapping[str, Any]
Call = Mapping[str, Any]

LISTING = "list my tasks"  # what a list that nobody asked for is put behind, see memory

_COUNTING = re.compile(
    r"\b(?:first|second|third|fourth|fifth|last|next|other|both|all|each|everything|top|bottom"
    r"|rest|remaining)\b",
    re.I,
)


def counts_them(text: str) -> bool:
    """Whether a text means tasks by their place in a list: "the first one", "both"."""
    return bool(_COUNTING.search(text))


_NEXT = re.compile(r"\bthe next (?:one|task)\b", re.I)
_OTHER = re.compile(
    r"\b(?:the|that) other(?: one\b| task\b|(?=\s*(?:$|[.,;:!?]|(?:as|by|can|done"
    r"|down|for|has|high|is|low|needs|now|on|please|to|too|up|urgent|was)\b)))",
    re.I,
)
_PLACES = {
    word: place
    for place, words in enumerate(
        ("first|1st|top", "second|2nd", "third|3rd", "fourth|4th", "fifth|5th", "sixth|6th")
    )
    for word in words.split("|")
} | {"last": -1, "bottom": -1, "second to last": -2, "second-to-last": -2, "last but one": -2,
     "penultimate": -2}  # fmt: skip
_WORD = "|".join(sorted(_PLACES, key=len, reverse=True))
# "The last one" alone may be the one that was spoken of last: it needs its list.
_PLACE = re.compile(
    rf"\b(?:the |my |that )?({_WORD}) (?:one|task|item|entry|thing)(?: (?:on|in|of) (?:the|my|that)"
    rf" list\b)?|\b(?:the |my )?({_WORD}) (?:on|in|of) (?:the|my|that) list\b"
    # Not "on the second", which is a date.
    rf"|(?<!\bon )(?<!\bby )(?<!\bto )(?<!\btill )(?<!\buntil )(?<!\bdue )\bthe ({_WORD})"
    r"(?=\s*(?:$|[.,;:!?]|(?:too|as well|please|is|can|has)\b))",
    re.I,
)
_BOTH = re.compile(r"\b(?:both|the two)(?: of (?:them|those|these))?(?: tasks| ones)?\b", re.I)
_OTHERS = re.compile(r"\b(?:the|those) other (two|three|four|five)(?: tasks| ones)?\b", re.I)
_MANY = {"two": 2, "three": 3, "four": 4, "five": 5}
_IT = re.compile(r"\b(?:it|its|it['\u2019]s|that|this)\b", re.I)
_DONE = r"(?:done|finished|completed|closed|ticked)"
THE_DONE = re.compile(
    rf"\b{_DONE} (?:ones|tasks|items|things|stuff)\b"
    rf"|\b(?:everything|anything|all|whatever|what|those|the ones) (?:(?:that|which)(?:['\u2019]?s"
    rf"|['\u2019]re)?|i['\u2019]ve|i have|already)(?: (?:is|are|was|were|has|have|been|i|already)"
    rf"|['\u2019]ve)* {_DONE}\b",
    re.I,
)
_BUT = re.compile(r"\b(?:except|but|besides|other than|apart from|unless|keep|not|un\w+ed)\b", re.I)


def points_beside(text: str) -> bool:
    """Whether a text means a task by where it stands beside others."""
    return bool(_NEXT.search(text) or _OTHER.search(text))


def pointed_at(text: str, heard: Sequence[Message], tasks: Sequence[Task]) -> set[int] | None:
    """The tasks a request points at without a name or number; None where plain code cannot tell.

    "The other one" is the one of two that was not spoken of last, or the only one like it; "the
    other two" are those that are left, "both" those that the last request was about. "The next
    one" is the open task after it, "the third one" has its place in the list that was shown last,
    or of all tasks where none was; "the finished ones" are those that are completed: none, where
    none is.

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are, in their order.
    """
    if numbers(text) or titled(text, tasks):
        return None
    if THE_DONE.search(text) and not _BUT.search(text):
        return {task["task_id"] for task in tasks if task["status"] == "completed"}
    found = [n for place in _PLACE.finditer(text) if (n := _at(place, heard, tasks)) is not None]
    if found:
        return set(found)
    last = next((n for m in reversed(heard) if (n := touched(m)) is not None), None)
    if _BOTH.search(text) and len(two := treated_last(heard)) == 2:
        return two
    if last is None or not (points_beside(text) or _OTHERS.search(text)):
        return None
    others = [task for task in tasks if task["task_id"] != last]
    left = [task["task_id"] for task in others if task["status"] != "completed"]
    if many := _OTHERS.search(text):
        return set(left) if len(left) == _MANY[many[1].lower()] else None
    if _NEXT.search(text):
        return set([n for n in left if n > last][:1])
    if len(others) == 1:
        return {others[0]["task_id"]}
    name = next((telling(task["title"]) for task in tasks if task["task_id"] == last), set())
    alike = {task["task_id"] for task in others if telling(task["title"]) & name}
    if len(alike & set(left)) == 1:  # of two meters that are to be read
        return alike & set(left)
    return set(left) if len(left) == 1 else None


def _at(place: re.Match[str], heard: Sequence[Message], tasks: Sequence[Task]) -> int | None:
    """The task at a place of the list that is meant."""
    word = (place[1] or place[2] or place[3]).lower()
    shown = _shown(heard)
    if shown is None:
        made = [n for m in heard if (n := touched(m)) is not None]
        if word == "last" and "list" not in place[0]:
            return None
        shown = [task["task_id"] for task in tasks]
        if len(set(made)) > 1 and set(made) != set(shown):
            return None  # the first of those that were spoken of, or of all?
    at = _PLACES[word]
    there = {task["task_id"] for task in tasks}
    fits = -len(shown) <= at < len(shown)
    return shown[at] if fits and shown[at] in there else None


def _shown(heard: Sequence[Message]) -> list[int] | None:
    """The ids of the list that was shown last, in its order; None where none was."""
    for message in reversed(heard):
        if message.get("role") == "tool":
            try:
                listed = json.loads(str(message.get("content")))["tasks"]
                return [task["task_id"] for task in listed]
            except (ValueError, KeyError, TypeError):
                continue
    return None


def touched(message: Message) -> int | None:
    """The task of a tool's result, unless that is an error or a list."""
    found = re.match(r'\{"task_id": ?(\d{1,18})\b', str(message.get("content") or ""))
    return int(found[1]) if found and message.get("role") == "tool" else None


def treated_last(heard: Sequence[Message]) -> set[int]:
    """The tasks with which something was done for the last request."""
    found: set[int] = set()
    for message in reversed(heard):
        if message.get("role") == "user":
            break
        if (number := touched(message)) is not None:
            found.add(number)
    return found


def asked_about(heard: Sequence[Message], tasks: Sequence[Task]) -> int | None:
    """The one task that the last request named where nothing was done with any: "when is the rent
    due?"; None where there is no such task."""
    last = next((m for m in reversed(heard) if m.get("role") == "user"), None)
    if last is None or last["content"] == LISTING or treated_last(heard):
        return None
    named = titled(str(last["content"]), tasks)
    return min(named) if len(named) == 1 else None


def topic(heard: Sequence[Message], tasks: Iterable[Task]) -> int | None:
    """The one task that was spoken of last, done something with or not; None where it is not one.

    Args:
        heard: The conversation before.
        tasks: The tasks there are.
    """
    tasks = list(tasks)
    there = {task["task_id"] for task in tasks}
    found: set[int] = set()
    for message in reversed(heard):
        if (number := touched(message)) is not None:
            found.add(number)
        elif message.get("role") == "user" and message.get("content") != LISTING:
            found = found or titled(str(message["content"]), tasks)
            if found:
                break
    return min(found) if len(found) == 1 and found <= there else None


# --- put into the text that the model reads -------------------------------------------------

_SAME_DAY = re.compile(
    r"\b(?:(?:on|for|by|due|at) )?(?:(?:the )?same (?:day|date|deadline|due date)"
    r"(?: as (?:for )?(?P<as>[\w'\u2019 -]+?)(?=\s*(?:$|[.,;:!?]| please\b| too\b)))?"
    r"|that (?:same )?day\b(?= too| as well|\s*[.,;!]|\s*$))",
    re.I,
)
_LIKEWISE = re.compile(
    r"\W*(?:(?:and|also|oh|ok|okay|please|then|now|do|so|exactly) )*(?:(?:the )?same"
    r"(?: (?:thing|again|goes))? (?:for|with|to) (?P<same>.+?)(?:,? (?:too|as well|also))?"
    r"|(?P<too>.+?),? (?:too|as well|likewise))(?:,? (?:please|thanks))*\W*",
    re.I,
)


def in_full(
    text: str, heard: Sequence[Message], tasks: Sequence[Task], did: Sequence[Call] = ()
) -> str:
    """A request with a number in place of "the other one", a date in place of "the same day", and
    the whole wish in place of "same for the car"; unchanged where plain code cannot tell.

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are, in their order.
        did: The calls of the last request that brought something about, with ``name`` and
            ``arguments``.
    """
    first, end, rest = re.fullmatch(r"(?s)([^.!?;]*)([.!?;]?)(.*)", text).groups()
    if whole := _likewise(first, heard, tasks, did):
        return whole + end + rest
    text = _SAME_DAY.sub(lambda day: _day(day, heard, tasks), text)
    if named := pointed_at(text, heard, tasks):
        who = " and ".join(f"task {number}" for number in sorted(named))
        ways = (_BOTH, _OTHERS) if len(named) > 1 else (_PLACE, _NEXT, _OTHER)
        way = next((way for way in ways if way.search(text)), None)
        return way.sub(who, text, count=1) if way else text
    text = _PLACE.sub(lambda place: _in_its_part(place, text, heard, tasks), text)
    about = asked_about(heard, tasks)
    plain = numbers(text) or titled(text, tasks) or only_asks(text) or only_courtesy(text)
    return f"task {about}: {text}" if about and _IT.search(text) and not plain else text


def _in_its_part(
    place: re.Match[str], text: str, heard: Sequence[Message], tasks: Sequence[Task]
) -> str:
    """ "task 3" for "the third one" beside tasks that other parts of the text name."""
    part = next((p for p in asking_parts(text) if place[0].lower() in p), "")
    number = _at(place, heard, tasks) if part and not meant(part, tasks) else None
    return place[0] if number is None else f"task {number}"


def _likewise(
    text: str, heard: Sequence[Message], tasks: Sequence[Task], did: Sequence[Call]
) -> str:
    """What was just done, as a wish for other tasks; empty where that is not asked for."""
    found = _LIKEWISE.fullmatch(text)
    if not found:
        return ""
    what = found["same"] or found["too"]
    if found["too"] and not (_OTHER.fullmatch(what) or bare_name(what, tasks)):
        return ""  # "the rent is paid too" says itself what is to be done
    named = numbers(what) or titled(what, tasks)
    named = named or pointed_at(f"{what} one", heard, tasks) or pointed_at(what, heard, tasks)
    return wish(did, (named or set()) - {call["arguments"].get("task_id") for call in did})


def wish(did: Sequence[Call], named: Iterable[int]) -> str:
    """What calls have done, in words and for other tasks: "move task 3 to friday"; empty where it
    cannot be said in a few.

    Args:
        did: The calls, with ``name`` and ``arguments``.
        named: The numbers of the other tasks.
    """
    named = sorted(named)
    given = [{k: v for k, v in call["arguments"].items() if k != "task_id"} for call in did]
    alike = did and all(g == given[0] for g in given) and len({call["name"] for call in did}) == 1
    if not alike or not named:
        return ""
    who = " and ".join(f"task {number}" for number in named)
    name, values = did[0]["name"], given[0]
    if name == "complete_task":
        return f"{who} {'are' if len(named) > 1 else 'is'} done"
    if name == "delete_task":
        return f"delete {who}"
    if name != "update_task" or not values.keys() <= {"due", "priority"}:
        return ""
    if values.get("due") == "none":
        return f"take the due date off {who}" if len(values) == 1 else ""
    due = f"move {who} to {values['due']}" if "due" in values else ""
    level = values.get("priority")
    if due and level:
        return f"{due} and make it {level}" if len(named) == 1 else ""
    return due or f"set {who} to {level} priority"


def _day(same: re.Match[str], heard: Sequence[Message], tasks: Sequence[Task]) -> str:
    """ "due 2026-12-03" for "the same day"; the same words where no date is meant for certain."""
    by_id = {task["task_id"]: task for task in tasks}
    if same["as"]:
        named = meant(same["as"], tasks)
        number = named[0] if len(named) == 1 else None
    else:
        number = topic(heard, tasks)
    due = by_id[number]["due"] if number in by_id else None
    return f"due {due}" if due else same[0]
