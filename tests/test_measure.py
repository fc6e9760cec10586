"""``python3 -m helpers evaluate``: what it takes and refuses, prints, writes and draws."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from helpers import backend, bootstrap, cli, evaluation, free, measure, plots
from helpers.evaluation import Rate, load_cases
from helpers.settings import MINI, CourseError
from helpers.tasks import tool_schemas


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Commands run in this process, without looking for an environment."""
    monkeypatch.setattr(bootstrap, "enter", lambda argv: None)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file with one dev case of each behaviour."""
    cases = load_cases("dev")
    path = tmp_path_factory.mktemp("cases") / "few.jsonl"
    lines = [json.dumps(case.to_dict()) for case in cases[::20]]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert len({case.category for case in load_cases(path)}) == len(lines) == 12
    return path


@pytest.fixture(scope="module")
def server():
    with measure.serve(MINI) as running:
        yield running


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["none.jsonl"], "There are no evaluation cases at none.jsonl"),
        (["--schema", "plural"], "There is no schema variant 'plural'"),
        (["--model", "gpt-9"], "model/gpt-9.gguf is missing"),
        (["--plot", "bars.docx"], "bars.docx is not the name of a picture"),
        (["--plot", "nowhere/bars.svg"], "bars.svg cannot be written"),
        (["--json", "nowhere/report.json"], "report.json cannot be written"),
        (["--calibrate", "--free"], "--calibrate does not go together"),
        (["--calibrate", "--noise", "0"], "--calibrate does not go together"),
    ],
)
def test_mistakes_are_explained_before_anything_is_asked(argv, words, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: pytest.fail("asked the model"))
    assert cli.main(["evaluate", *argv]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 3  # what, why, what to type


def test_a_broken_line_and_an_empty_file(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": 1}\n', encoding="utf-8")
    assert cli.main(["evaluate", str(path)]) == 1
    assert "Line 1 of mine.jsonl is not an evaluation case" in capsys.readouterr().err
    path.write_text("\n", encoding="utf-8")
    assert cli.main(["evaluate", str(path)]) == 1
    assert "holds no case" in capsys.readouterr().err


# --- what it does ---------------------------------------------------------------------------------


def test_two_runs_give_the_same(few, tmp_path, capsys):
    said = []
    for run in ("a", "b"):
        files = [tmp_path / f"{run}.json", tmp_path / f"{run}.svg"]
        argv = ["evaluate", str(few), "--model", MINI, "--free", "--noise", "1"]
        assert cli.main([*argv, "--json", str(files[0]), "--plot", str(files[1])]) == 0
        out = capsys.readouterr().out.replace(str(files[1]), "PLOT")
        said.append([out, *(file.read_bytes() for file in files)])
    assert said[0] == said[1]
    table, data = said[0][0], json.loads(said[0][1])
    assert data["cases"] == "few" and data["noise"] == 1 and data["overall"]["n"] == 12
    assert f"| **all** | 12 | {data['overall']['correct']} |" in table
    for row in ("valid JSON, under the grammar", "valid by schema, under the grammar",
                "all, free-running", "valid JSON, free-running", "valid by schema, free-running",
                "no call", "unasked deletes", "deletes of something else"):  # fmt: skip
        assert f"\n| {row} (of " in table or f"\n| {row} | 12 |" in table, row
    for failure in data["failures"]:
        assert failure["expected"] and failure["got"]
        assert failure["id"] in table
    assert "PLOT: Bars with 95 % intervals" in table


def test_every_schema_variant(few, tmp_path, capsys, server, monkeypatch):
    monkeypatch.setattr(measure, "serve", lambda model: _kept(server))
    file = tmp_path / "all.json"
    assert cli.main(["evaluate", str(few), "--schema", "all", "--json", str(file)]) == 0
    table, data = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    assert [report["variant"] for report in data["variants"]] == list(evaluation.VARIANTS)
    n = sum(report["overall"]["n"] for report in data["variants"])
    right = sum(report["overall"]["correct"] for report in data["variants"])
    assert f"| **all** | {n} | {right} |" in table
    by_variant = re.search(r"\| create \| (.+) \|", table)[1].split(" | ")
    assert len(by_variant) == len(evaluation.VARIANTS)
    # One create among the cases: it applies to all variants but, maybe, string ids.
    assert set(by_variant) <= {"0/1", "1/1", ""}
    assert cli.main(["evaluate", str(few), "--schema", "strict", "--failures", "1"]) == 0
    table = capsys.readouterr().out
    assert len(re.findall(r"^- ", table, re.MULTILINE)) == 1


class _kept:
    """A server that is in use elsewhere and not stopped."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        return self.server

    def __exit__(self, *_):
        pass


# --- without the grammar --------------------------------------------------------------------------


