"""Runs kopf, which watches the cluster, and restarts it when it ends or makes no progress.

kopf runs in a thread with an event loop of its own, because it handles all signals and ends all tasks of its loop.
Whether it makes progress is judged by its requests: it requests each watch again every `WatchTiming.watch` seconds. If
the API server has not answered a watch for much longer, the watch is dead.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakSet

import aiohttp
import kopf

from controller.cluster.access import TIMEOUT_S
from controller.cluster.cache import WATCHED
from controller.cluster.kube import KINDS, Object

log = logging.getLogger(__name__)

BACKOFFS_S = (1, 1, 2, 3, 5, 5, 5, 5)
"""Seconds between kopf's attempts to reach the API server, before it gives up."""
IDLE_S = 0.5
"""Seconds that kopf keeps an object's task for further events. It waits for these tasks when it stops."""
STOP_S = 15.0
"""Seconds that kopf has to stop, and then again after it was cancelled, before its thread is abandoned."""
HANG_UP_S = 2.0
"""Seconds that kopf's connections have to close once they were shut down, before they are left to the collector."""

OnObject = Callable[[Object, str | None], None]
"""Receives an object and the type of its event; None if the object comes from a watch's first list."""


class WatchTiming(NamedTuple):
    """Seconds. `watch`: how long a watch lasts before kopf requests it again.

    `stalled`: how long a watch may be unanswered before kopf is restarted. `check`: between two checks of that.
    `again`: before a restart.
    """

    watch: float = 30.0
    stalled: float = 90.0
    check: float = 5.0
    again: float = 5.0


WATCH_TIMING = WatchTiming()


