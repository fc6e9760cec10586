"""Many people at once on the agent's REST surface: ``python3 -m helpers bench --load``.

Backend, LiteLLM proxy and agent are started for this measurement, as they are deployed: three
processes on 127.0.0.1. 50 users send a request every five seconds for a minute, twice: in calm,
and with the backend killed in the middle and started again. Prints a table, writes
``work/load.json``, and ends with status 1 when a promise is broken:

* no answer of 500 or above, none that never comes, and 429 only above the limit;
* after the last request, the store holds every task whose creation was told, and no other;
* the agent's memory does not grow by 5 % in the time.

How fast it is depends on the machine, and is told, not promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import settings
from .bench import memory_mb, summary
from .children import Child, Server
from .settings import MODEL, CourseError

USERS = 50
SECONDS = 60.0
EVERY = 5.0  # seconds between two requests of a user
DOWN = 3.0  # seconds that a killed backend is away
SLOPE = 0.05  # of memory, over the measured time
TRIES = 8  # for one request: after 429, and after a lost connection
REPEAT = 10  # each tenth request is sent again with its key, as after an answer that was lost

THINGS = (
    "water the plants", "call the plumber", "order new chairs", "return the parcel",
    "book the train", "clean the kitchen", "send the invoice", "read the contract",
    "repair the bike", "visit the dentist", "print the tickets", "pay the rent",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much of what.

    Attributes:
        users: At the same time.
        seconds: Measured.
        every: Seconds between two requests of a user; later if the answer took longer.
        kill: Whether the backend is killed in the middle.
        limit: Requests a minute that the agent allows; 0 puts it well above the load.
    """

    users: int = USERS
    seconds: float = SECONDS
    every: float = EVERY
    kill: bool = False
    limit: float = 0.0

    @property
    def most(self) -> int:
        """Requests that this plan can send, without repeats."""
        return int(self.users * (self.seconds / self.every + 1))

    @property
    def rate(self) -> float:
        """Requests a minute that the agent is to allow."""
        return self.limit or 20 * 60 * self.users / self.every


# --- the stack -----------------------------------------------------------------------------


class Stack:
    """Backend, proxy and agent, of one's own. Use it in a ``with`` block.

    Args:
        folder: For tasks, configuration and logs.
        plan: For the limit.
        model: Of the backend: a name in ``model/`` or a path.
        proxy: False leaves LiteLLM out.

    Raises:
        CourseError: One of them does not start.
    """

    def __init__(
        self, folder: Path, plan: Plan, model: str | Path = MODEL, proxy: bool = True
    ) -> None:
        from .proxy import course_config, new_key, serve_proxy, write_config

        self.folder, self.model = folder, model
        self.proxy: Server | None = None
        self.agent: Server | None = None
        self.backend = self._backend()
        try:
            url, key = self.backend.url, "none"
            if proxy:
                config = course_config(settings.Settings(), self.backend.url)
                running = serve_proxy(write_config(config, folder / "proxy.yaml"))
                self.proxy, url, key = running, running.url, running.key
            self.key = new_key()
            self.agent = start_agent(
                folder / "agent", self.key, f"{url}/v1", key, rate=plan.rate, burst=10 * plan.users
            )
        except BaseException:
            self.stop()
            raise
        self.url = self.agent.url

    def _backend(self, port: int = 0) -> Any:
        from .backend import serve

        return serve(self.model, alias=MODEL, port=port, log=self.folder / "backend.log")

    def kill_backend(self) -> None:
        """End the backend as a crash does."""
        self.backend.child.process.kill()
        self.backend.child.process.wait()

    def restart_backend(self) -> None:
        """Start it again where it was, as a supervisor does."""
        self.backend = self._backend(int(self.backend.url.rpartition(":")[2]))

    def stop(self) -> None:
        """End all of them."""
        for server in (self.agent, self.proxy, self.backend):
            if server is not None:
                server.stop()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def start_agent(folder: Path, key: str, model_url: str, model_key: str, **more: Any) -> Server:
    """The agent's REST surface in a process of its own.

    Args:
        folder: Of its tasks and conversations.
        key: Its API key.
        model_url: Where its model is, ending in ``/v1``.
        model_key: The key for that.
        **more: Further fields of :class:`helpers.agent.service.Config`.

    Raises:
        CourseError: It does not start.
    """
    given = {"dir": folder, "key": key, "port": 0, "model_url": model_url,
             "model_key": model_key, "model": MODEL, **more}  # fmt: skip
    env = {name: text for name, text in os.environ.items() if not name.startswith("AGENT_")}
    env = settings.scrubbed(env) | {f"AGENT_{k.upper()}": str(v) for k, v in given.items()}
    child = Child("helpers.agent", ["serve", "--child"], folder.with_suffix(".log"), env)
    event = child.event(120)
    if event is None or event.get("event") != "ready":
        child.stop()
        said = event or {}
        raise CourseError(
            said.get("what", "The agent did not start."),
            said.get("why", child.log_tail()),
            said.get("todo", "Try it by hand: python3 -m helpers.agent serve"),
        )
    return Server(child, event["url"], str(child.pid))


