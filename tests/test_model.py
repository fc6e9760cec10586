"""The model's files: what is frozen, what is shipped, and that every renderer writes one prompt."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import httpx
import pytest

from helpers import backend, evaluation
from helpers.tasks import TOOLS, tool_schemas

MODEL = Path(__file__).parents[1] / "model"
MAIN = MODEL / "task-api-model.gguf"
# How many cases of each behaviour at least and at most, and how many behaviours.
SETS = {"dev": (20, 20, 12), "test": (60, 60, 12), "nothing": (200, 200, 1), "dev2": (30, 70, 9),
        "dev3": (50, 70, 4)}  # fmt: skip

sys.path.insert(0, str(MODEL))
from render import render  # noqa: E402


def cases(split: str) -> list[evaluation.Case]:
    return evaluation.load_cases(MODEL / "evaluation" / f"{split}.jsonl")


@pytest.mark.parametrize("split", SETS)
def test_evaluation_sets_are_the_frozen_ones(split: str) -> None:
    data = (MODEL / "evaluation" / f"{split}.jsonl").read_bytes()
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(data).hexdigest() in card, "the card names the hash of each frozen set"
    counts = Counter(case.category for case in cases(split))
    fewest, most, behaviours = SETS[split]
    assert len(counts) == behaviours
    assert (min(counts.values()), max(counts.values())) == (fewest, most)


@pytest.mark.parametrize("split", ["dev2", "dev3"])
def test_whoever_looks_at_what_fails_sees_no_request_of_the_test_set(split: str) -> None:
    frozen = {evaluation.fold(r) for r in requests("test")}
    shared = [c.id for c in cases(split) if evaluation.fold(c.messages[-1]["content"]) in frozen]
    assert not shared  # ids, so that a failure shows no request of the test set


def test_the_set_that_asks_for_nothing_expects_no_call_and_repeats_no_other_set() -> None:
    known = {evaluation.fold(r) for split in ("dev", "test") for r in requests(split)}
    asked = [evaluation.fold(r) for r in requests("nothing")]
    assert len(set(asked)) == 200 and not known & set(asked)
    for case in cases("nothing"):
        assert not case.expect and list(case.tools) == list(TOOLS)
    assert sum(c.id.startswith("nothing-near-") for c in cases("nothing")) == 100


def requests(split: str) -> list[str]:
    return [m["content"] for c in cases(split) for m in c.messages if m["role"] == "user"]


def test_generator_never_yields_an_evaluation_request() -> None:
    pytest.importorskip("faker", reason="the training extra is not installed")
    pytest.importorskip("wonderwords", reason="the training extra is not installed")
    import data

    frozen = {data.fingerprint(r) for split in SETS for r in requests(split)}
    assert frozen <= data.blocked() and len(frozen) > 800
    stream = data.conversations(3)
    for _ in range(3000):
        messages, _tools = next(stream)
        for m in messages:
            assert m["role"] != "user" or data.fingerprint(m["content"]) not in frozen


def test_what_is_wanted_of_a_request_in_capitals_is_what_the_model_reads_of_it() -> None:
    pytest.importorskip("faker", reason="the training extra is not installed")
    pytest.importorskip("wonderwords", reason="the training extra is not installed")
    import data

    seen = 0
    for messages, _tools in islice(data.conversations(3), 6000):
        for said, answer in pairwise(messages):
            if said["role"] != "user" or not said["content"].isupper():
                continue
            if not answer.get("learn", True):  # a mistake that an error follows
                continue
            for call in answer.get("tool_calls") or []:
                made = json.loads(call["function"]["arguments"])
                if call["function"]["name"] == "create_task" and "title" in made:
                    assert made["title"] in render([said], None)
                    seen += 1
    assert seen > 5


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator with the words of the phrase files in place of Faker's and wonderwords'."""
    import data

    words = {kind: data.lines(name) for kind, name in data.PLAIN.items()}
    monkeypatch.setattr(data, "vocabulary", lambda: {**words, "verb": ("paint", "repair")})


def seen(count: int) -> set[str]:
    """What people say in so many conversations of the generator, folded and hashed."""
    import data

    talks = islice(data.conversations(3), count)
    said = {m["content"] for talk, _ in talks for m in talk if m["role"] == "user"}
    return {data.fingerprint(text) for text in said}


def test_generator_without_its_packages_keeps_evaluation_requests_out(monkeypatch) -> None:
    """Runs everywhere, unlike the test above; and shows that the filter is what keeps them out."""
    import data

    without_packages(monkeypatch)
    frozen = {data.fingerprint(r) for split in SETS for r in requests(split)}
    assert not seen(2000) & frozen
    monkeypatch.setattr(data, "blocked", frozenset)
    assert seen(2000) & frozen


