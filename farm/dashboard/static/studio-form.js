// The studio's form, drawn from the JSON Schema of a model's task: what the schema has is there, for every model.
"use strict";

window.studio = window.studio ?? {};

{
  const FIRST = ["prompt", "negative_prompt", "size", "num_inference_steps", "guidance_scale", "strength", "scheduler", "seed",
    "num_frames", "fps", "seconds", "num_outputs", "loras", "output_format"];
  const HIDDEN = new Set(["task", "model", "preview", "webhook", "custom_id", "metadata", "not_before", "deadline"]);
  const SLIDERS = { num_inference_steps: [1, 60, 1], guidance_scale: [0, 20, 0.1], strength: [0, 1, 0.01] };
  const SHAPES = [["1:1", 1, 1], ["4:3", 4, 3], ["3:4", 3, 4], ["3:2", 3, 2], ["2:3", 2, 3], ["16:9", 16, 9], ["9:16", 9, 16]];

  function make(tag, given = {}, ...children) {
    const one = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name === "class") one.className = value;
      else if (name.startsWith("data-") || name.startsWith("aria-") || name === "for" || name === "list") one.setAttribute(name, value);
      else one[name] = value;
    }
    one.append(...children.filter((child) => child !== null && child !== undefined));
    return one;
  }

  // The schema of a value that may be absent, without the null.
  function plain(schema, all) {
    let found = schema;
    if (found.anyOf) {
      const options = found.anyOf.filter((one) => one.type !== "null");
      found = { ...options[0], ...found, anyOf: undefined, choices: options };
    }
    if (found.$ref) found = { ...all.$defs[found.$ref.split("/").pop()], ...found };
    return found;
  }

  function label(name) {
    const known = studio.setup.labels[name];
    const text = name.replaceAll("_", " ");
    return known ?? text[0].toUpperCase() + text.slice(1);
  }

  function field(name, schema, control, extra = null, wide = false) {
    const id = control.id || `f-${name.replaceAll(".", "-")}`;
    control.id = id;
    const box = make("div", { class: `field${wide ? " wide" : ""}`, "data-field": name }, make("label", { for: id, title: schema.description ?? "" }, label(name.split(".").pop())), control, extra);
    return box;
  }

  const hint = (schema) => (schema.default === undefined || schema.default === null ? "" : String(schema.default));

  function number(name, schema) {
    const whole = schema.type === "integer";
    const input = make("input", { type: "number", name, inputMode: whole ? "numeric" : "decimal", placeholder: hint(schema) });
    if (schema.minimum !== undefined) input.min = schema.minimum;
    if (schema.maximum !== undefined && schema.maximum < 1e9) input.max = schema.maximum;
    input.step = schema.multipleOf ?? (whole ? 1 : "any");
    return input;
  }

  function slider(name, schema) {
    const [low, high, step] = SLIDERS[name];
    const input = number(name, schema);
    const range = make("input", { type: "range", "aria-label": `${label(name)}, slider`, min: Math.max(low, schema.minimum ?? low), max: Math.min(high, schema.maximum ?? high), step, tabIndex: -1 });
    const follow = () => { range.value = input.value === "" ? schema.default ?? low : input.value; };
    range.addEventListener("input", () => { input.value = range.value; input.dispatchEvent(new Event("input", { bubbles: true })); });
    input.addEventListener("input", follow);
    input.addEventListener("studio:set", follow);
    follow();
    const box = field(name, schema, input);
    const both = make("div", { class: "slide" });
    input.replaceWith(both);
    both.append(range, input);
    return box;
  }

  function select(name, schema, options, describe = {}) {
    const given = hint(schema);
    return make("select", { name }, make("option", { value: "" }, given ? `default: ${given}` : "default"), ...options.map((one) => make("option", { value: String(one), title: describe[one] ?? "" }, String(one))));
  }

  // Width and height together: shapes of about the default's area, and a swap.
  function size(schemas) {
    const [wide, high] = [schemas.width, schemas.height].map((schema, at) => number(["width", "height"][at], schema));
    wide.id = "f-width";
    high.id = "f-height";
    const multiple = schemas.width.multipleOf ?? 8;
    const area = (schemas.width.default ?? schemas.width.maximum ?? 512) * (schemas.height.default ?? schemas.height.maximum ?? 512);
    const fit = (value, schema) => Math.min(schema.maximum ?? 1e5, Math.max(schema.minimum ?? 1, Math.round(value / multiple) * multiple));
    const shapes = make("select", { "aria-label": "Shape" }, make("option", { value: "" }, "shape"), ...SHAPES.map(([name]) => make("option", { value: name }, name)));
    const tell = () => { wide.dispatchEvent(new Event("input", { bubbles: true })); };
    shapes.addEventListener("change", () => {
      const shape = SHAPES.find(([name]) => name === shapes.value);
      if (!shape) return;
      const unit = Math.sqrt(area / (shape[1] * shape[2]));
      wide.value = fit(shape[1] * unit, schemas.width);
      high.value = fit(shape[2] * unit, schemas.height);
      shapes.value = "";
      tell();
    });
    const swap = make("button", { type: "button", class: "quiet", title: "Swap width and height", "aria-label": "Swap width and height" }, "⇄");
    swap.addEventListener("click", () => {
      const [first, second] = [wide.value || wide.placeholder, high.value || high.placeholder];
      [wide.value, high.value] = [second, first];
      tell();
    });
    wide.setAttribute("aria-label", "Width");
    high.setAttribute("aria-label", "Height");
    return make("div", { class: "field wide", "data-field": "width", role: "group", "aria-label": "Size" }, make("span", {}, "Size"), make("div", { class: "size" }, wide, swap, high, shapes), make("span", { "data-field": "height" }));
  }

  function seed(schema) {
    const input = make("input", { type: "text", inputMode: "numeric", pattern: "[0-9]*", name: "seed", placeholder: "random" });
    const box = field("seed", schema, input);
    const forget = make("button", { type: "button", class: "quiet", title: "A random seed each time", "aria-label": "Random seed" }, "random");
    forget.addEventListener("click", () => { input.value = ""; input.dispatchEvent(new Event("input", { bubbles: true })); });
    const both = make("div", { class: "slide" });
    input.replaceWith(both);
    both.append(input, forget);
    return box;
  }

  function loras(model) {
    const rows = model.loras.map((one) => {
      const scale = make("input", { type: "number", step: 0.05, min: -4, max: 4, placeholder: "1", "aria-label": `Strength of ${one.name}`, "data-scale": one.name });
      const box = make("input", { type: "checkbox", "data-lora": one.name });
      return make("div", { class: "lora" }, make("label", { class: "check", title: one.description }, box, one.name), scale, one.description ? make("span", { class: "hint" }, one.description) : null);
    });
    return make("fieldset", { class: "field wide", "data-field": "loras" }, make("legend", {}, "LoRAs"), ...rows);
  }

  function control(name, schema, all, model) {
    const found = plain(schema, all);
    if (name === "prompt" || name === "negative_prompt") {
      const area = make("textarea", { name, rows: name === "prompt" ? 4 : 2, spellcheck: true, required: name === "prompt" && all.required?.includes(name) });
      return field(name, found, area, null, true);
    }
    if (name === "seed") return seed(found);
    if (name === "loras") return model.loras.length ? loras(model) : null;
    if (SLIDERS[name]) return slider(name, found);
    if (found.enum) return field(name, found, select(name, found, found.enum, found.descriptions ?? {}));
    if (found.type === "boolean") return field(name, found, select(name, { default: found.default === undefined ? "" : found.default ? "yes" : "no" }, ["yes", "no"]));
    if (found.type === "integer" || found.type === "number") return field(name, found, number(name, found));
    if (found.type === "string") return field(name, found, make("input", { type: "text", name, placeholder: hint(found) }));
    return field(name, found, make("textarea", { name, rows: 2, spellcheck: false, placeholder: "JSON", "data-json": "1" }), null, true);
  }

  // What only this pipeline or this scheduler takes: an object with properties of its own.
  function nested(name, schema, all, model) {
    const parts = Object.entries(schema.properties ?? {}).map(([key, one]) => control(`${name}.${key}`, one, all, model)).filter(Boolean);
    if (!parts.length) return null;
    return make("details", { class: "wide", "data-nested": name }, make("summary", {}, name === "parameters" ? "Of this pipeline" : label(name)), make("div", { class: "form" }, ...parts));
  }

  studio.make = make;
  studio.label = label;

  // Draw the form of a task; `files` makes the place of an input file.
  studio.draw = (target, model, task, files) => {
    const all = model.schemas[task];
    const properties = Object.fromEntries(Object.entries(all.properties).filter(([name, schema]) => !HIDDEN.has(name) && !(schema.description ?? "").startsWith("Another name of")));
    const roles = (studio.setup.roles[task] ?? []).filter((role) => role in properties);
    const parts = [];
    if (model.examples.length) {
      const list = make("select", { "aria-label": "Example prompts" }, make("option", { value: "" }, "an example…"), ...model.examples.map((one) => make("option", { value: one }, one)));
      list.addEventListener("change", () => {
        const prompt = target.querySelector("[name=prompt]");
        if (list.value && prompt) { prompt.value = list.value; prompt.dispatchEvent(new Event("input", { bubbles: true })); }
        list.value = "";
      });
      parts.push(make("div", { class: "wide examples-list" }, list));
    }
    const files_ = make("div", { class: "wide inputs-row" }, ...roles.map((role) => files(role, properties[role], all.required?.includes(role))));
    const main = [];
    const more = [];
    const seen = new Set(["width", "height", ...roles]);
    for (const name of FIRST) {
      if (name === "size") {
        if (properties.width && properties.height) main.push(size({ width: plain(properties.width, all), height: plain(properties.height, all) }));
      } else if (properties[name]) {
        seen.add(name);
        main.push(control(name, properties[name], all, model));
      }
      if (name === "negative_prompt" && roles.length) main.push(files_);
    }
    for (const [name, schema] of Object.entries(properties)) {
      if (seen.has(name)) continue;
      const found = plain(schema, all);
      more.push(found.type === "object" ? nested(name, found, all, model) : control(name, schema, all, model));
    }
    target.replaceChildren(
      make("div", { class: "form" }, ...parts, ...main.filter(Boolean)),
      make("details", { class: "wide" }, make("summary", {}, "More"), make("div", { class: "form" }, ...more.filter(Boolean))),
    );
  };

  // The values of the form by name; what is empty is absent. `loras` as the API has them.
  studio.values = (target) => {
    const found = {};
    for (const one of target.querySelectorAll("[name]")) if (one.value !== "") found[one.name] = one.value;
    const chosen = [...target.querySelectorAll("[data-lora]:checked")].map((box) => {
      const scale = target.querySelector(`[data-scale="${CSS.escape(box.dataset.lora)}"]`).value;
      return { name: box.dataset.lora, ...(scale === "" ? {} : { scale: Number(scale) }) };
    });
    if (chosen.length) found.loras = chosen;
    return found;
  };

  // Put values into the form; those that it has no field for are kept by the caller.
  studio.fill = (target, values) => {
    for (const one of target.querySelectorAll("[name]")) {
      const value = values[one.name];
      one.value = value === undefined || value === null ? "" : String(value);
      one.dispatchEvent(new Event("studio:set"));
    }
    for (const box of target.querySelectorAll("[data-lora]")) {
      const given = (values.loras ?? []).find((one) => one.name === box.dataset.lora);
      box.checked = Boolean(given);
      target.querySelector(`[data-scale="${CSS.escape(box.dataset.lora)}"]`).value = given?.scale ?? "";
    }
  };

  // The request that the values mean. Throws a sentence for JSON that does not parse.
  studio.request = (values, schema) => {
    const body = {};
    for (const [path, value] of Object.entries(values)) {
      const [outer, inner] = path.split(/\.(.*)/s);
      const given = schema.properties[outer];
      if (!given) continue;
      const kind = plain(inner === undefined ? given : plain(given, schema).properties?.[inner] ?? {}, schema);
      let parsed = value;
      if (path !== "loras") {
        if (path === "seed") parsed = /^\d{1,15}$/.test(value) ? Number(value) : value;
        else if (kind.type === "integer" || kind.type === "number") parsed = Number(value);
        else if (kind.type === "boolean") parsed = value === "yes";
        else if (kind.type !== "string" && !kind.enum) {
          try { parsed = JSON.parse(value); } catch { throw Object.assign(new Error(`must be JSON: ${value.slice(0, 40)}`), { field: path }); }
        }
      }
      if (inner === undefined) body[outer] = parsed;
      else (body[outer] ??= {})[inner] = parsed;
    }
    return body;
  };

  // A request, such as a job's parameters, as values of the form.
  studio.flatten = (parameters) => {
    const found = {};
    for (const [name, value] of Object.entries(parameters)) {
      if (value === null || value === undefined) continue;
      if (name === "parameters" || name === "scheduler_options") {
        for (const [key, one] of Object.entries(value)) found[`${name}.${key}`] = text(one);
      } else if (name === "loras") { if (value.length) found.loras = value; } else found[name] = text(value);
    }
    return found;
  };

  function text(value) {
    if (value === true) return "yes";
    if (value === false) return "no";
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }
}
