/**
 * The page: search, what the visitor likes, and what the model recommends for it.
 *
 * What is liked is a variable of this module and is written nowhere: no storage, no address, no request.
 *
 * `window.metarec` is for tests and for those who are curious:
 *   metarec.ready                        resolves once the model is loaded
 *   metarec.recommend(history, options)  as `Recommender.recommend`; the page itself asks by it
 */

import { loadRecommender } from "./recommender.js";
import { TitleSearch } from "./search.js";

const FOUND = 8; // titles shown for a search
const MOST_LIKED = 50; // explanations adapt once for each
const WEAK = 0.25; // a second reason is named if it weighs at least so much of the first
const STATES = ["loading", "ready", "error"];

const part = (id) => document.getElementById(id);

/** What the visitor likes, oldest first: {position, rating}, the rating null where none is given. */
let liked = [];
let recommender;
let search;
let found = []; // positions in the list of the search
let active = -1; // which of them the arrow keys are at
let refreshing = false;
let outdated = false;

const loaded = loadRecommender(showProgress);
const metarec = Object.freeze({
  ready: loaded.then(() => {}),
  recommend: async (history, options) => (await loaded).recommend(history, options),
});
window.metarec = metarec;
start();

async function start() {
  show("loading");
  try {
    recommender = await loaded;
    search = new TitleSearch(recommender.titles);
    listen();
    await refresh();
  } catch (error) {
    fail(error);
  }
}

function show(state) {
  for (const one of STATES) part(one).hidden = one !== state;
  document.body.dataset.state = state;
}

function showProgress(bytes, total) {
  const megabytes = (count) => (count / 1e6).toFixed(1);
  const of = total > 0 ? ` of ${megabytes(total)}` : "";
  part("loading-text").textContent = `Loading the model: ${megabytes(bytes)}${of} MB`;
  if (total > 0) part("progress").value = bytes / total;
}

function fail(error) {
  show("error");
  const what = recommender === undefined ? "The model could not be loaded" : "The model could not answer";
  part("error-text").textContent = `${what}: ${error.message}. What you chose was not sent anywhere.`;
}

function say(text) {
  part("status").textContent = text;
}

function listen() {
  const field = part("search");
  field.addEventListener("input", findTitles);
  field.addEventListener("keydown", onKey);
  field.addEventListener("focus", findTitles);
  field.addEventListener("blur", closeResults);
  part("results").addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
  part("reset").addEventListener("click", reset);
}

part("retry").addEventListener("click", () => location.reload());

/* Search: a text field with a list of titles, as the ARIA pattern "combobox with list" has it. */

function findTitles() {
  const text = part("search").value;
  const { positions, total } = search.find(text, FOUND, isLiked);
  found = positions;
  part("results").replaceChildren(...positions.map(option));
  part("results").hidden = positions.length === 0;
  part("search").setAttribute("aria-expanded", String(positions.length > 0));
  activate(-1);
  if (text.trim() === "") return;
  if (total === 0) say("No title found.");
  else say(total > FOUND ? `${total} titles found, the first ${FOUND} are listed.` : `${total} found.`);
}

function option(position, place) {
  const made = element("li", { id: `result-${place}`, role: "option", "aria-selected": "false" }, [
    recommender.titles[position],
  ]);
  made.addEventListener("click", () => choose(place));
  return made;
}

function activate(place) {
  active = place;
  [...part("results").children].forEach((one, index) => one.setAttribute("aria-selected", String(index === place)));
  if (place < 0) {
    part("search").removeAttribute("aria-activedescendant");
  } else {
    part("search").setAttribute("aria-activedescendant", `result-${place}`);
    part(`result-${place}`).scrollIntoView({ block: "nearest" });
  }
}

function closeResults() {
  found = [];
  part("results").replaceChildren();
  part("results").hidden = true;
  part("search").setAttribute("aria-expanded", "false");
  activate(-1);
}

function onKey(event) {
  if (event.isComposing) return;
  const { key } = event;
  if ((key === "ArrowDown" || key === "ArrowUp") && found.length === 0) findTitles();
  if (key === "ArrowDown" && found.length > 0) activate((active + 1) % found.length);
  else if (key === "ArrowUp" && found.length > 0) activate(active <= 0 ? found.length - 1 : active - 1);
  else if (key === "Enter" && found.length > 0) choose(Math.max(active, 0));
  else if (key === "Escape" && found.length > 0) closeResults();
  else if (key === "Escape") part("search").value = "";
  else return;
  event.preventDefault();
}

function choose(place) {
  const position = found[place];
  part("search").value = "";
  closeResults();
  like(position);
}

/* What is liked. */

function isLiked(position) {
  return liked.some((item) => item.position === position);
}

function like(position) {
  if (liked.length >= MOST_LIKED) {
    say(`${MOST_LIKED} titles are the most that fit. Remove one first.`);
    return;
  }
  liked = [...liked, { position, rating: null }];
  changed();
}

