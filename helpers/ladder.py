"""The laboratory of L04: two models side by side, the accuracy ladder, and a look at single cases.

What the lesson teaches stands in its notebook; here is what would distract from it: servers,
tables, pictures, the widget.
"""

from __future__ import annotations

import copy
import html
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

from .evaluation import RAW_CALL, Answer, Ask, Case, Rate, Report, Result, Tools, http_ask
from .lesson import figure, table
from .tasks import TaskStore, tool_schemas

MAX_TOKENS = 256  # of an answer: more than any right one needs
# What makes an answer the same each time, for a server asked without the SDK.
DECIDED = {"temperature": 0, "seed": 7, "cache_prompt": False}


class Lab:
    """Models on servers of their own, one request at a time, the same answers on every run.

    Args:
        **models: A name in ``model/``, or the path of a GGUF file, by the name that the lesson
            gives it: ``Lab(main="task-api-model", mini="task-api-model-mini")``.
        threads: Threads of each server (default: see ``backend.default_threads``).

    Attributes:
        ask: By name: a function of messages and tools that returns a chat completion, for
            ``evaluation.evaluate``. The server constrains its calls by a grammar. Requests carry
            the model's own name, and a mark that says that they are only counted. A request that
            was answered before is answered from memory: it would be answered the same.

    Raises:
        CourseError: A model's file is missing or damaged.
    """

    def __init__(self, *, threads: int | None = None, **models: str) -> None:
        import httpx

        from .backend import serve
        from .clients import http_options
        from .notebooks import COUNTED

        self._servers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self._counted: dict[str, Any] = {}
        self.ask: dict[str, Ask] = {}
        for name, file in models.items():
            server = serve(file, slots=1, threads=threads)
            self._servers[name] = server
            self._clients[name] = httpx.Client(base_url=server.url, **http_options(60, True))
            counted = httpx.Client(**http_options(60, True), headers={COUNTED: "1"})
            self._counted[name] = counted
            ask = http_ask(server.url, server.model, seed=7, max_tokens=MAX_TOKENS, client=counted)
            self.ask[name] = remembered(ask)

    def post(self, path: str, name: str = "main", **body: Any) -> Any:
        """Send a request to a model's server; the ``httpx.Response``, whatever its status.

        Unless the body says otherwise, at temperature 0, with the lessons' seed and no cache.
        """
        usual = {"model": self._servers[name].model, **DECIDED}
        return self._clients[name].post(path, json=usual | body)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Tools, name: str = "main"
    ) -> str:
        """The prompt as the model sees it; nothing is answered."""
        offered = {"tools": tools} if tools else {}
        reply = self.post("/apply-template", name, messages=list(messages), **offered)
        return reply.raise_for_status().json()["prompt"]

    def write(self, prompt: str, name: str = "main") -> Writing:
        """What the model writes after a prompt by itself: no grammar, no reading of calls."""
        body = {"prompt": prompt, "n_predict": MAX_TOKENS, "temperature": 0, "seed": 7}
        reply = self.post("/completion", name, **body, n_probs=1, cache_prompt=False)
        return Writing(reply.raise_for_status().json())

    def outcomes(self, cases: Sequence[Case], name: str = "main", **wish: Any) -> str:
        """What comes back for cases when a request also has switches, counted in words.

        Args:
            cases: Whose messages and tools are sent.
            name: The model.
            **wish: The switches, such as ``tool_choice``.
        """
        found: Counter[str] = Counter()
        url, model = self._servers[name].url, self._servers[name].model
        for case in cases:
            body = {"model": model, "messages": case.messages, "tools": tool_schemas(case.tools)}
            limits = {**DECIDED, "max_tokens": MAX_TOKENS}
            reply = self._counted[name].post(
                f"{url}/v1/chat/completions", json=body | limits | wish
            )
            choice = reply.raise_for_status().json()["choices"][0]
            calls, text = choice["message"].get("tool_calls"), choice["message"].get("content")
            if choice["finish_reason"] == "length":
                found["cut off"] += 1
            elif calls:
                found["several calls" if len(calls) > 1 else "one call"] += 1
            else:
                found["a call as text" if RAW_CALL.search(text or "") else "words"] += 1
        return ", ".join(f"{what}: {n}" for what, n in sorted(found.items()))

    def stop(self) -> None:
        """Stop the servers."""
        for server in self._servers.values():
            server.stop()


