"""Train a model from nothing on synthetic conversations; checkpoints let it go on where it was.

    python model/train.py task-api-model           # as many tokens as its recipe says
    python model/train.py task-api-model-mini --tokens 40e6
    python model/train.py task-api-model --minutes 480
    python model/train.py task-api-model --start model/task-api-model.gguf --run second
    python model/train.py task-api-model --start OLD.gguf --insert 2 2 2 --minutes 120

Runs on one GPU where torch finds one, otherwise on two cores of the CPU, with batches of the size
that suits each. A GPU of 2023 (H100) takes minutes. Two cores read 1,100 to 5,900 tokens a second:
the 536 M tokens of task-api-model take them days. A night is 40 to 210 M tokens, see the card.
With eight layers and no hints, 107 M had 90.4 % of the dev set right and 536 M 93.8 %.

A checkpoint is written every few minutes to work/train/NAME; the same command resumes from it.
`--minutes` ends by the clock instead of by tokens, with the whole learning-rate decay inside that
time. A terminal shows one line with the time left; anything else gets JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import tokenizer as tk  # noqa: E402
from data import POINTING, conversations  # noqa: E402
from export import read  # noqa: E402
from hints import DIGITS, STEPS, UNKNOWN, labels  # noqa: E402
from net import Net, Readers, Shape  # noqa: E402
from render import render, spans  # noqa: E402

WORK = HERE.parent / "work" / "train"
LONGEST = 1024  # tokens of a conversation that is trained on; the rest of a longer one is left out
POOL = 1024  # conversations drawn, sorted by length and cut into batches at a time


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one trained model from another."""

    shape: dict
    seed: int
    tokens: int  # to see, unless --tokens or --minutes says otherwise
    batch: int = 2048  # tokens per process on a CPU, padding included
    gpu_batch: int = 65_536  # a GPU takes as long for a step of half as many
    # At 0.008 and above the residual stream grew a hundredfold, attention froze, and the model
    # copied well but never learned what to do (held-out loss 0.26 with 23 % of dev right).
    muon: float = 0.003
    adam: float = 3e-3
    old: float = 1.0  # factor on both rates for what --start brought along; 0: it stays as it is
    pointing: float = POINTING  # share of conversations about tasks that a list showed
    hints: float = 0.3  # weight of the hints (hints.py) beside the loss of the answers
    hinted: int = 2  # the layer whose output the first hint reads; the others read the next ones
    quiet: float = 0.3  # with --hints-first: cost of what the new layers change, see there


RECIPES = {
    "task-api-model": Recipe({"layers": 11}, seed=1, tokens=536_000_000),
    "task-api-model-mini": Recipe(
        {"dim": 160, "heads": 5, "head_dim": 32, "hidden": 384, "turning": 4},
        seed=2,
        tokens=105_000_000,
        hints=0.0,
    ),
}


