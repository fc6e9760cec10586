"""Faults on request: a proxy on the loopback that hands requests on to a model's server, and
now and then fails in one of the ways in which servers and networks fail.

It stands between two real programs, such as LiteLLM and llama.cpp. What it breaks is really
broken: with ``switch("refuse")`` the port is closed and the operating system refuses the
connection (in a script or a storm it is reset instead), a reset is a reset, and a wrong call is
the model's own answer with a changed argument.

Examples:
    >>> with FaultProxy(backend.url) as faults:
    ...     faults.script("503", None, "hang")     # the next three requests: one each
    ...     ...                                    # base_url=faults.url
    ...     faults.switch("refuse")                # from now on, until switch(None)
    ...     faults.storm(0.3, seed=7)              # three requests in ten, drawn by lot
    ...     faults.log[0].fault, faults.log[0].call
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from .children import bound_socket

# --- the faults ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A way to fail.

    Attributes:
        kind: ``refuse``, ``hang``, ``delay``, ``reset``, ``status``, ``broken json``,
            ``web page``, ``empty``, ``unknown tool``, ``bad arguments`` or ``wrong call``.
        seconds: For ``delay``: how much later the answer comes.
        status: For ``status``: the HTTP status.
        retry_after: For ``status``: seconds in the header ``Retry-After``; None: no header.
        after: For ``reset``: how many chunks of a stream arrive before it.
        name: What the log and tables call it.
    """

    kind: str
    seconds: float = 0.0
    status: int = 0
    retry_after: float | None = None
    after: int = 2
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.kind


def refuse() -> Fault:
    """Take no requests. With ``switch``, the port is closed and the operating system refuses
    the connection; in a script or a storm, the connection is reset before an answer begins."""
    return Fault("refuse", name="refuse")


def hang() -> Fault:
    """Take the request and never answer."""
    return Fault("hang", name="hang")


def delay(seconds: float = 0.5) -> Fault:
    """Answer correctly, but ``seconds`` later."""
    return Fault("delay", seconds=seconds, name="delay")


def reset(after: int = 2) -> Fault:
    """Break the connection in the middle of the answer.

    Args:
        after: How many chunks of a stream arrive before; of a whole answer, half arrives.
    """
    return Fault("reset", after=after, name="reset")


def status(code: int, retry_after: float | None = None) -> Fault:
    """Answer with an error object and this HTTP status, such as 500, 503, 429 or 401.

    Args:
        code: The status.
        retry_after: Seconds for the header ``Retry-After``.
    """
    return Fault("status", status=code, retry_after=retry_after, name=str(code))


def broken_json() -> Fault:
    """Answer 200 with JSON that ends in the middle."""
    return Fault("broken json", name="broken json")


def web_page() -> Fault:
    """Answer 200 with a page for people, as gateways and login pages do."""
    return Fault("web page", name="web page")


def empty() -> Fault:
    """Answer 200 with nothing: a stream without chunks, a message without words and calls."""
    return Fault("empty", name="empty")


def unknown_tool() -> Fault:
    """Change the model's call: a tool that nobody offered."""
    return Fault("unknown tool", name="unknown tool")


def bad_arguments() -> Fault:
    """Change the model's call: an argument that the tool's schema forbids."""
    return Fault("bad arguments", name="bad arguments")


def wrong_call() -> Fault:
    """Change the model's call: valid by the schema, and not what the person asked for."""
    return Fault("wrong call", name="wrong call")


# Short times: a client in a lesson or a test waits a second or two before it gives up.
FAULTS: dict[str, Fault] = {
    str(fault): fault
    for fault in (
        refuse(),
        hang(),
        delay(),
        reset(),
        status(500),
        status(503),
        status(429, retry_after=1),
        broken_json(),
        web_page(),
        empty(),
        unknown_tool(),
        bad_arguments(),
        wrong_call(),
    )
}
IN_CALLS = ("unknown tool", "bad arguments", "wrong call")


def find(fault: Fault | str | None) -> Fault | None:
    """A fault by its name in :data:`FAULTS`, or a status such as ``"401"``.

    Raises:
        ValueError: There is no fault of that name.
    """
    if fault is None or isinstance(fault, Fault):
        return fault
    if fault in FAULTS:
        return FAULTS[fault]
    if fault.isdigit() and 400 <= int(fault) <= 599:
        return status(int(fault))
    raise ValueError(f"There is no fault {fault!r}; there are {', '.join(FAULTS)}.")


