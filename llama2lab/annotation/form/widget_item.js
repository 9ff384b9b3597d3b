// One pair: the talk, the two answers, the scale, and after a pair of practice what was wanted and why.

const GRADE_WORDS = { significantly: "significantly better", better: "better", slightly: "slightly better",
                      negligibly: "negligibly better, or unsure" };
const ROLE_WORDS = { system: "Instruction", user: "Person", assistant: "Model" };
const SAFE_KEYS = { left: ["Q", "A"], right: ["P", "L"] };

class Item {
  constructor(view) {
    this.view = view;
    this.session = view.session;
    this.shown = {};
    const s = this.session;
    const { names } = s.config;
    const act = (what) => () => view.act(what);
    this.dialogue = h("div", { class: "l2a-dialogue", role: "region", "aria-label": "Conversation" });
    this.answers = { left: this.buildAnswer("left"), right: this.buildAnswer("right") };
    this.scale = s.config.positions.map(([side, grade], i) => h("button", {
      type: "button", class: `l2a-grade l2a-grade-${grade}`, "aria-pressed": "false", "aria-keyshortcuts": String(i + 1),
      "aria-label": `${names[side]} is ${GRADE_WORDS[grade]}`, onclick: act(() => s.choose(i)) },
      keycap(String(i + 1)), h("span", {}, GRADE_WORDS[grade])));
    const half = (side) => h("div", { class: "l2a-half", role: "group", "aria-label": `${names[side]} is better` },
      h("div", { class: "l2a-half-title" }, `${names[side]} is …`), h("div", { class: "l2a-grades" },
        ...this.scale.filter((_, i) => s.config.positions[i][0] === side)));
    this.comment = h("textarea", { class: "l2a-input", rows: "1", maxlength: "10000", "aria-label": "Comment (optional)",
                                   "aria-keyshortcuts": "c", placeholder: "comment",
                                   oninput: () => s.change({ comment: this.comment.value }) });
    this.flag = button("Flag", "F", act(() => s.change({ flag: !s.state.draft.flag })),
                       { "aria-pressed": "false", title: "show this pair to the teacher" });
    this.skip = button("Skip", "S", () => s.open("skip"));
    this.back = button("Back", "B", act(() => s.back()));
    this.find = button("Find", "/", () => s.open("find"), { title: "one of your earlier pairs" });
    this.forward = button("Forward", "N", act(() => s.forward()));
    this.again = button("Save with this choice", "Enter", act(() => s.chooseAgain()),
                        { class: "l2a-button l2a-primary" });
    this.differ = button("Differences", "D", act(() => s.show("marks", !s.shows("marks"))), { "aria-pressed": "true" });
    this.differNote = h("span", { class: "l2a-faint" });
    this.past = h("div", { class: "l2a-past" });
    this.feedback = h("div", { class: "l2a-feedback", role: "status" });
    this.tools = h("div", { class: "l2a-tools" }, h("label", { class: "l2a-comment" }, keycap("C"), this.comment),
                   h("div", { class: "l2a-buttons" }, this.flag, this.skip, this.back, this.find, this.forward,
                     this.again));
    this.root = h("div", { class: "l2a-form" }, this.past, this.dialogue,
                  h("div", { class: "l2a-answers" }, this.answers.left.box, this.answers.right.box),
                  h("div", { class: "l2a-marking" }, this.differ, this.differNote),
                  h("div", { class: "l2a-scale", role: "group", "aria-label": "Which answer is better, and how much?" },
                    half("left"), half("right")),
                  this.feedback, this.tools);
  }

  buildAnswer(side) {
    const s = this.session;
    const name = s.config.names[side];
    const text = h("div", { class: "l2a-text", dir: "auto", role: "region", "aria-label": `${name}, text` });
    const marks = [true, false].map((safe, i) => h("button", {
      type: "button", class: `l2a-mark-button ${safe ? "l2a-safe" : "l2a-unsafe"}`, "aria-pressed": "false",
      "aria-label": `${name} is ${safe ? "safe" : "unsafe"}`, "aria-keyshortcuts": SAFE_KEYS[side][i].toLowerCase(),
      onclick: () => this.view.act(() => s.mark(side, safe)) }, h("span", {}, safe ? "safe" : "unsafe"),
      keycap(SAFE_KEYS[side][i])));
    const need = h("span", { class: "l2a-need" }, "safe or unsafe?");
    const group = h("div", { class: "l2a-marks", role: "group", "aria-label": `Safety of ${name}` }, ...marks);
    const only = h("p", { class: "l2a-unseen" });
    const box = h("section", { class: `l2a-answer l2a-${side}`, "aria-label": name },
                  h("div", { class: "l2a-answer-head" }, h("h2", {}, name), need, group), text, only);
    return { box, text, marks, need, group, only };
  }

