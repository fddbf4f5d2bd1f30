// What the trace holds, and helpers. Text goes into the page through textContent alone.
const data = JSON.parse(document.getElementById("data").textContent);
const ROOT = -1;
const last = data.levels.length - 1;
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Colours: the target plain, the statistical level green, drafts in turn.
const levelClass = (level) =>
  level === 0 ? "target" : level === last ? "table" : `draft${1 + ((level - 1) % 5)}`;

const piece = (token) => data.pieces[token] ?? `#${token}`;
const visible = (text) =>
  (/^ +$/.test(text) ? text.replace(/ /g, "␣") : text).replace(/\n/g, "⏎").replace(/\t/g, "⇥");
const parentsOf = (action) => action.parents ?? action.tokens.map((_, node) => node - 1);

function depthsOf(action) {
  const depths = [];
  for (const parent of parentsOf(action)) depths.push(parent === ROOT ? 0 : depths[parent] + 1);
  return depths;
}

const count = (value) => value.toLocaleString("en");
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(0)}%` : "–");
const sum = (values) => values.reduce((total, value) => total + value, 0);

function seconds(value) {
  if (value >= 1) return `${value.toFixed(value >= 100 ? 0 : 2)} s`;
  if (value >= 1e-3) return `${(value * 1e3).toFixed(value >= 0.1 ? 0 : 2)} ms`;
  return `${(value * 1e6).toFixed(0)} µs`;
}

const probability = (value) => {
  const percent = 100 * value;
  return `${percent >= 99.95 ? "100" : percent.toFixed(percent < 1 ? 2 : percent < 10 ? 1 : 0)}%`;
};
const tokensOf = (row) => sum(row.rounds.map((round) => round.tokens.length));
const reviewsOf = (row) => row.rounds.filter((round) => round.tokens.length).length;

function chip(level) {
  return make("span", { class: `chip ${levelClass(level)}` }, data.levels[level]);
}
