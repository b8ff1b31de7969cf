"""The tokenizer against its definition, and against the `rwkv` package where that is installed."""

import importlib.util
import itertools
import pathlib
import random

import pytest
from tokenizer_reference import ReferenceTokenizer

import rwkv_engine as rwkv

WORLD = pathlib.Path(rwkv.__file__).resolve().parent / "data" / "rwkv_vocab_v20230424.txt"

TEXTS = {
    "empty": "",
    "english": "The Eiffel Tower, 330 metres (1,083 ft) tall, isn't in Lyon.\n\nUser: hi\r\n\r\nAssistant: \tHello!  "
    * 20,
    "code": pathlib.Path(__file__).read_text(encoding="utf-8"),
    "cjk": "据说，天空是蓝色的。吾輩は猫である。名前はまだ無い。나는 학생입니다. 𠮷野家 ㍿ Ｆｕｌｌｗｉｄｔｈ"
    * 10,
    "scripts": "Привет, мир! γειά σου مرحبا بالعالم שלום नमस्ते สวัสดี አማርኛ Ünïcödé é z̷̛a̴l̶g̵o \u2028\u2029\x85\x1c\x0b",
    "emoji": "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇫🇷🇯🇵 ✿ 1️⃣ ❤️‍🔥 \U0001fae8 \U000e0067 \U0010ffff \ufffd \ufeff",
    "spaces": " " * 1000
    + "-" * 500
    + "\n" * 300
    + "\t \t  " * 100
    + "0123456789" * 50
    + "\x00\x01\x7f",
}


@pytest.fixture(scope="module")
def world():
    return rwkv.Tokenizer.world()


@pytest.fixture(scope="module")
def reference():
    return ReferenceTokenizer(WORLD)


@pytest.fixture(scope="module")
def package():
    """The package's tokenizer; its file is loaded by itself because the package as a whole wants torch."""
    spec = importlib.util.find_spec("rwkv")
    if spec is None:
        pytest.skip("rwkv is not installed")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(
        "rwkv_package_tokenizer", folder / "rwkv_tokenizer.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TRIE_TOKENIZER(str(folder / "rwkv_vocab_v20230424.txt"))


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return str(path)


def stream(tokenizer, ids):
    decoder = tokenizer.stream()
    pieces = [decoder.put(id) for id in ids] + [decoder.finish()]
    for piece in pieces:
        piece.encode("utf-8")  # no lone surrogates
    return "".join(pieces)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_encode_as_defined_and_come_back(world, reference, name):
    text = TEXTS[name]
    ids = world.encode(text)
    assert ids == reference.encode(text)
    assert all(type(id) is int for id in ids)
    assert world.encode(text.encode("utf-8")) == ids
    assert world.decode(ids) == text
    assert world.decode_bytes(ids) == text.encode("utf-8")
    assert stream(world, ids) == text


def test_random_bytes_encode_as_defined_and_come_back(world, reference):
    data = random.Random(1).randbytes(300_000)
    ids = world.encode(data)
    assert ids == reference.encode(data)
    assert world.decode_bytes(ids) == data
    assert world.decode(ids) == stream(world, ids) == data.decode("utf-8", errors="replace")


def test_random_characters_encode_as_defined(world, reference):
    choose = random.Random(2)
    limits = (0x80, 0x800, 0x3100, 0x10000, 0x110000)
    for _ in range(200):
        points = (choose.randrange(choose.choice(limits)) for _ in range(100))
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        ids = world.encode(text)
        assert ids == reference.encode(text)
        assert world.decode(ids) == text


def test_every_token_is_itself(world, reference):
    assert world.vocab_size == 65530 == max(reference.bytes_of) + 1
    for id, value in reference.bytes_of.items():
        assert world.decode_bytes([id]) == value
        assert world.encode(value) == [id]
        assert world.decode([id]) == value.decode("utf-8", errors="replace")


def test_the_shipped_vocabulary_has_plain_line_ends():
    data = WORLD.read_bytes()
    assert data.count(b"\r") == 0 and data.count(b"\n") == 65529 and data.endswith(b"\n")


@pytest.mark.oracle
def test_the_vocabulary_is_the_packages(world, package):
    assert all(world.decode_bytes([id]) == value for id, value in package.idx2token.items())
    assert len(package.idx2token) == 65529


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEXTS)
def test_texts_encode_as_in_the_package(world, package, name):
    assert world.encode(TEXTS[name]) == package.encode(TEXTS[name])


@pytest.mark.oracle
def test_bytes_encode_as_in_the_package(world, package):
    choose = random.Random(3)
    for data in (
        choose.randbytes(300_000),
        bytes(choose.choices(b" \n\tab-=\xe4\xb8\x96\xf0\x9f", k=100_000)),
    ):
        assert world.encode(data) == package.encodeBytes(data)


