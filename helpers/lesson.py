"""What a lesson's notebook calls: start, checks of exercises, and display.

A notebook's first cell is ``lesson = start("L01")``. An exercise is a stub, a check and a
solution under a name of its own::

    def choose_pattern(task): ...                                    # the learner's cell

    lesson.check("choose-pattern", choose_pattern)                   # says what is wrong

    def choose_pattern_solution(task): return "direct"               # collapsed
    choose = lesson.use("choose-pattern", choose_pattern, choose_pattern_solution)

Nothing here raises because of what a learner wrote; the notebook always runs to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import html
import importlib
import inspect
import io
import json
import linecache
import os
import re
import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers import progress, settings
from helpers.settings import MODEL, CourseError

COURSE_TODAY = "2026-11-23"

_MISSING: Any = object()


# --- checks ----------------------------------------------------------------------------------


class Hint(Exception):
    """What is wrong with a learner's work, in words that help.

    Args:
        text: A sentence of its own, or empty when ``expected`` and ``got`` say it.
        expected: What should have come.
        got: What came.
        on: The input or call on which it came, as text.
        look: Where in the lesson to look again; the check's own place by default.
    """

    def __init__(
        self,
        text: str = "",
        *,
        expected: Any = _MISSING,
        got: Any = _MISSING,
        on: str = "",
        look: str = "",
    ) -> None:
        self.text, self.expected, self.got, self.on, self.look = text, expected, got, on, look
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = []
        if self.got is not _MISSING:
            parts.append(f"{self.on or 'Your answer'} gave {show(self.got)}")
        elif self.on:
            parts.append(f"On {self.on}")
        if self.expected is not _MISSING:
            parts.append(f"expected {show(self.expected)}")
        said = ", ".join(parts) + "." if parts else ""
        return " ".join(filter(None, [said, self.text]))


@dataclass(frozen=True)
class Check:
    """A registered check: its function and where to look again."""

    function: Callable[[Any], Any]
    look: str


_checks: dict[tuple[str, str], Check] = {}


def check(lesson: str, name: str, look: str = "") -> Callable[[Callable], Callable]:
    """Register a check, see :mod:`helpers.checks`.

    Args:
        lesson: ``"L01"``.
        name: The exercise, as the notebook names it.
        look: Heading of the section that explains it.
    """

    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        _checks[lesson, name] = Check(function, look)
        return function

    return register


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call the learner's function; an ``async`` one is run to its end.

    Raises:
        Hint: When it raises: the call, the error, and the learner's own line.
    """
    on = _show_call(function, args, kwargs)
    try:
        result = function(*args, **kwargs)
        return _run(result) if inspect.isawaitable(result) else result
    except Hint:
        raise
    except Exception as error:
        raise _as_hint(error, on) from error


def expect(function: Callable[..., Any], /, *args: Any, equals: Any, look: str = "",
           **kwargs: Any) -> Any:  # fmt: skip
    """Call the learner's function and compare what it gives.

    Raises:
        Hint: When it gives something else, or raises.
    """
    got = call(function, *args, **kwargs)
    if got != equals:
        on = _show_call(function, args, kwargs)
        raise Hint(expected=equals, got=got, on=on, look=look)
    return got


def show(value: Any) -> str:
    """A value for a sentence: short, without memory addresses."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxdict = short.maxlist = 8
    short.maxlevel = 4
    try:
        text = "..." if value is ... else short.repr(value)
    except Exception:  # reprlib itself looks at lengths, keys and items
        text = f"<{type(value).__name__}>"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _show_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    given = [show(arg) for arg in args] + [f"{k}={show(v)}" for k, v in kwargs.items()]
    return f"{_name(function, 'your function')}({', '.join(given)})"


def _name(value: Any, otherwise: str) -> str:
    """The name of a function or class, also of one whose attributes raise."""
    try:
        return str(getattr(value, "__name__", otherwise))
    except Exception:
        return otherwise


def _run(awaitable: Any) -> Any:
    """Wait for a coroutine while the notebook's own loop is running: in another thread."""
    from concurrent.futures import ThreadPoolExecutor

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _as_hint(error: BaseException, on: str) -> Hint:
    said = type(error).__name__
    with contextlib.suppress(Exception):  # an error of the learner's own may have no words
        said += f": {error}" if str(error) else ""
    where = ""
    trace = error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if "ipykernel" in file or file.startswith("<ipython-input"):
            line = linecache.getline(file, trace.tb_lineno).strip()
            where = f" In line {trace.tb_lineno} of your cell: {line}"
        trace = trace.tb_next
    return Hint(f"{on} stopped with {said[:300]}.{where}")


