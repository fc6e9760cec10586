"""What lesson L05 tries its servers with: a call in one line, a knock at the door, a stopwatch."""

from __future__ import annotations

import atexit
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import settings
from helpers.mcp_server import connect

if TYPE_CHECKING:
    from agents.mcp import MCPServerStdio
    from fastmcp import Client, FastMCP


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
