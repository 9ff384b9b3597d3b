// A question or a prediction: the statement, a form, and what came of it. Each form is {element, value}: its value is null
// until there is an answer to give.

/** One of several: [key, words]. */
function choice(asked, change) {
  const name = `l2ask-${Math.random().toString(36).slice(2)}`;
  let key = null;
  const rows = asked.options.map(([one, words]) => node("label", { class: "l2ask-option" },
    node("input", { type: "radio", name, value: one, change: () => { key = one; change(); } }), node("span", {}, words)));
  return { element: node("fieldset", {}, node("legend", { class: "l2p-unseen" }, asked.task), ...rows), value: () => key };
}

/** A number that is written; Enter gives it. */
function number(asked, change, give) {
  const input = node("input", { type: "text", inputmode: "decimal", class: "l2ask-number", "aria-label": "your answer, a number",
    autocomplete: "off", input: change, keydown: (event) => event.key === "Enter" && input.value.trim() && give() });
  return { element: node("div", { class: "l2p-bar" }, input), value: () => input.value.trim() || null };
}

/** A number between two ends, by slider or written. The slider stands in the middle and says nothing until it is moved. */
function guess(asked, change, give) {
  const { low, high } = asked;
  const step = 10 ** Math.floor(Math.log10((high - low) / 100));
  const write = number(asked, () => { row.set(write.value() ?? (low + high) / 2); change(); }, give);
  const input = write.element.firstChild;
  const row = slider("your guess", { min: low, max: high, step, value: (low + high) / 2, say: () => "",
    change: (value) => { input.value = short(value); change(); } });
  row.querySelector("output").remove();
  return { element: node("div", { class: "l2p-bar" }, node("span", { class: "l2ask-end" }, short(low)), row,
    node("span", { class: "l2ask-end" }, short(high)), input), value: write.value };
}

/** All of several in an order: drag them, or press the arrows of a row. */
function order(asked, change) {
  const words = Object.fromEntries(asked.options.map(([key, said]) => [key, said]));
  const list = node("ol", { class: "l2ask-order" });
  let keys = asked.options.map(([key]) => key), held = null, touched = false;
  const move = (key, to) => {
    if (to < 0 || to >= keys.length) return;
    keys = keys.filter((one) => one !== key);
    keys.splice(to, 0, key);
    touched = true;
    draw();
    change();
  };
  function draw() {
    list.replaceChildren(...keys.map((key, i) => {
      const push = (by, arrow) => button(arrow, () => {
        move(key, i + by);
        list.children[Math.max(0, Math.min(keys.length - 1, i + by))].querySelector(`[data-by="${by}"]`).focus();
      }, { label: `${words[key]}: one ${by < 0 ? "up" : "down"}, now ${i + 1} of ${keys.length}` });
      const row = node("li", { draggable: "true", dragstart: () => { held = key; },
        dragover: (event) => { event.preventDefault(); if (held && held !== key) move(held, i); },
        drop: (event) => { event.preventDefault(); held = null; } },
      node("span", { class: "l2ask-words" }, words[key]), push(-1, "↑"), push(1, "↓"));
      row.querySelectorAll("button").forEach((one, at) => { one.dataset.by = at ? 1 : -1; });
      return row;
    }));
  }
  draw();
  return { element: list, value: () => keys, untouched: () => !touched };
}

