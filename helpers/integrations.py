"""The skill before and after: five integrations, each tried with the code that a version supplies.

The first version of the skill is the one that L00 ends with, the last one the finished reference.
Both are rebuilt from the reference. An integration names the places where a skill may hold its
code, the most special one first; the first place that a version has supplies the code, word for
word. It is then executed in a process of its own. Nothing is mended in it. What has to be filled
in comes to every version in the same way: ``BACKEND_URL`` and ``BACKEND_KEY`` in the environment
of Python code, and in a configuration the address behind each ``http://127.0.0.1:PORT/v1``.

The model is a stand-in (:mod:`helpers.standins`): here the code is tried, not the model. Its
answers hold a number that is drawn for each try, and who claims to have an answer must show it.
A configuration is tried with LiteLLM's own router, the part of the proxy that reads the models
and calls them; the proxy's server takes too long to start, and nothing here asks about its keys.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import secrets
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import settings
from helpers.skill import NAME, Skill
from helpers.standins import HostedStandIn, Request, Step, drop, error, text, tool_call

FIRST, LAST = "first version", "last version"
NO_CODE = "No code block."
TIMEOUT = 180.0  # seconds for one process; its imports take a few, on a busy machine many
KEY = "none"  # the configurations of the skill have this word; the stand-in asks for it

# --- versions and their code -----------------------------------------------------------------


def versions(folder: Path) -> dict[str, Path]:
    """Both versions of the skill, rebuilt in a folder.

    Args:
        folder: Where to; it gets two folders.

    Returns:
        The skill's folder for :data:`FIRST` and :data:`LAST`.
    """
    found = {}
    # Who starts with L01 catches up on L00 alone; who starts after L07, on all of it.
    for version, lesson in ((FIRST, "L01"), (LAST, "L08")):
        path = folder / version.partition(" ")[0] / NAME
        Skill(lesson, path, echo=lambda line: None).catch_up()
        found[version] = path
    return found


@dataclass(frozen=True)
class Code:
    """What a version of the skill supplies for an integration.

    Attributes:
        language: ``python`` or ``yaml``.
        blocks: As they stand in the skill, in their order.
    """

    language: str
    blocks: tuple[str, ...]


def code_for(skill: Path, places: Sequence[tuple[str, str]]) -> Code | None:
    """The code that a skill supplies: that of the first place which it has.

    The first block under the heading that is Python or YAML decides on the language; all blocks of
    this language under the heading are taken. Those above it in the file come before, where the
    file says that its blocks build on one another.

    Args:
        skill: The skill's folder.
        places: File and heading, without ``##``.

    Returns:
        The code, or None where no place has any.
    """
    for name, heading in places:
        try:
            source = (skill / name).read_text(encoding="utf-8")
        except OSError:
            continue
        builds = "blocks build on one another" in " ".join(source.split()).lower()
        above: list[tuple[str, str]] = []
        # A heading inside a block of code is not one.
        for title, body in re.findall(
            r"^## (.+?)\n((?:```.*?^```|(?!^## )[^\n]*\n?)*)", source, re.M | re.S
        ):
            found = re.findall(r"^```(python|yaml)\n(.*?)^```", body, re.M | re.S)
            if title == heading and found:
                language = found[0][0]
                every = [*above, *found] if builds else found
                return Code(language, tuple(code for kind, code in every if kind == language))
            above += found
    return None


# --- running it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What came of running code once.

    Attributes:
        error: Such as "ended with ValueError"; empty when it came to its end.
        seen: What it printed and what its names hold, as one text.
        tools: Names of MCP tools that a client called without an error.
    """

    error: str
    seen: str
    tools: tuple[str, ...]


