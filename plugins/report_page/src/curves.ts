/** Curves under the pointer: uPlot in the place of the posters, one cursor for all. */
import uPlot from "uplot";
import { report } from "./data";
import type { Chart } from "./data";

const HEIGHT = 240;
/** There is no step between two steps. */
const WHOLE = [1, 2, 5].flatMap((n) => Array.from({ length: 8 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Each value's mean with its neighbours; near the ends of fewer of them, evenly on both sides. */
function smoothed(values: number[]): number[] {
  const half = Math.max(1, Math.floor(values.length / 20)) >> 1;
  return values.map((_, i) => {
    const reach = Math.min(half, i, values.length - 1 - i);
    let sum = 0;
    for (let at = i - reach; at <= i + reach; at++) sum += values[at] ?? 0;
    return sum / (2 * reach + 1);
  });
}

function digits(value: number | null): string {
  return value == null ? "–" : String(Number(value.toPrecision(4)));
}

function draw(chart: Chart, place: HTMLElement): uPlot {
  const tables: uPlot.AlignedData[] = [];
  const series: uPlot.Series[] = [{ label: "step", value: (_, v) => (v == null ? "–" : String(v)) }];
  for (const line of chart.lines) {
    const stroke = colour(`--c${line.colour}`);
    const few = line.values.length < 40;
    tables.push([line.steps, line.values, smoothed(line.values)]);
    series.push(
      { label: line.label, stroke: `${stroke}66`, width: 1, points: { show: few, size: 5, stroke }, value: (_, v) => digits(v), spanGaps: true },
      // The mean is drawn, not listed: the legend says what was logged.
      { label: "", stroke, width: 2, points: { show: false }, spanGaps: true, class: "unlisted" },
    );
  }
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return new uPlot(
    {
      width: place.clientWidth,
      height: HEIGHT,
      cursor: { sync: { key: "steps" }, points: { size: 8 } },
      scales: { x: { time: false } },
      legend: { live: true },
      axes: [{ ...axis, incrs: WHOLE }, { ...axis, size: 62, values: (_, all) => all.map((v) => digits(v)) }],
      series,
    },
    tables.length === 1 ? (tables[0] as uPlot.AlignedData) : uPlot.join(tables),
    place,
  );
}

/** Put the curves in the place of the posters when they come into view. */
export function curves(): void {
  const drawn = new Map<HTMLElement, uPlot>();
  const begin = (figure: HTMLElement) => {
    const chart = report.charts[Number(figure.dataset.chart)];
    if (!chart || !figure.clientWidth || drawn.has(figure)) return;
    const place = document.createElement("div");
    place.className = "live";
    figure.append(place);
    figure.classList.add("drawn");
    drawn.set(figure, draw(chart, place));
  };
  const watch = new IntersectionObserver(
    (seen) => seen.forEach((entry) => entry.isIntersecting && begin(entry.target as HTMLElement)),
    { rootMargin: "200px" },
  );
  const sizes = new ResizeObserver((seen) =>
    seen.forEach((entry) => {
      const plot = drawn.get(entry.target as HTMLElement);
      const width = plot?.root.parentElement?.clientWidth;
      if (plot && width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }),
  );
  for (const figure of document.querySelectorAll<HTMLElement>("figure[data-chart]")) {
    watch.observe(figure);
    sizes.observe(figure);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [figure, plot] of drawn) {
      plot.root.parentElement?.remove();
      plot.destroy();
      drawn.delete(figure);
      begin(figure);
    }
  });
}
