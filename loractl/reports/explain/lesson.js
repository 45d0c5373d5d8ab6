// The controls, and what is drawn anew when one of them moves.

(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const { words } = data;
  const { count, short, digits, percent, scientific, bytes, fill, html } = Drawing;
  const one = (id) => document.getElementById(id);
  const state = { ...data.chosen, task: 0, matrix: 0, start: "a", frame: 0, cut: 2, step: 0,
    question: "medium", rows: "unknown" };

  const formulaOf = (method) => (method === "dora" || method === "adalora" ? method : "lora");

  function shown(found) {
    const matrix = found.kinds[Math.min(state.matrix, found.kinds.length - 1)];
    const { kind, rank } = matrix;
    const { d_in, d_out } = kind;
    const memories = found.memories, tuned = memories[found.formula];
    const full = state.method === "full";
    const method = memories[state.method] ?? tuned;
    const tasks = state.tasks, base = found.model.bytes;
    const advice = found.model.recommended[state.question][state.rows];
    return {
      model: found.model.name, hub: found.model.hub, rank, rank_set: state.rank, alpha: digits(found.alpha),
      scale: digits(found.alpha / rank), method: words.methods[state.method],
      layers: count(found.model.layers), hidden: count(found.model.hidden),
      parameters: count(found.model.parameters), parameters_short: short(found.model.parameters),
      trained: count(full ? found.model.parameters : found.trained),
      trained_short: short(full ? found.model.parameters : found.trained),
      share: percent(full ? 1 : found.share),
      lora_share: percent(found.share), lora_trained: count(found.trained),
      fewer: digits(found.model.parameters / found.trained),
      orders: digits(Math.log10(found.model.parameters / found.trained)),
      file: bytes(full ? base : found.file), adapter: bytes(found.file), base: bytes(base),
      less_values: ratio(full ? 1 : found.model.parameters / found.trained),
      less_memory: ratio(memories.full.bytes / method.bytes),
      less_work: ratio(full ? 1 : found.flops.full / found.flops.lora),
      gpu_bytes: bytes(method.bytes),
      matrix: kind.name, d_in: count(d_in), d_out: count(d_out),
      whole: count(d_in * d_out), factors: count(rank * (d_in + d_out)),
      smaller: digits((d_in * d_out) / (rank * (d_in + d_out))),
      limit: digits((d_in * d_out) / (d_in + d_out)),
      of_a: count(rank * d_in), of_b: count(rank * d_out),
      formed: short(rank * d_in * d_out),
      work: percent(found.flops.lora / found.flops.full),
      speed: digits(found.flops.full / found.flops.lora),
      avoided: digits(found.flops.product / found.flops.low_rank),
      memory_full: bytes(memories.full.bytes), memory_lora: bytes(tuned.bytes),
      memory_qlora: bytes(memories.qlora.bytes), memory_less: digits(memories.full.bytes / tuned.bytes),
      tasks, task: state.task + 1, as_full: bytes(tasks * base),
      as_adapters: bytes(base + tasks * found.file),
      disk_less: digits((tasks * base) / (base + tasks * found.file)),
      bits: short(2 * found.trained),
      a_rank: advice.rank, a_alpha: advice.alpha, a_targets: words.targets[advice.target_modules],
      a_rate: scientific(advice.learning_rate),
      a_sweep: advice.sweep.join(", "), a_batch: advice.effective_batch,
      size_class: words.classes[data.classes[state.model]],
      loss: percent(frame().loss), grad_a: digits(frame().grad_A), grad_b: digits(frame().grad_B),
      frame_step: frame().step, cut: state.cut, cut_error: percent(data.approximation.errors[state.cut]),
      command: command(found),
    };
  }

  /** Four times less: 4 × in English, 1/4 in Chinese, as `words.times` says it. */
  const ratio = (n) => fill(words.times, { n: digits(n) });

  const frame = () => data.first_steps[state.start][state.frame];

  function command(found) {
    const named = data.command[state.model] ?? `--model ${state.model}`;
    const method = { dora: " --method dora", adalora: " --method adalora", full: " --method full" }[state.method] ?? "";
    const targets = state.targets === "own" ? "" : ` --targets ${state.targets}`;
    const again = state.checkpointing ? " --checkpointing" : " --no-checkpointing";
    const flags = state.model in data.command ? "" : data.flags;
    return `loractl estimate ${named}${method} --rank ${state.rank}${targets}${again} --tasks ${state.tasks}${flags}`;
  }

  function render() {
    const found = Counting.figures(data, state);
    const values = shown(found);
    for (const place of document.querySelectorAll("[data-show]")) {
      place.textContent = values[place.dataset.show];
    }
    for (const place of document.querySelectorAll("[data-is]")) {
      const [key, value] = place.dataset.is.split("=");
      place.classList.toggle("on", String(state[key]) === value);
    }
    const matrix = found.kinds[Math.min(state.matrix, found.kinds.length - 1)];
    offerMatrices(found);
    ModelFigures.matrices(one("matrices"), matrix, matrix.rank, words);
    ModelFigures.parameters(one("linear"), one("log"), found, state, words);
    ModelFigures.ranks(one("ranks"), matrix, data.stops, words);
    ModelFigures.kinds(one("kinds"), found, state);
    ModelFigures.memory(one("memory-bars"), one("memory-parts"), found, state, words, data);
    one("memory-lora").textContent = words.methods[found.formula];
    ModelFigures.hub(one("hub"), found, state, words);
    ModelFigures.copies(one("copies"), found, state, words);
    offerTasks();
    markAdvice(found);
  }

  function renderExamples() {
    ExampleFigures.firstSteps(one("first-steps"), frame(), words);
    ExampleFigures.approximation(one("exact"), one("cut-matrix"), one("errors"), data.approximation, state.cut, words);
    if (data.spectrum) ExampleFigures.spectrum(one("spectrum"), data.spectrum, words);
  }

  /** The kinds of matrices that the chosen targets adapt. */
  function offerMatrices(found) {
    const select = one("matrix");
    const names = found.kinds.map(({ kind }) => kind.name);
    if ([...select.options].map((option) => option.text).join() !== names.join()) {
      select.replaceChildren(...names.map((name, n) => html("option", { value: n }, name)));
      state.matrix = Math.min(state.matrix, names.length - 1);
    }
    select.value = state.matrix;
  }

  function offerTasks() {
    const place = one("task-buttons");
    if (place.childElementCount !== state.tasks) {
      state.task = Math.min(state.task, state.tasks - 1);
      place.replaceChildren(...words.tasks.slice(0, state.tasks).map((name, n) =>
        html("button", { type: "button", on: { click: () => change({ task: n }) } }, `${n + 1} ${name}`)));
    }
    [...place.children].forEach((button, n) => button.setAttribute("aria-pressed", n === state.task));
  }

  /** The cell of the table of ranks that the questions lead to. */
  function markAdvice(found) {
    for (const cell of document.querySelectorAll("[data-cell]")) {
      const on = cell.dataset.cell === `${state.question} ${data.classes[state.model]}`;
      cell.classList.toggle("on", on);
    }
    const base = data.ranks[state.question][data.classes[state.model]];
    const rank = found.model.recommended[state.question][state.rows].rank;
    one("rule").textContent = fill(words.rules[state.rows], { base, rank });
  }

  function change(what) {
    Object.assign(state, what);
    const { targets } = data.models[state.model];
    if (!(state.targets in targets)) state.targets = "all-linear";
    for (const option of one("targets").options) option.disabled = !(option.value in targets);
    for (const [id, value] of [["model", state.model], ["targets", state.targets], ["method", state.method],
      ["rank", data.stops.indexOf(state.rank)], ["tasks-slider", state.tasks]]) one(id).value = value;
    one("rank").setAttribute("aria-valuetext", state.rank);
    render();
    if (["start", "frame", "cut"].some((key) => key in what)) renderExamples();
  }

  function listen() {
    const on = (id, read) => one(id).addEventListener("input", (event) => change(read(event.target)));
    on("model", ({ value }) => ({ model: value }));
    on("targets", ({ value }) => ({ targets: value }));
    on("method", ({ value }) => ({ method: value }));
    on("rank", ({ value }) => ({ rank: data.stops[value] }));
    on("matrix", ({ value }) => ({ matrix: Number(value) }));
    on("checkpointing", ({ checked }) => ({ checkpointing: checked }));
    on("tasks-slider", ({ value }) => ({ tasks: Number(value) }));
    on("frame", ({ value }) => ({ frame: Number(value) }));
    on("cut", ({ value }) => ({ cut: Number(value) }));
    for (const button of document.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => change({ step: Number(button.dataset.step) }));
    }
    for (const name of ["start", "question", "rows"]) {
      for (const radio of document.getElementsByName(name)) {
        radio.addEventListener("input", () => change({ [name]: radio.value }));
      }
    }
    one("take").addEventListener("click", () => {
      const advice = data.models[state.model].recommended[state.question][state.rows];
      change({ rank: advice.rank, targets: advice.target_modules, method: state.method === "full" ? "lora" : state.method });
    });
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth !== width) {
        render();
        renderExamples();
      }
      width = window.innerWidth;
    });
  }

  listen();
  one("checkpointing").checked = state.checkpointing;
  change({});
  renderExamples();
  document.documentElement.classList.add("ready");
  // For the tests, which compare these with Python.
  window.figuresOf = (setting) => Counting.figures(data, { ...state, ...setting });
})();