def shape_of(recipe: Recipe, tok) -> Shape:
    """A recipe's shape with room for the tokenizer's vocabulary."""
    # A whole multiple keeps matrix products aligned; the surplus entries are never used.
    return Shape(vocab=-(-tok.get_vocab_size() // 16) * 16, **recipe.shape)


def encode(
    tok, messages: list[dict], tools: list[dict] | None
) -> tuple[list[int], list[float], dict[tuple[int, int], list[int]]]:
    """Token ids of a conversation, the weight of each in the loss, and hints by (token, step).

    Most tokens of an answer are copied and soon easy; what an answer is about hangs on a few.
    So the first token of an answer (a call or words) and those that follow boilerplate (the name
    of a tool or argument, where a value begins, whether another call comes) weigh more, and the
    confirmation of a result, which only repeats it, weighs less.
    """
    text = render(messages, tools).rstrip("\n")
    base = []
    for before, message in zip([{}, *messages], messages, strict=False):
        if message["role"] == "assistant":
            confirms = before.get("role") == "tool" and message["content"]
            base.append((CONFIRMING if confirms else 1.0) * message.get("learn", True))
    base = iter(base)
    pieces = [(piece, next(base) if said else 0.0) for piece, said in spans(text)]
    ids: list[int] = []
    weights: list[float] = []
    offsets: list[tuple[int, int]] = []
    start = 0
    boilerplate = {tok.token_to_id(text) for text in tk.FIXED}
    digits = {tok.token_to_id(digit) for digit in "0123456789"}
    encoded = tok.encode_batch([p for p, _ in pieces], add_special_tokens=False)
    for (piece, weight), e in zip(pieces, encoded, strict=True):
        offsets += [(start + a, start + b) for a, b in e.offsets]
        start += len(piece)
        found = e.ids
        ids += found
        if not weight:
            weights += [0.0] * len(found)
            continue
        for i, token in enumerate(found):
            decides = i == 0 or (found[i - 1] in boilerplate and token not in boilerplate)
            decides = decides or token in digits  # ids may differ in their last digit only
            weights.append(weight * (DECIDING if decides else 1.0))
    return ids, weights, labels(text, offsets)


CONFIRMING, DECIDING = 0.8, 4.0
BAR = "{desc} |{bar}| {n:.0f} %, {remaining} left, {postfix}"


def batches(
    tok, seed: int, size: int, pointing: float = POINTING
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """Endless (tokens, targets, weights, hints, real tokens)."""
    stream = conversations(seed, pointing)
    order = random.Random(seed)
    while True:
        pool = []
        while len(pool) < POOL:
            ids, weights, hints = encode(tok, *next(stream))
            if any(weights[:LONGEST]):
                pool.append((ids[:LONGEST], weights[:LONGEST], hints))
        pool.sort(key=lambda one: len(one[0]))
        groups: list[list] = [[]]
        for one in pool:
            if (len(groups[-1]) + 1) * len(one[0]) > size:
                groups.append([])
            groups[-1].append(one)
        order.shuffle(groups)
        for group in groups:
            longest = -(-max(len(ids) for ids, _, _ in group) // 32) * 32
            tokens = torch.zeros(len(group), longest + 1, dtype=torch.long)
            weights = torch.zeros(len(group), longest + 1)
            hints = torch.full((len(group), longest, STEPS, DIGITS), UNKNOWN, dtype=torch.int8)
            for i, (ids, weight, hint) in enumerate(group):
                tokens[i, : len(ids)] = torch.tensor(ids)
                weights[i, : len(ids)] = torch.tensor(weight)
                kept = {at: classes for at, classes in hint.items() if at[0] < len(ids)}
                if kept:  # all at once: one by one they took a quarter of the time
                    places, steps = torch.tensor(list(kept)).T
                    padded = [(c + [UNKNOWN] * DIGITS)[:DIGITS] for c in kept.values()]
                    hints[i, places, steps] = torch.tensor(padded, dtype=torch.int8)
            real = sum(len(ids) for ids, _, _ in group)
            yield tokens[:, :-1], tokens[:, 1:], weights[:, 1:], hints, real


class Stream(torch.utils.data.IterableDataset):
    """The batches of batches(), written by worker processes: a GPU reads faster than one process
    can write conversations. Each worker writes conversations of its own."""

    def __init__(self, tok, seed: int, size: int, pointing: float = POINTING) -> None:
        self.arguments = tok, seed, size, pointing

    def __iter__(self):
        tok, seed, size, pointing = self.arguments
        info = torch.utils.data.get_worker_info()
        if info:  # the process that starts the GPU's kernels goes before those that write for it
            os.nice(10)
        return batches(tok, seed + (info.id if info else 0), size, pointing)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz steps (Jordan et al., 2024,
    "Muon: an optimizer for hidden layers in neural networks"); for matrices only.

    torch.optim.Muon always computes in bf16, which a CPU without the instructions emulates many
    times slower; this one uses it only where it is fast. The step is scaled as there with
    adjust_lr_fn="match_rms_adamw". Matrices of one shape are orthogonalised together: a GPU
    would else spend its time starting hundreds of small products."""

    def __init__(self, params, lr: float, momentum: float = 0.95, rank: int = 0, ranks: int = 1):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.rank, self.ranks = rank, ranks

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if group["params"][0].grad is None:  # at rest
                continue
            shapes: dict[tuple, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.shape), []).append(p)
            for shape, params in shapes.items():
                self._step(params, shape, group["lr"], group["momentum"])

    def _step(self, params: list, shape: tuple, lr: float, momentum: float) -> None:
        grads = torch.stack([p.grad for p in params])
        state = self.state[params[0]]
        if "m" not in state:
            state["m"] = torch.zeros_like(grads)
        m = state["m"].lerp_(grads, 1 - momentum)
        wanted = grads.lerp_(m, momentum)
        if self.ranks > 1:
            # Orthogonalising takes a third as long as the gradients do: the processes share the
            # matrices among themselves and add up what each has done.
            updates = torch.zeros_like(wanted)
            own = slice(self.rank, None, self.ranks)
            if self.rank < len(params):
                updates[own] = orthogonal(wanted[own]).to(updates.dtype)
            torch.distributed.all_reduce(updates)
        else:
            updates = orthogonal(wanted).to(wanted.dtype)
        torch._foreach_mul_(params, 1 - lr * 0.2)
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr * 0.2 * max(shape) ** 0.5)


def orthogonal(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to those of g, shape (n, rows, columns)."""
    x = g.to(torch.bfloat16 if FAST else torch.float32)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if flip else x


def bf16_is_fast() -> bool:
    """Whether bf16 products are faster than fp32 ones here: a GPU, or a CPU with the instructions
    for it (others emulate them, many times slower)."""
    if torch.cuda.is_available():
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2048, 256, dtype=dtype), torch.randn(256, 768, dtype=dtype)
        a @ b
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


FAST = bf16_is_fast()


def learning_rate(progress: float, step: int) -> float:
    """Factor on the base rate: 100 steps of warm-up, then constant, decay to 0 from 40 % on."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - progress) / 0.6))


def doublings(tokens: int) -> int:
    """How often a million had to be doubled to reach so many tokens; -1 below a million. A
    snapshot for the learning curve (make.py) is kept whenever this grows."""
    return (tokens // 1_000_000).bit_length() - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--tokens", type=float, help="tokens to see (default: the recipe's)")
    parser.add_argument("--minutes", type=float, help="end by the clock instead")
    parser.add_argument("--run", help="name of the run's folder (default: the model's)")
    parser.add_argument(
        "--processes", type=int, help="data-parallel processes (default: on a CPU 2)"
    )
    parser.add_argument("--workers", type=int, help="processes that write conversations "
                        "(default: on a GPU all cores but two, otherwise none)")  # fmt: skip
    parser.add_argument("--set", nargs="*", default=[], help="shape or recipe values, e.g. dim=192")
    parser.add_argument("--eager", action="store_true", help="do not compile (which it does on a "
                        "GPU, and on a CPU with fast bf16 and g++)")  # fmt: skip
    parser.add_argument("--start", type=Path, help="a GGUF file to go on from, same shape")
    parser.add_argument("--insert", type=int, nargs="*", default=[], metavar="N", help="new layers "
                        "in front of layer N, from 0, of the one that --start names")  # fmt: skip
    parser.add_argument("--hints-first", type=float, default=0.0, metavar="SHARE", help="share of "
                        "the run in which the new layers alone learn, from hints")  # fmt: skip
    args = parser.parse_args()
    gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    args.tokens = args.tokens or RECIPES[args.name].tokens
    args.processes = args.processes or (1 if gpu else min(2, cores))
    if args.workers is None:
        args.workers = max(1, cores - 2) if gpu else 0
    if args.processes == 1:
        work(0, args)
    else:
        torch.multiprocessing.spawn(work, (args,), nprocs=args.processes)


def work(rank: int, args: argparse.Namespace) -> None:
    """One process of a training run; several share gradients and keep equal weights."""
    parallel = args.processes > 1
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if parallel:
        # One thread each: they meet once a step, where threads would meet at every product.
        torch.set_num_threads(1)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault(
            "MASTER_PORT", str(29500 + sum(map(ord, args.run or args.name)) % 400)
        )
        torch.distributed.init_process_group("gloo", rank=rank, world_size=args.processes)

    recipe = RECIPES[args.name]
    recipe = replace(recipe, batch=recipe.gpu_batch if gpu else recipe.batch)
    changes = dict(s.split("=") for s in args.set)
    shape_changes = {k: int(v) for k, v in changes.items() if k in Shape.__dataclass_fields__}
    other = {
        k: type(getattr(recipe, k))(float(v)) for k, v in changes.items() if k not in shape_changes
    }
    recipe = replace(recipe, **other, shape={**recipe.shape, **shape_changes})
    folder = WORK / (args.run or args.name)
    folder.mkdir(parents=True, exist_ok=True)
    tok = tk.load(HERE / "tokenizer.json")
    shape = shape_of(recipe, tok)
    net = Net(shape, recipe.seed).to(device)
    readers = Readers(shape.dim).to(device)
    new = net.take(read(args.start), args.insert) if args.start else []
    hinted = range(recipe.hinted, recipe.hinted + STEPS) if recipe.hints else ()
    fresh = {p for i in new for p in net.blocks[i].parameters()}
    old = {p for p in net.parameters() if args.start and p not in fresh}
    matrices = {p for b in net.blocks for p in b.parameters() if p.ndim == 2}
    trained = [*net.parameters(), *(readers.parameters() if hinted else ())]

    def groups(chosen: list) -> list[dict]:
        """Parameter groups, of what --start brought along and of the rest; one if all learn alike,
        because a GPU takes longer for two."""
        was = [p for p in chosen if p in old and recipe.old != 1]
        now = [p for p in chosen if p not in old or recipe.old == 1]
        pairs = ((was, recipe.old), (now, 1.0))
        return [{"params": part, "factor": factor} for part, factor in pairs if part]

    rest = [p for p in trained if p not in matrices]
    muon = Muon(groups([p for p in trained if p in matrices]), recipe.muon, rank=rank,
                ranks=args.processes)  # fmt: skip
    adam = torch.optim.AdamW(
        groups(rest), recipe.adam, betas=(0.9, 0.95), weight_decay=0.0, fused=gpu
    )

    step = tokens_seen = 0
    spent = 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        readers.load_state_dict(saved["readers"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        step, tokens_seen, spent = saved["step"], saved["tokens"], saved["seconds"]
        if rank == 0:
            print(f"resumed at step {step}, {tokens_seen / 1e6:.1f} M tokens", flush=True)

    def save(path: Path) -> None:
        state = {"net": net.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
        state |= {"readers": readers.state_dict()}
        state |= {"step": step, "tokens": tokens_seen, "seconds": spent, "shape": shape.json()}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def loss_of(
        tokens: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        outputs: dict[int, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        kept = weights > 0
        with torch.autocast(device, torch.bfloat16, enabled=FAST):
            # Picking out the positions that count saves a CPU much work; a GPU would have to wait
            # until it is known how many they are.
            logits = net(tokens, None if gpu else kept, outputs)
        if gpu:
            each = F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), reduction="none"
            )
            return (each * weights.flatten()).sum() / weights.sum()
        each = F.cross_entropy(logits.float(), targets[kept], reduction="none")
        return (each * weights[kept]).sum() / weights[kept].sum()

    def right(batches: list) -> list[float]:
        """Share of the hints that are read right, all digits, after each hinted layer."""
        found = torch.zeros(len(hinted), 2)
        for tokens, _, _, hints in batches:
            outputs = dict.fromkeys(hinted)
            with torch.autocast(device, torch.bfloat16, enabled=FAST):
                net.hidden(tokens, hinted[-1] + 1, outputs=outputs)
            found += readers.right(outputs, hints)
        return (found[:, 0] / found[:, 1].clamp(min=1)).tolist()

    if (gpu or (FAST and shutil.which("g++"))) and not args.eager:
        # One layer, compiled once for all layers and lengths: the whole network took minutes.
        for block in net.blocks:
            block.compile(dynamic=True)

    def there(batch: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        return [t.to(device, non_blocking=True) for t in batch]

    check = batches(tok, 10**9, recipe.batch)
    held_out = []
    for *batch, hints, _ in islice(check, 12 if rank == 0 else 0):
        held_out.append((*there(batch), hints))
    stream = Stream(tok, recipe.seed * 10**6 + step * 64 + rank, recipe.batch, recipe.pointing)
    workers = (
        {"num_workers": args.workers, "prefetch_factor": 8, "pin_memory": gpu}
        if args.workers
        else {}
    )
    source = iter(torch.utils.data.DataLoader(stream, batch_size=None, **workers))
    log = (folder / "log.jsonl").open("a", encoding="utf-8") if rank == 0 else None
    if rank == 0:
        print(f"{args.name}: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters on "
              f"{args.processes} x {device}, {'bf16' if FAST else 'fp32'}", flush=True)  # fmt: skip
    every = 200 if gpu else 50
    terminal = rank == 0 and sys.stdout.isatty()
    bar = tqdm(total=100, disable=not terminal, bar_format=BAR)
    waited = 0.0  # seconds for conversations that were not written yet
    started, last_save, average = time.time() - spent, time.time(), None
    while True:
        spent = time.time() - started
        # What every process must agree on: progress (by the clock of the first) and tokens.
        progress = spent / 60 / args.minutes if args.minutes else tokens_seen / args.tokens
        if parallel:
            shared = torch.tensor([progress], dtype=torch.float64)
            torch.distributed.broadcast(shared, 0)
            progress = shared.item()
        if progress >= 1:
            break
        rate = learning_rate(progress, step)
        for optimizer, base in ((muon, recipe.muon), (adam, recipe.adam)):
            for group in optimizer.param_groups:
                group["lr"] = base * rate * group["factor"]
        asked = time.time()
        *batch, hints, real = next(source)
        waited += time.time() - asked
        beginning = progress < args.hints_first
        for p in old:
            p.requires_grad_(recipe.old > 0 and not beginning)
        tokens, targets, weights = there(batch)
        outputs = dict.fromkeys(hinted)
        if beginning:
            outputs = dict.fromkeys((hinted[0] - 1, *hinted))
            with torch.autocast(device, torch.bfloat16, enabled=FAST):
                after = net.hidden(tokens, hinted[-1] + 1, outputs=outputs)
            # The layers behind know nothing of the new ones yet: what is added should be small, in
            # directions where little else is.
            before = outputs.pop(hinted[0] - 1)
            change = (after - before).float().square().mean() / before.float().square().mean()
            loss = readers.loss(outputs, hints) + recipe.quiet * change
        else:
            loss = loss_of(tokens, targets, weights, outputs)
            if hinted:
                loss = loss + recipe.hints * readers.loss(outputs, hints)
        loss.backward()
        if parallel:
            # The old layers may be at rest, and have no gradient then.
            learning = [p for p in trained if p.requires_grad]
            flat = torch.cat([p.grad.flatten() for p in learning] + [loss.detach()[None]])
            flat = torch.cat([flat, torch.tensor([float(real)])])
            torch.distributed.all_reduce(flat)
            real = int(flat[-1].item())
            loss = flat[-2] / args.processes
            grads = flat[:-2].div_(args.processes).split([p.numel() for p in learning])
            for p, g in zip(learning, grads, strict=True):
                p.grad.copy_(g.view_as(p))
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adam.step()
        net.hold()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        step += 1
        before, tokens_seen = tokens_seen, tokens_seen + real
        if rank == 0 and doublings(before) < doublings(tokens_seen):
            (folder / "snapshots").mkdir(exist_ok=True)
            save(folder / "snapshots" / f"{doublings(tokens_seen):02}.pt")
        # Kept as a tensor: reading it would make a GPU wait for the end of every step.
        average = loss.detach() if average is None else average.lerp(loss.detach(), 0.05)
        if rank == 0 and step % every == 0:
            row = {
                "step": step,
                "tokens": tokens_seen,
                "seconds": round(spent),
                "loss": round(float(average), 4),
            }
            if step % (5 * every) == 0:
                with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                    held = sum(loss_of(*one[:3]).item() for one in held_out) / len(held_out)
                    if hinted:
                        row["hints"] = [round(x, 3) for x in right(held_out)]
                row["held_out"] = round(held, 4)
            bar.set_postfix_str(f"loss {row['loss']:.3f}")
            told = {
                **row,
                "per_second": round(tokens_seen / max(spent, 1)),
                "waited": round(waited),
                "done": f"{progress:.0%}",
            }
            if not terminal:
                print(json.dumps(told), flush=True)
            log.write(json.dumps(row) + "\n")
            log.flush()
        bar.set_description_str(f"{tokens_seen / 1e6:.1f} M tokens", refresh=False)
        bar.update(100 * progress - bar.n)
        if rank == 0 and time.time() - last_save > 240:
            save(checkpoint)
            last_save = time.time()
    bar.close()
    if rank == 0:
        save(checkpoint)
        save(folder / "final.pt")
        print(f"done: {folder / 'final.pt'}", flush=True)


if __name__ == "__main__":
    main()
