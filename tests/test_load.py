"""The load bench: users, repeats and limits, the audit of the store, and one short real run."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from helpers import bench, load
from helpers.load import Crowd, Plan, Sent, audit, broken, rows, slope
from helpers.settings import MINI

QUICK = Plan(users=3, seconds=0.5, every=0.1)


class Surface:
    """A stand-in for the agent's REST surface, with a fault that a test chooses."""

    def __init__(self, fault: str = ""):
        self.fault, self.tasks, self.known, self.asked = fault, {}, {}, Counter()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tasks":
            return httpx.Response(200, json={"tasks": list(self.tasks.values())})
        if request.method == "GET":
            return httpx.Response(200, json=self.known[request.url.path.rpartition("/")[2]])
        key = request.headers["Idempotency-Key"]
        self.asked[key] += 1
        first = self.asked[key] == 1
        if key.startswith("wake"):
            return httpx.Response(200, json={"state": "answered", "calls": [], "by": "m"})
        if self.fault == "limit" and first:
            return httpx.Response(429, headers={"Retry-After": "0"})
        if self.fault == "error" and first:
            return httpx.Response(503)
        if self.fault == "dead" and key == "u1-1":
            raise httpx.ConnectError("refused")
        if key not in self.known or self.fault == "forgets":
            self.known[key] = self.turn(json.loads(request.content)["message"])
        if self.fault == "waits" and first:
            return httpx.Response(202, json={"state": "waiting", "calls": [], "by": ""})
        return httpx.Response(200, json=self.known[key])

    def turn(self, text: str) -> dict:
        calls = []
        if text.startswith("add a task: "):
            task = {"task_id": len(self.tasks) + 1, "title": text, "status": "pending"}
            if self.fault != "loses" or task["task_id"] != 2:
                self.tasks[task["task_id"]] = task
            if self.fault == "doubles" and len(self.tasks) == 4:
                self.tasks[99] = task | {"task_id": 99}
            calls = [{"name": "create_task", "done": True, "result": dict(task)}]
        if text.startswith("complete task "):
            number = int(text.split()[-1])
            task = self.tasks.get(number, {"task_id": number})
            if self.fault != "sleeps":
                task["status"] = "completed"
            calls = [{"name": "complete_task", "done": True, "result": dict(task)}]
        return {"state": "answered", "calls": calls, "by": "m"}


def played(surface, plan=QUICK):
    """What ``measure`` finds, on a stand-in."""

    class Here(Crowd):
        now = 0.001  # time stands still: how many requests there are depends on nothing else

        def __init__(self, *args):
            super().__init__(*args)
            self.web = httpx.AsyncClient(
                base_url="http://agent", transport=httpx.MockTransport(surface)
            )

    class Stack:
        url, key = "http://agent", "key"
        agent = type("Process", (), {"pid": os.getpid()})

    async def no_sleep(seconds, real=asyncio.sleep):
        await real(0.001)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load.asyncio, "sleep", no_sleep)
        patch.setattr(load, "Crowd", Here)
        patch.setattr(load, "SLOPE", 9.0)  # this process's own memory is nobody's promise
        result = asyncio.run(load.measure(Stack(), plan))
        return result, broken(result)


def test_a_good_surface_keeps_every_promise():
    surface = Surface()
    result, problems = played(surface)
    assert problems == []
    assert result["requests"] == 15 <= QUICK.most
    assert result["created"] == len(surface.tasks) > 0 and result["completed"] > 0
    assert result["repeated"] == result["requests"] // load.REPEAT > 0
    assert result["statuses"] == {"200": result["requests"] + result["repeated"]}
    assert set(Counter(surface.asked.values())) == {1, 2}
    text = dict(rows(result))
    assert text["lost, doubled, undone"] == "0, 0, 0" and text["3 users, 0 s"] == "calm"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("error", "answers of 500 or above"),
        ("loses", "lost: 2"),
        ("doubles", "doubled: 99"),
        ("sleeps", "undone: "),
        ("forgets", "doubled: "),
        ("dead", "unanswered: u1-1"),
    ],
)
def test_every_broken_promise_is_found(fault, words, monkeypatch):
    monkeypatch.setattr(load, "REPEAT", 1)
    _, problems = played(Surface(fault))
    assert any(problem.startswith(words) or words in problem for problem in problems), problems


