// Puts the page together.
function showHead() {
  const date = new Date(data.started * 1000);
  byId("about").textContent = `${data.name}, ${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
  const roles = (level) =>
    level === 0 ? "target, its own tokens" : level === last ? "statistical, drafts without a model" : "draft model";
  data.levels.forEach((name, level) => {
    byId("legend").append(make("li", {}, chip(level), ` level ${level}: ${roles(level)}`));
  });
  byId("legend").append(make("li", {}, make("del", {}, "struck through"), " drafted and rejected"));
  byId("truncated").hidden = !data.truncated;
}

function showSummary() {
  const stats = data.stats;
  const reviews = sum(stats.tokens_per_pass);
  const figures = [
    ["tokens per target pass", stats.tokens_per_target_review.toFixed(2), "per-pass"],
    ["tokens", count(stats.new_tokens), "tokens"],
    ["target reviews of a row", count(reviews), "reviews"],
    ["samples", count(stats.requests.added), "samples"],
    ["prompt tokens", count(stats.prompt_tokens), "prompt-tokens"],
    ["engine steps", count(stats.steps), "steps"],
    ["time in steps", seconds(stats.step_seconds), "step-seconds"],
  ];
  for (const [label, value, id] of figures) {
    byId("figures").append(make("div", {}, make("dt", {}, label), make("dd", { "data-figure": id }, value)));
  }
  const head = ["level", "passes", "rows in them", "time", "share of time", "reviewed by the target", "kept", "rate", "share of the text"];
  byId("levels").tHead.append(make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name))));
  const emitted = data.levels.map(() => 0);
  for (const row of data.rows) {
    for (const round of row.rounds) for (const level of round.levels) emitted[level] += 1;
  }
  const total = sum(stats.levels.map((level) => level.seconds));
  stats.levels.forEach((level, i) => {
    const drafted = sum(level.drafted);
    const accepted = sum(level.accepted);
    const cells = [count(level.passes), count(level.rows), seconds(level.seconds), meter(level.seconds, total, i)];
    cells.push(i ? count(drafted) : "–", i ? count(accepted) : "–", i ? share(accepted, drafted) : "–");
    cells.push(meter(emitted[i], stats.new_tokens, i));
    byId("levels").tBodies[0].append(
      make("tr", { "data-level": i, "data-emitted": emitted[i], "data-drafted": drafted, "data-accepted": accepted },
        make("th", { scope: "row" }, chip(i)), ...cells.map((cell) => make("td", {}, cell))),
    );
  });
}

function meter(part, whole, level) {
  const fill = make("span", { class: `fill ${levelClass(level)}` });
  fill.style.width = `${whole ? (100 * part) / whole : 0}%`;
  return make("span", { class: "meter" }, make("span", { class: "track", "aria-hidden": "true" }, fill), share(part, whole));
}

function showHeat() {
  const levels = data.stats.levels;
  const depth = Math.max(1, ...levels.map((level) => level.drafted.length));
  const head = make("tr", {}, make("th", { scope: "col" }, "depth"));
  for (let d = 0; d < depth; d += 1) head.append(make("th", { scope: "col" }, `${d + 1}`));
  byId("heat").tHead.append(head);
  levels.forEach((level, i) => {
    if (i === 0) return;
    const line = make("tr", {}, make("th", { scope: "row" }, chip(i)));
    for (let d = 0; d < depth; d += 1) {
      const drafted = level.drafted[d] ?? 0;
      const accepted = level.accepted[d] ?? 0;
      const cell = make("td", { "data-drafted": drafted, "data-accepted": accepted });
      if (drafted) {
        cell.append(make("b", {}, share(accepted, drafted)), make("small", {}, `${count(accepted)} / ${count(drafted)}`));
        cell.style.setProperty("--rate", accepted / drafted);
        cell.className = accepted / drafted > 0.6 ? "warm hot" : "warm";
      }
      line.append(cell);
    }
    byId("heat").tBodies[0].append(line);
  });
}

function showRow(number, keep = false) {
  const row = data.rows[number];
  byId("row").value = number;
  byId("previous").disabled = number === 0;
  byId("next").disabled = number === data.rows.length - 1;
  const tokens = tokensOf(row);
  const reviews = reviewsOf(row);
  const facts = [
    row.request + (row.index ? ` sample ${row.index}` : ""),
    `${count(tokens)} tokens in ${count(reviews)} passes of the target` + (reviews ? ` (${(tokens / reviews).toFixed(2)} each)` : ""),
    row.ended !== null && row.begun !== null ? seconds(row.ended - row.begun) : "",
    { stop: "ended by itself", length: "ended at its limit", dropped: "dropped" }[row.finish] ?? row.finish ?? "still running",
    ...Object.entries(row.settings).map(([name, value]) => `${name} ${value}`),
  ];
  byId("row-about").textContent = facts.filter((fact) => fact).join(" · ");
  byId("prompt").textContent = row.text || row.prompt.map(piece).join("");
  byId("prompt-box").open = byId("prompt").textContent.length < 400;
  hideTip();
  showText(row);
  if (!keep) {
    const first = row.rounds.findIndex((round) => round.actions.length > 1);
    if (row.rounds.length) showRound(Math.max(0, first));
    else byId("round").replaceChildren();
  }
}

// From the time line to the text.
function goTo(number, pass) {
  showRow(number);
  const round = data.rows[number].rounds.findIndex((each) => each.actions.some((action) => action.pass === pass));
  if (round === -1) return;
  showRound(round);
  const first = tokens.findIndex((token) => token.round === round);
  if (first !== -1) choose(first);
}

function setUpRows() {
  data.rows.forEach((row, number) => {
    const prompt = (row.text || row.prompt.map(piece).join("")).trim().replace(/\s+/g, " ");
    const short = prompt.length > 60 ? `${prompt.slice(0, 59)}…` : prompt;
    byId("row").append(make("option", { value: number }, `${number + 1}. ${short} (${tokensOf(row)} tokens)`));
  });
  const now = () => Number(byId("row").value);
  byId("row").addEventListener("change", () => showRow(now()));
  byId("previous").addEventListener("click", () => showRow(now() - 1));
  byId("next").addEventListener("click", () => showRow(now() + 1));
  byId("inline").addEventListener("change", () => showRow(now(), true));
  byId("numbers").addEventListener("change", (event) => text.classList.toggle("numbered", event.target.checked));
  if (data.rows.length) showRow(0);
  else text.textContent = "The trace has no request.";
}

function setUpTheme() {
  const button = byId("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const set = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    timeline.draw();
  };
  button.addEventListener("click", () => set(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => set(dark.matches ? "dark" : "light"));
  set(dark.matches ? "dark" : "light");
}

showHead();
showSummary();
showHeat();
setUpText();
timeline.setUp();
setUpRows();
setUpTheme();
document.documentElement.dataset.ready = "yes";
