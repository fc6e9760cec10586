"""What lesson L05 tries and measures with: one call, a knock at the door, a stopwatch, cases."""

from __future__ import annotations

import atexit
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import notebooks, settings
from helpers.mcp_server import connect

if TYPE_CHECKING:
    from agents.mcp import MCPServerStdio
    from fastmcp import Client, FastMCP

    from helpers.evaluation import Case


def scratch() -> Path:
    """A folder for this process's files, gone when it ends."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


async def said(server: Any, tool: str, /, **arguments: Any) -> str:
    """What the model of a client reads after one call.

    Args:
        server: As for :func:`helpers.mcp_server.connect`, without a token.
        tool: The tool's name.
        **arguments: Its arguments.

    Returns:
        The result's text; an error begins with ``error: ``.
    """
    async with connect(server) as client:
        result = await client.call_tool(tool, arguments, raise_on_error=False)
    return ("error: " if result.is_error else "") + result.content[0].text


def stdio_server(start: Mapping[str, Any], **options: Any) -> MCPServerStdio:
    """The Agents SDK's ``MCPServerStdio``, whose server writes its log into a file.

    The SDK's own hands this process's standard error down to the server. In a notebook that is
    no file on Windows and under pytest, and starting fails: ``UnsupportedOperation: fileno``.

    Args:
        start: What :func:`helpers.mcp_server.launch` gives.
        **options: Of ``MCPServerStdio``.
    """
    from agents.mcp import MCPServerStdio
    from mcp.client.stdio import stdio_client

    class WithLog(MCPServerStdio):
        @contextlib.asynccontextmanager
        async def create_streams(self) -> AsyncIterator[Any]:
            settings.LOGS.mkdir(parents=True, exist_ok=True)
            with (settings.LOGS / "mcp-agent.log").open("w", encoding="utf-8") as log:
                async with stdio_client(self.params, errlog=log) as streams:
                    yield streams

    return WithLog(dict(start), **options)


async def per_call(client: Client, tool: str, repeats: int = 10, /, **arguments: Any) -> float:
    """Milliseconds for one call, the mean of some; the first one, which opens things, apart."""
    from time import perf_counter

    await client.call_tool(tool, arguments)
    began = perf_counter()
    for _ in range(repeats):
        await client.call_tool(tool, arguments)
    return 1000 * (perf_counter() - began) / repeats


HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "knock", "version": "1"},
    },
}


def knock(server: FastMCP, token: str, body: Any = HELLO, **headers: str) -> int:
    """Send the first message of a client to a server's HTTP application, and see what it says.

    It is the real application with its guards, called without opening a port.

    Args:
        server: The server.
        token: The bearer token to send.
        body: In place of a client's greeting.
        **headers: In place of what a client would send.

    Returns:
        The HTTP status; 200 means: let in.
    """
    from starlette.testclient import TestClient

    usual = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
    }
    with TestClient(server.http_app(), base_url="http://127.0.0.1") as web:
        return web.post("/mcp", headers=usual | headers, json=body).status_code


# --- is the model worth it? ------------------------------------------------------------------

# For requests whose answers a lesson only counts: not one of them is shown.
COUNTED = {"extra_headers": {notebooks.COUNTED: "1"}}

# Sentences as a lesson's author writes them, and the task that each of them means.
_PLAIN = {
    "Add a task to call mum tomorrow": {"title": "call mum", "due": "tomorrow"},
    "Create an urgent task to pay the rent": {"title": "pay the rent", "priority": "urgent"},
    "Add a task to water the plants on friday": {"title": "water the plants", "due": "friday"},
    "Add a task to renew my passport by friday": {"title": "renew my passport", "due": "friday"},
    "Create a high priority task to book the dentist": {
        "title": "book the dentist",
        "priority": "high",
    },
    "Add a task to buy milk": {"title": "buy milk"},
}


def plain_cases() -> list[Case]:
    """Six sentences, each with the one call of ``create_task`` that it means."""
    from helpers.evaluation import Case

    return [
        Case.from_dict(
            {
                "id": f"plain-{number}",
                "category": "create",
                "messages": [{"role": "user", "content": said}],
                "tools": ["create_task"],
                "expect": [{"name": "create_task", "args": {k: [v] for k, v in wanted.items()}}],
            }
        )
        for number, (said, wanted) in enumerate(_PLAIN.items(), 1)
    ]


def known(case: Case) -> dict[str, str]:
    """The arguments of a case's call, as a caller has them who needs no model."""
    return {k: v[0] for k, v in case.expect[0].args.items() if not k.endswith("?")}


def spoken(arguments: Mapping[str, str]) -> str:
    """Arguments as a sentence, for a tool that takes nothing else."""
    more = [f"{key} {value}" for key, value in arguments.items() if key != "title"]
    return ", ".join([f"Create a task: {arguments['title']}", *more])


def right(cases: Sequence[Case], readings: Iterable[Mapping[str, Any]]) -> int:
    """How many readings, arguments of ``create_task``, are what the cases want.

    Args:
        cases: What was said and what is expected.
        readings: One for each case, in the same order.
    """
    from helpers.evaluation import score

    calls = [
        {"function": {"name": "create_task", "arguments": json.dumps(dict(reading))}}
        for reading in readings
    ]
    pairs = zip(cases, calls, strict=True)
    return sum(bool(score(case, {"tool_calls": [call]})) for case, call in pairs)
