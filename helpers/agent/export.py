"""The agent as a folder that runs without a notebook, and a process that runs it.

``export(folder, **parts)`` writes the parts that a notebook's cells define, the modules of the
course that the agent needs, the models, and what a machine needs to build and run it. Then
``python task_agent.py serve`` in that folder is the whole deployment on one machine.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers import settings
from helpers.agent.service import Parts
from helpers.children import Child, Server
from helpers.settings import MINI, MODEL, CourseError

ROOTS = (
    "helpers.agent.__main__",
    "helpers.agent.rest",
    "helpers.agent.cli",
    "helpers.mcp_server",
    "helpers.backend",
    "helpers.proxy",
)

# What a lesson's cells have at hand, and so an exported part as well.
_PARTS_HEAD = '''"""The parts of the agent that lesson L07 made; do not edit, export again."""

import json
import re

from helpers.agent.guardrails import *  # noqa: F403
from helpers.agent.guardrails import tokens
from helpers.agent.memory import cost, exchanges, text_of
from helpers.dates import parse_due
from helpers.resilience import said_title
from helpers.tasks import TaskError
from helpers.validators import asked_for_delete, clear_date, known_id, mentioned_id

MAX_REQUEST = {limit}
'''

_RUN = '''"""The Task API agent of lesson L07, without the notebook.

    python task_agent.py serve      everything, and a page to talk to it
    python task_agent.py "words"    one request
    python task_agent.py            a conversation; --json for programs
    python task_agent.py mcp        over MCP, for other assistants
"""

import os
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
# Services that this starts are Python as well, and use the modules beside this file.
os.environ["PYTHONPATH"] = str(here)

from helpers.agent.cli import load_parts, main

if __name__ == "__main__":
    sys.exit(main(parts=load_parts(here / "parts.py")))
'''

_LITELLM = """\
# The proxy of {compose}: one name for the model, one key.
model_list:
  - model_name: {model}
    litellm_params:
      model: {prefix}/{model}
      api_base: {base}
      {more}
      timeout: 30
    model_info: {{id: {model}-backend}}
router_settings: {{num_retries: 0, disable_cooldowns: true}}
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  custom_auth: helpers.proxy.user_api_key_auth
"""
_LLAMA_CPP = {
    "compose": "compose.yaml",
    "prefix": "openai",
    "base": "http://backend:8080/v1",
    "more": "api_key: none",
}
_OLLAMA = {
    "compose": "compose.ollama.yaml",
    "prefix": "ollama_chat",
    "base": "http://backend:8080",
    "more": "drop_params: true # Ollama knows no cache_prompt",
}

_DOCKERFILE = """\
# Tried with Podman, a bare Debian 12 with Python 3.11 in place of the image below; not with Docker.
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt constraints.txt ./
RUN pip install --no-cache-dir -r requirements.txt -c constraints.txt
COPY helpers ./helpers
COPY task_agent.py parts.py litellm.yaml litellm-ollama.yaml pyproject.toml ./
RUN useradd --create-home agent && mkdir /data && chown agent /data
USER agent
ENV AGENT_DIR=/data AGENT_HOST=0.0.0.0 AGENT_PORT=8070 PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8070
HEALTHCHECK --interval=30s --timeout=5s --start-period=40s CMD \\
  python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8070/health/live', timeout=4)"
CMD ["python", "task_agent.py", "serve"]
"""

_COMPOSE = """\
# Tried with podman-compose, the course's own llama.cpp in place of its image; not with Docker.
# Its network needs a name server (Podman: netavark and aardvark-dns).
#   export AGENT_KEY=$(openssl rand -hex 24) LITELLM_MASTER_KEY=sk-$(openssl rand -hex 24)
#   docker compose up
# With Ollama in place of llama.cpp: docker compose -f compose.yaml -f compose.ollama.yaml up
services:
  agent:
    build: .
    environment:
      AGENT_KEY: ${{AGENT_KEY:?set AGENT_KEY}}
      AGENT_HOSTS: 127.0.0.1,localhost
      AGENT_MODEL_URL: http://proxy:4000/v1
      AGENT_MODEL_KEY: ${{LITELLM_MASTER_KEY:?set LITELLM_MASTER_KEY}}
      AGENT_SPARE_URL: http://spare:8080/v1
      AGENT_SPARE: {mini}
    ports: ["127.0.0.1:8070:8070"]
    volumes: ["tasks:/data"]
    depends_on: [proxy, spare]
    restart: unless-stopped
  proxy:
    build: .
    command: ["litellm", "--config", "/app/litellm.yaml", "--host", "0.0.0.0", "--port", "4000"]
    environment:
      LITELLM_MASTER_KEY: ${{LITELLM_MASTER_KEY:?set LITELLM_MASTER_KEY}}
      LITELLM_MODE: PRODUCTION
      LITELLM_LOCAL_MODEL_COST_MAP: "True"
      PYTHONPATH: /app
    healthcheck: {{disable: true}}
    depends_on: [backend]
    restart: unless-stopped
  backend: &backend
    image: ghcr.io/ggml-org/llama.cpp:server
    command: ["-m", "/model/{model}.gguf", "--alias", "{model}", "--jinja",
              "--host", "0.0.0.0", "--port", "8080", "-c", "4096", "-np", "4"]
    volumes: ["./model:/model:ro"]
    restart: unless-stopped
  spare:
    <<: *backend
    command: ["-m", "/model/{mini}.gguf", "--alias", "{mini}", "--jinja",
              "--host", "0.0.0.0", "--port", "8080", "-c", "4096", "-np", "4"]
