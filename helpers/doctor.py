"""What is wrong on this machine, and what to type.

Runs on a bare Python too, because a failed set-up is what it is most often asked about;
it then leaves out what only the environment can look at. All that it can find wrong is in
``TROUBLES``, of which TROUBLESHOOTING.md is made: ``python3 -m helpers doctor --page``.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import bootstrap, external, settings
from helpers.settings import CourseError, Settings

OK, NOTE, PROBLEM = "ok", "note", "problem"
SIGNS = {OK: "ok  ", NOTE: "note", PROBLEM: "BAD "}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        state: ``"ok"``, ``"note"`` (works all the same, or optional) or ``"problem"``.
        text: What was found.
        todo: What to type or do; empty when there is nothing to do.
    """

    name: str
    state: str
    text: str
    todo: str = ""


@dataclass(frozen=True)
class Trouble:
    """Something that may be wrong.

    Attributes:
        title: Its heading on the troubleshooting page.
        name: What was looked at, for :class:`Finding`; this and the next two are formats.
        state: ``"note"`` or ``"problem"``.
        text: What the report says.
        todo: What to type or do; empty when there is nothing to do.
        why: How it comes about, and what else helps: for the page.
    """

    title: str
    name: str
    state: str
    text: str
    todo: str
    why: str

    def found(self, **values: object) -> Finding:
        """The line of a report in which it was found."""
        parts = (part.format(**values) for part in (self.text, self.todo))
        return Finding(self.name.format(**values), self.state, *parts)


