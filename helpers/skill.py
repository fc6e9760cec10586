"""The learner's skill, and how each lesson makes it better.

A lesson's last step is a few calls::

    skill = Skill("L02")
    skill.section("Run the proxy", "Bind it to 127.0.0.1 …", after="Proxy configuration")
    skill.take("references/litellm-proxy.md", "scripts/check_config.py")
    skill.correct("what it said", "what it says now", because="0 of 5 tools arrived")
    skill.report()

The skill is a folder of *units*: the header, the introduction and each section of ``SKILL.md``,
and every other file. ``.course.json`` in it remembers a hash of each unit that the course
wrote. So a step can be run again, alone, or out of order, and comes to the same end: what is
already there stays; what the learner has changed is theirs and is left alone, and the step
says so; a correction to a sentence that is not there yet waits for it.

The finished reference (:data:`REFERENCE`) is what these steps make, L00 to L07, one after
another in an empty folder. Longer files are kept there, and a step takes them from it.
"""

from __future__ import annotations

import atexit
import difflib
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from helpers import settings
from helpers.settings import CourseError

NAME = "agent-integration"
REFERENCE = settings.SKILLS / "reference" / NAME
STATE = ".course.json"
LOG = "references/corrections.md"
MAX_LINES = 300  # of SKILL.md
WIDTH = 96

HEADER, INTRO = "SKILL.md header", "SKILL.md introduction"
_SECTION = "SKILL.md ## "
_DRAFT = "How to put a model of one's own behind an agent. A draft: lesson L00 writes this line."

YOURS = "has words of your own and was left alone. The lesson's text goes there with replace=True."


def folder() -> Path:
    """Where the learner's skill is: ``skills/agent-integration``, unless ``COURSE_SKILL`` is set.

    A run that only checks the course must never touch it. Tests (pytest says in the
    environment that one is running) and ``COURSE_SKILL=rehearsal`` get a folder of their own.
    """
    named = os.environ.get("COURSE_SKILL", "")
    return Path(named).resolve() if named and named != "rehearsal" else settings.SKILLS / NAME


def rehearsing() -> bool:
    """Whether this process works on a throw-away copy of the skill."""
    named = os.environ.get("COURSE_SKILL", "")
    return named == "rehearsal" or (not named and "PYTEST_CURRENT_TEST" in os.environ)


_rehearsals: dict[str, Path] = {}


def _rehearsal(lesson: str) -> tuple[Path, bool]:
    """This process's throw-away folder for a lesson, and whether it is new."""
    if lesson in _rehearsals:
        return _rehearsals[lesson], False
    root = settings.WORK / "rehearsal"
    for old in root.glob(f"{lesson}-*"):
        # A kernel that a test ends does not clean up after itself.
        import psutil

        pid = old.name.rpartition("-")[2]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))) or int(pid) == os.getpid():
            shutil.rmtree(old, ignore_errors=True)
    home = root / f"{lesson}-{os.getpid()}"
    atexit.register(shutil.rmtree, home, True)
    _rehearsals[lesson] = home / NAME
    return home / NAME, True


