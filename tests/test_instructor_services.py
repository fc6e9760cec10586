"""One backend and one proxy for a class: found by a file, reached from inside the sandbox."""

from __future__ import annotations

import http.server
import json
import os
import threading
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers import clients, services, settings
from helpers.instructor import sandbox
from helpers.settings import CourseError


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "task-api-model"}], "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    """A server on loopback that says yes to everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def shared(server, tmp_path, monkeypatch) -> Path:
    path = tmp_path / "services.json"
    content = {
        "backend": {"url": server, "model": "small"},
        "proxy": {"url": server, "key": "sk-of-the-class"},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("COURSE_SERVICES", str(path))
    monkeypatch.setattr(settings, "STATE", tmp_path / "state")
    return path


def test_shared_services_are_used_and_nothing_is_started(shared, server, tmp_path):
    status = services.ensure(quiet=True)
    assert (status.backend.healthy, status.proxy.healthy, status.running) == (True, True, True)
    to = clients.connection()
    assert (to.base_url, to.api_key) == (f"{server}/v1", "sk-of-the-class")
    assert (to.direct_url, to.direct_model) == (f"{server}/v1", "small")
    assert "sk-of-the-class" not in json.dumps(status.json()) + repr(to)
    assert not (tmp_path / "state").exists()


def test_shared_services_that_do_not_answer_are_named(shared, monkeypatch):
    content = json.loads(shared.read_text("utf-8"))
    content["proxy"]["url"] = "http://127.0.0.1:9"
    shared.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(services.time, "sleep", lambda seconds: None)
    with pytest.raises(CourseError, match="shared proxy does not answer"):
        services.ensure(quiet=True)
    assert services.ensure(["backend"], quiet=True).backend.healthy


@pytest.mark.parametrize("text", ["", "[]", '{"backend": {"url": "x"}}', '{"backend": 1}'])
def test_a_file_of_services_that_lacks_something_is_explained(shared, text):
    shared.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match="cannot be used") as caught:
        services.ensure()
    assert "COURSE_SERVICES" in caught.value.why


@pytest.mark.needs("netns")
def test_inside_only_the_shared_services_are_on_loopback(server):
    """The proxy's port leads out; another server on this machine's loopback does not exist."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as private:
        threading.Thread(target=private.serve_forever, daemon=True).start()
        cell = f"""\
import urllib.request
for url in ("{server}/v1/models", "http://127.0.0.1:{private.server_port}/"):
    try:
        print(urllib.request.urlopen(url, timeout=10).status)
    except OSError:
        print("nobody")"""
        notebook = new_notebook(cells=[new_code_cell(cell)])
        given = {"backend": {"url": server}, "proxy": {"url": server, "key": "k"}}
        ran = sandbox.run(notebook, sandbox.Limits(cell_seconds=60), given)
        private.shutdown()
    assert ran.stopped == ""
    assert [o["text"] for o in ran.outputs[0]] == ["200\nnobody\n"]


def test_services_on_two_machines_may_use_the_same_port():
    given = {
        "backend": {"url": "http://one:4000", "model": "m"},
        "proxy": {"url": "http://two:4000/below", "key": "k"},
    }
    doors, inside = sandbox._forwarded(given)
    assert doors == {4000: ("one", 4000), 4001: ("two", 4000)}
    assert inside["backend"] == {"url": "http://127.0.0.1:4000", "model": "m"}
    assert inside["proxy"] == {"url": "http://127.0.0.1:4001/below", "key": "k"}


@pytest.mark.skipif(os.name == "nt", reason="grading does not run on Windows itself")
def test_each_run_has_stores_of_its_own(tmp_path):
    cell = """\
import os
from helpers import settings, skill
from helpers.tasks import default_store
store = default_store()
store.create("a task")
print(len(store.list()["tasks"]), str(settings.WORK).startswith(os.environ["COURSE_SANDBOX"]))"""
    notebook = new_notebook(cells=[new_code_cell(cell)])
    for _ in range(2):
        ran = sandbox.run(notebook, sandbox.Limits(cell_seconds=60), {})
        assert [o.get("text") for o in ran.outputs[0]] == ["1 True\n"], ran.outputs
