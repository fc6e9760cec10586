"""``ask``: one request through the whole integration, with every call shown.

The way is that of the lessons: LiteLLM proxy → OpenAI Agents SDK → the five tools on a store.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from helpers import settings
from helpers.settings import CourseError

if TYPE_CHECKING:
    from agents import Agent, FunctionTool, RunResult

    from helpers.tasks import TaskStore

STORE = settings.WORK / "ask" / "tasks.db"


def main(request: str, fresh: bool = False) -> int:
    """Answer one request and print the calls, their results and the answer.

    Args:
        request: What the person wants.
        fresh: Begin with an empty task list instead of that of the last call.

    Raises:
        CourseError: When the model cannot be reached or does not come to an end.
    """
    from helpers import clients, services
    from helpers.tasks import TaskStore

    if not services.ensure(wait=()).proxy.healthy:
        print("Starting backend and proxy; that takes about half a minute.", flush=True)
    import agents  # noqa: F401 - slow, so it happens while they start

    STORE.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        for path in STORE.parent.glob(STORE.name + "*"):
            path.unlink()
    with TaskStore(STORE) as store:
        result = asyncio.run(run(task_agent(store, clients.agents_model()), request))
    print(f"Request  {request}")
    for line in lines(result):
        print(line)
    return 0


def task_agent(store: TaskStore, model: Any) -> Agent:
    """An Agents SDK agent with the five tools over one store."""
    from agents import Agent, ModelSettings

    return Agent(
        name="TaskAgent",
        model=model,
        model_settings=ModelSettings(temperature=0, max_tokens=300),
        tools=agent_tools(store),
    )


def agent_tools(store: TaskStore) -> list[FunctionTool]:
    """The five tools as the Agents SDK wants them, with the Task API's own schemas."""
    from agents import FunctionTool

    from helpers.tasks import call_tool, tool_schemas

    def one(schema: dict[str, Any]) -> FunctionTool:
        name = schema["name"]

        async def invoke(context: Any, arguments: str) -> str:
            return call_tool(store, name, arguments)

        return FunctionTool(
            name=name,
            description=schema.get("description", ""),
            params_json_schema=schema["parameters"],
            on_invoke_tool=invoke,
            strict_json_schema=False,  # strict would force every optional property
        )

    return [one(tool["function"]) for tool in tool_schemas()]


async def run(agent: Agent, request: str) -> RunResult:
    """Run the agent's loop; at most six turns.

    Raises:
        CourseError: When the model cannot be reached or does not come to an end.
    """
    import openai
    from agents import MaxTurnsExceeded, RunConfig, Runner

    config = RunConfig(tracing_disabled=True, tool_not_found_behavior="return_error_to_model")
    try:
        return await Runner.run(agent, request, max_turns=6, run_config=config)
    except MaxTurnsExceeded:
        raise CourseError(
            "The agent made six turns without an answer.",
            "The model kept calling tools; small models do that when a request is unclear.",
            "Say it in other words, or type: python3 -m helpers ask --fresh …",
        ) from None
    except openai.APIError as error:
        raise CourseError(
            "The model did not answer.",
            str(error),
            "Type: python3 -m helpers doctor",
        ) from None


def lines(result: RunResult) -> list[str]:
    """What happened, one line per call, result and answer."""
    out = []
    for item in result.new_items:
        if item.type == "tool_call_item":
            out.append(f"Call     {call_text(item.raw_item.name, item.raw_item.arguments)}")
        elif item.type == "tool_call_output_item":
            out.append(f"Result   {item.output}")
    return [*out, f"Answer   {result.final_output}"]


def call_text(name: str, arguments: str) -> str:
    """A call as a person would write it: ``create_task(title="call mum")``."""
    try:
        given = json.loads(arguments or "{}")
        text = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in given.items())
    except (ValueError, AttributeError):
        text = arguments  # shown as it came: that is what went wrong
    return f"{name}({text})"
