// What the explorer and the game share: maps and their colours, elements, and the way onto a page.
// `embed` in embed.py joins this file and one of the other two, and writes the figure and the data.

// ---- Numbers and bytes

const range = (length) => Array.from({ length }, (_, i) => i);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// The whole numbers of `quantised` in embed.py.
async function inflate(text) {
  const stream = new Blob([bytes(text)]).stream();
  const inflated = stream.pipeThrough(new DecompressionStream("deflate"));
  return new Int8Array(await new Response(inflated).arrayBuffer());
}

// ---- Elements. What comes from the data, such as a class's name, is set as text, never as markup.

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A class's bar: a click chooses the first class of a page's form, with the shift key the second.
function makeBar(page) {
  const track = make("span", { className: "track" }, make("i"));
  const bar = make("button", { type: "button" }, make("span"), track, make("span"));
  bar.onclick = ({ shiftKey }) => {
    page.form[shiftKey ? "second" : "first"].value = bar.value;
    page.draw();
  };
  return bar;
}

// Draw columns x rows pixels; colour(i) gives the red, green and blue of pixel i, 0 to 255.
function paint(canvas, columns, rows, colour) {
  const picture = new ImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) {
    picture.data.set([...colour(i), 255], 4 * i);
  }
  Object.assign(canvas, { width: columns, height: rows });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// ---- Maps

// A palette is 256 colours in a row; a share from 0 to 1 is looked up as matplotlib does.
function tint(palette, share) {
  const start = 3 * Math.min(255, Math.floor(256 * share));
  return palette.subarray(start, start + 3);
}

// What `gradcam.as_heatmaps` does: negative cells are set to 0, and the grid of side x side cells
// is enlarged bilinearly to size x size and divided by its maximum.
function heatmap(cells, side, size) {
  const cell = (row, column) => {
    const inside = Math.min(row, side - 1) * side + Math.min(column, side - 1);
    return Math.max(0, cells[inside]);
  };
  const between = (place, value) => {
    const before = Math.floor(place);
    const share = place % 1;
    return value(before) * (1 - share) + value(before + 1) * share;
  };
  const places = range(size).map((i) => Math.max(0, ((i + 0.5) * side) / size - 0.5));
  const heat = places.flatMap((y) =>
    places.map((x) => between(y, (row) => between(x, (column) => cell(row, column))))
  );
  const peak = Math.max(...heat) || 1;
  return heat.map((value) => value / peak);
}

// ---- The way onto a page

// Build something interactive in the place of each still figure of this kind. Until it is built,
// the figure is shown in the slot. A shadow root keeps its styles and names apart from those of a
// notebook's front end and of other explorers.
function replaceStillFigures(kind, build) {
  for (const host of document.querySelectorAll(".alive")) {
    if (host.shadowRoot) continue; // built already
    const data = JSON.parse(host.querySelector("script").textContent);
    if (data.kind !== kind) continue;
    const root = host.attachShadow({ mode: "open" });
    // These two come from files, not from the data.
    root.innerHTML = `<style>${data.style}</style><slot></slot>${data.markup}`;
    build(root, data);
  }
}
