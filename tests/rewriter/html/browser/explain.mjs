// Opens the page of examples/browser in Chromium, uses it as people do, and prints what it saw as JSON.
// node explain.mjs ADDRESS FOLDER
import {readFileSync} from "node:fs";
import {join} from "node:path";
import packed from "@sparticuz/chromium";
import {chromium} from "playwright-core";

const [, , address, folder] = process.argv;
const browser = await chromium.launch({executablePath: await packed.executablePath(), args: packed.args});
const seen = {requests: [], errors: [], csv: {}};

async function opened(options) {
  const context = await browser.newContext({acceptDownloads: true, ...options});
  const page = await context.newPage();
  context.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("console", (message) => seen.errors.push(message.text()));
  await page.goto(address);
  await settled(page);
  return page;
}

/** Until what is shown is explained. */
function settled(page) {
  return page.waitForFunction(() => !document.getElementById("page").hidden &&
    document.getElementById("why").getAttribute("aria-busy") === "false");
}

const text = (page, selector) => page.locator(selector).textContent();
const shown = async (page) => ({
  outputs: await page.locator("#activities .part").allTextContents(),
  widths: await page.locator(".fill").evaluateAll((all) => all.map((each) => each.style.width)),
  checked: await page.locator("#activities input").evaluateAll((all) => all.findIndex((each) => each.checked)),
  sums: await page.locator(".name span:last-child").allTextContents(),
  base: await text(page, "#base"), sum: await text(page, "#sum"), total: await text(page, "#total"),
  high: await text(page, "#high"), explained: await text(page, "#explained"),
});
const coloursOf = (page) => page.locator(".plot canvas").evaluateAll((all) => all.map((canvas) =>
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, 1).data]));
const curves = (page) => page.locator(".plot .series").evaluateAll((all) => all.map((each) => each.getAttribute("points")));

async function numbers(page, name) {
  await settled(page);
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#download").click()]);
  await download.saveAs(join(folder, "numbers.csv"));
  seen.csv[name] = readFileSync(join(folder, "numbers.csv"), "utf8");
}

async function press(page, ...keys) {
  for (const key of keys) await page.keyboard.press(key);
}

const page = await opened({viewport: {width: 1100, height: 980}});
await numbers(page, "first");
seen.first = await shown(page);

await page.locator("#recording").selectOption("10");
await numbers(page, "recorded");
seen.recorded = await shown(page);
seen.colours = await coloursOf(page);
seen.roles = await page.locator("main").ariaSnapshot();
await page.waitForTimeout(400);
seen.told = [await text(page, "#told")];

// Another output, by keyboard.
await page.locator("#activities input").nth(seen.recorded.checked).focus();
await press(page, "ArrowUp");
seen.other = await shown(page);
await press(page, "ArrowDown");

// Sliders, by keyboard: one channel stronger, all later.
await page.locator("#channel").selectOption({label: "gyroscope x"});
await page.locator("#strength").focus();
await press(page, ...Array(10).fill("ArrowRight"));
await page.locator("#channel").selectOption({label: "all channels"});
await page.locator("#shift").focus();
await press(page, ...Array(3).fill("ArrowRight"));
seen.sliders = [await text(page, "#shift-told"), await page.locator("#shift").getAttribute("aria-valuetext")];
await numbers(page, "slid");
await page.locator("#reset").click();
await numbers(page, "reset");
seen.disabled = await page.locator("#reset").isDisabled();

// Drawn with a mouse, on the accelerometer's y: a line from up to down, in one quick move.
const box = await page.locator(".plot").nth(1).boundingBox();
await page.mouse.move(box.x + .205 * box.width, box.y + .2 * box.height);
await page.mouse.down();
await page.mouse.move(box.x + .605 * box.width, box.y + .8 * box.height);
await page.mouse.up();
await numbers(page, "drawn");
await page.mouse.move(box.x + .205 * box.width, box.y + .5 * box.height);
seen.readout = await text(page, "#readout");

// Drawn by keyboard, on the gyroscope's z.
const last = page.locator(".plot").nth(5);
await last.focus();
await press(page, "Home", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "End", "PageDown");
await settled(page);
seen.keys = [await last.getAttribute("aria-valuetext"), await last.getAttribute("aria-valuenow")];
await numbers(page, "keys");
await last.focus();
await press(page, "Delete");
await numbers(page, "put back");

