"""The command line and the settings: what they take, what they refuse, what stays quiet."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from conftest import needed
from helpers import bootstrap, cli, settings
from helpers.settings import ROOT, CourseError, Settings


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Commands run in this process, without looking for an environment."""
    monkeypatch.setattr(bootstrap, "enter", lambda argv: None)
    monkeypatch.chdir(ROOT)


# --- quick and quiet ----------------------------------------------------------------------


def test_imports_of_helpers_are_instant_and_bare():
    """Under 50 ms of this process's own time, and nothing that has to be installed first.

    Processor time, the quickest of five: beside other tests, the clock would measure those.
    """
    code = (
        "import sys, time; t = time.process_time(); import helpers, helpers.settings;"
        "import_ms = (time.process_time() - t) * 1000; import helpers.cli, json;"
        "known = sys.stdlib_module_names | {'helpers', '__main__'};"
        "there = {m.split('.')[0] for m, module in sys.modules.items() if module};"
        "print(json.dumps([import_ms, sorted(there - known)]))"
    )
    runs = [
        json.loads(subprocess.check_output([sys.executable, "-S", "-c", code], cwd=ROOT))
        for _ in range(5)
    ]
    assert min(ms for ms, _ in runs) < 50
    assert runs[0][1] in ([], ["sitecustomize"])


