// What covers the form for a while (keys, skipping), and the pages before, between and after the items.

const KEYS = [
  [["1", "2", "3", "4"], "Answer A is significantly better, better, slightly, negligibly better"],
  [["5", "6", "7", "8"], "Answer B is negligibly, slightly better, better, significantly better"],
  [["Q", "A"], "in the safety task: Answer A is safe, unsafe (again: takes the mark back)"],
  [["P", "L"], "in the safety task: Answer B is safe, unsafe"],
  [["C"], "write a comment; Esc comes back"],
  [["F"], "flag the pair for the teacher"],
  [["S"], "skip the pair, with a reason"],
  [["B", "←"], "back to the pair before, to look or to change"],
  [["N", "→"], "forward again"],
  [["/"], "find an earlier pair, by its words or by what you answered"],
  [["End"], "to the pair that waits for you"],
  [["Enter"], "keep the choice of an earlier pair, save its new marks or comment; after practice: the next pair"],
  [["PgUp", "PgDn"], "scroll the guidelines, wherever you are"],
  [["G"], "into the guidelines, where the arrows scroll, and back to the pair"],
  [["H"], "hide or show the guidelines"],
  [["D"], "mark the words in which the answers differ, or do not"],
  [["T"], "choose the task: helpfulness or safety"],
  [["X"], "stop for now: how far you are, and how you agree"],
  [["R"], "when saving fails: try again now"],
  [["?"], "this page"],
];
const TASK_WORDS = {
  helpfulness: ["Helpfulness", "Which answer helps the person more?"],
  safety: ["Safety", "Is each answer safe? And which is the better one?"],
};

const keycap = (key) => h("kbd", { class: "l2a-key", "aria-hidden": "true" }, key);
const pairs = (number) => `${number} ${number === 1 ? "pair" : "pairs"}`;

function button(label, key, onclick, attributes = {}) {
  return h("button", { type: "button", class: "l2a-button", onclick, ...attributes,
                       "aria-keyshortcuts": key ? key.toLowerCase() : null },
           h("span", {}, label), key ? keycap(key) : null);
}

// The one button of a page that Enter presses wherever the focus is.
const mainButton = (label, onclick) => button(label, "Enter", onclick,
                                              { class: "l2a-button l2a-primary", "data-enter": true });

function panelFrame(session, title, ...body) {
  return h("div", { class: "l2a-sheet", role: "dialog", "aria-modal": "true", "aria-label": title, tabindex: "-1" },
           h("div", { class: "l2a-sheet-head" }, h("h2", {}, title),
             button("Close", "Esc", () => session.closePanel())),
           h("div", { class: "l2a-sheet-body", tabindex: "0", role: "document" }, ...body));
}

function helpPanel(session) {
  const rows = KEYS.map(([keys, what]) => h("tr", {}, h("td", {}, ...keys.map(keycap)), h("td", {}, what)));
  return panelFrame(session, "Keys", h("table", { class: "l2a-keys" }, ...rows),
                    h("p", { class: "l2a-faint" }, "Keys work while the form has the focus (the coloured frame): click " +
                      "into it, or press Tab until you are there. Everything can be done with the mouse as well."));
}

function skipPanel(session) {
  const own = h("input", { type: "text", maxlength: "500", class: "l2a-input", "aria-label": "Another reason",
                           placeholder: "another reason, in your own words" });
  const send = () => (own.value.trim() ? session.skip(own.value) : own.focus());
  own.addEventListener("keydown", (event) => { if (event.key === "Enter") send(); });
  const choices = session.config.reasons.map((reason, i) => button(reason, String(i + 1), () => session.skip(reason)));
  return panelFrame(session, "Skip this pair: why?", h("div", { class: "l2a-choices" }, ...choices),
                    h("div", { class: "l2a-row" }, own, button("Skip", "Enter", send)));
}

const PANELS = { help: helpPanel, skip: skipPanel };

