"""What a client needs to end every request well: traces of decisions, a look at answers, plain
rules, an outbox, and an assistant that puts them together.

The order is always the same: ask a model, look at what came, ask the next one if that helps,
and when no model is left let a rule answer what it safely can, or keep the request until a
model is back. Whatever happens is an :class:`Attempt` in a :class:`Trace`.

A model is a function here, ``ask(prompt, tools, timeout)``, that returns a completion of the
OpenAI SDK or raises. Names in order of preference are a dictionary of such functions.

Examples:
    >>> trace = Trace("Finish task 14", deadline=5)
    >>> try:
    ...     with trace.attempt("big"):
    ...         raise TimeoutError("no answer")
    ... except TimeoutError:
    ...     with trace.attempt("small"):
    ...         pass
    >>> trace.line()
    'big: TimeoutError → small: answered'
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import MINI, Settings

if TYPE_CHECKING:
    import openai

    from .tasks import TaskStore
    from .validators import Check

Tools = Sequence[Mapping[str, Any]]
Ask = Callable[[str, Tools, float], Any]

HOSTED_URL = "https://api.openai.com/v1"
PATIENCE = 2.0  # seconds for one model
DEADLINE = 5.0  # seconds for the whole request
clock: Callable[[], float] = time.monotonic


class BadAnswer(ValueError):
    """An answer came, and nothing can be done with it; the text says why."""


# --- looking at an answer --------------------------------------------------------------------


def problem_in(reply: Any, tools: Tools, checks: Iterable[Check] = ()) -> str:
    """Why nothing can be done with a reply.

    Args:
        reply: What the SDK returned, whatever that is.
        tools: What was offered.
        checks: Of the meaning of a call, see :mod:`helpers.validators`.

    Returns:
        One sentence, or an empty text when the reply can be used.
    """
    from .validators import review

    choices = getattr(reply, "choices", None)
    if not choices:
        return "This is not the answer of a model."
    message = choices[0].message
    if choices[0].finish_reason == "length":
        return "The answer was cut off."
    if not message.tool_calls and not (message.content or "").strip():
        return "The answer is empty."
    errors = review(message, tools, checks).errors
    return str(errors[0]) if errors else ""


def meaning(prompt: str) -> list[Check]:
    """Checks against what the person said: for calls that are valid, and wrong all the same.

    An id must have been said, a deletion asked for, and two thirds of a title said. They
    cannot know everything: another filter of a list passes.
    """
    from .validators import asked_for_delete, mentioned_id

    said = [{"role": "user", "content": prompt}]
    return [mentioned_id(said), asked_for_delete(said), said_title(prompt)]


def said_title(prompt: str) -> Check:
    """A check that at most a third of the words of a title were not said."""
    said = Counter(re.findall(r"\w+", prompt.casefold()))

    def check(call: Any) -> str | None:
        title = str(call.arguments.get("title") or "")
        words = Counter(re.findall(r"\w+", title.casefold()))
        # A word that was said once and is written three times was not said twice.
        if (words - said).total() * 3 <= words.total():
            return None
        return f"Nobody said {title[:60]!r}."

    return check


def must_fall_back(problem: BaseException) -> bool:
    """Whether another model may do better.

    True for what a server or the way to it did wrong. False for a wrong key, a bad request and
    errors of the program: elsewhere they would fail as well, or hide what has to be mended.
    """
    import httpx
    import openai

    if isinstance(problem, openai.APIStatusError):
        return problem.status_code in (408, 429) or problem.status_code >= 500
    return isinstance(
        problem,
        openai.APIConnectionError | httpx.TransportError | json.JSONDecodeError | BadAnswer,
    )


def model_ask(client: openai.OpenAI, model: str, **options: Any) -> Ask:
    """A model as a function of prompt, tools and seconds.

    Args:
        client: Where it is; a client that does not retry.
        model: Its name there.
        options: For the request, over those that make answers repeatable.

    Returns:
        The function. On its reply, ``answered_by`` says who answered: the deployment that a
        LiteLLM proxy names in a header, else the reply's ``model``. ``instead_of`` says why, if
        that proxy fell back and was asked for its reasons (:data:`REASONS`); where one of them
        is the person's to mend, the function raises it, as if the proxy had not hidden it.
        LiteLLM 1.106 itself has no setting that says on which errors to fall back. ``fallbacks``
        and ``retries`` are the proxy's counts.
    """
    from .clients import DETERMINISTIC

    def ask(prompt: str, tools: Tools, timeout: float) -> Any:
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            tools=list(tools),  # type: ignore[arg-type]
            timeout=timeout,
            **{**DETERMINISTIC, **options},
        )
        reply = raw.parse()
        if hasattr(reply, "choices"):
            named = raw.headers.get("x-litellm-model-id")
            reply.answered_by = named or reply.model  # type: ignore[attr-defined]
            reply.instead_of = _reasons(raw)  # type: ignore[attr-defined]
            for what in ("fallbacks", "retries"):
                setattr(reply, what, int(raw.headers.get(f"x-litellm-attempted-{what}", 0)))
        return reply

    return ask


# In the body of a request to a LiteLLM proxy with ``expose_fallback_errors_to_caller``: tell in a
# header what was fallen back from. Without it that stands in the proxy's log alone.
REASONS = {"cache_prompt": False, "include_fallback_errors": True}


def _reasons(raw: Any) -> str:
    """What a proxy fell back from, in names of the SDK's classes, such as ``RateLimitError``.

    What has no status, such as ``all_deployments_in_cooldown``, keeps the proxy's name.

    Raises:
        openai.APIStatusError: One of them must not fall back, see :func:`must_fall_back`.
    """
    import httpx
    import openai

    names = []
    for told in json.loads(raw.headers.get("x-litellm-fallback-errors", "[]")):
        if not told.get("code"):
            names.append(told["type"])
            continue
        status = int(told["code"])
        kind = _KINDS.get(status) or (_KINDS[500] if status > 500 else "APIStatusError")
        if kind != _KINDS[408]:
            response = httpx.Response(status, request=raw.http_response.request)
            problem = getattr(openai, kind)(told.get("message", ""), response=response, body=told)
            if not must_fall_back(problem):
                problem.fallbacks = int(raw.headers.get("x-litellm-attempted-fallbacks", 1))
                raise problem
        names.append(kind)
    return ", ".join(names)


# Names of the classes in which the SDK would have raised a status.
_KINDS = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError",
    404: "NotFoundError", 408: "APITimeoutError", 409: "ConflictError",
    422: "UnprocessableEntityError", 429: "RateLimitError", 500: "InternalServerError",
}  # fmt: skip


def calls_in(reply: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls of a reply that was found usable."""
    return [
        (call.function.name, json.loads(call.function.arguments or "{}"))
        for call in reply.choices[0].message.tool_calls or []
    ]


