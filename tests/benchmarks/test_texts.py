"""Texts: their files in every form and with every error, folds, vocabularies, and the networks that read them."""

import csv

import pytest
import torch
from datasets import catalogue, texts
from datasets.source import BadData
from harness import learning
from networks.activations import ACTIVATIONS
from networks.catalogue import TEXTS, build, parameter_count
from torch import nn

import leni_kernels as lk

CPU = torch.device("cpu")
CHARACTERS = {character: number for number, character in enumerate(texts.ALPHABET, 1)}
ON_TEXTS = [name for name, activation in ACTIVATIONS.items() if not activation.images_only]
NEWS = [["3", "Shares, up", "Oil is down"], ["1", "A “vote”", 'They said "no"\\nand left'], ["4", "Chips", "32 bits"]]
STARS = [["5", "Great"], ["1", "Bad, bad"], ["2", "So\\nso"]]
SETS = {"ag-news": (NEWS, 4, "ag_news_csv"), "yelp-full": (STARS, 5, "yelp_review_full_csv")}


def sentences(kind, count):
    return [f"{kind} film {index} , seen by all" for index in range(count)]


def write_reviews(folder, negative=None, positive=None, encoding="latin-1", end="\n"):
    for kind, lines in (("neg", negative or sentences("bad", 20)), ("pos", positive or sentences("good", 30))):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rt-polarity.{kind}").write_bytes("".join(f"{line} {end}" for line in lines).encode(encoding))
    return folder


def write_csv(folder, rows, heads=(), encoding="utf-8", **how):
    folder.mkdir(parents=True, exist_ok=True)
    for part, found in (("train", rows), ("test", rows[::-1])):
        with (folder / f"{part}.csv").open("w", encoding=encoding, newline="") as file:
            csv.writer(file, **{"quoting": csv.QUOTE_ALL, **how}).writerows([*([heads] if heads else []), *found])
    return folder


def examples(data, test=False):
    """All inputs and labels of a part, in the set's order."""
    count = data.test_count if test else data.count
    batches = torch.arange(count).split(7)
    found = data.testing(batches) if test else data.training(batches, None, False, lambda rows: rows)
    return [torch.cat(column) for column in zip(*found, strict=True)]


def read(row):
    """What characters stand for, in the order of the text."""
    return "".join(" " if number == 0 else texts.ALPHABET[number - 1] for number in row.tolist()).rstrip()[::-1]


# ---- movie reviews -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("place", [".", "rt-polaritydata"])
def test_reviews_are_read_in_either_encoding_and_where_their_archive_puts_them(tmp_path, encoding, end, place):
    lines = ["née à\x85 coup", *sentences("bad", 19)]  # Latin-1's control characters end no line
    write_reviews(tmp_path / place, lines, encoding=encoding, end=end)
    data = catalogue.load("mr", tmp_path)
    words = catalogue.load("mr-words", tmp_path)
    assert len(data.labels) == len(words.labels) == 50
    assert data.labels.sum() == words.labels.sum() == 30
    assert "n e    coup" in {read(row) for row in data.tokens}
    assert len(words.symbols) == 1 + 10 + 30  # née à coup bad good film , seen by all, and 0 to 29


def test_characters_are_those_of_the_reference_lower_cased_from_the_last_to_the_first():
    assert len(set(texts.ALPHABET)) == 69
    (row, long, nothing) = texts._characters(["AbZ ü\n-İ😀\ud800", "x" * 1014 + "y", ""])
    assert row.dtype == torch.uint8
    assert len(row) == 1014
    wanted = [0, 0, 0, CHARACTERS["i"], CHARACTERS["-"], 69, 0, 0, 26, 2, 1]  # İ is i and a dot in lower case
    assert row[:12].tolist() == [*wanted, 0]
    assert long.unique().tolist() == [CHARACTERS["x"]]
    assert not nothing.any()


def test_words_are_lower_cased_and_cut_and_signs_are_words():
    rows, count = texts._words(["It's SO-SO, né", "a b a c d"], 4)
    assert rows.dtype == torch.int32
    assert count == 7
    # By the alphabet: -, a, b, c, it's, so.
    assert rows.tolist() == [[5, 6, 1, 6], [2, 3, 2, 4]]


@pytest.mark.parametrize("name", ["mr", "mr-words"])
def test_folds_are_disjoint_stratified_and_cover_everything(tmp_path, name):
    data = catalogue.load(name, write_reviews(tmp_path, sentences("bad", 21), sentences("good", 34)))
    folds = [data.split(seed) for seed in range(10)]
    assert sorted(torch.cat([fold.test for fold in folds]).tolist()) == list(range(55))
    for fold in folds:
        assert sorted([*fold.train.tolist(), *fold.test.tolist()]) == list(range(55))
        labels = examples(fold, test=True)[1]
        assert int((labels == 0).sum()) in (2, 3)
        assert int((labels == 1).sum()) in (3, 4)
    again = catalogue.load(name, tmp_path)
    torch.testing.assert_close(again.test, folds[0].test)
    for seed, fold in ((13, 3), (-1, 9)):
        torch.testing.assert_close(data.split(4).split(seed).test, folds[fold].test)


