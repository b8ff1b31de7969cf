"""What instructions of PTX do, in integers of Python and numbers of numpy: PTX ISA 9.0."""

import struct

import numpy as np

NAN, INFINITE = float("nan"), float("inf")
F32 = [0.0, -0.0, 1.5, -1.5, NAN, INFINITE, -INFINITE, 3e38, 1e-45]


def f32(v):
    return struct.unpack("<I", np.float32(v).tobytes())[0]


def f64(v):
    return struct.unpack("<Q", np.float64(v).tobytes())[0]


def f16(v):
    return struct.unpack("<H", np.float16(v).tobytes())[0]


def number(bits, kind):
    """What the bits are to an instruction of this type."""
    n = int(kind[1:])
    bits &= (1 << n) - 1
    if kind[0] == "f":
        return np.frombuffer(bits.to_bytes(n // 8, "little"), f"<f{n // 8}")[0]
    return bits - (1 << n) if kind[0] == "s" and bits >> (n - 1) else bits


def compared(compare):
    """Of floats those that end with u, and nan, are true of NaN."""

    def holds(a, b):
        if compare in ("num", "nan"):
            return (compare == "nan") == (np.isnan(a) or np.isnan(b))
        if np.isnan(a) or np.isnan(b):
            return compare.endswith("u")
        return {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[
            compare.removesuffix("u")
        ]

    return holds


def extreme(wanted):
    """Of NaN and a number the number; -0 is less than 0."""

    def choose(a, b):
        if np.isnan(a) or np.isnan(b):
            return b if np.isnan(a) else a
        return wanted([a, b], key=lambda v: (v, not np.signbit(v)))

    return choose


def truncated(bits, nan):
    """To a signed integer."""

    def convert(v):
        if np.isnan(v):
            return nan
        most = (1 << (bits - 1)) - 1
        return most if v >= most else -most - 1 if v <= -most - 1 else int(v)

    return convert


def permuted(a, b, selector):
    source = (a | b << 32).to_bytes(8, "little")
    chosen = [(selector >> 4 * i & 15) for i in range(4)]
    return int.from_bytes(bytes((255 if source[n & 7] >> 7 else 0) if n & 8 else source[n] for n in chosen), "little")


def inserted(bits):
    def insert(a, b, at, length):
        at, length = at & 255, length & 255
        for i in range(length):
            if at + i < bits:
                b = b & ~(1 << (at + i)) | (a >> i & 1) << (at + i)
        return b

    return insert


def minus_halves(a, b):
    low, high = (number(a >> at, "f16") - number(b >> at, "f16") for at in (0, 16))
    return f16(low) | f16(high) << 16


SHIFTS = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, (1 << 32) - 1]
WORDS = [
    0,
    1,
    2,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x12345678,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFEDCBA9876543210,
    (1 << 64) - 1,
]
ONE = [(w,) for w in WORDS]
TWO = [(a, b) for a in WORDS for b in (1, 3, 0x8001, 0xFFFFFFFE, (1 << 63) + 5)]
SHIFTED = [(w, s) for w in WORDS[4:] for s in SHIFTS]
PLACES = [(0, 0), (0, 64), (3, 7), (31, 1), (30, 5), (32, 4), (40, 255), (256, 4), (255, 9), (2, 62)]
ONE_F32 = [(f32(v),) for v in (*F32, 3, 2.99, -2.99, 2.0**31)]
TWO_F32 = [(f32(a), f32(b)) for a in F32 for b in F32]
ONE_F64 = [(f64(v),) for v in (*F32, 2.99, -2.99, 2.0**31, 1 + 2**-24, 1 + 2**-24 + 2**-50)]
INTEGERS = ("s16", "u16", "s32", "u32", "s64", "u64")

# (instruction, type of the result, types of the operands, operands, the definition). What has braces is a text with the
# names of the registers.
CASES = [
    *(("shl." + k, k, (k, "u32"), SHIFTED, lambda a, s: a << s if s < 64 else 0) for k in ("b32", "b64")),
    *(("shr." + k, k, (k, "u32"), SHIFTED, lambda a, s: a >> s) for k in (*INTEGERS, "b32")),
    *(("add." + k, k, (k, k), TWO, int.__add__) for k in INTEGERS),
    *(("sub." + k, k, (k, k), TWO, int.__sub__) for k in INTEGERS),
    *(("mul.lo." + k, k, (k, k), TWO, int.__mul__) for k in INTEGERS),
    *(("mul.hi." + k, k, (k, k), TWO, lambda a, b, bits=int(k[1:]): a * b >> bits) for k in INTEGERS),
    *(("mul.wide." + k, f"{k[0]}{2 * int(k[1:])}", (k, k), TWO, int.__mul__) for k in INTEGERS[:4]),
    ("mad.lo.s32", "s32", ("s32",) * 3, [(*p, 7) for p in TWO], lambda a, b, c: a * b + c),
    ("mad.wide.s32", "s64", ("s32", "s32", "s64"), [(*p, (1 << 63) + 7) for p in TWO], lambda a, b, c: a * b + c),
    ("mad.hi.u32", "u32", ("u32",) * 3, [(*p, 0xFFFFFFFF) for p in TWO], lambda a, b, c: (a * b >> 32) + c),
    *(
        ("div." + k, k, (k, k), TWO, lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1))
        for k in INTEGERS
    ),
    *(("min." + k, k, (k, k), TWO, min) for k in INTEGERS),
    *(("max." + k, k, (k, k), TWO, max) for k in INTEGERS),
    ("neg.s32", "s32", ("s32",), ONE, int.__neg__),
    ("abs.s32", "s32", ("s32",), ONE, abs),
    ("not.b64", "b64", ("b64",), ONE, int.__invert__),
    ("and.b32", "b32", ("b32", "b32"), TWO, int.__and__),
    ("or.b64", "b64", ("b64", "b64"), TWO, int.__or__),
    ("xor.b16", "b16", ("b16", "b16"), TWO, int.__xor__),
    *(
        (
            f"bfi.b{n}",
            f"b{n}",
            (f"b{n}", f"b{n}", "u32", "u32"),
            [(w, 0xAAAA5555F0F00F0F, *p) for w in WORDS[5:] for p in PLACES],
            inserted(n),
        )
        for n in (32, 64)
    ),
    (
        "prmt.b32",
        "b32",
        ("b32",) * 3,
        [(0x80017F02, 0x03FF04FE, s) for s in (0x3210, 0x7654, 0xBA98, 0xFEDC, 0x12340, 0x8F1)],
        permuted,
    ),
    *(
        (f"setp.{c}.{k}", "u32", (k, k), TWO, compared(c))
        for k in INTEGERS
        for c in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    ("setp.lo.u32", "u32", ("u32", "u32"), TWO, int.__lt__),
    ("setp.hs.u64", "u32", ("u64", "u64"), TWO, int.__ge__),
    *(
        (f"setp.{c}.f32", "u32", ("f32", "f32"), TWO_F32, compared(c))
        for c in "eq ne lt le gt ge equ neu ltu leu gtu geu num nan".split()
    ),
    ("min.f32", "f32", ("f32", "f32"), TWO_F32, extreme(min)),
    ("max.f32", "f32", ("f32", "f32"), TWO_F32, extreme(max)),
    ("add.rn.f32", "f32", ("f32", "f32"), TWO_F32, np.add),
    ("sub.rn.f32", "f32", ("f32", "f32"), TWO_F32, np.subtract),
    ("mul.rn.f32", "f32", ("f32", "f32"), TWO_F32, np.multiply),
    ("div.rn.f32", "f32", ("f32", "f32"), TWO_F32, np.divide),
    ("neg.f32", "f32", ("f32",), ONE_F32, np.negative),
    ("abs.f32", "f32", ("f32",), ONE_F32, np.abs),
    ("rcp.rn.f32", "f32", ("f32",), ONE_F32, lambda v: np.float32(1) / v),
    ("sqrt.rn.f32", "f32", ("f32",), ONE_F32, np.sqrt),
    # The square has a bit that a rounded product has not.
    (
        "fma.rn.f32",
        "f32",
        ("f32",) * 3,
        [(f32(1 + 2**-12), f32(1 + 2**-12), f32(-1))],
        lambda a, b, c: float(a) * float(b) + float(c),
    ),
    ("sub.rn.f16x2", "b32", ("b32", "b32"), [(0x3C003E00, 0x38004200), (0x7BFF0001, 0xFBFF0002)], minus_halves),
    *(
        (f"cvt.{to}.{k}", f"{to[0]}32" if to == "s8" else to, (k,), ONE, lambda v, to=to: number(v, to))
        for to, k in (
            ("s8", "s32"),
            ("u16", "u32"),
            ("u16", "u64"),
            ("u32", "u64"),
            ("s32", "s16"),
            ("s64", "s32"),
            ("u64", "u32"),
            ("s16", "s8"),
        )
    ),
    ("cvt.rn.f32.s32", "f32", ("s32",), ONE, np.float32),
    ("cvt.rn.f32.s64", "f32", ("s64",), [*ONE, ((1 << 60) + (1 << 36) + 1,)], lambda v: np.int64(v).astype(np.float32)),
    ("cvt.rn.f64.s64", "f64", ("s64",), ONE, np.float64),
    ("cvt.rzi.s32.f32", "s32", ("f32",), ONE_F32, truncated(32, nan=0)),
    ("cvt.rzi.s64.f32", "s64", ("f32",), ONE_F32, truncated(64, nan=-(1 << 63))),
    ("cvt.rzi.s32.f64", "s32", ("f64",), ONE_F64, truncated(32, nan=-(1 << 31))),
    ("cvt.f64.f32", "f64", ("f32",), ONE_F32, np.float64),
    ("cvt.rn.f32.f64", "f32", ("f64",), ONE_F64, np.float32),
    (
        "cvt.rn.f16.f32",
        "b16",
        ("f32",),
        [(f32(v),) for v in (1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, -1e-8, 6e-8)],
        f16,
    ),
    (
        "cvt.f32.f16",
        "f32",
        ("b16",),
        [(v,) for v in (0, 1, 0x3C01, 0x7C00, 0xFBFF)],
        lambda v: np.float32(number(v, "f16")),
    ),
    ("cvt.rn.f16x2.f32", "b32", ("f32", "f32"), [(f32(1.5), f32(-3))], lambda high, low: f16(low) | f16(high) << 16),
    # A sign comes along to a wider register, and only the low bits go back to memory.
    ("ld.global.s16 {out}, [%rd1]", "s32", ("s16",), ONE, int),
    ("ld.global.s8 {out}, [%rd1+0]", "s64", ("s8",), ONE, int),
    ("ld.global.u8 {out}, [%rd1]", "u32", ("u8",), ONE, int),
    ("ld.global.v2.u16 {{%rs1, {out}}}, [%rd1]", "u16", ("u32",), [(0x12345678,)], lambda v: v >> 16),
    (
        "st.global.u8 [%rd1+8], {a}; ld.global.u32 {out}, [%rd1+8]",
        "u32",
        ("b32", "b32"),
        [(0x1234, 0xFF00)],
        lambda a, b: 0xFF34,
    ),
    (
        "atom.global.or.b32 {out}, [%rd1], {b}; ld.global.u32 {a}, [%rd1]; sub.s32 {out}, {a}, {out}",
        "u32",
        ("u32", "u32"),
        [(5, 0x8003)],
        lambda a, b: (a | b) - a,
    ),
    (
        "mov.b64 {{%r4, %r5}}, {a}; mov.b64 {out}, {{%r5, %r4}}",
        "b64",
        ("b64",),
        [(0x0123456789ABCDEF,)],
        lambda v: v >> 32 | v << 32,
    ),
    (
        "{{ .reg .b16 tmp; mov.b32 {{tmp, {out}}}, {a}; }} mov.b16 {out}, {out}",
        "b16",
        ("b32",),
        [(0x12345678,)],
        lambda v: v >> 16,
    ),
    ("mov.f32 {out}, 0fC0400000", "f32", ("b32",), [(0,)], lambda v: np.float32(-3)),
    ("mov.f64 {out}, 0d3FF8000000000000", "f64", ("b32",), [(0,)], lambda v: np.float64(1.5)),
    ("add.s64 {out}, {a}, -5", "s64", ("s64",), ONE, lambda v: v - 5),
    # Predicates.
    (
        "setp.ne.b32 %p1, {a}, 0; mov.b32 {out}, 7; @%p1 add.s32 {out}, {out}, 1; @!%p1 add.s32 {out}, {out}, 2",
        "b32",
        ("b32",),
        [(0,), (1,)],
        lambda v: 8 if v else 9,
    ),
    (
        "setp.ne.b32 %p1, {a}, 0; mov.b32 {out}, 7; @!%p1 bra $LNAME; mov.b32 {out}, 8; "
        "$LNAME: add.s32 {out}, {out}, {a}",
        "b32",
        ("b32",),
        [(0,), (5,)],
        lambda v: 13 if v else 7,
    ),
    (
        "setp.gt.s32 %p1, {a}, 3; setp.lt.s32 %p2, {a}, 9; and.pred %p3, %p1, %p2; not.pred %p2, %p3; "
        "xor.pred %p1, %p2, %p3; "
        "selp.b32 %r4, 1, 0, %p3; selp.b32 {out}, %r4, 9, %p1",
        "b32",
        ("s32",),
        [(v,) for v in range(12)],
        lambda v: int(3 < v < 9),
    ),
]

# (text, what a lane gets). {a} is its number.
LANES = [
    ("shfl.sync.bfly.b32 {out}|%p1, {a}, 16, 31, -1", lambda lane: lane ^ 16),
    ("mov.u32 %r4, -1; mov.u32 %r5, 31; shfl.sync.bfly.b32 {out}|%p1, {a}, 33, %r5, %r4", lambda lane: lane ^ 1),
    ("add.s32 %r4, {a}, 37; shfl.sync.idx.b32 {out}|%p1, {a}, %r4, 31, -1", lambda lane: (lane + 37) % 32),
    ("setp.lt.s32 %p1, {a}, 5; vote.sync.ballot.b32 {out}, %p1, -1", lambda lane: 31),
    # Shared memory by its own address, and by that of all memory.
    (
        "mov.u64 %rd5, shared_memory; mad.wide.u32 %rd6, {a}, 4, %rd5; st.shared.u32 [%rd6], {a}; bar.sync 0; "
        "add.s32 %r4, {a}, 1; "
        "and.b32 %r4, %r4, 31; cvta.shared.u64 %rd7, %rd5; mad.wide.u32 %rd7, %r4, 4, %rd7; ld.u32 {out}, [%rd7]",
        lambda lane: (lane + 1) % 32,
    ),
    (
        "mov.u64 %rd5, shared_memory; mad.wide.u32 %rd6, {a}, 16, %rd5; cvta.shared.u64 %rd7, %rd6; "
        "cvta.to.shared.u64 %rd7, %rd7; "
        "cvt.u32.u64 %r4, %rd7; setp.eq.s32 %p1, {a}, 3; selp.b32 %r5, 0, 16, %p1; "
        "cp.async.cg.shared.global [%r4], [%rd1], 16, %r5; cp.async.commit_group; cp.async.wait_group 0; "
        "ld.shared.u32 {out}, [%rd6]",
        lambda lane: 0 if lane == 3 else lane,
    ),
]