class Spare:
    """The fallback: ``task-api-model-mini`` in a process of its own, or a hosted model.

    Attributes:
        name: The model's name. Whoever answers is shown under its own name.
        client: The OpenAI SDK's client for it.
        ask: The model as a function, see :func:`model_ask`.
        where: ``api_base``, ``api_key`` and what else a LiteLLM configuration needs for it.
        settings: For ``start_proxy``, which hands a hosted model's key on.
        server: The process; None for a hosted model.
    """

    def __init__(self, settings: Settings, base_url: str | None = None) -> None:
        import openai

        from .backend import serve
        from .clients import http_options, openai_client

        self.settings = settings
        if settings.hosted:
            self.server = None
            self.name = settings.hosted_model
            self.where: dict[str, Any] = {"api_key": "os.environ/COURSE_HOSTED_KEY"}
            # Of a request that came for llama.cpp; a hosted API refuses what it does not know.
            self.where["additional_drop_params"] = ["cache_prompt"]
            self.where |= {"api_base": base_url} if base_url else {}
            web = openai.DefaultHttpxClient(timeout=30)
            if base_url:  # a server on this machine
                web = openai.DefaultHttpxClient(**http_options())
            self.client = openai.OpenAI(
                api_key=settings.hosted_key,
                base_url=base_url or HOSTED_URL,
                max_retries=0,
                timeout=30,
                http_client=web,
            )
            self.ask = model_ask(self.client, self.name, extra_body=None)
            return
        self.server = serve(MINI)
        self.name = MINI
        self.where = {"api_base": f"{self.server.url}/v1", "api_key": "none"}
        self.client = openai_client(direct=True, base_url=self.where["api_base"], api_key="none")
        self.ask = model_ask(self.client, self.name)

    def __repr__(self) -> str:
        return f"<Spare {self.name}>"

    def kill(self) -> None:
        """End its process at once, as a crash does; a hosted model is left alone."""
        if self.server is not None:
            self.server.child.process.kill()
            self.server.child.process.wait(30)

    def restart(self) -> None:
        """Start its process again, at the same address."""
        from .backend import serve

        if self.server is not None and not self.server.child.alive:
            self.server = serve(MINI, port=int(self.server.url.rpartition(":")[2]))

    def stop(self) -> None:
        """End its process in an orderly way."""
        if self.server is not None:
            self.server.stop()


