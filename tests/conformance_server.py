"""The task server with the tools that the official conformance suite wants to call.

``python tests/conformance_server.py PORT`` serves :func:`helpers.mcp_server.build`'s server, its
middleware and HTTP guards included, over streamable HTTP. Added are only the suite's fixtures, as
its scenarios describe them, and what it cannot do without: no bearer token (it sends none).
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import mcp_types as t
from fastmcp import Context
from fastmcp.prompts import Message
from fastmcp.server.event_store import EventStore
from fastmcp.tools import ToolResult
from pydantic import BaseModel, Field

from helpers import mcp_server
from helpers.tasks import TaskStore

# One red pixel, and a WAV file without a sample.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJg"
    "gg=="
)
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA="


def image() -> t.ImageContent:
    return t.ImageContent(type="image", data=PNG, mime_type="image/png")


def resource(uri: str, text: str, kind: str = "text/plain") -> t.EmbeddedResource:
    inner = t.TextResourceContents(uri=uri, mime_type=kind, text=text)
    return t.EmbeddedResource(type="resource", resource=inner)


def tools(mcp: Any) -> None:
    @mcp.tool
    def test_simple_text() -> str:
        """Text."""
        return "This is a simple text response for testing."

    @mcp.tool
    def test_image_content() -> ToolResult:
        """An image."""
        return ToolResult(content=[image()])

    @mcp.tool
    def test_audio_content() -> ToolResult:
        """A sound."""
        sound = t.AudioContent(type="audio", data=WAV, mime_type="audio/wav")
        return ToolResult(content=[sound])

    @mcp.tool
    def test_embedded_resource() -> ToolResult:
        """A resource inside a result."""
        text = "This is an embedded resource content."
        return ToolResult(content=[resource("test://embedded-resource", text)])

    @mcp.tool
    def test_multiple_content_types() -> ToolResult:
        """Text, an image and a resource."""
        text = t.TextContent(type="text", text="Multiple content types test:")
        data = json.dumps({"test": "data", "value": 123})
        mixed = resource("test://mixed-content-resource", data, "application/json")
        return ToolResult(content=[text, image(), mixed])

    @mcp.tool
    async def test_tool_with_logging(ctx: Context) -> str:
        """Three log messages."""
        for message in (
            "Tool execution started",
            "Tool processing data",
            "Tool execution completed",
        ):
            await ctx.info(message)
            await asyncio.sleep(0.05)
        return "Logged."

    @mcp.tool
    def test_error_handling() -> str:
        """Always fails."""
        from fastmcp.exceptions import ToolError

        raise ToolError("This tool intentionally returns an error for testing")

    @mcp.tool
    async def test_tool_with_progress(ctx: Context) -> str:
        """Three progress notifications."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await asyncio.sleep(0.05)
        return "Done."

    @mcp.tool
    async def test_reconnection(ctx: Context) -> str:
        """Closes the stream in the middle; the answer is for whoever comes back."""
        await ctx.close_sse_stream()
        await asyncio.sleep(0.2)
        return "Reconnected."

    @mcp.tool
    async def test_sampling(prompt: str, ctx: Context) -> str:
        """Asks the client's model."""
        content = t.TextContent(type="text", text=prompt)
        reply = await ctx.session.create_message(
            messages=[t.SamplingMessage(role="user", content=content)],
            max_tokens=100,
            related_request_id=ctx.request_id,
        )
        return f"LLM response: {getattr(reply.content, 'text', '')}"

    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
        "additionalProperties": False,
    }

    @mcp.tool
    def json_schema_2020_12_tool(name: str = "", address: dict[str, Any] | None = None) -> str:
        """Tool with JSON Schema 2020-12 features"""
        return name

    # The listed schema is to be this one, to the letter.
    tool = next(
        tool
        for tool in mcp.local_provider._components.values()
        if tool.name == "json_schema_2020_12_tool"
    )
    tool.parameters = schema


class User(BaseModel):
    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


def elicitations(mcp: Any) -> None:
    async def ask(ctx: Context, message: str, schema: dict[str, Any]) -> t.ElicitResult:
        return await ctx.session.elicit(
            message=message, requested_schema=schema, related_request_id=ctx.request_id
        )

    @mcp.tool
    async def test_elicitation(message: str, ctx: Context) -> str:
        """Asks the person."""
        reply = await ask(ctx, message, User.model_json_schema())
        return f"User response: action={reply.action}, content={json.dumps(reply.content)}"

    def of(**properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": []}

    @mcp.tool
    async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
        """Asks the person, with defaults."""
        schema = of(
            name={"type": "string", "default": "John Doe"},
            age={"type": "integer", "default": 30},
            score={"type": "number", "default": 95.5},
            status={
                "type": "string",
                "enum": ["active", "inactive", "pending"],
                "default": "active",
            },
            verified={"type": "boolean", "default": True},
        )
        reply = await ask(ctx, "Please review.", schema)
        return f"Elicitation completed: action={reply.action}, content={json.dumps(reply.content)}"

    @mcp.tool
    async def test_elicitation_sep1330_enums(ctx: Context) -> str:
        """Asks the person to choose."""
        options = ["option1", "option2", "option3"]
        titled = [
            {"const": f"value{n}", "title": f"{word} Option"}
            for n, word in enumerate(("First", "Second", "Third"), 1)
        ]
        choices = [{**one, "title": one["title"].replace("Option", "Choice")} for one in titled]
        schema = of(
            untitledSingle={"type": "string", "enum": options},
            titledSingle={"type": "string", "oneOf": titled},
            legacyEnum={
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            untitledMulti={"type": "array", "items": {"type": "string", "enum": options}},
            titledMulti={"type": "array", "items": {"anyOf": choices}},
        )
        reply = await ask(ctx, "Please choose.", schema)
        return f"Elicitation completed: action={reply.action}, content={json.dumps(reply.content)}"


def resources_and_prompts(mcp: Any) -> None:
    @mcp.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        """Text."""
        return "This is the content of the static text resource."

    @mcp.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        """An image."""
        return base64.b64decode(PNG)

    @mcp.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        """Something to subscribe to."""
        return "Watched."

    @mcp.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        """Data by id."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @mcp.prompt
    def test_simple_prompt() -> str:
        """A prompt."""
        return "This is a simple prompt for testing."

    @mcp.prompt
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A prompt with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @mcp.prompt
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:
        """A prompt with a resource."""
        inner = resource(resourceUri, "Embedded resource content for testing.")
        return [Message(inner), Message("Please process the embedded resource above.")]

    @mcp.prompt
    def test_prompt_with_image() -> list[Message]:
        """A prompt with an image."""
        return [Message(image()), Message("Please analyze the image above.")]

    @mcp.completion
    def complete(ref: Any, argument: Any, context: Any) -> list[str]:
        return [w for w in ("paris", "park", "party") if w.startswith(argument.value)]


def main(port: int) -> None:
    mcp_server.quiet()
    mcp = mcp_server.build(
        mcp_server.Config(), TaskStore(), generate=lambda *given: {}, protected=False
    )
    tools(mcp)
    elicitations(mcp)
    resources_and_prompts(mcp)
    plain_app = mcp.http_app

    def with_events(**kwargs: Any) -> Any:
        """Streams that can be taken up again: the suite closes one in the middle."""
        return plain_app(**kwargs, event_store=EventStore(), retry_interval=100)

    mcp.http_app = with_events
    mcp.run(transport="http", port=port, show_banner=False, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]))
