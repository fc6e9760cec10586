"""What the installed packages say of themselves, and probes of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import docs
from helpers.settings import CourseError

PACKAGES = ["openai", "openai-agents", "litellm", "fastmcp"]


def excerpt(what, *only):
    return docs.show(what, only, echo=False)


# --- finding ------------------------------------------------------------------------------------


def test_a_signature(capsys):
    found = docs.show("openai:OpenAI.__init__", only=["base_url", "max_retries"])
    assert found.kind == "function"
    assert found.package == "openai"
    assert found.version == importlib.metadata.version("openai")
    assert found.object == "openai.OpenAI.__init__"
    assert "base_url: str | httpx.URL | None = None" in found.text
    assert "max_retries: int = 2" in found.text
    assert "api_key" not in found.text
    assert "more" in found.text  # what was left out is said
    assert capsys.readouterr().out.startswith(f"openai {found.version}, openai.OpenAI.__init__")


def test_fields_with_the_comments_below_them():
    found = excerpt("openai-agents:Agent", "model")
    assert found.kind == "fields"
    assert "model: str | Model | None" in found.text
    assert "The model implementation to use when invoking the LLM." in found.text
    assert "more fields" in found.text
    message = excerpt("openai:types.chat.ChatCompletionMessage", "content", "tool_calls")
    assert "content: str | None" in message.text
    assert "Annotated" not in message.text


def test_other_kinds_of_fields():
    from typing import TypedDict

    class Shape(TypedDict, total=False):
        size: int

    @dataclasses.dataclass
    class Thing:
        size: int
        """How large it is."""
        colour: str = "red"

    assert docs._described(Shape, ()) == ("fields", "class Shape\n    size: int")
    kind, text = docs._described(Thing, ["size"])
    assert (kind, "How large it is." in text, "colour" in text) == ("fields", True, False)


def test_values_types_and_docstrings():
    assert excerpt("openai:DEFAULT_MAX_RETRIES").text == "2"
    assert excerpt("openai:types.chat.ChatCompletionMessageToolCallUnion").kind == "type"
    tool = excerpt("openai-agents:function_tool", "strict_mode")
    assert "strict_mode: bool = True" in tool.text
    assert "it allows non-strict JSON schemas" in tool.text
    assert "name_override" not in tool.text
    # A class without a text of its own does not borrow its base's.
    assert "generic types" not in excerpt("openai:OpenAI").text


@pytest.mark.parametrize(
    ("what", "only", "said"),
    [
        ("fastmcp run --help", ["--transport"], "stdio, http"),
        ("agentskills --help", [], "validate"),
        pytest.param("litellm --help", ["--host"], "Host for the server", marks=pytest.mark.slow),
    ],
)
def test_the_help_of_commands(what, only, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    found = docs.show(what, only, echo=False)
    assert found.kind == "command"
    assert said in found.text
    assert "\x1b" not in found.text
    assert max(map(len, found.text.splitlines())) > 40  # not this terminal's width
    if only:
        assert len(found.text.splitlines()) < 8
        assert only[0] in found.text
    assert docs.show(what, only, echo=False) == found


def test_one_screen():
    assert len(str(excerpt("litellm:completion")).splitlines()) <= docs.LINES + 1
    assert "only=[…]" in str(excerpt("litellm:completion"))


def test_every_package_of_the_course_is_found():
    for package in PACKAGES:
        assert docs.version(package) == importlib.metadata.version(package)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("openai:OpenAi", "Similar names there: .*OpenAI"),
        ("openai:OpenAI.base_uri", "has no openai.OpenAI.base_uri"),
        ("no-such-package:X", "no package 'no-such-package'"),
        ("openai", "names no documentation"),
        ("no-such-command --help", "has a command 'no-such-command'"),
        ("agentskills nothing --help", "failed"),
    ],
)
def test_what_is_not_there_is_said(what, said):
    with pytest.raises(CourseError, match=said):
        docs.show(what)


def test_who_takes_a_parameter():
    assert "OpenAI" in docs.takes("openai", "base_url")
    assert "OpenAIChatCompletionsModel" in docs.takes("openai-agents", "openai_client")
    assert "Agent" not in docs.takes("openai-agents", "base_url")
    assert docs.takes("openai-agents", "no_such_parameter") == []
    with pytest.raises(CourseError):
        docs.takes("no-such-package", "x")


def test_quotations():
    found = docs.Excerpt("p", "1.0", "p.f", "function", "It takes\n    a name.")
    assert found.quote("takes a  name") == '"takes a name" (p 1.0, p.f)'
    with pytest.raises(CourseError, match="not in p"):
        found.quote("It takes an address.")
    long = docs.Excerpt("p", "1.0", "p.f", "function", "so " * (docs.QUOTED + 1))
    assert long.quote("so " * docs.QUOTED)
    with pytest.raises(CourseError, match=f"at most {docs.QUOTED}"):
        long.quote("so " * (docs.QUOTED + 1))


# --- online -------------------------------------------------------------------------------------


@pytest.fixture
def site():
    pages = {
        "/llms.txt": "# Project\n\n- [Clients](clients.md)\n- [Servers](servers.md)",
        "/html/llms.txt": "<!DOCTYPE html><html><body>Not found</body></html>",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            self.send_response(200 if page else 404)
            self.end_headers()
            self.wfile.write((page or "no").encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_llms_txt(site, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = docs.llms_txt(site, only=["client"])
    assert found.text == "- [Clients](clients.md)"
    assert docs.show(site, ["client"]) == found
    assert "as it is online now" in capsys.readouterr().out
    assert docs.llms_txt(f"{site}/llms.txt").text.startswith("# Project")
    for address, said in {f"{site}/none": "404", f"{site}/html": "web page"}.items():
        with pytest.raises(CourseError, match=said):
            docs.llms_txt(address)
    with pytest.raises(CourseError, match="could not be read"):
        docs.llms_txt("http://127.0.0.1:9", timeout=2)


# --- probes -------------------------------------------------------------------------------------


def test_probes():
    async def later():
        return "seen"

    def refuted():
        raise AssertionError("0 of 3\nand more")

    def silent():
        pass

    found = docs.run_probes(
        [("A.", later), ("B.", refuted), ("C.", silent), ("D.", lambda: 1 / 0), ("E.", lambda: 3)]
    )
    assert [f.holds for f in found] == [True, False, False, False, True]
    assert [f.claim for f in found] == ["A.", "B.", "C.", "D.", "E."]
    assert found[0].evidence == "seen"
    assert found[1].evidence == "AssertionError: 0 of 3"
    assert "no evidence" in found[2].evidence
    assert found[3].evidence == "ZeroDivisionError: division by zero"
    assert found[4].evidence == "3"