_STUB_OPERATIONS = frozenset(
    "RESUME NOP POP_TOP LOAD_CONST RETURN_CONST RETURN_VALUE RETURN_GENERATOR COPY_FREE_VARS "
    "LOAD_COMMON_CONSTANT LOAD_SMALL_INT NOT_TAKEN CALL_INTRINSIC_1 RERAISE".split()
)


def is_stub(value: Any) -> bool:
    """Whether an exercise has not been filled in.

    True for ``...`` and None, for a function whose body is ``...`` or ``pass`` or returns one
    of the two, for a text or a collection in which a ``...`` is left.
    """
    if value is None or value is ...:
        return True
    if isinstance(value, str):
        return not value.strip() or bool(re.search(r"(^|[\s:=])\.\.\.\s*(#.*)?$", value, re.M))
    if isinstance(value, Mapping):
        return any(is_stub(v) for v in value.values() if v is not None)
    if isinstance(value, list | tuple):
        return any(is_stub(v) for v in value if v is not None)
    if isinstance(value, types.FunctionType):
        operations = list(dis.get_instructions(value))
        constants = {i.argval for i in operations if i.opname in ("LOAD_CONST", "RETURN_CONST")}
        return {i.opname for i in operations} <= _STUB_OPERATIONS and constants <= {None, ...}
    return False


PASSED, WRONG, EMPTY = "✓", "✗", "○"


class Lesson:
    """A lesson in a notebook.

    Attributes:
        id: ``"L01"``.
        exercises: Names of its exercises, in order.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"helpers.checks.{id.lower()}")
        self.exercises = [name for lesson, name in _checks if lesson == id]

    def check(self, name: str, learner: Any) -> Any:
        """Say whether the learner's work is right, and if not, what is wrong. Never raises.

        A solution (something whose name ends in ``_solution``) is checked as well, without
        recording progress. When the check is an ``async def``, write ``await lesson.check(…)``.

        Args:
            name: The exercise.
            learner: The function or value that the learner made.
        """
        shown = _holds(_is_solution, learner, sys._getframe(1).f_globals)
        return self._then(name, learner, lambda mark, said: self._report(name, shown, mark, said))

    def use(self, name: str, learner: Any, solution: Any) -> Any:
        """The learner's work where it passes its check, else the solution.

        Says which one in a line; records nothing.
        """

        def choose(mark: str, said: str) -> Any:
            if mark == PASSED:
                print(f"{name}: your version is used.")
                return learner
            why = "yours is not filled in yet" if mark == EMPTY else "yours does not pass yet"
            print(f"{name}: the solution is used; {why}.")
            return solution

        return self._then(name, learner, choose, quiet=True)

    def progress(self) -> None:
        """Show which exercises of this lesson are done."""
        known = progress.read().get(self.id, {})
        rows = [[name, "done" if name in known else "open"] for name in self.exercises]
        done = sum(name in known for name in self.exercises)
        table(rows, ["exercise", "state"], caption=f"{self.id}: {done} of {len(rows)} done")

    def self_test(self) -> None:
        """Five questions on this lesson, with a reason for every choice."""
        from helpers import selftest

        selftest.show(self.id)

    def _then(self, name: str, learner: Any, finish: Callable[[str, str], Any],
              quiet: bool = False) -> Any:  # fmt: skip
        registered = _checks.get((self.id, name))
        if registered is None:
            raise CourseError(
                f"{self.id} has no exercise {name!r}.",
                f"Its exercises are: {', '.join(self.exercises) or 'none'}.",
                "Use one of these names.",
            )
        if _holds(is_stub, learner):
            return _resolved(registered, finish(EMPTY, ""))
        mute = contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
        if inspect.iscoroutinefunction(registered.function):

            async def later() -> Any:
                try:
                    with mute:
                        said = await registered.function(learner)
                except BaseException as error:
                    return finish(*self._wrong(error, registered, learner))
                return finish(PASSED, said or "")

            return later()
        try:
            with mute:
                said = registered.function(learner)
        except BaseException as error:
            return finish(*self._wrong(error, registered, learner))
        return finish(PASSED, said or "")

    def _wrong(self, error: BaseException, registered: Check, learner: Any) -> tuple[str, str]:
        if _stops(error):
            raise error
        try:
            return self._verdict(error, registered, learner)
        except Exception:
            # The last resort: a verdict without its words is better than a traceback of ours.
            said = f"The check stopped with {type(error).__name__}, which cannot be shown."
            return WRONG, _looking(said, registered.look)

    def _verdict(self, error: BaseException, registered: Check, learner: Any) -> tuple[str, str]:
        cause = error if error.__cause__ is None else error.__cause__
        if isinstance(cause, NotImplementedError):
            return EMPTY, ""
        if not isinstance(error, Hint):
            # A check that trips over what it was given, for example over a missing key.
            error = _as_hint(error, f"The check of {_name(learner, 'your answer')}")
        if error.got is ...:
            return EMPTY, ""
        return WRONG, _looking(str(error), error.look or registered.look)

    def _report(self, name: str, solution: bool, mark: str, said: str) -> None:
        if mark == EMPTY:
            said = "not filled in yet. Replace the ... and run the cell and this check again."
        elif mark == PASSED:
            said = f"passed. {said}".strip()
            if solution:
                said += " (The solution; no progress recorded.)"
            elif why := progress.record(self.id, name):
                # A check never raises; a full disk must not look like a wrong answer.
                said += f"\n  (Your progress could not be saved: {why})"
        # Half of a surrogate pair, say in an error's text, is nothing that can be printed.
        print(f"{mark} {name}: {said}".encode(errors="backslashreplace").decode())


def _looking(said: str, look: str) -> str:
    return f"{said}\n  Look again: {look}." if look else said


def _holds(question: Callable[..., bool], *about: Any) -> bool:
    """The answer to a question about a learner's work; False where looking at it raises."""
    try:
        return question(*about)
    except BaseException as error:
        if _stops(error):
            raise
        return False