def test_those_told_to_come_back_come_back_and_are_counted_apart():
    result, problems = played(Surface("limit"))
    assert problems == []
    assert result["limited"] == result["requests"] == result["statuses"]["429"]


def test_what_waits_is_waited_for():
    result, problems = played(Surface("waits"))
    assert problems == []
    assert result["states"] == {"waiting": result["requests"]}
    assert result["created"] > 0


def test_the_load_is_bounded():
    plan = Plan(users=50, seconds=60, every=5)
    assert plan.most == 650
    assert plan.rate == 20 * 600  # a minute: far above the 600 that come
    assert Plan(limit=30).rate == 30


def test_memory_is_judged_by_its_slope():
    flat = [(i / 2, 100 + i % 2) for i in range(120)]
    assert abs(slope(flat, 60)["growth"]) < 0.01
    rising = [(10 + i / 2, 100 + i / 12) for i in range(121)]
    assert slope(rising, 60) == {"first_mb": 100.0, "last_mb": 110.0, "growth": 0.1}
    assert slope([(0, 1.0)], 60)["growth"] == 0
    good = {"server_errors": 0, "broken_connections": 0, "lost": [], "doubled": [], "undone": [],
            "unanswered": [], "changed": []}  # fmt: skip
    assert broken(good | {"memory": slope(flat, 60)}) == []
    assert broken(good | {"memory": slope(rising, 60)}) == ["memory grows by 10.0%"]
    assert broken(good | {"memory": slope(flat, 60), "broken_connections": 1})


def answer(*calls, state="answered"):
    return {
        "state": state,
        "calls": [
            {"name": name, "done": done, "result": {"task_id": task}} for name, done, task in calls
        ],
    }


def test_the_audit_knows_what_was_there_and_what_was_not_done():
    sent = [
        Sent("a", 0, answer=answer(("create_task", True, 2), ("create_task", False, 3))),
        Sent("b", 0, answer=answer(("complete_task", True, 1)), repeated=answer()),
        Sent("c", 0, answer=answer(state="waiting"), repeated=answer()),
        Sent("d", 0),
    ]
    tasks = [{"task_id": 1, "status": "pending"}, {"task_id": 2, "status": "pending"}]
    assert audit(sent, tasks, before={1}) == {
        "created": 1, "completed": 1, "lost": [], "doubled": [], "undone": [1],
        "unanswered": ["c", "d"], "repeated": 2, "changed": ["b"],
    }  # fmt: skip


def test_the_command(monkeypatch, tmp_path, capsys):
    plans = []

    def play(plan, proxy):
        plans.append((plan.users, plan.seconds, plan.kill, proxy))
        return played(Surface())[0] | {"killed": plan.kill}

    monkeypatch.setattr(load, "play", play)
    monkeypatch.setattr(load, "SLOPE", 9.0)
    out = tmp_path / "deep" / "load.json"
    argv = ["--load", "--users", "2", "--seconds", "3", "--direct", "--out", str(out)]
    assert bench.main(argv) == 0
    assert plans == [(2, 3.0, False, False), (2, 3.0, True, False)]
    said = capsys.readouterr().out
    assert "calm" in said and "backend killed in the middle" in said and "BROKEN" not in said
    assert [run["killed"] for run in json.loads(out.read_text())["runs"]] == [False, True]
    monkeypatch.setattr(load, "SLOPE", -9.0)
    assert bench.main(argv) == 1
    assert "BROKEN" in capsys.readouterr().out


