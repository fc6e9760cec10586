"""The whole stack under a storm: both models, LiteLLM between, faults by lot, processes killed.

What L06 builds step by step is put to the test here, with real processes: ``python3 -m helpers
bench --storm`` plays it and prints what came of it, and ``tests/test_storm.py`` holds it against
what was promised.

A storm is fair to the models: an answer counts against resilience when it was lost, late or done
twice, and against the model when the model gets it wrong without any storm as well. So every
request is first asked of both models in calm weather.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .evaluation import Case, Rate
from .faults import FAULTS, FaultProxy
from .resilience import REASONS, Assistant, Outbox, Outcome, Spare, meaning, model_ask
from .settings import MINI, MODEL, Settings
from .storm import Handle, Row, audit, created, is_right, play, prompt_of, workload

LIMIT = 1.0  # seconds that LiteLLM gives a model at least; a busy machine gets more, see Stack
REQUESTS = 500
DISTINCT = 96  # requests of different words; then they come again, as new requests
SHARE = 0.3
EVERY = 9  # each ninth request is sent a second time; odd, or no kind that creates comes up


# --- the stack ---------------------------------------------------------------------------------


class Stack:
    """Both models, a fault proxy before the better one, and a LiteLLM proxy, all of one's own.

    Args:
        folder: For the configuration and the logs.

    Attributes:
        limit: Seconds that LiteLLM gives a model: twenty times what an answer takes here, between
            1 and 4.
        patience: Of the application with LiteLLM, which may need its limit twice.
        deadline: For a request; enough for three who are asked one after another.
        backend: The main model's process.
        faults: What stands between LiteLLM and the main model.
        proxy: LiteLLM; it falls back to the spare by itself.
        spare: The fallback, in a process of its own.
        main: The main model as a function, without anything between.
        struck: The same through the fault proxy.
        through: LiteLLM as a function.
    """

    def __init__(self, folder: Path) -> None:
        import yaml

        from .backend import serve
        from .clients import openai_client
        from .proxy import start_proxy

        self.folder = folder
        self._open = ExitStack()
        try:
            self.backend = serve(MODEL, log=folder / "backend.log")
            self._open.callback(lambda: self.backend.stop())
            self.faults = self._open.enter_context(FaultProxy(self.backend.url))
            # Whatever the environment allows: a storm must not cost anybody money.
            self.spare = Spare(Settings())
            self._open.callback(self.spare.stop)
            direct = openai_client(direct=True, base_url=f"{self.backend.url}/v1", api_key="none")
            self._open.enter_context(direct)
            self.main = model_ask(direct, MODEL)
            self.limit = self._measured()
            self.patience = 2 * self.limit + 0.5
            self.deadline = 3 * self.patience + 1
            self._file = folder / "config.yaml"
            self._file.write_text(yaml.safe_dump(self._config()), encoding="utf-8")
            self.proxy = start_proxy(self._file, log=folder / "proxy.log")
            self._open.callback(lambda: self.proxy.stop())
            self.struck = model_ask(direct.with_options(base_url=self.faults.url), MODEL)
            client = openai_client(
                direct=True, base_url=f"{self.proxy.url}/v1", api_key=self.proxy.key
            )
            self._open.enter_context(client)
            self.through = model_ask(client, MODEL, extra_body=REASONS)
        except BaseException:
            self._open.close()
            raise

    def _measured(self) -> float:
        from .tasks import tool_schemas

        took = []
        for _ in range(5):
            began = time.perf_counter()
            self.main("Finish task 14", tool_schemas(), 60)
            took.append(time.perf_counter() - began)
        return min(4.0, max(LIMIT, 20 * statistics.median(took)))

    def _config(self) -> dict[str, Any]:
        def deployment(name: str, where: dict[str, str]) -> dict[str, Any]:
            limits = {"timeout": self.limit, "stream_timeout": self.limit}
            return {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}", **where, **limits},
                "model_info": {"id": name},
            }

        broken = {"api_base": self.faults.url, "api_key": "none"}
        return {
            "model_list": [deployment(MODEL, broken), deployment(MINI, self.spare.where)],
            "router_settings": {
                "num_retries": 0,
                "disable_cooldowns": True,  # or a storm of 30 % never reaches the main model
                "fallbacks": [{MODEL: [MINI]}],
            },
            "general_settings": {
                "expose_fallback_errors_to_caller": True,
                "master_key": "os.environ/LITELLM_MASTER_KEY",
                "custom_auth": "helpers.proxy.user_api_key_auth",
                "disable_model_info_refresh": True,
            },
        }

    def wait(self, timeout: float = 300) -> None:
        """Until LiteLLM answers."""
        from .proxy import wait_ready

        wait_ready(self.proxy, timeout)

    def assistant(self, store: Any, outbox: Outbox | None) -> Assistant:
        """Who ends every request: LiteLLM; else the main model on the direct way; else the spare.

        The direct way is for LiteLLM's death, and for an answer that the checks refuse: most
        faults pass.
        """
        models = {"proxy": self.through, MODEL: self.struck, self.spare.name: self.spare.ask}
        return Assistant(models, store, outbox, patience=self.patience, deadline=self.deadline)

    def kill_backend(self) -> None:
        """End the main model's process at once, as a crash does."""
        self.backend.child.process.kill()
        self.backend.child.process.wait(30)

    def restart_backend(self) -> None:
        """Start the main model again, at the same address."""
        from .backend import serve

        port = int(self.backend.url.rpartition(":")[2])
        self.backend = serve(MODEL, port=port, log=self.folder / "backend.log")

    def kill_proxy(self) -> None:
        """End LiteLLM at once."""
        self.proxy.child.process.kill()
        self.proxy.child.process.wait(30)

    def stop(self) -> None:
        """End all of it."""
        self._open.close()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


