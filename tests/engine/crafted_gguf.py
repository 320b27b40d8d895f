"""GGUF headers written by hand, as no library would write them."""

import struct

import numpy as np
import torch

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
ALIGNMENT = 32


def text(value, size=None):
    """A string with its length, or with a size that is claimed."""
    encoded = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(encoded) if size is None else size) + encoded


def array(kind, items, count=None):
    """A value that is an array: type, item type, count, items as bytes."""
    count = len(items) if count is None else count
    return struct.pack("<IIQ", ARRAY, kind, count) + b"".join(items)


def value(given):
    """A value of any type, with its type in front; bytes are taken as they are."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, bool):
        return struct.pack("<I?", BOOL, given)
    if isinstance(given, int):
        return struct.pack("<Ii", INT32, given) if given < 0 else struct.pack("<IQ", UINT64, given)
    if isinstance(given, float):
        return struct.pack("<If", FLOAT32, given)
    if isinstance(given, str):
        return struct.pack("<I", STRING) + text(given)
    if isinstance(given, list):
        return array(STRING, [text(item) for item in given])
    kind = {"i": INT32, "u": UINT32, "f": FLOAT32}[given.dtype.kind]
    sized = given.astype({INT32: "<i4", UINT32: "<u4", FLOAT32: "<f4"}[kind])
    return array(kind, [sized.tobytes()], len(given))


def tensor(name, shape, kind=0, offset=0):
    """A tensor's place; the shape as in the file, columns first."""
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def header(metadata, tensors, counts=None, version=3):
    """A file up to its data: (key, value) pairs, and bytes such as `tensor` makes."""
    num_tensors, num_keys = counts or (len(tensors), len(metadata))
    parts = [struct.pack("<4sIQQ", b"GGUF", version, num_tensors, num_keys)]
    parts += [text(key) + value(given) for key, given in metadata]
    whole = b"".join([*parts, *tensors])
    return whole + bytes(-len(whole) % ALIGNMENT)


def rewritten(file, **changes):
    """The bytes of an open GGUFFile of F32 with other metadata and tensors.

    Args:
        file: the GGUFFile.
        changes: `metadata`, a dict of what is put in (None takes a key out), and `tensors`, a dict
            of name to what `tensor` takes behind it.
    """
    given = {**file.metadata, **changes.get("metadata", {})}
    metadata = [(key, each) for key, each in given.items() if each is not None]
    places, data, at = [], [], 0
    for name in file.tensors:
        held = np.ascontiguousarray(file.tensor(name, torch.float32).numpy())
        places.append(tensor(name, held.shape[::-1], 0, at))
        data.append(held.tobytes() + bytes(-held.nbytes % ALIGNMENT))
        at += len(data[-1])
    places += [tensor(name, *about) for name, about in changes.get("tensors", {}).items()]
    return header(metadata, places) + b"".join(data)
