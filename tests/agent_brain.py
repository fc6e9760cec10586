"""A model for tests of the agent: it understands a few sentences, always in the same way."""

from __future__ import annotations

import re

from helpers.standins import HostedStandIn, Request, Step, text, tool_call


def think(request: Request) -> Step:
    """The call that a sentence asks for."""
    said = [m["content"] for m in request.body["messages"] if m["role"] == "user"][-1]
    if found := re.fullmatch(r"Add a task to (.+?)(?:, due (.+))?", said):
        due = {"due": found[2]} if found[2] else {}
        return tool_call("create_task", title=found[1], **due)
    if found := re.fullmatch(r"Finish task (\d+)", said):
        return tool_call("complete_task", task_id=int(found[1]))
    if found := re.fullmatch(r"Set task (\d+) to (\w+)", said):
        return tool_call("update_task", task_id=int(found[1]), priority=found[2])
    if "pending" in said or "list" in said:
        return tool_call("list_tasks")
    if "delete task 1" in said:  # it can be talked into anything
        return tool_call("delete_task", task_id=1)
    return text("Hello! What shall I do with your tasks?")


def brain() -> HostedStandIn:
    """A server that thinks so."""
    return HostedStandIn(script=think, key=None)
