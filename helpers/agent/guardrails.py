"""What a request must keep to before a model reads it, and a call before it is carried out.

Plain functions, no model: what they let through does not depend on how convincing a text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.agent.pointing import LISTING, Task, pointed_at, says_it, topic
from helpers.agent.reported import REOPENING, reported
from helpers.asked import (
    asking_parts,
    bare_name,
    before_name,
    meant,
    names,
    numbered,
    numbers,
    only_asks,
    only_courtesy,
    parts_about,
    reports,
    surely_creates,
    telling,
    titled,
    words,
)
from helpers.dates import WEEKDAY, parse_due
from helpers.mcp_server import MAX_REQUEST
from helpers.resilience import plain_rule, said_title
from helpers.tasks import TaskError
from helpers.validators import DELETING, ToolCall, asked_for_delete, clear_date, known_id

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

_NAMED = re.compile(r"(?:\btasks?\b|\bnumber\b|\bno\.|#)\s*#?(\d{1,9})\b", re.I)
POINTING = re.compile(r"\b(it|its|that|this|them|those|these|they|both|all)\b", re.I)
_PLANNING = re.compile(
    r"\b(?:due|until|till|should|must|need\w*|mov\w+|set|chang\w+|postpon\w+|push\w*|resched\w+"
    r"|shift\w*|date|deadline)\b",
    re.I,
)
_PAST = re.compile(
    r"\b(?:this morning|at lunch\w*|yesterday|last \w+|ago|just now|earlier)\b", re.I
)
NOBODY = "Nobody spoke of task"  # how named_task begins
OVER = "That is when it was done"  # how planned begins
OTHERS = "That is the date of another task"  # how own_date begins
UNCLEAR = "I do not understand the date"  # how clear_date begins
_AGAIN = re.compile(r"\b(same|also|again|too|another|as well|likewise)\b", re.I)
_LIKEWISE = re.compile(r"\b(too|as well|likewise|same)\b", re.I)


def call_checks(text: str, heard: Sequence[Mapping[str, Any]], store: TaskStore) -> list[Check]:
    """The checks of meaning for the calls of one turn.

    Args:
        text: What the person said in this turn, in full, see :mod:`helpers.agent.pointing`.
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
    tasks = store.list()["tasks"]
    return [
        plain_meaning(text),
        known_id(store.get, TaskError),
        named_task(text, heard, tasks),
        planned(text),
        own_date(text, tasks),
        ended(text, heard, tasks),
        named_anew(text),
        meant_deletion(text, tasks),
        new_title(text, tasks),
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
    text: str, heard: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]
) -> Check:
    """A check that the person meant the task of a call.

    Named by number: then no other. Named by words of its title, and a number in it where one is
    said: then one that has them. Else one of which the conversation has spoken, "make it urgent".

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are.
    """
    by_number = numbers(text, tasks)
    explicit = bool(_NAMED.search(text))
    in_title = set() if explicit else {task["task_id"] for task in numbered(text, tasks)}
    by_words = titled(text, tasks)
    about = parts_about(text, tasks)
    besides = {number for part, named in about if not numbers(part, tasks) for number in named}
    pointed = pointed_at(text, heard, tasks)
    last = topic(heard, tasks)
    by_it = any(says_it(part) and not named for part, named in about)
    spoken = spoken_of(heard)
    before = before_name(text, (task["title"] for task in tasks if task["task_id"] in by_words))
    completed = {task["task_id"] for task in tasks if task.get("status") == "completed"}

    def check(call: ToolCall) -> str | None:
        wanted = call.arguments.get("task_id")
        if wanted is None or wanted in by_number:
            return None
        other = f"{NOBODY} {wanted}."
        if not by_number and len(named := in_title or by_words or pointed or ()) == 1:
            other += f" The request is about task {min(named)}."
        if in_title or pointed is not None:
            return None if wanted in in_title | (pointed or set()) else other
        if wanted in besides:  # "task 2, and the milk as well"
            return None
        if wanted == last and by_it and call.name != "delete_task":  # "make it high, and 3 low"
            return None
        if explicit or (call.name == "delete_task" and by_number):
            return other
        if wanted in by_words:
            return None
        # "Delete that shredding one": what cannot be brought back is not found by pointing.
        if by_words and (call.name == "delete_task" or not POINTING.search(before)):
            return other
        if call.name == "complete_task" and wanted in completed:
            return f"Task {wanted} is completed already."
        return None if wanted in spoken else other

    return check


