// The explorer. What is chosen stands in a form, and all that is shown is drawn from it.

const SWIPE = 40; // pixels, the shortest one that turns to another image

async function explorer(root, data) {
  const cells = await Promise.all(data.grids.map((grid) => inflate(grid.cells)));
  const sprite = make("img", { src: data.sprite });
  await sprite.decode();
  root.querySelector("slot").remove();
  new Explorer(root, data, cells, sprite).start();
}

class Explorer extends MapPage {
  // root: a shadow root that holds explorer.html.  data: as `explore` in explorer.py writes it.
  // cells: the numbers of each grid.  sprite: the picture that holds all images.
  constructor(root, data, cells, sprite) {
    super(root, data.palettes);
    Object.assign(this, { cells, sprite });
    const { classes, sets, images, grids, size, columns } = data;
    Object.assign(this, { classes, sets, images, grids, size, columns });
    const tile = make("canvas", { width: size, height: size });
    this.reader = tile.getContext("2d", { willReadFrequently: true });
    this.kept = []; // numbers of the images that the filters leave
  }

  start() {
    this.fillForm();
    paint(this.find("#heat canvas"), 256, 1, (i) => tint(this.heatColours, i / 256));
    this.makeBars();
    this.find("#confusion").hidden = this.classes.length > MOST_BARS;
    if (this.classes.length <= MOST_BARS) this.find("table").append(...this.confusion());
    this.listenToForm();
    this.listenToKeys();
    this.listenToMaps();
    this.listenToSwipes();
    this.filter();
    this.recall();
    window.addEventListener("hashchange", () => this.recall());
  }

  // ---- What is made once

  fillForm() {
    const { classes, sets, grids, form } = this;
    const fields = { actual: classes, said: classes, first: classes, second: classes, set: sets };
    for (const [name, texts] of Object.entries(fields)) {
      form[name].append(...options(texts));
    }
    const radios = grids.map(({ side }, value) => {
      const radio = { type: "radio", name: "grid", value, defaultChecked: value === 0 };
      return make("label", {}, make("input", radio), `${side} × ${side} cells`);
    });
    this.find("#grids").append(...radios);
    this.find("#sets").hidden = sets.length < 2;
  }

  // Rows of buttons, each with the number of images of one class that are said to be of another.
  confusion() {
    const { classes, images } = this;
    const counts = classes.map(() => classes.map(() => 0));
    for (const { actual, said } of images) counts[actual][said]++;
    const most = Math.max(...counts.flat());
    const heads = classes.map((name) =>
      make("th", { scope: "col" }, make("span", { textContent: name }))
    );
    const rows = classes.map((name, actual) => {
      const head = make("th", { scope: "row", textContent: name });
      const row = counts[actual].map((count, said) =>
        this.confusionCell(actual, said, count, count / most)
      );
      return make("tr", {}, head, ...row);
    });
    return [make("tr", {}, make("th", { textContent: "is ╲ said" }), ...heads), ...rows];
  }

  // A click leaves only these images; a second click takes that back.
  confusionCell(actual, said, count, share) {
    const { classes, form } = this;
    const name = `is ${classes[actual]}, said ${classes[said]}: ${count} images`;
    const cell = make("button", {
      type: "button",
      textContent: count || "·",
      disabled: !count,
      ariaLabel: name,
      title: name,
    });
    cell.dataset.pair = [actual, said];
    cell.style.setProperty("--share", share);
    cell.onclick = () => {
      const again = cell.ariaPressed === "true";
      form.actual.value = again ? "" : actual;
      form.said.value = again ? "" : said;
      form.outcome.value = "all";
      this.filter();
    };
    return make("td", {}, cell);
  }

  // ---- Which image is shown

