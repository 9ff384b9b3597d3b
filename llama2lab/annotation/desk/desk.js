// The teacher's desk: a live view that asks Python every few seconds while it is seen, and disputed pairs below it. The
// view is read only, so that nothing that has the focus is ever replaced.

const DESK_SILENCE_MS = 20000;  // after this long without an answer the page says so, and asks again
const deskId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
const deskPercent = (figure) => (figure ? `${Math.round(100 * figure.mean)}%` : "–");
const deskShare = (figure) => (figure ? `${Math.round(figure.mean * figure.n)} of ${figure.n}` : "–");

function deskAgo(one) {
  if (one.here) return "here";
  if (one.ago === null) return "–";
  const minutes = Math.round(one.ago / 60);
  if (minutes < 120) return `${minutes} min ago`;
  return minutes < 2880 ? `${Math.round(minutes / 60)} h ago` : `${Math.round(minutes / 1440)} days ago`;
}

const DESK_COLUMNS = [
  ["annotator", (one) => one.name],
  ["now", deskAgo],
  ["judged", (one) => String(one.judged) + (one.skipped ? `, ${one.skipped} skipped` : "")],
  ["last 10 min", (one) => String(one.lately)],
  ["median s", (one) => (one.seconds === null ? "–" : `${one.seconds}`)],
  ["skimming s", (one) => (one.skimming === null ? "–" : `${one.skimming}`)],
  ["gold right", (one) => deskShare(one.gold)],
  ["with others", (one) => deskPercent(one.others)],
  ["flags", (one) => String(one.flags)],
];

class Desk {
  constructor(model, host) {
    this.model = model;
    this.config = model.get("_config");
    this.boxes = new Map();
    this.revision = null;
    this.paused = false;
    this.asking = false;
    this.known = null;  // whose work wanted a look before
    this.build();
    host.append(this.root);
    this.onMessage = (message) => this.receive(message);
    model.on("msg:custom", this.onMessage);
    // As in the annotators' form: JupyterLab's shortcuts are off here, save those with Ctrl, Cmd or Alt.
    this.beforeJupyter = (event) => {
      if (!this.root.contains(event.target)) return;
      if (event.ctrlKey || event.metaKey || event.altKey) this.root.removeAttribute("data-lm-suppress-shortcuts");
      else this.root.setAttribute("data-lm-suppress-shortcuts", "true");
    };
    window.addEventListener("keydown", this.beforeJupyter, true);
    if (this.config.app) document.title = "Annotation, live";
    this.timer = setInterval(() => this.tick(), 1000 * this.config.every);
    this.refresh();
  }

  remove() {
    this.model.off("msg:custom", this.onMessage);
    window.removeEventListener("keydown", this.beforeJupyter, true);
    clearInterval(this.timer);
    for (const settle of this.boxes.values()) settle({ ok: false, error: "The view was closed." });
  }

  build() {
    this.asOf = h("span", { class: "l2a-faint" });
    this.pause = deskButton("Pause", null, () => this.togglePause(), { "aria-pressed": "false" });
    this.trouble = h("div", { class: "l2a-trouble", role: "alert", hidden: true });
    this.tiles = h("div", { class: "l2d-tiles", role: "list", "aria-label": "So far" });
    this.look = h("ul", { class: "l2d-look", "aria-label": "Whose work wants a look, and why" });
    this.lookBox = h("section", { class: "l2d-lookbox", hidden: true }, h("h2", {}, "Worth a look"), this.look,
                     h("p", { class: "l2a-faint" }, "A reason to look at the labels, not a verdict on a person."));
    this.body = h("tbody", {});
    this.table = h("table", { class: "l2d-table" }, h("thead", {}, h("tr", {},
      ...DESK_COLUMNS.map(([name]) => h("th", { scope: "col" }, name)))), this.body);
    this.meaning = h("p", { class: "l2a-faint l2d-meaning" }, "median s: seconds on a pair; skimming s: what it takes to " +
      "skim one; with others: choices that are those of most others; flags: pairs flagged for you.");
    this.nobody = h("p", { class: "l2a-faint" }, "Nobody has labelled yet.");
    this.live = h("div", { class: "l2a-unseen", role: "status", "aria-live": "polite" });
    this.note = h("p", { class: "l2d-note l2a-faint" });
    this.pairs = new DeskPairs(this);
    this.root = h("section", { class: "l2a l2d" + (this.config.app ? " l2a-app" : ""), tabindex: "0", role: "region",
                               "aria-label": "Annotation, live", "data-lm-suppress-shortcuts": "true",
                               onkeydown: (event) => this.onKey(event), onkeyup: (event) => this.quiet(event),
                               onkeypress: (event) => this.quiet(event) },
      h("div", { class: "l2a-inner" },
        h("div", { class: "l2d-bar" }, h("h1", {}, "Annotation, live"), this.asOf, this.pause), this.trouble, this.tiles,
        this.lookBox, h("section", { "aria-label": "Annotators" }, this.table, this.meaning,
          this.nobody), this.pairs.root, this.note,
        this.live));
  }

  // -- talking to Python -------------------------------------------------------------------------------------------------