def contents(folder: Path) -> dict[str, str]:
    """The text of each file of a skill, by its path in the skill's folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


class Skill:
    """A skill in a folder, as one lesson works on it.

    Args:
        lesson: ``"L02"``; what it writes is remembered as that lesson's.
        path: The folder; the learner's by default, see :func:`folder`.
        echo: Where each call says what it did, one line each.

    Attributes:
        path: The folder. It is made by the first call that writes.
    """

    def __init__(
        self, lesson: str, path: Path | None = None, echo: Callable[[str], None] = print
    ) -> None:
        self.lesson, self.echo = lesson.upper(), echo
        fresh = False
        if path is None:
            path, fresh = _rehearsal(self.lesson) if rehearsing() else (folder(), False)
        self.path = Path(path)
        if fresh:  # as for somebody who has done the lessons before
            self.echo = lambda line: None
            self.catch_up()
            self.echo = echo

    def __repr__(self) -> str:
        return f"<Skill {NAME} of {self.lesson}>"

    # --- what a lesson calls ---------------------------------------------------------------

    def header(self, name: str, description: str, *, replace: bool = False) -> None:
        """Write the frontmatter of ``SKILL.md``: all that an assistant always sees.

        Args:
            name: As the folder is called.
            description: What the skill is for, when to use it, when not.
            replace: Also when the learner has changed it by hand.
        """
        words = textwrap.wrap(" ".join(description.split()), WIDTH - 2, break_on_hyphens=False)
        text = "\n".join(["---", f"name: {name}", "description: >-", *(f"  {w}" for w in words)])
        self._put(HEADER, text + "\n---", replace)

    def intro(self, text: str, *, replace: bool = False) -> None:
        """Write what stands between the header and the first section, title included."""
        self._put(INTRO, filled(text), replace)

    def section(self, heading: str, text: str, *, after: str = "", replace: bool = False) -> None:
        """Write a section of ``SKILL.md``.

        Args:
            heading: Without ``##``.
            text: Markdown; its paragraphs are filled anew.
            after: The section that it follows, for a section that the reference does not have.
            replace: Also when the learner has changed it by hand.
        """
        self._put(_SECTION + heading, filled(text), replace, after)

    def write(self, name: str, text: str, *, replace: bool = False) -> None:
        """Write a file of the skill, such as ``evals/evals.json``.

        Raises:
            CourseError: For ``SKILL.md`` itself, or a path that leads out of the skill.
        """
        inside = (self.path / name).resolve().is_relative_to(self.path.resolve())
        if name == "SKILL.md" or not inside:
            raise CourseError(
                f"{name} is not written as a file.",
                "SKILL.md is written by header(), intro() and section(); others lie in its folder.",
                "Name a file such as references/notes.md.",
            )
        self._put(name, text.rstrip("\n"), replace)

    def take(self, *names: str, replace: bool = False) -> None:
        """Take longer files over from the finished reference.

        Raises:
            CourseError: When the reference has no such file.
        """
        for name in names:
            try:
                text = (REFERENCE / name).read_text(encoding="utf-8")
            except OSError:
                raise CourseError(
                    f"The reference has no file {name}.",
                    "Longer files of the skill are taken from skills/reference/agent-integration.",
                    "Correct the name, or write the file yourself with skill.write(…).",
                ) from None
            self.write(name, text, replace=replace)

    def correct(self, old: str, new: str, because: str) -> None:
        """Correct a sentence of ``SKILL.md`` that turned out wrong, and log why.

        Args:
            old: The sentence as an earlier lesson wrote it; line breaks do not matter.
            new: What takes its place.
            because: What was counted, in one sentence with its numbers.
        """
        state = self._state()
        entry = {
            "lesson": self.lesson,
            "old": _line(old),
            "new": _line(new),
            "because": _line(because),
        }
        before = [c for c in state["corrections"]
                  if (c["lesson"], c["old"]) == (self.lesson, entry["old"])]  # fmt: skip
        said = [entry["old"], *(c["new"] for c in before)]
        kept = [c for c in state["corrections"] if c not in before]
        state["corrections"] = sorted([*kept, entry], key=lambda c: c["lesson"])
        self._save(state)
        units = self._units()
        if any(_has(text, entry["new"]) for text in units.values()):
            self.echo("Correction: your skill says so already.")
        else:
            for unit, text in units.items():
                found = next((words for words in said if _has(text, words)), None)
                if found:
                    fresh = _replaced(text, found, entry["new"])
                    mine = state["units"].get(unit, {}).get("hash") == _hash(text)
                    self._write(unit, fresh)
                    if mine:
                        state["units"][unit]["hash"] = _hash(fresh)
                        self._save(state)
                    self.echo(f"Corrected in {unit}.")
                    break
            else:
                self.echo(
                    "Correction: the sentence is not in your skill, so nothing was changed there. "
                    f"{LOG} says what it is about."
                )
        self._put(LOG, _log(state["corrections"]), False, owner="")

    def catch_up(self) -> None:
        """Take over from the reference what lessons before this one would have written.

        Lessons that have left something here are not repeated, and nothing that the learner
        changed is overwritten.
        """
        missing = self.missing()
        if not missing:
            self.echo("Nothing to catch up on.")
            return
        reference = Skill(self.lesson, REFERENCE, self.echo)
        source = reference._state()
        current, own = self.lesson, self._state()
        own["corrections"] = sorted(
            [*own["corrections"], *(c for c in source["corrections"] if c["lesson"] in missing)],
            key=lambda c: c["lesson"],
        )
        self._save(own)
        for unit, text in reference._units().items():
            lesson = source["units"].get(unit, {}).get("lesson")
            if lesson not in missing:
                continue
            for entry in reversed(source["corrections"]):
                if entry["lesson"] >= current and unit.startswith("SKILL.md"):
                    text = _replaced(text, entry["new"], entry["old"])
            self._put(unit, text, False, owner=lesson)
        if own["corrections"]:
            self._put(LOG, _log(own["corrections"]), False, owner="")
        self.echo(f"Taken over from the reference: {', '.join(missing)}.")

    # --- what it says of itself ------------------------------------------------------------

    def missing(self) -> list[str]:
        """Lessons before this one that have left nothing here."""
        done = self._done()
        every = {u["lesson"] for u in _read_state(REFERENCE)["units"].values()} - {""}
        return sorted(lesson for lesson in every if lesson < self.lesson and lesson not in done)

    def problems(self) -> list[str]:
        """What is wrong with the skill: the format's own validator, and three rules of ours.

        Ours: ``SKILL.md`` under 300 lines, no link or path to a file that is not there, and
        every script with a test beside it.
        """
        from skills_ref.validator import validate

        found = list(validate(self.path))
        text = self._text()
        lines = len(text.splitlines())
        if lines >= MAX_LINES:
            found.append(f"SKILL.md has {lines} lines; it should stay under {MAX_LINES}.")
        for name in sorted(
            set(re.findall(r"\b(?:references|scripts|evals|assets)/[\w./-]*\w", text))
        ):
            if not (self.path / name).exists():
                found.append(f"SKILL.md names {name}, which is not there.")
        for script in sorted((self.path / "scripts").glob("*.py")):
            tested = script.with_name(f"test_{script.name}")
            if not script.name.startswith("test_") and not tested.exists():
                found.append(f"scripts/{script.name} has no test beside it.")
        return found

    def tree(self) -> str:
        """The files of the skill and their lines."""
        lines = []
        for file in self._files():
            count = (self.path / file).read_bytes().count(b"\n")
            lines.append(f"{count:4} lines  {NAME}/{file}")
        return "\n".join(lines)

    def run(self, script: str, *args: str, check: bool = True) -> str:
        """Run a script of the skill as an assistant would: as a black box, by its output.

        Args:
            script: ``"scripts/check_claims.py"``.
            args: Its arguments.
            check: Whether an exit status other than 0 is an error.

        Returns:
            What it wrote to its standard output.

        Raises:
            CourseError: When it is not there, or fails.
        """
        if not (self.path / script).is_file():
            raise CourseError(f"{NAME}/{script} is not there.", "", "skill.take(…) brings it.")
        done = subprocess.run(
            [sys.executable, script, *args], cwd=self.path, capture_output=True,
            encoding="utf-8", errors="replace", timeout=600, stdin=subprocess.DEVNULL,
            env={**os.environ, **settings.OFFLINE, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        if check and done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise CourseError(f"{script} failed with status {done.returncode}.", last)
        return done.stdout

    def test(self, lesson: str = "") -> tuple[int, str]:
        """Run the tests of the scripts that a lesson brought.

        Args:
            lesson: This one by default; ``"all"`` for every script's.

        Returns:
            How many tests passed, and what went wrong (empty when nothing did).
        """
        passed, wrong = 0, []
        units = self._state()["units"]
        for file in self._files():
            of = units.get(file, {}).get("lesson")
            if not re.fullmatch(r"scripts/test_\w+\.py", file):
                continue
            if lesson != "all" and of != (lesson or self.lesson):
                continue
            done = subprocess.run(
                [sys.executable, "-m", "unittest", Path(file).stem], cwd=self.path / "scripts",
                capture_output=True, encoding="utf-8", errors="replace", timeout=600,
                env={**os.environ, **settings.OFFLINE, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            count = re.search(r"^Ran (\d+) test", done.stderr, re.M)
            if done.returncode or not count:
                wrong.append(f"{file}:\n{done.stderr.strip()[-1500:]}")
            else:
                passed += int(count[1])
        return passed, "\n".join(wrong)

    def diff(self) -> str:
        """How the skill differs from the reference, for the lessons done so far."""
        wanted, have = self._expected(), self._units()
        out: list[str] = []
        for unit in [*wanted, *(u for u in have if u not in wanted)]:
            lines = wanted.get(unit, "").splitlines(), have.get(unit, "").splitlines()
            names = f"reference: {unit}", f"yours: {unit}"
            out += difflib.unified_diff(*lines, *names, lineterm="", n=1)
        return "\n".join(out)

    def report(self) -> None:
        """Say what the skill holds now, whether it is valid, and what is missing."""
        files = self._files()
        counts = {kind: sum(f.startswith(kind) and "/test_" not in f for f in files)
                  for kind in ("references/", "scripts/")}  # fmt: skip
        sections = sum(unit.startswith(_SECTION) for unit in self._units())
        lines = len(self._text().splitlines())
        self.echo(
            f"Your skill: {sections} sections in {lines} lines, "
            f"{_count(counts['references/'], 'reference')}, {_count(counts['scripts/'], 'script')}."
        )
        passed, wrong = self.test()
        if passed or wrong:
            self.echo(f"Tests of this lesson's script: {wrong or f'{passed} passed.'}")
        problems = self.problems()
        self.echo(
            "Valid." if not problems else "Problems:\n" + "\n".join(f"- {p}" for p in problems)
        )
        if self.missing():
            self.echo(
                f"Not in it yet: {', '.join(self.missing())}. skill.catch_up() takes that over "
                "from the reference."
            )
        elif self.diff():
            self.echo("It differs from the reference; print(skill.diff()) shows where.")
        else:
            self.echo(f"It is the reference as it stands after {max(self._done())}.")

    # --- units -----------------------------------------------------------------------------

    def _put(self, unit: str, text: str, replace: bool, after: str = "",
             owner: str | None = None) -> None:  # fmt: skip
        """Write a unit unless the learner has made it theirs."""
        state = self._state()
        owner = self.lesson if owner is None else owner
        if unit.startswith("SKILL.md"):
            if unit != HEADER and HEADER not in self._units():
                # A lesson before L00: a header that is valid, and that L00 will replace.
                Skill("", self.path, lambda line: None).header(NAME, _DRAFT)
                state = self._state()
            for entry in state["corrections"]:
                if not _has(text, entry["new"]):
                    text = _replaced(text, entry["old"], entry["new"])
        now = self._units().get(unit)
        known = state["units"].get(unit, {}).get("hash")
        draft = unit == HEADER and state["units"].get(unit, {}).get("lesson") == ""
        if now == text:
            said = "as it was."
        elif now is None or (draft and known == _hash(now)):
            said = "written."
        elif replace:
            said = "replaced, as you asked."
        elif known == _hash(now):
            said = "brought up to date."
        else:
            said = YOURS
        if now != text and said != YOURS:
            self._write(unit, text, after)
        state["units"][unit] = {"lesson": owner, "hash": _hash(text)}
        self._save(state)
        self.echo(f"{unit}: {said}")

    def _write(self, unit: str, text: str, after: str = "") -> None:
        if not unit.startswith("SKILL.md"):
            return self._write_file(unit, text + "\n")
        units = {u: t for u, t in self._units().items() if u.startswith("SKILL.md")}
        if unit in units or unit == INTRO:
            units[unit] = text
        elif unit == HEADER:
            units = {unit: text, **units}
        else:
            units = dict(_placed(list(units.items()), unit, text, after))
        order = [HEADER, INTRO, *(u for u in units if u.startswith(_SECTION))]
        parts = [f"## {u.removeprefix(_SECTION)}\n\n{units[u]}" if u.startswith(_SECTION)
                 else units[u] for u in order if u in units]  # fmt: skip
        self._write_file("SKILL.md", "\n\n".join(part for part in parts if part) + "\n")

    def _write_file(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".tmp")
        fresh.write_text(text, encoding="utf-8", newline="\n")
        os.replace(fresh, path)

    def _units(self) -> dict[str, str]:
        """Every unit of the skill as it is now."""
        units = parse(self._text())
        for name in self._files():
            if name != "SKILL.md":
                text = (self.path / name).read_text(encoding="utf-8", errors="replace")
                units[name] = text.rstrip("\n")
        return units

    def _text(self) -> str:
        try:
            return (self.path / "SKILL.md").read_text(encoding="utf-8")
        except OSError:
            return ""

    def _files(self) -> list[str]:
        """The skill's files, without what tools leave behind."""
        if not self.path.is_dir():
            return []
        names = (p.relative_to(self.path) for p in self.path.rglob("*") if p.is_file())
        return sorted(
            name.as_posix()
            for name in names
            if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        )

    def _expected(self) -> dict[str, str]:
        """The reference's units as they stand after the lessons that were done here."""
        source = _read_state(REFERENCE)
        done = self._done()
        units: dict[str, str] = {}
        for unit, text in Skill(self.lesson, REFERENCE)._units().items():
            if source["units"].get(unit, {}).get("lesson") not in done:
                continue
            for entry in reversed(source["corrections"]):
                if entry["lesson"] not in done and unit.startswith("SKILL.md"):
                    text = _replaced(text, entry["new"], entry["old"])
            units[unit] = text
        made = [entry for entry in source["corrections"] if entry["lesson"] in done]
        if made:
            units[LOG] = _log(made)
        return units

    def _done(self) -> set[str]:
        return {unit["lesson"] for unit in self._state()["units"].values()} - {""}

    def _state(self) -> dict[str, Any]:
        return _read_state(self.path)

    def _save(self, state: dict[str, Any]) -> None:
        text = json.dumps(state, indent=1, sort_keys=True, ensure_ascii=False)
        self._write_file(STATE, text + "\n")


