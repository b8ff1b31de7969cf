"""The engine as a model of EleutherAI's lm-eval (``pip install lm-eval``), which runs benchmarks.

>>> import lm_eval
>>> import rwkv_engine as rwkv
>>> from rwkv_engine.lm_eval import RWKVLM
>>> model = RWKVLM(rwkv.Engine("demo"))
>>> results = lm_eval.simple_evaluate(model, tasks=["lambada_openai"])  # doctest: +SKIP

On the command line ``python -m rwkv_engine.lm_eval`` is lm-eval's own command, which then knows the
model "rwkv-engine"::

    python -m rwkv_engine.lm_eval run --model rwkv-engine \
        --model_args "model=model.pth,strategy=cpu int8" --tasks lambada_openai
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Any

try:
    import lm_eval.models  # noqa: F401 (a registry with one model in it looks for no others)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm  # as all models of lm-eval show how far they are
except ImportError as error:
    raise ImportError(
        f"rwkv_engine.lm_eval needs the package lm-eval; `pip install lm-eval` brings it ({error})"
    ) from error

from ._arguments import Path
from ._script import Script
from .adapters import Adapters
from .engine import Engine
from .errors import Error
from .params import SamplingParams
from .prefixes import read_contexts, shared_length
from .scoring import END_OF_DOCUMENT, continuation_scores, token_scores, total_of
from .templates import ChatTemplate, template_of
from .text import Tokenizer

__all__ = ["RWKVLM"]

BATCH = 32  # whole texts that are scored side by side
SAMPLED = {"temperature": 1.0, "top_p": 1.0}  # what lm-eval's other models sample with


@register_model("rwkv-engine")
class RWKVLM(TemplateLM):
    """An engine that lm-eval asks for log-likelihoods and texts.

    Texts are split into context and continuation as for lm-eval's other models, unless a token
    reaches over the border: then the continuation begins with that token. Texts are written behind
    contexts as they are, blanks at their ends included, but for one: where a conversation ends with
    "Assistant:" or "Assistant: ", a blank is the reply's, as vocabularies have words with the blank
    before them. Continuations get it where they begin without; texts that are returned are without
    it. An empty context is token 0; other models fail there.
    Requests are read side by side, what contexts begin with alike (the examples of few-shot tasks)
    is read once, and continuations of one context are forks of its state. No text is cut, and no
    result depends on what it is computed together with.

    Parameters
    ----------
    model : Engine, or what `Engine` opens, default "demo"
    strategy, threads, tokenizer, adapters
        For an engine that is opened here.
    bos : int or None, default 0
        The token that is read before every context. Documents of the training stood behind token
        0. With None contexts are read as they are, and only an empty one becomes token 0.
    max_gen_toks : int, default 256
        How long texts become where the task does not say.
    template : str, path or ChatTemplate, optional
        How conversations are written down, with lm-eval's ``--apply_chat_template``, which may also
        name it: "bot", "assistant", "function_calling", "world" or a TOML file. By default the one
        for the model's name. Replies begin behind the assistant's prefix, without thinking, or go
        on where the task begins them (``gen_prefix``), and end also with what ends them in the
        template. What people say is cleaned as `Engine.chat` does.
    batch_size, max_batch_size, device
        lm-eval hands these to every model. They mean nothing here.
    """

    def __init__(
        self,
        model: Engine | Path = "demo",
        strategy: str = "auto",
        *,
        threads: int | None = None,
        tokenizer: Path | Tokenizer | None = None,
        adapters: Adapters = None,
        bos: int | None = END_OF_DOCUMENT,
        max_gen_toks: int = 256,
        template: ChatTemplate | Path | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, Engine):
            model = Engine(model, strategy, threads=threads, tokenizer=tokenizer, adapters=adapters)
        self.engine = model
        self.max_gen_toks = max_gen_toks
        self._bos = bos
        self._template = template_of(template, model.name)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return END_OF_DOCUMENT

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        return END_OF_DOCUMENT if self._bos is None else self._bos

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests knows the vocabulary and the template by."""
        template = zlib.crc32(self.chat_template().encode())
        return f"rwkv-engine-{self.engine.config.n_vocab}-{self._template.name}-{template:08x}"

    def chat_template(self, chat_template: bool | str = True) -> str:
        """Return how the template writes a conversation down; another one's name chooses that."""
        if isinstance(chat_template, str):
            self._template = template_of(chat_template, self.engine.name)
        said = [(role, f"{{{role}}}") for role in ("system", "user", "assistant", "user")]
        return self.apply_chat_template(
            [{"role": role, "content": content} for role, content in said]
        )

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text; without a prompt for one the last reply is left open."""
        roles, script = self._template.roles, Script(self._template, self.engine.tokenizer)
        written = []
        for message in chat_history:
            role = message["role"]
            if role not in roles:
                raise Error(f"role: expected one of {', '.join(roles)}, found {role!r:.100}")
            words = script.wording(role, message["content"])
            blank = self._blank if role == "assistant" else ""
            written.append(f"{roles[role].prefix}{blank}{words}{roles[role].suffix}")
        if add_generation_prompt:
            written.append(roles["assistant"].prefix)
        elif written:
            last = chat_history[-1]
            # The line that a task begins for the model, such as one of code, may have ended.
            end = last["content"][len(last["content"].rstrip()) :]
            written[-1] = written[-1].removesuffix(roles[last["role"]].suffix)
            written[-1] += re.sub(r"[\r\n]+", "\n", end)
        return self._template.separator.join(written)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        """Return the tokens of a text, without any that is not in it."""
        return self.engine.tokenizer.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split a text as lm-eval does, or before the token that reaches over the border."""
        if continuation and not continuation[0].isspace() and self._awaits_reply(context):
            continuation = self._blank + continuation
        before, whole = self.tok_encode(context.rstrip()), self.tok_encode(context + continuation)
        border = shared_length(before, whole)
        return whole[:border], whole[border:]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: object,
    ) -> list[tuple[float, bool]]:
        by_context: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, _) in enumerate(requests):
            by_context.setdefault(tuple(self._begun(context)), []).append(i)
        groups = list(by_context.items())
        jobs = [(context, [requests[i][2] for i in places]) for context, places in groups]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        total = sum(len(context) + sum(map(len, rest)) for context, rest in jobs)
        with tqdm(desc="scoring", total=total, unit="tokens", disable=disable_tqdm) as bar:
            scores = continuation_scores(
                self.engine,
                jobs,
                self.engine.new_state(),
                lambda done, _: bar.update(done - bar.n),
            )
        for (_, places), rows in zip(groups, scores, strict=True):
            for i, (logprobs, greedy) in zip(places, rows, strict=True):
                found[i] = total_of(logprobs), bool(greedy.all())
                self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihoods of whole texts, which are read in one piece each."""
        texts = [request.args[0] for request in requests]
        tokens = [[self.prefix_token_id, *self.tok_encode(text)] for text in texts]
        found: list[float] = []
        with tqdm(desc="scoring", total=len(texts), disable=disable_tqdm) as bar:
            for at in range(0, len(texts), BATCH):
                some = tokens[at : at + BATCH]
                states = [self.engine.new_state()] * len(some)
                for logprobs, _ in token_scores(self.engine, some, states):
                    total = total_of(logprobs)
                    self.cache_hook.add_partial(
                        "loglikelihood_rolling", (texts[len(found)],), total
                    )
                    found.append(total)
                bar.update(len(some))
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Write texts that end before one of the strings "until" or with the document."""
        prompts = [self._prompt(*request.args) for request in requests]
        contexts = [self._begun(self.tok_encode(text)) for text, _ in prompts]
        params = [params for _, params in prompts]
        found = [""] * len(requests)
        batches = read_contexts(self.engine, contexts, self.engine.new_state())
        with tqdm(desc="writing", total=len(requests), disable=disable_tqdm) as bar:
            for batch in batches:
                results = self.engine.generate_batch(
                    [[]] * len(batch), [params[i] for i, _ in batch], [state for _, state in batch]
                )
                for (i, _), result in zip(batch, results, strict=True):
                    # Of a conversation the blank after the prefix is the reply's first token.
                    context = requests[i].args[0]
                    own = self._awaits_reply(context) and (self._blank or context.endswith(" "))
                    found[i] = result.text.removeprefix(" ") if own else result.text
                    self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
                bar.update(len(batch))
        return found

    def _begun(self, context: list[int]) -> list[int]:
        """Return a context with the token that all begin with, if it does not have it yet."""
        if context and (self._bos is None or context[0] == self._bos):
            return context
        return [self.prefix_token_id, *context]

    def _prompt(self, context: str, given: dict[str, Any]) -> tuple[str, SamplingParams]:
        """Return what is read and how the text is sampled; a reply ends as the template's do."""
        params = self._params(given)
        if not self._in_reply(context):
            return context, params
        script = Script(self._template, self.engine.tokenizer)
        stop, tokens = (*params.stop, *script.stop), (*params.stop_tokens, *script.stop_tokens)
        params = dataclasses.replace(params, stop=stop, stop_tokens=tokens)
        return context.rstrip(" ") if self._awaits_reply(context) else context, params

    @property
    def _blank(self) -> str:
        """What models write first behind "Assistant:", as in texts of the training."""
        return " " if self._template.roles["assistant"].prefix.endswith(":") else ""

    def _awaits_reply(self, context: str) -> bool:
        """Tell whether a context is a conversation whose next reply nobody has begun."""
        prefix = self._template.roles["assistant"].prefix
        return context.endswith(prefix) and self._in_reply(context)

    def _in_reply(self, context: str) -> bool:
        """Tell whether a context reads as `apply_chat_template` writes it, up to within a reply."""
        roles, separator = self._template.roles, self._template.separator
        if not context.startswith(tuple(role.prefix for role in roles.values())):
            return False
        last, reply = max((context.rfind(separator + r.prefix), r.prefix) for r in roles.values())
        return last >= 0 and reply == roles["assistant"].prefix

    def _params(self, given: dict[str, Any]) -> SamplingParams:
        """Return what lm-eval says in its own words; of what it does not say, nothing is done."""
        options = dict(given)
        until = options.pop("until", None) or []
        lengths = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        length = [options.pop(name, None) for name in lengths]
        sampled = options.pop("do_sample", None)
        if sampled is None:
            sampled = (options.get("temperature") or 0) > 0
        if options.get("num_beams") == 1:  # what there is without the word
            del options["num_beams"]
        sampling = {**SAMPLED, **{k: v for k, v in options.items() if v is not None}}
        known = set(SamplingParams.__dataclass_fields__) - {"max_tokens", "stop"}
        if unknown := sorted(sampling.keys() - known):
            raise Error(
                f"generation_kwargs: expected what SamplingParams have, found {unknown[0]!r}"
            )
        if not sampled:
            sampling = {"temperature": 0}
        return SamplingParams(
            stop=[text for text in ([until] if isinstance(until, str) else until) if text],
            max_tokens=next((n for n in length if n is not None), self.max_gen_toks),
            **sampling,
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