// How long it takes, one at a time, once it is warm.
const times = [];
await page.locator("#strength").focus();
for (let k = 0; k < 20; k++) {
  await press(page, k % 2 ? "ArrowLeft" : "ArrowRight");
  await settled(page);
  times.push(Number((await text(page, "#error")).match(/in (\d+) ms/)[1]));
}
seen.milliseconds = times.sort((a, b) => a - b)[10];

// The picture of the documentation: walking, and one swing of the arm.
await page.locator("#recording").selectOption("9");
const top = await page.locator(".plot").first().boundingBox();
for (const [k, part] of [.17, .42, .75, .83, .67, .33, 0].entries()) {
  await page.mouse.move(top.x + (6.5 + k) / 50 * top.width, top.y + (1 - part) / 2 * top.height);
  if (k === 0) await page.mouse.down();
}
await page.mouse.up();
await settled(page);
seen.swing = await shown(page);
await page.locator("#activities input").first().click();
await page.mouse.move(top.x + 9.5 / 50 * top.width, top.y + top.height / 2);
await page.screenshot({path: join(folder, "browser.png")});

const phone = await opened({viewport: {width: 360, height: 740}, colorScheme: "dark", hasTouch: true, isMobile: true});
const client = await phone.context().newCDPSession(phone);
/** Until nothing scrolls any more. */
async function still() {
  for (let before = -1, now = 0; now !== before;) {
    before = now;
    await phone.waitForTimeout(150);
    now = await phone.evaluate(() => scrollY);
  }
}

async function finger(points) {
  const touch = (type, touchPoints) => client.send("Input.dispatchTouchEvent", {type, touchPoints});
  await touch("touchStart", [points[0]]);
  for (const point of points.slice(1)) await touch("touchMove", [point]);
  await touch("touchEnd", []);
  await settled(phone);
}
await phone.evaluate(() => scrollTo(0, document.querySelectorAll(".plot")[1].getBoundingClientRect().top - 300));
await still();
const small = await phone.locator(".plot").nth(1).boundingBox(), middle = small.y + small.height / 2;
const along = (x, y) => ({x: small.x + x * small.width, y: middle + y});
const before = await curves(phone), from = await phone.evaluate(() => scrollY);
await finger([along(.5, 0), along(.5, -20), along(.5, -40), along(.5, -60), along(.5, -80)]);
await still();
const scrolled = await phone.evaluate(() => scrollY) - from, kept = await curves(phone);
await phone.evaluate((y) => scrollTo(0, y), from);
await still();
await finger([along(.3, 0), along(.35, -5), along(.4, -15), along(.45, 20), along(.5, 25)]);
const swiped = await curves(phone);
seen.phone = await phone.evaluate(() => ({
  wide: document.documentElement.scrollWidth,
  cut: [...document.querySelectorAll("section")].filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.id),
  background: getComputedStyle(document.body).backgroundColor,
  small: [...document.querySelectorAll("button, select, #activities label")].filter((each) => each.offsetHeight < 44).length,
  prediction: document.getElementById("prediction").getBoundingClientRect().top,
}));
Object.assign(seen.phone, {scrolled, kept: kept.join() === before.join(),
  swiped: swiped.map((each, c) => each !== before[c])});
await phone.screenshot({path: join(folder, "browser_phone.png")});

// What it says where something is not there.
seen.failed = {};
async function message(name, to, options, prepare) {
  const broken = await (await browser.newContext(options)).newPage();
  if (prepare) await broken.addInitScript(prepare);
  await broken.goto(to);
  await broken.locator("#message.failed").waitFor();
  seen.failed[name] = [await text(broken, "#message"), await broken.locator("#page").isVisible()];
}
for (const name of ["data.json", "explainer.onnx", "worker.mjs", "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"])
  await message(name, `${address}without/${name}/`);
await message("WebAssembly", address, {}, () => { delete globalThis.WebAssembly; });
const plain = await (await browser.newContext({javaScriptEnabled: false})).newPage();
await plain.goto(address);
seen.plain = await plain.locator("noscript").isVisible();
await browser.close();
console.log(JSON.stringify(seen));
