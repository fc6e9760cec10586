"""The supervisor: one pair for all, mended when it breaks, gone when nobody uses it.

One pair in a folder of its own is shared by most tests here. Where only the backend matters,
a test does not wait for the proxy: its imports are cut short when the test ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from test_backend import gone

from helpers import proxy, services, settings
from helpers.settings import CourseError

posix = pytest.mark.skipif(os.name == "nt", reason="SIGKILL and file modes are POSIX")


def move(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let this process, and what it starts, keep state in another folder."""
    for name, value in (("WORK", folder), ("STATE", folder / "state"), ("LOGS", folder / "logs")):
        patch.setattr(settings, name, value)
    patch.setenv("COURSE_WORK", str(folder))
    patch.setattr(services, "GRACE", 3.0)
    for name in ("BACKEND", "BACKEND_KEY", "HOSTED", "OLLAMA_HOST"):
        patch.delenv(name, raising=False)
    return folder


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A folder without services; whatever is started there is stopped."""
    yield move(monkeypatch, tmp_path)
    pids = supervisor_and_children()
    services.down()
    assert all(gone(pid) for pid in pids)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A pair that the tests of this module share."""
    with pytest.MonkeyPatch.context() as patch:
        folder = move(patch, tmp_path_factory.mktemp("pair"))
        with socket.socket() as taken:
            # A stranger on port 4000, unless somebody is there anyway.
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind(("127.0.0.1", proxy.PORT))
                taken.listen()
            except OSError:
                pass
            services.up(wait=False)
            services.ensure(quiet=True)
        yield folder
        pids = supervisor_and_children()
        assert len(pids) == 3
        services.down()
        assert all(gone(pid) for pid in pids)
        assert services.status().running is False


def state() -> dict:
    return json.loads((settings.STATE / "services.json").read_text(encoding="utf-8"))


def supervisor_and_children() -> list[int]:
    try:
        content = state()
    except (OSError, ValueError):
        return []
    return [
        record["pid"]
        for record in content.values()
        if isinstance(record, dict) and record.get("pid")
    ]


