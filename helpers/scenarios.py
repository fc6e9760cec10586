"""Whole conversations, judged by the task store that they end in: ``evaluate scenarios``.

``model/evaluation/scenarios.jsonl`` holds 200 scenarios, 40 each of one to five turns, written
by hand before any of the model's training data was read, and never changed since. A *scenario*
is one line of JSON:

* ``id``: number of turns and position, ``"3-07"``.
* ``today``: the date that the store takes for today.
* ``start``: the tasks at the beginning, each with ``title``, ``priority``, ``status`` and
  ``due`` (a date or null). The store numbers them 1, 2, 3…
* ``turns``: what the person says, one text after another, whatever the agent does.
* ``expect``: the tasks at the end, all of them and no others; each with the accepted values of
  ``title``, ``priority``, ``status`` and ``due``. A task of the beginning has its ``task_id``;
  one without was made on the way, and its number does not matter.
* ``calls``: for each turn, calls that lead there: the proof that the scenario can be solved.
  Another way to the same end is as good.
* ``dues``: the words for dates in ``calls``, and the date that each must mean.

``scenarios_dev.jsonl`` holds 60 more, in which the agent's author looked for what plain code
could know. The others are by people who had seen the tools only: ``scenarios_dev2.jsonl`` 75,
``scenarios_dev3.jsonl`` and ``scenarios_dev4.jsonl`` 200 each, ``scenarios_dev5.jsonl`` 100; the
authors of the last two were asked for reports in words of their own. These five are there to be
read and to measure changes with. Whoever mends the agent looks at counts only of the frozen set:
``--failures 0``.

The state counts, not the words: a scenario is right when every expected task is there with
accepted values, and no other. Titles are folded as in :func:`helpers.evaluation.fold`.

Examples:
    >>> wanted = [Expected(1, ("Buy milk",), ("medium",), ("completed",), (None,))]
    >>> differences(wanted, [{"task_id": 1, "title": "buy the milk", "priority": "medium",
    ...                       "status": "pending", "due": None}], started=1)
    ['task 1: status is pending, not completed']
"""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, get_args

from . import plots
from .evaluation import SETS, Rate, _match, load_cases, same
from .notebooks import unrecorded
from .settings import MODEL, CourseError
from .tasks import Priority, Status, TaskStore, call_tool

if TYPE_CHECKING:
    from argparse import Namespace

NAME = "scenarios"
NAMES = (
    NAME,
    "scenarios_dev",
    "scenarios_dev2",
    "scenarios_dev3",
    "scenarios_dev4",
    "scenarios_dev5",
)  # frozen, and to be read
FIELDS = ("title", "priority", "status", "due")
PATIENCE = 120.0  # seconds for a turn; agents give up earlier


