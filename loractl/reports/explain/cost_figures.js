// Figures of what the chosen model costs: memory by part, and storage of several tasks.

const CostFigures = (() => {
  "use strict";

  const { bytes, fill, html, svg, picture, label } = Drawing;

  /** Stacked bars of the parts at the peak for the three methods, with sizes of GPUs as lines. */
  function memory(place, table, found, state, words, data) {
    const most = Math.max(...Object.values(found.memories).map((one) => one.bytes));
    const used = new Set();
    const bars = Object.entries(found.memories).map(([name, one]) => {
      const parts = { ...one.parts, context: data.cuda_context };
      const filled = data.parts
        .filter((part) => parts[part] > 0)
        .map((part) => {
          used.add(part);
          const title = `${words.parts[part]}: ${bytes(parts[part])}`;
          return html("span", {
            class: `part part-${1 + data.parts.indexOf(part)}`,
            title,
            "width%": (100 * parts[part]) / most,
          });
        });
      const fits = one.gpu ? fill(words.fits, { gpu: one.gpu[0] }) : words.fits_none;
      const now = name === state.method ? " chosen" : "";
      return html(
        "div",
        { class: `bar${now}` },
        html(
          "div",
          { class: "bar-head" },
          html("span", {}, words.methods[name]),
          html("strong", {}, bytes(one.bytes)),
        ),
        html("div", { class: "bar-track tall" }, ...filled),
        html("p", { class: "bar-foot" }, `${fits} · ${words.phases[one.phase]}`),
      );
    });
    const swatch = (part) =>
      svg(
        "svg",
        { width: 12, height: 12, "aria-hidden": "true" },
        svg("rect", {
          width: 12,
          height: 12,
          rx: 3,
          class: `part-${1 + data.parts.indexOf(part)}`,
        }),
      );
    const listed = data.parts.filter((part) => used.has(part));
    place.replaceChildren(
      gpuMarks(data.gpus, most, place.clientWidth),
      ...bars,
      html(
        "ul",
        { class: "legend" },
        ...listed.map((part) => html("li", {}, swatch(part), words.parts[part])),
      ),
    );
    table.replaceChildren(
      ...listed.map((part) =>
        html(
          "tr",
          {},
          html("th", { scope: "row" }, swatch(part), ` ${words.parts[part]}`),
          ...Object.values(found.memories).map((one) => {
            const n = part === "context" ? data.cuda_context : (one.parts[part] ?? 0);
            return html("td", { class: "number" }, n ? bytes(n) : "–");
          }),
        ),
      ),
    );
  }

  /** Lines at the sizes of GPUs, as many as have room. */
  function gpuMarks(gpus, most, width) {
    const marks = html("div", { class: "gpu-marks", "aria-hidden": "true" });
    let last = -1;
    for (const [, gib] of gpus) {
      const share = (gib * 2 ** 30) / most;
      if (gib < 24 || share > 1 || (share - last) * width < 64) continue;
      const mark = html(
        "span",
        { class: share > 0.9 ? "gpu-mark left" : "gpu-mark" },
        html("span", {}, `${gib} GB`),
      );
      mark.style.insetInlineStart = `${100 * share}%`;
      marks.append(mark);
      last = share;
    }
    return marks;
  }

  /** One base and its adapters around it; the adapter in use lights up. */
  function hub(place, found, state, words) {
    const size = 360,
      middle = size / 2,
      reach = 138;
    const nodes = [],
      lines = [];
    for (let n = 0; n < state.tasks; n += 1) {
      const angle = (2 * Math.PI * n) / state.tasks - Math.PI / 2;
      const x = middle + reach * Math.cos(angle),
        y = middle + reach * Math.sin(angle);
      const on = n === state.task ? " on" : "";
      lines.push(svg("line", { x1: middle, y1: middle, x2: x, y2: y, class: `spoke${on}` }));
      nodes.push(
        svg("circle", { cx: x, cy: y, r: on ? 20 : 15, class: `adapter${on}` }),
        label(x, y + 5, String(n + 1), { class: `adapter-name${on}`, "text-anchor": "middle" }),
      );
    }
    const about = fill(words.hub_label, {
      n: state.tasks,
      base: bytes(found.model.bytes),
      adapter: bytes(found.file),
    });
    place.replaceChildren(
      picture(
        size,
        size,
        about,
        ...lines,
        svg("circle", { cx: middle, cy: middle, r: 66, class: "base" }),
        label(middle, middle - 2, found.model.name, {
          class: "on-base strong",
          "text-anchor": "middle",
        }),
        label(middle, middle + 18, bytes(found.model.bytes), {
          class: "on-base",
          "text-anchor": "middle",
        }),
        ...nodes,
      ),
    );
  }

  /** The same tasks as full models: one disc of the base's size for each. */
  function copies(place, found, state, words) {
    const size = 360,
      columns = Math.ceil(Math.sqrt(state.tasks));
    const room = size / columns,
      radius = Math.min(66, room / 2 - 5);
    const discs = [];
    for (let n = 0; n < state.tasks; n += 1) {
      const x = room * (n % columns) + room / 2,
        y = room * Math.floor(n / columns) + room / 2;
      discs.push(
        svg("circle", { cx: x, cy: y, r: radius, class: "full" }),
        label(x, y + 5, String(n + 1), { class: "on-base", "text-anchor": "middle" }),
      );
    }
    const about = fill(words.copies_label, { n: state.tasks, base: bytes(found.model.bytes) });
    place.replaceChildren(picture(size, Math.ceil(state.tasks / columns) * room, about, ...discs));
  }

  return { memory, hub, copies };
})();
