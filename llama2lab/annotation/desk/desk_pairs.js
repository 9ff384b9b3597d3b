// Disputed pairs, one at a time, for a teacher to decide: who said what, the scale, safety marks, a reason. A verdict is
// chosen first and saved then; what others label meanwhile changes the votes on the screen, never what is being decided.

const DESK_GRADES = { significantly: "significantly better", better: "better", slightly: "slightly better",
                      negligibly: "negligibly better" };
const DESK_ROLES = { system: "Instruction", user: "Person", assistant: "Model" };
const DESK_ANSWERS = ["First answer", "Second answer"];
const DESK_SAFE_KEYS = [["Q", "A"], ["P", "L"]];

const deskKey = (key) => h("kbd", { class: "l2a-key", "aria-hidden": "true" }, key);

function deskButton(label, key, onclick, attributes = {}) {
  return h("button", { type: "button", class: "l2a-button", onclick, "aria-keyshortcuts": key?.toLowerCase(),
                       ...attributes }, h("span", {}, label), key ? deskKey(key) : null);
}

// "Second answer slightly better": what a label or a verdict says, in words.
function deskWords(said) {
  if (said.skip_reason) return "skipped";
  if (said.choice === null || said.choice === undefined) return "neither answer is better";
  return `${DESK_ANSWERS[said.choice - 1]} ${DESK_GRADES[said.grade]}`;
}

class DeskPairs {
  constructor(desk) {
    this.desk = desk;
    this.pairs = [];
    this.all = 0;
    this.onlyOpen = true;
    this.id = null;
    this.draft = null;
    this.busy = false;
    this.build();
  }

  build() {
    const positions = this.desk.config.positions;
    this.place = h("span", { class: "l2a-place", role: "status", "aria-live": "polite" });
    this.back = deskButton("Back", "B", () => this.step(-1));
    this.next = deskButton("Next", "N", () => this.step(1));
    this.filter = deskButton("Show decided pairs, too", null, () => this.toggle(), { "aria-pressed": "false" });
    this.why = h("p", { class: "l2d-why" });
    this.dialogue = h("div", { class: "l2a-dialogue", role: "region", tabindex: "0", "aria-label": "Conversation" });
    this.answers = DESK_ANSWERS.map((name, i) => {
      const text = h("div", { class: "l2a-text", dir: "auto", role: "region", tabindex: "0", "aria-label": `${name}, text` });
      const marks = [true, false].map((safe, k) => h("button", {
        type: "button", class: `l2a-mark-button ${safe ? "l2a-safe" : "l2a-unsafe"}`, "aria-pressed": "false",
        "aria-label": `${name} is ${safe ? "safe" : "unsafe"}`,
        "aria-keyshortcuts": DESK_SAFE_KEYS[i][k].toLowerCase(), onclick: () => this.mark(i, safe) },
        h("span", {}, safe ? "safe" : "unsafe"), deskKey(DESK_SAFE_KEYS[i][k])));
      const row = h("div", { class: "l2a-marks", role: "group", "aria-label": `Safety of ${name.toLowerCase()}` }, ...marks);
      const box = h("section", { class: "l2a-answer", "aria-label": name },
                    h("div", { class: "l2a-answer-head" }, h("h3", {}, name), row), text);
      return { box, text, marks, row };
    });
    this.votes = h("ul", { class: "l2d-votes", "aria-label": "What people said" });
    this.grades = positions.map(([side, grade], i) => h("button", {
      type: "button", class: `l2a-grade l2a-grade-${grade}`, "aria-pressed": "false", "aria-keyshortcuts": String(i + 1),
      "aria-label": `${DESK_ANSWERS[side === "left" ? 0 : 1]} is ${DESK_GRADES[grade]}`, onclick: () => this.choose(i) },
      deskKey(String(i + 1)), h("span", {}, DESK_GRADES[grade])));
    const half = (side, name) => h("div", { class: "l2a-half", role: "group", "aria-label": `${name} is better` },
      h("div", { class: "l2a-half-title" }, `${name} is …`),
      h("div", { class: "l2a-grades" }, ...this.grades.filter((_, i) => positions[i][0] === side)));
    this.neither = deskButton("Neither is better: the pair trains nothing", "0", () => this.choose(null),
                              { "aria-pressed": "false" });
    this.reason = h("textarea", { class: "l2a-input", rows: "1", maxlength: "10000", "aria-label": "Reason (optional)",
                                  "aria-keyshortcuts": "c", placeholder: "the reason, if you like",
                                  oninput: () => { this.draft.reason = this.reason.value; } });
    this.save = deskButton("Save the verdict", "Enter", () => this.send(), { class: "l2a-button l2a-primary" });
    this.refused = h("div", { class: "l2a-refused", role: "alert" });
    this.said = h("div", { class: "l2a-past" });
    this.form = h("div", { class: "l2a-form" }, this.why, this.said, this.dialogue,
                  h("div", { class: "l2a-answers" }, ...this.answers.map((one) => one.box)), this.votes,
                  h("div", { class: "l2a-scale", role: "group", "aria-label": "The verdict" },
                    half("left", DESK_ANSWERS[0]), half("right", DESK_ANSWERS[1])),
                  h("div", { class: "l2a-tools" }, this.neither,
                    h("label", { class: "l2a-comment" }, deskKey("C"), this.reason), this.save));
    this.none = h("p", { class: "l2a-faint" });
    this.root = h("section", { class: "l2d-pairs", "aria-label": "Disputed pairs" },
                  h("div", { class: "l2d-bar" }, h("h2", {}, "Disputed pairs"), this.place, this.back, this.next, this.filter),
                  this.none, this.form, this.refused);
    this.update();
  }

