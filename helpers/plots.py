"""The pictures of measurements, each with its description in words.

Every function returns a matplotlib figure and its alternative text: a notebook shows both with
``helpers.lesson.figure``, a program writes them with :func:`save`. What a colour says, a marker,
a hatch or a label says too.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import CourseError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .confidence import Calibration
    from .evaluation import Rate, Report
    from .scenarios import EndStates

# Distinguishable with every kind of colour vision (Okabe and Ito, 2008).
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"
KINDS = (".svg", ".png", ".pdf")


def check_path(path: str | Path) -> Path:
    """A path that a picture can be written to.

    Raises:
        CourseError: It has no ending of a picture, or its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise CourseError(
            f"{path.name} is not the name of a picture that can be written.",
            f"The ending decides on the format, and must be one of {', '.join(KINDS)}.",
            f"Type for example: --plot {path.stem or 'behaviours'}.svg",
        )
    return check_folder(path)


def check_folder(path: Path) -> Path:
    """A path whose folder exists.

    Raises:
        CourseError: It does not; better said before minutes of measuring than after.
    """
    if not path.parent.is_dir():
        raise CourseError(
            f"{path.name} cannot be written.",
            f"There is no folder {path.parent}.",
            f"Make it first: mkdir {path.parent}",
        )
    return path


def save(fig: Figure, path: str | Path, alt: str) -> None:
    """Write a figure with its description; the same measurement gives the same file."""
    import matplotlib

    path = check_path(path)
    kind = path.suffix.lower()[1:]
    # Neither the time nor the version of the library has business in a file that git keeps.
    metadata: dict[str, Any] = {
        "svg": {"Date": None, "Description": alt},
        "png": {"Software": None, "Description": alt},
        "pdf": {"CreationDate": None, "Subject": alt},
    }[kind]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "course"}):
        fig.savefig(path, dpi=110, bbox_inches="tight", facecolor="white", metadata=metadata)
    if kind == "svg":
        # What a screen reader says of a picture is its title; matplotlib writes none.
        text = path.read_text(encoding="utf-8")
        start = text.index(">", text.index("<svg ")) + 1
        title = f' role="img">\n <title>{html.escape(alt, quote=False)}</title>'
        path.write_text(text[: start - 1] + title + text[start:], encoding="utf-8")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of its own, not one of pyplot's, which would stay in memory."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return fig, list(axes)


def _spread(rate: Rate) -> tuple[float, float]:
    """How far the interval reaches below and above the rate, in percent."""
    low, high = rate.interval
    return 100 * max(0.0, rate.rate - low), 100 * max(0.0, high - rate.rate)


def bars(rates: Mapping[str, Rate], title: str, xlabel: str = "right") -> tuple[Figure, str]:
    """Horizontal bars with 95 % intervals, each with its count in words.

    Args:
        rates: What to draw, by its label, from top to bottom.
        title: The heading.
        xlabel: What is counted.
    """
    rates = {name: rate for name, rate in rates.items() if rate.n}
    fig, (ax,) = _figure(7, 1.2 + 0.34 * len(rates))
    places = range(len(rates))
    spreads = [_spread(rate) for rate in rates.values()]
    ax.barh(
        places,
        [100 * rate.rate for rate in rates.values()],
        xerr=[[low for low, _ in spreads], [high for _, high in spreads]],
        color=BLUE,
        alpha=0.75,
        ecolor="black",
        capsize=3,
    )
    ax.set_yticks(places, list(rates))
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel(f"{xlabel}, in % (line: 95 % interval)")
    ax.set_title(title, loc="left")
    for place, rate in zip(places, rates.values(), strict=True):
        text = f"{rate.correct} of {rate.n}"
        ax.text(101.5, place, text, va="center", ha="left", clip_on=False)
    worst = min(rates, key=lambda name: rates[name].rate)
    parts = [f"{name} {rate.correct} of {rate.n}" for name, rate in rates.items()]
    alt = f"Bars with 95 % intervals: {title}. {xlabel.capitalize()}: {', '.join(parts)}."
    return fig, f"{alt} The lowest is {worst} with {100 * rates[worst].rate:.0f} %."


def behaviours(report: Report) -> tuple[Figure, str]:
    """How often each behaviour is right."""
    what = [report.model or "model"]
    what += [f"schema {report.variant}"] * bool(report.variant)
    what += [f"noise {report.noise}"] * (report.noise is not None)
    return bars({**report.categories, "all": report.overall}, ", ".join(what))


def reliability(calibrations: Sequence[Calibration]) -> tuple[Figure, str]:
    """How often a call is right, against how sure the model was of it, one model beside another.

    Circles are the model's own probabilities, squares the calibrated ones; a figure beside a
    mark is the number of calls behind it. On the dashed line, what is promised is kept.
    """
    fig, axes = _figure(4.6 * len(calibrations), 4.8, len(calibrations))
    described = []
    for ax, calibration in zip(axes, calibrations, strict=True):
        ax.plot([0, 100], [0, 100], "--", color=GREY, linewidth=1, label="promise kept")
        for name, marker, colour, line, bins in (
            ("as reported", "o", ORANGE, ":", calibration.raw),
            ("calibrated", "s", BLUE, "-", calibration.calibrated),
        ):
            spreads = [_spread(b.rate) for b in bins]
            ax.errorbar(
                [100 * b.confidence for b in bins],
                [100 * b.rate.rate for b in bins],
                yerr=[[low for low, _ in spreads], [high for _, high in spreads]],
                marker=marker,
                color=colour,
                linestyle=line,
                linewidth=1.2,
                elinewidth=0.8,
                capsize=2,
                label=name,
            )
            for b in bins:
                ax.annotate(
                    str(b.rate.n),
                    (100 * b.confidence, 100 * b.rate.rate),
                    (6, -10 if marker == "o" else 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                )
        ax.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="probability of the call, in %")
        ax.set_ylabel("calls that are right, in %")
        ax.set_title(calibration.model, loc="left")
        ax.legend(loc="lower right", frameon=False, fontsize=8)
        described.append(
            f"{calibration.model}: {calibration.overall.correct} of {calibration.overall.n} calls "
            f"right, expected calibration error {100 * calibration.raw_error:.1f} % as reported "
            f"and {100 * calibration.error:.1f} % calibrated"
        )
    alt = "Reliability: how often a call is right against the probability that was reported. "
    return fig, alt + "; ".join(described) + "."


