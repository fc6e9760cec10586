import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path

from compare_runs import compare, main, read, share


def run(right, of=20):
    """The verdicts of a run: the first cases are right."""
    return {n: n < right for n in range(of)}


class Compare(unittest.TestCase):
    def test_only_changed_cases_count(self):
        self.assertEqual(compare(run(10), run(10)), (0, 0, 1.0))
        self.assertEqual(compare(run(10), run(16)), (6, 0, 2 / 64))
        self.assertEqual(compare(run(16, of=2000), run(10, of=2000)), (0, 6, 2 / 64))
        self.assertEqual(compare({1: True, 2: False}, {1: False, 2: True}), (1, 1, 1.0))

    def test_other_cases_are_refused(self):
        with self.assertRaisesRegex(ValueError, "such as 20"):
            compare(run(10), run(10, of=21))

    def test_lines_that_are_no_verdicts(self):
        for bad in (
            "",
            "hello",
            "[]",
            '{"id": 1}',
            '{"id": 1, "ok": 1}',
            '{"id": 1, "ok": true}\n{"id": 1, "ok": true}',
        ):
            with self.assertRaises(ValueError):
                read(bad.splitlines())

    def test_interval(self):
        self.assertEqual(share(run(19)), "19 of 20 right, 95.0% (76.4% to 99.1%)")
        self.assertEqual(share(run(0)), "0 of 20 right, 0.0% (0.0% to 16.1%)")


class CommandLine(unittest.TestCase):
    def call(self, before, after, *more):
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("before.jsonl", "after.jsonl")]
            for file, verdicts in zip(files, (before, after), strict=True):
                file.write_text(
                    "".join(json.dumps({"id": i, "ok": v}) + "\n" for i, v in verdicts.items()),
                    encoding="utf-8",
                )
            with contextlib.redirect_stdout(out := io.StringIO()):
                return main([*map(str, files), *more]), out.getvalue().splitlines()[-1]

    def test_verdicts(self):
        self.assertEqual(self.call(run(10), run(16)), (0, "passes: better, and hardly by chance"))
        self.assertEqual(self.call(run(10), run(12)), (0, "passes: no difference was shown"))
        self.assertEqual(self.call(run(12), run(10)), (0, "passes: no difference was shown"))
        self.assertEqual(self.call(run(16), run(10)), (1, "refused: worse, and hardly by chance"))

    def test_floor(self):
        self.assertEqual(self.call(run(10), run(10), "--floor", "0.5")[0], 0)
        self.assertEqual(
            self.call(run(10), run(16), "--floor", "0.9"), (1, "refused: below the floor of 90.0%")
        )

    def test_what_cannot_be_compared(self):
        self.assertEqual(self.call(run(10), run(10, of=21))[0], 2)
        self.assertEqual(self.call(run(10), {})[0], 2)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["none.jsonl", "none.jsonl"]), 2)


if __name__ == "__main__":
    unittest.main()
