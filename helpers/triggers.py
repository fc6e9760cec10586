"""A proxy for the question whether a skill's description brings it up when it should.

An assistant sees the names and descriptions of all its skills and decides, with a language
model, which one to read. This module has no such model. It ranks the descriptions by the words
that they share with a request (BM25, the usual formula of text retrieval). That is a **proxy
measure**: it is quick and the same every time, and it finds descriptions that lack the words
people use. It knows no synonyms and no intentions. What it says is to be confirmed with the
assistant that one really uses.

Source of the formula: S. Robertson and H. Zaragoza, The Probabilistic Relevance Framework: BM25
and Beyond, 2009, section 3.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

K1, B = 1.2, 0.75  # BM25: how fast repetition saturates, how much length counts
THRESHOLD = 3.0  # below this, no description has enough in common with the request

# Words that stand in every request and say nothing about it.
_STOP = frozenset(
    "a about after all also am an and any are as at be because been but by can could did do does "
    "doing don't for from get give had has have help her him his how i i'd i'm if in into is it "
    "it's its just like make me my need no not of on one or other our out over please should so "
    "some that the their them then there these they this those to up us use used using want was "
    "we what when where which while who why will with without work would write you your".split()
)


def words(text: str) -> list[str]:
    """The words of a text that count, in lower case and without endings such as -s and -ing."""
    found = []
    for word in re.findall(r"[a-z0-9]+(?:[_'][a-z0-9]+)*", text.lower()):
        if word not in _STOP:
            found.append(_stem(word))
    return found


def _stem(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("ings", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            doubled = len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz"
            return word[:-1] if doubled else word.removesuffix("e")
    return word.removesuffix("e")


def scores(request: str, descriptions: Mapping[str, str]) -> dict[str, float]:
    """How much each description has in common with a request.

    Args:
        request: What a person says to the assistant.
        descriptions: Name to description. The name counts as part of it.

    Returns:
        Name to BM25 score, the best first.
    """
    texts = {name: Counter(words(f"{name} {text}")) for name, text in descriptions.items()}
    mean = sum(map(Counter.total, texts.values())) / max(len(texts), 1) or 1
    found = {}
    for name, text in texts.items():
        score = 0.0
        for word in set(words(request)):
            holding = sum(word in other for other in texts.values())
            rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            weight = text[word] + K1 * (1 - B + B * text.total() / mean)
            score += rarity * text[word] * (K1 + 1) / weight
        found[name] = score
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def triggered(request: str, descriptions: Mapping[str, str], threshold: float = THRESHOLD) -> str:
    """The name of the skill that a request would bring up, by this measure; "" for none."""
    name, score = next(iter(scores(request, descriptions).items()))
    return name if score >= threshold else ""


@dataclass(frozen=True)
class Result:
    """What became of a file of prompts.

    Attributes:
        hits: Prompts that should trigger the skill and do.
        missed: Those that should and do not.
        false: Near misses that trigger it all the same.
        quiet: Near misses that do not.
    """

    hits: tuple[str, ...]
    missed: tuple[str, ...]
    false: tuple[str, ...]
    quiet: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"triggers on {len(self.hits)} of {len(self.hits) + len(self.missed)} prompts that "
            f"should, and on {len(self.false)} of {len(self.false) + len(self.quiet)} near misses"
        )


def evaluate(evals: Mapping[str, Any], description: str) -> Result:
    """Run every prompt of ``evals.json`` against a description and the other skills'.

    Args:
        evals: The parsed file: ``skill_name``, ``queries`` (each with ``query`` and
            ``should_trigger``) and ``others`` (name to description).
        description: The one to try.
    """
    name = evals["skill_name"]
    every = {**evals["others"], name: description}
    sorted_: dict[tuple[bool, bool], list[str]] = {}
    for item in evals["queries"]:
        fires = triggered(item["query"], every) == name
        sorted_.setdefault((item["should_trigger"], fires), []).append(item["query"])
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return Result(*(tuple(sorted_.get(kind, ())) for kind in kinds))


def load(path: Path) -> dict[str, Any]:
    """Read an ``evals.json``."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
