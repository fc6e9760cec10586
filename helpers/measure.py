"""``python3 -m helpers evaluate``: how often a model is right, and how far to believe it.

Each model gets a backend of its own with one thread, asked one request at a time and without
reuse of earlier work: two runs give the same answers, and nobody else's requests are between.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import backend, confidence, evaluation, plots
from .evaluation import Case, Rate, Report
from .free import free_ask
from .settings import MINI, MODEL, CourseError

if TYPE_CHECKING:
    from argparse import Namespace

FIT = "dev"  # what confidence is calibrated on


def serve(model: str) -> backend.Backend:
    """A backend whose answers are the same each time."""
    return backend.serve(model, threads=1, slots=1)


def measure(
    cases: Sequence[Case],
    server: backend.Backend,
    *,
    variants: Sequence[str | None] = (None,),
    noise: int | None = None,
    free: bool = False,
) -> list[Report]:
    """Ask a backend all cases, under each schema variant.

    Args:
        cases: What to ask.
        server: A running backend.
        variants: Names of schema variants; None is the original schema.
        noise: Seed of light noise on the requests.
        free: Ask a second time without a grammar; the report's ``free``.

    Returns:
        A report for each variant.
    """
    reports = []
    for variant in variants:
        shared: dict[str, Any] = {"variant": variant, "noise": noise, "progress": _count}
        report = evaluation.evaluate(cases, url=server.url, model=server.model, **shared)
        if free:
            without = evaluation.evaluate(
                cases, ask=free_ask(server.url), model=server.model, **shared
            )
            report = replace(report, free=without)
        reports.append(report)
    return reports


def variants_table(reports: Sequence[Report]) -> str:
    """Markdown: each variant with its rate, then behaviours by variant as "right/n"."""
    rows = [["schema", "n", "right", "rate", "95 % interval"], ["---"] + ["---:"] * 4]
    rows += [[report.variant, *report.overall.cells()] for report in reports]
    everything = together(reports)
    rows.append(["**all**", *everything.overall.cells()])
    rows += [[name, *rate.cells()] for name, rate in everything.checks().items()]
    names = list(everything.categories)
    grid = [
        ["category", *(report.variant for report in reports)],
        ["---"] + ["---:"] * len(reports),
    ]
    for name in names:
        rates = [report.categories.get(name, Rate(0, 0)) for report in reports]
        grid.append([name, *(f"{rate.correct}/{rate.n}" if rate.n else "" for rate in rates)])
    return "\n".join([*_lines(rows), "", *_lines(grid)])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def together(reports: Sequence[Report]) -> Report:
    """Several reports as one. The same case is in it once for each variant: its interval tells
    how sure the figure is for these requests, not for others."""
    free = [report.free for report in reports if report.free]
    return Report(
        [result for report in reports for result in report.results],
        model=reports[0].model,
        variant="all",
        skipped=[case for report in reports for case in report.skipped],
        noise=reports[0].noise,
        free=together(free) if free else None,
    )


def main(args: Namespace) -> None:
    """Measure, print, and write what was asked for.

    Args:
        args: ``cases``, ``model``, ``schema``, ``noise``, ``free``, ``calibrate``, ``failures``,
            ``json`` and ``plot`` of the command line.

    Raises:
        CourseError: Something that was named does not exist, or does not go with the rest.
    """
    cases = evaluation.load_cases(args.cases or FIT)
    if not cases:
        raise CourseError(
            "There is nothing to evaluate.",
            f"{args.cases} holds no case.",
            "Type: python3 -m helpers evaluate dev",
        )
    # What can be said at once is not said after minutes of measuring.
    if args.plot:
        plots.check_path(args.plot)
    if args.json:
        plots.check_folder(args.json)
    if args.calibrate:
        if args.schema or args.free or args.noise is not None:
            raise CourseError(
                "--calibrate does not go together with --schema, --noise or --free.",
                "Confidence is calibrated on the cases as they are, under the grammar.",
                "Type: python3 -m helpers evaluate --calibrate",
            )
        _calibrate(args, cases)
    else:
        _evaluate(args, cases)


def _evaluate(args: Namespace, cases: Sequence[Case]) -> None:
    everything = args.schema == "all"
    variants = list(evaluation.VARIANTS) if everything else [args.schema]
    if args.schema and not everything:
        evaluation.find_variant(args.schema)
    with serve(args.model or MODEL) as server:
        reports = measure(cases, server, variants=variants, noise=args.noise, free=args.free)
    if everything:
        print(variants_table(reports))
        report = together(reports)
        data = {"variants": [each.to_dict() for each in reports]}
        rates = {each.variant: each.overall for each in reports}
        picture = plots.bars(rates, f"{report.model} under other schemas") if args.plot else None
    else:
        (report,) = reports
        print(report.table(failures=args.failures))
        data = report.to_dict()
        picture = plots.behaviours(report) if args.plot else None
    _write(args, {"cases": _name(args), **data}, picture)


def _calibrate(args: Namespace, cases: Sequence[Case]) -> None:
    fit = evaluation.load_cases(FIT)
    found = []
    for model in [args.model] if args.model else [MODEL, MINI]:
        with serve(model) as server:
            seen = confidence.observe(fit, server.url, server.model, progress=_count)
            other = None
            if [case.messages for case in cases] != [case.messages for case in fit]:
                other = confidence.observe(cases, server.url, server.model, progress=_count)
            found.append(confidence.calibrate(server.model, seen, other))
    print("\n\n".join(calibration.table() for calibration in found))
    picture = plots.reliability(found) if args.plot else None
    models = [calibration.to_dict() for calibration in found]
    _write(args, {"cases": _name(args), "fitted_to": FIT, "models": models}, picture)


def _name(args: Namespace) -> str:
    return Path(args.cases or FIT).stem


def _write(args: Namespace, data: dict[str, Any], picture: tuple[Any, str] | None) -> None:
    if args.json:
        text = json.dumps(data, ensure_ascii=False, indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    if picture:
        plots.save(picture[0], args.plot, picture[1])
        print(f"\n{args.plot}: {picture[1]}")


def _count(done: int, total: int) -> None:
    """A running count on a terminal; nothing where output goes into a file."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} cases", end=end, file=sys.stderr, flush=True)
