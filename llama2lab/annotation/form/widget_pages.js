// What covers the form for a while (guidelines, keys, skipping), and the pages before and after the items.

const KEYS = [
  [["1", "2", "3", "4"], "Answer A is significantly better, better, slightly, negligibly better"],
  [["5", "6", "7", "8"], "Answer B is negligibly, slightly better, better, significantly better"],
  [["Q", "A"], "Answer A is safe, unsafe (again: takes the mark back)"],
  [["P", "L"], "Answer B is safe, unsafe"],
  [["C"], "write a comment; Esc comes back"],
  [["F"], "flag the pair for the teacher"],
  [["S"], "skip the pair, with a reason"],
  [["B", "←"], "back to the pair before, to look or to change"],
  [["N", "→"], "forward again"],
  [["End"], "to the pair that waits for you"],
  [["Enter"], "keep the choice of an earlier pair, save its new marks or comment"],
  [["G"], "guidelines"],
  [["R"], "when saving fails: try again now"],
  [["?"], "this page"],
];

const keycap = (key) => h("kbd", { class: "l2a-key", "aria-hidden": "true" }, key);

function button(label, key, onclick, attributes = {}) {
  return h("button", { type: "button", class: "l2a-button", onclick, ...attributes,
                       "aria-keyshortcuts": key ? key.toLowerCase() : null },
           h("span", {}, label), key ? keycap(key) : null);
}

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

function guidelinesBody(session, kind) {
  const texts = session.texts[kind];
  if (!texts) return [h("p", {}, session.state.refused || "Fetching …")];
  if (!texts.length) return [h("p", {}, "No guidelines were given for these items.")];
  return texts.map((one) => {
    const article = h("article", { class: "l2a-prose" });
    article.append(prose(one.text));
    return article;
  });
}

function guidelinesPanel(session) {
  return panelFrame(session, "Guidelines", ...guidelinesBody(session, session.state.task?.kind ?? null));
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

const PANELS = { help: helpPanel, guidelines: guidelinesPanel, skip: skipPanel };

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
  const go = () => session.goOn();
  return h("div", { class: "l2a-page" }, h("h1", {}, `Welcome, ${session.state.annotator}`),
           h("p", {}, "From now on this name goes with your code:"),
           h("p", { class: "l2a-code" }, session.page.data.code ?? ""),
           h("p", {}, "Write it down: you are asked for it when you come back. If you expected to be known here already, " +
             "the name may be mistyped."),
           h("div", { class: "l2a-row" }, button("Go on", "Enter", go, { class: "l2a-button l2a-primary", "data-enter": true }),
             button("I am somebody else", null, () => session.leave())));
}

function introPage(session) {
  const { info } = session.state;
  const rule = info.qualification;
  const begin = () => session.next({ type: "begin" });
  const words = rule ? [
    h("p", {}, `Then come ${rule.number} pairs to try it out. If at least ${rule.needed} of your choices are the ones the ` +
      "guidelines lead to, you go on to the real pairs. A skipped pair counts as a miss here."),
    h("p", { class: "l2a-faint" }, rule.attempts > 1
      ? `There are ${rule.attempts} attempts, each with other pairs; this is number ${rule.attempt}.`
      : "There is one attempt: take your time."),
  ] : [h("p", {}, "Then come the pairs. Take your time.")];
  return h("div", { class: "l2a-page l2a-wide" }, h("h1", {}, `Hello, ${session.state.annotator}`),
           h("p", {}, "Please read how we judge. You can open this page again at any time with the key G."), ...words,
           h("div", { class: "l2a-reading", tabindex: "0", role: "document", "aria-label": "Guidelines" },
             ...guidelinesBody(session, null)),
           h("div", { class: "l2a-row" }, button("I have read this: begin", "Enter", begin,
                                                 { class: "l2a-button l2a-primary", "data-enter": true }),
             session.config.named ? null : button("I am somebody else", null, () => session.leave())));
}

function failedPage(session) {
  const rule = session.state.info.qualification;
  const left = rule.attempt < rule.attempts;
  const result = `${rule.agreed} of ${rule.number} choices were the ones the guidelines lead to; ${rule.needed} are needed.`;
  if (!left) {
    return h("div", { class: "l2a-page" }, h("h1", {}, "Thank you for your time"), h("p", {}, result),
             h("p", {}, "There is no further attempt. Please talk to whoever asked you to take part: good people differ " +
               "on these questions, and the guidelines may be at fault."));
  }
  return h("div", { class: "l2a-page" }, h("h1", {}, "Not yet"), h("p", {}, result),
           h("p", {}, `You may try again with ${rule.number} other pairs (attempt ${rule.attempt + 1} of ${rule.attempts}). ` +
             "Read the guidelines once more first."),
           h("div", { class: "l2a-row" }, button("Read and try again", "Enter", () => session.next({ type: "again" }),
                                                 { class: "l2a-button l2a-primary", "data-enter": true })));
}

function donePage(session) {
  const { progress } = session.state;
  const some = progress && progress.done + progress.skipped > 0;
  const what = some ? `You have judged ${progress.done} ${progress.done === 1 ? "pair" : "pairs"}` +
    (progress.skipped ? ` and skipped ${progress.skipped}.` : ".") : "There is no pair that waits for you.";
  return h("div", { class: "l2a-page" }, h("h1", {}, some ? "That was the last one. Thank you!" : "Nothing to do"),
           h("p", {}, `${what} Everything is saved.`),
           some ? h("p", { class: "l2a-faint" }, "You can go back and change an answer, or close this page.") : null,
           h("div", { class: "l2a-row" }, some ? button("Back", "B", () => session.back()) : null,
             button("Look for new pairs", "N", () => session.next()),
             session.config.app && !session.config.named ? button("Leave", null, () => session.leave()) : null));
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

const PAGES = { loading: loadingPage, name: namePage, code: codePage, guidelines: introPage, failed: failedPage, done: donePage,
                broken: brokenPage };
