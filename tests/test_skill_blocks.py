"""Every block of code in the skill is run.

``python``: the blocks of a file one after another, in one program, with a server that speaks
OpenAI's API at ``BACKEND_URL``. ``console``: each line, in a copy of the skill. ``yaml``: a
configuration of the LiteLLM proxy, with its addresses led to stand-ins. A block in any other
language fails: nobody would notice when it stops being true.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from helpers import settings
from helpers.proxy import start_proxy, wait_ready
from helpers.skill import NAME, REFERENCE
from helpers.standins import HostedStandIn, text, tool_call

FILES = sorted(path.relative_to(REFERENCE).as_posix() for path in REFERENCE.rglob("*.md"))
KNOWN = {"python", "console", "yaml"}

RUNNER = """
import ast, asyncio, inspect, json, sys

async def main(blocks):
    space = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        code = compile(block, f"block {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(code, space)
        if inspect.isawaitable(done):
            await done

asyncio.run(main(json.load(sys.stdin)))
"""

ROUTER = """
import asyncio, json, os, sys
from litellm import Router

async def main(config):
    settings = {k: v for k, v in config["router_settings"].items()}
    name = config["model_list"][0]["model_name"]
    messages = [{"role": "user", "content": "Finish task 14"}]
    for entry in config["model_list"]:
        entry["litellm_params"]["max_retries"] = 0
    router = Router(model_list=config["model_list"], **settings)
    reply = await router.acompletion(model=name, messages=messages)
    print(reply.choices[0].message.content)

asyncio.run(main(json.load(sys.stdin)))
"""


def blocks(name: str, language: str = "") -> list[str]:
    """The code blocks of a file of the skill, of one language or with it."""
    source = (REFERENCE / name).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", source, re.S | re.M)
    return [code for kind, code in found if kind == language] if language else found


def with_blocks(language: str) -> list[str]:
    return [name for name in FILES if blocks(name, language)]


def answer(request: Any) -> Any:
    """A model that calls the first tool on offer, and then says so."""
    body = request.body if isinstance(request.body, dict) else {}
    if not body.get("tools") or body["messages"][-1]["role"] == "tool":
        return text("Done.")
    function = body["tools"][0]["function"]
    schema = function["parameters"]
    values = {"integer": 14, "number": 1.5, "boolean": True}
    arguments = {
        key: schema["properties"][key].get("enum", [values.get(
            schema["properties"][key].get("type"), "call mum")])[0]
        for key in schema.get("required", [])
    }  # fmt: skip
    return tool_call(function["name"], **arguments)


@pytest.fixture
def backend():
    with HostedStandIn(answer, key=None, model="small") as server:
        yield server


@pytest.fixture
def copy(tmp_path):
    """A copy of the skill, with the proxy's configuration that its reference describes."""
    folder = tmp_path / NAME
    shutil.copytree(REFERENCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "config.yaml").write_text(blocks("references/litellm-proxy.md", "yaml")[0])
    return folder


def environment(**more: str) -> dict[str, str]:
    env = settings.scrubbed(os.environ)
    env |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    env |= {"OPENAI_AGENTS_DISABLE_TRACING": "1", "FASTMCP_SHOW_SERVER_BANNER": "false"}
    env |= {"FASTMCP_LOG_ENABLED": "false", "PYTHONIOENCODING": "utf-8"}
    # A block that does rely on the default address shall not reach the internet.
    env |= {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "not-a-real-key"}
    return env | more


def run(command: list[str], cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command, cwd=cwd, env=environment(**env), input=stdin, capture_output=True,
        encoding="utf-8", errors="replace", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-3000:]
    return done


def led_to(config: Any, url: str) -> Any:
    """A configuration with every address on this machine led to one server."""
    return json.loads(re.sub(r"http://127\.0\.0\.1:\d+/v1", url, json.dumps(config)))


@pytest.mark.parametrize("name", FILES)
def test_only_blocks_that_can_be_run(name):
    assert {kind for kind, _ in blocks(name)} <= KNOWN
    source = (REFERENCE / name).read_text(encoding="utf-8")
    assert source.count("```") == 2 * len(blocks(name)), "a fence that is not closed or indented"


@pytest.mark.slow
@pytest.mark.parametrize("name", with_blocks("python"))
def test_python(name, backend, copy):
    code = json.dumps(blocks(name, "python"))
    env = {"BACKEND_URL": backend.url, "BACKEND_KEY": "none", "LITELLM_MASTER_KEY": "sk-for-this"}
    run([sys.executable, "-c", RUNNER], copy / "scripts", code, **env)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_blocks("console"))
def test_console(name, backend, copy):
    lines = "".join(blocks(name, "console")).replace("\\\n", " ").splitlines()
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "python", line
        arguments = [sys.executable if word == "python" else word for word in arguments]
        run([sys.executable, *arguments], copy, BACKEND_URL=backend.url, BACKEND_KEY="none")


@pytest.mark.slow
@pytest.mark.parametrize("name", with_blocks("yaml"))
def test_yaml(name, backend, tmp_path):
    for block in blocks(name, "yaml"):
        config = led_to(yaml.safe_load(block), backend.url)
        before = len(backend.requests)
        said = run([sys.executable, "-c", ROUTER], tmp_path, json.dumps(config))
        assert "Done." in said.stdout
        assert len(backend.requests) == before + 1


@pytest.mark.slow
def test_the_proxy_of_the_reference_answers(backend, tmp_path, monkeypatch):
    """The real proxy with config.yaml and my_auth.py, as references/litellm-proxy.md has them."""
    name = "references/litellm-proxy.md"
    config = led_to(yaml.safe_load(blocks(name, "yaml")[0]), backend.url)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "my_auth.py").write_text(blocks(name, "python")[0], encoding="utf-8")
    proxy = start_proxy(file, log=tmp_path / "proxy.log")
    try:
        wait_ready(proxy)
        body = {"model": "tasks", "messages": [{"role": "user", "content": "Finish task 14"}]}
        with httpx.Client(base_url=proxy.url, trust_env=False, timeout=60) as web:

            def ask(key: str) -> httpx.Response:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                return web.post("/v1/chat/completions", json=body, headers=headers)

            assert [ask(key).status_code for key in ("", "sk-wrong", proxy.key)] == [401, 401, 200]
            reply = ask(proxy.key)
        assert reply.json()["choices"][0]["message"]["content"] == "Done."
        assert reply.headers["x-litellm-model-id"] == "small-local"
    finally:
        proxy.stop()
