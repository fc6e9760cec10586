"""What a reader meets around the code: links that lead somewhere, words that are explained, minutes
that are true, one lesson that leads to the next."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from helpers import cli
from helpers import notebooks as nbs
from helpers.settings import NOTEBOOKS, ROOT

LESSONS = sorted(NOTEBOOKS.glob("L[0-9][0-9]_*.ipynb"))
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("skills/**/*.md"), *LESSONS]
    # The learner's own skill and what lessons write are none of ours.
    if not path.is_relative_to(ROOT / "skills" / "agent-integration")
    if path.relative_to(ROOT).parts[0] not in ("work", ".venv", "node_modules")
)
GLOSSARY = ROOT / "GLOSSARY.md"
# Minutes above the table; the least part of it, for cells also take time to run (most in L07).
OVER, UNDER = 3, 0.75

# --- links -----------------------------------------------------------------------------------


def sources(path: Path) -> list[str]:
    """The markdown of a page or of a notebook's cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return [text]
    cells = json.loads(text)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def prose(markdown: str) -> str:
    """Without code, in which brackets mean something else."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.S)


def links(path: Path) -> Iterator[str]:
    for source in sources(path):
        text = prose(source)
        yield from re.findall(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)", text)
        yield from re.findall(r"""(?:href|src)=["']([^"']+)["']""", text)
        yield from re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for source in sources(path):
        text = re.sub(r"```.*?```", "", source, flags=re.S)
        for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, re.M):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            count = found[slug] = found.get(slug, -1) + 1
            names.add(f"{slug}-{count}" if count else slug)
        names |= set(re.findall(r"""<a\s+(?:name|id)=["']([^"']+)["']""", source))
    return names


def broken(path: Path) -> list[str]:
    """The links of a page that lead nowhere. Addresses on the web are only read, not visited."""
    wrong = []
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme or link.startswith("//"):
            good = parts.scheme in ("http", "https") and "." in (parts.hostname or "")
            if not good and parts.scheme != "mailto":
                wrong.append(link)
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(link)
        elif parts.fragment and parts.fragment not in anchors(target):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a b.md").write_text("# One `two` & three\n\n## One\n\n## One\n")
    page = tmp_path / "page.md"
    good = [
        "a%20b.md",
        "a%20b.md#one-two--three",
        "a%20b.md#one-1",
        "#here",
        "https://example.org/x",
    ]
    bad = ["none.md", "a%20b.md#four", "#there", "../outside.md", "http:/example", "ftp://a.b/c"]
    page.write_text("# Here\n\n" + "\n".join(f"[x]({link})" for link in [*good, *bad])
                    + "\n`[x](code.md)`\n```\n[x](code.md)\n```\n")  # fmt: skip
    assert broken(page) == bad


def test_each_lesson_leads_to_its_neighbours():
    """At the top and at the end, to the one before and the one after."""
    for n, path in enumerate(LESSONS):
        cells = sources(path)
        wanted = {LESSONS[i].name for i in (n - 1, n + 1) if 0 <= i < len(LESSONS)}
        for where in (cells[0], cells[-1]):
            linked = set(re.findall(r"\]\((L\d\d_[^)#]*\.ipynb)\)", where))
            missing = wanted - linked
            assert not missing, f"{path.name}: no link to {', '.join(sorted(missing))}"


def test_the_course_opens_with_a_map():
    top = sources(LESSONS[0])[0]
    assert all(path.name in top for path in LESSONS[1:])
    ((described, file),) = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", top)
    assert all(path.name[:3] in described for path in LESSONS)
    drawn = (NOTEBOOKS / file).read_text(encoding="utf-8")
    assert all(path.name[:3] in drawn for path in LESSONS)
    assert "<title" in drawn and "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_exist(path):
    """What a page tells people to type after ``python3 -m helpers``."""
    (commands,) = (a.choices for a in cli.parser()._actions if a.dest == "command")
    named = set(re.findall(r"-m helpers ([a-z]+)", path.read_text(encoding="utf-8")))
    assert named <= set(commands)


def test_the_readme_names_every_command():
    (commands,) = (a.choices for a in cli.parser()._actions if a.dest == "command")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text[text.index("## Commands") : text.index("## Settings")]
    missing = [name for name in commands if f"`{name}" not in part]
    assert missing == []


# --- words -----------------------------------------------------------------------------------


def entries() -> dict[str, str]:
    """The words of the glossary and what is said of each."""
    parts = re.split(r"^## (.*)$", GLOSSARY.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_glossary_is_in_order():
    words = list(entries())
    assert words == sorted(words, key=str.lower)
    for word, text in entries().items():
        assert 8 < len(text.split()) < 60, word
        assert re.search(r"\[L\d\d\]\(notebooks/L\d\d_\w+\.ipynb\)\s*$", text), word


@pytest.mark.parametrize("word", list(entries()))
def test_a_word_is_linked_where_it_is_first_met(word):
    lesson = re.findall(r"\[(L\d\d)\]", entries()[word])[-1]
    (path,) = (path for path in LESSONS if path.name.startswith(lesson))
    anchor = word.lower().replace(" ", "-")
    assert f"../GLOSSARY.md#{anchor}" in list(links(path)), f"{lesson} does not link {word}"


# --- minutes ---------------------------------------------------------------------------------


def table() -> dict[str, int]:
    """The minutes of README.md's course table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return {name: int(m) for name, m in re.findall(r"^\| (L\d\d) \|[^|]*\| (\d+) \|", text, re.M)}


