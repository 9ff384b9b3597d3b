// A person's session: how many pairs, how long, how far to the goal, and when a rest is due. Kept in the tab with the
// rest of what the form remembers, so that a page that is loaded anew goes on counting.

const REST_S = 20 * 60;    // of judging, then a rest is proposed whatever the goal
const LATEST = 5;          // pairs by which haste is seen
const SKIM_WORDS_PER_S = 10;  // nobody reads as fast as that

const countWords = (task) => [...task.prompt.slice(-1).map((m) => m.content), task.left_text, task.right_text]
  .reduce((sum, text) => sum + wordsOf(text).length, 0);

class Pace {
  constructor(keeper, goal) {
    this.keeper = keeper;
    const kept = keeper.data.pace;
    this.data = kept && Array.isArray(kept.pairs) ? kept : { goal, stretch: 0, since: 0, pairs: [] };
    this.data.pairs = this.data.pairs.filter((pair) => Array.isArray(pair) && pair.length === 2);
    keeper.data.pace = this.data;
  }

  get goal() { return this.data.goal; }
  get done() { return this.data.pairs.length; }
  get seconds() { return this.data.pairs.reduce((sum, [seconds]) => sum + seconds, 0); }

  get median() {
    const times = this.data.pairs.map(([seconds]) => seconds).sort((a, b) => a - b);
    const half = times.length >> 1;
    return times.length ? (times.length % 2 ? times[half] : (times[half - 1] + times[half]) / 2) : null;
  }

  // A pair was judged or skipped, after so many seconds, for so many words.
  count(seconds, words) {
    this.data.pairs.push([seconds, words]);
    this.data.stretch += 1;
    this.data.since += seconds;
    this.keeper.write();
  }

  // Why a rest is due, "" if it is not.
  get due() {
    if (this.goal && this.data.stretch >= this.goal) return "goal";
    return this.data.since >= REST_S ? "time" : "";
  }

  // After a rest: with a new goal, 0 for none.
  again(goal = this.goal) {
    Object.assign(this.data, { goal, since: 0, stretch: this.goal && this.data.stretch < this.goal ? this.data.stretch : 0 });
    this.keeper.write();
  }

  // What to say to whoever cannot have read the last pairs, "" to anybody else; once for each LATEST pairs.
  get haste() {
    const last = this.data.pairs.slice(-LATEST);
    const [seconds, words] = [0, 1].map((i) => last.reduce((sum, pair) => sum + pair[i], 0));
    if (last.length < LATEST || this.done % LATEST || seconds * SKIM_WORDS_PER_S >= words) return "";
    return `You took ${tell(seconds)} for the last ${LATEST} pairs, which have ${words} words. Nobody reads that fast: ` +
      "please read both answers before you choose. B goes back to change one.";
  }
}

// Seconds in words.
function tell(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} minutes`;
}
