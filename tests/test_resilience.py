"""Falling back, traces, rules, the outbox, and the assistant that puts them together."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager

import openai
import pytest

from helpers import proxy, resilience
from helpers.checks.l03 import completion
from helpers.checks.l06 import Clock, problems
from helpers.clients import http_options
from helpers.resilience import (
    REASONS,
    Assistant,
    BadAnswer,
    Outbox,
    Spare,
    Trace,
    calls_in,
    error_name,
    meaning,
    model_ask,
    must_fall_back,
    plain_rule,
    problem_in,
    reply_text,
    spare_model,
    stream_text,
)
from helpers.settings import Settings
from helpers.standins import HostedStandIn, error, garbage, slow, text, tool_call
from helpers.tasks import TaskStore, tool_schemas

TOOLS = tool_schemas()
FINISH = ("complete_task", {"task_id": 14})
GOOD = completion(None, [FINISH], "tool_calls")


# --- which errors, and which answers ---------------------------------------------------------


@pytest.mark.parametrize("what", problems())
def test_what_falls_back(what):
    problem, wanted = problems()[what]
    assert must_fall_back(problem) is wanted


@pytest.mark.parametrize(
    ("code", "wanted"), [(402, False), (408, True), (409, False), (422, False), (599, True)]
)
def test_statuses(code, wanted):
    with HostedStandIn([error(code)], key=None) as server, client(server.url) as sdk:
        with pytest.raises(openai.APIStatusError) as caught:
            model_ask(sdk, "m")("Hi", TOOLS, 10)
    assert must_fall_back(caught.value) is wanted


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (None, "not the answer of a model"),
        ("<html></html>", "not the answer of a model"),
        (completion(""), "is empty"),
        (completion(" \n"), "is empty"),
        (completion(None), "is empty"),
        (completion("Task 14 is", finish="length"), "cut off"),
        (completion(None, [FINISH], "length"), "cut off"),
        (completion(None, [("finish", {})], "tool_calls"), "no tool finish"),
        (completion(None, [("complete_task", {"task_id": "x"})], "tool_calls"), "integer"),
        (completion(None, [("complete_task", {})], "tool_calls"), "task_id"),
        (completion(None, [FINISH, ("delete_task", {"task_id": []})], "tool_calls"), "integer"),
    ],
)
def test_an_answer_of_no_use(reply, said):
    assert said in problem_in(reply, TOOLS)


@pytest.mark.parametrize("reply", [GOOD, completion("Hello."), completion("Yes.", [FINISH])])
def test_an_answer_of_use(reply):
    assert problem_in(reply, TOOLS) == ""


def call(name, **arguments):
    return completion(None, [(name, arguments)], "tool_calls")


@pytest.mark.parametrize(
    ("prompt", "reply", "said"),
    [
        ("Task 14 is done", call("complete_task", task_id=14), ""),
        ("Task 14 is done", call("complete_task", task_id=15), "15"),
        ("Task 14 is done", call("delete_task", task_id=14), "delet"),
        ("Delete task 14", call("delete_task", task_id=14), ""),
        ("Add a task to call mum", call("create_task", title="call mum"), ""),
        ("Add a task to call mum", call("create_task", title="buy milk"), "Nobody said 'buy milk'"),
        ("Add a task to call mum", call("create_task", title="mum mum mum mum"), "Nobody said"),
        ("Add: Call MUM!", call("create_task", title="call mum"), ""),
        ("What is pending?", call("list_tasks", status="completed"), ""),  # nobody can know
    ],
)
def test_meaning(prompt, reply, said):
    problem = problem_in(reply, TOOLS, meaning(prompt))
    assert (said in problem) if said else problem == ""


# --- a model as a function -------------------------------------------------------------------


def client(url, **more):
    import httpx

    options = {"base_url": url, "api_key": "k", "max_retries": 0}
    return openai.OpenAI(**options | more, http_client=httpx.Client(**http_options(30, True)))


def test_model_ask_says_who_answered():
    with HostedStandIn([tool_call("complete_task", task_id=14)], key=None) as server:
        with client(server.url) as sdk:
            reply = model_ask(sdk, "big", logprobs=True)("Finish task 14", TOOLS, 10)
    assert reply.answered_by == "big"
    assert calls_in(reply) == [FINISH]
    sent = server.requests[0].body
    assert sent["messages"] == [{"role": "user", "content": "Finish task 14"}]
    assert (sent["tools"], sent["temperature"], sent["logprobs"]) == (TOOLS, 0, True)


def test_the_header_of_a_proxy_names_the_deployment():
    class Named(HostedStandIn):
        def _answer(self, reply, request):
            reply.json(completion("Hi.").model_dump(), headers={"x-litellm-model-id": "spare"})

    with Named(key=None) as server, client(server.url) as sdk:
        assert model_ask(sdk, "big")("Hi", TOOLS, 10).answered_by == "spare"


@pytest.mark.parametrize(
    ("codes", "reason", "raised"),
    [
        ([], "", None),
        (["500"], "InternalServerError", None),
        (["408", "503", "429"], "APITimeoutError, InternalServerError, RateLimitError", None),
        ([None], "all_deployments_in_cooldown", None),
        (["400"], "", openai.BadRequestError),
        (["500", "401"], "", openai.AuthenticationError),
        (["418"], "", openai.APIStatusError),
    ],
)
def test_what_a_proxy_fell_back_from_is_told_and_what_it_must_not_hide_is_raised(
    codes, reason, raised
):
    told = json.dumps([
        {"message": "m", "type": "all_deployments_in_cooldown", "param": None, "code": code}
        for code in codes
    ])  # fmt: skip

    class FellBack(HostedStandIn):
        def _answer(self, reply, request):
            headers = {"x-litellm-model-id": "spare", "x-litellm-fallback-errors": told,
                       "x-litellm-attempted-fallbacks": str(len(codes)),
                       "x-litellm-attempted-retries": "2"}  # fmt: skip
            reply.json(completion("Hi.").model_dump(), headers=headers)

    with FellBack(key=None) as server, client(server.url) as sdk:
        ask = model_ask(sdk, "big", extra_body=REASONS)
        if raised:
            trace = Trace("Hi")
            with pytest.raises(raised), trace.attempt("proxy"):
                ask("Hi", TOOLS, 10)
            assert trace.attempts[0].fallbacks == len(codes)
            return
        trace = Trace("Hi")
        with trace.attempt("proxy") as attempt:
            attempt.answered(ask("Hi", TOOLS, 10))
    assert server.requests[0].body["include_fallback_errors"] is True
    because = f"{reason}, " if reason else ""
    assert trace.line() == f"proxy: {because}answered by spare"
    assert (trace.by, trace.attempts[0].why) == ("spare", reason)
    (noted,) = trace.to_dict()["attempts"]
    assert (noted["fallbacks"], noted["retries"]) == (len(codes), 2)


def test_a_fallback_without_a_reason_is_noted_all_the_same():
    attempt = resilience.Attempt("proxy", by="spare", fallbacks=1)
    assert Trace("Hi", attempts=[attempt]).line() == "proxy: a fallback, answered by spare"


def test_model_ask_keeps_to_the_seconds():
    with HostedStandIn([slow(20)], key=None) as server, client(server.url) as sdk:
        with pytest.raises(openai.APITimeoutError):
            model_ask(sdk, "big")("Hi", TOOLS, 0.2)


def test_a_web_page_comes_back_as_a_text():
    with HostedStandIn([garbage("<html>")], key=None) as server, client(server.url) as sdk:
        reply = model_ask(sdk, "big")("Hi", TOOLS, 10)
    assert problem_in(reply, TOOLS)
    assert reply_text(reply).startswith("a text: <html>")


def test_the_hosted_fallback_has_the_wire_shape_of_a_hosted_model():
    """What arrives is what OpenAI's API knows: no options of llama.cpp, the person's own key."""
    script = [tool_call("complete_task", task_id=14)]
    with HostedStandIn(script, key="sk-person") as server:
        hosted = Settings.from_env({"HOSTED": "1", "OPENAI_API_KEY": "sk-person"})
        spare = Spare(hosted, server.url)
        assert (spare.name, spare.server) == ("gpt-4o-mini", None)
        reply = spare.ask("Finish task 14", TOOLS, 10)
        spare.kill()  # a hosted model cannot be killed from here
        spare.restart()
        spare.stop()
    assert (reply.answered_by, calls_in(reply)) == ("gpt-4o-mini", [FINISH])
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-person"
    assert set(request.body) == {"model", "messages", "tools", "temperature", "seed"}
    assert request.body["model"] == "gpt-4o-mini"
    # The key goes to LiteLLM through the environment, never into a file.
    assert spare.where["api_key"] == "os.environ/COURSE_HOSTED_KEY"


@pytest.mark.slow
def test_litellm_falls_back_to_the_hosted_model_in_its_own_wire_shape(tmp_path):
    """Made for llama.cpp, which is away, the request leaves llama.cpp's options behind."""
    with HostedStandIn([tool_call("complete_task", task_id=14)], key="sk-person") as server:
        spare = Spare(Settings(hosted=True, hosted_key="sk-person"), server.url)
        gone = {"api_base": "http://127.0.0.1:9/v1", "api_key": "none"}
        config = {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": f"openai/{name}", **where},
                 "model_info": {"id": name}}
                for name, where in (("big", gone), (spare.name, spare.where))
            ],
            "router_settings": {"num_retries": 0, "fallbacks": [{"big": [spare.name]}]},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY",
                                 "expose_fallback_errors_to_caller": True,
                                 "custom_auth": "helpers.proxy.user_api_key_auth"},
        }  # fmt: skip
        path = proxy.write_config(config, tmp_path / "config.yaml")
        assert "sk-person" not in path.read_text(encoding="utf-8")
        litellm = proxy.start_proxy(path, settings=spare.settings, log=tmp_path / "proxy.log")
        with litellm, client(f"{litellm.url}/v1", api_key=litellm.key) as sdk:
            proxy.wait_ready(litellm, 300)
            reply = model_ask(sdk, "big", extra_body=REASONS)("Finish task 14", TOOLS, 60)
    assert (reply.answered_by, calls_in(reply)) == ("gpt-4o-mini", [FINISH])
    assert (reply.instead_of, reply.fallbacks) == ("InternalServerError", 1)
    (request,) = [r for r in server.requests if r.path.endswith("/chat/completions")]
    assert request.headers["authorization"] == "Bearer sk-person"
    assert set(request.body) == {"model", "messages", "tools", "temperature", "seed"}


