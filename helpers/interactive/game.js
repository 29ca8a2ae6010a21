// The guessing game: heatmaps one after the other, and in the end all of them with the answers.

const SIZE = 32; // pixels, side of a heatmap

async function game(root, { cells, side, answers, palettes }) {
  const values = await inflate(cells);
  const colours = bytes(palettes[0]);
  const rounds = answers.length;
  const guesses = [];
  const headline = root.querySelector("#headline");
  const maps = root.querySelector(".maps");
  const buttons = root.querySelectorAll("button");
  root.querySelector("slot").remove();

  function map(number, caption) {
    const own = values.subarray(number * side ** 2, (number + 1) * side ** 2);
    const heat = heatmap(own, side, SIZE);
    const canvas = make("canvas", { role: "img", ariaLabel: `heatmap ${number + 1}` });
    paint(canvas, SIZE, SIZE, (i) => tint(colours, heat[i]));
    const title = make("figcaption", { textContent: caption });
    return make("figure", {}, title, make("div", {}, canvas));
  }

  function verdict() {
    const tries = guesses.length;
    if (tries === 0) {
      return "Was the network right or wrong? You see nothing but where its evidence lies.";
    }
    const hits = guesses.filter((guess, i) => guess === answers[i]).length;
    const share = percent(luck(hits, tries));
    const coin = `a coin does as well or better in ${share} of such games.`;
    return `${hits} of ${tries} guessed right; ${coin}`;
  }

  function draw() {
    const tries = guesses.length;
    const over = tries === rounds;
    headline.textContent = verdict();
    maps.className = over ? "maps answers" : "maps";
    const shown = over
      ? range(rounds).map((i) => map(i, answers[i]))
      : [map(tries, `${tries + 1} of ${rounds}`)];
    maps.replaceChildren(...shown);
    for (const button of buttons) button.disabled = over;
  }

  for (const button of buttons) {
    button.onclick = () => {
      guesses.push(button.value);
      draw();
    };
  }
  draw();
}

// How often a coin guesses at least so many right: the upper tail of the binomial distribution.
function luck(hits, tries) {
  const choose = (k) => range(k).reduce((product, i) => (product * (tries - i)) / (i + 1), 1);
  const ways = range(tries - hits + 1).reduce((sum, i) => sum + choose(hits + i), 0);
  return ways / 2 ** tries;
}

replaceStillFigures("game", game);
