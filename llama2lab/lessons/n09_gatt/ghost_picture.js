// The instruction at the top, a row for each turn below it: the model without Ghost Attention at the left, with it at the
// right. Blue obeys, orange does not; a line leads from each answer back to the instruction, as thick as its attention.

const GHOST_STYLE = `
.gh-choose { display: flex; flex: 1 1 300px; align-items: center; gap: 8px; min-width: 0; }
.gh-choose select { flex: 1; min-width: 0; min-height: 30px; padding: 2px 6px; border: 1px solid var(--l2p-line);
  border-radius: 6px; background: var(--l2p-bg); color: inherit; font: inherit; }
.gh-told { margin: 4px auto 0; padding: 6px 18px; width: fit-content; max-width: 100%; border: 2px solid var(--l2p-text);
  border-radius: 18px; text-align: center; font-weight: 600; font-size: 15px; }
.gh-told small { font-weight: 400; font-size: 13px; color: var(--l2p-faint); }
.gh-row { cursor: pointer; }
.gh-row:hover .gh-band { fill: var(--l2p-sunk); }
.gh-said { margin: 10px 0 4px; font-weight: 600; }
.gh-said span { margin-right: 8px; color: var(--l2p-faint); font-weight: 400; }
.gh-two { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.gh-two > div { padding: 8px 10px; border-radius: 6px; border-left: 4px solid var(--gh-hue); background: var(--l2p-sunk); }
.gh-two p { margin: 0; }
.gh-two .gh-answer { min-height: 4.5em; overflow-wrap: anywhere; }
.gh-two mark { background: none; color: inherit; font-weight: 700; border-bottom: 2px solid var(--gh-hue); }
.gh-two .gh-fact { margin-top: 4px; color: var(--l2p-faint); font-size: 13px; font-variant-numeric: tabular-nums; }
.gh-busy { opacity: 0.55; }
@container (max-width: 480px) { .gh-two { gap: 8px; } .gh-two > div { padding: 6px 8px; } }`;

const percent = (x) => `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`;
const hueOf = (side) => (side.obeys ? "var(--l2p-blue)" : "var(--l2p-red)");
const wordOf = (side) => (side.obeys ? "✓ obeys" : "✗ fails");

