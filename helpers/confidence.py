"""How sure the model was of a call, and how much that says about whether the call is right.

llama.cpp returns the probability of every token it wrote, with tools too, when a request that is
not streamed asks for it: ``logprobs=True``. They are the model's own, before temperature and
grammar. From them comes one number for a whole answer, its *confidence*; from cases with known
answers comes a curve that turns this number into how often such calls are right: *calibration*.

Four ways to make one number of many tokens are compared by ``python3 -m helpers evaluate
--calibrate``. The product, the probability of the call as a whole, told right calls from wrong
ones best and was nearest to the truth without any curve, for both of the course's models: it is
what ``call_confidence`` takes.

Examples:
    >>> tokens = [{"token": "add", "logprob": -0.1}, {"token": "milk", "logprob": -0.6}]
    >>> response = {"choices": [{"finish_reason": "tool_calls", "logprobs": {"content": tokens}}]}
    >>> round(call_confidence(response), 3)
    0.497
    >>> curve = Isotonic.fit([0.2, 0.4, 0.6, 0.8], [False, True, False, True])
    >>> [round(curve(c), 2) for c in (0.1, 0.5, 0.7, 0.9)]
    [0.0, 0.5, 0.75, 1.0]
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .evaluation import Answer, Ask, Case, Rate, evaluate, http_ask
from .settings import CourseError

BINS = 8
FOLDS = 5
# Tokens that hold one of these belong to the form of a call, not to what it says.
_FORM = re.compile(r'["{}<>]')


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: As it was written.
        logprob: Natural logarithm of its probability; 0 at most.
    """

    text: str
    logprob: float


def tokens(response: Any) -> list[Token]:
    """The tokens of a completion with their probabilities.

    Args:
        response: A completion or choice, as a dict or as an object of the OpenAI SDK.

    Raises:
        CourseError: The response carries no probabilities.
    """
    choice = _choice(response)
    logprobs = choice.get("logprobs") or {}
    found = logprobs.get("content") or ()
    if not found:
        raise CourseError(
            "The answer carries no token probabilities.",
            "The request did not ask for them, or the server does not return them; to a "
            "streamed request they come with the pieces.",
            "Send logprobs=True with the request, without stream.",
        )
    return [Token(token["token"], float(token["logprob"])) for token in found]


def _choice(response: Any) -> Mapping[str, Any]:
    if hasattr(response, "model_dump"):
        response = response.model_dump()
    return response["choices"][0] if response.get("choices") else response


# --- one number for a whole answer ----------------------------------------------------------


def product(tokens: Sequence[Token]) -> float:
    """Probability of the whole answer: of all its tokens, one after the other."""
    return math.exp(sum(token.logprob for token in tokens))


def mean(tokens: Sequence[Token]) -> float:
    """Geometric mean: the probability per token, so that long answers are not less sure."""
    return math.exp(sum(token.logprob for token in tokens) / len(tokens))


def minimum(tokens: Sequence[Token]) -> float:
    """Probability of the least sure token."""
    return math.exp(min(token.logprob for token in tokens))


def deciding(tokens: Sequence[Token]) -> float:
    """Product over the tokens that decide: the answer's first, and each that follows on form.

    Those choose between call and words, the tool, the next argument, how a value begins, and
    whether another call comes. The rest is form, or goes on with what was begun.
    """
    chosen, after_form = 0.0, True
    for token in tokens:
        if after_form:
            chosen += token.logprob
        after_form = _FORM.search(token.text) is not None
    return math.exp(chosen)


Measure = Callable[[Sequence[Token]], float]
MEASURES: dict[str, Measure] = {
    "product": product,
    "mean": mean,
    "minimum": minimum,
    "deciding": deciding,
}


def call_confidence(response: Any, measure: str = "product") -> float:
    """How sure the model was of an answer, between 0 and 1.

    Args:
        response: A completion or choice with ``logprobs``, as a dict or as an object of the
            OpenAI SDK. Several calls in one answer are one answer.
        measure: A name in ``MEASURES``.

    Returns:
        The confidence; 0.0 for an answer that was cut off, whose calls nobody should execute.

    Raises:
        CourseError: The response carries no probabilities.
    """
    found = tokens(response)
    cut_off = _choice(response).get("finish_reason") == "length"
    return 0.0 if cut_off else MEASURES[measure](found)


# --- from confidence to how often it is right ---------------------------------------------------


