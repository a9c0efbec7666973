// The page that explains images in the browser, and the worker that computes: both are this module.
//
// The page decodes and resizes an image, runs explainer graphs of `camrt export` with onnxruntime-web, and draws the
// heatmaps. Nothing is sent anywhere, except by the page of `camrt serve`: its models are not files but paths of that
// server, which gets the resized square and computes. What is computed from pixels equals camrt's Python code: resizing
// is that of camrt.images, colors and opacity are those of camrt.colors, the box is that of camrt.localize.

const MAX_SIDE = 1024; // pixels: the longer side at which images are shown
const MAX_PIXELS = 89_478_485; // as camrt.images
const BELOW_HALF = 0.49999999999999994; // not 0.5, which would lift the number right below 0.5 to 1

// ------------------------------------------------------------------------------------------------------------ resizing

/** The bicubic kernel with a = -0.5 (Keys 1981, eq. 15). */
function cubic(x) {
  x = Math.abs(x);
  if (x <= 1) return 1.5 * x ** 3 - 2.5 * x ** 2 + 1;
  return x <= 2 ? -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2 : 0;
}

/**
 * The input pixels of each output pixel along an axis, and their weights: camrt.matlab.contributions.
 *
 * The kernel is stretched where the axis shrinks, against aliasing. Beyond the border the image is mirrored.
 *
 * @returns {{taps: number, sources: Int32Array, weights: Float64Array}} `taps` of each for every output pixel.
 */
export function contributions(sizeIn, sizeOut) {
  const scale = sizeOut / sizeIn;
  const stretch = Math.min(scale, 1);
  const support = 4 / stretch;
  const reach = Math.ceil(support) + 2; // with a spare pixel at each end
  const all = new Float64Array(sizeOut * reach);
  const first = new Int32Array(sizeOut);
  let begin = reach;
  let end = 0;
  for (let i = 0; i < sizeOut; i++) {
    const center = (i + 1) / scale + 0.5 * (1 - 1 / scale);
    first[i] = Math.floor(center - support / 2);
    let sum = 0;
    for (let j = 0; j < reach; j++) sum += all[i * reach + j] = stretch * cubic(stretch * (center - first[i] - j));
    for (let j = 0; j < reach; j++) {
      all[i * reach + j] /= sum;
      if (all[i * reach + j] !== 0) [begin, end] = [Math.min(begin, j), Math.max(end, j + 1)];
    }
  }
  const taps = end - begin;
  const sources = new Int32Array(sizeOut * taps);
  const weights = new Float64Array(sizeOut * taps);
  for (let i = 0; i < sizeOut; i++) {
    for (let j = 0; j < taps; j++) {
      const position = first[i] + begin + j - 1;
      const around = ((position % (2 * sizeIn)) + 2 * sizeIn) % (2 * sizeIn);
      sources[i * taps + j] = around < sizeIn ? around : 2 * sizeIn - 1 - around;
      weights[i * taps + j] = all[i * reach + begin + j];
    }
  }
  return { taps, sources, weights };
}

/** A plane of pixels: `channels` numbers each, `step` apart (4 for RGBA, of which 3 are read). */
const plane = (data, width, height, channels = 1, step = channels) => ({ data, width, height, channels, step });

function store(line, target, offset) {
  if (target instanceof Float32Array) return target.set(line, offset);
  for (let i = 0; i < line.length; i++) target[offset + i] = Math.min(Math.max(line[i], 0), 255) + BELOW_HALF;
}

/** Resize to another height. */
function alongColumns({ data, width, height, channels, step }, size) {
  const { taps, sources, weights } = contributions(height, size);
  const row = width * channels;
  const resized = new (data instanceof Float32Array ? Float32Array : Uint8Array)(size * row);
  const line = new Float64Array(row);
  for (let y = 0; y < size; y++) {
    line.fill(0);
    for (let tap = y * taps; tap < (y + 1) * taps; tap++) {
      const weight = weights[tap];
      let from = sources[tap] * width * step;
      if (weight === 0) continue;
      if (channels === 3) {
        for (let to = 0; to < row; to += 3, from += step) {
          line[to] += weight * data[from];
          line[to + 1] += weight * data[from + 1];
          line[to + 2] += weight * data[from + 2];
        }
      } else {
        for (let to = 0; to < row; to++, from++) line[to] += weight * data[from];
      }
    }
    store(line, resized, y * row);
  }
  return plane(resized, width, size, channels);
}

/** Resize to another width. */
function alongRows({ data, width, height, channels, step }, size) {
  const { taps, sources, weights } = contributions(width, size);
  const row = size * channels;
  const resized = new (data instanceof Float32Array ? Float32Array : Uint8Array)(height * row);
  const line = new Float64Array(row);
  for (let y = 0; y < height; y++) {
    const start = y * width * step;
    for (let x = 0, tap = 0; x < size; x++) {
      let [first, second, third] = [0, 0, 0];
      for (const stop = tap + taps; tap < stop; tap++) {
        const weight = weights[tap];
        const from = start + sources[tap] * step;
        first += weight * data[from];
        if (channels === 3) {
          second += weight * data[from + 1];
          third += weight * data[from + 2];
        }
      }
      line[x * channels] = first;
      if (channels === 3) [line[x * 3 + 1], line[x * 3 + 2]] = [second, third];
    }
    store(line, resized, y * row);
  }
  return plane(resized, size, height, channels);
}

/** Resize as camrt.images.resize: first the axis that shrinks more; each result is rounded as its type asks. */
function resize(image, width, height) {
  const columns = (each) => (each.height === height ? each : alongColumns(each, height));
  const rows = (each) => (each.width === width ? each : alongRows(each, width));
  return height / image.height <= width / image.width ? rows(columns(image)) : columns(rows(image));
}

/**
 * Make the square that a network looks at: camrt.images.prepare.
 *
 * @param {Uint8ClampedArray} rgba The pixels of an image; alpha is dropped.
 * @returns {Uint8Array} (side, side, 3) RGB.
 */
export function squareOf(rgba, width, height, side) {
  const resized = resize(plane(rgba, width, height, 3, 4), side, side);
  if (resized.step === 3) return resized.data;
  const packed = new Uint8Array(side * side * 3);
  for (let from = 0, to = 0; to < packed.length; from += 4) {
    for (let channel = 0; channel < 3; channel++) packed[to++] = rgba[from + channel];
  }
  return packed;
}

// ------------------------------------------------------------------------------------------------- levels and boxes

/**
 * Turn a map into levels 0 to 255: camrt.colors.levels.
 *
 * With a diverging color map, 128 is zero; else 0 is the smallest value, or zero where there are negative ones.
 *
 * @param {Float32Array} map Any number of values.
 * @returns {Uint8Array} As many.
 */
export function levelsOf(map, diverging = false) {
  let [lowest, highest] = [Infinity, -Infinity];
  for (const value of map) {
    if (!Number.isFinite(value)) continue;
    if (value < lowest) lowest = value;
    if (value > highest) highest = value;
  }
  const finite = map.filter(Number.isFinite);
  if (diverging) {
    highest = withoutOutliers(finite.map(Math.abs), Math.max(-lowest, highest));
    lowest = -highest;
  } else {
    highest = withoutOutliers(finite, highest);
    lowest = Math.max(lowest, 0);
  }
  const levels = new Uint8Array(map.length);
  if (!(highest > lowest)) return levels.fill(diverging ? 128 : 0);
  const [zero, range] = diverging ? [1, 254] : [0, 255];
  for (let i = 0; i < map.length; i++) {
    const share = (Math.min(Math.max(map[i], lowest), highest) - lowest) / (highest - lowest);
    levels[i] = Number.isNaN(share) ? (diverging ? 128 : 0) : Math.round(zero + range * share);
  }
  return levels;
}