def test_jsonschema_compiles_no_grammar_that_nobody_needs():
    code = (
        "import helpers, sys, jsonschema; print('lark' in sys.modules, jsonschema.Draft202012"
        "Validator({'type': 'integer'}).is_valid(1))"
    )
    found = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert found.split() == ["False", "True"]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in "lab test up down status logs doctor ask bench execute evaluate".split():
        assert f"\n    {command} " in text
        assert hasattr(cli, f"_{command}")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["dance"], "invalid choice"),
        (["status", "--jsn"], "status does not know --jsn"),
        (["logs", "kernel"], "invalid choice"),
        (["test", "--require", "chromium,telescope"], "telescope is not one of chromium"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_explained(argv, words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_course_errors_have_no_traceback(monkeypatch, capsys):
    def broken(args, rest):
        raise CourseError("The proxy stopped.", "Its port was taken.", "Type: helpers up")

    monkeypatch.setattr(cli, "_up", broken)
    assert cli.main(["up"]) == 1
    said = capsys.readouterr().err
    assert said == "The proxy stopped.\nIts port was taken.\nType: helpers up\n"


def test_a_mistake_never_starts_a_setup(monkeypatch):
    monkeypatch.setattr(bootstrap, "enter", lambda argv: pytest.fail("set-up started"))
    with pytest.raises(SystemExit):
        cli.main(["tset"])


# --- test ---------------------------------------------------------------------------------


def test_without_arguments_everything_runs():
    call = cli.test_command([])
    assert call[-2:] == ["tests", "notebooks"]
    assert "--nbval" in call
    assert call[call.index("--dist") + 1] == "loadfile"  # else a notebook's cells are scattered
    assert call[call.index("--nbval-cell-timeout") + 1] == "120"


def test_pytest_arguments_are_passed_on():
    assert cli.test_command(["-k", "tests_of_nothing", "-x"])[-2:] == ["tests", "notebooks"]
    assert cli.test_command(["tests/test_cli.py::test_x", "-x"])[-2:] == [
        "tests/test_cli.py::test_x",
        "-x",
    ]


def test_require_reaches_the_tests_and_keys_do_not(monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "_foreground", lambda call, env: seen.update(env) or 0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HOSTED", "1")
    assert cli.main(["test", "-x", "--require", "node,netns"]) == 0
    assert seen["COURSE_REQUIRE"] == "node,netns"
    assert "OPENAI_API_KEY" not in seen
    assert "HOSTED" not in seen


def test_a_missing_piece_skips_or_fails(monkeypatch):
    monkeypatch.setenv("COURSE_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match="no telescope"):
        needed("telescope")
    monkeypatch.setenv("COURSE_REQUIRE", "node,telescope")
    with pytest.raises(pytest.fail.Exception, match="required, but no telescope"):
        needed("telescope")


# --- settings -----------------------------------------------------------------------------


def test_defaults_are_the_built_in_model_and_nothing_hosted():
    chosen = Settings.from_env({})
    assert (chosen.backend, chosen.hosted, chosen.hosted_key) == ("llama.cpp", False, "")
    assert chosen.hosted_model == "gpt-4o-mini"
    assert chosen.today is None


@pytest.mark.parametrize(
    "env, hosted, key",
    [
        ({"OPENAI_API_KEY": "sk-x"}, False, ""),
        ({"OPENAI_API_KEY": "sk-x", "HOSTED": "0"}, False, ""),
        ({"OPENAI_API_KEY": "sk-x", "HOSTED": "yes"}, False, ""),
        ({"HOSTED": "1"}, False, ""),
        ({"OPENAI_API_KEY": "sk-x", "HOSTED": "1"}, True, "sk-x"),
    ],
)
def test_hosted_needs_both_switch_and_key(env, hosted, key):
    chosen = Settings.from_env(env)
    assert (chosen.hosted, chosen.hosted_key) == (hosted, key)
    assert "sk-x" not in repr(chosen)


@pytest.mark.parametrize(
    "text, url",
    [
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("box:9999", "http://box:9999"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("https://box/", "https://box"),
    ],
)
def test_ollama_host_takes_every_form_that_ollama_takes(text, url):
    assert Settings.from_env({"OLLAMA_HOST": text}).ollama_host == url


@pytest.mark.parametrize(
    "text, backend",
    [("Ollama", "ollama"), ("llama.cpp", "llama.cpp"), ("http://h:1/v1/", "http://h:1/v1")],
)
def test_backend_names(text, backend):
    assert Settings.from_env({"BACKEND": text}).backend == backend


def test_a_backends_key_is_read_only_with_its_url():
    key = {"BACKEND_KEY": " secret "}
    assert Settings.from_env({"BACKEND": "http://127.0.0.1:1/v1", **key}).backend_key == "secret"
    assert Settings.from_env(key).backend_key == ""
    assert Settings.from_env({"BACKEND": "ollama", **key}).backend_key == ""
    assert "secret" not in repr(Settings.from_env({"BACKEND": "http://127.0.0.1:1", **key}))


@pytest.mark.parametrize("env", [{"BACKEND": "gpt"}, {"COURSE_TODAY": "tomorrow"}])
def test_settings_that_mean_nothing_are_explained(env):
    with pytest.raises(CourseError) as caught:
        Settings.from_env(env)
    assert caught.value.what and caught.value.why and caught.value.todo


def test_today_can_be_fixed():
    assert settings.today({"COURSE_TODAY": "2026-11-23"}) == datetime.date(2026, 11, 23)
    assert settings.today({}) == datetime.date.today()


def test_scrubbing_takes_keys_and_leaves_the_rest():
    env = {"PATH": "x", "OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "hosted": "1"}
    env |= {"OPENAI_BASE_URL": "u", "LITELLM_MASTER_KEY": "k", "BACKEND": "ollama", "HF_TOKEN": "k"}
    left = set(settings.scrubbed(env)) - set(settings.OFFLINE)
    assert left == {"PATH", "BACKEND"}


# --- the lab ------------------------------------------------------------------------------


def test_jupyterlab_asks_nobody_for_news_or_updates():
    """JupyterLab itself, asked with the lab's environment, has its announcements off."""
    code = (
        "import json; from jupyter_core.paths import jupyter_config_path;"
        "from jupyterlab_server.config import get_page_config;"
        "print(json.dumps(get_page_config(jupyter_config_path())['disabledExtensions']))"
    )
    env = cli.jupyter_env()
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert "@jupyterlab/apputils-extension:announcements" in said.stdout


def test_lab_environment_drops_keys_unless_asked_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "OPENAI_API_KEY" not in cli.jupyter_env()
    monkeypatch.setenv("HOSTED", "1")
    assert cli.jupyter_env()["OPENAI_API_KEY"] == "sk-secret"
    assert cli.jupyter_env()["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def page(url: str, process: subprocess.Popen, patience: float = 120) -> str:
    """The page, once there is one."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        assert process.poll() is None, process.stdout.read()
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"nothing at {url}")


@pytest.mark.slow
def test_lab_starts_everything_and_takes_it_along(tmp_path):
    """JupyterLab answers, the services start beside it, and all of it ends with the lab."""
    import psutil

    port = free_port()
    env = {**os.environ, "COURSE_WORK": str(tmp_path)}
    lab = subprocess.Popen(
        [
            *(sys.executable, "-m", "helpers", "lab", "--no-browser", "--port", str(port)),
            "--IdentityProvider.token=for-this-test",
        ],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text = page(f"http://127.0.0.1:{port}/lab?token=for-this-test", lab)
        assert "apputils-extension:announcements" in text
        status = [sys.executable, "-m", "helpers", "status", "--json"]
        end = time.monotonic() + 180
        while time.monotonic() < end:
            now = json.loads(subprocess.check_output(status, cwd=ROOT, env=env))
            if now["backend"]["healthy"] and now["proxy"]["healthy"]:
                break
            assert "failed" not in (now["backend"]["state"], now["proxy"]["state"]), now
            time.sleep(1)
        assert now["backend"]["healthy"] and now["proxy"]["healthy"], now
        family = [p for p in psutil.process_iter() if _belongs_to(p, str(tmp_path))]
        assert len(family) >= 3  # the lab, the backend, the proxy
    finally:
        lab.terminate()
        lab.wait(60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [p.cmdline() for p in alive] == []
    now = json.loads(subprocess.check_output(status, cwd=ROOT, env=env))
    assert not now["backend"]["healthy"] and not now["proxy"]["healthy"]


def _belongs_to(process, work: str) -> bool:
    import psutil

    try:
        return process.environ().get("COURSE_WORK") == work
    except (psutil.Error, OSError):
        return False


def test_plain_nbval_shows_no_key_to_a_notebook(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    cell = new_code_cell('import os\nprint(os.environ.get("OPENAI_API_KEY"))', execution_count=1)
    cell.outputs = [new_output("stream", name="stdout", text="None\n")]
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "keys.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "keys.ipynb"]
    env = {**os.environ, "OPENAI_API_KEY": "sk-lies-around", "PYTHONPATH": str(settings.ROOT)}

    def said():
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True).stdout

    assert "sk-lies-around" in said()  # seen by a kernel, without the course's conftest.py
    shutil.copy(settings.ROOT / "conftest.py", tmp_path)
    assert "1 passed" in said()
