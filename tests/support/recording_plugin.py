"""An nbdkit plugin: a disk in a file that logs every write and every flush, in their order, to another file.

nbdkit runs it in Debian's Python: nothing but the standard library is imported. `img=` is the disk, `log=` the log: of
each write `W`, its offset (8 bytes) and length (4), then its bytes; of each flush `F` and twelve zeros. The length of
the log at any time is a moment of the disk.
"""

# mypy: ignore-errors
import os
import struct

import nbdkit

API_VERSION = 2
HEAD = struct.Struct("<cQI")
FLUSH = HEAD.pack(b"F", 0, 0)
paths = {}
disk = log = -1


def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def config(key, value):
    paths[key] = value


def get_ready():
    global disk, log
    disk = os.open(paths["img"], os.O_RDWR)
    log = os.open(paths["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def open(readonly):
    return 1


def get_size(handle):
    return os.fstat(disk).st_size


def can_flush(handle):
    return True


def can_fua(handle):
    return nbdkit.FUA_NATIVE


def can_trim(handle):
    return False


def can_zero(handle):
    return False


def can_multi_conn(handle):
    return False


def pread(handle, buffer, offset, flags):
    os.preadv(disk, [buffer], offset)


def pwrite(handle, buffer, offset, flags):
    os.pwrite(disk, buffer, offset)
    # one call, so that nobody sees half an entry; a write that is flushed at once (FUA) is a write and a flush
    os.writev(log, [HEAD.pack(b"W", offset, len(buffer)), buffer, FLUSH if flags & nbdkit.FLAG_FUA else b""])


def flush(handle, flags):
    os.write(log, FLUSH)
