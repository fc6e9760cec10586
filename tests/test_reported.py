"""What a request reports as done, and how far a title goes: worked out by plain code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from helpers import asked
from helpers.agent import guardrails, titles
from helpers.agent.reported import reported
from helpers.evaluation import SETS, same
from helpers.validators import ToolCall

TASKS = [
    {"task_id": 1, "title": "Choose hymns for the funeral", "status": "in_progress"},
    {"task_id": 2, "title": "Thaw out the yard tap", "status": "pending"},
    {"task_id": 3, "title": "Ring the boiler man", "status": "pending"},
    {"task_id": 4, "title": "Clean the brushes", "status": "pending"},
    {"task_id": 5, "title": "Cancel gym", "status": "pending"},
    {"task_id": 6, "title": "Move the dry cows", "status": "completed"},
    {"task_id": 7, "title": "Return library books", "status": "pending"},
]


@pytest.mark.parametrize(
    ("text", "topic", "done"),
    [
        ("The hymns are chosen. Abide With Me, of course.", None, {1}),
        ("yard tap's running again, took four kettles", None, {2}),
        ("Rang him, he's been", 3, {3}),
        ("Rang him, he's been", None, set()),
        ("brushes are clean", None, {4}),
        ("gym cancelled, hooray", None, {5}),
        ("dry cows moved", None, set()),  # as it is already
        ("library books went back yesterday", None, {7}),
        ("phoned the boiler man, tap thawed", None, {2, 3}),
        ("the hymns, well, that's sorted", None, {1}),
        ("Moved house, so that's done", None, set()),  # no cows
        ("the hymns are almost chosen", None, set()),
        ("the tap is running again but only just", None, set()),
        ("have the hymns been chosen?", None, set()),
        ("the hymns have to be chosen by friday", None, set()),
        ("I'll have the brushes clean tonight", None, set()),
        ("the boiler man rang me", None, set()),
        ("brushes aren't clean", None, set()),
        ("that gym is so loud", None, set()),
        ("paid the bill", 3, set()),
        ("add: choose the hymns", None, set()),
        ("the hymns. the vicar just chose them", None, {1}),
        ("somebody was here for the tap, it's running again", None, {2}),
        ("library books are back with Ann", None, {7}),
    ],
)
def test_reports(text, topic, done):
    assert set(reported(text, TASKS, topic)) == done


@pytest.mark.parametrize(
    ("title", "done", "not_done"),
    [
        ("Fix the broken lamp", "the lamp is fixed",
         ["fix the broken lamp on saturday", "the lamp is broken"]),
        ("Send the signed contract to Bosch", "contract sent", ["signed contract, friday"]),
        ("Call the dentist", "called the dentist",
         ["the dentist called", "called the dentist, no answer", "get the dentist called"]),
        ("Fix the kitchen tap", "kitchen tap fixed",
         ["I fixed the garden tap", "kitchen tap is running", "let's get the kitchen tap fixed"]),
        ("Pay the electricity bill", "paid the electricity bill",
         ["I paid the gas bill today", "electricity bill to be paid on the 5th",
          "not sure, is the electricity bill paid", "I think the electricity bill is paid",
          "dad paid his electricity bill yesterday"]),
        ("Book flights to Lisbon", "flights booked",
         ["booked flights to Porto", "flights to Lisbon are fully booked"]),
        ("Write the quarterly report", "report is done",
         ["wrote the monthly report", "finished the outline of the quarterly report"]),
        ("Update website", "website is done",
         ["website is 80% done", "website is done, footer is missing",
          "the website mockup is done"]),
        ("Wash the car", "car's washed",
         ["the car is being washed", "plan for the week: car washed, dentist called",
          "if the weather holds, car washed", "I ticked off the car by accident"]),
        ("Print photos", "photos are printed", ["remind me to collect the printed photos"]),
        ("Empty the dishwasher", "dishwasher is empty", ["the dishwasher is done"]),
        ("Buy milk and eggs", "bought milk and eggs",
         ["milk is finished", "bought milk, forgot the eggs"]),
        ("Buy mum's present", "mum's present bought", ["bought wrapping paper for mum's present"]),
    ],
)  # fmt: skip
def test_what_is_no_report_is_none(title, done, not_done):
    tasks = [{"task_id": 1, "title": title, "status": "pending"}]
    assert set(reported(done, tasks)) == {1}
    assert [text for text in not_done if reported(text, tasks)] == []


def turns() -> Iterator[tuple[str, list, list, list]]:
    """Every turn of the scenarios that may be read: text, tasks before it, calls, titles there."""
    for path in sorted(SETS.glob("scenarios_dev*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            data = json.loads(line)
            tasks = [{**task, "task_id": n} for n, task in enumerate(data["start"], 1)]
            made = len(tasks)
            for text, calls in zip(data["turns"], data["calls"], strict=True):
                yield text, tasks, calls, [task["title"] for task in data["expect"]]
                for call in calls:
                    given, name = call["args"], call["name"]
                    if name == "create_task":
                        made += 1
                        tasks = [*tasks, {"status": "pending", **given, "task_id": made}]
                    elif name == "delete_task":
                        tasks = [t for t in tasks if t["task_id"] != given["task_id"]]
                    elif name != "list_tasks":
                        new = {"status": "completed"} if name == "complete_task" else given
                        number = given["task_id"]
                        tasks = [t | new if t["task_id"] == number else t for t in tasks]


def test_few_reports_are_seen_where_there_are_none_and_most_where_there_are():
    count = Counter()
    for text, tasks, calls, _ in turns():
        done = {
            call["args"]["task_id"]
            for call in calls
            if "complete" in call["name"] or call["args"].get("status") == "completed"
            if "task_id" in call["args"]
        }
        found = set(reported(text, tasks))
        count += Counter(right=len(found & done), wrong=len(found - done), all=len(done))
    assert count["wrong"] <= 0.02 * count["right"], count
    assert count["right"] >= 0.6 * count["all"], count


def test_of_what_is_done_no_other_call_is_believed():
    text = "The hymns are chosen, but the tap has to be thawed by friday. What a day!"
    check = guardrails.ended(text.replace("but", "and"), [], TASKS)
    assert "is done: the hymns are chosen" in check(
        ToolCall("update_task", {"task_id": 1, "status": "in_progress"})
    )
    assert check(ToolCall("update_task", {"task_id": 1, "due": "friday"}))
    assert check(ToolCall("update_task", {"task_id": 1, "priority": "high"})) is None
    assert check(ToolCall("update_task", {"task_id": 1, "status": "completed"})) is None
    assert check(ToolCall("complete_task", {"task_id": 1})) is None
    assert "has to be thawed" in check(ToolCall("complete_task", {"task_id": 2}))
    assert "task 1 is done" in check(ToolCall("complete_task", {"task_id": 3}))
    assert check(ToolCall("update_task", {"task_id": 2, "due": "friday"})) is None


def test_a_title_without_words_is_no_reason_to_fail():
    tasks = [{"task_id": 1, "title": "\U0001f389", "status": "pending"}]
    assert reported("paid it", tasks, 1) == {} == reported("done!", tasks, 1)
    assert titles.whole("\U0001f389", "add \U0001f389") == "\U0001f389"


def test_a_report_is_no_deletion():
    call = ToolCall("delete_task", {"task_id": 5})
    assert "is done" in guardrails.ended("gym cancelled, 32 a month saved", [], TASKS)(call)
    assert guardrails.ended("gym cancelled, so delete it", [], TASKS)(call) is None
    assert guardrails.ended("delete the gym one", [], TASKS)(call) is None


def test_nothing_is_completed_that_is_opened_again_and_no_title_changes_unasked():
    check = guardrails.ended("I ticked off the brushes, put that back to pending", [], TASKS)
    assert "not done after all" in check(ToolCall("complete_task", {"task_id": 4}))
    call = ToolCall("update_task", {"task_id": 7, "title": "back with Ann"})
    assert "another title" in guardrails.named_anew("The books are back with Ann")(call)
    assert guardrails.named_anew("call it back with Ann")(call) is None


def test_a_deletion_is_of_what_the_deleting_words_are_about():
    def refused(text, number):
        return guardrails.meant_deletion(text, TASKS)(ToolCall("delete_task", {"task_id": number}))

    text = "The boiler man said yes. We shan't need the brushes, so do remove that. Tap thawed"
    assert [n for n in range(1, 8) if not refused(text, n)] == [4]
    assert not refused("the library books are back, so delete it", 7)
    assert not refused("delete the brushes, and the gym one as well", 5)
    tasks = [{"task_id": 1, "title": "Take out the bins"}, {"task_id": 2, "title": "Wash the car"}]
    assert guardrails.targets("we sold the car, so take it off", tasks) == {2}
    assert guardrails.targets("delete everything except the car", tasks) == set()
    assert not refused("delete it", 7) and not refused("delete 7", 7) and refused("delete 7", 1)


# --- titles -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "text", "whole"),
    [
        ("ring the boiler", "add: ring the boiler man, urgent", "ring the boiler man"),
        ("buy a new watch", "also add buy a new fob watch", "buy a new fob watch"),
        ("walk the pughs", "add walk the pughs' dog on thursday", "walk the pughs' dog"),
        ("case study", "add case study on Mr B, due in two weeks", "case study on Mr B"),
        ("pack Roy's tablets", "put down 'pack Roy's tablets' for the 31st", None),
        ("ice the cake", "pop down ice the cake for the 20th", None),
        ("call mum", "call mum in two weeks", None),
        ("call mum", "call mum because she is ill", None),
        ("call mum", "call mum; call mum back", None),  # which of them?
        ("buy milk", "remind me to buy milk please", None),
        ("buy some bread", "buy some bread and butter", None),
        ("ring dad", "phone my father", None),
        ("milk", "add milk chocolate", None),  # one word is too little to be sure
        ("the locks on flat", "the locks on flat 3 for the 5th", "the locks on flat 3"),
        ("email Ann on chapter", "email Ann on chapter two, by friday", "email Ann on chapter two"),
        ("call mum", "call mum 2 days before", None),
        (
            "turn up",
            "put '6 week check at 10' on it for the 27th so i turn up",
            "6 week check at 10",
        ),
        ("buy milk", "put 'check at 10' on it. And buy milk", None),
        ("roses", "rename it, so: call the florist about roses", "call the florist about roses"),
        ("a talk", "new: create a talk", None),
        ("call gran", 'rename "call mum" to call gran', None),
        ("buy the book", 'add buy the book "Dune Messiah"', None),
        ("buy candles", "add buy candles very urgent", None),
        ("fix fence", "add fix fence Dave is coming on friday", None),
        ("call mum", "at 9:30 call mum", None),
        ("team call", "add team call 9 on monday", None),
        ("buy candles", "add buy candles delete matches", None),
    ],
)
def test_titles_go_as_far_as_in_the_request(title, text, whole):
    assert titles.whole(title, text) == (whole or title)


def test_titles_of_the_sets_are_left_alone_and_their_pieces_completed():
    count = Counter()
    for text, _, calls, expected in turns():
        for call in calls:
            title = call["args"].get("title")
            if not title or title.casefold() not in text.casefold():
                continue
            accepted = next((all_ for all_ in expected if title in all_), [title])

            def right(one: str, accepted: list[str] = accepted) -> bool:
                return any(same("title", each, one) for each in accepted)

            count["spoilt"] += not right(titles.whole(title, text))
            count["titles"] += 1
            cut = " ".join(title.split()[:-1])
            if len(cut.split()) > 1 and not right(cut):
                count["mended"] += right(titles.whole(cut, text))
                count["cut"] += 1
    assert count["spoilt"] <= 0.01 * count["titles"], count
    assert count["mended"] >= 0.9 * count["cut"], count


@pytest.mark.parametrize(
    ("word", "stem"),
    [("cakes", "cake"), ("boxes", "box"), ("dishes", "dish"), ("potatoes", "potato"),
     ("shoes", "shoe"), ("replied", "reply"), ("parties", "party"), ("rang", "ring")],
)  # fmt: skip
def test_words_are_known_in_their_forms(word, stem):
    assert asked.stem(word) == stem
