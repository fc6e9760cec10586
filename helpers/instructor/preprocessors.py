"""What nbgrader's steps lack, as preprocessors of nbgrader: imported only with the extra."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearHiddenTests,
    ClearOutput,
    ComputeChecksums,
    DeduplicateIds,
    LimitOutput,
    LockCells,
    NbGraderPreprocessor,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
    SaveCells,
)

from helpers.instructor import release


class WithholdSolutions(NbGraderPreprocessor):
    """Leave of a solution cell only the names that later cells use."""

    def preprocess_cell(self, cell: Any, resources: Any, index: int) -> tuple[Any, Any]:
        if release._grade_id(cell).startswith("solution-"):
            cell.source = release.withheld(cell.source)
        return cell, resources


class HideTests(NbGraderPreprocessor):
    """In feedback: neither the solution nor the hidden part of a check."""

    def preprocess_cell(self, cell: Any, resources: Any, index: int) -> tuple[Any, Any]:
        if release._grade_id(cell).startswith("solution-"):
            cell.source = "# The solution is not part of the feedback."
        if release._grade_id(cell).startswith("check-"):
            begin, end = map(re.escape, release.HIDDEN)
            cell.source = re.sub(rf"\n*{begin}.*?{end}", "", cell.source, flags=re.S)
        return cell, resources


class RunElsewhere(NbGraderPreprocessor):
    """Has the notebook run by a function, instead of in a kernel of this process."""

    run: Callable[[Any], Any] | None = None

    def preprocess(self, notebook: Any, resources: Any) -> tuple[Any, Any]:
        return type(self).run(notebook), resources


def generating() -> list[type]:
    """The generate step. Our stubs are stubs already, so ClearSolutions is not among them."""
    return [
        LockCells,
        ClearOutput,
        CheckCellMetadata,
        ComputeChecksums,
        SaveCells,
        WithholdSolutions,
        ClearHiddenTests,
        ComputeChecksums,
        CheckCellMetadata,
    ]


def sanitizing() -> list[type]:
    """The first half of autograde: the checks and solutions are put back."""
    return [ClearOutput, DeduplicateIds, OverwriteKernelspec, OverwriteCells, CheckCellMetadata]


def autograding(run: Callable[[Any], Any]) -> list[type]:
    """The second half of autograde.

    Args:
        run: Takes the notebook and returns a copy with outputs.
    """
    elsewhere = type("RunInSandbox", (RunElsewhere,), {"run": staticmethod(run)})
    return [elsewhere, LimitOutput, SaveAutoGrades, AssignLatePenalties, CheckCellMetadata]


__all__ = ["HideTests", "autograding", "generating", "sanitizing"]
