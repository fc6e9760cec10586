"""The rules of notebooks: each seen broken once, and kept by every notebook of the course."""

from __future__ import annotations

import copy
import json
import math

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import notebooks as nbs
from helpers.settings import NOTEBOOKS, CourseError
from helpers.standins import AGENT, HostedStandIn, error, garbage

TOP = """# L99 A lesson

You will see that rules can be kept.

**Time:** 40 minutes. **What you need:** L98.

## Objectives

- name a rule
- break a rule
- mend a rule
"""
END = """## Takeaways

- Rules help.

## What the skill gained

## Prompts to try with your AI

## Next: L100
"""
RULES = sorted(NOTEBOOKS.glob("*.ipynb"))


def exercise(n: int) -> list:
    return [
        new_code_cell(f"def f{n}(x): ...", metadata={"tags": ["exercise"]}),
        new_code_cell(f'lesson.check("f{n}", f{n})', metadata={"tags": ["check"]}),
        new_markdown_cell("<details><summary>Hint</summary>Return x.</details>"),
        new_code_cell(
            f"def f{n}_solution(x):\n    return x\nuse{n} = f{n}_solution",
            metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}},
        ),
    ]


def good():
    cells = [
        new_markdown_cell(TOP),
        new_code_cell('MODEL = "task-api-model"', metadata={"tags": ["parameters"]}),
        new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"})]),
        *(cell for n in range(3) for cell in exercise(n)),
        new_markdown_cell("![A box and an arrow](box.svg)"),
        new_markdown_cell(END),
    ]
    notebook = new_notebook(cells=cells)
    finish(notebook)
    return notebook


def finish(notebook) -> None:
    nbs.normalise(notebook)
    count = 0
    for n, cell in enumerate(notebook.cells):
        cell.id = f"c{n}"
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count


@pytest.fixture
def broken(tmp_path):
    """Problems of a good notebook after a change."""

    def problems(change, name="L99_rules.ipynb", renumber=True) -> list[str]:
        notebook = good()
        change(notebook)
        if renumber:
            finish(notebook)
        path = tmp_path / name
        path.write_text(json.dumps(notebook))  # nbformat would mend doubled ids
        return nbs.rules(path)

    return problems


def output(notebook, text, tags=(), **data):
    notebook.cells[2].outputs = [new_output("display_data", {"text/plain": text, **data})]
    notebook.cells[2].metadata["tags"] = list(tags)


def test_a_good_notebook_has_no_problems(broken):
    assert broken(lambda nb: None) == []


def replace_top(old, new):
    def change(nb):
        assert old in nb.cells[0].source
        nb.cells[0].source = nb.cells[0].source.replace(old, new)

    return change


def add(*cells):
    return lambda nb: nb.cells.extend(cells)


def tag(n, *tags):
    return lambda nb: nb.cells[n].metadata.update(tags=list(tags))


def source(n, text):
    return lambda nb: nb.cells[n].update(source=text)


