"""The two services of the course, started once and shared by all notebooks.

``ensure()`` is what a lesson's first cell calls: it starts the backend and the proxy, or
finds them running, or mends them. A supervisor process (``python -m helpers.services``)
owns both and starts them again when they crash. Whoever uses them holds a lease, a small
file with the process's id; when no holder has been alive for half a minute, the supervisor
stops everything, itself included. ``up()`` holds a lease that lasts until ``down()``.

All state is in ``work/state``: ``services.json`` (written only by the supervisor),
``proxy.key``, ``leases/`` and ``requests/`` (what a client asks the supervisor to do).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import backend as backend_module
from . import external, settings
from . import proxy as proxy_module
from .children import detached, open_log, tail
from .settings import MODEL, CourseError, Settings

# Seconds without any living lease-holder after which the supervisor stops everything.
GRACE = 30.0
# Seconds that a service may be silent before it counts as stuck rather than busy.
STUCK = 15.0
# A service that ends this often within a minute is left alone until somebody asks again.
MAX_CRASHES = 3

WAIT = {"backend": 90.0, "proxy": proxy_module.START_TIMEOUT + 60}


# ---- files -------------------------------------------------------------------------------


def _state_file() -> Path:
    return settings.STATE / "services.json"


def given() -> dict[str, Any]:
    """Services that somebody else runs, from the file that ``COURSE_SERVICES`` names.

    ``{"backend": {"url": …, "model": …}, "proxy": {"url": …, "key": …}}``: a class shares one
    pair, and nobody in it starts, mends or stops anything. Empty without that variable.

    Raises:
        CourseError: The file is missing, or lacks one of these.
    """
    path = os.environ.get("COURSE_SERVICES")
    if not path:
        return {}
    content = _read_json(Path(path))
    try:
        for name, wanted in (("backend", ("url",)), ("proxy", ("url", "key"))):
            content[name] = {"state": "external", **content[name]}
            for key_ in wanted:
                content[name][key_].strip()
    except (KeyError, TypeError, AttributeError):
        raise CourseError(
            f"The file of shared services, {path}, cannot be used.",
            "COURSE_SERVICES names a JSON file with backend.url, proxy.url and proxy.key.",
            "Ask whoever runs this class, or unset COURSE_SERVICES to start your own services.",
        ) from None
    content["backend"].setdefault("kind", "openai")
    content["proxy"]["kind"] = "litellm" if content["proxy"].get("instance") else "openai"
    return content


def _lock() -> Any:
    from filelock import FileLock

    settings.STATE.mkdir(parents=True, exist_ok=True)
    return FileLock(str(settings.STATE / "services.lock"))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    for attempt in range(20):
        try:
            temporary.replace(path)
            return
        except PermissionError:  # on Windows, while somebody reads the old file
            if attempt == 19:
                raise
            time.sleep(0.02)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def key_file() -> Path:
    """The file that holds the proxy's key."""
    return settings.STATE / "proxy.key"


def key() -> str:
    """The proxy's key: random, made once per machine, readable by its owner only.

    On Windows the file's protection is that of the folder it is in.
    """
    if shared := given():
        return shared["proxy"]["key"].strip()
    path = key_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock():
        with contextlib.suppress(OSError):
            if text := path.read_text(encoding="ascii").strip():
                return text
        text = proxy_module.new_key()
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
        return text


# ---- processes and leases ----------------------------------------------------------------


