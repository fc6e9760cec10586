"""Checking a model's tool calls before anything happens, and sending back what is wrong.

A call passes four stages, each of which can refuse it:

* ``parse``: is it a call at all: a name, and arguments that are a JSON object?
* ``tool``: was a tool of that name offered?
* ``schema``: do the arguments fit that tool's JSON schema?
* ``meaning``: do they make sense here and now? That is for *checks*: functions that get the
  call and return what is wrong in a sentence, or None.

What is refused is refused with a :class:`ToolCallError`, whose text is written for the model:
one or two sentences that say what would be right. :func:`feedback` makes messages of it, and
:func:`repair` asks again, a bounded number of times.

Nothing here knows about the course: tools are schemas in OpenAI's format, the tasks and the
clock are functions that the caller passes in. Outside the standard library only ``jsonschema``
is needed.

Examples:
    >>> tools = [{"type": "function", "function": {"name": "finish", "parameters": {
    ...     "type": "object", "properties": {"task_id": {"type": "integer"}},
    ...     "required": ["task_id"]}}}]
    >>> validate_tool_call({"name": "finish", "arguments": '{"task_id": 14}'}, tools)
    ToolCall(name='finish', arguments={'task_id': 14})
    >>> validate_tool_call({"name": "finish", "arguments": '{"task_id": "14"}'}, tools)
    Traceback (most recent call last):
    helpers.validators.ToolCallError: task_id must be an integer, not "14".
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Tool = Mapping[str, Any]
Message = dict[str, Any]
Stage = Literal["parse", "tool", "schema", "meaning", "setup"]

LONGEST = 80  # characters of a value that an error quotes


# --- calls and errors ------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolCall:
    """A call that has passed.

    Attributes:
        name: One of the tools that were offered.
        arguments: Valid by its schema; what was null is left out.
    """

    name: str
    arguments: dict[str, Any]


class ToolCallError(Exception):
    """Why a call must not be carried out.

    Attributes:
        stage: Which stage refused it. ``setup`` means that the program is at fault and not the
            model: a broken schema, or a check that itself failed (see ``__cause__``).
        name: The tool that was called, as far as that could be read.
        argument: The argument at fault, where it is one.
    """

    def __init__(self, stage: Stage, text: str, name: str = "", argument: str = "") -> None:
        self.stage, self.name, self.argument = stage, name, argument
        super().__init__(" ".join(text.split()))  # one line, whatever a name holds

    @property
    def for_model(self) -> bool:
        """Whether the model can do something about it."""
        return self.stage != "setup"

    def result(self) -> str:
        """The content of the tool message that tells the model: ``{"error": "…"}``."""
        return json.dumps({"error": str(self)}, ensure_ascii=False)


class Check(Protocol):
    """What is wrong with the meaning of a call, in a sentence for the model; None if nothing."""

    def __call__(self, call: ToolCall, /) -> str | None: ...


class Ask(Protocol):
    """Sends messages and tools to a model and returns the message that it answers with."""

    def __call__(self, messages: list[Message], tools: Sequence[Tool], /) -> Any: ...


# --- validating ------------------------------------------------------------------------------


def validate_tool_call(
    call: Any, tools: Sequence[Tool], checks: Iterable[Check] = (), *, keep_null: bool = False
) -> ToolCall:
    """Check one call, from its text to its meaning.

    Args:
        call: A call of a message, as a dictionary or an SDK's object; or ``{"name": …,
            "arguments": …}``; or the text of one, bare or between ``<tool_call>`` marks.
            Arguments may be a JSON text or already a dictionary.
        tools: What was offered, in OpenAI's format.
        checks: Checks of meaning, run in order when everything else is right; the first
            objection counts.
        keep_null: Keep arguments that are null. Otherwise null counts as absent, which is how
            strict schemas leave out an optional argument.

    Returns:
        The call with parsed arguments.

    Raises:
        ToolCallError: In every other case, whatever the input. Nothing else is raised.
    """
    name, arguments = _parse(call)
    parameters = _parameters(name, tools)
    given = {
        key: value
        for key, value in arguments.items()
        if value is not None or keep_null or _allows_null(parameters, key)
    }
    given = _against_schema(name, given, parameters)
    passed = ToolCall(name, {k: v for k, v in given.items() if v is not None or keep_null})
    for check in checks:
        try:
            objection = check(passed)
            objection = str(objection) if objection else ""
        except Exception as error:
            # An error of the program must stop the call and must not be blamed on the model.
            text = f"The call of {name} could not be checked, so it was not carried out."
            raise ToolCallError("setup", text, name) from error
        if objection:
            raise ToolCallError("meaning", objection, name)
    return passed


def _parse(call: Any) -> tuple[str, dict[str, Any]]:
    try:
        name, arguments = _name_and_arguments(call)
    except ToolCallError:
        raise
    except Exception as error:  # strange objects can do anything when they are looked at
        raise ToolCallError("parse", "This is not a tool call.") from error
    if not isinstance(name, str) or not name:
        raise ToolCallError("parse", "The tool call has no name.")
    if isinstance(arguments, str):
        arguments = _loads(arguments or "{}", f"The arguments of {_short(name)}", name)
    if arguments is None:
        arguments = {}
    try:
        given = dict(arguments) if isinstance(arguments, Mapping) else None
    except Exception:  # a strange mapping
        given = None
    if given is None or not all(isinstance(key, str) for key in given):
        raise ToolCallError(
            "parse", f"The arguments of {_short(name)} must be a JSON object.", name
        )
    return name, given


def _name_and_arguments(call: Any) -> tuple[Any, Any]:
    if isinstance(call, str):
        text = call.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
        call = _loads(text, "The tool call")
    if hasattr(call, "model_dump"):
        call = call.model_dump()
    if isinstance(call, Mapping):
        function = call.get("function", call)
        if hasattr(function, "model_dump"):
            function = function.model_dump()
        if isinstance(function, Mapping):
            return function.get("name"), function.get("arguments")
        call = function
    function = getattr(call, "function", call)
    return getattr(function, "name", None), getattr(function, "arguments", None)


def _loads(text: str, what: str, name: str = "") -> Any:
    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # which of the two was meant?
            twice = next(k for k, _ in pairs if [key for key, _ in pairs].count(k) > 1)
            text = f"{what} hold {_show(twice)} twice; give it once."
            raise ToolCallError("parse", text, name, twice)
        return found

    try:
        found = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=whole
        )
        json.dumps(found, ensure_ascii=False).encode()  # half a character cannot be sent on
        return found
    except (ValueError, RecursionError):
        verb = "is" if what == "The tool call" else "are"
        raise ToolCallError("parse", f"{what} {verb} not valid JSON.", name) from None


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _no_constant(number)  # 1e400


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")  # Python would read NaN and Infinity


def _parameters(name: str, tools: Sequence[Tool]) -> Mapping[str, Any]:
    try:
        offered = {t["function"]["name"]: t["function"].get("parameters") or {} for t in tools}
        parameters = offered.get(name)
        names = ", ".join(offered)
    except Exception as error:
        text = "The list of tools is broken, so nothing was carried out."
        raise ToolCallError("setup", text, name) from error
    if parameters is None:
        have = f"The tools are {names}." if names else "No tools were offered."
        raise ToolCallError("tool", f"There is no tool {_short(name)}. {have}", name)
    return parameters


def _allows_null(parameters: Any, key: str) -> bool:
    """Whether a schema lets an argument be null; one that is broken is refused elsewhere."""
    properties = parameters.get("properties") if _is_map(parameters) else None
    schema = properties.get(key) if _is_map(properties) else None
    if not _is_map(schema):
        return False
    kinds, options = schema.get("type"), schema.get("anyOf")
    return (
        kinds == "null"
        or (isinstance(kinds, (list, tuple)) and "null" in kinds)
        or (
            isinstance(options, (list, tuple))
            and any(_is_map(option) and option.get("type") == "null" for option in options)
        )
    )


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _as_map(thing: Any, **how: bool) -> dict[Any, Any] | None:
    """A mapping or an SDK's object as a dictionary; None for anything else, however strange."""
    try:
        thing = thing.model_dump(**how) if hasattr(thing, "model_dump") else thing
        return dict(thing) if _is_map(thing) else None
    except Exception:
        return None


