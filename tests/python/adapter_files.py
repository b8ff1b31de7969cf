"""Random adapters for a random model, in the files of those who train them, with what they make of the weights."""

import json

import numpy as np
from helpers import adapter_merges, save

PEFT = "base_model.model."


def targets(m, layers=None):
    """The modules that trainers adapt: all matrices of the layers but the low-rank ones."""
    return [
        name.removesuffix(".weight")
        for name, t in m.weights.items()
        if name.startswith("blocks.") and name.endswith(".weight") and t.ndim == 2
        and (layers is None or int(name.split(".")[1]) in layers)
    ]  # fmt: skip


class Adapter:
    """`parts` is name -> array as RWKV-PEFT calls them; `merge` gives the weights it makes of others."""

    def __init__(self, m, kind, rank=4, seed=0, modules=None, std=0.1, **options):
        self.kind, self.rank, self.options = kind, rank, options
        self.modules = targets(m) if modules is None else modules
        self.parts, rng = {}, np.random.default_rng(seed)

        def draw(name, *shape):
            self.parts[name] = rng.normal(0, std, shape).astype(np.float32)

        for module in self.modules:
            rows, cols = m.weights[module + ".weight"].shape
            if kind == "lora":
                draw(module + ".lora_A", rank, cols)
                draw(module + ".lora_B", rows, rank)
            elif kind == "miss":
                draw(module + ".disha", rank, options.get("width", rows))
            else:
                count = (cols if kind == "bat" else rows) // rank
                draw(module + ".disha", count, rank, rank)

    def merge(self, weights, alpha=None, scale=1.0):
        merged = dict(weights)
        for module in self.modules:
            W = weights[module + ".weight"].astype(np.float64)
            own = {
                name.removeprefix(module + "."): t.astype(np.float64)
                for name, t in self.parts.items()
                if name.startswith(module + ".")
            }
            if self.kind == "lora":
                changed = adapter_merges.lora(W, own["lora_A"], own["lora_B"], alpha, **self.options)
            elif self.kind == "miss":
                changed = adapter_merges.miss(W, own["disha"])
            else:
                changed = adapter_merges.bat(W, own["disha"], by_column=self.kind == "bat")
            merged[module + ".weight"] = W + scale * (changed - W)
        return merged

    def pth(self, path, dtype="f32", **more):
        """As RWKV-PEFT saves it."""
        return save(path, {**self.parts, **more}, dtype)

    def peft(self, folder, config=None, dtype="f32", suffix=".safetensors", **more):
        """As peft's save_pretrained does."""
        folder.mkdir(exist_ok=True)
        weights = ".weight" if self.kind == "lora" else ""
        named = {
            PEFT + name.replace(".disha", ".miss_block") + weights: t
            for name, t in self.parts.items()
        }
        kind = "LORA" if self.kind == "lora" else "MISS"
        said = {"peft_type": kind, "r": self.rank, "target_modules": ["key"], **(config or {})}
        (folder / "adapter_config.json").write_text(json.dumps(said))
        save(folder / f"adapter_model{suffix}", {**named, **more}, dtype)
        return folder
