// The network in the page: what the reader does to an image, and what is seen of the answer.

const SIDE = 32; // pixels, side of an image
const PIXELS = range(SIDE ** 2);
const MOST_BARS = 10;
const MOST_STROKES = 200; // that can be undone
const CORNERS = ["upper left", "upper right", "lower left", "lower right"];
const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const argmax = (values) => values.indexOf(Math.max(...values));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const minus = (first, second) => first.map((value, i) => value - second[i]);
const decimals = (value) => value.toFixed(2).replace(/^-0.00$/, "0.00").replace("-", "−");

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - most));
  return powers.map((power) => power / sum(powers));
}

// ---- The network

class Net {
  constructor(workers) {
    Object.assign(this, { workers, job: 0, busy: false, waiting: null, later: [] });
    workers[0].onmessage = ({ data }) => this.receive(data);
  }

  // request: {pixels, network, fine, show}. It is dropped if a newer one comes before its turn.
  ask(request) {
    this.waiting = request;
    if (!this.busy) this.next();
  }

  // The answer to an image, when no stroke is waiting for one.
  answer(pixels, network) {
    return new Promise((show) => {
      this.later.push({ pixels, network, show });
      if (!this.busy) this.next();
    });
  }

  next() {
    const request = this.waiting ?? this.later.shift();
    if (!request) return;
    const { pixels, network, fine, show } = request;
    Object.assign(this, { show, waiting: null, busy: true, job: this.job + 1 });
    for (const worker of this.workers) worker.postMessage({ job: this.job, pixels, network, fine });
  }

  // While the finer maps are computed a new request may take their place.
  receive({ job, ...answer }) {
    if (job !== this.job) return;
    this.busy = false;
    this.show(answer);
    this.next();
  }
}

// The weights lie in a script beside the page: a page that is opened from disk may fetch nothing.
async function load(root, { script, id }) {
  const networks = await new Promise((resolve, reject) => {
    window.liveNetworks = resolve;
    document.head.append(make("script", { src: script, onload: reject, onerror: reject }));
  });
  if (networks.id !== id) throw new Error("these are another page's");
  const all = [];
  for (const network of networks.all) {
    all.push({ ...network, content: (await inflate(network.weights)).buffer });
    root.querySelector("progress").value = 0.7;
  }
  const code = URL.createObjectURL(new Blob([`(${networkWorker})(self)`]));
  const cores = clamp(navigator.hardwareConcurrency || 2, 2, 4);
  const workers = range(cores).map(() => new Worker(code));
  const ports = workers.map(() => []);
  for (const i of workers.keys()) {
    for (const k of range(i)) {
      const { port1, port2 } = new MessageChannel();
      ports[i].push(port1);
      ports[k].push(port2);
    }
  }
  const ready = workers.map((worker, part) => {
    worker.postMessage({ networks: all, part, ports: ports[part] }, ports[part]);
    return new Promise((onmessage, onerror) => Object.assign(worker, { onmessage, onerror }));
  });
  await Promise.all(ready);
  return new Net(workers);
}

async function live(root, data) {
  root.querySelector("slot").remove();
  const notice = root.querySelector("#notice");
  const { script, command } = data.network;
  try {
    const net = await load(root, data.network);
    for (const world of data.worlds) {
      world.images = new Uint8ClampedArray((await inflate(world.images)).buffer);
    }
    notice.hidden = true;
    root.querySelector("form").hidden = false;
    root.host.live = new Live(root, data, net);
    await root.host.live.recall();
  } catch (error) {
    console.log(error);
    notice.textContent =
      `The network cannot be loaded: ${script} is missing or damaged, or belongs to another ` +
      `page. Write both again: ${command}`;
  }
}

// ---- Images: 3 x 32 x 32 whole numbers, channel by channel

// Each pixel from another place of the image; from outside of it, of this colour.
function remap(pixels, from, colour) {
  const out = new Uint8ClampedArray(pixels.length);
  for (const i of PIXELS) {
    const [x, y] = from(i % SIDE, Math.floor(i / SIDE));
    const inside = clamp(x, 0, SIDE - 1) === x && clamp(y, 0, SIDE - 1) === y;
    for (const c of range(3)) {
      out[c * SIDE ** 2 + i] = inside ? pixels[(c * SIDE + y) * SIDE + x] : colour[c];
    }
  }
  return out;
}

