"""Inflating a gzip file in bounded pieces, ahead of their reader in a thread (zlib lets go of the GIL)."""

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import BinaryIO

from otaflow.errors import PackageInconsistent

READ_BYTES = 128 * 2**10
PIECE_BYTES = 256 * 2**10
PIECES_AHEAD = 8


def inflate(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """The content of the gzip file, in pieces of at most PIECE_BYTES.

    PackageInconsistent when it is damaged or cut, when it is more than `limit` bytes, or when anything follows it. A
    second gzip member is such a thing: other readers would go on, or not, and so see another archive.
    """
    engine = zlib.decompressobj(wbits=31)
    total = 0
    while not engine.eof:
        data = engine.unconsumed_tail or file.read(READ_BYTES)
        try:
            piece = engine.decompress(data, PIECE_BYTES)
        except zlib.error as error:
            raise PackageInconsistent(f"cannot read the package: it is no gzip file, or damaged ({error})") from error
        total += len(piece)
        if total > limit:
            raise PackageInconsistent(f"cannot read the package: it inflates to more than {limit} bytes")
        if piece:
            yield piece
        elif not data and not engine.eof:
            raise PackageInconsistent("cannot read the package: it is cut off", hint="fetch or copy it again")
    if engine.unused_data or file.read(1):
        raise PackageInconsistent("cannot read the package: something follows the end of its gzip stream")


@contextmanager
def ahead(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Let `pieces` be made in a thread, PIECES_AHEAD ones before they are asked for. Its errors come out at `next`."""
    queue: SimpleQueue[bytes | Exception | None] = SimpleQueue()
    room = threading.Semaphore(PIECES_AHEAD)
    left = threading.Event()

    def make() -> None:
        try:
            for piece in pieces:
                room.acquire()
                if left.is_set():
                    return
                queue.put(piece)
            queue.put(None)
        except Exception as error:
            queue.put(error)

    def take() -> Iterator[bytes]:
        while (item := queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            room.release()
            yield item

    thread = threading.Thread(target=make, name="inflate", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        left.set()
        room.release()
        thread.join()
