// Pages that say how old they are: "updated 3 s ago", a bar while the farm does not answer, times in the reader's zone.
"use strict";

{
  const EVERY = 2_000; // milliseconds between two questions
  const LATE = 2_500; // after which an answer counts as missing: the bar appears within five seconds
  const NOTE = 8_000; // how long the note of an action stays

  let updated = Date.now(); // when a part of this page was last written by the farm
  let answered = Date.now(); // when the farm last answered anything
  let silent = false;
  let asking = false;

  const two = (number) => String(number).padStart(2, "0");
  const clock = (at) => `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;

  function age(milliseconds) {
    const seconds = Math.max(0, Math.round(milliseconds / 1000));
    if (seconds < 60) return `${seconds} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  }

  function stamp() {
    const place = document.querySelector("[data-stamp]");
    if (!place) return;
    place.hidden = false;
    const text = `updated ${age(Date.now() - updated)} ago`;
    if (place.textContent !== text) place.textContent = text;
    place.title = `at ${clock(new Date(updated))}`;
  }

  function bar(text) {
    const place = document.getElementById("silent");
    if (!place) return;
    place.hidden = !text;
    if (place.textContent !== text) place.textContent = text;
    document.documentElement.classList.toggle("stale", Boolean(text));
  }

  function lost() {
    if (silent) return;
    silent = true;
    bar(`No answer since ${clock(new Date(answered))}. What you see may be old; this page goes on by itself when the farm answers.`);
  }

  function found() {
    answered = Date.now();
    if (!silent) return;
    silent = false;
    bar("");
    reconnect();
  }

  // A stream that was cut is opened again now, not after its next delay.
  function reconnect() {
    for (const part of document.querySelectorAll("[hx-sse\\:connect]")) {
      const fresh = part.cloneNode(true);
      part.replaceWith(fresh);
      window.htmx?.process(fresh);
    }
    document.dispatchEvent(new CustomEvent("farm:back"));
  }

  async function ask() {
    if (document.hidden || asking) return;
    asking = true;
    try {
      const answer = await fetch("/farm/alive", { headers: { "HX-Request": "true" }, signal: AbortSignal.timeout(LATE), cache: "no-store" });
      if (answer.headers.has("HX-Redirect")) {
        if (!document.documentElement.dataset.keep) location.assign(`${answer.headers.get("HX-Redirect")}?next=${encodeURIComponent(location.pathname + location.search)}`);
      } else if (answer.ok) {
        const text = await answer.text();
        const place = document.getElementById("notices");
        if (place && place.dataset.text !== text) {
          place.dataset.text = text;
          if (place.innerHTML.trim() !== text.trim()) place.innerHTML = text;
        }
        found();
      } else lost();
    } catch {
      lost();
    }
    asking = false;
  }

  // -- times in the reader's zone, with UTC on hover -----------------------------------------------------------------
  function local(root) {
    for (const one of root.querySelectorAll("time[datetime]")) {
      if (!one.textContent.endsWith(" UTC")) continue;
      const at = new Date(one.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      one.title = one.textContent;
      one.textContent = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(at)}`;
    }
  }

  function wrote() {
    updated = Date.now();
    found();
    local(document);
    stamp();
  }

  document.addEventListener("htmx:after:swap", wrote);
  document.addEventListener("htmx:sse:after:message", wrote);
  document.addEventListener("htmx:error", () => ask());
  document.addEventListener("htmx:sse:error", () => ask());
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  addEventListener("offline", lost);
  addEventListener("online", () => ask());

  document.addEventListener("DOMContentLoaded", () => {
    local(document);
    if (!document.querySelector("[data-stamp]")) return;
    stamp();
    setInterval(stamp, 1_000);
    setInterval(ask, EVERY);
    const note = document.querySelector("main > .note");
    if (note) setTimeout(() => note.remove(), NOTE);
  });
}
