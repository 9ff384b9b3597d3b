"""Proofs that nothing is lost: thirty annotators at once, and a writer that is killed again and again.

python tests/annotation_bench.py                 both, on SQLite and on a PostgreSQL server of its own
python tests/annotation_bench.py crowd --url postgresql://...
python tests/annotation_bench.py kill --times 200
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from trial_server import find_programs, trial_server

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError


def some_pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "kind": "helpfulness",
            "prompt": [{"role": "user", "content": f"Question {n}?"}],
            "answers": [f"Answer {n}.", f"Another answer to {n}."],
            "models": ["a", "b"],
        }
        for n in range(count)
    ]


@dataclass(frozen=True)
class CrowdReport:
    """What a crowd left in the store, and how long its saves took."""

    annotators: int
    fewest: int
    most: int
    acknowledged: int
    stored: int
    lost: int
    double: int
    overlaps: dict[int, int]  # how many items have so many labels
    seconds: float
    p50: float
    p95: float

    def __str__(self) -> str:
        overlaps = ", ".join(f"{items} items by {count}" for count, items in sorted(self.overlaps.items()))
        return (
            f"{self.annotators} annotators, {self.fewest} to {self.most} labels each: {self.acknowledged} "
            f"acknowledged, {self.stored} stored, {self.lost} lost, {self.double} double; {overlaps}; "
            f"{self.acknowledged / self.seconds:.0f} labels/s; a save takes {self.p50 * 1000:.0f} ms (median), "
            f"{self.p95 * 1000:.0f} ms (95th percentile)"
        )


def crowd(url: str, annotators: int = 30, labels_each: int = 100, overlap: int = 3) -> CrowdReport:
    """So many processes that label at once until each has its share; what the store holds afterwards.

    There is more to do than the shares, so that even if all open slots are on items that the slowest has had, one more
    is left; then whoever still can labels the rest, so that in the end no slot is open.
    """
    items = math.ceil((annotators * labels_each + labels_each * (overlap - 1) + 1) / overlap)
    with open_store(url) as store:
        add_pairs(store, some_pairs(items), overlap=overlap)
    # "spawn": a process of its own, as each annotator's kernel is.
    context = multiprocessing.get_context("spawn")
    ready, finished, results = context.Barrier(annotators + 1), context.Barrier(annotators), context.Queue()
    workers = [
        context.Process(target=_annotate, args=(url, f"Annotator {n}", labels_each, ready, finished, results))
        for n in range(annotators)
    ]
    for worker in workers:
        worker.start()
    ready.wait(600)
    start = time.perf_counter()
    answers = [results.get(timeout=3600) for _ in workers]
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    ids = [i for made, _, _ in answers for i in made]
    saves = sorted(s for _, taken, _ in answers for s in taken)
    failures = [failure for _, _, failure in answers if failure]
    if failures:
        raise LabError(f"{len(failures)} of {annotators} annotators stopped: {failures[0]}")
    with open_store(url) as store, store.begin(read=True) as conn:
        rows = conn.execute(sa.select(t.labels.c.id, t.labels.c.item_id, t.labels.c.annotator_id)).all()
    by_item = Counter(row.item_id for row in rows)
    return CrowdReport(
        annotators,
        min(len(made) for made, _, _ in answers),
        max(len(made) for made, _, _ in answers),
        len(ids),
        len(rows),
        len(set(ids) - {row.id for row in rows}),
        len(rows) - len({(row.item_id, row.annotator_id) for row in rows}),
        dict(Counter(by_item.values())),
        seconds,
        saves[len(saves) // 2],
        saves[min(len(saves) - 1, math.ceil(0.95 * len(saves)) - 1)],
    )


def _annotate(url: str, name: str, wanted: int, ready: Any, finished: Any, results: Any) -> None:
    made: list[str] = []
    taken: list[float] = []
    failure = ""
    try:
        with open_store(url) as store:
            me = store.annotator(name)
            ready.wait(600)
            _label(store, me, wanted, made, taken)
            finished.wait(3600)
            _label(store, me, sys.maxsize, made, taken)
    except Exception as e:
        failure = f"{name}: {e}"
        for barrier in (ready, finished):
            barrier.abort()  # the others need not wait
    results.put((made, taken, failure))


def _label(store: Store, me: str, wanted: int, made: list[str], taken: list[float]) -> None:
    while len(made) < wanted:
        task = _until_it_works(lambda: queue.next_task(store, me))
        if task is None:
            return
        start = time.perf_counter()
        made.append(
            _until_it_works(
                lambda task=task: queue.submit(
                    store, me, task.item_id, "left", "better", seconds=1.0, label_id=f"{me}-{len(made)}"
                )
            )
        )
        taken.append(time.perf_counter() - start)


def _until_it_works(work: Any) -> Any:
    """What the widget does with a label that could not be saved: keep it and try again."""
    while True:
        try:
            return work()
        except StoreError as e:
            if not e.retry:
                raise
            time.sleep(0.2)


@dataclass(frozen=True)
class KillReport:
    """What a writer that was killed left behind."""

    times: int
    acknowledged: int
    stored: int
    lost: int
    unsound: int  # how often the file was not sound after a kill

    def __str__(self) -> str:
        return (
            f"killed {self.times} times: {self.acknowledged} labels acknowledged, {self.lost} of them lost, "
            f"{self.stored} stored; the file was unsound {self.unsound} times"
        )


# Opens the store anew, as a restarted kernel does, and says each label's id once it is saved.
WRITER = """
import sys
from llama2lab.annotation.store import queue
from llama2lab.annotation.store.store import open_store
with open_store(sys.argv[1]) as store:
    me = store.annotator("Anna")
    print("ready", flush=True)
    while task := queue.next_task(store, me):
        print(queue.submit(store, me, task.item_id, "right", "slightly", comment="x" * 3000, seconds=1.0), flush=True)
