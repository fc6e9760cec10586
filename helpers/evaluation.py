"""Evaluation cases, the scorer that compares a model's answer with one, and the report.

A *case* is one line of JSON: the messages so far, the names of the tools offered, and what a
right answer is. The rules of scoring are few and strict:

* Calls are compared without order; every expected call needs a call of its own, and none may
  be left over.
* Titles and due phrases are compared after folding case, punctuation, white space and the
  articles a, an, the, my, our. Ids and enums are compared exactly: ``14`` is not ``"14"``.
* An argument of ``null`` counts as absent. An argument that nobody asked for is wrong. A key
  that ends in ``?`` may be absent.
* ``expect: []`` wants no call and finished, readable text that contains every ``say`` and no
  ``never``. Output that cannot be parsed, is cut off, or is gibberish is never a correct
  refusal.

Examples:
    >>> case = Case.from_dict({"id": "x-1", "category": "complete", "tools": ["complete_task"],
    ...     "messages": [{"role": "user", "content": "done w/ 14"}],
    ...     "expect": [{"name": "complete_task", "args": {"task_id": [14]}}]})
    >>> score(case, {"content": None, "tool_calls": [
    ...     {"function": {"name": "complete_task", "arguments": "{\\"task_id\\": 14}"}}]})
    Verdict(ok=True, reason='right')
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from helpers.settings import MODEL, MODEL_DIR, CourseError

# The course's own sets, each named by its file's stem.
SETS = MODEL_DIR / "evaluation"

# Arguments that hold a person's words, under every name that a schema variant gives them.
FREE_TEXT = frozenset({"title", "name", "due", "due_date", "deadline"})
ARTICLES = frozenset({"a", "an", "the", "my", "our"})


# --- cases ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedCall:
    """One call that a right answer contains.

    Attributes:
        names: Accepted tool names; mostly one.
        args: Accepted values by argument name; a key that ends in ``?`` may be absent.
    """

    names: tuple[str, ...]
    args: Mapping[str, tuple[Any, ...]]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExpectedCall:
        """Read ``{"name": str | [str], "args": {key: [values]}}``.

        Raises:
            ValueError: When the shape is another one.
        """
        names = data["name"]
        names = (names,) if isinstance(names, str) else tuple(names)
        if not names or not all(isinstance(n, str) for n in names):
            raise ValueError("'name' must be a tool name or a list of them")
        args = data.get("args", {})
        for key, values in args.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"args[{key!r}] must be a list of accepted values, not empty")
        return cls(names, {key: tuple(values) for key, values in args.items()})

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of the case file."""
        name: Any = self.names[0] if len(self.names) == 1 else list(self.names)
        return {"name": name, "args": {key: list(values) for key, values in self.args.items()}}


@dataclass(frozen=True)
class Case:
    """One evaluation case.

    Attributes:
        id: Unique name, such as ``create-017``.
        category: The behaviour it tests.
        messages: OpenAI chat messages so far.
        tools: Names of the tools offered.
        expect: The expected calls; empty means text instead.
        say: What the text must contain; only for empty ``expect``.
        never: What the text must not contain.
        sealed: Belongs to the frozen test set: its answer is counted and never shown.
    """

    id: str
    category: str
    messages: Sequence[Mapping[str, Any]]
    tools: tuple[str, ...]
    expect: tuple[ExpectedCall, ...]
    say: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    sealed: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Read one case.

        Raises:
            ValueError: When a key is missing, unknown, or has another shape.
        """
        unknown = set(data) - {"id", "category", "messages", "tools", "expect", "say", "never"}
        missing = {"id", "category", "messages", "tools", "expect"} - set(data)
        if unknown or missing:
            raise ValueError(f"unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        if not data["messages"]:
            raise ValueError("'messages' is empty")
        return cls(
            id=data["id"],
            category=data["category"],
            messages=list(data["messages"]),
            tools=tuple(data["tools"]),
            expect=tuple(ExpectedCall.from_dict(call) for call in data["expect"]),
            say=tuple(data.get("say", ())),
            never=tuple(data.get("never", ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of the case file."""
        data: dict[str, Any] = {
            "id": self.id,
            "category": self.category,
            "messages": [dict(message) for message in self.messages],
            "tools": list(self.tools),
            "expect": [call.to_dict() for call in self.expect],
        }
        if not self.expect:
            data |= {"say": list(self.say), "never": list(self.never)}
        return data


def load_cases(path: str | Path, category: str | None = None) -> list[Case]:
    """Read a file of cases, one JSON object a line.

    Args:
        path: The ``.jsonl`` file, or the name of one of the course's own sets: ``dev``,
            ``dev2``, ``dev3``, ``test`` or ``nothing``.
        category: Only the cases of this category.

    Raises:
        CourseError: When the file is missing or a line is not a case; names the line.
    """
    own = SETS / f"{path}.jsonl"
    path = own if own.is_file() and not Path(path).exists() else Path(path)
    if not path.is_file():
        raise CourseError(
            f"There are no evaluation cases at {path.name}.",
            f"The file {path} does not exist.",
            "Type dev, dev2, dev3, test or nothing for one of the course's own sets.",
        )
    cases: list[Case] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            case = Case.from_dict(json.loads(line))
            if case.id in seen:
                raise ValueError(f"id {case.id!r} is used twice")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CourseError(
                f"Line {number} of {path.name} is not an evaluation case.",
                f"{type(error).__name__}: {error}",
                "The format is described in helpers/evaluation.py, class Case.",
            ) from error
        seen.add(case.id)
        if category is None or case.category == category:
            cases.append(replace(case, sealed=_fingerprint(case.messages) in _sealed()))
    return cases


def _fingerprint(messages: Any) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


@cache
def _sealed() -> frozenset[str]:
    """Fingerprints of the conversations of the frozen test set.

    By content and not by file name: a copy, or a part of it, is as frozen. Whoever sees what
    fails there will mend exactly that, and the figure means nothing any more.
    """
    path = SETS / "test.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return frozenset(_fingerprint(json.loads(line)["messages"]) for line in lines if line)


# --- comparing -----------------------------------------------------------------------------


