"""Spans of the OpenAI Agents SDK as a tree, without what changes from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.lesson import call_text


def tree(spans: Sequence[Any], parent: str | None = None, indent: str = "") -> str:
    """The spans of one run as lines of text: each below its parent, in the order of starting.

    Args:
        spans: ``agents.tracing.Span`` objects, whole or still open, in the order of starting.
        parent: The ``span_id`` whose children are drawn; None: from the top.
        indent: What stands before each line.

    Returns:
        One line per span. Times and ids are left out, so the same run gives the same tree.
    """
    children = [span for span in spans if span.parent_id == parent]
    lines = []
    for span in children:
        last = span is children[-1]
        lines.append(f"{indent}{'└─' if last else '├─'} {span.span_data.type} {_label(span)}")
        below = tree(spans, span.span_id, indent + ("   " if last else "│  "))
        lines += [below] if below else []
    return "\n".join(lines)


def _label(span: Any) -> str:
    data = span.span_data
    failed = f" failed: {span.error['message']}" if span.error else ""
    if data.type == "generation":
        usage = data.usage or {}
        sizes = (
            f": {usage.get('input_tokens', 0)} tokens in, {usage.get('output_tokens', 0)} out"
            if usage
            else ""
        )
        return f"{data.model}{sizes}{failed}"
    if data.type == "function":
        return call_text({"name": data.name, "arguments": data.input or "{}"}) + failed
    return f"{getattr(data, 'turn', None) or getattr(data, 'name', '')}{failed}"
