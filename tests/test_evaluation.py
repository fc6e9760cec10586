"""The scorer against deliberately wrong answers, and the evaluation over a loopback server."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import evaluation as ev
from helpers.evaluation import Case, evaluate, fold, gibberish, load_cases, score, wilson
from helpers.settings import CourseError
from helpers.tasks import TOOLS, tool_schemas

ALL = list(TOOLS)


def case(expect=(), user="do something with my tasks", category="test", **more) -> Case:
    data = {
        "id": "t-1",
        "category": category,
        "messages": [{"role": "user", "content": user}],
        "tools": ALL,
        "expect": list(expect),
    }
    return Case.from_dict(data | more)


def call(name, /, **args):
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(args)}}


def calls(*made, text=None):
    return {"role": "assistant", "content": text, "tool_calls": list(made)}


def say(text):
    return {"role": "assistant", "content": text}


CREATE = {
    "name": "create_task",
    "args": {
        "title": ["call mum"],
        "due": ["tomorrow"],
        "priority": ["urgent"],
    },
}


@pytest.mark.parametrize(
    "args",
    [
        {"title": "call mum", "due": "tomorrow", "priority": "urgent"},
        {"title": "Call my Mum.", "due": "Tomorrow", "priority": "urgent"},
        {"priority": "urgent", "due": " tomorrow ", "title": "“call  mum”"},
    ],
)
def test_right_call(args):
    assert score(case([CREATE]), calls(call("create_task", **args))).ok


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"title": "call dad", "due": "tomorrow", "priority": "urgent"}, 'title is "call dad"'),
        ({"title": "call mum", "priority": "urgent"}, "due is missing"),
        ({"title": "call mum", "due": None, "priority": "urgent"}, "due is missing"),
        ({"title": "call mum", "due": "tomorrow", "priority": "Urgent"}, "priority is"),
        (
            {"title": "call mum", "due": "tomorrow", "priority": "urgent", "status": "pending"},
            "status=",
        ),
        ({"title": 7, "due": "tomorrow", "priority": "urgent"}, "title is 7"),
        ({"title": "", "due": "tomorrow", "priority": "urgent"}, "title is"),
    ],
)
def test_wrong_arguments(args, reason):
    verdict = score(case([CREATE]), calls(call("create_task", **args)))
    assert not verdict.ok
    assert reason in verdict.reason


@pytest.mark.parametrize("wrong", ["14", 14.0, True, [14], {"id": 14}, 15, -14, "TASK-0014"])
def test_ids_are_exact(wrong):
    wanted = case([{"name": "complete_task", "args": {"task_id": [14]}}])
    assert score(wanted, calls(call("complete_task", task_id=14))).ok
    assert not score(wanted, calls(call("complete_task", task_id=wrong))).ok


@pytest.mark.parametrize("wrong", [42, "42", "task-0042", "TASK-42", "TASK-0042 "])
def test_string_ids_are_exact(wrong):
    wanted = case([{"name": "complete_task", "args": {"task_id": ["TASK-0042"]}}])
    assert score(wanted, calls(call("complete_task", task_id="TASK-0042"))).ok
    assert not score(wanted, calls(call("complete_task", task_id=wrong))).ok


def test_true_is_not_one():
    wanted = case([{"name": "complete_task", "args": {"task_id": [1]}}])
    assert not score(wanted, calls(call("complete_task", task_id=True))).ok


def test_null_counts_as_absent():
    wanted = case([{"name": "list_tasks", "args": {"status?": ["pending"]}}])
    for args in ({}, {"status": None, "priority": None}, {"status": "pending"}):
        assert score(wanted, calls(call("list_tasks", **args))).ok, args
    for args in ({"status": "completed"}, {"priority": "low"}, {"status": ""}):
        assert not score(wanted, calls(call("list_tasks", **args))).ok, args


def test_a_null_that_is_accepted_may_be_absent():
    wanted = case([{"name": "list_tasks", "args": {"status": [None, "pending"]}}])
    assert score(wanted, calls(call("list_tasks"))).ok


def test_one_of_several_names():
    wanted = case([{"name": ["update_task", "complete_task"], "args": {"task_id": [3]}}])
    assert score(wanted, calls(call("complete_task", task_id=3))).ok
    assert score(wanted, calls(call("update_task", task_id=3))).ok
    assert not score(wanted, calls(call("delete_task", task_id=3))).ok


def test_neighbouring_and_unoffered_tools_are_wrong():
    wanted = case(
        [{"name": "complete_task", "args": {"task_id": [3]}}],
        tools=["complete_task", "list_tasks"],
    )
    verdict = score(wanted, calls(call("delete_task", task_id=3)))
    assert not verdict.ok
    assert "not offered" in verdict.reason


def several(*ids):
    return [{"name": "complete_task", "args": {"task_id": [i]}} for i in ids]


def test_order_of_calls_does_not_matter():
    for order in itertools.permutations((3, 7, 12)):
        made = [call("complete_task", task_id=i) for i in order]
        assert score(case(several(3, 7, 12)), calls(*made)).ok


@pytest.mark.parametrize("ids", [(3, 7), (3, 7, 12, 12), (3, 3, 7), (3, 7, 13), (), (3, 7, 12, 1)])
def test_missing_repeated_and_additional_calls_are_wrong(ids):
    made = [call("complete_task", task_id=i) for i in ids]
    verdict = score(case(several(3, 7, 12)), calls(*made))
    assert not verdict.ok
    assert verdict.reason


def test_matching_is_real_and_not_greedy():
    """The first expected call accepts both: it must leave the other's only one alone."""
    expect = [
        {"name": "create_task", "args": {"title": ["milk", "buy milk"]}},
        {"name": "create_task", "args": {"title": ["milk"]}},
    ]
    made = [call("create_task", title="milk"), call("create_task", title="buy milk")]
    for order in itertools.permutations(made):
        assert score(case(expect), calls(*order)).ok
    assert not score(case(expect), calls(made[1], made[1])).ok


