"""Templates are data: the ones that come with the package, their choice by a model's name, and files that are refused."""

import dataclasses
import os
import re
import time

import pytest
from helpers import rwkv

from rwkv_engine import templates
from rwkv_engine.templates import ChatTemplate, template_of

GOOD = """
[mine]
models = ["mine", "m[0-9]*"]
separator = "\\n"
stop = ["\\nQ:"]
stop_tokens = ["✿"]
think = "off"
system = { prefix = "S: ", suffix = "" }
user = { prefix = "Q: ", suffix = "" }
assistant = { prefix = "A:", suffix = "" }

[mine.modes.off]
opener = ""
words = "!"
sampling = "plain"

[mine.sampling.plain]
temperature = 0.5
top_k = 3
"""


@pytest.fixture
def load(tmp_path):
    def load(text, model=""):
        path = tmp_path / "t.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ChatTemplate.load(path, model)

    return load


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((f"rwkv7-g1{c}-1.5b-20260930-ctx25600", "bot") for c in "hijkz"),
        *((f"rwkv7-g1{c}-0.1b-20260129-ctx8192", "assistant") for c in "abcdefg"),
        ("rwkv7-g1-0.1b-20250307-ctx4096", "assistant"),
        ("rwkv7-g1i_preview4922-13.3b-20260801-ctx8192", "bot"),
        ("RWKV7-G1k-1.5B-20260930", "bot"),
        ("rwkv7-g1k", "bot"),
        ("rwkv7-g1a4-2.9b-20251118-ctx8192", "assistant"),
        ("rwkv7a-g1d-0.1b-20260212-ctx8192", "assistant"),
        ("RWKV-x070-World-0.4B-v2.9-20250107-ctx4096", "world"),
        ("RWKV-4-World-CHNtuned-7B", "world"),
        ("RWKV-4-Pile-169M", "world"),
        ("big1house", "world"),
        ("demo", "world"),
        ("", "world"),
        ("模型", "world"),
    ],
)
def test_the_name_chooses(model, name):
    assert ChatTemplate.for_model(model).name == name
    assert template_of(None, model).name == name


def test_the_callers_choice_comes_first(load, tmp_path, monkeypatch):
    model = "rwkv7-g1k"
    assert template_of("world", model).name == "world"
    mine = load(GOOD)
    assert template_of(mine, model) is mine
    for path in (tmp_path / "t.toml", str(tmp_path / "t.toml"), os.fsencode(tmp_path / "t.toml")):
        assert template_of(path, model) == mine
    monkeypatch.chdir(tmp_path)
    os.rename("t.toml", "other")
    assert template_of("other", model) == mine  # a file of any name
    (tmp_path / "bot").mkdir()
    assert template_of("bot", model) == ChatTemplate.named("bot")


def test_the_built_in_templates():
    assert ChatTemplate.names() == ["bot", "assistant", "function_calling", "world"]
    for name in ChatTemplate.names():
        template = ChatTemplate.named(name)
        assert template.mode(None) is template.modes[template.think]
        plain = template.mode("off").params
        assert (plain.presence_penalty > 0) == (name == "world")
        if name != "world":
            assert list(template.modes) == ["off", "open", "short", "medium", "long"]
            assert (plain.temperature, plain.top_p, plain.top_k) == (1.0, 0.28, 32)
            thinking = template.mode("open").params
            assert (thinking.temperature, thinking.top_p, thinking.top_k) == (0.96, 0.76, 32)
            penalties = (thinking.presence_penalty, thinking.frequency_penalty)
            assert penalties == ((0, 0) if name == "function_calling" else (1.0, 0.1))
    assert set(ChatTemplate.named("function_calling").roles) == {"system", "user", "assistant", "tool"}
    with pytest.raises(rwkv.Error, match="expected one of bot, .*found 'x'"):
        ChatTemplate.named("x")


def test_a_file_of_ones_own(load):
    mine = load(GOOD)
    assert (mine.name, mine.separator, mine.think, mine.models) == ("mine", "\n", "off", ("mine", "m[0-9]*"))
    assert (mine.stop, mine.stop_tokens) == (("\nQ:",), ("✿",))
    assert mine.roles["assistant"] == templates.Role("A:", "") and "tool" not in mine.roles
    mode = mine.mode(None)
    assert (mode.opener, mode.words) == ("", "!")
    assert mode.params == rwkv.SamplingParams(temperature=0.5, top_k=3)
    assert dataclasses.replace(mine, separator=" ").separator == " "
    assert load(GOOD.replace("\n", "\r\n")) == mine


def test_several_in_one_file(load):
    both = GOOD + GOOD.replace("mine", "yours")
    assert load(both, "rwkv-yours-1b").name == "yours"
    assert load(both, "m7x").name == "mine"  # the first that fits
    with pytest.raises(rwkv.Error, match=r"t\.toml: expected a template that fits 'x', found only mine, yours"):
        load(both, "x")
    assert load(GOOD, "x").name == "mine"  # a single one is meant


