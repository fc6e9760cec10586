"""Make the models anew, from nothing: words, tokenizer, training, export, measurement, curves.

    uv pip install -e ".[train]"          # once; torch and a few more, never needed by learners
    python model/make.py                  # both models, all steps
    python model/make.py --only export    # one step: tokenizer, train, export, measure, curve
    python model/make.py --models task-api-model-mini --minutes 30
    python model/make.py --models task-api-model --tokens 107e6

    python model/make.py --only curve --runs task-api-model=full   # of a run in work/train/full
    python model/make.py --only draw      # the picture of curves.json again
    python model/make.py --models task-api-model --mean OUT.gguf A.gguf=0.85 B.gguf=0.15

How many tokens each model is trained on stands in train.py, and what that takes: minutes on a
large GPU, days on two cores, where `--tokens` or `--minutes` make less of it.
Training goes on from its last checkpoint. A step whose input changed has to be asked for: the
tokenizer is kept once it exists, because every checkpoint depends on it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

STEPS = ["tokenizer", "train", "export", "measure", "curve", "draw"]
MODELS = ["task-api-model", "task-api-model-mini"]
TOKENIZER = HERE / "tokenizer.json"
WORK = HERE.parent / "work" / "train"
CURVES = HERE / "curves.json"
CURVES_SPLIT = "dev"  # the test split is for finished models


def make_tokenizer(conversations: int = 20_000) -> None:
    import tokenizer
    from data import conversations as stream
    from render import render

    tokenizer.train((render(*c) for c in islice(stream(0), conversations)), TOKENIZER)


def load(checkpoint: Path) -> tuple:
    """The network of a checkpoint, and how many tokens it had seen."""
    import torch
    from net import Net, Shape

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    net = Net(Shape(**saved["shape"]))
    net.load_state_dict(saved["net"])
    return net, saved["tokens"]


def export(name: str, checkpoint: Path | None = None, out: Path | None = None) -> Path:
    """Write NAME.gguf from a checkpoint and note its hash; returns the file's path."""
    from export import export as write

    net, tokens = load(checkpoint or WORK / name / "final.pt")
    path = out or HERE / f"{name}.gguf"
    write(net, TOKENIZER, path, name)
    if out is None:
        hashes = HERE / "hashes.json"
        known = json.loads(hashes.read_text(encoding="utf-8")) if hashes.exists() else {}
        known[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        hashes.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    size, seen = path.stat().st_size / 1e6, tokens / 1e6
    print(f"{path.name}: {size:.1f} MB after {seen:.1f} M tokens")
    return path


def mean(name: str, out: Path, parts: dict[str, float]) -> Path:
    """Write the weighted mean of GGUF files that have the shape of NAME's recipe, as a GGUF file.

    Weights of runs that began at the same place can be averaged (Wortsman et al., 2022, "Model
    soups"); `parts` gives each file's share, all together 1. ValueError if they are not."""
    import tokenizer
    from export import export as write
    from export import read
    from net import Net
    from train import RECIPES, shape_of

    if abs(sum(parts.values()) - 1) > 1e-6:
        raise ValueError(f"The shares add up to {sum(parts.values()):g}, not to 1.")
    found: dict = {}
    for path, share in parts.items():
        net = Net(shape_of(RECIPES[name], tokenizer.load(TOKENIZER)))
        net.take(read(Path(path)), [])
        for key, value in net.state_dict().items():
            found[key] = found.get(key, 0) + share * value
    net.load_state_dict(found)
    write(net, TOKENIZER, out, name)
    return out


def measure(name: str, split: str = "test") -> None:
    """Print the table of a model on a frozen split and keep it in work/train/NAME/SPLIT.json."""
    from helpers import backend, evaluation

    cases = evaluation.load_cases(HERE / "evaluation" / f"{split}.jsonl")
    with backend.serve(HERE / f"{name}.gguf", threads=1) as server:
        report = evaluation.evaluate(cases, url=server.url, model=server.model)
    print(report.table())
    (WORK / name).mkdir(parents=True, exist_ok=True)
    (WORK / name / f"{split}.json").write_text(report.to_json(), encoding="utf-8")


def curve(runs: dict[str, str]) -> None:
    """Measure what a model could do after 1, 2, 4, 8 ... million tokens; write curves.json.

    What train.py kept in work/train/FOLDER/snapshots is exported and asked the dev set, and
    final.pt after it. All but the last point are from before the decay of the learning rate, which
    lifts a model by some percent: read the curve's course, and compare only last points.

    runs: folder in work/train by the model's name. Names that were measured before and are not
    among them stay in the file.
    """
    from helpers import backend, evaluation

    cases = evaluation.load_cases(CURVES_SPLIT)
    known = json.loads(CURVES.read_text(encoding="utf-8"))["runs"] if CURVES.exists() else []
    found = {run["name"]: run for run in known}
    for name, folder in runs.items():
        saved = sorted((WORK / folder / "snapshots").glob("*.pt"))
        saved += [p for p in [WORK / folder / "final.pt"] if p.exists()]
        points: dict[int, dict] = {}
        for checkpoint in saved:
            net, tokens = load(checkpoint)
            if tokens in points:  # the last snapshot and the end may be the same
                continue
            with tempfile.TemporaryDirectory() as temporary:
                path = export(name, checkpoint, Path(temporary) / f"{name}.gguf")
                with backend.serve(path, threads=1, slots=1) as server:
                    report = evaluation.evaluate(cases, url=server.url, model=server.model)
            points[tokens] = {"tokens": tokens, **report.overall.to_dict()}
            print(f"{name}: {report.overall.correct} of {report.overall.n}", flush=True)
        if not points:
            print(f"{name}: no snapshots in {WORK / folder}")
            continue
        parameters = sum(p.numel() for p in net.parameters())
        ordered = [points[tokens] for tokens in sorted(points)]
        found[name] = {"name": name, "parameters": parameters, "points": ordered}
    if found:
        data = {"split": CURVES_SPLIT, "runs": list(found.values())}
        CURVES.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def draw() -> None:
    """curves.svg from curves.json; prints its description."""
    from helpers import plots

    try:
        fig, alt = plots.learning(json.loads(CURVES.read_text(encoding="utf-8")))
    except ModuleNotFoundError as error:  # an environment with torch and without the rest
        sys.exit(
            f"{error}; {CURVES.name} is written. Where there is matplotlib: make.py --only draw"
        )
    plots.save(fig, CURVES.with_suffix(".svg"), alt)
    print(alt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STEPS)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--minutes", type=float, help="train by the clock instead of by tokens")
    parser.add_argument("--tokens", type=float, help="tokens to train on (default: the recipe's)")
    parser.add_argument("--processes", type=int, help="data-parallel processes, see train.py")
    parser.add_argument(
        "--runs",
        nargs="*",
        default=[],
        metavar="NAME=FOLDER",
        help="for curve: a run whose folder in work/train is not the model's name; NAME may be "
        "that of a model or any other, such as a size that was tried",
    )
    parser.add_argument(
        "--mean",
        nargs="+",
        metavar=("OUT", "FILE=SHARE"),
        help="write the weighted mean of GGUF files of one of --models, and nothing else",
    )
    args = parser.parse_args()
    if args.mean:
        if len(args.models) != 1:
            parser.error("--mean needs one of --models")
        out, *parts = args.mean
        shares = {path: float(share) for path, _, share in (part.rpartition("=") for part in parts)}
        print(mean(args.models[0], Path(out), shares))
        return
    wanted = lambda step: args.only in (None, step)  # noqa: E731
    if args.only == "tokenizer" or (args.only is None and not TOKENIZER.exists()):
        make_tokenizer()
    for name in args.models:
        if wanted("train"):
            command = [sys.executable, str(HERE / "train.py"), name]
            for option in ("minutes", "tokens", "processes"):
                value = getattr(args, option)
                command += [f"--{option}", str(value)] if value else []
            subprocess.run(command, check=True)
        if wanted("export"):
            export(name)
        if wanted("measure"):
            measure(name)
    if wanted("curve"):
        curve({name: name for name in args.models} | dict(run.split("=") for run in args.runs))
    if args.only in ("curve", "draw", None) and CURVES.exists():
        draw()


if __name__ == "__main__":
    main()
