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
    surely_creates,
    telling,
    titled,
    words,
)
from helpers.dates import MONTH, SHORT, WEEKDAY, parse_due
from helpers.settings import today

Message = Mapping[str, Any]
Task = Mapping[str, Any]
Call = Mapping[str, Any]

LISTING = "list my tasks"  # what a list that nobody asked for is put behind, see memory
TASKS_SHOWN = 8  # of one list, to the model

_PLACES = {
    word: place
    for place, words in enumerate(
        ("first|1st|top", "second|2nd", "third|3rd", "fourth|4th", "fifth|5th", "sixth|6th")
    )
    for word in words.split("|")
} | {"last": -1, "bottom": -1, "second to last": -2, "second-to-last": -2, "last but one": -2,
     "penultimate": -2}  # fmt: skip
_WORD = "|".join(sorted(_PLACES, key=len, reverse=True))
_SPELT = "|".join(w for w in _WORD.split("|") if not w[0].isdigit())  # "the 2nd" is a date
_COUNTING = re.compile(rf"\b(?:{_WORD}|next|other|both|all|each|everything|rest|remaining)\b", re.I)


def counts_them(text: str) -> bool:
    """Whether a text means tasks by their place in a list: "the first one", "both"."""
    return bool(_COUNTING.search(text))


# What stands behind a word that means tasks, and no noun: "both are", not "both eggs".
_END = (
    r"(?=\s*(?:$|[.,;:!?]|(?:as|are|by|can|could|done|down|for|has|have|high|is|low|medium|need|needs"
    r"|now|on|please|should|to|too|up|urgent|was|were)\b))"
)
_NEXT = re.compile(r"\bthe next (?:one|task)\b(?!:|\s+is to\b)", re.I)
_OTHER = re.compile(rf"\b(?:the|that) other(?: one\b| task\b|{_END})", re.I)
# "The last one" alone may be the one that was spoken of last: it needs its list.
_PLACE = re.compile(
    rf"\b(?:the |my |that )?({_WORD}) (?:(?:one|task|item|entry)\b"
    r"(?!\s+(?:i|we|you|that|which|about|from)\b)(?: (?:on|in|of) (?:the|my|that) list\b)?"
    r"|thing (?:on|in|of) (?:the|my|that) list\b)"
    rf"|\b(?:the |my )?({_WORD}) (?:on|in|of) (?:the|my|that) list\b"
    rf"|\bthe ({_SPELT}){_END}",
    re.I,
)
_DATED = re.compile(  # "on the second", "friday the second"
    r"\b(?:on|by|to|till|until|due|after|from|before|it|me|and|(?:mon|tues|wednes|thurs|fri|satur"
    r"|sun)day) $",
    re.I,
)
_BOTH = re.compile(rf"\b(?:both|the two)(?: of (?:them|those|these)| tasks| ones|{_END})", re.I)
_OTHERS = re.compile(rf"\b(?:the|those) other (two|three|four|five)(?: tasks| ones|{_END})", re.I)
_MANY = {"two": 2, "three": 3, "four": 4, "five": 5}
_VALUED = re.compile(
    r"\b(?P<how>both|all|the|my|those)(?: (?:the|my|those|of the))?"
    r" (?P<value>low|medium|high|urgent|in[ -]progress)(?:[ -]priority)?"
    r" (?P<what>ones?|tasks?|items?)\b"
    r"(?! (?:without|with|due|about|that|from|for|which|this|next|on)\b)",
    re.I,
)
_DONE = r"(?:done|finished|completed|closed|ticked)"
THE_DONE = re.compile(
    rf"\b{_DONE} (?:ones|tasks|items|things|stuff)\b"
    rf"|\bwhat(?:ever)?(?:['\u2019]s| is| has)(?: already| been| now)* {_DONE}\b"
    rf"|\b(?:everything|anything|all|whatever|what|those|the ones) (?:(?:that|which)(?:['\u2019]?s"
    rf"|['\u2019]re)?|i['\u2019]ve|i have|already)(?: (?:is|are|was|were|has|have|been|i|already)"
    rf"|['\u2019]ve)* {_DONE}\b",
    re.I,
)
_BUT = re.compile(
    r"\b(?:except|but|besides|other than|apart from|unless|keep|not|un\w+ed|half|partly|almost"
    r"|nearly)\b",
    re.I,
)


def points_beside(text: str) -> bool:
    """Whether a text means a task by where it stands beside others."""
    return bool(_NEXT.search(text) or _OTHER.search(text))


