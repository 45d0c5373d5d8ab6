// Figures of what is trained of the chosen model: matrices to scale, parameters on two scales.

const ModelFigures = (() => {
  "use strict";

  const { count, short, digits, percent, fill, html, svg, picture, label, bar } = Drawing;
  const PLAIN = { full: "full", lora: "lora", dora: "lora", adalora: "lora", qlora: "qlora" };

  /** W, and B A with its factors at the edges, all to one scale. */
  function matrices(place, one, rank, words) {
    const { d_in, d_out, name } = one.kind;
    const room = place.clientWidth,
      beside = room >= 640;
    const side = beside ? Math.min(300, (room - 190) / 2) : Math.min(260, room - 70);
    const scale = side / Math.max(d_in, d_out);
    const wide = d_in * scale,
      high = d_out * scale;
    const strip = Math.max(1, rank * scale);
    const second = beside ? { x: side + 150, y: 0 } : { x: 0, y: high + 96 };
    const left = 44,
      top = 46;
    const width = beside ? second.x + wide + left + strip + 24 : wide + left + strip + 24;
    const at = (dx, dy) => [left + second.x + dx, top + second.y + dy];
    const [px, py] = at(strip + 8, strip + 8);
    const sign = beside
      ? label(left + side + 62, top + high / 2 + 8, "+", { class: "math operator" })
      : label(left + wide / 2, top + high + 40, "+", { class: "math operator" });
    const drawn = picture(
      width,
      top + second.y + high + strip + 44,
      fill(words.matrices_label, { name, d_in, d_out, rank }),
      svg("rect", { x: left, y: top, width: wide, height: high, class: "base" }),
      label(left + wide / 2, top + high / 2 + 8, "W", {
        class: "math on-base",
        "text-anchor": "middle",
      }),
      label(left + wide / 2, top - 10, count(d_in), { "text-anchor": "middle", class: "muted" }),
      label(left - 8, top + high / 2 + 5, count(d_out), { "text-anchor": "end", class: "muted" }),
      sign,
      svg("rect", { x: px, y: py, width: wide, height: high, class: "product" }),
      label(px + wide / 2, py + high / 2 + 8, "B A", { class: "math", "text-anchor": "middle" }),
      label(px + wide / 2, py + high / 2 + 30, words.never_formed, {
        class: "muted",
        "text-anchor": "middle",
      }),
      svg("rect", { x: px, y: py - strip - 6, width: wide, height: strip, class: "a" }),
      svg("rect", { x: px - strip - 6, y: py, width: strip, height: high, class: "b" }),
      label(px + wide / 2, py - strip - 14, `A  ${rank} × ${count(d_in)}`, {
        class: "name-a",
        "text-anchor": "middle",
      }),
      svg(
        "text",
        {
          class: "name-b",
          "text-anchor": "middle",
          transform: `translate(${px - strip - 14} ${py + high / 2}) rotate(-90)`,
        },
        `B  ${count(d_out)} × ${rank}`,
      ),
    );
    const note =
      rank * scale < 1
        ? fill(words.thinner, { pixels: digits(rank * scale) })
        : fill(words.to_scale, { pixels: digits(rank * scale) });
    place.replaceChildren(drawn, html("p", { class: "note" }, note));
  }

  /** Trained parameters on a linear and on a logarithmic scale, from 1 to a power of ten. */
  function parameters(linear, log, found, state, words) {
    const total = found.model.parameters,
      most = Math.ceil(Math.log10(total));
    const rows = [
      ["full", total],
      [found.formula, found.trained],
    ];
    const pixels = linear.clientWidth * found.share;
    const note = pixels < 2 ? fill(words.too_small, { pixels: digits(pixels) }) : "";
    linear.replaceChildren(
      ...rows.map(([name, n]) =>
        bar(
          words.methods[name],
          count(n),
          (100 * n) / total,
          PLAIN[name],
          name === "full" ? "" : note,
        ),
      ),
      axis([0, 1, 2, 3, 4].map((n) => [n / 4, [n ? short((n * total) / 4) : "0"]])),
    );
    const powers = Array.from({ length: 1 + Math.floor(most / 2) }, (_, n) => 2 * n);
    log.replaceChildren(
      ...rows.map(([name, n]) =>
        bar(words.methods[name], count(n), (100 * Math.log10(n)) / most, PLAIN[name]),
      ),
      axis(powers.map((power) => [power / most, ["10", html("sup", {}, String(power))]])),
    );
  }

  /** The numbers below bars: [place from 0 to 1, what stands there]. */
  function axis(ticks) {
    return html(
      "div",
      { class: "axis-ticks", "aria-hidden": "true" },
      ...ticks.map(([share, text]) => {
        const tick = html(
          "span",
          { class: share === 0 ? "start" : share === 1 ? "end" : "" },
          ...text,
        );
        tick.style.insetInlineStart = `${100 * share}%`;
        return tick;
      }),
    );
  }

  /** The table of adapted modules by kind. */
  function kinds(body, found, state) {
    const cell = (text, attributes = { class: "number" }) => html("td", attributes, text);
    body.replaceChildren(
      ...found.kinds.map(({ kind, layers, rank, values }) =>
        html(
          "tr",
          {},
          html("th", { scope: "row" }, html("code", {}, kind.name)),
          cell(count(layers.length)),
          cell(
            `${kind.stack > 1 ? `${kind.stack} × ` : ""}${count(kind.d_out)} × ${count(kind.d_in)}`,
          ),
          cell(count(kind.stack * rank * (kind.d_in + kind.d_out))),
          cell(count(values)),
        ),
      ),
    );
  }

  /** What A and B of one matrix hold at each rank of the slider, beside the matrix itself. */
  function ranks(body, { kind }, stops, words) {
    const whole = kind.d_in * kind.d_out;
    body.replaceChildren(
      ...stops.map((rank) => {
        const values = rank * (kind.d_in + kind.d_out);
        const cells = [
          count(values),
          percent(values / whole),
          fill(words.times, { n: digits(whole / values) }),
        ];
        return html(
          "tr",
          {},
          html("th", { scope: "row", class: "number" }, String(rank)),
          ...cells.map((text) => html("td", { class: "number" }, text)),
        );
      }),
    );
  }

  return { matrices, parameters, kinds, ranks };
})();