# --- what it changes in a call ---------------------------------------------------------------


def change_call(kind: str, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A model's call with one of the faults in it.

    Args:
        kind: One of :data:`IN_CALLS`.
        name: The tool.
        arguments: Its arguments.

    Returns:
        The changed name and arguments.
    """
    arguments = dict(arguments)
    if kind == "unknown tool":
        return f"{name}_now", arguments
    first = next(iter(arguments), None)
    if kind == "bad arguments":
        if first is None:
            return name, {"limit": 10}
        number = isinstance(arguments[first], int)
        arguments[first] = f"number {arguments[first]}" if number else [arguments[first]]
        return name, arguments
    if isinstance(arguments.get("task_id"), int):
        arguments["task_id"] += 1
    elif "title" in arguments:
        arguments["title"] = "buy milk" if "milk" not in arguments["title"] else "call mum"
    else:
        arguments["status"] = "pending" if arguments.get("status") == "completed" else "completed"
    return name, arguments


def _changed(kind: str, answer: dict[str, Any]) -> dict[str, Any] | None:
    """A completion with its first call changed; None when it has none."""
    answer = copy.deepcopy(answer)
    try:
        function = answer["choices"][0]["message"]["tool_calls"][0]["function"]
        arguments = json.loads(function["arguments"])
        if not isinstance(arguments, dict):
            return None
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    function["name"], arguments = change_call(kind, function["name"], arguments)
    function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return answer


def _call_text(answer: Mapping[str, Any]) -> str:
    try:
        calls = answer["choices"][0]["message"].get("tool_calls") or []
        return "; ".join(f"{c['function']['name']}({c['function']['arguments']})" for c in calls)
    except (KeyError, IndexError, TypeError):
        return ""


def _pieces(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A completion as the chunks of a stream: the whole message in one, then its end."""
    head = {key: answer[key] for key in ("id", "created", "model") if key in answer}
    head["object"] = "chat.completion.chunk"
    choice = answer["choices"][0]
    delta = dict(choice["message"])
    calls = delta.pop("tool_calls", None) or []
    if calls:
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
    return [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
        head | {"choices": [], "usage": answer.get("usage")},
    ]


# --- the log ---------------------------------------------------------------------------------


@dataclass
class Event:
    """What happened to one request for an answer.

    Attributes:
        number: From 1, in the order of arrival.
        fault: Its name; empty when the request was to be handed on as it is.
        request: The last message of the request, as text.
        model: The model that it asked for.
        stream: Whether it asked for a stream.
        done: ``answered``, ``broken`` (the fault took place), ``nothing to change`` (a fault in
            a call, and the model made none), ``client left``, ``no model`` (behind this proxy
            nobody answered), or empty while it is under way.
        call: The calls that went out in the answer, as far as they were read here.
        model_call: Those of the model, where they were changed.
    """

    number: int
    fault: str = ""
    request: str = ""
    model: str = ""
    stream: bool = False
    done: str = ""
    call: str = ""
    model_call: str = ""


@dataclass
class _Request:
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    json: dict[str, Any] = field(default_factory=dict)


class _Gone(Exception):
    """The client has closed the connection."""


class _NoModel(Exception):
    """Nobody answers behind the proxy."""


# --- the proxy -------------------------------------------------------------------------------

_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade")


class FaultProxy:
    """A proxy in front of an OpenAI-compatible server that fails when told to.

    It runs in a thread of its own. Faults strike requests for an answer (``POST`` to
    ``…/completions`` or ``…/responses``); others, such as ``GET /v1/models``, are handed on,
    unless the port is closed. What is to happen to a request is decided when it arrives: by
    the script, else by the switch, else by the storm.

    Args:
        upstream: The server's address, with or without ``/v1``.
        port: Port to listen on; 0 takes a free one.

    Attributes:
        url: For ``base_url``, ends in ``/v1``.
        log: One :class:`Event` for each request for an answer, in the order of arrival.
    """

    def __init__(self, upstream: str, port: int = 0) -> None:
        self.upstream = upstream.rstrip("/").removesuffix("/v1")
        self.log: list[Event] = []
        self._lock = threading.Lock()
        self._script: list[Fault | None] = []
        self._switched: Fault | None = None
        self._stormy, self._seed, self._drawn = False, 0, 0
        self._lots: list[tuple[Fault, float]] = []
        self._listening = False
        self._client: Any = None
        self._socket: socket.socket | None = None
        self._open: set[asyncio.Task[None]] = set()
        # Windows' default loop cannot watch a socket that listens.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        self.port = port
        try:
            self._do(self._listen())
        except BaseException:
            self._end_loop()
            raise

    def __repr__(self) -> str:
        # A notebook prints what a cell ends with; ports do not belong in outputs.
        state = "stopped" if self._loop.is_closed() else str(self._switched or "on")
        return f"<FaultProxy {state}>"

    @property
    def listening(self) -> bool:
        """Whether the port is open: ``switch("refuse")`` closes it."""
        return self._listening

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    # --- what a lesson calls ---------------------------------------------------------------

    def script(self, *faults: Fault | str | None) -> None:
        """What happens to the next requests, one each; None: nothing. Replaces an older one."""
        found = [find(fault) for fault in faults]
        with self._lock:
            self._script = found

    def switch(self, fault: Fault | str | None = None) -> None:
        """Let every request fail in this way from now on; None: hand on all of them again.

        ``refuse`` closes the port.
        """
        found = find(fault)
        with self._lock:
            self._switched = found
        closed = found is not None and found.kind == "refuse"
        self._do(self._close() if closed else self._listen())

    def storm(
        self,
        share: float | Mapping[Fault | str, float],
        seed: int = 7,
        kinds: Iterable[Fault | str] = tuple(FAULTS),
    ) -> None:
        """Draw a fault by lot for each request from now on; ``storm(0)`` ends it.

        The lot depends on ``seed`` and on how many requests came since, on nothing else.

        Args:
            share: How many of the requests fail, 0 to 1; or a share for each fault by name.
            seed: Of the lots.
            kinds: Among which faults to draw, all alike.

        Raises:
            ValueError: For an unknown fault or for shares that are not between 0 and 1.
        """
        if not isinstance(share, Mapping):
            names = list(kinds)
            share = {name: share / len(names) for name in names}
        lots = [(fault, part) for name, part in share.items() if (fault := find(name))]
        if any(part < 0 for _, part in lots) or sum(part for _, part in lots) > 1 + 1e-9:
            raise ValueError("The shares of a storm must be between 0 and 1 and add up to 1.")
        with self._lock:
            self._lots, self._seed, self._drawn = lots, seed, 0
            self._stormy = any(part for _, part in lots)

    def counts(self) -> dict[str, int]:
        """How often each fault really took place."""
        found: dict[str, int] = {}
        for event in list(self.log):
            if event.fault and event.done in ("broken", "client left"):
                found[event.fault] = found.get(event.fault, 0) + 1
        return found

    def clear(self) -> None:
        """Begin a new log."""
        with self._lock:
            self.log = []

    def stop(self) -> None:
        """Close the port and every connection, and end the thread."""
        if self._loop.is_closed():
            return
        self._do(self._shut())
        self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(30)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        if self._listening:
            return
        sock = bound_socket(self.port)  # the port is ours again at once after it was closed
        self.port = sock.getsockname()[1]
        sock.listen(128)
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept, sock)
        self._socket = sock
        self._listening = True

    def _accept(self, sock: socket.socket) -> None:
        """Take a connection that waits.

        Not asyncio.start_server: between accepting a connection and serving it, that can be
        closed, and then it neither serves nor closes it (CPython 3.11); the client would wait for
        its own deadline.
        """
        try:
            connection, _ = sock.accept()
        except OSError:  # whoever it was has gone
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._greet(connection))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _greet(self, connection: socket.socket) -> None:
        try:
            streams = await asyncio.open_connection(sock=connection)
        except OSError:
            connection.close()
        else:
            await self._serve(*streams)

    async def _close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._listening = False

    async def _shut(self) -> None:
        await self._close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    # --- one request -----------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader)
            if request is not None:
                await self._handle(request, reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        except (_Gone, ConnectionError):
            pass
        except _NoModel:
            _reset(writer)
        finally:
            with contextlib.suppress(Exception):
                writer.close()
                await writer.wait_closed()

    async def _handle(
        self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if request.method != "POST" or not request.path.endswith(("/completions", "/responses")):
            await self._pass_on(request, writer)
            return
        with contextlib.suppress(ValueError):
            request.json = json.loads(request.body)
        fault, event = self._decide(request)
        # A client that waits no longer closes its connection: then nothing is left to do.
        work = asyncio.ensure_future(self._act(fault, event, request, writer))
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                if fault is None or fault.kind == "delay":
                    event.done = "client left"
                raise _Gone
            try:
                work.result()
            except _NoModel:
                event.done = "no model"
                raise
            except ConnectionError:
                event.done = "client left"
                raise
        finally:
            for task in (work, left):
                task.cancel()
                with contextlib.suppress(BaseException):
                    await task

    def _decide(self, request: _Request) -> tuple[Fault | None, Event]:
        messages = request.json.get("messages") or [{}]
        content = messages[-1].get("content") if isinstance(messages[-1], dict) else ""
        with self._lock:
            if self._script:
                fault = self._script.pop(0)
            elif self._switched is not None:
                fault = self._switched
            elif self._stormy:
                self._drawn += 1
                fault = self._draw()
            else:
                fault = None
            event = Event(
                len(self.log) + 1,
                fault=str(fault or ""),
                request=str(content or ""),
                model=str(request.json.get("model") or ""),
                stream=bool(request.json.get("stream")),
            )
            self.log.append(event)
        return fault, event

    def _draw(self) -> Fault | None:
        lot = random.Random(f"{self._seed} {self._drawn}").random()
        for fault, part in self._lots:
            lot -= part
            if lot < 0:
                return fault
        return None

    async def _act(
        self, fault: Fault | None, event: Event, request: _Request, writer: asyncio.StreamWriter
    ) -> None:
        # Noted before the answer goes out: whoever has read it may look into the log at once.
        event.done = "broken" if fault else "answered"
        if fault is None:
            await self._pass_on(request, writer, event)
        elif fault.kind == "refuse":
            _reset(writer)
        elif fault.kind == "hang":
            await asyncio.Event().wait()
        elif fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
            await self._pass_on(request, writer, event)
        elif fault.kind == "reset":
            await self._pass_on(request, writer, event, cut=fault.after)
        elif fault.kind == "status":
            await _answer_status(writer, fault)
        elif fault.kind in IN_CALLS:
            await self._change(fault, event, request, writer)
        else:
            await _answer_nonsense(writer, fault.kind, request.json)

    async def _upstream(self) -> Any:
        if self._client is None:
            import httpx

            from .clients import http_options
            from .standins import AGENT

            options = http_options(120, direct=True)
            self._client = httpx.AsyncClient(**options, headers={"User-Agent": AGENT})
        return self._client

    async def _pass_on(
        self,
        request: _Request,
        writer: asyncio.StreamWriter,
        event: Event | None = None,
        cut: int | None = None,
    ) -> None:
        """Hand the request on, and the answer back as it comes.

        Args:
            cut: After how many chunks of a stream to reset the connection; half of the answer
                that is not streamed.
        """
        import httpx

        client = await self._upstream()
        headers = [
            (name, value)
            for name, value in request.headers
            # Compressed answers could not be cut or read here.
            if name not in (*_HOP, "accept-encoding", "user-agent")
        ]
        headers.append(("accept-encoding", "identity"))
        url = self.upstream + request.path
        try:
            async with client.stream(
                request.method, url, headers=headers, content=request.body
            ) as response:
                kind = response.headers.get("content-type", "")
                if "event-stream" in kind:
                    _head(writer, response.status_code, kind)
                    sent = 0
                    async for block in _events(response):
                        if cut is not None and sent >= cut:
                            break
                        await _write(writer, block)
                        sent += 1
                else:
                    body = await response.aread()
                    if event is not None:
                        with contextlib.suppress(ValueError):
                            event.call = _call_text(json.loads(body))
                    _head(writer, response.status_code, kind, len(body))
                    await _write(writer, body if cut is None else body[: len(body) // 2])
        except httpx.HTTPError as error:
            raise _NoModel from error
        if cut is not None:
            # What was sent must arrive: a reset throws away what still waits to be read.
            await asyncio.sleep(0.1)
            _reset(writer)

    async def _change(
        self, fault: Fault, event: Event, request: _Request, writer: asyncio.StreamWriter
    ) -> None:
        import httpx

        client = await self._upstream()
        body = {k: v for k, v in request.json.items() if k not in ("stream", "stream_options")}
        # A server behind a key, such as LiteLLM, is asked with the key that came.
        key = {name: value for name, value in request.headers if name == "authorization"}
        try:
            response = await client.post(self.upstream + request.path, json=body, headers=key)
        except httpx.HTTPError as error:
            raise _NoModel from error
        try:
            answer = response.json()
        except ValueError:
            answer = {}
        changed = _changed(fault.kind, answer) if response.status_code == 200 else None
        event.done = "broken" if changed else "nothing to change"
        event.call = _call_text(changed or answer)
        event.model_call = _call_text(answer) if changed else ""
        if not request.json.get("stream") or response.status_code != 200:
            data = json.dumps(changed).encode() if changed else response.content
            _head(writer, response.status_code, "application/json", len(data))
            await _write(writer, data)
            return
        _head(writer, 200, "text/event-stream")
        for piece in _pieces(changed or answer):
            await _write(writer, b"data: " + json.dumps(piece).encode() + b"\n\n")
        await _write(writer, b"data: [DONE]\n\n")


# --- HTTP, as little as is needed --------------------------------------------------------------


async def _read(reader: asyncio.StreamReader) -> _Request | None:
    """One request; None when the connection was closed without one."""
    import h11

    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(65536)
            if not data and head is None:
                return None
            try:
                connection.receive_data(data)
            except h11.RemoteProtocolError:
                return None
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = [(n.decode().lower(), v.decode("latin-1")) for n, v in head.headers]
            target = urlsplit(head.target.decode())
            path = target.path + (f"?{target.query}" if target.query else "")
            return _Request(head.method.decode(), path, headers, body)
        else:
            return None


def _head(
    writer: asyncio.StreamWriter,
    code: int,
    kind: str,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    lines = [f"HTTP/1.1 {code} {_REASONS.get(code, 'Status')}", f"content-type: {kind}"]
    if length is not None:
        lines.append(f"content-length: {length}")
    # Without a length, the end of the connection is the end of the answer.
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write(("\r\n".join([*lines, "connection: close"]) + "\r\n\r\n").encode())


_REASONS = {200: "OK", 429: "Too Many Requests", 500: "Internal Server Error"}


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _events(response: Any) -> Any:
    """The events of a stream, each with the empty line that ends it."""
    kept = b""
    async for data in response.aiter_raw():
        kept += data
        while b"\n\n" in kept:
            block, _, kept = kept.partition(b"\n\n")
            yield block + b"\n\n"
    if kept:
        yield kept


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection the hard way: the other side gets an error, not an end."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


_MESSAGES = {
    401: "Incorrect API key provided.",
    429: "Too many requests: slow down.",
    500: "The server had an error while processing your request.",
    503: "The server is overloaded.",
}


async def _answer_status(writer: asyncio.StreamWriter, fault: Fault) -> None:
    message = _MESSAGES.get(fault.status, "This request failed.")
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    data = json.dumps({"error": error}).encode()
    headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
    _head(writer, fault.status, "application/json", len(data), headers)
    await _write(writer, data)


async def _answer_nonsense(
    writer: asyncio.StreamWriter, kind: str, request: Mapping[str, Any]
) -> None:
    """Status 200, and a body that is not an answer."""
    stream = bool(request.get("stream"))
    if kind == "web page":
        media, data = "text/html", b"<html><body><h1>Please log in</h1></body></html>"
    elif kind == "broken json":
        media = "text/event-stream" if stream else "application/json"
        data = (b"data: " if stream else b"") + b'{"id": "x", "choices": [{"index": 0, "mess'
        data += b"\n\n" if stream else b""
    elif stream:
        media, data = "text/event-stream", b"data: [DONE]\n\n"
    else:
        media = "application/json"
        message = {"role": "assistant", "content": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "choices": [choice]}
        data = json.dumps(answer | {"model": request.get("model") or ""}).encode()
    _head(writer, 200, media, None if stream else len(data))
    await _write(writer, data)