def test_a_key_alone_hires_nobody(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-person")
    monkeypatch.delenv("HOSTED", raising=False)
    with closing_spare(spare_model()) as spare:
        assert spare.name == "task-api-model-mini"
        assert spare.server is not None
        assert "sk-person" not in json.dumps(spare.where)
        assert repr(spare) == "<Spare task-api-model-mini>"


def test_the_local_spare_can_be_killed_and_comes_back_at_its_address():
    with closing_spare(Spare(Settings())) as spare:
        assert calls_in(spare.ask("Finish task 14", TOOLS, 60))
        spare.kill()
        with pytest.raises(openai.APIConnectionError):
            spare.ask("Finish task 14", TOOLS, 60)
        spare.restart()
        assert calls_in(spare.ask("Finish task 14", TOOLS, 60))


@contextmanager
def closing_spare(spare):
    with spare.client:
        try:
            yield spare
        finally:
            spare.stop()


def test_as_text():
    assert error_name(problems()["no answer in time"][0]) == "openai.APITimeoutError"
    assert error_name(KeyError()) == "builtins.KeyError"
    assert reply_text(GOOD) == 'complete_task({"task_id": 14})'
    assert reply_text(completion("Hello.")) == "Hello."
    assert reply_text(completion(None)) == reply_text(None) == "(nothing)"
    with HostedStandIn([tool_call("list_tasks"), text("One two.")], key=None) as server:
        with client(server.url) as sdk:
            for wanted in ("list_tasks({})", "One two."):
                chunks = sdk.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
                )
                assert stream_text(chunks) == wanted
    assert stream_text([]) == "(nothing)"


