"""Modelfiles: what Ollama reads of them, by its own rules, is what the chat templates say."""

import json
import re

import pytest
from helpers import TINY, model

import rwkv_engine as rwkv
from rwkv_engine._modelfile import modelfile

TALK = [
    {"Role": "system", "Content": "Be {{brief}}."},
    {"Role": "user", "Content": "One?"},
    {"Role": "assistant", "Content": "1", "Thinking": "Hm."},
    {"Role": "user", "Content": "Two?"},
]


def commands(text):
    """(name, value) of each command: values in quotes may have several lines and nothing is escaped."""
    found = re.findall(
        r'^([A-Z]+) (?:(\w+) )?("""(?s:.*?)"""|"(?s:[^"]*)"|\S+)$', text, re.MULTILINE
    )
    assert sum(len(" ".join(filter(None, command))) + 1 for command in found) == len(text)
    return [
        (f"{name} {second}".strip(), value[3:-3] if value[:3] == '"""' else value.strip('"'))
        for name, second, value in found
    ]


def render(template, messages, **options):
    """Runs the part of Go's template language that Modelfiles here are written in."""
    parts = re.split(r"(\s*\{\{-|\{\{)\s*(.*?)\s*\}\}", template)
    code = [("text", parts[0])]
    for action, text in zip(parts[2::3], parts[3::3], strict=True):
        code += [("action", action), ("text", text)]

    def value(expression, dot):
        if expression.startswith('"'):
            return json.loads(expression)  # Go's escapes in use here are JSON's
        if match := re.fullmatch(r'eq \.Role "(\w+)"', expression):
            return dot["Role"] == match[1]
        if expression == 'ne (printf "%.1s" .Content) " "':
            return dot["Content"][:1] != " "
        if expression == "and .IsThinkSet (not .Think)":
            return dot.get("IsThinkSet", False) and not dot.get("Think", False)
        if expression == "eq (len (slice $.Messages $i)) 1":
            return dot is messages[-1]
        assert re.fullmatch(r"\.\w+", expression), expression
        return dot.get(expression[1:], "")

    def block(at, dot, shown):
        """The text up to the `else` or `end` that belongs to this block, and where that is."""
        out = ""
        while at < len(code):
            kind, text = code[at]
            if kind == "text":
                out += text
            elif text == "end" or text.startswith("else"):
                return out, at
            elif text.startswith("if "):
                taken = False
                while True:
                    word = code[at][1]
                    expression = word.removeprefix("else").strip().removeprefix("if ").strip()
                    if word == "end":
                        break
                    here = shown and not taken and (word == "else" or bool(value(expression, dot)))
                    inner, at = block(at + 1, dot, here)
                    out += inner if here else ""
                    taken |= here
            elif text.startswith("range "):
                assert text.endswith(":= .Messages")
                _, end = block(at + 1, None, False)
                out += (
                    "".join(block(at + 1, message, True)[0] for message in messages)
                    if shown
                    else ""
                )
                at = end
            elif shown:
                out += str(value(text, dot))
            at += 1
        return out, at

    return block(0, options, True)[0]


def template_in(text):
    return dict(commands(text))["TEMPLATE"]


def test_world_models(tmp_path):
    rwkv.convert(model(**TINY).path("f32"), tmp_path / "my model.gguf", modelfile=True)
    text = (tmp_path / "my model.Modelfile").read_text()
    assert text.startswith('FROM "./my model.gguf"\n')
    assert 'PARAMETER stop "\nUser:"\n' in text and 'PARAMETER repeat_penalty "' not in text
    found = commands(text)
    assert [value for name, value in found if name == "PARAMETER stop"] == ["\nUser:"]
    params = rwkv.ChatTemplate.named("world").mode(None).params
    said = {name.split()[1]: value for name, value in found if name.startswith("PARAMETER")}
    for name in ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty"):
        assert float(said[name]) == getattr(params, name)
    assert said["num_predict"] == str(params.max_tokens) and said["repeat_penalty"] == "1"
    assert render(template_in(text), TALK) == (
        "System: Be {{brief}}.\n\nUser: One?\n\nAssistant: 1\n\nUser: Two?\n\nAssistant:"
    )
    again = [TALK[1], {"Role": "assistant", "Content": " 1"}]
    assert render(template_in(text), again) == "User: One?\n\nAssistant: 1\n\nAssistant:"


