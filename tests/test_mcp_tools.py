"""The task server under the official tools: MCP Inspector's command line, conformance suite.

Both come from npm, at the versions and hashes of ``tests/npm``, into ``work/npm``, with a Node 22
of their own. What is installed once needs no network again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from filelock import FileLock

from conftest import needed
from helpers import mcp_server as m
from helpers import settings
from helpers.standins import HostedStandIn, tool_calls

HERE = Path(__file__).parent
PINS = HERE / "npm"
TOKEN = "a-token-for-tests-0123456789"

pytestmark = pytest.mark.needs("node")


def missing(reason: str) -> None:
    """Skip; fail where Node is required."""
    if "node" in os.environ.get("COURSE_REQUIRE", "").split(","):
        pytest.fail(f"required, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def npm() -> Path:
    """The folder ``node_modules`` with both tools."""
    needed("node")
    folder = settings.WORK / "npm"
    files = [PINS / "package.json", PINS / "package-lock.json"]
    pins = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    done = folder / "installed"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock", timeout=900):
        if not done.is_file() or done.read_text() != pins:
            done.unlink(missing_ok=True)
            program = shutil.which("npm")
            if program is None:
                missing("no npm on the PATH")
            for file in files:
                shutil.copy(file, folder)
            # No package runs a script of its own on the way in.
            call = [program, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            run = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=900)
            if run.returncode:
                said = [line for line in run.stderr.splitlines() if "error" in line]
                missing(f"the tools cannot be installed: {' '.join(said)[:300]}")
            done.write_text(pins)
    return folder / "node_modules"


def node(npm: Path, script: str, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a script with the Node 22 that came with it."""
    # npm has it for Linux and Windows; elsewhere, the Node that is there has to be new enough.
    found = [*npm.glob("node-*/bin/node"), *npm.glob("node-*/bin/node.exe")] or [needed("node")]
    version = subprocess.run([found[0], "--version"], capture_output=True, text=True).stdout
    if int(re.match(r"v(\d+)", version)[1]) < 22:
        missing(f"Node 22 is needed, and {version.strip()} is there")
    home = str(npm.parent / "home")
    env = {**os.environ, "HOME": home, "USERPROFILE": home, "NO_COLOR": "1", "NO_PROXY": "*"}
    call = [str(found[0]), str(npm / script), *args]
    return subprocess.run(call, env=env, capture_output=True, text=True, timeout=300, **more)


# --- the Inspector ---------------------------------------------------------------------------

