"""An event loop whose clock jumps to when the next thing is due: no test waits."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable


class JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing, and puts the clock forward instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None):
        assert timeout is not None, "nothing is due any more"
        self.now_s += timeout
        return super().select(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario, and check that it leaves no task behind."""
    selector = JumpingSelector()

    def make_loop():
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now_s
        return loop

    async def without_leftovers():
        await scenario()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(without_leftovers())


def now_s() -> float:
    return asyncio.get_running_loop().time()
