"""One notebook, run where it can hurt nobody: limits, a network of its own, a time to end.

The notebook runs in a process of its own (``inside``), which sends the outputs of each cell
as they come. This side watches the clock, the memory of everything that was started, and the
amount of output, and keeps what came before the end, however the end came.

Where Linux allows it (root, or unprivileged user namespaces) the process has

- a network with nothing but loopback, on which the class's backend and proxy are at their
  usual ports: the listening sockets are made inside and served from here;
- its own process ids, so that it sees no other process and all of it ends together;
- a file system that is read-only, except for a folder that is thrown away.

Elsewhere the limits hold and the rest does not; :func:`isolation` says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from helpers import settings
from helpers.settings import ROOT

MARK = "COURSE_SANDBOX"  # in the environment of everything that runs inside
MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Attributes:
        seconds: For the whole notebook.
        cell_seconds: For one cell; it is then interrupted, and the next one runs.
        memory_mb: For all its processes together.
        output_kb: What one cell may show; it is then interrupted.
        processes: How many it may have at a time.
    """

    seconds: float = 600
    cell_seconds: float = 120
    memory_mb: int = 2048
    output_kb: int = 1024
    processes: int = 100


@dataclass
class Ran:
    """What came of a notebook.

    Attributes:
        outputs: Per cell that was run: its outputs.
        counts: Per cell that was run: its execution count.
        stopped: Why it did not come to its end; empty when it did.
        finished: It came to its end.
        notes: Limits that single cells ran into, in words.
        seconds: How long it took.
        peak_mb: The most memory that was seen in use.
    """

    outputs: dict[int, list[Any]] = field(default_factory=dict)
    counts: dict[int, int | None] = field(default_factory=dict)
    stopped: str = ""
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: int = 0