def test_minutes(record_property):
    """The core path of a lesson fits its minutes, by an estimate."""
    stated, rows, wrong = table(), [], []
    assert list(stated) == [path.name[:3] for path in LESSONS]
    assert sum(stated.values()) == 365
    for path in LESSONS:
        name, estimate = path.name[:3], nbs.minutes(path)
        said = stated[name]
        rows.append(f"{name}  table {said}, estimated {estimate:.1f}")
        if nbs._joined(json.loads(path.read_text(encoding="utf-8"))).metadata.get("course"):
            continue  # still a plan
        if not UNDER * said <= estimate <= said + OVER:
            wrong.append(rows[-1])
        assert f"{said} minutes" in sources(path)[0]
    # What a worker prints is lost; conftest.py prints this at the end of the run.
    record_property("minutes", "\n".join(rows))
    assert wrong == []


def test_how_minutes_are_counted(tmp_path):
    words = " ".join(["word"] * 100)
    made = [
        ("markdown", f"# Title\n\n{words}\n\n```mermaid\n{words}\n```", []),
        ("markdown", f"<details><summary>Hint</summary>\n{words}\n</details>", []),
        ("markdown", f"[{words}](a.md#b) – `code`", []),
        ("markdown", words, ["optional"]),
        *(("code", "1", tags) for tags in ([], ["parameters"], ["optional"], ["exercise"],
                                           ["check"], ["solution"], ["exercise", "optional"])),
    ]  # fmt: skip
    cells = [{"cell_type": kind, "source": source, "metadata": {"tags": tags}}
             for kind, source, tags in made]  # fmt: skip
    path = tmp_path / "L99_x.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    assert nbs.minutes(path) == pytest.approx(202 / 200 + 2 + 4)


# --- spelling --------------------------------------------------------------------------------


def spelled(*paths: Path) -> str:
    """What codespell objects to; a word of theirs and a better one in each line."""
    command = [sys.executable, "-m", "codespell_lib", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_words_are_spelled():
    assert spelled(Path(".")) == ""


def test_a_misspelled_word_is_found(tmp_path):
    (tmp_path / "page.md").write_text("A lang" + "auge model.\n")
    assert "language" in spelled(tmp_path / "page.md")


# --- hooks -----------------------------------------------------------------------------------


def test_hooks_use_what_is_installed():
    """Nothing is downloaded, and what the hooks would run passes."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    ruff = {hook["id"]: hook for hook in hooks if hook["entry"].startswith("ruff ")}
    assert "jupyter" in ruff["ruff-check"]["types_or"]
    program = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    for hook, what in {"ruff-check": ["."], "ruff-format": ["helpers", "tests", "model"]}.items():
        call = [program, *ruff[hook]["entry"].split()[1:], *what]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
