// RoPE clocks: a clock for each pair of a head, two tokens on a line of positions, their score by distance.

const CLOCKS_STYLE = `
.l2p-rope-line { position: relative; height: 112px; margin: 6px 18px 0; touch-action: none; }
.l2p-rope-rail { position: absolute; left: 0; right: 0; top: 46px; height: 2px; background: var(--l2p-line); }
.l2p-rope-tick { position: absolute; top: 54px; transform: translateX(-50%); font-size: 12px; color: var(--l2p-faint); }
.l2p-rope-grip { position: absolute; display: flex; align-items: center; transform: translateX(-15px); cursor: grab;
  user-select: none; white-space: nowrap; }
.l2p-rope-grip b { flex: none; width: 30px; height: 30px; border-radius: 15px; color: var(--l2p-bg); font: 600 15px/28px
  var(--l2p-mono); text-align: center; border: 1px solid transparent; }
.l2p-rope-grip.query { top: 0; } .l2p-rope-grip.query b { background: var(--l2p-blue); }
.l2p-rope-grip.key { top: 80px; } .l2p-rope-grip.key b { background: var(--l2p-orange); }
.l2p-rope-grip span { max-width: 46cqw; padding: 0 7px; overflow: hidden; text-overflow: ellipsis; } .l2p-rope-grip.flip { flex-direction: row-reverse;
  transform: translateX(calc(-100% + 15px)); }
.l2p-rope-stem { position: absolute; width: 2px; transform: translateX(-1px); }
.l2p-rope-both { position: absolute; top: 38px; height: 18px; border-radius: 9px; background: var(--l2p-green); cursor: grab;
  transform: translateX(-9px); }
.l2p-rope-faces { display: grid; grid-template-columns: repeat(8, 1fr); gap: 6px; margin-top: 8px; }
@container (max-width: 600px) { .l2p-rope-faces { grid-template-columns: repeat(4, 1fr); } }
.l2p-rope-face { margin: 0; padding: 4px 1px; border: 1px solid transparent; border-radius: 6px; text-align: center;
  font-size: 12px; line-height: 1.35; cursor: pointer; font-variant-numeric: tabular-nums; }
.l2p-rope-face[aria-selected="true"] { border-color: var(--l2p-line); background: var(--l2p-sunk); }
.l2p-rope-face svg { display: block; width: 100%; max-width: 104px; margin: 0 auto 2px; }
.l2p-rope-face .turn { color: var(--l2p-faint); }
.l2p-rope-score { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 14px; margin-top: 10px; }
.l2p-rope-score strong { font-size: 20px; font-variant-numeric: tabular-nums; }
.l2p-rope-key { display: inline-block; width: 16px; height: 0; margin: 0 5px 4px 0; border-top: 3px solid; }`;