class _Elsewhere(socketserver.ThreadingTCPServer):
    """Every address that nobody gave to the code: it counts who comes, and hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        self.count = 0
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.count += 1
        self.shutdown_request(request)

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        super().__exit__(*exc)

    def environment(self) -> dict[str, str]:
        """What leads the SDK's default address, and all outside this machine, to here."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        env = dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"], url)
        env |= dict.fromkeys(["NO_PROXY", "no_proxy"], "127.0.0.1,localhost")
        return env | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "not-a-real-key"}


def _run(
    code: Code, skill: Path, models: Sequence[HostedStandIn] = (), tools: Sequence[Any] = ()
) -> tuple[list[Ran], int]:
    """Run code once for each model, in one process, because the imports take longest.

    Args:
        code: What to run; of YAML the first block.
        skill: Its folder; Python runs in ``scripts`` there.
        models: Who answers; without any, Python is run once.
        tools: What a configuration's model is offered.

    Returns:
        What came of each run, and how many connections went to an address that nobody gave.
    """
    urls = [model.url for model in models] or ["http://127.0.0.1:9/v1"]
    job = {"language": code.language, "blocks": code.blocks, "urls": urls, "tools": list(tools)}
    where = skill / "scripts"
    with _Elsewhere() as elsewhere:
        env = settings.scrubbed(os.environ) | elsewhere.environment() | {
            "BACKEND_KEY": KEY, "PYTHONPATH": str(settings.ROOT), "PYTHONIOENCODING": "utf-8",
            "PYTHONDONTWRITEBYTECODE": "1", "FASTMCP_SHOW_SERVER_BANNER": "false",
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-m", "helpers.integrations"], input=json.dumps(job), env=env,
                cwd=where if where.is_dir() else skill, capture_output=True, encoding="utf-8",
                errors="replace", timeout=TIMEOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return [Ran("took too long", "", ())] * len(urls), elsewhere.count
        try:
            rows = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):  # it ended itself
            return [Ran("ended its process", "", ())] * len(urls), elsewhere.count
        return [Ran(why, seen, tuple(called)) for why, seen, called in rows], elsewhere.count


def _child() -> None:
    """In the process of its own: read the job, run it, write what came of it."""
    job = json.load(sys.stdin)
    rows = []
    for url in job["urls"]:
        os.environ["BACKEND_URL"] = url
        called: list[str] = []
        names: dict[str, Any] = {"__name__": "__main__"}
        why, out = "", io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                if job["language"] == "yaml":
                    asyncio.run(_route(job["blocks"][0], url, job["tools"], names))
                else:
                    asyncio.run(_execute(job["blocks"], names, called))
            except (Exception, SystemExit) as problem:
                why = f"ended with {type(problem).__name__}"
        rows.append([why, f"{out.getvalue()}\n{_shown(names)}", called])
    print("\n" + json.dumps(rows))


async def _execute(blocks: Sequence[str], names: dict[str, Any], called: list[str]) -> None:
    """Run blocks one after another, as the cells of a notebook; ``await`` may stand alone."""
    if any("fastmcp" in block for block in blocks):
        _watch(called)
    for number, block in enumerate(blocks, 1):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        done = eval(compile(block, f"block {number}", "exec", flags=flags), names)
        if inspect.isawaitable(done):
            await done


def _watch(called: list[str]) -> None:
    """Note which tools MCP clients call in this process, and get a result from."""
    from fastmcp import Client

    original = Client.call_tool

    async def call_tool(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, name, *args, **kwargs)
        if not result.is_error:
            called.append(name)
        return result

    Client.call_tool = call_tool  # type: ignore[method-assign]


async def _route(config: str, url: str, tools: list[Any], names: dict[str, Any]) -> None:
    """Ask for the first model of a configuration, its addresses on this machine led to ``url``."""
    import yaml
    from litellm import Router

    loaded = yaml.safe_load(re.sub(r"http://127\.0\.0\.1:\d+/v1", url, config))
    router = Router(model_list=loaded["model_list"], **loaded.get("router_settings") or {})
    names["reply"] = await router.acompletion(
        model=loaded["model_list"][0]["model_name"], tools=tools,
        messages=[{"role": "user", "content": "Add a task to call mum"}],
    )  # fmt: skip