def spare_model(base_url: str | None = None) -> Spare:
    """The fallback that the settings ask for: hosted with ``HOSTED=1`` and a key, else local.

    Args:
        base_url: Of a hosted model, where it is not at the usual address.

    Raises:
        CourseError: The local one does not start.
    """
    return Spare(Settings.from_env(), base_url)


# --- as text ---------------------------------------------------------------------------------


def error_name(error: BaseException) -> str:
    """A class with the library that it comes from: ``openai.APITimeoutError``."""
    return f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}"


def reply_text(reply: Any) -> str:
    """A reply in a line: its calls, else its words; for tables."""
    from .lesson import call_text

    if isinstance(reply, str):
        return f"a text: {reply[:24]}..."
    if reply is None or not reply.choices:
        return "(nothing)"
    message = reply.choices[0].message
    calls = ", ".join(map(call_text, message.tool_calls or []))
    return calls or (message.content or "").strip()[:60] or "(nothing)"


def stream_text(chunks: Iterable[Any]) -> str:
    """The call that the chunks of a stream are pieces of, else their words; for tables."""
    name = arguments = words = ""
    for chunk in chunks:
        for choice in chunk.choices:
            words += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                name += part.function.name or ""
                arguments += part.function.arguments or ""
    return f"{name}({arguments})" if name else words[:60] or "(nothing)"