def pointed_at(text: str, heard: Sequence[Message], tasks: Sequence[Task]) -> set[int] | None:
    """The tasks a request points at without a name or number; None where plain code cannot tell.

    "The other one" is the one of two that was not spoken of last, or the only one like it; "the
    other two" are those that are left, "both" those that the last request was about. "The next
    one" is the open task after it, "the third one" has its place in the list that was shown last,
    or of all tasks where none was; "the finished ones" are those that are completed: none, where
    none is. "The low ones" are the open ones of that priority.

    Args:
        text: What the person said.
        heard: The conversation before.
        tasks: The tasks there are, in their order.
    """
    return _found(text, heard, tasks)[0]


def _found(
    text: str, heard: Sequence[Message], tasks: Sequence[Task]
) -> tuple[set[int] | None, re.Pattern[str] | None]:
    """What pointed_at finds, and which words of the text mean it."""
    nothing = None, None
    if numbers(text) or titled(text, tasks):
        return nothing
    open_ones = [task["task_id"] for task in tasks if task.get("status") != "completed"]
    if valued := _VALUED.search(text):
        having = _having(valued, tasks)
        return (having, _VALUED) if having else nothing
    ways = [way for way in (_PLACE, _NEXT, _OTHER, _OTHERS, _BOTH) if way.search(text)]
    if THE_DONE.search(text) and not _BUT.search(text):
        done = {task["task_id"] for task in tasks if task["status"] == "completed"}
        return nothing if ways else (done, None)
    places = [n for place in _PLACE.finditer(text) if (n := _at(place, heard, tasks)) is not None]
    if places:
        return set(places), _PLACE
    if _BOTH in ways and len(two := treated_last(heard)) == 2:
        return two, _BOTH
    last = next((n for m in reversed(heard) if (n := touched(m)) is not None), None)
    if last is None:
        return nothing
    if _NEXT in ways:
        shown = _shown(heard) or []
        after = shown[shown.index(last) + 1 :] if last in shown else sorted(open_ones)
        behind = [n for n in after if n in open_ones and (last in shown or n > last)]
        return set(behind[:1]), _NEXT
    left = [n for n in open_ones if n != last]
    if many := _OTHERS.search(text):
        return (set(left), _OTHERS) if len(left) == _MANY[many[1].lower()] else nothing
    if _OTHER not in ways:
        return nothing
    others = [task for task in tasks if task["task_id"] != last]
    name = next((telling(task["title"]) for task in tasks if task["task_id"] == last), set())
    alike = {t["task_id"] for t in others if telling(t["title"]) & name} & set(left)
    for found in ({task["task_id"] for task in others}, alike, set(left)):
        if len(found) == 1:  # of two; of two meters that are to be read; of what is left
            return found, _OTHER
    return nothing


def _having(valued: re.Match[str], tasks: Sequence[Task]) -> set[int]:
    """The open tasks of a priority or status; none where they are not as many as is said."""
    value = re.sub("[ -]", "_", valued["value"].lower())
    found = {
        task["task_id"]
        for task in tasks
        if value in (task["priority"], task["status"]) and task["status"] != "completed"
    }
    many = len(found) == 2 if valued["how"].lower() == "both" else len(found) > 1
    return found if (many if valued["what"].lower().endswith("s") else len(found) == 1) else set()


def _at(place: re.Match[str], heard: Sequence[Message], tasks: Sequence[Task]) -> int | None:
    """The task at a place of the list that is meant."""
    word = (place[1] or place[2] or place[3]).lower()
    if place[3] and _DATED.search(place.string[: place.start()]):
        return None
    shown, at = _shown(heard), _PLACES[word]
    made = {n for m in heard if (n := touched(m)) is not None}
    bare = at < 0 and "list" not in place[0]
    if shown is None:
        shown = [task["task_id"] for task in tasks]
        if bare or (len(made) > 1 and made != set(shown)):
            return None  # the first of those that were spoken of, or of all?
    elif at < 0 and (len(shown) >= TASKS_SHOWN or (bare and made - set(shown))):
        return None  # its end was cut off, or something came after it
    there = {task["task_id"] for task in tasks}
    fits = -len(shown) <= at < len(shown)
    return shown[at] if fits and shown[at] in there else None


def _shown(heard: Sequence[Message]) -> list[int] | None:
    """The ids of the list that a person was shown last, in its order; None where none was."""
    asked, found = "", None
    for message in heard:
        if message.get("role") == "user":
            asked = str(message.get("content"))
        elif message.get("role") == "tool" and asked != LISTING:
            try:
                listed = json.loads(str(message.get("content")))["tasks"]
                found = [task["task_id"] for task in listed]
            except (ValueError, KeyError, TypeError):
                continue
    return found


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


def topic(heard: Sequence[Message], tasks: Sequence[Task]) -> int | None:
    """The one task that was spoken of last, done something with or not; None where it is not one.

    Args:
        heard: The conversation before.
        tasks: The tasks there are.
    """
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