class Progress:
    """When the API server last answered each watch. Times are seconds of one monotonic clock.

    `paths`: of the watched lists, as in requests.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self._answered: dict[str, float | None] = dict.fromkeys(paths)
        self._begun = 0.0

    def begin(self, now: float) -> None:
        """Watches are started or restarted."""
        self._begun = now
        for path, at in self._answered.items():
            self._answered[path] = now if at is None else at

    def answered(self, path: str, now: float) -> None:
        """The API server has answered a request. Paths that are not watched are ignored."""
        if path in self._answered:
            self._answered[path] = now

    def stalled(self, now: float, limit: float) -> Sequence[str]:
        """The paths that were unanswered for more than `limit` seconds since watches were started."""
        return self.silent(now, limit) if now - self._begun > limit else ()

    def silent(self, now: float, limit: float) -> Sequence[str]:
        """The paths that were unanswered for more than `limit` seconds, even if watches were restarted since."""
        return [path for path, at in self._answered.items() if at is not None and now - at > limit]


def watched_paths(namespaces: Sequence[str]) -> list[str]:
    """The paths of all watches: in these namespaces, or in all if none is given."""
    scopes: Sequence[str | None] = namespaces or [None]
    return [KINDS[kind].path(scope) for kind in WATCHED for scope in ([None] if kind == "Node" else scopes)]


async def watch(
    login: Callable[[], kopf.ConnectionInfo],
    on_object: OnObject,
    namespaces: Sequence[str],
    progress: Progress,
    times: WatchTiming = WATCH_TIMING,
) -> None:
    """Watch until kopf ends, a watch stalls, or this is cancelled. `on_object` is called on this event loop."""
    clock = asyncio.get_running_loop().time
    progress.begin(clock())
    running = _Kopf(login, on_object, namespaces, progress, times)
    running.start()
    try:
        while not await _set_within(running.ended, times.check):
            if stalled := progress.stalled(clock(), times.stalled):
                log.warning("watches make no progress", extra={"unanswered": " ".join(stalled)})
                return
    finally:
        await running.stop()


class _Kopf:
    """One run of kopf in its own thread. Objects that it passes on after `stop` are ignored."""

    def __init__(
        self,
        login: Callable[[], kopf.ConnectionInfo],
        on_object: OnObject,
        namespaces: Sequence[str],
        progress: Progress,
        times: WatchTiming,
    ) -> None:
        self.ended = asyncio.Event()
        self._login, self._on_object, self._progress, self._times = login, on_object, progress, times
        self._where: dict[str, Any] = {"namespaces": namespaces} if namespaces else {"clusterwide": True}
        self._ours = asyncio.get_running_loop()
        self._kopf_loop = asyncio.new_event_loop()
        self._stop_flag = asyncio.Event()  # with a threading.Event, kopf would keep a thread waiting, and not end
        self._sessions: list[aiohttp.ClientSession] = []
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._is_stopping = False

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="kopf", daemon=True).start()

    async def stop(self) -> None:
        """Stop kopf. A thread that does not end is abandoned: it is ignored, and ends with the process."""
        self._is_stopping = True
        for have_it_end in (self._stop_flag.set, self._cancel_all):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._kopf_loop.call_soon_threadsafe(have_it_end)
            if await _set_within(self.ended, STOP_S):
                return
        log.error("kopf does not end: its thread is abandoned")

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._kopf_loop) as runner:
                runner.run(self._operate())
        except BaseException as error:  # noqa: BLE001 - whatever ended it, it is restarted
            log.warning("kopf gave up", extra={"reason": str(error) or type(error).__name__})
        finally:
            self._call_soon(self.ended.set)

    async def _operate(self) -> None:
        try:
            await kopf.operator(registry=self._registry(), standalone=True, stop_flag=self._stop_flag, **self._where)
        finally:
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Close all connections.

        kopf does not close sessions that it was given, and a session does not wait for the connections of watches that
        were cut short: they wait for the API server to end TLS, and would outlive the event loop.
        """
        for session in self._sessions:
            await session.close()
        for it in self._sockets:
            with contextlib.suppress(OSError):  # it is closed
                it.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_S):
                while any(it.fileno() >= 0 for it in self._sockets):
                    await asyncio.sleep(0.01)

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for a connection of kopf's."""
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        self._sockets.add(made)
        return made

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._kopf_loop):
            task.cancel()

    def _call_soon(self, call: Callable[..., None], *args: object) -> None:
        """Call a function on the event loop of `watch`, if that is still running."""
        with contextlib.suppress(RuntimeError):
            self._ours.call_soon_threadsafe(call, *args)

    def _object_seen(self, body: Object, kind: str | None) -> None:
        if not self._is_stopping:
            self._on_object(body, kind)

    def _session(self) -> kopf.AiohttpSession:
        """An HTTP session for kopf that reports each answer of the API server to `Progress`."""

        async def answered(_: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
            if end.response.ok:
                self._call_soon(self._answered, end.url.path)

        tracing = aiohttp.TraceConfig()
        tracing.on_request_end.append(answered)
        info = self._login()
        trusted = info.as_ssl_context() if info.server.startswith("https:") else True
        made = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trusted, socket_factory=self._socket),
            headers=info.as_http_headers(),
            trace_configs=[tracing],
            proxy=info.proxy_url,
            trust_env=info.trust_env,
        )
        self._sessions.append(made)
        return kopf.AiohttpSession(server=info.server, default_namespace=info.default_namespace, aiohttp_session=made)

    def _answered(self, path: str) -> None:
        if not self._is_stopping:
            self._progress.answered(path, self._ours.time())

    def _registry(self) -> kopf.OperatorRegistry:
        """Handlers that only pass objects on. kopf writes nothing."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def log_in(**_: Any) -> kopf.AiohttpSession:
            return self._session()

        @kopf.on.startup(registry=registry)
        async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
            settings.posting.enabled = False
            settings.scanning.disabled = True
            settings.networking.error_backoffs = BACKOFFS_S
            settings.networking.request_timeout = TIMEOUT_S
            settings.watching.server_timeout = max(1, round(self._times.watch))
            settings.watching.client_timeout = (
                self._times.watch + TIMEOUT_S
            )  # for a connection that broke without a sign
            settings.queueing.idle_timeout = IDLE_S

        async def seen(event: kopf.RawEvent, **_: Any) -> None:
            self._call_soon(self._object_seen, dict(event["object"]), event["type"])

        for name in WATCHED:
            kopf.on.event(KINDS[name].version, KINDS[name].plural, registry=registry)(seen)
        return registry


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