CODE = [new_code_cell("x = 1") for _ in range(40)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace_top("# L99", "L99"), "title"),
        (replace_top("You will see that rules can be kept.\n", ""), "promise"),
        (replace_top("40 minutes", "a while"), "time"),
        (replace_top("**What you need:** L98.", ""), "what you need"),
        (replace_top("\n- mend a rule", ""), "3-5 objectives"),
        (replace_top("- mend a rule", "- a\n- b\n- c\n- d"), "3-5 objectives"),
        (replace_top("## Objectives", "## Contents"), "3-5 objectives"),
        (lambda nb: nb.cells.pop(), "takeaways"),
        (tag(1), "parameters"),
        (source(2, "\n".join(["x = 1"] * 26)), "26 lines"),
        (add(*[new_code_cell("\n".join(["x = 1"] * 11)) for _ in range(6)]), "three quarters"),
        (add(*copy.deepcopy(CODE)), "core path"),
        (add(new_code_cell("  ")), "empty code cell"),
        (tag(2, "raises-exception"), "papermill"),
        (tag(2, nbs.IGNORED), "must assert"),
        (
            lambda nb: [
                tag(2, nbs.IGNORED)(nb),
                source(3, "assert True")(nb),
                tag(4, nbs.IGNORED)(nb),
            ],
            "one in ten",
        ),
        (tag(3), "at least 3"),
        (tag(4), "tagged 'check'"),
        (source(4, "print('ok')"), "lesson.check"),
        (tag(6), "tagged 'solution'"),
        (source(5, "Hints"), "<details>"),
        (source(6, "def f0(x): return x"), "replaces the learner's 'f0'"),
        (source(6, "f0 = lambda x: x"), "replaces the learner's 'f0'"),
        (add(new_markdown_cell("![](a.png)")), "alternative text"),
        (add(new_markdown_cell("![x](https://example.org/a.png)")), "from the web"),
        (add(new_markdown_cell('<img src="a.png">')), "alternative text"),
        (add(new_markdown_cell('<img src="a.png" alt="">')), "alternative text"),
        (add(new_markdown_cell("<svg><path/></svg>")), "<title>"),
        (add(new_markdown_cell("```mermaid\nflowchart LR\nA-->B\n```")), "accDescr"),
        (lambda nb: output(nb, "x", **{"image/png": "AAAA"}), "alternative text"),
        (lambda nb: output(nb, "x", **{"text/html": "<img src='x'>"}), "alternative text"),
        (lambda nb: output(nb, "saved to /home/ada/course/x.yaml"), "absolute path"),
        (lambda nb: output(nb, r"saved to C:\Users\ada\x.yaml"), "absolute path"),
        (lambda nb: output(nb, "/tmp/x", tags=[nbs.IGNORED]), "absolute path"),
        (lambda nb: output(nb, "http://127.0.0.1:4000/v1"), "a port"),
        (lambda nb: output(nb, "at 12:34:56"), "clock time"),
        (lambda nb: output(nb, "2026-11-23T09:15:00"), "clock time"),
        (lambda nb: output(nb, "created=1763856000"), "time stamp"),
        (lambda nb: output(nb, "<object at 0x7f3a12345678>"), "memory address"),
        (lambda nb: output(nb, "chatcmpl-9aBcDeFgHiJk"), "random id"),
        (lambda nb: output(nb, "sk-abcdefghijklmnopqrstuv"), "a key"),
        (lambda nb: output(nb, "x", **{"text/html": "<b>127.0.0.1:80</b>"}), "a port"),
        (
            lambda nb: nb.cells[2].update(outputs=[new_output("error", ename="E", evalue="x")]),
            "an error",
        ),
        (
            lambda nb: nb.cells[2].update(
                outputs=[new_output("stream", name="stderr", text="careful")]
            ),
            "stderr",
        ),
    ],
)
def test_a_broken_rule_is_named(broken, change, said):
    problems = broken(change)
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda nb: nb.cells[2].update(execution_count=7), "execution counts"),
        (lambda nb: nb.cells[2].update(execution_count=None), "execution counts"),
        (lambda nb: nb.metadata.update(widgets={}), "metadata.widgets"),
        (
            lambda nb: nb.metadata.update(language_info={"name": "python", "version": "3"}),
            "minimal",
        ),
        (lambda nb: nb.cells[3].update(id="c2"), "Cells without an id"),
        (lambda nb: nb.cells[2].metadata.update(execution={"x": 1}), "recorded times"),
        (lambda nb: nb.cells[6].metadata.update(jupyter={}), "not collapsed"),
    ],
)
def test_what_normalising_mends_is_named(broken, change, said):
    problems = broken(change, renumber=False)
    assert any(said in problem for problem in problems), problems


def test_what_is_allowed(broken):
    for text in ("task 14 due 2026-11-24", "call_tool(14)", "POST /v1/chat/completions",
                 "work/proxy/config.yaml", "3 of 4", "95.0 %", "ratio 1:2"):  # fmt: skip
        assert broken(lambda nb, t=text: output(nb, t)) == [], text
    mermaid = "```mermaid\nflowchart LR\naccDescr: A calls B\nA-->B\n```"
    assert broken(add(new_markdown_cell(mermaid))) == []
    optional = [new_code_cell("x = 1", metadata={"tags": ["optional"]}) for _ in range(40)]
    assert broken(add(*optional)) == []


def test_timings_in_a_tagged_cell(broken):
    def change(nb):
        output(nb, "at 12:34:56", tags=[nbs.IGNORED])
        nb.cells.insert(3, new_code_cell("assert 1 < 2"))

    assert broken(change) == []


def test_the_first_lesson_needs_no_exercises(broken):
    def change(nb):
        del nb.cells[3:15]

    assert broken(change, name="L00_start.ipynb") == []
    assert any("at least 3" in p for p in broken(change))


def test_a_planned_lesson_needs_only_its_top(broken):
    def change(nb):
        nb.cells = nb.cells[:1]
        nb.metadata["course"] = {"status": "planned"}

    assert broken(change) == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_notebooks_of_the_course(path):
    assert nbs.rules(path) == []


# --- near ties -------------------------------------------------------------------------------


def token(*probabilities, chosen=0):
    tops = [{"token": "abcde"[i], "logprob": math.log(p)} for i, p in enumerate(probabilities)]
    return tops[chosen] | {"top_logprobs": tops}


def test_closest():
    assert nbs.closest(None) is None
    assert nbs.closest([token(1.0)]) is None
    gap, chosen, other = nbs.closest([token(0.9, 0.05), token(0.51, 0.48), token(0.99, 0.01)])
    assert gap == pytest.approx(0.03)
    assert (chosen, other) == ("a", "b")
    # What the grammar forbade stands above the token that was chosen, and does not compete.
    assert nbs.closest([token(0.6, 0.3, 0.1, chosen=1)])[0] == pytest.approx(0.5)
    assert nbs.closest([token(0.98, 0.011, 0.009, chosen=1)])[0] == pytest.approx(0.1)


def completion(*tokens):
    return garbage(json.dumps({"choices": [{"logprobs": {"content": list(tokens)}}]}))


