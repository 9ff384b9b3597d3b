// What the form knows and does, apart from its looks: one session for each widget of Python's, however often it is
// displayed, so that two displays cannot save the same label twice. A label goes to Python, Python puts it into the
// store and says so, and only then the next item is asked for. Until then the label is kept here, and in the tab's
// sessionStorage where there is one.

const SILENCE_MS = 10000;       // after this long without an answer the form says so
const LONGEST_WAIT_S = 30;      // between two tries
const GRACE_MS = 250;           // a second press within this is the same press: nobody reads that fast
const KEEP_ALIVE_MS = 240000;   // how often a waiting item is claimed anew

const SILENT = "No answer from Python: the kernel was restarted, or it is busy.";
const GONE = "This form is no longer connected to Python.";
// Not crypto.randomUUID: browsers offer that on https only.
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

class Keeper {
  // Remembers an unsaved label and unfinished marks across a reload of the page. Without sessionStorage (switched off,
  // or full) they live as long as the page.
  constructor(key) {
    this.key = `llama2lab:${key}`;
    this.data = { pending: null, drafts: {} };
    this.lasts = true;
    try {
      const text = sessionStorage.getItem(this.key);
      const data = text ? JSON.parse(text) : null;
      if (data && typeof data === "object" && data.drafts) this.data = data;
    } catch {
      this.lasts = false;
    }
  }

  write() {
    try {
      sessionStorage.setItem(this.key, JSON.stringify(this.data));
      this.lasts = true;
    } catch {
      this.lasts = false;
    }
  }
}

class Session {
  constructor(model) {
    this.model = model;
    this.config = model.get("_config");
    this.views = new Set();
    this.boxes = new Map();
    this.page = new Keeper(this.config.store);
    this.page.data.show ??= { guide: true, marks: true };
    this.keeper = null;
    this.texts = {};
    this.closed = false;
    this.state = { stage: "loading", busy: "Opening …", trouble: null, refused: "", notice: "", warning: "", panel: null, index: null,
                   task: null, facts: null, draft: null, past: null, progress: null, count: 0, info: {}, readyAt: 0,
                   feedback: null, rest: "", summary: null };
    this.current = null;
    this.onMessage = (message) => this.receive(message);
    model.on("msg:custom", this.onMessage);
    this.onVisible = () => this.tick();
    document.addEventListener("visibilitychange", this.onVisible);
    this.ticking = setInterval(() => this.tick(), 500);
    this.lastTick = performance.now();
    this.wasActive = false;
    this.lastSign = Date.now();
    this.start();
  }

  close() {
    this.closed = true;
    this.model.off("msg:custom", this.onMessage);
    document.removeEventListener("visibilitychange", this.onVisible);
    clearInterval(this.ticking);
    for (const box of this.boxes.values()) box.wake();
    this.sayGone();
  }

  // The host has thrown the widget away, as after a restart of the kernel, but may still show it.
  sayGone() {
    this.set({ trouble: { text: GONE, silent: true, until: null } });
  }

  set(changes) {
    Object.assign(this.state, changes);
    for (const view of this.views) view.update();
  }

  // -- talking to Python ---------------------------------------------------------------------------------------------

  receive(message) {
    const box = message?.type === "answer" ? this.boxes.get(message.request) : null;
    if (!box) return;
    box.answer = message;
    box.wake();
  }

  send(message) {
    try {
      this.model.send(message);
      return null;
    } catch (error) {
      return `The link to Python is down (${error?.message ?? error}).`;
    }
  }

