// Curves by uPlot, from the JSON that the page carries; the same file draws them in reports.
"use strict";
(() => {
  const plots = new Map();
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // light-dark() comes out of a custom property unresolved; an element's colour is resolved.
  const probe = document.createElement("i");
  const colour = (name) => {
    probe.hidden = true;
    document.body.append(probe);
    probe.style.color = css(name);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const short = (value) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size >= 1e6) return (value / 1e6).toFixed(1) + " M";
    if (size >= 1e4) return (value / 1e3).toFixed(0) + " k";
    if (Number.isInteger(value)) return String(value);
    return size >= 100 ? value.toFixed(0) : size >= 0.01 ? value.toFixed(3).replace(/0+$/, "") : value.toPrecision(2);
  };
  const clock = (seconds) => {
    const whole = Math.round(seconds);
    if (whole < 60) return whole + " s";
    if (whole < 3600) return Math.floor(whole / 60) + ":" + String(whole % 60).padStart(2, "0");
    return Math.floor(whole / 3600) + " h " + String(Math.floor((whole % 3600) / 60)).padStart(2, "0");
  };

  // Lines over steps that need not be the same: one axis of all steps, gaps where a line has none.
  function joined(lines) {
    const steps = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, index) => [step, index]));
    const columns = lines.map((line) => {
      const column = new Array(steps.length).fill(null);
      for (const [step, value] of line.points) column[place.get(step)] = value;
      return column;
    });
    return { names: lines.map((line) => line.name), data: [steps, ...columns], time: false };
  }

  function wanted(kind, curves) {
    if (kind === "metrics") return joined(curves.metrics || []);
    if (kind === "lengths") return joined(curves.lengths || []);
    if (kind === "cost") {
      const priced = curves.cost.length > 0;
      return { names: [priced ? "dollars" : "tokens"], data: [curves.time, priced ? curves.cost : curves.tokens], time: true };
    }
    if (kind === "rate") return { names: ["ended", "failed"], data: [curves.time, curves.rate, curves.failed], time: true, fill: true };
    return joined(curves[kind] || []);
  }

  function draw(figure, curves) {
    const box = figure.querySelector(".plot");
    const want = wanted(figure.dataset.chart, curves);
    const empty = want.data[0].length === 0;
    figure.querySelector(".none").hidden = !empty;
    const old = plots.get(figure);
    if (empty) return;
    if (old && old.names === want.names.join("\n")) {
      old.plot.setData(want.data);
      return;
    }
    if (old) old.plot.destroy();
    const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px ui-sans-serif, system-ui, sans-serif", gap: 4 };
    const colours = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"].map(colour);
    const failed = colour("--bad");
    const plot = new uPlot({
      width: box.clientWidth, height: box.clientHeight - 26, padding: [8, 8, 0, 0],
      cursor: { y: false, points: { size: 6 } },
      legend: { live: true },
      scales: { x: { time: false }, y: { range: (self, low, high) => {
        if (low == null) return [0, 1];
        if (low === high) return [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
        const room = (high - low) * 0.08;
        return [want.time && low >= 0 ? 0 : low - room, high + room];
      } } },
      axes: [
        { ...axis, size: 22, space: 60, incrs: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400, 604800], values: (self, ticks) => ticks.map((tick) => (want.time ? clock(tick) : Number.isInteger(tick) ? String(tick) : "")) },
        { ...axis, size: 54, values: (self, ticks) => ticks.map(short) },
      ],
      series: [
        { label: want.time ? "at" : "step", value: (self, value) => (value == null ? "–" : want.time ? clock(value) : String(value)) },
        ...want.names.map((name, index) => ({
          label: name, stroke: name === "failed" ? failed : colours[index % colours.length], width: 1.6, spanGaps: true,
          points: { show: want.data[0].length <= 40, size: 5 },
          value: (self, value) => short(value),
        })),
      ],
    }, want.data, box);
    plots.set(figure, { plot, names: want.names.join("\n") });
  }

  function drawAll(curves) {
    for (const figure of document.querySelectorAll("[data-chart]")) draw(figure, curves);
  }

  const source = document.getElementById("curves");
  if (!source || typeof uPlot === "undefined") return;
  let current = JSON.parse(source.textContent);
  drawAll(current);
  const watch = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const known = plots.get(entry.target.closest("[data-chart]"));
      const box = entry.target;
      if (known && box.clientWidth && known.plot.width !== box.clientWidth) known.plot.setSize({ width: box.clientWidth, height: box.clientHeight - 26 });
    }
  });
  for (const box of document.querySelectorAll("[data-chart] .plot")) watch.observe(box);
  const again = () => {
    for (const { plot } of plots.values()) plot.destroy();
    plots.clear();
    drawAll(current);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  document.addEventListener("afnio:theme", again);
  document.addEventListener("afnio:curves", (event) => { current = event.detail; drawAll(current); });
})();
