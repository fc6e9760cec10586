"""Is an answer the same every time? Repeats requests under different conditions.

Outputs of lessons are committed, so a request in a lesson must give the same answer with
any number of threads and whatever else the backend is doing. ``differences()`` repeats
requests and compares; :func:`helpers.notebooks.near_ties` finds those that hang by a thread.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .settings import MODEL

# What occupies the other slots while a request is repeated: long answers of mixed length.
_NOISE = [
    {"messages": [{"role": "user", "content": text}], "max_tokens": 200, "temperature": 1}
    for text in ("hello", "tell me what you can do for me today", "thanks a lot " * 12)
]


def load(path: str | Path) -> list[dict[str, Any]]:
    """Requests from a file of JSON lines: bodies of ``/v1/chat/completions``."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _body(request: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    plain = {"model": MODEL, "temperature": 0, "seed": 7, "cache_prompt": False, "stream": False}
    return {**request, **plain, **more}


def _post(client: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return response.json()


def answer(client: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """What matters of an answer: its text, its calls in order, and why it ended.

    Args:
        client: An ``httpx.Client`` on a backend.
        request: The body of a chat completion; temperature, seed and caching are set here.
    """
    choice = _post(client, _body(request))["choices"][0]
    message = choice["message"]
    calls = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or []
    ]
    return {
        "text": message.get("content") or "",
        "calls": calls,
        "finish": choice["finish_reason"],
    }


def differences(
    requests: Sequence[Mapping[str, Any]],
    threads: Iterable[int] = (1, 2, 4),
    busy: bool = True,
    model: str | Path = MODEL,
) -> list[str]:
    """Repeat requests on backends with different numbers of threads, idle and busy.

    Args:
        requests: Bodies of chat completions.
        threads: One backend is started for each number.
        busy: Repeat them also while the other slots answer something else.
        model: A model's name or the path of a GGUF file.

    Returns:
        One sentence for each answer that was not the first one's; empty when all agree.
    """
    import httpx

    from .backend import serve
    from .clients import http_options

    found: list[str] = []
    first: list[dict[str, Any]] = []
    for count in threads:
        with serve(model, threads=count, alias=MODEL) as backend:
            with httpx.Client(base_url=backend.url, **http_options(60, direct=True)) as client:
                rounds = [("idle", [answer(client, request) for request in requests])]
                if busy:
                    with _Noise(backend.url):
                        answers = [answer(client, request) for request in requests]
                    rounds.append(("busy", answers))
        for state, answers in rounds:
            first = first or answers
            for number, (expected, got) in enumerate(zip(first, answers, strict=True)):
                if got != expected:
                    found.append(
                        f"request {number} on {count} threads, {state}: {got}, first {expected}"
                    )
    return found


class _Noise:
    """Keeps other slots of a backend busy while it is entered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in _NOISE]

    def _run(self, noise: Mapping[str, Any]) -> None:
        import httpx

        from .clients import http_options

        with httpx.Client(base_url=self.url, **http_options(60, direct=True)) as client:
            while not self.stop.is_set():
                # On a crowded machine noise may be cut off; it is only noise.
                with contextlib.suppress(httpx.HTTPError):
                    client.post("/v1/chat/completions", json={"model": MODEL, **noise})

    def __enter__(self) -> _Noise:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
