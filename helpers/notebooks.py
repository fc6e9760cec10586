"""Executing, normalising and checking notebooks: the one way in which outputs get into git.

``execute(["L01"])`` runs a notebook in a fresh kernel, takes out what changes from run to run,
writes it, checks the rules that every notebook keeps, and repeats the requests behind its
outputs to see that none of them was a near tie.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import settings
from helpers.settings import MINI, MODEL, NOTEBOOKS, ROOT, CourseError
from helpers.standins import AGENT

MAX_LINES = 25
SHORT_LINES = 10
MAX_CORE_CELLS = 30
NEAR_TIE = 0.05  # difference of the two best tokens' probabilities
CELL_TIMEOUT = 300  # seconds

IGNORED = "nbval-ignore-output"
REQUESTS = ROOT / "tests" / "requests"  # one file per lesson, for helpers.steady
# Marks a request of a whole evaluation: only its count is shown, which other tests repeat.
COUNTED = "X-Course-Counted"

# --- recording requests ------------------------------------------------------------------------

_record_lock = threading.Lock()


def record_hook(request: Any, status: int | None = None) -> None:
    """Note a chat completion in the file that ``COURSE_RECORD`` names; do nothing without it.

    Each line is ``{"count": <execution count of the cell>, "body": {…}}``, with ``"status"``
    when it was no success. Requests of a stand-in and of evaluations are left out.

    Args:
        request: An ``httpx.Request``.
        status: The HTTP status of its answer, None if there was none.
    """
    path = os.environ.get("COURSE_RECORD")
    if not path or request.method != "POST" or "/chat/completions" not in str(request.url):
        return
    if request.headers.get("User-Agent") == AGENT:
        return  # the lesson's own request was noted when it went to the stand-in or the proxy
    if COUNTED in request.headers:
        return
    try:
        body = json.loads(request.content)
    except Exception:  # a streamed or broken body is nobody's committed answer
        return
    try:
        from IPython import get_ipython

        shell = get_ipython()
    except ImportError:
        shell = None
    # What In has so far: shell.execution_count runs ahead while a cell is running.
    count = len(shell.user_ns["In"]) - 1 if shell else None
    entry = {"count": count, "body": body}
    if status is not None and status != 200:
        entry["status"] = status
    with _record_lock, open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Note no requests meanwhile: those of an evaluation, of which only the counts are shown."""
    recording = os.environ.pop("COURSE_RECORD", None)
    try:
        yield
    finally:
        if recording:
            os.environ["COURSE_RECORD"] = recording


def record() -> None:
    """Note all chat completions that this process sends through httpx, whoever sends them.

    The OpenAI SDK, the Agents SDK and plain httpx all end in ``Client.send``. Called by
    ``lesson.start`` during execution only.
    """
    import httpx

    for kind in (httpx.Client, httpx.AsyncClient):
        if not hasattr(kind.send, "course_original"):
            kind.send = _recording(kind.send)


