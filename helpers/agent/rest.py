"""The agent on the web: FastAPI over one :class:`~helpers.agent.service.Service`.

=================================  ==========================================================
``POST /chat``                     a turn; as JSON, or as server-sent events if asked for
``GET /chat/{key}``                what became of a request that had to wait
``GET POST /tasks``                the tasks; a new one
``GET PATCH DELETE /tasks/{id}``   one task
``GET DELETE /conversations/{id}``  what a conversation holds; forget it
``GET /health/live``               the process answers
``GET /health/ready``              it can serve: tasks can be read, and a model answers
``GET /metrics``                   counters for Prometheus
``GET /``  ``GET /docs``           a page to talk to the agent; these operations as a page
=================================  ==========================================================

All but the last four rows ask for the key: ``Authorization: Bearer …`` or ``X-API-Key: …``.
"""

from __future__ import annotations

import asyncio
import hmac
import html
import json
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from mcp.server.transport_security import RequestBodyLimitMiddleware
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from helpers.agent.core import Turn
from helpers.agent.memory import text_of
from helpers.agent.service import AT_ONCE, CONVERSATION, Service
from helpers.tasks import MAX_TITLE, Priority, Status, TaskError, call_tool

MAX_BODY = 64 * 1024  # bytes

Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,100}$")]
Id = Annotated[int, Path(ge=1, lt=2**63)]
Conversation = Annotated[str, Path(pattern=CONVERSATION)]


class Said(BaseModel):
    """What a person says."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={
        "examples": [{"message": "add a task to call mum tomorrow", "conversation": "demo"}]
    })  # fmt: skip
    message: Annotated[str, Field(max_length=20_000)]
    conversation: Annotated[str, Field(pattern=CONVERSATION)] = "default"


class NewTask(BaseModel):
    """A task to be made."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE)]
    priority: Priority = "medium"
    due: Annotated[str | None, Field(max_length=100, description="'next friday', a date")] = None


