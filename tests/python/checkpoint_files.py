"""Model files for tests, written without torch: what torch.save and safetensors write, and damaged relatives of it.

>>> write_pth("a.pth", {"emb.weight": array}, dtype="bf16", transposed={"emb.weight"})
>>> write_safetensors("a.safetensors", {"emb.weight": array}, dtype="bf16", metadata={"format": "pt"})
>>> write_zip("evil.pth", {"data.pkl": pickled_call("os", "system", "echo owned")})
"""

import json
import struct
import zlib

import numpy as np

# dtype -> (torch storage class, safetensors name, numpy type of the stored bytes)
_DTYPES = {
    "f32": ("FloatStorage", "F32", np.float32),
    "f16": ("HalfStorage", "F16", np.float16),
    "bf16": ("BFloat16Storage", "BF16", np.uint16),
    "f64": ("DoubleStorage", "F64", np.float64),
    "i64": ("LongStorage", "I64", np.int64),
    "i32": ("IntStorage", "I32", np.int32),
    "i16": ("ShortStorage", "I16", np.int16),
    "i8": ("CharStorage", "I8", np.int8),
    "u8": ("ByteStorage", "U8", np.uint8),
    "bool": ("BoolStorage", "BOOL", np.bool_),
}


def to_bf16(array):
    """float32 values as bfloat16 bits (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bf16(bits):
    """bfloat16 bits as float32 values."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _stored(array, dtype):
    """The array as a file holds it: little-endian, C order, bfloat16 as its bits."""
    if dtype == "bf16" and np.asarray(array).dtype != np.uint16:
        return to_bf16(array).reshape(np.shape(array))
    kind = np.dtype(_DTYPES[dtype][2])
    return np.asarray(array).astype(kind.newbyteorder("<") if kind.itemsize > 1 else kind, order="C")


def _dtype_for(array, dtype):
    """Integer and boolean arrays keep their own type; `dtype` is for the others (uint16 is bfloat16 bits)."""
    array = np.asarray(array)
    if array.dtype == np.uint16:
        return "bf16"
    if array.dtype.kind in "iub":
        return next(name for name, (_, _, kind) in _DTYPES.items() if name != "bf16" and kind == array.dtype.type)
    return dtype


# ---- pickle ----


