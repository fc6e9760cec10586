"""What the installed packages say of themselves, at exactly the versions that are installed.

Four sources, all on this machine: signatures, docstrings, type definitions, and the help of
command lines. Nothing is asked from the internet, with one exception that has to be asked for
by its address: a project's ``llms.txt``.

A piece of documentation is named by its package and the object in it::

    show("openai:OpenAI.__init__", only=["base_url", "api_key"])
    show("openai-agents:Agent", only=["model"])          # fields, with the comment below each
    show("litellm --help", only=["--host", "--config"])  # a console script
    show("https://gofastmcp.com", only=["client"])       # its llms.txt, from the network
    takes("openai-agents", "openai_client")              # who has a parameter of that name?

Documentation is a claim. A *probe* tries it: a function that returns its evidence, or raises.
:func:`run_probes` runs probes and says which claims hold here.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import itertools
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers import settings
from helpers.settings import CourseError

# Where a distribution and what one imports have different names.
MODULES = {"openai-agents": "agents"}

WIDTH = 96  # characters a line
LINES = 24  # one screen
QUOTED = 40  # words of a quotation, at most
HELP_TIMEOUT = 120  # seconds; some command lines import for a long time on a busy machine


@dataclass(frozen=True)
class Excerpt:
    """A short piece of documentation and where it stands.

    Attributes:
        package: The distribution, as one installs it: ``"openai-agents"``.
        version: The version installed here.
        object: The object's full name, or the command.
        kind: ``"function"``, ``"class"``, ``"fields"``, ``"type"``, ``"value"``, ``"command"``
            or ``"page"``.
        text: The excerpt.
    """

    package: str
    version: str
    object: str
    kind: str
    text: str

    @property
    def source(self) -> str:
        """``openai 2.54.0, openai.OpenAI.__init__``: what a quotation names."""
        return f"{self.package} {self.version}, {self.object}".replace(" ,", ",")

    def quote(self, words: str) -> str:
        """Words of this excerpt as a line for a document, with their source.

        Args:
            words: They must stand in the excerpt; differences in white space do not matter.

        Raises:
            CourseError: When they do not: a quotation is never from memory. Or when they are more
                than :data:`QUOTED`: a quotation is short, and the rest is in your own words.
        """
        if len(words.split()) > QUOTED:
            raise CourseError(
                f"These are {len(words.split())} words, and a quotation has at most {QUOTED}.",
                "More of somebody's text needs their leave, and readers look for the point.",
                "Quote the words that matter, and say the rest in your own.",
            )
        if " ".join(words.split()) not in " ".join(self.text.split()):
            raise CourseError(
                f"These words are not in {self.source}.",
                f"You quoted: {words!r}",
                "Copy the words from what show(...) prints.",
            )
        return f'"{" ".join(words.split())}" ({self.source})'

    def __str__(self) -> str:
        lines = self.text.splitlines()
        if len(lines) > LINES:
            left = len(lines) - LINES + 1
            lines = [*lines[: LINES - 1], f"[{left} more lines; name what you look for: only=[…]]"]
        return "\n".join([f"{self.source} ({self.kind})", *lines])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def version(package: str) -> str:
    """The installed version of a distribution.

    Raises:
        CourseError: When it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise CourseError(
            f"There is no package {package!r} here.",
            "A package is named as one installs it: openai, openai-agents, litellm, fastmcp.",
            "Correct the name.",
        ) from None


# --- finding -------------------------------------------------------------------------------------


