/** What the person has chosen: one value for the whole page, and who wants to hear of changes. */
import { useEffect, useState } from "preact/hooks";
import { report, steps } from "./data";

export type Mode = "one" | "side" | "wipe";

export interface Chosen {
  /** Index into `steps`. */
  step: number;
  /** Which picture of each prompt. */
  number: number;
  photo: number;
  /** Index of the row that is worked with. */
  row: number;
  /** Whether the large view is open. */
  large: boolean;
  /** Which run the large view shows. */
  run: number;
  mode: Mode;
  /** What the large view compares with: photo, first (step), before, or run-N. */
  against: string;
  stars: ReadonlySet<string>;
  /** Whether the runs' names are hidden, and which run was chosen in each row. */
  blind: boolean;
  votes: ReadonlyMap<string, number>;
}

const listeners = new Set<() => void>();
const place = `dreambooth-report:${document.title}`;

function remembered(): Set<string> {
  try {
    return new Set(JSON.parse(localStorage.getItem(place) ?? "[]") as string[]);
  } catch {
    return new Set(); // a browser may forbid storage to files
  }
}

function begin(): number {
  const best = report.runs.length === 1 ? report.runs[0]?.best : null;
  const at = best == null ? -1 : steps.indexOf(best);
  return at >= 0 ? at : Math.max(0, steps.length - 1);
}

let chosen: Chosen = {
  step: begin(),
  number: 1,
  photo: 0,
  row: 0,
  large: false,
  run: 0,
  mode: "one",
  against: report.runs.some((run) => run.photos.length) ? "photo" : "first",
  stars: remembered(),
  blind: false,
  votes: new Map(),
};

export const now = (): Chosen => chosen;

export function choose(change: Partial<Chosen>): void {
  chosen = { ...chosen, ...change };
  for (const listener of listeners) listener();
}

export function onChange(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function useChosen(): Chosen {
  const [, again] = useState(0);
  useEffect(() => onChange(() => again((n) => n + 1)), []);
  return chosen;
}

export function move(by: number): void {
  choose({ step: Math.min(steps.length - 1, Math.max(0, chosen.step + by)) });
}

export function goTo(step: number): void {
  const at = steps.indexOf(step);
  if (at >= 0) choose({ step: at });
}

export function star(name: string): void {
  const stars = new Set(chosen.stars);
  if (!stars.delete(name)) stars.add(name);
  try {
    localStorage.setItem(place, JSON.stringify([...stars]));
  } catch {
    // Stars then last as long as the page.
  }
  choose({ stars });
}
