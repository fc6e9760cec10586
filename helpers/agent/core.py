"""One turn of the agent: guard, remember, ask, check, carry out, and say only what happened.

Examples:
    >>> async with TaskAgent(store, "demo") as agent:            # doctest: +SKIP
    ...     turn = await agent.turn("Add a task to call mum tomorrow")
    ...     turn.state, turn.text, turn.calls, turn.by
"""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import agents
import openai
from agents.models.interface import Model
from agents.run_config import CallModelData, ModelInputData
from agents.tracing import TracingProcessor

from helpers.agent import guardrails, memory, pointing, reported, second_look, spelling, titles
from helpers.agent.models import (
    GARBLED,
    LATE,
    MAX_ANSWER,
    Asking,
    NoModel,
    Preferred,
    asking,
    remote,
)
from helpers.asked import numbers, only_asks, surely_creates, titled, words
from helpers.clients import settle_tracing
from helpers.mcp_server import Action, summary
from helpers.resilience import Outbox, Trace, plain_rule
from helpers.settings import MODEL
from helpers.tasks import Result, TaskStore, call_tool, tool_schemas
from helpers.traces import tree
from helpers.validators import Check, ToolCallError, validate_tool_call

ROUNDS = 3  # of asking the model in one turn: the call, and two repairs
PATIENCE = 20.0  # seconds for one model; under load, requests wait for a free slot
DEADLINE = 45.0  # seconds for a turn

Event = Callable[[str, dict[str, Any]], None]


@dataclass
class Turn:
    """What became of one thing that a person said.

    Attributes:
        request: What they said.
        state: ``answered``; ``refused`` by a guardrail, before a model was asked; ``waiting``
            in the outbox; ``told`` that nothing was done, and why.
        text: The words for the person. Where calls were made, plain logic wrote them.
        calls: Each with ``name``, ``arguments``, ``done``, ``result``.
        by: Who answered: a model's name, or ``rules``.
        trace: The decisions: who was asked, and what came.
        spans: What the Agents SDK did, as a tree; with a second look, as two.
        tokens: Read and written by models in this turn.
        remembered: Items of earlier turns that the model was sent.
        conversation: Its id.
        key: Of the request.
        blocked: Somebody has to mend something, such as a wrong key, before it can be done.
    """

    request: str
    state: str = "answered"
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    by: str = ""
    trace: Trace = field(default_factory=lambda: Trace(""))
    spans: str = ""
    tokens: dict[str, int] = field(default_factory=lambda: {"in": 0, "out": 0})
    remembered: int = 0
    conversation: str = ""
    key: str = ""
    blocked: bool = False

    @property
    def plain(self) -> str:
        """The request as models and checks read it."""
        return spelling.plain(self.request)

    @property
    def done(self) -> list[dict[str, Any]]:
        """The calls that were carried out."""
        return [call for call in self.calls if call["done"]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{k: v for k, v in vars(self).items() if k not in ("trace", "spans", "blocked")},
            "trace": self.trace.to_dict()["attempts"],
            "decisions": self.trace.line(),
        }


@dataclass
class _Now:
    """What a turn knows while it is under way."""

    turn: Turn
    text: str
    checks: Sequence[Check] = ()
    rounds: int = 0
    reads: str = ""  # what the model is sent for the text
    topic: int | None = None  # the task that was spoken of last
    pointed: set[int] | None = None  # those that the text points at
    notify: Event = lambda kind, data: None
    seen: dict[str, str] = field(default_factory=dict)
    repair: bool = False
    again: bool = False  # with all tasks in view, see _look_again
    models: int = 1
    asking: Asking = field(default_factory=Asking)


