"""The byte-pair tokenizer: small, byte-complete, and the same for a word wherever it stands.

Copying a title from the request into a call is the hardest thing a model of this size does, so a
word must have the same token ids at the start of a JSON string, after a space and after a
quote. Hence no merge ever crosses a space, a newline or a digit: these are tokens of their own.
The result is an ordinary GPT-2 byte-level BPE, which llama.cpp reads with `pre = gpt-2`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

START, END = "<|im_start|>", "<|im_end|>"
PAD = "<|pad|>"
CONTROL = [PAD, START, END]
# Boilerplate of calls and of the tools' JSON: one token each, which shortens prompts and answers.
FIXED = [
    '<tool_call>\n{"name": "',
    '", "arguments": {',
    "}}\n</tool_call>",
    "<tool_call>",
    "</tool_call>",
    '": "',
    '", "',
    '": null',
    '": ',
    '{"',
    '{"task_id": ',
    ', "',
]
MERGES = 500


def train(texts: Iterable[str], path: Path, merges: int = MERGES) -> None:
    """Learn `merges` merges from texts and write tokenizer.json to path."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel as Decoder

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s|\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(texts, trainer)
    # Encoding uses GPT-2's own pre-tokenizer: no learned merge holds a space or a digit, so the
    # ids are those of llama.cpp.
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = Decoder()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in FIXED])
    tok.save(str(path))


def load(path: Path):
    """The tokenizers.Tokenizer stored at path."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))
