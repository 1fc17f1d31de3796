"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

// What is kept while a page that is followed loads itself again; a file may have no storage.
const memory = {
  get(key) {
    try {
      return sessionStorage.getItem(location.pathname + key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      sessionStorage.setItem(location.pathname + key, value);
    } catch {
      /* the page works without */
    }
  },
};

/* ---- elements, whose text never becomes markup ---- */

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const crisp = new Set(data.crisp);

function setPicture(image, key) {
  const uri = data.pictures[key];
  if (uri) image.src = uri;
  image.classList.toggle("crisp", crisp.has(key));
}

// A name as it is shown: perhaps shortened, and in pieces that may stand in lines of their own.
function nameOf(text) {
  const pieces = Object.hasOwn(data.pieces, text) ? data.pieces[text] : [text];
  return pieces.flatMap((piece, at) => (at ? [make("wbr"), piece] : [piece]));
}

const counted = (count) => count.toLocaleString("en-GB");

function describe(key) {
  const [name, label] = data.names[key] ?? [key, null];
  return { name, label, says: label === null ? name : `${label}, ${name}` };
}

function pictureOf(key, role) {
  const image = make("img", { alt: `${role}: ${describe(key).says}`, decoding: "async" });
  setPicture(image, key);
  return image;
}

/* ---- theme ---- */

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function setTheme(name) {
  root.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
  for (const element of all(".chart.drawn")) Plotly.relayout(element, colours());
}

const chosenTheme = () => memory.get("theme") ?? (dark.matches ? "dark" : "light");

function colours() {
  const style = getComputedStyle(root);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
  const nested = {};
  for (const which of ["xaxis", "yaxis"]) {
    for (const [key, value] of Object.entries(axis)) nested[`${which}.${key}`] = value;
  }
  return {
    "font.color": ink,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "hoverlabel.bgcolor": style.getPropertyValue("--card").trim(),
    "hoverlabel.font.color": ink,
    ...nested,
  };
}

setTheme(chosenTheme());
byId("theme").addEventListener("click", () => {
  const name = root.dataset.theme === "dark" ? "light" : "dark";
  memory.set("theme", name);
  setTheme(name);
});
dark.addEventListener("change", () => {
  setTheme(chosenTheme());
});

/* ---- charts: the near ones first, the others when nothing else is to be done ---- */

// To read it takes a browser longer than everything else: what needs no chart is there before.
// A tab that nobody sees has no frames and little idle time; it draws its charts nevertheless.
const PATIENCE_MS = 500;
let plotly = null;

const afterFrame = () =>
  new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(resolve));
    setTimeout(resolve, PATIENCE_MS);
  });

const whenIdle = () =>
  new Promise((resolve) => {
    if (window.requestIdleCallback) requestIdleCallback(resolve, { timeout: PATIENCE_MS });
    else setTimeout(resolve);
  });

function loadPlotly() {
  plotly ??= afterFrame().then(() => {
    document.head.append(make("script", {}, byId("plotly").textContent));
  });
  return plotly;
}

const PAPER_WIDTH = 640;
const begun = new Set();

async function draw(element) {
  if (begun.has(element)) return;
  begun.add(element);
  await loadPlotly();
  const chart = data.charts[element.dataset.chart];
  element.classList.add("drawn");
  const layout = {
    margin: { l: 56, r: 12, t: 28, b: 48 },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    font: { family: "system-ui, sans-serif" },
    hovermode: "x unified",
    ...chart.layout,
    xaxis: { automargin: true, ...chart.layout.xaxis },
    yaxis: { automargin: true, ...chart.layout.yaxis },
  };
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  await Plotly.newPlot(element, chart.data, layout, options);
  await Plotly.relayout(element, colours());
  const select = document.querySelector(`[data-views="${element.dataset.chart}"]`);
  if (select) await show(element, chart, Number(select.value));
  if (element.dataset.chart === "map") watchMap(element);
  element.dataset.ready = "";
}

function show(element, chart, number) {
  const view = chart.views[number];
  const visible = chart.data.map((_, at) => view.traces.includes(at));
  const layout = element.dataset.chart === "map" ? {} : { shapes: view.shapes };
  return Plotly.update(element, { visible }, layout);
}

const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }
  },
  { rootMargin: "400px" },
);
for (const element of all(".chart")) near.observe(element);

