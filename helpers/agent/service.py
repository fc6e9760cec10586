"""What the surfaces share: tasks, conversations, models, the outbox, limits and counters."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import agents

from helpers import settings
from helpers.agent import guardrails, memory
from helpers.agent.core import Event, TaskAgent, Turn, warm
from helpers.agent.models import Preferred, remote
from helpers.resilience import Outbox
from helpers.settings import MODEL, CourseError
from helpers.tasks import TaskStore

CONVERSATIONS = 16  # idle ones whose agents are kept
RESULTS = 2000  # remembered, for requests that come again with the same key
AT_ONCE = 200  # turns under way; more are told to come back
CONVERSATION = r"^[A-Za-z0-9._-]{1,64}$"  # what may name one

# --- settings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What the environment asks for; each field is ``AGENT_<NAME>``.

    Attributes:
        dir: Folder for tasks, conversations, outbox and log.
        key: The API key; None: made, and kept in that folder.
        host: Address to listen on.
        hosts: Names under which the service may be asked for, with commas.
        port: 0 for any that is free.
        model_url: An OpenAI-compatible API, ending in ``/v1``; empty: the course's proxy.
        model_key: Its key.
        model: The model's name there.
        spare_url: The fallback's address; empty: no fallback.
        spare_key: Its key.
        spare: Its name there.
        patience: Seconds for one model.
        deadline: Seconds for a turn.
        rate: Requests a minute, for one client.
        burst: How many of them at once.
        mcp: File of an MCP server that L05 exported, in place of the package's own.
    """

    dir: Path = field(default_factory=lambda: settings.WORK / "agent")
    key: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    hosts: str = "127.0.0.1,localhost"
    port: int = 8070
    model_url: str = ""
    model_key: str = field(default="none", repr=False)
    model: str = MODEL
    spare_url: str = ""
    spare_key: str = field(default="none", repr=False)
    spare: str = "spare"
    patience: float = 20.0
    deadline: float = 45.0
    rate: float = 60.0
    burst: int = 20
    mcp: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Config:
        """Read the settings.

        Raises:
            CourseError: For a value of the wrong kind, or a key that is short.
        """
        given: dict[str, Any] = {}
        for name, kind in _KINDS.items():
            text = env.get(f"AGENT_{name.upper()}", "").strip()
            if not text:
                continue
            try:
                given[name] = kind(text)
            except ValueError:
                raise CourseError(
                    f"AGENT_{name.upper()}={text} does not work.",
                    "It takes a number.",
                    f"Unset it, or give a number such as {getattr(cls(), name)}.",
                ) from None
        if len(given.get("key") or "x" * 16) < 16:
            raise CourseError(
                "AGENT_KEY is too short.",
                "A key that can be guessed protects nothing; 16 characters are the least.",
                "Unset it, and one is made for you.",
            )
        return cls(**given)

    def kept_key(self) -> str:
        """The API key; made at the first call when none was given, in a file of its owner's."""
        if self.key:
            return self.key
        path = self.dir / "key"
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(32))
        return path.read_text(encoding="ascii").strip()


_KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("key", "host", "hosts", "model_url", "model_key", "model", "mcp"), str),
    **dict.fromkeys(("spare_url", "spare_key", "spare"), str),
    **dict.fromkeys(("patience", "deadline", "rate"), float),
    **dict.fromkeys(("port", "burst"), int),
    "dir": Path,
}


# --- limits ----------------------------------------------------------------------------------


def take(level: float, seconds: float, rate: float, burst: int) -> tuple[float, float]:
    """One request of a token bucket.

    Args:
        level: Requests that were left after the last one.
        seconds: Since then.
        rate: Requests a minute that come back.
        burst: The most that can be left.

    Returns:
        What is left now, and the seconds to wait; 0 when the request may pass.
    """
    level = min(float(burst), level + seconds * rate / 60)
    if level >= 1:
        return level - 1, 0.0
    return level, (1 - level) * 60 / rate


class Limiter:
    """A token bucket for each client.

    Args:
        rate: Requests a minute.
        burst: How many at once.
        take: The arithmetic, see :func:`take`.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        take: Callable[[float, float, float, int], tuple[float, float]] = take,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate, self.burst, self.take, self.clock = rate, burst, take, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds that a client has to wait; 0: the request passes, and is counted."""
        now = self.clock()
        level, then = self._buckets.pop(client, (float(self.burst), now))
        level, wait = self.take(level, now - then, self.rate, self.burst)
        self._buckets[client] = (level, now)
        while len(self._buckets) > 10_000:
            self._buckets.popitem(last=False)
        return wait


