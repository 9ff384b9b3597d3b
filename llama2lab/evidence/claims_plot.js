// The forest plot of claims. One axis for all: a difference counted in halves of its own interval, so that every
// interval begins two units long and shrinks with the root of the data.

const WIDE = 250, EDGE = 4, LINE = 12; // units of the drawing; where the axis ends; the height of one difference
const TIMES = [1, 2, 5, 10, 20, 50, 100, 1000];
const KINDS = { seen: "seen", refuted: "refuted", "not decided": "open" };

function picture(stage, model) {
  const { claims, counts } = model.get("data");
  if (!claims.length) {
    stage.append(node("p", {}, "No evidence is stored here; a checkout of the project holds it in data/."));
    return undefined;
  }
  const x = scale(-EDGE - 0.4, EDGE + 0.4, 0, WIDE);
  let times = 1, marks = [];

  const notebooks = [...new Set(claims.map((c) => c.notebook))];
  const pick = node("select", { "aria-label": "claims of which notebook", change: list },
    node("option", { value: "" }, `all ${claims.length} claims`),
    ...notebooks.map((n) => node("option", { value: n }, `notebook ${n}`)));
  const verdicts = node("select", { "aria-label": "claims of which verdict", change: list },
    node("option", { value: "" }, "any verdict"),
    ...Object.entries(counts).map(([words, n]) => node("option", { value: words }, `${words} (${n})`)));
  const data = slider("data", { min: 0, max: TIMES.length - 1, value: 0,
    say: (i) => `× ${TIMES[i].toLocaleString("en")}`, change: (i) => { times = TIMES[i]; move(); } });
  const said = node("p", { class: "l2f-say", "aria-live": "polite" });
  const rows = node("ul", { class: "l2f-list", keydown: key });

  const axis = shape("svg", { viewBox: `0 0 ${WIDE} 30`, height: 30, "aria-hidden": "true" },
    shape("text", { x: 0, y: 11 }, "against the report"),
    shape("text", { x: WIDE, y: 11, "text-anchor": "end" }, "for it"),
    ...[-4, -2, 0, 2, 4].map((tick) => shape("text", { x: x(tick), y: 27, "text-anchor": "middle" },
      String(tick).replace("-", "−"))));
  stage.classList.add("l2f");
  stage.append(
    node("p", { class: "l2p-title" }, "What became of the report’s claims here"),
    node("p", { class: "l2p-note" }, "Press a claim for its figures. A bar is one difference with its 95 % interval: it "
      + "is told if it leaves 0 out. The axis counts in halves of that interval; arrows lie further out."),
    node("div", { class: "l2p-bar l2f-bar-controls" }, notebooks.length > 1 ? pick : null,
      Object.keys(counts).length > 1 ? verdicts : null, data),
    said,
    node("div", { class: "l2f-head", "aria-hidden": "true" }, node("span"), node("span"), axis), rows);

  /** One difference: its bar, and a dot that says the verdict by its shape. */
  function mark(figure, at) {
    const y = 6 + at * LINE, bar = shape("rect", { class: "l2f-bar", y: y - 1, height: 2 });
    const dot = shape("path", { class: "l2f-dot" });
    const group = shape("g", {}, bar, dot);
    bar.style.x = `${x(0)}px`;
    bar.style.width = "0px";
    dot.style.transform = `translate(${x(0)}px, ${y}px)`;
    marks.push({ figure, group, bar, dot, y });
    return group;
  }
  /** (mean, low, high) with `times` as many data. */
  function shrunk(figure) {
    if (!figure.place) return Array(3).fill(Math.sign(figure.mean) * 2 * EDGE); // counted: beyond doubt
    const [mean, low, high] = figure.place, root = figure.grows ? Math.sqrt(times) : 1;
    return [mean, mean + (low - mean) / root, mean + (high - mean) / root];
  }
  /** The verdict that `times` as many data would give, if mean and spread stayed as they are. */
  function then(figure) {
    const [, low, high] = shrunk(figure);
    return !figure.grows ? figure.verdict : low > 0 ? "seen" : high < 0 ? "refuted" : "not decided";
  }
  const clip = (value) => Math.max(-EDGE, Math.min(EDGE, value));
  const DOTS = { seen: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", refuted: "M-5,0L0,-5L5,0L0,5Z",
    open: "M-3.5,-3.5H3.5V3.5H-3.5Z", right: "M-4,-4.5L4,0L-4,4.5Z", left: "M4,-4.5L-4,0L4,4.5Z" };

  function move() {
    let open = 0, told = 0;
    for (const { figure, group, bar, dot, y } of marks) {
      const [mean, low, high] = shrunk(figure), verdict = then(figure);
      if (figure.verdict === "not decided") open += 1;
      if (figure.verdict === "not decided" && verdict !== figure.verdict) told += 1;
      group.setAttribute("class", KINDS[verdict]);
      bar.style.x = `${x(clip(low))}px`;
      bar.style.width = `${x(clip(high)) - x(clip(low))}px`;
      dot.style.transform = `translate(${x(clip(mean))}px, ${y}px)`;
      dot.setAttribute("d", DOTS[mean > EDGE ? "right" : mean < -EDGE ? "left" : KINDS[verdict]]);
      dot.setAttribute("class", `l2f-dot${figure.verdict === "not decided" ? " hollow" : ""}`);
    }
    const part = `${marks.length - open} of ${marks.length} differences are told`;
    said.textContent = times === 1 ? `${part}. Move “data”: what would more of them decide?`
      : `${part}; ${times.toLocaleString("en")} times the data would tell ${told} of the other ${open}, `
        + "if mean and spread stayed as they are.";
  }

  function row(claim) {
    const high = 2 + LINE * Math.max(1, claim.figures.length);
    const plot = shape("svg", { viewBox: `0 0 ${WIDE} ${high}`, height: high, "aria-hidden": "true" },
      shape("line", { class: "l2f-zero", x1: x(0), x2: x(0), y1: -5, y2: high + 5 }), ...claim.figures.map(mark));
    const kind = claim.verdict.startsWith("seen and") ? "open" : claim.verdict.startsWith("seen") ? "seen"
      : claim.verdict.startsWith("refuted") ? "refuted" : "open";
    const more = node("div", { class: "l2f-more", hidden: true });
    const fold = () => {
      if (!more.childElementCount) more.append(...details(claim));
      more.hidden = !more.hidden;
      press.setAttribute("aria-expanded", String(!more.hidden));
    };
    const attributes = { type: "button", class: "l2f-row", "aria-expanded": "false", tabindex: -1, click: fold };
    const press = node("button", attributes,
      node("span", { class: `l2f-said ${kind}` }, node("b", { "aria-hidden": "true" }, claim.sign), claim.verdict),
      node("span", {}, `${claim.number} ${claim.words}`, node("small", {}, `report: ${claim.report}`)), plot);
    return node("li", {}, press, more);
  }
  function details(claim) {
    const where = `notebook ${claim.notebook}`, link = claim.file ? notebookLink(claim.file, where) : where;
    const from = node("p", {}, "Above 0 the report is right. Measured in ", link, ".");
    if (!claim.figures.length) return [node("p", {}, "A matter to read about, not to measure: ", link, ".")];
    const names = ["difference", "mean [interval]", "n", "verdict"];
    const head = node("tr", {}, ...names.map((name) => node("th", { scope: "col" }, name)));
    const body = claim.figures.map((f) => node("tr", {}, ...[f.words, f.shown, f.n].map((text) => node("td", {}, text)),
      node("td", { class: KINDS[f.verdict] }, f.verdict, f.price ? `; ${f.price}` : "")));
    return [node("table", {}, node("thead", {}, head), node("tbody", {}, ...body)), from];
  }

  function list() {
    marks = [];
    const fits = (c) => [c.notebook, ""].includes(pick.value) && [c.verdict, ""].includes(verdicts.value);
    rows.replaceChildren(...claims.filter(fits).map(row));
    rows.querySelector(".l2f-row")?.setAttribute("tabindex", 0);
    requestAnimationFrame(() => requestAnimationFrame(move)); // from 0 outwards, where motion is wanted
  }
  function key(event) {
    const all = [...rows.querySelectorAll(".l2f-row")], at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    all[at].setAttribute("tabindex", -1);
    const next = all[Math.max(0, Math.min(all.length - 1, to))];
    next.setAttribute("tabindex", 0);
    next.focus();
    event.preventDefault();
  }
  list();
  return undefined;
}
