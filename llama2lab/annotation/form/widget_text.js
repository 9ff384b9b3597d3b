// Text of models and people as DOM nodes. Nothing in this form uses innerHTML: what comes in as text stays text,
// whatever it looks like. The parts of the form (widget_*.js) are joined into one module by widget.py.

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Characters that a browser would drop, act upon or show as nothing: control characters (an ANSI escape among them),
// zero width spaces, bidirectional overrides and isolates, tag characters, lone surrogates. They get a visible mark.
// Joiners, and the left-to-right and right-to-left marks, stay: ordinary writing in many languages needs them.
const HIDDEN = new RegExp(
  "[\\u0000-\\u0008\\u000B-\\u001F\\u007F-\\u009F\\u200B\\u2028\\u2029\\u202A-\\u202E\\u2060-\\u2069\\uFEFF" +
  "\\uFFF9-\\uFFFB\\uD800-\\uDFFF\\u{E0000}-\\u{E007F}]", "gu");
const CONTROLS = ("NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB " +
                  "ESC FS GS RS US").split(" ");
const NAMED = {
  0x7F: "DEL",
  0x200B: "ZWSP", 0x2028: "LSEP", 0x2029: "PSEP", 0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO",
  0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xFEFF: "BOM",
};
// More marks than this in one text become part of the text itself: a span each would make the page slow.
const MANY_MARKS = 2000;

function visibleMark(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return `[${CONTROLS[code]}]`;
  return `[${NAMED[code] ?? "U+" + code.toString(16).toUpperCase().padStart(4, "0")}]`;
}

function plainText(text) {
  const clean = String(text).replaceAll("\r\n", "\n");
  const fragment = document.createDocumentFragment();
  const found = [...clean.matchAll(HIDDEN)];
  if (found.length > MANY_MARKS) {
    appendWords(fragment, clean.replace(HIDDEN, visibleMark));
    return fragment;
  }
  let from = 0;
  for (const match of found) {
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    appendWords(fragment, clean.slice(from, match.index));
    fragment.append(h("span", { class: "l2a-mark", title: `hidden character U+${code}` }, visibleMark(match[0])));
    from = match.index + match[0].length;
  }
  appendWords(fragment, clean.slice(from));
  return fragment;
}

function markedText(text, spans) {
  const fragment = document.createDocumentFragment();
  let from = 0;
  for (const [start, end] of spans) {
    if (start > from) fragment.append(plainText(text.slice(from, start)));
    const mark = h("mark", { class: "l2a-differs" });
    mark.append(plainText(text.slice(start, end)));
    fragment.append(mark);
    from = end;
  }
  if (from < text.length || !from) fragment.append(plainText(text.slice(from)));
  return fragment;
}

// A word of a hundred thousand letters has no place where a line may end, and browsers take their time to find that
// out: it gets some, which are not seen and are no part of the text.
const LONG_WORD = /\S{200}(?=\S)/gu;

function appendWords(parent, text) {
  let from = 0;
  for (const match of text.matchAll(LONG_WORD)) {
    parent.append(text.slice(from, match.index + match[0].length), document.createElement("wbr"));
    from = match.index + match[0].length;
  }
  parent.append(text.slice(from));
}

// `full` is how long the text really is where Python has cut it; `spans` are [from, to] of the parts that are marked.
function showText(element, text, full = 0, spans = []) {
  element.replaceChildren(text === "" ? h("em", { class: "l2a-faint" }, "(empty)") : markedText(text, spans));
  if (full > text.length) {
    element.append(h("em", { class: "l2a-faint l2a-cut" }, `(cut: ${text.length.toLocaleString("en")} of ` +
                                                           `${full.toLocaleString("en")} characters are shown)`));
  }
}

// Guidelines: headings, paragraphs, lists, tables, **strong**, *emphasis* and `code` of Markdown. Links, pictures and
// HTML are shown as they are written.
function prose(markdown) {
  const fragment = document.createDocumentFragment();
  const blocks = proseBlocks(String(markdown).replaceAll("\r\n", "\n").split("\n"));
  for (const block of blocks) fragment.append(proseElement(block));
  return fragment;
}

function proseBlocks(lines) {
  const blocks = [];
  let open = null;
  const start = (kind, extra) => { open = { kind, ...extra }; blocks.push(open); };
  for (const line of lines) {
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    const item = /^\s*(?:([-*])|\d+\.)\s+(.*)$/.exec(line);
    if (line.trim() === "") {
      if (open?.kind !== "list") open = null;
      else open.gap = true;
    } else if (heading) {
      blocks.push({ kind: "heading", level: heading[1].length, text: heading[2] });
      open = null;
    } else if (/^\s*\|/.test(line)) {
      if (open?.kind !== "table") start("table", { rows: [] });
      open.rows.push(line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
    } else if (item) {
      const ordered = !item[1];
      if (open?.kind !== "list" || open.ordered !== ordered) start("list", { ordered, items: [] });
      open.items.push(item[2]);
      open.gap = false;
    } else if (open?.kind === "list" && (!open.gap || /^\s/.test(line))) {
      open.items[open.items.length - 1] += (/^\s*→/.test(line) ? "\n" : " ") + line.trim();
    } else if (open?.kind === "paragraph") {
      open.text += " " + line.trim();
    } else {
      start("paragraph", { text: line.trim() });
    }
  }
  return blocks;
}

function proseElement(block) {
  if (block.kind === "heading") {
    const element = h(`h${Math.min(6, block.level + 1)}`);
    element.append(inline(block.text));
    return element;
  }
  if (block.kind === "list") {
    const list = h(block.ordered ? "ol" : "ul");
    for (const text of block.items) {
      const item = h("li");
      item.append(inline(text));
      list.append(item);
    }
    return list;
  }
  if (block.kind === "table") {
    const isRule = (row) => row.every((cell) => /^:?-+:?$/.test(cell));
    const hasHead = block.rows.length > 1 && isRule(block.rows[1]);
    const table = h("table");
    block.rows.forEach((row, number) => {
      if (isRule(row)) return;
      const line = h("tr");
      for (const text of row) {
        const cell = h(hasHead && number === 0 ? "th" : "td");
        cell.append(inline(text));
        line.append(cell);
      }
      table.append(line);
    });
    return h("div", { class: "l2a-table" }, table);
  }
  const paragraph = h("p");
  paragraph.append(inline(block.text));
  return paragraph;
}

function inline(text) {
  const fragment = document.createDocumentFragment();
  let from = 0;
  for (const match of text.matchAll(/\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|`([^`]+)`/g)) {
    fragment.append(plainText(text.slice(from, match.index)));
    const [tag, inner] = match[1] ? ["strong", match[1]] : match[2] ? ["em", match[2]] : ["code", match[3]];
    const element = h(tag);
    element.append(plainText(inner));
    fragment.append(element);
    from = match.index + match[0].length;
  }
  fragment.append(plainText(text.slice(from)));
  return fragment;
}
