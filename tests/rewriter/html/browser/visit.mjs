// Opens a page from disk in Chromium, uses it as people do, and prints what it saw as JSON.
// node visit.mjs PAGE FOLDER
import {readFileSync} from "node:fs";
import {join} from "node:path";
import {pathToFileURL} from "node:url";
import packed from "@sparticuz/chromium";
import {chromium} from "playwright-core";

const [, , file, folder] = process.argv;
const address = pathToFileURL(file).href;
const browser = await chromium.launch({executablePath: await packed.executablePath(), args: packed.args});
const seen = {requests: [], errors: []};

async function opened(options) {
  const context = await browser.newContext({acceptDownloads: true, ...options});
  const page = await context.newPage();
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("console", (message) => seen.errors.push(message.text()));
  page.on("dialog", (dialog) => { seen.errors.push(dialog.message()); dialog.dismiss(); });
  await page.goto(address);
  return page;
}

const text = (page, selector) => page.locator(selector).first().textContent();
const page = await opened({viewport: {width: 1000, height: 1300}});
seen.title = await page.title();
seen.first = [await text(page, "#prediction"), await text(page, "#base"), await text(page, "#sum")];
seen.before = await page.locator("#before").isDisabled();

// By keyboard alone: to the next sample, then into the map.
await page.keyboard.press("Tab");
seen.focus = [await page.evaluate(() => document.activeElement.id)];
await page.locator("#after").focus();
await page.keyboard.press("Enter");
seen.told = await text(page, "#told");
await page.locator(".cells").focus();
for (const key of ["End", "ArrowDown", "ArrowLeft"]) await page.keyboard.press(key);
seen.readout = await text(page, ".readout[id=readout0]");
seen.cursor = await page.locator(".cursor").isVisible();

// By pointing.
const box = await page.locator(".cells canvas").boundingBox();
await page.mouse.move(box.x + 2, box.y + 2);
seen.hover = await text(page, ".readout[id=readout0]");
seen.pixel = await page.locator(".cells canvas").evaluate((canvas) =>
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]);
seen.size = await page.locator(".cells canvas").evaluate((canvas) => [canvas.width, canvas.height]);

await page.locator("#output").selectOption("1");
seen.output = await text(page, "#told");
seen.waterfall = await page.locator("#waterfall tr").evaluateAll((rows) =>
  rows.map((row) => [...row.children].slice(0, 3).map((cell) => cell.textContent)));
await page.locator("#all summary").click();
await page.waitForFunction(() => document.querySelectorAll("#cells tr").length > 0);
seen.rows = await page.locator("#cells tr").count();

const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#every").click()]);
seen.file = download.suggestedFilename();
await download.saveAs(join(folder, "downloaded.csv"));
seen.csv = readFileSync(join(folder, "downloaded.csv"), "utf8");
// What a screen reader is told.
seen.roles = await page.locator("main").ariaSnapshot();
await page.evaluate(() => scrollTo(0, 0));
await page.mouse.move(0, 0);
await page.screenshot({path: join(folder, "report.png")});

const phone = await opened({viewport: {width: 360, height: 740}, colorScheme: "dark", hasTouch: true, isMobile: true});
await phone.locator(".cells").tap();
seen.tap = await text(phone, ".readout[id=readout0]");
seen.phone = await phone.evaluate(() => ({
  wide: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  small: [...document.querySelectorAll("button, select")].filter((each) => each.offsetHeight < 44).length,
}));
await phone.evaluate(() => scrollTo(0, 0));
await phone.screenshot({path: join(folder, "phone.png")});

const plain = await opened({javaScriptEnabled: false});
seen.plain = [await plain.locator("noscript").isVisible(), await plain.locator("#proof-table tr").count()];
await browser.close();
console.log(JSON.stringify(seen));