@dataclass(frozen=True)
class Isotonic:
    """A rising curve from confidence to the share of right calls.

    Attributes:
        points: (confidence, share), both rising; between two of them the curve is a line,
            beyond the outer ones it goes on level.
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def fit(cls, confidences: Sequence[float], right: Sequence[bool]) -> Isotonic:
        """The rising curve that is nearest to what was seen, by pooling adjacent violators.

        Source: M. Ayer and others, Ann. Math. Statist. 26 (1955) 641. The only assumption is
        that a surer call is not less often right. Neighbours that contradict it are pooled.

        Raises:
            ValueError: Nothing to fit, or the two have different lengths.
        """
        pairs = sorted(zip(confidences, right, strict=True))
        if not pairs:
            raise ValueError("a curve cannot be fitted to no calls at all")
        blocks: list[list[float]] = []  # lowest and highest confidence, right, all
        for confidence, ok in pairs:
            if blocks and blocks[-1][1] == confidence:  # ties are one observation
                blocks[-1][2:] = [blocks[-1][2] + ok, blocks[-1][3] + 1]
            else:
                blocks.append([confidence, confidence, float(ok), 1.0])
        pooled: list[list[float]] = []
        for block in blocks:
            pooled.append(block)
            # Crosswise, because a quotient of counts may be rounded.
            while len(pooled) > 1 and (
                pooled[-2][2] * pooled[-1][3] >= pooled[-1][2] * pooled[-2][3]
            ):
                _, high, ok, n = pooled.pop()
                pooled[-1][1:] = [high, pooled[-1][2] + ok, pooled[-1][3] + n]
        points: list[tuple[float, float]] = []
        for low, high, ok, n in pooled:
            points += [(low, ok / n)] if low == high else [(low, ok / n), (high, ok / n)]
        return cls(tuple(points))

    def __call__(self, confidence: float) -> float:
        """The share of right calls that such a confidence stands for, 0 to 1."""
        where = bisect_left(self.points, (confidence, -math.inf))
        if where == 0:
            return self.points[0][1]
        if where == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[where - 1], self.points[where]
        # Rounding must not carry the line above its end.
        return min(y1, y0 + (y1 - y0) * (confidence - x0) / (x1 - x0))


def cross_fitted(
    confidences: Sequence[float], right: Sequence[bool], folds: int = FOLDS
) -> list[float]:
    """What a curve says of calls that it was not fitted to: each fold judged by the others.

    The n-th call is in fold n modulo ``folds``; nothing is drawn by lot.
    """
    result = [0.0] * len(confidences)
    for fold in range(folds):
        others = [i for i in range(len(confidences)) if i % folds != fold]
        curve = Isotonic.fit([confidences[i] for i in others], [right[i] for i in others])
        for i in range(fold, len(confidences), folds):
            result[i] = curve(confidences[i])
    return result


@dataclass(frozen=True)
class Bin:
    """Calls of about the same confidence.

    Attributes:
        low, high: Their least and their greatest confidence.
        confidence: Their mean confidence.
        rate: How many of them are right.
    """

    low: float
    high: float
    confidence: float
    rate: Rate

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "from": round(self.low, 4),
            "to": round(self.high, 4),
            "confidence": round(self.confidence, 4),
            **self.rate.to_dict(),
        }


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Calls in the order of their confidence, in bins of about equal counts.

    Of equal counts and not of equal widths, because most calls of a good model are very sure:
    they would all be in one bin, and single calls in the others. Calls of the same confidence
    are in the same bin, so there may be fewer bins than asked for.
    """
    pairs = sorted(zip(confidences, right, strict=True))
    size = len(pairs) / bins
    groups: list[list[tuple[float, bool]]] = []
    for pair in pairs:
        if not groups or (len(groups[-1]) >= size and pair[0] != groups[-1][-1][0]):
            groups.append([])
        groups[-1].append(pair)
    if len(groups) > 1 and len(groups[-1]) < size / 2:
        last = groups.pop()
        groups[-1] += last
    return [
        Bin(
            group[0][0],
            group[-1][0],
            sum(confidence for confidence, _ in group) / len(group),
            Rate(sum(ok for _, ok in group), len(group)),
        )
        for group in groups
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and share of right calls, each bin by its count.

    Source: M. P. Naeini and others, AAAI 2015. 0 is perfect. It depends on the bins, and few
    calls in a bin make it larger than it is.
    """
    n = sum(b.rate.n for b in bins)
    return sum(b.rate.n * abs(b.confidence - b.rate.rate) for b in bins) / n if n else 0.0


def ranking(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """How often a right call is surer than a wrong one; 0.5 is chance.

    The area under the ROC curve, ties counted half. None when all are right, or all wrong.
    """
    good = [c for c, ok in zip(confidences, right, strict=True) if ok]
    bad = [c for c, ok in zip(confidences, right, strict=True) if not ok]
    if not good or not bad:
        return None
    won = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return won / (len(good) * len(bad))


# --- measured on cases ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A finished answer with calls.

    Attributes:
        confidences: By name of the measure.
        right: Whether the answer is the case's.
    """

    confidences: Mapping[str, float]
    right: bool


def observe(
    cases: Sequence[Case],
    url: str,
    model: str,
    *,
    ask: Ask | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Seen]:
    """Ask all cases and keep, of each finished answer with calls, confidence and verdict.

    Args:
        cases: What to ask.
        url: A server that returns probabilities together with tools.
        model: The model's name there.
        ask: Instead of the server; its completions must carry probabilities.
        progress: Called with the number done and the number of all.
    """
    extra = {"cache_prompt": False, "logprobs": True, "top_logprobs": 1}
    ask = ask or http_ask(url, model, extra=extra)
    kept: list[dict[str, float] | None] = []

    def listening(messages: list[dict[str, Any]], offered: list[dict[str, Any]]) -> Any:
        response = ask(messages, offered)
        answer = Answer.read(response)
        if answer.calls and answer.finish_reason != "length":
            found = tokens(response)
            kept.append({name: measure(found) for name, measure in MEASURES.items()})
        else:
            kept.append(None)
        return response

    report = evaluate(cases, ask=listening, progress=progress)
    return [
        Seen(confidences, result.verdict.ok)
        for confidences, result in zip(kept, report.results, strict=True)
        if confidences is not None
    ]


@dataclass(frozen=True)
class Calibration:
    """What a model's confidence is worth.

    Attributes:
        model: Its name.
        measure: Which measure the curve and the bins are of.
        curve: Fitted to the cases that fitting was for.
        overall: Right answers of the finished answers with calls.
        raw: Bins of the confidence as it is.
        calibrated: Bins of what the curve makes of it, each call judged by a curve that was
            fitted without it.
        measures: By measure: ``ranking``, and the expected calibration error ``raw`` and
            ``calibrated``.
    """

    model: str
    measure: str
    curve: Isotonic
    overall: Rate
    raw: Sequence[Bin]
    calibrated: Sequence[Bin]
    measures: Mapping[str, Mapping[str, float | None]]

    @property
    def raw_error(self) -> float:
        """Expected calibration error of the confidence as it is."""
        return expected_calibration_error(self.raw)

    @property
    def error(self) -> float:
        """Expected calibration error after calibration."""
        return expected_calibration_error(self.calibrated)

    def table(self) -> str:
        """Markdown: the measures compared, then the bins with their counts."""
        lines = [
            f"**{self.model}**: {self.overall.correct} of {self.overall.n} finished answers "
            f"with calls are right",
            "",
            "| confidence | right before wrong | error, as reported | error, calibrated |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, figures in self.measures.items():
            order = figures["ranking"]
            shown = "" if order is None else f"{100 * order:.1f} %"
            errors = [f"{100 * (figures[key] or 0):.1f} %" for key in ("raw", "calibrated")]
            lines.append(f"| {name} | {shown} | {' | '.join(errors)} |")
        for name, bins in (("as reported", self.raw), ("calibrated", self.calibrated)):
            lines += [
                "",
                f"| {self.measure}, {name} | mean | n | right | rate | 95 % interval |",
                "| --- | ---: | ---: | ---: | ---: | ---: |",
            ]
            for b in bins:
                cells = [f"{100 * b.low:.1f}-{100 * b.high:.1f} %", f"{100 * b.confidence:.1f} %"]
                lines.append("| " + " | ".join(cells + b.rate.cells()) + " |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``Isotonic(points)`` makes the curve of ``curve`` again."""
        rounded = {
            name: {key: None if v is None else round(v, 4) for key, v in figures.items()}
            for name, figures in self.measures.items()
        }
        return {
            "model": self.model,
            "measure": self.measure,
            "overall": self.overall.to_dict(),
            "measures": rounded,
            "raw": [b.to_dict() for b in self.raw],
            "calibrated": [b.to_dict() for b in self.calibrated],
            "curve": [[round(x, 6), round(y, 6)] for x, y in self.curve.points],
        }


def calibrate(
    model: str,
    fitted_to: Sequence[Seen],
    measured_on: Sequence[Seen] | None = None,
    *,
    measure: str = "product",
    bins: int = BINS,
) -> Calibration:
    """Fit the curve and measure what confidence is worth with it and without.

    Args:
        model: The model's name.
        fitted_to: Answers to the cases that are for fitting.
        measured_on: Answers to other cases. Without them, the ones for fitting are measured
            crosswise: each fifth by a curve fitted to the other four.
        measure: Which measure the curve is for.
        bins: How many bins.

    Raises:
        CourseError: There are too few answers with calls to fit a curve to.
    """
    seen = fitted_to if measured_on is None else measured_on
    if len(fitted_to) < FOLDS or not seen:
        raise CourseError(
            f"{model} cannot be calibrated on these cases.",
            f"Only {len(fitted_to)} of its answers are finished and contain a call.",
            "Take more cases in which a tool is to be called, such as dev.",
        )
    right = [s.right for s in seen]
    raw, calibrated, measures = {}, {}, {}
    for name in MEASURES:
        confidences = [s.confidences[name] for s in seen]
        fit_on = [s.confidences[name] for s in fitted_to]
        curve = Isotonic.fit(fit_on, [s.right for s in fitted_to])
        shares = (
            cross_fitted(confidences, right)
            if measured_on is None
            else [curve(confidence) for confidence in confidences]
        )
        raw[name] = reliability(confidences, right, bins)
        calibrated[name] = reliability(shares, right, bins)
        measures[name] = {
            "ranking": ranking(confidences, right),
            "raw": expected_calibration_error(raw[name]),
            "calibrated": expected_calibration_error(calibrated[name]),
        }
    confidences = [s.confidences[measure] for s in fitted_to]
    return Calibration(
        model=model,
        measure=measure,
        curve=Isotonic.fit(confidences, [s.right for s in fitted_to]),
        overall=Rate(sum(right), len(right)),
        raw=raw[measure],
        calibrated=calibrated[measure],
        measures=measures,
    )
