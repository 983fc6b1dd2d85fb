# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from hmsa.serve.batching import Batcher


class Engine:
    """Adds 1; the first run waits until `go` is set, so that others gather."""

    def __init__(self):
        self.runs, self.started, self.go = [], threading.Event(), threading.Event()

    def __call__(self, images):
        self.runs.append(images.shape)
        self.started.set()
        assert self.go.wait(10)
        if (images < 0).any():
            raise ValueError("negative")
        return {"more": images + 1}


@contextmanager
def gathered(*shapes, value=1, **limits):
    """An engine, and the futures of works of these shapes, which came while it was busy with one of the shape 1 9."""
    engine = Engine()
    batcher = Batcher(engine, **{"max_batch": 4, "max_wait": 0, **limits})
    batcher.submit(np.ones((1, 9)))
    assert engine.started.wait(10)
    yield engine, [batcher.submit(np.full(shape, value)) for shape in shapes], batcher
    engine.go.set()
    batcher.close()


def test_works_of_one_size_run_together_in_the_order_of_their_first():
    with gathered((1, 2), (1, 3), (2, 2), (1, 2)) as (engine, futures, batcher):
        assert len(batcher) == 4
        engine.go.set()
        assert [future.result(10)["more"].shape for future in futures] == [(1, 2), (1, 3), (2, 2), (1, 2)]
        assert engine.runs == [(1, 9), (4, 2), (1, 3)]


def test_a_batch_is_not_larger_than_allowed():
    with gathered((2, 2), (2, 2), (1, 2), max_batch=3) as (engine, futures, _):
        engine.go.set()
        assert all((future.result(10)["more"] == 2).all() for future in futures)
        assert sorted(engine.runs[1:]) == [(2, 2), (3, 2)]


def test_images_that_are_large_together_are_not_run_together():
    with gathered((1, 4), (1, 4), (1, 4), (3, 4), max_size=8) as (engine, futures, _):
        engine.go.set()
        assert all((future.result(10)["more"] == 2).all() for future in futures)
        assert engine.runs[1:] == [(2, 4), (1, 4), (3, 4)]


def test_what_is_cancelled_is_not_run():
    with gathered((1, 2), (1, 3)) as (engine, futures, batcher):
        assert futures[0].cancel()
        engine.go.set()
        futures[1].result(10)
        batcher.close()
        assert engine.runs == [(1, 9), (1, 3)]


def test_one_that_fails_spoils_no_other():
    with gathered((1, 2), (1, 2)) as (engine, futures, batcher):
        bad = batcher.submit(np.full((1, 2), -1))
        engine.go.set()
        assert all((future.result(10)["more"] == 2).all() for future in futures)
        with pytest.raises(ValueError, match="negative"):
            bad.result(10)


def test_a_work_waits_for_others():
    engine = Engine()
    engine.go.set()
    batcher = Batcher(engine, max_batch=2, max_wait=30)
    futures = [batcher.submit(np.ones((1, 2))) for _ in range(2)]
    assert all(future.result(10) for future in futures)
    assert engine.runs == [(2, 2)]
    batcher.close()


def test_closing_answers_what_waits():
    with gathered((1, 2), (1, 3)) as (engine, futures, batcher):
        engine.go.set()
        batcher.close()
        assert all(future.done() for future in futures)


def test_runs_are_counted():
    ran = []
    batcher = Batcher(lambda images: {}, max_batch=2, max_wait=0, ran=lambda *told: ran.append(told))
    batcher.submit(np.ones((2, 2))).result(10)
    batcher.close()
    assert [images for images, seconds in ran] == [2]


def test_failures_around_a_run_end_neither_the_thread_nor_other_works(monkeypatch, caplog):
    def full_disk(images, seconds):
        raise OSError("no space left")

    def no_memory(arrays):
        raise MemoryError("no memory")

    batcher = Batcher(lambda images: {"more": images + 1}, max_batch=2, max_wait=30, ran=full_disk)
    monkeypatch.setattr(np, "concatenate", no_memory)
    futures = [batcher.submit(np.ones((1, 2))) for _ in range(2)]
    assert all((future.result(10)["more"] == 2).all() for future in futures)
    assert batcher.is_running
    batcher.close()
    assert not batcher.is_running
    assert "no space left" in caplog.text
