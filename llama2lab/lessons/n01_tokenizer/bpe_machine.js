// The BPE machine. Python has worked out every merge (film in bpe_machine.py): here a step is only shown. A token at a
// step is a run of bytes which the merges before that step have fused.

const HIGH = 26; // pixels of a row in the list of pairs
const seen = new WeakSet(); // machines that have begun to play by themselves: once is enough
const renewed = new WeakSet(); // machines that have just been given another text

function picture(stage, model) {
  const data = model.get("data"), { steps, words } = data, last = steps.length - 1;
  const name = (id) => data.names[id];
  const units = words.flatMap((word) => word.map(([id, byte, alone, whole, fused], i) =>
    ({ id, byte, alone, whole, fused: i ? fused : null, opens: i === 0, box: node("span", { class: "bpe-unit" }) })));
  characters(units);
  let at = 0, from = 0, shown = [], cursor = -1, picked = null, rank = -1;

  // ---- controls ------------------------------------------------------------------------------------------------

  const play = player(steps.length, show, { name: "merges", pause: 800, say: (step) => `${step} of ${last} merges` });
  const [undo, start, on, track] = play.bar.children;
  const jump = (to) => () => { play.stop(); play.go(to()); };
  const ten = button("Ten steps", jump(() => at + 10)), again = button("Start again", jump(() => 0));
  on.textContent = "Step";
  undo.textContent = "Undo";
  on.setAttribute("aria-label", "Step");
  undo.setAttribute("aria-label", "Undo");
  play.bar.replaceChildren(on, ten, start, undo, again, track);

  // ---- what stands on the stage --------------------------------------------------------------------------------

  const figure = (what) => {
    const value = node("b"), more = node("span");
    figures.append(node("div", {}, value, node("span", {}, what, more)));
    return (number, words) => { value.textContent = number; more.textContent = words; };
  };
  const figures = node("div", { class: "bpe-figures" });
  const symbols = figure("symbols"), entries = figure("vocabulary entries"), packed = figure("bytes per token");

  const text = node("div", { class: "bpe-text", tabindex: 0, role: "group",
    "aria-label": "the text as symbols; left and right read them one by one",
    keydown: keys({ ArrowLeft: () => point(cursor - 1), ArrowRight: () => point(cursor + 1), Home: () => point(0),
      End: () => point(shown.length - 1), Escape: () => point(-1) }),
    blur: () => point(-1), pointerleave: () => point(-1), pointerover: (event) => {
      const unit = units.findIndex((one) => one.box === event.target);
      if (unit >= 0) point(shown.findIndex((token) => token.first <= unit && unit < token.end));
    } });
  let next = 0;
  for (const word of words) text.append(node("span", { class: "bpe-word" }, ...word.map(() => units[next++].box)));

  const said = node("p", { class: "bpe-said", "aria-live": "polite", "aria-atomic": "true" });
  const kinds = node("p", { class: "l2p-note" }), rows = new Map();
  const pairs = node("div", { class: "bpe-pairs", tabindex: 0, role: "group",
    "aria-label": "the most frequent pairs; up and down show where one stands in the text",
    keydown: keys({ ArrowUp: () => pick(Math.max(0, rank - 1)), ArrowDown: () => pick(rank + 1), Escape: () => pick(-1) }),
    blur: () => pick(-1), pointerleave: () => pick(-1) });
  pairs.style.height = `${HIGH * Math.max(1, ...steps.map((step) => step.pairs.length))}px`;
  const mergesTitle = node("h4"), merges = node("div", { class: "bpe-merges", tabindex: 0, role: "region",
    "aria-label": "merges so far, the newest first" });
  const key = (kind, words) => node("span", {}, node("i", { class: kind }), words);

  stage.append(
    node("h3", { class: "l2p-title" }, "BPE machine"),
    node("p", { class: "l2p-note" }, "Press Step: the two neighbours seen most often become one token, everywhere at once. ",
      "Parts of words come first, whole words later; nothing fuses across a gap."),
    play.bar, figures, text,
    node("div", { class: "bpe-key" }, key("next", "fuses next"), key("new", "just fused"),
      key("old", "fused before, stronger the longer"), node("span", {}, "· is a blank")),
    said,
    node("div", { class: "bpe-two" },
      node("div", {}, node("h4", {}, "Most frequent pairs now"), pairs, kinds),
      node("div", {}, mergesTitle, merges)),
    own());

  // ---- one step ------------------------------------------------------------------------------------------------

  function show(step) {
    from = step > at && step - at <= 10 ? at : step - 1;
    [at, cursor, rank, picked] = [step, -1, -1, null];
    if (auto && at >= 10) halt();
    shown = tokensAt(units, steps, at);
    const now = steps[at];
    drawText();
    drawPairs(now);
    drawMerges();
    symbols(short(now.symbols), ` of ${short(data.bytes)} bytes`);
    entries(short(now.vocabulary), ` (${steps[0].vocabulary} + ${now.vocabulary - steps[0].vocabulary})`);
    packed(now.symbols ? (data.bytes / now.symbols).toFixed(2) : "-", "");
    dim(at === last, on, ten);
    dim(at === 0, undo, again);
    say(summary(now), start.textContent === "Play"); // while it plays, nothing is read out
  }

  function say(words, aloud = true) {
    said.setAttribute("aria-live", aloud ? "polite" : "off");
    said.textContent = words;
  }

  function summary(now) {
    if (data.problem) return data.problem;
    if (!data.bytes) return "There is no text: write some below.";
    const made = at ? `Merge ${at}: ${pairName(steps[at - 1].pairs[0])} is now ${name(steps[at - 1].token)}. ` : "";
    if (at === last) return `${made}Every word is one token: there is no pair left.`;
    return `${made}Next: ${pairName(now.pairs[0])}, ${times(now.pairs[0][2])}.`;
  }

  function pairName([left, right]) { return `${name(left)} + ${name(right)}`; }

  /** Which tokens of the text stand in this pair. */
  function standing([left, right]) {
    const found = new Set();
    shown.forEach((token, i) => {
      if (i && !units[token.first].opens && shown[i - 1].id === left && token.id === right) found.add(i - 1).add(i);
    });
    return found;
  }

  function drawText() {
    const pair = picked ?? (at < last ? steps[at].pairs[0] : null), lit = pair ? standing(pair) : new Set();
    shown.forEach((token, i) => {
      const kind = lit.has(i) ? (picked ? "picked" : "next") : token.made >= from && token.made >= 0 ? "new" : token.made >= 0 ? "old" : "";
      for (let u = token.first; u < token.end; u++) {
        const { box, alone, whole, wholeAt } = units[u], reads = wholeAt < at ? whole : alone;
        box.className = `bpe-unit ${kind} ${u === token.first ? "first" : "inner"}${u === token.end - 1 ? " last" : ""}`
          + `${reads.length > 1 ? " hex" : reads ? "" : " gone"}${i === cursor ? " at" : ""}`;
        box.textContent = reads;
        if (kind === "old") box.style.setProperty("--deep", `${Math.min(34, 10 + 4 * (token.end - token.first))}%`);
        else box.style.removeProperty("--deep");
      }
    });
  }

  function drawPairs(now) {
    const most = steps[0].pairs[0]?.[2] ?? 1, gone = new Set(rows.keys());
    now.pairs.forEach((pair, place) => {
      const which = `${pair[0]} ${pair[1]}`;
      gone.delete(which);
      if (!rows.has(which)) {
        const row = node("div", { pointerenter: () => pick(row.place) },
          node("span", { class: "bpe-names" }, node("i", {}, name(pair[0])), " + ", node("i", {}, name(pair[1]))),
          node("div", { class: "bpe-track" }, node("div", { class: "bpe-bar" }), node("span", { class: "bpe-count" })));
        rows.set(which, row);
        pairs.append(row);
      }
      const row = rows.get(which), [bar, count] = row.lastChild.children;
      row.place = place;
      row.className = `bpe-pair glide${place ? "" : " next"}`;
      row.style.transform = `translateY(${place * HIGH}px)`;
      bar.style.width = `calc((100% - 72px) * ${pair[2] / most})`;
      count.textContent = `${pair[2]}×${place ? "" : "  next"}`;
    });
    for (const which of gone) { rows.get(which).remove(); rows.delete(which); }
    const tie = now.pairs[0]?.[2] === 1 ? " None occurs twice: from here on merges only learn this one text by heart."
      : now.tied > 1 ? ` ${now.tied} share the first place: the one whose tokens have the smaller ids wins.` : "";
    kinds.textContent = now.kinds ? `${short(now.kinds)} different pairs.${tie}` : "No pair is left.";
  }

  function drawMerges() {
    mergesTitle.textContent = at ? `Merges so far: ${at}` : "Merges so far: none";
    merges.replaceChildren(...steps.slice(0, at).map((step, i) => node("div", { class: `bpe-merge${i >= from ? " new" : ""}` },
      node("span", {}, String(i + 1)),
      node("code", {}, node("i", {}, name(step.pairs[0][0])), " + ", node("i", {}, name(step.pairs[0][1])), " → ",
        node("b", {}, name(step.token))),
      node("span", {}, `id ${step.token}`), node("span", {}, `${step.pairs[0][2]}×`))).reverse());
    if (!at) merges.append(node("p", { class: "l2p-note" }, "The first one will stand here."));
    merges.scrollTop = 0;
  }

  // ---- what one points at --------------------------------------------------------------------------------------

  function point(to) {
    if (to === cursor) return;
    cursor = Math.max(-1, Math.min(shown.length - 1, to));
    drawText();
    const token = shown[cursor];
    if (!token) return say(summary(steps[at]));
    const bytes = units.slice(token.first, token.end).map((unit) => unit.byte.toString(16).padStart(2, "0").toUpperCase());
    const how = token.made < 0 ? "" : `, merge ${token.made + 1}: ${pairName(steps[token.made].pairs[0])}`;
    say(`${name(token.id)}: id ${token.id}, ${bytes.length === 1 ? "byte" : `${bytes.length} bytes`} ${bytes.join(" ")}${how}`);
  }

  function pick(place) {
    const all = steps[at].pairs;
    rank = Math.min(place, all.length - 1);
    picked = all[rank] ?? null;
    for (const row of rows.values()) row.classList.toggle("picked", row.place === rank);
    drawText();
    say(picked ? `${pairName(picked)}: ${times(picked[2])}, place ${rank + 1}` : summary(steps[at]));
  }

  // ---- a text of one's own -------------------------------------------------------------------------------------

  function own() {
    const left = node("span", { class: "l2p-note" });
    const use = button("Use this text", () => {
      if (use.getAttribute("aria-disabled") === "true") return;
      renewed.add(model);
      dim(true, use);
      left.textContent = "counting …";
      model.set("text", area.value);
      model.save_changes();
    });
    const area = node("textarea", { maxlength: data.longest, "aria-label": `a text of at most ${data.longest} characters`,
      spellcheck: "false", input: changed });
    area.value = data.problem ? model.get("text") : data.text;
    function changed() {
      left.textContent = `${area.value.length} of ${data.longest} characters`;
      dim(area.value === (model.get("text") ?? data.text), use);
    }
    changed();
    return node("details", { class: "bpe-own", open: Boolean(data.problem) },
      node("summary", {}, "Give it a text of your own"), area,
      node("div", { class: "l2p-bar" }, use, left));
  }

  // ---- it begins by itself, once, when it is seen ---------------------------------------------------------------

  let auto = false;
  const halt = () => { if (auto) { auto = false; play.stop(); } };
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting) || seen.has(model) || still() || last < 1) return;
    seen.add(model);
    auto = true;
    play.start();
  }, { threshold: 0.5 });
  show(0);
  watch.observe(text);
  stage.addEventListener("pointerdown", halt, true);
  stage.addEventListener("keydown", halt, true);
  if (renewed.delete(model)) on.focus();
  return () => {
    play.stop();
    watch.disconnect();
    stage.removeEventListener("pointerdown", halt, true); // the stage stays when the machine is given another text
    stage.removeEventListener("keydown", halt, true);
  };
}

