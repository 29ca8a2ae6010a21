// The network of live.js, in workers. They share out the output channels of each convolution and
// send each other what they have computed; a job is dropped as soon as a newer one comes.

// What each worker runs; `scope` is the worker.
function networkWorker(scope) {
  const SIZE = 32; // pixels, side of an image
  const ROWS = 4; // output channels that the kernel computes at once
  const PLACES = 8; // and places of each
  const STALE = Symbol("a newer job has come");
  const received = new Map(); // {step of a job: what other workers have sent}
  let ports, networks;
  let [newest, wake] = [0, () => {}];
  const count = (length) => [...Array(length).keys()];

  // A function in WebAssembly: for four output channels and eight places, the sum over all input
  // channels and taps of weight times input, in vectors of four numbers. Its arguments are
  // addresses and distances in bytes, and two counts. `fused`: multiply and add in one step.
  function assemble(fused) {
    const number = (value) =>
      value < 128 ? [value] : [(value & 127) | 128, ...number(value >> 7)];
    const list = (...items) => [...number(items.length), ...items.flat()];
    const section = (id, content) => [id, ...number(content.length), ...content];
    const text = (letters) => list(...[...letters].map((letter) => letter.charCodeAt(0)));
    const vector = (code, ...rest) => [0xfd, ...number(code), ...rest];
    const get = (local) => [0x20, local];
    const set = (local) => [0x21, local];
    const constant = (value) => [0x41, value];
    const [INT, VECTOR, VOID] = [0x7f, 0x7b, 0x40];
    const [ADD, SUBTRACT, SHIFT, LESS] = [0x6a, 0x6b, 0x74, 0x49];
    const [LOOP, END, REPEAT_IF, INT_LOAD, TEE] = [0x03, 0x0b, [0x0d, 0], [0x28, 2, 0], 0x22];
    const [LOAD, SPLAT, STORE, MULTIPLY, PLUS, FUSED] = [0, 9, 11, 0xe6, 0xe4, 0x105];
    // The arguments, then other locals.
    const [weights, input, table, taps, channels, plane, second, output, outputPlane] = count(9);
    const [tap, place, left, right, weight, sums] = [9, 10, 11, 12, 13, 14];
    const increase = (local, amount) => [...get(local), ...amount, ADD, ...set(local)];
    const multiplyAdd = (sum, value) => [
      ...[...get(weight), ...get(value), ...(fused ? [] : vector(MULTIPLY)), ...get(sum)],
      ...[...vector(fused ? FUSED : PLUS), ...set(sum)],
    ];
    const oneTap = count(ROWS).flatMap((row) => [
      ...[...get(weights), ...vector(SPLAT, 2, 4 * row), ...set(weight)],
      ...[...multiplyAdd(sums + 2 * row, left), ...multiplyAdd(sums + 2 * row + 1, right)],
    ]);
    const stores = count(ROWS).flatMap((row) => [
      ...[...get(output), ...get(sums + 2 * row), ...vector(STORE, 2, 0)],
      ...[...get(output), ...get(sums + 2 * row + 1), ...vector(STORE, 2, 16)],
      ...increase(output, get(outputPlane)),
    ]);
    const body = [
      ...list([2, INT], [3 + 2 * ROWS, VECTOR]),
      ...[LOOP, VOID, ...get(table), ...set(tap)], // for each channel
      ...[LOOP, VOID, ...get(input), ...get(tap), ...INT_LOAD, ADD, TEE, place], // for each tap
      ...[...vector(LOAD, 2, 0), ...set(left)],
      ...[...get(place), ...get(second), ADD, ...vector(LOAD, 2, 0), ...set(right)],
      ...[...oneTap, ...increase(weights, constant(4 * ROWS))],
      ...[...get(tap), ...constant(4), ADD, TEE, tap],
      ...[...get(table), ...get(taps), ...constant(2), SHIFT, ADD, LESS, ...REPEAT_IF, END],
      ...increase(input, get(plane)),
      ...[...get(channels), ...constant(1), SUBTRACT, TEE, channels, ...REPEAT_IF, END],
      ...[...stores, END],
    ];
    return Uint8Array.from([
      ...[0, ...text("asm").slice(1), 1, 0, 0, 0],
      ...section(1, list([0x60, ...list(...Array(9).fill(INT)), 0])),
      ...section(2, list([...text("page"), ...text("memory"), 2, 0, 1])),
      ...section(3, list(0)),
      ...section(7, list([...text("kernel"), 0, 0])),
      ...section(10, list([...number(body.length), ...body])),
    ]);
  }

  function makeKernel(size) {
    const code = [true, false].map(assemble).find((bytes) => WebAssembly.validate(bytes));
    const memory = new WebAssembly.Memory({ initial: Math.ceil(size / 65536) });
    const imports = { page: { memory } };
    const { kernel } = new WebAssembly.Instance(new WebAssembly.Module(code), imports).exports;
    return { kernel, memory: memory.buffer };
  }

  // Send this worker's part of what a step computes to the others, and wait for theirs. `target` is
  // where it lies; that is another place in each worker.
  async function share(key, floats, target, start, end) {
    const values = floats.slice(target + start, target + end);
    for (const port of ports) port.postMessage({ key, start, values });
    while ((received.get(key)?.length ?? 0) < ports.length) {
      await new Promise((resolve) => (wake = resolve));
      if (parseInt(key) !== newest) throw STALE;
    }
    for (const part of received.get(key) ?? []) floats.set(part.values, target + part.start);
    received.delete(key);
  }

  // A network of which this worker computes one part. `content` is what `packed` in live.py wrote.
  // Returns a function that answers an image.
  function build({ content, numbers, width, classes }, part, parts) {
    const floating = new Float32Array(content, 0, numbers);
    const whole = new Int8Array(content, 4 * numbers);
    let [taken, takenWhole, used] = [0, 0, 0]; // numbers of each, and in memory
    const take = (length) => floating.subarray(taken, (taken += length));
    const reserve = (length) => (used += length) - length;
    const kept = []; // [place in memory, weights]

    const norm = (channels) => [take(channels), take(channels)];
    const conv = (inputs, outputs, taps) => {
      const length = inputs * taps;
      const scales = take(outputs);
      const rows = Math.ceil(outputs / ROWS);
      const [first, last] = [part, part + 1].map((i) => ROWS * Math.floor((rows * i) / parts));
      const weights = new Float32Array((last - first) * length);
      for (let o = first; o < Math.min(last, outputs); o++) {
        const start = (o - (o % ROWS) - first) * length + (o % ROWS);
        const row = takenWhole + o * length;
        for (let i = 0; i < length; i++) weights[start + ROWS * i] = scales[o] * whole[row + i];
      }
      takenWhole += outputs * length;
      const place = reserve(weights.length);
      kept.push([place, weights]);
      return { inputs, outputs, taps, first, last, weights: place };
    };
    const input = norm(3);
    const stem = conv(3, width, 9);
    const blocks = count(8).map((number) => {
      const outputs = width << (number >> 1);
      const isNarrower = number > 0 && number % 2 === 0;
      const inputs = isNarrower ? outputs / 2 : outputs;
      return {
        norm1: norm(inputs),
        conv1: conv(inputs, outputs, 9), // the scale of the norm after it is a part of its weights
        norm2: [Array(outputs).fill(1), take(outputs)],
        conv2: conv(outputs, outputs, 9),
        shortcut: isNarrower ? conv(inputs, outputs, 1) : null,
      };
    });
    const fc = take(classes * 8 * width);
    const biases = take(classes);

    const buffer = () => reserve(SIZE * SIZE * (width + ROWS));
    let [x, sum] = [buffer(), buffer()];
    const [y, side, saved] = [buffer(), buffer(), buffer()];
    const [planes, table] = [reserve(34 * 34 * width), reserve(9)];
    const { kernel, memory } = makeKernel(4 * used);
    const [floats, offsets] = [new Float32Array(memory), new Int32Array(memory, 4 * table, 9)];
    for (const [place, weights] of kept) floats.set(weights, place);

    // Batch norm and ReLU, into planes that the kernel reads, with a margin of zeros. For a stride
    // of 2 a plane holds the even and the odd rows and columns apart, as four small ones.
    function prepare(source, grid, [scales, shifts], lowest, stride, margin) {
      const wide = Math.ceil((grid + 2 * margin) / stride);
      const place = (row, column) => {
        const small = (row % stride) * stride + (column % stride);
        return (small * wide + Math.floor(row / stride)) * wide + Math.floor(column / stride);
      };
      const area = grid * grid;
      const plane = (wide * stride) ** 2;
      const places = Int32Array.from(count(area), (i) => {
        return place(Math.floor(i / grid) + margin, (i % grid) + margin);
      });
      floats.fill(0, planes, planes + scales.length * plane);
      for (let c = 0; c < scales.length; c++) {
        const [scale, shift] = [scales[c], shifts[c]];
        const [from, to] = [source + c * area, planes + c * plane];
        for (let i = 0; i < area; i++) {
          floats[to + places[i]] = Math.max(lowest, floats[from + i] * scale + shift);
        }
      }
      const taps = count(9).map((t) => 4 * place(Math.floor(t / 3) * margin, (t % 3) * margin));
      return { wide, plane, taps };
    }

    // This worker's channels of a convolution of what was prepared.
    function convolve(conv, { wide, plane, taps: all }, grid, target) {
      const { inputs, taps, first, last, weights } = conv;
      const area = grid * grid;
      const second = grid > 4 ? 16 : 4 * wide; // from four places to the next four
      offsets.set(taps === 9 ? all : [all[4]]);
      for (let o = first; o < last; o += ROWS) {
        const weight = 4 * (weights + (o - first) * inputs * taps);
        for (let i = 0; i < area; i += PLACES) {
          const start = 4 * (planes + Math.floor(i / grid) * wide + (i % grid));
          const output = 4 * (target + o * area + i);
          kernel(weight, start, 4 * table, taps, inputs, 4 * plane, second, output, 4 * area);
        }
      }
    }

    // A block of the network, from x to x. reaches: the distance of the taps of its convolutions.
    async function run(key, number, grid, stride, reaches) {
      const { norm1, conv1, norm2, conv2, shortcut } = blocks[number];
      const out = grid / stride;
      const [first, last] = [conv1.first, conv1.last].map((channel) => channel * out * out);
      const prepared = prepare(x, grid, norm1, 0, stride, reaches[0]);
      convolve(conv1, prepared, out, y);
      if (shortcut) convolve(shortcut, prepared, out, side);
      await share(`${key} ${number}`, floats, y, first, last);
      convolve(conv2, prepare(y, out, norm2, 0, 1, reaches[1]), out, sum);
      const added = shortcut ? side : x;
      for (let i = first; i < last; i++) floats[sum + i] += floats[added + i];
      await share(`${key} ${number} sum`, floats, sum, first, last);
      [x, sum] = [sum, x];
    }

    // The maps of all classes; the cells of each sum to the logit, less the bias.
    function explain(grid) {
      const area = grid * grid;
      const maps = count(classes).map((c) => {
        const map = Array(area).fill(0);
        for (let k = 0; k < 8 * width; k++) {
          const weight = fc[c * 8 * width + k] / area;
          for (let i = 0; i < area; i++) map[i] += weight * floats[x + k * area + i];
        }
        return map;
      });
      const logits = maps.map((map, c) => map.reduce((total, cell) => total + cell, biases[c]));
      return { grid, maps, logits, biases };
    }

    return async ({ job, pixels, fine }) => {
      for (let i = 0; i < 3 * SIZE * SIZE; i++) floats[y + i] = pixels[i] / 255;
      convolve(stem, prepare(y, SIZE, input, -Infinity, 1, 1), SIZE, x);
      const [first, last] = [stem.first, stem.last].map((channel) => channel * SIZE * SIZE);
      await share(`${job} stem`, floats, x, first, last);
      const [grids, strides] = [[32, 32, 32, 16, 16, 8], [1, 1, 2, 1, 2, 1]];
      for (const i of count(6)) await run(job, i, grids[i], strides[i], [1, 1]);
      const length = 4 * width * 64;
      floats.copyWithin(saved, x, x + length);
      await run(job, 6, 8, 2, [1, 1]);
      await run(job, 7, 4, 1, [1, 1]);
      scope.postMessage({ job, ...explain(4) });
      if (!fine) return;
      floats.copyWithin(x, saved, saved + length);
      await run(`${job} fine`, 6, 8, 1, [1, 2]);
      await run(`${job} fine`, 7, 8, 1, [2, 2]);
      scope.postMessage({ job, ...explain(8) });
    };
  }

  function start({ networks: all, part, ports: others }) {
    ports = others;
    networks = all.map((network) => build(network, part, ports.length + 1));
    for (const port of ports) {
      port.onmessage = ({ data }) => {
        received.set(data.key, [...(received.get(data.key) ?? []), data]);
        wake();
      };
    }
    scope.postMessage({ ready: true });
  }

  scope.onmessage = ({ data }) => {
    if (data.networks) return start(data);
    newest = data.job;
    for (const key of received.keys()) if (parseInt(key) < newest) received.delete(key);
    wake();
    networks[data.network](data).catch((reason) => {
      if (reason !== STALE) throw reason;
    });
  };
}
