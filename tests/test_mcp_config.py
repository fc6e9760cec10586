"""Writing the server into a client's configuration: nothing of the person's own is ever lost."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from helpers import mcp_config as c
from helpers.settings import CourseError

SERVER = {"command": "python", "args": ["-m", "helpers.mcp_server"], "env": {}}


@pytest.mark.parametrize(
    ("client", "system", "path"),
    [
        ("claude", "darwin", "/h/Library/Application Support/Claude/claude_desktop_config.json"),
        ("claude", "win32", r"C:\Users\Ana\AppData\Roaming\Claude\claude_desktop_config.json"),
        ("claude", "linux", "/h/.config/Claude/claude_desktop_config.json"),
        ("cursor", "darwin", "/h/.cursor/mcp.json"),
        ("cursor", "win32", r"C:\Users\Ana\.cursor\mcp.json"),
        ("cursor", "linux", "/h/.cursor/mcp.json"),
    ],
)
def test_places(client, system, path):
    home = r"C:\Users\Ana" if system == "win32" else "/h"
    assert str(c.config_path(client, home, system, {})) == path


def test_a_temporary_home_never_leads_to_the_real_one():
    env = {"XDG_CONFIG_HOME": "/home/ana/.config", "APPDATA": r"C:\Users\Ana\AppData\Roaming"}
    assert str(c.config_path("claude", "/tmp/x", "linux", env)).startswith("/tmp/x/")
    assert str(c.config_path("claude", r"D:\x", "win32", env)).startswith("D:\\x\\")
    inside = {"XDG_CONFIG_HOME": "/home/ana/elsewhere"}
    assert "elsewhere" in str(c.config_path("claude", "/home/ana", "linux", inside))


@pytest.mark.parametrize(("client", "system"), [("vim", "linux"), ("claude", "amiga")])
def test_unknown_places_are_said(client, system):
    with pytest.raises(CourseError, match="no place known"):
        c.config_path(client, "/h", system)


@pytest.mark.parametrize("client", c.CLIENTS)
@pytest.mark.parametrize("system", list(c.SYSTEMS))
def test_in_and_out_again(tmp_path, client, system):
    # Another system's path, with this one's separators.
    path = c.install(client, SERVER, tmp_path, sys.platform if system == "win32" else system)
    assert json.loads(path.read_text()) == {"mcpServers": {"tasks": SERVER}}
    once = path.read_bytes()
    c.install(client, SERVER, tmp_path, sys.platform if system == "win32" else system)
    assert path.read_bytes() == once
    assert c.uninstall(client, tmp_path, sys.platform if system == "win32" else system)
    assert not path.exists()
    assert not c.uninstall(client, tmp_path, sys.platform if system == "win32" else system)


def existing(tmp_path: Path, text: str) -> Path:
    path = Path(c.config_path("cursor", tmp_path))
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"theme": "hell", "mcpServers": {"files": {"command": "npx", "args": ["a"]}}}',
        '{"mcpServers": {"files": {"url": "https://example.org/mcp"}}}',
        '{"theme": "dunkel", "grüße": ["ä", 1, null]}',
    ],
)
def test_what_others_wrote_stays(tmp_path, text):
    path, before = existing(tmp_path, text), json.loads(text)
    c.install("cursor", SERVER, tmp_path)
    now = json.loads(path.read_text(encoding="utf-8"))
    assert now["mcpServers"].pop("tasks") == SERVER
    assert {k: v for k, v in now.items() if k != "mcpServers"} == {
        k: v for k, v in before.items() if k != "mcpServers"
    }
    assert now["mcpServers"] == before.get("mcpServers", {})
    c.uninstall("cursor", tmp_path)
    left = json.loads(path.read_text(encoding="utf-8"))
    assert left == {"mcpServers": {}, **before}
    assert list(left)[: len(before)] == list(before)


@pytest.mark.parametrize("text", ["", "  \n", "\ufeff{}"])
def test_an_empty_file_is_a_beginning(tmp_path, text):
    path = existing(tmp_path, text)
    c.install("cursor", SERVER, tmp_path)
    assert json.loads(path.read_text())["mcpServers"]["tasks"] == SERVER


@pytest.mark.parametrize(
    "text", ['{"mcpServers": {', "[]", '{"mcpServers": []}', '{"a": 1} // a comment', "null"]
)
def test_what_is_not_understood_is_left_alone(tmp_path, text):
    path = existing(tmp_path, text)
    for attempt in (lambda: c.install("cursor", SERVER, tmp_path),
                    lambda: c.uninstall("cursor", tmp_path)):  # fmt: skip
        with pytest.raises(CourseError, match="left as it is"):
            attempt()
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="modes and links are POSIX")
def test_mode_and_link_are_kept(tmp_path):
    path = existing(tmp_path / "real", "{}")
    path.chmod(0o600)
    link = Path(c.config_path("cursor", tmp_path / "home"))
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    c.install("cursor", SERVER, tmp_path / "home")
    assert link.is_symlink() and "tasks" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="a folder cannot be made unwritable like this")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CourseError, match="could not be written"):
        c.install("cursor", SERVER, tmp_path)


def test_the_entry_starts_a_server_and_holds_no_secret(tmp_path, monkeypatch):
    """As a client does it: from the file, in another folder, with hardly any environment."""
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport

    monkeypatch.setenv("TASKS_TOKEN", "secret-token-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("COURSE_TODAY", "2026-11-23")
    path = c.install("claude", c.entry(tmp_path / "t.sqlite"), tmp_path)
    assert "secret" not in path.read_text() and "COURSE_TODAY" not in path.read_text()
    start = json.loads(path.read_text())["mcpServers"]["tasks"]

    async def run():
        transport = StdioTransport(**start, cwd=str(tmp_path), keep_alive=False)
        async with Client(transport) as client:
            return await client.call_tool("create_task", {"title": "call mum"})

    assert asyncio.run(run()).structured_content["task_id"] == 1