# --- counters --------------------------------------------------------------------------------


class Counters:
    """What is counted, for Prometheus. No words of anybody are in it."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        more = {"registry": self.registry}
        self.turns = Counter("agent_turns", "Turns by how they ended.", ["state"], **more)
        self.calls = Counter("agent_calls", "Tool calls.", ["tool", "done"], **more)
        self.attempts = Counter(
            "agent_attempts", "Who was asked and how it ended.", ["asked", "outcome"], **more
        )
        self.tokens = Counter("agent_tokens", "Tokens of models.", ["direction"], **more)
        self.limited = Counter("agent_limited", "Requests told to come back later.", **more)
        self.waiting = Gauge("agent_waiting", "Requests in the outbox.", **more)
        self.seconds = Histogram(
            "agent_turn_seconds", "How long turns took.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32), **more,
        )  # fmt: skip

    def count(self, turn: Turn, seconds: float) -> None:
        """Count a turn."""
        self.turns.labels(turn.state).inc()
        self.seconds.observe(seconds)
        for call in turn.calls:
            self.calls.labels(call["name"], str(call["done"]).lower()).inc()
        for attempt in turn.trace.attempts:
            self.attempts.labels(attempt.model, attempt.outcome).inc()
        for direction, number in turn.tokens.items():
            self.tokens.labels(direction).inc(number)

    def text(self) -> str:
        """In Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()


