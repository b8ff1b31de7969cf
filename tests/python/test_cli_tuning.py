"""Adapters and tuned states on the command line."""

import json

import numpy as np
import pytest
from helpers import rwkv, save
from test_cli import PROMPT, assert_one_sentence, generated, run

GREEDY = ("--temperature", 0, "--max-tokens", 24)
PARAMS = rwkv.SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with lora.pth for the demo, and tuned.pth."""
    folder = tmp_path_factory.mktemp("tuning")
    config, rng = rwkv.Engine("demo").config, np.random.default_rng(0)
    C, H, N = config.n_embd, config.n_head, config.head_size
    parts = {}
    for i in range(config.n_layer):
        parts[f"blocks.{i}.att.value.lora_A"] = rng.normal(0, 0.5, (4, C))
        parts[f"blocks.{i}.att.value.lora_B"] = rng.normal(0, 0.5, (C, 4))
    save(folder / "lora.pth", parts)
    tuned = {
        f"blocks.{i}.att.time_state": rng.normal(0, 3, (H, N, N)) for i in range(config.n_layer)
    }
    save(folder / "tuned.pth", tuned)
    return folder


def text(engine, state=None):
    return engine.generate(PROMPT, PARAMS, state).text.encode()


def test_generate(files):
    plain = generated(PROMPT, *GREEDY)
    lora = rwkv.Adapter(files / "lora.pth", alpha=8)
    e = rwkv.Engine("demo", adapters=lora)
    assert generated(PROMPT, *GREEDY, "--adapter", f"{files}/lora.pth:8") == text(e) != plain
    twice = rwkv.Engine("demo", adapters=rwkv.Adapter(files / "lora.pth", alpha=3.5))
    assert generated(PROMPT, *GREEDY, "--adapter", f"{files}/lora.pth:3.5") == text(twice)
    demo = rwkv.Engine("demo")
    tuned = text(demo, demo.new_state(init=files / "tuned.pth"))
    assert generated(PROMPT, *GREEDY, "--init", files / "tuned.pth") == tuned != plain
    turned = text(demo, demo.new_state(init=files / "tuned.pth", transposed=True))
    assert generated(PROMPT, *GREEDY, "--init", files / "tuned.pth", "--init-transposed") == turned != tuned


def test_chat(files):
    words = ("chat", "--temperature", 0, "--max-tokens", 8, "--template", "world", "--json")
    lines = b"hello\n/reset\nhello\n"
    plain, tuned = (
        [json.loads(line)["text"] for line in run(*words, *more, stdin=lines).stdout.splitlines()]
        for more in (("--commands",), ("--commands", "--init", files / "tuned.pth"))
    )
    assert len(tuned) == 2 and tuned[0] == tuned[1] != plain[0]  # a new beginning is tuned too


def test_what_is_written_is_merged(files, tmp_path):
    adapter = ("--adapter", f"{files}/lora.pth:8")
    wanted = rwkv.Engine("demo", adapters=rwkv.Adapter(files / "lora.pth", alpha=8)).fingerprint
    for name, command in (("c", ["convert"]), ("q", ["quantize"])):
        target = tmp_path / f"{name}.safetensors"
        precision = ["int8"] if command == ["quantize"] else []
        done = run(*command, "demo", target, *precision, *adapter)
        assert done.returncode == 0, done.stderr
        assert rwkv.Engine(target).fingerprint == wanted
    found = json.loads(run("inspect", "demo", "--json", "--tensors", *adapter).stdout)
    changed = [t["name"] for t in found["tensors"] if t["dtype"] == "f32"]
    assert "blocks.0.att.value.weight" in changed and "blocks.0.att.key.weight" not in changed


def test_eval(files, tmp_path):
    (tmp_path / "text").write_text("def main():\n    return 1\n" * 20)
    words = ("eval", "--file", tmp_path / "text", "--json", "--strategy", "cpu fp32")
    plain, merged = (
        json.loads(run(*words, *more).stdout)[0]["perplexity"]
        for more in ((), ("--adapter", f"{files}/lora.pth:8"))
    )
    assert plain != merged


def test_mistakes_are_one_sentence(files, tmp_path):
    for words, part in (
        (("--adapter", files / "lora.pth"), "alpha"),
        (("--adapter", f"{files}/lora.pth:nan"), "alpha"),
        (("--adapter", f"{files}/lora.pth:x"), "lora.pth:x"),
        (("--adapter", files / "tuned.pth"), "tuned state"),
        (("--init", files / "lora.pth"), "adapter"),
        (("--init", files / "tuned.pth", "--state", "a.state"), "both"),
        (("--init-transposed",), "init"),
    ):
        done = run("generate", PROMPT, *GREEDY, *words)
        assert done.returncode in (1, 2) and not done.stdout
        assert_one_sentence(1, done.stderr, part)
    odd = tmp_path / "a:8"  # a file may be called so
    odd.write_bytes((files / "tuned.pth").read_bytes())
    assert b"tuned state" in run("generate", PROMPT, "--adapter", odd).stderr


def test_states_of_adapters_are_verified_and_converted(files, tmp_path):
    """Merged, as the command makes them, and beside the weights, as `load_adapter` does."""
    lora = rwkv.Adapter(files / "lora.pth", alpha=8)
    demo = rwkv.Engine("demo", threads=1)
    merged = rwkv.Engine("demo", threads=1, adapters=lora)
    for e, name in ((demo, "plain"), (merged, "merged"), (demo, "beside")):
        state = e.new_state(adapter=demo.load_adapter(lora) if name == "beside" else None)
        e.forward([1, 2, 3], state)
        state.save(tmp_path / f"{name}.state")
        state.save_rwkv(tmp_path / f"{name}.pth")
    names = [tmp_path / f"{name}.state" for name in ("plain", "merged", "beside")]
    whose = ("--model", "demo", "--adapter", f"{files}/lora.pth:8")

    done = run("state", "verify", *names, *whose)
    assert done.returncode == 1 and done.stdout.decode().splitlines() == [f"{x}: ok, RWKV-7 after 3 tokens" for x in names[1:]]
    expected = f"plain.state: state of other weights: expected the fingerprint {merged.fingerprint}, found {demo.fingerprint}"
    assert done.stderr.decode().count("\n") == 1 and expected in done.stderr.decode()
    done = run("state", "verify", *names, "--model", "demo", "--adapter", f"{files}/lora.pth:4")
    assert done.returncode == 1 and not done.stdout and done.stderr.count(b"state of other weights") == 3
    done = run("state", "verify", *names, *whose[:2])
    assert done.stdout.decode().splitlines() == [f"{names[0]}: ok, RWKV-7 after 3 tokens"]

    rwkv.quantize("demo", tmp_path / "q.safetensors", "int8")  # which merges nothing
    done = run("state", "verify", *names, "--model", tmp_path / "q.safetensors", *whose[2:])
    assert done.stdout.decode().splitlines() == [f"{names[2]}: ok, RWKV-7 after 3 tokens"]
    assert done.returncode == 1 and done.stderr.count(b"state of other weights") == 2
    for words, part in ((("--adapter", "absent.pth"), "absent.pth"), (("--adapter", "absent.pth", *whose[2:]), "absent.pth")):
        assert_one_sentence(*failed("verify", names[0], *whose[:2], *words), part)
    assert_one_sentence(*failed("verify", *names, "--model", "absent.pth"), "absent.pth")

    half = tmp_path / "half.state"
    for name in names[1:]:
        assert run("state", "convert", name, half, "--dtype", "fp16", "--overwrite", *whose).returncode == 0
        assert half.read_bytes() == rwkv.read_state(name).to_bytes("fp16")
    assert_one_sentence(*failed("convert", names[0], tmp_path / "new.state", *whose), "state of other weights")
    assert not (tmp_path / "new.state").exists()
    assert run("state", "convert", tmp_path / "merged.pth", tmp_path / "new.state", *whose).returncode == 0
    assert rwkv.read_state(tmp_path / "new.state").fingerprint == merged.fingerprint
    for words in (("verify", names[1]), ("convert", names[1], half, "--overwrite"), ("convert", tmp_path / "merged.pth", half, "--overwrite")):
        assert_one_sentence(*failed(*words, *whose[2:]), "--adapter: expected --model too")


def failed(*words):
    done = run("state", *words)
    return done.returncode, done.stderr