/** The largest value, or twice the 99.5th percentile where that is less, and not 0: as camrt.colors.limits. */
function withoutOutliers(values, highest) {
  const typical = 2 * values.sort()[Math.floor(0.995 * (values.length - 1))];
  return typical > 0 && typical < highest ? typical : highest;
}

/** Resize levels (side, side) to (height, width): bilinear, the centers of the corner pixels beyond the border. */
export function levelsAt(levels, side, width, height) {
  const ends = (size) => {
    const [low, high, share] = [new Int32Array(size), new Int32Array(size), new Float32Array(size)];
    for (let i = 0; i < size; i++) {
      const place = Math.min(Math.max(((i + 0.5) * side) / size - 0.5, 0), side - 1);
      low[i] = Math.floor(place);
      high[i] = Math.min(low[i] + 1, side - 1);
      share[i] = place - low[i];
    }
    return { low, high, share };
  };
  const [across, down] = [ends(width), ends(height)];
  const resized = new Uint8Array(width * height);
  const line = new Float32Array(side);
  for (let y = 0, to = 0; y < height; y++) {
    const [above, below, part] = [down.low[y] * side, down.high[y] * side, down.share[y]];
    for (let x = 0; x < side; x++) line[x] = levels[above + x] + part * (levels[below + x] - levels[above + x]);
    for (let x = 0; x < width; x++, to++) {
      const left = line[across.low[x]];
      resized[to] = left + across.share[x] * (line[across.high[x]] - left) + 0.5;
    }
  }
  return resized;
}

/**
 * The box around the best region of a map: camrt.localize.best_box.
 *
 * Of the pixels above half of the map's range, it is around the largest part that is connected, at corners too.
 *
 * @param {Float32Array} map (side, side).
 * @returns {number[] | null} x, y, width, height in pixels of the map; null where nothing stands out.
 */
export function bestBox(map, side) {
  let [lowest, highest] = [Infinity, -Infinity];
  for (const value of map) {
    if (!Number.isFinite(value)) continue;
    if (value < lowest) lowest = value;
    if (value > highest) highest = value;
  }
  lowest = Math.max(lowest, 0);
  if (!(highest > lowest)) return null;
  const above = lowest + 0.5 * (highest - lowest);
  const isOpen = Uint8Array.from(map, (value) => Number(value > above && value < Infinity));
  let best = { size: 0, box: null };
  for (let start = isOpen.indexOf(1); start >= 0; start = isOpen.indexOf(1, start + 1)) {
    const part = takeComponent(isOpen, side, start);
    if (part.size > best.size) best = part;
  }
  return best.box;
}

/** Clear the component of a pixel: how many pixels it had, and the box around it. */
function takeComponent(isOpen, side, start) {
  const waiting = [start];
  let [size, left, top, right, bottom] = [0, side, side, 0, 0];
  isOpen[start] = 0;
  while (waiting.length) {
    const place = waiting.pop();
    const [x, y] = [place % side, Math.floor(place / side)];
    size++;
    [left, top] = [Math.min(left, x), Math.min(top, y)];
    [right, bottom] = [Math.max(right, x), Math.max(bottom, y)];
    for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, side - 1); v++) {
      for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, side - 1); u++) {
        if (isOpen[v * side + u]) {
          isOpen[v * side + u] = 0;
          waiting.push(v * side + u);
        }
      }
    }
  }
  return { size, box: [left, top, right - left + 1, bottom - top + 1] };
}

/** A box in the pixels of a picture that a map covers. */
function boxAt([x, y, w, h], side, width, height) {
  const [left, right] = [x, x + w].map((each) => Math.round((each * width) / side));
  const [top, bottom] = [y, y + h].map((each) => Math.round((each * height) / side));
  return [left, top, right - left, bottom - top];
}

// ------------------------------------------------------------------------------------------------------------ fetching

/**
 * Fetch a file, with word of how far it is, and check that it is whole.
 *
 * @param {{url: string, bytes: number, integrity?: string}} file What is expected.
 * @param {(received: number) => void} advance Called with the bytes of each part.
 * @returns {Promise<ArrayBuffer>}
 */
async function fetched({ url, bytes, integrity }, advance) {
  const name = new URL(url).pathname.split("/").pop();
  // crypto.subtle is there in secure contexts alone; elsewhere the browser checks, which it does at the end.
  const checks = integrity && !globalThis.crypto?.subtle ? { integrity } : {};
  let response;
  try {
    response = await fetch(url, { credentials: "omit", referrerPolicy: "no-referrer", ...checks });
  } catch (error) {
    throw new Error(`${name} cannot be fetched from ${new URL(url).host || "this folder"} (${error.message})`);
  }
  if (!response.ok) throw new Error(`${name} is not there: the server answers ${response.status} for ${url}`);
  const content = new Uint8Array(bytes);
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (received + value.length <= bytes) content.set(value, received);
    received += value.length;
    if (received > bytes) break;
    advance(value.length);
  }
  if (received !== bytes) {
    const found = received > bytes ? `more than ${bytes}` : `${received}`;
    throw new Error(`${name} is not the file that belongs here: found ${found} bytes, expected ${bytes}. Upload it again`);
  }
  if (integrity && globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-384", content));
    const found = `sha384-${btoa(String.fromCharCode(...digest))}`;
    if (found !== integrity) throw new Error(`${name} is not the file that belongs here: its hash is ${found}`);
  }
  return content.buffer;
}

// ---------------------------------------------------------------------------------------------------------- the server

const HEADER_LENGTH = "Inference-Header-Content-Length"; // bytes of JSON before the tensors
const OUTPUTS = ["scores", "classes", "heatmaps"];
const ARRAYS = { FP32: Float32Array, INT64: BigInt64Array };
const ATTEMPTS = 3; // while the server says that it has too much to do

/**
 * Ask a server for what a graph computes: the Open Inference Protocol with binary tensors, as camrt.serve.protocol.
 *
 * @param {{infer: string, top: number, size: number}} model `infer` is the path, from the page.
 * @param {{name: string, datatype: string, shape: number[], data: ArrayBufferView}[]} inputs Little-endian.
 * @returns {Promise<{scores: Float32Array, classes: BigInt64Array, heatmaps: Float32Array}>}
 */
async function inferred(model, inputs) {
  const described = inputs.map(({ data, ...input }) => ({ ...input, parameters: { binary_data_size: data.byteLength } }));
  const wanted = OUTPUTS.map((name) => ({ name, parameters: { binary_data: true } }));
  const head = new TextEncoder().encode(JSON.stringify({ inputs: described, outputs: wanted }));
  const response = await posted(new URL(model.infer, import.meta.url), {
    headers: { [HEADER_LENGTH]: String(head.length), "Content-Type": "application/octet-stream" },
    body: new Blob([head, ...inputs.map(({ data }) => data)]),
  });
  const answer = await response.arrayBuffer().catch((error) => {
    throw new Error(`the server's answer broke off (${error.message})`);
  });
  try {
    return tensorsOf(answer, Number(response.headers.get(HEADER_LENGTH)), model);
  } catch (error) {
    throw new Error(`the server's answer cannot be read (${error.message}). Load this page again`);
  }
}

