"use strict";
// Sends a picture to /predict and draws its mask over it. The mask's indices are read from the PNG
// itself: a canvas would give colours, which classes may share and some browsers falsify.
(() => {
  const $ = (id) => document.getElementById(id);
  const canvas = $("canvas");
  const TRIES = 8; // of a request that the server has no time for
  let classes = []; // {id, name, color}
  let shown = null; // {photo, indices, width, height, colors, rest} of the result on the page
  let chosen = null; // the class seen alone, or null
  let running = null; // AbortController of the request
  let stream = null; // of the camera

  function say(text, isBusy = false) {
    $("status").textContent = text;
    $("status").classList.toggle("busy", isBusy);
    if (text) $("error").hidden = true;
  }

  function fail(text) {
    say("");
    $("error").textContent = text;
    $("error").hidden = false;
  }

  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  function percent(share) {
    return share >= 0.01 ? `${Math.round(100 * share)}\u00a0%` : "<1\u00a0%"; // one word to a line's end
  }

  // Returns {width, height, indices} of a PNG of mode P with 8 bits, as the server writes it.
  async function readIndices(blob) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const view = new DataView(bytes.buffer);
    const parts = [];
    let width = 0;
    let height = 0;
    for (let at = 8; at < bytes.length; ) {
      const length = view.getUint32(at);
      const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
      if (kind === "IHDR") {
        width = view.getUint32(at + 8);
        height = view.getUint32(at + 12);
      } else if (kind === "IDAT") {
        parts.push(bytes.subarray(at + 8, at + 8 + length));
      }
      at += length + 12;
    }
    const packed = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
    const rows = new Uint8Array(await new Response(packed).arrayBuffer());
    const indices = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const filter = rows[y * (width + 1)];
      const from = y * (width + 1) + 1;
      const to = y * width;
      for (let x = 0; x < width; x++) {
        const left = x ? indices[to + x - 1] : 0;
        const up = y ? indices[to + x - width] : 0;
        const corner = x && y ? indices[to + x - width - 1] : 0;
        let guess = 0;
        if (filter === 1) guess = left;
        else if (filter === 2) guess = up;
        else if (filter === 3) guess = (left + up) >> 1;
        else if (filter === 4) guess = paeth(left, up, corner);
        indices[to + x] = rows[from + x] + guess;
      }
    }
    return { width, height, indices };
  }

  function paeth(left, up, corner) {
    const sum = left + up - corner;
    const [a, b, c] = [left, up, corner].map((value) => Math.abs(sum - value));
    if (a <= b && a <= c) return left;
    return b <= c ? up : corner;
  }

  // Returns a canvas of the result's size whose pixels are [red, green, blue, alpha] of `look`.
  function layer(look) {
    const { width, height, indices } = shown;
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer); // little endian: alpha is highest
    const table = Uint32Array.from({ length: 256 }, (_, index) => {
      const [red, green, blue, alpha] = look(index);
      return (alpha << 24) | (blue << 16) | (green << 8) | red;
    });
    for (let i = 0; i < pixels.length; i++) pixels[i] = table[indices[i]];
    const own = document.createElement("canvas");
    own.width = width;
    own.height = height;
    own.getContext("2d").putImageData(image, 0, 0);
    return own;
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (shown.photo) context.drawImage(shown.photo, 0, 0);
    if (shown.rest) context.drawImage(shown.rest, 0, 0);
    context.globalAlpha = shown.photo ? $("opacity").value / 100 : 1;
    context.drawImage(shown.colors, 0, 0);
    $("percent").textContent = `${$("opacity").value} %`;
  }

  function choose(id) {
    chosen = chosen === id ? null : id;
    const isSeen = (index) => chosen === null || index === chosen;
    shown.colors = layer((index) => [...(classes[index]?.color ?? [0, 0, 0]), isSeen(index) ? 255 : 0]);
    // All else is washed out, so that the class is found also where it has the picture's colours.
    shown.rest = chosen === null ? null : layer((index) => [128, 128, 128, isSeen(index) ? 0 : 200]);
    for (const button of $("keys").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.id === String(chosen)));
    }
    draw();
  }

  function swatch({ color }) {
    const box = document.createElement("span");
    box.className = "swatch";
    box.style.background = `rgb(${color.join(",")})`;
    return box;
  }

  async function loadClasses() {
    if (!classes.length) classes = (await (await fetch("/labels")).json()).classes;
    $("chips").replaceChildren(
      ...classes.map((one) => {
        const item = document.createElement("li");
        item.append(swatch(one), one.name);
        return item;
      }),
    );
    $("known").hidden = shown !== null;
  }

  function list() {
    const counts = new Array(256).fill(0);
    for (const index of shown.indices) counts[index] += 1;
    const found = classes.filter(({ id }) => counts[id]).sort((a, b) => counts[b.id] - counts[a.id]);
    const share = ({ id }) => percent(counts[id] / shown.indices.length);
    $("keys").replaceChildren(
      ...found.map((one) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.id = one.id;
        const name = document.createElement("span");
        name.className = "name";
        name.textContent = one.name;
        const small = document.createElement("small");
        small.textContent = share(one);
        button.append(swatch(one), name, small);
        button.addEventListener("click", () => choose(one.id));
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
    const first = found.slice(0, 3).map((one) => `${one.name} ${share(one)}`).join(", ");
    canvas.setAttribute("aria-label", `The picture under its classes' colours: ${first}`);
    return first;
  }

  // Posts the picture; waits and tries again while the server has no time.
  async function post(blob, name, signal) {
    for (let turn = 1; ; turn++) {
      const headers = { "Content-Type": "application/octet-stream" };
      const answer = await fetch("/predict", { method: "POST", body: blob, headers, signal });
      if (answer.ok) return answer.blob();
      const { error } = await answer.json();
      if (answer.status !== 503 || turn === TRIES) {
        const where = error.where === "image" ? name : error.where;
        throw new Error(`${where}: ${error.what} - ${error.fix}`);
      }
      const seconds = Number(answer.headers.get("Retry-After")) || 2;
      say(`The server ${error.what}; trying again in ${seconds} s`, true);
      await sleep(1000 * seconds);
      signal.throwIfAborted();
    }
  }

  async function segment(blob, name) {
    running?.abort();
    const mine = (running = new AbortController());
    $("result").classList.add("old");
    say(`Segmenting ${name}; a size that is new to the server takes longer`, true);
    try {
      await loadClasses();
      const photo = await createImageBitmap(blob).catch(() => null);
      const began = performance.now();
      const mask = await post(blob, name, mine.signal);
      const passed = (performance.now() - began) / 1000;
      const seconds = passed.toFixed(passed < 1 ? 2 : 1);
      const read = await readIndices(mask);
      if (mine.signal.aborted) return;
      const { width, height } = read;
      const fits = photo && photo.width === width && photo.height === height;
      shown = { photo: fits ? photo : null, ...read };
      canvas.width = width;
      canvas.height = height;
      chosen = null;
      const first = list();
      choose(null);
      URL.revokeObjectURL($("mask").href);
      $("mask").href = URL.createObjectURL(mask);
      $("opacity").disabled = !fits;
      const note = fits ? "" : "; this browser cannot show the picture itself";
      $("caption").textContent = `${name}, ${width} x ${height} pixels${note}`;
      $("result").hidden = false;
      $("give").classList.add("done");
      $("lead").textContent = "Another one: drop it, paste it, or";
      $("known").hidden = true;
      say(`Done in ${seconds} s: ${first}`);
    } catch (error) {
      if (mine.signal.aborted) return;
      const isLost = error instanceof TypeError;
      fail(isLost ? "The server cannot be reached; is it still running?" : error.message);
    } finally {
      if (running === mine) {
        running = null;
        $("result").classList.remove("old");
      }
    }
  }

  function take(files) {
    const all = [...files];
    if (all.length > 1) fail(`${all.length} files at once; give one picture`);
    else if (all.length) segment(all[0], all[0].name || "the picture");
  }

  function closeCamera() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    $("shot").hidden = true;
    $("camera").disabled = false;
  }

  async function openCamera() {
    if (!navigator.mediaDevices?.getUserMedia) {
      fail("Browsers give the camera to https and to http://localhost alone; this page is neither");
      return;
    }
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      const known = {
        NotAllowedError: "The camera is not allowed; allow it in the browser's settings of this page",
        NotFoundError: "There is no camera; choose a picture",
        NotReadableError: "The camera is in use by another program; close that",
      };
      fail(known[error.name] ?? `The camera cannot be used (${error.name}); choose a picture`);
      return;
    }
    $("video").srcObject = stream;
    $("shot").hidden = false;
    $("camera").disabled = true;
    await $("video").play();
    $("take").focus();
    say("The camera is on");
  }

  function takeShot() {
    const video = $("video");
    const still = document.createElement("canvas");
    still.width = video.videoWidth;
    still.height = video.videoHeight;
    still.getContext("2d").drawImage(video, 0, 0);
    closeCamera();
    $("camera").focus();
    still.toBlob((blob) => segment(blob, "the camera's picture"), "image/png");
  }

  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    take($("file").files);
    $("file").value = "";
  });
  $("camera").addEventListener("click", openCamera);
  $("take").addEventListener("click", takeShot);
  $("close").addEventListener("click", () => {
    closeCamera();
    say("");
    $("camera").focus();
  });
  $("opacity").addEventListener("input", draw);
  $("overlay").addEventListener("click", (event) => {
    event.preventDefault();
    canvas.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "overlay.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/png");
  });
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (files.length) take(files);
    else fail("The clipboard holds no picture; copy one and paste again");
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      $("give").classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("give").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("give").classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
    else fail("That was no file; save the picture and drop the file, or paste the picture itself");
  });
  loadClasses()
    .catch(() => {}) // said with the first picture
    .finally(() => {
      document.body.dataset.ready = "true";
    });
})();
