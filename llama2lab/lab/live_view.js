// Work that one watches: Start, one large chart that draws itself, what one prompt and one fact come to at every look.

const KINDS = { // how a curve of each kind is drawn
  now: { stroke: "var(--l2p-blue)", "stroke-width": 2.5 },
  looked: { stroke: "var(--l2p-orange)", "stroke-width": 2.5, "stroke-dasharray": "7 4" },
  before: { stroke: "var(--l2p-grey)", "stroke-width": 1.75, "stroke-dasharray": "2 3" },
};
const STARTS = { "not started": "Start", running: "Pause", paused: "Go on", stopped: "Go on", failed: "Try again",
  stopping: "Stopping", done: "Train again" };

function picture(stage, model) {
  const data = model.get("data");
  let shown = model.get("shown"), at = Math.max(0, shown.looks.length - 1), chart = data.charts[0].key, late = null;
  const running = () => ["running", "stopping"].includes(shown.state);

  // ---- what is pressed goes to the kernel, which answers when no cell is in its way
  function ask(message) {
    clearTimeout(late);
    late = setTimeout(() => { words.textContent = "Asked: the kernel does it as soon as the cells that run now are done."; }, 700);
    model.send(message);
  }
  const start = button("Start", () => ask({ press: shown.state === "running" ? "pause" : "start" }));
  start.classList.add("l2w-start");
  const stop = button("Stop", () => ask({ press: "stop" })), anew = button("Begin anew", () => ask({ press: "anew" }));
  stop.title = `Ends after the ${data.unit} under way; the work is kept`;
  anew.title = "Forgets what was done with these choices";
  const choices = data.choices.map((choice) => (choice.live ? steps(choice) : list(choice)));
  const light = node("b", { "aria-hidden": "true" }), words = node("span");
  const aloud = node("p", { class: "l2p-unseen", "aria-live": "polite" });

  /** A list to choose from. Its label stands beside it, so that its name holds no option. */
  function list(choice) {
    const id = `l2w-${Math.random().toString(36).slice(2)}`;
    const select = node("select", { id, change: () => ask({ choose: [choice.name, select.selectedIndex] }) }, ...choice.options.map((option) => node("option", {}, option)));
    const box = node("span", { class: "l2w-choice" }, node("label", { for: id }, choice.words), select);
    box.set = (to) => { select.selectedIndex = to; };
    return box;
  }
  /** A slider that acts on work under way. */
  function steps(choice) {
    const row = slider(choice.words, { min: 0, max: choice.options.length - 1, value: 0, say: (to) => choice.options[to],
      change: (to) => ask({ choose: [choice.name, to] }) }), set = row.set;
    row.set = (to) => { if (!row.contains(document.activeElement)) set(to); }; // an echo does not pull at a hand
    return row;
  }

  // ---- the parts
  const tabs = data.charts.map((one) => button(one.words, () => { chart = one.key; fit.again(); }, { pressed: one.key === chart }));
  const board = node("div"), legend = node("ul", { class: "l2w-legend" });
  const film = player(Math.max(1, shown.looks.length), see, { name: "seen at", pause: 500,
    say: (i) => (shown.looks[i] ? `${data.unit} ${shown.looks[i].step}` : "") });
  const text = node("p", { class: "l2w-now" }), note = node("p", { class: "faint" }), texts = node("ol", { class: "l2w-texts" });
  const fact = data.fact ? bars(data.fact) : null;
  const cards = node("div", { class: fact ? "l2w-cards" : "l2w-cards alone" },
    node("div", { class: "l2w-card" }, node("p", { class: "faint" }, data.asked), node("p", {}, node("strong", {}, `“${data.prompt}”`)),
      text, note, texts), fact?.card);
  const sheet = node("div", { class: "l2w-table" });
  stage.classList.add("l2w");
  stage.append(
    node("h3", { class: "l2p-title" }, data.title),
    node("p", { class: "l2p-note" }, `${data.does} ${data.sees}`),
    node("div", { class: "l2p-bar" }, start, stop, anew, ...choices),
    node("p", { class: "l2w-said" }, light, words),
    tabs.length > 1 ? node("div", { class: "l2p-bar", role: "group", "aria-label": "chart" }, ...tabs) : "",
    board, legend, film.bar, cards, sheet, aloud);

  /** One fact: the true token and its rivals; the dashed line is what the finished model gives. */
  function bars(asked) {
    const row = (kind) => {
      const name = node("span"), fill = node("div"), value = node("span"), track = node("div", { class: "l2w-track" }, fill);
      return { box: node("div", { class: `l2w-bar ${kind}`, role: "listitem" }, name, track, value), name, fill, value, track };
    };
    const goal = asked.goal.fact, rows = [row("l2w-true"), ...goal.rivals.map(() => row(""))], rank = node("p", { class: "faint" });
    const percent = (p) => (p < 1 && p >= 0.99 ? `${Math.min(99.9, 100 * p).toFixed(1)} %` : p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
    const past = canvas(280, 96, "probability of the true token at every look so far"), high = scale(0, 1, 82, 16);
    const way = shape("path", { fill: "none", stroke: "var(--l2p-blue)", "stroke-width": 2.5, "stroke-linejoin": "round" });
    const dot = shape("circle", { r: 5, fill: "var(--l2p-blue)", stroke: "var(--l2p-bg)", "stroke-width": 2 });
    for (const p of [0, 1]) past.append(shape("line", { x1: 46, x2: 276, y1: high(p), y2: high(p), stroke: "var(--l2p-line)" }),
      shape("text", { x: 40, y: high(p) + 4, "text-anchor": "end", "font-size": 12, class: "faint" }, percent(p).replace("< 0.1 %", "0")));
    past.append(shape("line", { x1: 46, x2: 276, y1: high(goal.true[1]), y2: high(goal.true[1]), stroke: "var(--l2p-text)",
      "stroke-dasharray": "4 3", "stroke-width": 1.5 }), way, dot);
    rows[0].track.append(node("i", { style: `left: ${100 * goal.true[1]}%`, title: asked.goal_by }));
    const card = node("div", { class: "l2w-card" },
      node("p", { class: "faint" }, "One fact: what comes next?"),
      node("p", {}, node("strong", {}, `“${asked.asked} …”`), ` true: ${asked.value}`),
      node("div", { role: "list", "aria-label": "probabilities of the next token" }, ...rows.map((one) => one.box)), rank, past,
      node("p", { class: "faint" }, `Dashed: ${asked.goal_by}, ${percent(goal.true[1])}. Rivals: the likeliest other tokens at this look.`));
    card.show = (look, i) => {
      const found = look?.fact ?? goal;
      [found.true, ...found.rivals].slice(0, rows.length).forEach(([token, p], i) => {
        rows[i].name.textContent = i ? token : `✓ ${token}`;
        rows[i].fill.style.width = `${100 * p}%`;
        rows[i].value.textContent = percent(p);
      });
      rank.textContent = look ? `Place of the true token among all: ${found.rank.toLocaleString("en")}. So far:` : `So says ${asked.goal_by}.`;
      const x = scale(...shown.ends, 46, 276), seen = look ? shown.looks.slice(0, i + 1) : [];
      way.setAttribute("d", seen.length ? "M" + seen.map((one) => `${x(one.x)} ${high(one.fact.true[1])}`).join("L") : "M0 0");
      past.style.display = dot.style.display = look ? "" : "none";
      if (look) for (const [name, value] of [["cx", x(look.x)], ["cy", high(found.true[1])]]) dot.setAttribute(name, value);
    };
    return { card, show: card.show };
  }

  // ---- the chart
  let parts = null;
  const fit = fitted(board, (width) => { parts = lay(width); mark(); });

  function lay(wide) {
    const one = data.charts.find((c) => c.key === chart), lines = shown.lines[chart] ?? [];
    const narrow = wide < 460, left = 50, right = wide - 12, top = 30, low = narrow ? 230 : 310;
    const values = lines.flatMap((line) => line.points.flatMap((p) => p.slice(1)));
    if (one.level) values.push(one.level[0]);
    const bare = !values.length;  // an axis without numbers
    if (one.from_zero || bare) values.push(0);
    const marks = bare ? [0, 1] : ticks(Math.min(...values), Math.max(...values, Math.min(...values) + 1e-6));
    const y = scale(marks[0], marks.at(-1), low, top), ends = shown.ends[1] > shown.ends[0] ? shown.ends : [0, 1];
    const x = scale(...ends, left, right), svg = canvas(wide, low + 44, `${one.words} by ${data.x}`);
    const write = (px, py, said, more = {}) => shape("text", { x: px, y: py, "font-size": 12, class: "faint", ...more }, said);
    svg.append(write(0, 14, one.y), write((left + right) / 2, low + 38, data.x, { "text-anchor": "middle" }));
    for (const value of bare ? [] : marks) svg.append(
      shape("line", { x1: left, x2: right, y1: y(value), y2: y(value), stroke: "var(--l2p-line)", opacity: 0.55 }),
      write(left - 8, y(value) + 4, short(value).replace("-", "−"), { "text-anchor": "end" }));
    if (shown.ends[1] > shown.ends[0]) for (const value of ticks(...ends, narrow ? 4 : 8))
      if (value <= ends[1] && value >= ends[0]) svg.append(write(x(value), low + 20, short(value), { "text-anchor": "middle" }));
    if (one.level) svg.append(
      shape("line", { x1: left, x2: right, y1: y(one.level[0]), y2: y(one.level[0]), stroke: "var(--l2p-faint)", "stroke-dasharray": "1 4", "stroke-width": 2 }),
      write(right, y(one.level[0]) - 6, `${one.level[1]}: ${short(one.level[0])}`, { "text-anchor": "end" }));
    const id = `l2w-${Math.random().toString(36).slice(2)}`, clip = shape("rect", { x: 0, y: 0, height: low + 40, width: wide });
    const drawn = lines.map((line) => curve(line, x, y));
    const cursor = shape("line", { y1: top - 8, y2: low, stroke: "var(--l2p-text)", "stroke-width": 1.25, opacity: 0.6 });
    const dots = shape("g");
    svg.append(shape("clipPath", { id }, clip), shape("g", { opacity: 0.28 }, ...drawn),
      shape("g", { "clip-path": `url(#${id})` }, ...drawn.map((path) => path.cloneNode(true))), cursor, dots);
    if (!lines.some((line) => line.points.length))
      svg.append(write((left + right) / 2, (top + low) / 2, running() ? "The first step is under way"
        : "Press Start: the curve draws itself here", { "text-anchor": "middle", "font-size": 15,
        style: "paint-order: stroke; stroke: var(--l2p-bg); stroke-width: 8px" }));
    const nearest = (event) => {
      const box = svg.getBoundingClientRect(), here = ((event.clientX - box.left) * wide) / box.width;
      const far = (i) => Math.abs(x(shown.looks[i].x) - here);
      return shown.looks.reduce((best, _, i) => (far(i) < far(best) ? i : best), 0);
    };
    svg.addEventListener("click", (event) => { if (shown.looks.length && !running()) { film.stop(); film.go(nearest(event)); } });
    board.replaceChildren(svg);
    legend.replaceChildren(...lines.filter((line) => line.points.length).map((line) => node("li", {},
      shape("svg", { viewBox: "0 0 34 12", "aria-hidden": "true" }, shape("path", { d: "M1 6H33", fill: "none", ...KINDS[line.kind] })), line.name)));
    tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(data.charts[i].key === chart)));
    return { x, y, lines, clip, cursor, dots };
  }

  function curve(line, x, y) {
    const beside = line.kind === "before" ? 5 : 0; // two intervals at one place would hide each other
    const place = (p) => (x(p[0]) + (p.length > 2 ? beside : 0)).toFixed(1);
    const path = "M" + line.points.map((p) => `${place(p)} ${y(p[1]).toFixed(1)}`).join("L");
    const bars = line.points.filter((p) => p.length > 2)
      .map((p) => `M${place(p)} ${y(p[2]).toFixed(1)}V${y(p[3]).toFixed(1)}`);
    return shape("g", { fill: "none", ...KINDS[line.kind] },
      line.points.length ? shape("path", { d: path, "stroke-linejoin": "round" }) : null,
      bars.length ? shape("path", { d: bars.join(""), "stroke-dasharray": "none", "stroke-width": 1.25 }) : null,
      ...(line.kind === "now" && line.points.length > 60 ? [] : line.points.map((p) => shape("circle", { cx: place(p),
        cy: y(p[1]).toFixed(1), r: line.kind === "before" ? 2 : 3, fill: KINDS[line.kind].stroke, stroke: "none" }))));
  }

  /** Where the look that is seen stands in the chart. */
  function mark() {
    const look = shown.looks[at], here = look && parts.x(look.x);
    parts.cursor.style.display = look && !running() ? "" : "none";
    parts.dots.replaceChildren();
    if (!look) return;
    const last = at === shown.looks.length - 1;
    parts.clip.setAttribute("width", last ? 2000 : here + 1.5);
    parts.cursor.setAttribute("x1", here);
    parts.cursor.setAttribute("x2", here);
    for (const line of parts.lines) {
      const point = line.kind !== "before" && line.points.find((p) => Math.abs(p[0] - look.x) < 1e-6);
      if (point) parts.dots.append(shape("circle", { cx: here, cy: parts.y(point[1]), r: 6, fill: KINDS[line.kind].stroke,
        stroke: "var(--l2p-bg)", "stroke-width": 2 }));
    }
  }

  // ---- a look
  function see(i) {
    at = i;
    const look = shown.looks[i];
    text.textContent = look ? look.text || "(nothing)" : "(nothing yet)";
    note.textContent = look ? [`At ${data.unit} ${look.step}`, look.note].filter(Boolean).join(": ") : "";
    const rows = few(shown.looks.slice(0, i)).map((one) => [`${data.unit} ${one.step}`, one.text || "(nothing)"]);
    if (data.fact) rows.push([data.fact.goal_by, data.fact.goal.text]);
    texts.hidden = !rows.length;
    texts.replaceChildren(...rows.map(([name, said]) => node("li", {}, node("span", {}, name), node("span", {}, said))));
    fact?.show(look, i);
    if (parts) mark();
  }

  function update() {
    const before = shown.state, follows = at >= shown.looks.length - 1;
    shown = model.get("shown");
    clearTimeout(late);
    draw();
    if (shown.state !== before) aloud.textContent = shown.said;
    film.grow(Math.max(1, shown.looks.length));
    if (running()) film.stop();
    film.go(follows || running() ? shown.looks.length - 1 : at);
    fit.again();
  }

  function draw() {
    start.textContent = STARTS[shown.state];
    start.setAttribute("aria-label", start.textContent);
    start.disabled = shown.state === "stopping";
    stop.disabled = !["running", "paused"].includes(shown.state);
    anew.disabled = !["stopped", "failed"].includes(shown.state);
    choices.forEach((choice, i) => choice.set(shown.at[i]));
    words.textContent = shown.said;
    text.setAttribute("aria-live", running() ? "off" : "polite"); // while it runs, a look a second is too much to say
    light.className = shown.state;
    film.bar.hidden = running() || shown.looks.length < 2;
    sheet.replaceChildren();
    if (shown.table) sheet.append(node("table", {},
      node("thead", {}, node("tr", {}, ...shown.table[0].map((name) => node("th", { scope: "col" }, name)))),
      node("tbody", {}, ...shown.table[1].map((row) => node("tr", {}, ...row.map((cell) => node("td", {}, cell)))))));
  }

  draw();
  film.go(at);
  const wait = onceSeen(stage, () => { if (!film.bar.hidden) film.start(); });
  model.on("change:shown", update);
  return () => { film.stop(); fit.leave(); wait(); clearTimeout(late); model.off("change:shown", update); };
}

/** Round numbers from at or below `low` to at or above `high`. */
function ticks(low, high, about = 5) {
  const rough = Math.max((high - low) / about, 1e-12), ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * ten).find((n) => n >= rough * 0.999), found = [];
  for (let i = Math.floor(low / step + 1e-9); ; i++) {
    found.push(Number((i * step).toPrecision(12)));
    if (i * step >= high - 1e-9 * step) return found;
  }
}

/** At most four, the first among them. */
function few(rows) {
  const count = Math.min(4, rows.length);
  return [...Array(count).keys()].map((i) => rows[Math.floor((i * rows.length) / count)]);
}
