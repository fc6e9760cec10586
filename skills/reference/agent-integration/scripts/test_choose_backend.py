import contextlib
import io
import json
import unittest

from choose_backend import choose, main


class Choose(unittest.TestCase):
    def test_patterns(self):
        cases = [
            ({}, "direct"),
            ({"programs": 3}, "proxy"),
            ({"in_domain": False}, "cloud"),
            ({"in_domain": False, "private": True}, "none"),
            ({"in_domain": False, "offline": True}, "none"),
            ({"in_domain": False, "cost": 6, "budget": 5}, "none"),
            ({"in_domain": False, "cost": 5, "budget": 5}, "cloud"),  # just within it
            ({"in_domain": False, "seconds": 4, "patience": 3}, "none"),
            ({"private": True, "programs": 2}, "proxy"),
        ]
        for need, wanted in cases:
            pattern, reasons = choose(**need)
            self.assertEqual(pattern, wanted, need)
            self.assertTrue(reasons, need)

    def test_every_reason_is_named(self):
        _, reasons = choose(in_domain=False, private=True, offline=True, cost=9, budget=1,
                            seconds=9, patience=1)  # fmt: skip
        self.assertEqual(len(reasons), 4)

    def test_command_line(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main(["--outside-domain", "--private", "--json"])
        self.assertEqual(json.loads(out.getvalue())["pattern"], "none")
        with contextlib.redirect_stdout(out := io.StringIO()):
            main(["--programs", "5"])
        self.assertTrue(out.getvalue().startswith("proxy: "))


if __name__ == "__main__":
    unittest.main()
