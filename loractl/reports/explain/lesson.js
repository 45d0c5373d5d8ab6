// The controls, and what is drawn anew when one of them moves.

(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const { words } = data;
  const { fill, html } = Drawing;
  const one = (id) => document.getElementById(id);
  const state = {
    ...data.chosen,
    task: 0,
    matrix: 0,
    start: "a",
    frame: 0,
    cut: 2,
    step: 0,
    question: "medium",
    rows: "unknown",
  };

  function shown(found) {
    const matrix = found.kinds[Math.min(state.matrix, found.kinds.length - 1)];
    return {
      ...ShownNumbers.ofModel(found, state),
      ...ShownNumbers.ofMatrix(matrix, found),
      ...ShownNumbers.ofCosts(found, state, words),
      ...ShownNumbers.ofAdvice(found, state, words),
      ...ShownNumbers.ofExamples(frame(), state.cut, data.approximation),
      rank_set: state.rank,
      command: command(),
    };
  }

  const frame = () => data.first_steps[state.start][state.frame];

  /** The call of `loractl estimate` that prints the same numbers. */
  function command() {
    const parts = ["loractl estimate", data.command[state.model] ?? `--model ${state.model}`];
    if (["dora", "adalora", "full"].includes(state.method)) parts.push(`--method ${state.method}`);
    parts.push(`--rank ${state.rank}`);
    if (state.targets !== "own") parts.push(`--targets ${state.targets}`);
    parts.push(state.checkpointing ? "--checkpointing" : "--no-checkpointing");
    parts.push(`--tasks ${state.tasks}`);
    return parts.join(" ") + (state.model in data.command ? "" : data.flags);
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
    CostFigures.memory(one("memory-bars"), one("memory-parts"), found, state, words, data);
    one("memory-lora").textContent = words.methods[found.formula];
    CostFigures.hub(one("hub"), found, state, words);
    CostFigures.copies(one("copies"), found, state, words);
    offerTasks();
    markAdvice(found);
  }

  function renderExamples() {
    ExampleFigures.firstSteps(one("first-steps"), frame(), words);
    ExampleFigures.approximation(
      one("exact"),
      one("cut-matrix"),
      one("errors"),
      data.approximation,
      state.cut,
      words,
    );
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
      place.replaceChildren(
        ...words.tasks
          .slice(0, state.tasks)
          .map((name, n) =>
            html(
              "button",
              { type: "button", on: { click: () => change({ task: n }) } },
              `${n + 1} ${name}`,
            ),
          ),
      );
    }
    [...place.children].forEach((button, n) =>
      button.setAttribute("aria-pressed", n === state.task),
    );
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
    for (const [id, value] of [
      ["model", state.model],
      ["targets", state.targets],
      ["method", state.method],
      ["rank", data.stops.indexOf(state.rank)],
      ["tasks-slider", state.tasks],
    ])
      one(id).value = value;
    one("rank").setAttribute("aria-valuetext", state.rank);
    render();
    if (["start", "frame", "cut"].some((key) => key in what)) renderExamples();
  }

  function listen() {
    const on = (id, read) =>
      one(id).addEventListener("input", (event) => change(read(event.target)));
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
      change({
        rank: advice.rank,
        targets: advice.target_modules,
        method: state.method === "full" ? "lora" : state.method,
      });
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
