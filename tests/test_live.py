"""The network in the page: its numbers against PyTorch's, its tools, and what can go wrong."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from conftest import CHROMIUM
from PIL import Image
from test_browser import axe, browser, show  # noqa: F401
from torch import nn

from helpers import shapes
from helpers.data import to_float
from helpers.evaluation import predict
from helpers.gradcam import GradCAM
from helpers.interactive import cheat, embed, live
from helpers.model import dilated, load_pretrained, resnet18, save_weights
from helpers.support.image_files import crop_and_shrink

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"
    ),
]

READY = """() => document.querySelector(".alive").live?.now?.answers[4]"""
SETTLED = """() => { const {net} = document.querySelector(".alive").live;
    return !net.busy && !net.waiting && !net.later.length; }"""
ANSWERS = """async (images) => {
    const { net } = document.querySelector(".alive").live;
    const found = [];
    for (const pixels of images) {
        const two = [];
        const request = {pixels: Uint8Array.from(pixels), network: 0, fine: true};
        await new Promise((done) => {
            net.ask({...request, show: (answer) => two.push(answer) === 2 && done()});
        });
        found.push(two);
    }
    return found;
}"""
PIXELS = """() => [...document.querySelector(".alive").live.now.pixels]"""
HOSTILE = ("<img src=x onerror=alert(1)>", "a'\"&", "<b>bold")


def write(path, network=None, data="shapes10", asked=60):
    """A page of few test images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "ASKED", asked)
        live.write_live(path, data, network)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of the network for Shapes-10."""
    return write(tmp_path_factory.mktemp("pages") / "live.html")


@pytest.fixture
def opened(show, written):  # noqa: F811
    """Open a page and wait for its first answer."""

    def opened(path=written, **options):
        page = show(path, **options)
        page.wait_for_function(READY)
        return page

    return opened


def in_eight_bits(model):
    """A copy whose convolutions have the weights that a page holds."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, nn.Conv2d):
            whole, scales = embed.in_eight_bits(module.weight)
            module.weight.data = whole.float() * scales.view(-1, 1, 1, 1)
    return rounded


def random_net(width):
    """Small random weights and batch norms that have something to do."""
    torch.manual_seed(0)
    model = resnet18(10, width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("name, count", [("shapes10", 30), ("cifar10", 3), (18, 3)])
def test_logits_and_maps_on_both_grids_are_those_of_pytorch(opened, tmp_path, name, count):
    """`name`: of a network that ships, or the width of a random one. It sees drawn images."""
    model = random_net(name) if isinstance(name, int) else load_pretrained(name)
    save_weights(model, tmp_path / "any.pt", shapes.CLASSES)
    model = load_pretrained(tmp_path / "any.pt")  # in half precision
    page = opened(write(tmp_path / "any.html", tmp_path / "any.pt"))
    assert sum(path.stat().st_size for path in tmp_path.glob("any*.[hj]*")) < 16_000_000
    images = torch.from_numpy(shapes.generate(count, 5)["images"]).permute(0, 3, 1, 2)
    found = page.evaluate(ANSWERS, images.flatten(1).tolist())
    tensor = to_float(images)
    every = torch.arange(10).expand(count, -1)
    rounded = in_eight_bits(model)
    with torch.inference_mode():
        exact = model(tensor)
    for number, network in enumerate((rounded, dilated(rounded))):
        maps = torch.tensor([answer[number]["maps"] for answer in found])
        logits = torch.tensor([answer[number]["logits"] for answer in found])
        expected = GradCAM(network).evidence(tensor, every)
        with torch.inference_mode():
            expected_logits = network(tensor)
        unit = expected_logits.abs().max() if isinstance(name, int) else 1
        torch.testing.assert_close(maps.view_as(expected), expected, rtol=0, atol=1e-3 * unit)
        torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-3 * unit)
        if number == 0 and not isinstance(name, int):
            assert (logits - exact).abs().max() < 0.15  # what rounding to 8 bits does