WHEN = (  # the plainest dates
    rf"(?:the )?\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {MONTH}|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b"
    rf"|the \d{{1,2}}(?:st|nd|rd|th)\b|{WEEKDAY}\b|today\b|tomorrow\b|the end of the month"
)

# --- put into the text that the model reads -------------------------------------------------

_SAME_DAY = re.compile(
    r"\b(?:due )?(?:(?:on|for|by|at) )?(?:(?:the )?same (?:day|date|deadline|due date)\b"
    r"(?! (?:of )?(?:the )?(?:next|last|delivery|every))"
    r"(?: as (?:for )?(?P<as>[\w'\u2019 -]+?)(?=\s*(?:$|[.,;:!?]| please\b| too\b)))?"
    r"|that (?:same )?day\b(?= too| as well|\s*[.,;!]|\s*$))",
    re.I,
)
_NOUN = re.compile(r" (?!(?:as|for|please|too|and|at|also|but|if|with|then|now)\b)\w", re.I)
_BUSY = re.compile(  # "I'm busy that day"
    r"(?:\b(?:am|is|are|was|were|im)|['\u2019](?:m|s|re)) (?:\w+ ){0,2}$", re.I
)
_NOT_THEN = re.compile(
    r"(?:\b(?:not|never|no|before|after|off|away|anything)|n['\u2019]t)\b[^.,;!?]*$", re.I
)
_TAKEN_BACK = re.compile(r"\b(?:do not|wait|if|though|instead|actually)\b|\bdon['\u2019]?t\b", re.I)
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
    if only_asks(text) or only_courtesy(text):
        return text
    first, end, rest = re.fullmatch(r"(?s)([^.!?;]*)([.!?;]?)(.*)", text).groups()
    if whole := _likewise(first, heard, tasks, did):
        return whole + end + rest
    if says_it(text) and _ANEW.search(text):  # "change it to visit mum at home, same day"
        text = _SAME_DAY.sub("", text)
    text = _SAME_DAY.sub(lambda day: _day(day, heard, tasks), text)
    if surely_creates(text):
        return text
    sentences = re.split(r"(?<=[.!?;])(?=\s)", text)
    swapped = "".join(_swapped(sentence, heard, tasks) for sentence in sentences)
    if swapped != text:
        return swapped
    named, way = _found(text, heard, tasks)
    if named and way and way is not _PLACE:
        who = " and ".join(f"task {number}" for number in sorted(named))
        return way.sub(who, text, count=1)
    text = _PLACE.sub(lambda place: _in_its_part(place, text, heard, tasks), text)
    about = asked_about(heard, tasks)
    own = numbers(text) or titled(text, tasks)
    return f"task {about}: {text}" if about and not own and says_it(text) else text


_SWAP = re.compile(
    r"(?P<new>[\w'\u2019-]+),? (?:not|instead of|rather than) (?:an? |the )?(?P<old>[\w'\u2019-]+)",
    re.I,
)
_ANEW = re.compile(r"\b(?:renam\w*|chang\w* (?:it|that|this) to|call (?:it|that|this))\b", re.I)
_CORRECTING = re.compile(
    r"\b(?:sorry|oops|no|wait|hang on|actually|mean|meant|chang\w*|fix|correct\w*|swap|wrong)\b",
    re.I,
)
_NAMING = re.compile(r"\b(?:renam\w*|titl\w*|call(?:ed)?|name)\b", re.I)


def _swapped(sentence: str, heard: Sequence[Message], tasks: Sequence[Task]) -> str:
    """The sentence with 'rename task 5 to "regas Scenic aircon"' in place of "it's a Scenic not a
    Megane"; as it was, where that is not certain."""
    found = _SWAP.search(sentence)
    if not found or _NAMING.search(sentence) or not _CORRECTING.search(sentence):
        return sentence
    new, old = found["new"], found["old"]
    small = any(not telling(word) or word.lower() in _NO_NAME for word in (new, old))
    if small or any(_when(word) or word.lower() in _VALUES for word in (new, old)):
        return sentence
    if meant(new, tasks):
        return sentence  # "delete the dentist not the car": these are two tasks
    having = [t for t in tasks if re.search(rf"\b{re.escape(old)}\b", t["title"], re.I)]
    last = topic(heard, tasks)
    having = [t for t in having if t["task_id"] == last] or having
    if len(having) != 1 or re.search(rf"\b{re.escape(new)}\b", having[0]["title"], re.I):
        return sentence
    title = re.sub(rf"\b{re.escape(old)}\b", lambda _: new, having[0]["title"], flags=re.I)
    return f' rename task {having[0]["task_id"]} to "{title}".'


