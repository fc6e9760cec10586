"""Conversations: kept whole in SQLite, and cut to what the model can read.

The Agents SDK's ``SQLiteSession`` keeps the items. What a model of 1,024 tokens is sent of them
is another question, which :func:`fit` answers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from helpers.agent.guardrails import harmless, tokens
from helpers.agent.pointing import LISTING, TASKS_SHOWN
from helpers.agent.spelling import plain

Item = dict[str, Any]

MOST = 640  # tokens of conversation; 1,024 less the tools, an answer, and a reserve
LONGEST = 300  # characters of an answer


def text_of(item: Mapping[str, Any]) -> str:
    """What an item says: words, a call's arguments, a result."""
    content = item.get("content", item.get("output", item.get("arguments", "")))
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content or () if isinstance(part, dict))


def exchanges(items: Sequence[Item]) -> list[list[Item]]:
    """Items in groups that each begin with what a person said."""
    groups: list[list[Item]] = []
    for item in items:
        if item.get("role") == "user" or not groups:
            groups.append([])
        groups[-1].append(item)
    return groups


def fit(items: Sequence[Item], most: int = MOST) -> list[Item]:
    """The end of a conversation, as much of it as the model can read.

    Whole exchanges leave from the front: a call without its result, or a result without its
    call, would be refused by servers. The last exchange always stays. In older ones, calls
    that failed are left out, and lists are shortened.

    Args:
        items: The conversation, oldest first.
        most: Tokens, as :func:`~helpers.agent.guardrails.tokens` counts.
    """
    *before, now = exchanges(items) or [[]]
    kept = [_short(item) for item in now]
    left = most - cost(kept)
    for group in reversed(before):
        group = [_short(item) for item in _without_failures(group)]
        left -= cost(group)
        if left < 0:
            break
        kept = [*group, *kept]
    return kept


def done_last(groups: Sequence[Sequence[Item]]) -> list[dict[str, Any]]:
    """The calls of the last exchange that were carried out, with name and arguments.

    Args:
        groups: The conversation, as :func:`exchanges` gives it.
    """
    kept = [item for item in (_without_failures(groups[-1]) if groups else []) if "name" in item]
    return [{"name": c["name"], "arguments": json.loads(c["arguments"])} for c in kept]


def cost(items: Sequence[Item]) -> int:
    """About how many tokens items take in the prompt."""
    return sum(tokens(text_of(item) + str(item.get("name", ""))) + 8 for item in items)


def _without_failures(group: Sequence[Item]) -> list[Item]:
    failed = {
        item.get("call_id")
        for item in group
        if item.get("type") == "function_call_output" and '"error"' in text_of(item)[:12]
    }
    kept = [item for item in group if item.get("call_id") is None or item["call_id"] not in failed]
    # An exchange in which nothing came about: its words would only lead a small model astray.
    return [] if failed and not any("call_id" in item for item in kept) else kept


def _short(item: Item) -> Item:
    """An item with at most a few tasks of a list, and without fields that say nothing."""
    if item.get("role") == "assistant" and len(said := text_of(item)) > LONGEST:
        return {"role": "assistant", "content": said[:LONGEST].rstrip() + "..."}
    if item.get("type") != "function_call_output":
        return item
    try:
        tasks = json.loads(text_of(item))["tasks"]
    except (ValueError, KeyError, TypeError):
        return item
    return {**item, "output": json.dumps({"tasks": _told(tasks[:TASKS_SHOWN])}, ensure_ascii=False)}


def clean(item: Item) -> Item:
    """An item whose texts cannot begin a message of their own in the prompt, and
    requests in plain spelling."""
    if item.get("type") == "function_call_output":
        return {**item, "output": harmless(text_of(item))}
    if item.get("role") == "assistant":
        return {"role": "assistant", "content": harmless(text_of(item))}
    if item.get("role") == "user":
        return {**item, "content": plain(text_of(item))}
    return item


def as_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages with role and content, for checks that read a conversation."""
    messages = []
    for item in items:
        if item.get("type") == "function_call_output":
            messages.append({"role": "tool", "content": text_of(item)})
        elif item.get("role"):
            messages.append({"role": item["role"], "content": text_of(item)})
    return messages


def exchange(request: str, calls: Sequence[Mapping[str, Any]], answer: str) -> list[Any]:
    """A request, the calls that were carried out for it, and what was answered, as items."""
    items: list[Item] = [{"role": "user", "content": request}]
    for call in calls:
        one = {"call_id": f"call_{secrets.token_hex(8)}"}  # the SDK keeps the last of each id
        given = json.dumps(call["arguments"])
        items.append({"type": "function_call", **one, "name": call["name"], "arguments": given})
        result = json.dumps(call["result"], ensure_ascii=False)
        items.append({"type": "function_call_output", **one, "output": result})
    return [*items, {"role": "assistant", "content": answer}]


def listing(tasks: Sequence[Mapping[str, Any]]) -> list[Item]:
    """An exchange in which tasks were listed, so that the model knows their numbers; nothing where
    there are none."""
    if not tasks:
        return []
    said = "; ".join(f"{task['task_id']} {task['title']}" for task in tasks)
    call = {"name": "list_tasks", "arguments": {}, "result": {"tasks": _told(tasks)}}
    many = f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}"
    return exchange(LISTING, [call], f"{many}: {said}.")


def _told(tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tasks without fields that say nothing."""
    return [{k: v for k, v in task.items() if v is not None} for task in tasks]
