// The text of one row, token by token; what was rejected at each; the round of one token.
const text = byId("text");
const tip = byId("tip");
const SHOWN = 6; // rejected branches that a tip lists

let tokens = []; // of the row that is shown: {id, level, text, round, position, review, node, rejected}
let chosen = 0; // the token that has the keyboard

// Drafted tokens that a review did not keep although it kept what they follow, each with what was
// drafted behind it, by the position that they were drafted for.
function rejectedIn(round) {
  const found = new Map();
  for (const action of round.actions) {
    if (action.kind !== "review") continue;
    const parents = parentsOf(action);
    const depths = depthsOf(action);
    const kept = new Set(action.kept);
    action.tokens.forEach((_, node) => {
      if (kept.has(node) || !(parents[node] === ROOT || kept.has(parents[node]))) return;
      const branch = [node];
      for (let next = node; next !== -1; ) {
        next = parents.indexOf(next);
        if (next !== -1) branch.push(next);
      }
      const position = action.at + depths[node];
      if (!found.has(position)) found.set(position, []);
      found.get(position).push({ action, branch });
    });
  }
  return found;
}

function tokensOfRow(row) {
  const list = [];
  let position = row.start + row.emitted.length;
  row.rounds.forEach((round, number) => {
    const rejected = rejectedIn(round);
    const review = round.actions.findLast((a) => a.kind === "review" && a.level === 0);
    const first = position;
    round.tokens.forEach((id, i) => {
      const node = review && i < review.kept.length ? review.kept[i] : null;
      const token = { id, level: round.levels[i], text: round.texts[i], round: number, position };
      list.push({ ...token, review, node, rejected: rejected.get(position) ?? [], end: false });
      position += 1;
    });
    if (position > first) {
      list[list.length - 1].end = true;
      // A stop may have cut what the pass left: what was rejected behind it belongs to the last.
      for (const [at, branches] of rejected) {
        if (at >= position) list[list.length - 1].rejected.push(...branches);
      }
    }
  });
  return list;
}

function branchText({ action, branch }, withProbabilities) {
  const element = make("del");
  for (const node of branch) {
    element.append(
      make("span", { class: levelClass(action.sources[node]) }, visible(piece(action.tokens[node]))),
    );
    if (withProbabilities) element.append(less(action.probs[node]));
  }
  if (withProbabilities && !element.querySelector("sub")) element.append(make("sub", {}, "100%"));
  return element;
}

// Copied tokens count as certain: only what is less is worth reading.
function less(prob) {
  const shown = probability(prob);
  return shown === "100%" ? "" : make("sub", {}, shown);
}

function tokenElement(token, number) {
  const shown = token.text === "" ? visible(piece(token.id)) : token.text;
  const held = token.text === "" ? " held" : "";
  const element = make("span", {
    class: `token ${levelClass(token.level)}${held}${token.end ? " end" : ""}`,
    "data-token": number,
    "data-level": token.level,
    role: "button",
    tabindex: number === chosen ? 0 : -1,
  });
  element.append(shown);
  return element;
}

function showText(row) {
  tokens = tokensOfRow(row);
  chosen = 0;
  const parts = document.createDocumentFragment();
  if (row.emitted.length) {
    parts.append(make("span", { class: "before" }, row.emitted.map(piece).join("")));
  }
  tokens.forEach((token, number) => {
    if (byId("inline").checked) {
      for (const branch of token.rejected.slice(0, 2)) parts.append(branchText(branch, false));
    }
    parts.append(tokenElement(token, number));
  });
  if (!tokens.length) parts.append(make("span", { class: "quiet" }, "no token was emitted"));
  text.replaceChildren(parts);
}

const elementOf = (number) => text.querySelector(`[data-token="${number}"]`);

function choose(number) {
  elementOf(chosen)?.setAttribute("tabindex", -1);
  chosen = Math.max(0, Math.min(tokens.length - 1, number));
  const element = elementOf(chosen);
  element?.setAttribute("tabindex", 0);
  element?.focus();
}

function describe(token) {
  const byTarget = token.node === null;
  const who = byTarget ? `${data.levels[0]}'s own token` : `drafted by ${data.levels[token.level]}`;
  if (!token.review) return who;
  const prob = byTarget ? token.review.prob : token.review.probs[token.node];
  return `${who}, ${probability(prob)}`;
}

