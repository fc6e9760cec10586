"""Nothing is fetched from or sent to the internet, seen from inside a network namespace.

The namespace has the loopback device only, so nothing can be fetched; and whatever tries to
go out finds no route, which the kernel counts: nothing even tries.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import settings

# Runs inside the namespace: services, each client, an agent, a whole lesson, an end.
INSIDE = """
import asyncio, json, socket, sys

def tried():
    '''Packets that found no route, and questions to a name server on this machine.'''
    rows = {}
    for line in open("/proc/net/snmp"):
        name, *values = line.split()
        rows.setdefault(name, []).append(values)
    ip, udp = (dict(zip(*rows[name])) for name in ("Ip:", "Udp:"))
    ip6 = dict(line.split() for line in open("/proc/net/snmp6")) if socket.has_ipv6 else {}
    return [int(ip["OutNoRoutes"]), int(ip6.get("Ip6OutNoRoutes", 0)), int(udp["OutDatagrams"])]

before = tried()
try:
    socket.socket().connect(("192.0.2.1", 80))
except OSError:
    pass
else:
    raise SystemExit("this namespace has a way out")
try:
    socket.create_connection(("example.org", 80))
except OSError:
    pass
start = tried()
assert start[0] > before[0] and sum(start) > sum(before) + 1, "attempts are not counted here"

from helpers import clients, services
services.GRACE = 5.0
now = services.ensure(quiet=True)
assert now.backend.healthy and now.proxy.healthy
ask = dict(model="task-api-model", messages=[{"role": "user", "content": "hello"}], max_tokens=20)
for direct in (True, False):
    client = clients.openai_client(direct=direct)
    client.chat.completions.create(**ask, **clients.DETERMINISTIC)
    list(client.chat.completions.create(stream=True, **ask))

from agents import Agent, ModelSettings, Runner
agent = Agent("TaskAgent", model=clients.agents_model(),
              model_settings=ModelSettings(max_tokens=20))
asyncio.run(Runner.run(agent, "hello", max_turns=1))

import nbformat
from nbclient import NotebookClient
from helpers.settings import NOTEBOOKS
(path,) = NOTEBOOKS.glob("L03_*.ipynb")
lesson = nbformat.read(path, 4)
NotebookClient(lesson, timeout=300, kernel_name="python3",
               resources={"metadata": {"path": str(path.parent)}}).execute()
services.down()
assert not services.status().running
print("attempts to reach the outside:", [b - a for a, b in zip(start, tried())])
"""


@pytest.mark.slow
def test_services_clients_and_a_lesson_stay_on_this_machine(require, tmp_path: Path):
    env = {
        **settings.scrubbed(os.environ),
        "COURSE_WORK": str(tmp_path / "work"),
        "COURSE_PROGRESS": str(tmp_path / "progress.json"),
        "COURSE_SKILL": "rehearsal",
    }
    # A web proxy of the machine's owner is not to be asked either.
    for name in [name for name in env if name.upper().endswith("_PROXY")]:
        del env[name]
    done = subprocess.run(
        [*require("netns"), sys.executable, "-c", INSIDE],
        cwd=settings.ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    logs = [path.read_text() for path in (tmp_path / "work" / "logs").glob("*.log")]
    assert done.returncode == 0, done.stdout + done.stderr + "".join(logs)[-3000:]
    assert done.stdout.strip() == "attempts to reach the outside: [0, 0, 0]"