function picture(stage, model) {
  const data = model.get("data"), places = data.query.length, last = places - 1, pairs = data.turn.length;
  const root = Math.sqrt(data.head_dim);
  const at = { ...data.at };
  const film = filmOf(at, last);
  let chosen = 0, width = 0;

  // ---- the line of positions
  const grips = {
    query: grip("query", "q", (to) => move(Math.max(at.key, to), at.key)),
    key: grip("key", "k", (to) => move(at.query, Math.min(at.query, to))),
    both: grip("both", "", (to) => { const by = within(to, 0, last - at.query + at.key) - at.key; move(at.query + by, at.key + by); }),
  };
  const stems = { query: node("div", { class: "l2p-rope-stem", style: "top: 28px; height: 20px; background: var(--l2p-blue)" }),
    key: node("div", { class: "l2p-rope-stem", style: "top: 48px; height: 34px; background: var(--l2p-orange)" }) };
  const line = node("div", { class: "l2p-rope-line", role: "group", "aria-label": "positions" },
    node("div", { class: "l2p-rope-rail" }), stems.query, stems.key,
    ...[...Array(places).keys()].filter((i) => i % 10 === 0)
      .map((i) => node("span", { class: "l2p-rope-tick", style: `left: ${percent(i)}` }, String(i))),
    grips.both, grips.query, grips.key);

  function percent(place) { return `${(100 * place) / last}%`; }
  function within(value, low, high) { return Math.max(low, Math.min(high, value)); }

  function grip(name, letter, to) {
    const place = () => (name === "query" ? at.query : at.key);
    let held = null; // the pointer's place less the grip's, in positions
    const under = (event) => {
      const box = line.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * last;
    };
    const element = node("div", { class: name === "both" ? "l2p-rope-both" : `l2p-rope-grip ${name}`, role: "slider", tabindex: 0,
      "aria-valuemin": 0, "aria-valuemax": last, "aria-label": name === "both" ? "both together" : `position of the ${name}`,
      title: name === "both" ? "moves both" : null,
      pointerdown: (event) => { held = under(event) - place(); element.setPointerCapture(event.pointerId); film_.stop(); },
      pointermove: (event) => { if (held !== null) to(within(Math.round(under(event) - held), 0, last)); },
      pointerup: () => { held = null; }, pointercancel: () => { held = null; },
      keydown: (event) => {
        const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
        const ends = { Home: 0, End: last };
        if (!(event.key in steps) && !(event.key in ends)) return;
        film_.stop();
        to(within(event.key in ends ? ends[event.key] : place() + steps[event.key], 0, last));
        tell();
        event.preventDefault();
      } }, letter ? node("b", {}, letter) : null, letter ? node("span", {}) : null);
    return element;
  }

  // ---- the clocks
  const faces = data.turn.map((turn, pair) => face(turn, pair));
  const board = node("div", { class: "l2p-rope-faces", role: "listbox", "aria-label": "clocks, from fast to slow", keydown: (event) => {
    const across = getComputedStyle(board).gridTemplateColumns.split(" ").length;
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen - across, ArrowDown: chosen + across,
      Home: 0, End: pairs - 1 }[event.key];
    if (to === undefined) return;
    if (to >= 0 && to < pairs) { choose(to); faces[to].element.focus(); }
    event.preventDefault();
  } }, ...faces.map((one) => one.element));

  function face(turn, pair) {
    const hands = { key: shape("path", { stroke: "var(--l2p-orange)", "stroke-width": 4, "stroke-dasharray": "7 3" }),
      query: shape("path", { stroke: "var(--l2p-blue)", "stroke-width": 4, "stroke-linecap": "round" }) };
    const arc = shape("path", { fill: "var(--l2p-green)", "fill-opacity": 0.28, stroke: "var(--l2p-green)", "stroke-width": 2 });
    const words = node("div", {});
    const element = node("figure", { class: "l2p-rope-face", role: "option", tabindex: pair ? -1 : 0,
      click: () => choose(pair), pointerenter: () => choose(pair), focus: () => choose(pair) },
      shape("svg", { viewBox: "-52 -52 104 104", "aria-hidden": "true" },
        shape("circle", { r: 49, fill: "var(--l2p-bg)", stroke: "var(--l2p-line)", "stroke-width": 1.5 }), arc, hands.key, hands.query,
        shape("circle", { r: 3.5, fill: "var(--l2p-text)" })),
      words, node("div", { class: "turn" }, `turn ${short(turn)}`));
    return { element, hands, arc, words };
  }

  /** What a pair holds now: both vectors, their ways, the angle from key to query and their part of the score. */
  function held(pair) {
    const q = [data.query[at.query][pair], data.query[at.query][pair + pairs]];
    const k = [data.key[at.key][pair], data.key[at.key][pair + pairs]];
    const ways = { query: Math.atan2(q[1], q[0]), key: Math.atan2(k[1], k[0]) };
    const between = Math.PI - ((((Math.PI - ways.query + ways.key) % (2 * Math.PI)) + 2 * Math.PI) % (2 * Math.PI));
    return { q, k, ways, between, part: (q[0] * k[0] + q[1] * k[1]) / root };
  }

  function choose(pair) {
    faces[chosen].element.tabIndex = -1;
    chosen = pair;
    faces[chosen].element.tabIndex = 0;
    faces.forEach((one, i) => one.element.setAttribute("aria-selected", String(i === chosen)));
    detail();
  }

  // ---- the score
  const score = node("strong", {}), apart = node("span", {}), about = node("p", { class: "l2p-note" });
  const chart = node("div", {}), said = node("div", { class: "l2p-unseen", "aria-live": "polite" });
  const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const now = () => data.scores[at.query][at.key];
  const degrees = (radians) => `${Math.round((radians * 180) / Math.PI)}°`.replace("-", "−");

  function detail() {
    const { q, k, between, part } = held(chosen);
    const two = (v) => `(${v.map((x) => x.toFixed(2).replace("-", "−")).join(", ")})`;
    about.textContent = `Pair ${chosen + 1} of ${pairs}, dimensions ${chosen} and ${chosen + pairs}: ` +
      `${short(360 / data.turn[chosen])}° a token, a full turn in ${short(data.turn[chosen])} tokens. Query ${two(q)}, key ${two(k)}, ` +
      `${degrees(between)} between them: ${signed(part)} of the score.`;
  }
  function tell() {
    said.textContent = `query at ${at.query}, key at ${at.key}, distance ${at.query - at.key}, score ${now().toFixed(2)}`;
  }

  function move(query, key) {
    at.query = query;
    at.key = key;
    draw();
  }

  function draw() {
    for (const name of ["query", "key"]) {
      grips[name].style.left = stems[name].style.left = percent(at[name]);
      grips[name].classList.toggle("flip", at[name] > places / 2);
      grips[name].setAttribute("aria-valuenow", at[name]);
      grips[name].lastChild.textContent = `${at[name]}: ${name} of “${data.words[name]}”`;
    }
    grips.both.style.left = percent(at.key);
    grips.both.style.width = `calc(${percent(at.query - at.key)} + 18px)`;
    grips.both.setAttribute("aria-valuenow", at.key);
    faces.forEach(({ hands, arc, words, element }, pair) => {
      const { ways, between, part } = held(pair);
      const to = (way, r) => `${(r * Math.cos(way)).toFixed(2)} ${(r * Math.sin(way)).toFixed(2)}`;
      hands.query.setAttribute("d", `M0 0L${to(ways.query, 44)}`);
      hands.key.setAttribute("d", `M0 0L${to(ways.key, 44)}`);
      arc.setAttribute("d", `M0 0L${to(ways.key, 24)}A24 24 0 0 ${between > 0 ? 1 : 0} ${to(ways.query, 24)}Z`);
      words.textContent = `${degrees(between)} · ${signed(part)}`;
      element.setAttribute("aria-label", `pair ${pair + 1}: ${degrees(between)} between the hands, ${signed(part)} of the score`);
    });
    score.textContent = `score ${now().toFixed(2).replace("-", "−")}`;
    apart.textContent = `distance ${at.query - at.key}: the sum of the ${pairs} clocks’ parts, q·k / √${data.head_dim}`;
    detail();
    curve();
  }

  function curve() {
    if (!width) return;
    const high = 190, values = data.scores.map((row) => row[0]), distance = at.query - at.key;
    const least = Math.min(0, ...values), most = Math.max(0, ...values);
    const x = scale(0, last, 44, width - 16), y = scale(least, most, high - 36, 24);
    const svg = canvas(width, high, `score by distance; at distance ${distance} it is ${now().toFixed(2)}`);
    const here = x(distance), level = y(now());
    svg.append(
      shape("path", { d: `M44 ${y(0)}H${width - 16}`, stroke: "var(--l2p-line)" }),
      ...[0, 10, 20, 30, 40].map((d) => shape("text", { x: x(d), y: high - 18, "text-anchor": "middle", class: "faint" }, String(d))),
      ...[least, 0, most].filter((v, i, all) => all.indexOf(v) === i)
        .map((v) => shape("text", { x: 36, y: y(v) + 4, "text-anchor": "end", class: "faint" }, v.toFixed(1).replace("-", "−"))),
      shape("text", { x: (width + 28) / 2, y: high - 2, "text-anchor": "middle" }, "distance from key to query, tokens"),
      shape("text", { x: 4, y: 12 }, "score"),
      shape("path", { d: `M${here} 20V${high - 34}`, stroke: "var(--l2p-green)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }),
      shape("polyline", { points: values.map((v, d) => `${x(d).toFixed(1)},${y(v).toFixed(1)}`).join(" "), fill: "none",
        stroke: "var(--l2p-text)", "stroke-opacity": 0.4, "stroke-width": 1.5 }),
      ...values.map((v, d) => shape("circle", { cx: x(d), cy: y(v), r: 2.4, fill: "var(--l2p-text)" })),
      shape("circle", { cx: here, cy: level, r: 7, fill: "var(--l2p-green)", stroke: "var(--l2p-bg)", "stroke-width": 2 }),
      shape("text", { x: here + (here > width - 90 ? -12 : 12), y: Math.max(14, level - 9), "font-weight": 600,
        "text-anchor": here > width - 90 ? "end" : "start" }, now().toFixed(2).replace("-", "−")));
    chart.replaceChildren(svg);
  }

  // ---- the film: both move, then the query walks away
  const film_ = player(film.length, (step) => move(...film[step]), { name: "film", pause: 300,
    say: (step) => (step <= film.together ? "both move: the score stays" : "the query walks away: the score changes") });
  const legend = (colour, dash, words) => node("span", {},
    node("span", { class: "l2p-rope-key", style: `border-color: var(--l2p-${colour}); border-top-style: ${dash}` }), words);
  stage.append(node("style", {}, CLOCKS_STYLE),
    node("h3", { class: "l2p-title" }, "RoPE clocks"),
    node("div", {}, "Drag the query, the key, or the green bar that moves both; arrow keys do the same."), film_.bar, line,
    node("div", { class: "l2p-bar", style: "margin-bottom: 0" }, legend("blue", "solid", "query’s hand"), legend("orange", "dashed", "key’s hand"),
      legend("green", "solid", "angle between, and its part of the score"), node("span", {}, "turn: tokens for a full turn")),
    board, about, node("div", { class: "l2p-rope-score" }, score, apart), chart,
    node("p", { class: "l2p-note" }, "Moved together, all hands turn and every angle between them stays, and so does the score: only the distance counts. " +
      `Real query and key of the chat model reading “${data.question}”: layer ${data.layer}, head ${data.head} with KV head ${data.kv_head}, ` +
      `head_dim ${data.head_dim}, θ = ${data.theta.toLocaleString("en")}.`), said);
  choose(0);
  draw();

  const sized = new ResizeObserver(() => { width = Math.round(chart.clientWidth); curve(); });
  sized.observe(chart);
  const wait = onceSeen(stage, film_.start);
  return () => { sized.disconnect(); wait(); film_.stop(); };
}

/** The places of both, step by step: together up to a third of the line, then the query alone to two thirds. */
function filmOf(at, last) {
  const steps = [], apart = at.query - at.key, third = Math.round(last / 3);
  for (let key = at.key; key <= Math.max(third, at.key); key++) steps.push([Math.min(last, key + apart), key]);
  const [query, key] = steps[steps.length - 1], together = steps.length - 1;
  for (let q = query + 1; q <= Math.round((2 * last) / 3); q++) steps.push([q, key]);
  return Object.assign(steps, { together });
}
