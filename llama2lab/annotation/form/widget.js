// The form itself: built once for each display, filled anew when the session changes. Keys are heard only while the
// form has the focus, and go no further, so that a key here is never a command of JupyterLab's.

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

class View {
  constructor(session, host) {
    this.session = session;
    this.shown = {};
    this.goal = null;  // what shall have the focus as soon as it can
    this.build();
    host.append(this.root);
    // Before JupyterLab sees a key: its shortcuts are off while the form has the focus, but those with Ctrl, Cmd or
    // Alt stay on (saving the notebook, the command palette).
    this.beforeJupyter = (event) => {
      if (!this.root.contains(event.target)) return;
      if (event.ctrlKey || event.metaKey || event.altKey) this.root.removeAttribute("data-lm-suppress-shortcuts");
      else this.root.setAttribute("data-lm-suppress-shortcuts", "true");
    };
    window.addEventListener("keydown", this.beforeJupyter, true);
    session.views.add(this);
    if (session.config.app) document.title = "Which answer is better?";
    this.update();
  }

  remove() {
    window.removeEventListener("keydown", this.beforeJupyter, true);
    this.session.views.delete(this);
  }

  isShown() { return this.root.offsetParent !== null; }

  // -- building --------------------------------------------------------------------------------------------------------

  build() {
    const s = this.session;
    this.bar = h("div", { class: "l2a-bar-fill" });
    this.place = h("span", { class: "l2a-place" });
    this.kind = h("span", { class: "l2a-kind" });
    this.pace = h("span", { class: "l2a-pace l2a-faint", title: "of this session: pairs of its goal, usual time for one" });
    this.time = h("span", { class: "l2a-time", "aria-hidden": "true", title: "time on this pair" });
    this.taskButton = button("Task", "T", () => this.act(() => s.chooseTask(null)), { title: "helpfulness or safety" });
    this.head = h("header", { class: "l2a-head" }, this.kind, this.place,
                  h("div", { class: "l2a-bar", "aria-hidden": "true" }, this.bar), this.pace, this.time,
                  h("div", { class: "l2a-buttons" }, button("Guidelines", "G", () => this.guide.visit()), this.taskButton,
                    button("Stop", "X", () => this.act(() => s.finish())), button("Keys", "?", () => s.open("help"))));
    this.item = new Item(this);
    this.guide = new Guide(this);
    this.body = h("div", { class: "l2a-body" }, this.item.root, this.guide.root);
    this.pageBox = h("div", { class: "l2a-pagebox" });
    this.troubleText = h("span", {});
    this.troubleWait = h("span", { class: "l2a-faint", "aria-hidden": "true" });
    this.retry = button("Try again now", "R", () => this.act(() => s.retryNow()));
    this.trouble = h("div", { class: "l2a-trouble" }, h("div", { role: "alert" }, this.troubleText), this.troubleWait,
                     this.retry);
    this.refused = h("div", { class: "l2a-refused", role: "alert" });
    this.warning = h("div", { class: "l2a-warning", role: "alert" });
    this.status = h("div", { class: "l2a-status", "aria-hidden": "true" });
    this.live = h("div", { class: "l2a-unseen", role: "status", "aria-live": "polite" });
    this.hint = h("div", { class: "l2a-hint" }, "Click into the form or press Tab to use the keys.");
    this.inner = h("div", { class: "l2a-inner" }, this.head, this.pageBox, this.warning, this.body, this.trouble,
                   this.refused,
                   h("footer", { class: "l2a-foot" }, this.status, this.live, this.hint));
    this.sheet = h("div", { class: "l2a-cover" });
    this.root = h("section", { class: "l2a" + (s.config.app ? " l2a-app" : ""), tabindex: "0", role: "region",
                               "aria-label": "Which answer is better?", "data-lm-suppress-shortcuts": "true",
                               onkeydown: (event) => this.onKey(event), onkeyup: (event) => this.quiet(event),
                               onkeypress: (event) => this.quiet(event) }, this.inner, this.sheet);
  }

  // -- keys ------------------------------------------------------------------------------------------------------------

  // What a click did may have disabled the clicked button; the keys must not get lost with it.
  act(what) {
    what();
    this.root.focus({ preventScroll: true });
  }

  quiet(event) {
    if (!(event.ctrlKey || event.metaKey || event.altKey)) event.stopPropagation();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    if (event.isComposing || event.key === "Tab") return;
    const typing = event.target.matches("input, textarea, select");
    const s = this.session;
    if (event.key === "Escape") {
      if (s.state.panel) s.closePanel();
      this.root.focus({ preventScroll: true });
      return event.preventDefault();
    }
    if (typing && event.key === "Enter" && event.target.matches("[type=number]")) {
      this.pageBox.querySelector("[data-enter]")?.click();
      return event.preventDefault();
    }
    if (typing) return undefined;
    if (event.key === "Enter" && event.target.matches("button, summary")) return undefined;
    if (this.command(event)) event.preventDefault();
    return undefined;
  }

