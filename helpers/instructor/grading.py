"""Grading one submission: nbgrader's autograde and feedback, with the running done in a sandbox.

:func:`grade_one` takes everything it needs in one dictionary and gives everything it made in
another, so that any process on any machine with this repository can do it. It writes nothing
that outlives it, and never raises because of what a learner handed in.
"""

from __future__ import annotations

import contextlib
import html
import json
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.instructor import release, sandbox
from helpers.instructor.score import VERDICT

LEARNER = "learner"  # inside nbgrader's folders, whatever the person is called
LARGEST = 20 << 20  # bytes of a submitted file
NO_VERDICT = "it did not come to its verdict"


class NotGraded(Exception):
    """Why a submission could not be graded, as the end of a sentence."""


def grade_one(job: Mapping[str, Any]) -> dict[str, Any]:
    """Grade a submission.

    Args:
        job: ``learner``, ``lesson``, ``file`` (its name) and ``data`` (its bytes); ``source``
            and ``gradebook`` (nbgrader's, as bytes) with ``source_name``; ``limits`` and
            ``services`` as the sandbox takes them; ``hide``, folders it shall not see.

    Returns:
        ``learner``, ``lesson``, ``status`` (``graded`` or ``not graded``), ``reason``, ``notes``,
        ``exercises`` (name → passed, points, most, said), ``score``, ``most``, ``seconds``,
        ``peak_mb``, ``feedback`` (HTML); ``passing`` where the reason may be the machine's.
    """
    result: dict[str, Any] = {
        "learner": job["learner"],
        "lesson": job["lesson"],
        "status": "graded",
        "reason": "",
        "notes": [],
        "exercises": _nothing_passed(job),
        "seconds": 0.0,
        "peak_mb": 0,
        "feedback": "",
    }
    try:
        notebook, result["notes"] = _read(job)
        with tempfile.TemporaryDirectory(prefix="course-grading-") as folder:
            _grade(job, notebook, Path(folder), result)
    except NotGraded as error:
        result |= {"status": "not graded", "reason": str(error)}
    except Exception as error:
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        result |= {"status": "not graded", "reason": f"it could not be graded ({why[:300]})"}
        result["passing"] = True  # perhaps not the submission's fault: tried again next time
    result["score"] = sum(e["points"] for e in result["exercises"].values())
    result["most"] = sum(e["most"] for e in result["exercises"].values())
    if not result["feedback"]:
        result["feedback"] = _short_feedback(result)
    return result