# --- the storm ---------------------------------------------------------------------------------


@dataclass
class Report:
    """What came of a storm.

    Attributes:
        rows: One for each request.
        drained: How the requests in the outbox ended.
        waited: How many were in the outbox.
        left: How many are in it still.
        lost, doubled: Ids of tasks, see :func:`helpers.storm.audit`.
        calm: By model: which requests it gets right in calm weather, by their words.
        dark: Numbers of the requests while no model lived.
        struck: How often each fault took place.
        repeated: How many requests were sent a second time and had made a task each time.
        deadline: Seconds for each request.
    """

    rows: list[Row]
    drained: list[Outcome] = field(default_factory=list)
    waited: int = 0
    left: int = 0
    lost: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    calm: dict[str, dict[str, bool]] = field(default_factory=dict)
    dark: range = range(0)
    struck: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    deadline: float = math.inf

    def answered(self) -> Rate:
        """Requests that were answered at once, of those that came while any model lived."""
        lit = [row for number, row in enumerate(self.rows) if number not in self.dark]
        return Rate(sum(row.outcome.state == "answered" for row in lit), len(lit))

    def late(self) -> list[Row]:
        """Requests that ended after their deadline."""
        return [row for row in self.rows if row.seconds > self.deadline]

    def by(self) -> dict[str, int]:
        """How many requests each model, the rules, and the outbox ended."""
        return dict(Counter(row.outcome.by or row.outcome.state for row in self.rows))

    def accuracy(self, model: str) -> tuple[Rate, Rate]:
        """Of what a model answered in the storm, apart from wrong but valid calls: how much was
        right, and how much of the same requests it gets right in calm weather."""
        mine = [row for row in self.rows if row.outcome.by == model and not row.wrong_calls]
        calm = self.calm[model]
        return (
            Rate(sum(row.right for row in mine), len(mine)),
            Rate(sum(calm[prompt_of(row.case)] for row in mine), len(mine)),
        )

    def detected(self) -> Rate:
        """Wrong but valid calls that were not carried out."""
        changed = [row for row in self.rows if row.wrong_calls]
        return Rate(sum(not row.fooled for row in changed), len(changed))


