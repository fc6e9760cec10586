"""Which tasks a request reports as done: "the hymns are chosen", "yard tap's running again".

Plain code, no model: it holds what is said against the title of the task that it names. Where it
is not sure, it says nothing; people report in more ways than lists of words know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from helpers.asked import asking_parts, is_past, meant, stem, surely_creates, telling, words
from helpers.dates import WEEKDAY

# Whoever says one of these does not say for certain that something is over.
_UNSURE = re.compile(
    r"\b(?:not|never|no|nobody|nothing|none|neither|cannot|\w+n['\u2019]t"
    r"|(?:is|are|was|were|has|have|had|did|does|do|ca|could|wo|would|should|ai)nt|will"
    r"|\w+['\u2019]ll|ill|gonna|going|about|would|could|can|should|must|might|may|maybe|need\w*"
    r"|(?:has|have|had|got|is|are) to|gotta|supposed|want\w*|wish\w*|hop(?:e|ing)|plan\w*"
    r"|tr(?:y|ied|ying)|if|when\w*|once|until|till?|unless|before|almost|nearly|half\w*|part\w*"
    r"|mostly|some\w*|most|few|first|\d+ of|left|yet|later|soon|tomorrow|tmrw|tonight|next|start\w*"
    r"|began|begun|under ?way|progress|working on|busy|instead|wrong|asked|asks|keep\w*"
    r"|kept|who|why|how|which|rather|like|always|every|used to|(?:was|were) \w+ing|cancel\w*"
    r"|delet\w*|remov\w*|scrap\w*|drop\w*|mov(?:e|ed|ing)|push\w*|postpon\w*|resched\w*|set"
    r"|mak(?:e|ing)|chang(?:e|ing)|add|back to|reopen\w*|due|last (?:year|time)"
    r"|(?:years?|months?) ago|get|to be|being|lets|let['\u2019]s|please|pls|by (?:the|noon|\d\S*)"
    rf"|{WEEKDAY}s?"
    r"|\d{1,2}(?:st|nd|rd|th)|bump\w*|rais\w*|lower\w*|priority|urgent|high|medium|low"
    r"|percent|basically|practically|barely|nowhere|thirds?|quarter|for (?:today|now)"
    r"|fully|booked (?:up|out|solid))\b|[?%]",
    re.I,
)
# Where one of these stands in a sentence, none of its parts is sure: what goes on takes back what
# was said, or it is somebody's belief, a question, an attempt.
_BUT = re.compile(
    r"\b(?:but|though|except|however|apart from|besides|minus|bar the|missing|remain\w*"
    r"|forgot\w*|left to do|no (?:answer|reply|response|luck|joy|one)|engaged|bounced|voicemail"
    r"|straight to|(?:was|were) closed|sold out|out of stock|cut off|i (?:think|guess|hope|believe)"
    r"|probably|hopefully|perhaps|apparently|supposedly|doubt|says|told|claims|nope|kidding"
    r"|not sure|question|wonder\w*|to know|by (?:accident|mistake)|accidentally|wrongly"
    r"|renam\w*)\b|:(?=\s)"
    r"|^\W*(?:if|when|once|before|after|until|unless|not|todo|to do)\b"
    r"|, (?:is|are|was|were|did|has|have|right)(?: \w+)?\W*$",
    re.I,
)
_TO_US = re.compile(r"\b(?:called|rang|phoned|emailed|texted|wrote|told) (?:to )?(?:me|us)\b", re.I)
_OVER = re.compile(
    r"\b(?:done|dun|finished|sorted|completed?|tick(?:ed)?|wrapped|dusted|in the bag"
    r"|out of the way|taken care of|dealt with|seen to|over with|all set|handled|accomplished"
    r"|did (?:the|my|our|all|both))\b",
    re.I,
)
# "I ticked it off, but put it back to pending"
REOPENING = re.compile(
    r"\bback (?:to|as|on|in)(?: to)? (?:not done|pending|open|to ?do|in progress|undone)\b"
    r"|\bre-?open\w*\b",
    re.I,
)
# "So that's done", "tick it off": said of what was named just before.
_THAT = re.compile(
    r"\W*(?:(?:so|and|now|well|ok|okay|please|pls|then|yes|you (?:can|may)|can you|could you|just)"
    r"\W+)*"
    r"(?:(?:that|this|it|they|those|both|all)(?: one| job| bit| part)?(?:['\u2019]?s|['\u2019]re"
    r"| is| are)?(?: all| now| both| already| that| then)*"
    r" (?:done|finished|sorted|complete|over with|ticked off|settled)"
    r"|(?:tick|check|cross|mark) (?:it|that|this|them|that one)"
    r"(?: (?:off|as|is|done|finished|complete\w*|one))*"
    r"|tick|job done|done|finished|sorted|(?:you can )?close it)"
    r"(?: (?:off|now|then|too|as well|already|please|thanks|my list|from|the list|for me|at last"
    r"|finally))*\W*",
    re.I,
)

_BEEN = r"(?:\b(?:s|re|ve|is|are|was|were|has|have|had|been|be|went|came|got|gone|all|now|both))"
_NOW = (
    r"(?: (?:now|again|already|at last|too|as well|today|yesterday|finally|to \w+(?: \w+)?"
    r"|this \w+|just now|last night|on \w+day|(?:at|with|in|from) (?:the )?\w+(?: \w+)?))*$"
)
# How things are when that has been done to them which a title says.
_STATES = tuple(
    (
        frozenset(map(stem, verbs.split())),
        re.compile(
            rf"{_BEEN}(?: (?:all|now|both|already|finally|back|gone|up|running))*? (?:{how}){_NOW}"
        ),
    )
    for verbs, how in (
        ("return give bring collect get fetch exchange", "back|here|arrived|home|in"),
        ("plant sow hand submit enter file report post send deliver apply register", "in"),
        ("hang put mount install fit replace swap", "up|on|in place|on the wall"),
        ("clean wash tidy iron dust wipe mop hoover vacuum scrub",
         "clean|spotless|sparkling|gleaming"),
        ("fix repair mend unblock thaw bleed reboot restart replace rebuild",
         "working|running again|fixed|mended|good as new|like new"),
        ("sell move donate dump clear", "gone|sold"),
        ("send email mail post publish write submit", "out|off|gone out|in the post"),
        ("order buy get collect receive",
         "here|arrived|delivered|in the fridge|in the cupboard"),
    )
)  # fmt: skip
# Verbs for the same deed: "rang" reports "call", "got" reports "buy".
_ALIKE = tuple(
    frozenset(map(stem, verbs.split()))
    for verbs in (
        "ring call phone speak talk", "ask talk speak ring call", "email mail send write post",
        "hand submit send file", "buy get order pick", "collect pick fetch get",
        "return take bring give", "book reserve arrange", "fix repair mend", "tidy clean clear",
        "clean wash scrub wipe", "cut trim prune mow", "check look test inspect",
        "pay transfer settle",
    )
)  # fmt: skip
_UNCHANGED = frozenset("cut set reset put read shut split hit clean tidy dry empty open".split())
_IT = re.compile(r"\b(?:it|them|those)\b", re.I)
_HAS = re.compile(r"\b(?:has|have|got) (?:all )?(?:his|her|their|its|our|my)\b(?! own)")
_DAY = re.compile(rf"\bon\b|\b{WEEKDAY}\b")
_FILLING = telling(
    "just now today already finally well yes right yesterday this morning afternoon lunch last"
    " night him her them it one everyone okay good great ago hour minute been myself"
)


def reported(
    text: str, tasks: Iterable[Mapping[str, Any]], topic: int | None = None
) -> dict[int, str]:
    """The open tasks of which a request surely says that they are done, with the words that do.

    Args:
        text: What the person said.
        tasks: The tasks there are.
        topic: The one that was spoken of last, for "rang him".
    """
    tasks = [] if REOPENING.search(text) else list(tasks)
    there = {task["task_id"]: task for task in tasks}
    found: dict[int, str] = {}
    named = [topic] if topic in there else []
    last = ""  # the part that named them
    for sentence in re.split(r"(?<=[.!?;\n])\s+", text):
        if _BUT.search(sentence):
            named = []
            continue
        for part in asking_parts(sentence):
            if surely_creates(part):
                break  # what follows may belong to the new task
            if _THAT.fullmatch(part):
                sure = bool(last) and len(named) == 1 and not _UNSURE.search(last)
                sure = sure and bool(_things(last, there[named[0]]["title"]))
            elif here := meant(part, tasks):
                spoken, named, last = [*named, topic], here, part
                title = there[here[0]]["title"]
                sure = len(here) == 1 and _says_done(part, title)
                known = len(here) == 1 and here[0] in spoken  # "the slip. dad just signed it"
                sure = sure or (known and _names_only_the_deed(part, title))
            else:
                if not (len(named) == 1 and _IT.search(part)):
                    named = [topic] if topic in there else []
                last = ""
                sure = bool(named) and _names_only_the_deed(part, there[named[0]]["title"])
            if sure and there[named[0]]["status"] != "completed":
                found[named[0]] = last or part
    return found


def _says_done(part: str, title: str) -> bool:
    """Whether a part of a request, about the task of a title, surely says that it is done.

    Args:
        part: The part.
        title: Of the task that it names.
    """
    said, own = words(part), words(title)
    named = [stem(word) for word in own]
    for found in _UNSURE.finditer(part):  # "moved" is one of those, and reports "Move the cows"
        if not any(_akin(stem(found[0].casefold()), word) for word in named):
            return False
    deeds = _past(said, own)
    thing = (telling(part) & telling(title)) - deeds
    if not thing or _TO_US.search(part) or _another(said, own, deeds):
        return False  # "paid" alone may be about any bill
    plain = _plain(part)
    if (over := _OVER.search(plain)) and not (named[0] in _FETCHING and over[0] in _EMPTIED):
        return True
    if any(_akin(deed, word) for deed in deeds for word in _told(named)):
        return not _called(said, deeds, thing)
    if own[0] in _UNCHANGED and re.search(rf"{_BEEN}(?: \w+)? {own[0]}\b", plain):
        return True
    if _as_told(plain, named):
        return True
    shared = telling(part) & telling(title) | {w for w in said if w.isdigit()} & set(own)
    return len(shared) > 1 and bool(_HAS.search(plain)) and not _DAY.search(plain)


def _another(said: list[str], own: list[str], deeds: set[str]) -> bool:
    """Whether a part is about something else that is called alike: "the garden tap" for the one in
    the kitchen, "the outline of the report", "flights to Porto" for those to Lisbon, "his bill".

    Args:
        said: The words of the part.
        own: Those of the title.
        deeds: The stems of the verbs in the past.
    """
    stems, titled = list(map(stem, said)), list(map(stem, own))

    def foreign(at: int) -> bool:
        """Whether a word tells something that the title does not."""
        tells = telling(said[at]) if 0 <= at < len(said) else set()
        return bool(tells - set(titled) - deeds - _FILLING) and not is_past(said[at])

    for at, word in enumerate(stems):
        before = said[at - 1] if at else ""
        if word in titled and word not in deeds and telling(said[at]):
            place = titled.index(word)
            if place > 1 and telling(own[place - 1]) and foreign(at - 1):
                return True
            if foreign(at + 1) and not said[at + 1].endswith(("ing", "ly", "s")):
                return True  # "the website mockup"
            if before in ("his", "her", "their") and before not in own and foreign(0):
                return True
        if word in ("of", "for") and foreign(at - 1) and set(titled) & set(stems[at:]):
            return True
        if word in _TOWARDS and word in own and foreign(at + 1):
            return not set(titled[own.index(word) + 1 :]) & set(stems)
    return False


_TOWARDS = frozenset("to for from with about".split())
_CALLING = frozenset(
    map(stem, "call ring phone text tell ask speak talk message write email".split())
)
_FETCHING = frozenset(map(stem, "buy get order collect pick fetch empty".split()))
_EMPTIED = frozenset("done finished".split())


def _called(said: list[str], deeds: set[str], thing: set[str]) -> bool:
    """Whether it is the thing that did it: "the dentist called"."""
    stems = list(map(stem, said))
    called = [at for at, word in enumerate(stems) if word in deeds & _CALLING]
    before = {word for at in called[:1] for word in stems[:at]}
    been = {"been", "is", "are", "was", "were", "has", "have"} & set(said)
    return bool(called) and thing <= before and not been and said[called[0]] != "rung"


def _names_only_the_deed(part: str, title: str) -> bool:
    """Whether a part that names no thing says that what a title says was done: "rang him"."""
    own = words(title)
    deeds, named = _past(words(part), own), list(map(stem, own))
    if _UNSURE.search(part) or "down" in words(part):
        return False
    if any(_akin(deed, word) for deed in deeds for word in named):
        return telling(part) <= deeds | _FILLING or bool(_IT.search(part))
    return bool(_IT.search(part)) and _as_told(_plain(part), named)


def _things(part: str, title: str) -> set[str]:
    """The words of a title that a part names, without what was done."""
    return (telling(part) & telling(title)) - _past(words(part), words(title))


def _as_told(plain: str, named: list[str]) -> bool:
    """Whether something is as it is when what a title says has been done to it."""
    return any(verbs & set(named) and how.search(plain) for verbs, how in _STATES)


def _plain(part: str) -> str:
    return re.sub(r"['\u2019]", " ", " ".join(re.findall(r"[\w'\u2019]+", part.casefold())))


def _past(said: list[str], own: list[str]) -> set[str]:
    """The stems of the verbs in the past, without what is a word of the title as well: "the broken
    lamp"; but "Get the slip signed" is done when it is signed."""
    got = own[:1] in (["get"], ["have"])
    return {stem(word) for word in said if is_past(word) and (got or word not in own)}


def _told(named: list[str]) -> set[str]:
    """What may be said of a title: its words, and verbs for the same as its first."""
    return set(named).union(*(verbs for verbs in _ALIKE if named[0] in verbs))


def _akin(one: str, other: str) -> bool:
    """Whether two stems are of one word: "treat" and "treatment", "labell" and "label"."""
    short, long = sorted((one, other), key=len)
    return one == other or (
        len(short) > 4 and long.startswith(short) and len(long) < len(short) + 5
    )
