"""A lease in the model store: of several who would keep the same fleet up, one is at work."""

import asyncio
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from forecast_service.errors import StoreUnavailableError, UnknownCustomerError
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore

LEASE_S = 300  # after which another may begin, if the holder has not renewed it
FOLDER = "_upkeep"  # in the store
logger = logging.getLogger(__name__)


class LeaseHeldError(Exception):
    """Another process holds the lease, or may by now."""


class Lease:
    """A lease on a store, be it a folder or an object store.

    All it takes is that of several who create an object at once, one succeeds: leases are numbered,
    the highest one counts, and whoever creates the next one holds it. So nothing is replaced that
    somebody else could have replaced meanwhile. Clocks may differ by much less than a lease lasts.
    """

    def __init__(self, settings: StoreSettings, lease_s: float = LEASE_S):
        """Take the settings of the store, which exists, and the seconds that a lease lasts."""
        place = f"{settings.model_store.rstrip('/')}/{FOLDER}"
        own = settings.model_copy(update={"model_store": place})
        self._store = ModelStore(own, "lease.json", create=True)
        self._lease_s = lease_s
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._token = uuid.uuid4().hex
        self._number = 0
        self._until_s = 0.0

    async def acquire(self) -> None:
        """Take the lease. Raises LeaseHeldError, which says who has it, and until when."""
        older = await self._numbers()
        if older:
            latest = await self._read(older[-1])
            if latest and latest["until_s"] > time.time():
                raise LeaseHeldError(_held_by(latest))
        self._number = max(older, default=0) + 1
        self._until_s = time.time() + self._lease_s
        await self._store.create(str(self._number), self._text(self._until_s))
        await self._require_own()
        for number in older:
            await self._store.delete(str(number))

    async def renew(self) -> None:
        """Hold the lease for as long again, from now. Raises LeaseHeldError if it may be lost.

        After a StoreUnavailableError it is held for as long as before: try again.
        """
        if time.time() >= self._until_s:
            raise LeaseHeldError("the lease has run out: another process may be at work by now")
        await self._require_own()
        until_s = time.time() + self._lease_s
        await self._store.write(str(self._number), self._text(until_s))
        self._until_s = until_s

    async def release(self) -> None:
        """Let the next one begin. What stays is the number: it is never given twice."""
        self._until_s = 0.0
        await self._store.write(str(self._number), self._text(self._until_s))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease for a block, outside an event loop. Raises what acquire() does.

        If it cannot be given back, that is logged: it runs out by itself.
        """
        asyncio.run(self.acquire())
        try:
            yield
        finally:
            try:
                asyncio.run(self.release())
            except StoreUnavailableError as error:
                left = f"the lease was not given back, and ends in up to {self._lease_s:g} s"
                logger.warning("%s: %s", left, error)

    async def _require_own(self) -> None:
        """Raise LeaseHeldError unless the lease that counts is this one."""
        latest = await self._read(max(await self._numbers(), default=0))
        if latest is None or latest["token"] != self._token:
            raise LeaseHeldError(_held_by(latest) if latest else "another process is at work")

    async def _numbers(self) -> list[int]:
        return sorted(int(number) for number in await self._store.list())

    async def _read(self, number: int) -> dict | None:
        try:
            return json.loads((await self._store.read(str(number))).data)
        except UnknownCustomerError:  # deleted since it was listed: there is a later one
            return None

    def _text(self, until_s: float) -> bytes:
        about = {"holder": self._holder, "token": self._token, "until_s": until_s}
        return json.dumps(about).encode()


def _held_by(lease: dict) -> str:
    until = time.strftime("%H:%M:%S", time.localtime(lease["until_s"]))
    return f"{lease['holder']} is at work, or was killed: its lease ends at {until}"
