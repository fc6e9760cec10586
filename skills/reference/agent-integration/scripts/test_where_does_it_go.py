import contextlib
import io
import sys
import unittest

from where_does_it_go import main, watch

SENDS = """
import os, urllib.request
url = os.environ["OPENAI_BASE_URL"] + "/responses"
try:
    urllib.request.urlopen(urllib.request.Request(url, b"12345"), timeout=10)
except OSError:
    pass
"""


class Watch(unittest.TestCase):
    def test_what_arrives_is_counted(self):
        self.assertEqual(watch([sys.executable, "-c", SENDS]), ([("/v1/responses", 5)], 0))

    def test_nothing_arrives(self):
        code = "import os, sys; sys.exit(os.environ['OPENAI_API_KEY'] != 'not-a-real-key')"
        self.assertEqual(watch([sys.executable, "-c", code]), ([], 0))

    def test_command_line(self):
        for code, status, said in ((SENDS, 1, "/v1/responses  5"), ("pass", 0, "address: 0")):
            with contextlib.redirect_stdout(out := io.StringIO()):
                self.assertEqual(main(["--", sys.executable, "-c", code]), status)
            self.assertIn(said, out.getvalue())
            self.assertNotIn("12345", out.getvalue())
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["--", "no-such-program-here"]), 2)


if __name__ == "__main__":
    unittest.main()
