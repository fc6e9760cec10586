"""Requests with known answers, played while faults strike, and what came of each; the pictures.

A storm is played one request after another, so that the same seed gives the same storm. What
plays is any function of a prompt and a key that returns an :class:`~helpers.resilience.Outcome`.
"""

from __future__ import annotations

import html
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .evaluation import Answer, Call, Case, Rate, score
from .faults import FAULTS, FaultProxy
from .resilience import Ask, Attempt, Outcome, Tools, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Handle = Callable[[str, str], Outcome]

# --- requests with known answers -------------------------------------------------------------

_VERBS = ("call", "email", "visit", "thank", "invite", "pay", "remind", "meet")
_WHOM = (
    "mum", "the bank", "the dentist", "Anna", "the landlord", "the plumber", "Peter", "the school",
    "the insurance", "grandma", "the garage", "the neighbours",
)  # fmt: skip


def workload(n: int, seed: int = 7) -> list[Case]:
    """Simple requests, one call each, of the kinds that a day brings; no title comes twice.

    Args:
        n: How many, up to 200.
        seed: Of the order and of the ids.

    Raises:
        ValueError: For more than there are.
    """
    dice = random.Random(seed)
    titles = [f"{verb} {whom}" for verb in _VERBS for whom in _WHOM]
    dice.shuffle(titles)
    if n > 2 * len(titles):
        raise ValueError(f"There are {2 * len(titles)} requests at most.")
    cases = []
    for number in range(n):
        prompt, name, args = _request(number, titles, dice.randint(1, 40))
        call = {"name": name, "args": {key: [value] for key, value in args.items()}}
        cases.append(
            Case.from_dict(
                {
                    "id": f"storm-{number + 1:03}",
                    "category": name,
                    "messages": [{"role": "user", "content": prompt}],
                    "tools": [],
                    "expect": [call],
                }
            )
        )
    return cases


def _request(number: int, titles: Sequence[str], task: int) -> tuple[str, str, dict[str, Any]]:
    title = titles[number // 2 % len(titles)]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (f"Add a task to {title}", "create_task", {"title": title, "priority?": "medium"}),
        (f"Finish task {task}", "complete_task", {"task_id": task}),
        (
            f"Create an urgent task to {title}",
            "create_task",
            {"title": title, "priority": "urgent"},
        ),
        ("What is still pending?", "list_tasks", {"status": "pending"}),
        (
            f"Add a task to {title} tomorrow",
            "create_task",
            {"title": title, "due": "tomorrow", "priority?": "medium"},
        ),
        (f"Task {task} is done", "complete_task", {"task_id": task}),
        (f"Add {title} to my list", "create_task", {"title": title, "priority?": "medium"}),
        (f"Delete task {task}", "delete_task", {"task_id": task}),
    ]
    return kinds[number % len(kinds)]


def prompt_of(case: Case) -> str:
    """What the person says in a case."""
    return str(case.messages[-1]["content"])


def is_right(case: Case, outcome: Outcome) -> bool:
    """Whether the calls that were carried out are those that the person asked for."""
    calls = tuple(Call(name, json.dumps(args), args) for name, args in outcome.calls)
    return bool(score(case, Answer(outcome.text, calls, "tool_calls" if calls else "stop")))


@dataclass(frozen=True)
class Observed:
    """One request answered by one model.

    Attributes:
        right: Whether the answer is the expected one.
        confidence: Of the model in its answer, 0 to 1; None where it was not asked for.
        ms: How long it took.
    """

    right: bool
    confidence: float | None
    ms: float


def observe(ask: Ask, cases: Iterable[Case], tools: Tools) -> list[Observed]:
    """Ask one model all requests, one after another."""
    from .confidence import call_confidence

    seen = []
    for case in cases:
        began = time.perf_counter()
        reply = ask(prompt_of(case), tools, 60)
        ms = 1000 * (time.perf_counter() - began)
        sure = call_confidence(reply) if reply.choices[0].logprobs else None
        seen.append(Observed(bool(score(case, reply)), sure, ms))
    return seen


