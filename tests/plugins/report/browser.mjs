// Opens a report in Chromium as a person would, from disk and without a network, and prints what
// was seen as JSON. Arguments: folder of node_modules, Chromium, pages as JSON, folder for pictures.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, executablePath, pagesText, shots] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${modules}/`));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const pages = JSON.parse(pagesText);
const seen = {};
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});

async function open(file, options = {}) {
  const { blocked = [], ...rest } = options;
  const context = await browser.newContext({ offline: true, viewport: { width: 1440, height: 900 }, ...rest });
  const page = await context.newPage();
  const said = [];
  page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => said.push(`error: ${error.message}`));
  page.on("request", (request) => {
    if (!/^(file|data|blob):/.test(request.url())) blocked.push(request.url());
  });
  const devtools = await context.newCDPSession(page);
  await devtools.send("Performance.enable", { timeDomain: "threadTicks" });
  page.busy = async () => {
    const { metrics } = await devtools.send("Performance.getMetrics");
    return Math.round(1000 * metrics.find((m) => m.name === "TaskDuration").value);
  };
  await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
  return { page, said, blocked, close: () => context.close() };
}

async function scrolled(page) {
  await page.evaluate(async () => {
    for (let y = 0; y < document.body.scrollHeight; y += 600) {
      scrollTo({ top: y, behavior: "instant" });
      // Two frames: what comes into view is told in one and drawn in the next.
      for (let i = 0; i < 2; i++) await new Promise((done) => requestAnimationFrame(done));
    }
    scrollTo({ top: 0, behavior: "instant" });
  });
}

const sources = (page) =>
  page.$$eval(".now .open img", (images) => images.map((image) => image.src));

async function working() {
  const { page, said, blocked, close } = await open(pages.run);
  const found = {};
  await scrolled(page);
  found.broken = await page.$$eval("img", (images) => images.filter((i) => !i.naturalWidth).length);
  // The slider moves every row's picture.
  await page.evaluate(() => document.querySelector("#step").scrollIntoView());
  const before = await sources(page);
  await page.locator("#step").focus();
  await page.keyboard.press("ArrowLeft");
  const after = await sources(page);
  found.moved = before.map((src, i) => src !== after[i]);
  found.step = await page.locator("output.step").innerText();
  await page.locator("body").click({ position: { x: 4, y: 4 } });
  await page.keyboard.press("ArrowRight");
  found.back = JSON.stringify(await sources(page)) === JSON.stringify(before);
  // The large view, and its keys.
  await page.locator(".now .open").nth(1).click();
  const title = () => page.locator("dialog h2").innerText();
  const first = await title();
  await page.keyboard.press("ArrowDown");
  found.prompts = [first, await title()];
  const large = () => page.locator("dialog .stage > img").first().getAttribute("src");
  const right = await large();
  await page.keyboard.press("ArrowLeft");
  found.largeMoved = right !== (await large());
  await page.keyboard.press("c");
  found.wiping = await page.locator(".stage.wipe img").count();
  const box = await page.locator(".stage.wipe").boundingBox();
  await page.mouse.move(box.x + box.width * 0.25, box.y + box.height / 2);
  found.cut = await page.locator(".stage.wipe").evaluate((e) => e.style.getPropertyValue("--cut"));
  await page.keyboard.press("s");
  found.starred = await page.locator("dialog [aria-pressed=true]").innerText();
  await page.getByLabel("Side by side").check();
  found.side = await page.locator(".stage.pair img").count();
  await page.keyboard.press("Escape");
  found.closed = await page.locator("dialog").evaluate((e) => !e.open);
  // Hovering over a curve shows its values.
  await page.locator("figure[data-chart]").first().scrollIntoViewIfNeeded();
  const curve = page.locator(".chart.drawn .u-over").first();
  await curve.scrollIntoViewIfNeeded();
  const legend = page.locator(".chart.drawn .u-legend").first();
  const empty = await legend.innerText();
  const place = await curve.boundingBox();
  await page.mouse.move(place.x + place.width / 2, place.y + place.height / 2);
  await page.waitForTimeout(100);
  found.legend = [empty, await legend.innerText()];
  // A finding leads to its step.
  await page.locator("a[data-step]").first().click();
  found.led = await page.locator("output.step").innerText();
  found.downloads = await page.locator(".downloads button").count();
  const [saved] = await Promise.all([
    page.waitForEvent("download"),
    page.getByText("Save as CSV").click(),
  ]);
  found.csv = readFileSync(await saved.path(), "utf8").slice(0, 200);
  await close();
  return { ...found, said, blocked };
}