_NO_NAME = frozenset("its it's it\u2019s that's that\u2019s thats wait sorry oops no maybe".split())
_VALUES = frozenset("low medium high urgent pending done finished completed".split())


def _when(word: str) -> bool:
    """Whether a word is a date."""
    try:
        return parse_due(word, today()) is not None
    except ValueError:
        return False


_IT = re.compile(
    r"\b(?:it|its|(?:that|this)(?=\s*(?:$|[.,;:!?]|(?:is|was|can|should|to|on|by|for"
    r"|one|now|too)\b)))\b",
    re.I,
)
_NEVER_MIND = re.compile(
    r"\W*(?:(?:ok|okay|no|oh|well|actually|just) ?,? ?)*(?:(?:forget|scrap|scratch|leave|skip|drop"
    r"|never ?mind) (?:it|that|about it)|(?:it|that)(?:['\u2019]s| is| was)\b.*)\W*",
    re.I,
)
# What may stand before "it" without being what it means.
_DOING = telling(
    "bring doing starting started start make put take let lets move push set mark get getting give "
    "keep leave right need needs want finish finished done sort ill well shift change begin began "
    "begun still bump raise they they're they've she she's he's who someone"
)


def says_it(text: str) -> bool:
    """Whether a text is about something that it does not name: "make it urgent"; not "fix the
    bike, it squeaks" or "forget it".

    Args:
        text: What the person said.
    """
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        it = _IT.search(sentence)
        if it and telling(sentence[: it.start()]) <= _DOING:
            return not _NEVER_MIND.fullmatch(text)
    return False


def _in_its_part(
    place: re.Match[str], text: str, heard: Sequence[Message], tasks: Sequence[Task]
) -> str:
    """ "task 3" for "the third one" beside tasks that other parts of the text name."""
    part = next((p for p in asking_parts(text) if place[0].lower() in p), "")
    number = _at(place, heard, tasks) if not meant(part, tasks) else None
    return place[0] if number is None else f"task {number}"


# What may stand behind "same for the oil," and is another wish.
_TELLS = re.compile(
    rf"{WHEN}|\d|\b(?:days?|weeks?|weekends?|months?|years?|low|medium|high|urgent|priority"
    rf"|{SHORT})\b",
    re.I,
)


def _likewise(
    text: str, heard: Sequence[Message], tasks: Sequence[Task], did: Sequence[Call]
) -> str:
    """What was just done, as a wish for other tasks; empty where that is not asked for."""
    beginning, _, tail = text.partition(",")
    if _TAKEN_BACK.search(tail):
        return ""
    if len(tail.split()) > 2 and not _BUT.search(tail) and not _TELLS.search(tail):
        text = beginning  # "same for the sheets, no patients before that"
    found = _LIKEWISE.fullmatch(text)
    if not found:
        return ""
    what = found["same"] or found["too"]
    if found["too"] and not (_OTHER.fullmatch(what) or bare_name(what, tasks)):
        return ""  # "the rent is paid too" says itself what is to be done
    if found["too"] and any(words(what)[:1] == words(t["title"])[:1] for t in tasks):
        return ""  # "wash the car too": a wish, or a report?
    named: set[int] = set()
    for piece in re.split(r"\s*(?:,|\band\b|&|\+)\s*", what):
        if re.fullmatch(r"(?:task |number |#)?\d+", piece, re.I):
            named |= numbers(piece)
        elif bare_name(piece, tasks) and len(one := titled(piece, tasks)) == 1:
            named |= one
        elif any(way.fullmatch(piece) for way in (_PLACE, _NEXT, _OTHER, _OTHERS)):
            named |= pointed_at(piece, heard, tasks) or set()
        else:
            return ""  # "the car but on monday", "all but the milk"
    return wish(did, named - {call["arguments"].get("task_id") for call in did})


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
    if name != "update_task" or not values or not values.keys() <= {"due", "priority"}:
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
    before, behind = same.string[: same.start()], same.string[same.end() :]
    compound = not same["as"] and _NOUN.match(behind)  # "same day dry cleaning"
    if compound or _NOT_THEN.search(before) or _BUSY.search(before):
        return same[0]
    if not same["as"] and (dates := re.findall(WHEN, before, re.I)):
        return f"due {dates[-1]}"  # "clean it by the 7th, and ring them the same day"
    by_id = {task["task_id"]: task for task in tasks}
    if same["as"]:
        named = meant(same["as"], tasks) if bare_name(same["as"], tasks) else []
        number = named[0] if len(named) == 1 else None
    else:
        number = topic(heard, tasks)
    due = by_id[number]["due"] if number in by_id else None
    return f"due {due}" if due else same[0]
