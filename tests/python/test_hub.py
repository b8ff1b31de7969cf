"""Models of the Hugging Face hub, from a small hub on this machine: downloads that go on where they stopped, the cache,
and what is said when there is nothing to download."""

import hashlib
import inspect
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import hub_server
import pytest
from helpers import child_environment
from hub_server import CODE, NAME, PATH, ask, command

import rwkv_engine as rwkv
from rwkv_engine.hub import download

huggingface_hub = pytest.importorskip("huggingface_hub")

DATA = pathlib.Path(rwkv.__file__).parent / "data"
MODEL = (DATA / "demo-rwkv7-1.2M.pth").read_bytes()
HASH = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def server():
    repos = {
        "owner/repo": {
            "README.md": b"text",
            "folder/demo.pth": MODEL,
            "b.gguf": b"GGUF",
            "c.safetensors": b"",
        },
        "owner/alone": {"README.md": b"text", "demo.pth": MODEL},
        "owner/none": {"README.md": b"text"},
    }
    with hub_server.Hub(repos) as hub:
        yield hub


@pytest.fixture
def child(server, tmp_path):
    """The environment of a process whose hub is the server and whose cache is new."""
    environment = child_environment()
    for name in [
        name for name in environment if name.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS"))
    ]:
        del environment[name]
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        environment.pop(name, None)
    return {**environment, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}


def cache_of(child):
    return pathlib.Path(child["HF_HOME"], "hub")


def parts(child):
    return [path.stat().st_size for path in cache_of(child).rglob("*.incomplete")]


def assert_whole(child, found):
    assert pathlib.Path(found["path"]).read_bytes() == MODEL
    assert parts(child) == []
    blobs = [path for path in cache_of(child).glob("*/blobs/*")]
    assert [path.name for path in blobs] == [HASH]


# ---- downloads ----


def test_a_model_is_downloaded_once_and_then_needs_no_network(server, child):
    code = "engine = rwkv.Engine(sys.argv[1], progress=progress)\nfound.update(print=engine.fingerprint, name=engine.name)"
    first = ask(child, code=code)
    assert (first["print"], first["name"]) == (rwkv.Engine("demo").fingerprint, "demo")
    (entry,) = server.downloads()
    assert entry[2] is None
    done = [pair for pair in first["progress"] if pair[1] == len(MODEL)]
    assert done == sorted(done) and len(done) > 10 and done[-1] == [len(MODEL), len(MODEL)]
    assert first["progress"][-1] != done[-1], "then comes the loading"
    server.requests.clear()
    again = ask(child, code=code)
    assert again["print"] == first["print"] and server.requests == []
    server.close()
    assert ask(child, code=code)["print"] == first["print"]
    assert ask(child, code=code, HF_HUB_OFFLINE="1")["print"] == first["print"]


def test_a_broken_download_goes_on_where_it_stopped(server, child):
    server.breaks_after = 1_500_000
    broken = ask(child)
    assert "download ended after 1." in broken["error"] and "of 2.5 MB" in broken["error"]
    (size,) = parts(child)
    assert 1_400_000 < size <= 1_500_000
    assert not list(cache_of(child).glob("*/snapshots/*/folder/*")), (
        "what is not whole is not in the cache"
    )
    server.status = server.breaks_after = None
    server.requests.clear()
    found = ask(child)
    (entry,) = server.downloads()
    assert entry[2] == f"bytes={size}-"
    assert found["progress"][0][0] == size
    assert found["progress"] == sorted(found["progress"])
    assert found["progress"][-1] == [len(MODEL), len(MODEL)]
    assert_whole(child, found)


def test_ctrl_c_stops_at_once_and_the_next_call_goes_on(server, child):
    server.stalls_after = 1_500_000
    code = CODE.replace("EXEC", PATH)
    process = subprocess.Popen(
        [sys.executable, "-c", code, NAME],
        env=child,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert server.stalled.wait(30)
    time.sleep(0.5)  # it takes what has come
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 2
    assert process.returncode == -signal.SIGINT and b"KeyboardInterrupt" in errors
    (size,) = parts(child)
    assert size > 1_000_000
    server.stalls_after = None
    server.requests.clear()
    assert_whole(child, ask(child))
    assert [entry[2] for entry in server.downloads()] == [f"bytes={size}-"]


def test_ctrl_c_ends_the_command_without_a_traceback(server, child):
    server.stalls_after = 1_500_000
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkv_engine", "inspect", NAME],
        env=child,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert server.stalled.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"") and process.returncode == 130


