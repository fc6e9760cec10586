"""The proxy: its configuration, its environment, who may call it, and what passes through."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from test_backend import ASK, TOOL, gone, left_by_a_killed_starter

from helpers import proxy, services
from helpers.settings import MODEL, ROOT, CourseError, Settings

LOCAL = Settings()
HOSTED = Settings(hosted=True, hosted_key="sk-secret", hosted_model="gpt-4o-mini")


# ---- configuration -----------------------------------------------------------------------


def entry(config):
    return config["model_list"][0]


def test_course_config_for_llama_cpp():
    config = proxy.course_config(LOCAL, "http://127.0.0.1:8080")
    assert entry(config)["model_name"] == MODEL
    params = entry(config)["litellm_params"]
    assert params["model"] == f"openai/{MODEL}"
    assert params["api_base"] == "http://127.0.0.1:8080/v1"
    assert params["use_chat_completions_api"] is True
    assert params["timeout"] and params["stream_timeout"]
    assert entry(config)["model_info"]["id"]
    assert config["router_settings"]["num_retries"] == 0
    # Nothing that would send conversations, prices or errors anywhere.
    assert "callbacks" not in str(config) and "database_url" not in str(config)
    assert len(config["model_list"]) == 1


def test_course_config_for_ollama():
    config = proxy.course_config(Settings(backend="ollama"), "http://127.0.0.1:11434")
    assert entry(config)["model_name"] == MODEL
    assert entry(config)["litellm_params"]["model"] == f"ollama_chat/{MODEL}"
    assert entry(config)["litellm_params"]["api_base"] == "http://127.0.0.1:11434"


def test_course_config_for_another_server():
    url = "http://box:9000/openai/v1"
    config = proxy.course_config(Settings(backend=url), url, "their-model")
    assert entry(config)["litellm_params"]["model"] == "openai/their-model"
    assert entry(config)["litellm_params"]["api_base"] == url


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        ("https://example.org/v1", "https://example.org/v1"),
        ("https://example.org/api/openai/", "https://example.org/api/openai"),
    ],
)
def test_openai_base(url, base):
    assert proxy.openai_base(url) == base


def test_a_hosted_model_is_there_only_when_asked_for():
    env = {"OPENAI_API_KEY": "sk-lies-around", "PATH": "/bin"}
    chosen = Settings.from_env(env)
    text = proxy.config_text(proxy.course_config(chosen, "http://127.0.0.1:1"))
    assert "gpt" not in text
    child = proxy.child_env("sk-x", chosen, env)
    assert "sk-lies-around" not in child.values()

    chosen = Settings.from_env(env | {"HOSTED": "1"})
    config = proxy.course_config(chosen, "http://127.0.0.1:1")
    assert [m["model_name"] for m in config["model_list"]] == [MODEL, "gpt-4o-mini"]
    assert config["router_settings"]["fallbacks"] == [{MODEL: ["gpt-4o-mini"]}]
    assert "sk-lies-around" not in proxy.config_text(config)
    child = proxy.child_env("sk-x", chosen, env)
    assert child["COURSE_HOSTED_KEY"] == "sk-lies-around" and "OPENAI_API_KEY" not in child


def test_child_environment_lets_nothing_through():
    env = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "1",
        "OPENAI_BASE_URL": "2",
        "ANTHROPIC_API_KEY": "3",
        "LANGFUSE_SECRET_KEY": "4",
        "DATABASE_URL": "5",
        "HTTPS_PROXY": "6",
        "LITELLM_LICENSE": "7",
    }
    child = proxy.child_env("sk-x", LOCAL, env)
    assert not (set(env) - {"PATH"}) & set(child)
    assert child["LITELLM_MODE"] == "PRODUCTION"
    assert child["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert proxy.child_env("sk-x", HOSTED, env)["HTTPS_PROXY"] == "6"
    away = Settings(backend="https://example.org/v1")
    assert proxy.child_env("sk-x", away, env)["HTTPS_PROXY"] == "6"


@pytest.mark.parametrize("chosen", [LOCAL, HOSTED, Settings(backend="ollama")])
def test_written_config_is_commented_and_means_the_same(tmp_path: Path, chosen):
    config = proxy.course_config(chosen, "http://127.0.0.1:8080")
    path = proxy.write_config(config, tmp_path / "config.yaml")
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == config
    settings_lines = [line for line in text.splitlines() if line.startswith(("  ", "- "))]
    commented = [line for line in settings_lines if "# " in line]
    assert len(commented) >= 0.75 * len(settings_lines)
    assert list(tmp_path.iterdir()) == [path]


def test_keys_are_random_and_acceptable():
    assert proxy.new_key() != proxy.new_key()
    assert proxy.new_key().startswith("sk-") and len(proxy.new_key()) > 30


# ---- starting ----------------------------------------------------------------------------


def test_missing_configuration(tmp_path: Path):
    with pytest.raises(CourseError, match="no configuration"):
        proxy.start_proxy(tmp_path / "none.yaml")


def test_taken_port(tmp_path: Path):
    path = proxy.write_config(proxy.course_config(LOCAL, "http://127.0.0.1:1"), tmp_path / "c")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CourseError, match=f"Port {port} is taken"):
            proxy.start_proxy(path, port)


def test_the_port_is_ours_from_the_start(tmp_path: Path):
    path = proxy.write_config(proxy.course_config(LOCAL, "http://127.0.0.1:1"), tmp_path / "c")
    started = proxy.start_proxy(path)
    try:
        port = int(started.url.rsplit(":", 1)[1])
        with pytest.raises(OSError):
            proxy.bind(port)
        assert "127.0.0.1" not in repr(started) and "sk-" not in repr(started)
    finally:
        started.stop()
    assert gone(started.pid)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_dies_with_a_killed_starter(tmp_path: Path):
    path = proxy.write_config(proxy.course_config(LOCAL, "http://127.0.0.1:1"), tmp_path / "c")
    code = (
        "import sys; from helpers.proxy import start_proxy; p = start_proxy(sys.argv[1]);"
        "print(p.pid, flush=True); input()"
    )
    assert gone(left_by_a_killed_starter(code, str(path)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_list: [this is: not {valid", "not valid YAML near line 1"),
        ("model_list:\n\t- model_name: a", "not valid YAML near line 2"),
        ("general_settings: {}", "offers no models"),
        ("", "offers no models"),
    ],
)
def test_a_configuration_with_a_mistake(tmp_path: Path, text, says):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match=says):
        proxy.start_proxy(path)


@pytest.mark.slow
def test_what_litellm_itself_refuses(tmp_path: Path):
    path = proxy.write_config(proxy.course_config(LOCAL, "http://127.0.0.1:1"), tmp_path / "c")
    # A key from the documentation, which LiteLLM knows to be everybody's.
    with pytest.raises(CourseError, match="did not start") as caught:
        proxy.serve_proxy(path, key="sk-1234").stop()
    assert "master key is a publicly known default" in caught.value.why


# dotenv looks in the working directory when a program has no file, as here; otherwise in the
# folders above LiteLLM's own, which are the course's folder when .venv stands in it.
WITHOUT_A_FILE = """
import json, os, sys
from helpers import proxy
import litellm
print(json.dumps({"read": os.environ.get("COURSE_FROM_DOTENV")}), flush=True)
sys.exit(proxy.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ignores_a_dotenv_file(tmp_path: Path):
    (tmp_path / ".env").write_text("LITELLM_MASTER_KEY=sk-of-the-file\nCOURSE_FROM_DOTENV=read\n")
    path = proxy.write_config(proxy.course_config(LOCAL, "http://127.0.0.1:1"), tmp_path / "c.yaml")
    key = proxy.new_key()
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_A_FILE, "--config", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**proxy.child_env(key), "PYTHONPATH": str(ROOT)},
    ) as child:
        try:
            events = [json.loads(child.stdout.readline()) for _ in range(3)]
            assert events[0] == {"read": None} and events[2]["ready"]
            url = events[1]["url"] + "/v1/models"
            for given, status in ((key, 200), ("sk-of-the-file", 401)):
                headers = {"Authorization": f"Bearer {given}"}
                answer = httpx.get(url, headers=headers, timeout=60, trust_env=False)
                assert answer.status_code == status
        finally:
            child.kill()


