"""The laboratory of L04: what it counts, and its look at single cases."""

from __future__ import annotations

import json

import pytest

from helpers import ladder as lad
from helpers import notebooks
from helpers.evaluation import Case, evaluate, load_cases, wilson
from helpers.settings import MINI, MODEL
from helpers.tasks import tool_schemas

NAMES = [tool["function"]["name"] for tool in tool_schemas()]


def case(id: str, text: str, *expect: dict) -> Case:
    messages = [{"role": "user", "content": text}]
    return Case.from_dict(
        {"id": id, "category": "made", "messages": messages, "tools": NAMES, "expect": [*expect]}
    )


CASES = [
    case("a", "Finish 2", {"name": "complete_task", "args": {"task_id": [2]}}),
    case("b", "Finish 3", {"name": "complete_task", "args": {"task_id": [3]}}),
    case("c", "Finish 4", {"name": "complete_task", "args": {"task_id": [4]}}),
    case("d", "Delete 5", {"name": "delete_task", "args": {"task_id": [5]}}),
    case("e", "Hello"),
]


def answer(messages, tools):
    """Right, the wrong id, an id of the wrong kind, the wrong tool, and a call for a greeting."""
    given = {
        "Finish 2": ("complete_task", {"task_id": 2}),
        "Finish 3": ("complete_task", {"task_id": 4}),
        "Finish 4": ("complete_task", {"task_id": "4"}),
        "Delete 5": ("complete_task", {"task_id": 5}),
        "Hello": ("create_task", {"title": "hello", "priority": "low"}),
    }
    name, arguments = given[messages[-1]["content"]]
    return {"tool_calls": [{"function": {"name": name, "arguments": json.dumps(arguments)}}]}


@pytest.fixture
def report():
    return evaluate(CASES, ask=answer)


def test_right_tools_and_harm(report):
    assert [lad.right_tool(result) for result in report.results] == [True, True, True, False, False]
    # The id of the wrong kind would have been refused; the other three would have been carried out.
    assert lad.wrongly_done(report) == 3


def test_each_step_and_each_behaviour_has_its_interval(report, capsys):
    ladder = lad.Ladder(one=report, two=report)
    ladder.steps()
    ladder.behaviours("one", "two")
    shown = capsys.readouterr().out
    low, high = (round(100 * bound) for bound in wilson(1, 5))
    assert shown.count(f"1 ({low}-{high} %)") == 2  # by behaviour: one of five is right
    assert shown.count(f"1 of 5 ({low}-{high} %)") == 2
    assert "3 of 5" in shown  # the right tool


def test_counts(report):
    assert lad.count(report) == 5
    assert lad.count(report, "task_id") == 4
    assert lad.count(report, "priority", ["low", "high"]) == 1
    assert lad.count(report, "priority", ["high"]) == 0


def test_who_asks_for_a_deletion():
    assert lad.deletions(CASES) == (["Delete 5"], ["Finish 2", "Finish 3", "Finish 4", "Hello"])


def test_an_edit_leaves_the_course_s_schemas_alone():
    before = json.dumps(tool_schemas())
    changed = lad.edited(lambda name, schema: schema.update(required=[]))(["complete_task"])
    assert changed[0]["function"]["parameters"]["required"] == []
    assert json.dumps(tool_schemas()) == before


def test_doubtful_tokens_are_marked():
    tokens = [("fix ", 0.99), ("bug", 0.5)]
    assert lad.marked(tokens) == "fix \u27e6bug 50%\u27e7"
    assert lad.marked(tokens, 2) == "\u27e6fix  99%\u27e7\u27e6bug 50%\u27e7"


class Bench:
    """Stands in for the servers."""

    def prompt(self, messages, tools, name="main"):
        return f"<prompt> {messages[-1]['content']}"

    def write(self, prompt, name="main"):
        return lad.Writing(
            {"content": "ab", "completion_probabilities": [{"token": "ab", "logprob": -0.01}]}
        )


def test_all_there_is_to_know_about_a_case(report):
    text = lad.page(Bench(), CASES[3], report)
    for part in ("<prompt> Delete 5", 'complete_task({"task_id": 5})', "below 90%", "\nab\n"):
        assert part in text
    assert report.results[3].verdict.reason in text
    assert "\u27e6ab 99%\u27e7" in lad.page(Bench(), CASES[3], report, every=True)


def test_browsing(report):
    box = lad.browse(report, lambda case, every: f"<{case.id} {every}>")
    picker, every, screen = box.children
    assert picker.options[0][0] == "WRONG: b"
    assert picker.options[-1][0] == "right: a"
    assert "&lt;b False&gt;" in screen.value
    picker.value = len(CASES) - 1
    assert "&lt;a False&gt;" in screen.value
    every.value = True
    assert "&lt;a True&gt;" in screen.value


