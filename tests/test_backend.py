"""The backend in a child process: start, errors, end, and answers that do not vary."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from helpers import backend, settings, steady
from helpers.settings import CourseError

TOOL = {
    "type": "function",
    "function": {
        "name": "create_task",
        "description": "Create a task.",
        "parameters": {
            "type": "object",
            "properties": {
                "title": {"type": "string"},
                "priority": {"type": "string", "enum": ["low", "medium", "high", "urgent"]},
                "due": {"type": "string"},
            },
            "required": ["title"],
        },
    },
}
ASK = {"messages": [{"role": "user", "content": "create a task to call mum"}], "max_tokens": 60}


@pytest.fixture(scope="module")
def served():
    with backend.serve(instance="mark") as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as client:
        yield client


def left_by_a_killed_starter(code: str, *args: str) -> int:
    """The process that Python code started and named in its first line, the starter killed."""
    starter = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=settings.ROOT,
    )
    pid = int(starter.stdout.readline())
    assert psutil.pid_exists(pid)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    return pid


def gone(pid: int, seconds: float = 8) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_serves_its_model_on_loopback_only(served, client):
    listed = client.get("/v1/models").json()["data"][0]
    assert listed["id"] == settings.MODEL == served.model
    assert listed["tags"] == ["mark"]
    listening = psutil.Process(served.pid).net_connections(kind="inet")
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_answers_with_tools_and_caches_nothing(client):
    body = {**ASK, "model": settings.MODEL, "tools": [TOOL], "temperature": 0}
    answers = [client.post("/v1/chat/completions", json=body).json() for _ in range(2)]
    for answer in answers:
        assert answer["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
        assert answer["usage"]["prompt_tokens"] > 10
        assert answer["timings"]["cache_n"] == 0


def test_an_answer_has_an_end(client):
    request = {**ASK, "model": settings.MODEL, "ignore_eos": True, "temperature": 0}
    del request["max_tokens"]
    answer = client.post("/v1/chat/completions", json=request).json()
    assert answer["usage"]["completion_tokens"] <= backend.MAX_ANSWER_TOKENS


def test_pages_of_other_sites_are_not_let_in(client):
    headers = client.get("/health", headers={"Origin": "https://example.org"}).headers
    assert headers.get("access-control-allow-origin", "") not in ("*", "https://example.org")


def test_small_footprint(served):
    assert psutil.Process(served.pid).memory_info().rss < 250e6


def test_stops_and_can_start_on_the_same_port():
    first = backend.serve()
    port = int(first.url.rsplit(":", 1)[1])
    httpx.get(f"{first.url}/health", trust_env=False)
    first.stop()
    first.stop()
    assert gone(first.pid)
    with backend.serve(port=port) as second:
        assert second.url == first.url


def test_a_taken_port_is_an_error_that_says_so():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CourseError, match=f"port {port} is taken"):
            backend.serve(port=port)


def test_missing_model():
    with pytest.raises(CourseError, match=r"no-such-model\.gguf is missing") as caught:
        backend.serve("no-such-model")
    assert "git checkout -- model/no-such-model.gguf" in caught.value.todo


def test_not_a_model(tmp_path: Path):
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CourseError, match="not a model file"):
        backend.serve(tmp_path / "x.gguf")


def test_cut_off_model(tmp_path: Path):
    whole = backend.model_path(settings.MODEL).read_bytes()
    (tmp_path / "x.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CourseError, match=r"corrupted or incomplete") as caught:
        backend.serve(tmp_path / "x.gguf")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_dies_with_a_killed_starter():
    code = "from helpers.backend import serve; b = serve(); print(b.pid, flush=True); input()"
    assert gone(left_by_a_killed_starter(code))


# ---- the same answers every time ---------------------------------------------------------

# Lessons' requests: one file of JSON lines for each lesson, written when it is executed.
LESSONS = sorted((Path(__file__).parent / "requests").glob("*.jsonl"))

BUILT_IN = [
    {**ASK, "tools": [TOOL]},
    {"messages": [{"role": "user", "content": "buy oat milk by friday, it's urgent"}]}
    | {"tools": [TOOL], "max_tokens": 60},
    {"messages": [{"role": "user", "content": "what can you do?"}], "max_tokens": 40},
]


def test_same_answers_on_any_number_of_threads_and_when_busy():
    found = {json.dumps(r, sort_keys=True): r for path in LESSONS for r in steady.load(path)}
    for model in (settings.MODEL, settings.MINI):
        requests = BUILT_IN + [r for r in found.values() if r["model"] == model]
        assert steady.differences(requests, threads=(1, 2, 4), busy=True, model=model) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not GCC's OpenMP")
def test_threads_do_not_hold_on_to_cores_that_others_want(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    seen = {}
    for own in (None, "77"):
        if own:
            monkeypatch.setenv("GOMP_SPINCOUNT", own)
        with backend.serve(threads=2, log=tmp_path / f"{own}.log"):
            log = (tmp_path / f"{own}.log").read_text()
        seen[own] = re.search(r"GOMP_SPINCOUNT = '(\d+)'", log)[1]
    assert seen == {None: backend.SPINS, "77": "77"}


def test_a_difference_is_seen(monkeypatch):
    texts = iter("abcd")
    monkeypatch.setattr(
        steady, "answer", lambda client, request: {"text": next(texts), "calls": []}
    )
    found = steady.differences([ASK], threads=(1, 2), busy=False)
    assert len(found) == 1 and "on 2 threads, idle" in found[0]


def test_requests_are_read_from_json_lines(tmp_path: Path):
    (tmp_path / "L01.jsonl").write_text(json.dumps(ASK) + "\n\n")
    assert steady.load(tmp_path / "L01.jsonl") == [ASK]