def _shown(names: Mapping[str, Any]) -> str:
    shown = []
    for name, value in names.items():
        with contextlib.suppress(Exception):
            if not name.startswith("__"):
                shown.append(repr(value))
    return "\n".join(shown)


# --- the model -------------------------------------------------------------------------------


class _Model:
    """A stand-in's script that calls the first tool on offer, and then says so.

    Args:
        main: What the model says that is asked first, instead; None: as all others.

    Attributes:
        called, said: The numbers in the arguments of a call, and in a text for an agent.
    """

    def __init__(self, main: Step | None = None) -> None:
        self.called, self.said = (10**9 + secrets.randbelow(10**9) for _ in range(2))
        self._main, self._first = main, ""

    def __call__(self, request: Request) -> Step:
        body = request.body
        self._first = self._first or str(body.get("model"))
        if self._main is not None and body.get("model") == self._first:
            return self._main
        if not body.get("tools") or body["messages"][-1]["role"] == "tool":
            return text(f"Done, {self.said}." if _by_agent(request) else "Done.")
        function = body["tools"][0]["function"]
        schema = function["parameters"]
        values = {"integer": self.called, "number": 1.5, "boolean": True}
        arguments = {}
        for key in schema.get("required", []):
            kind = schema["properties"][key]
            value = values.get(kind.get("type"), f"call {self.called}")
            arguments[key] = kind.get("enum", [value])[0]
        return tool_call(function["name"], **arguments)


def _by_agent(request: Request) -> bool:
    """Whether the Agents SDK sent it; it says so itself."""
    return request.headers.get("user-agent", "").startswith("Agents/")


def _asked(server: HostedStandIn) -> list[Request]:
    """The chat completions that reached a server with the right key."""
    return [
        request
        for request in server.requests
        if request.path.endswith("/chat/completions") and isinstance(request.body, dict)
        and request.headers.get("authorization") == f"Bearer {KEY}"
    ]  # fmt: skip


# --- the checks: each returns a reason, empty when the code passes -------------------------------


def _proxy(code: Code, skill: Path) -> str:
    from helpers.tasks import tool_schemas

    model, tools = _Model(), tool_schemas()
    with HostedStandIn(model, KEY) as server:
        (ran,), _ = _run(code, skill, [server], tools)
    asked = _asked(server)
    if ran.error:
        return f"It {ran.error}."
    if not asked:
        return "Nothing reached the backend."
    if (arrived := asked[-1].body.get("tools") or []) != tools:
        whole = sum(tool in arrived for tool in tools)
        return f"Of {len(tools)} tools, {whole} reached the backend as they were."
    return "" if str(model.called) in ran.seen else "The tool call did not come back."


def _asks(code: Code, skill: Path, model: _Model) -> tuple[str, list[Request], str]:
    """Run code that is to ask a model: why it failed, what reached the model, what it shows."""
    with HostedStandIn(model, KEY) as server:
        (ran,), elsewhere = _run(code, skill, [server])
    why = f"It {ran.error}." if ran.error else ""
    if elsewhere:
        why = "It asked an address that nobody gave it."
    return why, _asked(server), ran.seen


def _client(code: Code, skill: Path) -> str:
    model = _Model()
    why, asked, seen = _asks(code, skill, model)
    if why:
        return why
    mine = [request for request in asked if not _by_agent(request)]
    if not mine:
        return "No client reached the model."
    if not any(request.body.get("tools") for request in mine):
        return "The client offered no tool, so no call came."
    return "" if str(model.called) in seen else "The call did not reach the program."


def _agent(code: Code, skill: Path) -> str:
    model = _Model()
    why, asked, seen = _asks(code, skill, model)
    if why:
        return why
    if not any(map(_by_agent, asked)):
        return "No agent reached the model."
    return "" if str(model.said) in seen else "The agent's answer did not reach the program."


