// The network in the page: what the reader does to an image, and what is seen of the answer.
// An image is 3 x 32 x 32 whole numbers, channel by channel.

const SIDE = 32; // pixels, side of an image
const PIXELS = SIDE ** 2;
const MOST_STROKES = 200; // that can be undone
const CORNERS = ["upper left", "upper right", "lower left", "lower right"];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const argmax = (values) => values.indexOf(Math.max(...values));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const minus = (first, second) => first.map((value, i) => value - second[i]);
const decimals = (value) =>
  value
    .toFixed(2)
    .replace(/^-(?=0.00$)/, "")
    .replace("-", "−");

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
    this.next();
  }

  // The answer to an image, when no stroke is waiting for one.
  answer(pixels, network) {
    return new Promise((show) => {
      this.later.push({ pixels, network, show });
      this.next();
    });
  }

  next() {
    if (this.busy) return;
    const request = this.waiting ?? this.later.shift();
    if (!request) return;
    const { show, ...question } = request;
    Object.assign(this, { show, waiting: null, busy: true, job: this.job + 1 });
    for (const worker of this.workers) worker.postMessage({ ...question, job: this.job });
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
async function load({ script, id }) {
  const packed = await new Promise((resolve, reject) => {
    window.liveNetworks = resolve;
    document.head.append(make("script", { src: script, onload: reject, onerror: reject }));
  });
  if (packed.id !== id) throw new Error("these are another page's");
  const networks = [];
  for (const network of packed.all) {
    networks.push({ ...network, content: (await inflate(network.weights)).buffer });
  }
  const code = URL.createObjectURL(new Blob([`(${networkWorker})(self)`]));
  const workers = range(clamp(navigator.hardwareConcurrency, 2, 4)).map(() => new Worker(code));
  const ports = workers.map(() => []);
  for (const i of workers.keys()) {
    for (const k of range(i)) {
      const { port1, port2 } = new MessageChannel();
      ports[i].push(port1);
      ports[k].push(port2);
    }
  }
  const ready = workers.map((worker, part) => {
    worker.postMessage({ networks, part, ports: ports[part] }, ports[part]);
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
    const net = await load(data.network);
    for (const world of data.worlds) {
      world.images = new Uint8ClampedArray((await inflate(world.images)).buffer);
    }
    root.host.live = new Live(root, data, net);
    await root.host.live.recall();
    notice.hidden = true;
    root.querySelector("form").hidden = false;
  } catch (error) {
    console.log(error);
    notice.textContent =
      `The network cannot be loaded: ${script} is missing or damaged, or belongs to another ` +
      `page. Write both again: ${command}`;
  }
}

// ---- Images

const isInside = (x, y) => clamp(x, 0, SIDE - 1) === x && clamp(y, 0, SIDE - 1) === y;
const cellOf = (x, y, side) => Math.floor((y * side) / SIDE) * side + Math.floor((x * side) / SIDE);

// Each number of an image from its index and place.
function image(value) {
  const numbers = new Uint8ClampedArray(3 * PIXELS);
  return numbers.map((_, i) => value(i, i % SIDE, Math.floor(i / SIDE) % SIDE));
}

const filled = (colour) => image((i) => colour[Math.floor(i / PIXELS)]);
const covered = (pixels, ink, where) => image((i, x, y) => (where(x, y) ? ink[i] : pixels[i]));

// Each pixel from another place; where that is outside of the image, from a blank.
function moved(pixels, blank, from) {
  return image((i, x, y) => {
    const [u, v] = from(x, y);
    return isInside(u, v) ? pixels[i + u - x + SIDE * (v - y)] : blank[i];
  });
}

// Each pixel the mean of those up to three away.
function blurred(pixels) {
  const offsets = range(49).map((k) => [(k % 7) - 3, Math.floor(k / 7) - 3]);
  return image((i, x, y) => {
    const near = offsets.filter(([dx, dy]) => isInside(x + dx, y + dy));
    return sum(near.map(([dx, dy]) => pixels[i + dx + SIDE * dy])) / near.length;
  });
}

// The distance of the middle of a pixel from a line between two places.
function distance(x, y, [fromX, fromY], [toX, toY]) {
  const [right, down] = [toX - fromX, toY - fromY];
  const [dx, dy] = [x + 0.5 - fromX, y + 0.5 - fromY];
  const share = clamp((dx * right + dy * down) / (right ** 2 + down ** 2) || 0, 0, 1);
  return Math.hypot(dx - share * right, dy - share * down);
}

// Rows of pixels (red, green, blue, opacity), each shrunk from its middle to 32 pixels as Pillow
// does it. The rows become columns: done twice, an image is upright again.
function shrinkRows({ data, width, height }, square) {
  const scale = square / SIDE;
  const wide = Math.max(1, scale); // of the filter, a cubic one
  const cubic = (x) => {
    if (x >= 2) return 0;
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2;
  };
  const out = new Uint8ClampedArray(4 * SIDE * height);
  for (const i of range(SIDE)) {
    const middle = (width - square) / 2 + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(middle - 2 * wide + 0.5));
    const last = Math.min(width, Math.floor(middle + 2 * wide + 0.5));
    const distances = range(last - first).map((k) => Math.abs(first + k - middle + 0.5));
    const weights = distances.map((distance) => cubic(distance / wide));
    const total = sum(weights);
    for (let at = 0; at < 4 * height; at++) {
      const start = 4 * (width * Math.floor(at / 4) + first) + (at % 4);
      let value = 0;
      for (let k = 0; k < weights.length; k++) value += weights[k] * data[start + 4 * k];
      out[4 * height * i + at] = value / total;
    }
  }
  return { data: out, width: height, height: SIDE };
}

// What `read_image` and `crop_and_shrink` in image_files.py do: upright, on white, a square.
async function readImage(file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const square = Math.min(width, height);
  const rows = shrinkRows(context.getImageData(0, 0, width, height), square);
  const { data } = shrinkRows(rows, square);
  return image((i) => data[4 * (i % PIXELS) + Math.floor(i / PIXELS)]);
}

// An image as text that an address can hold: what differs from another one, compressed.
async function pack(pixels, original) {
  const differences = new Blob([pixels.map((value, i) => value ^ original[i])]).stream();
  const packed = differences.pipeThrough(new CompressionStream("deflate"));
  return btoa(String.fromCharCode(...new Uint8Array(await new Response(packed).arrayBuffer())));
}

// ---- The page

class Live extends MapPage {
  constructor(root, { worlds, palettes }, net) {
    super(root, palettes);
    Object.assign(this, { worlds, net, maps: [], side: 4 });
    this.board = this.find("#board canvas");
    this.cursor = [SIDE / 2, SIDE / 2];
    this.form.cheat.hidden = worlds.length < 2;
    this.listen();
    this.listenToBoard();
  }

  get now() {
    return this.history.at(-1);
  }

  // A network and its images.
  openWorld(index) {
    const { form } = this;
    const { classes, images, mean, rows } = this.worlds[index];
    Object.assign(this, { network: index, world: this.worlds[index], classes });
    this.blank = filled(mean);
    this.imageOf = (number) => images.slice(number * 3 * PIXELS, (number + 1) * 3 * PIXELS);
    for (const field of [form.first, form.second]) field.replaceChildren(...options(classes));
    const texts = rows.map(([actual, said]) => {
      return classes[actual] + (said === actual ? " ✓" : `, called ${classes[said]} ✗`);
    });
    const byClass = options(texts).sort((a, b) => a.text.localeCompare(b.text));
    form.image.replaceChildren(...byClass);
    this.makeBars();
  }

  // ---- The image and its history

  openImage(number) {
    this.open(this.imageOf(number), this.world.rows[number][0]);
    this.form.image.value = number;
  }

  // actual: the class, null where nobody knows it.
  open(pixels, actual = null) {
    this.history = [{ pixels, answers: {} }];
    Object.assign(this, { actual, cut: [], stroke: null, fresh: true, task: null, tried: [] });
    this.form.image.value = "";
    this.say("");
    this.ask();
  }

  ask() {
    const { now, network } = this;
    this.drawBoard();
    const show = (answer) => {
      now.answers[answer.grid] = answer;
      if (this.fresh && now === this.history[0]) this.chooseClasses();
      this.draw();
    };
    this.net.ask({ pixels: now.pixels, network, fine: this.form.grid.value === "8", show });
  }

  // The class that the network says, and the actual one, or else the second best.
  chooseClasses() {
    const { logits } = this.history[0].answers[4];
    const [said, next] = range(logits.length).sort((a, b) => logits[b] - logits[a]);
    this.form.first.value = said;
    this.form.second.value = [null, said].includes(this.actual) ? next : this.actual;
    this.fresh = false;
  }

  // A stroke that comes before the last one is answered leaves that to be answered later.
  begin() {
    const { now, net, network } = this;
    if (net.busy || net.waiting) {
      net.answer(now.pixels, network).then((answer) => {
        now.answers[4] = answer;
        this.draw();
      });
    }
    if (this.history.length > MOST_STROKES) this.history.splice(1, 1);
    this.history.push({ pixels: now.pixels, answers: {} });
  }

  goOn(pixels) {
    this.now.pixels = pixels;
    this.ask();
  }

  change(pixels) {
    this.begin();
    this.goOn(pixels);
  }

  undo(all) {
    this.history.splice(all ? 1 : Math.max(1, this.history.length - 1));
    Object.assign(this, { cut: [], stroke: null });
    this.ask();
  }

  // ---- Tools

  // What starts each tool, at a place; what it returns goes on, at each further place.
  tools() {
    const { form, now, blank } = this;
    const colour = form.colour.value.match(/\w\w/g);
    return {
      hide: () => this.brush(blank),
      paint: () => this.brush(filled(colour.map((part) => parseInt(part, 16)))),
      rub: () => this.brush(this.history[0].pixels),
      blur: () => this.brush(blurred(now.pixels)),
      pick: (x, y) => this.pick(Math.floor(x), Math.floor(y)),
      cell: (x, y) => this.cover(x, y),
      cut: (x, y) => this.carry(x, y) ?? this.outline(),
    };
  }

  down(x, y) {
    this.cursor = [x, y];
    this.stroke = this.tools()[this.form.tool.value](x, y);
    this.drag(x, y);
  }

  drag(x, y) {
    this.stroke?.(x, y);
    this.cursor = [x, y];
    this.drawBoard();
  }

  up() {
    this.stroke = null;
  }

  brush(ink) {
    this.begin();
    const radius = Math.max(0.71, this.form.size.value / 2);
    return (...place) => {
      const isNear = (x, y) => distance(x, y, this.cursor, place) <= radius;
      this.goOn(covered(this.now.pixels, ink, isNear));
    };
  }

  pick(x, y) {
    const parts = range(3).map((c) => this.now.pixels[c * PIXELS + y * SIDE + x]);
    this.form.colour.value = `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
    this.form.tool.value = "paint";
  }

  // An image with one cell of a grid in the mean colour.
  without(pixels, cell, side = 4) {
    return covered(pixels, this.blank, (x, y) => cellOf(x, y, side) === cell);
  }

  cover(x, y) {
    const isTask = this.task === "one";
    const side = isTask ? 4 : Number(this.form.grid.value);
    const cell = cellOf(x, y, side);
    if (isTask) {
      this.tried.push(cell);
      this.history.splice(1);
    }
    this.change(this.without(this.now.pixels, cell, side));
  }

  // A first drag draws an outline around a part of the image.
  outline() {
    this.cut = [];
    return (...place) => this.cut.push(place);
  }

  // A second one, from inside of the outline, moves what it holds, and itself.
  carry(fromX, fromY) {
    const held = this.held();
    if (!held[SIDE * Math.floor(fromY) + Math.floor(fromX)]) return;
    const { cut } = this;
    const { pixels } = this.now;
    const isHeld = (x, y) => isInside(x, y) && held[SIDE * y + x];
    this.begin();
    return (x, y) => {
      const [right, down] = [Math.round(x - fromX), Math.round(y - fromY)];
      const from = (u, v) => {
        if (isHeld(u - right, v - down)) return [u - right, v - down];
        return isHeld(u, v) ? [-1, -1] : [u, v];
      };
      this.cut = cut.map(([u, v]) => [u + right, v + down]);
      this.goOn(moved(pixels, this.blank, from));
    };
  }

  // Of each pixel whether its middle lies inside of the outline, or on it.
  held() {
    const context = this.board.getContext("2d");
    const outline = new Path2D(`M${this.cut.join("L")}Z`);
    return range(PIXELS).map((i) => {
      return context.isPointInPath(outline, (i % SIDE) + 0.5, Math.floor(i / SIDE) + 0.5);
    });
  }

  // ---- What the reader does

  // What each button does.
  actions() {
    const { pixels } = this.now;
    const move = (from) => () => this.change(moved(pixels, this.blank, from));
    const brighten = (factor) => () => this.change(pixels.map((value) => value * factor));
    return {
      undo: () => this.undo(),
      reset: () => this.undo(true),
      blank: () => this.open(this.blank),
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
      compare: () => this.compare(),
      corner: ({ value }) => this.guess(Number(value)),
      link: () => this.link(),
    };
  }

  listen() {
    const form = this.find("form");
    form.onclick = ({ target }) => this.actions()[target.name]?.(target);
    form.onchange = ({ target }) => {
      if (target.name === "image") this.openImage(Number(target.value));
      else if (target.type === "file") this.read(target.files[0]);
      else if (target.name === "grid") this.ask();
      this.draw();
    };
    form.onkeydown = (event) => {
      if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.undo();
    };
    this.find(".panels").onkeydown = (event) => {
      if (event.key !== " " || !this.pointed || !event.target.matches("canvas")) return;
      event.preventDefault();
      const [down, right] = this.pointed;
      this.cover(right * SIDE, down * SIDE);
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
    const place = ({ offsetX, offsetY }) =>
      [offsetX, offsetY].map((at) => clamp((at * SIDE) / board.clientWidth, 0, SIDE - 0.01));
    board.onpointerdown = (event) => {
      board.setPointerCapture(event.pointerId);
      this.down(...place(event));
    };
    board.onpointermove = (event) => this.drag(...place(event));
    board.onpointerup = board.onpointercancel = () => this.up();
    board.onkeydown = (event) => {
      const step = ARROWS[event.key];
      if (!step && event.key !== " ") return;
      event.preventDefault();
      const [x, y] = this.cursor.map(Math.floor);
      if (step) this.drag(clamp(x + step[1], 0, 31) + 0.5, clamp(y + step[0], 0, 31) + 0.5);
      else if (this.stroke) this.up();
      else this.down(x + 0.5, y + 0.5);
    };
  }

  async read(file) {
    if (!file) return;
    try {
      const pixels = await readImage(file);
      this.openWorld(0);
      this.open(pixels);
    } catch {
      this.say("This is no image that the browser can read: save it as JPEG or PNG.");
    }
    this.find("[type=file]").value = ""; // or the same file could not be chosen again
  }

  // ---- Drawing

  // choices: names of buttons.
  say(text, ...choices) {
    this.find("#verdict").textContent = text;
    for (const button of this.all("#choices button")) {
      button.hidden = !choices.includes(button.name);
    }
  }

  drawBoard() {
    const { pixels } = this.now;
    paint(this.board, SIDE, SIDE, (i) => range(3).map((c) => pixels[c * PIXELS + i]));
    this.find("#cut").setAttribute("points", this.cut.join(" "));
    const [x, y] = this.cursor;
    this.find("#brush").style.cssText = `cx: ${x}px; cy: ${y}px; r: ${this.form.size.value / 2}px`;
  }

  draw() {
    const { classes, history, actual } = this;
    const answered = history.filter(({ answers }) => answers[4]);
    if (!answered.length) return;
    const probabilities = answered.map(({ answers }) => softmax(answers[4].logits));
    const last = probabilities.at(-1);
    const said = argmax(last);
    const outcome = said === actual ? ": right ✓" : `: wrong, it is ${classes[actual]} ✗`;
    this.find("#headline").textContent =
      `It says ${classes[said]}, ${percent(last[said])} sure` + (actual === null ? "" : outcome);
    this.drawBars(last);
    this.drawLine(probabilities);
    const grid = this.form.grid.value;
    const newest = history.findLastIndex(({ answers }) => answers[grid]);
    const [before, now] = [newest - 1, newest].map((i) => history[i]?.answers[grid]);
    if (now) this.drawMaps(now, before ?? now);
    const first = history[0].answers[4];
    if (this.task && first) this.say(...this[this.task](said, argmax(first.logits)));
  }

  // The probabilities of the two classes after each stroke.
  drawLine(probabilities) {
    const steps = Math.max(1, probabilities.length - 1);
    for (const field of ["first", "second"]) {
      const heights = probabilities.map((shares) => 100 - 100 * shares[this.form[field].value]);
      const points = heights.map((height, i) => `${(100 * i) / steps} ${height}`);
      const end = points.length < 2 ? "h100" : "";
      this.find(`#line .${field}`).setAttribute("d", `M${points.join("L")}${end}`);
    }
    const { value } = this.form.first;
    const texts = probabilities.slice(-20).map((shares) => percent(shares[value]));
    this.find("#line").ariaLabel =
      `probability of ${this.classes[value]}, stroke by stroke: ${texts.join(", ")}`;
  }

  // The maps of the two classes, their difference, and what the last stroke took from the first.
  drawMaps(now, before) {
    const { classes, form } = this;
    const [first, second] = [form.first.value, form.second.value];
    const [map, other] = [now.maps[first], now.maps[second]];
    const [bias, otherBias] = [now.biases[first], now.biases[second]];
    this.maps = [map, other, minus(map, other), minus(before.maps[first], map)];
    this.side = now.grid;
    const biases = [bias, otherBias, bias - otherBias, 0];
    const limit = Math.max(...this.maps.flat().map(Math.abs)) || 1;
    this.all(".panels figure").forEach((panel, k) => {
      this.drawPanel(panel, this.maps[k], biases[k], limit);
    });
    this.find("#difference").textContent = `${classes[first]} − ${classes[second]}`;
    this.find("#change").textContent = `${classes[first]}, before the stroke − now`;
    this.drawScale(limit);
    this.drawReading();
  }

  drawPanel(panel, map, bias, limit) {
    const [under, canvas] = panel.querySelectorAll("canvas");
    under.getContext("2d").drawImage(this.board, 0, 0);
    this.drawCells(canvas, map, this.side, limit);
    const texts = map.map((value) => {
      const className = Math.abs(value) > 0.6 * limit ? "strong" : "";
      return make("span", { className, textContent: decimals(value) });
    });
    panel.querySelector(".cells").replaceChildren(...texts);
    panel.querySelector("dt").textContent = `${map.length} cells`;
    const total = sum(map);
    panel.querySelectorAll("dd").forEach((number, i) => {
      number.textContent = decimals([total, bias, total + bias][i]);
    });
  }

  // The values of the cell that is pointed at.
  drawReading() {
    const cell = this.markCell();
    let text = "";
    if (cell && this.maps.length) {
      const [row, column] = cell;
      const values = this.maps.map((map) => decimals(map[row * this.side + column]));
      const [change] = values.splice(3);
      text = `Row ${row + 1}, column ${column + 1}: ${values.join(", ")}; change ${change}`;
    }
    this.find("#reading").textContent = text;
  }

  // ---- Tasks

  start(task) {
    const index = task === "cheat" ? 1 : 0;
    const wanted = task === "one" ? "wrong" : "right";
    const fits = this.worlds[index].rows.flatMap(([actual, said], i) => {
      return task === "cheat" || wanted === (actual === said ? "right" : "wrong") ? [i] : [];
    });
    if (!fits.length) return this.say(`The network gets none of these images ${wanted}.`);
    this.openWorld(index);
    this.openImage(fits[Math.floor(Math.random() * fits.length)]);
    this.task = task;
    this.form.tool.value = task === "one" ? "cell" : "hide";
  }

  // Of each task: what there is to do, or what came of it, and the buttons to go on with.
  // said: the class; at: the class that was said of the original.
  few(said, at) {
    const { classes } = this;
    const change = `${this.hidden()} of ${PIXELS} pixels`;
    if (said !== at) return [`${change} turn ${classes[at]} into ${classes[said]}.`, "compare"];
    const aim = "Change the answer by hiding as few pixels as you can.";
    return [`${aim} So far: ${change}, and it still says ${classes[said]}.`];
  }

  one(said) {
    const { classes, actual, tried } = this;
    if (said !== actual) {
      const mistake = `It says ${classes[said]}, but it is ${classes[actual]}.`;
      const aim = "Which one of the 16 cells must be covered to put it right?";
      return [`${mistake} ${aim} Tries: ${tried.length}.`];
    }
    const last = tried.at(-1);
    const place = `row ${Math.floor(last / 4) + 1}, column ${(last % 4) + 1}`;
    const after = `Right after ${tried.length} ${tried.length === 1 ? "try" : "tries"}`;
    return [`${after}: with ${place} covered it says ${classes[said]}.`];
  }

  cheat() {
    if (!this.tried.length) {
      return [
        "This network has learned from images with a coloured square in each corner, and one of " +
          "them always told the class. Which one? Cover them, paint them, watch; then say.",
        "corner",
      ];
    }
    const [guess, strokes] = this.tried;
    const { corner } = this.world;
    const verdict = `${guess === corner ? "Right" : "No"}, after ${strokes} `;
    const noun = strokes === 1 ? "stroke" : "strokes";
    return [`${verdict}${noun}: it looks at the ${CORNERS[corner]} corner.`];
  }

  guess(corner) {
    this.tried = [corner, this.history.length - 1];
    this.draw();
  }

  // How many pixels differ from the original's.
  hidden() {
    const changed = minus([...this.now.pixels], this.history[0].pixels);
    return range(PIXELS).filter((i) => range(3).some((c) => changed[c * PIXELS + i])).length;
  }

  // How many pixels must be hidden, cell by cell, until the answer changes: in the order of the
  // class's map, of the next image's map of its own class, and at random.
  async compare() {
    const [{ pixels, answers }] = this.history;
    const said = argmax(answers[4].logits);
    const next = (Number(this.form.image.value) + 1) % this.world.rows.length;
    const other = await this.net.answer(this.imageOf(next), this.network);
    const random = range(16).map(() => Math.random());
    const needed = [];
    for (const map of [answers[4].maps[said], other.maps[argmax(other.logits)], random]) {
      needed.push(await this.needed(pixels, said, map));
    }
    if (this.history[0].pixels !== pixels) return;
    this.say(
      `You hid ${this.hidden()} pixels. Whole cells of 64 pixels, the strongest first: in the ` +
        `order of this image's map ${needed[0]}, of another image's map ${needed[1]}, ` +
        `in a random order ${needed[2]}.`
    );
  }

  async needed(pixels, said, map) {
    const order = range(16).sort((a, b) => map[b] - map[a]);
    for (const [i, cell] of order.entries()) {
      pixels = this.without(pixels, cell);
      const { logits } = await this.net.answer(pixels, this.network);
      if (argmax(logits) !== said) return 64 * (i + 1);
    }
    return "all are not enough";
  }

  // An address that leads to what is shown, with the task and its score.
  async link() {
    const { network, task, tried, form } = this;
    const image = form.image.value; // none: the reader's own
    const edit = await pack(this.now.pixels, image ? this.imageOf(image) : this.blank);
    const parts = { network, image, edit, task: task ?? "", tried };
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
    this.say("The page's address leads to this image now: copy it from the browser's address bar.");
  }

  async recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    this.openWorld(parts.get("network") === "1" && this.worlds[1] ? 1 : 0);
    const isOwn = parts.get("image") === "";
    const last = this.world.rows.length - 1;
    this.openImage(clamp(Math.floor(Number(parts.get("image"))) || 0, 0, last));
    const original = isOwn ? this.blank : this.now.pixels;
    const differences = await inflate(parts.get("edit") ?? "").catch(() => []);
    if (differences.length !== 3 * PIXELS) return;
    const pixels = original.map((value, i) => value ^ (differences[i] & 255));
    if (isOwn) return this.open(pixels);
    const task = parts.get("task");
    this.task = ["few", "one", "cheat"].includes(task) ? task : null;
    this.tried = (parts.get("tried") ?? "").split(",").filter(Boolean).map(Number);
    if (differences.some(Boolean)) this.change(pixels);
  }
}

replaceStillFigures("live", live);
