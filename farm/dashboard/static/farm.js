// What the pages do beside htmx: the chart, the lightbox, copying, and staying quiet in a tab that nobody looks at.
"use strict";

document.documentElement.classList.add("js");

// -- polling --------------------------------------------------------------------------------------------------------
// A hidden tab asks for nothing, nor does a page on which somebody is typing, ticking or reading an image.
document.addEventListener("htmx:config:request", (event) => {
  const source = event.detail.ctx.sourceElement;
  const polls = (source.getAttribute("hx-trigger") || "").startsWith("every");
  const busy = document.querySelector("dialog[open]") || source.querySelector("input:checked, :focus");
  if (polls && (document.hidden || busy)) event.preventDefault();
});

// -- the chart ------------------------------------------------------------------------------------------------------
const charts = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function hour(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

function day(at) {
  return new Date(at * 1000).toLocaleDateString([], { day: "numeric", month: "short", timeZone: "UTC" });
}

// Two kinds: the last day's pace, and one number for each day.
function columns(series) {
  if (series.at) return [series.at, series.values];
  const now = Date.now() / 1000;
  return [series.before.map((seconds) => now - seconds), series.images, series.failed];
}

function draw(box, series) {
  charts.get(box)?.destroy();
  box.textContent = "";
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const options = {
    width: box.clientWidth - 16, height: box.clientHeight - 16, padding: [8, 8, 0, 0], legend: { show: true, live: true },
    cursor: { points: { size: 6 } }, scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.15)] } },
    axes: [{ ...axis, size: 30, space: 70, values: (_, all) => all.map(hour) }, { ...axis, size: 44 }],
    series: [
      { label: "At", value: (_, at) => (at == null ? "–" : hour(at)) },
      { label: "images per minute", value: (_, found) => found ?? "–", stroke: colour("--run-fill"), fill: colour("--accent-soft"), width: 2, points: { show: false } },
      { label: "failed per minute", value: (_, found) => found ?? "–", stroke: colour("--bad-fill"), width: 1.5, points: { show: false } },
    ],
  };
  if (series.at) {
    options.axes[0].values = (_, all) => all.map(day);
    options.scales.x = { range: (_, first, last) => [first - 43_200, last + 43_200] }; // room for half a bar
    options.series = [
      { label: "Day", value: (_, at) => (at == null ? "–" : day(at)) },
      { label: box.dataset.label, value: (_, found) => found ?? "–", stroke: colour("--run-fill"), fill: colour("--run-fill"), paths: uPlot.paths.bars({ size: [0.7, 40] }), points: { show: false } },
    ];
  }
  options.height -= box.clientWidth < 500 ? 46 : 26; // the legend's lines
  charts.set(box, new uPlot(options, columns(series), box));
}

function drawAll() {
  if (typeof uPlot === "undefined") return;
  for (const box of document.querySelectorAll("[data-chart]")) draw(box, JSON.parse(box.dataset.first));
}

async function refresh(box) {
  if (document.hidden) return;
  const answer = await fetch(box.dataset.chart, { headers: { "HX-Request": "true" } });
  if (!answer.ok || answer.status === 204) return;
  box.dataset.first = await answer.text();
  charts.get(box)?.setData(columns(JSON.parse(box.dataset.first)));
}

// -- one image, large ---------------------------------------------------------------------------------------------
let box = null;
let shown = null;

function lightbox() {
  if (box) return box;
  box = document.createElement("dialog");
  box.className = "lightbox";
  box.setAttribute("aria-label", "Image");
  box.innerHTML =
    '<figure><img alt=""><figcaption><span></span><p></p></figcaption></figure>' +
    '<button type="button" class="earlier" aria-label="Previous">‹</button>' +
    '<button type="button" class="later" aria-label="Next">›</button>' +
    '<button type="button" class="close" aria-label="Close">×</button>';
  box.querySelector(".close").addEventListener("click", () => box.close());
  box.querySelector(".earlier").addEventListener("click", () => move(-1));
  box.querySelector(".later").addEventListener("click", () => move(1));
  box.addEventListener("click", (event) => { if (event.target === box || event.target.tagName === "FIGURE") box.close(); });
  addEventListener("popstate", () => { if (box.open) box.close("back"); });
  box.addEventListener("close", () => {
    if (box.returnValue !== "back" && history.state?.lightbox) history.back();
    box.returnValue = ""; box.querySelector("figure").firstElementChild.replaceWith(document.createElement("img")); });
  box.addEventListener("keydown", (event) => {
    if (event.target.closest("video, audio")) return; // a player's own keys
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  document.body.append(box);
  return box;
}

function show(link) {
  shown = link;
  const dialog = lightbox();
  const media = document.createElement(link.dataset.element || "img");
  if (media.tagName === "IMG") media.alt = link.dataset.caption;
  else Object.assign(media, { controls: true, autoplay: true, loop: media.tagName === "VIDEO", ariaLabel: link.dataset.caption });
  media.src = link.dataset.lightbox;
  dialog.querySelector("figure").firstElementChild.replaceWith(media);
  dialog.querySelector("span").textContent = link.dataset.caption;
  const about = dialog.querySelector("p");
  about.textContent = link.dataset.about + " · ";
  const there = document.createElement("a");
  there.href = link.dataset.lightbox.replace("/images/", "/jobs/").replace(/\/\d+$/, "");
  there.textContent = "the job";
  about.append(there);
  if (dialog.open) return;
  dialog.showModal();
  history.pushState({ lightbox: true }, ""); // Back closes it
}

function move(by) {
  const all = [...document.querySelectorAll("a[data-lightbox]")];
  const at = all.findIndex((one) => one === shown || one.dataset.lightbox === shown.dataset.lightbox);
  if (all.length) show(all[(at + by + all.length) % all.length]);
}

// -- copying: browsers give scripts the clipboard over HTTPS and on this machine alone ------------------------------
async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// -- clicks ---------------------------------------------------------------------------------------------------------
document.addEventListener("click", async (event) => {
  if (event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const link = event.target.closest("a[data-lightbox]");
  if (link) {
    event.preventDefault();
    show(link);
    return;
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    await writeClipboard(document.querySelector(copy.dataset.copy).textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  }
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.sure;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("change", (event) => {
  const form = event.target.closest("form");
  const label = form?.querySelector("[data-picked]");
  if (!label) return;
  const count = form.querySelectorAll("input[name=job]:checked").length;
  label.textContent = `${count} ticked:`;
  label.closest(".bulk").classList.toggle("on", count > 0);
});

document.addEventListener("DOMContentLoaded", () => {
  drawAll();
  setInterval(() => document.querySelectorAll("[data-chart]").forEach(refresh), 60_000);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
});
