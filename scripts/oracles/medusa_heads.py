"""Writes small torch checkpoints of Medusa heads, and one that would run a command if it could.

No torch is needed: the archives are made by pickle and zipfile alone, with stand-ins for the names
that torch's own pickles use. Run from the repository's root: python3 scripts/oracles/medusa_heads.py
"""

import collections
import io
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile

OUT = pathlib.Path("crates/offshoot-models/tests/data/medusa")
WIDTH, VOCABULARY, HEADS = 4, 6, 2


def module(name):
    made = types.ModuleType(name)
    sys.modules[name] = made
    return made


torch, utils = module("torch"), module("torch._utils")
torch._utils = utils


class HalfStorage:
    """Stands for torch's own; its instances hold a key and halves."""

    def __init__(self, key, values):
        self.key, self.values = key, values


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks):
    raise NotImplementedError("named, never called")


for thing, home in ((HalfStorage, torch), (_rebuild_tensor_v2, utils)):
    thing.__module__, thing.__qualname__ = home.__name__, thing.__name__
    setattr(home, thing.__name__, thing)


class Tensor:
    def __init__(self, storage, shape):
        self.storage, self.shape = storage, shape

    def __reduce__(self):
        stride = (self.shape[1], 1) if len(self.shape) == 2 else (1,)
        arguments = (self.storage, 0, self.shape, stride, False, collections.OrderedDict())
        return _rebuild_tensor_v2, arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        if isinstance(thing, HalfStorage):
            return ("storage", HalfStorage, thing.key, "cpu", len(thing.values))
        return None


class Command:
    def __reduce__(self):
        return os.system, ("touch run-by-a-pickle",)


def archive(name, content, storages):
    program = io.BytesIO()
    Pickler(program, protocol=2).dump(content)
    with zipfile.ZipFile(OUT / name, "w", zipfile.ZIP_STORED) as out:
        def put(path, data):
            out.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), data)

        put("heads/data.pkl", program.getvalue())
        put("heads/byteorder", b"little")
        for storage in storages:
            put(f"heads/data/{storage.key}", struct.pack(f"<{len(storage.values)}e", *storage.values))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    state, storages = collections.OrderedDict(), []
    for head in range(HEADS):
        for name, shape in (
            ("0.linear.weight", (WIDTH, WIDTH)),
            ("0.linear.bias", (WIDTH,)),
            ("1.weight", (VOCABULARY, WIDTH)),
        ):
            count = shape[0] * (shape[1] if len(shape) == 2 else 1)
            values = [(head * 31 + i * 7) % 64 / 16 - 2 for i in range(count)]
            storages.append(HalfStorage(str(len(storages)), values))
            state[f"{head}.{name}"] = Tensor(storages[-1], shape)
    archive("heads.pt", state, storages)
    archive("command.pt", {"0.0.linear.weight": Command()}, [])


main()
