"""Stand-ins on the loopback for servers that the course cannot ship: Ollama and a hosted API.

They are stand-ins, nothing more. They speak the documented shape of those servers' HTTP
interfaces, so that a proxy or a client can be tried without an account, a download or a
network, and they record what reached them. What they answer comes from a script or from the
course's own backend; they know nothing of the speed, the limits or the quality of the real
ones. Where a lesson uses one, it says so.

Sources of the shapes: docs/api.md of ollama/ollama (chat, generate, tags, show, version) and
the OpenAI API reference (chat completions, models, error objects).

Examples:
    >>> with HostedStandIn(script=[error(429), text("Hello!")]) as server:
    ...     ...  # base_url=server.url, api_key=server.key
    ...     server.requests[0].body["messages"]
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from helpers.settings import HOSTED_MODEL, MODEL, MODEL_DIR, today

# How a stand-in calls itself when it asks the backend: what it passes on is not the lesson's.
AGENT = "course-stand-in"

# --- what a script is made of --------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One scripted answer; made by the functions below.

    Attributes:
        content: Text of the answer.
        calls: Tool calls: names and arguments.
        status: HTTP status; above 399 an error object is sent.
        message: Its text.
        headers: Additional response headers.
        delay: Seconds to wait before the first byte.
        drop_after: Close the connection in the middle, after that many chunks of a stream.
        raw: A body to send as it is, whatever it is.
    """

    content: str | None = None
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    status: int = 200
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop_after: int | None = None
    raw: str | None = None


def text(content: str) -> Step:
    """Answer with a text."""
    return Step(content=content)


def tool_call(name: str, /, **arguments: Any) -> Step:
    """Answer with one tool call."""
    return Step(calls=((name, arguments),))


def tool_calls(*calls: tuple[str, Mapping[str, Any]]) -> Step:
    """Answer with several tool calls: ``("complete_task", {"task_id": 3}), …``."""
    return Step(calls=calls)


def error(status: int, message: str = "", retry_after: float | None = None) -> Step:
    """Answer with an error, such as 401, 429, 500 or 503.

    Args:
        status: HTTP status.
        message: Text of the error object; a fitting one by default.
        retry_after: Seconds for the header ``Retry-After``.
    """
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    return Step(status=status, message=message, headers=headers)


def slow(seconds: float, then: Step | None = None) -> Step:
    """Wait before answering."""
    return replace(then or text("I am slow today."), delay=seconds)


def drop(after: int = 1, then: Step | None = None) -> Step:
    """Close the connection in the middle of the answer.

    Args:
        after: How many chunks of a stream are sent before; 0 closes before anything is sent.
        then: The answer of which only the beginning arrives.
    """
    return replace(then or text("This sentence will never be finished."), drop_after=after)


def garbage(body: str = "<html><body>502 Bad Gateway</body></html>") -> Step:
    """Answer 200 with a body that is not what the interface promises."""
    return Step(raw=body)


