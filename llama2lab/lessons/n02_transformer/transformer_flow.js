// Transformer flow: the question's way through the model, one part large beside a map of the whole. Nothing is computed
// here: all tables come with the data, see transformer_flow.py.

const FLOW_STYLE = `
.l2p-flow-tokens { display: flex; flex-wrap: wrap; gap: 4px; margin: 8px 0 4px; font: 13px var(--l2p-mono); }
.l2p-flow-tokens > * { display: inline-flex; align-items: center; min-height: 26px; padding: 2px 7px; border: 1px solid var(--l2p-line); border-radius: 5px;
  background: var(--l2p-sunk); color: inherit; font: inherit; }
.l2p-flow-tokens button { cursor: pointer; background: transparent; }
.l2p-flow-tokens .new { border-color: var(--l2p-green); box-shadow: inset 0 -3px var(--l2p-green); }
.l2p-flow-tokens .ahead { border-style: dashed; color: var(--l2p-faint); }
.l2p-flow-body { display: grid; grid-template-columns: 156px minmax(0, 1fr); gap: 8px 18px; align-items: start; }
.l2p-flow-map { display: flex; flex-direction: column; gap: 2px; border-left: 3px solid var(--l2p-line); }
.l2p-flow-map button { position: relative; min-height: 25px; padding: 1px 8px; border: 0; border-radius: 0 6px 6px 0;
  background: transparent; color: inherit; font: 13px var(--l2p-font); text-align: left; cursor: pointer; }
.l2p-flow-map button:hover { background: var(--l2p-sunk); }
.l2p-flow-map button[aria-current="step"] { background: var(--l2p-blue); color: var(--l2p-bg); font-weight: 600; }
.l2p-flow-layer { display: flex; flex-direction: column; gap: 2px; padding: 3px 0; border: 1px solid var(--l2p-line);
  border-left: 0; border-radius: 0 8px 8px 0; }
.l2p-flow-layer .branch { margin-left: 14px; border-left: 2px solid var(--l2p-line); border-radius: 0 6px 6px 0; }
.l2p-flow-layers { display: flex; align-items: center; gap: 2px; padding: 0 6px; font-size: 12px; color: var(--l2p-faint); }
.l2p-flow-layers button { min-width: 23px; padding: 1px 6px; border-radius: 5px; text-align: center; }
.l2p-flow-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 10px; }
.l2p-flow-head strong { font-size: 18px; } .l2p-flow-head span { color: var(--l2p-faint); }
.l2p-flow-does { min-height: 42px; margin: 0 0 6px; }
.l2p-flow-read { min-height: 28px; margin: 0 0 8px; padding: 4px 8px; border-radius: 6px; background: var(--l2p-sunk);
  font-size: 13px; font-variant-numeric: tabular-nums; }
.l2p-flow-set { display: flex; flex-wrap: wrap; gap: 10px; }
.l2p-flow-group { flex: 1 1 100%; min-width: 0; padding: 2px 0 2px 8px; border-left: 4px solid var(--l2p-green); }
.l2p-flow-group.second { border-left: 4px double var(--l2p-pink); }
.l2p-flow-group > div { display: flex; align-items: flex-end; gap: 4px 10px; }
.l2p-flow-group .l2p-flow-matrix { flex: 1 1 0; min-width: 0; } .l2p-flow-group > div > .l2p-flow-rows { margin-right: -5px; }
.l2p-flow-matrix { flex: 1 1 100px; min-width: 90px; margin: 0; }
.l2p-flow-matrix figcaption { font-size: 12px; line-height: 1.4; } .l2p-flow-matrix figcaption i { color: var(--l2p-faint); font-style: normal; }
.l2p-flow-cells { display: flex; gap: 5px; }
.l2p-flow-rows, .l2p-flow-columns { font: 12px var(--l2p-mono); color: var(--l2p-faint); }
.l2p-flow-rows { flex: 0 0 auto; max-width: 45%; overflow: hidden; text-align: right; }
.l2p-flow-rows div { display: flex; align-items: center; justify-content: flex-end; line-height: 1; white-space: nowrap; }
.l2p-flow-columns { display: flex; } .l2p-flow-columns div { flex: 1; min-width: 0; display: flex; align-items: center;
  writing-mode: vertical-rl; line-height: 1; white-space: nowrap; padding-top: 3px; }
.l2p-flow-cells svg { display: block; width: 100%; cursor: crosshair; background: var(--l2p-sunk); }
.l2p-flow-bar .l2p-note { margin: 0; }
.l2p-flow-side { flex: 1; min-width: 0; }
.l2p-flow-bar { display: grid; grid-template-columns: 84px 1fr 62px 84px; gap: 8px; align-items: center; min-height: 26px;
  font-variant-numeric: tabular-nums; } .l2p-flow-bar code { font: 13px var(--l2p-mono); text-align: right; }
.l2p-flow-bar i { display: block; height: 16px; min-width: 1px; border-radius: 3px; background: var(--l2p-blue); }
.l2p-flow-bar.taken i { background: var(--l2p-green); } .l2p-flow-bar.taken { font-weight: 600; }
.l2p-flow-chips { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px; }
.l2p-flow-chips div { padding: 6px 8px; border: 1px solid var(--l2p-line); border-radius: 6px; font-size: 12px; color: var(--l2p-faint); }
.l2p-flow-chips code { display: block; font: 600 15px var(--l2p-mono); color: var(--l2p-text); }
@container (max-width: 760px) { .l2p-flow-columns.many { display: none; } }
@container (max-width: 600px) { .l2p-flow-body { grid-template-columns: minmax(0, 1fr); }
  .l2p-flow-map, .l2p-flow-layer { flex-flow: row wrap; } .l2p-flow-layer .branch { margin-left: 0; border-left: 0; } }
@media (prefers-reduced-motion: no-preference) { .l2p-flow-in { animation: l2p-flow-in 0.35s ease; } }
@keyframes l2p-flow-in { from { opacity: 0; transform: translateX(-8px); } }`;

