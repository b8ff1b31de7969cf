"""Byte-level BPE vocabularies, such as the 20B one of the Pile models: the `tokenizers` package's own ids and texts."""

import json

import pytest
from container_files import to_transformers, write_folder
from helpers import model, rwkv
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference

PILE = dict(version="4", L=2, C=32, F=64, V=600)
TEXT = "def main():\n    return 'Grüße', [1, 2, 3], \"日本語\"  # the quick brown fox, 🦊\n" * 3


def build(path, extra_vocabulary=512):
    """A vocabulary as that of GPT-NeoX: end of text 0, padding 1, bytes, merges, and runs of spaces added behind."""
    reference = Reference(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=extra_vocabulary,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator([TEXT * 5, "hello world " * 30], trainer)
    reference.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 2)])
    reference.save(str(path))
    return reference


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return path, build(path)


def test_a_text_in_parts_is_collected(vocabulary):
    """Nothing says where such a vocabulary lets a text be cut, so it is not."""
    path, _ = vocabulary
    tokenizer = rwkv.Tokenizer(path)
    data = TEXT.encode()
    parts = [data[at : at + 7] for at in range(0, len(data), 7)]
    assert list(tokenizer.encode_parts(parts)) == [tokenizer.encode(TEXT)]
    with pytest.raises(rwkv.Error, match="text, byte 9: expected UTF-8"):
        list(tokenizer.encode_parts([b"hello ", b"you\xff"]))


def test_ids_and_texts_are_those_of_the_package(vocabulary):
    path, reference = vocabulary
    tokenizer = rwkv.Tokenizer(path)
    assert tokenizer.vocab_size == reference.get_vocab_size()
    for text in (TEXT, "", " ", "        x", "hello world", "\r\n\t\0", "a" * 5000):
        ids = reference.encode(text).ids
        assert tokenizer.encode(text) == tokenizer.encode(text.encode()) == ids
        assert tokenizer.decode(ids) == reference.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(vocabulary, text):
    tokenizer = rwkv.Tokenizer(vocabulary[0])
    ids = tokenizer.encode(text)
    assert ids == vocabulary[1].encode(text).ids
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.put, ids)) + stream.finish() == text


def test_marks_are_no_text(vocabulary):
    tokenizer = rwkv.Tokenizer(vocabulary[0])
    ids = tokenizer.encode("a<|endoftext|>b")  # as text, which nobody can end a document with
    assert not {0, 1} & set(ids) and tokenizer.decode(ids) == "a<|endoftext|>b"
    assert tokenizer.decode([0, 1, *tokenizer.encode("a")]) == "a"
    assert tokenizer.decode([10_000]) == ""


def test_text_that_is_no_utf_8(vocabulary):
    with pytest.raises(rwkv.Error, match="byte 2: expected UTF-8.*0xff"):
        rwkv.Tokenizer(vocabulary[0]).encode(b"ab\xff")


def test_a_model_writes_with_it(vocabulary):
    path, reference = vocabulary
    engine = rwkv.Engine(str(model(**PILE).path()), "cpu fp32", threads=1, tokenizer=path)
    result = engine.generate("hello world", rwkv.SamplingParams(max_tokens=30, seed=1))
    assert result.usage.prompt_tokens == len(reference.encode("hello world").ids)
    assert engine.tokenizer.decode(result.tokens).startswith(result.text)
    assert len(result.tokens) == 30 and len(result.text) > 10
    again = engine.generate("hello world", rwkv.SamplingParams(max_tokens=30, seed=1))
    assert again.tokens == result.tokens


def test_the_vocabulary_beside_a_model(vocabulary, tmp_path):
    folder = write_folder(tmp_path / "pile", to_transformers(model(**PILE).weights), binary=True)
    with pytest.raises(rwkv.Error, match="tokenizer="):
        _ = rwkv.Engine(folder, "cpu fp32", threads=1).tokenizer
    (folder / "tokenizer.json").write_bytes(vocabulary[0].read_bytes())
    engine = rwkv.Engine(folder, "cpu fp32", threads=1)
    assert engine.tokenizer.encode("hello") == vocabulary[1].encode("hello").ids


def test_more_ids_than_the_model(vocabulary):
    small = model(version="4", L=1, C=16, F=32, V=40).path()
    with pytest.raises(rwkv.Error, match="below the model's 40"):
        rwkv.Engine(str(small), "cpu fp32", threads=1, tokenizer=vocabulary[0])


def test_two_tokens_with_the_same_bytes(vocabulary, tmp_path):
    """An added run of spaces is a token of its own beside the one made by merges."""
    found = json.loads(vocabulary[0].read_text())
    added = next(t for t in found["added_tokens"] if t["content"] == "  ")

    spaces = next(id for word, id in found["model"]["vocab"].items() if word == "Ġ")
    found["model"]["vocab"]["ĠĠ"] = spaces + 1000
    path = tmp_path / "a.json"
    path.write_text(json.dumps(found))
    tokenizer = rwkv.Tokenizer(path)
    assert tokenizer.decode([spaces + 1000]) == tokenizer.decode([added["id"]]) == "  "


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda text: text[: len(text) // 2], "expected a vocabulary"),
        (lambda text: "{}", "expected a vocabulary"),
        (lambda text: text.replace('"ByteLevel"', '"Metaspace"'), "expected a"),
    ],
)
def test_damaged_files(vocabulary, tmp_path, damage, words):
    path = tmp_path / "a.json"
    path.write_text(damage(vocabulary[0].read_text()))
    with pytest.raises(rwkv.ModelFormatError, match=words):
        rwkv.Tokenizer(path)