# --- scenarios -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """A task as it must be at the end: its id, if the beginning had it, and accepted values."""

    task_id: int | None
    title: tuple[str, ...]
    priority: tuple[str, ...]
    status: tuple[str, ...]
    due: tuple[str | None, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Expected:
        """From a line of the file.

        Raises:
            ValueError: A key is unknown, or no value is accepted.
            KeyError: A key is missing.
        """
        if unknown := set(data) - {"task_id", *FIELDS}:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        for key in FIELDS:
            if not isinstance(data[key], list) or not data[key]:
                raise ValueError(f"{key} must list accepted values")
        return cls(data.get("task_id"), **{key: tuple(data[key]) for key in FIELDS})

    def wrong(self, task: Mapping[str, Any]) -> list[str]:
        """What of a task is not as it must be, as ``"status is pending, not completed"``."""
        return [
            f"{key} is {task[key]}, not {' or '.join(map(str, getattr(self, key)))}"
            for key in FIELDS
            if not any(_same(key, accepted, task[key]) for accepted in getattr(self, key))
        ]

    def __str__(self) -> str:
        return " · ".join("/".join(map(str, getattr(self, key))) for key in FIELDS)


def _same(key: str, accepted: Any, got: Any) -> bool:
    return same(key, accepted, got) if key == "title" else accepted == got


@dataclass(frozen=True)
class Scenario:
    """One conversation; see the top of this module."""

    id: str
    today: datetime.date
    start: tuple[Mapping[str, Any], ...]
    turns: tuple[str, ...]
    expect: tuple[Expected, ...]
    calls: tuple[Sequence[Mapping[str, Any]], ...] = ()
    dues: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scenario:
        """From a line of the file.

        Raises:
            ValueError: Something in it is not what the format says.
            KeyError: A key is missing.
        """
        for task in data["start"]:
            if set(task) != set(FIELDS):
                raise ValueError(f"a task of the start needs {', '.join(FIELDS)}")
            if task["priority"] not in get_args(Priority) or task["status"] not in get_args(Status):
                raise ValueError(f"the start has {task['priority']} or {task['status']}")
        if not data["turns"] or not all(isinstance(text, str) for text in data["turns"]):
            raise ValueError("turns must be texts, one at least")
        expect = tuple(Expected.from_dict(task) for task in data["expect"])
        if any(task.task_id and task.task_id > len(data["start"]) for task in expect):
            raise ValueError("an expected task has an id that the start does not have")
        return cls(
            id=data["id"],
            today=datetime.date.fromisoformat(data["today"]),
            start=tuple(data["start"]),
            turns=tuple(data["turns"]),
            expect=expect,
            calls=tuple(data.get("calls", ())),
            dues=data.get("dues", {}),
        )

    def store(self, path: str | Path = ":memory:") -> TaskStore:
        """A store with the tasks of the beginning, in which today is the scenario's day."""
        store = TaskStore(path, clock=lambda: self.today)
        for number, task in enumerate(self.start, 1):
            made = store.create(task["title"], task["priority"], task["due"])
            if made["task_id"] != number:
                raise ValueError(f"The store at {path} was not empty.")
            if task["status"] != "pending":
                store.update(number, status=task["status"])
        return store

    @property
    def idle(self) -> bool:
        """Whether doing nothing is right."""
        tasks = [{"task_id": i, **task} for i, task in enumerate(self.start, 1)]
        return not differences(self.expect, tasks, len(self.start))


def load_scenarios(path: str | Path = SETS / f"{NAME}.jsonl") -> list[Scenario]:
    """Read a file of scenarios.

    Raises:
        CourseError: There is no such file, or a line of it is not a scenario.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CourseError(
            f"There are no scenarios at {path.name}.",
            str(error),
            f"Bring the course's own back: git checkout -- model/evaluation/{NAME}.jsonl",
        ) from error
    found: list[Scenario] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            scenario = Scenario.from_dict(json.loads(line))
            if scenario.id in {other.id for other in found}:
                raise ValueError(f"the id {scenario.id} is there twice")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CourseError(
                f"Line {number} of {path.name} is not a scenario.",
                f"{type(error).__name__}: {error}",
                "The format is described at the top of helpers/scenarios.py.",
            ) from error
        found.append(scenario)
    return found


# --- comparing -----------------------------------------------------------------------------


def differences(
    expect: Sequence[Expected], tasks: Sequence[Mapping[str, Any]], started: int
) -> list[str]:
    """How the tasks at the end differ from what is expected; nothing when they are right.

    Args:
        expect: What must be there.
        tasks: What is there.
        started: How many tasks there were at the beginning; higher ids were made on the way.
    """

    def may_be(wanted: Expected, task: Mapping[str, Any]) -> bool:
        if wanted.task_id is None:
            return task["task_id"] > started
        return wanted.task_id == task["task_id"]

    edges = [
        {j for j, task in enumerate(tasks) if may_be(wanted, task) and not wanted.wrong(task)}
        for wanted in expect
    ]
    found = _match(edges)
    left = {j: task for j, task in enumerate(tasks) if j not in found.values()}
    problems = []
    for i, wanted in enumerate(expect):
        if i in found:
            continue
        # Which task was to be this one: the one with its id, or the one most like it.
        near = [(len(wanted.wrong(task)), j) for j, task in left.items() if may_be(wanted, task)]
        count, j = min(near, default=(len(FIELDS), -1))
        if count < len(FIELDS) - 1 or (wanted.task_id and j >= 0):
            task = left.pop(j)
            problems.append(f"task {task['task_id']}: {'; '.join(wanted.wrong(task))}")
        else:
            name = f"task {wanted.task_id}" if wanted.task_id else "a new task"
            problems.append(f"{name} is missing: {wanted}")
    for task in left.values():
        values = " · ".join(str(task[key]) for key in FIELDS)
        problems.append(f"task {task['task_id']} must not be there: {values}")
    return problems


# --- running -------------------------------------------------------------------------------


class Agent(Protocol):
    """Anything that does what a person says. What ``turn`` returns is only kept."""

    async def turn(self, text: str) -> Any: ...


# Opens a conversation about a scenario's store.
Open = Callable[[TaskStore, Scenario], AbstractAsyncContextManager[Agent]]


@dataclass(frozen=True)
class Said:
    """One turn: what the person said, what the agent did and answered, and what it raised."""

    request: str
    calls: tuple[str, ...] = ()
    text: str = ""
    by: str = ""
    error: str = ""

    def __str__(self) -> str:
        did = "; ".join(self.calls) or "no call"
        return f"{self.request!r} -> {self.error or did}"


@dataclass(frozen=True)
class Result:
    """One scenario, played.

    Attributes:
        scenario: Which.
        turns: What happened in each turn.
        tasks: The store at the end.
        differences: From the expected end; none when it is right.
    """

    scenario: Scenario
    turns: tuple[Said, ...]
    tasks: tuple[Mapping[str, Any], ...]
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """The store is as it must be, and no turn raised anything."""
        return not self.differences and not any(said.error for said in self.turns)

    @property
    def lost(self) -> tuple[int, ...]:
        """Tasks of the beginning that are gone and must not be."""
        there = {task["task_id"] for task in self.tasks}
        wanted = {task.task_id for task in self.scenario.expect if task.task_id}
        return tuple(sorted(wanted - there))

    def __str__(self) -> str:
        lines = [f"- {self.scenario.id}", *map(str, self.turns), *self.differences]
        return "\n  ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.scenario.id,
            "ok": self.ok,
            "turns": [vars(said) | {"calls": list(said.calls)} for said in self.turns],
            "tasks": [dict(task) for task in self.tasks],
            "differences": list(self.differences),
        }


async def run(
    scenarios: Iterable[Scenario],
    open_agent: Open,
    *,
    name: str = "",
    single: Rate | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EndStates:
    """Play scenarios one after another, each with a store of its own.

    Args:
        scenarios: Which.
        open_agent: Opens a conversation; a :class:`helpers.agent.core.TaskAgent`, for example.
        name: Of what is measured, for the report.
        single: How often a single call is right, for the prediction.
        folder: Where stores are put as files, ``ID/tasks.sqlite``, for an agent that opens
            them itself; by default they are in memory.
        progress: Called with the number played and the number of all.
    """
    scenarios = list(scenarios)
    results = []
    for scenario in scenarios:
        path = folder / scenario.id / "tasks.sqlite" if folder else ":memory:"
        with scenario.store(path) as store, unrecorded():
            results.append(await _play(scenario, store, open_agent))
        if progress:
            progress(len(results), len(scenarios))
    return EndStates(results, name, single)


def of(service: Any) -> Open:
    """Opens a conversation with the agent of a service: its models and parts, another store.

    Args:
        service: A :class:`helpers.agent.service.Service`.
    """
    from .agent.core import TaskAgent

    parts = service.parts
    return lambda store, scenario: TaskAgent(
        store, scenario.id, models=service.models, input_problem=parts.input_problem,
        call_checks=parts.call_checks, fit=parts.fit,
    )  # fmt: skip


async def _play(scenario: Scenario, store: TaskStore, open_agent: Open) -> Result:
    said = []
    async with open_agent(store, scenario) as agent:
        for text in scenario.turns:
            try:
                async with asyncio.timeout(PATIENCE):
                    said.append(_said(text, await agent.turn(text)))
            except Exception as error:  # a person would see it, and go on
                said.append(Said(text, error=f"{type(error).__name__}: {error}"))
    tasks = store.list()["tasks"]
    found = differences(scenario.expect, tasks, len(scenario.start))
    return Result(scenario, tuple(said), tuple(tasks), tuple(found))


def _said(request: str, turn: Any) -> Said:
    calls = getattr(turn, "calls", None) or []
    return Said(
        request,
        calls=tuple(_call(call) for call in calls),
        text=str(getattr(turn, "text", turn if isinstance(turn, str) else "")),
        by=str(getattr(turn, "by", "")),
    )


def _call(call: Any) -> str:
    if not isinstance(call, Mapping):
        return str(call)
    given = call.get("arguments") or {}
    shown = (
        ", ".join(f"{key}={value!r}" for key, value in given.items())
        if isinstance(given, Mapping)
        else str(given)
    )
    refused = "" if call.get("done", True) else " refused"
    return f"{call['name']}({shown}){refused}"


class Reference:
    """The agent that makes a scenario's own calls: it must be right everywhere."""

    def __init__(self, store: TaskStore, scenario: Scenario) -> None:
        self.store, self.calls = store, iter(scenario.calls)

    async def __aenter__(self) -> Reference:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def turn(self, text: str) -> str:
        """Make the calls of the next turn."""
        return " ".join(
            call_tool(self.store, call["name"], call["args"]) for call in next(self.calls)
        )


# --- the report ----------------------------------------------------------------------------


@dataclass(frozen=True)
class EndStates:
    """The results of some scenarios.

    Attributes:
        results: In the order of the scenarios.
        name: Of what was measured.
        single: How often a single call of the model is right. If every turn were one call and
            all were independent, a scenario of n turns would be right ``single ** n`` times.
    """

    results: Sequence[Result]
    name: str = ""
    single: Rate | None = None

    @property
    def overall(self) -> Rate:
        """Right end states of all."""
        return self._rate(self.results)

    @property
    def by_turns(self) -> dict[int, Rate]:
        """Right end states by number of turns."""
        groups: dict[int, list[Result]] = {}
        for result in self.results:
            groups.setdefault(len(result.scenario.turns), []).append(result)
        return {turns: self._rate(groups[turns]) for turns in sorted(groups)}

    @property
    def idle(self) -> Rate:
        """How many would be right if nothing were done: what the rest must be seen against."""
        return Rate(sum(r.scenario.idle for r in self.results), len(self.results))

    @property
    def lost(self) -> Rate:
        """Scenarios that lost a task which must be there; ``correct`` counts them: 0 is right."""
        return Rate(sum(bool(r.lost) for r in self.results), len(self.results))

    @property
    def failures(self) -> list[Result]:
        """The wrong ones."""
        return [result for result in self.results if not result.ok]

    def predicted(self, turns: int | None = None) -> float | None:
        """``single ** turns``, or its mean over all scenarios; None without ``single``."""
        if self.single is None or not self.results:
            return None
        counts = [turns] if turns else [len(r.scenario.turns) for r in self.results]
        return sum(self.single.rate**count for count in counts) / len(counts)

    @staticmethod
    def _rate(results: Sequence[Result]) -> Rate:
        return Rate(sum(result.ok for result in results), len(results))

    def table(self, failures: int = 0) -> str:
        """Markdown: counts, rates and intervals by number of turns, and the prediction.

        Args:
            failures: How many failures to list below the table.
        """
        head = ["turns", "n", "right", "rate", "95 % interval"]
        rows: list[list[str]] = [head, ["---:"] * len(head)]
        rows += [[str(turns), *rate.cells()] for turns, rate in self.by_turns.items()]
        rows.append(["**all**", *self.overall.cells()])
        if self.single:
            rows[0] = [*rows[0], "predicted", "at least that"]
            rows[1] = [*rows[1], "---:", "---"]
            for i, (turns, rate) in enumerate([*self.by_turns.items(), (None, self.overall)], 2):
                predicted = self.predicted(turns) or 0.0
                rows[i] = [*rows[i], f"{100 * predicted:.1f} %", _verdict(rate, predicted)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        if self.single:
            part = f"{self.single.correct} of {self.single.n}"
            lines += ["", f"Predicted: (single calls right, {part}) to the power of the turns."]
        lines += [
            "",
            f"Right if nothing were done: {self.idle.correct}. "
            f"A task lost that must be there: in {self.lost.correct}.",
        ]
        for result in self.failures[:failures]:
            lines += ["", str(result)]
        if left := len(self.failures[failures:]) if failures else 0:
            lines += ["", f"{left} more failures; --failures shows more."]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

        def figures(turns: int | None, rate: Rate) -> dict[str, Any]:
            data = rate.to_dict()
            predicted = self.predicted(turns)
            if predicted is not None:
                data["predicted"] = round(predicted, 4)
                data["at_least_predicted"] = rate.rate >= predicted
                data["below_by_more_than_chance"] = rate.interval[1] < predicted
            return data

        return {
            "name": self.name,
            "single": self.single.to_dict() if self.single else None,
            "overall": figures(None, self.overall),
            "by_turns": {str(turns): figures(turns, r) for turns, r in self.by_turns.items()},
            "right_if_nothing_were_done": self.idle.correct,
            "lost": self.lost.correct,
            "failures": [result.to_dict() for result in self.failures],
        }


def _verdict(rate: Rate, predicted: float) -> str:
    if rate.rate >= predicted:
        return "yes"
    return "no, by chance perhaps" if rate.interval[1] >= predicted else "no"


# --- the command ---------------------------------------------------------------------------


def single_rate(path: Path) -> Rate:
    """How often single calls are right, from a report that ``evaluate --json`` wrote.

    Raises:
        CourseError: The file is not such a report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if "surface" in report:
            raise ValueError("it is one of whole conversations")
        return Rate(int(report["overall"]["correct"]), int(report["overall"]["n"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        new = "single.json" if path.exists() else path  # what is there is not to be written over
        raise CourseError(
            f"{path.name} is not a report of single calls.",
            f"{type(error).__name__}: {error}",
            f"Write one: python3 -m helpers evaluate test --json {new}",
        ) from error


def main(args: Namespace) -> None:
    """Measure the agent on the course's scenarios, on a backend of its own.

    Args:
        args: ``model``, ``single``, ``surface``, ``failures`` and ``json`` of the command line.

    Raises:
        CourseError: Options that say nothing here, or files that are not there.
    """
    if args.schema or args.free or args.calibrate or args.plot or args.noise is not None:
        raise CourseError(
            "Scenarios are played as they are.",
            "--schema, --noise, --free, --calibrate and --plot are for single calls.",
            f"Type: python3 -m helpers evaluate {NAME}",
        )
    if args.json:
        plots.check_folder(args.json)
    single = single_rate(args.single) if args.single else None
    scenarios = load_scenarios(SETS / f"{args.cases}.jsonl")

    from . import measure

    with measure.serve(args.model or MODEL) as server:
        if single is None:
            (report,) = measure.measure(load_cases("test"), server)
            single = report.overall
        states = asyncio.run(
            on_backend(scenarios, server.url, server.model, single, measure._count, args.surface)
        )
    print(states.table(failures=args.failures))
    if args.json:
        text = json.dumps(
            {"cases": args.cases, "surface": args.surface, **states.to_dict()},
            ensure_ascii=False,
            indent=2,
        )
        args.json.write_text(text + "\n", encoding="utf-8")


async def on_backend(
    scenarios: Iterable[Scenario],
    url: str,
    model: str = MODEL,
    single: Rate | None = None,
    progress: Callable[[int, int], None] | None = None,
    surface: str = "core",
) -> EndStates:
    """Play scenarios with the course's agent, straight on a backend.

    Args:
        scenarios: Which.
        url: Of the backend.
        model: Its model's name there.
        single: As in :func:`run`.
        progress: As in :func:`run`.
        surface: How the agent is reached: one of :data:`SURFACES`.
    """
    from .agent.models import Preferred, remote

    url = f"{url.removesuffix('/v1')}/v1"
    models = Preferred({model: remote(url, model=model)})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        open_agent = SURFACES[surface](models, url, model, folder)
        try:
            return await run(
                scenarios, open_agent, name=f"{model}, {surface}", single=single,
                progress=progress, folder=folder if surface == "cli" else None,
            )  # fmt: skip
        finally:
            await models.close()


# --- surfaces ------------------------------------------------------------------------------


def _core(models: Any, url: str, model: str, folder: Path) -> Open:
    from .agent.core import TaskAgent

    return lambda store, scenario: TaskAgent(store, scenario.id, models=models)


def _rest(models: Any, url: str, model: str, folder: Path) -> Open:
    """Every request passes the whole application: key, limit, body, answer as JSON."""
    import httpx

    from .agent.rest import build
    from .agent.service import Config, Service

    key = "the-key-of-the-scenarios"

    @asynccontextmanager
    async def open_agent(store: TaskStore, scenario: Scenario) -> AsyncIterator[Agent]:
        config = Config(dir=folder / scenario.id, key=key)
        service = Service(config, models=models, store=store)
        web = httpx.AsyncClient(
            transport=httpx.ASGITransport(build(service)),
            base_url="http://127.0.0.1",
            headers={"X-API-Key": key},
        )

        async def turn(text: str) -> Any:
            body = {"message": text, "conversation": scenario.id}
            reply = await web.post("/chat", json=body)
            return SimpleNamespace(**reply.json())

        try:
            yield SimpleNamespace(turn=turn)
        finally:
            await web.aclose()
            service.sessions.close()
            service.outbox.close()

    return open_agent


def _cli(models: Any, url: str, model: str, folder: Path) -> Open:
    """A command for each turn; what one leaves in its files is all that the next one knows."""
    from .agent.cli import main as command

    @asynccontextmanager
    async def open_agent(store: TaskStore, scenario: Scenario) -> AsyncIterator[Agent]:
        given = {
            "AGENT_DIR": str(folder / scenario.id),  # where run put the store
            "AGENT_MODEL_URL": url,
            "AGENT_MODEL": model,
            "COURSE_TODAY": scenario.today.isoformat(),
        }

        def one(text: str) -> str:
            out = io.StringIO()
            with redirect_stdout(out):
                command(["--json", "--conversation", scenario.id, "--", text])
            return out.getvalue()

        async def turn(text: str) -> Any:
            shown = await asyncio.to_thread(one, text)  # it has an event loop of its own
            return SimpleNamespace(**json.loads(shown))

        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield SimpleNamespace(turn=turn)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    return open_agent


def _mcp(models: Any, url: str, model: str, folder: Path) -> Open:
    """``ask_agent`` for each turn, in the scenario's own conversation."""
    from . import mcp_server

    mcp_server.quiet()
    from .agent.over_mcp import add_agent
    from .agent.service import Config, Service

    @asynccontextmanager
    async def open_agent(store: TaskStore, scenario: Scenario) -> AsyncIterator[Agent]:
        server = mcp_server.build(mcp_server.Config(model_url=url, model=model), store)
        service = Service(Config(dir=folder / scenario.id), models=models, store=store)
        add_agent(server, service)
        async with mcp_server.connect(server) as client:

            async def turn(text: str) -> Any:
                result = await client.call_tool(
                    "ask_agent",
                    {"message": text, "conversation": scenario.id},
                    raise_on_error=False,
                )
                if result.is_error:  # nothing was done, and the text says why
                    return result.content[0].text
                return SimpleNamespace(**result.structured_content)

            try:
                yield SimpleNamespace(turn=turn)
            finally:
                service.sessions.close()
                service.outbox.close()

    return open_agent


def _mcp_request(models: Any, url: str, model: str, folder: Path) -> Open:
    """``handle_request`` of L05 for each turn. It has no memory: a client that talks to it is
    an agent itself, and keeps the conversation."""
    from . import mcp_server

    mcp_server.quiet()

    @asynccontextmanager
    async def open_agent(store: TaskStore, scenario: Scenario) -> AsyncIterator[Agent]:
        server = mcp_server.build(mcp_server.Config(model_url=url, model=model), store)
        async with mcp_server.connect(server) as client:

            async def turn(text: str) -> Any:
                result = await client.call_tool(
                    "handle_request", {"request": text}, raise_on_error=False
                )
                said = result.structured_content or {"summary": str(result.content), "actions": []}
                calls = [{**action, "name": action["tool"]} for action in said["actions"]]
                return SimpleNamespace(text=said["summary"], calls=calls)

            yield SimpleNamespace(turn=turn)

    return open_agent


SURFACES: Mapping[str, Callable[[Any, str, str, Path], Open]] = {
    "core": _core,
    "rest": _rest,
    "cli": _cli,
    "mcp": _mcp,
    "mcp-request": _mcp_request,
}
