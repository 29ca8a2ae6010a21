// What the explorer, the game and the live page share: maps and their colours, elements, and the way
// onto a page. `embed` in embed.py joins this file and theirs, and writes the figure and the data.

const MOST_BARS = 12; // classes up to which each has a bar
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

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

const options = (texts) =>
  texts.map((textContent, value) => make("option", { value, textContent }));

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

// ---- What the explorer and the live page share

// root: a shadow root with a form in which two classes are chosen, their bars, and maps. A page has
// `classes`, `draw`, `drawReading`, and `side`, the number of cells in a row of the maps shown.
class MapPage {
  constructor(root, palettes) {
    this.root = root;
    this.form = this.find("form").elements;
    this.pointed = null; // what is pointed at on a map: shares of its height and width
    [this.heatColours, this.signedColours] = palettes.map(bytes);
    const rgb = (share) => `rgb(${tint(this.signedColours, share)})`;
    const [first, second] = [rgb(0.87), rgb(0.15)]; // strong, but seen on light and on dark
    root.host.style.cssText = `--first: ${first}; --second: ${second}`;
    paint(this.find("#evidence canvas"), 256, 1, (i) => tint(this.signedColours, i / 256));
    this.mapCanvases = this.all(".panels canvas[tabindex]");
    for (const canvas of this.mapCanvases) this.listenToMap(canvas);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  all(selector) {
    return [...this.root.querySelectorAll(selector)];
  }

  // A click on a bar chooses the first class, with the shift key the second.
  makeBars() {
    const bars = range(Math.min(this.classes.length, MOST_BARS)).map(() => {
      const track = make("span", { className: "track" }, make("i"));
      const bar = make("button", { type: "button" }, make("span"), track, make("span"));
      bar.onclick = ({ shiftKey }) => {
        this.form[shiftKey ? "second" : "first"].value = bar.value;
        this.draw();
      };
      return bar;
    });
    this.find("#bars").replaceChildren(...bars);
  }

  // Of the likeliest classes, where there are more classes than bars.
  drawBars(probabilities) {
    const { form, classes } = this;
    const order = range(classes.length);
    if (classes.length > MOST_BARS) order.sort((a, b) => probabilities[b] - probabilities[a]);
    this.all("#bars button").forEach((bar, i) => {
      const number = order[i];
      const [name, track, value] = bar.children;
      bar.value = number;
      name.textContent = classes[number];
      value.textContent = percent(probabilities[number]);
      track.firstChild.style.width = `${100 * probabilities[number]}%`;
      const shown = ["first", "second"].filter((field) => Number(form[field].value) === number);
      bar.className = shown.join(" ");
    });
  }

  // A map cell by cell, white at zero.
  drawCells(canvas, map, side, limit) {
    paint(canvas, side, side, (i) => tint(this.signedColours, (map[i] / limit + 1) / 2));
  }

  drawScale(limit) {
    const [low, high] = this.all("#evidence span");
    low.textContent = signed(-limit);
    high.textContent = signed(limit);
  }

  // Arrow keys go from cell to cell.
  listenToMap(canvas) {
    canvas.onpointermove = ({ offsetX, offsetY }) => {
      this.point([offsetY / canvas.clientHeight, offsetX / canvas.clientWidth]);
    };
    canvas.onpointerleave = () => this.point(null);
    canvas.onblur = () => this.point(null);
    canvas.onkeydown = (event) => {
      if (!ARROWS[event.key]) return;
      event.preventDefault();
      const place = this.pointed ?? [0.5, 0.5];
      this.point(place.map((share, k) => share + ARROWS[event.key][k] / this.side));
    };
  }

  // Point at a place on the maps, by shares of their height and width; null: at none.
  point(place) {
    this.pointed = place && place.map((share) => Math.min(0.999, Math.max(0, share)));
    this.drawReading();
  }

  // The row and column of the cell that is pointed at, with a frame around it on every panel.
  markCell() {
    const { side } = this;
    const cell = this.pointed && this.pointed.map((share) => Math.floor(share * side));
    for (const mark of this.all("figure i, #cell")) {
      mark.hidden = !cell;
      if (!cell) continue;
      const [row, column] = cell;
      const edges = [row, side - 1 - column, side - 1 - row, column]; // top, right, bottom, left
      mark.style.inset = edges.map((count) => `${(100 * count) / side}%`).join(" ");
    }
    return cell;
  }
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
