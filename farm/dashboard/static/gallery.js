// The gallery: endless scroll, stars in place, ticking by range and by keys. Without this it is pages, ticks and buttons.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const wall = document.getElementById("wall");
  if (!wall) return;
  const form = wall.closest("form");

  // -- endless scroll: the next page comes before its place is in sight -----------------------------------------------
  let loading = false;
  async function more(link) {
    if (loading) return;
    loading = true;
    const place = link.closest(".more");
    place.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(link.href, { headers: { "HX-Request": "true" } });
      if (!answer.ok || answer.status === 204) throw new Error(answer.statusText);
      const part = document.createElement("template");
      part.innerHTML = await answer.text();
      place.replaceWith(part.content);
    } catch {
      place.removeAttribute("aria-busy"); // the link stays, and the bar says why nothing comes
    }
    loading = false;
    watch();
  }
  const observer = new IntersectionObserver((seen) => {
    for (const one of seen) if (one.isIntersecting) more(one.target);
  }, { rootMargin: "1200px" });
  function watch() {
    observer.disconnect();
    const link = wall.querySelector("[data-more]");
    if (link) observer.observe(link);
  }
  watch();
  document.addEventListener("farm:back", watch);

  // -- stars ------------------------------------------------------------------------------------------------------------
  async function star(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    const body = new URLSearchParams({ action: on ? "star" : "unstar", place: button.dataset.star });
    let done = false;
    try {
      done = (await fetch("/farm/gallery/act", { method: "POST", body, headers: { "HX-Request": "true" } })).status === 204;
    } catch { /* taken back below */ }
    if (!done) button.setAttribute("aria-pressed", String(!on));
    button.closest(".shot").classList.toggle("starred", button.getAttribute("aria-pressed") === "true");
  }

  // -- ticking ----------------------------------------------------------------------------------------------------------
  const boxes = () => [...wall.querySelectorAll("input[name=place]")];
  let last = null;
  function tell() {
    const count = boxes().filter((box) => box.checked).length;
    form.querySelector("[data-count]").textContent = count ? `${count} ticked:` : "Tick outputs to";
    form.querySelector(".bulk").classList.toggle("on", count > 0);
  }
  wall.addEventListener("click", (event) => {
    const button = event.target.closest("[data-star]");
    if (button) { star(button); return; }
    const box = event.target.closest("input[name=place]");
    if (!box) return;
    if (event.shiftKey && last?.isConnected) {
      const all = boxes();
      const [from, to] = [all.indexOf(last), all.indexOf(box)].sort((one, two) => one - two);
      for (const one of all.slice(from, to + 1)) one.checked = box.checked;
    }
    last = box;
    tell();
  });
  form.querySelector("[data-all]").addEventListener("change", (event) => {
    for (const box of boxes()) box.checked = event.target.checked;
    tell();
  });
  addEventListener("pageshow", tell);

  // -- keys: arrows go from output to output, x ticks, s stars ----------------------------------------------------------
  wall.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const shot = event.target.closest(".shot");
    if (!shot) return;
    if (event.key === "x") shot.querySelector("input[name=place]").click();
    else if (event.key === "s") { const button = shot.querySelector("[data-star]"); if (button) star(button); }
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const shots = [...wall.querySelectorAll(".shot")];
      shots[shots.indexOf(shot) + (event.key === "ArrowRight" ? 1 : -1)]?.querySelector("a.thumb").focus();
    } else return;
    event.preventDefault();
  });
});