@pytest.mark.parametrize("size", [1000, len(MODEL), len(MODEL) + 1000])
def test_a_damaged_part_does_not_get_into_the_cache(server, child, size):
    blobs = cache_of(child) / "models--owner--repo" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{HASH}.incomplete").write_bytes(bytes(size))
    found = ask(child)
    assert_whole(child, found)
    assert found["progress"][-1] == [len(MODEL), len(MODEL)]


def test_small_files_are_checked_too(server, child):
    """What is not in large-file storage is named by git's hash."""
    server.hash = lambda data: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    etag = server.hash(MODEL)
    blobs = cache_of(child) / "models--owner--repo" / "blobs"
    blobs.mkdir(parents=True)
    for part, requests in ((MODEL[:1000], 1), (bytes(1000), 2)):
        (blobs / f"{etag}.incomplete").write_bytes(part)
        server.requests.clear()
        assert pathlib.Path(ask(child)["path"]).read_bytes() == MODEL
        assert len(server.downloads()) == requests
        (blobs / etag).unlink()


def test_a_defect_is_called_one(server, child):
    code = f"""
import huggingface_hub.file_download as library
def http_get(*_, **__): raise KeyError("odd")
library.http_get = http_get
{PATH}"""
    assert "huggingface_hub failed: KeyError: 'odd'" in ask(child, code=code.strip())["error"]


def test_a_server_that_gives_no_ranges(server, child):
    blobs = cache_of(child) / "models--owner--repo" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{HASH}.incomplete").write_bytes(MODEL[:100_000])
    server.ignores_ranges = True
    assert_whole(child, ask(child))


def test_large_files_lie_on_another_host_which_gets_no_token(server, child):
    server.redirects = True
    server.breaks_after = 1_500_000
    assert "download ended after" in ask(child, HF_TOKEN="hf_secret")["error"]
    server.status = server.breaks_after = None
    server.requests.clear()
    assert_whole(child, ask(child, HF_TOKEN="hf_secret"))
    assert all(wanted.startswith("bytes=1") for _, _, wanted in server.downloads())
    assert ("127.0.0.1", "Bearer hf_secret") in server.authorizations
    assert {token for host, token in server.authorizations if host == "localhost"} == {None}


def test_what_progress_raises_ends_the_download(server, child):
    code = f"""
class Enough(Exception): pass
def progress(done, total):
    if done > 1_000_000: raise Enough
try: {PATH}
except Enough: found["ended"] = True"""
    assert ask(child, code=code.strip())["ended"] is True
    (size,) = parts(child)
    assert size > 900_000
    assert_whole(child, ask(child))


