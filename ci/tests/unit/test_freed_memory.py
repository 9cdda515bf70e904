"""What was freed goes back to the system. Each test has a process, and so a heap, of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from forecast_service import freed_memory

CONTENT = Path(freed_memory.__file__).parents[1]
SCRIPT = """
import asyncio, sys
import psutil
from forecast_service import freed_memory

def resident_mb():
    return psutil.Process().memory_info().rss / 1e6

async def main(block_bytes, blocks, kept, every_s):
    freed_memory.EVERY_S = every_s
    task = asyncio.create_task(freed_memory.return_freed_memory())
    await asyncio.sleep(0)
    b"x" * 8_000_000  # has glibc keep what is smaller than this, by itself
    before_mb = resident_mb()
    blocks = [b"x" * block_bytes for _ in range(blocks)]
    print(resident_mb() - before_mb)
    blocks = blocks[::kept]
    for _ in range(200):
        await asyncio.sleep(0.01)
        if resident_mb() - before_mb < 50:
            break
    print(resident_mb() - before_mb, task.done())
    task.cancel()

asyncio.run(main(*(float(word) if "." in word else int(word) for word in sys.argv[1:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that keeps what was freed")
@pytest.mark.parametrize(
    "sizes", ["2000 50000 10 0.01", "4000000 25 10 60.0"], ids=["small", "large"]
)
def test_what_was_freed_goes_back_though_what_lies_between_is_kept(sizes):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sizes.split()],
        cwd=CONTENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    full_mb, left_mb, stopped = done.stdout.split()
    assert float(full_mb) > 90, "the blocks were not in memory"
    assert float(left_mb) < 50, "what was freed is kept"
    assert stopped == "False", "a replica whose task has ended is replaced"
