// The viewer: one image at a time, a layer over the input, to be blended, zoomed and toggled.
(() => {
  const cards = [...document.querySelectorAll(".card[data-classes]")];
  const dialog = document.querySelector("dialog");
  if (!cards.length || !dialog.showModal) return;

  const images = cards.map((card) => ({
    title: card.querySelector("h4").textContent,
    facts: card.querySelector(".facts").textContent.trim(),
    classes: JSON.parse(card.dataset.classes),
    layers: [...card.querySelectorAll(".panel")].map((panel) => ({
      name: panel.dataset.name, kind: panel.dataset.kind, source: panel.querySelector("img").src, panel,
    })),
  }));
  const find = (name) => dialog.querySelector(name);
  const stage = find(".stage"), sheet = find(".sheet"), blend = find("input"), key = find(".key");
  let image = 0, layer = 2, hidden = false;
  let scale = 1, x = 0, y = 0;

  const picture = (source, alt) => Object.assign(new Image(), { src: source, alt, draggable: false });

  function show() {
    const { title, facts, layers, classes } = images[image];
    layer = (layer + layers.length) % layers.length;
    const top = picture(layers[layer].source, `${layers[layer].name} of ${title}`);
    sheet.replaceChildren(picture(layers[0].source, `input of ${title}`), top);
    find("strong").textContent = title;
    find(".top small").textContent = `${image + 1} of ${images.length} · ${facts}`;
    find(".layers").replaceChildren(...layers.map((one, number) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: one.name });
      button.setAttribute("aria-pressed", String(number === layer));
      button.addEventListener("click", () => { layer = number; hidden = false; show(); });
      return button;
    }));
    find(".layers").children[layer].scrollIntoView({ block: "nearest", inline: "nearest" });
    const kind = layers[layer].kind;
    key.replaceChildren(document.querySelector(`#key-${kind}`).content.cloneNode(true));
    if (kind === "classes") {
      const there = new Set(classes);
      key.querySelectorAll("li").forEach((row) => { row.hidden = !there.has(Number(row.dataset.class)); });
    }
    mix();
  }

  function mix() {
    const top = sheet.lastElementChild;
    top.style.opacity = hidden ? 0 : blend.value / 100;
    find(".toggle").setAttribute("aria-pressed", String(hidden));
  }

  function place() {
    const { width, height } = stage.getBoundingClientRect();
    x = Math.min(0, Math.max(width * (1 - scale), x));
    y = Math.min(0, Math.max(height * (1 - scale), y));
    sheet.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    sheet.classList.toggle("near", scale > 3);
  }

  // Zoom by a factor; what lies under (px, py) of the stage stays there.
  function zoom(factor, px = stage.clientWidth / 2, py = stage.clientHeight / 2) {
    const next = Math.min(16, Math.max(1, scale * factor));
    x = px - (px - x) * next / scale;
    y = py - (py - y) * next / scale;
    scale = next;
    place();
  }
  function whole() { scale = 1; x = y = 0; place(); }
  function go(step) { image = (image + step + images.length) % images.length; whole(); show(); }
  function turn(step) { layer += step; hidden = false; show(); }
  function toggle() { hidden = !hidden; mix(); }
  function fade(step) { blend.value = Number(blend.value) + step; hidden = false; mix(); }

  images.forEach(({ layers }, number) => layers.forEach(({ panel }, place) => panel.addEventListener("click", () => {
    image = number; layer = place;
    dialog.showModal(); whole(); show(); stage.focus();
  })));
  dialog.addEventListener("close", () => images[image].layers[layer].panel.focus());
  find(".close").addEventListener("click", () => dialog.close());
  find(".before").addEventListener("click", () => go(-1));
  find(".after").addEventListener("click", () => go(1));
  find(".toggle").addEventListener("click", toggle);
  find(".in").addEventListener("click", () => zoom(1.5));
  find(".out").addEventListener("click", () => zoom(1 / 1.5));
  blend.addEventListener("input", () => { hidden = false; mix(); });

  const keys = {
    ArrowLeft: () => go(-1), ArrowRight: () => go(1), ArrowUp: () => turn(-1), ArrowDown: () => turn(1),
    " ": toggle, "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": whole,
    "[": () => fade(-10), "]": () => fade(10),
  };
  const pans = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || (event.target === blend && event.key.startsWith("Arrow"))) return;
    if (event.target.tagName === "BUTTON" && event.key === " ") return;
    if (event.shiftKey && pans[event.key]) { x += pans[event.key][0]; y += pans[event.key][1]; place(); }
    else if (/^[1-9]$/.test(event.key) && event.key <= images[image].layers.length) { layer = event.key - 1; hidden = false; show(); }
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });

  // Mouse and touch: drag to move, wheel or two fingers to zoom, double tap for near and whole.
  const held = new Map();
  let tapped = 0;
  const at = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  stage.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), ...at(event)); }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    held.set(event.pointerId, at(event));
    stage.classList.add("held");
    if (held.size === 1) {
      if (event.timeStamp - tapped < 300) { if (scale > 1) whole(); else zoom(3, ...at(event)); }
      tapped = event.timeStamp;
    }
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const before = [...held.values()], [bx, by] = held.get(event.pointerId), [nx, ny] = at(event);
    held.set(event.pointerId, [nx, ny]);
    if (held.size === 1) { x += nx - bx; y += ny - by; place(); return; }
    const after = [...held.values()];
    const apart = ([[ax, ay], [cx, cy]]) => Math.hypot(ax - cx, ay - cy) || 1;
    const middle = ([[ax, ay], [cx, cy]]) => [(ax + cx) / 2, (ay + cy) / 2];
    const [mx, my] = middle(after), [ox, oy] = middle(before);
    x += mx - ox; y += my - oy;
    zoom(apart(after) / apart(before), mx, my);
  });
  const release = (event) => { held.delete(event.pointerId); if (!held.size) stage.classList.remove("held"); };
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);
  window.addEventListener("resize", place);
})();