# --- the users -----------------------------------------------------------------------------


@dataclass
class Sent:
    """One request, to its end.

    Attributes:
        key: Its ``Idempotency-Key``.
        began: Seconds since the start.
        seconds: Until the last answer to it.
        statuses: Of all tries, in order.
        broken: Tries without an answer: the connection was refused or lost.
        answer: The turn, as the surface tells it; empty when none came.
        repeated: What came when it was sent once more; None when it was not.
    """

    key: str
    began: float
    seconds: float = 0.0
    statuses: list[int] = field(default_factory=list)
    broken: int = 0
    answer: Mapping[str, Any] = field(default_factory=dict)
    repeated: Mapping[str, Any] | None = None

    @property
    def state(self) -> str:
        """How it ended; ``unanswered`` when nothing came."""
        return self.answer.get("state", "unanswered")

    def made(self, name: str = "create_task") -> list[int]:
        """Ids of the tasks that it made, or that another tool changed."""
        return [
            call["result"]["task_id"]
            for call in self.answer.get("calls", ())
            if call["name"] == name and call["done"]
        ]


class Crowd:
    """Users who talk to the agent.

    Args:
        url: Of the agent.
        key: Of its API.
        plan: How many, for how long.
        seed: Of when they begin.
    """

    def __init__(self, url: str, key: str, plan: Plan, seed: int = 7) -> None:
        import httpx

        from .clients import http_options

        self.plan, self.dice = plan, random.Random(seed)
        self.web = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, **http_options(90.0)
        )
        self.sent: list[Sent] = []
        self.began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    async def run(self) -> None:
        """All users, until the time is over and each has its last answer."""
        self.began = time.monotonic()
        first = [self.dice.uniform(0, self.plan.every) for _ in range(self.plan.users)]
        await asyncio.gather(*(self._user(i, at) for i, at in enumerate(first)))

    async def _user(self, number: int, at: float) -> None:
        mine: list[int] = []
        turn = 0
        while at < self.plan.seconds and len(self.sent) < self.plan.most:
            await asyncio.sleep(max(0.0, at - self.now))
            text = self._words(number, turn, mine)
            sent = await self._say(f"u{number}", f"u{number}-{turn}", text)
            mine += sent.made()
            mine = [task for task in mine if task not in sent.made("complete_task")]
            turn += 1
            at = max(at + self.plan.every, self.now)

    @staticmethod
    def _words(number: int, turn: int, mine: Sequence[int]) -> str:
        if turn % 4 == 3:
            return "show the urgent tasks"
        if turn % 2 and mine:
            return f"complete task {mine[-1]}"
        return f"add a task: {THINGS[(number + turn) % len(THINGS)]}"

    async def _say(self, conversation: str, key: str, text: str) -> Sent:
        sent = Sent(key, self.now)
        self.sent.append(sent)
        number = len(self.sent)
        body = {"message": text, "conversation": conversation}
        sent.answer = await self._post(sent, body) or {}
        sent.seconds = self.now - sent.began
        if number % REPEAT == 0 and sent.answer:
            sent.repeated = await self._post(sent, body)
        return sent

    async def _post(self, sent: Sent, body: Mapping[str, Any]) -> dict[str, Any] | None:
        import httpx

        for _ in range(TRIES):
            try:
                reply = await self.web.post(
                    "/chat", json=body, headers={"Idempotency-Key": sent.key}
                )
            except httpx.TransportError:
                sent.broken += 1
                await asyncio.sleep(1)
                continue
            sent.statuses.append(reply.status_code)
            if reply.status_code == 429:
                await asyncio.sleep(float(reply.headers.get("Retry-After", 1)))
                continue
            return reply.json() if reply.status_code < 500 else None
        return None

    async def wake(self) -> None:
        """One request of each user, before anything is measured.

        Raises:
            CourseError: No model answers.
        """
        body = {"message": "show the urgent tasks"}
        for attempt in range(5):
            sent = Sent(f"wake-{attempt}", 0.0)
            sent.answer = await self._post(sent, body | {"conversation": "wake"}) or {}
            if sent.state == "answered":
                break
        else:
            said = sent.answer or sent.statuses
            raise CourseError("The agent does not answer.", f"It said: {said}")

        # All at once: what so many at a time need is allocated before memory is looked at.
        await asyncio.gather(*(
            self._post(Sent(f"wake-u{i}", 0.0), body | {"conversation": f"u{i}"})
            for i in range(self.plan.users)
        ))  # fmt: skip

    async def settle(self, patience: float = 60.0) -> None:
        """Take what the outbox still held for the answers, as long as something comes of it.

        Args:
            patience: Seconds without any progress.
        """
        until = self.now + patience
        while waiting := [sent for sent in self.sent if sent.state == "waiting"]:
            for sent in waiting:
                reply = await self.web.get(f"/chat/{sent.key}")
                if reply.status_code in (200, 422):
                    sent.answer = reply.json()
                    until = self.now + patience
            if self.now > until:
                return
            await asyncio.sleep(1)

    async def tasks(self) -> list[dict[str, Any]]:
        """What the store holds."""
        reply = await self.web.get("/tasks")
        return reply.raise_for_status().json()["tasks"]


