"""``release``: the lessons as nbgrader assignments, without their solutions.

The tags that our notebooks carry anyway become nbgrader's metadata: an ``exercise`` cell is
what the learner answers, its ``check`` cell gives the points, and the ``solution`` cell is
locked, kept in nbgrader's database, and withheld from what learners get. nbgrader's own
``generate_assignment`` does the rest.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers import notebooks
from helpers.settings import CourseError

HIDDEN = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
TOKEN = "token-of-this-cell"  # stands where each run of a check gets a number of its own
CHECK = re.compile(r"^(await )?(\w+)\.check\(\s*([\"'])([^\"']+)\3\s*,\s*(.+)\)\s*$", re.S)


# --- from our tags to nbgrader's metadata --------------------------------------------------


def lesson_id(path: Path) -> str:
    """``L03`` of ``L03_openai_sdk_and_agents.ipynb``."""
    return path.stem.split("_")[0].upper()


def prepare(path: Path) -> Any:
    """A lesson's notebook with nbgrader's metadata, as the source of an assignment.

    Raises:
        CourseError: An exercise has no check that can be graded.
    """
    notebook = notebooks._read(path)
    lesson = lesson_id(path)
    current = ""
    exercises = []
    for n, cell in enumerate(notebook.cells):
        tags = notebooks._tags(cell)
        if cell.cell_type != "code":
            continue
        if "exercise" in tags:
            current = f"exercise-{n}"
            _mark(cell, current, solution=True)
        elif "check" in tags and current:
            found = CHECK.match(cell.source.strip())
            if not found:
                raise CourseError(
                    f"Cell {n} of {path.name} is tagged check, but cannot be graded.",
                    'It has to be one line, lesson.check("name", what_the_learner_made).',
                    "Mend the notebook.",
                )
            wait, _, _, name, learner = found.groups()
            optional = "optional" in tags
            _mark(cell, f"check-{name}", grade=True, points=0 if optional else 1)
            cell.source = "\n".join(
                [
                    cell.source.strip(),
                    HIDDEN[0],
                    "from helpers.instructor.score import score",
                    f'{wait or ""}score("{lesson}", "{name}", {learner.strip()}, "{TOKEN}")',
                    HIDDEN[1],
                ]
            )
            exercises.append(name)
            answer = next(c for c in notebook.cells if _grade_id(c) == current)
            answer.metadata.nbgrader["grade_id"] = f"exercise-{name}"
        elif "solution" in tags and exercises:
            taken = f"solution-{exercises[-1]}"
            if not any(_grade_id(c) == taken for c in notebook.cells):
                _mark(cell, taken)
    if not exercises:
        raise CourseError(
            f"{path.name} has no exercises, so there is nothing to grade in it.",
            "An exercise is a code cell tagged exercise, followed by one tagged check.",
            "Name other lessons, for example: --lessons L01 L03",
        )
    return notebook


def gradable(lessons: Sequence[str] = ()) -> list[Path]:
    """The notebooks that have exercises; those asked for must have some."""
    found = []
    for path in notebooks.find(lessons):
        try:
            prepare(path)
        except CourseError:
            if lessons:
                raise
        else:
            found.append(path)
    return found


def _mark(cell: Any, grade_id: str, grade: bool = False, solution: bool = False,
          points: int | None = None) -> None:  # fmt: skip
    meta = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": grade,
        "solution": solution,
        "locked": not solution,
        "task": False,
    }
    if points is not None:
        meta["points"] = points
    cell.metadata["nbgrader"] = type(cell.metadata)(meta)


def _grade_id(cell: Any) -> str:
    return str(cell.get("metadata", {}).get("nbgrader", {}).get("grade_id", ""))


def withheld(source: str) -> str:
    """What stands in a released notebook in place of a solution: its names, and no more.

    Imports stay, and lines with ``lesson.use``, which choose the learner's own work.
    """
    lines = ["# The solution is not part of this release.", "from helpers.withheld import withheld"]
    tree = notebooks._parsed(source)
    for node in tree.body if tree else []:
        said = ast.get_source_segment(source, node) or ""
        if isinstance(node, ast.Import | ast.ImportFrom) or ".use(" in said:
            lines.append(said)
        else:
            lines += [f'{name} = withheld("{name}")' for name in sorted(notebooks._names(said))]
    return "\n".join(lines)


# --- nbgrader's generate step --------------------------------------------------------------


def make_course(folder: Path, paths: Sequence[Path]) -> None:
    """Make nbgrader's course directory: ``source/``, ``release/``, ``gradebook.db``.

    Args:
        folder: Where; what a former release left there is replaced.
        paths: The lessons' notebooks.

    Raises:
        CourseError: nbgrader refuses a notebook.
    """
    import nbformat

    for path in paths:
        source = folder / "source" / lesson_id(path)
        source.mkdir(parents=True, exist_ok=True)
        for old in source.glob("*.ipynb"):
            old.unlink()
        nbformat.write(prepare(path), source / path.name)
    config = folder / "nbgrader_config.py"
    config.write_text(CONFIG, encoding="utf-8")
    for path in paths:
        generate(folder, lesson_id(path))


CONFIG = """\
# Made by: python3 -m helpers release. Lets nbgrader's own commands work in this folder.
c = get_config()
c.CourseDirectory.course_id = "agent-integration-workbook"
"""


def generate(folder: Path, lesson: str) -> None:
    """nbgrader's generate step for one lesson."""
    from nbgrader.converters import GenerateAssignment

    from helpers.instructor.preprocessors import generating

    with converting(folder, lesson) as coursedir:
        step = GenerateAssignment(coursedir=coursedir, config=_quiet())
        step.preprocessors = generating()
        step.force = True
        _run(step, f"nbgrader could not make the assignment {lesson}.")


