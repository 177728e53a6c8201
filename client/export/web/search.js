/**
 * Search of titles. Case, accents and apostrophes do not count, and words may come in any order: "story toy" finds
 * "Toy Story (1995)".
 */

const WORD = /[\p{L}\p{N}]+/gu;

export class TitleSearch {
  #words;

  /** @param {string[]} titles By position in the catalogue. */
  constructor(titles) {
    this.#words = titles.map(wordsOf);
  }

  /**
   * Return the titles in which every word of a text begins a word.
   *
   * @param {string} text What is looked for; of an empty one nothing is found.
   * @param {number} limit Most positions that are returned.
   * @param {(position: number) => boolean} isHidden Which titles are passed over.
   * @returns {{positions: number[], total: number}} The best, and how many there are.
   */
  find(text, limit, isHidden) {
    const wanted = wordsOf(text);
    if (wanted.length === 0) return { positions: [], total: 0 };
    const found = [];
    this.#words.forEach((words, position) => {
      if (isHidden(position) || !wanted.every((one) => words.some((word) => word.startsWith(one)))) return;
      const exact = wanted.filter((one) => words.includes(one)).length;
      const inOrder = wanted.every((one, place) => words[place]?.startsWith(one));
      found.push({ position, rank: [inOrder ? 0 : 1, -exact, words.length, position] });
    });
    found.sort((one, other) => compare(one.rank, other.rank));
    return { positions: found.slice(0, limit).map((one) => one.position), total: found.length };
  }
}

function wordsOf(text) {
  return text.normalize("NFKD").replace(/[\p{M}'’]/gu, "").toLowerCase().match(WORD) ?? [];
}

function compare(one, other) {
  const place = one.findIndex((value, index) => value !== other[index]);
  return place < 0 ? 0 : one[place] - other[place];
}