@dataclass(frozen=True)
class Request:
    """A request as it arrived.

    Attributes:
        method: ``GET`` or ``POST``.
        path: Without the query.
        headers: Names in lower case.
        body: The parsed JSON, or the text where it is none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


Script = Sequence[Step] | Callable[[Request], Step]


class _Dropped(Exception):
    """The connection is to be closed without another byte."""


class _Listener(ThreadingHTTPServer):
    # The default, 5, resets some of twenty connections that are opened at once.
    request_queue_size = 128
    daemon_threads = True


class _Server:
    """What both stand-ins share: a server thread, the script, the record of requests."""

    def __init__(self, script: Script, backend: str | None, model: str, latency: float) -> None:
        self.requests: list[Request] = []
        self.model = model
        self._latency = latency
        self._script = script
        self._backend_key = "none"
        self._backend = _v1(backend) if backend else None
        self._lock = threading.Lock()
        self._answered = 0
        self._stopping = threading.Event()
        self._client: Any = None
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Small chunks must leave at once, or the first token waits for the second.
            wbufsize = 0
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                owner._handle(self)

            def do_POST(self) -> None:
                owner._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = _Listener(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def root(self) -> str:
        """``http://127.0.0.1:<port>``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def stop(self) -> None:
        """Stop listening; a connection that waits in a ``slow`` step is given up."""
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _handle(self, http: BaseHTTPRequestHandler) -> None:
        length = int(http.headers.get("Content-Length") or 0)
        data = http.rfile.read(length).decode("utf-8", "replace")
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = data
        headers = {name.lower(): value for name, value in http.headers.items()}
        request = Request(http.command, http.path.split("?")[0], headers, body)
        with self._lock:
            self.requests.append(request)
        try:
            self._answer(_Reply(http), request)
        except _Dropped:
            http.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            http.close_connection = True  # the client went away first

    def _answer(self, reply: _Reply, request: Request) -> None:
        raise NotImplementedError

    def _next(self, request: Request) -> Step | None:
        """The next step of the script; None: ask the backend."""
        if callable(self._script):
            step: Step | None = self._script(request)
        else:
            with self._lock:
                i, self._answered = self._answered, self._answered + 1
            step = self._script[i] if i < len(self._script) else None
        if step is None and self._backend is None:
            step = text("This is a stand-in. Its script is at its end.")
        wait = self._latency + (step.delay if step else 0)
        if wait and self._stopping.wait(wait):
            raise _Dropped
        return step

    def _forward(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The backend's answer as chunks of a stream.

        Raises:
            _BackendError: With the backend's status and text.
        """
        import httpx

        from helpers.clients import http_options

        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        with self._lock:
            if self._client is None:
                # One for all requests: making one costs more than most answers.
                options = http_options(60, direct=True)
                self._client = httpx.Client(**options, headers={"User-Agent": AGENT})
        url = f"{self._backend}/chat/completions"
        headers = {"Authorization": f"Bearer {self._backend_key}"}
        try:
            with self._client.stream("POST", url, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise _BackendError(response.status_code, response.read().decode())
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield json.loads(line[6:])
        except httpx.TransportError as problem:
            raise _BackendError(502, f"The backend does not answer: {problem}") from problem


class _BackendError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Reply:
    """Writing of one HTTP response."""

    def __init__(self, http: BaseHTTPRequestHandler) -> None:
        self.http = http
        self.started = False

    def json(self, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(json.dumps(data, ensure_ascii=False), "application/json", status, headers)

    def send(
        self,
        body: str,
        kind: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        if self.started:  # too late for a status: all that is left is to hang up
            raise _Dropped
        data = body.encode()
        self.http.send_response(status)
        for name, value in (headers or {}).items():
            self.http.send_header(name, value)
        self.http.send_header("Content-Type", kind)
        self.http.send_header("Content-Length", str(len(data)))
        self.http.end_headers()
        self.http.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            raise _Dropped

    def stream(self, chunks: Iterable[str], kind: str, drop_after: int | None = None) -> None:
        for i, chunk in enumerate(chunks):
            if (
                not self.started
            ):  # an error before the first chunk must still be able to be a status
                self.http.send_response(200)
                self.http.send_header("Content-Type", kind)
                self.http.send_header("Transfer-Encoding", "chunked")
                self.http.end_headers()
                self.started = True
            if drop_after is not None and i >= drop_after:
                raise _Dropped
            data = chunk.encode()
            self.http.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.http.wfile.write(b"0\r\n\r\n")


def _v1(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith("/v1") else url + "/v1"


def _pieces(content: str) -> list[str]:
    """A text in the pieces in which a stream brings it: words with their space."""
    return re.findall(r"\S+\s*|^\s+", content)


def _words(data: Any) -> int:
    """The size of something in words: a stand-in has no tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", json.dumps(data, ensure_ascii=False)))


def _midnight() -> datetime.datetime:
    """Time stamps do not move: the beginning of the course's today."""
    return datetime.datetime.combine(today(), datetime.time(), datetime.UTC)


@dataclass
class _Collected:
    """A stream of chat completion chunks, put together."""

    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"
    usage: Mapping[str, int] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Any]) -> str:
        """Take a chunk in; returns its piece of text."""
        self.usage = chunk.get("usage") or self.usage
        piece = ""
        for choice in chunk.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            piece += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                while len(self.calls) <= call.get("index", 0):
                    self.calls.append({"name": "", "arguments": ""})
                function = call.get("function") or {}
                known = self.calls[call.get("index", 0)]
                known["name"] += function.get("name") or ""
                known["arguments"] += function.get("arguments") or ""
        self.content += piece
        return piece


# --- a hosted API ----------------------------------------------------------------------------