def show(what: str, only: Sequence[str] = (), *, echo: bool = True) -> Excerpt:
    """Find a piece of documentation, print it, and return it.

    Args:
        what: ``"package:Object.attribute"``, ``"command --help"``, or the address of a project's
            site, for its ``llms.txt`` (see :func:`llms_txt`; only then is the network used).
        only: Keep what names one of these: parameters, fields, options. For a text without
            such parts, the lines that hold one of these words.
        echo: Whether to print it.

    Returns:
        The excerpt, for :meth:`Excerpt.quote`.

    Raises:
        CourseError: For a package, object or command that does not exist here, or a page that
            cannot be read.
    """
    only = [only] if isinstance(only, str) else list(only)
    if what.startswith(("http://", "https://")):
        found = llms_txt(what, only)
    elif ":" in what and " " not in what:
        package, _, name = what.partition(":")
        found = _object(package, name, only)
    elif what.endswith("--help") and ":" not in what:
        found = _command(what.split()[:-1], only)
    else:
        raise CourseError(
            f"{what!r} names no documentation.",
            "It is an object of a package, the help of a command, or the address of a site.",
            'Write it like show("openai:OpenAI.__init__") or show("litellm --help").',
        )
    if echo:
        print(found)
    return found


def _object(package: str, name: str, only: Sequence[str]) -> Excerpt:
    value, full = _resolve(package, name)
    kind, text = _described(value, only)
    return Excerpt(package, version(package), full, kind, text)


def _resolve(package: str, name: str) -> tuple[Any, str]:
    version(package)  # says so when the package is not there
    for key, setting in settings.OFFLINE.items():
        os.environ.setdefault(key, setting)
    module = MODULES.get(package, package.replace("-", "_"))
    value, full = importlib.import_module(module), module
    for part in filter(None, name.split(".")):
        full = f"{full}.{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(full)
            except ImportError:
                near = [n for n in dir(value) if part.lower() in n.lower() and n[0] != "_"]
                raise CourseError(
                    f"{package} {version(package)} has no {full}.",
                    f"Similar names there: {', '.join(near[:8])}." if near else "",
                    "A name that you remember may be another version's. Look for the right one.",
                ) from None
    return value, full


def _described(value: Any, only: Sequence[str]) -> tuple[str, str]:
    """The kind of an object and its text."""
    if inspect.isclass(value):
        fields = _fields(value)
        if fields:
            return "fields", _field_text(value, fields, only)
        text = _signature(value, only) + "\n" + _doc(value, only)
        return "class", text.strip()
    if callable(value) and not _is_type(value):
        return "function", (_signature(value, only) + "\n" + _doc(value, only)).strip()
    if _is_type(value):
        return "type", _wrapped(_plain(value))
    if inspect.ismodule(value):
        return "module", _doc(value, only)
    return "value", _wrapped(repr(value))


def _is_type(value: Any) -> bool:
    import typing

    return typing.get_origin(value) is not None


def _plain(annotation: Any) -> str:
    """An annotation as one would write it."""
    import types
    import typing

    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    if annotation is None or annotation is type(None):
        return "None"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _plain(args[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_plain, args))
    if origin is not None and origin is not typing.Literal and args:
        parts = (
            f"[{', '.join(map(_plain, arg))}]" if isinstance(arg, list) else _plain(arg)
            for arg in args
        )
        name = getattr(annotation, "_name", None) or getattr(origin, "__name__", str(origin))
        return f"{name}[{', '.join(parts)}]"
    if inspect.isclass(annotation):
        return annotation.__name__
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", str(annotation))


def _default(value: Any) -> str:
    text = "..." if value is Ellipsis else repr(value)
    if isinstance(value, type) or " object at 0x" in text or len(text) > 60:
        return "<default>"
    return text