  receive(message) {
    if (message?.type === "answer") this.boxes.get(message.request)?.(message);
  }

  ask(message) {
    const request = deskId();
    return new Promise((resolve) => {
      const settle = (answer) => {
        clearTimeout(timer);
        this.boxes.delete(request);
        resolve(answer);
      };
      const timer = setTimeout(() => settle({ ok: false, silent: true,
        error: "No answer from Python: the kernel was restarted, or it is busy. Run this cell again if this lasts." }),
        DESK_SILENCE_MS);
      this.boxes.set(request, settle);
      try {
        this.model.send({ ...message, request });
      } catch (error) {
        settle({ ok: false, error: `The link to Python is down (${error?.message ?? error}).` });
      }
    });
  }

  isShown() { return !document.hidden && this.root.offsetParent !== null; }

  tick() {
    if (!this.paused && this.isShown()) this.refresh();
  }

  async refresh() {
    if (this.asking) return;
    this.asking = true;
    const answer = await this.ask({ type: "refresh" });
    this.asking = false;
    this.trouble.hidden = answer.ok;
    this.trouble.textContent = answer.ok ? "" : answer.error;
    if (!answer.ok) return;
    this.show(answer.view);
    if (answer.revision === this.revision) return;
    const found = await this.ask({ type: "disputes" });
    if (!found.ok) return;
    this.revision = answer.revision;
    this.pairs.take(found.disputes, found.all);
  }

  togglePause() {
    this.paused = !this.paused;
    this.pause.setAttribute("aria-pressed", String(this.paused));
    if (!this.paused) this.refresh();
  }

  // -- filling -----------------------------------------------------------------------------------------------------------

  say(words) { this.live.textContent = words; this.note.textContent = words; }

  show(view) {
    this.asOf.textContent = `as of ${new Date().toLocaleTimeString("en-GB")}, every ${this.config.every} s`;
    const here = view.people.filter((one) => one.here).length;
    const { percent, alpha } = view.agreement;
    const range = (figure, digits) => (digits ? `${figure.low.toFixed(digits)} to ${figure.high.toFixed(digits)}`
      : `${Math.round(100 * figure.low)} to ${Math.round(100 * figure.high)}%`);
    this.tiles.replaceChildren(
      this.tile("judgements", `${view.done} of ${view.wanted}`, "gold pairs not counted"),
      this.tile("here now", `${here} of ${view.people.length}`, "in the last five minutes"),
      this.tile("same choice", deskPercent(percent), percent ? `${range(percent, 0)}, ${percent.n} pairs judged twice`
        : "no pair was judged twice yet"),
      this.tile("alpha", alpha ? alpha.mean.toFixed(2) : "–", alpha ? `${range(alpha, 2)}, on the choice`
        : "Krippendorff's, on the choice"),
      this.tile("disputed", `${view.open} open`, `${view.decided} decided`));
    const look = view.people.filter((one) => one.look.length);
    this.lookBox.hidden = !look.length;
    this.look.replaceChildren(...look.flatMap((one) => one.look.map((why) => {
      const name = h("strong", { class: "l2d-name" });
      showText(name, one.name);
      return h("li", {}, name, h("span", {}, ` ${why}`));
    })));
    const named = new Set(look.map((one) => one.name));
    const fresh = look.filter((one) => this.known && !this.known.has(one.name));
    if (fresh.length) this.live.textContent = fresh.map((one) => `${one.name} ${one.look[0]}`).join(". ");
    this.known = named;
    this.body.replaceChildren(...view.people.map((one) => h("tr", { class: one.look.length ? "l2d-odd" : null },
      ...DESK_COLUMNS.map(([name, value], i) => {
        const cell = h(i ? "td" : "th", { "data-name": name, scope: i ? null : "row",
                                          class: name === "now" && one.here ? "l2d-here" : null });
        if (i === 0) showText(cell, value(one));
        else cell.textContent = value(one);
        if (i === 0 && one.look.length) cell.append(h("span", { class: "l2d-mark" }, "look"));
        return cell;
      }))));
    this.table.hidden = this.meaning.hidden = !view.people.length;
    this.nobody.hidden = Boolean(view.people.length);
  }

  tile(name, value, more) {
    return h("div", { class: "l2d-tile", role: "listitem" }, h("div", { class: "l2a-faint" }, name),
             h("div", { class: "l2d-value" }, value), h("div", { class: "l2a-faint" }, more));
  }

  // -- keys --------------------------------------------------------------------------------------------------------------

  quiet(event) {
    if (!(event.ctrlKey || event.metaKey || event.altKey)) event.stopPropagation();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    if (event.isComposing || event.key === "Tab" || event.repeat) return;
    const typing = event.target.matches("input, textarea");
    if (event.key === "Escape") {
      this.root.focus({ preventScroll: true });
      event.preventDefault();
    } else if (!typing && !(event.key === "Enter" && event.target.matches("button"))) {
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      if (this.pairs.command(key)) {
        if (key === "Enter" || key === "b" || key === "n") this.root.focus({ preventScroll: true });
        event.preventDefault();
      }
    }
  }
}

export default {
  render({ model, el }) {
    const desk = new Desk(model, el);
    return () => desk.remove();
  },
};
