"""The queue: whatever workers do and whenever they die, every item is done or has failed, and is handed out no more."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mlindex.runtime.queue import KILLS, Done, Queue, Unit


def work_on(queue: Queue, units: list[Unit], sizes: list[int], tell: bool) -> list[Done]:
    """What a worker does with units: tell how many items an input has, and do those asked for."""
    done = []
    for unit in units:
        of = sizes[unit.input]
        if tell and of > 1:
            queue.opened(unit.input, of)
        stop = min(unit.start + unit.first, of) if unit.stop is None else unit.stop
        done += [Done(unit.input, k, of, "solved") for k in range(unit.start, stop)]
    return done


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 4),
    st.data(),
)
def test_everything_is_done_once(sizes, batch, workers, data):
    """Any number of deaths, before or after a part of the batch was committed; no item is deadly."""
    queue = Queue(len(sizes), batch)
    recorded: Counter[tuple[int, int]] = Counter()
    out: dict[int, list[tuple[int, list[Unit]]]] = {}
    queue.ahead = data.draw(st.integers(1, 3))
    for _ in range(10000):
        if queue.finished and not queue.condemned:
            break
        for worker in range(workers):
            while (taken := queue.take(worker, workers)) is not None:
                out.setdefault(worker, []).append(taken)
            assert len(out.get(worker, [])) == queue.load(worker) <= queue.ahead
        for unit in queue.condemned:
            assert unit.kills >= KILLS
            of = queue.size(unit.input) or 1
            stop = unit.start + 1 if unit.stop is None else unit.stop
            failures = [Done(unit.input, k, of, "failed") for k in range(unit.start, stop)]
            recorded.update(d.key for d in queue.complete(-1, -1, failures))
        queue.condemned.clear()
        if out:
            worker = data.draw(st.sampled_from(sorted(out)))
            number, units = out[worker].pop(0)
            done = work_on(queue, units, sizes, data.draw(st.booleans()))
            if data.draw(st.integers(0, 3)):
                recorded.update(d.key for d in queue.complete(worker, number, done))
            else:
                done = done[: data.draw(st.integers(0, len(done)))]
                new, suspects = queue.lose(worker, done)
                recorded.update(d.key for d in new)
                begun = {u.input for u in units} | ({u.input for u in out[worker][0][1]} if out[worker] else set())
                assert {u.input for u in suspects} <= begun, "only what was at hand is suspect"
                out[worker].clear()
            if not out[worker]:
                del out[worker]
    assert queue.finished and set(recorded.values()) == {1}
    read = {i for i in range(len(sizes)) if queue.size(i) == sizes[i]}
    assert {key for key in recorded if key[0] in read} == {(i, k) for i in read for k in range(sizes[i])}
    assert {i for i, _ in recorded} == set(range(len(sizes)))
    assert queue.total == len(recorded)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 4), st.data())
def test_deadly_items_fail_alone(sizes, batch, data):
    """An item that kills every worker that takes it fails after `KILLS`; all others are done."""
    everything = [(i, k) for i, n in enumerate(sizes) for k in range(n)]
    deadly = set(data.draw(st.lists(st.sampled_from(everything), max_size=3)))
    queue = Queue(len(sizes), batch)
    failed, deaths = set(), 0
    while not queue.finished or queue.condemned:
        while queue.condemned:
            unit = queue.condemned.pop()
            stop = unit.start + 1 if unit.stop is None else unit.stop
            keys = {(unit.input, k) for k in range(unit.start, stop)}
            queue.complete(-1, -1, [Done(*key, sizes[unit.input], "failed") for key in keys])
            failed |= keys
        taken = queue.take(0, 1)
        if taken is None:
            continue
        done = work_on(queue, taken[1], sizes, True)
        if any(d.key in deadly for d in done):
            deaths += 1
            queue.lose(0, [])
        else:
            queue.complete(0, taken[0], done)
    assert failed == deadly and queue.done == len(everything)
    assert deaths <= KILLS * len(deadly)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.data())
def test_resume_hands_out_what_is_left(sizes, batch, data):
    everything = [(i, k) for i, n in enumerate(sizes) for k in range(n)]
    done = set(data.draw(st.lists(st.sampled_from(everything))))
    queue = Queue(len(sizes), batch, done=done, of={i: sizes[i] for i, _ in done})
    handed: list[tuple[int, int]] = []
    while (taken := queue.take(0, 1)) is not None:
        out = work_on(queue, taken[1], sizes, False)
        handed += [d.key for d in out]
        queue.complete(0, taken[0], out)
    assert sorted(handed) == sorted(set(everything) - done)
    assert queue.finished and queue.total == len(everything)


def test_batches_get_smaller_towards_the_end():
    queue = Queue(16, 4)
    sizes = []
    worker = 0
    while (taken := queue.take(worker, 2)) is not None:
        sizes.append(len(taken[1]))
        worker += 1
    assert sizes == [4, 4, 4, 2, 1, 1]


def test_late_acknowledgement_of_a_lost_worker_counts_once():
    queue = Queue(2, 2)
    number, _ = queue.take(1, 1)
    done = [Done(0, 0, 1, "solved"), Done(1, 0, 1, "solved")]
    assert queue.lose(1, done[:1])[0] == done[:1]
    assert queue.complete(1, number, done) == done[1:]
    assert [unit.input for _, units in [queue.take(2, 1)] for unit in units] == [1]
    assert queue.complete(2, 1, done[1:]) == [] and queue.finished


def test_a_batch_that_was_not_begun_is_not_suspect():
    queue = Queue(40, 2)
    queue.ahead = 2
    first, second = queue.take(1, 1), queue.take(1, 1)
    assert queue.take(1, 1) is None
    _, suspects = queue.lose(1, [])
    assert [u.input for u in suspects] == [u.input for u in first[1]]
    handed = []
    while (taken := queue.take(2, 1)) is not None and len(handed) < 4:
        handed.append([(u.input, u.kills) for u in taken[1]])
        queue.complete(2, taken[0], [Done(u.input, 0, 1, "solved") for u in taken[1]])
    assert handed[:3] == [[(0, 1)], [(1, 1)], [(u.input, 0) for u in second[1]]]


def test_a_batch_committed_but_not_acknowledged_leaves_the_next_one_suspect():
    queue = Queue(40, 2)
    queue.ahead = 2
    first, second = queue.take(1, 1), queue.take(1, 1)
    new, suspects = queue.lose(1, [Done(u.input, 0, 1, "solved") for u in first[1]])
    assert len(new) == 2 and [u.input for u in suspects] == [u.input for u in second[1]]


def test_an_unread_input_that_is_suspect_is_tried_item_by_item():
    """As after a restart, when the journal knows what was at hand and nobody knows how many items there are."""
    queue = Queue(1, 4, kills={(0, 0): 1, (0, 1): 1, (0, 2): 1})
    handed = []
    while (taken := queue.take(0, 1)) is not None:
        done = work_on(queue, taken[1], [3], True)
        handed.append([d.key for d in done])
        queue.complete(0, taken[0], done)
    assert handed == [[(0, 0)], [(0, 1)], [(0, 2)]]
