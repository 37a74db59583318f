"""Reads Qt's binary resource files (.rcc), where GCompris keeps its photographs.

In: the bytes of an .rcc file, format 1, 2 or 3. Out: (path, bytes) for every file in it, in tree order.
Wrong magic, an unknown format or entries that point outside the file raise ValueError.

Layout, all big-endian: "qres", format, offsets of tree, data and names. A tree node is the offset of its name, 16 bits of
flags, then either (children, first child) or (locale, offset of data); formats from 2 on add a 64-bit time. Data is a
32-bit length and the bytes; a zlib entry opens with its 32-bit inflated size.
"""

import struct
import zlib

import zstandard

COMPRESSED_ZLIB, DIRECTORY, COMPRESSED_ZSTD = 1, 2, 4


def files(blob):
    """Yields (path, bytes) of every file in the resource."""
    try:
        yield from _walk(blob, *_header(blob), node=0, prefix="")
    except (struct.error, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"damaged .rcc: {error}") from error


def _header(blob):
    if blob[:4] != b"qres":
        raise ValueError("not a Qt resource file")
    version, tree, data, names = struct.unpack_from(">4I", blob, 4)
    if version not in (1, 2, 3):
        raise ValueError(f"unknown .rcc format {version}")
    node_size = 14 if version == 1 else 22
    return tree, data, names, node_size


def _walk(blob, tree, data, names, node_size, node, prefix):
    at = tree + node * node_size
    name_at, flags = struct.unpack_from(">IH", blob, at)
    path = prefix + _name(blob, names + name_at) if node else ""
    if flags & DIRECTORY:
        count, first = struct.unpack_from(">II", blob, at + 6)
        inside = path + "/" if path else ""
        for child in range(first, first + count):
            yield from _walk(blob, tree, data, names, node_size, child, inside)
        return
    (data_at,) = struct.unpack_from(">I", blob, at + 10)
    (length,) = struct.unpack_from(">I", blob, data + data_at)
    start = data + data_at + 4
    content = blob[start : start + length]
    if flags & COMPRESSED_ZSTD:
        content = zstandard.ZstdDecompressor().decompress(content)
    elif flags & COMPRESSED_ZLIB:
        content = zlib.decompress(content[4:])
    yield path, content


def _name(blob, at):
    (length,) = struct.unpack_from(">H", blob, at)
    return blob[at + 6 : at + 6 + 2 * length].decode("utf-16-be")