# --- a storm -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One request of a storm.

    Attributes:
        case: The request and what is expected.
        outcome: How it ended.
        faults: What struck while it was under way, as far as it took place.
        right: Whether what was carried out is what was asked for.
        seconds: How long it took.
        wrong_calls: Calls that were valid and wrong, as they went out to the client.
    """

    case: Case
    outcome: Outcome
    faults: tuple[str, ...]
    right: bool
    seconds: float
    wrong_calls: tuple[str, ...] = ()

    @property
    def fooled(self) -> bool:
        """Whether one of these calls was carried out."""
        done = {f"{n}({json.dumps(a, ensure_ascii=False)})" for n, a in self.outcome.calls}
        return not done.isdisjoint(self.wrong_calls)


def play(
    handle: Handle,
    cases: Iterable[Case],
    faults: FaultProxy,
    at: Mapping[int, Callable[[], object]] | None = None,
) -> list[Row]:
    """Play requests one after another.

    Args:
        handle: What ends a request, called with the prompt and a key.
        cases: The requests.
        faults: The proxy whose log says what struck.
        at: What to do before a request, by its number from 0: turn a switch, kill a process.
    """
    rows = []
    for number, case in enumerate(cases):
        if at and number in at:
            at[number]()
        before, began = len(faults.log), time.monotonic()
        outcome = handle(prompt_of(case), case.id)
        took = time.monotonic() - began
        events = [
            event
            for event in faults.log[before:]
            if event.fault and event.done not in ("nothing to change", "no model")
        ]
        struck = tuple(event.fault for event in events)
        wrong = tuple(e.call for e in events if e.fault == "wrong call" and e.call)
        if not struck and not faults.listening:
            struck = ("refuse",)  # who finds a closed port leaves no trace in the log
        rows.append(Row(case, outcome, struck, is_right(case, outcome), took, wrong))
    return rows


def by_fault(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For ``helpers.lesson.table``: per fault, how requests ended and how many were right."""
    names = [
        name for name in ("", *FAULTS) if any((row.faults or ("",))[0] == name for row in rows)
    ]
    table = []
    for name in names:
        group = [row for row in rows if (row.faults or ("",))[0] == name]
        answered = [row for row in group if row.outcome.state == "answered"]
        who: dict[str, int] = {}
        for row in group:
            by = row.outcome.by or row.outcome.state
            who[by] = who.get(by, 0) + 1
        table.append(
            {
                "fault": name or "none",
                "requests": len(group),
                "ended by": ", ".join(f"{by} {count}" for by, count in sorted(who.items())),
                "right": f"{sum(row.right for row in answered)} of {len(answered)}",
            }
        )
    return table


def accuracy(rows: Iterable[Row], by: str = "") -> Rate:
    """Right answers among the answered.

    Args:
        rows: Of one or several storms.
        by: Only what this one answered.
    """
    answered = [r for r in rows if r.outcome.state == "answered" and by in ("", r.outcome.by)]
    return Rate(sum(row.right for row in answered), len(answered))


def audit(
    outcomes: Iterable[Outcome], tasks: Iterable[Mapping[str, Any]], known: Iterable[int] = ()
) -> tuple[list[int], list[int]]:
    """Whether the store holds what was told: tasks that are lost, and tasks that are doubled.

    Args:
        outcomes: How all requests ended, in order; repeated ones and those of the outbox included.
            What has the same key is the same request.
        tasks: What the store holds now.
        known: Ids that were there before.

    Returns:
        Ids of tasks whose creation was told and that are gone without a deletion, and ids of
        doubled ones: their creation was not told to anybody, or a request that had made a task
        already made another one when it was repeated.
    """
    made: set[int] = set()
    deleted: set[int] = set()
    again: set[int] = set()
    first: dict[str, set[int]] = {}  # what a request made when it first made anything
    for outcome in outcomes:
        mine = created(outcome)
        made |= mine
        deleted |= _ids(outcome, "delete_task")
        if outcome.key and mine:
            again |= mine - first.setdefault(outcome.key, mine)
    there = {task["task_id"] for task in tasks}
    return sorted(made - there - deleted), sorted((there - made - set(known)) | again)


def created(outcome: Outcome) -> set[int]:
    """Ids of the tasks that a request is said to have made."""
    return _ids(outcome, "create_task")


def _ids(outcome: Outcome, tool: str) -> set[int]:
    return {
        number
        for (name, _), result in zip(outcome.calls, outcome.results, strict=True)
        if name == tool and (number := json.loads(result).get("task_id")) is not None
    }


# --- pictures --------------------------------------------------------------------------------

# Distinguishable with every kind of colour vision (Okabe and Ito, 2008), and by their hatch.
_LOOKS = {
    "answered": ("#0072b2", ""),
    "answered after a fallback": ("#56b4e9", "\\\\"),
    "failed": ("#d55e00", "////"),
    "waiting": ("#999999", "...."),
    "told": ("#cc79a7", "xxxx"),
}