INSPECTOR = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A model that finishes task 1, whatever it is asked, and an empty list of tasks."""
    with HostedStandIn(lambda request: tool_calls(("complete_task", {"task_id": 1}))) as standin:
        db = tmp_path_factory.mktemp("inspector") / "t.sqlite"
        yield {
            "db": db,
            "TASKS_MODEL_URL": standin.url,
            "TASKS_MODEL_KEY": standin.key,
        }


def exported(folder: Path) -> Path:
    """The module that the lesson writes: from the notebook's own solution cells."""
    cells = folder / "cells.py"
    (path,) = settings.NOTEBOOKS.glob("L05_*.ipynb")
    made = [
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if "solution" in cell.metadata.get("tags", []) or "\n@server." in f"\n{cell.source}"
    ]
    before = (
        "import asyncio\n"
        "from helpers import mcp_server\n"
        "from helpers.mcp_server import *\n"
        "from helpers.tasks import TaskError, tool_schemas\n"
        "from helpers.validators import DELETING, ToolCallError, validate_tool_call\n"
        "server = mcp_server.build(Config(), TaskStore())\n"
    )
    cells.write_text("\n\n".join([before, *made]), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("l05_cells", cells)
    space = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(space)
    return m.export(
        folder / "task_server.py",
        parse=space.parse_task_response_solution,
        guard=space.asked_for_solution,
        hints=space.HINTS_solution,
        added=[space.urgent_tasks, space.stand_up, space.preview_request],
    )


@pytest.fixture(scope="module", params=["stdio", "http"])
def inspect(request, npm, environment, tmp_path_factory):
    """``inspect("tools/list", …)``: what the Inspector prints, and its exit status."""
    module = exported(tmp_path_factory.mktemp("exported"))
    if request.param == "stdio":
        start = m.launch(module=module, **environment)
        target = [start["command"], *start["args"]]
        options = [part for k, v in start["env"].items() for part in ("-e", f"{k}={v}")]
        server = None
    else:
        log = tmp_path_factory.mktemp("http") / "mcp.log"
        server = m.serve(token=TOKEN, log=log, module=module, **environment)
        target = [server.url]
        options = ["--transport", "http", "--header", f"Authorization: Bearer {TOKEN}"]

    def run(method: str, *more: str) -> tuple[int, Any]:
        done = node(npm, INSPECTOR, "--cli", *target, *options, "--method", method, *more)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            return done.returncode, done.stdout + done.stderr

    yield run
    if server is not None:
        server.stop()


def test_inspector_lists(inspect):
    code, listed = inspect("tools/list")
    assert code == 0
    tools = {tool["name"]: tool for tool in listed["tools"]}
    assert set(tools) == {
        "create_task", "update_task", "complete_task", "list_tasks", "delete_task",
        "handle_request", "create_task_from_text", "preview_request",
    }  # fmt: skip
    assert tools["preview_request"]["annotations"]["readOnlyHint"] is True
    assert tools["list_tasks"]["annotations"]["readOnlyHint"] is True
    assert tools["delete_task"]["annotations"]["destructiveHint"] is True
    assert "task_id" in tools["create_task"]["outputSchema"]["properties"]
    code, listed = inspect("resources/list")
    assert code == 0
    assert {"tasks://open", "tasks://urgent"} <= {r["uri"] for r in listed["resources"]}
    code, listed = inspect("prompts/list")
    assert code == 0 and {p["name"] for p in listed["prompts"]} == {"plan_my_day", "stand_up"}


def test_inspector_calls(inspect):
    code, made = inspect("tools/call", "--tool-name", "create_task", "--tool-arg", "title=buy milk")
    assert code == 0 and made["structuredContent"]["title"] == "buy milk"
    asked = ["--tool-name", "handle_request", "--tool-arg", "request=finish task 1"]
    code, done = inspect("tools/call", *asked)
    assert code == 0 and "Completed task 1" in done["structuredContent"]["summary"]
    would = ["--tool-name", "preview_request", "--tool-arg", "request=finish task 1"]
    code, preview = inspect("tools/call", *would)
    assert code == 0 and "would be done" in json.dumps(preview["structuredContent"])
    code, read = inspect("resources/read", "--uri", "tasks://1")
    assert code == 0 and json.loads(read["contents"][0]["text"])["status"] == "completed"


def test_inspector_sees_errors(inspect):
    wrong = ["--tool-name", "complete_task", "--tool-arg", "task_id=99"]
    code, said = inspect("tools/call", *wrong)
    assert code == 5 and "There is no task 99." in json.dumps(said)


def test_inspector_with_a_wrong_token(npm, environment, tmp_path):
    with m.serve(token=TOKEN, log=tmp_path / "mcp.log", **environment) as server:
        options = ["--transport", "http", "--header", "Authorization: Bearer wrong-token"]
        done = node(npm, INSPECTOR, "--cli", server.url, *options, "--method", "tools/list")
    assert done.returncode != 0
    assert "create_task" not in done.stdout and TOKEN not in done.stdout + done.stderr


def test_inspector_finds_the_schemas_portable(npm, environment):
    start = m.launch(**environment)
    options = [part for k, v in start["env"].items() for part in ("-e", f"{k}={v}")]
    target = [start["command"], *start["args"]]
    done = node(npm, INSPECTOR, "--cli", *target, *options, "--method", "tools/list", "--strict")
    assert done.returncode == 0, done.stderr


# --- the conformance suite -------------------------------------------------------------------

SUITE = "@modelcontextprotocol/conformance/dist/index.js"
BASELINE = HERE / "conformance-baseline.yml"


@pytest.fixture
def conformance_server(tmp_path):
    """The task server with the suite's fixtures added; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, **m.environment(tmp_path / "t.sqlite")}
    with (tmp_path / "log").open("w") as log:
        call = [sys.executable, str(HERE / "conformance_server.py"), str(port)]
        process = subprocess.Popen(call, env=env, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                health = f"http://127.0.0.1:{port}/health"
                httpx.get(health, trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(30)


def test_conformance(npm, conformance_server, tmp_path):
    run = node(
        npm, SUITE, "server", "--url", conformance_server, "--suite", "all",
        "--expected-failures", str(BASELINE), cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    import yaml

    summary = run.stdout[run.stdout.index("=== SUMMARY ===") :]
    scenarios = re.findall(r"^\S ([\w-]+): \d+ passed, \d+ failed", summary, re.M)
    failed = re.findall(r"^\s+~ ([\w-]+)$", summary, re.M)
    expected = yaml.safe_load(BASELINE.read_text(encoding="utf-8"))["server"]
    assert len(scenarios) == 32 and sorted(failed) == sorted(expected) and len(expected) <= 4
