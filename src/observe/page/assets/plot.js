// Curves as SVG: axes with few numbers, a line each, a legend below where there are several. Uses nothing of the page.
"use strict";

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#3c3c3c"];

// An element of HTML with attributes and children.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A number in a few letters; a dash for none.
function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return value.toFixed(0);
  return String(Number(value.toPrecision(3)));
}

// A plot of 480 x 240: axes with few numbers, lines, a legend below where there are several.
function plot(curve) {
  const [width, height, left, right, bottom, top] = [480, 240, 52, 18, 26, 8];
  const points = curve.series.flatMap((series) => series.points);
  const range = (values) => {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (low === high) [low, high] = [low - Math.max(Math.abs(low), 1) / 10, high + Math.max(Math.abs(high), 1) / 10];
    return [low, high];
  };
  const [x0, x1] = range(points.map((point) => point[0]));
  const [y0, y1] = range(points.map((point) => point[1]));
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - top);
  const svg = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const ticks = (low, high, most) => {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((by) => by * power).find((step) => step >= rough);
    const found = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) found.push(Number(tick.toPrecision(12)));
    return found;
  };
  const last = curve.series.map((series) => `${series.name} ${short(series.points.at(-1)[1])}`).join(", ");
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${curve.title}: ${last}` });
  const letters = { "font-size": 11, fill: "#59616e" };
  for (const tick of ticks(y0, y1, 4)) {
    picture.append(svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "#e4e6ea" }));
    picture.append(svg("text", { ...letters, x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1, 5).filter(Number.isInteger)) {
    picture.append(svg("text", { ...letters, x: x(tick), y: height - 8, "text-anchor": "middle" }, short(tick)));
  }
  curve.series.forEach((series, number) => {
    const line = series.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    const colour = COLOURS[number % COLOURS.length];
    picture.append(svg("polyline", { points: line, fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-linejoin": "round" }));
    if (series.points.length <= 40) {
      for (const point of series.points) picture.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: 2.6, fill: colour }));
    }
  });
  const legend = curve.series.length < 2 ? [] : [element("ul", { className: "legend" }, ...curve.series.map((series, number) => {
    const swatch = element("span");
    swatch.style.background = COLOURS[number % COLOURS.length];
    return element("li", {}, swatch, series.name);
  }))];
  const unit = element("span", { className: "quiet" }, ` ${curve.y} over steps`);
  return element("figure", {}, element("figcaption", {}, curve.title, unit), picture, ...legend);
}
