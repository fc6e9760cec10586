"""Our MCP server in the configuration of Claude Desktop and Cursor: writing it in, taking it out.

Both programs keep a JSON file with an object ``mcpServers``. What else stands in the file is
somebody's work and stays as it is; a file that is not understood is left alone, and said so.
Nothing here touches a file unless it is told whose home folder it lies in.

Sources of the places: the two programs' own documentation. Claude Desktop has no official Linux
version; the path is that of the packages that people make of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from helpers.settings import CourseError

NAME = "tasks"
CLIENTS = ("claude", "cursor")
SYSTEMS = {"darwin": "macOS", "win32": "Windows", "linux": "Linux"}


def config_path(
    client: str,
    home: str | PurePath,
    system: str = sys.platform,
    env: Mapping[str, str] = os.environ,
) -> PurePath:
    """Where a client keeps its servers.

    Args:
        client: ``"claude"`` or ``"cursor"``.
        home: The person's home folder.
        system: ``"darwin"``, ``"win32"`` or ``"linux"``, as ``sys.platform`` has it.
        env: For ``APPDATA`` and ``XDG_CONFIG_HOME``, heeded only where they lie in ``home``: a
            temporary home must not lead to the real one.

    Returns:
        A path of this system's kind, or of the other's where ``system`` is another.

    Raises:
        CourseError: For a client or a system that this course does not know.
    """
    if client not in CLIENTS or system not in SYSTEMS:
        raise CourseError(
            f"There is no place known for {client} on {system}.",
            f"Known are {', '.join(CLIENTS)} on {', '.join(SYSTEMS)}.",
            "Add the server by hand, in the program's settings; entry() gives what to write.",
        )
    kind = PureWindowsPath if system == "win32" else PurePosixPath
    if system == sys.platform:
        kind = Path
    base = kind(str(home))

    def told(name: str, usual: PurePath) -> PurePath:
        given = kind(env.get(name, "") or usual)
        return given if given.is_relative_to(base) else usual

    if client == "cursor":
        return base / ".cursor" / "mcp.json"
    folders = {
        "darwin": base / "Library" / "Application Support",
        "win32": told("APPDATA", base / "AppData" / "Roaming"),
        "linux": told("XDG_CONFIG_HOME", base / ".config"),
    }
    return folders[system] / "Claude" / "claude_desktop_config.json"


def entry(db: str | Path, module: str | Path = "") -> dict[str, Any]:
    """What a client needs to start our server over stdio: command, arguments, environment.

    No key and no token is in it: over stdio none is needed, and the file is not a secret.

    Args:
        db: The tasks' file.
        module: An exported server module; the course's own by default.
    """
    from helpers.mcp_server import launch

    start = launch(Path(db).resolve(), Path(module).resolve() if module else "")
    start["env"].pop("PATH", None)  # the client has its own
    start["env"].pop("COURSE_TODAY", None)  # a lesson's date is not a person's
    return start


def install(
    client: str, server: Mapping[str, Any], home: str | Path, system: str = sys.platform
) -> Path:
    """Write our server into a client's configuration; twice is the same as once.

    Args:
        client: ``"claude"`` or ``"cursor"``.
        server: What :func:`entry` gives.
        home: The home folder: a temporary one to look at the result, ``Path.home()`` to mean it.
        system: See :func:`config_path`.

    Returns:
        The file.

    Raises:
        CourseError: The file is there and is not understood, or cannot be written.
    """
    path = Path(config_path(client, home, system))
    config = _read(path)
    config.setdefault("mcpServers", {})[NAME] = dict(server)
    _write(path, config)
    return path


def uninstall(client: str, home: str | Path, system: str = sys.platform) -> bool:
    """Take our server out again, and with it a file that holds nothing else.

    Returns:
        Whether it was there.

    Raises:
        CourseError: The file is there and is not understood, or cannot be written.
    """
    path = Path(config_path(client, home, system))
    if not path.exists():
        return False
    config = _read(path)
    if config.get("mcpServers", {}).pop(NAME, None) is None:
        return False
    if config == {"mcpServers": {}}:
        path.unlink()
    else:
        _write(path, config)
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors on Windows leave a mark
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unclear(path, str(error)) from None
    try:
        config = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise _unclear(path, f"It is not valid JSON: {error}.") from None
    if not isinstance(config, dict) or not isinstance(config.get("mcpServers", {}), dict):
        raise _unclear(path, "It is JSON, but not of the shape that is expected.")
    return config


def _unclear(path: Path, why: str) -> CourseError:
    return CourseError(
        f"{path.name} was left as it is: it is not understood.",
        why,
        f"Look at {path}, mend it or move it away, and try again.",
    )


def _write(path: Path, config: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()  # some keep their configuration elsewhere, behind a link
        fresh = target.with_name(target.name + ".new")
        # Written beside it, then put in its place: the client never reads half a file.
        fresh.write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
        )
        if target.exists():
            fresh.chmod(target.stat().st_mode)
        os.replace(fresh, target)
    except OSError as error:
        raise CourseError(
            f"{path.name} could not be written.",
            str(error),
            "Close the program that uses it, see that you may write there, and try again.",
        ) from None
