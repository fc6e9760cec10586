"""Child processes that never outlive the process that started them.

Both services run as children of one Python process. A child tells its starter what it is
doing in lines of JSON on its standard output, and ends when its standard input closes:
the operating system closes that pipe however the starter ends, so even a starter that was
killed leaves nothing behind. It works alike on Linux, macOS and Windows.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from .settings import ROOT

# A log that has grown beyond this many bytes is put aside when its service next starts.
LOG_LIMIT = 2_000_000


def detached() -> dict[str, Any]:
    """The ``Popen`` arguments that give a child a process group of its own.

    A notebook's "interrupt" reaches every process of the kernel's group; a service must not
    be one of them. The Windows branch has not been run.
    """
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return {"creationflags": flags}
    return {"start_new_session": True}


def open_log(path: Path) -> IO[bytes]:
    """Open a log for appending; one that has grown large is kept as ``<name>.1``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Windows refuses to rename a file that something still has open: then it just grows on.
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")


class Child:
    """One running child process and the lines of JSON it has sent.

    Args:
        module: The module to run with ``python -m``.
        args: Its arguments.
        log: File that receives everything the child prints, apart from those lines.
        env: Its whole environment.
        on_exit: Called from another thread once the child has ended.
    """

    def __init__(
        self,
        module: str,
        args: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        self.log = log
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._on_exit = on_exit
        self.started = time.monotonic()
        with open_log(log) as stderr:
            self._log_from = stderr.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(
                # -u: what a library prints just before it dies still reaches the log.
                [sys.executable, "-u", "-m", module, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(os.environ if env is None else env),
                cwd=ROOT,
                **detached(),
            )
        self.pid = self.process.pid
        threading.Thread(target=self._read, name=f"{module}-{self.pid}", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                with contextlib.suppress(ValueError):
                    self._events.put(json.loads(line))
        self.process.wait()
        self._events.put(None)
        if self._on_exit is not None:
            self._on_exit()

    def event(self, timeout: float) -> dict[str, Any] | None:
        """The next line the child sent, or None when it ended or ``timeout`` seconds passed."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log, without those of earlier processes."""
        return tail(self.log, lines, self._log_from)

    def stop(self, patience: float = 5.0) -> None:
        """End it: ask, then insist, then kill. Returns when it is gone.

        Args:
            patience: Seconds given to each of the first two steps.
        """
        steps = (self._close_stdin, self.process.terminate, self.process.kill)
        for step in steps:
            if not self.alive:
                break
            with contextlib.suppress(OSError):
                step()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


class Server:
    """A server in a child process of ours. Use it in a ``with`` block, or call :meth:`stop`.

    Attributes:
        url: Its address, ``http://127.0.0.1:PORT``.
        pid: Its process.
        instance: A mark by which this very server is recognised.
    """

    def __init__(self, child: Child, url: str, instance: str) -> None:
        self.child, self.url, self.instance = child, url, instance
        self.pid = child.pid

    def stop(self) -> None:
        """End it; returns when the process is gone."""
        self.child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def tail(path: Path, lines: int, start: int = 0) -> str:
    """The last ``lines`` lines of a text file from byte ``start`` on; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 400 * lines - 400))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


# ---- what the child itself calls ---------------------------------------------------------


def report_to_parent() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for lines of JSON, and give back the function that sends one.

    Everything else that the process or a library prints from now on goes to standard error,
    which is the log.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(event: dict[str, Any]) -> None:
        # The starter may be gone; the watcher below then ends this process.
        with contextlib.suppress(OSError, ValueError):
            channel.write(json.dumps(event) + "\n")
            channel.flush()

    return send


def end_with_parent(end: Callable[[], None] | None = None) -> None:
    """End this process when its starter closes the pipe, or dies in any way.

    Args:
        end: Called first, to end gracefully; the process is ended hard 3 s later.
    """

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        if end is not None:
            end()
            time.sleep(3)
        os._exit(0)

    # A terminal's Ctrl-C is for the program in the foreground, not for a service.
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def bound_socket(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A socket for a server, bound and not yet listening.

    Args:
        port: 0 takes a free one.
        host: Address of this machine.

    Raises:
        OSError: The port is taken.
    """
    # Named as TCP, or asyncio would leave Nagle's algorithm on: each small answer 40 ms late.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # On Windows SO_REUSEADDR would let us share a port that is taken; elsewhere it only
    # skips the minute of rest that a port has after its last user.
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    option = socket.SO_REUSEADDR if exclusive is None else exclusive
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