  get shown() { return this.onlyOpen ? this.pairs.filter((pair) => pair.open || pair.item_id === this.id) : this.pairs; }

  get index() { return this.shown.findIndex((pair) => pair.item_id === this.id); }

  get pair() { return this.pairs.find((pair) => pair.item_id === this.id) ?? null; }

  take(pairs, all) {
    this.pairs = pairs;
    this.all = all;
    if (!this.pair) this.show(this.shown[0] ?? null);
    else this.update();
  }

  show(pair) {
    this.id = pair?.item_id ?? null;
    const old = pair?.verdict;
    const position = !old || old.choice === null ? -1 : this.desk.config.positions.findIndex(
      ([side, grade]) => side === (old.choice === 1 ? "left" : "right") && grade === old.grade);
    this.draft = { position: position < 0 ? null : position, neither: Boolean(old) && old.choice === null,
                   safe: [old?.safe_1 ?? null, old?.safe_2 ?? null], reason: old?.reason ?? "" };
    this.filled = null;
    this.refused.textContent = "";
    this.update();
  }

  step(by) {
    const goal = this.shown[this.index + by];
    if (goal && !this.busy) this.show(goal);
  }

  toggle() {
    this.onlyOpen = !this.onlyOpen;
    if (this.index < 0 || (this.onlyOpen && !this.pair?.open)) this.show(this.pairs.find((p) => p.open || !this.onlyOpen) ?? null);
    else this.update();
  }

  choose(position) {
    if (!this.pair || this.busy) return;
    this.draft.position = position;
    this.draft.neither = position === null;
    this.refuse("");
  }

  mark(answer, safe) {
    if (!this.pair || this.busy || this.pair.kind !== "safety") return;
    this.draft.safe[answer] = this.draft.safe[answer] === safe ? null : safe;
    this.refuse("");
  }

  refuse(words) {
    this.refused.textContent = words;
    this.update();
  }

  async send() {
    const { pair, draft } = this;
    if (!pair || this.busy) return;
    if (draft.position === null && !draft.neither) {
      this.refuse("First choose: 1 to 8, or 0 where neither is better.");
      return;
    }
    const [side, grade] = draft.neither ? [null, null] : this.desk.config.positions[draft.position];
    const choice = side === null ? null : side === "left" ? 1 : 2;
    this.busy = true;
    this.refuse("");
    const number = this.index;
    const answer = await this.desk.ask({ type: "decide", item_id: pair.item_id, verdict_id: deskId(), choice, grade,
                                         safe_1: draft.safe[0], safe_2: draft.safe[1], reason: draft.reason,
                                         labels: pair.labels });
    this.busy = false;
    if (!answer.ok) {
      this.refuse(answer.error);
      return;
    }
    this.desk.say(`The verdict is saved: ${deskWords({ choice, grade })}.`);
    this.pairs = answer.disputes;
    this.all = answer.all;
    const open = this.pairs.filter((one) => one.open);
    if (this.onlyOpen) this.show(open[0] ?? null);
    else this.show(this.shown[Math.min(number + 1, this.shown.length - 1)] ?? null);
    this.desk.refresh();
  }

