// The guidelines, with the book's lines about whom the pair names above them: beside the pair where there is room, below
// it where there is not.

function guidelinesBody(session, kind) {
  const texts = session.texts[kind];
  if (!texts) return [h("p", {}, session.state.refused || "Fetching …")];
  if (!texts.length) return [h("p", {}, "No guidelines were given for these items.")];
  return texts.map((one) => {
    const article = h("article", { class: "l2a-prose" });
    article.append(prose(one.text));
    if (one.book.length) {
      article.append(h("details", { class: "l2a-book" }, h("summary", {}, `${one.title}, all of it (${one.book.length} entries)`),
                       bookLines(one.book)));
    }
    return article;
  });
}

function bookLines(lines) {
  return h("dl", { class: "l2a-lines" }, ...lines.flatMap(([name, text]) => {
    const said = h("dd");
    said.append(inline(text));
    return [h("dt", {}, name), said];
  }));
}

// What the book says about those whom the pair names; null where it says nothing.
function factsBody(facts) {
  if (!facts) return null;
  const further = facts.further.length ? h("details", { class: "l2a-further" },
    h("summary", {}, `Named there: ${facts.further.map(([name]) => name).join(", ")}`), bookLines(facts.further)) : null;
  const more = facts.more ? h("p", { class: "l2a-faint" }, `and ${facts.more} more, in the book below`) : null;
  return h("section", { class: "l2a-facts", "aria-label": `${facts.title}: about this pair` },
           h("h3", {}, facts.title), bookLines(facts.lines), further, more);
}

class Guide {
  constructor(view) {
    this.view = view;
    this.shown = {};
    this.facts = h("div");
    this.text = h("div", { class: "l2a-guide-text" });
    this.scroller = h("div", { class: "l2a-guide-scroll", tabindex: "0", role: "region",
                               "aria-label": "Guidelines, and what the book says about this pair" }, this.facts, this.text);
    this.root = h("aside", { class: "l2a-guide", "aria-label": "Guidelines" },
                  h("div", { class: "l2a-guide-head" }, h("h2", {}, "Guidelines"),
                    button("Hide", "H", () => view.act(() => view.session.show("guide", false)))), this.scroller);
  }

  update() {
    const { session } = this.view;
    const { task, facts, index } = session.state;
    this.root.hidden = !session.shows("guide");
    const item = `${task.item_id}/${index}`;
    if (this.shown.item !== item) {
      this.shown.item = item;
      this.facts.replaceChildren(...[factsBody(facts)].filter(Boolean));
      this.scroller.scrollTop = 0;
    }
    const text = `${task.kind}/${Boolean(session.texts[task.kind])}/${session.texts[task.kind] ? "" : session.state.refused}`;
    if (this.shown.text !== text) {
      this.shown.text = text;
      this.text.replaceChildren(...guidelinesBody(session, task.kind));
    }
  }

  get hasFocus() { return this.root.contains(document.activeElement); }

  // G: into the guidelines, and back.
  visit() {
    if (this.hasFocus) return this.view.root.focus({ preventScroll: true });
    if (this.root.hidden) this.view.session.show("guide", true);
    this.scroller.focus({ preventScroll: true });
    return this.root.scrollIntoView({ block: "nearest" });
  }

  // PageUp and PageDown from anywhere; false where there is nothing (more) to scroll, or nobody would see it.
  scroll(down) {
    const { top, bottom } = this.root.getBoundingClientRect();
    if (this.root.hidden || bottom <= 0 || top >= window.innerHeight) return false;
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    if (down ? scrollTop + clientHeight >= scrollHeight - 1 : scrollTop <= 0) return false;
    this.scroller.scrollBy({ top: (down ? 0.85 : -0.85) * clientHeight });
    return true;
  }
}