def service(folder, script, *said):
    """What becomes of requests in conversations of their own, and what waits after a drain."""
    from helpers.agent.models import Preferred, remote
    from helpers.agent.service import Config, Service
    from helpers.standins import HostedStandIn

    server = HostedStandIn(script=script, key=None)

    async def run():
        models = Preferred({"main": remote(server.url, "none", "main")}, 5)
        agent = Service(Config(dir=folder, key="k" * 16), models=models)
        turns = [await agent.turn(f"c{i}", text, f"k{i}") for i, text in enumerate(said)]
        first = [turn.state for turn in turns]
        await agent.drain()
        waiting = [key for key, _ in agent.outbox.waiting()]
        titles = [task["title"] for task in agent.store.list()["tasks"]]
        await agent.stop()
        return first, waiting, titles

    try:
        return asyncio.run(run())
    finally:
        server.stop()


def test_a_request_that_no_answer_can_be_used_for_does_not_wait_for_ever(tmp_path):
    """It would come again and again, each second, and hold up everybody behind it."""
    from helpers.standins import text

    printed = text('<tool_call> {"name": "create_task"')
    first, waiting, _ = service(tmp_path, [printed], "add a task to call mum")
    assert (first, waiting) == (["told"], [])


def test_what_waits_on_holds_up_no_other_conversation(tmp_path):
    from helpers.standins import error, tool_call

    script = [error(503), error(503), error(503), tool_call("create_task", title="buy milk")]
    said = "add a task to call mum", "add a task to buy milk"
    first, waiting, titles = service(tmp_path, script, *said)
    assert first == ["waiting", "waiting"]
    assert waiting == ["k0"] and titles == ["buy milk"]


def test_many_conversations_do_not_keep_many_files_open(tmp_path, monkeypatch):
    """Fifty users left 319 open files: where 256 are allowed, the next request fails."""
    from helpers.agent import service as module
    from helpers.agent.models import Preferred, remote
    from helpers.agent.service import Config, Service
    from helpers.standins import HostedStandIn, text

    assert module.CONVERSATIONS <= 16
    monkeypatch.setattr(module, "CONVERSATIONS", 3)
    server = HostedStandIn(script=lambda request: text("Hello!"), key=None)
    opened: list[int] = []

    async def run():
        models = Preferred({"main": remote(server.url, "none", "main")}, 30)
        agent = Service(Config(dir=tmp_path, key="k" * 16), models=models)
        # More threads than this are not used; each has the file open once.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        names = [f"c{i}" for i in range(3 * module.CONVERSATIONS)]
        for _ in range(2):  # a conversation that was closed goes on
            turns = await asyncio.gather(*(agent.turn(name, "hello") for name in names))
            assert {turn.state for turn in turns} == {"answered"}
        kept = dict(agent._agents)
        files = [file.path for file in psutil.Process().open_files()]
        opened.append(sum(path.endswith("conversations.sqlite") for path in files))
        async with agent.conversation("c0") as first:
            remembered = len(await first.session.get_items())
        # Two at once in one conversation, while others come and go.
        same = [agent.turn("c0", "hello") for _ in range(3)]
        await asyncio.gather(*same, *(agent.turn(name, "hello") for name in names[1:]))
        await agent.stop()
        return kept, remembered

    try:
        kept, remembered = asyncio.run(run())
    finally:
        server.stop()
    assert len(kept) == module.CONVERSATIONS
    assert remembered == 4  # two turns
    assert 1 <= opened[0] <= 2  # nine conversations


def test_a_short_run_on_the_real_agent():
    """Real processes, and the backend killed: what was told is what is there."""
    plan = Plan(users=3, seconds=4.0, every=1.0, kill=True)
    result = load.play(plan, MINI, proxy=False)
    assert [problem for problem in broken(result) if not problem.startswith("memory")] == []
    assert result["requests"] >= 6 and result["killed"]
