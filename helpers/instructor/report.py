"""What came of grading: a page for people, and tables for a gradebook. Files, nothing else."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.instructor.sandbox import Limits

# What can become of an exercise: in the order of the bars, each with a pattern as second cue.
OUTCOMES = {
    "passed": ("#2e7d4f", "plain"),
    "not right yet": ("#b45309", "stripes"),
    "not filled in": ("#8a8f98", "dots"),
    "not run": ("#4b5563", "crosses"),
}


@dataclass
class Class:
    """A graded class.

    Attributes:
        results: What ``grade_one`` gave, with ``feedback_file`` in place of ``feedback``.
        learners: Everybody who has a folder, also without a submission.
        isolation: How submissions were kept apart.
        limits: What each could use.
    """

    results: list[dict[str, Any]]
    learners: list[str]
    isolation: str
    limits: Limits

    @property
    def lessons(self) -> list[str]:
        """The lessons that were handed in."""
        return sorted({r["lesson"] for r in self.results})

    def of(self, learner: str, lesson: str) -> dict[str, Any] | None:
        """One result, or None where nothing was handed in."""
        wanted = (learner, lesson)
        return next((r for r in self.results if (r["learner"], r["lesson"]) == wanted), None)


def outcome(result: Mapping[str, Any], name: str) -> str:
    """Which of :data:`OUTCOMES` an exercise of a submission came to."""
    exercise = result["exercises"][name]
    if exercise["passed"]:
        return "passed"
    if result["status"] != "graded" or exercise["said"].startswith("not run"):
        return "not run"
    return "not filled in" if exercise["said"].startswith("not filled in") else "not right yet"


def write(whole: Class, out: Path) -> None:
    """Write ``report.html``, ``grades.csv`` (a row per learner) and ``exercises.csv``."""
    (out / "grades.csv").write_text(grades(whole), encoding="utf-8-sig", newline="")
    (out / "exercises.csv").write_text(exercises(whole), encoding="utf-8-sig", newline="")
    (out / "report.html").write_text(page(whole), encoding="utf-8", errors="replace")


# --- tables --------------------------------------------------------------------------------


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: folders have the names learners chose."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = str(value)
    if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + text
    return value


def grades(whole: Class) -> str:
    """A row per learner: points of each lesson, what was possible, and remarks."""
    head = ["learner"]
    for lesson in whole.lessons:
        head += [lesson, f"{lesson} of"]
    rows: list[list[Any]] = [[*head, "total", "remarks"]]
    for learner in whole.learners:
        row: list[Any] = [learner]
        total = 0.0
        remarks = []
        for lesson in whole.lessons:
            result = whole.of(learner, lesson)
            most = next(r["most"] for r in whole.results if r["lesson"] == lesson)
            if result is None:
                row += [0, most]
                remarks.append(f"{lesson}: nothing handed in")
                continue
            row += [result["score"], most]
            total += result["score"]
            said = "; ".join(result["notes"]) or result["reason"]
            if result["status"] != "graded":
                said = f"not graded: {result['reason']}"
            if said:
                remarks.append(f"{lesson}: {said}")
        rows.append([*row, total, " | ".join(remarks)])
    return _csv(rows)


def exercises(whole: Class) -> str:
    """A row per learner and exercise, with what the check said."""
    rows: list[list[Any]] = [["learner", "lesson", "exercise", "outcome", "points", "of", "said"]]
    for result in whole.results:
        for name, exercise in result["exercises"].items():
            came = outcome(result, name)
            points, most = exercise["points"], exercise["most"]
            said = exercise["said"] or result["reason"]
            rows.append([result["learner"], result["lesson"], name, came, points, most, said])
    return _csv(rows)


# --- the page ------------------------------------------------------------------------------


def page(whole: Class) -> str:
    """The report as one HTML file that loads nothing."""
    plots = []
    for lesson in whole.lessons:
        results = [r for r in whole.results if r["lesson"] == lesson]
        for name in results[0]["exercises"]:
            counts = Counter(outcome(r, name) for r in results)
            said = Counter(
                r["exercises"][name]["said"]
                for r in results
                if outcome(r, name) == "not right yet" and r["exercises"][name]["said"]
            )
            plots.append(_plot(lesson, name, counts, said.most_common(3)))
    remarks = [r for r in whole.results if r["status"] != "graded" or r["notes"] or r["reason"]]
    return (
        _environment()
        .from_string(PAGE)
        .render(
            whole=whole,
            plots=plots,
            remarks=remarks,
            graded=sum(r["status"] == "graded" for r in whole.results),
            outcomes=OUTCOMES,
            style=STYLE,
        )
    )


def _environment() -> Any:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["points"] = lambda value: f"{value:g}"
    return environment


def _plot(lesson: str, name: str, counts: Counter[str], said: list[tuple[str, int]]) -> dict:
    """One bar: how many submissions came to which outcome, with the same in words."""
    total = sum(counts.values())
    parts = []
    x = 0.0
    for kind, (colour, pattern) in OUTCOMES.items():
        if number := counts[kind]:
            width = 600 * number / total
            parts.append({"x": x, "width": width, "colour": colour, "pattern": pattern,
                          "number": number, "kind": kind})  # fmt: skip
            x += width
    words = ", ".join(f"{part['number']} {part['kind']}" for part in parts)
    return {
        "id": f"{lesson}-{name}",
        "lesson": lesson,
        "name": name,
        "total": total,
        "parts": parts,
        "words": f"{lesson}, {name}: of {total} submissions {words}.",
        "said": said,
    }


STYLE = """\
:root { color-scheme: light dark; --line: #8885; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; } figcaption { font-size: .95rem; }
svg { width: 100%; height: auto; } .scroll { overflow-x: auto; }
@media print { body { max-width: none; } }"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Grades</title>
<style>
{{ style }}
</style>
</head>
<body>
<h1>Grades</h1>
<p>{{ graded }} of {{ whole.results | length }} submissions graded, {{ whole.learners | length }}
learners. Each submission ran {{ whole.isolation }}; it could use
{{ whole.limits.seconds | points }} seconds ({{ whole.limits.cell_seconds | points }} per cell),
{{ whole.limits.memory_mb }} MB of memory, and show {{ whole.limits.output_kb }} kB per cell.</p>
<div class="scroll"><table>
<caption>Points</caption>
<thead><tr><th scope="col">Learner</th>
{% for lesson in whole.lessons %}<th scope="col" class="n">{{ lesson }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for learner in whole.learners %}
<tr><th scope="row">{{ learner }}</th>
{% for lesson in whole.lessons %}
{% set result = whole.of(learner, lesson) %}
<td class="n">{% if result %}<a href="{{ result.feedback_file | urlencode }}">
{%- if result.status == "graded" %}{{ result.score | points }} of {{ result.most | points }}
{%- else %}not graded{% endif %}</a>{% else %}nothing handed in{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if remarks %}
<h2>What to look at</h2>
<ul>
{% for result in remarks %}
<li>{{ result.learner }}, {{ result.lesson }}:
{% if result.status != "graded" %}not graded: {{ result.reason }}
{% else %}{{ result.notes | join("; ") or result.reason }}{% endif %}</li>
{% endfor %}
</ul>
{% endif %}
<h2>Exercises</h2>
<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>
<pattern id="stripes" width="8" height="8" patternUnits="userSpaceOnUse">
<path d="M0 8 8 0" stroke="#fff8" stroke-width="2"/></pattern>
<pattern id="dots" width="8" height="8" patternUnits="userSpaceOnUse">
<circle cx="4" cy="4" r="1.6" fill="#fff9"/></pattern>
<pattern id="crosses" width="9" height="9" patternUnits="userSpaceOnUse">
<path d="M1 1 8 8M8 1 1 8" stroke="#fff8" stroke-width="1.5"/></pattern>
</defs></svg>
{% for plot in plots %}
<h3>{{ plot.lesson }}: {{ plot.name }}</h3>
<figure>
<svg viewBox="0 0 600 44" role="img" aria-labelledby="{{ plot.id }}"><title id="{{ plot.id }}">
{{- plot.words }}</title>
{% for part in plot.parts %}
<rect x="{{ part.x }}" y="0" width="{{ part.width }}" height="44" fill="{{ part.colour }}"/>
{% if part.pattern != "plain" %}
<rect x="{{ part.x }}" y="0" width="{{ part.width }}" height="44" fill="url(#{{ part.pattern }})"/>
{% endif %}
{% if part.width > 90 %}
<rect x="{{ part.x + 4 }}" y="12" width="{{ (part.kind | length + 4) * 7 }}" height="20"
 rx="3" fill="{{ part.colour }}"/>
<text x="{{ part.x + 8 }}" y="26" font-size="13" fill="#fff">
{{- part.number }} {{ part.kind }}</text>
{% endif %}
{% endfor %}
</svg>
<figcaption>{{ plot.words }}</figcaption>
</figure>
{% if plot.said %}
<p>Said most often:</p>
<ul>
{% for text, number in plot.said %}<li>{{ number }} ×: {{ text }}</li>
{% endfor %}
</ul>
{% endif %}
{% endfor %}
</body>
</html>
"""
