// The page's arithmetic: counts of an adapter, its file, and the memory of a run.
// The twin of planning/counts.py and planning/peak_memory.py, and tested against them.

const Counting = (() => {
  "use strict";

  const FLOAT = 4; // bytes of a saved value
  const LENGTH_FIELD = 8; // bytes: safetensors writes the header's length in front of it

  /** A curve at a rank: a start and a slope, or a value for each of the stops. */
  const at = (curve, rank, stops) =>
    curve.length === 2 ? curve[0] + curve[1] * rank : curve[stops.indexOf(rank)];

  const numbers = (layers) => (typeof layers === "number" ? [...Array(layers).keys()] : layers);

  /** The adapted modules: [{kind, layers, rank}], with the rank of the slider or their own. */
  function adapted(model, target, rank) {
    return target.chosen.map(([index, layers, own]) => {
      const kind = model.kinds[index];
      return { kind, layers: numbers(layers ?? kind.layers), rank: own ?? rank };
    });
  }

  /** Values that the adapter of one module trains: r (d_in + d_out), and a formula's own. */
  function ofModule(kind, rank, formula) {
    const extra = { lora: 0, dora: kind.d_out, adalora: rank }[formula];
    return kind.stack * (rank * (kind.d_in + kind.d_out) + extra);
  }

  function byKind(model, target, rank, formula) {
    return adapted(model, target, rank).map((one) => ({
      ...one,
      values: one.layers.length * ofModule(one.kind, one.rank, formula),
    }));
  }

  function trained(model, target, rank, formula) {
    const kinds = byKind(model, target, rank, formula);
    return kinds.reduce((sum, one) => sum + one.values, model.beside);
  }

  /** The tensors of an adapter: [name, shape], as in adapter_model.safetensors. */
  function tensors(model, target, rank, formula) {
    const found = [];
    for (const { kind, layers, rank: own } of adapted(model, target, rank)) {
      const r = own * kind.stack;
      const table = kind.kind === "embedding";
      for (const layer of layers) {
        const path = `base_model.model.${kind.path.replace("#", layer)}`;
        found.push([path + (table ? ".lora_embedding_A" : ".lora_A.weight"), [r, kind.d_in]]);
        found.push([path + (table ? ".lora_embedding_B" : ".lora_B.weight"), [kind.d_out, r]]);
        if (formula === "dora") found.push([path + ".lora_magnitude_vector", [kind.d_out]]);
        if (formula === "adalora") found.push([path + ".lora_E", [r, 1]]);
      }
    }
    return found.sort(([one], [other]) => (one < other ? -1 : 1));
  }

  /** Bytes of adapter_model.safetensors: the values, and the header that names and places them. */
  function fileBytes(model, target, rank, formula) {
    const header = { __metadata__: { format: "pt" } };
    let end = 0;
    for (const [name, shape] of tensors(model, target, rank, formula)) {
      const start = end;
      end += FLOAT * shape.reduce((product, size) => product * size, 1);
      header[name] = { dtype: "F32", shape, data_offsets: [start, end] };
    }
    const padded = Math.ceil(JSON.stringify(header).length / 8) * 8;
    return LENGTH_FIELD + padded + end + FLOAT * model.beside;
  }

  /** The parts at the peak of a step in bytes, their sum, and the phase that is the peak. */
  function memory(phases, rank, stops) {
    let peak = null;
    for (const [phase, curves] of Object.entries(phases)) {
      const parts = {};
      for (const [part, curve] of Object.entries(curves)) parts[part] = at(curve, rank, stops);
      const total = Object.values(parts).reduce((sum, bytes) => sum + bytes, 0);
      if (peak === null || total > peak.total) peak = { phase, parts, total };
    }
    return peak;
  }

  /** The smallest GPU that a run fits on: [its label, GiB], or null. */
  function smallestGpu(gpus, bytes, usable) {
    return gpus.find(([, gib]) => bytes <= usable * gib * 2 ** 30) ?? null;
  }

  /** Everything about one setting of the controls. `method`: lora, qlora, dora, adalora or full. */
  function figures(data, state) {
    const model = data.models[state.model];
    const target = model.targets[state.targets];
    const formula = state.method === "dora" || state.method === "adalora" ? state.method : "lora";
    const again = state.checkpointing ? 1 : 0;
    const methods = { full: model.full[again] };
    for (const name of [formula, "qlora"]) methods[name] = target.memory[name][again];
    const memories = {};
    for (const [name, phases] of Object.entries(methods)) {
      const found = memory(phases, state.rank, data.stops);
      const bytes = found.total + data.cuda_context;
      memories[name] = { ...found, bytes, gpu: smallestGpu(data.gpus, bytes, data.usable) };
    }
    const values = trained(model, target, state.rank, formula);
    const flops = {};
    for (const [name, curve] of Object.entries(target.flops)) {
      flops[name] = at(curve, state.rank, data.stops);
    }
    return {
      model,
      target,
      formula,
      memories,
      flops,
      trained: values,
      share: values / model.parameters,
      file: fileBytes(model, target, state.rank, formula),
      kinds: byKind(model, target, state.rank, formula),
      alpha: data.alpha ?? 2 * state.rank,
    };
  }

  return { at, adapted, ofModule, byKind, trained, fileBytes, memory, smallestGpu, figures };
})();
