"""``run``: the course as a batch, through papermill, with parameters and a page of results.

Each notebook is executed to its end, whatever fails on the way. A parameter that is given
twice makes two runs, side by side on the page: two models, or two endpoints.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import notebooks, settings
from helpers.settings import ROOT, CourseError

BACKEND = "BACKEND"  # not a parameter of a notebook, but what all of the course runs on


@dataclass
class Cell:
    """A cell that failed: its execution count, its first line, the error."""

    count: int
    source: str
    error: str


@dataclass
class Run:
    """One notebook, run once.

    Attributes:
        lesson: ``L03``.
        variant: The parameters of this run, in words; empty without any.
        file: The executed notebook, relative to the page.
        seconds: How long it took.
        cells: How many code cells were executed.
        failed: Those that failed.
        unused: Parameters that this notebook does not have.
        problem: Why it did not come to its end; empty when it did.
    """

    lesson: str
    variant: str
    file: str
    seconds: float = 0.0
    cells: int = 0
    failed: list[Cell] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def fine(self) -> bool:
        """It came to its end, and no cell failed."""
        return not self.failed and not self.problem


# --- parameters ----------------------------------------------------------------------------


def variants(pairs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values that were given for each name.

    >>> variants([["MODEL", "a"], ["MODEL", "b"], ["REQUESTS", "5"]])
    [{'MODEL': 'a', 'REQUESTS': '5'}, {'MODEL': 'b', 'REQUESTS': '5'}]
    """
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def defaults(notebook: Any) -> dict[str, Any]:
    """The parameters of a notebook and their values, as its first code cell has them."""
    found: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    with contextlib.suppress(ValueError):
                        found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def typed(name: str, text: str, default: Any) -> Any:
    """A value from the command line, of the kind that the notebook's own value has.

    papermill's ``-p`` guesses from the text alone: a model called "7" would become a number,
    and "true" stays a text.

    Raises:
        CourseError: It is of another kind.
    """
    import yaml

    if isinstance(default, str):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
    if number:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise CourseError(
            f"{name}={text} is not what {name} takes.",
            f"The notebooks have {name} = {default!r} there.",
            f"Give a value of that kind, for example: -p {name} {default}",
        )
    return value


def _variant_name(chosen: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in chosen.items())


def _folder_name(chosen: dict[str, str]) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", _variant_name(chosen)).strip("_")[:80]


# --- running -------------------------------------------------------------------------------