def _created(pid: int) -> float | None:
    """When a living process started (seconds since 1970), or None if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except psutil.Error:
        return None


def alive(record: Mapping[str, Any] | None) -> bool:
    """Whether the process of a record ``{"pid", "created"}`` is still the one recorded."""
    if not record or not isinstance(record.get("pid"), int):
        return False
    created = _created(record["pid"])
    # Ids of processes are used again; the time of their start tells them apart. It is
    # computed from the machine's clock, which may be set a little in between.
    return created is not None and abs(created - float(record.get("created") or 0)) < 5


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "created": _created(os.getpid())}


def _lease_file(name: str | None = None) -> Path:
    return settings.STATE / "leases" / f"{name or os.getpid()}.json"


def hold() -> None:
    """Say that this process uses the services, until it ends or calls :func:`release`."""
    path = _lease_file()
    if not alive(_read_json(path)):
        _write_json(path, _this_process())


def _hold_until_down() -> None:
    import psutil

    _write_json(_lease_file("up"), {"boot": psutil.boot_time()})


def holders() -> list[str]:
    """The leases whose holders live; files of others are removed."""
    import psutil

    found = []
    for path in sorted((settings.STATE / "leases").glob("*.json")):
        lease = _read_json(path)
        if path.stem == "up":
            # A lease without a process ends with the machine's session.
            living = abs(psutil.boot_time() - float(lease.get("boot") or 0)) < 120
        else:
            living = alive(lease)
        if living:
            found.append(path.stem)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def release() -> None:
    """Give this process's lease back; the last holder's release stops the services."""
    with contextlib.suppress(OSError):
        _lease_file().unlink()
    if not holders():
        down()


# ---- what a client sees ------------------------------------------------------------------


@dataclass
class Service:
    """One service as it is now.

    Attributes:
        kind: ``llama.cpp``, ``ollama``, ``openai`` (another server) or ``litellm``.
        url: Its address, or None.
        model: The model's name there (backend only).
        healthy: It answered just now, and it is the very one that was started.
        state: ``starting``, ``ready``, ``failed``, ``external`` or ``stopped``.
        error: What happened, why, and what to type, when it failed.
        pid: Its process, if it is a child.
        seconds: How long its start took.
        restarts: How often it was started again after a crash.
    """

    kind: str
    url: str | None = None
    model: str | None = None
    healthy: bool = False
    state: str = "stopped"
    error: list[str] = field(default_factory=list)
    pid: int | None = None
    seconds: float | None = None
    restarts: int = 0


@dataclass
class Status:
    """Both services; :meth:`json` is what ``status --json`` prints, ``str()`` is for people."""

    backend: Service
    proxy: Service
    running: bool = False
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """As plain data; the proxy's key itself is not in it."""
        backend, proxy = self.backend, self.proxy
        return {
            "backend": {
                "kind": backend.kind,
                "url": backend.url,
                "model": backend.model,
                "healthy": backend.healthy,
                "state": backend.state,
                "pid": backend.pid,
                "start_seconds": backend.seconds,
                "restarts": backend.restarts,
                "error": " ".join(backend.error) or None,
            },
            "proxy": {
                "url": proxy.url,
                "key_file": str(key_file()),
                "healthy": proxy.healthy,
                "state": proxy.state,
                "pid": proxy.pid,
                "start_seconds": proxy.seconds,
                "restarts": proxy.restarts,
                "error": " ".join(proxy.error) or None,
            },
            "running": self.running,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = []
        for name, service in (("backend", self.backend), ("proxy", self.proxy)):
            if service.healthy:
                text = "ready"
            elif service.state in ("ready", "external"):
                text = "does not answer"
            else:
                text = service.state
            where = f"{service.kind} at {service.url}" if service.url else service.kind
            lines.append(f"{name:8} {text:15} {where}")
            lines += [f"         {part}" for part in service.error]
        lines += self.notes
        if not self.running:
            lines.append("Start both with: python3 -m helpers up")
        return "\n".join(lines)


def status() -> Status:
    """What runs now. Asks both services whether they are well; starts nothing."""
    if shared := given():
        backend = _service(shared["backend"], "openai")
        return Status(backend, _service(shared["proxy"], "litellm"), True)
    state = _read_json(_state_file())
    wanted = Settings.from_env()
    if not alive(state.get("supervisor")):
        kind = wanted.backend if wanted.backend in ("llama.cpp", "ollama") else "openai"
        return Status(Service(kind), Service("litellm"))
    backend = _service(state.get("backend") or {}, "llama.cpp")
    proxy = _service(state.get("proxy") or {}, "litellm")
    return Status(backend, proxy, True, list(state.get("notes") or []))


def _service(record: Mapping[str, Any], kind: str) -> Service:
    return Service(
        kind=record.get("kind") or kind,
        url=record.get("url"),
        model=record.get("model"),
        healthy=record.get("state") in ("ready", "external") and healthy(record),
        state=record.get("state") or "stopped",
        error=list(record.get("error") or []),
        pid=record.get("pid"),
        seconds=record.get("seconds"),
        restarts=record.get("restarts") or 0,
    )


def probe(url: str, timeout: float = 2.0) -> tuple[int, Mapping[str, str], bytes]:
    """GET a URL without any web proxy.

    Returns:
        Status, headers, body.

    Raises:
        OSError: Nobody answers within ``timeout`` seconds, or not in HTTP.
    """
    import http.client

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()  # type: ignore[return-value]
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


def healthy(record: Mapping[str, Any], timeout: float = 2.0) -> bool:
    """Whether a service of the state file answers and is the very one that was started."""
    url, kind = record.get("url"), record.get("kind")
    if not url:
        return False
    try:
        if kind == "litellm":
            code, headers, _ = probe(f"{url}/health/liveliness", timeout)
            same = headers.get(proxy_module.INSTANCE_HEADER) == record.get("instance")
            return code == 200 and same
        if kind == "llama.cpp":
            code, _, body = probe(f"{url}/v1/models", timeout)
            return code == 200 and record.get("instance") in json.loads(body)["data"][0]["tags"]
        key = Settings.from_env().backend_key if kind == "openai" else ""
        return external.problem(kind or "", url, key, timeout) is None
    except (CourseError, OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def ensure(wait: Iterable[str] = ("backend", "proxy"), quiet: bool = False) -> Status:
    """Start the services, or find them running, or mend them.

    Args:
        wait: Which to wait for. Without the proxy, whose imports are slow, this returns
            in a second or two and the proxy goes on starting by itself.
        quiet: Print nothing.

    Raises:
        CourseError: A service does not start, with the reason and what to type.
    """
    wait = tuple(wait)
    if shared := given():
        for name in wait:
            _await_shared(name, shared[name])
        return status()
    hold()
    _find_or_start()
    for name in wait:
        _await(name)
    if not quiet and wait:
        print("Backend and proxy are ready." if len(wait) > 1 else f"The {wait[0]} is ready.")
    return status()


def up(wait: bool = True) -> Status:
    """Start the services and keep them until :func:`down`.

    Args:
        wait: Wait until both answer.

    Raises:
        CourseError: A service does not start.
    """
    _hold_until_down()
    return ensure(("backend", "proxy") if wait else (), quiet=True)


def down() -> None:
    """Stop both services and their supervisor, whoever uses them; returns when all are gone."""
    with contextlib.suppress(OSError):
        _lease_file("up").unlink()
    with _lock():
        _stop_supervisor()


def logs(name: str, lines: int = 30) -> str:
    """The last lines of a log.

    Args:
        name: ``backend``, ``proxy`` or ``supervisor``.
        lines: How many.
    """
    return tail(settings.LOGS / f"{name}.log", lines) or f"There is no log of the {name} yet."


# ---- starting and mending ----------------------------------------------------------------


def _fingerprint(wanted: Settings) -> str:
    """Changes when running services would no longer be the ones that are asked for."""
    parts = [
        wanted.backend,
        wanted.backend_key,
        wanted.ollama_host if wanted.backend == "ollama" else "",
        wanted.hosted_model if wanted.hosted else "",
        wanted.hosted_key,
        sys.prefix,
    ]
    for module in ("children", "backend", "proxy", "services"):
        info = (settings.ROOT / "helpers" / f"{module}.py").stat()
        parts += [str(info.st_mtime_ns), str(info.st_size)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _model_stamp() -> str:
    try:
        info = (settings.MODEL_DIR / f"{MODEL}.gguf").stat()
    except OSError:
        return ""
    return f"{info.st_mtime_ns}-{info.st_size}"


def _find_or_start() -> None:
    """Leave with a living supervisor that runs what the settings ask for."""
    wanted = Settings.from_env()
    fingerprint = _fingerprint(wanted)
    key()  # made before the supervisor reads it
    with _lock():
        supervisor = _read_json(_state_file()).get("supervisor")
        if alive(supervisor) and supervisor.get("fingerprint") == fingerprint:
            return
        _stop_supervisor()
        _start_supervisor(fingerprint)


def _start_supervisor(fingerprint: str) -> None:
    instance = secrets.token_hex(8)
    env = settings.scrubbed(os.environ)
    # The scrubbing also takes what belongs to HOSTED=1, the one case where a key is wanted.
    for name in ("HOSTED", "HOSTED_MODEL", "OPENAI_API_KEY"):
        if os.environ.get("HOSTED") == "1" and name in os.environ:
            env[name] = os.environ[name]
    env["COURSE_WORK"] = str(settings.WORK)
    args = ["--instance", instance, "--fingerprint", fingerprint, "--grace", str(GRACE)]
    with open_log(settings.LOGS / "supervisor.log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.services", *args],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=settings.ROOT,
            **detached(),
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        supervisor = _read_json(_state_file()).get("supervisor") or {}
        if supervisor.get("instance") == instance:
            return
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    raise CourseError(
        "The services could not be started.",
        "Their supervisor ended: " + logs("supervisor", 3),
        "Type: python3 -m helpers doctor",
    )


def _stop_supervisor() -> None:
    """Stop a running supervisor and everything it started. Call with the lock held."""
    import psutil

    state = _read_json(_state_file())
    supervisor = state.get("supervisor")
    records = [supervisor, state.get("backend"), state.get("proxy")]
    if alive(supervisor):
        _request("stop")
        process = psutil.Process(supervisor["pid"])
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(15)
    deadline = time.monotonic() + 5
    # Children end when their supervisor does; what is left then is stuck.
    while any(alive(record) for record in records) and time.monotonic() < deadline:
        time.sleep(0.05)
    for record in records:
        if record and alive(record):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(record["pid"])
                process.kill()
                process.wait(5)
    with contextlib.suppress(OSError):
        _state_file().unlink()
    _clear_requests()


def _request(what: str) -> None:
    _write_json(settings.STATE / "requests" / what, {"from": os.getpid()})


def _clear_requests() -> None:
    with contextlib.suppress(OSError):
        for path in (settings.STATE / "requests").iterdir():
            with contextlib.suppress(OSError):
                path.unlink()


def _await(name: str) -> None:
    """Wait until a service is well; ask the supervisor to start it anew where needed.

    Raises:
        CourseError: It failed, or took too long.
    """
    deadline = time.monotonic() + WAIT[name]
    asked_at: int | None = None
    silent_since: float | None = None
    while time.monotonic() < deadline:
        state = _read_json(_state_file())
        if not alive(state.get("supervisor")):
            _find_or_start()
            asked_at = silent_since = None
            continue
        record = state.get(name) or {}
        phase, attempt = record.get("state"), record.get("attempt", 0)
        if phase == "external":
            wanted = Settings.from_env()
            problem = external.problem(wanted.backend, record["url"], wanted.backend_key)
            if problem is None:
                return
            raise problem
        new = asked_at is None or attempt > asked_at
        if phase == "failed":
            if asked_at is not None and new:
                raise CourseError(*record["error"])
            if asked_at is None:
                # Whatever was wrong may have been put right since.
                _request(f"restart-{name}")
                asked_at = attempt
        elif phase == "ready" and new:
            if name == "backend" and record.get("stamp") != _model_stamp() and asked_at is None:
                _request("restart-backend")
                asked_at = attempt
            elif healthy(record):
                return
            else:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > STUCK and asked_at is None:
                    _request(f"restart-{name}")
                    asked_at = attempt
        time.sleep(0.05)
    raise CourseError(
        f"The {name} was not ready within {WAIT[name]:.0f} seconds.",
        "The machine may be very busy, or the service is stuck.",
        f"Type: python3 -m helpers logs {name}, then: python3 -m helpers down, and try again.",
    )


def _await_shared(name: str, record: Mapping[str, Any]) -> None:
    """Wait a little for a service that somebody else runs; a class may keep it busy.

    Raises:
        CourseError: It does not answer.
    """
    for _ in range(5):
        if healthy(record, timeout=10):
            return
        time.sleep(0.5)
    raise CourseError(
        f"The shared {name} does not answer at {record['url']}.",
        "COURSE_SERVICES says that somebody else runs it.",
        "Ask whoever runs this class, or unset COURSE_SERVICES to start your own services.",
    )


# ---- the supervisor ----------------------------------------------------------------------


class Supervisor:
    """Owns backend and proxy, starts them again when they end, stops when nobody is left."""

    def __init__(self, instance: str, fingerprint: str, grace: float) -> None:
        self.settings = Settings.from_env()
        self.grace = grace
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.key = key_file().read_text(encoding="ascii").strip()
        self.children: dict[str, Any] = {}
        self.crashes: dict[str, list[float]] = {"backend": [], "proxy": []}
        self.state: dict[str, Any] = {
            "supervisor": {
                **_this_process(),
                "instance": instance,
                "fingerprint": fingerprint,
            },
            "backend": {"state": "starting", "kind": "llama.cpp", "attempt": 0, "restarts": 0},
            "proxy": {"state": "starting", "kind": "litellm", "attempt": 0, "restarts": 0},
            "notes": [],
        }

    def run(self) -> None:
        """Run until told to stop, or until nobody has used the services for a while."""
        _clear_requests()
        self.write()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.events.put(("stop", None)))
        try:
            self.start_backend()
            self.start_proxy()
            self.watch()
        finally:
            for child in self.children.values():
                child.stop()
            current = _read_json(_state_file()).get("supervisor") or {}
            if current.get("instance") == self.state["supervisor"]["instance"]:
                _state_file().unlink(missing_ok=True)
            say("stopped")

    def watch(self) -> None:
        """Handle what children and clients say, and look after the leases."""
        last_used = time.monotonic()
        next_look = 0.0
        while True:
            try:
                what, detail = self.events.get(timeout=0.2)
            except queue.Empty:
                what, detail = self.asked(), None
            if what == "stop":
                return
            if what == "ended":
                self.mend(detail)
            elif what == "ready":
                self.proxy_ready(*detail)
            elif what.startswith("restart-"):
                name = what.removeprefix("restart-")
                self.crashes[name].clear()
                self.restart(name)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + min(2.0, self.grace / 4)
                if holders():
                    last_used = time.monotonic()
                elif time.monotonic() - last_used > self.grace and self.nobody_left():
                    return

    def nobody_left(self) -> bool:
        """Decide to stop, unless somebody came at this very moment."""
        from filelock import Timeout

        try:
            with _lock().acquire(timeout=0.2):
                if holders():
                    return False
                say("nobody uses the services any more")
                # From here on whoever comes starts a new supervisor.
                _state_file().unlink(missing_ok=True)
                return True
        except Timeout:
            return False  # somebody is just looking for us, or stopping us

    def asked(self) -> str:
        """The next request of a client, or an empty string."""
        for name in ("stop", "restart-backend", "restart-proxy"):
            path = settings.STATE / "requests" / name
            if path.exists():
                with contextlib.suppress(OSError):
                    path.unlink()
                    return name
        return ""

    def write(self) -> None:
        """Publish the state."""
        _write_json(_state_file(), self.state)

    def set(self, name: str, **values: Any) -> None:
        """Change one service's record and publish it."""
        self.state[name].update(values)
        self.write()

    # -- backend

    def start_backend(self) -> None:
        """Start the backend, or note the one that is somebody else's."""
        self.state["backend"]["attempt"] += 1
        wanted = self.settings
        if wanted.backend != "llama.cpp":
            url = external.address(wanted)
            ollama = wanted.backend == "ollama"
            model = MODEL if ollama else external.model(url, wanted.backend_key)
            kind = "ollama" if ollama else "openai"
            self.set("backend", kind=kind, url=url, model=model, state="external")
            return
        started = time.monotonic()
        stamp = _model_stamp()
        # The same port as before, so that the proxy's configuration stays true.
        before = self.state["backend"].get("url")
        port = urlsplit(before).port if before else 0
        running = None
        try:
            running = self.serve_backend(port or 0)
        except CourseError as error:
            if port:
                with contextlib.suppress(CourseError):
                    running = self.serve_backend(0)
            if running is None:
                say(f"backend: {error}")
                self.fail("backend", error)
                return
        self.children["backend"] = running.child
        seconds = round(time.monotonic() - started, 2)
        self.set(
            "backend",
            url=running.url,
            model=MODEL,
            pid=running.pid,
            created=_created(running.pid),
            instance=running.instance,
            stamp=stamp,
            seconds=seconds,
            state="ready",
            error=[],
        )
        say(f"backend ready after {seconds} s at {running.url}")
        if before and before != running.url:
            self.restart("proxy")

    def serve_backend(self, port: int) -> backend_module.Backend:
        """One attempt to start the backend."""
        child_instance = secrets.token_hex(8)
        running = backend_module.serve(
            MODEL, port=port, instance=child_instance, log=settings.LOGS / "backend.log"
        )
        self.watch_child("backend", running.child)
        return running

    # -- proxy

    def start_proxy(self) -> None:
        """Start the proxy; it is ready some time later (see :meth:`proxy_ready`)."""
        self.state["proxy"]["attempt"] += 1
        backend = self.state["backend"]
        if not backend.get("url"):
            error = CourseError(
                "The proxy was not started.",
                "It would have no backend to pass requests to: " + " ".join(backend["error"][:1]),
                *backend["error"][-1:],
            )
            self.fail("proxy", error)
            return
        config = proxy_module.course_config(self.settings, backend["url"], backend["model"])
        path = proxy_module.write_config(config, settings.WORK / "proxy" / "config.yaml")
        before = self.state["proxy"].get("url")
        port = (urlsplit(before).port if before else None) or proxy_module.PORT
        started = time.monotonic()
        proxy = None
        for choice in (port, None):
            try:
                proxy = proxy_module.start_proxy(
                    path,
                    choice,
                    self.key,
                    settings=self.settings,
                    log=settings.LOGS / "proxy.log",
                )
                break
            except CourseError as error:
                if choice is None or "taken" not in error.what:
                    say(f"proxy: {error}")
                    self.fail("proxy", error)
                    return
        assert proxy is not None
        self.children["proxy"] = proxy.child
        if proxy.url != f"http://127.0.0.1:{port}":
            taken = urlsplit(proxy.url).port
            note = f"Port {port} is taken by another program: the proxy uses port {taken}."
            self.state["notes"] = [note]
            say(note)
        self.set(
            "proxy",
            url=proxy.url,
            pid=proxy.pid,
            created=_created(proxy.pid),
            instance=proxy.instance,
            state="starting",
            error=[],
        )

        def wait() -> None:
            error = None
            try:
                proxy_module.wait_ready(proxy)
            except CourseError as problem:
                error = problem
            self.events.put(("ready", (proxy, started, error)))

        threading.Thread(target=wait, name="proxy-ready", daemon=True).start()

    def proxy_ready(
        self, proxy: proxy_module.Proxy, started: float, error: CourseError | None
    ) -> None:
        """Note that the proxy answers now, or that it ended instead."""
        if self.children.get("proxy") is not proxy.child:
            return  # one that has been replaced meanwhile
        if error is not None:
            self.children.pop("proxy")
            say(f"proxy: {error}")
            self.crashed("proxy", error)
            return
        seconds = round(time.monotonic() - started, 2)
        self.set("proxy", state="ready", seconds=seconds)
        self.watch_child("proxy", proxy.child)
        say(f"proxy ready after {seconds} s at {proxy.url}")

    # -- both

    def watch_child(self, name: str, child: Any) -> None:
        """Have the end of a child reported."""

        def wait() -> None:
            child.process.wait()
            self.events.put(("ended", (name, child)))

        threading.Thread(target=wait, name=f"{name}-ended", daemon=True).start()

    def mend(self, detail: tuple[str, Any]) -> None:
        """Start a service again that ended by itself."""
        name, child = detail
        if self.children.get(name) is not child:
            return  # one that was stopped on purpose
        self.children.pop(name)
        say(f"{name} ended with status {child.process.returncode}")
        error = CourseError(
            f"The {name} ended {MAX_CRASHES} times within a minute.",
            f"Its last words: {child.log_tail(2)}",
            f"Type: python3 -m helpers logs {name}",
        )
        self.crashed(name, error)

    def crashed(self, name: str, error: CourseError) -> None:
        """Count a crash; start again, or give up for now."""
        now = time.monotonic()
        recent = [moment for moment in self.crashes[name] if now - moment < 60]
        self.crashes[name] = [*recent, now]
        if len(self.crashes[name]) >= MAX_CRASHES:
            self.fail(name, error)
            return
        self.state[name]["restarts"] += 1
        self.restart(name)

    def restart(self, name: str) -> None:
        """Stop a service if it runs, and start it."""
        child = self.children.pop(name, None)
        self.set(name, state="starting")
        if child is not None:
            child.stop()
        if name == "proxy":
            self.start_proxy()
            return
        self.start_backend()
        if self.state["proxy"]["state"] == "failed" and self.state["backend"].get("url"):
            self.restart("proxy")

    def fail(self, name: str, error: CourseError) -> None:
        """Publish why a service does not run."""
        self.set(name, state="failed", error=[error.what, error.why, error.todo])


def say(text: str) -> None:
    """A line in the supervisor's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor; started by :func:`ensure`, not by people."""
    parser = argparse.ArgumentParser(prog="python -m helpers.services", description=__doc__)
    parser.add_argument("--instance", required=True)
    parser.add_argument("--fingerprint", required=True)
    parser.add_argument("--grace", type=float, default=GRACE)
    args = parser.parse_args(argv)
    Supervisor(args.instance, args.fingerprint, args.grace).run()
    # Threads that still wait for a child must not hold up the end.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
