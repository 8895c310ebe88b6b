"""Takes jobs from the queue and does them: in the server's process, or in as many others as wanted.

A pool for work on this machine's cores, with a seat for each picture that its engine draws at once, and one for work
that hosted services do. Whoever has a seat does one job after the other while any wait. Jobs that this process accepts
get a free seat in the transaction that accepts them; a thread looks for those of other processes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from imagewright.database import Database
from imagewright.engines.catalog import DEFAULT_ENGINE
from imagewright.errors import ImagewrightError
from imagewright.request import ImageRequest, ImageResult
from imagewright.server import errors, jobs, orders, turns
from imagewright.server.delivery import Delivery
from imagewright.server.gateway import Gateway
from imagewright.server.hub import Hub
from imagewright.server.jobs import Job
from imagewright.server.settings import DAY, Settings
from imagewright.store import Store
from imagewright.watch import Stop, Watch

log = logging.getLogger(__name__)
POLL = 0.25  # s between two looks for what other processes accepted or cancelled
LONGEST = 5.0  # s between two looks where the database cannot be reached
TIDY = 600.0  # s between two sweeps of what is kept no longer
HOSTED = 32  # calls to hosted services at once

TOO_OFTEN = errors.ApiError(500, "The work was begun several times and never ended.", type="server_error")
CANCELLED = errors.ApiError(499, "The request was cancelled.", code="cancelled")


@dataclass
class Pool:
    """Seats for jobs of one kind. `maybe`: some may wait in the queue."""

    name: str
    slots: int
    maybe: bool = True
    free: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.free = threading.Semaphore(self.slots)


class Worker:
    """Does jobs in threads of its own until it is stopped."""

    def __init__(self, database: Database, store: Store, gateway: Gateway, settings: Settings, hub: Hub) -> None:
        self.database, self.store, self.gateway, self.settings, self.hub = database, store, gateway, settings, hub
        self.id = jobs.worker_id()
        self.delivery = Delivery(database, store, gateway, settings, hub)
        local = settings.slots or (_seats(gateway) if settings.coalesce else 1)
        self.pools = {
            "local": Pool("local", local),
            "hosted": Pool("hosted", HOSTED),
        }
        self._stops: dict[str, Stop] = {}
        self._ending, self._bell, self._claiming = threading.Event(), threading.Event(), threading.Lock()
        self._hurried = False
        self._alone: str | None = None  # the suspect that is being done, see jobs.SUSPECT
        self._threads: list[threading.Thread] = []
        self._hands = ThreadPoolExecutor(local + HOSTED, thread_name_prefix="work")

    def start(self) -> None:
        """Begin to take jobs; first those that died with a process of this machine."""
        self._again("the queue", self.reclaim)
        for act in (self._look, self._beat, self._tidy):
            thread = threading.Thread(target=act, name=act.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Take no more jobs; those begun go on."""
        self._ending.set()
        self._bell.set()
        with self._claiming:
            pass  # whoever was taking one has it now

    def stop(self, seconds: float) -> bool:
        """Close, and wait for the jobs begun; what is not done after `seconds` is stopped and put back.

        Whether all was done.
        """
        self.close()
        until = time.monotonic() + seconds
        while self._stops and time.monotonic() < until and not self._hurried:
            time.sleep(0.01)
        left = list(self._stops)
        self._again("the queue", self.put_back)
        self.delivery.closed.set()
        for job_id in left:
            self.cancel(job_id)
        self._hands.shutdown(wait=not left, cancel_futures=True)
        for thread in self._threads:
            thread.join(timeout=2)
        return not left

    def hurry(self) -> None:
        """Let `stop` wait no longer."""
        self._hurried = True

    def cancel(self, job_id: str) -> None:
        """Stop a job, if it is being done here."""
        if stop := self._stops.get(job_id):
            stop.set()

    def does(self, job_id: str) -> bool:
        """Whether a job is being done here."""
        return job_id in self._stops

    def seat(self, pool: str) -> Pool | None:
        """A free seat for a job that is about to be accepted, see `accepted`; None: there is none, or others wait."""
        found = self.pools[pool]
        kept = self._ending.is_set() or self._alone is not None or found.maybe
        if kept or not found.free.acquire(blocking=False):
            return None
        return found

    def accepted(self, seat: Pool | None, job: Job | None) -> None:
        """What `seat` gave was used for the job, or not: it waits in the queue, or there is none."""
        if seat is not None and job is not None and job.worker == self.id:
            self._stops[job.id] = Stop()
            self._submit(seat, [job])
            return
        if seat is not None:
            seat.free.release()
        if job is not None:
            self.wake(job.pool)

    def _submit(self, pool: Pool, batch: Sequence[Job]) -> None:
        try:
            self._hands.submit(self._work, pool, batch)
        except RuntimeError:  # stopped meanwhile
            self._again("the queue", self.put_back)

    def wake(self, pool: str) -> None:
        """A job waits."""
        self.pools[pool].maybe = True
        self._bell.set()

    def reclaim(self) -> None:
        """Put back what workers that died had begun."""
        with self.database.read() as connection:
            lost = jobs.lost(connection)
        if lost:
            log.warning("%d jobs were left by workers that died", len(lost))
            self._take_back(ids=lost)
            for pool in self.pools:
                self.wake(pool)

    def put_back(self) -> None:
        """Give up what this worker has begun, for others to do."""
        self._take_back(worker=self.id)

    def _take_back(self, ids: Sequence[str] | None = None, worker: str | None = None) -> None:
        with self.database.write() as connection:
            for job in jobs.take_back(connection, ids, worker):
                self.delivery.end(connection, job, CANCELLED if job.cancel else TOO_OFTEN)

    def _claim(self, pool: Pool) -> list[Job]:
        with self._claiming:
            if self._ending.is_set() or self._alone is not None:
                return []
            pool.maybe, batch = False, None  # before the look: who accepts a job after it says so again
            try:
                busy, lease = bool(self._stops), self.settings.lease
                batch = jobs.claim(self.database, self.id, pool.name, lease, busy)
            finally:
                pool.maybe |= batch != []  # and more, perhaps
            for job in batch or ():
                self._stops[job.id] = Stop()
                if job.attempts > jobs.SUSPECT:
                    self._alone = job.id
            return batch or []

    def _work(self, pool: Pool, batch: Sequence[Job]) -> None:
        """One job after the other, until none waits; then the seat is free."""
        try:
            while batch:
                self._do(batch)
                batch = self._claim(pool) if pool.maybe else []
        except Exception as error:
            log.warning("the queue cannot be read: %s", error)
        finally:
            pool.free.release()
            if any(one.maybe for one in self.pools.values()):
                self._bell.set()

    def _do(self, batch: Sequence[Job]) -> None:
        work = []
        for job in batch:
            if job.plan is not None and job.plan["relay"] and not self.hub.is_heard(job.id):
                job = replace(job, plan={**job.plan, "relay": False})  # who waits for the files waits elsewhere
            try:
                request = orders.from_json(job.order, self.store.load)
                work.append((job, request, self.delivery.watch(job, self._stops[job.id])))
            except Exception as error:
                self._end(job, partial(self.delivery.failed, job, error))
        for (job, request, _), done in zip(work, self._made(work), strict=True):
            self._end(job, partial(self.delivery.deliver, job, request, done))

    def _made(self, work: Sequence[tuple[Job, ImageRequest, Watch]]) -> Sequence[ImageResult | Exception]:
        """What became of jobs: turns of conversations one after the other, all else together."""
        try:
            return self._make(work)
        except BaseException as error:  # an engine that wants to leave takes nobody with it
            return [RuntimeError(f"the engine left: {error!r}")] * len(work)

    def _make(self, work: Sequence[tuple[Job, ImageRequest, Watch]]) -> Sequence[ImageResult | Exception]:
        if all(job.kind != turns.KIND for job, _, _ in work):
            return self.gateway.make(work)
        keep = self.settings.keep_days * DAY
        return [
            turns.make(job, request, watch, self.gateway, self.store, keep)
            if job.kind == turns.KIND
            else self.gateway.make([(job, request, watch)])[0]
            for job, request, watch in work
        ]

    def _end(self, job: Job, end: Callable[[], None]) -> None:
        try:
            end()
        except Exception:  # its lease will run out
            log.exception("job %s could not be ended", job.id)
        finally:
            self._stops.pop(job.id, None)
            if self._alone == job.id:
                self._alone = None
                for pool in self.pools:  # the others have waited
                    self.wake(pool)

    def _look(self) -> None:
        """Seats for what waits; stops for what was cancelled elsewhere."""
        pause = POLL
        while not self._ending.is_set():
            rung = self._bell.wait(pause)
            self._bell.clear()
            try:
                if not rung:
                    self._look_around()
                for pool in self.pools.values():
                    self._fill(pool)
                pause = POLL
            except Exception as error:
                log.warning("the queue cannot be read: %s", error)
                pause = min(LONGEST, 2 * pause)
                self._ending.wait(pause)

    def _look_around(self) -> None:
        with self.database.read() as connection:
            for pool in jobs.waiting(connection):
                self.pools[pool].maybe = True
            gone = jobs.cancelled(connection, self.id) if self._stops else []
        for job_id in gone:
            self.cancel(job_id)

    def _fill(self, pool: Pool) -> None:
        while pool.maybe and not self._ending.is_set() and pool.free.acquire(blocking=False):
            batch: list[Job] = []
            try:
                batch = self._claim(pool)
            finally:
                if not batch:
                    pool.free.release()
            if not batch:
                return
            self._submit(pool, batch)

    def _beat(self) -> None:
        while not self._ending_in(self.settings.lease / 3):
            try:
                self.renew()
                self.reclaim()
            except Exception as error:
                log.warning("the leases cannot be renewed: %s", error)

    def renew(self) -> None:
        """Keep what is being done here, and stop what is not ours any more."""
        here = list(self._stops)
        if not here:
            return
        with self.database.write() as connection:
            ours = jobs.beat(connection, self.id, here, self.settings.lease)
        for job_id in set(here) - ours:
            self.cancel(job_id)

    def _ending_in(self, seconds: float) -> bool:
        """Wait; whether all work is over. Leases are renewed as long as any goes on."""
        self.delivery.closed.wait(seconds)
        return self.delivery.closed.is_set()

    def _tidy(self) -> None:
        """Forget what is kept no longer."""
        while not self.delivery.closed.wait(TIDY * random.uniform(0.5, 1.5)):  # not all processes at once
            try:
                with self.database.write() as connection:
                    jobs.sweep(connection, time.time() - self.settings.keep_days * DAY)
                self.store.sweep()
            except Exception as error:
                log.warning("what is old could not be swept: %s", error)

    def _again(self, what: str, act: Callable[[], None], tries: int = 3) -> None:
        """`act`, a few times if it must be; what then is left to do, leases will do."""
        for pause in (0.1, 0.5, 0.0)[-tries:]:
            try:
                return act()
            except Exception as error:
                log.warning("%s cannot be reached: %s", what, error)
                time.sleep(pause)


def _seats(gateway: Gateway) -> int:
    """How many jobs the engine of the default model takes at once."""
    catalog = gateway.workshop.catalog
    try:
        engine, name = catalog.find(gateway.settings.default_model)
        if not engine.find(name).is_hosted:
            return engine.concurrency
    except ImagewrightError:  # which is said to whoever asks for it
        pass
    return catalog.engine(DEFAULT_ENGINE).concurrency