def planned(text: str) -> Check:
    """A check that a date is none of something that is over: "I took the rubbish out this morning".

    Args:
        text: What the person said.
    """
    over = not _PLANNING.search(text) and any(reports(part) for part in asking_parts(text))

    def check(call: ToolCall) -> str | None:
        due = call.arguments.get("due")
        only = call.name == "update_task" and call.arguments.keys() == {"task_id", "due"}
        if only and over and _PAST.search(str(due)):
            return f"{OVER}: {due}."
        return None

    return check


_NAMES = re.compile(
    r"->|\u2192|[:\"\u201c]|(?<!\w)'|\b(?:renam|re-?titl|titl|call|names?\b|named\b|naming\b|chang"
    r"|correct|fix|replac|instead|edit|re-?word|word|spel|read|say|ma(?:ke|de)\b|update|updating"
    r"|switch|swap|amend|typo|turn|should|rather|not\b|into|becom|put|set|modif|adjust|alter"
    r"|rephras|label|describe|wait\b|meant\b|sorry|oops|actually)",
    re.I,
)


def named_anew(text: str) -> Check:
    """A check that a task gets a new title only where one may have been asked for: "the softbox is
    back with the rental place" asks for none.

    Args:
        text: What the person said.
    """

    def check(call: ToolCall) -> str | None:
        if call.name == "update_task" and "title" in call.arguments and not _NAMES.search(text):
            return "Nobody asked for another title."
        return None

    return check


_TO_DO = re.compile(
    r"\b(?:(?:has|have|needs?|ought|still) to|must|should|not|yet|(?:is|are|has|have)nt"
    r"|\w+n['\u2019]t)\b(?! (?:be )?(?:tick\w*|check\w*|cross\w*|mark\w*|closed?)\b)",
    re.I,
)


def ended(text: str, heard: Sequence[Mapping[str, Any]], tasks: Sequence[Task]) -> Check:
    """A check that nothing else is believed of a task of which the request says that it is done,
    and that none is completed of which it says something else: "the email has gone out" deletes
    none, and "poster is done, the pedal board has to be fixed" completes one.

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are.
    """
    over = reported(text, tasks, topic(heard, tasks))
    reopened = targets(text, tasks, REOPENING)
    deleting = {part for part in asking_parts(text) if DELETING.search(part)}
    told: dict[int, list[str]] = {}  # what is said of each; also what is negated
    for part in re.split(r"[,;:.!?\n]+|\b(?:and|but|so)\b", text):
        for number in numbers(part, tasks) | set(meant(part, tasks)):
            told.setdefault(number, []).append(part.strip())

    def check(call: ToolCall) -> str | None:
        number, given = call.arguments.get("task_id"), call.arguments
        if call.name == "complete_task":
            if number in reopened:
                return f"It says that task {number} is not done after all."
            if over and number not in told.keys() | over.keys():
                return f"It says that task {min(over)} is done: {over[min(over)].strip()}."
            still = [part for part in told.get(number, ()) if _TO_DO.search(part)]
            if still and number not in over:
                return f"Of task {number} it says: {still[0]}."
            return None
        only_when = given.keys() <= {"task_id", "due", "status"}
        other = call.name == "update_task" and only_when and given.get("status") != "completed"
        # "Gym cancelled" reports "Cancel gym", and asks for no deletion.
        kept = call.name == "delete_task" and deleting <= {over.get(number, "").strip()}
        if number in over and (other or kept):
            return f"It says that task {number} is done: {over[number].strip()}."
        return None

    return check


def targets(text: str, tasks: Sequence[Task], asks: re.Pattern[str] = DELETING) -> set[int]:
    """The tasks named by the parts of a request that ask for something, or by those before them.

    Args:
        text: What the person said.
        tasks: The tasks there are.
        asks: What asking for it looks like; for a deletion by default.
    """
    last: set[int] = set()
    found: set[int] = set()
    for part in asking_parts(text):
        rest = asks.sub(" ", part)  # "take it off" names no "Take out the bins"
        last = (numbers(part, tasks) | set(meant(rest, tasks))) or last
        if asks.search(part):
            if _BESIDE.search(rest):
                return set()  # "everything except the car", "the one after the dentist"
            found |= last
    return found


_BESIDE = re.compile(
    r"\b(?:except|but|besides|apart from|not|after|before|above|below|under|next to|other than)\b",
    re.I,
)


_ONLY_NUMBERED = re.compile(
    r"\W*(?:(?:the|tasks?|numbers?|also|too|both|as well|please|pls) |#)*\d+"
    r"(?:,? (?:too|also|as well|please|pls|thanks))*\W*",
    re.I,
)


