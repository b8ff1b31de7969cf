"""What nvcc makes of the kernels, read without a GPU: no spills, tensor cores used, one symbol, nothing needed to load."""

import ctypes
import re
import subprocess
from collections import Counter

import pytest
from conftest import ROOT, find_tool

SPILLS = re.compile(
    r"entry function '(\S+)' for '(\S+)'\s.*\s+"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


@pytest.fixture(scope="module")
def built(tool):
    return compiled(tool, "cuda", "-DCMAKE_CUDA_ARCHITECTURES=90-real")


def compiled(tool, folder, *options):
    """(folder, what the compiler said)"""
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    build = ROOT / "build" / folder
    kept = build / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    configure = [
        tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DCMAKE_BUILD_TYPE=Release", "-DRWKV_CUDA=ON", "-DRWKV_BUILD_PYTHON=OFF", *options,
        f"-DCMAKE_CUDA_FLAGS=-Xptxas -v --keep --keep-dir {kept}",
    ]  # fmt: skip
    log = build / "said"
    for command in (configure, [tool("ninja"), "-C", build, "-v", "rwkv_cuda"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}", pytrace=False)
        if "Function properties" in done.stdout:
            log.write_text(done.stdout)
    return build, log.read_text()


def spilling(said):
    """Of which devices something was said, and the kernels that spill there."""
    found = SPILLS.findall(said)
    devices = Counter(device for _, device, *_ in found)
    assert min(devices.values()) >= 50
    return set(devices), [(name, device) for name, device, *sizes in found if any(map(int, sizes))]


def test_no_kernel_spills(built):
    assert spilling(built[1]) == ({"sm_90"}, [])


@pytest.mark.slow
def test_no_kernel_spills_on_any_device(tool):
    """As it is installed: for each device that there is code for."""
    devices, kernels = spilling(compiled(tool, "cuda-all")[1])
    assert {"sm_75", "sm_80", "sm_90"} <= devices
    assert kernels == []


def test_products_are_made_by_tensor_cores(built):
    ptx = {path.stem: path.read_text() for path in (built[0] / "kept").glob("*.ptx")}
    for name, instructions in {
        "small": ["mma.sync.aligned.m16n8k16.row.col.f32.f16", "f32.bf16.bf16", "ld.global.nc.L1::no_allocate.v4"],
        "sparse": ["mma.sync.aligned.m16n8k16.row.col.f32.f16", "f32.bf16.bf16", "cp.async.cg", "m8n8.x4.trans"],
        "tile": ["mma.sync.aligned.m16n8k16.row.col.f32.f16", "f32.bf16.bf16", "cp.async.cg", "ldmatrix.sync.aligned"],
        "chunk": ["mma.sync.aligned.m16n8k16.row.col.f32.f16", "ldmatrix.sync.aligned.m8n8", "movmatrix.sync"],
    }.items():
        (text,) = [text for stem, text in ptx.items() if stem.split(".")[0].split("-")[0] == name]
        for instruction in instructions:
            assert instruction in text, (name, instruction)


def test_one_symbol_and_no_library_of_cuda(built, tool):
    library = built[0] / "librwkv_cuda.so"
    nm, readelf = tool("nm"), tool("readelf")
    symbols = subprocess.run([nm, "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in symbols.splitlines()] == ["rwkv_backend_get"]
    dynamic = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(\w+)", dynamic))
    assert needed <= {"libc", "libstdc", "libgcc_s", "libm", "ld", "libdl", "libpthread", "librt"}


def test_without_a_driver_the_library_says_so(built, monkeypatch):
    """It opens and tells why there is no device."""
    library = ctypes.CDLL(str(built[0] / "librwkv_cuda.so"))
    library.rwkv_backend_get.restype = ctypes.c_void_p
    assert library.rwkv_backend_get(0) is None and library.rwkv_backend_get(1)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        import rwkv_engine as rwkv

        monkeypatch.setenv("RWKV_CUDA_LIBRARY", str(built[0] / "librwkv_cuda.so"))
        with pytest.raises(rwkv.DeviceError, match=r"'cuda:0': expected a usable GPU, found none: cudaGetDeviceCount"):
            rwkv.Engine("demo", "cuda fp16")