/** Post to the server. One that is busy is asked again after a while; an error is told in the server's words. */
async function posted(url, request) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(url, { method: "POST", ...request });
    } catch (error) {
      throw new Error(`the server cannot be reached (${error.message})`);
    }
    if (response.ok) return response;
    const told = await response.json().then(({ error }) => error, () => response.statusText);
    if (response.status !== 503 || attempt === ATTEMPTS) {
      const words = { 503: "the server is busy", 504: "the server took too long" };
      throw new Error(`${words[response.status] ?? "the server refused it"} (${response.status}: ${told})`);
    }
    const seconds = Math.min(Number(response.headers.get("Retry-After")) || 1, 5);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

/** The tensors of an answer: JSON of so many bytes, and the values of each behind it. */
function tensorsOf(answer, length, { classes, top, size }) {
  const { outputs } = JSON.parse(new TextDecoder().decode(new Uint8Array(answer, 0, length)));
  const found = {};
  let begin = length;
  for (const { name, datatype, parameters } of outputs) {
    const end = begin + parameters.binary_data_size;
    found[name] = new ARRAYS[datatype](answer.slice(begin, end)); // a copy: views begin at multiples of 4 or 8 only
    begin = end;
  }
  const expected = { scores: classes, classes: top, heatmaps: top * size * size };
  for (const name of OUTPUTS) {
    const values = found[name]?.length ?? 0;
    if (values !== expected[name]) throw new Error(`found ${values} ${name}, expected ${expected[name]}`);
  }
  return found;
}

// ------------------------------------------------------------------------------------------------------------ the worker

/** Runs explainer graphs, or has a server run them. Its methods are what the page asks for, with one object each. */
class Engine {
  sessions = new Map();
  squares = new Map();

  /** Load onnxruntime-web. `backend` is "webgpu" or "wasm"; with "server" there is nothing to load. */
  async start({ build, backend }, advance) {
    if (backend === "server") return { threads: 0 };
    const [module, loader, binary] = await Promise.all(build.map((file) => fetched(file, advance)));
    const local = (text) => URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    this.ort = await import(local(module));
    this.backend = backend;
    const { env } = this.ort;
    env.logLevel = "error";
    env.wasm.wasmBinary = binary;
    env.wasm.wasmPaths = { mjs: local(loader) };
    env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
    return { threads: env.wasm.numThreads };
  }

  /** Load a graph; that of a server is there. */
  async open({ model }, advance) {
    if (model.infer || this.sessions.has(model.id)) return {};
    const content = await fetched(model, advance);
    const options = { executionProviders: [this.backend], graphOptimizationLevel: "all", logSeverityLevel: 3 };
    this.sessions.set(model.id, await this.ort.InferenceSession.create(content, options));
    return {};
  }

  /** Decode an image file; what follows is about it. Returns a picture of it that is at most `side` pixels long. */
  async decode({ blob, side }) {
    const { bitmap, data, width, height } = await decoded(blob);
    this.image = { data, width, height };
    this.squares.clear();
    const scale = Math.min(1, side / Math.max(width, height));
    const [resizeWidth, resizeHeight] = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
    const shown = await createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
    bitmap.close();
    return { width, height, shown };
  }

  /** Take a frame of a camera as the image. */
  frame({ bitmap }) {
    this.image = { data: pixelsOf(bitmap, false), width: bitmap.width, height: bitmap.height };
    this.squares.clear();
    bitmap.close();
  }

  /**
   * Explain the image. `targets` are the classes that are asked for, -1 for the best of its place; null for the best.
   * With `view`, the map at that index of the result is made ready to be drawn.
   */
  async explain({ model, targets, view }) {
    const began = performance.now();
    const { data, width, height } = this.image;
    if (!this.squares.has(model.size)) this.squares.set(model.size, squareOf(data, width, height, model.size));
    let found = await this.run(model, targets ?? new Array(model.top).fill(model.target === "any" ? -1 : 0));
    if (model.target === "input" && !targets) found = await this.run(model, ranked(found.scores).slice(0, model.top));
    const result = { ...found, milliseconds: performance.now() - began };
    return view ? { ...result, ...this.view({ model, result, ...view }) } : result;
  }

  async run(model, targets) {
    const shape = [1, model.size, model.size, 3];
    const inputs = [{ name: "image", datatype: "UINT8", shape, data: this.squares.get(model.size) }];
    if (model.target === "any" || model.target === "input") {
      const data = BigInt64Array.from(targets, BigInt);
      inputs.push({ name: "target", datatype: "INT64", shape: [1, model.top], data });
    }
    const found = await (model.infer ? inferred(model, inputs) : this.computed(model, inputs));
    return { ...found, classes: Array.from(found.classes, Number) };
  }

  /** Run a graph here. */
  async computed(model, inputs) {
    const tensor = ({ datatype, data, shape }) => new this.ort.Tensor(datatype.toLowerCase(), data, shape);
    const feeds = Object.fromEntries(inputs.map((input) => [input.name, tensor(input)]));
    const outputs = await this.sessions.get(model.id).run(feeds);
    const found = {};
    for (const name of OUTPUTS) {
      found[name] = (await outputs[name].getData()).slice();
      outputs[name].dispose();
    }
    return found;
  }

  /** Make a map of a result ready to be drawn at a size: its levels, and the box around what stands out. */
  view({ model, result, chosen, width, height, diverging, box }) {
    let index = chosen === null ? 0 : result.classes.indexOf(chosen);
    if (index < 0) index = 0;
    const area = model.size * model.size;
    const map = result.heatmaps.subarray(index * area, (index + 1) * area);
    const levels = levelsAt(levelsOf(map, diverging), model.size, width, height);
    const found = box ? bestBox(map, model.size) : null;
    return { index, levels, box: found && boxAt(found, model.size, width, height) };
  }
}

/** The indices of scores, the best first. */
export function ranked(scores) {
  return Array.from(scores.keys()).sort((one, other) => scores[other] - scores[one]);
}

/**
 * Decode an image file as camrt.images.decode: upright, without its color profile, and with the colors below alpha.
 *
 * @returns {Promise<{bitmap: ImageBitmap, data: Uint8ClampedArray, width: number, height: number}>} `data` is RGBA.
 */
export async function decoded(blob) {
  const bitmap = await bitmapOf(blob);
  return { bitmap, data: pixelsOf(bitmap, true), width: bitmap.width, height: bitmap.height };
}

/** Decode an image file; one that is no image, or too large, is an error. */
async function bitmapOf(blob) {
  let bitmap;
  try {
    const as = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(blob, as);
  } catch {
    const kind = blob.type ? `${blob.type}, ` : "";
    throw new Error(
      `is no image that this browser can read (${kind}${blob.size.toLocaleString("en")} bytes), ` +
        "expected a whole JPEG, PNG, WebP, GIF, BMP or AVIF file",
    );
  }
  const { width, height } = bitmap;
  if (width * height <= MAX_PIXELS) return bitmap;
  bitmap.close();
  throw new Error(
    `is too large: found ${width} × ${height} pixels, expected at most ${MAX_PIXELS.toLocaleString("en")}. ` +
      "Make it smaller",
  );
}

let drawing = null;

/** The pixels of a bitmap: RGBA. */
function pixelsOf(bitmap, mayBeTransparent) {
  const { width, height } = bitmap;
  drawing ??= new OffscreenCanvas(width, height);
  if (drawing.width !== width || drawing.height !== height) [drawing.width, drawing.height] = [width, height];
  const context = drawing.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return mayBeTransparent && isTransparent(data) ? (colorsBelow(bitmap) ?? data) : data;
}