_MESSAGES = {
    400: ("Bad request.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("You are not allowed to use this model.", "invalid_request_error", None),
    404: ("The model does not exist.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached for requests.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request.", "server_error", None),
    503: ("The engine is currently overloaded.", "server_error", None),
}


class HostedStandIn(_Server):
    """A stand-in for a hosted model behind OpenAI's chat completions interface.

    Not a hosted model: it costs nothing, sends nothing anywhere, and answers from its script
    or, when that is at its end, from ``backend``. Without a tokenizer, the usage of a scripted
    answer is counted in words.

    Args:
        script: Answers in order, or a function of the request that returns one.
        key: The bearer token it asks for; None: any.
        backend: URL of an OpenAI-compatible server for what the script does not answer.
        model: The name under which it pretends to have a model.
        backend_model: The name of the model at ``backend``.
        backend_key: The bearer token that ``backend`` is sent.
        latency: Seconds that every answer takes longer, as a distance would make it.

    Attributes:
        url: For ``base_url``, with ``/v1``.
        requests: What arrived, errors included.
    """

    def __init__(
        self,
        script: Script = (),
        key: str | None = "stand-in-key",
        backend: str | None = None,
        model: str = HOSTED_MODEL,
        backend_model: str = MODEL,
        backend_key: str = "none",
        latency: float = 0.0,
    ) -> None:
        self.key = key
        self._backend_model = backend_model
        super().__init__(script, backend, model, latency)
        self._backend_key = backend_key

    @property
    def url(self) -> str:
        return self.root + "/v1"

    def _answer(self, reply: _Reply, request: Request) -> None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return self._error(reply, error(401))
        route = (request.method, request.path.removeprefix("/v1"))
        if route == ("GET", "/models"):
            model = {"id": self.model, "object": "model", "created": 0, "owned_by": "stand-in"}
            return reply.json({"object": "list", "data": [model]})
        if route != ("POST", "/chat/completions"):
            return self._error(reply, error(404, f"Unknown address: {request.path}"))
        body = request.body
        if not isinstance(body, dict) or not body.get("messages"):
            return self._error(reply, error(400, "Missing required parameter: 'messages'."))
        step = self._next(request)
        if step is not None and step.status > 399:
            return self._error(reply, step)
        if step is not None and step.raw is not None:
            return reply.send(step.raw, "text/html")
        if step is not None and step.drop_after == 0:
            raise _Dropped
        chunks = self._scripted(step, body) if step else self._forwarded(body)
        try:
            if body.get("stream"):
                reply.stream(
                    self._sse(chunks, body),
                    "text/event-stream",
                    step.drop_after if step else None,
                )
            else:
                completion = self._completion(chunks, body)
                cut = step is not None and step.drop_after is not None
                reply.send(json.dumps(completion), "application/json", cut=cut)
        except _BackendError as problem:
            self._error(reply, error(problem.status, problem.message))

    def _error(self, reply: _Reply, step: Step) -> None:
        message, kind, code = _MESSAGES.get(step.status, ("An error.", "server_error", None))
        data = {"message": step.message or message, "type": kind, "param": None, "code": code}
        reply.json({"error": data}, step.status, step.headers)

    def _head(self, body: Mapping[str, Any], kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-stand-in-{len(self.requests)}",
            "object": kind,
            "created": int(_midnight().timestamp()),
            "model": body.get("model", self.model),
        }

    def _scripted(self, step: Step, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield chunk({"role": "assistant", "content": None if step.content is None else ""})
        for piece in _pieces(step.content or ""):
            yield chunk({"content": piece})
        for i, (name, arguments) in enumerate(step.calls):
            call_id = f"call_stand_in_{len(self.requests)}_{i}"
            function = {"name": name, "arguments": ""}
            first = {"index": i, "id": call_id, "type": "function", "function": function}
            yield chunk({"tool_calls": [first]})
            for piece in _pieces(json.dumps(arguments, ensure_ascii=False)):
                part = {"index": i, "function": {"arguments": piece}}
                yield chunk({"tool_calls": [part]})
        yield chunk({}, "tool_calls" if step.calls else "stop")
        sent = _words([body["messages"], body.get("tools", [])])
        made = _words([step.content, step.calls])
        usage = {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}
        yield {"choices": [], "usage": usage}

    def _forwarded(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for chunk in self._forward(dict(body) | {"model": self._backend_model}):
            yield {key: chunk[key] for key in ("choices", "usage") if key in chunk}

    def _sse(self, chunks: Iterable[dict[str, Any]], body: Mapping[str, Any]) -> Iterator[str]:
        head = self._head(body, "chat.completion.chunk")
        with_usage = (body.get("stream_options") or {}).get("include_usage")
        for chunk in chunks:
            if chunk.get("choices") or (with_usage and chunk.get("usage")):
                yield f"data: {json.dumps(head | chunk)}\n\n"
        yield "data: [DONE]\n\n"

    def _completion(
        self, chunks: Iterable[dict[str, Any]], body: Mapping[str, Any]
    ) -> dict[str, Any]:
        collected = _Collected()
        for chunk in chunks:
            collected.add(chunk)
        message: dict[str, Any] = {"role": "assistant", "content": collected.content or None}
        if collected.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_stand_in_{len(self.requests)}_{i}",
                    "type": "function",
                    "function": call,
                }
                for i, call in enumerate(collected.calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": collected.finish_reason}
        return self._head(body, "chat.completion") | {
            "choices": [choice],
            "usage": collected.usage,
        }


# --- Ollama ----------------------------------------------------------------------------------


class OllamaStandIn(_Server):
    """A stand-in for Ollama's own interface: /api/chat, /api/generate, tags, show, version.

    Not Ollama: it loads no model. It answers from its script or, when that is at its end,
    from ``backend``, where a chat goes as a chat and a ``generate`` prompt as one user message,
    which is what Ollama's template makes of it.

    Args:
        script: Answers in order, or a function of the request that returns one.
        backend: URL of an OpenAI-compatible server for what the script does not answer.
        model: The model that it lists and knows; another one is answered with 404.
        template: The chat template that /api/show tells; default that of model/Modelfile.

    Attributes:
        url: For ``OLLAMA_HOST`` or ``api_base``.
        requests: What arrived.
    """

    version = "0.0.0-stand-in"

    def __init__(
        self,
        script: Script = (),
        backend: str | None = None,
        model: str = MODEL,
        template: str | None = None,
    ) -> None:
        self.template = _modelfile_template() if template is None else template
        super().__init__(script, backend, model, 0.0)

    @property
    def url(self) -> str:
        return self.root

    def chats(self) -> list[Request]:
        """The requests that asked for an answer."""
        return [r for r in self.requests if r.path in ("/api/chat", "/api/generate")]

    def _answer(self, reply: _Reply, request: Request) -> None:
        route = (request.method, request.path)
        body = request.body if isinstance(request.body, dict) else {}
        if route == ("GET", "/"):
            return reply.send("Ollama is running", "text/plain")
        if route == ("GET", "/api/version"):
            return reply.json({"version": self.version})
        if route in (("GET", "/api/tags"), ("GET", "/api/ps")):
            return reply.json({"models": [self._model()]})
        if request.method != "POST" or request.path not in (
            "/api/show",
            "/api/chat",
            "/api/generate",
        ):
            return reply.send("404 page not found", "text/plain", 404)
        name = str(body.get("model") or body.get("name") or "")
        if not name:
            return reply.json({"error": "model is required"}, 400)
        if name.removesuffix(":latest") != self.model:
            return reply.json({"error": f"model '{name}' not found"}, 404)
        if request.path == "/api/show":
            return reply.json(self._show())
        chat = request.path == "/api/chat"
        if not body.get("messages" if chat else "prompt"):  # only loads the model
            part = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
            return reply.json(self._head(body) | part | {"done": True, "done_reason": "load"})
        step = self._next(request)
        if step is not None and step.status > 399:
            message = step.message or _MESSAGES.get(step.status, ("an error",))[0]
            return reply.json({"error": message}, step.status, step.headers)
        if step is not None and step.raw is not None:
            return reply.send(step.raw, "text/html")
        if step is not None and step.drop_after == 0:
            raise _Dropped
        parts = self._parts(step, body, chat)
        try:
            if body.get("stream", True):  # Ollama streams unless told not to
                lines = (json.dumps(part, ensure_ascii=False) + "\n" for part in parts)
                reply.stream(lines, "application/x-ndjson", step.drop_after if step else None)
            else:
                cut = step is not None and step.drop_after is not None
                whole = json.dumps(self._whole(parts, chat), ensure_ascii=False)
                reply.send(whole, "application/json", cut=cut)
        except _BackendError as problem:
            reply.json({"error": problem.message}, problem.status)

    def _model(self) -> dict[str, Any]:
        return {
            "name": f"{self.model}:latest",
            "model": f"{self.model}:latest",
            "modified_at": _midnight().isoformat(),
            "size": 0,
            "digest": "0" * 64,
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "8.0M",
            "quantization_level": "Q8_0",
        }

    def _show(self) -> dict[str, Any]:
        tools = ["tools"] if ".Tools" in self.template else []
        return {
            "modelfile": f'FROM {self.model}\nTEMPLATE """{self.template}"""\n',
            "parameters": "",
            "template": self.template,
            "details": self._details(),
            "model_info": {"general.architecture": "llama", "llama.context_length": 1024},
            "capabilities": ["completion", *tools],
        }

    def _head(self, body: Mapping[str, Any]) -> dict[str, Any]:
        created = _midnight().isoformat().replace("+00:00", "Z")
        return {"model": body["model"], "created_at": created}

    def _parts(
        self, step: Step | None, body: Mapping[str, Any], chat: bool
    ) -> Iterator[dict[str, Any]]:
        """The lines of a stream; tool calls come whole, in one line."""
        begin = time.monotonic_ns()
        head = self._head(body)

        def part(content: str, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
            if not chat:
                return head | {"response": content, "done": False}
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if calls:
                message["tool_calls"] = [{"function": call} for call in calls]
            return head | {"message": message, "done": False}

        if step is not None:
            for piece in _pieces(step.content or ""):
                yield part(piece)
            if step.calls:
                yield part("", [{"name": n, "arguments": dict(a)} for n, a in step.calls])
            reason = "stop"
            counts = (_words(body.get("messages", body.get("prompt"))), _words(step.calls))
        else:
            collected = _Collected()
            for chunk in self._forward(_to_openai(body, chat, self.model)):
                piece = collected.add(chunk)
                if piece:
                    yield part(piece)
            if collected.calls:
                yield part(
                    "", [c | {"arguments": _object(c["arguments"])} for c in collected.calls]
                )
            reason = "length" if collected.finish_reason == "length" else "stop"
            usage = collected.usage
            counts = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        took = time.monotonic_ns() - begin
        yield part("") | {
            "done": True,
            "done_reason": reason,
            "total_duration": took,
            "load_duration": 0,
            "prompt_eval_count": counts[0],
            "prompt_eval_duration": 0,
            "eval_count": counts[1],
            "eval_duration": took,
        }

    def _whole(self, parts: Iterable[dict[str, Any]], chat: bool) -> dict[str, Any]:
        content, calls, last = "", [], {}
        for last in parts:
            message = last["message"] if chat else {"content": last["response"]}
            content += message["content"]
            calls += message.get("tool_calls", [])
        if not chat:
            return last | {"response": content}
        message = {"role": "assistant", "content": content}
        return last | {"message": message | ({"tool_calls": calls} if calls else {})}


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _to_openai(body: Mapping[str, Any], chat: bool, model: str) -> dict[str, Any]:
    """A request to Ollama as a chat completion: the same content in the other shape."""
    if chat:
        messages, ids = [], []
        for message in body["messages"]:
            out = {"role": message["role"], "content": message.get("content") or ""}
            if message.get("tool_calls"):
                ids = [f"call_{len(messages)}_{i}" for i in range(len(message["tool_calls"]))]
                out["tool_calls"] = [
                    {
                        "id": call_id,
                        "type": "function",
                        "function": {
                            "name": call["function"]["name"],
                            "arguments": json.dumps(call["function"].get("arguments") or {}),
                        },
                    }
                    for call_id, call in zip(ids, message["tool_calls"], strict=True)
                ]
            if message["role"] == "tool":  # Ollama's tool messages follow the calls in order
                out["tool_call_id"] = ids.pop(0) if ids else "call_0"
            messages.append(out)
    else:
        messages = [{"role": "user", "content": body["prompt"]}]
        if body.get("system"):
            messages.insert(0, {"role": "system", "content": body["system"]})
    options = body.get("options") or {}
    out = {"model": model, "messages": messages, "cache_prompt": False}
    for ours, theirs in {"num_predict": "max_tokens", "temperature": "temperature", "seed": "seed",
                         "top_p": "top_p", "stop": "stop"}.items():  # fmt: skip
        if ours in options:
            out[theirs] = options[ours]
    if chat and body.get("tools"):
        out["tools"] = body["tools"]
    if body.get("format") == "json":
        out["response_format"] = {"type": "json_object"}
    elif isinstance(body.get("format"), dict):
        schema = {"name": "format", "schema": body["format"]}
        out["response_format"] = {"type": "json_schema", "json_schema": schema}
    return out


def _modelfile_template() -> str:
    """The TEMPLATE of model/Modelfile; a plain one with tools while there is none."""
    path = MODEL_DIR / "Modelfile"
    if path.is_file():
        found = re.search(r'TEMPLATE\s+"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
        if found:
            return found[1]
    return "{{ range .Tools }}{{ . }}{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}"