# --- measuring -----------------------------------------------------------------------------


async def _memory(pid: int, crowd: Crowd, found: list[tuple[float, float]]) -> None:
    while True:
        found.append((crowd.now, memory_mb(pid)))
        await asyncio.sleep(0.5)


async def _crash(stack: Stack, at: float) -> None:
    await asyncio.sleep(at)
    await asyncio.to_thread(stack.kill_backend)
    await asyncio.sleep(DOWN)
    await asyncio.to_thread(stack.restart_backend)


async def measure(stack: Stack, plan: Plan) -> dict[str, Any]:
    """Load on a running stack.

    Returns:
        Counts, times, memory, and what the store holds against what was told.
    """
    crowd = Crowd(stack.url, stack.key, plan)
    await crowd.wake()
    before = {task["task_id"] for task in await crowd.tasks()}
    assert stack.agent is not None
    samples: list[tuple[float, float]] = []
    beside = [asyncio.create_task(_memory(stack.agent.pid, crowd, samples))]
    crash = plan.kill and asyncio.create_task(_crash(stack, plan.seconds / 2))
    try:
        await crowd.run()
        if crash:
            await crash  # what went wrong there is raised here
        took = crowd.now
        first = Counter(sent.state for sent in crowd.sent)
        await crowd.settle()
        tasks = await crowd.tasks()
    finally:
        for task in [*beside, *([crash] if crash else [])]:
            task.cancel()
        await crowd.web.aclose()
    statuses = Counter(status for sent in crowd.sent for status in sent.statuses)
    return {
        "users": plan.users,
        "seconds": plan.seconds,
        "killed": plan.kill,
        "requests": len(crowd.sent),
        "requests_per_s": round(len(crowd.sent) / took, 1),
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "server_errors": sum(n for status, n in statuses.items() if status >= 500),
        "limited": statuses[429],
        "broken_connections": sum(sent.broken for sent in crowd.sent),
        "states": dict(first),
        "by": dict(Counter(sent.answer.get("by", "") for sent in crowd.sent)),
        "latency": summary([sent.seconds for sent in crowd.sent]),
        "memory": slope([s for s in samples if s[0] <= took], plan.seconds),
        **audit(crowd.sent, tasks, before),
    }


def slope(samples: Sequence[tuple[float, float]], seconds: float) -> dict[str, float]:
    """How much memory grows in a time: a straight line through all samples.

    Args:
        samples: Seconds and MB.
        seconds: The time.

    Returns:
        First and last MB, and ``growth``: by the line, as a part of where it begins.
    """
    if len({at for at, _ in samples}) < 2:
        return {"first_mb": 0.0, "last_mb": 0.0, "growth": 0.0}
    line = statistics.linear_regression(*zip(*samples, strict=True))
    start = line.intercept + line.slope * samples[0][0]
    return {
        "first_mb": samples[0][1],
        "last_mb": samples[-1][1],
        "growth": round(line.slope * seconds / start, 4),
    }


