"use strict";
// Polls status.json and draws it; text from the server is inserted as text, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = ["#3a7bd5", "#2f9e6b", "#c2571a", "#8a5cc2", "#b8860b", "#c13f6b", "#1a8f9e", "#6b7a1f", "#7a5540", "#5470c6"];
  const WIDTH = 980, LEFT = 92, RIGHT = 8, ROW = 21, TOP = 20, GAP = 5;
  const $ = (id) => document.getElementById(id);
  const colours = new Map();
  let earlier = null, timer = 0, drawn = "";

  const colourOf = (key) => {
    if (key.endsWith("unexplained")) return "#98a2b3";
    if (!colours.has(key)) colours.set(key, COLOURS[colours.size % COLOURS.length]);
    return colours.get(key);
  };
  const element = (name, parts = {}, ...children) => {
    const made = document.createElement(name);
    Object.assign(made, parts);
    made.append(...children);
    return made;
  };
  const shape = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const round = (value, digits = 1) => value.toFixed(value >= 100 ? 0 : digits);
  const ms = (seconds) => seconds >= 1 ? `${round(seconds)} s` : `${round(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms`;
  const bytes = (count) => count === null ? "–" : count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(0)} MiB`;
  const age = (seconds) => {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const at = Math.max(0, parts.findIndex(([size]) => seconds >= size));
    const [size, unit] = seconds >= 1 ? parts[at] : [1, "s"];
    const rest = at < 3 && seconds >= 60 ? ` ${Math.floor(seconds % size / parts[at + 1][0])} ${parts[at + 1][1]}` : "";
    return `${Math.floor(seconds / size)} ${unit}${rest}`;
  };

  function showState(status) {
    $("model").textContent = status.model;
    document.title = `${status.status} – ${status.model}`;
    $("state").textContent = status.status;
    $("state").className = `state ${status.status}`;
    const asleep = status.stopped ? `for ${age(status.stopped.for_s)}; the next request starts the model` : "";
    $("note").textContent = status.error ?? (status.live ? `up ${age(status.live.uptime_s)}` : asleep);
    $("footer").textContent = `vllm-cli ${status.version ?? ""}`.trim();
  }

  function showProgress(status) {
    const isStarting = status.status === "starting";
    $("progress").hidden = !isStarting;
    if (!isStarting) return;
    const { phase, progress, elapsed_s: elapsed, eta_s: eta, detail } = status.progress;
    $("bar").parentElement.hidden = progress === null;
    $("bar").style.width = `${100 * (progress ?? 0)}%`;
    const left = eta === null || eta === undefined ? "" : `, about ${round(eta)} s left`;
    $("phase").textContent = `${phase.replaceAll("_", " ")}${detail ? `: ${detail}` : ""} – ${round(elapsed)} s${left}`;
  }

  const card = (name, value, more = "") => element("div", { className: "card" }, element("span", {}, name), element("b", {}, value), element("small", {}, more));

  const showStopped = (stopped) => $("figures").replaceChildren(
    card("Memory", bytes(stopped.front_bytes + stopped.standby_bytes), `standby ${bytes(stopped.standby_bytes)}`),
    card("Stopped", `${stopped.num_idle_stops} ×`, "because no request came"),
    card("Started", `${stopped.num_wakes} ×`, "by a request"),
  );

  function showFigures(live, stopped) {
    if (stopped) { showStopped(stopped); earlier = null; return; }
    if (!live) { $("figures").replaceChildren(); return; }
    const took = earlier ? live.time_s - earlier.time_s : 0;
    const rate = (name) => took > 0 ? round(Math.max(0, live[name] - earlier[name]) / took) : "–";
    const hits = live.prefix_cache_queries ? `${round(100 * live.prefix_cache_hits / live.prefix_cache_queries)} % prefix hits` : "no prefix looked up yet";
    $("figures").replaceChildren(
      card("Requests running", String(live.num_running), `${live.num_waiting} waiting`),
      card("Output tokens/s", rate("generation_tokens"), `${live.generation_tokens.toLocaleString("en")} in all`),
      card("Prompt tokens/s", rate("prompt_tokens"), `${live.prompt_tokens.toLocaleString("en")} computed in all`),
      card("KV cache", `${round(100 * live.kv_cache_usage)} %`, hits),
      card("Loop lag, p99", ms(live.loop_lag_p99_s), `p50 ${round(live.loop_lag_p50_s * 1000)}, max ${ms(live.loop_lag_max_s)}`),
      card("Memory", bytes(live.rss_bytes), `engine ${bytes(live.engine_rss_bytes)}`),
    );
    earlier = live;
  }

  // Bars that overlap in one process lie in different rows.
  function arrange(spans) {
    const lanes = new Map();
    for (const span of spans.filter((s) => s.end_s > s.begin_s)) {
      if (!lanes.has(span.process)) lanes.set(span.process, []);
      const rows = lanes.get(span.process);
      const free = rows.find((row) => row.at(-1).end_s <= span.begin_s + 1e-6);
      if (free) free.push(span); else rows.push([span]);
    }
    return lanes;
  }

  function tickStep(end) {
    const least = end / 9, magnitude = 10 ** Math.floor(Math.log10(least));
    return [1, 2, 5, 10].map((f) => f * magnitude).find((step) => step >= least * 0.999);
  }

  function showTimeline(report) {
    const key = JSON.stringify([report.outcome, report.spans.length, report.outcome === "starting" ? report.total_s : 0]);
    if (key === drawn) return;
    drawn = key;
    [...report.phases].sort((a, b) => b.share - a.share).forEach((phase) => colourOf(`${phase.process}:${phase.name}`)); // the long ones differ
    const end = Math.max(report.total_s, 0.01, ...report.spans.map((s) => s.end_s));
    const x = (time) => LEFT + (WIDTH - LEFT - RIGHT) * time / end;
    const lanes = new Map([["waited for", [report.critical_path]], ...arrange(report.spans)]);
    const rows = [...lanes.values()].reduce((sum, lane) => sum + lane.length, 0);
    const bottom = TOP + rows * ROW + lanes.size * GAP;
    const chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${bottom + 18}`, role: "img", "aria-label": "Timeline of the start" });
    const step = tickStep(end);
    for (let time = 0; time <= end; time += step) {
      chart.append(shape("line", { class: "grid", x1: x(time), x2: x(time), y1: TOP, y2: bottom }));
      chart.append(shape("text", { x: x(time), y: bottom + 13, "text-anchor": "middle" }, `${+time.toPrecision(3)} s`));
    }
    let top = TOP;
    for (const [name, lane] of lanes) {
      chart.append(shape("text", { x: LEFT - 8, y: top + 14, "text-anchor": "end" }, name));
      for (const row of lane) {
        for (const span of row) chart.append(bar(span, x, top));
        top += ROW;
      }
      top += GAP;
    }
    for (const [name, time] of Object.entries(report.marks)) {
      chart.append(shape("line", { class: "mark", x1: x(time), x2: x(time), y1: TOP - 6, y2: bottom }));
      chart.append(shape("text", { x: x(time) + 3, y: TOP - 8 }, name));
    }
    $("timeline").replaceChildren(chart);
    showPhases(report.phases);
  }

  function bar(span, x, top) {
    const left = x(span.begin_s), width = Math.max(x(span.end_s) - left, 0.7), key = `${span.process}:${span.name}`;
    const group = shape("g", {});
    group.append(shape("title", {}, `${span.process}: ${span.name}\n${round(span.end_s - span.begin_s, 3)} s, from ${round(span.begin_s, 3)} s`));
    group.append(shape("rect", { x: left, y: top, width, height: ROW - 3, rx: 2, fill: colourOf(key), "fill-opacity": span.waits_for ? 0.3 : 1 }));
    const name = span.name.replaceAll("_", " ");
    if (name.length * 5.8 < width - 8) group.append(shape("text", { x: left + 5, y: top + 13, class: span.waits_for ? "" : "in" }, name));
    return group;
  }

  function showPhases(phases) {
    const long = phases.filter((phase) => phase.share >= 0.005), short = phases.length - long.length;
    const rest = element("tr", {}, element("td", { colSpan: 4, className: "rest" }, `and ${short} below 0.5 %`));
    $("phases").tBodies[0].replaceChildren(...long.map((phase) => {
      const dot = element("i", { className: "key" });
      dot.style.background = colourOf(`${phase.process}:${phase.name}`);
      const cells = [round(phase.begin_s, 3), round(phase.took_s, 3), `${round(100 * phase.share)} %`];
      return element("tr", {}, element("td", {}, dot, `${phase.process}: ${phase.name.replaceAll("_", " ")}`), ...cells.map((text) => element("td", {}, text)));
    }), ...(short ? [rest] : []));
  }

  async function refresh() {
    let pause = 2000;
    try {
      const status = await (await fetch("status.json", { cache: "no-store" })).json();
      showState(status);
      showProgress(status);
      showFigures(status.live, status.stopped);
      showTimeline(status.start);
      if (status.status === "starting") pause = 400;
    } catch {
      $("state").textContent = "unreachable";
      $("state").className = "state unreachable";
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, document.hidden ? 10000 : pause);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  refresh();
})();