def test_a_vocabulary_is_of_the_training_part_alone(tmp_path):
    # Each sentence has a word of its own and "film", and those of one class "bad".
    lines = [f"film bad{'ly' * index}" for index in range(20)], [f"film good{'ly' * index}" for index in range(20)]
    data = catalogue.load("mr-words", write_reviews(tmp_path, *lines))
    for seed in (0, 1, 9):
        fold = data.split(seed)
        (train, _), (test, _) = examples(fold), examples(fold, test=True)
        assert fold.channels == 2 + 1 + len(train)
        assert train[:, 0].unique().tolist() == [2]  # the most frequent word
        assert sorted(train[:, 1].tolist()) == list(range(3, fold.channels))
        assert test[:, :2].unique(dim=0).tolist() == [[2, texts.UNKNOWN]]
        assert not train[:, 2:].any()
        assert not test[:, 2:].any()


def test_the_rarest_words_are_unknown_and_equally_frequent_ones_go_by_the_alphabet(monkeypatch):
    monkeypatch.setattr(texts, "VOCABULARY", 4)
    tokens = torch.tensor([[5, 3, 3], [1, 2, 0]], dtype=torch.int32)
    assert texts.vocabulary(tokens, 7).tolist() == [0, 3, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("name", ["mr", "mr-words"])
def test_a_smaller_training_part_is_of_both_classes_and_stays_small_in_every_fold(tmp_path, name):
    data = catalogue.load(name, write_reviews(tmp_path))
    small = data.of_size(12)
    for found in (small, small.split(3), small.to(CPU).split(0)):
        assert found.count == 12
        assert found.test_count == 5
        assert set(examples(found)[1].tolist()) == {0, 1}
        assert name == "mr" or found.channels < data.channels
    assert small.of_size(None).split(0).count == 45


@pytest.mark.parametrize(("content", "message"), [
    (None, "rt-polarity.neg: No such file or directory; wanted is a sentence a line, in Latin-1 or UTF-8"),
    (b"", "rt-polarity.neg has 0 sentences, too few for 10 folds; wanted is a sentence a line"),
    (b" \n\n", "rt-polarity.neg has 0 sentences"), (b"one\ntwo\n", "rt-polarity.neg has 2 sentences"),
    ("one\n".encode("utf-16"), "rt-polarity.neg is no text"), (b"\x1f\x8b\x08\x00\x00", "rt-polarity.neg is no text")])
def test_what_are_no_reviews_is_named(tmp_path, content, message):
    write_reviews(tmp_path)
    path = tmp_path / "rt-polarity.neg"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for name in ("mr", "mr-words"):
        with pytest.raises(BadData, match=message) as raised:
            catalogue.load(name, tmp_path)
        assert str(path) in str(raised.value)


# ---- Zhang, Zhao and LeCun's files -------------------------------------------------------------------------


@pytest.mark.parametrize("how", [
    {}, {"quoting": csv.QUOTE_MINIMAL}, {"lineterminator": "\n"}, {"heads": ["Class Index", "Title", "Text"]},
    {"encoding": "utf-8-sig"}], ids=["as published", "few quotes", "unix", "heads", "a mark of the order of bytes"])
@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_csv_is_read_with_heads_or_without_and_where_its_archive_puts_it(tmp_path, name, archive, how):
    rows, classes, place = SETS[name]
    write_csv(tmp_path / place if archive else tmp_path, rows, **how)
    data = catalogue.load(name, tmp_path)
    assert (data.name, data.classes, data.channels, data.size) == (name, classes, 70, 1014)
    assert (data.count, data.test_count) == (3, 3)
    inputs, labels = examples(data)
    assert inputs.dtype == labels.dtype == torch.int64
    assert labels.tolist() == [int(row[0]) - 1 for row in rows]
    wanted = [" ".join(row[1:]).lower().replace("\\n", "\n").replace("“", " ").replace("”", " ") for row in rows]
    assert [read(row) for row in inputs] == wanted
    assert [read(row) for row in examples(data, test=True)[0]] == wanted[::-1]
    assert data.split(5) is data


@pytest.mark.parametrize("name", SETS)
def test_words_of_csv_are_those_of_the_training_part(tmp_path, name):
    rows, _, _ = SETS[name]
    write_csv(tmp_path, rows)
    with (tmp_path / "test.csv").open("a") as file:
        file.write(f"1{',unheard' * (len(rows[0]) - 1)}\n")
    data = catalogue.load(f"{name}-words", tmp_path)
    assert data.name == f"{name}-words"
    (train, _), (test, _) = examples(data), examples(data, test=True)
    assert train.max() == data.channels - 1
    assert sorted(train.unique().tolist()) == [0, *range(2, data.channels)]
    torch.testing.assert_close(test[:3], train.flip(0))
    assert set(test[3].tolist()) == {texts.UNKNOWN, texts.BLANK}
    small = data.of_size(1)
    assert small.count == 1
    assert small.channels == 2 + len(set(train[0].tolist()) - {texts.BLANK})


@pytest.mark.parametrize(("content", "message"), [
    (None, "train.csv: No such file or directory; wanted is lines of a class from 1 to 4, title, description"),
    (b"", "train.csv has no text"), (b"class,title,description\n", "train.csv has no text"),
    (b'"1","a","b"\n"2","c"\n', r"train.csv, line 2 begins \['2', 'c'\]; wanted are lines of a class from 1 to 4"),
    (b"1,a,b\n2,c,d,e\n", "train.csv, line 2 begins"), (b"1,a,b\n\n2,a,b\n", r"train.csv, line 2 begins \[\]"),
    (b"1,a,b\n5,a,b\n", "train.csv, line 2 begins"), (b"0,a,b\n", "train.csv, line 1 begins"),
    (b"head,a,b\nsports,a,b\n", "train.csv, line 2 begins"), (b"1\ta\tb\n", "train.csv has no text"),
    (b'1,a,b\n2,c,"d', "train.csv, line 2 is no CSV .unexpected end of data"),
    (b'1,a,b\n2,"c"x,d\n', "train.csv, line 2 is no CSV"),
    ("1,a,b\n2,é,b\n".encode("latin-1"), "train.csv, line 2 is not UTF-8"),
    ("1,a,b\n".encode("utf-16"), "train.csv is no text")])
def test_what_is_no_csv_of_the_set_is_named(tmp_path, content, message):
    write_csv(tmp_path, NEWS)
    path = tmp_path / "train.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for name in ("ag-news", "ag-news-words"):
        with pytest.raises(BadData, match=message) as raised:
            catalogue.load(name, tmp_path)
        assert str(path) in str(raised.value)


# ---- the networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["all", "first-block"])
@pytest.mark.parametrize("activation", ON_TEXTS)
@pytest.mark.parametrize(("name", "size"), [("text", 140), ("text-words", 30)])
def test_every_activation_that_can_trains_on_texts(name, size, activation, where):
    network = build(name, activation, classes=4, channels=5, width=0.03, where=where, size=size)
    y = network(torch.randint(5, (2, size)))
    assert y.shape == (2, 4)
    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", TEXTS)
def test_with_thresholds_of_0_conv_relu_is_the_stock_network_of_texts(name):
    fused, stock = (build(name, activation, channels=20, width=0.05, size=150).eval()
                    for activation in ("conv_relu", "relu"))
    stock.load_state_dict({key: value for key, value in fused.state_dict().items() if "threshold" not in key},
                          strict=False)
    weights = [parameter for path, parameter in fused.named_parameters() if not path.endswith("threshold")]
    for ours, theirs in zip(weights, stock.parameters(), strict=True):
        theirs.data.copy_(ours)
    tokens = torch.randint(20, (3, 150))
    torch.testing.assert_close(fused(tokens), stock(tokens))


@pytest.mark.parametrize("name", TEXTS)
def test_conv_relu_of_the_first_block_thresholds_in_front_of_the_second_and_third_convolution(name):
    layers = [module for module in build(name, "conv_relu", width=0.05, where="first-block").modules()
              if isinstance(module, nn.Conv1d)]
    assert [isinstance(layer, lk.ConvReLU1d) for layer in layers] == [False, True, True, False, False, False]


def test_prelu_has_a_slope_a_layer():
    for where, slopes in (("all", 6), ("first-block", 2)):
        added = [parameter_count(build("text-words", name, width=0.05, where=where)) for name in ("prelu", "relu")]
        assert added[0] - added[1] == slopes


@pytest.mark.parametrize(("name", "least"), [("text", 123), ("text-words", 27)])
def test_texts_of_the_least_size_fit_and_shorter_ones_are_refused(name, least):
    assert build(name, width=0.02, size=least)(torch.zeros(2, least, dtype=torch.long)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"{name} reads texts of at least {least} symbols, got size {least - 1}"):
        build(name, size=least - 1)


def test_characters_are_one_hot_and_a_blank_is_nothing():
    one_hot = build("text", channels=4, width=0.02)[0]
    wanted = nn.functional.one_hot(torch.tensor([[0, 3, 1]]), 4).transpose(1, 2).float()
    wanted[:, 0] = 0
    torch.testing.assert_close(one_hot(torch.tensor([[0, 3, 1]])), wanted)
    assert not list(one_hot.parameters())


def test_words_begin_alike_small_and_those_behind_the_end_as_nothing():
    features = build("text-words")[0](torch.arange(1000)[None])
    assert features.shape == (1, 300, 1000)
    assert not features[:, :, 0].any()
    assert 0.095 < features[:, :, 1:].std() < 0.105


def test_the_padding_of_words_stays_0_in_training(tmp_path):
    data = catalogue.load("mr-words", write_reviews(tmp_path))
    recipe = learning.recipe("conv_relu", data.name, 2)
    run = learning.Run("text-words", "conv_relu", 1, data.name, data.count, 0.02, "first-block", recipe)
    learner = learning.train(run, data, CPU, tmp_path, lambda _: None)
    assert learner.finished
    embedding = learner.network[0].weight
    assert not embedding[0].any()
    assert embedding[1:].abs().min() > 0