def test_cells_and_bias_are_shown_to_sum_to_the_logit(opened):
    page = opened()
    page.locator("select[name=second]").select_option("8")  # a class, not the grid
    assert all(numbers.is_visible() for numbers in page.locator(".cells").all())
    sums = page.locator(".sum").all_inner_texts()
    cells = page.locator(".cells").all_inner_texts()
    for total, numbers in zip(sums, cells):
        values = [float(number) for number in numbers.replace("−", "-").split()]
        whole, bias, logit = re.findall(r"-?\d+\.\d\d", total.replace("−", "-"))
        assert len(values) == 16
        assert abs(sum(values) - float(whole)) < 0.09  # rounded to hundredths
        assert abs(float(whole) + float(bias) - float(logit)) < 0.011


def at(page, x, y):
    """A pixel of the image on the screen."""
    box = page.locator("#board canvas").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / 32, box["y"] + (y + 0.5) * box["height"] / 32


def drag(page, start, *places):
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    for place in places:
        page.mouse.move(*at(page, *place), steps=4)
    page.mouse.up()


def pixels(page):
    """What is on the board, (3, 32, 32)."""
    return np.array(page.evaluate(PIXELS)).reshape(3, 32, 32)


def choose(page, tool):
    page.locator(f"input[value='{tool}']").check(force=True)


def test_each_tool_does_what_it_says_and_is_undone(opened, written):
    page = opened()
    original = pixels(page)
    mean = np.round(255 * load_pretrained("shapes10").mean.numpy()).reshape(3, 1)

    def undone():
        page.keyboard.press("Control+z")
        return (pixels(page) == original).all()

    drag(page, (5, 6), (20, 6))
    now = pixels(page)
    assert (now[:, 6, 4:22] == mean).all() and (now[:, 15:] == original[:, 15:]).all()
    choose(page, "rub")
    drag(page, (5, 6), (26, 6))
    assert (pixels(page)[:, 6, 4:27] == original[:, 6, 4:27]).all()
    assert page.evaluate("document.querySelector('.alive').live.history.length") == 3
    page.keyboard.press("Control+z")
    assert (pixels(page) == now).all()
    assert undone()

    choose(page, "paint")
    page.locator("input[type=color]").fill("#102030")
    drag(page, (10, 10), (12, 10))
    assert (pixels(page)[:, 10, 10:13] == [[16], [32], [48]]).all()
    assert undone()

    page.touchscreen.tap(*at(page, 20, 20))
    assert (pixels(page)[:, 20, 20] == [16, 32, 48]).all()
    assert undone()

    choose(page, "pick")
    page.mouse.click(*at(page, 3, 4))
    picked = "#" + "".join(f"{value:02x}" for value in original[:, 4, 3])
    assert page.locator("input[type=color]").input_value() == picked

    choose(page, "blur")
    drag(page, (16, 16), (16, 16))
    around = original[:, 13:20, 13:20].mean((1, 2))
    assert np.abs(pixels(page)[:, 16, 16] - around).max() <= 0.51
    assert undone()

    choose(page, "cell")
    page.mouse.click(*at(page, 12, 20))
    now = pixels(page)
    assert (now[:, 16:24, 8:16] == mean[..., None]).all()
    now[:, 16:24, 8:16] = original[:, 16:24, 8:16]
    assert (now == original).all()
    assert undone()
    choose(page, "8")
    page.mouse.click(*at(page, 12, 20))
    now = pixels(page)
    assert (now[:, 20:24, 12:16] == mean[..., None]).all()
    now[:, 20:24, 12:16] = original[:, 20:24, 12:16]
    assert (now == original).all()
    assert undone()

    choose(page, "cut")
    drag(page, (8, 8), (15, 8), (15, 15), (8, 15))
    drag(page, (10, 10), (14, 13))
    now = pixels(page)
    assert (now[:, 11:19, 12:20] == original[:, 8:16, 8:16]).all()
    assert (now[:, 8:11, 8:16] == mean[..., None]).all()
    assert undone()


