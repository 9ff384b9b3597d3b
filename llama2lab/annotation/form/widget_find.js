// Search of one's own earlier pairs of the task, and the way to one of them: a panel of the form. Python looks; here is
// what it found.

const FIND_MARKS = [["", "any answer"], ["significantly", "significantly better"], ["better", "better"],
                    ["slightly", "slightly better"], ["negligibly", "negligibly better"], ["skipped", "skipped"],
                    ["flagged", "flagged"], ["commented", "with a comment"]];
const FIND_WAIT_MS = 200;  // after a key, before Python is asked

function findPanel(session) {
  const text = h("input", { type: "search", class: "l2a-input", maxlength: "500", "data-focus": true, autocomplete: "off",
                            "aria-label": "Words in the question, an answer or your comment",
                            placeholder: "words in the question, an answer or your comment" });
  const mark = h("select", { class: "l2a-input l2a-find-mark", "aria-label": "What you answered" },
                 ...FIND_MARKS.map(([value, words]) => h("option", { value }, words)));
  const count = h("p", { class: "l2a-faint l2a-found-count", role: "status", "aria-live": "polite" });
  const list = h("ul", { class: "l2a-found", "aria-label": "Earlier pairs, the newest first" });
  let timer = null;
  let asked = 0;
  const look = async () => {
    const number = ++asked;
    const answer = await session.deliver({ type: "find", text: text.value, mark: mark.value });
    if (answer.closed || number !== asked || !list.isConnected) return;  // a newer question is on its way
    if (!answer.ok) {
      count.textContent = answer.error;
      return;
    }
    const shown = answer.found.length;
    const all = answer.of === 1 ? "The one pair that you can change" : `All ${answer.of} pairs that you can change`;
    const words = answer.fitting === answer.of ? all : `${answer.fitting} of ${answer.of} pairs`;
    count.textContent = words + (shown < answer.fitting ? `; the newest ${shown} are listed` : "");
    list.replaceChildren(...answer.found.map((one) => foundLine(session, one)));
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(look, FIND_WAIT_MS);
  };
  text.addEventListener("input", soon);
  text.addEventListener("keydown", (event) => { if (event.key === "Enter") look(); });
  mark.addEventListener("change", look);
  queueMicrotask(look);
  const { info } = session.state;
  return panelFrame(session, `Find an earlier ${info.apart ? `${info.kind} ` : ""}pair`, h("div", { class: "l2a-row" }, text, mark), count, list);
}

function foundLine(session, one) {
  const question = h("span", { class: "l2a-found-text", dir: "auto" });
  showText(question, one.question);
  const piece = one.piece ? h("span", { class: "l2a-found-text l2a-faint", dir: "auto" }) : null;
  if (piece) showText(piece, one.piece);
  const go = () => {
    session.closePanel();
    session.set({ notice: "" });
    session.showPast(one.index);
  };
  return h("li", {}, h("button", { type: "button", class: "l2a-button l2a-found-one", onclick: go },
                       h("span", { class: "l2a-found-said" }, `Pair ${one.index + 1}: ${one.said}`), question, piece));
}

PANELS.find = findPanel;
