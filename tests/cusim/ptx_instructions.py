"""An instruction of PTX as a statement of C++, in terms of ptx.h.

What each of them does: PTX ISA 9.0, https://docs.nvidia.com/cuda/parallel-thread-execution. FORMS has those that the
kernels have, in exactly the forms whose meaning is known here; any other one is an error. Sums and products of floats
have to say .rn: without it ptxas may make one fused operation of two.
"""

import re

INTEGER, BITS, FLOAT = r"[us](?:16|32|64)", r"b(?:16|32|64)", r"f(?:32|64)"
NUMBER = rf"(?:{INTEGER}|{BITS}|{FLOAT})"
MEMORY = r"(?:v[24]\.)?(?:[bus](?:8|16|32|64)|f32|f64)"
FORMS = {
    "add": rf"rn\.{FLOAT}|{INTEGER}",
    "sub": rf"rn\.{FLOAT}|{INTEGER}|rn\.f16x2",
    "mul": rf"rn\.{FLOAT}|(?:lo|hi)\.{INTEGER}|wide\.[us](?:16|32)",
    "mad": rf"(?:lo|hi)\.{INTEGER}|wide\.[us](?:16|32)",
    "fma": rf"rn\.{FLOAT}",
    "div": rf"rn\.{FLOAT}|{INTEGER}",
    "rcp": rf"rn\.{FLOAT}",
    "sqrt": rf"rn\.{FLOAT}",
    "abs": rf"{FLOAT}|s(?:16|32|64)",
    "neg": rf"{FLOAT}|s(?:16|32|64)",
    "min": rf"{FLOAT}|{INTEGER}",
    "max": rf"{FLOAT}|{INTEGER}",
    "and": rf"pred|{BITS}",
    "or": rf"pred|{BITS}",
    "xor": rf"pred|{BITS}",
    "not": rf"pred|{BITS}",
    "shl": BITS,
    "shr": rf"{INTEGER}|{BITS}",
    "bfi": r"b(?:32|64)",
    "prmt": r"b32",
    "setp": rf"(?:eq|ne)\.{NUMBER}|(?:lt|le|gt|ge)\.(?:{INTEGER}|{FLOAT})|(?:lo|ls|hi|hs)\.u(?:16|32|64)|"
    rf"(?:equ|neu|ltu|leu|gtu|geu|num|nan)\.{FLOAT}",
    "selp": NUMBER,
    "cvt": rf"[us](?:8|16|32|64)\.[us](?:8|16|32|64)|rn\.{FLOAT}\.[us](?:8|16|32|64)|rzi\.{INTEGER}\.{FLOAT}|"
    r"f64\.f32|rn\.f32\.f64|f32\.f16|rn\.f16\.f32|rn\.f16x2\.f32",
    "cvta": r"(?:to\.)?(?:global|shared|param)\.u64",
    "mov": rf"pred|{NUMBER}",
    "ld": rf"(?:(?:param|shared)\.|(?:global\.(?:nc\.)?(?:L1::no_allocate\.)?)?){MEMORY}",
    "st": rf"(?:global\.|shared\.)?{MEMORY}",
    "atom": r"global\.or\.b32",
    "prefetch": r"global\.L2",
    "cp": r"async\.cg\.shared\.global|async\.commit_group|async\.wait_group",
    "bar": r"sync|warp\.sync",
    "shfl": r"sync\.(?:bfly|idx)\.b32",
    "vote": r"sync\.ballot\.b32",
    "mma": r"sync\.aligned\.m16n8k(?:8|16)\.row\.col\.f32\.(?:f16\.f16|bf16\.bf16)\.f32",
    "ldmatrix": r"sync\.aligned\.m8n8\.x4\.(?:trans\.)?shared\.b16",
    "movmatrix": r"sync\.aligned\.m8n8\.trans\.b16",
    "griddepcontrol": r"wait|launch_dependents",
    "bra": r"uni|",
    "ret": "",
    "trap": "",
}

TYPES = {
    **{f"{kind}{n}": f"uint{n}_t" for kind in "ub" for n in (8, 16, 32, 64)},
    **{f"s{n}": f"int{n}_t" for n in (8, 16, 32, 64)},
    **{"f32": "float", "f64": "double", "pred": "bool"},
}
SPECIAL = {"tid": "now.thread", "ctaid": "now.block", "ntid": "now.threads", "nctaid": "now.blocks"}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}
COMPARE = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# Those that are true of NaN are the contrary of one that is not.
UNORDERED = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}


class Unknown(Exception):
    pass