  filter() {
    const { form, images } = this;
    const fits = (choice, value) => choice === "" || Number(choice) === value;
    this.kept = range(images.length).filter((i) => {
      const { set, actual, said } = images[i];
      const outcome = actual === said ? "right" : "wrong";
      return (
        ["all", outcome].includes(form.outcome.value) &&
        fits(form.set.value, set) &&
        fits(form.actual.value, actual) &&
        fits(form.said.value, said)
      );
    });
    form.at.max = Math.max(0, this.kept.length - 1);
    this.show(0);
  }

  // Cells in a row of the maps.
  get side() {
    return this.grids[this.form.grid.value].side;
  }

  // Number of the image at the place that the form holds.
  get current() {
    return this.kept[this.form.at.value];
  }

  // Show the image at this place, with the maps of the class that was said, and of the one that it
  // is; or of the runner-up, where these are the same.
  show(place) {
    const { form, classes } = this;
    form.at.value = place;
    if (this.kept.length) {
      const { said, actual, probabilities } = this.images[this.current];
      const others = range(classes.length).filter((c) => c !== said);
      others.sort((a, b) => probabilities[b] - probabilities[a]);
      form.first.value = said;
      form.second.value = said === actual ? others[0] : actual;
    }
    this.draw();
  }

  step(by) {
    const count = this.kept.length;
    if (!count) return;
    this.show((Number(this.form.at.value) + by + count) % count);
    this.remember();
  }

  // An image's place in the page's address.
  address({ set, index }) {
    return `#${encodeURIComponent(this.sets[set])}-${index}`;
  }

  remember() {
    const inFrame = window !== window.top;
    if (!inFrame) history.replaceState(null, "", this.address(this.images[this.current]));
  }

  recall() {
    const number = this.images.findIndex((image) => this.address(image) === location.hash);
    if (number < 0) return;
    this.find("form").reset();
    this.filter();
    this.show(number);
    this.root.host.scrollIntoView();
  }

  // ---- What is drawn

  draw() {
    const { form } = this;
    const image = this.images[this.current];
    this.find("#shown").hidden = !image;
    this.find("#bars").parentNode.hidden = !image;
    const place = image ? Number(form.at.value) + 1 : 0;
    const [at, total] = [place, this.kept.length].map((count) => count.toLocaleString("en"));
    this.find("#position").textContent = `${at} of ${total}`;
    const pair = `${form.actual.value},${form.said.value}`;
    for (const cell of this.all("td button")) cell.ariaPressed = cell.dataset.pair === pair;
    this.drawHeadline(image);
    if (!image) return;
    this.drawPanels();
    this.drawBars(image.probabilities);
  }

  drawHeadline(image) {
    const headline = this.find("#headline");
    if (!image) {
      headline.textContent = "No image here: choose other filters.";
      return;
    }
    const bold = (number) => make("b", { textContent: this.classes[number] });
    const verdict = image.said === image.actual ? ": right ✓" : ": wrong ✗";
    headline.replaceChildren("said ", bold(image.said), ", is ", bold(image.actual), verdict);
  }

  // Red, green, blue and opacity of each pixel of the current image.
  pixels() {
    const { size, columns, current, reader } = this;
    const [left, top] = [(current % columns) * size, Math.floor(current / columns) * size];
    reader.drawImage(this.sprite, left, top, size, size, 0, 0, size, size);
    return reader.getImageData(0, 0, size, size).data;
  }

  // The current image's maps of the two classes, and their difference, in logit units.
  maps() {
    const grid = this.form.grid.value;
    const { side, scales } = this.grids[grid];
    const mapOf = (number) => {
      const start = (this.current * this.classes.length + Number(number)) * side ** 2;
      const whole = this.cells[grid].subarray(start, start + side ** 2);
      return [...whole].map((cell) => cell * scales[this.current]);
    };
    const [first, second] = [mapOf(this.form.first.value), mapOf(this.form.second.value)];
    return [first, second, first.map((cell, i) => cell - second[i])];
  }

