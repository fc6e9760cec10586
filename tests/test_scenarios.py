"""Scenarios: the frozen file, the comparison of end states, the run, the report, the command."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import json
import os
import re
from types import SimpleNamespace

import pytest

from helpers import bootstrap, cli, measure, plots, scenarios
from helpers.dates import parse_due
from helpers.evaluation import SETS, Rate
from helpers.scenarios import (
    FIELDS,
    EndStates,
    Expected,
    Reference,
    Result,
    Said,
    Scenario,
    differences,
    load_scenarios,
    run,
    single_rate,
)
from helpers.settings import MINI, CourseError
from helpers.standins import HostedStandIn, tool_call

FILE = SETS / "scenarios.jsonl"
ALL = load_scenarios()
SHA256 = "a5b5e0e6ddc6b1ab87b40b60dadb545164625e5dc942d440a0fc607c41827c85"


def agent(turn):
    """A way to open an agent that does what ``turn(store, text)`` does."""

    @contextlib.asynccontextmanager
    async def open_agent(store, scenario):
        async def do(text):
            return turn(store, text)

        yield SimpleNamespace(turn=do)

    return open_agent


def play(chosen, open_agent, **more):
    return asyncio.run(run(chosen, open_agent, **more))


def scenario(**changes) -> Scenario:
    data = {
        "id": "1-01",
        "today": "2026-12-02",
        "start": [{"title": "Buy milk", "priority": "low", "status": "pending", "due": None}],
        "turns": ["done with task 1"],
        "expect": [
            {"task_id": 1, "title": ["Buy milk"], "priority": ["low"],
             "status": ["completed"], "due": [None]}
        ],
    }  # fmt: skip
    return Scenario.from_dict(data | changes)


# --- the file -----------------------------------------------------------------------------------


def test_the_file_is_frozen():
    data = FILE.read_bytes().replace(b"\r\n", b"\n")
    assert hashlib.sha256(data).hexdigest() == SHA256, "scenarios.jsonl must never be changed"


def test_there_are_forty_of_each_length_and_no_two_are_alike():
    assert [len(s.turns) for s in ALL] == [n for n in range(1, 6) for _ in range(40)]
    assert len({s.id for s in ALL}) == len({s.turns for s in ALL}) == 200


@pytest.fixture(scope="module")
def solved():
    return play(ALL, Reference)


def test_every_scenario_can_be_solved_with_the_five_tools(solved):
    states = solved
    assert [(r.scenario.id, r.differences) for r in states.failures] == []
    refused = [said.text for r in states.results for said in r.turns if '"error"' in said.text]
    assert refused == []


def test_calls_need_no_number_that_nobody_could_know():
    """Ids were said, listed or returned before a call uses them."""
    for each in ALL:
        known = {str(task) for task in re.findall(r"\d+", " ".join(each.turns))}
        known |= {n for n, word in (("1", "one"), ("2", "two"), ("3", "three"))
                  if re.search(rf"\b{word}\b", " ".join(each.turns))}  # fmt: skip
        made = len(each.start)
        for turn in each.calls:
            for call in turn:
                if call["name"] == "list_tasks":
                    known |= {str(n) for n in range(1, made + 1)}
                if call["name"] == "create_task":
                    made += 1
                    known.add(str(made))
                if "task_id" in call["args"]:
                    assert str(call["args"]["task_id"]) in known, (each.id, call)


def test_words_for_dates_were_said_and_mean_the_date_that_is_expected():
    seen = 0
    for each in ALL:
        said = " ".join(each.turns).casefold()
        used = {c["args"]["due"] for turn in each.calls for c in turn if "due" in c["args"]}
        assert used == set(each.dues)
        for words, date in each.dues.items():
            found = parse_due(words, each.today)
            assert (found and found.isoformat()) == date, (each.id, words)
            assert words == "none" or all(word in said for word in words.casefold().split())
            seen += 1
    assert seen > 100


def test_dates_that_do_not_exist_are_none_to_the_store_either():
    for words in ("30 February", "the 31st of April"):
        with pytest.raises(ValueError, match="is not a date"):
            parse_due(words, datetime.date(2026, 11, 16))


# --- comparing ----------------------------------------------------------------------------------


OTHER = {"title": "Something else", "priority": "low", "status": "pending", "due": "2031-05-06"}
SECOND = {"priority": "urgent", "status": "completed"}


def test_every_other_end_is_rejected(solved):
    tried = 0
    for result in solved.results:
        each, tasks = result.scenario, list(result.tasks)
        started = len(each.start)
        assert differences(each.expect, tasks[::-1], started) == []  # the order says nothing
        new = {"task_id": 99, **OTHER}
        assert differences(each.expect, [*tasks, new], started), each.id
        for i, task in enumerate(tasks):
            without = tasks[:i] + tasks[i + 1 :]
            assert any("is missing" in p for p in differences(each.expect, without, started))
            twice = [*tasks, task | {"task_id": 98}]
            assert differences(each.expect, twice, started), (each.id, "twice", task)
            for key in FIELDS:
                value = OTHER[key]
                if task[key] == value:
                    value = SECOND[key]
                changed = [*tasks[:i], task | {key: value}, *tasks[i + 1 :]]
                assert differences(each.expect, changed, started), (each.id, key, task)
                tried += 1
    assert tried > 1500


def test_titles_are_folded_and_nothing_else_is():
    wanted = [Expected(1, ("Call the bank!",), ("high",), ("pending",), ("2026-12-04",))]
    task = {"task_id": 1, "title": "call bank", "priority": "high", "status": "pending",
            "due": "2026-12-04"}  # fmt: skip
    assert differences(wanted, [task], 1) == []
    assert differences(wanted, [task | {"title": "call banks"}], 1)
    assert differences(wanted, [task | {"priority": "High"}], 1)
    assert differences(wanted, [task | {"due": None}], 1) == ["task 1: due is None, not 2026-12-04"]


def test_a_task_that_was_deleted_and_made_again_is_another_task():
    tasks = [{"task_id": 2, "title": "Buy milk", "priority": "low", "status": "completed",
              "due": None}]  # fmt: skip
    found = differences(scenario().expect, tasks, 1)
    assert [re.sub(":.*", "", problem) for problem in found] == [
        "task 1 is missing",
        "task 2 must not be there",
    ]


def test_a_task_of_the_beginning_is_not_a_new_one():
    wanted = [Expected(None, ("Buy milk",), ("low",), ("pending",), (None,))]
    task = {"task_id": 1, "title": "Buy milk", "priority": "low", "status": "pending", "due": None}
    assert differences(wanted, [task], started=1)
    assert differences(wanted, [task | {"task_id": 2}], started=1) == []


def test_values_that_are_accepted_in_two_places_are_shared_out():
    either = Expected(None, ("milk", "bread"), ("medium",), ("pending",), (None,))
    bread = Expected(None, ("bread",), ("medium",), ("pending",), (None,))
    tasks = [
        {"task_id": i, "title": title, "priority": "medium", "status": "pending", "due": None}
        for i, title in enumerate(("bread", "milk"), 1)
    ]
    assert differences([either, bread], tasks, 0) == []
    assert differences([bread, bread], tasks, 0)


def test_what_is_wrong_is_said_of_the_task_that_was_meant():
    wanted = [
        Expected(None, ("call Ann",), ("high",), ("pending",), (None,)),
        Expected(None, ("call Bob",), ("low",), ("pending",), (None,)),
    ]
    tasks = [
        {"task_id": 1, "title": "call Bob", "priority": "low", "status": "completed", "due": None},
        {"task_id": 2, "title": "call Ann", "priority": "high", "status": "pending", "due": None},
    ]
    assert differences(wanted, tasks, 0) == ["task 1: status is completed, not pending"]


# --- running ------------------------------------------------------------------------------------


def test_each_scenario_has_a_store_of_its_own_in_which_it_is_its_day():
    seen = []

    def turn(store, text):
        seen.append((len(store.list()["tasks"]), store.clock().isoformat()))
        store.create("left behind")

    play([scenario(), scenario(today="2027-01-01", turns=["a", "b"])], agent(turn))
    assert seen == [(1, "2026-12-02"), (1, "2027-01-01"), (2, "2027-01-01")]


def test_stores_can_be_files_for_another_process(tmp_path):
    states = play(ALL[:3], Reference, folder=tmp_path)
    assert states.overall == Rate(3, 3)
    assert {path.parent.name for path in tmp_path.glob("*/tasks.sqlite")} == {s.id for s in ALL[:3]}
    with pytest.raises(ValueError, match="was not empty"):
        ALL[2].store(tmp_path / ALL[2].id / "tasks.sqlite")


def test_what_a_turn_raises_is_wrong_even_if_the_end_is_right():
    def turn(store, text):
        store.complete(1)
        if text == "b":
            raise RuntimeError("no")

    (result,) = play([scenario(turns=["a", "b", "c"])], agent(turn)).results
    assert not result.ok and result.differences == ()
    assert [said.error for said in result.turns] == ["", "RuntimeError: no", ""]


def test_a_turn_that_never_ends_is_left(monkeypatch):
    monkeypatch.setattr(scenarios, "PATIENCE", 0.01)

    @contextlib.asynccontextmanager
    async def open_agent(store, scenario):
        async def turn(text):
            await asyncio.sleep(60)

        yield SimpleNamespace(turn=turn)

    (result,) = play([scenario()], open_agent).results
    assert result.turns[0].error.startswith("TimeoutError")


def test_calls_are_kept_as_they_were_and_tasks_that_are_lost_are_counted():
    def turn(store, text):
        store.delete(1)
        calls = [
            {"name": "delete_task", "arguments": {"task_id": 1}, "done": True},
            {"name": "delete_task", "arguments": '{"task_id": 1', "done": False},
        ]
        return SimpleNamespace(calls=calls, text="Deleted.", by="me")

    states = play([scenario()], agent(turn))
    (result,) = states.results
    assert result.turns[0].calls == (
        "delete_task(task_id=1)",
        'delete_task({"task_id": 1) refused',
    )
    assert (result.turns[0].text, result.turns[0].by) == ("Deleted.", "me")
    assert result.lost == (1,) and states.lost == Rate(1, 1)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("scenarios_dev", 12),
        ("scenarios_dev2", 15),
        ("scenarios_dev3", 40),
        ("scenarios_dev4", 40),
        ("scenarios_dev5", 20),
    ],
)
def test_the_scenarios_of_development_can_be_solved(name, each):
    development = load_scenarios(SETS / f"{name}.jsonl")
    assert [len(s.turns) for s in development] == [n for n in range(1, 6) for _ in range(each)]
    assert play(development, Reference).overall == Rate(5 * each, 5 * each)
    frozen = {text.casefold() for s in ALL for text in s.turns if len(text.split()) > 5}
    assert not [t for s in development for t in s.turns if t.casefold() in frozen]


def test_progress_is_told():
    told = []
    play(ALL[:2], Reference, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


# --- the report ---------------------------------------------------------------------------------


def states(right: dict[int, tuple[int, int]], single: Rate | None) -> EndStates:
    """A report with so many right of so many, by number of turns."""
    results = []
    for turns, (correct, n) in right.items():
        for i in range(n):
            each = scenario(id=f"{turns}-{i}", turns=["do it"] * turns)
            wrong = () if i < correct else ("task 1: status is pending, not completed",)
            results.append(Result(each, (Said("do it", ("list_tasks()",)),), (), wrong))
    return EndStates(results, "some model", single)


def test_a_picture_says_in_text_what_it_shows():
    fig, alt = plots.conversations(states({1: (3, 4), 3: (1, 2)}, Rate(8, 10)))
    assert "by turns: 1 3 of 4, 3 1 of 2. Predicted from single requests: 1 80 %, 3 51 %." in alt
    assert [text.get_text() for text in fig.axes[0].texts] == ["3 of 4", "1 of 2"]
    assert "Predicted" not in plots.conversations(states({1: (3, 4)}, None))[1]


def test_requests_of_a_scenario_are_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RECORD", str(tmp_path / "requests.jsonl"))
    seen = []

    class Asks(Reference):
        async def turn(self, text):
            seen.append(os.environ.get("COURSE_RECORD"))
            return await super().turn(text)

    play(ALL[:1], Asks)
    assert seen == [None] and os.environ["COURSE_RECORD"]


def test_the_prediction_is_the_power_of_single_calls():
    report = states({1: (9, 10), 3: (8, 10)}, Rate(9, 10))
    assert report.by_turns == {1: Rate(9, 10), 3: Rate(8, 10)}
    assert report.predicted(1) == pytest.approx(0.9)
    assert report.predicted(3) == pytest.approx(0.729)
    assert report.predicted() == pytest.approx((0.9 + 0.729) / 2)
    lines = report.table().splitlines()
    assert lines[0] == "| turns | n | right | rate | 95 % interval | predicted | at least that |"
    assert lines[2] == "| 1 | 10 | 9 | 90.0 % | 59.6-98.2 % | 90.0 % | yes |"
    assert lines[4] == "| **all** | 20 | 17 | 85.0 % | 64.0-94.8 % | 81.4 % | yes |"


@pytest.mark.parametrize(
    ("right", "verdict"), [(17, "no, by chance perhaps"), (9, "no"), (18, "yes"), (20, "yes")]
)
def test_less_than_predicted_is_told_apart_from_chance(right, verdict):
    report = states({1: (right, 20)}, Rate(90, 100))
    assert report.table().splitlines()[2].endswith(f"| 90.0 % | {verdict} |")
    figures = report.to_dict()["by_turns"]["1"]
    assert figures["at_least_predicted"] is (verdict == "yes")
    assert figures["below_by_more_than_chance"] is (verdict == "no")


def test_without_single_calls_nothing_is_predicted():
    report = states({2: (1, 2)}, None)
    assert report.predicted(2) is None and "predicted" not in report.table()
    assert "predicted" not in report.to_dict()["overall"]


def test_failures_are_shown_and_counted():
    report = states({1: (1, 4)}, None)
    shown = report.table(failures=2)
    assert shown.count("'do it' -> list_tasks()") == 2
    assert shown.count("status is pending, not completed") == 2
    assert "1 more failures" in shown
    assert "do it" not in report.table()
    data = json.loads(json.dumps(report.to_dict()))
    assert [failure["id"] for failure in data["failures"]] == ["1-1", "1-2", "1-3"]
    assert data["failures"][0]["turns"][0]["calls"] == ["list_tasks()"]


def test_doing_nothing_is_right_in_few_and_the_report_says_in_how_many(solved):
    assert solved.idle == Rate(17, 200)
    report = play(ALL[:80:4], agent(lambda store, text: "Hm."))
    assert 0 < report.overall.correct < 20 and report.overall == report.idle
    assert f"Right if nothing were done: {report.idle.correct}." in report.table()


# --- files that are not right -------------------------------------------------------------------

GOOD = json.loads(FILE.read_text(encoding="utf-8").splitlines()[2])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        (json.dumps(GOOD | {"turns": []}), "turns must be texts"),
        (json.dumps(GOOD | {"today": "today"}), "ValueError"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "expect"}), "KeyError: 'expect'"),
        (json.dumps(GOOD | {"start": [{"title": "a"}]}), "a task of the start needs"),
        (json.dumps(GOOD | {"start": [GOOD["start"][0] | {"status": "done"}]}), "or done"),
        (json.dumps(GOOD | {"start": []}), "an id that the start does not have"),
        (json.dumps(GOOD | {"expect": [GOOD["expect"][0] | {"due": []}]}), "accepted values"),
        (json.dumps(GOOD | {"expect": [GOOD["expect"][0] | {"dew": [1]}]}), "unknown dew"),
        (json.dumps(GOOD), "is there twice"),
    ],
)
def test_a_line_that_is_no_scenario_is_named(tmp_path, line, why):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(CourseError) as caught:
        load_scenarios(path)
    assert "Line 3 of mine.jsonl is not a scenario" in str(caught.value)
    assert why in str(caught.value)


def test_no_file_is_said():
    with pytest.raises(CourseError, match=r"There are no scenarios at none\.jsonl"):
        load_scenarios("none.jsonl")


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    """The command in this process, on scripted parts: the agent solves all but the first."""
    monkeypatch.setattr(bootstrap, "enter", lambda argv: None)
    server = contextlib.nullcontext(SimpleNamespace(url="http://127.0.0.1:1", model="m"))
    monkeypatch.setattr(measure, "serve", lambda model: server)

    async def on_backend(chosen, url, model, single, progress, surface):
        assert surface == "core"
        chosen = list(chosen)
        first = await run(chosen[:1], agent(lambda store, text: None))
        rest = await run(chosen[1:], Reference)
        return EndStates([*first.results, *rest.results], model, single)

    monkeypatch.setattr(scenarios, "on_backend", on_backend)
    monkeypatch.setattr(scenarios, "load_scenarios", lambda path: ALL[::20])
    return lambda *argv: cli.main(["evaluate", *argv])


def test_the_command_prints_and_writes(command, tmp_path, capsys):
    single, out = tmp_path / "single.json", tmp_path / "out.json"
    single.write_text('{"overall": {"correct": 95, "n": 100}}', encoding="utf-8")
    assert command("scenarios", "--single", str(single), "--json", str(out)) == 0
    said = capsys.readouterr().out
    assert "| 1 | 2 | 1 | 50.0 % |" in said and "a new task is missing" in said
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["overall"]["correct"] == 9 and data["single"]["correct"] == 95
    assert [failure["id"] for failure in data["failures"]] == ["1-01"]


def test_single_calls_are_measured_where_no_report_is_given(command, monkeypatch, capsys):
    asked = []

    def few(cases, server):
        asked.append(len(cases))
        return [SimpleNamespace(overall=Rate(9, 10))]

    monkeypatch.setattr(measure, "measure", few)
    assert command("scenarios") == 0
    assert asked == [720] and "9 of 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["scenarios", "--free"], "Scenarios are played as they are"),
        (["scenarios", "--schema", "all"], "Scenarios are played as they are"),
        (["scenarios", "--noise", "0"], "Scenarios are played as they are"),
        (["scenarios", "--calibrate"], "Scenarios are played as they are"),
        (["scenarios", "--plot", "a.svg"], "Scenarios are played as they are"),
        (["scenarios", "--json", "nowhere/report.json"], "report.json cannot be written"),
        (["scenarios", "--single", "none.json"], "none.json is not a report of single calls"),
        (["dev", "--single", "none.json"], "--single says nothing about single calls"),
    ],
)
def test_mistakes_are_explained_before_anything_is_asked(command, argv, words, capsys, monkeypatch):
    monkeypatch.setattr(measure, "serve", lambda model: pytest.fail("asked the model"))
    assert command(*argv) == 1
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 3


def test_a_report_of_single_calls_is_read(tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"overall": {"correct": 3, "n": 4}}', encoding="utf-8")
    assert single_rate(path) == Rate(3, 4)
    path.write_text('{"models": []}', encoding="utf-8")
    with pytest.raises(CourseError, match="KeyError"):
        single_rate(path)
    path.write_text('{"surface": "core", "overall": {"correct": 3, "n": 4}}', encoding="utf-8")
    with pytest.raises(CourseError, match="whole conversations") as caught:
        single_rate(path)
    assert str(path) not in caught.value.todo  # typed as it stands, that would be lost


def test_the_courses_agent_plays_twice_the_same():
    chosen = [ALL[2], ALL[40]]
    with measure.serve(MINI) as server:
        runs = [
            asyncio.run(scenarios.on_backend(chosen, server.url, server.model)) for _ in range(2)
        ]
    first, second = ([result.to_dict() for result in each.results] for each in runs)
    assert first == second and len(first) == len(chosen) == 2
    assert all(said["error"] == "" for result in first for said in result["turns"])


@pytest.mark.parametrize("surface", list(scenarios.SURFACES))
def test_every_surface_reaches_the_store_and_the_conversation(surface):
    """A scripted model, so that what differs is the surface alone."""
    chosen = [
        scenario(
            id="2-01",
            turns=["Finish task 1", "Make it urgent, due tomorrow"],
            expect=[
                {"task_id": 1, "title": ["Buy milk"], "priority": ["urgent"],
                 "status": ["completed"], "due": ["2026-12-03"]}
            ],
        )
    ]  # fmt: skip
    script = [
        tool_call("complete_task", task_id=1),
        tool_call("update_task", task_id=1, priority="urgent", due="tomorrow"),
    ]
    with HostedStandIn(script=script, key=None) as server:
        states = asyncio.run(scenarios.on_backend(chosen, server.url, "m", surface=surface))
    assert not [name for name in os.environ if name.startswith("AGENT_")]
    (result,) = states.results
    assert [said.error for said in result.turns] == ["", ""]
    assert states.name == f"m, {surface}"
    sent = [json.dumps(request.body["messages"]) for request in server.requests]
    if surface == "mcp-request":  # it has no memory, and so must not guess what "it" is
        assert result.tasks[0]["priority"] == "low"
        assert "Finish task 1" not in sent[-1]
    else:
        assert result.differences == ()
        assert "Finish task 1" in sent[-1]
