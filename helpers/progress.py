"""Which exercises are done and how the self-tests went, in one small file on this machine.

``work/progress.json``; ``COURSE_PROGRESS`` names another one. It is written at once when a check
passes, so a restart of the kernel, of JupyterLab or of the machine loses nothing.
``python3 -m helpers progress`` shows it, ``--reset`` forgets it.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import settings
from helpers.settings import NOTEBOOKS, CourseError

DONE, OPEN = "✓", "○"
SELF_TEST = "self-test"  # beside the exercises of a lesson; no exercise is called so

Lessons = dict[str, dict[str, Any]]


def path() -> Path | None:
    """Where progress is kept.

    Returns:
        None under pytest, unless ``COURSE_PROGRESS`` is set: the outputs of a notebook are
        compared with those of somebody who has just begun.
    """
    named = os.environ.get("COURSE_PROGRESS")
    if named:
        return Path(named)
    return None if "PYTEST_VERSION" in os.environ else settings.WORK / "progress.json"


def read() -> Lessons:
    """What is known; a file that is missing or broken is an empty one."""
    file = path()
    try:
        data = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {lesson: done for lesson, done in data.items() if isinstance(done, dict)}


def record(lesson: str, name: str) -> str:
    """Note that an exercise is done; the first time counts.

    Returns:
        Empty, or why it could not be saved.
    """

    def add(data: Lessons) -> bool:
        done = data.setdefault(lesson, {})
        if name in done:
            return False
        done[name] = {"passed": _now()}
        return True

    return _change(add)


def record_self_test(lesson: str, right: int, of: int) -> str:
    """Note the result of a self-test; the best one counts.

    Returns:
        Empty, or why it could not be saved.
    """

    def add(data: Lessons) -> bool:
        done = data.setdefault(lesson, {})
        before = done.get(SELF_TEST)
        if isinstance(before, dict) and before.get("right", -1) >= right:
            return False
        done[SELF_TEST] = {"right": right, "of": of, "taken": _now()}
        return True

    return _change(add)


def reset(lessons: Sequence[str] = ()) -> list[str]:
    """Forget progress.

    Args:
        lessons: ``L01`` …; all by default.

    Returns:
        The lessons of which something was forgotten.

    Raises:
        CourseError: When the file cannot be written.
    """
    forgotten: list[str] = []

    def forget(data: Lessons) -> bool:
        forgotten.extend(name for name in sorted(data) if not lessons or name in lessons)
        for name in forgotten:
            del data[name]
        return bool(forgotten)

    why = _change(forget)
    if why:
        raise CourseError("Your progress could not be reset.", why, f"Delete {path()} by hand.")
    return forgotten


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")


def _change(change: Any) -> str:
    """Read, change and write as one step, however many kernels are at it."""
    file = path()
    if file is None:
        return ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            data = read()
            if change(data):
                fresh = file.with_suffix(f".{os.getpid()}.tmp")
                fresh.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
                os.replace(fresh, file)
    except (OSError, TimeoutError) as error:
        return str(error)
    return ""


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    from filelock import FileLock

    with FileLock(f"{file}.lock", timeout=5):
        yield


# --- showing it ------------------------------------------------------------------------------


def marks(lesson: str, exercises: Sequence[str], done: Lessons | None = None) -> list[str]:
    """Each exercise and the self-test, with a mark: ``✓ loop``, ``○ cost``, ``○ self-test``."""
    known = (read() if done is None else done).get(lesson, {})
    shown = [f"{DONE if name in known else OPEN} {name}" for name in exercises]
    test = known.get(SELF_TEST)
    if isinstance(test, dict):
        return [*shown, f"{DONE} {SELF_TEST} ({test.get('right')} of {test.get('of')} right)"]
    return [*shown, f"{OPEN} {SELF_TEST}"]


def line(lesson: str, exercises: Sequence[str]) -> str:
    """What stands at the top of a lesson."""
    known = read().get(lesson, {})
    done = sum(name in known for name in exercises)
    of = f", {done} of {len(exercises)} exercises" if exercises else ""
    return f"Your progress{of}: {'  '.join(marks(lesson, exercises))}"


def titles() -> dict[str, str]:
    """The lessons and their titles, from the notebooks."""
    found = {}
    for file in sorted(NOTEBOOKS.glob("L[0-9][0-9]_*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0] if cells else ""
        found[file.name[:3]] = re.sub(r"^# L\d\d\s*·\s*", "", title)
    return found


def main(lessons: Sequence[str] = (), forget: bool = False) -> int:
    """The command: print the progress of lessons, or forget it.

    Raises:
        CourseError: For a lesson that does not exist.
    """
    from helpers.lesson import Lesson

    every = titles()
    lessons = [name.upper() for name in lessons]
    for name in lessons:
        if name not in every:
            known = f"Lessons: {', '.join(every)}."
            raise CourseError(f"There is no lesson {name}.", known, "Name one of these.")
    if forget:
        gone = reset(lessons)
        print(f"Forgotten: {', '.join(gone)}." if gone else "There was nothing to forget.")
        return 0
    known = read()
    total = passed = 0
    for name in lessons or every:
        exercises = Lesson(name).exercises
        done = sum(exercise in known.get(name, {}) for exercise in exercises)
        total, passed = total + len(exercises), passed + done
        print(f"{name} {every[name]}\n    {'  '.join(marks(name, exercises, known))}")
    print(f"\n{passed} of {total} exercises done. Kept in {_shown(path())}.")
    return 0


def _shown(file: Path | None) -> str:
    if file is None:
        return "no file, under pytest"
    return str(file.relative_to(settings.ROOT) if file.is_relative_to(settings.ROOT) else file)