function isTransparent(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] < 255) return true;
  return false;
}

/** The pixels with the colors below their alpha, which a 2D canvas does not keep; null where WebGL is missing. */
function colorsBelow(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl", { premultipliedAlpha: false });
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) return null;
  const pixels = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return pixels;
}

/** Answer the page's requests one after the other: {id, method, argument}. */
function serveWorker() {
  const engine = new Engine();
  let last = Promise.resolve();
  const answer = async ({ id, method, argument }) => {
    try {
      const advance = (bytes) => postMessage({ id, bytes });
      const result = (await engine[method](argument, advance)) ?? {};
      const moved = Object.values(result).flatMap((each) =>
        each instanceof ImageBitmap ? [each] : ArrayBuffer.isView(each) ? [each.buffer] : [],
      );
      postMessage({ id, result }, moved);
    } catch (error) {
      postMessage({ id, error: error?.message ?? String(error) });
    }
  };
  onmessage = ({ data }) => {
    last = last.then(() => answer(data));
  };
}

/** The worker as the page sees it: `engine.ask("explain", {...})` is a promise of the answer. */
class RemoteEngine {
  constructor(site) {
    this.site = site;
    this.waiting = new Map();
    this.asked = 0;
  }

  /** Start with a backend; where WebGPU fails, with wasm, and `note` says why. Without a runtime, a server computes. */
  async start(wanted, advance) {
    if (!this.site.runtime) return this.startWith("server", advance);
    const reason = wanted === "wasm" ? null : await this.webgpuIsMissing(wanted === "webgpu");
    const backends = wanted === "wasm" || reason ? ["wasm"] : ["webgpu", "wasm"];
    this.note = wanted === "wasm" ? "" : (reason ?? "");
    for (const backend of backends) {
      try {
        return await this.startWith(backend, advance);
      } catch (error) {
        this.stop();
        if (backend === "wasm") throw error;
        this.note = `WebGPU does not work here (${error.message}); computing with wasm`;
      }
    }
  }

  async startWith(backend, advance) {
    this.stop();
    this.backend = backend;
    this.worker = new Worker(import.meta.url, { type: "module", name: "camrt" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => this.fail(new Error(event.message || "the worker stopped"));
    const build = this.site.runtime?.builds[backend].map((file) => ({ ...file, url: absolute(file.url) }));
    const { threads } = await this.ask("start", { build, backend }, { advance });
    this.threads = threads;
  }

  /** Why WebGPU is not used; null where it can be. A GPU that is a program is slower than wasm: it is taken if asked. */
  async webgpuIsMissing(isAsked) {
    if (!navigator.gpu) {
      return window.isSecureContext
        ? "This browser has no WebGPU; computing with wasm"
        : "WebGPU needs https; computing with wasm";
    }
    try {
      const adapter = await navigator.gpu.requestAdapter();
      if (!adapter) return "There is no GPU for WebGPU; computing with wasm";
      const isProgram = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter;
      return isProgram && !isAsked ? "There is no GPU but a program that acts as one; computing with wasm" : null;
    } catch (error) {
      return `WebGPU does not start (${error.message}); computing with wasm`;
    }
  }

  ask(method, argument = {}, { advance, moved = [] } = {}) {
    const id = ++this.asked;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, advance });
      this.worker.postMessage({ id, method, argument }, moved);
    });
  }

  receive({ id, bytes, result, error }) {
    const request = this.waiting.get(id);
    if (!request) return;
    if (bytes !== undefined) return request.advance?.(bytes);
    this.waiting.delete(id);
    if (error !== undefined) request.reject(new Error(error));
    else request.resolve(result);
  }

  fail(error) {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }

  stop() {
    this.worker?.terminate();
    this.worker = null;
    this.fail(new Error("the worker was stopped"));
  }
}

const absolute = (url) => new URL(url, document.baseURI).href;

// -------------------------------------------------------------------------------------------------------- the page

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);

/** Make an element with text, never HTML: labels and file names come from others. */
function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** One model and method: its picture, its map and its classes. */
class Panel {
  constructor(page, model) {
    this.page = page;
    this.model = model;
    this.result = null;
    this.drawn = null;
    this.root = byId("panel").content.firstElementChild.cloneNode(true);
    const part = (selector) => this.root.querySelector(selector);
    this.parts = {
      facts: part(".facts"), picture: part(".picture"), image: part(".image"), video: part(".video"),
      map: part(".map"), marks: part(".marks"), value: part(".value"), note: part(".note"), classes: part(".classes"),
    };
    part("h2").textContent = model.title;
    this.parts.facts.textContent = model.method;
    const { picture } = this.parts;
    picture.addEventListener("pointermove", (event) => this.showValue(event));
    picture.addEventListener("pointerdown", (event) => this.showValue(event));
    picture.addEventListener("pointerleave", () => (this.parts.value.hidden = true));
  }

  label(number) {
    return this.model.labels?.[number] ?? `class ${number}`;
  }

  /** The number of the class that the page asks for; null for the best, or where this model does not know it. */
  chosen() {
    const { selection } = this.page;
    if (!selection) return null;
    if (this.label(selection.number) === selection.label) return selection.number;
    const number = this.model.labels?.indexOf(selection.label) ?? -1;
    return number < 0 ? null : number;
  }

  /** Whether the graph takes classes with the image. */
  get takesClasses() {
    return this.model.target === "any" || this.model.target === "input";
  }

  /** The classes to ask the graph for; null for the best. */
  targets() {
    const chosen = this.chosen();
    if (chosen === null || !this.takesClasses) return null;
    if (this.model.target === "any") return [chosen, ...new Array(this.model.top - 1).fill(-1)];
    return new Array(this.model.top).fill(chosen);
  }

  /** Whether the graph can explain a class of this image. */
  explains(number) {
    return this.takesClasses || Boolean(this.result?.classes.includes(number));
  }

  /** What the worker is to make ready. */
  view({ width, height }) {
    const { diverging } = this.page.colors();
    const chosen = this.chosen() ?? (this.result ? ranked(this.result.scores)[0] : null);
    return { chosen, width, height, diverging, box: this.page.settings.boxes };
  }

  /** Explain the page's image, or show another class of the explanation. */
  async update(isCurrent, { anew = true } = {}) {
    const { engine, shown } = this.page;
    if (anew) this.result = null;
    this.root.setAttribute("aria-busy", "true");
    try {
      const view = this.view(shown);
      const isThere = this.result !== null && (!this.takesClasses || this.result.classes.includes(view.chosen));
      const answer = isThere
        ? await engine.ask("view", { model: this.model, result: this.result, ...view })
        : await engine.ask("explain", { model: this.model, targets: this.targets(), view });
      if (isCurrent()) this.show({ ...this.result, ...answer }, shown);
    } finally {
      this.root.removeAttribute("aria-busy");
    }
  }

  /** Draw a result, whose levels and box are those of a picture of that size. */
  show(result, { width, height }) {
    this.result = result;
    this.drawn = { levels: result.levels, box: result.box, width, height };
    this.paintMap();
    this.showClasses();
  }

  /** Show the page's picture, with nothing on it yet. */
  paintImage({ picture, width, height, name }) {
    const { image, video, map, marks, picture: frame } = this.parts;
    for (const canvas of [image, map, marks]) [canvas.width, canvas.height] = [width, height];
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.setProperty("--ratio", width / height);
    video.hidden = true;
    video.srcObject = null;
    image.hidden = false;
    image.setAttribute("aria-label", name);
    image.getContext("2d").drawImage(picture, 0, 0);
    this.drawn = null;
    this.root.setAttribute("aria-busy", "true"); // until it is explained
  }

