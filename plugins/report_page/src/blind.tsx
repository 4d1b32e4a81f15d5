/** Choosing without knowing whose picture it is: names hidden, a vote a row, then the count. */
import { report } from "./data";
import type { Strip } from "./data";
import { choose, now, useChosen } from "./state";

/** The name to show for a run: none while names are hidden. */
export function runName(run: number): string {
  return now().blind ? "hidden" : (report.runs[run]?.name ?? "");
}

const orders = new Map<string, number[]>();

/** The runs of a row from left to right: shuffled anew for each row while names are hidden. */
export function order(strip: Strip): number[] {
  const plain = report.runs.map((_, i) => i);
  if (!now().blind) return plain;
  const name = voteName(strip);
  const known = orders.get(name);
  if (known) return known;
  const drawn = plain.map((run) => [Math.random(), run] as const).sort((a, b) => a[0] - b[0]);
  const made = drawn.map(([, run]) => run);
  orders.set(name, made);
  return made;
}

export function voteName(strip: Strip): string {
  return JSON.stringify([strip.key, strip.seed]);
}

export function vote(strip: Strip, run: number): void {
  choose({ votes: new Map(now().votes).set(voteName(strip), run) });
}

/** The switch, and after it what was chosen. */
export function Blind() {
  const { blind, votes } = useChosen();
  const counts = report.runs.map((run, i) => {
    const count = [...votes.values()].filter((vote) => vote === i).length;
    return `${run.name} ${count}`;
  });
  return (
    <p class="blind">
      <button
        type="button"
        class="button"
        aria-pressed={blind}
        onClick={() => {
          orders.clear();
          choose(blind ? { blind: false } : { blind: true, votes: new Map() });
        }}
      >
        {blind ? "Show the names" : "Choose without names"}
      </button>
      <span role="status">
        {blind ? `${votes.size} chosen` : votes.size ? `You chose: ${counts.join(", ")}.` : ""}
      </span>
    </p>
  );
}
