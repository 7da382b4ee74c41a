"""Leader election: one replica works at a time, the holder of a Lease, as with Kubernetes' own components.

The rules are client-go's. A holder that cannot renew the lease for `renew` seconds stops. Another replica takes over
after it has seen the lease unchanged for `duration` seconds, which is longer, by its own clock. No clocks are compared.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple

from controller.cluster.kube import Kube, KubeError, Object

log = logging.getLogger(__name__)


class LeaseTiming(NamedTuple):
    """Seconds. `duration`: how long another replica must see a lease unchanged before it may take it.

    `renew`: in which the holder must renew it, or stop. `retry`: between attempts.
    """

    duration: float = 15.0
    renew: float = 10.0
    retry: float = 2.0


LEASE_TIMING = LeaseTiming()
"""The values of Kubernetes' own components."""


class Lease:
    """A Lease, for one candidate with this `identity`."""

    def __init__(self, kube: Kube, namespace: str, name: str, identity: str, times: LeaseTiming = LEASE_TIMING) -> None:
        self._times = times
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: tuple[object, float] = (None, 0.0)

    async def hold(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then work while holding it. Returns when the work ends or the lease is lost."""
        while not await self._taken():
            await asyncio.sleep(self._times.retry)
        log.info("lease taken", extra={"lease": f"{self._namespace}/{self._name}", "holder": self._identity})
        try:
            async with asyncio.TaskGroup() as tasks:
                working = tasks.create_task(_run(work), name="leader's work")
                renewing = tasks.create_task(self._renew(), name="renew lease")
                await asyncio.wait([working, renewing], return_when=asyncio.FIRST_COMPLETED)
                working.cancel()
                renewing.cancel()
        finally:
            await self._release()

    async def _renew(self) -> None:
        clock = asyncio.get_running_loop().time
        renewed = clock()
        with contextlib.suppress(TimeoutError):  # also when the API server does not answer
            while True:
                async with asyncio.timeout_at(renewed + self._times.renew):
                    await asyncio.sleep(self._times.retry)
                    begun = clock()
                    if await self._taken():
                        renewed = begun
        log.error("lease lost", extra={"lease": f"{self._namespace}/{self._name}"})

    async def _taken(self) -> bool:
        """Take or renew the lease if this candidate holds it, or nobody, or its holder has stopped. Whether it is
        held."""
        try:
            lease = await self._kube.get("Lease", self._namespace, self._name)
            if lease is None:
                await self._kube.create("Lease", self._wanted(None))
                return True
            if lease["spec"].get("holderIdentity") not in (self._identity, "", None) and not self._expired(lease):
                return False
            await self._kube.replace("Lease", self._wanted(lease))
        except KubeError as error:
            if error.status != 409:  # another candidate was faster
                log.warning("lease cannot be taken or renewed", extra={"reason": str(error)})
            return False
        return True

    async def _release(self) -> None:
        """Give up the lease, so that another candidate can take it at once."""
        try:
            lease = await self._kube.get("Lease", self._namespace, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._kube.replace("Lease", lease)
        except KubeError as error:
            log.info("lease not released: it will expire", extra={"reason": str(error)})

    def _expired(self, lease: Object) -> bool:
        """Whether the holder must have stopped, since it has not renewed the lease for `duration` seconds."""
        clock = asyncio.get_running_loop().time()
        state = (lease["spec"].get("holderIdentity"), lease["spec"].get("renewTime"))
        if self._seen[0] != state:
            self._seen = (state, clock)
        return clock - self._seen[1] > self._times.duration

    def _wanted(self, lease: Object | None) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        old = lease["spec"] if lease is not None else {}
        mine = old.get("holderIdentity") == self._identity
        spec = {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._times.duration)),
            "acquireTime": old.get("acquireTime") if mine else now,
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (lease is not None and not mine),
        }
        metadata = lease["metadata"] if lease is not None else {"namespace": self._namespace, "name": self._name}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()