TROUBLES = {
    "python-new": Trouble(
        "Python is newer than the tested ones", "Python", NOTE,
        "{version}; the course is tested on 3.11 to 3.13", "",
        "All packages exist for 3.14, and the course starts on it. If something odd happens, set "
        "the course up with 3.13: remove `.venv`, then `python3.13 -m helpers lab`. On a Python "
        "older than 3.11 every command says so and names one that you have.",
    ),
    "lock-changed": Trouble(
        "The packages are not those of requirements.lock", "packages", NOTE,
        "requirements.lock has changed since .venv was made, or the folder has moved",
        "any command brings it up to date, such as: python3 -m helpers status",
        "Usual after `git pull`, and after the folder was renamed: an environment holds absolute "
        "paths. The course notices and makes `.venv` anew.",
    ),
    "no-environment": Trouble(
        "The course is not set up yet", "packages", NOTE,
        "the course is not set up here yet", "python3 -m helpers lab",
        "The first command makes `.venv` in the course's folder, mostly by downloading. If it was "
        "interrupted, type the same again: it goes on. Behind a company's proxy set "
        "`HTTPS_PROXY`; for a mirror of the package index set both `PIP_INDEX_URL` and "
        "`UV_DEFAULT_INDEX`, since pip brings uv and uv the rest.",
    ),
    "no-venv": Trouble(
        "Python cannot make environments", "venv", PROBLEM,
        "this Python has no venv module", "sudo apt install python{version}-venv",
        "Debian and Ubuntu keep this part of Python in a package of its own. With conda, activate "
        "an environment made from `environment.yml` instead; then none is made.",
    ),
    "folder": Trouble(
        "The folder cannot be written to", "folder", PROBLEM,
        "this folder cannot be written to", "clone the course into a folder of your own",
        "It belongs to somebody else, or the disk is mounted read-only. Only `work/`, your skill "
        "and your notebooks are written, all of them in this folder.",
    ),
    "long-path": Trouble(
        "The folder's path is long (Windows)", "folder", NOTE,
        "the folder's path is long, and Windows limits paths to 260 characters",
        r"move it to a short path such as C:\course",
        "Some packages have deep folders, and an installation may stop in the middle. Allowing "
        "long paths in the registry (`LongPathsEnabled`) helps as well.",
    ),
    "disk": Trouble(
        "The disk is nearly full", "disk", PROBLEM,
        "{free} MB free, {need} MB needed", "free some space, or move the folder",
        "The packages take most of it. `.venv` can be removed at any time; the next command makes "
        "it anew.",
    ),
    "memory-unknown": Trouble(
        "The memory could not be read", "memory", NOTE,
        "unknown on this system", "",
        "Nothing is wrong. JupyterLab, the services and a kernel need about 1.5 GB together.",
    ),
    "memory": Trouble(
        "There is little memory", "memory", NOTE,
        "{total:.1f} GB; JupyterLab, the services and a kernel need about 1.5 GB",
        "close other programs while the course runs",
        "Kernels of lessons that you have finished keep their memory: shut them down in "
        "JupyterLab's list of running kernels.",
    ),
    "model-missing": Trouble(
        "A model file is missing", "model", PROBLEM,
        "model/{file} is missing", "git checkout -- model/{file}",
        "The models are part of the repository; a download of single files leaves them out.",
    ),
    "model-broken": Trouble(
        "A model file is not a model", "model", PROBLEM,
        "model/{file} is not a GGUF file", "git checkout -- model/{file}",
        "Often a page of a web site that was saved in its place, or a download that was cut off.",
    ),
    "model-other": Trouble(
        "A model file is another one", "model", PROBLEM,
        "model/{file} is not the one that the course ships (hash differs)",
        "git checkout -- model/{file}",
        "The printed outputs belong to the model of the course. If you have trained one yourself, "
        "everything works, and answers may differ from the printed ones.",
    ),
    "setting": Trouble(
        "A setting is not understood", "settings", PROBLEM,
        "{error}", "{todo}",
        "The report names the variable, what it holds and what it may hold; README.md lists them "
        "all. A variable may have been set for another program: look at your shell's start files.",
    ),
    "hosted-no-key": Trouble(
        "A hosted model is wanted and there is no key", "hosted", PROBLEM,
        "HOSTED=1, but there is no OPENAI_API_KEY",
        "set OPENAI_API_KEY as well, or unset HOSTED",
        "The course needs neither. With both, calls go to a hosted model where a lesson offers it.",
    ),
    "hosted": Trouble(
        "A hosted model is in use", "hosted", NOTE,
        "calls to {model} are allowed and cost money", "unset HOSTED to stay on this machine",
        "You have asked for it with `HOSTED=1`. A key alone is never used.",
    ),
    "ollama-down": Trouble(
        "Ollama does not answer", "ollama", PROBLEM,
        "BACKEND=ollama, but nothing answers at {url}", "ollama serve   (or unset BACKEND)",
        "If it listens elsewhere, say so with `OLLAMA_HOST`.",
    ),
    "ollama-model": Trouble(
        "Ollama does not have the model", "ollama", PROBLEM,
        "it has no model {model}", "cd model && ollama create {model} -f Modelfile",
        "The Modelfile holds the template by which this model was trained; a model that was only "
        "imported answers badly.",
    ),
    "backend-down": Trouble(
        "The server in BACKEND does not answer", "backend", PROBLEM,
        "nothing answers at {url}", "check BACKEND and that server, or unset BACKEND",
        "`BACKEND` holds the address above `/chat/completions`, usually up to and including `/v1`. "
        "A server on another machine may be behind a firewall.",
    ),
    "backend-key": Trouble(
        "The server in BACKEND asks for a key", "backend", PROBLEM,
        "{url} refuses us: {why}", "set BACKEND_KEY to that server's key, or unset BACKEND",
        "`BACKEND_KEY` is read only when `BACKEND` is a URL, and sent to that server only.",
    ),
    "port": Trouble(
        "A port is in use", "port", NOTE,
        "{port} is in use, so {what} takes another", "",
        "Nothing to do: `python3 -m helpers status` shows where the services are, and lessons find "
        "them by themselves. Another course folder that is running is the usual reason.",
    ),
    "service-failed": Trouble(
        "A service could not start", "{service}", PROBLEM,
        "{error}", "python3 -m helpers logs {service}, then: python3 -m helpers up",
        "The last lines of the log nearly always name the reason. A virus scanner that looks into "
        "every file can make the first start slow: try once more.",
    ),
    "service-silent": Trouble(
        "A service runs and does not answer", "{service}", PROBLEM,
        "does not answer at {url}",
        "python3 -m helpers logs {service}, then: python3 -m helpers up",
        "After a laptop slept, or when the machine is very busy. `python3 -m helpers down`, then "
        "`up`, starts both services afresh; your tasks and your progress are in files and stay.",
    ),
    "service-stopped": Trouble(
        "A service is not running", "{service}", NOTE,
        "not running; lab, ask, test and a lesson's first cell start it", "",
        "Nothing to do. Services also end when the last program that uses them does.",
    ),
    "key-open": Trouble(
        "Others can read the proxy's key", "key", PROBLEM,
        "other users of this machine can read the proxy's key", "chmod 600 {file}",
        "Its mode was changed, or the file was copied. For a new key, type "
        "`python3 -m helpers down`, remove the file, and type `python3 -m helpers up`.",
    ),
    "optional": Trouble(
        "Something optional is missing", "{name}", NOTE,
        "not found; {use}", "",
        "Nothing to do. Git restores files of the course, Ollama is another backend, and Node and "
        "Chromium are used by tests only: without them these tests are skipped.",
    ),
}  # fmt: skip


