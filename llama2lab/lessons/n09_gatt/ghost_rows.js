// A training row in three steps: the instruction everywhere, then in the first message only, then the loss on the last
// answer alone. Tokens that the loss counts are filled and underlined.

const ROWS_STYLE = `
.gr-steps { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin: 10px 0; }
.gr-steps .l2p-button { display: flex; flex-direction: column; padding: 6px 8px; text-align: left; line-height: 1.35; }
.gr-steps small { display: block; font-size: 13px; font-weight: 400; color: var(--l2p-faint); }
.gr-chat { display: grid; gap: 8px; }
.gr-turn { display: flex; gap: 10px; align-items: baseline; }
.gr-turn.answer { margin-left: 28px; }
.gr-who { flex: 0 0 64px; color: var(--l2p-faint); font-size: 13px; }
.gr-text { flex: 1; min-width: 0; padding: 5px 10px; border-radius: 8px; background: var(--l2p-sunk); }
.gr-told { display: inline-block; max-width: 100%; margin-right: 6px; padding: 0 7px; border: 1.5px solid var(--l2p-orange); border-radius: 5px;
  color: var(--l2p-text); font-weight: 600; }
.gr-told.gone { border-style: dashed; border-color: var(--l2p-line); color: var(--l2p-faint); font-weight: 400; text-decoration: line-through; }
.gr-token { display: inline-block; margin: 1px; padding: 0 3px; border: 1px solid var(--l2p-line); border-bottom-width: 3px; border-radius: 3px;
  font: 13px/1.5 var(--l2p-mono); white-space: pre; color: var(--l2p-faint); }
.gr-token.learnt { border-color: var(--l2p-blue); color: var(--l2p-text); font-weight: 600;
  background: color-mix(in srgb, var(--l2p-blue) 24%, transparent); }
.gr-meter { display: flex; align-items: center; gap: 10px; margin-top: 10px; font-variant-numeric: tabular-nums; }
.gr-meter i { flex: 1; height: 10px; border-radius: 5px; background: var(--l2p-sunk); border: 1px solid var(--l2p-line); overflow: hidden; }
.gr-meter b { display: block; height: 100%; background: var(--l2p-blue); }
@media (prefers-reduced-motion: no-preference) {
  .gr-meter b { transition: width 0.5s; }
  .gr-told { transition: color 0.4s, border-color 0.4s; }
}
@container (max-width: 480px) { .gr-turn { display: block; } .gr-turn.answer { margin-left: 16px; } }`;

function picture(stage, model) {
  const { messages, counts, seen_turns: seen, rule } = model.get("data");
  const steps = [
    { name: "1 Sample", what: "the instruction in every user message", learnt: null,
      says: `The model answers turn by turn and obeys what it has just read (it sees the last ${seen} turns). Nothing is learnt yet.` },
    { name: "2 Drop", what: "kept in the first message only", learnt: 1,
      says: "The answers stay, the instruction goes: nothing near them asks for it any more. Fine-tuning would learn all answers." },
    { name: "3 Zero the loss", what: "before the last answer", learnt: 2,
      says: "Only the last answer is learnt, </s> with it. It has to be found from the first message, over all the turns between." },
  ];
  const chat = node("div", { class: "gr-chat" }), says = node("p", { style: "margin: 4px 0 10px; min-height: 3em", "aria-live": "polite" });
  const fill = node("b"), count = node("span"), meter = node("div", { class: "gr-meter" }, node("i", {}, fill), count);
  const film = player(steps.length, show, { name: "step", pause: 2600, say: (at) => `${at + 1} of ${steps.length}` });
  const tabs = steps.map((step, at) => {
    const tab = button(step.name, () => { film.stop(); film.go(at); }, { label: `${step.name}: ${step.what}`, pressed: false });
    tab.append(node("small", {}, step.what));
    return tab;
  });
  stage.append(
    node("style", {}, ROWS_STYLE),
    node("h3", { class: "l2p-title" }, "Three steps to a training row"),
    node("p", { class: "l2p-note" }, "Step through them, or press play: watch what happens to the instruction, then to what is learnt."),
    node("div", { class: "gr-steps" }, ...tabs), film.bar, says, chat, meter,
    node("p", { class: "l2p-note" }, `A real row, made by the stage's own code. ${rule}`));

  const places = messages.map((message, k) => {
    const told = message.instruction ? node("span", { class: "gr-told" }, message.instruction) : null;
    const text = node("div", { class: "gr-text" });
    chat.append(node("div", { class: `gr-turn ${message.role === "user" ? "" : "answer"}` },
      node("span", { class: "gr-who" }, message.role === "user" ? `user ${k / 2 + 1}` : "answer"), text));
    return { message, told, text, first: k === 0 };
  });
  film.go(0);
  return () => film.stop();

  function show(at) {
    const step = steps[at];
    tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === at)));
    for (const { message, told, text, first } of places) {
      const gone = at > 0 && !first;
      told?.classList.toggle("gone", gone);
      const answer = message.role !== "user";
      text.replaceChildren(...(told ? [told] : []),
        ...(answer && step.learnt !== null ? message.tokens.map((token) => boxed(token, step.learnt)) : [message.text]));
    }
    const learnt = step.learnt === null ? 0 : step.learnt === 1 ? counts.all : counts.last;
    fill.style.width = `${(100 * learnt) / counts.tokens}%`;
    count.textContent = step.learnt === null ? "no training yet" : `${learnt} of ${counts.tokens} tokens learnt`;
    says.textContent = step.says;
  }

  function boxed(token, which) {
    const words = token[0].replaceAll(" ", "·") || "·";
    return node("span", { class: `gr-token ${token[which] ? "learnt" : ""}`,
      title: token[which] ? "the loss counts it" : "read, not learnt" }, words);
  }
}