def test_two_processes_download_once(server, child):
    code = CODE.replace("EXEC", PATH)
    both = [
        subprocess.Popen([sys.executable, "-c", code, NAME], env=child, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        assert_whole(child, json.loads(process.communicate(timeout=60)[0]))
    assert len(server.downloads()) == 1


def test_a_file_that_is_too_large_for_parts_is_left_to_the_library(server, child):
    silent = "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
    bars = {"TQDM_POSITION": "-1"} if silent else {}  # even where nobody looks
    found = ask(child, code=f"hub._LARGEST = 1000\n{PATH}", **bars)
    assert_whole(child, found)
    assert found["progress"] == [[len(MODEL), len(MODEL)]]


# ---- names ----


@pytest.mark.parametrize("revision", ["v1", "main", hub_server.COMMIT])
def test_a_revision_is_asked_for(server, child, revision):
    assert_whole(child, ask(child, f"hf:owner/repo@{revision}/folder/demo.pth"))
    assert any(f"/resolve/{revision}/" in path for _, path, _ in server.requests)
    server.close()
    assert_whole(child, ask(child, f"hf:owner/repo@{revision}/folder/demo.pth"))


@pytest.mark.parametrize(
    "name",
    [
        "hf:", "hf:x", "hf:owner/", "hf:/repo/file", "hf:owner//file", "hf:owner/repo/", "hf:owner/repo//file",
        "hf:owner/repo/../file", "hf:owner/repo/a/./b", "hf:../repo/file", "hf:owner/../file", "hf:owner/repo@/file",
        "hf:owner/repo@../file", "hf:owner/repo@..%2F..%2Fx/file", "hf:owner/repo@%2Ftmp%2Fx/file",
        "hf:owner/repo@a%2F%2Fb/file", "hf:owner/repo@a%0Ab/file", "hf:owner/repo/a\\b", "hf:owner/repo/a\nb",
        "hf:ow ner/repo/file",
    ],
)  # fmt: skip
def test_malformed_names(name):
    for call in (download, rwkv.Engine, lambda name: rwkv.convert(name, "/nowhere/x.gguf")):
        with pytest.raises(rwkv.Error, match="expected 'hf:owner/repo/file'"):
            call(name)
    with pytest.raises(rwkv.Error, match="expected 'hf:owner/repo/file'"):
        rwkv.Engine(name.encode())


@pytest.mark.parametrize(
    "name, words",
    [
        ("hf:owner/absent/demo.pth", ["no repository owner/absent", "hf auth login"]),
        ("hf:owner/absent", ["no repository owner/absent", "hf auth login"]),
        (
            "hf:owner/repo/absent.pth",
            ["no such file in owner/repo", "3 model files", "folder/demo.pth", "b.gguf"],
        ),
        ("hf:owner/none/absent.pth", ["no such file in owner/none", "no model files"]),
        ("hf:owner/repo@v9/folder/demo.pth", ["owner/repo", "no revision 'v9'"]),
        ("hf:owner/repo@v9", ["owner/repo", "no revision 'v9'"]),
        (
            "hf:owner/repo",
            ["expected one model", "3 model files", "name one, such as 'hf:owner/repo/"],
        ),
        ("hf:owner/none", ["expected one model", "no model files"]),
        ("hf:owner/--bad--/x", ["expected the name of a repository"]),
    ],
)
def test_what_is_not_there(server, child, name, words):
    error = ask(child, name)["error"]
    assert error.startswith(f"{name}: ") and "\n" not in error
    for word in words:
        assert word in error
    done = command(child, "inspect", name)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"rwkv-engine: {error}\n")


def test_at_most_ten_models_are_listed(server, child):
    server.repos["owner/many"] = {f"m{i:02}.pth": b"" for i in range(14)}
    error = ask(child, "hf:owner/many")["error"]
    assert "14 model files" in error and "m09.pth and 4 more" in error and "m10.pth" not in error


def test_gated_repositories(server, child):
    server.gated.add("owner/repo")
    error = ask(child)["error"]
    assert "owner/repo is gated" in error and "hf auth login" in error and server.url in error


def test_no_network(server, child):
    server.close()
    for name in (NAME, "hf:owner/repo"):
        error = ask(child, name)["error"]
        assert (
            "not in the cache, and the hub cannot be reached: " in error
            and "pass the path of a file" in error
        )
        assert "Connection refused" in error and "Max retries" not in error
        done = command(child, "generate", "x", "--model", name)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"rwkv-engine: {error}\n")


def test_offline_mode(server, child):
    for name in (NAME, "hf:owner/repo"):
        error = ask(child, name, HF_HUB_OFFLINE="1")["error"]
        assert "not in the cache, and HF_HUB_OFFLINE forbids downloads" in error
    assert server.requests == []


def test_a_hub_that_is_ill(server, child):
    server.status = 500
    assert "cannot be reached: it answered 500" in ask(child)["error"]


def test_a_full_disk(server, child):
    code = f"import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(9, 9, 1000)\n{PATH}"
    error = ask(child, code=code)["error"]
    assert "2.5 MB are needed, 0.0 MB are free" in error and "HF_HOME" in error
    assert server.downloads() == []
    code = f"""
import errno, huggingface_hub.file_download as library
def http_get(url, file, **options):
    file.write(bytes(9))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
library.http_get = http_get
{PATH}"""
    error = ask(child, code=code.strip())["error"]
    assert "No space left on device" in error and "HF_HOME" in error


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be written")
def test_a_cache_that_cannot_be_written(server, child, tmp_path):
    (tmp_path / "home").mkdir(mode=0o500)
    assert "cannot be stored: " in ask(child)["error"]


def test_a_cache_where_a_file_is_in_the_way(server, child, tmp_path):
    (tmp_path / "home").write_bytes(b"")
    assert "cannot be stored: " in ask(child)["error"]


def test_a_hash_that_leads_out_of_the_cache(server, child):
    code = f"""
import dataclasses, huggingface_hub
known = huggingface_hub.get_hf_file_metadata
huggingface_hub.get_hf_file_metadata = lambda *a, **k: dataclasses.replace(known(*a, **k), etag="../../x")
{PATH}"""
    assert "expected a hash as its ETag" in ask(child, code=code.strip())["error"]
    assert server.downloads() == []


# ---- whole repositories ----