@pytest.mark.parametrize(
    ("options", "opener"),
    [
        ({}, "<think>\n"),
        ({"IsThinkSet": True}, "<think></think>\n"),
        ({"IsThinkSet": True, "Think": True}, "<think>\n"),
    ],
)
def test_models_that_think(options, opener):
    """The tags are whole, since Ollama looks for them, and what follows them is as the models write it."""
    text = modelfile("a.gguf", rwkv.ChatTemplate.named("bot"))
    assert [value for name, value in commands(text) if name == "PARAMETER stop"] == ["✿"]
    assert render(template_in(text), TALK, **options) == (
        "System✿Be {{brief}}.✿\nUser✿One?✿\nBot✿<think>\nHm.\n</think>\n1✿\nUser✿Two?✿\nBot✿"
        + opener
    )
    assert "<think>\n{{ .Thinking }}\n</think>" in text  # where Ollama takes the tags from


@pytest.mark.parametrize("name", rwkv.ChatTemplate.names())
def test_every_template_has_its_roles_and_stops(name):
    template = rwkv.ChatTemplate.named(name)
    text = modelfile("a.gguf", template)
    stops = [value for command, value in commands(text) if command == "PARAMETER stop"]
    assert stops == [*template.stop, *template.stop_tokens]
    for role, around in template.roles.items():
        shown = render(template_in(text), [{"Role": role, "Content": "X"}])
        blank = " " if role == "assistant" and around.prefix.endswith(":") else ""
        assert shown.startswith(f"{around.prefix}{blank}X{around.suffix}{template.separator}")
        assert shown.endswith(render(template_in(text), []))


def test_texts_of_ones_own(tmp_path):
    own = tmp_path / "own.toml"
    text = r"""[own]
separator = "\n"
stop = ["\"stop\"", " x "]
think = "deep"
system = { prefix = "\"{{S}}\\ ", suffix = "" }
user = { prefix = "U\t", suffix = "" }
assistant = { prefix = "A", suffix = "" }
modes = { deep = { opener = "", words = " (deeply)", sampling = "s" } }
sampling = { s = { temperature = 0.5 } }
"""
    own.write_text(text)
    made = modelfile("a.gguf", rwkv.ChatTemplate.load(own))
    assert 'PARAMETER stop """"stop""""\nPARAMETER stop " x "\n' in made
    assert r'{{ "\"{{S}}\\ " }}{{ .Content }}{{ "\n" }}' in made and r'{{ "U\t" }}' in made
    users = [{"Role": "user", "Content": "a"}, {"Role": "user", "Content": "b"}]
    assert render(template_in(made).replace(r"\t", " "), users) == "U a\nU b (deeply)\nA"
    own.write_text(text.replace('" x "', r'"\u0007"'))
    with pytest.raises(rwkv.Error, match="modelfile: expected text"):
        modelfile("a.gguf", rwkv.ChatTemplate.load(own))


def test_files_beside_each_other(tmp_path):
    source = model(**TINY).path("f32")
    rwkv.convert(source, tmp_path / "a.gguf", modelfile=True, template="bot")
    assert "Bot✿" in (tmp_path / "a.Modelfile").read_text()
    (tmp_path / "b.Modelfile").write_text("mine")
    for name, options in (("b", {}), ("c", {"template": "none"})):
        with pytest.raises(rwkv.Error, match="modelfile: expected a new file|template: expected"):
            rwkv.convert(source, tmp_path / f"{name}.gguf", modelfile=True, **options)
        assert not (tmp_path / f"{name}.gguf").exists()
    rwkv.convert(source, tmp_path / "b.gguf", modelfile=True, overwrite=True)
    assert (tmp_path / "b.Modelfile").read_text().startswith("FROM ./b.gguf\n")


def test_a_name_with_blanks_is_quoted(tmp_path):
    rwkv.convert("demo", tmp_path / "a\tb.gguf", modelfile=True)
    assert (tmp_path / "a\tb.Modelfile").read_text().startswith('FROM "./a\tb.gguf"')
