"""The agent over MCP: beside the tools of L05 one more, which talks to the agent itself.

``handle_request`` of L05 reads one sentence and knows nothing of the last one. Other assistants
that hand on a person's words as they come need what a person needs: an agent that knows what
"it" is. So :func:`add_agent` offers the core under a tool of its own.

A conversation has a name, as over REST. It cannot be the connection: since its version of
2026-07-28, MCP is stateless, and each request is a connection of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from helpers.agent.service import CONVERSATION, Service
from helpers.mcp_server import HINTS, MAX_REQUEST, annotations

if TYPE_CHECKING:
    from fastmcp import FastMCP


class Answer(BaseModel):
    """What became of something that was said."""

    text: Annotated[str, Field(description="the answer, in words, for a person")]
    state: Annotated[str, Field(description="answered, or waiting until a model can be asked")]
    calls: Annotated[list[dict[str, Any]], Field(description="what was done to the tasks")]
    by: Annotated[str, Field(description="who answered: a model's name, or rules")]
    conversation: str


def add_agent(server: FastMCP, service: Service) -> None:
    """Offer ``ask_agent`` on a server.

    Args:
        server: Of :func:`helpers.mcp_server.build`, or one that L05 exported.
        service: Whose agent is asked.
    """
    from fastmcp.exceptions import ToolError

    @server.tool(
        annotations=annotations(HINTS["handle_request"]),  # it may do the same
        output_schema=Answer.model_json_schema(),
        timeout=120,
    )
    async def ask_agent(
        message: Annotated[
            str,
            Field(
                description="what the person said, in their own words",
                min_length=1,
                max_length=MAX_REQUEST,
            ),
        ],
        conversation: Annotated[
            str,
            Field(
                description="which conversation goes on; another name begins another one",
                pattern=CONVERSATION,
            ),
        ] = "mcp",
    ) -> Answer:
        """Say something to the agent that keeps the task list.

        It knows what was said before in the same conversation, so "make it urgent" will do.
        Only what the person asks for is done, and the answer says only what was done.
        """
        await service.start()  # what waits is done beside this, as behind REST
        turn = await service.turn(conversation, message)
        if turn.state in ("told", "refused"):
            raise ToolError(turn.text)
        return Answer(
            text=turn.text, state=turn.state, calls=turn.calls, by=turn.by,
            conversation=conversation,
        )  # fmt: skip
