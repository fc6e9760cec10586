"""The exported agent: a folder that is complete, stands alone, and runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata

import httpx
import openai
import pytest
import yaml
from agent_brain import brain
from packaging.requirements import Requirement

from helpers.agent import export, guardrails, service
from helpers.clients import DETERMINISTIC
from helpers.proxy import serve_proxy
from helpers.settings import MODEL, CourseError
from helpers.standins import HostedStandIn, OllamaStandIn, tool_call
from helpers.tasks import tool_schemas

KEY = "a-key-that-is-long-enough"


def short_request(text):
    return "" if len(text) < MAX_REQUEST else "That is too long for me."  # noqa: F821


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parts = {"input_problem": short_request, "take": service.take}
    return export.export(tmp_path_factory.mktemp("export"), **parts)


def test_the_same_parts_give_the_same_files(folder, tmp_path):
    again = export.export(tmp_path, input_problem=short_request, take=service.take)
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_every_module_that_is_imported_is_there(folder):
    there = {
        p.relative_to(folder).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for p in (folder / "helpers").rglob("*.py")
    }
    assert there == set(export.closure(export.ROOTS))
    assert {"helpers.agent.rest", "helpers.tasks", "helpers.services"} <= there
    assert (folder / "helpers/agent/page.html").is_file()


def test_requirements_are_pinned_and_known_to_the_lock(folder):
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    known = set((folder / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert {line.replace("[proxy]", "") for line in lines} <= known
    names = {line.partition("==")[0] for line in lines}
    assert {"fastapi", "openai-agents", "litellm[proxy]", "fastmcp", "xllamacpp"} <= names
    assert not {"jupyterlab", "matplotlib", "ipython"} & names


def test_of_a_package_with_two_versions_the_one_for_this_python_applies(folder):
    """The lock has numpy twice, for Python before and from 3.12: pip needs the conditions."""
    lines = (folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines]
    apply = [r for r in wanted if r.marker is None or r.marker.evaluate()]
    assert len({r.name for r in apply}) == len(apply) < len(wanted)
    there = {
        r.name: metadata.version(r.name)
        for r in apply
        if r.name in ("numpy", "soupsieve", "openai", "litellm", "xllamacpp")
    }
    assert len(there) == 5
    assert all(r.specifier.contains(there[r.name]) for r in apply if r.name in there)


def test_container_files_name_what_is_there(folder):
    docker = (folder / "Dockerfile").read_text(encoding="utf-8")
    copied = [w for line in re.findall(r"^COPY (.+) \S+$", docker, re.M) for w in line.split()]
    assert copied and all((folder / name).exists() for name in copied)
    compose = yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))
    assert {"agent", "proxy", "backend", "spare"} == set(compose["services"])
    ollama = yaml.safe_load((folder / "compose.ollama.yaml").read_text(encoding="utf-8"))
    assert {"proxy", "backend"} == set(ollama["services"])
    for services in (compose["services"], ollama["services"]):
        config = services["proxy"]["command"][services["proxy"]["command"].index("--config") + 1]
        assert config.removeprefix("/app/") in copied
    assert "./model:/model:ro" in compose["services"]["backend"]["volumes"]
    named = re.findall(r"/(model/\S+)", json.dumps([compose, ollama]).replace('"', " "))
    assert any("Modelfile" in name for name in named)
    assert all((folder / re.split(r"[,:\\]", name)[0]).exists() for name in named), named
    agent = compose["services"]["agent"]
    fields = {f"AGENT_{name.upper()}" for name in service.Config.__dataclass_fields__}
    assert set(agent["environment"]) <= fields
    assert set(re.findall(r"AGENT_\w+(?==)", docker)) <= fields
    assert all(port.startswith("127.0.0.1:") for port in agent["ports"])
    for name in ("Dockerfile", "compose.yaml"):
        assert "not with Docker" in (folder / name).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["litellm.yaml", "litellm-ollama.yaml"])
def test_the_proxy_of_the_containers_asks_their_backend_for_a_call(folder, tmp_path, config):
    """With its configuration as it is, but for the address: stand-ins take the backends' place."""
    script = [tool_call("complete_task", task_id=3)]
    ollama = "ollama" in config
    with OllamaStandIn(script) if ollama else HostedStandIn(script, key=None) as backend:
        text = (folder / config).read_text(encoding="utf-8")
        url = backend.url.removesuffix("/v1")
        assert "http://backend:8080" in text
        (tmp_path / config).write_text(text.replace("http://backend:8080", url), encoding="utf-8")
        with serve_proxy(tmp_path / config) as proxy:
            client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.key, max_retries=0)
            answer = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "finish task 3"}],
                tools=tool_schemas(),
                **DETERMINISTIC,
            )
        (arrived,) = [request for request in backend.requests if "/chat" in request.path]
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "complete_task",
        {"task_id": 3},
    )
    assert len(arrived.body["tools"]) == 5


def test_it_runs_outside_the_course_with_its_own_modules(folder, tmp_path):
    with brain() as model:
        env = {**os.environ, "AGENT_DIR": str(tmp_path), "AGENT_MODEL_URL": model.url}
        env.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, folder / "task_agent.py", "--json", "Add a task to call mum"],
            capture_output=True, text=True, cwd=tmp_path, env=env, timeout=200,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "Created task 1: call mum."
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import helpers; print(helpers.__file__)"
    )
    used = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert str(folder) in used.stdout


def test_it_serves_and_ends_with_its_starter(folder, tmp_path):
    with (
        brain() as model,
        export.run(folder, KEY, dir=tmp_path, AGENT_MODEL_URL=model.url) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http,
    ):
        assert http.get("/health/ready").json()["ready"]
        headers = {"Authorization": f"Bearer {KEY}"}
        too_long = http.post("/chat", json={"message": "x" * 600}, headers=headers)
        assert too_long.json()["text"] == "That is too long for me."
        turn = http.post("/chat", json={"message": "Add a task to call mum"}, headers=headers)
        assert turn.json()["state"] == "answered"
    assert not server.child.alive


def test_a_part_that_does_not_stand_alone_is_named(tmp_path):
    limit = 3
    with pytest.raises(CourseError, match="uses lonely"):
        export.export(tmp_path, input_problem=lambda text: lonely(text))  # noqa: F821
    with pytest.raises(CourseError, match="There is no part"):
        export.export(tmp_path, brain=len)
    assert limit == 3


def test_parts_of_the_package_are_imported():
    text = export.parts_module({"call_checks": guardrails.call_checks})
    assert "from helpers.agent.guardrails import call_checks as call_checks" in text
    compile(text, "parts.py", "exec")
