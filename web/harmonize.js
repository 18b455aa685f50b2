// Harmonize a picture as the Python library does (harmony_diffusion/export/full_size.py): a thumbnail of the
// window around the foreground, filters from it, filters applied to the full-size pixels in bands. No DOM here.

const LEAST_SEEN = 0.2; // side of the window, as a share of the picture's
const BAND_PIXELS = 1 << 16;

/** Rows and columns that hold foreground: [top, bottom, left, right], ends excluded; null for an empty mask. */
export function boundingBox(mask, width, height) {
  let top = height, bottom = 0, left = width, right = 0;
  for (let y = 0; y < height; y++) {
    const start = y * width;
    let first = 0;
    while (first < width && mask[start + first] === 0) first++;
    if (first === width) continue;
    let last = width - 1;
    while (mask[start + last] === 0) last--;
    top = Math.min(top, y);
    bottom = y + 1;
    left = Math.min(left, first);
    right = Math.max(right, last + 1);
  }
  return bottom ? [top, bottom, left, right] : null;
}

/** A square around the foreground, cut where it is larger than the picture, moved where it leaves it. */
export function windowAround(box, width, height, context) {
  const longer = Math.max(box[1] - box[0], box[3] - box[2]);
  const side = Math.ceil(Math.max((1 + 2 * context) * longer, LEAST_SEEN * Math.sqrt(width * height)));
  const place = (start, stop, whole) => {
    const length = Math.min(side, whole);
    const first = Math.min(Math.max(Math.floor((start + stop - length) / 2), 0), whole - length);
    return [first, first + length];
  };
  return [...place(box[0], box[1], height), ...place(box[2], box[3], width)];
}

/** Samples, and their weights, that positions of an enlarged line are interpolated from, one array a tap. */
export function enlargingTaps(small, large, start, stop, mode = "bilinear") {
  const f = Math.fround;
  const scale = f(small / large);
  const steps = mode === "bicubic" ? [-1, 0, 1, 2] : [0, 1];
  const index = steps.map(() => new Int32Array(stop - start));
  const weights = steps.map(() => new Float32Array(stop - start));
  for (let i = start; i < stop; i++) {
    const source = f(f(f(i + 0.5) * scale) - 0.5);
    const base = Math.floor(source);
    const t = source - base;
    const shares = mode === "bicubic" ? cubic(t) : [1 - t, t];
    steps.forEach((step, k) => {
      index[k][i - start] = Math.min(Math.max(base + step, 0), small - 1);
      weights[k][i - start] = shares[k];
    });
  }
  return { index, weights };
}

function cubic(t) {
  const a = -0.75;
  const near = (x) => ((a + 2) * x - (a + 3)) * x * x + 1;
  const far = (x) => ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return [far(1 + t), near(t), near(1 - t), far(2 - t)];
}

/** The same for a line that is made smaller, with antialiasing if wanted. */
export function resizingTaps(before, after, antialias) {
  if (!antialias || after >= before) return enlargingTaps(before, after, 0, after);
  const scale = before / after;
  const index = [], weights = [];
  for (let i = 0; i < after; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - scale + 0.5), 0);
    const last = Math.min(Math.trunc(centre + scale + 0.5), before);
    let total = 0;
    const shares = [];
    for (let j = first; j < last; j++) {
      shares.push(Math.max(1 - Math.abs(j + 0.5 - centre) / scale, 0));
      total += shares[shares.length - 1];
    }
    shares.forEach((share, k) => {
      while (index.length <= k) {
        index.push(new Int32Array(after));
        weights.push(new Float32Array(after));
      }
      index[k][i] = first + k;
      weights[k][i] = share / total;
    });
  }
  return { index, weights };
}

/**
 * Make the thumbnail of a window.
 * @param {Uint8Array|Uint8ClampedArray} pixels RGBA.
 * @param {Float32Array} mask 1 on the foreground.
 * @returns {{composite: Float32Array, mask: Float32Array}} Planes of the network's size, values in [0, 1].
 */
export function thumbnail(pixels, mask, width, window, size, antialias) {
  const [top, bottom, left, right] = window;
  const [rows, columns] = size;
  const across = resizingTaps(right - left, columns, antialias);
  const down = resizingTaps(bottom - top, rows, antialias);
  // Row by row: each row of the picture is made narrow once and added to the rows of the thumbnail it belongs to.
  const uses = Array.from({ length: bottom - top }, () => []);
  down.index.forEach((tap, k) => tap.forEach((row, i) => {
    if (down.weights[k][i]) uses[row].push([i, down.weights[k][i]]);
  }));
  const planes = [0, 1, 2, 3].map(() => new Float32Array(rows * columns));
  const line = [0, 1, 2, 3].map(() => new Float32Array(columns));
  for (let y = top; y < bottom; y++) {
    if (!uses[y - top].length) continue;
    line.forEach((values) => values.fill(0));
    across.index.forEach((tap, k) => {
      const shares = across.weights[k];
      for (let x = 0; x < columns; x++) {
        const at = y * width + left + tap[x], share = shares[x];
        line[0][x] += pixels[4 * at] * share;
        line[1][x] += pixels[4 * at + 1] * share;
        line[2][x] += pixels[4 * at + 2] * share;
        line[3][x] += mask[at] * share;
      }
    });
    for (const [i, share] of uses[y - top]) {
      for (let c = 0; c < 4; c++) {
        const plane = planes[c], values = line[c], start = i * columns;
        const factor = c < 3 ? share / 255 : share;
        for (let x = 0; x < columns; x++) plane[start + x] += values[x] * factor;
      }
    }
  }
  for (const plane of planes) {
    for (let i = 0; i < plane.length; i++) plane[i] = Math.min(Math.max(plane[i], 0), 1);
  }
  const composite = new Float32Array(3 * rows * columns);
  for (let c = 0; c < 3; c++) composite.set(planes[c], c * rows * columns);
  return { composite, mask: planes[3] };
}