@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=6))
def test_matching_agrees_with_trying_everything(edges):
    size = len(ev._match(list(edges)))
    best = max(
        sum(1 for i, j in enumerate(order) if i < len(edges) and j in edges[i])
        for order in itertools.permutations(range(6))
    )
    assert size == best


def test_reason_names_the_nearest_call():
    made = [call("complete_task", task_id=3), call("delete_task", task_id=9)]
    expect = [*several(3), {"name": "delete_task", "args": {"task_id": [8]}}]
    assert score(case(expect), calls(*made)).reason == ("delete_task: task_id is 9, expected 8")


@pytest.mark.parametrize(
    "raw", ["", "{", '{"task_id": 3', "[3]", "3", '"x"', "null", "task_id=3", "{'task_id': 3}"]
)
def test_unparseable_arguments_are_wrong(raw):
    bad = {"function": {"name": "complete_task", "arguments": raw}}
    assert not score(case(several(3)), calls(bad)).ok
    assert not score(case([]), calls(bad)).ok


def test_cut_off_is_never_right():
    assert not score(case(several(3)), calls(call("complete_task", task_id=3)), "length").ok
    assert not score(case([]), say("Sorry, I can only help with tasks."), "length").ok


def test_text_beside_a_call():
    made = call("complete_task", task_id=3)
    assert score(case(several(3)), calls(made, text="I will do that now."), "tool_calls").ok
    raw = '<tool_call>{"name": "delete_task", "arguments": {}}'
    assert not score(case(several(3)), calls(made, text=raw), "tool_calls").ok