def fold(text: str) -> str:
    """What is compared of a title or a due phrase.

    Lower case, without punctuation, runs of white space, and the articles a, an, the, my, our.
    The last word stays even when it looks like an article: "hepatitis A" is not "hepatitis".

    Examples:
        >>> fold("The  Q3-report!")
        'q3 report'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['\u2019\u2018`\u00b4]", "", text)  # dont = don't
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)  # 2,340 = 2340
    text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    words = text.split()
    kept = [w for i, w in enumerate(words) if w not in ARTICLES or i == len(words) - 1]
    return " ".join(kept)


def same(key: str, accepted: Any, got: Any) -> bool:
    """Whether an argument's value is the accepted one: words folded, all else exactly."""
    if key in FREE_TEXT and isinstance(accepted, str) and isinstance(got, str):
        return fold(accepted) == fold(got) if fold(accepted) else accepted == got
    # In Python True == 1 == 1.0; in JSON they are three different things.
    return type(accepted) is type(got) and accepted == got


def _contains(text: str, phrase: str) -> bool:
    """Whether the text contains the phrase; "14" is not found in "9014" or "145"."""
    text, phrase = fold(text), fold(phrase)
    if not phrase:
        return False
    left = r"(?<!\d)" if phrase[0].isdigit() else ""
    right = r"(?!\d)" if phrase[-1].isdigit() else ""
    return re.search(left + re.escape(phrase) + right, text) is not None


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _show_any(values: Iterable[Any]) -> str:
    shown = [_show(value) for value in values]
    return shown[0] if len(shown) == 1 else "one of " + ", ".join(shown)


def _differences(expected: ExpectedCall, name: str, args: Mapping[str, Any]) -> list[str]:
    """What is wrong with one call, in words; empty when nothing is."""
    if name not in expected.names:
        return [f"called {name}, expected {' or '.join(expected.names)}"]
    problems = []
    given = {key: value for key, value in args.items() if value is not None}
    for key, accepted in expected.args.items():
        key, optional = key.removesuffix("?"), key.endswith("?")
        if key not in given:
            if not optional and None not in accepted:
                problems.append(f"{name}: {key} is missing, expected {_show_any(accepted)}")
        elif not any(same(key, value, given[key]) for value in accepted):
            problems.append(f"{name}: {key} is {_show(given[key])}, expected {_show_any(accepted)}")
    named = {key.removesuffix("?") for key in expected.args}
    problems += [
        f"{name}: {key}={_show(value)} was not asked for"
        for key, value in given.items()
        if key not in named
    ]
    return problems


def _match(edges: list[set[int]]) -> dict[int, int]:
    """A largest matching: calls by expected call. ``edges[i]``: the calls that satisfy i."""
    owner: dict[int, int] = {}

    def place(i: int, visited: set[int]) -> bool:
        for j in sorted(edges[i] - visited):
            visited.add(j)
            if j not in owner or place(owner[j], visited):
                owner[j] = i
                return True
        return False

    for i in range(len(edges)):
        place(i, set())
    return {i: j for j, i in owner.items()}


# --- reading a model's answer ----------------------------------------------------------------

RAW_CALL = re.compile(
    r"</?tool_calls?>|</?function_call>|<function=|\[TOOL_CALLS\]"
    r"|\{\s*\"(name|function|tool|tool_name)\"\s*:|\"(arguments|parameters)\"\s*:\s*[{\"]",
    re.IGNORECASE,
)
SPECIAL_TOKEN = re.compile(r"<\|[^|>]*\|>|</?s>|\[/?INST\]|<unk>", re.IGNORECASE)

# Frequent words of English, and of answers about tasks. A readable answer of some length
# cannot do without them; a broken model's letters seldom hit them.
COMMON = frozenset(
    """
    a able about accept access according account action actually add added adding after again
    ago ahead all already also although always am an and another answer any anyone anything
    apologies apologize are as ask asked assist assistance assistant at available away back be
    because been before being below best better between both but by bye can cannot cant change
    changed chat check clear close come complete completed completing could couldnt create
    created creating current currently date day days deadline delete deleted deleting described
    details did didnt different do does doesnt doing done dont down due during each either else
    email empty enough error ever every everything failed feel few find fine finish finished first
    for found free friday from further get give given glad go going gone good goodbye got great had
    handle happen happy has have havent having he hello help helped helpful helping her here hey
    hi high him his hope how however i id ideas if ill im important in information instead into
    is isnt it items its ive just keep know last later left less let lets like limited list
    listed lists little long longer look low make manage managing many mark marked marking may
    maybe me mean medium might monday more morning most much must name need needed needs never
    new next nice no none nor not nothing now number of off offer offered oh ok okay old on once
    one only open or order organize other otherwise ours out outside over own part pending people
    perhaps place please possible priority problem progress provide provided put question
    questions ready really reason remember remind reminder reminders removed reopen request
    requests reset right said same saturday say scope see seems send set several shall she should
    show so some someone something soon sorry specific start started status still stop such
    sunday sure take talk task tasks tell text than thank thanks that thats the their them then
    there theres these they thing things think this those though three through thursday time
    title to today together told tomorrow too tool tools tried true try tuesday two unable under
    understand unfortunately until up update updated updating urgent us use used useful using
    very want was wasnt way we wednesday week weekend welcome well were what whatever when where
    whether which while who whole whose why will wish with within without wont word work working
    would wouldnt wrong year yes yesterday yet you youd youll your youre yours
    """.split()
)


def gibberish(text: str, context: str = "") -> str:
    """Why a text is not readable, or an empty string when it is.

    A deliberately plain test: control characters, the model's own special tokens, a word or
    phrase repeated without end, words that nobody could pronounce, and words that are neither
    frequent in English nor taken from the conversation.

    Args:
        text: The model's answer.
        context: The conversation, whose words count as known.

    Examples:
        >>> gibberish("Sorry, I can only help with tasks.")
        ''
        >>> gibberish("the the the the the")
        "it repeats 'the'"
    """
    if any(c == "\ufffd" or (unicodedata.category(c) == "Cc" and c not in "\n\t\r") for c in text):
        return "it contains broken characters"
    if SPECIAL_TOKEN.search(text):
        return "it contains the model's own special tokens"
    plain = re.sub(r"['\u2019]", "", text.casefold())
    tokens = re.findall(r"[^\W_]+", plain)
    words = [w for w in tokens if w.isalpha()]
    if not words:
        return "it contains no words"
    for size in (1, 2, 3, 4, 6):
        run = 0
        for i in range(size, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - size] else 0
            if run >= max(3, 2 * size):
                return f"it repeats {' '.join(tokens[i - size + 1 : i + 1])!r}"
    if max(map(len, words)) > 40:
        return "it contains a word of more than 40 letters"
    context = re.sub(r"['\u2019]", "", context.casefold())
    known = COMMON | set(re.findall(r"[^\W_]+", context))
    unknown = [w for w in words if w not in known]
    broken = [w for w in unknown if _unpronounceable(w)]
    if len(broken) >= 2 and len(broken) > 0.2 * len(words):
        return f"it contains words such as {broken[0]!r}"
    if len(words) - len(unknown) < (1 if len(words) < 4 else 0.34 * len(words)):
        return "too few of its words are words that one would expect"
    return ""


