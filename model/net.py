"""The network: a Llama-architecture decoder in plain PyTorch, as llama.cpp runs it.

Two things are set before training rather than learned (why, and what they gain: the model card):

- rotary frequencies: in each head the first pairs of dimensions turn with the position, the rest do
  not turn at all (GGUF stores that as `rope_freqs.weight`), so a head can look for content
  wherever it stands;
- layer 0's heads look exactly one, two, three … tokens back, and the first heads of layer 1 look
  for an earlier place with the same last tokens and say what followed there. That is copying.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from hints import DIGITS, NONE, STEPS, UNKNOWN
from torch import nn

ROPE_BASE = 10000.0
EPS = 1e-5
CONSTANT = 4.0  # value of the one embedding dimension (0) that is the same for every token


@dataclass(frozen=True)
class Shape:
    """Sizes of a network; vocab in tokens, context in tokens."""

    vocab: int
    dim: int = 256
    layers: int = 5
    heads: int = 4
    head_dim: int = 64
    hidden: int = 576
    context: int = 2048
    turning: int = 8  # pairs of dimensions per head that carry position

    def json(self) -> dict:
        return asdict(self)


def frequencies(shape: Shape) -> torch.Tensor:
    """Angle per position for each rotary pair, shape (head_dim / 2,); zero where content lives."""
    freqs = torch.zeros(shape.head_dim // 2)
    freqs[: shape.turning] = 2.2 * 0.5 ** torch.arange(shape.turning)
    return freqs


def rope_factors(shape: Shape) -> torch.Tensor:
    """The divisors llama.cpp applies to its standard frequencies to arrive at frequencies()."""
    half = shape.head_dim // 2
    standard = ROPE_BASE ** (-torch.arange(half) / half)
    wanted = frequencies(shape)
    return torch.where(wanted > 0, standard / wanted.clamp(min=1e-9), torch.full_like(wanted, 1e9))


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: int) -> torch.Tensor:
    """Turn the first `pairs` interleaved pairs of x, shape (batch, heads, time, head_dim)."""
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((turned.to(rest.dtype), rest), -1)


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        inner = s.heads * s.head_dim
        self.attn_norm = nn.Parameter(torch.ones(s.dim))
        self.ffn_norm = nn.Parameter(torch.ones(s.dim))
        self.q = nn.Linear(s.dim, inner, bias=False)
        self.k = nn.Linear(s.dim, inner, bias=False)
        self.v = nn.Linear(s.dim, inner, bias=False)
        self.o = nn.Linear(inner, s.dim, bias=False)
        self.gate = nn.Linear(s.dim, s.hidden, bias=False)
        self.up = nn.Linear(s.dim, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.dim, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        b, t, _ = x.shape
        s = self.s
        h = rms_norm(x, self.attn_norm)
        q, k, v = (
            p(h).view(b, t, s.heads, s.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin, s.turning), rotate(k, cos, sin, s.turning)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(b, t, -1)
        if kept is not None:  # the last layer: other positions lead nowhere
            x, a = x[kept], a[kept]
        x = x + self.o(a)
        h = rms_norm(x, self.ffn_norm)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Net(nn.Module):
    """int64 tokens (batch, time) -> logits (batch, time, vocab), or with kept, a bool mask of
    (batch, time), the logits of these positions alone, shape (sum of kept, vocab)."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.full((shape.dim,), 0.08))
        self.register_buffer("freqs", frequencies(shape)[: shape.turning], persistent=False)
        self.fixed: list[tuple[nn.Parameter, tuple, torch.Tensor]] = []
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(
        self,
        tokens: torch.Tensor,
        kept: torch.Tensor | None = None,
        outputs: dict[int, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        x = self.hidden(tokens, len(self.blocks), kept, outputs)
        return F.linear(rms_norm(x, self.norm), self.embed.weight)

    def hidden(
        self,
        tokens: torch.Tensor,
        layers: int,
        kept: torch.Tensor | None = None,
        outputs: dict[int, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """What the first `layers` layers make of tokens, (batch, time, dim), or with kept (sum of
        kept, dim). The outputs of the layers that are keys of `outputs` are left there."""
        angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * self.freqs
        cos, sin = angle.cos(), angle.sin()
        x = self.embed(tokens)
        for i, block in enumerate(self.blocks[:layers]):
            x = block(x, cos, sin, kept if i == layers - 1 else None)
            if outputs is not None and i in outputs:
                outputs[i] = x
        return x

    @torch.no_grad()
    def take(self, state: dict[str, torch.Tensor], insert: Iterable[int] = ()) -> list[int]:
        """Load the weights of a network with fewer layers. insert: in front of which of its layers,
        from 0, a new one goes, once for each. Returns where the new ones are here.

        A new layer changes nothing at first: what it adds to its input is zero."""
        insert = list(insert)
        own, new = {}, []
        for old in range(len(self.blocks) - len(insert)):
            for _ in range(insert.count(old)):
                new.append(len(own) + len(new))
            own[old] = len(own) + len(new)
        renamed = {}
        for name, tensor in state.items():
            _, number, rest = [*name.split(".", 2), ""][:3] if "blocks." in name else ("", "", "")
            renamed[f"blocks.{own[int(number)]}.{rest}" if number else name] = tensor
        missing = self.load_state_dict(renamed, strict=False)
        assert not missing.unexpected_keys
        assert all(int(key.split(".")[1]) in new for key in missing.missing_keys)
        for i in new:
            self.blocks[i].o.weight.zero_()
            self.blocks[i].down.weight.zero_()
        for i in new[1:2]:
            # The second one begins by looking where layer 1 looks, which has learned to find the
            # same words; more sharply, for what layer 1 added stands in its way.
            self.blocks[i].attn_norm.copy_(self.blocks[1].attn_norm)
            self.blocks[i].q.weight.copy_(self.blocks[1].q.weight * 2.5)
            self.blocks[i].k.weight.copy_(self.blocks[1].k.weight)
        self._hold_first()
        return new

    @torch.no_grad()
    def _initialise(self, g: torch.Generator) -> None:
        s = self.shape
        normal = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
        self.embed.weight.copy_(normal(s.vocab, s.dim))
        for block in self.blocks:
            for linear in (block.q, block.k, block.v, block.gate, block.up):
                linear.weight.copy_(normal(*linear.weight.shape) * s.dim**-0.5)
            for linear in (block.o, block.down):
                linear.weight.copy_(
                    normal(*linear.weight.shape) * (linear.weight.shape[1] * 2 * s.layers) ** -0.5
                )
        self._look_back(self.blocks[0])
        self._copy(self.blocks[1], g)

    def _look_back(self, block: Block) -> None:
        """Head n of layer 0 attends exactly n + 1 tokens back and hands on a part of that token."""
        s, c = self.shape, CONSTANT
        self.embed.weight[:, 0] = c
        gain = c / math.sqrt((c * c + s.dim - 1) / s.dim)  # the constant after RMSNorm
        block.q.weight.zero_()
        block.k.weight.zero_()
        strength = 6.0 * math.sqrt(math.sqrt(s.head_dim)) / gain
        freqs = frequencies(s)[: s.turning]
        part = self._part()
        block.o.weight.zero_()
        block.v.weight.zero_()
        for head in range(s.heads):
            rows = slice(head * s.head_dim, (head + 1) * s.head_dim)
            even = torch.arange(s.turning) * 2 + head * s.head_dim
            back = (head + 1) * freqs
            # The query is the key's vector turned back by head + 1 positions.
            block.k.weight[even, 0] = strength
            block.q.weight[even, 0] = strength * back.cos()
            block.q.weight[even + 1, 0] = -strength * back.sin()
            # v takes `part` directions of the token, o writes them to directions of their own.
            width = min(part, s.head_dim)
            first = rows.start
            block.v.weight[first : first + width] = self._identity(width)
            block.o.weight[:, first : first + width] = self._place(head, width).T
        self._hold_first()

    def _hold_first(self) -> None:
        """Note what hold() puts back: where layer 0 looks, and the constant."""
        block = self.blocks[0]
        self.fixed = [(w, (slice(None),), w.clone()) for w in (block.q.weight, block.k.weight)]
        constant = (slice(None), slice(0, 1))
        self.fixed.append((self.embed.weight, constant, self.embed.weight[constant].clone()))

    def _part(self) -> int:
        """Directions of a token's identity that are handed on by a look-back head."""
        return self.shape.dim // (self.shape.heads + 4)

    def _identity(self, width: int) -> torch.Tensor:
        """`width` orthonormal directions in which a token's embedding is read; the same for all
        look-back heads, so that 'the token before' can be compared with 'the token now'."""
        g = torch.Generator().manual_seed(11)
        d = self.shape.dim
        m = torch.linalg.qr(torch.randn(d - 1, d - 1, generator=g))[0][:width]
        return torch.cat((torch.zeros(width, 1), m), 1)

    def _place(self, head: int, width: int) -> torch.Tensor:
        """Where look-back head `head` writes: orthonormal directions, disjoint between heads and
        from those of _identity."""
        g = torch.Generator().manual_seed(11)
        d = self.shape.dim
        m = torch.linalg.qr(torch.randn(d - 1, d - 1, generator=g))[0]
        start = (head + 1) * width
        m = m[start : start + width]
        return torch.cat((torch.zeros(m.shape[0], 1), m), 1)

    def _copy(self, block: Block, g: torch.Generator) -> None:
        """Heads of layer 1 find a place whose preceding tokens are the last tokens here."""
        s = self.shape
        part = self._part()
        content = s.head_dim - 2 * s.turning
        first = 2 * s.turning
        matched = 3
        each = min(content // matched, part)
        for head in range(max(1, s.heads - 1)):
            base = head * s.head_dim + first
            rows = slice(head * s.head_dim, (head + 1) * s.head_dim)
            block.q.weight[rows] *= 0.1
            block.k.weight[rows] *= 0.1
            for n in range(matched):
                mix = torch.linalg.qr(torch.randn(part, part, generator=g))[0][:each]
                now = self._identity(part) if n == 0 else self._place(n - 1, part)
                then = self._place(n, part)
                place = slice(base + n * each, base + (n + 1) * each)
                strength = (3.0, 2.2, 1.6)[n]
                block.q.weight[place] = mix @ now * strength
                block.k.weight[place] = mix @ then * strength
            # Together the copying heads carry the whole identity of the token they look at.
            g2 = torch.Generator().manual_seed(23)
            d = s.dim
            m = torch.linalg.qr(torch.randn(d - 1, d - 1, generator=g2))[0]
            m = m[head * s.head_dim : (head + 1) * s.head_dim]
            m = torch.cat((torch.zeros(m.shape[0], 1), m), 1)
            m = F.pad(m, (0, 0, 0, s.head_dim - m.shape[0]))
            block.v.weight[rows] = m
            block.o.weight[:, rows] = m.T * 2.0

    @torch.no_grad()
    def hold(self) -> None:
        """Put back what training must not move; call after each optimizer step."""
        device = self.embed.weight.device
        if self.fixed and self.fixed[0][2].device != device:
            self.fixed = [(p, index, value.to(device)) for p, index, value in self.fixed]
        for parameter, index, value in self.fixed:
            parameter[index] = value


class Readers(nn.Module):
    """Linear classifiers that read the hints (hints.py), one for each step; thrown away after
    training. dim: width of the network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.Linear(dim, DIGITS * (NONE + 1)) for _ in range(STEPS))
        for linear in self.read:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _read(
        self, outputs: dict[int, torch.Tensor], wanted: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each hint (logits, digits): (hints, DIGITS, NONE + 1) and (hints, DIGITS). wanted is
        on the CPU: a GPU would have to wait until it is known how many hints there are."""
        for i, (x, linear) in enumerate(zip(outputs.values(), self.read, strict=True)):
            asked = wanted[:, :, i].flatten(0, 1)
            places = (asked[:, 0] != UNKNOWN).nonzero().squeeze(1)
            there = x.flatten(0, 1).index_select(0, places.to(x.device, non_blocking=True))
            there = F.rms_norm(there.float(), there.shape[-1:])
            digits = asked[places].long().to(x.device, non_blocking=True)
            yield linear(there).view(-1, DIGITS, NONE + 1), digits

    def loss(self, outputs: dict[int, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        """Sum of the mean cross-entropies. outputs: (batch, time, dim) of the layers, in order;
        wanted: classes on the CPU, (batch, time, STEPS, DIGITS), UNKNOWN where nothing is asked."""
        total = torch.zeros((), device=self.read[0].weight.device)
        for logits, asked in self._read(outputs, wanted):
            # A sum over none is 0: many batches hold no list.
            each = F.cross_entropy(
                logits.flatten(0, 1), asked.flatten(), reduction="sum", ignore_index=UNKNOWN
            )
            total = total + each / (asked != UNKNOWN).sum().clamp(min=1)
        return total

    def right(self, outputs: dict[int, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        """(STEPS, 2): how many numbers, or digits, are read right at each step, and of how many."""
        found = []
        for logits, asked in self._read(outputs, wanted):
            whole = (asked[:, 1:] != UNKNOWN).any()  # else one digit at a time, NONE at the end
            there = asked[:, 0] != (NONE if whole else UNKNOWN)
            good = ((logits.argmax(-1) == asked) | (asked == UNKNOWN)).all(-1)
            found.append([int(good[there].sum()), int(there.sum())])
        return torch.tensor(found, dtype=torch.float32)
