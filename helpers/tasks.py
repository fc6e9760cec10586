"""The Task API: a store of tasks in SQLite, five tools over it, and their schemas.

The five functions that :func:`bind` makes are the one source of everything: their signatures
become the OpenAI schemas (:func:`tool_schemas`), the checks of arguments (:func:`call_tool`),
the tools of an agent (``agents.function_tool``) and of an MCP server (``mcp.tool``).
"""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field

from helpers.dates import parse_due
from helpers.settings import WORK, CourseError, today

if TYPE_CHECKING:
    from pydantic import BaseModel

Priority = Literal["low", "medium", "high", "urgent"]
Status = Literal["pending", "in_progress", "completed"]

MAX_TITLE = 500  # characters


class TaskError(Exception):
    """Something that a model asked for and that cannot be done; the text is one sentence."""


class Result(dict):
    """What a tool returns: a dictionary whose ``str()`` is JSON.

    The Agents SDK hands ``str(result)`` to the model. Python's own notation, with its single
    quotes and ``None``, is not what a model of tool calls has learned to read.
    """

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)


# --- the store -------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    task_id  INTEGER PRIMARY KEY AUTOINCREMENT,
    title    TEXT NOT NULL,
    priority TEXT NOT NULL,
    status   TEXT NOT NULL,
    due      TEXT
)
"""
_DONE = "CREATE TABLE IF NOT EXISTS done (key TEXT PRIMARY KEY, result TEXT NOT NULL)"


class TaskStore:
    """Tasks in SQLite.

    Every change is one transaction, safe for several threads and processes: what a method
    has returned is on the disk, even when the process is killed a moment later. An id is
    never used again, also not after its task was deleted.

    Args:
        path: Database file, made with its folder when missing; ``":memory:"`` for one that
            vanishes with this object.
        clock: Gives today's date; ``COURSE_TODAY`` fixes the default one.

    Raises:
        CourseError: When the file is not a database.
    """

    def __init__(
        self,
        path: str | Path = ":memory:",
        clock: Callable[[], datetime.date] = today,
    ) -> None:
        self.path = path
        self.clock = clock
        self._lock = threading.RLock()
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        # One connection for all threads, used under the lock. isolation_level=None: sqlite3
        # must not begin transactions on its own, _transaction() does.
        self._db = sqlite3.connect(
            str(path), timeout=30, check_same_thread=False, isolation_level=None
        )
        self._db.row_factory = sqlite3.Row
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise CourseError(
                f"The file of tasks, {Path(path).name}, cannot be read.",
                f"{path} is not a SQLite database: {error}.",
                "Move the file away; a new one is made at the next start.",
            ) from error

    def _prepare(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                # WAL: readers do not wait for a writer. synchronous=FULL: on the disk before
                # the method returns, even if the machine loses power.
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(_SCHEMA)
                self._db.execute(_DONE)
                return
            except sqlite3.OperationalError as error:
                # Switching to WAL does not wait for other processes by itself.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def create(self, title: str, priority: str = "medium", due: str | None = None) -> Result:
        """Create a pending task and return it.

        Raises:
            TaskError: For an empty title, an unknown priority or a due phrase that is no date.
        """
        values = (_title(title), _one_of("priority", priority, Priority), self._due(due))
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO tasks (title, priority, status, due) VALUES (?, ?, 'pending', ?)",
                values,
            )
            return self._get(cursor.lastrowid)

    def update(
        self,
        task_id: int,
        title: str | None = None,
        priority: str | None = None,
        status: str | None = None,
        due: str | None = None,
    ) -> Result:
        """Change what is given and return the task; ``due="none"`` takes the date away.

        Raises:
            TaskError: For an unknown task or value, or when nothing is given.
        """
        changes: dict[str, Any] = {}
        if title is not None:
            changes["title"] = _title(title)
        if priority is not None:
            changes["priority"] = _one_of("priority", priority, Priority)
        if status is not None:
            changes["status"] = _one_of("status", status, Status)
        if due is not None:
            changes["due"] = self._due(due)
        with self._transaction() as db:
            self._get(task_id)
            if not changes:
                raise TaskError("Nothing to change: give a title, priority, status or due.")
            db.execute(
                f"UPDATE tasks SET {', '.join(f'{key} = ?' for key in changes)} WHERE task_id = ?",
                (*changes.values(), task_id),
            )
            return self._get(task_id)

    def complete(self, task_id: int) -> Result:
        """Mark a task as completed and return it; completing it twice changes nothing.

        Raises:
            TaskError: For an unknown task.
        """
        return self.update(task_id, status="completed")

    def get(self, task_id: int) -> Result:
        """One task.

        Raises:
            TaskError: For an unknown task.
        """
        with self._lock:
            return self._get(task_id)

    def list(self, status: str | None = None, priority: str | None = None) -> Result:
        """``{"tasks": [...]}``: the tasks with this status and priority, in order of id."""
        where, values = ["1"], []
        if status is not None:
            where.append("status = ?")
            values.append(_one_of("status", status, Status))
        if priority is not None:
            where.append("priority = ?")
            values.append(_one_of("priority", priority, Priority))
        with self._lock:
            rows = self._db.execute(
                f"SELECT * FROM tasks WHERE {' AND '.join(where)} ORDER BY task_id", values
            ).fetchall()
        return Result(tasks=[Result(row) for row in rows])

    def delete(self, task_id: int) -> Result:
        """Delete a task for good: ``{"task_id": 12, "deleted": true}``.

        Raises:
            TaskError: For an unknown task.
        """
        with self._transaction() as db:
            self._get(task_id)
            db.execute("DELETE FROM tasks WHERE task_id = ?", (task_id,))
        return Result(task_id=task_id, deleted=True)

    def once(self, key: str, work: Callable[[], str]) -> str:
        """Do something to the tasks once, however often it is asked for.

        The key is remembered in the transaction of the work: both are on the disk, or neither.

        Args:
            key: Names the intention, not the call: the person's request and the position of
                the call in it. A retry brings the same key, also when another model answers
                it in other words.
            work: What changes the tasks, through this store, and returns text.

        Returns:
            What ``work`` returned, when it was first done. What it raises is passed on, and
            nothing is remembered then.

        Raises:
            ValueError: The key is empty.
        """
        if not key:
            raise ValueError("A key must not be empty: everything would be the same request.")
        with self._transaction() as db:
            known = db.execute("SELECT result FROM done WHERE key = ?", (key,)).fetchone()
            if known:
                return known["result"]
            result = work()
            db.execute("INSERT INTO done (key, result) VALUES (?, ?)", (key, result))
            return result

    def close(self) -> None:
        """Close the database; the tasks stay in the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> TaskStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _due(self, due: str | None) -> str | None:
        if due is None or not due.strip():
            return None
        try:
            date = parse_due(due, self.clock())
        except ValueError:
            raise TaskError(
                f"I do not understand the date {due.strip()!r}. Use words like 'tomorrow' or "
                "'next friday', or a date like 2026-12-03."
            ) from None
        return date.isoformat() if date else None

    def _get(self, task_id: int) -> Result:
        if not -(2**63) <= task_id < 2**63:  # more than SQLite can hold
            raise TaskError(f"There is no task {task_id}.")
        row = self._db.execute("SELECT * FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        if row is None:
            raise TaskError(f"There is no task {task_id}.")
        return Result(row)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self._lock)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT: takes the write lock first, so that no two writers can both
    have read what only one of them may change."""

    def __init__(self, db: sqlite3.Connection, lock: threading.RLock) -> None:
        self.db, self.lock = db, lock

    def __enter__(self) -> sqlite3.Connection:
        self.lock.acquire()
        try:
            # Within another one (see once), a part that can be undone alone.
            self.inner = self.db.in_transaction
            self.db.execute("SAVEPOINT inner_part" if self.inner else "BEGIN IMMEDIATE")
        except BaseException:
            self.lock.release()
            raise
        return self.db

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self.inner:
                if kind:
                    self.db.execute("ROLLBACK TO inner_part")
                self.db.execute("RELEASE inner_part")
            else:
                self.db.execute("ROLLBACK" if kind else "COMMIT")
        finally:
            self.lock.release()


def _title(title: str) -> str:
    # Half of a surrogate pair can stand in JSON, but not in a database or a file.
    title = " ".join(str(title).encode("utf-8", "replace").decode().split())
    if not title:
        raise TaskError("A task needs a title.")
    if len(title) > MAX_TITLE:
        raise TaskError(f"The title is longer than {MAX_TITLE} characters.")
    return title


def _one_of(key: str, value: str, kind: Any) -> str:
    if value not in get_args(kind):
        raise TaskError(f"{key} must be one of {', '.join(get_args(kind))}, not {value!r}.")
    return value


# --- the tools -------------------------------------------------------------------------------


def bind(store: TaskStore | Callable[[], TaskStore]) -> dict[str, Callable[..., Result]]:
    """The five tools over a store, by name.

    A tool does not raise :class:`TaskError`: it returns ``{"error": "There is no task 99."}``,
    because a model can read that and try again.

    Args:
        store: The store, or a function that opens it when a tool is first used.
    """

    def tasks() -> TaskStore:
        return store if isinstance(store, TaskStore) else store()

    def create_task(
        title: Annotated[str, Field(description="what is to be done")],
        priority: Priority = "medium",
        due: Annotated[str | None, Field(description="when, in the person's own words")] = None,
    ) -> dict[str, Any]:
        """Create a task."""
        return tasks().create(title, priority, due)

    def update_task(
        task_id: int,
        title: str | None = None,
        priority: Priority | None = None,
        status: Status | None = None,
        due: Annotated[str | None, Field(description="when, in the person's own words")] = None,
    ) -> dict[str, Any]:
        """Change fields of a task."""
        return tasks().update(task_id, title, priority, status, due)

    def complete_task(task_id: int) -> dict[str, Any]:
        """Mark a task as completed."""
        return tasks().complete(task_id)

    def list_tasks(
        status: Status | None = None, priority: Priority | None = None
    ) -> dict[str, Any]:
        """List tasks, optionally filtered."""
        return tasks().list(status, priority)

    def delete_task(task_id: int) -> dict[str, Any]:
        """Delete a task for good."""
        return tasks().delete(task_id)

    tools = (create_task, update_task, complete_task, list_tasks, delete_task)
    return {tool.__name__: _errors_as_results(tool) for tool in tools}


def _errors_as_results(tool: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(tool)  # keeps the signature, from which all schemas are made
    def safe(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return tool(*args, **kwargs)
        except TaskError as error:
            return Result(error=str(error))

    return safe


@functools.cache
def default_store() -> TaskStore:
    """The learner's own tasks, in ``work/tasks.sqlite``."""
    return TaskStore(WORK / "tasks.sqlite")


