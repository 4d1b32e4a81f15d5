/** What the page's own words get from the script: buttons, links, downloads, the map's point. */
import { address, report, steps } from "./data";
import { choose, goTo, now, onChange } from "./state";

function button(label: string, act: (button: HTMLButtonElement) => void): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "button";
  made.textContent = label;
  made.addEventListener("click", () => act(made));
  return made;
}

async function copy(text: string, from: HTMLButtonElement): Promise<void> {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without leave to use the clipboard the text is selected, ready for Ctrl+C.
    const code = from.parentElement?.querySelector("code");
    if (code) getSelection()?.selectAllChildren(code);
    said = "Selected";
  }
  const before = from.textContent;
  from.textContent = said;
  setTimeout(() => (from.textContent = before), 1500);
}

function save(name: string, kind: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function cell(value: string | number): string {
  // A cell that begins like a formula would be one in a spreadsheet.
  const text = typeof value === "number" ? String(value) : value.replace(/^[=+@-]/, "'$&");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(): string {
  const lines = ["curve,line,step,value"];
  for (const chart of report.charts)
    for (const line of chart.lines)
      line.steps.forEach((step, i) => lines.push([chart.title, line.label, step, line.values[i] ?? ""].map(cell).join(",")));
  return `${lines.join("\r\n")}\r\n`;
}

function actions(): void {
  const bar = document.querySelector<HTMLElement>("[data-acts]");
  if (!bar) return;
  if (steps.length)
    bar.append(
      button("Compare", () => choose({ large: true, row: 0, mode: report.runs.length > 1 ? "side" : "wipe" })),
    );
  bar.append(button("Print", () => print()));
  bar.hidden = false;
}

function downloads(): void {
  const bar = document.querySelector<HTMLElement>("[data-downloads]");
  if (!bar) return;
  bar.className = "downloads";
  bar.append(
    button("Save as CSV", () => save("numbers.csv", "text/csv", csv())),
    button("Save as JSON", () =>
      save("numbers.json", "application/json", JSON.stringify({ charts: report.charts, evaluations: report.evaluations }, null, 1)),
    ),
  );
  bar.hidden = false;
}

function map(): void {
  const mark = () => {
    const step = String(steps[now().step] ?? "");
    for (const point of document.querySelectorAll<SVGElement>("g.point"))
      point.classList.toggle("now", point.dataset.step === step);
  };
  for (const point of document.querySelectorAll<SVGElement>("g.point"))
    point.addEventListener("click", () => goTo(Number(point.dataset.step)));
  onChange(mark);
  mark();
}

/** Bring the written page to life. */
export function enliven(): void {
  document.documentElement.classList.remove("plain");
  actions();
  downloads();
  map();
  for (const link of document.querySelectorAll<HTMLElement>("a[data-step]"))
    link.addEventListener("click", () => goTo(Number(link.dataset.step)));
  for (const code of document.querySelectorAll<HTMLElement>("code[data-copy]"))
    code.after(button("Copy", (made) => void copy(code.textContent ?? "", made)));
  for (const gap of document.querySelectorAll<HTMLElement>("[data-later]")) {
    const image = document.createElement("img");
    image.alt = gap.dataset.alt ?? "";
    image.src = address(gap.dataset.later ?? "");
    gap.replaceWith(image);
  }
}
