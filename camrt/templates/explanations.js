"use strict";
// Fills a card when it comes near the window, and empties it when it is far: a page of thousands of images decodes a few.
(() => {
  const byId = (id) => document.getElementById(id);
  const list = byId("cards");
  const cards = [...list.querySelectorAll("article")];
  if (!cards.length) return;
  const { colormaps, start, full, zero } = JSON.parse(byId("tables").textContent);
  const views = new Map(); // card -> what is shown of it

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const svg = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const rise = (strength) => {
    const t = Math.min(Math.max((strength - start) / (full - start), 0), 1);
    return t * t * (3 - 2 * t);
  };

  // ------------------------------------------------------------------------------------------------------- the maps

  // 256 colors and opacities, as camrt.colors has them; the slider's share is the style's.
  const rgba = (name) => {
    const { diverging, colors } = colormaps[name];
    const table = new Uint8ClampedArray(1024);
    colors.forEach((color, level) => {
      const strength = diverging ? Math.abs(level - zero) / (zero - 1) : level / 255;
      table.set([...color, 255 * rise(strength)], 4 * level);
    });
    return table;
  };
  const tables = Object.fromEntries(Object.keys(colormaps).map((name) => [name, rgba(name)]));

  const levelsOf = async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
    return { width, height, values: data.filter((_, place) => place % 4 === 0) };
  };

  const paint = (canvas, levels, table) => {
    canvas.width = levels.width;
    canvas.height = levels.height;
    const pixels = new ImageData(levels.width, levels.height);
    levels.values.forEach((level, place) => pixels.data.set(table.subarray(4 * level, 4 * level + 4), 4 * place));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  };

  // ------------------------------------------------------------------------------------------------------- one image

  class View {
    constructor(root, data, chosen = 0) {
      this.data = data;
      this.levels = data.classes.map(() => null);
      this.canvas = element("canvas");
      this.boxes = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" });
      this.value = element("span", { className: "value", hidden: true });
      const photo = element("img", { src: data.image, alt: data.name, draggable: false });
      this.picture = element("button", { type: "button", className: "picture" }, photo, this.canvas, this.boxes, this.value);
      this.buttons = data.classes.map((one, place) => {
        const label = element("span", { className: "label", textContent: one.label, title: one.label });
        const score = element("span", { className: "score", textContent: one.text });
        const button = element("button", { type: "button" }, label, score);
        button.style.setProperty("--share", `${100 * Math.min(Math.max(one.score ?? 0, 0), 1)}%`);
        for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => this.choose(place));
        return button;
      });
      const names = element("ul", { className: "classes" }, ...this.buttons.map((one) => element("li", {}, one)));
      root.replaceChildren(this.picture, names);
      this.picture.addEventListener("pointermove", (event) => this.tell(event));
      this.picture.addEventListener("pointerleave", () => { this.value.hidden = true; });
      if (data.classes.length) this.choose(chosen);
    }

    async choose(place) {
      this.chosen = place;
      const one = this.data.classes[place];
      this.buttons.forEach((button, other) => button.setAttribute("aria-pressed", other === place));
      this.picture.setAttribute("aria-label", `${this.data.name}: ${one.label} ${one.text}`);
      this.value.hidden = true;
      this.boxes.replaceChildren(...one.boxes.flatMap(([x, y, width, height]) =>
        ["edge", ""].map((kind) => svg("rect", { x, y, width, height, class: kind }))));
      this.levels[place] ??= levelsOf(one.map);
      const levels = await this.levels[place];
      if (this.chosen !== place) return; // another one was chosen meanwhile
      this.shown = levels;
      this.repaint();
    }

    repaint() {
      if (this.shown) paint(this.canvas, this.shown, tables[this.data.signed ? "bwr" : byId("colormap").value]);
    }

    // The value of the map under the pointer, as the network gave it.
    tell(event) {
      if (!this.shown) return;
      const area = this.picture.getBoundingClientRect();
      const { width, height, values } = this.shown;
      const x = Math.min(Math.max(Math.floor((event.clientX - area.left) / area.width * width), 0), width - 1);
      const y = Math.min(Math.max(Math.floor((event.clientY - area.top) / area.height * height), 0), height - 1);
      const level = values[y * width + x];
      const share = this.data.signed ? (level - zero) / (zero - 1) : level / 255;
      const { low, high } = this.data.classes[this.chosen];
      const value = this.data.signed ? share * high : low + share * (high - low);
      this.value.textContent = `${value.toPrecision(3)} · ${Math.round(100 * share)}%`;
      this.value.hidden = false;
    }
  }

  const dataOf = (card) => JSON.parse(card.querySelector("script").textContent);
  const near = new IntersectionObserver((entries) => {
    for (const { target: card, isIntersecting } of entries) {
      const root = card.querySelector(".view");
      if (isIntersecting && !views.has(card)) {
        const view = new View(root, dataOf(card), Number(card.dataset.chosen ?? 0));
        view.picture.addEventListener("click", () => open(card));
        views.set(card, view);
      } else if (!isIntersecting && views.has(card)) {
        card.dataset.chosen = views.get(card).chosen ?? 0;
        root.style.height = `${root.offsetHeight}px`; // the page does not jump
        root.replaceChildren();
        views.delete(card);
      }
      if (isIntersecting) root.style.height = "";
    }
  }, { rootMargin: "800px" });

  // ------------------------------------------------------------------------------------------------------- the viewer

  const viewer = byId("viewer");
  let enlarged = null;
  const open = (card) => {
    const data = dataOf(card);
    enlarged = { card, view: new View(byId("stage"), data, views.get(card)?.chosen ?? 0) };
    byId("stage").style.setProperty("--aspect", card.style.getPropertyValue("--aspect"));
    byId("viewer-name").textContent = `${data.name} (${data.width} × ${data.height})`;
    if (!viewer.open) viewer.showModal();
  };
  const step = (by) => {
    const shown = [...list.children].filter((card) => !card.hidden);
    const next = shown[shown.indexOf(enlarged.card) + by];
    if (next) open(next);
  };
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { byId("stage").replaceChildren(); enlarged = null; });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  // -------------------------------------------------------------------------------------------------------- the tools

  const texts = cards.map((card) => `${card.dataset.name}\n${card.dataset.labels}`.toLowerCase());
  const filter = () => {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let matching = 0;
    cards.forEach((card, place) => {
      card.hidden = !words.every((word) => texts[place].includes(word));
      matching += !card.hidden;
    });
    byId("count").textContent = matching === cards.length ? "" : `${matching} of ${cards.length}`;
    byId("none").hidden = matching > 0;
  };
  const score = (card) => card.dataset.score === "" ? -Infinity : Number(card.dataset.score);
  const orders = {
    given: () => 0,
    best: (one, other) => score(other) - score(one) || 0,
    worst: (one, other) => score(one) - score(other) || 0,
    name: (one, other) => one.dataset.name.localeCompare(other.dataset.name, undefined, { numeric: true }),
  };
  const setOpacity = () => document.documentElement.style.setProperty("--opacity", byId("opacity").value / 100);
  const recolor = () => {
    paint(byId("scale"), { width: 256, height: 1, values: Uint8Array.from({ length: 256 }, (_, level) => level) },
      tables[byId("colormap").value]);
    for (const view of views.values()) view.repaint();
    enlarged?.view.repaint();
  };
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("filter").addEventListener("input", filter);
  byId("sort").addEventListener("change", () => list.append(...[...cards].sort(orders[byId("sort").value])));
  byId("opacity").addEventListener("input", setOpacity);
  byId("colormap").addEventListener("change", recolor);
  byId("boxes").addEventListener("change", () => document.body.classList.toggle("hide-boxes", !byId("boxes").checked));
  document.body.classList.toggle("hide-boxes", !byId("boxes").checked);
  filter();
  setOpacity();
  recolor();
  for (const card of cards) near.observe(card);
})();
