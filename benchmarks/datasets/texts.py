"""Texts to be classified, from the files that people have of them, as numbers of characters or of words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import within
from .source import BadData, Batches, Examples, Part

FOLDS = 10
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{}\n"
"""That of Zhang, Zhao and LeCun 2015. They count 70 as the hyphen is there twice; here the 70th, number 0, is blank."""
CHARACTERS = 1014
"""How many of them a network reads, there and here."""
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
VOCABULARY = 10_000
"""Symbols at most, the two below among them."""
BLANK, UNKNOWN = 0, 1
"""Behind the end of a text, and each word that is in no vocabulary."""


class Texts(NamedTuple):
    """Texts ``[N, size]`` and their labels ``[N]``, training and test part together: a :class:`~.source.Source`.

    ``train`` and ``test`` are the parts' indices. ``folds`` has the fold of each text of a set that has no test part
    of its own, else is None. ``symbols`` is None for characters, which ``tokens`` (uint8) are already; of words
    (int32) it has the number that each has in the vocabulary of the training part. ``limit``: see ``of_size``.
    """

    name: str
    classes: int
    channels: int
    tokens: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor
    folds: Tensor | None
    symbols: Tensor | None
    limit: int | None = None

    @property
    def size(self) -> int:
        return self.tokens.shape[1]

    @property
    def count(self) -> int:
        return len(self.train)

    @property
    def test_count(self) -> int:
        return len(self.test)

    def training(self, batches: Batches, generator: torch.Generator, augmented: bool, part: Part) -> Iterator[Examples]:
        """As they are: the ConvReLU paper names no augmentation of texts."""
        for batch in batches:
            yield self._examples(part(self.train[batch.to(self.train.device)]))

    def testing(self, batches: Batches) -> Iterator[Examples]:
        for batch in batches:
            yield self._examples(self.test[batch.to(self.test.device)])

    def split(self, seed: int) -> Texts:
        """Fold ``seed`` mod 10 is the test part, where there is none."""
        if self.folds is None:
            return self
        here = self.folds == seed % FOLDS
        return self._of((~here).nonzero().flatten(), here.nonzero().flatten())

    def of_size(self, count: int | None) -> Texts:
        return self._replace(limit=count)._of(self.train, self.test)

    def to(self, device: torch.device) -> Texts:
        return self._replace(**{name: value.to(device) for name, value in self._asdict().items()
                                if isinstance(value, Tensor)})

    def _of(self, train: Tensor, test: Tensor) -> Texts:
        """The same with these parts, and the vocabulary of the first."""
        parts = self._replace(train=train[:self.limit], test=test)
        if self.symbols is None:
            return parts
        symbols = vocabulary(self.tokens[parts.train], len(self.symbols))
        return parts._replace(symbols=symbols, channels=int(symbols.max()) + 1)

    def _examples(self, indices: Tensor) -> Examples:
        rows = self.tokens[indices].long()
        return rows if self.symbols is None else self.symbols[rows], self.labels[indices]


def vocabulary(tokens: Tensor, words: int) -> Tensor:
    """The symbol of each of so many ``words``, int64: the most frequent ones have one of their own.

    Args:
        tokens: words ``[N, size]`` of the training part, int32; 0 is blank.
        words: how many there are, with the blank; of equally frequent ones the first ones are taken.
    """
    frequencies = torch.bincount(tokens.flatten(), minlength=words)
    frequencies[BLANK] = 0
    known = frequencies.argsort(descending=True, stable=True)[:VOCABULARY - 2]
    known = known[frequencies[known] > 0]
    symbols = torch.full_like(frequencies, UNKNOWN)
    symbols[BLANK] = BLANK
    symbols[known] = torch.arange(2, 2 + len(known), device=tokens.device)
    return symbols


# ---- from text to numbers ----------------------------------------------------------------------------------


def _characters(texts: list[str]) -> Tensor:
    """``[N, 1014]``, uint8: the first 1014 characters in lower case, last to first, as Zhang, Zhao and LeCun read."""
    table = torch.zeros(129, dtype=torch.uint8)  # whatever is not ASCII is blank
    for number, character in enumerate(ALPHABET, 1):
        table[ord(character)] = number
    rows = torch.zeros(len(texts), CHARACTERS, dtype=torch.uint8)
    for row, text in zip(rows, texts, strict=True):
        read = text.lower()[:CHARACTERS][::-1]
        if read:
            codes = torch.frombuffer(bytearray(read.encode("utf-32-le", "surrogatepass")), dtype=torch.int32)
            row[:len(read)] = table[codes.clamp(max=128)]
    return rows


def _words(texts: list[str], size: int) -> tuple[Tensor, int]:
    """``[N, size]``, int32: the first words, lower-cased, in alphabetical order from 1 on; and how many, with 0."""
    numbers: dict[str, int] = {}
    rows = torch.zeros(len(texts), size, dtype=torch.int32)
    for row, text in zip(rows, texts, strict=True):
        found = [numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(text.lower())[:size]]
        row[:len(found)] = torch.tensor(found, dtype=torch.int32)
    places = torch.zeros(1 + len(numbers), dtype=torch.int32)
    places[[numbers[word] for word in sorted(numbers)]] = torch.arange(1, len(places), dtype=torch.int32)
    return places[rows], len(places)


def _texts(name: str, classes: int, texts: list[str], labels: Tensor, train: Tensor, test: Tensor,
           folds: Tensor | None, words: int | None) -> Texts:
    """A set in ``words`` words a text; None is in characters."""
    if words is None:
        return Texts(name, classes, 1 + len(ALPHABET), _characters(texts), labels, train, test, folds, None)
    tokens, count = _words(texts, words)
    whole = Texts(f"{name}-words", classes, count, tokens, labels, train, test, folds, torch.arange(count))
    return whole._of(train, test)


# ---- movie reviews -----------------------------------------------------------------------------------------


def mr(folder: Path, words: bool = False) -> Texts:
    """MR (Pang and Lee 2005), 10,662 sentences that find a film bad or good; comes as fold 0 of ten.

    Reads ``rt-polarity.neg`` and ``rt-polarity.pos``, a sentence a line, in ``folder`` or where their archive puts
    them, in ``folder/rt-polaritydata``; in Latin-1, as they are published, or in UTF-8.

    Raises:
        BadData: if a file is missing, is no text, or has fewer sentences than there are folds; the message names it.
    """
    kinds = [_sentences(within(folder, "rt-polaritydata") / f"rt-polarity.{kind}") for kind in ("neg", "pos")]
    order, labels, folds = stratified([len(kind) for kind in kinds])
    sentences = [*kinds[0], *kinds[1]]
    everything = torch.arange(len(order))
    return _texts("mr", len(kinds), [sentences[index] for index in order], labels, everything, everything, folds,
                  64 if words else None).split(0)


def stratified(counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """An order of so many examples of each class, the same in every run, and the label and the fold of each.

    The folds divide each class evenly.
    """
    labels = torch.repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    labels = labels[order]
    folds = torch.empty_like(labels)
    for label, count in enumerate(counts):
        folds[labels == label] = torch.arange(count) % FOLDS
    return order, labels, folds


def _sentences(path: Path) -> list[str]:
    wanted = "a sentence a line, in Latin-1 or UTF-8"
    content = _content(path, wanted)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    # Python's own lines end at Latin-1's control characters too, of which the published files have some.
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if len(found) < FOLDS:
        raise BadData(f"{path} has {len(found)} sentences, too few for {FOLDS} folds; wanted is {wanted}")
    return found


# ---- Zhang, Zhao and LeCun's files -------------------------------------------------------------------------


def ag_news(folder: Path, words: bool = False) -> Texts:
    """AG's News: 120,000 titles and descriptions to train on, 7,600 to test on, of four topics.

    Reads ``train.csv`` and ``test.csv``, ``"class","title","description"``, classes from 1 on, with a line of heads or
    without, in ``folder`` or where their archive puts them, in ``folder/ag_news_csv``.

    Raises:
        BadData: if a file is missing or of another form; the message names it, and the line.
    """
    return _from_csv("ag-news", 4, ("title", "description"), within(folder, "ag_news_csv"), 128 if words else None)


def yelp_full(folder: Path, words: bool = False) -> Texts:
    """Yelp Full: 650,000 reviews to train on, 50,000 to test on, of one to five stars.

    Reads ``train.csv`` and ``test.csv``, ``"stars","text"``, with a line of heads or without, in ``folder`` or where
    their archive puts them, in ``folder/yelp_review_full_csv``.

    Raises:
        BadData: if a file is missing or of another form; the message names it, and the line.
    """
    return _from_csv("yelp-full", 5, ("text",), within(folder, "yelp_review_full_csv"), 256 if words else None)


def _from_csv(name: str, classes: int, columns: tuple[str, ...], folder: Path, words: int | None) -> Texts:
    (texts, labels), (test_texts, test_labels) = (
        _rows(folder / f"{part}.csv", classes, columns) for part in ("train", "test"))
    train, test = torch.arange(len(texts) + len(test_texts)).tensor_split([len(texts)])
    return _texts(name, classes, texts + test_texts, torch.tensor(labels + test_labels), train, test, None, words)


def _rows(path: Path, classes: int, columns: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Texts, and labels from 0 on."""
    wanted = f"lines of a class from 1 to {classes}, {', '.join(columns)}, as CSV in UTF-8"
    content = _content(path, wanted)
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadData(f"{path}, line {line} is not UTF-8; wanted are {wanted}") from None
    texts, labels = [], []
    try:
        for index, row in enumerate(lines):
            if index == 0 and row and not row[0].strip().isdecimal():
                continue  # the heads
            if len(row) != 1 + len(columns) or row[0].strip() not in map(str, range(1, classes + 1)):
                raise BadData(f"{path}, line {lines.line_num} begins {str(row)[:60]}; wanted are {wanted}")
            labels.append(int(row[0]) - 1)
            texts.append(" ".join(row[1:]).replace("\\n", "\n"))  # so they write the end of a line
    except csv.Error as error:
        raise BadData(f"{path}, line {lines.line_num} is no CSV ({error}); wanted are {wanted}") from None
    if not texts:
        raise BadData(f"{path} has no text; wanted are {wanted}")
    return texts, labels


# ---- files -------------------------------------------------------------------------------------------------


def _content(path: Path, wanted: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}; wanted is {wanted}") from None
    if b"\0" in content:
        raise BadData(f"{path} is no text; wanted is {wanted}")
    return content
