"""The agent on the command line.

::

    python -m helpers.agent serve             # on the web: REST, and a page
    python -m helpers.agent "finish task 3"   # one request
    python -m helpers.agent                   # a conversation
    python -m helpers.agent --json "…"        # for programs: one JSON object per request
    python -m helpers.agent mcp               # over MCP, on standard input and output
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.agent.core import Turn
from helpers.agent.service import Config, Parts, Service
from helpers.settings import CourseError

# What a program that called us can go by.
EXIT = {"answered": 0, "told": 1, "refused": 2, "waiting": 3}


def main(arguments: Sequence[str] | None = None, parts: Parts | None = None) -> int:
    """Run the agent; returns the exit status.

    Args:
        arguments: Of the command line.
        parts: In place of the package's own; an exported agent passes its own.
    """
    parser = argparse.ArgumentParser(prog="agent", description="An agent that keeps a task list.")
    parser.add_argument("words", nargs="*", help='a request; or "serve", or "mcp"; or nothing')
    parser.add_argument("--json", action="store_true", help="one JSON object per request")
    parser.add_argument("--conversation", default="cli", help="which conversation goes on")
    parser.add_argument("--new", action="store_true", help="forget the conversation first")
    parser.add_argument("--parts", type=Path, help="a module with parts of the agent")
    # For a starter in Python: speak JSON lines, end when the starter ends.
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    send: Any = None
    if options.child:
        from helpers.children import end_with_parent, report_to_parent

        send = report_to_parent()
        end_with_parent()
    try:
        if options.parts:
            parts = load_parts(options.parts)
        if options.words == ["mcp"]:
            return _mcp(Config.from_env(), parts)
        config = Config.from_env()
        if options.words == ["serve"]:
            return _serve(config, parts, send)
        service = Service(config, parts)
        return asyncio.run(_talk(service, options))
    except CourseError as problem:
        if send:
            send({"event": "failed", "what": problem.what, "why": problem.why,
                  "todo": problem.todo})  # fmt: skip
        else:
            print(problem, file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130


def load_parts(path: Path) -> Parts:
    """The parts that a module defines under their names.

    Raises:
        CourseError: There is no such module.
    """
    if not path.is_file():
        raise CourseError(f"There is no module {path.name}.", "It holds the agent's parts.",
                          "Export the agent again.")  # fmt: skip
    made = runpy.run_path(str(path))
    return Parts(**{name: made[name] for name in Parts.__dataclass_fields__ if name in made})


# --- talking -----------------------------------------------------------------------------------


async def _talk(service: Service, options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    agent = service.agent(options.conversation)
    if options.new:
        await agent.session.clear_session()
    status = 0
    try:
        if options.words:
            requests = [" ".join(options.words)]
        elif sys.stdin.isatty():
            requests = None
            console.print("Say what is to be done; an empty line ends the conversation.")
        else:
            requests = [line.strip() for line in sys.stdin if line.strip()]
        while True:
            if requests is None:
                text = await asyncio.to_thread(_line)
                if not text:
                    break
            elif requests:
                text = requests.pop(0)
            else:
                break
            await service.drain()
            turn = await service.turn(options.conversation, text)
            status = EXIT[turn.state]
            if options.json:
                print(json.dumps(turn.to_dict(), ensure_ascii=False), flush=True)
            else:
                show(turn, console)
    finally:
        await service.stop()
    return status


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def show(turn: Turn, console: Any) -> None:
    """A turn, for people."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(turn.text)}[/bold]")
    for call in turn.calls:
        given = ", ".join(
            f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in dict(call["arguments"]).items()
        ) if isinstance(call["arguments"], dict) else str(call["arguments"])  # fmt: skip
        mark = "done    " if call["done"] else "not done"
        console.print(f"  {mark} {escape(call['name'])}({escape(given)})")
        tasks = call["result"].get("tasks")
        if tasks:
            table = Table("no.", "task", "priority", "status", "due")
            for task in tasks:
                table.add_row(*(escape(str(value or "")) for value in task.values()))
            console.print(table)
    console.print(f"  [dim]{escape(turn.trace.line() or turn.state)}[/dim]")


# --- serving -----------------------------------------------------------------------------------


def _serve(config: Config, parts: Parts | None, send: Any) -> int:
    from dataclasses import replace

    from helpers.agent import rest
    from helpers.children import bound_socket

    try:
        door = bound_socket(config.port, config.host)
    except OSError as error:
        raise CourseError(
            f"Port {config.port} is taken.",
            f"The system says: {error.strerror}.",
            "Set AGENT_PORT to another one, or to 0 for any that is free.",
        ) from None
    spare = None
    if not config.model_url:  # everything on this machine
        from helpers import backend, services
        from helpers.settings import MINI

        if not send:
            print("Starting the model and the proxy; that takes about half a minute.", flush=True)
        services.ensure(wait=("backend", "proxy"), quiet=True)
        spare = backend.serve(MINI)
        config = replace(config, spare_url=f"{spare.url}/v1", spare=MINI)
    door.listen(256)
    url = f"http://127.0.0.1:{door.getsockname()[1]}"

    def ready() -> None:
        if send:
            send({"event": "ready", "url": url})
        else:
            print(f"Listening at {url}")
            print(f"The page, with the key: {url}/#key={config.kept_key()}", flush=True)

    try:
        rest.serve(Service(config, parts), door, ready)
    finally:
        if spare:
            spare.stop()
    return 0


def _mcp(config: Config, parts: Parts | None) -> int:
    """The tools of L05 over the same tasks, and the agent itself."""
    given = {
        "TASKS_DB": str(config.dir / "tasks.sqlite"),
        "TASKS_MODEL_URL": config.model_url,
        "TASKS_MODEL_KEY": config.model_key,
        "TASKS_MODEL": config.model,
        "TASKS_MODEL_TIMEOUT": str(config.patience),
    }
    os.environ.update({name: value for name, value in given.items() if value})
    from helpers import mcp_server

    mcp_server.quiet()
    from helpers.agent.over_mcp import add_agent

    server = mcp_server.exported(Path(config.mcp)) if config.mcp else mcp_server.build()
    service = Service(config, parts)
    add_agent(server, service)
    mcp_server.main([], server)
    return 0