function picture(stage, model) {
  const data = model.get("data"), depth = data.layers.length, whole = data.words.length, asked = data.asked;
  const group = data.heads / data.kv_heads, dim = data.embedded.rows[0].length;
  const keys = data.parts.map((one) => one.key);
  const inner = keys.slice(keys.indexOf("embed") + 1, keys.indexOf("final"));
  const film = filmOf();
  let view = film[0];

  /** The whole way for the question; for each further token its column of the cache, its looks and what follows. */
  function filmOf() {
    const steps = [];
    const add = (key, layer, read) => steps.push({ key, layer, read });
    add("tokens", 0, asked);
    add("embed", 0, asked);
    for (let layer = 0; layer < depth; layer++) for (const key of inner) add(key, layer, asked);
    add("final", depth - 1, asked);
    add("logits", depth - 1, asked);
    for (let read = asked + 1; read <= whole; read++) {
      add("cache", depth - 1, read);
      for (let layer = 0; layer < depth; layer++) add("softmax", layer, read);
      add("logits", depth - 1, read);
    }
    return steps;
  }
  const same = (one, other) => one.key === other.key && one.read === other.read && (!inner.includes(one.key) || one.layer === other.layer);
  const name = (key) => data.parts.find((one) => one.key === key).name;
  const minus = (text) => text.replace("-", "−");

  /** To a view: the film's own step where it has one, else a look aside. */
  function see(to) {
    film_.stop();
    const step = film.findIndex((one) => same(one, to));
    if (step >= 0) film_.go(step);
    else draw(to);
  }

  // ---- the map
  const marks = {};
  const mark = (key, branch) => (marks[key] = node("button", { type: "button", class: branch ? "branch" : null, tabindex: -1,
    click: () => see({ ...view, key, read: key === "cache" ? Math.max(view.read, Math.min(whole, asked + 1)) : view.read }) }, name(key)));
  const layers = [...Array(depth).keys()].map((layer) => node("button", { type: "button", tabindex: -1, "aria-label": `layer ${layer + 1}`,
    click: () => see({ ...view, layer, key: inner.includes(view.key) ? view.key : "softmax" }) }, String(layer + 1)));
  const map = node("div", { class: "l2p-flow-map", role: "toolbar", "aria-orientation": "vertical", "aria-label": "map of the model", keydown: (event) => {
    const all = [...map.querySelectorAll("button")], at = all.indexOf(event.target);
    const to = { ArrowUp: at - 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    all[to]?.focus();
    event.preventDefault();
  } }, mark("tokens"), mark("embed"),
    node("div", { class: "l2p-flow-layer", role: "group", "aria-label": "a layer" }, node("div", { class: "l2p-flow-layers" }, "layer", ...layers),
      ...inner.map((key) => mark(key, !key.startsWith("add")))),
    mark("final"), mark("logits"), mark("cache"));

  // ---- one table as a heat map
  const read = node("div", { class: "l2p-flow-read", "aria-live": "polite" });

  /** `table` {unit, rows} with a name; `columns` "numbers" or "keys"; `turn` draws tokens as columns, with room for all. */
  function heat(title, table, { columns = "numbers", labels = false, masked = false, old = false, high = 14, turn = false, unit = "number", most } = {}) {
    const tokens = view.read, square = columns === "keys", wide = square ? tokens : table.rows[0].length;
    const value = (i, j) => table.rows[i][j] * table.unit, hidden = (i, j) => masked && j > i;
    if (!most) { // all but the few largest numbers have a shade of their own
      const sizes = table.rows.slice(0, tokens).flatMap((row) => row.slice(0, wide).map(Math.abs)).sort((a, b) => a - b);
      most = sizes[Math.floor(sizes.length * 0.98)] || 1;
    }
    const paths = {}, crosses = [];
    for (let i = 0; i < tokens; i++) for (let j = 0; j < wide; j++) {
      if (hidden(i, j)) { crosses.push(`M${j + 0.2} ${i + 0.8}l0.6 -0.6`); continue; }
      const number = table.rows[i][j], level = Math.min(8, Math.round((8 * Math.abs(number)) / most));
      if (!level) continue;
      const at = `${number < 0 ? "orange" : "blue"} ${level} ${old && i < tokens - 1 ? 0.4 : 1}`;
      (paths[at] ??= []).push(turn ? `M${i} ${j}h1v1h-1z` : `M${j} ${i}h1v1h-1z`);
    }
    const box = turn ? [whole, wide] : [wide, tokens];
    const cursor = shape("rect", { width: 1, height: 1, fill: "none", stroke: "var(--l2p-text)", "stroke-width": 2, "vector-effect": "non-scaling-stroke", visibility: "hidden" });
    const svg = shape("svg", { viewBox: `0 0 ${box[0]} ${box[1]}`, preserveAspectRatio: "none", style: `height: ${turn ? 64 : high * tokens}px`, "aria-hidden": "true" },
      ...Object.entries(paths).map(([at, d]) => { const [hue, level, strong] = at.split(" ");
        return shape("path", { d: d.join(""), fill: `var(--l2p-${hue})`, "fill-opacity": ((0.06 + 0.115 * level) * strong).toFixed(3) }); }),
      shape("path", { d: crosses.join(""), stroke: "var(--l2p-grey)", "stroke-width": 1, "vector-effect": "non-scaling-stroke" }),
      turn ? shape("path", { d: `M${tokens - 1} 0h1v${wide}h-1z`, fill: "none", stroke: "var(--l2p-green)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }) : null, cursor);
    const cell = { i: tokens - 1, j: 0 };
    const point = (i, j) => {
      cell.i = Math.max(0, Math.min(tokens - 1, i));
      cell.j = Math.max(0, Math.min(wide - 1, j));
      cursor.setAttribute("x", turn ? cell.i : cell.j);
      cursor.setAttribute("y", turn ? cell.j : cell.i);
      cursor.setAttribute("visibility", "visible");
      const across = square ? `key of “${data.words[cell.j]}” (${cell.j})` : `${unit} ${cell.j + 1} of ${wide}`;
      read.textContent = `${title}: ${square ? "query of " : ""}“${data.words[cell.i]}” (position ${cell.i}), ${across}: ` +
        (hidden(cell.i, cell.j) ? "hidden, a later token" : minus(short(Number(value(cell.i, cell.j).toPrecision(6)))));
    };
    const under = (event) => {
      const place = svg.getBoundingClientRect();
      const x = Math.floor(((event.clientX - place.left) / place.width) * box[0]), y = Math.floor(((event.clientY - place.top) / place.height) * box[1]);
      turn ? point(x, y) : point(y, x);
    };
    const field = node("div", { class: "l2p-flow-side", tabindex: 0, role: "application", "aria-label": `${title}, ${tokens} by ${wide}; arrow keys read its cells`,
      pointermove: under, pointerdown: under, focus: () => point(cell.i, cell.j), blur: () => cursor.setAttribute("visibility", "hidden"),
      pointerleave: () => { if (document.activeElement !== field) cursor.setAttribute("visibility", "hidden"); },
      keydown: (event) => {
        const [di, dj] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -wide], End: [0, wide],
          PageUp: [-tokens, 0], PageDown: [tokens, 0] }[event.key] ?? [];
        if (di === undefined) return;
        film_.stop();
        turn ? point(cell.i + dj, cell.j + di) : point(cell.i + di, cell.j + dj);
        event.preventDefault();
      } }, svg, square && labels ? node("div", { class: `l2p-flow-columns${tokens > 12 ? " many" : ""}`, "aria-hidden": "true" }, ...data.words.slice(0, tokens).map((word) => node("div", {}, word))) : null);
    return node("figure", { class: "l2p-flow-matrix" }, node("figcaption", {}, title, node("i", {}, ` ${tokens} × ${wide}`)),
      node("div", { class: "l2p-flow-cells" }, labels && !turn ? names(high) : null, field));
  }

  /** The tokens' words, to stand before the rows of heat maps. */
  const names = (high) => node("div", { class: "l2p-flow-rows", "aria-hidden": "true" },
    ...data.words.slice(0, view.read).map((word) => node("div", { style: `height: ${high}px` }, word)));

  /** Boxes of the query heads that share a KV head, each filled by `make(kv head, its query heads)`. */
  function groups(make) {
    return node("div", { class: "l2p-flow-set" }, ...[...Array(data.kv_heads).keys()].map((kv) => {
      const heads = [...Array(group).keys()].map((i) => kv * group + i);
      return node("div", { class: `l2p-flow-group${kv % 2 ? " second" : ""}` }, node("span", { class: "l2p-note" },
        `KV head ${kv + 1}, shared by query heads ${heads.map((h) => h + 1).join(", ")}`), node("div", {}, ...make(kv, heads)));
    }));
  }

  // ---- what each part shows
  const old = () => view.read > asked; // rows above the last were worked out before
  const stacked = (...three) => node("div", {}, ...three.map(([title, table]) => heat(title, table, { labels: true, old: old(), high: 13 })));
  const vectors = (one, [queries, stored]) => groups((kv, heads) => [names(14),
    ...heads.map((h) => heat(`query ${h + 1}`, one[queries][h], { old: old(), unit: "dimension" })),
    heat(`key ${kv + 1}`, one[stored][kv], { unit: "dimension" }), heat(`value ${kv + 1}`, one.v[kv], { unit: "dimension" })]);
  const looks = (tables, title, masked, most) => groups((kv, heads) => heads.map((h) => heat(`${title}, head ${h + 1}`, tables[h],
    { columns: "keys", labels: true, masked, most, old: old(), high: view.read > 12 ? 13 : 17 })));

  const shows = {
    tokens: () => node("div", { class: "l2p-flow-chips" }, ...data.words.slice(0, view.read).map((word, i) =>
      node("div", {}, node("code", {}, word), `place ${i}, id ${data.ids[i]}`))),
    embed: () => stacked(["residual stream", data.embedded]),
    norm1: (one, before) => stacked(["stream", before], ["normalised", one.normal]),
    qkv: (one) => vectors(one, ["q", "k"]),
    rope: (one) => vectors(one, ["q_turned", "k_turned"]),
    scores: (one) => looks(one.scores, "q·k / √" + data.head_dim, false),
    mask: (one) => looks(one.scores, "scores", true),
    softmax: (one) => looks(one.weights, "weights", true, 900),
    mix: (one) => groups((kv, heads) => [names(14), heat(`value ${kv + 1}`, one.v[kv], { unit: "dimension" }),
      ...heads.map((h) => heat(`mix, head ${h + 1}`, one.mixed[h], { old: old(), unit: "dimension" }))]),
    add1: (one, before) => stacked(["stream", before], ["+ attention", one.attended], ["= stream", one.middle]),
    norm2: (one) => stacked(["stream", one.middle], ["normalised", one.ffn_normal]),
    swiglu: (one) => stacked(["gate", one.gate], ["up", one.up], ["silu(gate) × up", one.gated]),
    add2: (one) => stacked(["stream", one.middle], ["+ feed-forward", one.fed], ["= stream", one.y]),
    final: () => stacked(["stream", data.layers[depth - 1].y], ["normalised", data.normal]),
    logits: () => node("div", {}, ...data.top[view.read - asked].map(([word, logit, chance], i) => node("div", { class: `l2p-flow-bar${i ? "" : " taken"}` },
      node("code", {}, word), node("i", { style: `width: ${100 * chance}%` }), node("span", {}, `${short(100 * chance)} %`),
      node("span", { class: "l2p-note" }, `logit ${minus(short(logit))}`)))),
    cache: () => node("div", {}, ...data.layers.map((one, layer) => node("div", { class: "l2p-flow-set" }, ...[...Array(data.kv_heads).keys()].flatMap((kv) =>
      [heat(`layer ${layer + 1}, keys ${kv + 1}`, one.k_turned[kv], { turn: true, unit: "dimension" }),
        heat(`values ${kv + 1}`, one.v[kv], { turn: true, unit: "dimension" })])))),
  };
  const hints = {
    logits: () => `Taken: “${data.top[view.read - asked][0][0]}”. The answer so far: “${data.said[view.read - asked]}”`,
    cache: () => `New column: “${data.words[view.read - 1]}”. The cache holds ${view.read} columns, ${(view.read * data.bytes).toLocaleString("en")} bytes: ${data.bytes.toLocaleString("en")} a token.`,
    tokens: () => "<s>, [INST] and [/INST] are control tokens of the chat’s format; ␣ is a blank.",
  };

  const title = node("strong", {}), where = node("span", {}), does = node("p", { class: "l2p-flow-does" });
  const large = node("div", {}), strip = node("div", { class: "l2p-flow-tokens", role: "group", "aria-label": "tokens read; a + reads one more" });

  function draw(to) {
    const focused = strip.contains(document.activeElement);
    view = to;
    const part = data.parts.find((one) => one.key === view.key), deep = inner.includes(view.key);
    title.textContent = part.name;
    where.textContent = `${deep ? `layer ${view.layer + 1} of ${depth}, ` : ""}${view.read} tokens read`;
    does.textContent = part.does;
    const current = (button, on) => { on ? button.setAttribute("aria-current", "step") : button.removeAttribute("aria-current"); };
    for (const key of keys) { current(marks[key], key === view.key); marks[key].tabIndex = key === view.key ? 0 : -1; }
    layers.forEach((button, layer) => current(button, deep && layer === view.layer));
    read.textContent = hints[view.key]?.() ?? "Point at a cell, or press Tab and arrow keys, to read its number. Blue is above 0, orange below." +
      (old() ? " Faint rows were worked out before: only the last is new." : "");
    const shown = shows[view.key](data.layers[view.layer], view.layer ? data.layers[view.layer - 1].y : data.embedded);
    shown.classList.add("l2p-flow-in");
    large.replaceChildren(shown);
    strip.replaceChildren(...data.words.slice(0, asked - 1).map((word) => node("span", {}, word)),
      ...data.words.slice(asked - 1).map((word, i) => node("button", { type: "button", class: i + asked === view.read ? "new" : i + asked > view.read ? "ahead" : null,
        "aria-label": i + asked > view.read ? `read ${i + asked} tokens` : `${word}: read up to here`, "aria-pressed": String(i + asked === view.read),
        click: () => see({ ...view, key: i && view.read < i + asked ? "cache" : view.key === "cache" && !i ? "logits" : view.key, read: i + asked }) },
      i + asked > view.read ? "+" : word)));
    if (focused) strip.querySelector(".new").focus();
  }

  const say = (step) => { const { key, layer, read: n } = film[step];
    return `${n > asked ? `token ${n}, ` : ""}${inner.includes(key) ? `layer ${layer + 1}: ` : ""}${name(key)}`; };
  const film_ = player(film.length, (step) => draw(film[step]), { say, pause: 1300 });
  stage.append(node("style", {}, FLOW_STYLE), node("h3", { class: "l2p-title" }, `Transformer flow: “${data.question}”`),
    node("div", {}, "Play the way of a real question through the chat model, step by step, or press a part of the map. Every cell holds its real number."),
    strip, film_.bar, node("div", { class: "l2p-flow-body" }, map,
      node("section", { "aria-label": "the present part" }, node("div", { class: "l2p-flow-head" }, title, where), does, read, large)));
  film_.go(0);

  const wait = onceSeen(stage, film_.start);
  return () => { wait(); film_.stop(); };
}