class Global:
    """A class or function that the pickle names."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """function(*arguments), with items to put into the result and a state for BUILD."""

    def __init__(self, function, arguments=(), items=None, state=None):
        self.function, self.arguments, self.items, self.state = function, tuple(arguments), items, state


class Persistent:
    """What torch calls a persistent id: the description of a storage."""

    def __init__(self, description):
        self.description = description


def pickled(value):
    """Protocol 2, as Python's own pickler writes it: globals, texts, tuples and calls are memoised."""
    out, memo = [b"\x80\x02"], {}

    def remember(key):
        number = memo[key] = len(memo)
        out.append(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def recall(key):
        number = memo[key]
        out.append(b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number))

    def save_items(items):
        for start in range(0, len(items), 1000):
            out.append(b"(")
            for key, item in items[start : start + 1000]:
                save(key)
                save(item)
            out.append(b"u")

    def save(item):
        if item is None:
            out.append(b"N")
        elif item is True or item is False:
            out.append(b"\x88" if item else b"\x89")
        elif isinstance(item, int):
            if 0 <= item < 1 << 8:
                out.append(b"K" + bytes([item]))
            elif 0 <= item < 1 << 16:
                out.append(b"M" + struct.pack("<H", item))
            elif -(1 << 31) <= item < 1 << 31:
                out.append(b"J" + struct.pack("<i", item))
            else:
                digits = item.to_bytes(item.bit_length() // 8 + 1, "little", signed=True)
                out.append(b"\x8a" + bytes([len(digits)]) + digits)
        elif isinstance(item, float):
            out.append(b"G" + struct.pack(">d", item))
        elif isinstance(item, str):
            if ("text", item) in memo:
                return recall(("text", item))
            data = item.encode()
            out.append(b"X" + struct.pack("<I", len(data)) + data)
            remember(("text", item))
        elif isinstance(item, Global):
            if (item.module, item.name) in memo:
                return recall((item.module, item.name))
            out.append(f"c{item.module}\n{item.name}\n".encode())
            remember((item.module, item.name))
        elif isinstance(item, tuple):
            if not item:
                return out.append(b")")
            if len(item) > 3:
                out.append(b"(")
            for part in item:
                save(part)
            out.append(b"t" if len(item) > 3 else bytes([0x84 + len(item)]))
            remember(("tuple", len(memo)))
        elif isinstance(item, list):
            out.append(b"]")
            remember(("list", len(memo)))
            if item:
                out.append(b"(")
                for part in item:
                    save(part)
                out.append(b"e")
        elif isinstance(item, dict):
            out.append(b"}")
            remember(("dict", len(memo)))
            save_items(list(item.items()))
        elif isinstance(item, Persistent):
            save(item.description)
            out.append(b"Q")
        elif isinstance(item, Call):
            save(item.function)
            save(item.arguments)
            out.append(b"R")
            remember(("call", len(memo)))
            if item.items is not None:
                save_items(list(item.items.items()))
            if item.state is not None:
                save(item.state)
                out.append(b"b")
        else:
            raise TypeError(f"cannot pickle {type(item).__name__}")
        return None

    save(value)
    return b"".join(out) + b"."


def pickled_call(module, name, *arguments):
    """A pickle that calls a function when it is loaded by Python: pickled_call("os", "system", "echo owned")."""
    return pickled({"emb.weight": Call(Global(module, name), arguments)})


def storage(dtype, key, elements):
    """The reference to `elements` values of the entry data/`key`."""
    return Persistent(("storage", Global("torch", _DTYPES[dtype][0]), str(key), "cpu", elements))


def tensor(storage_reference, offset, shape, stride, parameter=False):
    """A view of a storage, as torch pickles it. The numbers may be any: damaged files are made with this too."""
    hooks = Call(Global("collections", "OrderedDict"))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    view = Call(rebuild, (storage_reference, offset, tuple(shape), tuple(stride), False, hooks))
    return Call(Global("torch._utils", "_rebuild_parameter"), (view, True, hooks)) if parameter else view


def state_dict(items):
    """An OrderedDict with a module's _metadata, as Module.state_dict() returns it."""
    ordered = Global("collections", "OrderedDict")
    return Call(ordered, (), items, {"_metadata": Call(ordered, (), {"": {"version": 1}})})


# ---- zip ----


def write_zip(path, entries, root="archive", compression=0, directory=None):
    """A zip archive as torch.save writes it: stored, payloads at multiples of 64, sizes after the payload.

    `entries` maps names below `root` to bytes, or is a list of such pairs (to repeat a name). With `compression` 8 the
    payloads are deflated. `directory(index, fields)` may change the numbers of a directory entry: a dict of crc,
    packed, size and offset.
    """
    out, listing = bytearray(), bytearray()
    pairs = list(entries.items()) if isinstance(entries, dict) else list(entries)
    flags, wide = 0x0808, 0xFFFFFFFF
    for index, (below, payload) in enumerate(pairs):
        name = f"{root}/{below}".encode()
        data = zlib.compress(payload, 9)[2:-4] if compression else payload
        start = len(out)
        padding = -(start + 30 + len(name) + 4) % 64
        extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        out += struct.pack("<4s5HIIIHH", b"PK\3\4", 0, flags, compression, 0, 0, 0, 0, 0, len(name), len(extra))
        out += name + extra + data
        crc = zlib.crc32(payload)
        out += struct.pack("<4sIII", b"PK\7\b", crc, len(data) & wide, len(payload) & wide)
        fields = {"crc": crc, "packed": len(data), "size": len(payload), "offset": start}
        if directory:
            directory(index, fields)
        numbers = [fields["size"], fields["packed"], fields["offset"]]
        large = [number for number in numbers if number >= wide]
        extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        size, packed, offset = (min(number, wide) for number in numbers)
        listing += struct.pack("<4s6H", b"PK\1\2", 0, 0, flags, compression, 0, 0)
        listing += struct.pack("<III5HII", fields["crc"], packed, size, len(name), len(extra), 0, 0, 0, 0, offset)
        listing += name + extra
    start, count = len(out), len(pairs)
    out += listing
    end64 = len(out)
    out += struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 798, 45, 0, 0, count, count, len(listing), start)
    out += struct.pack("<4sIQI", b"PK\6\7", 0, end64, 1)
    count, size, start = min(count, 0xFFFF), min(len(listing), wide), min(start, wide)
    out += struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    with open(path, "wb") as file:
        file.write(out)