def _against_schema(name: str, given: dict[str, Any], parameters: Any) -> dict[str, Any]:
    import jsonschema

    try:
        # What nobody declared is an error, also where the schema does not say so.
        schema = {"additionalProperties": False, **parameters}
        jsonschema.Draft202012Validator.check_schema(schema)
        errors = jsonschema.Draft202012Validator(schema).iter_errors(given)
        # What is missing comes last: a wrong name of an argument is the likelier cause.
        order = {"additionalProperties": 0, "required": 2}
        error = min(errors, key=lambda e: order.get(e.validator, 1), default=None)
        text, argument = _sentence(name, error, schema) if error else ("", "")
    except RecursionError:
        text, argument = f"The arguments of {name} are nested too deeply.", ""
    except Exception as error:
        text = f"The schema of {_short(name)} is broken, so nothing was carried out."
        raise ToolCallError("setup", text, name) from error
    if text:
        raise ToolCallError("schema", text, name, argument)
    properties = schema.get("properties") or {}
    return {key: _whole(value, properties.get(key)) for key, value in given.items()}


def _whole(value: Any, schema: Any) -> Any:
    """14 for 14.0, which JSON Schema takes for an integer and Python does not."""
    kinds = schema.get("type") if _is_map(schema) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds or ()
    wanted = "integer" in kinds and "number" not in kinds
    return int(value) if wanted and isinstance(value, float) and value.is_integer() else value