"""


def kill(path: str, times: int = 200, seed: int = 0) -> KillReport:
    """A writing process on an SQLite file, killed with SIGKILL at random moments; is every acknowledged label there?"""
    rng = random.Random(seed)
    with open_store(path) as store:
        add_pairs(store, some_pairs(20_000))
        acknowledged: list[str] = []
        unsound = 0
        for _ in range(times):
            writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
            assert writer.stdout is not None
            if writer.stdout.readline().strip() != "ready":
                raise LabError("the writer did not start; what it said is above")
            said = "".join(writer.stdout.readline() for _ in range(rng.randrange(5)))
            time.sleep(rng.uniform(0, 0.05))  # often in the middle of a save
            writer.send_signal(signal.SIGKILL)
            said += writer.communicate()[0]
            # A line that was cut off was acknowledged to nobody.
            acknowledged += [line.strip() for line in said.splitlines(keepends=True) if line.endswith("\n")]
            with sqlite3.connect(path) as conn:
                unsound += conn.execute("PRAGMA integrity_check").fetchone()[0] != "ok"
            conn.close()
        with store.begin(read=True) as found:
            stored = set(found.execute(sa.select(t.labels.c.id)).scalars())
    return KillReport(times, len(acknowledged), len(stored), len(set(acknowledged) - stored), unsound)


@contextmanager
def _stores(url: str | None, folder: str) -> Iterator[list[tuple[str, str]]]:
    """(what, URL) of the stores to try: the given one, or a new file and a new database on a server of our own."""
    if url:
        yield [("the given store", url)]
        return
    stores = [("SQLite", os.path.join(folder, "crowd.db"))]
    if find_programs() is None:
        print("PostgreSQL's server is not installed (apt-get install postgresql): only SQLite is tried")
        yield stores
        return
    with trial_server(durable=True) as server:
        yield [*stores, ("PostgreSQL", server.create("crowd"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("crowd", "kill", "all"), default="all")
    parser.add_argument("--url", help="an empty store for the crowd")
    parser.add_argument("--annotators", type=int, default=30)
    parser.add_argument("--labels", type=int, default=100, help="of each annotator")
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--times", type=int, default=200, help="how often the writer is killed")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        if given.what in ("crowd", "all"):
            with _stores(given.url, folder) as stores:
                for what, url in stores:
                    report = crowd(url, given.annotators, given.labels, given.overlap)
                    print(f"{what}: {report}", flush=True)
                    failed |= bool(
                        report.lost
                        or report.double
                        or report.fewest < given.labels
                        or set(report.overlaps) != {given.overlap}
                    )
        if given.what in ("kill", "all"):
            killed = kill(str(Path(folder) / "kill.db"), given.times)
            print(f"SQLite: {killed}", flush=True)
            failed |= bool(killed.lost or killed.unsound or not killed.acknowledged)
    if failed:
        sys.exit("FAILED: labels were lost or doubled")


if __name__ == "__main__":
    main()