REFUSALS = [
    "Sorry, I can only help with tasks.",
    "I can't do that: deleting is not among my tools.",
    "That is outside what I do. I manage tasks.",
    "No.",
    "Hello! What can I do for you?",
    "You're welcome!",
    "I’m afraid I cannot change a task here.",
    "I cannot create tasks right now, but I can list them.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_right(text):
    assert score(case([]), say(text), "stop") == ev.RIGHT


GIBBERISH = [
    "",
    "   \n ",
    None,
    "...",
    "42 42 42",
    "the the the the the the",
    "task 3 is task 3 is task 3 is task 3 is task 3 is",
    "hfjdk slkfj wqpxz mnbvc",
    "\ufffd\ufffd Sorry",
    "Sorry, I cannot\x00 do that",
    "Sorry <|im_end|> sorry",
    "Sorry, I can only help with tasks.<|im_start|>assistant",
    "blorf wib tand shting oller",
    "ing ting the shting bo of lat er ated pri mor th ed un",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "create create create create create",
    "\u0e01\u0e02\u0e03 \u0e04\u0e05",
]


@pytest.mark.parametrize("text", GIBBERISH)
def test_gibberish_is_never_a_refusal(text):
    verdict = score(case([]), say(text), "stop")
    assert not verdict.ok
    assert verdict.reason


@pytest.mark.parametrize("seed", range(20))
def test_random_letters_are_gibberish(seed):
    rng = random.Random(seed)
    words = ("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))
             for _ in range(rng.randint(3, 30)))  # fmt: skip
    assert gibberish(" ".join(words))


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "create_task", "arguments": {"title": "x"}}\n</tool_call>',
        "Sure. <tool_call> create the task",
        '{"name": "delete_task", "arguments": {"task_id": 3}}',
        'Here you are: {"name": "delete_task", "arguments": {"task_id": 3}}',
        'I will call {"function": "delete_task"} for you',
        '[{"task_id": 3}]',
        '{"task_id": 3}',
        "[TOOL_CALLS] delete_task",
        "<function=delete_task>",
        '"arguments": {"task_id": 3}',
    ],
)
def test_a_call_as_text_is_no_refusal(text):
    assert not score(case([]), say(text), "stop").ok


def test_a_call_is_no_refusal():
    verdict = score(case([]), calls(call("delete_task", task_id=3), text="Sorry, I cannot."))
    assert "no tool was to be called" in verdict.reason


def test_facts_and_claims():
    wanted = case([], say=["14", "call mum"], never=["deleted", "15"])
    assert score(wanted, say('Created task 14: "Call Mum".')).ok
    for wrong, why in [
        ("Created task 145: call mum.", 'does not say "14"'),
        ("Created task 9014: call mum.", 'does not say "14"'),
        ("Created task 14.", 'does not say "call mum"'),
        ("I deleted task 14, call mum.", 'claims "deleted"'),
        ("Task 14 and task 15: call mum.", 'claims "15"'),
    ]:
        verdict = score(wanted, say(wrong))
        assert not verdict.ok
        assert why in verdict.reason


def test_curly_apostrophes_are_the_same():
    wanted = case([], never=["I've created"])
    assert not score(wanted, say("I’ve created the task.")).ok


def test_folding():
    assert fold("The  Q3-report!") == fold("q3 report")
    assert fold("buy milk") != fold("milk")
    assert fold("hepatitis A") != fold("hepatitis")
    assert fold("Granny's orchids") == fold("grannys orchids")
    assert fold("pay £2,340") == fold("pay £2340")
    assert fold("C++") != fold("C")
    assert fold("20 chairs") != fold("2 chairs")
    assert fold("ﬁle") == fold("file")
    assert fold("café") != fold("cafe")


@given(st.text(max_size=60))
def test_folding_twice_changes_nothing(text):
    assert fold(fold(text)) == fold(text)


@given(st.text(max_size=200), st.sampled_from([None, "stop", "length", "tool_calls"]))
def test_any_text_gets_a_verdict(text, finish):
    verdict = score(case(several(3)), say(text), finish)
    assert not verdict.ok  # a text is never a call
    assert isinstance(score(case([]), say(text), finish).reason, str)


def test_sdk_objects_are_read():
    from openai.types.chat import ChatCompletion

    completion = ChatCompletion.model_validate(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "message": calls(call("complete_task", task_id=3) | {"id": "x"}),
                }
            ],
        }
    )
    wanted = case(several(3))
    for answer in (completion, completion.choices[0], completion.choices[0].message):
        assert score(wanted, answer).ok


def test_wilson():
    # Values from R: prop.test / binom::binom.confint(method = "wilson")
    assert wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=2e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=2e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=2e-4)
    assert wilson(0, 0) == (0, 1)


# --- files -----------------------------------------------------------------------------------


def test_load_cases(tmp_path):
    path = tmp_path / "cases.jsonl"
    good = case(several(3)).to_dict()
    path.write_text(json.dumps(good) + "\n\n", encoding="utf-8")
    assert [c.to_dict() for c in load_cases(path)] == [good]
    assert load_cases(path, category="other") == []


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        json.dumps(case(several(3)).to_dict() | {"extra": 1}),
        json.dumps(case().to_dict() | {"expect": [{"name": "x", "args": {"a": 3}}]}),
        json.dumps(case().to_dict() | {"expect": [{"name": "x", "args": {"a": []}}]}),
        json.dumps(case().to_dict() | {"expect": [{"name": [], "args": {}}]}),
        json.dumps(case().to_dict() | {"messages": []}),
    ],
)
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(case(id="t-0").to_dict()) + "\n" + line, encoding="utf-8")
    with pytest.raises(CourseError, match="Line 2"):
        load_cases(path)