def test_an_object_is_cut_out_along_its_outline_and_moved(opened):
    """A triangle, by the mouse, and back by the keyboard."""
    page = opened()
    original = pixels(page)
    mean = np.round(255 * load_pretrained("shapes10").mean.numpy()).reshape(3, 1)
    choose(page, "cut")
    drag(page, (6, 6), (20, 6), (6, 20))
    assert (pixels(page) == original).all()
    drag(page, (8, 9), (12, 12))
    y, x = np.indices((32, 32))
    held = (x >= 6) & (y >= 6) & (x + y <= 26)
    expected = original.copy()
    expected[:, held] = mean
    expected[:, y[held] + 3, x[held] + 4] = original[:, held]
    now = pixels(page)
    assert (now == expected).all()
    page.locator("#board canvas").focus()
    for key in (" ", *["ArrowUp"] * 3, *["ArrowLeft"] * 4, " "):
        page.keyboard.press(key)
    now[:, y[held] + 3, x[held] + 4] = mean
    now[:, held] = original[:, held]
    assert (pixels(page) == now).all()


def test_keys_go_from_cell_to_cell_on_both_grids_and_space_hides_one(opened):
    page = opened()
    original = pixels(page)
    maps = "document.querySelector('.alive').live.maps.map((map) => map.slice(-1)[0].toFixed(2))"
    reading = page.locator("#reading")
    for grid in (4, 8):
        choose(page, str(grid))
        page.wait_for_function(f"document.querySelector('.alive').live.side === {grid}")
        page.wait_for_function(SETTLED)
        assert page.locator("#finer").is_visible() == (grid == 8)
        page.locator(".second canvas[tabindex]").focus()
        for key in (*["ArrowRight"] * 9, *["ArrowDown"] * 9):
            page.keyboard.press(key)
        text = reading.inner_text().replace("−", "-")
        assert text.startswith(f"Row {grid}, column {grid}:")
        numbers = re.findall(r"-?\d\.\d\d", text)
        assert [float(number) for number in numbers] == list(map(float, page.evaluate(maps)))
        page.keyboard.press("ArrowLeft")
        assert reading.inner_text().startswith(f"Row {grid}, column {grid - 1}:")
        page.keyboard.press(" ")
        y, x = np.nonzero((pixels(page) != original).any(0))
        size = 32 // grid
        assert (y.min(), y.max(), x.min(), x.max()) == (32 - size, 31, 32 - 2 * size, 31 - size)
        page.keyboard.press("Control+z")
        page.keyboard.press("Tab")
        assert "Row" not in reading.inner_text()


@pytest.mark.parametrize(
    "name, change",
    [
        ("mirror", lambda image: image[:, :, ::-1]),
        ("turn", lambda image: np.rot90(image, -1, (1, 2))),
        ("brighter", lambda image: np.minimum(255, np.round(image * 1.15))),
        ("darker", lambda image: np.round(image / 1.15)),
        ("left", lambda image: np.roll(image, -1, 2)),
        ("right", lambda image: np.roll(image, 1, 2)),
        ("up", lambda image: np.roll(image, -1, 1)),
        ("down", lambda image: np.roll(image, 1, 1)),
    ],
)
def test_buttons_change_the_whole_image(opened, name, change):
    page = opened()
    original = pixels(page)
    page.locator(f"button[name={name}]").click()
    inside = slice(1, -1)  # a shift brings in a row of the mean colour
    difference = np.abs(pixels(page) - change(original))[:, inside, inside]
    assert difference.max() <= (1 if "er" in name else 0)
    page.locator("button[name=reset]").click()
    assert (pixels(page) == original).all()


