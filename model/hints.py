"""What the middle of the network is taught beside the answers: which list entry a word belongs to.

"Bin the piano one" takes three steps: every token of a list entry must know the number of its
entry, the word "piano" in the request must find the same word in a title and fetch the number from
there, and the answer must copy the number from the word. The first two are worth nothing alone, so
the loss of the answers hardly ever rewards them (536 M tokens did not). Hints reward them directly:
after one layer a linear classifier reads the digits at the tokens of list entries, after the next
one another reads them at words of requests. The classifiers are thrown away after training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

DIGITS = 4  # of a number, that are asked for; those that it lacks are class NONE
NONE = 10
UNKNOWN = -1  # no hint here
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.S)
# An object that begins with a number, as tools write tasks; MCP's results hold JSON in JSON.
ENTRY = re.compile(r'\{\\?"(?:task_)?id\\?": ?\\?"?(?:[A-Za-z]*[-_#]?)(\d+)')
TITLE = re.compile(r'\\?"title\\?": ?\\?"(.*?)\\?"[,}]')
WORD = re.compile(r"\w{4,}")  # shorter ones are rarely what names a task


def digits(number: str) -> list[int]:
    """The first DIGITS digits of a number, NONE for those that it lacks."""
    return ([int(c) for c in number[:DIGITS]] + [NONE] * DIGITS)[:DIGITS]


def marks(text: str) -> tuple[list[tuple[int, int, str]], list[tuple[int, str]]]:
    """Where a rendered conversation gives reason for hints.

    Returns (entries, words): for every list entry (start, stop, number) of what follows its
    number, and for every word of a request that just one known title has (stop, number). Start and
    stop are offsets in text.
    """
    entries: list[tuple[int, int, str]] = []
    words: list[tuple[int, str]] = []
    titles: dict[str, set[str]] = {}
    for turn in TURN.finditer(text):
        role, body, base = turn[1], turn[2], turn.start(2)
        if role == "tool":
            for entry in ENTRY.finditer(body):
                stop = body.find("}", entry.end())
                stop = len(body) if stop < 0 else stop
                entries.append((base + entry.end(), base + stop, entry[1]))
                if title := TITLE.search(body, entry.end(), stop + 1):
                    titles[entry[1]] = {w.lower() for w in WORD.findall(title[1])}
        elif role == "user" and len(titles) > 1:
            for word in WORD.finditer(body):
                found = [n for n, known in titles.items() if word[0].lower() in known]
                if len(found) == 1:
                    words.append((base + word.end(), found[0]))
    return entries, words


def labels(text: str, offsets: list[tuple[int, int]]) -> torch.Tensor:
    """int8 (tokens, 2, DIGITS): the digits that the hints after the first and the second layer
    ask for, UNKNOWN where they ask for nothing. offsets: where in text each token stands."""
    entries, words = marks(text)
    out = torch.full((len(offsets), 2, DIGITS), UNKNOWN, dtype=torch.int8)
    i = 0
    for start, stop, number in entries:
        while i < len(offsets) and offsets[i][0] < start:
            i += 1
        first = i
        while i < len(offsets) and offsets[i][0] < stop:
            i += 1
        out[first:i, 0] = torch.tensor(digits(number), dtype=torch.int8)
    i = 0
    for stop, number in words:
        while i < len(offsets) and offsets[i][1] < stop:
            i += 1
        if i < len(offsets):  # the last token of the word: only there is the whole word known
            out[i, 1] = torch.tensor(digits(number), dtype=torch.int8)
    return out


class Readers(nn.Module):
    """The two classifiers; dim: width of the network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.Linear(dim, DIGITS * (NONE + 1)) for _ in range(2))
        for linear in self.read:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _read(
        self, outputs: dict[int, torch.Tensor], wanted: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each hint (logits, digits): (hints, DIGITS, NONE + 1) and (hints, DIGITS)."""
        for i, (x, linear) in enumerate(zip(outputs.values(), self.read, strict=True)):
            kept = wanted[:, :, i, 0] != UNKNOWN
            x = F.rms_norm(x[kept].float(), x.shape[-1:])
            yield linear(x).view(-1, DIGITS, NONE + 1), wanted[:, :, i][kept].long()

    def loss(self, outputs: dict[int, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        """Sum of the two mean cross-entropies. outputs: (batch, time, dim) of the two layers, in
        order; wanted: labels(), (batch, time, 2, DIGITS)."""
        total = torch.zeros((), device=wanted.device)
        for logits, asked in self._read(outputs, wanted):
            # A sum over none is 0: many batches hold no list.
            each = F.cross_entropy(logits.flatten(0, 1), asked.flatten(), reduction="sum")
            total = total + each / max(1, asked.numel())
        return total

    def right(self, outputs: dict[int, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        """(2, 2): for each hint how many numbers are read right, all digits, and of how many."""
        found = [
            [(logits.argmax(-1) == asked).all(-1).sum(), len(asked)]
            for logits, asked in self._read(outputs, wanted)
        ]
        return torch.tensor(found, dtype=torch.float32)