// The way to the pairs that can still be changed, from a page that stands between pairs or after them.
const earlier = (session) => [session.canGoBack ? button("Back", "B", () => session.back()) : null,
                              session.canFind ? button("Find", "/", () => session.open("find")) : null];

// -- pages -------------------------------------------------------------------------------------------------------------

function namePage(session) {
  const name = h("input", { type: "text", class: "l2a-input", maxlength: "200", autocomplete: "off", id: "l2a-name",
                            spellcheck: "false" });
  const code = h("input", { type: "password", class: "l2a-input", maxlength: "200", autocomplete: "off", id: "l2a-code",
                            "aria-describedby": "l2a-code-help" });
  const go = () => {
    if (name.value.trim() && code.value.trim()) session.enter(name.value, code.value);
    else (name.value.trim() ? code : name).focus();
  };
  for (const input of [name, code]) input.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
  return h("div", { class: "l2a-page" }, h("h1", {}, "Which answer is better?"),
           h("p", {}, "You will see questions, each with two answers. You say which answer is better, and by how much. " +
             "From such judgements a language model learns what people want."),
           h("label", { for: "l2a-name" }, "Your name, or the one you were given"),
           h("div", { class: "l2a-row" }, name),
           h("label", { for: "l2a-code" }, "Your code"),
           h("div", { class: "l2a-row" }, code, button("Start", "Enter", go, { class: "l2a-button l2a-primary" })),
           h("p", { class: "l2a-faint", id: "l2a-code-help" }, "Is this your first visit? Then choose a code, of six " +
             "characters or more, that is no password of yours. Name and code together go on where you stopped, on any " +
             "computer. Those who run this see your name beside your judgements."));
}

function codePage(session) {
  return h("div", { class: "l2a-page" }, h("h1", {}, `Welcome, ${session.state.annotator}`),
           h("p", {}, "From now on this name goes with your code:"),
           h("p", { class: "l2a-code" }, session.page.data.code ?? ""),
           h("p", {}, "Write it down: you are asked for it when you come back. If you expected to be known here already, " +
             "the name may be mistyped."),
           h("div", { class: "l2a-row" }, mainButton("Go on", () => session.goOn()), leaveButton(session)));
}

function leaveButton(session) {
  return session.config.app && !session.config.named ? button("I am somebody else", null, () => session.leave()) : null;
}

function tasksPage(session) {
  const choices = session.state.info.tasks.map((task, i) => {
    const [name, question] = TASK_WORDS[task.kind];
    const waits = `${pairs(task.open)} ${task.open === 1 ? "waits" : "wait"}`;
    return h("button", { type: "button", class: "l2a-button l2a-task", "aria-keyshortcuts": String(i + 1),
                         onclick: () => session.chooseTask(task.kind) },
             keycap(String(i + 1)), h("span", {}, h("strong", {}, name), h("span", { class: "l2a-task-question" }, question)),
             h("span", { class: "l2a-faint" }, waits));
  });
  return h("div", { class: "l2a-page" }, h("h1", {}, "Two tasks"),
           h("p", {}, "They are judged apart, each with its own guidelines. What helps most is not always safe: whoever " +
             "asks both questions at once answers neither well."),
           h("div", { class: "l2a-choices" }, ...choices),
           h("p", { class: "l2a-faint" }, "You can change between them at any time with the key T."));
}

// A number of pairs, at the end of a sentence. `change` gets it when it is one.
function goalField(session, words, change) {
  const field = h("input", { type: "number", min: "0", max: "1000", step: "1", class: "l2a-input l2a-number",
                             value: String(session.pace.goal), id: "l2a-goal", "aria-describedby": "l2a-goal-help" });
  field.addEventListener("input", () => {
    const number = Number(field.value);
    if (field.value !== "" && Number.isInteger(number) && number >= 0 && number <= 1000) change(number);
  });
  return h("div", { class: "l2a-row" }, h("label", { for: "l2a-goal" }, words), field,
           h("span", { class: "l2a-faint", id: "l2a-goal-help" }, "pairs, then a rest; 0 for no goal"));
}