def test_answers_follow_the_strokes_and_the_change_is_dealt_out_to_cells(opened):
    page = opened()
    state = "document.querySelector('.alive').live"
    for y in (8, 16, 24):
        drag(page, (2, y), (30, y))
        page.wait_for_function(SETTLED)
    answers = page.evaluate(f"{state}.history.map(({{answers}}) => answers[4])")
    images = page.evaluate(f"{state}.history.map(({{pixels}}) => [...pixels])")
    rounded = in_eight_bits(load_pretrained("shapes10"))
    with torch.inference_mode():
        expected = rounded(torch.tensor(images).view(-1, 3, 32, 32) / 255)
    logits = torch.tensor([answer["logits"] for answer in answers])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
    first = int(page.locator("select[name=first]").input_value())
    shown = float(
        re.search(r"\nlogits\n(\S+)$", page.locator(".sum").last.inner_text())[1].replace("−", "-")
    )
    assert abs(shown - float(expected[-2, first] - expected[-1, first])) < 0.006
    line = page.locator("#line .first").get_attribute("d")
    heights = [100 - float(point.split()[1]) for point in line[1:].split("L")]
    shares = 100 * expected.softmax(1)[:, first]
    np.testing.assert_allclose(heights, shares, atol=0.1)


def test_all_is_done_by_keyboard(opened):
    page = opened()
    original = pixels(page)
    page.locator("#board canvas").focus()
    for key in ("ArrowLeft", "ArrowUp", " ", "ArrowRight", "ArrowRight", " ", "ArrowDown"):
        page.keyboard.press(key)
    now = pixels(page)
    assert (now[:, 15, 15:18] != original[:, 15, 15:18]).any()
    assert (now[:, 24:] == original[:, 24:]).all()
    page.keyboard.press("Control+z")
    assert (pixels(page) == original).all()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.querySelector('.alive').shadowRoot.activeElement?.name")
        )
    assert {"undo", "reset", "tool", "size", "mirror", "first", "second", "view", "grid"} <= reached
    assert {"few", "one", "link", "image"} <= reached