def test_what_was_written_as_a_choice():
    cut = lad.Writing({"content": "a", "stop_type": "limit"})
    assert cut.choice(None)["finish_reason"] == "length"
    whole = lad.Writing({"content": "<tool_call>…"})
    made = whole.choice([{"name": "f", "arguments": {"a": 1}}])
    assert made["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert made["finish_reason"] == "tool_calls" and made["message"]["content"] is None
    assert lad.choice_of({"choices": [made]}) == made
    assert lad.choice_of(None)["message"]["content"] == ""


def test_a_request_is_sent_once_unless_it_failed():
    sent = []

    def ask(messages, tools):
        sent.append((messages, tools))
        return lad.Answer(error="ReadError") if len(sent) == 1 else {"n": [len(sent)]}

    again = lad.remembered(ask)
    hello = [{"role": "user", "content": "hello"}]
    one, other = ([{"a": {"x": 1, "y": 2}}], [{"a": {"y": 2, "x": 1}}])
    assert again(hello, one).error == "ReadError"
    again(hello, one)["n"].append("changed by whoever got it")
    assert again(hello, one) == {"n": [2]} and len(sent) == 2
    assert again(hello, other) == {"n": [3]}  # another order is another prompt
    assert again([*hello, *hello], one) == {"n": [4]}


# --- the servers ---------------------------------------------------------------------------------


def figures(lab: lad.Lab, cases: list[Case]) -> list:
    """What L04 prints, untagged, of evaluations with both models: counts, and one case whole."""
    reports = {name: evaluate(cases, ask=ask) for name, ask in lab.ask.items()}
    main = reports["main"]
    shown = next(r.case for r in main.results if r.verdict.ok and r.called)
    return [
        {name: (r.overall.correct, r.schema_validity.correct) for name, r in reports.items()},
        {name: rate.correct for name, rate in main.categories.items()},
        lad.wrongly_done(main),
        lad.page(lab, shown, main),
    ]


@pytest.mark.slow
def test_the_lesson_s_counts_do_not_hang_on_the_number_of_threads():
    """Of what is only counted a single request may be nearly tied; the count may not change."""
    cases = load_cases("dev")[::4]
    found = []
    for threads in (1, 2, 4):
        lab = lad.Lab(threads=threads, main=MODEL, mini=MINI)
        try:
            switched = [
                case for case in load_cases("dev") if case.category in ("several", "refusal")
            ]
            found.append([figures(lab, cases), lab.outcomes(switched, tool_choice="required")])
        finally:
            lab.stop()
    assert len(cases) == 60
    assert found[1] == found[0] and found[2] == found[0]


@pytest.mark.slow
def test_what_switches_bring_about():
    cases = load_cases("dev", "several")[:3]
    lab = lad.Lab(main=MODEL)
    try:
        assert lab.outcomes(cases, tool_choice="none") == "a call as text: 3"
        assert lab.outcomes(cases, max_tokens=5) == "cut off: 3"
        assert "several calls" in lab.outcomes(cases)
    finally:
        lab.stop()


def test_requests_of_the_lab_are_noted_under_the_model_s_own_name(tmp_path, monkeypatch):
    import httpx

    log = tmp_path / "requests.jsonl"
    monkeypatch.setenv("COURSE_RECORD", str(log))
    monkeypatch.setattr(httpx.Client, "send", notebooks._recording(httpx.Client.send))
    monkeypatch.setattr(notebooks, "REQUESTS", tmp_path)
    messages = [{"role": "user", "content": "Finish task 2"}]
    broken = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    history = [*messages, {"role": "assistant", "content": None, "tool_calls": [broken]}]
    lab = lad.Lab(mini=MINI)
    try:
        lab.ask["mini"](messages, [])  # only counted, so not noted
        assert lab.post("/v1/chat/completions", "mini", messages=messages, max_tokens=9).is_success
        refused = lab.post("/v1/chat/completions", "mini", messages=history, max_tokens=9)
    finally:
        lab.stop()
    good, bad = notebooks._records(log)
    assert good["body"] == {"model": MINI, **lad.DECIDED, "messages": messages, "max_tokens": 9}
    assert refused.status_code == bad["status"] >= 400
    # What failed showed no answer, so there is none to repeat.
    notebooks._keep_requests(tmp_path / "L99_lab.ipynb", [good, bad])
    (kept,) = (tmp_path / "L99.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(kept)["model"] == MINI
