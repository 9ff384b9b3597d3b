// Five tokens: rewards and values to drag, surprises, and how they are carried backwards into advantages.

const HUES = ["blue", "orange", "green", "pink", "red"]; // a surprise keeps its hue wherever it is carried
const signed = (x) => (Math.abs(x) < 0.005 ? "0.00" : (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2));
const hue = (t) => `var(--l2p-${HUES[t % HUES.length]})`;

/** r + gamma V' - V of each token; after the last one nothing is expected. */
function surprises(rewards, values, gamma) {
  return rewards.map((reward, t) => reward + gamma * (values[t + 1] ?? 0) - values[t]);
}

/** What reaches token t of the surprise k tokens later. */
const carried = (deltas, t, k, fade) => fade ** k * deltas[t + k];

function advantagesOf(deltas, fade) {
  return deltas.map((_, t) => deltas.slice(t).reduce((sum, _, k) => sum + carried(deltas, t, k, fade), 0));
}

const GAE_STYLE = `
.gae-legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0 2px; font-size: 13px; }
.gae-legend i, .gae-sum i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 3px;
  vertical-align: -1px; }
.gae-sum { min-height: 3.2em; margin: 6px 0; padding: 8px 10px; border-radius: 6px; background: var(--l2p-sunk);
  font-variant-numeric: tabular-nums; }
.gae-handle { cursor: ns-resize; touch-action: none; }
.gae-token { cursor: pointer; }
.gae-handle:focus-visible .gae-knob { stroke: var(--l2p-text); stroke-width: 3; }
@media (prefers-reduced-motion: no-preference) { .gae-flow { animation: gae-flow 1.1s linear infinite; } }
@keyframes gae-flow { to { stroke-dashoffset: -18; } }`;

