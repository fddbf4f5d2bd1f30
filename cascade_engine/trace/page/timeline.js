// Passes in time, a track for each level, drawn on a canvas.
const timeline = (() => {
  const canvas = byId("time");
  const paint = canvas.getContext("2d");
  const TRACK = 34;
  const LEFT = 150;
  const TOP = 26;
  const passes = data.passes.map(([kind, level, t, s, rows], number) => ({ kind, level, t, s, rows, number }));
  const longest = Math.max(0, ...passes.map((pass) => pass.s).slice(0, 1), passes.reduce((m, p) => Math.max(m, p.s), 0));
  const end = Math.max(
    1e-6,
    passes.reduce((most, pass) => Math.max(most, pass.t + pass.s), 0),
    data.steps.reduce((most, [t, s]) => Math.max(most, t + s), 0),
  );
  const begin = Math.min(end, passes.length ? passes[0].t : 0, data.steps.length ? data.steps[0][0] : 0);
  const inOrder = [...passes].sort((a, b) => a.t - b.t);
  let from = begin;
  let to = end;
  let width = 800;
  let selected = -1; // in inOrder
  let marked = new Set();

  const height = TOP + TRACK * (data.levels.length + 1) + 8;
  const x = (t) => LEFT + ((t - from) / (to - from)) * (width - LEFT - 8);
  const time = (px) => from + ((px - LEFT) / (width - LEFT - 8)) * (to - from);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The first pass that may still be visible at time t.
  function firstFrom(t) {
    let low = 0;
    let high = inOrder.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (inOrder[middle].t + longest < t) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function tick() {
    const raw = ((to - from) / (width - LEFT)) * 90;
    const power = 10 ** Math.floor(Math.log10(raw));
    return [1, 2, 5, 10].map((m) => m * power).find((step) => step >= raw);
  }

  function grid() {
    const step = tick();
    const unit = step >= 1 ? [1, "s"] : step >= 1e-3 ? [1e3, "ms"] : [1e6, "µs"];
    const digits = Math.max(0, -Math.floor(Math.log10(step * unit[0] * 1.0000001)));
    paint.textAlign = "center";
    for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
      paint.fillStyle = colour("--line");
      paint.fillRect(Math.round(x(t)), TOP - 4, 1, height - TOP);
      paint.fillStyle = colour("--quiet");
      paint.fillText(`${(t * unit[0]).toFixed(digits)} ${unit[1]}`, x(t), 14);
    }
  }

  function names() {
    paint.textAlign = "left";
    const labels = ["steps", ...data.levels];
    labels.forEach((label, track) => {
      const y = TOP + TRACK * track;
      paint.fillStyle = colour("--paper");
      paint.fillRect(0, y, LEFT - 1, TRACK);
      paint.fillStyle = track ? colour(`--${levelClass(track - 1)}-strong`) : colour("--quiet");
      paint.fillRect(2, y + 8, 4, TRACK - 16);
      paint.fillStyle = colour("--ink");
      const short = label.length > 19 ? `${label.slice(0, 18)}…` : label;
      paint.fillText(short, 12, y + TRACK / 2 + 4);
    });
  }

  function bar(pass) {
    const left = Math.max(LEFT, x(pass.t));
    const right = Math.min(width - 8, Math.max(left + 1, x(pass.t + pass.s)));
    if (x(pass.t + pass.s) < LEFT || left > width - 8) return;
    const y = TOP + TRACK * (pass.level + 1) + 6;
    paint.fillStyle = colours[pass.level];
    paint.globalAlpha = pass.kind === "prefill" ? 0.45 : 1;
    paint.fillRect(left, y, Math.max(1, right - left - (right - left > 4 ? 1 : 0)), TRACK - 12);
    paint.globalAlpha = 1;
    if (right - left > 26 && pass.kind !== "draft") {
      paint.fillStyle = colour("--paper");
      paint.textAlign = "left";
      paint.fillText(pass.rows.length > 1 ? `×${pass.rows.length}` : "", left + 4, y + 15);
    }
    if (marked.has(pass.number) || inOrder[selected] === pass) {
      paint.strokeStyle = colour("--ink");
      paint.lineWidth = inOrder[selected] === pass ? 3 : 1.5;
      paint.strokeRect(left - 1, y - 2, right - left + 2, TRACK - 8);
    }
  }

  let colours = [];
  function draw() {
    const ratio = window.devicePixelRatio || 1;
    width = canvas.clientWidth || 800;
    canvas.style.height = `${height}px`;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.font = "12px system-ui, sans-serif";
    colours = data.levels.map((_, level) => colour(`--${levelClass(level)}-strong`));
    paint.fillStyle = colour("--paper");
    paint.fillRect(0, 0, width, height);
    grid();
    paint.fillStyle = colour("--step");
    for (const [t, s] of data.steps) {
      if (t + s >= from && t <= to) {
        const left = Math.max(LEFT, x(t));
        paint.fillRect(left, TOP + 10, Math.max(1, Math.min(width - 8, x(t + s)) - left - 1), TRACK - 20);
      }
    }
    for (let i = firstFrom(from); i < inOrder.length && inOrder[i].t <= to; i += 1) bar(inOrder[i]);
    names();
  }

  function view(a, b) {
    const span = Math.min(end - begin, Math.max(1e-6, b - a));
    from = Math.max(begin, Math.min(a, end - span));
    to = from + span;
    draw();
  }

  function zoom(factor, middle = (from + to) / 2) {
    view(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  function select(number) {
    if (!inOrder.length) return;
    selected = Math.max(0, Math.min(inOrder.length - 1, number));
    const pass = inOrder[selected];
    if (pass.t < from || pass.t + pass.s > to) {
      const half = Math.max((to - from) / 2, pass.s);
      view(pass.t + pass.s / 2 - half, pass.t + pass.s / 2 + half);
    } else draw();
    tell(pass);
  }

  // The next pass of the level above or below, nearest in time.
  function selectLevel(direction) {
    const now = inOrder[Math.max(0, selected)];
    const level = now.level + direction;
    let best = -1;
    inOrder.forEach((pass, i) => {
      if (pass.level !== level) return;
      if (best === -1 || Math.abs(pass.t - now.t) < Math.abs(inOrder[best].t - now.t)) best = i;
    });
    if (best !== -1) select(best);
  }

  function tell(pass) {
    const rows = pass.rows.slice(0, 16).map((row) => {
      const button = make("button", { type: "button" }, `sample ${row + 1}`);
      button.addEventListener("click", () => goTo(row, pass.number));
      return button;
    });
    const more = pass.rows.length > 16 ? ` and ${pass.rows.length - 16} more` : "";
    byId("pass").replaceChildren(
      chip(pass.level),
      ` ${pass.kind} at ${seconds(pass.t)}, ${seconds(pass.s)}, ${pass.rows.length} ${pass.rows.length === 1 ? "row" : "rows"}: `,
      ...rows,
      more,
    );
  }

  // The pass under the pointer.
  function hit(event) {
    const box = canvas.getBoundingClientRect();
    const level = Math.floor((event.clientY - box.top - TOP) / TRACK) - 1;
    const px = event.clientX - box.left;
    const slack = time(px + 2) - time(px);
    for (let i = firstFrom(time(px)); i < inOrder.length && inOrder[i].t <= time(px) + slack; i += 1) {
      const pass = inOrder[i];
      if (pass.level === level && pass.t - slack <= time(px) && time(px) <= pass.t + pass.s + slack) return i;
    }
    return -1;
  }

  function setUpPointer() {
    let dragged = null;
    canvas.addEventListener("pointerdown", (event) => {
      dragged = { px: event.clientX, from, to, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!dragged) return;
      const by = ((event.clientX - dragged.px) / (width - LEFT - 8)) * (dragged.to - dragged.from);
      dragged.moved = dragged.moved || Math.abs(event.clientX - dragged.px) > 3;
      if (dragged.moved) view(dragged.from - by, dragged.to - by);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (dragged && !dragged.moved && hit(event) !== -1) select(hit(event));
      dragged = null;
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) {
          zoom(event.deltaY > 0 ? 1.25 : 0.8, time(event.clientX - canvas.getBoundingClientRect().left));
        } else if (event.shiftKey) {
          const by = (to - from) * 0.1 * Math.sign(event.deltaY || event.deltaX);
          view(from + by, to + by);
        } else return;
        event.preventDefault();
      },
      { passive: false },
    );
  }

  function setUpKeys() {
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = {
        ArrowRight: () => select(selected + 1),
        ArrowLeft: () => select(selected - 1),
        ArrowDown: () => selectLevel(1),
        ArrowUp: () => selectLevel(-1),
        "+": () => zoom(0.5),
        "=": () => zoom(0.5),
        "-": () => zoom(2),
        0: () => view(begin, end),
        Enter: () => selected !== -1 && goTo(inOrder[selected].rows[0], inOrder[selected].number),
      };
      if (!(event.key in acts)) return;
      acts[event.key]();
      event.preventDefault();
    });
  }

  function setUp() {
    setUpPointer();
    setUpKeys();
    byId("zoom-in").addEventListener("click", () => zoom(0.5));
    byId("zoom-out").addEventListener("click", () => zoom(2));
    byId("zoom-all").addEventListener("click", () => view(begin, end));
    new ResizeObserver(draw).observe(canvas.parentElement);
    draw();
  }

  function mark(numbers) {
    marked = new Set(numbers);
    draw();
  }

  return { setUp, draw, mark, drawn: () => passes.length };
})();
