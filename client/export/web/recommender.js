/**
 * The model in this browser: loaded, adapted to a history, asked for recommendations and for why it makes them.
 *
 * One graph does it all (model.onnx): no training, no server. Nothing here knows of the page.
 */

import * as ort from "./ort.wasm.bundle.min.mjs";

const LEVELS = 10; // feedback levels that a rating scale is told apart on; level 0: not rated

ort.env.wasm.numThreads = 1; // more would need headers that not every host of static files sends
ort.env.logLevel = "error";

/**
 * @typedef {{position: number, rating?: number | null}} Liked An item of a history: its position in the catalogue,
 *   and by choice a rating on the catalogue's scale.
 * @typedef {{position: number, loss: number, standing: number}} Reason What a recommendation loses if the model adapts
 *   anew without an item of the history: of its score, and of its standing among all that may be recommended, which is
 *   its score in standard deviations from their mean. Scores grow and shrink with the size of a history, standing does
 *   not.
 * @typedef {{position: number, id: string, title: string, score: number, because: Reason[]}} Recommendation
 */

/**
 * Load the model and all that it needs.
 *
 * @param {(loaded: number, total: number) => void} onProgress Told of bytes; a total of 0 is unknown.
 * @returns {Promise<Recommender>}
 */
export async function loadRecommender(onProgress) {
  const [catalogue, page] = await Promise.all([fetchJson("catalogue.json"), fetchJson("page.json")]);
  const graph = await fetchBytes(`model.onnx?${catalogue.graph}`, onProgress); // no older graph from some cache
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const recommender = new Recommender(session, catalogue, page);
  await recommender.recommend([]); // what is prepared in the first run is prepared before anybody waits
  return recommender;
}

export class Recommender {
  #session;
  #catalogue;
  #last = Promise.resolve();

  constructor(session, catalogue, page) {
    this.#session = session;
    this.#catalogue = catalogue;
    /** Titles by position. */
    this.titles = catalogue.titles;
    /** Lowest and highest rating, or null where the model looks at none. */
    this.ratingScale = page.reads_ratings ? catalogue.rating_scale : null;
  }

  /**
   * Adapt to a history and recommend, best first, nothing of the history.
   *
   * With explanations all is one call of the graph: the history is one row, and each of its items is left out in a
   * further one. What a recommendation's standing loses there is how much that item speaks for it.
   *
   * @param {Liked[]} history Each item once.
   * @param {object} [options]
   * @param {number} [options.k] Most recommendations; else as many as were chosen at export.
   * @param {boolean} [options.inTime] Whether the history is the whole one in the order of time, oldest first.
   * @param {boolean} [options.explain] Whether `because` is filled: the history, what speaks for it most first.
   * @returns {Promise<Recommendation[]>}
   */
  recommend(history, { k = this.#catalogue.top_k, inTime = false, explain = false } = {}) {
    const answer = this.#last.then(() => this.#recommend(history, k, inTime, explain && history.length > 0));
    this.#last = answer.catch(() => {}); // a session runs one call at a time; a failed one holds up no other
    return answer;
  }

  async #recommend(history, k, inTime, explain) {
    const items = this.titles.length;
    this.#check(history, k);
    const rows = explain ? history.length + 1 : 1;
    const asked = explain ? items : Math.min(k + history.length, items); // to explain, each row's score of each item
    const { positions, scores } = await this.#session.run(this.#inputs(history, rows, inTime, asked));
    const own = new Set(history.map((item) => item.position));
    const best = [];
    for (let place = 0; place < asked && best.length < k; place++) {
      const position = Number(positions.data[place]);
      if (!own.has(position)) best.push({ position, score: scores.data[place] });
    }
    const told = explain ? reasonsFor(best, history, scoresByItem(positions.data, scores.data, items)) : [];
    return best.map(({ position, score }, index) => ({
      position,
      id: this.#catalogue.item_ids[position],
      title: this.titles[position],
      score,
      because: told[index] ?? [],
    }));
  }

