"""The command line of the course: ``python3 -m helpers COMMAND``.

Reads the command on a bare Python, makes sure of the environment, then hands over to the
module that does the work. Nothing but the standard library is imported before that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from helpers import bootstrap, settings
from helpers.settings import CourseError

NEEDS = ("chromium", "node", "netns", "go", "network", "ollama", "instructor")

EPILOG = """\
Start here:
  python3 -m helpers lab      (Windows: py -m helpers lab)
  python3 -m helpers test

Any of these sets up .venv on its first run. Settings: BACKEND, BACKEND_KEY, OLLAMA_HOST,
HOSTED, HOSTED_MODEL, COURSE_TODAY, COURSE_WORK, COURSE_SERVICES; see README.md."""


def parser() -> argparse.ArgumentParser:
    """The argument parser; commands that pass arguments on say so in their usage."""
    top = argparse.ArgumentParser(
        prog="python3 -m helpers",
        description="The agent-integration workbook.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, **kw: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False, **kw)

    lab = add(
        "lab",
        "services up, JupyterLab open on the first lesson; other arguments go to JupyterLab",
        usage="python3 -m helpers lab [--no-browser] [--port PORT] [JupyterLab arguments]",
    )
    lab.add_argument("--no-browser", action="store_true", help="print the address only")
    lab.add_argument("--port", type=int, help="where JupyterLab listens (default 8888 or next)")

    test = add(
        "test",
        "all tests, notebooks included; other arguments go to pytest",
        usage="python3 -m helpers test [--require NAMES] [pytest arguments]",
    )
    test.add_argument(
        "--require",
        default="",
        type=_needs,
        help=f"comma-separated, of {', '.join(NEEDS)}: fail instead of skipping without them",
    )

    up = add("up", "start backend and proxy and keep them until 'down'")
    up.add_argument("--no-wait", action="store_true", help="return before they are ready")
    add("down", "stop backend and proxy")
    add("status", "what runs where").add_argument(
        "--json", action="store_true", help="as JSON, for programs"
    )
    logs = add("logs", "the last lines that the services wrote")
    logs.add_argument("name", nargs="?", choices=("backend", "proxy", "supervisor"))
    logs.add_argument("-n", "--lines", type=int, default=30)
    doctor = add("doctor", "what is wrong on this machine, and what to type")
    doctor.add_argument("--json", action="store_true", help="as JSON, for programs")
    doctor.add_argument("--page", action="store_true", help="write TROUBLESHOOTING.md instead")
    ask = add("ask", "one request through proxy and agent, with the call that was made")
    ask.add_argument("request", nargs="+", help='for example: "create a task to call mum"')
    ask.add_argument("--fresh", action="store_true", help="begin with an empty task list")
    progress = add("progress", "which exercises are done, and how the self-tests went")
    progress.add_argument("lessons", nargs="*", metavar="LESSON", help="L01 L02 …; default all")
    progress.add_argument("--reset", action="store_true", help="forget it, of all or these lessons")
    execute = add("execute", "re-execute notebooks, normalise them, check their rules")
    execute.add_argument("lessons", nargs="*", metavar="LESSON", help="L01 L02 …; default all")
    evaluate = add("evaluate", "measure the model on a file of cases")
    evaluate.add_argument(
        "cases",
        nargs="?",
        help="dev (the default), dev2, dev3, test, nothing, or a file of JSON lines; "
        "scenarios, scenarios_dev, _dev2 … _dev5: the agent, on whole conversations",
    )
    evaluate.add_argument("--model", help=f"name in model/, or a path (default {settings.MODEL})")
    evaluate.add_argument(
        "--schema", metavar="VARIANT", help="the same under another schema; all: under each"
    )
    evaluate.add_argument("--noise", type=int, metavar="SEED", help="light noise on the requests")
    evaluate.add_argument(
        "--free", action="store_true", help="a second time, without llama.cpp's grammar"
    )
    evaluate.add_argument(
        "--calibrate",
        action="store_true",
        help="what the probability of a call says about whether it is right (both models)",
    )
    evaluate.add_argument(
        "--single",
        type=Path,
        metavar="FILE",
        help="with scenarios: the report of single calls to predict from (default: measure them)",
    )
    evaluate.add_argument(
        "--surface",
        choices=("core", "rest", "cli", "mcp", "mcp-request"),
        default="core",
        help="with scenarios: how the agent is reached",
    )
    evaluate.add_argument("--failures", type=int, default=10, help="how many to show")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    evaluate.add_argument("--plot", type=Path, metavar="FILE", help="draw it: svg, png or pdf")
    add(
        "bench",
        "speed and memory; --storm: faults (L06); --load: many at once on the agent (L07)",
        usage="python3 -m helpers bench [--pairs N] [--out FILE] | --storm | --load [--users N] "
        "[--seconds S] [--every S] [--limit N] [--direct] [--out FILE]",
    )
    _instructor_commands(add)
    return top


def _instructor_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    run = add("run", "for instructors: run lessons with papermill, as they are or with parameters")
    run.add_argument("out", type=Path, metavar="OUT", help="folder for notebooks and summary.html")
    run.add_argument("--lessons", nargs="+", metavar="LESSON", help="L01 L02 …; default all")
    run.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebooks, such as MODEL; BACKEND takes a URL for everything; "
        "the same name again: once more with that value, side by side",
    )
    run.add_argument("--cell-timeout", type=int, default=600, metavar="SECONDS")
    release = add("release", "for instructors: nbgrader assignments of the lessons")
    release.add_argument("out", type=Path, metavar="OUT", help="folder for release/ and source/")
    release.add_argument("--lessons", nargs="+", metavar="LESSON", help="default: with exercises")
    grade = add("grade", "for instructors: grade what a class handed in")
    grade.add_argument("submissions", type=Path, help="one folder per learner, with L03_….ipynb")
    grade.add_argument("--out", type=Path, required=True, metavar="REPORT")
    grade.add_argument("--lessons", nargs="+", metavar="LESSON", help="default: all handed in")
    grade.add_argument("--release", type=Path, help="grade by this release, not by notebooks/")
    grade.add_argument("--scheduler", metavar="ADDRESS", help="of Dask; default: this machine")
    grade.add_argument("--workers", type=int, help="on this machine; 0: in this process")
    grade.add_argument("--again", action="store_true", help="also what has been graded")
    for name, what in (
        ("seconds", "for a submission"),
        ("cell-seconds", "for a cell"),
        ("memory-mb", "for a submission"),
        ("output-kb", "that a cell may show"),
    ):
        grade.add_argument(f"--{name}", type=int, help=what)


def _needs(text: str) -> str:
    unknown = sorted(set(filter(None, text.split(","))) - set(NEEDS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(NEEDS)}")
    return text


PASSES_ARGUMENTS_ON = {"lab", "test", "bench"}


def main(argv: list[str]) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done, 1 a problem that was explained, else pytest's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that lacks a sign shows "?"
    for name, value in settings.OFFLINE.items():
        os.environ.setdefault(name, value)
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and args.command not in PASSES_ARGUMENTS_ON:
        top.error(f"{args.command} does not know {' '.join(rest)}")
    try:
        if not _answers_without_setup(args.command):
            bootstrap.enter(argv)
        return globals()[f"_{args.command}"](args, rest) or 0
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _answers_without_setup(command: str) -> bool:
    """True for a command that has something to say before the first set-up."""
    if bootstrap.available() or bootstrap.inside():
        return False
    if command in ("down", "status", "logs"):
        raise CourseError(
            "Nothing runs here: the course is not set up in this folder yet.",
            todo="Type: python3 -m helpers lab",
        )
    return command == "doctor"


# --- commands -----------------------------------------------------------------------------


def _lab(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import services

    services.ensure(wait=())  # the slow imports happen while JupyterLab starts
    first = next(iter(sorted(settings.NOTEBOOKS.glob("L00*.ipynb"))), None)
    page = f"/lab/tree/{first.relative_to(settings.ROOT).as_posix()}" if first else "/lab"
    command = [
        *(sys.executable, "-m", "jupyterlab", "-y", "--log-level=WARN"),
        f"--ServerApp.root_dir={settings.ROOT}",
        f"--LabApp.default_url={page}",
        "--LabApp.extension_manager=readonly",  # the other one asks the package index
    ]
    if args.no_browser:
        command.append("--no-browser")
    if args.port:
        command.append(f"--port={args.port}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container's only user
    print("JupyterLab is starting. End it with Ctrl-C in this window.", flush=True)
    try:
        return _foreground([*command, *rest], jupyter_env())
    finally:
        services.release()


def jupyter_env() -> dict[str, str]:
    """The environment for JupyterLab: this environment's kernel, no update or news checks."""
    asked = os.environ.get("HOSTED", "").strip() == "1"
    env = {**os.environ, **settings.OFFLINE} if asked else settings.scrubbed(os.environ)
    extra = str(settings.ROOT / "helpers" / "jupyter")
    paths = [extra, *filter(None, [env.get("JUPYTER_CONFIG_PATH")])]
    env["JUPYTER_CONFIG_PATH"] = os.pathsep.join(paths)
    env["JUPYTER_PREFER_ENV_PATH"] = "1"
    env["PYTHONPATH"] = _with_root(env)
    return env