function picture(stage, model) {
  const data = model.get("data");
  let shown = model.get("shown"), film = null, parts = null, width = 0, at = 0, how = 0;

  const told = node("div", { class: "gh-told" }), board = node("div"), bar = node("div");
  const said = node("p", { class: "gh-said" }), two = node("div", { class: "gh-two" });
  const facts = node("p", { class: "l2p-note" }), late = node("p", { class: "l2p-note" });
  const overall = node("p", { style: "margin: 6px 0" }, ...rule()), aloud = node("p", { class: "l2p-unseen", "aria-live": "polite" });
  const choose = chooser();
  const looks = ["whole answer, mean of all heads", "first word, the head that looks most"].map((name, which) => button(name, () => {
    how = which;
    looks.forEach((look, i) => look.setAttribute("aria-pressed", String(i === how)));
    redraw();
  }, { pressed: which === how }));
  stage.append(
    node("style", {}, GHOST_STYLE),
    node("h3", { class: "l2p-title" }, "Ghost Attention: one instruction, twenty turns"),
    node("p", { class: "l2p-note" }, "Press play and walk down the turns, or click a row to open it. See from which turn on the ",
      "left side has forgotten; the thicker a line, the more its answer looks back at the instruction."),
    node("div", { class: "l2p-bar" }, choose.box, button("Where it fails", () => pick(worst()))),
    told, board, bar, said, two, node("div", { class: "l2p-bar", role: "group", "aria-label": "attention" },
      node("span", {}, "attention:"), ...looks), late, overall,
    node("details", { class: "l2p-note" }, node("summary", {}, "What is counted, and which dialogue this is"), facts), aloud);

  /** The stored dialogues in order of what Ghost Attention gains, the failing ones at the end under a name of their own. */
  function chooser() {
    const select = node("select", { change: () => pick(Number(select.value)) });
    const order = data.dialogues.map((_, i) => i).sort((a, b) => gain(b) - gain(a) || a - b);
    const option = (i) => node("option", { value: i }, `${data.dialogues[i].instruction} ${data.dialogues[i].kept[0]} without, ` +
      `${data.dialogues[i].kept[1]} with, of ${data.dialogues[i].turns}${i === data.first ? " (shown first)" : ""}`);
    for (const [name, of] of [["with obeys more turns", order.filter((i) => gain(i) > 0)],
      ["with obeys no more turns than without", order.filter((i) => gain(i) <= 0)]])
      if (of.length) select.append(node("optgroup", { label: `${name}: ${of.length} of ${order.length}` }, ...of.map(option)));
    return { select, box: node("label", { class: "gh-choose" }, node("span", {}, "dialogue"), select) };
  }
  function gain(i) {
    const [without, ghost] = data.dialogues[i].kept;
    return ghost - without;
  }
  function worst() {
    return data.dialogues.reduce((low, _, i) => (gain(i) < gain(low) ? i : low), 0);
  }
  function pick(i) {
    choose.select.value = i;
    if (i === shown.number) return;
    film.stop();
    stage.classList.add("gh-busy");
    stage.setAttribute("aria-busy", "true");
    model.set("chosen", i);
    model.save_changes();
  }

  /** Another dialogue: all but the chooser is drawn anew, so that the focus stays where it is. */
  function open() {
    shown = model.get("shown");
    stage.classList.remove("gh-busy");
    stage.removeAttribute("aria-busy");
    choose.select.value = shown.number;
    told.replaceChildren(`“${shown.instruction}”`, node("br"),
      node("small", {}, "said once, before the first question"));
    film?.stop();
    film = player(shown.turns.length, show, { name: "turn", pause: 1300, say: (t) => `${t + 1} of ${shown.turns.length}` });
    bar.replaceChildren(film.bar);
    facts.replaceChildren(...summary());
    at = shown.start;
    redraw();
  }
  function redraw() {
    width = 0;
    lay();
  }

  /** Of all stored dialogues: one alone proves nothing. */
  function rule() {
    const share = (f) => [node("strong", {}, percent(f.mean)), ` (${percent(f.low)} to ${percent(f.high)})`];
    return [`Over all ${data.dialogues.length} stored dialogues, not this one alone: `, ...share(data.share[0]),
      " of the answers obey without, ", ...share(data.share[1]), " with."];
  }
  function summary() {
    return [`Of the answers with Ghost Attention here, ${shown.right} of ${shown.turns.length} are right; what obeys need not be. `,
      `${data.rule} Attention: of the weights by which an answer's tokens mix what stands before them, the share on the instruction's `,
      `tokens: mean over the answer's tokens and ${shown.heads[0]} layers of ${shown.heads[1]} heads, or of the one head that looks most where `,
      "the first word is chosen (the report's figure 28 takes the most as well). Each model reads what it wrote itself. ",
      "Intervals: 95 %, over dialogues."];
  }

  const watch = new ResizeObserver(() => lay());
  watch.observe(board);
  const another = () => open();
  model.on("change:shown", another);
  open();
  return () => { film.stop(); watch.disconnect(); model.off("change:shown", another); };

  /** All that stands still, for the width there is; `show` then moves what belongs to a turn. */
  function lay() {
    const now = Math.max(340, Math.min(940, Math.round(board.clientWidth || 660)));
    if (now === width) return;
    width = now;
    parts = drawn(now, shown);
    for (const [t, row] of parts.rows.entries()) row.addEventListener("click", () => { film.stop(); film.go(t); });
    board.replaceChildren(parts.svg);
    late.textContent = lateLook();
    film.go(at);
  }

  function show(t) {
    if (!parts) return;
    const turn = shown.turns[at = t];
    for (const [i, row] of parts.rows.entries()) row.firstChild.setAttribute("fill", i === t ? "var(--l2p-sunk)" : "transparent");
    parts.now.replaceChildren();
    turn.sides.forEach((side, way) => {
      const wire = parts.wire(t, way, 1);
      const dot = shape("circle", { cx: parts.reach(t, way), cy: parts.y(t), r: 5.5, fill: hueOf(side), stroke: "var(--l2p-bg)",
        "stroke-width": 1.5 });
      parts.now.append(wire, dot);
      if (!still()) draw(wire);
    });
    said.replaceChildren(node("span", {}, `turn ${t + 1}`), turn.question);
    two.replaceChildren(...turn.sides.map((side, way) => card(side, way, t)));
    aloud.textContent = `Turn ${t + 1}. ` + turn.sides.map((side, way) =>
      `${data.names[way]}: ${side.obeys ? "obeys" : "fails"}, attention ${percent(paid(side))}`).join("; ");
  }

  /** The second half of the dialogue in one number a side. */
  function lateLook() {
    const half = Math.floor(shown.turns.length / 2), part = shown.turns.slice(half);
    const mean = (of) => part.reduce((sum, turn) => sum + of(turn), 0) / part.length;
    const [without, ghost] = [0, 1].map((way) => mean((turn) => paid(turn.sides[way])));
    return `Turns ${half + 1} to ${shown.turns.length}: ${percent(without)} of the attention without, ` +
      `${percent(ghost)} with${ghost > 1.25 * without ? "" : ": no more, so who obeys does not show in this number"}. Dotted, a head ` +
      `that looks at all tokens so far alike: ${percent(mean((turn) => (even(turn.sides[0]) + even(turn.sides[1])) / 2))}.`;
  }
  function paid(side) {
    return side.attention[how];
  }
  function even(side) {
    return side.even[how];
  }

  /** A wire grows from the answer up to the instruction. */
  function draw(wire) {
    const long = wire.getTotalLength?.() || 0;
    if (!long || !wire.animate) return;
    wire.animate([{ strokeDasharray: `${long} ${long}`, strokeDashoffset: long },
      { strokeDasharray: `${long} ${long}`, strokeDashoffset: 0 }], { duration: 450, easing: "ease-out" });
  }

  function card(side, way, t) {
    const obeying = data.by_turn[t]?.[way] ?? 0;
    return node("div", { style: `--gh-hue: ${hueOf(side)}` },
      node("p", { class: "gh-fact", style: "margin: 0 0 2px" }, data.names[way]),
      node("p", { class: "gh-answer" }, ...marked(side.answer)),
      node("p", { class: "gh-fact" }, node("strong", { style: `color: ${hueOf(side)}` }, wordOf(side)),
        ` · attention ${percent(paid(side))} (alike: ${percent(even(side))})`, node("br"),
        `turn ${t + 1} of all ${data.dialogues.length} dialogues: ${obeying} obey`));
  }

  /** An answer as text, the instruction's own words marked wherever they stand. */
  function marked(answer) {
    const low = answer.toLowerCase();
    const found = shown.asks.words.map((word) => [low.lastIndexOf(word.toLowerCase()), word.length]).filter(([from]) => from >= 0);
    if (!answer.trim()) return ["(an empty answer)"];
    if (!found.length) return [answer];
    const [from, long] = found.sort((a, b) => b[1] - a[1])[0];
    return [answer.slice(0, from), node("mark", {}, answer.slice(from, from + long)), answer.slice(from + long)];
  }

  function drawn(wide, of) {
    const narrow = wide < 560, row = 20, top = 62, count = of.turns.length, middle = wide / 2;
    const fan = narrow ? 44 : 84, chip = 58, begin = fan + chip + 16, long = wide / 2 - begin - (narrow ? 8 : 50);
    const most = Math.max(...of.turns.flatMap((turn) => turn.sides.map((side) => paid(side))), 1e-9);
    const thick = scale(0, most, 0.75, narrow ? 9 : 13), out = scale(0, most, 0, long);
    const way = (side) => (side ? 1 : -1), y = (t) => top + row * t + row / 2;
    const place = (side, value) => middle + way(side) * (begin + out(value));
    const reach = (t, side) => place(side, paid(of.turns[t].sides[side]));
    const height = top + row * count + 4;
    const svg = canvas(wide, height, `${count} turns below the instruction: which answers obey and how much each looks back`);

    const wire = (t, side, alpha) => {
      const one = of.turns[t].sides[side], from = middle + way(side) * fan, to = middle + way(side) * (narrow ? 16 : 20);
      const bend = Math.min(y(t), 90);
      return shape("path", { d: `M${from} ${y(t)}C${to + way(side) * 6} ${y(t)} ${to} ${y(t) - bend * 0.4} ${to} ${y(t) - bend}V0`,
        fill: "none", stroke: hueOf(one), "stroke-width": thick(paid(one)).toFixed(2), opacity: alpha });
    };
    const text = (x, where, words, more = {}) => shape("text", { x, y: where, "font-size": 13, ...more }, words);
    const ends = (side) => ({ "text-anchor": side ? "start" : "end" });

    const rows = of.turns.map((turn, t) => shape("g", { class: "gh-row" },
      shape("rect", { class: "gh-band", x: 0, y: y(t) - row / 2, width: wide, height: row, rx: 4, fill: "transparent" }),
      text(middle, y(t) + 4.5, t + 1, { "text-anchor": "middle", class: "faint", "font-size": 12 }),
      ...turn.sides.flatMap((side, s) => [
        text(middle + way(s) * (fan + 8), y(t) + 4.5, wordOf(side), { ...ends(s), style: `fill: ${hueOf(side)}`, "font-weight": 600 }),
        shape("circle", { cx: reach(t, s), cy: y(t), r: 3, fill: hueOf(side) }),
        narrow ? null : text(s ? wide - 4 : 4, y(t) + 4.5, percent(paid(side)), { ...ends(1 - s), class: "faint", "font-size": 12 }),
      ])));
    const heads = [0, 1].flatMap((s) => [
      text(s ? wide : 0, 16, narrow ? ["without", "with"][s] : data.names[s], { ...ends(1 - s), "font-weight": 600, "font-size": 14 }),
      text(s ? wide : 0, 36, `${of.kept[s]} of ${count} obey`, ends(1 - s)),
      text(s ? wide - 4 : 4, 56, "attention", { ...ends(1 - s), class: "faint", "font-size": 12 }),
    ]);
    const curves = [0, 1].flatMap((s) => {
      const path = (value) => "M" + of.turns.map((turn, t) => [value(turn.sides[s]), t]).filter(([x]) => x <= most)
        .map(([x, t]) => `${place(s, x).toFixed(1)} ${y(t)}`).join("L");
      return [
        shape("path", { d: `M${place(s, 0)} ${top}V${height - 4}`, stroke: "var(--l2p-line)", fill: "none" }),
        shape("path", { d: path(even), stroke: "var(--l2p-faint)", fill: "none", "stroke-dasharray": "1.5 4", "stroke-width": 1.5 }),
        shape("path", { d: path(paid), stroke: "var(--l2p-grey)", fill: "none", "stroke-width": 1.5 }),
      ];
    });
    const wires = of.turns.flatMap((_, t) => [wire(t, 0, 0.16), wire(t, 1, 0.16)]);
    const now = shape("g", { style: "pointer-events: none" });
    const bands = shape("g", {}, ...rows);
    svg.append(...heads, bands, shape("g", { style: "pointer-events: none" }, ...curves, ...wires), now);
    return { svg, rows, now, wire, reach, y };
  }
}
