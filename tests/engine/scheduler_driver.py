"""A client of a scheduler with a fake engine."""

import threading
import time

from keyturn.engine.host.held_document import Job
from keyturn.engine.host.scheduler import Scheduler
from keyturn.engine.wire.config import EngineConfig
from keyturn.engine.wire.protocol import Request
from tests.fakes import PARAMS, FakeEngine

CONFIG = EngineConfig("cpu", "float32", 0, 10**9, 0, 256)


def wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Driver:
    """One client of one scheduler; results by request id."""

    def __init__(self, make_engine=FakeEngine, keep_s=60.0):
        self.engine = None
        self.results, self.events, self.jobs, self.working = {}, [], {}, []
        self.order = []
        self.ended = threading.Event()

        def make(config):
            self.engine = make_engine(config)
            return self.engine

        self.scheduler = Scheduler(make, self.working.append, self.ended.set, keep_s)
        self.scheduler.configure(CONFIG)
        self.next_id = 0

    def put(self, method, client="c", **params):
        self.next_id += 1
        number = self.next_id

        def on_result(result):
            self.results[number] = result
            self.order.append(number)

        def on_event(name, **fields):
            self.events.append((number, name, fields))

        job = Job(client, Request(number, method, params), on_result, on_event)
        self.jobs[number] = job
        self.scheduler.submit(job)
        return number

    def open(self, doc, text, version=1, visible=False, client="c"):
        return self.put(
            "open", client, doc=doc, path=doc, text=text, version=version, model="m",
            policy="turn", layout=None, cursor=0, visible=visible,
        )  # fmt: skip

    def edit(self, doc, base, *edits):
        return self.put("edit", doc=doc, base=base, version=base + 1, edits=list(edits))

    def complete(self, doc, version, offset, invoked=True, params=PARAMS, wait_ms=None):
        return self.put(
            "complete", doc=doc, version=version, offset=offset, params=params, invoked=invoked,
            stream=True, wait_ms=wait_ms,
        )  # fmt: skip

    def complete_file(self, path, text, offset, client="c", **changes):
        asked = {"path": path, "text": text, "offset": offset, "params": PARAMS}
        more = {"model": "m", "policy": "turn", "layout": None, "stream": True}
        return self.put("complete_file", client, **{**asked, **more, **changes})

    def result(self, number):
        wait_until(lambda: number in self.results)
        return self.results[number]

    def error(self, number, kind):
        result = self.result(number)
        assert type(result) is kind, result
        return str(result)
