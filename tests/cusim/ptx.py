"""Translates what nvcc made of the kernels, PTX, to C++ for the simulator: ptx.py KERNELS_H TO_CPP PTX

Each kernel becomes a function of its params whose variables are the registers; ptx.h has what it consists of. The file
with them ends with ptx_GROUP, which puts those of GROUP.ptx into a table in the order of kernels.h.
"""

import pathlib
import re
import sys

from ptx_instructions import Translator, Unknown, split

REGISTERS = {"pred": "bool", "f32": "float", "f64": "double"}
REGISTERS |= {f"{kind}{bits}": f"uint{bits}_t" for kind in "bus" for bits in (16, 32, 64)}


class Kernel:
    def __init__(self, name, waits):
        self.name, self.waits = name, waits  # whether it has to wait for the kernel in front
        self.translator = Translator()
        self.registers, self.lines, self.depth = [], [], 0
        self.piece = None  # where lines count the instructions up to the next branch or label: all, and mma

    def param(self, name):
        if self.translator.params:
            raise Unknown("a second param")
        self.translator.params.add(name)

    def open(self):
        self.depth += 1
        if self.depth > 1:
            self.lines.append("{")

    def close(self):
        """Whether this was the end of it."""
        self.depth -= 1
        if self.depth:
            self.lines.append("}")
        return self.depth == 0

    def label(self, name):
        self.lines.append(f"{name}:;")
        self.piece = None

    def declare(self, kind, names):
        if kind not in REGISTERS:
            raise Unknown(f"a register of .{kind}")
        type_ = REGISTERS[kind]
        if match := re.fullmatch(r"%(\w+)<(\d+)>", names):
            names = [f"{match[1]}{i}" for i in range(int(match[2]))]
        else:
            names = [name.strip().lstrip("%") for name in names.split(",")]
        self.translator.registers.update(names)
        declared = f"{type_} {', '.join(f'{name} = kUnset<{type_}>' for name in names)};"
        (self.registers if self.depth == 1 else self.lines).append(declared)

    def statement(self, text, line):
        match = re.fullmatch(r"(?:@(!?)%(\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S)
        if not match:
            raise Unknown(text)
        negative, predicate, op, operands = match.groups()
        if predicate and predicate not in self.translator.registers:
            raise Unknown(f"predicate {predicate}")
        done = self.translator.instruction(op, split(operands), line)
        if self.piece is None:
            self.piece = [0, 0]
            self.lines.append(self.piece)
        self.piece[0] += 1
        self.piece[1] += op.startswith("mma.")
        self.lines.append(f"if ({negative}{predicate}) {{ {done} }}" if predicate else done)
        if op.startswith("bra"):
            self.piece = None

    def function(self, symbol):
        lines = (
            line if isinstance(line, str) else "count.all += {}, count.mma += {};".format(*line) for line in self.lines
        )
        body = "\n".join(f"  {line}" for line in [*self.registers, *lines])
        return (
            f"// {self.name}\nvoid {symbol}(const void*, const void* params) {{\n"
            f"  bool waited = {'!now.dependent' if self.waits else 'true'};\n  Instructions count;\n{body}\n}}\n"
        )


# What stands in a kernel, each up to where the next one begins.
TOKENS = re.compile(
    r"(?P<open>\{)\s*|(?P<close>\})\s*|\$(?P<label>\w+):\s*|\.reg\s+\.(?P<kind>\w+)\s+(?P<names>[^;]*);\s*|"
    r"(?P<pragma>\.pragma)\s[^;]*;\s*|(?P<statement>[^;]*);\s*"
)


def kernels_of(text, name):
    """The kernels in the text of the file `name`, by their mangled names."""
    found, kernel, pending, arch, shared, inside = {}, None, "", 0, set(), False
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"//.*", "", line).strip()
        if match := re.match(r"\.target sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\.extern \.shared .* (\w+)\[\];", line):
            shared.add(match[1])
        elif match := re.match(r"\.visible \.entry (\w+)\(", line):
            kernel = found[match[1]] = Kernel(match[1], waits=arch >= 90)
            kernel.translator.shared, inside = shared, False
        if not kernel or not line or re.match(r"\.(loc|file)\s", line):
            continue  # what is outside of kernels is of debuggers
        try:
            if not inside and (match := re.match(r"\.param .* (\w+)(\[\d+\])?", line)):
                kernel.param(match[1])
            inside = inside or line.startswith("{")
            if not inside:
                continue
            pending += (" " if pending else "") + line
            while match := TOKENS.match(pending):
                pending = pending[match.end() :]
                if match["open"]:
                    kernel.open()
                elif match["close"]:
                    if kernel.close():
                        kernel, pending = None, ""
                        break
                elif match["label"]:
                    kernel.label(match["label"])
                elif match["kind"]:
                    kernel.declare(match["kind"], match["names"])
                elif match["statement"]:
                    kernel.statement(match["statement"].strip(), number)
        except Unknown as unknown:
            sys.exit(f"{name}:{number}: {unknown} is not known: {line}")
    return found


def mangled(source):
    """How the name of a kernel begins that kernels.h calls `source`, as the Itanium C++ ABI has it."""
    stored, order = ("f32", "f16", "bf16", "i8", "i4"), ("rows", "columns")
    codes = {"float": "f", "uint16_t": "t"}
    codes |= {f"Stored::{name}": f"LNS0_6StoredE{i}E" for i, name in enumerate(stored)}
    codes |= {f"Order::{name}": f"LNS0_5OrderE{i}E" for i, name in enumerate(order)}
    name, _, arguments = source.rstrip(">").partition("<")
    code = "".join(codes.get(a, f"Li{a}E") for a in arguments.split(", ")) if arguments else ""
    return f"_ZN4rwkv4cuda{len(name)}{name}{f'I{code}E' if code else ''}E"


def main(header, to, file):
    file, to, order = pathlib.Path(file), pathlib.Path(to), []
    kernels = kernels_of(file.read_text(), file.name)
    for name, source in re.findall(r"^  X\((\w+), \(([^)]*)\)", pathlib.Path(header).read_text(), re.M):
        order += [(name, k) for symbol, k in kernels.items() if symbol.startswith(mangled(source))]
    if sorted(k.name for _, k in order) != sorted(kernels):
        missing = kernels.keys() - {k.name for _, k in order}
        sys.exit(f"{file.name}: expected the kernels of {header}, found {', '.join(missing) or 'one twice'}")
    functions = "\n".join(kernel.function(name) for name, kernel in order)
    entries = "\n".join(f"  table[uint32_t(Kernel::{name})] = {{nullptr, ::cusim::{name}}};" for name, _ in order)
    text = (
        f'// Made by ptx.py of {file.name}.\n#include "cusim/ptx.h"\n\nnamespace cusim {{\nnamespace {{\n'
        f"using namespace ptx;\nusing namespace rwkv::cuda;\n"
        f'constexpr const char* kFile = "{file.name}";\n\n{functions}\n}}  // namespace\n}}  // namespace cusim\n\n'
        f"namespace rwkv::cuda {{\nvoid ptx_{file.stem}(Entry* table) {{\n{entries}\n}}\n}}  // namespace rwkv::cuda\n"
    )
    if not to.exists() or to.read_text() != text:  # what has not changed is not compiled again
        to.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
