// Which words of one answer the other does not have at that place: what is left of both when their longest common
// sequence of words is taken away. Case and punctuation make no difference. Answers that have next to nothing in common,
// and very long ones, get no marks: everything marked says nothing.

const MOST_WORDS = 2000;
const COMMON_SHARE = 0.2;  // of all words, or nothing is marked
const BARE = /^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu;

function wordsOf(text) {
  return [...text.matchAll(/\S+/gu)].map((match) => ({
    from: match.index, to: match.index + match[0].length, key: match[0].toLowerCase().replace(BARE, "") || match[0] }));
}

// For each word of `a` and of `b` whether it is part of the common sequence.
function commonWords(a, b) {
  const inA = new Array(a.length).fill(false);
  const inB = new Array(b.length).fill(false);
  let start = 0;
  while (start < a.length && start < b.length && a[start].key === b[start].key) {
    inA[start] = inB[start] = true;
    start++;
  }
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1].key === b[endB - 1].key) inA[--endA] = inB[--endB] = true;
  const rows = endA - start;
  const columns = endB - start;
  // longest[i][j]: of what is left from a[i] and b[j] on
  const longest = new Uint16Array((rows + 1) * (columns + 1));
  const at = (i, j) => i * (columns + 1) + j;
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      longest[at(i, j)] = a[start + i].key === b[start + j].key ? longest[at(i + 1, j + 1)] + 1
        : Math.max(longest[at(i + 1, j)], longest[at(i, j + 1)]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (a[start + i].key === b[start + j].key) inA[start + i++] = inB[start + j++] = true;
    else if (longest[at(i + 1, j)] >= longest[at(i, j + 1)]) i++;
    else j++;
  }
  return [inA, inB];
}

// [from, to] of each run of words that are not common.
function runs(words, common) {
  const found = [];
  words.forEach((word, i) => {
    if (common[i]) return;
    if (i && !common[i - 1]) found[found.length - 1][1] = word.to;
    else found.push([word.from, word.to]);
  });
  return found;
}

// { left, right: spans, why: in words, where nothing is marked }
function differences(left, right) {
  const nothing = (why) => ({ left: [], right: [], why });
  const [a, b] = [wordsOf(left), wordsOf(right)];
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return nothing("The answers are too long for marks.");
  const [inA, inB] = commonWords(a, b);
  const common = inA.filter(Boolean).length;
  if (2 * common < COMMON_SHARE * (a.length + b.length)) return nothing("The answers have hardly a word in common.");
  const spans = { left: runs(a, inA), right: runs(b, inB) };
  return { ...spans, why: spans.left.length + spans.right.length ? "" : "The answers have the same words." };
}