# --- traces ----------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One decision and what came of it.

    Attributes:
        model: Who was asked; also ``rules`` and ``outbox``.
        outcome: ``answered``, ``failed``, ``waiting`` or ``told``.
        why: For a failure its class, or what was wrong with the answer; for an answer, what a
            proxy fell back from.
        by: Who answered, where that is somebody else: a proxy may fall back by itself.
        fallbacks: How many further models a proxy asked in this attempt.
        retries: How often it asked one of them again; LiteLLM 1.106 says 0 after a fallback.
        refused: An answer came, and it was of no use.
        began: Seconds since the request came.
        seconds: How long it took.
    """

    model: str
    outcome: str = "answered"
    why: str = ""
    by: str = ""
    fallbacks: int = 0
    retries: int = 0
    refused: bool = False
    began: float = 0.0
    seconds: float = 0.0

    def answered(self, reply: Any) -> None:
        """Note who answered, and, where a proxy fell back, why and how often: :func:`model_ask`."""
        self.by = getattr(reply, "answered_by", "")
        self.why = getattr(reply, "instead_of", "")
        self.fallbacks = getattr(reply, "fallbacks", 0)
        self.retries = getattr(reply, "retries", 0)

    def __str__(self) -> str:
        if self.outcome != "answered":
            return f"{self.model}: {self.why or self.outcome}"
        by = f" by {self.by}" if self.by not in ("", self.model) else ""
        why = self.why or ("a fallback" if self.fallbacks else "")
        return f"{self.model}: {f'{why}, ' if why else ''}answered{by}"


@dataclass
class Trace:
    """What happened to one request, in order.

    Attributes:
        request: What the person said.
        deadline: Seconds after which nobody is asked any more.
        attempts: The decisions.
    """

    request: str
    deadline: float = DEADLINE
    attempts: list[Attempt] = field(default_factory=list)
    _start: float = field(default_factory=lambda: clock(), repr=False)

    def left(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline - (clock() - self._start))

    @contextmanager
    def attempt(self, model: str) -> Iterator[Attempt]:
        """Note one attempt: how long it takes, and the exception that ends it, if one does."""
        attempt = Attempt(model, began=clock() - self._start)
        self.attempts.append(attempt)
        try:
            yield attempt
        except BaseException as error:
            attempt.outcome = "failed"
            attempt.refused = isinstance(error, BadAnswer)
            attempt.why = str(error) if attempt.refused else type(error).__name__
            attempt.fallbacks = getattr(error, "fallbacks", 0)
            raise
        finally:
            attempt.seconds = clock() - self._start - attempt.began

    def note(self, who: str, outcome: str, why: str = "") -> None:
        """Note a decision that takes no time."""
        self.attempts.append(Attempt(who, outcome, why, began=clock() - self._start))

    @property
    def by(self) -> str:
        """Who answered in the end; empty when nobody did."""
        last = self.attempts[-1] if self.attempts else None
        return (last.by or last.model) if last and last.outcome == "answered" else ""

    def line(self) -> str:
        """The decisions in a line, without times: the same request gives the same line."""
        return " → ".join(map(str, self.attempts))

    def to_dict(self, times: bool = True) -> dict[str, Any]:
        """For JSON: one structured line of a log.

        Args:
            times: With ``began`` and ``seconds``; without them, the same request gives the same.
        """
        rounded = [
            {
                k: round(v, 4) if isinstance(v, float) else v
                for k, v in asdict(a).items()
                if times or k not in ("began", "seconds")
            }
            for a in self.attempts
        ]
        return {"request": self.request, "deadline": self.deadline, "by": self.by,
                "attempts": rounded}  # fmt: skip


# --- the last resort -------------------------------------------------------------------------

_RULES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[str, dict[str, Any]]]]] = [
    (
        re.compile(r"(?:finish|complete|close) task (\d{1,9})|task (\d{1,9}) is done", re.I),
        lambda m: ("complete_task", {"task_id": int(m[1] or m[2])}),
    ),
    (
        re.compile(r"(?:what is|what's|show me what is) (?:still )?pending", re.I),
        lambda m: ("list_tasks", {"status": "pending"}),
    ),
    (
        re.compile(r"(?:list|show)(?: me)? (?:all )?(?:my |the )?tasks", re.I),
        lambda m: ("list_tasks", {}),
    ),
]


def plain_rule(prompt: str) -> tuple[str, dict[str, Any]] | None:
    """The call that a request means beyond doubt; None for every other request.

    A rule must match the whole request, and only calls that can be taken back are made:
    nothing is deleted or created by a pattern.

    Examples:
        >>> plain_rule("Finish task 14.")
        ('complete_task', {'task_id': 14})
        >>> plain_rule("Finish task 14 and delete task 3") is None
        True
    """
    text = " ".join(prompt.split()).rstrip(".!? ")
    text = re.sub(r"^please |,? please$", "", text, flags=re.I)
    for pattern, call in _RULES:
        if match := pattern.fullmatch(text):
            return call(match)
    return None


class Outbox:
    """Requests that wait for a model, in SQLite: what was put is there after a crash.

    Args:
        path: The file; ``":memory:"`` for one that vanishes.
    """

    def __init__(self, path: str | Path = ":memory:") -> None:
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            str(path), timeout=30, check_same_thread=False, isolation_level=None
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, "
            "key TEXT UNIQUE NOT NULL, request TEXT NOT NULL, result TEXT)"
        )

    def put(self, key: str, request: str) -> bool:
        """Keep a request until it is done.

        Args:
            key: Of the request; the same key is kept once.
            request: What the person said.

        Returns:
            Whether it was new.
        """
        with self._lock:
            added = self._db.execute(
                "INSERT OR IGNORE INTO outbox (key, request) VALUES (?, ?)", (key, request)
            )
            return added.rowcount > 0

    def waiting(self) -> list[tuple[str, str]]:
        """Keys and requests that are not done, in the order in which they came."""
        with self._lock:
            return self._db.execute(
                "SELECT key, request FROM outbox WHERE result IS NULL ORDER BY number"
            ).fetchall()

    def done(self) -> dict[str, str]:
        """Results by key."""
        with self._lock:
            return dict(self._db.execute("SELECT key, result FROM outbox WHERE result NOTNULL"))

    def drain(self, work: Callable[[str, str], str | None]) -> int:
        """Do what waits, oldest first.

        What cannot be done stays and does not hold up what comes after it. A crash between
        the work and its note here means that the work is asked for again, with the same key:
        ``TaskStore.once`` makes that harmless.

        Args:
            work: Gets key and request; returns the result, or None when it has to wait on.
                What it raises is passed on; what was done before stays done.

        Returns:
            How many were done.
        """
        count = 0
        for key, request in self.waiting():
            result = work(key, request)
            if result is None:
                continue
            with self._lock:
                self._db.execute("UPDATE outbox SET result = ? WHERE key = ?", (result, key))
            count += 1
        return count

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# --- all of it together ----------------------------------------------------------------------


@dataclass
class Outcome:
    """How a request ended.

    Attributes:
        state: ``answered``, ``waiting`` (in the outbox) or ``told`` (the person was told that
            it cannot be done, and why).
        by: Who answered: a model, or ``rules``.
        text: Words for the person.
        calls: The calls that were carried out, names and arguments.
        results: What the tools returned, JSON.
        trace: The decisions.
        key: Names the request; a retry has the same one.
    """

    state: str
    by: str = ""
    text: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    trace: Trace = field(default_factory=lambda: Trace(""))
    key: str = ""


class Assistant:
    """Ends every request: by a model, by a rule, in the outbox, or with a reason.

    Args:
        models: Who is asked, in this order.
        store: The tasks.
        outbox: Where requests wait; without one the person is told.
        patience: Seconds for one model.
        deadline: Seconds for the request.
        checks: Makes the checks of meaning from the request; None: by schema alone.
        rules: The call that a request means beyond doubt, or None.
        tools: What is offered; the Task API's five by default.
    """

    def __init__(
        self,
        models: Mapping[str, Ask],
        store: TaskStore,
        outbox: Outbox | None = None,
        *,
        patience: float = PATIENCE,
        deadline: float = DEADLINE,
        checks: Callable[[str], Iterable[Check]] | None = meaning,
        rules: Callable[[str], tuple[str, dict[str, Any]] | None] = plain_rule,
        tools: Tools | None = None,
    ) -> None:
        import jsonschema  # noqa: F401  imported later, it would take its time from a request

        from .tasks import tool_schemas

        self.models, self.store, self.outbox = dict(models), store, outbox
        self.patience, self.deadline = patience, deadline
        self.checks, self.rules = checks or (lambda prompt: ()), rules
        self.tools = tool_schemas() if tools is None else tools

    def ask(self, prompt: str) -> tuple[Any, Trace]:
        """The first usable reply of a model, or None, and the decisions.

        Raises:
            Exception: What must not fall back, see :func:`must_fall_back`; the trace is its
                attribute ``trace``.
        """
        trace = Trace(prompt, self.deadline)
        checks = list(self.checks(prompt))
        for name, ask in self.models.items():
            if not trace.left():
                break
            try:
                with trace.attempt(name) as attempt:
                    reply = ask(prompt, self.tools, min(self.patience, trace.left()))
                    if problem := problem_in(reply, self.tools, checks):
                        raise BadAnswer(problem)
                    attempt.answered(reply)
            except Exception as error:
                if must_fall_back(error):
                    continue
                with suppress(AttributeError):
                    error.trace = trace  # type: ignore[attr-defined]
                raise
            return reply, trace
        return None, trace

    def handle(self, prompt: str, key: str = "") -> Outcome:
        """Do what the person wants, once.

        Args:
            prompt: What the person said.
            key: Names the request: with the same key nothing is done twice. A new one by
                default.
        """
        key = key or secrets.token_hex(8)
        outcome = self._by_model(prompt, key)
        trace = outcome.trace
        if outcome.state != "waiting":
            return outcome
        if call := self.rules(prompt):
            trace.note("rules", "answered")
            return self._carry_out([call], key, trace, "rules")
        if self.outbox is None:
            trace.note("nobody", "told")
            outcome.state, outcome.text = "told", "No model can be reached. Please try again later."
            return outcome
        self.outbox.put(key, prompt)
        trace.note("outbox", "waiting")
        outcome.text = "No model can be reached. It is noted and will be done as soon as one can."
        return outcome

    def drain(self) -> list[Outcome]:
        """Do what waits in the outbox, oldest first, as far as models answer.

        When every model answered and no answer was of use, waiting on would change nothing: the
        person is asked to say it in other words.
        """
        outcomes: list[Outcome] = []
        if self.outbox is None:
            return outcomes

        def work(key: str, prompt: str) -> str | None:
            outcome = self._by_model(prompt, key)
            attempts = outcome.trace.attempts
            if outcome.state == "told":  # a wrong key: when that is mended, it can be done
                return None
            if outcome.state == "waiting":
                if len(attempts) < len(self.models) or not all(a.refused for a in attempts):
                    return None
                outcome.trace.note("person", "told", "asked to say it in other words")
                outcome.state = "told"
                outcome.text = f"I do not know what to do: {prompt!r}. Please say it differently."
            outcomes.append(outcome)
            return json.dumps([outcome.text, *outcome.results], ensure_ascii=False)

        self.outbox.drain(work)
        return outcomes

    def _by_model(self, prompt: str, key: str) -> Outcome:
        try:
            reply, trace = self.ask(prompt)
        except Exception as error:
            trace = getattr(error, "trace", None) or Trace(prompt)
            trace.note("person", "told", f"told of {type(error).__name__}")
            text = f"This cannot be done: {type(error).__name__}. Someone has to look at it."
            return Outcome("told", text=text, trace=trace, key=key)
        if reply is None:
            return Outcome("waiting", trace=trace, key=key)
        words = reply.choices[0].message.content or ""
        return self._carry_out(calls_in(reply), key, trace, trace.by, words)

    def _carry_out(
        self,
        calls: Sequence[tuple[str, dict[str, Any]]],
        key: str,
        trace: Trace,
        by: str,
        text: str = "",
    ) -> Outcome:
        from .tasks import call_tool

        results = [
            call_tool(self.store, name, arguments, key=f"{key}-{position}")
            for position, (name, arguments) in enumerate(calls)
        ]
        return Outcome("answered", by, text, list(calls), results, trace, key)