  /** Show a camera. */
  play(stream, { width, height }) {
    const { image, video, map, marks, picture } = this.parts;
    for (const canvas of [image, map, marks]) [canvas.width, canvas.height] = [width, height];
    picture.style.aspectRatio = `${width} / ${height}`;
    picture.style.setProperty("--ratio", width / height);
    image.hidden = true;
    video.hidden = false;
    if (video.srcObject !== stream) video.srcObject = stream;
    video.play().catch(() => {}); // as soon as it is allowed to
  }

  /** Color the levels. */
  paintMap() {
    const { map } = this.parts;
    map.style.opacity = this.page.settings.opacity;
    if (!this.drawn) return map.getContext("2d").clearRect(0, 0, map.width, map.height);
    const { levels, width, height } = this.drawn;
    if (map.width !== width || map.height !== height) [map.width, map.height] = [width, height];
    const context = map.getContext("2d");
    const pixels = context.createImageData(width, height);
    const colored = new Uint32Array(pixels.data.buffer);
    const { table } = this.page.colors();
    for (let i = 0; i < levels.length; i++) colored[i] = table[levels[i]];
    context.putImageData(pixels, 0, 0);
    this.paintMarks();
  }

  /** Draw the box: white with a black edge, so that it is seen on every ground. */
  paintMarks() {
    const { marks } = this.parts;
    const { box, width, height } = this.drawn;
    if (marks.width !== width || marks.height !== height) [marks.width, marks.height] = [width, height];
    const context = marks.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!box || !this.page.settings.boxes) return;
    const line = Math.max(2, Math.round(Math.max(width, height) / 200));
    for (const [color, thickness] of [["black", 2 * line], ["white", line]]) {
      context.strokeStyle = color;
      context.lineWidth = thickness;
      context.strokeRect(...box);
    }
  }

  /** List the best classes, and the one that is shown. */
  showClasses() {
    const { facts, note, classes } = this.parts;
    const { scores, index, milliseconds } = this.result;
    const number = this.result.classes[index];
    facts.textContent = `${this.model.method} · ${milliseconds.toFixed(0)} ms`;
    const best = ranked(scores).slice(0, 5);
    const listed = best.includes(number) ? best : [...best, number];
    while (classes.children.length > listed.length) classes.lastChild.remove();
    listed.forEach((each, place) => this.showClass(each, place, each === number));
    const wanted = this.chosen();
    const isOther = wanted !== null && wanted !== number;
    note.textContent = isOther ? `${this.label(wanted)} is not shown: this graph explains ${this.explained()}` : "";
  }

  explained() {
    return this.model.target === "top" ? `the best ${this.model.top} only` : "given classes only";
  }

  /** What the map is about, in words. */
  caption() {
    const number = this.result.classes[this.result.index];
    return `${this.label(number)} ${this.score(number)}`;
  }

  showClass(number, place, isShown) {
    const { classes } = this.parts;
    if (!classes.children[place]) classes.append(this.classButton());
    const button = classes.children[place].firstChild;
    const [label, score, meter] = button.children;
    label.textContent = this.label(number);
    score.textContent = this.score(number);
    meter.firstChild.style.width = `${100 * Math.min(Math.max(this.result.scores[number], 0), 1)}%`;
    button.title = `${this.label(number)} (class ${number})`;
    button.value = number;
    button.disabled = !this.explains(number);
    button.setAttribute("aria-pressed", String(isShown));
  }

  classButton() {
    const item = element("li");
    const button = element("button", "", { type: "button" });
    const meter = element("span", "", { class: "meter" });
    meter.append(element("span"));
    button.append(element("span", "", { class: "label" }), element("span", "", { class: "score" }), meter);
    button.addEventListener("click", () => this.page.select(Number(button.value), this.label(Number(button.value))));
    item.append(button);
    return item;
  }

  score(number) {
    const score = this.result.scores[number];
    return score >= 0 && score <= 1 ? percent(score) : Number.isFinite(score) ? score.toPrecision(4) : "no number";
  }

  /** Show the value of the map under the pointer, as a share of its largest value. */
  showValue(event) {
    const { picture, value } = this.parts;
    if (!this.result || !this.drawn) return;
    const frame = picture.getBoundingClientRect();
    const [x, y] = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) return void (value.hidden = true);
    const { width, height } = this.page.shown.original;
    const share = this.valueAt(x, y);
    value.textContent = `${Number.isFinite(share) ? share.toFixed(2) : "no number"} at ${Math.floor(x * width)}, ${Math.floor(y * height)}`;
    value.hidden = false;
    value.classList.toggle("below", y < 0.15);
  }

  valueAt(x, y) {
    const { size } = this.model;
    const map = this.result.heatmaps.subarray(this.result.index * size * size, (this.result.index + 1) * size * size);
    const largest = map.reduce((most, each) => Math.max(most, Math.abs(each)), 0);
    return map[Math.floor(y * size) * size + Math.floor(x * size)] / (largest || 1);
  }

  /** The picture as it is seen, for a file. */
  drawInto(context, left, top, { width, height }) {
    const { image, video, map, marks } = this.parts;
    context.drawImage(video.hidden ? image : video, left, top, width, height);
    context.globalAlpha = this.page.settings.opacity;
    context.drawImage(map, left, top, width, height);
    context.globalAlpha = 1;
    if (this.page.settings.boxes) context.drawImage(marks, left, top, width, height);
  }
}

/** The page: its images, its panels and its settings. */
class Page {
  constructor(site) {
    this.site = site;
    this.engine = new RemoteEngine(site);
    this.panels = new Map();
    this.images = [];
    this.current = null;
    this.shown = null; // what is seen: picture, width, height, name, original
    this.selection = null; // a class that was chosen; null for the best
    this.turn = 0; // of what is asked; older answers are dropped
    this.choice = 0; // of images, likewise
    this.stream = null;
    this.facing = "environment";
    this.settings = { opacity: site.colors.opacity, colormap: site.colors.default, boxes: true };
    this.tables = new Map();
  }

  /** The table of the color map that is chosen, as RGBA numbers by the rule of camrt.colors; and its kind. */
  colors() {
    const name = this.settings.colormap;
    if (!this.tables.has(name)) {
      const { start, full, zero, colormaps } = this.site.colors;
      const { colors, diverging } = colormaps[name];
      const table = new Uint32Array(256);
      const bytes = new Uint8Array(table.buffer);
      for (let level = 0; level < 256; level++) {
        const strength = diverging ? Math.abs(level - zero) / (zero - 1) : level / 255;
        const rise = Math.min(Math.max((strength - start) / (full - start), 0), 1);
        bytes.set([...colors[level], Math.round(255 * rise * rise * (3 - 2 * rise))], 4 * level);
      }
      this.tables.set(name, { table, diverging });
    }
    return this.tables.get(name);
  }

  // ------------------------------------------------------------------------------------------------------ starting

  async start() {
    byId("unstarted").hidden = true;
    byId("page").hidden = false;
    this.showModels();
    this.showSamples();
    this.showColormaps();
    this.listen();
    const wanted = new URLSearchParams(location.search).get("backend") ?? "auto";
    const { runtime } = this.site;
    const begin = (advance) => this.engine.start(wanted, advance);
    try {
      await (runtime ? this.load("Loading the runtime", this.runtimeBytes(wanted), begin) : begin());
    } catch (error) {
      const hint = !runtime || runtime.vendored ? "" : " Without internet, build the page with camrt web --vendor.";
      return this.problem("", `The runtime could not be started: ${error.message}.${hint}`);
    }
    this.showEngine();
    await this.activate(this.site.models[0]);
    this.isReady = true;
    if (this.images.length) await this.choose(this.images[this.images.length - 1]);
    else if (this.site.samples.length && !this.stream) await this.openSample(this.site.samples[0]);
    document.body.dataset.ready = "true";
  }

