"""From a bare Python to the environment of ``requirements.lock``, once.

An active environment that already has the course's packages at the lock's versions is used
as it is; otherwise ``.venv`` is made. Every step can be interrupted and repeated: the stamp
that says "complete" is written last. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from helpers.settings import LOGS, ROOT, CourseError

VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
INSTRUCTOR_LOCK = ROOT / "requirements-instructor.lock"
STAMP = "course-stamp"
INSTRUCTOR_STAMP = "course-instructor-stamp"
NEEDED_MB = 2000  # measured: 1.4 GB installed, the rest is room for downloads


# --- what the lock says -------------------------------------------------------------------


def locked_versions(lock: Path = LOCK) -> dict[str, set[str]]:
    """Normalised package name → its version, or versions where a marker chooses."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.M):
        found.setdefault(normalised(name), set()).add(version)
    return found


def normalised(name: str) -> str:
    """A package name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_names(project: Path = PROJECT, extra: str = "") -> list[str]:
    """Names of the packages that the course itself asks for, or one of its extras, normalised."""
    import tomllib

    told = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    wanted = told["optional-dependencies"][extra] if extra else told["dependencies"]
    return [normalised(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in wanted]


def differences(names: list[str] | None = None, lock_file: Path = LOCK) -> list[str]:
    """What the running environment lacks or has in another version, in words.

    Args:
        names: Packages to look at; the course's direct requirements by default. An active
            conda environment may hold newer versions of what those stand on.
        lock_file: The lock to compare with.
    """
    lock = locked_versions(lock_file)
    out = []
    for name in direct_names() if names is None else names:
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            out.append(f"{name} is missing")
            continue
        if have not in lock.get(name, {have}):
            out.append(f"{name} is {have}, the lock says {' or '.join(sorted(lock[name]))}")
    return out


# --- the environment ----------------------------------------------------------------------


def venv_python(venv: Path = VENV) -> Path:
    """The interpreter inside a virtual environment."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def inside(venv: Path = VENV) -> bool:
    """True if this very interpreter belongs to the environment."""
    return venv.is_dir() and os.path.realpath(sys.prefix) == os.path.realpath(venv)


def stamp_text(venv: Path = VENV) -> str:
    """What a complete environment's stamp holds: the lock's hash and the folder.

    The folder is there because an environment that was moved has broken scripts.
    """
    return f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()}\n{venv.resolve()}\n"


def ready(venv: Path = VENV) -> bool:
    """True if the environment is complete and made from the present lock."""
    try:
        stamp = (venv / STAMP).read_text(encoding="utf-8")
    except OSError:
        return False
    return stamp == stamp_text(venv) and usable(venv)


def usable(venv: Path = VENV) -> bool:
    """True if the environment's Python still exists (an upgrade may have removed it)."""
    try:
        config = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    home = re.search(r"^home\s*=\s*(.+)$", config, re.M)
    return bool(home) and Path(home[1].strip()).is_dir() and venv_python(venv).exists()


def available() -> bool:
    """True if a command can run now, without any set-up."""
    return ready() or (not inside() and not differences())


def enter(argv: list[str]) -> None:
    """Return inside a complete environment, or continue the command in one and never return.

    Args:
        argv: Arguments of ``python3 -m helpers``, to be repeated in the environment.

    Raises:
        CourseError: When the environment cannot be made.
    """
    if inside():
        if not ready():
            make()
        activate()
        return
    if not differences():
        return
    if not ready():
        make()
    activate()
    command = [str(venv_python()), "-m", "helpers", *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        sys.exit(_call(command))
    os.execv(command[0], command)


def activate() -> None:
    """Let children find the environment's programs, as an activated shell would."""
    os.environ["VIRTUAL_ENV"] = str(VENV)
    folder = str(venv_python().parent)
    path = os.environ.get("PATH", "").split(os.pathsep)
    if path[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, *path])
    os.environ.pop("PYTHONHOME", None)
    # Windows consoles and files would otherwise use a code page that lacks most signs.
    os.environ.setdefault("PYTHONUTF8", "1")


def instructor_ready() -> bool:
    """True if the running environment has what ``release`` and ``grade`` stand on."""
    try:
        stamp = (Path(sys.prefix) / INSTRUCTOR_STAMP).read_text(encoding="utf-8")
    except OSError:
        return False
    return stamp == _instructor_stamp() and not differences(
        direct_names(extra="instructor"), INSTRUCTOR_LOCK
    )