async function accessible(file, options) {
  const { page, close } = await open(file, options);
  await scrolled(page);
  await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  await page.evaluate(axe);
  const run = () => page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const results = [await run()];
  if (await page.locator(".now .open").count()) {
    await page.locator(".now .open").first().click();
    await page.keyboard.press("c");
    results.push(await run());
  }
  await close();
  return results.flatMap((result) =>
    result.violations
      .filter((v) => ["serious", "critical"].includes(v.impact))
      .map((v) => `${v.id}: ${v.nodes.length} x ${v.nodes[0].html.slice(0, 160)} ${v.nodes[0].failureSummary.slice(0, 300)}`),
  );
}

async function looks(file, name) {
  const found = {};
  for (const width of [360, 768, 1440])
    for (const colorScheme of ["light", "dark"]) {
      const { page, said, close } = await open(file, {
        viewport: { width, height: width < 500 ? 740 : 900 },
        colorScheme,
        reducedMotion: "reduce",
      });
      await scrolled(page);
      const small = await page.$$eval("button, a[href], select, summary, label", (all) =>
        all
          .filter((e) => !e.closest(".skip") && !e.classList.contains("skip"))
          .map((e) => e.getBoundingClientRect())
          .filter((box) => box.width && box.height && Math.min(box.height, box.width) < 43.5)
          .length,
      );
      found[`${width}-${colorScheme}`] = {
        over: await page.evaluate(() => document.documentElement.scrollWidth - innerWidth),
        small,
        said,
      };
      await page.screenshot({ path: `${shots}/${name}-${width}-${colorScheme}.png`, fullPage: true });
      await close();
    }
  return found;
}

async function plain() {
  const { page, close } = await open(pages.run, { javaScriptEnabled: false });
  const text = await page.locator("body").innerText();
  const posters = await page.locator("svg.poster").count();
  const pictures = await page.locator("img").count();
  await page.screenshot({ path: `${shots}/plain.png`, fullPage: true });
  await close();
  return { text, posters, pictures };
}

async function nasty() {
  const { page, said, blocked, close } = await open(pages.nasty);
  const alerts = [];
  page.on("dialog", (dialog) => alerts.push(dialog.message()));
  await scrolled(page);
  const rows = await page.locator(".prompt").allInnerTexts();
  await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  const text = await page.locator("body").innerText();
  await page.locator(".now .open").first().click();
  const large = await page.locator("dialog h2").innerText();
  await page.keyboard.press("c");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Escape");
  await close();
  return { said, blocked, alerts, rows, text, large };
}

async function compared() {
  const { page, said, blocked, close } = await open(pages.several);
  const found = { columns: await page.locator(".row").first().locator(".now").count() };
  await page.locator(".now .open").first().click();
  await page.keyboard.press("c");
  const choices = await page.locator("dialog select option").allInnerTexts();
  await page.keyboard.press("Escape");
  await page.getByText("Choose without names").click();
  found.hidden = !(await page.locator("#film").innerText()).includes("my-fox");
  for (let row = 0; row < 3; row++)
    await page.locator(".row").nth(row).getByText("This one").first().click();
  await page.getByText("Show the names").click();
  found.chosen = await page.locator(".blind").innerText();
  await close();
  return { ...found, choices, said, blocked };
}

async function long() {
  const times = [];
  let state = {};
  for (let i = 0; i < 5; i++) {
    const { page, said, close } = await open(pages.long);
    // Until the film stands and its first pictures are decoded.
    await page.waitForFunction(() => {
      const image = document.querySelector(".now .open img");
      return image?.complete && image.naturalWidth > 1;
    });
    const timing = await page.evaluate(() => {
      const entry = performance.getEntriesByType("navigation")[0];
      return { loaded: entry.loadEventEnd, paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime };
    });
    times.push({ busy: await page.busy(), ...timing });
    state = { said, rows: await page.locator(".row").count() };
    await close();
  }
  return { times, ...state };
}

try {
  seen.working = await working();
  seen.axe = {
    light: await accessible(pages.run, { colorScheme: "light" }),
    dark: await accessible(pages.run, { colorScheme: "dark" }),
    phone: await accessible(pages.several, { viewport: { width: 360, height: 740 } }),

  };
  seen.looks = { run: await looks(pages.run, "run"), several: await looks(pages.several, "several") };
  seen.plain = await plain();
  seen.nasty = await nasty();
  seen.compared = await compared();
  seen.long = await long();
  const { page, close } = await open(pages.run);
  await scrolled(page);
  await page.emulateMedia({ media: "print" });
  const pdf = await page.pdf({ path: `${shots}/run.pdf`, format: "A4", preferCSSPageSize: true });
  seen.pages = (pdf.toString("latin1").match(/\/Type\s*\/Page\b/g) ?? []).length;
  await close();
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