  /** Return what the graph reads: row 0 is the history, row n is without its n-th item. */
  #inputs(history, rows, inTime, k) {
    const columns = Math.max(1, history.length);
    const row = (values) => {
      const filled = new BigInt64Array(rows * columns);
      for (let start = 0; start < filled.length; start += columns) filled.set(values.map(BigInt), start);
      return new ort.Tensor("int64", filled, [rows, columns]);
    };
    const mask = new Uint8Array(rows * columns).fill(history.length > 0 ? 1 : 0);
    for (let left = 1; left < rows; left++) mask[left * columns + left - 1] = 0;
    const inputs = {
      items: row(history.map((item) => item.position)),
      feedback: row(history.map((item) => levelOf(item.rating, this.#catalogue.rating_scale))),
      mask: new ort.Tensor("bool", mask, [rows, columns]),
      in_time: new ort.Tensor("bool", new Uint8Array(rows).fill(inTime ? 1 : 0), [rows]),
      k: new ort.Tensor("int64", BigInt64Array.of(BigInt(k)), []),
    };
    if (this.#session.inputNames.includes("attributes")) {
      inputs.attributes = new ort.Tensor("int64", new BigInt64Array(rows), [rows, 1]); // the visitor is asked for none
    }
    return inputs;
  }

  #check(history, k) {
    const items = this.titles.length;
    if (!(Number.isInteger(k) && k > 0)) throw new RangeError(`items to recommend: got ${k}, wanted at least 1`);
    for (const { position } of history) {
      if (!(Number.isInteger(position) && position >= 0 && position < items)) {
        throw new RangeError(`history: got position ${position}, wanted one of a catalogue of ${items} items`);
      }
    }
    if (new Set(history.map((item) => item.position)).size < history.length) {
      throw new RangeError("history: an item stands in it twice; wanted each once");
    }
  }
}

/** Return the scores of each row by position in the catalogue; the graph gives them best first. */
function scoresByItem(positions, scores, items) {
  const rows = [];
  for (let start = 0; start < scores.length; start += items) {
    const row = new Float64Array(items);
    for (let place = start; place < start + items; place++) row[Number(positions[place])] = scores[place];
    rows.push(row);
  }
  return rows;
}

/** Return the reasons for each recommendation; row 0 has the scores with the whole history, row n without the n-th. */
function reasonsFor(best, history, rows) {
  const own = new Set(history.map((item) => item.position));
  const [whole, ...without] = rows.map((row) => ({ row, ...spread(row, own) }));
  const standing = ({ row, mean, deviation }, position) => (row[position] - mean) / deviation;
  return best.map(({ position }) =>
    history
      .map((item, place) => ({
        position: item.position,
        loss: whole.row[position] - without[place].row[position],
        standing: standing(whole, position) - standing(without[place], position),
      }))
      .sort((one, other) => other.standing - one.standing),
  );
}

/** Return mean and standard deviation of scores, of which those of the history do not count. */
function spread(row, own) {
  const counted = row.filter((_, position) => !own.has(position));
  const mean = counted.reduce((sum, score) => sum + score, 0) / counted.length;
  const square = counted.reduce((sum, score) => sum + (score - mean) ** 2, 0) / counted.length;
  return { mean, deviation: Math.sqrt(square) || 1 };
}

/** Return the feedback level of a rating, rounded as the model's training rounded: a half to the even number. */
function levelOf(rating, scale) {
  if (rating === null || rating === undefined || scale === null || scale[1] <= scale[0]) return 0;
  const [low, high] = scale;
  if (!(rating >= low && rating <= high)) throw new RangeError(`rating: got ${rating}, wanted ${low} to ${high}`);
  const exact = ((rating - low) / (high - low)) * (LEVELS - 1);
  const below = Math.floor(exact);
  const up = exact - below > 0.5 || (exact - below === 0.5 && below % 2 === 1);
  return 1 + below + (up ? 1 : 0);
}

async function fetchFile(name) {
  let response;
  try {
    response = await fetch(name);
  } catch (error) {
    throw new Error(`${name}: cannot be loaded: ${error.message}`, { cause: error });
  }
  if (!response.ok) throw new Error(`${name}: cannot be loaded: the server says ${response.status}`);
  return response;
}

async function fetchJson(name) {
  const response = await fetchFile(name);
  try {
    return await response.json();
  } catch (error) {
    throw new Error(`${name}: is no JSON: ${error.message}`, { cause: error });
  }
}

async function fetchBytes(name, onProgress) {
  const response = await fetchFile(name);
  const compressed = response.headers.has("Content-Encoding"); // the length is then not that of what is read
  const total = compressed ? 0 : Number(response.headers.get("Content-Length") ?? 0);
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    onProgress(loaded, total);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