_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _sentence(name: str, error: Any, schema: Mapping[str, Any]) -> tuple[str, str]:
    """An error of jsonschema as a sentence from which a model can correct itself."""
    path = ".".join(str(part) for part in error.absolute_path)
    where = path or "The arguments"
    got = _show(error.instance)
    takes = ", ".join(schema.get("properties") or {}) or "no arguments"
    if error.validator == "required":
        key = next((k for k in error.validator_value if k not in error.instance), "")
        return f"{key} is missing.", str(key)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties") or {}
        key = next((k for k in error.instance if k not in known), "")
        return f"{name} has no argument {_short(key)}; it takes {takes}.", str(key)
    if error.validator in ("enum", "const"):
        values = error.validator_value if error.validator == "enum" else [error.validator_value]
        words = [v if isinstance(v, str) else _show(v) for v in values if v is not None]
        return f"{where} must be one of {', '.join(words)}, not {got}.", path
    if error.validator == "type":
        kinds = error.validator_value
        kinds = [kinds] if isinstance(kinds, str) else [k for k in kinds if k != "null"]
        wanted = " or ".join(_KINDS.get(kind, str(kind)) for kind in kinds)
        return f"{where} must be {wanted}, not {got}.", path
    rule = f"{error.validator} {_show(error.validator_value)}"
    return f"{where} does not fit the rule {rule}: {got}.", path


def _show(value: Any) -> str:
    try:
        return _short(json.dumps(value, ensure_ascii=False, default=str))
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__}"