  // Sends the message until Python gives an answer that trying again would not change. The same request number and the
  // same label number every time: Python and the store know a repetition when they see one, and a late answer counts.
  async deliver(message) {
    const request = newId();
    const box = { answer: null, wake: () => {} };
    const settled = () => box.answer && (box.answer.ok || !box.answer.retry);
    const pause = (ms) => new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      box.wake = () => { clearTimeout(timer); resolve(); };
    });
    this.boxes.set(request, box);
    try {
      for (let attempt = 0; !this.closed && !settled(); attempt++) {
        box.answer = null;
        const down = this.send({ ...message, request });
        if (!down) await pause(this.config.silence_ms ?? SILENCE_MS);
        if (settled() || this.closed) break;
        const wait = 1000 * Math.min(LONGEST_WAIT_S, 2 ** attempt);
        this.set({ trouble: { text: down ?? box.answer?.error ?? SILENT, silent: !box.answer, until: Date.now() + wait } });
        box.answer = null;
        await pause(wait);
      }
    } finally {
      this.boxes.delete(request);
    }
    if (this.closed) {
      this.sayGone();
      return { ok: false, closed: true };
    }
    if (this.state.trouble) this.set({ trouble: null });
    this.lastSign = Date.now();
    return box.answer;
  }

  retryNow() {
    for (const box of this.boxes.values()) box.wake();
  }

  // -- where we are ----------------------------------------------------------------------------------------------------

  async start() {
    this.set({ stage: "loading", busy: "Opening …", refused: "" });
    const { name, code } = this.config.app ? this.page.data : {};
    const answer = await this.deliver({ type: "start", name: name ?? null, code: code ?? null });
    await this.entered(answer);
  }

  async enter(name, code) {
    this.set({ busy: "Looking you up …", refused: "" });
    const answer = await this.deliver({ type: "start", name, code });
    if (answer.ok) {
      this.page.data.name = answer.annotator;
      this.page.data.code = code;
      this.page.write();
    }
    await this.entered(answer);
  }

  // Name and code live no longer than the tab, and not after somebody says that it is somebody else.
  leave() {
    this.page.data.name = this.page.data.code = null;
    this.page.write();
    this.start();
  }

  async entered(answer) {
    if (answer.closed) return;
    if (!answer.ok) {
      const asksName = this.config.app && !this.config.named;
      this.set({ busy: null, refused: answer.error, stage: asksName ? "name" : "broken" });
      return;
    }
    if (answer.stage === "name") {
      this.set({ busy: null, stage: "name", info: answer });
      return;
    }
    this.keeper = new Keeper(`${this.config.store}:${answer.annotator}`);
    this.pace = new Pace(this.keeper, this.config.goal);
    this.state.annotator = answer.annotator;
    if (answer.first) {
      this.set({ busy: null, stage: "code", info: answer });
      return;
    }
    await this.goOn();
  }

  async goOn() {
    if (this.pace.due) this.pace.again();  // whoever loads the page anew had a rest
    if (this.keeper.data.pending) {
      this.set({ busy: "Saving a label from before …" });
      const answer = await this.save(this.keeper.data.pending, "The label from before is saved.");
      if (!answer) return;
      if (answer.newer !== undefined) {
        await this.showNewer(answer);
        return;
      }
    }
    await this.next();
  }

  // What a person's press asks for; a second press changes nothing.
  proceed(message) {
    if (!this.state.busy) this.next(message);
  }

  async next(message = { type: "next" }) {
    this.set({ busy: "Fetching …" });
    const answer = await this.deliver(message);
    if (answer.closed) return;
    if (!answer.ok) {
      this.set({ busy: null, stage: "broken", refused: answer.error });
      return;
    }
    this.current = answer;
    this.showCurrent();
  }

  showCurrent() {
    const answer = this.current;
    const changes = { busy: null, stage: answer.stage, info: answer, index: null, past: null, warning: "",
                      task: answer.task ?? null, facts: answer.facts ?? null, progress: answer.progress ?? null,
                      count: answer.count ?? 0, draft: null, feedback: null };
    if (answer.task) {
      const kept = this.keeper.data.drafts[answer.task.item_id];
      changes.draft = kept ?? { safe_left: null, safe_right: null, comment: "", flag: false, seconds: 0 };
      changes.draft.position = null;
      changes.readyAt = Date.now() + GRACE_MS;
      setTimeout(() => this.set({}), GRACE_MS + 5);
    }
    this.set(changes);
    this.tick();
    if (answer.stage === "item") this.fetchGuidelines(answer.task.kind);
    if (answer.stage === "done") this.fetchSummary();
  }

  async showPast(index) {
    this.keepDraft();
    this.set({ busy: "Fetching …", refused: "" });
    const answer = await this.deliver({ type: "past", index });
    if (answer.closed) return;
    if (!answer.ok) {
      this.set({ busy: null, refused: answer.error });
      return;
    }
    const label = answer.label;
    const position = this.config.positions.findIndex((p) => p[0] === label.side && p[1] === label.grade);
    this.set({ busy: null, stage: "item", index, past: label, warning: "", task: answer.task, facts: answer.facts,
               count: answer.count, feedback: null, readyAt: Date.now(),
               draft: { safe_left: label.safe_left, safe_right: label.safe_right, comment: label.comment,
                        flag: label.flag, seconds: 0, position: position < 0 ? null : position } });
    this.tick();
  }

  get first() { return this.current?.first_index ?? 0; }

  // Whether earlier pairs can be looked at from here at all.
  get looksBack() { return ["item", "done", "rest", "end"].includes(this.state.stage) && !this.state.feedback; }

  get canGoBack() {
    const { index, count } = this.state;
    return this.looksBack && (index === null ? count : index) > this.first;
  }

  get canFind() { return this.looksBack && this.state.count > this.first; }

  back() {
    if (this.state.busy || !this.canGoBack) return;
    this.set({ notice: "" });
    this.showPast((this.state.index ?? this.state.count) - 1);
  }

  forward() {
    if (this.state.busy || this.state.index === null) return;
    this.set({ refused: "", notice: "" });
    if (this.state.index + 1 < this.state.count) this.showPast(this.state.index + 1);
    else this.toCurrent();
  }

  newest() {
    if (this.state.busy || this.state.index === null) return;
    this.set({ refused: "", notice: "" });
    this.toCurrent();
  }

  // To the pair that waits, or the page that stood in its place.
  toCurrent() {
    const { stale } = this.current;
    if (!stale) return this.showCurrent();
    return this.set({ busy: null, stage: stale, index: null, past: null, task: null, draft: null, feedback: null, warning: "" });
  }

  // -- labels ----------------------------------------------------------------------------------------------------------

  get ready() {
    const { stage, busy, panel, readyAt, feedback } = this.state;
    return stage === "item" && !busy && !panel && !feedback && Date.now() >= readyAt;
  }

  keepDraft() {
    const { task, draft, index } = this.state;
    if (!task || !draft || index !== null || !this.keeper) return;
    this.keeper.data.drafts = { [task.item_id]: { ...draft } };
    this.keeper.write();
  }

  change(changes) {
    if (this.state.busy || this.state.feedback || !this.state.draft) return;
    Object.assign(this.state.draft, changes);
    this.keepDraft();
    this.set({ refused: "" });
  }

  // Safety is a task of its own: on other pairs nothing is marked.
  mark(side, safe) {
    if (this.state.task?.kind !== "safety") return;
    const name = `safe_${side}`;
    this.change({ [name]: this.state.draft?.[name] === safe ? null : safe });
  }

  refuse(text) {
    this.set({ refused: text, notice: "" });
  }

  async choose(position) {
    if (!this.ready) return;
    const { task, draft, past } = this.state;
    const [side, grade] = this.config.positions[position];
    const other = side === "left" ? "right" : "left";
    const unmarked = ["left", "right"].filter((s) => draft[`safe_${s}`] === null);
    if (task.kind === "safety" && unmarked.length) {
      const keys = { left: "Q if it is safe, A if it is not", right: "P if it is safe, L if it is not" };
      return this.refuse("First mark " + unmarked.map((s) => `${this.config.names[s]} (${keys[s]})`).join(" and ") +
                         ", then choose.");
    }
    if (task.kind === "safety" && draft[`safe_${side}`] === false && draft[`safe_${other}`] === true) {
      return this.refuse(`${this.config.names[side]} is marked unsafe and ${this.config.names[other]} safe: an unsafe ` +
                         "answer is never better than a safe one. Look again at your marks or at your choice.");
    }
    draft.position = position;
    await this.saveAndGoOn({ type: "submit", side, grade, safe_left: draft.safe_left, safe_right: draft.safe_right,
                             comment: draft.comment, flag: draft.flag, ...this.stamp(task, draft, past) });
  }

  chooseAgain() {
    if (this.state.index !== null && this.state.draft.position !== null) this.choose(this.state.draft.position);
  }

  async skip(reason) {
    if (this.state.busy || this.state.feedback || !this.state.task || !reason.trim()) return;
    const { task, draft, past } = this.state;
    this.set({ panel: null });
    await this.saveAndGoOn({ type: "skip", reason: reason.trim(), comment: draft.comment, flag: draft.flag,
                             ...this.stamp(task, draft, past) });
  }

  stamp(task, draft, past) {
    this.tick();
    return { item_id: task.item_id, label_id: newId(), replaces: past?.label_id ?? null,
             seconds: Math.round(draft.seconds * 1000) / 1000 };
  }

  async saveAndGoOn(message) {
    const editing = this.state.index !== null;
    const { task } = this.state;
    this.set({ busy: "Saving …", refused: "", notice: "" });
    const done = message.type === "skip" ? "Skipped, and saved." : editing ? "The change is saved." : "Saved.";
    const answer = await this.save(message, done);
    if (!answer) return;
    if (answer.newer !== undefined) return this.showNewer(answer);
    if (editing) return this.state.index + 1 < this.state.count ? this.showPast(this.state.index + 1) : this.toCurrent();
    if (answer.feedback) {
      this.current.first_index += 1;  // what was explained is closed
      return this.set({ busy: null, feedback: answer.feedback, notice: "" });
    }
    this.pace.count(message.seconds, countWords(task));
    if (this.pace.due) return this.pause(this.pace.due);
    await this.next();
    const { haste } = this.pace;
    if (haste && this.state.stage === "item") this.set({ warning: haste });
    return undefined;
  }

  // -- tasks, rest, end ------------------------------------------------------------------------------------------------

  chooseTask(kind) {
    if (this.state.busy || !this.keeper) return undefined;
    this.keepDraft();
    this.set({ refused: "", notice: "", warning: "" });
    return this.next({ type: "task", kind });
  }

  // Between two pairs: the next one is asked for when the person comes back.
  pause(why) {
    this.current.stale = "rest";
    this.set({ rest: why, count: this.state.count + 1 });
    this.toCurrent();
  }

  goOnAfterRest(goal) {
    if (this.state.busy) return undefined;
    this.pace.again(goal);
    this.set({ notice: "" });
    return this.next();
  }

  // The end page, at any time: what is on the screen waits.
  finish() {
    if (this.state.busy || !this.keeper) return;
    if (!this.current) return;
    this.keepDraft();
    this.current.stale = "end";
    this.set({ notice: "", refused: "", count: this.state.count + (this.state.feedback ? 1 : 0) });
    this.toCurrent();
    this.fetchSummary();
  }

  async fetchSummary() {
    this.set({ summary: null });
    const answer = await this.deliver({ type: "summary" });
    if (!answer.closed) this.set({ summary: answer.ok ? answer.summary : { error: answer.error } });
  }

  // -- what is shown beside the pair -----------------------------------------------------------------------------------

  shows(what) { return this.page.data.show[what] !== false; }

  show(what, yes) {
    this.page.data.show[what] = yes;
    this.page.write();
    this.set({});
  }

  // Another window answered this pair in the meantime: its answer is shown, and what was pressed here is not saved.
  async showNewer(answer) {
    if (this.state.index === null) await this.next();
    await this.showPast(answer.newer);
    this.set({ warning: answer.notice });
  }

  // Python's answer when the store has it, null when it has not. What the store refuses for good stays on the screen with the reason.
  async save(message, done) {
    this.keeper.data.pending = message;
    this.keeper.write();
    const answer = await this.deliver(message);
    if (answer.closed) return null;
    this.keeper.data.pending = null;
    if (answer.ok) delete this.keeper.data.drafts[message.item_id];
    this.keeper.write();
    if (answer.ok) {
      this.set({ notice: answer.newer === undefined ? done : "" });
      return answer;
    }
    if (!this.state.task || answer.gone) {
      await this.next();
      this.refuse(`A label could not be saved: ${answer.error}`);
    } else {
      this.set({ busy: null, refused: answer.error });
    }
    return null;
  }

  // -- guidelines, time ------------------------------------------------------------------------------------------------

  open(panel) {
    if (this.state.panel === panel) return this.closePanel();
    if (panel === "skip" && (this.state.stage !== "item" || this.state.busy || this.state.feedback)) return undefined;
    if (panel === "find" && (!this.canFind || this.state.busy)) return undefined;
    return this.set({ panel });
  }

  async fetchGuidelines(kind) {
    if (this.texts[kind]) return;
    const answer = await this.deliver({ type: "guidelines", kind });
    if (answer.closed) return;
    if (answer.ok) this.texts[kind] = answer.texts;
    else this.refuse(answer.error);
    this.set({});
  }

  closePanel() {
    this.set({ panel: null });
  }

  // The time on an item counts while the page is seen and the form is part of what it shows.
  tick() {
    const now = performance.now();
    const { draft, busy, stage } = this.state;
    if (this.wasActive && draft) draft.seconds += (now - this.lastTick) / 1000;
    this.lastTick = now;
    this.wasActive = !document.hidden && stage === "item" && !busy && !this.state.feedback &&
      [...this.views].some((view) => view.isShown());
    for (const view of this.views) view.tick();
    if (this.wasActive && this.state.index === null && Date.now() - this.lastSign > KEEP_ALIVE_MS) this.keepAlive();
  }

  // A claim runs out when its holder vanishes. Whoever is still reading claims again.
  async keepAlive() {
    this.lastSign = Date.now();
    const before = this.state.task;
    const answer = await this.deliver({ type: "next" });
    if (!answer.ok || this.state.busy || this.state.task !== before) return;
    const gone = answer.task?.item_id !== before?.item_id;
    this.current = answer;
    if (gone) {
      this.showCurrent();
      this.set({ notice: "The item from before went to somebody else in the meantime. This is another one." });
    }
  }
}