def need_instructor() -> None:
    """Bring the extra ``instructor`` into the running environment, unless it is there.

    Learners never install it. What it adds is in ``requirements-instructor.lock``, with
    hashes, at versions that leave those of ``requirements.lock`` as they are.

    Raises:
        CourseError: The packages do not come.
    """
    if instructor_ready():
        return
    prefix = Path(sys.prefix)
    with _only_one(prefix.with_name(prefix.name + ".lock")):
        if instructor_ready():
            return
        (prefix / INSTRUCTOR_STAMP).unlink(missing_ok=True)
        with _step(1, "Installing what instructors need: nbgrader, Dask (once)", total=1) as step:
            install = ["pip", "install", "--python", sys.executable, "--require-hashes"]
            step.run([sys.executable, "-m", "uv", *install, "-r", str(INSTRUCTOR_LOCK)])
        (prefix / INSTRUCTOR_STAMP).write_text(_instructor_stamp(), encoding="utf-8")


def _instructor_stamp() -> str:
    """Both locks: bringing ``.venv`` to a new requirements.lock removes the extra."""
    return hashlib.sha256(LOCK.read_bytes() + INSTRUCTOR_LOCK.read_bytes()).hexdigest() + "\n"


def _call(command: list[str]) -> int:
    """Run a child that handles Ctrl-C itself; execv on Windows would detach it."""
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


# --- set-up -------------------------------------------------------------------------------


def make(venv: Path = VENV) -> None:
    """Make or complete the environment, one progress line per step.

    Raises:
        CourseError: For a missing venv module, a full disk, or packages that do not come.
    """
    with _only_one(venv.with_name(venv.name + ".lock")):
        if ready(venv):  # another set-up finished while this one waited
            return
        _check_disk(venv)
        changed = (venv / STAMP).exists()
        print(
            "The course's packages have changed: bringing .venv up to date."
            if changed
            else "First run: setting up .venv in this folder. This happens once.",
            flush=True,
        )
        try:
            moved = changed and str(venv.resolve()) not in (venv / STAMP).read_text("utf-8")
            (venv / STAMP).unlink(missing_ok=True)
            _make_venv(venv, moved)
            _install_uv(venv)
            _install_lock(venv)
        except KeyboardInterrupt:
            print(flush=True)
            raise CourseError(
                "The set-up was interrupted.",
                "What was downloaded so far is kept.",
                "Type the same command again to go on.",
            ) from None
        _make_importable(venv)
        partial = venv / (STAMP + ".new")
        partial.write_text(stamp_text(venv), encoding="utf-8")
        partial.replace(venv / STAMP)


def _make_venv(venv: Path, moved: bool) -> None:
    python = str(venv_python(venv))
    works = usable(venv) and not moved and _quiet([python, "-c", "import encodings"])
    with _step(1, f"Making .venv with Python {sys.version.split()[0]}") as step:
        if works:
            step.note = "already there"
            if not _quiet([python, "-c", "import pip"]):
                step.run([python, "-m", "ensurepip"])
            return
        if inside(venv):
            raise CourseError(
                "The environment .venv is broken, and this command runs inside it.",
                "It cannot replace itself.",
                "Type: deactivate, delete the folder .venv, and type the same command again.",
            )
        try:
            import ensurepip  # noqa: F401 - Debian ships Python without it
            import venv as _venv  # noqa: F401
        except ImportError:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise CourseError(
                "This Python cannot make virtual environments.",
                "Its venv module is not installed; Debian and Ubuntu package it separately.",
                f"Type: sudo apt install python{version}-venv, then the same command again.",
            ) from None
        step.run([sys.executable, "-m", "venv", "--clear", str(venv)])


def _install_uv(venv: Path) -> None:
    """Let pip install the lock's own installer, checking its hash."""
    wanted = re.search(r"^uv==(?:.*\\\n)+.*", LOCK.read_text(encoding="utf-8"), re.M)
    with _step(2, "Installing the installer, uv") as step:
        version = re.match(r"uv==([^\s;\\]+)", wanted[0])[1]
        if _output([str(venv_python(venv)), "-m", "uv", "--version"]).split()[1:2] == [version]:
            step.note = "already there"
            return
        requirement = venv / "uv-requirement.txt"
        requirement.write_text(wanted[0] + "\n", encoding="utf-8")
        step.run([*_pip(venv), "--require-hashes", "-r", str(requirement)])