def test_streams_equal_the_whole_for_any_tokens(world, reference):
    choose = random.Random(4)
    whole = sorted(reference.bytes_of)
    broken = [
        id
        for id, value in reference.bytes_of.items()
        if value.decode("utf-8", "ignore").encode() != value
    ]
    assert len(broken) == 486
    for round in range(1000):
        ids = choose.choices(
            (whole, broken, broken + whole[:260], [0, 65535, *broken])[round % 4],
            k=choose.randrange(40),
        )
        data = b"".join(reference.bytes_of.get(id, b"") for id in ids)
        assert world.decode_bytes(ids) == data
        assert world.decode(ids) == stream(world, ids) == data.decode("utf-8", errors="replace")


def test_a_stream_holds_back_only_what_may_still_become_a_character(world):
    decoder = world.stream()
    first, second, third, fourth = (world.encode(bytes([value]))[0] for value in "😀".encode())
    assert [decoder.put(id) for id in (first, second, third, fourth)] == ["", "", "", "😀"]
    assert decoder.put(first) == ""
    assert decoder.put(world.encode("z")[0]) == "\ufffdz"
    assert decoder.put(first) == "" and decoder.finish() == "\ufffd" and decoder.finish() == ""


def test_end_of_text_and_unknown_ids_stand_for_nothing(world):
    assert world.decode([0]) == "" and world.decode_bytes([0]) == b""
    assert world.decode([65530, 65535, 0, 2**31 - 1]) == ""
    assert world.stream().put(0) == ""
    assert world.decode([]) == "" and world.decode_bytes([]) == b""


@pytest.mark.parametrize("bad", [-1, -(2**31)])
def test_negative_ids_are_refused(world, bad):
    for use in (
        lambda: world.decode([1, bad]),
        lambda: world.decode_bytes([bad]),
        lambda: world.stream().put(bad),
    ):
        with pytest.raises(rwkv.Error, match=f"expected .*, found {bad}$"):
            use()


@pytest.mark.parametrize("bad", [2**31, 2**63, 2**64, -(2**40), 10**30, "a", 1.5, None])
def test_ids_that_are_no_32_bit_integers_are_refused(world, bad):
    for use in (
        lambda: world.decode([bad]),
        lambda: world.decode_bytes([bad]),
        lambda: world.stream().put(bad),
    ):
        with pytest.raises((rwkv.Error, TypeError, ValueError, OverflowError)):
            use()


@pytest.mark.parametrize("bad", ["\ud83d", "a\udc80b", None, 5, ["a"]])
def test_text_that_is_no_text_is_refused(world, bad):
    with pytest.raises((rwkv.Error, TypeError, ValueError)):
        world.encode(bad)


def test_any_vocabulary_file_is_read(tmp_path):
    tokenizer = rwkv.Tokenizer(
        write(tmp_path / "v.txt", "7 'a' 1\r\n1 \"it's\" 4\r\n3 b'\\xff\\x00' 2\r\n900 '\\u4e16' 3")
    )
    assert tokenizer.vocab_size == 901
    assert tokenizer.encode("ait's世") == [7, 1, 900]
    assert tokenizer.encode(b"\xff\x00a") == [3, 7]
    assert tokenizer.decode_bytes([3, 2, 900]) == b"\xff\x00\xe4\xb8\x96"
    with pytest.raises(rwkv.Error, match="text, byte 1: expected a byte that a token begins with"):
        tokenizer.encode("ab")


def test_the_demo_vocabulary_covers_every_byte(reference):
    path = WORLD.with_name("demo-vocab.txt")
    tokenizer, definition = rwkv.Tokenizer(str(path)), ReferenceTokenizer(path)
    data = bytes(range(256)) + TEXTS["code"].encode()
    assert tokenizer.encode(data) == definition.encode(data)
    assert tokenizer.decode(tokenizer.encode(TEXTS["code"])) == TEXTS["code"]


