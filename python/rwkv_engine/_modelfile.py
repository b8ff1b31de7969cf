r"""What Ollama is told of a model: its file, how conversations are written down, how to sample.

A Modelfile has no escapes: texts stand in quotes as they are. Within its TEMPLATE, which is a Go
template, what a chat template says stands in Go strings, so that no blank is lost.
"""

from __future__ import annotations

import dataclasses

from .errors import Error
from .templates import ChatTemplate

_TAGS = ("<think>", "</think>")

# Ollama has defaults of its own for these: all are said.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_tokens": "num_predict",
}


def modelfile(name: str, template: ChatTemplate) -> str:
    """Return a Modelfile for the model file of that name in the same folder.

    >>> from rwkv_engine import ChatTemplate
    >>> print(modelfile("a.gguf", ChatTemplate.named("world")).splitlines()[0])
    FROM ./a.gguf
    """
    values = dataclasses.asdict(template.mode(None).params)
    lines = [
        f"FROM {_quoted(f'./{name}')}",
        f'TEMPLATE """{_go_template(template)}"""',
        *(f"PARAMETER stop {_quoted(text, True)}" for text in template.stop + template.stop_tokens),
        *(f"PARAMETER {theirs} {values[ours]:g}" for ours, theirs in _PARAMETERS.items()),
        "PARAMETER repeat_penalty 1",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str, always: bool = False) -> str:
    if not all(c.isprintable() or c in "\n\t" for c in text) or '"""' in text:
        raise Error(
            f"modelfile: expected text that an Ollama Modelfile can hold, found {text!r:.100}"
        )
    if '"' in text:
        return f'"""{text}"""'
    plain = text.isascii() and not any(c.isspace() for c in text)
    return text if plain and not always else f'"{text}"'


def _go_template(template: ChatTemplate) -> str:
    mode = template.mode(None)
    lines = ["{{- range $i, $_ := .Messages }}"]
    for number, (role, around) in enumerate(template.roles.items()):
        content = "{{ .Content }}"
        if role == "user" and mode.words:
            content += "{{ if eq (len (slice $.Messages $i)) 1 }}" + _said(mode.words) + "{{ end }}"
        if role == "assistant":
            content = _thoughts(template) + _blank(around.prefix) + content
        condition = "else if" if number else "if"
        lines.append(
            f'{{{{- {condition} eq .Role "{role}" }}}}{_said(around.prefix)}{content}'
            + _said(around.suffix + template.separator)
        )
    lines += ["{{- end }}", "{{- end }}"]
    begin = _said(template.roles["assistant"].prefix).replace("{{", "{{-", 1)
    return "\n".join([*lines, begin]) + _opener(template)


def _blank(prefix: str) -> str:
    """Return what puts a blank after "Assistant:" if the answer has none of its own."""
    if not prefix.endswith(":"):
        return ""
    return '{{ if ne (printf "%.1s" .Content) " " }}{{ " " }}{{ end }}'


def _thinks(opener: str) -> bool:
    return opener.rfind("<think") > opener.rfind("</think")


def _thoughts(template: ChatTemplate) -> str:
    """Return the reasoning of a message; Ollama takes the tags from what stands around it."""
    if not _thinks(template.mode(None).opener):
        return ""
    return "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n{{ end }}"


def _opener(template: ChatTemplate) -> str:
    """Return how the reply begins, which the caller's `think` decides where there is a choice."""
    own = template.mode(None).opener
    quiet = [mode.opener for mode in template.modes.values() if "</think" in mode.opener]
    if not _thinks(own) or not quiet:
        return _said(_whole(own))
    off, on = _said(_whole(quiet[0])), _said(_whole(own))
    return f"{{{{ if and .IsThinkSet (not .Think) }}}}{off}{{{{ else }}}}{on}{{{{ end }}}}"


def _whole(opener: str) -> str:
    """Return an opener with the tag that it leaves to the model, and the line break after it."""
    ends = [tag[n:] for tag in _TAGS for n in range(1, len(tag)) if opener.endswith(tag[:n])]
    return f"{opener}{ends[0]}\n" if ends else opener


def _said(text: str) -> str:
    """Return a text as an action of a Go template."""
    if not text:
        return ""
    escapes = {"\n": r"\n", "\t": r"\t", '"': r"\"", "\\": r"\\"}
    inside = (
        escapes.get(c) or (c if c.isprintable() else rf"\U{ord(c):08x}")  # as Go writes it
        for c in text
    )
    return '{{ "' + "".join(inside) + '" }}'
