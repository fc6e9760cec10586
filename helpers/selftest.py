"""The self-test at the end of a lesson: five questions, and a reason for every choice.

The questions are data, ``helpers/questions/L01.toml``::

    [[question]]
    ask = "Where is an agent's memory?"
    look = "Where is the memory?"          # the heading of the section to read again

    [[question.choice]]
    text = "In the backend."
    why = "It forgets everything between two requests."

    [[question.choice]]
    text = "In the list of messages."
    why = "It is sent anew with every call."
    right = true

Texts may hold ``code`` between backticks and *words* between asterisks. ``show("L01")`` displays
them as buttons where a notebook is alive, as HTML with the answers folded away elsewhere, and as
plain text where there is no screen.
"""

from __future__ import annotations

import functools
import html
import os
import re
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import progress
from helpers.settings import CourseError

QUESTIONS = Path(__file__).with_name("questions")
LETTERS = "ABCDE"
EMPHASIS = r"(?<![\w*])\*(\S(?:[^*]*\S)?)\*(?![\w*])"
RIGHT, WRONG = "✓", "✗"


@dataclass(frozen=True)
class Choice:
    """An answer that can be chosen, why it is right or wrong, and which of the two it is."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        ask: The question.
        choices: Its answers, one of them right.
        look: Heading of the section that the answer comes from.
    """

    ask: str
    choices: tuple[Choice, ...]
    look: str

    @property
    def right(self) -> str:
        """The letter of the right answer."""
        return next(letter for letter, c in zip(LETTERS, self.choices, strict=False) if c.right)

    def lettered(self) -> list[tuple[str, Choice]]:
        """The choices with their letters."""
        return list(zip(LETTERS, self.choices, strict=False))


@functools.cache
def load(lesson: str) -> tuple[Question, ...]:
    """The questions of a lesson.

    Raises:
        CourseError: When it has none.
    """
    path = QUESTIONS / f"{lesson}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in QUESTIONS.glob("*.toml")))
        raise CourseError(f"{lesson} has no self-test.", f"Lessons with one: {known}.")
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Question(q["ask"], tuple(Choice(**choice) for choice in q["choice"]), q["look"])
        for q in data["question"]
    )


def show(lesson: str) -> None:
    """Display the self-test of a lesson; choosing answers notes the result as progress."""
    from helpers import lesson as page

    questions = load(lesson)
    bundle = {"text/plain": as_text(questions), "text/html": as_html(questions)}
    # A notebook that is executed for others to read keeps the questions, not the buttons: these
    # would be empty until somebody runs the cell.
    if not os.environ.get("COURSE_RECORD"):
        bundle |= _buttons(lesson, questions)
    page._show(bundle)


# --- without a kernel, and without a screen --------------------------------------------------


def as_text(questions: Sequence[Question]) -> str:
    """The questions as plain text, and below them the answers."""
    lines = []
    for n, question in enumerate(questions, 1):
        lines += _wrapped(f"{n}. ", question.ask)
        for letter, choice in question.lettered():
            lines += _wrapped(f"   {letter}. ", choice.text)
        lines.append("")
    lines.append("Answers")
    for n, question in enumerate(questions, 1):
        for letter, choice in question.lettered():
            mark = RIGHT if choice.right else WRONG
            lines += _wrapped(f"{n}{letter} {mark} ", choice.why)
    return "\n".join(lines)


def _wrapped(lead: str, text: str) -> list[str]:
    plain = re.sub(EMPHASIS, r"\1", text)
    return textwrap.wrap(
        plain, 90, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
    )


def as_html(questions: Sequence[Question]) -> str:
    """The questions, each with its answers in a fold."""
    parts = []
    for n, question in enumerate(questions, 1):
        answers = [f"{letter} {_reason(choice)}" for letter, choice in question.lettered()]
        parts.append(
            f"{_question(n, question)}<details><summary>Answer to {n}, with reasons</summary>"
            f"<p>{'<br>'.join(answers)}</p>{_again(question)}</details>"
        )
    return "\n".join(parts)


def _question(n: int, question: Question) -> str:
    # Letters of its own: what displays a notebook may turn those of a list into numbers.
    choices = [f"{letter}. {markup(choice.text)}" for letter, choice in question.lettered()]
    return f"<p><strong>{n}.</strong> {markup(question.ask)}</p><p>{'<br>'.join(choices)}</p>"


def _reason(choice: Choice) -> str:
    return f"{RIGHT if choice.right else WRONG} {markup(choice.why)}"


def _again(question: Question) -> str:
    return f"<p>Read again: <em>{html.escape(question.look)}</em></p>"


def markup(text: str) -> str:
    """HTML of a text with ``code`` and *emphasis*."""
    parts = re.split(r"`([^`]*)`", text)
    for i, part in enumerate(parts):
        part = html.escape(part, quote=False)
        if i % 2:
            parts[i] = f"<code>{part}</code>"
        else:
            parts[i] = re.sub(EMPHASIS, r"<em>\1</em>", part)
    return "".join(parts)


# --- alive -----------------------------------------------------------------------------------


class SelfTest:
    """The questions with buttons, for mouse and keyboard.

    Attributes:
        widget: What a notebook displays.
        first: By question, whether the first choice was right. That is the result.
    """

    def __init__(self, lesson: str, questions: Sequence[Question]) -> None:
        import ipywidgets as widgets

        self.lesson, self.questions = lesson, questions
        self.first: dict[int, bool] = {}
        self.choices, self.reasons, rows = [], [], []
        for n, question in enumerate(questions, 1):
            buttons = widgets.ToggleButtons(
                options=LETTERS[: len(question.choices)],
                value=None,
                tooltips=[f"Answer {letter} to question {n}" for letter in LETTERS],
                style={"button_width": "3.5em"},
            )
            reason = widgets.HTML()
            buttons.observe(functools.partial(self._chosen, n - 1), "value")
            self.choices.append(buttons)
            self.reasons.append(reason)
            rows += [widgets.HTML(_question(n, question)), buttons, reason]
        self.result = widgets.HTML()
        self.widget = widgets.VBox([*rows, self.result])

    def _chosen(self, n: int, change: Any) -> None:
        if change["new"] is None:
            return
        question = self.questions[n]
        choice = dict(question.lettered())[change["new"]]
        again = "" if choice.right else _again(question)
        self.reasons[n].value = (
            f'<div role="status"><p><strong>{change["new"]}</strong> {_reason(choice)}</p>'
            f"{again}</div>"
        )
        self.first.setdefault(n, choice.right)
        if len(self.first) == len(self.questions):
            right = sum(self.first.values())
            progress.record_self_test(self.lesson, right, len(self.questions))
            self.result.value = (
                f'<p role="status"><strong>{right} of {len(self.questions)}</strong> '
                "at the first try.</p>"
            )


def _buttons(lesson: str, questions: Sequence[Question]) -> dict[str, Any]:
    """The part of a display that a living notebook shows instead of the text."""
    try:
        test = SelfTest(lesson, questions)
        bundle = test.widget._repr_mimebundle_()
    except ImportError:  # questions can be read without widgets
        return {}
    kind = "application/vnd.jupyter.widget-view+json"
    return {kind: bundle[kind]} if kind in bundle else {}