# --- traces ----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    ticking = Clock()
    monkeypatch.setattr(resilience, "clock", ticking)
    return ticking


def test_a_trace_notes_who_when_and_why(clock):
    trace = Trace("Finish task 14", deadline=5)
    clock.now = 1
    with pytest.raises(TimeoutError), trace.attempt("big"):
        clock.now = 3
        raise TimeoutError("late")
    with pytest.raises(BadAnswer), trace.attempt("middle"):
        raise BadAnswer("The answer is empty.")
    assert trace.by == ""
    with trace.attempt("small") as attempt:
        clock.now = 3.5
        attempt.by = "tiny"
    assert trace.left() == 1.5
    clock.now = 9
    assert trace.left() == 0
    assert trace.by == "tiny"
    assert trace.line() == (
        "big: TimeoutError → middle: The answer is empty. → small: answered by tiny"
    )
    told = trace.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["request"], told["deadline"], told["by"]) == ("Finish task 14", 5, "tiny")
    assert [(a["model"], a["outcome"], a["refused"], a["began"], a["seconds"])
            for a in told["attempts"]] == [("big", "failed", False, 1, 2),
                                           ("middle", "failed", True, 3, 0),
                                           ("small", "answered", False, 3, 0.5)]  # fmt: skip
    timeless = trace.to_dict(times=False)
    assert all({"began", "seconds"} <= attempt.keys() for attempt in told["attempts"])
    assert not any({"began", "seconds"} & attempt.keys() for attempt in timeless["attempts"])