// A page that is printed has them all, as wide as paper and dark on white.
async function drawOthers() {
  for (const element of all(".chart")) {
    await whenIdle();
    await draw(element);
  }
}
window.addEventListener("load", drawOthers);
window.addEventListener("beforeprint", () => {
  setTheme("light");
  for (const element of all(".chart.drawn")) Plotly.relayout(element, { width: PAPER_WIDTH });
});
window.addEventListener("afterprint", () => {
  setTheme(chosenTheme());
  for (const element of all(".chart.drawn")) Plotly.relayout(element, { width: null, autosize: true });
});

for (const select of all("[data-views]")) {
  const key = select.dataset.views;
  const before = memory.get(`views-${key}`);
  if (before !== null && select.options[before]) select.value = before;
  select.addEventListener("change", () => {
    memory.set(`views-${key}`, select.value);
    const element = document.querySelector(`[data-chart="${key}"]`);
    if (element.classList.contains("drawn")) show(element, data.charts[key], Number(select.value));
  });
}

/* ---- the map: point at an image, or walk with the arrow keys ---- */

function watchMap(element) {
  const shownTraces = () => element.data.map((t, at) => [t, at]).filter(([t]) => t.visible === true);
  let place = -1;
  element.on("plotly_hover", ({ points }) => preview(points[0].customdata));
  element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const points = shownTraces().flatMap(([trace, curve]) =>
      trace.customdata.map((key, at) => ({ key, curve, at })),
    );
    place = (place + step + points.length) % points.length;
    const { key, curve, at } = points[place];
    Plotly.Fx.hover(element, [{ curveNumber: curve, pointNumber: at }]);
    preview(key);
  });
}

function preview(key) {
  const panel = byId("preview");
  const image = panel.querySelector("img");
  const { says } = describe(key);
  image.hidden = !(key in data.pictures);
  image.alt = says;
  setPicture(image, key);
  panel.querySelector("span").textContent = says;
}

/* ---- pictures of the fixed parts ---- */

for (const image of all("[data-picture]")) setPicture(image, image.dataset.picture);

/* ---- the browser of neighbourhoods ---- */

function neighbourFigure(key, anchorLabel) {
  const { label, name, says } = describe(key);
  const caption = make("figcaption");
  if (label === null) {
    caption.append(...nameOf(name));
  } else if (label === anchorLabel) {
    caption.append(make("span", { class: "same" }, "✓ same class"));
  } else {
    caption.append(make("span", { class: "other" }, "✗ ", ...nameOf(label)));
  }
  const figure = make("figure", { class: "near", title: says }, pictureOf(key, "neighbour"), caption);
  return figure;
}

function hoodOf(example) {
  const key = `r${example.row}`;
  const { label, name, says } = describe(key);
  const entropy = `${example.band} entropy ${example.entropy.toFixed(3)}`;
  const caption = make("figcaption", {}, ...nameOf(label ?? name), make("br"), entropy);
  const anchor = make("figure", { title: says }, pictureOf(key, "anchor"), caption);
  const others = example.neighbours.map((row) => neighbourFigure(`r${row}`, label));
  return make("li", {}, anchor, ...others);
}

function hubOf([row, count]) {
  const key = `r${row}`;
  const { label, name, says } = describe(key);
  const times = `neighbour of ${counted(count)}`;
  const caption = make("figcaption", {}, ...nameOf(label ?? name), make("br"), times);
  return make("li", {}, make("figure", { title: says }, pictureOf(key, "hub"), caption));
}

// A page of anchors has about so many pictures, and never fewer or more anchors than these.
const PICTURES_OF_PAGE = 30;
const ANCHORS_OF_PAGE = [6, 12];
const MANY_NEIGHBOURS = 4;

