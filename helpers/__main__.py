"""``python3 -m helpers COMMAND``: see ``python3 -m helpers --help``.

Written so that even a Python 2 can read it far enough to say what is needed.
"""

import os
import sys


def _wrong_python():
    """What to say to a Python that cannot run the course, or None."""
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        return None
    search = os.environ.get("PATH", "").split(os.pathsep)
    names = ["python3.13", "python3.12", "python3.11", "python3.14"]
    found = [n for n in names for d in search if os.path.exists(os.path.join(d, n))]
    command = "-m helpers " + " ".join(sys.argv[1:])
    if found:
        todo = "There is one on this machine. Type: " + found[0] + " " + command
    elif os.name == "nt":
        todo = "Type: winget install Python.Python.3.13, then: py -3.13 " + command
    elif sys.platform == "darwin":
        todo = "Type: brew install python@3.13, then: python3.13 " + command
    else:
        todo = "Install python3.12 with your package manager, then: python3.12 " + command
    return "This is Python {0}.{1}.\n{2}\n{3}\n".format(
        sys.version_info[0],
        sys.version_info[1],
        "The course needs Python 3.11, 3.12, 3.13 or 3.14.",
        todo,
    )


if __name__ == "__main__":
    message = _wrong_python()
    if message:
        sys.stderr.write(message)
        sys.exit(1)
    from helpers.cli import main

    sys.exit(main(sys.argv[1:]))