def test_ids_are_unique(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text((json.dumps(case().to_dict()) + "\n") * 2, encoding="utf-8")
    with pytest.raises(CourseError, match="twice"):
        load_cases(path)
    with pytest.raises(CourseError, match="no evaluation cases"):
        load_cases(tmp_path / "none.jsonl")


# --- the report ------------------------------------------------------------------------------


def oracle(cases):
    """A perfect model: answers a case with what it expects."""
    answers = {json.dumps(c.messages): c for c in cases}

    def ask(messages, tools):
        wanted = answers[json.dumps(messages)]
        if not wanted.expect:
            return say("Done: " + ", ".join(wanted.say) if wanted.say else REFUSALS[0])
        return calls(
            *(
                call(e.names[0], **{k: v[0] for k, v in e.args.items() if k[-1] != "?"})
                for e in wanted.expect
            )
        )

    return ask


CASES = [
    case([CREATE], id="create-1", category="create", user="call mum tomorrow, urgent"),
    case(several(3, 7), id="several-1", category="several", user="done with 3 and 7"),
    case(
        [{"name": "update_task", "args": {"task_id": [588], "due": ["friday"]}}],
        id="reference-1",
        category="reference",
        messages=[
            {"role": "user", "content": "what is open"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call("list_tasks") | {"id": "a"}],
            },
            {
                "role": "tool",
                "tool_call_id": "a",
                "content": '{"tasks": [{"task_id": 588, "title": "return library books", '
                '"priority": "low", "status": "pending", "due": null}]}',
            },
            {"role": "assistant", "content": "588 return library books"},
            {"role": "user", "content": "push that to Friday"},
        ],
    ),
    case([], id="refusal-1", category="refusal", user="what is the weather", never=["created"]),
    case([], id="answer-1", category="answer", user="add stamps", say=["318"]),
    case([], id="chat-1", category="chat", user="hi there", tools=[]),
]


def test_report_of_a_perfect_model():
    report = evaluate(CASES, ask=oracle(CASES))
    assert (report.overall.correct, report.overall.n) == (6, 6)
    assert report.json_validity == report.schema_validity == ev.Rate(3, 3)
    assert report.failures == []
    assert "| **all** | 6 | 6 | 100.0 % | 61.0-100.0 % |" in report.table()
    assert json.loads(report.to_json())["categories"]["create"]["correct"] == 1


def test_report_of_a_broken_model():
    bad = {"function": {"name": "create_task", "arguments": '{"title": '}}
    report = evaluate(CASES, ask=lambda messages, tools: calls(bad), workers=3)
    assert report.overall.correct == 0
    assert report.json_validity == ev.Rate(0, 6)
    assert len(report.failures) == 6
    assert [r.case.id for r in report.results] == [c.id for c in CASES]
    table = report.table(failures=2)
    assert "create-1" in table
    assert "not a JSON object" in table


def test_schema_validity_is_not_rightness():
    answers = iter([call("create_task", title="x", priority="now"), call("create_task", title="y"),
                    call("complete_task", task_id="3"), call("order_pizza")])  # fmt: skip
    report = evaluate([case([CREATE], id=str(i)) for i in range(4)],
                      ask=lambda m, t: calls(next(answers)))  # fmt: skip
    assert report.overall == ev.Rate(0, 4)
    assert report.json_validity == ev.Rate(4, 4)
    assert report.schema_validity == ev.Rate(1, 4)


def test_raw_call_counts_as_invalid_json():
    report = evaluate(CASES[:1], ask=lambda m, t: say('<tool_call>{"name": "create_task"'))
    assert report.json_validity == ev.Rate(0, 1)