def timeline(traces: Sequence[Trace], labels: Sequence[str] | None = None) -> tuple[Figure, str]:
    """Each request as a line of its attempts, on a common clock that begins with the request.

    Args:
        traces: From top to bottom.
        labels: What to call them; what the person said by default.

    Returns:
        The figure and its description, which names the decisions and no times.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    fig = Figure(figsize=(8.5, 1.2 + 0.42 * len(traces)), layout="constrained")
    ax = fig.subplots()
    deadline = max((trace.deadline for trace in traces), default=1.0)
    axis = 1.6 * deadline
    least = axis / 100  # a narrower bar could not be seen
    for place, trace in enumerate(traces):
        end = 0.0
        for attempt in trace.attempts:
            colour, hatch = _LOOKS[_look(attempt)]
            left, width = max(attempt.began, end), max(attempt.seconds, least)
            ax.barh(place, width, left=left, height=0.55, color=colour, hatch=hatch,
                    edgecolor="white")  # fmt: skip
            end = left + width
        ax.text(end + least / 2, place, _brief(trace.line()), va="center", fontsize=7)
    ax.axvline(deadline, color="black", linestyle="--", linewidth=1)
    ax.text(deadline, -0.7, "deadline", ha="right", fontsize=8)
    labels = labels or [trace.request[:34] for trace in traces]
    ax.set_yticks(range(len(traces)), labels, fontsize=8)
    ax.set_xlim(0, axis)
    ax.set_ylim(len(traces) - 0.4, -1.1)
    ax.set_xlabel("seconds since the request")
    used = Counter(_look(attempt) for trace in traces for attempt in trace.attempts)
    ax.legend(
        handles=[
            Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name)
            for name, (colour, hatch) in _LOOKS.items()
            if name in used
        ],
        loc="upper right", frameon=False, fontsize=8,
    )  # fmt: skip
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    tries = Counter(len(trace.attempts) for trace in traces)
    told = ", ".join(f"{n} with {_times(k)}" for k, n in sorted(tries.items()))
    passed = used["answered after a fallback"]
    behind = f"{passed} answered after a fallback of the proxy and hatched; " if passed else ""
    return fig, (
        f"Timeline of {len(traces)} requests, one bar for each attempt, {used['failed']} of them "
        f"failed and hatched; {behind}{told}; a dashed line at the deadline."
    )


def _look(attempt: Attempt) -> str:
    behind = attempt.outcome == "answered" and attempt.fallbacks
    return "answered after a fallback" if behind else attempt.outcome


def _times(count: int) -> str:
    return f"{count} attempt{'s' if count != 1 else ''}"


def _brief(line: str, width: int = 60) -> str:
    """A line of decisions that fits before the deadline; the last of them stays whole."""
    if len(line) <= width:
        return line
    before, arrow, last = line.rpartition(" → ")
    if not arrow:
        return line[: width - 1] + "…"
    return before[: max(width - len(arrow + last) - 1, 0)] + "…" + arrow + last


def curves(points: Sequence[Mapping[str, float]], chosen: float) -> tuple[Figure, str]:
    """Accuracy, cost and latency against the threshold of a cascade, with one threshold marked.

    Args:
        points: Each with ``threshold``, ``accuracy`` (0 to 1), ``cost`` and ``ms``.
        chosen: The threshold to mark.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9.5, 3.2), layout="constrained")
    panels = (
        ("accuracy", "right, in %", 100, "o"),
        ("cost", "cost of a request", 1, "s"),
        ("ms", "mean latency, in ms", 1, "^"),
    )
    thresholds = [point["threshold"] for point in points]
    for ax, (key, label, factor, marker) in zip(fig.subplots(1, 3), panels, strict=True):
        ax.plot(thresholds, [factor * p[key] for p in points], marker=marker, color="#0072b2")
        ax.axvline(chosen, color="#d55e00", linestyle="--")
        ax.set_xlabel("threshold")
        ax.set_ylabel(label)
        ax.set_ylim(0, (100 if key == "accuracy" else max(p[key] for p in points)) * 1.05)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    alt = (
        "Three curves against the threshold below which the better model is asked: accuracy, cost "
        f"and latency, with a dashed line at {chosen:g}. Cost and latency rise with the threshold."
    )
    return fig, alt