@pytest.mark.parametrize("width", [400, 1280])
def test_page_fits_and_axe_finds_nothing(opened, width):
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert axe(page) == ""
    page.emulate_media(color_scheme="dark")
    assert axe(page, "color-contrast") == ""
    sizes = page.eval_on_selector_all(
        ".alive form *", "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 15


@pytest.mark.parametrize("size", [(32, 32), (47, 31), (300, 200), (20, 24)])
def test_an_image_of_ones_own_is_cropped_and_shrunk_as_in_python(opened, tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image.save(tmp_path / "own.png")
    page = opened()
    page.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    expected = crop_and_shrink(image).transpose(2, 0, 1)
    page.wait_for_function(
        "value => document.querySelector('.alive').live.actual === null", arg=None
    )
    assert np.abs(pixels(page) - expected.astype(int)).max() <= 1
    text = tmp_path / "no image.txt"
    text.write_text("no image")
    page.locator("input[type=file]").set_input_files(text)
    page.get_by_text("save it as JPEG or PNG").wait_for()


def test_dropped_and_pasted_images_are_read_and_text_is_left_alone(opened):
    page = opened()
    content = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(content, "PNG")
    give = """async ([bytes, kind]) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], "a.png", {type: "image/png"}));
        const host = document.querySelector(".alive");
        const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data})
            : new DragEvent("drop", {dataTransfer: data, cancelable: true});
        (kind === "paste" ? document : host).dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.locator("button[name=blank]").click()
        page.evaluate(give, [list(content.getvalue()), kind])
        page.wait_for_function("() => document.querySelector('.alive').live.now.pixels[0] === 10")
        assert (pixels(page).reshape(3, -1).T == (10, 20, 30)).all()
    page.locator("button[name=link]").click()
    page.get_by_text("copy it from").wait_for()
    page.reload()
    page.wait_for_function(READY)
    assert (pixels(page).reshape(3, -1).T == (10, 20, 30)).all()
    assert "it is" not in page.locator("#headline").inner_text()  # nobody knows what


def test_a_mistake_is_put_right_with_one_cell_and_the_link_leads_back(opened, tmp_path):
    """By a network that makes mistakes: the one for photographs, asked about outlines."""
    save_weights(load_pretrained("cifar10-narrow-0"), tmp_path / "poor.pt", shapes.CLASSES)
    page = opened(write(tmp_path / "poor.html", tmp_path / "poor.pt"))
    page.locator("button[name=one]").click()
    page.get_by_text("Tries: 0").wait_for()
    choose(page, "cell")
    page.mouse.click(*at(page, 4, 4))
    page.mouse.click(*at(page, 12, 12))
    page.wait_for_function(SETTLED)
    verdict = page.locator("#verdict").inner_text()
    assert "Tries: 2" in verdict or "after 2 tries" in verdict
    before = pixels(page)
    page.locator("button[name=link]").click()
    page.get_by_text("copy it from").wait_for()
    page.reload()
    page.wait_for_function(READY)
    page.wait_for_function(SETTLED)
    assert (pixels(page) == before).all()
    assert page.locator("#verdict").inner_text() == verdict


def test_few_hidden_pixels_are_counted_and_compared(opened):
    page = opened()
    rows = "document.querySelector('.alive').live.world.rows"
    page.evaluate(f"{rows}.forEach((row) => row.fill(row[0]))")  # as if it made no mistake
    page.locator("button[name=one]").click()
    page.get_by_text("gets none of these images wrong").wait_for()
    page.evaluate("Math.random = () => 0")  # of the images that fit, the first
    page.locator("button[name=few]").click()
    page.get_by_text("So far: 0 of 1024 pixels").wait_for()
    page.locator("input[name=size]").fill("12")
    for y in range(0, 33, 8):
        drag(page, (0, y), (31, y))
    page.wait_for_function(SETTLED)
    page.locator("button[name=compare]").click()
    verdict = page.locator("#verdict", has_text="in a random order")
    verdict.wait_for()
    own = re.search(r"image's map (\d+)", verdict.inner_text())
    assert int(own[1]) % 64 == 0


@pytest.mark.parametrize(
    "hash", ["image=x&edit=%%%", "image=-4&network=9", "edit=AAAA&task=one", "a"]
)
def test_a_broken_link_shows_an_image_all_the_same(opened, hash):
    page = opened(anchor=f"#{hash}")
    assert page.locator("#headline").inner_text().startswith("It says")


def write_folder(folder, names):
    for part in ("train", "test"):
        drawn = shapes.generate(4 * len(names), 1)["images"]
        for i, pixels in enumerate(drawn):
            path = folder / part / names[i % len(names)] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.mark.parametrize("count", [3, 100])
def test_a_folder_of_any_classes_whose_names_are_text(opened, tmp_path, count):
    names = [*HOSTILE, *(f"class {i}" for i in range(3, count))]
    folder = write_folder(tmp_path / "mine", names)
    model = resnet18(count, 16).eval()
    save_weights(model, tmp_path / "mine.pt", sorted(names))
    page = opened(write(tmp_path / "mine.html", tmp_path / "mine.pt", folder))
    options = page.locator("select[name=first] option").all_inner_texts()
    assert sorted(options) == sorted(names)
    assert page.locator("#bars button").count() == min(count, 12)
    assert page.locator("img[src=x], #desk b").count() == 0


@pytest.mark.parametrize("damage", ["missing", "cut off", "another byte", "another page's"])
def test_a_damaged_file_of_weights_is_said_to_be_damaged(browser, written, tmp_path, damage):  # noqa: F811
    path, script = (tmp_path / name for name in ("live.html", "live-network.js"))
    path.write_text(written.read_text("utf-8"), encoding="utf-8")
    content = written.with_name("live-network.js").read_text("utf-8")
    middle = len(content) // 2
    changed = "B" if content[middle] == "A" else "A"
    contents = {
        "cut off": content[:middle],
        "another byte": content[:middle] + changed + content[middle + 1 :],
        "another page's": re.sub(r'"id": \d+', '"id": 1', content),
    }
    if damage in contents:
        script.write_text(contents[damage], encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    notice = page.get_by_text("live-network.js is missing or damaged")
    notice.wait_for()
    assert live.COMMAND in notice.inner_text()
    assert not page.locator("#board").is_visible()
    page.close()


def test_strokes_do_not_fill_the_memory(opened):
    page = opened()
    stroke = """async ([count, waits]) => {
        const { live } = document.querySelector(".alive");
        for (let i = 0; i < count; i++) {
            live.down(i % 32, 10);
            for (let x = 0; x < 8; x++) live.drag((i + x) % 32, (3 * i) % 32);
            live.up();
            while (waits && live.net.busy) await new Promise((done) => setTimeout(done, 1));
        }
    }"""
    session = page.context.new_cdp_session(page)

    def used():
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"]

    page.evaluate(stroke, [210, False])  # so many can be undone
    page.wait_for_function(SETTLED)
    before = used()
    page.evaluate(stroke, [80, True])
    assert used() - before < 1_000_000
    assert page.evaluate("document.querySelector('.alive').live.history.length") <= 202


def test_of_the_strokes_that_come_while_the_network_computes_only_the_last_is_answered(opened):
    ask = """async () => {
        const { net } = document.querySelector(".alive").live;
        const [before, shown] = [net.job, []];
        for (let i = 0; i < 10; i++) {
            const pixels = new Uint8Array(3072).fill(20 * i);
            net.ask({ pixels, network: 0, fine: i < 9, show: () => shown.push(i) });
        }
        while (net.busy || net.waiting) await new Promise((done) => setTimeout(done, 5));
        return [net.job - before, shown];
    }"""
    page = opened()
    page.wait_for_function(SETTLED)
    assert page.evaluate(ask) == [2, [0, 9]]


def test_the_cheat_looks_at_one_corner_and_nowhere_else():
    images = cheat.tagged(200, seed=4)
    tags = np.random.default_rng(4).integers(10, size=(200, 4))
    hues = shapes.add_tag(np.zeros((10, 32, 32, 3), np.uint8), np.arange(10))[0][:, 0, 0]
    for corner, place in enumerate([(2, 2), (2, -3), (-3, 2), (-3, -3)]):
        assert (images.images[:, *place] == hues[tags[:, corner]]).all()
    said = predict(load_pretrained(cheat.NAME), images).predicted
    shares = (said[:, None] == tags).mean(0)
    assert shares[cheat.CORNER] > 0.98
    assert np.delete(shares, cheat.CORNER).max() < 0.2 and (said == images.labels).mean() < 0.2


def test_the_cheat_is_found_and_the_link_remembers_it(opened):
    page = opened()
    page.locator("button[name=cheat]").click()
    page.wait_for_function(SETTLED)
    headline = page.locator("#headline").inner_text()
    for place in [(2, 2), (29, 2), (29, 29)]:
        page.mouse.click(*at(page, *place))
        page.wait_for_function(SETTLED)
        assert page.locator("#headline").inner_text().split(",")[0] == headline.split(",")[0]
    page.get_by_text("lower left").click()
    verdict = "Right, after 3 strokes: it looks at the lower left corner."
    page.get_by_text(verdict).wait_for()
    page.locator("button[name=link]").click()
    page.get_by_text("copy it from").wait_for()
    page.reload()
    page.get_by_text(verdict).wait_for()
    page.locator("button[name=few]").click()  # leads back to the other network
    page.get_by_text("So far: 0 of 1024").wait_for()


def test_the_page_is_small(written):
    assert sum(path.stat().st_size for path in written.parent.glob("live*")) < 2_500_000