# --- variants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ev.VARIANTS))
def test_a_perfect_model_is_perfect_on_every_variant(name):
    change = ev.VARIANTS[name]
    changed = [p for c in CASES if (p := change(c, tool_schemas(c.tools) if c.tools else []))]
    assert changed
    report = evaluate(CASES, ask=oracle([c for c, _ in changed]), variant=name)
    assert report.overall.correct == report.overall.n == len(changed)
    assert report.json_validity.rate == 1
    # Leaving an optional argument out is right, though a strict schema forbids it.
    assert report.schema_validity.rate == 1 or name == "strict"
    assert len(report.skipped) == len(CASES) - len(changed)
    assert report.variant == name


@pytest.mark.parametrize("name", ["due_date", "deadline", "name", "string_ids"])
def test_a_model_that_ignores_the_schema_fails(name):
    wanted = {"name": CASES[0], "string_ids": CASES[1]}.get(name, CASES[0])
    changed = ev.VARIANTS[name](wanted, tool_schemas())[0]
    old = oracle([wanted])([dict(m) for m in wanted.messages], [])
    assert score(wanted, old).ok
    assert not score(changed, old).ok


def test_string_ids_change_what_is_said_and_returned():
    changed, tools = ev.string_ids(CASES[2], tool_schemas())
    text = json.dumps(changed.messages)
    assert "TASK-0588" in text
    assert 'task_id\\": 588' not in text
    assert tools[1]["function"]["parameters"]["properties"]["task_id"]["type"] == "string"
    changed, _ = ev.string_ids(CASES[1], tool_schemas())
    assert changed.messages[0]["content"] == "done with TASK-0003 and TASK-0007"
    for said in ("task 14", "#14", "Task number 14", "no. 14", "task #14"):
        one = case(several(14), user=f"finish {said}, please")
        assert ev.string_ids(one, tool_schemas())[0].messages[0]["content"] == (
            "finish TASK-0014, please"
        )
    hidden = case(several(14), user="finish the fourteenth")
    assert ev.string_ids(hidden, tool_schemas()) is None
    title = case([{"name": "update_task", "args": {"task_id": [4], "title": ["4 eggs"]}}])
    assert ev.string_ids(title, tool_schemas()) is None


def test_variants_leave_the_original_alone():
    before = json.dumps([c.to_dict() for c in CASES]), json.dumps(tool_schemas())
    for change in ev.VARIANTS.values():
        for c in CASES:
            change(c, tool_schemas(c.tools))
    assert before == (json.dumps([c.to_dict() for c in CASES]), json.dumps(tool_schemas()))


def test_strict_variant_is_the_strict_schema():
    _, tools = ev.strict(CASES[0], tool_schemas())
    assert tools == tool_schemas(strict=True)


def test_an_unknown_variant_is_named():
    with pytest.raises(CourseError, match="no schema variant 'plural'"):
        evaluate(CASES, ask=oracle(CASES), variant="plural")


# --- noise -------------------------------------------------------------------------------------


def said(noisy: Case) -> str:
    return next(m["content"] for m in reversed(noisy.messages) if m["role"] == "user")


def many(kind: str, one: Case, n: int = 60) -> list[str]:
    """What a kind of noise makes of a request, under n seeds."""
    return [said(ev.light_noise(seed, [kind])(one)) for seed in range(n)]


def test_case_of_letters():
    made = set(many("case", case([CREATE], user="Call Mum by 5PM, it is 'Very URGENT'!")))
    assert made == {
        "call mum by 5PM, it is 'Very URGENT'!",
        "call Mum by 5PM, it is 'Very URGENT'!",
        "CALL MUM BY 5PM, IT IS 'Very URGENT'!",
    }


def test_a_typo_in_one_letter_of_thirty():
    filler = "kindly squeeze another reminder somewhere between whichever remaining entries exist"
    one = case([CREATE], user=f"{filler}: call mum tomorrow, urgent")
    made = many("typos", one, 400)
    assert all(text.endswith(": call mum tomorrow, urgent") for text in made)
    wrong = [sum(a != b for a, b in zip(text.split(), one.messages[0]["content"].split(),
                                        strict=True)) for text in made]  # fmt: skip
    letters = sum(map(str.isalpha, filler))
    # Two slips in one word count once here, hence a little fewer than letters / 30.
    assert 0.6 * letters / 30 < sum(wrong) / len(wrong) < 1.1 * letters / 30
    assert len(set(made)) > 200