def explore(points: Sequence[Mapping[str, float]], chosen: float) -> Any:
    """A slider over the thresholds of a cascade, with the curves below it.

    Args:
        points: See :func:`curves`.
        chosen: The threshold at which the slider begins.
    """
    import ipywidgets as widgets

    slider = widgets.SelectionSlider(
        options=[point["threshold"] for point in points], value=chosen, description="threshold"
    )
    screen = widgets.HTML()

    def redraw(change: object = None) -> None:
        screen.value = as_svg(*curves(points, slider.value))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, screen])


def as_svg(fig: Figure, alt: str) -> str:
    """A figure as SVG with its description as title, for a widget."""
    import io

    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "course"}):
        fig.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg ") :]
    start = svg.index(">")
    title = f' role="img"><title>{html.escape(alt, quote=False)}</title>'
    return svg[:start] + title + svg[start + 1 :]


# --- the switchboard -----------------------------------------------------------------------------


class Switchboard:
    """Switches for faults, and requests that run while they are turned.

    Args:
        handle: What ends a request.
        faults: What the switches turn.
        cases: The requests, over and over.
        pause: Seconds between two requests, for the eye.
    """

    def __init__(
        self, handle: Handle, faults: FaultProxy, cases: Sequence[Case], pause: float = 0.4
    ) -> None:
        import ipywidgets as widgets

        self.handle, self.faults, self.cases, self.pause = handle, faults, cases, pause
        self.rows: list[Row] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        wide = widgets.Layout(width="44em")
        self._fault = widgets.ToggleButtons(
            options=["no fault", *FAULTS], description="The model:", layout=wide,
            style={"button_width": "8em"},
        )  # fmt: skip
        self._run = widgets.ToggleButton(description="Send requests", icon="play")
        self._screen = widgets.HTML("Press <b>Send requests</b>, then turn the switches.")
        self._fault.observe(self._turn, "value")
        self._run.observe(self._start_or_stop, "value")
        self.widget = widgets.VBox([self._fault, self._run, self._screen])

    def play(self, faults: Sequence[str | None], each: int = 2) -> list[Row]:
        """The switches turned by a script, without a screen.

        Args:
            faults: One after another; None: no fault.
            each: For how many requests.
        """
        turns = {
            n * each: lambda name=name: self.faults.switch(name) for n, name in enumerate(faults)
        }
        try:
            return play(self.handle, self.cases[: each * len(faults)], self.faults, turns)
        finally:
            self.faults.switch(None)

    def stop(self) -> None:
        """No more requests, no more faults."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)
            self._thread = None
        self.faults.switch(None)

    def _turn(self, change: Mapping[str, Any]) -> None:
        name = change["new"]
        self.faults.switch(None if name == "no fault" else name)

    def _start_or_stop(self, change: Mapping[str, Any]) -> None:
        if not change["new"]:
            self._stop.set()
            return
        self.stop()
        self.faults.switch(None if self._fault.value == "no fault" else self._fault.value)
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="switchboard", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        round = 0
        while not self._stop.is_set():
            for case in self.cases:
                if self._stop.is_set():
                    return
                # Keys of this round: a new request each time, not a retry of the last one.
                again: Handle = lambda prompt, key, n=round: self.handle(prompt, f"{key} {n}")  # noqa: E731
                try:
                    self.rows += play(again, [case], self.faults)
                except Exception as error:
                    said = html.escape(f"{type(error).__name__}: {error}")
                    self._screen.value = f"<pre>{said}</pre>"
                    return
                self._screen.value = drawn(self.rows[-14:])
                self._stop.wait(self.pause)
            round += 1


_MARKS = {"answered": "✓", "waiting": "…", "told": "✗"}


def drawn(rows: Sequence[Row]) -> str:
    """The last requests as a table in HTML, newest first."""
    lines = ["<table><caption>The last requests, newest first</caption><tr>"]
    lines += [f"<th scope='col'>{h}</th>" for h in ("", "request", "struck by", "ended by", "s")]
    lines.append("</tr>")
    for row in reversed(rows):
        mark = _MARKS[row.outcome.state]
        if row.outcome.state == "answered" and not row.right:
            mark = "wrong"
        by = row.outcome.by or row.outcome.state
        cells = (mark, prompt_of(row.case), ", ".join(row.faults) or "-", by, f"{row.seconds:.1f}")
        lines.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return "".join([*lines, "</table>"])