def page() -> str:
    """The troubleshooting page, TROUBLESHOOTING.md."""
    parts = [PAGE]
    for trouble in TROUBLES.values():
        shown = {key: getattr(trouble, key) for key in ("name", "text", "todo")}
        for key, text in shown.items():
            shown[key] = re.sub(r"\{(\w+)(?::[^}]*)?\}", lambda found: found[1].upper(), text)
        says = f"{SIGNS[trouble.state]}  {shown['name']:<12} {shown['text']}"
        if shown["todo"]:
            says += f"\n{'':<19}-> {shown['todo']}"
        parts.append(f"### {trouble.title}\n\n```text\n{says}\n```\n\n{fill(trouble.why)}\n")
    return "\n".join(parts)


def fill(text: str) -> str:
    """A paragraph in lines of at most 100 characters."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


PAGE = """\
# Troubleshooting

First of all, type

```console
python3 -m helpers doctor
```

(on Windows `py -m helpers doctor`). It looks at Python, the packages, disk, memory, the models, the
settings, the ports and the services, and for each thing that is wrong it says what to type. This
page holds the same, with the reasons. It is made from the doctor's own list by
`python3 -m helpers doctor --page`.

## In a notebook

### A name is not defined

`NameError: name 'lesson' is not defined`: the kernel has been started anew, or the cells above were
not run. Choose *Run All Above Selected Cell*, or *Restart Kernel and Run All Cells*: your exercises
are text in the notebook and stay.

### A check says that mine is not filled in, and it is

The check sees what the kernel has run last. Run the cell with your answer, then the check.

### A cell does not come to an end

The square in the toolbar interrupts it. The first cell of a lesson waits for the services, which
take up to a minute on a slow machine; any later cell that needs longer says so.

### Widgets are not drawn

Run the cell: what is stored in the file is only a picture of its state. Every such cell also prints
what it has to say without widgets.

### I want to begin a lesson again

`git checkout -- notebooks/L01_custom_models_as_backends.ipynb` restores the notebook, your answers
in it lost. `python3 -m helpers progress --reset L01` forgets your progress in it.

## What the doctor finds