  runtimeBytes(wanted) {
    const build = wanted === "wasm" || !navigator.gpu ? "wasm" : "webgpu";
    return this.site.runtime.builds[build].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Show a bar while something is loaded. */
  async load(text, total, work) {
    const [box, bar, words] = [byId("loading"), byId("progress"), byId("loading-text")];
    let received = 0;
    const advance = (bytes) => {
      received += bytes;
      bar.value = Math.min(received / total, 1);
      words.textContent = `${text}: ${megabytes(Math.min(received, total))} of ${megabytes(total)} MB`;
    };
    advance(0);
    box.hidden = false;
    try {
      return await work(advance);
    } finally {
      box.hidden = true;
    }
  }

  showEngine() {
    const { backend, threads, note } = this.engine;
    const several = threads > 1 ? `${threads} threads` : "1 thread";
    const badge = byId("engine");
    badge.textContent = { webgpu: "WebGPU", server: "server" }[backend] ?? `wasm, ${several}`;
    badge.title = [
      note,
      backend === "wasm" && threads === 1 ? "Threads need a page that is isolated (COOP and COEP headers)." : "",
    ].filter(Boolean).join(" ");
    badge.dataset.backend = backend;
    badge.hidden = false;
    this.say(note);
  }

  showModels() {
    const box = byId("models");
    for (const model of this.site.models) {
      const label = element("label", "", { class: "check" });
      const input = element("input", "", { type: "checkbox", value: model.id });
      const size = element("span", model.infer ? "" : `${megabytes(model.bytes)} MB`, { class: "faint" });
      const name = element("span", `${model.title} · ${model.method}`, { class: "label" });
      label.append(input, name, size);
      input.addEventListener("change", () => this.toggle(model, input.checked));
      box.append(label);
    }
    byId("models-box").hidden = this.site.models.length < 2;
  }

  showSamples() {
    this.site.samples.forEach((sample, number) => {
      const button = element("button", this.site.samples.length > 1 ? `Sample ${number + 1}` : "Sample", { type: "button" });
      button.addEventListener("click", () => this.openSample(sample));
      byId("samples").append(button);
    });
  }

  showColormaps() {
    for (const name of Object.keys(this.site.colors.colormaps)) byId("colormap").append(element("option", name));
    this.applySettings();
  }

  /** Say it where everyone sees it, screen readers too. */
  say(text) {
    byId("status").textContent = text;
  }

  /** Tell what is wrong with something; it stays until it is dismissed, or tried `again`. */
  problem(name, text, again = null) {
    const item = element("li");
    if (name) item.append(element("strong", name), " ");
    item.append(element("span", text, { role: "alert" }));
    const button = (words, attributes, act) => {
      const made = element("button", words, { type: "button", class: "quiet", ...attributes });
      made.addEventListener("click", () => (item.remove(), act?.()));
      item.append(made);
    };
    if (again) button("Try again", {}, again);
    button("×", { "aria-label": "Dismiss" });
    const list = byId("problems");
    list.append(item);
    while (list.children.length > 8) list.firstChild.remove();
  }

  // -------------------------------------------------------------------------------------------------------- panels

  /** Load a model and give it a panel. */
  async activate(model) {
    if (this.panels.has(model.id)) return;
    const input = [...document.querySelectorAll("#models input")].find((each) => each.value === model.id);
    input.checked = true;
    try {
      const file = { ...model, url: absolute(model.file ?? model.infer) };
      if (model.infer) await this.opened(file);
      else await this.load(`Loading ${model.title} (${model.method})`, model.bytes, (advance) => this.opened(file, advance));
    } catch (error) {
      input.checked = false;
      return this.problem(model.title, error.message);
    }
    if (!input.checked) return; // it was switched off while it was loaded
    const panel = new Panel(this, model);
    this.panels.set(model.id, panel);
    this.arrangePanels();
    if (this.stream) this.playIn(panel);
    else if (this.shown) {
      panel.paintImage(this.shown);
      await this.explain([panel]);
    }
  }

  /** Open a graph; where WebGPU cannot, start again with wasm. */
  async opened(model, advance) {
    try {
      await this.engine.ask("open", { model }, { advance });
    } catch (error) {
      if (this.engine.backend !== "webgpu") throw error;
      await this.fallBack(error);
      await this.engine.ask("open", { model }, { advance });
    }
  }

  async fallBack(error) {
    await this.engine.startWith("wasm");
    this.engine.note = `WebGPU does not run this model (${error.message}); computing with wasm`;
    this.showEngine();
    for (const { model } of this.panels.values()) {
      await this.engine.ask("open", { model: { ...model, url: absolute(model.file) } });
    }
    if (this.current) await this.engine.ask("decode", { blob: this.current.blob, side: MAX_SIDE });
  }

  arrangePanels() {
    const order = this.site.models.map(({ id }) => this.panels.get(id)).filter(Boolean);
    byId("panels").replaceChildren(...order.map(({ root }) => root));
    byId("panels").dataset.count = order.length;
  }

  async toggle(model, isOn) {
    if (isOn) return this.activate(model);
    if (this.panels.size === 1 && this.panels.has(model.id)) {
      const input = [...document.querySelectorAll("#models input")].find((each) => each.value === model.id);
      input.checked = true; // the last one stays
      return;
    }
    this.panels.delete(model.id);
    this.arrangePanels();
  }

  // -------------------------------------------------------------------------------------------------------- images

  /** Take files; those that are no images are told, and do not stop the others. */
  async take(files) {
    if (!files.length) return;
    const added = [...files].map((blob) => ({ blob, name: blob.name || "pasted image" }));
    this.images.push(...added);
    await this.stopCamera();
    if (!this.isReady) return; // the last one is shown once the model is there
    let isShown = false;
    for (const image of added) {
      try {
        if (isShown) (await bitmapOf(image.blob)).close(); // checked, and shown when it is chosen
        else isShown = await this.choose(image);
      } catch (error) {
        this.problem(image.name, error.message);
        this.images = this.images.filter((each) => each !== image);
      }
    }
    this.showStrip();
  }

  async openSample({ file, name }) {
    try {
      const response = await fetch(absolute(file));
      if (!response.ok) throw new Error(`is not there: the server answers ${response.status}`);
      await this.take([new File([await response.blob()], name)]);
    } catch (error) {
      this.problem(name, error.message);
    }
  }

  /** Show an image, and explain it. Returns whether it can be shown. */
  async choose(image) {
    const choice = ++this.choice;
    this.turn++;
    let decoded;
    try {
      decoded = await this.engine.ask("decode", { blob: image.blob, side: MAX_SIDE });
    } catch (error) {
      this.images = this.images.filter((each) => each !== image);
      this.showStrip();
      this.problem(image.name, error.message);
      if (this.current) await this.engine.ask("decode", { blob: this.current.blob, side: MAX_SIDE });
      return false;
    }
    if (choice !== this.choice) return true; // another one was chosen since
    const { shown, width, height } = decoded;
    this.current = image;
    this.shown = { picture: shown, width: shown.width, height: shown.height, name: image.name, original: { width, height } };
    byId("empty").hidden = true;
    for (const panel of this.panels.values()) panel.paintImage(this.shown);
    this.showStrip();
    await this.explain([...this.panels.values()]);
    return true;
  }

  /** Explain the image in some panels, one after the other. */
  async explain(panels, options) {
    const turn = ++this.turn;
    for (const panel of panels) {
      try {
        await panel.update(() => turn === this.turn, options);
      } catch (error) {
        if (turn === this.turn) await this.failed(panel, error, options);
      }
      if (turn !== this.turn) return;
    }
    byId("save").disabled = false;
    const first = panels[0];
    if (first?.result) this.say(`${this.shown.name}: ${first.caption()}`);
    this.showFound();
  }

  async failed(panel, error, options) {
    if (panel.model.infer || this.engine.backend !== "webgpu") {
      const again = panel.model.infer ? () => this.explain([panel], options) : null;
      return this.problem(panel.model.title, `cannot explain this: ${error.message}`, again);
    }
    await this.fallBack(error);
    await this.explain([panel], options);
  }

  showStrip() {
    const strip = byId("strip");
    for (const url of strip.dataset.urls?.split(" ") ?? []) URL.revokeObjectURL(url);
    const urls = [];
    strip.replaceChildren(...(this.images.length < 2 ? [] : this.images.map((image) => {
      const button = element("button", "", { type: "button", title: image.name });
      button.setAttribute("aria-pressed", String(image === this.current));
      urls.push(URL.createObjectURL(image.blob));
      button.append(element("img", "", { src: urls.at(-1), alt: image.name }));
      button.addEventListener("click", () => this.choose(image));
      return button;
    })));
    strip.dataset.urls = urls.join(" ");
  }

  async step(by) {
    const place = this.images.indexOf(this.current);
    if (this.images.length > 1) await this.choose(this.images.at((place + by) % this.images.length));
  }

  // ------------------------------------------------------------------------------------------------------- classes

  /** Explain a class in all panels that know it; null for the best. */
  async select(number, label) {
    const same = this.selection && this.selection.number === number && this.selection.label === label;
    this.selection = number === null || same ? null : { number, label };
    if (this.shown && !this.stream) await this.explain([...this.panels.values()], { anew: false });
  }

  /** List the classes whose names have the words that are searched for. */
  showFound() {
    const words = byId("search").value.trim().toLowerCase();
    const panel = this.panels.values().next().value;
    const list = byId("found");
    if (!words || !panel) return list.replaceChildren();
    const { model, result } = panel;
    const order = result ? ranked(result.scores) : [...Array(model.classes).keys()];
    const matches = order.filter((each) => String(each) === words || panel.label(each).toLowerCase().includes(words));
    const begins = (each) => String(each) === words || ` ${panel.label(each).toLowerCase()}`.includes(` ${words}`);
    const found = [...matches.filter(begins), ...matches.filter((each) => !begins(each))]; // whole words first
    const items = found.slice(0, 8).map((number) => {
      const button = element("button", "", { type: "button" });
      button.append(element("span", panel.label(number), { class: "label" }));
      if (result) button.append(element("span", panel.score(number), { class: "score" }));
      button.disabled = Boolean(result) && !panel.explains(number);
      button.addEventListener("click", () => this.select(number, panel.label(number)));
      const item = element("li");
      item.append(button);
      return item;
    });
    const rest = found.length - items.length;
    if (rest > 0) items.push(element("li", `and ${rest} more`, { class: "faint" }));
    if (!found.length) items.push(element("li", "no class has this name", { class: "faint" }));
    list.replaceChildren(...items);
  }

  // -------------------------------------------------------------------------------------------------------- camera

  async toggleCamera() {
    if (this.stream) return this.stopCamera();
    if (!navigator.mediaDevices?.getUserMedia) {
      return this.problem("Camera", "is not available here: browsers allow it over https and on localhost only");
    }
    if (this.isStarting) return;
    this.isStarting = true;
    const video = { facingMode: this.facing, width: { ideal: 640 }, height: { ideal: 480 } };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      const words = { NotAllowedError: "was not allowed", NotFoundError: "was not found", NotReadableError: "is in use" };
      return this.problem("Camera", words[error.name] ?? error.message);
    } finally {
      this.isStarting = false;
    }
    this.stream.getVideoTracks()[0].addEventListener("ended", () => this.stopCamera());
    this.showCamera(true);
    this.say(`The camera is on; each frame is explained ${this.site.runtime ? "here" : "by the server"}.`);
    const turn = ++this.turn;
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    byId("flip").hidden = cameras.length < 2 || turn !== this.turn;
    await this.live(turn);
  }