// Enter reads on, and begins at the end: nobody is past the guidelines by one press.
function introPage(session) {
  const { info } = session.state;
  const rule = info.qualification;
  const [task, question] = TASK_WORDS[info.kind] ?? ["", ""];
  const reading = h("div", { class: "l2a-reading", tabindex: "0", role: "region", "aria-label": "Guidelines",
                             "data-first": true }, ...guidelinesBody(session, info.kind));
  const words = [];
  if (info.practice) words.push(`First, ${pairs(info.practice)} to practise: after each you are told what was wanted, and why.`);
  if (rule) {
    const other = rule.attempts > 1 ? `There are ${rule.attempts} attempts, each with other pairs; this is number ${rule.attempt}.`
      : "There is one attempt: take your time.";
    words.push(`${info.practice ? "Then" : "First"}, ${pairs(rule.number)} to try it out: if at least ${rule.needed} of ` +
               `your choices are the ones the guidelines lead to, you go on to the real pairs. A skipped pair counts as a ` +
               `miss here. ${other}`);
  }
  if (!words.length) words.push("Then come the pairs. Take your time.");
  const atEnd = () => reading.scrollTop + reading.clientHeight >= reading.scrollHeight - 8;
  const label = h("span", {});
  const go = h("button", { type: "button", class: "l2a-button l2a-primary", "data-enter": true, "aria-keyshortcuts": "enter",
                           onclick: () => {
    if (!session.texts[info.kind]) return;  // on their way
    if (atEnd()) session.proceed({ type: "begin" });
    else reading.scrollBy({ top: 0.9 * reading.clientHeight });
  } }, label, keycap("Enter"));
  const say = () => { label.textContent = atEnd() ? "I have read this: begin" : "Read on"; };
  reading.addEventListener("scroll", say);
  reading.addEventListener("toggle", say, true);
  requestAnimationFrame(say);
  return h("div", { class: "l2a-page l2a-wide" },
           h("h1", {}, `Hello, ${session.state.annotator}`),
           h("p", {}, h("strong", {}, `${task}: `), `${question} Please read how we judge this; it also stands beside each ` +
             "pair."), ...words.map((one) => h("p", {}, one)), reading,
           goalField(session, "My goal:", (goal) => session.pace.again(goal)),
           h("div", { class: "l2a-row" }, go, info.apart ? button("Other task", "T", () => session.chooseTask(null)) : null,
             leaveButton(session)));
}

function failedPage(session) {
  const { info } = session.state;
  const rule = info.qualification;
  const left = rule.attempt < rule.attempts;
  const result = `${rule.agreed} of ${rule.number} choices were the ones the guidelines lead to; ${rule.needed} are needed.`;
  const other = info.apart ? button("Other task", "T", () => session.chooseTask(null)) : null;
  if (!left) {
    return h("div", { class: "l2a-page" }, h("h1", {}, "Thank you for your time"), h("p", {}, result),
             h("p", {}, "There is no further attempt. Please talk to whoever asked you to take part: good people differ " +
               "on these questions, and the guidelines may be at fault."), h("div", { class: "l2a-row" }, other));
  }
  return h("div", { class: "l2a-page" }, h("h1", {}, "Not yet"), h("p", {}, result),
           h("p", {}, `You may try again with ${rule.number} other pairs (attempt ${rule.attempt + 1} of ${rule.attempts}). ` +
             "Read the guidelines once more first."),
           h("div", { class: "l2a-row" }, mainButton("Read and try again", () => session.proceed({ type: "again" })), other));
}

function restPage(session) {
  const { pace, state } = session;
  const goal = state.rest === "goal";
  let next = pace.goal;
  return h("div", { class: "l2a-page" },
           h("h1", {}, goal ? `Your goal of ${pairs(pace.goal)} is reached` : "Time for a rest"),
           h("p", {}, `${pairs(pace.done)} in this session, ${tell(pace.seconds)} in all, ${tell(pace.median)} for a usual ` +
             "one. Everything is saved."),
           h("p", {}, "Look out of the window for a minute: tired eyes find no differences."),
           goalField(session, "Next goal:", (number) => { next = number; }),
           h("div", { class: "l2a-row" }, mainButton("Go on", () => session.goOnAfterRest(next)),
             button("Stop for now", "X", () => session.finish()), ...earlier(session)));
}