def _text(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # a number of more digits than Python is willing to write
        return "a number that is too long"
    except Exception:  # a strange object
        return f"a {type(value).__name__}"


def _short(text: Any) -> str:
    text = _text(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


# --- checks of meaning -----------------------------------------------------------------------


def known_id(
    get: Callable[[Any], object],
    unknown: type[Exception] | tuple[type[Exception], ...] = LookupError,
    argument: str = "task_id",
) -> Check:
    """A check that what an id names exists.

    Args:
        get: Looks the id up: ``store.get``, or ``tasks.__getitem__``. What it returns does not
            matter, except that None means that there is nothing.
        unknown: What it raises for an id that does not exist. Any other exception counts as a
            failure of the check, never as a missing task.
        argument: The argument that holds the id; calls without it pass.
    """

    def check(call: ToolCall) -> str | None:
        if argument not in call.arguments:
            return None
        wanted = call.arguments[argument]
        try:
            if get(wanted) is not None:
                return None
        except unknown:
            pass
        return f"There is no task {_short(wanted)}."

    return check


def mentioned_id(messages: Iterable[Mapping[str, Any]], argument: str = "task_id") -> Check:
    """A check that an id occurs in the conversation: said by the person, or told by a tool.

    Good where the tasks themselves cannot be looked up. Errors do not count as telling: "There
    is no task 481." is no reason to believe in 481.

    Args:
        messages: The conversation so far.
        argument: The argument that holds the id.
    """
    texts = [_said(m) for m in messages if _is_map(m) and m.get("role") in ("user", "tool")]
    numbers = {n for text in texts if '"error"' not in text for n in re.findall(r"\w+", text)}

    def check(call: ToolCall) -> str | None:
        wanted = call.arguments.get(argument)
        if wanted is None or set(re.findall(r"\w+", _text(wanted))) <= numbers:
            return None
        return f"There is no task {_short(wanted)}."

    return check


def clear_date(
    resolve: Callable[[str, datetime.date], datetime.date | None],
    clock: Callable[[], datetime.date] = datetime.date.today,
    argument: str = "due",
) -> Check:
    """A check that a date in words can be resolved.

    Args:
        resolve: ``resolve("next friday", today)`` returns the date, or None for "no date"; it
            raises ValueError for what is not a date.
        clock: Gives today's date.
        argument: The argument that holds the words; calls without it pass.
    """

    def check(call: ToolCall) -> str | None:
        words = call.arguments.get(argument)
        if not isinstance(words, str) or not words.strip():
            return None
        try:
            resolve(words, clock())
        except ValueError:
            return (
                f"I do not understand the date {_show(words.strip())}. Use words like 'tomorrow' "
                "or 'next friday', or a date like 2026-12-03."
            )
        return None

    return check


# Ways of asking for a deletion. Wide on purpose: to stop a deletion that was asked for costs a
# question, to let one pass that was not costs a task. But "gone", "out" and "off" alone report that
# something was done: "the email has gone out", "the sofa's gone".
_NO_NEED = (
    r"(?:no longer|no need|(?:don|doesn|needn|shan|won)['\u2019]?t(?: \w+)?"
    r" (?:need|want|bother|be)\w*"
    r"|(?:is|are|am|was|were)(?:n['\u2019]?t| not)(?: \w+)? (?:need|want|happen|go)\w*)"
)
DELETING = re.compile(
    r"\b(?:del|delet\w*|remov(?!al)\w*|eras\w*|drop|dropping|discard\w*|trash\w*|toss\w*|scrap\w*"
    r"|ditch|bin|eliminat\w*|purg\w*|nuk\w*|wip(?:e|ing)|kill\w*|axe|cancel\w*|rid|throw"
    r"|forget(?! (?:that |what )?i (?:\w+ )?(?:said|asked|mentioned|told|wrote))"
    r"|clear|clearing|strik\w*|struck|scratch|chuck|zap\w*|lose|abandon\w*|away with|be off"
    r"|call(?:ed)? off|rm|dlt|withdraw\w*|retract\w*|revok\w*|expung\w*|annul\w*|obliterat\w*"
    r"|eradicat\w*|scrub|cut|vanish\w*|dustbin|the garbage|shot of|dispense with|rub out"
    r"|(?:by|in) (?:accident|mistake|error)|(?:want|wants|be|like|them|it|\d+) gone"
    rf"|{_NO_NEED}"
    r"|(?:can|may|must|should|let|and|make it|(?:ought|has|have|got|needs?|wants?) to)"
    r"(?: (?:both|all|just|also|it|them))?"
    r" (?:go|vanish|disappear)(?! (?:\w+ )?(?:out|up|to|back|by|in|on|for|soft|high|low)\b)"
    r"|(?:take|taken|taking|cross|leave|get|comes?|pull) (?:\S+ ){0,5}?(?:off|out|away|down)"
    r"|(?:off|from) (?:my|the|our|this|your) (?:\w+ )?(?:list|plate|board))\b",
    re.IGNORECASE,
)

# What takes away a part of a task and not the task: "remove the due date from 12".
_FIELD = r"(?:due|due[ -]?dates?|deadlines?|dates?|priorit(?:y|ies)|status)"
_OF_A_FIELD = re.compile(
    rf"\b\w+ +(?:(?:the|its|that|their|any|all|\S+['’]s) +){{0,2}}{_FIELD}\b(?: +(?:off|away|out))?"
    rf"|\b{_FIELD} +(?:(?:is|can|should|may) +)?(?:off|away|out|gone|go)\b",
    re.IGNORECASE,
)


def asked_for_delete(
    messages: Iterable[Mapping[str, Any]],
    tool: str = "delete_task",
    asks: re.Pattern[str] = DELETING,
) -> Check:
    """A check that the person asked for a deletion, in the last thing that they said.

    Args:
        messages: The conversation so far.
        tool: The tool that deletes; other calls pass.
        asks: What asking looks like. A pattern of words errs in both directions; measure it.
            Words that take away a date, priority or status do not count.
    """
    said = [_said(m) for m in messages if _is_map(m) and m.get("role") == "user"]
    asked = bool(said) and asks.search(_OF_A_FIELD.sub(" ", said[-1])) is not None

    def check(call: ToolCall) -> str | None:
        if call.name != tool or asked:
            return None
        return "Nobody asked to delete a task."

    return check


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else ()
    return " ".join(str(part.get("text", "")) for part in parts if _is_map(part))


# --- answers with several calls ----------------------------------------------------------------

PRINTED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Review:
    """What is to be thought of an answer.

    Attributes:
        message: The answer, with a call that was printed as text moved to where calls belong.
        calls: For each call what passed, or why it did not.
    """

    message: Message
    calls: tuple[ToolCall | ToolCallError, ...] = field(default_factory=tuple)

    @property
    def errors(self) -> list[ToolCallError]:
        """Why calls were refused; empty when all passed, or when there were none."""
        return [call for call in self.calls if isinstance(call, ToolCallError)]

    @property
    def ok(self) -> bool:
        """Whether everything in the answer can be carried out. Words alone can."""
        return not self.errors


def review(message: Any, tools: Sequence[Tool], checks: Iterable[Check] = ()) -> Review:
    """Check all calls of an answer, before the first one is carried out.

    Args:
        message: A message, as a dictionary or an SDK's object.
        tools: What was offered.
        checks: As for :func:`validate_tool_call`.
    """
    checks = tuple(checks)
    read = _as_map(message, exclude_none=True)
    message = {"role": "assistant", "content": _text(message)} if read is None else read
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):  # a careless server; what is there is refused below
        nothing = calls is None or (isinstance(calls, str | int | dict) and not calls)
        calls = [] if nothing else [calls]
        message |= {"tool_calls": calls} if calls else {}
    content = message.get("content")
    if not calls and isinstance(content, str) and (printed := list(_printed(content))):
        # A server that does not look for calls hands them through as words.
        message |= {"content": None, "tool_calls": printed}
        calls = printed
    verdicts: list[ToolCall | ToolCallError] = []
    for call in calls:
        try:
            verdicts.append(validate_tool_call(call, tools, checks))
        except ToolCallError as error:
            verdicts.append(error)
    return Review(message, tuple(verdicts))


def _printed(text: str) -> Iterator[dict[str, Any]]:
    """Calls that stand in a text, the unreadable ones with their raw text as arguments."""
    for number, match in enumerate(PRINTED.finditer(text), 1):
        try:
            name, arguments = _parse(match[1])
            given = json.dumps(arguments, ensure_ascii=False)
        except (ToolCallError, ValueError):
            found = re.search(r'"name"\s*:\s*"([^"]*)"', match[1])
            name, given = found[1] if found else "", match[1].strip()
        function = {"name": name, "arguments": given}
        yield {"id": f"printed_{number}", "type": "function", "function": function}


def feedback(reviewed: Review) -> list[Message]:
    """The messages that tell a model what was wrong with its calls.

    The answer itself, then one result for each of its calls: the error, or, for a call that was
    right in bad company, that it was not carried out. Servers read the arguments of earlier
    calls again and fail on what is not JSON (llama.cpp: status 500), so such arguments are
    replaced by ``{}``.
    """
    calls, results = [], []
    for number, call in enumerate(reviewed.message.get("tool_calls") or (), 1):
        call = _as_map(call) or {}
        function = _as_map(call.get("function")) or {}
        name, arguments = function.get("name"), function.get("arguments")
        plain = {"name": name if isinstance(name, str) else "", "arguments": _sendable(arguments)}
        id = call.get("id") if isinstance(call.get("id"), str) else f"call_{number}"
        calls.append({"id": id, "type": "function", "function": plain})
        verdict = reviewed.calls[number - 1]
        said = (
            verdict.result()
            if isinstance(verdict, ToolCallError)
            else json.dumps(
                {"error": f"{verdict.name} was not carried out: another call was wrong."}
            )
        )
        results.append({"role": "tool", "tool_call_id": id, "content": said})
    if not calls:
        return []
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


def _sendable(arguments: Any) -> str:
    try:
        read = _loads(arguments, "The arguments") if isinstance(arguments, str) else arguments
        return json.dumps(read, ensure_ascii=False) if isinstance(read, dict) else "{}"
    except (ToolCallError, ValueError, TypeError, RecursionError):
        return "{}"


@dataclass(frozen=True)
class Repaired:
    """What came of asking, and of asking again.

    Attributes:
        review: The last answer and what is to be thought of it. Look at ``review.ok`` before
            carrying anything out.
        messages: The conversation with all that was sent back in between, without the last
            answer.
        asked: How often the model was asked: 1 when the first answer was right.
    """

    review: Review
    messages: list[Message]
    asked: int


def repair(
    ask: Ask,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    checks: Iterable[Check] = (),
    *,
    limit: int = 2,
) -> Repaired:
    """Ask, check, and send the errors back, a bounded number of times.

    Args:
        ask: Asks the model; what it raises is passed on.
        messages: The conversation so far; not changed.
        tools: What is offered.
        checks: As for :func:`validate_tool_call`.
        limit: How often the model may try again. It also stops at an answer that it has given
            before: a model without sampling would repeat itself for ever.
    """
    messages, checks, seen = list(messages), tuple(checks), set()
    for asked in range(1, limit + 2):
        reviewed = review(ask(messages, tools), tools, checks)
        what = json.dumps([_call_of(c) for c in reviewed.message.get("tool_calls") or ()])
        hopeless = what in seen or any(not error.for_model for error in reviewed.errors)
        if reviewed.ok or hopeless or asked > limit:
            break
        seen.add(what)
        messages += feedback(reviewed)
    return Repaired(reviewed, messages, asked)


def _call_of(call: Any) -> list[str]:
    try:
        return [_text(part) for part in _name_and_arguments(call)]
    except Exception:  # a strange object, or a text that is no call
        return [_text(call), ""]