volumes:
  tasks:
"""

_COMPOSE_OLLAMA = """\
# Laid over compose.yaml, it puts Ollama where llama.cpp was. Not tried with Ollama's image.
services:
  proxy:
    command: ["litellm", "--config", "/app/litellm-ollama.yaml", "--host", "0.0.0.0",
              "--port", "4000"]
  backend:
    image: ollama/ollama
    environment: {{OLLAMA_HOST: "0.0.0.0:8080"}}
    entrypoint: ["/bin/sh", "-c"]
    command:
      - |
        ollama serve &
        until ollama list > /dev/null; do sleep 1; done
        ollama create {model} -f /model/Modelfile
        wait
"""

_README = """\
# Task API agent

An agent that keeps a task list, made by lesson L07. It speaks REST, MCP and the command line.

- `python task_agent.py serve` starts the model, the proxy and the service on this machine, and
  prints the address of a page with its key. Python 3.11 with `pip install -r requirements.txt -c
  constraints.txt`, or the course's own environment.
- `python task_agent.py "finish task 3"`, or without words for a conversation, or `mcp`.
- `docker compose up` starts the same in containers, `docker compose -f compose.yaml -f
  compose.ollama.yaml up` with Ollama in place of llama.cpp. Where this was made the first was tried
  with Podman and podman-compose, without the images of llama.cpp and Ollama, and not with Docker.

Settings are environment variables, `AGENT_…`; `helpers/agent/service.py` explains each.
Tasks, conversations, the outbox and a log of decisions lie in `AGENT_DIR`. Back up that folder.

- Is it alive: `/health/live`. Can it serve: `/health/ready`. Counters: `/metrics`.
- Requests wait in the outbox while no model answers; they are done, once, when one does.
- Send an `Idempotency-Key` with each request, and repeat it when you retry.
"""


# --- writing ---------------------------------------------------------------------------------


def export(folder: str | Path, **parts: Callable[..., Any]) -> Path:
    """Write the folder; the same parts give the same files.

    Args:
        folder: Where; what an earlier export wrote there is replaced, data is left alone.
        **parts: In place of the package's own, see :class:`~helpers.agent.service.Parts`.

    Returns:
        The folder.

    Raises:
        CourseError: For a part that does not exist, or that does not stand on its own.
    """
    folder = Path(folder)
    known = list(Parts.__dataclass_fields__)
    for name in parts:
        if name not in known:
            raise CourseError(f"There is no part {name!r}.", f"Parts are {', '.join(known)}.")
    text = parts_module(parts)
    for old in ("helpers", "model"):
        shutil.rmtree(folder / old, ignore_errors=True)
    modules = closure(ROOTS)
    for module in modules:
        source = _file(module)
        target = folder / source.relative_to(settings.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    page = Path("helpers/agent/page.html")
    shutil.copyfile(settings.ROOT / page, folder / page)
    (folder / "model").mkdir(parents=True, exist_ok=True)
    for name in (f"{MODEL}.gguf", f"{MINI}.gguf", "Modelfile"):
        shutil.copyfile(settings.MODEL_DIR / name, folder / "model" / name)
    pinned, every = requirements(modules)
    names = {"model": MODEL, "mini": MINI}
    files = {
        "parts.py": text,
        "task_agent.py": _RUN,
        "requirements.txt": "\n".join(pinned) + "\n",
        "constraints.txt": "\n".join(every) + "\n",
        "litellm.yaml": _LITELLM.format(**_LLAMA_CPP, **names),
        "litellm-ollama.yaml": _LITELLM.format(**_OLLAMA, **names),
        "Dockerfile": _DOCKERFILE,
        "compose.yaml": _COMPOSE.format(**names),
        "compose.ollama.yaml": _COMPOSE_OLLAMA.format(**names),
        "README.md": _README,
        "pyproject.toml": '[project]\nname = "task-agent"\nversion = "1.0"\n',
        ".dockerignore": "work\nmodel\n**/__pycache__\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return folder


def parts_module(parts: dict[str, Callable[..., Any]]) -> str:
    """A module that defines the parts under their names.

    Raises:
        CourseError: One uses what the module will not have.
    """
    from helpers.agent.guardrails import MAX_REQUEST

    pieces = [_PARTS_HEAD.format(limit=MAX_REQUEST)]
    at_hand = set(_names(pieces[0]))
    for name, function in parts.items():
        if (function.__module__ or "").startswith("helpers."):
            pieces.append(f"from {function.__module__} import {function.__name__} as {name}\n")
            continue
        source = _source(function)
        missing = sorted(_uses(function) - at_hand - {function.__name__})
        if missing:
            raise CourseError(
                f"{function.__name__} uses {', '.join(missing)}, which the module will not have.",
                "An exported part has what helpers.agent.export writes at the head of parts.py.",
                "Move what it needs inside the function, run its cell again, export again.",
            )
        pieces.append(f"\n{source}\n\n\n{name} = {function.__name__}\n")
    return "\n".join(pieces)


def _names(source: str) -> list[str]:
    """What a module's head makes available."""
    space: dict[str, Any] = {}
    exec(source, space)
    return list(space)


