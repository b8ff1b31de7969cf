"""A beam search: forks of one state try out many continuations, and the likeliest are printed.

python examples/branching_search.py "def main(" --width 4 --depth 12
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import rwkv_engine as rwkv
from numpy.typing import NDArray

END_OF_TEXT = 0


class Branch(NamedTuple):
    """A text so far: how likely it is, and the state and logits after it."""

    logprob: float
    tokens: list[int]
    state: rwkv.State
    logits: NDArray[np.float32]

    @property
    def ended(self) -> bool:
        """Whether the text is complete."""
        return self.tokens[-1:] == [END_OF_TEXT]


def extensions(branch: Branch, width: int) -> list[tuple[float, list[int], Branch]]:
    """Return the `width` likeliest ways to go on by one token; a text that has ended stays."""
    if branch.ended:
        return [(branch.logprob, branch.tokens, branch)]
    logits = branch.logits.astype(np.float64)
    logprobs = logits - logits.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    best = np.argsort(-logprobs, kind="stable")[:width]
    return [(branch.logprob + float(logprobs[t]), [*branch.tokens, int(t)], branch) for t in best]


def search(engine: rwkv.Engine, prompt: str, width: int, depth: int) -> list[Branch]:
    """Return the `width` likeliest continuations of at most `depth` tokens, best first."""
    state = engine.new_state()
    logits = engine.forward(engine.tokenizer.encode(prompt), state)  # the prompt is read once
    beam = [Branch(0.0, [], state, logits)]
    for _ in range(depth):
        found = [extension for branch in beam for extension in extensions(branch, width)]
        found.sort(key=lambda extension: (-extension[0], extension[1]))
        beam = [parent for _, _, parent in found[:width] if parent.ended]
        grown = [extension for extension in found[:width] if not extension[2].ended]
        if not grown:
            break
        # A fork copies nothing, and all forks take their next token in one batch.
        states = [parent.state.fork() for _, _, parent in grown]
        rows = engine.forward_batch([tokens[-1:] for _, tokens, _ in grown], states)
        for (logprob, tokens, _), state, logits in zip(grown, states, rows, strict=True):
            beam.append(Branch(logprob, tokens, state, logits))
    return sorted(beam, key=lambda branch: (-branch.logprob, branch.tokens))


def main() -> None:
    """Search, and print one continuation per line, its log-probability before it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="def main(")
    parser.add_argument("--model", default="demo", help="path of a checkpoint (default: the demo)")
    parser.add_argument("--width", type=int, default=4, help="continuations kept at each step")
    parser.add_argument("--depth", type=int, default=12, help="tokens of a continuation")
    options = parser.parse_args()
    engine = rwkv.Engine(options.model)
    for branch in search(engine, options.prompt, options.width, options.depth):
        print(f"{branch.logprob:9.4f}  {options.prompt + engine.tokenizer.decode(branch.tokens)!r}")


if __name__ == "__main__":
    main()