/** A guess and what was measured, on one line: dashed and solid. */
function onLine({ guess: value, measured }) {
  const all = value === undefined ? [measured] : [measured, value];
  const room = Math.max(Math.max(...all) - Math.min(...all), Math.abs(measured) * 0.2, 1e-9);
  const at = scale(Math.min(...all) - room / 2, Math.max(...all) + room / 2, 20, 580);
  const words = `measured ${short(measured)}${value === undefined ? "" : `, your guess ${short(value)}`}`;
  const svg = canvas(600, 74, words);
  const anchor = (x) => (x < 90 ? "start" : x > 510 ? "end" : "middle");
  svg.append(shape("line", { x1: 20, x2: 580, y1: 40, y2: 40, stroke: "var(--l2p-line)" }));
  if (value !== undefined) {
    const x = at(value);
    svg.append(shape("line", { x1: x, x2: x, y1: 20, y2: 56, stroke: "var(--l2p-orange)", "stroke-width": 2.5,
      "stroke-dasharray": "5 4" }), shape("text", { x, y: 14, "text-anchor": anchor(x) }, `your guess ${short(value)}`));
  }
  const x = at(measured);
  svg.append(shape("circle", { cx: x, cy: 40, r: 7, fill: "var(--l2p-blue)" }),
    shape("text", { x, y: 70, "text-anchor": anchor(x) }, `measured ${short(measured)}`));
  return svg;
}

/** Two orders side by side, or the chosen one of several. */
function inWords(asked, { guess: value, measured }) {
  const words = Object.fromEntries(asked.options.map(([key, said]) => [key, said]));
  const column = (name, keys) => node("div", {}, node("strong", {}, name), node("ol", {},
    ...keys.map((key) => node("li", {}, words[key] ?? key))));
  const listed = (keys) => (Array.isArray(keys) ? keys : [keys]);
  return node("div", { class: "l2ask-columns" }, value === undefined ? null : column("your guess", listed(value)),
    column("measured", listed(measured)));
}

const FORMS = { choice, number, guess, order };

function picture(stage, model) {
  const asked = model.get("data");
  const give = () => send({ answer: form.value() });
  const form = FORMS[asked.form](asked, fresh, give);
  const lock = button(asked.prediction ? "Lock my guess" : "Check", give);
  const peek = asked.prediction ? button("Show me", () => send({ show: true }), { label: "show me the result without a guess" }) : null;
  const says = node("div", { class: "l2ask-says", "aria-live": "polite" });
  const cover = asked.prediction ? node("p", { class: "l2ask-cover" },
    "The result is covered. Guess first: whoever has guessed sees more.") : null;
  const ask = node("div", {}, form.element, node("div", { class: "l2p-bar" }, lock, peek));
  const hints = asked.hints.map((hint, i) => node("details", {},
    node("summary", {}, `Hint ${i + 1} of ${asked.hints.length}`), node("p", {}, hint)));
  stage.classList.add("l2ask");
  stage.append(node("p", { class: "l2p-title" }, `${asked.prediction ? "Predict" : "Question"}: ${asked.title}`),
    node("p", { class: "l2ask-task" }, asked.task), ask, ...hints, cover ?? "", says,
    node("p", { class: "l2p-note" }, asked.facts));

  let presses = 0, waiting = 0;
  function fresh() {
    lock.disabled = form.value() === null;
  }
  function send(given) {
    if (given.answer === null) return;
    presses += 1;
    model.set("given", { ...given, press: presses });
    model.save_changes();
    clearTimeout(waiting);
    waiting = setTimeout(() => says.replaceChildren(
      "No answer yet. If the kernel is busy, wait; if it was restarted, run this cell again."), 4000);
  }
  function say() {
    const found = model.get("found");
    clearTimeout(waiting);
    if (!found.head) return;
    ask.hidden = Boolean(found.open);
    if (cover) cover.hidden = Boolean(found.open);
    const drawn = found.measured === undefined ? null
      : asked.form === "guess" ? onLine(found) : inWords(asked, found);
    says.className = `l2ask-says ${found.status.replace(" ", "-")}`;
    const head = found.open && found.guess === undefined ? "Shown without a guess" : found.head;
    says.replaceChildren(node("strong", {}, head), node("p", {}, found.message), drawn ?? "");
  }
  fresh();
  say();
  model.on("change:found", say);
  return () => { clearTimeout(waiting); model.off("change:found", say); };
}
