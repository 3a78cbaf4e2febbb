"""The page of a real migration in a real browser: what is drawn, and what it does."""

from pathlib import Path
from typing import Any

import pytest

from precopy.engine.timeline.drawing import GUTTER, PLOT, WIDTH
from tests.engine.timeline.conftest import HOSTILE
from tests.interop.browser.chrome import Shown
from tests.interop.browser.conftest import Moved, Show

#: Every bar of the picture that is asked for: its times, and where the browser has drawn it.
BARS = """name => [...document.querySelectorAll(`#${name} .bar`)].map(bar => ({
  begin: +bar.dataset.b, end: +bar.dataset.e, moment: bar.classList.contains("moment"),
  side: bar.parentNode.dataset.side, lane: bar.parentNode.dataset.lane,
  hidden: bar.getAttribute("display") === "none",
  box: (box => [box.left, box.width])(bar.querySelector("rect").getBoundingClientRect()),
}))"""

#: The picture: where it is, and the times that it shows.
PICTURE = """name => {
  const svg = document.getElementById(name), box = svg.getBoundingClientRect();
  // Without its border.
  return {left: box.left + svg.clientLeft, top: box.top, width: svg.clientWidth, height: box.height,
    begin: +(svg.dataset.shownBegin || svg.dataset.begin), end: +(svg.dataset.shownEnd || svg.dataset.end)};
}"""


def place(picture: dict[str, float], at: float) -> float:
    """Where on the screen a time has to be."""
    scale = picture["width"] / WIDTH
    part = (at - picture["begin"]) / (picture["end"] - picture["begin"])
    return picture["left"] + (GUTTER + part * PLOT) * scale


def check_places(shown: Shown, name: str) -> list[dict[str, Any]]:
    """Every bar that is whole in the picture lies where its times are; those bars."""
    picture = shown.run(PICTURE, name)
    bars = [
        bar
        for bar in shown.run(BARS, name)
        if picture["begin"] <= bar["begin"] and bar["end"] <= picture["end"]
    ]
    assert bars
    for bar in bars:
        left, width = bar["box"]
        assert left == pytest.approx(place(picture, bar["begin"]), abs=1.0)
        if not bar["moment"]:
            wanted = place(picture, bar["end"]) - place(picture, bar["begin"])
            # The shortest are drawn wider than they are, to be seen at all.
            assert width == pytest.approx(wanted, abs=1.0) or wanted < width < 3
    return bars


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_every_span_has_its_bar_in_its_place(show: Show, moved: Moved, script: bool) -> None:
    """The page draws its pictures itself; it needs its script only to look closer."""
    shown = show(moved.file, script=script)
    bars = check_places(shown, "whole")
    for side, notes in moved.timeline.sides():
        told = sorted((span.lane, round(span.begin, 6)) for span in notes.spans())
        drawn = [(bar["lane"], round(bar["begin"], 6)) for bar in bars if bar["side"] == side]
        assert len(drawn) == len(told)
        for ours, theirs in zip(sorted(drawn), told, strict=True):
            assert ours[0] == theirs[0]
            assert ours[1] == pytest.approx(theirs[1], abs=2e-6)
    check_places(shown, "downtime")


def test_curves_are_drawn(show: Show, moved: Moved) -> None:
    shown = show(moved.file)
    lengths = shown.run(
        "() => [...document.querySelectorAll('.curve')].map(c => [c.dataset.counter, c.getTotalLength()])"
    )
    assert {"bytes", "rate", "initial_bytes", "memory_bytes"} <= {name for name, _ in lengths}
    assert all(length > 10 for _, length in lengths)


def test_stages_add_up_to_the_downtime(show: Show, moved: Moved) -> None:
    shown = show(moved.file)
    stages = shown.run(
        """() => [...document.querySelectorAll("#stages .stage")].map(stage => [
          +stage.dataset.seconds, stage.querySelector("rect").getBoundingClientRect().width])"""
    )
    downtime = moved.timeline.report["downtime"]
    assert sum(seconds for seconds, _ in stages) == pytest.approx(downtime, abs=1e-6)
    whole = shown.run("() => document.getElementById('stages').getBoundingClientRect().width")
    for seconds, width in stages:
        assert width == pytest.approx(seconds / downtime * whole, abs=3)