def _recording(send: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(self: Any, request: Any, **kwargs: Any) -> Any:
        status = None
        try:
            response = send(self, request, **kwargs)
            status = response.status_code
            return response
        finally:
            record_hook(request, status)

    async def recorded_async(self: Any, request: Any, **kwargs: Any) -> Any:
        status = None
        try:
            response = await send(self, request, **kwargs)
            status = response.status_code
            return response
        finally:
            record_hook(request, status)

    wrapper = recorded_async if inspect.iscoroutinefunction(send) else recorded
    wrapper.course_original = send  # type: ignore[attr-defined]
    return wrapper


# --- near ties ---------------------------------------------------------------------------------


def near_ties(records: Iterable[Mapping[str, Any]], url: str, asked_of: str = MODEL) -> list[str]:
    """Repeat recorded requests and report those in which two tokens were nearly tied.

    An answer that hangs on less than 0.05 of probability may come out differently on another
    machine, and its output does not belong into a notebook. Requests that a cell sends by other
    means than this kernel's HTTP clients (curl, a script, a server of its own) are not recorded,
    so not looked at.

    Args:
        records: Lines that :func:`record_hook` wrote.
        url: The backend, directly.
        asked_of: The model that is there; requests to others are left out.

    Returns:
        One sentence per problem, naming the cell by its execution count.
    """
    import httpx

    from helpers.clients import http_options

    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    problems: list[str] = []
    seen: set[str] = set()
    with httpx.Client(**http_options(60, direct=True)) as client:
        for entry in records:
            body, cell = dict(entry["body"]), f"In [{entry.get('count')}]"
            model = str(body.get("model", "")).split("/")[-1]
            if model != asked_of:  # a stand-in, a mistake made on purpose, or the other model
                continue
            asked = _last_text(body)
            if body.get("temperature") != 0:
                sentence = f"{cell}: a request without temperature=0: {asked}"
                if sentence not in seen:
                    seen.add(sentence)
                    problems.append(sentence)
            for key in ("stream", "stream_options", "metadata", "user", "store", "n"):
                body.pop(key, None)
            body |= {
                "model": model,
                "temperature": 0,
                "cache_prompt": False,
                "logprobs": True,
                "top_logprobs": 5,
            }
            body.setdefault("max_tokens", 256)
            key = json.dumps(body, sort_keys=True)
            if key in seen:
                continue
            seen.add(key)
            try:
                response = client.post(f"{base}/chat/completions", json=body)
            except httpx.HTTPError as error:
                problems.append(f"{cell}: could not be repeated ({type(error).__name__}): {asked}")
                continue
            if response.status_code != 200:
                continue  # it failed in the lesson too, which is then what the lesson shows
            tie = closest((response.json()["choices"][0].get("logprobs") or {}).get("content"))
            if tie and tie[0] < NEAR_TIE:
                problems.append(
                    f"{cell}: {tie[1]!r} and {tie[2]!r} are nearly tied "
                    f"(difference {tie[0]:.3f}) in the answer to: {asked}"
                )
    return problems


def closest(tokens: Sequence[Mapping[str, Any]] | None) -> tuple[float, str, str] | None:
    """The position at which an answer was least decided.

    Args:
        tokens: ``logprobs.content`` of a choice.

    Returns:
        The difference of probabilities between the token that was chosen and the best that
        was not, and both tokens; None without probabilities.
    """
    import math

    best: tuple[float, str, str] | None = None
    for token in tokens or ():
        chosen = math.exp(token["logprob"])
        others = [
            (math.exp(other["logprob"]), other["token"])
            for other in token.get("top_logprobs") or ()
            if other["token"] != token["token"]
        ]
        # What stands above the chosen token was forbidden by the grammar and does not compete.
        below = [other for other in others if other[0] <= chosen]
        if not below:
            continue
        p, name = max(below)
        scale = chosen + p if len(below) < len(others) else 1
        gap = (chosen - p) / scale if scale else 0.0
        if best is None or gap < best[0]:
            best = (gap, token["token"], name)
    return best


def _last_text(body: Mapping[str, Any]) -> str:
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            return json.dumps(message.get("content"), ensure_ascii=False)[:100]
    return "(no user message)"


# --- executing ---------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of one notebook.

    Attributes:
        path: The notebook.
        problems: Sentences about broken rules and near ties; empty when all is well.
        requests: How many chat completions its cells sent.
    """

    path: Path
    problems: list[str] = field(default_factory=list)
    requests: int = 0


def find(lessons: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these lessons (``L01``, or a path); all by default.

    Raises:
        CourseError: For a lesson without a notebook.
    """
    every = sorted(NOTEBOOKS.glob("L[0-9][0-9]_*.ipynb"))
    if not lessons:
        return every
    found = []
    for lesson in lessons:
        path = Path(lesson)
        matching = [p for p in every if p.name.upper().startswith(lesson.upper())]
        if path.suffix == ".ipynb" and path.is_file():
            matching = [path]
        if not matching:
            raise CourseError(
                f"There is no notebook for {lesson}.",
                f"Notebooks: {', '.join(p.stem.split('_')[0] for p in every) or 'none yet'}.",
                "Name a lesson, such as: python3 -m helpers execute L01",
            )
        found += matching
    return found


def execute(lessons: Sequence[str] = (), *, echo: Callable[[str], None] = print) -> int:
    """Execute notebooks, write them, and report what breaks a rule.

    Args:
        lessons: ``L01`` … or paths; all by default.
        echo: Where the report goes.

    Returns:
        The number of notebooks with problems: 0 is success.

    Raises:
        CourseError: When a cell fails; the notebook is then left as it was.
    """
    failed = 0
    for path in find(lessons):
        outcome = execute_one(path)
        failed += bool(outcome.problems)
        state = f"{len(outcome.problems)} problems" if outcome.problems else "ok"
        echo(f"{path.stem}: {state} ({outcome.requests} model requests)")
        for problem in outcome.problems:
            echo(f"  {problem}")
    return failed


def execute_one(path: Path, backend: str | None = None) -> Outcome:
    """Execute one notebook, normalise it, write it, and check it.

    Args:
        path: The notebook; written in place.
        backend: URL at which recorded requests are repeated; the running backend by default.

    Raises:
        CourseError: When a cell fails.
    """
    # This environment's kernel, also when the user has one of the same name elsewhere.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = _read(path)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.jsonl"
        env = settings.scrubbed(os.environ) | {
            "COURSE_RECORD": str(log),
            "COURSE_PROGRESS": str(Path(folder) / "progress.json"),
            # The learner's own skill stays as it is, see helpers.skill.rehearsing.
            "COURSE_SKILL": _skill_folder(),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(
                os.pathsep
            ),
        }
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=40"],  # no advice on encryption of the loopback
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            client.execute(env=env)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise _cell_failed(path, notebook, error) from None
        records = _records(log)
    normalise(notebook, path.stem)
    nbformat.validate(notebook)
    _write(path, notebook)
    outcome = Outcome(path, rules(path), len(records))
    shown = {
        cell.execution_count
        for cell in notebook.cells
        if cell.cell_type == "code" and IGNORED not in _tags(cell)
    }
    records = [entry for entry in records if entry["count"] in shown]
    if path.parent == NOTEBOOKS:
        _keep_requests(path, records)
    if records:
        outcome.problems += near_ties(records, backend or _backend_url())
        if any(str(entry["body"].get("model")).endswith(MINI) for entry in records):
            from helpers.backend import serve

            with serve(MINI) as other:
                outcome.problems += near_ties(records, other.url, MINI)
    return outcome


def _skill_folder() -> str:
    """What a kernel gets as COURSE_SKILL; its working directory is not ours."""
    named = os.environ.get("COURSE_SKILL") or "rehearsal"
    return named if named == "rehearsal" else str(Path(named).resolve())


def _backend_url() -> str:
    from helpers import services

    return services.ensure(wait=("backend",), quiet=True).backend.url


def _records(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _keep_requests(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Leave the requests behind a notebook's outputs for the tests that repeat them.

    Those to either model; without those that failed, of which no answer was shown.
    """
    lines: dict[str, None] = {}
    for entry in records:
        body = dict(entry["body"])
        name = str(body.get("model", "")).split("/")[-1]
        if name in (MODEL, MINI) and "status" not in entry:
            body["model"] = name
            for key in ("stream", "stream_options"):
                body.pop(key, None)
            lines[_plain_ids(json.dumps(body, ensure_ascii=False))] = None
    target = REQUESTS / f"{path.stem.split('_')[0]}.jsonl"
    if not lines:
        target.unlink(missing_ok=True)
        return
    REQUESTS.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines)
    target.write_text(text, encoding="utf-8", newline="\n")


def _plain_ids(body: str) -> str:
    """Number the ids of calls, which are random and which no prompt contains."""
    ids = dict.fromkeys(re.findall(r'"tool_call_id": "([^"]+)"', body))
    for number, name in enumerate(ids, 1):
        body = body.replace(f'"{name}"', f'"call_{number}"')
    return body


def _cell_failed(path: Path, notebook: Any, error: Exception) -> CourseError:
    failing = next(
        (
            (n, cell)
            for n, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and any(o.output_type == "error" for o in cell.outputs)
        ),
        None,
    )
    if failing is None:
        first = str(error).strip().splitlines()
        return CourseError(
            f"{path.stem} could not be executed.",
            f"{type(error).__name__}: {first[0] if first else ''}",
            "Run its cells one by one in JupyterLab to find the one that hangs.",
        )
    n, cell = failing
    output = next(o for o in cell.outputs if o.output_type == "error")
    return CourseError(
        f"Cell {n} of {path.stem} fails.",
        f"{output.ename}: {output.evalue}\n\n{cell.source}\n",
        "Mend the cell, then execute again. The notebook was left as it was.",
    )


def _read(path: Path) -> Any:
    """A notebook; cells without an id get one that is the same each time."""
    import nbformat

    raw = json.loads(path.read_text(encoding="utf-8"))
    taken: set[str] = set()
    for n, cell in enumerate(raw.get("cells", [])):
        if not cell.get("id") or cell["id"] in taken:
            source = "".join(cell.get("source", ""))
            seed = f"{path.stem} {n} {source}".encode()
            cell["id"] = hashlib.sha256(seed).hexdigest()[:8]
        taken.add(cell["id"])
    raw["nbformat"], raw["nbformat_minor"] = 4, max(5, raw.get("nbformat_minor", 5))
    return nbformat.reads(json.dumps(raw), as_version=4)


def _write(path: Path, notebook: Any) -> None:
    import nbformat

    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    fresh = path.with_suffix(".ipynb.tmp")
    fresh.write_text(text, encoding="utf-8", newline="\n")
    os.replace(fresh, path)


def normalise(notebook: Any, lesson: str = "") -> None:
    """Take out of a notebook, in place, what changes without anybody having changed it."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    kept = {k: v for k, v in notebook.metadata.items() if k == "course"}
    notebook.metadata = type(notebook.metadata)(
        {**kept, "kernelspec": kernel, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        tags = _tags(cell)
        keep = {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter", "slideshow")}
        if "solution" in tags and cell.cell_type == "code":
            keep["jupyter"] = {**keep.get("jupyter", {}), "source_hidden": True}
        cell.metadata = type(cell.metadata)(keep)
        cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)


def _merged(outputs: Iterable[Any]) -> list[Any]:
    """Outputs with pieces of one stream joined: where a stream is cut depends on the clock."""
    merged: list[Any] = []
    for output in outputs:
        if output.output_type in ("display_data", "execute_result"):
            for name in list(output.get("metadata", {})):
                if name not in output.data:
                    del output.metadata[name]
        if output.output_type == "stream":
            last = merged[-1] if merged else None
            if last is not None and last.output_type == "stream" and last.name == output.name:
                last.text += output.text
                continue
        merged.append(output)
    return merged


# --- rules -------------------------------------------------------------------------------------

VOLATILE = {
    r"0x[0-9a-fA-F]{6,}": "a memory address",
    r"\b(?:127\.0\.0\.1|localhost|0\.0\.0\.0|\[::1\]):\d+": "a port",
    r"\b\d{1,2}:\d{2}:\d{2}\b": "a clock time",
    r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d": "a clock time",
    r"\b1[6-9]\d{8}(?:\.\d+)?\b": "a time stamp",
    r"\b(?:chatcmpl|resp|msg)[-_][A-Za-z0-9]{10,}": "a random id",
    r"\bcall_[A-Za-z0-9]{16,}": "a random id",
    r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b": "a random id",
}
PRIVATE = {
    r"(?<![\w.])/(?:home|Users|root|tmp|var|work|opt|mnt|private|usr|etc)/\w": "an absolute path",
    r"(?<!\w)[A-Za-z]:\\+(?:Users|Temp|Windows|\w+\\)": "an absolute path",
    r"\bsk-[A-Za-z0-9_-]{16,}": "a key",
}


def rules(path: Path | str) -> list[str]:
    """What in a notebook breaks the rules of the course; empty when nothing does.

    A notebook with ``"course": {"status": "planned"}`` in its metadata only has to have its
    title, time and objectives.
    """
    path = Path(path)
    notebook = _joined(json.loads(path.read_text(encoding="utf-8")))
    lesson = path.stem.split("_")[0].upper()
    planned = notebook.metadata.get("course", {}).get("status") == "planned"
    problems = list(_head_rules(notebook))
    if not planned:
        problems += _tail_rules(notebook)
        problems += _code_rules(notebook)
        if lesson != "L00":
            problems += _exercise_rules(notebook)
    problems += _picture_rules(notebook)
    problems += _output_rules(notebook)
    problems += _metadata_rules(notebook)
    return problems


def _joined(raw: dict[str, Any]) -> Any:
    """The notebook as it lies in the file, only with its lines joined.

    ``nbformat.read`` would mend missing and doubled ids, which is what the rules look for.
    """
    import nbformat
    from nbformat.v4.rwbase import rejoin_lines

    return rejoin_lines(nbformat.from_dict(raw))


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def _lines(cell: Any) -> int:
    return len(cell.source.strip().splitlines())


WORDS_A_MINUTE = 200
EXERCISE_MINUTES = 4  # stub, check, hints and a look at the solution together


def minutes(path: Path | str) -> float:
    """The estimated minutes of a lesson's core path.

    200 words of prose a minute, one minute for each code cell, four for each exercise with its
    check, hints and solution. What is tagged ``optional`` is left out, and so are diagrams.
    """
    notebook = _joined(json.loads(Path(path).read_text(encoding="utf-8")))
    words = code = exercises = 0
    for cell in notebook.cells:
        tags = _tags(cell)
        if "optional" in tags:
            continue
        if cell.cell_type == "markdown":
            words += len(re.findall(r"\S*\w\S*", _prose(cell.source)))
        elif "exercise" in tags:
            exercises += 1
        elif not {"check", "solution"} & set(tags):
            code += 1
    return words / WORDS_A_MINUTE + code + EXERCISE_MINUTES * exercises


def _prose(markdown: str) -> str:
    """What of a cell is read on the way: no diagrams, no hints, no addresses."""
    text = re.sub(r"```mermaid.*?```|<details>.*?</details>", "", markdown, flags=re.S)
    return re.sub(r"\]\([^)\s]*\)", "] ", text)


def _code(notebook: Any) -> list[tuple[int, Any]]:
    return [
        (n, c)
        for n, c in enumerate(notebook.cells)
        if c.cell_type == "code" and c.source.strip()
    ]  # fmt: skip


def _head_rules(notebook: Any) -> Iterator[str]:
    cells = notebook.cells
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        yield "Cell 0: the first cell must begin with the title, '# L01 …'"
    head = []
    for cell in cells:
        if cell.cell_type == "code":
            break
        head.append(cell.source)
    text = "\n\n".join(head)
    promise = [line for line in text.splitlines()[1:] if line.strip()]
    if not promise or promise[0].lstrip().startswith(("#", "-", "*", "|", ">", "1.")):
        yield "Top: a sentence of promise must follow the title"
    if not re.search(r"\b\d+\s*min(ute)?s?\b", text):
        yield "Top: the time is missing ('40 minutes')"
    if not re.search(r"what you need|you need|prerequisite", text, re.I):
        yield "Top: what you need is missing"
    section = re.search(
        r"^[#*].*(?:objective|you will be able|after this lesson).*\n((?:.*\n?)*?)(?=^#|\Z)",
        text,
        re.I | re.M,
    )
    items = re.findall(r"^\s*(?:[-*]|\d+\.)\s+\S", section[1], re.M) if section else []
    if not 3 <= len(items) <= 5:
        yield f"Top: 3-5 objectives as a list under a heading 'Objectives', found {len(items)}"


def _tail_rules(notebook: Any) -> Iterator[str]:
    markdown = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    heads = re.findall(r"^#+\s+(.*)$", "\n\n".join(markdown[-6:]), re.M)
    for wanted, pattern in {
        "takeaways": r"takeaway",
        "what the skill gained": r"skill",
        "prompts to try with an AI": r"prompt|try with|\bAI\b|assistant",
        "the next lesson": r"\bnext\b",
    }.items():
        if not any(re.search(pattern, head, re.I) for head in heads):
            yield f"End: a heading for {wanted} is missing"


def _code_rules(notebook: Any) -> Iterator[str]:
    code = _code(notebook)
    if not code:
        return
    first, cell = code[0]
    if "parameters" not in _tags(cell):
        yield f"Cell {first}: the first code cell must be tagged 'parameters'"
    for n, cell in code:
        if _lines(cell) > MAX_LINES:
            yield f"Cell {n}: {_lines(cell)} lines, at most {MAX_LINES}"
    short = sum(_lines(cell) <= SHORT_LINES for _, cell in code)
    if short < 0.75 * len(code):
        yield (
            f"Only {short} of {len(code)} code cells have at most {SHORT_LINES} lines; "
            "three quarters must"
        )
    core = [cell for _, cell in code if "optional" not in _tags(cell)]
    if len(core) > MAX_CORE_CELLS:
        yield f"{len(core)} code cells on the core path, at most {MAX_CORE_CELLS}"
    ignored = [i for i, (_, cell) in enumerate(code) if IGNORED in _tags(cell)]
    if len(ignored) > len(code) / 10:
        yield f"{len(ignored)} of {len(code)} cells are tagged {IGNORED}; at most one in ten"
    for i in ignored:
        after = code[i + 1][1] if i + 1 < len(code) else None
        if after is None or IGNORED in _tags(after) or not _asserts(after.source):
            yield (
                f"Cell {code[i][0]}: tagged {IGNORED}, so the next code cell must assert what "
                "matters"
            )
    counts = [cell.get("execution_count") for _, cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield "Not executed from top to bottom: execution counts must be 1, 2, 3 …"
    for n, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and not cell.source.strip():
            yield f"Cell {n}: an empty code cell"
        if "raises-exception" in _tags(cell):
            yield f"Cell {n}: 'raises-exception' stops papermill; show errors with try/except"


def _parsed(source: str) -> ast.Module | None:
    """The cell as a tree; magics and shell lines are left out."""
    plain = "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()
    )
    try:
        return compile(
            plain, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )  # fmt: skip
    except SyntaxError:
        return None


def _asserts(source: str) -> bool:
    tree = _parsed(source)
    return tree is not None and any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def _names(source: str) -> set[str]:
    """Names that a cell binds at its top level."""
    names: set[str] = set()
    tree = _parsed(source)
    for node in tree.body if tree else []:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def _exercise_rules(notebook: Any) -> Iterator[str]:
    cells = list(enumerate(notebook.cells))
    starts = [n for n, cell in cells if "exercise" in _tags(cell) and cell.cell_type == "code"]
    if len(starts) < 3:
        yield f"{len(starts)} exercises (code cells tagged 'exercise'), at least 3"
    for i, n in enumerate(starts):
        end = starts[i + 1] if i + 1 < len(starts) else len(cells)
        part = [cell for _, cell in cells[n + 1 : end]]
        if not any("check" in _tags(c) and ".check(" in c.source for c in part):
            yield f"Cell {n}: the exercise has no cell tagged 'check' with lesson.check(…)"
        solutions = [c for c in part if "solution" in _tags(c)]
        if not solutions:
            yield f"Cell {n}: the exercise has no cell tagged 'solution'"
        before = []
        for cell in part:
            if "solution" in _tags(cell):
                break
            before.append(cell.source)
        if not any("<details" in source for source in before):
            yield f"Cell {n}: no hints under <details> between the exercise and its solution"
        for solution in solutions:
            for name in _names(solution.source) & _names(notebook.cells[n].source):
                yield f"Cell {n}: the solution replaces the learner's {name!r}"
            if not solution.metadata.get("jupyter", {}).get("source_hidden"):
                yield f"Cell {n}: its solution is not collapsed"


def _picture_rules(notebook: Any) -> Iterator[str]:
    for n, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            source = re.sub(r"```(?!mermaid).*?```", "", cell.source, flags=re.S)
            if re.search(r"!\[\s*\]\(", source):
                yield f"Cell {n}: a picture without alternative text"
            if re.search(r"!\[[^\]]*\]\(\s*https?:|src=[\"']https?:", source):
                yield f"Cell {n}: a picture from the web; the course works offline"
            yield from _markup_rules(n, source)
            for diagram in re.findall(r"```mermaid\n(.*?)```", source, re.S):
                if "accDescr" not in diagram:
                    yield f"Cell {n}: a Mermaid diagram without accDescr (its description)"
        for output in cell.get("outputs", []):
            data, metadata = output.get("data", {}), output.get("metadata", {})
            for kind in data:
                if kind.startswith("image/") and not metadata.get(kind, {}).get("alt"):
                    yield f"Cell {n}: a picture without alternative text; use lesson.figure()"
            yield from _markup_rules(n, str(data.get("text/html", "")))


def _markup_rules(n: int, markup: str) -> Iterator[str]:
    for tag in re.findall(r"<img\b[^>]*>", markup, re.I):
        if not re.search(r"\balt=([\"'])(?!\1)", tag):
            yield f"Cell {n}: <img> without alternative text"
    for tag, inner in re.findall(r"(<svg\b[^>]*>)(.*?)</svg>", markup, re.I | re.S):
        if "aria-label" not in tag and "<title" not in inner and "aria-hidden" not in tag:
            yield f"Cell {n}: <svg> without a <title>"


def _texts(output: Any) -> Iterator[str]:
    if output.output_type == "stream":
        yield output.text if isinstance(output.text, str) else "".join(output.text)
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/") or kind == "application/json":
            if isinstance(value, list):
                value = "".join(value)
            yield value if isinstance(value, str) else json.dumps(value)


def _output_rules(notebook: Any) -> Iterator[str]:
    for n, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"Cell {n}: an error: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"Cell {n}: warnings or log lines (stderr): {output.text.strip()[:80]}"
            for text in _texts(output):
                wrong = dict(PRIVATE)
                if IGNORED not in _tags(cell):
                    wrong |= VOLATILE
                for pattern, what in wrong.items():
                    if found := re.search(pattern, text):
                        yield f"Cell {n}: {what} in its output: {found[0]}"


def _metadata_rules(notebook: Any) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "metadata.widgets: run python3 -m helpers execute"
    if notebook.metadata.get("language_info", {}) != {"name": "python"}:
        yield "metadata.language_info is not minimal: run python3 -m helpers execute"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "Cells without an id, or with the same one: run python3 -m helpers execute"
    if any("execution" in cell.metadata for cell in notebook.cells):
        yield "Cells with recorded times: run python3 -m helpers execute"