def test_no_typo_in_what_is_expected():
    one = case(
        [{"name": "create_task", "args": {"title": ["Emma's check-in desk"], "due": ["next week"],
                                          "priority": ["high"]}}],
        user="high next week emma's check-in desk “quotidian apparatus” Q3-report x@y12.com",
    )  # fmt: skip
    assert set(many("typos", one, 200)) == {said(one)}


def test_punctuation_goes_where_it_means_nothing():
    assert many("no punctuation", case([CREATE], user="Call mum, at 5:30. OK?"), 1) == [
        "Call mum at 5:30 OK"
    ]
    listed = case(several(3, 7, 12), user="Done: 3, 7, 12.")
    assert many("no punctuation", listed, 1) == ["Done: 3, 7, 12"]
    assert many("no punctuation", case([CREATE], user='name it "Stop. Now!"'), 1) == [
        'name it "Stop. Now!"'
    ]


def test_greeting_and_thanks_stand_apart():
    for text in many("greeting", case([CREATE], user="call mum")):
        assert text.endswith(("! call mum", ", call mum", ". call mum"))
    for text in many("thanks", case([CREATE], user="call mum")):
        assert text.startswith("call mum, ")
    for text in many("thanks", case([CREATE], user="call mum.")):
        assert text.startswith("call mum. ")
    assert set(many("greeting", case([], user="Hello you"))) == {"Hello you"}
    assert set(many("thanks", case([], user="ok thanks"))) == {"ok thanks"}


@pytest.mark.parametrize("split", ["dev", "dev2", "dev3", "test", "nothing"])
def test_light_noise_leaves_every_right_answer_right(split):
    """On every case of the course: digits, quotes and expected words survive, most else varies."""
    whole = load_cases(split)
    changed = 0
    for seed in (1, 2):
        noise = ev.light_noise(seed)
        for c in whole:
            noisy = noise(c)
            changed += said(c) != said(noisy)
            # In a function, so that a failure names the case and does not print it.
            assert still_right(c, noisy), c.id
    assert changed > 0.9 * 2 * len(whole)


def still_right(c: Case, noisy: Case) -> bool:
    before, after = said(c), said(noisy)
    values = [v for e in c.expect for vs in e.args.values() for v in vs if isinstance(v, str)]
    was, now = fold(before), fold(after)
    others = [[m for m in x.messages if m["content"] != said(x)] for x in (c, noisy)]
    return (
        [x for x in before if x.isdigit()] == [x for x in after if x.isdigit()]
        and all(fold(value) in now for value in values if fold(value) in was)
        and noisy.expect == c.expect
        and [m["role"] for m in noisy.messages] == [m["role"] for m in c.messages]
        and others[0] == others[1]
    )


def test_noise_is_the_same_for_the_same_seed():
    one, other = ([said(ev.light_noise(s)(c)) for c in load_cases("dev")] for s in (5, 5))
    assert one == other
    assert one != [said(ev.light_noise(6)(c)) for c in load_cases("dev")]
    # and for a case by itself
    assert said(ev.light_noise(5)(load_cases("dev")[7])) == one[7]


@given(st.text(max_size=80), st.integers(0, 50))
def test_noise_takes_any_text(text, seed):
    noisy = ev.light_noise(seed)(case([CREATE], user=text))
    assert [x for x in text if x.isdigit()] == [x for x in said(noisy) if x.isdigit()]


def test_noise_is_recorded():
    report = evaluate(CASES, ask=lambda m, t: say("No."), noise=3)
    assert json.loads(report.to_json())["noise"] == 3


# --- nothing done that was not asked for ----------------------------------------------------------


DELETE = {"name": "delete_task", "args": {"task_id": [8]}}