def asked(text, count=3, **more):
    body = {"model": "task-api-model", "messages": [{"role": "user", "content": text}],
            "temperature": 0, "stream": True}  # fmt: skip
    return {"count": count, "body": body | more}


def test_what_a_stand_in_passes_on_is_not_recorded(tmp_path, monkeypatch):
    import httpx

    monkeypatch.setenv("COURSE_RECORD", str(tmp_path / "requests.jsonl"))
    request = {"method": "POST", "url": "http://127.0.0.1/v1/chat/completions", "json": {"n": 1}}
    nbs.record_hook(httpx.Request(**request, headers={"User-Agent": AGENT}))
    assert not (tmp_path / "requests.jsonl").exists()
    nbs.record_hook(httpx.Request(**request))
    assert nbs._records(tmp_path / "requests.jsonl") == [{"count": None, "body": {"n": 1}}]


def test_near_ties():
    records = [
        asked("sure"),
        asked("sure"),  # once is enough
        asked("tie"),
        asked("warm", temperature=0.7),
        asked("broken"),
        asked("other", model="gpt-4o-mini"),
        asked("through the proxy", model="openai/task-api-model"),
    ]
    sure, tie = completion(token(0.9, 0.1)), completion(token(0.5, 0.49))
    with HostedStandIn([sure, tie, sure, error(500), tie], key=None) as server:
        problems = nbs.near_ties(records, server.url)
        bodies = [request.body for request in server.requests]
    assert len(bodies) == 5
    assert len(problems) == 3
    assert "In [3]: 'a' and 'b' are nearly tied (difference 0.010)" in problems[0]
    assert '"tie"' in problems[0]
    assert "without temperature=0" in problems[1]
    assert bodies[0]["top_logprobs"] == 5
    assert bodies[0]["cache_prompt"] is False
    assert "stream" not in bodies[0]
    assert bodies[4]["model"] == "task-api-model"


def test_near_ties_of_each_model_by_itself():
    records = [asked("one"), asked("two", model="openai/task-api-model-mini")]
    tie = completion(token(0.5, 0.49))
    with HostedStandIn([tie, tie], key=None) as server:
        (main,) = nbs.near_ties(records, server.url)
        (mini,) = nbs.near_ties(records, server.url, "task-api-model-mini")
        bodies = [request.body for request in server.requests]
    assert '"one"' in main and '"two"' in mini
    assert [body["model"] for body in bodies] == ["task-api-model", "task-api-model-mini"]


# --- executing -------------------------------------------------------------------------------


def write(path, *sources):
    cells = [new_code_cell(s) if not s.startswith("#") else new_markdown_cell(s) for s in sources]
    notebook = json.loads(nbformat.writes(new_notebook(cells=cells)))
    for cell in notebook["cells"]:
        del cell["id"]
    path.write_text(json.dumps(notebook))


def test_execute(tmp_path):
    path = tmp_path / "L98_run.ipynb"
    with HostedStandIn([error(500), completion(token(0.5, 0.49))], key=None) as server:
        write(
            path,
            "# L98 Run",
            f"url = {server.url!r}",
            "import sys\nfor i in range(50):\n    print(i, flush=True)",
            "from IPython.display import display\nfrom ipywidgets import IntSlider\n"
            "display(IntSlider(3))",
            "import asyncio\nawait asyncio.sleep(0)\nimport helpers\n"
            "from helpers import notebooks\nnotebooks.record()",
            "import httpx\nbody = {'model': 'task-api-model', 'temperature': 0,\n"
            "        'messages': [{'role': 'user', 'content': 'done with 14'}]}\n"
            "async with httpx.AsyncClient() as client:\n"
            "    answer = await client.post(url + '/chat/completions', json=body)\n"
            "answer.status_code",
        )
        outcome = nbs.execute_one(path, backend=server.url)
    assert outcome.requests == 1
    assert any("nearly tied" in p and "In [5]" in p for p in outcome.problems), outcome.problems
    first = path.read_bytes()
    assert b"\r" not in first
    notebook = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert len(code[1].outputs) == 1  # one stream, however it was cut
    assert code[4].outputs[0].data["text/plain"] == "500"
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.language_info == {"name": "python"}
    assert [nbs._read(path).cells[n].id for n in range(6)] == [c.id for c in notebook.cells]


def test_ids_are_the_same_each_time(tmp_path):
    path = tmp_path / "L98_ids.ipynb"
    write(path, "# L98", "1", "1", "2")
    ids = [cell.id for cell in nbs._read(path).cells]
    assert ids == [cell.id for cell in nbs._read(path).cells]
    assert len(set(ids)) == 4


def test_a_failing_cell_is_named_and_nothing_is_written(tmp_path):
    path = tmp_path / "L98_fail.ipynb"
    write(path, "# L98", "x = 1", "print(x)\nx / 0")
    before = path.read_bytes()
    with pytest.raises(CourseError, match=r"(?s)Cell 2 of L98_fail fails.*ZeroDivision.*x / 0"):
        nbs.execute_one(path)
    assert path.read_bytes() == before


def test_unknown_lessons():
    with pytest.raises(CourseError, match="no notebook for L77"):
        nbs.find(["L77"])
