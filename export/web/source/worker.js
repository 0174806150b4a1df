// Runs the network in onnxruntime-web, outside of the page's thread. It answers one message at a time:
// {id, kind, ...} with {id, result} or {id, error}. It keeps no state but the two sessions.

import { readPart } from "./parts.js";
import { toPixels } from "./pixels.js";

let ort, about, generator, synthesis;

/**
 * Starts onnxruntime and opens both graphs.
 * @param {{about: object, parts: Object<string, {base64?: string, url?: string}>}} message
 * @returns {Promise<{dictionary: Float32Array, shape: number[]}>} The atoms of D1, shape (C, 3, h, w).
 */
async function open({ about: facts, parts }) {
  about = facts;
  const names = ["runtime.mjs", "runtime.wasm", "generator.onnx", "synthesis.onnx", "generator.safetensors"];
  const [script, wasm, graph, synthesisGraph, weights] = await Promise.all(names.map((name) => readPart(parts[name])));
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  ort = await import(url);
  URL.revokeObjectURL(url);
  ort.env.wasm.numThreads = 1; // more need SharedArrayBuffer, which a page from a file lacks
  ort.env.wasm.wasmBinary = wasm;
  const options = {
    executionProviders: ["wasm"],
    externalData: [{ path: "generator.safetensors", data: weights }],
    logSeverityLevel: 3,
  };
  generator = await ort.InferenceSession.create(graph, options);
  synthesis = await ort.InferenceSession.create(synthesisGraph, options);
  const shape = about.code_shapes[0];
  const zeros = new ort.Tensor("float32", new Float32Array(shape[0] * shape[1] * shape[2]), [1, ...shape]);
  const { dictionary } = await synthesis.run({ code_1: zeros }, ["dictionary"]);
  return { dictionary: dictionary.data, shape: [...dictionary.dims] };
}

/** k as the graph wants it: one number for all images, or one per image. */
function kTensor(name, value, count) {
  const input = generator.inputMetadata.find((each) => each.name === name);
  const shape = input.shape.length ? [count] : [];
  return new ort.Tensor("int64", new BigInt64Array(shape.length ? count : 1).fill(BigInt(value)), shape);
}

/**
 * Draws images.
 * @param {object} message
 * @param {Float32Array} message.z Shape (count, z_dim).
 * @param {number[]} message.labels Length count; empty for an unconditional model.
 * @param {number[]} message.k One per projected level, Γ1 first.
 * @param {number | null} message.keep The image whose codes are returned.
 * @returns {Promise<{pixels: Uint8ClampedArray, nonZeros: number[], codes: Float32Array[]}>} RGBA pixels, shape (count,
 *   side, side, 4); the non-zeros of each level in all images; codes of shape (C, H, W), or none.
 */
async function draw({ z, labels, k, keep }) {
  const count = z.length / about.z_dim;
  const inputs = { z: new ort.Tensor("float32", z, [count, about.z_dim]) };
  if (labels.length) inputs.labels = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [count]);
  about.dials.forEach(({ level }, place) => {
    inputs[`k_${level}`] = kTensor(`k_${level}`, k[place], count);
  });
  const names = about.code_shapes.map((_, place) => `code_${place + 1}`);
  const outputs = await generator.run(inputs, ["image", ...names]);
  const levels = names.map((name) => outputs[name].data);
  const nonZeros = levels.map((code) => {
    let found = 0;
    for (let place = 0; place < code.length; place++) if (code[place] !== 0) found++;
    return found;
  });
  const codes = keep === null ? [] : levels.map((code) => {
    const size = code.length / count;
    return code.slice(keep * size, (keep + 1) * size);
  });
  return { pixels: toPixels(outputs.image.data, count, about.image_size), nonZeros, codes };
}

/**
 * Turns a Γ1 into its image; it is not projected.
 * @param {{code: Float32Array}} message Shape (C, H, W).
 * @returns {Promise<{pixels: Uint8ClampedArray}>} RGBA, shape (side, side, 4).
 */
async function synthesize({ code }) {
  const inputs = { code_1: new ort.Tensor("float32", code, [1, ...about.code_shapes[0]]) };
  const { image } = await synthesis.run(inputs, ["image"]);
  return { pixels: toPixels(image.data, 1, about.image_size) };
}

const HANDLERS = { open, draw, synthesize };
let queue = Promise.resolve(); // a session runs one call at a time

self.onmessage = ({ data: { id, kind, ...message } }) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ id, result: await HANDLERS[kind](message) });
    } catch (error) {
      self.postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
