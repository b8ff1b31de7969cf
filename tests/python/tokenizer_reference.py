"""Greedy World encoding by its definition: at each place the longest token that the text goes on with."""

import ast


class ReferenceTokenizer:
    def __init__(self, path):
        self.bytes_of = {}
        with open(path, "rb") as file:
            lines = file.read().split(
                b"\n"
            )  # bytes.splitlines would also split at other characters
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                continue
            begin, end = line.index(b" "), line.rindex(b" ")
            value = ast.literal_eval(line[begin + 1 : end].decode("utf-8"))
            value = value.encode("utf-8") if isinstance(value, str) else value
            assert len(value) == int(line[end:]), line
            self.bytes_of[int(line[:begin])] = value
        self.id_of = {value: id for id, value in self.bytes_of.items()}
        self.lengths = sorted({len(value) for value in self.id_of}, reverse=True)

    def encode(self, text):
        text = text.encode("utf-8") if isinstance(text, str) else text
        ids, at = [], 0
        while at < len(text):
            ids.append(
                next(
                    self.id_of[text[at : at + n]]
                    for n in self.lengths
                    if text[at : at + n] in self.id_of
                )
            )
            at += len(self.bytes_of[ids[-1]])
        return ids
