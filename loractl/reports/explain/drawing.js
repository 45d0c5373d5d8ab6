// Numbers as text, and elements: what every figure of the page is made with.

const Drawing = (() => {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  const lang = document.documentElement.lang;
  const exact = new Intl.NumberFormat(lang);
  const compact = new Intl.NumberFormat(lang, {
    notation: "compact",
    maximumSignificantDigits: 3,
  });

  const count = (n) => exact.format(n);
  const short = (n) => (n < 10000 ? exact.format(n) : compact.format(n));
  /** Three digits, or all before the point if there are more. */
  const digits = (x) => exact.format(x < 1000 ? Number(x.toPrecision(3)) : Math.round(x));
  const percent = (share) => `${digits(100 * share)}%`;
  const power = (n) => [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
  /** 0.00029 as 2.9 × 10⁻⁴. */
  const scientific = (x) =>
    x.toExponential(1).replace(/e(.+)/, (_, n) => ` × 10${power(Number(n))}`);

  /** Bytes in the binary units of `loractl estimate`. */
  function bytes(n) {
    for (const unit of ["B", "KiB", "MiB"]) {
      if (n < 1024) return `${unit === "B" || n >= 100 ? n.toFixed(0) : digits(n)} ${unit}`;
      n /= 1024;
    }
    return `${n < 100 ? n.toFixed(2) : exact.format(Math.round(n))} GiB`;
  }

  /** A text with {name} replaced. */
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

  function make(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on")
        for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
      else if (name === "width%") node.style.width = `${value}%`;
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const html = (tag, attributes = {}, ...children) =>
    make(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    make(document.createElementNS(SVG, tag), attributes, children);

  /** A drawing of this size with a text for those who do not see it. */
  const picture = (width, height, label, ...children) =>
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
      ...children,
    );

  const label = (x, y, text, attributes = {}) => svg("text", { x, y, ...attributes }, text);

  /** A horizontal bar: its name, its value beside it, and a width in percent of the track. */
  function bar(name, value, percentage, kind, note = "") {
    const filled = html("div", { class: `fill ${kind}`, "width%": percentage });
    const words = note ? [html("span", { class: "bar-note" }, note)] : [];
    return html(
      "div",
      { class: "bar" },
      html("div", { class: "bar-head" }, html("span", {}, name), html("strong", {}, value)),
      html("div", { class: "bar-track" }, filled, ...words),
    );
  }

  /** A matrix as squares: one color for each sign, its strength the size of the value. */
  function cells(matrix, x, y, size, most) {
    const group = svg("g", {});
    matrix.forEach((row, i) =>
      row.forEach((value, j) => {
        const strength = Math.min(1, Math.abs(value) / most);
        group.append(
          svg("rect", {
            x: x + j * size,
            y: y + i * size,
            width: size,
            height: size,
            class: value < 0 ? "minus" : "plus",
            "fill-opacity": strength.toFixed(2),
          }),
        );
      }),
    );
    group.append(
      svg("rect", {
        x,
        y,
        width: matrix[0].length * size,
        height: matrix.length * size,
        class: "frame",
      }),
    );
    return group;
  }

  return {
    count,
    short,
    digits,
    percent,
    scientific,
    bytes,
    fill,
    html,
    svg,
    picture,
    label,
    bar,
    cells,
  };
})();