@cache
def namespaces() -> tuple[str, ...]:
    """The words before a command that give it namespaces of its own; empty where none are."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return ()
    if not all(map(shutil.which, ("ip", "mount", "setpriv"))):
        return ()
    kinds = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    for extra in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *extra, *kinds]
        try:
            tried = subprocess.run(
                [*command, "sh", "-c", "ip link set lo up && mount --bind / /"],
                capture_output=True,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            return tuple(command)
    return ()


def isolation() -> str:
    """What keeps submissions apart on this machine, in a sentence."""
    if namespaces():
        return "with a network of loopback only, no view of other processes, and read-only files"
    return (
        "with limits on time, memory and output only (no network namespaces here): it can reach "
        "the internet, read and change the files of this account, and see other processes"
    )


# --- running -------------------------------------------------------------------------------


def run(notebook: Any, limits: Limits, services: Mapping[str, Any],
        hide: Sequence[Path] = ()) -> Ran:  # fmt: skip
    """Run a notebook.

    Args:
        notebook: It is left as it is.
        limits: What it may use.
        services: The class's backend and proxy, as ``COURSE_SERVICES`` holds them; may be empty.
        hide: Folders that shall be empty inside, such as those of other learners.

    Returns:
        The outputs that came, and why it ended early if it did.
    """
    import nbformat

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as name:
        box = Path(name).resolve()
        for folder in ("home", "tmp", "work", "notebooks"):
            (box / folder).mkdir()
        nbformat.write(notebook, box / "in.ipynb")
        doors, found = _forwarded(services) if namespaces() else ({}, services)
        (box / "services.json").write_text(json.dumps(found), encoding="utf-8")
        _copy_font_list(box)
        ran = _run(box, limits, bool(services), doors, hide)
    ran.seconds = round(time.monotonic() - began, 1)
    return ran


def _run(box: Path, limits: Limits, shared: bool, doors: Doors, hide: Sequence[Path]) -> Ran:
    apart = namespaces()
    here, there = socket.socketpair() if apart else (None, None)
    task = {
        "box": str(box),
        "apart": bool(apart),
        "hide": [str(path) for path in hide if path.is_dir()],
        "ports": list(doors),
        "channel": there.fileno() if there else None,
        "memory_mb": limits.memory_mb,
        "cell_seconds": limits.cell_seconds,
        "output_kb": limits.output_kb,
    }
    child = subprocess.Popen(
        [*apart, sys.executable, "-m", "helpers.instructor.inside", json.dumps(task)],
        cwd=ROOT,
        env=_environment(box, shared),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[there.fileno()] if there else [],
        start_new_session=True,
    )
    stop = threading.Event()
    try:
        if here is not None and there is not None:
            there.close()
            threading.Thread(
                target=_serve, args=(here, list(doors.values()), stop), daemon=True
            ).start()
        return _watch(child, box, limits)
    finally:
        stop.set()
        _end(child, box)
        if here is not None:
            here.close()


def _environment(box: Path, shared: bool) -> dict[str, str]:
    """A learner's environment in which everything that is written lies in the box."""
    env = settings.scrubbed(os.environ)
    own = ("BACKEND", "BACKEND_KEY", "COURSE_RECORD", "PYTEST_CURRENT_TEST", "COURSE_REQUIRE")
    for name in own:
        env.pop(name, None)
    home = box / "home"
    env |= {
        MARK: str(box),
        "HOME": str(home),
        "TMPDIR": str(box / "tmp"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter"),
        "JUPYTER_DATA_DIR": str(home / "jupyter-data"),
        "JUPYTER_RUNTIME_DIR": str(home / "jupyter-runtime"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "COURSE_WORK": str(box / "work"),
        "COURSE_PROGRESS": str(box / "work" / "progress.json"),
        "COURSE_SKILL": "rehearsal",  # below COURSE_WORK, from the reference up to this lesson
        "COURSE_TODAY": "2026-11-23",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        # One core each: the class shares the machine.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if shared:
        env["COURSE_SERVICES"] = str(box / "services.json")
    return env


def _copy_font_list(box: Path) -> None:
    """matplotlib would otherwise look for fonts anew in each box, for seconds."""
    from matplotlib import get_cachedir

    target = box / "home" / "matplotlib"
    target.mkdir()
    with contextlib.suppress(OSError):
        for found in Path(get_cachedir()).glob("fontlist*.json"):
            shutil.copy(found, target)


# --- watching ------------------------------------------------------------------------------


def _watch(child: subprocess.Popen, box: Path, limits: Limits) -> Ran:
    """Read what comes until the end, one's own or by a limit."""
    ran = Ran()
    deadline = time.monotonic() + limits.seconds
    selector = selectors.DefaultSelector()
    selector.register(child.stdout, selectors.EVENT_READ)
    os.set_blocking(child.stdout.fileno(), False)
    buffer = bytearray()
    most = max(limits.output_kb * 1024 * 20, MB)
    received = 0
    done = False
    next_look = 0.0
    while not done:
        for _ in selector.select(timeout=0.1):
            piece = child.stdout.read(1 << 16)
            if piece == b"":
                done = True
            received += len(piece or b"")
            buffer += piece or b""
            if b"\n" not in (piece or b""):
                continue
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                _note(ran, line)
        now = time.monotonic()
        if received > most:
            ran.stopped = f"it showed more than {most // MB} MB in all"
        elif now > deadline:
            ran.stopped = f"it ran longer than {limits.seconds:g} seconds"
        elif now >= next_look:
            next_look = now + 0.5
            used, processes = _usage(child, box)
            ran.peak_mb = max(ran.peak_mb, used)
            if used > limits.memory_mb:
                ran.stopped = f"it used more than {limits.memory_mb} MB of memory"
            elif processes > limits.processes:
                ran.stopped = f"it started more than {limits.processes} processes"
        if ran.stopped:
            break
    selector.close()
    if not ran.stopped and not ran.finished:
        ran.stopped = "it ended the process that was running it"
    return ran


def _note(ran: Ran, line: bytes) -> None:
    """Take in one line from inside. It may be anything: submissions can write there too."""
    try:
        event = json.loads(line)
        if "cell" in event:
            index = int(event["cell"])
            outputs = event["outputs"]
            if isinstance(outputs, list):
                ran.outputs[index] = outputs
                ran.counts[index] = event.get("count")
            if note := event.get("note"):
                ran.notes.append(str(note)[:300])
        elif "stopped" in event:
            ran.stopped = str(event["stopped"])[:300]
        elif event.get("end"):
            ran.finished = True
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _family(child: subprocess.Popen, box: Path) -> Iterator[Any]:
    """Everything that was started inside, also what has left its parent."""
    import psutil

    seen = set()
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(child.pid)
        for process in [top, *top.children(recursive=True)]:
            seen.add(process.pid)
            yield process
    if namespaces():
        return  # nothing can leave
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in seen and process.environ().get(MARK) == str(box):
                yield process


def _usage(child: subprocess.Popen, box: Path) -> tuple[int, int]:
    """Memory in MB of all its processes, and their number."""
    import psutil

    total = number = 0
    for process in _family(child, box):
        with contextlib.suppress(psutil.Error):
            info = process.memory_info()
            total += info.rss - getattr(info, "shared", 0)
            number += 1
    return total // MB, number


def _end(child: subprocess.Popen, box: Path) -> None:
    """End all of it, and return when it is gone."""
    import psutil

    family = list(_family(child, box))
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    psutil.wait_procs(family, timeout=5)
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)


# --- the way to the services ---------------------------------------------------------------


Doors = dict[int, tuple[str, int]]  # port on the loopback inside → address outside


def _forwarded(services: Mapping[str, Any]) -> tuple[Doors, dict[str, Any]]:
    """The way to the services, and the services as a submission shall find them."""
    doors: Doors = {}
    inside: dict[str, Any] = {}
    for name in filter(services.get, ("backend", "proxy")):
        service = services[name]
        parts = urlsplit(service["url"])
        address = (parts.hostname or "127.0.0.1", parts.port or 80)
        door = next((p for p, to in doors.items() if to == address), None)
        if door is None:
            door = address[1]
            while door in doors:  # two machines may use the same port
                door += 1
            doors[door] = address
        url = parts._replace(netloc=f"127.0.0.1:{door}").geturl()
        inside[name] = {**service, "url": url}
    return doors, inside


def _serve(
    here: socket.socket, addresses: Sequence[tuple[str, int]], stop: threading.Event
) -> None:
    """Take the sockets that listen inside, and pass on what comes in at them."""
    try:
        _, descriptors, _, _ = socket.recv_fds(here, 16, len(addresses) or 1)
    except OSError:
        return
    listening = [socket.socket(fileno=fd) for fd in descriptors]
    with selectors.DefaultSelector() as selector:
        for door, address in zip(listening, addresses, strict=False):
            selector.register(door, selectors.EVENT_READ, address)
        while not stop.is_set():
            for key, _ in selector.select(timeout=0.2):
                with contextlib.suppress(OSError):
                    visitor, _ = key.fileobj.accept()
                    threading.Thread(target=_connect, args=(visitor, key.data), daemon=True).start()
    for door in listening:
        door.close()


def _connect(visitor: socket.socket, address: tuple[str, int]) -> None:
    with contextlib.suppress(OSError), visitor:
        with socket.create_connection(address, timeout=10) as service:
            service.settimeout(None)
            back = threading.Thread(target=_pass_on, args=(service, visitor), daemon=True)
            back.start()
            _pass_on(visitor, service)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