def until(condition: Callable[[], object], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def python(code: str, *args: str) -> subprocess.Popen:
    """Another process that uses the same folder."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=settings.ROOT,
        env={**os.environ, "COURSE_WORK": str(settings.WORK)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# ---- the shared pair, in order -----------------------------------------------------------


def test_starts_both(shared):
    now = services.status()
    assert now.running and now.backend.healthy and now.proxy.healthy
    assert set(now.json()["backend"]) >= {"kind", "url", "model", "healthy"}
    assert set(now.json()["proxy"]) >= {"url", "key_file", "healthy"}
    assert json.loads(json.dumps(now.json()))["backend"]["kind"] == "llama.cpp"


def test_a_taken_port_means_another_one_and_is_said(shared):
    now = services.status()
    assert now.proxy.url != f"http://127.0.0.1:{proxy.PORT}"
    assert any("taken" in note for note in now.notes)
    assert f"Port {proxy.PORT} is taken" in str(now)


@posix
def test_the_key_is_in_one_private_file_only(shared):
    key = services.key()
    assert stat.S_IMODE(services.key_file().stat().st_mode) == 0o600
    for path in shared.rglob("*"):
        if path.is_file() and path != services.key_file():
            assert key.encode() not in path.read_bytes(), path
    assert key not in str(services.status()) + json.dumps(services.status().json())
    commands = [psutil.Process(pid).cmdline() for pid in supervisor_and_children()]
    assert key not in str(commands)


def test_starting_twice_gives_one_pair(shared, capsys):
    before = supervisor_and_children()
    services.ensure()
    services.up()
    assert supervisor_and_children() == before
    assert capsys.readouterr().out == "Backend and proxy are ready.\n"


def test_two_processes_at_once_find_the_same_pair(shared):
    code = "from helpers import services; print(services.ensure(quiet=True).proxy.pid)"
    both = [python(code), python(code)]
    answers = {process.communicate(timeout=120)[0].strip() for process in both}
    assert answers == {str(services.status().proxy.pid)}


def test_a_crashed_backend_is_replaced_at_the_same_address(shared):
    before = services.status()
    psutil.Process(before.backend.pid).kill()
    now = services.ensure(quiet=True)
    assert now.backend.healthy and now.backend.pid != before.backend.pid
    assert now.backend.url == before.backend.url and now.backend.restarts == 1
    assert now.proxy.pid == before.proxy.pid
    headers = {"Authorization": f"Bearer {services.key()}"}
    body = {"model": settings.MODEL, "max_tokens": 5}
    body["messages"] = [{"role": "user", "content": "hello"}]
    url = f"{now.proxy.url}/v1/chat/completions"
    answer = httpx.post(url, headers=headers, json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200


def test_a_changed_model_file_is_noticed(shared):
    before = services.status()
    path = settings.MODEL_DIR / f"{settings.MODEL}.gguf"
    info = path.stat()
    try:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000_000_000))
        now = services.ensure(quiet=True)
    finally:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert now.backend.pid != before.backend.pid and now.backend.url == before.backend.url
    assert now.proxy.pid == before.proxy.pid
    services.ensure(quiet=True)


@pytest.mark.slow
def test_a_crashed_proxy_is_replaced_at_the_same_address(shared):
    before = services.status()
    psutil.Process(before.proxy.pid).kill()
    assert until(lambda: state()["proxy"].get("pid") != before.proxy.pid)
    services.ensure(wait=("backend",), quiet=True)  # returns long before the proxy is there
    now = services.ensure(quiet=True)
    assert now.proxy.healthy and now.proxy.url == before.proxy.url
    assert now.backend.pid == before.backend.pid


# ---- pairs that come and go --------------------------------------------------------------


def test_status_starts_nothing(alone):
    now = services.status()
    assert not now.running and not now.backend.healthy
    assert "python3 -m helpers up" in str(now)
    assert not list(alone.rglob("*.json"))


def test_down_without_anything_running(alone):
    services.down()
    services.down()


def test_two_processes_start_one_pair(alone):
    code = (
        "from helpers import services; s = services.ensure(('backend',), quiet=True);"
        "print(s.backend.pid); input()"
    )
    both = [python(code) for _ in range(2)]
    try:
        pids = {process.stdout.readline().strip() for process in both}
        assert len(pids) == 1 and pids != {""}
        supervisors = [
            process
            for process in psutil.process_iter(["cmdline", "environ"])
            if "helpers.services" in (process.info["cmdline"] or [])
            and (process.info["environ"] or {}).get("COURSE_WORK") == str(alone)
        ]
        assert len(supervisors) == 1
    finally:
        for process in both:
            process.communicate("\n", timeout=30)


@pytest.mark.parametrize(
    "left_behind",
    [
        "not json at all {",
        "[]",
        json.dumps({"supervisor": {"pid": 2**22 + 1, "created": 1.0}}),
        # The id has been given to another process since: this one.
        json.dumps(
            {
                "supervisor": {"pid": os.getpid(), "created": 1.0, "fingerprint": "x"},
                "backend": {
                    "pid": os.getpid(),
                    "created": 1.0,
                    "state": "ready",
                    "url": "http://x",
                },
            }
        ),
    ],
    ids=["garbage", "list", "dead", "reused-id"],
)
def test_stale_state_is_harmless(alone, left_behind):
    (alone / "state" / "requests").mkdir(parents=True)
    (alone / "state" / "services.json").write_text(left_behind)
    (alone / "state" / "requests" / "stop").write_text("{}")
    assert not services.status().running
    if "reused" in left_behind or left_behind.startswith("{"):
        services.down()
        (alone / "state" / "services.json").write_text(left_behind)
    now = services.ensure(wait=("backend",), quiet=True)
    assert now.backend.healthy and now.backend.pid != os.getpid()


def test_missing_and_damaged_model_and_recovery(alone, monkeypatch, tmp_path):
    """Children read the model folder from the package, so the package is copied."""
    root = tmp_path / "copy"
    shutil.copytree(settings.ROOT / "helpers", root / "helpers")
    (root / "model").mkdir()
    monkeypatch.setattr(settings, "ROOT", root)
    monkeypatch.setattr(settings, "MODEL_DIR", root / "model")
    monkeypatch.setattr("helpers.children.ROOT", root)
    with pytest.raises(CourseError, match="is missing") as caught:
        services.ensure(wait=("backend",), quiet=True)
    assert "git checkout" in caught.value.todo
    with pytest.raises(CourseError, match="proxy was not started"):
        services.ensure(wait=("proxy",), quiet=True)

    whole = (Path(__file__).parent.parent / "model" / "task-api-model.gguf").read_bytes()
    model = root / "model" / "task-api-model.gguf"
    model.write_bytes(whole[:500_000])
    with pytest.raises(CourseError, match="corrupted or incomplete"):
        services.ensure(wait=("backend",), quiet=True)
    assert "failed" in str(services.status())

    model.write_bytes(whole)
    assert services.ensure(wait=("backend",), quiet=True).backend.healthy


def test_a_dead_supervisor_takes_its_children_along_and_is_replaced(alone):
    services.ensure(wait=("backend",), quiet=True)
    before = state()
    psutil.Process(before["supervisor"]["pid"]).kill()
    assert gone(before["backend"]["pid"])
    assert services.ensure(wait=("backend",), quiet=True).backend.healthy
    assert state()["supervisor"]["pid"] != before["supervisor"]["pid"]


@posix
def test_a_killed_kernel_leaves_nothing_behind(alone):
    code = (
        "from helpers import services; services.GRACE = 3.0;"
        "services.ensure(('backend',), quiet=True); print('up', flush=True); input()"
    )
    kernel = python(code)
    assert kernel.stdout.readline().strip() == "up"
    pids = supervisor_and_children()
    assert len(pids) >= 2
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    assert services.holders() == []
    assert all(gone(pid, 30) for pid in pids)
    assert not (settings.STATE / "services.json").exists()


def test_up_lasts_until_down(alone):
    services.up(wait=False)
    (settings.STATE / "leases" / f"{os.getpid()}.json").unlink()
    assert services.holders() == ["up"]
    pid = state()["supervisor"]["pid"]
    time.sleep(5)  # longer than the grace: nothing else would show that it does not stop
    assert psutil.pid_exists(pid)
    services.down()
    assert gone(pid) and services.holders() == []


def test_a_lease_of_an_earlier_session_does_not_count(alone):
    leases = settings.STATE / "leases"
    leases.mkdir(parents=True)
    (leases / "up.json").write_text(json.dumps({"boot": 1.0}))
    (leases / f"{os.getpid()}.json").write_text(json.dumps({"pid": os.getpid(), "created": 1.0}))
    assert services.holders() == []
    services.hold()
    assert services.holders() == [str(os.getpid())]


def test_the_last_release_stops_them_at_once(alone):
    services.ensure(wait=("backend",), quiet=True)
    pids = supervisor_and_children()
    other = python("from helpers import services; services.hold(); print('held'); input()")
    other.stdout.readline()
    services.release()
    assert services.status().running
    other.communicate("\n", timeout=30)
    services.release()
    assert all(gone(pid, 2) for pid in pids)


def test_logs(alone):
    assert "no log" in services.logs("backend")
    services.ensure(wait=("backend",), quiet=True)
    assert "main loop" in services.logs("backend", 200) or services.logs("backend", 3)


# ---- backends of others ------------------------------------------------------------------


def test_ollama_that_is_not_there(alone, monkeypatch):
    monkeypatch.setenv("BACKEND", "ollama")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    with pytest.raises(CourseError, match="Ollama does not answer") as caught:
        services.ensure(wait=("backend",), quiet=True)
    assert "ollama serve" in caught.value.todo


def test_another_server_as_backend_and_back(alone, monkeypatch):
    from helpers.backend import serve

    with serve(alias="their-model") as theirs:
        monkeypatch.setenv("BACKEND", theirs.url)
        now = services.ensure(wait=("backend",), quiet=True)
        assert now.backend.kind == "openai" and now.backend.healthy
        assert now.backend.model == "their-model" and now.backend.pid is None
        assert until((alone / "proxy" / "config.yaml").exists)
        config = (alone / "proxy" / "config.yaml").read_text(encoding="utf-8")
        assert "openai/their-model" in config and theirs.url in config
        first = state()["supervisor"]["pid"]
        monkeypatch.delenv("BACKEND")
        now = services.ensure(wait=("backend",), quiet=True)
        assert now.backend.kind == "llama.cpp" and now.backend.url != theirs.url
        assert gone(first)
    assert httpx.get(f"{now.backend.url}/health", trust_env=False).status_code == 200


def test_another_server_that_asks_for_a_key(alone, monkeypatch):
    from helpers.backend import serve
    from helpers.clients import openai_client
    from helpers.standins import HostedStandIn

    with serve() as ours, HostedStandIn(backend=ours.url, key="their-key") as theirs:
        monkeypatch.setenv("BACKEND", theirs.url)
        with pytest.raises(CourseError, match="asks for a key") as caught:
            services.ensure(wait=("backend",), quiet=True)
        assert "BACKEND_KEY" in caught.value.todo
        monkeypatch.setenv("BACKEND_KEY", "not-theirs")
        with pytest.raises(CourseError, match="does not accept"):
            services.ensure(wait=("backend",), quiet=True)

        monkeypatch.setenv("BACKEND_KEY", "their-key")
        assert services.ensure(quiet=True).backend.healthy
        request = {"role": "user", "content": "Delete task 7"}
        for direct in (False, True):
            more = {} if direct else {"extra_body": {"cache_prompt": False}}
            client = openai_client(direct=direct)
            client.chat.completions.create(model=settings.MODEL, messages=[request], **more)
        arrived = [r for r in theirs.requests if r.method == "POST"]
        assert [r.headers["authorization"] for r in arrived] == ["Bearer their-key"] * 2
        # What a server like this refuses is dropped on the way.
        assert all("cache_prompt" not in r.body for r in arrived)
        written = [alone / "proxy" / "config.yaml", services._state_file()]
        assert all("their-key" not in path.read_text(encoding="utf-8") for path in written)


def test_ollama_as_backend_under_the_same_name(alone, monkeypatch):
    """Against a stand-in that speaks Ollama's interface; a real Ollama is not tested here."""
    from helpers.backend import serve
    from helpers.clients import DETERMINISTIC, openai_client
    from helpers.standins import OllamaStandIn
    from helpers.tasks import tool_schemas

    with serve() as ours, OllamaStandIn(backend=ours.url) as ollama:
        monkeypatch.setenv("BACKEND", "ollama")
        monkeypatch.setenv("OLLAMA_HOST", ollama.url)
        now = services.ensure(quiet=True)
        assert now.backend.kind == "ollama" and now.backend.healthy and now.proxy.healthy
        client = openai_client(base_url=f"{now.proxy.url}/v1", api_key=services.key())
        request = {"role": "user", "content": "Delete task 7"}
        reply = client.chat.completions.create(
            model=settings.MODEL, messages=[request], tools=tool_schemas(), **DETERMINISTIC
        )
        [arrived] = ollama.chats()
        assert arrived.path == "/api/chat" and len(arrived.body["tools"]) == 5
        assert reply.choices[0].message.tool_calls[0].function.name == "delete_task"


# --- a whole run of the tests ------------------------------------------------------------------

INNER = """
from helpers import services, settings

def test_uses_services():
    services.ensure(wait=("backend",), quiet=True)
    state = (settings.STATE / "services.json").read_text()
    (settings.WORK / "seen.json").write_text(state)
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "code"), [("pass", 0), ("assert False", 1), ("raise KeyboardInterrupt", 2)]
)
def test_nothing_outlives_a_run_of_the_tests(tmp_path, ending, code):
    work, folder = tmp_path / "work", tmp_path / "inner"
    folder.mkdir()
    (folder / "test_inner.py").write_text(INNER.format(ending=ending), encoding="utf-8")
    tests = Path(__file__).parent
    env = {
        **settings.scrubbed(os.environ),
        "COURSE_WORK": str(work),
        "PYTHONPATH": os.pathsep.join([str(tests), str(settings.ROOT)]),
    }
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST")}
    # A folder, as in the whole run: for that, conftest starts the services and gives them back.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(folder)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    seen = json.loads((work / "seen.json").read_text(encoding="utf-8"))
    pids = [r["pid"] for r in seen.values() if isinstance(r, dict) and r.get("pid")]
    assert len(pids) >= 2 and all(gone(pid) for pid in pids)
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(tmp_path) in " ".join(
                [*process.cmdline(), process.environ().get("COURSE_WORK", "")]
            ):
                left.append(process.cmdline())
    assert left == []
