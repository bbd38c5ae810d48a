"""The service's batching: which items share a batch, and what becomes of errors, clients that go and overload."""

import asyncio
import threading

import pytest

from tests.helpers.examples import service_modules

LONG = 60.0  # seconds that no test waits


@pytest.fixture
def batching():
    with service_modules() as modules:
        yield modules["batching"]


class Doubled:
    """A function of a batch that keeps its batches; it may be held up until it is released."""

    def __init__(self):
        self.batches = []
        self.started, self.released = threading.Event(), threading.Event()
        self.released.set()

    def __call__(self, items):
        self.batches.append(items)
        self.started.set()
        assert self.released.wait(LONG)
        if "bad" in items:
            raise ValueError("a bad item")
        return [2 * item for item in items]

    def hold(self):
        self.started.clear()
        self.released.clear()


async def started(run):
    """Waits until a batch is computed, without holding up the event loop."""
    assert await asyncio.to_thread(run.started.wait, LONG)


def test_items_that_fill_a_batch_are_computed_together_without_waiting(batching):
    run = Doubled()

    async def main():
        async with batching.Batcher(run, max_batch=4, max_wait=LONG) as batcher:
            return await asyncio.gather(*map(batcher, range(4)))

    assert asyncio.run(main()) == [0, 2, 4, 6]
    assert run.batches == [[0, 1, 2, 3]]


def test_an_item_without_company_is_answered_after_its_wait(batching):
    run = Doubled()

    async def main():
        async with batching.Batcher(run, max_batch=4, max_wait=0.001) as batcher:
            return await batcher(3)

    assert asyncio.run(main()) == 6
    assert run.batches == [[3]]


def test_items_that_arrive_during_a_batch_form_the_next_ones(batching):
    run = Doubled()

    async def main():
        async with batching.Batcher(run, max_batch=3, max_wait=0) as batcher:
            run.hold()
            first = asyncio.create_task(batcher(0))
            await started(run)
            others = [asyncio.create_task(batcher(n)) for n in range(1, 6)]
            await asyncio.sleep(0)  # they are queued
            run.released.set()
            return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10]
    assert run.batches == [[0], [1, 2, 3], [4, 5]]


def test_an_error_reaches_every_item_of_its_batch_and_no_later_one(batching):
    run = Doubled()

    async def main():
        async with batching.Batcher(run, max_batch=2, max_wait=LONG) as batcher:
            failed = await asyncio.gather(batcher("bad"), batcher(1), return_exceptions=True)
            return failed, await asyncio.gather(batcher(2), batcher(3))

    failed, after = asyncio.run(main())
    assert [str(error) for error in failed] == ["a bad item"] * 2
    assert after == [4, 6]


def test_too_few_answers_are_an_error_and_not_a_hanging_client(batching):
    async def main():
        async with batching.Batcher(lambda items: items[1:], max_batch=2, max_wait=LONG) as batcher:
            return await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)

    assert any(isinstance(answer, ValueError) for answer in asyncio.run(main()))


def test_an_item_whose_client_has_gone_is_not_computed(batching):
    run = Doubled()

    async def main():
        async with batching.Batcher(run, max_batch=4, max_wait=0) as batcher:
            run.hold()
            first = asyncio.create_task(batcher(0))
            await started(run)
            gone, other = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            run.released.set()
            return await first, await other

    assert asyncio.run(main()) == (0, 4)
    assert run.batches == [[0], [2]]


def test_an_item_too_many_is_refused_and_the_others_are_answered(batching):
    run = Doubled()

    async def main():
        async with batching.Batcher(run, max_batch=1, max_wait=0, max_waiting=2) as batcher:
            run.hold()
            first = asyncio.create_task(batcher(0))
            await started(run)
            others = [asyncio.create_task(batcher(n)) for n in (1, 2)]
            await asyncio.sleep(0)
            with pytest.raises(batching.OverloadedError, match="2 requests are waiting"):
                await batcher(3)
            run.released.set()
            return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [0, 2, 4]


def test_items_that_wait_when_the_service_stops_are_cancelled(batching):
    async def main():
        async with batching.Batcher(Doubled(), max_batch=4, max_wait=LONG) as batcher:
            waiting = [asyncio.create_task(batcher(n)) for n in (1, 2)]
            await asyncio.sleep(0)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(main())] == [asyncio.CancelledError] * 2