// Shows a page of a round's anchors. The page stands in the address as #anchors-2.
function startBrowser() {
  const chosen = {
    round: byId("by-round"),
    band: byId("by-band"),
    label: byId("by-class"),
    page: byId("by-page"),
  };
  const rounds = data.rounds;
  for (const { round } of rounds) chosen.round.append(make("option", { value: round }, `${round}`));
  const labelOf = (example) => describe(`r${example.row}`).label;
  const labels = new Set(rounds.flatMap((round) => round.examples.map(labelOf)));
  labels.delete(null);
  for (const label of [...labels].sort()) chosen.label.append(make("option", { value: label }, label));
  byId("class-label").hidden = labels.size === 0;
  const neighbours = Math.max(...rounds.flatMap((r) => r.examples.map((e) => e.neighbours.length)));
  const [fewest, most] = ANCHORS_OF_PAGE;
  const perPage = Math.max(fewest, Math.min(most, Math.floor(PICTURES_OF_PAGE / (1 + neighbours))));
  byId("hoods").style.setProperty("--neighbours", neighbours);
  byId("hoods").classList.toggle("many", neighbours >= MANY_NEIGHBOURS);
  chosen.round.value = rounds[rounds.length - 1].round;

  function wanted() {
    const round = rounds.find((r) => String(r.round) === chosen.round.value);
    const examples = round.examples.filter(
      (example) =>
        (!chosen.band.value || example.band === chosen.band.value) &&
        (!chosen.label.value || labelOf(example) === chosen.label.value),
    );
    return { round, examples, pages: Math.max(1, Math.ceil(examples.length / perPage)) };
  }

  function show(number) {
    const { round, examples, pages } = wanted();
    const page = Math.min(Math.max(1, number), pages);
    const first = (page - 1) * perPage;
    const shown = examples.slice(first, first + perPage);
    const options = Array.from({ length: pages }, (_, at) => make("option", {}, `${at + 1}`));
    chosen.page.replaceChildren(...options);
    chosen.page.value = page;
    byId("pager").hidden = pages === 1;
    byId("previous").setAttribute("aria-disabled", String(page === 1));
    byId("next").setAttribute("aria-disabled", String(page === pages));
    const span = shown.length > 1 ? `${first + 1} to ${first + shown.length}` : `${first + shown.length}`;
    const of = examples.length === round.examples.length ? "" : `, ${round.examples.length} in all`;
    byId("count").textContent = `${span} of ${counted(examples.length)} anchors${of}`;
    byId("hoods").replaceChildren(...shown.map(hoodOf));
    byId("hubs").replaceChildren(...round.hubs.map(hubOf));
  }

  function turnTo(number) {
    const page = Math.min(Math.max(1, number), wanted().pages);
    if (page === Number(chosen.page.value)) return;
    show(page);
    keepPage();
  }

  function keepPage() {
    memory.set("browse-page", chosen.page.value);
    history.replaceState(null, "", `#anchors-${chosen.page.value}`);
  }

  const pageInAddress = () => Number(/^#anchors-(\d+)$/.exec(location.hash)?.[1] ?? 0);

  function followAddress() {
    if (!pageInAddress()) return;
    show(pageInAddress());
    byId("anchors").scrollIntoView();
  }

  for (const [key, select] of Object.entries(chosen)) {
    const before = memory.get(`browse-${key}`);
    if (before !== null && [...select.options].some((o) => o.value === before)) select.value = before;
    select.addEventListener("change", () => {
      memory.set(`browse-${key}`, select.value);
      show(key === "page" ? Number(select.value) : 1);
      keepPage();
    });
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", () => turnTo(Number(chosen.page.value) - 1));
  byId("next").addEventListener("click", () => turnTo(Number(chosen.page.value) + 1));
  window.addEventListener("hashchange", followAddress);
  show(Number(memory.get("browse-page") ?? 1));
  followAddress();

  let before = 1;
  window.addEventListener("beforeprint", () => {
    before = Number(chosen.page.value);
    show(1);
  });
  window.addEventListener("afterprint", () => show(before));
}

if (byId("anchors")) startBrowser();

/* ---- a page that is followed ---- */

if (document.body.dataset.follow) {
  const top = memory.get("top");
  if (top !== null) window.scrollTo(0, Number(top));
  const pause = byId("pause");
  const isPaused = () => pause.getAttribute("aria-pressed") === "true";
  pause.setAttribute("aria-pressed", memory.get("paused") ?? "false");
  pause.addEventListener("click", () => {
    memory.set("paused", String(!isPaused()));
    pause.setAttribute("aria-pressed", String(!isPaused()));
    if (isPaused()) window.stop(); // a newer page that is on its way
  });
  setInterval(async () => {
    if (isPaused()) return;
    try {
      const answer = await fetch("version", { cache: "no-store" });
      const isNewer = answer.ok && (await answer.text()) !== document.body.dataset.version;
      if (isNewer && !isPaused()) {
        memory.set("top", String(window.scrollY));
        location.reload();
      }
    } catch {
      /* whoever serves it is gone; what is here stays */
    }
  }, 1000 * Number(document.body.dataset.follow));
}