# ---- the course's own proxy --------------------------------------------------------------


@pytest.fixture(scope="module")
def url():
    return services.ensure(quiet=True).proxy.url


@pytest.fixture(scope="module")
def client(url):
    headers = {"Authorization": f"Bearer {services.key()}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


BODY = {"model": MODEL, "temperature": 0, "cache_prompt": False, **ASK, "tools": [TOOL]}


@pytest.mark.parametrize("header", [None, "Bearer sk-wrong", "Bearer", "Basic abc", "sk-1234"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("POST", "/v1/responses"),
    ],
)
def test_wrong_and_missing_keys_get_401(url, method, path, header):
    headers = {"Authorization": header} if header else {}
    body = BODY if method == "POST" else None
    answer = httpx.request(
        method, url + path, headers=headers, json=body, timeout=60, trust_env=False
    )
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "auth_error"
    assert services.key() not in answer.text


def test_listens_on_loopback_only(url):
    pid = services.status().proxy.pid
    listening = psutil.Process(pid).net_connections(kind="inet")
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_says_who_answered(client):
    answer = client.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 200
    assert answer.headers["x-litellm-model-id"] == f"{MODEL}-local"
    assert answer.json()["model"] == MODEL


def test_same_message_as_the_backend_gives(client):
    backend = services.status().backend
    direct = httpx.post(
        f"{backend.url}/v1/chat/completions", json=BODY, timeout=60, trust_env=False
    ).json()
    through = client.post("/v1/chat/completions", json=BODY).json()
    one, other = direct["choices"][0], through["choices"][0]
    assert one["finish_reason"] == other["finish_reason"]
    assert (one["message"].get("content") or "") == (other["message"].get("content") or "")
    calls = [
        [call["function"] for call in choice["message"].get("tool_calls") or []]
        for choice in (one, other)
    ]
    assert calls[0] == calls[1]
    assert direct["usage"]["total_tokens"] == through["usage"]["total_tokens"]


def test_streams(client):
    with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert any(json.loads(line[6:])["choices"][0].get("finish_reason") for line in lines[:-1])


def test_answers_the_responses_api_too(client):
    answer = client.post("/v1/responses", json={"model": MODEL, "input": "hello"})
    assert answer.status_code == 200 and answer.json()["object"] == "response"


def test_an_unknown_model_is_an_error_of_the_caller(client):
    answer = client.post("/v1/chat/completions", json={**BODY, "model": "no-such"})
    assert answer.status_code in (400, 404)


def test_models_and_health(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == [MODEL]
    assert client.get("/health").json()["unhealthy_count"] == 0