/** An exported model: the two graphs, opened, and what export.json says. */
export class Model {
  constructor(ort, network, apply, description) {
    Object.assign(this, { ort, network, apply, description });
  }

  static async open(ort, read) {
    const description = JSON.parse(new TextDecoder().decode(await read("export.json")));
    if (description.schema !== 1 || description.kind !== "filters") {
      throw new Error("model/export.json is not one this page reads: run `make web` again.");
    }
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    const network = await ort.InferenceSession.create(await read("network.onnx"), options);
    const apply = await ort.InferenceSession.create(await read("apply.onnx"), options);
    return new Model(ort, network, apply, description);
  }

  tensor(values, ...shape) {
    return new this.ort.Tensor("float32", values, shape);
  }

  async predictFilters(composite, mask) {
    const [rows, columns] = this.description.thumbnail.size;
    const results = await this.network.run({
      composite: this.tensor(composite, 1, 3, rows, columns),
      mask: this.tensor(mask, 1, 1, rows, columns),
    });
    return results[this.network.outputNames[0]];
  }

  /**
   * Harmonize a picture.
   * @param {Uint8ClampedArray} pixels RGBA; not changed.
   * @param {Float32Array} mask 1 on the foreground, 0 on the background.
   * @returns {Promise<Uint8ClampedArray>} RGBA, equal to `pixels` where the mask is 0.
   */
  async harmonize(pixels, mask, width, height) {
    const result = new Uint8ClampedArray(pixels);
    const box = boundingBox(mask, width, height);
    if (!box) return result;
    const { thumbnail: seen, upsampling, frame_wide: frameWide } = this.description;
    const all = [0, height, 0, width];
    const window = seen.context === null ? all : windowAround(box, width, height, seen.context);
    const small = thumbnail(pixels, mask, width, window, seen.size, seen.antialias);
    const filters = await this.predictFilters(small.composite, small.mask);
    // Filters that measure the picture get it whole.
    const [top, bottom, left, right] = frameWide ? all : box;
    const enlarge = filters.dims.length === 4 ? enlarger(filters, window, left, right, upsampling) : null;
    const step = frameWide ? height : Math.max(1, Math.floor(BAND_PIXELS / (right - left)));
    for (let y = top; y < bottom; y += step) {
      await this.renderBand(result, pixels, mask, width, [y, Math.min(y + step, bottom), left, right], filters, enlarge);
    }
    return result;
  }

  async renderBand(result, pixels, mask, width, [top, bottom, left, right], filters, enlarge) {
    const rows = bottom - top, columns = right - left, count = rows * columns;
    const image = new Float32Array(3 * count), share = new Float32Array(count);
    for (let y = 0, i = 0; y < rows; y++) {
      for (let at = (top + y) * width + left, x = 0; x < columns; x++, at++, i++) {
        image[i] = pixels[4 * at] / 255;
        image[count + i] = pixels[4 * at + 1] / 255;
        image[2 * count + i] = pixels[4 * at + 2] / 255;
        share[i] = mask[at];
      }
    }
    const here = enlarge ? this.tensor(enlarge(top, bottom), 1, filters.dims[1], rows, columns) : filters;
    const results = await this.apply.run({
      image: this.tensor(image, 1, 3, rows, columns),
      filters: here,
      mask: this.tensor(share, 1, 1, rows, columns),
    });
    const changed = results[this.apply.outputNames[0]].data;
    for (let y = 0, i = 0; y < rows; y++) {
      for (let at = (top + y) * width + left, x = 0; x < columns; x++, at++, i++) {
        if (share[i] === 0) continue;
        result[4 * at] = changed[i] * 255; // a clamped array rounds to the nearest
        result[4 * at + 1] = changed[count + i] * 255;
        result[4 * at + 2] = changed[2 * count + i] * 255;
      }
    }
  }
}

/** Return a function that computes rows of the maps, enlarged over a window, for some columns. */
function enlarger(filters, [windowTop, windowBottom, windowLeft, windowRight], left, right, mode) {
  const [, maps, rows, columns] = filters.dims, values = filters.data, width = right - left;
  const across = enlargingTaps(columns, windowRight - windowLeft, left - windowLeft, right - windowLeft, mode);
  const wide = new Float32Array(maps * rows * width);
  for (let line = 0; line < maps * rows; line++) {
    across.index.forEach((tap, k) => {
      const shares = across.weights[k];
      for (let x = 0; x < width; x++) wide[line * width + x] += values[line * columns + tap[x]] * shares[x];
    });
  }
  return (top, bottom) => {
    const height = bottom - top;
    const down = enlargingTaps(rows, windowBottom - windowTop, top - windowTop, bottom - windowTop, mode);
    const enlarged = new Float32Array(maps * height * width);
    for (let map = 0; map < maps; map++) {
      for (let y = 0; y < height; y++) {
        const start = (map * height + y) * width;
        down.index.forEach((tap, k) => {
          const share = down.weights[k][y], source = (map * rows + tap[y]) * width;
          if (share === 0) return;
          for (let x = 0; x < width; x++) enlarged[start + x] += wide[source + x] * share;
        });
      }
    }
    return enlarged;
  };
}
