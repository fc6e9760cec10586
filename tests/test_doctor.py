"""The doctor finds what is wrong, and always says what to type."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from helpers import doctor, external, settings
from helpers.doctor import NOTE, OK, PROBLEM

CLEAN = ("BACKEND", "BACKEND_KEY", "HOSTED", "OPENAI_API_KEY", "OLLAMA_HOST", "COURSE_TODAY")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A model folder with two good files and their hashes."""
    monkeypatch.setattr(settings, "MODEL_DIR", tmp_path)
    for name in (settings.MODEL, settings.MINI):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + name.encode())
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.glob("*.gguf")}
    (tmp_path / "hashes.json").write_text(json.dumps(hashes), encoding="utf-8")
    return tmp_path


def test_the_page_is_the_doctors_own_list():
    written = (settings.ROOT / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    assert written == doctor.page(), "type: python3 -m helpers doctor --page"
    for trouble in doctor.TROUBLES.values():
        assert f"### {trouble.title}\n" in written
        assert trouble.todo or trouble.state != PROBLEM
        assert len(trouble.why.split()) > 5


def test_nothing_is_reported_that_is_not_in_the_list():
    """Each trouble is looked for somewhere, and no other finding is bad."""
    source = inspect.getsource(doctor)
    found = set(re.findall(r'TROUBLES\["([\w-]+)"\]', source))
    assert found == set(doctor.TROUBLES)
    bad = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
        if {"NOTE", "PROBLEM"} & {getattr(argument, "id", "") for argument in node.args}
    ]
    assert len(bad) == 1, "the one in examine(), for a check that breaks"


def states(check) -> list[str]:
    found = list(check())
    for finding in found:
        assert finding.todo or finding.state != PROBLEM, f"no advice: {finding}"
    return [finding.state for finding in found]


def test_good_models_pass(models):
    assert states(doctor._models) == [OK, OK]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"version https://example"), "not a GGUF file"),
        (lambda path: path.write_bytes(b"GGUF" + b"cut off"), "hash differs"),
    ],
)
def test_damaged_model_is_found(models, damage, words):
    damage(models / f"{settings.MODEL}.gguf")
    finding = next(iter(doctor._models()))
    assert finding.state == PROBLEM
    assert words in finding.text
    assert finding.todo == f"git checkout -- model/{settings.MODEL}.gguf"


def test_models_without_a_hash_file_are_read_all_the_same(models):
    (models / "hashes.json").unlink()
    assert [f.text.endswith("no hash to compare with") for f in doctor._models()] == [True, True]


def test_unknown_backend_is_a_problem(monkeypatch):
    monkeypatch.setenv("BACKEND", "lama")
    assert states(doctor._settings) == [PROBLEM]


def test_hosted_without_key_is_a_problem(monkeypatch):
    monkeypatch.setenv("HOSTED", "1")
    assert states(doctor._settings) == [OK, PROBLEM]


def test_a_key_that_lies_there_is_not_used_and_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    found = list(doctor._settings())
    assert [f.state for f in found] == [OK, OK]
    assert "not used" in found[1].text
    assert "sk-secret" not in str(found)


def test_hosted_says_that_it_costs_money(monkeypatch):
    monkeypatch.setenv("HOSTED", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    found = list(doctor._settings())
    assert found[1].state == NOTE
    assert "cost money" in found[1].text
    assert "sk-secret" not in str(found)


@pytest.fixture
def ollama():
    """A server that answers Ollama's /api/tags; its models are in .names."""

    class Tags(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"models": [{"name": n} for n in server.names]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tags)
    server.names = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_ollama_is_looked_at_when_chosen(monkeypatch, ollama):
    monkeypatch.setenv("BACKEND", "ollama")
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{ollama.server_port}")
    assert states(doctor._settings) == [OK, OK, PROBLEM]
    assert "ollama create" in list(doctor._settings())[2].todo
    ollama.names.append("task-api-model:latest")
    assert states(doctor._settings) == [OK, OK, OK]


def test_absent_ollama_is_a_problem_when_chosen(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("BACKEND", "ollama")
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{unused.getsockname()[1]}")
        assert states(doctor._settings)[-1] == PROBLEM


def test_another_server_is_tried_with_its_key(monkeypatch):
    from helpers.standins import HostedStandIn

    with HostedStandIn(key="their-key") as theirs:
        monkeypatch.setenv("BACKEND", theirs.url)
        refused = list(doctor._settings())[-1]
        assert refused.state == PROBLEM and "BACKEND_KEY" in refused.todo
        monkeypatch.setenv("BACKEND_KEY", "their-key")
        assert states(doctor._settings) == [OK, OK, OK]
    silent = list(doctor._settings())[-1]
    assert silent.state == PROBLEM and "nothing answers" in silent.text


def test_a_key_is_not_sent_on_to_where_a_server_redirects(monkeypatch):
    from helpers.standins import HostedStandIn

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", other.url + "/models")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    Thread(target=server.serve_forever, daemon=True).start()
    with HostedStandIn(key="secret") as other:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert external.problem("openai", url, "secret").kind == "key"
        assert [r.headers.get("authorization") for r in other.requests] == [None]
    server.shutdown()
    server.server_close()


def test_memory_is_known():
    assert 500 < doctor.total_memory_mb() < 10_000_000


@pytest.mark.skipif(os.name == "nt", reason="folders are not read-only by mode on Windows")
def test_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert states(doctor._folder) == [PROBLEM]


def test_small_disk_is_a_problem(monkeypatch):
    usage = type("usage", (), {"free": 10 << 20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert states(doctor._disk) == [PROBLEM]


def test_missing_venv_module_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.bootstrap, "ready", lambda: False)
    monkeypatch.setattr(doctor.bootstrap, "differences", lambda: ["litellm is missing"])
    monkeypatch.setattr(doctor.bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert states(doctor._environment) == [NOTE, PROBLEM]


def test_a_check_that_breaks_hides_no_other(monkeypatch):
    def broken():
        raise ValueError("boom")

    monkeypatch.setattr(doctor, "_disk", broken)
    found = doctor.examine()
    assert any("boom" in f.text for f in found)
    assert found[-1].name == "Chromium"


def test_exit_status_and_json(monkeypatch, capsys):
    good = doctor.Finding("Python", OK, "3.12")
    bad = doctor.Finding("disk", PROBLEM, "full", "free some space")
    monkeypatch.setattr(doctor, "examine", lambda: [good])
    assert doctor.main() == 0
    assert "Everything" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: [good, bad])
    assert doctor.main(as_json=True) == 1
    assert json.loads(capsys.readouterr().out)[1]["todo"] == "free some space"
    assert doctor.main() == 1
    assert "-> free some space" in capsys.readouterr().out


@pytest.mark.needs("netns")
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_namespace_sees_loopback_only(require):
    import subprocess

    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname()).close(); print('loopback');"
        "socket.create_connection(('192.0.2.1', 80), 2)"
    )
    said = subprocess.run(
        [*require("netns"), sys.executable, "-c", code], capture_output=True, text=True
    )
    assert said.stdout.strip() == "loopback"
    assert "unreachable" in said.stderr