def remembered(ask: Ask) -> Ask:
    """The same function, which sends each request once; what went wrong is sent again."""
    known: dict[str, Any] = {}

    def answer(messages: list[dict[str, Any]], tools: Tools) -> Any:
        request = json.dumps([messages, tools])  # unsorted: the model reads properties in order
        reply = known.get(request) or ask(messages, tools)
        if not isinstance(reply, Answer):
            known[request] = reply
        return copy.deepcopy(reply)

    return answer


class Writing:
    """A raw completion.

    Attributes:
        text: What was written.
        cut: It was cut off at the limit of tokens.
        tokens: Its pieces, each with its probability, 0 to 1.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.text: str = data["content"]
        self.cut: bool = data.get("stop_type") == "limit" or bool(data.get("truncated"))
        self.tokens: list[tuple[str, float]] = [
            (token["token"], math.exp(token["logprob"]))
            for token in data.get("completion_probabilities") or ()
        ]

    def choice(self, calls: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        """The choice of a chat completion, given the calls that were read in the text.

        Args:
            calls: Each with ``name`` and ``arguments`` (a dictionary); without any, or with
                None for what cannot be read, the text stays text.
        """
        made = [
            {"type": "function", "function": {**c, "arguments": json.dumps(c["arguments"])}}
            for c in calls or ()
        ]
        message = {"role": "assistant", "content": None if made else self.text}
        finish = "length" if self.cut else "tool_calls" if made else "stop"
        return {"message": message | {"tool_calls": made}, "finish_reason": finish}


def choice_of(reply: Any) -> dict[str, Any]:
    """The first choice of a completion; one without text when no answer came."""
    if isinstance(reply, Mapping) and reply.get("choices"):
        return dict(reply["choices"][0])
    why = reply.error if isinstance(reply, Answer) else ""
    return {"message": {"role": "assistant", "content": ""}, "finish_reason": why or None}


def desk() -> TaskStore:
    """A new store, in memory, with tasks 1 to 3."""
    store = TaskStore()
    for title in ("water the plants", "pay the rent", "book the dentist"):
        store.create(title)
    return store


# --- changed schemas ---------------------------------------------------------------------------


def edited(edit: Callable[[str, dict[str, Any]], Any]) -> Callable[[Sequence[str]], Tools]:
    """The course's tools with one change, for the argument ``tools`` of ``evaluate``.

    Args:
        edit: Gets each tool's name and its ``parameters``, a copy that it changes in place.
    """

    def tools(names: Sequence[str]) -> Tools:
        offered = copy.deepcopy(tool_schemas(names))
        for tool in offered:
            edit(tool["function"]["name"], tool["function"]["parameters"])
        return offered

    return tools


def count(report: Report, key: str = "", among: Sequence[Any] = ()) -> int:
    """How many calls a report holds; only those with an argument, and with one of its values."""
    given = [call.args or {} for result in report.results for call in result.answer.calls]
    return sum(not key or (key in a and (not among or a[key] in among)) for a in given)


# --- what is measured --------------------------------------------------------------------------


def right_tool(result: Result) -> bool:
    """Whether the right tools were called, whatever their arguments; none where none is right."""
    wanted = result.case.expect
    made = [call.name for call in result.answer.calls]
    if len(made) != len(wanted) or result.called != bool(wanted):
        return False
    return any(
        all(name in call.names for name, call in zip(order, wanted, strict=True))
        for order in permutations(made)
    )


def deletions(cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    """The last sentences that people said: where they want a deletion, and where they do not."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for case in cases:
        said = [str(m["content"]) for m in case.messages if m["role"] == "user"][-1]
        asks = any("delete_task" in call.names for call in case.expect)
        (wanted if asks else unwanted).append(said)
    return wanted, unwanted


def wrongly_done(report: Report) -> int:
    """How many wrong answers a program would have carried out: their calls fit the schemas."""
    return sum(bool(r.answer.calls) and r.schema_valid and not r.verdict.ok for r in report.results)