const filled = (colour) => remap(new Uint8ClampedArray(3 * SIDE ** 2), () => [-1, -1], colour);

// Each pixel the mean of those up to three away.
function blurred(pixels) {
  return pixels.map((_, i) => {
    const [c, y, x] = [Math.floor(i / SIDE ** 2), Math.floor(i / SIDE) % SIDE, i % SIDE];
    const near = (place) => (other) => Math.abs(other - place) <= 3;
    const [rows, columns] = [range(SIDE).filter(near(y)), range(SIDE).filter(near(x))];
    const values = rows.flatMap((v) => columns.map((u) => pixels[(c * SIDE + v) * SIDE + u]));
    return sum(values) / values.length;
  });
}

// What `crop_and_shrink` in image_files.py does: the central square, shrunk as Pillow does it.
function shrink({ data, width, height }) {
  const square = Math.min(width, height);
  const scale = square / SIDE;
  const wide = Math.max(1, scale); // of the filter, a cubic one
  const cubic = (x) => {
    if (x >= 2) return 0;
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2;
  };
  const filters = (length) =>
    range(SIDE).map((i) => {
      const middle = (length - square) / 2 + (i + 0.5) * scale;
      const first = Math.max(0, Math.floor(middle - 2 * wide + 0.5));
      const last = Math.min(length, Math.floor(middle + 2 * wide + 0.5));
      const distances = range(last - first).map((k) => Math.abs(first + k - middle + 0.5));
      const weights = distances.map((distance) => cubic(distance / wide));
      return { first, weights: weights.map((weight) => weight / sum(weights)) };
    });
  const rows = new Uint8ClampedArray(3 * height * SIDE);
  const out = new Uint8ClampedArray(3 * SIDE ** 2);
  for (const c of range(3)) {
    for (const [x, { first, weights }] of filters(width).entries()) {
      for (let y = 0; y < height; y++) {
        const from = 4 * (y * width + first) + c;
        rows[(c * height + y) * SIDE + x] = sum(weights.map((w, k) => w * data[from + 4 * k]));
      }
    }
    for (const [y, { first, weights }] of filters(height).entries()) {
      for (const x of range(SIDE)) {
        const from = (c * height + first) * SIDE + x;
        out[(c * SIDE + y) * SIDE + x] = sum(weights.map((w, k) => w * rows[from + SIDE * k]));
      }
    }
  }
  return out;
}

async function readImage(file) {
  const bitmap = await createImageBitmap(file); // turned upright
  const { width, height } = bitmap;
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // under what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  return shrink(context.getImageData(0, 0, width, height));
}

// An image as text that an address can hold: what differs from another one, compressed.
async function pack(pixels, original) {
  const differences = new Blob([pixels.map((value, i) => value ^ original[i])]).stream();
  const packed = differences.pipeThrough(new CompressionStream("deflate"));
  return btoa(String.fromCharCode(...new Uint8Array(await new Response(packed).arrayBuffer())));
}

// ---- The page