def endure(
    folder: Path,
    requests: int = REQUESTS,
    seed: int = 7,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Play a storm and see what came of it.

    In tenths of the requests: after two the backend is killed, after three the spare as well, so
    that no model lives; half a tenth later both are back. After nine LiteLLM is killed, and stays
    away. Faults strike all the time.

    Args:
        folder: For the tasks, the outbox and the logs.
        requests: How many.
        seed: Of the lots.
        say: Called with a line for each step.
    """
    from .tasks import TaskStore, tool_schemas

    with Stack(folder) as stack, TaskStore(folder / "tasks.db") as store:
        with Outbox(folder / "outbox.db") as outbox:
            say("both models in calm weather …")
            kinds = workload(min(requests, DISTINCT), seed)
            tools = tool_schemas()
            report = Report([], deadline=stack.deadline)
            for name, ask in ((MODEL, stack.main), (MINI, stack.spare.ask)):
                report.calm[name] = {
                    prompt_of(case): _right(case, ask(prompt_of(case), tools, 60)) for case in kinds
                }
            for number in range(1, 41):
                store.create(f"old task {number}")
            known = [task["task_id"] for task in store.list()["tasks"]]
            stack.wait()
            say(f"{requests} requests, {SHARE:.0%} of them struck …")
            tenth = requests // 10
            report.dark = range(3 * tenth, 3 * tenth + tenth // 2)
            assistant = stack.assistant(store, outbox)
            seen: list[Outcome] = []
            stack.faults.storm(SHARE, seed)
            report.rows = play(
                repeating(assistant.handle, seen),
                numbered(kinds, requests),
                stack.faults,
                {
                    2 * tenth: stack.kill_backend,
                    report.dark.start: stack.spare.kill,
                    report.dark.stop: lambda: (stack.spare.restart(), stack.restart_backend()),
                    9 * tenth: stack.kill_proxy,
                },
            )
            report.struck = stack.faults.counts()
            stack.faults.storm(0)
            say("the outbox …")
            report.waited = len(outbox.waiting())
            report.drained = assistant.drain()
            report.left = len(outbox.waiting())
            tasks = store.list()["tasks"]
            report.lost, report.doubled = audit([*seen, *report.drained], tasks, known)
            makers = Counter(outcome.key for outcome in seen if created(outcome))
            report.repeated = sum(count > 1 for count in makers.values())
    return report


def repeating(handle: Handle, seen: list[Outcome]) -> Handle:
    """Send each ninth request a second time under the same key, as if its answer had been lost.

    Args:
        handle: What ends a request.
        seen: Gets every outcome, in order.
    """

    def twice(prompt: str, key: str) -> Outcome:
        outcome = handle(prompt, key)
        seen.append(outcome)
        if int(key.rpartition("-")[2]) % EVERY == 0:
            seen.append(handle(prompt, key))
        return outcome

    return twice


def numbered(cases: Sequence[Case], count: int) -> list[Case]:
    """Requests over and over, each under an id of its own that ends in its number from 1."""
    return [
        replace(cases[n % len(cases)], id=f"{cases[n % len(cases)].id}-{n + 1}")
        for n in range(count)
    ]


def _right(case: Case, reply: Any) -> bool:
    from .evaluation import score

    return bool(score(case, reply))


def rows(report: Report) -> Iterator[tuple[str, str]]:
    """The figures as lines of a table: what, how much."""
    seconds = sorted(row.seconds for row in report.rows)
    yield "requests", str(len(seconds))
    yield "struck by a fault", f"{sum(bool(row.faults) for row in report.rows)}"
    for name in FAULTS:
        # By lot a port cannot be closed: the connection is reset before an answer begins.
        yield f"  {name}{' (as a reset)' * (name == 'refuse')}", str(report.struck.get(name, 0))
    for who, count in sorted(report.by().items()):
        yield f"ended by {who}", str(count)
    yield "answered while a model lived", _counted(report.answered())
    for model in report.calm:
        storm, calm = report.accuracy(model)
        yield f"right, of the answers of {model}", _counted(storm)
        yield "  the same requests in calm weather", _counted(calm)
    yield "wrong but valid calls, not carried out", _counted(report.detected())
    middle, late = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.95)]
    yield "half of the requests ended within", f"{middle * 1e3:.0f} ms"
    yield "95 % of them within", f"{late * 1e3:.0f} ms"
    yield f"the last of them within (deadline {report.deadline:.1f} s)", f"{seconds[-1]:.2f} s"
    yield "waited in the outbox / left in it", f"{report.waited} / {report.left}"
    ends = Counter(outcome.state for outcome in report.drained)
    yield "  done, or asked back", f"{ends['answered']}, {ends['told']}"
    yield "creations sent a second time", str(report.repeated)
    yield "tasks lost / doubled", f"{len(report.lost)} / {len(report.doubled)}"


def _counted(rate: Rate) -> str:
    return f"{rate.correct} of {rate.n} ({rate.rate:.1%})" if rate.n else "0 of 0"


# --- two figures for the bench -----------------------------------------------------------------


def time_to_answer(stack: Stack) -> float:
    """Seconds from the death of the backend to the first correct answer; starts it again after.

    The request is one that the spare gets right, so that what is measured is the way to it.
    """
    from .tasks import TaskStore, tool_schemas

    tools = tool_schemas()
    spare_can = (c for c in workload(40) if _right(c, stack.spare.ask(prompt_of(c), tools, 60)))
    case = next(spare_can, None)
    if case is None:
        raise RuntimeError("The spare gets no request right; there is nothing to wait for.")
    with TaskStore() as store:
        assistant = stack.assistant(store, None)
        assistant.rules = lambda prompt: None  # a model shall answer
        assistant.handle(prompt_of(case), "before")
        stack.kill_backend()
        began = time.perf_counter()
        for attempt in range(20):
            outcome = assistant.handle(prompt_of(case), f"after {attempt}")
            if is_right(case, outcome):
                break
        else:
            raise RuntimeError("Nobody gave a correct answer, though the spare can.")
        took = time.perf_counter() - began
    stack.restart_backend()
    return took


def overhead(stack: Stack, pairs: int) -> tuple[list[float], list[float]]:
    """The same request bare and through the resilient client, in turns; no faults.

    Both ask the main model directly, so what differs is traces, validation, checks and the
    decision, and nothing of the way.

    Returns:
        Seconds of each, bare and resilient.
    """
    from .tasks import TaskStore, tool_schemas

    prompt, tools = "Finish task 14", tool_schemas()
    models = {MODEL: stack.main, MINI: stack.spare.ask}
    assistant = Assistant(
        models, TaskStore(), patience=stack.patience, deadline=stack.deadline, checks=meaning
    )
    bare: list[float] = []
    resilient: list[float] = []
    ways: list[tuple[list[float], Callable[[], Any]]] = [
        (bare, lambda: stack.main(prompt, tools, stack.patience)),
        (resilient, lambda: assistant.ask(prompt)),
    ]
    for number in range(pairs + 5):
        for times, way in ways if number % 2 else ways[::-1]:
            began = time.perf_counter()
            way()
            if number >= 5:  # the first ones warm up
                times.append(time.perf_counter() - began)
    return bare, resilient


def measure(pairs: int, kills: int = 3) -> dict[str, Any]:
    """Both figures, in a stack of their own.

    Args:
        pairs: How many pairs of requests, bare and resilient.
        kills: How often the backend is killed.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        bare, resilient = overhead(stack, pairs)
        stack.wait()
        died = [time_to_answer(stack) for _ in range(kills)]
    more = statistics.median(r - b for b, r in zip(bare, resilient, strict=True))
    return {
        "bare_ms": round(statistics.median(bare) * 1e3, 2),
        "resilient_ms": round(statistics.median(resilient) * 1e3, 2),
        "overhead_ms": round(more * 1e3, 2),
        "pairs": len(bare),
        "after_a_kill_s": [round(seconds, 3) for seconds in died],
    }