# --- the service -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What a lesson's cells can replace.

    Attributes:
        input_problem: See :mod:`helpers.agent.guardrails`.
        call_checks: As well.
        fit: See :mod:`helpers.agent.memory`.
        take: See :func:`take`.
    """

    input_problem: Callable[[str], str] = guardrails.input_problem
    call_checks: Callable[..., Any] = guardrails.call_checks
    fit: Callable[..., Any] = memory.fit
    take: Callable[..., Any] = take


class Service:
    """The agent for everybody: one store, many conversations.

    Args:
        config: From the environment by default.
        parts: In place of the package's own.
        models: In place of those that the configuration names.
        store: In place of the file in ``config.dir``.
    """

    def __init__(
        self,
        config: Config | None = None,
        parts: Parts | None = None,
        *,
        models: Preferred | None = None,
        store: TaskStore | None = None,
    ) -> None:
        warm()
        self.config = config or Config.from_env()
        self.parts = parts or Parts()
        self.config.dir.mkdir(parents=True, exist_ok=True)
        self.store = store or TaskStore(self.config.dir / "tasks.sqlite")
        self.outbox = Outbox(self.config.dir / "outbox.sqlite")
        # One for all conversations: each of its own would have the file open once a thread, and
        # fifty of them took 25 MB more in their first minute.
        self.sessions = agents.SQLiteSession("", self.config.dir / "conversations.sqlite")
        self.models = models or self._models()
        self.limiter = Limiter(self.config.rate, self.config.burst, self.parts.take)
        self.counters = Counters()
        self.log = self.config.dir / "turns.jsonl"
        self.under_way = 0
        self._agents: OrderedDict[str, TaskAgent] = OrderedDict()
        self._asked: Counter[str] = Counter()  # requests under way, by conversation
        self._results: OrderedDict[str, bytes] = OrderedDict()  # pickled: a seventh of the memory
        self._probed: tuple[float, dict[str, str]] = (-1e9, {})
        self._draining: asyncio.Task[None] | None = None

    def _models(self) -> Preferred:
        c = self.config
        models: dict[str, Any] = {c.model: remote(c.model_url, c.model_key, c.model)}
        if c.spare_url:
            models[c.spare] = remote(c.spare_url, c.spare_key, c.spare)
        return Preferred(models, c.patience)

    def agent(self, conversation: str) -> TaskAgent:
        """The agent of one conversation."""
        agent = self._agents.pop(conversation, None)
        if agent is None:
            p = self.parts
            session = copy.copy(self.sessions)  # shares its connections and its lock
            session.session_id = conversation
            agent = TaskAgent(
                self.store, conversation, models=self.models, session=session,
                outbox=self.outbox, input_problem=p.input_problem, call_checks=p.call_checks,
                fit=p.fit, deadline=self.config.deadline,
            )  # fmt: skip
        self._agents[conversation] = agent
        return agent

    @asynccontextmanager
    async def conversation(self, name: str) -> AsyncIterator[TaskAgent]:
        """The agent of one conversation, for one request at a time; open until it is done."""
        agent = self.agent(name)
        self._asked[name] += 1
        try:
            async with agent.one_at_a_time:
                yield agent
        finally:
            self._asked[name] -= 1
            # Who waits for the lock is asking as well: busy alone would not tell.
            idle = [other for other in self._agents if not self._asked[other]]
            for other in idle[: max(0, len(idle) - CONVERSATIONS)]:
                del self._agents[other]
                del self._asked[other]

    async def turn(
        self, conversation: str, text: str, key: str = "", notify: Event | None = None
    ) -> Turn:
        """One turn of one conversation; with a key that was there before, its result again.

        What waits, and what somebody had to mend something for, has none yet.
        """
        key = key or secrets.token_hex(8)
        async with self.conversation(conversation) as agent:
            known = self._known(key)
            if known and known.state != "waiting" and not known.blocked:
                return known
            began = time.monotonic()
            turn = await agent.turn(text, key=key, notify=notify)
        self.counters.count(turn, time.monotonic() - began)
        kept = replace(turn, spans="")  # the largest part, and nobody asks for it
        self._results[key] = pickle.dumps(kept)
        while len(self._results) > RESULTS:
            self._results.popitem(last=False)
        self._note(turn)
        return turn

    def _known(self, key: str) -> Turn | None:
        kept = self._results.get(key)
        return pickle.loads(kept) if kept else None

    def result(self, key: str) -> dict[str, Any] | None:
        """What became of a request, as :meth:`Turn.to_dict` has it; None for an unknown key."""
        if turn := self._known(key):
            return turn.to_dict()
        if kept := self.outbox.done().get(key):
            return json.loads(kept)
        if request := dict(self.outbox.waiting()).get(key):  # of an earlier process
            conversation, text = json.loads(request)
            said = "It is noted and will be done as soon as a model answers."
            return Turn(text, "waiting", said, conversation=conversation, key=key).to_dict()
        return None

    def _note(self, turn: Turn) -> None:
        """A line of the log: what was decided, and no more of the person's words than that."""
        line = {k: v for k, v in turn.to_dict().items() if k not in ("request", "text")}
        with suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    async def drain(self) -> int:
        """Do what waits in the outbox, oldest first, until a model is missing again.

        A request that must wait on holds up its own conversation, and not the others.
        """
        results: dict[str, str] = {}
        held: set[str] = set()
        for key, request in self.outbox.waiting():
            conversation, text = json.loads(request)
            if conversation in held:
                continue
            turn = await self.turn(conversation, text, key)
            if turn.state == "waiting" or turn.blocked:
                held.add(conversation)
                if len(held) == 3:  # not one request, but no model
                    break
                continue
            results[key] = json.dumps(turn.to_dict(), ensure_ascii=False)
        return self.outbox.drain(lambda key, request: results.get(key)) if results else 0

    async def ready(self) -> dict[str, Any]:
        """Whether it can serve: the tasks can be read, and one model answers at least."""
        answers: dict[str, Any] = {"tasks": "ok"}
        try:
            await asyncio.to_thread(self.store.list, "in_progress")
        except Exception as error:
            answers["tasks"] = type(error).__name__
        answers["models"] = await self._probe()
        answers["waiting"] = len(self.outbox.waiting())
        up = "answers" in answers["models"].values()
        return {"ready": answers["tasks"] == "ok" and up, **answers}

    async def _probe(self) -> dict[str, str]:
        then, known = self._probed
        if time.monotonic() - then < 1:
            return known

        async def one(model: Any) -> str:
            try:
                await asyncio.wait_for(
                    model._client.chat.completions.create(
                        model=model.model, max_tokens=1, temperature=0,
                        messages=[{"role": "user", "content": "hello"}],
                    ),
                    5,
                )  # fmt: skip
                return "answers"
            except Exception as error:
                return f"no answer ({type(error).__name__})"

        asked = {n: m for n, m in self.models.models.items() if hasattr(m, "_client")}
        said = await asyncio.gather(*map(one, asked.values()))
        found = dict(zip(asked, said, strict=True))
        found |= {n: "answers" for n in self.models.models if n not in asked}
        self._probed = (time.monotonic(), found)
        return found

    async def start(self, every: float = 1.0) -> None:
        """Look after the outbox from now on; said twice, it is still done once."""
        if self._draining:
            return

        async def look_after() -> None:
            while True:
                await asyncio.sleep(every)
                with suppress(Exception):  # the next round tries again
                    if self.outbox.waiting():
                        await self.drain()

        self._draining = asyncio.create_task(look_after())

    async def stop(self) -> None:
        """Close everything; what waits stays in its file."""
        if self._draining:
            self._draining.cancel()
            with suppress(asyncio.CancelledError):
                await self._draining
        self.sessions.close()
        await self.models.close()
        self.outbox.close()
        self.store.close()