  // True when the key means something here. Holding a key down does nothing: one press, one label.
  command(event) {
    const s = this.session;
    const { stage, panel, trouble, feedback } = s.state;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const digit = this.digit(event);
    if (key === "?") return this.once(event, () => s.open("help"));
    if (key === "r" && trouble) return this.once(event, () => s.retryNow());
    if (panel === "skip" && digit && digit <= s.config.reasons.length) {
      return this.once(event, () => s.skip(s.config.reasons[digit - 1]));
    }
    if (panel) return false;
    if (key === "/" && s.canFind) return this.once(event, () => s.open("find"));
    if (key === "t" && s.state.info.apart) return this.once(event, () => s.chooseTask(null));
    if (stage !== "item") {
      if (stage === "broken" && key === "r") return this.once(event, () => s.start());
      if (stage === "tasks" && digit) return this.once(event, () => this.pageBox.querySelectorAll(".l2a-task")[digit - 1]?.click());
      if (stage === "done" && key === "n") return this.once(event, () => s.proceed());
      if (stage === "rest" && key === "x") return this.once(event, () => s.finish());
      if (key === "b" || key === "ArrowLeft") return this.once(event, () => s.back());
      if (key === "Enter") return this.once(event, () => this.pageBox.querySelector("[data-enter]")?.click());
      return false;
    }
    if (key === "PageDown" || key === "PageUp") return this.guide.scroll(key === "PageDown");
    // Inside the guidelines these scroll, as in any text.
    if (this.guide.hasFocus && ["Home", "End", " ", "ArrowUp", "ArrowDown"].includes(key)) return false;
    const beside = { g: () => this.guide.visit(), h: () => s.show("guide", !s.shows("guide")), x: () => s.finish(),
                     d: () => s.show("marks", !s.shows("marks")) };
    if (Object.hasOwn(beside, key)) return this.once(event, beside[key]);
    if (feedback) {
      return ["Enter", "n", "ArrowRight"].includes(key) ? this.once(event, () => s.proceed()) : false;
    }
    if (digit) return this.once(event, () => s.choose(digit - 1));
    const commands = {
      q: () => s.mark("left", true), a: () => s.mark("left", false),
      p: () => s.mark("right", true), l: () => s.mark("right", false),
      c: () => this.item.comment.focus(), f: () => s.change({ flag: !s.state.draft?.flag }), s: () => s.open("skip"),
      b: () => s.back(), ArrowLeft: () => s.back(), n: () => s.forward(), ArrowRight: () => s.forward(),
      End: () => s.newest(), Enter: () => s.chooseAgain(),
    };
    return Object.hasOwn(commands, key) ? this.once(event, commands[key]) : false;
  }

  once(event, what) {
    if (!event.repeat) what();
    return true;
  }

  // 1 to 8, also on keyboards where a digit needs Shift (the key's place then says which); not the arrows of a number
  // pad whose NumLock is off.
  digit(event) {
    const direct = /^[1-8]$/.exec(event.key);
    const place = !event.shiftKey && /^Digit([1-8])$/.exec(event.code);
    return direct ? Number(direct[0]) : place ? Number(place[1]) : 0;
  }

  // -- filling ---------------------------------------------------------------------------------------------------------

  update() {
    const { session: s, root } = this;
    const { stage, busy, trouble, refused, notice, warning, panel, task, feedback } = s.state;
    const item = stage === "item";
    const had = this.root.contains(document.activeElement);
    root.dataset.state = trouble ? "trouble" : busy ? "busy" : panel ? "panel" : item && feedback ? "feedback" :
      item && !s.ready ? "fresh" : stage;
    root.dataset.item = (item && task?.item_id) || "";
    root.setAttribute("aria-busy", String(Boolean(busy)));
    this.body.hidden = !item;
    this.head.hidden = !item;
    this.pageBox.hidden = item;
    this.updatePage(stage);
    if (item) this.updateHead();
    if (item) this.item.update();
    if (item) this.guide.update();
    this.trouble.hidden = !trouble;
    if (trouble) this.say(this.troubleText, this.troubleWords(trouble));
    this.retry.hidden = trouble?.until === null;
    this.refused.hidden = !refused || stage === "broken";
    this.say(this.refused, refused);
    this.warning.hidden = !warning || !item;
    this.say(this.warning, warning);
    const where = item && !busy ? `${this.placeWords()}.` : "";
    this.say(this.status, trouble ? "" : busy ?? notice);
    // For those who hear the form: what happened to the last item, and which one this is.
    if (!busy) this.say(this.live, [notice, where].filter(Boolean).join(" "));
    this.updatePanel(panel);
    if (had) this.keepFocus();
    this.tick();
  }

  // What has the focus may have been replaced, hidden or disabled, or may scroll no more: browsers then give the focus
  // to nobody, and the keys would be dead until the next Tab.
  keepFocus() {
    const at = document.activeElement;
    const holds = at && this.root.contains(at) && !at.closest("[inert], [hidden]") && !at.matches(":disabled") &&
      (at.hasAttribute("tabindex") || at.matches("button, input, textarea, select"));
    if (!holds) (this.sheet.querySelector(".l2a-sheet-body") ?? this.root).focus({ preventScroll: true });
  }

  say(element, words) {
    if (element.textContent !== words) element.textContent = words;
  }

