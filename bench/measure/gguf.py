"""What a GGUF file says of itself: its shape, and the bytes that one step must read.

Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
"""

import dataclasses
import pathlib
import struct

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
           10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Model:
    """A model file and the part of its header that is needed."""

    path: pathlib.Path
    role: str
    file_bytes: int
    step_bytes: int
    kv_bytes_per_token_bf16: int


class Reader:
    """Reads a header front to back."""

    def __init__(self, file):
        self.file = file

    def scalar(self, form):
        size = struct.calcsize(form)
        data = self.file.read(size)
        if len(data) < size:
            raise ValueError("the header ends early")
        return struct.unpack(form, data)[0]

    def string(self):
        return self.file.read(self.scalar("<Q")).decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, length = self.scalar("<I"), self.scalar("<Q")
            return [self.value(item) for _ in range(length)]
        if kind not in SCALARS:
            raise ValueError(f"unknown kind of value {kind}")
        return self.scalar(SCALARS[kind])


def read_header(path):
    """The metadata, and (name, offset) of all tensors in the order of their offsets."""
    with open(path, "rb") as file:
        reader = Reader(file)
        if file.read(4) != b"GGUF":
            raise ValueError("not a GGUF file")
        if reader.scalar("<I") < 2:
            raise ValueError("GGUF version 1 is not read")
        n_tensors, n_entries = reader.scalar("<Q"), reader.scalar("<Q")
        metadata = {}
        for _ in range(n_entries):
            key = reader.string()
            metadata[key] = reader.value(reader.scalar("<I"))
        tensors = []
        for _ in range(n_tensors):
            name = reader.string()
            for _ in range(reader.scalar("<I")):
                reader.scalar("<Q")
            reader.scalar("<I")
            tensors.append((name, reader.scalar("<Q")))
        header_bytes = file.tell()
    return metadata, sorted(tensors, key=lambda tensor: tensor[1]), header_bytes


def tensor_bytes(metadata, tensors, header_bytes, file_bytes):
    """Bytes of each tensor: up to where the next begins, which counts at most one padding."""
    alignment = metadata.get("general.alignment", 32)
    data_begin = -(-header_bytes // alignment) * alignment
    ends = [offset for _, offset in tensors[1:]] + [file_bytes - data_begin]
    return {name: end - offset for (name, offset), end in zip(tensors, ends)}


def read_model(path, roles):
    """Reads the header of `path`; `roles` names models by (architecture, width)."""
    path = pathlib.Path(path)
    try:
        metadata, tensors, header_bytes = read_header(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench: {path}: {error}") from error
    architecture = metadata.get("general.architecture")
    width = metadata.get(f"{architecture}.embedding_length")
    role = roles.get((architecture, width))
    if role is None:
        known = ", ".join(f"{kind} of width {width}" for kind, width in roles)
        raise SystemExit(f"bench: {path}: no targets for {architecture} of width {width};"
                         f" there are some for {known}")
    file_bytes = path.stat().st_size
    sizes = tensor_bytes(metadata, tensors, header_bytes, file_bytes)
    step_bytes = sum(sizes.values())
    if "output.weight" in sizes:  # then of the embedding a step reads one row only
        step_bytes -= sizes["token_embd.weight"]
    return Model(path, role, file_bytes, step_bytes, kv_bytes_per_token(metadata, architecture))


def kv_bytes_per_token(metadata, architecture):
    """Bytes of keys and values of one position over all layers, two bytes a number."""
    n_heads = metadata[f"{architecture}.attention.head_count"]
    n_kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", n_heads)
    width = metadata[f"{architecture}.embedding_length"]
    d_head = metadata.get(f"{architecture}.attention.key_length", width // n_heads)
    return 2 * 2 * metadata[f"{architecture}.block_count"] * n_kv_heads * d_head
