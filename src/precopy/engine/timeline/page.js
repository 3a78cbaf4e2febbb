"use strict";
// Draws each picture again at the scale that is looked at. Times are seconds; every text is only text.
(() => {
  const LETTER = 6.3, LEAST = 1.5, MOST_TICKS = 10, SHORTEST = 1e-6;
  const hover = document.getElementById("hover");

  function spanText(seconds) {
    if (Math.abs(seconds) < 1e-12) return "0";
    for (const [unit, factor] of [["s", 1], ["ms", 1e3], ["\u00b5s", 1e6]]) {
      const value = seconds * factor;
      if (Math.abs(value) >= 1 || unit === "\u00b5s") {
        const digits = 2 - Math.floor(Math.log10(Math.max(Math.abs(value), 1)));
        return value.toFixed(Math.max(0, digits)) + " " + unit;
      }
    }
  }

  function ticks(begin, end) {
    const span = end - begin;
    let step = 10 ** Math.floor(Math.log10(span / MOST_TICKS));
    step *= [1, 2, 5, 10].find((factor) => span / (step * factor) <= MOST_TICKS) || 10;
    const found = [];
    for (let n = Math.ceil(begin / step - 1e-9); n * step <= end + step * 1e-9; n++) found.push(n * step);
    return found;
  }

  function element(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // A text is told where the pointer is; the browser's own way, which is slow, is put away.
  function tell(node) {
    const title = node.querySelector("title");
    if (!title) return;
    const text = title.textContent;
    title.remove();
    node.setAttribute("aria-label", text);
    node.addEventListener("pointermove", (event) => {
      hover.textContent = text;
      hover.hidden = false;
      hover.style.left = Math.min(event.clientX + 12, innerWidth - hover.offsetWidth - 8) + "px";
      hover.style.top = Math.min(event.clientY + 14, innerHeight - hover.offsetHeight - 8) + "px";
    });
    node.addEventListener("pointerleave", () => { hover.hidden = true; });
  }

  function picture(svg) {
    const data = svg.dataset;
    const gutter = +data.gutter, plot = +data.plot, height = +data.height;
    const all = { begin: +data.begin, end: +data.end };
    let begin = all.begin, end = all.end;
    const axis = svg.querySelector(".axis");
    const bars = [...svg.querySelectorAll(".bar")].map((node) => ({
      node, begin: +node.dataset.b, end: +node.dataset.e, rect: node.querySelector("rect"),
      text: node.querySelector("text"), moment: node.classList.contains("moment"),
    }));
    const curves = [...svg.querySelectorAll(".curve")].map((node) => ({
      node, points: node.dataset.points.split(" ").map((pair) => pair.split(",").map(Number)),
    }));
    const x = (at) => gutter + (at - begin) / (end - begin) * plot;

    function draw() {
      axis.replaceChildren();
      for (const at of ticks(begin, end)) {
        axis.append(element("line", { x1: x(at), x2: x(at), y1: 18, y2: height }));
        axis.append(element("text", { x: x(at), y: 12 }, spanText(at)));
      }
      for (const bar of bars) {
        const seen = bar.end >= begin && bar.begin <= end;
        bar.node.setAttribute("display", seen ? "inline" : "none");
        if (!seen) continue;
        // Far outside numbers grow too large to be drawn.
        const left = Math.max(x(bar.begin), gutter - 10);
        const right = Math.min(x(bar.end), gutter + plot + 10);
        const width = bar.moment ? 3 : Math.max(right - left, LEAST);
        bar.rect.setAttribute("x", left);
        bar.rect.setAttribute("width", width);
        if (!bar.text) continue;
        const from = Math.max(left, gutter);
        const room = Math.min(left + width, gutter + plot) - from;
        const fits = bar.text.textContent.length * LETTER + 6 <= room;
        bar.text.setAttribute("display", fits ? "inline" : "none");
        bar.text.setAttribute("x", from + 3);
      }
      for (const curve of curves) {
        let path = "", last = null;
        for (const [at, y] of curve.points) {
          const place = Math.min(Math.max(x(at), gutter - 10), gutter + plot + 10);
          path += last === null ? `M${place} ${y}` : `H${place}V${y}`;
          last = y;
        }
        curve.node.setAttribute("d", path);
      }
      data.shownBegin = begin;
      data.shownEnd = end;
    }

    function show(from, to) {
      const longest = all.end - all.begin;
      const length = Math.min(Math.max(to - from, SHORTEST), longest);
      begin = Math.min(Math.max(from, all.begin), all.end - length);
      end = begin + length;
      draw();
    }

    const zoom = (factor, at) => show(at - (at - begin) * factor, at + (end - at) * factor);
    const scale = () => svg.getScreenCTM().a;
    const time = (event) => {
      const across = (event.clientX - svg.getScreenCTM().e) / scale() - gutter;
      return begin + Math.min(Math.max(across / plot, 0), 1) * (end - begin);
    };
    svg.addEventListener("wheel", (event) => {
      if (event.shiftKey || !event.deltaY) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 0.8 : 1.25, time(event));
    }, { passive: false });
    svg.addEventListener("dblclick", () => show(all.begin, all.end));
    let held = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      held = { from: event.clientX, begin, end };
      svg.classList.add("dragged");
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!held) return;
      const moved = (event.clientX - held.from) / scale() / plot * (held.end - held.begin);
      show(held.begin - moved, held.end - moved);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      svg.addEventListener(name, () => { held = null; svg.classList.remove("dragged"); });
    }
    const buttons = svg.previousElementSibling;
    if (buttons && buttons.classList.contains("zoom")) {
      buttons.hidden = false;
      for (const button of buttons.querySelectorAll("button")) {
        const factor = +button.dataset.zoom;
        button.addEventListener("click", () => (
          factor ? zoom(factor, (begin + end) / 2) : show(all.begin, all.end)));
      }
    }
    draw();
  }

  document.querySelectorAll(".bar, .stage, .curve").forEach(tell);
  document.querySelectorAll(".picture").forEach(picture);
})();