# --- rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("Finish task 14", FINISH),
        ("please complete task 14.", FINISH),
        ("Task  14 is done!", FINISH),
        ("Close task 14, please", FINISH),
        ("What's still pending?", ("list_tasks", {"status": "pending"})),
        ("Show me all my tasks", ("list_tasks", {})),
    ],
)
def test_rules(prompt, wanted):
    assert plain_rule(prompt) == wanted


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Delete task 14",
        "Add a task to finish task 14",
        "Finish task 14 and delete task 3",
        "Do not finish task 14",
        "Is it true that task 14 is done",
        "Finish task 14 tomorrow",
        "Finish task 12345678901",
        "Finish task 14\nDelete everything",
        "List my tasks and finish them all",
        "What is pending at the bank?",
        "Finish task 14; finish task 15",
    ],
)
def test_rules_leave_everything_else_alone(prompt):
    assert plain_rule(prompt) is None


# --- the outbox ------------------------------------------------------------------------------


def test_the_outbox_keeps_order_and_each_key_once(tmp_path):
    with Outbox(tmp_path / "new" / "outbox.db") as outbox:
        assert outbox.put("b", "second letter")
        assert outbox.put("a", "first letter")
        assert not outbox.put("b", "again")
        assert outbox.waiting() == [("b", "second letter"), ("a", "first letter")]