  showCamera(isOn) {
    byId("camera").setAttribute("aria-pressed", String(isOn));
    byId("freeze").hidden = byId("rate").hidden = !isOn;
    if (!isOn) return void (byId("flip").hidden = true);
    byId("rate").textContent = "";
    byId("empty").hidden = true;
    byId("freeze").focus({ preventScroll: true }); // where the space bar presses it
  }

  async stopCamera() {
    if (!this.stream) return;
    this.turn++;
    for (const track of this.stream.getTracks()) track.stop();
    this.stream = null;
    this.showCamera(false);
    if (this.current) await this.choose(this.current);
    else {
      for (const { parts } of this.panels.values()) parts.video.srcObject = null;
      byId("empty").hidden = false;
      this.shown = null;
      for (const panel of this.panels.values()) panel.root.removeAttribute("data-live");
    }
  }

  async flipCamera() {
    this.facing = this.facing === "environment" ? "user" : "environment";
    for (const track of this.stream.getTracks()) track.stop();
    this.stream = null;
    await this.toggleCamera();
  }

  /** Keep a frame as an image. */
  async freeze() {
    const bitmap = await this.grab();
    if (!bitmap) return;
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/png" });
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "");
    await this.take([new File([blob], `camera-${time}.png`)]);
  }

  /** A frame of the camera; null before the first one. */
  async grab() {
    const video = this.panels.values().next().value?.parts.video;
    return video?.videoWidth ? createImageBitmap(video) : null;
  }

  /** Explain frame after frame, until another turn begins. The worker computes; the video plays on by itself. */
  async live(turn) {
    const times = [];
    while (turn === this.turn) {
      await new Promise((resolve) => requestAnimationFrame(resolve));
      for (const panel of this.panels.values()) if (panel.parts.video.srcObject !== this.stream) this.playIn(panel);
      try {
        const bitmap = await this.grab();
        if (!bitmap) continue;
        await this.explainFrame(bitmap, turn);
      } catch (error) {
        if (turn !== this.turn) return;
        if (this.engine.backend === "webgpu") await this.fallBack(error);
        else {
          this.problem("Camera", error.message);
          return this.stopCamera();
        }
      }
      times.push(performance.now());
      while (times.at(-1) - times[0] > 2000) times.shift();
      this.showRate(times);
    }
  }

  playIn(panel) {
    const { width = 640, height = 480 } = this.stream.getVideoTracks()[0].getSettings();
    this.shown ??= { width, height, name: "camera", original: { width, height } };
    panel.play(this.stream, { width, height });
  }

  async explainFrame(bitmap, turn) {
    const { width, height } = bitmap;
    this.shown = { width, height, name: "camera", original: { width, height } };
    await this.engine.ask("frame", { bitmap }, { moved: [bitmap] });
    for (const panel of [...this.panels.values()]) {
      panel.result = null; // what was found in the frame before says nothing about this one
      const argument = { model: panel.model, targets: panel.targets(), view: panel.view(this.shown) };
      const result = await this.engine.ask("explain", argument);
      if (turn !== this.turn) return;
      panel.show(result, this.shown);
    }
    byId("save").disabled = false;
  }

  showRate(times) {
    if (times.length < 2) return;
    const rate = (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
    byId("rate").textContent = `${rate.toFixed(rate < 10 ? 1 : 0)} frames/s`;
  }

  // ------------------------------------------------------------------------------------------- settings and saving

  applySettings() {
    const { opacity, colormap, boxes } = this.settings;
    byId("opacity").value = Math.round(100 * opacity);
    byId("opacity-value").textContent = `${Math.round(100 * opacity)}%`;
    byId("colormap").value = colormap;
    byId("boxes").checked = boxes;
    const { table, diverging } = this.colors();
    const scale = byId("scale").getContext("2d");
    const pixels = scale.createImageData(256, 1);
    new Uint32Array(pixels.data.buffer).set(table.map((color) => color | 0xff000000));
    scale.putImageData(pixels, 0, 0);
    byId("scale-low").textContent = diverging ? "negative" : "low";
    for (const panel of this.panels.values()) panel.paintMap();
  }

  /** Change settings; where the worker has to make the maps ready again, it does. */
  async change(settings) {
    const before = { ...this.settings, diverging: this.colors().diverging };
    Object.assign(this.settings, settings);
    this.applySettings();
    const anew = this.colors().diverging !== before.diverging || (this.settings.boxes && !before.boxes);
    if (anew && this.shown && !this.stream) await this.explain([...this.panels.values()], { anew: false });
  }

  /** Save what is seen: the panels side by side, with a line about each below. */
  async save() {
    const panels = [...this.panels.values()].filter(({ result }) => result);
    if (!panels.length) return;
    const { width, height } = this.shown;
    const line = Math.max(18, Math.round(height / 22));
    const gap = panels.length > 1 ? 8 : 0;
    const canvas = new OffscreenCanvas(panels.length * (width + gap) - gap, height + 2 * line);
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.textBaseline = "middle";
    panels.forEach((panel, place) => {
      const left = place * (width + gap);
      panel.drawInto(context, left, 0, this.shown);
      const { title, method } = panel.model;
      [panel.caption(), `${title} · ${method}`].forEach((text, row) => {
        context.fillStyle = row ? "#667" : "#1b1f24";
        context.font = `${Math.round(line * (row ? 0.55 : 0.66))}px system-ui, sans-serif`;
        context.fillText(text, left + 6, height + line * (row + 0.55), width - 12);
      });
    });
    const blob = await canvas.convertToBlob({ type: "image/png" });
    const link = element("a", "", { href: URL.createObjectURL(blob), download: this.fileName(panels) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  fileName(panels) {
    const stem = this.shown.name.replace(/\.[^.]*$/, "");
    const label = panels[0].label(panels[0].result.classes[panels[0].result.index]);
    const parts = [stem, label, panels.map(({ model }) => model.method).join("-")];
    return `${parts.join("_").replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 120)}.png`;
  }

  // -------------------------------------------------------------------------------------------------------- events

  listen() {
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    const open = () => byId("files").click();
    on("open", "click", open);
    on("empty", "click", open);
    on("files", "change", async ({ target }) => {
      const files = [...target.files];
      target.value = ""; // so that the same file can be chosen again
      await this.take(files);
    });
    on("camera", "click", () => this.toggleCamera());
    on("flip", "click", () => this.flipCamera());
    on("freeze", "click", () => this.freeze());
    on("save", "click", () => this.save());
    on("keys", "click", () => byId("help").showModal());
    on("search", "input", () => this.showFound());
    on("search", "keydown", (event) => {
      if (event.key === "Enter") byId("found").querySelector("button:enabled")?.click();
      if (event.key === "ArrowDown") byId("found").querySelector("button:enabled")?.focus();
      if (event.key === "Escape") event.target.blur();
    });
    on("found", "keydown", (event) => this.walk(event));
    on("opacity", "input", ({ target }) => this.change({ opacity: target.value / 100 }));
    on("colormap", "change", ({ target }) => this.change({ colormap: target.value }));
    on("boxes", "change", ({ target }) => this.change({ boxes: target.checked }));
    this.listenForImages();
    document.addEventListener("keydown", (event) => this.key(event));
  }

  listenForImages() {
    const root = document.documentElement;
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      root.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? root.classList.remove("dropping"));
    document.addEventListener("drop", async (event) => {
      event.preventDefault();
      root.classList.remove("dropping");
      const { files } = event.dataTransfer;
      if (files.length) await this.take(files);
      else this.problem("", "What was dropped is no file. Save the image first, or copy it and paste it here");
    });
    document.addEventListener("paste", async (event) => {
      if (event.target.matches?.("input[type=search]") && !event.clipboardData.files.length) return;
      if (event.clipboardData.files.length) await this.take(event.clipboardData.files);
      else this.problem("", "What was pasted is no image");
    });
  }

  /** Walk through the classes that were found, by arrows. */
  walk(event) {
    const buttons = [...byId("found").querySelectorAll("button:enabled")];
    const place = buttons.indexOf(event.target);
    if (event.key === "ArrowDown") buttons[place + 1]?.focus();
    else if (event.key === "ArrowUp") (buttons[place - 1] ?? byId("search")).focus();
    else return;
    event.preventDefault();
  }

  key(event) {
    const isTyping = event.target.matches?.("input[type=search], select, textarea");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const isSlider = event.target.matches?.("input[type=range]");
    const { opacity, colormap, boxes } = this.settings;
    const maps = Object.keys(this.site.colors.colormaps);
    const nextMap = maps[(maps.indexOf(colormap) + 1) % maps.length];
    const fade = (by) => this.change({ opacity: Math.min(Math.max(Math.round(100 * opacity + by), 0), 100) / 100 });
    const acts = {
      o: () => byId("files").click(),
      c: () => this.toggleCamera(),
      s: () => this.save(),
      b: () => this.change({ boxes: !boxes }),
      m: () => this.change({ colormap: nextMap }),
      "/": () => byId("search").focus(),
      "?": () => byId("help").showModal(),
      "-": () => fade(-10),
      "+": () => fade(10),
      "=": () => fade(10),
      0: () => this.select(null),
    };
    if (!isSlider) Object.assign(acts, { ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1) });
    if (this.stream && !event.target.matches?.("button")) acts[" "] = () => this.freeze();
    else if (!event.target.matches?.("button, input") && this.current?.name.startsWith("camera-")) {
      acts[" "] = () => this.toggleCamera();
    }
    if (/^[1-9]$/.test(event.key)) acts[event.key] = () => this.pick(Number(event.key) - 1);
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  pick(place) {
    this.panels.values().next().value?.parts.classes.children[place]?.firstChild.click();
  }
}

async function startPage() {
  const response = await fetch(absolute("site.json"));
  if (!response.ok) throw new Error(`site.json is not there: the server answers ${response.status}`);
  globalThis.camrt = new Page(await response.json()); // for the console, and for scripts
  await globalThis.camrt.start();
}

if (typeof WorkerGlobalScope !== "undefined" && globalThis instanceof WorkerGlobalScope) serveWorker();
else if (typeof document !== "undefined") {
  startPage().catch((error) => {
    const notice = byId("unstarted");
    notice.textContent = `This page cannot start: ${error.message}`;
    notice.hidden = false;
    notice.classList.add("now");
  });
}