def _stops(error: BaseException) -> bool:
    """Whether the learner pressed stop; a learner's function can raise a CancelledError, too."""
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, KeyboardInterrupt)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return False
    return task is not None and task.cancelling() > 0


def _is_solution(value: Any, notebook: Mapping[str, Any]) -> bool:
    """Whether this is what a solution cell made, by its own name or by that of its variable."""
    if str(getattr(value, "__name__", "")).endswith("_solution"):
        return True
    if isinstance(value, int) or (isinstance(value, str) and value.isidentifier()):
        return False  # Python keeps one object for all that are equal
    return any(k.endswith("_solution") and v is value for k, v in list(notebook.items()))


def _resolved(registered: Check, value: Any) -> Any:
    """The value, awaitable when the check is asynchronous."""
    if not inspect.iscoroutinefunction(registered.function):
        return value

    async def done() -> Any:
        return value

    return done()


# --- start -----------------------------------------------------------------------------------


def start(id: str, services: Sequence[str] = ("backend", "proxy")) -> Lesson:
    """Make ready what a lesson needs and return the lesson.

    Fixes the course's date for this kernel (``COURSE_TODAY``, unless it is set), switches off
    everything that would contact the internet, and starts or mends the services.

    Args:
        id: ``"L01"``.
        services: What must answer before this returns: ``"backend"``, ``"proxy"``.

    Raises:
        CourseError: When a service cannot be started.
    """
    os.environ.setdefault("COURSE_TODAY", COURSE_TODAY)
    for name, value in settings.OFFLINE.items():
        os.environ.setdefault(name, value)
    # A web proxy of a company's network cannot reach this machine's loopback.
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "").split(",")
        os.environ[name] = ",".join(dict.fromkeys(filter(None, [*known, "127.0.0.1", "localhost"])))
    # Traces of the Agents SDK would go to its maker's server; lessons keep theirs here.
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
    os.environ.setdefault("OPENAI_AGENTS_DONT_LOG_TOOL_DATA", "0")
    if os.environ.get("COURSE_RECORD"):
        from helpers import notebooks

        notebooks.record()
    if services:
        from helpers import services as running

        running.ensure(wait=tuple(services), quiet=True)
    names = {"backend": MODEL, "proxy": "the proxy"}
    up = " and ".join(names[service] for service in services)
    up = f": {up} answer{'s' if len(services) == 1 else ''}" if up else ""
    date = settings.today()
    print(f"{id} is ready{up}. Today is {date:%A} {date.isoformat()}.")
    lesson = Lesson(id)
    print(progress.line(id, lesson.exercises))
    return lesson


# --- display ---------------------------------------------------------------------------------


