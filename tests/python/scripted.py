"""Conversations whose replies are scripted, over the real engine, and what their transcripts should be."""

import dataclasses
import functools

from helpers import engine as small_engine, rwkv

from rwkv_engine.chat import Chat

NAMES = ["bot", "assistant", "function_calling", "world"]
FLOWER = 10060
WORLD = rwkv.Tokenizer.world()


@functools.cache
def world_engine():
    """A small random model with the World vocabulary."""
    return small_engine(L=1, C=16, N=16, F=32, V=65536, ranks=(3, 3, 3, 3))


class Scripted:
    """The engine, but its model writes the given tokens, and then the end of the document."""

    def __init__(self, engine, *replies, name="rwkv7-g1k-1.5b"):
        self.engine, self.tokenizer, self.name = engine, engine.tokenizer, name
        self.replies, self.tokens, self.prompts, self.params = list(replies), [], [], []

    def new_state(self):
        return self.engine.new_state()

    def stream(self, prompt, params, state, progress):
        reply = self.replies.pop(0) if self.replies else []
        reply = self.tokenizer.encode(reply) if isinstance(reply, str) else reply

        def force(written, logits):
            logits[:] = -1e4
            logits[reply[len(written)] if len(written) < len(reply) else 0] = 1e4

        self.prompts.append(prompt)
        self.params.append(params)
        params = dataclasses.replace(params, logits_processor=force, temperature=0)
        return Recorded(self, prompt, self.engine.stream(prompt, params, state, progress))

    @property
    def transcript(self):
        assert self.tokens[0] == 0 and 0 not in self.tokens[1:]
        return self.tokenizer.decode_bytes(self.tokens).decode()


class Recorded:
    def __init__(self, scripted, prompt, stream):
        self.scripted, self.stream = scripted, stream
        scripted.tokens += prompt

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.stream.close()

    def __iter__(self):
        for piece in self.stream:
            if piece.token is not None:
                self.scripted.tokens.append(piece.token)
            yield piece

    finish_reason = property(lambda self: self.stream.finish_reason)


def chat_of(engine, *arguments, **options):
    return Chat(engine, *arguments, **options)


def canonical(name, mode, system, turns, user="user", words=""):
    """What the transcript of (text, written) should be: the upstream formats, written out once more."""
    label = {"user": "User", "tool": "Tool Output"}[user]
    if name == "bot":
        said = [f"User✿{text}{words}✿\nBot✿{mode}{written}✿\n" for text, written in turns]
        return (f"System✿{system}✿\n" if system else "") + "".join(said)
    if name == "function_calling":
        said = [
            f"### {label}\n{text}{words}\n### Assistant\n{mode}{written}\n" for text, written in turns
        ]
        return (f"### System\n{system}\n" if system else "") + "".join(said)
    opener = f"Assistant: {mode}" if mode else "Assistant:"
    said = [f"User: {text}{words}\n\n{opener}{written}\n\n" for text, written in turns]
    return (f"System: {system}\n\n" if system else "") + "".join(said)


MODES = {
    "off": ("<think></think", ""),
    "open": ("<think", ""),
    "short": ("<think", " (think a bit)"),
    "medium": ("<think", " (think)"),
    "long": ("<think", " (think a lot)"),
}
CASES = [(name, think) for name in NAMES[:3] for think in MODES] + [("world", "off")]
END = {"bot": "✿\n", "assistant": "\n\n", "function_calling": "\n", "world": "\n\n"}
# What a model writes when it goes on beyond its reply.
CUE = {"bot": "✿", "assistant": "\n\nUser:", "function_calling": "\n### User", "world": "\n\nUser:"}


def check(engine, name, expected):
    """The last reply may end with some of what follows it."""
    assert expected.startswith(engine.transcript)
    assert engine.transcript.startswith(expected.removesuffix(END[name]))