CALL = '{"name": "complete_task", "arguments": {"task_id": 3}}'


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", 1, None),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", 2, None),
        (f"Sure.\n<tool_call>\n{CALL}\n</tool_call>", 1, "Sure."),
        ("Sorry, I can only help with tasks.", 0, "Sorry, I can only help with tasks."),
        ("", 0, None),
    ],
)
def test_valid_calls_are_read(text, calls, content):
    message = free.parse(text)
    assert len(message.get("tool_calls", ())) == calls
    assert message["content"] == content
    for call in message.get("tool_calls", ()):
        assert json.loads(call["function"]["arguments"]) == {"task_id": 3}


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{CALL}",  # never closed
        f"<tool_call>\n{CALL[:-1]}\n</tool_call>",
        '<tool_call>{"name": "complete_task", "arguments": "task 3"}</tool_call>',
        '<tool_call>{"name": "complete_task", "arguments": [3]}</tool_call>',
        '<tool_call>{"name": "complete_task", "arguments": {"task_id": NaN}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "complete_task"}</tool_call>',
        "<tool_call>complete_task(3)</tool_call>",
        '<tool_call>["complete_task", {}]</tool_call>',
        "<tool_call></tool_call>",
    ],
)
def test_invalid_calls_stay_text_and_count_as_such(text):
    message = free.parse(text)
    assert "tool_calls" not in message
    result = evaluation.judge(load_cases("dev")[0], message, tool_schemas())
    assert (result.called, result.json_valid, result.schema_valid) == (True, False, False)
    assert not result.verdict.ok
    mixed = free.parse(f"<tool_call>{CALL}</tool_call>{text}")
    assert len(mixed["tool_calls"]) == 1 and mixed["content"]


def test_validity_is_counted_with_the_grammar_and_without(monkeypatch, server):
    """A model that writes an unknown argument: valid JSON both times, by schema only once."""
    cases = [case for case in load_cases("dev") if case.category == "complete"][:2]
    wrong = {"message": free.parse(f"<tool_call>{CALL.replace('task_id', 'id')}</tool_call>")}
    monkeypatch.setattr(measure, "free_ask", lambda url: lambda messages, tools: wrong)
    (report,) = measure.measure(cases, server, free=True)
    checks = report.checks()
    free_json = checks["valid JSON, free-running (of answers with calls)"]
    free_schema = checks["valid by schema, free-running (of answers with calls)"]
    assert (free_json, free_schema) == (Rate(2, 2), Rate(0, 2))
    assert checks["all, free-running"] == Rate(0, 2)
    assert report.to_dict()["free"]["schema_validity"]["correct"] == 0


def test_the_server_without_a_grammar_gives_what_it_gives_with_one(server):
    """On a request whose call is valid anyway; and a bound on tokens is told apart."""
    messages = [{"role": "user", "content": "complete task 3"}]
    ask = free.free_ask(server.url)
    with_grammar = evaluation.Answer.read(
        evaluation.http_ask(server.url, server.model)(messages, tool_schemas())
    )
    without = evaluation.Answer.read(ask(messages, tool_schemas()))
    assert without.calls and without.finish_reason == "tool_calls"
    assert [(c.name, c.args) for c in without.calls] == [
        (c.name, c.args) for c in with_grammar.calls
    ]
    short = free.free_ask(server.url, max_tokens=3)(messages, tool_schemas())
    assert short["finish_reason"] == "length"
    assert evaluation.Answer.read(ask(messages, [])).error == ""


def test_free_running_needs_llama_cpp():
    from helpers.standins import HostedStandIn

    with HostedStandIn(script=[], key=None) as other:
        with pytest.raises(CourseError, match="without a grammar"):
            free.free_ask(other.url)([{"role": "user", "content": "hi"}], [])
    with pytest.raises(CourseError, match="does not answer"):
        free.free_ask("http://127.0.0.1:9")([{"role": "user", "content": "hi"}], [])


# --- pictures -------------------------------------------------------------------------------------


def test_bars_say_in_text_what_they_show(tmp_path):
    rates = {"create": Rate(18, 20), "list": Rate(5, 20), "none": Rate(0, 0)}
    for name in ("a.svg", "b.svg", "a.png", "a.pdf"):
        fig, alt = plots.bars(rates, "a model")
        plots.save(fig, tmp_path / name, alt)
    assert "create 18 of 20" in alt and "The lowest is list with 25 %" in alt
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root[0].tag == f"{space}title" and root[0].text == alt
    text = [element.text for element in root.iter(f"{space}text")]
    assert {"create", "list", "18 of 20", "5 of 20"} <= set(text)
    assert b"Bars with 95" in (tmp_path / "a.png").read_bytes()


def test_learning_curves_are_drawn_and_told():
    points = [{"tokens": 2**i * 10**6, "correct": 10 * i, "n": 40} for i in range(4)]
    runs = [{"name": "big", "parameters": 3_700_000, "points": points},
            {"name": "small", "parameters": 900_000, "points": points[:2]}]  # fmt: skip
    fig, alt = plots.learning({"split": "dev", "runs": runs})
    assert "big (3.7 M parameters) from 0 % after 1.0 M tokens to 75 % after 8.0 M" in alt
    assert len(fig.axes) == 2
    assert fig.axes[0].get_xlabel() == "tokens seen, in millions"


def test_a_server_of_its_own_has_one_thread_and_one_slot(monkeypatch):
    seen = {}
    monkeypatch.setattr(backend, "serve", lambda model, **options: seen.update(options))
    measure.serve(MINI)
    assert seen == {"threads": 1, "slots": 1}
