"""What runs inside the sandbox: sets its limits, then executes the notebook cell by cell.

Started by :mod:`helpers.instructor.sandbox`, which describes the box. It sends one line of
JSON per cell and believes nothing; the other side does not believe it either.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

MB = 1 << 20


def main(task: dict[str, Any]) -> None:
    """First as root of the namespaces, to arrange them; then without any privilege, to run."""
    if task.pop("apart"):
        _loopback(task)
        _files(Path(task["box"]), task["hide"])
        strip = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]
        again = [sys.executable, "-m", "helpers.instructor.inside", json.dumps(task | {"apart": 0})]
        os.execvp("setpriv", ["setpriv", *strip, *again])
    _limits(task)
    _execute(task)


# --- arranging -----------------------------------------------------------------------------


def _loopback(task: dict[str, Any]) -> None:
    """Bring loopback up and hand the sockets that listen on it to the other side."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    doors = []
    for port in task["ports"]:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen(64)
        doors.append(door)
    with socket.socket(fileno=task["channel"]) as channel:
        if doors:
            socket.send_fds(channel, [b"doors"], [door.fileno() for door in doors])


def _files(box: Path, hide: list[str]) -> None:
    """Make everything read-only but the box, and empty what is not its business."""

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words], check=True, capture_output=True)

    keep = ("/proc", "/dev", "/sys")
    for folder in hide:
        mount("-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", folder)
    temporary = box.parent
    needed = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[2])]
    if any(path.is_relative_to(temporary) for path in needed):
        mount("--bind", str(box), str(box))
    else:
        # Other submissions are graded in the same folder: it becomes empty, but for this box.
        handle = os.open(box, os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(handle, True)
        mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", str(temporary))
        box.mkdir()
        bind = ["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{handle}", str(box)]
        subprocess.run(bind, check=True, capture_output=True, pass_fds=[handle])
        os.close(handle)
    points = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        points[words[4].replace("\\040", " ")] = words[5].split(",")
    for point, options in points.items():
        if point == str(box) or point in hide or point.startswith(keep):
            continue
        with contextlib.suppress(subprocess.CalledProcessError):
            # The others have to be repeated: a user without privileges may not take them off.
            kept = [o for o in options if o not in ("rw", "ro")]
            mount("-o", ",".join(["remount", "bind", "ro", *kept]), point)
    # Shared memory is a way from one submission to another.
    with contextlib.suppress(subprocess.CalledProcessError):
        mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm")


def _limits(task: dict[str, Any]) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    most = task["memory_mb"] * MB
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 256 * MB, "RLIMIT_NOFILE": 4096}
    if sys.platform.startswith("linux"):
        # A cell that asks for too much gets a MemoryError, and the next one runs.
        wanted["RLIMIT_DATA"] = most
    for name, value in wanted.items():
        with contextlib.suppress(ValueError, OSError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


# --- executing -----------------------------------------------------------------------------


def _execute(task: dict[str, Any]) -> None:
    from helpers.children import end_with_parent

    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    end_with_parent()

    def send(**event: Any) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    try:
        import asyncio

        asyncio.run(_cells(task, send))
        send(end=True)
    except BaseException as error:
        send(stopped=f"it could not be run ({type(error).__name__}: {error})")
    channel.close()
    os._exit(0)


async def _cells(task: dict[str, Any], send: Any) -> None:
    import asyncio

    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    box = Path(task["box"])
    notebook = nbformat.read(box / "in.ipynb", as_version=4)
    most = task["output_kb"] * 1024

    class Client(NotebookClient):
        """Interrupts a cell that shows too much, and notes which limit a cell ran into."""

        shown = 0
        note = ""
        place = ""

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] not in ("status", "execute_input"):
                self.shown += len(json.dumps(msg["content"], default=str))
                if self.shown > most:
                    if not self.note:
                        self.note = f"{self.place} showed more than {task['output_kb']} kB"
                        self.stopping = asyncio.ensure_future(self.km.interrupt_kernel())
                    return None
            return super().process_message(msg, cell, cell_index)

        async def _async_handle_timeout(self, timeout: int, cell: Any = None) -> Any:
            self.note = self.note or f"{self.place} took longer than {timeout:g} seconds"
            return await super()._async_handle_timeout(timeout, cell)

    client = Client(
        notebook,
        kernel_name="python3",
        timeout=task["cell_seconds"],
        interrupt_on_timeout=True,
        error_on_timeout={"ename": "TooSlow", "evalue": "", "traceback": []},
        allow_errors=True,
        raise_on_iopub_timeout=True,
        iopub_timeout=10,
        record_timing=False,
        startup_timeout=120,
        extra_arguments=["--log-level=50", "--HistoryManager.hist_file=:memory:"],
        resources={"metadata": {"path": str(box / "notebooks")}},
    )
    client.create_kernel_manager()
    await client.async_start_new_kernel()
    await client.async_start_new_kernel_client()
    number = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        number += 1
        client.shown, client.note, client.place = 0, "", f"In [{number}]"
        stopped = ""
        try:
            await client.async_execute_cell(cell, index)
        except DeadKernelError:
            stopped = f"{client.place} ended the kernel"
        except CellTimeoutError:
            slow = client.note or f"{client.place} did not come to its end"
            stopped = f"{slow} and could not be interrupted"
        note = client.note
        if stopped or note:
            text = stopped or note
            error = nbformat.v4.new_output("error", ename="Stopped", evalue=text, traceback=[text])
            cell.outputs.append(error)
        send(cell=index, outputs=cell.outputs, count=cell.execution_count, note=note)
        if stopped:
            send(stopped=stopped)
            return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