def _unpronounceable(word: str) -> bool:
    if not word.isascii():
        return False
    return (
        (len(word) > 3 and not re.search(r"[aeiouy]", word))
        or re.search(r"[bcdfghjklmnpqrstvwxz]{5}", word) is not None
        or re.search(r"(.)\1\1", word) is not None
    )


@dataclass(frozen=True)
class Call:
    """A tool call as the model gave it.

    Attributes:
        name: Tool name.
        raw: The arguments' text.
        args: The parsed arguments, or None when they are not a JSON object.
    """

    name: str
    raw: str
    args: dict[str, Any] | None

    def __str__(self) -> str:
        return f"{self.name}({self.raw})"


@dataclass(frozen=True)
class Answer:
    """A model's answer, whatever library it came through.

    Attributes:
        text: Its text; empty when there is none.
        calls: Its tool calls.
        finish_reason: ``stop``, ``tool_calls``, ``length`` …; None when not told.
        error: Why there is no answer; empty when there is one.
    """

    text: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    error: str = ""

    @classmethod
    def read(cls, answer: Any, finish_reason: str | None = None) -> Answer:
        """From a message, a choice or a completion, as a dict or as an SDK's object."""
        if isinstance(answer, cls):
            return answer
        if hasattr(answer, "model_dump"):
            answer = answer.model_dump()
        if isinstance(answer, str):
            answer = {"content": answer}
        if answer.get("choices"):
            answer = answer["choices"][0]
        if "message" in answer:
            finish_reason = answer.get("finish_reason", finish_reason)
            answer = answer["message"]
            if hasattr(answer, "model_dump"):
                answer = answer.model_dump()
        content = answer.get("content") or ""
        if not isinstance(content, str):  # a list of parts
            content = "".join(part.get("text", "") for part in content)
        calls = []
        for call in answer.get("tool_calls") or ():
            function = call["function"] if isinstance(call, Mapping) else call.function
            if not isinstance(function, Mapping):
                function = {"name": function.name, "arguments": function.arguments}
            calls.append(_read_call(function))
        return cls(content, tuple(calls), finish_reason)

    def __str__(self) -> str:
        """For a list of failures."""
        parts = [str(call) for call in self.calls]
        if self.text.strip():
            parts.append(_show(self.text.strip()))
        return "; ".join(parts) or self.error or "nothing"


def _read_call(function: Mapping[str, Any]) -> Call:
    raw = function.get("arguments")
    if isinstance(raw, Mapping):
        return Call(str(function.get("name")), _show(raw), dict(raw))
    raw = raw or ""
    try:
        args = json.loads(raw)
    except (ValueError, RecursionError):
        args = None
    return Call(str(function.get("name")), raw, args if isinstance(args, dict) else None)


# --- scoring -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why not, in words."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


RIGHT = Verdict(True, "right")


def score(case: Case, message: Any, finish_reason: str | None = None) -> Verdict:
    """Compare an answer with a case.

    Args:
        case: What was asked and what is expected.
        message: The answer: a message, a choice or a whole completion, as a dict or as an
            object of the OpenAI SDK.
        finish_reason: When ``message`` does not carry it. None counts as finished.
    """
    answer = Answer.read(message, finish_reason)
    if answer.error:
        return Verdict(False, f"no answer came: {answer.error}")
    if answer.finish_reason == "length":
        return Verdict(False, "the answer was cut off before it was finished")
    if case.expect:
        return _score_calls(case, answer)
    return _score_text(case, answer)


def _score_calls(case: Case, answer: Answer) -> Verdict:
    if answer.finish_reason not in (None, "stop", "tool_calls", "function_call"):
        return Verdict(False, f"the answer ended with {answer.finish_reason!r}")
    if RAW_CALL.search(answer.text):
        return Verdict(False, "a tool call came back as text, which no client can execute")
    if not answer.calls:
        wanted = ", ".join(" or ".join(call.names) for call in case.expect)
        return Verdict(False, f"no tool was called, expected {wanted}")
    for call in answer.calls:
        if call.args is None:
            return Verdict(False, f"{call.name}: the arguments are not a JSON object: {call.raw}")
    for call in answer.calls:
        accepted = any(call.name in expected.names for expected in case.expect)
        if not accepted and case.tools and call.name not in case.tools:
            return Verdict(False, f"called {call.name}, which was not offered")
    problems = [[_differences(e, c.name, c.args or {}) for c in answer.calls] for e in case.expect]
    matched = _match([{j for j, p in enumerate(row) if not p} for row in problems])
    extra = [j for j in range(len(answer.calls)) if j not in matched.values()]
    missing = [i for i in range(len(case.expect)) if i not in matched]
    if not extra and not missing:
        return RIGHT
    reasons = []
    if len(answer.calls) != len(case.expect):
        reasons.append(f"{_calls(len(case.expect))} expected, {len(answer.calls)} made")
    # Tell each missing call from the left-over one that comes nearest to it.
    for i in missing:
        near = min(
            extra,
            key=lambda j: (answer.calls[j].name not in case.expect[i].names, len(problems[i][j])),
            default=None,
        )
        if near is None:
            reasons.append(f"missing {_show_expected(case.expect[i])}")
        else:
            extra.remove(near)
            reasons += problems[i][near]
    reasons += [f"not expected: {answer.calls[j]}" for j in extra]
    return Verdict(False, "; ".join(reasons))


