// What every picture is built of. A picture's own file follows and defines `picture(stage, model)`, which draws
// model.get("data") into `stage`, an empty element, and may return a function that is called when the picture goes.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; attributes that are functions listen ("click"), children are elements or texts, never markup. */
function node(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** An SVG element, in the same way. */
function shape(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A drawing area of width x height units that shrinks with its column; `words` is what a screen reader says. */
function canvas(width, height, words) {
  return shape("svg", { role: "img", "aria-label": words, viewBox: `0 0 ${width} ${height}`, class: "l2p-canvas",
    style: `max-width: ${width}px` });
}

/** A number as short as it can be said: three digits that count. */
function short(value) {
  if (!Number.isFinite(value)) return "-";
  if (value === 0) return "0";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

/** Whether the reader asked for less motion: then nothing plays or glides by itself. */
const still = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Calls `start` once, as soon as a good part of `element` is seen; not after a press or a key in it, and never for a reader
    who wants no motion. Returns what takes it back. */
function onceSeen(element, start) {
  const watch = new IntersectionObserver((found) => {
    if (!found.some((one) => one.isIntersecting)) return;
    cancel();
    if (!still()) start();
  }, { threshold: 0.3 });
  const cancel = () => watch.disconnect();
  for (const touch of ["pointerdown", "keydown"]) element.addEventListener(touch, cancel);
  watch.observe(element);
  return cancel;
}

/** Calls `build(width)` whenever `board` has another width (between 320 and 900 px, which drawings are made for).
    Returns {again, leave}: again() builds for the width there is now, leave() ends it. */
function fitted(board, build) {
  let width = 0;
  const fit = () => {
    const now = Math.max(320, Math.min(900, Math.round(board.clientWidth || 660)));
    if (now !== width) build((width = now));
  };
  const watch = new ResizeObserver(fit);
  watch.observe(board);
  return { again: () => { width = 0; fit(); }, leave: () => watch.disconnect() };
}

/** A button; `pressed` makes it a toggle whose state is seen and said. */
function button(words, press, { label = words, pressed = null } = {}) {
  return node("button", { type: "button", class: "l2p-button", "aria-label": label, click: press,
    "aria-pressed": pressed === null ? null : String(pressed) }, words);
}

/** A slider with its name and its value as text. `change(value)` is called as it moves. */
function slider(name, { min, max, step = 1, value, say = short, change }) {
  const said = node("output", { class: "l2p-value" }, say(value));
  const input = node("input", { type: "range", min, max, step, value, "aria-label": name,
    input: () => { said.textContent = say(Number(input.value)); change(Number(input.value)); } });
  const row = node("label", { class: "l2p-slider" }, node("span", {}, name), input, said);
  row.set = (to) => { input.value = to; said.textContent = say(to); };
  return row;
}

/** Back, play, on, and a slider over `count` steps: `show(step)` is called for each. Left and right step, space plays,
    home and end jump; `say(step)` is read out. Returns {bar, go, stop, start, at, grow}: grow(count) where steps are added. */
function player(count, show, { say = (step) => `${step + 1} of ${count}`, pause = 900, name = "step" } = {}) {
  let at = 0, timer = null;
  const track = slider(name, { min: 0, max: count - 1, value: 0, say, change: (step) => { stop(); go(step); } });
  const play = button("Play", () => (timer ? stop() : start()), { label: "play" });
  const bar = node("div", { class: "l2p-bar", keydown: key },
    button("‹", () => { stop(); go(at - 1); }, { label: "back" }), play,
    button("›", () => { stop(); go(at + 1); }, { label: "on" }), track);

  function go(step) {
    at = Math.max(0, Math.min(count - 1, step));
    track.set(at);
    show(at);
  }
  function start() {
    if (at === count - 1) go(0);
    play.textContent = "Pause";
    play.setAttribute("aria-label", "pause");
    timer = setInterval(() => (at < count - 1 ? go(at + 1) : stop()), pause);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-label", "play");
  }
  function key(event) {
    const onTrack = event.target.tagName === "INPUT", onButton = event.target.tagName === "BUTTON";
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: count - 1 };
    if (event.key in steps && !onTrack) { stop(); go(steps[event.key]); }
    else if (event.key === " " && !onButton) { timer ? stop() : start(); }
    else return;
    event.preventDefault();
  }
  function grow(to) {
    count = to;
    track.querySelector("input").max = count - 1;
  }
  return { bar, go, stop, start, grow, at: () => at };
}

/** A link to a notebook beside this one. JupyterLab routes by its address: told that this changed, it opens the notebook
    in a tab of its own and loads nothing anew. Elsewhere it is a plain link. */
function notebookLink(file, words) {
  return node("a", { href: file, click: (event) => {
    const panel = event.currentTarget.closest(".jp-NotebookPanel");
    const tab = panel && document.querySelector(`.lm-DockPanel [data-id="${panel.id}"]`); // its title says the path
    const path = tab?.title.match(/: (.*\/|)[^/\n]*\.ipynb$/gm)?.at(-1);
    const settings = document.getElementById("jupyter-config-data");
    if (!path || !settings || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const folder = path.slice(2).replace(/[^/]*$/, "").split("/").map(encodeURIComponent).join("/");
    event.preventDefault();
    window.history.pushState({}, "", `${JSON.parse(settings.textContent).baseUrl}lab/tree/${folder}${file}`);
    window.dispatchEvent(new PopStateEvent("popstate"));
  } }, words);
}

/** The horizontal place of a value between two ends, for drawing. */
function scale(low, high, from, to) {
  const span = high > low ? high - low : 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

export default {
  render({ model, el }) {
    // JupyterLab has its own use for keys, the arrows on a slider too; here they are the picture's.
    const stage = node("div", { class: "l2p", keydown: (event) => event.stopPropagation() });
    el.append(stage);
    let leave = picture(stage, model);
    const again = () => { leave?.(); stage.replaceChildren(); leave = picture(stage, model); };
    model.on("change:data", again);
    return () => { model.off("change:data", again); leave?.(); };
  },
};