def _signature(value: Any, only: Sequence[str]) -> str:
    """A signature, one parameter a line when it is long."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parts, left = [], 0
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls") or parameter.name.startswith("_"):
            continue
        if only and parameter.name not in only:
            left += 1
            continue
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        part = star + parameter.name
        if parameter.annotation is not parameter.empty:
            part += f": {_plain(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            part += f" = {_default(parameter.default)}"
        parts.append(part)
    if left:
        parts.append(f"... {left} more")
    name = getattr(value, "__name__", "")
    one = f"{name}({', '.join(parts)})"
    if len(one) <= WIDTH:
        return one
    return f"{name}(\n" + "".join(_wrapped(part, "    ") + ",\n" for part in parts) + ")"


def _doc(value: Any, only: Sequence[str]) -> str:
    """The first paragraph of a docstring; with ``only``, the lines about these names."""
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    text = inspect.cleandoc(own or "")  # a base class's text says nothing of this one
    if not only:
        return _wrapped(text.split("\n\n")[0])
    kept: list[str] = []
    lines = text.splitlines()
    for n, line in enumerate(lines):
        # An entry "name: …" or "name (type): …", or the name in code quotes.
        if not any(re.search(rf"^\s*{re.escape(word)}\b *[:(]|`{re.escape(word)}`", line)
                   for word in only):  # fmt: skip
            continue
        kept.append(line)
        indent = len(line) - len(line.lstrip())
        for more in lines[n + 1 :]:  # the rest of an entry stands further right
            if not more.strip() or len(more) - len(more.lstrip()) <= indent:
                break
            kept.append(more)
    return "\n".join(dict.fromkeys(kept))


def _fields(kind: type) -> dict[str, Any]:
    """Fields of a dataclass, a Pydantic model or a TypedDict: name to annotation."""
    if dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    if hasattr(kind, "model_fields"):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if issubclass(kind, dict) and hasattr(kind, "__required_keys__"):
        return dict(kind.__annotations__)
    return {}


def _field_text(kind: type, fields: dict[str, Any], only: Sequence[str]) -> str:
    comments = _comments(kind)
    lines = [f"class {kind.__name__}"]
    chosen = [name for name in fields if not only or name in only]
    for name in chosen:
        lines.append(_wrapped(f"{name}: {_plain(fields[name])}", "    "))
        if only and comments.get(name):
            lines.append(textwrap.indent(_wrapped(comments[name]), "        "))
    if len(chosen) < len(fields):
        lines.append(f"    ... {len(fields) - len(chosen)} more fields")
    return "\n".join(lines)


def _comments(kind: type) -> dict[str, str]:
    """The texts that stand below the fields of a class in its source, bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = getattr(tree.body[0], "body", [])
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                text = inspect.cleandoc(below.value.value)
                found[field.target.id] = text.split("\n\n")[0]
    return found


def _wrapped(text: str, indent: str = "") -> str:
    lines = []
    for line in text.splitlines():
        begin = indent + line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line.strip(), WIDTH, initial_indent=begin, subsequent_indent=begin + "  ",
            break_long_words=False, break_on_hyphens=False,
        ) or [""]  # fmt: skip
    return "\n".join(lines)


# --- command lines -------------------------------------------------------------------------------


