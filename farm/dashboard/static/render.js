// The form of one job: example prompts, and a mask painted over the chosen image. All of it works without this, too.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.render");
  if (!form) return;

  form.addEventListener("click", (event) => {
    const example = event.target.closest("[data-prompt]");
    if (!example || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    form.elements.prompt.value = example.textContent;
    form.elements.prompt.focus();
  });
  form.elements.model.addEventListener("change", (event) => {
    // the new model's defaults and examples come with its page
    const there = new URLSearchParams({
      model: event.target.value, task: form.elements.task.value, prompt: form.elements.prompt.value,
    });
    location.search = there;
  });

  // What the chosen task does not take is hidden; without this, the server ignores it.
  function showTask() {
    const task = form.querySelector("[name=task]:checked").value;
    for (const field of form.querySelectorAll("[data-tasks]")) {
      field.classList.toggle("off", !field.dataset.tasks.split(" ").includes(task));
    }
  }
  for (const choice of form.querySelectorAll("[name=task]")) choice.addEventListener("change", showTask);
  showTask();

  // -- the mask -----------------------------------------------------------------------------------------------------
  const painter = form.querySelector(".painter");
  const canvas = painter.querySelector("canvas");
  const pen = canvas.getContext("2d");
  const brush = painter.querySelector("[data-brush]");
  const undo = painter.querySelector("[data-undo]");
  const clear = painter.querySelector("[data-clear]");
  const status = painter.querySelector("[data-status]");
  const maskInput = form.elements.mask_image;
  let image = null;
  let strokes = []; // each: the brush's radius and its points, in pixels of the image
  let at = null; // where the keyboard's brush is
  let drawing = false;

  function radius() {
    return Math.max(1, (brush.value / 200) * Math.max(canvas.width, canvas.height));
  }

  function lines(target, colour) {
    target.strokeStyle = target.fillStyle = colour;
    target.lineCap = target.lineJoin = "round";
    for (const stroke of strokes) {
      const [first, ...rest] = stroke.points;
      target.beginPath();
      target.arc(...first, stroke.radius, 0, 2 * Math.PI);
      target.fill();
      if (!rest.length) continue;
      target.lineWidth = 2 * stroke.radius;
      target.beginPath();
      target.moveTo(...first);
      for (const point of rest) target.lineTo(...point);
      target.stroke();
    }
  }

  function sheet() {
    const made = document.createElement("canvas");
    made.width = canvas.width;
    made.height = canvas.height;
    return made;
  }

  function show() {
    if (!image) return;
    const painted = sheet();
    lines(painted.getContext("2d"), "#ff2d78");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0);
    pen.globalAlpha = 0.6;
    pen.drawImage(painted, 0, 0);
    pen.globalAlpha = 1;
    if (at && document.activeElement === canvas) {
      pen.lineWidth = Math.max(1, canvas.width / 200);
      for (const [colour, more] of [["#000", 0], ["#fff", pen.lineWidth]]) {
        pen.strokeStyle = colour;
        pen.beginPath();
        pen.arc(...at, radius() + more, 0, 2 * Math.PI);
        pen.stroke();
      }
    }
  }

  // The mask goes where a chosen file would: white where it was painted, as large as the image.
  function keep() {
    const files = new DataTransfer();
    if (strokes.length) {
      const mask = sheet();
      const target = mask.getContext("2d");
      target.fillStyle = "#000";
      target.fillRect(0, 0, mask.width, mask.height);
      lines(target, "#fff");
      const bytes = Uint8Array.from(atob(mask.toDataURL("image/png").split(",")[1]), (one) => one.charCodeAt(0));
      files.items.add(new File([bytes], "painted.png", { type: "image/png" }));
    }
    maskInput.files = files.files;
    undo.disabled = clear.disabled = !strokes.length;
    status.textContent = strokes.length ? `${strokes.length} ${strokes.length === 1 ? "stroke" : "strokes"} painted.` : "Nothing is painted yet.";
    show();
  }

  function place(event) {
    const frame = canvas.getBoundingClientRect();
    return [((event.clientX - frame.left) / frame.width) * canvas.width, ((event.clientY - frame.top) / frame.height) * canvas.height];
  }

  form.elements.image.addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (image) strokes = [];
    image = null;
    painter.hidden = true;
    if (!file) { keep(); return; }
    const loaded = new Image();
    loaded.src = URL.createObjectURL(file);
    try { await loaded.decode(); } catch { return; } // the server says what is wrong with it
    image = loaded;
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    at = [canvas.width / 2, canvas.height / 2];
    painter.hidden = false;
    strokes = [];
    show();
  });

  maskInput.addEventListener("change", () => { // a file that was chosen replaces what was painted
    strokes = [];
    undo.disabled = clear.disabled = true;
    status.textContent = "A file is the mask; painting replaces it.";
    show();
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    at = place(event);
    strokes.push({ radius: radius(), points: [at] });
    show();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    at = place(event);
    strokes.at(-1).points.push(at);
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { if (drawing) { drawing = false; keep(); } });
  }
  canvas.addEventListener("keydown", (event) => {
    const step = (event.shiftKey ? 0.1 : 0.025) * Math.max(canvas.width, canvas.height);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const [right, down] = moves[event.key];
      at = [Math.min(canvas.width, Math.max(0, at[0] + right)), Math.min(canvas.height, Math.max(0, at[1] + down))];
      show();
    } else if (event.key === " " || event.key === "Enter") {
      strokes.push({ radius: radius(), points: [at] });
      keep();
    } else if (event.key === "[" || event.key === "]") {
      brush.value = Number(brush.value) + (event.key === "]" ? 2 : -2);
      show();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      strokes.pop();
      keep();
    } else return;
    event.preventDefault();
  });
  canvas.addEventListener("focus", show);
  canvas.addEventListener("blur", show);
  undo.addEventListener("click", () => { strokes.pop(); keep(); });
  clear.addEventListener("click", () => { strokes = []; keep(); });
});
