"""The backend: llama.cpp's own server over one of the course's models, in a child process.

``python -m helpers.backend --model PATH --alias NAME`` is that child. ``serve()`` starts one
that belongs to the caller; the course's shared one is kept by :mod:`helpers.services`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from . import settings
from .children import Child, Server, end_with_parent, report_to_parent
from .settings import LOGS, MODEL, CourseError

# Requests that can be answered at the same time, and tokens of context for each.
SLOTS = 4
CONTEXT = 1024
# No answer of a task assistant is longer; without a bound, a model that never ends its turn
# would hold a slot until its context is full.
MAX_ANSWER_TOKENS = 512
START_TIMEOUT = 60.0
# How often a thread looks again before it sleeps until the others are done: read by libgomp, the
# OpenMP library of GCC, while it is loaded. Its default, 300,000, holds a core for most of a time
# slice, and where another program wants that core the one it waits for does not run: two threads
# on two occupied cores then took fifty times as long. This costs nothing where cores are free.
SPINS = "1000"


def default_threads() -> int:
    """Threads for one answer.

    Threads wait for each other dozens of times per token, so one that has to share its core
    slows all of them down: on two cores, the second is left to the proxy and the notebook.
    A model of a few MB gains little from more than two.
    """
    return 2 if (os.cpu_count() or 1) > 2 else 1


def model_path(model: str | Path) -> Path:
    """The file of a model, given its name or its path.

    Raises:
        CourseError: There is no such file, or it is not a GGUF file.
    """
    name = str(model)
    known = isinstance(model, str) and not name.endswith(".gguf")
    path = settings.MODEL_DIR / f"{name}.gguf" if known else Path(model)
    if not path.is_file():
        raise CourseError(
            f"The model file {_short(path)} is missing.",
            "It is part of this repository; it may have been moved or deleted.",
            f"Bring it back: git checkout -- {_short(path)}"
            if known
            else "Check the path that was given for the model.",
        )
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CourseError(
            f"{_short(path)} is not a model file.",
            "A GGUF file begins with the letters GGUF; this one was damaged or replaced.",
            f"Bring it back: git checkout -- {_short(path)}"
            if known
            else "Check the path that was given for the model.",
        )
    return path


def _short(path: Path) -> str:
    try:
        return path.resolve().relative_to(settings.ROOT).as_posix()
    except ValueError:
        return path.name


class Backend(Server):
    """A running backend. Use it in a ``with`` block, or call :meth:`stop`.

    Attributes:
        url: Its address, ``http://127.0.0.1:PORT``; the OpenAI API is below ``/v1``.
        model: The model's name.
        pid: Its process.
    """

    def __init__(self, child: Child, url: str, model: str, instance: str) -> None:
        super().__init__(child, url, instance)
        self.model = model


def serve(
    model: str | Path = MODEL,
    *,
    threads: int | None = None,
    slots: int = SLOTS,
    ctx: int = CONTEXT,
    cache_prompt: bool = False,
    port: int = 0,
    alias: str | None = None,
    instance: str = "",
    log: Path | None = None,
    timeout: float = START_TIMEOUT,
) -> Backend:
    """Start a backend of your own and wait until it answers (under a second).

    Args:
        model: A model's name (``task-api-model``) or the path of a GGUF file.
        threads: Threads used for computing (default: see :func:`default_threads`).
        slots: Requests answered at the same time; others wait.
        ctx: Tokens of context for each slot.
        cache_prompt: Reuse the work on a prompt's beginning between requests. Off, because
            what is reused changes rounding, and answers should not depend on what was
            asked before.
        port: Port to listen on; 0 takes a free one.
        alias: The name that requests use (default: the file's name).
        instance: A mark that shows up in ``/v1/models``, to recognise this very server.
        log: Where its log goes (default ``work/logs/backend-own.log``).
        timeout: Seconds to wait.

    Raises:
        CourseError: The model file is missing or damaged, the port is taken, or the server did
            not start.
    """
    path = model_path(model)
    name = alias or path.stem
    if port and not _free(port):
        raise CourseError(
            f"The backend could not start: port {port} is taken.",
            "Another program on this machine listens there.",
            "Choose another port; 0 takes a free one.",
        )
    args = ["--model", str(path), "--alias", name, "--port", str(port)]
    args += ["--threads", str(threads or default_threads()), "--slots", str(slots)]
    args += ["--ctx", str(ctx), "--instance", instance]
    if cache_prompt:
        args.append("--cache-prompt")
    child = Child("helpers.backend", args, log or LOGS / "backend-own.log")
    event = child.event(timeout)
    if event is None or "error" in event:
        ended = not child.alive or event is not None
        child.stop()
        detail = _last_error(child.log_tail(30)) or (event or {}).get("error", "no message")
        raise CourseError(
            f"The backend could not start with {_short(path)}.",
            f"llama.cpp ended with: {detail}" if ended else f"No answer within {timeout:.0f} s.",
            f"Bring the file back: git checkout -- {_short(path)}"
            if path.parent == settings.MODEL_DIR
            else "Check the model file, or make it anew.",
        )
    return Backend(child, event["url"], name, instance)


def _free(port: int) -> bool:
    """Whether a server could listen on port now. llama.cpp itself says so only in some of its
    starts: which of its messages comes last varies."""
    with socket.socket() as probe:
        if sys.platform != "win32":  # there it would allow what is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _last_error(log: str) -> str:
    """The most telling of the errors that llama.cpp logged at its last start."""
    errors = [line.split(" E ", 1)[1].strip() for line in log.splitlines() if " E " in line]
    telling = [e for e in errors if "error loading model: " in e or "couldn't bind" in e]
    return (telling or errors or [""])[-1].rpartition("error loading model: ")[2]


# ---- the child ---------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Serve one GGUF file until the starter ends (see :mod:`helpers.children`)."""
    parser = argparse.ArgumentParser(prog="python -m helpers.backend", description=__doc__)
    parser.add_argument("--model", required=True, help="path of a GGUF file")
    parser.add_argument("--alias", default=MODEL, help="the model's name in requests")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--ctx", type=int, default=CONTEXT, help="tokens for each slot")
    parser.add_argument("--cache-prompt", action="store_true")
    parser.add_argument("--instance", default="")
    args = parser.parse_args(argv)

    send = report_to_parent()
    end_with_parent()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    if args.instance:
        params.model_tags = {args.instance}
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.use_jinja = True
    params.n_gpu_layers = 0
    params.offline = True
    params.fit_params = False  # fits big models into a graphics card's memory
    params.ui = False
    params.endpoint_metrics = True
    # Pages in a browser have no business here: no origin is allowed.
    params.cors_origins = "http://127.0.0.1"
    params.n_parallel = args.slots
    params.n_ctx = args.ctx * args.slots
    params.n_predict = MAX_ANSWER_TOKENS
    params.cache_prompt = args.cache_prompt
    # The store of prompts for reuse may take 8 GB by default.
    params.cache_ram_mib = 64 if args.cache_prompt else 0
    # Look at every number once while loading: a damaged file fails here, not in an answer.
    params.check_tensors = True
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        send({"error": str(error)})
        return 1
    send({"url": server.listening_address, "pid": os.getpid()})
    # On Windows a signal does not interrupt an endless wait (untested there).
    while not stop.wait(0.5 if sys.platform == "win32" else None):
        pass
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