def _command(words: Sequence[str], only: Sequence[str]) -> Excerpt:
    script, *rest = words
    package, entry = _script(script)
    # Through the interpreter: the script's own file may not be on the PATH.
    code = (
        "import importlib, sys; module, _, name = sys.argv.pop(1).partition(':'); "
        f"sys.argv[0] = {script!r}; sys.exit(getattr(importlib.import_module(module), name)())"
    )
    # Width and colours are taken from the terminal otherwise, and differ from run to run.
    env = {**os.environ, **settings.OFFLINE, "COLUMNS": str(WIDTH), "LINES": "50"}
    env |= {"TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    env |= {"FASTMCP_SHOW_SERVER_BANNER": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, entry, *rest, "--help"],
        capture_output=True, encoding="utf-8", errors="replace", env=env, timeout=HELP_TIMEOUT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CourseError(
            f"{' '.join(words)} --help failed.", last, "Look at the command's name and words."
        )
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    if only:
        text = _options(text, only)
    return Excerpt(package, version(package), " ".join([*words, "--help"]), "command", text)


def _script(name: str) -> tuple[str, str]:
    """The package of a console script, and what it calls (``module:function``)."""
    found = list(importlib.metadata.entry_points(group="console_scripts", name=name))
    if not found:
        raise CourseError(
            f"No installed package has a command {name!r}.",
            "Commands that the course's packages bring: litellm, fastmcp, agentskills.",
            "Correct the name.",
        )
    entry = found[0]
    return entry.dist.name if entry.dist else name, entry.value.split(" ")[0]


def _options(text: str, only: Sequence[str]) -> str:
    """The options of a help text that are named, with the lines that belong to each."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if re.match(r"[\s│]{0,3}(-|[a-z])", line) or not blocks:
            blocks.append([line])
        else:
            blocks[-1].append(line)
    named = re.compile("|".join(rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in only))
    return "\n".join(
        "\n".join(block) for block in blocks if named.search(block[0].split("  ")[0] or block[0])
        or named.search(" ".join(block[0].split()[:3]))
    )  # fmt: skip


# --- searching -----------------------------------------------------------------------------------


def takes(package: str, parameter: str) -> list[str]:
    """Which public objects of a package have a parameter of this name.

    Looks at what the package's top module exports: functions, classes, and their public
    methods. ``**kwargs`` does not count.

    Args:
        package: As one installs it.
        parameter: The name that one looks for, such as ``"base_url"``.

    Returns:
        Names such as ``"OpenAIChatCompletionsModel"`` and ``"Runner.run"``, sorted.
    """
    version(package)
    module = importlib.import_module(MODULES.get(package, package.replace("-", "_")))
    found: set[str] = set()
    for name in getattr(module, "__all__", None) or dir(module):
        value = getattr(module, name, None)
        if name.startswith("_") or inspect.ismodule(value) or not callable(value):
            continue
        parts = {name: value}
        if inspect.isclass(value):
            parts |= {
                f"{name}.{key}": method
                for key, method in vars(value).items()
                if not key.startswith("_") and inspect.isfunction(method)
            }
        for full, part in parts.items():
            with contextlib.suppress(TypeError, ValueError, AttributeError):
                if parameter in inspect.signature(part).parameters:
                    found.add(full)
    return sorted(found)


# --- online, only when asked ---------------------------------------------------------------------


def llms_txt(url: str, only: Sequence[str] = (), *, timeout: float = 10) -> Excerpt:
    """Read a project's ``llms.txt``, the page that it keeps for assistants.

    This is the one function here that uses the network. What it brings describes the newest
    version, which may not be the installed one: whatever you take from it needs a probe.

    Args:
        url: The project's site, or the address of the file itself.
        only: Keep lines with one of these words.
        timeout: Seconds.

    Raises:
        CourseError: When it cannot be read.
    """
    import httpx

    address = url if url.endswith(".txt") else url.rstrip("/") + "/llms.txt"
    try:
        reply = httpx.get(address, timeout=timeout, follow_redirects=True)
        reply.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as problem:
        raise CourseError(
            f"{address} could not be read.",
            f"{type(problem).__name__}: {problem}".splitlines()[0],
            "Go on without it: everything in this lesson is on your machine.",
        ) from None
    text = reply.text.strip()
    if "<html" in text[:500].lower():
        raise CourseError(
            f"{address} is a web page, not an llms.txt.",
            "Not every project keeps one.",
            "Go on without it: everything in this lesson is on your machine.",
        )
    if only:
        text = "\n".join(line for line in text.splitlines()
                         if any(word.lower() in line.lower() for word in only))  # fmt: skip
    return Excerpt(address, "", "as it is online now", "page", _wrapped(text))


# --- probes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: The claim, a sentence.
        holds: Whether its probe ran to the end.
        evidence: What the probe returned, or what it raised.
    """

    claim: str
    holds: bool
    evidence: str


def run_probes(probes: Iterable[tuple[str, Callable[[], Any]]]) -> list[Finding]:
    """Run probes. One that raises, whatever it raises, has refuted its claim or itself.

    Args:
        probes: Pairs of a claim, which is a sentence, and a function that tries it. The
            function returns its evidence as a short text, or raises; ``async`` functions are
            run to their end.
    """
    from helpers.lesson import _run

    findings = []
    for claim, probe in probes:
        try:
            evidence = probe()
            if inspect.isawaitable(evidence):
                evidence = _run(evidence)
            if evidence is None or not str(evidence).strip():
                raise AssertionError("the probe returned no evidence")
            findings.append(Finding(claim, True, str(evidence)))
        except Exception as problem:
            said = str(problem).splitlines()[0] if str(problem) else "no reason given"
            findings.append(Finding(claim, False, f"{type(problem).__name__}: {said}"))
    return findings
