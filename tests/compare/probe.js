// Added to a copy of a page by tests/compare/test_report.py: what a reader would see of it, written into the title around it.
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  all("details").forEach((e) => { e.open = true; });
  const drawn = all("svg.chart, svg.tile, img");
  const reached = all("a, summary, [tabindex='0']");
  top.document.title = JSON.stringify({
    inner: innerWidth,
    wide: document.documentElement.scrollWidth,
    drawn: drawn.length,
    seen: drawn.filter((e) => e.getBoundingClientRect().height > 20).length,
    small: all("p, li, th, td, summary").filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11).length,
    reached: reached.length,
    focused: reached.filter((e) => { e.focus(); return document.activeElement === e; }).length,
  });
});