def _fallback(code: Code, skill: Path) -> str:
    from helpers.tasks import tool_schemas

    model, locked = _Model(main=drop(0)), _Model(main=error(401))
    with HostedStandIn(model, KEY) as down, HostedStandIn(locked, KEY) as refusing:
        (ran, _), _ = _run(code, skill, [down, refusing], tool_schemas())
    if not _asked(down):
        return "The main model was not asked."
    if len({request.body.get("model") for request in _asked(down)}) == 1:
        return "With the main model down, no other was asked."
    if ran.error:
        return f"With the main model down, it {ran.error}."
    if str(model.called) not in ran.seen:
        return "With the main model down, the other's answer did not reach the program."
    if not _asked(refusing):
        return "With a wrong key, the main model was not asked."
    if len({request.body.get("model") for request in _asked(refusing)}) > 1:
        return "It falls back on a wrong key as well."
    return ""


def _mcp(code: Code, skill: Path) -> str:
    (ran,), _ = _run(code, skill)
    if ran.error:
        return f"It {ran.error}."
    return "" if ran.tools else "No client got a result from a tool."


# --- the integrations ------------------------------------------------------------------------


@dataclass(frozen=True)
class Integration:
    """One thing that an assistant may be asked to build.

    Attributes:
        name: In two or three words.
        wanted: What is wanted, in one sentence.
        places: Where a skill may hold the code: file and heading, the most special one first.
        check: Runs the code that a skill supplies; returns why it does not pass, empty if it does.
    """

    name: str
    wanted: str
    places: tuple[tuple[str, str], ...]
    check: Callable[[Code, Path], str]


def _places(special: str, heading: str, pattern: str) -> tuple[tuple[str, str], ...]:
    return (f"references/{special}", heading), ("references/patterns.md", pattern)


INTEGRATIONS = (
    Integration(
        "LiteLLM proxy",
        "A configuration routes a model's name to the local backend, with all tools intact.",
        _places("litellm-proxy.md", "The files", "Proxy configuration"),
        _proxy,
    ),
    Integration(
        "OpenAI SDK",
        "A client at the local backend's address gets a tool call.",
        _places("openai-sdk.md", "Read an answer, whole or streamed", "base_url"),
        _client,
    ),
    Integration(
        "Agents SDK",
        "An agent reaches the local model through a client of its own, and nobody else.",
        _places("openai-sdk.md", "An agent that talks to your backend", "base_url"),
        _agent,
    ),
    Integration(
        "Fallback",
        "Another model answers when the main one is down, but not when the key is wrong.",
        _places("fallbacks.md", "What falls back", "Fallback"),
        _fallback,
    ),
    Integration(
        "MCP server",
        "A server offers a tool, and a client gets a result from it.",
        _places("mcp-server.md", "Test it without a network", "MCP"),
        _mcp,
    ),
)


def attempt(integration: Integration, skill: Path) -> str:
    """Try an integration with the code that a skill supplies.

    Args:
        integration: One of :data:`INTEGRATIONS`.
        skill: The skill's folder.

    Returns:
        Why it does not pass, in one sentence; empty when it passes.
    """
    code = code_for(skill, integration.places)
    return integration.check(code, skill) if code else NO_CODE


def before_and_after() -> dict[str, dict[str, str]]:
    """Try all integrations with the first and with the last version of the skill.

    Returns:
        For :data:`FIRST` and :data:`LAST`, integration to reason, empty where it passes.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        skills = versions(Path(folder))
        jobs = [(one, skill) for skill in skills.values() for one in INTEGRATIONS]
        # Each is a process that mostly imports; more at once need more memory than Binder has.
        with ThreadPoolExecutor(max_workers=2) as pool:
            reasons = iter(list(pool.map(lambda job: attempt(*job), jobs)))
        return {version: {one.name: next(reasons) for one in INTEGRATIONS} for version in skills}


if __name__ == "__main__":
    _child()
