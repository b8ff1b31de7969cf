"""RWKV-7 as a plain torch module whose parameters are called as in official files: what people fine-tune.

`Model(weights)` takes name -> float32 array; `model(tokens)` gives logits (T, V). A parameter `time_state` of a block's
time mix is what its recurrence begins with.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def _linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def _norm(part, name, groups=None):
    weight, bias = part[name + ".weight"], part[name + ".bias"]
    layer = nn.GroupNorm(groups, len(weight), eps=64e-5) if groups else nn.LayerNorm(len(weight))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _part(weights, prefix):
    return {name[len(prefix) :]: t for name, t in weights.items() if name.startswith(prefix)}


def _shifted(x):
    return F.pad(x, (0, 0, 1, -1))


class _Mix(nn.Module):
    """Matrices as layers, the rest as parameters."""

    def __init__(self, part):
        super().__init__()
        for name, t in part.items():
            stem, _, end = name.partition(".")
            if not end:
                setattr(self, stem, nn.Parameter(t))
            elif stem != "ln_x":
                setattr(self, stem, _linear(t))


class TimeMix(_Mix):
    def __init__(self, part):
        super().__init__(part)
        self.heads = self.r_k.shape
        self.ln_x = _norm(part, "ln_x", self.heads[0])

    def forward(self, x, v_first):
        (H, N), T, d = self.heads, len(x), _shifted(x) - x
        r, w, k, v, a, g = (x + d * getattr(self, "x_" + q).flatten() for q in "rwkvag")
        w = torch.sigmoid(self.w0.flatten() + torch.tanh(w @ self.w1) @ self.w2)
        w = torch.exp(-math.exp(-0.5) * w)
        a = torch.sigmoid(self.a0.flatten() + a @ self.a1 @ self.a2)
        g = torch.sigmoid(g @ self.g1) @ self.g2
        xv = v
        r, k, v = self.receptance(r), self.key(k), self.value(v)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0.flatten() + xv @ self.v1 @ self.v2)
        kk = F.normalize((k * self.k_k.flatten()).view(T, H, N), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * self.k_a.flatten())
        r, w, k, v, a = (t.view(T, H, N) for t in (r, w, k, v, a))
        S, rows = getattr(self, "time_state", torch.zeros(H, N, N)), []
        for t in range(T):
            past = S @ kk[t, :, :, None]
            S = S * w[t, :, None] - past * (kk[t] * a[t])[:, None] + v[t, :, :, None] * k[t, :, None]
            rows.append((S @ r[t, :, :, None]).flatten())
        y = self.ln_x(torch.stack(rows))
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(1)
        return self.output(y * g), v_first


class ChannelMix(_Mix):
    def forward(self, x):
        mixed = x + (_shifted(x) - x) * self.x_k.flatten()
        return self.value(torch.relu(self.key(mixed)) ** 2)


class Block(nn.Module):
    def __init__(self, part):
        super().__init__()
        if "ln0.weight" in part:
            self.ln0 = _norm(part, "ln0")
        self.ln1, self.ln2 = _norm(part, "ln1"), _norm(part, "ln2")
        self.att, self.ffn = TimeMix(_part(part, "att.")), ChannelMix(_part(part, "ffn."))

    def forward(self, x, v_first):
        y, v_first = self.att(self.ln1(x), v_first)
        x = x + y
        return x + self.ffn(self.ln2(x)), v_first


class Model(nn.Module):
    def __init__(self, weights):
        super().__init__()
        weights = {name: torch.tensor(t) for name, t in weights.items()}
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self.emb = nn.Embedding.from_pretrained(weights["emb.weight"], freeze=False)
        self.blocks = nn.ModuleList(Block(_part(weights, f"blocks.{i}.")) for i in range(layers))
        self.ln_out, self.head = _norm(weights, "ln_out"), _linear(weights["head.weight"])

    def forward(self, tokens):
        x, v_first = self.blocks[0].ln0(self.emb(tokens)), None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        return self.head(self.ln_out(x))


def train(model, parameters, tokens, steps, lr):
    """Some steps of Adam on one text, of these parameters alone."""
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(tokens[:-1]), tokens[1:])
        loss.backward()
        optimiser.step()
    return loss.item()