class TaskAgent:
    """The agent, for one conversation.

    Args:
        store: The tasks.
        conversation: Its id; the same id and memory go on where it ended.
        models: Who is asked, in this order: names, and models of the Agents SDK. The course's
            proxy by default.
        memory_file: SQLite file of conversations; by default one that vanishes.
        session: In place of one of its own in that file; closed by whoever made it.
        outbox: Where requests wait while no model answers; without one, people are told.
        input_problem: Why a request is not passed on.
        call_checks: Makes the checks of a turn's calls: what was said, what was heard, store.
        fit: What of a conversation the model is sent.
        patience: Seconds for one model.
        deadline: Seconds for a turn.
    """

    def __init__(
        self,
        store: TaskStore,
        conversation: str = "default",
        *,
        models: Mapping[str, Model] | Preferred | None = None,
        memory_file: str | Path = ":memory:",
        session: agents.SQLiteSession | None = None,
        outbox: Outbox | None = None,
        input_problem: Callable[[str], str] = guardrails.input_problem,
        call_checks: Callable[..., list[Check]] = guardrails.call_checks,
        fit: Callable[[list[memory.Item]], list[memory.Item]] = memory.fit,
        patience: float = PATIENCE,
        deadline: float = DEADLINE,
    ) -> None:
        self.store, self.conversation, self.outbox = store, conversation, outbox
        self._own = models is None
        if models is None:
            models = {MODEL: remote()}
        self.model = models if isinstance(models, Preferred) else Preferred(models, patience)
        self.input_problem, self.call_checks, self.fit = input_problem, call_checks, fit
        self.deadline = deadline
        self._own_session = session is None
        self.session = session or agents.SQLiteSession(conversation, memory_file)
        warm()
        self._lock = asyncio.Lock()
        self.one_at_a_time = asyncio.Lock()  # for who wraps turns into more, see service
        self.agent: agents.Agent[_Now] = agents.Agent(
            name="TaskAgent",
            model=self.model,
            model_settings=agents.ModelSettings(
                temperature=0, max_tokens=MAX_ANSWER,
                extra_body={"seed": 7, "cache_prompt": False},
            ),
            tools=[self._tool(schema["function"]) for schema in tool_schemas()],
            tool_use_behavior=_enough,
            input_guardrails=[
                agents.InputGuardrail(self._guard_input, name="request", run_in_parallel=False)
            ],
            output_guardrails=[agents.OutputGuardrail(_guard_output, name="answer")],
        )  # fmt: skip

    async def __aenter__(self) -> TaskAgent:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the conversation's file, and the clients if they are this agent's own."""
        if self._own_session:
            self.session.close()
        if self._own:
            await self.model.close()

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return self._lock.locked() or self.one_at_a_time.locked()

    # --- a turn ------------------------------------------------------------------------------

    async def turn(self, text: str, *, key: str = "", notify: Event | None = None) -> Turn:
        """Do what the person says, once.

        Args:
            text: What they said.
            key: Names the request: with the same key, nothing is done twice. A new one by
                default.
            notify: Told of what happens while it happens: ``call``, ``result``.

        Returns:
            How it ended. Nothing is raised for what a person says or a model does.
        """
        async with self._lock:  # one thing after another, or "it" would mean two things
            turn = Turn(text, conversation=self.conversation, key=key or secrets.token_hex(8))
            turn.trace = Trace(text, self.deadline)
            asked = Asking(turn.trace, turn.tokens)
            now = _Now(turn, turn.plain, models=len(self.model.models), asking=asked)
            if notify:
                now.notify = notify
            before = len(await self.session.get_items())
            try:
                await self._run(now)
                await self._look_again(now)
            except agents.InputGuardrailTripwireTriggered as tripped:
                turn.state = "refused"
                turn.text = tripped.guardrail_result.output.output_info
            except agents.OutputGuardrailTripwireTriggered:
                turn.text = "I did nothing. Say what is to happen to which task."
            except NoModel:
                await self._without_model(turn)
            except openai.APIStatusError as error:
                turn.state, turn.blocked = "told", True
                turn.trace.note("person", "told", f"told of {type(error).__name__}")
                turn.text = f"This cannot be done: {type(error).__name__}. Someone must look at it."
            except agents.AgentsException as error:  # such as too many rounds
                turn.state = "told"
                turn.trace.note("person", "told", f"told of {type(error).__name__}")
                turn.text = "That did not come to an end. Say it in other words."
            else:
                if turn.calls and not turn.done:
                    await self._without_model(turn)
            if turn.calls and turn.state == "answered":
                # Where something was done, what was refused is not told: repaired, or too much.
                turn.text = summary([_action(call) for call in turn.done or turn.calls])
                turn.state = "answered" if turn.done else "told"
            turn.by = turn.by or turn.trace.by
            await self._remember(turn, before, anew=now.again)
            return turn

    async def _look_again(self, now: _Now) -> None:
        """Ask once more for what the model has overlooked, with the tasks in view.

        That is a request with which it did nothing, though it may well mean a task, or the part
        of one that is about a task of its own: "tap is fixed, sunscreen bought". Where a new task
        is wanted, there is none to be in view, and nothing new to ask if nothing was said before.
        """
        turn, tasks = now.turn, self._old_tasks(now.turn)
        told = reported.reported(turn.plain, tasks, now.topic)
        for number in told:
            await self._once_more(now, f"task {number} is done")
        if told:
            tasks = self._old_tasks(turn)
        seen = turn.remembered if surely_creates(turn.plain) else tasks
        if seen:
            for part in second_look.overlooked(
                turn.plain, turn.calls, tasks, now.topic, now.pointed
            ):
                await self._once_more(now, part)

    def _old_tasks(self, turn: Turn) -> list[dict[str, Any]]:
        """The tasks there are, without those that the turn has made."""
        made = {call["result"]["task_id"] for call in turn.done if call["name"] == "create_task"}
        return [task for task in self.store.list()["tasks"] if task["task_id"] not in made]

    async def _once_more(self, now: _Now, text: str) -> None:
        """Ask in other words; what was done then counts, what was said only if something was."""
        turn = now.turn
        words, before = turn.text, list(turn.calls)
        now.text, now.again, now.rounds = text, True, 0
        with suppress(NoModel, openai.APIStatusError, agents.AgentsException):
            await self._run(now)
        turn.calls[len(before) :] = [call for call in turn.calls[len(before) :] if call["done"]]
        turn.text = turn.text if len(turn.calls) > len(before) else words

    async def _run(self, now: _Now) -> None:
        turn = now.turn
        token = asking.set(now.asking)
        spans = local_traces()
        config = agents.RunConfig(
            workflow_name="turn",
            trace_id=f"trace_{secrets.token_hex(16)}",
            call_model_input_filter=self._input,
            tool_not_found_behavior="return_error_to_model",
            tool_error_formatter=_no_such_tool,
            tool_execution=agents.run_config.ToolExecutionConfig(max_function_tool_concurrency=1),
        )
        try:
            result = await agents.Runner.run(
                self.agent, now.text if now.again else turn.request, context=now,
                session=None if now.again else self.session,
                max_turns=ROUNDS + 2, run_config=config,
            )  # fmt: skip
            turn.text = str(result.final_output or "")
        finally:
            asking.reset(token)
            turn.spans += ("\n" if turn.spans else "") + spans.take(config.trace_id or "")

    async def _guard_input(self, context: Any, agent: Any, given: Any) -> Any:
        problem = self.input_problem(context.context.text)
        return agents.GuardrailFunctionOutput(problem, tripwire_triggered=bool(problem))

    def _input(self, data: CallModelData[_Now]) -> ModelInputData:
        """What the model is sent: as much of the conversation as it can read.

        Tasks that the request names in words, and that nobody spoke of yet, are put before it
        as a list: the model cannot know their numbers otherwise.
        """
        now = data.context
        assert now is not None
        items = [dict(item) for item in data.model_data.input]
        *before, current = memory.exchanges(self.fit(items))
        heard = [item for group in before for item in group]
        if now.asking.first:
            current = current[:1]
        tasks = self.store.list()["tasks"]
        if now.again:
            heard = memory.listing(_in_view(now.text, tasks))
        elif not now.rounds:
            spoken = guardrails.spoken_of(memory.as_messages(heard))
            likely = [t for t in _likely(now.text, spoken, tasks) if t["task_id"] not in spoken]
            heard += memory.listing(likely[: memory.TASKS_SHOWN])
        now.turn.remembered = len(heard)
        said = memory.as_messages(heard)
        if not now.rounds:
            did = memory.done_last(before)
            now.reads = pointing.in_full(now.text, said, tasks, did)
            if not now.again:
                now.topic = pointing.topic(said, tasks)
                now.pointed = pointing.pointed_at(now.text, said, tasks)
        now.checks = self.call_checks(now.reads, said, self.store)
        current[0] = {**current[0], "content": now.reads}
        if now.again:
            now.checks = [*now.checks, guardrails.named_deletion(now.text, tasks)]
        now.rounds += 1
        sent = [memory.clean(item) for item in [*heard, *current]]
        return ModelInputData(input=sent, instructions=data.model_data.instructions)

    # --- tools -------------------------------------------------------------------------------

    def _tool(self, schema: Mapping[str, Any]) -> agents.FunctionTool:
        name = schema["name"]

        async def invoke(context: Any, arguments: str) -> str:
            now: _Now = context.context
            checked = validate_tool_call({"name": name, "arguments": arguments}, tool_schemas())
            if title := checked.arguments.get("title"):
                title = titles.whole(title, now.reads)
                checked.arguments["title"] = titles.whole(title, now.turn.plain)
            what = json.dumps([name, checked.arguments], sort_keys=True)
            if what in now.seen:  # a model that repeats itself is not to be obeyed twice
                return now.seen[what]
            for call in now.turn.done:  # not in fewer words either
                if call["name"] == name == "create_task" and (
                    checked.arguments.items() <= call["arguments"].items()
                ):
                    return json.dumps(call["result"])
            now.notify("call", {"name": name, "arguments": checked.arguments})
            call = await self._carry_out(now.turn, name, checked.arguments)
            now.turn.calls.append(call)
            now.notify("result", call)
            now.seen[what] = str(Result(call["result"]))
            return now.seen[what]

        return agents.FunctionTool(
            name=name,
            description=schema.get("description", ""),
            params_json_schema=dict(schema["parameters"]),
            on_invoke_tool=invoke,
            strict_json_schema=False,  # strict would force every optional property
            tool_input_guardrails=[agents.ToolInputGuardrail(_check_call, name="call")],
        )

    async def _carry_out(self, turn: Turn, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do it; the key names the wish, not the call: a retry may be answered by another model."""
        key = f"{turn.key}-{len(turn.done)}"
        result = await asyncio.to_thread(call_tool, self.store, name, arguments, key=key)
        return _called(name, arguments, json.loads(result))

    # --- without a model, and afterwards -----------------------------------------------------

    async def _without_model(self, turn: Turn) -> None:
        """No model gave a call that may be carried out: a rule, the outbox, or the truth."""
        rule = plain_rule(turn.plain)
        asks = not rule and turn.calls and only_asks(turn.plain)
        if asks:
            rule = "list_tasks", {}  # the model would have changed something, and was kept from it
        if rule:
            name, arguments = rule
            call = await self._carry_out(turn, name, arguments)
            tasks = call["result"].get("tasks", ())
            if asks and (named := titled(turn.plain, tasks)):
                call["result"]["tasks"] = [t for t in tasks if t["task_id"] in named]
            if call not in turn.calls:
                turn.calls.append(call)
            if call["done"]:
                turn.trace.note("rules", "answered")
                turn.by = "rules"
            return
        best = next(iter(self.model.models))
        asked = [a for a in turn.trace.attempts if a.model == best]
        if any(a.outcome == "answered" for a in asked):
            return  # the best model was asked, and its call was refused: waiting will not help
        if any(
            a.refused and a.why not in (LATE, GARBLED) for a in asked
        ):  # it would say the same again
            turn.state, turn.text = "told", "No usable answer came. Say it in other words."
            return
        if self.outbox is None:
            turn.trace.note("nobody", "told")
            turn.state, turn.text = "told", "No model can be reached. Please try again later."
            return
        self.outbox.put(turn.key, json.dumps([self.conversation, turn.request]))
        turn.trace.note("outbox", "waiting")
        turn.state = "waiting"
        turn.text = "No model can be reached. It is noted and will be done as soon as one can."

    async def _remember(self, turn: Turn, before: int, anew: bool = False) -> None:
        """Leave in the conversation what was said and done; of what went wrong, nothing.

        anew: what was done stands nowhere in it yet.
        """
        items = await self.session.get_items()
        if (anew or turn.by == "rules") and turn.done:  # not what a model was kept from
            for _ in items[before:]:
                await self.session.pop_item()
            await self.session.add_items(memory.exchange(turn.request, turn.done, turn.text))
            return
        if turn.state in ("refused", "waiting") or (turn.state == "told" and not turn.calls):
            for _ in items[before:]:
                await self.session.pop_item()
            return
        last = items[-1] if len(items) > before else {}
        if last.get("role") == "assistant":
            await self.session.pop_item()
        said: list[Any] = [{"role": "assistant", "content": turn.text}]
        if not items[before:]:
            said.insert(0, {"role": "user", "content": turn.request})
        await self.session.add_items(said)