MALFORMED = {
    "": "expected a line `id literal length` per token, found an empty file",
    "1 'a' 1\n\n": ":2: expected an id in decimal digits, found the end of the line",
    "-1 'a' 1\n": ":1: expected an id in decimal digits, found '-'",
    "\ufeff1 'a' 1\n": ":1: expected an id in decimal digits, found byte 0xef",
    "1048576 'a' 1\n": ":1: expected an id of at most 1048575, found 1048576",
    f"{2**64 + 1} 'a' 1\n": ":1: expected an id of at most 1048575, found 18446744073709551617",
    "1\t'a' 1\n": ":1: expected one space before the literal, found byte 0x09",
    "1 __import__('os') 1\n": ":1: expected a str or bytes literal ('...', \"...\", b'...', b\"...\"), found '_'",
    "1 r'a' 1\n": "bytes literal ('...', \"...\", b'...', b\"...\"), found 'r'",
    "1 'a": ":1: expected a closing ', found the end of the line",
    "1 'a' 'b' 2\n": ":1: expected a length in decimal digits, found '''",
    "1 '\\q' 2\n": ":1: expected after \\ one of n t r a b f v \\ ' \" x u U or an octal digit, found 'q'",
    "1 b'\\u0041' 1\n": ":1: expected after \\ one of n t r a b f v \\ ' \" x or an octal digit, found 'u'",
    "1 '\\x4' 1\n": ":1: expected 2 hexadecimal digits after \\x, found '''",
    "1 '\\udc80' 3\n": ":1: expected a code point up to U+10FFFF that is no surrogate, found U+0000dc80",
    "1 '\\U00110000' 4\n": ":1: expected a code point up to U+10FFFF that is no surrogate, found U+00110000",
    b"1 '\xe9' 1\n": ":1: expected valid UTF-8 in a str literal, found byte 0xe9",
    b"1 b'\xc3\xa9' 2\n": ":1: expected only ASCII in a bytes literal, found byte 0xc3",
    b"1 'a\0b' 3\n": ":1: expected an escape for this character in a literal, found byte 0x00",
    "1 'a'\n": ":1: expected one space before the length, found the end of the line",
    "1 'a' 1 \n": ":1: expected the line to end after the length, found ' '",
    "1 '' 0\n": ":1: expected a token of 1 to 1024 bytes, found 0",
    f"1 '{'a' * 1025}' 1025\n": ":1: expected a token of 1 to 1024 bytes, found 1025",
    "1 '世' 1\n": ":1: expected length 3, as the literal has, found 1",
    "1 'a' 1\n2 'b' 1\n1 'c' 1\n": ":3: expected an id of its own, found 1, which line 1 has",
    "1 'a' 1\n2 'b' 1\n3 b'a' 1\n": ":3: expected a byte string of its own, found that of line 1",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:24]))
def test_malformed_vocabularies_are_refused(tmp_path, text):
    path = write(tmp_path / "bad.txt", text)
    with pytest.raises(rwkv.ModelFormatError) as caught:
        rwkv.Tokenizer(path)
    assert path in str(caught.value)
    assert MALFORMED[text] in str(caught.value)


def test_a_vocabulary_that_is_absent_or_huge_is_refused(tmp_path):
    with pytest.raises(rwkv.Error, match="absent.txt"):
        rwkv.Tokenizer(str(tmp_path / "absent.txt"))
    with pytest.raises(rwkv.Error):
        rwkv.Tokenizer(str(tmp_path))
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(1 << 40)  # a hole: nothing of it may be read
    with pytest.raises(rwkv.ModelFormatError, match=f"at most 16777216 bytes, found {1 << 40}"):
        rwkv.Tokenizer(str(tmp_path / "huge.txt"))


# ---- in parts ----


def cut(data, rng, longest):
    while data:
        size = rng.randint(0, longest)
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "empty"])
def test_parts_give_the_tokens_of_the_whole(world, name):
    data = TEXTS[name].encode() + b"\xff\xe4\xb8"
    rng = random.Random(name)
    for longest in (1, 3, 50, 5000):
        found = [id for ids in world.encode_parts(cut(data, rng, longest)) for id in ids]
        assert found == world.encode(data)
    text = TEXTS[name]
    assert [id for ids in world.encode_parts(text) for id in ids] == world.encode(text)  # letter by letter


def test_tokens_come_as_soon_as_they_are_certain(world, tmp_path):
    words = write(tmp_path / "words", f"1 'a' 1\n2 'b' 1\n3 {'ab' * 512!r} 1024\n")
    tokenizer = rwkv.Tokenizer(words)
    halves = [b"ab" * 511, b"a", b"b" + b"ab" * 511, b"aab"]
    found = list(tokenizer.encode_parts(halves))
    assert [len(ids) for ids in found] == [0, 0, 1, 1023, 2] and found[2] == [3]
    assert list(tokenizer.encode_parts([])) == [[]] and list(tokenizer.encode_parts([b"", ""])) == [[], [], []]
    endless = world.encode_parts(itertools.repeat("abcdefgh " * 1000))
    assert len(next(endless)) > 2000


def test_a_byte_without_a_token_is_named_by_its_place_in_the_whole(tmp_path):
    tokenizer = rwkv.Tokenizer(write(tmp_path / "words", "1 'a' 1\n2 'aab' 3\n"))
    for parts in ([b"aaa", b"aa", b"ab", b"b"], [b"aaaaaabb"], [b"a"] * 6 + [b"b", b"b"]):
        with pytest.raises(rwkv.Error, match=r"text, byte 7: .* found value 98"):
            list(tokenizer.encode_parts(parts))
    with pytest.raises(TypeError, match="expected str or bytes, found int"):
        list(tokenizer.encode_parts([b"a", 5]))
