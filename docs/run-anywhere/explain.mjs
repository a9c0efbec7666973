// Explain an image with an explainer graph, in Node.
//
//     node explain.mjs explainer.onnx photo.jpg [labels.txt]
//
// Prints the classes and their scores, and writes the heatmaps to heatmaps.f32: float32, (top, size, size).
import { readFile, writeFile } from "node:fs/promises";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { squareOf } from "./camrt.mjs"; // camrt.js of a site: resizes as camrt does

const [modelFile, imageFile, labelsFile] = process.argv.slice(2);
if (!imageFile) {
  console.error("usage: node explain.mjs explainer.onnx image [labels.txt]");
  process.exit(2);
}

const session = await ort.InferenceSession.create(modelFile);
const shapeOf = (name) => session.inputMetadata.find((input) => input.name === name)?.shape;
const size = shapeOf("image")[1];

const decoded = sharp(imageFile).rotate().toColorspace("srgb").ensureAlpha().raw(); // upright, RGBA
const { data, info } = await decoded.toBuffer({ resolveWithObject: true });
const square = squareOf(data, info.width, info.height, size);

const feeds = { image: new ort.Tensor("uint8", square, [1, size, size, 3]) };
const target = shapeOf("target");
if (target) feeds.target = new ort.Tensor("int64", new BigInt64Array(target[1]).fill(-1n), [1, target[1]]); // the best

const { scores, classes, heatmaps } = await session.run(feeds);
const labels = labelsFile ? (await readFile(labelsFile, "utf8")).split("\n") : [];
for (const number of Array.from(classes.data, Number)) {
  console.log(`${number}\t${scores.data[number].toFixed(6)}\t${labels[number] ?? ""}`);
}
await writeFile("heatmaps.f32", heatmaps.data);