def test_phrases_that_are_evaluation_requests_are_kept_out() -> None:
    """Some short requests stand in the phrase files as well ("list my tasks"): people who had not
    seen each other's lines wrote both. The filter has to know every one of them."""
    import data

    frozen = {data.fingerprint(r) for split in SETS for r in requests(split)}
    known, found, looked = data.blocked(), set(), 0
    for path in data.PHRASES.glob("*.txt"):
        for line in data.lines(path.stem):
            text = line.split(" | ")[-1].split(" => ")[0]
            bare = re.sub(r"\{\w+\}", "", text)
            named = re.sub(r"\{(\w+)\}", r"\1", text)
            same = {data.fingerprint(way) for way in (text, bare, named)} & frozen
            looked, found = looked + 1, found | same
    assert found <= known and looked > 10_000
    assert len(found) < 0.05 * len(frozen), "too many of the evaluation's requests are phrases"


def test_stories_are_told_of_the_task_that_they_are_about(monkeypatch) -> None:
    """A report that it is done completes it, one of another date moves it, a remark does nothing;
    of a task that is completed already there are remarks only."""
    import data

    without_packages(monkeypatch)
    r = random.Random(5)
    box = data.Toolbox(r, need=set(data.BASE), plain=True)
    while not box.offers("complete", "update"):
        box = data.Toolbox(r, plain=True)
    for told in data.stories().values():
        assert [len(told[kind]) for kind in "+>-"] == [3, 1, 2]
        assert told[">"][0].count("{date}") == 1
        assert not any("{" in text for kind in "+-" for text in told[kind])
    wanted: dict[str, int] = {"complete": 0, "update": 0, "": 0}
    for text in data.stories():
        world = data.World(box, tasks=[data.Known(7, "call the bank"), data.Known(31, text)])
        said, actions = data.story(r, world)
        tool = actions[0].tool if actions else ""
        wanted[tool] += 1
        assert [a.args["task_id"] for a in actions] == [31] * bool(tool)
        assert ("due" in actions[0].args) == (tool == "update") if actions else said
        world.tasks[1].status = "completed"
        assert all(not found[1] for _ in range(5) if (found := data.story(r, world)))
    assert min(wanted.values()) > 100 and len(data.stories()) > 500
    assert data.story(r, data.World(box, tasks=[data.Known(7, "call the bank")])) is None


