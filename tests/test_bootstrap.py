"""Set-up on a bare Python: an empty clone, an interrupted run, a changed lock, what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import __main__ as entry
from helpers import bootstrap
from helpers.settings import ROOT, CourseError

# The Python that .venv was made from: bare, unless this is a conda environment.
BARE = getattr(sys, "_base_executable", None) or sys.executable
setup_test = pytest.mark.usefixtures("network")


@pytest.fixture(scope="module")
def network(require):
    require("network")


def bare_env(**more: str) -> dict[str, str]:
    """The environment of a new terminal: nothing of this environment, nothing precompiled."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "COURSE", "JUPYTER", "PYTHONPATH", "VIRTUAL_ENV"))
    }
    here = str(bootstrap.venv_python().parent)
    path = [p for p in inherited.get("PATH", "").split(os.pathsep) if p != here]
    # Compiling 13,000 files is for learners, who wait once; here it would be most of the time.
    return {**inherited, "PATH": os.pathsep.join(path), "UV_COMPILE_BYTECODE": "0", **more}


def run(clone: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BARE, *argv],
        cwd=clone,
        env=bare_env(**env),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=540,
    )


def make_clone(target: Path) -> Path:
    """What git would check out, with the changes of the working tree; nothing ignored."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run(
            [git, "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
    else:  # an unpacked archive
        listed = ["pyproject.toml", "requirements.lock", "README.md"]
        listed += [str(p.relative_to(ROOT)) for p in (ROOT / "helpers").rglob("*") if p.is_file()]
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return make_clone(tmp_path_factory.mktemp("a clone"))  # people have spaces in their paths


@pytest.fixture(scope="module")
def complete(clone, require) -> Path:
    require("network")
    done = run(clone, "-m", "helpers.bootstrap")
    assert done.returncode == 0, done.stdout + done.stderr
    return clone


# --- the story of one clone, in order -----------------------------------------------------


def test_help_and_doctor_need_no_setup(clone):
    assert "lab" in run(clone, "-m", "helpers", "--help").stdout
    report = run(clone, "-m", "helpers", "doctor").stdout
    assert "packages" in report
    if not bootstrap.inside():
        pytest.skip("the active environment is complete, so nothing is missing")
    assert "not set up here yet" in report
    status = run(clone, "-m", "helpers", "status")
    assert status.returncode == 1
    assert "Type: python3 -m helpers lab" in status.stderr
    assert not (clone / ".venv").exists()


@setup_test
@pytest.mark.slow
def test_interrupted_setup_can_be_repeated(clone):
    """Killed while packages are installed; then two at once finish it, one waiting."""
    first = subprocess.Popen(
        [BARE, "-m", "helpers.bootstrap"],
        cwd=clone,
        env=bare_env(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=os.name != "nt",
    )
    for line in first.stdout:
        if line.startswith("[3/3]"):
            break
    if os.name == "nt":
        first.kill()
    else:
        os.killpg(first.pid, 9)
    first.wait()
    assert not (clone / ".venv" / bootstrap.STAMP).exists()

    pair = [
        subprocess.Popen(
            [BARE, "-m", "helpers.bootstrap"],
            cwd=clone,
            env=bare_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=540)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    worked = next(text for text in said if "[3/3]" in text)
    assert worked.count("already there") == 2  # the environment and uv
    assert "\n".join(said).count("[3/3]") == 1  # the other one only waited


@pytest.mark.slow
def test_complete_environment_is_the_lock(complete):
    python = bootstrap.venv_python(complete / ".venv")
    code = (
        "from helpers import bootstrap as b;"
        "bad = [d for d in b.differences(list(b.locked_versions())) if 'missing' not in d];"
        "print(bad, b.differences(), b.inside(), b.ready())"
    )
    said = subprocess.run(
        [str(python), "-c", code], cwd=complete, env=bare_env(), capture_output=True, text=True
    )
    assert said.stdout.strip() == "[] [] True True", said.stderr


@pytest.mark.slow
def test_later_runs_start_at_once(complete):
    again = run(complete, "-m", "helpers.bootstrap")
    assert again.returncode == 0
    assert again.stdout == ""  # nothing to do, nothing to say


@pytest.mark.slow
def test_a_bare_python_goes_on_in_the_environment(complete, tmp_path):
    work = str(tmp_path / "work")
    said = run(complete, "-m", "helpers", "status", "--json", COURSE_WORK=work)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["proxy"]["state"] == "stopped"
    # The status needs a package that this Python lacks, unless the tests run in an active one.
    bare = run(complete, "-c", "import psutil")
    assert bare.returncode == 1 or not bootstrap.inside()


@pytest.mark.slow
def test_helpers_can_be_imported_from_any_folder(complete, tmp_path):
    python = bootstrap.venv_python(complete / ".venv")
    said = subprocess.run(
        [str(python), "-c", "import helpers; print(helpers.__file__)"],
        cwd=tmp_path,
        env=bare_env(),
        capture_output=True,
        text=True,
    )
    assert Path(said.stdout.strip()).parent.parent == complete.resolve()


@pytest.mark.slow
def test_changed_lock_is_noticed(complete):
    lock = complete / "requirements.lock"
    before = lock.read_text(encoding="utf-8")
    dropped = re.search(r"^nbval==(?:.*\\\n)+.*\n", before, re.M)
    lock.write_text(before.replace(dropped[0], ""), encoding="utf-8")
    try:
        update = run(complete, "-m", "helpers.bootstrap")
        assert update.returncode == 0, update.stderr
        assert "packages have changed" in update.stdout
        python = bootstrap.venv_python(complete / ".venv")
        gone = subprocess.run([str(python), "-c", "import nbval"], capture_output=True)
        assert gone.returncode != 0  # what the lock no longer names is taken out
    finally:
        lock.write_text(before, encoding="utf-8")


# --- what can be missing ------------------------------------------------------------------


def test_missing_venv_module_is_explained(tmp_path):
    clone = make_clone(tmp_path)
    broken = tmp_path / "debian"
    broken.mkdir()
    (broken / "ensurepip.py").write_text("raise ImportError('packaged separately')\n")
    said = run(clone, "-m", "helpers.bootstrap", PYTHONPATH=str(broken))
    assert said.returncode == 1
    assert re.search(r"sudo apt install python3\.\d+-venv", said.stderr)
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 10), (3, 15)])
def test_wrong_python_is_explained(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    monkeypatch.setattr(sys, "argv", ["helpers", "lab"])
    text = entry._wrong_python()
    assert "The course needs Python 3.11" in text
    assert "-m helpers lab" in text


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_right_python_is_let_through(monkeypatch, minor):
    monkeypatch.setattr(sys, "version_info", (3, minor, 0, "final", 0))
    assert entry._wrong_python() is None


def test_full_disk_is_explained(monkeypatch, tmp_path):
    usage = type("usage", (), {"free": 100 << 20})
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CourseError, match="Only 100 MB are free"):
        bootstrap.make(tmp_path / ".venv")


def test_pip_takes_over_where_uv_cannot(monkeypatch, tmp_path, capsys):
    tried = []

    def run_step(self, command):
        tried.append(command)
        if "sync" in command:
            raise CourseError("no route to the index")

    monkeypatch.setattr(bootstrap._Step, "run", run_step)
    bootstrap._install_lock(tmp_path)
    assert ["uv" in call for call in tried] == [True, False]
    assert all("--require-hashes" in call for call in tried)
    assert "with pip instead" in capsys.readouterr().out


def test_failed_step_names_the_reason_and_the_log(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "LOGS", tmp_path)
    code = "print('ERROR: no such host'); print('goodbye'); raise SystemExit(2)"
    with pytest.raises(CourseError) as caught, bootstrap._step(2, "Testing") as step:
        step.run([sys.executable, "-c", code])
    assert "Testing" in caught.value.what
    assert caught.value.why == "ERROR: no such host"
    assert "setup.log" in caught.value.todo


# --- the pieces ---------------------------------------------------------------------------


def test_ready_needs_stamp_lock_and_a_python(monkeypatch, tmp_path):
    venv = tmp_path / ".venv"
    python = bootstrap.venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    (venv / "pyvenv.cfg").write_text(f"home = {Path(BARE).parent}\n", encoding="utf-8")
    assert not bootstrap.ready(venv)
    (venv / bootstrap.STAMP).write_text(bootstrap.stamp_text(venv), encoding="utf-8")
    assert bootstrap.ready(venv)
    moved = venv.rename(tmp_path / "moved")
    assert not bootstrap.ready(moved)
    moved.rename(venv)
    (venv / "pyvenv.cfg").write_text("home = /gone/after/an/upgrade\n", encoding="utf-8")
    assert not bootstrap.ready(venv)


def test_differences_name_what_is_missing_and_what_is_other(monkeypatch):
    monkeypatch.setattr(
        bootstrap, "locked_versions", lambda lock: {"pytest": {"0.1"}, "no-such-thing": {"1"}}
    )
    other, missing = bootstrap.differences(["pytest", "no-such-thing"])
    assert re.fullmatch(r"pytest is \S+, the lock says 0\.1", other)
    assert missing == "no-such-thing is missing"


def test_this_environment_is_complete():
    assert bootstrap.differences() == []


# --- what only instructors need -----------------------------------------------------------


def test_the_extra_is_installed_once_by_its_hashes_and_again_after_a_new_lock(
    monkeypatch, tmp_path, capsys
):
    ran = []
    monkeypatch.setattr(bootstrap._Step, "run", lambda self, command: ran.append(command))
    monkeypatch.setattr(bootstrap, "differences", lambda *a, **k: [])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    (tmp_path / "env").mkdir()
    assert not bootstrap.instructor_ready()
    bootstrap.need_instructor()
    bootstrap.need_instructor()
    (command,) = ran
    assert "--require-hashes" in command
    assert command[-2:] == ["-r", str(bootstrap.INSTRUCTOR_LOCK)]
    assert "[1/1]" in capsys.readouterr().out

    # Bringing .venv to another requirements.lock takes the extra out.
    other = tmp_path / "requirements.lock"
    other.write_text("uv==1\n", encoding="utf-8")
    monkeypatch.setattr(bootstrap, "LOCK", other)
    assert not bootstrap.instructor_ready()


def test_an_extra_that_cannot_be_installed_is_not_taken_for_complete(monkeypatch, tmp_path):
    def fail(self, command):
        raise CourseError("A step of the set-up failed.")

    monkeypatch.setattr(bootstrap._Step, "run", fail)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(CourseError):
        bootstrap.need_instructor()
    assert not bootstrap.instructor_ready()