TOOLS = bind(default_store)


@functools.cache
def _arguments_model(name: str) -> type[BaseModel]:
    """A pydantic model of a tool's arguments, made from its signature."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(TOOLS[name], include_extras=True)
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(TOOLS[name]).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        fields[key] = (hints[key], ... if required else parameter.default)
    # strict: "14" is not 14 here, as in the schemas that the model was shown.
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def tool_schemas(names: Sequence[str] | None = None, strict: bool = False) -> list[dict[str, Any]]:
    """The tools in OpenAI's format, made from their signatures.

    Args:
        names: Which, in which order; all five by default.
        strict: In the strict form: every property required, null allowed where it was
            optional, nothing else accepted.

    Raises:
        CourseError: For a name that is not a tool.
    """
    if names is None:
        names = list(TOOLS)
    for name in names:
        if name not in TOOLS:
            raise CourseError(
                f"There is no tool {name!r}.",
                f"The Task API has {', '.join(TOOLS)}.",
                "Use names from this list.",
            )
    return [_tool_schema(name, strict) for name in names]


def _tool_schema(name: str, strict: bool) -> dict[str, Any]:
    raw = _arguments_model(name).model_json_schema()
    required = raw.get("required", [])
    properties = {
        key: _property(schema, nullable=strict and key not in required)
        for key, schema in raw["properties"].items()
    }
    function: dict[str, Any] = {
        "name": name,
        "description": inspect.getdoc(TOOLS[name]),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }
    if strict:
        for schema in properties.values():
            schema.pop("default", None)
        function["strict"] = True
        function["parameters"] |= {"required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": function}


def _property(schema: dict[str, Any], nullable: bool) -> dict[str, Any]:
    """One property without what says nothing to a model: title, null beside a type."""
    inner = next((s for s in schema.get("anyOf", []) if s.get("type") != "null"), schema)
    out: dict[str, Any] = {"type": [inner["type"], "null"] if nullable else inner["type"]}
    if "enum" in inner:
        out["enum"] = [*inner["enum"], None] if nullable else list(inner["enum"])
    if schema.get("default") is not None:
        out["default"] = schema["default"]
    if "description" in schema:
        out["description"] = schema["description"]
    return out


def call_tool(
    store: TaskStore, name: str, arguments: str | dict[str, Any] | None, *, key: str = ""
) -> str:
    """Carry out one tool call of a model.

    Args:
        store: The tasks.
        name: The tool's name, as the model gave it.
        arguments: Its arguments: JSON text, or already a dictionary. null counts as absent.
        key: With one, a call is carried out once: the same key again returns the first
            result, see :meth:`TaskStore.once`. A call that failed may be tried again.

    Returns:
        The result as JSON text. Whatever a model sends, nothing is raised: what is wrong is
        said in ``{"error": "…"}``, one sentence, from which it can correct itself.
    """
    try:
        if key:
            return store.once(key, lambda: _done_or_raised(store, name, arguments))
        return str(Result(_call_tool(store, name, arguments)))
    except TaskError as error:
        return str(Result(error=str(error)))


def _done_or_raised(store: TaskStore, name: str, arguments: Any) -> str:
    """The result as text; an error is raised, so that nobody remembers it.

    Raises:
        TaskError: Also where the tool itself would have returned the error.
    """
    result = _call_tool(store, name, arguments)
    if "error" in result:
        raise TaskError(result["error"])
    return str(Result(result))


def _call_tool(store: TaskStore, name: str, arguments: Any) -> dict[str, Any]:
    from pydantic import ValidationError

    if name not in TOOLS:
        raise TaskError(f"There is no tool {name!r}. The tools are {', '.join(TOOLS)}.")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise TaskError(f"The arguments of {name} are not valid JSON.") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise TaskError(f"The arguments of {name} must be a JSON object.")
    given = {str(key): value for key, value in arguments.items() if value is not None}
    try:
        checked = _arguments_model(name).model_validate(given)
    except ValidationError as error:
        raise TaskError(_sentence(name, error.errors()[0])) from None
    return bind(store)[name](**checked.model_dump(exclude_unset=True))


def _sentence(name: str, error: dict[str, Any]) -> str:
    """A pydantic error as one sentence that a model can act on."""
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "missing":
        return f"{key} is missing."
    if error["type"] == "extra_forbidden":
        takes = ", ".join(inspect.signature(TOOLS[name]).parameters)
        return f"{name} has no argument {key}; it takes {takes}."
    shown = json.dumps(error["input"], ensure_ascii=False, default=str)
    kind = {"int_type": "an integer", "string_type": "a text"}.get(error["type"])
    if kind is None and "expected" in error.get("ctx", {}):
        kind = "one of " + error["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    return f"{key} must be {kind or error['msg'].casefold()}, not {shown}."