class Changes(BaseModel):
    """What is to be changed of a task."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str | None, Field(min_length=1, max_length=MAX_TITLE)] = None
    priority: Priority | None = None
    status: Status | None = None
    due: Annotated[str | None, Field(max_length=100)] = None


class Called(BaseModel):
    """One call of the model, and what came of it."""

    name: str
    arguments: Any
    done: bool
    result: dict[str, Any]


class Answer(BaseModel):
    """What became of a turn."""

    state: Literal["answered", "refused", "waiting", "told"]
    text: str
    calls: list[Called]
    by: str
    decisions: str
    trace: list[dict[str, Any]]
    tokens: dict[str, int]
    remembered: int
    conversation: str
    key: str
    request: str


_STATUS = {"answered": 200, "told": 200, "waiting": 202, "refused": 422}


def build(service: Service) -> FastAPI:
    """The application.

    Args:
        service: What it serves; started and stopped with the application.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="Task API agent", version="1.0", lifespan=lifespan,
        description="Talk to an agent that keeps a task list.",
        docs_url=None, redoc_url=None,  # they would load scripts from elsewhere; see /docs below
    )  # fmt: skip
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=service.config.hosts.split(","), www_redirect=False
    )
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY)
    secret = service.config.kept_key()

    def client(
        request: Request,
        authorization: Annotated[str, Header()] = "",
        x_api_key: Annotated[str, Header()] = "",
    ) -> str:
        """Who asks; 401 without the key, 429 when it asks too often."""
        given = x_api_key or authorization.removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode()):
            raise HTTPException(
                401, "Send the key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"}
            )
        who = request.client.host if request.client else ""
        wait = service.limiter.wait(who)
        if not wait and service.under_way >= AT_ONCE:
            wait = 1.0
        if wait:
            service.counters.limited.inc()
            later = max(1, math.ceil(wait))
            raise HTTPException(
                429, f"Too many requests. Come back in {later} s.", {"Retry-After": str(later)}
            )
        return who

    asks = [Depends(client)]

    # --- chat ----------------------------------------------------------------------------------

    @app.post("/chat", dependencies=asks, response_model=Answer, tags=["chat"],
              responses={202: {"model": Answer}, 422: {"model": Answer}})  # fmt: skip
    async def chat(
        said: Said,
        key: Key = None,
        accept: Annotated[str, Header()] = "",
    ) -> Any:
        """Say something.

        With `Accept: text/event-stream` the answer comes as events: `start`, then `call` and
        `result` for each tool call while it happens, then `done` with the whole turn. The same
        `Idempotency-Key` again is the same request: nothing is done twice.
        """
        name = key or secrets.token_hex(8)
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        async def work() -> Turn:
            service.under_way += 1
            try:
                return await service.turn(
                    said.conversation, said.message, name,
                    lambda kind, data: events.put_nowait((kind, data)),
                )  # fmt: skip
            finally:
                service.under_way -= 1

        # A task of its own: a person who goes away leaves nothing half done.
        working = asyncio.create_task(work())
        if "text/event-stream" not in accept:
            turn = await asyncio.shield(working)
            return JSONResponse(turn.to_dict(), _STATUS[turn.state])
        working.add_done_callback(lambda task: events.put_nowait(("done", task)))
        return StreamingResponse(
            _stream(name, events), media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )  # fmt: skip

    @app.get("/chat/{key}", dependencies=asks, response_model=Answer, tags=["chat"])
    async def became(key: Annotated[str, Path(max_length=100)]) -> Any:
        """What became of a request; 202 while it waits for a model."""
        turn = service.result(key)
        if turn is None:
            raise HTTPException(404, "There is no such request.")
        return JSONResponse(turn, _STATUS[turn["state"]])

    @app.get("/conversations/{conversation}", dependencies=asks, tags=["chat"])
    async def conversation(conversation: Conversation) -> list[dict[str, str]]:
        """What was said in a conversation."""
        async with service.conversation(conversation) as agent:
            items = await agent.session.get_items()
        return [
            {"role": str(item["role"]), "text": text_of(item)} for item in items if "role" in item
        ]

    @app.delete("/conversations/{conversation}", dependencies=asks, status_code=204, tags=["chat"])
    async def forget(conversation: Conversation) -> None:
        """Forget a conversation; the tasks stay."""
        async with service.conversation(conversation) as agent:
            await agent.session.clear_session()

    # --- tasks ---------------------------------------------------------------------------------

    async def tool(name: str, arguments: dict[str, Any], key: str | None = None) -> Any:
        result = json.loads(
            await asyncio.to_thread(call_tool, service.store, name, arguments, key=key or "")
        )
        if "error" in result:
            gone = result["error"].startswith("There is no task")
            raise HTTPException(404 if gone else 422, result["error"])
        return result

    @app.get("/tasks", dependencies=asks, tags=["tasks"])
    async def tasks(status: Status | None = None, priority: Priority | None = None) -> Any:
        """The tasks, optionally filtered."""
        return await tool("list_tasks", {"status": status, "priority": priority})

    @app.post("/tasks", dependencies=asks, status_code=201, tags=["tasks"])
    async def create(task: NewTask, key: Key = None) -> Any:
        """A new task, without the model."""
        return await tool("create_task", task.model_dump(), key and f"tasks-{key}")

    @app.get("/tasks/{task_id}", dependencies=asks, tags=["tasks"])
    async def one(task_id: Id) -> Any:
        """One task."""
        try:
            return await asyncio.to_thread(service.store.get, task_id)
        except TaskError as error:
            raise HTTPException(404, str(error)) from None

    @app.patch("/tasks/{task_id}", dependencies=asks, tags=["tasks"])
    async def change(task_id: Id, changes: Changes) -> Any:
        """Change a task."""
        return await tool(
            "update_task", {"task_id": task_id, **changes.model_dump(exclude_none=True)}
        )

    @app.delete("/tasks/{task_id}", dependencies=asks, tags=["tasks"])
    async def delete(task_id: Id) -> Any:
        """Delete a task for good."""
        return await tool("delete_task", {"task_id": task_id})

    # --- for whoever runs it -------------------------------------------------------------------

    @app.get("/health/live", tags=["operation"])
    async def live() -> dict[str, str]:
        """The process answers. Restart it when it does not."""
        return {"status": "ok"}

    @app.get("/health/ready", tags=["operation"])
    async def ready(response: Response) -> dict[str, Any]:
        """It can serve. Send it no requests while it says 503."""
        found = await service.ready()
        response.status_code = 200 if found["ready"] else 503
        return found

    @app.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
    async def metrics() -> Response:
        """Counters for Prometheus; no words of anybody are in them."""
        service.counters.waiting.set(len(service.outbox.waiting()))
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4")

    # --- pages ---------------------------------------------------------------------------------

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(12)
        text = resources.files("helpers.agent").joinpath("page.html").read_text(encoding="utf-8")
        return _page(text.replace("NONCE", nonce), nonce)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        nonce = secrets.token_urlsafe(12)
        return _page(_operations(app.openapi(), nonce), nonce)

    return app