def audit(
    sent: Sequence[Sent], tasks: Sequence[Mapping[str, Any]], before: set[int]
) -> dict[str, Any]:
    """What was told against what the store holds.

    Returns:
        ``lost``: ids of tasks whose creation was told and that are not there (nobody asked for
        a deletion); ``doubled``: ids that no answer told of; ``undone``: ids whose completion
        was told and that are open; ``unanswered``: keys without an answer, at the end;
        ``changed``: keys whose repetition had other results.
    """
    made = {task for each in sent for task in each.made()}
    closed = {task for each in sent for task in each.made("complete_task")}
    there = {task["task_id"]: task["status"] for task in tasks}
    return {
        "created": len(made),
        "completed": len(closed),
        "lost": sorted(made - set(there)),
        "doubled": sorted(set(there) - made - before),
        "undone": sorted(task for task in closed if there.get(task) != "completed"),
        "unanswered": [each.key for each in sent if each.state in ("unanswered", "waiting")],
        "repeated": sum(each.repeated is not None for each in sent),
        "changed": [each.key for each in sent if _changed(each)],
    }


def _changed(sent: Sent) -> bool:
    again = sent.repeated
    if again is None or "waiting" in (again.get("state"), sent.answer.get("state")):
        return False
    return again.get("calls") != sent.answer.get("calls")


def broken(result: Mapping[str, Any]) -> list[str]:
    """Promises that a result breaks; none is good."""
    found = []
    if n := result["server_errors"]:
        found.append(f"{n} answers of 500 or above")
    for key in ("lost", "doubled", "undone", "unanswered", "changed"):
        if result[key]:
            found.append(f"{key}: {', '.join(map(str, result[key][:10]))}")
    if result["broken_connections"]:
        found.append(f"{result['broken_connections']} connections refused or lost")
    if result["memory"]["growth"] >= SLOPE:
        found.append(f"memory grows by {result['memory']['growth']:.1%}")
    return found


# --- the command ---------------------------------------------------------------------------


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A result as lines of a table."""
    when = "backend killed in the middle" if result["killed"] else "calm"
    yield f"{result['users']} users, {result['seconds']:.0f} s", when
    yield "requests", f"{result['requests']}, {result['requests_per_s']} a second"
    yield "statuses", ", ".join(f"{status}: {n}" for status, n in result["statuses"].items())
    yield "told to come back (429)", str(result["limited"])
    yield "ended", ", ".join(f"{state}: {n}" for state, n in result["states"].items())
    yield "answered by", ", ".join(f"{by or 'nobody'}: {n}" for by, n in result["by"].items())
    times = result["latency"]
    yield "time to the answer", f"median {times['median_ms']:.0f}, p95 {times['p95_ms']:.0f} ms"
    memory = result["memory"]
    grown = f"{memory['first_mb']:.0f} to {memory['last_mb']:.0f} MB"
    yield "memory of the agent", f"{grown}, {memory['growth']:+.1%} by slope"
    yield "tasks created, completed", f"{result['created']}, {result['completed']}"
    yield (
        "lost, doubled, undone",
        ", ".join(str(len(result[key])) for key in ("lost", "doubled", "undone")),
    )
    yield "sent twice, with another result", f"{result['repeated']}, {len(result['changed'])}"


@contextmanager
def _stack(plan: Plan, model: str | Path, proxy: bool) -> Iterator[Stack]:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Stack(Path(folder), plan, model, proxy) as stack,
    ):
        yield stack


def play(plan: Plan, model: str | Path = MODEL, proxy: bool = True) -> dict[str, Any]:
    """A stack of its own, loaded as planned.

    Raises:
        CourseError: Something does not start.
    """
    with _stack(plan, model, proxy) as stack:
        return asyncio.run(measure(stack, plan))


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] | None = None) -> int:
    """Measure in calm and with a crash, print, and write ``work/load.json``.

    Returns:
        1 when a promise is broken.
    """
    parser = argparse.ArgumentParser(
        prog="python3 -m helpers bench --load", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between requests")
    parser.add_argument("--limit", type=float, default=0.0, help="requests a minute allowed")
    parser.add_argument("--direct", action="store_true", help="without the LiteLLM proxy")
    parser.add_argument("--out", type=Path, default=settings.WORK / "load.json")
    args = parser.parse_args(argv)
    say = say or (lambda text: print(text, file=sys.stderr))
    results = []
    for kill in (False, True):
        say("the backend is killed in the middle …" if kill else "in calm …")
        plan = Plan(args.users, args.seconds, args.every, kill=kill, limit=args.limit)
        result = play(plan, proxy=not args.direct)
        results.append(result)
        for what, how_much in rows(result):
            print(f"{what:34} {how_much}")
        for problem in broken(result):
            print(f"{'BROKEN':34} {problem}")
        print(flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"runs": results}, indent=2) + "\n", encoding="utf-8")
    return int(any(map(broken, results)))