def pth_entries(data_pkl, storages, byteorder="little"):
    """The entries of a checkpoint in torch's order; `storages` are the bytes of data/0, data/1, ..."""
    entries = {"data.pkl": data_pkl, ".format_version": b"1", ".storage_alignment": b"64"}
    if byteorder:
        entries["byteorder"] = byteorder.encode()
    entries |= {f"data/{key}": payload for key, payload in enumerate(storages)}
    return entries | {"version": b"3\n", ".data/serialization_id": b"0" * 40}


def write_pth(
    path, tensors, dtype="bf16", transposed=(), wrap=None, *, shared=None, parameters=(), extra=None, root="archive"
):
    """Writes a state dict as torch.save does.

    Parameters
    ----------
    tensors : name -> array. Floating arrays are stored as `dtype`, integers as they are, uint16 as bfloat16 bits.
    transposed : names whose storage holds the transpose, so that the tensor is a view with reversed strides.
    wrap : put the state dict under this key of an outer dict ("state_dict").
    shared : name -> name of a tensor whose storage it shares (the same values; tied weights).
    parameters : names stored as torch.nn.Parameter.
    extra : other values of the dict, such as {"step": 3}.
    """
    storages, places, items = [], {}, {}
    for name, array in tensors.items():
        owner = (shared or {}).get(name, name)
        kind = _dtype_for(array, dtype)
        values = _stored(array, kind)
        if owner not in places:
            places[owner] = len(storages)
            storages.append((values.T if owner in transposed else values).tobytes("C"))
        laid_out = values.T if owner in transposed else values
        stride = [step // values.itemsize for step in np.empty(laid_out.shape, values.dtype).strides]
        stride = stride[::-1] if owner in transposed else stride
        reference = storage(kind, places[owner], values.size)
        items[name] = tensor(reference, 0, values.shape, stride, name in parameters)
    items |= extra or {}
    value = state_dict(items)
    write_zip(path, pth_entries(pickled({wrap: value, "epoch": 1} if wrap else value), storages), root)


def write_list(path, items, dtype="f32", *, as_tuple=False, views=False, extra=()):
    """Writes a list of arrays as torch.save does; `views` begin 24 bytes into their storages, `extra` are other values."""
    storages, values = [], []
    for key, array in enumerate(items):
        stored = _stored(array, dtype)
        before = b"\xff" * (24 if views else 0)
        storages.append(before + stored.tobytes())
        offset = len(before) // stored.itemsize
        stride = [step // stored.itemsize for step in stored.strides]
        values.append(tensor(storage(dtype, key, stored.size + offset), offset, stored.shape, stride))
    values += extra
    write_zip(path, pth_entries(pickled(tuple(values) if as_tuple else values), storages))
    return path


# ---- safetensors ----


def write_safetensors(path, tensors, dtype="bf16", metadata=None):
    """Writes a safetensors file: `tensors` maps names to arrays, typed as write_pth types them."""
    header, payloads, at = {}, [], 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name, array in tensors.items():
        kind = _dtype_for(array, dtype)
        payload = _stored(array, kind).tobytes("C")
        shape = list(np.shape(array))
        header[name] = {"dtype": _DTYPES[kind][1], "shape": shape, "data_offsets": [at, at + len(payload)]}
        payloads.append(payload)
        at += len(payload)
    write_raw_safetensors(path, json.dumps(header, separators=(",", ":")), b"".join(payloads))


def write_raw_safetensors(path, header, data, length=None):
    """Any header text or bytes before any data; `length` may lie about the header."""
    text = header.encode() if isinstance(header, str) else header
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text + data)
