"""The model without llama.cpp's grammar: its raw text, and what our own parser makes of it.

With tools in a request, llama.cpp lets the model choose, from the first letters of a call on,
only among tokens that keep the call valid. That hides how often the model itself would write
something else. Here the prompt is made by the server's own template, completed without any
grammar, and read strictly: what is not a valid call stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from .evaluation import Answer, Ask, Tools
from .settings import CourseError

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def parse(text: str) -> dict[str, Any]:
    """A message of the text that the model wrote.

    A call is an object with a ``name``, a text, and ``arguments``, an object, in JSON, between
    ``<tool_call>`` and ``</tool_call>``. Anything else stays in ``content``, where the scorer
    recognises it as a call that no client can execute.

    Examples:
        >>> parse('<tool_call>{"name": "list_tasks", "arguments": {}}</tool_call>')["tool_calls"]
        [{'type': 'function', 'function': {'name': 'list_tasks', 'arguments': '{}'}}]
        >>> parse("<tool_call>{list_tasks}</tool_call>")["content"]
        '<tool_call>{list_tasks}</tool_call>'
    """
    calls: list[dict[str, Any]] = []

    def take(match: re.Match[str]) -> str:
        try:
            call = json.loads(match[1], parse_constant=_refuse)
        except (ValueError, RecursionError):
            return match[0]
        if not (isinstance(call, dict) and set(call) == {"name", "arguments"}):
            return match[0]
        name, arguments = call["name"], call["arguments"]
        if not (isinstance(name, str) and isinstance(arguments, dict)):
            return match[0]
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"type": "function", "function": function})
        return ""

    content = _CALL.sub(take, text).strip()
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    return message | {"tool_calls": calls} if calls else message


def _refuse(constant: str) -> None:
    """NaN and Infinity, which Python reads, are not JSON."""
    raise ValueError(constant)


def free_ask(
    url: str, *, max_tokens: int = 256, seed: int = 0, timeout: float = 60, client: Any = None
) -> Ask:
    """A function like ``evaluation.http_ask``, for a completion without a grammar.

    Args:
        url: A llama.cpp server, without ``/v1``.
        max_tokens: Tokens of an answer at most; a longer one is cut off.
        seed: As in the API; temperature is 0.
        timeout: Seconds.
        client: An ``httpx.Client`` to use instead of a new one.

    Raises:
        CourseError: (the function) Nothing listens there, or it is not llama.cpp.
    """
    import httpx

    from .clients import http_options

    base = url.rstrip("/").removesuffix("/v1")
    client = client or httpx.Client(**http_options(timeout, direct=True))

    def post(path: str, body: dict[str, Any]) -> Any:
        try:
            response = client.post(base + path, json=body)
        except httpx.ConnectError as error:
            raise CourseError(
                "The model does not answer.",
                f"Nothing listens at {base}.",
                "Start the services with: python3 -m helpers up",
            ) from error
        if response.status_code in (404, 405):
            raise CourseError(
                "The model cannot be asked without a grammar there.",
                f"{base} has no {path}; only llama.cpp's own server does.",
                "Leave out --free, or measure the backend itself instead of a proxy.",
            )
        return response

    def ask(messages: Sequence[dict[str, Any]], tools: Tools) -> Any:
        # An absent list of tools and an empty one are not the same to every template.
        offered = {"tools": tools} if tools else {}
        try:
            prompt = post("/apply-template", {"messages": list(messages), **offered})
            if prompt.status_code != 200:
                return Answer(error=f"HTTP {prompt.status_code}: {prompt.text[:200]}")
            body = {
                "prompt": prompt.json()["prompt"],
                "n_predict": max_tokens,
                "temperature": 0,
                "seed": seed,
                "cache_prompt": False,
            }
            response = post("/completion", body)
        except httpx.TransportError as error:
            return Answer(error=type(error).__name__)
        if response.status_code != 200:
            return Answer(error=f"HTTP {response.status_code}: {response.text[:200]}")
        data = response.json()
        message = parse(data["content"])
        finish = "tool_calls" if "tool_calls" in message else "stop"
        if data.get("stop_type") == "limit" or data.get("truncated"):
            finish = "length"
        return {"message": message, "finish_reason": finish}

    return ask
