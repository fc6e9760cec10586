"""Self-tests: the questions as data, and how they are shown with and without a screen."""

from __future__ import annotations

import json
import re

import nbformat
import pytest

from helpers import progress, selftest
from helpers.settings import NOTEBOOKS, CourseError

LESSONS = sorted(path.stem for path in selftest.QUESTIONS.glob("*.toml"))


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(file))
    monkeypatch.delenv("COURSE_RECORD", raising=False)
    return file


def headings(lesson: str) -> list[str]:
    (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"^#+ +(.*?)\s*$", text, re.M)


def test_every_finished_lesson_has_one():
    finished = {
        path.name[:3]
        for path in NOTEBOOKS.glob("L*.ipynb")
        if nbformat.read(path, 4).metadata.get("course", {}).get("status") != "planned"
    }
    assert finished <= set(LESSONS)


@pytest.mark.parametrize("lesson", LESSONS)
def test_questions(lesson):
    questions = selftest.load(lesson)
    assert len(questions) == 5
    for question in questions:
        assert question.ask.rstrip().endswith("?"), question.ask
        assert 3 <= len(question.choices) <= len(selftest.LETTERS)
        assert [choice.right for choice in question.choices].count(True) == 1, question.ask
        texts = [choice.text for choice in question.choices]
        assert len(set(texts)) == len(texts)
        for choice in question.choices:
            assert len(choice.why.split()) >= 6, f"too short a reason: {choice.why}"
            assert choice.why.endswith((".", "?")), choice.why
            for text in (choice.text, choice.why, question.ask):
                assert text.count("`") % 2 == 0, text
        assert question.look in headings(lesson), f"{lesson} has no section {question.look!r}"
    # Whoever always picks the same letter, or the longest text, learns that it does not help.
    letters = [question.right for question in questions]
    assert max(map(letters.count, letters)) <= 3
    longest = sum(max(question.choices, key=lambda c: len(c.text)).right for question in questions)
    assert longest <= 4


def test_a_lesson_without_one_is_named():
    with pytest.raises(CourseError, match="L99 has no self-test"):
        selftest.load("L99")


def test_markup():
    assert selftest.markup("`a < b` is *not* 2*3*4 & so") == (
        "<code>a &lt; b</code> is <em>not</em> 2*3*4 &amp; so"
    )
    assert selftest.markup("`**kwargs` takes `*args`") == (
        "<code>**kwargs</code> takes <code>*args</code>"
    )


@pytest.mark.parametrize("lesson", LESSONS)
def test_without_a_screen(lesson):
    questions = selftest.load(lesson)
    text, page = selftest.as_text(questions), selftest.as_html(questions)
    assert max(map(len, text.splitlines())) <= 90
    asked, answers = text.split("\nAnswers\n")
    for n, question in enumerate(questions, 1):
        assert f"{n}. " in asked
        assert f"{n}{question.right} ✓" in answers
        for _, choice in question.lettered():
            flat = " ".join(answers.split())
            assert re.sub(selftest.EMPHASIS, r"\1", choice.why) in flat
            assert selftest.markup(choice.why) in page
    # On a page the answers are folded away, the questions are not.
    folded = re.findall(r"<details>.*?</details>", page, re.S)
    assert len(folded) == 5
    assert all("✓" in part and "<summary>" in part for part in folded)
    assert "✓" not in re.sub(r"<details>.*?</details>", "", page, flags=re.S)


def test_in_a_living_notebook(kept):
    questions = selftest.load("L01")
    test = selftest.SelfTest("L01", questions)
    assert [len(b.options) for b in test.choices] == [len(q.choices) for q in questions]
    assert all(buttons.value is None for buttons in test.choices)

    wrong = "A" if questions[0].right != "A" else "B"
    test.choices[0].value = wrong
    assert "✗" in test.reasons[0].value
    assert questions[0].look in test.reasons[0].value
    test.choices[0].value = questions[0].right  # a second thought is explained, not counted
    assert "✓" in test.reasons[0].value
    assert not kept.exists()
    for question, buttons in list(zip(questions, test.choices, strict=True))[1:]:
        buttons.value = question.right
    assert "4 of 5" in test.result.value
    assert json.loads(kept.read_text())["L01"]["self-test"]["right"] == 4
    assert "✓ self-test (4 of 5 right)" in progress.line("L01", ["loop"])


@pytest.mark.parametrize("recording", [False, True])
def test_what_is_displayed(monkeypatch, recording):
    """Where outputs are made for a repository, there are no buttons that would be dead there."""
    shown = []
    monkeypatch.setattr("helpers.lesson._show", lambda data, metadata=None: shown.append(data))
    if recording:
        monkeypatch.setenv("COURSE_RECORD", "somewhere")
    selftest.show("L02")
    kinds = {"text/plain", "text/html"}
    assert set(shown[0]) - kinds == (
        set() if recording else {"application/vnd.jupyter.widget-view+json"}
    )
    assert kinds <= set(shown[0])