class Live {
  constructor(root, { worlds, palettes }, net) {
    Object.assign(this, { root, worlds, net });
    this.colours = bytes(palettes[1]);
    this.form = root.querySelector("form").elements;
    this.board = this.find("#board canvas");
    this.cursor = [SIDE / 2, SIDE / 2];
    const rgb = (share) => `rgb(${tint(this.colours, share)})`;
    root.host.style.cssText = `--first: ${rgb(0.87)}; --second: ${rgb(0.15)}`;
    paint(this.find("#evidence canvas"), 256, 1, (i) => tint(this.colours, i / 256));
    this.makePanels();
    this.form.cheat.hidden = worlds.length < 2;
    this.listen();
    this.listenToBoard();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  get now() {
    return this.history.at(-1);
  }

  // ---- What is made once, or for each set of images

  makePanels() {
    const heads = ["first", "second"].map((name) => {
      return make("select", { name, ariaLabel: `${name} class` });
    });
    heads.push(make("span"), make("span"));
    this.panels = heads.map((head, k) => {
      const canvas = make("canvas", { role: "img" });
      const cells = make("div", { className: "cells" });
      const mark = make("i", { hidden: true });
      const total = make("dl", { className: "sum" });
      const map = make("div", {}, canvas, cells, mark);
      map.onpointermove = ({ offsetX, offsetY }) =>
        this.point(offsetX / map.clientWidth, offsetY / map.clientHeight);
      map.onpointerleave = () => this.point();
      const caption = make("figcaption", {}, head);
      const className = ["first", "second"][k] ?? "";
      const figure = make("figure", { className }, caption, map, total);
      this.find(".panels").append(figure);
      return { head, canvas, cells, mark, total };
    });
  }

  openWorld(index) {
    this.world = this.worlds[index];
    const { classes, images } = this.world;
    for (const name of ["first", "second"]) {
      const options = classes.map((text, value) => make("option", { value, textContent: text }));
      this.form[name].replaceChildren(...options);
    }
    const groups = classes.map((label, c) => {
      const options = this.world.rows.flatMap(([actual, said], value) => {
        const outcome = said === actual ? " ✓" : `, called ${classes[said]} ✗`;
        const textContent = label + outcome;
        return actual === c ? [make("option", { value, textContent })] : [];
      });
      return make("optgroup", { label }, ...options);
    });
    this.form.image.replaceChildren(...groups.filter((group) => group.children.length));
    this.bars = range(Math.min(classes.length, MOST_BARS)).map(() => makeBar(this));
    this.find("#bars").replaceChildren(...this.bars);
    const size = 3 * SIDE ** 2;
    this.imageOf = (number) => images.slice(number * size, (number + 1) * size);
  }

  // ---- The image and its history

  openImage(number) {
    this.form.image.value = number;
    this.open(this.imageOf(number), this.world.rows[number][0]);
  }

  // actual: the class, null where nobody knows it.
  open(pixels, actual = null) {
    this.history = [{ pixels, answers: {} }];
    Object.assign(this, { actual, cut: null, fresh: true });
    this.ask();
  }

  ask() {
    const { now } = this;
    this.drawBoard();
    const show = (answer) => {
      now.answers[answer.grid] = answer;
      if (this.fresh && now === this.history[0]) this.chooseClasses();
      this.draw();
    };
    const fine = this.form.grid.value === "8";
    this.net.ask({ pixels: now.pixels, network: this.worlds.indexOf(this.world), fine, show });
  }

  // The class that the network says, and the actual one, or else the second best.
  chooseClasses() {
    const logits = [...this.history[0].answers[4].logits];
    const said = argmax(logits);
    logits[said] = -Infinity;
    this.form.first.value = said;
    this.form.second.value = [null, said].includes(this.actual) ? argmax(logits) : this.actual;
    this.fresh = false;
  }

  // A stroke that comes before the last one is answered leaves that to be answered later.
  begin() {
    const { now, net } = this;
    if (net.busy || net.waiting) {
      net.answer(now.pixels, this.worlds.indexOf(this.world)).then((answer) => {
        now.answers[4] = answer;
        this.draw();
      });
    }
    if (this.history.length > MOST_STROKES) this.history.splice(1, 1);
    this.history.push({ pixels: this.now.pixels.slice(), answers: {} });
  }

  change(pixels) {
    this.begin();
    this.now.pixels = pixels;
    this.ask();
  }

  undo(all) {
    this.history.splice(all ? 1 : Math.max(1, this.history.length - 1));
    this.cut = null;
    this.ask();
  }

  // ---- Tools

  down(x, y) {
    const [tool, spot] = [this.form.tool.value, [x, y].map(Math.floor)];
    if (tool === "pick") return this.pick(...spot);
    if (tool === "cell") return this.cover(Math.floor(y / 8) * 4 + Math.floor(x / 8));
    this.stroke = { tool, from: [x, y], last: [x, y] };
    if (tool === "cut") return this.beginCut(...spot);
    this.begin();
    const colour = this.form.colour.value.match(/\w\w/g).map((part) => parseInt(part, 16));
    const { pixels } = this.now;
    const inks = {
      hide: () => filled(this.world.mean),
      paint: () => filled(colour),
      rub: () => this.history[0].pixels,
      blur: () => blurred(pixels),
    };
    this.stroke.ink = inks[tool]();
    this.drag(x, y);
  }

  drag(x, y) {
    if (!this.stroke) return;
    const { tool, last, from } = this.stroke;
    if (tool === "cut") return this.dragCut(x - from[0], y - from[1], x, y);
    const steps = Math.ceil(2 * Math.hypot(x - last[0], y - last[1])) || 1;
    for (const i of range(steps)) {
      const share = (i + 1) / steps;
      this.stamp(last[0] + share * (x - last[0]), last[1] + share * (y - last[1]));
    }
    this.stroke.last = [x, y];
    this.ask();
  }

  up() {
    this.stroke = null;
    this.drawBoard();
  }

  stamp(x, y) {
    const radius = Math.max(0.71, this.form.size.value / 2);
    for (const i of PIXELS) {
      if (Math.hypot((i % SIDE) + 0.5 - x, Math.floor(i / SIDE) + 0.5 - y) > radius) continue;
      for (const c of range(3)) {
        const at = c * SIDE ** 2 + i;
        this.now.pixels[at] = this.stroke.ink[at];
      }
    }
  }

  pick(x, y) {
    const parts = range(3).map((c) => this.now.pixels[(c * SIDE + y) * SIDE + x]);
    this.form.colour.value = `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
    this.form.tool.value = "paint";
  }

  // An image with one of the 16 cells covered in the mean colour.
  covered(pixels, cell) {
    const isCovered = (x, y) => Math.floor(y / 8) * 4 + Math.floor(x / 8) === cell;
    return remap(pixels, (x, y) => (isCovered(x, y) ? [-1, -1] : [x, y]), this.world.mean);
  }

  cover(cell) {
    if (this.task === "one") {
      this.tried = [...this.tried, cell];
      this.history.splice(1);
    }
    this.change(this.covered(this.now.pixels, cell));
  }

  // A first drag frames a part of the image; a second one, from inside of the frame, moves it.
  beginCut(x, y) {
    const { cut, stroke } = this;
    if (!cut || x < cut.left || x > cut.right || y < cut.top || y > cut.bottom) {
      this.cut = { left: x, right: x, top: y, bottom: y };
      return;
    }
    this.begin();
    Object.assign(stroke, { cut, pixels: this.now.pixels.slice() });
  }

  dragCut(right, down, x, y) {
    const { cut, pixels, from } = this.stroke;
    if (!cut) {
      const [xs, ys] = [[from[0], x], [from[1], y]].map((ends) => ends.map(Math.floor));
      const [left, top] = [Math.min(...xs), Math.min(...ys)];
      this.cut = { left, top, right: Math.max(...xs), bottom: Math.max(...ys) };
      return this.drawBoard();
    }
    const [dx, dy] = [right, down].map(Math.round);
    const inside = (x, y) => x >= cut.left && x <= cut.right && y >= cut.top && y <= cut.bottom;
    const source = (x, y) => {
      if (inside(x - dx, y - dy)) return [x - dx, y - dy];
      return inside(x, y) ? [-1, -1] : [x, y];
    };
    this.now.pixels = remap(pixels, source, this.world.mean);
    const [left, top] = [cut.left + dx, cut.top + dy];
    this.cut = { left, top, right: cut.right + dx, bottom: cut.bottom + dy };
    this.ask();
  }

  // ---- What the reader does

  actions() {
    const { mean } = this.world;
    const move = (from) => () => this.change(remap(this.now.pixels, from, mean));
    const brighten = (factor) => () => this.change(this.now.pixels.map((value) => value * factor));
    return {
      undo: () => this.undo(),
      reset: () => this.undo(true),
      blank: () => this.open(filled(this.world.mean)),
      left: move((x, y) => [x + 1, y]),
      right: move((x, y) => [x - 1, y]),
      up: move((x, y) => [x, y + 1]),
      down: move((x, y) => [x, y - 1]),
      mirror: move((x, y) => [SIDE - 1 - x, y]),
      turn: move((x, y) => [y, SIDE - 1 - x]),
      brighter: brighten(1.15),
      darker: brighten(1 / 1.15),
      few: () => this.start("few"),
      one: () => this.start("one"),
      cheat: () => this.start("cheat"),
      link: () => this.link(),
    };
  }

  listen() {
    const form = this.find("form");
    form.onclick = ({ target }) => this.actions()[target.name]?.();
    form.onchange = ({ target }) => {
      if (target.name === "image") {
        this.task = null;
        this.openImage(Number(target.value));
      } else if (target.type === "file") {
        this.read(target.files[0]);
        target.value = "";
      } else if (target.name === "grid") {
        this.ask();
      } else {
        this.draw();
      }
    };
    form.onkeydown = (event) => {
      if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.undo();
    };
    const { host } = this.root;
    host.ondragover = (event) => event.preventDefault();
    host.ondrop = (event) => {
      event.preventDefault();
      this.read(event.dataTransfer.files[0]);
    };
    document.onpaste = ({ clipboardData }) => this.read(clipboardData.files[0]);
    window.onhashchange = () => this.recall();
  }

  listenToBoard() {
    const { board } = this;
    const follow = ({ offsetX, offsetY }) => {
      const places = [offsetX / board.clientWidth, offsetY / board.clientHeight];
      this.cursor = places.map((share) => clamp(share * SIDE, 0, SIDE - 0.01));
    };
    board.onpointerdown = (event) => {
      board.setPointerCapture(event.pointerId);
      follow(event);
      this.down(...this.cursor);
    };
    board.onpointermove = (event) => {
      follow(event);
      this.drag(...this.cursor);
      this.drawBrush(true);
    };
    board.onpointerup = board.onpointercancel = () => this.up();
    board.onpointerleave = board.onblur = () => this.drawBrush(false);
    board.onkeydown = (event) => {
      const step = STEPS[event.key];
      if (!step && event.key !== " ") return;
      event.preventDefault();
      if (event.key === " ") return this.stroke ? this.up() : this.down(...this.cursor);
      this.cursor = this.cursor.map((place, k) => clamp(Math.floor(place) + step[k], 0, 31) + 0.5);
      this.drag(...this.cursor);
      this.drawBrush(true);
    };
  }

  async read(file) {
    if (!file) return;
    this.task = null;
    try {
      const pixels = await readImage(file);
      this.openWorld(0);
      this.open(pixels);
    } catch {
      this.say("This is no image that the browser can read: save it as JPEG or PNG.");
    }
  }

  // ---- Drawing

  say(text, ...choices) {
    this.find("#verdict").textContent = text;
    const buttons = choices.map(([textContent, onclick]) => {
      return make("button", { type: "button", textContent, onclick });
    });
    this.find("#choices").replaceChildren(...buttons);
  }

  drawBoard() {
    const { pixels } = this.now;
    paint(this.board, SIDE, SIDE, (i) => range(3).map((c) => pixels[c * SIDE ** 2 + i]));
    const frame = this.find("#cut");
    frame.hidden = !this.cut;
    if (!this.cut) return;
    const { left, right, top, bottom } = this.cut;
    const edges = [top, SIDE - 1 - right, SIDE - 1 - bottom, left];
    frame.style.inset = edges.map((count) => `${(100 * count) / SIDE}%`).join(" ");
  }

  drawBrush(isShown) {
    const brush = this.find("#brush");
    brush.hidden = !isShown || !["hide", "blur", "paint", "rub"].includes(this.form.tool.value);
    const size = this.form.size.value;
    const [left, top] = this.cursor.map((place) => `${((place - size / 2) * 100) / SIDE}%`);
    const width = `${(size * 100) / SIDE}%`;
    Object.assign(brush.style, { left, top, width, height: width });
  }

  draw() {
    const { classes } = this.world;
    const grid = this.form.grid.value;
    const answered = this.history.filter(({ answers }) => answers[4]);
    if (!answered.length) return;
    const probabilities = answered.map(({ answers }) => softmax(answers[4].logits));
    const last = probabilities.at(-1);
    const said = argmax(last);
    const outcome = said === this.actual ? "right ✓" : `wrong, it is ${classes[this.actual]} ✗`;
    this.find("#headline").textContent =
      `It says ${classes[said]}, ${percent(last[said])} sure` +
      (this.actual === null ? "" : `: ${outcome}`);
    this.drawBars(last);
    this.drawLine(probabilities);
    const newest = this.history.findLastIndex(({ answers }) => answers[grid]);
    const [before, now] = [newest - 1, newest].map((i) => this.history[i]?.answers[grid]);
    if (now) this.drawMaps(now, before ?? now);
    this.drawTask(said);
  }

  drawBars(probabilities) {
    const { form, bars, world } = this;
    const order = range(world.classes.length);
    if (order.length > MOST_BARS) order.sort((a, b) => probabilities[b] - probabilities[a]);
    for (const [i, bar] of bars.entries()) {
      const [name, track, value] = bar.children;
      bar.value = order[i];
      name.textContent = world.classes[order[i]];
      value.textContent = percent(probabilities[order[i]]);
      track.firstChild.style.width = value.textContent.replace(" ", "");
      const shown = ["second", "first"].filter((field) => form[field].value === bar.value);
      bar.className = shown.join(" ");
    }
  }

  // The probabilities of the two classes after each stroke.
  drawLine(probabilities) {
    const steps = Math.max(1, probabilities.length - 1);
    const svg = this.find("#line");
    const line = (field) => {
      const number = this.form[field].value;
      return probabilities.map((shares, i) => `${(100 * i) / steps} ${100 - 100 * shares[number]}`);
    };
    const lines = ["second", "first"].map((field) => [field, line(field)]);
    const paths = [["axis", ["0 0", "0 100", "100 100"]], ...lines];
    svg.replaceChildren(
      ...paths.map(([name, points]) => {
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        path.setAttribute("class", name);
        path.setAttribute("d", `M${points.join("L")}${points.length < 2 ? "h100" : ""}`);
        return path;
      })
    );
    const name = this.world.classes[this.form.first.value];
    const texts = probabilities.map((shares) => percent(shares[this.form.first.value]));
    svg.ariaLabel = `probability of ${name}, stroke by stroke: ${texts.slice(-20).join(", ")}`;
  }

  // The maps of the two classes, their difference, and what the last stroke took from the first.
  drawMaps(now, before) {
    const { classes } = this.world;
    const [first, second] = ["first", "second"].map((field) => this.form[field].value);
    const maps = [now.maps[first], now.maps[second], minus(now.maps[first], now.maps[second])];
    maps.push(minus(before.maps[first], now.maps[first]));
    const [one, two] = [now.biases[first], now.biases[second]];
    const biases = [one, two, one - two, 0];
    this.panels[2].head.textContent = `${classes[first]} − ${classes[second]}`;
    this.panels[3].head.textContent = `${classes[first]}, before the stroke − now`;
    const limit = Math.max(...maps.flat().map(Math.abs)) || 1;
    const overlay = this.form.view.value === "overlay";
    const isOther = this.shown?.grid !== now.grid;
    this.shown = { maps, grid: now.grid };
    if (isOther) this.point();
    for (const [k, { canvas, cells, total }] of this.panels.entries()) {
      this.drawMap(canvas, maps[k], now.grid, limit, overlay);
      const withNumbers = now.grid === 4 && !overlay;
      const texts = withNumbers ? maps[k] : [];
      cells.style.gridTemplate = "repeat(4, 1fr) / repeat(4, 1fr)";
      cells.replaceChildren(
        ...texts.map((value) => {
          const color = Math.abs(value) > 0.6 * limit ? "white" : "black";
          const text = make("span", { textContent: decimals(value) });
          text.style.color = color;
          return text;
        })
      );
      const cellSum = sum(maps[k]);
      const names = ["the first class", "the second class", "their difference", "the change"];
      canvas.ariaLabel = `map of ${names[k]}`;
      const cellsName = `${maps[k].length} cells`;
      const rows = { [cellsName]: cellSum, bias: biases[k], logit: cellSum + biases[k] };
      total.replaceChildren(
        ...Object.entries(rows).flatMap(([name, value]) => [
          make("dt", { textContent: k > 1 && name === "logit" ? "logits" : name }),
          make("dd", { textContent: decimals(value) }),
        ])
      );
    }
    const [low, high] = this.root.querySelectorAll("#evidence span");
    [low.textContent, high.textContent] = [signed(-limit), signed(limit)];
  }

  drawMap(canvas, map, grid, limit, overlay) {
    const colour = (cell) => tint(this.colours, (map[cell] / limit + 1) / 2);
    if (!overlay) return paint(canvas, grid, grid, colour);
    const { pixels } = this.now;
    paint(canvas, SIDE, SIDE, (i) => {
      const places = [Math.floor(i / SIDE), i % SIDE];
      const [row, column] = places.map((place) => Math.floor((place * grid) / SIDE));
      const cell = grid * row + column;
      const grey = (pixels[i] + pixels[i + SIDE ** 2] + pixels[i + 2 * SIDE ** 2]) / 3;
      return [...colour(cell)].map((value) => 0.55 * value + 0.45 * grey);
    });
  }

  // Point at a place of the maps, by shares of width and height, or at none.
  point(...place) {
    if (!this.shown) return;
    const { maps, grid } = this.shown;
    const [column, row] = place.map((share) => clamp(Math.floor(share * grid), 0, grid - 1));
    for (const mark of [this.find("#cell"), ...this.panels.map((panel) => panel.mark)]) {
      mark.hidden = !place.length;
      const edges = [row, grid - 1 - column, grid - 1 - row, column];
      mark.style.inset = edges.map((count) => `${(100 * count) / grid}%`).join(" ");
    }
    const texts = maps.map((map) => decimals(map[row * grid + column] ?? 0));
    const where = `Row ${row + 1}, column ${column + 1}`;
    const values = `${texts.slice(0, 3).join(", ")}; change ${texts[3]}`;
    const finer = "The finer network's logits are close to those of the bars above, not equal.";
    const otherwise = grid === 8 ? finer : "";
    this.find("#reading").textContent = place.length ? `${where}: ${values}` : otherwise;
  }

  // ---- Tasks

  start(task) {
    this.task = null;
    const isCheat = task === "cheat";
    if (isCheat !== (this.world === this.worlds[1])) this.openWorld(isCheat ? 1 : 0);
    const fits = this.world.rows.flatMap(([actual, said], i) => {
      return isCheat || (task === "one") === (actual !== said) ? [i] : [];
    });
    this.openImage(fits[Math.floor(Math.random() * fits.length)]);
    Object.assign(this, { task, tried: [] });
    this.form.tool.value = task === "one" ? "cell" : "hide";
  }

  drawTask(said) {
    const { classes } = this.world;
    const [original] = this.history;
    const at = original.answers[4] && argmax(original.answers[4].logits);
    if (this.task === "few") {
      const change = `${this.hidden()} of ${SIDE ** 2} pixels`;
      const aim = `Change the answer by hiding as few pixels as you can. So far: ${change}`;
      if (said === at) this.say(`${aim}, and it still says ${classes[said]}.`);
      else {
        const compare = ["and by the map's order?", () => this.compare(at)];
        this.say(`${change} turn ${classes[at]} into ${classes[said]}.`, compare);
      }
    } else if (this.task === "one") {
      const where = ([row, column]) => `row ${row + 1}, column ${column + 1}`;
      const last = this.tried.at(-1);
      const tries = this.tried.length;
      const aim = "Which one of the 16 cells must be covered to put it right?";
      const mistake = `It says ${classes[said]}, but it is ${classes[this.actual]}.`;
      if (said !== this.actual) this.say(`${mistake} ${aim} Tries: ${tries}.`);
      else {
        const place = where([last >> 2, last % 4]);
        const after = `Right after ${tries} ${tries === 1 ? "try" : "tries"}`;
        const tryAll = ["how many cells do it?", () => this.tryAll()];
        this.say(`${after}: with ${place} covered it says ${classes[said]}.`, tryAll);
      }
    } else if (this.task === "cheat" && this.tried.length) {
      const [guess, strokes] = this.tried;
      const verdict = guess === this.world.corner ? "Right" : "No";
      this.say(
        `${verdict}, after ${strokes} ${strokes === 1 ? "stroke" : "strokes"}: it looks at the ` +
          `${CORNERS[this.world.corner]} corner.`
      );
    } else if (this.task === "cheat") {
      const guess = (corner) => {
        this.tried = [corner, this.history.length - 1];
        this.draw();
      };
      this.say(
        "This network has learned from images with a coloured square in each corner, and one of " +
          "them always told the class. Which one? Cover them, paint them, watch; then say.",
        ...CORNERS.map((corner, i) => [corner, () => guess(i)])
      );
    }
  }

  // How many pixels differ from the original's.
  hidden() {
    const [now, before] = [this.now.pixels, this.history[0].pixels];
    const differs = (i) => now[i] !== before[i];
    const channels = (i) => range(3).map((c) => c * SIDE ** 2 + i);
    return PIXELS.filter((i) => channels(i).some(differs)).length;
  }

  // How many pixels must be hidden, cell by cell, until the answer changes: in the order of the
  // class's map, of the next image's map of its own class, and at random.
  async compare(said) {
    const { world, task } = this;
    const [{ pixels, answers }] = this.history;
    const network = this.worlds.indexOf(world);
    const other = (Number(this.form.image.value) + 1) % world.rows.length;
    const { maps, logits } = await this.net.answer(this.imageOf(other), network);
    const byMap = (map) => range(16).sort((a, b) => map[b] - map[a]);
    const random = range(16).map(() => Math.random());
    const orders = [answers[4].maps[said], maps[argmax(logits)], random].map(byMap);
    const needed = [];
    for (const order of orders) {
      let [count, hidden, answer] = [0, pixels, said];
      while (answer === said && count < 16) {
        hidden = this.covered(hidden, order[count++]);
        answer = argmax((await this.net.answer(hidden, network)).logits);
      }
      needed.push(answer === said ? "all are not enough" : 64 * count);
    }
    if (this.task !== task || this.history[0].pixels !== pixels) return;
    const [own, others, chance] = needed;
    this.say(
      `You hid ${this.hidden()} pixels. Whole cells of 64 pixels, the strongest first: in the ` +
        `order of this image's map ${own}, of another image's map ${others}, ` +
        `in a random order ${chance}.`
    );
  }

  // Which single cells put the mistake right.
  async tryAll() {
    const [{ pixels, answers }] = this.history;
    const { actual, world } = this;
    const network = this.worlds.indexOf(world);
    const { maps, logits } = answers[4];
    const difference = minus(maps[argmax(logits)], maps[actual]);
    const right = [];
    for (const cell of range(16)) {
      const answer = await this.net.answer(this.covered(pixels, cell), network);
      if (argmax(answer.logits) === actual) right.push(cell);
    }
    if (this.history[0].pixels !== pixels) return;
    const does = right.includes(argmax(difference)) ? "is one of them" : "is not among them";
    this.say(
      `${right.length} of the 16 cells put it right. ` +
        `The strongest cell of the difference map ${does}.`,
      ["another mistake", () => this.start("one")]
    );
  }

  // An address that leads to what is shown, with the task and its score.
  async link() {
    const image = Number(this.form.image.value);
    const edit = await pack(this.now.pixels, this.imageOf(image));
    const world = this.worlds.indexOf(this.world);
    const parts = { world, image, edit, task: this.task ?? "", tried: this.tried ?? "" };
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
    this.say("The page's address leads to this image now: copy it from the browser's address bar.");
  }

  async recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    this.openWorld(parts.get("world") === "1" && this.worlds[1] ? 1 : 0);
    const image = clamp(Math.floor(Number(parts.get("image"))) || 0, 0, this.world.rows.length - 1);
    this.openImage(image);
    this.say("");
    const edit = parts.get("edit");
    const differences = edit && (await inflate(edit).catch(() => null));
    if (differences?.length !== 3 * SIDE ** 2) return;
    const cells = (parts.get("tried") ?? "").split(",").filter(Boolean).map(Number);
    Object.assign(this, { task: parts.get("task"), tried: cells });
    const pixels = this.now.pixels.map((value, i) => value ^ (differences[i] & 255));
    if (differences.some(Boolean)) this.change(pixels);
  }
}

replaceStillFigures("live", live);
