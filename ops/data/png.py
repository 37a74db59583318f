"""Writes small PNG files byte by byte: for images whose exact coding matters.

`gray` stores its rows without deflate on purpose. Inside a tar.zst that makes the whole smaller by a tenth: zstd sees the rows
themselves and learns from one image to the next, where it could do nothing with bytes that are deflated already.
"""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PAETH = 4


def chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def header(width, height, bit_depth, colour_type):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))


def gray(pixels):
    """An 8-bit gray PNG of a numpy array [height, width] of bytes, Paeth-filtered, with nothing but the needed chunks."""
    height, width = pixels.shape
    rows = b"".join(bytes([PAETH]) + row.tobytes() for row in paeth(pixels))
    stored = zlib.compress(rows, level=0)
    return SIGNATURE + header(width, height, 8, 0) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def paeth(pixels):
    """What remains of each pixel after PNG's Paeth prediction from its left, upper and upper-left neighbours."""
    values = pixels.astype("int16")
    left, up, corner = values * 0, values * 0, values * 0
    left[:, 1:] = values[:, :-1]
    up[1:] = values[:-1]
    corner[1:, 1:] = values[:-1, :-1]
    estimate = left + up - corner
    to_left, to_up, to_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
    nearest = corner
    nearest[to_up <= to_corner] = up[to_up <= to_corner]
    use_left = (to_left <= to_up) & (to_left <= to_corner)
    nearest[use_left] = left[use_left]
    return ((values - nearest) % 256).astype("uint8")
