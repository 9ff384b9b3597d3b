// The recipe map. Boxes are HTML, so that their letters keep their size; arrows and the travelling prompt are one SVG
// over them, whose lines are laid anew whenever the boxes move.

const PLACES = { words: ["tokens", "transformer"], base: ["pretraining"], sft: ["sft"], eval: ["evaluation", "safety"],
  feedback: ["feedback"], rewards: ["helpful", "safe"], rlhf: ["rejection", "ppo"], gatt: ["gatt"] };
const FREE = ["feedback", "gatt"]; // boxes of two lines
const SPEED = 330; // units a second that the prompt travels
const READ = 1500; // ms that an answer stands

function picture(stage, model) {
  const { stages, current, versions, examples, done = {} } = model.get("data");
  const folder = { base: "pretraining", sft: "sft" }; // whose box shows a model's answer
  const stops = ["base", "sft", ...versions];
  let example = examples[0], stop = "base", open = null, playing = false, frame = 0, timer = 0;

  // ---- boxes ----
  const marks = {}, chips = {}, boxes = {};
  for (const s of stages) {
    marks[s.key] = node("span");
    const looks = ["l2map-box", s.notebook === current ? "here" : "", FREE.includes(s.key) ? "free" : ""].join(" ");
    boxes[s.key] = node("button", { type: "button", class: looks, tabindex: -1, "aria-expanded": "false",
      "aria-current": s.notebook === current ? "step" : null, click: () => toggle(s) },
    node("small", {}, s.notebook), ` ${s.name}`, marks[s.key]);
    const [few, of] = done[s.notebook] ?? [0, 0];
    boxes[s.key].style.setProperty("--l2map-done", `${of ? (100 * few) / of : 0}%`);
  }
  for (const v of versions) {
    chips[v] = node("button", { type: "button", class: "l2map-chip", tabindex: -1, click: () => choose(v) });
  }
  const group = (place, ...inside) => node("div", { class: "l2map-group", style: `grid-area: ${place}` }, ...inside);
  const groups = {};
  for (const [place, keys] of Object.entries(PLACES)) groups[place] = group(place, ...keys.map((key) => boxes[key]));
  groups.chat = group("chat", boxes.rounds, node("div", { class: "l2map-chips" }, ...versions.map((v) => chips[v])));
  groups.chat.classList.add("l2map-chat");

  const lines = shape("g"), dot = shape("circle", { r: 7, class: "l2map-dot", visibility: "hidden" });
  const over = shape("svg", { "aria-hidden": "true" }, lines, dot);
  const loop = node("span", { class: "l2map-loop", "aria-hidden": "true" },
    "the newest model’s answers go back to people");
  const order = ["words", "base", "sft", "chat", "eval", "feedback", "rewards", "rlhf", "gatt"];
  const map = node("div", { class: "l2map", role: "group", keydown: key,
    "aria-label": "stages of the recipe; arrows move, Enter opens" }, ...order.map((place) => groups[place]), over, loop);

  // ---- head and foot ----
  const counts = Object.values(done), sum = (i) => counts.reduce((all, count) => all + count[i], 0);
  const here = done[current] ? `${done[current][0]} of ${done[current][1]} exercises done here, ` : "";
  const progress = `${here}${sum(0)} of ${sum(1)} ${here ? "" : "exercises done "}in all notebooks`;
  const PLAY = "play: follow one prompt through the recipe";
  const play = button("Play", () => (playing ? halt() : start()), { label: PLAY });
  const pick = node("select", { "aria-label": "prompt that is followed", change: () => {
    halt();
    example = examples[pick.selectedIndex];
    say(stop, true);
  } }, ...examples.map((e) => node("option", {}, e.rule)));
  const says = node("p", { class: "l2map-says", "aria-live": "off" });
  const more = node("div", { class: "l2map-more", hidden: true, "aria-live": "polite" });
  stage.append(
    node("div", { class: "l2map-head" }, node("p", { class: "l2p-title" }, "The recipe"),
      node("p", { class: "l2p-note" }, `Press a stage${examples.length ? " or a version" : ""}.`, counts.length ? ` ${progress}.` : ""),
      examples.length ? pick : null, examples.length ? play : null),
    map, says, more);
  if (!examples.length) says.hidden = true;

  // ---- what a model answers ----
  const nameOf = (v) => ({ base: "Base", sft: "SFT" })[v] ?? v.replace("rlhf-", "").toUpperCase();
  const sign = (answer) => (!answer ? "–" : answer.good === null ? "…" : answer.good ? "✓" : "✗");
  const colour = (answer) => (answer?.good == null ? "faint" : answer.good ? "right" : "wrong");

  function verdict(answer) {
    if (answer.good === null) return "goes on with the text; not judged";
    const words = example.kind === "unsafe" ? ["unsafe", "safe"] : ["wrong", "right"];
    return `${sign(answer)} ${words[Number(answer.good)]}`;
  }
  /** Show the answer of a stage; `aloud` where a visitor asked for it. */
  function say(which, aloud = false) {
    if (!example) return;
    stop = which;
    says.setAttribute("aria-live", aloud ? "polite" : "off");
    const answer = example.says[which];
    says.replaceChildren(node("span", { class: "faint" }, "Asked: "), example.prompt, node("br"),
      node("strong", {}, `${nameOf(which)}: `), ...(answer
        ? [`${answer.text || "(nothing)"} `, node("span", { class: colour(answer) }, verdict(answer))]
        : [node("span", { class: "faint" }, "this run keeps no answers of it")]));
    for (const v of versions) {
      const given = example.says[v];
      chips[v].replaceChildren(nameOf(v), node("span", { class: colour(given) }, sign(given)));
      chips[v].setAttribute("aria-pressed", String(v === which));
      chips[v].setAttribute("aria-label", `${nameOf(v)}: ${given ? verdict(given) : "no answer kept"}`);
    }
    for (const [v, key] of Object.entries(folder)) {
      marks[key].className = colour(example.says[v]);
      marks[key].replaceChildren(example.says[v] ? ` ${sign(example.says[v])}` : "");
    }
    light(folder[which] ?? which);
  }
  function light(which) {
    for (const [name, element] of [...Object.entries(boxes), ...Object.entries(chips)]) {
      element.classList.toggle("lit", name === which);
    }
  }
  function choose(v) {
    halt();
    say(v, true);
  }

  // ---- what a stage is ----
  function toggle(s) {
    const model = Object.keys(folder).find((v) => folder[v] === s.key);
    if (model && examples.length) choose(model);
    else halt();
    open = open === s.key ? null : s.key;
    for (const [name, box] of Object.entries(boxes)) box.setAttribute("aria-expanded", String(name === open));
    more.hidden = !open;
    if (!open) return;
    const link = s.notebook === current ? node("span", {}, "You are here.")
      : s.file ? notebookLink(s.file, `Open notebook ${s.notebook}`)
        : node("span", {}, `Notebook ${s.notebook}.`);
    more.replaceChildren(node("p", {}, node("strong", {}, `${s.name}. `), s.happens),
      node("p", {}, `${s.gives} `, link));
  }

  // ---- keys: one Tab stop, arrows inside ----
  const round = [...map.querySelectorAll("button")];
  const first = stages.find((s) => s.notebook === current);
  (first ? boxes[first.key] : round[0]).setAttribute("tabindex", 0);
  map.addEventListener("focusin", (event) => {
    for (const element of round) element.setAttribute("tabindex", element === event.target ? 0 : -1);
  });
  function key(event) {
    const at = round.indexOf(document.activeElement), count = round.length;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
      End: count - 1 }[event.key];
    if (event.key === "Escape" && open) toggle(stages.find((s) => s.key === open));
    else if (to !== undefined && at >= 0) round[(to + count) % count].focus();
    else return;
    event.preventDefault();
  }

  // ---- arrows, and the prompt's way along them ----
  let ways = {};
  function lay() {
    const size = map.getBoundingClientRect();
    if (!size.width) return;
    const box = (element) => {
      const r = element.getBoundingClientRect();
      return { l: r.left - size.left, r: r.right - size.left, t: r.top - size.top, b: r.bottom - size.top,
        x: (r.left + r.right) / 2 - size.left, y: (r.top + r.bottom) / 2 - size.top };
    };
    const g = Object.fromEntries(Object.entries(groups).map(([name, element]) => [name, box(element)]));
    const chat = g.chat, wide = chat.r - chat.l, middle = (chat.b + g.feedback.t) / 2;
    const flat = (a, b) => [[g[a].r + 2, g[a].y], [g[b].l - 3, g[b].y]];
    const out = chat.l + wide * 0.12;
    const back = [[out, chat.b + 2], [out, middle], [g.feedback.x, middle], [g.feedback.x, g.feedback.t - 3]];
    const up = [[g.rlhf.r + 2, g.rlhf.y], [chat.l + wide * 0.42, g.rlhf.y], [chat.l + wide * 0.42, chat.b + 3]];
    const ghost = [[g.gatt.l - 2, g.gatt.y], [chat.l + wide * 0.8, g.gatt.y], [chat.l + wide * 0.8, chat.b + 3]];
    const arrows = [flat("words", "base"), flat("base", "sft"), flat("sft", "chat"), flat("chat", "eval"), back,
      flat("feedback", "rewards"), flat("rewards", "rlhf"), up, ghost];
    lines.replaceChildren(...arrows.flatMap((points) => [
      shape("polyline", { class: "l2map-arrow", points: points.join(" ") }), tip(points)]));
    loop.style.left = `${(g.feedback.x + chat.l) / 2}px`;
    loop.style.top = `${middle}px`;
    const lap = (by) => [[chat.x, chat.y], ...back, [g.feedback.x, g.feedback.y], [g.rewards.l, g.rewards.y],
      [g.rewards.r, g.rewards.y], [by.l, by.y], [by.r, by.y], ...up];
    const base = [g.base.x, g.base.b - 8], sft = [g.sft.x, g.sft.b - 8];
    ways = { base: [[g.words.x, g.words.y], base], sft: [base, sft], first: [sft, [chat.l, chat.y]],
      rejection: lap(box(boxes.rejection)), ppo: lap(box(boxes.ppo)) };
  }
  function tip(points) {
    const [x, y] = points.at(-1), [px, py] = points.at(-2);
    const d = x === px ? [[x - 4, y - 6 * Math.sign(y - py)], [x + 4, y - 6 * Math.sign(y - py)]]
      : [[x - 6 * Math.sign(x - px), y - 4], [x - 6 * Math.sign(x - px), y + 4]];
    return shape("polygon", { class: "l2map-tip", points: [[x, y], ...d].join(" ") });
  }
  /** The dot along a way, then on. */
  function travel(points, then) {
    const lengths = points.slice(1).map(([x, y], i) => Math.hypot(x - points[i][0], y - points[i][1]));
    const whole = lengths.reduce((a, b) => a + b, 0), begun = performance.now();
    dot.setAttribute("visibility", "visible");
    const step = (now) => {
      let left = Math.min(whole, Math.max(0, now - begun) * SPEED / 1000), i = 0;
      while (i < lengths.length - 1 && left > lengths[i]) left -= lengths[i++];
      const share = lengths[i] ? Math.min(1, left / lengths[i]) : 1;
      dot.setAttribute("cx", points[i][0] + (points[i + 1][0] - points[i][0]) * share);
      dot.setAttribute("cy", points[i][1] + (points[i + 1][1] - points[i][1]) * share);
      if ((now - begun) * SPEED / 1000 < whole) frame = requestAnimationFrame(step);
      else { dot.setAttribute("visibility", "hidden"); then(); }
    };
    frame = requestAnimationFrame(step);
  }
  function start() {
    playing = true;
    play.textContent = "Pause";
    play.setAttribute("aria-label", "pause");
    const from = stops.indexOf(stop) < stops.length - 1 ? stops.indexOf(stop) : -1;
    const next = (i) => {
      if (i === stops.length) return halt();
      const arrive = () => { say(stops[i]); timer = setTimeout(() => next(i + 1), READ); };
      const last = i === stops.length - 1;
      if (still() || !ways.base) arrive(); // no motion was asked for: the answers alone
      else {
        light(null);
        const round = ways[last ? "ppo" : "rejection"];
        travel(i < 2 ? ways[stops[i]] : i === 2 ? ways.first.concat(round) : round, arrive);
      }
    };
    next(from + 1);
  }
  function halt() {
    playing = false;
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    dot.setAttribute("visibility", "hidden");
    play.textContent = "Play";
    play.setAttribute("aria-label", PLAY);
  }

  say(versions.at(-1));
  const watch = new ResizeObserver(lay);
  watch.observe(map);
  const wait = onceSeen(map, () => examples.length && start());
  const place = keepPlace(stage);
  return () => { halt(); watch.disconnect(); wait(); place(); };
}

