"""Clients that reach the course's services, and nothing else.

Every client here ignores web proxies of the environment, does not retry, and waits 30 s at
most: an error is seen when it happens, and what a lesson measures is one request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import proxy as proxy_module
from . import services
from .settings import MODEL, Settings

if TYPE_CHECKING:
    import httpx
    import openai
    from agents import OpenAIChatCompletionsModel

TIMEOUT = 30.0

# For answers that are the same every time: no sampling, a fixed seed, and no work reused
# from earlier requests (which would change rounding).
DETERMINISTIC: dict[str, Any] = {
    "temperature": 0,
    "seed": 7,
    "extra_body": {"cache_prompt": False},
}


@dataclass(frozen=True)
class Connection:
    """Where requests go.

    Attributes:
        base_url: The proxy's OpenAI API, ending in ``/v1``.
        api_key: The proxy's key.
        model: The model's name at the proxy.
        direct_url: The backend's OpenAI API, ending in ``/v1``.
        direct_model: The model's name at the backend.
        direct_key: The backend's key; any word where it asks for none.
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str
    direct_url: str
    direct_model: str = MODEL
    direct_key: str = field(default="none", repr=False)

    def __repr__(self) -> str:
        # What a cell ends with is printed: no ports and no keys in outputs.
        return f"<Connection to {self.model}>"


def connection(wait: tuple[str, ...] = ("backend", "proxy")) -> Connection:
    """Where the services are; starts or mends them first.

    Args:
        wait: Which of them must answer before this returns.

    Raises:
        CourseError: One of them does not start.
    """
    status = services.ensure(wait, quiet=True)
    backend = status.backend
    return Connection(
        base_url=f"{status.proxy.url}/v1" if status.proxy.url else "",
        api_key=services.key(),
        model=MODEL,
        # Ollama has an OpenAI API below /v1 as well.
        direct_url=proxy_module.openai_base(backend.url or ""),
        direct_model=backend.model or MODEL,
        direct_key=Settings.from_env().backend_key or "none",
    )


def _arguments(direct: bool, kw: dict[str, Any], http_client: type[Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"max_retries": 0, "timeout": TIMEOUT}
    if not {"base_url", "api_key"} <= set(kw):  # who names both needs no service of the course
        to = connection(("backend",) if direct else ("backend", "proxy"))
        defaults["base_url"] = to.direct_url if direct else to.base_url
        defaults["api_key"] = to.direct_key if direct else to.api_key
    arguments = {**defaults, **kw}
    if "http_client" not in arguments:
        options = http_options(arguments["timeout"], direct)
        arguments["http_client"] = http_client(**options)
    return arguments


def http_options(timeout: Any = TIMEOUT, direct: bool = False) -> dict[str, Any]:
    """Arguments for ``httpx.Client`` that suit servers on this machine.

    Args:
        timeout: Seconds.
        direct: For the backend: a new connection for each request. llama.cpp's server closes
            the connection after a streamed answer without saying so, and a next request that
            is just being written to it fails with "Server disconnected" (seen after every
            fifth stream). A new connection costs a fraction of a millisecond here.
    """
    import httpx

    return {
        # Only this machine is called: a web proxy in the environment must not come between.
        "trust_env": False,
        "timeout": timeout,
        "limits": httpx.Limits(
            max_connections=100,
            max_keepalive_connections=0 if direct else 20,
            # Less than a server's usual 5 s, so that it is not the server that closes.
            keepalive_expiry=3,
        ),
    }


def openai_client(direct: bool = False, **kw: Any) -> openai.OpenAI:
    """The OpenAI SDK's client, on the proxy.

    Args:
        direct: On the backend itself instead.
        **kw: Passed to ``openai.OpenAI``, over the defaults of this module.

    Raises:
        CourseError: A service does not start.
    """
    import openai

    return openai.OpenAI(**_arguments(direct, kw, openai.DefaultHttpxClient))


def async_client(direct: bool = False, **kw: Any) -> openai.AsyncOpenAI:
    """Like :func:`openai_client`, for ``await``."""
    import openai

    return openai.AsyncOpenAI(**_arguments(direct, kw, openai.DefaultAsyncHttpxClient))


def http(**kw: Any) -> httpx.Client:
    """An HTTP client on the backend: ``http().get("/health")``, ``.post("/v1/…", json=…)``.

    Args:
        **kw: Passed to ``httpx.Client``, over the defaults of this module.
    """
    import httpx

    to = connection(("backend",))
    url, headers = to.direct_url.removesuffix("/v1"), {"Authorization": f"Bearer {to.direct_key}"}
    return httpx.Client(**{"base_url": url, "headers": headers, **http_options(direct=True), **kw})


_tracing_settled = False


def agents_model(name: str = MODEL, direct: bool = False) -> OpenAIChatCompletionsModel:
    """A model for the OpenAI Agents SDK: ``Agent(model=agents_model(), …)``.

    It speaks chat completions, through the proxy. The first call in a process also switches
    the SDK's tracing off and takes out the exporter that would send traces to its makers;
    trace processors that are added later stay.

    Args:
        name: The model's name at the proxy.
        direct: Ask the backend itself instead.
    """
    import agents

    settle_tracing()
    client = async_client(direct=direct)
    return agents.OpenAIChatCompletionsModel(model=name, openai_client=client)


def settle_tracing() -> None:
    """Once in a process: chat completions by default, and no traces to the SDK's makers."""
    import agents

    global _tracing_settled
    if not _tracing_settled:
        agents.set_trace_processors([])
        agents.set_tracing_disabled(True)
        agents.set_default_openai_api("chat_completions")
        _tracing_settled = True
