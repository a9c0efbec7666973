from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from camrt import CamrtError
from camrt.serve.batching import Batcher, BatchStatistics, Overloaded


class Doubling:
    """Doubles numbers, remembers the batches, and waits until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int | CamrtError]:
        self.batches.append(list(items))
        self.began.set()
        assert self.may_go.wait(10)
        if 13 in items:
            raise CamrtError("13 is unlucky")
        return [CamrtError("7 alone is bad") if item == 7 else 2 * item for item in items]


def run(test: Callable[[Batcher[int, int], Doubling], Awaitable[Any]], **settings: Any) -> Doubling:
    compute = Doubling()

    async def whole() -> None:
        batcher: Batcher[int, int] = Batcher(compute, **{"max_batch": 4, "max_delay": 5.0, "max_queue": 16, **settings})
        batcher.start()
        await test(batcher, compute)
        compute.may_go.set()
        await asyncio.wait_for(batcher.close(), 10)

    asyncio.run(whole())
    return compute


async def blocked(batcher: Batcher[int, int], compute: Doubling) -> asyncio.Task[int]:
    """A first request that is being computed until `may_go` is set."""
    compute.may_go.clear()
    compute.began.clear()
    task = asyncio.create_task(batcher.submit(0))
    await asyncio.to_thread(compute.began.wait, 10)
    return task


def test_what_waits_is_computed_together() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        first = await blocked(batcher, compute)
        others = [asyncio.create_task(batcher.submit(number)) for number in range(1, 7)]
        await asyncio.sleep(0)
        assert batcher.depth == 6
        compute.may_go.set()
        assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10, 12]

    assert run(test).batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_several_batches_are_computed_at_once_and_closing_waits_for_all() -> None:
    together = threading.Barrier(2, timeout=10)
    batches: list[list[int]] = []

    def compute(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        together.wait()
        return [2 * item for item in items]

    async def test() -> None:
        batcher: Batcher[int, int] = Batcher(compute, max_batch=2, max_delay=0.0, max_queue=16, threads=2)
        batcher.start()
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(8)]
        await asyncio.sleep(0)
        await asyncio.wait_for(batcher.close(), 20)
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12, 14]

    asyncio.run(test())
    assert sorted(batches) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_rows_count_and_order_is_kept() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        first = await blocked(batcher, compute)
        others = [
            asyncio.create_task(batcher.submit(number, rows)) for number, rows in ((1, 3), (2, 2), (3, 1), (4, 4))
        ]
        await asyncio.sleep(0)
        compute.may_go.set()
        await asyncio.gather(first, *others)

    assert run(test).batches == [[0], [1], [2, 3], [4]]


def test_a_single_client_does_not_wait() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        began = time.monotonic()
        assert [await batcher.submit(number) for number in range(3)] == [0, 2, 4]
        assert time.monotonic() - began < 30, "it waited for the delay"

    assert run(test, max_delay=60.0).batches == [[0], [1], [2]]


def test_a_batch_waits_for_what_is_on_its_way() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        with batcher.coming() as arrived:
            first = asyncio.create_task(batcher.submit(1))
            await asyncio.sleep(0.05)
            assert not compute.batches
            arrived()
            assert await asyncio.gather(first, batcher.submit(2)) == [2, 4]

    assert run(test, max_delay=60.0).batches == [[1, 2]]


def test_a_batch_waits_no_longer_than_the_delay() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        with batcher.coming():
            assert await asyncio.wait_for(batcher.submit(1), 10) == 2

    assert run(test, max_delay=0.01).batches == [[1]]


def test_a_failing_batch_is_computed_one_by_one() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        first = await blocked(batcher, compute)
        others = [asyncio.create_task(batcher.submit(number)) for number in (1, 13, 7)]
        await asyncio.sleep(0)
        compute.may_go.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert found[:2] == [0, 2]
        assert [str(error) for error in found[2:]] == ["13 is unlucky", "7 alone is bad"]
        assert await batcher.submit(5) == 10

    assert run(test).batches == [[0], [1, 13, 7], [1], [13], [7], [5]]


def test_a_full_queue_refuses_and_recovers() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        first = await blocked(batcher, compute)
        waiting = [asyncio.create_task(batcher.submit(number)) for number in range(1, 4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="a full queue: 3 of at most 3 images wait"):
            await batcher.submit(9)
        compute.may_go.set()
        await asyncio.gather(first, *waiting)
        assert await batcher.submit(9) == 18

    run(test, max_queue=3)


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        first = await blocked(batcher, compute)
        gone, stays = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 1
        compute.may_go.set()
        assert await asyncio.gather(first, stays) == [0, 4]

    assert run(test).batches == [[0], [2]]


def test_closing_computes_what_waits_and_refuses_more() -> None:
    seen: list[BatchStatistics] = []

    async def test(batcher: Batcher[int, int], compute: Doubling) -> None:
        first = await blocked(batcher, compute)
        second = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="stopping"):
            await batcher.submit(2)
        compute.may_go.set()
        await closing
        assert [await first, await second] == [0, 2]

    run(test, observe=seen.append)
    assert [one.rows for one in seen] == [1, 1]
