"""What lives as long as the app's process."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy.orm import Session, sessionmaker

from serve.app.settings import Settings


@dataclass
class App:
    """`app.state.app`. write, read: makers of sessions. key: of pseudonyms. writers: upload -> who appends to it."""

    settings: Settings
    write: sessionmaker[Session]
    read: sessionmaker[Session]
    key: bytes
    writers: dict[str, object] = field(default_factory=dict)
    connected: bool = False  # to NATS
    _loop: asyncio.AbstractEventLoop | None = None
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _watchers: defaultdict[str, set[asyncio.Event]] = field(default_factory=lambda: defaultdict(set))

    def begin(self) -> None:
        """Called once, on the loop that everything runs on."""
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """There is something to publish; may be called from any thread."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._work.set)

    async def work(self, seconds: float) -> None:
        """Wait until there is something to publish, `seconds` at most: a kill may have swallowed the call."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), seconds)
        self._work.clear()

    def tell(self, id: str) -> None:
        """An inference has changed; called on the loop."""
        for watcher in self._watchers.get(id, ()):
            watcher.set()

    @contextmanager
    def watching(self, id: str) -> Iterator[Callable[[float], Awaitable[None]]]:
        """Gives a way to wait until the inference has changed since here, some seconds at most."""
        watcher = asyncio.Event()
        self._watchers[id].add(watcher)

        async def changed(seconds: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(watcher.wait(), seconds)

        try:
            yield changed
        finally:
            self._watchers[id].discard(watcher)
            if not self._watchers[id]:
                del self._watchers[id]