def _in_view(text: str, tasks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As many tasks as the model is shown: those that are named first, then open ones; none
    where a new one is wanted."""
    if surely_creates(text):
        return []
    named = titled(text, tasks)
    order = sorted(tasks, key=lambda t: (t["task_id"] not in named, t["status"] == "completed"))
    shown = {task["task_id"] for task in order[: memory.TASKS_SHOWN]}
    return [task for task in tasks if task["task_id"] in shown]


def _likely(
    text: str, spoken: set[int], tasks: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The tasks that a request names, which the model must know the numbers of."""
    said, named = {str(number) for number in numbers(text)}, titled(text, tasks)
    found = [task for task in tasks if task["task_id"] in named]
    if said:  # a number is a task's own, but for "chapter 3", where a title has both
        found = [task for task in found if said & set(words(task["title"]))]
    elif not found and not spoken and pointing.counts_them(text):
        found = tasks  # "delete the first one", and nobody has seen a list yet
    # What is completed is meant where nothing open is: "reopen the booking".
    return [task for task in found if task["status"] != "completed"] or found


@functools.cache
def warm() -> None:
    """Load what the first call would load, so that no person waits for it."""
    validate_tool_call({"name": "list_tasks", "arguments": "{}"}, tool_schemas())


def _check_call(data: Any) -> Any:
    """In front of every tool (L04): what is wrong goes back to the model, as the result."""
    now: _Now = data.context.context
    call = {"name": data.context.tool_name, "arguments": data.context.tool_arguments}
    try:
        checks = [*now.checks, guardrails.one_end(now.turn.done)]
        validate_tool_call(call, tool_schemas(), checks)
        return agents.ToolGuardrailFunctionOutput.allow()
    except ToolCallError as error:
        arguments: Any = call["arguments"]
        with suppress(ValueError):
            arguments = json.loads(arguments)
        refused = _called(call["name"], arguments, {"error": str(error)})
        if refused not in now.turn.calls:
            now.turn.calls.append(refused)
            now.notify("result", refused)
            # Without sampling, a model that repeats itself would do so for ever. And what it
            # did beyond what was asked for needs no repair.
            now.repair |= error.stage != "meaning" or not now.turn.done
        return agents.ToolGuardrailFunctionOutput.reject_content(error.result())


def _called(name: str, arguments: Any, result: dict[str, Any]) -> dict[str, Any]:
    """A call, and what came of it."""
    return {"name": name, "arguments": arguments, "done": "error" not in result, "result": result}


def _no_such_tool(args: Any) -> str:
    offered = ", ".join(tool["function"]["name"] for tool in tool_schemas())
    return json.dumps({"error": f"There is no tool {args.tool_name}. The tools are {offered}."})


def _enough(context: Any, results: list[Any]) -> Any:
    """After tools have run: ask the model again only if that can mend something."""
    now: _Now = context.context
    again, now.repair = now.repair and now.rounds < ROUNDS, False
    only_refused = now.turn.calls and not now.turn.done
    if not again and only_refused and now.asking.first + 1 < now.models:
        now.asking.first += 1  # another model may do better; it starts afresh
        again = True
    return agents.ToolsToFinalOutputResult(is_final_output=not again, final_output="done")


async def _guard_output(context: Any, agent: Any, output: Any) -> Any:
    problem = guardrails.output_problem(str(output), len(context.context.turn.calls))
    return agents.GuardrailFunctionOutput(problem, tripwire_triggered=bool(problem))


def _action(call: Mapping[str, Any]) -> Action:
    return Action(
        tool=call["name"],
        arguments=call["arguments"] if isinstance(call["arguments"], dict) else {},
        done=call["done"],
        result=call["result"] if call["done"] else None,
        reason=call["result"].get("error"),
    )


# --- traces, kept on this machine ------------------------------------------------------------


class LocalTraces(TracingProcessor):
    """Spans of the runs that are under way, by trace; nothing leaves this process."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Any]] = {}

    def on_trace_start(self, trace: Any) -> None:
        self.spans[trace.trace_id] = []

    def on_span_start(self, span: Any) -> None:
        self.spans.setdefault(span.trace_id, []).append(span)

    def take(self, trace_id: str) -> str:
        """The tree of one run, which is then forgotten."""
        return tree(self.spans.pop(trace_id, []))

    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


_traces: LocalTraces | None = None


def local_traces() -> LocalTraces:
    """The processor of this process; the exporter to the SDK's makers is taken out first."""
    global _traces
    if _traces is None:
        settle_tracing()
        _traces = LocalTraces()
        agents.set_trace_processors([_traces])
        agents.set_tracing_disabled(False)
    return _traces