class Ladder(dict[str, Report]):
    """Reports on the same cases, by the name of the rung: ``ladder["mini"] = evaluate(…)``."""

    def show(self) -> None:
        """The share of exactly right answers of each rung, as a table and as a picture."""
        from . import plots

        rows = [[name, *report.overall.cells()] for name, report in self.items()]
        table(rows, ["rung", "cases", "exactly right", "share", "95 % interval"])
        rates = {name: report.overall for name, report in self.items()}
        figure(*plots.bars(rates, "The accuracy ladder", "exactly right"))

    def steps(self) -> None:
        """How far the answers of each rung get on the way to being right, as a table."""
        rows = []
        for name, report in self.items():
            tool = Rate(sum(map(right_tool, report.results)), len(report.results))
            rates = (report.json_validity, report.schema_validity, tool, report.overall)
            rows.append([name, *map(_with_interval, rates)])
        heads = ["rung", "valid JSON", "valid by schema", "right tool", "exactly right"]
        told = "The first two of the answers with calls, the others of all; 95 % intervals"
        table(rows, heads, caption=told)

    def behaviours(self, *rungs: str) -> None:
        """How many cases of each behaviour some rungs have exactly right, as a table."""
        columns = [self[rung].categories for rung in rungs]
        rows = [
            [name, rate.n, *(_with_interval(column[name], of=False) for column in columns)]
            for name, rate in columns[0].items()
        ]
        heads = ["behaviour", "cases", *rungs]
        table(rows, heads, caption="Exactly right by behaviour, with 95 % intervals")


def _with_interval(rate: Rate, of: bool = True) -> str:
    low, high = rate.interval
    return f"{rate.correct}{f' of {rate.n}' if of else ''} ({100 * low:.0f}-{100 * high:.0f} %)"


# --- single cases --------------------------------------------------------------------------------

SURE = 0.9


def marked(tokens: Sequence[tuple[str, float]], sure: float = SURE) -> str:
    """A text with its doubtful tokens in brackets, each with its probability."""
    return "".join(t if p >= sure else f"\u27e6{t} {p:.0%}\u27e7" for t, p in tokens)


def page(lab: Lab, case: Case, report: Report, every: bool = False) -> str:
    """All that there is to know about one case: prompt, tokens, call, verdict.

    Args:
        lab: Where its ``main`` model is asked once more, without a grammar.
        case: The case.
        report: The report whose answer and verdict are shown.
        every: Every token with its probability, not only the doubtful ones.
    """
    prompt = lab.prompt(case.messages, tool_schemas(case.tools))
    result = next(r for r in report.results if r.case.id == case.id)
    which = "every token" if every else f"below {SURE:.0%}"
    tokens = lab.write(prompt).tokens
    parts = {
        "prompt, as rendered": prompt,
        f"written without a grammar; in brackets: {which}": marked(tokens, 2 if every else SURE),
        "answer, constrained and parsed": str(result.answer),
        "verdict": result.verdict.reason,
    }
    return "\n\n".join(f"--- {head}\n{text.strip()}" for head, text in parts.items())


def browse(report: Report, look: Callable[[Case, bool], str]) -> Any:
    """A widget that shows one case at a time, the wrong ones first.

    Args:
        report: Whose cases.
        look: What is shown of a case, as text, and whether with every token's probability; asked
            when the case is chosen.
    """
    import ipywidgets as widgets

    results = sorted(report.results, key=lambda result: result.verdict.ok)
    picker = widgets.Dropdown(
        description="case",
        options=[
            (f"{'right' if r.verdict.ok else 'WRONG'}: {r.case.id}", n)
            for n, r in enumerate(results)
        ],
        layout=widgets.Layout(width="30em"),
    )
    every = widgets.Checkbox(description="every token's probability", indent=False)
    screen = widgets.HTML()

    def show(change: Any = None) -> None:
        text = html.escape(look(results[picker.value].case, every.value))
        screen.value = f"<pre style='white-space: pre-wrap'>{text}</pre>"

    picker.observe(show, "value")
    every.observe(show, "value")
    show()
    return widgets.VBox([picker, every, screen])
