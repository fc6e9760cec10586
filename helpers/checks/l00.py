"""Checks of L00: a probe of a signature, a description that triggers, taking a skill apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from helpers.lesson import Hint, call, check, show

# --- a probe of a signature ------------------------------------------------------------------


class _Box:
    def __init__(self, size: int, *, colour: str = "red", **more: Any) -> None: ...


def _wrap(paper: str, ribbon: str = "none") -> None:
    raise RuntimeError("wrapped")  # a probe of a signature does not call


def _anything(*args: Any, **kwargs: Any) -> None: ...


@check("L00", "accepts", look="3 A claim, and a probe")
def accepts(function: Callable[[Any, str], Any]) -> str:
    from openai import OpenAI

    no_star = "A ** parameter takes every name, so it says nothing about this one."
    cases = [
        (_wrap, "ribbon", True, "It is there. Look, do not call: a call has consequences."),
        (_wrap, "knot", False, "There is no such parameter."),
        (_Box, "colour", True, "A class has parameters as well."),
        (_anything, "colour", False, no_star),
        (_anything, "kwargs", False, "`**kwargs` is no parameter that one can give by its name."),
        (OpenAI, "base_url", True, "The OpenAI client has it."),
    ]
    for target, name, wanted, why in cases:
        got = call(function, target, name)
        if not isinstance(got, bool):
            raise Hint("Return True or False.", got=got)
        if got != wanted:
            on = f"accepts({target.__name__}, {name!r})"
            raise Hint(why, on=on, got=got, expected=wanted)
    return "It looks without calling, and is not deceived by **kwargs."


# --- a description that triggers ---------------------------------------------------------------

ENOUGH, FEW = 17, 1  # of 20 prompts that should trigger, and of 20 near misses


@check("L00", "description", look="5 Name and description")
def description(text: Any) -> str:
    from helpers import triggers
    from helpers.skill import NAME, REFERENCE, Skill

    if not isinstance(text, str):
        raise Hint("A description is a text.", got=text)
    with TemporaryDirectory() as folder:
        draft = Skill("L00", Path(folder) / NAME, echo=lambda line: None)
        draft.header(NAME, text)
        problems = draft.problems()
    if problems:
        raise Hint("The validator says: " + " ".join(problems))
    if not re.search(r"\bwhen\b", text, re.I):
        raise Hint("It should say when to use the skill, not only what it is.")
    if not re.search(r"\b(not|never|except)\b", text, re.I):
        raise Hint("It should say when not to use it: name a neighbour that it is taken for.")
    result = triggers.evaluate(triggers.load(REFERENCE / "evals" / "evals.json"), text)
    if len(result.hits) < ENOUGH:
        raise Hint(
            f"It triggers on {len(result.hits)} of 20 prompts that should; {ENOUGH} are wanted. "
            f"For example it misses: {show(result.missed[0])} Which of its words would people "
            "use for your skill?"
        )
    if len(result.false) > FEW:
        raise Hint(
            f"It also triggers on {len(result.false)} near misses, at most {FEW} is wanted, "
            f"such as: {show(result.false[0])} Which word do the two share by accident?"
        )
    return f"It {result}."


# --- taking a skill apart --------------------------------------------------------------------

PLAIN = """\
---
name: pack-boxes
description: Packs boxes. Use when something has to be sent.
---

# Pack boxes

Put heavy things first.
"""
RULED = PLAIN.replace("Put heavy", "One.\n\n---\n\nPut heavy") + "\n- a list\n"
FOLDED = """\
---
name: fold
description: >-
  Folds paper: boats and hats.
  Not for cloth.
---
Begin with a square.
"""


@check("L00", "split", look="1 Take a small skill apart")
def split(function: Callable[[str], Any]) -> str:
    cases = [
        ("a plain skill", PLAIN, {"name": "pack-boxes",
         "description": "Packs boxes. Use when something has to be sent."}, "# Pack boxes"),
        ("a skill with a line of its own --- in the body", RULED, None, "# Pack boxes"),
        ("a description over two lines", FOLDED,
         {"name": "fold", "description": "Folds paper: boats and hats. Not for cloth."},
         "Begin with a square."),
    ]  # fmt: skip
    for what, text, header, begin in cases:
        got = call(function, text)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Hint("Return two things: the header and the body.", on=what, got=got)
        if not isinstance(got[0], dict):
            raise Hint("The header is YAML; it should be a dictionary.", on=what, got=got[0])
        if header is not None and got[0] != header:
            raise Hint("Is the header read as YAML?", on=what, got=got[0], expected=header)
        body = str(got[1]).strip()
        if not body.startswith(begin):
            raise Hint(f"The body should begin with {begin!r}.", on=what, got=got[1])
        whole = text.split("---\n", 2)[2].strip()
        if body != whole:
            raise Hint(
                "A part of the body is missing: only the first two --- belong to the header.",
                on=what, got=body[-40:], expected=whole[-40:],
            )  # fmt: skip
    return "Also when the body has a --- of its own."
