"""Tests of the machinery; the claims themselves are what check_claims.py tries."""

import asyncio
import contextlib
import io
import json
import unittest
import urllib.error
import urllib.request
from unittest.mock import patch

import check_claims as cc


class Claims(unittest.TestCase):
    def run_main(self, *arguments, claims):
        out = io.StringIO()
        with patch.object(cc, "CLAIMS", claims), contextlib.redirect_stdout(out):
            status = cc.main(list(arguments))
        return status, out.getvalue()

    def test_a_claim_holds_fails_or_cannot_be_tried(self):
        async def later():
            await asyncio.sleep(0)
            return "seen"

        def wrong():
            cc.same(1, 2)

        def missing():
            import no_such_package  # noqa: F401

        claims = [("a", "One.", later), ("a", "Two.", wrong), ("b", "Three.", missing)]
        status, text = self.run_main("--json", claims=claims)
        found = json.loads(text)
        self.assertEqual([entry["holds"] for entry in found], [True, False, False])
        self.assertEqual(found[0]["evidence"], "seen")
        self.assertIn("found 1, expected 2", found[1]["evidence"])
        self.assertIn("no_such_package", found[2]["evidence"])
        self.assertEqual(status, 1)
        status, text = self.run_main("b", claims=claims)
        self.assertEqual((status, text.count("FAILS"), text.count("holds")), (1, 1, 0))
        self.assertEqual(self.run_main("c", claims=claims)[0], 2)
        self.assertEqual(self.run_main(claims=claims[:1])[0], 0)

    def test_every_pattern_has_claims(self):
        patterns = {pattern for pattern, *_ in cc.CLAIMS}
        self.assertEqual(patterns, {"proxy", "base_url", "tools", "fallback", "mcp"})

    def test_the_stub_notes_and_answers(self):
        with cc.stub() as (url, seen):
            request = urllib.request.Request(url + "/chat/completions", b"{}")
            with urllib.request.urlopen(request, timeout=10) as reply:
                answer = json.load(reply)
        self.assertEqual(answer["choices"][0]["message"]["content"], "Here.")
        self.assertEqual(seen, ["/v1/chat/completions"])
        with cc.stub(500) as (url, seen), self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=10)
        caught.exception.close()
        self.assertEqual((caught.exception.code, seen), (500, ["/v1"]))


if __name__ == "__main__":
    unittest.main()