def _show(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    """Show a bundle of forms in a notebook; its text elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        print(data["text/plain"])
        return
    from IPython.display import display

    display(data, metadata=metadata or {}, raw=True)


def _display(text: str, markup: str) -> None:
    _show({"text/plain": text, "text/html": markup})


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    # One runaway answer of a model must not bury the page.
    return text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL].rstrip() + " [...]"


LONGEST_CELL = 600


def table(rows: Iterable[Any], columns: Sequence[str] | None = None, caption: str = "") -> None:
    """Show rows as a table.

    Args:
        rows: Mappings or sequences.
        columns: Headings; for mappings also their order. Default: the first row's keys.
        caption: What the table shows.
    """
    rows = list(rows)
    if columns is None:
        columns = list(rows[0]) if rows and isinstance(rows[0], Mapping) else []
    lines = [
        [row.get(key) for key in columns] if isinstance(row, Mapping) else list(row) for row in rows
    ]
    width = max(map(len, [columns, *lines]))
    columns = [*columns, *[""] * (width - len(columns))] if columns else []
    lines = [line + [None] * (width - len(line)) for line in lines]
    numeric = [
        bool(lines) and all(isinstance(line[i], int | float | None) for line in lines)
        for i in range(width)
    ]
    cells = [[_cell(value) for value in line] for line in lines]
    _display(_text_table(cells, columns, caption, numeric), _html_table(cells, columns, caption,
                                                                       numeric))  # fmt: skip


def _text_table(cells: list[list[str]], columns: Sequence[str], caption: str,
                numeric: list[bool]) -> str:  # fmt: skip
    every = [list(columns), *cells] if columns else cells
    widths = [max(len(part) for row in every for part in row[i].split("\n"))
              for i in range(len(numeric))] if every else []  # fmt: skip
    lines = [caption] if caption else []
    for n, row in enumerate(every):
        for k in range(max((part.count("\n") for part in row), default=0) + 1):
            parts = [(part.split("\n") + [""] * k)[k] for part in row]
            line = "  ".join(
                part.rjust(width) if right else part.ljust(width)
                for part, width, right in zip(parts, widths, numeric, strict=False)
            )
            lines.append(line.rstrip())
        if n == 0 and columns:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _html_table(cells: list[list[str]], columns: Sequence[str], caption: str,
                numeric: list[bool]) -> str:  # fmt: skip
    # Colours and borders are JupyterLab's own, so both themes fit.
    def align(i: int) -> str:
        return f' style="text-align:{"right" if numeric[i] else "left"};vertical-align:top"'

    def content(part: str) -> str:
        return f'<span style="white-space:pre-wrap">{html.escape(part)}</span>'

    out = ["<table>"]
    if caption:
        out.append(f"<caption>{html.escape(caption)}</caption>")
    if columns:
        heads = (
            f'<th scope="col"{align(i)}>{html.escape(str(name))}</th>'
            for i, name in enumerate(columns)
        )
        out.append(f"<thead><tr>{''.join(heads)}</tr></thead>")
    out.append("<tbody>")
    for row in cells:
        first, *rest = row
        line = f'<th scope="row"{align(0)}>{content(first)}</th>'
        line += "".join(f"<td{align(i)}>{content(part)}</td>" for i, part in enumerate(rest, 1))
        out.append(f"<tr>{line}</tr>")
    return "\n".join([*out, "</tbody>", "</table>"])


def _plain(value: Any) -> Any:
    """A dictionary of an SDK's object."""
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


def call_text(tool_call: Any) -> str:
    """A tool call as one line: ``complete_task({"task_id": 14})``.

    Args:
        tool_call: From a message, as a dictionary or an SDK's object. Its id is left out: the
            server draws a new one each time.
    """
    function = _plain(tool_call)
    function = function.get("function", function)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return f"{function.get('name')}({arguments})"


def show_call(tool_call: Any) -> None:
    """Show a tool call as one line."""
    text = call_text(tool_call)
    _display(text, f"<code>{html.escape(text)}</code>")


def show_messages(messages: Iterable[Any], caption: str = "") -> None:
    """Show a conversation, one row a message, calls and results marked with arrows."""
    rows = []
    for message in map(_plain, messages):
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        parts = [content] if content else []
        if message.get("role") == "tool":
            parts = [f"← {content}"]
        parts += [f"→ {call_text(call)}" for call in message.get("tool_calls") or ()]
        rows.append([message.get("role", "?"), "\n".join(parts)])
    table(rows, ["role", "content"], caption=caption)


def figure(fig: Any, alt: str) -> None:
    """Show a matplotlib figure as a picture, with its description.

    The description stands below the picture as a sentence, for everybody: JupyterLab gives no
    alternative text to pictures in outputs.

    Args:
        fig: The figure; it is closed.
        alt: What it shows, in one or two sentences: axes, trend, the value that matters.

    Raises:
        ValueError: Without a description.
    """
    if not alt.strip():
        raise ValueError("A figure needs a description: figure(fig, alt='…').")
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    # A white ground of its own: axes and labels stay legible in the dark theme.
    fig.savefig(
        picture,
        format="png",
        dpi=110,
        bbox_inches="tight",
        facecolor="white",
        metadata={"Software": None, "Description": alt},
    )
    plt.close(fig)
    import base64

    data = base64.b64encode(picture.getvalue()).decode()
    described = f"Figure: {alt}"
    _show({"image/png": data, "text/plain": described}, {"image/png": {"alt": alt}})
    if sys.modules.get("IPython") and sys.modules["IPython"].get_ipython():
        _display(described, f"<p><em>Figure:</em> {html.escape(alt)}</p>")