def test_what_was_put_is_there_after_a_crash(tmp_path):
    path = tmp_path / "outbox.db"
    Outbox(path).put("a", "call mum")  # never closed
    with Outbox(path) as outbox:
        assert outbox.waiting() == [("a", "call mum")]
        assert outbox.drain(lambda key, request: f"{key}: {request}") == 1
    with Outbox(path) as outbox:
        assert outbox.waiting() == []
        assert outbox.done() == {"a": "a: call mum"}
        assert not outbox.put("a", "call mum")  # it was done, and stays done
        assert outbox.waiting() == []
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_cannot_be_done_does_not_hold_up_the_rest():
    with Outbox() as outbox:
        for key in "abc":
            outbox.put(key, key)
        assert outbox.drain(lambda key, request: None if key == "a" else "done") == 2
        assert [key for key, _ in outbox.waiting()] == ["a"]


def test_a_crash_in_the_middle_of_a_drain():
    with Outbox() as outbox:
        for key in "abc":
            outbox.put(key, key)

        def work(key, request):
            if key == "b":
                raise KeyboardInterrupt
            return "done"

        with pytest.raises(KeyboardInterrupt):
            outbox.drain(work)
        assert [key for key, _ in outbox.waiting()] == ["b", "c"]


# --- the assistant ---------------------------------------------------------------------------


class Model:
    """Answers what it is told to, an exception by raising it, and notes its seconds."""

    def __init__(self, *answers, clock=None, takes=0.0):
        self.answers, self.clock, self.takes = list(answers), clock, takes
        self.allowed = []

    def __call__(self, prompt, tools, timeout):
        self.allowed.append(timeout)
        if self.clock:
            self.clock.now += min(self.takes, timeout)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


DOWN = problems()["no connection"][0]
WRONG_KEY = problems()["a wrong key"][0]


@pytest.fixture
def store():
    with TaskStore() as tasks:
        for number in range(1, 21):
            tasks.create(f"old task {number}")
        yield tasks


@pytest.fixture
def outbox():
    with Outbox() as box:
        yield box


def test_the_first_model_that_can_answers(store, outbox):
    big, small = Model(GOOD), Model(GOOD)
    outcome = Assistant({"big": big, "small": small}, store, outbox).handle("Task 14 is done", "r")
    assert (outcome.state, outcome.by, outcome.calls) == ("answered", "big", [FINISH])
    assert json.loads(outcome.results[0])["status"] == "completed"
    assert small.allowed == []


@pytest.mark.parametrize("bad", [DOWN, call("complete_task", task_id=15), completion(None), "<p>"])
def test_the_next_model_answers(store, outbox, bad):
    outcome = Assistant({"big": Model(bad), "small": Model(GOOD)}, store, outbox).handle(
        "Task 14 is done"
    )
    assert (outcome.by, outcome.calls) == ("small", [FINISH])
    assert [a.outcome for a in outcome.trace.attempts] == ["failed", "answered"]
    assert outcome.trace.attempts[0].refused == (bad is not DOWN)
    assert store.list("completed")["tasks"][0]["task_id"] == 14


def test_what_a_wrong_key_held_up_is_done_when_the_key_is_right(store, outbox):
    model = Model(DOWN, WRONG_KEY, GOOD)
    assistant = Assistant({"big": model}, store, outbox)
    assert assistant.handle("Please get 14 done", "r").state == "waiting"
    assert assistant.drain() == [] and [key for key, _ in outbox.waiting()] == ["r"]
    assert [outcome.state for outcome in assistant.drain()] == ["answered"]
    assert outbox.waiting() == [] and store.get(14)["status"] == "completed"


def test_what_must_be_told_is_told_and_nobody_else_is_asked(store, outbox):
    small = Model(GOOD)
    outcome = Assistant({"big": Model(WRONG_KEY), "small": small}, store, outbox).handle(
        "Task 14 is done"
    )
    assert outcome.state == "told"
    assert "AuthenticationError" in outcome.text
    assert small.allowed == []
    assert outbox.waiting() == []
    assert [a.outcome for a in outcome.trace.attempts] == ["failed", "told"]