function remove(position) {
  const place = liked.findIndex((item) => item.position === position);
  liked = liked.filter((item) => item.position !== position);
  changed();
  const buttons = part("liked").querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] ?? part("search")).focus();
}

function rate(position, rating) {
  liked = liked.map((item) => (item.position === position ? { position, rating } : item));
  refresh();
}

function reset() {
  liked = [];
  changed();
  part("search").focus();
}

function changed() {
  part("liked").replaceChildren(...liked.map(likedItem));
  part("liked-none").hidden = liked.length > 0;
  part("reset").hidden = liked.length === 0;
  refresh();
}

function likedItem({ position, rating }) {
  const title = recommender.titles[position];
  const button = element("button", { type: "button", "aria-label": `Remove ${title}` }, ["Remove"]);
  button.addEventListener("click", () => remove(position));
  const stars = recommender.ratingScale === null ? [] : [ratingChoice(position, title, rating)];
  return element("li", {}, [element("span", { class: "what" }, [title]), ...stars, button]);
}

function ratingChoice(position, title, rating) {
  const [low, high] = recommender.ratingScale;
  const steps = Number.isInteger(high - low) && high - low < 10 ? high - low : 9;
  const ratings = Array.from({ length: steps + 1 }, (_, step) => low + ((high - low) * step) / steps);
  const choice = element("select", { "aria-label": `Your rating of ${title}` }, [
    element("option", { value: "" }, ["Not rated"]),
    ...ratings.toReversed().map((one) => element("option", { value: String(one) }, [`${shown(one)} ★`])),
  ]);
  choice.value = rating === null ? "" : String(rating);
  choice.addEventListener("change", () => rate(position, choice.value === "" ? null : Number(choice.value)));
  return choice;
}

function shown(rating) {
  return Number.isInteger(rating) ? String(rating) : rating.toFixed(1);
}

/* Recommendations. */

/** Show what the model recommends now; while it computes, further changes wait and are answered together. */
async function refresh() {
  outdated = true;
  if (refreshing) return;
  refreshing = true;
  part("recommended").setAttribute("aria-busy", "true");
  try {
    while (outdated) {
      outdated = false;
      const history = liked;
      const recommendations = await metarec.recommend(history, { explain: true });
      if (!outdated) showRecommendations(recommendations, history);
    }
  } catch (error) {
    fail(error);
  } finally {
    refreshing = false;
    part("recommended").setAttribute("aria-busy", "false");
  }
}

function showRecommendations(recommendations, history) {
  const list = part("recommendations");
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...recommendations.map((one) => recommended(one, history)));
  part("recommended-for").textContent =
    history.length === 0
      ? "To begin with: what the model suggests to somebody it knows nothing about."
      : `From the ${history.length === 1 ? "title" : `${history.length} titles`} that you like.`;
  if (document.body.dataset.state !== "ready") show("ready");
  if (focused >= 0) list.querySelectorAll("button")[Math.min(focused, recommendations.length - 1)]?.focus();
  if (history.length > 0) {
    const [first] = recommendations;
    const why = first === undefined ? "" : `, first ${first.title}. ${reasons(first, history).join("")}`;
    say(`${recommendations.length} recommendations${why}`);
  } else {
    say(`${recommendations.length} recommendations to begin with.`);
  }
}

function recommended(recommendation, history) {
  const { position, title } = recommendation;
  const button = element("button", { type: "button", "aria-label": `Like ${title}` }, ["Like"]);
  button.addEventListener("click", () => like(position));
  const why = reasons(recommendation, history).map((text, index) =>
    index % 2 === 1 ? element("cite", {}, [text]) : text,
  );
  const texts = [element("span", { class: "title" }, [title])];
  if (why.length > 0) texts.push(element("p", { class: "why" }, why));
  return element("li", {}, [element("div", { class: "what" }, texts), button]);
}

/** Return why something is recommended, in parts: every second one is a title. */
function reasons({ because }, history) {
  if (history.length === 0) return [];
  if (because[0].standing <= 0) return ["No one of your titles alone speaks for it."];
  const named = because
    .slice(0, 2)
    .filter((reason) => reason.standing >= WEAK * because[0].standing)
    .map((reason) => history.find((item) => item.position === reason.position));
  const lead = named.some(isDisliked) ? "Because of " : "Because you liked ";
  const before = (place) => (place === 0 ? lead : `${ratingOf(named[place - 1])} and `);
  const pieces = named.flatMap((item, place) => [before(place), recommender.titles[item.position]]);
  return [...pieces, ratingOf(named.at(-1))];
}

function isDisliked({ rating }) {
  return rating !== null && rating < (recommender.ratingScale[0] + recommender.ratingScale[1]) / 2;
}

function ratingOf({ rating }) {
  return rating === null ? "" : ` (${shown(rating)} ★)`;
}

function element(name, attributes, children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}