def meant_deletion(text: str, tasks: Sequence[Task]) -> Check:
    """A check that a deletion is of what the deleting part of the request names, or the part
    before it: "we shan't need euros, so do remove that" leaves the cat alone.

    Args:
        text: What the person said.
        tasks: The tasks there are.
    """
    wanted = targets(text, tasks)
    beside = {  # "delete that, and the lamp as well", "delete 3 and 4"
        number
        for part, named in parts_about(text, tasks)
        if bare_name(part, tasks) or _LIKEWISE.search(part) or _ONLY_NUMBERED.fullmatch(part)
        for number in named
    }

    def check(call: ToolCall) -> str | None:
        number = call.arguments.get("task_id")
        if call.name != "delete_task" or not wanted or number in wanted | beside:
            return None
        return f"Nobody asked to delete task {number}."

    return check


# What may be a date; whether it is one, nobody has to know here.
_DATED = re.compile(rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)|{WEEKDAY}|today|tomorrow)\b", re.I)


def own_date(text: str, tasks: Sequence[Task]) -> Check:
    """A check that a task does not get another one's date: "radiators are bled, the chimney can
    wait till monday".

    Args:
        text: What the person said.
        tasks: The tasks there are.
    """
    parts: list[tuple[str, set[str], set[int]]] = []
    for part, named in parts_about(text, tasks):
        if parts and not named:  # "the slides, is now due on monday"
            said, before, named = parts.pop()
            parts.append((said, before | set(words(part)), named))
        else:
            parts.append((part, set(words(part)), named))

    def check(call: ToolCall) -> str | None:
        number, due = call.arguments.get("task_id"), call.arguments.get("due")
        if number is None or not due:
            return None
        own = [part for part, _, named in parts if number in named]
        dated = [named for _, said, named in parts if set(words(str(due))) <= said]
        elsewhere = dated and not any(not named or number in named for named in dated)
        dated_itself = any(map(_DATED.search, own))
        if own and elsewhere and (dated_itself or all(map(reports, own))):
            return f"{OTHERS}. Of task {number} the request says: {own[0]}."
        return None

    return check


_NO_TITLE = frozenset(
    "few some things thing task tasks stuff couple of a new items many more several todo".split()
)


def new_title(text: str, tasks: Sequence[Task]) -> Check:
    """A check that a new task has a title that says something, and is not one that is there:
    "for the backup, set urgent" is about "Back up photos".

    Args:
        text: What the person said.
        tasks: The tasks there are.
    """
    tasks = [task for task in tasks if task["status"] != "completed"]
    creates = surely_creates(text)
    before, own = _asked_of(text)

    def check(call: ToolCall) -> str | None:
        if call.name != "create_task":
            return None
        title = call.arguments["title"]
        if set(words(title)) <= _NO_TITLE:
            return "That is no title. Say what is to be done."
        # "No problem. Add a task: call mum" does not ask for a task "problem".
        if own and telling(title) <= before and not telling(title) <= own:
            return f"Nobody asked for a task {title!r}."
        there = meant(title, tasks) if not creates else []
        for task in tasks:
            if task["task_id"] in there and telling(title) <= names(task["title"]):
                return f"There is task {task['task_id']} already: {task['title']}."
        return None

    return check


_LISTING = re.compile(r"\b(?:things|tasks|items|ones|jobs|remember|note)\b[^:]*:", re.I)


def _asked_of(text: str) -> tuple[set[str], set[str]]:
    """The words before the first sentence that may ask for a new task, and its own."""
    sentences = re.split(r"[.!?\n]+(?:\s+|$)", text)
    asking = (
        i for i, said in enumerate(sentences) if surely_creates(said) or _LISTING.search(said)
    )
    at = next(asking, len(sentences))
    own = telling(" ".join(sentences[at : at + 1])) - telling("add put remind create")
    return telling(" ".join(sentences[:at])), own


def one_end(done: Sequence[Mapping[str, Any]]) -> Check:
    """A check that what a turn has completed does not get another status in it.

    Args:
        done: The calls of the turn that were carried out.
    """

    def check(call: ToolCall) -> str | None:
        number = call.arguments.get("task_id")
        ended = any(
            c["name"] == "complete_task" and c["arguments"]["task_id"] == number for c in done
        )
        if ended and call.name == "update_task" and "status" in call.arguments:
            return f"Task {number} has just been completed."
        return None

    return check


def named_deletion(text: str, tasks: Sequence[Mapping[str, Any]]) -> Check:
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
        return f"{NOBODY} {call.arguments['task_id']}."

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