@contextlib.contextmanager
def converting(folder: Path, lesson: str, learner: str = "*") -> Iterator[Any]:
    """nbgrader's view of a course directory, with ``alembic`` where nbgrader looks for it."""
    import sys
    import warnings

    from nbgrader.coursedir import CourseDirectory
    from sqlalchemy.exc import SAWarning

    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        # nbgrader 0.9.6 reads objects that it adds to the session a line later.
        warnings.filterwarnings("ignore", category=SAWarning, module="nbgrader")
        yield CourseDirectory(
            config=_quiet(),
            root=str(folder),
            assignment_id=lesson,
            student_id=learner,
            db_url=f"sqlite:///{folder / 'gradebook.db'}",
            course_id="agent-integration-workbook",
        )
    finally:
        os.environ["PATH"] = path


def _quiet() -> Any:
    from traitlets.config import Config

    return Config()


def _run(step: Any, what: str) -> None:
    """Run a converter of nbgrader; what it logged becomes the reason when it fails."""
    from nbgrader.converters.base import NbGraderException

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(f"course.nbgrader.{id(step)}")
    log.propagate = False
    log.handlers = [handler]
    log.setLevel(logging.WARNING)
    step.log = log
    step.coursedir.log = log
    try:
        step.start()
    except (NbGraderException, SystemExit) as error:
        told = [line for text in lines for line in text.splitlines() if re.match(r"\w*Error", line)]
        raise CourseError(what, told[-1] if told else str(error)) from error


def fingerprint(folder: Path, lesson: str) -> str:
    """A hash of what a lesson is graded by: its source, and the checks in ``helpers/``."""
    from helpers.settings import ROOT

    digest = hashlib.sha256()
    files = sorted((folder / "source" / lesson).glob("*.ipynb"))
    files += [ROOT / "helpers" / "checks" / f"{lesson.lower()}.py", ROOT / "helpers" / "lesson.py"]
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


# --- the command ---------------------------------------------------------------------------


def main(out: Path, lessons: Sequence[str] = ()) -> int:
    """Make a release and say what is in it."""
    from rich.console import Console
    from rich.progress import Progress

    paths = gradable(lessons)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(), transient=True) as bar:
        task = bar.add_task("Releasing", total=len(paths))
        for path in paths:
            bar.update(task, description=lesson_id(path))
            make_course(out, [path])
            bar.advance(task)
    for path in paths:
        graded = json.loads((out / "source" / lesson_id(path) / path.name).read_text("utf-8"))
        checks = [c for c in graded["cells"] if c["metadata"].get("nbgrader", {}).get("grade")]
        points = sum(c["metadata"]["nbgrader"]["points"] for c in checks)
        print(f"{lesson_id(path)}: {len(checks)} exercises, {points} points")
    print(f"For learners, without solutions: {out / 'release'}")
    print(f"For you: source/ and gradebook.db in {out}")
    return 0
