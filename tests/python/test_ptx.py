"""The translator of PTX (tests/cusim/ptx.py): each instruction against integers of Python and numbers of numpy, what it
refuses, what translated kernels may not do, and what is counted as they run."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, find_tool
from ptx_cases import CASES, LANES, f32, f64, number

sys.path.insert(0, str(ROOT / "tests" / "cusim"))

import counts
import ptx

HEADER = """.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 shared_memory[];
"""
# In %rd2 the address of the memory that a test hands over, in %rd1 of a thread's 32 bytes of it.
KERNEL = """
.visible .entry NAME(
	.param .align 8 .b8 NAME_param_0[8]
)
.maxntid 32, 1, 1
{
	.reg .pred 	%p<4>;
	.reg .b16 	%rs<4>;
	.reg .b32 	%r<8>;
	.reg .b64 	%rd<8>;
	ld.param.u64 	%rd2, [NAME_param_0];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd1, %r1, 32, %rd2;
BODY
	ret;
}
"""
HARNESS = """
#include "cusim/memory.h"
#include "cusim/ptx_kernels.h"
#include "cusim/race.h"

// For what is said to differ.
void nothing(const void*, const void*) {}

extern "C" const char* run(int kernel, bool compare, bool dependent, unsigned shared, unsigned char* bytes,
                           uint64_t size, const char* counts) {
  using namespace cusim;
  static std::string said;
  DeviceMemory memory(1 << 20, false);
  void* at = memory.allocate(size);
  std::memcpy(at, bytes, size);
  watch_nothing();
  memory.each(watch);
  Options options;
  options.alone = !compare, options.counts = counts;
  const Start start = {"tested", {1, 1, 1}, 32, shared, nothing, nullptr, &at, dependent};
  said = run_translated(start, {nullptr, kernels[kernel]}, memory, options);
  std::memcpy(bytes, at, size);
  return said.c_str();
}
"""


def kernel(name, body):
    return KERNEL.replace("BODY", body).replace("NAME", name)


def case_kernel(name, op, out, kinds):
    """Loads the operands, and stores the result behind three of them."""
    registers = {"out": "%out", **{letter: f"%{letter}" for letter, _ in zip("abcd", kinds)}}
    widths = [k if k[0] == "f" else f"b{max(16, int(k[1:]))}" for k in (out, *kinds)]
    body = [f".reg .{width} {register};" for width, register in zip(widths, registers.values(), strict=True)]
    body += [f"ld.global.{kind} %{letter}, [%rd1+{8 * i}];" for i, (kind, letter) in enumerate(zip(kinds, "abcd"))]
    if "{" in op:
        body.append(op.format(**registers) + ";")
    elif op.startswith("setp."):
        body += [f"{op} %p1, %a, %b;", "selp.u32 %out, 1, 0, %p1;"]
    else:
        body.append(f"{op} {', '.join(registers.values())};")
    return kernel(name, "\n".join([*body, f"st.global.{out} [%rd1+24], %out;"]))


# ---- what they may not do, and counts ----

# What is said of it, and what it does. Kernels begin with waiting, but for two.
WAIT = "griddepcontrol.wait;\n"
FAULTS = {
    "an address is not a multiple of what is read or written there": WAIT + "ld.global.u32 %r4, [%rd2+2];",
    "memory that is not there is read or written": WAIT + "ld.global.u32 %r4, [%rd2+1024];",
    "shared memory that is not there is read or written": WAIT + "mov.u32 %r4, 256; st.shared.u32 [%r4], %r1;",
    "memory is read or written before the kernel in front is waited for": "ld.global.u32 %r4, [%rd2];\n" + WAIT,
    "a thread ends without waiting for the kernel in front": "setp.eq.s32 %p1, %r1, 9;\n@%p1 ret;\n" + WAIT,
    "an operation of some lanes of a warp": WAIT + "shfl.sync.idx.b32 %r4|%p1, %r1, 0, 31, 255;",
    "a copy of neither 16 bytes nor none": WAIT + "mov.u32 %r4, 0; cp.async.cg.shared.global [%r4], [%rd1], 16, 8;",
    "trap": WAIT + "trap;",
    "not all come": WAIT + "setp.eq.s32 %p1, %r1, 9;\n@%p1 bra $LNAME;\nbar.sync 0;\n$LNAME:",
}
PLACED = """.file 1 "/where/kernels.cuh"
.file 2 "/where/rows.cu"
"""
# Each with its own line in the sources: sectors or passes, and the fewest.
ACCESSES = [
    ("mad.wide.u32 %rd4, %r1, 4, %rd2; ld.global.u32 %r4, [%rd4];", "global", 4, 4),
    ("ld.global.u32 %r4, [%rd1];", "global", 32, 4),
    ("ld.global.u32 %r4, [%rd2];", "global", 1, 1),
    ("ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd1];", "global", 32, 16),
    ("mul.lo.s32 %r4, %r1, 4; st.shared.u32 [%r4], %r1;", "shared", 1, 1),
    ("mul.lo.s32 %r4, %r1, 8; st.shared.u32 [%r4], %r1;", "shared", 2, 1),
    ("mul.lo.s32 %r4, %r1, 128; st.shared.u32 [%r4], %r1;", "shared", 32, 1),
    ("mov.u32 %r4, 12; ld.shared.u32 %r5, [%r4];", "shared", 1, 1),
    ("mul.lo.s32 %r4, %r1, 16; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r4];", "shared", 4, 4),
    # A copy is both, and lanes that want nothing write zeros.
    ("mul.lo.s32 %r4, %r1, 16; mad.wide.u32 %rd4, %r1, 16, %rd2; and.b32 %r5, %r1, 16; "
     "cp.async.cg.shared.global [%r4], [%rd4], 16, %r5; cp.async.commit_group; cp.async.wait_group 0;", "global", 8, 8),
    ("", "shared", 4, 4),
]


def counted_text():
    body = "".join(
        f"\t.loc\t1 {100 + i} 3, function_name $L__info_string0, inlined_at 2 7 1\n{text}\n$L__tmp{i}:\n"
        for i, (text, *_) in enumerate(ACCESSES)
    )
    debug = ".section\t.debug_str\n{\n$L__info_string0:\n.b8 95,90,0\n}\n"
    return HEADER + kernel("counted", body) + PLACED + debug


@pytest.fixture(scope="module")
def run(cpp_build, tmp_path_factory):
    """Runs one of the kernels above by its name, on rows of four words of 64 bits; what is said of it."""
    compiler = find_tool("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    text = HEADER + "".join(case_kernel(f"case{i}", *case[:3]) for i, case in enumerate(CASES))
    text += "".join(case_kernel(f"lane{i}", op, "u32", ("u32",)) for i, (op, _) in enumerate(LANES))
    text += "".join(kernel(f"fault{i}", body) for i, body in enumerate(FAULTS.values()))
    kernels = {**ptx.kernels_of(text, "test.ptx"), **ptx.kernels_of(counted_text(), "counted.ptx")}
    folder = tmp_path_factory.mktemp("ptx")
    functions = "".join(k.function(name) for name, k in kernels.items())
    (folder / "kernels.cpp").write_text(
        '#include "cusim/ptx.h"\nnamespace cusim {\nusing namespace ptx;\nusing namespace rwkv::cuda;\n'
        f'constexpr const char* kFile = "test.ptx";\n{functions}\n}}\n'
        "void (*const kernels[])(const void*, const void*) = "
        f"{{{', '.join(f'cusim::{name}' for name in kernels)}}};\n{HARNESS}"
    )
    library = folder / "kernels.so"
    sources = [folder / "kernels.cpp", *(ROOT / "tests" / "cusim" / name for name in ("ptx.cpp", "counts.cpp"))]
    flags = "-std=c++20 -O0 -fPIC -shared -fwrapv -fno-strict-aliasing -w -DRWKV_SIMULATOR -DCUSIM_PTX=90".split()
    folders = [f"-I{ROOT / folder}" for folder in ("", "tests")]
    done = subprocess.run(
        [compiler, *flags, *folders, *sources, cpp_build / "libcusim_core.a", "-o", library],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    call = ctypes.CDLL(str(library)).run
    call.restype = ctypes.c_char_p
    numbers = {name: i for i, name in enumerate(kernels)}

    def run(name, rows, dependent=False, compare=False, shared=0, counts=""):
        assert rows.dtype == np.uint64 and rows.flags.c_contiguous
        at = rows.ctypes.data_as(ctypes.c_void_p)
        said = call(numbers[name], compare, dependent, shared, at, ctypes.c_uint64(rows.nbytes), str(counts).encode())
        return said.decode()

    return run


@pytest.mark.parametrize("i", range(len(CASES)), ids=[case[0].split(" {")[0] for case in CASES])
def test_an_instruction_does_what_its_definition_says(run, i):
    _, out, kinds, operands, definition = CASES[i]
    for begin in range(0, len(operands), 32):
        some = operands[begin : begin + 32]
        rows = np.zeros((32, 4), np.uint64)
        for lane in range(32):
            rows[lane, : len(kinds)] = some[lane % len(some)]
        assert run(f"case{i}", rows) == ""
        for operand, row in zip(some, rows, strict=False):
            with np.errstate(all="ignore"):
                expected = definition(*(number(bits, kind) for bits, kind in zip(operand, kinds, strict=True)))
                expected = (f32 if out == "f32" else f64)(expected) if out[0] == "f" else int(expected)
            found, expected = number(int(row[3]), out), number(expected, out)
            same = found == expected and (out[0] != "f" or np.signbit(found) == np.signbit(expected))
            assert same or (np.isnan(found) and np.isnan(expected)), (operand, found, expected)


@pytest.mark.parametrize("i", range(len(LANES)))
def test_what_lanes_do_together(run, i):
    rows = np.zeros((32, 4), np.uint64)
    rows[:, 0] = np.arange(32)
    assert run(f"lane{i}", rows, shared=512) == ""
    assert rows[:, 3].tolist() == [LANES[i][1](lane) for lane in range(32)]


@pytest.mark.parametrize("what", FAULTS)
def test_what_a_kernel_may_not_do_is_said(run, what):
    said = run(f"fault{list(FAULTS).index(what)}", np.zeros((32, 4), np.uint64), dependent=True, shared=256)
    assert f"{what} at test.ptx:" in said or (what == "not all come" and what in said)


@pytest.mark.parametrize("what", [what for what in FAULTS if "in front" in what])
def test_a_kernel_that_nothing_is_in_front_of_waits_for_nothing(run, what):
    assert run(f"fault{list(FAULTS).index(what)}", np.zeros((32, 4), np.uint64)) == ""


def test_what_differs_from_the_other_compiler_is_said(run):
    """Which does nothing here."""
    i = [case[0] for case in CASES].index("or.b64")
    rows = np.zeros((32, 4), np.uint64)
    assert run(f"case{i}", rows.copy(), compare=True) == ""
    rows[5, 1] = 3
    said = run(f"case{i}", rows, compare=True)
    assert said == "as nvcc compiles it: byte 184 of an allocation of 1024: expected 00000000, found 00000003"


@pytest.mark.parametrize(
    "line",
    [
        "add.f32 %r1, %r2, %r3;",  # ptxas may make it and a product one
        "add.sat.s32 %r1, %r2, %r3;",
        "min.NaN.f32 %r1, %r2, %r3;",
        "ex2.approx.f32 %r1, %r2;",
        "ld.volatile.global.u32 %r1, [%rd1];",
        "ld.local.u32 %r1, [%rd1];",
        "ld.global.v2.u32 {%r1, %r2, %r3}, [%rd1];",
        "cvt.rni.s32.f32 %r1, %r2;",
        "setp.lt.and.s32 %p1, %r1, %r2, %p2;",
        "add.s32 %r1, %r2;",
        "add.s32 %r1, %r2, nobody;",
        "mov.u32 %r1, %laneid;",
        "@%p9 mov.u32 %r1, 0;",
        "bar.sync 1;",
        ".local .align 4 .b8 depot[8];",
        ".reg .b128 %q<2>;",
    ],
)
def test_what_is_not_known_is_an_error(line):
    text = HEADER + kernel("refused", line)
    number = text.split("\n").index(line) + 1
    with pytest.raises(SystemExit) as error:
        ptx.kernels_of(text, "some.ptx")
    assert str(error.value).startswith(f"some.ptx:{number}: ") and str(error.value).endswith(f" is not known: {line}")


def test_kernels_have_the_names_of_the_header(tmp_path):
    header, source, made = tmp_path / "kernels.h", tmp_path / "rows.ptx", tmp_path / "rows.cpp"
    sources = ["copy", "pack<Stored::i8, Order::columns>", "wkv<uint16_t>", "small<Stored::f16, 4, 2>"]
    header.write_text(
        "".join(f"  X(kernel{i}, ({source}), Params, NoShared, 32) \\\n" for i, source in enumerate(sources))
    )
    names = ["4copyENS0_6ParamsE", "3wkvItEEvNS0_6ParamsE", "5smallILNS0_6StoredE1ELi4ELi2EEEvNS0_6ParamsE"]
    names.append("4packILNS0_6StoredE3ELNS0_5OrderE1EEEvNS0_6ParamsE")
    text = HEADER + "".join(kernel(f"_ZN4rwkv4cuda{name}", "") for name in names)
    source.write_text(text)
    ptx.main(header, made, source)
    entries = [line.split("Kernel::")[1].split(")")[0] for line in made.read_text().splitlines() if "Kernel::" in line]
    assert entries == ["kernel0", "kernel1", "kernel2", "kernel3"]
    source.write_text(text + kernel("_ZN4rwkv4cuda5otherENS0_6ParamsE", ""))
    with pytest.raises(SystemExit, match="found _ZN4rwkv4cuda5otherENS0_6ParamsE"):
        ptx.main(header, made, source)


def test_sectors_and_passes_are_counted(run, tmp_path, capsys, monkeypatch):
    noted = tmp_path / "counts"
    for _ in range(2):
        assert run("counted", np.zeros((32, 4), np.uint64), shared=4096, counts=noted) == ""
    # The harness has but one name of a file for all.
    (tmp_path / "test.ptx").write_text(counted_text())
    (name, launch, sites), again = counts.read(noted)
    assert again == (name, launch, sites)
    assert (name, launch["blocks"], launch["counted"], launch["warps"]) == ("tested", 1, 1, 1)
    assert launch["instructions"] == 4 + sum(text.count(";") for text, *_ in ACCESSES) and launch["mma"] == 0
    assert [(space, s["requests"], s["passes"], s["least"]) for (_, space), s in sorted(sites.items())] == [
        (space, 1, passes, least) for _, space, passes, least in ACCESSES
    ]
    monkeypatch.setattr(sys, "argv", ["counts.py", str(noted), str(tmp_path)])
    counts.main()
    _, found, *lines = capsys.readouterr().out.splitlines()
    kB = [f"{sum(a[n] for a in ACCESSES if a[1] == 'global') * 32 / 1000:.1f}" for n in (2, 3)]
    passes = [str(sum(a[n] for a in ACCESSES if a[1] == "shared")) for n in (2, 3)]
    assert found.split() == ["tested", "1", str(launch["instructions"]), "0", *kB, *passes, "2"]
    assert [line.strip() for line in lines] == [
        "kernels.cuh:101 in rows.cu:7: 1 requests, 32 sectors, at least 4",
        "kernels.cuh:103 in rows.cu:7: 1 requests, 32 sectors, at least 16",
        "kernels.cuh:106 in rows.cu:7: 1 requests, 32 passes, at least 1",
    ]