# --- text ----------------------------------------------------------------------------------------


def parse(text: str) -> dict[str, str]:
    """The units of a ``SKILL.md``: header, introduction, sections, in their order."""
    units: dict[str, str] = {}
    head = re.match(r"---\n.*?\n---(?=\n|\Z)", text, re.S)
    if head:
        units[HEADER] = head[0]
        text = text[head.end() :]
    unit, fenced = INTRO, False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            unit = _SECTION + line[3:].strip()
            while unit in units:  # a heading that is there twice: two sections, nothing is lost
                unit += " "
            units[unit] = ""
        else:
            units[unit] = units.get(unit, "") + line + "\n"
    return {u: t.strip("\n") for u, t in units.items() if t.strip("\n") or u.startswith(_SECTION)}


def filled(text: str) -> str:
    """Markdown with its paragraphs and list items filled to one width; all else as it is.

    So a text is the same however its cell was broken into lines, and a correction changes a
    sentence and not a paragraph's shape.
    """
    out: list[str] = []
    block: list[str] = []

    def flush() -> None:
        if block:
            lead = re.match(r"\s*(?:[-*]|\d+\.)\s+|\s*", block[0])
            begin = lead[0] if lead else ""
            words = " ".join([block[0][len(begin) :], *(line.strip() for line in block[1:])])
            shape = {"initial_indent": begin, "subsequent_indent": " " * len(begin)}
            out.extend(_wrap(words, **shape))
            block.clear()

    fenced = False
    for line in inspect.cleandoc(text).splitlines():
        plain = line.strip()
        fence = plain.startswith("```")
        if fence or fenced or not plain or plain[0] in "|#>":
            flush()
            out.append(line.rstrip())
            fenced ^= fence
        elif re.match(r"\s*(?:[-*]|\d+\.)\s", line):
            flush()
            block.append(line.rstrip())
        else:
            block.append(line.rstrip())
    flush()
    return "\n".join(out).strip("\n")