def test_the_example_in_the_documentation(load):
    example = re.search(r"whole one::\n\n(.*?)\n\nA preset", templates.__doc__, re.DOTALL)[1]
    template = load(example, "mk7")
    assert template.name == "marks" and template.fits("mk7") and set(template.modes) == {"off", "long"}


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one template, found none"),
        ("a = ", "expected TOML, found: "),
        (b"\xff", "expected TOML, found: "),
        ("[mine]\n[mine]", "expected TOML, found: "),
        ("mine = 3", "mine: expected a table, found an integer"),
        (changed('separator = "\\n"\n', ""), r"mine\.separator: expected this key, found none"),
        (changed('user = { prefix = "Q: ", suffix = "" }\n', ""), r"mine\.user: expected this key"),
        (changed('think = "off"\n', ""), r"mine\.think: expected this key"),
        (changed('opener = ""\n', ""), r"mine\.modes\.off\.opener: expected this key"),
        (changed('{ prefix = "Q: ", suffix = "" }', '"Q: "'), r"mine\.user: expected a table, found 'Q: '"),
        (changed('prefix = "Q: "', "prefix = 3"), r"mine\.user\.prefix: expected a string, found an integer"),
        (changed('prefix = "Q: "', 'prefix = " "'), r"mine\.user\.prefix: expected text, found ' '"),
        (changed('prefix = "Q: "', 'prefix = "\\u0000"'), r"mine\.user\.prefix: expected text without NUL"),
        (changed('suffix = "" }\nassistant', 'suffix = "", x = 1 }\nassistant'), r"mine\.user\.x: expected one of the keys prefix, suffix, found another"),
        (changed("stop =", "stops ="), r"mine\.stops: expected one of the keys"),
        (changed("stop =", "eval ="), r"mine\.eval: expected one of the keys"),
        (changed('["\\nQ:"]', '"\\nQ:"'), r"mine\.stop: expected an array of strings, found"),
        (changed('["\\nQ:"]', '["\\nQ:", true]'), r"mine\.stop: expected a string, found a boolean"),
        (changed('["✿"]', '[""]'), r"mine\.stop_tokens: expected text, found ''"),
        (changed('"mine", "m[0-9]*"', '"(a+)+$"'), r"mine\.models: expected lower-case letters.*found '\(a\+\)\+\$'"),
        (changed('"mine", "m[0-9]*"', '"m[9-0]"'), r"mine\.models: expected lower-case"),
        (changed('"mine", "m[0-9]*"', '"Mine"'), r"mine\.models: expected lower-case"),
        (changed('think = "off"', 'think = "on"'), r"mine\.think: expected one of off, found 'on'"),
        (changed('sampling = "plain"', 'sampling = "fancy"'), r"mine\.modes\.off\.sampling: expected one of plain, found 'fancy'"),
        (changed('words = "!"', "words = 1979-05-27"), r"mine\.modes\.off\.words: expected a string, found a date"),
        (changed("top_k = 3", "seed = 3"), r"mine\.sampling\.plain\.seed: expected one of the keys temperature"),
        (changed("top_k = 3", "top_k = -3"), r"mine\.sampling\.plain\.top_k: expected an integer from 0 to 2147483647, found -3"),
        (changed("top_k = 3", 'top_k = "3"'), r"mine\.sampling\.plain\.top_k: expected an integer, found str"),
        (changed("0.5", "nan"), r"mine\.sampling\.plain\.temperature: expected a number"),
        (changed("0.5", "true"), r"mine\.sampling\.plain\.temperature: expected a number, found bool"),
        (changed("[mine.modes.off]\nopener = \"\"\nwords = \"!\"\nsampling = \"plain\"", "[mine.modes]"), r"mine\.modes: expected a table with entries, found a table"),
        (GOOD + "#" * 65536, "expected at most 65536 bytes, found more"),
        ("a = " + "[" * 60000, "expected TOML, found: "),
        ("a = " + "9" * 60000, "expected TOML, found: |mine|expected a table"),
        ("[" + "a." * 30000 + "a]", "expected "),
    ],
    ids=range(35),
)  # fmt: skip
def test_files_that_are_refused(load, text, message):
    begin = time.monotonic()
    with pytest.raises(rwkv.Error, match=r"t\.toml: (\S+: )?" + message) as error:
        load(text)
    assert len(str(error.value)) < 600 and time.monotonic() - begin < 20


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe.toml", "a\0b"):
        with pytest.raises(rwkv.Error, match="expected a TOML file, found none"):
            ChatTemplate.load(path)


def test_damaged_files_are_refused_or_read(load):
    """Cut or changed anywhere, a file is a template or an Error, and nothing else."""
    for at in range(0, len(GOOD), 3):
        for text in (GOOD[:at], GOOD[:at] + GOOD[at + 1 :], GOOD[:at] + '"' + GOOD[at:]):
            try:
                assert isinstance(load(text), ChatTemplate)
            except rwkv.Error as error:
                assert "t.toml" in str(error)
