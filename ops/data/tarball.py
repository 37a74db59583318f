"""Writes tar files whose bytes depend on nothing but their members: plain USTAR headers, no owner, no date.

In: names and contents, in order. Out: the bytes of a tar, or of one member. A name that USTAR cannot hold gets a PAX header.
"""

import io
import tarfile


def member(name, content, kind=tarfile.REGTYPE):
    """One member: its header(s), its content and the padding to a full block."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.type = kind
    # Python marks long names in PAX headers and leaves short ones in plain USTAR.
    header = info.tobuf(tarfile.PAX_FORMAT)
    return header + content + bytes(-len(content) % 512)


END = bytes(1024)


def archive(members):
    """A whole tar of (name, content) pairs, with the end marker and no padding after it."""
    out = io.BytesIO()
    for name, content in members:
        out.write(member(name, content))
    out.write(END)
    return out.getvalue()
