// Figures of the small examples: the first steps of B A, a matrix cut to lower ranks, a spectrum.

const ExampleFigures = (() => {
  "use strict";

  const { digits, percent, fill, html, svg, picture, label, cells } = Drawing;

  /** A, B and B A at one of the shown steps. */
  function firstSteps(place, frame, words) {
    const size = 20,
      gap = 14,
      left = 2 * size + gap + 24,
      top = 2 * size + gap + 24;
    const rows = frame.BA.length,
      columns = frame.BA[0].length;
    place.replaceChildren(
      picture(
        left + columns * size + 8,
        top + rows * size + 28,
        fill(words.steps_label, { step: frame.step }),
        label(left + (columns * size) / 2, 15, "A", {
          class: "math name-a",
          "text-anchor": "middle",
        }),
        cells(frame.A, left, 24, size, 1.4),
        label(9, top + (rows * size) / 2 + 5, "B", {
          class: "math name-b",
          "text-anchor": "middle",
        }),
        cells(frame.B, 24, top, size, 1.4),
        cells(frame.BA, left, top, size, 2),
        label(left + (columns * size) / 2, top + rows * size + 20, "B A", {
          class: "math",
          "text-anchor": "middle",
        }),
      ),
    );
  }

  /** The matrix of rank 5 from its first k singular values, each |value| against `most`. */
  function rebuilt({ size, u, v, sigma }, k) {
    return Array.from({ length: size }, (_, i) =>
      Array.from({ length: size }, (_, j) => {
        let sum = 0;
        for (let n = 0; n < Math.min(k, sigma.length); n += 1) sum += u[i][n] * sigma[n] * v[j][n];
        return sum;
      }),
    );
  }

  function approximation(exact, cut, curve, example, k, words) {
    const whole = rebuilt(example, example.rank);
    const most = 0.75 * Math.max(...whole.flat().map(Math.abs));
    const show = (place, matrix, text) =>
      place.replaceChildren(
        picture(example.size * 10, example.size * 10, text, cells(matrix, 0, 0, 10, most)),
      );
    show(exact, whole, words.exact_label);
    show(cut, rebuilt(example, k), fill(words.cut_label, { k, error: percent(example.errors[k]) }));
    errors(curve, example, k, words);
  }

  /** Error left by rank: columns for the exact matrix, a line for the one with noise. */
  function errors(place, example, k, words) {
    const width = Math.max(280, Math.min(620, place.clientWidth)),
      height = 190;
    const most = 12,
      room = (width - 54) / (most + 1),
      base = height - 34,
      tall = base - 16;
    const x = (n) => 54 + room * n,
      y = (error) => base - tall * error;
    const parts = [0, 0.5, 1].flatMap((share) => [
      svg("line", { x1: 50, x2: width, y1: y(share), y2: y(share), class: "tick" }),
      label(44, y(share) + 4, `${100 * share}%`, { "text-anchor": "end", class: "muted" }),
    ]);
    for (let n = 0; n <= most; n += 1) {
      const error = example.errors[n];
      parts.push(
        svg("rect", {
          x: x(n) + 3,
          y: y(error),
          width: room - 6,
          height: tall * error,
          class: n === k ? "b" : "pale",
        }),
      );
      if (room >= 24 || n % 2 === 0 || n === k)
        parts.push(
          label(x(n) + room / 2, base + 18, String(n), {
            "text-anchor": "middle",
            class: n === k ? "strong" : "muted",
          }),
        );
    }
    const points = example.noisy
      .slice(0, most + 1)
      .map((error, n) => `${x(n) + room / 2},${y(error)}`);
    parts.push(svg("polyline", { points: points.join(" "), class: "line full" }));
    place.replaceChildren(picture(width, height, words.errors_label, ...parts));
  }

  /** Singular values of a run's updates, one small panel for each kind of module. */
  function spectrum(place, kinds, words) {
    place.replaceChildren(
      ...Object.entries(kinds).map(([name, { values, effective, rank }]) => {
        const width = 220,
          height = 120,
          most = Math.max(...values.flat()) || 1;
        const x = (n) => 8 + ((width - 16) * n) / Math.max(1, rank - 1);
        const y = (value) => height - 10 - (height - 20) * (value / most);
        const curves = values.map((one) =>
          svg("polyline", {
            points: one.map((value, n) => `${x(n)},${y(value)}`).join(" "),
            class: "line b thin",
          }),
        );
        return html(
          "div",
          {},
          html(
            "p",
            { class: "label" },
            html("code", {}, name),
            ` ${fill(words.effective, { effective: digits(effective), rank })}`,
          ),
          picture(
            width,
            height,
            fill(words.spectrum_label, { name }),
            svg("line", { x1: 8, x2: width - 8, y1: height - 10, y2: height - 10, class: "axis" }),
            ...curves,
          ),
        );
      }),
    );
  }

  return { firstSteps, approximation, spectrum };
})();