@pytest.mark.parametrize(
    ("expect", "answer", "unasked", "wrong"),
    [
        (several(3), calls(call("complete_task", task_id=3)), 0, 0),
        (several(3), calls(call("delete_task", task_id=3)), 1, 0),
        (several(3), calls(call("complete_task", task_id=3), call("delete_task", task_id=3)), 1, 0),
        ([], say("Sorry, I cannot delete_task."), 0, 0),
        ([], say('<tool_call>{"name": "delete_task", "arguments": {"task_id": 3'), 1, 0),
        ([DELETE], calls(call("delete_task", task_id=8)), 0, 0),
        ([DELETE], calls(call("delete_task", task_id=9)), 0, 1),
        ([DELETE], calls(call("delete_task", task_id=8), call("delete_task", task_id=9)), 0, 1),
        ([DELETE], calls({"function": {"name": "delete_task", "arguments": "{"}}), 0, 1),
    ],
)
def test_deletes_that_nobody_asked_for(expect, answer, unasked, wrong):
    report = evaluate([case(expect)], ask=lambda m, t: answer)
    assert (report.unasked_deletes.correct, report.wrong_deletes.correct) == (unasked, wrong)
    asked = expect == [DELETE]
    assert (report.unasked_deletes.n, report.wrong_deletes.n) == (not asked, asked)
    name = "deletes of something else (of the others)" if asked else (
        "unasked deletes (of cases that ask for none)")  # fmt: skip
    assert f"| {name} | 1 | {unasked + wrong} |" in report.table()
    key = "wrong_deletes" if asked else "unasked_deletes"
    assert report.to_dict()[key]["count"] == unasked + wrong


def test_no_call_where_none_is_wanted():
    made = [say("Hello!"), calls(call("list_tasks")), say("<tool_call>{"), say("asdf qwx")]
    answers = iter([*made, ev.Answer(error="HTTP 500"), calls(call("create_task", title="x"))])
    asked = [*(case([], id=str(i)) for i in range(5)), case([CREATE], id="x")]
    report = evaluate(asked, ask=lambda m, t: next(answers))
    assert report.no_call == ev.Rate(2, 5)  # unreadable words are wrong, but they are no call
    assert report.overall == ev.Rate(1, 6)


# --- the frozen test set -------------------------------------------------------------------------


def test_what_fails_in_the_test_set_is_never_shown(tmp_path):
    """Not under its own name, not as a copy, not a part of it under other ids."""
    source = (ev.SETS / "test.jsonl").read_text(encoding="utf-8").splitlines()
    some = [json.loads(line) | {"id": f"mine-{i}"} for i, line in enumerate(source[::90])]
    copied = tmp_path / "my-cases.jsonl"
    copied.write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
    own = case([CREATE], id="own-1").to_dict()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(map(json.dumps, [*some, own])), encoding="utf-8")
    marker = "zq-this-is-what-it-said"
    for path, shown in ((copied, 0), (mixed, 1)):
        whole = load_cases(path)
        for options in ({}, {"noise": 1}, {"variant": "reordered"}):
            report = evaluate(whole, ask=lambda m, t: say(marker), **options)
            n = len(whole) - len(report.skipped)
            assert report.overall.n == n
            assert report.withheld == n - report.overall.correct - shown
            assert [r.case.id for r in report.failures] == ["own-1"] * shown
            text = report.table(failures=999) + report.to_json() + repr(report.results[:-1])
            assert text.count(marker) == 3 * shown - shown  # in the table and in the JSON
            assert "failures of the frozen test set: counted, not shown" in text
            for one in some:
                for message in one["messages"]:
                    assert not message["content"] or message["content"] not in text


def test_the_test_set_is_sealed_and_the_others_are_not():
    assert all(c.sealed for c in load_cases("test"))
    # "hello" may be in several sets: then it is sealed in all of them.
    for split in ("dev", "nothing"):
        assert sum(c.sealed for c in load_cases(split)) == 0, split


# --- over HTTP -----------------------------------------------------------------------------------


def test_over_http():
    from helpers.standins import HostedStandIn, error, text, tool_call

    script = [tool_call("complete_task", task_id=3), text("Sorry, I can only help with tasks."),
              error(500)]  # fmt: skip
    cases = [case(several(3), id="a"), case([], id="b"), case([], id="c")]
    with HostedStandIn(script=script, key=None) as server:
        report = evaluate(cases, url=server.url, model="gpt-test")
        assert [r.verdict.ok for r in report.results] == [True, True, False]
        assert "HTTP 500" in report.failures[0].to_dict()["reason"]
        body = server.requests[0].body
    assert body["temperature"] == 0
    assert body["cache_prompt"] is False
    assert body["model"] == "gpt-test"
    assert [t["function"]["name"] for t in body["tools"]] == ALL


def test_no_server():
    with pytest.raises(CourseError, match="does not answer"):
        evaluate([case()], url="http://127.0.0.1:9")