def _with_root(env: dict[str, str]) -> str:
    """PYTHONPATH under which a notebook's kernel, working in notebooks/, finds helpers."""
    return os.pathsep.join([str(settings.ROOT), *filter(None, [env.get("PYTHONPATH")])])


def _foreground(command: list[str], env: dict[str, str]) -> int:
    """Run a child that handles Ctrl-C; end it when this process is told to end."""
    child = subprocess.Popen(command, env=env, cwd=settings.ROOT)

    def end(signum: int, frame: object) -> None:
        child.terminate()

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), end)
    while True:
        try:
            return max(child.wait(), 0)
        except KeyboardInterrupt:
            continue


def test_command(rest: list[str]) -> list[str]:
    """The pytest call: tests and notebooks, unless the arguments name something else."""
    named = [a for a in rest if not a.startswith("-") and Path(a.split("::")[0]).exists()]
    # A notebook is one story: its cells stay on one worker, in one kernel.
    call = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    call += ["--no-loadscope-reorder"]  # the order of tests/conftest.py, not that of the most tests
    call += ["--nbval", "--nbval-cell-timeout", "120", *rest]
    return call if named else [*call, "tests", "notebooks"]


def _test(args: argparse.Namespace, rest: list[str]) -> int:
    if "instructor" in args.require.split(","):
        bootstrap.need_instructor()
    env = settings.scrubbed(os.environ)
    env["COURSE_REQUIRE"] = args.require
    env["PYTHONPATH"] = _with_root(env)
    env["JUPYTER_PREFER_ENV_PATH"] = "1"
    return _foreground(test_command(rest), env)


