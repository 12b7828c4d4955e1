"use strict";
// Draws truth, prediction and errors over the images: index PNGs are read back from a canvas and
// looked up in a palette. Each layer is drawn once for a choice of class and palette; the slider
// only puts two of them side by side.
(() => {
  const IGNORED = 255;
  const LAYERS = ["image", "truth", "prediction", "errors"];
  const MISSED = [213, 94, 0];
  const FALSE = [0, 114, 178];
  const palettes = JSON.parse(document.getElementById("palettes").textContent);
  const slider = document.getElementById("layer");
  const safe = document.getElementById("safe");
  const classButtons = [...document.querySelectorAll("button[data-class]")];
  const layerButtons = [...document.querySelectorAll("button[data-layer]")];
  let chosen = null; // a class, or null for all
  let palette = palettes.own;
  let samples = [];

  function newCanvas(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    return canvas;
  }

  async function readPixels(image) {
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    const context = newCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, width, height);
  }

  async function readIndices(uri) {
    const image = new Image();
    image.src = uri;
    const { data } = await readPixels(image);
    return Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
  }

  async function open(figure) {
    const photo = await readPixels(figure.querySelector("img"));
    const truth = await readIndices(figure.dataset.truth);
    const prediction = await readIndices(figure.dataset.prediction);
    const canvas = figure.querySelector("canvas");
    canvas.width = photo.width;
    canvas.height = photo.height;
    figure.querySelector("img").hidden = true;
    canvas.hidden = false;
    return { photo, truth, prediction, canvas, layers: {} };
  }

  // Returns what a pixel of a layer shows: [colour or null, how much of the photograph is left].
  function look(layer, truth, prediction) {
    if (layer === "errors") {
      if (truth === IGNORED || truth === prediction) return [null, 0.35];
      if (chosen === null || truth === chosen) return [MISSED, 0];
      return prediction === chosen ? [FALSE, 0] : [null, 0.35];
    }
    const label = layer === "truth" ? truth : prediction;
    if (label >= palette.length) return [null, 0.15];
    if (chosen !== null && label !== chosen) return [null, 0.35];
    return [palette[label], chosen === null ? 0.3 : 0.1];
  }

  function render(sample, layer) {
    const { photo, truth, prediction } = sample;
    const canvas = newCanvas(photo.width, photo.height);
    const out = new ImageData(new Uint8ClampedArray(photo.data), photo.width, photo.height);
    for (let i = 0; layer !== "image" && i < truth.length; i++) {
      const [color, rest] = look(layer, truth[i], prediction[i]);
      const p = 4 * i;
      const grey = 0.3 * out.data[p] + 0.59 * out.data[p + 1] + 0.11 * out.data[p + 2];
      for (let k = 0; k < 3; k++) {
        out.data[p + k] = rest * grey + (1 - rest) * (color ? color[k] : 255);
      }
    }
    canvas.getContext("2d").putImageData(out, 0, 0);
    return canvas;
  }

  function show(sample) {
    const value = Number(slider.value);
    const below = Math.floor(value);
    const context = sample.canvas.getContext("2d");
    const { width, height } = sample.canvas;
    const layerOf = (k) => (sample.layers[k] ??= render(sample, LAYERS[k]));
    context.drawImage(layerOf(below), 0, 0);
    const edge = Math.round((value - below) * width);
    if (edge > 0) {
      context.drawImage(layerOf(below + 1), 0, 0, edge, height, 0, 0, edge, height);
      context.fillStyle = "#fff";
      context.fillRect(edge - 1, 0, 2, height);
    }
  }

  function showAll() {
    const value = Number(slider.value);
    const [below, above] = [Math.floor(value), Math.ceil(value)];
    const part = Math.round(100 * (value - below));
    const words = below === above ? LAYERS[below] : `${part} % ${LAYERS[above]}, else ${LAYERS[below]}`;
    slider.setAttribute("aria-valuetext", words);
    layerButtons.forEach((b) => b.setAttribute("aria-pressed", Number(b.dataset.layer) === value));
    samples.forEach(show);
  }

  function choose(number) {
    chosen = number;
    classButtons.forEach((b) => b.setAttribute("aria-pressed", Number(b.dataset.class) === number));
    redraw();
  }

  function redraw() {
    samples.forEach((sample) => (sample.layers = {}));
    showAll();
  }

  function paintSwatches() {
    document.querySelectorAll(".swatch[data-class]").forEach((swatch) => {
      swatch.style.background = `rgb(${palette[swatch.dataset.class]})`;
    });
  }

  // Shows the hint before a box that scrolls sideways, for as long as it does.
  function hintAt(box) {
    const inner = box.firstElementChild;
    const update = () => (box.previousElementSibling.hidden = box.scrollWidth <= box.clientWidth);
    const observer = new ResizeObserver(update);
    [box, inner].forEach((element) => observer.observe(element));
  }

  paintSwatches();
  document.querySelectorAll(".scroller").forEach(hintAt);
  if (!slider) return; // no pictures
  slider.addEventListener("input", showAll);
  layerButtons.forEach((button) =>
    button.addEventListener("click", () => {
      slider.value = button.dataset.layer;
      showAll();
    }),
  );
  classButtons.forEach((button) =>
    button.addEventListener("click", () => {
      const number = Number(button.dataset.class);
      choose(number === chosen ? null : number);
    }),
  );
  safe?.addEventListener("change", () => {
    palette = safe.checked ? palettes.safe : palettes.own;
    paintSwatches();
    redraw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chosen !== null) choose(null);
  });
  Promise.all([...document.querySelectorAll(".sample")].map(open)).then((opened) => {
    samples = opened;
    showAll();
    document.body.dataset.ready = "true";
  });
})();
