"""RWKV-7 in plain torch behind lm-eval's plainest interface, and the local tasks run with it and with the engine.

Prints JSON: of both models every task's metrics, and every request and its answers. More is asked of the engine's alone
by the JSON on standard input: how texts are split, requests, and tasks with lm-eval's options. It needs lm-eval and
torch, and runs in the folder of the tasks.
"""

import json
import pathlib
import sys

import lm_eval
import torch
import torch.nn.functional as F
from common import part
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.tasks import TaskManager

import rwkv_engine as rwkv
from rwkv_engine.lm_eval import RWKVLM


class TorchRwkv7:
    def __init__(self, path):
        self.w = {name: t.float().squeeze() for name, t in torch.load(path, map_location="cpu", weights_only=True).items()}
        self.H, self.N = self.w["blocks.0.att.r_k"].shape
        self.C = self.H * self.N
        self.L = sum(name.endswith("att.r_k") for name in self.w)
        self.layers = [(part(self.w, f"blocks.{i}.att."), part(self.w, f"blocks.{i}.ffn.")) for i in range(self.L)]
        self.read = []  # (token, what the next one needs, logits) of the last text

    def norm(self, x, name):
        return F.layer_norm(x, (self.C,), self.w[name + ".weight"], self.w[name + ".bias"])

    def time_mix(self, x, last, S, v_first, p):
        m = {q: torch.lerp(x, last, p["x_" + q]) for q in "rwkvag"}
        r, k, v = (p[name + ".weight"] @ m[name[0]] for name in ("receptance", "key", "value"))
        w = torch.exp(-0.606531 * torch.sigmoid(p["w0"] + torch.tanh(m["w"] @ p["w1"]) @ p["w2"]))
        a = torch.sigmoid(p["a0"] + m["a"] @ p["a1"] @ p["a2"])
        g = torch.sigmoid(m["g"] @ p["g1"]) @ p["g2"]
        v = v if v_first is None else torch.lerp(v, v_first, torch.sigmoid(p["v0"] + m["v"] @ p["v1"] @ p["v2"]))
        v_first = v if v_first is None else v_first
        kk = F.normalize((k * p["k_k"]).view(self.H, self.N), dim=-1)
        r, w, k, a, heads = (t.view(self.H, self.N) for t in (r, w, k * (1 + (a - 1) * p["k_a"]), a, v))
        S = S * w[:, None] - (S @ kk[..., None]) @ (kk * a)[:, None] + heads[..., None] @ k[:, None]
        y = F.group_norm((S @ r[..., None]).view(1, -1), self.H, p["ln_x.weight"], p["ln_x.bias"], eps=64e-5)[0]
        y = y + ((r * k * p["r_k"]).sum(-1, keepdim=True) * heads).view(-1)
        return p["output.weight"] @ (y * g), S, v_first

    def step(self, token, last, states):
        x, v_first = self.norm(self.w["emb.weight"][token], "blocks.0.ln0"), None
        for i, (att, ffn) in enumerate(self.layers):
            a = self.norm(x, f"blocks.{i}.ln1")
            y, states[i], v_first = self.time_mix(a, last[i, 0].clone(), states[i], v_first, att)
            x = x + y
            b = self.norm(x, f"blocks.{i}.ln2")
            x = x + ffn["value.weight"] @ F.relu(ffn["key.weight"] @ torch.lerp(b, last[i, 1], ffn["x_k"])) ** 2
            last[i, 0], last[i, 1] = a, b
        return self.w["head.weight"] @ self.norm(x, "ln_out")

    @torch.no_grad()
    def logits(self, tokens):
        """(T, V), from the first token on that the last text has not had too."""
        while [token for token, *_ in self.read] != tokens[: len(self.read)]:
            self.read.pop()
        for token in tokens[len(self.read) :]:
            zeros = torch.zeros(self.L, 2, self.C), torch.zeros(self.L, self.H, self.N, self.N)
            state = [t.clone() for t in (self.read[-1][1] if self.read else zeros)]
            row = self.step(token, *state)
            self.read.append((token, state, row))
        return torch.stack([row for *_, row in self.read])


class TorchLM(LM):
    """One request after the other, each from its beginning, token 0."""

    def __init__(self, path, tokenizer):
        super().__init__()
        self.model, self.tokenizer = TorchRwkv7(path), tokenizer

    def answer(self, context, text):
        """Of the tokens of `text` behind those of `context`."""
        # lm-eval leaves blanks at the end of a context to what comes after it.
        before, whole = self.tokenizer.encode(context.rstrip()), self.tokenizer.encode(context + text)
        while before != whole[: len(before)]:  # a token reaches over the border
            before.pop()
        tokens, count = [0, *whole], len(whole) - len(before)
        rows = self.model.logits(tokens[:-1])[-count:].double().log_softmax(-1)
        following = torch.tensor(tokens[-count:])
        picked = rows.gather(1, following[:, None])
        return picked.sum().item(), bool((rows.argmax(-1) == following).all())

    def loglikelihood(self, requests):
        return [self.answer(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [self.answer("", request.args[0])[0] for request in requests]

    def generate_until(self, requests):
        return [self.write(*request.args) for request in requests]

    def write(self, context, options):
        tokens, written = [0, *self.tokenizer.encode(context)], []
        while len(written) < options["max_gen_toks"]:
            written.append(int(self.model.logits(tokens + written)[-1].argmax()))
            text = self.tokenizer.decode(written)
            ends = [text.index(stop) for stop in options["until"] if stop in text]
            if written[-1] == 0 or ends:
                return text[: min(ends)] if ends else text
        return self.tokenizer.decode(written)


def run(model, tasks=("local_choices", "local_texts", "local_writing"), **options):
    manager = TaskManager(include_path=".", include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options)
    return {
        "metrics": found["results"],
        "requests": {task: [sample["arguments"] for sample in rows] for task, rows in found["samples"].items()},
        "answers": {task: [sample["filtered_resps"] for sample in rows] for task, rows in found["samples"].items()},
    }


def answer(model, kind, arguments):
    requests = [Instance(request_type=kind, doc={}, arguments=tuple(a), idx=i) for i, a in enumerate(arguments)]
    try:
        return getattr(model, kind)(requests, disable_tqdm=True)
    except rwkv.Error as error:
        return str(error)


if __name__ == "__main__":
    torch.set_num_threads(1)  # vectors are short
    engine = rwkv.Engine("demo", "cpu fp32", threads=2)
    weights = pathlib.Path(rwkv.__file__).parent / "data" / "demo-rwkv7-1.2M.pth"
    asked = json.load(sys.stdin)
    found = {
        "engine": run(RWKVLM(engine)),
        "torch": run(TorchLM(weights, engine.tokenizer)),
        "splits": [
            [split(RWKVLM(engine), *pair) for split in (RWKVLM._encode_pair, TemplateLM._encode_pair)]
            for pair in asked["splits"]
        ],
        "answers": [answer(RWKVLM(engine, **options), *request) for options, *request in asked["requests"]],
        "tasks": {name: run(RWKVLM(engine, **options), **how) for name, (options, how) in asked["tasks"].items()},
    }
    json.dump(found, sys.stdout)