def _up(args: argparse.Namespace, rest: list[str]) -> None:
    from helpers import services

    print(services.up(wait=not args.no_wait))


def _down(args: argparse.Namespace, rest: list[str]) -> None:
    from helpers import services

    services.down()
    print("Backend and proxy are stopped.")


def _status(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import services

    status = services.status()
    print(json.dumps(status.json(), indent=2) if args.json else status)
    return 0


def _logs(args: argparse.Namespace, rest: list[str]) -> None:
    from helpers import services

    for name in [args.name] if args.name else ["backend", "proxy"]:
        print(f"--- {name}\n{services.logs(name, args.lines)}")


def _doctor(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import doctor

    if args.page:
        path = settings.ROOT / "TROUBLESHOOTING.md"
        path.write_text(doctor.page(), encoding="utf-8", newline="\n")
        print(f"{path.name} is written.")
        return 0
    return doctor.main(as_json=args.json)


def _ask(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import ask

    return ask.main(" ".join(args.request), fresh=args.fresh)


def _progress(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import progress

    return progress.main(args.lessons, args.reset)


def _execute(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import notebooks

    return notebooks.execute(args.lessons)


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from helpers import measure, scenarios

    if args.cases in scenarios.NAMES:
        return scenarios.main(args)
    if args.single:
        raise CourseError(
            "--single says nothing about single calls.",
            "It is what the rate of whole conversations is predicted from.",
            f"Type: python3 -m helpers evaluate {scenarios.NAME} --single {args.single}",
        )
    measure.main(args)


def _bench(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers import bench

    return bench.main(rest)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from helpers.instructor import batch

    return batch.main(args.out, args.lessons or (), args.parameter, args.cell_timeout)


def _release(args: argparse.Namespace, rest: list[str]) -> int:
    bootstrap.need_instructor()
    from helpers.instructor import release

    return release.main(args.out, args.lessons or ())


def _grade(args: argparse.Namespace, rest: list[str]) -> int:
    bootstrap.need_instructor()
    from helpers.instructor import classroom

    return classroom.main(args)
