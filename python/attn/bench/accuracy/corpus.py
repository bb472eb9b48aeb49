"""Real text for the small language model: the standard library's sources, tokenised, and lines to recall."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...demo.encoder import DemoError, library_files

HELD_OUT = 20  # every 20th file is kept from training
DIGITS = 4
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


@dataclass(frozen=True)
class Corpus:
    """Attributes:
    train, held: int64 tokens of the files for training and of the files kept from it.
    head: tokens that begin a line to recall, ``"\\n# pin of"``.
    words: tokens that are one word with a space in front; two of them name a pin.
    colon, newline: tokens.
    digits: the tokens of ``0`` to ``9``.
    """

    train: Tensor
    held: Tensor
    head: Tensor
    words: Tensor
    colon: int
    newline: int
    digits: Tensor
    vocabulary: int

    @property
    def line(self) -> int:
        """Tokens of a line to recall: head, two words, colon, digits, newline."""
        return len(self.head) + 2 + 1 + DIGITS + 1


def build(vocabulary: int, most_bytes: int) -> Corpus:
    """Trains a byte-pair tokenizer on the training files and encodes everything; seconds. Digits stay single.

    Args:
        vocabulary: tokens, 256 bytes among them.
        most_bytes: stop reading after as many.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise DemoError("the accuracy benchmark needs tokenizers: pip install 'attn[demo]'") from error
    train: list[str] = []
    held: list[str] = []
    size = 0
    for number, path in enumerate(library_files("**/*.py", _SKIPPED)):
        text = path.read_text(errors="replace")
        (held if number % HELD_OUT == 0 else train).append(text)
        size += len(text)
        if size > most_bytes:
            break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(train, trainer)
    return _corpus(tokenizer, train, held)


def _corpus(tokenizer: Any, train: list[str], held: list[str]) -> Corpus:
    def encode(texts: list[str]) -> Tensor:
        return torch.tensor([i for e in tokenizer.encode_batch(texts) for i in e.ids])

    known = tokenizer.get_vocab()
    # "Ġ" is the byte-level form of a space, "Ċ" of a newline.
    words = sorted(i for token, i in known.items() if re.fullmatch("Ġ[a-z]{3,}", token))
    return Corpus(
        encode(train),
        encode(held),
        torch.tensor(tokenizer.encode("\n# pin of").ids),
        torch.tensor(words),
        known[":"],
        known["Ċ"],
        torch.tensor([known[str(digit)] for digit in range(10)]),
        tokenizer.get_vocab_size(),
    )


def pin_lines(corpus: Corpus, count: int, generator: torch.Generator) -> Tensor:
    """``[count, corpus.line]``: lines ``# pin of WORD WORD:DDDD`` with different names."""
    n = len(corpus.words)
    names = torch.randperm(n * n, generator=generator)[:count]
    words = torch.stack([corpus.words[names // n], corpus.words[names % n]], 1)
    values = corpus.digits[torch.randint(10, (count, DIGITS), generator=generator)]
    fill = torch.ones(count, 1, dtype=torch.int64)
    return torch.cat(
        [corpus.head.expand(count, -1), words, fill * corpus.colon, values, fill * corpus.newline], 1
    )


def excerpt(tokens: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """A run of ``length`` tokens from a random place."""
    if len(tokens) <= length:
        raise DemoError(f"the text has {len(tokens)} tokens, {length} were asked for; choose fewer --tokens")
    start = int(torch.randint(len(tokens) - length, (1,), generator=generator))
    return tokens[start : start + length]


def training_sequence(
    corpus: Corpus, length: int, pins: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``length + 1`` tokens of code with ``pins`` lines that each come twice, and the loss weight of every
    token: 0 for digits that nobody can know, ``ANSWER`` for digits that were seen before, else 1."""
    lines = pin_lines(corpus, pins, generator)
    order = torch.randperm(pins * 2, generator=generator) % max(pins, 1)
    pieces, weights = [], []
    code = excerpt(corpus.train, length + 1 - 2 * pins * corpus.line, generator)
    cuts = torch.randint(len(code) + 1, (2 * pins,), generator=generator).sort().values.tolist()
    last, seen = 0, set[int]()
    for cut, pin in zip(cuts, order.tolist(), strict=True):
        weight = torch.ones(corpus.line)
        weight[-1 - DIGITS : -1] = ANSWER if pin in seen else 0.0
        seen.add(pin)
        pieces += [code[last:cut], lines[pin]]
        weights += [torch.ones(cut - last), weight]
        last = cut
    pieces.append(code[last:])
    weights.append(torch.ones(len(code) - last))
    return torch.cat(pieces), torch.cat(weights)


ANSWER = 4.0


def needle_context(
    corpus: Corpus, length: int, pins: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out code of ``length`` tokens with ``pins`` lines at even depths, and the same lines again, in
    another order, at the end.

    Returns:
        tokens ``[length]``; the places ``[pins, DIGITS]`` of the digits to recall; the depth ``[pins]`` of
        each one's first line, 0 the beginning and 1 the end.
    """
    lines = pin_lines(corpus, pins, generator)
    code = excerpt(corpus.held, length - 2 * pins * corpus.line, generator)
    cuts = [len(code) * (2 * i + 1) // (2 * pins) for i in range(pins)]  # none among the first tokens: sinks
    pieces = [code[: cuts[0]]]
    for i, cut in enumerate(cuts):
        pieces += [lines[i], code[cut : cuts[i + 1] if i + 1 < pins else len(code)]]
    order = torch.randperm(pins, generator=generator)
    starts = length - (pins - torch.arange(pins)) * corpus.line
    places = starts[:, None] + corpus.line - 1 - DIGITS + torch.arange(DIGITS)
    tokens = torch.cat([*pieces, lines[order].flatten()])
    return tokens, places, torch.tensor(cuts)[order] / len(code)
