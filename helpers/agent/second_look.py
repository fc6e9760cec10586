"""What of a request a model has overlooked, and in which words it is asked for once more.

Plain functions, no model. What then comes back passes the same checks as everything else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from helpers.agent.guardrails import NOBODY, OTHERS, OVER, POINTING, UNCLEAR, targets
from helpers.agent.pointing import (
    THE_DONE,
    WHEN,
    Call,
    Task,
    pointed_at,
    points_beside,
    says_it,
    wish,
)
from helpers.agent.reported import REOPENING
from helpers.asked import (
    asking_parts,
    bare_name,
    meant,
    only_asks,
    only_courtesy,
    reports,
    titled,
    words,
)

# The whole request, so that "the finished ones from last week" or "I want them to stay" is none.
_CLEARING = re.compile(
    r"\W*(?:(?:please|can you|could you|would you|will you|just|now|and|ok|okay|so|then|also|oh"
    r"|lets|let['\u2019]s|go ahead and|you can|you may),? )*(?:delete|remove|clear|erase|drop|bin"
    r"|trash|scrap|purge|wipe|get rid of|throw|clean)(?: (?:out|away|up|off))?"
    r"(?: (?:all|of|the|my|those))*"
    rf" (?:{THE_DONE.pattern})(?: (?:from|off) (?:my|the) list)?(?:,? (?:please|thanks|too|now|out"
    r"|away|would you|will you|for me))*\W*(?:\b(?:it|they|that|the list)(?:['\u2019]s|['\u2019]re"
    r"| is| are)\b(?!.*\b(?:but|except|not|keep)\b).*)?",
    re.I,
)
_NOT_SO = re.compile(r"\b(?:not|yet|still|left|open|next|then|to ?do|keep|later|rather)\b", re.I)
_WANTED = re.compile(r"\b(?:wants?|needs?|due|ready|deadline|must|(?:has|have|got) to)\b", re.I)
_NOT = re.compile(r"\b(?:not|no|never|cannot|cant)\b|n['\u2019]t\b", re.I)
_DEADLINE = re.compile(rf"\bby ({WHEN})", re.I)
# A part that is nothing but a date: "make it high, and by the 22nd please".
_ONLY_DATE = re.compile(rf"\W*(?:by|due|for) ({WHEN})(?:,? (?:please|pls|then|too))*\W*", re.I)
_MANY = re.compile(r"\b(?:both|all|each|them|those|these|the two)\b", re.I)


def overlooked(
    text: str,
    calls: Sequence[Call],
    tasks: Sequence[Task],
    topic: int | None = None,
    pointed: set[int] | None = None,
) -> list[str]:
    """What of a request a model should be asked for once more: all, some parts, or nothing.

    Where the completed tasks are to be deleted, each that is left.

    Args:
        text: What the person said.
        calls: What the model called for it: ``arguments``, ``done``, and where it was refused the
            ``result`` that says why.
        tasks: The tasks there are.
        topic: The one that was spoken of last, see :func:`helpers.agent.pointing.topic`.
        pointed: Those that the request points at, see :func:`helpers.agent.pointing.pointed_at`.
    """
    if _CLEARING.fullmatch(text) and (left := pointed_at(text, (), tasks)) is not None:
        return [f"delete task {number}" for number in sorted(left)]
    kept = [call for call in calls if call["name"] == "delete_task" and not call["done"]]
    other = targets(text, tasks) & {task["task_id"] for task in tasks} if kept else set()
    if len(other) == 1:
        return [f"delete task {min(other)}"]  # the model took another
    if not any(call["done"] for call in calls):
        return _all(text, calls, tasks, topic)
    found = _left(text, calls, tasks, pointed or set())
    found += [_dateless(call, calls, text) for call in calls if UNCLEAR in _why(call)]
    return [part for part in (*found, _deadline(text, calls), *_reopened(text, tasks)) if part]


def _all(text: str, calls: Sequence[Call], tasks: Sequence[Task], topic: int | None) -> list[str]:
    """Nothing was done. The whole request, where it can be understood without what was said before;
    with the number of its task, where it names one and the model took another or none, or says
    "it" and the model's call was refused; without a date that is none."""
    if only_asks(text) or only_courtesy(text):
        return []
    named = titled(text, tasks)
    if not named and topic and calls and says_it(text):
        return [f"task {topic}: {text}"]
    given = [call["arguments"] for call in calls if isinstance(call["arguments"], dict)]
    undated = text
    for call in calls:
        if UNCLEAR in _why(call) or OVER in _why(call):
            undated = undated.replace(call["arguments"]["due"], "")
    if len(named) == 1 and calls:
        number = min(named)
        if undated != text:
            return [f"task {number}: {undated}"]
        if any(arguments.get("task_id") != number for arguments in given):
            return [_of_another(text, calls, number) or f"task {number}: {text}"]
    if undated != text and all(call["name"] == "create_task" for call in calls):
        return [undated]
    points = POINTING.search(text) or points_beside(text)
    return [text] if named or not points else []


