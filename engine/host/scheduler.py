"""The one worker thread that owns the engine, and the order of its work.

Within a document: edits up to version N, then the completion for N. Across documents: invoked
completions, automatic ones, patches, warm-up, healing. Text changes are cheap and come at once.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from ..wire.config import EngineConfig
from ..wire.errors import BadRequest, Cancelled, EngineError, Interrupted, memory_error
from .engine_protocol import HostedEngine, MakeEngine
from .held_document import LATER, DocumentKey, HeldDocument, Job, Urgency, real_path

log = logging.getLogger(__name__)

# Rows healed at a time. The pauses between are as long as the work was, so small chunks keep the
# machine responsive; an interruption between two layers loses one chunk at most.
_HEAL_ROWS = 64
# Files that were completed and are kept with their text; their caches share the byte budget.
_MOST_KEPT = 8


class Scheduler:
    """Takes jobs from any thread and does them in one of its own.

    Args:
        make_engine: called in the worker thread with the EngineConfig; torch is loaded there.
        on_working: called in the worker thread with the document it is going to work on, and with
            None when it has nothing to do.
        on_end: called in the worker thread when it ends, whatever the reason.
        keep_s: a file that was completed is kept so long for the next request, in seconds.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        on_working: Callable[[DocumentKey | None], None],
        on_end: Callable[[], None],
        keep_s: float,
    ) -> None:
        """Start the thread; there is no engine before `configure`."""
        self._make_engine = make_engine
        self._on_working = on_working
        self._on_end = on_end
        self._keep_s = keep_s
        self._inbox: deque[Job | Callable[[], None]] = deque()
        self._arrived = threading.Condition()
        self._stopping = False
        self._is_idle = False
        # All below belong to the worker thread.
        self._engine: HostedEngine | None = None
        self._engine_error: EngineError = BadRequest("a request came before hello")
        self._documents: dict[DocumentKey, HeldDocument] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._running: Job | None = None
        self._num_jobs = 0
        self._heal_after = 0.0
        self._engine_status: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # From any thread.

    def configure(self, config: EngineConfig) -> None:
        """Make the engine, in place of the one before and all its documents."""
        self._put(lambda: self._configure(config))

    def submit(self, job: Job) -> None:
        """Queue a job; all of one client's are taken in the order they come."""
        self._put(job)

    def cancel(self, job: Job, reason: str) -> None:
        """End a completion at its next check; text changes are done all the same."""
        job.cancelled = job.cancelled or reason
        self._put(lambda: None)

    def forget(self, client: Hashable) -> None:
        """Close all documents of a client that is gone; cancel its jobs first."""
        self._put(lambda: self._forget(client))

    def status(self) -> dict[str, Any]:
        """Return the engine's status after the last job, as plain data; waits for nothing.

        Whoever has a job's answer finds here what it did. Before the first job there is no more
        than `num_queued` and `is_idle`. Beside the engine's own: `num_narrow` documents whose
        window has still to grow, `num_stale_rows` that are not what a prefill would give,
        `num_rows_to_heal` of them that healing is going to recompute, `num_queued`
        requests, and `is_idle`: nothing is queued, behind its text or to be healed.
        """
        is_idle, num_queued = self._is_idle, len(self._inbox)
        return {**self._engine_status, "num_queued": num_queued, "is_idle": is_idle}

    def stop(self, timeout_s: float) -> None:
        """End the thread; work in progress stops at its next check."""
        self._stopping = True
        self._put(lambda: None)
        self._thread.join(timeout_s)

    def _put(self, item: Job | Callable[[], None]) -> None:
        with self._arrived:
            self._inbox.append(item)
            self._is_idle = False
            self._arrived.notify()

    # The worker thread: what arrives.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_in()
                if self._calls:
                    self._calls.popleft()()
                    self._note_status()
                    continue
                for document in list(self._documents.values()):
                    self._change_text(document)
                chosen = self._choose()
                if chosen is None:
                    self._rest()
                    continue
                urgency, document = chosen
                self._on_working(document.key)
                if document.jobs:
                    self._complete(urgency, document)
                elif urgency == Urgency.HEAL:
                    self._heal(document)
                else:
                    session = document.session
                    assert session is not None, "a document without a session is never behind"
                    try:
                        check = self._check(urgency, document)
                        session.sync(check)
                        self._note_status()
                        document.answer_waiting(None, is_whole=not session.has_to_grow)
                        session.grow(check)
                        document.note_warm(session)
                    except Exception as error:
                        self._note_unfinished(urgency, document, error)
                self._note_status()
        except Exception:
            log.exception("the engine's thread failed")
        finally:
            gc.unfreeze()
            self._on_end()

    def _rest(self) -> None:
        self._on_working(None)
        self._note_status()
        if self._prepare():
            return
        to_heal = any(document.wants_healing for document in self._documents.values())
        wait_s = max(0.0, self._heal_after - time.monotonic()) if to_heal else self._drop_kept()
        with self._arrived:
            if not self._inbox:
                self._is_idle = not to_heal
                self._arrived.wait(wait_s)

    def _prepare(self) -> bool:
        """Prepare a piece of what may be needed later; return whether there was any."""
        try:
            return self._engine is not None and self._engine.warm()
        except Exception as error:  # what cannot be prepared says so when it is needed
            log.warning("not prepared: %s", self._plain(error))
            return False

    def _drop_kept(self) -> float | None:
        """Close kept files that nobody asked for again; return the seconds until the next goes."""
        now = time.monotonic()
        kept = sorted(
            ((held.kept_until, key) for key, held in self._documents.items() if held.kept_until),
            reverse=True,
        )
        for number, (until, key) in enumerate(kept):
            if until <= now or number >= _MOST_KEPT:
                self._documents.pop(key).close(self._engine)
        return min((until - now for until, _ in kept[:_MOST_KEPT] if until > now), default=None)

    def _take_in(self) -> Urgency | None:
        """Sort what has arrived into the documents' queues; return the most urgent of it."""
        most: Urgency | None = None
        while self._inbox:
            item = self._inbox.popleft()
            if not isinstance(item, Job):
                self._calls.append(item)
            elif item.request.method == "load":
                self._calls.append(lambda job=item: self._load(job))
            else:
                key = _key_of(item)
                document = self._documents.setdefault(key, HeldDocument(key))
                self._supersede(document, item)
                document.jobs.append(item)
                self._num_jobs += 1
                document.used = self._num_jobs
                most = item.urgency if most is None else min(most, item.urgency)
        return most

    def _supersede(self, document: HeldDocument, newest: Job) -> None:
        if newest.request.method == "complete":
            reason = "a newer completion of the document took its place"
        elif newest.request.method in ("open", "close"):
            reason = "the document was closed"
        else:
            return
        running = self._running
        is_here = running is not None and document.key == (
            running.client,
            running.request.params.get("doc"),
        )
        for job in [*document.jobs, *([running] if running and is_here else [])]:
            if job.is_completion:
                job.cancelled = job.cancelled or reason

    def _change_text(self, document: HeldDocument) -> None:
        """Do what is cheap and first in the queue: everything up to a completion."""
        while document.jobs:
            job = document.jobs[0]
            if job.is_completion and job.cancelled is None:
                return
            document.jobs.popleft()
            if job.is_completion:
                job.on_result(Cancelled(job.cancelled))
                continue
            self._on_working(document.key)
            self._answer(job, lambda job=job: document.change(job, self._need_engine()))
        if document.session is None and document.problem is None:
            del self._documents[document.key]

    # The worker thread: what is done next.

    def _choose(self) -> tuple[Urgency, HeldDocument] | None:
        """Return the most urgent work: of equals the oldest completion, else the newest text."""
        best: tuple[Urgency, int, HeldDocument] | None = None
        can_heal = time.monotonic() >= self._heal_after
        for document in self._documents.values():
            urgency, rank = document.behind, -document.used
            if document.jobs:
                urgency, rank = document.jobs[0].urgency, document.used
            elif urgency is None and can_heal and document.wants_healing:
                urgency = Urgency.HEAL
            if urgency is not None and (best is None or (urgency, rank) < best[:2]):
                best = (urgency, rank, document)
        return None if best is None else (best[0], best[2])

    def _complete(self, urgency: Urgency, document: HeldDocument) -> None:
        job = document.jobs.popleft()
        check = self._check(urgency, document, job)

        def complete() -> dict[str, Any]:
            engine = self._need_engine()
            if job.request.method == "complete":
                return document.complete(job, check)
            document.kept_until = time.monotonic() + self._keep_s
            others = [held for held in self._documents.values() if held is not document]
            return document.complete_file(job, check, engine, others)

        if not self._answer(job, complete):
            document.jobs.appendleft(job)

    def _heal(self, document: HeldDocument) -> None:
        session = document.session
        assert session is not None, "a document without a session has nothing to heal"
        started_at = time.monotonic()
        try:
            session.heal(_HEAL_ROWS, self._check(Urgency.HEAL, document))
        except Exception as error:
            self._note_unfinished(Urgency.HEAL, document, error)
        # At most half of the machine's time: rest as long as it worked.
        self._heal_after = 2 * time.monotonic() - started_at

    def _note_unfinished(self, urgency: Urgency, document: HeldDocument, error: Exception) -> None:
        """Note why the cache does not follow the text: more urgent work, or what went wrong."""
        if isinstance(error, (Interrupted, Cancelled)):
            return
        # Not tried again before the document changes; a completion reports the same problem.
        plain = self._plain(error)
        log.warning("%s of %s: %s", urgency.name, document.key[1], plain)
        document.behind, document.visible = None, False
        document.answer_waiting(plain)

    def _check(
        self, urgency: Urgency, document: HeldDocument, job: Job | None = None
    ) -> Callable[[], None]:
        def check() -> None:
            arrived = self._take_in() if self._inbox else None
            if self._stopping:
                raise Cancelled("the engine host is ending")
            if job is not None and job.cancelled is not None:
                raise Cancelled(job.cancelled)
            # A text change makes patching the old text pointless, but waits for a completion.
            outdated = job is None and bool(document.jobs)
            if outdated or (arrived is not None and arrived < urgency):
                raise Interrupted("more urgent work waits")

        return check

    def _answer(self, job: Job, work: Callable[[], object]) -> bool:
        """Do a job and reply, whatever happens; return False if it was interrupted instead."""
        self._running = job
        try:
            result: object = work()
        except Interrupted:
            return False
        except Exception as error:
            result = self._plain(error)
        finally:
            self._running = None
        if result is not LATER:
            self._note_status()  # who has an answer finds in the status what was done for it
            job.on_result(result)
        return True

    def _plain(self, error: Exception) -> EngineError:
        """Return the error to answer with; where memory ran out, drop all caches."""
        out_of_memory = memory_error(error)
        if out_of_memory is not None:
            for document in self._documents.values():
                if document.session is not None:
                    document.session.drop_cache()
        if isinstance(error, EngineError):
            return error
        if out_of_memory is not None:
            return out_of_memory
        log.error("a job failed", exc_info=error)
        text = f"{type(error).__name__}: {error!s:.200}"
        return EngineError(f"internal error, the engine's log has more: {text}")

    # The worker thread: calls that concern no single document.

    def _need_engine(self) -> HostedEngine:
        if self._engine is None:
            raise self._engine_error
        return self._engine

    def _configure(self, config: EngineConfig) -> None:
        for document in self._documents.values():
            document.close(self._engine)  # what is queued is for the new engine
        self._engine = None
        gc.unfreeze()  # for what the one before leaves in circles to be found
        try:
            self._engine = self._make_engine(config)
        except Exception as error:
            self._engine_error = self._plain(error)
            log.error("no engine: %s", self._engine_error)

    def _load(self, job: Job) -> None:
        params = job.request.params
        model = params["model"]

        def load() -> dict[str, Any]:
            def progress(what: str, percent: int) -> None:
                job.on_event("progress", what=what, percent=percent)

            engine = self._need_engine()
            loaded = engine.load(model, progress)
            engine.adapt(model, params["adapter"])
            # What is loaded stays: to look through it for garbage takes 0.1 s, at some keystroke.
            # What was let go of meanwhile must not stay with it.
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            return {"model": model, "languages": list(loaded.languages)}

        self._answer(job, load)

    def _forget(self, client: Hashable) -> None:
        for key in [key for key in self._documents if key[0] == client]:
            self._documents.pop(key).close(self._engine)

    def _note_status(self) -> None:
        if self._engine is None:
            self._engine_status = {"problem": str(self._engine_error)}
            return
        sessions = [document.session for document in self._documents.values() if document.session]
        self._engine_status = {
            **self._engine.status(),
            "num_narrow": sum(session.is_narrow for session in sessions),
            "num_stale_rows": sum(session.num_stale for session in sessions),
            "num_rows_to_heal": sum(session.num_to_heal for session in sessions),
        }


def _key_of(job: Job) -> DocumentKey:
    params = job.request.params
    if job.request.method == "complete_file":
        return None, real_path(params["path"])  # no client's: it stays when that one goes
    return job.client, params["doc"]