def test_the_wheel_looks_closer(show: Show, moved: Moved) -> None:
    """At the pointer time stands still, and all else goes away from it."""
    shown = show(moved.file)
    before = shown.run(PICTURE, "whole")
    x, y = before["left"] + before["width"] * 0.6, before["top"] + 60
    shown.page.mouse.move(x, y)
    shown.page.mouse.wheel(0, -100)
    shown.page.wait_for_function("() => +document.getElementById('whole').dataset.shownBegin > 0")
    after = shown.run(PICTURE, "whole")
    length = before["end"] - before["begin"]
    assert after["end"] - after["begin"] == pytest.approx(0.8 * length, rel=1e-3)
    scale = before["width"] / WIDTH
    part = ((x - before["left"]) / scale - GUTTER) / PLOT
    held = [each["begin"] + part * (each["end"] - each["begin"]) for each in (before, after)]
    assert held[0] == pytest.approx(held[1], abs=length / 500)
    assert after["top"] == before["top"]
    check_places(shown, "whole")
    # The other picture is looked at by itself.
    assert shown.run(PICTURE, "downtime")["begin"] == pytest.approx(
        shown.run("() => +document.getElementById('downtime').dataset.begin")
    )


def test_dragging_goes_along_and_a_double_click_back(show: Show, moved: Moved) -> None:
    shown = show(moved.file)
    page = shown.page
    before = shown.run(PICTURE, "whole")
    page.locator(".zoom").first.locator("button", has_text="closer").click()
    closer = shown.run(PICTURE, "whole")
    assert closer["begin"] > before["begin"]
    x, y = before["left"] + before["width"] / 2, before["top"] + 60
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 100, y, steps=4)
    page.mouse.up()
    dragged = shown.run(PICTURE, "whole")
    moved_by = 100 / (before["width"] / WIDTH) / PLOT * (closer["end"] - closer["begin"])
    assert dragged["begin"] - closer["begin"] == pytest.approx(moved_by, rel=0.01)
    assert dragged["end"] - closer["end"] == pytest.approx(moved_by, rel=0.01)
    check_places(shown, "whole")
    page.mouse.dblclick(x, y)
    again = shown.run(PICTURE, "whole")
    assert (again["begin"], again["end"]) == (before["begin"], before["end"])


def test_the_pointer_is_told_what_lies_under_it(show: Show, moved: Moved) -> None:
    shown = show(moved.file)
    hover = shown.page.locator("#hover")
    assert hover.is_hidden()
    shown.page.locator("#whole [data-side=source][data-lane=images] .bar rect").first.hover()
    assert hover.is_visible()
    assert hover.inner_text().startswith("initial\nat ")
    shown.page.mouse.move(5, 5)
    assert hover.is_hidden()


def test_hostile_texts_are_only_shown(show: Show, hostile: Path) -> None:
    """No dialog, no picture, no second script: the fixture looks for what they would have said."""
    shown = show(hostile)
    assert shown.page.title() == f"{HOSTILE} to {HOSTILE}"
    assert shown.run("() => [document.scripts.length, document.images.length]") == [1, 0]
    assert HOSTILE in shown.page.locator("#outcome").inner_text()
    shown.page.locator("#whole .bar rect").first.hover()
    assert HOSTILE in shown.page.locator("#hover").inner_text()


def test_the_policy_holds(show: Show, moved: Moved, tmp_path: Path) -> None:
    """A script that had come into the page all the same would not be run."""
    text = moved.file.read_text()
    file = tmp_path / "spoilt.html"
    file.write_text(text.replace("</body>", "<script>document.title = 'run'</script></body>"))
    shown = show(file)
    assert shown.page.title() != "run"
    assert any("Content Security Policy" in line for line in shown.said)
    shown.said.clear()


def test_light_and_dark(show: Show, moved: Moved, tmp_path: Path) -> None:
    """Each has colours of its own, and text that stands out from what it stands on."""
    script = """() => ["backgroundColor", "color"].map(name =>
      getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"""
    seen = []
    for scheme in ("light", "dark"):
        shown = show(moved.file, scheme=scheme)
        paper, ink = shown.run(script)
        assert abs(sum(paper) - sum(ink)) > 400
        seen.append(sum(paper))
        picture = tmp_path / f"{scheme}.png"
        shown.page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 20_000
    assert seen[0] > 600 > 150 > seen[1]