def _left(text: str, calls: Sequence[Call], tasks: Sequence[Task], pointed: set[int]) -> list[str]:
    """Something was done. What was done, for those of the tasks that the request points at with
    which it was not; or the parts of the request about a task of their own with which nothing was
    done."""
    done = [call for call in calls if call["done"]]
    if not all("task_id" in call["arguments"] for call in done):
        return []  # some of it is about no task that there was
    treated = {call["arguments"]["task_id"] for call in done}
    if treated < pointed:
        return [wish(done, pointed - treated)]
    about = [(part, meant(part, tasks)) for part in asking_parts(text)]
    if not any(treated & set(named) for _, named in about):
        return []
    misdated = {c["arguments"].get("task_id") for c in calls if OTHERS in _why(c)}
    tried = [call["arguments"] for call in calls if not call["done"] and OTHERS not in _why(call)]
    settled = treated | {given.get("task_id") for given in tried if isinstance(given, dict)}
    loose = [part for part, named in about if not named]
    shared = not _NOT_SO.search(text) and (not loose or any(map(_MANY.search, loose)))
    found = []
    for call in calls:
        elsewhere = call["name"] == "update_task" and NOBODY in _why(call)
        if elsewhere and len(treated) == 1 and any(says_it(part) for part, _ in about):
            found.append(wish([call], treated))  # "... and it ought to be high", of another task
    for at, (part, named) in enumerate(about):
        if len(named) != 1 or named[0] in settled:
            continue
        dates = re.findall(WHEN, part, re.I)
        if len(dates) == 1 and named[0] in misdated:  # "we get the keys on the 6th"
            found.append(f"move task {named[0]} to {dates[0]}")
            continue
        own = itertools.takewhile(lambda other: not other[1], about[at + 1 :])
        rest = " ".join(other for other, _ in own)  # "milk: friday" is two parts
        if not bare_name(part, tasks):
            found.append(part)
        elif shared:
            found.append(wish(done, named))
        elif rest:
            found.append(f"{part} {rest}")
    return found


def _of_another(text: str, calls: Sequence[Call], number: int) -> str:
    """What a call would have done with another task, for the one that the request names; empty
    where that is not plain."""
    moved = [c for c in calls if c["name"] == "update_task" and NOBODY in _why(c)]
    if len(moved) != 1 or any(map(reports, asking_parts(text))):
        return ""
    return wish(moved, [number])


def _dateless(call: Call, calls: Sequence[Call], text: str) -> str:
    """What a call that was refused for its date asks for without it: "make it medium before someone
    breaks their neck"; empty where nothing is left, or where it was done all the same."""
    done = [other["arguments"] for other in calls if other["done"]]
    given = {key: value for key, value in call["arguments"].items() if key != "due"}
    if call["name"] == "update_task":
        treated = any(other.get("task_id") == given["task_id"] for other in done)
        return "" if treated else wish([{**call, "arguments": given}], [given["task_id"]])
    title = given.get("title", "")
    made = any(set(words(title)) <= set(words(other.get("title", ""))) for other in done)
    if made or not set(words(title)) <= set(words(text)):
        return ""
    dates = {other.get("due") for other in done}
    due = f", due {min(dates)}" if len(done) > 1 and len(dates) == 1 and None not in dates else ""
    return f"add a task: {title}{due}"


def _reopened(text: str, tasks: Sequence[Task]) -> list[str]:
    """Of tasks that the request puts back to pending and that are completed, that once more."""
    completed = {task["task_id"] for task in tasks if task.get("status") == "completed"}
    return [
        f"set task {number} back to pending"
        for number in sorted(targets(text, tasks, REOPENING) & completed)
    ]


def _deadline(text: str, calls: Sequence[Call]) -> str:
    """The one deadline of a request, "she wants it by friday", for the one task that was made or
    changed for it; empty where that got a date."""
    done = [call for call in calls if call["done"]]
    said = [
        date
        for part in asking_parts(text)
        for date in _DEADLINE.findall(part)
        if _WANTED.search(part) and not _NOT.search(part)
    ]
    said += [found[1] for part in asking_parts(text) if (found := _ONLY_DATE.fullmatch(part))]
    if len(said) != 1 or len(done) != 1 or done[0]["name"] not in ("create_task", "update_task"):
        return ""
    dated = "due" in done[0]["arguments"]
    return "" if dated else f"move task {done[0]['result']['task_id']} to {said[0]}"


def _why(call: Call) -> str:
    """Why a call was refused."""
    return str((call.get("result") or {}).get("error"))