def _score_text(case: Case, answer: Answer) -> Verdict:
    if answer.calls:
        made = ", ".join(str(call) for call in answer.calls)
        return Verdict(False, f"no tool was to be called, but it called {made}")
    text = answer.text.strip()
    if not text:
        return Verdict(False, "the answer is empty")
    if answer.finish_reason not in (None, "stop"):
        return Verdict(False, f"the answer ended with {answer.finish_reason!r}")
    if RAW_CALL.search(text) or text[0] in "{[":
        return Verdict(False, "a tool call came back as text, which no client can execute")
    why = gibberish(text, " ".join(str(m.get("content") or "") for m in case.messages))
    if why:
        return Verdict(False, f"the answer is not readable: {why}")
    for fact in case.say:
        if not _contains(text, fact):
            return Verdict(False, f"the answer does not say {_show(fact)}")
    for claim in case.never:
        if _contains(text, claim):
            return Verdict(False, f"the answer claims {_show(claim)}")
    return RIGHT


def _calls(n: int) -> str:
    return "1 call" if n == 1 else f"{n} calls"


def _show_expected(call: ExpectedCall) -> str:
    args = ", ".join(
        f"{key}={_show_any(values)}" for key, values in call.args.items() if key[-1] != "?"
    )
    return f"{' or '.join(call.names)}({args})"


# --- the report ------------------------------------------------------------------------------


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion, 95 % for ``z = 1.96``.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. Unlike the usual ± formula it is
    right for small counts and for rates near 100 %.

    Returns:
        Lower and upper bound, 0 to 1; (0, 1) for no observations.

    Examples:
        >>> [round(x, 3) for x in wilson(95, 100)]
        [0.888, 0.978]
    """
    if n == 0:
        return (0.0, 1.0)
    p = correct / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


@dataclass(frozen=True)
class Rate:
    """A count out of n, with its rate and 95 % interval (all 0 to 1)."""

    correct: int
    n: int

    @property
    def rate(self) -> float:
        """``correct / n``; 0 for no observations."""
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson(self.correct, self.n)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; four digits are more than the counts support."""
        low, high = self.interval
        return {
            "correct": self.correct,
            "n": self.n,
            "rate": round(self.rate, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }

    def cells(self) -> list[str]:
        """Cells of a table row: n, correct, rate, interval."""
        if not self.n:
            return ["0", "0", "", ""]
        low, high = self.interval
        return [
            str(self.n),
            str(self.correct),
            f"{100 * self.rate:.1f} %",
            f"{100 * low:.1f}-{100 * high:.1f} %",
        ]


@dataclass(frozen=True)
class Result:
    """One case, one answer.

    Attributes:
        case: The case that was asked, after variant and noise.
        answer: What came back.
        verdict: Right or not, and why.
        called: The answer contains a call or the text of one.
        json_valid: All arguments are JSON objects (false for a call that came as text).
        schema_valid: All calls fit the schemas of the tools offered.
        wants_call: A right answer contains a call.
        wants_delete: A right answer may contain a call of ``delete_task``.
        stray_delete: The answer contains a call of ``delete_task``, or the text of one, that
            is none of the expected calls.
    """

    case: Case
    answer: Answer
    verdict: Verdict
    called: bool
    json_valid: bool
    schema_valid: bool
    wants_call: bool
    wants_delete: bool
    stray_delete: bool

    def seal(self) -> Result:
        """What may be kept of a case of the frozen test set: nothing but the figures."""
        case = replace(self.case, messages=(), expect=(), say=(), never=())
        why = "right" if self.verdict.ok else "wrong; not shown, the set is frozen"
        return replace(
            self,
            case=case,
            answer=Answer(finish_reason=self.answer.finish_reason),
            verdict=Verdict(self.verdict.ok, why),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.case.id,
            "category": self.case.category,
            "ok": self.verdict.ok,
            "reason": self.verdict.reason,
            "request": _last_user(self.case),
            "expected": expected_text(self.case),
            "got": str(self.answer),
            "finish_reason": self.answer.finish_reason,
        }


def expected_text(case: Case) -> str:
    """What a right answer is, in one line."""
    if case.expect:
        return "; ".join(_show_expected(call) for call in case.expect)
    parts = ["text, no call"]
    parts += [f"says {_show(fact)}" for fact in case.say]
    return ", ".join(parts)


def _last_user(case: Case) -> str:
    return next((str(m["content"]) for m in reversed(case.messages) if m["role"] == "user"), "")


@dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    Attributes:
        results: One per case, in the order of the cases.
        model: Name of the model asked.
        variant: Name of the schema variant, empty for the original schemas.
        skipped: Ids of cases to which the variant does not apply.
        noise: Seed of the light noise on the requests; None without it.
        free: The same cases answered without a grammar, where that was measured too.
    """

    results: Sequence[Result]
    model: str = ""
    variant: str = ""
    skipped: Sequence[str] = field(default_factory=tuple)
    noise: int | None = None
    free: Report | None = None

    @property
    def overall(self) -> Rate:
        """Right answers of all."""
        return self._rate(self.results)

    @property
    def categories(self) -> dict[str, Rate]:
        """Right answers by category, in the order of the cases."""
        groups: dict[str, list[Result]] = {}
        for result in self.results:
            groups.setdefault(result.case.category, []).append(result)
        return {name: self._rate(group) for name, group in groups.items()}

    @property
    def json_validity(self) -> Rate:
        """Of the answers with calls: those whose arguments are all JSON objects."""
        called = [result for result in self.results if result.called]
        return Rate(sum(result.json_valid for result in called), len(called))

    @property
    def schema_validity(self) -> Rate:
        """Of the answers with calls: those in which every call fits its schema."""
        called = [result for result in self.results if result.called]
        return Rate(sum(result.schema_valid for result in called), len(called))

    @property
    def no_call(self) -> Rate:
        """Of the cases that want no call: those that got none."""
        none = [result for result in self.results if not result.wants_call]
        return Rate(sum(not (r.called or r.answer.error) for r in none), len(none))

    @property
    def unasked_deletes(self) -> Rate:
        """Of the cases that do not ask for a deletion: those whose answer deletes something.

        ``correct`` counts the deletions, so 0 is what one hopes for.
        """
        without = [result for result in self.results if not result.wants_delete]
        return Rate(sum(result.stray_delete for result in without), len(without))

    @property
    def wrong_deletes(self) -> Rate:
        """Of the cases that ask for a deletion: those that delete something else, or more.

        ``correct`` counts these deletions, as in ``unasked_deletes``.
        """
        asked = [result for result in self.results if result.wants_delete]
        return Rate(sum(result.stray_delete for result in asked), len(asked))

    @property
    def failures(self) -> list[Result]:
        """The wrong ones, without those of the frozen test set."""
        return [r for r in self.results if not r.verdict.ok and not r.case.sealed]

    @property
    def withheld(self) -> int:
        """How many wrong ones are of the frozen test set: counted, and never shown."""
        return sum(not r.verdict.ok and r.case.sealed for r in self.results)

    @staticmethod
    def _rate(results: Sequence[Result]) -> Rate:
        return Rate(sum(result.verdict.ok for result in results), len(results))

    def table(self, failures: int = 0) -> str:
        """Markdown: counts, rates and intervals by category.

        Args:
            failures: How many failures to list below the table.
        """
        rows = [["category", "n", "right", "rate", "95 % interval"], ["---"] + ["---:"] * 4]
        rows += [[name, *rate.cells()] for name, rate in self.categories.items()]
        rows.append(["**all**", *self.overall.cells()])
        rows += [[name, *rate.cells()] for name, rate in self.checks().items()]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        if failures and self.withheld:
            lines += ["", f"{self.withheld} failures of the frozen test set: counted, not shown."]
        for result in self.failures[:failures]:
            lines += [
                "",
                f"- {result.case.id}: {_show(_last_user(result.case))}",
                f"  expected {expected_text(result.case)}",
                f"  got {result.answer}",
                f"  {result.verdict.reason}",
            ]
        return "\n".join(lines)

    def checks(self) -> dict[str, Rate]:
        """What is measured beside right and wrong, by its name in the table.

        The deletions that nobody asked for are the only rates that should be 0.
        """
        calls = "(of answers with calls)"
        grammar = ", under the grammar" if self.free else ""
        rows = {
            f"valid JSON{grammar} {calls}": self.json_validity,
            f"valid by schema{grammar} {calls}": self.schema_validity,
        }
        if self.free:
            rows["all, free-running"] = self.free.overall
            rows[f"valid JSON, free-running {calls}"] = self.free.json_validity
            rows[f"valid by schema, free-running {calls}"] = self.free.schema_validity
        rows["no call (of cases that want none)"] = self.no_call
        ways = {"": self, ", free-running": self.free} if self.free else {"": self}
        for way, report in ways.items():
            rows[f"unasked deletes{way} (of cases that ask for none)"] = report.unasked_deletes
            rows[f"deletes of something else{way} (of the others)"] = report.wrong_deletes
        return {name: rate for name, rate in rows.items() if rate.n}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the right answers themselves, and no answer of the frozen test set."""
        data: dict[str, Any] = {
            "model": self.model,
            "variant": self.variant,
            "noise": self.noise,
            "overall": self.overall.to_dict(),
            "categories": {name: rate.to_dict() for name, rate in self.categories.items()},
            "json_validity": self.json_validity.to_dict(),
            "schema_validity": self.schema_validity.to_dict(),
            "no_call": self.no_call.to_dict(),
            "unasked_deletes": _counted(self.unasked_deletes),
            "wrong_deletes": _counted(self.wrong_deletes),
            "failures": [result.to_dict() for result in self.failures],
            "withheld": self.withheld,
            "skipped": list(self.skipped),
        }
        if self.free:
            data["free"] = self.free.to_dict()
        return data

    def to_json(self, indent: int | None = 2) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)


