"""A title as far as it goes in the request: models leave its end off, or a word within.

Plain code, no model. What no longer belongs to a title is a list of words; where one of them comes
first, the title is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from helpers.asked import words

LONGEST = 5  # words that may be missing at the end

_END = frozenset(
    """and then but so because cause cos since as if when while plus also or please pls plz thanks
    thank thx ty cheers ok okay right yes no not lol haha ha like sorry wait hmm um uh er well
    oh hey hi hello there here asap by until till til due before after today tomorrow tmrw tmr
    tonight next this every each monday tuesday wednesday thursday friday saturday sunday mon
    tue tues wed thu thurs fri sat sun weekend week month now soon later sometime someday
    whenever eventually immediately early late morning afternoon evening noon midnight beginning
    start end january february march april may june july august september october november
    december jan feb mar apr jun jul aug sep sept oct nov dec day days date deadline first
    second third last low medium high urgent priority prio important critical normal is are was
    were be has have had need needs must should can could would will ll it its thats that which
    who what where why how i im ive we he she they you your me my list tasks todo todos task add
    put set make mark do did done dont remember remind forgot get gets got let lets going gonna
    went want wants wanted keep keeps kept down only just maybe actually really again either
    instead though too one sort kinda very top super highest latest following coming scheduled
    marked ideally both without pop nxt eod bro xx omg bc delete remove cancel finish complete
    rename move everything nothing swap""".split()
)
_CLAUSE = frozenset(
    """is are was were has have had will would can could should needs wants said says i im ive we
    he she they""".split()
)
_NUMBERED = frozenset(
    """flat room chapter unit bay aisle hive ward year grade class platform gate lot box table
    phase part step level floor building house number page exercise lesson module season episode
    track form version route bus apartment office studio stage round batch section volume pitch
    court lane door dock line block wing group size""".split()
)
# With these a date, a value or something else may begin: not the end of a title.
_LINK = frozenset(
    """on for to of in with from at about into under between against near over behind onto inside
    around""".split()
)
# Words that a model may leave out within a title: it is none the worse.
_LOOSE = frozenset("a an the some our his her their quickly".split())
_NUMERALS = frozenset("two three four five six seven eight nine ten twelve".split())
_COUNTS = _NUMERALS | {"couple", "few", "same"}
_DATE = re.compile(r"\d+(?:st|nd|rd|th)?|(?:week|month|hour|year|weekend)s?|tomm?or?row")
_WORD = re.compile(r"[^\W_]+(?:['\u2019.&/-]+[^\W_]+)*")
_BETWEEN = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d|(?<!\w)\'([^"]+?)\'(?!\w)')
_CALLED = re.compile(
    r"\b(?:add|put(?: down| in)?|create|note|task|item|todo|reminder|called|titled|named|name|it|to"
    r"|as|title|jot down)\s*:?\s*$",
    re.I,
)
_SAYING = frozenset("create creating new ought read reads says rename note called named".split())
_APOSTROPHES = "'\u2019"
_QUOTES = ('"', "'", "\u201c", "\u2018")


def whole(title: str, text: str) -> str:
    """The title as the request has it, to its end; unchanged where that is not certain.

    Args:
        title: As a model wrote it.
        text: What the person said.
    """
    if quoted := _quoted(title, text):
        return quoted
    said = list(_WORD.finditer(text))
    wanted = [_fold(word[0]) for word in _WORD.finditer(title)]
    if not wanted or (found := _stands(wanted, text, said)) is None:
        return title
    first, last = found
    begin = _begin(first, text, said)
    if len(wanted) < 2 and begin == first:
        return title  # one word alone is too little to be sure
    end = _end(last, text, said, text[: said[first].start()].endswith(_QUOTES))
    if last - first + 1 == len(wanted) and (begin, end) == found:
        return title
    return text[said[begin].start() : said[end].end()]


def _quoted(title: str, text: str) -> str:
    """What stands between quotation marks, where the title is a piece of that sentence and of no
    other such: whoever quotes says the title."""
    for sentence in re.split(r"(?<=[.!?;])\s+", text):
        quotes = list(_BETWEEN.finditer(sentence))
        if len(quotes) == 1 and _CALLED.search(sentence[: quotes[0].start()]):
            said = next(filter(None, quotes[0].groups()))
            if len(said.split()) > 1 and title.casefold() in sentence.casefold():
                return said.strip(" .,")
    return ""


def _fold(word: str) -> str:
    return "".join(words(word))


def _stands(
    wanted: Sequence[str], text: str, said: Sequence[re.Match[str]]
) -> tuple[int, int] | None:
    """The first and the last word of a title in a text, where one word within may be more there;
    None where it is not, or more than once."""
    folded = [_fold(word[0]) for word in said]
    places = []
    for first, word in enumerate(folded):
        if word != wanted[0]:
            continue
        at, more = first, 0
        for word in wanted[1:]:
            if folded[at + 1 : at + 2] == [word]:
                at += 1
            elif not more and folded[at + 2 : at + 3] == [word] and _inner(at + 1, text, said):
                at, more = at + 2, 1
            else:
                break
        else:
            places.append((first, at))
    return places[0] if len(places) == 1 else None


def _inner(at: int, text: str, said: Sequence[re.Match[str]]) -> bool:
    """Whether a word can be one that is missing in a title: no small word, no comma beside it."""
    around = [text[said[n].end() : said[n + 1].start()] for n in (at - 1, at)]
    small = _fold(said[at][0]) in _LOOSE | _LINK | _END
    return not small and all(gap.strip(_APOSTROPHES) == " " for gap in around)


def _begin(first: int, text: str, said: Sequence[re.Match[str]]) -> int:
    """The first word of a title, which may be a little before the first one that is known, right
    behind a colon: "so: call the florist about roses"."""
    begin = first
    while begin and first - begin < LONGEST:
        gap, before = text[said[begin - 1].end() : said[begin].start()], _fold(said[begin - 1][0])
        if gap == ": ":
            return begin
        if gap.strip(_APOSTROPHES) != " " or before in _END | _SAYING:
            return first
        begin -= 1
    return first


def _end(last: int, text: str, said: Sequence[re.Match[str]], quoted: bool) -> int:
    """The last word that still belongs to the title whose last known word is at ``last``."""
    end = last
    for at in range(last + 1, len(said)):
        gap, word = text[said[at - 1].end() : said[at].start()], _fold(said[at][0])
        joined = gap == " " or (not quoted and gap.strip(_APOSTROPHES) == " ")
        if joined and _counts(at, said):
            return at  # "the locks on flat 3"
        if joined and word in _CLAUSE:
            return last  # "fix the fence Dave is coming": what was found begins another sentence
        if not joined or word in _END or _DATE.fullmatch(word):
            break
        end = at
    if end - last > LONGEST:
        return last
    while end > last and _fold(said[end][0]) in _LINK | _LOOSE | _COUNTS:
        end -= 1  # "for the" of "for the 20th"
    return end


def _counts(at: int, said: Sequence[re.Match[str]]) -> bool:
    """Whether a word is a number that belongs to the noun before it: "flat 3", "chapter two"."""
    word, before = _fold(said[at][0]), _fold(said[at - 1][0])
    return before in _NUMBERED and bool(word in _NUMERALS or re.fullmatch(r"\d{1,4}", word))