function picture(stage, model) {
  const data = model.get("data"), count = data.tokens.length;
  const state = { rewards: [...data.rewards], values: [...data.values], gamma: data.gamma, lam: data.lam, token: 0 };
  const bounds = [...data.rewards, ...data.values].map(Math.abs);
  const most = Math.max(1, Math.ceil(Math.max(...bounds) * 1.25 * 2) / 2); // the bars' ends, in units of the score
  const least = Math.min(...data.rewards, ...data.values) * 1.25 < -most / 2 ? -most : -most / 2;

  const board = node("div"), sum = node("div", { class: "gae-sum" });
  const aloud = node("p", { class: "l2p-unseen", "aria-live": "polite" });
  let speak = null; // what changed is said once it stands still
  const seen = node("p", { class: "l2p-note" });
  const steps = 20, film = player(steps + 1, (step) => { state.lam = step / steps; draw(); },
    { name: "lambda λ", pause: 260, say: (step) => (step / steps).toFixed(2) });
  const gamma = slider("gamma γ", { min: 0, max: 1, step: 0.05, value: state.gamma, say: (x) => x.toFixed(2),
    change: (x) => { state.gamma = x; draw(); } });
  const reset = button("The run's numbers", () => {
    Object.assign(state, { rewards: [...data.rewards], values: [...data.values], gamma: data.gamma });
    gamma.set(data.gamma);
    film.stop();
    film.go(Math.round(data.lam * steps));
  });
  stage.append(
    node("style", {}, GAE_STYLE),
    node("h3", { class: "l2p-title" }, "Surprise, carried backwards"),
    node("p", { class: "l2p-note" }, "Drag a bar, or press play and watch λ let each surprise reach further back; ",
      "choose a token to see its sum."),
    node("p", { style: "margin: 8px 0 0" }, node("span", { style: "color: var(--l2p-faint)" }, `${data.question} → `),
      data.before, node("strong", {}, data.tokens.join(""))),
    node("div", { class: "gae-legend" },
      node("span", {}, node("i", { style: "background: var(--l2p-grey)" }), "reward r of the token"),
      node("span", {}, node("i", { style: "border: 2px solid var(--l2p-text)" }), "value V before it: the critic's guess of all that is to come")),
    board, film.bar, node("div", { class: "l2p-bar" }, gamma, reset), sum, seen, aloud,
    node("details", { class: "l2p-note" }, node("summary", {}, "Whose numbers these are"),
      `The policy and the critic are those of a short PPO run from ${data.start}, at beta ${data.beta}. ${data.rule} `,
      "Advantages look forward only, so those of the last five tokens are the same as in the whole answer."));

  let parts = null;
  const fit = fitted(board, (width) => {
    parts = lay(width);
    board.replaceChildren(parts.svg);
    draw();
  });

  /** All that stands still for a column of this width; `draw` moves the rest. */
  function lay(wide) {
    const left = wide < 520 ? 34 : 58, column = (wide - left) / count, half = column / 2;
    const y = { tokens: 6, top: 44, low: 194, delta: 238, flow: 268, adv: 340, end: 484 };
    const svg = canvas(wide, y.end + 10, "Rewards and values of five tokens, their surprises, and their advantages");
    svg.removeAttribute("role"); // it holds things to press
    svg.setAttribute("role", "group");
    const bar = scale(least, most, y.low, y.top), middle = (t) => left + column * t + half;
    const line = (at, class_) => shape("line", { x1: left, x2: wide, y1: at, y2: at, stroke: "var(--l2p-line)", class: class_ });
    const tick = (at, words) => shape("text", { x: left - 6, y: at + 4, "text-anchor": "end", class: "faint", "font-size": 12 }, words);
    svg.append(line(bar(0)), tick(bar(0), "0"), tick(bar(most) + 6, short(most)), tick(bar(least) - 2, short(least).replace("-", "−")),
      shape("text", { x: 0, y: y.delta + 5, class: "faint", "font-size": wide < 520 ? 12 : 13 }, wide < 520 ? "δ" : "surprise"),
      shape("text", { x: 0, y: y.adv + 12, class: "faint", "font-size": wide < 520 ? 12 : 13 }, wide < 520 ? "A" : "advantage"));
    const flows = shape("g"), pile = shape("g"), zero = line(0), columns = [];
    svg.append(flows);
    for (let t = 0; t < count; t++) {
      const words = data.tokens[t].trim() || "␣";
      const token = shape("g", { class: "gae-token", role: "button", tabindex: 0,
        "aria-label": `token ${t + 1}, ${words}: show its sum`, click: () => choose(t),
        keydown: (event) => { if (event.key === "Enter" || event.key === " ") { choose(t); event.preventDefault(); } } },
      shape("rect", { x: middle(t) - half + 4, y: y.tokens, width: column - 8, height: 28, rx: 6, fill: "var(--l2p-sunk)" }),
      shape("text", { x: middle(t), y: y.tokens + 19, "text-anchor": "middle", "font-weight": 600 },
        shape("tspan", { class: "faint", "font-weight": 400, "font-size": 12 }, `${t + 1}: `),
        words.length > 8 ? words.slice(0, 7) + "…" : words));
      const hand = { rewards: handle("rewards", t, middle(t) - half * 0.42, half * 0.62),
        values: handle("values", t, middle(t) + half * 0.42, half * 0.62) };
      const chip = shape("rect", { x: middle(t) - 31, y: y.delta - 14, width: 62, height: 28, rx: 14, fill: "var(--l2p-bg)",
        stroke: hue(t), "stroke-width": 2.5 });
      const said = shape("text", { x: middle(t), y: y.delta + 5, "text-anchor": "middle", "font-weight": 600 });
      const net = shape("g", {}, shape("path", { d: `M${middle(t) - half + 8} 0H${middle(t) + half - 8}`,
        stroke: "var(--l2p-text)", "stroke-width": 2.5 }));
      const total = shape("text", { x: middle(t), y: y.end + 4, "text-anchor": "middle", "font-weight": 700 });
      columns.push({ token, hand, said, net, total });
      svg.append(token, hand.rewards.group, hand.values.group, chip, said);
    }
    svg.append(zero, pile, ...columns.flatMap((c) => [c.net, c.total]));
    return { svg, flows, pile, zero, columns, y, bar, middle, half, tight: wide < 520 };

    function handle(kind, t, at, wider) {
      const name = kind === "rewards" ? "reward" : "value", thick = Math.min(26, wider);
      const solid = shape("rect", { x: at - thick / 2, width: thick, rx: 2, fill: kind === "rewards" ? "var(--l2p-grey)" : hue(t),
        "fill-opacity": kind === "rewards" ? 0.75 : 0.12, stroke: kind === "rewards" ? "none" : "var(--l2p-text)", "stroke-width": 1.5 });
      const knob = shape("rect", { class: "gae-knob", x: at - thick / 2 - 3, width: thick + 6, height: 8, rx: 4,
        fill: kind === "rewards" ? "var(--l2p-grey)" : "var(--l2p-text)" });
      const words = shape("text", { x: at, "text-anchor": "middle", "font-size": 12 });
      const group = shape("g", { class: "gae-handle", role: "slider", tabindex: 0, "aria-orientation": "vertical",
        "aria-label": `${name} of token ${t + 1}`, "aria-valuemin": least, "aria-valuemax": most,
        pointerdown: (event) => { group.setPointerCapture(event.pointerId); group.focus({ focusVisible: false }); drag(event); },
        pointermove: (event) => { if (group.hasPointerCapture(event.pointerId)) drag(event); },
        keydown: (event) => {
          const by = { ArrowUp: 0.05, ArrowRight: 0.05, ArrowDown: -0.05, ArrowLeft: -0.05, PageUp: 0.5, PageDown: -0.5 }[event.key];
          const to = { Home: least, End: most }[event.key] ?? (by === undefined ? undefined : state[kind][t] + by);
          if (to === undefined) return;
          put(to);
          event.preventDefault();
        } },
      shape("rect", { x: at - column / 4, y: y.top - 4, width: column / 2, height: y.low - y.top + 8, fill: "transparent" }),
      solid, knob, words);
      const drag = (event) => {
        const box = svg.getBoundingClientRect(), unit = (event.clientY - box.top) * ((y.end + 10) / box.height);
        put(least + ((y.low - unit) / (y.low - y.top)) * (most - least));
      };
      const put = (to) => { state[kind][t] = Math.max(least, Math.min(most, Math.round(to * 100) / 100)); draw(); };
      return { group, solid, knob, words };
    }
  }

  function choose(t) { state.token = t; draw(); }

  function draw() {
    if (!parts) return;
    const { y, bar, middle, half, columns } = parts, fade = state.gamma * state.lam, chosen = state.token;
    const deltas = surprises(state.rewards, state.values, state.gamma), sums = advantagesOf(deltas, fade);
    const top = Math.max(...deltas.map(Math.abs), 1e-9);
    const ups = deltas.filter((d) => d > 0).reduce((a, b) => a + b, 0), downs = deltas.filter((d) => d < 0).reduce((a, b) => a + b, 0);
    const place = scale(Math.min(downs, -0.1), Math.max(ups, 0.1), y.end - 14, y.adv + 4); // as at lambda 1, so that the scale stands still
    parts.zero.setAttribute("y1", place(0));
    parts.zero.setAttribute("y2", place(0));

    columns.forEach((c, t) => {
      for (const kind of ["rewards", "values"]) {
        const value = state[kind][t], h = c.hand[kind], at = bar(value);
        h.solid.setAttribute("y", Math.min(at, bar(0)));
        h.solid.setAttribute("height", Math.max(1, Math.abs(at - bar(0))));
        h.knob.setAttribute("y", at - 4);
        h.words.setAttribute("y", !parts.tight ? (value < 0 ? at + 18 : at - 9)
          : kind === "rewards" ? y.low + 16 : Math.min(at, bar(0)) - 9); // a narrow column keeps them apart
        h.words.textContent = signed(value);
        h.group.setAttribute("aria-valuenow", value.toFixed(2));
      }
      c.token.setAttribute("aria-pressed", String(t === chosen));
      c.token.firstChild.setAttribute("stroke", t === chosen ? "var(--l2p-text)" : "none");
      c.token.firstChild.setAttribute("stroke-width", 2);
      c.said.textContent = signed(deltas[t]);
      c.net.setAttribute("transform", `translate(0 ${place(sums[t])})`);
      c.total.textContent = signed(sums[t]);
      c.total.dataset.exact = sums[t]; // for tests: held equal to the library's `gae`
    });

    parts.flows.replaceChildren();
    parts.pile.replaceChildren();
    for (let t = 0; t < count; t++) {
      let up = 0, down = 0;
      for (let k = 0; t + k < count; k++) {
        const part = carried(deltas, t, k, fade), from = part < 0 ? down : up, mine = t === chosen;
        if (part < 0) down += part; else up += part;
        const ends = [place(from), place(from + part)], tall = Math.abs(ends[1] - ends[0]);
        if (tall > 0.3) parts.pile.append(shape("rect", { x: middle(t) - half * 0.5, width: half, y: Math.min(...ends),
          height: tall, fill: hue(t + k), stroke: "var(--l2p-bg)" },
        shape("title", {}, `${signed(part)} of surprise ${t + k + 1}`)));
        if (tall > 15) parts.pile.append(shape("text", { x: middle(t), y: (ends[0] + ends[1]) / 2 + 4, "text-anchor": "middle",
          "font-size": 12, style: "fill: var(--l2p-bg)", "font-weight": 700 }, String(t + k + 1)));
        const weight = Math.abs(part) / top;
        if (weight > 0.004) parts.flows.append(flow(t, k, weight, mine));
      }
    }
    say(deltas, sums, fade);
  }

  /** The way of surprise t + k to token t: as wide as what arrives. */
  function flow(t, k, weight, mine) {
    const { y, middle, half } = parts, from = middle(t + k), to = middle(t) + (k ? half * 0.3 : 0), sag = (y.adv - y.flow) * 0.75;
    const path = `M${from} ${y.flow - 14}C${from} ${y.flow + sag} ${to} ${y.adv - sag} ${to} ${y.adv}`;
    return shape("g", { fill: "none", stroke: hue(t + k), opacity: mine ? 1 : 0.16 },
      shape("path", { d: path, "stroke-width": 1.5 + 9 * weight, "stroke-opacity": 0.45 }),
      mine ? shape("path", { class: "gae-flow", d: path, "stroke-width": 2.5, "stroke-dasharray": "6 12" }) : null,
      mine ? shape("path", { d: `M${to - 6} ${y.adv - 6}L${to} ${y.adv + 1}L${to + 6} ${y.adv - 6}`, "stroke-width": 2.5 }) : null);
  }

  function say(deltas, sums, fade) {
    const t = state.token, terms = [];
    for (let k = 0; t + k < count; k++) {
      const swatch = node("i", { style: `background: ${hue(t + k)}` });
      terms.push(node("span", { style: "white-space: nowrap" }, swatch,
        `${k ? `${(fade ** k).toFixed(2)} × ` : ""}(${signed(deltas[t + k])})`), t + k + 1 < count ? " + " : ` = ${signed(sums[t])}`);
    }
    sum.replaceChildren(node("strong", {}, `Advantage of token ${t + 1}: `), ...terms);
    clearTimeout(speak);
    speak = setTimeout(() => { aloud.textContent = sum.textContent; }, 700);
    const far = fade === 0 ? "λγ is 0: each token answers for its own surprise alone."
      : fade === 1 ? "λγ is 1: each token answers for all that follows; of the values only its own is left."
        : `A surprise loses ${Math.round(100 * (1 - fade))} % at every token it is carried back.`;
    seen.textContent = `Surprise δ = r + γ · next V − V. ${far} The line across a column is its advantage. Units: standard deviations of the score.`;
  }

  film.go(Math.round(data.lam * steps));
  fit.again();
  return () => { film.stop(); fit.leave(); clearTimeout(speak); };
}
