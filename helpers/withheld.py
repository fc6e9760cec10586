"""In a released notebook: what stands where a solution would be."""

from __future__ import annotations

from typing import Any

from helpers.settings import CourseError


class Withheld:
    """Takes the place of a solution; whatever is done with it says that it is not there.

    Args:
        name: The solution's name in the lesson.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise CourseError(
            f"{self._name} is not part of this release.",
            "This cell goes on with your own answer, and the exercise above is still open.",
            "Fill in the exercise until its check says passed, then run this cell again.",
        )

    __call__ = __getitem__ = __iter__ = __len__ = __str__ = __add__ = __contains__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what IPython and copy ask of any object
            raise AttributeError(name)
        self._refuse()

    def __repr__(self) -> str:
        return f"<{self._name}: not part of this release>"


def withheld(name: str) -> Withheld:
    """A stand-in for a solution that was left out."""
    return Withheld(name)
