"""The verdict on one exercise, in the kernel of a submission.

A check in a lesson talks to the learner and never raises; nbgrader takes a cell for passed
when nothing was raised. The hidden part of a graded check cell therefore calls :func:`score`,
which runs the same check and raises :class:`NotPassed` unless it is content.

What it decides is shown as well, marked with a number that only this cell was given. A cell
without that mark has not come to its verdict, whatever else it shows.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

VERDICT = "application/vnd.course.verdict+json"


class NotPassed(Exception):
    """What is wrong, in the check's own words."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [str(self)]


def score(lesson: str, name: str, learner: Any, token: str) -> Any:
    """Check the learner's work once more, with the course's code as it lies in its files.

    Args:
        lesson: ``"L03"``.
        name: The exercise.
        learner: What the learner made.
        token: The number of this cell, shown beside the verdict.

    Returns:
        None; for an asynchronous check something to be awaited.

    Raises:
        NotPassed: With the check's sentence.
    """
    said = _fresh_lesson(lesson)._then(
        name, learner, lambda mark, text: _decide(name, mark, text, token), quiet=True
    )
    return said if inspect.isawaitable(said) else None


def _fresh_lesson(lesson: str) -> Any:
    """The lesson with its checks, loaded anew: a notebook may have changed what it imported."""
    ours = ("helpers.lesson", "helpers.checks")
    before = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if name in ours or name.startswith("helpers.checks.")
    }
    try:
        return importlib.import_module("helpers.lesson").Lesson(lesson)
    finally:
        for name in [n for n in sys.modules if n in ours or n.startswith("helpers.checks.")]:
            del sys.modules[name]
        sys.modules.update(before)


def _decide(name: str, mark: str, said: str, token: str) -> None:
    passed = mark == "✓"
    if mark == "○":
        said = "not filled in."
    from IPython.display import display

    verdict = {"exercise": name, "passed": passed, "said": said, "token": token}
    display({VERDICT: verdict}, raw=True)
    if not passed:
        raise NotPassed(f"{name}: {said}")
