// Puts something to play with in the place of a still figure: `alive` in explorer.py writes the figure, the data and this.
// It is built below a shadow root: its styles and names meet neither those of a notebook's front end nor another explorer's.
// What comes from the data, such as a class's name, is set as text and never as markup.
(() => {
  "use strict";

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const range = (length) => Array.from({ length }, (_, i) => i);

  async function inflate(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Int8Array(await new Response(stream).arrayBuffer());
  }

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // Draw columns x rows pixels; colour(i) gives the red, green and blue of pixel i, 0 to 255.
  function paint(canvas, columns, rows, colour) {
    const picture = new ImageData(columns, rows);
    for (let i = 0; i < columns * rows; i++) picture.data.set([...colour(i), 255], 4 * i);
    Object.assign(canvas, { width: columns, height: rows }).getContext("2d").putImageData(picture, 0, 0);
  }

  // A palette is 256 colours in a row; a share from 0 to 1 is looked up as matplotlib does.
  function tint(palette, share) {
    const at = 3 * Math.min(255, Math.floor(256 * share));
    return palette.subarray(at, at + 3);
  }

  // What `gradcam.as_heatmaps` does: negative cells to 0, enlarged bilinearly to size x size, divided by the maximum.
  function heatmap(cells, side, size) {
    const cell = (row, column) => Math.max(0, cells[Math.min(row, side - 1) * side + Math.min(column, side - 1)]);
    const between = (place, value) => value(Math.floor(place)) * (1 - (place % 1)) + value(Math.floor(place) + 1) * (place % 1);
    const places = range(size).map((i) => Math.max(0, ((i + 0.5) * side) / size - 0.5));
    const heat = places.flatMap((y) => places.map((x) => between(y, (row) => between(x, (column) => cell(row, column)))));
    const peak = Math.max(...heat) || 1;
    return heat.map((value) => value / peak);
  }

  // ---- The explorer. What is chosen stands in a form; all that is shown is drawn from it.

  const MOST = 12; // classes up to which all have a bar, and there is a confusion matrix

  async function explorer(root, { classes, sets, images, grids, size, columns, sprite, palettes }) {
    const [find, all] = [(selector) => root.querySelector(selector), (selector) => [...root.querySelectorAll(selector)]];
    const form = find("form").elements;
    const [heatColours, signedColours] = palettes.map(bytes);
    const cells = await Promise.all(grids.map((grid) => inflate(grid.cells)));
    const album = make("img", { src: sprite });
    await album.decode();
    find("slot").remove();
    const reader = make("canvas", { width: size, height: size }).getContext("2d", { willReadFrequently: true });
    const [, ...mapped] = all("figure canvas");
    let kept = [], pointed = null; // the images that the filters leave; the row and column that is pointed at

    for (const [name, options] of Object.entries({ actual: classes, said: classes, first: classes, second: classes, set: sets }))
      form[name].append(...options.map((text, value) => make("option", { value, textContent: text })));
    find("#grids").append(...grids.map(({ side }, value) =>
      make("label", {}, make("input", { type: "radio", name: "grid", value, defaultChecked: !value }), `${side} × ${side} cells`)));
    find("#sets").hidden = sets.length < 2;
    const rgb = (share) => `rgb(${tint(signedColours, share)})`; // strong, but seen on light and on dark
    root.host.style.cssText = `--first: ${rgb(0.87)}; --second: ${rgb(0.15)}`;
    paint(find("#heat canvas"), 256, 1, (i) => tint(heatColours, i / 256));
    paint(find("#evidence canvas"), 256, 1, (i) => tint(signedColours, i / 256));

    const bars = range(Math.min(classes.length, MOST)).map(() => {
      const bar = make("button", { type: "button" }, make("span"), make("span", { className: "track" }, make("i")), make("span"));
      bar.onclick = ({ shiftKey }) => { form[shiftKey ? "second" : "first"].value = bar.value; draw(); };
      return bar;
    });
    find("#bars").append(...bars);

    find("#confusion").hidden = classes.length > MOST;
    if (classes.length <= MOST) find("table").append(...confusion());

    // Rows of buttons, each with the number of images of a class that are said to be of another one; a click leaves only these.
    function confusion() {
      const counts = classes.map(() => classes.map(() => 0));
      for (const { actual, said } of images) counts[actual][said]++;
      const most = Math.max(...counts.flat());
      const number = (actual, said) => {
        const count = counts[actual][said];
        const ariaLabel = `is ${classes[actual]}, said ${classes[said]}: ${count} images`;
        const cell = make("button", { type: "button", textContent: count || "·", disabled: !count, ariaLabel, title: ariaLabel });
        cell.onclick = () => {
          const again = cell.ariaPressed === "true"; // a second click takes the choice back
          [form.actual.value, form.said.value, form.outcome.value] = again ? ["", "", "all"] : [actual, said, "all"];
          filter();
        };
        cell.dataset.pair = [actual, said];
        cell.style.setProperty("--share", count / most);
        return make("td", {}, cell);
      };
      const heads = classes.map((name) => make("th", { scope: "col" }, make("span", { textContent: name })));
      const lines = classes.map((name, actual) => make("tr", {}, make("th", { scope: "row", textContent: name }),
        ...classes.map((_, said) => number(actual, said))));
      return [make("tr", {}, make("th", { textContent: "is ╲ said" }), ...heads), ...lines];
    }

    function filter() {
      const fits = (choice, value) => choice === "" || +choice === value;
      kept = range(images.length).filter((i) => {
        const { set, actual, said } = images[i], outcome = actual === said ? "right" : "wrong";
        return ["all", outcome].includes(form.outcome.value)
          && fits(form.set.value, set) && fits(form.actual.value, actual) && fits(form.said.value, said);
      });
      form.at.max = Math.max(0, kept.length - 1);
      show(0);
    }

    // Show the image at this place: what was said against what it is, or against the runner-up where that is the same.
    function show(at) {
      form.at.value = at;
      if (kept.length) {
        const { said, actual, probabilities } = images[kept[at]];
        const others = range(classes.length).filter((c) => c !== said).sort((a, b) => probabilities[b] - probabilities[a]);
        form.first.value = said;
        form.second.value = said === actual ? others[0] : actual;
      }
      draw();
    }

    const step = (by) => kept.length && (show((+form.at.value + by + kept.length) % kept.length), remember());

    function remember() {
      const { set, index } = images[kept[form.at.value]];
      if (window === window.top) history.replaceState(null, "", `#${encodeURIComponent(sets[set])}-${index}`); // not in a frame
    }

    function recall() {
      const number = images.findIndex(({ set, index }) => location.hash === `#${encodeURIComponent(sets[set])}-${index}`);
      if (number >= 0) {
        find("form").reset();
        filter();
        show(number);
        root.host.scrollIntoView();
      }
    }

    function draw() {
      const number = kept[form.at.value], image = images[number];
      find("#shown").hidden = find("#bars").parentNode.hidden = !image;
      const [place, total] = [image ? +form.at.value + 1 : 0, kept.length].map((count) => count.toLocaleString("en"));
      find("#position").textContent = `${place} of ${total}`;
      for (const cell of all("td button")) cell.ariaPressed = cell.dataset.pair === `${form.actual.value},${form.said.value}`;
      find("#headline").textContent = "No image here: choose other filters.";
      if (!image) return;
      const [said, actual] = [image.said, image.actual].map((c) => make("b", { textContent: classes[c] }));
      find("#headline").replaceChildren("said ", said, ", is ", actual, image.said === image.actual ? ": right ✓" : ": wrong ✗");
      reader.drawImage(album, (number % columns) * size, Math.floor(number / columns) * size, size, size, 0, 0, size, size);
      drawMaps(number, reader.getImageData(0, 0, size, size).data);
      drawBars(image.probabilities);
    }

    // The maps of the two classes and their difference for an image, in logit units.
    function maps(number) {
      const { side, scales } = grids[form.grid.value];
      const [first, second] = [form.first, form.second].map(({ value }) => {
        const start = (number * classes.length + +value) * side ** 2;
        return [...cells[form.grid.value].subarray(start, start + side ** 2)].map((cell) => cell * scales[number]);
      });
      return [first, second, first.map((cell, i) => cell - second[i])];
    }

    function drawMaps(number, pixels) {
      const { side } = grids[form.grid.value], strength = form.strength.value, overlaid = form.view.value === "heatmap";
      const three = maps(number), limit = Math.max(...three.flat().map(Math.abs)) || 1;
      paint(find("canvas"), size, size, (i) => pixels.subarray(4 * i, 4 * i + 3));
      three.forEach((map, k) => {
        if (overlaid && k < 2) {
          const heat = heatmap(map, side, size);
          paint(mapped[k], size, size, (i) => {
            const grey = (pixels[4 * i] + pixels[4 * i + 1] + pixels[4 * i + 2]) / 3;
            return [...tint(heatColours, heat[i])].map((colour) => strength * colour + (1 - strength) * grey);
          });
        } else paint(mapped[k], side, side, (i) => tint(signedColours, (map[i] / limit + 1) / 2));
      });
      find("#overlay").hidden = find("#heat").hidden = !overlaid;
      const [low, high] = all("#evidence span");
      [low.textContent, high.textContent] = [signed(-limit), signed(limit)];
      read(three, side);
    }

    // The evidence in the cell that is pointed at; else the sums of all cells.
    function read(three, side) {
      const names = [...[form.first, form.second].map(({ value }) => classes[value]), "difference"];
      find("#difference").textContent = `${names[0]} − ${names[1]}`;
      const at = pointed && pointed.map((share) => Math.min(side - 1, Math.floor(share * side)));
      const digits = Math.max(...three.flat().map(Math.abs)) < 0.5 ? 3 : 2; // as many as 8 bits tell
      const value = (map) => (at ? signed(map[at[0] * side + at[1]], digits) : signed(map.reduce((sum, cell) => sum + cell, 0), 1));
      const where = at ? `row ${at[0] + 1}, column ${at[1] + 1}` : "sum of the cells";
      const text = (k) => `${names[k]} ${value(three[k])}`;
      find("#reading").textContent = `${where}: ${range(3).map(text).join(", ")} logit units`;
      three.forEach((_, k) => (mapped[k].ariaLabel = `map of ${text(k)} logit units, ${where}`));
      for (const mark of all("figure i")) {
        mark.hidden = !at;
        if (at) mark.style.inset = [at[0], side - 1 - at[1], side - 1 - at[0], at[1]].map((n) => `${(100 * n) / side}%`).join(" ");
      }
    }

    function drawBars(probabilities) {
      const order = range(classes.length);
      if (classes.length > MOST) order.sort((a, b) => probabilities[b] - probabilities[a]);
      bars.forEach((bar, i) => {
        const [name, track, value] = bar.children, c = (bar.value = order[i]);
        name.textContent = classes[c];
        value.textContent = percent(probabilities[c]);
        track.firstChild.style.width = `${100 * probabilities[c]}%`;
        bar.className = ["first", "second"].filter((place) => +form[place].value === +c).join(" ");
      });
    }

    find("form").addEventListener("input", ({ target }) => {
      if (["outcome", "actual", "said", "set"].includes(target.name)) filter();
      else if (target.name === "at") show(+target.value), remember();
      else draw();
    });
    find("#previous").onclick = () => step(-1);
    find("#next").onclick = () => step(1);

    // Arrow keys: on a map from cell to cell, elsewhere from image to image, where they have no meaning of their own.
    find("form").addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      if ((!down && !right) || event.target.matches("select, input")) return;
      if (event.target.matches("canvas")) {
        const { side } = grids[form.grid.value], [row, column] = pointed ?? [0.5, 0.5];
        point([row + down / side, column + right / side]);
      } else if (right) step(right);
      else return;
      event.preventDefault();
    });

    function point(place) {
      pointed = place && place.map((share) => Math.min(0.999, Math.max(0, share)));
      read(maps(kept[form.at.value]), grids[form.grid.value].side);
    }
    for (const canvas of mapped) {
      canvas.onpointermove = ({ offsetX, offsetY }) => point([offsetY / canvas.clientHeight, offsetX / canvas.clientWidth]);
      canvas.onpointerleave = canvas.onblur = () => point(null);
      canvas.onpointerdown = (event) => {
        event.preventDefault(); // or a map would take the focus, and the arrow keys no longer change the image
        find("form").focus({ preventScroll: true });
      };
    }
    let touched = null;
    find(".panels").addEventListener("touchstart", ({ changedTouches: [touch] }) => (touched = touch), { passive: true });
    find(".panels").addEventListener("touchend", ({ changedTouches: [touch] }) => {
      const [across, along] = [touch.clientX - touched.clientX, touch.clientY - touched.clientY];
      if (Math.abs(across) > 40 && Math.abs(across) > 2 * Math.abs(along)) step(across < 0 ? 1 : -1);
    });

    filter();
    recall();
    window.addEventListener("hashchange", recall);
  }

  // ---- The guessing game

  async function game(root, { cells, side, answers, palettes }) {
    const [values, colours, maps] = [await inflate(cells), bytes(palettes[0]), root.querySelector(".maps")];
    const [size, rounds, guesses] = [32, answers.length, []];
    root.querySelector("slot").remove();

    function map(number, caption) {
      const heat = heatmap(values.subarray(number * side ** 2, (number + 1) * side ** 2), side, size);
      const canvas = make("canvas", { role: "img", ariaLabel: `heatmap ${number + 1}` });
      paint(canvas, size, size, (i) => tint(colours, heat[i]));
      return make("figure", {}, make("figcaption", { textContent: caption }), make("div", {}, canvas));
    }

    // How often a coin guesses at least so many right: the upper tail of the binomial distribution.
    function luck(hits, tries) {
      const ways = (k) => range(k).reduce((product, i) => (product * (tries - i)) / (i + 1), 1);
      return range(tries - hits + 1).reduce((sum, i) => sum + ways(hits + i), 0) / 2 ** tries;
    }

    function draw() {
      const tries = guesses.length, hits = guesses.filter((guess, i) => guess === answers[i]).length, over = tries === rounds;
      root.querySelector("#headline").textContent = tries
        ? `${hits} of ${tries} guessed right; a coin does as well or better in ${percent(luck(hits, tries))} of such games.`
        : "Was the network right or wrong? You see nothing but where its evidence lies.";
      maps.className = over ? "maps answers" : "maps";
      maps.replaceChildren(...(over ? range(rounds).map((i) => map(i, answers[i])) : [map(tries, `${tries + 1} of ${rounds}`)]));
      for (const button of root.querySelectorAll("button")) button.disabled = over;
    }

    for (const button of root.querySelectorAll("button")) button.onclick = () => (guesses.push(button.value), draw());
    draw();
  }

  // All that is not yet alive; until it is, the figure is shown in the slot, and where no script runs it stays.
  for (const host of document.querySelectorAll(".alive")) {
    if (host.shadowRoot) continue;
    const { kind, style, markup, ...data } = JSON.parse(host.querySelector("script").textContent);
    const root = host.attachShadow({ mode: "open" });
    root.innerHTML = `<style>${style}</style><slot></slot>${markup}`; // these two come from files, not from the data
    ({ explorer, game })[kind](root, data);
  }
})();
