"""Conversations as the model sees them: one Jinja template, rendered as llama.cpp renders it."""

from __future__ import annotations

import json
import string
from functools import cache
from pathlib import Path

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
ASSISTANT = "<|im_start|>assistant\n"
END = "<|im_end|>"
SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
LARGE = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)


@cache
def _template():
    from jinja2 import Environment

    # llama.cpp trims only what the template trims itself, and its tojson escapes no HTML.
    env = Environment(trim_blocks=False, lstrip_blocks=False, keep_trailing_newline=True)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    # Nor does it know other letters than those of ASCII.
    env.filters["lower"] = lambda text: text.translate(SMALL)
    env.filters["upper"] = lambda text: text.translate(LARGE)
    return env.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render(messages: list[dict], tools: list[dict] | None, generate: bool = False) -> str:
    """The prompt text of a conversation.

    messages: OpenAI chat messages; tools: OpenAI tool schemas or None; generate: append the
    start of the assistant's next turn.
    """
    return _template().render(
        messages=messages, tools=tools or None, add_generation_prompt=generate
    )


def spans(text: str) -> list[tuple[str, bool]]:
    """Cut rendered text into (piece, learned) pairs; learned pieces are what the assistant says,
    its end marker included."""
    pieces: list[tuple[str, bool]] = []
    rest = text
    while (start := rest.find(ASSISTANT)) >= 0:
        start += len(ASSISTANT)
        stop = rest.find(END, start)
        stop = len(rest) if stop < 0 else stop + len(END)
        pieces += [(rest[:start], False), (rest[start:stop], True)]
        rest = rest[stop:]
    if rest:
        pieces.append((rest, False))
    return pieces