def _nothing_passed(job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    checks = {}
    for cell in json.loads(job["source"])["cells"]:
        meta = cell["metadata"].get("nbgrader", {})
        if meta.get("grade"):
            name = meta["grade_id"].removeprefix("check-")
            checks[name] = {"passed": False, "points": 0, "most": meta["points"], "said": ""}
    return checks


# --- what was handed in --------------------------------------------------------------------


def _read(job: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The submitted notebook, with checks and solutions where they belong, and what was done.

    Raises:
        NotGraded: It is not a notebook, or not one of this lesson.
    """
    import nbformat

    data = job["data"]
    if len(data) > LARGEST:
        raise NotGraded(f"{job['file']} has more than {LARGEST >> 20} MB")
    try:
        raw = json.loads(data.decode("utf-8-sig"))
        notebook = nbformat.reads(json.dumps(raw), as_version=4)
        nbformat.validate(notebook)
        assert notebook.cells is not None
    except (Exception, RecursionError):
        raise NotGraded(f"{job['file']} is not a notebook") from None
    source = nbformat.reads(job["source"].decode("utf-8"), as_version=4)
    notes = _assemble(notebook, source)
    return notebook, notes


def _assemble(notebook: Any, source: Any) -> list[str]:
    """Give every cell of ``source`` that counts its place in a submission. In place.

    A cell is known by nbgrader's id or, where somebody handed in the course's own notebook
    instead of the release, by the id it has there. nbgrader itself puts the text of locked
    cells back; here missing ones come back, and what was changed is noted.
    """
    ours = {release._grade_id(c): c for c in source.cells if release._grade_id(c)}
    by_cell_id = {c["id"]: release._grade_id(c) for c in ours.values()}
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        name = release._grade_id(cell)
        if name not in ours:
            name = by_cell_id.get(cell.get("id", ""), "")
        cell.metadata.pop("nbgrader", None)
        if name and name not in found:
            found[name] = cell
    if not any(name.startswith("exercise-") for name in found):
        raise NotGraded("none of this lesson's exercises is in it")
    notes = []
    place = -1
    for name, wanted in ours.items():
        cell = found.get(name)
        if cell is None:
            cell = _cell(wanted)
            notebook.cells.insert(place + 1, cell)
            notes.append(f"{_words(name)} was missing and was put back")
        elif name.startswith("check-") and not _same(cell, wanted):
            notes.append(f"{_words(name)} had been changed and was put back")
        if name.startswith("exercise-") and cell.cell_type != "code":
            notes.append(f"{_words(name)} was not a code cell any more")
        cell.metadata["nbgrader"] = json.loads(json.dumps(wanted.metadata["nbgrader"]))
        place = next(n for n, c in enumerate(notebook.cells) if c is cell)
    notebook.metadata["kernelspec"] = source.metadata["kernelspec"]
    return notes


def _cell(wanted: Any) -> Any:
    import nbformat

    return nbformat.from_dict(json.loads(json.dumps(wanted)))


def _same(cell: Any, wanted: Any) -> bool:
    visible = wanted.source.split(release.HIDDEN[0])[0]
    return cell.source.split(release.HIDDEN[0])[0].strip() == visible.strip()


def _words(grade_id: str) -> str:
    kind, _, name = grade_id.partition("-")
    return f"the {kind} of {name}"


# --- nbgrader's steps ----------------------------------------------------------------------


def _grade(job: Mapping[str, Any], notebook: Any, folder: Path, result: dict[str, Any]) -> None:
    import nbformat
    from nbgrader.api import Gradebook
    from nbgrader.converters import Autograde, GenerateFeedback

    from helpers.instructor import preprocessors

    lesson, file = job["lesson"], job["source_name"]
    (folder / "source" / lesson).mkdir(parents=True)
    (folder / "source" / lesson / file).write_bytes(job["source"])
    (folder / "gradebook.db").write_bytes(job["gradebook"])
    submitted = folder / "submitted" / LEARNER / lesson
    submitted.mkdir(parents=True)
    nbformat.write(notebook, submitted / file)

    def run(checked: Any) -> Any:
        return _run(job, checked, result)

    with release.converting(folder, lesson, LEARNER) as coursedir:
        step = Autograde(coursedir=coursedir, config=release._quiet())
        step.sanitize_preprocessors = preprocessors.sanitizing()
        step.autograde_preprocessors = preprocessors.autograding(run)
        release._run(step, "nbgrader could not autograde it.")
        step = GenerateFeedback(coursedir=coursedir, config=release._quiet())
        step.preprocessors = [preprocessors.HideTests, *step.preprocessors]
        release._run(step, "nbgrader could not make the feedback.")
        with Gradebook(coursedir.db_url, coursedir.course_id) as book:
            handed_in = book.find_submission_notebook(Path(file).stem, lesson, LEARNER)
            for grade in handed_in.grades:
                exercise = result["exercises"][grade.name.removeprefix("check-")]
                exercise["points"] = float(grade.score or 0)
    page = folder / "feedback" / LEARNER / lesson / f"{Path(file).stem}.html"
    result["feedback"] = _with_notes(page.read_text(encoding="utf-8"), result)


def _run(job: Mapping[str, Any], notebook: Any, result: dict[str, Any]) -> Any:
    """Run a notebook in the sandbox, and leave in its check cells what nbgrader looks for."""
    import nbformat

    tokens = {}
    for cell in notebook.cells:
        name = release._grade_id(cell)
        if name.startswith("check-"):
            tokens[name] = secrets.token_hex(16)
            cell.source = cell.source.replace(release.TOKEN, tokens[name])
    limits = sandbox.Limits(**job["limits"])
    ran = sandbox.run(notebook, limits, job["services"], [Path(p) for p in job["hide"]])
    result |= {"seconds": ran.seconds, "peak_mb": ran.peak_mb}
    result["notes"] += ran.notes
    if ran.stopped.startswith("it could not be run"):
        raise RuntimeError(ran.stopped)
    if ran.stopped:
        result["notes"].append(f"stopped early: {ran.stopped}")
        result["reason"] = f"stopped early: {ran.stopped}"
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        cell.outputs = _safe_outputs(ran.outputs.get(index, []))
        cell.execution_count = ran.counts.get(index)
        name = release._grade_id(cell)
        if name in tokens:
            cell.source = cell.source.replace(tokens[name], release.TOKEN)
            exercise = result["exercises"][name.removeprefix("check-")]
            why = ran.stopped if index not in ran.outputs else ""
            cell.outputs = _judged(cell.outputs, tokens[name], why, exercise)
            if exercise["said"].startswith(NO_VERDICT):
                result["notes"].append(f"{_words(name)}: {exercise['said']}")
    nbformat.validate(notebook)
    return notebook


def _safe_outputs(outputs: list[Any]) -> list[Any]:
    """What of these is valid: it came from a process that a learner's code could reach."""
    import nbformat

    kept = []
    for output in outputs:
        with contextlib.suppress(Exception):
            node = nbformat.from_dict(output)
            nbformat.validate(node, ref=node["output_type"], version=4)
            if isinstance(node.get("execution_count", 0), int | None):
                kept.append(node)
    return kept


def _judged(outputs: list[Any], token: str, why: str, exercise: dict[str, Any]) -> list[Any]:
    """A check's outputs as nbgrader reads them: an error, or neither error nor number.

    nbgrader takes silence for success, stderr for failure and a number for points. Only the
    verdict that carries this cell's token counts here.
    """
    import nbformat

    verdict = None
    kept = []
    for output in outputs:
        shown = output.get("data", {}).get(VERDICT)
        if isinstance(shown, Mapping):
            if shown.get("token") == token:
                verdict = shown
        elif output.output_type == "stream":
            output["name"] = "stdout"
            kept.append(output)
        elif output.output_type != "execute_result":
            kept.append(output)
    if verdict is not None and verdict.get("passed") is True:
        exercise |= {"passed": True, "said": str(verdict.get("said", ""))[:500]}
        return [output for output in kept if output.output_type != "error"]
    if verdict is not None:
        said = str(verdict.get("said", ""))
    elif why:
        said = f"not run: {why}"
    else:
        errors = [f"{o.ename}: {o.evalue}" for o in kept if o.output_type == "error"]
        said = (
            errors[-1]
            if errors
            else f"{NO_VERDICT}; something in this notebook changes how checks run"
        )
    exercise["said"] = said[:500]
    if not any(output.output_type == "error" for output in kept):
        kept.append(
            nbformat.v4.new_output("error", ename="NotPassed", evalue=said, traceback=[said])
        )
    return kept


# --- feedback ------------------------------------------------------------------------------


def _with_notes(page: str, result: Mapping[str, Any]) -> str:
    """nbgrader's page, with what a learner has to know before its first line."""
    if not result["notes"]:
        return page
    items = "".join(f"<li>{html.escape(note)}</li>" for note in result["notes"])
    box = f'<div role="note" style="margin:1em"><p>Please note:</p><ul>{items}</ul></div>'
    head, body, rest = page.partition("<body")
    tag, close, rest = rest.partition(">")
    return f"{head}{body}{tag}{close}{box}{rest}" if body else box + page


def _short_feedback(result: Mapping[str, Any]) -> str:
    title = f"{result['lesson']}: not graded"
    why = html.escape(result["reason"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>{title}</h1><p>Your submission was not graded: {why}.</p></body></html>\n"
    )
