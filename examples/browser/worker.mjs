// Runs the explainer beside the page, so that curves follow the hand while it computes.
let session, ort;

async function bytesOf(name) {
  const file = await fetch(name);
  if (!file.ok) throw new Error(`${name}: ${file.status} ${file.statusText}`);
  return file.arrayBuffer();
}

async function load() {
  const [module, runtime, explainer] = await Promise.all([import("./ort.wasm.bundle.min.mjs"),
    bytesOf("ort-wasm-simd-threaded.wasm"), bytesOf("explainer.onnx")]);
  ort = module;
  // Several threads would need a server that sends headers of its own (cross-origin isolation).
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = runtime;
  session = await ort.InferenceSession.create(new Uint8Array(explainer));
}

async function explain({series, shape}) {
  const began = performance.now();
  const found = await session.run({x: new ort.Tensor("float32", series, shape)});
  const of = (name) => found[name].data;
  return {prediction: of("prediction"), values: of("shap_values"), base: of("base_value"),
    milliseconds: performance.now() - began};
}

const loaded = load();
// Whoever asks is told.
loaded.catch(() => {});
onmessage = async ({data}) => {
  try {
    await loaded;
    postMessage(await explain(data));
  } catch (error) {
    postMessage({error: error.message});
  }
};
