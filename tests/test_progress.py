"""Progress: kept in a file, shown on top of a lesson and by a command, and reset."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from helpers import cli, progress
from helpers import lesson as ls
from helpers.lesson import Lesson
from helpers.settings import ROOT, WORK


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(file))
    return file


def command(capsys, monkeypatch, *args: str) -> str:
    monkeypatch.setattr("helpers.bootstrap.enter", lambda argv: None)
    capsys.readouterr()
    status = cli.main(["progress", *args])
    out = capsys.readouterr()
    return f"{status} {out.out}{out.err}"


def test_it_survives_a_restart(kept):
    assert progress.line("L01", ["loop", "cost"]) == (
        "Your progress, 0 of 2 exercises: ○ loop  ○ cost  ○ self-test"
    )
    assert progress.record("L01", "cost") == ""
    code = "from helpers import progress; print(progress.line('L01', ['loop', 'cost']))"
    other = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], capture_output=True, cwd=ROOT, encoding="utf-8"
    )
    assert other.stdout.strip() == "Your progress, 1 of 2 exercises: ○ loop  ✓ cost  ○ self-test"


def test_the_first_pass_and_the_best_self_test_count(kept):
    progress.record("L01", "loop")
    first = kept.read_text()
    progress.record("L01", "loop")
    assert kept.read_text() == first
    for right in (3, 5, 2):
        progress.record_self_test("L01", right, 5)
    assert json.loads(kept.read_text())["L01"]["self-test"]["right"] == 5


def test_tests_neither_see_nor_change_a_learners_progress(monkeypatch):
    """Outputs of notebooks are compared with those of somebody who has just begun."""
    monkeypatch.delenv("COURSE_PROGRESS")
    assert progress.path() is None
    assert progress.read() == {}
    assert progress.record("L01", "loop") == ""
    assert progress.read() == {}
    monkeypatch.delenv("PYTEST_VERSION")
    assert progress.path() == WORK / "progress.json"


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"L01": 3}', "\x00"])
def test_a_broken_file_is_an_empty_one(kept, broken):
    kept.write_text(broken)
    assert progress.marks("L01", ["loop"]) == ["○ loop", "○ self-test"]
    assert progress.record("L01", "loop") == ""
    assert progress.marks("L01", ["loop"])[0] == "✓ loop"


def test_the_command(kept, capsys, monkeypatch):
    progress.record("L01", "loop")
    progress.record_self_test("L02", 4, 5)
    said = command(capsys, monkeypatch)
    exercises = sum(len(Lesson(name).exercises) for name in progress.titles())
    assert said.startswith("0 L00 Build your agent-integration skill\n")
    assert "✓ loop  ○ cost" in said
    assert "✓ self-test (4 of 5 right)" in said
    assert f"1 of {exercises} exercises done" in said
    assert "L00" not in command(capsys, monkeypatch, "l01")
    assert "There is no lesson L77." in command(capsys, monkeypatch, "L77")


def test_reset(kept, capsys, monkeypatch):
    for lesson in ("L01", "L02", "L03"):
        progress.record(lesson, "x")
    assert command(capsys, monkeypatch, "--reset", "L02") == "0 Forgotten: L02.\n"
    assert sorted(progress.read()) == ["L01", "L03"]
    assert command(capsys, monkeypatch, "--reset") == "0 Forgotten: L01, L03.\n"
    assert command(capsys, monkeypatch, "--reset") == "0 There was nothing to forget.\n"
    assert progress.read() == {}


def test_a_reset_that_fails_says_so(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "file" / "progress.json"))
    assert "could not be reset" in command(capsys, monkeypatch, "--reset")


def test_the_top_of_a_lesson(capsys, monkeypatch):
    for name in ("COURSE_TODAY", "NO_PROXY", "no_proxy", "OPENAI_AGENTS_DISABLE_TRACING",
                 "OPENAI_AGENTS_DONT_LOG_TOOL_DATA", *ls.settings.OFFLINE):  # fmt: skip
        monkeypatch.setenv(name, "" if "PROXY" in name.upper() else "1")
    monkeypatch.setenv("COURSE_TODAY", "2026-11-23")
    progress.record("L03", "read-reply")
    ls.start("L03", services=())
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Your progress, 1 of 3 exercises: ✓ read-reply  ○ collect-calls  ○ make-client  ○ self-test"
    )
