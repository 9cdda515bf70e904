"""Give memory back to the system once it is freed: by itself, glibc keeps much of it."""

import asyncio
import ctypes
import sys

EVERY_S = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE_BYTES = 128 * 1024  # what glibc begins with, for both


async def return_freed_memory() -> None:
    """Have freed memory given back, until cancelled, as far as the process has glibc.

    Large blocks go back at once. By itself, glibc ceases to do so: it takes the largest block that
    was freed, up to 32 MB, for one that is soon wanted again, and keeps all smaller ones. Models
    that come and go then leave gaps in which others do not fit, and a process grows to several
    times their size.

    Small blocks go back once a second. By itself, each thread that reads from the store keeps
    those that it has freed: some 2 kB for every cold load, up to 13 MB (measured).
    """
    glibc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(glibc, "malloc_trim"):
        await asyncio.Event().wait()
    glibc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    glibc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)  # twice that largest block by now
    while True:
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(glibc.malloc_trim, 0)  # a few milliseconds for each gigabyte
