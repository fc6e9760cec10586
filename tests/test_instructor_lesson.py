"""One real lesson, from release to report: solved with its own solutions, on shared services."""

from __future__ import annotations

import re
from types import SimpleNamespace

import nbformat
import pytest

pytestmark = [pytest.mark.needs("instructor"), pytest.mark.slow]

LESSON = "L01"


def solved(released, source):
    """The released notebook, filled in with what the course holds for right."""
    from helpers.instructor import release

    solutions = {release._grade_id(c): c.source for c in source.cells}
    for cell in released.cells:
        kind, _, name = release._grade_id(cell).partition("-")
        if kind == "exercise":
            answer = re.sub(r"^.*\.check\(.*$", "", solutions[f"solution-{name}"], flags=re.M)
            cell.source += "\n\n" + re.sub(r"_solution\b", "", answer)
    return released


def test_a_solved_lesson_gets_all_points_and_feedback(tmp_path, capsys):
    from helpers.instructor import classroom, release

    assert release.main(tmp_path / "out", [LESSON]) == 0
    (source,) = (tmp_path / "out" / "source" / LESSON).glob("*.ipynb")
    (out,) = (tmp_path / "out" / "release" / LESSON).glob("*.ipynb")
    notebook = solved(nbformat.read(out, 4), nbformat.read(source, 4))
    (tmp_path / "in" / "ann").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "in" / "ann" / out.name)

    asked = SimpleNamespace(
        submissions=tmp_path / "in",
        out=tmp_path / "report",
        lessons=[LESSON],
        release=tmp_path / "out",
        scheduler=None,
        workers=0,
        again=False,
        seconds=None,
        cell_seconds=None,
        memory_mb=None,
        output_kb=None,
    )
    assert classroom.main(asked) == 0
    said = capsys.readouterr().out
    rows = (tmp_path / "report" / "exercises.csv").read_text("utf-8-sig").splitlines()[1:]
    assert [row.split(",")[3] for row in rows] == ["passed"] * len(rows), rows
    assert len(rows) >= 3
    assert "1 of 1 submissions graded." in said
    assert "ann," not in said  # nothing to remark
    (page,) = (tmp_path / "report" / "feedback").rglob("*.html")
    text = re.sub(r"<[^>]+>", "", page.read_text("utf-8"))
    assert "passed" in text
    assert "is not part of the feedback" in text
