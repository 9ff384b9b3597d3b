// One token under PPO's clip: its objective and the push on it, by the ratio; steps that stop where the push ends.

/** min(r A, clip(r) A): what PPO climbs for one token. */
function objective(ratio, advantage, clip) {
  return Math.min(ratio * advantage, Math.max(1 - clip, Math.min(1 + clip, ratio)) * advantage);
}

/** Its slope in the token's log-probability: r A, or 0 where the clip holds the objective. */
function push(ratio, advantage, clip) {
  const beyond = advantage > 0 ? ratio > 1 + clip : ratio < 1 - clip;
  return beyond ? 0 : ratio * advantage;
}

const CLIP_STYLE = `
.clip-point { cursor: ew-resize; touch-action: none; }
.clip-point:focus-visible .clip-dot { stroke: var(--l2p-text); stroke-width: 4; }
.clip-said { min-height: 3.1em; margin: 6px 0; padding: 8px 10px; border-radius: 6px; background: var(--l2p-sunk); }`;
const LOW = 0.2, HIGH = 1.8; // ratios shown
const PAUSE = 650; // ms between steps

function picture(stage, model) {
  const data = model.get("data");
  const state = { ratio: 1, sign: 1, clip: data.clip, trail: [] };
  let parts = null, timer = null;

  const board = node("div"), said = node("p", { class: "clip-said", "aria-live": "polite" });
  const good = button("Good token, A = +1", () => turn(1), { pressed: true });
  const bad = button("Bad token, A = −1", () => turn(-1), { pressed: false });
  const one = button("Step", () => { stop(); step(); }, { label: "one gradient step" });
  const play = button("Play", () => (timer ? stop() : start()), { label: "play" });
  const back = button("Ratio 1", () => { stop(); place(1); }, { label: "back to ratio 1" });
  const clip = slider("clip ε", { min: 0.05, max: 0.5, step: 0.05, value: state.clip, say: (x) => x.toFixed(2),
    change: (x) => { stop(); state.clip = x; state.trail = []; draw(); } });
  const share = data.clipfrac.length ? data.clipfrac.reduce((a, b) => a + b, 0) / data.clipfrac.length : null;
  stage.append(
    node("style", {}, CLIP_STYLE),
    node("h3", { class: "l2p-title" }, "The clip: far enough is far enough"),
    node("p", { class: "l2p-note" }, "Take steps from ratio 1, or drag the point along. ",
      "See the push end beyond the clip on one side, and stay on the other."),
    node("div", { class: "l2p-bar" }, good, bad), board,
    node("div", { class: "l2p-bar" }, one, play, back, clip), said,
    node("p", { class: "l2p-note" }, "Ratio r = π(token) / π_old(token). Objective: min(r A, clip(r, 1 − ε, 1 + ε) A). ",
      "The push is its slope in log π(token).",
      share === null ? "" : ` In the finished run ${(100 * share).toFixed(1)} % of the ratios lay beyond the clip.`));

  const fit = fitted(board, build);
  const wait = onceSeen(stage, start);

  function build(width) {
    parts = lay(width);
    board.replaceChildren(parts.svg);
    draw();
  }

  function lay(wide) {
    const left = 44, right = 10, y = { top: 24, low: 194, push: 246, end: 346 };
    const x = scale(LOW, HIGH, left, wide - right);
    const svg = canvas(wide, y.end + 42, "Objective and push of one token by its ratio");
    svg.removeAttribute("role"); // it holds a point to move
    svg.setAttribute("role", "group");
    const text = (at, to, words, more = {}) => shape("text", { x: at, y: to, "font-size": 13, ...more }, words);
    const grid = shape("g"), rule = (to, value) => grid.append(
      shape("line", { x1: left, x2: wide - right, y1: to, y2: to, stroke: "var(--l2p-line)", "stroke-opacity": value ? 0.45 : 1 }),
      text(left - 6, to + 4, value < 0 ? `−${-value}` : String(value), { class: "faint", "text-anchor": "end", "font-size": 12 }));
    const dead = shape("rect", { y: y.top - 4, height: y.end - y.top + 8, fill: "var(--l2p-sunk)" });
    const edge = shape("line", { y1: y.top - 4, y2: y.end + 4, stroke: "var(--l2p-grey)", "stroke-dasharray": "4 4" });
    const nothing = text(0, y.end - 8, "no push", { "text-anchor": "middle", class: "faint" });
    svg.append(dead, nothing, grid, edge,
      text(left, y.top - 10, "objective", { class: "faint" }), text(left, y.push - 12, "push on log π", { class: "faint" }));
    for (const ratio of wide < 460 ? [0.5, 1, 1.5] : [0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6])
      svg.append(text(x(ratio), y.end + 18, String(ratio), { class: "faint", "text-anchor": "middle", "font-size": 12 }));
    svg.append(text((left + wide) / 2, y.end + 36, "ratio r", { class: "faint", "text-anchor": "middle" }));
    const path = (more) => shape("path", { fill: "none", ...more });
    const free = path({ stroke: "var(--l2p-grey)", "stroke-width": 1.5, "stroke-dasharray": "3 5" });
    const curve = path({ stroke: "var(--l2p-blue)", "stroke-width": 3 });
    const slope = path({ stroke: "var(--l2p-orange)", "stroke-width": 3 });
    const trail = shape("g"), hair = shape("line", { y1: y.top, y2: y.end, stroke: "var(--l2p-text)", "stroke-width": 1 });
    const arrow = path({ stroke: "var(--l2p-orange)", "stroke-width": 4, "stroke-linecap": "round", "stroke-linejoin": "round" });
    const dot = shape("circle", { class: "clip-dot", r: 8, fill: "var(--l2p-blue)", stroke: "var(--l2p-bg)", "stroke-width": 2 });
    const under = shape("circle", { r: 6, fill: "var(--l2p-orange)", stroke: "var(--l2p-bg)", "stroke-width": 2 });
    const here = text(0, y.push - 30, "", { "text-anchor": "middle", "font-weight": 600,
      style: "paint-order: stroke; stroke: var(--l2p-bg); stroke-width: 5px" });
    const point = shape("g", { class: "clip-point", role: "slider", tabindex: 0, "aria-label": "ratio", "aria-valuemin": LOW,
      "aria-valuemax": HIGH, keydown: key,
      pointerdown: (event) => { point.setPointerCapture(event.pointerId); drag(event); },
      pointermove: (event) => { if (point.hasPointerCapture(event.pointerId)) drag(event); } },
    shape("rect", { x: left, y: y.top - 4, width: wide - right - left, height: y.end - y.top + 8, fill: "transparent" }),
    hair, dot, under);
    svg.append(free, curve, slope, trail, arrow, point, here);
    const drag = (event) => {
      const box = svg.getBoundingClientRect();
      stop();
      place(LOW + (((event.clientX - box.left) * wide) / box.width - left) / (wide - right - left) * (HIGH - LOW));
    };
    return { svg, x, y, grid, rule, dead, edge, nothing, free, curve, slope, trail, arrow, hair, dot, under, point, here };
  }

  function key(event) {
    const by = { ArrowRight: 0.02, ArrowUp: 0.02, ArrowLeft: -0.02, ArrowDown: -0.02, PageUp: 0.1, PageDown: -0.1 }[event.key];
    if (event.key === "Enter") { stop(); step(); }
    else if (event.key === " ") { timer ? stop() : start(); }
    else if (event.key === "Home") { stop(); place(LOW); }
    else if (event.key === "End") { stop(); place(HIGH); }
    else if (by !== undefined) { stop(); place(state.ratio + by); }
    else return;
    event.preventDefault();
  }

  function place(ratio) {
    state.ratio = Math.max(LOW, Math.min(HIGH, Math.round(ratio * 1000) / 1000));
    state.trail = [];
    draw();
  }

  function turn(sign) {
    stop();
    state.sign = sign;
    good.setAttribute("aria-pressed", String(sign > 0));
    bad.setAttribute("aria-pressed", String(sign < 0));
    place(1);
  }

  /** A step of the log-probability along the push. Whether it moved. */
  function step() {
    const force = push(state.ratio, state.sign, state.clip);
    if (force === 0) return false;
    state.trail.push(state.ratio);
    state.ratio = Math.max(LOW, Math.min(HIGH, state.ratio * Math.exp(data.step * force)));
    draw();
    return true;
  }

  function start() {
    if (push(state.ratio, state.sign, state.clip) === 0) place(1);
    play.textContent = "Pause";
    play.setAttribute("aria-label", "pause");
    timer = setInterval(() => { if (!step()) stop(); }, PAUSE);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-label", "play");
  }

  function draw() {
    if (!parts) return;
    const { x, y, grid, rule } = parts, { ratio, sign, clip: wide } = state, edge = 1 + sign * wide;
    const ends = sign > 0 ? [0, 2] : [-2, 0], up = scale(...ends, y.low, y.top), force = scale(...ends, y.end, y.push);
    grid.replaceChildren();
    for (const tall of [up, force]) for (const value of [0, sign, 2 * sign]) rule(tall(value), value);
    const trace = (tall, f, from, to) => { // straight between the ends, as both functions are
      return `M${x(from)} ${tall(f(from))}L${x(to)} ${tall(f(to))}`;
    };
    const worth = (r) => objective(r, sign, wide), far = sign > 0 ? HIGH : LOW, near = sign > 0 ? LOW : HIGH;
    set(parts.free, { d: trace(up, (r) => r * sign, edge, far) });
    set(parts.curve, { d: trace(up, worth, near, edge) + trace(up, worth, edge, far) });
    set(parts.slope, { d: trace(force, (r) => r * sign, near, edge) + `L${x(edge)} ${force(0)}L${x(far)} ${force(0)}` });
    set(parts.dead, { x: Math.min(x(edge), x(far)), width: Math.abs(x(far) - x(edge)) });
    set(parts.nothing, { x: (x(edge) + x(far)) / 2 });
    set(parts.edge, { x1: x(edge), x2: x(edge) });
    set(parts.hair, { x1: x(ratio), x2: x(ratio) });
    set(parts.dot, { cx: x(ratio), cy: up(worth(ratio)) });
    const pushed = push(ratio, sign, wide);
    set(parts.under, { cx: x(ratio), cy: force(pushed) });
    set(parts.here, { x: Math.max(x(LOW) + 26, Math.min(x(HIGH) - 26, x(ratio))) });
    const tip = x(ratio) + pushed * 46, at = up(worth(ratio)) - 20, head = Math.sign(pushed) * 7;
    set(parts.arrow, { d: pushed ? `M${x(ratio)} ${at}H${tip}M${tip - head} ${at - 6}L${tip} ${at}L${tip - head} ${at + 6}` : "" });
    parts.here.textContent = `r = ${ratio.toFixed(2)}`;
    parts.trail.replaceChildren(...state.trail.map((r) => shape("circle", { cx: x(r), cy: up(worth(r)), r: 4,
      fill: "var(--l2p-blue)", "fill-opacity": 0.45 })));
    set(parts.point, { "aria-valuenow": ratio.toFixed(3), "aria-valuetext":
      `ratio ${ratio.toFixed(2)}, objective ${worth(ratio).toFixed(2)}, push ${pushed.toFixed(2)}`,
    "data-objective": worth(ratio), "data-push": pushed }); // for tests: held equal to the library's loss
    one.disabled = pushed === 0;
    const kind = sign > 0 ? "good" : "bad", away = sign > 0 ? ratio < 1 : ratio > 1;
    said.textContent = pushed === 0
      ? `Push 0: the ${kind} token is ${Math.round(100 * Math.abs(ratio - 1))} % ${sign > 0 ? "likelier" : "rarer"} than when it was written; going further pays nothing, and no step moves it.`
      : `Push ${sign > 0 ? "+" : "−"}${Math.abs(pushed).toFixed(2)}: the ${kind} token is pushed ${sign > 0 ? "up" : "down"}${away ? `; it has gone the wrong way, and the clip does not protect that${Math.abs(ratio - 1) > wide ? ", however far" : ""}` : ""}.`;
  }

  fit.again();
  return () => { stop(); fit.leave(); wait(); };
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}
