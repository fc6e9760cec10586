"""What a request points at, worked out by plain code and put into the text that the model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers import asked
from helpers.agent import guardrails, memory, pointing, second_look, spelling
from helpers.validators import ToolCall

TASKS = [
    {"task_id": 1, "title": "Read the gas meter", "status": "pending", "due": "2026-10-31"},
    {"task_id": 2, "title": "Read the water meter", "status": "pending", "due": None},
    {"task_id": 3, "title": "Order heating oil", "status": "pending", "due": "2026-12-04"},
    {"task_id": 4, "title": "Back up client photos", "status": "pending", "due": None},
]
for task, priority in zip(TASKS, ("high", "low", "low", "urgent"), strict=True):
    task["priority"] = priority


def said(text: str) -> dict:
    return {"role": "user", "content": text}


def result(number: int) -> dict:
    return {"role": "tool", "content": json.dumps(TASKS[number - 1])}


def listed(*numbers: int) -> dict:
    return {"role": "tool", "content": json.dumps({"tasks": [TASKS[n - 1] for n in numbers]})}


def did(name: str, number: int, **values: str) -> dict:
    return {"name": name, "arguments": {"task_id": number, **values}, "done": True}


def made(number: int, title: str, due: str | None) -> dict:
    given = {"title": title} | ({"due": due} if due else {})
    call = {"name": "create_task", "arguments": given, "done": True}
    return call | {"result": {"task_id": number}}


DONE = [did("complete_task", 1)]
MOVED = [did("update_task", 1, due="friday")]
ASKED = [said("when is the oil due?"), {"role": "assistant", "content": "Sorry."}]


@pytest.mark.parametrize(
    ("text", "heard", "calls", "reads"),
    [
        ("The third one's done.", [], (), "task 3's done."),
        ("the third one is done", [listed(4, 2, 1)], (), "task 1 is done"),
        ("the fifth one is done", [], (), None),
        ("make the last one on the list urgent", [], (), "make task 4 urgent"),
        ("make the last one urgent", [], (), None),  # of the list, or spoken of last?
        ("move it to the second", [result(1)], (), None),  # a date
        ("the second one: saturday, and the oil as well", [], (),
         "task 2: saturday, and the oil as well"),
        ("the first one about the oil is done", [], (), None),
        ("the other one too", [said("gas meter read"), result(1)], DONE, "task 2 is done"),
        ("the other one is urgent", [result(3)], (), None),  # one of three, none like it
        ("both of those are urgent", [said("add them"), result(3), result(4)], (),
         "task 3 and task 4 are urgent"),
        ("both are urgent", [said("add it"), result(3)], (), None),
        ("the other three can wait", [result(3)], (), "task 1 and task 2 and task 4 can wait"),
        ("the other two can wait", [result(3)], (), None),
        ("same for the oil", [result(1)], MOVED, "move task 3 to friday"),
        ("And the same for the second!", [result(1)], MOVED, "move task 2 to friday!"),
        ("Same for the oil. And it is urgent.", [result(1)], MOVED,
         "move task 3 to friday. And it is urgent."),
        ("the oil too, please", [result(1)], [did("delete_task", 1)], "delete task 3"),
        ("the oil is ordered too", [result(1)], MOVED, None),  # says itself what is to be done
        ("same for the cellar", [result(1)], MOVED, None),
        ("and the water meter, that day too", [result(1)], (),
         "and the water meter, due 2026-10-31 too"),
        ("add buy flowers, same day as the oil", [], (), "add buy flowers, due 2026-12-04"),
        ("add buy flowers, same day as the photos", [], (), None),  # which have none
        ("add clean it, the 7th of May, and phone them the same day", [result(3)], (),
         "add clean it, the 7th of May, and phone them due the 7th of May"),
        ("same for the oil, no time before that now", [result(1)], MOVED, "move task 3 to friday"),
        ("same for the oil, but on the 7th please", [result(1)], MOVED, None),
        ("OK, make it urgent", ASKED, (), "task 3: OK, make it urgent"),
        ("OK, thank you", ASKED, (), None),
        ("make it friday not monday", ASKED, (), "task 3: make it friday not monday"),
        ("is it late?", ASKED, (), None),
        ("make it urgent", [said("the oil is due friday"), result(3)], (), None),
        ("delete both low ones, please", [], (), "delete task 2 and task 3, please"),
        ("make the low ones medium", [], (), "make task 2 and task 3 medium"),
        ("the urgent one is done", [], (), "task 4 is done"),
        ("delete the low one", [], (), None),  # there are two
        ("are the low ones late?", [], (), None),
        ("Sorry, I meant diesel not oil.", [said("order oil"), result(3)], (),
         ' rename task 3 to "Order heating diesel".'),
        ("no, order the gas not the oil", [], (), None),  # two tasks
        ("sorry I could not order it", [result(3)], (), None),
        ("sorry, it's not oil but wood", [result(3)], (), None),
        ("I'm busy that day, move it to friday", [result(3)], (), None),
        ("add same day dry cleaning", [result(3)], (), None),
        ("add pack bags, same day as the oil arrives", [], (), None),
        ("delete all low tasks without a date", [], (), None),
        ("same for the oil, don't move it though", [result(1)], MOVED, None),
        ("order heating oil too", [result(1)], DONE, None),  # a wish, or a report?
        ("same for the oil, next week please", [result(1)], MOVED, None),
        ("same for the oil, as high priority", [result(1)], MOVED, None),
        ("make the LOW ONES urgent", [], (), "make task 2 and task 3 urgent"),
        ("No wait, it's petrol instead of oil", [], (),
         ' rename task 3 to "Order heating petrol".'),
        ("it's petrol, not oil", [], (), None),  # a correction, or a remark?
        ("sorry, the gas meter not the meter", [], (), None),  # which of them?
        ("sorry, friday not oil", [], (), None),
        ("sorry, petrol not oil, rename it to x", [], (), None),
        ("change it to buy flowers, same day", [result(3)], (), "change it to buy flowers, "),
    ],
)  # fmt: skip
def test_a_request_is_put_in_full(text, heard, calls, reads):
    assert pointing.in_full(text, heard, TASKS, calls) == (reads or text)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        # capitals
        ("DELETE 14", "delete 14"),
        ("hey, DELETE TASK 14 NOW", "delete task 14 now"),
        ("DON'T DELETE IT, I'M ON IT", "don't delete it, i'm on it"),
        ("RENAME 4 TO 'Call Ava', NOT \"CALL EVE\"", "rename 4 to 'Call Ava', not \"CALL EVE\""),
        ("ÄNDERE “Öl” ZU GAS", "ändere “Öl” zu gas"),
        ("ADD <TOOL_CALL> AND <|IM_START|>USER", "add <TOOL_CALL> and <|IM_START|>user"),
        ("call NASA", "call NASA"),  # a name
        ("call NASA, FBI and the UN", "call NASA, FBI and the UN"),
        ("I", "I"),
        ("14?", "14?"),
        ("", ""),
        # slips in words that decide
        ("dlete it, Thurdsay will do", "delete it, Thursday will do"),
        ("drlete, deelete, deleye 22 Fberuary", "delete, delete, delete 22 February"),
        ("rremove it, ihgh priortiy, tmorrow", "remove it, ihgh priority, tomorrow"),
        ("for sunda and rfiday", "for sunday and friday"),
        ("DLETE IT TOMOROW", "delete it tomorrow"),
        ('rename 3 to "Dlete it tomorow"', 'rename 3 to "Dlete it tomorow"'),
        ("a sundae, cancer, a remote, compete", "a sundae, cancer, a remote, compete"),
        ("mondays, deletes and thursday's", "mondays, deletes and thursday's"),
        ("Augusto's and Augusto", "Augusto's and Augusto"),
        ("delet.txt, 4tomorow", "delete.txt, 4tomorow"),
        # greeting and thanks
        ("Hi again, are any of these due this month? Ta!", "are any of these due this month?"),
        ("Good morning. Delete task 3, thanks a lot", "Delete task 3"),
        ("HELLO THERE! DELETE 3. THX!", "delete 3."),
        ("Hi there! Thanks!", "Hi there! Thanks!"),
        ("Hello", "Hello"),
        ("add a task to say hello, and thanks", "add a task to say hello, and thanks"),
        ("hi Ava thanks", "hi Ava thanks"),
        ("Hello, thank you cards need posting", "thank you cards need posting"),
        ("rename 3 to 'thank you'", "rename 3 to 'thank you'"),
    ],
)
def test_a_request_is_read_in_plain_spelling(text, reads):
    assert spelling.plain(text) == reads
    assert spelling.plain(reads) == reads


def test_no_word_of_a_title_is_taken_for_a_slip():
    mended = spelling._slips()
    assert 9_000 < len(mended) < 20_000
    assert not {*spelling._KNOWN, *spelling._OTHERS} & set(mended)
    model = Path(__file__).parent.parent / "model"
    titles = [
        task["title"]
        for path in (model / "evaluation").glob("scenarios*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
        for task in json.loads(line)["start"]
    ]
    for name in "adjs companies foods nouns persons places stories subjects thing".split():
        titles.append((model / "phrases" / f"{name}.txt").read_text(encoding="utf-8"))
    said = set(re.findall(r"[a-z]+", " ".join(titles).lower()))
    assert len(said) > 3_000 and not said & set(mended)


def test_what_was_spoken_of_last():
    def topic(*heard):
        return pointing.topic(heard, TASKS)

    assert topic(said("oil ordered"), result(3), {"role": "assistant", "content": "Done."}) == 3
    assert topic(said("when is the oil due?")) == 3 and topic() is None
    assert topic(said("when is the oil due?"), said("what a day"), said("list my tasks")) == 3
    assert topic(said("both meters"), result(1), result(2)) is None
    assert topic(said("the oil"), {"role": "tool", "content": '{"task_id": 9}'}) is None  # deleted


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([did("complete_task", 1)], "task 2 and task 3 are done"),
        ([did("delete_task", 1)], "delete task 2 and task 3"),
        ([did("update_task", 1, priority="low")], "set task 2 and task 3 to low priority"),
        ([did("update_task", 1, due="none")], "take the due date off task 2 and task 3"),
        ([did("update_task", 1, due="friday")], "move task 2 and task 3 to friday"),
        ([did("update_task", 1, due="friday", priority="low")], ""),
        ([did("update_task", 1, title="x")], ""),
        ([did("update_task", 1, due="friday"), did("update_task", 4, due="monday")], ""),
        ([did("complete_task", 1), did("delete_task", 4)], ""),
        ([], ""),
    ],
)
def test_what_was_done_said_for_other_tasks(calls, words):
    assert pointing.wish(calls, {3, 2}) == words
    assert pointing.wish(calls, set()) == ""


def test_a_name_says_nothing():
    assert asked.bare_name("the water one", TASKS) and asked.bare_name("heating oil too", TASKS)
    for text in ("oil ordered", "the", "", "the oil is urgent"):
        assert not asked.bare_name(text, TASKS)


def test_words_that_stand_together_in_a_title_are_one_in_a_request():
    assert asked.titled("set the backup to urgent", TASKS) == {4}
    assert asked.titled("baking is done", [{"task_id": 1, "title": "Bake a cake"}]) == {1}


def test_goodbyes_ask_for_nothing():
    for text in ("going to bed now, thanks x", "ok that's me for tonight, night!", "bye"):
        assert asked.only_courtesy(text)
    for text in ("for tonight", "tomorrow", "thanks, due tomorrow", "the oil, thanks"):
        assert not asked.only_courtesy(text)


def test_the_calls_of_the_last_exchange():
    calls = [did("complete_task", 1), did("delete_task", 2)]
    for call, content in zip(calls, ('{"task_id": 1}', '{"error": "no"}'), strict=True):
        call["result"] = json.loads(content)
    groups = memory.exchanges(memory.exchange("both please", calls, "Done."))
    assert memory.done_last(groups) == [{"name": "complete_task", "arguments": {"task_id": 1}}]
    assert memory.done_last([]) == []


DELETED = [did("delete_task", 1)]
BOTH = [said("add two"), result(3), result(4)]


@pytest.mark.parametrize(
    ("text", "heard", "calls"),
    [
        # More is said than the name of a task: the model reads it as it is.
        ("same for the water meter, but not the oil", [result(1)], DELETED),
        ("same for all but the oil", [result(1)], DELETED),
        ("same for the oil but on monday", [result(1)], MOVED),
        ("same for the oil tomorrow", [result(1)], DONE),
        ("same for the oil, no wait, keep it", [result(1)], DELETED),
        ("same for the oil bill", [result(1)], DELETED),
        ("same for the oil and the cellar", [result(1)], DELETED),
        # A place is no place in a list.
        ("remind me to call Ann first thing monday", [listed(4, 2)], ()),
        ("one last thing, the cellar", [listed(4, 2)], ()),
        ("the last task I created is urgent", [listed(4, 2)], ()),
        ("make the last one urgent", [listed(4, 2), result(3)], ()),  # which came after the list
        ("dentist, monday the 1st", [listed(4, 2)], ()),
        ("make it the 2nd", [listed(4, 2)], ()),
        ("the next task is to buy bread", [result(1)], ()),
        # What is new is no task that is there.
        ("add a second task: call Ann", [], ()),
        ("remind me to call both, as always", BOTH, ()),
        ("I need both eggs and flour", BOTH, ()),
        ("haircut this friday", ASKED, ()),
        ("fix the bike, it squeaks", ASKED, ()),
        ("forget it", ASKED, ()),
        ("that's fine", ASKED, ()),
        # A day that is another one.
        ("photos the same day next week", [result(1)], ()),
        ("not on the same day as the oil", [], ()),
        ("order same day delivery", [result(1)], ()),
        ("is it the same day as the oil?", [], ()),
    ],
)
def test_a_request_is_left_as_it_is(text, heard, calls):
    assert pointing.in_full(text, heard, TASKS, calls) == text


def test_a_list_that_nobody_saw_or_that_was_cut_has_no_last_one():
    put_before = [said(pointing.LISTING), listed(4, 2, 1)]
    assert pointing.in_full("the first one is done", put_before, TASKS) == "task 1 is done"
    assert pointing.in_full("the last one is done", put_before, TASKS) == "the last one is done"
    many = [{**TASKS[0], "task_id": n} for n in range(1, 13)]
    cut = {"role": "tool", "content": json.dumps({"tasks": many[: pointing.TASKS_SHOWN]})}
    assert pointing.pointed_at("the last one on the list is done", [cut], many) is None
    assert pointing.pointed_at("the second one is done", [cut], many) == {2}


def test_the_next_one_follows_in_the_list_that_was_shown():
    heard = [said("what is open?"), listed(3, 1, 4), said("oil ordered"), result(3)]
    assert pointing.pointed_at("the next one is done", heard, TASKS) == {1}
    assert pointing.pointed_at("the next one is done", [result(1)], TASKS) == {2}


# --- what is overlooked, and what is refused ---------------------------------------------------


def refused(name: str, why: str, **arguments) -> dict:
    return {"name": name, "arguments": arguments, "done": False, "result": {"error": why}}


def test_what_else_is_asked_for_once_more():
    look = second_look.overlooked
    # The model took no usable task for "it".
    tried = [refused("update_task", "Nobody spoke of task 28.", task_id=28, due="28 october")]
    text = "bring it forward to 28 october"
    assert look(text, tried, TASKS, topic=3) == [f"task 3: {text}"]
    assert look(text, tried, TASKS) == [] and look(text, [], TASKS, topic=3) == []
    assert look("haircut this friday", tried, TASKS, topic=3) != ["task 3: haircut this friday"]
    # All but a date that is none, or is over.
    tried = [refused("update_task", f"{guardrails.UNCLEAR} 'before lent'.", task_id=3,
                     priority="high", due="before lent")]  # fmt: skip
    assert look("oil before lent, make it high", tried, TASKS) == ["task 3: oil , make it high"]
    # One wish for several: the others by number.
    done = [did("update_task", 1, priority="low")]
    assert look("gas and oil: both low", done, TASKS) == ["set task 3 to low priority"]
    assert look("both low", done, TASKS, pointed={1, 2}) == ["set task 2 to low priority"]
    assert look("both low", done, TASKS, pointed={1}) == []


def test_what_a_date_that_is_none_took_with_it_is_asked_for_without_it():
    look, none = second_look.overlooked, f"{guardrails.UNCLEAR} 'before lent'."
    lost = refused("update_task", none, task_id=3, priority="high", due="before lent")
    text = "gas meter is read. oil: high before lent"
    assert look(text, [*DONE, lost], TASKS) == ["set task 3 to high priority"]
    only_dated = refused("update_task", none, task_id=3, due="before lent")
    assert look("gas meter is read. oil before lent", [*DONE, only_dated], TASKS) == []
    repaired = did("update_task", 3, priority="high")
    assert look(text, [*DONE, lost, repaired], TASKS) == []

    text = "to do: buy bread before lent, sweep the yard friday, dust friday"
    lost = refused("create_task", none, title="buy bread", due="before lent")
    assert look(text, [lost], TASKS) == [text.replace("before lent", "")]
    one, two = made(8, "sweep the yard", "friday"), made(9, "dust", "friday")
    assert look(text, [lost, one], TASKS) == ["add a task: buy bread"]
    assert look(text, [lost, one, two], TASKS) == ["add a task: buy bread, due friday"]
    assert look(text, [lost, one, made(9, "buy bread", None)], TASKS) == []
    invented = refused("create_task", none, title="buy wine", due="before lent")
    assert look(text, [invented, one], TASKS) == []


def test_a_change_of_another_task_is_made_with_the_one_that_is_named():
    look = second_look.overlooked
    other = refused("update_task", f"{guardrails.NOBODY} 1.", task_id=1, due="the 20th")
    assert look("oil can wait until the 20th", [other], TASKS) == ["move task 3 to the 20th"]
    # What is reported is no plan, and a deletion is never worked out.
    text = "oil was ordered on the 20th"
    assert look(text, [other], TASKS) == [f"task 3: {text}"]
    text = "oil can wait until the 20th"
    gone = refused("delete_task", f"{guardrails.NOBODY} 1.", task_id=1)
    assert "delete task 3" not in look(text, [gone], TASKS)


def test_a_deadline_that_stands_alone_is_of_the_one_task_that_was_changed():
    look, high = second_look.overlooked, [did("update_task", 3, priority="high")]
    high[0]["result"] = {"task_id": 3}
    for text in ("oil is high now, and by the 22nd pls", "oil to high, due the 22nd"):
        assert look(text, high, TASKS) == ["move task 3 to the 22nd"]
    for text in ("oil is high now, see you by the 22nd hour", "oil to high, not by the 22nd"):
        assert look(text, high, TASKS) == []


def test_what_is_put_back_is_asked_for_once_more_and_not_completed():
    tasks = [*TASKS[:2], {**TASKS[2], "status": "completed"}]
    text = "I ticked off the oil but nobody came. Put that one back to not done, also for friday"
    dated = [did("update_task", 3, due="friday")]
    assert second_look.overlooked(text, dated, tasks) == ["set task 3 back to pending"]
    assert second_look.overlooked(text, dated, TASKS[:3]) == []
    problem = guardrails.ended(text, [], TASKS[:3])(ToolCall("complete_task", {"task_id": 3}))
    assert problem == "It says that task 3 is not done after all."


def test_completed_tasks_are_cleared_only_where_that_is_all_that_is_asked():
    tasks = [
        {**task, "status": "completed" if task["task_id"] < 3 else "pending"} for task in TASKS
    ]
    wanted = ["delete task 1", "delete task 2"]
    for text in (
        "delete the finished ones",
        "Can you get rid of all done tasks, please?",
        "clear out everything that's done",
        "Clear out whatever's finished, it's cluttering up the list.",
        "remove the done ones from the list",
    ):
        assert second_look.overlooked(text, [], tasks) == wanted
    for text in (
        "remind me to delete the finished ones",
        "put the completed ones back, they're gone",
        "tick off the completed ones",
        "I want the done ones to stay, delete the others",
        "delete the finished ones from last week",
        "delete the half finished ones",
        "delete the finished ones? no wait",
    ):
        assert not set(second_look.overlooked(text, [], tasks)) & set(wanted)


@pytest.mark.parametrize(
    ("text", "calls", "asked_for"),
    [
        ("delete the gas meter. Oil: friday", DELETED, ["oil friday"]),
        ("gas meter: done. oil: tomorrow", DONE, ["oil tomorrow"]),
        ("gas meter is read. Then oil", DONE, []),
        ("gas meter is read, oil and photos are still open", DONE, ["photos are still open"]),
        ("delete the gas meter but the oil, keep that", DELETED, []),
        ("gas meter and oil are done", DONE, ["oil are done"]),
        ("gas meter, oil and photos: all done", DONE, ["task 3 is done", "task 4 is done"]),
    ],
)
def test_a_bare_name_gets_the_wish_of_another_only_where_it_is_shared(text, calls, asked_for):
    assert second_look.overlooked(text, calls, TASKS) == asked_for


def check(make, text, *more):
    one = make(text, *more, TASKS)
    return lambda name, **arguments: one(ToolCall(name, arguments)) or ""


@pytest.mark.parametrize(
    ("text", "passes", "refused"),
    [
        ("delete tasks 2 and 3", (2, 3), (1, 4)),
        ("delete 3 and 4 please", (3, 4), (1, 2)),
        ("remove task 3, and 4 as well", (3, 4), (1, 2)),
        ("delete 3 and finish 4", (3,), (4,)),
        ("delete 3, 4 is done", (3,), (4,)),
    ],
)
def test_several_numbers_share_one_deletion(text, passes, refused):
    why = check(guardrails.meant_deletion, text)
    assert not any(why("delete_task", task_id=number) for number in passes)
    assert all(why("delete_task", task_id=number) for number in refused)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("delete the hive 2 one", 1),
        ("hive 2 swarmed, so delete that", 1),
        ("remove the heating oil from 2 weeks ago", 3),
        ("delete task 2", 2),
        ("delete the Jo one", 4),
        ("hive 2 is split, delete task 2", 2),
    ],
)
def test_numbers_of_titles_and_of_weeks_are_no_tasks(text, meant):
    titles = ("Split hive 2", "Buy sugar", "Order heating oil", "Call Jo")
    tasks = [
        {"task_id": n, "title": title, "status": "pending", "priority": "medium", "due": None}
        for n, title in enumerate(titles, 1)
    ]
    for number in (1, 2, 3, 4):
        call = ToolCall("delete_task", {"task_id": number})
        problems = (
            guardrails.named_task(text, [], tasks)(call),
            guardrails.meant_deletion(text, tasks)(call),
        )
        assert any(problems) == (number != meant), (number, problems)


def test_a_date_belongs_to_the_task_that_it_is_said_of():
    why = check(guardrails.own_date, "The gas meter is read. The oil can wait till monday.")
    assert why("update_task", task_id=1, due="monday").startswith(guardrails.OTHERS)
    assert not why("update_task", task_id=3, due="monday")
    assert not why("complete_task", task_id=1)
    why = check(guardrails.own_date, "gas meter to the 7th and oil to the 8th")
    assert why("update_task", task_id=1, due="the 8th").startswith(guardrails.OTHERS)
    assert not why("update_task", task_id=3, due="the 8th")
    why = check(guardrails.own_date, "gas meter and oil to monday")
    assert not why("update_task", task_id=1, due="monday")


def test_what_is_over_is_no_date():
    def why(text, due, **more):
        call = ToolCall("update_task", {"task_id": 1, "due": due, **more})
        return guardrails.planned(text)(call) or ""

    assert why("I read the gas meter this morning", "this morning").startswith(guardrails.OVER)
    for text, due in (
        ("the gas meter should be read this morning", "this morning"),
        ("I ordered oil, it comes tomorrow", "tomorrow"),
    ):
        assert not why(text, due)
    assert not why("I read the gas meter this morning", "this morning", priority="low")


def test_a_new_task_has_a_title_of_its_own():
    why = check(guardrails.new_title, "For the backup, set urgent.")
    assert why("create_task", title="for the backup") == (
        "There is task 4 already: Back up client photos."
    )
    assert not check(guardrails.new_title, "add a task: oil")("create_task", title="oil")
    assert "no title" in why("create_task", title="few things")
    why = check(guardrails.new_title, "No problem. Then add a task: call mum")
    assert "Nobody asked" in why("create_task", title="problem")
    assert not why("create_task", title="call mum")
    why = check(guardrails.new_title, "I need milk. Add it to my list")
    assert not why("create_task", title="milk")


def test_what_is_completed_stays_completed_in_a_turn():
    why = guardrails.one_end([did("complete_task", 1)])
    assert why(ToolCall("update_task", {"task_id": 1, "status": "in_progress"}))
    assert not why(ToolCall("update_task", {"task_id": 1, "priority": "low"}))
    assert not why(ToolCall("update_task", {"task_id": 2, "status": "in_progress"}))


def test_the_second_one_is_named_beside_another():
    text = "task 2: saturday, and the oil as well"
    why = guardrails.named_task(text, [], TASKS)
    assert not why(ToolCall("update_task", {"task_id": 3, "due": "saturday"}))
    assert why(ToolCall("update_task", {"task_id": 4, "due": "saturday"}))