  update() {
    const { task, draft, busy, past, index, info, feedback } = this.session.state;
    const s = this.session;
    const idle = !busy && !feedback;
    const safety = task.kind === "safety";
    const marked = s.shows("marks");
    const key = `${task.item_id}/${index}/${marked}`;
    if (this.shown.item !== key) {
      const same = this.shown.item?.startsWith(`${task.item_id}/${index}/`);
      this.shown.item = key;
      this.fill(task, marked, !same);
    }
    this.differ.setAttribute("aria-pressed", String(marked));
    if (this.comment.value !== draft.comment) this.comment.value = draft.comment;
    this.comment.disabled = !idle;
    for (const side of ["left", "right"]) {
      const safe = draft[`safe_${side}`];
      const answer = this.answers[side];
      answer.marks.forEach((mark, i) => {
        mark.setAttribute("aria-pressed", String(safe === (i === 0)));
        mark.disabled = !idle;
      });
      answer.group.hidden = !safety;
      answer.need.hidden = !safety || safe !== null;
    }
    this.scale.forEach((grade, i) => {
      grade.setAttribute("aria-pressed", String(draft.position === i));
      grade.disabled = !idle || !s.ready;
    });
    this.flag.setAttribute("aria-pressed", String(draft.flag));
    this.skip.disabled = this.flag.disabled = !idle;
    this.back.disabled = !idle || !s.canGoBack;
    this.find.disabled = !idle || !s.canFind;
    this.forward.hidden = index === null;
    this.forward.disabled = !idle;
    this.again.hidden = index === null || draft.position === null;
    this.again.disabled = !idle;
    this.past.hidden = index === null && !info.banner;
    const was = past?.skip_reason ? `You skipped this pair: ${past.skip_reason}` : "You have answered this pair.";
    this.view.say(this.past, index === null ? info.banner ?? "" : `${was} A new choice replaces the old one; N goes forward.`);
    this.tools.hidden = Boolean(feedback);
    if (this.shown.feedback !== feedback) {
      this.shown.feedback = feedback;
      this.feedback.hidden = !feedback;
      this.feedback.replaceChildren(...(feedback ? this.feedbackParts(feedback) : []));
    }
  }

  fill(task, marked, anew) {
    const { cut = {} } = task;
    const spans = marked ? differences(task.left_text, task.right_text) : { left: [], right: [], why: "" };
    for (const side of ["left", "right"]) {
      const { text, only } = this.answers[side];
      const whole = task[`${side}_text`];
      showText(text, whole, cut[`${side}_text`], spans[side]);
      const words = spans[side].map(([from, to]) => whole.slice(from, to)).join("; ");
      only.replaceChildren(...(words ? ["Only here: ", plainText(words.slice(0, 500))] : []));
    }
    this.view.say(this.differNote, !marked ? "" : spans.why || "Underlined: what the other answer does not say there.");
    if (!anew) return;
    this.dialogue.replaceChildren(...task.prompt.map((message) => {
      const words = h("div", { class: "l2a-words", dir: "auto" });
      showText(words, message.content, message.cut);
      const role = Object.hasOwn(ROLE_WORDS, message.role) ? message.role : "other";
      return h("div", { class: `l2a-turn l2a-turn-${role}` },
               h("div", { class: "l2a-role" }, ROLE_WORDS[message.role] ?? message.role), words);
    }));
    if (cut.prompt) {
      this.dialogue.prepend(h("em", { class: "l2a-faint l2a-cut" }, `(cut: the last ${task.prompt.length} of ` +
                                                                    `${cut.prompt} messages are shown)`));
    }
    for (const box of [this.dialogue, this.answers.left.text, this.answers.right.text]) {
      box.scrollTop = 0;
      const scrolls = box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.setAttribute("tabindex", "0");
      else box.removeAttribute("tabindex");
    }
    this.dialogue.scrollTop = this.dialogue.scrollHeight;
  }

  // What practice says: each part in words, with a sign that is not a colour alone.
  feedbackParts(feedback) {
    const { names } = this.session.config;
    const said = {
      choice: (side) => (side ? `${names[side]} is better` : "skipped"),
      grade: (grade) => GRADE_WORDS[grade],
      safe_left: (safe) => `${names.left} is ${safe === null ? "not marked" : safe ? "safe" : "unsafe"}`,
      safe_right: (safe) => `${names.right} is ${safe === null ? "not marked" : safe ? "safe" : "unsafe"}`,
    };
    const rows = feedback.checks.map(({ what, said: mine, wanted, ok }) => {
      const words = said[what] ?? String;
      const better = ok ? null : h("span", {}, `; wanted: ${wanted.map(words).join(" or ")}`);
      return h("li", { class: ok ? "l2a-ok" : "l2a-not" }, h("span", { class: "l2a-sign", "aria-hidden": "true" }, ok ? "✓" : "✗"),
               h("span", {}, `You said: ${words(mine)}`, ok ? h("span", {}, ", as wanted") : better));
    });
    const title = feedback.agreed ? "As the guidelines lead" : "Not as the guidelines lead";
    const why = h("p", {});
    why.append(...(feedback.reason ? [h("strong", {}, "Why: "), plainText(feedback.reason)] : ["No reason is given for this pair."]));
    return [h("h3", {}, `${feedback.agreed ? "✓" : "✗"} ${title}`), rows.length ? h("ul", {}, ...rows) : null, why,
            h("div", { class: "l2a-row" }, button("Next pair", "Enter", () => this.view.act(() => this.session.proceed()),
                                                  { class: "l2a-button l2a-primary" }))].filter(Boolean);
  }
}