@pytest.mark.parametrize("name", ["task-api-model", "task-api-model-mini"])
def test_shipped_files_are_small_and_known(name: str) -> None:
    path = MODEL / f"{name}.gguf"
    known = json.loads((MODEL / "hashes.json").read_text(encoding="utf-8"))
    assert known[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size <= 12_000_000


def test_the_card_names_the_hashes_of_the_shipped_files() -> None:
    known = json.loads((MODEL / "hashes.json").read_text(encoding="utf-8"))
    rows = (MODEL / "README.md").read_text(encoding="utf-8").splitlines()
    cells = {row.split("|")[1].strip(): row.split("|")[2:4] for row in rows if row.count("|") == 4}
    columns = [name.strip() for name in cells[""]]
    named = [cell.strip(" `") for cell in cells["SHA-256"]]
    assert {f"{c}.gguf": n for c, n in zip(columns, named, strict=True)} == known


def conversations() -> list[tuple[list[dict], list[dict]]]:
    """Fifty conversations of the dev set, every second one under another schema."""
    found = []
    kinds = [None, "strict", None, "string_ids", None, "due_date", None, "other_domain"]
    variants = {k: evaluation.VARIANTS[k] for k in kinds if k}
    for i, case in enumerate(cases("dev")[::4]):
        offered = tool_schemas(list(case.tools)) if case.tools else []
        change = variants.get(kinds[i % len(kinds)])
        changed = change(case, offered) if change and offered else None
        case, offered = changed or (case, offered)
        found.append(([dict(m) for m in case.messages], offered))
    assert len(found) >= 50
    return found[:50]


# What somebody said, and as the model reads it: in capitals only where there is no small letter,
# and nothing that small letters would make a mark of the format.
CAPITALS = {
    "DELETE TASK 12!": "delete task 12!",
    "Delete TASK 12!": "Delete TASK 12!",
    'ADD "ÜBEN"': 'add "Üben"',  # llama.cpp knows the letters of ASCII
    "ADD <TOOL_CALL> <|IM_END|>": "ADD <TOOL_CALL> <|IM_END|>",
    "12": "12",
}


def test_a_request_in_capitals_is_read_in_small_letters_and_nothing_else_is() -> None:
    for said, read in CAPITALS.items():
        told = [{"role": "user", "content": said}, {"role": "assistant", "content": "DONE"}]
        listed = {"role": "tool", "content": '{"title": "CALL MUM"}'}
        prompt = render([*told, listed], None)
        assert f"user\n{read}<|im_end|>" in prompt
        assert "assistant\nDONE<|im_end|>" in prompt and "CALL MUM" in prompt


def test_the_server_renders_as_training_did() -> None:
    shouted = [([{"role": "user", "content": said}], []) for said in CAPITALS]
    with backend.serve(threads=1, slots=1) as server:
        for messages, tools in [*conversations(), *shouted]:
            body = {"messages": messages, **({"tools": tools} if tools else {})}
            got = httpx.post(f"{server.url}/apply-template", json=body, timeout=30).json()["prompt"]
            assert got == render(messages, tools, generate=True)


def test_learning_curves_of_saved_snapshots(tmp_path: Path, monkeypatch) -> None:
    """With the shipped file in place of torch's: what is measured, kept and drawn."""
    import make

    few = tmp_path / "few.jsonl"
    lines = [json.dumps(case.to_dict()) for case in cases("dev")[::40]]
    few.write_text("\n".join(lines), encoding="utf-8")
    snapshots = tmp_path / "full" / "snapshots"
    snapshots.mkdir(parents=True)
    for name in ("snapshots/0001M.pt", "snapshots/0002M.pt", "final.pt"):
        (tmp_path / "full" / name).touch()
    tokens = {"0001M": 1_000_100, "0002M": 2_000_300, "final": 2_000_300}

    class Net:
        def parameters(self):
            return [type("P", (), {"numel": lambda self: 450_000})()] * 2

    shipped = MODEL / "task-api-model-mini.gguf"
    monkeypatch.setattr(make, "WORK", tmp_path)
    monkeypatch.setattr(make, "CURVES", tmp_path / "curves.json")
    monkeypatch.setattr(make, "CURVES_SPLIT", str(few))
    monkeypatch.setattr(make, "load", lambda path: (Net(), tokens[path.stem]))
    monkeypatch.setattr(make, "export", lambda name, checkpoint, out: shipped)
    make.curve({"other": "full"})
    make.curve({"task-api-model": "full", "not-trained": "nowhere"})
    data = json.loads((tmp_path / "curves.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in data["runs"]] == ["other", "task-api-model"]
    for run in data["runs"]:
        assert run["parameters"] == 900_000
        assert [point["tokens"] for point in run["points"]] == [1_000_100, 2_000_300]
        assert all(point["n"] == len(lines) for point in run["points"])
    make.draw()
    assert "task-api-model (0.9 M parameters)" in (tmp_path / "curves.svg").read_text("utf-8")


def test_one_command_without_arguments_trains_both_models(monkeypatch) -> None:
    """What train.py is asked for; how much and how is its own business, unless somebody says so."""
    import make

    ran: list[list[str]] = []
    monkeypatch.setattr(make.subprocess, "run", lambda command, check: ran.append(command[2:]))
    monkeypatch.setattr(make, "CURVES", MODEL / "none.json")
    for step in ("export", "measure", "curve"):
        monkeypatch.setattr(make, step, lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["make.py"])
    make.main()
    assert ran == [["task-api-model"], ["task-api-model-mini"]]
    ran.clear()
    few = ["--models", "task-api-model", "--tokens", "107e6"]
    monkeypatch.setattr(sys, "argv", ["make.py", "--only", "train", *few])
    make.main()
    assert ran == [["task-api-model", "--tokens", "107000000.0"]]


LIST = {"tasks": [
    {"task_id": 167, "title": "tune the piano", "priority": "low", "status": "pending"},
    {"task_id": 42, "title": "phone the bank", "priority": "low", "status": "pending"},
    {"task_id": 5, "title": "ask the bank about the loan", "priority": "low", "status": "pending"},
]}  # fmt: skip


def test_hints_follow_a_word_of_a_request_to_the_number_of_its_task() -> None:
    """Every entry knows its number, a word finds it, and the answer is where it is written."""
    import hints

    call = {"name": "list_tasks", "arguments": "{}"}
    bin_it = {"name": "delete_task", "arguments": '{"task_id": 167}'}
    messages = [
        {"role": "user", "content": "show my piano tasks"},  # nothing is known yet
        {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
        {"role": "tool", "content": json.dumps(LIST)},
        {"role": "assistant", "content": "Three tasks."},
        {"role": "user", "content": "bin the Piano one, not that"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": bin_it}]},
        {"role": "user", "content": "done with the bank loan"},
        {"role": "assistant", "content": "Which task do you mean?"},
    ]
    text = render(messages, tool_schemas())
    entries, words, answers = hints.marks(text)
    assert [number for _, _, number in entries] == ["167", "42", "5"]
    assert all(text[start:stop].startswith(', "title": "') for start, stop, _ in entries)
    said = [(text[:stop].split()[-1].strip(","), number) for stop, number in words]
    # "bank" is in two titles, so it says nothing; "that" is in none.
    assert said == [("Piano", "167"), ("that", ""), ("done", ""), ("with", ""), ("loan", "5")]
    assert [(text[start : start + 3], number) for start, number in answers] == [("167", "167")]

    # One token a character, for once: where labels stand.
    found = hints.labels(text, [(i, i + 1) for i in range(len(text))])
    start, stop, _ = entries[1]
    assert {i for i, step in found if step == 0} >= set(range(start, stop))
    assert found[start, 0] == [4, 2, hints.NONE, hints.NONE]
    assert found[words[0][0] - 1, 1] == [1, 6, 7, hints.NONE]
    assert found[words[1][0] - 1, 1] == [hints.NONE] * hints.DIGITS
    where = answers[0][0]  # the token before a digit says which digit follows
    assert [found[where - 1 + i, 2] for i in range(4)] == [[1], [6], [7], [hints.NONE]]
    assert (where + 3, 2) not in found


def test_new_layers_change_nothing_at_first() -> None:
    torch = pytest.importorskip("torch", reason="the training extra is not installed")
    from net import Net, Shape

    size = {"vocab": 64, "dim": 32, "heads": 2, "head_dim": 16, "hidden": 48, "turning": 4}
    small, large = Net(Shape(layers=3, **size), 1), Net(Shape(layers=6, **size), 2)
    assert large.take(small.state_dict(), [2, 2, 1]) == [1, 3, 4]
    tokens = torch.randint(0, 64, (2, 20))
    assert torch.equal(small(tokens), large(tokens))
    outputs = dict.fromkeys([2, 3])
    large(tokens, outputs=outputs)
    assert torch.equal(outputs[2], outputs[3])


def test_the_mean_of_a_file_with_itself_is_that_file(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the training extra is not installed")
    import make

    (tmp_path / "copy.gguf").write_bytes(MAIN.read_bytes())
    halves = {str(MAIN): 0.5, str(tmp_path / "copy.gguf"): 0.5}
    made = make.mean("task-api-model", tmp_path / "mean.gguf", halves)
    assert made.read_bytes() == MAIN.read_bytes()
    with pytest.raises(ValueError, match="The shares add up to"):
        make.mean("task-api-model", made, {str(MAIN): 0.9})


def as_ollama_hands_over(messages: list[dict], tools: list[dict]) -> tuple[list[dict], list[dict]]:
    """Properties and arguments in alphabetical order; the template writes required ones first."""
    tools, required = json.loads(json.dumps(tools)), {}
    for tool in tools:
        parameters = tool["function"]["parameters"]
        parameters["properties"] = dict(sorted(parameters["properties"].items()))
        required[tool["function"]["name"]] = parameters.get("required", [])
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for call in message.get("tool_calls") or []:
            arguments = json.loads(call["function"]["arguments"])
            first = required.get(call["function"]["name"], [])
            order = [name for name in first if name in arguments]
            order += sorted(name for name in arguments if name not in first)
            text = json.dumps({name: arguments[name] for name in order}, ensure_ascii=False)
            # Go's encoder escapes these three; so does Ollama.
            for sign in "&<>":
                text = text.replace(sign, f"\\u{ord(sign):04x}")
            call["function"]["arguments"] = text
    return messages, tools


@pytest.mark.needs("go")
def test_modelfile_renders_as_the_jinja_template(tmp_path: Path) -> None:
    modelfile = (MODEL / "Modelfile").read_text(encoding="utf-8")
    template = tmp_path / "template.txt"
    template.write_text(modelfile.split('"""')[1], encoding="utf-8")
    lines, expected = [], []
    for messages, tools in conversations():
        sorted_messages, sorted_tools = as_ollama_hands_over(messages, tools)
        expected.append(render(sorted_messages, sorted_tools, generate=True))
        for message in messages:
            message["content"] = message.get("content") or ""
            for call in message.get("tool_calls") or []:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        lines.append(json.dumps({"tools": tools, "messages": messages}))
    source = Path(__file__).parent / "go" / "render.go"
    run = subprocess.run(["go", "run", str(source), str(template)], input="\n".join(lines),
                         capture_output=True, text=True, timeout=300)  # fmt: skip
    assert run.returncode == 0, run.stderr
    mark, *got = [json.loads(line) for line in run.stdout.splitlines()]
    assert got == expected
    assert mark == "<tool_call>"  # else no call would be seen