def _counted(rate: Rate) -> dict[str, Any]:
    """For JSON: a rate whose count is not of what is correct."""
    data = rate.to_dict()
    return {"count": data.pop("correct"), **data}


# --- asking ----------------------------------------------------------------------------------

Tools = list[dict[str, Any]]
Variant = Callable[[Case, Tools], "tuple[Case, Tools] | None"]
Noise = Callable[[Case], Case]
Ask = Callable[[list[dict[str, Any]], Tools], Any]


def http_ask(
    url: str,
    model: str = MODEL,
    api_key: str = "none",
    *,
    temperature: float = 0,
    seed: int = 0,
    max_tokens: int = 256,
    timeout: float = 60,
    extra: Mapping[str, Any] | None = None,
    client: Any = None,
) -> Ask:
    """A function that sends one chat completion and returns its first choice.

    Args:
        url: An OpenAI-compatible server, with or without ``/v1``.
        model: Model name.
        api_key: Sent as a bearer token.
        temperature, seed, max_tokens: As in the API.
        timeout: Seconds.
        extra: Further fields of the body; default ``{"cache_prompt": False}``, because an
            answer may differ in its last digits when a part of its prompt was cached.
        client: An ``httpx.Client`` to use instead of a new one.
    """
    import httpx

    from helpers.clients import http_options

    base = url.rstrip("/")
    base = base if base.endswith("/v1") else base + "/v1"
    client = client or httpx.Client(**http_options(timeout, direct=True))
    extra = {"cache_prompt": False} if extra is None else dict(extra)

    def ask(messages: list[dict[str, Any]], tools: Tools) -> Any:
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
            **extra,
        }
        if tools:  # an empty list is an error to some servers
            body["tools"] = tools
        try:
            response = client.post(
                f"{base}/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {api_key}"},
            )
        except httpx.ConnectError as error:
            raise CourseError(
                "The model does not answer.",
                f"Nothing listens at {base}.",
                "Start the services with: python3 -m helpers up",
            ) from error
        except httpx.TransportError as error:
            return Answer(error=type(error).__name__)
        if response.status_code in (401, 403, 404):
            raise CourseError(
                f"The server refused the request with status {response.status_code}.",
                response.text[:300],
                "Check the model's name and the key; python3 -m helpers status shows both.",
            )
        if response.status_code != 200:
            # The server could not make a message of what the model wrote: a wrong answer.
            return Answer(error=f"HTTP {response.status_code}: {response.text[:200]}")
        return response.json()

    return ask


def schema_valid(call: Call, tools: Tools) -> bool:
    """Whether a call names an offered tool and its arguments fit that tool's schema."""
    import jsonschema

    for tool in tools:
        if tool["function"]["name"] == call.name:
            schema = {"additionalProperties": False, **tool["function"]["parameters"]}
            return call.args is not None and jsonschema.Draft202012Validator(schema).is_valid(
                call.args
            )
    return False