  troubleWords(trouble) {
    const pending = this.session.keeper?.data.pending;
    const kept = !pending ? "" : this.session.keeper.lasts
      ? " Your answer is not saved yet; it is kept in this browser tab and goes to the store as soon as that is possible."
      : " Your answer is not saved yet; it is kept on this page: do not reload or close it.";
    const again = this.session.config.app ? " If this lasts, load the page again." : " Run this cell again.";
    const cure = trouble.silent ? again : "";
    return `${trouble.text.replace(/[.!]?$/, ".")}${kept}${cure}`;
  }

  updatePage(stage) {
    if (stage === "item") {
      this.shown.page = null;
      return;
    }
    const { info, refused, busy, progress, summary, rest } = this.session.state;
    const key = JSON.stringify([stage, info, stage === "broken" ? refused : "", stage === "loading" ? busy : "", progress,
                                stage === "guidelines" && Boolean(this.session.texts[info.kind]), summary, rest]);
    if (this.shown.page === key) return;
    const first = this.shown.stage !== stage;
    this.shown.page = key;
    this.shown.stage = stage;
    const had = this.root.contains(document.activeElement) || this.session.config.app;
    const inside = this.pageBox.contains(document.activeElement);
    this.pageBox.replaceChildren(PAGES[stage](this.session));
    if (stage === "guidelines") this.session.fetchGuidelines(info.kind);
    const wanted = this.pageBox.querySelector("[data-first]") ?? this.pageBox.querySelector("input:not([type=number])");
    if ((first && had) || inside || this.goal) this.focusWhenThere(wanted ?? this.root);
  }

  // A page can be filled before its host has put it into the document, where nothing can have the focus. Only the newest
  // wish counts: an older one that comes true later would take the focus away again.
  focusWhenThere(element) {
    const waits = Boolean(this.goal);
    this.goal = element;
    if (!waits || element.isConnected) this.reachGoal();
  }

  reachGoal() {
    if (!this.goal) return;
    if (this.goal.isConnected && this.isShown()) {
      this.goal.focus({ preventScroll: true });
      this.goal = null;
    } else if (this.session.views.has(this)) {
      requestAnimationFrame(() => this.reachGoal());
    }
  }

  placeWords() {
    const { index, count, progress, info } = this.session.state;
    if (info.qualification && index === null) {
      return `Trying out: ${info.qualification.done + 1} of ${info.qualification.number}`;
    }
    if (info.practice && index === null) return `Practice: ${info.practice.done + 1} of ${info.practice.number}`;
    const all = count + (progress?.open ?? 0);
    const number = (index ?? count) + 1;
    if (index !== null) return `Earlier pair ${number} of ${count}`;
    return `${number} of ${all}, ${Math.max(0, all - number)} left`;
  }

  updateHead() {
    const { task, index, count, progress, info } = this.session.state;
    const { pace } = this.session;
    const gold = index === null ? info.qualification ?? info.practice : null;
    this.say(this.kind, task.kind === "safety" ? "Safety" : "Helpfulness");
    this.say(this.place, this.placeWords());
    const share = gold ? gold.done / gold.number : count / Math.max(1, count + (progress?.open ?? 0));
    this.bar.style.width = `${Math.round(100 * share)}%`;
    const goal = pace.goal && !gold ? `goal ${pace.data.stretch} of ${pace.goal}` : "";
    const usual = pace.median ? `usually ${tell(pace.median)}` : "";
    this.say(this.pace, [goal, usual].filter(Boolean).join(" · "));
    this.taskButton.hidden = !info.apart;
  }

  updatePanel(panel) {
    if (this.shown.panel === panel) return;
    this.shown.panel = panel;
    this.inner.inert = Boolean(panel);
    this.sheet.hidden = !panel;
    const had = this.root.contains(document.activeElement);
    this.sheet.replaceChildren(...(panel ? [PANELS[panel](this.session)] : []));
    const wanted = this.sheet.querySelector("[data-focus]");
    const goal = panel ? wanted ?? this.sheet.querySelector(panel === "skip" ? ".l2a-sheet" : ".l2a-sheet-body") : this.root;
    if (had || panel) goal.focus({ preventScroll: true });
  }

  tick() {
    const { draft, trouble, stage } = this.session.state;
    if (stage === "item" && draft) this.say(this.time, clock(draft.seconds));
    if (trouble && trouble.until === null) this.say(this.troubleWait, "");
    else if (trouble) {
      const seconds = Math.ceil((trouble.until - Date.now()) / 1000);
      this.say(this.troubleWait, seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again …");
    }
  }
}

// Some hosts share one module among several widgets, others load it for each: the session is found by its number.
const SESSIONS = new Map();

function sessionOf(model) {
  const id = model.get("_session");
  if (!SESSIONS.has(id)) SESSIONS.set(id, new Session(model));
  return SESSIONS.get(id);
}

export default {
  initialize({ model }) {
    const session = sessionOf(model);
    return () => {
      session.close();
      SESSIONS.delete(model.get("_session"));
    };
  },
  render({ model, el }) {
    const view = new View(sessionOf(model), el);
    return () => view.remove();
  },
};