def _install_lock(venv: Path) -> None:
    """Install the lock with uv; where uv cannot (an odd network, a private index), with pip."""
    text = "Installing the packages of requirements.lock (about 240, 1 GB)"
    python = str(venv_python(venv))
    with _step(3, text) as step:
        sync = ["-m", "uv", "pip", "sync", "--python", python, "--require-hashes", str(LOCK)]
        try:
            step.run([python, *sync])
        except CourseError:
            step.note = "uv could not; with pip instead"
            step.run([*_pip(venv), "--require-hashes", "-r", str(LOCK)])


def _make_importable(venv: Path) -> None:
    """Let ``import helpers`` work in every notebook, wherever its kernel was started."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_output([str(venv_python(venv)), "-c", ask]).strip())
    (site / "course.pth").write_text(f"{ROOT}\n", encoding="utf-8")


def _pip(venv: Path) -> list[str]:
    return [
        *(str(venv_python(venv)), "-m", "pip", "install", "--no-input"),
        *("--disable-pip-version-check", "--quiet"),
    ]


def _check_disk(venv: Path) -> None:
    free = shutil.disk_usage(venv.parent).free >> 20
    if free < NEEDED_MB and not (venv / "pyvenv.cfg").exists():
        raise CourseError(
            f"Only {free} MB are free on the disk that holds this folder.",
            f"The course's packages need about {NEEDED_MB} MB.",
            "Free some space, or move the folder to another disk, and try again.",
        )


class _Step:
    """One line of progress: text, a running count of seconds on a terminal, the outcome."""

    def __init__(self, number: int, text: str, total: int) -> None:
        self.head = f"[{number}/{total}] {text}"
        self.note = ""

    def run(self, command: list[str]) -> None:
        """Run one command, its output into the log.

        Raises:
            CourseError: When it fails, with the last thing it said.
        """
        env = {
            "UV_COMPILE_BYTECODE": "1",  # else the first lesson waits for it
            "UV_SYSTEM_CERTS": "1",  # networks that bring a certificate of their own
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
        }
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / "setup.log"
        with open(log, "a", encoding="utf-8") as out:
            out.write(f"\n$ {' '.join(command)}\n")
            out.flush()
            start = out.tell()
            child = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
            )
            try:
                code = child.wait()
            except BaseException:
                # Ctrl-C reached the child as well; half-written files must not grow on.
                child.terminate()
                child.wait()
                raise
        if code:
            with open(log, encoding="utf-8", errors="replace") as said:
                said.seek(start)
                lines = [line.strip() for line in said.read().splitlines() if line.strip()]
            telling = [line for line in lines if "error" in line.lower()] or lines
            raise CourseError(
                f"A step of the set-up failed: {self.head.split('] ', 1)[1]}.",
                telling[-1] if telling else f"The command ended with status {code}.",
                "Check the network and type the same command again; it goes on where it "
                f"stopped.\nEverything that was said is in {_short(log)}.",
            )


@contextlib.contextmanager
def _step(number: int, text: str, total: int = 3) -> Iterator[_Step]:
    step = _Step(number, text, total)
    start = time.monotonic()
    done = threading.Event()
    live = sys.stdout.isatty()
    print(step.head + (" ..." if live else ""), end="" if live else "\n", flush=True)

    def tick() -> None:
        while not done.wait(1):
            print(f"\r{step.head} ... {time.monotonic() - start:.0f} s", end="", flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    if live:
        thread.start()
    try:
        yield step
    except BaseException:
        done.set()
        print(" failed" if live else "      failed", flush=True)
        raise
    done.set()
    if live:
        thread.join()
    outcome = step.note or "done"
    took = f"{outcome}, {time.monotonic() - start:.0f} s"
    print(f"\r{step.head} ... {took}" if live else f"      {took}", flush=True)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the set-up to one process; the operating system frees it if that one dies."""
    with open(path, "a+b") as handle:
        waited = False
        while not _try_lock(handle):
            if not waited:
                print("Another set-up is running in this folder; waiting for it.", flush=True)
                waited = True
            time.sleep(0.5)
        yield


def _try_lock(handle) -> bool:
    # filelock does the same, but is not installed yet here.
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _quiet(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(ROOT))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    # "python3 -m helpers.bootstrap": only the set-up, for images that are built ahead.
    try:
        make()
    except CourseError as error:
        sys.exit(str(error))