  update() {
    const { pair, draft } = this;
    const open = this.pairs.filter((one) => one.open).length;
    const more = this.all > this.pairs.length ? ` (the first ${this.pairs.length} of ${this.all})` : "";
    const words = pair ? `${this.index + 1} of ${this.shown.length}${more}` : "";
    if (this.place.textContent !== words) this.place.textContent = words;
    this.filter.setAttribute("aria-pressed", String(!this.onlyOpen));
    this.filter.hidden = open === this.pairs.length;
    this.back.disabled = this.busy || this.index <= 0;
    this.next.disabled = this.busy || this.index < 0 || this.index >= this.shown.length - 1;
    this.form.hidden = !pair;
    this.refused.hidden = !this.refused.textContent;
    this.none.hidden = Boolean(pair);
    this.none.textContent = this.pairs.length ? "Every disputed pair is decided."
      : "No pair is disputed: where people choose differently, mark safety differently or flag, the pair stands here.";
    if (!pair) return;
    this.fill(pair);
    const safety = pair.kind === "safety";
    this.answers.forEach((one, i) => {
      one.row.hidden = !safety;
      one.marks.forEach((mark, k) => {
        mark.setAttribute("aria-pressed", String(draft.safe[i] === (k === 0)));
        mark.disabled = this.busy;
      });
    });
    this.grades.forEach((grade, i) => {
      grade.setAttribute("aria-pressed", String(draft.position === i));
      grade.disabled = this.busy;
    });
    this.neither.setAttribute("aria-pressed", String(draft.neither));
    this.neither.disabled = this.save.disabled = this.reason.disabled = this.busy;
    if (this.reason.value !== draft.reason) this.reason.value = draft.reason;
  }

  // The texts once for each pair; the votes when they change.
  fill(pair) {
    if (this.filled !== pair.item_id) {
      this.filled = pair.item_id;
      this.votesShown = null;
      this.dialogue.replaceChildren(...pair.prompt.map((message) => {
        const words = h("div", { class: "l2a-words", dir: "auto" });
        showText(words, message.content);
        const role = Object.hasOwn(DESK_ROLES, message.role) ? message.role : "other";
        return h("div", { class: `l2a-turn l2a-turn-${role}` },
                 h("div", { class: "l2a-role" }, DESK_ROLES[message.role] ?? message.role), words);
      }));
      pair.answers.forEach((answer, i) => showText(this.answers[i].text, answer));
      this.dialogue.scrollTop = this.dialogue.scrollHeight;
    }
    const key = JSON.stringify([pair.why, pair.said, pair.verdict, pair.changed]);
    if (this.votesShown === key) return;
    this.votesShown = key;
    this.why.replaceChildren(plainText(`Disputed is ${pair.why.join("; ")}.`));
    this.said.hidden = !pair.verdict;
    if (pair.verdict) {
      const since = pair.changed ? " Labels have changed since; it still stands." : "";
      this.said.replaceChildren(plainText(`${pair.verdict.teacher} decided: ${deskWords(pair.verdict)}.${since}`));
    }
    this.votes.replaceChildren(...pair.said.map((one) => this.vote(one, pair.kind === "safety")));
  }

  vote(one, safety) {
    const name = h("strong", { class: "l2d-name" });
    showText(name, one.annotator);
    const word = (safe) => (safe === null ? "not marked" : safe ? "safe" : "unsafe");
    const parts = [deskWords(one), safety && one.choice ? `${word(one.safe_1)} and ${word(one.safe_2)}` : "",
                   one.flag ? "flagged" : "", `${one.seconds} s`].filter(Boolean).join(", ");
    const note = one.skip_reason || one.comment;
    const comment = note ? h("span", { class: "l2d-comment", dir: "auto" }) : null;
    if (comment) showText(comment, `“${note}”`);
    return h("li", {}, name, h("span", {}, ` ${parts}`), comment);
  }

  // True where the key means something here.
  command(key) {
    if (/^[1-8]$/.test(key)) this.choose(Number(key) - 1);
    else if (key === "0") this.choose(null);
    else if (key === "b" || key === "ArrowLeft") this.step(-1);
    else if (key === "n" || key === "ArrowRight") this.step(1);
    else if (key === "c" && this.pair) this.reason.focus();
    else if (key === "Enter") this.send();
    else if (key === "q" || key === "a") this.mark(0, key === "q");
    else if (key === "p" || key === "l") this.mark(1, key === "p");
    else return false;
    return true;
  }
}
