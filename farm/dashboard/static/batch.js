// The form of a batch: a file may be dropped, and what a check finds comes into the page, which keeps the file.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("#new-batch");
  const found = document.querySelector("#checked");
  const drop = form.querySelector(".drop");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) {
        form.elements.file.files = event.dataTransfer.files;
        form.elements.file.dispatchEvent(new Event("change", { bubbles: true }));
      }
    });
  }
  form.addEventListener("change", () => { found.textContent = ""; }); // what was found is about another file, or other defaults
  form.addEventListener("submit", async (event) => {
    if (event.submitter?.value !== "check") return;
    event.preventDefault();
    const body = new FormData(form, event.submitter);
    event.submitter.disabled = true;
    found.textContent = "Looking through the file …";
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { "HX-Request": "true" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      found.replaceChildren(...(page.querySelector("main") ?? page.body).childNodes);
    } catch {
      found.textContent = "The farm does not answer, or the file is too large for a page: send it with farm batch or the API.";
    }
    event.submitter.disabled = false;
  });
});