function showTip(element) {
  const token = tokens[element.dataset.token];
  const rejected = token.rejected;
  const list = rejected.slice(0, SHOWN).map((entry) =>
    make("li", {}, branchText(entry, true), ` by ${data.levels[entry.action.level]}`),
  );
  if (rejected.length > SHOWN) list.push(make("li", {}, `and ${rejected.length - SHOWN} more`));
  tip.replaceChildren(
    make("div", {}, make("b", {}, visible(piece(token.id))), ` ${describe(token)}`),
    make("div", { class: "quiet" }, `token ${token.id}, position ${token.position}, round ${token.round + 1}`),
    list.length ? make("div", {}, "rejected here", make("ul", {}, ...list)) : "",
  );
  tip.hidden = false;
  const box = element.getClientRects()[0];
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + window.scrollY}px`;
}

const hideTip = () => (tip.hidden = true);

// A draft or a reviewed chain or tree: runs of single children in a line, branches below it.
function treeOf(action) {
  const parents = parentsOf(action);
  const children = new Map();
  parents.forEach((parent, node) => {
    children.set(parent, [...(children.get(parent) ?? []), node]);
  });
  const kept = new Set(action.kept ?? []);
  const node = (j) => {
    const level = action.sources ? action.sources[j] : action.level;
    const shown = make("span", { class: levelClass(level) }, visible(piece(action.tokens[j])));
    const gone = action.kind === "review" && !kept.has(j);
    return make("span", { class: "node" }, gone ? make("del", {}, shown) : shown, less(action.probs[j]));
  };
  const own = () => {
    const shown = make("span", { class: `own ${levelClass(action.level)}` }, visible(piece(action.token)));
    return make("span", { class: "node" }, shown, less(action.prob));
  };
  const end = action.kind === "review" ? (action.kept.at(-1) ?? ROOT) : null;
  const branches = (parent) => {
    const list = make("ul", { class: "tree" });
    for (let first of children.get(parent) ?? []) {
      const line = make("li", {}, node(first));
      for (;;) {
        if (first === end) line.append(own());
        const below = children.get(first) ?? [];
        if (below.length !== 1) break;
        first = below[0];
        line.append(node(first));
      }
      if ((children.get(first) ?? []).length > 1) line.append(branches(first));
      list.append(line);
    }
    return list;
  };
  const top = branches(ROOT);
  if (end === ROOT) top.prepend(make("li", {}, own()));
  return top;
}

const VERBS = { draft: "drafts", review: "reviews", retire: "fails on this row and is not asked again" };

function showRound(number) {
  const row = data.rows[byId("row").value];
  const round = row.rounds[number];
  const list = make("ol", {});
  for (const action of round.actions) {
    const passed = data.passes[action.pass];
    const took = action.kind === "retire" ? "" : ` ${seconds(passed[3])}`;
    let told = ` ${VERBS[action.kind]}`;
    if (action.kind === "review" && action.tokens.length) {
      told += `, keeps ${action.kept.length} of ${action.tokens.length}, and adds its own`;
    } else if (action.kind === "review") {
      told += " nothing, and adds its own";
    } else if (action.kind === "draft" && !action.tokens.length) {
      told += " nothing";
    }
    const rest = make("span", { class: "quiet" }, took);
    list.append(make("li", {}, chip(action.level), told, rest, action.kind === "retire" ? "" : treeOf(action)));
  }
  byId("round").replaceChildren(
    make("h3", {}, `Round ${number + 1} of ${row.rounds.length}`),
    make("p", { class: "quiet" }, round.tokens.length
      ? `What led to one pass of the target, which gave ${round.tokens.length} ${round.tokens.length === 1 ? "token" : "tokens"}.`
      : "The row was preempted, dropped or the trace ends here: nothing was emitted."),
    list,
  );
  for (const element of text.querySelectorAll(".chosen")) element.classList.remove("chosen");
  tokens.forEach((token, i) => token.round === number && elementOf(i)?.classList.add("chosen"));
  timeline.mark(round.actions.map((action) => action.pass));
}

function setUpText() {
  const token = (event) => event.target.closest?.(".token");
  text.addEventListener("mouseover", (event) => token(event) && showTip(token(event)));
  text.addEventListener("mouseout", hideTip);
  text.addEventListener("focusin", (event) => token(event) && showTip(token(event)));
  text.addEventListener("focusout", hideTip);
  text.addEventListener("click", (event) => {
    const element = token(event);
    if (!element) return;
    choose(Number(element.dataset.token));
    showRound(tokens[chosen].round);
  });
  text.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: tokens.length - 1 };
    if (event.key in moves) choose(moves[event.key]);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") chooseRound(event.key === "ArrowDown" ? 1 : -1);
    else if (event.key === "Enter" || event.key === " ") showRound(tokens[chosen].round);
    else if (event.key === "Escape") hideTip();
    else return;
    event.preventDefault();
  });
}

// To the first token of the next or the previous round.
function chooseRound(direction) {
  const round = tokens[chosen]?.round + direction;
  const found = tokens.findIndex((token) => token.round === round);
  if (found !== -1) choose(found);
}