BAD is a problem; a note works all the same or concerns something optional. Words in capitals stand
for what the report fills in.
"""


def main(as_json: bool = False) -> int:
    """Print the report.

    Returns:
        1 if there is a problem, else 0; notes are not problems.
    """
    findings = examine()
    problems = [f for f in findings if f.state == PROBLEM]
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
        return int(bool(problems))
    for finding in findings:
        print(f"{SIGNS[finding.state]}  {finding.name:<12} {finding.text}")
        if finding.todo:
            print(f"{'':<19}-> {finding.todo}")
    word = "problem" if len(problems) == 1 else "problems"
    print(f"\n{len(problems)} {word}." if problems else "\nEverything that the course needs works.")
    return int(bool(problems))


def examine() -> list[Finding]:
    """Every check, in the order in which to mend what they find."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        *(_python, _environment, _folder, _disk, _memory, _models, _settings),
        *(_ports, _services, _optional),
    ]
    found = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # a check that breaks must not hide the others
            name = check.__name__.strip("_")
            found.append(Finding(name, NOTE, f"could not be checked: {error!r}"))
    return found


# --- the machine --------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    text = f"{sys.version.split()[0]} on {sys.platform}"
    if sys.version_info[:2] > (3, 13):
        yield TROUBLES["python-new"].found(version=text)
    else:
        yield Finding("Python", OK, text)


def _environment() -> Iterator[Finding]:
    if bootstrap.ready():
        yield Finding("packages", OK, ".venv matches requirements.lock")
    elif not bootstrap.differences():
        yield Finding("packages", OK, "the active environment matches requirements.lock")
    elif (bootstrap.VENV / bootstrap.STAMP).exists():
        yield TROUBLES["lock-changed"].found()
    else:
        yield TROUBLES["no-environment"].found()
        if importlib.util.find_spec("ensurepip") is None:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            yield TROUBLES["no-venv"].found(version=version)


def _folder() -> Iterator[Finding]:
    root = settings.ROOT
    if not os.access(root, os.W_OK):
        yield TROUBLES["folder"].found()
    elif os.name == "nt" and len(str(root)) > 80 and not _long_paths():
        yield TROUBLES["long-path"].found()
    else:
        yield Finding("folder", OK, "writable")


def _long_paths() -> bool:
    import winreg

    with winreg.OpenKey(
        winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem"
    ) as key:
        return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(settings.ROOT).free >> 20
    need = 300 if bootstrap.available() else bootstrap.NEEDED_MB
    if free < need:
        yield TROUBLES["disk"].found(free=free, need=need)
    else:
        yield Finding("disk", OK, f"{free / 1024:.0f} GB free")


def _memory() -> Iterator[Finding]:
    total = total_memory_mb()
    if total is None:
        yield TROUBLES["memory-unknown"].found()
    elif total < 2500:
        yield TROUBLES["memory"].found(total=total / 1024)
    else:
        yield Finding("memory", OK, f"{total / 1024:.0f} GB")