def test_patience_and_deadline(store, outbox, clock):
    models = [Model(DOWN, clock=clock, takes=60) for _ in range(3)]
    assistant = Assistant(
        dict(zip("abc", models, strict=True)), store, outbox, patience=2, deadline=3
    )
    outcome = assistant.handle("Add a task to call mum", "r")
    assert [model.allowed for model in models] == [[2], [1], []]
    assert clock.now == 3
    assert outcome.state == "waiting"


def test_without_a_model_rules_serve_what_is_safe(store, outbox):
    assistant = Assistant({"big": Model(DOWN)}, store, outbox)
    done = assistant.handle("Task 14 is done", "r1")
    assert (done.state, done.by, done.calls) == ("answered", "rules", [FINISH])
    kept = assistant.handle("Delete task 7", "r2")
    assert (kept.state, kept.calls) == ("waiting", [])
    assert "noted" in kept.text
    assert outbox.waiting() == [("r2", "Delete task 7")]
    assert len(store.list()["tasks"]) == 20


def test_without_an_outbox_the_person_is_told(store):
    outcome = Assistant({"big": Model(DOWN)}, store).handle("Delete task 7")
    assert outcome.state == "told"
    assert "later" in outcome.text


def test_a_request_is_done_once_whoever_answers_the_retry(store, outbox):
    mum, other = call("create_task", title="call mum"), call("create_task", title="Call mum")
    assistant = Assistant({"big": Model(mum, DOWN), "small": Model(other)}, store, outbox)
    first = assistant.handle("Add a task to call mum", "r")
    again = assistant.handle("Add a task to call mum", "r")
    assert (first.by, again.by) == ("big", "small")
    assert first.results == again.results
    assert len(store.list()["tasks"]) == 21
    assistant.handle("Add a task to call mum", "another request")
    assert len(store.list()["tasks"]) == 22


def test_two_calls_of_one_answer_are_two(store, outbox):
    two = completion(
        None, [("create_task", {"title": "call mum"}), ("create_task", {"title": "call dad"})]
    )
    Assistant({"big": Model(two)}, store, outbox).handle("Add call mum and call dad", "r")
    assert len(store.list()["tasks"]) == 22


def test_what_waits_is_done_when_a_model_is_back(store, outbox):
    mum = call("create_task", title="call mum")
    assistant = Assistant({"big": Model(DOWN, DOWN, mum)}, store, outbox)
    assistant.handle("Add a task to call mum", "r")
    assert assistant.drain() == []
    assert outbox.waiting() == [("r", "Add a task to call mum")]
    (outcome,) = assistant.drain()
    assert (outcome.state, outcome.by) == ("answered", "big")
    assert assistant.drain() == []
    assert len(store.list()["tasks"]) == 21


def test_a_crash_between_work_and_note_does_nothing_twice(store, outbox):
    mum = call("create_task", title="call mum")
    assistant = Assistant({"big": Model(DOWN, mum)}, store, outbox)
    assistant.handle("Add a task to call mum", "r")
    assistant._by_model("Add a task to call mum", "r")  # done, and then the process ends
    assert len(outbox.waiting()) == 1
    assert len(assistant.drain()) == 1
    assert len(store.list()["tasks"]) == 21


def test_what_no_model_understands_does_not_wait_for_ever(store, outbox):
    nonsense = call("create_task", title="buy milk")
    assistant = Assistant({"big": Model(DOWN, nonsense), "small": Model(nonsense)}, store, outbox)
    assert assistant.handle("Add a task to call mum", "r").state == "waiting"
    (outcome,) = assistant.drain()
    assert outcome.state == "told"
    assert "differently" in outcome.text
    assert outbox.waiting() == []
    assert len(store.list()["tasks"]) == 20


def test_while_a_model_is_away_nobody_is_asked_back(store, outbox):
    nonsense = call("create_task", title="buy milk")
    assistant = Assistant({"big": Model(DOWN), "small": Model(nonsense)}, store, outbox)
    assistant.handle("Add a task to call mum", "r")
    assert assistant.drain() == []
    assert len(outbox.waiting()) == 1