  drawPanels() {
    const { form, size, side, mapCanvases } = this;
    const asHeatmaps = form.view.value === "heatmap";
    const pixels = this.pixels();
    const maps = this.maps();
    const limit = Math.max(...maps.flat().map(Math.abs)) || 1;
    paint(this.find("canvas"), size, size, (i) => pixels.subarray(4 * i, 4 * i + 3));
    maps.forEach((map, k) => {
      if (asHeatmaps && k < 2) this.drawOverlay(mapCanvases[k], heatmap(map, side, size), pixels);
      else this.drawCells(mapCanvases[k], map, side, limit);
    });
    this.find("#overlay").hidden = !asHeatmaps;
    this.find("#heat").hidden = !asHeatmaps;
    this.drawScale(limit);
    this.drawReading(maps);
  }

  // A heatmap over the image in grey.
  drawOverlay(canvas, heat, pixels) {
    const strength = Number(this.form.strength.value);
    paint(canvas, this.size, this.size, (i) => {
      const grey = (pixels[4 * i] + pixels[4 * i + 1] + pixels[4 * i + 2]) / 3;
      const colour = [...tint(this.heatColours, heat[i])];
      return colour.map((channel) => strength * channel + (1 - strength) * grey);
    });
  }

  // The evidence in the cell that is pointed at; else the sums of all cells.
  drawReading(maps = this.maps()) {
    const { form, classes, side, mapCanvases } = this;
    const [first, second] = [classes[form.first.value], classes[form.second.value]];
    this.find("#difference").textContent = `${first} − ${second}`;
    const cell = this.markCell();
    const where = cell ? `row ${cell[0] + 1}, column ${cell[1] + 1}` : "sum of the cells";
    const largest = Math.max(...maps.flat().map(Math.abs));
    const digits = largest < 0.5 ? 3 : 2; // as many as 8 bits tell
    const texts = [first, second, "difference"].map((name, k) => {
      const sum = maps[k].reduce((total, value) => total + value, 0);
      const value = cell ? signed(maps[k][cell[0] * side + cell[1]], digits) : signed(sum, 1);
      return `${name} ${value}`;
    });
    this.find("#reading").textContent = `${where}: ${texts.join(", ")} logit units`;
    texts.forEach((text, k) => {
      mapCanvases[k].ariaLabel = `map of ${text} logit units, ${where}`;
    });
  }

  // ---- What the reader does

  listenToForm() {
    this.find("form").addEventListener("input", ({ target }) => {
      if (["outcome", "actual", "said", "set"].includes(target.name)) {
        this.filter();
      } else if (target.name === "at") {
        this.show(Number(target.value));
        this.remember();
      } else {
        this.draw();
      }
    });
    this.find("#previous").onclick = () => this.step(-1);
    this.find("#next").onclick = () => this.step(1);
  }

  // Arrow keys go from image to image where they have no meaning of their own.
  listenToKeys() {
    this.find("form").addEventListener("keydown", (event) => {
      const [, right] = ARROWS[event.key] ?? [0, 0];
      if (!right || event.target.matches("select, input, canvas")) return;
      this.step(right);
      event.preventDefault();
    });
  }

  listenToMaps() {
    for (const canvas of this.mapCanvases) {
      canvas.onpointerdown = (event) => {
        // Or a map would take the focus, and the arrow keys no longer change the image.
        event.preventDefault();
        this.find("form").focus({ preventScroll: true });
      };
    }
  }

  listenToSwipes() {
    const panels = this.find(".panels");
    let start = null;
    const begin = ({ changedTouches }) => {
      start = changedTouches[0];
    };
    const end = ({ changedTouches }) => {
      const across = changedTouches[0].clientX - start.clientX;
      const along = changedTouches[0].clientY - start.clientY;
      const sideways = Math.abs(across) > 2 * Math.abs(along);
      if (sideways && Math.abs(across) > SWIPE) this.step(across < 0 ? 1 : -1);
    };
    panels.addEventListener("touchstart", begin, { passive: true });
    panels.addEventListener("touchend", end);
  }
}

replaceStillFigures("explorer", explorer);