async def _stream(key: str, events: asyncio.Queue[tuple[str, Any]]) -> AsyncIterator[str]:
    yield _event("start", {"key": key})
    while True:
        try:
            kind, data = await asyncio.wait_for(events.get(), 10)
        except TimeoutError:
            yield ": still here\n\n"  # a comment, so that nothing on the way gives up
            continue
        if kind != "done":
            yield _event(kind, data)
            continue
        if data.exception():
            yield _event("failed", {"text": "Something went wrong. Ask again with the same key."})
        else:
            yield _event("done", data.result().to_dict())
        return


def _event(kind: str, data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _page(text: str, nonce: str) -> HTMLResponse:
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        },
    )


def _operations(schema: dict[str, Any], nonce: str) -> str:
    """The operations as a page that needs nothing from elsewhere."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            given = [
                f"<li><code>{html.escape(p['name'])}</code> ({p['in']}"
                f"{', required' if p.get('required') else ''})</li>"
                for p in operation.get("parameters", [])
                if p["name"] not in ("authorization", "x-api-key")
            ]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body:
                name = body["schema"].get("$ref", "").rpartition("/")[2]
                fields = schema["components"]["schemas"].get(name, {})
                required = fields.get("required", [])
                given += [
                    f"<li><code>{html.escape(key)}</code> (body"
                    f"{', required' if key in required else ''})</li>"
                    for key in fields.get("properties", {})
                ]
            answers = ", ".join(operation["responses"])
            said = html.escape(operation.get("description", "")).replace("\n\n", "<br>")
            parts.append(
                f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{said}</p>"
                + (f"<ul>{''.join(given)}</ul>" if given else "")
                + f"<p>Answers: {answers}</p></section>"
            )
    style = (
        "body{font:1rem/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
        "h2{font-size:1.05rem;margin:1.6rem 0 .2rem}p,ul{margin:.2rem 0}"
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>Operations of the Task API agent</title><style nonce='{nonce}'>{style}</style>"
        "</head><body><main><h1>Operations of the Task API agent</h1>"
        "<p>All but the health and metrics operations ask for the key: "
        "<code>Authorization: Bearer KEY</code>. The same as JSON: "
        f"<a href='/openapi.json'>openapi.json</a>.</p>{''.join(parts)}</main></body></html>"
    )


def serve(service: Service, door: Any, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until the process is told to end; requests under way are finished first.

    Args:
        service: What is served.
        door: A listening socket.
        ready: Called once requests are answered.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            ready()

    config = uvicorn.Config(
        build(service), log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=20, timeout_keep_alive=20,
    )  # fmt: skip
    Server(config).run(sockets=[door])
