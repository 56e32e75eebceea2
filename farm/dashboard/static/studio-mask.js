// The mask editor: brush, eraser, undo, invert, by pointer and by keys. Painted small and replayed at full size once, so a
// photograph of 12 megapixels is as quick as a thumbnail.
"use strict";

{
  const SHOWN = 1400; // pixels of the longer side while painting
  const { make } = window.studio;

  function replay(canvas, operations, scale) {
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    for (const one of operations) apply(canvas, pen, one, scale);
  }

  function apply(canvas, pen, operation, scale) {
    if (operation.invert) {
      pen.globalCompositeOperation = "difference";
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.globalCompositeOperation = "source-over";
      return;
    }
    if (operation.image) {
      pen.drawImage(operation.image, 0, 0, canvas.width, canvas.height);
      return;
    }
    pen.strokeStyle = pen.fillStyle = operation.erase ? "#000" : "#fff";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2 * operation.radius * scale;
    const [[x, y], ...rest] = operation.points;
    pen.beginPath();
    pen.arc(x * scale, y * scale, operation.radius * scale, 0, 2 * Math.PI);
    pen.fill();
    if (!rest.length) return;
    pen.beginPath();
    pen.moveTo(x * scale, y * scale);
    for (const [left, top] of rest) pen.lineTo(left * scale, top * scale);
    pen.stroke();
  }

  // Ask for a mask over the image at `url`, beginning with the mask at `before` if there is one; resolves to a PNG or null.
  studio.paint = async (url, before) => {
    const image = new Image();
    image.src = url;
    await image.decode();
    const old = before ? Object.assign(new Image(), { src: before }) : null;
    if (old) await old.decode();
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const scale = Math.min(1, SHOWN / Math.max(width, height));
    const view = make("canvas", { tabIndex: 0, width: Math.round(width * scale), height: Math.round(height * scale), "aria-label": "Mask: arrow keys move the brush, space paints, square brackets change its size, e erases, i inverts, Ctrl+Z undoes", className: "masking" });
    view.setAttribute("role", "application");
    const mask = make("canvas", { width: view.width, height: view.height });
    const tint = make("canvas", { width: view.width, height: view.height });
    const brush = make("input", { type: "range", min: 1, max: 50, value: 12, "aria-label": "Brush size" });
    const erase = make("button", { type: "button", "aria-pressed": "false", title: "e" }, "Eraser");
    const undo = make("button", { type: "button", title: "Ctrl+Z" }, "Undo");
    const invert = make("button", { type: "button", title: "i" }, "Invert");
    const clear = make("button", { type: "button" }, "Clear");
    const done = make("button", { type: "button", class: "primary" }, "Use the mask");
    const cancel = make("button", { type: "button" }, "Cancel");
    const status = make("span", { class: "hint" });
    status.setAttribute("role", "status");
    const dialog = make("dialog", { class: "masker", "aria-label": "Paint the mask" },
      make("div", { class: "tools" }, make("label", { class: "check" }, "Brush", brush), erase, undo, invert, clear, status, make("span", { class: "spring" }), cancel, done), make("div", { class: "canvas" }, view));
    document.body.append(dialog);

    const operations = old ? [{ image: old }] : [];
    const undone = [];
    let stroke = null;
    let at = [width / 2, height / 2];
    let waiting = false;
    const radius = () => Math.max(1, (brush.value / 250) * Math.max(width, height));

    function draw() {
      waiting = false;
      const pen = view.getContext("2d");
      const ink = tint.getContext("2d");
      ink.globalCompositeOperation = "source-over";
      ink.fillStyle = "#ff2d78";
      ink.fillRect(0, 0, tint.width, tint.height);
      pen.globalAlpha = 1;
      pen.globalCompositeOperation = "source-over";
      pen.drawImage(image, 0, 0, view.width, view.height);
      // what is white in the mask is tinted: the tint times the mask, screened over the image
      ink.globalCompositeOperation = "multiply";
      ink.drawImage(mask, 0, 0);
      pen.globalCompositeOperation = "screen";
      pen.drawImage(tint, 0, 0);
      pen.globalCompositeOperation = "source-over";
      if (document.activeElement === view) {
        for (const [colour, more] of [["#000", 0], ["#fff", 1.5]]) {
          pen.strokeStyle = colour;
          pen.lineWidth = 1.5;
          pen.beginPath();
          pen.arc(at[0] * scale, at[1] * scale, radius() * scale + more, 0, 2 * Math.PI);
          pen.stroke();
        }
      }
    }
    const show = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };

    function add(operation) {
      operations.push(operation);
      apply(mask, mask.getContext("2d"), operation, scale);
      tell();
    }
    function again() { replay(mask, operations, scale); tell(); }
    function tell() {
      undo.disabled = clear.disabled = done.disabled = !operations.length;
      status.textContent = operations.length ? `${operations.length} ${operations.length === 1 ? "step" : "steps"}` : "Paint what is replaced.";
      show();
    }
    const erasing = () => erase.getAttribute("aria-pressed") === "true";
    const place = (event) => {
      const frame = view.getBoundingClientRect();
      return [((event.clientX - frame.left) / frame.width) * width, ((event.clientY - frame.top) / frame.height) * height];
    };

    view.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      view.setPointerCapture(event.pointerId);
      at = place(event);
      stroke = { radius: radius(), erase: erasing(), points: [at] };
      add(stroke);
    });
    view.addEventListener("pointermove", (event) => {
      if (!stroke) return;
      const before = stroke.points.at(-1);
      at = place(event);
      stroke.points.push(at);
      apply(mask, mask.getContext("2d"), { ...stroke, points: [before, at] }, scale);
      show();
    });
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => { stroke = null; });
    view.addEventListener("focus", show);
    view.addEventListener("blur", show);
    brush.addEventListener("input", show);
    undo.addEventListener("click", () => { operations.pop(); again(); });
    clear.addEventListener("click", () => { operations.length = 0; again(); });
    invert.addEventListener("click", () => add({ invert: true }));
    erase.addEventListener("click", () => erase.setAttribute("aria-pressed", String(!erasing())));
    dialog.addEventListener("keydown", (event) => {
      const step = (event.shiftKey ? 0.1 : 0.025) * Math.max(width, height);
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if ((event.ctrlKey || event.metaKey) && event.key === "z") undo.click();
      else if (event.target === brush && event.key in moves) return;
      else if (event.key === "e") erase.click();
      else if (event.key === "i") invert.click();
      else if (event.key === "[" || event.key === "]") { brush.value = Number(brush.value) + (event.key === "]" ? 2 : -2); show(); }
      else if (event.target === view && event.key in moves) {
        at = [Math.min(width, Math.max(0, at[0] + moves[event.key][0])), Math.min(height, Math.max(0, at[1] + moves[event.key][1]))];
        show();
      } else if (event.target === view && (event.key === " " || event.key === "Enter")) add({ radius: radius(), erase: erasing(), points: [at] });
      else return;
      event.preventDefault();
    });

    return new Promise((resolve) => {
      const finish = (value) => { dialog.close(); dialog.remove(); resolve(value); };
      cancel.addEventListener("click", () => finish(null));
      dialog.addEventListener("cancel", () => finish(null));
      done.addEventListener("click", () => {
        const full = make("canvas", { width, height });
        replay(full, operations, 1);
        full.toBlob(finish, "image/png");
      });
      again();
      dialog.showModal();
      view.focus();
    });
  };
}
