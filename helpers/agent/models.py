"""Who is asked: models in order of preference, as one model of the Agents SDK."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import agents
import httpx
import openai
from agents.models.interface import Model

from helpers import clients
from helpers.resilience import BadAnswer, Trace, must_fall_back
from helpers.settings import MODEL

MAX_ANSWER = 160  # tokens of one answer
LATE = "no answer in time"
GARBLED = "This is not the answer of a model."

# Who answered, as the proxy's header names it; set while a request is under way.
_named: ContextVar[dict[str, str]] = ContextVar("named")


@dataclass
class Asking:
    """The turn for which models are asked.

    Attributes:
        trace: The decisions.
        tokens: What models have read and written, ``in`` and ``out``.
        first: With which model to begin; the ones before gave calls that could not be used.
        down: Models that did not answer in this turn; they are not asked again in it.
    """

    trace: Trace = field(default_factory=lambda: Trace(""))
    tokens: dict[str, int] = field(default_factory=lambda: {"in": 0, "out": 0})
    first: int = 0
    down: set[str] = field(default_factory=set)


asking: ContextVar[Asking] = ContextVar("asking")


class NoModel(Exception):
    """No model could be asked, or none gave an answer that can be used."""


def remote(
    base_url: str = "", api_key: str = "", model: str = MODEL, timeout: float = 30.0
) -> agents.OpenAIChatCompletionsModel:
    """A model behind an OpenAI-compatible address.

    Args:
        base_url: Ending in ``/v1``; empty: the course's proxy.
        api_key: Its key.
        model: The model's name there.
        timeout: Seconds; :class:`Preferred` gives up earlier.
    """
    clients.settle_tracing()

    async def note(response: httpx.Response) -> None:
        if who := response.headers.get("x-litellm-model-id"):
            _named.get({})["by"] = who

    options = clients.http_options(timeout)
    if not base_url.startswith("https:"):
        options["verify"] = False  # without TLS: spares reading the machine's certificates
    web = openai.DefaultAsyncHttpxClient(**options, event_hooks={"response": [note]})
    given = {"base_url": base_url, "api_key": api_key or "none"} if base_url else {}
    client = clients.async_client(http_client=web, timeout=timeout, **given)
    # Hundreds of modules of the SDK are loaded when this is first looked at: now, and not in the
    # time that a model is given.
    assert client.chat.completions
    return agents.OpenAIChatCompletionsModel(model=model, openai_client=client)


class Preferred(Model):
    """Models in order of preference: the first usable answer counts (L06, as an SDK model).

    Args:
        models: Names and models.
        patience: Seconds for one model.
    """

    def __init__(self, models: Mapping[str, Model], patience: float = 20.0) -> None:
        self.models, self.patience = dict(models), patience

    async def get_response(self, *args: Any, **kwargs: Any) -> Any:
        """Ask one after another.

        Raises:
            NoModel: None gave a usable answer.
            Exception: What must not fall back, such as a wrong key.
        """
        now = asking.get(None) or Asking()
        trace = now.trace
        offered = kwargs["tools"] if "tools" in kwargs else args[3]
        names = {tool.name for tool in offered}
        for name, model in list(self.models.items())[now.first :]:
            if not trace.left():
                break
            if name in now.down:
                continue
            try:
                with trace.attempt(name) as attempt:
                    answer = await self._one(name, model, attempt, now, args, kwargs)
                    if problem := no_answer(answer) or not_offered(answer, names):
                        raise BadAnswer(problem)
                return answer
            except Exception as error:
                if not must_fall_back(error):
                    raise
                if not isinstance(error, BadAnswer) or str(error) == LATE:
                    now.down.add(name)
        raise NoModel(trace.line())

    async def _one(
        self, name: str, model: Model, attempt: Any, now: Asking, args: Any, kwargs: Any
    ) -> Any:
        named: dict[str, str] = {}
        token = _named.set(named)
        try:
            async with asyncio.timeout(min(self.patience, now.trace.left())):
                answer = await model.get_response(*args, **kwargs)
        except TimeoutError:
            raise BadAnswer(LATE) from None
        except (agents.ModelBehaviorError, AttributeError, TypeError, LookupError):
            # Status 200 and a body that is not what the interface promises.
            raise BadAnswer(GARBLED) from None
        finally:
            _named.reset(token)
        for item in answer.output:
            if getattr(item, "type", "") == "function_call":
                # Two servers may count their calls alike; the SDK refuses an id that comes twice.
                item.call_id = f"call_{secrets.token_hex(8)}"
        now.tokens["in"] += answer.usage.input_tokens
        now.tokens["out"] += answer.usage.output_tokens
        attempt.by = named.get("by", name)
        return answer

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Not offered: what must be looked at before it is shown cannot be shown in pieces."""
        raise NotImplementedError("An answer is looked at whole; ask with get_response.")

    async def close(self) -> None:
        """Close the clients."""
        for model in self.models.values():
            if client := getattr(model, "_client", None):
                await client.close()


def no_answer(answer: Any) -> str:
    """Why a model's answer cannot be used: nothing in it, cut off, or a call printed as text."""
    calls = [item for item in answer.output if getattr(item, "type", "") == "function_call"]
    words = "".join(
        getattr(part, "text", "")
        for item in answer.output
        if getattr(item, "type", "") == "message"
        for part in item.content
    )
    if answer.usage and answer.usage.output_tokens >= MAX_ANSWER:
        return "The answer was cut off."
    if not calls and not words.strip():
        return "The answer is empty."
    if not calls and "<tool_call>" in words:
        return "A call was printed as text."
    return ""


def not_offered(answer: Any, names: Collection[str]) -> str:
    """Why an answer cannot be used: it calls a tool that nobody offered; else nothing."""
    for item in answer.output:
        if getattr(item, "type", "") == "function_call" and item.name not in names:
            return f"There is no tool {item.name}."
    return ""