def _uses(function: Callable[..., Any]) -> set[str]:
    """The global names that a function uses, those of its inner functions included."""
    import builtins

    def inside(code: Any) -> set[str]:
        found = set()
        for inner in [code, *(c for c in code.co_consts if inspect.iscode(c))]:
            names = {i.argval for i in _dis(inner) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
            found |= names | (inside(inner) if inner is not code else set())
        return found

    return {name for name in inside(function.__code__) if not hasattr(builtins, name)}


def _dis(code: Any) -> Iterable[Any]:
    import dis

    return dis.get_instructions(code)


def _source(function: Callable[..., Any]) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError):
        raise CourseError(
            f"The source of {function.__name__} cannot be found.",
            "Only functions that a cell or a file defines can be exported.",
            "Define it with def in a cell of its own, and run that cell again.",
        ) from None


def closure(roots: Iterable[str]) -> list[str]:
    """The modules of the course that some modules need, themselves included."""
    seen: set[str] = set()
    todo = ["helpers", *roots]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += _imports(name)
        if "." in name:
            todo.append(name.rpartition(".")[0])
    return sorted(seen)


def _file(module: str) -> Path:
    path = settings.ROOT / (module.replace(".", "/") + ".py")
    return path if path.is_file() else path.with_suffix("") / "__init__.py"


def _imports(module: str) -> list[str]:
    path = _file(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith("helpers") and _file(name).is_file()]


def requirements(modules: Iterable[str]) -> tuple[list[str], list[str]]:
    """What those modules import from elsewhere, pinned; and every version of the lock.

    Some packages have another version for another Python or system; the conditions go with them.

    Returns:
        Lines for ``requirements.txt``, and for ``constraints.txt``.
    """
    import sys

    imported = set()
    for module in modules:
        tree = ast.parse(_file(module).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= set(sys.stdlib_module_names) | {"helpers"}
    known = metadata.packages_distributions()
    lock = (settings.ROOT / "requirements.lock").read_text(encoding="utf-8")
    every = re.findall(r"^([A-Za-z0-9._-]+)(==[^\s;\\]+(?: *;[^\\\n]*)?)", lock, re.M)
    wanted = {
        re.sub(r"[-_.]+", "-", distribution).lower().removesuffix("-slim")
        for name in imported - _NOT_AT_RUN_TIME
        for distribution in known.get(name, ())
    }
    pinned = [
        f"{'litellm[proxy]' if name == 'litellm' else name}{version.rstrip()}"
        for name, version in sorted(every)
        if name in wanted
    ]
    return pinned, [f"{name}{version.rstrip()}" for name, version in sorted(every)]


# Imported by functions of those modules that an agent does not call.
_NOT_AT_RUN_TIME = {"IPython", "matplotlib", "nbclient", "nbformat", "ipywidgets"}


# --- running ---------------------------------------------------------------------------------


def run(folder: str | Path, key: str, *, dir: str | Path, **more: str) -> Server:
    """Run an exported agent in a process of its own, which ends with this one.

    Args:
        folder: What :func:`export` wrote.
        key: The API key that it asks for.
        dir: For its tasks, conversations and outbox.
        **more: Further settings, such as ``AGENT_MODEL_URL``.

    Returns:
        A :class:`helpers.children.Server`: ``url``, ``pid``, ``stop()``, a ``with`` block.

    Raises:
        CourseError: It does not start.
    """
    log = settings.LOGS / "agent.log"
    env = {
        **settings.scrubbed(os.environ),
        "PYTHONPATH": str(Path(folder).resolve()),
        "AGENT_KEY": key,
        "AGENT_DIR": str(Path(dir).resolve()),
        "AGENT_PORT": "0",
        **more,
    }
    child = Child("task_agent", ["serve", "--child"], log, env)
    event = child.event(180)
    if event is None or event.get("event") != "ready":
        child.stop()
        said = event or {}
        raise CourseError(
            said.get("what", "The agent did not start."),
            said.get("why", child.log_tail()),
            said.get("todo", f"Look into {log.name}."),
        )
    return Server(child, event["url"], json.dumps([str(child.pid)]))