/** The merge after which a character of several bytes is whole, for each of its bytes; before that they read alone. */
function characters(units) {
  for (let i = 0; i < units.length;) {
    let end = i + 1;
    while (end < units.length && (units[end].byte & 0xc0) === 0x80) end++;
    const inside = units.slice(i + 1, end).map((unit) => unit.fused ?? Infinity);
    const wholeAt = Math.max(-1, ...inside);
    for (; i < end; i++) units[i].wholeAt = wholeAt;
  }
}

/** The tokens after `step` merges: {first, end} among the units, id, and the merge that made it (-1: a byte). */
function tokensAt(units, steps, step) {
  const found = [];
  units.forEach((unit, u) => {
    const token = found.at(-1);
    if (unit.fused === null || unit.fused >= step) found.push({ first: u, end: u + 1, id: unit.id, made: -1 });
    else {
      token.end = u + 1;
      token.made = Math.max(token.made, unit.fused);
      token.id = steps[token.made].token;
    }
  });
  return found;
}

/** Buttons that have nothing to do now. They keep the focus, which `disabled` would take. */
function dim(nothing, ...buttons) {
  for (const one of buttons) one.setAttribute("aria-disabled", String(nothing));
}

const times = (count) => (count === 1 ? "once" : `${count} times`);

/** A listener that answers to these keys. */
function keys(answers) {
  return (event) => {
    if (!(event.key in answers)) return;
    answers[event.key]();
    event.preventDefault();
  };
}