def split(text):
    """The operands of an instruction; those in braces or brackets are one."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


def parts(text):
    """The registers of a vector, or the one."""
    return [t.strip() for t in text.strip("{}").split(",")]


class Translator:
    """Of one kernel, with the names of its registers, and of the addresses of its params and of shared memory."""

    def __init__(self):
        self.registers, self.params, self.shared, self.line = set(), set(), set(), 0

    def instruction(self, op, operands, line):
        head, _, form = op.partition(".")
        if not re.fullmatch(FORMS.get(head, "(?!)"), form):
            raise Unknown(op)
        self.line = line
        rest = form.replace("::", "_").split(".") if form else []
        try:
            if head in INFIX and (head != "mul" or rest[-1][0] == "f"):
                return self.infix(head, rest, operands)
            return getattr(self, f"do_{head}")(rest, operands)
        except (IndexError, KeyError, ValueError, TypeError) as wrong:  # more or fewer operands than it should have
            raise Unknown(f"operands of {op}") from wrong

    # ---- operands ----
    def value(self, text, kind=None):
        """An operand as the C++ type of `kind`, or as it is."""
        if match := re.fullmatch(r"%(tid|ctaid|ntid|nctaid)\.([xyz])", text):
            found = f"{SPECIAL[match[1]]}.{match[2]}"
        elif re.fullmatch(r"0f[0-9a-fA-F]{8}", text):
            found = f"bits_as<float>(0x{text[2:]}u)"
        elif re.fullmatch(r"0d[0-9a-fA-F]{16}", text):
            found = f"bits_as<double>(0x{text[2:]}ull)"
        elif re.fullmatch(r"-?\d+", text):
            found = f"{text}ll" if int(text) < 1 << 63 else f"{text}ull"
        elif text in self.params:
            found = "address(params)"
        elif text in self.shared:
            found = "uint64_t(0)"
        elif text.removeprefix("%") in self.registers:
            found = text.removeprefix("%")
        else:
            raise Unknown(f"operand {text}")
        return f"as<{TYPES[kind]}>({found})" if kind else found

    def put(self, to, value):
        if to == "_":
            return f"(void)({value});"
        name = to.removeprefix("%")
        if name not in self.registers:
            raise Unknown(f"result {to}")
        return f"put({name}, {value});"

    def pointer(self, text, space, size):
        """Where `size` bytes are, checked as ptx.h does."""
        match = re.fullmatch(r"\[([%\w]+)(?:\+(-?\d+))?\]", text)
        if not match:
            raise Unknown(f"address {text}")
        at = f"{self.value(match[1])} + {match[2] or 0}ll"
        if space == "param":
            return at
        if space == "shared":
            return f"shared(uint32_t({at}), {size}, {self.place})"
        return f"global({at}, {size}, waited, {self.place})"

    @property
    def place(self):
        return f"{{kFile, {self.line}}}"

    # ---- numbers ----
    def infix(self, head, rest, operands):
        to, a, b = operands
        kind = rest[-1]
        if kind == "f16x2":
            return self.put(to, f"subtract_halves({self.value(a, 'b32')}, {self.value(b, 'b32')})")
        if head == "div" and kind[0] != "f":
            return self.put(to, f"divide({self.value(a, kind)}, {self.value(b, kind)})")
        if kind[0] == "s":  # sums, which wrap around
            kind = "u" + kind[1:]
        return self.put(to, f"{TYPES[kind]}({self.value(a, kind)} {INFIX[head]} {self.value(b, kind)})")

    def do_mul(self, rest, operands):
        to, a, b = operands
        return self.put(to, f"{self.product(rest, a, b)}")

    def do_mad(self, rest, operands):
        to, a, b, plus = operands
        bits = int(rest[1][1:]) * (2 if rest[0] == "wide" else 1)
        return self.put(to, f"uint{bits}_t({self.product(rest, a, b)} + {self.value(plus, f'u{bits}')})")

    def product(self, rest, a, b):
        what, kind = rest
        return f"product_{what}<{TYPES[kind]}>({self.value(a, kind)}, {self.value(b, kind)})"

    def call(self, function, rest, operands):
        to, *values = operands
        return self.put(to, f"{function}({', '.join(self.value(v, rest[-1]) for v in values)})")

    def do_fma(self, rest, operands):
        return self.call("std::fma", rest, operands)

    def do_rcp(self, rest, operands):
        return self.call("reciprocal", rest, operands)

    def do_sqrt(self, rest, operands):
        return self.call("std::sqrt", rest, operands)

    def do_abs(self, rest, operands):
        return self.call("std::abs", rest, operands)

    def do_neg(self, rest, operands):
        return self.call("-", rest, operands)

    def do_not(self, rest, operands):
        return self.call("!" if rest == ["pred"] else "~", rest, operands)

    def do_min(self, rest, operands):
        return self.call("least", rest, operands)

    def do_max(self, rest, operands):
        return self.call("most", rest, operands)

    def do_prmt(self, rest, operands):
        return self.call("permute_signed", rest, operands)

    def do_shl(self, rest, operands):
        return self.shift("left", rest, operands)

    def do_shr(self, rest, operands):
        return self.shift("right", rest, operands)

    def shift(self, way, rest, operands):
        to, a, by = operands
        return self.put(to, f"shift_{way}({self.value(a, rest[-1])}, {self.value(by, 'u32')})")

    def do_bfi(self, rest, operands):
        to, *values = operands
        a, b, at, length = (self.value(v, kind) for v, kind in zip(values, (*rest, *rest, "u32", "u32"), strict=True))
        return self.put(to, f"insert({a}, {b}, {at}, {length})")

    def do_setp(self, rest, operands):
        compare, kind = rest
        to, a, b = operands
        a, b = self.value(a, kind), self.value(b, kind)
        if compare in COMPARE:
            return self.put(to, f"{a} {COMPARE[compare]} {b}")
        if compare in UNORDERED:
            return self.put(to, f"!({a} {UNORDERED[compare]} {b})")
        if compare == "ne" and kind[0] != "f":
            return self.put(to, f"{a} != {b}")
        ordered = f"ordered({a}, {b})"
        found = {
            "num": ordered,
            "nan": f"!{ordered}",
            "ne": f"{ordered} && {a} != {b}",
            "equ": f"!{ordered} || {a} == {b}",
        }
        return self.put(to, found[compare])

    def do_selp(self, rest, operands):
        to, a, b, which = operands
        return self.put(to, f"{self.value(which)} ? {self.value(a, rest[-1])} : {self.value(b, rest[-1])}")

    def do_cvt(self, rest, operands):
        to, *values = operands
        into, kind = rest[-2:]
        if into == "f16x2":
            high, low = (self.value(v, "f32") for v in values)
            return self.put(to, f"floats_to_halves({low}, {high})")
        (a,) = values
        if into == "f16":
            return self.put(to, f"float_to_half({self.value(a, 'f32')})")
        if kind == "f16":
            return self.put(to, f"half_to_float({self.value(a, 'b16')})")
        if rest[0] == "rzi":
            return self.put(to, f"truncate<{TYPES[into]}>({self.value(a, kind)})")
        return self.put(to, f"{TYPES[into]}({self.value(a, kind)})")

    def do_cvta(self, rest, operands):
        to, a = operands
        if "shared" in rest:
            return self.put(to, f"{self.value(a)} {'-' if 'to' in rest else '+'} address(now.shared)")
        return self.put(to, self.value(a))

    def do_mov(self, rest, operands):
        to, a = operands
        (kind,) = rest
        if to.startswith("{"):
            pieces = parts(to)
            bits = int(kind[1:]) // len(pieces)
            pairs = enumerate(pieces)
            return " ".join(self.put(p, f"uint{bits}_t({self.value(a, kind)} >> {bits * i})") for i, p in pairs)
        if a.startswith("{"):
            pieces = parts(a)
            bits = int(kind[1:]) // len(pieces)
            shifted = (f"{TYPES[kind]}({self.value(p, f'b{bits}')}) << {bits * i}" for i, p in enumerate(pieces))
            return self.put(to, f"{TYPES[kind]}({' | '.join(shifted)})")
        return self.put(to, self.value(a, None if kind == "pred" else kind))

    # ---- memory ----
    def access(self, rest, address, registers):
        """Space, type, registers, and the address as `at`."""
        space = rest[0] if rest[0] in ("global", "shared", "param") else "generic"
        kind, registers = rest[-1], parts(registers)
        if len(registers) != (int(rest[-2][1]) if len(rest) > 1 and rest[-2] in ("v2", "v4") else 1):
            raise ValueError(registers)
        size = int(kind[1:]) // 8 * len(registers)
        return TYPES[kind], kind, registers, f"const uint64_t at = {self.pointer(address, space, size)};"

    def do_ld(self, rest, operands):
        to, address = operands
        type_, _, registers, at = self.access(rest, address, to)
        return f"{{ {at} {' '.join(self.put(r, f'load<{type_}>(at, {i})') for i, r in enumerate(registers))} }}"

    def do_st(self, rest, operands):
        address, a = operands
        _, kind, registers, at = self.access(rest, address, a)
        return f"{{ {at} {' '.join(f'store(at, {i}, {self.value(r, kind)});' for i, r in enumerate(registers))} }}"

    def do_atom(self, rest, operands):
        to, address, a = operands
        both = f"store(at, 0, old | {self.value(a, 'b32')});"
        at = f"const uint64_t at = {self.pointer(address, 'global', 4)};"
        return f"{{ {at} const auto old = load<uint32_t>(at, 0); {both} {self.put(to, 'old')} }}"

    def do_prefetch(self, rest, operands):
        return ";"  # of any address, and nothing comes of it

    def do_cp(self, rest, operands):
        if rest[1] == "commit_group":
            return "cusim::commit_copies();"
        if rest[1] == "wait_group":
            return f"cusim::wait_for_copies({int(operands[0])});"
        to, address, sixteen, size = operands
        if sixteen != "16":
            raise ValueError(sixteen)
        size = self.value(size, "u32")
        to, address = self.pointer(to, "shared", 16), self.pointer(address, "global", size)
        return f"copy_or_zero({to}, {address}, {size}, {self.place});"

    # ---- what threads do together ----
    def do_bar(self, rest, operands):
        if rest == ["warp", "sync"]:
            return f"{self.all_lanes(operands[0])} sync_warp(kFile, {self.line});"
        if operands != ["0"]:
            raise ValueError(operands)
        return f"cusim::barrier({self.place});"

    def all_lanes(self, mask, limits="31"):
        return f"all_lanes({self.value(mask, 'u32')}, {self.value(limits, 'u32')}, {self.place});"

    def do_shfl(self, rest, operands):
        to, a, by, limits, mask = operands
        to = to.split("|")[0]  # the predicate behind it is true with all lanes there, as registers begin
        lane = f"int({'lane() ^ ' if rest[1] == 'bfly' else ''}{self.value(by, 'u32')}) & 31"
        shuffled = f"shuffle({self.value(a, 'b32')}, {lane}, kFile, {self.line})"
        return f"{self.all_lanes(mask, limits)} {self.put(to, shuffled)}"

    def do_vote(self, rest, operands):
        to, a, mask = operands
        return f"{self.all_lanes(mask)} {self.put(to, f'ballot({self.value(a)}, kFile, {self.line})')}"

    def do_mma(self, rest, operands):
        d, a, b, c = map(parts, operands)
        function = {"f16": "mma_f16", "bf16": "mma_bf16"}[rest[6]]

        def words(registers, kind):
            return ", ".join(self.value(r, kind) if r else "0" for r in registers)

        if rest[2] == "m16n8k8":  # the other half of k is zero
            (a0, a1), (b0,) = a, b
            a, b = [a0, a1, None, None], [b0, None]
        if [*map(len, (d, a, b, c))] != [4, 4, 2, 4]:
            raise ValueError(operands)
        return (
            f"{{ float d[4] = {{{words(c, 'f32')}}}; "
            f"const uint32_t a[4] = {{{words(a, 'b32')}}}, b[2] = {{{words(b, 'b32')}}}; "
            f"{function}(d, a, b, kFile, {self.line}); {' '.join(self.put(r, f'd[{i}]') for i, r in enumerate(d))} }}"
        )

    def do_ldmatrix(self, rest, operands):
        to, address = operands
        if len(parts(to)) != 4:
            raise ValueError(to)
        pointer = f"reinterpret_cast<const void*>({self.pointer(address, 'shared', 16)})"
        load = f"load_tiles<{'true' if 'trans' in rest else 'false'}>(to, {pointer}, kFile, {self.line});"
        return f"{{ uint32_t to[4]; {load} {' '.join(self.put(r, f'to[{i}]') for i, r in enumerate(parts(to)))} }}"

    def do_movmatrix(self, rest, operands):
        to, a = operands
        return self.put(to, f"turn_tile({self.value(a, 'b32')}, kFile, {self.line})")

    def do_griddepcontrol(self, rest, operands):
        return "waited = true;" if rest == ["wait"] else ";"

    # ---- control ----
    def do_bra(self, rest, operands):
        (label,) = operands
        return f"goto {label.lstrip('$')};"

    def do_ret(self, rest, operands):
        return f"return ended(waited, count, {self.place});"

    def do_trap(self, rest, operands):
        return f'cusim::fail("trap", {self.place});'
