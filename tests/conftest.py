"""What every test run shares: one pair of services, and pieces that may be missing.

A test that needs a piece of the machine asks for the fixture ``require`` and calls
``require("chromium")``, or carries ``@pytest.mark.needs("node")``. Without the piece it is
skipped with a reason; ``python3 -m helpers test --require chromium`` makes that a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from helpers import bootstrap, doctor

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
# Tests work on copies of the skill, never on the learner's (helpers.skill.rehearsing).
os.environ.pop("COURSE_SKILL", None)

_holds = pytest.StashKey[bool]()


# A file is one worker's. Those that take longest come first, so that no worker is left alone with
# one of them at the end. test_instructor.py is not among them: it limits time and memory of what
# it runs, and wants light tests beside it.
LONGEST = (
    "test_browser.py", "test_skill.py", "L07_capstone_task_api_agent.ipynb", "test_backend.py",
    "L06_errors_and_fallbacks.ipynb", "test_ladder.py", "test_storm.py", "L04_tool_calling.ipynb",
    "test_integrations.py", "test_services.py", "test_instructor_batch.py", "test_mcp_tools.py",
    "test_bench.py", "test_skill_blocks.py", "test_mcp_server.py", "test_offline.py",
    "L05_mcp_server.ipynb", "L03_openai_sdk_and_agents.ipynb",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the files that take longest to the front; within a file nothing moves."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_configure(config: pytest.Config) -> None:
    """Start the shared services early, so that their slow imports overlap other tests."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    paths = [Path(arg.split("::")[0]) for arg in config.args]
    if not any(path.is_dir() or path.suffix == ".ipynb" for path in paths):
        return  # a single test module starts them if it wants them
    from helpers import services

    services.ensure(wait=())
    config.stash[_holds] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the test of the lessons' minutes noted, also when a worker ran it."""
    reports = [r for key in ("passed", "failed") for r in terminalreporter.getreports(key)]
    for table in [said for r in reports for key, said in r.user_properties if key == "minutes"]:
        terminalreporter.section("minutes of the core paths")
        terminalreporter.write_line(table)


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_holds, False):
        from helpers import services

        services.release()


# --- pieces of the machine that may be missing --------------------------------------------


@cache
def piece(name: str) -> str | list[str] | None:
    """A piece of the machine, or None.

    Returns:
        For ``chromium``, ``node``, ``npm`` and ``ollama`` the program's path; for ``netns``
        the words to put before a command that shall see loopback only; for ``network`` the
        word ``"reachable"``.
    """
    if name == "chromium":
        return doctor.find_chromium()
    if name == "netns":
        return doctor.namespace_command()
    if name == "network":
        # Mirrors and proxies decide what can be reached, so the installer itself is asked.
        call = [sys.executable, "-m", "uv", "pip", "compile", "--no-cache", "--no-deps", "-q", "-"]
        asked = subprocess.run(call, input="zipp", capture_output=True, text=True, timeout=60)
        return "reachable" if asked.returncode == 0 else None
    if name == "instructor":
        return "installed" if bootstrap.instructor_ready() else None
    return shutil.which(name)


WITHOUT = {
    "chromium": "no Chromium, Chrome or Edge found (CHROMIUM can name one)",
    "netns": "no network namespaces here (Linux with iproute2, as root or unprivileged)",
    "instructor": "the extra instructor is not installed (test --require instructor brings it)",
    "network": "the package index cannot be reached, so nothing can be installed",
}


def needed(name: str) -> str | list[str]:
    """The piece; skips the running test without it, or fails it under ``--require``."""
    found = piece(name)
    if found is None:
        reason = WITHOUT.get(name, f"no {name} on the PATH")
        if name in os.environ.get("COURSE_REQUIRE", "").split(","):
            pytest.fail(f"required, but {reason}", pytrace=False)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def require() -> Callable[[str], str | list[str]]:
    """``require("chromium")``: the piece, or a skip (a failure under ``--require``)."""
    return needed


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            needed(name)


@pytest.fixture
def checks_of(monkeypatch, tmp_path, capsys) -> Callable[[str], Callable[[str, object], str]]:
    """``checks_of("L01")(name, answer)``: what that lesson's check prints about an answer."""
    from helpers.lesson import Lesson

    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))

    def of(lesson: str) -> Callable[[str, object], str]:
        def check(name: str, answer: object) -> str:
            capsys.readouterr()
            Lesson(lesson).check(name, answer)
            return capsys.readouterr().out

        return check

    return of