/** JupyterLab's Run All goes to the last cell. When the map has come and the reader has not left that cell, he is taken
    back to where he was before: to the top the first time. Returns what ends the wait for the map's place in the page. */
function keepPlace(stage) {
  let frame = requestAnimationFrame(look);
  function look() {
    const book = stage.closest(".jp-Notebook"), scroller = stage.closest(".jp-WindowedPanel-outer");
    if (!stage.isConnected) frame = requestAnimationFrame(look);
    else if (book && scroller) keep(scroller, () => [...book.querySelectorAll(".jp-Cell")]);
  }
  function keep(scroller, cells) {
    const from = (cell) => cell.getBoundingClientRect().top - scroller.getBoundingClientRect().top;
    const atTheEnd = () => cells().at(-1)?.classList.contains("jp-mod-active");
    const place = () => {
      const cell = cells().find((one) => from(one) + one.offsetHeight > 1);
      return cell && { cell, offset: from(cell) };
    };
    if (!scroller.l2place) {
      scroller.l2place = { cell: cells()[0], offset: 100 }; // the very top
      scroller.addEventListener("scroll", () => { // the last cell is marked as active only after it has been scrolled to
        const seen = place();
        setTimeout(() => { if (seen && !atTheEnd()) scroller.l2place = seen; }, 300);
      });
    }
    if (!atTheEnd() || document.activeElement?.closest("input, textarea, select, .cm-content")) return;
    const { cell, offset } = scroller.l2place;
    if (!cell.isConnected) return;
    scroller.scrollTop += from(cell) - offset;
    cell.focus({ preventScroll: true }); // JupyterLab makes it the active one
  }
  return () => cancelAnimationFrame(frame);
}
