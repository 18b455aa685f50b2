// Harmonize raw pictures with the page's own code, for the test: node run_harmonize.mjs WEB_FOLDER CASES_FOLDER
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [web, cases] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(join(web, name)).href);
const ort = await load("runtime/ort.wasm.bundle.min.mjs");
const page = await load("harmonize.js");
ort.env.wasm.wasmBinary = readFileSync(join(web, "runtime/ort-wasm-simd-threaded.wasm"));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const model = await page.Model.open(ort, async (name) => new Uint8Array(readFileSync(join(web, "model", name))));
const floats = (file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer);
for (const file of readdirSync(cases).filter((name) => name.endsWith(".json"))) {
  const base = join(cases, file.slice(0, -5));
  const { width, height } = JSON.parse(readFileSync(join(cases, file)));
  const pixels = new Uint8ClampedArray(readFileSync(`${base}.rgba`));
  const mask = floats(`${base}.mask`);
  const seen = model.description.thumbnail;
  const window = page.windowAround(page.boundingBox(mask, width, height), width, height, seen.context);
  const small = page.thumbnail(pixels, mask, width, window, seen.size, seen.antialias);
  const filters = await model.predictFilters(small.composite, small.mask);
  writeFileSync(`${base}.window`, JSON.stringify(window));
  writeFileSync(`${base}.thumbnail`, Buffer.from(small.composite.buffer));
  writeFileSync(`${base}.filters`, Buffer.from(new Float32Array(filters.data).buffer));
  writeFileSync(`${base}.harmonized`, await model.harmonize(pixels, mask, width, height));
}
