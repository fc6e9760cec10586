"""``grade``: every submission of a class, over Dask, each counted once.

What has been graded lies in ``REPORT/results`` from the moment it is known, so an interrupted
run goes on where it was, and a submission that was handed in anew is graded anew. Workers are
processes of this machine, or those of a scheduler that runs already.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers import notebooks
from helpers.instructor import release, report, sandbox
from helpers.settings import CourseError

IN_FLIGHT = 2  # submissions per worker that are on their way at a time


# --- what was handed in --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Submission:
    """One learner's work on one lesson.

    Attributes:
        learner: The name of the learner's folder.
        lesson: ``L03``.
        path: The file.
    """

    learner: str
    lesson: str
    path: Path

    @property
    def slug(self) -> str:
        """A file name that is the submission's own, whatever the learner is called."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", self.learner).strip("._") or "learner"
        mark = hashlib.sha256(self.learner.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        return f"{self.lesson}-{plain[:40]}-{mark}"


def find(folder: Path, lessons: Sequence[str]) -> list[Submission]:
    """The submissions below a folder: ``<learner>/…/L03_….ipynb``.

    nbgrader's own ``submitted/<learner>/L03/L03_….ipynb`` is such a folder. Of several files
    of one learner for one lesson the newest counts. A file that is named like a lesson and is
    no notebook is a submission as well, so that its learner is told.

    Raises:
        CourseError: There is none.
    """
    if not folder.is_dir():
        raise CourseError(
            f"There is no folder {folder}.",
            "Submissions are read from a folder that has one folder per learner.",
            "Type: python3 -m helpers grade SUBMISSIONS --out REPORT",
        )
    newest: dict[tuple[str, str], Path] = {}
    for learner in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        for path in sorted(learner.rglob("*")):
            named = re.match(r"(L\d\d)(?![0-9A-Za-z])", path.name, re.I)
            inside = path.relative_to(learner).parts
            if not named or path.is_dir() or any(part.startswith(".") for part in inside):
                continue
            key = (learner.name, named[1].upper())
            if key not in newest or _rank(path) > _rank(newest[key]):
                newest[key] = path
    found = [
        Submission(learner, lesson, path)
        for (learner, lesson), path in newest.items()
        if not lessons or lesson in lessons
    ]
    if not found:
        raise CourseError(
            f"There are no submissions in {folder}.",
            "They are expected as LEARNER/L03_….ipynb, one folder per learner.",
            "Check the folder, and the names of the files.",
        )
    return found


def _rank(path: Path) -> tuple[bool, float, str]:
    return path.suffix == ".ipynb", path.lstat().st_mtime, path.name


def _data(path: Path) -> bytes:
    """A file's bytes; a link may lead anywhere and is not followed."""
    from helpers.instructor.grading import LARGEST

    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


# --- the command ---------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """What ``grade`` was asked for.

    Attributes:
        submissions: The folder of submissions.
        out: The folder of the report.
        lessons: ``L03`` …; empty: whatever was handed in.
        release: A folder that ``release`` made; by default the present notebooks count.
        scheduler: Address of a Dask scheduler; empty: workers of this machine.
        workers: How many of them; 0: grade in this process, one after another.
        limits: For one submission.
        again: Grade anew what has been graded.
        services: What submissions find as ``COURSE_SERVICES``; None: the course's own, started.
    """

    submissions: Path
    out: Path
    lessons: Sequence[str] = ()
    release: Path | None = None
    scheduler: str = ""
    workers: int | None = None
    limits: sandbox.Limits = dataclasses.field(default_factory=sandbox.Limits)
    again: bool = False
    services: Mapping[str, Any] | None = None


def grade(plan: Plan, on_result: Callable[[dict[str, Any]], None] | None = None) -> report.Class:
    """Grade a class.

    Args:
        plan: What to do.
        on_result: Called with each result as it comes.

    Returns:
        What came of it, as it is in the report.

    Raises:
        CourseError: There is nothing to grade, or nothing to grade it with.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if os.name == "nt":
        raise CourseError(
            "Grading does not run on Windows itself.",
            "What holds a submission to its limits is made of what Linux and macOS offer.",
            "Grade in the Windows Subsystem for Linux (WSL), where this command works.",
        )
    lessons = [lesson.upper()[:3] for lesson in plan.lessons]
    found = find(plan.submissions.resolve(), lessons)
    out = plan.out.resolve()
    (out / "results").mkdir(parents=True, exist_ok=True)
    course, skipped = _course(plan, out, sorted({s.lesson for s in found}))
    for lesson in skipped:
        print(f"{lesson} has no exercises: its submissions are not graded.")
    found = [s for s in found if s.lesson not in skipped]
    assignments = {lesson: _assignment(course, lesson) for lesson in {s.lesson for s in found}}

    done: list[dict[str, Any]] = []
    waiting = []
    for submission in found:
        data = _data(submission.path)
        key = _key(data, assignments[submission.lesson]["fingerprint"], plan.limits)
        known = None if plan.again else _known(out, submission, key)
        if known:
            done.append(known)
        else:
            waiting.append((submission, data, key))
    if done:
        print(f"{len(done)} of {len(found)} are graded already.")
    if waiting:
        print(f"Each submission runs {sandbox.isolation()}.", flush=True)
    services = plan.services if plan.services is not None else (waiting and shared_services())
    common = {
        "limits": dataclasses.asdict(plan.limits),
        "services": services or {},
        "hide": [str(plan.submissions.resolve()), str(out)],
    }

    def jobs() -> Iterator[tuple[tuple[Submission, str], dict[str, Any]]]:
        for submission, data, key in waiting:
            job = {"learner": submission.learner, "lesson": submission.lesson}
            job |= {"file": submission.path.name, "data": data, **common}
            yield (submission, key), job | assignments[submission.lesson]["parts"]

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task("Grading", total=len(waiting), visible=bool(waiting))
        for (submission, key), result in _each(plan, jobs(), len(waiting)):
            _keep(out, submission, key, result)
            done.append(result)
            bar.advance(task)
            if on_result:
                on_result(result)
    whole = report.Class(
        sorted(done, key=lambda r: (r["lesson"], r["learner"])),
        # Learners who handed in nothing are in no result, but in the gradebook.
        sorted(p.name for p in plan.submissions.iterdir() if p.is_dir() and p.name[0] != "."),
        sandbox.isolation(),
        plan.limits,
    )
    report.write(whole, out)
    return whole


def _course(plan: Plan, out: Path, lessons: Sequence[str]) -> tuple[Path, list[str]]:
    """nbgrader's course directory, and the lessons that have nothing to grade."""
    course = plan.release.resolve() if plan.release else out / "course"
    skipped = []
    for lesson in lessons:
        if plan.release:
            if not list((course / "source" / lesson).glob("*.ipynb")):
                skipped.append(lesson)
            elif not (course / "gradebook.db").is_file():  # release/ may have been handed out
                raise CourseError(
                    f"The release in {course} is not complete: it has no gradebook.db.",
                    "The command that made it was probably interrupted.",
                    f"Make it again: python3 -m helpers release {course}",
                )
            continue
        try:
            (path,) = notebooks.find([lesson])
            wanted = release.prepare(path)
        except (CourseError, ValueError):
            skipped.append(lesson)
            continue
        made = course / "source" / lesson / path.name
        if not made.is_file() or not _equal(made, wanted) or not _whole(course, lesson):
            print(f"Preparing {lesson} with nbgrader.", flush=True)
            # Its last step writes the release. An old one would hide an interruption until then.
            shutil.rmtree(course / "release" / lesson, ignore_errors=True)
            release.make_course(course, [path])
    if len(skipped) == len(lessons):
        raise CourseError(
            "None of these submissions can be graded.",
            f"{', '.join(skipped)}: {'not in that release' if plan.release else 'no exercises'}.",
            "Name other lessons, or another release.",
        )
    return course, skipped


def _whole(course: Path, lesson: str) -> bool:
    """Whether nbgrader came to its end: every source has a release, and there is a gradebook."""
    wanted = [path.name for path in (course / "source" / lesson).glob("*.ipynb")]
    released = course / "release" / lesson
    return (course / "gradebook.db").is_file() and all((released / n).is_file() for n in wanted)


def _equal(made: Path, wanted: Any) -> bool:
    import nbformat

    return made.read_text(encoding="utf-8").rstrip("\n") == nbformat.writes(wanted).rstrip("\n")


def _assignment(course: Path, lesson: str) -> dict[str, Any]:
    (path,) = sorted((course / "source" / lesson).glob("*.ipynb"))
    parts = {
        "source": path.read_bytes(),
        "source_name": path.name,
        "gradebook": (course / "gradebook.db").read_bytes(),
    }
    return {"fingerprint": release.fingerprint(course, lesson), "parts": parts}


def shared_services() -> dict[str, Any]:
    """The course's backend and proxy, started, as ``COURSE_SERVICES`` names them."""
    from helpers import services

    if shared := services.given():
        return shared
    print("Starting the backend and the proxy that all submissions share.", flush=True)
    services.ensure(quiet=True)
    state = services._read_json(services._state_file())
    wanted = ("kind", "url", "model", "instance")
    found = {
        name: {k: v for k, v in state[name].items() if k in wanted} for name in ("backend", "proxy")
    }
    found["proxy"]["key"] = services.key()
    return found


# --- results on disk -----------------------------------------------------------------------


def _key(data: bytes, fingerprint: str, limits: sandbox.Limits) -> str:
    parts = [hashlib.sha256(data).hexdigest(), fingerprint, repr(limits)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _known(out: Path, submission: Submission, key: str) -> dict[str, Any] | None:
    try:
        kept = json.loads((out / "results" / f"{submission.slug}.json").read_text("utf-8"))
        page = out / kept["result"]["feedback_file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept["result"] if kept.get("key") == key and page.is_file() else None


def _keep(out: Path, submission: Submission, key: str, result: dict[str, Any]) -> None:
    """Write a result so that it is there whole or not at all."""
    page = Path("feedback") / submission.slug.partition("-")[2] / f"{submission.lesson}.html"
    _write(out / page, result.pop("feedback"))
    result["feedback_file"] = page.as_posix()
    if result.pop("passing", False):
        return  # not the submission's fault: graded anew next time
    kept = {"key": key, "result": result}
    _write(out / "results" / f"{submission.slug}.json", json.dumps(kept, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    os.replace(fresh, path)


# --- over Dask -----------------------------------------------------------------------------


def _each(plan: Plan, jobs: Iterator[tuple[Any, dict[str, Any]]],
          total: int) -> Iterator[tuple[Any, dict[str, Any]]]:  # fmt: skip
    """Run jobs wherever they shall run, and give each result as it comes."""
    from helpers.instructor.grading import grade_one

    if not total:
        return
    if plan.workers == 0:
        for name, job in jobs:
            yield name, grade_one(job)
        return
    from distributed import Client, as_completed

    with _cluster(plan, total) as address, Client(address, set_as_default=False) as client:
        if plan.scheduler:
            client.wait_for_workers(1, timeout=60)
        names: dict[str, tuple[Any, dict[str, Any]]] = {}

        def send() -> Any:
            for name, job in jobs:
                # A key of its own: two equal submissions are two.
                future = client.submit(grade_one, job, key=f"grade-{secrets.token_hex(8)}")
                names[future.key] = (name, job)
                return future
            return None

        capacity = max(1, len(client.scheduler_info(n_workers=-1)["workers"])) * IN_FLIGHT
        first = [future for _ in range(capacity) if (future := send()) is not None]
        running = as_completed(first, loop=client.loop)
        for future in running:
            name, job = names.pop(future.key)
            try:
                result = future.result()
            except Exception as error:
                result = _lost(job, error)
            future.release()
            yield name, result
            if (following := send()) is not None:
                running.add(following)


def _lost(job: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    """The result of a submission whose workers died again and again."""
    from helpers.instructor import grading

    exercises = grading._nothing_passed(job)
    result = {
        "learner": job["learner"],
        "lesson": job["lesson"],
        "status": "not graded",
        "reason": f"its worker ended several times ({type(error).__name__})",
        "notes": [],
        "exercises": exercises,
        "score": 0,
        "most": sum(e["most"] for e in exercises.values()),
        "seconds": 0.0,
        "peak_mb": 0,
        "passing": True,
    }
    return result | {"feedback": grading._short_feedback(result)}


class _cluster:
    """The address of a scheduler: the one that was named, or one with workers of its own."""

    def __init__(self, plan: Plan, total: int) -> None:
        self.plan, self.total, self.cluster = plan, total, None

    def __enter__(self) -> str:
        if self.plan.scheduler:
            return self.plan.scheduler
        import logging

        import dask
        from distributed import LocalCluster

        # A worker that died is replaced; on a busy machine that takes longer than Dask's 15 s,
        # after which it would be given up, and the last one with it.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})

        workers = self.plan.workers or max(1, (os.cpu_count() or 2) - 1)
        self.cluster = LocalCluster(
            n_workers=min(workers, self.total),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # each submission has a limit of its own
            silence_logs=logging.CRITICAL,
        )
        return self.cluster.scheduler_address

    def __exit__(self, *exc: object) -> None:
        if self.cluster is not None:
            self.cluster.close(timeout=10)


def main(args: Any) -> int:
    """The command: grade, then say in a few lines what came of it."""
    given = {
        "seconds": args.seconds,
        "cell_seconds": args.cell_seconds,
        "memory_mb": args.memory_mb,
        "output_kb": args.output_kb,
    }
    limits = sandbox.Limits(**{k: v for k, v in given.items() if v is not None})
    plan = Plan(
        args.submissions,
        args.out,
        args.lessons or (),
        args.release,
        args.scheduler or "",
        args.workers,
        limits,
        args.again,
    )
    try:
        whole = grade(plan)
    except KeyboardInterrupt:
        print("\nInterrupted. What was graded is kept; type the same command again to go on.")
        return 130
    for result in whole.results:
        if result["status"] != "graded" or result["notes"]:
            notes = "; ".join(result["notes"])
            said = result["reason"] if result["status"] != "graded" else notes
            print(f"  {result['learner']}, {result['lesson']}: {said}")
    graded = sum(r["status"] == "graded" for r in whole.results)
    print(f"{graded} of {len(whole.results)} submissions graded.")
    print(f"Report: {plan.out / 'report.html'}   Gradebook: {plan.out / 'grades.csv'}")
    return 0