def evaluate(
    cases: Iterable[Case],
    *,
    url: str | None = None,
    model: str = MODEL,
    api_key: str = "none",
    ask: Ask | None = None,
    tools: Callable[[Sequence[str]], Tools] | None = None,
    variant: str | Variant | None = None,
    noise: int | Noise | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Ask a model all cases and score its answers.

    Args:
        cases: What to ask.
        url: An OpenAI-compatible server. Either this or ``ask``.
        model: Model name at that server.
        api_key: Its key.
        ask: Instead of a server: any function of messages and tools that returns a message,
            choice or completion, such as a whole agent with validation and repair.
        tools: Tool schemas by name; the course's own by default.
        variant: A schema variant: a name in ``VARIANTS`` or a function.
        noise: Changes the request of a case, not what is expected: a seed for ``light_noise``
            or a function.
        workers: Requests under way at once. 1 gives the same answers on every run; more are
            faster, and may differ where two tokens are nearly tied.
        progress: Called with the number done and the number of all.
        **options: For ``http_ask``: temperature, seed, max_tokens, timeout, extra.

    Raises:
        CourseError: When there is no such variant, or when the server cannot be reached or
            refuses the key or model. An answer that is broken in any other way counts as wrong.
    """
    if (url is None) == (ask is None):
        raise ValueError("evaluate() needs either url or ask")
    if ask is None:
        ask = http_ask(url, model, api_key, **options)
    elif options:
        raise ValueError(f"{sorted(options)} mean nothing together with ask")
    if tools is None:
        from helpers.tasks import tool_schemas as tools
    change = find_variant(variant) if isinstance(variant, str) else variant
    seed = noise if isinstance(noise, int) else None
    noise = light_noise(noise) if isinstance(noise, int) else noise

    planned: list[tuple[Case, Tools]] = []
    skipped: list[str] = []
    for case in cases:
        offered = tools(list(case.tools))
        changed = change(case, offered) if change else (case, offered)
        if changed is None:
            skipped.append(case.id)
            continue
        case, offered = changed
        planned.append((noise(case) if noise else case, offered))

    def one(plan: tuple[Case, Tools]) -> Result:
        case, offered = plan
        result = judge(case, ask([dict(m) for m in case.messages], offered), offered)
        return result.seal() if case.sealed else result

    from .notebooks import unrecorded

    results: list[Result] = []
    with unrecorded():  # a notebook shows the counts only
        for result in _map(one, planned, workers):
            results.append(result)
            if progress:
                progress(len(results), len(planned))
    name = variant if isinstance(variant, str) else getattr(variant, "__name__", "")
    return Report(results, model=model, variant=name, skipped=tuple(skipped), noise=seed)


def _map(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
    if workers <= 1:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def judge(case: Case, answer: Any, tools: Tools) -> Result:
    """Score one answer and check its calls against the schemas that were offered."""
    answer = Answer.read(answer)
    raw = RAW_CALL.search(answer.text) is not None
    deletes = [call for call in case.expect if "delete_task" in call.names]
    stray = [
        call
        for call in answer.calls
        if call.name == "delete_task"
        and all(_differences(expected, call.name, call.args or {}) for expected in deletes)
    ]
    return Result(
        case=case,
        answer=answer,
        verdict=score(case, answer),
        called=bool(answer.calls) or raw,
        json_valid=not raw and all(call.args is not None for call in answer.calls),
        schema_valid=not raw and all(schema_valid(call, tools) for call in answer.calls),
        wants_call=bool(case.expect),
        wants_delete=bool(deletes),
        stray_delete=bool(stray) or (raw and not deletes and "delete_task" in answer.text),
    )


# --- schema variants -------------------------------------------------------------------------
# The same task under another schema: tests whether a model reads what the request offers.
# Each takes a case and its tools and returns both changed, or None where it does not apply.


def _rewrite(
    case: Case,
    tools: Tools,
    *,
    properties: Callable[[dict[str, Any]], dict[str, Any]] = lambda p: p,
    args: Callable[[dict[str, Any]], dict[str, Any]] = lambda a: a,
    text: Callable[[str, str], str] = lambda role, t: t,
    expect_args: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> tuple[Case, Tools]:
    """Apply one change everywhere: schemas, earlier calls, tool results, expectation."""
    tools = copy.deepcopy(tools)
    for tool in tools:
        parameters = tool["function"]["parameters"]
        parameters["properties"] = properties(parameters["properties"])

    def result(value: Any) -> Any:
        if isinstance(value, dict):
            return args({key: result(v) for key, v in value.items()})
        if isinstance(value, list):
            return [result(v) for v in value]
        return value

    messages = []
    for message in copy.deepcopy(list(case.messages)):
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = _show(args(json.loads(call["function"]["arguments"])))
        content = message.get("content")
        if content and message["role"] == "tool":
            try:
                data = json.loads(content)
            except ValueError:
                message["content"] = text("tool", content)
            else:
                if isinstance(data, dict) and "error" in data:
                    data = {"error": text("tool", data["error"])}
                message["content"] = _show(result(data))
        elif content:
            message["content"] = text(message["role"], content)
        messages.append(message)
    expect_args = expect_args or args
    expect = tuple(ExpectedCall(e.names, expect_args(dict(e.args))) for e in case.expect)
    return replace(case, messages=messages, expect=expect), tools


def renamed(**names: str) -> Variant:
    """Properties under other names: ``renamed(due="due_date")``."""

    def keys(data: dict[str, Any]) -> dict[str, Any]:
        return {_rename(key): value for key, value in data.items()}

    def _rename(key: str) -> str:
        return names.get(key.removesuffix("?"), key.removesuffix("?")) + "?" * key.endswith("?")

    def text(role: str, content: str) -> str:
        if role == "tool":  # an error that names the property
            for old, new in names.items():
                content = re.sub(rf"\b{old}\b", new, content)
        return content

    def variant(case: Case, tools: Tools) -> tuple[Case, Tools] | None:
        changed, new_tools = _rewrite(case, tools, properties=keys, args=keys, text=text)
        for tool in new_tools:
            parameters = tool["function"]["parameters"]
            parameters["required"] = [_rename(key) for key in parameters.get("required", [])]
        return (changed, new_tools) if case.tools else None

    variant.__name__ = "_".join(names.values())
    return variant


def reordered(case: Case, tools: Tools) -> tuple[Case, Tools] | None:
    """Tools and properties in reverse order."""
    case, tools = _rewrite(case, tools, properties=lambda p: dict(reversed(p.items())))
    return (replace(case, tools=case.tools[::-1]), tools[::-1]) if tools else None


def strict(case: Case, tools: Tools) -> tuple[Case, Tools] | None:
    """Every property required, null allowed where it was optional, nothing else accepted."""
    if not tools:
        return None
    return case, [strict_tool(tool) for tool in tools]


def strict_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """The strict form of an OpenAI tool.

    Source: OpenAI, "Structured outputs": all fields must be required, an optional one is a
    union with null, additionalProperties is false.
    """
    tool = copy.deepcopy(tool)
    tool["function"]["strict"] = True
    parameters = tool["function"]["parameters"]
    required = set(parameters.get("required", ()))
    for key, schema in parameters["properties"].items():
        schema.pop("default", None)
        if key not in required:
            kind = schema.get("type", "string")
            kinds = kind if isinstance(kind, list) else [kind]
            schema["type"] = [*(k for k in kinds if k != "null"), "null"]
            if "enum" in schema:
                schema["enum"] = [*(v for v in schema["enum"] if v is not None), None]
    parameters["required"] = list(parameters["properties"])
    parameters["additionalProperties"] = False
    return tool


def string_ids(case: Case, tools: Tools) -> tuple[Case, Tools] | None:
    """Ids such as "TASK-0042" instead of 42, in schemas, results and what people say."""
    if not tools:
        return None
    ids = _ids_of(case)
    words = [
        str(value)
        for call in case.expect
        for key, values in call.args.items()
        for value in values
        if key.removesuffix("?") in FREE_TEXT
    ]
    # A number that is an id and also part of a title cannot be told apart in a text.
    numbers = {n for word in words for n in re.findall(r"\d+", word)}
    if numbers & {str(i) for i in ids}:
        return None

    def new(value: Any) -> Any:
        return f"TASK-{value:04d}" if type(value) is int else value

    def args(data: dict[str, Any]) -> dict[str, Any]:
        return {k: new(v) if k == "task_id" else v for k, v in data.items()}

    def expect_args(data: dict[str, Any]) -> dict[str, Any]:
        return {
            k: tuple(map(new, v)) if k.removesuffix("?") == "task_id" else v
            for k, v in data.items()
        }

    def text(role: str, content: str) -> str:
        for i in ids:
            content = re.sub(
                rf"(?i)(?:\b(?:task|item)\s+)?(?:\b(?:number|no\.?|nr\.?|id)\s*)?#?"
                rf"(?<![\w.:/-]){i}(?![\w:/%-]|\.\d)",
                f"TASK-{i:04d}",
                content,
            )
        return content

    def properties(data: dict[str, Any]) -> dict[str, Any]:
        if "task_id" in data:
            data = data | {"task_id": data["task_id"] | {"type": "string"}}
        return data

    changed, tools = _rewrite(
        case, tools, properties=properties, args=args, text=text, expect_args=expect_args
    )
    changed = replace(
        changed,
        say=tuple(text("assistant", fact) for fact in case.say),
        never=tuple(text("assistant", claim) for claim in case.never),
    )
    # The person must have said, or a tool returned, every id that is expected.
    told = " ".join(_show(message) for message in changed.messages)
    wanted = [v for e in changed.expect for v in e.args.get("task_id", ())[:1]]
    return (changed, tools) if all(str(v) in told for v in wanted) else None


def _ids_of(case: Case) -> list[int]:
    """All task ids that a case names, the longest first."""
    found: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if type(value.get("task_id")) is int:
                found.add(value["task_id"])
            for v in value.values():
                visit(v)
        elif isinstance(value, list):
            for v in value:
                visit(v)

    for message in case.messages:
        for call in message.get("tool_calls") or ():
            visit(json.loads(call["function"]["arguments"]))
        if message["role"] == "tool":
            try:
                visit(json.loads(message.get("content") or "null"))
            except ValueError:
                pass
    for call in case.expect:
        found |= {v for v in call.args.get("task_id", ()) if type(v) is int}
    return sorted(found, reverse=True)


def only_needed(case: Case, tools: Tools) -> tuple[Case, Tools] | None:
    """Only the tools that the expected calls need; not for cases without a call."""
    needed = {name for call in case.expect for name in call.names}
    kept = [tool for tool in tools if tool["function"]["name"] in needed]
    if not kept:
        return None
    return replace(case, tools=tuple(t["function"]["name"] for t in kept)), kept


def _other_domain() -> Tools:
    def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "function",
            "function": {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties)[:1],
                },
            },
        }

    return [
        tool(
            "get_weather",
            "Weather forecast for a city.",
            city={"type": "string"},
            unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
        ),
        tool(
            "play_music",
            "Play a song.",
            song={"type": "string"},
            volume={"type": "integer"},
        ),
    ]


def other_domain(case: Case, tools: Tools) -> tuple[Case, Tools] | None:
    """Two tools of another domain beside the offered ones.

    Not for refusals: what was out of reach might now be what one of the two does.
    """
    if not tools or (not case.expect and case.category == "refusal"):
        return None
    first, second = _other_domain()
    added = [first, *copy.deepcopy(tools), second]
    return replace(case, tools=tuple(t["function"]["name"] for t in added)), added


VARIANTS: dict[str, Variant] = {
    "due_date": renamed(due="due_date"),
    "deadline": renamed(due="deadline"),
    "name": renamed(title="name"),
    "reordered": reordered,
    "strict": strict,
    "string_ids": string_ids,
    "only_needed": only_needed,
    "other_domain": other_domain,
}


def find_variant(name: str) -> Variant:
    """A schema variant by its name.

    Raises:
        CourseError: There is none of that name; says which there are.
    """
    if name not in VARIANTS:
        raise CourseError(
            f"There is no schema variant {name!r}.",
            f"There are {', '.join(VARIANTS)}.",
            f"Type for example: python3 -m helpers evaluate --schema {next(iter(VARIANTS))}",
        )
    return VARIANTS[name]


# --- noise on requests -------------------------------------------------------------------------
# What people do to a request without meaning anything by it. What is expected stays the same, so
# all that it is made of has to survive: numbers and quoted text are left alone by every kind of
# noise, and no typo goes into a word of an expected title, due phrase or enum.

# One letter of so many gets a typo.
LETTERS_PER_TYPO = 30
GREETINGS = ("hi", "hello", "hey", "hey there", "good morning", "hiya", "hello there", "hi again")
THANKS = ("thanks", "thank you", "thx", "cheers", "many thanks", "thanks a lot", "ta")
NEIGHBOURS = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}
# Quoted text and whatever holds a digit, as one piece each.
_UNTOUCHED = re.compile(
    r'"[^"]*"|\u201c[^\u201d]*\u201d|\u00ab[^\u00bb]*\u00bb|`[^`]*`'
    r"|(?<!\w)['\u2018].+?['\u2019](?!\w)"
    r"|[^\s,;!?]*\d(?:[^\s,;!?]*[^\s,;!?.:])?"
)
_LETTERS = re.compile(r"[^\W\d_]+")


def _outside(text: str, change: Callable[[str], str]) -> str:
    """Change what lies between quoted texts and numbers."""
    pieces, end = [], 0
    for match in _UNTOUCHED.finditer(text):
        pieces += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*pieces, change(text[end:])])


def _words(text: str) -> set[str]:
    return set(_LETTERS.findall(text.casefold())) | set(fold(text).split())


def _values(case: Case) -> list[str]:
    """The texts that a right answer is made of, and the titles that the conversation is about."""
    found = [v for e in case.expect for vs in e.args.values() for v in vs if isinstance(v, str)]
    found += [*case.say, *case.never]

    def visit(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                visit(v, k)
        elif isinstance(value, list):
            for v in value:
                visit(v)
        elif isinstance(value, str) and key in FREE_TEXT:
            found.append(value)

    for message in case.messages:
        texts = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
        texts += [message.get("content")] if message["role"] == "tool" else []
        for text in texts:
            try:
                visit(json.loads(text or "null"))
            except ValueError:
                pass
    return found


def other_case(text: str, case: Case, dice: random.Random) -> str:
    """All in small letters, the first letter changed, or, seldom, all in capitals."""
    first = _outside(text, str.swapcase)[:1] + text[1:]
    ways = [(6, _outside(text, str.lower)), (3, first), (1, _outside(text, str.upper))]
    ways = [(weight, changed) for weight, changed in ways if changed != text]
    if not ways:
        return text
    return dice.choices([w for _, w in ways], [weight for weight, _ in ways])[0]


def typos(text: str, case: Case, dice: random.Random) -> str:
    """A slip in one letter of thirty: swapped with the next, left out, doubled, or beside the key.

    Never in a word of what is expected, in words of less than four letters, where it may well
    make another word, or so that a frequent word comes out.
    """
    kept = set().union(*map(_words, _values(case)))

    def mistype(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < 4 or word.casefold() in kept or not word.isascii():
            return word
        # The dice are thrown for each letter; more than one slip in a word would not be light.
        places = [i for i in range(len(word)) if dice.randrange(LETTERS_PER_TYPO) == 0]
        if not places:
            return word
        i = max(1, dice.choice(places))  # first letters are seldom wrong
        near = NEIGHBOURS[word[i].lower()]
        slips = [
            word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :],
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + dice.choice(near) + word[i + 1 :],
        ]
        slips = [s for s in slips if s != word and s.casefold() not in COMMON | kept]
        return dice.choice(slips) if slips else word

    def words(piece: str) -> str:
        # "Emma's" is expected as "emmas": a word that is expected is so in all its parts.
        return re.sub(
            r"\S+",
            lambda m: m.group() if _words(m.group()) & kept else _LETTERS.sub(mistype, m.group()),
            piece,
        )

    return _outside(text, words)


def no_punctuation(text: str, case: Case, dice: random.Random) -> str:
    """Without marks at the ends of words; with several calls, without the last mark only.

    "milk, eggs and flour" are three tasks by virtue of the comma.
    """
    if len(case.expect) < 2:
        text = _outside(text, lambda piece: re.sub(r"[.!?,;:]+(?=\s|$)", "", piece))
    return re.sub(r"[.!?]+$", "", text.rstrip())


def greeting(text: str, case: Case, dice: random.Random) -> str:
    """A greeting before the request, unless there is one."""
    word, mark = dice.choice(GREETINGS), dice.choice([", ", "! ", ". "])
    if text.casefold().startswith(("hi", "hello", "hey", "good ", "dear ")):
        return text
    return (word if dice.random() < 0.5 else word.capitalize()) + mark + text


def thanks(text: str, case: Case, dice: random.Random) -> str:
    """A thank-you after the request, unless there is one."""
    word, mark = dice.choice(THANKS), dice.choice(["", "!"])
    if re.search(r"\b(thanks|thank|thx|cheers)\b", text, re.IGNORECASE):
        return text
    # A mark keeps it apart: "call mum thanks" might be a title.
    if re.search(r"[.!?]$", text):
        return f"{text} {word.capitalize()}{mark}"
    return f"{text}, {word}{mark}"


NoiseKind = Callable[[str, Case, random.Random], str]
# In the order in which they are applied.
NOISE: dict[str, NoiseKind] = {
    "case": other_case,
    "typos": typos,
    "no punctuation": no_punctuation,
    "greeting": greeting,
    "thanks": thanks,
}


def light_noise(seed: int = 0, kinds: Sequence[str] | None = None) -> Noise:
    """Light noise on the last thing that the person said.

    Typos always, at their rate; each of the other kinds in about half of the cases. What is done
    to a case depends on the seed and its id alone, not on the other cases.

    Args:
        seed: Another seed is other noise.
        kinds: Apply just these kinds of ``NOISE``, and all of them to each case.

    Returns:
        A function from a case to the noisy case.
    """

    def noise(case: Case) -> Case:
        dice = random.Random(f"{seed} {case.id}")
        messages = [dict(message) for message in case.messages]
        for message in reversed(messages):
            if message["role"] == "user":
                text = message["content"]
                for name in NOISE if kinds is None else kinds:
                    if kinds is not None or name == "typos" or dice.random() < 0.5:
                        changed = NOISE[name](text, case, dice)
                        text = changed if _survives(case, text, changed) else text
                message["content"] = text
                break
        return replace(case, messages=messages)

    return noise


def _survives(case: Case, before: str, after: str) -> bool:
    """Whether all numbers, and all that is expected and was said, are still there."""
    if re.findall(r"\d+", before) != re.findall(r"\d+", after):
        return False
    was, now = fold(before), fold(after)
    return all(fold(value) not in was or fold(value) in now for value in _values(case))
