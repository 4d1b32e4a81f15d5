/** What Python wrote into the page, and its pictures. */

export interface Row {
  prompt: string;
  key: string;
  seed: number;
  number: number;
  pictures: Record<string, string>;
}

export interface Photo {
  name: string;
  picture: string;
  caption: string;
}

export interface Values {
  step: number;
  key: string;
  seed: number;
  values: Record<string, number>;
}

export interface Run {
  name: string;
  best: number | null;
  samples: { steps: number[]; rows: Row[] };
  photos: Photo[];
  values: Values[];
}

export interface Line {
  label: string;
  steps: number[];
  values: number[];
  colour: number;
}

export interface Chart {
  title: string;
  folded: boolean;
  lines: Line[];
  logged: number;
}

export interface Report {
  runs: Run[];
  charts: Chart[];
  evaluations: Record<string, string | number | null>[];
}

function block<T>(id: string): T {
  return JSON.parse(document.getElementById(id)?.textContent ?? "null") as T;
}

export const report = block<Report>("report-data");

let waiting: Record<string, string> | null = null;
const addresses = new Map<string, string>();
for (const image of document.querySelectorAll<HTMLImageElement>("img[data-picture]"))
  addresses.set(image.dataset.picture ?? "", image.src);

/** The address of a picture. Those not in the page itself become blobs when first asked for. */
export function address(name: string): string {
  const known = addresses.get(name);
  if (known) return known;
  // The block may have megabytes: it is read when the first of its pictures comes into view.
  waiting ??= block<Record<string, string>>("report-pictures");
  const bytes = Uint8Array.from(atob(waiting[name] ?? ""), (c) => c.charCodeAt(0));
  const made = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
  delete waiting[name];
  addresses.set(name, made);
  return made;
}

/** A row of the filmstrip: one prompt and seed, in every run that has it. */
export interface Strip {
  prompt: string;
  key: string;
  seed: number;
  number: number;
  runs: (Row | undefined)[];
}

function stripsOf(runs: Run[]): Strip[] {
  const found = new Map<string, Strip>();
  runs.forEach((run, i) => {
    for (const row of run.samples.rows) {
      const name = JSON.stringify([row.key, row.seed]);
      const strip = found.get(name) ?? {
        prompt: row.prompt,
        key: row.key,
        seed: row.seed,
        number: row.number,
        runs: runs.map(() => undefined),
      };
      strip.runs[i] = row;
      found.set(name, strip);
    }
  });
  return [...found.values()];
}

export const strips = stripsOf(report.runs);
export const steps = [...new Set(report.runs.flatMap((run) => run.samples.steps))].sort(
  (a, b) => a - b,
);
export const numbers = [...new Set(strips.map((strip) => strip.number))].sort((a, b) => a - b);
export const several = report.runs.length > 1;

/** A row's picture at a step, or at the last step before it that has one. */
export function pictureAt(row: Row | undefined, step: number): { name: string; step: number } | null {
  if (!row) return null;
  let best: number | null = null;
  for (const key of Object.keys(row.pictures)) {
    const at = Number(key);
    if (at <= step && (best === null || at > best)) best = at;
  }
  return best === null ? null : { name: row.pictures[best] ?? "", step: best };
}

/** What a picture is called where it is remembered: its name in this file may be another's in the next. */
export function memory(strip: Strip, run: number, step: number): string {
  return JSON.stringify([report.runs[run]?.name, strip.key, strip.seed, step]);
}

export function stepName(step: number): string {
  return step === 0 ? "untrained" : `step ${step}`;
}

/** The rows to show where each prompt shows its n-th picture. */
export function shownStrips(number: number): Strip[] {
  const exact = strips.filter((strip) => strip.number === number);
  if (number === 1) return exact;
  // A prompt with fewer pictures keeps its first.
  const has = new Set(exact.map((strip) => strip.prompt));
  return strips.filter((s) => s.number === number || (s.number === 1 && !has.has(s.prompt)));
}
