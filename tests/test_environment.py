"""The files that describe an environment say the same thing, and nothing about this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from helpers import bootstrap
from helpers.settings import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
INSTRUCTOR_LOCK = bootstrap.INSTRUCTOR_LOCK.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
WORKFLOW = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST = "python3 -m helpers test"


def pip_section() -> list[str]:
    (section,) = [d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict)]
    return section


# --- the lock -----------------------------------------------------------------------------


def test_every_locked_package_has_hashes():
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK[LOCK.index("\naio") + 1 :])
    assert len(blocks) > 200
    assert [b.split()[0] for b in blocks if "--hash=sha256:" not in b] == []


def test_lock_names_no_host_and_no_path():
    for lock in (LOCK, INSTRUCTOR_LOCK):
        assert re.findall(r"\S*://\S*|--(?:extra-)?index-url|--find-links|file:", lock) == []
        assert str(Path.home()) not in lock
        assert str(ROOT) not in lock


def test_lock_satisfies_the_project():
    from packaging.requirements import Requirement

    locked = bootstrap.locked_versions()
    for line in PROJECT["project"]["dependencies"]:
        wanted = Requirement(line)
        versions = locked[bootstrap.normalised(wanted.name)]
        assert all(wanted.specifier.contains(v) for v in versions), line


@pytest.mark.parametrize("name", ["nbgrader", "distributed", "dask"])
def test_learners_never_install_what_instructors_need(name):
    assert name in bootstrap.locked_versions(bootstrap.INSTRUCTOR_LOCK)
    assert name not in bootstrap.locked_versions()
    assert name not in (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_the_instructors_lock_leaves_the_learners_versions_as_they_are():
    ours, theirs = bootstrap.locked_versions(), bootstrap.locked_versions(bootstrap.INSTRUCTOR_LOCK)
    assert {name: theirs.get(name) for name in ours} == ours
    blocks = re.split(r"\n(?=[A-Za-z0-9])", INSTRUCTOR_LOCK[INSTRUCTOR_LOCK.index("\naio") + 1 :])
    assert [b.split()[0] for b in blocks if "--hash=sha256:" not in b] == []
    assert set(bootstrap.direct_names(extra="instructor")) <= set(theirs)


def test_learners_never_install_torch():
    names = set(bootstrap.locked_versions())
    assert not names & {"torch", "triton", "tensorflow", "jax"}
    assert [n for n in names if n.startswith("nvidia-")] == []


@pytest.mark.skipif(not bootstrap.inside(), reason="not in .venv: conda chose what it stands on")
def test_this_environment_is_exactly_the_lock():
    every = bootstrap.differences(list(bootstrap.locked_versions()))
    assert [d for d in every if "missing" not in d] == []  # missing: other systems' packages


# --- conda, Binder, JupyterHub ------------------------------------------------------------


def test_environment_yml_has_the_locks_versions():
    locked = bootstrap.locked_versions()
    named = {}
    for line in pip_section():
        if line != "-e .":
            name, version = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[\w+\])?==(\S+)", line).groups()
            named[bootstrap.normalised(name)] = {version}
    assert named == {name: locked[name] for name in bootstrap.direct_names()}


def test_environment_yml_keeps_extras():
    wanted = [re.match(r"[\w.-]+(\[\w+\])?", d)[0] for d in PROJECT["project"]["dependencies"]]
    assert [line.split("==")[0] for line in pip_section() if line != "-e ."] == wanted


def test_environment_yml_follows_repo2docker():
    # repo2docker looks into binder/ or .binder/ first, and then at nothing else.
    assert not (ROOT / "binder").exists()
    assert not (ROOT / ".binder").exists()
    assert re.fullmatch(r"[a-z0-9-]+", CONDA["name"])
    assert CONDA["channels"] == ["conda-forge"]
    # It reads the Python version from this form only, and takes its own default otherwise.
    python = [d for d in CONDA["dependencies"] if str(d).startswith("python")]
    assert [bool(re.fullmatch(r"python=3\.1[1-3]", d)) for d in python] == [True]
    assert "pip" in CONDA["dependencies"]  # conda warns, and guesses, without it
    assert pip_section()[-1] == "-e ."  # a local name makes it copy the repository first


def test_postbuild_can_be_executed():
    script = ROOT / "postBuild"
    assert script.read_bytes().startswith(b"#!/bin/bash\n")
    assert b"\r" not in script.read_bytes()
    if os.name != "nt":
        assert script.stat().st_mode & stat.S_IXUSR
    for name in re.findall(r"helpers/\S+/", script.read_text(encoding="utf-8")):
        assert (ROOT / name).is_dir()


def test_devcontainer_makes_the_environment():
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    assert json.loads(text)["postCreateCommand"] == "python3 -m helpers.bootstrap"


# --- one test command, everywhere ---------------------------------------------------------


def test_ci_runs_the_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    last = script.strip().splitlines()[-1]
    required = "chromium,node,netns,go,network,instructor"
    assert shlex.split(last)[1:] == [*TEST.split(), "--require", required]
    assert TEST in README
    assert "python3 -m helpers lab" in README
    if os.name != "nt":
        assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_workflow_covers_three_systems_with_the_same_command():
    jobs = yaml.safe_load(WORKFLOW)["jobs"]["test"]
    assert jobs["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    commands = [step["run"] for step in jobs["steps"] if step.get("name", "").startswith("Test")]
    assert commands == [".ci/run", "python -m helpers test --require chromium,node"]


def test_supported_pythons_are_named_alike():
    from helpers import __main__ as entry

    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.15"
    assert entry._wrong_python() is None
    assert sys.version_info[:2] >= (3, 11)
    assert "3.11" in README