def total_memory_mb() -> int | None:
    """Physical memory in MiB, or None where the system does not say."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if os.name == "nt":
        kilobytes = ctypes.c_ulonglong()
        if ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes)):
            return kilobytes.value >> 10
    return None


# --- the course ---------------------------------------------------------------------------


def _models() -> Iterator[Finding]:
    listed = settings.MODEL_DIR / "hashes.json"
    hashes = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    for name in (settings.MODEL, settings.MINI):
        path = settings.MODEL_DIR / f"{name}.gguf"
        if not path.exists():
            yield TROUBLES["model-missing"].found(file=path.name)
            continue
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        wanted = str(hashes.get(path.name, "")).removeprefix("sha256:")
        if not data.startswith(b"GGUF"):
            yield TROUBLES["model-broken"].found(file=path.name)
        elif wanted and wanted != digest:
            yield TROUBLES["model-other"].found(file=path.name)
        else:
            known = "" if wanted else ", no hash to compare with"
            yield Finding("model", OK, f"{path.name}, {len(data) / 1e6:.1f} MB{known}")


def _settings() -> Iterator[Finding]:
    try:
        chosen = Settings.from_env()
    except CourseError as error:
        yield TROUBLES["setting"].found(error=f"{error.what} {error.why}", todo=error.todo)
        return
    yield Finding("settings", OK, f"backend {chosen.backend}")
    asked = os.environ.get("HOSTED", "").strip() == "1"
    has_key = bool(os.environ.get("OPENAI_API_KEY", "").strip())
    if asked and not has_key:
        yield TROUBLES["hosted-no-key"].found()
    elif asked:
        yield TROUBLES["hosted"].found(model=chosen.hosted_model)
    else:
        text = "off; the OPENAI_API_KEY in the environment is not used" if has_key else "off"
        yield Finding("hosted", OK, text)
    if chosen.backend != "llama.cpp":
        yield _external(chosen)


def _external(chosen: Settings) -> Finding:
    url, ollama = external.address(chosen), chosen.backend == "ollama"
    problem = external.problem(chosen.backend, url, chosen.backend_key, timeout=3)
    if problem is None:
        has = f" and has {settings.MODEL}" if ollama else ""
        return Finding("ollama" if ollama else "backend", OK, f"answers at {url}{has}")
    if problem.kind == "model":
        return TROUBLES["ollama-model"].found(model=settings.MODEL)
    if problem.kind == "key":
        return TROUBLES["backend-key"].found(url=url, why=problem.why)
    trouble = TROUBLES["ollama-down"] if ollama else TROUBLES["backend-down"]
    return trouble.found(url=url)


# --- what runs ----------------------------------------------------------------------------


def _ports() -> Iterator[Finding]:
    ours = _running().get("proxy", {}).get("url") or ""
    for port, what in ((4000, "the proxy"), (8888, "JupyterLab")):
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            yield Finding("port", OK, f"{port} is free")
        elif ours.endswith(f":{port}"):
            yield Finding("port", OK, f"{port} is the course's proxy")
        else:
            yield TROUBLES["port"].found(port=port, what=what)


def _running() -> dict[str, dict]:
    """The services' status as data; empty where the environment cannot tell."""
    if importlib.util.find_spec("psutil") is None:
        return {}
    from helpers import services

    return services.status().json()


def _services() -> Iterator[Finding]:
    now = _running()
    for name in ("backend", "proxy"):
        one = now.get(name) or {}
        if one.get("healthy"):
            yield Finding(name, OK, f"answers at {one.get('url')}")
        elif one.get("error"):
            yield TROUBLES["service-failed"].found(service=name, error=one["error"])
        elif one.get("state") == "starting":
            yield Finding(name, OK, "is starting")
        elif one.get("url"):
            yield TROUBLES["service-silent"].found(service=name, url=one["url"])
        else:
            yield TROUBLES["service-stopped"].found(service=name)
    key = Path((now.get("proxy") or {}).get("key_file") or "")
    if os.name != "nt" and key.is_file() and key.stat().st_mode & 0o077:
        yield TROUBLES["key-open"].found(file=key)


def _optional() -> Iterator[Finding]:
    for name, path, use in (
        ("git", shutil.which("git"), "restores files of the course"),
        ("Ollama", shutil.which("ollama"), "only for BACKEND=ollama"),
        ("Node", shutil.which("node"), "only for a few tests"),
        ("Chromium", find_chromium(), "only for the browser tests"),
    ):
        missing = TROUBLES["optional"].found(name=name, use=use)
        yield Finding(name, OK, "found") if path else missing


def find_chromium() -> str | None:
    """A Chromium, Chrome or Edge that can be driven; ``CHROMIUM`` names one outright."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge")
    usual = [
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ]
    for base in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        if os.environ.get(base):
            usual.append(os.environ[base] + r"\Google\Chrome\Application\chrome.exe")
            usual.append(os.environ[base] + r"\Microsoft\Edge\Application\msedge.exe")
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, names), *usual]
    return next((str(path) for path in candidates if path and Path(path).is_file()), None)


def namespace_command() -> list[str] | None:
    """The words to put before a command so that it sees the loopback network only.

    None where this system has no network namespaces or does not allow them.
    """
    if not sys.platform.startswith("linux") or not shutil.which("ip"):
        return None
    for flags in (["-n"], ["-r", "-n"]):
        prefix = ["unshare", *flags, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        try:
            if subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode == 0:
                return prefix
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None
