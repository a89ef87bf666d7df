(() => {
  "use strict";
  const charts = JSON.parse(document.getElementById("data").textContent);
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const STRIP_TOP = 5; // a score of 5 and one of 1000 need the same attention

  const times = c => c.i ? c.i.map(i => c.t0 + i * c.step) : c.y.map((_, i) => c.t0 + i * c.step);
  const pad = n => String(n).padStart(2, "0");
  function stamp(seconds) {
    const d = new Date(seconds * 1000);
    const day = d.getUTCFullYear() + "-" + pad(d.getUTCMonth() + 1) + "-" + pad(d.getUTCDate());
    return day + " " + pad(d.getUTCHours()) + ":" + pad(d.getUTCMinutes()) + (seconds % 60 ? ":" + pad(d.getUTCSeconds()) : "");
  }
  function number(v) {
    if (v == null) return "–";
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-3 || size >= 1e15)) return v.toExponential(2);
    for (const [unit, scale] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e4]])
      if (size >= scale) return +(v / (unit === "k" ? 1e3 : scale)).toPrecision(4) + unit;
    return String(+v.toPrecision(4));
  }

  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  // 24 hours, and the day under the first tick and under each midnight.
  const ticks = (u, splits, axis, space, step) => splits.map((seconds, i) => {
    const d = new Date(seconds * 1000), day = MONTHS[d.getUTCMonth()] + " " + d.getUTCDate();
    if (step >= 86400) return day;
    const clock = pad(d.getUTCHours()) + ":" + pad(d.getUTCMinutes()) + (step < 60 ? ":" + pad(d.getUTCSeconds()) : "");
    return i === 0 || seconds % 86400 === 0 ? clock + "\n" + day : clock;
  });

  let plots = [];
  let waiting = new Set(); // charts that are not drawn yet
  let stale = new Set(); // plots that have not followed the zoom yet
  let zoom = null;
  let following = false;
  let filling = 0;

  const section = i => document.getElementById("chart-" + i);
  function inSight(element) {
    const { top, bottom } = element.getBoundingClientRect();
    return bottom > -innerHeight && top < 2 * innerHeight;
  }

  // One zoom for the whole page, unless charts cover different times.
  function zoomTo(range, source) {
    zoom = range;
    stale = new Set(plots);
    stale.delete(source);
    quietly(() => {
      for (const u of plots) if (inSight(u.root) && stale.delete(u)) u.setScale("x", zoom);
    });
    fillLater();
  }
  function follow(source) {
    if (!following) zoomTo({ min: source.scales.x.min, max: source.scales.x.max }, source);
  }
  // No plot follows those that are changed here: uPlot commits scales in a microtask, asked for before the one below.
  function quietly(change) {
    following = true;
    change();
    queueMicrotask(() => { following = false; });
  }

  function shade(c) {
    return u => {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      ctx.fillStyle = colour("window");
      for (const w of c.windows) {
        const from = u.valToPos(w.from, "x", true), to = u.valToPos(w.to, "x", true);
        ctx.fillRect(from, bbox.top, Math.max(to - from, 2 * devicePixelRatio), bbox.height);
      }
      if (c.cutoff) {
        const x = Math.round(u.valToPos(c.cutoff, "x", true));
        ctx.strokeStyle = colour("muted");
        ctx.setLineDash([3, 4]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.restore();
    };
  }

  const axis = extra => Object.assign({
    stroke: colour("muted"), grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("grid"), width: 1 },
    font: "12px system-ui, sans-serif",
  }, extra);
  const common = (c, width) => ({
    width,
    tzDate: seconds => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    // Only what is in sight moves with the mouse: hundreds of charts would lag behind it.
    cursor: { sync: { key: "anomaly-times", filters: { pub: () => true, sub: () => c.near !== false } }, drag: { x: true, y: false }, points: { size: 6 } },
    padding: [8, 22, 0, 0],
  });

  // What is in sight decides the scale, values and forecasts first: a wide band must not flatten what it surrounds.
  function range(u, low, high) {
    const [from, to] = u.series[0].idxs || [0, u.data[0].length - 1];
    const extent = columns => {
      let min = Infinity, max = -Infinity;
      for (const column of columns)
        for (let i = from; i <= to; i++) {
          const v = u.data[column][i];
          if (v != null) { min = Math.min(min, v); max = Math.max(max, v); }
        }
      return [min, max];
    };
    const [least, most] = extent([3, 4]), [bottom, top] = extent([1, 2]);
    if (least > most) return uPlot.rangeNum(low, high, 0.1, true);
    const room = most > least ? 0.5 * (most - least) : Infinity;
    return uPlot.rangeNum(Math.min(least, Math.max(bottom, least - room)), Math.max(most, Math.min(top, most + room)), 0.05, false);
  }

  function mainPlot(c, at, target, width) {
    const absent = at.map(() => null);
    const anomalous = c.score ? c.y.map((v, i) => c.score[i] > 1 ? v : null) : absent;
    const plain = (label, extra) => Object.assign(
      { label, class: "is-" + label, points: { show: false }, value: (u, v) => number(v) }, extra);
    const edge = { stroke: "transparent", width: 0 };
    const series = [
      { label: "time", value: (u, v) => v == null ? "–" : stamp(v) },
      plain("lower", edge), plain("upper", edge),
      plain("expected", { stroke: colour("expected"), width: 1.25, dash: [5, 4] }),
      plain("value", { stroke: colour("value"), width: 1.5, points: { show: undefined, size: 4 } }),
      plain("anomalous", { stroke: colour("bad"), paths: () => null,
        points: { show: true, size: 5, fill: colour("bad"), stroke: colour("bad") } }),
      plain("score", { scale: "score", paths: () => null,
        value: (u, v, s, i) => number(v) + (v > 1 ? " " + reason(c, i) : "") }),
    ];
    const data = [at, c.lower || absent, c.upper || absent, c.yhat || absent, c.y, anomalous, c.score || absent];
    const options = Object.assign(common(c, width), {
      height: 220,
      series,
      bands: [{ series: [2, 1], fill: colour("band") }],
      scales: { y: { range }, score: { range: [0, 1] } },
      axes: [axis({ values: ticks }), axis({ size: 62, values: (u, splits) => splits.map(number) })],
      legend: { live: true },
      hooks: { drawClear: [shade(c)], setScale: [(u, key) => { if (key === "x") follow(u); }] },
    });
    target.classList.toggle("scored", !!c.score);
    return new uPlot(options, data, target);
  }

  const reason = (c, i) => ((c.of || []).find(([from, to]) => from <= i && i <= to) || ["", "", ""])[2];

  // What stretches are of, above their stems, where there is room.
  function names(c, at) {
    return u => {
      const { ctx, bbox } = u, gap = 6 * devicePixelRatio;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, 0, bbox.width, bbox.top);
      ctx.clip();
      ctx.font = 11 * devicePixelRatio + "px system-ui, sans-serif";
      ctx.fillStyle = colour("bad");
      ctx.textAlign = "left";
      ctx.textBaseline = "bottom";
      let free = bbox.left;
      for (const [from, to, name] of c.of) {
        const start = u.valToPos(at[from], "x", true), end = u.valToPos(at[to], "x", true);
        if (end < bbox.left || start > bbox.left + bbox.width) continue;
        const width = ctx.measureText(name).width;
        const x = Math.min(Math.max(start, bbox.left), bbox.left + bbox.width - width);
        if (x < free) continue;
        ctx.fillText(name, x, bbox.top - 2 * devicePixelRatio);
        free = x + width + gap;
      }
      ctx.restore();
    };
  }

  function strip(c, at, target, width) {
    const shown = c.score.map(s => s == null ? null : Math.min(s, STRIP_TOP));
    const top = Math.max(1.5, ...shown);
    const stems = u => {
      const { ctx, bbox } = u, zero = u.valToPos(0, "y", true), one = u.valToPos(1, "y", true);
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      ctx.fillStyle = colour("bad");
      const thick = Math.max(2 * devicePixelRatio, u.valToPos(c.step, "x", true) - u.valToPos(0, "x", true));
      shown.forEach((s, i) => {
        if (s > 1) {
          const y = u.valToPos(s, "y", true);
          ctx.fillRect(u.valToPos(at[i], "x", true) - thick / 2, y, thick, zero - y);
        }
      });
      ctx.strokeStyle = colour("bad");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, one);
      ctx.lineTo(bbox.left + bbox.width, one);
      ctx.stroke();
      ctx.restore();
    };
    const options = Object.assign(common(c, width), {
      height: c.of ? 72 : 62,
      padding: [c.of ? 18 : 8, 22, 8, 0],
      series: [{}, { stroke: "transparent", fill: colour("score"), width: 0, points: { show: false } }],
      scales: { y: { range: [0, top] } },
      axes: [axis({ size: 0, values: () => [] }),
        axis({ size: 62, splits: () => top > 2 ? [1, Math.floor(top)] : [0, 1], // three would overlap
          values: (u, splits) => splits.map(s => s === 1 ? "score 1" : s === STRIP_TOP ? s + "+" : String(s)) })],
      legend: { show: false },
      hooks: { drawClear: [shade(c)], draw: c.of ? [stems, names(c, at)] : [stems], setScale: [(u, key) => { if (key === "x") follow(u); }] },
    });
    return new uPlot(options, [at, shown], target);
  }

  function drawChart(i) {
    if (!waiting.delete(i)) return;
    quietly(() => {
      const c = charts[i], target = section(i).querySelector(".plot"), at = times(c);
      const made = [mainPlot(c, at, target, target.clientWidth)];
      if (c.score) made.push(strip(c, at, section(i).querySelector(".strip"), target.clientWidth));
      plots.push(...made);
      if (zoom) for (const u of made) u.setScale("x", zoom);
    });
  }

  // What is in sight is drawn at once, the rest bit by bit, so that a large page can be used meanwhile.
  function draw() {
    for (const u of plots) u.destroy();
    plots = [];
    stale.clear();
    waiting = new Set(charts.keys());
    for (const i of charts.keys()) if (inSight(section(i))) drawChart(i);
    fillLater();
  }
  function fill() {
    const until = performance.now() + 30;
    while (performance.now() < until && waiting.size) drawChart(waiting.values().next().value);
    quietly(() => {
      for (const u of stale) {
        if (performance.now() > until) break;
        stale.delete(u);
        u.setScale("x", zoom);
      }
    });
    fillLater();
  }
  function fillLater() {
    clearTimeout(filling);
    if (waiting.size || stale.size) filling = setTimeout(fill, 10);
    document.documentElement.dataset.drawn = String(plots.length);
    document.documentElement.dataset.left = String(waiting.size + stale.size);
  }

  const observer = new IntersectionObserver(
    entries => { for (const e of entries) charts[+e.target.id.slice(6)].near = e.isIntersecting; }, { rootMargin: "50%" });
  charts.forEach((_, i) => observer.observe(section(i)));
  charts.forEach((c, i) => { if (c.score) section(i).querySelector(".strip").style.minHeight = (c.of ? 72 : 62) + "px"; });
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let pending = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => {
      for (const u of plots) u.setSize({ width: u.root.parentElement.clientWidth, height: u.height });
    });
  });
  document.addEventListener("click", event => {
    const link = event.target.closest("a[data-chart]");
    if (!link || !plots.length) return;
    drawChart(+link.dataset.chart);
    const from = +link.dataset.from, to = +link.dataset.to, margin = Math.max((to - from) * 2, 6 * 3600);
    zoomTo({ min: from - margin, max: to + margin });
  });
})();
