"""Dynamic batching: requests that arrive within a few milliseconds of each other become one batch. asyncio alone."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OverloadedError(Exception):
    """So many requests are waiting that a new one would wait too long."""


@dataclass
class _Request:
    item: Any
    arrival: float  # on the clock of the event loop, in seconds
    answer: asyncio.Future[Any]


class Batcher(Generic[Item, Answer]):
    """Runs a function of a batch on single items, in batches of those that wait at the same time.

    A batch starts when it is full, or when its oldest item has waited `max_wait` seconds. Items that arrive while a
    batch is computed wait for the next one. Use it as an asynchronous context manager.

    Args:
        run: Function from a list of items to as many answers. One thread calls it, one batch at a time: OpenVINO
            divides a batch among the cores itself.
        max_batch: Items of a batch, at most.
        max_wait: Seconds that an item waits for others, at most.
        max_waiting: Items that may wait; further ones raise `OverloadedError`.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Answer]],
        *,
        max_batch: int = 32,
        max_wait: float = 0.005,
        max_waiting: int = 1024,
    ) -> None:
        self._run, self._max_batch, self._max_wait = run, max_batch, max_wait
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(max_waiting)
        self._unanswered: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> "Batcher[Item, Answer]":
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        for answer in self._unanswered:
            answer.cancel()
        self._thread.shutdown()

    async def __call__(self, item: Item) -> Answer:
        """Returns the answer to one item.

        Raises:
            OverloadedError: Too many items are waiting.
            Exception: What `run` raised; all items of its batch get it.
        """
        loop = asyncio.get_running_loop()
        request = _Request(item, loop.time(), loop.create_future())
        try:
            self._requests.put_nowait(request)
        except asyncio.QueueFull:
            raise OverloadedError(f"{self._requests.maxsize} requests are waiting") from None
        self._unanswered.add(request.answer)
        try:
            return await request.answer
        finally:
            self._unanswered.discard(request.answer)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # A request whose client has gone is cancelled: it is left out, before and after the batch is computed.
            batch = [request for request in await self._next_batch() if not request.answer.done()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._thread, self._run, [request.item for request in batch])
                for request, answer in zip(batch, answers, strict=True):
                    if not request.answer.done():
                        request.answer.set_result(answer)
            except Exception as error:
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)

    async def _next_batch(self) -> list[_Request]:
        batch = [await self._requests.get()]
        deadline = batch[0].arrival + self._max_wait
        while len(batch) < self._max_batch:
            left = deadline - asyncio.get_running_loop().time()
            if not self._requests.empty():
                batch.append(self._requests.get_nowait())
            elif left <= 0:
                break
            else:
                try:
                    batch.append(await asyncio.wait_for(self._requests.get(), left))
                except asyncio.TimeoutError:
                    break
        return batch