def _wrap(words: str, **shape: str) -> list[str]:
    """Wrapped lines; a piece of code between backticks stays on one."""
    glued = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), words)
    lines = textwrap.wrap(glued, WIDTH, break_long_words=False, break_on_hyphens=False, **shape)
    return [line.replace("\0", " ") for line in lines]


def _line(text: str) -> str:
    return " ".join(text.split())


def _pattern(words: str) -> str:
    return r"\s+".join(map(re.escape, words.split()))


def _has(text: str, words: str) -> bool:
    return bool(re.search(_pattern(words), text))


def _replaced(text: str, old: str, new: str) -> str:
    """The text with a sentence exchanged, whatever its line breaks, and filled anew."""
    if not _has(text, old):
        return text
    return filled(re.sub(_pattern(old), lambda match: new, text, count=1))


def _placed(
    units: list[tuple[str, str]], unit: str, text: str, after: str
) -> list[tuple[str, str]]:
    """The units with a new section where the reference has it, else after the one named."""
    names = [name for name, _ in units]
    order = list(parse(_read(REFERENCE / "SKILL.md")))
    before = order[: order.index(unit)][::-1] if unit in order else []
    behind = next((name for name in [*before, _SECTION + after] if name in names), None)
    if behind:
        at = names.index(behind) + 1
    elif unit in order:  # it comes first, whatever is there already
        known = (i for i, name in enumerate(names) if name in order and _SECTION in name)
        at = next(known, len(names))
    else:
        at = len(names)
    return [*units[:at], (unit, text), *units[at:]]


def _log(corrections: Iterable[dict[str, str]]) -> str:
    """The log of corrections, made from what ``.course.json`` remembers."""
    parts = [
        "# Corrections",
        filled(
            "What an earlier version of this skill said, what it says now, and what was counted in "
            "between. Read this when an older copy, or a memory of one, says something else."
        ),
    ]
    for entry in corrections:
        parts.append(f"## {entry['lesson']}")
        parts.append(
            "\n".join(filled(f"- {name}: {entry[key]}") for name, key in
                      (("Said", "old"), ("Says", "new"), ("Counted", "because")))
        )  # fmt: skip
    return "\n\n".join(parts)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(_read(path / STATE))
        if isinstance(state["units"], dict) and isinstance(state["corrections"], list):
            return state
    except (ValueError, KeyError, TypeError):
        pass  # none yet, or spoilt: then all that is there counts as the learner's own
    return {"units": {}, "corrections": []}
