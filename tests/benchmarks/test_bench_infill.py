"""What the benchmark of `/infill` makes of a stream's events, and its checks."""

import contextlib
import importlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_infill = importlib.import_module("bench_infill")
sys.path.remove(str(ROOT / "benchmarks"))


@contextlib.contextmanager
def answering(*events):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            for event in events:
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_an_answer_is_timed_and_its_rows_are_those_of_the_last_event():
    timings = {"prompt_n": 12, "cache_n": 88}
    last = {"content": "", "stop": True, "tokens_predicted": 3, "timings": timings}
    with answering({"content": "a", "stop": False}, last) as (address, asked):
        found = bench_infill.infill(address, 16, 256)("abc", 2)
    assert 0 < found.first_ms <= found.whole_ms
    assert found[2:] == (12, 100, 3)
    assert (asked[0]["input_prefix"], asked[0]["input_suffix"]) == ("ab", "c")
    assert (asked[0]["n_predict"], asked[0]["n_cache_reuse"]) == (16, 256)


def run(contender, first_ms, whole_ms, step=bench_infill.EDIT):
    return {"contender": contender, "step": step, "first_ms": [first_ms], "whole_ms": [whole_ms]}


def test_ours_is_held_against_the_best_peer_after_an_edit():
    runs = [run(bench_infill.OWN, 100, 200), run("a", 800, 990), run("b", 400, 1000)]
    runs.append(run("a", 1, 1, bench_infill.UNDO))
    found = [(check["value"], check["met"]) for check in bench_infill.checks(runs)]
    assert found == [(4.95, False), (4.0, False)]
    assert bench_infill.checks(runs[:1]) == []
