"""A request as the model and the checks read it: no capitals, no slip in a word that decides, no
greeting before it and no thanks behind it.

Plain code, no model. A check that looks for "delete" refuses what was asked for as "dlete", no tool
knows the date "tomorow", and "is it due today? Thanks!" is still a question. What is quoted stays
as it is, and so does the conversation that is kept: only what is read of it is plain.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterator

from helpers.asked import only_courtesy

# What stands between < and > stays too: "<TOOL_CALL>" is a word, in small letters a command.
_QUOTED = re.compile(r"""(<[^>]*>|"[^"]*"|\u201c[^\u201d]*\u201d|(?<!\w)'[^']+'(?!\w))""")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_WORD = re.compile(r"(?<![\w'\u2019-])[A-Za-z]{4,}(?![\w'\u2019-])")

# Nobody's title: a mark keeps them apart from the rest.
_HELLO = re.compile(
    r"^\s*(?:(?:hi|hello|hey)(?: there| again)?|hiya|good (?:morning|afternoon|evening))[,.!]+\s+",
    re.I,
)
_THANKS = re.compile(
    r"(?:(?<=[.!?])|,)\s*(?:many thanks|thank you|thanks(?: a lot)?|thx|cheers|ta)[.!]*\s*$",
    re.I,
)

# Words that decide what a request wants, few of which have a neighbour among English words.
_KNOWN = tuple(
    """monday tuesday wednesday thursday friday saturday sunday january february april august
    september october november december tomorrow tonight today delete remove cancel complete
    deleted removed completed finished urgent medium priority progress""".split()
)
# Those neighbours, by the word list of Debian's package wamerican, and a few names.
_OTHERS = frozenset(
    """sundae sundas sundry tokay toady toddy deplete depleted deletes remote remover removes
    cancer chancel cancels completes completer compete competed complected finishes finisher
    tedium augusta augusto mondal""".split()
)


def plain(text: str) -> str:
    """A request in capitals in small letters, and slips of the finger mended in the words that
    decide, without a greeting or thanks; what is quoted, and everything else, as it is.

    The model's tokens are pieces of words in small letters, and capitals are read letter by letter.
    Its template makes a request small that is all in capitals; the checks read no template, and
    people who hold the shift key let go of it now and then, or quote a title.

    Args:
        text: What the person said. It is in capitals when more than half of its words are. A slip
            is one letter too many, missing or wrong, or two that are swapped.
    """
    pieces = _QUOTED.split(text)  # those at odd places are quoted
    found = [word for piece in pieces[::2] for word in _LETTERS.findall(piece)]
    if 2 * sum(word.isupper() for word in found) > len(found):
        pieces[::2] = map(str.lower, pieces[::2])
    pieces[::2] = (_WORD.sub(_mended, piece) for piece in pieces[::2])
    said = "".join(pieces)
    return said if only_courtesy(said) else _HELLO.sub("", _THANKS.sub("", said))


def _mended(word: re.Match[str]) -> str:
    right = _slips().get(word[0].lower(), word[0])
    return right.capitalize() if word[0][0].isupper() and right != word[0] else right


@functools.cache
def _slips() -> dict[str, str]:
    """For each slip in a known word, that word; for no word that is one itself."""
    found = {slip: word for word in _KNOWN for slip in _slips_of(word)}
    plurals = {f"{word}s" for word in _KNOWN}
    return {slip: word for slip, word in found.items() if slip not in {*_KNOWN, *plurals, *_OTHERS}}


def _slips_of(word: str) -> Iterator[str]:
    for at in range(len(word) + 1):
        before, behind = word[:at], word[at:]
        yield before + behind[1:]
        yield before + behind[1:2] + behind[:1] + behind[2:]
        for letter in string.ascii_lowercase:
            yield before + letter + behind
            yield before + letter + behind[1:]
