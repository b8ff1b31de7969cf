"""What compare.py compares, each in a process of its own that does what it is told.

    python benchmarks/runners.py (rwkv_engine | llama.cpp | rwkv)

A line of standard input is a JSON list: the name of a method and its arguments. The answer is a line of JSON on standard
output: what the method returned. A program that is not installed answers {"missing": why} and ends. Nothing of the other
benchmarks is imported here: the interpreter need have nothing but numpy and the one program.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time

import numpy as np


class Runner:
    """A program with one model. `step` is what is timed; whatever comes before and after it is not."""

    version = ""
    uses = ""  # instructions, as the program tells

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def open(self, path: str, precision: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Give the model's memory back."""

    def reset(self) -> None:
        """Begin a text."""
        raise NotImplementedError

    def step(self, tokens: list[int]) -> float:
        """Seconds of reading tokens, until the logits after the last of them are there."""
        raise NotImplementedError

    def logits(self) -> np.ndarray:
        raise NotImplementedError

    def streamed_bytes(self) -> int:
        """Bytes of weights that a token reads: all but the embedding table."""
        raise NotImplementedError

    # ---- what compare.py asks for ----

    def about(self) -> dict[str, str]:
        return {"version": self.version, "uses": self.uses}

    def load(self, path: str, precision: str) -> float:
        """Seconds until the logits of a first token are there: a mapped file is only read then."""
        self.close()
        gc.collect()
        begin = time.perf_counter()
        self.open(path, precision)
        self.reset()
        self.step([1])
        return time.perf_counter() - begin

    def prefill(self, tokens: list[int]) -> tuple[float, str]:
        self.reset()
        return self.step(tokens), self._digest()

    def decode(self, prompt: list[int], tokens: list[int]) -> tuple[float, str]:
        self.reset()
        self.step(prompt)
        return sum(self.step([token]) for token in tokens), self._digest()

    def save_logits(self, tokens: list[int], path: str) -> None:
        self.reset()
        self.step(tokens)
        np.save(path, self.logits())

    def memory(self) -> dict[str, int]:
        """Bytes: the highest resident set so far, and what of it now is no mapped file."""
        with open("/proc/self/status") as status:
            sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in status if line.endswith("kB\n")}
        return {"highest": sizes["VmHWM"], "anonymous": sizes["RssAnon"]}

    def _digest(self) -> str:
        return hashlib.sha256(self.logits().tobytes()).hexdigest()


class Engine(Runner):
    """This project, through its public interface."""

    def __init__(self, threads: int) -> None:
        import rwkv_engine

        super().__init__(threads)
        self._rwkv = rwkv_engine
        self._engine = self._state = None
        self.version = f"rwkv-engine {rwkv_engine.__version__}"

    def open(self, path, precision):
        precision, _, skipping = precision.partition(" ")
        self._engine = self._rwkv.Engine(path, f"cpu {precision}", threads=self.threads, sparse=bool(skipping))
        self.uses = self._engine.description

    def close(self):
        self._engine = self._state = None

    def reset(self):
        self._state = self._engine.new_state()

    def step(self, tokens):
        begin = time.perf_counter()
        self._logits = self._engine.forward(tokens, self._state)
        return time.perf_counter() - begin

    def logits(self):
        return self._logits

    def streamed_bytes(self):
        config = self._engine.config
        core = self._engine._core  # the table is bf16, as in the file
        return core.weight_bytes - core.column_bytes - config.n_vocab * config.n_embd * 2


class LlamaCpp(Runner):
    """llama.cpp by its C interface, so that nothing but `llama_decode` is timed."""

    BATCH = 512
    EMBEDDING_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}

    def __init__(self, threads: int) -> None:
        import llama_cpp

        super().__init__(threads)
        self._c = c = llama_cpp
        self.version = f"llama-cpp-python {c.__version__}"
        self._silence = c.llama_log_callback(lambda *_: None)
        c.llama_log_set(self._silence, None)
        c.llama_backend_init()
        self.uses = c.llama_print_system_info().decode().strip(" |")
        self._model = self._context = None
        self._batch = c.llama_batch_init(self.BATCH, 0, 1)

    def open(self, path, precision):
        c = self._c
        options = c.llama_model_default_params()
        options.n_gpu_layers = 0
        if hasattr(options, "use_mmap"):  # until 2026
            options.use_mmap = True
        else:
            options.load_mode = c.LLAMA_LOAD_MODE_MMAP
        self._model = c.llama_model_load_from_file(path.encode(), options)
        options = c.llama_context_default_params()
        options.n_ctx = 1 << 14
        options.n_batch = options.n_ubatch = self.BATCH
        options.n_seq_max = 1
        options.n_threads = options.n_threads_batch = self.threads
        self._context = self._model and c.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not open {path}")
        self._precision = precision

    def close(self):
        if self._context:
            self._c.llama_free(self._context)
            self._c.llama_model_free(self._model)
        self._model = self._context = None

    def reset(self):
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._position = 0

    def step(self, tokens):
        seconds = 0.0
        for at in range(0, len(tokens), self.BATCH):
            part = tokens[at : at + self.BATCH]
            self._fill(part, last=at + self.BATCH >= len(tokens))
            begin = time.perf_counter()
            status = self._c.llama_decode(self._context, self._batch)
            self._c.llama_synchronize(self._context)
            seconds += time.perf_counter() - begin
            if status != 0:
                raise RuntimeError(f"llama_decode: expected 0, found {status}")
        return seconds

    def _fill(self, tokens: list[int], last: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self._position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = last and i == len(tokens) - 1
        self._position += len(tokens)

    def logits(self):
        row = self._c.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(row, (self._size(),)).copy()

    def _size(self) -> int:
        return self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))

    def streamed_bytes(self):
        table = self._size() * self._c.llama_model_n_embd(self._model) * self.EMBEDDING_BYTES[self._precision]
        return self._c.llama_model_size(self._model) - int(table)


class Package(Runner):
    """The `rwkv` package on torch."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
        import importlib.metadata

        import torch
        from rwkv.model import RWKV

        torch.set_num_threads(threads)
        self._open, self._model = RWKV, None
        self.version = f"rwkv {importlib.metadata.version('rwkv')}, torch {torch.__version__}"
        self.uses = torch.backends.cpu.get_cpu_capability()

    def open(self, path, precision):
        self._model = self._open(model=path.removesuffix(".pth"), strategy=f"cpu {precision}")

    def close(self):
        self._model = self._state = None

    def reset(self):
        self._state = None

    def step(self, tokens):
        begin = time.perf_counter()
        self._logits, self._state = self._model.forward(tokens, self._state)
        return time.perf_counter() - begin

    def logits(self):
        return self._logits.float().numpy()

    def streamed_bytes(self):
        return sum(t.numel() * t.element_size() for name, t in self._model.z.items() if name != "emb.weight")


KINDS = {"rwkv_engine": Engine, "llama.cpp": LlamaCpp, "rwkv": Package}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the programs print is no answer

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        runner = KINDS[sys.argv[1]](int(sys.argv[2]))
    except ImportError as error:
        answer({"missing": str(error)})
        return
    answer(runner.about())
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answer(getattr(runner, method)(*arguments))


if __name__ == "__main__":
    main()
