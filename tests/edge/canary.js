// Opens a release's folder with another runtime in another language, by its documentation alone: checks its files
// against the manifest, runs the canary, and prints the outputs' hash, which fieldloop/domain/release.py defines.
const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { InferenceSession, Tensor, env } = require("onnxruntime-node");

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest("hex");

async function main(folder) {
  const read = (name) => readFileSync(join(folder, name));
  const manifest = JSON.parse(read("manifest.json"));
  for (const [name, file] of [["graph.onnx", manifest.graph], ["canary.json", manifest.canary]]) {
    if (sha256(read(name)) !== file.sha256) throw new Error(`${name}: not the manifest's`);
  }
  const { inputs, outputs } = JSON.parse(read("canary.json"));
  const values = Float32Array.from(inputs.flat(2), (value) => (value === null ? NaN : value));
  const shape = [inputs.length, inputs[0].length, inputs[0][0].length];
  const session = await InferenceSession.create(read("graph.onnx"));
  const { prediction } = await session.run({ window: new Tensor("float32", values, shape) });
  const expected = outputs.flat();
  const got = Array.from(prediction.data);
  const gap = (value, index) => (expected[index] === null ? (Number.isNaN(value) ? 0 : Infinity) : Math.abs(value - expected[index]));
  const bits = new DataView(new ArrayBuffer(4 * got.length));
  got.forEach((value, index) => bits.setFloat32(4 * index, value, true)); // NaN comes out as 0x7fc00000
  console.log(JSON.stringify({
    digest: sha256(read("manifest.json")),
    outputHash: sha256(`(${prediction.dims.join(", ")})`, new Uint8Array(bits.buffer)),
    maxAbsDiff: Math.max(...got.map(gap)),
    runtime: env.versions.node,
  }));
}

main(process.argv[2]);
