"""A queue of pictures, from which batches are formed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["BatchQueue", "QueueFullError"]


class QueueFullError(Exception):
    """More items were submitted than the queue has room for."""


class BatchQueue:
    """Calls a function with the items that wait, in their order, in threads of its own.

    A thread that is free takes what waits at that moment, so that an item never waits for a batch
    to fill. All methods are called from one event loop.
    """

    def __init__(
        self,
        function: Callable[[list], Sequence],
        *,
        max_waiting: int,
        max_batch: int = 1,
        threads: int = 1,
    ):
        """
        Args:
            function: called with 1 to ``max_batch`` items; returns for each its result, or the
                exception that its caller gets.
            max_waiting: the most items that wait, apart from those in progress.
            max_batch: the most items of a call.
            threads: how many calls run at a time.
        """
        self.max_waiting = max_waiting
        self._function = function
        self._max_batch = max_batch
        self._waiting: deque[tuple[Any, asyncio.Future]] = deque()
        self._arrived = asyncio.Event()
        self._pool = ThreadPoolExecutor(threads, "detect")
        self._consumers = [asyncio.create_task(self._consume()) for _ in range(threads)]

    def __len__(self) -> int:
        """The number of items that wait."""
        return len(self._waiting)

    def submit(self, items: Sequence) -> list[asyncio.Future]:
        """Append items to the queue, all or none.

        An item whose future is canceled before its turn is dropped.

        Raises:
            QueueFullError: they do not fit.
        """
        if len(self._waiting) + len(items) > self.max_waiting:
            raise QueueFullError
        futures = [asyncio.get_running_loop().create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        self._arrived.set()
        return futures

    async def close(self) -> None:
        """Stop; calls in progress are waited for, and items that still wait are dropped."""
        for consumer in self._consumers:
            consumer.cancel()
        await asyncio.gather(*self._consumers, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._pool.shutdown()

    async def _consume(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            items, futures = zip(*batch, strict=True)
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(self._pool, self._function, list(items))
            except Exception as error:
                results = [error] * len(items)
            for future, result in zip(futures, results, strict=True):
                if future.done():  # its caller has given up
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _take(self) -> list[tuple[Any, asyncio.Future]]:
        batch = []
        while self._waiting and len(batch) < self._max_batch:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
