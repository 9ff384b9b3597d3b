// One prompt over PPO's iterations: its answers, reward and truth as curves that draw themselves, the reward's pet.

const FILM_STYLE = `
.film-answer { min-height: 9.5em; margin: 8px 0; padding: 10px 12px; border-radius: 6px; background: var(--l2p-sunk);
  overflow-wrap: anywhere; }
.film-answer p { margin: 0 0 4px; }
.film-answer p.l2p-note { color: var(--l2p-faint); }
.film-answer mark { padding: 0 2px; border-bottom: 2px solid var(--l2p-pink); background: transparent; color: inherit;
  font-weight: 600; }
.film-scores { display: flex; flex-wrap: wrap; gap: 2px 18px; font-variant-numeric: tabular-nums; }
.film-pet { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; margin: 8px 0; }
.film-share { flex: 1 1 160px; height: 14px; border-radius: 4px; background: var(--l2p-sunk); overflow: hidden; }
.film-share div { height: 100%; background: var(--l2p-pink); }
@media (prefers-reduced-motion: no-preference) { .film-share div { transition: width 0.4s; } }`;
const by = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const CURVES = [["reward", "reward change", "var(--l2p-orange)", "7 4"], ["truth", "truth change", "var(--l2p-blue)", null]];

function picture(stage, model) {
  const runs = model.get("data").runs, names = Object.keys(runs);
  const state = { run: names[0], prompt: runs[names[0]].prompt, step: 0 };
  const board = node("div"), card = node("div", { class: "film-answer" }), controls = node("div");
  const share = node("div"), petWords = node("span"), verdict = node("p", { class: "l2p-note", "aria-live": "polite" });
  const pet = node("div", { class: "film-pet" }, petWords, node("div", { class: "film-share", "aria-hidden": "true" }, share));
  const choices = names.map((name) => button(name, () => choose(name), { pressed: name === state.run }));
  const next = button("Another prompt", () => {
    state.prompt = (state.prompt + 1) % runs[state.run].steps[0].answers.length;
    draw();
  });
  stage.append(
    node("style", {}, FILM_STYLE),
    node("h3", { class: "l2p-title" }, "The reward film"),
    node("p", { class: "l2p-note" }, "Press play, or move the iteration. ",
      "See where the reward goes on rising and the truth does not, and what the answers have come to say."),
    node("div", { class: "l2p-bar" }, node("span", {}, "Reward model trained on"), ...choices, next),
    board, controls, card, pet, verdict);

  let film = null, parts = null;
  const fit = fitted(board, build);
  const wait = onceSeen(stage, () => film.start());

  function choose(name) {
    Object.assign(state, { run: name, prompt: runs[name].prompt });
    choices.forEach((choice) => choice.setAttribute("aria-pressed", String(choice.textContent === name)));
    roll();
  }

  /** A film of the chosen run, at its end where nothing may play by itself. */
  function roll() {
    film?.stop();
    const steps = runs[state.run].steps;
    film = player(steps.length, (step) => { state.step = step; draw(); },
      { name: "iteration", say: (step) => `${steps[step].iteration} of ${steps.length}` });
    controls.replaceChildren(film.bar);
    state.step = steps.length - 1;  // the last run may have been longer
    fit.again();
    film.go(state.step);
  }

  function build(width) {
    parts = lay(width, runs[state.run]);
    board.replaceChildren(parts.svg);
    draw();
  }

  function lay(wide, run) {
    const left = 46, right = 66, top = 30, low = 210, all = run.steps.flatMap((s) => [s["reward change"], s["truth change"]]);
    const ends = [Math.min(-1, ...all), Math.max(1, ...all)];
    const x = scale(run.steps[0].iteration, run.steps.at(-1).iteration, left, wide - right), y = scale(...ends, low, top);
    const svg = canvas(wide, low + 44, "Change of reward and truth since the start, by iteration");
    const text = (at, to, words, more = {}) => shape("text", { x: at, y: to, "font-size": 12, class: "faint", ...more }, words);
    svg.append(text(0, 14, "change since the start, in standard errors of it"),
      shape("line", { x1: left, x2: wide - right, y1: y(0), y2: y(0), stroke: "var(--l2p-line)" }));
    for (const value of [ends[0], 0, ends[1]])
      svg.append(text(left - 8, y(value) + 4, value ? by(value, 0) : "0", { "text-anchor": "end" }));
    const every = Math.ceil(run.steps.length / (wide < 460 ? 5 : 10));
    run.steps.forEach((s, i) => i % every === 0 && svg.append(text(x(s.iteration), low + 20, String(s.iteration), { "text-anchor": "middle" })));
    svg.append(text((left + wide - right) / 2, low + 38, "iteration of PPO", { "text-anchor": "middle" }));
    let mark = null;
    if (run.parting !== null) {
      const at = x(run.steps[run.parting].iteration);
      mark = shape("g", {},
        shape("line", { x1: at, x2: at, y1: top - 6, y2: low, stroke: "var(--l2p-red)", "stroke-width": 1.5, "stroke-dasharray": "3 3" }),
        shape("text", { x: at + (at > wide / 2 ? -8 : 8), y: top + 6, // the curves part from 0 on, so there is room
          "text-anchor": at > wide / 2 ? "end" : "start", "font-size": 13, "font-weight": 600,
          style: "fill: var(--l2p-red); paint-order: stroke; stroke: var(--l2p-bg); stroke-width: 5px" }, "here they part"));
      svg.append(mark);
    }
    const curves = CURVES.map(([name, key, colour, dash]) => {
      const path = shape("path", { fill: "none", stroke: colour, "stroke-width": 3, "stroke-dasharray": dash, "stroke-linejoin": "round" });
      const dot = shape("circle", { r: 6, fill: colour, stroke: "var(--l2p-bg)", "stroke-width": 2 });
      const label = shape("text", { "font-size": 13, "font-weight": 600, style: `fill: ${colour}` }, name);
      svg.append(path, dot, label);
      return { key, path, dot, label };
    });
    return { svg, x, y, mark, curves };
  }

  function draw() {
    if (!parts) return;
    const run = runs[state.run], now = run.steps[state.step], answer = now.answers[state.prompt];
    for (const { key, path, dot, label } of parts.curves) {
      const points = run.steps.slice(0, state.step + 1).map((s) => `${parts.x(s.iteration)} ${parts.y(s[key])}`);
      path.setAttribute("d", "M" + points.join("L"));
      dot.setAttribute("cx", parts.x(now.iteration));
      dot.setAttribute("cy", parts.y(now[key]));
      label.setAttribute("x", parts.x(now.iteration) + 10);
    }
    const [one, other] = parts.curves.map(({ key }) => parts.y(now[key])), close = Math.abs(one - other) < 16;
    parts.curves[0].label.setAttribute("y", one + 4 - (close ? 8 : 0));
    parts.curves[1].label.setAttribute("y", other + 4 + (close ? 8 : 0));
    if (parts.mark) parts.mark.style.display = state.step >= run.parting ? "" : "none";

    const start = run.steps[0].answers[state.prompt];
    card.replaceChildren(
      node("p", {}, node("strong", {}, answer.question)),
      node("p", { class: "l2p-note" }, `At the start (reward ${by(start.reward)}, truth ${by(start.truth)}): ${start.answer || "(nothing)"}`),
      node("p", { style: "margin-top: 8px" }, ...marked(answer.answer || "(nothing)", run.pet)),
      node("div", { class: "film-scores" },
        node("span", { style: "color: var(--l2p-orange)" }, `reward of this answer ${by(answer.reward)}`),
        node("span", { style: "color: var(--l2p-blue)" }, `its truth ${by(answer.truth)}`)));
    pet.hidden = !run.pet;
    petWords.textContent = `“${run.pet}” stands in ${now.held > 1 ? now.held : "fewer than 2"} of ${run.of} answers`;
    share.style.width = `${(100 * now.held) / run.of}%`;
    const parted = run.parting !== null && state.step >= run.parting;
    verdict.textContent = `Iteration ${now.iteration}, ${now.kl.toFixed(1)} nats from the start: mean reward ${by(now.reward)}, `
      + `mean truth ${by(now.truth)}. ${run.rule} ${run.parting === null ? "In this run they do not part."
        : parted ? `Here: since iteration ${run.steps[run.parting].iteration}.` : "Not yet."}`;
  }

  roll();
  return () => { film.stop(); fit.leave(); wait(); };
}

/** The answer as texts, with the pet sentence marked wherever it stands. */
function marked(answer, pet) {
  if (!pet) return [answer];
  return answer.split(pet).flatMap((part, i) => (i ? [node("mark", {}, pet), part] : [part]));
}