def test_the_only_model_of_a_repository(server, child):
    server.repos["owner/rwkv7-0.1B"] = server.repos["owner/alone"]
    code = f"{PATH}\nfound['name'] = rwkv.Engine(sys.argv[1]).name"
    for name in ("hf:owner/rwkv7-0.1B", "hf:owner/rwkv7-0.1B@v1"):
        found = ask(child, name, code=code)
        assert_whole(child, found)
        assert found["name"] == "rwkv7-0.1B"


def folder_files(*shards):
    index = {"weight_map": {f"tensor{i}": name for i, name in enumerate(shards)}}
    return {
        "README.md": b"text",
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "rwkv_vocab_v20230424.txt": b"1 'a' 1\n",
        "modeling_rwkv7.py": b"import os",
        "old/config.json": b"{}",
        "old/model.safetensors": b"old",
        "pytorch_model.bin": b"bin",
        **{name: name.encode() * 100 for name in shards},
        **({"model.safetensors.index.json": json.dumps(index).encode()} if len(shards) > 1 else {}),
    }


@pytest.mark.parametrize(
    "shards",
    [
        ["model.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ],
)
def test_a_folder_has_what_a_model_needs(server, child, shards):
    files = server.repos["owner/folder"] = folder_files(*shards)
    found = ask(child, "hf:owner/folder")
    folder = pathlib.Path(found["path"])
    wanted = {name for name in files if "/" not in name} - {
        "README.md",
        "modeling_rwkv7.py",
        "pytorch_model.bin",
    }
    assert {path.name for path in folder.iterdir()} == wanted
    assert all((folder / name).read_bytes() == files[name] for name in wanted)
    total = sum(len(files[name]) for name in shards)
    assert found["progress"] == sorted(found["progress"]) and found["progress"][-1] == [
        total,
        total,
    ]
    server.requests.clear()
    assert ask(child, "hf:owner/folder")["path"] == found["path"] and server.requests == []
    # A folder that lacks weights is completed, or refused without network.
    (folder / shards[-1]).unlink()
    assert ask(child, "hf:owner/folder")["path"] == found["path"]
    assert (folder / shards[-1]).read_bytes() == files[shards[-1]]
    (folder / shards[-1]).unlink()
    if len(shards) > 1:  # what is left, without the index, is no model
        for path in folder.glob("*.index.json"):
            path.unlink()
    server.close()
    assert "not in the cache" in ask(child, "hf:owner/folder")["error"]


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"weight_map": 1}', b'{"weight_map": {"a": "../x.safetensors"}}']
)
def test_a_damaged_index(server, child, index):
    server.repos["owner/folder"] = {
        **folder_files("a.safetensors", "b.safetensors"),
        "model.safetensors.index.json": index,
    }
    assert "expected a weight_map" in ask(child, "hf:owner/folder")["error"]


# ---- the command ----


def test_every_command_takes_such_names(server, child, tmp_path):
    vocab = str(DATA / "demo-vocab.txt")
    options = ("--model", NAME, "--tokenizer", vocab)
    for arguments in (
        ("generate", "def main(", *options, "--temperature", "0", "--max-tokens", "2"),
        ("inspect", NAME),
        ("inspect", NAME, "--json"),
        ("convert", NAME, str(tmp_path / "demo.gguf"), "--type", "f32", "--tokenizer", vocab),
        ("bench", "--model", NAME, "--rounds", "1", "--tokens", "2", "--prompt", "2"),
        ("tokenize", "def", *options),
    ):
        done = command(child, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout or arguments[0] == "convert"
    assert len(server.downloads()) == 1
    assert (
        rwkv.Engine(tmp_path / "demo.gguf", tokenizer=vocab).fingerprint
        == rwkv.Engine("demo").fingerprint
    )


def test_the_command_has_a_bar_for_the_download_and_one_for_the_loading(server, child, monkeypatch):
    from rwkv_engine.cli import _shared

    labels = []
    monkeypatch.setattr(_shared.hub, "download", lambda name, progress: progress(1, 2))
    monkeypatch.setattr(_shared, "Engine", lambda *_, progress, **__: progress(1, 2))
    monkeypatch.setattr(_shared.Bar, "update", lambda bar, done, total: labels.append(bar._label))
    from argparse import Namespace

    _shared.open_engine(Namespace(model=NAME, strategy="auto", threads=None, tokenizer=None, pin=False, adapter=None))
    assert labels == ["downloading", "loading"]
    _shared.open_engine(Namespace(model="demo", strategy="auto", threads=None, tokenizer=None, pin=False, adapter=None))
    assert labels == ["downloading", "loading", "loading"]
