"use strict";
// Polls status.json and draws it; text from the server is inserted as text, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = ["#3a7bd5", "#2f9e6b", "#c2571a", "#8a5cc2", "#b8860b", "#c13f6b", "#1a8f9e", "#6b7a1f", "#7a5540", "#5470c6"];
  const WIDTH = 980, LEFT = 92, LEFT_OF_STARTS = 56, RIGHT = 8, ROW = 21, TOP = 20, GAP = 5;
  const colours = new Map();
  const asked = new Map(); // models for which a button was pressed, with what it does
  const rows = new Map(); // of models, by id
  const chatButtons = makeButtons(() => $("chat-model").value);
  let earlier = null, timer = 0, drawn = "", hasChosen = false;

  const colourOf = (key) => {
    if (!colours.has(key)) colours.set(key, COLOURS[colours.size % COLOURS.length]);
    return colours.get(key);
  };
  const shape = (name, attributes, ...texts) => foreign(SVG, name, attributes, ...texts);
  const ms = (seconds) => seconds >= 1 ? `${round(seconds)} s` : `${round(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms`;
  const bytes = (count) => count === null ? "–" : count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(0)} MiB`;
  const age = (seconds) => {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].map(([size, unit], at, all) => `${Math.floor((at ? seconds % all[at - 1][0] : seconds) / size)} ${unit}`);
    const first = parts.findIndex((part) => !part.startsWith("0 "));
    return parts.slice(first < 0 ? 3 : first).slice(0, 2).join(" ");
  };

  function showState(status) {
    $("state").textContent = status.status;
    $("state").className = `state ${status.status}`;
    $("footer").textContent = `vllm-cli ${status.version ?? ""}`.trim();
  }

  function showTitle(status) {
    $("model").textContent = status.model;
    document.title = `${status.status} – ${status.model}`;
    $("note").textContent = status.error ?? (status.live ? `up ${age(status.live.uptime_s)}` : "");
  }

  function showProgress(status) {
    $("progress").hidden = status.status !== "starting";
    if ($("progress").hidden) return;
    const { phase, progress, elapsed_s: elapsed, eta_s: eta, detail } = status.progress;
    $("progress").replaceChildren(...progressParts(`${phase}${detail ? `: ${detail}` : ""} – ${round(elapsed)} s`, progress, eta));
  }

  const card = (name, value, more = "") => element("div", { className: "card" }, element("span", {}, name), element("b", {}, value), element("small", {}, more));

  function showFigures(live) {
    if (!live) { $("figures").replaceChildren(); earlier = null; return; }
    const took = earlier ? live.time_s - earlier.time_s : 0;
    const rate = (name) => took > 0 ? round(Math.max(0, live[name] - earlier[name]) / took) : "–";
    const hits = live.prefix_cache_queries ? `${round(100 * live.prefix_cache_hits / live.prefix_cache_queries)} % prefix hits` : "no prefix looked up yet";
    $("figures").replaceChildren(
      card("Requests running", String(live.num_running), `${live.num_waiting} waiting`),
      card("Output tokens/s", rate("generation_tokens"), `${live.generation_tokens.toLocaleString("en")} in all`),
      card("Prompt tokens/s", rate("prompt_tokens"), `${live.prompt_tokens.toLocaleString("en")} computed in all`),
      card("KV cache", `${round(100 * live.kv_cache_usage)} %`, hits),
      ...(live.loop_lag_p99_s == null ? [] : [card("Event loop delay", ms(live.loop_lag_p99_s), `p99; p50 ${round(live.loop_lag_p50_s * 1000)}, max ${ms(live.loop_lag_max_s)}`)]),
      card("Memory", bytes(live.memory_bytes), "of all processes"),
    );
    earlier = live;
  }

  const BUTTONS = { stopped: ["load"], failed: ["load"], starting: ["unload"], ready: ["unload", "sleep"], asleep: ["load", "unload"] };

  // A router: one row for each model. Of its only model, the page is that of the model's server while that runs.
  function showModels(status) {
    const router = status.router, models = status.models, memory = models.reduce((sum, model) => sum + (model.memory_bytes ?? 0), 0);
    const count = (state) => models.filter((model) => model.status === state).length;
    $("model").textContent = models.length === 1 ? models[0].id : `${models.length} models`;
    earlier = null;
    $("note").textContent = `${count("ready")} ready, up ${age(router.uptime_s)}`;
    document.title = `${count("ready")} of ${models.length} ready – vllm-cli`;
    $("figures").replaceChildren(
      card("Requests running", String(models.reduce((sum, model) => sum + model.num_running, 0)), `${models.reduce((sum, model) => sum + model.num_waiting, 0)} waiting`),
      card("Models ready", String(count("ready")), router.max_running === null ? `${count("starting")} starting` : `at most ${router.max_running}`),
      card("Their memory", bytes(memory), router.memory_budget_bytes === null ? "" : `budget ${bytes(router.memory_budget_bytes)}`),
      card("Router", bytes(router.memory_bytes), router.standby_bytes ? `standby ${bytes(router.standby_bytes)}` : "no standby"),
    );
    const body = document.querySelector("#models tbody");
    const shown = models.map((model) => rowOf(model.id));
    if (shown.length !== body.children.length || shown.some((row, at) => row !== body.children[at])) body.replaceChildren(...shown);
    models.forEach((model) => fillRow(rowOf(model.id), model, router.needs_key && !apiKey.get()));
    drawStarts(status.starts, status.time_s);
  }

  // A row stays the same element, so that a click on its button is not lost while the page is drawn again.
  function rowOf(id) {
    if (!rows.has(id)) {
      const cells = [...document.querySelectorAll("#models th")].map((head) => element("td", { title: head.textContent }));
      cells.at(-1).append(...makeButtons(() => id));
      rows.set(id, element("tr", {}, ...cells));
    }
    return rows.get(id);
  }

  function makeButtons(idOf) {
    return ["", ""].map((name) => button(name, (self) => change(idOf(), self.textContent)));
  }

  function fillButtons(buttons, model, needsKey) {
    const verbs = asked.has(model.id) ? [asked.get(model.id)] : BUTTONS[model.status] ?? [];
    buttons.forEach((button, at) => {
      const verb = verbs[at];
      button.hidden = needsKey || !verb || (verb === "sleep" && !model.can_sleep);
      button.disabled = asked.has(model.id);
      if (verb && button.textContent !== verb) button.textContent = verb;
      button.setAttribute("aria-label", `${verb} ${model.id}`);
    });
  }

  const stateParts = (model) => [
    element("span", { className: `state ${model.status}` }, model.status),
    ...(model.status === "starting" && model.progress ? progressParts(model.progress.phase, model.progress.fraction, model.progress.remaining_s) : []),
  ];

  function fillRow(row, model, needsKey) {
    const [name, state, ...cells] = row.children;
    const dot = element("i", { className: "key" });
    dot.style.background = colourOf(model.id);
    const more = [model.aliases.join(", "), model.pinned ? "pinned" : "", model.engine].filter((text) => text);
    const reason = model.reason ? [element("small", { className: "failed" }, model.reason)] : [];
    name.replaceChildren(dot, model.id, element("small", {}, more.join(" · ")), ...reason);
    state.replaceChildren(...stateParts(model));
    const last = model.last_start_s === null ? "–" : ms(model.last_start_s);
    [age(model.for_s), bytes(model.memory_bytes), model.num_running, model.num_waiting, model.num_starts, last].forEach((text, at) => { cells[at].textContent = String(text); });
    fillButtons([...row.querySelectorAll("button")], model, needsKey);
  }

  // The chat is shown once a server answers, with the models of a router or with live figures.
  function showChat(status) {
    const models = status.models ?? (status.live ? [{ id: status.model, takes_images: status.modalities?.includes("image") }] : null);
    if (models === null || !models.length) return;
    $("bar").hidden = false;
    if (!hasChosen) { choose("chat"); $("prompt").focus(); }
    const needsKey = (status.router ?? status).needs_key;
    if (needsKey) chat.showKey();
    const model = chat.showModels(models);
    const isRouter = status.models !== undefined;
    $("chat-state").replaceChildren(...(isRouter && model ? stateParts(model) : []));
    chatButtons.forEach((button) => { button.hidden = true; });
    if (isRouter && model) fillButtons(chatButtons, model, needsKey && !apiKey.get());
  }

  function choose(name) {
    hasChosen = true;
    for (const each of ["chat", "status"]) {
      $(each).hidden = each !== name;
      $(`${each}-tab`).setAttribute("aria-selected", String(each === name));
      $(`${each}-tab`).tabIndex = each === name ? 0 : -1;
    }
    $("chat-bar").hidden = name !== "chat";
  }

  function progressParts(phase, share, left) {
    const bar = element("div", { className: "bar" }), text = [phase?.replaceAll("_", " "), left == null ? "" : `${round(left)} s left`];
    bar.style.width = `${100 * (share ?? 0)}%`;
    return [element("div", { className: "track", hidden: share === null }, bar), element("small", {}, text.filter((part) => part).join(", "))];
  }

  // The answer comes when the model has started, sleeps or has stopped.
  async function change(id, verb) {
    asked.set(id, verb);
    setTimeout(refresh, 100);
    try {
      const answer = await fetch(`v1/models/${id.split("/").map(encodeURIComponent).join("/")}/${verb}`, { method: "POST", headers: apiKey.headers() });
      if (answer.status === 401) chat.showKey(true);
      $("outcome").textContent = answer.ok ? `${id}: ${(await answer.json()).status}` : `${id}: ${await errorText(answer)}`;
    } catch {
      $("outcome").textContent = `${id}: no answer`;
    }
    asked.delete(id);
    refresh();
  }

  // Each start is a line: across, when it began; its height, how long it took. The chart is as wide as the window allows.
  function drawStarts(starts, now) {
    const width = Math.min(WIDTH, Math.max(280, innerWidth - 60)), left = LEFT_OF_STARTS, right = width - RIGHT;
    const ended = starts.filter((start) => start.took_s !== null), height = 130, bottom = height - 18;
    const begin = Math.min(now - 60, ...ended.map((start) => start.begin_s)), most = Math.max(0.1, ...ended.map((start) => start.took_s));
    const x = (time) => left + (right - left - 4) * (time - begin) / (now - begin), y = (took) => bottom - (bottom - TOP) * took / most;
    const chart = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Duration of the starts" });
    for (const took of [0, most / 2, most]) {
      chart.append(shape("line", { class: "grid", x1: left, x2: right, y1: y(took), y2: y(took) }));
      chart.append(shape("text", { x: left - 8, y: y(took) + 4, "text-anchor": "end" }, took ? ms(took) : "0 s"));
    }
    for (const share of width < 600 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
      const ago = (1 - share) * (now - begin);
      chart.append(shape("text", { x: x(begin + share * (now - begin)), y: height - 3, "text-anchor": share === 1 ? "end" : "middle" }, ago < 1 ? "now" : `${age(ago)} ago`));
    }
    for (const { model, begin_s: at, took_s: took, outcome } of ended) {
      const line = shape("rect", { x: x(at) - 2, y: Math.min(y(took), bottom - 3), width: 4, height: Math.max(bottom - y(took), 3), rx: 2, ...(outcome === "failed" ? { class: "failed" } : { fill: colourOf(model) }) });
      line.append(shape("title", {}, `${model}: ${outcome} after ${ms(took)}, ${age(now - at)} ago`));
      chart.append(line);
    }
    $("starts").replaceChildren(chart);
  }

  // Bars that overlap in one process lie in different rows.
  function arrange(spans) {
    const lanes = new Map();
    for (const span of spans.filter((s) => s.end_s > s.begin_s)) {
      if (!lanes.has(span.process)) lanes.set(span.process, []);
      const rows = lanes.get(span.process), free = rows.find((row) => row.at(-1).end_s <= span.begin_s + 1e-6);
      if (free) free.push(span); else rows.push([span]);
    }
    return lanes;
  }

  function showTimeline(report) {
    $("compiled").textContent = report.compiled_model ? `Compiled model: ${report.compiled_model.text}` : "";
    const key = JSON.stringify([report.outcome, report.spans.length, report.outcome === "starting" ? report.total_s : 0]);
    if (key === drawn) return;
    drawn = key;
    [...report.phases].sort((a, b) => b.share - a.share).forEach((phase) => colourOf(`${phase.process}:${phase.name}`)); // the long ones differ
    const end = Math.max(report.total_s, 0.01, ...report.spans.map((s) => s.end_s));
    const x = (time) => LEFT + (WIDTH - LEFT - RIGHT) * time / end;
    const lanes = arrange(report.spans);
    const rows = [...lanes.values()].reduce((sum, lane) => sum + lane.length, 0);
    const bottom = TOP + rows * ROW + lanes.size * GAP;
    const chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${bottom + 18}`, role: "img", "aria-label": "Timeline of the start" });
    const magnitude = 10 ** Math.floor(Math.log10(end / 9)), step = magnitude * [1, 2, 5, 10].find((factor) => factor * magnitude >= end / 9 * 0.999);
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
      const status = await (await fetch("status.json", { cache: "no-store", headers: apiKey.headers() })).json();
      const isRouter = status.models !== undefined;
      $("models").hidden = !isRouter;
      $("start").hidden = isRouter;
      $("progress").hidden = true;
      showState(status);
      showChat(status);
      if (isRouter) {
        showModels(status);
        if (status.models.some((model) => model.status === "starting") || asked.size || chat.isWaiting()) pause = 400;
      } else {
        showTitle(status);
        showProgress(status);
        showFigures(status.live);
        showTimeline(status.start);
        if (status.status === "starting") pause = 400;
      }
    } catch {
      $("state").textContent = "unreachable";
      $("state").className = "state unreachable";
      $("note").textContent = "";
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, document.hidden ? 10000 : pause);
  }
  for (const [name, other] of [["chat", "status"], ["status", "chat"]]) {
    $(`${name}-tab`).addEventListener("click", () => { choose(name); scrollTo(0, name === "chat" ? document.body.scrollHeight : 0); });
    $(`${name}-tab`).addEventListener("keydown", ({ key }) => {
      if (key === "ArrowLeft" || key === "ArrowRight") { choose(other); $(`${other}-tab`).focus(); }
    });
  }
  $("chat-state").after(...chatButtons);
  chat.begin(refresh);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  refresh();
})();
