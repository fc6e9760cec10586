"""What the middle of the network is taught beside the answers: which list entry a word belongs to.

"Bin the piano one" takes three steps: every token of a list entry must know the number of its
entry, the word "piano" in the request must find the same word in a title and fetch the number from
there, and the answer must copy the number from the word. None is worth anything without the others,
so the loss of the answers hardly ever rewards one (536 M tokens did not). Hints reward them one by
one: after a layer, a linear classifier reads the digits at the tokens of list entries, after the
next layer at words of requests, after the one behind it where the answer is to write them. The
classifiers are thrown away after training.
"""

from __future__ import annotations

import re
from bisect import bisect_left

STEPS = 3
DIGITS = 4  # of a number, that are asked for; those that it lacks are class NONE
NONE = 10
UNKNOWN = -1  # no hint here
NOWHERE = ""  # the number of a word that no title has
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.S)
# An object that begins with a number, as tools write tasks; MCP's results hold JSON in JSON.
ENTRY = re.compile(r'\{\\?"(?:task_)?id\\?": ?\\?"?(?:[A-Za-z]*[-_#]?)(\d+)')
TITLE = re.compile(r'\\?"title\\?": ?\\?"(.*?)\\?"[,}]')
WORD = re.compile(r"\w{2,}")
# Short words that name no task; "the vet one" and "the GP one" do.
SHORT = set(
    "the and for you not but can all any its has had was are our out off get got put let now new "
    "old one two ten how who why did does him her his she they per via yes yet too use see say ask "
    "buy pay add set due end day way may mon tue wed thu fri sat sun jan feb mar apr jun jul aug "
    "sep oct nov dec bin low top".split()
)


def telling(word: str) -> bool:
    """Whether a word may be what names a task: not too short, or an abbreviation."""
    size = len(word)
    return size > 3 or (size == 3 and word.lower() not in SHORT) or (size == 2 and word.isupper())


def digits(number: str) -> list[int]:
    """The first DIGITS digits of a number, NONE for those that it lacks."""
    return ([int(c) for c in number[:DIGITS]] + [NONE] * DIGITS)[:DIGITS]


def marks(
    text: str,
) -> tuple[list[tuple[int, int, str]], list[tuple[int, str]], list[tuple[int, str]]]:
    """Where a rendered conversation gives reason for hints; offsets are places in text.

    Returns:
        Of every list entry (start, stop, number): the part behind its number. Of words in requests
        (stop, number): the number is that of the one known title with this word, or NOWHERE if
        none has it; words of several titles are left out. Of answers (start, number): where a
        number is written that the request named in words.
    """
    entries: list[tuple[int, int, str]] = []
    words: list[tuple[int, str]] = []
    answers: list[tuple[int, str]] = []
    titles: dict[str, set[str]] = {}
    named: set[str] = set()
    for turn in TURN.finditer(text):
        role, body, base = turn[1], turn[2], turn.start(2)
        if role == "tool":
            for entry in ENTRY.finditer(body):
                stop = body.find("}", entry.end())
                stop = len(body) if stop < 0 else stop
                entries.append((base + entry.end(), base + stop, entry[1]))
                if title := TITLE.search(body, entry.end(), stop + 1):
                    words_of = filter(telling, WORD.findall(title[1]))
                    titles[entry[1]] = {w.lower() for w in words_of}
        elif role == "user" and len(titles) > 1:
            named = set()
            for word in filter(lambda m: telling(m[0]), WORD.finditer(body)):
                found = [n for n, known in titles.items() if word[0].lower() in known]
                named |= set(found)
                if len(found) <= 1:
                    words.append((base + word.end(), found[0] if found else NOWHERE))
        elif role == "assistant" and len(named) == 1:
            (number,) = named
            written = list(re.finditer(rf"(?<!\d){number}(?!\d)", body))
            if len(written) == 1:
                answers.append((base + written[0].start(), number))
            named = set()
    return entries, words, answers


def labels(text: str, offsets: list[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """The classes that hints ask for, by (token, step); step 2 has one, that of the next token.

    offsets: where in text each token stands.
    """
    entries, words, answers = marks(text)
    out: dict[tuple[int, int], list[int]] = {}
    starts = [start for start, _ in offsets]
    stops = [stop for _, stop in offsets]
    for start, stop, number in entries:
        classes = digits(number)
        for i in range(bisect_left(starts, start), bisect_left(starts, stop)):
            out[i, 0] = classes
    for stop, number in words:  # at a word's last token: only there is the whole word known
        if (i := bisect_left(stops, stop)) < len(offsets):
            out[i, 1] = digits(number)
    for start, number in answers:
        first = bisect_left(starts, start)
        for i, digit in enumerate([*map(int, number), NONE], first - 1):
            if 0 <= i < len(offsets):
                out[i, 2] = [digit]
    return out
