// The studio: keeps what was typed and made, submits, follows, and gives outputs back to the form.
"use strict";

document.addEventListener("DOMContentLoaded", async () => {
  const root = document.getElementById("studio");
  if (!root) return;
  const { make } = studio;
  studio.setup = JSON.parse(root.dataset.setup);
  const form = document.getElementById("settings");
  const fields = document.getElementById("fields");
  const problems = document.getElementById("problems");
  const strip = document.getElementById("history");
  const KEEP = `farm.studio.${studio.setup.key}`; // of the key that is signed in: two people at one browser keep apart
  const MOST = 60; // jobs of the history
  document.documentElement.dataset.keep = "1"; // a session that ends does not take the page away: see `call`

  // -- what is kept: in this browser, after each change --------------------------------------------------------------
  const state = { task: "", model: "", values: {}, files: {}, jobs: [], current: "" };
  try { Object.assign(state, JSON.parse(localStorage.getItem(KEEP) ?? "{}")); } catch { /* begin anew */ }
  function keep() {
    state.jobs = state.jobs.slice(0, MOST);
    try { localStorage.setItem(KEEP, JSON.stringify(state)); } catch { /* full: this page goes on without */ }
  }

  async function call(path, options = {}) {
    const answer = await fetch(`/farm/studio/${path}`, { ...options, headers: { "HX-Request": "true", ...options.headers } });
    if (answer.headers.has("HX-Redirect")) {
      const there = make("a", { href: `/farm/login?next=${encodeURIComponent("/farm/studio")}` }, "Sign in again");
      problems.replaceChildren(make("p", { class: "banner warn" }, "Your session has ended. ", there, "; what you wrote is kept."));
      throw new Error("signed out");
    }
    return { ok: answer.ok, body: (answer.headers.get("Content-Type") ?? "").includes("json") ? await answer.json() : {} };
  }

  const told = document.getElementById("told");
  const say = (text) => { told.textContent = text; };

  // -- the form ------------------------------------------------------------------------------------------------------
  const models = new Map();
  let model = null;
  const taskChoice = form.elements.task;
  const modelChoice = form.elements.model;
  const tasks = [...new Set(studio.setup.models.flatMap((one) => one.tasks))];

  function choices() {
    if (!tasks.includes(state.task)) state.task = tasks[0] ?? "";
    taskChoice.replaceChildren(...tasks.map((one) => make("option", { value: one, selected: one === state.task }, one)));
    const fitting = studio.setup.models.filter((one) => one.tasks.includes(state.task));
    if (!fitting.some((one) => one.id === state.model)) state.model = fitting[0]?.id ?? "";
    modelChoice.replaceChildren(...fitting.map((one) => make("option", { value: one.id, selected: one.id === state.model, title: one.description }, one.id)));
  }

  async function draw() {
    choices();
    if (!state.model) { fields.replaceChildren(make("p", { class: "empty" }, "No model is registered.")); return; }
    if (!models.has(state.model)) {
      const { ok, body } = await call(`models/${state.model.split("/").map(encodeURIComponent).join("/")}`);
      if (!ok) { fields.replaceChildren(make("p", { class: "banner bad" }, "The model's parameters could not be read. Reload the page.")); return; }
      models.set(state.model, body);
    }
    model = models.get(state.model);
    document.getElementById("about").textContent = model.description;
    studio.draw(fields, model, state.task, fileField);
    studio.fill(fields, state.values);
    keep();
  }

  // Values of fields that another model or task has are kept for when it is chosen again.
  function read() {
    const shown = new Set([...fields.querySelectorAll("[name]")].map((one) => one.name));
    const others = Object.entries(state.values).filter(([name]) => !shown.has(name) && !(name === "loras" && fields.querySelector("[data-lora]")));
    state.values = { ...Object.fromEntries(others), ...studio.values(fields) };
    keep();
  }
  fields.addEventListener("input", read);
  fields.addEventListener("change", read);
  taskChoice.addEventListener("change", () => { state.task = taskChoice.value; draw(); });
  modelChoice.addEventListener("change", () => { state.model = modelChoice.value; draw(); });

  // -- input files ---------------------------------------------------------------------------------------------------
  async function store(body) {
    say("Uploading…");
    const { ok, body: found } = await call("files", { method: "POST", body });
    say(ok ? "Uploaded." : "");
    if (!ok) throw new Error(found.errors?.[0]?.message ?? "The file was not accepted.");
    return found;
  }
  async function upload(role, data, name) {
    const body = new FormData();
    if (typeof data === "string") body.set("output", data);
    else body.set("file", data, name ?? data.name ?? "image.png");
    try {
      const file = await store(body);
      const many = model?.schemas[state.task]?.properties[role]?.type === "array";
      state.files[role] = many ? [...(state.files[role] ?? []), file] : [file];
      if (role === "image" && state.files.mask_image) delete state.files.mask_image; // it was painted over another image
      complain([]);
    } catch (error) { if (error.message !== "signed out") complain([{ field: role, message: error.message }]); return; }
    keep();
    await draw();
  }

  function fileField(role, schema, required) {
    const known = studio.setup.files[role];
    const input = make("input", { type: "file", id: `file-${role}`, class: "hidden", accept: known.accept });
    input.addEventListener("change", () => { if (input.files[0]) upload(role, input.files[0]); });
    const given = state.files[role] ?? [];
    const shown = given.map((file, at) => {
      const drop = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${known.label}` }, "×");
      drop.addEventListener("click", () => { state.files[role] = given.filter((_, number) => number !== at); keep(); draw(); });
      return make("span", { class: "given" }, make("img", { src: `${file.url}?side=160`, alt: known.label }), drop);
    });
    const parts = [make("label", { class: "button", for: input.id }, given.length ? "Another file" : "Choose a file"), input];
    if (role === "mask_image") {
      const paint = make("button", { type: "button", id: "paint" }, given.length ? "Paint on" : "Paint the mask");
      paint.disabled = !state.files.image?.length;
      paint.title = paint.disabled ? "Choose the image first" : "";
      paint.addEventListener("click", async () => {
        const made = await studio.paint(state.files.image[0].url, given[0]?.url);
        if (made) await upload("mask_image", made, "mask.png");
        document.getElementById("paint")?.focus();
      });
      parts.unshift(paint);
    }
    const box = make("fieldset", { class: "field dropping", "data-field": role, "data-role": role }, make("legend", { title: known.hint }, known.label + (required ? "" : ", optional")), ...shown, make("div", { class: "acts" }, ...parts), make("span", { class: "hint" }, known.hint));
    return box;
  }

  // -- submitting ----------------------------------------------------------------------------------------------------
  function complain(errors) {
    for (const one of form.querySelectorAll(".field.wrong")) { one.classList.remove("wrong"); one.querySelector(".bad")?.remove(); one.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid"); }
    const rest = [];
    for (const { field, message } of errors) {
      const name = field.replace(/\[.*$/, "");
      const box = form.querySelector(`[data-field="${CSS.escape(field)}"]`) ?? form.querySelector(`[data-field="${CSS.escape(name)}"]`);
      if (!box) { rest.push(`${field ? `${field}: ` : ""}${message}`); continue; }
      const place = box.closest(".field") ?? box;
      place.classList.add("wrong");
      place.append(make("span", { class: "bad" }, message));
      (place.querySelector("[name]") ?? place.querySelector("input, select, textarea"))?.setAttribute("aria-invalid", "true");
      place.closest("details")?.setAttribute("open", "");
    }
    problems.replaceChildren(...(errors.length ? [make("p", { class: "banner bad" }, rest.length ? rest.join(" ") : `${errors.length} ${errors.length === 1 ? "field" : "fields"} to correct.`)] : []));
    form.querySelector(".field.wrong [name], .field.wrong input")?.focus();
  }

  let sending = false;
  async function submit(count) {
    if (sending || !model) return;
    read();
    const schema = model.schemas[state.task];
    let body;
    try { body = studio.request(state.values, schema); } catch (error) { complain([{ field: error.field, message: error.message }]); return; }
    Object.assign(body, { task: state.task, model: state.model, priority: body.priority ?? "interactive" });
    if (schema.properties.preview) body.preview = true;
    if (count) body.num_outputs = Math.min(count, schema.properties.num_outputs?.maximum ?? count);
    for (const role of studio.setup.roles[state.task] ?? []) {
      const given = state.files[role] ?? [];
      if (given.length && schema.properties[role]) body[role] = schema.properties[role].type === "array" ? given.map((one) => one.id) : given[0].id;
    }
    sending = true;
    try {
      const { ok, body: found } = await call("jobs", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
      if (ok) {
        complain([]);
        seen.set(found.id, found);
        state.jobs.unshift(found.id);
        choose(found.id);
      } else complain(found.errors ?? [{ field: "", message: "The farm did not accept it." }]);
    } catch (error) {
      if (error.message !== "signed out") complain([{ field: "", message: "The farm does not answer. What you wrote is kept; send it again." }]);
    }
    sending = false;
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(0); });
  document.getElementById("four").addEventListener("click", () => submit(4));
  document.getElementById("clear").addEventListener("click", () => { Object.assign(state, { values: {}, files: {} }); complain([]); draw(); });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(event.shiftKey ? 4 : 0); }
    else if (event.key === "/" && !event.target.closest("input, textarea, select")) { event.preventDefault(); fields.querySelector("[name=prompt]")?.focus(); }
  });

  // -- following -----------------------------------------------------------------------------------------------------
  const seen = new Map(); // jobs by id
  let source = null;

  function got(job) {
    const before = seen.get(job.id);
    seen.set(job.id, job);
    if (job.id === state.current) studio.show(job, actions);
    if (!before || before.state !== job.state || before.outputs.length !== job.outputs.length) {
      list();
      if (job.id === state.current && job.over) say(job.state === "succeeded" ? `Rendered: ${job.outputs.length} ${job.outputs.length === 1 ? "output" : "outputs"}.` : `The job ${job.state}.`);
    }
  }
  function follow(id) {
    source?.close();
    source = null;
    if (seen.get(id)?.over) return;
    source = new EventSource(`/farm/studio/jobs/${id}/events`);
    source.onmessage = (event) => {
      const job = JSON.parse(event.data);
      got(job);
      if (job.over) source?.close();
    };
  }
  function choose(id) {
    state.current = id;
    keep();
    const job = seen.get(id);
    if (job) studio.show(job, actions);
    list();
    follow(id);
  }
  function list() {
    const focused = strip.contains(document.activeElement) ? [...strip.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    strip.replaceChildren(...state.jobs.filter((id) => seen.has(id)).map((id) => studio.tile(seen.get(id), state.current, choose)));
    if (focused >= 0) strip.querySelectorAll("button")[focused]?.focus();
  }
  strip.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const all = [...strip.querySelectorAll("button")];
    const next = all[all.indexOf(document.activeElement) + by];
    if (next) { next.focus(); next.click(); event.preventDefault(); }
  });
  async function refresh(ids) {
    if (!ids.length) return;
    try {
      const { ok, body } = await call(`jobs?${ids.map((id) => `job=${id}`).join("&")}`);
      if (ok) { for (const job of body.jobs) got(job); if (ids.length === state.jobs.length) { state.jobs = body.jobs.map((one) => one.id); keep(); list(); } }
    } catch { /* the bar says so */ }
  }
  setInterval(() => { if (!document.hidden) refresh(state.jobs.filter((id) => id !== state.current && seen.has(id) && !seen.get(id).over)); }, 2_000);
  document.addEventListener("farm:back", () => { refresh(state.jobs); if (state.current) follow(state.current); });

  // -- giving outputs back to the form -------------------------------------------------------------------------------
  const roleFor = (task) => (studio.setup.roles[task] ?? []).find((role) => role === "image" || role === "video" || role === "audio");
  const capable = (task) => studio.setup.models.some((one) => one.tasks.includes(task));
  const actions = {
    takes: (what, output) => what === "input" ? output.media_type.startsWith("image/") ? capable("image-to-image") || roleFor(state.task) === "image" : roleFor(state.task) === output.media_type.split("/")[0] : capable(what),
    async use(job, output, names) {
      const found = studio.flatten({ ...job.parameters, seed: output.seed });
      if (names) for (const name of names) { if (name in found) state.values[name] = found[name]; else delete state.values[name]; }
      else {
        if (tasks.includes(job.parameters.task)) state.task = job.parameters.task;
        state.model = job.parameters.model;
        state.values = found;
        delete state.values.num_outputs;
      }
      await draw();
      say("The form has it.");
      form.querySelector("[name=prompt]")?.focus();
    },
    async input(job, output) {
      if (!roleFor(state.task)) { state.task = "image-to-image"; await draw(); }
      await upload(roleFor(state.task), `${job.id}/${output.index}`);
    },
    async task(name, job, output) {
      state.task = name;
      if (job.parameters.prompt && !state.values.prompt) state.values.prompt = job.parameters.prompt;
      await draw();
      await upload("image", `${job.id}/${output.index}`);
      if (name === "inpainting") document.getElementById("paint")?.click();
    },
    async cancel(job) {
      const { ok, body } = await call(`jobs/${job.id}/cancel`, { method: "POST" }).catch(() => ({ ok: false }));
      if (ok) got(body);
    },
  };

  // -- recipes from files --------------------------------------------------------------------------------------------
  async function load(file) {
    const body = new FormData();
    body.set("file", file, file.name);
    try {
      const { ok, body: found } = await call("recipe", { method: "POST", body });
      if (!ok) { complain(found.errors ?? [{ field: "", message: "The file was not accepted." }]); return; }
      const given = found.parameters;
      if (tasks.includes(given.task)) state.task = given.task;
      if (studio.setup.models.some((one) => one.id === given.model)) state.model = given.model;
      state.values = studio.flatten(given);
      complain([]);
      await draw();
      say(`The recipe of ${file.name} is in the form.`);
    } catch (error) { if (error.message !== "signed out") complain([{ field: "", message: "The farm does not answer." }]); }
  }
  const loader = document.getElementById("load");
  loader.addEventListener("change", () => { if (loader.files[0]) load(loader.files[0]); loader.value = ""; });
  root.addEventListener("dragover", (event) => { event.preventDefault(); event.target.closest("[data-role]")?.classList.add("over"); });
  root.addEventListener("dragleave", (event) => event.target.closest("[data-role]")?.classList.remove("over"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    const role = event.target.closest("[data-role]")?.dataset.role;
    for (const one of root.querySelectorAll(".over")) one.classList.remove("over");
    if (file) { if (role) upload(role, file); else load(file); }
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    const role = roleFor(state.task);
    if (file && role && !document.querySelector("dialog[open]")) { event.preventDefault(); upload(role, file); }
  });

  // -- begin ---------------------------------------------------------------------------------------------------------
  const asked = studio.setup.job;
  if (asked) {
    await refresh([asked]);
    const job = seen.get(asked);
    if (job) { state.jobs = [job.id, ...state.jobs.filter((id) => id !== job.id)]; state.current = job.id; await actions.use(job, job.outputs[0] ?? { seed: job.parameters.seed }, null); }
    history.replaceState(null, "", "/farm/studio");
  }
  try { await draw(); } catch (error) { if (error.message !== "signed out") throw error; }
  await refresh(state.jobs);
  if (state.current && seen.has(state.current)) choose(state.current);
});