def conversations(states: EndStates) -> tuple[Figure, str]:
    """How many conversations ended right, by number of turns, and what single requests predict."""
    rates = states.by_turns
    fig, (ax,) = _figure(7, 3.6)
    spreads = [_spread(rate) for rate in rates.values()]
    ax.errorbar(
        list(rates),
        [100 * rate.rate for rate in rates.values()],
        yerr=[[low for low, _ in spreads], [high for _, high in spreads]],
        fmt="o",
        color=BLUE,
        capsize=3,
        label="ended right (line: 95 % interval)",
    )
    for turns, rate in rates.items():
        text = f"{rate.correct} of {rate.n}"
        ax.annotate(text, (turns, 100 * rate.rate), (9, 0), textcoords="offset points", va="center")
    parts = [f"{turns} {rate.correct} of {rate.n}" for turns, rate in rates.items()]
    alt = f"Conversations that ended right, by turns: {', '.join(parts)}"
    if states.single:
        predicted = {turns: 100 * (states.predicted(turns) or 0.0) for turns in rates}
        label = "predicted from single requests"
        ax.plot(list(predicted), list(predicted.values()), "s--", color=ORANGE, label=label)
        told = [f"{turns} {share:.0f} %" for turns, share in predicted.items()]
        alt += f". Predicted from single requests: {', '.join(told)}"
    ax.set_xticks(list(rates))
    ax.margins(x=0.12)
    ax.set_ylim(0, 105)
    ax.set_xlabel("turns of the conversation")
    ax.set_ylabel("ended right, in %")
    ax.legend(loc="lower left", frameon=False)
    return fig, alt + "."


def learning(data: Mapping[str, Any]) -> tuple[Figure, str]:
    """Accuracy against tokens seen, and against parameters, from ``model/curves.json``.

    Args:
        data: ``{"split": name, "runs": [{"name", "parameters", "points": [{"tokens", "correct",
            "n", …}]}]}``, the points in the order of tokens.
    """
    from .evaluation import Rate

    fig, (left, right) = _figure(9.5, 4.4, 2)
    styles = [("o", "-", BLUE), ("s", "--", ORANGE), ("^", ":", GREY), ("D", "-.", "black")]
    described, last = [], []
    for number, run in enumerate(data["runs"]):
        marker, line, colour = styles[number % len(styles)]
        rates = [Rate(point["correct"], point["n"]) for point in run["points"]]
        tokens = [point["tokens"] / 1e6 for point in run["points"]]
        spreads = [_spread(rate) for rate in rates]
        left.errorbar(
            tokens,
            [100 * rate.rate for rate in rates],
            yerr=[[low for low, _ in spreads], [high for _, high in spreads]],
            marker=marker,
            linestyle=line,
            color=colour,
            capsize=2,
            elinewidth=0.8,
            label=run["name"],
        )
        last.append((run["parameters"], rates[-1]))
        low, high = _spread(rates[-1])
        right.errorbar(
            run["parameters"] / 1e6,
            100 * rates[-1].rate,
            yerr=[[low], [high]],
            marker=marker,
            color=colour,
            capsize=2,
        )
        right.annotate(
            f"{run['name']}, {tokens[-1]:.0f} M tokens",
            (run["parameters"] / 1e6, 100 * rates[-1].rate - low),
            (0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        described.append(
            f"{run['name']} ({run['parameters'] / 1e6:.1f} M parameters) from "
            f"{100 * rates[0].rate:.0f} % after {tokens[0]:.1f} M tokens to "
            f"{100 * rates[-1].rate:.0f} % after {tokens[-1]:.1f} M"
        )
    left.set_xscale("log")
    right.set_xscale("log")
    left.set_xlabel("tokens seen, in millions")
    right.set_xlabel("parameters, in millions")
    most = max(point["tokens"] for run in data["runs"] for point in run["points"]) / 1e6
    ticks = [2**i for i in range(20) if 2**i <= most]
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    sizes = sorted({parameters / 1e6 for parameters, _ in last})
    right.set_xticks(sizes, [f"{size:.1f}" for size in sizes])
    for ax in (left, right):
        ax.minorticks_off()
        ax.set_ylim(0, 100)
        ax.set_ylabel(f"of {data['split']} right, in %")
    right.margins(x=0.5)
    left.legend(loc="lower right", frameon=False, fontsize=8)
    left.set_title("accuracy and tokens seen", loc="left")
    right.set_title("accuracy and parameters", loc="left")
    return fig, f"Learning curves on {data['split']}: {'; '.join(described)}."