const percent = (share) => `${Math.round(100 * share)} %`;

function agreementWords(figure) {
  return `${figure.agreed} of ${figure.n}, ${percent(figure.agreed / figure.n)} (95 % interval ${Math.round(100 * figure.low)} ` +
    `to ${percent(figure.high)})`;
}

// How far one agrees: rows of a definition list.
function agreementList(session) {
  const { summary } = session.state;
  if (!summary) return h("p", { class: "l2a-faint" }, "Counting …");
  if (summary.error) return h("p", { role: "alert" }, summary.error);
  const rows = [["pairs judged", `${summary.done}` + (summary.skipped ? `, and ${summary.skipped} skipped` : "")]];
  if (session.pace?.done) rows.push(["this session", `${pairs(session.pace.done)} in ${tell(session.pace.seconds)}`]);
  if (summary.seconds) rows.push(["a usual pair", tell(summary.seconds)]);
  if (summary.gold) rows.push(["with known answers", agreementWords(summary.gold)]);
  rows.push(["with the others", summary.others ? agreementWords(summary.others) : summary.sees_others
    ? "not known yet: that wants five pairs that others have judged, too" : "told by your teacher: this login sees its own labels only"]);
  const list = h("dl", { class: "l2a-figures" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  return h("div", { class: "l2a-agreement" }, list,
           h("p", { class: "l2a-faint" }, "By what you said first. Known answers are those of pairs that were put among the " +
             "others, practice aside; with the others means with what most of them chose. Nobody reaches 100 %: good " +
             "people differ, and most where answers are close."));
}

// The last page of a task, and the page of whoever stops before.
function endPage(session) {
  const { stage, progress, info } = session.state;
  const done = stage === "done";
  const some = !done || (progress && progress.done + progress.skipped > 0);
  const other = done && info.other?.open ? info.other : null;
  const title = !some ? "Nothing to do" : done ? "That was the last one. Thank you!" : "Thank you!";
  return h("div", { class: "l2a-page" }, h("h1", {}, title),
           some ? h("p", {}, "Everything is saved. Where several people judged a pair, their majority becomes one example from " +
             "which a reward model learns what people want.") : h("p", {}, "There is no pair that waits for you. Everything is saved."),
           some ? agreementList(session) : null,
           other ? h("p", {}, `${TASK_WORDS[other.kind][0]}, the other task, still has ${pairs(other.open)} for you.`) : null,
           h("div", { class: "l2a-row" },
             other ? mainButton(`Go to ${TASK_WORDS[other.kind][0].toLowerCase()}`, () => session.chooseTask(other.kind))
               : done ? null : mainButton("Go on", () => session.goOnAfterRest()),
             ...earlier(session),
             done ? button("Look for new pairs", "N", () => session.proceed()) : null,
             session.config.app && !session.config.named ? button("Leave", null, () => session.leave()) : null),
           some ? h("p", { class: "l2a-faint" }, "You can go back and change an answer, or close this page.") : null);
}

function brokenPage(session) {
  return h("div", { class: "l2a-page" }, h("h1", {}, "This cannot go on"),
           h("p", { role: "alert" }, session.state.refused),
           h("p", { class: "l2a-faint" }, "Nothing that was saved is lost."),
           h("div", { class: "l2a-row" }, button("Try again", "R", () => session.start(),
                                                 { class: "l2a-button l2a-primary", "data-enter": true })));
}

function loadingPage(session) {
  return h("div", { class: "l2a-page" }, h("p", { class: "l2a-faint" }, session.state.busy ?? "Opening …"));
}

const PAGES = { loading: loadingPage, name: namePage, code: codePage, tasks: tasksPage, guidelines: introPage, failed: failedPage,
                rest: restPage, done: endPage, end: endPage, broken: brokenPage };