def run_one(path: Path, target: Path, parameters: dict[str, Any], timeout: int,
            on_cell: Callable[[int], None] = lambda index: None) -> Run:  # fmt: skip
    """Execute one notebook with papermill, to its end.

    Args:
        path: The lesson's notebook.
        target: Where the executed one is written.
        parameters: Values, of the kinds that the notebook has.
        timeout: Seconds for one cell.
        on_cell: Called with each cell's place before it runs.
    """
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillException

    class Engine(NBClientEngine):
        """papermill's own, which also says where it is."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kw: Any) -> Any:
            start = nb_man.cell_start

            def cell_start(cell: Any, index: int, **more: Any) -> Any:
                on_cell(index)
                return start(cell, index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **kw)

    papermill_engines.register("course", Engine)
    lesson = path.stem.split("_")[0].upper()
    run = Run(lesson, "", target.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        papermill.execute_notebook(
            str(path),
            str(target),
            parameters=parameters,
            engine_name="course",
            kernel_name="python3",
            cwd=str(path.parent),
            progress_bar=False,
            execution_timeout=timeout,
            extra_arguments=["--log-level=ERROR"],  # a kernel's remarks would break the bar
            allow_errors=True,  # the cells after one that fails are run as well
        )
    except PapermillException:
        pass  # a cell failed: it is in the notebook
    except Exception as error:
        run.problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    run.seconds = round(time.monotonic() - began, 1)
    with contextlib.suppress(OSError):
        _read_outcome(target, run)
    return run


def _read_outcome(target: Path, run: Run) -> None:
    import json

    for cell in json.loads(target.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        run.cells += cell.get("execution_count") is not None
        error = next((o for o in cell["outputs"] if o["output_type"] == "error"), None)
        if error:
            lines = "".join(cell["source"]).strip().splitlines()
            said = f"{error['ename']}: {error['evalue']}".strip().splitlines()[0]
            run.failed.append(
                Cell(cell.get("execution_count"), lines[0] if lines else "", said[:200])
            )


@contextlib.contextmanager
def _environment(chosen: dict[str, str], folder: Path) -> Iterator[None]:
    """What the kernels of one variant inherit: no keys, no trace in the learner's progress."""
    before = dict(os.environ)
    asked = os.environ.get("HOSTED", "").strip() == "1"
    env = {**os.environ, **settings.OFFLINE} if asked else settings.scrubbed(os.environ)
    env |= {
        "COURSE_PROGRESS": str(folder / "progress.json"),
        "COURSE_SKILL": "rehearsal",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    if BACKEND in chosen:
        # A pair of services of its own: the present one goes on as it is.
        env |= {BACKEND: chosen[BACKEND], "COURSE_WORK": str(folder / "work")}
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(out: Path, lessons: Sequence[str] = (), pairs: Sequence[Sequence[str]] = (),
        timeout: int = 600) -> list[Run]:  # fmt: skip
    """Run lessons with every combination of parameters, and write ``summary.html``.

    Raises:
        CourseError: A lesson does not exist, or no lesson has a parameter of that name.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = notebooks.find(lessons)
    known = {path: defaults(notebooks._read(path)) for path in paths}
    chosen = variants(pairs)
    _check_names(pairs, known)
    runs: list[Run] = []
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=Console()) as bar:
        total = bar.add_task("Running", total=len(paths) * len(chosen))
        for variant in chosen:
            folder = out / _folder_name(variant) if len(chosen) > 1 else out
            with _environment(variant, folder):
                for path in paths:
                    cells = bar.add_task(
                        path.stem.split("_")[0], total=len(notebooks._read(path).cells)
                    )
                    values = {
                        name: typed(name, text, known[path][name])
                        for name, text in variant.items()
                        if name in known[path]
                    }
                    done = run_one(
                        path, folder / path.name, values, timeout, lambda _, t=cells: bar.advance(t)
                    )
                    done.variant = _variant_name(variant)
                    done.file = (folder / path.name).relative_to(out).as_posix()
                    done.unused = [n for n in variant if n not in values and n != BACKEND]
                    runs.append(done)
                    bar.remove_task(cells)
                    bar.advance(total)
                    # After each: an interrupted batch has its page as well.
                    (out / "summary.html").write_text(page(runs), encoding="utf-8")
    return runs


def _check_names(pairs: Sequence[Sequence[str]], known: dict[Path, dict[str, Any]]) -> None:
    every = {name for found in known.values() for name in found}
    for name, _ in pairs:
        if name not in every and name != BACKEND:
            raise CourseError(
                f"None of these lessons has a parameter {name}.",
                f"Their parameters: {', '.join(sorted(every))}; and {BACKEND} for all of them.",
                "Names are written as in the first code cell of the notebooks.",
            )


# --- the page ------------------------------------------------------------------------------


def page(runs: Sequence[Run]) -> str:
    """The summary as one HTML file that loads nothing."""
    from helpers.instructor import report

    columns = list(dict.fromkeys(run.variant for run in runs))
    lessons = list(dict.fromkeys(run.lesson for run in runs))
    return (
        report._environment()
        .from_string(PAGE)
        .render(
            columns=columns,
            lessons=lessons,
            of={(run.lesson, run.variant): run for run in runs},
            troubled=[run for run in runs if not run.fine],
            unused=sorted({(run.lesson, name) for run in runs for name in run.unused}),
            seconds=sum(run.seconds for run in runs),
            runs=runs,
            style=report.STYLE,
        )
    )


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Batch run</title>
<style>
{{ style }}
</style>
</head>
<body>
<h1>Batch run</h1>
<p>{{ runs | length }} notebooks in {{ seconds | round | int }} seconds;
{{ runs | selectattr("fine") | list | length }} without a failed cell.</p>
<div class="scroll"><table>
<caption>Seconds, and cells that failed</caption>
<thead><tr><th scope="col">Lesson</th>
{% for column in columns %}<th scope="col">{{ column or "as they are" }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for lesson in lessons %}
<tr><th scope="row">{{ lesson }}</th>
{% for column in columns %}
{% set run = of[(lesson, column)] if (lesson, column) in of else none %}
<td>{% if run %}<a href="{{ run.file | urlencode }}">{{ run.seconds }} s</a>,
{% if run.problem %}stopped{% elif run.failed -%}
{{ run.failed | length }} of {{ run.cells }} cells failed
{%- else %}{{ run.cells }} cells, none failed{% endif %}
{% else %}not run yet{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if unused %}
<p>Not a parameter of {% for lesson, name in unused -%}
{{ lesson }}: {{ name }}{{ ", " if not loop.last }}{% endfor %}.
These ran with their own values.</p>
{% endif %}
{% for run in troubled %}
<h2>{{ run.lesson }}{{ ", " ~ run.variant if run.variant }}</h2>
{% if run.problem %}<p>It did not come to its end: {{ run.problem }}</p>{% endif %}
{% if run.failed %}
<table>
<caption>Failed cells</caption>
<thead><tr><th scope="col" class="n">Cell</th><th scope="col">Begins with</th>
<th scope="col">Error</th></tr></thead>
<tbody>
{% for cell in run.failed %}
<tr><td class="n">In [{{ cell.count }}]</td><td><code>{{ cell.source }}</code></td>
<td>{{ cell.error }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
{% endfor %}
</body>
</html>
"""


def main(out: Path, lessons: Sequence[str], pairs: Sequence[Sequence[str]], timeout: int) -> int:
    """The command: run, then one line per notebook.

    Returns:
        0 when no cell failed anywhere, else 1.
    """
    runs = run(out, lessons, pairs, timeout)
    for done in runs:
        said = done.problem or (f"{len(done.failed)} cells failed" if done.failed else "fine")
        name = f"{done.lesson} ({done.variant})" if done.variant else done.lesson
        print(f"{name}: {said}, {done.seconds} s")
    print(f"Summary: {out / 'summary.html'}")
    return 0 if all(done.fine for done in runs) else 1
