"""Backends that somebody else runs: is it there, does it take our key, which model has it?

Standard library only: ``doctor`` asks too, on a bare Python.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from .settings import MODEL, CourseError, Settings


class BackendProblem(CourseError):
    """What keeps a backend from being used.

    Attributes:
        kind: ``"down"`` (nothing answers), ``"model"`` (ours is not there) or ``"key"``.
    """

    def __init__(self, kind: str, what: str, why: str, todo: str) -> None:
        super().__init__(what, why, todo)
        self.kind = kind


def openai_base(url: str) -> str:
    """The address below which ``/chat/completions`` is: ``url`` with ``/v1`` where it has no path.

    >>> openai_base("http://127.0.0.1:8080")
    'http://127.0.0.1:8080/v1'
    >>> openai_base("https://example.org/openai/v1/")
    'https://example.org/openai/v1'
    """
    url = url.rstrip("/")
    return url if urlsplit(url).path else url + "/v1"


def is_remote(url: str) -> bool:
    """Whether an address leads to another machine."""
    host = urlsplit(url).hostname
    return host is not None and host not in ("127.0.0.1", "localhost", "::1")


def address(wanted: Settings) -> str:
    """Where the backend of these settings listens; empty for the one that the course starts."""
    return {"ollama": wanted.ollama_host, "llama.cpp": ""}.get(wanted.backend, wanted.backend)


def problem(kind: str, url: str, key: str = "", timeout: float = 5.0) -> BackendProblem | None:
    """What keeps a backend that we do not run from being used, or None.

    Args:
        kind: ``"ollama"``, or anything else for OpenAI's API.
        url: Its address.
        key: Its key; empty where it asks for none.
        timeout: Seconds to wait for an answer.
    """
    ollama = kind == "ollama"
    try:
        code, body = _get(
            f"{url}/api/tags" if ollama else f"{openai_base(url)}/models", key, timeout
        )
    except OSError as error:
        return BackendProblem(
            "down",
            f"{'Ollama' if ollama else 'The backend'} does not answer at {url}.",
            f"The connection failed: {getattr(error, 'reason', error)}",
            "Type: ollama serve (in another window), or unset BACKEND for the built-in model."
            if ollama
            else "Check BACKEND and that server, or unset BACKEND for the built-in model.",
        )
    if code in (401, 403):
        given = "It does not accept the one in BACKEND_KEY" if key else "BACKEND_KEY is not set"
        return BackendProblem(
            "key",
            f"The backend at {url} asks for a key.",
            f"{given} (status {code}).",
            "Set BACKEND_KEY to that server's key, or unset BACKEND for the built-in model.",
        )
    if ollama and code == 200 and MODEL not in _names(body):
        return BackendProblem(
            "model",
            f"Ollama has no model {MODEL}.",
            "It is made from the file in this repository, once.",
            f"Type: ollama create {MODEL} -f model/Modelfile",
        )
    return None


def model(url: str, key: str = "") -> str:
    """The model to ask an OpenAI-compatible server for: ours by name, else its first."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        _, body = _get(f"{openai_base(url)}/models", key, 5.0)
        names = [entry["id"] for entry in json.loads(body)["data"]]
        if names and MODEL not in names:
            return names[0]
    return MODEL


def _names(body: bytes) -> list[str]:
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        entries = json.loads(body).get("models", [])
        return [str(entry.get("name", "")).removesuffix(":latest") for entry in entries]
    return []


def _get(url: str, key: str, timeout: float) -> tuple[int, bytes]:
    """Status and body of a GET.

    Raises:
        OSError: Nobody answers within ``timeout`` seconds, or not in HTTP.
    """
    import http.client

    # A web proxy of this machine leads to other machines and must not come between on this one.
    proxies = None if is_remote(url) else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        request = urllib.request.Request(url)
        if key:  # not sent on to wherever that server redirects
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with opener.open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(str(error) or type(error).__name__) from error
