// The studio's stage: how far a job is, its preview, its outputs with what may be done with each, and comparing two.
"use strict";

{
  const { make } = window.studio;
  let compared = null; // the output that the next one is compared with

  function duration(seconds) {
    if (seconds < 1) return "a moment";
    if (seconds < 100) return `${Math.round(seconds)} s`;
    return `${Math.round(seconds / 60)} min`;
  }

  function progress(job) {
    if (job.state === "queued" || job.state === "pending") {
      const place = job.position ? `Place ${job.position.toLocaleString("en")}${job.eta_seconds ? `, finished in about ${duration(job.eta_seconds)}` : ""}.` : "";
      return ["Waiting", `${place}${job.waiting_reason ? ` ${job.waiting_reason[0].toUpperCase()}${job.waiting_reason.slice(1)}.` : ""}`];
    }
    if (job.state === "dispatched") return ["At a worker", "It starts when its device is free."];
    const left = job.eta_seconds >= 1 ? `about ${duration(job.eta_seconds)} left` : "";
    return [job.steps ? `Step ${job.step} of ${job.steps}` : "Starting", left];
  }

  function media(output, prompt, thumb) {
    const kind = output.media_type.split("/")[0];
    if (kind === "video" && !thumb) return make("video", { src: output.url, controls: true, loop: true, autoplay: true, muted: true, "aria-label": prompt });
    if (kind === "audio" && !thumb) return make("audio", { src: output.url, controls: true, "aria-label": prompt });
    const image = make("img", { src: thumb ? `${output.url}?side=160` : output.url, alt: prompt.slice(0, 200), loading: thumb ? "lazy" : "eager" });
    if (output.width) { image.width = output.width; image.height = output.height; }
    return image;
  }

  function button(text, act, title = "") {
    const one = make("button", { type: "button", title }, text);
    one.addEventListener("click", act);
    return one;
  }

  function output(job, one, actions) {
    const image = one.media_type.startsWith("image/");
    const prompt = job.parameters.prompt ?? "";
    const all = [
      button("Use prompt", () => actions.use(job, one, ["prompt", "negative_prompt"])),
      button("Use seed", () => actions.use(job, one, ["seed"])),
      button("Use all", () => actions.use(job, one, null)),
      actions.takes("input", one) ? button("Use as input", () => actions.input(job, one)) : null,
      image && actions.takes("inpainting", one) ? button("Inpaint this", () => actions.task("inpainting", job, one)) : null,
      image && actions.takes("upscaling", one) ? button("Upscale", () => actions.task("upscaling", job, one)) : null,
      image ? button(compared && compared.url !== one.url ? "Compare with the marked one" : compared ? "Marked to compare" : "Compare…", () => {
        if (compared && compared.url !== one.url) { compare(compared, one); compared = null; } else compared = one;
        studio.show(job, actions);
      }) : null,
      make("a", { class: "button", href: one.url, download: "" }, "Save"),
      make("a", { class: "button", href: `/farm/jobs/${job.id}` }, "The job"),
    ];
    return make("figure", { class: "made" }, media(one, prompt, false), make("figcaption", {}, make("span", { class: "sub" }, `seed ${one.seed}${one.width ? ` · ${one.width} × ${one.height}` : ""}`), make("div", { class: "acts" }, ...all.filter(Boolean))));
  }

  // Two images over each other, with a slider between them.
  function compare(first, second) {
    const over = make("img", { src: second.url, alt: `seed ${second.seed}`, class: "over" });
    const range = make("input", { type: "range", min: 0, max: 100, value: 50, step: 0.5, "aria-label": "Where the one ends and the other begins" });
    const follow = () => { over.style.clipPath = `inset(0 0 0 ${range.value}%)`; };
    range.addEventListener("input", follow);
    const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
    const dialog = make("dialog", { class: "compare", "aria-label": "Compare two images" }, make("div", { class: "pairing" }, make("img", { src: first.url, alt: `seed ${first.seed}` }), over), range, make("p", { class: "sub" }, `left: seed ${first.seed} · right: seed ${second.seed}`), close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    follow();
    dialog.showModal();
    range.focus();
  }
  studio.compare = compare;

  // Show a job: whatever it is now. Nodes that stay the same are kept, so a video goes on playing.
  studio.show = (job, actions) => {
    const place = document.getElementById("result");
    const face = job.over ? `${job.id} ${job.state} ${job.outputs.length} ${compared?.url ?? ""}` : job.id;
    if (job.over && place.dataset.face === face) return;
    if (job.over) {
      const parts = job.outputs.map((one) => output(job, one, actions));
      if (job.state !== "succeeded") parts.push(make("p", { class: `banner ${job.state === "failed" ? "bad" : "warn"}` }, job.error ?? `This job is ${job.state}.`));
      for (const one of job.warnings) parts.push(make("p", { class: "banner warn" }, one));
      if (job.state === "succeeded" && !job.outputs.length) parts.push(make("p", { class: "empty" }, "Its outputs were deleted."));
      const grid = make("div", { class: job.outputs.length > 1 ? "several" : "one" }, ...parts);
      place.replaceChildren(make("p", { class: "prompted" }, job.parameters.prompt ?? "", make("span", { class: "sub" }, ` ${job.parameters.model}${job.seconds >= 0.1 ? ` · ${job.seconds.toFixed(1)} s` : ""}`)), grid);
    } else {
      if (place.dataset.face !== face) {
        const stop = button("Cancel", () => actions.cancel(job));
        stop.classList.add("danger");
        place.replaceChildren(make("div", { class: "panel progress" }, make("div", { class: "row" }, make("strong"), make("span", { class: "sub" }), stop), make("progress", { max: 1, value: 0, "aria-label": "Steps done" }), make("img", { class: "preview large", alt: "What the image looks like so far", hidden: true })));
      }
      const [now, why] = progress(job);
      place.querySelector("strong").textContent = now;
      place.querySelector(".row .sub").textContent = why;
      const bar = place.querySelector("progress");
      bar.max = job.steps || 1;
      bar.value = job.step || 0;
      if (job.preview) { const image = place.querySelector(".preview"); image.src = job.preview; image.hidden = false; }
    }
    place.dataset.face = face;
  };

  // One place of the history strip.
  studio.tile = (job, current, choose) => {
    const first = job.outputs[0];
    const text = (job.parameters.prompt ?? job.id).slice(0, 80);
    const inside = first ? media(first, text, true) : make("span", { class: `state ${job.state}` }, job.state);
    const one = make("button", { type: "button", title: text, "aria-label": `${text}, ${job.state}`, "aria-current": job.id === current ? "true" : "false" }, inside, job.outputs.length > 1 ? make("span", { class: "length" }, `× ${job.outputs.length}`) : null);
    one.addEventListener("click", () => choose(job.id));
    return make("li", {}, one);
  };
}
