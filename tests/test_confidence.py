"""Confidence of a call and its calibration."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import bootstrap, cli, confidence, measure, plots
from helpers.confidence import Isotonic, Seen, calibrate, call_confidence
from helpers.evaluation import load_cases
from helpers.settings import MINI, CourseError
from helpers.tasks import tool_schemas


def response(*tokens: tuple[str, float], finish: str = "tool_calls") -> dict:
    content = [{"token": text, "logprob": math.log(p)} for text, p in tokens]
    return {"choices": [{"finish_reason": finish, "logprobs": {"content": content}}]}


ANSWER = response(
    ('<tool_call>\n{"name": "', 0.9),
    ("complete", 0.5),
    ("_task", 0.8),
    ('", "arguments": {"', 1.0),
    ("task_id", 0.9),
    ('": ', 1.0),
    ("1", 0.7),
    ("4", 0.6),
    ("}}\n</tool_call>", 1.0),
    ("", 0.95),
)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("product", 0.9 * 0.5 * 0.8 * 0.9 * 0.7 * 0.6 * 0.95),
        ("mean", (0.9 * 0.5 * 0.8 * 0.9 * 0.7 * 0.6 * 0.95) ** 0.1),
        ("minimum", 0.5),
        # call or words, which tool, which argument, how its value begins, and whether more comes
        ("deciding", 0.9 * 0.5 * 0.9 * 0.7 * 0.95),
    ],
)
def test_measures(measure, expected):
    assert call_confidence(ANSWER, measure) == pytest.approx(expected)
    assert call_confidence(ANSWER["choices"][0], measure) == pytest.approx(expected)


def test_a_cut_off_call_deserves_no_confidence():
    cut = response(("<tool_call>", 0.99), finish="length")
    assert call_confidence(cut) == 0.0


def test_sdk_objects_are_read():
    from openai.types.chat import ChatCompletion

    data = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [{
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "no"},
        "logprobs": {"content": [{"token": "no", "logprob": -0.5, "top_logprobs": []}]},
    }]}  # fmt: skip
    assert call_confidence(ChatCompletion.model_validate(data)) == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}])
def test_without_probabilities(logprobs):
    with pytest.raises(CourseError, match="no token probabilities"):
        call_confidence({"choices": [{"finish_reason": "stop", "logprobs": logprobs}]})


def test_the_server_returns_probabilities_together_with_tools():
    """All of a call's text is in the tokens; they are the model's own, before the grammar."""
    import httpx

    body = {
        "messages": [{"role": "user", "content": "complete task 3"}],
        "tools": tool_schemas(),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
        "cache_prompt": False,
    }
    with measure.serve(MINI) as server:
        url = f"{server.url}/v1/chat/completions"
        found, again = (httpx.post(url, json=body, timeout=60).json() for _ in range(2))
        # Made to call where it would rather talk: only the grammar's choice remains.
        asked = body | {"messages": [{"role": "user", "content": "thanks, bye!"}]}
        forced = httpx.post(url, json=asked | {"tool_choice": "required"}, timeout=60).json()
    (call,) = found["choices"][0]["message"]["tool_calls"]
    text = "".join(token.text for token in confidence.tokens(found))
    assert call["function"]["name"] in text
    assert json.loads(call["function"]["arguments"]) == {"task_id": 3}
    assert '"task_id": 3}' in text
    assert 0 < call_confidence(found) <= 1
    assert call_confidence(found) == call_confidence(again)
    assert call_confidence(found) > call_confidence(forced)


# --- the curve ------------------------------------------------------------------------------------


def test_pooling():
    curve = Isotonic.fit([0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, True, True])
    assert curve.points == ((0.1, 0.0), (0.2, 0.5), (0.3, 0.5), (0.4, 1.0), (0.5, 1.0))
    assert [curve(c) for c in (0, 0.15, 0.25, 0.35, 1)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_ties_are_pooled():
    assert Isotonic.fit([0.5] * 4, [True, False, True, True]).points == ((0.5, 0.75),)


def test_nothing_to_fit():
    with pytest.raises(ValueError, match="no calls"):
        Isotonic.fit([], [])


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7]), st.booleans()), min_size=1))
def test_the_curve_is_the_nearest_rising_one(pairs):
    """Against trying all rising curves with as many different values as fractions allow."""
    confidences, right = zip(*pairs, strict=True)
    curve = Isotonic.fit(confidences, right)
    xs = sorted(set(confidences))
    fitted = [curve(x) for x in xs]
    assert all(0 <= y <= 1 for y in fitted)
    assert fitted == sorted(fitted)
    groups = [[ok for c, ok in pairs if c == x] for x in xs]

    def loss(values):
        return sum((ok - y) ** 2 for y, group in zip(values, groups, strict=True) for ok in group)

    grid = [i / 8 for i in range(9)]
    best = min(loss(v) for v in itertools.combinations_with_replacement(grid, len(xs)))
    assert loss(fitted) <= best + 1e-9
    # The overall share is kept: pooling moves nothing away.
    assert sum(curve(c) for c in confidences) == pytest.approx(sum(right))


def test_cross_fitting_never_judges_a_call_by_itself():
    """With labels that contradict the order, a curve that had seen the call would be better."""
    confidences = [i / 100 for i in range(100)]
    base = [i >= 50 for i in range(100)]
    shares = confidence.cross_fitted(confidences, base)
    for i in (3, 52):
        changed = [ok != (j == i) for j, ok in enumerate(base)]
        assert confidence.cross_fitted(confidences, changed)[i] == shares[i]
        assert confidence.cross_fitted(confidences, changed) != shares


# --- bins, error, order ---------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 10),
)
def test_bins_hold_every_call_once_and_never_split_ties(pairs, bins):
    confidences, right = zip(*pairs, strict=True)
    found = confidence.reliability(confidences, right, bins)
    assert sum(b.rate.n for b in found) == len(pairs)
    assert sum(b.rate.correct for b in found) == sum(right)
    assert 1 <= len(found) <= bins
    assert all(a.high < b.low for a, b in itertools.pairwise(found))
    assert 0 <= confidence.expected_calibration_error(found) <= 1


def test_expected_calibration_error():
    # Two bins: 0.5 said and 1 of 2 right; 0.9 said and 3 of 6 right.
    confidences = [0.5] * 2 + [0.9] * 6
    right = [True, False] + [True, False] * 3
    bins = confidence.reliability(confidences, right, 2)
    assert confidence.expected_calibration_error(bins) == pytest.approx(6 / 8 * 0.4)


def test_ranking():
    assert confidence.ranking([0.1, 0.5, 0.9], [False, True, True]) == 1
    assert confidence.ranking([0.5, 0.5], [False, True]) == 0.5
    assert confidence.ranking([0.9, 0.1, 0.5, 0.6], [False, True, True, False]) == 0
    assert confidence.ranking([0.5], [True]) is None


# --- measured -------------------------------------------------------------------------------------


def seen(n: int) -> list[Seen]:
    """Calls that are right as often as the product says, and surer by the other measures."""
    found = []
    for i in range(n):
        p = (i + 0.5) / n
        others = {name: p**0.1 for name in confidence.MEASURES}
        found.append(Seen(others | {"product": p}, (i * 0.618034) % 1 < p))
    return found


def test_calibration_measures_and_mends():
    found = calibrate("m", seen(400))
    assert found.overall.n == 400
    assert found.measures["product"]["raw"] < 0.06 < 0.3 < found.measures["mean"]["raw"]
    assert found.measures["mean"]["calibrated"] < 0.1
    assert found.raw_error == found.measures["product"]["raw"]
    table = found.table()
    assert sum(b.rate.n for b in found.raw) == 400
    assert "| mean | " in table and "product, calibrated" in table
    data = json.loads(json.dumps(found.to_dict()))
    again = Isotonic(tuple(map(tuple, data["curve"])))
    assert again(0.42) == pytest.approx(found.curve(0.42), abs=1e-3)


def test_calibration_on_other_cases_uses_the_curve_as_it_is():
    perfect = [Seen(dict.fromkeys(confidence.MEASURES, i / 10), i > 5) for i in range(10)]
    opposite = [Seen(s.confidences, not s.right) for s in perfect]
    assert calibrate("m", perfect, perfect).error == 0
    assert calibrate("m", perfect, opposite).error == 1


def test_too_few_calls():
    with pytest.raises(CourseError, match="cannot be calibrated"):
        calibrate("m", seen(4))


def test_observing_keeps_finished_answers_with_calls():
    cases = load_cases("dev")[:4]
    call = {"function": {"name": "list_tasks", "arguments": "{}"}}
    answers = [
        {"finish_reason": "tool_calls", "message": {"tool_calls": [call]}},
        {"finish_reason": "length", "message": {"tool_calls": [call]}},
        {"finish_reason": "stop", "message": {"content": "Hello."}},
        {"finish_reason": "tool_calls", "message": {"tool_calls": [call]}},
    ]
    probabilities = response(("list", 0.25))["choices"][0]["logprobs"]
    script = iter([{"choices": [answer | {"logprobs": probabilities}]} for answer in answers])
    found = confidence.observe(cases, "", "m", ask=lambda m, t: next(script))
    assert [s.confidences["product"] for s in found] == pytest.approx([0.25, 0.25])


def test_the_command(monkeypatch, tmp_path, capsys):
    """On twenty-four cases and the smaller model, twice."""
    monkeypatch.setattr(bootstrap, "enter", lambda argv: None)
    few = tmp_path / "few.jsonl"
    lines = [json.dumps(case.to_dict()) for case in load_cases("dev")[::10]]
    few.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(measure, "FIT", str(few))
    made = []
    for run in ("a", "b"):
        file, plot = tmp_path / f"{run}.json", tmp_path / f"{run}.svg"
        argv = ["evaluate", "--calibrate", "--model", MINI, "--json", str(file)]
        assert cli.main([*argv, "--plot", str(plot)]) == 0
        made.append([capsys.readouterr().out.replace(str(plot), ""), file.read_bytes()])
    assert made[0] == made[1]
    (model,) = json.loads(made[0][1])["models"]
    assert model["model"] == MINI
    assert sum(b["n"] for b in model["raw"]) == model["overall"]["n"] > 5
    assert "Reliability: how often a call is right" in made[0][0]


def test_the_reliability_plot_tells_models_and_lines_apart():
    fig, alt = plots.reliability([calibrate("first", seen(80)), calibrate("second", seen(60))])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["first", "second"]
    assert "first: " in alt and "of 80 calls right" in alt and "of 60 calls right" in alt
    for ax in fig.axes:
        _, labels = ax.get_legend_handles_labels()
        assert labels == ["promise kept", "as reported", "calibrated"]
        lines = [line for line in ax.lines if line.get_marker() in "os" and line.get_marker()]
        assert {line.get_linestyle() for line in lines} >= {"-", ":"}
